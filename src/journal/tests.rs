//! The journal on a real file system, and what damage leaves of it.

use std::collections::BTreeSet;

use super::*;
use crate::{
    reading::{Clock, Medium, Reading, Register},
    unit::{Decimal, Unit},
};

const A: Epoch = Epoch::from_bits(0xA);
const B: Epoch = Epoch::from_bits(0xB);
const BOUNDS: Bounds = Bounds { max_bytes: 1 << 30, keep_free: 0 };

fn open(dir: &Path, epoch: Epoch) -> (Journal, Vec<Held>, Vec<String>) {
    Journal::open(dir, epoch, BOUNDS).unwrap()
}

fn at(millis: i64) -> Moment {
    Moment::from_millis(1_795_287_600_000 + millis, 0).unwrap()
}

/// What `meter` says the `number`th time.
fn report(meter: &str, number: i64) -> Report<String> {
    let reading = |name, value, scale, unit| {
        Reading::now(Register::named(name), Decimal::new(value, scale).unwrap(), Unit::named(unit))
    };
    Report {
        meter: meter.into(),
        medium: Medium::Electricity,
        protocol: "p1".into(),
        measured_at: Moment::from_millis(1_795_287_600_000 + number * 1000, 60),
        clock: Clock::Meter,
        readings: vec![
            reading("import_low", 2_988_928 + number, 3, "kWh"),
            reading("power_export", -number, 3, "kW"),
            reading("voltage_l1", 2301, 1, "V"),
        ],
        info: vec![("version".into(), "50".into())],
        events: Vec::new(),
        unknown: Vec::new(),
    }
}

/// Writes the next message of each of these meters, with `number` as what they say.
fn write(journal: &mut Journal, messages: &[(&str, i64)]) -> Vec<(u64, u64)> {
    let reports: Vec<_> = messages.iter().map(|&(meter, number)| report(meter, number)).collect();
    let (numbers, result) = journal.append(reports.iter().map(|report| (report, at(7))));
    result.unwrap();
    numbers
}

/// Writes messages until `count` are written, each with its number.
fn fill(journal: &mut Journal, count: i64) {
    let numbers: Vec<_> = (1..=count).map(|number| ("e", number)).collect();
    assert_eq!(write(journal, &numbers).len() as i64, count);
}

/// The numbers that can be read, each of which says what was written.
fn readable(journal: &mut Journal, held: Held) -> BTreeSet<u64> {
    let numbers = (held.first..=held.last).filter(|&seq| {
        let record = journal.read(held.epoch, seq).unwrap();
        record.is_some_and(|record| {
            assert_eq!((record.seq, record.received_at), (seq, at(7)));
            assert_eq!(record.report, report("e", seq as i64));
            true
        })
    });
    numbers.collect()
}

fn sync(journal: &mut Journal) {
    if let Some(sync) = journal.begin_sync().unwrap() {
        let synced = sync.run().unwrap();
        journal.synced(&synced);
    }
}

#[test]
fn numbers_follow_the_meter_and_messages_read_back_in_any_order() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, held, damage) = open(dir.path(), A);
    assert!(held.is_empty() && damage.is_empty());
    assert_eq!(write(&mut journal, &[("e", 1), ("g", 2), ("e", 3)]), [(1, 0), (2, 0), (3, 1)]);
    assert_eq!(write(&mut journal, &[("g", 4)]), [(4, 2)]);
    for (seq, meter, prev) in [(3, "e", 1), (1, "e", 0), (4, "g", 2), (2, "g", 0), (2, "g", 0)] {
        let record = journal.read(A, seq).unwrap().unwrap();
        assert_eq!((record.seq, record.prev, record.received_at), (seq, prev, at(7)));
        assert_eq!(record.report, report(meter, seq as i64));
    }
    assert_eq!(journal.read(A, 5).unwrap(), None);
    assert_eq!(journal.read(B, 1).unwrap(), None);
}

