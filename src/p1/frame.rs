//! Bytes to pieces: where a telegram begins and ends.
//!
//! Enters: bytes, split anywhere, from the middle of a telegram, with junk between. Leaves, in order:
//! telegrams from `/` to the CRC digits behind `!`, sealed frames (encrypted telegrams), and the places of
//! everything else that is not just white space. The result does not depend on how the bytes were split.
//!
//! A telegram begins at a `/`, and ends at a `!` at the beginning of a line. Inside a telegram a new
//! one begins at a `/` at the beginning of a line, or at something that can only be a header (`/`,
//! three letters, a digit) where bytes were lost. A sealed frame begins with a header that is checked as far
//! as it can be, and is as long as it says; where the same sender's next header stands within it, bytes were
//! lost. Source: IEC 62056-21 mode D; DSMR P1 5.0.2, 6.2; for sealed frames see [`cipher`].

use memchr::{memchr, memchr2, memchr3, memmem};

use super::{Reason, cipher};

/// Longest telegram. The largest valid one seen has 2,523 bytes; a text message alone may have 2,048.
pub const MAX_TELEGRAM: usize = 8192;

/// A stretch of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Looks like a telegram; its CRC is not yet checked.
    Telegram {
        /// Where it begins, in bytes since the stream began.
        offset: u64,
        /// From `/` through `!`.
        bytes: &'a [u8],
        /// What stands behind the `!`.
        tail: Tail,
    },
    /// Looks like an encrypted telegram.
    Sealed {
        /// Where it begins, in bytes since the stream began.
        offset: u64,
        /// From `DB` through the tag.
        bytes: &'a [u8],
    },
    /// Is none.
    Rejected {
        /// Where it begins, in bytes since the stream began.
        offset: u64,
        /// How long it is, in bytes.
        length: u64,
        /// Why.
        reason: Reason,
    },
}

/// What stands behind the `!` of a telegram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// One to four hexadecimal digits, upper or lower case, not always padded.
    Crc(u16),
    /// The end of the line.
    Nothing,
    /// Something else.
    Garbled,
}

/// Cuts a stream of bytes into [`Piece`]s. Holds at most [`MAX_TELEGRAM`] bytes and 30 besides what the last
/// [`push`](Framer::push) brought.
///
/// ```
/// use meterkast::p1::{Framer, Piece, Reason, Tail};
///
/// let mut framer = Framer::new();
/// framer.push(b"noise/XYZ5 example\r\n\r\n1-0:1.8.1(1.000*kWh)\r\n!");
/// let Some(Piece::Rejected { offset: 0, length: 5, reason: Reason::Fragment }) = framer.poll() else { panic!() };
/// // Digits may follow the `!`.
/// assert_eq!(framer.poll(), None);
/// framer.push(b"\r\n");
/// let Some(Piece::Telegram { offset: 5, tail: Tail::Nothing, .. }) = framer.poll() else { panic!() };
/// ```
#[derive(Debug, Default)]
pub struct Framer {
    buffer: Vec<u8>,
    /// Where in `buffer` the unconsumed bytes begin; a telegram's `/` or a sealed frame's `DB` if inside of one.
    head: usize,
    /// What is before here in `buffer` has been looked at.
    scanned: usize,
    /// How many bytes of the stream came before `buffer`.
    base: u64,
    inside: Inside,
    /// Start and end, in the stream, of the bytes outside a telegram that are not white space.
    junk: Option<(u64, u64)>,
    ended: bool,
}

/// What the unconsumed bytes begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Inside {
    /// Nothing that is known.
    #[default]
    Nothing,
    Telegram,
    /// A sealed frame of this length.
    Sealed(usize),
}

/// Whether a telegram (`/` and three letters) or a sealed frame begins here; None when more bytes are needed.
pub fn begins(bytes: &[u8]) -> Option<bool> {
    match *bytes {
        [] => None,
        // The digit for the baud rate is not everywhere.
        [b'/', ref name @ ..] => {
            let letters = name.iter().take(3).take_while(|byte| byte.is_ascii_alphabetic()).count();
            if letters == name.len() && letters < 3 { None } else { Some(letters == 3) }
        }
        [0xDB, ..] if cipher::may_begin(bytes) => (bytes.len() >= cipher::TELLING).then_some(true),
        _ => Some(false),
    }
}

