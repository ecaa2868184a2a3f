//! From bytes to readings: ours, the crate `dsmr5`, and the CRC alone, which is the least that any must do.
//!
//! The telegram has three phases, a log of power failures and three slave meters; 60 of them are what a
//! DSMR 5 meter sends in a minute. The ratio of the medians is what counts.
#![allow(clippy::expect_used, reason = "a benchmark may fail loudly")]

use std::{convert::Infallible, hint::black_box};

use divan::{Bencher, counter::BytesCount};
use dsmr5::state::State;
use meterkast::p1::{self, Framer};

const TELEGRAM: &[u8] = include_bytes!("../fixtures/p1/dsmr50-gas-heat-hotwater.txt");

fn main() {
    divan::main();
}

#[divan::bench(args = [1, 60])]
fn meterkast(bencher: Bencher<'_, '_>, telegrams: usize) {
    let bytes = TELEGRAM.repeat(telegrams);
    let mut framer = Framer::new();
    bencher.counter(BytesCount::of_slice(&bytes)).bench_local(|| {
        framer.push(black_box(&bytes));
        let mut reports = 0;
        while let Some(piece) = framer.poll() {
            reports += p1::read(piece, None).expect("a valid telegram").reports.len();
        }
        assert_eq!(reports, 4 * telegrams);
    });
}

#[divan::bench(args = [1, 60])]
fn dsmr5(bencher: Bencher<'_, '_>, telegrams: usize) {
    let bytes = TELEGRAM.repeat(telegrams);
    bencher.counter(BytesCount::of_slice(&bytes)).bench_local(|| {
        let stream = black_box(&bytes).iter().map(|&byte| Ok::<u8, Infallible>(byte));
        let mut states = 0;
        for readout in dsmr5::Reader::new(stream) {
            let readout = readout.expect("a whole telegram");
            let telegram = readout.to_telegram().expect("a valid CRC");
            black_box(State::try_from(&telegram).expect("known codes"));
            states += 1;
        }
        assert_eq!(states, telegrams);
    });
}

#[divan::bench(args = [1, 60])]
fn crc_alone(bencher: Bencher<'_, '_>, telegrams: usize) {
    let bytes = TELEGRAM.repeat(telegrams);
    bencher
        .counter(BytesCount::of_slice(&bytes))
        .bench_local(|| bytes.chunks(TELEGRAM.len()).map(|telegram| p1::crc::as_sent(black_box(telegram))).max());
}
