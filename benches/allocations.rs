//! How many allocations a telegram costs once the framer has grown, and how many of them are handed on in its
//! reports. There must be no others.
#![allow(clippy::expect_used, clippy::print_stdout, reason = "a benchmark prints, and may fail loudly")]

use std::borrow::Cow;

use meterkast::{
    p1::{self, Framer},
    reading::{Identity, Report},
};
use shared::{TELEGRAMS, minutes};

#[allow(dead_code, reason = "only the telegrams are needed here")]
mod shared;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// The allocations that a report owns.
fn owned(report: &Report) -> usize {
    let vector = |capacity: usize| usize::from(capacity > 0);
    let text = |text: &Cow<'static, str>| match text {
        Cow::Owned(text) => vector(text.capacity()),
        Cow::Borrowed(_) => 0,
    };
    let name = match &report.meter {
        Identity::Own(name) => vector(name.capacity()),
        Identity::Place { .. } => 0,
    };
    let raw = report.readings.iter().filter(|reading| reading.raw.is_some()).count();
    let texts: usize = report.info.iter().map(|(_, content)| text(content)).sum();
    let unknown: usize =
        report.unknown.iter().map(|unknown| vector(unknown.code.capacity()) + vector(unknown.text.capacity())).sum();
    let vectors =
        [report.readings.capacity(), report.info.capacity(), report.events.capacity(), report.unknown.capacity()];
    name + raw + texts + unknown + vectors.into_iter().map(vector).sum::<usize>()
}

fn main() {
    for minute in minutes() {
        let mut framer = Framer::new();
        let mut read = |handed_on: &mut usize| {
            framer.push(&minute.bytes);
            while let Some(piece) = framer.poll() {
                let decoded = p1::read(piece, None).expect("a valid telegram");
                *handed_on += 1 + decoded.reports.iter().map(owned).sum::<usize>();
            }
        };
        read(&mut 0);
        let profiler = dhat::Profiler::builder().testing().build();
        let mut handed_on = 0;
        read(&mut handed_on);
        let made = dhat::HeapStats::get().total_blocks as usize;
        drop(profiler);
        let a_telegram = |count: usize| count as f64 / TELEGRAMS as f64;
        println!(
            "{:<16} {:>5} allocations a telegram, {:>5} handed on",
            minute.name,
            a_telegram(made),
            a_telegram(handed_on)
        );
        assert_eq!(made, handed_on, "something is allocated that is not handed on");
    }
}
