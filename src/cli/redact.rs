//! `redact`: captures and files of telegrams made safe to publish.
//!
//! The files are read twice: once for the names and counters that are in them, once to write. What could not be checked is
//! not written, and told with its place. A file appears under its name when it is whole.
//!
//! In a capture a telegram's new bytes are spread over the chunks that brought the old ones: as many bytes to each as it
//! brought, the rest to the last. Chunks in which nothing is left disappear. Addresses of ports are dropped: a path under
//! `by-id` holds the serial of an adapter.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};
use jiff::{SignedDuration, Timestamp};

use super::{
    Failure, Outcome,
    input::{Event, Input},
};
use crate::{
    capture::{Chunk, Entry, Opening, Way, What, Wire},
    mbus::{self, Frame},
    p1::{self, Dialect, Key},
    port,
    reading::{Identity, Report},
    redact::{
        Offsets, Plan, Rewriter, Secret, Survey, Written,
        cut::{Cut, Cutter, Found},
    },
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Captures, or files of P1 telegrams or M-Bus frames; `-`: standard input. The same meter gets the same new name in all of them
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Where to: a file (packed if it ends in .gz), a folder that is there, or `-` for standard output
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Overwrite what is there
    #[arg(long)]
    force: bool,
    /// Move all times by so many days; 364 keeps the days of the week, and nearly the season
    #[arg(long, value_name = "DAYS", default_value_t = 0, allow_negative_numbers = true,
          value_parser = clap::value_parser!(i64).range(-36_500..=36_500))]
    shift: i64,
    /// Add to each counter something that keeps all its differences
    #[arg(long)]
    offset: bool,
    /// Keep P1 lines and M-Bus data that nobody explains, where no identifier is found in them. They may say anything
    #[arg(long)]
    keep_unknown: bool,
    /// The same new names and offsets on each run. Who knows or guesses the number can undo them: do not publish with it
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u128>,
    /// The key of encrypted P1 telegrams, which are written unencrypted: 32 hexadecimal digits, on a second line the authentication key if any
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Whose P1 telegrams they are, where that is not found right: netherlands, belgium, luxembourg, ...
    #[arg(long, value_name = "COUNTRY", value_parser = super::decode::dialect)]
    dialect: Option<Dialect>,
}

/// Places of what is left out are told up to so many a file, the rest is counted.
const MOST_TOLD: u64 = 100;

pub(super) fn redact(arguments: &Arguments) -> Result<Outcome, Failure> {
    let key = arguments.key_file.as_deref().map(port::read_key).transpose().map_err(Failure::usage)?;
    let to = Destination::of(arguments)?;
    let stdin = if arguments.files.iter().any(|file| file.as_os_str() == "-") { Some(spooled()?) } else { None };
    let reading = Reading { key, stdin };

    let mut surveyor = Surveyor { dialect: arguments.dialect, ..Surveyor::default() };
    let mut kinds = BTreeMap::new();
    for file in &arguments.files {
        kinds.insert(file, reading.walk(file, &mut surveyor)?);
    }
    if matches!(to, Destination::One(_) | Destination::Output) {
        same_form(kinds.values().copied().flatten())?;
    }
    let Surveyor { survey, meters, .. } = surveyor;
    let bits = match arguments.seed {
        Some(seed) => seed,
        None => {
            let mut bytes = [0; 16];
            getrandom::fill(&mut bytes).map_err(|error| Failure::world(format!("no random numbers: {error}")))?;
            u128::from_be_bytes(bytes)
        }
    };
    let secret = Secret::new(bits);
    let offsets = arguments.offset.then(|| Offsets::choose(&survey, &secret));
    let without = offsets.as_ref().map_or(0, Offsets::without);
    let plan = Plan {
        names: Some(secret),
        serials: survey.serials,
        keep_unknown: arguments.keep_unknown,
        shift: SignedDuration::from_hours(arguments.shift * 24),
        offsets,
    };
    let rewriter = Rewriter::new(plan);

    let mut summary = Summary::default();
    let mut one = match &to {
        Destination::Folder(_) => None,
        to => Some(Sink::new(to, arguments, None)?),
    };
    for file in &arguments.files {
        let mut own = match &one {
            Some(_) => None,
            None => Some(Sink::new(&to, arguments, Some((file, &rewriter)))?),
        };
        let Some(sink) = own.as_mut().or(one.as_mut()) else { continue };
        let mut redactor = Redactor::new(&rewriter, arguments, file, sink, &mut summary);
        reading.walk(file, &mut redactor)?;
        redactor.finish()?;
        if let Some(sink) = own {
            sink.finish(arguments)?;
        }
    }
    if let Some(sink) = one {
        sink.finish(arguments)?;
    }
    summary.tell(&meters, without);
    Ok(if summary.left_out.is_empty() { Outcome::Well } else { Outcome::Partly })
}

