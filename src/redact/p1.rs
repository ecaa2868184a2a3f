//! P1 telegrams.

use std::collections::BTreeMap;

use jiff::SignedDuration;

use super::{
    Plan, Refused, Secret, Serials, Survey, Written,
    check::{self, Allowed},
    offset::{self, Slot},
    time,
};
use crate::{
    obis::Obis,
    p1::{self, Dialect, LineEnds, Telegram, crc, table, table::Meaning},
    reading::{Identity, Reading, Report, escape},
};

/// Numbers of at least so many digits in a header are a serial; shorter ones are of a model (`2M550T-1012`).
const SERIAL_IN_HEADER: usize = 5;

/// A line with a code, or anything else that ends as a line does.
struct Line<'a> {
    /// As it came: the code, and the brackets with those of the lines that go on.
    code_text: &'a [u8],
    text: &'a [u8],
    /// Line feed and carriage returns.
    end: &'a [u8],
    code: Option<Obis>,
    /// What its code means, where the decoder took it so.
    meaning: Option<&'static Meaning>,
    /// Whether the decoder kept it as unknown.
    is_unknown: bool,
    /// Whether it is one of values and times all the same, but of none that can be taken: a clock that was never set, a
    /// number without a unit.
    is_idle: bool,
}

/// Header, lines, and what was decoded.
struct Parts<'a> {
    header: &'a [u8],
    lines: Vec<Line<'a>>,
    decoded: p1::Decoded,
}

impl<'a> Parts<'a> {
    fn of(telegram: &Telegram<'a>, dialect: Option<Dialect>) -> Self {
        let decoded = p1::decode(telegram, dialect);
        let mut unknown: Vec<(String, String)> = decoded
            .reports
            .iter()
            .flat_map(|report| &report.unknown)
            .map(|unknown| (unknown.code.clone(), unknown.text.clone()))
            .collect();
        let content = telegram.bytes.strip_suffix(b"!").unwrap_or(telegram.bytes);
        let (header, mut rest) = split_line(content);
        let mut lines = Vec::new();
        while !rest.is_empty() {
            let begin = rest;
            let (mut length, code) = {
                let (line, tail) = split_line(rest);
                rest = tail;
                (line.len(), Obis::parse(without_end(line)))
            };
            while code.is_some() && rest.starts_with(b"(") {
                let (more, tail) = split_line(rest);
                rest = tail;
                length += more.len();
            }
            let whole = begin.get(..length).unwrap_or(begin);
            let (body, end) = whole.split_at_checked(without_end(whole).len()).unwrap_or((whole, &[]));
            let (code_text, text) = body.split_at_checked(code.map_or(0, |(_, length)| length)).unwrap_or((&[], body));
            let code = code.map(|(code, _)| code);
            let key = (escape(code_text), escape(text));
            let at = unknown.iter().position(|other| *other == key);
            if let Some(at) = at {
                unknown.swap_remove(at);
            }
            let meaning = code.and_then(|code| table::meaning(code, decoded.dialect));
            let is_unknown = !body.is_empty() && (at.is_some() || meaning.is_none());
            let is_idle = is_unknown && meaning.is_some_and(is_value) && brackets(text).all(is_number_or_clock);
            let meaning = meaning.filter(|_| !is_unknown || is_idle);
            lines.push(Line { code_text, text, end, code, meaning, is_unknown, is_idle });
        }
        Self { header, lines, decoded }
    }

    /// The report of a line's meter.
    fn report(&self, line: &Line<'_>) -> Option<&Report> {
        let is_slave = line.meaning.is_some_and(|meaning| meaning.is_of_slave());
        match line.code {
            Some(Obis { a: 0, b: channel @ 1..=4, .. }) if is_slave => {
                let channel = channel.to_string();
                self.decoded
                    .reports
                    .iter()
                    .find(|report| report.info.iter().any(|(name, text)| name == "channel" && **text == channel))
            }
            _ => self.decoded.reports.first(),
        }
    }

