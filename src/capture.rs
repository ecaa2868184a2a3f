//! Captures: what a port brought, and when, as lines of JSON.
//!
//! Enters: [`Entry`]s, or the bytes of a capture. Leaves: lines, or entries and the places of lines that are none. A
//! capture may be cut anywhere, appended to, put behind another one, and packed by any program that packs text.
//!
//! Two kinds of lines, each a JSON object:
//!
//! ```json
//! {"capture":1,"port":"p1","wire":"p1","address":"/dev/ttyUSB0","settings":"115200 8N1","at":"2026-11-22T10:20:00.123456Z"}
//! {"port":"p1","us":1000123,"at":"2026-11-22T10:20:01.123579Z","text":"/SIM5\\meter\r\n\r\n"}
//! {"port":"bus","us":1500000,"at":"2026-11-22T10:20:01.623456Z","to":"meter","hex":"105bfe5916"}
//! {"port":"bus","us":1600000,"at":"2026-11-22T10:20:01.723456Z","lost":3}
//! ```
//!
//! - An *opening* begins with `capture`, the version of this format. From then on its `port` is known: what is spoken there (`wire`:
//!   `p1` or `mbus`), the `address` it was read at and the line `settings`, both for people only. It comes again where a recording begins
//!   anew: what was not whole before it is not continued behind it, unless it says `"goes_on":true`, which the first ones of a rotated file
//!   do. Rotated files are one capture when they stand behind one another, oldest first.
//! - A *chunk* is what one read of a port gave: `us`, microseconds of a monotonic clock since the last opening of its port; `at`, what
//!   the wall clock showed (UTC; it may jump); and the bytes, as `text` where all of them are printable ASCII, CR, LF or TAB, as `hex`
//!   otherwise. `to` is `meter` for bytes that went to the meters, and absent for those that came from them. In place of bytes, `lost`
//!   says how many chunks the recorder missed here.
//!
//! Readers ignore keys that they do not know.
//!
//! Source: this project's own; no format was found that has the bytes of a port with both clocks and both directions and can be read
//! without a tool of its own.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The version of the format.
const VERSION: u32 = 1;

/// No line is longer: a chunk has at most 64 KiB.
const LONGEST_LINE: usize = 256 * 1024;

/// What is spoken at a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Wire {
    /// P1 telegrams.
    P1,
    /// M-Bus frames, of a master and of meters.
    Mbus,
}

/// Whither bytes went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Way {
    /// From the meters.
    #[default]
    FromMeter,
    /// To the meters: requests of an M-Bus master.
    ToMeter,
}

/// That a port is recorded from here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// Its name.
    pub port: String,
    /// What is spoken there.
    pub wire: Wire,
    /// Where it was read; empty where that is not known.
    pub address: String,
    /// How the line was set; empty where that is not known.
    pub settings: String,
    /// When, to the microsecond.
    pub at: Timestamp,
    /// Whether the recording goes on here in a new file: nothing is missing before it.
    pub goes_on: bool,
}

/// What one read of a port gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The port's name.
    pub port: String,
    /// Microseconds of a monotonic clock since the opening.
    pub us: u64,
    /// What the wall clock showed, to the microsecond.
    pub at: Timestamp,
    /// What it is.
    pub what: What,
}

/// What a chunk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Bytes, at most 64 KiB.
    Bytes(Way, Vec<u8>),
    /// So many chunks were missed.
    Lost(u64),
}

/// A line of a capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A port is recorded from here.
    Opening(Opening),
    /// What it brought.
    Chunk(Chunk),
}

/// A line is no part of a capture.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct BadLine {
    /// Which one, from 1.
    pub line: u64,
    /// Where it begins, in bytes since the capture began.
    pub offset: u64,
    /// Why.
    pub reason: Reason,
}

/// Why a line is no part of a capture.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// It is no such object.
    #[error("no line of a capture: {0}")]
    Syntax(String),
    /// It is of another version.
    #[error("a capture of version {0}; this program knows 1: a newer one reads it")]
    Version(u32),
    /// The bytes are no hex digits.
    #[error("`hex` is no pairs of hexadecimal digits")]
    Hex,
    /// None or several of `text`, `hex`, `lost`.
    #[error("a chunk has one of `text`, `hex` and `lost`")]
    Bytes,
    /// It does not end.
    #[error("longer than 256 KiB")]
    TooLong,
    /// The capture ends within it.
    #[error("breaks off: the recorder was killed, or the disk was full")]
    Torn,
    /// A chunk of a port without an opening.
    #[error("port `{0}` has no opening before it: is the beginning of the capture missing?")]
    UnknownPort(String),
}

