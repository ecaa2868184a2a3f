//! A meter on an M-Bus read with the library alone, through anything that reads and writes: here a level converter on TCP.
//!
//!     cargo run --no-default-features --example read_mbus -- 192.0.2.7:10001 5                     # by primary address
//!     cargo run --no-default-features --example read_mbus -- 192.0.2.7:10001 KAM-12345678-1B-04    # by secondary address
#![allow(clippy::print_stdout, reason = "it is what an example is for")]

use std::{
    error::Error,
    io::{self, ErrorKind, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use meterkast::mbus::{self, Action, Frame, Job, Master, Outcome, Pattern, Target, Timing};

/// Carries out what a master says. `line` returns from `read` with a time-out now and then.
fn run(line: &mut (impl Read + Write), job: Job) -> io::Result<Outcome> {
    let (started, mut buffer) = (Instant::now(), [0; 256]);
    let mut master = Master::new(job.timing.baud);
    master.start(started.elapsed(), job);
    loop {
        while let Some(action) = master.poll_action() {
            match action {
                Action::Send(bytes) => line.write_all(&bytes)?,
                Action::Done(outcome) => return Ok(outcome),
                // A converter on TCP has its own rate.
                Action::Baud(_) => {}
            }
        }
        match line.read(&mut buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => master.handle_bytes(started.elapsed(), buffer.get(..count).unwrap_or_default()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
        if master.deadline().is_some_and(|deadline| deadline <= started.elapsed()) {
            master.handle_timeout(started.elapsed());
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (host, meter) = arguments.next().zip(arguments.next()).ok_or("HOST:PORT and the address of a meter?")?;
    let target = match meter.parse() {
        Ok(address) => Target::Primary(address),
        Err(_) => Target::Secondary(Pattern::from_text(&meter).ok_or("no address of a meter")?),
    };
    let mut line = TcpStream::connect(host)?;
    line.set_read_timeout(Some(Duration::from_millis(10)))?;
    match run(&mut line, Job::read(target, Timing::STANDARD))? {
        Outcome::Readout(readout) => {
            let frames: Vec<Frame<'_>> =
                readout.frames.iter().filter_map(|bytes| Some(Frame::parse(bytes).ok()?.0)).collect();
            println!("{:#?}", mbus::decode(&frames, 1)?);
            Ok(())
        }
        Outcome::Failed(trouble) => Err(trouble.to_string().into()),
        other => Err(format!("{other:?}").into()),
    }
}