#[test]
fn every_kind_of_report_reads_back_as_it_was() {
    use crate::reading::{Event, Function, Qualifiers, Suspect, Unknown};
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, ..) = open(dir.path(), A);
    let mut full = report("K/é\n\0\"", 5);
    full.medium = Medium::Other(0xfe);
    full.protocol = "else".into();
    full.clock = Clock::Unsynchronised;
    full.measured_at = Moment::from_millis(-5, -150);
    full.readings[0].qualifiers =
        Qualifiers { storage: u64::MAX, tariff: u32::MAX, subunit: u16::MAX, function: Function::Error };
    full.readings[0].at = Moment::from_millis(1, 840);
    full.readings[0].suspect = Some(Suspect::TooFast);
    full.readings[0].value = Decimal::new(-999_999_999_999_999_999, 18).unwrap();
    full.readings[1].raw =
        Some(Box::new((Decimal::new(999_999_999_999_999_999, 0).unwrap(), Unit::from_text("Wh").unwrap())));
    full.events = vec![Event { event: "power_failure".into(), end: None, duration_s: Some(u64::MAX) }];
    full.unknown = vec![Unknown { code: "1-0:99".into(), text: "\\x00".repeat(3000) }];
    let mut bare = report("", 0);
    (bare.measured_at, bare.readings, bare.info) = (None, Vec::new(), Vec::new());
    // Longer than a block, and between two that are not.
    let mut long = full.clone();
    long.unknown = vec![Unknown { code: String::new(), text: "x".repeat(200_000) }];
    let reports = [full.clone(), bare, long, report("e", 1), full];
    let (numbers, result) = journal.append(reports.iter().map(|report| (report, at(0))));
    result.unwrap();
    assert_eq!(numbers.len(), 5);
    drop(journal);
    let (mut journal, held, damage) = open(dir.path(), B);
    assert!(damage.is_empty(), "{damage:?}");
    assert_eq!(held, [Held { epoch: A, first: 1, last: 5 }]);
    for (seq, report) in (1..).zip(&reports) {
        assert_eq!(journal.read(A, seq).unwrap().unwrap().report, *report, "{seq}");
    }
}

/// Three meters on a bus, four times an hour for a month: what changes at each readout is integers.
#[test]
fn a_readout_of_a_bus_takes_less_than_a_hundred_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, ..) = open(dir.path(), A);
    let start = Moment::from_millis(1_795_287_600_000, 60).unwrap();
    let read = |number: i64| {
        let mut report = report(["KAM-1", "KAM-2", "KAM-3"][number as usize % 3], number);
        report.protocol = "mbus".into();
        let meter_time = start.shifted(jiff::SignedDuration::from_mins(number / 3 * 15 - number % 3)).unwrap();
        let said = |name: &'static str, text: String| (name.into(), text.into());
        report.info = vec![
            said("status", "ok".into()),
            said("meter_time", meter_time.to_string()),
            said("address", (number % 3).to_string()),
        ];
        report
    };
    let reports: Vec<_> = (0..8640).map(read).collect();
    let (numbers, result) = journal.append(reports.iter().map(|report| (report, at(0))));
    result.unwrap();
    assert_eq!(numbers.len(), 8640);
    drop(journal);
    let (mut journal, ..) = open(dir.path(), B);
    for (seq, report) in (1..).zip(&reports) {
        assert_eq!(journal.read(A, seq).unwrap().unwrap().report, *report, "{seq}");
    }
    let size: u64 = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert!(size / 8640 < 100, "{} bytes a readout", size / 8640);
}

#[test]
fn what_is_longer_than_any_block_is_refused_and_the_others_are_not() {
    use crate::reading::Unknown;
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, ..) = open(dir.path(), A);
    let mut long = report("e", 2);
    long.unknown = vec![Unknown { code: String::new(), text: "x".repeat(2_000_000) }];
    let (first, last) = (report("e", 1), report("e", 2));
    let (numbers, result) = journal.append([(&first, at(7)), (&long, at(7)), (&last, at(7))]);
    assert_eq!(numbers, [(1, 0)]);
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert_eq!(write(&mut journal, &[("e", 2)]), [(2, 1)]);
    assert_eq!(readable(&mut journal, Held { epoch: A, first: 1, last: 2 }).len(), 2);
}

#[test]
fn a_telegram_takes_less_than_three_hundred_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, ..) = open(dir.path(), A);
    let mut household = crate::simulate::Household::new(1, Moment::from_millis(1_795_287_600_000, 60).unwrap());
    let mut reports = 0;
    for second in 1..=3600 {
        household.advance(Moment::from_millis(1_795_287_600_000 + second * 1000, 60).unwrap());
        let mut reader = crate::p1::Reader::new(None, None);
        reader.push(&household.telegram());
        reader.end();
        let telegram = reader.poll().unwrap().unwrap();
        let named = telegram.decoded.reports.into_iter().map(|report| report.rename(|id| id.name("gw", "p1")));
        // The meters behind say the same most of the time, which is not written.
        let named: Vec<_> = named.filter(|report| report.medium == Medium::Electricity || second % 300 == 0).collect();
        let (numbers, result) = journal.append(named.iter().map(|report| (report, at(second * 1000))));
        result.unwrap();
        reports += numbers.len();
    }
    drop(journal);
    drop(open(dir.path(), B));
    let size: u64 = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    let each = size / 3600;
    println!("{each} bytes a telegram, {reports} messages");
    assert!(each < 300, "{each} bytes a telegram");
}

