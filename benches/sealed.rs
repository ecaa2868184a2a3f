//! What a sealed block costs: bytes a message, and the time to seal and unseal it. Beside ours the columns in the hands of others: as
//! steps (LEB128 of the zigzag difference to the row before) behind deflate and Zstandard, each column by the crate `pco`, the same behind
//! Zstandard, and ours behind Zstandard instead of deflate. All in one run; of each time the best of many turns.
//!
//! `cargo bench --bench sealed --no-default-features --features sealed` builds no more than it needs.
//!
//! Messages are received some milliseconds later than measured, never the same number of them: noise that none can shorten.
#![allow(clippy::expect_used, clippy::print_stdout, reason = "a benchmark prints, and may fail loudly")]

use std::{fs, hint::black_box, path::Path, time::Instant};

use meterkast::{
    layout::Layout,
    moment::Moment,
    p1::{self, Framer},
    reading::{Clock, Medium, Report},
    sealed::{Block, Row},
    simulate::{
        Household,
        slave::{self, Slave},
    },
};
use miniz_oxide::{deflate::compress_to_vec, inflate::decompress_to_vec};
use pco::{
    ChunkConfig,
    wrapped::{FileCompressor, FileDecompressor},
};

const START: i64 = 1_795_287_600_000;

/// How much later than measured a message is received, in milliseconds: always the same numbers, as if thrown.
struct Jitter(u64);

impl Jitter {
    fn next(&mut self) -> i64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        100 + i64::try_from((self.0 >> 33) % 40).expect("a small number")
    }
}

/// The messages of the first meter in these reports, as one block.
fn block<M>(reports: impl Iterator<Item = Report<M>>) -> Block {
    let (mut block, mut jitter) = (Block::default(), Jitter(1));
    for report in reports {
        let report = report.rename(|_| String::new());
        let measured = report.measured_at.expect("a time");
        let (_, values) = Layout::split(&report);
        let clock = i64::from(report.clock == Clock::Gateway) * 2;
        let at = measured.millis();
        // Where the same second comes twice, the first will do.
        let _ = block.push(Row {
            at,
            n: 0,
            utc_offset: i64::from(measured.offset_minutes()),
            clock,
            received_at: at + jitter.next(),
            remark: Some(1),
            values: &values,
        });
    }
    block
}

/// A household's meter at 1 Hz.
fn household(seconds: i64) -> Block {
    let start = Moment::from_millis(START, 60).expect("a moment");
    let mut household = Household::new(1, start);
    block((1..=seconds).map(|second| {
        household.advance(Moment::from_millis(START + second * 1000, 60).expect("a moment"));
        let mut framer = Framer::new();
        framer.push(&household.telegram());
        let decoded = p1::read(framer.poll().expect("a telegram"), None).expect("a valid telegram");
        decoded.reports.into_iter().next().expect("a meter")
    }))
}

/// A heat meter on an M-Bus, read every quarter of an hour.
fn heat(quarters: i64) -> Block {
    let start = Moment::from_millis(START, 0).expect("a moment");
    let mut meter = Slave::new(slave::Description::new("KAM-12345678-1B-04", 1), 1, start).expect("a meter");
    let mut jitter = Jitter(2);
    block((1..=quarters).map(|quarter| {
        let at = Moment::from_millis(START + quarter * 900_000 + jitter.next(), 0).expect("a moment");
        meter.advance(at);
        Report {
            meter: (),
            medium: Medium::Heat,
            protocol: "mbus".into(),
            measured_at: Some(at),
            clock: Clock::Gateway,
            readings: meter.readings(),
            info: Vec::new(),
            events: Vec::new(),
            unknown: Vec::new(),
        }
    }))
}

