//! A virtual household on tap, for the scripts that measure (`tests/footprint`, `tests/disk-writes`).
//!
//!     household COUNT         writes COUNT telegrams, each a second after the one before, as fast as they are taken
//!     household --terminal    prints the path of a pseudo-terminal, and sends a telegram there each second for ever
//!
//! The terminal is fed in the pieces in which a serial adapter hands over 115200 Bd, because how often the
//! reader wakes up is part of what it costs.

use std::{
    error::Error,
    io::{self, Write},
    thread,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use meterkast::{moment::Moment, simulate::Household};
use tokio_serial::{SerialPort, SerialStream};

/// An FTDI adapter waits so long for more bytes before it hands over what it has.
const LATENCY: Duration = Duration::from_millis(16);
/// What arrives in that time: 11,520 bytes a second.
const PIECE: usize = 184;

fn main() -> Result<(), Box<dyn Error>> {
    let argument = std::env::args().nth(1).ok_or("how many telegrams? COUNT, or --terminal")?;
    if argument == "--terminal" {
        return feed();
    }
    let count: i64 = argument.parse().map_err(|error| format!("`{argument}`: {error}"))?;
    // Noon in the summer of 2026: any moment does, but the same each time.
    let start = Moment::from_millis(1_782_900_000_000, 120).ok_or("no such moment")?;
    let mut household = Household::new(1, start);
    let mut out = io::BufWriter::new(io::stdout().lock());
    for second in 0..count {
        let now = Moment::from_millis(start.millis() + 1000 * second, 120).ok_or("no such moment")?;
        household.advance(now);
        out.write_all(&household.telegram())?;
    }
    Ok(out.flush()?)
}

#[tokio::main(flavor = "current_thread")]
async fn feed() -> Result<(), Box<dyn Error>> {
    let (mut meter, device) = SerialStream::pair()?;
    writeln!(io::stdout(), "{}", device.name().ok_or("the pseudo-terminal has no name")?)?;
    // Others open it by its path and for themselves alone, as they would an adapter.
    drop(device);
    let now = || Moment::utc(Timestamp::now());
    let mut household = Household::new(1, now());
    let mut due = Instant::now();
    loop {
        household.advance(now());
        for piece in household.telegram().chunks(PIECE) {
            // Nobody has it open yet, or nobody reads: on a wire the bytes are lost, too.
            let _ = meter.try_write(piece);
            thread::sleep(LATENCY);
        }
        due += Duration::from_secs(1);
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}
