//! Encrypted telegrams: Luxembourg (Smarty) and Austria (Energie Steiermark).
//!
//! Enters: a sealed frame, from its `DB` through its tag, and the [`Key`] that the operator of the grid gives
//! to the household. Leaves: the telegram inside, an ordinary one with a CRC of its own; or why there is none.
//! Sources: Luxembourg P1 specification 1.1.3, 4 (security); IEC 62056-5-3 (DLMS/COSEM security suite 0).
//!
//! ```text
//! DB 08 title[8] 82 length[2, big endian] control counter[4] ciphertext tag[12]
//! ```
//!
//! `length` counts from the control byte on. Control 0x30 is encryption and authentication (AES-128-GCM, the
//! tag cut to 12 bytes; the nonce is title and counter, the associated data the control byte and the
//! authentication key); 0x20 is encryption alone, where the CRC inside is the only proof. A tag over no
//! associated data is accepted too, because some senders leave it out.
//!
//! A counter that does not rise is refused: a telegram that was recorded and played back. The counter restarts
//! when the key changes; then so does this, because the key is given at the start.
//!
//! Not supported: other lengths of the title or the length field, compression, other security suites.

use std::{collections::BTreeMap, fmt};

use aes_gcm::{
    AesGcm, KeyInit, Nonce, Tag,
    aead::{AeadInPlace, consts::U12},
    aes::Aes128,
};
use ctr::cipher::{KeyIvInit, StreamCipher};

use super::{MAX_TELEGRAM, Reason};

type Gcm = AesGcm<Aes128, U12, U12>;

/// What the devices of Luxembourg have as authentication key.
const COMMON_AUTHENTICATION_KEY: [u8; 16] =
    [0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xAA, 0xBB, 0xCC, 0xDD, 0xEE, 0xFF];

/// Encryption and authentication.
const AUTHENTICATED: u8 = 0x30;
/// Encryption alone.
const ENCRYPTED: u8 = 0x20;
/// From `DB` to the length, without what the length counts.
const HEAD: usize = 13;
/// Control byte and counter.
const CONTROL: usize = 5;
const TAG: usize = 12;

/// How many bytes from the beginning tell whether a frame begins.
pub(super) const TELLING: usize = HEAD + 1;

/// How long the frame is that begins with these bytes; None when none does.
pub(super) fn frame_length(begin: &[u8; TELLING]) -> Option<usize> {
    let [0xDB, 0x08, _, _, _, _, _, _, _, _, 0x82, high, low, AUTHENTICATED | ENCRYPTED] = *begin else { return None };
    let length = usize::from(u16::from_be_bytes([high, low]));
    // More than control, counter and tag, and no more than a telegram may be.
    (CONTROL + TAG < length && length <= CONTROL + TAG + MAX_TELEGRAM).then(|| length.saturating_add(HEAD))
}

/// Whether these bytes are a header, or the beginning of one.
pub(super) fn may_begin(bytes: &[u8]) -> bool {
    match bytes.first_chunk() {
        Some(begin) => frame_length(begin).is_some(),
        None => {
            let known = [(0, 0xDB), (1, 0x08), (10, 0x82)];
            known.iter().all(|&(at, expected)| bytes.get(at).is_none_or(|&byte| byte == expected))
        }
    }
}

/// What opens the telegrams of one meter. Printed as dots.
///
/// ```
/// use meterkast::p1::{Key, Reader};
///
/// let key = Key::from_text("000102030405060708090A0B0C0D0E0F")?;
/// assert_eq!(format!("{key:?}"), "Key(...)");
/// let reader = Reader::new(None, Some(key));
/// # Ok::<(), meterkast::p1::NotAKey>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    encryption: [u8; 16],
    authentication: [u8; 16],
}

/// The text is not one or two keys of 32 hexadecimal digits. It is not repeated, because it may hold a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "no key: write 32 hexadecimal digits, as the operator of the grid gave them, and behind them on a second line the \
     authentication key where there is one"
)]
pub struct NotAKey;

impl Key {
    /// From 32 hex digits, and 32 more for an authentication key of its own; white space, colons and a byte order
    /// mark between them do not matter.
    pub fn from_text(text: &str) -> Result<Self, NotAKey> {
        let separates = |letter: char| letter.is_ascii_whitespace() || matches!(letter, ':' | '\u{feff}');
        let mut digits =
            text.chars().filter(|&letter| !separates(letter)).map(|letter| letter.to_digit(16).ok_or(NotAKey));
        let encryption = sixteen_bytes(&mut digits)?.ok_or(NotAKey)?;
        let authentication = sixteen_bytes(&mut digits)?.unwrap_or(COMMON_AUTHENTICATION_KEY);
        if digits.next().is_some() { Err(NotAKey) } else { Ok(Self { encryption, authentication }) }
    }

