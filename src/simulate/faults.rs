//! What goes wrong between a meter and its reader, by rate.
//!
//! Enters: a telegram or an answer. Leaves: the same with a fault in it, or not. The same seed and number give the same fault.
//!
//! A telegram without CRC (DSMR 2.2 and 3.0, Germany) that a fault hits may still be read, and then says something else: no
//! reader can know.

use serde::Deserialize;

use super::noise;

/// How many of a million telegrams, or of a million answers on a bus, are hit by each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Faults {
    /// One bit is another.
    pub bit_errors: u32,
    /// One byte is missing.
    pub lost_bytes: u32,
    /// The end is missing.
    pub cut: u32,
    /// The CRC or checksum is another.
    pub wrong_crcs: u32,
    /// Noise stands before it. It does no harm but where a frame is sealed.
    pub junk: u32,
    /// Nothing comes.
    pub silent: u32,
}

/// What was done to a telegram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// Nothing, or noise before it: it can be read.
    None,
    /// It cannot be read, if it has a CRC.
    Damaged,
    /// Nothing is left.
    Silent,
}

/// Of [`super::noise`].
const STREAM: u64 = 5000;

impl Faults {
    /// Whether nothing goes wrong.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let Self { bit_errors, lost_bytes, cut, wrong_crcs, junk, silent } = *self;
        let all = [bit_errors, lost_bytes, cut, wrong_crcs, junk, silent];
        let sum = all.iter().fold(0u32, |sum, &rate| sum.saturating_add(rate));
        if sum > 1_000_000 {
            return Err(format!("they come to {sum} of a million together: at most 1000000"));
        }
        Ok(())
    }

    /// Puts the fault of this number into `bytes`, if it has one. From `body` on bit and byte errors may hit; before it stands what
    /// announces a telegram, and behind `seal` bytes from its end nothing does any harm.
    pub(super) fn apply(&self, seed: u64, number: i64, bytes: &mut Vec<u8>, kind: Kind) -> Harm {
        if self.is_none() || bytes.is_empty() {
            return Harm::None;
        }
        let mut thrown = noise(seed, STREAM, number, 1_000_000);
        let mut falls_in = |rate: u32| {
            let is_in = (0..i64::from(rate)).contains(&thrown);
            thrown -= i64::from(rate);
            is_in
        };
        let (body, end) = kind.body(bytes.len());
        let place = |stream: u64, from: usize, to: usize| {
            let room = i64::try_from(to.saturating_sub(from)).unwrap_or(i64::MAX);
            from + usize::try_from(noise(seed, STREAM + stream, number, room)).unwrap_or_default()
        };
        if falls_in(self.bit_errors) {
            let at = place(1, body, end);
            let bit = noise(seed, STREAM + 2, number, 7);
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << bit;
            }
            Harm::Damaged
        } else if falls_in(self.lost_bytes) {
            let at = place(3, body, end);
            if at < bytes.len() {
                bytes.remove(at);
            }
            Harm::Damaged
        } else if falls_in(self.cut) {
            bytes.truncate(place(4, body, end));
            Harm::Damaged
        } else if falls_in(self.wrong_crcs) {
            kind.spoil(bytes);
            Harm::Damaged
        } else if falls_in(self.junk) {
            let length = 1 + noise(seed, STREAM + 5, number, 40);
            let junk = (0..length).map(|at| kind.junk(noise(seed, STREAM + 6 + at.unsigned_abs(), number, 256)));
            *bytes = junk.chain(bytes.iter().copied()).collect();
            Harm::None
        } else if falls_in(self.silent) {
            bytes.clear();
            Harm::Silent
        } else {
            Harm::None
        }
    }
}

/// What bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A telegram of this form: with a CRC or without.
    Telegram {
        /// Whether a CRC ends it.
        crc: bool,
    },
    /// An encrypted one.
    Sealed,
    /// A frame of an M-Bus.
    Frame,
}

impl Kind {
    /// Where faults may hit, so that they do harm: behind `/`, and before the CRC, whose letters may be small as well.
    fn body(self, length: usize) -> (usize, usize) {
        match self {
            Self::Telegram { crc } => (1, length.saturating_sub(if crc { 7 } else { 3 }).max(2)),
            Self::Sealed => (1, length),
            Self::Frame => (0, length),
        }
    }

    /// Another CRC, seal or checksum.
    fn spoil(self, bytes: &mut [u8]) {
        let back = match self {
            // The last of the four digits, or, where there are none, the `!`.
            Self::Telegram { .. } => 3,
            Self::Sealed => 1,
            Self::Frame => 2,
        };
        if let Some(byte) = bytes.iter_mut().rev().nth(back - 1) {
            *byte = match (*byte, self) {
                (b'0', Self::Telegram { .. }) => b'1',
                (_, Self::Telegram { .. }) => b'0',
                (byte, _) => byte.wrapping_add(1),
            };
        }
    }

    /// A byte of noise, which begins nothing.
    fn junk(self, thrown: i64) -> u8 {
        let byte = u8::try_from(thrown).unwrap_or_default();
        match (self, byte) {
            (Self::Telegram { .. } | Self::Sealed, b'/' | b'!' | 0xDB) => b'?',
            (Self::Frame, 0x10 | 0x68 | 0xE5) => 0xFF,
            (_, byte) => byte,
        }
    }
}
