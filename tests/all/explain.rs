//! `explain`, `decode --explain` and `diff`: each byte is told once, whatever comes, and what is told agrees with the decoders.

use std::fs;

use meterkast::{
    explain::{self, Part, Piece},
    p1::{Key, Transcript},
    reading::escape,
};
use proptest::prelude::*;
use serde_json::Value;

use crate::{
    parts::{Folder, meterkast},
    samples::{Sample, corpus, fixtures, mbus_fixtures, mbus_frames, root},
};

/// Explains bytes that come in chunks of this size.
fn explained(bytes: &[u8], size: usize, explainer: Explainer) -> Vec<Piece> {
    let mut explainer = explainer;
    let mut pieces = Vec::new();
    for chunk in bytes.chunks(size.max(1)) {
        explainer.push(chunk);
        pieces.extend(std::iter::from_fn(|| explainer.poll()));
    }
    explainer.end();
    pieces.extend(std::iter::from_fn(|| explainer.poll()));
    pieces
}

enum Explainer {
    P1(Box<explain::p1::Explainer>),
    Mbus(explain::mbus::Explainer),
}

impl Explainer {
    fn p1(key: Option<Key>) -> Self {
        Self::P1(Box::new(explain::p1::Explainer::new(None, key)))
    }

    fn mbus() -> Self {
        Self::Mbus(explain::mbus::Explainer::new(1))
    }

    fn push(&mut self, bytes: &[u8]) {
        match self {
            Self::P1(explainer) => explainer.push(bytes),
            Self::Mbus(explainer) => explainer.push(bytes),
        }
    }

    fn end(&mut self) {
        match self {
            Self::P1(explainer) => explainer.end(),
            Self::Mbus(explainer) => explainer.end(),
        }
    }

    fn poll(&mut self) -> Option<Piece> {
        match self {
            Self::P1(explainer) => explainer.poll(),
            Self::Mbus(explainer) => explainer.poll(),
        }
    }
}

/// The parts hold each byte from `from` to `to` exactly once, on every level, and say what they are.
fn are_whole(parts: &[Part], from: usize, to: usize) {
    let mut at = from;
    for part in parts {
        assert_eq!(part.from, at, "{part:?}");
        assert!(part.to > part.from && !part.what.is_empty(), "{part:?}");
        assert_eq!(part.meaning, escaped(&part.meaning), "{part:?}");
        if !part.parts.is_empty() {
            are_whole(&part.parts, part.from, part.to);
        }
        at = part.to;
    }
    assert_eq!(at, to, "{parts:?}");
}

/// Text of a meter is safe on a terminal.
fn escaped(text: &str) -> String {
    text.chars()
        .map(|letter| if letter == '\\' { "\\".into() } else { escape(letter.to_string().as_bytes()) })
        .collect()
}

/// The pieces hold all bytes, and each of them once.
fn check(bytes: &[u8], pieces: &[Piece]) {
    let mut at = 0;
    for piece in pieces {
        assert_eq!(piece.offset, at);
        assert!(!piece.bytes.is_empty());
        are_whole(&piece.parts, 0, piece.bytes.len());
        let mut inside = 0;
        for piece in &piece.inside {
            assert_eq!(piece.offset, inside);
            are_whole(&piece.parts, 0, piece.bytes.len());
            inside += piece.bytes.len() as u64;
        }
        at += piece.bytes.len() as u64;
    }
    let all: Vec<u8> = pieces.iter().flat_map(|piece| piece.bytes.clone()).collect();
    assert_eq!(all, bytes);
}

fn on_the_bus(bytes: &[u8]) -> Vec<u8> {
    let mut transcript = Transcript::new();
    let begin = transcript.push(bytes);
    [begin, transcript.end()].concat()
}

fn sealed() -> (Vec<u8>, Key) {
    let folder = root().join("fixtures/sealed");
    let key = fs::read_to_string(folder.join("luxembourg.key")).unwrap();
    (fs::read(folder.join("luxembourg.bin")).unwrap(), Key::from_text(&key).unwrap())
}

