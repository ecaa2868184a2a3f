//! `decode`: prints what telegrams say, or with `--explain` what each byte of them is.
//!
//! Whether a file holds P1 or M-Bus is told by what begins in it first: a P1 header, or the four bytes that an M-Bus
//! frame begins with. A capture says it of each of its ports; each port is read for itself, in the order of time.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
};

use super::{
    Failure, Format, Outcome, Output, dump,
    input::{Doubt, Event, Input, Trouble},
    table,
};
use crate::{
    capture::{self, What},
    explain::{self, Piece},
    mbus::Stream,
    p1::{Dialect, Form, Key, LineEnds, Reader},
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
    /// P1 telegrams or M-Bus frames: captures of `record`, and what is raw, hex digits, hex dump, base64 or a log; also gzip;
    /// `-` or none: standard input
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// How to print them; by default as JSON, and with --explain as a table
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// What each byte is, also of what is rejected: places, bytes and their meanings
    #[arg(long)]
    explain: bool,
    #[command(flatten)]
    how: How,
}

/// How telegrams are read.
#[derive(Debug, clap::Args)]
pub(super) struct How {
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

pub(super) fn dialect(text: &str) -> Result<Dialect, String> {
    let named = Dialect::NAMES.iter().find(|(name, _)| *name == text).map(|(_, dialect)| *dialect);
    named.ok_or_else(|| format!("known are {}", Dialect::NAMES.map(|(name, _)| name).join(", ")))
}

impl How {
    pub(super) fn key(&self) -> Result<Option<Key>, Failure> {
        self.key_file.as_deref().map(port::read_key).transpose().map_err(Failure::usage)
    }
}

pub(super) fn decode(arguments: &Arguments) -> Result<Outcome, Failure> {
    let key = arguments.how.key()?;
    let mut output = Output::new();
    let mut outcome = Outcome::Well;
    let stdin = [PathBuf::from("-")];
    let files = if arguments.files.is_empty() { &stdin[..] } else { &arguments.files };
    let default = if arguments.explain { Format::Table } else { Format::Json };
    let format = arguments.format.unwrap_or(default);
    let dump = dump::Dump::new(format);
    for file in files {
        let mut visit = |place: &Place<'_>, found: Found| match found {
            Found::Telegram(reports) if !arguments.explain => {
                reports.iter().try_for_each(|report| print(report, format, &mut output))
            }
            Found::Telegram(_) => Ok(()),
            Found::Piece(piece) => dump.print(place, &piece, &mut output),
        };
        if read(file, &arguments.how, key.as_ref(), arguments.explain, &mut visit)? == Outcome::Partly {
            outcome = Outcome::Partly;
        }
    }
    output.finish()?;
    Ok(outcome)
}

/// Where something was found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    /// In a capture: the port, and the line in which its first byte stands.
    pub(super) port: Option<(&'a str, u64)>,
    /// In bytes of the port.
    pub(super) offset: u64,
}

/// What was found.
pub(super) enum Found {
    /// What the meters of a telegram or a readout say.
    Telegram(Vec<Report<String>>),
    /// What its bytes are, where that was asked for.
    Piece(Box<Piece>),
}

/// Shows what is found.
pub(super) type Visit<'a> = dyn FnMut(&Place<'_>, Found) -> Result<(), Failure> + 'a;

/// Reads a file; names on standard error what is rejected in it.
pub(super) fn read(
    path: &Path,
    how: &How,
    key: Option<&Key>,
    explain: bool,
    visit: &mut Visit<'_>,
) -> Result<Outcome, Failure> {
    let name = path.display().to_string();
    let input = match Input::open(path) {
        Ok(input) => input,
        Err(error) => {
            say!("{name}: {error}");
            return Ok(Outcome::Partly);
        }
    };
    let mut reading = Reading { file: &name, how, key, explain, visit, ports: Vec::new(), complaints: 0 };
    reading.all(input)
}

/// A file while it is read.
struct Reading<'a, 'b> {
    file: &'a str,
    how: &'a How,
    key: Option<&'a Key>,
    explain: bool,
    visit: &'a mut Visit<'b>,
    ports: Vec<Port>,
    /// What of the file could not be read.
    complaints: u64,
}

