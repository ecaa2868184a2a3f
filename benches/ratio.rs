//! How many times as fast as `dsmr5`: the candidates take turns, so that whatever else the machine does meets
//! them alike. See `shared` for what is measured.
#![allow(clippy::expect_used, clippy::print_stdout, reason = "a benchmark prints, and may fail loudly")]

use std::time::Instant;

use meterkast::p1::Framer;
use shared::{TELEGRAMS, minutes};

mod shared;

const TURNS: usize = 3000;

/// The fastest turn and the median in nanoseconds a telegram.
fn a_telegram(mut turns: Vec<u128>) -> [u128; 2] {
    turns.sort_unstable();
    [0, turns.len() / 2].map(|turn| turns.get(turn).expect("a turn") / TELEGRAMS as u128)
}

fn main() {
    // Without `--bench`, as in `cargo test --benches`, it only shows that it runs.
    let turns = if std::env::args().any(|argument| argument == "--bench") { TURNS } else { 1 };
    println!("nanoseconds a telegram       crc alone   meterkast       dsmr5       ratio");
    for minute in minutes() {
        let mut framer = Framer::new();
        let mut took = [const { Vec::new() }; 3];
        for _ in 0..turns {
            let candidates: [&mut dyn FnMut(); 3] =
                [&mut || shared::crc_alone(&minute), &mut || shared::meterkast(&mut framer, &minute), &mut || {
                    shared::dsmr5(&minute)
                }];
            for (took, candidate) in took.iter_mut().zip(candidates) {
                let begin = Instant::now();
                candidate();
                took.push(begin.elapsed().as_nanos());
            }
        }
        let [crc, ours, theirs] = took.map(a_telegram);
        for (name, (crc, (ours, theirs))) in ["fastest", "median"].iter().zip(crc.iter().zip(ours.iter().zip(theirs))) {
            let ratio = theirs as f64 / *ours as f64;
            println!("{:<16}{name:>10} {crc:>11} {ours:>11} {theirs:>11} {ratio:>11.2}", minute.name);
        }
    }
}
