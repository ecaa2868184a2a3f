//! `export`: readings as a file for other programs, a row a reading.
//!
//! Enters: a store, running or not. Leaves: rows by meter and time, read and written in pages, so that memory does not grow with
//! the time asked for. A file gets its name when it is complete.

use std::{
    fs::{self, File},
    io::{self, BufWriter, IsTerminal as _, Write},
    ops::Range,
    path::{Path, PathBuf},
};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use tempfile::NamedTempFile;

use super::{
    Failure, Outcome, asked_to_end,
    csv::{Cell, Rows},
    place::{Place, chosen, is_same},
    quiet_if_closed,
};
use crate::{
    moment::Moment,
    reading::{Qualifiers, Reading, Register},
    store::{self, Meter, Quarters, Reader, Series},
    unit::Decimal,
};

#[cfg(feature = "parquet")]
mod parquet;

/// Messages in a page: some ten MB with all their readings.
const PAGE: usize = 4000;
/// Quarter-hours in a page: a year.
const QUARTERS: i64 = 35_136;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    place: Place,
    /// What to write
    #[arg(long, value_enum, default_value_t = Format::Csv)]
    format: Format,
    /// Only this meter; may be given several times
    #[arg(long = "meter", value_name = "NAME")]
    meters: Vec<String>,
    /// What was measured at this moment or later, such as 2026-11-01T00:00:00+01:00
    #[arg(long, value_name = "TIME")]
    from: Option<Moment>,
    /// What was measured before this moment
    #[arg(long, value_name = "TIME")]
    until: Option<Moment>,
    /// Counters at quarter-hours, which are kept for ever, instead of every reading
    #[arg(long)]
    quarters: bool,
    /// The file; `-` is standard output
    #[arg(long, value_name = "FILE", default_value = "-")]
    out: PathBuf,
}

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Comma-separated values with a head; times in UTC; whole values end in .0, so that nobody reads the column as integers
    Csv,
    /// A JSON object a line
    Json,
    /// Apache Parquet: values as exact decimals (in builds with the feature `parquet`)
    Parquet,
}

/// The columns.
const COLUMNS: [&str; 14] = [
    "meter",
    "medium",
    "register",
    "measured_at",
    "clock",
    "value",
    "unit",
    "storage",
    "tariff",
    "subunit",
    "function",
    "at",
    "suspect",
    "received_at",
];

/// A reading.
struct Row<'r> {
    meter: &'r str,
    medium: &'static str,
    register: &'r Register,
    measured_at: Timestamp,
    clock: Option<&'static str>,
    value: Decimal,
    unit: &'r str,
    qualifiers: Qualifiers,
    at: Option<Timestamp>,
    suspect: Option<&'static str>,
    received_at: Option<Timestamp>,
}

/// Where it goes.
type To = Box<dyn Write + Send>;

enum Sink {
    Csv(Box<Rows<To>>),
    Json(To),
    #[cfg(feature = "parquet")]
    Parquet(Box<parquet::Rows<To>>),
}

pub(super) async fn export(arguments: Arguments) -> Result<Outcome, Failure> {
    if cfg!(not(feature = "parquet")) && arguments.format == Format::Parquet {
        return Err(Failure::usage(
            "this build writes no Parquet: build it with `cargo build --release --features parquet`, or take --format csv",
        ));
    }
    let (from, until) = (arguments.from.map(Moment::millis), arguments.until.map(Moment::millis));
    let span = from.unwrap_or(i64::MIN)..until.unwrap_or(i64::MAX);
    if span.is_empty() {
        return Err(Failure::usage("--from is not before --until"));
    }
    let to_terminal = arguments.out.as_os_str() == "-" && io::stdout().is_terminal();
    if arguments.format == Format::Parquet && to_terminal {
        return Err(Failure::usage("Parquet is no text for a terminal: name a file with --out"));
    }
    let url = arguments.place.url()?;
    let mut reader = store::read(&url).await.map_err(Failure::world)?;
    let meters = reader.meters().await.map_err(Failure::world)?;
    let meters = chosen(meters, &arguments.meters)?;
    if url.file().is_some_and(|database| is_same(database, &arguments.out)) {
        let out = arguments.out.display();
        return Err(Failure::usage(format!("--out {out}: is the database itself; name another file")));
    }
    let mut out = Out::new(&arguments.out)?;
    let mut export = Export { sink: out.sink(arguments.format)?, rows: 0, progress: Progress::new(&meters, &span) };
    let work = async {
        for meter in &meters {
            if arguments.quarters {
                export.quarters(&mut *reader, meter, &span).await?;
            } else {
                export.messages(&mut *reader, meter, &span).await?;
            }
            export.progress.done(meter);
        }
        Ok(())
    };
    let finished = tokio::select! {
        finished = work => finished,
        asked = asked_to_end() => asked.and(Err(Failure::world("ended before it was complete"))),
    };
    let Export { sink, rows, progress } = export;
    progress.bar.finish_and_clear();
    finished?;
    sink.finish().map_err(|error| out.failure(error))?;
    let named = out.complete()?;
    match (rows, named) {
        (0, _) => say!("no readings in {url} in that time"),
        (rows, Some(file)) => say!("{}: {rows} readings", file.display()),
        _ => {}
    }
    Ok(Outcome::Well)
}

