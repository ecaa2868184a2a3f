//! `redact`: what is written says the same, names nobody, and is valid; what cannot be checked is not written.

use std::collections::BTreeSet;

use jiff::SignedDuration;
use meterkast::{
    mbus::{self, Frame},
    p1::{self, Framer, LineEnds, Piece, Telegram},
    reading::{Identity, Report},
    redact::{Offsets, Plan, Refused, Rewriter, Secret, Survey, Written},
};

use crate::samples::{self, Sample};

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
                    names.extend(names_of(&[old.report.clone()]));
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