#[test]
fn every_byte_of_a_fixture_is_told_once_however_it_is_split() {
    for Sample { name, bytes } in fixtures().into_iter().chain(corpus()) {
        let whole = explained(&bytes, bytes.len(), Explainer::p1(None));
        check(&bytes, &whole);
        for size in [1, 7, 100] {
            assert_eq!(explained(&bytes, size, Explainer::p1(None)), whole, "{name} in chunks of {size}");
        }
    }
    let on_buses = mbus_fixtures().into_iter().map(|sample| Sample { bytes: on_the_bus(&sample.bytes), ..sample });
    for Sample { name, bytes } in on_buses.chain(mbus_frames()) {
        let whole = explained(&bytes, bytes.len(), Explainer::mbus());
        check(&bytes, &whole);
        for size in [1, 7, 100] {
            assert_eq!(explained(&bytes, size, Explainer::mbus()), whole, "{name} in chunks of {size}");
        }
    }
    let (bytes, key) = sealed();
    let whole = explained(&bytes, bytes.len(), Explainer::p1(Some(key.clone())));
    check(&bytes, &whole);
    assert_eq!(whole.iter().filter(|piece| piece.inside.len() == 1).count(), 2);
    assert_eq!(explained(&bytes, 3, Explainer::p1(Some(key))), whole);
}

/// Each reading that the decoder makes stands in the meaning of a line or a record: the two tell the same story.
#[test]
fn what_is_told_agrees_with_what_is_decoded() {
    let meanings = |pieces: &[Piece]| -> Vec<String> {
        pieces.iter().flat_map(|piece| &piece.parts).map(|part| part.meaning.clone()).collect()
    };
    let mut readings = 0;
    let mut agree = |name: &str, expected: &str, told: &[String]| {
        for line in expected.lines().filter(|line| line.starts_with('{')) {
            let report: Value = serde_json::from_str(line).unwrap();
            for reading in report["readings"].as_array().unwrap() {
                let register = reading["register"].as_str().unwrap();
                // As it stands in the text: a JSON number would lose its zeros.
                let at = line.find(&format!("{{\"register\":\"{register}\",\"value\":")).unwrap();
                let value = line[at..].split("\"value\":").nth(1).unwrap().split(',').next().unwrap();
                let shown = format!("{register} {value}");
                assert!(told.iter().any(|told| told.contains(&shown)), "{name}: {shown} is in none of {told:#?}");
                readings += 1;
            }
        }
    };
    for (folder, extension, samples) in [("p1", "txt", fixtures()), ("mbus", "hex", mbus_fixtures())] {
        for sample in samples {
            let path = root().join("fixtures").join(folder).join(&sample.name);
            assert_eq!(path.extension().unwrap(), extension);
            let expected = fs::read_to_string(path.with_extension("expected")).unwrap();
            let pieces = match folder {
                "p1" => explained(&sample.bytes, 64, Explainer::p1(None)),
                _ => explained(&on_the_bus(&sample.bytes), 64, Explainer::mbus()),
            };
            agree(&sample.name, &expected, &meanings(&pieces));
        }
    }
    assert!(readings > 500, "only {readings} readings were compared");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn damage_is_told_byte_by_byte(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 1..6),
        size in 1usize..300,
    ) {
        let damage = |mut bytes: Vec<u8>| {
            for (at, byte, kind) in &changes {
                if bytes.is_empty() {
                    break;
                }
                let at = at.index(bytes.len());
                match kind {
                    0 => bytes[at] = *byte,
                    1 => drop(bytes.drain(at..(at + usize::from(*byte % 9)).min(bytes.len()))),
                    _ => bytes.insert(at, *byte),
                }
            }
            bytes
        };
        let p1 = fixtures();
        let bytes = damage(p1[which.index(p1.len())].bytes.clone());
        let pieces = explained(&bytes, size, Explainer::p1(None));
        check(&bytes, &pieces);
        prop_assert_eq!(explained(&bytes, bytes.len(), Explainer::p1(None)), pieces);
        let mbus = mbus_fixtures();
        let bytes = damage(on_the_bus(&mbus[which.index(mbus.len())].bytes));
        let pieces = explained(&bytes, size, Explainer::mbus());
        check(&bytes, &pieces);
        prop_assert_eq!(explained(&bytes, bytes.len(), Explainer::mbus()), pieces);
        let (bytes, key) = sealed();
        let bytes = damage(bytes);
        check(&bytes, &explained(&bytes, size, Explainer::p1(Some(key))));
    }

    #[test]
    fn any_bytes_are_told(bytes in prop::collection::vec(any::<u8>(), 0..3000), size in 1usize..3000) {
        check(&bytes, &explained(&bytes, size, Explainer::p1(None)));
        check(&bytes, &explained(&bytes, size, Explainer::mbus()));
    }
}

