//! `redact`: what is written says the same, names nobody, and is valid; what cannot be checked is not written.

use std::{collections::BTreeSet, fs, sync::LazyLock};

use jiff::SignedDuration;
use meterkast::{
    capture::{self, Entry},
    mbus::{self, Frame},
    moment::Moment,
    p1::{self, Framer, LineEnds, Telegram, Writer},
    reading::{Identity, Reading, Report},
    redact::{
        Offsets, Plan, Refused, Rewriter, Secret, Survey, Written,
        cut::{Cutter, Found},
    },
};
use proptest::prelude::*;

use crate::{
    parts::{self, Folder, meterkast},
    samples::{self, Sample},
};

/// Every telegram in P1 bytes, and what becomes of it.
fn telegrams(bytes: &[u8], mut each: impl FnMut(&Telegram<'_>)) -> usize {
    let mut framer = Framer::new();
    framer.push(bytes);
    framer.end();
    let mut count = 0;
    while let Some(piece) = framer.poll() {
        if let Ok(telegram) = Telegram::check(piece) {
            each(&telegram);
            count += 1;
        }
    }
    count
}

/// The numbers of at least six digits that name a meter, by the decoder and not by what is tested.
fn names_of(reports: &[Report]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for report in reports {
        let mut texts: Vec<&str> = Vec::new();
        if let Identity::Own(name) = &report.meter {
            texts.push(name);
        }
        for (name, text) in &report.info {
            let naming =
                ["equipment", "serial_number", "logical_device", "address", "ean", "fabrication_number", "customer"];
            if naming.iter().any(|start| name.starts_with(start)) {
                texts.push(text);
            }
        }
        for text in texts {
            for run in text.split(|letter: char| !letter.is_ascii_digit()) {
                let run = run.trim_start_matches('0');
                if run.len() >= 6 && run.bytes().any(|digit| digit != run.as_bytes()[0]) {
                    names.insert(run.to_owned());
                }
            }
        }
    }
    names
}

/// Searches for a number as ASCII, as hex digits of ASCII, as BCD, forward and backward, also between two halves of a byte.
fn stands(name: &str, bytes: &[u8]) -> bool {
    let text = |back: bool| -> Vec<u8> { if back { name.bytes().rev().collect() } else { name.bytes().collect() } };
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    let all = hex(bytes);
    let backward = hex(&bytes.iter().rev().copied().collect::<Vec<u8>>());
    let ascii = String::from_utf8_lossy(bytes).to_ascii_lowercase();
    [false, true].into_iter().any(|back| {
        let text = text(back);
        memchr::memmem::find(bytes, &text).is_some() || ascii.contains(&hex(&text))
    }) || all.contains(name)
        || backward.contains(name)
}

fn reports(telegram: &Telegram<'_>) -> Vec<Report> {
    p1::decode(telegram, None).reports
}

/// A telegram by itself, as anybody reads it.
fn read(bytes: &[u8]) -> (Vec<Report>, LineEnds) {
    let mut reader = p1::Reader::new(None, None);
    reader.push(bytes);
    reader.end();
    let accepted = reader.poll().unwrap().unwrap();
    assert_eq!(reader.poll(), None);
    (accepted.decoded.reports, accepted.line_ends)
}

fn plan(survey: Survey) -> Plan {
    Plan { names: Some(Secret::new(20_261_122)), serials: survey.serials, ..Plan::default() }
}

/// What must not change, as text: everything but names, texts and what nobody explains.
fn said(reports: &[Report]) -> Vec<String> {
    let kept = |name: &str| {
        let other = ["identification", "equipment", "serial_number", "logical_device", "address", "ean", "message"];
        !other.iter().any(|start| name.starts_with(start))
    };
    reports
        .iter()
        .map(|report| {
            let info: Vec<_> = report.info.iter().filter(|(name, _)| kept(name)).collect();
            format!(
                "{:?} {:?} {:?} {:?} {info:?} {:?}",
                report.medium, report.measured_at, report.clock, report.readings, report.events
            )
        })
        .collect()
}

#[test]
fn each_p1_telegram_says_the_same_and_names_nobody() {
    let mut samples = samples::fixtures();
    samples.extend(samples::corpus());
    let (mut written, mut refused, mut count) = (0, Vec::new(), 0);
    for Sample { name, bytes } in &samples {
        // Each by itself: many have numbers that people thought of, and values of theirs that are like them.
        let mut survey = Survey::default();
        telegrams(bytes, |telegram| survey.telegram(telegram, None, "p1"));
        let rewriter = Rewriter::new(plan(survey));
        let (mut names, mut all) = (BTreeSet::new(), Vec::new());
        telegrams(bytes, |telegram| {
            let old = reports(telegram);
            names.extend(names_of(&old));
            match rewriter.telegram(telegram, None, "p1") {
                Err(reason) => refused.push(format!("{name}: {reason}")),
                Ok(Written { bytes, .. }) => {
                    let (new, line_ends) = read(&bytes);
                    assert_eq!(said(&new), said(&old), "{name}");
                    assert_eq!(line_ends, telegram.line_ends, "{name}");
                    let texts: Vec<_> = new.iter().flat_map(|report| &report.info).collect();
                    assert!(texts.iter().all(|(name, text)| !name.starts_with("message") || text.is_empty()), "{name}");
                    all.push(bytes);
                }
            }
        });
        for (name_of_meter, bytes) in names.iter().flat_map(|name| all.iter().map(move |bytes| (name, bytes))) {
            assert!(!stands(name_of_meter, bytes), "{name_of_meter} is in {name}: {}", String::from_utf8_lossy(bytes));
        }
        (written, count) = (written + all.len(), count + names.len());
    }
    assert!(refused.is_empty(), "{refused:#?}");
    assert!(written >= 50);
    println!("{written} telegrams, {count} names");
}

/// Every frame in bytes of a bus that is whole.
fn frames(bytes: &[u8], mut each: impl FnMut(&Frame<'_>)) {
    let mut rest = bytes;
    while !rest.is_empty() {
        let length = match Frame::parse(rest) {
            Ok((frame, length)) => {
                each(&frame);
                length
            }
            Err(_) => 1,
        };
        rest = &rest[length..];
    }
}

/// The fixtures and the corpus as bytes.
fn buses() -> Vec<Sample> {
    let mut all: Vec<Sample> = samples::mbus_fixtures();
    for Sample { bytes, .. } in &mut all {
        let mut transcript = p1::Transcript::new();
        let begin = transcript.push(bytes);
        *bytes = [begin, transcript.end()].concat();
    }
    all.extend(samples::mbus_frames());
    all
}

#[test]
fn each_frame_says_the_same_and_names_nobody() {
    let samples = buses();
    let (mut written, mut refused, mut count) = (0, Vec::new(), 0);
    for Sample { name, bytes } in &samples {
        let mut survey = Survey::default();
        frames(bytes, |frame| survey.frame(frame, "bus"));
        let rewriter = Rewriter::new(plan(survey));
        let (mut names, mut all) = (BTreeSet::new(), Vec::new());
        frames(bytes, |frame| {
            let old = mbus::decode(&[*frame], 1);
            match (rewriter.frame(frame, "bus"), old) {
                (Ok(Written { bytes, .. }), Ok(old)) => {
                    names.extend(names_of(std::slice::from_ref(&old.report)));
                    let new = mbus::read(&bytes, 1).unwrap();
                    assert_eq!(bytes.len(), frame.emit().len(), "{name}");
                    let said = |decoded: &mbus::Decoded| {
                        let report = &decoded.report;
                        format!("{:?} {:?} {:?}", report.medium, report.measured_at, report.readings)
                    };
                    assert_eq!(said(&new), said(&old), "{name}");
                    assert_eq!(new.report.unknown.len(), old.report.unknown.len());
                    let hides = |unknown: &meterkast::reading::Unknown| unknown.text.bytes().all(|digit| digit == b'0');
                    let is_fixed = |unknown: &meterkast::reading::Unknown| unknown.code.starts_with("73.");
                    assert!(
                        new.report.unknown.iter().all(|unknown| {
                            // The length of variable data stays in front.
                            hides(unknown) || is_fixed(unknown) || unknown.text[2..].bytes().all(|digit| digit == b'0')
                        }),
                        "{name}: {:?}",
                        new.report.unknown
                    );
                    all.push(bytes);
                }
                (Ok(Written { bytes, .. }), Err(_)) => all.push(bytes),
                (Err(_), Err(_)) => {}
                (Err(reason), Ok(_)) => refused.push(format!("{name}: {reason}")),
            }
        });
        for (number, bytes) in names.iter().flat_map(|name| all.iter().map(move |bytes| (name, bytes))) {
            assert!(!stands(number, bytes), "{number} is in {name}: {bytes:02X?}");
        }
        (written, count) = (written + all.len(), count + names.len());
    }
    assert!(refused.is_empty(), "{refused:#?}");
    assert!(written >= 40);
    println!("{written} frames, {count} names");
}

/// One telegram behind the other, with what they say: by register, the value with what it was before.
fn differences(reports: &[Vec<Report>]) -> Vec<Vec<String>> {
    let pairs = reports.windows(2).map(|pair| {
        let (before, after) = (&pair[0], &pair[1]);
        let readings =
            |reports: &[Report]| -> Vec<_> { reports.iter().flat_map(|report| report.readings.clone()).collect() };
        let time = |reports: &[Report]| -> Vec<i64> {
            reports.iter().filter_map(|report| report.measured_at).map(|at| at.millis()).collect()
        };
        let elapsed: Vec<i64> = time(after).iter().zip(time(before)).map(|(after, before)| after - before).collect();
        let mut shown = vec![format!("{elapsed:?}")];
        for (was, is) in readings(before).iter().zip(&readings(after)) {
            assert_eq!((&was.register, was.value.scale()), (&is.register, is.value.scale()));
            let difference = is.value.mantissa() - was.value.mantissa();
            shown.push(format!("{} {:?} {difference} {}", is.register, is.qualifiers, is.unit));
        }
        shown
    });
    pairs.collect()
}

/// Rewrites a stream with offsets and a shift, and holds it against the old one.
fn holds_every_difference(stream: &[u8], days: i64) -> usize {
    let mut survey = Survey::default();
    telegrams(stream, |telegram| survey.telegram(telegram, None, "p1"));
    let secret = Secret::new(99);
    let offsets = Offsets::choose(&survey, &secret);
    assert_eq!(offsets.without(), 0);
    let shift = SignedDuration::from_hours(24 * days);
    let rewriter = Rewriter::new(Plan {
        names: Some(secret),
        serials: survey.serials,
        keep_unknown: false,
        shift,
        offsets: Some(offsets),
    });
    let (mut old, mut new, mut bytes, mut names) = (Vec::new(), Vec::new(), Vec::new(), BTreeSet::new());
    let count = telegrams(stream, |telegram| {
        let written = rewriter.telegram(telegram, None, "p1").unwrap();
        let (reports, _) = read(&written.bytes);
        let was = p1::decode(telegram, None).reports;
        names.extend(names_of(&was));
        for (was, is) in was.iter().zip(&reports) {
            let moved = was.measured_at.map(|at| at.instant() + shift);
            assert_eq!(is.measured_at.map(|at| at.instant()), moved);
            let ends = |report: &Report| -> Vec<_> { report.events.iter().filter_map(|event| event.end).collect() };
            for (was, is) in ends(was).iter().zip(ends(is)) {
                assert_eq!(is.instant(), was.instant() + shift);
            }
            for (was, is) in was.readings.iter().zip(&is.readings) {
                assert_eq!(was.value == is.value, !was.register.is_cumulative(), "{}", was.register);
            }
        }
        old.push(was);
        new.push(reports);
        bytes.extend(written.bytes);
    });
    assert_eq!(differences(&new), differences(&old));
    // Of the whole, read as one stream: every CRC is valid.
    let mut again = 0;
    samples::read([&bytes[..]], |outcome| {
        outcome.unwrap();
        again += 1;
    });
    assert_eq!(again, count);
    assert!(!names.is_empty());
    for name in &names {
        assert!(!stands(name, &bytes), "{name}");
    }
    count
}

#[test]
fn a_real_stream_keeps_every_difference() {
    let Some(stream) = samples::stream() else { return };
    // From winter into summer.
    for days in [-364, 100] {
        assert_eq!(holds_every_difference(&stream.bytes, days), 566);
    }
}

#[test]
fn a_household_keeps_every_difference_across_the_change_of_time() {
    let start: Moment = "2026-03-28T20:00:00+01:00".parse().unwrap();
    let mut household = meterkast::simulate::Household::new(5, start);
    let mut stream = Vec::new();
    for quarter in 1..100 {
        household.advance(start.moved(SignedDuration::from_mins(15 * quarter)).unwrap());
        stream.extend(household.telegram());
    }
    for days in [364, -100] {
        assert_eq!(holds_every_difference(&stream, days), 99);
    }
}

#[test]
fn totals_stay_the_sum_of_their_parts() {
    let telegram = |low: u32, normal: u32, export: u32| {
        let total = low + normal;
        Writer::new("ISK5\\2M550T-1000")
            .line("0-0:1.0.0(260721120000S)")
            .line("0-0:96.1.1(4530303433303037303532383730333138)")
            .line(format!("1-0:1.8.0({total:06}.000*kWh)"))
            .line(format!("1-0:1.8.1({low:06}.000*kWh)"))
            .line(format!("1-0:1.8.2({normal:06}.000*kWh)"))
            .line(format!("1-0:2.8.0({export:06}.000*kWh)"))
            .line(format!("1-0:15.8.0({:06}.000*kWh)", total + export))
            .line("1-0:3.8.0(000300.000*kvarh)")
            .line("1-0:5.8.0(000100.000*kvarh)")
            .line("1-0:6.8.0(000200.000*kvarh)")
            .finish(true)
    };
    let stream = [telegram(10, 20, 5), telegram(900_000, 90_000, 9)].concat();
    for seed in 0..50 {
        let mut survey = Survey::default();
        telegrams(&stream, |telegram| survey.telegram(telegram, None, "p1"));
        let secret = Secret::new(seed);
        let offsets = Some(Offsets::choose(&survey, &secret));
        let rewriter = Rewriter::new(Plan { names: Some(secret), serials: survey.serials, offsets, ..Plan::default() });
        telegrams(&stream, |telegram| {
            let (reports, _) = read(&rewriter.telegram(telegram, None, "p1").unwrap().bytes);
            let value = |name: &str| {
                let mut found = reports[0].readings.iter().filter(|reading| reading.register.as_str() == name);
                found.next().unwrap_or_else(|| panic!("{name} in {:?}", reports[0].readings)).value.mantissa()
            };
            assert_eq!(value("import_total"), value("import_rate1") + value("import_rate2"));
            assert_eq!(value("import_and_export_total"), value("import_total") + value("export_total"));
            assert_eq!(value("reactive_import_total"), value("reactive_quadrant1") + value("reactive_quadrant2"));
        });
    }
}

/// Frames with offsets: what was added to each counter is the same in each frame.
#[test]
fn counters_of_a_bus_keep_every_difference() {
    for Sample { name, bytes } in buses() {
        let mut survey = Survey::default();
        frames(&bytes, |frame| survey.frame(frame, "bus"));
        let secret = Secret::new(1);
        let offsets = Some(Offsets::choose(&survey, &secret));
        let shift = SignedDuration::from_hours(24 * -365);
        let plan = Plan { names: Some(secret), serials: survey.serials, keep_unknown: false, shift, offsets };
        let rewriter = Rewriter::new(plan);
        let mut added = std::collections::BTreeMap::new();
        frames(&bytes, |frame| {
            let Ok(old) = mbus::decode(&[*frame], 1) else { return };
            let written = match rewriter.frame(frame, "bus") {
                Ok(written) => written,
                Err(reason) => {
                    assert!(matches!(reason, Refused::Offset | Refused::Time), "{name}: {reason}");
                    return;
                }
            };
            let new = mbus::read(&written.bytes, 1).unwrap().report;
            assert_eq!(
                new.measured_at.map(|at| at.instant()),
                old.report.measured_at.map(|at| at.instant() + shift),
                "{name}"
            );
            for (was, is) in old.report.readings.iter().zip(&new.readings) {
                assert_eq!(is.at.map(|at| at.instant()), was.at.map(|at| at.instant() + shift), "{name}");
                let own = |reading: &Reading| reading.raw.as_ref().map_or(reading.value, |raw| raw.0);
                let difference = own(is).mantissa() - own(was).mantissa();
                if !was.register.is_cumulative() {
                    assert_eq!(difference, 0, "{name}: {}", was.register);
                    continue;
                }
                // A register that is counted in two units has two offsets.
                let unit = was.raw.as_ref().map_or(was.unit.clone(), |raw| raw.1.clone());
                let qualifiers = (was.qualifiers.tariff, was.qualifiers.subunit);
                let meter = format!("{:?}", old.report.meter);
                let key = (meter, was.register.clone(), unit, own(was).scale(), qualifiers);
                assert_eq!(*added.entry(key).or_insert(difference), difference, "{name}: {}", was.register);
            }
        });
    }
}

#[test]
fn a_search_by_wildcards_stays_one() {
    let secret = || Some(Secret::new(8));
    let rewriter = Rewriter::new(Plan { names: secret(), ..Plan::default() });
    let select = |mask: [u8; 8]| {
        let frame = Frame::Long { control: 0x53, address: 253, ci: 0x52, data: &mask };
        rewriter.frame(&frame, "bus").map(|written| {
            let (frame, _) = Frame::parse(&written.bytes).unwrap();
            let Frame::Long { data, .. } = frame else { panic!("{frame:?}") };
            mbus::Pattern::from_bytes(*data.first_chunk().unwrap())
        })
    };
    let answer = [0x78, 0x56, 0x34, 0x12, 0x2D, 0x2C, 0x1B, 0x04, 1, 0, 0, 0, 0x02, 0x0E, 0x39, 0x30];
    let answer = Frame::Long { control: 8, address: 5, ci: 0x72, data: &answer };
    let slave = mbus::read(&rewriter.frame(&answer, "bus").unwrap().bytes, 1).unwrap().secondary.unwrap();
    assert_ne!(slave.id, 0x1234_5678);
    for mask in [
        [0xFF; 8],
        [0xFF, 0xFF, 0xFF, 0x1F, 0xFF, 0xFF, 0xFF, 0xFF],
        [0xFF, 0xFF, 0x34, 0x12, 0xFF, 0xFF, 0xFF, 0xFF],
        [0x78, 0x56, 0x34, 0x12, 0xFF, 0xFF, 0xFF, 0x04],
        [0x78, 0x56, 0x34, 0x12, 0x2D, 0x2C, 0x1B, 0x04],
    ] {
        assert!(select(mask).unwrap().matches(slave), "{mask:02X?}");
    }
    assert!(!select([0xFF, 0xFF, 0x35, 0x12, 0xFF, 0xFF, 0xFF, 0xFF]).unwrap().matches(slave));
    // The last digits of a number say too much, and fit no other.
    assert_eq!(select([0x78, 0x56, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]), Err(Refused::Selection));
    assert_eq!(select([0x78, 0x56, 0x34, 0xF2, 0xFF, 0xFF, 0xFF, 0xFF]), Err(Refused::Selection));
}

#[test]
fn what_a_master_writes_names_nobody_either() {
    let rewriter = Rewriter::new(Plan { names: Some(Secret::new(8)), ..Plan::default() });
    let new = |ci, data: &[u8]| {
        let frame = Frame::Long { control: 0x73, address: 5, ci, data };
        rewriter.frame(&frame, "bus").map(|written| written.bytes)
    };
    // A number, a whole identity, a customer's name, a password.
    for record in [
        &[0x0C, 0x79, 0x78, 0x56, 0x34, 0x12][..],
        &[0x07, 0x79, 0x78, 0x56, 0x34, 0x12, 0x2D, 0x2C, 0x1B, 0x04],
        &[0x0D, 0xFD, 0x11, 0x05, b'h', b't', b'i', b'm', b'S'],
        &[0x02, 0xFD, 0x16, 0x34, 0x12],
    ] {
        let bytes = new(0x51, record).unwrap();
        assert!(Frame::parse(&bytes).is_ok());
        let data = &bytes[7..bytes.len() - 2];
        assert_eq!(data.len(), record.len());
        let head = if record[1] == 0xFD { 3 } else { 2 };
        assert!(data.starts_with(&record[..head]));
        for (is, was) in data[head..].iter().zip(&record[head..]).take(2).skip(usize::from(record[0] == 0x0D)) {
            assert_ne!(is, was, "{record:02X?} became {data:02X?}");
        }
    }
    // The address on the bus names nobody; unknown commands may say anything.
    assert_eq!(&new(0x51, &[0x01, 0x7A, 0x07]).unwrap()[7..10], [0x01, 0x7A, 0x07]);
    assert_eq!(new(0x5C, &[1, 2, 3]), Err(Refused::Data(0x5C)));
    assert!(new(0xB8, &[]).is_ok());
}

/// Arbitrary bytes, and telegrams and frames with a few bytes changed and made valid again.
fn is_safe(bytes: &[u8]) {
    let shift = SignedDuration::from_secs(86_399);
    let plans = [
        Plan { names: Some(Secret::new(4)), shift: SignedDuration::from_hours(-48), ..Plan::default() },
        Plan { names: Some(Secret::new(5)), keep_unknown: true, offsets: Some(Offsets::default()), ..Plan::default() },
        Plan { shift, ..Plan::default() },
    ];
    for plan in plans {
        let names = plan.names.is_some();
        let rewriter = Rewriter::new(plan);
        for wire in [capture::Wire::P1, capture::Wire::Mbus] {
            let mut cutter = Cutter::new(wire, None);
            cutter.push(bytes);
            cutter.end();
            while let Some(cut) = cutter.poll() {
                match cut.what {
                    Found::Nothing(..) => {}
                    Found::Telegram(whole) => {
                        let telegram = whole.telegram();
                        Survey::default().telegram(&telegram, None, "p1");
                        if let Ok(written) = rewriter.telegram(&telegram, None, "p1") {
                            let (reports, _) = read(&written.bytes);
                            assert!(!names || names_of(&reports).is_disjoint(&names_of(&self::reports(&telegram))));
                        }
                    }
                    Found::Frame(bytes) => {
                        let (frame, _) = Frame::parse(&bytes).unwrap();
                        Survey::default().frame(&frame, "bus");
                        if let Ok(written) = rewriter.frame(&frame, "bus") {
                            let (_, length) = Frame::parse(&written.bytes).unwrap();
                            assert_eq!(length, written.bytes.len());
                        }
                    }
                }
            }
        }
    }
}

fn with_crc(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().rposition(|&byte| byte == b'!') {
        bytes.truncate(end + 1);
        let crc = p1::crc::as_sent(&bytes);
        bytes.extend(format!("{crc:04X}\r\n").into_bytes());
    }
    bytes
}

/// The fixtures of both kinds.
static FIXTURES: LazyLock<[Vec<Sample>; 2]> = LazyLock::new(|| {
    let is_ours = |sample: &Sample| !sample.name.contains('/');
    [samples::fixtures(), buses().into_iter().filter(is_ours).collect()]
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_comes_nothing_panics_and_what_is_written_is_read(
        noise in prop::collection::vec(any::<u8>(), 0..300),
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        is_safe(&noise);
        // A frame around it: its checksum is valid.
        let data = &noise[..noise.len().min(200)];
        for (control, ci) in [(8, 0x72), (8, 0x76), (8, 0x78), (8, 0x73), (0x53, 0x51), (0x53, 0x52)] {
            is_safe(&Frame::Long { control, address: 1, ci, data }.emit());
        }
        // A telegram with other bytes in it.
        let [telegrams, frames] = &*FIXTURES;
        let mut bytes = which.get(telegrams).bytes.clone();
        for (place, byte) in &changes {
            let place = place.index(bytes.len());
            bytes[place] = *byte;
        }
        is_safe(&with_crc(bytes));
        let mut bytes = which.get(frames).bytes.clone();
        if let Ok((Frame::Long { control, address, ci, data }, _)) = Frame::parse(&bytes) {
            let mut data = data.to_vec();
            for (place, byte) in changes.iter().take(data.len()) {
                let place = place.index(data.len());
                data[place] = *byte;
            }
            bytes = Frame::Long { control, address, ci, data: &data }.emit();
        }
        is_safe(&bytes);
    }
}

/// What `redact` says, and what it wrote.
fn redact(arguments: &[&str], input: &[u8]) -> parts::Ended {
    meterkast(&[&["redact"], arguments].concat(), input)
}

fn fixture(name: &str) -> String {
    format!("{}/fixtures/{name}", samples::root().display())
}

/// A capture of two ports: a telegram in pieces, and a bus in both directions.
fn recording(at: &str) -> String {
    let telegram = fs::read(fixture("p1/dsmr50-gas-heat-hotwater.txt")).unwrap();
    let answer = buses().into_iter().find(|sample| sample.name == "heat-gj.hex").unwrap().bytes;
    let mut lines = vec![
        format!(r#"{{"capture":1,"port":"p1","wire":"p1","address":"/dev/serial/by-id/usb-A10K1234567","at":"{at}"}}"#),
        format!(r#"{{"capture":1,"port":"bus","wire":"mbus","settings":"2400 8E1","at":"{at}"}}"#),
    ];
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    let mut line = |us: u32, port: &str, to: &str, bytes: &[u8]| {
        lines.push(format!(r#"{{"port":"{port}","us":{us},"at":"{at}"{to},"hex":"{}"}}"#, hex(bytes)));
    };
    line(1000, "bus", r#","to":"meter""#, &[0x10, 0x5B, 0xFD, 0x58, 0x16]);
    for (number, piece) in telegram.chunks(telegram.len().div_ceil(5)).enumerate() {
        line(2000 + number as u32, "p1", "", piece);
        if number < 2 {
            let (begin, end) = answer.split_at(30);
            line(3000 + number as u32, "bus", "", if number == 0 { begin } else { end });
        }
    }
    lines.push(format!(r#"{{"port":"bus","us":9000,"at":"{at}","lost":3}}"#));
    lines.join("\n") + "\n"
}

#[test]
fn a_capture_stays_a_capture() {
    let folder = Folder::new();
    let recorded = recording("2026-11-22T10:20:00.5Z");
    let file = folder.file("one.jsonl", &recorded);
    let out = folder.path("out.jsonl");
    let arguments = [file.to_str().unwrap(), "--out", out.to_str().unwrap(), "--shift", "7"];
    let ended = redact(&arguments, b"");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("meters renamed: 5 (1 electricity, 1 gas, 2 heat, 1 hot_water)"), "{}", ended.stderr);
    assert!(ended.stderr.contains("written: 1 telegrams of P1, 2 frames of M-Bus"), "{}", ended.stderr);
    let entries =
        |text: &str| -> Vec<Entry> { text.lines().map(|line| Entry::parse(line.as_bytes()).unwrap()).collect() };
    let written = fs::read_to_string(&out).unwrap();
    let (old, new) = (entries(&recorded), entries(&written));
    assert_eq!(old.len(), new.len());
    let week = SignedDuration::from_hours(7 * 24);
    let mut streams: [Vec<u8>; 3] = Default::default();
    for (old, new) in old.iter().zip(&new) {
        match (old, new) {
            (Entry::Opening(old), Entry::Opening(new)) => {
                assert_eq!((&new.port, new.wire, &new.settings), (&old.port, old.wire, &old.settings));
                assert_eq!((new.address.as_str(), new.at), ("", old.at + week));
            }
            (Entry::Chunk(old), Entry::Chunk(new)) => {
                assert_eq!((&new.port, new.us, new.at), (&old.port, old.us, old.at + week));
                match (&old.what, &new.what) {
                    (capture::What::Bytes(way, _), capture::What::Bytes(new_way, bytes)) => {
                        assert_eq!(way, new_way);
                        let stream = if *way == capture::Way::ToMeter { 2 } else { usize::from(new.port == "bus") };
                        streams[stream].extend(bytes);
                    }
                    (old, new) => assert_eq!(old, new),
                }
            }
            other => panic!("{other:?}"),
        }
    }
    let [p1, bus, to_meter] = streams;
    assert_eq!(read(&p1).0.len(), 4);
    assert!(mbus::read(&bus, 1).is_ok());
    assert_eq!(to_meter, [0x10, 0x5B, 0xFD, 0x58, 0x16]);
    assert!(!stands("10000001", &bus) && !stands("10K1234567", written.as_bytes()));

    // Once more: what is there is kept, and the names are others each time unless they are asked for.
    let again = redact(&arguments, b"");
    assert_eq!(again.code, Some(2));
    assert!(again.stderr.contains("is there already"), "{}", again.stderr);
    assert_eq!(fs::read_to_string(&out).unwrap(), written);
    assert_eq!(redact(&[&arguments[..], &["--force"]].concat(), b"").code, Some(0));
    assert_ne!(fs::read_to_string(&out).unwrap(), written);
    let seeded = |seed: &str| redact(&[arguments[0], "--out", "-", "--seed", seed], b"").stdout;
    assert_eq!(seeded("7"), seeded("7"));
    assert_ne!(seeded("7"), seeded("8"));
    // From standard input, and packed.
    assert_eq!(redact(&["-", "--out", "-", "--seed", "7"], recorded.as_bytes()).stdout, seeded("7"));
    let packed = folder.path("out.jsonl.gz");
    assert_eq!(redact(&[arguments[0], "--out", packed.to_str().unwrap(), "--seed", "7"], b"").code, Some(0));
    assert_eq!(redact(&[packed.to_str().unwrap(), "--out", "-", "--seed", "1"], b"").code, Some(0));
    // Not over what is to be redacted.
    assert_eq!(redact(&[arguments[0], "--out", arguments[0], "--force"], b"").code, Some(2));
}

#[test]
fn the_captures_among_the_fixtures_say_as_much_as_before() {
    let folder = Folder::new();
    for name in ["both-wires.jsonl", "mbus.jsonl.gz", "p1.jsonl"] {
        let (file, out) = (fixture(&format!("captures/{name}")), folder.path(name));
        let out = out.to_str().unwrap();
        let ended = redact(&[&file, "--out", out, "--offset", "--shift", "364"], b"");
        assert!(ended.stderr.contains("written: "), "{}", ended.stderr);
        let reports = |file: &str| meterkast(&["decode", file], b"").stdout.lines().count();
        assert!(reports(&file) > 0, "{name}");
        assert_eq!(reports(out), reports(&file), "{name}");
    }
}

#[test]
fn a_meter_has_one_new_name_in_all_files() {
    let folder = Folder::new();
    let names = ["p1/dsmr50-gas-heat-hotwater.txt", "mbus/heat-gj.hex", "p1/lithuania.txt"].map(fixture);
    let out = folder.path("out");
    fs::create_dir(&out).unwrap();
    let mut arguments: Vec<&str> = names.iter().map(String::as_str).collect();
    let copy = folder.file("copy.txt", fs::read(&names[0]).unwrap());
    arguments.extend([copy.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    let ended = redact(&arguments, b"");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let written = |name: &str| fs::read(out.join(name)).unwrap();
    assert_eq!(written("copy.txt"), written("dsmr50-gas-heat-hotwater.txt"));
    // M-Bus stays hex digits.
    let hex = String::from_utf8(written("heat-gj.hex")).unwrap();
    assert!(hex.starts_with("68585868") && hex.lines().count() == 1, "{hex}");
    // Into one file only what has one form.
    let one = folder.path("one.txt");
    let ended = redact(&[&names[0], &names[1], "--out", one.to_str().unwrap()], b"");
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(!one.exists());
    let ended = redact(&[&names[0], &names[0], "--out", one.to_str().unwrap()], b"");
    assert_eq!((ended.code, telegrams(&fs::read(&one).unwrap(), |_| {})), (Some(0), 2));
}

#[test]
fn what_cannot_be_checked_is_left_out_and_told() {
    let folder = Folder::new();
    let out = folder.path("out");
    let run = |arguments: &[&str], input: &[u8]| {
        let ended = redact(&[arguments, &["--out", out.to_str().unwrap()]].concat(), input);
        let written = fs::read(&out).ok();
        let _ = fs::remove_file(&out);
        (ended, written)
    };
    for (file, kind, telegrams_left) in [
        ("p1/bad-crc-between.txt", "crc-mismatch", 2),
        ("p1/truncated-then-good.txt", "truncated", 1),
        ("p1/starts-in-the-middle.txt", "fragment", 1),
    ] {
        let (ended, written) = run(&[&fixture(file)], b"");
        assert_eq!(ended.code, Some(1), "{file}");
        assert!(ended.stderr.contains(": left out: "), "{file}: {}", ended.stderr);
        assert!(ended.stderr.contains(&format!("left out: 1 (1 {kind})")), "{file}: {}", ended.stderr);
        assert_eq!(telegrams(&written.unwrap(), |_| {}), telegrams_left, "{file}");
    }
    // Nothing is left: no file.
    for input in [&b""[..], b"noise\xFF\x00without end", &[0x68; 5000], b"{\"capture\":1,\"port\":"] {
        let (ended, written) = run(&["-"], input);
        assert_eq!((ended.code, written), (Some(1), None), "{}", ended.stderr);
    }
    // A capture with lines that are none, and one whose end is missing.
    let mut lines: Vec<String> = recording("2026-11-22T10:20:00.5Z").lines().map(str::to_owned).collect();
    lines.insert(3, "nothing".into());
    lines.push(r#"{"port":"p1","us":99"#.into());
    let (ended, written) = run(&["-"], lines.join("\n").as_bytes());
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("-: line 4: ") && ended.stderr.contains("left out: 2 (2 line)"), "{}", ended.stderr);
    assert!(written.unwrap().starts_with(b"{\"capture\":1"));
    // Lines that nobody explains, which may say anything.
    let (ended, written) = run(&[&fixture("p1/unknown-lines.txt")], b"");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("lines of P1 that nobody explains, left out: "), "{}", ended.stderr);
    let (_, kept) = run(&[&fixture("p1/unknown-lines.txt"), "--keep-unknown"], b"");
    assert!(kept.unwrap().len() > written.unwrap().len());
    // A file that is not there, and places where nothing can be written.
    assert_eq!(run(&["/no such file"], b"").0.code, Some(1));
    let nowhere = redact(&[&fixture("p1/lithuania.txt"), "--out", "/proc/nothing/out"], b"");
    assert_eq!((nowhere.code, nowhere.stderr.contains("/proc/nothing/out")), (Some(1), true), "{}", nowhere.stderr);
    assert!(fs::read_dir(folder.path("")).unwrap().next().is_none(), "nothing half done is left");
}

#[test]
fn names_are_found_where_meters_hide_them() {
    let hex = |text: &str| text.bytes().map(|byte| format!("{byte:02X}")).collect::<String>();
    let telegram = |header: &str, name: &str, line: &str| {
        let writer = Writer::new(header).line("1-3:0.2.8(50)").line("0-0:1.0.0(261121200000W)");
        writer.line(format!("0-0:96.1.1({})", hex(name))).line("1-0:1.8.1(000040.777*kWh)").line(line).finish(true)
    };
    let other = format!("0-0:96.1.1({})", hex("X99887766554"));
    let behind = format!("0-0:96.1.0({})SER87654321", hex("E0043007052870318"));
    let fifth = format!("0-5:96.1.0({})", hex("G0012345678901234"));
    for (sent, hidden) in [
        // In the header, among letters or in groups; what is of the model stays.
        (telegram("ABC5SN12A34B56", "SN12A34B56", ""), vec!["SN12A34B56", "12A34B56"]),
        (telegram("KMP5 1234 5678 9012", "KMP 1234 5678 9012", ""), vec!["1234", "5678 9012"]),
        // Under a code of names and texts, where the decoder did not take it as that.
        (telegram("ISK5\\2M550T-1012", "E0043007052870318", &other), vec!["X998877", "5839393838"]),
        (telegram("ISK5\\2M550T-1012", "E0043007052870318", &behind), vec!["87654321"]),
        (telegram("ISK5\\2M550T-1012", "E0043007052870318", &fifth), vec!["47303031", "G00123"]),
        (telegram("ISK5\\2M550T-1012", "E0043007052870318", "0-0:96.13.0()John Smith"), vec!["Smith"]),
    ] {
        for keep in [&["--keep-unknown"][..], &[]] {
            let ended = redact(&[&["-", "--out", "-"], keep].concat(), &sent);
            assert_eq!(ended.code, Some(0), "{}", ended.stderr);
            for hidden in &hidden {
                assert!(!ended.stdout.contains(hidden), "{hidden}: {}", ended.stdout);
            }
            assert_eq!(ended.stdout.contains("2M550T-1012"), String::from_utf8_lossy(&sent).contains("2M550T-1012"));
        }
    }
}

#[test]
fn nothing_is_overwritten_unasked_and_no_device_at_all() {
    let folder = Folder::new();
    let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    for name in ["a", "b"] {
        fs::create_dir(folder.path(name)).unwrap();
        folder.file(&format!("{name}/x.txt"), fs::read(fixture("p1/lithuania.txt")).unwrap());
    }
    let twins = [text(&folder.path("a/x.txt")), text(&folder.path("b/x.txt"))];
    let ended = redact(&[&twins[0], &twins[1], "--out", &text(&folder.path("")), "--force"], b"");
    assert!(ended.code == Some(2) && ended.stderr.contains("two files of that name"), "{ended:?}");
    let ended = redact(&[&twins[0], "--out", "/dev/null", "--force"], b"");
    assert!(ended.code == Some(2) && ended.stderr.contains("no file that can be replaced"), "{ended:?}");
}

#[test]
fn encrypted_telegrams_are_written_in_plain_where_there_is_a_key() {
    let (file, key) = (fixture("sealed/luxembourg.bin"), fixture("sealed/luxembourg.key"));
    let ended = redact(&[&file, "--out", "-"], b"");
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{}", ended.stderr);
    assert!(ended.stderr.contains("left out: 2 (2 encrypted)"), "{}", ended.stderr);
    let ended = redact(&[&file, "--out", "-", "--key-file", &key], b"");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let mut reader = p1::Reader::new(None, Some(p1::Key::from_text(&fs::read_to_string(&key).unwrap()).unwrap()));
    reader.push(&fs::read(&file).unwrap());
    reader.end();
    let old: Vec<_> = std::iter::from_fn(|| reader.poll()).map(|result| result.unwrap().decoded.reports).collect();
    let mut new = Vec::new();
    telegrams(ended.stdout.as_bytes(), |telegram| new.push(reports(telegram)));
    assert_eq!(new.len(), 2);
    for (new, old) in new.iter().zip(&old) {
        assert_eq!(said(new), said(old));
        for name in names_of(old) {
            assert!(!stands(&name, ended.stdout.as_bytes()), "{name}");
        }
    }
}

/// A stream as a recorder writes it, a read at a time.
fn recorded(stream: &[u8], size: usize) -> String {
    let mut lines = r#"{"capture":1,"port":"p1","wire":"p1","at":"2026-11-22T10:20:00Z"}"#.to_owned() + "\n";
    let at: jiff::Timestamp = "2026-11-22T10:20:00Z".parse().unwrap();
    for (number, bytes) in (1..).zip(stream.chunks(size)) {
        let what = capture::What::Bytes(capture::Way::FromMeter, bytes.to_vec());
        let chunk = capture::Chunk {
            port: "p1".into(),
            us: number * 100_000,
            at: at + SignedDuration::from_millis(number as i64 * 100),
            what,
        };
        lines += &format!("{}\n", Entry::Chunk(chunk));
    }
    lines
}

#[test]
fn a_recorded_stream_is_redacted_as_a_whole() {
    let Some(stream) = samples::stream() else { return };
    let folder = Folder::new();
    let file = folder.file("stream.jsonl", recorded(&stream.bytes, 700));
    let out = folder.path("out.jsonl");
    let arguments = [file.to_str().unwrap(), "--out", out.to_str().unwrap(), "--offset", "--shift", "-364"];
    let ended = redact(&arguments, b"");
    // The stream begins in the middle of a telegram.
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("left out: 1 (1 fragment)"), "{}", ended.stderr);
    assert!(ended.stderr.contains("written: 566 telegrams of P1, 0 frames of M-Bus"), "{}", ended.stderr);
    let written = fs::read_to_string(&out).unwrap();
    let (mut bytes, mut last) = (Vec::new(), 0);
    for line in written.lines() {
        if let Entry::Chunk(capture::Chunk { us, what: capture::What::Bytes(_, more), .. }) =
            Entry::parse(line.as_bytes()).unwrap()
        {
            assert!(us > last);
            last = us;
            bytes.extend(more);
        }
    }
    let all = |bytes: &[u8]| {
        let mut all = Vec::new();
        telegrams(bytes, |telegram| all.push(reports(telegram)));
        all
    };
    let (old, new) = (all(&stream.bytes), all(&bytes));
    assert_eq!((old.len(), new.len()), (566, 566));
    assert_eq!(differences(&new), differences(&old));
    for name in old.iter().flat_map(|reports| names_of(reports)).collect::<BTreeSet<_>>() {
        assert!(!stands(&name, &bytes) && !stands(&name, written.as_bytes()), "{name}");
    }
}