/// As it stands in a line.
#[derive(Debug, Serialize, Deserialize)]
struct Line<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    capture: Option<u32>,
    port: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    wire: Option<Wire>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    address: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    settings: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    us: Option<u64>,
    at: Timestamp,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    goes_on: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<To>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<std::borrow::Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hex: Option<std::borrow::Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum To {
    Meter,
}

impl fmt::Display for Entry {
    /// The line, without its end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = Line {
            capture: None,
            port: String::new(),
            wire: None,
            address: String::new(),
            settings: String::new(),
            us: None,
            at: Timestamp::UNIX_EPOCH,
            goes_on: false,
            to: None,
            text: None,
            hex: None,
            lost: None,
        };
        match self {
            Self::Opening(opening) => {
                line.capture = Some(VERSION);
                line.port.clone_from(&opening.port);
                line.wire = Some(opening.wire);
                line.address.clone_from(&opening.address);
                line.settings.clone_from(&opening.settings);
                line.at = microseconds(opening.at);
                line.goes_on = opening.goes_on;
            }
            Self::Chunk(chunk) => {
                line.port.clone_from(&chunk.port);
                line.us = Some(chunk.us);
                line.at = microseconds(chunk.at);
                match &chunk.what {
                    What::Lost(chunks) => line.lost = Some(*chunks),
                    What::Bytes(way, bytes) => {
                        line.to = (*way == Way::ToMeter).then_some(To::Meter);
                        match std::str::from_utf8(bytes).ok().filter(|_| bytes.iter().all(is_text)) {
                            Some(text) => line.text = Some(text.into()),
                            None => line.hex = Some(hex(bytes).into()),
                        }
                    }
                }
            }
        }
        f.write_str(&serde_json::to_string(&line).map_err(|_| fmt::Error)?)
    }
}

/// Finer than that nobody's clock is read, and the text of an entry is the entry.
fn microseconds(at: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(at.as_microsecond()).unwrap_or(at)
}

fn is_text(byte: &u8) -> bool {
    matches!(byte, b' '..=b'~' | b'\r' | b'\n' | b'\t')
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl Entry {
    /// From a line, with or without its end.
    pub fn parse(line: &[u8]) -> Result<Self, Reason> {
        let line: Line<'_> = serde_json::from_slice(line).map_err(|error| {
            // The line number of a text of one line says nothing.
            let text = error.to_string();
            Reason::Syntax(text.split_once(" at line ").map_or(text.as_str(), |(before, _)| before).to_owned())
        })?;
        let Line { capture, port, wire, address, settings, us, at, goes_on, to, text, hex, lost } = line;
        if let Some(version) = capture {
            if version != VERSION {
                return Err(Reason::Version(version));
            }
            let wire = wire.ok_or_else(|| Reason::Syntax("an opening needs `wire`".into()))?;
            return Ok(Self::Opening(Opening { port, wire, address, settings, at, goes_on }));
        }
        let us = us.ok_or_else(|| Reason::Syntax("a chunk needs `us`".into()))?;
        let way = if to.is_some() { Way::ToMeter } else { Way::FromMeter };
        let what = match (text, hex, lost) {
            (Some(text), None, None) => What::Bytes(way, text.into_owned().into_bytes()),
            (None, Some(hex), None) => What::Bytes(way, from_hex(&hex).ok_or(Reason::Hex)?),
            (None, None, Some(chunks)) => What::Lost(chunks),
            _ => return Err(Reason::Bytes),
        };
        Ok(Self::Chunk(Chunk { port, us, at, what }))
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, half) = text.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let byte = |&[high, low]: &[u8; 2]| Some(digit(high)? << 4 | digit(low)?);
    half.is_empty().then(|| pairs.iter().map(byte).collect())?
}

/// Whether a file that begins so is a capture: None when more bytes are needed. One whose beginning is missing is a capture too.
pub fn begins(bytes: &[u8]) -> Option<bool> {
    let begins = [&b"{\"capture\":"[..], b"{\"port\":"];
    if begins.iter().any(|begin| bytes.starts_with(begin)) {
        return Some(true);
    }
    if begins.iter().any(|begin| begin.starts_with(bytes)) { None } else { Some(false) }
}

/// Cuts the bytes of a capture into entries. Holds at most a line besides what the last [`push`](Reader::push) brought, and the names
/// of the ports.
#[derive(Debug, Default)]
pub struct Reader {
    buffer: Vec<u8>,
    /// Where in `buffer` the unconsumed bytes begin.
    head: usize,
    /// How many of these hold no line end.
    looked: usize,
    offset: u64,
    line: u64,
    ports: Vec<(String, Wire)>,
    /// Within a line that is too long.
    skipping: bool,
    ended: bool,
}