    /// The counters of the lines: where they stand, and what the decoder read there.
    fn counters(&self, port: &str) -> Vec<Counter> {
        let mut counters = Vec::new();
        // How many counters of each channel came before.
        let mut before = [0usize; 256];
        // How many registers of each name.
        let mut twins: BTreeMap<(&str, u64), usize> = BTreeMap::new();
        for (at, line) in self.lines.iter().enumerate() {
            let Some(meaning) = line.meaning.filter(|_| !line.is_unknown) else { continue };
            let Some(report) = self.report(line) else { continue };
            let mut add = |bracket: usize, reading: Option<&Reading>| {
                let content = brackets(line.text).nth(bracket).unwrap_or_default();
                let slot = reading.and_then(|reading| Slot::of(&self.meter(report, port), reading));
                if let (Some(slot), Some(reading)) = (slot, reading) {
                    counters.push(Counter {
                        line: at,
                        bracket,
                        slot,
                        reading: reading.clone(),
                        digits: digits(content),
                    });
                }
            };
            let mut named = |name: &'static str, storage: u64| {
                let twin = twins.entry((name, storage)).or_default();
                *twin += 1;
                let is =
                    |reading: &&Reading| reading.register.as_str() == name && reading.qualifiers.storage == storage;
                report.readings.iter().filter(is).nth(*twin - 1)
            };
            match meaning {
                Meaning::Register { name, .. } if brackets(line.text).next().and_then(digits).is_some() => {
                    add(0, named(name, 0));
                }
                Meaning::Snapshot(registers) => {
                    for (number, (name, _)) in registers.iter().enumerate() {
                        add(number + 1, named(name, 1));
                    }
                }
                Meaning::SlaveReading | Meaning::SlaveReadingV3 => {
                    let bracket = if matches!(meaning, Meaning::SlaveReading) { 1 } else { 6 };
                    let channel = line.code.map_or(0, |code| usize::from(code.b));
                    let Some(before) = before.get_mut(channel) else { continue };
                    let is_empty = brackets(line.text).nth(bracket).is_none_or(|content| digits(content).is_none());
                    if !is_empty {
                        add(bracket, report.readings.get(*before));
                        *before += 1;
                    }
                }
                _ => {}
            }
        }
        counters
    }

    /// A name for the meter of a report that does not change within the files.
    fn meter(&self, report: &Report, port: &str) -> String {
        match &report.meter {
            Identity::Own(name) => name.clone(),
            place @ Identity::Place { .. } => format!("{}{}", place.name("", port), escape(without_end(self.header))),
        }
    }

    /// The names in it.
    fn serials(&self) -> Serials {
        let mut serials = Serials::default();
        let header = without_end(self.header);
        for run in header.get(kept_of_header(header)..).unwrap_or_default().split(|byte| !byte.is_ascii_digit()) {
            if run.len() >= SERIAL_IN_HEADER {
                serials.add(run);
            }
        }
        for line in self.lines.iter().filter(|line| line.meaning.is_some_and(is_name)) {
            for content in brackets(line.text) {
                serials.add(&spoken(content).unwrap_or_else(|| content.to_vec()));
            }
        }
        serials
    }
}

/// Whether a line that was not understood has a code under which names, or texts of people, are sent: by a channel that is not known, a second
/// time, with something behind its brackets.
fn is_of_a_name(line: &Line<'_>) -> bool {
    line.code.is_some_and(|code| matches!((code.c, code.d), (96, 1 | 13) | (42, 0) | (0, 0)))
}

/// A counter in a telegram.
struct Counter {
    line: usize,
    bracket: usize,
    slot: Slot,
    reading: Reading,
    /// How many digits it was written with; None where it is no plain number.
    digits: Option<u32>,
}

impl Counter {
    /// What it shows, what it can show at most, and in which steps.
    fn amounts(&self) -> Option<(i128, i128, i128)> {
        let step = offset::step(&self.reading)?;
        let most = 10i128.checked_pow(self.digits?)?.checked_sub(1)?.checked_mul(step)?;
        Some((offset::amount(&self.reading)?, most, step))
    }
}

pub(super) fn survey(survey: &mut Survey, telegram: &Telegram<'_>, dialect: Option<Dialect>, port: &str) {
    let parts = Parts::of(telegram, dialect);
    survey.serials.extend(&parts.serials());
    for counter in parts.counters(port) {
        if let Some((amount, most, step)) = counter.amounts() {
            survey.see(counter.slot, amount, most, step);
        }
    }
}

