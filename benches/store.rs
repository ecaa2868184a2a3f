//! What a telegram costs the store: CPU time and bytes written, for an hour of a household at 1 Hz that is committed
//! every 30 s, for the same as a backlog of 500 a commit, and for a flood of garbage. The database lies in the directory `TMPDIR`.
#![allow(clippy::expect_used, clippy::print_stdout, reason = "a benchmark prints, and may fail loudly")]

use std::{collections::HashMap, fs, path::Path};

use meterkast::{
    delivery::{Epoch, Ranges},
    moment::Moment,
    p1,
    payload::{Envelope, Message},
    reading::Report,
    simulate::Household,
    store::{Database as _, Incoming, sqlite::Sqlite},
};

/// What a household sends in so many seconds. The meters behind the first say something new every five minutes.
fn messages(seconds: i64) -> Vec<Incoming> {
    let start = Moment::from_millis(1_795_287_600_000, 60).expect("a moment");
    let mut household = Household::new(1, start);
    let (mut said, mut messages) = (HashMap::<String, Report<String>>::new(), Vec::new());
    for second in 1..=seconds {
        household.advance(Moment::from_millis(start.millis() + second * 1000, 60).expect("a moment"));
        let telegram = household.telegram();
        let mut framer = p1::Framer::new();
        framer.push(&telegram);
        let decoded = p1::read(framer.poll().expect("a telegram"), None).expect("a valid telegram");
        for (place, report) in decoded.reports.into_iter().enumerate() {
            let report = report.rename(|_| format!("E{place:016}"));
            if said.insert(report.meter.clone(), report.clone()).as_ref() == Some(&report) {
                continue;
            }
            let seq = messages.len() as u64 + 1;
            let envelope = Envelope {
                gateway: "gw-1".into(),
                epoch: Epoch::from_bits(7),
                seq,
                prev: seq - 1,
                first: 1,
                missing: Ranges::new(),
            };
            let received_at = Moment::from_millis(start.millis() + second * 1000 + 123, 0).expect("a moment");
            messages.push(Incoming::Message(Message { envelope, received_at, report }));
        }
    }
    messages
}

/// What is no message.
fn garbage() -> Incoming {
    Incoming::Refused {
        topic: "meterkast/gw-1/E1/telegram".into(),
        payload: vec![b'['; 1000],
        reason: "recursion limit exceeded at line 1 column 128".into(),
        schema: 0,
        envelope: None,
        received_at: Moment::from_millis(1_795_287_600_000, 0).expect("a moment"),
    }
}

/// CPU time in microseconds, bytes handed to the system, bytes that reach the disk.
fn spent() -> [u64; 3] {
    let stat = fs::read_to_string("/proc/self/stat").expect("/proc");
    let ticks = stat.rsplit(')').next().expect("fields").split_whitespace().skip(11).take(2);
    let io = fs::read_to_string("/proc/self/io").expect("/proc");
    let count = |name: &str| {
        let line = io.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|count| count.trim().parse().ok()).expect("a count")
    };
    let micros: u64 = ticks.map(|ticks| ticks.parse::<u64>().expect("ticks") * 10_000).sum();
    [micros, count("wchar:"), count("write_bytes:")]
}

async fn measure(name: &str, batch: usize, messages: &[Incoming], path: &Path) {
    let mut store = Sqlite::open(path).await.expect("a database");
    let begin = spent();
    for batch in messages.chunks(batch) {
        store.commit(batch).await.expect("a commit");
    }
    let end = spent();
    let [cpu, handed, disk] = [0, 1, 2].map(|place: usize| {
        (end.get(place).expect("a count") - begin.get(place).expect("a count")) as f64 / messages.len() as f64
    });
    println!("{name:<28}{cpu:>14.1}{handed:>14.0}{disk:>14.0}{:>14}", store.size().bytes / messages.len() as u64);
    Box::new(store).close().await.expect("closed");
}

fn main() {
    // Without `--bench`, as in `cargo test --benches`, it only shows that it runs.
    let seconds = if std::env::args().any(|argument| argument == "--bench") { 7200 } else { 60 };
    let messages = messages(seconds);
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    println!("a message                         us of CPU bytes written       to disk          kept");
    for (name, batch) in [("30 a commit", 30), ("500 a commit", 500)] {
        runtime.block_on(measure(name, batch, &messages, &folder.path().join(name)));
    }
    // A flood must cost the last message as much as the first, also when the table of the refused is full.
    let path = folder.path().join("refused");
    for part in ["first", "second", "third", "fourth", "fifth"] {
        let name = format!("refused, the {part} 10,000");
        let garbage = vec![garbage(); if seconds > 60 { 10_000 } else { 10 }];
        runtime.block_on(measure(&name, 1000, &garbage, &path));
    }
}