/// Far more ports than a machine has: only noise gets there.
const MOST_PORTS: usize = 1000;

impl Reader {
    /// At the beginning of a capture.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes. Call [`poll`](Reader::poll) until it returns None before the next push.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.head);
        self.head = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Says that the capture ends.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// In which line, from 1, stood what [`poll`](Reader::poll) gave last.
    pub fn line(&self) -> u64 {
        self.line
    }

    /// What is spoken at a port that was opened.
    pub fn wire(&self, port: &str) -> Option<Wire> {
        self.ports.iter().find(|(name, _)| name == port).map(|(_, wire)| *wire)
    }

    /// The ports that were opened so far, in the order of their first opening.
    pub fn ports(&self) -> impl Iterator<Item = (&str, Wire)> {
        self.ports.iter().map(|(name, wire)| (name.as_str(), *wire))
    }

    /// The next entry with the offset of its line, or a line that is none; None when more bytes are needed.
    pub fn poll(&mut self) -> Option<Result<(u64, Entry), BadLine>> {
        loop {
            let rest = self.buffer.get(self.head..).unwrap_or_default();
            let unseen = rest.get(self.looked..).unwrap_or_default();
            let (line, is_whole) = match memchr::memchr(b'\n', unseen) {
                Some(end) => (rest.get(..=self.looked.saturating_add(end)).unwrap_or_default(), true),
                None if rest.len() > LONGEST_LINE || (self.ended && !rest.is_empty()) => (rest, false),
                None => {
                    self.looked = rest.len();
                    return None;
                }
            };
            self.looked = 0;
            let (offset, length, is_long) = (self.offset, line.len(), line.len() > LONGEST_LINE);
            let skipped = std::mem::replace(&mut self.skipping, !is_whole);
            let result = match () {
                () if is_long => Err(Reason::TooLong),
                () if line.trim_ascii().is_empty() => Ok(None),
                // Without its end it may be whole all the same.
                () => match Entry::parse(line) {
                    // A recorder that goes on ends the line that was torn.
                    Err(Reason::Syntax(_))
                        if !is_whole || (begins(line) == Some(true) && !line.trim_ascii().ends_with(b"}")) =>
                    {
                        Err(Reason::Torn)
                    }
                    result => result.map(Some),
                },
            };
            if !skipped {
                self.line = self.line.saturating_add(1);
            }
            self.head = self.head.saturating_add(length);
            self.offset = offset.saturating_add(length as u64);
            if skipped {
                continue;
            }
            match result.and_then(|entry| entry.map(|entry| self.admit(entry)).transpose()) {
                Ok(None) => {}
                Ok(Some(entry)) => return Some(Ok((offset, entry))),
                Err(reason) => return Some(Err(BadLine { line: self.line, offset, reason })),
            }
        }
    }