#[test]
fn a_restart_finds_what_was_there_and_begins_a_new_epoch() {
    let dir = tempfile::tempdir().unwrap();
    fill(&mut open(dir.path(), A).0, 2);
    // A run without a message leaves nothing.
    drop(open(dir.path(), Epoch::from_bits(0xE)));
    let (mut journal, held, damage) = open(dir.path(), B);
    assert_eq!(held, [Held { epoch: A, first: 1, last: 2 }]);
    assert!(damage.is_empty());
    assert_eq!(write(&mut journal, &[("e", 9)]), [(1, 0)]);
    assert_eq!(readable(&mut journal, held[0]).len(), 2);
    assert_eq!(journal.read(B, 1).unwrap().unwrap().report, report("e", 9));
}

#[test]
fn many_segments_are_one_run_and_opened_by_their_last_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let small = Bounds { max_bytes: 1 << 20, keep_free: 0 };
    fill(&mut Journal::open(dir.path(), A, small).unwrap().0, 50_000);
    assert!(fs::read_dir(dir.path()).unwrap().count() > 4);
    let (mut journal, held, damage) = open(dir.path(), B);
    assert!(damage.is_empty(), "{damage:?}");
    assert_eq!(held, [Held { epoch: A, first: 1, last: 50_000 }]);
    for seq in [1, 2, 29_999, 50_000, 3, 40_000] {
        assert_eq!(journal.read(A, seq).unwrap().unwrap().report, report("e", seq as i64));
    }
    assert_eq!(readable(&mut journal, held[0]).len(), 50_000);
}

#[test]
fn a_torn_end_is_cut_off_wherever_it_tore_and_said() {
    let dir = tempfile::tempdir().unwrap();
    fill(&mut open(dir.path(), A).0, 2);
    drop(open(dir.path(), B));
    let whole = fs::read(segment_path(dir.path(), 0)).unwrap();
    for length in 0..=whole.len() {
        for zeros in if length % 5 == 0 { vec![0, 100_000] } else { vec![0] } {
            let dir = tempfile::tempdir().unwrap();
            let torn = [&whole[..length], &vec![0; zeros]].concat();
            fs::write(segment_path(dir.path(), 0), &torn).unwrap();
            let (mut journal, held, damage) = open(dir.path(), B);
            let kept = held.first().map_or(0, |run| run.last);
            assert!(kept <= 2 && (kept == 2) == (length == whole.len()), "{length} bytes: {kept}");
            if kept == 1 {
                assert_eq!(readable(&mut journal, held[0]).len(), 1);
            }
            // Only where the message ends in zeros, or at the end of one, does nothing seem missing.
            assert!(damage.len() == 1 || torn.iter().rev().take(zeros + 60).any(|&byte| byte != 0) || kept == 0);
            write(&mut journal, &[("e", 8)]);
            assert_eq!(journal.read(B, 1).unwrap().unwrap().report, report("e", 8));
        }
    }
}

#[test]
fn a_damaged_place_costs_at_most_its_block() {
    let original = tempfile::tempdir().unwrap();
    fill(&mut open(original.path(), A).0, 10_000);
    drop(open(original.path(), B));
    let whole = fs::read(segment_path(original.path(), 0)).unwrap();
    assert!(whole.len() > 5 * UNIT, "{}", whole.len());
    let mut seed = 1u64;
    for round in 0..40 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let place = (seed >> 33) as usize % (whole.len() - 100);
        let mut bytes = whole.clone();
        match round % 3 {
            0 => bytes[place] ^= 1,
            1 => bytes[place..place + 100].fill(0),
            _ => bytes[place..place + 100].fill(0xff),
        }
        let dir = tempfile::tempdir().unwrap();
        fs::write(segment_path(dir.path(), 0), &bytes).unwrap();
        let (mut journal, held, _) = open(dir.path(), B);
        let read = readable(&mut journal, Held { epoch: A, first: 1, last: 10_000 });
        let block = 10_000 * UNIT / whole.len();
        assert!(read.len() >= 10_000 - 2 * block, "{} of 10000 after damage at {place}", read.len());
        assert!(read.len() < 10_000, "damage at {place} was not noticed");
        assert!(held[0].last >= 10_000 - block as u64);
    }
}

