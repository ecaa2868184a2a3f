//! `mbus`: one meter on a bus.

use std::time::Duration;

use super::{Failure, Format, Outcome, Output, decode, scan};
use crate::{
    bus::Bus,
    config::Address,
    mbus::{self, Frame, Heard, Job, Pattern, Readout, Target, Task, Timing, frame::address},
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Read a meter now, and print what it says
    Read(Read),
    /// Give a meter another primary address
    SetAddress(SetAddress),
    /// Switch a meter to another baud rate
    SetBaud(SetBaud),
}

#[derive(Debug, clap::Args)]
struct Where {
    /// The bus: a serial device or tcp://host:port
    #[arg(long, value_name = "PORT", value_parser = Address::parse)]
    port: Address,
    /// The meter: a primary address, its number, or KAM-12345678-1B-04
    #[arg(long, value_name = "ADDRESS", value_parser = target)]
    meter: Target,
    /// The baud rate at which the meter listens now
    #[arg(long, value_name = "N", default_value = "2400", value_parser = scan::baud)]
    baud: u32,
    /// How long the meter may take to answer, such as 2s; by default what the standard allows it
    #[arg(long, value_name = "TIME", value_parser = scan::duration)]
    timeout: Option<Duration>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Read {
    #[command(flatten)]
    place: Where,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Print the answers as hex digits, a line each, for `decode` and for others
    #[arg(long)]
    hex: bool,
    /// Hours that the meter's clock stands ahead of UTC in winter
    #[arg(long, value_name = "HOURS", default_value_t = 1, allow_negative_numbers = true, value_parser = clap::value_parser!(i8).range(-12..=14))]
    utc_offset: i8,
}

#[derive(Debug, clap::Args)]
pub(super) struct SetAddress {
    #[command(flatten)]
    place: Where,
    /// The new address, 1 to 250
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=250))]
    to: u8,
    /// Even if somebody answers there already
    #[arg(long)]
    force: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct SetBaud {
    #[command(flatten)]
    place: Where,
    /// The new baud rate
    #[arg(long, value_name = "N", value_parser = scan::baud)]
    to: u32,
}

/// One meter, and no address that several heed: what is written there is written to all of them.
fn one(target: Target) -> Result<(), Failure> {
    let refuse = |why: &str| Err(Failure::usage(format!("--meter {target}: {why}: name one meter")));
    match target {
        Target::Primary(address::EVERYONE) => refuse("every meter heeds that address"),
        Target::Secondary(pattern) if !pattern.is_one_number() => refuse("a digit F stands for any"),
        _ => Ok(()),
    }
}

fn target(text: &str) -> Result<Target, String> {
    if text.len() < 4
        && let Ok(address) = text.parse::<u8>()
        && (address <= address::LAST || address == address::EVERYONE)
    {
        return Ok(Target::Primary(address));
    }
    Pattern::from_text(text).map(Target::Secondary).ok_or_else(|| {
        "write a primary address from 0 to 250 (254 for the only meter on a bus), 8 or 16 digits of a secondary one, or KAM-12345678-1B-04".to_owned()
    })
}

pub(super) async fn mbus(command: Command) -> Result<Outcome, Failure> {
    match command {
        Command::Read(arguments) => read(arguments).await,
        Command::SetAddress(arguments) => set_address(arguments).await,
        Command::SetBaud(arguments) => set_baud(arguments).await,
    }
}

impl Where {
    fn timing(&self) -> Timing {
        Timing { baud: self.baud, timeout: self.timeout, ..Timing::STANDARD }
    }

    async fn open(&self) -> Result<Bus, Failure> {
        Bus::open(&self.port, self.baud).await.map_err(Failure::world)
    }