    fn admit(&mut self, entry: Entry) -> Result<Entry, Reason> {
        match &entry {
            Entry::Opening(opening) => {
                self.ports.retain(|(name, _)| *name != opening.port);
                if self.ports.len() >= MOST_PORTS {
                    self.ports.clear();
                }
                self.ports.push((opening.port.clone(), opening.wire));
            }
            Entry::Chunk(chunk) if self.wire(&chunk.port).is_none() => {
                return Err(Reason::UnknownPort(chunk.port.clone()));
            }
            Entry::Chunk(_) => {}
        }
        Ok(entry)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn opening(port: &str, wire: Wire) -> Entry {
        Entry::Opening(Opening {
            port: port.into(),
            wire,
            address: "/dev/ttyUSB0".into(),
            settings: "115200 8N1".into(),
            at: at("2026-11-22T10:20:00.123456Z"),
            goes_on: false,
        })
    }

    fn chunk(port: &str, what: What) -> Entry {
        Entry::Chunk(Chunk { port: port.into(), us: 1_000_123, at: at("2026-11-22T10:20:01.123579Z"), what })
    }

    fn read(bytes: &[u8], size: usize) -> Vec<Result<(u64, Entry), BadLine>> {
        let mut reader = Reader::new();
        let mut all = Vec::new();
        for piece in bytes.chunks(size) {
            reader.push(piece);
            all.extend(std::iter::from_fn(|| reader.poll()));
        }
        reader.end();
        all.extend(std::iter::from_fn(|| reader.poll()));
        all
    }

    #[test]
    fn lines_are_as_documented() {
        let lines = [
            (
                opening("p1", Wire::P1),
                r#"{"capture":1,"port":"p1","wire":"p1","address":"/dev/ttyUSB0","settings":"115200 8N1","at":"2026-11-22T10:20:00.123456Z"}"#,
            ),
            (
                chunk("p1", What::Bytes(Way::FromMeter, b"/SIM5\\meter\r\n\r\n".to_vec())),
                r#"{"port":"p1","us":1000123,"at":"2026-11-22T10:20:01.123579Z","text":"/SIM5\\meter\r\n\r\n"}"#,
            ),
            (
                chunk("bus", What::Bytes(Way::ToMeter, vec![0x10, 0x5B, 0xFE, 0x59, 0x16])),
                r#"{"port":"bus","us":1000123,"at":"2026-11-22T10:20:01.123579Z","to":"meter","hex":"105bfe5916"}"#,
            ),
            (chunk("bus", What::Lost(3)), r#"{"port":"bus","us":1000123,"at":"2026-11-22T10:20:01.123579Z","lost":3}"#),
        ];
        for (entry, line) in lines {
            assert_eq!(entry.to_string(), line);
            assert_eq!(Entry::parse(line.as_bytes()), Ok(entry.clone()));
            let newer = line.replacen('{', "{\"new\":[{}],", 1);
            assert_eq!(Entry::parse(newer.as_bytes()), Ok(entry));
        }
        assert_eq!(
            [&b""[..], b"{\"cap", b"{\"capture\":1", b"{\"po", b"{\"port\":", b"{\"p1", b"/XYZ5"].map(begins),
            [None, None, Some(true), None, Some(true), Some(false), Some(false)]
        );
    }

    #[test]
    fn what_is_none_is_said_with_its_place_and_the_rest_is_read() {
        let good = opening("p1", Wire::P1).to_string();
        let bad = [
            ("nonsense", "line 2: no line of a capture"),
            (r#"{"capture":2,"port":"p1","wire":"p1","at":"2026-11-22T10:20:00Z"}"#, "line 2: a capture of version 2"),
            (r#"{"port":"p1","us":1,"at":"2026-11-22T10:20:00Z","hex":"1"}"#, "line 2: `hex` is no pairs"),
            (r#"{"port":"p1","us":1,"at":"2026-11-22T10:20:00Z"}"#, "line 2: a chunk has one of"),
            (r#"{"port":"p2","us":1,"at":"2026-11-22T10:20:00Z","lost":1}"#, "line 2: port `p2` has no opening"),
            (r#"{"port":"p1","us":1,"at":"yesterday","lost":1}"#, "line 2: no line of a capture"),
            (&"x".repeat(LONGEST_LINE * 3), "line 2: longer than"),
        ];
        for (line, complaint) in bad {
            let text = format!("{good}\n{line}\n\n{good}\n");
            for size in [7, 1000, text.len()] {
                let entries = read(text.as_bytes(), size);
                assert_eq!(entries.len(), 3, "{complaint}: {entries:?}");
                let error = entries[1].as_ref().unwrap_err();
                assert!(error.to_string().starts_with(complaint), "{error}");
                assert_eq!(error.offset, good.len() as u64 + 1);
                assert!(entries[2].is_ok());
            }
        }
        let torn = format!("{good}\n{}", good.get(..40).unwrap());
        assert_eq!(read(torn.as_bytes(), 9)[1].as_ref().unwrap_err().reason, Reason::Torn);
        // Without the last line end it is whole.
        assert!(read(format!("{good}\n{good}").as_bytes(), 9).iter().all(Result::is_ok));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            to_meter: bool,
            us: u64,
            micros in -1_000_000_000_000i64..4_000_000_000_000_000,
            port in ".{0,12}",
            size in 1usize..400,
        ) {
            let way = if to_meter { Way::ToMeter } else { Way::FromMeter };
            let at = Timestamp::from_microsecond(micros).unwrap();
            let chunk = Entry::Chunk(Chunk { port: port.clone(), us, at, what: What::Bytes(way, bytes) });
            let text = format!("{}\n{chunk}\n", opening(&port, Wire::Mbus));
            let entries = read(text.as_bytes(), size);
            prop_assert_eq!(&entries[1].as_ref().unwrap().1, &chunk);
        }

        #[test]
        fn no_bytes_are_too_much(bytes in proptest::collection::vec(any::<u8>(), 0..600), size in 1usize..50) {
            read(&bytes, size);
        }
    }
}
