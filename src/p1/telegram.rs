//! A telegram: its header, its CRC and every line, judging nothing else.
//!
//! Enters: a [`Piece`]. Leaves: a [`Telegram`] whose bytes are those that came, so it prints back
//! exactly; or the reason why it is none. [`Writer`] makes telegrams.
//!
//! DSMR 2.2 and 3.0 have no CRC: a telegram without one is taken only when it names no later version.

use std::fmt;

use super::{
    Dialect, Piece, Reason, Rejected, Tail, crc,
    table::{self, Entry, Meaning},
};
use crate::{
    obis::Obis,
    unit::{Decimal, Unit},
};

/// The line that names the version in DSMR 4.0 and later.
const VERSION: Obis = Obis::new(1, 3, 0, 2, 8);
/// The line that names the version in Belgian telegrams.
const VERSION_BELGIUM: Obis = Obis::new(0, 0, 96, 1, 4);

/// A telegram that passed its CRC, or has none by its version.
///
/// ```
/// use meterkast::p1::{Framer, Telegram, Writer};
///
/// let mut framer = Framer::new();
/// framer.push(&Writer::new("XYZ5 example").line("1-3:0.2.8(50)").finish(true));
/// let telegram = Telegram::check(framer.poll().unwrap())?;
/// assert_eq!(telegram.identification(), b"XYZ5 example");
/// let line = telegram.lines().next().unwrap();
/// assert_eq!((line.code.unwrap().to_string().as_str(), line.text), ("1-3:0.2.8", &b"(50)"[..]));
/// # Ok::<(), meterkast::p1::Rejected>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Telegram<'a> {
    /// Where it begins, in bytes since the stream began.
    pub offset: u64,
    /// From `/` through `!`.
    pub bytes: &'a [u8],
    /// The CRC it came with.
    pub crc: Option<u16>,
    /// Whether the CRC fits the bytes as they came.
    pub line_ends: LineEnds,
}

/// How the line ends came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineEnds {
    /// As the meter sent them.
    AsSent,
    /// All without carriage returns, or all with several, as files, terminals and transfers leave them: the CRC fits
    /// once they are restored.
    Restored,
}

/// A line of a telegram: an OBIS code and what follows it, or something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// The code; None when the line does not begin with one.
    pub code: Option<Obis>,
    /// The code as written; empty when there is none.
    pub code_text: &'a [u8],
    /// From the first bracket on, through further lines that begin with a bracket (v3 gas); the whole
    /// line when there is no code.
    pub text: &'a [u8],
    /// What the code means.
    pub(super) entry: Option<&'static Entry>,
}

impl Line<'_> {
    /// What its code means in `dialect`; None where the tables do not know it.
    pub fn meaning(&self, dialect: Dialect) -> Option<&'static Meaning> {
        self.entry?.meaning(dialect)
    }

    /// Which document says so.
    pub fn source(&self, dialect: Dialect) -> Option<&'static str> {
        self.entry?.source(dialect)
    }
}

impl<'a> Telegram<'a> {
    /// Checks the CRC of a piece.
    pub fn check(piece: Piece<'a>) -> Result<Self, Rejected> {
        let (offset, bytes, tail) = match piece {
            Piece::Telegram { offset, bytes, tail } => (offset, bytes, tail),
            Piece::Sealed { offset, bytes } => {
                return Err(Rejected { offset, length: bytes.len() as u64, reason: Reason::Encrypted });
            }
            Piece::Rejected { offset, length, reason } => return Err(Rejected { offset, length, reason }),
        };
        let rejected = |reason| Err(Rejected { offset, length: bytes.len() as u64, reason });
        let telegram = Self { offset, bytes, crc: None, line_ends: LineEnds::AsSent };
        match tail {
            Tail::Crc(said) => {
                let computed = crc::as_sent(bytes);
                if said == computed {
                    return Ok(Self { crc: Some(said), ..telegram });
                }
                // Only where all line ends are alike: a damaged telegram gets no second chance.
                if line_ends_are_others(bytes) && said == crc::with_crlf(bytes) {
                    return Ok(Self { crc: Some(said), line_ends: LineEnds::Restored, ..telegram });
                }
                rejected(match crc::other(bytes, said) {
                    Some(fits) => Reason::OtherCrc { said, fits: Some(fits) },
                    None => Reason::CrcMismatch { said, computed },
                })
            }
            Tail::Garbled => rejected(Reason::CrcGarbled),
            Tail::Nothing => {
                let versioned = |line: Line<'_>| matches!(line.code, Some(VERSION | VERSION_BELGIUM));
                if telegram.lines().any(versioned) {
                    rejected(Reason::CrcMissing)
                } else if telegram.lines().all(|line| line.code.is_none()) {
                    // With no CRC to vouch for it, junk between a `/` and a `!` is no telegram.
                    rejected(Reason::Empty)
                } else {
                    Ok(telegram)
                }
            }
        }
    }

