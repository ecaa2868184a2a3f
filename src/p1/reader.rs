//! The whole of `p1` in one: bytes in, readings or reasons out.
//!
//! Enters: bytes as they come from a wire or a file, and what is known of the meter: its dialect, its key.
//! Leaves: what each telegram says, or the reason why a piece of the input is none. Encrypted telegrams are
//! opened on the way. The result does not depend on how the bytes were split.

use std::collections::{BTreeSet, VecDeque};

use super::{
    Decoded, Dialect, Framer, Key, LineEnds, Piece, Reason, Rejected, Telegram, cipher::Opener, decode, telegram,
};

/// Far more meters than hang on one port: only noise gets there.
const MOST_HEADERS: usize = 64;

/// How many telegrams in a row that are clean but for their CRC are not noise any more.
const FOREIGN: u32 = 5;

/// A telegram that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Accepted {
    /// Where it begins, in bytes since the stream began.
    pub offset: u64,
    /// How long it is, in bytes: from `/` through `!`, or the whole sealed frame that it came in.
    pub length: u64,
    /// How its line ends came.
    pub line_ends: LineEnds,
    /// Whether a CRC or a seal vouches for it.
    pub vouched: bool,
    /// What it says.
    pub decoded: Decoded,
}

/// Reads a stream of bytes.
///
/// ```
/// use meterkast::p1::{Reader, Reason};
///
/// let good = meterkast::p1::Writer::new("XYZ5 example").line("1-3:0.2.8(50)").line("1-0:1.8.1(1.000*kWh)").finish(true);
/// let mut damaged = good.clone();
/// damaged[40] ^= 1;
/// let mut reader = Reader::new(None, None);
/// reader.push(&damaged);
/// reader.push(&good);
/// reader.end();
/// let rejected = reader.poll().unwrap().unwrap_err();
/// assert_eq!((rejected.offset, rejected.reason.kind()), (0, "crc-mismatch"));
/// let telegram = reader.poll().unwrap().unwrap();
/// assert_eq!(telegram.decoded.dialect.name(), "netherlands");
/// assert!(reader.poll().is_none());
/// ```
#[derive(Debug, Default)]
pub struct Reader {
    framer: Framer,
    dialect: Option<Dialect>,
    opener: Option<Opener>,
    /// Clean telegrams with a CRC that does not fit; None once a telegram was accepted.
    foreign: Option<u32>,
    /// The headers of meters whose telegrams had a CRC: one without is damaged, whatever version it seems to be.
    with_crc: BTreeSet<Vec<u8>>,
    /// What a sealed frame held beyond its first telegram.
    rest: VecDeque<Result<Accepted, Rejected>>,
}

impl Reader {
    /// At the beginning of a stream. Without a dialect that of each telegram is found; without a key encrypted
    /// telegrams are refused.
    pub fn new(dialect: Option<Dialect>, key: Option<Key>) -> Self {
        Self { dialect, opener: key.map(Opener::new), foreign: Some(0), ..Self::default() }
    }

    /// Adds bytes. Call [`poll`](Reader::poll) until it returns None before the next push.
    pub fn push(&mut self, bytes: &[u8]) {
        self.framer.push(bytes);
    }

    /// Says that no more bytes come for now: what is open ends here. Call [`poll`](Reader::poll) until it
    /// returns None; then the reader may be used again.
    pub fn end(&mut self) {
        self.framer.end();
    }

