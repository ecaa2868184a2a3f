//! Telegrams and frames byte by byte: what each stretch of them means.
//!
//! Enters: bytes of a port, split anywhere. Leaves: [`Piece`]s, whole or damaged, whose [`Part`]s say what is where. The pieces
//! follow each other without a gap, and the parts of a piece hold each of its bytes exactly once; so do the parts of a part that
//! has any. The result does not depend on how the bytes were split.
//!
//! What a line or a record becomes is not found here a second time: it is what `p1` and `mbus` decode of it, and its neighbours
//! where they matter.
//!
//! ```
//! use meterkast::explain::p1::Explainer;
//!
//! let mut explainer = Explainer::new(None, None);
//! explainer.push(b"/XYZ5 example\r\n\r\n1-0:1.8.2(000123.456*kWh)\r\n!\r\n");
//! explainer.end();
//! let piece = explainer.poll().unwrap();
//! let line = &piece.parts[2];
//! assert_eq!((line.from, line.meaning.as_str()), (17, "import_rate2 123.456 kWh"));
//! ```
//!
//! Sources: as of [`crate::p1`] and [`crate::mbus`]; the groups of OBIS codes by IEC 62056-6-1.
//!
//! Not supported: binary (DLMS) push frames, and the inside of encrypted M-Bus telegrams.

pub mod mbus;
pub mod p1;

use std::borrow::Cow;

use crate::{
    payload,
    reading::{Event, Info, Reading, Report, Unknown, escape},
};

/// Whether something is as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Mark {
    /// Nothing to say.
    #[default]
    Plain,
    /// It was checked, and is right.
    Right,
    /// Nobody knows what it means.
    Unknown,
    /// It is wrong.
    Wrong,
}

impl Mark {
    /// The name in JSON; None for what is plain.
    pub const fn name(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Right => Some("right"),
            Self::Unknown => Some("unknown"),
            Self::Wrong => Some("wrong"),
        }
    }
}

/// A stretch of a [`Piece`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Part {
    /// Where it begins, in bytes since the piece began.
    pub from: usize,
    /// Where it ends: the first byte that is not of it.
    pub to: usize,
    /// What it is: `OBIS code`, `VIF`.
    pub what: Cow<'static, str>,
    /// What it means; empty where there is no more to say. Bytes of the meter are escaped in it.
    pub meaning: String,
    /// Whether that is as it should be.
    pub mark: Mark,
    /// What it is made of; empty, or all of it.
    pub parts: Vec<Part>,
}

/// A telegram, a frame, or what stands between.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Piece {
    /// Where it begins, in bytes since the stream began.
    pub offset: u64,
    /// All of it.
    pub bytes: Vec<u8>,
    /// Whether they are no text, and shown as hex digits.
    pub is_binary: bool,
    /// What it is: `P1 telegram`, `long frame`, `noise`.
    pub what: Cow<'static, str>,
    /// What it means, or why it is refused.
    pub meaning: String,
    /// [`Mark::Wrong`] where it is refused.
    pub mark: Mark,
    /// What it is made of.
    pub parts: Vec<Part>,
    /// What an encrypted piece holds. The offsets in there count from the beginning of what was encrypted.
    pub inside: Vec<Piece>,
}

/// Whether bytes are shown as text and not as hex digits.
fn is_text(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\r' | b'\n' | b'\t'))
}

impl Piece {
    /// As a JSON object: `offset`, `length`, `what`, `meaning`, `mark` where there is one, `parts`, and `inside` where there is
    /// something. A part has `from`, `to`, `text` (of P1, where it is printable ASCII, CR, LF and TAB) or `hex`, `what`, `meaning`,
    /// `mark` and `parts` of its own.
    pub fn to_json(&self) -> String {
        let mut json = String::new();
        self.write_json(&mut json);
        json
    }

    fn write_json(&self, json: &mut String) {
        json.push_str(&format!("{{\"offset\":{},\"length\":{}", self.offset, self.bytes.len()));
        described(json, &self.what, &self.meaning, self.mark);
        self.write_parts(json, &self.parts);
        if !self.inside.is_empty() {
            json.push_str(",\"inside\":");
            list(json, &self.inside, |json, piece| piece.write_json(json));
        }
        json.push('}');
    }

    fn write_parts(&self, json: &mut String, parts: &[Part]) {
        if parts.is_empty() {
            return;
        }
        json.push_str(",\"parts\":");
        list(json, parts, |json, part| {
            json.push_str(&format!("{{\"from\":{},\"to\":{}", part.from, part.to));
            let bytes = self.of(part);
            match std::str::from_utf8(bytes).ok().filter(|_| is_text(bytes) && !self.is_binary) {
                Some(text) => {
                    json.push_str(",\"text\":");
                    payload::string(json, text);
                }
                None => {
                    json.push_str(",\"hex\":");
                    payload::string(json, &hex(bytes));
                }
            }
            described(json, &part.what, &part.meaning, part.mark);
            self.write_parts(json, &part.parts);
            json.push('}');
        });
    }

    /// The bytes of one of its parts.
    pub fn of(&self, part: &Part) -> &[u8] {
        self.bytes.get(part.from..part.to).unwrap_or_default()
    }
}

fn list<T>(json: &mut String, items: &[T], mut write: impl FnMut(&mut String, &T)) {
    json.push('[');
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            json.push(',');
        }
        write(json, item);
    }
    json.push(']');
}

fn described(json: &mut String, what: &str, meaning: &str, mark: Mark) {
    json.push_str(",\"what\":");
    payload::string(json, what);
    json.push_str(",\"meaning\":");
    payload::string(json, meaning);
    if let Some(mark) = mark.name() {
        json.push_str(",\"mark\":");
        payload::string(json, mark);
    }
}

