//! `record`: writes down what a port brings, as a capture.
//!
//! A P1 port is read as the daemon reads it: line settings are found, and what vanished is opened again. A bus is only listened to,
//! unless `--master` puts this program between a master and the converter. `--tap` takes both from a running daemon.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions, TryLockError},
    io::{self, BufRead, BufReader, BufWriter, IsTerminal, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use flate2::{Compression, bufread::GzDecoder, write::GzEncoder};
use indicatif::ProgressBar;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
    time::Instant,
};
use tokio_serial::{SerialPort, SerialStream};

use super::{
    Failure, Outcome, asked_to_end, decode,
    terminal::{Link, terminal},
};
use crate::{
    bus,
    capture::{self, Chunk, Entry, Opening, Way, What, Wire},
    collect::{self, Gathered, Patience, Source},
    config::{Address, Config, Control, parse_duration},
    control::{self, AskError, Tapping},
    mbus,
    p1::{self, Transcript},
    plausible::Judge,
    port::{self, LineSettings, PortError},
    pulse::Pulse,
    tap::{Heard, Scribe, Tap},
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A serial device, tcp://host:port, a file or a pipe; `-`: standard input
    #[arg(value_name = "PORT", value_parser = Address::parse, required_unless_present = "tap", conflicts_with = "tap")]
    port: Option<Address>,
    /// The capture; one that is there goes on. Packed if its name ends in .gz; `-`: standard output
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// What is spoken there
    #[arg(long, value_enum, default_value_t = Spoken::P1)]
    wire: Spoken,
    /// Bits a second of an M-Bus
    #[arg(long, value_name = "BAUD", default_value_t = 2400)]
    baud: u32,
    /// What the port is called in the capture: by default p1 or mbus
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// M-Bus: stand between the converter and another master, which opens LINK; both ways are recorded
    #[arg(long, value_name = "LINK", conflicts_with = "tap")]
    master: Option<PathBuf>,
    /// Record what a running daemon hears and says at its ports, without stopping it
    #[arg(long)]
    tap: bool,
    /// --tap: the daemon's configuration, which names its control socket
    #[arg(long, value_name = "FILE", requires = "tap")]
    config: Option<PathBuf>,
    /// --tap: only this port of the daemon; may be repeated
    #[arg(long = "port", value_name = "NAME", requires = "tap")]
    ports: Vec<String>,
    /// Begin a new file when this one has so many bytes, such as 10MB; the full ones become FILE with .1, .2, ... before its ending
    #[arg(long, value_name = "SIZE", value_parser = size)]
    rotate: Option<u64>,
    /// How many files there are at most, the one that is written among them; the oldest go
    #[arg(long, value_name = "COUNT", requires = "rotate", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    keep: u32,
    /// How long, such as 1h
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    time: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Spoken {
    /// Telegrams
    P1,
    /// Frames
    Mbus,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "write a whole number and ms, s, m, h or d, such as 1h".to_owned())
}

/// Two chunks at least go into a file.
const LEAST: u64 = 500_000;

fn size(text: &str) -> Result<u64, String> {
    let parse = || {
        let (number, unit) = text.split_at_checked(text.find(|letter: char| !letter.is_ascii_digit())?)?;
        let factor: u64 = match unit {
            "kB" => 1000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return None,
        };
        number.parse::<u64>().ok()?.checked_mul(factor)
    };
    match parse() {
        Some(size) if size >= LEAST => Ok(size),
        Some(_) => Err("at least 500kB".to_owned()),
        None => Err("write a whole number and kB, MB or GB, such as 10MB".to_owned()),
    }
}

/// How often what was recorded is written, so that a kill loses no more.
const FLUSH: Duration = Duration::from_secs(1);
/// Between attempts to open what was lost.
const RETRY: Duration = Duration::from_secs(2);
/// Who does not read for so long misses it, as on a wire.
const MISSES: Duration = Duration::from_millis(200);

