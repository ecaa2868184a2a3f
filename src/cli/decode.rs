//! `decode`: prints what telegrams say.
//!
//! Whether a file holds P1 or M-Bus is told by what begins in it first: a P1 header, or the four bytes that an M-Bus
//! frame begins with.

use std::{
    fs::File,
    io::{self, Read},
    path::PathBuf,
};

use super::{Failure, Format, Outcome, Output, table};
use crate::{
    mbus::{self, Stream},
    p1::{self, Dialect, Form, Key, LineEnds, Reader, Transcript},
    payload, port,
    reading::{Clock, Identity, Report, escape},
};

/// What a meter that does not name itself is called: there is no gateway here.
const GATEWAY: &str = "decode";
/// Likewise for the port of P1 meters.
const P1_PORT: &str = "p1";
/// Likewise for the port of M-Bus meters, which have their address behind it.
const MBUS_PORT: &str = "mbus";

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Captures of P1 telegrams or M-Bus frames, raw, as hex digits, hex dump, base64 or a log; `-` or none: standard input
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// How to print them
    #[arg(long, value_enum, default_value_t = Format::Json)]
    format: Format,
    /// Whose P1 telegrams they are, where that is not found right: netherlands, belgium, luxembourg, ...
    #[arg(long, value_name = "COUNTRY", value_parser = dialect)]
    dialect: Option<Dialect>,
    /// The key of encrypted P1 telegrams: 32 hexadecimal digits, on a second line the authentication key if any
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Hours that the clocks of M-Bus meters stand ahead of UTC in winter
    #[arg(long, value_name = "HOURS", default_value_t = 1, allow_negative_numbers = true,
          value_parser = clap::value_parser!(i8).range(-12..=14))]
    utc_offset: i8,
}

fn dialect(text: &str) -> Result<Dialect, String> {
    let named = Dialect::NAMES.iter().find(|(name, _)| *name == text).map(|(_, dialect)| *dialect);
    named.ok_or_else(|| format!("known are {}", Dialect::NAMES.map(|(name, _)| name).join(", ")))
}

pub(super) fn decode(arguments: &Arguments) -> Result<Outcome, Failure> {
    let key = arguments.key_file.as_deref().map(port::read_key).transpose().map_err(Failure::usage)?;
    let mut output = Output::new();
    let mut outcome = Outcome::Well;
    let stdin = [PathBuf::from("-")];
    let files = if arguments.files.is_empty() { &stdin[..] } else { &arguments.files };
    for file in files {
        let input: Box<dyn Read> = if file.as_os_str() == "-" {
            Box::new(io::stdin().lock())
        } else {
            match File::open(file) {
                Ok(input) => Box::new(input),
                Err(error) => {
                    eprintln!("{}: {error}", file.display());
                    outcome = Outcome::Partly;
                    continue;
                }
            }
        };
        let name = file.display().to_string();
        if decode_file(&name, input, arguments, key.clone(), &mut output)? == Outcome::Partly {
            outcome = Outcome::Partly;
        }
    }
    output.finish()?;
    Ok(outcome)
}

/// Which wire the bytes of a file come from.
enum Wire {
    /// Neither a header of P1 nor a frame of M-Bus was there yet.
    Doubt(Doubt),
    P1(Box<Reader>),
    Mbus(Stream),
}

/// The beginning of a file, while it is not known what it holds.
#[derive(Default)]
struct Doubt {
    held: Vec<u8>,
    /// How far in `held` nothing begins.
    looked: usize,
    /// How many bytes before `held` were given up.
    skipped: u64,
}

/// What begins in a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    P1,
    Mbus,
}

impl Doubt {
    /// More noise than that before the first header is told of, but not kept.
    const MOST: usize = 64 * 1024;

    /// Adds bytes; returns what begins first, if anything does.
    fn push(&mut self, bytes: &[u8]) -> Option<Kind> {
        self.held.extend_from_slice(bytes);
        while let Some(rest) = self.held.get(self.looked..).filter(|rest| !rest.is_empty()) {
            match (p1::begins(rest), mbus::begins(rest)) {
                (Some(true), _) => return Some(Kind::P1),
                (_, Some(true)) => return Some(Kind::Mbus),
                (Some(false), Some(false)) => self.looked = self.looked.saturating_add(1),
                // More bytes are needed.
                _ => break,
            }
        }
        if self.looked > Self::MOST {
            self.held.drain(..self.looked);
            self.skipped = self.skipped.saturating_add(self.looked as u64);
            self.looked = 0;
        }
        None
    }
}