pub(super) fn rewrite(
    plan: &Plan,
    telegram: &Telegram<'_>,
    dialect: Option<Dialect>,
    port: &str,
) -> Result<Written, Refused> {
    let parts = Parts::of(telegram, dialect);
    let counters = if plan.offsets.is_some() { parts.counters(port) } else { Vec::new() };
    let serials = parts.serials();
    let rewriting =
        Rewriting { plan, winter: parts.decoded.dialect.winter_offset(), counters: &counters, serials: &serials };
    let mut bytes = rewriting.header(parts.header);
    // Where a name may stand; what the decoder took for values and times is not there.
    let mut doubtful = bytes.clone();
    let (mut lines_left_out, mut unknown) = (0, 0);
    for (at, line) in parts.lines.iter().enumerate() {
        let begin = bytes.len();
        if line.is_unknown {
            // A number that cannot be taken cannot have an offset either.
            let is_idle = line.is_idle && (plan.offsets.is_none() || shows_nothing(line));
            let names_somebody =
                || is_of_a_name(line) || [&serials, &plan.serials].iter().any(|names| names.are_in_label(line.text));
            let stays =
                plan.names.is_none() || (plan.keep_unknown && !names_somebody()) || holds_nothing(line) || is_idle;
            if !stays {
                lines_left_out += 1;
                continue;
            }
            unknown += 1;
        }
        bytes.extend_from_slice(line.code_text);
        match line.meaning {
            Some(meaning) => bytes.extend(rewriting.line(at, line, *meaning)?),
            None => bytes.extend_from_slice(line.text),
        }
        bytes.extend_from_slice(line.end);
        if !line.meaning.is_some_and(is_value) {
            let line = bytes.get(begin..).unwrap_or_default();
            // What is text as hex digits is searched as that text; otherwise its digits are like any others.
            for content in brackets(line) {
                doubtful.extend([&spoken(content).unwrap_or_else(|| content.to_vec())[..], b" "].concat());
            }
            if line.first() != Some(&b'(') && Obis::parse(line).is_none() {
                doubtful.extend_from_slice(line);
            }
        }
    }
    bytes.push(b'!');
    if telegram.crc.is_some() {
        let crc = match telegram.line_ends {
            LineEnds::AsSent => crc::as_sent(&bytes),
            LineEnds::Restored => crc::with_crlf(&bytes),
        };
        bytes.extend(format!("{crc:04X}").into_bytes());
    }
    let end = parts.header.get(without_end(parts.header).len()..).unwrap_or_default();
    bytes.extend_from_slice(if end.is_empty() { b"\r\n" } else { end });

    rewriting.check(telegram, dialect, port, &parts, &bytes, unknown)?;
    if plan.names.is_some() {
        let are_in = |serials: &Serials| serials.are_in(&bytes, true) || serials.are_in(&doubtful, false);
        if are_in(&plan.serials) || are_in(&serials) || serials.are_partly_in_text(&doubtful) {
            return Err(Refused::Leak);
        }
    }
    Ok(Written { bytes, lines_left_out, blanked: 0 })
}

struct Rewriting<'a> {
    plan: &'a Plan,
    /// Hours east of UTC that the meter's clock stands in winter.
    winter: i8,
    counters: &'a [Counter],
    /// The names in this telegram.
    serials: &'a Serials,
}