struct Export {
    sink: Sink,
    rows: u64,
    progress: Progress,
}

impl Export {
    async fn messages(&mut self, reader: &mut dyn Reader, meter: &Meter, span: &Range<i64>) -> Result<(), Failure> {
        let mut after = None;
        loop {
            let page = reader.messages(meter, span.clone(), after, PAGE).await.map_err(Failure::world)?;
            for stored in &page {
                let report = &stored.report;
                let at = report.measured_at.unwrap_or(stored.received_at).instant();
                for reading in &report.readings {
                    let Reading { register, value, unit, qualifiers, at: own, suspect, .. } = reading;
                    self.row(&Row {
                        meter: &report.meter,
                        medium: report.medium.name(),
                        register,
                        measured_at: at,
                        clock: Some(report.clock.name()),
                        value: *value,
                        unit: unit.as_str(),
                        qualifiers: *qualifiers,
                        at: own.map(Moment::instant),
                        suspect: suspect.map(|suspect| suspect.name()),
                        received_at: Some(stored.received_at.instant()),
                    })?;
                }
            }
            let Some(last) = page.last() else { return Ok(()) };
            self.progress.at(last.key.0);
            if page.len() < PAGE {
                return Ok(());
            }
            after = Some(last.key);
        }
    }

    async fn quarters(&mut self, reader: &mut dyn Reader, meter: &Meter, span: &Range<i64>) -> Result<(), Failure> {
        for series in reader.series(meter).await.map_err(Failure::world)? {
            let Some(known) = extent(reader, &series).await? else { continue };
            let mut begin = known.start.max(span.start.div_euclid(900_000));
            let end = known.end.min(span.end.div_euclid(900_000).saturating_add(1));
            while begin < end {
                let page = begin..begin.saturating_add(QUARTERS).min(end);
                begin = page.end;
                let found = reader.quarters(&series, &Quarters::All(page)).await.map_err(Failure::world)?;
                for quarter in found.iter().filter(|quarter| span.contains(&quarter.at)) {
                    let Ok(at) = Timestamp::from_millisecond(quarter.at) else { continue };
                    self.row(&Row {
                        meter: &meter.name,
                        medium: meter.medium.name(),
                        register: &series.register,
                        measured_at: at,
                        clock: None,
                        value: quarter.value,
                        unit: series.unit.as_str(),
                        qualifiers: Qualifiers::default(),
                        at: None,
                        suspect: None,
                        received_at: None,
                    })?;
                }
            }
        }
        Ok(())
    }

    fn row(&mut self, row: &Row<'_>) -> Result<(), Failure> {
        self.rows = self.rows.saturating_add(1);
        self.sink.row(row).map_err(quiet_if_closed)
    }
}

/// From the first quarter-hour of a series to behind its last.
async fn extent(reader: &mut dyn Reader, series: &Series) -> Result<Option<Range<i64>>, Failure> {
    let ends = Quarters::Around { marks: vec![0], each: 0 };
    let ends = reader.quarters(series, &ends).await.map_err(Failure::world)?;
    let quarters = || ends.iter().map(|quarter| quarter.quarter);
    Ok(quarters().min().zip(quarters().max()).map(|(first, last)| first..last.saturating_add(1)))
}