#[test]
fn no_bytes_of_a_segment_harm_anything() {
    let dir = tempfile::tempdir().unwrap();
    fill(&mut open(dir.path(), A).0, 50);
    drop(open(dir.path(), B));
    let whole = fs::read(segment_path(dir.path(), 0)).unwrap();
    for place in 0..whole.len().min(4000) {
        let mut bytes = whole.clone();
        bytes[place] = bytes[place].wrapping_add(place as u8 | 1);
        if let Some(mut block) = Block::parse(bytes) {
            for seq in 0..60 {
                // What can be read at all is what was written, for each record has a checksum.
                if let Some(record) = block.read(seq) {
                    assert_eq!(record.report, report("e", seq as i64));
                }
            }
        }
    }
}

#[test]
fn foreign_files_are_set_aside_and_a_second_process_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(segment_path(dir.path(), 3), vec![7u8; 100]).unwrap();
    fs::write(segment_path(dir.path(), 4), vec![0u8; 100_000]).unwrap();
    fs::create_dir(segment_path(dir.path(), 5)).unwrap();
    let (mut journal, held, damage) = open(dir.path(), A);
    assert!(held.is_empty());
    assert_eq!(damage.len(), 2, "{damage:?}");
    assert!(segment_path(dir.path(), 3).with_extension("segment.damaged").exists());
    assert!(!segment_path(dir.path(), 4).exists(), "it held nothing");
    fill(&mut journal, 3);
    assert_eq!(readable(&mut journal, Held { epoch: A, first: 1, last: 3 }).len(), 3);
    assert!(matches!(Journal::open(dir.path(), B, BOUNDS), Err(JournalError::Held(_))));
}

#[test]
fn when_full_the_oldest_confirmed_segment_goes_and_then_the_oldest() {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds { max_bytes: 16 * UNIT as u64, keep_free: 0 };
    let (mut journal, ..) = Journal::open(dir.path(), A, bounds).unwrap();
    let mut gone = Vec::new();
    let confirmed = |held: &Held| held.first > 1 && held.last < 20_000;
    let numbers: Vec<_> = (0..500).map(|_| ("e", 0)).collect();
    for _ in 0..200 {
        write(&mut journal, &numbers);
        while let Some(held) = journal.trim(true, confirmed).unwrap() {
            gone.push((held.first, held.last));
        }
    }
    let unconfirmed = gone.iter().position(|&(first, _)| first == 1).unwrap();
    assert!(unconfirmed > 0 && gone[..unconfirmed].iter().all(|&(_, last)| last < 20_000), "{gone:?}");
    let first = gone.iter().map(|&(_, last)| last).max().unwrap() + 1;
    assert_eq!(journal.read(A, first - 1).unwrap(), None);
    assert!(journal.read(A, first).unwrap().is_some());
    let size: u64 = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert!(size <= bounds.max_bytes, "{size}");
}

#[test]
fn on_a_nearly_full_disk_it_stops_growing_and_keeps_a_few_segments() {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds { max_bytes: 1 << 20, keep_free: u64::MAX };
    let (mut journal, ..) = Journal::open(dir.path(), A, bounds).unwrap();
    let numbers: Vec<_> = (0..5_000).map(|_| ("e", 0)).collect();
    for _ in 0..10 {
        write(&mut journal, &numbers);
        while journal.trim(true, |_| false).unwrap().is_some() {}
    }
    assert_eq!(journal.segments.len(), FEWEST);
    // Before a store was heard nothing that seems unconfirmed goes, whatever the disk says.
    for _ in 0..3 {
        write(&mut journal, &numbers);
        assert_eq!(journal.trim(false, |_| false).unwrap(), None);
        assert_eq!(journal.give_up_oldest(false, |_| false).unwrap(), None);
    }
    assert!(journal.segments.len() > FEWEST);
    assert!(journal.trim(false, |_| true).unwrap().is_some());
}