    /// The text behind the `/`.
    pub fn identification(&self) -> &'a [u8] {
        without_return(next_line(self.content()).0)
    }

    /// What stands between the `/` and the `!`.
    fn content(&self) -> &'a [u8] {
        let rest = self.bytes.strip_prefix(b"/").unwrap_or(self.bytes);
        rest.strip_suffix(b"!").unwrap_or(rest)
    }

    /// Every line between the header and the `!` that is not blank, in order.
    pub fn lines(&self) -> Lines<'a> {
        Lines { rest: next_line(self.content()).1 }
    }
}

/// The lines of a telegram.
#[derive(Debug, Clone)]
pub struct Lines<'a> {
    rest: &'a [u8],
}

/// The next line, read as far as that goes without looking for its end.
pub(super) enum Next<'a> {
    /// A register in its usual form: its code as the table spells it, a number, the unit of the table, CR LF.
    Register(&'static str, &'static Unit, Decimal),
    /// Any other line.
    Line(Line<'a>),
}

impl<'a> Lines<'a> {
    /// The next line, for a reader who knows the dialect. Most lines are registers in their usual form,
    /// which take half the time so.
    #[inline]
    pub(super) fn next_of(&mut self, dialect: Dialect) -> Option<Next<'a>> {
        let found = table::find(self.rest);
        if let Some((entry, length)) = found
            && let Some(Meaning::Register { name, unit, ending }) = entry.meaning(dialect)
            && let Some(inside) = self.rest.get(length.wrapping_add(1)..)
            && let Some((value, behind)) = Decimal::parse_prefix(inside)
            && let Some(rest) = ending.strip(behind)
            // A line that begins with a bracket belongs to this one.
            && rest.first() != Some(&b'(')
        {
            self.rest = rest;
            return Some(Next::Register(name, unit, value));
        }
        self.line(found).map(Next::Line)
    }

    /// The next line, where `found` is what the table has for its beginning.
    fn line(&mut self, mut found: Option<(&'static Entry, usize)>) -> Option<Line<'a>> {
        loop {
            let begin = self.rest;
            let (line, tail) = next_line(begin);
            self.rest = tail;
            let line = without_return(line);
            if line.is_empty() {
                if tail.is_empty() {
                    return None;
                }
                found = table::find(tail);
                continue;
            }
            let (code, length, entry) = match found {
                Some((entry, length)) => (entry.code, length, Some(entry)),
                None => match Obis::parse(line) {
                    Some((code, length)) => (code, length, table::of_code(code)),
                    None => return Some(Line { code: None, code_text: b"", text: line, entry: None }),
                },
            };
            let mut end = line.len();
            while self.rest.first() == Some(&b'(') {
                let (more, tail) = next_line(self.rest);
                end = begin.len().saturating_sub(self.rest.len()).saturating_add(without_return(more).len());
                self.rest = tail;
            }
            let (code_text, text) = begin.get(..end).unwrap_or(line).split_at_checked(length).unwrap_or_default();
            return Some(Line { code: Some(code), code_text, text, entry });
        }
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = Line<'a>;

    fn next(&mut self) -> Option<Line<'a>> {
        self.line(table::find(self.rest))
    }
}

/// The header of a telegram, from its `/` to the end of the line.
pub(super) fn header(bytes: &[u8]) -> &[u8] {
    without_return(next_line(bytes).0)
}

/// Whether every line of a telegram has a code, and brackets that are closed: noise is unlikely to leave that.
pub(super) fn is_clean(bytes: &[u8]) -> bool {
    let telegram = Telegram { offset: 0, bytes, crc: None, line_ends: LineEnds::AsSent };
    let mut lines = telegram.lines().peekable();
    lines.peek().is_some() && lines.all(|line| line.code.is_some() && line.text.ends_with(b")"))
}

/// Splits off a line, without its line feed.
#[inline]
fn next_line(text: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(b'\n', text).and_then(|at| text.split_at_checked(at)) {
        Some((line, rest)) => (line, rest.get(1..).unwrap_or_default()),
        None => (text, b""),
    }
}

/// Whether every line ends alike, and not as a meter ends it.
fn line_ends_are_others(bytes: &[u8]) -> bool {
    let returns = |line: &[u8]| line.len().saturating_sub(without_return(line).len());
    let mut lines = bytes.split(|&byte| byte == b'\n').rev().skip(1).map(returns);
    lines.next().is_some_and(|first| first != 1 && lines.all(|line| line == first))
}

/// A line without its carriage return; terminals and transfers in text mode leave several.
pub(super) fn without_return(mut line: &[u8]) -> &[u8] {
    while let Some(shorter) = line.strip_suffix(b"\r") {
        line = shorter;
    }
    line
}

impl fmt::Debug for Telegram<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Telegram at {}: {}", self.offset, crate::reading::escape(self.bytes))
    }
}