/// Standard input, which can be read once, as a file that nobody else sees.
fn spooled() -> Result<File, Failure> {
    let failed = |error: io::Error| Failure::world(format!("standard input: {error}"));
    let mut file = tempfile::tempfile().map_err(failed)?;
    io::copy(&mut io::stdin().lock(), &mut file).map_err(failed)?;
    Ok(file)
}

/// All files in one output have one form.
fn same_form(kinds: impl Iterator<Item = Form>) -> Result<(), Failure> {
    let forms: BTreeSet<Form> = kinds.collect();
    if forms.len() > 1 {
        return Err(Failure::usage(
            "captures, P1 telegrams and M-Bus frames cannot stand in one file: name a folder with --out, or redact them one by \
             one with the same --seed",
        ));
    }
    Ok(())
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Form {
    Capture,
    P1,
    Mbus,
}

struct Reading {
    key: Option<Key>,
    stdin: Option<File>,
}

/// Where in its file a telegram or frame stands.
#[derive(Debug, Clone)]
struct Source {
    /// In a capture: the port.
    port: Option<String>,
    place: String,
    /// In a capture: what brought it, the first chunk first.
    chunks: Vec<From>,
}

/// A chunk, and how many bytes of a telegram it brought.
#[derive(Debug, Clone)]
struct From {
    order: u64,
    line: u64,
    us: u64,
    at: Timestamp,
    way: Way,
    length: u64,
}

/// What is made of a file, piece by piece.
trait Visitor {
    /// A line of a capture that holds no bytes.
    fn entry(&mut self, order: u64, entry: Entry) -> Result<(), Failure>;
    /// Bytes.
    fn cut(&mut self, source: &Source, found: Found) -> Result<(), Failure>;
    /// Something that is not read.
    fn trouble(&mut self, kind: &'static str, text: String);
    /// Nothing of a smaller order comes any more.
    fn settled(&mut self, order: u64) -> Result<(), Failure>;
}

/// One way of one port, or a whole file.
struct Lane {
    cutter: Cutter,
    /// How many bytes were pushed.
    pushed: u64,
    /// Up to where it is known what the bytes are.
    settled: u64,
    /// Chunks that are not settled: where they end, and what they were.
    chunks: VecDeque<(u64, From)>,
}

impl Lane {
    fn new(wire: Wire, key: Option<Key>) -> Self {
        Self { cutter: Cutter::new(wire, key), pushed: 0, settled: 0, chunks: VecDeque::new() }
    }

    fn push(&mut self, bytes: &[u8], from: Option<From>) {
        self.pushed += bytes.len() as u64;
        self.cutter.push(bytes);
        self.chunks.extend(from.map(|from| (self.pushed, from)));
    }

    /// Which chunk is the first that is not settled.
    fn open(&self) -> Option<u64> {
        self.chunks.iter().find(|(end, _)| *end > self.settled).map(|(_, from)| from.order)
    }

    /// The next piece with what brought it.
    fn poll(&mut self) -> Option<(Cut, Vec<From>)> {
        let cut = self.cutter.poll()?;
        let (begin, end) = (cut.offset, (cut.offset + cut.length).min(self.pushed));
        // What a sealed frame holds has the place of that frame, all of it.
        while self.chunks.front().is_some_and(|(end, _)| *end <= begin.min(self.settled)) {
            self.chunks.pop_front();
        }
        let mut chunks = Vec::new();
        for (chunk_end, from) in &self.chunks {
            let chunk_begin = chunk_end - from.length;
            if *chunk_end > begin && (chunk_begin < end || chunks.is_empty()) {
                let length = (*chunk_end).min(end).saturating_sub(chunk_begin.max(begin));
                chunks.push(From { length, ..from.clone() });
            }
        }
        self.settled = self.settled.max(end);
        Some((cut, chunks))
    }
}

/// A plain file, while it is not known what it holds.
#[derive(Default)]
struct Doubt {
    held: Vec<u8>,
    /// How far in `held` nothing begins.
    looked: usize,
}

impl Doubt {
    /// More noise than that before the first header is none of ours.
    const MOST: usize = 1024 * 1024;

    fn push(&mut self, bytes: &[u8]) -> Option<Wire> {
        self.held.extend_from_slice(bytes);
        while let Some(rest) = self.held.get(self.looked..).filter(|rest| !rest.is_empty()) {
            match (p1::begins(rest), mbus::begins(rest)) {
                (Some(true), _) => return Some(Wire::P1),
                (_, Some(true)) => return Some(Wire::Mbus),
                (Some(false), Some(false)) => self.looked += 1,
                _ => break,
            }
        }
        (self.looked > Self::MOST).then_some(Wire::P1)
    }

    /// What a whole file is in which nothing begins as it should: telegrams with a header of their own, requests of a
    /// master.
    fn judge(&self) -> Option<Wire> {
        [Wire::P1, Wire::Mbus].into_iter().find(|wire| {
            let mut cutter = Cutter::new(*wire, None);
            cutter.push(&self.held);
            cutter.end();
            std::iter::from_fn(|| cutter.poll()).any(|cut| match cut.what {
                Found::Telegram(_) => true,
                Found::Frame(frame) => frame.len() > 1,
                Found::Nothing(..) => false,
            })
        })
    }
}

impl Reading {
    fn open(&self, file: &Path) -> Result<Input, Failure> {
        let failed = |error: io::Error| Failure::world(format!("{}: {error}", file.display()));
        match &self.stdin {
            Some(stdin) if file.as_os_str() == "-" => {
                use io::Seek as _;
                let mut stdin = stdin.try_clone().map_err(failed)?;
                stdin.rewind().map_err(failed)?;
                Input::new(stdin, None).map_err(failed)
            }
            _ => Input::open(file).map_err(failed),
        }
    }

    /// Reads a file from its beginning to its end. None where nothing of ours is in it.
    fn walk(&self, file: &Path, visitor: &mut dyn Visitor) -> Result<Option<Form>, Failure> {
        let mut input = self.open(file)?;
        let mut lanes: BTreeMap<(String, bool), Lane> = BTreeMap::new();
        let mut plain: Option<(Wire, Lane)> = None;
        let mut doubt = Doubt::default();
        let mut order = 0;
        for event in &mut input {
            order += 1;
            match event {
                Err(trouble) => visitor.trouble("line", trouble.to_string()),
                Ok(Event::Opening(_, opening)) => {
                    for way in [false, true].into_iter().filter(|_| !opening.goes_on) {
                        if let Some(mut lane) = lanes.remove(&(opening.port.clone(), way)) {
                            lane.cutter.end();
                            drain(&mut lane, Some(&opening.port), visitor)?;
                        }
                    }
                    visitor.entry(order, Entry::Opening(opening))?;
                }
                Ok(Event::Chunk(place, wire, chunk)) => match chunk.what {
                    What::Lost(_) => visitor.entry(order, Entry::Chunk(chunk))?,
                    What::Bytes(way, bytes) => {
                        let key = (chunk.port.clone(), way == Way::ToMeter);
                        let lane = lanes.entry(key).or_insert_with(|| Lane::new(wire, self.key.clone()));
                        let length = bytes.len() as u64;
                        lane.push(
                            &bytes,
                            Some(From { order, line: place.line, us: chunk.us, at: chunk.at, way, length }),
                        );
                        drain(lane, Some(&chunk.port), visitor)?;
                    }
                },
                Ok(Event::Bytes(bytes)) => match &mut plain {
                    Some((_, lane)) => {
                        lane.push(&bytes, None);
                        drain(lane, None, visitor)?;
                    }
                    None => {
                        if let Some(wire) = doubt.push(&bytes) {
                            let (_, lane) = plain.insert((wire, Lane::new(wire, self.key.clone())));
                            lane.push(&std::mem::take(&mut doubt.held), None);
                            drain(lane, None, visitor)?;
                        }
                    }
                },
            }
            let open = lanes.values().filter_map(Lane::open).min();
            visitor.settled(open.unwrap_or(order + 1))?;
        }
        if plain.is_none() && !input.is_capture() {
            match doubt.judge() {
                Some(wire) => {
                    let (_, lane) = plain.insert((wire, Lane::new(wire, self.key.clone())));
                    lane.push(&doubt.held, None);
                }
                None => visitor.trouble("nothing", "holds neither a P1 telegram nor an M-Bus frame".into()),
            }
        }
        for ((port, _), lane) in &mut lanes {
            lane.cutter.end();
            drain(lane, Some(port), visitor)?;
        }
        let form = match &mut plain {
            Some((wire, lane)) => {
                lane.cutter.end();
                drain(lane, None, visitor)?;
                Some(if *wire == Wire::P1 { Form::P1 } else { Form::Mbus })
            }
            None => input.is_capture().then_some(Form::Capture),
        };
        visitor.settled(u64::MAX)?;
        if let Some((_, left_out)) = input.form().filter(|(_, left_out)| *left_out > 0) {
            visitor.trouble("log", format!("{left_out} lines of the log were no part of a telegram"));
        }
        Ok(form)
    }
}

fn drain(lane: &mut Lane, port: Option<&str>, visitor: &mut dyn Visitor) -> Result<(), Failure> {
    while let Some((cut, chunks)) = lane.poll() {
        let place = match chunks.first() {
            Some(from) => format!("line {}", from.line),
            None => cut.offset.to_string(),
        };
        let source = Source { port: port.map(str::to_owned), place, chunks };
        visitor.cut(&source, cut.what)?;
    }
    Ok(())
}

/// What a port is called for telling meters apart that do not name themselves; in a plain file there is but one.
fn port_of(source: &Source) -> &str {
    source.port.as_deref().unwrap_or("port")
}

/// Gathers names and counters.
#[derive(Default)]
struct Surveyor {
    dialect: Option<Dialect>,
    survey: Survey,
    /// By medium.
    meters: BTreeMap<&'static str, BTreeSet<String>>,
}

impl Surveyor {
    fn count(&mut self, reports: &[Report]) {
        for report in reports {
            if let Identity::Own(name) = &report.meter {
                self.meters.entry(report.medium.name()).or_default().insert(name.clone());
            }
        }
    }
}

impl Visitor for Surveyor {
    fn entry(&mut self, _: u64, _: Entry) -> Result<(), Failure> {
        Ok(())
    }

    fn cut(&mut self, source: &Source, found: Found) -> Result<(), Failure> {
        match found {
            Found::Telegram(whole) => {
                let telegram = whole.telegram();
                self.survey.telegram(&telegram, self.dialect, port_of(source));
                self.count(&p1::decode(&telegram, self.dialect).reports);
            }
            Found::Frame(bytes) => {
                if let Ok((frame, _)) = Frame::parse(&bytes) {
                    self.survey.frame(&frame, port_of(source));
                    if let Ok(decoded) = mbus::decode(&[frame], 0) {
                        self.count(&[decoded.report]);
                    }
                }
            }
            Found::Nothing(..) => {}
        }
        Ok(())
    }

    fn trouble(&mut self, _: &'static str, _: String) {}

    fn settled(&mut self, _: u64) -> Result<(), Failure> {
        Ok(())
    }
}

/// What became of everything.
#[derive(Default)]
struct Summary {
    telegrams: u64,
    frames: u64,
    lines_left_out: u64,
    blanked: u64,
    /// By reason.
    left_out: BTreeMap<&'static str, u64>,
}

impl Summary {
    fn tell(&self, meters: &BTreeMap<&'static str, BTreeSet<String>>, without: usize) {
        let media: Vec<String> = meters.iter().map(|(medium, names)| format!("{} {medium}", names.len())).collect();
        let count: usize = meters.values().map(BTreeSet::len).sum();
        say!("meters renamed: {count}{}", in_brackets(&media));
        say!("written: {} telegrams of P1, {} frames of M-Bus", self.telegrams, self.frames);
        if self.lines_left_out > 0 {
            say!("lines of P1 that nobody explains, left out: {} (--keep-unknown keeps them)", self.lines_left_out);
        }
        if self.blanked > 0 {
            say!("data of M-Bus that nobody explains, zeroed: {} (--keep-unknown keeps it)", self.blanked);
        }
        if without > 0 {
            say!("counters without an offset, because none fits their digits: {without}");
        }
        let reasons: Vec<String> = self.left_out.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        if !reasons.is_empty() {
            let count: u64 = self.left_out.values().sum();
            say!("left out: {count}{}", in_brackets(&reasons));
        }
    }
}

fn in_brackets(parts: &[String]) -> String {
    if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) }
}

/// Writes what may be written.
struct Redactor<'a> {
    rewriter: &'a Rewriter,
    dialect: Option<Dialect>,
    file: String,
    sink: &'a mut Sink,
    summary: &'a mut Summary,
    told: u64,
    /// Lines of a capture by their order, which wait for what was before them.
    waiting: BTreeMap<u64, Entry>,
}