#[test]
fn after_a_failed_sync_everything_that_was_not_durable_stands_in_a_new_segment() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, ..) = open(dir.path(), A);
    fill(&mut journal, 2_000);
    sync(&mut journal);
    let numbers: Vec<_> = (2_001..=6_000).map(|number| ("e", number)).collect();
    write(&mut journal, &numbers);
    let failed = journal.begin_sync().unwrap().unwrap();
    drop(failed);
    // What was to be written then is gone: nothing but the first sync's part can be read in the old segment.
    journal.write_again().unwrap();
    let old = segment_path(dir.path(), 0);
    let bytes = fs::read(&old).unwrap();
    fs::write(&old, &bytes[..UNIT]).unwrap();
    let numbers: Vec<_> = (6_001..=6_100).map(|number| ("e", number)).collect();
    write(&mut journal, &numbers);
    let held = Held { epoch: A, first: 1, last: 6_100 };
    assert_eq!(readable(&mut journal, held).len(), 6_100);
    // Failing again and again takes no more room.
    for _ in 0..5 {
        drop(journal.begin_sync().unwrap());
        journal.write_again().unwrap();
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "lock, old and new");
    // What could not even be written again is not forgotten: the next sync does that first.
    fs::create_dir(segment_path(dir.path(), 99)).unwrap();
    drop(journal.begin_sync().unwrap());
    let moved = dir.path().with_extension("moved");
    fs::rename(dir.path(), &moved).unwrap();
    assert!(journal.write_again().is_err());
    assert!(journal.begin_sync().is_err());
    fs::rename(&moved, dir.path()).unwrap();
    fs::remove_dir(segment_path(dir.path(), 99)).unwrap();
    sync(&mut journal);
    assert!(journal.pending.is_empty() && !journal.rewrite_due);
    drop(journal);
    let (mut journal, found, damage) = open(dir.path(), B);
    assert_eq!(found, [held], "{damage:?}");
    assert_eq!(readable(&mut journal, held).len(), 6_100);
}

#[test]
fn a_journal_that_cannot_be_synced_takes_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, ..) = open(dir.path(), A);
    let reports: Vec<_> = (0..1000).map(|number| report("e", number)).collect();
    let mut taken = 0;
    let error = loop {
        let (numbers, result) = journal.append(reports.iter().map(|report| (report, at(7))));
        taken += numbers.len();
        if let Err(error) = result {
            break error;
        }
    };
    assert!(error.to_string().contains("cannot be made to last"), "{error}");
    assert!(taken * 30 < 2 * MOST_PENDING);
    sync(&mut journal);
    write(&mut journal, &[("e", 1)]);
}

#[test]
fn what_is_durable_goes_only_when_its_copy_is() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, ..) = open(dir.path(), A);
    fill(&mut journal, 100);
    sync(&mut journal);
    write(&mut journal, &[("e", 101)]);
    drop(journal.begin_sync().unwrap());
    journal.write_again().unwrap();
    assert!(segment_path(dir.path(), 0).exists(), "its first hundred may stand nowhere else after a power cut");
    sync(&mut journal);
    assert!(!segment_path(dir.path(), 0).exists());
    assert_eq!(readable(&mut journal, Held { epoch: A, first: 1, last: 101 }).len(), 101);
}

#[test]
fn after_a_crash_the_copy_is_read_and_not_what_a_failed_sync_threw_away() {
    let dir = tempfile::tempdir().unwrap();
    let small = Bounds { max_bytes: 1 << 20, keep_free: 0 };
    let (mut journal, ..) = Journal::open(dir.path(), A, small).unwrap();
    fill(&mut journal, 30_000);
    let segments = journal.segments.len();
    assert!(segments > 2);
    journal.write_again().unwrap();
    // The pages of the old ones are gone, and the process ends before the copy is synced.
    for number in 0..segments as u64 {
        let path = segment_path(dir.path(), number);
        let mut bytes = fs::read(&path).unwrap();
        let length = bytes.len();
        bytes[UNIT..length - UNIT].fill(0);
        fs::write(&path, bytes).unwrap();
    }
    drop(journal);
    let (mut journal, held, _) = open(dir.path(), B);
    assert_eq!(held, [Held { epoch: A, first: 1, last: 30_000 }]);
    assert_eq!(readable(&mut journal, held[0]).len(), 30_000);
}

#[test]
fn a_segment_that_cannot_be_removed_is_still_read() {
    let dir = tempfile::tempdir().unwrap();
    fill(&mut open(dir.path(), A).0, 10);
    let (mut journal, held, _) = open(dir.path(), B);
    write(&mut journal, &[("e", 1)]);
    // A directory in its place cannot be unlinked.
    let path = segment_path(dir.path(), 0);
    let aside = dir.path().join("aside");
    fs::rename(&path, &aside).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(journal.give_up_oldest(true, |_| false).is_err());
    fs::remove_dir(&path).unwrap();
    fs::rename(&aside, &path).unwrap();
    assert_eq!(readable(&mut journal, held[0]).len(), 10);
}
