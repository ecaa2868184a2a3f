//! P1 telegrams byte by byte.
//!
//! Enters: bytes of a P1 port, split anywhere, and what is known of the meter: its dialect, its key. Leaves: [`Piece`]s. What is
//! refused is explained as far as it goes, with the reason that [`Reader`] gives.
//!
//! Where a CRC does not fit, and would if one bit were another, or one digit, that byte is named: it is a hint, because about one
//! CRC in ten would fit some byte by chance.
//!
//! Sources: IEC 62056-21, 6.3.2 and 6.3.14 (the header); IEC 62056-6-1 (groups of OBIS codes); [`crate::p1::table`].

use std::collections::VecDeque;

use super::{Cut, Mark, Part, Piece, Said, hex};
use crate::{
    obis::Obis,
    p1::{
        Accepted, Dialect, Key, Line, LineEnds, MAX_TELEGRAM, Reader, Reason, Rejected, Telegram, crc, decode,
        table::Meaning, text,
    },
    reading::{Identity, Medium, escape},
};

/// Explains a stream of bytes. Holds no more than three telegrams of the greatest length, besides what the last
/// [`push`](Explainer::push) brought.
#[derive(Debug)]
pub struct Explainer {
    reader: Reader,
    dialect: Option<Dialect>,
    key: Option<Key>,
    /// What is not yet explained.
    buffer: Vec<u8>,
    /// How many bytes of the stream came before `buffer`.
    base: u64,
    /// What the reader said of it.
    verdicts: VecDeque<Result<Accepted, Rejected>>,
    ended: bool,
}

impl Explainer {
    /// At the beginning of a stream. Without a dialect that of each telegram is found; without a key encrypted telegrams are
    /// explained from outside.
    pub fn new(dialect: Option<Dialect>, key: Option<Key>) -> Self {
        Self {
            reader: Reader::new(dialect, key.clone()),
            dialect,
            key,
            buffer: Vec::new(),
            base: 0,
            verdicts: VecDeque::new(),
            ended: false,
        }
    }

    /// Adds bytes. Call [`poll`](Explainer::poll) until it returns None before the next push.
    pub fn push(&mut self, bytes: &[u8]) {
        self.reader.push(bytes);
        self.buffer.extend_from_slice(bytes);
        self.ended = false;
    }

    /// Says that no more bytes come for now: what is open ends here. Call [`poll`](Explainer::poll) until it returns None.
    pub fn end(&mut self) {
        self.reader.end();
        self.ended = true;
    }

    /// The next piece, or None when more bytes are needed.
    pub fn poll(&mut self) -> Option<Piece> {
        self.verdicts.extend(std::iter::from_fn(|| self.reader.poll()));
        loop {
            let Some(verdict) = self.verdicts.front() else {
                // A piece that had begun in the first of three would have ended by now.
                let room = if self.ended { 1 } else { MAX_TELEGRAM.saturating_mul(3) };
                let blank = self.buffer.len().min(MAX_TELEGRAM);
                return (self.buffer.len() >= room).then(|| self.blank(blank));
            };
            let (offset, length) = match verdict {
                Ok(accepted) => (accepted.offset, accepted.length),
                Err(rejected) => (rejected.offset, rejected.length),
            };
            // What a sealed frame held beyond its first telegram was explained with it.
            let Some(before) = offset.checked_sub(self.base) else {
                self.verdicts.pop_front();
                continue;
            };
            if before > 0 {
                let blank = usize::try_from(before).unwrap_or(MAX_TELEGRAM).min(MAX_TELEGRAM);
                return Some(self.blank(blank));
            }
            let body = usize::try_from(length).unwrap_or(usize::MAX).min(self.buffer.len());
            let tail = if has_end(verdict, self.buffer.get(..body).unwrap_or_default()) {
                tail(self.buffer.get(body..).unwrap_or_default(), self.ended)?
            } else {
                0
            };
            let verdict = self.verdicts.pop_front()?;
            let bytes = self.leave(body.saturating_add(tail));
            return Some(self.piece(offset, bytes, body, verdict));
        }
    }

    fn leave(&mut self, length: usize) -> Vec<u8> {
        let rest = self.buffer.split_off(length.min(self.buffer.len()));
        self.base = self.base.saturating_add(length as u64);
        std::mem::replace(&mut self.buffer, rest)
    }

    /// What the reader passes over.
    fn blank(&mut self, length: usize) -> Piece {
        let offset = self.base;
        let bytes = self.leave(length);
        let mut cut = Cut::new(&bytes);
        cut.take(usize::MAX, "white space", "means nothing");
        let parts = cut.finish();
        Piece {
            offset,
            bytes,
            is_binary: false,
            what: "white space".into(),
            meaning: "between telegrams".to_owned(),
            mark: Mark::Plain,
            parts,
            inside: Vec::new(),
        }
    }