/// Ten minutes of a real meter, where they are at hand.
fn real() -> Option<Block> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus/p1/streams");
    let file = fs::read_dir(folder)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|it| it == "txt"));
    let bytes = fs::read(file?).expect("a file");
    let mut framer = Framer::new();
    let mut reports = Vec::new();
    for bytes in bytes.chunks(1024) {
        framer.push(bytes);
        while let Some(piece) = framer.poll() {
            reports.extend(p1::read(piece, None).into_iter().filter_map(|decoded| decoded.reports.into_iter().next()));
        }
    }
    // Those of the most frequent layout only: there is no other but in a damaged telegram.
    let width = |report: &Report<_>| report.readings.len();
    let first = reports.first().map(width)?;
    Some(block(reports.into_iter().filter(|report| width(report) == first)))
}

/// What a block has, column by column, as it is handed to the others.
fn columns(block: &Block) -> Vec<Vec<i64>> {
    let mut columns = Vec::new();
    for row in block.rows() {
        let late = row.received_at - row.at;
        let head =
            [row.at, row.n, row.utc_offset, row.clock, late, i64::from(row.remark.is_some()), row.remark.unwrap_or(0)];
        columns.resize(head.len() + row.values.len(), Vec::new());
        for (column, value) in columns.iter_mut().zip(head.iter().chain(row.values)) {
            column.push(*value);
        }
    }
    columns
}