impl Reading<'_, '_> {
    fn all(&mut self, mut input: Input) -> Result<Outcome, Failure> {
        for event in &mut input {
            match event {
                Ok(Event::Bytes(bytes)) => {
                    if self.ports.is_empty() {
                        self.ports.push(Port::new(None, Wire::Doubt(Doubt::default())));
                    }
                    self.push(0, &bytes)?;
                }
                Ok(Event::Opening(_, opening)) => {
                    let wire = opening.wire;
                    if let Some(at) = self.ports.iter().position(|port| port.name.as_ref() == Some(&opening.port)) {
                        // A recording begins anew: what was open has no end.
                        if !opening.goes_on {
                            self.end(at)?;
                        }
                    } else {
                        self.ports.push(Port::new(Some(opening.port), self.wire(wire)));
                    }
                }
                Ok(Event::Chunk(place, _, chunk)) => {
                    let Some(at) = self.ports.iter().position(|port| port.name.as_ref() == Some(&chunk.port)) else {
                        continue;
                    };
                    match chunk.what {
                        What::Lost(chunks) => {
                            self.end(at)?;
                            self.complaints = self.complaints.saturating_add(1);
                            let port = escape(chunk.port.as_bytes());
                            say!("{}:{}: port {port}: the recorder missed {chunks} chunks here", self.file, place.line);
                        }
                        What::Bytes(_, bytes) => {
                            if let Some(port) = self.ports.get_mut(at) {
                                port.lines.push_back((port.pushed, place.line));
                            }
                            self.push(at, &bytes)?;
                        }
                    }
                }
                Err(trouble) => {
                    self.complaints = self.complaints.saturating_add(1);
                    match trouble {
                        Trouble::Line(bad) => say!("{}:{}: {}", self.file, bad.line, bad.reason),
                        trouble => say!("{}: {trouble}", self.file),
                    }
                }
            }
        }
        let is_capture = input.is_capture();
        let mut nothing = None;
        for at in 0..self.ports.len() {
            nothing = self.finish(at)?;
        }
        if let Some((form, lines)) = input.form().filter(|(form, _)| *form != Form::Raw) {
            say!("{}: read as {}{}", self.file, form.name(), left_out(lines));
        }
        let sum = |count: fn(&Port) -> u64| self.ports.iter().map(count).fold(0u64, u64::saturating_add);
        let restored = sum(|port| port.restored);
        if restored > 0 {
            say!("{}: {}", self.file, other_line_ends(restored));
        }
        let (telegrams, rejected) = (sum(|port| port.telegrams), sum(|port| port.rejected));
        if self.complaints == 0 && telegrams == 0 && rejected == 0 {
            let complaint = match nothing {
                _ if is_capture => "no port in it brought a telegram or an answer",
                Some(complaint) => complaint,
                None => "is empty",
            };
            say!("{}: {complaint}", self.file);
        }
        let well = telegrams > 0 && rejected == 0 && self.complaints == 0;
        Ok(if well { Outcome::Well } else { Outcome::Partly })
    }

    fn wire(&self, wire: capture::Wire) -> Wire {
        let Self { how, key, explain, .. } = self;
        match wire {
            capture::Wire::P1 => Wire::p1(how, *key, *explain),
            capture::Wire::Mbus => Wire::mbus(how, *explain),
        }
    }

    fn push(&mut self, at: usize, bytes: &[u8]) -> Result<(), Failure> {
        let Some(port) = self.ports.get_mut(at) else { return Ok(()) };
        port.pushed = port.pushed.saturating_add(bytes.len() as u64);
        match &mut port.wire {
            Wire::Doubt(doubt) => {
                if let Some(kind) = doubt.push(bytes) {
                    let doubt = std::mem::take(doubt);
                    self.decide(at, kind, &doubt);
                }
            }
            wire => wire.push(bytes),
        }
        self.poll(at)
    }

    fn decide(&mut self, at: usize, wire: capture::Wire, doubt: &Doubt) {
        let mut wire = self.wire(wire);
        wire.push(&doubt.held);
        let Some(port) = self.ports.get_mut(at) else { return };
        port.base = doubt.skipped;
        if port.base > 0 {
            port.rejected = port.rejected.saturating_add(1);
            say!("{}:0: {} bytes that are neither of P1 nor of M-Bus", self.file, port.base);
        }
        port.wire = wire;
    }

