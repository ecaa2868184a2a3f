//! The names that were, and the search for them.
//!
//! A serial is the digits of a name. It is searched for as it may stand in bytes: as ASCII, as hex digits of ASCII, as BCD,
//! each forward and backward; where names may stand also as a binary number. One of fewer than six digits (zeros in front do not count) names too little to be told from any
//! other number, and is not searched for, unless it was written with eight digits or more, four of them its own.
//!
//! A name whose digits stand among letters or blanks (`SN12A34B56`) is searched for in text as its letters and digits, whatever
//! else stands between them.

use std::collections::{BTreeMap, BTreeSet};

/// Serials of meters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Serials {
    /// By their first six digits as a number.
    all: BTreeMap<u32, BTreeSet<Vec<u8>>>,
    /// Whole names: their letters, as capitals, and digits.
    texts: BTreeSet<Vec<u8>>,
}

/// As many digits of a serial in a row are not found by chance, where no values are.
const TELLING: usize = 6;

/// Whether a serial is found by chance not even among values: eight digits, and four different ones.
fn is_certain(serial: &[u8]) -> bool {
    serial.len() >= 8 && variety(serial) >= 4
}

/// How many different digits there are.
fn variety(digits: &[u8]) -> usize {
    digits.iter().collect::<BTreeSet<_>>().len()
}

impl Serials {
    /// The numbers in a name, as ASCII.
    pub fn add(&mut self, name: &[u8]) {
        let text = squeezed(name);
        let is_one_number = name.iter().all(u8::is_ascii_digit);
        if !is_one_number && text.len() >= TELLING && variety(&text) >= 3 && text.iter().any(u8::is_ascii_digit) {
            self.texts.insert(text);
        }
        for run in name.split(|byte| !byte.is_ascii_digit()) {
            let zeros = run.iter().take_while(|&&digit| digit == b'0').count();
            let significant = run.get(zeros..).unwrap_or_default();
            let serial = match significant.len() {
                TELLING.. => significant,
                4.. if run.len() >= 8 => run,
                _ => continue,
            };
            // All digits alike are a placeholder.
            if serial.iter().all(|digit| Some(digit) == serial.first()) {
                continue;
            }
            if let Some((_, begin)) = sixes(serial).next() {
                self.all.entry(begin).or_default().insert(serial.to_vec());
            }
        }
    }

    /// Takes in those of others.
    pub fn extend(&mut self, others: &Self) {
        for (begin, serials) in &others.all {
            self.all.entry(*begin).or_default().extend(serials.iter().cloned());
        }
        self.texts.extend(others.texts.iter().cloned());
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.values().map(BTreeSet::len).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty() && self.texts.is_empty()
    }

    /// Whether a text holds six letters or digits in a row of one of them, whatever else stands between.
    pub(super) fn share_text(&self, text: &[u8]) -> bool {
        let text = squeezed(text);
        let parts: BTreeSet<&[u8]> = text.windows(TELLING).filter(|part| variety(part) >= 3).collect();
        let is_digital = |part: &[u8]| part.iter().any(u8::is_ascii_digit);
        self.texts.iter().flat_map(|name| name.windows(TELLING)).any(|part| is_digital(part) && parts.contains(part))
    }

    /// Whether one of them stands in these bytes, in any form. `values`: whether there are numbers among them, which may be
    /// like a short serial.
    pub(super) fn are_in(&self, bytes: &[u8], values: bool) -> bool {
        let stands = |view: &View, at: usize, begin: u32| {
            let rest = view.digits.get(at..).unwrap_or_default();
            let found = |serial: &Vec<u8>| {
                // A number in BCD fills its bytes to the end.
                let is_aligned = !view.is_bcd || (at + serial.len()).is_multiple_of(2);
                is_aligned && (!values || is_certain(serial)) && rest.starts_with(serial)
            };
            self.all.get(&begin).is_some_and(|serials| serials.iter().any(found))
        };
        let is_text = || {
            let text = squeezed(bytes);
            self.texts.iter().any(|name| memchr::memmem::find(&text, name).is_some())
        };
        !self.all.is_empty()
            && views(bytes).iter().any(|view| sixes(&view.digits).any(|(at, begin)| stands(view, at, begin)))
            || !values && (is_text() || self.all.values().flatten().any(|serial| is_binary(serial, bytes)))
    }

    /// Whether all or six digits, or letters and digits, in a row of one of them stand in what people call something.
    pub(super) fn are_in_label(&self, label: &[u8]) -> bool {
        self.are_in(label, false) || self.are_partly_in_text(label) || self.share_text(label)
    }

    /// Whether six digits in a row of one of them stand in this text.
    pub(super) fn are_partly_in_text(&self, text: &[u8]) -> bool {
        self.are_partly_in_views(&[View { digits: text.to_vec(), is_bcd: false }])
    }

    /// Whether six digits in a row of one of them stand in these bytes, in any form.
    pub(super) fn are_partly_in(&self, bytes: &[u8]) -> bool {
        self.are_partly_in_views(&views(bytes))
    }

    /// Six digits of which no three differ tell too little.
    fn are_partly_in_views(&self, views: &[View]) -> bool {
        let parts = self.all.values().flatten().flat_map(|serial| serial.windows(TELLING));
        let parts: BTreeSet<u32> = parts.filter(|six| variety(six) >= 3).flat_map(sixes).map(|(_, six)| six).collect();
        !parts.is_empty() && views.iter().any(|view| sixes(&view.digits).any(|(_, six)| parts.contains(&six)))
    }
}