impl Framer {
    /// An empty framer at the beginning of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes. Call [`poll`](Framer::poll) until it returns None before the next push.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.head);
        self.base = self.base.saturating_add(self.head as u64);
        self.scanned = self.scanned.saturating_sub(self.head);
        self.head = 0;
        self.buffer.extend_from_slice(bytes);
        self.ended = false;
    }

    /// Says that no more bytes come for now (end of file, a port that closed): what is open ends here.
    /// Call [`poll`](Framer::poll) until it returns None; then the framer may be used again.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// The next piece, or None when more bytes are needed.
    pub fn poll(&mut self) -> Option<Piece<'_>> {
        if self.inside == Inside::Nothing
            && let Some((offset, length)) = self.skip_junk()
        {
            return Some(Piece::Rejected { offset, length, reason: Reason::Fragment });
        }
        let (start, offset) = (self.head, self.offset_of(self.head));
        let found = match self.inside {
            Inside::Nothing => return None,
            Inside::Telegram => self.find_end()?,
            Inside::Sealed(length) => self.whole_frame(length)?,
        };
        match found {
            Found::Sealed { length } => {
                self.leave(length);
                let bytes = self.buffer.get(start..self.head).unwrap_or_default();
                Some(Piece::Sealed { offset, bytes })
            }
            Found::End { bang, tail, length } => {
                self.leave(length);
                let bytes = self.buffer.get(start..=bang).unwrap_or_default();
                Some(Piece::Telegram { offset, bytes, tail })
            }
            Found::Broken { length, reason, restart } => {
                self.leave(length);
                if restart {
                    self.inside = Inside::Telegram;
                    self.scanned = self.head.saturating_add(1);
                }
                Some(Piece::Rejected { offset, length: length as u64, reason })
            }
        }
    }

    /// Says that the sealed frame of this length that was returned last cannot be opened. If another begins within
    /// it, that is the next piece. Returns how much of the frame is given up.
    pub(super) fn look_within(&mut self, length: u64) -> u64 {
        let Some(begin) = usize::try_from(length).ok().and_then(|length| self.head.checked_sub(length)) else {
            return length;
        };
        let mut from = begin.saturating_add(1);
        while let Some(at) = self.buffer.get(from..self.head).and_then(|rest| memchr(0xDB, rest)) {
            let at = from.saturating_add(at);
            // Judged by the bytes of the frame alone, so that it does not matter what has come behind it yet.
            if cipher::may_begin(self.buffer.get(at..self.head).unwrap_or_default()) {
                self.head = at;
                self.scanned = at;
                return at.saturating_sub(begin) as u64;
            }
            from = at.saturating_add(1);
        }
        length
    }

    fn offset_of(&self, index: usize) -> u64 {
        self.base.saturating_add(index as u64)
    }

    fn leave(&mut self, length: usize) {
        self.head = self.head.saturating_add(length);
        self.scanned = self.head;
        self.inside = Inside::Nothing;
    }

    /// Outside a telegram: drops bytes up to the next `/` or sealed frame. Returns a stretch of junk that is complete:
    /// before a header, at the end, or as long as a telegram may be.
    fn skip_junk(&mut self) -> Option<(u64, u64)> {
        let rest = self.buffer.get(self.head..).unwrap_or_default();
        let (next, begins) = self.next_begin(rest);
        let mut skipped = rest.get(..next).unwrap_or_default();
        let start = self.offset_of(self.head);
        let mut full = None;
        // Reported at fixed lengths, so that neither the split nor endless junk matters.
        let room = match self.junk {
            Some((from, _)) => (MAX_TELEGRAM as u64).saturating_sub(start.saturating_sub(from)) as usize,
            None => skipped
                .iter()
                .position(|&byte| !is_blank(byte))
                .map_or(usize::MAX, |at| at.saturating_add(MAX_TELEGRAM)),
        };
        if let Some(part) = skipped.get(..room) {
            skipped = part;
            full = Some(());
        }
        if let Some(first) = skipped.iter().position(|&byte| !is_blank(byte)) {
            let last = skipped.iter().rposition(|&byte| !is_blank(byte)).unwrap_or(first);
            let from = self.junk.map_or(start.saturating_add(first as u64), |(from, _)| from);
            self.junk = Some((from, start.saturating_add(last as u64).saturating_add(1)));
        }
        self.head = self.head.saturating_add(skipped.len());
        self.scanned = self.head;
        if full.is_some() {
            return self.take_junk();
        }
        if begins != Inside::Nothing {
            self.inside = begins;
            self.scanned = self.head.saturating_add(1);
            return self.take_junk();
        }
        if self.ended { self.take_junk() } else { None }
    }

    /// Where in `rest`, which ends the buffer, something begins, and what; or how far nothing does.
    fn next_begin(&self, rest: &[u8]) -> (usize, Inside) {
        let mut from = 0usize;
        while let Some(at) = memchr2(b'/', 0xDB, rest.get(from..).unwrap_or_default()) {
            let at = from.saturating_add(at);
            if rest.get(at) == Some(&b'/') {
                return (at, Inside::Telegram);
            }
            match self.sealed_length(rest.get(at..).unwrap_or_default()) {
                Some(Some(length)) => return (at, Inside::Sealed(length)),
                Some(None) => from = at.saturating_add(1),
                None => return (at, Inside::Nothing),
            }
        }
        (rest.len(), Inside::Nothing)
    }

    /// The length of the sealed frame that begins with `begin`, which ends the buffer and has a `DB` in front;
    /// `Some(None)` where none does. None when more bytes are needed.
    fn sealed_length(&self, begin: &[u8]) -> Option<Option<usize>> {
        // Text may hold a `DB`, but hardly an 08 behind it: most need not wait.
        if begin.get(1).is_some_and(|&byte| byte != 8) {
            return Some(None);
        }
        match begin.first_chunk() {
            Some(begin) => Some(cipher::frame_length(begin)),
            None => self.ended.then_some(None),
        }
    }

    /// Inside a sealed frame of this length: the whole, or the place where its sender began anew.
    fn whole_frame(&self, length: usize) -> Option<Found> {
        let rest = self.buffer.get(self.head..).unwrap_or_default();
        let whole = rest.get(..length);
        if whole.is_none() && !self.ended {
            return None;
        }
        let frame = whole.unwrap_or(rest);
        // `DB 08` and the title of the meter.
        let sender = frame.get(..10).unwrap_or_default();
        let anew =
            memmem::find(frame.get(1..).unwrap_or_default(), sender).map(|at| at.saturating_add(1)).or_else(|| {
                // Or a part of it at the end. Less than three bytes would be there by chance too often.
                let part =
                    (3..sender.len()).rev().find(|&part| frame.ends_with(sender.get(..part).unwrap_or_default()))?;
                Some(frame.len().saturating_sub(part))
            });
        match anew {
            Some(length) => Some(Found::Broken { length, reason: Reason::Truncated, restart: false }),
            None if whole.is_some() => Some(Found::Sealed { length }),
            None => Some(Found::Broken { length: rest.len(), reason: Reason::Truncated, restart: false }),
        }
    }

    fn take_junk(&mut self) -> Option<(u64, u64)> {
        self.junk.take().map(|(from, to)| (from, to.saturating_sub(from)))
    }

    /// Inside a telegram: looks for its end. None when more bytes are needed.
    fn find_end(&mut self) -> Option<Found> {
        let limit = self.head.saturating_add(MAX_TELEGRAM);
        loop {
            let from = self.scanned.min(self.buffer.len());
            let hit =
                memchr3(b'!', b'/', 0xDB, self.buffer.get(from..limit.min(self.buffer.len())).unwrap_or_default())
                    .map(|at| from.saturating_add(at));
            let Some(hit) = hit else {
                self.scanned = self.buffer.len();
                if self.buffer.len() >= limit {
                    return Some(Found::Broken { length: MAX_TELEGRAM, reason: Reason::TooLong, restart: false });
                }
                let length = self.buffer.len().saturating_sub(self.head);
                return self.ended.then_some(Found::Broken { length, reason: Reason::Truncated, restart: false });
            };
            // Come back to this byte if it cannot be judged yet.
            self.scanned = hit;
            let line_start = matches!(self.buffer.get(hit.saturating_sub(1)), Some(b'\n' | b'\r'));
            let after = self.buffer.get(hit.saturating_add(1)..).unwrap_or_default();
            let broken = |restart| {
                let length = hit.saturating_sub(self.head);
                Some(Found::Broken { length, reason: Reason::Truncated, restart })
            };
            match self.buffer.get(hit) {
                Some(b'!') if line_start => {
                    let (tail, digits) = self.tail(after)?;
                    let length = hit.saturating_sub(self.head).saturating_add(1).saturating_add(digits);
                    return Some(Found::End { bang: hit, tail, length });
                }
                Some(b'/') if line_start || self.header_follows(after)? => return broken(true),
                Some(0xDB) if self.sealed_length(self.buffer.get(hit..).unwrap_or_default())?.is_some() => {
                    return broken(false);
                }
                _ => {}
            }
            self.scanned = hit.saturating_add(1);
        }
    }

    /// What `after` the `!` is, and how many digits it has. None when more bytes are needed.
    fn tail(&self, after: &[u8]) -> Option<(Tail, usize)> {
        let mut crc: u16 = 0;
        let mut digits: usize = 0;
        for &byte in after.iter().take(4) {
            let Some(digit) = char::from(byte).to_digit(16) else { break };
            // Four digits of four bits fill a u16 exactly.
            crc = crc.wrapping_shl(4) | u16::try_from(digit).unwrap_or(0);
            digits = digits.saturating_add(1);
        }
        match (digits, after.get(digits)) {
            (1..=4, _) if digits == 4 => Some((Tail::Crc(crc), 4)),
            (_, None) if !self.ended => None,
            (0, None | Some(b'\r' | b'\n')) => Some((Tail::Nothing, 0)),
            (1.., None | Some(b'\r' | b'\n')) => Some((Tail::Crc(crc), digits)),
            _ => Some((Tail::Garbled, digits)),
        }
    }

    /// Whether what follows a `/` can only be a header. None when more bytes are needed.
    fn header_follows(&self, after: &[u8]) -> Option<bool> {
        for index in 0..4 {
            match after.get(index) {
                Some(byte) if index < 3 && byte.is_ascii_alphabetic() => {}
                Some(byte) if index == 3 => return Some(byte.is_ascii_digit()),
                None if !self.ended => return None,
                _ => return Some(false),
            }
        }
        Some(false)
    }
}

