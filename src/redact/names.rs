//! New names: a number of the same form for each number, by a secret.
//!
//! Each digit is replaced by a permutation that the secret and the digits before it choose. So two numbers never become
//! one; the same number becomes the same one wherever it stands, without a table; and numbers with a beginning in common
//! have new ones with a beginning in common, so that the search of an M-Bus master, which asks for `1FFFFFFF` and then
//! for `12FFFFFF`, still finds who answered it. No digit stays as it was. Zeros in front stay, and count for nothing:
//! `0012` is the same number as `12`.
//!
//! The permutations come from AES-128 as a pseudo-random function (a CBC-MAC over messages that begin with their
//! length). Whoever does not have the secret cannot compute old digits from new ones. What remains to be seen is how many
//! digits a number has, and which ones begin alike.

use aes_gcm::{
    KeyInit,
    aes::{Aes128, cipher::BlockEncrypt},
};

/// What the new names are made from: 128 bits. Printed as dots.
#[derive(Clone)]
pub struct Secret(Aes128);

impl Secret {
    /// From random bits, or from a seed for who wants the same names again.
    pub fn new(bits: u128) -> Self {
        Self(Aes128::new(&bits.to_be_bytes().into()))
    }

    /// The pseudo-random function.
    pub(super) fn number(&self, message: &[u8]) -> u128 {
        let mut state = [0u8; 16];
        let length = (message.len() as u64).to_be_bytes();
        for block in std::iter::once(&length[..]).chain(message.chunks(16)) {
            for (byte, more) in state.iter_mut().zip(block) {
                *byte ^= more;
            }
            let mut block = state.into();
            self.0.encrypt_block(&mut block);
            state = block.into();
        }
        u128::from_be_bytes(state)
    }

    /// A permutation of `0..count` that leaves nothing where it was. `count` is 2 to 26.
    fn permutation(&self, count: usize, before: &[u8]) -> Vec<u8> {
        // One in three is such a one.
        for attempt in 0..=u8::MAX {
            let mut bits = self.number(&[&[b'p', count as u8, attempt], before].concat());
            let mut all: Vec<u8> = (0..count as u8).collect();
            for last in (1..count).rev() {
                let size = last as u128 + 1;
                all.swap(last, (bits % size) as usize);
                bits /= size;
            }
            if all.iter().enumerate().all(|(at, &to)| usize::from(to) != at) {
                return all;
            }
        }
        (1..count as u8).chain([0]).collect()
    }

    /// A number written in digits; whatever else stands among them (hex digits, the wildcard F) stays.
    pub(super) fn digits(&self, digits: &[u8]) -> Vec<u8> {
        let zeros = digits.iter().take_while(|&&digit| digit == b'0').count();
        let (zeros, significant) = digits.split_at_checked(zeros).unwrap_or((digits, &[]));
        let mut renewed = zeros.to_vec();
        for (at, &digit) in significant.iter().enumerate() {
            let before = [&[significant.len() as u8], significant.get(..at).unwrap_or_default()].concat();
            renewed.push(match (digit, at) {
                (b'0'..=b'9', 1..) => self.replace(digit, b'0', 10, &before),
                (b'1'..=b'9', _) => self.replace(digit, b'1', 9, &before),
                (other, _) => other,
            });
        }
        renewed
    }

    fn replace(&self, byte: u8, first: u8, count: usize, before: &[u8]) -> u8 {
        let permutation = self.permutation(count, before);
        permutation.get(usize::from(byte.wrapping_sub(first))).map_or(byte, |to| first.wrapping_add(*to))
    }

    /// Every number in a text that has at least `least` digits.
    pub(super) fn numbers(&self, text: &[u8], least: usize) -> Vec<u8> {
        let mut renewed = Vec::with_capacity(text.len());
        for run in text.chunk_by(|one, other| one.is_ascii_digit() == other.is_ascii_digit()) {
            let is_number = run.first().is_some_and(u8::is_ascii_digit) && run.len() >= least;
            if is_number { renewed.extend(self.digits(run)) } else { renewed.extend(run) }
        }
        renewed
    }

