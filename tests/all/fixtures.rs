//! Each fixture against its `.expected`, whose form `fixtures/README.md` describes.
//! `METERKAST_BLESS=1` writes what the decoder makes of the fixture instead of comparing.
//!
//! And what the fixtures are of: every dialect, every medium and every fault that can be met on a wire.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::PathBuf,
};

use meterkast::{
    mbus::{self, Answer, Frame, Item, Records, Stream},
    p1::{self, Dialect, Key, LineEnds, Piece, Reader, Tail, Telegram, Transcript, Writer, decode},
    payload,
    reading::{Identity, Medium, Report},
};

use crate::{
    parts::meterkast,
    samples::{Sample, corpus, files, fixtures, mbus_fixtures, read, root},
};

/// A line as `meterkast decode` prints it of a meter on a port of this name.
fn line(report: Report, port: &str) -> String {
    payload::decoded(&report.rename(|meter: Identity| meter.name("decode", port))) + "\n"
}

/// The name of a fixture without all that stands behind its first dot.
fn stem(name: &str) -> &str {
    name.split('.').next().unwrap()
}

/// A file beside a fixture, where there is one.
fn beside(folder: &str, name: &str, extension: &str) -> Option<String> {
    let path = root().join("fixtures").join(folder).join(name).with_extension(extension);
    path.exists().then(|| fs::read_to_string(path).unwrap())
}

/// The reader of a fixture: with the dialect and the key that stand beside it.
fn reader(folder: &str, name: &str) -> Reader {
    let dialect = beside(folder, name, "dialect").map(|named| {
        let known = Dialect::NAMES.iter().find(|(name, _)| *name == named.trim());
        known.unwrap_or_else(|| panic!("{name} names the dialect {named}")).1
    });
    Reader::new(dialect, beside(folder, name, "key").map(|key| Key::from_text(&key).unwrap()))
}

/// Reads a fixture of P1 as a whole.
fn accepted_and_rejected(folder: &str, sample: &Sample) -> Vec<Result<p1::Accepted, p1::Rejected>> {
    let mut reader = reader(folder, &sample.name);
    reader.push(&sample.bytes);
    reader.end();
    std::iter::from_fn(|| reader.poll()).collect()
}

/// What `meterkast decode` prints of a file that comes in on a port named `p1`.
fn decoded(folder: &str, sample: &Sample) -> String {
    let mut lines = String::new();
    for outcome in accepted_and_rejected(folder, sample) {
        match outcome {
            Ok(accepted) => lines.extend(accepted.decoded.reports.into_iter().map(|report| line(report, "p1"))),
            Err(p1::Rejected { offset, reason, .. }) => {
                writeln!(lines, "! {offset}: {}: {reason}", reason.kind()).unwrap();
            }
        }
    }
    lines
}

/// Encrypted telegrams.
fn sealed() -> Vec<Sample> {
    named("sealed", "bin")
}

/// The files of a folder that end so, in the order of their names.
fn named(folder: &str, end: &str) -> Vec<Sample> {
    let folder = root().join("fixtures").join(folder);
    let paths = files(&folder, end);
    let name = |path: &PathBuf| path.strip_prefix(&folder).unwrap().to_str().unwrap().to_owned();
    paths.iter().map(|path| Sample { name: name(path), bytes: fs::read(path).unwrap() }).collect()
}

/// What `meterkast decode` prints of a capture, and behind that what it complains of.
fn decoded_capture(sample: &Sample) -> String {
    let path = root().join("fixtures/captures").join(&sample.name).to_str().unwrap().to_owned();
    let ended = meterkast(&["decode", &path], b"");
    let complaints = ended.stderr.lines().map(|line| {
        let complaint = line.strip_prefix(&path).unwrap_or_else(|| panic!("{line} does not name its file"));
        format!("! {}\n", complaint.strip_prefix(':').unwrap().trim_start())
    });
    [ended.stdout.clone(), complaints.collect()].concat()
}

/// The bytes on the bus that a fixture of hex digits stands for.
fn on_the_bus(sample: &Sample) -> Vec<u8> {
    let mut transcript = Transcript::new();
    let begin = transcript.push(&sample.bytes);
    [begin, transcript.end()].concat()
}