    /// What the next piece says, or None when more bytes are needed.
    pub fn poll(&mut self) -> Option<Result<Accepted, Rejected>> {
        if let Some(more) = self.rest.pop_front() {
            return Some(more);
        }
        let piece = self.framer.poll()?;
        let (header, length) = match piece {
            Piece::Telegram { bytes, .. } => (telegram::header(bytes), bytes.len() as u64),
            Piece::Sealed { bytes, .. } => (&[][..], bytes.len() as u64),
            Piece::Rejected { length, .. } => (&[][..], length),
        };
        // A copy of it only where it is new.
        let had_crc = self.with_crc.contains(header);
        let header = if had_crc { Vec::new() } else { header.to_vec() };
        let sealed = matches!(piece, Piece::Sealed { .. });
        let result = match piece {
            Piece::Sealed { offset, bytes } => match &mut self.opener {
                Some(opener) => {
                    let refused = |reason| Rejected { offset, length, reason };
                    match opener.open(bytes) {
                        Ok(plain) => {
                            self.rest = inside(&plain, self.dialect);
                            // Its offset is the frame's: there is no other place in the stream.
                            for result in &mut self.rest {
                                match result {
                                    Ok(accepted) => {
                                        (accepted.offset, accepted.length, accepted.vouched) = (offset, length, true);
                                    }
                                    Err(rejected) => (rejected.offset, rejected.length) = (offset, length),
                                }
                            }
                            self.rest.pop_front().unwrap_or(Err(refused(Reason::Empty)))
                        }
                        Err(reason) => Err(refused(reason)),
                    }
                }
                None => read(piece, self.dialect),
            },
            Piece::Telegram { bytes, .. } => match (read(piece, self.dialect), self.foreign) {
                (Err(rejected), Some(count)) if is_mismatch(&rejected) && telegram::is_clean(bytes) => {
                    self.foreign = Some(count.saturating_add(1));
                    Err(match rejected.reason {
                        Reason::CrcMismatch { said, .. } if count.saturating_add(1) >= FOREIGN => {
                            Rejected { reason: Reason::OtherCrc { said, fits: None }, ..rejected }
                        }
                        _ => rejected,
                    })
                }
                (result, _) => result,
            },
            Piece::Rejected { .. } => read(piece, self.dialect),
        };
        if let Ok(accepted) = &result {
            if accepted.vouched && !had_crc {
                if self.with_crc.len() >= MOST_HEADERS {
                    self.with_crc.clear();
                }
                self.with_crc.insert(header);
            } else if had_crc && !accepted.vouched {
                let rejected = Rejected { offset: accepted.offset, length, reason: Reason::CrcMissing };
                return Some(Err(rejected));
            }
            self.foreign = None;
        }
        match result {
            // Bytes were lost or damaged: the next frame may begin within this one.
            Err(rejected) if sealed && matches!(rejected.reason, Reason::WrongKey | Reason::SealBroken) => {
                let length = self.framer.look_within(rejected.length);
                Some(Err(Rejected { length, ..rejected }))
            }
            result => Some(result),
        }
    }
}

fn is_mismatch(rejected: &Rejected) -> bool {
    matches!(rejected.reason, Reason::CrcMismatch { .. })
}

fn read(piece: Piece<'_>, dialect: Option<Dialect>) -> Result<Accepted, Rejected> {
    let telegram = Telegram::check(piece)?;
    Ok(Accepted {
        offset: telegram.offset,
        length: telegram.bytes.len() as u64,
        line_ends: telegram.line_ends,
        vouched: telegram.crc.is_some(),
        decoded: decode(&telegram, dialect),
    })
}