enum Found {
    End { bang: usize, tail: Tail, length: usize },
    Sealed { length: usize },
    Broken { length: usize, reason: Reason, restart: bool },
}

/// White space, and the zero bytes that an idle line or an opened port may bring.
fn is_blank(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every piece of `bytes`, pushed in chunks of `size`, as short text.
    fn pieces(bytes: &[u8], size: usize) -> Vec<String> {
        let mut framer = Framer::new();
        let mut found = Vec::new();
        let mut drain = |framer: &mut Framer| {
            while let Some(piece) = framer.poll() {
                found.push(match piece {
                    Piece::Telegram { offset, bytes, tail } => {
                        format!("{offset} {} {tail:?}", String::from_utf8_lossy(bytes).escape_debug())
                    }
                    Piece::Sealed { offset, bytes } => format!("{offset}+{} sealed", bytes.len()),
                    Piece::Rejected { offset, length, reason } => format!("{offset}+{length} {}", reason.kind()),
                });
            }
        };
        for chunk in bytes.chunks(size) {
            framer.push(chunk);
            drain(&mut framer);
        }
        framer.end();
        drain(&mut framer);
        found
    }

    fn check(bytes: &[u8], expected: &[&str]) {
        for size in 1..=bytes.len().max(1) {
            assert_eq!(pieces(bytes, size), expected, "in chunks of {size}");
        }
    }

    #[test]
    fn a_few_bytes_tell_whether_something_begins() {
        let sealed = [0xDB, 0x08, 1, 2, 3, 4, 5, 6, 7, 8, 0x82, 0x01, 0x00, 0x30];
        for (bytes, expected) in [
            (&b""[..], None),
            (b"/", None),
            (b"/XY", None),
            (b"/XYZ5", Some(true)),
            (b"/XYZ5\\2", Some(true)),
            (b"/X1", Some(false)),
            (b"/XYZ-", Some(true)),
            (b"XYZ5", Some(false)),
            (&sealed[..13], None),
            (&sealed, Some(true)),
            (&[0xDB, 0x09], Some(false)),
        ] {
            assert_eq!(begins(bytes), expected, "{bytes:02X?}");
        }
    }

    #[test]
    fn cuts_out_telegrams_and_names_the_rest() {
        check(b"/A\n\na(1)\n!1aB2\r\n", &[r"0 /A\n\na(1)\n! Crc(6834)"]);
        check(b"(1)\r\n!F21E\r\n/A\n!\r\n", &["0+10 fragment", r"12 /A\n! Nothing"]);
        check(b"/A\n(1\n/B\n!12\n", &["0+6 truncated", r"6 /B\n! Crc(18)"]);
        check(b"/A\n1-0:1.8/KFM5x\n!0\n", &["0+10 truncated", r"10 /KFM5x\n! Crc(0)"]);
        check(b"/A\n(m3/h)\n!\n", &[r"0 /A\n(m3/h)\n! Nothing"]);
        check(b"/A\n(x!y)\n!zz\n", &[r"0 /A\n(x!y)\n! Garbled", "10+2 fragment"]);
        check(b"\0\r\n  \n", &[]);
        check(b"/A\n1-0", &["0+6 truncated"]);
        check(b"/A\n!F", &[r"0 /A\n! Crc(15)"]);
        check(b"/A\n!ABCD/B\n!", &[r"0 /A\n! Crc(43981)", r"8 /B\n! Nothing"]);
    }

    /// A sealed frame of 40 bytes in which everything that means something elsewhere stands.
    fn sealed() -> Vec<u8> {
        let mut frame = b"\xDB\x08MKA\x01\x02\x03\x04\x05\x82\x00\x1B\x30\x00\x00\x00\x07".to_vec();
        frame.extend(b"/\n/A\n!12\xDB\n\xDB\x08/ABC1!0\n!\n");
        frame.resize(40, b'!');
        frame
    }

    #[test]
    fn sealed_frames_are_cut_out() {
        let frame = sealed();
        check(&[&frame[..], &frame].concat(), &["0+40 sealed", "40+40 sealed"]);
        // In the middle of one, of a telegram, and between telegrams.
        check(&[&frame[36..], &frame].concat(), &["0+3 fragment", "4+40 sealed"]);
        check(&[&frame[30..], &frame].concat(), &[r"0 /ABC1!0\n! Nothing", "10+40 sealed"]);
        check(&[b"/A\n\xDB 1", &frame[..]].concat(), &["0+6 truncated", "6+40 sealed"]);
        check(&[&frame[..], b"\n/A\n!\n", &frame].concat(), &["0+40 sealed", r"41 /A\n! Nothing", "46+40 sealed"]);
        // Bytes were lost.
        for kept in [20, 30, 31, 33, 37] {
            let truncated = format!("0+{kept} truncated");
            check(&[&frame[..kept], &frame].concat(), &[&truncated, &format!("{kept}+40 sealed")]);
        }
        check(&frame[..39], &["0+39 truncated"]);
        check(&frame[..13], &["0+13 fragment"]);
    }

    #[test]
    fn junk_and_endless_telegrams_are_bounded() {
        let mut bytes = vec![b'x'; MAX_TELEGRAM + 10];
        bytes.extend(b"/A\n");
        bytes.extend(vec![b'y'; MAX_TELEGRAM]);
        bytes.extend(b"\n/B\n!\n");
        let expected =
            ["0+8192 fragment", "8192+10 fragment", "8202+8192 too-long", "16394+3 fragment", "16398 /B\\n! Nothing"];
        for size in [1, 7, 100, 8191, 8192, 8193, bytes.len()] {
            assert_eq!(pieces(&bytes, size), expected, "in chunks of {size}");
        }
    }

    #[test]
    fn memory_is_bounded_whatever_comes() {
        let mut framer = Framer::new();
        for _ in 0..1000 {
            framer.push(&[b'/'; 1000]);
            while framer.poll().is_some() {}
            assert!(framer.buffer.len() <= MAX_TELEGRAM + 1000);
        }
    }
}