/// What `meterkast decode` prints of a file that comes in on a port named `mbus`.
fn decoded_mbus(sample: &Sample) -> String {
    let mut lines = String::new();
    let mut stream = Stream::new(1);
    stream.push(&on_the_bus(sample));
    stream.end();
    while let Some(outcome) = stream.poll() {
        match outcome {
            Ok(piece) => lines.push_str(&line(piece.decoded.report, "mbus")),
            Err(mbus::Rejected { offset, reason, .. }) => {
                writeln!(lines, "! {offset}: {}: {reason}", reason.kind()).unwrap();
            }
        }
    }
    lines
}

/// The first difference of each line that differs, with a little before it: the lines are long.
fn difference(expected: &str, decoded: &str) -> Option<String> {
    let (expected, decoded): (Vec<_>, Vec<_>) = (expected.lines().collect(), decoded.lines().collect());
    let mut shown = String::new();
    for index in 0..expected.len().max(decoded.len()) {
        let (want, have) = (expected.get(index).copied(), decoded.get(index).copied());
        if want == have {
            continue;
        }
        let same = want.unwrap_or("").bytes().zip(have.unwrap_or("").bytes()).take_while(|(a, b)| a == b).count();
        let part = |line: Option<&str>| match line {
            Some(line) => {
                let from = line.floor_char_boundary(same.saturating_sub(50));
                let to = line.floor_char_boundary((same + 150).min(line.len()));
                format!(
                    "{}{}{}",
                    if from > 0 { "..." } else { "" },
                    &line[from..to],
                    if to < line.len() { "..." } else { "" }
                )
            }
            None => "(no line)".to_owned(),
        };
        writeln!(shown, "  line {}, byte {same}", index + 1).unwrap();
        writeln!(shown, "    expected {}\n    decoded  {}", part(want), part(have)).unwrap();
    }
    (!shown.is_empty()).then_some(shown)
}

#[test]
fn are_decoded_as_expected() {
    let bless = std::env::var_os("METERKAST_BLESS").is_some_and(|value| value == "1");
    let mut complaints = String::new();
    let p1 = fixtures().into_iter().map(|sample| ("p1", decoded("p1", &sample), sample));
    let sealed = sealed().into_iter().map(|sample| ("sealed", decoded("sealed", &sample), sample));
    let mbus = mbus_fixtures().into_iter().map(|sample| ("mbus", decoded_mbus(&sample), sample));
    let captures = named("captures", "jsonl").into_iter().chain(named("captures", "gz"));
    let captures = captures.map(|sample| ("captures", decoded_capture(&sample), sample));
    for (folder, decoded, sample) in p1.chain(sealed).chain(mbus).chain(captures) {
        let path = root().join("fixtures").join(folder).join(stem(&sample.name)).with_extension("expected");
        if bless {
            fs::write(path, decoded).unwrap();
        } else if !path.exists() {
            writeln!(complaints, "{} has no .expected", sample.name).unwrap();
        } else if let Some(difference) = difference(&fs::read_to_string(&path).unwrap(), &decoded) {
            write!(complaints, "{}\n{difference}", sample.name).unwrap();
        }
    }
    assert!(complaints.is_empty(), "\n{complaints}");
}

/// Nothing is dropped in silence: without any one of its lines a telegram says something else.
#[test]
fn no_line_is_without_effect() {
    // An empty text, a name of spaces, a log without entries; the time of a telegram without electricity,
    // where its first slave meter has the same.
    let saying_nothing = |line: &[u8]| {
        [&b"()"[..], b"(20)", b"96.7.19)"].iter().any(|end| line.ends_with(end)) || line.starts_with(b"0-0:1.0.0(")
    };
    for sample in fixtures().into_iter().chain(corpus()) {
        let mut telegrams = Vec::new();
        read([&sample.bytes[..]], |outcome| {
            telegrams.extend(outcome.ok().map(|(telegram, _)| telegram.bytes.to_vec()))
        });
        for bytes in telegrams {
            let tail = Tail::Crc(meterkast::p1::crc::as_sent(&bytes));
            let telegram = Telegram::check(Piece::Telegram { offset: 0, bytes: &bytes, tail }).unwrap();
            let whole = decode(&telegram, None).reports;
            let lines: Vec<Vec<u8>> = telegram.lines().map(|line| [line.code_text, line.text].concat()).collect();
            for (left_out, line) in lines.iter().enumerate() {
                let others = lines.iter().enumerate().filter(|(index, _)| *index != left_out).map(|(_, line)| line);
                let identification = String::from_utf8_lossy(telegram.identification());
                let less = others.fold(Writer::new(&identification), Writer::line).finish(true);
                let mut reports = Vec::new();
                read([&less[..]], |outcome| reports = outcome.unwrap().1.reports);
                let shown = String::from_utf8_lossy(line);
                assert!(reports != whole || saying_nothing(line), "{}: {shown} has no effect", sample.name);
            }
        }
    }
}

