//! M-Bus frames against the crate `m-bus-parser`: the candidates take turns, so that whatever else the machine does
//! meets them alike. Each checks the frame, reads its header, and looks at every record's value and unit; `readings`
//! is ours all the way to a report. The frames are the real ones that both read to the end, where they are there,
//! and otherwise composed here.
#![allow(clippy::expect_used, clippy::print_stdout, reason = "a benchmark prints, and may fail loudly")]

use std::{fs, hint::black_box, path::Path, time::Instant};

use m_bus_parser::{
    WiredFrame,
    user_data::{DataRecords, UserDataBlock, parse_application_layer},
};
use meterkast::{
    mbus::{self, Answer, Coding, Frame, Item, Record, Records, control, vif},
    reading::{Function, Qualifiers},
};

const TURNS: usize = 2000;

/// A readout of a heat meter: what it counts, its powers and temperatures, and the set day before.
fn composed() -> Vec<Vec<u8>> {
    let now = Qualifiers::default();
    let set_day = Qualifiers { storage: 1, ..now };
    let peak = Qualifiers { function: Function::Maximum, ..now };
    let records = [
        Record::new(now, Coding::Bcd(4), &[0x78], &[0x78, 0x56, 0x34, 0x12]),
        Record::new(now, Coding::Binary(4), &[0x06], &[0x39, 0x30, 0, 0]),
        Record::new(now, Coding::Binary(4), &[0x13], &[0x15, 0x81, 0x05, 0]),
        Record::new(now, Coding::Binary(2), &[0x2B], &[0x10, 0x27]),
        Record::new(peak, Coding::Binary(2), &[0x2B], &[0x20, 0x4E]),
        Record::new(now, Coding::Bcd(3), &[0x3B], &[0x56, 0x34, 0x12]),
        Record::new(now, Coding::Binary(2), &[0x5A], &[0x9A, 0x02]),
        Record::new(now, Coding::Binary(2), &[0x5E], &[0xC2, 0x01]),
        Record::new(now, Coding::Binary(2), &[0x61], &[0xD8, 0x08]),
        Record::new(now, Coding::Real, &[0x3E], &[0xCD, 0xCC, 0xCC, 0x3D]),
        Record::new(now, Coding::Binary(4), &[0x6D], &[0x17, 0x2E, 0xCC, 0x13]),
        Record::new(set_day, Coding::Binary(4), &[0x06], &[0x30, 0x20, 0, 0]),
        Record::new(set_day, Coding::Binary(2), &[0x6C], &[0xBF, 0x1C]),
        Record::new(now, Coding::Binary(2), &[0xFD, 0x17], &[0x04, 0]),
        Record::new(now, Coding::Variable, &[0xFD, 0x0C], &[4, b'2', b'0', b'6', b'K']),
    ];
    let mut data = vec![0x78, 0x56, 0x34, 0x12, 0x2D, 0x2C, 0x1B, 0x04, 0x01, 0x00, 0x00, 0x00];
    records.iter().for_each(|record| record.emit(&mut data));
    vec![Frame::Long { control: control::RSP_UD, address: 5, ci: 0x72, data: &data }.emit()]
}

/// Every frame of the corpus that both read to its end.
fn real() -> Vec<Vec<u8>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus/mbus");
    let Ok(folders) = fs::read_dir(corpus) else { return Vec::new() };
    let files = folders.flatten().filter_map(|folder| fs::read_dir(folder.path()).ok()).flatten().flatten();
    let mut paths: Vec<_> =
        files.map(|file| file.path()).filter(|path| path.extension().is_some_and(|it| it == "hex")).collect();
    paths.sort();
    let bytes = |path: &Path| {
        let mut digits = fs::read(path).expect("a file");
        digits.retain(u8::is_ascii_hexdigit);
        let pair = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).expect("digits"), 16).expect("a byte");
        digits.chunks(2).map(pair).collect::<Vec<u8>>()
    };
    let readable =
        |frame: &Vec<u8>| mbus::read(frame, 1).is_ok() && records(frame).is_some() && their_records(frame).is_some();
    paths.iter().map(|path| bytes(path)).filter(readable).collect()
}