    /// An identifier as it was sent: hex digits that spell no text stay hex digits.
    pub(super) fn bare(&self, content: &[u8]) -> Vec<u8> {
        let is_hex = content.len() >= 8
            && content.len().is_multiple_of(2)
            && content.iter().all(u8::is_ascii_hexdigit)
            && content.iter().any(u8::is_ascii_alphabetic);
        if !is_hex || is_secondary(content) {
            return self.identifier(content);
        }
        let value =
            |byte: u8| char::from(byte).to_digit(16).and_then(|value| u8::try_from(value).ok()).unwrap_or_default();
        let mut before = vec![b'h'];
        let mut renewed = Vec::with_capacity(content.len());
        for &old in content {
            let new = self.replace(value(old), 0, 16, &before);
            let digit = char::from_digit(new.into(), 16).unwrap_or('0');
            let is_small = content.iter().any(u8::is_ascii_lowercase);
            renewed.push(if is_small { digit } else { digit.to_ascii_uppercase() } as u8);
            before.push(value(old));
        }
        renewed
    }

    /// An identifier as text. Its letters are taken for a code of maker and model, and stay, where at least six digits
    /// and not more than eight letters are there; otherwise they are renewed as well.
    pub(super) fn identifier(&self, text: &[u8]) -> Vec<u8> {
        // A meter on an M-Bus under its secondary address: number, maker, version, medium.
        if is_secondary(text) {
            let (number, rest) = text.split_at_checked(8).unwrap_or_default();
            return [&self.digits(number)[..], rest].concat();
        }
        // What it measures, the maker's three letters, and ten digits.
        if is_din(text) {
            let (kept, number) = text.split_at_checked(4).unwrap_or_default();
            return [kept, &self.digits(number)].concat();
        }
        let count = |is: fn(&u8) -> bool| text.iter().filter(|byte| is(byte)).count();
        let digits = self.numbers(text, 1);
        if count(u8::is_ascii_digit) >= 6 && count(u8::is_ascii_alphabetic) <= 8 {
            return digits;
        }
        let mut before = vec![b'l'];
        let mut renewed = Vec::with_capacity(text.len());
        for (&digit, &old) in digits.iter().zip(text) {
            renewed.push(match old {
                b'A'..=b'Z' => self.replace(old, b'A', 26, &before),
                b'a'..=b'z' => self.replace(old, b'a', 26, &before),
                _ => digit,
            });
            before.push(old);
        }
        renewed
    }
}

/// 16 hex digits: eight of a number, and four whose letters are a maker's. Where all are decimal it may as well be one number.
fn is_secondary(text: &[u8]) -> bool {
    let number = text.get(..8).unwrap_or_default();
    let maker = text.get(8..12).and_then(|maker| std::str::from_utf8(maker).ok());
    let maker = maker.and_then(|maker| u16::from_str_radix(maker, 16).ok()).map(u16::swap_bytes);
    text.len() == 16
        && number.iter().all(u8::is_ascii_digit)
        && text.iter().all(u8::is_ascii_hexdigit)
        && text.iter().any(u8::is_ascii_alphabetic)
        && maker.is_some_and(|maker| crate::mbus::Manufacturer(maker).letters().is_some())
}

