//! Bytes of a bus to readouts: what a listener makes of a capture.
//!
//! Enters: bytes, split anywhere, with requests, acknowledgements, echoes and noise between the answers. Leaves, in
//! the order in which they end: readouts, each of all telegrams that belong to it, and the places of everything that
//! is no frame, or an answer that cannot be read. Requests and acknowledgements are counted. The result does not
//! depend on how the bytes were split.
//!
//! Bytes between frames are one piece, up to the next frame that is whole. A frame is taken for damaged when its
//! beginning (`68 L L 68`) is whole; what is behind that beginning is searched for the next frame, since bytes may have
//! been lost, and is told once. Among such bytes an `E5` is no acknowledgement.
//!
//! A readout goes on as long as its last telegram says so (DIF 1F). It breaks off where another meter answers, where
//! the meter answers with an error, and where the master starts over (SND_NKE). Where the stream ends, the telegrams
//! that are there are given, since people often keep the first alone; they say that more follow. A telegram that
//! comes again, byte for byte, is a repeat.
//!
//! Source: EN 13757-2:2018, 5.3 to 5.7; EN 13757-3:2018, 6.
//!
//! Not supported: a readout that starts over in the middle in a capture without the master's requests. It is taken
//! for one that goes on.

use std::collections::VecDeque;

use super::{
    address::Secondary,
    control,
    decode::{Decoded, Reason, decode},
    frame::{Frame, FrameError, address},
};

/// Most telegrams of one readout. A meter that announces more does not come to an end.
const MOST_TELEGRAMS: usize = 32;

/// A readout.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Piece {
    /// Where its first frame begins, in bytes since the stream began.
    pub offset: u64,
    /// Of how many telegrams it is.
    pub telegrams: usize,
    /// What they say. Where more follow, the stream ended before they came.
    pub decoded: Decoded,
}

/// A piece of the input that is no frame, or an answer that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Rejected {
    /// Where it begins, in bytes since the stream began.
    pub offset: u64,
    /// How long it is, in bytes; of a readout to the end of its last frame, whatever is between.
    pub length: u64,
    /// Why.
    pub reason: Reason,
}

/// Whether a long frame begins here: None when more bytes are needed.
pub fn begins(bytes: &[u8]) -> Option<bool> {
    match *bytes {
        [] | [0x68] => None,
        [0x68, 0..3, ..] => Some(false),
        [0x68, _] => None,
        [0x68, first, second, ..] if first != second => Some(false),
        [0x68, _, _] => None,
        [0x68, _, _, start, ..] => Some(start == 0x68),
        _ => Some(false),
    }
}

/// Cuts a stream of bytes into frames, and reads what meters answer. Holds at most a frame besides what the last
/// [`push`](Stream::push) brought, and the telegrams of one readout.
///
/// ```
/// use meterkast::mbus::{Frame, Stream};
///
/// let request = Frame::Short { control: 0x5B, address: 5 }.emit();
/// let answer = Frame::Long { control: 0x08, address: 5, ci: 0x78, data: &[0x0C, 0x13, 0x34, 0x12, 0, 0] }.emit();
/// let mut stream = Stream::new(1);
/// stream.push(&[&request[..], b"\xFF", &answer].concat());
/// let noise = stream.poll().unwrap().unwrap_err();
/// assert_eq!((noise.offset, noise.length), (5, 1));
/// let piece = stream.poll().unwrap().unwrap();
/// assert_eq!((piece.offset, piece.decoded.address, stream.requests()), (6, 5, 1));
/// ```
#[derive(Debug)]
pub struct Stream {
    buffer: Vec<u8>,
    /// Where in `buffer` the unconsumed bytes begin.
    head: usize,
    /// How many bytes of the stream came before `buffer`.
    base: u64,
    bad: Option<Bad>,
    /// Where in the stream the damaged frame that was last would end by its length: what is before is its debris.
    debris_to: u64,
    open: Option<Open>,
    /// What was found and not yet polled: a frame may end what was before it.
    ready: VecDeque<Result<Piece, Rejected>>,
    requests: u64,
    acknowledgements: u64,
    ended: bool,
    standard_offset: i8,
}