pub(super) async fn record(arguments: Arguments) -> Result<Outcome, Failure> {
    if arguments.master.is_some() && arguments.wire != Spoken::Mbus {
        return Err(Failure::usage("--master needs --wire mbus: only a bus has a master"));
    }
    let mut source = Recorded::open(&arguments).await?;
    let shown = arguments.out.display().to_string();
    let failed = |error: io::Error| Failure::world(why_not_written(&shown, &error));
    let mut sink = Sink::open(&arguments.out, arguments.rotate, arguments.keep)?;
    let mut counts = Counts::default();
    let is_shown = io::stderr().is_terminal() && !sink.is_stdout();
    let progress = if is_shown { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    let mut tick = tokio::time::interval(FLUSH);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let end = arguments.time.map(|time| Instant::now() + time);
    let mut asked = std::pin::pin!(asked_to_end());
    let ended: Result<(), Failure> = loop {
        tokio::select! {
            biased;
            asked = &mut asked => break asked,
            () = async { tokio::time::sleep_until(end.unwrap_or_else(Instant::now)).await }, if end.is_some() => break Ok(()),
            _ = tick.tick() => {
                if let Err(error) = tokio::task::block_in_place(|| sink.flush()) {
                    break Err(failed(error));
                }
                progress.set_message(format!("{shown}: {counts}"));
                progress.tick();
            }
            entry = source.next(&progress) => match entry {
                Ok(Some(entry)) => {
                    counts.count(&entry);
                    if let Err(error) = tokio::task::block_in_place(|| sink.write(&entry)) {
                        break Err(failed(error));
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            },
        }
    };
    counts.end();
    // What came before a failure is kept.
    let finished = tokio::task::block_in_place(|| sink.finish()).map_err(failed);
    progress.finish_and_clear();
    say!("{shown}: {counts}");
    ended.and(finished)?;
    // A piece that is none at the beginning is no reason to complain: a recording begins anywhere.
    if counts.telegrams == 0 {
        say!("{shown}: no telegram was heard");
        return Ok(Outcome::Partly);
    }
    Ok(Outcome::Well)
}

fn why_not_written(file: &str, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            format!(
                "{file}: the disk is full: what was recorded until now can be read; --rotate and --keep set a bound"
            )
        }
        _ => format!("{file}: {error}: what was recorded until now can be read"),
    }
}

/// What was recorded.
#[derive(Default)]
struct Counts {
    chunks: u64,
    bytes: u64,
    lost: u64,
    telegrams: u64,
    rejected: u64,
    /// What reads each port.
    readers: BTreeMap<String, Reader>,
}

enum Reader {
    P1(Box<p1::Reader>),
    Mbus(Box<mbus::Stream>),
}

impl Reader {
    /// Telegrams, and pieces that are none. What is encrypted is a telegram.
    fn poll(&mut self) -> Option<bool> {
        match self {
            Self::P1(reader) => reader.poll().map(|piece| match piece {
                Ok(_) => true,
                Err(rejected) => rejected.reason.is_readable(),
            }),
            Self::Mbus(stream) => stream.poll().map(|piece| piece.is_ok()),
        }
    }

    fn end(&mut self) {
        match self {
            Self::P1(reader) => reader.end(),
            Self::Mbus(stream) => stream.end(),
        }
    }
}

impl Counts {
    fn count(&mut self, entry: &Entry) {
        match entry {
            Entry::Opening(Opening { port, wire, .. }) => {
                // What was open does not go on.
                if let Some(reader) = self.readers.get_mut(port) {
                    reader.end();
                    self.poll();
                }
                let reader = match wire {
                    Wire::P1 => Reader::P1(Box::new(p1::Reader::new(None, None))),
                    Wire::Mbus => Reader::Mbus(Box::new(mbus::Stream::new(0))),
                };
                self.readers.insert(port.clone(), reader);
            }
            Entry::Chunk(Chunk { what: What::Lost(chunks), .. }) => self.lost = self.lost.saturating_add(*chunks),
            Entry::Chunk(Chunk { port, what: What::Bytes(_, bytes), .. }) => {
                self.chunks = self.chunks.saturating_add(1);
                self.bytes = self.bytes.saturating_add(bytes.len() as u64);
                match self.readers.get_mut(port) {
                    Some(Reader::P1(reader)) => reader.push(bytes),
                    Some(Reader::Mbus(stream)) => stream.push(bytes),
                    None => {}
                }
            }
        }
        self.poll();
    }

    fn poll(&mut self) {
        for reader in self.readers.values_mut() {
            while let Some(is_telegram) = reader.poll() {
                let count = if is_telegram { &mut self.telegrams } else { &mut self.rejected };
                *count = count.saturating_add(1);
            }
        }
    }

    fn end(&mut self) {
        self.readers.values_mut().for_each(Reader::end);
        self.poll();
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { chunks, bytes, telegrams, rejected, lost, .. } = self;
        write!(f, "{chunks} chunks, {bytes} bytes, {telegrams} telegrams, {rejected} rejected")?;
        if *lost > 0 {
            write!(f, "; {lost} chunks were missed, because this was too slow")?;
        }
        Ok(())
    }
}

/// Where entries come from.
enum Recorded {
    /// A port that is read here.
    Own { heard: mpsc::Receiver<Heard>, scribe: Scribe, notes: mpsc::Receiver<String>, _link: Option<Link> },
    /// A running daemon.
    Daemon {
        tapping: Option<Tapping>,
        /// When it is asked again, while it is away.
        again: Instant,
        path: PathBuf,
        ports: Vec<String>,
        reader: capture::Reader,
    },
}

impl Recorded {
    async fn open(arguments: &Arguments) -> Result<Self, Failure> {
        let Some(address) = &arguments.port else {
            let path = match &arguments.config {
                None => PathBuf::from(Control::DEFAULT),
                Some(file) => {
                    let config = Config::read(file).map_err(Failure::usage)?;
                    let path = config.control.socket().map(Path::to_owned);
                    path.ok_or_else(|| {
                        Failure::usage(format!(
                            "{}: [control] path is empty: the daemon cannot be tapped",
                            file.display()
                        ))
                    })?
                }
            };
            let tapping = control::ask_tap(&path, &arguments.ports).await.map_err(|error| match error {
                AskError::Refused(_) => Failure::usage(error),
                _ => Failure::world(error),
            })?;
            say!("taps the daemon at {}; Ctrl-C ends it", path.display());
            let (tapping, ports, reader) = (Some(tapping), arguments.ports.clone(), capture::Reader::new());
            return Ok(Self::Daemon { tapping, again: Instant::now(), path, ports, reader });
        };
        let wire = match arguments.wire {
            Spoken::P1 => Wire::P1,
            Spoken::Mbus => Wire::Mbus,
        };
        let default = if wire == Wire::P1 { "p1" } else { "mbus" };
        let name = arguments.name.as_deref().unwrap_or(default);
        let (tap, heard) = Tap::recorder(name, wire, &address.to_string());
        let scribe = tap.scribe();
        let (tell, notes) = mpsc::channel(16);
        let mut link = None;
        match (wire, &arguments.master) {
            (Wire::P1, _) => {
                tokio::spawn(read_p1(address.clone(), tap, tell));
            }
            (Wire::Mbus, None) => {
                tokio::spawn(listen(address.clone(), arguments.baud, tap, tell));
            }
            (Wire::Mbus, Some(master)) => {
                let terminal = terminal()?;
                link = Some(Link::new("--master", master.clone(), &terminal.2)?);
                say!("the master opens {}; Ctrl-C ends it", master.display());
                tokio::spawn(stand_between(address.clone(), arguments.baud, (terminal.0, terminal.1), tap, tell));
            }
        }
        Ok(Self::Own { heard, scribe, notes, _link: link })
    }

    /// The next entry; None at the end. Cancel-safe.
    async fn next(&mut self, progress: &ProgressBar) -> Result<Option<Entry>, Failure> {
        match self {
            Self::Own { heard, scribe, notes, .. } => loop {
                tokio::select! {
                    next = heard.recv() => {
                        // What is left to say.
                        while next.is_none() && let Some(note) = notes.recv().await {
                            progress.suspend(|| say!("{note}"));
                        }
                        return Ok(next.map(|heard| scribe.entry(heard)));
                    }
                    Some(note) = notes.recv() => progress.suspend(|| say!("{note}")),
                }
            },
            Self::Daemon { tapping, again, path, ports, reader } => loop {
                match reader.poll() {
                    Some(Ok((_, entry))) => return Ok(Some(entry)),
                    Some(Err(bad)) => return Err(Failure::world(format!("{}: {bad}", path.display()))),
                    None => {}
                }
                let bytes = match tapping {
                    Some(open) => open.next().await,
                    None => {
                        tokio::time::sleep_until(*again).await;
                        match control::ask_tap(path, ports).await {
                            Ok(open) => {
                                progress.suspend(|| say!("the daemon is back"));
                                *tapping = Some(open);
                            }
                            Err(AskError::Refused(reason)) => return Err(Failure::world(reason)),
                            Err(_) => *again = Instant::now() + RETRY,
                        }
                        continue;
                    }
                };
                if let Ok(Some(bytes)) = bytes {
                    reader.push(&bytes);
                } else {
                    progress.suspend(|| say!("the daemon has stopped; it is tapped again when it is back"));
                    // A line that breaks off is no loss: its bytes were said to nobody.
                    (*tapping, *reader, *again) = (None, capture::Reader::new(), Instant::now() + RETRY);
                }
            },
        }
    }
}

/// Reads a P1 port as the daemon does.
async fn read_p1(address: Address, tap: Tap, notes: mpsc::Sender<String>) {
    let shown = address.to_string();
    let source = Source {
        name: tap.name().into(),
        address,
        dialect: None,
        key: None,
        judge: Judge::default(),
        gateway: "record".into(),
        patience: Patience::default(),
        pulse: Pulse::default(),
        tap,
    };
    let (out, mut gathered) = mpsc::channel(256);
    tokio::spawn(collect::collect(source, out));
    while let Some(Gathered { what, .. }) = gathered.recv().await {
        let note = match what {
            collect::What::Opened(Some(settings)) => format!("{shown}: open at {}", settings.name()),
            collect::What::Opened(None) => format!("{shown}: open"),
            collect::What::Lost(error) => error.to_string(),
            collect::What::Silent { bytes: true } | collect::What::Quiet { bytes: true } => {
                format!("{shown}: bytes come, but no telegram")
            }
            collect::What::Silent { bytes: false } | collect::What::Quiet { bytes: false } => {
                format!("{shown}: nothing comes: are the meter and the cable well?")
            }
            collect::What::ReadAs { form, left_out } => {
                format!("{shown}: read as {}{}", form.name(), decode::left_out(left_out))
            }
            collect::What::Ended => break,
            collect::What::Telegram { .. }
            | collect::What::Rejected(_)
            | collect::What::ClockOff(_)
            | collect::What::Asked { .. }
            | collect::What::Note(_) => continue,
        };
        if notes.send(note).await.is_err() {
            return;
        }
    }
}

/// Says each kind of trouble once, until it is over.
struct Teller {
    notes: mpsc::Sender<String>,
    said: Option<PortError>,
}

impl Teller {
    async fn open(&mut self, address: &Address) {
        self.said = None;
        let _ = self.notes.send(format!("{address}: open")).await;
    }

    async fn lost(&mut self, error: PortError) {
        if !self.said.as_ref().is_some_and(|said| said.is_like(&error)) {
            let _ = self.notes.send(error.to_string()).await;
            self.said = Some(error);
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn broken(address: &Address, reason: impl ToString) -> PortError {
    PortError::Broken { address: address.to_string(), reason: reason.to_string() }
}

/// Listens to a bus, and sends nothing.
async fn listen(address: Address, baud: u32, tap: Tap, notes: mpsc::Sender<String>) {
    let mut teller = Teller { notes, said: None };
    let mut buffer = vec![0u8; 16 * 1024];
    loop {
        // A device or a connection; anything else is read to its end.
        let is_line = match &address {
            Address::Stdin => false,
            Address::Tcp(_) => true,
            Address::Path(path) => port::is_device(path),
        };
        let opened = match is_line {
            true => port::open_wire(&address, baud).await.map(Either::Line),
            false => port::open(&address, LineSettings::Fast).await.map(Either::Port),
        };
        let error = match opened {
            Err(error) => error,
            Ok(mut open) => {
                teller.open(&address).await;
                tap.opened(&if is_line { bus::settings(baud) } else { String::new() }).await;
                // Only files are written down in other forms.
                let mut transcript = (!is_line).then(Transcript::new);
                loop {
                    let read = match &mut open {
                        Either::Line(wire) => wire.read(&mut buffer).await,
                        Either::Port(port) => port.bytes.read(&mut buffer).await,
                    };
                    match read {
                        Ok(0) => match transcript {
                            Some(mut transcript) => {
                                tap.bytes(Way::FromMeter, &transcript.end()).await;
                                return;
                            }
                            None => break broken(&address, "the other end closed it"),
                        },
                        Ok(count) => {
                            let read = buffer.get(..count).unwrap_or_default();
                            match &mut transcript {
                                Some(transcript) => tap.bytes(Way::FromMeter, &transcript.push(read)).await,
                                None => tap.bytes(Way::FromMeter, read).await,
                            }
                        }
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => break broken(&address, error),
                    }
                }
            }
        };
        teller.lost(error).await;
    }
}

enum Either {
    Line(port::Wire),
    Port(port::Port),
}

/// Passes bytes on between a master, at a pseudo-terminal, and the converter, and changes none.
async fn stand_between(
    address: Address,
    baud: u32,
    (mut master, _theirs): (SerialStream, SerialStream),
    tap: Tap,
    notes: mpsc::Sender<String>,
) {
    let mut teller = Teller { notes, said: None };
    let (mut asked, mut answered) = (vec![0u8; 4096], vec![0u8; 4096]);
    // As long as no master has opened it, it stands as we want the line to be.
    let _ = master.set_baud_rate(baud);
    let mut current = baud;
    loop {
        let error = match port::open_wire(&address, current).await {
            Err(error) => error,
            Ok(mut wire) => {
                teller.open(&address).await;
                tap.opened(&bus::settings(current)).await;
                loop {
                    tokio::select! {
                        read = wire.read(&mut answered) => match read {
                            Ok(0) => break broken(&address, "the other end closed it"),
                            Ok(count) => {
                                let bytes = answered.get(..count).unwrap_or_default();
                                let _ = tokio::time::timeout(MISSES, AsyncWriteExt::write_all(&mut master, bytes)).await;
                                tap.bytes(Way::FromMeter, bytes).await;
                            }
                            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                            Err(error) => break broken(&address, error),
                        },
                        read = AsyncReadExt::read(&mut master, &mut asked) => {
                            let Ok(count @ 1..) = read else {
                                tokio::time::sleep(Duration::from_millis(20)).await;
                                continue;
                            };
                            // Both ends of a pseudo-terminal have the settings of whoever opened it.
                            if let Ok(baud) = master.baud_rate() && baud != current {
                                current = baud;
                                if let Err(error) = wire.set_baud(baud) {
                                    break broken(&address, format!("does not take {baud} baud: {error}"));
                                }
                                tap.opened(&bus::settings(baud)).await;
                            }
                            let bytes = asked.get(..count).unwrap_or_default();
                            if let Err(error) = wire.write(bytes).await {
                                break broken(&address, error);
                            }
                            tap.bytes(Way::ToMeter, bytes).await;
                        }
                    }
                }
            }
        };
        teller.lost(error).await;
        // What was asked meanwhile is no request to the next line.
        while let Ok(Ok(1..)) = tokio::time::timeout(Duration::ZERO, AsyncReadExt::read(&mut master, &mut asked)).await
        {
        }
    }
}

/// A capture that is written, bounded by rotation.
struct Sink {
    path: PathBuf,
    out: Out,
    /// Most bytes of a file, and how many files.
    rotate: Option<u64>,
    keep: u32,
    ports: BTreeMap<String, PortInFile>,
    /// Whether something was written since the last flush: each of a packed file costs some bytes.
    is_fresh: bool,
}

/// A port in the file that is written.
struct PortInFile {
    /// How it was opened last.
    opening: Opening,
    /// Whether this file says so.
    is_open: bool,
    /// Which of its microseconds are 0 in this file.
    zero: u64,
}

enum Out {
    Stdout(BufWriter<io::Stdout>),
    Plain(BufWriter<Counted>),
    /// One member; a flush ends a block of it, which can be read without what follows.
    Gzip(GzEncoder<Counted>),
}

/// A file, and how many bytes it has.
struct Counted {
    file: File,
    bytes: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.bytes = self.bytes.saturating_add(count as u64);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Sink {
    fn open(path: &Path, rotate: Option<u64>, keep: u32) -> Result<Self, Failure> {
        if path.as_os_str() == "-" {
            if rotate.is_some() {
                return Err(Failure::usage("--rotate needs a file: standard output has one end"));
            }
            let out = Out::Stdout(BufWriter::new(io::stdout()));
            return Ok(Self { path: path.to_owned(), out, rotate, keep, ports: BTreeMap::new(), is_fresh: false });
        }
        // What is to be moved and removed in the end is looked at before anything is recorded.
        if rotate.is_some() {
            for number in 1..=keep.max(1) {
                own(&numbered(path, number)).map_err(Failure::usage)?;
            }
        }
        let out = Self::file(path)?;
        Ok(Self { path: path.to_owned(), out, rotate, keep, ports: BTreeMap::new(), is_fresh: false })
    }

    /// Opens a file at its end.
    fn file(path: &Path) -> Result<Out, Failure> {
        let shown = path.display();
        let failed = |error: io::Error| Failure::world(format!("{shown}: {error}"));
        let mut options = OpenOptions::new();
        let is_packed = path.extension().is_some_and(|ending| ending == "gz");
        // When people are at home stands in it.
        let file = options.read(true).append(true).create(true).mode(0o640).open(path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(Failure::usage(format!("{shown}: is no file that a capture can be written to")));
        }
        // Two recorders would write between each other's lines, and turn each other's files.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(Failure::usage(format!("{shown}: another recorder writes it: choose another name")));
        }
        if !is_capture(&file, is_packed).map_err(failed)? {
            return Err(Failure::usage(format!(
                "{shown}: is there, and is no {}capture: choose another name",
                if is_packed { "packed " } else { "" }
            )));
        }
        let file = if is_packed { mended(path, file).map_err(failed)? } else { file };
        // What was mended is another file.
        let _ = file.try_lock();
        let mut out = Counted { bytes: file.metadata().map_err(failed)?.len(), file };
        if is_packed {
            return Ok(Out::Gzip(GzEncoder::new(out, Compression::default())));
        }
        // The last recorder was killed within a line: that one ends here.
        if out.bytes > 0 {
            let mut last = [0];
            out.file.seek(SeekFrom::End(-1)).and_then(|_| out.file.read_exact(&mut last)).map_err(failed)?;
            if last != *b"\n" {
                out.write_all(b"\n").map_err(failed)?;
            }
        }
        Ok(Out::Plain(BufWriter::new(out)))
    }

    fn is_stdout(&self) -> bool {
        matches!(self.out, Out::Stdout(_))
    }

    /// How long the file is, as far as it was written.
    fn length(&self) -> u64 {
        match &self.out {
            Out::Stdout(_) => 0,
            Out::Plain(out) => out.get_ref().bytes.saturating_add(out.buffer().len() as u64),
            Out::Gzip(out) => out.get_ref().bytes,
        }
    }

    fn write(&mut self, entry: &Entry) -> io::Result<()> {
        if let Entry::Opening(opening) = entry {
            let port = PortInFile { opening: opening.clone(), is_open: true, zero: 0 };
            self.ports.insert(opening.port.clone(), port);
        }
        let mut lines = self.lines(entry);
        let is_full = self.rotate.is_some_and(|most| self.length().saturating_add(self.adds(&lines)) > most);
        if is_full && self.length() > 0 {
            self.turn()?;
            // A file can be read without the one before.
            for port in self.ports.values_mut() {
                port.is_open = false;
            }
            lines = self.lines(entry);
        }
        if let Entry::Chunk(chunk) = entry
            && let Some(port) = self.ports.get_mut(&chunk.port).filter(|port| !port.is_open)
        {
            (port.is_open, port.zero) = (true, chunk.us);
        }
        self.put(&lines)
    }

    /// How much longer a line makes the file: at most, where it is packed. What waits to be packed is less than 64 KiB.
    fn adds(&self, line: &str) -> u64 {
        let line = line.len().saturating_add(1) as u64;
        if matches!(self.out, Out::Gzip(_)) { line.saturating_add(64 * 1024) } else { line }
    }

    /// The line of an entry, behind the opening of its port where this file has none yet; times count from there.
    fn lines(&self, entry: &Entry) -> String {
        match entry {
            Entry::Opening(_) => entry.to_string(),
            Entry::Chunk(chunk) => match self.ports.get(&chunk.port) {
                Some(PortInFile { opening, is_open: false, .. }) => {
                    let opening = Entry::Opening(Opening { at: chunk.at, goes_on: true, ..opening.clone() });
                    format!("{opening}\n{}", Entry::Chunk(Chunk { us: 0, ..chunk.clone() }))
                }
                port => {
                    let zero = port.map_or(0, |port| port.zero);
                    Entry::Chunk(Chunk { us: chunk.us.saturating_sub(zero), ..chunk.clone() }).to_string()
                }
            },
        }
    }

    fn put(&mut self, line: &str) -> io::Result<()> {
        self.is_fresh = true;
        let out: &mut dyn Write = match &mut self.out {
            Out::Stdout(out) => out,
            Out::Plain(out) => out,
            Out::Gzip(out) => out,
        };
        out.write_all(line.as_bytes())?;
        out.write_all(b"\n")
    }

    fn flush(&mut self) -> io::Result<()> {
        if !std::mem::take(&mut self.is_fresh) {
            return Ok(());
        }
        match &mut self.out {
            Out::Stdout(out) => out.flush(),
            Out::Plain(out) => out.flush(),
            Out::Gzip(out) => out.flush(),
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        match &mut self.out {
            // It is asked for no block behind its end.
            Out::Gzip(out) => out.try_finish().and_then(|()| out.get_mut().flush()),
            _ => self.flush(),
        }
    }

    /// Puts the full file aside, and begins the next one.
    fn turn(&mut self) -> io::Result<()> {
        self.finish()?;
        let keep = self.keep;
        // Those that are too many, also of an earlier run that kept more.
        for full in (keep.max(1)..).map(|number| numbered(&self.path, number)) {
            if !own(&full).map_err(io::Error::other)? {
                break;
            }
            std::fs::remove_file(full)?;
        }
        for number in (1..keep.saturating_sub(1)).rev() {
            let full = numbered(&self.path, number);
            if own(&full).map_err(io::Error::other)? {
                std::fs::rename(full, numbered(&self.path, number.saturating_add(1)))?;
            }
        }
        if keep > 1 {
            std::fs::rename(&self.path, numbered(&self.path, 1))?;
        } else {
            std::fs::remove_file(&self.path)?;
        }
        self.out = Self::file(&self.path).map_err(|failure| io::Error::other(failure.message))?;
        // All times begin anew with the openings that follow.
        Ok(())
    }
}

/// Whether a file is there that a recorder may move and remove: a capture. The error says that something else is.
fn own(path: &Path) -> Result<bool, String> {
    let shown = path.display();
    let file = match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Ok(found) if found.is_file() => File::open(path).map_err(|error| format!("{shown}: {error}"))?,
        _ => return Err(format!("{shown}: is in the way of --rotate, and is no capture: choose another name")),
    };
    let is_packed = path.extension().is_some_and(|ending| ending == "gz");
    match is_capture(&file, is_packed) {
        Ok(true) => Ok(true),
        Ok(false) => Err(format!("{shown}: is in the way of --rotate, and is no capture: choose another name")),
        Err(error) => Err(format!("{shown}: {error}")),
    }
}

/// `x.jsonl.gz` and 3 make `x.3.jsonl.gz`.
fn numbered(path: &Path, number: u32) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let endings = [".jsonl.gz", ".jsonl", ".gz"];
    let ending = endings.into_iter().find(|ending| name.len() > ending.len() && name.ends_with(ending)).unwrap_or("");
    let stem = name.strip_suffix(ending).unwrap_or(&name);
    path.with_file_name(format!("{stem}.{number}{ending}"))
}

/// Whether a file that is there can go on as a capture. An empty one can.
fn is_capture(file: &File, is_packed: bool) -> io::Result<bool> {
    let mut file = BufReader::new(file);
    file.seek(SeekFrom::Start(0))?;
    if file.fill_buf()?.is_empty() {
        return Ok(true);
    }
    let mut begin = Vec::new();
    if is_packed {
        if !file.fill_buf()?.starts_with(&[0x1F, 0x8B]) {
            return Ok(false);
        }
        // A member that is torn so early holds nothing.
        let read = GzDecoder::new(&mut file).take(16).read_to_end(&mut begin);
        return Ok(
            capture::begins(&begin) == Some(true) || (begin.is_empty() && read.is_err_and(|error| is_torn(&error)))
        );
    }
    file.take(16).read_to_end(&mut begin)?;
    Ok(capture::begins(&begin) != Some(false))
}

/// A packed capture whose last member is whole. Where a recorder was killed, what it wrote is packed anew: nothing that stands behind a
/// torn member could be read.
fn mended(path: &Path, file: File) -> io::Result<File> {
    let mut whole = 0;
    let mut buffer = vec![0; 64 * 1024];
    let text = {
        let mut packed = BufReader::new(&file);
        packed.seek(SeekFrom::Start(0))?;
        loop {
            if packed.fill_buf()?.is_empty() {
                return Ok(file);
            }
            let mut member = GzDecoder::new(&mut packed);
            let mut text = 0u64;
            let is_whole = loop {
                match member.read(&mut buffer) {
                    Ok(0) => break true,
                    Ok(count) => text = text.saturating_add(count as u64),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if is_torn(&error) => break false,
                    Err(error) => return Err(error),
                }
            };
            if !is_whole {
                break text;
            }
            whole = packed.stream_position()?;
        }
    };
    // Beside the old one first: a power cut leaves one of them whole.
    let unfinished = path.with_extension("gz.new");
    let mut new = File::create(&unfinished)?;
    new.set_permissions(file.metadata()?.permissions())?;
    let mut old = BufReader::new(&file);
    old.seek(SeekFrom::Start(0))?;
    io::copy(&mut old.by_ref().take(whole), &mut new)?;
    let mut packer = GzEncoder::new(new, Compression::default());
    io::copy(&mut GzDecoder::new(old).take(text), &mut packer)?;
    packer.write_all(b"\n")?;
    packer.finish()?.sync_all()?;
    std::fs::rename(&unfinished, path)?;
    OpenOptions::new().read(true).append(true).open(path)
}

/// Whether a member is not whole, as opposed to a disk that cannot be read.
fn is_torn(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
    matches!(error.kind(), InvalidData | InvalidInput | UnexpectedEof)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn each_file_opens_a_port_where_its_first_chunk_stands() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.jsonl");
        let began = Timestamp::from_second(1_800_000_000).unwrap();
        let mut sink = Sink::open(&path, Some(2000), 100).unwrap();
        for port in ["a", "b"] {
            let (address, settings) = (String::new(), String::new());
            let opening = Opening { port: port.into(), wire: Wire::P1, address, settings, at: began, goes_on: false };
            sink.write(&Entry::Opening(opening)).unwrap();
        }
        // One speaks each second, the other each seven seconds.
        for second in 1..60u64 {
            for port in if second.is_multiple_of(7) { &["a", "b"][..] } else { &["a"] } {
                let at = began + Duration::from_secs(second);
                let what = What::Bytes(Way::FromMeter, vec![b'x'; 300]);
                let chunk = Chunk { port: (*port).to_owned(), us: second * 1_000_000, at, what };
                sink.write(&Entry::Chunk(chunk)).unwrap();
            }
        }
        sink.finish().unwrap();
        let mut files = 0;
        for file in std::fs::read_dir(folder.path()).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            assert!(bytes.len() <= 2000);
            let mut reader = capture::Reader::new();
            reader.push(&bytes);
            reader.end();
            let mut openings = BTreeMap::new();
            while let Some(entry) = reader.poll() {
                match entry.unwrap().1 {
                    Entry::Opening(opening) => drop(openings.insert(opening.port.clone(), opening.at)),
                    Entry::Chunk(chunk) => {
                        let since = chunk.at.duration_since(openings[&chunk.port]);
                        assert_eq!(since.as_micros(), i128::from(chunk.us), "{chunk:?}");
                    }
                }
            }
            files += 1;
        }
        assert!(files > 5);
    }
}