impl Rewriting<'_> {
    fn header(&self, header: &[u8]) -> Vec<u8> {
        let Some(secret) = &self.plan.names else { return header.to_vec() };
        let (kept, rest) = header.split_at_checked(kept_of_header(header)).unwrap_or((header, &[]));
        // A header that repeats the name of a meter, in groups of digits or among letters, is one.
        let is_name = self.serials.share_text(rest);
        [kept, &if is_name { secret.identifier(rest) } else { secret.numbers(rest, SERIAL_IN_HEADER) }].concat()
    }

    /// The brackets of a line that means something.
    fn line(&self, at: usize, line: &Line<'_>, meaning: Meaning) -> Result<Vec<u8>, Refused> {
        let mut new = Vec::with_capacity(line.text.len());
        let (mut rest, mut bracket) = (line.text, 0);
        while let Some(open) = memchr::memchr(b'(', rest) {
            let (before, inside) = rest.split_at_checked(open + 1).unwrap_or((rest, &[]));
            new.extend_from_slice(before);
            let close = memchr::memchr(b')', inside).unwrap_or(inside.len());
            let (content, tail) = inside.split_at_checked(close).unwrap_or((inside, &[]));
            match self.content(at, bracket, content, meaning)? {
                Some(content) => new.extend(content),
                None => new.extend_from_slice(content),
            }
            rest = tail;
            bracket += 1;
        }
        new.extend_from_slice(rest);
        Ok(new)
    }

    /// What a bracket holds from now on; None where it stays.
    fn content(
        &self,
        line: usize,
        bracket: usize,
        content: &[u8],
        meaning: Meaning,
    ) -> Result<Option<Vec<u8>>, Refused> {
        if let Some(secret) = &self.plan.names {
            if is_name(&meaning) {
                return Ok(Some(renamed(secret, content)));
            }
            if matches!(meaning, Meaning::Text(_) | Meaning::SlaveText(_)) {
                return Ok(Some(Vec::new()));
            }
        }
        if !is_value(&meaning) {
            return Ok(None);
        }
        if !self.plan.shift.is_zero()
            && let Some(moved) = time::p1(content, self.winter, self.plan.shift)
        {
            return Ok(Some(moved?));
        }
        let counter = self.counters.iter().find(|counter| (counter.line, counter.bracket) == (line, bracket));
        let (Some(counter), Some(offsets)) = (counter, &self.plan.offsets) else { return Ok(None) };
        let (amount, most, step) = counter.amounts().ok_or(Refused::Offset)?;
        let sum = offsets.add(&counter.slot, amount, most)?;
        // The new digits stand where the old ones did, around the point.
        let width = counter.digits.unwrap_or_default() as usize;
        let mut digits = format!("{:0width$}", sum / step).into_bytes().into_iter();
        let new = content.iter().map(|&byte| if byte.is_ascii_digit() { digits.next().unwrap_or(byte) } else { byte });
        Ok(Some(new.collect()))
    }

    /// Reads the new bytes as anybody would, and compares.
    fn check(
        &self,
        telegram: &Telegram<'_>,
        dialect: Option<Dialect>,
        port: &str,
        parts: &Parts<'_>,
        bytes: &[u8],
        unknown: usize,
    ) -> Result<(), Refused> {
        let mut reader = p1::Reader::new(dialect, None);
        reader.push(bytes);
        reader.end();
        let (Some(Ok(new)), None) = (reader.poll(), reader.poll()) else { return Err(Refused::Differs("its form")) };
        let form = (new.vouched, new.line_ends, new.decoded.dialect);
        if form != (telegram.crc.is_some(), telegram.line_ends, parts.decoded.dialect) {
            return Err(Refused::Differs("its form"));
        }
        let count: usize = new.decoded.reports.iter().map(|report| report.unknown.len()).sum();
        if count != unknown {
            return Err(Refused::Differs("what nobody explains"));
        }
        let added = |report: &Report, reading: &Reading| {
            let slot = Slot::of(&parts.meter(report, port), reading);
            slot.zip(self.plan.offsets.as_ref()).and_then(|(slot, offsets)| offsets.of(&slot)).unwrap_or_default()
        };
        let is_renamed = self.plan.names.is_some();
        let allowed = Allowed {
            shift: self.plan.shift,
            tolerance: SignedDuration::ZERO,
            texts: &|name| is_renamed && (NAMES.contains(&name) || name.starts_with("message")),
            added: &added,
        };
        check::compare(&parts.decoded.reports, &new.decoded.reports, &allowed)
    }
}

/// The names of texts that hold identifiers.
const NAMES: [&str; 6] = ["identification", "equipment", "serial_number", "logical_device", "address", "ean"];

/// Whether a line names the meter, or the place where it hangs.
fn is_name(meaning: &Meaning) -> bool {
    matches!(
        meaning,
        Meaning::Identifier { .. } | Meaning::SlaveIdentifier { .. } | Meaning::Text("ean") | Meaning::SlaveText("ean")
    )
}