    /// Reads a meter; None with the reason told.
    async fn readout(&self, bus: &mut Bus, target: Target, timing: Timing) -> Result<Option<Readout>, Failure> {
        match bus.run(Job::read(target, timing)).await.map_err(Failure::world)? {
            mbus::Outcome::Readout(readout) => Ok(Some(readout)),
            mbus::Outcome::Failed(trouble) => {
                say!("{}: meter {target}: {trouble}", self.port);
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// Whether just one meter heeds the address: what is written there is written to all who do.
    ///
    /// An answer that was damaged on the way looks like several at once, so it is asked for again; but since of several the same may be
    /// heard above the others now and then, two whole answers in a row are wanted then.
    async fn is_alone(&self, bus: &mut Bus) -> Result<bool, Failure> {
        let mut wanted = 1;
        for _ in 0..MOST_ASKED {
            let job = Job { target: self.meter, task: Task::Ask, timing: self.timing() };
            match bus.run(job).await.map_err(Failure::world)? {
                mbus::Outcome::Heard(Heard::Several(_)) => wanted = 2,
                _ => wanted -= 1,
            }
            if wanted == 0 {
                return Ok(true);
            }
        }
        say!(
            "{}: several meters answer to {}: name one by KAM-12345678-1B-04, as `scan` prints it",
            self.port,
            self.meter
        );
        Ok(false)
    }

    /// Sends a command; false with the reason told.
    async fn send(&self, bus: &mut Bus, command: mbus::Command) -> Result<bool, Failure> {
        let job = Job { target: self.meter, task: Task::Send(vec![command]), timing: self.timing() };
        match bus.run(job).await.map_err(Failure::world)? {
            mbus::Outcome::Sent => Ok(true),
            mbus::Outcome::Failed(trouble) => {
                say!("{}: meter {}: {trouble}", self.port, self.meter);
                Ok(false)
            }
            _ => Ok(false),
        }
    }
}

async fn read(arguments: Read) -> Result<Outcome, Failure> {
    let place = &arguments.place;
    let mut bus = place.open().await?;
    let Some(readout) = place.readout(&mut bus, place.meter, place.timing()).await? else {
        return Ok(Outcome::Partly);
    };
    let mut output = Output::new();
    if arguments.hex {
        for frame in &readout.frames {
            let bytes: Vec<String> = frame.iter().map(|byte| format!("{byte:02X}")).collect();
            output.line(&bytes.join(" "))?;
        }
    } else {
        let frames: Vec<Frame<'_>> =
            readout.frames.iter().filter_map(|frame| Frame::parse(frame).ok()).map(|(frame, _)| frame).collect();
        match mbus::decode(&frames, arguments.utc_offset) {
            Ok(decoded) => {
                let report = decoded.report.rename(|identity| identity.name("here", "mbus"));
                decode::print(&report, arguments.format, &mut output)?;
            }
            Err(reason) => {
                say!("{}: meter {}: {reason}", place.port, place.meter);
                return Ok(Outcome::Partly);
            }
        }
    }
    output.finish()?;
    Ok(Outcome::Well)
}

async fn set_address(arguments: SetAddress) -> Result<Outcome, Failure> {
    let (place, to) = (&arguments.place, arguments.to);
    one(place.meter)?;
    let mut bus = place.open().await?;
    if !place.is_alone(&mut bus).await? {
        return Ok(Outcome::Partly);
    }
    // Who it is, to know it again.
    let Some(before) = place.readout(&mut bus, place.meter, place.timing()).await? else {
        return Ok(Outcome::Partly);
    };
    let there = Job { target: Target::Primary(to), task: Task::Ask, timing: place.timing() };
    match bus.run(there).await.map_err(Failure::world)? {
        mbus::Outcome::Heard(Heard::Nobody) => {}
        mbus::Outcome::Heard(Heard::One(frame)) if who_sent(&frame) == who(&before) && who(&before) != NAMELESS => {
            say!("{}: {} has address {to} already", place.port, who(&before));
            return Ok(Outcome::Well);
        }
        _ if arguments.force => {}
        _ => {
            say!("{}: somebody answers at address {to} already; --force sets it all the same", place.port);
            return Ok(Outcome::Partly);
        }
    }
    if !place.send(&mut bus, mbus::Command::set_address(to)).await? {
        return Ok(Outcome::Partly);
    }
    let Some(after) = place.readout(&mut bus, Target::Primary(to), place.timing()).await? else {
        return Ok(Outcome::Partly);
    };
    let (before, after) = (who(&before), who(&after));
    if before != after {
        say!("{}: {after} answers at address {to}, and {before} was meant", place.port);
        return Ok(Outcome::Partly);
    }
    say!("{}: {after} answers at address {to}", place.port);
    Ok(Outcome::Well)
}

async fn set_baud(arguments: SetBaud) -> Result<Outcome, Failure> {
    let (place, to) = (&arguments.place, arguments.to);
    let Some(command) = mbus::Command::set_baud(to) else {
        return Err(Failure::usage(format!("--to {to}: no baud rate of M-Bus")));
    };
    one(place.meter)?;
    let mut bus = place.open().await?;
    if !place.is_alone(&mut bus).await? || !place.send(&mut bus, command).await? {
        return Ok(Outcome::Partly);
    }
    let timing = Timing { baud: to, ..place.timing() };
    let Some(readout) = place.readout(&mut bus, place.meter, timing).await? else {
        say!("{}: most meters go back to their old rate by themselves after some minutes", place.port);
        return Ok(Outcome::Partly);
    };
    say!("{}: {} answers at {to} Bd; it needs baud = {to} in its [[mbus.meter]]", place.port, who(&readout));
    Ok(Outcome::Well)
}

/// How often it is asked whether several answer.
const MOST_ASKED: u32 = 5;
const NAMELESS: &str = "a meter without a number";

/// The name of the meter that sent a readout.
fn who(readout: &Readout) -> String {
    who_sent(readout.frames.first().map(Vec::as_slice).unwrap_or_default())
}

fn who_sent(frame: &[u8]) -> String {
    let frame = Frame::parse(frame).ok();
    let secondary = frame.and_then(|(frame, _)| mbus::Answer::parse(&frame).ok()).and_then(|answer| answer.secondary);
    secondary.map_or_else(|| NAMELESS.to_owned(), |secondary| secondary.to_string())
}