    /// `body`: how much of the bytes stands before the CRC.
    fn piece(&self, offset: u64, bytes: Vec<u8>, body: usize, verdict: Result<Accepted, Rejected>) -> Piece {
        let (mark, refused) = match &verdict {
            Ok(_) => (Mark::Right, None),
            Err(rejected) => (Mark::Wrong, Some(rejected.reason)),
        };
        let mut inside = Vec::new();
        let (what, meaning, parts) = if bytes.first() == Some(&0xDB) && refused != Some(Reason::Fragment) {
            if let Some(Ok(plain)) = self.key.as_ref().map(|key| key.open(&bytes)) {
                let mut explainer = Self::new(self.dialect, None);
                explainer.push(&plain);
                explainer.end();
                inside.extend(std::iter::from_fn(|| explainer.poll()));
            }
            let meaning = if refused.is_none() { "opened with the key" } else { "" };
            (SEALED, meaning.to_owned(), sealed(&bytes, refused))
        } else if refused == Some(Reason::Fragment) {
            let parts = fragment(&bytes, self.dialect.unwrap_or(Dialect::Unrecognised));
            ("fragment", parity(&bytes).unwrap_or_default().to_owned(), parts)
        } else {
            let telegram = bare(bytes.get(..body).unwrap_or_default());
            let dialect = self.dialect.unwrap_or_else(|| Dialect::detect(&telegram));
            let found = if self.dialect.is_some() { "as told" } else { "as found" };
            let mut meaning = format!("dialect {} ({found})", dialect.name());
            if let Ok(accepted) = &verdict {
                for report in &accepted.decoded.reports {
                    let meter = match &report.meter {
                        Identity::Own(id) => escape(id.as_bytes()),
                        Identity::Place { channel: None } => "without an identifier".to_owned(),
                        Identity::Place { channel: Some(channel) } => format!("on channel {channel}"),
                    };
                    meaning.push_str(&format!("; {} meter {meter}", report.medium.name().replace('_', " ")));
                }
            }
            ("P1 telegram", meaning, telegram_parts(&bytes, body, dialect, &verdict))
        };
        let meaning = match (refused, meaning.is_empty()) {
            (None, _) => meaning,
            (Some(reason), true) => format!("rejected: {reason}"),
            (Some(reason), false) => format!("rejected: {reason}; {meaning}"),
        };
        let is_binary = what == SEALED;
        Piece { offset, bytes, is_binary, what: what.into(), meaning, mark, parts, inside }
    }
}

/// What a piece is that holds another.
const SEALED: &str = "encrypted telegram";

/// A telegram of these bytes, from `/` to wherever they end.
fn bare(bytes: &[u8]) -> Telegram<'_> {
    Telegram { offset: 0, bytes, crc: None, line_ends: LineEnds::AsSent }
}

/// Whether a piece is a telegram through its `!`.
fn has_end(verdict: &Result<Accepted, Rejected>, bytes: &[u8]) -> bool {
    let cut = matches!(verdict, Err(Rejected { reason: Reason::Truncated | Reason::TooLong | Reason::Fragment, .. }));
    !cut && bytes.first() == Some(&b'/')
}

/// How many bytes behind the `!` are of the telegram: at most four digits, and the line end. None when more are needed.
fn tail(behind: &[u8], ended: bool) -> Option<usize> {
    let digits = behind.iter().take(4).take_while(|byte| byte.is_ascii_hexdigit()).count();
    let rest = behind.get(digits..).unwrap_or_default();
    let returns = rest.iter().take(LONGEST_LINE_END).take_while(|&&byte| byte == b'\r').count();
    match rest.get(returns) {
        Some(b'\n') => Some(digits.saturating_add(returns).saturating_add(1)),
        Some(_) => Some(digits.saturating_add(returns.min(1))),
        None if ended => Some(digits.saturating_add(returns)),
        None => None,
    }
}

/// More carriage returns than that before a line feed are none of its line end.
const LONGEST_LINE_END: usize = 4;

/// The length of the next line with its end, and of that end.
fn line_length(text: &[u8]) -> (usize, usize) {
    match memchr::memchr(b'\n', text) {
        Some(at) => {
            let returns = text.get(..at).unwrap_or_default().iter().rev().take_while(|&&byte| byte == b'\r').count();
            (at.saturating_add(1), returns.saturating_add(1))
        }
        None => (text.len(), 0),
    }
}

fn take_line_end(cut: &mut Cut<'_>, length: usize) {
    let name = match cut.rest() {
        [b'\r', b'\n', ..] => "CR LF",
        [b'\n', ..] => "LF alone, where the standards have CR LF",
        _ => "not CR LF, as the standards have it",
    };
    cut.take(length, "line end", name);
}

fn telegram_parts(bytes: &[u8], body: usize, dialect: Dialect, verdict: &Result<Accepted, Rejected>) -> Vec<Part> {
    let ended = has_end(verdict, bytes);
    let data_end = if ended { body.saturating_sub(1) } else { body };
    let mut cut = Cut::new(bytes);
    let data = bytes.get(..data_end).unwrap_or_default();
    let (length, end) = line_length(data);
    header(&mut cut, length, end);
    lines(&mut cut, data_end, dialect, true);
    if ended {
        let said = bytes.get(..body).unwrap_or_default();
        end_part(&mut cut, said, Some(verdict));
    }
    cut.finish()
}