/// As many lines wait for the end of a telegram at another port; then they go before it.
const MOST_WAITING: usize = 10_000;

impl<'a> Redactor<'a> {
    fn new(
        rewriter: &'a Rewriter,
        arguments: &Arguments,
        file: &Path,
        sink: &'a mut Sink,
        summary: &'a mut Summary,
    ) -> Self {
        let file = file.display().to_string();
        Self { rewriter, dialect: arguments.dialect, file, sink, summary, told: 0, waiting: BTreeMap::new() }
    }

    fn leave_out(&mut self, place: &str, kind: &'static str, text: &str) {
        *self.summary.left_out.entry(kind).or_default() += 1;
        self.told += 1;
        if self.told <= MOST_TOLD {
            say!("{}:{place}: left out: {text}", self.file);
        }
    }

    fn finish(self) -> Result<(), Failure> {
        if self.told > MOST_TOLD {
            say!("{}: and {} more", self.file, self.told - MOST_TOLD);
        }
        Ok(())
    }

    /// A line, or more bytes for one that is there: a chunk may bring the end of a telegram and the beginning of the next.
    fn wait(&mut self, order: u64, entry: Entry) {
        match (self.waiting.get_mut(&order), entry) {
            (
                Some(Entry::Chunk(Chunk { what: What::Bytes(_, bytes), .. })),
                Entry::Chunk(Chunk { what: What::Bytes(_, more), .. }),
            ) => bytes.extend(more),
            (_, entry) => drop(self.waiting.insert(order, entry)),
        }
    }