/// Whether a serial stands in bytes as a binary number, lowest or highest byte first. One of fewer than three bytes tells too little.
fn is_binary(serial: &[u8], bytes: &[u8]) -> bool {
    let number = std::str::from_utf8(serial).ok().and_then(|digits| digits.parse::<u64>().ok()).unwrap_or_default();
    let all = number.to_be_bytes();
    let high = all.get(number.leading_zeros() as usize / 8..).unwrap_or_default();
    let low: Vec<u8> = high.iter().rev().copied().collect();
    high.len() >= 3 && [high, &low].into_iter().any(|form| memchr::memmem::find(bytes, form).is_some())
}

/// Letters, as capitals, and digits.
fn squeezed(text: &[u8]) -> Vec<u8> {
    text.iter().filter(|byte| byte.is_ascii_alphanumeric()).map(u8::to_ascii_uppercase).collect()
}

/// Every six digits in a row as a number, and where they begin.
fn sixes(digits: &[u8]) -> impl Iterator<Item = (usize, u32)> {
    let (mut number, mut count) = (0u32, 0usize);
    digits.iter().enumerate().filter_map(move |(at, &digit)| {
        if !digit.is_ascii_digit() {
            count = 0;
            return None;
        }
        number = number % 100_000 * 10 + u32::from(digit - b'0');
        count += 1;
        (count >= TELLING).then(|| (at + 1 - TELLING, number))
    })
}

/// The digits in bytes by one way to read them; something else where there is none.
struct View {
    digits: Vec<u8>,
    is_bcd: bool,
}

fn views(bytes: &[u8]) -> Vec<View> {
    let bcd = |byte: u8| [byte >> 4, byte & 0x0F].map(|half| if half < 10 { b'0' + half } else { b' ' });
    let mut views: Vec<View> = vec![
        View { digits: bytes.iter().copied().flat_map(bcd).collect(), is_bcd: true },
        View { digits: bytes.iter().rev().copied().flat_map(bcd).collect(), is_bcd: true },
    ];
    let mut texts = vec![bytes.to_vec()];
    // Hex digits of ASCII begin at either place.
    for from in [0, 1] {
        let pairs = bytes.get(from..).unwrap_or_default().as_chunks::<2>().0;
        let decoded = pairs.iter().map(|pair| match pair {
            [b'3', low @ b'0'..=b'9'] => *low,
            _ => b' ',
        });
        texts.push(decoded.collect());
    }
    for text in texts {
        // Backwards: text of M-Bus has its last letter first.
        let back = text.iter().rev().copied().collect();
        views.extend([text, back].map(|digits| View { digits, is_bcd: false }));
    }
    views
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_is_found_in_each_form() {
        let mut serials = Serials::default();
        serials.add(b"ZABF 001587315111");
        assert_eq!(serials.len(), 1);
        for bytes in [
            &b"/KMP5 ZABF001587315111\r\n"[..],
            b"0-0:96.1.1(5A42313538373331353131312020)",
            b"x333135383733313531313120",
            &[0x01, 0x58, 0x73, 0x15, 0x11, 0x10, 0x15, 0x87, 0x31, 0x51, 0x11],
            &[0xFF, 0x11, 0x51, 0x31, 0x87, 0x15],
            b"1115137851FBAZ",
        ] {
            assert!(serials.are_in(bytes, true) && serials.are_partly_in(bytes), "{bytes:02X?}");
        }
        assert!(!serials.are_in(b"158731511", false));
        // 1587315111 as a binary number.
        for bytes in [[7, 0xA7, 0x81, 0x9C, 0x5E, 9], [0, 0x5E, 0x9C, 0x81, 0xA7, 1]] {
            assert!(serials.are_in(&bytes, false) && !serials.are_in(&bytes, true));
        }
        assert!(serials.are_partly_in(b"0158731*kWh"));
        assert!(!serials.are_partly_in(b"15873 1511"));
    }

    #[test]
    fn a_name_is_found_whatever_stands_between_its_letters_and_digits() {
        let mut serials = Serials::default();
        serials.add(b"SN12A34B56");
        serials.add(b"KMP 1234 5678 9012");
        assert_eq!(serials.len(), 0);
        for text in [&b"/ABC5sn-12a34b56"[..], b"p1 SN12A34B56", b"KMP123456789012", b"kmp_1234_5678_9012"] {
            assert!(serials.are_in(text, false) && !serials.are_in(text, true) && serials.share_text(text), "{text:?}");
        }
        assert!(
            serials.share_text(b" 1234 5678") && !serials.share_text(b"\\2M550T-1012") && !serials.share_text(b"SN12A")
        );
    }

    #[test]
    fn what_names_too_little_is_not_searched_for() {
        let mut serials = Serials::default();
        for name in [&b"99417"[..], b"00000000000000", b"11111111", b"00000056", b"E1", b"", b"012345"] {
            serials.add(name);
        }
        assert!(serials.is_empty());
        serials.add(b"00032629");
        assert!(serials.are_in(&[0x29, 0x26, 0x03, 0x00], true) && !serials.are_in(b"32629", false));
    }
}