fn header(cut: &mut Cut<'_>, length: usize, end: usize) {
    cut.group(length, "header", |cut| {
        cut.take(1, "start", "a telegram begins");
        let letters = cut.rest().iter().take(3).take_while(|byte| byte.is_ascii_alphabetic()).count();
        if letters == 3 {
            cut.take(3, "maker", "the maker's flag, as the FLAG association gives it");
            if let Some(digit @ b'0'..=b'9') = cut.rest().first() {
                let rate = match digit {
                    b'0' => "300 Bd",
                    b'1' => "600 Bd",
                    b'2' => "1200 Bd",
                    b'3' => "2400 Bd",
                    b'4' => "4800 Bd",
                    b'5' => "9600 Bd by IEC 62056-21; DSMR 4 and later say 5 too, and send at 115200 Bd",
                    b'6' => "19200 Bd",
                    _ => "reserved",
                };
                cut.take(1, "baud rate", rate);
            }
        }
        let left = cut.rest().len().saturating_sub(end);
        let name = text::printable(cut.rest().get(..left).unwrap_or_default());
        cut.take(left, "identification", format!("what the maker calls the meter: {name}"));
        take_line_end(cut, end);
        (String::new(), if letters == 3 { Mark::Plain } else { Mark::Unknown })
    });
}

/// The lines up to `data_end`, each with those that go on in brackets. `complete`: they are of a telegram that has a header.
fn lines(cut: &mut Cut<'_>, data_end: usize, dialect: Dialect, complete: bool) {
    let data = cut.bytes.get(cut.at..data_end).unwrap_or_default();
    // The whole once more, as the decoder sees it.
    let as_sent = [b"/\n", data].concat();
    let telegram = bare(&as_sent);
    let all: Vec<Line<'_>> = telegram.lines().collect();
    let mut index = 0usize;
    while cut.at < data_end {
        let rest = cut.bytes.get(cut.at..data_end).unwrap_or_default();
        let (mut length, mut end) = line_length(rest);
        if length == end && end > 0 {
            let first = complete && index == 0;
            let meaning = if first { "stands behind the header" } else { "means nothing" };
            cut.group(length, "blank line", |cut| {
                take_line_end(cut, length);
                (meaning.to_owned(), Mark::Plain)
            });
            continue;
        }
        if !complete && rest.first() == Some(&b'!') {
            index = index.saturating_add(1);
            cut.group(length, "end", |cut| {
                cut.take(1, "end", "a telegram ends");
                let digits = cut.rest().iter().take(4).take_while(|byte| byte.is_ascii_hexdigit()).count();
                cut.take(digits, "CRC", "cannot be checked: the telegram is not whole");
                (String::new(), Mark::Plain)
            });
            continue;
        }
        // A line that begins with a bracket belongs to the one before.
        if Obis::parse(rest).is_some() {
            while rest.get(length) == Some(&b'(') {
                let more = line_length(rest.get(length..).unwrap_or_default());
                length = length.saturating_add(more.0);
                end = more.1;
            }
        }
        let line = all.get(index);
        index = index.saturating_add(1);
        let (before, behind) = all.split_at_checked(index.saturating_sub(1)).unwrap_or((&all, &[]));
        let behind = behind.get(1..).unwrap_or_default();
        cut.group(length, "line", |cut| match line {
            Some(line) => explain_line(cut, *line, before, behind, end, dialect),
            None => ("belongs to no line".to_owned(), Mark::Unknown),
        });
    }
}