/// Likewise for the records of M-Bus: each one says something.
#[test]
fn no_record_is_without_effect() {
    let mut records = 0;
    for sample in mbus_fixtures() {
        let bytes = on_the_bus(&sample);
        for at in 0..bytes.len() {
            // What is no answer with records, or none that can be read, has none that can be left out.
            let Ok((Frame::Long { control, address, ci, data }, _)) = Frame::parse(&bytes[at..]) else { continue };
            let header = match ci {
                0x72 | 0x76 => 12,
                0x7A => 4,
                0x78 => 0,
                _ => continue,
            };
            let frame = |data: &[u8]| Frame::Long { control, address, ci, data }.emit();
            let Ok(whole) = mbus::read(&frame(data), 1) else { continue };
            let (header, data) = data.split_at(header);
            let items: Vec<(Vec<u8>, bool)> = Records::new(data)
                .map(|item| match item.unwrap() {
                    Item::Record(record) => ([&record.head[..], &record.data[..]].concat(), true),
                    Item::Manufacturer { more_follow, data } => {
                        ([&[if more_follow { 0x1F } else { 0x0F }], data].concat(), more_follow || !data.is_empty())
                    }
                    Item::Reserved(data) => (data.to_vec(), true),
                })
                .collect();
            for (left_out, (item, says)) in items.iter().enumerate() {
                let others = items.iter().enumerate().filter(|(index, _)| *index != left_out);
                let others: Vec<u8> = others.flat_map(|(_, (item, _))| item.clone()).collect();
                let less = mbus::read(&frame(&[header, &others].concat()), 1);
                assert!(less.as_ref() != Ok(&whole) || !says, "{}: {item:02x?} has no effect", sample.name);
                records += 1;
            }
        }
    }
    assert!(records >= 150, "only {records} records were left out");
}

/// The frames of M-Bus are those that their parts make.
#[test]
fn frames_print_back() {
    let mut written = 0;
    for sample in mbus_fixtures() {
        let bytes = on_the_bus(&sample);
        for at in 0..bytes.len() {
            let Ok((frame @ Frame::Long { .. }, length)) = Frame::parse(&bytes[at..]) else { continue };
            assert_eq!(frame.emit(), bytes[at..at + length], "{} at {at}", sample.name);
            written += usize::from(Answer::parse(&frame).is_ok());
        }
    }
    assert!(written >= 40, "only {written} frames were written back");
}

/// Each fixture has its line in the README, each line its fixture, and nothing else lies there but what is beside them.
#[test]
fn are_all_described() {
    let text = fs::read_to_string(root().join("fixtures/README.md")).unwrap();
    let mut described = BTreeSet::new();
    let mut folder = None;
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            // `## P1 (`p1/*.txt`)`
            folder = heading.split_once("(`").and_then(|(_, rest)| rest.split_once("`)")).map(|(pattern, _)| pattern);
        } else if let (Some(pattern), Some(row)) = (folder, line.strip_prefix("| `")) {
            let name = row.split_once('`').unwrap().0;
            assert!(described.insert(pattern.replace('*', name)), "{name} has two lines");
        }
    }
    let mut there = BTreeSet::new();
    for path in files(&root().join("fixtures"), "") {
        there.insert(path.strip_prefix(root().join("fixtures")).unwrap().to_str().unwrap().to_owned());
    }
    let beside = |path: &&String| {
        let (stem, extension) = path.rsplit_once('.').unwrap();
        let of = match extension {
            "dialect" => &["txt"][..],
            "key" => &["bin"],
            "expected" => &["txt", "bin", "hex", "jsonl", "jsonl.gz"],
            _ => return false,
        };
        of.iter().any(|of| there.contains(&format!("{stem}.{of}")))
    };
    let fixtures: BTreeSet<String> = there.iter().filter(|path| !beside(path) && path.contains('/')).cloned().collect();
    let nowhere: Vec<&String> = described.difference(&fixtures).collect();
    let without_line: Vec<&String> = fixtures.difference(&described).collect();
    assert!(
        nowhere.is_empty() && without_line.is_empty(),
        "lines without a file {nowhere:?}, files without a line {without_line:?}"
    );
    let others: Vec<&String> = there.iter().filter(|path| !path.contains('/')).collect();
    for path in others {
        assert!(
            [".gitattributes", "README.md"].contains(&path.as_str()) || text.contains(&format!("`{path}`")),
            "{path}"
        );
    }
}

