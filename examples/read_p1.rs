//! A P1 port read with the library alone: no daemon, no async. Set the line before, and give it as standard input:
//!
//!     stty -F /dev/ttyUSB0 115200 raw
//!     cargo run --no-default-features --example read_p1 < /dev/ttyUSB0
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is what an example is for")]

use std::io::{self, BufRead};

use meterkast::p1::Reader;

fn main() -> io::Result<()> {
    let (mut port, mut reader) = (io::stdin().lock(), Reader::new(None, None));
    loop {
        let bytes = port.fill_buf()?;
        let count = bytes.len();
        if count == 0 {
            reader.end()
        } else {
            reader.push(bytes)
        }
        port.consume(count);
        while let Some(result) = reader.poll() {
            match result {
                Ok(telegram) => telegram.decoded.reports.iter().for_each(|report| println!("{report:#?}")),
                Err(rejected) => eprintln!("byte {}: {rejected}", rejected.offset),
            }
        }
        if count == 0 {
            return Ok(());
        }
    }
}