    /// What a sealed frame holds, from its `DB` through its tag: a telegram, with whatever stands around it. A frame that was
    /// recorded and sent again is opened too; a [`Reader`](super::Reader) refuses it.
    pub fn open(&self, frame: &[u8]) -> Result<Vec<u8>, Reason> {
        Opener::new(self.clone()).open(frame)
    }

    /// Seals a telegram as a meter does: for virtual meters, and captures that were changed. `counter` must rise from frame to
    /// frame. Empty where the telegram is longer than a frame may hold (65,518 bytes).
    pub fn seal(&self, title: [u8; 8], counter: u32, telegram: &[u8]) -> Vec<u8> {
        let mut nonce = [0; 12];
        nonce.iter_mut().zip(title.into_iter().chain(counter.to_be_bytes())).for_each(|(to, from)| *to = from);
        let mut body = telegram.to_vec();
        let associated: Vec<u8> = [AUTHENTICATED].into_iter().chain(self.authentication).collect();
        let sealed =
            Gcm::new(&self.encryption.into()).encrypt_in_place_detached(&Nonce::from(nonce), &associated, &mut body);
        let length = u16::try_from(body.len()).ok().and_then(|length| length.checked_add((CONTROL + TAG) as u16));
        let (Ok(tag), Some(length)) = (sealed, length) else { return Vec::new() };
        let mut frame = vec![0xDB, 8];
        frame.extend(title);
        frame.push(0x82);
        frame.extend(length.to_be_bytes());
        frame.push(AUTHENTICATED);
        frame.extend(counter.to_be_bytes());
        frame.extend(body);
        frame.extend(tag);
        frame
    }
}

/// The next 32 digits as bytes; None when there are none.
fn sixteen_bytes(digits: &mut impl Iterator<Item = Result<u32, NotAKey>>) -> Result<Option<[u8; 16]>, NotAKey> {
    let mut key = [0; 16];
    for (index, byte) in key.iter_mut().enumerate() {
        let high = match digits.next() {
            None if index == 0 => return Ok(None),
            high => high.ok_or(NotAKey)??,
        };
        let low = digits.next().ok_or(NotAKey)??;
        // Both are at most 15.
        *byte = (high << 4 | low) as u8;
    }
    Ok(Some(key))
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(...)")
    }
}

/// Opens frames, and remembers their counters.
#[derive(Debug)]
pub struct Opener {
    key: Key,
    /// The last counter of each system title.
    counters: BTreeMap<[u8; 8], u32>,
}

/// Far more meters than hang on one port: only noise gets there.
const MOST_TITLES: usize = 64;

impl Opener {
    /// With no counter remembered.
    pub fn new(key: Key) -> Self {
        Self { key, counters: BTreeMap::new() }
    }

    /// The telegram inside of a sealed frame ([`Piece::Sealed`](super::Piece::Sealed)), with whatever stands around it.
    pub fn open(&mut self, frame: &[u8]) -> Result<Vec<u8>, Reason> {
        let parts = || {
            let (head, rest) = frame.split_first_chunk::<HEAD>()?;
            let (&control, rest) = rest.split_first()?;
            let (counter, body) = rest.split_first_chunk::<4>()?;
            let [_, _, title @ .., _, _, _] = head;
            Some((*title, control, *counter, body))
        };
        let (title, control, counter, body) = parts().ok_or(Reason::Truncated)?;
        let mut nonce = [0; 12];
        for (to, from) in nonce.iter_mut().zip(title.iter().chain(&counter)) {
            *to = *from;
        }
        let plain =
            if control == AUTHENTICATED { self.authenticated(body, nonce)? } else { self.encrypted(body, nonce) };
        if !looks_like_a_telegram(&plain) {
            return Err(Reason::WrongKey);
        }
        let counter = u32::from_be_bytes(counter);
        if let Some(&last) = self.counters.get(&title).filter(|&&last| counter <= last) {
            return Err(Reason::Replayed { counter, last });
        }
        // Without a tag only the CRC inside shows that the counter is the meter's, so it is not remembered.
        if control == AUTHENTICATED {
            if self.counters.len() >= MOST_TITLES {
                self.counters.clear();
            }
            self.counters.insert(title, counter);
        }
        Ok(plain)
    }

    fn authenticated(&self, body: &[u8], nonce: [u8; 12]) -> Result<Vec<u8>, Reason> {
        let (ciphertext, tag) = body.split_last_chunk::<TAG>().ok_or(Reason::Truncated)?;
        let cipher = Gcm::new(&self.key.encryption.into());
        let mut associated = [AUTHENTICATED; 17];
        for (to, from) in associated.iter_mut().skip(1).zip(self.key.authentication) {
            *to = from;
        }
        for associated in [&associated[..], &[]] {
            let mut plain = ciphertext.to_vec();
            let nonce = Nonce::from(nonce);
            if cipher.decrypt_in_place_detached(&nonce, associated, &mut plain, &Tag::<U12>::from(*tag)).is_ok() {
                return Ok(plain);
            }
        }
        // The same stream of bits without the tag tells a wrong key from damage.
        let readable = looks_like_a_telegram(&self.encrypted(ciphertext, nonce));
        // A key that opened one is right; then it is the title or the counter that was damaged.
        Err(if readable || !self.counters.is_empty() { Reason::SealBroken } else { Reason::WrongKey })
    }