fn explain_line(
    cut: &mut Cut<'_>,
    line: Line<'_>,
    before: &[Line<'_>],
    behind: &[Line<'_>],
    end: usize,
    dialect: Dialect,
) -> (String, Mark) {
    let Some(code) = line.code else {
        let left = cut.rest().len().saturating_sub(end);
        let shown = parity(cut.rest()).unwrap_or("no line of a meter: it begins with no OBIS code");
        cut.mark(left, "text", shown, Mark::Unknown);
        take_line_end(cut, end);
        return ("no line of a meter".to_owned(), Mark::Unknown);
    };
    let meaning = line.meaning(dialect).copied();
    let by = match (meaning, line.source(dialect)) {
        (Some(meaning), Some(source)) => format!("{} ({source})", described(&meaning)),
        _ => "in no table".to_owned(),
    };
    let mark = if meaning.is_some() { Mark::Plain } else { Mark::Unknown };
    cut.mark(line.code_text.len(), "OBIS code", format!("{by}; {}", groups(code)), mark);
    let mut index = 0usize;
    while let [first, ..] = cut.rest() {
        match first {
            b'\r' | b'\n' => {
                let length = line_length(cut.rest()).0;
                let ends = cut.rest().iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
                take_line_end(cut, length.min(ends));
            }
            b'(' => {
                let Some(close) = memchr::memchr(b')', cut.rest()) else { break };
                let content = cut.rest().get(1..close).unwrap_or_default();
                let (what, told, mark) = bracket(meaning, index, content, dialect);
                cut.mark(close.saturating_add(1), what, told, mark);
                index = index.saturating_add(1);
            }
            _ => break,
        }
    }
    if !cut.rest().is_empty() {
        let left = cut.rest().len().saturating_sub(end);
        let told = if end == 0 { "the line breaks off" } else { "stands in no bracket" };
        cut.mark(left, "text", told, Mark::Wrong);
        take_line_end(cut, end);
    }
    let said = said(line, before, behind, dialect);
    let words = said.in_words();
    match (said.unknown.is_empty(), words.is_empty()) {
        (false, _) if meaning.is_none() => ("unknown: no table has this code".to_owned(), Mark::Unknown),
        (false, _) => ("unknown: does not fit what the table has, or was said already".to_owned(), Mark::Unknown),
        (true, true) => ("says nothing".to_owned(), Mark::Plain),
        (true, false) => (words, Mark::Plain),
    }
}

/// What a line says beside those that it depends on: earlier ones with the same code, and for a slave meter those that name it
/// and its kind.
fn said(line: Line<'_>, before: &[Line<'_>], behind: &[Line<'_>], dialect: Dialect) -> Said {
    let slave = |line: &Line<'_>| line.code.filter(|code| code.a == 0 && (1..=4).contains(&code.b)).map(|code| code.b);
    let names = |other: &&Line<'_>| {
        slave(other).is_some()
            && slave(other) == slave(&line)
            && other.code != line.code
            && matches!(other.meaning(dialect), Some(Meaning::DeviceType | Meaning::SlaveIdentifier { .. }))
    };
    let same = |other: &&Line<'_>| other.code == line.code;
    let context: Vec<Line<'_>> =
        before.iter().chain(behind).filter(names).chain(before.iter().filter(same)).copied().collect();
    let without = decoded(&context, dialect);
    let with = decoded(&[context, vec![line]].concat(), dialect);
    let mut said = with.beyond(&without);
    // That a meter is there follows from its lines; which channel it has stands in their codes.
    said.info.retain(|(name, _)| name != "channel");
    if !matches!(line.meaning(dialect), Some(Meaning::DeviceType)) {
        said.words.retain(|word| !word.starts_with("the medium is"));
    }
    said
}

/// What a telegram of these lines says.
fn decoded(lines: &[Line<'_>], dialect: Dialect) -> Said {
    let mut bytes = b"/\r\n\r\n".to_vec();
    for line in lines {
        bytes.extend([line.code_text, line.text, b"\r\n"].concat());
    }
    bytes.push(b'!');
    let mut said = Said::default();
    for report in decode(&bare(&bytes), Some(dialect)).reports {
        let meter = match &report.meter {
            Identity::Own(id) => Some(id.clone()),
            Identity::Place { .. } => None,
        };
        said.add(report, meter);
    }
    said
}

/// The `!`, the CRC, and the line end.
fn end_part(cut: &mut Cut<'_>, body: &[u8], verdict: Option<&Result<Accepted, Rejected>>) {
    cut.group(usize::MAX, "end", |cut| {
        cut.take(1, "end", "the telegram ends; the CRC is over everything from / through this");
        let digits = cut.rest().iter().take(4).take_while(|byte| byte.is_ascii_hexdigit()).count();
        let said = std::str::from_utf8(cut.rest().get(..digits).unwrap_or_default())
            .ok()
            .and_then(|digits| u16::from_str_radix(digits, 16).ok());
        let computed = crc::as_sent(body);
        let (told, mark) = match (said, verdict) {
            (None, Some(Ok(_))) => ("none, as meters before DSMR 4 have it".to_owned(), Mark::Plain),
            (None, _) => (format!("missing: the bytes give {computed:04X}"), Mark::Wrong),
            (Some(said), _) if said == computed => ("right".to_owned(), Mark::Right),
            (Some(_), Some(Ok(_))) => ("right, once all lines end with CR LF".to_owned(), Mark::Right),
            (Some(said), _) => (wrong_crc(body, said, computed), Mark::Wrong),
        };
        cut.mark(digits, "CRC", told.clone(), mark);
        let length = cut.rest().len();
        take_line_end(cut, length);
        (format!("CRC {told}"), mark)
    });
}

fn wrong_crc(body: &[u8], said: u16, computed: u16) -> String {
    let mut text = format!("wrong: the bytes give {computed:04X}");
    if let Some(name) = crc::other(body, said) {
        text.push_str(&format!("; it is their {name}"));
    } else if let Some((at, byte)) = one_byte(body, said ^ computed) {
        let is = body.get(at).copied().unwrap_or_default();
        text.push_str(&format!(
            "; it would be right if byte {at} were {byte:02X} ({}) and not {is:02X} ({})",
            escape(&[byte]),
            escape(&[is])
        ));
    }
    text
}

/// The byte that explains a CRC that is off by `difference`, and what it would have to be: with one bit changed, or with another
/// digit for a digit if no bit does. The code is linear: what a bit does to the CRC does not depend on the others.
fn one_byte(body: &[u8], difference: u16) -> Option<(usize, u8)> {
    let mut digit = None;
    let mut effects = [1u8, 2, 4, 8, 16, 32, 64, 128].map(|bit| (bit, crc::as_sent(&[bit])));
    for (at, &byte) in body.iter().enumerate().rev() {
        let mut bits =
            effects.iter().map(|(bit, _)| byte ^ bit).filter(|other| matches!(other, b' '..=b'~' | b'\r' | b'\n'));
        let mut digits = (b'0'..=b'9').filter(|other| byte.is_ascii_digit() && *other != byte);
        let effect = |other: u8| {
            let changed = effects.iter().filter(|(bit, _)| (byte ^ other) & bit != 0);
            changed.fold(0, |effect, (_, of_bit)| effect ^ of_bit)
        };
        if let Some(other) = bits.find(|other| effect(*other) == difference) {
            return Some((at, other));
        }
        digit = digit.or_else(|| Some((at, digits.find(|other| effect(*other) == difference)?)));
        for (_, effect) in &mut effects {
            // With one more byte behind it.
            let [high, low] = effect.to_be_bytes();
            *effect = crc::as_sent(&[low]) ^ u16::from(high);
        }
    }
    digit
}

fn sealed(bytes: &[u8], refused: Option<Reason>) -> Vec<Part> {
    let mut cut = Cut::new(bytes);
    cut.take(1, "tag", "a COSEM general-glo-ciphering frame begins");
    cut.take(1, "title length", "8");
    let title = cut.rest().get(..8).unwrap_or_default();
    let (letters, number) = title.split_at_checked(3).unwrap_or((title, &[]));
    cut.take(8, "system title", format!("maker {}, device {}", escape(letters), hex(number)));
    cut.take(1, "length form", "two bytes of length follow");
    let length = cut.rest().first_chunk().map(|bytes| u16::from_be_bytes(*bytes));
    let meaning = length.map_or_else(String::new, |length| {
        let there = cut.rest().len().saturating_sub(2);
        if there == usize::from(length) {
            format!("{length} bytes follow")
        } else {
            format!("{length} bytes should follow, and {there} do")
        }
    });
    cut.mark(
        2,
        "length",
        meaning,
        if length.is_some_and(|length| usize::from(length) != bytes.len().saturating_sub(13)) {
            Mark::Wrong
        } else {
            Mark::Plain
        },
    );
    let authenticated = cut.rest().first() == Some(&0x30);
    let control = if authenticated { "encrypted and authenticated (AES-128-GCM)" } else { "encrypted alone" };
    cut.take(1, "security control", control);
    let counter = cut.rest().first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
    let meaning =
        counter.map_or_else(String::new, |counter| format!("{counter}: rises with each telegram of the meter"));
    cut.take(4, "frame counter", meaning);
    // Of a frame that is cut the end is not there.
    let tag = if authenticated && refused != Some(Reason::Truncated) { 12 } else { 0 };
    let cipher = cut.rest().len().saturating_sub(tag);
    cut.take(cipher, "cipher text", "the telegram");
    let (meaning, mark) = match refused {
        None => ("right", Mark::Right),
        Some(Reason::SealBroken) => ("wrong", Mark::Wrong),
        _ => ("cannot be checked without the right key", Mark::Plain),
    };
    cut.mark(tag, "GCM tag", meaning, mark);
    cut.finish()
}

/// Bytes outside of any telegram: the lines in them, as far as they are some.
fn fragment(bytes: &[u8], dialect: Dialect) -> Vec<Part> {
    let mut cut = Cut::new(bytes);
    lines(&mut cut, bytes.len(), dialect, false);
    cut.finish()
}

/// Whether bytes look like text of seven bits with a parity bit.
fn parity(bytes: &[u8]) -> Option<&'static str> {
    let high = bytes.iter().filter(|byte| **byte >= 0x80).count();
    let text = bytes.iter().filter(|byte| matches!(**byte & 0x7F, b' '..=b'~' | b'\r' | b'\n')).count();
    let odd = bytes.iter().filter(|byte| byte.count_ones() % 2 == 1).count();
    (bytes.len() >= 8 && high.saturating_mul(5) > bytes.len() && text == bytes.len() && odd == 0).then_some(
        "without its highest bit each byte is text, and with it the number of bits is even: the meter sends 7E1 (DSMR 2.2 and \
         3.0, at 9600 Bd), and it was read as 8N1",
    )
}

/// What the table has for a code.
fn described(meaning: &Meaning) -> String {
    match meaning {
        Meaning::Register { name, unit, .. } if unit.as_str().is_empty() => format!("register {name}"),
        Meaning::Register { name, unit, .. } => format!("register {name} in {unit}"),
        Meaning::Limit => "what the connection may carry".to_owned(),
        Meaning::Limits => "the current that each direction may carry".to_owned(),
        Meaning::Clock => "when the telegram was made".to_owned(),
        Meaning::Identifier { name, .. } => format!("who the meter is: {name}"),
        Meaning::Plain(name) | Meaning::Text(name) | Meaning::SlavePlain(name) | Meaning::SlaveText(name) => {
            format!("text {name}")
        }
        Meaning::Relay => "the state of a relay".to_owned(),
        Meaning::Tariff(_) => "the tariff in force".to_owned(),
        Meaning::FailureLog => "the log of long power failures".to_owned(),
        Meaning::Peak(name) => format!("register {name}: the highest of the month, and when"),
        Meaning::PeakHistory(name) => format!("register {name}: the highest of past months"),
        Meaning::Snapshot(_) => "registers as they stood at the end of last month".to_owned(),
        Meaning::DeviceType => "the kind of a slave meter".to_owned(),
        Meaning::SlaveIdentifier { name, .. } => format!("who a slave meter is: {name}"),
        Meaning::SlaveReading => "what a slave meter counts, and when".to_owned(),
        Meaning::SlaveReadingV3 => "what a slave meter counts, as DSMR 2 and 3 send it".to_owned(),
    }
}

/// What a bracket holds by its place in the line.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Value,
    Time,
    /// Hex digits of a text.
    HexText,
    Plain(&'static str),
    Medium,
    Code,
    /// By its looks.
    Any,
}

fn role(meaning: Option<Meaning>, index: usize, content: &[u8]) -> Role {
    let timed = |is_time: bool| if is_time { Role::Time } else { Role::Value };
    match meaning {
        Some(Meaning::Register { .. } | Meaning::Limit | Meaning::Limits) => Role::Value,
        Some(Meaning::Clock) => Role::Time,
        Some(
            Meaning::Identifier { .. } | Meaning::Text(_) | Meaning::SlaveIdentifier { .. } | Meaning::SlaveText(_),
        ) => Role::HexText,
        Some(Meaning::Plain(_) | Meaning::SlavePlain(_)) => Role::Plain("text"),
        Some(Meaning::Relay) => Role::Plain("state"),
        Some(Meaning::Tariff(_)) => Role::Plain("tariff"),
        Some(Meaning::DeviceType) => Role::Medium,
        Some(Meaning::FailureLog) => match index {
            0 => Role::Plain("count"),
            1 => Role::Code,
            _ => timed(index.is_multiple_of(2)),
        },
        Some(Meaning::PeakHistory(_)) => match index {
            0 => Role::Plain("count"),
            1 | 2 => Role::Code,
            _ => timed(index % 3 != 2),
        },
        Some(Meaning::Snapshot(_)) => timed(index == 0),
        Some(Meaning::SlaveReading) => timed(index == 0),
        Some(Meaning::Peak(_)) => timed(!content.contains(&b'*')),
        Some(Meaning::SlaveReadingV3) => match index {
            0 => Role::Time,
            1 => Role::Plain("status"),
            2 => Role::Plain("period in minutes"),
            3 => Role::Plain("count"),
            4 => Role::Code,
            5 => Role::Plain("unit"),
            _ => Role::Value,
        },
        None => Role::Any,
    }
}

/// What a bracket is, and what it means.
fn bracket(meaning: Option<Meaning>, index: usize, content: &[u8], dialect: Dialect) -> (&'static str, String, Mark) {
    let role = role(meaning, index, content);
    let time = || match text::clock(content, dialect.winter_offset()) {
        text::Clock::At(at) => Some((at.to_string(), Mark::Plain)),
        text::Clock::Unset => Some(("the form of a time, but none: the clock is not set".to_owned(), Mark::Plain)),
        text::Clock::Other => None,
    };
    let value = || {
        let (value, unit) = text::value_and_unit(content)?;
        Some(match unit {
            b"" => format!("{value}, no unit"),
            unit => format!("{value} {}", escape(unit)),
        })
    };
    let wrong = |what: &'static str| (what, format!("not a {what}"), Mark::Wrong);
    if content.is_empty() {
        return ("bracket", "empty".to_owned(), Mark::Plain);
    }
    match role {
        Role::Value if text::is_empty_value(content) => ("value", "a unit without a value".to_owned(), Mark::Plain),
        Role::Value => value().map_or_else(|| wrong("value"), |value| ("value", value, Mark::Plain)),
        Role::Time => time().map_or_else(|| wrong("time"), |(time, mark)| ("time", time, mark)),
        Role::HexText => match text::from_hex(content) {
            plain if plain.as_bytes() == content => {
                ("text", "as it is: no hex digits of a text".to_owned(), Mark::Plain)
            }
            decoded => ("hex text", decoded, Mark::Plain),
        },
        Role::Plain(what) => (what, text::printable(content), Mark::Plain),
        Role::Medium => {
            let code = std::str::from_utf8(content).ok().and_then(|text| text.parse::<u8>().ok());
            match code {
                Some(code) => ("device type", medium(code), Mark::Plain),
                None => wrong("device type"),
            }
        }
        Role::Code => {
            let code = [content, b"("].concat();
            let meant = Obis::parse(&code).map_or_else(|| text::printable(content), |(code, _)| groups(code));
            ("code", meant, Mark::Plain)
        }
        Role::Any => match (time().filter(|_| content.len() >= 12), value().filter(|_| content.contains(&b'*'))) {
            (Some((time, mark)), _) => ("time", format!("by its looks {time}"), mark),
            (_, Some(value)) => ("value", format!("by its looks {value}"), Mark::Unknown),
            _ => ("text", text::printable(content), Mark::Unknown),
        },
    }
}

/// A device type of EN 13757-3 in words.
pub(super) fn medium(code: u8) -> String {
    let name = match Medium::from_device_type(code) {
        Medium::Other(_) => match code {
            0x00 => "other",
            0x01 => "oil",
            0x05 => "steam",
            0x08 => "heat cost allocator",
            0x09 => "compressed air",
            0x0E => "bus or system",
            0x0F => "unknown",
            0x14 => "calorific value",
            0x17 => "dual water",
            0x18 => "pressure",
            0x19 => "analogue input",
            0x1A => "smoke detector",
            0x1B => "room sensor",
            0x1C => "gas detector",
            0x20 => "breaker",
            0x21 => "valve",
            0x25 => "customer unit",
            0x28 => "waste water",
            0x29 => "garbage",
            0x31 => "communication controller",
            0x36 | 0x37 => "radio converter",
            _ => "reserved",
        },
        medium => medium.name(),
    };
    let more = match code {
        4 | 10 => ", measured in the outlet",
        11 | 12 => ", measured in the inlet",
        21 => ", at 90 C and above",
        22 => ", cold",
        _ => "",
    };
    format!("{}{more} (device type {code})", name.replace('_', " "))
}

/// The groups of a code in words.
fn groups(code: Obis) -> String {
    let Obis { a, b, c, d, e, f } = code;
    let medium = match a {
        0 => "abstract",
        1 => "electricity",
        4 => "heat cost",
        5 => "cooling",
        6 => "heat",
        7 => "gas",
        8 => "cold water",
        9 => "hot water",
        _ => "a medium without a name here",
    };
    let channel = match (a, b) {
        (_, 0) => "the meter itself".to_owned(),
        (0, _) => format!("channel {b}"),
        _ => format!("part {b}"),
    };
    let mut words = vec![format!("A {a} {medium}"), format!("B {b} {channel}")];
    words.push(format!("C {c}{}", spaced(if a == 1 { electricity(c) } else { general(c) })));
    words.push(format!("D {d}{}", spaced(if a == 1 { processing(c, d) } else { device(c, d) })));
    let rated = a == 1 && (1..96).contains(&c) && matches!(d, 2 | 6 | 8);
    words.push(match e {
        0 if rated => "E 0 total".to_owned(),
        _ if rated => format!("E {e} tariff {e}"),
        _ => format!("E {e}"),
    });
    if f != 255 {
        words.push(format!("F {f} storage"));
    }
    words.join(", ")
}

fn spaced(text: &'static str) -> String {
    if text.is_empty() { String::new() } else { format!(" {text}") }
}

/// Group C of electricity: 21 to 40 are 1 to 20 of phase L1, and so on.
const fn electricity(c: u8) -> &'static str {
    match c {
        0 => "general",
        1 => "active power drawn",
        2 => "active power given back",
        3 => "reactive power drawn",
        4 => "reactive power given back",
        5 => "reactive power of quadrant 1",
        6 => "reactive power of quadrant 2",
        7 => "reactive power of quadrant 3",
        8 => "reactive power of quadrant 4",
        9 => "apparent power drawn",
        10 => "apparent power given back",
        11 => "current of any phase",
        12 => "voltage of any phase",
        13 => "power factor",
        14 => "frequency",
        15 => "active power, both ways added",
        16 => "active power, drawn less given back",
        21 => "active power drawn on L1",
        22 => "active power given back on L1",
        23 => "reactive power drawn on L1",
        24 => "reactive power given back on L1",
        29 => "apparent power drawn on L1",
        30 => "apparent power given back on L1",
        31 => "current of L1",
        32 => "voltage of L1",
        33 => "power factor of L1",
        41 => "active power drawn on L2",
        42 => "active power given back on L2",
        43 => "reactive power drawn on L2",
        44 => "reactive power given back on L2",
        49 => "apparent power drawn on L2",
        50 => "apparent power given back on L2",
        51 => "current of L2",
        52 => "voltage of L2",
        53 => "power factor of L2",
        61 => "active power drawn on L3",
        62 => "active power given back on L3",
        63 => "reactive power drawn on L3",
        64 => "reactive power given back on L3",
        69 => "apparent power drawn on L3",
        70 => "apparent power given back on L3",
        71 => "current of L3",
        72 => "voltage of L3",
        73 => "power factor of L3",
        90 => "current, all phases added",
        91 => "current of the neutral",
        96 => "of the device",
        97 => "errors",
        98 => "list",
        99 => "profile",
        _ => "",
    }
}