/// A stream that brings nothing for a long time is told in stretches, and not kept.
#[test]
fn nothing_for_a_long_time_is_told_in_stretches() {
    for explainer in [Explainer::p1(None), Explainer::mbus()] {
        let bytes = vec![0; 100_000];
        let pieces = explained(&bytes, 1000, explainer);
        check(&bytes, &pieces);
        assert!(pieces.len() > 10 && pieces.iter().all(|piece| piece.bytes.len() <= 8192));
    }
}

fn fixture(path: &str) -> String {
    root().join("fixtures").join(path).to_str().unwrap().to_owned()
}

#[test]
fn decode_explains_for_people_and_for_programs() {
    let ended = meterkast(&["decode", "--explain", &fixture("p1/bad-crc.txt")], b"");
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("bad-crc.txt:0: CRC mismatch"), "{}", ended.stderr);
    assert!(ended.stdout.starts_with("0: P1 telegram, 546 bytes: rejected: CRC mismatch"), "{}", ended.stdout);
    for line in [
        "line: volume 2540.175 m3; at 2026-06-18T19:20:00+02:00",
        "CRC: wrong: the bytes give 9BE6; it would be right if byte 252 were 31 (1) and not 37 (7)",
    ] {
        assert!(ended.stdout.contains(line), "{}", ended.stdout);
    }
    // A pipe is no terminal.
    assert!(!ended.stdout.contains('\x1b'));
    let ended = meterkast(&["decode", "--explain", "--format", "json", &fixture("mbus/listening.hex")], b"");
    let pieces: Vec<Value> = ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let whats: Vec<&str> = pieces.iter().map(|piece| piece["what"].as_str().unwrap()).collect();
    assert_eq!(whats[..4], ["short frame", "acknowledgement", "short frame", "long frame"]);
    assert_eq!(pieces[3]["parts"][4]["hex"], "08");
    assert_eq!(pieces[4]["mark"], "wrong");
    // What a master says alone is explained too, though nothing is decoded of it.
    let ended = meterkast(&["decode", "--explain", &fixture("mbus/master-only.hex")], b"");
    assert_eq!((ended.code, ended.stdout.matches("short frame, 5 bytes").count()), (Some(1), 2));
    let sealed = fixture("sealed/luxembourg.bin");
    let ended = meterkast(&["decode", "--explain", "--key-file", &fixture("sealed/luxembourg.key"), &sealed], b"");
    assert_eq!((ended.code, ended.stdout.matches("inside, byte 0: P1 telegram").count()), (Some(0), 2));
    let ended = meterkast(&["decode", "--explain", &sealed], b"");
    assert_eq!((ended.code, ended.stdout.matches("inside").count()), (Some(1), 0));
    assert!(ended.stdout.contains("416: rises with each telegram of the meter"), "{}", ended.stdout);
}

const CAPTURE: &str = r#"{"capture":1,"port":"p1","wire":"p1","at":"2026-11-22T10:20:00Z"}
{"capture":1,"port":"bus","wire":"mbus","at":"2026-11-22T10:20:00Z"}
{"port":"p1","us":1,"at":"2026-11-22T10:20:01Z","text":"/XYZ5 a\r\n\r\n0-0:96.1.1(4532)\r\n1-0:1.8.1(0000"}
{"port":"bus","us":2,"at":"2026-11-22T10:20:01Z","to":"meter","hex":"105b056016"}
{"port":"bus","us":3,"at":"2026-11-22T10:20:01Z","hex":"0068090968080578"}
{"port":"p1","us":4,"at":"2026-11-22T10:20:01Z","text":"01.000*kWh)\r\n!\r\n/XYZ5 a\r\n"}
{"port":"bus","us":5,"at":"2026-11-22T10:20:01Z","hex":"0c1301000000a516"}
{"port":"p1","us":6,"at":"2026-11-22T10:20:02Z","lost":2}
{"port":"p1","us":7,"at":"2026-11-22T10:20:03Z","text":"/XYZ5 a\r\n\r\n0-0:96.1.1(4532)\r\n1-0:1.8.1(000003.000*kWh)\r\n!\r\n"}
"#;