    /// The wall clock of a line; None where it would leave the calendar.
    fn wall_clock(&mut self, at: Timestamp) -> Option<Timestamp> {
        let moved = self.rewriter.wall_clock(at);
        if moved.is_none() {
            self.leave_out("wall clock", "time", "the wall clock would leave the calendar");
        }
        moved
    }

    /// New bytes in place of old ones.
    fn write(&mut self, source: &Source, bytes: &[u8], is_p1: bool) -> Result<(), Failure> {
        let Some(port) = &source.port else {
            return if is_p1 {
                self.sink.write(bytes)
            } else {
                self.sink.write(format!("{}\n", hex(bytes)).as_bytes())
            };
        };
        let port = self.rewriter.label(port);
        let mut rest = bytes;
        for (at, from) in source.chunks.iter().enumerate() {
            let is_last = at + 1 == source.chunks.len();
            let length = if is_last { rest.len() } else { rest.len().min(from.length as usize) };
            let (now, later) = rest.split_at_checked(length).unwrap_or((rest, &[]));
            rest = later;
            let Some(wall) = self.wall_clock(from.at).filter(|_| !now.is_empty()) else { continue };
            let what = What::Bytes(from.way, now.to_vec());
            let chunk = Chunk { port: port.clone(), us: from.us, at: wall, what };
            self.wait(from.order, Entry::Chunk(chunk));
        }
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Visitor for Redactor<'_> {
    fn entry(&mut self, order: u64, entry: Entry) -> Result<(), Failure> {
        let entry = match entry {
            Entry::Opening(Opening { port, wire, settings, at, goes_on, .. }) => {
                let Some(at) = self.wall_clock(at) else { return Ok(()) };
                let (port, settings) = (self.rewriter.label(&port), self.rewriter.label(&settings));
                Entry::Opening(Opening { port, wire, address: String::new(), settings, at, goes_on })
            }
            Entry::Chunk(chunk) => {
                let Some(at) = self.wall_clock(chunk.at) else { return Ok(()) };
                Entry::Chunk(Chunk { port: self.rewriter.label(&chunk.port), at, ..chunk })
            }
        };
        self.wait(order, entry);
        Ok(())
    }

    fn cut(&mut self, source: &Source, found: Found) -> Result<(), Failure> {
        let place = match &source.port {
            Some(port) => format!("{}, port {}", source.place, self.rewriter.label(port)),
            None => source.place.clone(),
        };
        let is_p1 = matches!(found, Found::Telegram(_));
        let written = match found {
            Found::Nothing(kind, text) => {
                self.leave_out(&place, kind, &text);
                return Ok(());
            }
            Found::Telegram(whole) => self.rewriter.telegram(&whole.telegram(), self.dialect, port_of(source)),
            Found::Frame(bytes) => match Frame::parse(&bytes) {
                Ok((frame, _)) => self.rewriter.frame(&frame, port_of(source)),
                Err(error) => Err(mbus::Reason::Frame(error).into()),
            },
        };
        match written {
            Err(refused) => self.leave_out(&place, refused.kind(), &refused.to_string()),
            Ok(Written { bytes, lines_left_out, blanked, .. }) => {
                *(if is_p1 { &mut self.summary.telegrams } else { &mut self.summary.frames }) += 1;
                self.summary.lines_left_out += lines_left_out;
                self.summary.blanked += blanked;
                self.write(source, &bytes, is_p1)?;
            }
        }
        Ok(())
    }

    fn trouble(&mut self, kind: &'static str, text: String) {
        if kind == "log" {
            say!("{}: {text}", self.file);
        } else {
            *self.summary.left_out.entry(kind).or_default() += 1;
            say!("{}: {text}", self.file);
        }
    }

    fn settled(&mut self, order: u64) -> Result<(), Failure> {
        while let Some(first) = self.waiting.first_entry() {
            if *first.key() >= order && self.waiting.len() <= MOST_WAITING {
                break;
            }
            if let Some((_, entry)) = self.waiting.pop_first() {
                self.sink.write(format!("{entry}\n").as_bytes())?;
            }
        }
        Ok(())
    }
}

/// Where what is written goes.
enum Destination {
    Output,
    One(PathBuf),
    Folder(PathBuf),
}

impl Destination {
    fn of(arguments: &Arguments) -> Result<Self, Failure> {
        let out = &arguments.out;
        if out.as_os_str() == "-" {
            return Ok(Self::Output);
        }
        if out.is_dir() {
            if arguments.files.iter().any(|file| file.as_os_str() == "-") {
                return Err(Failure::usage("--out is a folder, and standard input has no name: name a file"));
            }
            let mut names = std::collections::BTreeSet::new();
            if let Some(twin) = arguments.files.iter().find(|file| !names.insert(file.file_name())) {
                let name = twin.file_name().unwrap_or_default().display();
                return Err(Failure::usage(format!(
                    "{name}: two files of that name would be one in --out: redact them apart"
                )));
            }
            return Ok(Self::Folder(out.clone()));
        }
        may_write(out, arguments)?;
        Ok(Self::One(out.clone()))
    }
}

fn may_write(out: &Path, arguments: &Arguments) -> Result<(), Failure> {
    let Ok(there) = out.canonicalize() else { return Ok(()) };
    if arguments.files.iter().any(|file| file.canonicalize().is_ok_and(|file| file == there)) {
        return Err(Failure::usage(format!("{}: is what is to be redacted; name another file", out.display())));
    }
    if !there.is_file() {
        return Err(Failure::usage(format!(
            "{}: is no file that can be replaced; `-` is standard output",
            out.display()
        )));
    }
    if arguments.force {
        return Ok(());
    }
    Err(Failure::usage(format!("{}: is there already; --force overwrites it", out.display())))
}

/// A file that appears when it is whole, or standard output.
struct Sink {
    bytes: Bytes,
    /// What it is called until then, and from then on.
    names: Option<(tempfile::TempPath, PathBuf)>,
    is_empty: bool,
}

enum Bytes {
    Output(io::StdoutLock<'static>),
    Plain(io::BufWriter<File>),
    Packed(GzEncoder<io::BufWriter<File>>),
}

impl Sink {
    /// `own`: in a folder, the file that is redacted, whose name may hold an identifier.
    fn new(to: &Destination, arguments: &Arguments, own: Option<(&Path, &Rewriter)>) -> Result<Self, Failure> {
        let path = match (to, own) {
            (Destination::One(path), _) => path.clone(),
            (Destination::Folder(folder), Some((file, rewriter))) => {
                let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let path = folder.join(rewriter.label(&name));
                may_write(&path, arguments)?;
                path
            }
            _ => return Ok(Self { bytes: Bytes::Output(io::stdout().lock()), names: None, is_empty: true }),
        };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // For others to read, as far as this user lets them.
        let permissions = fs::Permissions::from_mode(0o666);
        let temporary = tempfile::Builder::new().prefix(".meterkast-").permissions(permissions).tempfile_in(folder);
        let temporary = temporary.map_err(|error| Failure::world(format!("{}: {error}", path.display())))?;
        let (file, temporary) = temporary.into_parts();
        let file = io::BufWriter::new(file);
        let bytes = match path.extension() {
            Some(extension) if extension == "gz" => Bytes::Packed(GzEncoder::new(file, Compression::default())),
            _ => Bytes::Plain(file),
        };
        Ok(Self { bytes, names: Some((temporary, path)), is_empty: true })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.is_empty = false;
        let written = match &mut self.bytes {
            Bytes::Output(output) => output.write_all(bytes),
            Bytes::Plain(file) => file.write_all(bytes),
            Bytes::Packed(packer) => packer.write_all(bytes),
        };
        written.map_err(|error| match &self.names {
            Some((_, path)) => Failure::world(format!("{}: {error}", path.display())),
            None => super::quiet_if_closed(error),
        })
    }

    fn finish(self, arguments: &Arguments) -> Result<(), Failure> {
        let (file, Some((temporary, path))) = (self.bytes, self.names) else {
            return io::stdout().flush().map_err(super::quiet_if_closed);
        };
        if self.is_empty {
            say!("{}: not written: nothing is left", path.display());
            return Ok(());
        }
        let failed = |error: io::Error| Failure::world(format!("{}: {error}", path.display()));
        let buffer = match file {
            Bytes::Output(_) => return Ok(()),
            Bytes::Plain(file) => file,
            Bytes::Packed(packer) => packer.finish().map_err(failed)?,
        };
        let file = buffer.into_inner().map_err(|error| failed(error.into_error()))?;
        file.sync_all().map_err(failed)?;
        let moved = if arguments.force { temporary.persist(&path) } else { temporary.persist_noclobber(&path) };
        moved.map_err(|error| failed(error.error))
    }
}