    /// GCM without its tag is counter mode from 2 on.
    fn encrypted(&self, ciphertext: &[u8], nonce: [u8; 12]) -> Vec<u8> {
        let mut block = [0; 16];
        for (to, from) in block.iter_mut().zip(nonce.iter().chain(&[0, 0, 0, 2])) {
            *to = *from;
        }
        let mut plain = ciphertext.to_vec();
        ctr::Ctr32BE::<Aes128>::new(&self.key.encryption.into(), &block.into()).apply_keystream(&mut plain);
        plain
    }
}

/// A wrong key gives bytes that look random.
fn looks_like_a_telegram(plain: &[u8]) -> bool {
    matches!(plain, [b'/', a, b, c, ..] if [a, b, c].into_iter().all(u8::is_ascii_alphabetic))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "000102030405060708090A0B0C0D0E0F";
    const TITLE: [u8; 8] = *b"MKA\x01\x02\x03\x04\x05";
    const PLAIN: &[u8] = b"/MKA5 sealed\r\n\r\n1-0:1.8.0(000001.000*kWh)\r\n!0000\r\n";

    fn key(key: &str) -> Key {
        Key::from_text(key).unwrap()
    }

    fn opener(text: &str) -> Opener {
        Opener::new(key(text))
    }

    #[test]
    fn opens_what_was_sealed() {
        let sealed = key(KEY).seal(TITLE, 7, PLAIN);
        assert_eq!(frame_length(sealed.first_chunk().unwrap()), Some(sealed.len()));
        assert_eq!(opener(KEY).open(&sealed).unwrap(), PLAIN);
    }

    #[test]
    fn encryption_alone_is_opened_too() {
        let mut sealed = key(KEY).seal(TITLE, 7, PLAIN);
        sealed.truncate(sealed.len() - TAG);
        sealed[HEAD] = ENCRYPTED;
        assert_eq!(opener(KEY).open(&sealed).unwrap(), PLAIN);
    }

    #[test]
    fn says_what_is_wrong() {
        let sealed = key(KEY).seal(TITLE, 7, PLAIN);
        assert_eq!(opener("0F0102030405060708090A0B0C0D0E0F").open(&sealed), Err(Reason::WrongKey));
        let other_authentication = format!("{KEY}\n{KEY}");
        assert_eq!(opener(&other_authentication).open(&sealed), Err(Reason::SealBroken));
        for at in [CONTROL + HEAD + 20, sealed.len() - 1] {
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            assert_eq!(opener(KEY).open(&damaged), Err(Reason::SealBroken), "{at}");
        }
        let mut opener = opener(KEY);
        opener.open(&sealed).unwrap();
        assert_eq!(opener.open(&sealed), Err(Reason::Replayed { counter: 7, last: 7 }));
        let earlier = key(KEY).seal(TITLE, 6, PLAIN);
        assert_eq!(opener.open(&earlier), Err(Reason::Replayed { counter: 6, last: 7 }));
        let other_meter = key(KEY).seal(*b"MKA\x01\x02\x03\x04\x06", 1, PLAIN);
        assert!(opener.open(&other_meter).is_ok());
    }

    #[test]
    fn every_frame_however_short_is_survived() {
        let sealed = key(KEY).seal(TITLE, 7, PLAIN);
        for end in 0..sealed.len() {
            assert!(opener(KEY).open(&sealed[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn keys_are_read_and_never_shown() {
        assert_eq!(Key::from_text(&format!(" {}\n", KEY.to_lowercase())), Key::from_text(KEY));
        assert_eq!(Key::from_text("\u{feff}00:01 02030405060708090A0B0C0D0E0F\r\n"), Key::from_text(KEY));
        assert_ne!(Key::from_text(&format!("{KEY} {KEY}")), Key::from_text(KEY));
        for text in [
            "",
            "00",
            KEY.split_at(1).1,
            &format!("{KEY}0"),
            &format!("{KEY} x"),
            &format!("{KEY} {KEY} {KEY}"),
            "\u{e9}",
        ] {
            let error = Key::from_text(text).unwrap_err();
            assert!(text.len() < 8 || !error.to_string().contains(text));
        }
        assert_eq!(format!("{:?}", Key::from_text(KEY).unwrap()), "Key(...)");
    }
}
