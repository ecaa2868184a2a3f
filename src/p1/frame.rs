//! Bytes to pieces: where a telegram begins and ends.
//!
//! Enters: bytes, split anywhere, from the middle of a telegram, with junk between. Leaves, in order:
//! telegrams from `/` to the CRC digits behind `!`, and the places of everything else that is not just
//! white space. The result does not depend on how the bytes were split.
//!
//! A telegram begins at a `/`, and ends at a `!` at the beginning of a line. Inside a telegram a new
//! one begins at a `/` at the beginning of a line, or at something that can only be a header (`/`,
//! three letters, a digit) where bytes were lost. Source: IEC 62056-21 mode D; DSMR P1 5.0.2, 6.2.

use memchr::{memchr, memchr2};

use super::Reason;

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

/// Cuts a stream of bytes into [`Piece`]s. Holds at most [`MAX_TELEGRAM`] bytes besides what the last
/// [`push`](Framer::push) brought.
#[derive(Debug, Default)]
pub struct Framer {
    buffer: Vec<u8>,
    /// Where in `buffer` the unconsumed bytes begin; a telegram's `/` if `inside`.
    head: usize,
    /// What is before here in `buffer` has been looked at.
    scanned: usize,
    /// How many bytes of the stream came before `buffer`.
    base: u64,
    inside: bool,
    /// Start and end, in the stream, of the bytes outside a telegram that are not white space.
    junk: Option<(u64, u64)>,
    ended: bool,
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
        if !self.inside {
            if let Some((offset, length)) = self.skip_junk() {
                return Some(Piece::Rejected { offset, length, reason: Reason::Fragment });
            }
            if !self.inside {
                return None;
            }
        }
        let (start, offset) = (self.head, self.offset_of(self.head));
        match self.find_end()? {
            Found::End { bang, tail, length } => {
                self.leave(length);
                let bytes = self.buffer.get(start..=bang).unwrap_or_default();
                Some(Piece::Telegram { offset, bytes, tail })
            }
            Found::Broken { length, reason, restart } => {
                self.leave(length);
                self.inside = restart;
                self.scanned = self.head.saturating_add(usize::from(restart));
                Some(Piece::Rejected { offset, length: length as u64, reason })
            }
        }
    }

    fn offset_of(&self, index: usize) -> u64 {
        self.base.saturating_add(index as u64)
    }

    fn leave(&mut self, length: usize) {
        self.head = self.head.saturating_add(length);
        self.scanned = self.head;
        self.inside = false;
    }

    /// Outside a telegram: drops bytes up to the next `/`. Returns a stretch of junk that is complete:
    /// before a header, at the end, or as long as a telegram may be.
    fn skip_junk(&mut self) -> Option<(u64, u64)> {
        let rest = self.buffer.get(self.head..).unwrap_or_default();
        let next = memchr(b'/', rest);
        let mut skipped = rest.get(..next.unwrap_or(rest.len())).unwrap_or_default();
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
        if next.is_some() {
            self.inside = true;
            self.scanned = self.head.saturating_add(1);
            return self.take_junk();
        }
        if self.ended { self.take_junk() } else { None }
    }

    fn take_junk(&mut self) -> Option<(u64, u64)> {
        self.junk.take().map(|(from, to)| (from, to.saturating_sub(from)))
    }

    /// Inside a telegram: looks for its end. None when more bytes are needed.
    fn find_end(&mut self) -> Option<Found> {
        let limit = self.head.saturating_add(MAX_TELEGRAM);
        loop {
            let from = self.scanned.min(self.buffer.len());
            let hit = memchr2(b'!', b'/', self.buffer.get(from..limit.min(self.buffer.len())).unwrap_or_default())
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
            if self.buffer.get(hit) == Some(&b'!') {
                if line_start {
                    let (tail, digits) = self.tail(after)?;
                    let length = hit.saturating_sub(self.head).saturating_add(1).saturating_add(digits);
                    return Some(Found::End { bang: hit, tail, length });
                }
            } else if line_start || self.header_follows(after)? {
                let length = hit.saturating_sub(self.head);
                return Some(Found::Broken { length, reason: Reason::Truncated, restart: true });
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