/// The kind of each complaint in the `.expected` files of a folder.
fn complaints(folder: &str) -> BTreeMap<String, String> {
    let expected = files(&root().join("fixtures").join(folder), "expected");
    let mut kinds = BTreeMap::new();
    for path in expected {
        let text = fs::read_to_string(&path).unwrap();
        for complaint in text.lines().filter_map(|line| line.strip_prefix("! ")) {
            let mut parts = complaint.splitn(3, ": ");
            let kind = parts.nth(1).unwrap().to_owned();
            kinds.insert(kind, parts.next().unwrap().to_owned());
        }
    }
    kinds
}

fn media(folder: &str) -> BTreeSet<String> {
    let expected = files(&root().join("fixtures").join(folder), "expected");
    let lines: String = expected.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    lines.lines().filter_map(|line| Some(line.split_once("\"medium\":\"")?.1.split_once('"')?.0.to_owned())).collect()
}

#[test]
fn are_of_every_dialect_medium_and_fault() {
    let mut dialects = BTreeSet::new();
    for sample in fixtures() {
        let accepted = accepted_and_rejected("p1", &sample).into_iter().flatten();
        dialects.extend(accepted.map(|accepted| accepted.decoded.dialect.name()));
    }
    assert_eq!(dialects, Dialect::all().map(Dialect::name).collect());

    let all: BTreeSet<String> = (0..=u8::MAX).map(|code| Medium::from_device_type(code).name().to_owned()).collect();
    assert_eq!(all.len(), 8);
    assert_eq!(media("p1"), all, "on P1");
    assert_eq!(media("mbus"), all, "on M-Bus");

    let set = |kinds: &[&str]| -> BTreeSet<String> { kinds.iter().map(|kind| (*kind).to_owned()).collect() };
    let found = |folders: &[&str]| -> BTreeSet<String> {
        folders.iter().flat_map(|folder| complaints(folder).into_keys()).collect()
    };
    assert_eq!(found(&["p1", "sealed"]), set(&p1::Reason::KINDS));
    // Two meters in one readout: a stream takes them for two readouts, so only a master can meet it.
    let mut on_a_bus = set(&mbus::Reason::KINDS);
    assert!(on_a_bus.remove("other_meter"));
    assert_eq!(found(&["mbus"]), on_a_bus);

    // What is said of a frame and of a record, whatever its kind.
    let mut said = String::new();
    for path in files(&root().join("fixtures/mbus"), "expected") {
        said += &fs::read_to_string(path).unwrap();
    }
    for fault in [
        "no frame begins with",
        "its length is given as",
        "no frame is shorter than 3",
        "stands where the second 68 belongs",
        "and its bytes give",
        "and not with 16",
        "or more bytes missing",
        "more than 10 DIFE",
        "more than 10 VIFE",
        "which means nothing",
        "breaks off within its data",
        "breaks off within its DIFE",
        "breaks off within its plain-text unit",
    ] {
        assert!(said.contains(fault), "no frame shows `{fault}`");
    }
}

#[test]
fn print_back() {
    let mut written = 0;
    for sample in fixtures() {
        read([&sample.bytes[..]], |outcome| {
            let Ok((telegram, _)) = outcome else { return };
            let offset = usize::try_from(telegram.offset).unwrap();
            assert!(sample.bytes[offset..].starts_with(telegram.bytes), "{} at {offset}", sample.name);
            let blank_line = telegram.bytes.windows(4).any(|window| window == b"\r\n\r\n");
            if telegram.line_ends == LineEnds::AsSent && blank_line {
                let written_back = write_back(&telegram);
                assert!(written_back.starts_with(telegram.bytes), "{} at {offset}", sample.name);
                // The digits behind the `!` are not always four, nor upper case.
                let digits = std::str::from_utf8(&written_back[telegram.bytes.len()..]).unwrap().trim_end();
                assert_eq!(u16::from_str_radix(digits, 16).ok(), telegram.crc, "{} at {offset}", sample.name);
                written += 1;
            }
        });
    }
    assert!(written >= 30, "only {written} telegrams were written back");
}

fn write_back(telegram: &Telegram<'_>) -> Vec<u8> {
    let identification = std::str::from_utf8(telegram.identification()).unwrap();
    let writer = telegram
        .lines()
        .fold(Writer::new(identification), |writer, line| writer.line([line.code_text, line.text].concat()));
    writer.finish(telegram.crc.is_some())
}
