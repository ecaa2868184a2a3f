//! `simulate`: virtual meters on a pseudo-terminal, for other programs to read.

use std::{io, path::PathBuf, time::Duration};

use jiff::Timestamp;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};
use tokio_serial::{SerialPort, SerialStream};

use super::{
    Failure, Outcome, asked_to_end,
    terminal::{Link, terminal},
};
use crate::{
    moment::Moment,
    simulate::{Bus, bus::Description},
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// An M-Bus with the meters of a file; without one, a bus with a little of everything
    Mbus(Mbus),
}

#[derive(Debug, clap::Args)]
pub(super) struct Mbus {
    /// The bus and its meters (TOML); see `--print`
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// A name for the pseudo-terminal: a symbolic link that goes at the end
    #[arg(long, value_name = "PATH")]
    link: Option<PathBuf>,
    /// Print the bus that is simulated without a FILE, and end
    #[arg(long)]
    print: bool,
}

/// What is simulated without a file.
pub(super) const BUS: &str = include_str!("../../fixtures/bus.toml");

pub(super) async fn simulate(command: Command) -> Result<Outcome, Failure> {
    let Command::Mbus(arguments) = command;
    if arguments.print {
        let mut output = super::Output::new();
        for line in BUS.lines() {
            output.line(line)?;
        }
        output.finish()?;
        return Ok(Outcome::Well);
    }
    let (text, file) = match &arguments.file {
        Some(file) => {
            let text = std::fs::read_to_string(file);
            (text.map_err(|error| Failure::usage(format!("{}: {error}", file.display())))?, file.display().to_string())
        }
        None => (BUS.to_owned(), "bus.toml".to_owned()),
    };
    let bus = bus(&text, &file)?;
    let (stream, theirs, path) = terminal()?;
    let _link = arguments.link.map(|link| Link::new("--link", link, &path)).transpose()?;
    let meters = if bus.slaves().len() == 1 { "1 meter".to_owned() } else { format!("{} meters", bus.slaves().len()) };
    eprintln!("{meters} on {path}; Ctrl-C ends it.");
    for slave in bus.slaves() {
        let rate = slave.description.baud.map_or(String::new(), |baud| format!(" at {baud} Bd"));
        eprintln!("  {:>3}  {}{rate}", slave.description.address, slave.secondary());
    }
    tokio::select! {
        served = serve(bus, stream, theirs) => served?,
        asked = asked_to_end() => asked?,
    }
    Ok(Outcome::Well)
}

/// Reads the description of a bus.
pub(super) fn bus(text: &str, file: &str) -> Result<Bus, Failure> {
    let description: Description = toml::from_str(text).map_err(|error| {
        let before = error.span().map_or(0, |span| span.start);
        let line = text.bytes().take(before).filter(|&byte| byte == b'\n').count().saturating_add(1);
        Failure::usage(format!("{file}:{line}: {}", error.message()))
    })?;
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
                let _ = tokio::time::timeout(Duration::from_millis(50), stream.write_all(&bytes)).await;
            }
        }
    }
}