/// Small hex digits, without anything between.
fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0x0F]);
    digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}

/// Cuts a piece into parts from front to back: what is taken begins where the part before it ended.
struct Cut<'a> {
    bytes: &'a [u8],
    at: usize,
    end: usize,
    parts: Vec<Part>,
}

impl<'a> Cut<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, end: bytes.len(), parts: Vec::new() }
    }

    /// What is not yet taken.
    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..self.end).unwrap_or_default()
    }

    /// The end of the next `length` bytes, or of those that are there.
    fn to(&self, length: usize) -> usize {
        self.at.saturating_add(length).min(self.end)
    }

    /// Takes the next `length` bytes, or those that are there. Nothing is no part.
    fn take(&mut self, length: usize, what: impl Into<Cow<'static, str>>, meaning: impl Into<String>) {
        self.mark(length, what, meaning, Mark::Plain);
    }

    /// Takes them with a mark.
    fn mark(&mut self, length: usize, what: impl Into<Cow<'static, str>>, meaning: impl Into<String>, mark: Mark) {
        let (from, to) = (self.at, self.to(length));
        if from < to {
            let (what, meaning) = (what.into(), meaning.into());
            self.parts.push(Part { from, to, what, meaning, mark, parts: Vec::new() });
            self.at = to;
        }
    }

    /// Takes them as a part that is made of parts; what `fill` leaves is the last of these. `fill` returns what the whole means.
    fn group(
        &mut self,
        length: usize,
        what: impl Into<Cow<'static, str>>,
        fill: impl FnOnce(&mut Self) -> (String, Mark),
    ) {
        let (from, to) = (self.at, self.to(length));
        if from == to {
            return;
        }
        let mut inner = Self { bytes: self.bytes, at: from, end: to, parts: Vec::new() };
        let (meaning, mark) = fill(&mut inner);
        let parts = inner.finish();
        self.parts.push(Part { from, to, what: what.into(), meaning, mark, parts });
        self.at = to;
    }

    /// The parts, of which the last is what nobody took.
    fn finish(mut self) -> Vec<Part> {
        self.mark(usize::MAX, "rest", "nothing that belongs here", Mark::Unknown);
        self.parts
    }
}

/// What reports say, without which meter says it.
#[derive(Debug, Default)]
struct Said {
    readings: Vec<Reading>,
    info: Vec<Info>,
    events: Vec<Event>,
    unknown: Vec<Unknown>,
    /// Meters, media and times in words.
    words: Vec<String>,
}

impl Said {
    fn add<M>(&mut self, report: Report<M>, meter: Option<String>) {
        self.words.extend(meter.map(|meter| format!("the meter is {}", escape(meter.as_bytes()))));
        self.words.push(match report.medium {
            crate::reading::Medium::Other(code) => format!("the medium is other ({code})"),
            medium => format!("the medium is {}", medium.name().replace('_', " ")),
        });
        self.words.extend(report.measured_at.map(|at| format!("at {at}")));
        self.readings.extend(report.readings);
        self.info.extend(report.info);
        self.events.extend(report.events);
        self.unknown.extend(report.unknown);
    }

    /// What it says beyond `before`.
    fn beyond(mut self, before: &Self) -> Self {
        without(&mut self.readings, &before.readings);
        without(&mut self.info, &before.info);
        without(&mut self.events, &before.events);
        without(&mut self.unknown, &before.unknown);
        without(&mut self.words, &before.words);
        self
    }

    /// In one line; empty where nothing is said.
    fn in_words(&self) -> String {
        let mut words: Vec<String> = self.readings.iter().map(reading).collect();
        words.extend(self.words.iter().cloned());
        for (name, text) in &self.info {
            words.push(match &**text {
                "" => format!("{name} is empty"),
                text => format!("{name}: {}", printable(text)),
            });
        }
        for event in &self.events {
            let end = event.end.map_or_else(|| "an unknown time".to_owned(), |end| end.to_string());
            let lasted = event.duration_s.map_or(String::new(), |seconds| format!(", lasted {seconds} s"));
            words.push(format!("{} until {end}{lasted}", event.event));
        }
        words.join("; ")
    }
}

/// Takes away one of `others` for each that it equals.
fn without<T: PartialEq>(items: &mut Vec<T>, others: &[T]) {
    for other in others {
        if let Some(index) = items.iter().position(|item| item == other) {
            items.remove(index);
        }
    }
}

/// A text of a report: the decoders leave only printable ASCII in it.
fn printable(text: &str) -> String {
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) { text.to_owned() } else { escape(text.as_bytes()) }
}

fn reading(reading: &Reading) -> String {
    let mut text = format!("{} {}", reading.register, reading.value);
    if !reading.unit.as_str().is_empty() {
        text.push_str(&format!(" {}", reading.unit));
    }
    let qualifiers = reading.qualifiers;
    for (name, number) in [
        ("storage", qualifiers.storage),
        ("tariff", u64::from(qualifiers.tariff)),
        ("subunit", u64::from(qualifiers.subunit)),
    ] {
        if number != 0 {
            text.push_str(&format!(", {name} {number}"));
        }
    }
    if let Some(function) = qualifiers.function.name() {
        text.push_str(&format!(", {function}"));
    }
    if let Some(at) = reading.at {
        text.push_str(&format!(", at {at}"));
    }
    if let Some(raw) = &reading.raw {
        text.push_str(&format!(" (as sent: {} {})", raw.0, raw.1));
    }
    text
}