/// DIN 43863-5.
fn is_din(text: &[u8]) -> bool {
    let [medium, maker @ ..] = text else { return false };
    let (letters, digits) = maker.split_at_checked(3).unwrap_or_default();
    medium.is_ascii_digit()
        && letters.iter().all(u8::is_ascii_uppercase)
        && digits.len() == 10
        && digits.iter().all(u8::is_ascii_digit)
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(...)")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn text(bytes: &[u8]) -> String {
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[test]
    fn never_do_two_numbers_become_one() {
        for secret in 0..3 {
            let secret = Secret::new(secret);
            for count in 1..=4usize {
                let all = 0..10u32.pow(count as u32);
                let new: BTreeSet<Vec<u8>> =
                    all.clone().map(|number| secret.digits(format!("{number:0count$}").as_bytes())).collect();
                assert_eq!(new.len(), all.len());
                assert!(new.iter().all(|number| number.len() == count && number.iter().all(u8::is_ascii_digit)));
            }
        }
    }

    #[test]
    fn the_same_number_is_the_same_wherever_it_stands() {
        let secret = Secret::new(7);
        let bare = text(&secret.digits(b"47039168"));
        assert_ne!(bare, "47039168");
        assert_eq!(text(&secret.digits(b"000047039168")), format!("0000{bare}"));
        assert_eq!(text(&secret.identifier(b"KMP47039168")), format!("KMP{bare}"));
        assert_eq!(text(&secret.identifier(b"470391682D2C1C0C")), format!("{bare}2D2C1C0C"));
        assert_eq!(text(&secret.numbers(b"\\2M550T-1012 47039168_A", 5)), format!("\\2M550T-1012 {bare}_A"));
        // What begins alike goes on beginning alike: the search of a master stays one.
        for (at, mask) in ["4FFFFFFF", "47FFFFFF", "470FFFFF", "47039FFF"].into_iter().enumerate() {
            let known = [1, 2, 3, 5][at];
            let wildcards = "F".repeat(8 - known);
            assert_eq!(text(&secret.digits(mask.as_bytes())), format!("{}{wildcards}", bare.get(..known).unwrap()));
        }
    }

    #[test]
    fn the_form_of_an_identifier_stays() {
        let secret = Secret::new(1);
        for (old, kept) in [("E0043007052870318", "E"), ("1SAG3100000231", "1SAG"), ("7FLO2119033733", "7FLO")] {
            let new = text(&secret.identifier(old.as_bytes()));
            assert!(new.starts_with(kept) && new.len() == old.len() && new != old, "{new}");
            let number = new.get(kept.len()..).unwrap();
            assert!(number.bytes().all(|byte| byte.is_ascii_digit()), "{new}");
        }
        // What is no number is a name: its letters go.
        for old in ["serienummer", "FamilySmith123456", "A1"] {
            let new = text(&secret.identifier(old.as_bytes()));
            assert!(new.len() == old.len() && new.bytes().zip(old.bytes()).all(|(new, old)| new != old), "{new}");
        }
        // Hex digits that spell nothing stay hex digits.
        for old in ["0A1B2C3D4E5F6A7B", "0011aabbccddeeff"] {
            let new = text(&secret.bare(old.as_bytes()));
            assert!(new.bytes().zip(old.bytes()).all(|(new, old)| new != old && new.is_ascii_hexdigit()), "{new}");
            assert_eq!(new.bytes().any(|byte| byte.is_ascii_uppercase()), old.starts_with("0A"), "{new}");
        }
        assert_eq!(text(&secret.identifier(b"00000000000000")), "00000000000000", "names nobody");
        assert_eq!(text(&secret.identifier(b"")), "");
    }

    proptest! {
        #[test]
        fn no_digit_stays_and_another_secret_gives_another_name(number in "[1-9][0-9]{11,20}", one: u128, other: u128) {
            prop_assume!(one != other);
            let new = Secret::new(one).digits(number.as_bytes());
            prop_assert!(new.iter().zip(number.as_bytes()).all(|(new, old)| new != old));
            prop_assert_ne!(&new, &Secret::new(other).digits(number.as_bytes()));
        }

        #[test]
        fn two_texts_never_become_one(one in "[A-Za-z0-9 ]{0,9}", other in "[A-Za-z0-9 ]{0,9}") {
            prop_assume!(one != other);
            let secret = Secret::new(3);
            prop_assert_ne!(secret.identifier(one.as_bytes()), secret.identifier(other.as_bytes()));
        }
    }
}