/// What the plain text of a sealed frame says.
fn inside(plain: &[u8], dialect: Option<Dialect>) -> VecDeque<Result<Accepted, Rejected>> {
    let mut framer = Framer::new();
    framer.push(plain);
    framer.end();
    let mut results = VecDeque::new();
    while let Some(piece) = framer.poll() {
        results.push_back(read(piece, dialect));
    }
    results
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::p1::Writer;

    const KEY: &str = "000102030405060708090A0B0C0D0E0F";

    fn key() -> Key {
        Key::from_text(KEY).unwrap()
    }

    fn telegram(identification: &str) -> Writer {
        Writer::new(identification).line("1-3:0.2.8(42)").line("1-0:1.8.0(000001.500*kWh)")
    }

    /// What each piece is: the value of its first reading, or the kind of its reason.
    fn outcomes(reader: &mut Reader, bytes: &[u8], size: usize) -> Vec<String> {
        let mut shown = Vec::new();
        let mut drain = |reader: &mut Reader| {
            while let Some(result) = reader.poll() {
                shown.push(match result {
                    Ok(accepted) => {
                        format!("{} {}", accepted.offset, accepted.decoded.reports[0].readings[0].value)
                    }
                    Err(rejected) => format!("{} {}", rejected.offset, rejected.reason.kind()),
                });
            }
        };
        for chunk in bytes.chunks(size) {
            reader.push(chunk);
            drain(reader);
        }
        reader.end();
        drain(reader);
        shown
    }

    #[test]
    fn sealed_telegrams_are_opened_however_they_are_split() {
        let sealer = key();
        let plain = telegram("Lux5\\2").finish(true);
        let frames = [1, 2, 2].map(|counter| sealer.seal(*b"MKA12345", counter, &plain));
        let bytes = [&frames[0][50..], &frames[0], &frames[1], &frames[2], &frames[1][..30]].concat();
        let at = |frame: usize| frames[0].len() - 50 + frame * frames[0].len();
        let expected = [
            "0 fragment".to_owned(),
            format!("{} 1.500", at(0)),
            format!("{} 1.500", at(1)),
            format!("{} replayed", at(2)),
            format!("{} truncated", at(3)),
        ];
        for size in [1, 2, 3, 7, 64, 1000] {
            let mut reader = Reader::new(None, Some(key()));
            let outcomes = outcomes(&mut reader, &bytes, size);
            // Junk may hold what only a telegram has.
            let (junk, rest) = outcomes.split_at(outcomes.len() - 4);
            assert!(junk.iter().all(|piece| piece.ends_with("fragment") || piece.ends_with("truncated")), "{junk:?}");
            assert_eq!(rest, &expected[1..], "in chunks of {size}");
        }
        assert_eq!(outcomes(&mut Reader::new(None, None), &frames[0], 9), ["0 encrypted"]);
    }

    #[test]
    fn a_damaged_frame_does_not_cost_the_next() {
        let sealer = key();
        let plain = telegram("Lux5\\2").finish(true);
        let frames = [1, 2, 3].map(|counter| sealer.seal(*b"MKA12345", counter, &plain));
        let length = frames[0].len();
        // A byte lost in the second, at its end, in its title, and a length that is too long.
        for (at, flip) in [(50, None), (length - 2, None), (5, Some(1)), (12, Some(1)), (12, Some(64)), (60, Some(1))] {
            let mut damaged = frames[1].clone();
            match flip {
                None => drop(damaged.remove(at)),
                Some(bit) => damaged[at] ^= bit,
            }
            let bytes = [&frames[0][..], &damaged, &frames[2]].concat();
            let outcomes = |size| outcomes(&mut Reader::new(None, Some(key())), &bytes, size);
            let all: Vec<_> = [1, 3, 13, 1000].into_iter().map(outcomes).collect();
            assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "{at}: {all:?}");
            let outcomes = &all[0];
            assert_eq!(outcomes.first().unwrap(), "0 1.500");
            assert_eq!(outcomes.last().unwrap(), &format!("{} 1.500", length + damaged.len()), "{at}: {outcomes:?}");
        }
    }

    #[test]
    fn a_meter_that_sent_a_crc_must_go_on_to() {
        let other = Writer::new("KMP5").line("0-0:96.1.1(4530)").line("1-0:1.8.1(00002*kWh)").finish(false);
        let old = Writer::new("XYZ5").line("0-0:96.1.1(4530)").line("1-0:1.8.1(00001*kWh)").finish(false);
        let new = telegram("XYZ5").finish(true);
        let bytes = [&old[..], &old, &new, &old, &other, &new].concat();
        let all = outcomes(&mut Reader::new(None, None), &bytes, 1000);
        let kinds: Vec<_> = all.iter().map(|outcome| outcome.split_once(' ').unwrap().1).collect();
        assert_eq!(kinds, ["1", "1", "1.500", "crc-missing", "2", "1.500"]);
    }

    #[test]
    fn what_was_sealed_must_be_a_telegram_too() {
        let sealer = key();
        let mut damaged = telegram("Lux5\\2").finish(true);
        let at = damaged.len() - 20;
        damaged[at] ^= 1;
        let frame = sealer.seal(*b"MKA12345", 1, &damaged);
        assert_eq!(outcomes(&mut Reader::new(None, Some(key())), &frame, 100), ["0 crc-mismatch"]);
    }

    #[test]
    fn a_meter_with_another_crc_is_no_noise() {
        let mut foreign = telegram("XYZ5").finish(false);
        foreign.truncate(foreign.len() - 2);
        foreign.extend(b"ABCD\r\n");
        let all = outcomes(&mut Reader::new(None, None), &foreign.repeat(6), 1000);
        let kinds: Vec<_> = all.iter().map(|outcome| outcome.split_once(' ').unwrap().1).collect();
        assert_eq!(kinds, [&["crc-mismatch"; 4][..], &["other-crc"; 2]].concat());
        // After one that fits it is noise again.
        let bytes = [telegram("XYZ5").finish(true), foreign.repeat(6)].concat();
        let all = outcomes(&mut Reader::new(None, None), &bytes, 1000);
        assert!(all[1..].iter().all(|outcome| outcome.ends_with("crc-mismatch")), "{all:?}");
        // A line that is damaged shows noise.
        let noisy = String::from_utf8(foreign).unwrap().replace("1-0:1.8.0(", "1-0:1.8.0");
        let all = outcomes(&mut Reader::new(None, None), &noisy.as_bytes().repeat(6), 1000);
        assert!(all.iter().all(|outcome| outcome.ends_with("crc-mismatch")), "{all:?}");
    }
}
