//! How long decoding takes: each candidate by itself, one after the other. See `shared` for what is measured.
#![allow(clippy::expect_used, reason = "a benchmark may fail loudly")]

use divan::{Bencher, counter::BytesCount};
use meterkast::p1::Framer;
use shared::{Minute, minutes};

mod shared;

fn main() {
    // The median of 100, which is the default, leans on what else the machine does.
    divan::Divan::default().sample_count(2000).config_with_args().main();
}

#[divan::bench(args = minutes())]
fn meterkast(bencher: Bencher<'_, '_>, minute: &Minute) {
    let mut framer = Framer::new();
    bencher.counter(BytesCount::of_slice(&minute.bytes)).bench_local(|| shared::meterkast(&mut framer, minute));
}

#[divan::bench(args = minutes())]
fn dsmr5(bencher: Bencher<'_, '_>, minute: &Minute) {
    bencher.counter(BytesCount::of_slice(&minute.bytes)).bench_local(|| shared::dsmr5(minute));
}

#[divan::bench(args = minutes())]
fn crc_alone(bencher: Bencher<'_, '_>, minute: &Minute) {
    bencher.counter(BytesCount::of_slice(&minute.bytes)).bench_local(|| shared::crc_alone(minute));
}