impl Sink {
    fn row(&mut self, row: &Row<'_>) -> io::Result<()> {
        let Qualifiers { storage, tariff, subunit, function } = row.qualifiers;
        let function = function.name();
        // A column that begins with whole numbers would be read as integers, and fail further down.
        let whole = (row.value.scale() == 0).then(|| format!("{}.0", row.value));
        match self {
            Self::Csv(rows) => rows.row(&[
                Cell::Text(row.meter),
                Cell::Plain(&row.medium),
                Cell::Plain(row.register),
                Cell::Time(row.measured_at),
                Cell::of(row.clock.as_ref()),
                whole.as_ref().map_or(Cell::Plain(&row.value), |whole| Cell::Plain(whole)),
                Cell::Text(row.unit),
                Cell::Plain(&storage),
                Cell::Plain(&tariff),
                Cell::Plain(&subunit),
                Cell::of(function.as_ref()),
                Cell::time(row.at),
                Cell::of(row.suspect.as_ref()),
                Cell::time(row.received_at),
            ]),
            Self::Json(to) => to.write_all(json(row, function).as_bytes()),
            #[cfg(feature = "parquet")]
            Self::Parquet(rows) => rows.row(row),
        }
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Self::Csv(rows) => rows.finish(),
            Self::Json(mut to) => to.flush(),
            #[cfg(feature = "parquet")]
            Self::Parquet(rows) => rows.finish(),
        }
    }
}

/// The same columns as a line of JSON; what is not known is null.
fn json(row: &Row<'_>, function: Option<&'static str>) -> String {
    use std::fmt::Write as _;
    let Row { register, value, medium, .. } = row;
    let mut json = String::from("{\"meter\":");
    let text = |json: &mut String, name: &str, text: Option<&str>| {
        let _ = write!(json, ",\"{name}\":");
        match text {
            Some(text) => crate::payload::string(json, text),
            None => json.push_str("null"),
        }
    };
    let time = |json: &mut String, name: &str, at: Option<Timestamp>| {
        let _ = match at {
            Some(at) => write!(json, ",\"{name}\":\"{at:.3}\""),
            None => write!(json, ",\"{name}\":null"),
        };
    };
    crate::payload::string(&mut json, row.meter);
    let _ = write!(json, ",\"medium\":\"{medium}\",\"register\":\"{register}\"");
    time(&mut json, "measured_at", Some(row.measured_at));
    text(&mut json, "clock", row.clock);
    let _ = write!(json, ",\"value\":{value}");
    text(&mut json, "unit", Some(row.unit));
    let Qualifiers { storage, tariff, subunit, .. } = row.qualifiers;
    let _ = write!(json, ",\"storage\":{storage},\"tariff\":{tariff},\"subunit\":{subunit}");
    text(&mut json, "function", function);
    time(&mut json, "at", row.at);
    text(&mut json, "suspect", row.suspect);
    time(&mut json, "received_at", row.received_at);
    json.push_str("}\n");
    json
}

/// Where the rows go.
enum Out {
    Stdout,
    /// A device, or a pipe with a name.
    Device(PathBuf),
    /// Complete, it takes the name.
    File {
        path: PathBuf,
        part: NamedTempFile,
    },
}

impl Out {
    fn new(path: &Path) -> Result<Self, Failure> {
        if path.as_os_str() == "-" {
            return Ok(Self::Stdout);
        }
        match fs::metadata(path) {
            Ok(there) if there.is_dir() => {
                let (out, name) = (path.display(), path.join("readings.csv"));
                return Err(Failure::usage(format!(
                    "--out {out}: is a directory; name a file, such as {}",
                    name.display()
                )));
            }
            Ok(there) if !there.is_file() => return Ok(Self::Device(path.to_owned())),
            _ => {}
        }
        // A link stays one.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        Ok(Self::File { part: part(&path).map_err(|why| Failure::usage(format!("--out {why}")))?, path })
    }

