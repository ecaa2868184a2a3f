//! `simulate`: virtual meters, on a pseudo-terminal for other programs to read, or of years in a file.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::ValueEnum;
use flate2::{Compression, write::GzEncoder};
use indicatif::ProgressBar;
use jiff::{SignedDuration, Timestamp};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};
use tokio_serial::{ClearBuffer, SerialPort, SerialStream};

use super::{
    Failure, Outcome, asked_to_end,
    history::{self, Filling, Messages},
    place, quiet_if_closed, table,
    terminal::{Link, terminal},
};
use crate::{
    capture::{Entry, Way, What},
    config::{self, Config, StoreUrl, parse_duration},
    moment::Moment,
    payload,
    simulate::{Book, Bus, Description, Household, Tape, bus, description::Place},
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// A P1 meter on a pseudo-terminal: that of a household; without a file, of one with a little of everything
    P1(P1),
    /// An M-Bus on a pseudo-terminal: that of a household, or with the meters of a file; without one, a bus with a little of everything
    Mbus(Mbus),
    /// All that the ports of a household bring from one moment to another, as a capture or into a database: years in seconds
    Household(Recorded),
}

#[derive(Debug, clap::Args)]
pub(super) struct P1 {
    /// The household (TOML); see `--print`
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// A name for the pseudo-terminal: a symbolic link that goes at the end
    #[arg(long, value_name = "PATH")]
    link: Option<PathBuf>,
    /// Let the household live so many times as fast: `60x` sends in a second what a minute brings
    #[arg(long, value_name = "N", value_parser = speed, default_value = "1x")]
    speed: u32,
    /// Print the household that is simulated without a FILE, and end
    #[arg(long)]
    print: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Mbus {
    /// The bus and its meters, or a household with one (TOML); see `--print`
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// A name for the pseudo-terminal: a symbolic link that goes at the end
    #[arg(long, value_name = "PATH")]
    link: Option<PathBuf>,
    /// Print the bus that is simulated without a FILE, and end
    #[arg(long)]
    print: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Recorded {
    /// The household (TOML); see `--print`
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The first telegram's moment, such as 2026-01-01T00:00:00+01:00
    #[arg(long, value_name = "TIME", required_unless_present = "print")]
    from: Option<Moment>,
    /// The last moment
    #[arg(long, value_name = "TIME", required_unless_present = "print")]
    until: Option<Moment>,
    /// How often the P1 port sends, in whole seconds; by default as often as such a meter does
    #[arg(long, value_name = "DURATION", value_parser = every)]
    every: Option<u32>,
    /// Where to write; packed where the name ends in .gz; `-`: standard output
    #[arg(long, value_name = "FILE", default_value = "-")]
    out: PathBuf,
    /// What to write
    #[arg(long, value_enum, default_value_t = Form::Capture)]
    format: Form,
    /// Write no capture, but what a gateway makes of it into this database: sqlite:///path or postgres://user@host/database. Neither
    /// journal nor broker is between
    #[arg(long, value_name = "URL", conflicts_with_all = ["out", "format"])]
    store: Option<String>,
    /// Write here what the meters hold at each month's end, at each exchange of a meter and at the end: an object of JSON a line, each
    /// register as the last report at or before then has it
    #[arg(long, value_name = "FILE")]
    books: Option<PathBuf>,
    /// Overwrite files that are there
    #[arg(long)]
    force: bool,
    /// Print the household that is simulated without a FILE, and end
    #[arg(long)]
    print: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// Lines of JSON with times: every port, both directions
    Capture,
    /// The bytes of the P1 port alone
    Raw,
}

/// What is simulated without a file.
pub(super) const BUS: &str = include_str!("../../fixtures/bus.toml");
const HOUSEHOLD: &str = include_str!("../../fixtures/household.toml");
/// The gateway that a household's messages are of.
const GATEWAY: &str = "simulate";

fn speed(text: &str) -> Result<u32, String> {
    let times = text.strip_suffix('x').and_then(|times| times.parse().ok());
    times
        .filter(|times| (1..=100_000).contains(times))
        .ok_or_else(|| "write a whole number and x, such as 60x".to_owned())
}

fn every(text: &str) -> Result<u32, String> {
    let duration = parse_duration(text).filter(|duration| duration.subsec_nanos() == 0);
    let seconds = duration.and_then(|duration| u32::try_from(duration.as_secs()).ok());
    seconds
        .filter(|seconds| *seconds > 0)
        .ok_or_else(|| "write whole seconds or more, such as 10s, 1m or 15m".to_owned())
}

pub(super) async fn simulate(command: Command) -> Result<Outcome, Failure> {
    match command {
        Command::P1(P1 { print: true, .. }) | Command::Household(Recorded { print: true, .. }) => show(HOUSEHOLD),
        Command::Mbus(Mbus { print: true, .. }) => show(BUS),
        Command::P1(arguments) => serve_p1(arguments).await,
        Command::Mbus(arguments) => serve_bus(arguments).await,
        Command::Household(arguments) => live(&arguments).await,
    }
}

fn show(text: &str) -> Result<Outcome, Failure> {
    let mut output = super::Output::new();
    for line in text.lines() {
        output.line(line)?;
    }
    output.finish()?;
    Ok(Outcome::Well)
}

async fn serve_p1(arguments: P1) -> Result<Outcome, Failure> {
    let (text, file) = read(arguments.file.as_deref(), HOUSEHOLD, "household.toml")?;
    let description = household(&text, &file)?;
    let mut meter = Household::of(&description, Moment::utc(Timestamp::now()));
    let Some(dialect) = meter.dialect() else {
        return Err(Failure::usage(format!("{file}: has no [p1]: nothing would be sent")));
    };
    let (mut stream, theirs, path) = terminal()?;
    let _link = arguments.link.map(|link| Link::new("--link", link, &path)).transpose()?;
    let period = dialect.period();
    let times = if arguments.speed > 1 { format!(", {} times as fast", arguments.speed) } else { String::new() };
    say!("A telegram every {period} s{times} on {path}; Ctrl-C ends it.");
    let send = async {
        // Ticks that were missed are made up for, so that their number is the time.
        let mut due = tokio::time::interval(Duration::from_secs(period.into()) / arguments.speed);
        let mut now = Timestamp::now();
        loop {
            due.tick().await;
            meter.advance(Moment::utc(now));
            now = now.checked_add(SignedDuration::from_secs(period.into())).unwrap_or(now);
            let (telegram, _) = meter.send();
            let written =
                tokio::time::timeout(Duration::from_millis(200), AsyncWriteExt::write_all(&mut stream, &telegram))
                    .await;
            if written.is_err() {
                // Nobody reads. What lies there is old when somebody does, and the last of it is cut.
                let _ = theirs.clear(ClearBuffer::Input);
            }
        }
    };
    tokio::select! {
        () = send => {}
        asked = asked_to_end() => asked?,
    }
    Ok(Outcome::Well)
}

async fn serve_bus(arguments: Mbus) -> Result<Outcome, Failure> {
    let (text, file) = read(arguments.file.as_deref(), BUS, "bus.toml")?;
    let bus = if is_household(&text) {
        let bus = Bus::of(&household(&text, &file)?, Moment::utc(Timestamp::now()));
        let bus = bus.ok_or_else(|| Failure::usage(format!("{file}: has no [bus]")))?;
        bus.map_err(|error| Failure::usage(format!("{file}: {error}")))?
    } else {
        bus(&text, &file)?
    };
    let (stream, theirs, path) = terminal()?;
    let _link = arguments.link.map(|link| Link::new("--link", link, &path)).transpose()?;
    let meters = if bus.slaves().len() == 1 { "1 meter".to_owned() } else { format!("{} meters", bus.slaves().len()) };
    say!("{meters} on {path}; Ctrl-C ends it.");
    for slave in bus.slaves() {
        let rate = slave.description.baud.map_or(String::new(), |baud| format!(" at {baud} Bd"));
        say!("  {:>3}  {}{rate}", slave.description.address, slave.secondary());
    }
    tokio::select! {
        served = serve(bus, stream, theirs) => served?,
        asked = asked_to_end() => asked?,
    }
    Ok(Outcome::Well)
}

/// Lets a household live, and writes what comes of it.
async fn live(arguments: &Recorded) -> Result<Outcome, Failure> {
    let (Some(from), Some(until)) = (arguments.from, arguments.until) else {
        return Err(Failure::usage("--from and --until say from when to when"));
    };
    if until.instant() < from.instant() {
        return Err(Failure::usage(format!("--until {until}: is before --from {from}")));
    }
    // With a day on either side, for the offset of its zone.
    let [first, last] = [1_167_696_000, 4_102_358_400];
    if let Some(moment) =
        [from, until].into_iter().find(|moment| !(first..last).contains(&moment.instant().as_second()))
    {
        return Err(Failure::usage(format!(
            "{moment}: is outside the years 2007 to 2099, which a meter's clock can show"
        )));
    }
    let (text, file) = read(arguments.file.as_deref(), HOUSEHOLD, "household.toml")?;
    let description = household(&text, &file)?;
    if arguments.format == Form::Raw && description.p1.is_none() {
        return Err(Failure::usage(format!("{file}: has no [p1], and raw is the bytes of its port: write a capture")));
    }
    let bad =
        |bad: crate::simulate::description::Bad| Failure::usage(format!("{}: {bad}", place(&text, &file, bad.place)));
    let tape = Tape::new(&description, from, until, arguments.every).map_err(bad)?;
    // Said before anything is made.
    let books = arguments.books.as_ref().map(|path| Sink::open(path, arguments.force)).transpose()?;
    let progress = history::progress_bar(tape.progress().1);
    let (tape, gateway) = match &arguments.store {
        // Under which a replay has a meter that does not name itself.
        None => (record(arguments, tape, &progress)?, "replay"),
        Some(url) => (store(&place::parse(url)?, tape, &description, &progress).await?, GATEWAY),
    };
    progress.finish_and_clear();
    if let (Some(path), Some(mut books)) = (&arguments.books, books) {
        for (moment, book) in tape.books() {
            books.write_all(lines_of(moment, book, gateway).as_bytes()).map_err(|error| unwritten(path, error))?;
        }
        books.finish().map_err(|error| unwritten(path, error))?;
    }
    Ok(Outcome::Well)
}

/// Writes a tape as a capture or the like.
fn record(arguments: &Recorded, mut tape: Tape, progress: &ProgressBar) -> Result<Tape, Failure> {
    let mut sink = Sink::open(&arguments.out, arguments.force)?;
    let (mut telegrams, mut others) = (0u64, 0u64);
    let mut made = 0u64;
    while let Some(entry) = tape.next() {
        let is_p1 = matches!(&entry, Entry::Chunk(chunk) if chunk.port == "p1");
        match &entry {
            Entry::Chunk(_) if is_p1 => telegrams = telegrams.saturating_add(1),
            Entry::Chunk(_) => others = others.saturating_add(1),
            Entry::Opening(_) => {}
        }
        let written = match (&entry, arguments.format) {
            (entry, Form::Capture) => writeln!(sink, "{entry}"),
            (Entry::Chunk(chunk), Form::Raw) if is_p1 => match &chunk.what {
                What::Bytes(Way::FromMeter, bytes) => sink.write_all(bytes),
                _ => Ok(()),
            },
            _ => Ok(()),
        };
        written.map_err(|error| unwritten(&arguments.out, error))?;
        made = made.saturating_add(1);
        if made.is_multiple_of(1024) {
            progress.set_position(tape.progress().0);
        }
    }
    sink.finish().map_err(|error| unwritten(&arguments.out, error))?;
    let damaged = tape.damaged();
    let damaged = if damaged > 0 { format!(", {damaged} more or of them damaged or silent") } else { String::new() };
    progress.suspend(|| say!("{telegrams} telegrams{damaged}; {others} pieces of what went over the bus"));
    Ok(tape)
}

/// Puts a tape into a database, and says in a line of JSON what came of it.
async fn store(url: &StoreUrl, tape: Tape, described: &Description, progress: &ProgressBar) -> Result<Tape, Failure> {
    let begin = Instant::now();
    let mut filling = Filling::open(&own_store(url)).await?;
    let messages = filling.write(Messages::new(tape, described, GATEWAY), progress).await?;
    let filled = filling.close().await?;
    let (counts, ms) = (messages.counts(), |duration: Duration| duration.as_millis());
    let mut output = super::Output::new();
    output.line(&format!(
        "{{\"telegrams\":{},\"rejected\":{},\"messages\":{},\"stored\":{},\"repeated\":{},\"ms\":{},\"commit\":{{\"count\":{},\"ms\":{},\
         \"longest_ms\":{}}},\"upkeep\":{{\"count\":{},\"ms\":{},\"longest_ms\":{}}}}}",
        counts.telegrams,
        counts.rejected,
        filled.stored.saturating_add(filled.repeated),
        filled.stored,
        filled.repeated,
        ms(begin.elapsed()),
        filled.commits,
        ms(filled.commit),
        ms(filled.longest_commit),
        filled.steps,
        ms(filled.upkeep),
        ms(filled.longest_step),
    ))?;
    output.finish()?;
    Ok(messages.into_tape())
}

/// A store that keeps everything, however old it is.
fn own_store(url: &StoreUrl) -> config::Store {
    let config = Config::parse("[store]\nurl = \"sqlite://replaced\"\n", "simulate").ok();
    // A text of our own, which a test reads.
    #[expect(clippy::expect_used, reason = "the text is a constant")]
    let store = config.and_then(|config| config.store).expect("a [store]");
    config::Store { url: url.clone(), retention: Duration::MAX, ..store }
}

/// The registers of a book, an object of JSON a line, as this gateway would name their meters.
fn lines_of(moment: Moment, book: &Book, gateway: &str) -> String {
    let mut lines = String::new();
    for reading in &book.readings {
        lines.push_str(&format!("{{\"at\":\"{moment}\",\"meter\":"));
        payload::string(&mut lines, &book.meter.name(gateway, "p1"));
        let (medium, register, value) = (book.medium.name(), &reading.register, reading.value);
        lines.push_str(&format!(",\"medium\":\"{medium}\",\"register\":\"{register}\",\"value\":{value},\"unit\":"));
        payload::string(&mut lines, reading.unit.as_str());
        for (name, value) in table::remarks(reading) {
            lines.push_str(&format!(",\"{name}\":"));
            if value.bytes().all(|byte| byte.is_ascii_digit()) {
                lines.push_str(&value);
            } else {
                payload::string(&mut lines, &value);
            }
        }
        let measured_at = reading.at.unwrap_or(book.at);
        lines.push_str(&format!(",\"measured_at\":\"{measured_at}\"}}\n"));
    }
    lines
}

/// Where a capture goes: packed or not.
enum Sink {
    Plain(BufWriter<Box<dyn Write>>),
    Packed(GzEncoder<BufWriter<Box<dyn Write>>>),
}

impl Sink {
    fn open(path: &Path, force: bool) -> Result<Self, Failure> {
        if !force && path.metadata().is_ok_and(|found| found.is_file() && found.len() > 0) {
            return Err(Failure::usage(format!("{}: is there already; --force overwrites it", path.display())));
        }
        let output: Box<dyn Write> = if path.as_os_str() == "-" {
            Box::new(io::stdout().lock())
        } else {
            Box::new(File::create(path).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?)
        };
        let output = BufWriter::with_capacity(64 * 1024, output);
        let is_packed = path.extension().is_some_and(|extension| extension == "gz");
        Ok(if is_packed { Self::Packed(GzEncoder::new(output, Compression::fast())) } else { Self::Plain(output) })
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Self::Plain(mut output) => output.flush(),
            Self::Packed(output) => output.finish()?.flush(),
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(output) => output.write(bytes),
            Self::Packed(output) => output.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(output) => output.flush(),
            Self::Packed(output) => output.flush(),
        }
    }
}

fn unwritten(path: &Path, error: io::Error) -> Failure {
    match path.as_os_str() == "-" {
        true => quiet_if_closed(error),
        false => Failure::world(format!("{}: {error}", path.display())),
    }
}

/// The text of a file, and what it is called; without one the default.
fn read(path: Option<&Path>, default: &str, name: &str) -> Result<(String, String), Failure> {
    let Some(path) = path else { return Ok((default.to_owned(), name.to_owned())) };
    let text = std::fs::read_to_string(path);
    Ok((text.map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?, path.display().to_string()))
}

/// Whether a description is of a household; a bus alone has its meters without a table around them.
fn is_household(text: &str) -> bool {
    let tables = ["p1", "bus", "profile", "faults", "event"];
    toml::from_str::<toml::Table>(text).is_ok_and(|all| tables.iter().any(|table| all.contains_key(*table)))
}

/// Reads the description of a household.
fn household(text: &str, file: &str) -> Result<Description, Failure> {
    let mut description: Description = toml::from_str(text).map_err(|error| no_toml(text, file, &error))?;
    if let Some(p1) = &mut description.p1
        && let Some(key_file) = p1.key_file.take()
    {
        let line = place(text, file, Place("[p1]", 0));
        if p1.key.is_some() {
            return Err(Failure::usage(format!("{line}: key and key-file: one of them is enough")));
        }
        let path = Path::new(file).parent().unwrap_or_else(|| Path::new("")).join(key_file);
        let key = std::fs::read_to_string(&path);
        p1.key = Some(key.map_err(|error| Failure::usage(format!("{line}: key-file {}: {error}", path.display())))?);
    }
    description.check().map_err(|bad| Failure::usage(format!("{}: {bad}", place(text, file, bad.place))))?;
    Ok(description)
}

fn no_toml(text: &str, file: &str, error: &toml::de::Error) -> Failure {
    let before = error.span().map_or(0, |span| span.start);
    let line = text.bytes().take(before).filter(|&byte| byte == b'\n').count().saturating_add(1);
    Failure::usage(format!("{file}:{line}: {}", error.message()))
}

/// `file:line` of a table in a description; without the line where it has no header of its own.
fn place(text: &str, file: &str, Place(table, index): Place) -> String {
    let headers =
        text.lines().zip(1u32..).filter(|(line, _)| !table.is_empty() && line.trim_start().starts_with(table));
    headers.map(|(_, number)| number).nth(index).map_or_else(|| file.to_owned(), |line| format!("{file}:{line}"))
}

/// Reads the description of a bus.
pub(super) fn bus(text: &str, file: &str) -> Result<Bus, Failure> {
    let description: bus::Description = toml::from_str(text).map_err(|error| no_toml(text, file, &error))?;
    Bus::new(description, Moment::utc(Timestamp::now())).map_err(|error| Failure::usage(format!("{file}: {error}")))
}

/// Lets a bus answer whoever opens the other end, each byte at its time. Does not end by itself.
///
/// `_theirs` stays open all the time: see [`terminal`].
pub(super) async fn serve(mut bus: Bus, mut stream: SerialStream, _theirs: SerialStream) -> Result<(), Failure> {
    let began = Instant::now();
    let mut buffer = [0u8; 512];
    loop {
        let wake = bus.next_byte().map_or(began + began.elapsed() + Duration::from_secs(3600), |at| began + at);
        tokio::select! {
            read = stream.read(&mut buffer) => match read {
                Ok(count @ 1..) => {
                    bus.advance(Moment::utc(Timestamp::now()));
                    // Both ends of a pseudo-terminal have the settings of whoever opened it.
                    if let Ok(baud) = stream.baud_rate() {
                        bus.set_baud(baud);
                    }
                    bus.handle_bytes(began.elapsed(), buffer.get(..count).unwrap_or_default());
                }
                Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            },
            () = tokio::time::sleep_until(wake) => {
                let bytes = bus.poll_bytes(began.elapsed());
                // Who does not read misses it, as on a wire.
                let _ = tokio::time::timeout(Duration::from_millis(50), AsyncWriteExt::write_all(&mut stream, &bytes)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_household_is_valid_and_so_is_every_key_that_it_shows() {
        let is_key = |line: &str| {
            line.strip_prefix("# ").is_some_and(|rest| {
                rest.starts_with("[[event]]") || rest.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '))
            })
        };
        let mut shown = 0;
        let all: String = HOUSEHOLD
            .lines()
            .filter(|line| !line.contains("key-file"))
            .map(|line| {
                shown += usize::from(is_key(line));
                if is_key(line) { format!("{}\n", line.strip_prefix("# ").unwrap()) } else { format!("{line}\n") }
            })
            .collect();
        assert!(shown > 25, "{shown}");
        let described = household(HOUSEHOLD, "x").unwrap();
        let mut full = household(&all, "x").unwrap();
        assert_eq!(full.events.len(), 4);
        assert_eq!(full.profile, described.profile);
        assert_eq!(full.faults, described.faults);
        let [p1, default] = [&mut full, &mut described.clone()].map(|description| description.p1.take().unwrap());
        assert_eq!(
            (p1.phases, p1.identification, p1.identifier),
            (default.phases, default.identification, default.identifier)
        );
        assert!(is_household(HOUSEHOLD) && !is_household(BUS));
    }

    #[test]
    fn what_cannot_be_is_said_with_its_place() {
        let said = |text: &str| household(text, "h.toml").unwrap_err().message;
        for (text, expected) in [
            ("seed = 1\n", "h.toml: there is no meter"),
            ("[p1]\ncolour = 1\n", "h.toml:2: unknown field `colour`"),
            ("[p1]\n\ndialect = \"atlantis\"\n", "h.toml:3: unknown variant `atlantis`"),
            ("\n[p1]\nphases = 2\n", "h.toml:2: phases = 2"),
            ("[p1]\nkey = \"00\"\n", "h.toml:1: key: no key"),
            ("[p1]\nkey-file = \"nowhere\"\n", "h.toml:1: key-file nowhere"),
            ("[p1]\n[[p1.meter]]\nmeasures = \"gas\"\nidentifier = \"\u{e9}\"\n", "h.toml:2: identifier"),
            ("[bus]\nbaud = 7\n", "h.toml:1: baud = 7"),
            ("[bus]\n[[bus.meter]]\nmeter = \"x\"\n", "h.toml:1: `x` is no meter"),
            ("[p1]\n[profile]\npeople = 21\n", "h.toml:2: people"),
            ("[p1]\n[profile]\nholidays = [\"2026-02-30/2026-03-01\"]\n", "h.toml:3: `2026-02-30/2026-03-01`"),
            ("[p1]\n[faults]\ncut = 1000001\n", "h.toml:2: they come to 1000001"),
            ("[p1]\n[[event]]\nwhat = \"flood\"\n", "h.toml:3: unknown variant `flood`"),
            (
                "[p1]\n[[event]]\nwhat = \"clock\"\nat = \"2026-05-04T10:20:00+02:00\"\nahead-s = 1\n[[event]]\nwhat = \"outage\"\n\
                 at = \"2026-05-04T10:20:00+02:00\"\nuntil = \"2026-05-04T10:20:00+02:00\"\n",
                "h.toml:6: until",
            ),
            (
                "[p1]\n[[event]]\nwhat = \"exchange\"\nat = \"2026-05-04T10:20:00+02:00\"\nmeter = \"p1.1\"\nidentifier = \"G1\"\n",
                "h.toml:2: meter: there is no `p1.1`",
            ),
            ("[p1]\n[[event]]\nwhat = \"clock\"\nat = \"noon\"\nahead-s = 1\n", "h.toml:2: `noon`"),
        ] {
            let said = said(text);
            assert!(said.starts_with(expected), "{said}\nnot {expected}");
        }
    }
}
