//! Simulated households: the same bytes each time, and the whole way into a store.

use std::{collections::BTreeMap, fs};

use serde_json::Value;

use crate::parts::{Folder, meterkast};

/// Some of everything that changes bytes.
const HOUSEHOLD: &str = r#"
seed = 7
[profile]
people = 4
holidays = ["2026-03-28/2026-03-28"]
[p1]
dialect = "luxembourg"
key = "000102030405060708090A0B0C0D0E0F"
[[p1.meter]]
measures = "gas"
[bus]
every-s = 600
[[bus.meter]]
meter = "SIM-10000001-01-04"
address = 1
[[bus.meter]]
meter = "SIM-20000002-01-06"
address = 1
[faults]
bit-errors = 20000
lost-bytes = 20000
cut = 20000
wrong-crcs = 20000
junk = 20000
silent = 20000
"#;

fn simulate(description: &str, from: &str, until: &str, more: &[&str]) -> String {
    let folder = Folder::new();
    let file = folder.file("household.toml", description);
    let arguments = ["simulate", "household", file.to_str().unwrap(), "--from", from, "--until", until];
    let ended = meterkast(&[&arguments, more].concat(), b"");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    ended.stdout
}

/// FNV-1a.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3))
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let day = |description: &str| simulate(description, "2026-03-28T22:00:00+01:00", "2026-03-29T06:00:00+02:00", &[]);
    let first = day(HOUSEHOLD);
    assert!(first.lines().count() > 2500, "{}", first.lines().count());
    assert_eq!(first, day(HOUSEHOLD));
    assert_ne!(first, day(&HOUSEHOLD.replace("seed = 7", "seed = 8")));
    // On every machine. Whoever changes what is simulated writes the new number here.
    assert_eq!(hash(&first), HASH, "{:#018x}", hash(&first));
}

const HASH: u64 = 0xF199_BAC7_5BA1_BA49;

/// Four days around a change of the clock and of a month, with a meter exchanged behind the P1 port and one on the bus.
const MARCH: &str = r#"
seed = 12
[p1]
[[p1.meter]]
measures = "gas"
[[p1.meter]]
measures = "water"
[bus]
[[bus.meter]]
meter = "SIM-10000001-01-04"
address = 1
[[bus.meter]]
meter = "SIM-20000002-01-06"
address = 2
telegrams = 2
[[bus.meter]]
meter = "SIM-30000003-01-0C"
address = 3
counts-in = "kWh"
[faults]
bit-errors = 1000
cut = 1000
wrong-crcs = 1000
[[event]]
what = "exchange"
at = "2026-03-30T10:20:00+02:00"
meter = "p1.1"
identifier = "G0099000000000027"
counts-from = [2]
[[event]]
what = "exchange"
at = "2026-03-30T10:25:00+02:00"
meter = "SIM-20000002-01-06"
identifier = "SIM-40000004-01-06"
[[event]]
what = "outage"
at = "2026-03-30T03:14:15+02:00"
until = "2026-03-30T04:02:40+02:00"
[[event]]
what = "clock"
at = "2026-03-31T23:00:00+02:00"
ahead-s = 1800
[[event]]
what = "clock"
at = "2026-04-01T01:00:00+02:00"
ahead-s = 0
"#;

type Registers = BTreeMap<Vec<String>, [String; 3]>;

/// A line of JSON as a register's name, and its value, unit and time.
fn register(line: &Value, qualifiers: &Value, at: &str) -> (Vec<String>, [String; 3]) {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut name: Vec<String> = ["meter", "medium", "register"].iter().map(|key| text(&line[*key])).collect();
    name.extend(["storage", "tariff", "subunit", "function", "suspect"].iter().map(|key| text(&qualifiers[*key])));
    (name, ["value", "unit", at].map(|key| text(&line[key])))
}

