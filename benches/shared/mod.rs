//! What the benchmarks do: from bytes to readings, by us and by the crate `dsmr5`, and the CRC alone, which
//! is the least that any must do.
//!
//! A minute of two DSMR 5 meters, 60 telegrams each: one with three phases and a log of power failures,
//! and the same with three slave meters behind it.

use std::{convert::Infallible, fmt, hint::black_box};

use dsmr5::state::State;
use meterkast::p1::{self, Framer, Telegram, Writer};

pub(crate) const TELEGRAMS: usize = 60;

/// 60 telegrams of a meter.
pub(crate) struct Minute {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
}

impl fmt::Display for Minute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

pub(crate) fn minutes() -> [Minute; 2] {
    let whole = include_bytes!("../../fixtures/p1/dsmr50-gas-heat-hotwater.txt");
    let mut framer = Framer::new();
    framer.push(whole);
    let telegram = Telegram::check(framer.poll().expect("a telegram")).expect("a valid CRC");
    let identification = str::from_utf8(telegram.identification()).expect("text");
    let alone = telegram
        .lines()
        .filter(|line| line.code.is_some_and(|code| code.b == 0 || code.a == 1))
        .fold(Writer::new(identification), |writer, line| writer.line([line.code_text, line.text].concat()))
        .finish(true);
    [
        Minute { name: "electricity", bytes: alone.repeat(TELEGRAMS) },
        Minute { name: "with_3_slaves", bytes: whole.repeat(TELEGRAMS) },
    ]
}

pub(crate) fn meterkast(framer: &mut Framer, minute: &Minute) {
    framer.push(black_box(&minute.bytes));
    let mut telegrams = 0;
    while let Some(piece) = framer.poll() {
        black_box(p1::read(piece, None).expect("a valid telegram"));
        telegrams += 1;
    }
    assert_eq!(telegrams, TELEGRAMS);
}

pub(crate) fn dsmr5(minute: &Minute) {
    let stream = black_box(&minute.bytes).iter().map(|&byte| Ok::<u8, Infallible>(byte));
    let mut telegrams = 0;
    for readout in dsmr5::Reader::new(stream) {
        let readout = readout.expect("a whole telegram");
        let telegram = readout.to_telegram().expect("a valid CRC");
        black_box(State::try_from(&telegram).expect("known codes"));
        telegrams += 1;
    }
    assert_eq!(telegrams, TELEGRAMS);
}

pub(crate) fn crc_alone(minute: &Minute) {
    for telegram in minute.bytes.chunks(minute.bytes.len() / TELEGRAMS) {
        black_box(p1::crc::as_sent(black_box(telegram)));
    }
}
