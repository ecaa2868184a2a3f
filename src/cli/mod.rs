//! The commands.
//!
//! Enters: arguments. Leaves: data on standard output, everything else on standard error, and an exit
//! code: 0 all well, 1 some input was rejected or a promise not met, 2 wrong usage or configuration.

#![warn(clippy::print_stderr)]

/// A line on standard error. Where nobody reads it, or the disk behind it is full, what is being done goes on all the same.
macro_rules! say {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($words)*);
    }};
}

mod backup;
mod check;
mod csv;
mod decode;
mod demo;
mod diff;
mod dump;
mod export;
mod forget;
mod history;
mod input;
mod mbus;
mod place;
mod readings;
mod record;
mod redact;
mod replay;
mod run;
mod scan;
mod simulate;
mod status;
mod table;
mod terminal;
mod usage;

use std::{
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use crate::{config::Config, daemon::StartError};

/// Reads DSMR P1 and M-Bus meters, and streams their registers through MQTT into a time-series store.
#[derive(Debug, Parser)]
#[command(name = "meterkast", version, about)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Virtual meters, the real daemon, an embedded broker and a store: no configuration needed
    Demo(demo::Arguments),
    /// The daemon
    Run(run::Arguments),
    /// How the gateway, its ports and its stores are: exit code 1 when something is wrong
    Status(status::Arguments),
    /// Validate a configuration: names the line and the remedy
    Check(check::Arguments),
    /// Print what telegrams of P1 and M-Bus meters say
    Decode(decode::Arguments),
    /// Write down what a port brings, byte for byte, with the time: a capture
    Record(record::Arguments),
    /// What two telegrams of the same meters say otherwise, register by register
    Diff(diff::Arguments),
    /// Send a capture the whole way, and wait until it is stored
    Replay(replay::Arguments),
    /// Make captures and telegrams safe to publish: other names, no texts
    Redact(redact::Arguments),
    /// Print the registers at a moment
    Readings(readings::Arguments),
    /// Print what was used in each year, month, day, hour or quarter-hour
    Usage(usage::Arguments),
    /// Readings as a file for other programs: CSV, JSON lines or Parquet
    Export(export::Arguments),
    /// Copy the database of a store, while it runs or not
    Backup(backup::Backup),
    /// Put a backup in the place of the database
    Restore(backup::Restore),
    /// Delete a meter, or what is old of it, from the store without a trace
    Forget(forget::Arguments),
    /// Find the meters at a port, and print the configuration to paste
    Scan(scan::Arguments),
    /// One meter on an M-Bus: read it, give it an address or another baud rate
    #[command(subcommand)]
    Mbus(mbus::Command),
    /// Virtual meters on a pseudo-terminal, for other programs to read
    #[command(subcommand)]
    Simulate(simulate::Command),
}

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Aligned columns, for people
    Table,
    /// A JSON object a line, for programs
    Json,
}

/// How rows are printed: by commands whose data is a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RowFormat {
    /// Aligned columns, for people
    Table,
    /// A JSON object a line, for programs
    Json,
    /// Comma-separated values with a head, for spreadsheets and data frames; times in UTC
    Csv,
}

/// How a command ended, when it could be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// All well.
    Well,
    /// Some input was rejected or a promise not met: each was named on standard error.
    Partly,
}

/// Why a command could not be carried out: shown as it is.
#[derive(Debug)]
struct Failure {
    message: String,
    /// Wrong usage or configuration, as opposed to the world being in the way.
    usage: bool,
}

impl Failure {
    fn usage(message: impl ToString) -> Self {
        Self { message: message.to_string(), usage: true }
    }

    fn world(message: impl ToString) -> Self {
        Self { message: message.to_string(), usage: false }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Self { usage: error.is_configuration(), message: error.to_string() }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::world(error)
    }
}