    fn sink(&mut self, format: Format) -> Result<Sink, Failure> {
        let file: io::Result<File> = match self {
            Self::Stdout => {
                let to = Box::new(BufWriter::with_capacity(1 << 16, io::stdout()));
                return Sink::new(format, to).map_err(quiet_if_closed);
            }
            Self::Device(path) => File::options().write(true).open(path),
            Self::File { part, .. } => part.as_file().try_clone(),
        };
        let to = file.map(|file| Box::new(BufWriter::with_capacity(1 << 16, file)));
        to.and_then(|to| Sink::new(format, to)).map_err(|error| self.failure(error))
    }

    fn failure(&self, error: io::Error) -> Failure {
        match self {
            Self::Stdout => quiet_if_closed(error),
            Self::Device(path) | Self::File { path, .. } => Failure::world(format!("{}: {error}", path.display())),
        }
    }

    /// Gives a file its name, once all of it would survive a power cut. Returns it.
    fn complete(self) -> Result<Option<PathBuf>, Failure> {
        match self {
            Self::Stdout | Self::Device(_) => Ok(None),
            Self::File { path, part } => {
                let failed = |error: io::Error| Failure::world(format!("{}: {error}", path.display()));
                part.as_file().sync_all().map_err(failed)?;
                part.persist(&path).map_err(|error| failed(error.error))?;
                Ok(Some(path))
            }
        }
    }
}

impl Sink {
    fn new(format: Format, to: To) -> io::Result<Self> {
        match format {
            Format::Csv => Rows::new(to, &COLUMNS).map(|rows| Self::Csv(Box::new(rows))),
            Format::Json => Ok(Self::Json(to)),
            #[cfg(feature = "parquet")]
            Format::Parquet => parquet::Rows::new(to).map(|rows| Self::Parquet(Box::new(rows))),
            #[cfg(not(feature = "parquet"))]
            Format::Parquet => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

/// A file beside `path` that goes by itself unless it is given that name. The error names `path`, and what is wrong with its folder: of this
/// file nobody asked.
pub(super) fn part(path: &Path) -> Result<NamedTempFile, String> {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // As any new file: the system takes away what the user does not want.
    let mode = fs::Permissions::from_mode(0o666);
    tempfile::Builder::new().prefix(".meterkast-").suffix(".part").permissions(mode).tempfile_in(folder).map_err(
        |error| {
            let (path, is_there, folder) = (path.display(), folder.exists(), folder.display());
            // The kind alone: the rest names the file that nobody asked for.
            let kind = error.kind();
            match kind {
                io::ErrorKind::NotFound if !is_there => {
                    format!("{path}: there is no folder {folder}; make it, or name another")
                }
                io::ErrorKind::NotADirectory => format!("{path}: {folder} is no folder; name another"),
                _ => format!("{path}: the folder {folder} cannot be written: {kind}"),
            }
        },
    )
}

/// How far it is, on a terminal: by the time that the meters were read in.
struct Progress {
    bar: ProgressBar,
    span: Range<i64>,
    before: u64,
    begin: i64,
    began: Vec<i64>,
}

impl Progress {
    fn new(meters: &[Meter], span: &Range<i64>) -> Self {
        let total = meters.iter().map(|meter| length(meter, span)).fold(0u64, u64::saturating_add);
        let bar = if io::stderr().is_terminal() { ProgressBar::new(total) } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{wide_bar} {percent} %, {eta} left") {
            bar.set_style(style);
        }
        let mut began: Vec<i64> = meters.iter().map(|meter| meter.first_seen.max(span.start)).rev().collect();
        Self { bar, span: span.clone(), before: 0, begin: began.pop().unwrap_or_default(), began }
    }

    fn at(&self, at: i64) {
        let within = u64::try_from(at.saturating_sub(self.begin)).unwrap_or(0);
        self.bar.set_position(self.before.saturating_add(within));
    }

    fn done(&mut self, meter: &Meter) {
        self.before = self.before.saturating_add(length(meter, &self.span));
        self.begin = self.began.pop().unwrap_or_default();
        self.bar.set_position(self.before);
    }
}

/// How long a meter was read within a span, ms.
fn length(meter: &Meter, span: &Range<i64>) -> u64 {
    let (from, until) = (meter.first_seen.max(span.start), meter.last_seen.min(span.end));
    u64::try_from(until.saturating_sub(from)).unwrap_or(0)
}
