//! From bytes to readings: ours, the crate `dsmr5`, and the CRC alone, which is the least that any must do.
//!
//! A minute of two DSMR 5 meters, 60 telegrams each: one with three phases and a log of power failures,
//! and the same with three slave meters behind it. The ratio of the medians is what counts.
#![allow(clippy::expect_used, reason = "a benchmark may fail loudly")]

use std::{convert::Infallible, fmt, hint::black_box};

use divan::{Bencher, counter::BytesCount};
use dsmr5::state::State;
use meterkast::p1::{self, Framer, Piece, Telegram, Writer};

/// 60 telegrams, and how many meters each speaks of.
struct Minute {
    name: &'static str,
    bytes: Vec<u8>,
    meters: usize,
}

impl fmt::Display for Minute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

fn minutes() -> [Minute; 2] {
    let whole = include_bytes!("../fixtures/p1/dsmr50-gas-heat-hotwater.txt");
    let mut framer = Framer::new();
    framer.push(whole);
    let piece: Piece<'_> = framer.poll().expect("a telegram");
    let telegram = Telegram::check(piece).expect("a valid CRC");
    let identification = str::from_utf8(telegram.identification()).expect("text");
    let alone = telegram
        .lines()
        .filter(|line| line.code.is_some_and(|code| code.b == 0 || code.a == 1))
        .fold(Writer::new(identification), |writer, line| writer.line([line.code_text, line.text].concat()))
        .finish(true);
    [
        Minute { name: "electricity", bytes: alone.repeat(60), meters: 1 },
        Minute { name: "with_3_slaves", bytes: whole.repeat(60), meters: 4 },
    ]
}

fn main() {
    // The median of 100, which is the default, leans on what else the machine does.
    divan::Divan::default().sample_count(2000).config_with_args().main();
}

#[divan::bench(args = minutes())]
fn meterkast(bencher: Bencher<'_, '_>, minute: &Minute) {
    let mut framer = Framer::new();
    bencher.counter(BytesCount::of_slice(&minute.bytes)).bench_local(|| {
        framer.push(black_box(&minute.bytes));
        let mut reports = 0;
        while let Some(piece) = framer.poll() {
            reports += p1::read(piece, None).expect("a valid telegram").reports.len();
        }
        assert_eq!(reports, 60 * minute.meters);
    });
}

#[divan::bench(args = minutes())]
fn dsmr5(bencher: Bencher<'_, '_>, minute: &Minute) {
    bencher.counter(BytesCount::of_slice(&minute.bytes)).bench_local(|| {
        let stream = black_box(&minute.bytes).iter().map(|&byte| Ok::<u8, Infallible>(byte));
        let mut states = 0;
        for readout in dsmr5::Reader::new(stream) {
            let readout = readout.expect("a whole telegram");
            let telegram = readout.to_telegram().expect("a valid CRC");
            black_box(State::try_from(&telegram).expect("known codes"));
            states += 1;
        }
        assert_eq!(states, 60);
    });
}

#[divan::bench(args = minutes())]
fn crc_alone(bencher: Bencher<'_, '_>, minute: &Minute) {
    let size = minute.bytes.len() / 60;
    bencher
        .counter(BytesCount::of_slice(&minute.bytes))
        .bench_local(|| minute.bytes.chunks(size).map(|telegram| p1::crc::as_sent(black_box(telegram))).max());
}
