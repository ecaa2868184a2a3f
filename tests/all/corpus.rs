//! Real telegrams, which stand beside the checkout because they name real households. Without them these
//! tests pass with a note, unless `METERKAST_REQUIRE_CORPUS=1`.

use std::fs;

use meterkast::p1::{Key, LineEnds, Reader, Reason};

use crate::samples::{Sample, corpus, corpus_folder, read, stream};

/// What stays unknown in Dutch telegrams: the file, how its unknown lines begin, and why.
const UNKNOWN: &[(&str, &[&str], &str)] = &[
    ("RobThree__DSMRParser.Net/v5_ok_L1.txt", &["0-4:24.2.1"], "kWh of device type 101, which is reserved"),
    ("Wassasin__dsmr5/mcs_L1.txt", &["0-1:24.1.0()", "0-1:96.1.0()", "0-1:24.2.1"], "the only channel is sent empty"),
    ("mijnverbruik__dsmr/dsmr_test_L985.txt", &["9-9:99.99.99", "8-8:88.88.88"], "invented to be unknown"),
    ("ndokter__dsmr_parser/example_telegrams_L250.txt", &["0-1:24.2.1"], "a value without a unit"),
    ("nielsbasjes__dsmr-tools/TestDsmrParserOnRealDSMR4_L162.txt", &["0-1:24.2.1"], "a value without a unit"),
    ("nielsbasjes__dsmr-tools/TestDsmrParser_L363.txt", &["0-0:0.0.0"], "a time under the code of a serial number"),
];

/// What is rejected though `SOURCES.tsv` does not call its CRC invalid.
const REJECTED: &[(&str, Reason)] = &[("mijnverbruik__dsmr/telegram_fixtures_L67.txt", Reason::CrcMissing)];

#[test]
fn telegrams_are_accepted_by_their_crc_and_dutch_ones_understood() {
    let Some(folder) = corpus_folder() else { return };
    let sources = fs::read_to_string(folder.join("SOURCES.tsv")).unwrap();
    let (mut telegrams, mut lines, mut unknown_lines) = (0, 0, 0);
    for Sample { name, bytes } in corpus() {
        let row = sources.lines().find_map(|row| row.strip_prefix(&name)?.strip_prefix('\t'));
        let columns: Vec<&str> = row.unwrap_or_else(|| panic!("{name} is not in SOURCES.tsv")).split('\t').collect();
        let (country, crc) = (columns[2], columns[3]);
        let (mut accepted, mut rejected, mut unknown) = (0, Vec::new(), Vec::new());
        read([&bytes[..]], |outcome| match outcome {
            Ok((telegram, decoded)) => {
                accepted += 1;
                lines += telegram.lines().count();
                let objects = decoded.reports.into_iter().flat_map(|report| report.unknown);
                unknown.extend(objects.map(|object| object.code + &object.text));
            }
            Err(piece) => rejected.push(piece.reason),
        });
        match (crc, REJECTED.iter().find(|(file, _)| *file == name)) {
            ("INVALID", _) => assert_eq!(accepted, 0, "{name} has no valid CRC"),
            (_, Some((_, reason))) => assert_eq!(rejected, [*reason], "{name}"),
            ("valid", None) => assert_ne!(accepted, 0, "{name} has a valid CRC, and yet: {rejected:?}"),
            (_, None) => {}
        }
        if country.starts_with("NL") {
            let excused = UNKNOWN.iter().find(|(file, ..)| *file == name).map_or(&[][..], |(_, excused, _)| *excused);
            let as_excused = unknown.len() == excused.len()
                && unknown.iter().zip(excused).all(|(line, start)| line.starts_with(start));
            assert!(as_excused, "{name}: unknown are {unknown:#?}");
        }
        telegrams += accepted;
        unknown_lines += unknown.len();
    }
    println!("{telegrams} telegrams of {lines} lines were accepted; {unknown_lines} lines are unknown");
    assert!(telegrams >= 50, "only {telegrams} telegrams were accepted");
    assert!(unknown_lines * 100 <= lines * 3, "{unknown_lines} of {lines} lines are unknown");
}

/// One of them has a tag over no associated data. In both the blank line behind the header was lost before
/// they were sealed, so that what comes out has another CRC than it says: it is refused, but by name.
#[test]
fn encrypted_telegrams_are_opened() {
    let Some(folder) = corpus_folder() else { return };
    // Published with the telegrams, which are of no real meter.
    let keys = "0123456789abcdef0123456789abcdef\nffeeddccbbaa99887766554433221100";
    for name in ["with-aad", "without-aad"] {
        let path = folder.join(format!("encrypted/athombv_dsmr-luxembourgh-spec-example-{name}.bin"));
        let bytes = fs::read(path).unwrap();
        let outcomes = |key: Option<&str>| -> Vec<_> {
            let mut reader = Reader::new(None, key.map(|key| Key::from_text(key).unwrap()));
            reader.push(&bytes);
            reader.end();
            std::iter::from_fn(|| reader.poll()).collect()
        };
        for (key, kind) in
            [(Some(keys), "crc-mismatch"), (None, "encrypted"), (Some("0123456789abcdef0123456789abcdee"), "wrong-key")]
        {
            let outcomes = outcomes(key);
            assert!(matches!(&outcomes[..], [Err(rejected)] if rejected.reason.kind() == kind), "{name}: {outcomes:?}");
        }
    }
}

/// The capture began in the middle of a telegram. It is read as it is, and as an editor or a terminal would
/// have left it.
#[test]
fn ten_minutes_of_one_meter() {
    let Some(stream) = stream() else { return };
    let without_returns = stream.bytes.iter().copied().filter(|&byte| byte != b'\r').collect();
    for (bytes, line_ends) in [(stream.bytes, LineEnds::AsSent), (without_returns, LineEnds::Restored)] {
        let (mut telegrams, mut lines, mut rejected) = (0, 0, Vec::new());
        read([&bytes[..]], |outcome| match outcome {
            Ok((telegram, decoded)) => {
                telegrams += 1;
                lines += telegram.lines().count();
                assert_eq!(telegram.line_ends, line_ends);
                assert!(decoded.reports.iter().all(|report| report.unknown.is_empty()), "{:?}", decoded.reports);
            }
            Err(piece) => rejected.push((piece.offset, piece.reason)),
        });
        println!("{telegrams} telegrams of {lines} lines were accepted; no line is unknown");
        assert_eq!((telegrams, rejected), (566, vec![(0, Reason::Fragment)]));
    }
}
