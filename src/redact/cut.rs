//! Bytes to what can be rewritten: whole telegrams and frames, and the places of everything else.
//!
//! Enters: bytes of one way of one port, split anywhere. Leaves: telegrams that passed their CRC, the insides of encrypted ones where there
//! is a key, M-Bus frames whose checksum fits; and what is none of these, with its reason. The result does not depend on
//! how the bytes were split.

use std::collections::{BTreeSet, VecDeque};

use crate::{
    capture::Wire,
    mbus::{Frame, FrameError},
    p1::{Framer, Key, LineEnds, Opener, Piece, Reason, Telegram},
};

/// A stretch of the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Where it begins, in bytes since the stream began.
    pub offset: u64,
    /// How long it is there, in bytes; of a telegram with the line end behind it.
    pub length: u64,
    /// What it is.
    pub what: Found,
}

/// What a stretch of bytes is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A telegram.
    Telegram(Whole),
    /// A frame, from start to stop.
    Frame(Vec<u8>),
    /// Neither: a short name for counters, and the reason.
    Nothing(&'static str, String),
}

/// A [`Telegram`] with its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whole {
    offset: u64,
    bytes: Vec<u8>,
    crc: Option<u16>,
    line_ends: LineEnds,
}

impl Whole {
    fn new(telegram: &Telegram<'_>) -> Self {
        let Telegram { offset, bytes, crc, line_ends } = *telegram;
        Self { offset, bytes: bytes.to_vec(), crc, line_ends }
    }

    /// As [`Telegram`].
    pub fn telegram(&self) -> Telegram<'_> {
        Telegram { offset: self.offset, bytes: &self.bytes, crc: self.crc, line_ends: self.line_ends }
    }
}

/// Cuts a stream. Holds what a telegram or a frame may be long besides what the last [`push`](Cutter::push) brought.
#[derive(Debug)]
pub struct Cutter {
    kind: Kind,
    ready: VecDeque<Cut>,
}

#[derive(Debug)]
enum Kind {
    P1 { framer: Framer, opener: Option<Opener>, with_crc: BTreeSet<Vec<u8>> },
    Mbus(Bus),
}

#[derive(Debug, Default)]
struct Bus {
    buffer: Vec<u8>,
    /// How many bytes of the stream came before `buffer`.
    base: u64,
    /// Bytes that are no frame, while they go on: where they begin, and why.
    bad: Option<(u64, FrameError)>,
    ended: bool,
}

/// Far more meters than hang on one port.
const MOST_HEADERS: usize = 64;

impl Cutter {
    /// At the beginning of a stream. `key`: of encrypted P1 telegrams.
    pub fn new(wire: Wire, key: Option<Key>) -> Self {
        let kind = match wire {
            Wire::P1 => Kind::P1 { framer: Framer::new(), opener: key.map(Opener::new), with_crc: BTreeSet::new() },
            Wire::Mbus => Kind::Mbus(Bus::default()),
        };
        Self { kind, ready: VecDeque::new() }
    }

    /// Adds bytes. Call [`poll`](Cutter::poll) until it returns None before the next push.
    pub fn push(&mut self, bytes: &[u8]) {
        match &mut self.kind {
            Kind::P1 { framer, .. } => framer.push(bytes),
            Kind::Mbus(bus) => {
                bus.buffer.extend_from_slice(bytes);
                bus.ended = false;
            }
        }
    }

    /// Says that no more bytes come: what is open ends here.
    pub fn end(&mut self) {
        match &mut self.kind {
            Kind::P1 { framer, .. } => framer.end(),
            Kind::Mbus(bus) => bus.ended = true,
        }
    }

    /// The next stretch; None when more bytes are needed.
    pub fn poll(&mut self) -> Option<Cut> {
        if self.ready.is_empty() {
            match &mut self.kind {
                Kind::P1 { framer, opener, with_crc } => {
                    let piece = framer.poll()?;
                    telegrams(piece, opener.as_mut(), with_crc, &mut self.ready);
                }
                Kind::Mbus(bus) => bus.frames(&mut self.ready),
            }
        }
        self.ready.pop_front()
    }
}

/// What is in a piece of a P1 stream.
fn telegrams(
    piece: Piece<'_>,
    opener: Option<&mut Opener>,
    with_crc: &mut BTreeSet<Vec<u8>>,
    ready: &mut VecDeque<Cut>,
) {
    let mut nothing = |offset, length, reason: Reason| {
        ready.push_back(Cut { offset, length, what: Found::Nothing(reason.kind(), reason.to_string()) });
    };
    if let (Piece::Sealed { offset, bytes }, Some(opener)) = (piece, opener) {
        let length = bytes.len() as u64;
        let plain = match opener.open(bytes) {
            Ok(plain) => plain,
            Err(reason) => return nothing(offset, length, reason),
        };
        let mut framer = Framer::new();
        framer.push(&plain);
        framer.end();
        while let Some(piece) = framer.poll() {
            match Telegram::check(piece) {
                Ok(telegram) => ready.push_back(Cut { offset, length, what: Found::Telegram(Whole::new(&telegram)) }),
                Err(rejected) => {
                    let what = Found::Nothing(rejected.reason.kind(), rejected.to_string());
                    ready.push_back(Cut { offset, length, what });
                }
            }
        }
        return;
    }
    match Telegram::check(piece) {
        Err(rejected) => nothing(rejected.offset, rejected.length, rejected.reason),
        Ok(telegram) => {
            let header = telegram.identification();
            let length = telegram.bytes.len() as u64;
            // A meter that sends a CRC sends it always: without it the telegram is damaged.
            if telegram.crc.is_none() && with_crc.contains(header) {
                return nothing(telegram.offset, length, Reason::CrcMissing);
            }
            if telegram.crc.is_some() && !with_crc.contains(header) {
                if with_crc.len() >= MOST_HEADERS {
                    with_crc.clear();
                }
                with_crc.insert(header.to_vec());
            }
            let behind = if telegram.crc.is_some() { 6 } else { 2 };
            let what = Found::Telegram(Whole::new(&telegram));
            ready.push_back(Cut { offset: telegram.offset, length: length + behind, what });
        }
    }
}