fn leb128(to: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

fn read_leb128(from: &mut &[u8]) -> u64 {
    let (mut number, mut shift) = (0, 0);
    loop {
        let (&byte, rest) = from.split_first().expect("a number");
        *from = rest;
        number |= u64::from(byte & 0x7F) << shift;
        if byte < 0x80 {
            return number;
        }
        shift += 7;
    }
}

fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

/// Where all are the same, the number once.
fn still(column: &[i64]) -> bool {
    column.iter().all(|value| Some(value) == column.first())
}

fn steps(columns: &[Vec<i64>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for column in columns {
        let still = still(column);
        bytes.push(u8::from(still));
        let mut before = 0i64;
        for value in column.iter().take(if still { 1 } else { column.len() }) {
            leb128(&mut bytes, zigzag(value.wrapping_sub(before)));
            before = *value;
        }
    }
    bytes
}

fn read_steps(mut bytes: &[u8], columns: usize, rows: usize) -> Vec<Vec<i64>> {
    let mut read = Vec::with_capacity(columns);
    while read.len() < columns {
        let (&still, rest) = bytes.split_first().expect("a column");
        bytes = rest;
        let mut value = 0i64;
        let mut next = || {
            let number = read_leb128(&mut bytes);
            value = value.wrapping_add((number >> 1).cast_signed() ^ -(number & 1).cast_signed());
            value
        };
        read.push(if still == 1 { vec![next(); rows] } else { (0..rows).map(|_| next()).collect() });
    }
    read
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 9).expect("memory")
}

fn unzstd(bytes: &[u8], length: usize) -> Vec<u8> {
    zstd::bulk::decompress(bytes, length).expect("compressed bytes")
}

fn by_pco(columns: &[Vec<i64>]) -> Vec<u8> {
    let (files, config) = (FileCompressor::default(), ChunkConfig::default());
    let mut bytes = Vec::new();
    files.write_header(&mut bytes).expect("memory");
    for column in columns {
        let still = still(column);
        bytes.push(u8::from(still));
        if still {
            leb128(&mut bytes, zigzag(*column.first().expect("a row")));
        } else {
            let mut chunk = files.chunk_compressor(column, &config).expect("integers");
            chunk.write_meta(&mut bytes).expect("memory");
            chunk.write_page(0, &mut bytes).expect("memory");
        }
    }
    bytes
}

fn from_pco(bytes: &[u8], columns: usize, rows: usize) -> Vec<Vec<i64>> {
    let (files, mut bytes) = FileDecompressor::new(bytes).expect("a header");
    let mut read = Vec::with_capacity(columns);
    while read.len() < columns {
        let (&still, rest) = bytes.split_first().expect("a column");
        bytes = rest;
        if still == 1 {
            let number = read_leb128(&mut bytes);
            read.push(vec![(number >> 1).cast_signed() ^ -(number & 1).cast_signed(); rows]);
        } else {
            let mut column = vec![0; rows];
            let (mut chunk, rest) = files.chunk_decompressor::<i64, _>(bytes).expect("a column");
            let mut page = chunk.page_decompressor(rest, rows).expect("a column");
            page.read(&mut column).expect("a column");
            bytes = page.into_src();
            read.push(column);
        }
    }
    read
}

/// The columns that are deflated in a sealed block, behind version, checksum and two counts.
fn contents(sealed: &[u8]) -> Vec<u8> {
    let mut rest = sealed.get(5..).expect("a block");
    read_leb128(&mut rest);
    read_leb128(&mut rest);
    decompress_to_vec(rest).expect("deflated bytes")
}

/// What comes of it, and the least milliseconds that it took.
fn timed<T>(turns: u32, mut work: impl FnMut() -> T) -> (T, f64) {
    let mut best = f64::MAX;
    let mut result = None;
    for _ in 0..turns {
        let begin = Instant::now();
        result = Some(black_box(work()));
        best = best.min(begin.elapsed().as_secs_f64() * 1000.0);
    }
    (result.expect("a turn"), best)
}

fn show<R: PartialEq>(
    name: &str,
    block: &Block,
    turns: u32,
    seal: impl Fn() -> Vec<u8>,
    unseal: impl Fn(&[u8]) -> R,
    expected: &R,
) {
    let (sealed, to_seal) = timed(turns, seal);
    let (read, to_unseal) = timed(turns, || unseal(&sealed));
    assert!(read == *expected, "{name} does not give back what it took");
    let (bytes, rows) = (sealed.len(), block.rows().len());
    println!("  {name:<30}{bytes:>10}{:>12.2}{to_seal:>12.3}{to_unseal:>12.3}", bytes as f64 / rows as f64);
}

fn main() {
    // Without `--bench`, as in `cargo test --benches`, it only shows that it runs.
    let whole = std::env::args().any(|argument| argument == "--bench");
    let turns = if whole { 30 } else { 1 };
    println!("{:<32}{:>10}{:>12}{:>12}{:>12}", "", "bytes", "a message", "ms to seal", "to unseal");
    let blocks = [
        ("household at 1 Hz", Some(household(if whole { 3600 } else { 60 }))),
        ("heat meter, an hour", Some(heat(4))),
        ("heat meter, a day", Some(heat(96))),
        ("real meter at 1 Hz", real()),
    ];
    for (name, block) in blocks.iter().filter_map(|(name, block)| Some((name, block.as_ref()?))) {
        let columns = columns(block);
        let (rows, width) = (block.rows().len(), columns.len());
        println!("{name}: {rows} messages of {width} integers");
        let length = steps(&columns).len();
        let contents = contents(&block.seal());
        show("sealed", block, turns, || block.seal(), |bytes| Block::unseal(bytes).expect("a block"), block);
        show(
            "its columns by zstd 9",
            block,
            turns,
            || zstd(&contents),
            |bytes| unzstd(bytes, contents.len()),
            &contents,
        );
        show(
            "steps by deflate 6",
            block,
            turns,
            || compress_to_vec(&steps(&columns), 6),
            |bytes| read_steps(&decompress_to_vec(bytes).expect("deflated bytes"), width, rows),
            &columns,
        );
        show(
            "steps by zstd 9",
            block,
            turns,
            || zstd(&steps(&columns)),
            |bytes| read_steps(&unzstd(bytes, length), width, rows),
            &columns,
        );
        show("pco", block, turns, || by_pco(&columns), |bytes| from_pco(bytes, width, rows), &columns);
        let length = by_pco(&columns).len();
        show(
            "pco by zstd 9",
            block,
            turns,
            || zstd(&by_pco(&columns)),
            |bytes| from_pco(&unzstd(bytes, length), width, rows),
            &columns,
        );
    }
}