/// A file while it is read.
struct Reading<'a> {
    name: &'a str,
    arguments: &'a Arguments,
    key: Option<Key>,
    output: &'a mut Output,
    wire: Wire,
    /// Where in the bytes of the port those of the reader begin.
    base: u64,
    telegrams: u64,
    rejected: u64,
    restored: u64,
}

impl Reading<'_> {
    fn push(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        match &mut self.wire {
            Wire::P1(reader) => reader.push(bytes),
            Wire::Mbus(stream) => stream.push(bytes),
            Wire::Doubt(doubt) => {
                if let Some(kind) = doubt.push(bytes) {
                    let doubt = std::mem::take(doubt);
                    self.decide(kind, &doubt);
                }
            }
        }
        self.poll()
    }

    fn decide(&mut self, kind: Kind, doubt: &Doubt) {
        self.base = doubt.skipped;
        if self.base > 0 {
            self.rejected = self.rejected.saturating_add(1);
            eprintln!("{}:0: {} bytes that are neither of P1 nor of M-Bus", self.name, self.base);
        }
        self.wire = match kind {
            Kind::P1 => {
                let mut reader = Reader::new(self.arguments.dialect, self.key.clone());
                reader.push(&doubt.held);
                Wire::P1(Box::new(reader))
            }
            Kind::Mbus => {
                let mut stream = Stream::new(self.arguments.utc_offset);
                stream.push(&doubt.held);
                Wire::Mbus(stream)
            }
        };
    }

    /// Prints what can be had of the bytes so far.
    fn poll(&mut self) -> Result<(), Failure> {
        let format = self.arguments.format;
        loop {
            let (reports, port) = match &mut self.wire {
                Wire::Doubt(_) => return Ok(()),
                Wire::P1(reader) => match reader.poll() {
                    None => return Ok(()),
                    Some(Ok(telegram)) => {
                        self.restored =
                            self.restored.saturating_add(u64::from(telegram.line_ends == LineEnds::Restored));
                        (Ok(telegram.decoded.reports), P1_PORT)
                    }
                    Some(Err(piece)) => (Err((piece.offset, piece.to_string())), P1_PORT),
                },
                Wire::Mbus(stream) => match stream.poll() {
                    None => return Ok(()),
                    Some(Ok(piece)) => {
                        if piece.decoded.more_follow {
                            let offset = piece.offset.saturating_add(self.base);
                            eprintln!("{}:{offset}: the meter has more telegrams, which are not here", self.name);
                        }
                        (Ok(vec![piece.decoded.report]), MBUS_PORT)
                    }
                    Some(Err(piece)) => (Err((piece.offset, piece.to_string())), MBUS_PORT),
                },
            };
            match reports {
                Ok(reports) => {
                    self.telegrams = self.telegrams.saturating_add(1);
                    for report in reports {
                        print(&report.rename(|identity: Identity| identity.name(GATEWAY, port)), format, self.output)?;
                    }
                }
                Err((offset, reason)) => {
                    self.rejected = self.rejected.saturating_add(1);
                    eprintln!("{}:{}: {reason}", self.name, offset.saturating_add(self.base));
                }
            }
        }
    }

    /// The file ends; says what it holds if not what was hoped for.
    fn end(&mut self) -> Result<Option<&'static str>, Failure> {
        if let Wire::Doubt(doubt) = &mut self.wire {
            let doubt = std::mem::take(doubt);
            if doubt.held.is_empty() && doubt.skipped == 0 {
                return Ok(Some("is empty"));
            }
            if !is_odd_telegram(&doubt, self) {
                return Ok(Some(if is_of_master(&doubt) { NO_ANSWER } else { NEITHER }));
            }
            self.decide(Kind::P1, &doubt);
        }
        match &mut self.wire {
            Wire::Doubt(_) => {}
            Wire::P1(reader) => reader.end(),
            Wire::Mbus(stream) => stream.end(),
        }
        self.poll()?;
        let nothing = self.telegrams == 0 && self.rejected == 0;
        Ok(nothing.then_some(if matches!(self.wire, Wire::Mbus(_)) { NO_ANSWER } else { NEITHER }))
    }
}

const NEITHER: &str = "holds neither a P1 telegram nor an M-Bus frame";
const NO_ANSWER: &str = "holds requests of an M-Bus master, and no meter's answer";

/// Whether bytes in which nothing begins hold a telegram all the same: one with a header that is none of the standard.
fn is_odd_telegram(doubt: &Doubt, file: &Reading<'_>) -> bool {
    let mut reader = Reader::new(file.arguments.dialect, None);
    reader.push(&doubt.held);
    reader.end();
    doubt.skipped == 0 && std::iter::from_fn(|| reader.poll()).any(|result| result.is_ok())
}