impl Bus {
    /// The next frame, and what was before it.
    fn frames(&mut self, ready: &mut VecDeque<Cut>) {
        let mut at = 0usize;
        while ready.is_empty() {
            let rest = self.buffer.get(at..).unwrap_or_default();
            let here = self.base + at as u64;
            // The lengths are judged together, so that it does not matter which of them has come.
            let telling = if rest.first() == Some(&0x68) { 4 } else { 1 };
            if rest.is_empty() || (rest.len() < telling && !self.ended) {
                break;
            }
            match Frame::parse(rest) {
                Err(FrameError::Incomplete(_)) if !self.ended => break,
                // Among damaged bytes an E5 is no acknowledgement.
                Ok((Frame::Ack, _)) if self.bad.is_some() => at += 1,
                Ok((_, length)) => {
                    let frame = rest.get(..length).unwrap_or_default().to_vec();
                    self.close(here, ready);
                    ready.push_back(Cut { offset: here, length: length as u64, what: Found::Frame(frame) });
                    at += length;
                }
                Err(reason) => {
                    self.bad.get_or_insert((here, reason));
                    at += 1;
                }
            }
        }
        self.buffer.drain(..at);
        self.base += at as u64;
        if self.ended && self.buffer.is_empty() {
            self.close(self.base, ready);
        }
    }

    fn close(&mut self, to: u64, ready: &mut VecDeque<Cut>) {
        if let Some((from, reason)) = self.bad.take() {
            let kind = if matches!(reason, FrameError::Checksum { .. }) { "checksum" } else { "frame" };
            let what = Found::Nothing(kind, format!("no frame: {reason}"));
            ready.push_back(Cut { offset: from, length: to.saturating_sub(from), what });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::p1::Writer;

    fn cuts(wire: Wire, bytes: &[u8], size: usize) -> Vec<Cut> {
        let mut cutter = Cutter::new(wire, None);
        let mut found = Vec::new();
        for chunk in bytes.chunks(size) {
            cutter.push(chunk);
            found.extend(std::iter::from_fn(|| cutter.poll()));
        }
        cutter.end();
        found.extend(std::iter::from_fn(|| cutter.poll()));
        found
    }

    fn shown(wire: Wire, bytes: &[u8]) -> Vec<String> {
        let whole = cuts(wire, bytes, bytes.len().max(1));
        for size in [1, 2, 7] {
            assert_eq!(cuts(wire, bytes, size), whole, "in chunks of {size}");
        }
        let what = |what: Found| match what {
            Found::Telegram(whole) => format!("telegram of {}", whole.telegram().bytes.len()),
            Found::Frame(frame) => format!("{frame:02x?}"),
            Found::Nothing(kind, _) => kind.to_owned(),
        };
        whole.into_iter().map(|cut| format!("{}+{} {}", cut.offset, cut.length, what(cut.what))).collect()
    }

    #[test]
    fn everything_is_a_telegram_a_frame_or_told() {
        let good = Writer::new("XYZ5 one").line("1-3:0.2.8(50)").finish(true);
        let bare = Writer::new("XYZ5 one").line("0-0:17.0.0(1)").finish(false);
        let bytes = [b"xx".as_slice(), &good, &bare, b"/XYZ5 two\r\n"].concat();
        let (end, bare_end) = (2 + good.len(), 2 + good.len() + bare.len());
        let length = good.len() - 6;
        assert_eq!(
            shown(Wire::P1, &bytes),
            [
                "0+2 fragment".to_owned(),
                format!("2+{} telegram of {length}", good.len()),
                format!("{end}+{} crc-missing", bare.len() - 2),
                format!("{bare_end}+11 truncated"),
            ]
        );
        let bytes = [&[0xE5, 0x10, 0x40, 0x01, 0x41, 0x16, 0xE5, 0x00, 0xE5, 0x10, 0x5B][..]].concat();
        assert_eq!(shown(Wire::Mbus, &bytes), ["0+1 [e5]", "1+5 [10, 40, 01, 41, 16]", "6+1 [e5]", "7+4 frame"]);
    }

    proptest! {
        #[test]
        fn the_split_does_not_matter(bytes in prop::collection::vec(prop_oneof![Just(0x10u8), Just(0x68), Just(0x16), Just(0xE5), 0u8..8], 0..60), size in 1usize..9) {
            prop_assert_eq!(cuts(Wire::Mbus, &bytes, size), cuts(Wire::Mbus, &bytes, 1000));
        }
    }
}