/// How many records there are; None for a frame without, or one that breaks off.
fn records(frame: &[u8]) -> Option<usize> {
    let (frame, _) = Frame::parse(black_box(frame)).ok()?;
    black_box(Answer::parse(&frame).ok()?);
    let Frame::Long { ci, data, .. } = frame else { return None };
    let header = match ci {
        0x72 => 12,
        0x78 => 0,
        0x7A => 4,
        _ => return None,
    };
    let mut count = 0usize;
    for item in Records::new(data.get(header..)?) {
        match item.ok()? {
            Item::Record(record) => {
                black_box(vif::meaning(&record.vib));
                black_box(record.value(true));
                black_box(record.qualifiers);
            }
            other => {
                black_box(other);
            }
        }
        count = count.wrapping_add(1);
    }
    Some(count)
}

fn readings(frame: &[u8]) -> Option<usize> {
    let (frame, _) = Frame::parse(black_box(frame)).ok()?;
    Some(black_box(mbus::decode(&[frame], 1).ok()?).report.readings.len())
}

fn their_records(frame: &[u8]) -> Option<usize> {
    let WiredFrame::LongFrame { data, .. } = WiredFrame::try_from(black_box(frame)).ok()? else { return None };
    let block = parse_application_layer(data).ok()?;
    let records = match black_box(&block) {
        UserDataBlock::VariableDataStructureWithLongTplHeader { long_tpl_header, variable_data_block, .. } => {
            DataRecords::new(variable_data_block, Some(long_tpl_header))
        }
        UserDataBlock::VariableDataStructureWithShortTplHeader { variable_data_block, .. }
        | UserDataBlock::VariableDataStructureWithoutTplHeader { variable_data_block, .. } => {
            DataRecords::new(variable_data_block, None)
        }
        _ => return None,
    };
    let mut count = 0usize;
    for record in records {
        let record = record.ok()?;
        if let Some(information) = record.value_information() {
            for label in information.labels() {
                black_box(label);
            }
            for unit in information.units() {
                black_box(unit);
            }
            black_box(information.decimal_scale_exponent);
        }
        black_box(record.value());
        black_box(record.data_information());
        count = count.wrapping_add(1);
    }
    Some(count)
}

type Candidate = fn(&[u8]) -> Option<usize>;

const CANDIDATES: [(&str, Candidate); 3] =
    [("records", records), ("readings", readings), ("m-bus-parser", their_records)];

fn run(candidate: Candidate, frames: &[Vec<u8>]) {
    for frame in frames {
        black_box(candidate(frame).expect("a readable frame"));
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (mut benched, mut only) = (false, None);
    for argument in arguments.by_ref() {
        match argument.as_str() {
            "--bench" => benched = true,
            name => only = Some(name.to_owned()),
        }
    }
    let frames = Some(real()).filter(|frames| !frames.is_empty()).unwrap_or_else(composed);
    let total: usize = frames.iter().filter_map(|frame| records(frame)).sum();
    println!("{} frames with {total} records", frames.len());
    // By name, one candidate alone: to count its instructions.
    if let Some(only) = only {
        let (_, candidate) = CANDIDATES.iter().find(|(name, _)| *name == only).expect("a candidate");
        (0..100).for_each(|_| run(*candidate, &frames));
        return;
    }
    // Without `--bench`, as in `cargo test --benches`, it only shows that it runs.
    let turns = if benched { TURNS } else { 1 };
    let mut took = CANDIDATES.map(|_| Vec::with_capacity(turns));
    for _ in 0..turns {
        for (took, (_, candidate)) in took.iter_mut().zip(CANDIDATES) {
            let begin = Instant::now();
            run(candidate, &frames);
            took.push(begin.elapsed().as_nanos());
        }
    }
    let a_frame = took.map(|mut turns| {
        turns.sort_unstable();
        [0, turns.len() / 2].map(|turn| *turns.get(turn).expect("a turn") as f64 / frames.len() as f64)
    });
    println!("nanoseconds a frame     fastest      median   m-bus-parser takes times as long");
    let [.., [their_fastest, their_median]] = a_frame;
    for ((name, _), [fastest, median]) in CANDIDATES.iter().zip(a_frame) {
        println!(
            "{name:<20} {fastest:>10.0} {median:>11.0} {:>10.2} {:>8.2}",
            their_fastest / fastest,
            their_median / median
        );
    }
}