/// Writes a telegram: the header, lines, and the CRC.
///
/// ```
/// let bytes = meterkast::p1::Writer::new("XYZ5 example").line("1-3:0.2.8(50)").finish(true);
/// assert_eq!(bytes, b"/XYZ5 example\r\n\r\n1-3:0.2.8(50)\r\n!C076\r\n");
/// ```
#[derive(Debug, Clone)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// Begins with `/`, the identification and a blank line.
    pub fn new(identification: &str) -> Self {
        Self(format!("/{identification}\r\n\r\n").into_bytes())
    }

    /// Adds a line.
    #[must_use]
    pub fn line(mut self, line: impl AsRef<[u8]>) -> Self {
        self.0.extend_from_slice(line.as_ref());
        self.0.extend_from_slice(b"\r\n");
        self
    }

    /// Ends with `!`, the CRC if asked for, and a line end.
    pub fn finish(mut self, with_crc: bool) -> Vec<u8> {
        self.0.push(b'!');
        if with_crc {
            let crc = crc::as_sent(&self.0);
            self.0.extend_from_slice(format!("{crc:04X}").as_bytes());
        }
        self.0.extend_from_slice(b"\r\n");
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::p1::Framer;

    fn check(bytes: &[u8]) -> Result<Vec<String>, Reason> {
        let mut framer = Framer::new();
        framer.push(bytes);
        framer.end();
        let telegram = Telegram::check(framer.poll().unwrap()).map_err(|rejected| rejected.reason)?;
        Ok(telegram
            .lines()
            .map(|line| format!("{:?}{}", line.code, String::from_utf8_lossy(line.text).escape_debug()))
            .collect())
    }

    #[test]
    fn every_line_is_kept() {
        let lines = check(b"/A\r\n\r\n0-0:17.0.0(1)\r\nnonsense\r\n0-1:24.3.0(x)(m3)\r\n(2)\r\n1-0:1.8.0 (3)\r\n!\r\n");
        let expected = ["Some(0-0:17.0.0)(1)", "Nonenonsense", r"Some(0-1:24.3.0)(x)(m3)\r\n(2)", "None1-0:1.8.0 (3)"];
        assert_eq!(lines.unwrap(), expected);
    }

    #[test]
    fn a_missing_blank_line_and_missing_returns_are_fine() {
        assert_eq!(check(b"/A\n0-0:17.0.0(1)\n!\n").unwrap(), ["Some(0-0:17.0.0)(1)"]);
        let sent = Writer::new("A").line("0-0:17.0.0(1)").finish(true);
        let bare: Vec<u8> = sent.iter().copied().filter(|&byte| byte != b'\r').collect();
        assert_eq!(check(&bare).unwrap(), ["Some(0-0:17.0.0)(1)"]);
        let twice = String::from_utf8(bare).unwrap().replace('\n', "\r\r\n");
        assert_eq!(check(twice.as_bytes()).unwrap(), ["Some(0-0:17.0.0)(1)"]);
        // One that differs is damage.
        assert!(check(twice.replacen("\r\r\n", "\r\n", 1).as_bytes()).is_err());
    }

    #[test]
    fn the_crc_is_checked_where_there_must_be_one() {
        let sent = Writer::new("A").line("1-3:0.2.8(50)").finish(true);
        assert!(check(&sent).is_ok());
        let mut damaged = sent.clone();
        damaged[10] ^= 1;
        assert!(matches!(check(&damaged), Err(Reason::CrcMismatch { .. })));
        assert_eq!(check(&Writer::new("A").line("1-3:0.2.8(50)").finish(false)), Err(Reason::CrcMissing));
        assert_eq!(check(b"/A\r\n!?21E\r\n"), Err(Reason::CrcGarbled));
        assert_eq!(check(b"/etc/passwd\r\nroot\r\n!\r\n"), Err(Reason::Empty));
    }
}