/// Whether bytes without any answer are what a master sends.
fn is_of_master(doubt: &Doubt) -> bool {
    let mut stream = Stream::new(0);
    stream.push(&doubt.held);
    stream.end();
    doubt.skipped == 0 && stream.poll().is_none() && stream.requests() > 0
}

fn decode_file(
    name: &str,
    mut input: Box<dyn Read>,
    arguments: &Arguments,
    key: Option<Key>,
    output: &mut Output,
) -> Result<Outcome, Failure> {
    let wire = Wire::Doubt(Doubt::default());
    let mut file = Reading { name, arguments, key, output, wire, base: 0, telegrams: 0, rejected: 0, restored: 0 };
    let mut buffer = vec![0u8; 64 * 1024];
    let mut transcript = Transcript::new();
    let complaint = loop {
        let count = match input.read(&mut buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                eprintln!("{name}: {error}");
                return Ok(Outcome::Partly);
            }
        };
        if count == 0 {
            file.push(&transcript.end())?;
            break file.end()?;
        }
        file.push(&transcript.push(buffer.get(..count).unwrap_or_default()))?;
    };
    if let Some(form) = transcript.form().filter(|form| *form != Form::Raw) {
        eprintln!("{name}: read as {}{}", form.name(), left_out(transcript.left_out()));
    }
    if file.restored > 0 {
        eprintln!("{name}: {}", other_line_ends(file.restored));
    }
    if let Some(complaint) = complaint {
        eprintln!("{name}: {complaint}");
    }
    Ok(if file.telegrams > 0 && file.rejected == 0 { Outcome::Well } else { Outcome::Partly })
}

/// That line ends had to be restored.
pub(super) fn other_line_ends(telegrams: u64) -> String {
    match telegrams {
        1 => {
            "1 telegram came with other line ends than its meter sent; its CRC fits once these are restored".to_owned()
        }
        _ => format!(
            "{telegrams} telegrams came with other line ends than their meter sent; their CRC fits once these are restored"
        ),
    }
}

/// What a log held besides.
pub(super) fn left_out(lines: u64) -> String {
    match lines {
        0 => String::new(),
        1 => "; 1 line is no part of a telegram".to_owned(),
        _ => format!("; {lines} lines are no part of a telegram"),
    }
}

pub(super) fn print(report: &Report<String>, format: Format, output: &mut Output) -> Result<(), Failure> {
    if format == Format::Json {
        return output.line(&payload::decoded(report));
    }
    let at = match (report.measured_at, report.clock) {
        (Some(at), Clock::Telegram) => format!("at {at} by the clock of the telegram"),
        (Some(at), _) => format!("at {at}"),
        (None, _) => "without a time of its own".to_owned(),
    };
    let medium = report.medium.name().replace('_', " ");
    output.line(&format!("{medium} meter {}, {at}", escape(report.meter.as_bytes())))?;
    let mut readings = table::Table::default();
    for reading in &report.readings {
        let mut remarks: Vec<_> =
            table::remarks(reading).into_iter().map(|(name, value)| format!("{name} {value}")).collect();
        remarks.extend(reading.at.map(|at| format!("at {at}")));
        remarks.extend(reading.raw.as_ref().map(|raw| format!("as sent: {} {}", raw.0, raw.1)));
        let (value, unit) = (reading.value.to_string(), reading.unit.to_string());
        readings.row(vec![format!("  {}", reading.register), value, unit, remarks.join(", ")]);
    }
    for line in readings.lines(1) {
        output.line(&line)?;
    }
    let mut texts = table::Table::default();
    for (name, text) in &report.info {
        let text = match &**text {
            "" => "-".to_owned(),
            // As it is, with single backslashes: the decoder leaves nothing else.
            text if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) => text.to_owned(),
            text => escape(text.as_bytes()),
        };
        texts.row(vec![format!("  {name}"), text]);
    }
    for event in &report.events {
        let end = event.end.map_or_else(|| "an unknown time".to_owned(), |end| end.to_string());
        let lasted = event.duration_s.map_or(String::new(), |seconds| format!(", lasted {seconds} s"));
        texts.row(vec![format!("  {}", event.event), format!("until {end}{lasted}")]);
    }
    for unknown in &report.unknown {
        // A P1 code has a bracket behind it.
        let gap = if unknown.code.is_empty() || unknown.text.starts_with('(') { "" } else { " " };
        texts.row(vec!["  unknown".to_owned(), format!("{}{gap}{}", unknown.code, unknown.text)]);
    }
    // No column of numbers.
    for line in texts.lines(usize::MAX) {
        output.line(&line)?;
    }
    output.line("")
}