    /// What is open at a port ends here; more may come.
    fn end(&mut self, at: usize) -> Result<(), Failure> {
        if let Some(port) = self.ports.get_mut(at) {
            port.wire.end();
        }
        self.poll(at)
    }

    /// The file ends; says what it holds if not what was hoped for.
    fn finish(&mut self, at: usize) -> Result<Option<&'static str>, Failure> {
        let Some(port) = self.ports.get_mut(at) else { return Ok(None) };
        if let Wire::Doubt(doubt) = &mut port.wire {
            let doubt = std::mem::take(doubt);
            if doubt.held.is_empty() && doubt.skipped == 0 {
                return Ok(Some("is empty"));
            }
            let kind = match () {
                () if is_odd_telegram(&doubt, self.how) => capture::Wire::P1,
                () if is_of_master(&doubt) && self.explain => capture::Wire::Mbus,
                () if is_seven_bits(&doubt) && self.explain => capture::Wire::P1,
                () => return Ok(Some(if is_of_master(&doubt) { NO_ANSWER } else { NEITHER })),
            };
            self.decide(at, kind, &doubt);
        }
        self.end(at)?;
        let is_mbus = self.ports.get(at).is_some_and(|port| matches!(port.wire, Wire::Mbus(..)));
        Ok(Some(if is_mbus { NO_ANSWER } else { NEITHER }))
    }

    /// Shows what can be had of a port so far.
    fn poll(&mut self, at: usize) -> Result<(), Failure> {
        let Some(port) = self.ports.get_mut(at) else { return Ok(()) };
        while let Some(mut piece) = port.wire.explained() {
            piece.offset = piece.offset.saturating_add(port.base);
            let place = place(&port.name, &port.lines, piece.offset);
            (self.visit)(&place, Found::Piece(Box::new(piece)))?;
        }
        loop {
            let result = match &mut port.wire {
                Wire::Doubt(_) => return Ok(()),
                Wire::P1(reader, _) => match reader.poll() {
                    None => break,
                    Some(Ok(telegram)) => {
                        port.restored =
                            port.restored.saturating_add(u64::from(telegram.line_ends == LineEnds::Restored));
                        Ok((telegram.offset, telegram.decoded.reports, P1_PORT))
                    }
                    Some(Err(piece)) => Err((piece.offset, piece.to_string())),
                },
                Wire::Mbus(stream, _) => match stream.poll() {
                    None => break,
                    Some(Ok(piece)) => {
                        if piece.decoded.more_follow {
                            let place = place(&port.name, &port.lines, piece.offset.saturating_add(port.base));
                            say!("{}the meter has more telegrams, which are not here", place.in_file(self.file));
                        }
                        Ok((piece.offset, vec![piece.decoded.report], MBUS_PORT))
                    }
                    Some(Err(piece)) => Err((piece.offset, piece.to_string())),
                },
            };
            match result {
                Ok((offset, reports, default)) => {
                    port.telegrams = port.telegrams.saturating_add(1);
                    let place = place(&port.name, &port.lines, offset.saturating_add(port.base));
                    let name = port.name.as_deref().unwrap_or(default);
                    let named = |report: Report<Identity>| report.rename(|identity| identity.name(GATEWAY, name));
                    (self.visit)(&place, Found::Telegram(reports.into_iter().map(named).collect()))?;
                }
                Err((offset, reason)) => {
                    port.rejected = port.rejected.saturating_add(1);
                    let place = place(&port.name, &port.lines, offset.saturating_add(port.base));
                    say!("{}{reason}", place.in_file(self.file));
                }
            }
        }
        port.forget();
        Ok(())
    }
}

/// Whether a telegram begins there once the highest bits are taken off: 7E1 that was read as 8N1.
fn is_seven_bits(doubt: &Doubt) -> bool {
    let plain: Vec<u8> = doubt.held.iter().map(|byte| byte & 0x7F).collect();
    plain
        .iter()
        .enumerate()
        .any(|(at, byte)| *byte == b'/' && plain.get(at..).map(crate::p1::begins) == Some(Some(true)))
}