/// Numbers stay as they are written.
fn exact(line: &str) -> Value {
    let (before, rest) = line.split_once("\"value\":").unwrap();
    let (value, after) = rest.split_once(',').unwrap();
    serde_json::from_str(&format!("{before}\"value\":\"{value}\",{after}")).unwrap()
}

#[test]
fn every_register_in_the_store_is_what_the_meters_count() {
    let folder = Folder::new();
    let path = |name: &str| folder.path(name).to_str().unwrap().to_owned();
    let (capture, books, data) = (path("days.jsonl.gz"), path("books.jsonl"), path("data"));
    let arguments = ["--every", "2m", "--out", &capture, "--books", &books];
    simulate(MARCH, "2026-03-28T12:00:00+01:00", "2026-04-01T12:00:00+02:00", &arguments);
    let ended = meterkast(&["replay", &capture, "--data", &data], b"");
    let summary: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{}", ended.stderr));
    // Some telegrams were damaged, and named.
    assert!(summary["rejected"].as_u64().unwrap() > 0, "{summary}");
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert_eq!(summary["messages"], summary["acknowledged"], "{summary}");

    let mut expected: BTreeMap<String, Registers> = BTreeMap::new();
    for line in fs::read_to_string(&books).unwrap().lines() {
        let line = exact(line);
        let at = line["at"].as_str().unwrap().to_owned();
        expected.entry(at).or_default().extend([register(&line, &line, "measured_at")]);
    }
    let moments: Vec<_> = expected.keys().map(String::as_str).collect();
    let exchanges = ["2026-03-30T10:20:00+02:00", "2026-03-30T10:25:00+02:00"];
    assert_eq!(moments, [exchanges[0], exchanges[1], "2026-04-01T00:00:00+02:00", "2026-04-01T12:00:00+02:00"]);
    // The same without a capture, a journal and a broker.
    let straight = path("straight.db");
    let file = folder.file("march.toml", MARCH);
    let (url, again) = (format!("sqlite://{straight}"), path("again.jsonl"));
    let arguments = ["simulate", "household", file.to_str().unwrap(), "--from", "2026-03-28T12:00:00+01:00", "--until"];
    let arguments = [&arguments[..], &["2026-04-01T12:00:00+02:00", "--every", "2m", "--books", &again]].concat();
    let none = Value::from(0);
    for [stored, repeated] in [[&summary["stored"], &summary["repeated"]], [&none, &summary["messages"]]] {
        let ended = meterkast(&[&arguments[..], &["--store", &url, "--force"]].concat(), b"");
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let filled: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!([&filled["stored"], &filled["repeated"]], [stored, repeated], "{filled}");
        assert_eq!(filled["telegrams"], summary["telegrams"], "{filled}");
        assert_eq!(fs::read(&again).unwrap(), fs::read(&books).unwrap());
    }
    let stores = [format!("sqlite://{data}/meterkast.db"), url];
    for (store, (moment, registers)) in stores.iter().flat_map(|store| expected.iter().map(move |entry| (store, entry)))
    {
        let ended = meterkast(&["readings", "--store", store, "--at", moment, "--format", "json"], b"");
        let stored: Registers = ended
            .stdout
            .lines()
            .map(|line| {
                let line = exact(line);
                register(&line, &line["qualifiers"], "at")
            })
            .collect();
        // What a meter recorded for a day before it was first read is known from later, and not in the books of the moment.
        let read: std::collections::BTreeSet<_> =
            stored.keys().filter(|name| name[3] == "null").map(|name| name[0].clone()).collect();
        let stored: Registers = stored.into_iter().filter(|(name, _)| read.contains(&name[0])).collect();
        assert_eq!(&stored, registers, "at {moment}");
        assert!(stored.len() > 60, "{}", stored.len());
    }
    // The meters that are gone keep their last.
    let last = expected.values().next_back().unwrap();
    let meters: std::collections::BTreeSet<_> = last.keys().map(|name| &name[0]).collect();
    assert_eq!(meters.len(), 8, "{meters:?}");
}