/// Bytes that are no frame, while they go on. Places are in the stream.
#[derive(Debug, Clone, Copy)]
struct Bad {
    from: u64,
    to: u64,
    reason: FrameError,
}

/// A readout that goes on.
#[derive(Debug)]
struct Open {
    from: u64,
    to: u64,
    meter: (u8, Option<Secondary>),
    telegrams: Vec<Vec<u8>>,
}

impl Stream {
    /// At the beginning of a stream. `standard_offset`: hours east of UTC that the meters' clocks stand in winter.
    pub fn new(standard_offset: i8) -> Self {
        Self {
            buffer: Vec::new(),
            head: 0,
            base: 0,
            bad: None,
            debris_to: 0,
            open: None,
            ready: VecDeque::new(),
            requests: 0,
            acknowledgements: 0,
            ended: false,
            standard_offset,
        }
    }

    /// Adds bytes. Call [`poll`](Stream::poll) until it returns None before the next push.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.head);
        self.base = self.base.saturating_add(self.head as u64);
        self.head = 0;
        self.buffer.extend_from_slice(bytes);
        self.ended = false;
    }

    /// Says that no more bytes come for now: what is open ends here. Call [`poll`](Stream::poll) until it returns
    /// None; then the stream may be used again.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// How many frames of a master there were.
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// How many acknowledgements there were.
    pub fn acknowledgements(&self) -> u64 {
        self.acknowledgements
    }

    /// The next readout, or what is none; None when more bytes are needed.
    pub fn poll(&mut self) -> Option<Result<Piece, Rejected>> {
        while self.ready.is_empty() {
            if !self.step() {
                if self.ended {
                    self.give_what_is_there();
                    self.close_bad();
                }
                break;
            }
        }
        self.ready.pop_front()
    }

    /// Goes on by a frame or by a byte that begins none. False when more bytes are needed.
    fn step(&mut self) -> bool {
        let rest = self.buffer.get(self.head..).unwrap_or_default();
        let at = self.base.saturating_add(self.head as u64);
        // The lengths are judged together, so that it does not matter which of them has come.
        let telling = if rest.first() == Some(&0x68) { 4 } else { 1 };
        if rest.is_empty() || (rest.len() < telling && !self.ended) {
            return false;
        }
        let length = match Frame::parse(rest) {
            Err(FrameError::Incomplete(_)) if !self.ended => return false,
            Err(reason) => {
                self.add_bad(at, reason);
                1
            }
            Ok((Frame::Ack, _)) if self.bad.is_some() && self.debris_to != at => {
                self.add_bad(at, FrameError::Start(0xE5));
                1
            }
            Ok((frame, length)) => {
                let (control, to) = match frame {
                    Frame::Ack => (None, None),
                    Frame::Short { control, address } => (Some(control), Some(address)),
                    Frame::Long { control, .. } => (Some(control), None),
                };
                let telegram = match control {
                    Some(control) if control & !control::ANSWER_BITS == control::RSP_UD => {
                        rest.get(..length).map(<[u8]>::to_vec)
                    }
                    _ => None,
                };
                self.close_bad();
                match (control, to, telegram) {
                    (Some(_), None, Some(telegram)) => self.answer(at, telegram),
                    (Some(control), ..) if control & control::FROM_MASTER != 0 => {
                        self.requests = self.requests.saturating_add(1);
                        if control == control::SND_NKE {
                            self.start_over(to);
                        }
                    }
                    (Some(control), ..) => {
                        self.reject(at, at.saturating_add(length as u64), Reason::NotAnAnswer(control));
                    }
                    (None, ..) => self.acknowledgements = self.acknowledgements.saturating_add(1),
                }
                length
            }
        };
        self.head = self.head.saturating_add(length);
        true
    }

    fn reject(&mut self, from: u64, to: u64, reason: Reason) {
        self.ready.push_back(Err(Rejected { offset: from, length: to.saturating_sub(from), reason }));
    }

    /// The byte at the head begins no frame that is whole.
    fn add_bad(&mut self, at: u64, reason: FrameError) {
        let to = at.saturating_add(1);
        let rest = self.buffer.get(self.head..).unwrap_or_default();
        let would_end = match rest {
            [_, length, ..] if begins(rest) == Some(true) => {
                Some(to.saturating_add(u64::from(*length)).saturating_add(5))
            }
            _ => None,
        };
        let damaged = would_end.filter(|end| *end > self.debris_to);
        if let Some(end) = damaged {
            self.debris_to = end;
            self.close_bad();
        }
        match &mut self.bad {
            Some(bad) => bad.to = to,
            None => self.bad = Some(Bad { from: at, to, reason }),
        }
    }

    fn close_bad(&mut self) {
        if let Some(Bad { from, to, reason }) = self.bad.take() {
            self.reject(from, to, Reason::Frame(reason));
        }
    }

    fn break_off(&mut self, reason: Reason) {
        if let Some(Open { from, to, .. }) = self.open.take() {
            self.reject(from, to, reason);
        }
    }

    /// The master initialises a slave, which then begins its readout anew.
    fn start_over(&mut self, slave: Option<u8>) {
        let meant = |open: &Open| match slave {
            Some(slave) => slave == open.meter.0 || slave > address::LAST,
            None => false,
        };
        if self.open.as_ref().is_some_and(meant) {
            self.break_off(Reason::Unfinished);
        }
    }

    fn answer(&mut self, from: u64, telegram: Vec<u8>) {
        let to = from.saturating_add(telegram.len() as u64);
        let alone = match Frame::parse(&telegram) {
            Ok((frame, _)) => decode(&[frame], self.standard_offset),
            Err(reason) => Err(Reason::Frame(reason)),
        };
        let alone = match alone {
            Ok(alone) => alone,
            Err(reason) => {
                self.break_off(Reason::Unfinished);
                return self.reject(from, to, reason);
            }
        };
        let meter = (alone.address, alone.secondary);
        if self.open.as_ref().is_some_and(|open| open.meter != meter) {
            self.break_off(Reason::Unfinished);
        }
        let Some(mut open) = self.open.take() else {
            if alone.more_follow {
                self.open = Some(Open { from, to, meter, telegrams: vec![telegram] });
            } else {
                self.ready.push_back(Ok(Piece { offset: from, telegrams: 1, decoded: alone }));
            }
            return;
        };
        if open.telegrams.last() != Some(&telegram) {
            open.telegrams.push(telegram);
            open.to = to;
        }
        let telegrams = open.telegrams.len();
        if alone.more_follow {
            self.open = Some(open);
            if telegrams >= MOST_TELEGRAMS {
                self.break_off(Reason::Endless);
            }
            return;
        }
        self.read(&open);
    }

    /// The stream ends within a readout.
    fn give_what_is_there(&mut self) {
        if let Some(open) = self.open.take() {
            self.read(&open);
        }
    }

    fn read(&mut self, open: &Open) {
        let frames = open.telegrams.iter().filter_map(|bytes| Frame::parse(bytes).ok());
        let frames: Vec<Frame<'_>> = frames.map(|(frame, _)| frame).collect();
        match decode(&frames, self.standard_offset) {
            Ok(decoded) => {
                self.ready.push_back(Ok(Piece { offset: open.from, telegrams: open.telegrams.len(), decoded }));
            }
            Err(reason) => self.reject(open.from, open.to, reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mbus::MAX_FRAME;

    /// An answer of the meter with this number: a counter of one byte, and whether more follow.
    fn answer(id: u8, counter: u8, more: bool) -> Vec<u8> {
        let mut data = vec![id, 0, 0, 0, 0x65, 0x32, 1, 7, counter, 0, 0, 0, 0x01, 0x13, counter];
        data.extend(more.then_some(0x1F));
        Frame::Long { control: 0x08, address: id, ci: 0x72, data: &data }.emit()
    }

    fn request(control: u8, address: u8) -> Vec<u8> {
        Frame::Short { control, address }.emit()
    }

    /// What each piece is: place, length and reason, or place, number of telegrams and values.
    fn pieces_in(bytes: &[u8], size: usize) -> (Vec<String>, u64, u64) {
        let mut stream = Stream::new(1);
        let mut shown = Vec::new();
        let mut drain = |stream: &mut Stream| {
            while let Some(result) = stream.poll() {
                shown.push(match result {
                    Ok(piece) => {
                        let readings = &piece.decoded.report.readings;
                        let values: Vec<String> = readings.iter().map(|reading| reading.value.to_string()).collect();
                        format!("{} {}: {}", piece.offset, piece.telegrams, values.join(" "))
                    }
                    Err(rejected) => format!("{}+{} {}", rejected.offset, rejected.length, rejected.reason),
                });
            }
            let held = stream.buffer.len().saturating_sub(stream.head);
            assert!(held <= MAX_FRAME, "{held} bytes are held");
        };
        for chunk in bytes.chunks(size) {
            stream.push(chunk);
            drain(&mut stream);
        }
        stream.end();
        drain(&mut stream);
        (shown, stream.requests(), stream.acknowledgements())
    }

    /// The pieces, which are the same however the bytes are split.
    fn pieces(bytes: &[u8]) -> Vec<String> {
        let whole = pieces_in(bytes, bytes.len().max(1));
        for size in [1, 2, 3, 5, 7, 64] {
            assert_eq!(pieces_in(bytes, size), whole, "in chunks of {size}");
        }
        whole.0
    }

    #[test]
    fn answers_are_found_among_requests() {
        let bytes = [
            &request(control::SND_NKE, 1)[..],
            &[0xE5],
            &request(0x7B, 1),
            &answer(1, 11, false),
            &request(0x5B, 2),
            // As a half-duplex level converter echoes it.
            &request(0x5B, 2),
            &Frame::Long { control: 0x53, address: 253, ci: 0x52, data: &[0xFF; 8] }.emit(),
            &answer(2, 22, false),
        ]
        .concat();
        let (shown, requests, acknowledgements) = pieces_in(&bytes, 9);
        assert_eq!(shown, ["11 1: 0.011", "62 1: 0.022"]);
        assert_eq!((requests, acknowledgements), (5, 1));
        assert_eq!(pieces(&bytes), shown);
    }

    #[test]
    fn the_split_does_not_matter() {
        let good = answer(1, 11, false);
        let mut damaged = answer(2, 22, false);
        damaged[10] ^= 1;
        let bytes = [
            b"h\x01\x05 junk \x68\x04\x05".as_slice(),
            &good,
            &damaged,
            &[0xE5],
            &answer(3, 33, true),
            &[0, 0x68],
            &answer(3, 34, false),
            &[0x68, 1],
        ]
        .concat();
        let whole = pieces(&bytes);
        assert_eq!(whole.len(), 6, "{whole:#?}");
        for split in 0..=bytes.len() {
            let mut stream = Stream::new(1);
            let mut shown = Vec::new();
            for part in [&bytes[..split], &bytes[split..]] {
                stream.push(part);
                while let Some(result) = stream.poll() {
                    shown.push(result.map(|piece| piece.offset).map_err(|rejected| rejected.offset));
                }
            }
            stream.end();
            while let Some(result) = stream.poll() {
                shown.push(result.map(|piece| piece.offset).map_err(|rejected| rejected.offset));
            }
            assert_eq!(shown, [Err(0), Ok(12), Err(36), Err(86), Ok(61), Err(112)], "split at {split}");
        }
    }

    /// Frames, cut, damaged and mixed at random: each split gives the same.
    #[test]
    fn no_split_of_damaged_bytes_matters() {
        let mut state = 1u32;
        let mut random = |below: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as usize % below
        };
        for _ in 0..150 {
            let mut bytes = Vec::new();
            for counter in 0..12 {
                let mut part = match random(4) {
                    0 => request([control::SND_NKE, 0x5B, 0x7B][random(3)], random(3) as u8),
                    1 => vec![0xE5],
                    _ => answer(random(3) as u8, counter, random(2) == 0),
                };
                match random(5) {
                    0 => part.truncate(random(part.len())),
                    1 => part[0] = random(256) as u8,
                    2 => {
                        let at = random(part.len());
                        part[at] ^= 1 << random(8);
                    }
                    _ => {}
                }
                bytes.extend(part);
            }
            pieces(&bytes);
        }
    }

    #[test]
    fn garbage_is_told_once() {
        let good = answer(1, 11, false);
        for junk in [&b"?"[..], &[0; 700], &[0xE5, 0x41, 0xE5, 0xE5], &[0x68; 3], &[0x10, 0x40], &[0x68, 2, 2, 0x68]] {
            // A first E5 is taken for an acknowledgement.
            let skipped = usize::from(junk[0] == 0xE5);
            let place = |at: usize| format!("{}+{} ", at + skipped, junk.len() - skipped);
            let shown = pieces(&[junk, &good].concat());
            assert!(shown.len() == 2 && shown[0].starts_with(&place(0)), "{junk:02X?}: {shown:?}");
            assert_eq!(shown[1], format!("{} 1: 0.011", junk.len()));
            let shown = pieces(&[&good[..], junk, &good].concat());
            assert!(shown.len() == 3 && shown[1].starts_with(&place(good.len())), "{junk:02X?}: {shown:?}");
            let shown = pieces(&[&good[..], junk].concat());
            assert!(shown.len() == 2 && shown[1].starts_with(&place(good.len())), "{junk:02X?}: {shown:?}");
        }
        assert_eq!(pieces(b"AB"), ["0+2 no frame: no frame begins with 41"]);
        assert_eq!(pieces(&[0x68, 1, 5, 0]), ["0+4 no frame: its length is given as 1 and as 5"]);
        assert_eq!(pieces(&[0x10, 0x40]), ["0+2 no frame: it breaks off, with 3 or more bytes missing"]);
        assert_eq!(pieces(&[]), Vec::<String>::new());
    }

    #[test]
    fn a_damaged_frame_is_told_once_and_searched() {
        let good = answer(1, 11, false);
        let length = good.len();
        // In the values, the checksum and the end; and with what looks like frames in its debris.
        for (at, reason) in [(9, "its checksum is"), (length - 2, "its checksum is"), (length - 1, "it ends with")] {
            let mut damaged = good.clone();
            damaged[at] ^= 0x20;
            let shown = pieces(&[&damaged[..], &good, &damaged, &damaged].concat());
            assert_eq!(shown.len(), 4, "{shown:?}");
            assert!(shown[0].starts_with(&format!("0+{length} no frame: {reason}")), "{shown:?}");
            assert_eq!(shown[1], format!("{length} 1: 0.011"));
        }
        // What looks like frames within it is its debris.
        let mut data = [0x68, 3, 3, 0x68, 8, 1, 0x72].repeat(36);
        let mut full = Frame::Long { control: 8, address: 1, ci: 0x72, data: &data }.emit();
        full[259] ^= 1;
        let shown = pieces(&[&full[..], &good].concat());
        assert!(shown.len() == 2 && shown[0].starts_with("0+261 no frame: its checksum is"), "{shown:?}");
        // But a frame that is whole is none.
        data.splice(20..20 + length, good.iter().copied());
        let mut full = Frame::Long { control: 8, address: 1, ci: 0x72, data: &data }.emit();
        full[259] ^= 1;
        let shown = pieces(&full);
        assert!(shown.len() == 3 && shown[1] == "27 1: 0.011", "{shown:?}");
        // Bytes were lost: the next frame begins within the length of the broken one.
        for cut in 4..length {
            let shown = pieces(&[&good[..cut], &good, &good].concat());
            assert_eq!(shown.len(), 3, "cut at {cut}: {shown:?}");
            assert!(shown[0].starts_with(&format!("0+{cut} no frame: ")), "cut at {cut}: {shown:?}");
        }
        // Two that are both broken are two.
        let mut damaged = good.clone();
        damaged[12] ^= 1;
        let shown = pieces(&[&good[..20], &damaged, &good].concat());
        assert_eq!(shown.len(), 3, "{shown:?}");
        let shown = pieces(&good[..length - 1]);
        assert_eq!(shown, [format!("0+{} no frame: it breaks off, with 1 or more bytes missing", length - 1)]);
    }

    #[test]
    fn telegrams_of_one_readout_are_one() {
        let (first, second, last) = (answer(1, 11, true), answer(1, 12, true), answer(1, 13, false));
        let other = answer(2, 22, false);
        let length = first.len();
        let nke = |slave| request(control::SND_NKE, slave);
        let unfinished = "the readout breaks off: the meter announced another telegram";
        let good = |at: usize| format!("{at} 3: 0.011 0.012 0.013");
        assert_eq!(pieces(&[&first[..], &second, &last].concat()), [good(0)]);
        // A telegram that is repeated counts once, one that is damaged may come again.
        assert_eq!(pieces(&[&first[..], &first, &second, &last].concat()), [good(0)]);
        let shown = pieces(&[&first[..], &second[..15], &second, &last].concat());
        assert!(shown.len() == 2 && shown[0].starts_with(&format!("{length}+15 ")) && shown[1] == good(0), "{shown:?}");
        for between in [&other[..], &nke(1), &nke(253), &nke(255)] {
            let shown = pieces(&[&first[..], &second, between, &last].concat());
            assert!(shown[0].starts_with(&format!("0+{} {unfinished}", 2 * length)), "{shown:?}");
            assert!(shown.last().is_some_and(|last| last.ends_with(" 1: 0.013")), "{shown:?}");
        }
        assert_eq!(pieces(&[&first[..], &nke(2), &second, &last].concat()), [good(0)]);
        // The stream ends: what is there is given.
        assert_eq!(pieces(&[&first[..], &second].concat()), ["0 2: 0.011 0.012"]);
        for (telegrams, more_follow) in [([&first[..], &second], true), ([&first[..], &last], false)] {
            let mut stream = Stream::new(1);
            stream.push(&telegrams.concat());
            stream.end();
            assert_eq!(stream.poll().unwrap().unwrap().decoded.more_follow, more_follow);
        }
        let error = Frame::Long { control: 8, address: 1, ci: 0x70, data: &[8] }.emit();
        let shown = pieces(&[&first[..], &error].concat());
        assert!(shown.len() == 2 && shown[0].contains(unfinished) && shown[1].ends_with("busy"), "{shown:?}");
        let endless: Vec<u8> = (0..40).flat_map(|counter| answer(1, counter, true)).collect();
        let shown = pieces(&endless);
        assert!(shown.len() == 2 && shown[0].ends_with("more than 32 telegrams"), "{shown:?}");
    }

    #[test]
    fn a_stream_may_go_on_behind_its_end() {
        let good = answer(1, 11, false);
        let mut stream = Stream::new(1);
        for round in 0..3u64 {
            stream.push(&good[..10]);
            assert_eq!(stream.poll(), None);
            stream.end();
            assert_eq!(stream.poll().unwrap().unwrap_err().offset, round * (10 + good.len() as u64));
            assert_eq!(stream.poll(), None);
            stream.push(&good);
            assert_eq!(stream.poll().unwrap().unwrap().offset, 10 + round * (10 + good.len() as u64));
        }
    }

    #[test]
    fn four_bytes_tell_whether_a_frame_begins() {
        for (bytes, expected) in [
            (&[][..], None),
            (&[0x68], None),
            (&[0x68, 3], None),
            (&[0x68, 3, 3], None),
            (&[0x68, 3, 3, 0x68], Some(true)),
            (&[0x68, 3, 3, 0x67], Some(false)),
            (&[0x68, 3, 4], Some(false)),
            (&[0x68, 2], Some(false)),
            (&[0x10], Some(false)),
        ] {
            assert_eq!(begins(bytes), expected, "{bytes:02X?}");
        }
    }
}