/// Group D of electricity.
const fn processing(c: u8, d: u8) -> &'static str {
    match (c, d) {
        (0 | 96..=99, _) => "",
        (_, 2) => "highest added up",
        (31 | 51 | 71, 4) => "average, or limit",
        (_, 4) => "average so far in this period",
        (_, 5) => "average of the last period",
        (_, 6) => "highest",
        (_, 3) => "lowest",
        (_, 7) => "now",
        (_, 8) => "counted since the beginning",
        (_, 24) => "average of a longer time",
        (_, 32) => "number of sags",
        (_, 33) => "how long a sag lasted",
        (_, 34) => "how deep a sag was",
        (_, 36) => "number of swells",
        (_, 37) => "how long a swell lasted",
        (_, 38) => "how high a swell was",
        _ => "",
    }
}

/// Group C of what is no electricity.
const fn general(c: u8) -> &'static str {
    match c {
        1 => "clock",
        17 => "limiter",
        24 => "M-Bus device",
        42 => "logical device name",
        96 => "of the device",
        97 => "errors",
        98 => "list",
        99 => "profile",
        _ => "",
    }
}

/// Group D of what is no electricity.
const fn device(c: u8, d: u8) -> &'static str {
    match (c, d) {
        (24, 1) => "kind",
        (24, 2) => "last value",
        (24, 3) => "value of the last period",
        (24, 4) => "valve or breaker",
        (96, 1) => "identifier",
        (96, 3) => "switch",
        (96, 7) => "power failures",
        (96, 13) => "message",
        (96, 14) => "tariff in force",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::p1::Writer;

    fn explain(bytes: &[u8]) -> Vec<Piece> {
        let mut explainer = Explainer::new(None, None);
        explainer.push(bytes);
        explainer.end();
        std::iter::from_fn(|| explainer.poll()).collect()
    }

    fn meanings(piece: &Piece) -> Vec<String> {
        piece.parts.iter().map(|part| format!("{} {}", part.what, part.meaning)).collect()
    }

    #[test]
    fn a_line_means_what_the_decoder_makes_of_it() {
        let bytes = Writer::new("XYZ5 example")
            .line("1-3:0.2.8(50)")
            .line("0-0:1.0.0(260714120003S)")
            .line("0-0:96.1.1(4532)")
            .line("1-0:1.8.2(000123.456*kWh)")
            .line("1-0:32.7.0(000123.456*kWh)")
            .line("1-0:1.8.2(000123.457*kWh)")
            .line("0-1:24.2.1(260714120000S)(00012.345*m3)")
            .line("0-1:24.1.0(003)")
            .line("9-9:9.9.9(1)")
            .line("hello")
            .finish(true);
        let pieces = explain(&bytes);
        let [piece] = &pieces[..] else { panic!("{pieces:?}") };
        assert_eq!(
            meanings(piece),
            [
                "header ",
                "blank line stands behind the header",
                "line version: 50",
                "line at 2026-07-14T12:00:03+02:00",
                "line the meter is E2",
                "line import_normal 123.456 kWh",
                "line unknown: does not fit what the table has, or was said already",
                "line import_normal 123.457 kWh",
                "line volume 12.345 m3; at 2026-07-14T12:00:00+02:00",
                "line the medium is gas",
                "line unknown: no table has this code",
                "line no line of a meter",
                "end CRC right",
            ]
        );
        assert!(piece.meaning.starts_with("dialect netherlands (as found); electricity meter E2; gas meter"));
    }

    #[test]
    fn a_bit_that_explains_a_wrong_crc_is_named() {
        let good = Writer::new("XYZ5 example").line("1-3:0.2.8(50)").line("1-0:1.8.1(000123.456*kWh)").finish(true);
        for at in [3, 20, 40, 55] {
            let mut damaged = good.clone();
            damaged[at] ^= 0x04;
            if !(b' '..=b'~').contains(&damaged[at]) {
                continue;
            }
            let piece = explain(&damaged).remove(0);
            let end = &piece.parts.last().unwrap().meaning;
            let hint = format!("if byte {at} were {:02X}", good[at]);
            assert!(end.contains(&hint), "{end}: {hint}");
            assert_eq!(piece.mark, Mark::Wrong);
        }
    }

    #[test]
    fn seven_bits_read_as_eight_are_seen() {
        let sent = Writer::new("XYZ5 example").line("1-0:1.8.1(000123.456*kWh)").finish(false);
        let parity = |byte: &u8| if byte.count_ones() % 2 == 1 { byte | 0x80 } else { *byte };
        let read: Vec<u8> = sent.iter().map(parity).collect();
        let pieces = explain(&read);
        assert!(pieces.iter().any(|piece| piece.meaning.contains("7E1")), "{pieces:?}");
        assert!(explain(b"nothing of a meter").iter().all(|piece| !piece.meaning.contains("7E1")));
    }
}
