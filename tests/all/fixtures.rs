//! Each fixture against its `.expected`, whose form `fixtures/README.md` describes.
//! `METERKAST_BLESS=1` writes what the decoder makes of the fixture instead of comparing.

use std::{collections::BTreeSet, fmt::Write as _, fs};

use meterkast::{
    mbus::{self, Answer, Frame, Item, Records, Stream},
    p1::{LineEnds, Piece, Tail, Telegram, Transcript, Writer, decode},
    payload,
    reading::{Identity, Report},
};

use crate::samples::{Sample, corpus, files, fixtures, mbus_fixtures, read, root};

/// A line as `meterkast decode` prints it of a meter on a port of this name.
fn line(report: Report, port: &str) -> String {
    payload::decoded(&report.rename(|meter: Identity| meter.name("decode", port))) + "\n"
}

/// What `meterkast decode` prints of a file that comes in on a port named `p1`.
fn decoded(sample: &Sample) -> String {
    let mut lines = String::new();
    read([&sample.bytes[..]], |outcome| match outcome {
        Ok((_, decoded)) => lines.extend(decoded.reports.into_iter().map(|report| line(report, "p1"))),
        Err(rejected) => writeln!(lines, "! {}: {}", rejected.offset, rejected.reason.kind()).unwrap(),
    });
    lines
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
            Err(rejected) => writeln!(lines, "! {}: {}", rejected.offset, rejected.reason.kind()).unwrap(),
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
    let p1 = fixtures().into_iter().map(|sample| ("p1", decoded(&sample), sample));
    let mbus = mbus_fixtures().into_iter().map(|sample| ("mbus", decoded_mbus(&sample), sample));
    for (folder, decoded, sample) in p1.chain(mbus) {
        let path = root().join("fixtures").join(folder).join(&sample.name).with_extension("expected");
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

#[test]
fn have_no_expectation_without_a_file() {
    for (folder, extension) in [("p1", "txt"), ("mbus", "hex")] {
        let stems = |extension| -> BTreeSet<_> {
            let found = files(&root().join("fixtures").join(folder), extension);
            found.iter().map(|path| path.with_extension("")).collect()
        };
        let (telegrams, expectations) = (stems(extension), stems("expected"));
        assert_eq!(expectations.difference(&telegrams).collect::<Vec<_>>(), Vec::<&std::path::PathBuf>::new());
    }
}

/// Each fixture has its line in the README, and each line its fixture.
#[test]
fn are_all_described() {
    let text = fs::read_to_string(root().join("fixtures/README.md")).unwrap();
    let (_, described) = text.split_once("## M-Bus").unwrap();
    let described: BTreeSet<&str> =
        described.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0)).collect();
    let fixtures = mbus_fixtures();
    let names: BTreeSet<&str> = fixtures.iter().map(|sample| sample.name.strip_suffix(".hex").unwrap()).collect();
    assert_eq!(described, names);
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