/// Whether a line holds numbers and times that the decoder took for such.
fn is_value(meaning: &Meaning) -> bool {
    match meaning {
        Meaning::Register { .. }
        | Meaning::Limit
        | Meaning::Limits
        | Meaning::Clock
        | Meaning::FailureLog
        | Meaning::Peak(_)
        | Meaning::PeakHistory(_)
        | Meaning::Snapshot(_)
        | Meaning::SlaveReading
        | Meaning::SlaveReadingV3 => true,
        Meaning::Identifier { .. }
        | Meaning::SlaveIdentifier { .. }
        | Meaning::Plain(_)
        | Meaning::Text(_)
        | Meaning::Relay
        | Meaning::Tariff(_)
        | Meaning::DeviceType
        | Meaning::SlavePlain(_)
        | Meaning::SlaveText(_) => false,
    }
}

/// An identifier as sent, with another name: hex stays hex.
fn renamed(secret: &Secret, content: &[u8]) -> Vec<u8> {
    let Some(text) = spoken(content) else { return secret.bare(content) };
    let is_small = content.iter().any(u8::is_ascii_lowercase);
    let hex = |byte: &u8| if is_small { format!("{byte:02x}") } else { format!("{byte:02X}") };
    secret.identifier(&text).iter().map(hex).collect::<String>().into_bytes()
}

/// The text that was sent as hex digits; None where it was not.
fn spoken(content: &[u8]) -> Option<Vec<u8>> {
    let (pairs, []) = content.as_chunks::<2>() else { return None };
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let text: Vec<u8> = pairs.iter().map(byte).collect::<Option<_>>()?;
    (!text.is_empty() && text.iter().all(|byte| matches!(byte, b' '..=b'~'))).then_some(text)
}

/// How much of a header is no name: the slash, the maker's three letters, the digit for the baud rate.
fn kept_of_header(header: &[u8]) -> usize {
    match header {
        [b'/', a, b, c, d, ..] if [a, b, c].into_iter().all(u8::is_ascii_alphabetic) => {
            4 + usize::from(d.is_ascii_digit())
        }
        _ => 1,
    }
}

/// Whether all brackets of a line with a code are empty.
fn holds_nothing(line: &Line<'_>) -> bool {
    line.code.is_some() && line.text.iter().all(|byte| matches!(byte, b'(' | b')' | b'\r' | b'\n'))
}

/// Whether there is no digit but zero outside of clocks.
fn shows_nothing(line: &Line<'_>) -> bool {
    let is_clock = |content: &[u8]| content.len() >= 12 && matches!(content.last(), Some(b'S' | b'W'));
    brackets(line.text).all(|content| is_clock(content) || !content.iter().any(|byte| matches!(byte, b'1'..=b'9')))
}

/// Whether a bracket holds digits, with a point in them, and a letter for the season or a unit behind them.
fn is_number_or_clock(content: &[u8]) -> bool {
    let end = content.iter().position(|byte| !byte.is_ascii_digit() && *byte != b'.').unwrap_or(content.len());
    let (number, rest) = content.split_at_checked(end).unwrap_or_default();
    let is_unit = |unit: &[u8]| unit.len() <= 5 && unit.iter().all(u8::is_ascii_alphanumeric);
    number.len() <= 18 && (matches!(rest, b"" | b"S" | b"W") || rest.strip_prefix(b"*").is_some_and(is_unit))
}

/// The contents of brackets.
fn brackets(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&byte| byte == b'(').skip(1).map(|part| part.split(|&byte| byte == b')').next().unwrap_or_default())
}

/// How many digits a value is written with, on both sides of the point; None where it is no plain number.
fn digits(content: &[u8]) -> Option<u32> {
    let number = content.iter().take_while(|&&byte| byte.is_ascii_digit() || byte == b'.');
    let count = number.filter(|byte| byte.is_ascii_digit()).count();
    // A unit with a digit in it (m3) stays: the digits of the number come first.
    u32::try_from(count).ok().filter(|count| *count > 0)
}

fn split_line(text: &[u8]) -> (&[u8], &[u8]) {
    let end = memchr::memchr(b'\n', text).map_or(text.len(), |at| at + 1);
    text.split_at_checked(end).unwrap_or((text, &[]))
}

fn without_end(mut line: &[u8]) -> &[u8] {
    line = line.strip_suffix(b"\n").unwrap_or(line);
    while let Some(shorter) = line.strip_suffix(b"\r") {
        line = shorter;
    }
    line
}