/// Reads the configuration that `--config` names, or the one that stands where the daemon looks for it. Who has none there is told how to
/// name one.
fn configuration(file: &Path, how: &str) -> Result<Config, Failure> {
    Config::read(file).map_err(|error| {
        if file.exists() {
            return Failure::usage(error);
        }
        Failure::usage(format!(
            "{error}: name the configuration with {how}; config/meterkast.toml in the sources explains every key, and `meterkast check FILE` \
             validates yours"
        ))
    })
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let level = if matches!(arguments.command, Command::Run(_)) { "info" } else { "warn" };
    log_to_stderr(level);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            say!("meterkast: cannot start: {error}");
            return ExitCode::from(1);
        }
    };
    let outcome = runtime.block_on(async {
        match arguments.command {
            Command::Demo(arguments) => demo::demo(arguments).await,
            Command::Run(arguments) => run::run(arguments).await,
            Command::Status(arguments) => status::status(arguments).await,
            Command::Check(arguments) => check::check(&arguments),
            Command::Decode(arguments) => decode::decode(&arguments),
            Command::Record(arguments) => record::record(arguments).await,
            Command::Diff(arguments) => diff::diff(&arguments),
            Command::Replay(arguments) => replay::replay(arguments).await,
            Command::Redact(arguments) => redact::redact(&arguments),
            Command::Readings(arguments) => readings::readings(arguments).await,
            Command::Usage(arguments) => usage::usage(arguments).await,
            Command::Export(arguments) => export::export(arguments).await,
            Command::Backup(arguments) => backup::backup(arguments).await,
            Command::Restore(arguments) => backup::restore(arguments).await,
            Command::Forget(arguments) => forget::forget(arguments).await,
            Command::Scan(arguments) => scan::scan(arguments).await,
            Command::Mbus(command) => mbus::mbus(command).await,
            Command::Simulate(command) => simulate::simulate(command).await,
        }
    });
    // A blocked read of standard input must not hold the process.
    runtime.shutdown_background();
    match outcome {
        Ok(Outcome::Well) => ExitCode::SUCCESS,
        Ok(Outcome::Partly) => ExitCode::from(1),
        Err(failure) if failure.message.is_empty() => ExitCode::SUCCESS,
        Err(failure) => {
            say!("meterkast: {}", failure.message);
            ExitCode::from(if failure.usage { 2 } else { 1 })
        }
    }
}

/// Logs to standard error; METERKAST_LOG chooses what, as `info`, `debug`, or `meterkast=debug,...`.
fn log_to_stderr(level: &str) {
    // The libraries' own words at `info` are about every connection and packet.
    let filter =
        std::env::var("METERKAST_LOG").unwrap_or_else(|_| format!("{level},rumqttd=off,rumqttc=error,sqlx=warn"));
    let filter = tracing_subscriber::EnvFilter::try_new(filter).unwrap_or_default();
    // It repeats lines of a password file that it cannot read.
    let filter = match "sqlx_postgres::options::pgpass=off".parse() {
        Ok(silence) => filter.add_directive(silence),
        Err(_) => filter,
    };
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false)
        // It would be said on standard error, which is what failed, and a panic there ends the task that had something to say.
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal());
    // systemd puts its own time on each line.
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        log.without_time().init();
    } else {
        log.init();
    }
}

/// Until somebody asks the process to end: Ctrl-C, a closed terminal, systemd.
async fn asked_to_end() -> Result<(), Failure> {
    let mut signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
    let [interrupt, terminate, hangup] = &mut signals;
    let (Ok(interrupt), Ok(terminate), Ok(hangup)) = (interrupt, terminate, hangup) else {
        return Err(Failure::world("signals cannot be listened to"));
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}

/// Standard output, buffered. Whoever closes it early (`| head`) ends the command quietly.
struct Output(io::BufWriter<io::StdoutLock<'static>>);

impl Output {
    fn new() -> Self {
        Self(io::BufWriter::new(io::stdout().lock()))
    }

    fn line(&mut self, line: &str) -> Result<(), Failure> {
        self.0.write_all(line.as_bytes()).and_then(|()| self.0.write_all(b"\n")).map_err(quiet_if_closed)
    }

    fn finish(mut self) -> Result<(), Failure> {
        self.0.flush().map_err(quiet_if_closed)
    }
}

fn quiet_if_closed(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::world(""),
        _ => Failure::world(format!("standard output: {error}")),
    }
}

/// A folder for the time of a command, or one that stays.
struct Folder {
    path: PathBuf,
    _temporary: Option<tempfile::TempDir>,
}

impl Folder {
    fn new(kept: Option<PathBuf>) -> Result<Self, Failure> {
        if let Some(path) = kept {
            std::fs::create_dir_all(&path).map_err(|error| {
                let shown = path.display();
                Failure::usage(if path.is_file() {
                    format!("--data {shown}: is a file; name a folder")
                } else {
                    format!("--data {shown}: the folder cannot be made: {error}")
                })
            })?;
            return Ok(Self { path, _temporary: None });
        }
        let temporary = tempfile::Builder::new().prefix("meterkast-").tempdir();
        let temporary =
            temporary.map_err(|error| Failure::world(format!("no folder can be made under TMPDIR: {error}")))?;
        Ok(Self { path: temporary.path().to_owned(), _temporary: Some(temporary) })
    }
}