/// The place of an offset, where a capture has lines that begin at these offsets.
fn place<'a>(port: &'a Option<String>, lines: &VecDeque<(u64, u64)>, offset: u64) -> Place<'a> {
    let line = lines.iter().rev().find(|(begin, _)| *begin <= offset).or(lines.front()).map_or(0, |(_, line)| *line);
    Place { port: port.as_deref().map(|port| (port, line)), offset }
}

impl Place<'_> {
    /// As messages begin.
    pub(super) fn in_file(&self, file: &str) -> String {
        match self.port {
            Some((port, line)) => format!("{file}:{line}: port {}: byte {}: ", escape(port.as_bytes()), self.offset),
            None => format!("{file}:{}: ", self.offset),
        }
    }
}

/// A port of a capture, or the one that any other file is of.
struct Port {
    /// In a capture.
    name: Option<String>,
    wire: Wire,
    /// Where in the bytes of the port those of the reader begin.
    base: u64,
    /// How many bytes it brought.
    pushed: u64,
    /// In a capture: where in the bytes of the port its last lines begin, and which they are.
    lines: VecDeque<(u64, u64)>,
    telegrams: u64,
    rejected: u64,
    restored: u64,
}

impl Port {
    /// Further back than that nothing is told any more: a readout of the most telegrams, however much stands between.
    const MEMORY: u64 = 256 * 1024;

    fn new(name: Option<String>, wire: Wire) -> Self {
        Self { name, wire, base: 0, pushed: 0, lines: VecDeque::new(), telegrams: 0, rejected: 0, restored: 0 }
    }

    fn forget(&mut self) {
        while self.lines.get(1).is_some_and(|(begin, _)| begin.saturating_add(Self::MEMORY) < self.pushed) {
            self.lines.pop_front();
        }
    }
}

/// Which wire the bytes of a port come from, who reads them, and who explains them where that was asked for.
enum Wire {
    /// Neither a header of P1 nor a frame of M-Bus was there yet.
    Doubt(Doubt),
    P1(Box<Reader>, Option<Box<explain::p1::Explainer>>),
    Mbus(Box<Stream>, Option<explain::mbus::Explainer>),
}

impl Wire {
    fn p1(how: &How, key: Option<&Key>, explain: bool) -> Self {
        let explainer = explain.then(|| Box::new(explain::p1::Explainer::new(how.dialect, key.cloned())));
        Self::P1(Box::new(Reader::new(how.dialect, key.cloned())), explainer)
    }

    fn mbus(how: &How, explain: bool) -> Self {
        let explainer = explain.then(|| explain::mbus::Explainer::new(how.utc_offset));
        Self::Mbus(Box::new(Stream::new(how.utc_offset)), explainer)
    }

    fn push(&mut self, bytes: &[u8]) {
        match self {
            Self::Doubt(_) => {}
            Self::P1(reader, explainer) => {
                reader.push(bytes);
                explainer.iter_mut().for_each(|explainer| explainer.push(bytes));
            }
            Self::Mbus(stream, explainer) => {
                stream.push(bytes);
                explainer.iter_mut().for_each(|explainer| explainer.push(bytes));
            }
        }
    }

    fn end(&mut self) {
        match self {
            Self::Doubt(_) => {}
            Self::P1(reader, explainer) => {
                reader.end();
                explainer.iter_mut().for_each(|explainer| explainer.end());
            }
            Self::Mbus(stream, explainer) => {
                stream.end();
                explainer.iter_mut().for_each(explain::mbus::Explainer::end);
            }
        }
    }

    fn explained(&mut self) -> Option<Piece> {
        match self {
            Self::Doubt(_) => None,
            Self::P1(_, explainer) => explainer.as_mut()?.poll(),
            Self::Mbus(_, explainer) => explainer.as_mut()?.poll(),
        }
    }
}

const NEITHER: &str = "holds neither a P1 telegram nor an M-Bus frame";
const NO_ANSWER: &str = "holds requests of an M-Bus master, and no meter's answer";

/// Whether bytes in which nothing begins hold a telegram all the same: one with a header that is none of the standard.
fn is_odd_telegram(doubt: &Doubt, how: &How) -> bool {
    let mut reader = Reader::new(how.dialect, None);
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