#[test]
fn captures_are_decoded_port_by_port() {
    let folder = Folder::new();
    let file = folder.file("capture.jsonl", CAPTURE).to_str().unwrap().to_owned();
    let ended = meterkast(&["decode", &file], b"");
    let meters: Vec<String> = ended
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|line| format!("{} {}", line["meter"].as_str().unwrap(), line["readings"][0]["value"]))
        .collect();
    assert_eq!(
        (ended.code, &meters[..]),
        (Some(1), &["E2 1.0".to_owned(), "decode.bus.5 0.001".to_owned(), "E2 3.0".to_owned()][..]),
        "{}",
        ended.stderr
    );
    for said in [
        "capture.jsonl:5: port bus: byte 5: no frame: no frame begins with 00",
        "capture.jsonl:6: port p1: byte 59: truncated",
        "capture.jsonl:8: port p1: the recorder missed 2 chunks here",
    ] {
        assert!(ended.stderr.contains(said), "{said}: {}", ended.stderr);
    }
    let ended = meterkast(&["decode", "--explain", &file], b"");
    assert!(ended.stdout.contains("port p1, line 3, byte 0: P1 telegram, 59 bytes"), "{}", ended.stdout);
    let ended = meterkast(&["decode", "--explain", "--format", "json", &file], b"");
    let lines: Vec<Value> = ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["port"], &lines[0]["line"]), (&Value::from("p1"), &Value::from(3)));
}

#[test]
fn diff_compares_meter_by_meter() {
    let one = fixture("p1/two-telegrams-one-second-apart.txt");
    let ended = meterkast(&["diff", &one], b"");
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    assert!(ended.stdout.contains("  import_normal        2065.442  2065.443  +0.001  kWh\n"), "{}", ended.stdout);
    let ended = meterkast(&["diff", "--changed", "--format", "json", &one], b"");
    let meters: Vec<Value> = ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(meters.len(), 2);
    assert_eq!(meters[0]["registers"].as_array().unwrap().len(), 3);
    assert_eq!(meters[0]["registers"][2]["difference"].to_string(), "-0.1");
    assert_eq!(meters[1]["registers"].as_array().unwrap().len(), 0);
    // The same file twice: nothing is other; its second telegram with its first: as above, the other way round.
    let ended = meterkast(&["diff", "--changed", &one, &one], b"");
    assert_eq!((ended.code, ended.stdout.matches("kWh").count()), (Some(0), 0));
    // Other meters, and what cannot be read, are no promise that was kept.
    let other = fixture("p1/dsmr50-export.txt");
    let ended = meterkast(&["diff", &one, &other], b"");
    assert_eq!(ended.code, Some(1));
    assert!(ended.stdout.contains("-> not there") && ended.stdout.contains("only after"), "{}", ended.stdout);
    let ended = meterkast(&["diff", &fixture("p1/truncated.txt")], b"");
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("no telegram to compare"), "{}", ended.stderr);
    assert_eq!(meterkast(&["diff"], b"").code, Some(2));
}

/// A register that comes or goes, a unit that changes, a text and an unknown line that do.
#[test]
fn diff_tells_what_is_only_in_one() {
    let folder = Folder::new();
    let telegram = |name: &str, lines: &[&str]| {
        let text =
            lines.iter().fold("/XYZ5 a\r\n\r\n0-0:96.1.1(4532)\r\n".to_owned(), |text, line| text + line + "\r\n");
        folder.file(name, text + "!\r\n").to_str().unwrap().to_owned()
    };
    let before =
        telegram("before", &["1-0:1.8.1(1.50*kWh)", "0-0:96.14.0(0001)", "9-9:9.9.9(1)", "1-0:21.7.0(1.0*kW)"]);
    let after = telegram("after", &["1-0:1.8.1(01.7*kWh)", "0-0:96.14.0(0002)", "9-9:9.9.9(2)", "1-0:41.7.0(1.0*kW)"]);
    let ended = meterkast(&["diff", &before, &after], b"");
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    for line in [
        "  import_low       1.50  1.7  +0.20  kWh\n",
        "  power_import_l1   1.0    -      -  kW   only before\n",
        "  power_import_l2     -  1.0      -  kW   only after\n",
        "  tariff             low -> normal\n",
        "  unknown 9-9:9.9.9  (1) -> (2)\n",
    ] {
        assert!(ended.stdout.contains(line), "{line}: {}", ended.stdout);
    }
}
