//! The store story: one database file in a temporary folder each.

use std::{
    future::{Future as _, poll_fn},
    pin::pin,
    task::Poll,
};

use jiff::tz::TimeZone;
use tempfile::TempDir;

use super::*;
use crate::{
    consumption::{By, Curve, Point},
    delivery::{Epoch, Ranges, Tally},
    moment::Moment,
    payload::{self, Envelope, Message},
    reading::{Clock, Event, Medium, Reading, Register, Report, Suspect, Unknown},
    store::{
        Counts, Quarter, Quarters, Reader as _, Stored,
        counters::{Question, counters},
        role,
    },
    unit::{Decimal, Unit},
};

/// 2026-11-21T20:00:00+01:00, the start of a quarter-hour.
pub(super) const START: i64 = 1_795_287_600_000;

fn reading(register: &'static str, value: &str, unit: &str) -> Reading {
    let value = Decimal::parse(value.as_bytes()).unwrap();
    Reading::now(Register::named(register), value, Unit::from_text(unit).unwrap())
}

/// Message `seq` of epoch 1 of gw-1: meter E1 counts `import` kWh, `seconds` after [`START`].
pub(super) fn message(seq: u64, seconds: i64, import: &str) -> Message {
    Message {
        envelope: Envelope {
            gateway: "gw-1".into(),
            epoch: Epoch::from_bits(1),
            seq,
            prev: seq - 1,
            first: 1,
            missing: Ranges::new(),
        },
        received_at: Moment::from_millis(START + seconds * 1000 + 123, 0).unwrap(),
        report: Report {
            meter: "E1".into(),
            medium: Medium::Electricity,
            protocol: "p1".into(),
            measured_at: Moment::from_millis(START + seconds * 1000, 60),
            clock: Clock::Meter,
            readings: vec![reading("import_low", import, "kWh"), reading("power_import", "0.5", "kW")],
            info: Vec::new(),
            events: Vec::new(),
            unknown: Vec::new(),
        },
    }
}

fn refused(envelope: Option<Envelope>, payload: &[u8]) -> Incoming {
    Incoming::Refused {
        topic: "meterkast/gw-1/E1/telegram".into(),
        payload: payload.into(),
        reason: "schema 2 is newer than 1".into(),
        schema: 2,
        envelope,
        received_at: Moment::from_millis(START, 0).unwrap(),
    }
}

pub(super) fn batch(messages: impl IntoIterator<Item = Message>) -> Vec<Incoming> {
    messages.into_iter().map(Incoming::Message).collect()
}

async fn store() -> (TempDir, PathBuf, Sqlite) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/meterkast.db");
    let store = Sqlite::open(&path).await.unwrap();
    (folder, path, store)
}

impl Sqlite {
    async fn sql(&mut self, sql: &'static str) {
        raw_sql(sql).execute(&mut self.connection).await.unwrap();
    }

    pub(super) async fn column(&mut self, sql: &'static str) -> Vec<String> {
        query_scalar(sql).fetch_all(&mut self.connection).await.unwrap()
    }
}

fn counts(committed: &Committed) -> [u64; 4] {
    [committed.stored, committed.repeated, committed.again, committed.refused]
}

#[tokio::test]
async fn the_database_is_made_as_the_promise_needs_it() {
    let (_folder, path, mut store) = store().await;
    let version = store.column("SELECT sqlite_version()").await.concat();
    let numbers: Vec<u32> = version.split('.').map(|part| part.parse().unwrap()).collect();
    assert!(numbers >= vec![3, 51, 3], "before 3.51.3 a write-ahead log can corrupt the file: {version}");
    let sql = "SELECT concat_ws(' ', journal_mode, synchronous, auto_vacuum, foreign_keys, timeout)
        FROM pragma_journal_mode, pragma_synchronous, pragma_auto_vacuum, pragma_foreign_keys, pragma_busy_timeout";
    assert_eq!(store.column(sql).await, ["wal 2 2 1 2000"]);
    let generation = store.generation().to_owned();
    assert!(Epoch::from_text(&generation).is_some());
    drop(store);
    let reopened = path.clone();
    // On a task of its own, as the daemon does: all these futures must be Send.
    let task = tokio::spawn(async move {
        let mut store = Sqlite::open(&reopened).await.unwrap();
        store.commit(&batch([message(1, 0, "1")])).await.unwrap();
        store.keep_up(Duration::MAX).await.unwrap();
        store.epochs("gw-1").await.unwrap();
        Reader::open(&reopened).await.unwrap().readings(None).await.unwrap();
        store
    });
    let mut store = task.await.unwrap();
    assert_eq!(store.generation(), generation);
    store.sql("DELETE FROM store").await;
    drop(store);
    assert_ne!(Sqlite::open(&path).await.unwrap().generation(), generation);
}

#[tokio::test]
async fn reports_leave_as_they_entered() {
    let (_folder, path, mut store) = store().await;
    let mut full = message(1, 0, "3432.827");
    let mut stored = reading("energy", "-11.9020", "GJ");
    stored.qualifiers.storage = 1;
    stored.at = Some("2025-12-31T23:59:00+01:00".parse().unwrap());
    stored.raw = Some(Box::new((Decimal::whole(3306).unwrap(), Unit::KWH)));
    full.report.readings.push(stored);
    full.report.medium = Medium::Other(37);
    full.report.info = vec![("tariff".into(), "0002".into()), ("text".into(), "\0 \"é\"\n".into())];
    full.report.events = vec![Event { event: "power_failure".into(), end: full.report.measured_at, duration_s: None }];
    full.report.unknown = vec![Unknown { code: "1-0:9.9.9".into(), text: "(1)".into() }];
    // Names that end early as C strings are still two meters.
    let mut other = message(2, 0, "0.000");
    (full.report.meter, other.report.meter) = ("A\0a".into(), "A\0b".into());
    store.commit(&batch([full.clone(), other.clone(), message(3, 10, "5")])).await.unwrap();

    let mut reader = Reader::open(&path).await.unwrap();
    let reports: Vec<_> = reader.readings(None).await.unwrap().into_iter().map(|(report, _)| report).collect();
    assert_eq!(reports, [full.report, other.report, message(3, 10, "5").report]);
    // What a late message says of its meter does not replace what a newer one said.
    let mut late = message(5, 15, "5.5");
    (late.report.medium, late.report.protocol) = (Medium::Gas, "mbus".into());
    store.commit(&batch([message(4, 20, "6"), late.clone()])).await.unwrap();
    late.envelope.seq = 6;
    store.commit(&batch([late])).await.unwrap();
    let at = |seconds: i64| Moment::from_millis(START + seconds * 1000, 0);
    let found = reader.readings(at(20)).await.unwrap().pop().unwrap();
    assert_eq!(found, (message(4, 20, "6").report, message(4, 20, "6").received_at));
    assert_eq!(reader.readings(at(14)).await.unwrap().pop().unwrap().0, message(3, 10, "5").report);
    assert!(reader.readings(at(-1)).await.unwrap().is_empty());
    assert_eq!(reader.counts().await.unwrap(), Counts { meters: 3, messages: 5, refused: 0 });
}

#[tokio::test]
async fn each_message_counts_once() {
    let (_folder, path, mut store) = store().await;
    let mut other = message(1, 1, "1.001");
    other.envelope.epoch = Epoch::from_bits(2);
    let envelope = Envelope { seq: 4, ..message(4, 0, "1").envelope };
    let first = [
        batch([message(1, 0, "1.000"), message(1, 0, "1.000"), message(2, 0, "1.000"), message(3, 0, "1.5"), other]),
        vec![refused(Some(envelope.clone()), b"\xff\0"), refused(Some(envelope), b"\xff\0"), refused(None, b"{")],
    ]
    .concat();
    let committed = store.commit(&first).await.unwrap();
    assert_eq!(counts(&committed), [3, 1, 2, 2]);
    let [(gateway, epochs)] = &committed.acks[..] else { panic!("one gateway") };
    assert_eq!((gateway.as_str(), epochs.len()), ("gw-1", 2));
    let one = epochs.iter().find(|ack| ack.epoch.bits() == 1).unwrap();
    assert_eq!((one.through, one.tally), (4, Tally { stored: 2, repeated: 1, refused: 1 }));
    assert_eq!(store.gateways().await.unwrap(), ["gw-1"]);
    assert_eq!(store.epochs("gw-1").await.unwrap(), *epochs);

    // Sent again under new numbers: 1.000 and 1.5 are there, 1.50 is another reading.
    let again = batch([message(6, 0, "1.000"), message(7, 0, "1.5"), message(8, 0, "1.50")]);
    let committed = store.commit(&again).await.unwrap();
    assert_eq!(counts(&committed), [1, 2, 0, 0]);
    let one = &committed.acks[0].1[0];
    assert_eq!((one.through, one.have.pairs()), (4, &[(6, 8)][..]), "the epoch touched last comes first");
    assert_eq!(counts(&store.commit(&again).await.unwrap()), [0, 0, 3, 0]);
    assert_eq!(
        store.column("SELECT n || ' ' || value FROM reading WHERE unix_ms = 1795287600000 AND unit = 'kWh'").await,
        ["0 1.000", "1 1.5", "2 1.50"]
    );
    let mut reader = Reader::open(&path).await.unwrap();
    assert_eq!(reader.counts().await.unwrap(), Counts { meters: 1, messages: 4, refused: 2 });
    assert_eq!(reader.readings(Moment::from_millis(START, 0)).await.unwrap()[0].0, message(8, 0, "1.50").report);
}

#[tokio::test]
async fn a_gateway_hears_of_its_latest_250_epochs_and_no_number_is_too_big() {
    let (_folder, _path, mut store) = store().await;
    for epoch in 1..=260 {
        let mut message = message(1, epoch, "1");
        message.envelope.epoch = Epoch::from_bits(epoch.unsigned_abs().into());
        store.commit(&batch([message])).await.unwrap();
    }
    let mut huge = message(1, 0, "2");
    huge.envelope = Envelope { gateway: "gw\0".into(), seq: u64::MAX, first: u64::MAX, ..huge.envelope };
    let committed = store.commit(&batch([huge])).await.unwrap();
    assert_eq!((committed.stored, committed.acks.len(), &*committed.acks[0].0), (1, 1, "gw\0"));
    let mut last = message(2, 261, "1");
    last.envelope.epoch = Epoch::from_bits(1);
    let committed = store.commit(&batch([last])).await.unwrap();
    let bits = |epochs: &[EpochAck]| epochs.iter().map(|ack| ack.epoch.bits()).collect::<Vec<_>>();
    let newest = [vec![1], (2..=260).rev().collect()].concat();
    assert_eq!(bits(&committed.acks[0].1), newest[..250]);
    // After a reconnect it hears of all that there are.
    assert_eq!(store.gateways().await.unwrap(), ["gw\0", "gw-1"]);
    assert_eq!(bits(&store.epochs("gw-1").await.unwrap()), newest);
}

#[tokio::test]
async fn a_batch_is_written_whole_or_not_at_all() {
    let (_folder, path, mut store) = store().await;
    let messages = (1..=300).map(|seq| message(seq, 900 * seq.cast_signed(), "1.000"));
    let batch = [batch(messages), vec![refused(None, b"x")]].concat();
    let mut reader = Reader::open(&path).await.unwrap();
    let nothing = Counts { meters: 0, messages: 0, refused: 0 };

    store.sql("CREATE TRIGGER fail BEFORE INSERT ON ledger BEGIN SELECT raise(ABORT, 'no'); END").await;
    assert!(!store.commit(&batch).await.unwrap_err().may_pass());
    assert_eq!(reader.counts().await.unwrap(), nothing);
    store.sql("DROP TRIGGER fail").await;

    // A full disk: SQLite rolls back by itself.
    store.sql("PRAGMA max_page_count = 1").await;
    let error = store.commit(&batch).await.unwrap_err();
    assert!(error.may_pass() && error.to_string().contains("the disk is full; free space"), "{error}");
    assert_eq!(reader.counts().await.unwrap(), nothing);
    store.sql("PRAGMA max_page_count = 1000000").await;

    // Calls that are dropped half-way leave nothing that is in the way of the next.
    let mut dropped = 0;
    for polls in 1..30 {
        {
            let mut call = pin!(store.commit(&batch[..300]));
            for _ in 0..polls {
                if poll_fn(|context| Poll::Ready(call.as_mut().poll(context).is_ready())).await {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        dropped += usize::from(store.unfinished);
        assert!(!store.keep_up(Duration::MAX).await.unwrap());
    }
    assert!(dropped > 2, "{dropped}");
    let committed = store.commit(&batch).await.unwrap();
    assert_eq!(committed.stored + committed.again, 300);
    assert_eq!(committed.acks[0].1[0].tally, Tally { stored: 300, repeated: 0, refused: 0 });
    assert_eq!(reader.counts().await.unwrap(), Counts { meters: 1, messages: 300, refused: 1 });
}

#[tokio::test]
async fn the_first_value_of_a_quarter_hour_stands_however_late_it_comes() {
    let (_folder, _path, mut store) = store().await;
    let mut wrong = message(9, 1, "0.100");
    wrong.report.clock = Clock::Unsynchronised;
    let mut suspect = message(8, 2, "0.200");
    suspect.report.readings[0].suspect = Some(Suspect::Backwards);
    let mut tariff = message(7, 2, "0.300");
    tariff.report.readings[0].qualifiers.tariff = 1;
    let sql = "SELECT concat_ws(' ', quarter, register, late / 1000, value, scale, unit)
        FROM quarter JOIN series ON series.id = series ORDER BY quarter, late";
    store.commit(&batch([wrong])).await.unwrap();
    assert_eq!(store.column(sql).await, ["1994764 import_low 1 100 3 kWh"]);
    store.commit(&batch([message(3, 899, "1.900"), message(2, 20, "1.200"), message(4, 901, "2.000")])).await.unwrap();
    assert_eq!(store.column(sql).await, ["1994764 import_low 20 1200 3 kWh", "1994765 import_low 1 2000 3 kWh"]);
    store.commit(&batch([message(1, 10, "1.100"), message(5, 5, "1.000"), suspect, tariff])).await.unwrap();
    let first = ["1994764 import_low 5 1000 3 kWh", "1994765 import_low 1 2000 3 kWh"];
    assert_eq!(store.column(sql).await, first);
    let mut early = message(10, 0, "0.900");
    early.report.clock = Clock::Unsynchronised;
    store.commit(&batch([message(6, 700, "1.800"), early])).await.unwrap();
    assert_eq!(store.column(sql).await, first);
    // Other decimals are a series of their own.
    store.commit(&batch([message(11, 1810, "2.1")])).await.unwrap();
    assert_eq!(store.column(sql).await.last().unwrap(), "1994766 import_low 10 21 1 kWh");
    let view =
        "SELECT concat_ws(' ', meter, medium, register, unix_s, measured_at, value, unit) FROM quarter_hour LIMIT 1";
    assert_eq!(store.column(view).await, ["E1 electricity import_low 1795287600 2026-11-21T19:00:05.000Z 1.000 kWh"]);
}

#[tokio::test]
async fn where_a_counter_falls_is_known_however_late_the_values_come() {
    let (_folder, path, mut store) = store().await;
    let falls = "SELECT CAST(quarter - 1994764 AS TEXT) FROM fall ORDER BY quarter";
    let value = |quarter: i64, value: &str| message(quarter.unsigned_abs() + 1, 900 * quarter, value);
    store.commit(&batch([value(0, "5.000"), value(2, "7.000"), value(5, "1.000"), value(6, "1.000")])).await.unwrap();
    assert_eq!(store.column(falls).await, ["5"]);
    // Between: one that explains nothing, one after which the next falls no more, and one that makes it fall.
    store.commit(&batch([value(1, "6.000"), value(4, "0.500")])).await.unwrap();
    assert_eq!(store.column(falls).await, ["4"]);
    let mut guessed = message(20, 900 * 6 + 400, "0.100");
    guessed.report.clock = Clock::Unsynchronised;
    let mut first = message(21, 900 * 7, "0.100");
    first.report.clock = Clock::Unsynchronised;
    store.commit(&batch([guessed, first])).await.unwrap();
    assert_eq!(store.column(falls).await, ["4"], "clocks that were not set say nothing");
    store.commit(&batch([message(22, 900 * 7 + 10, "0.900"), value(8, "2.000")])).await.unwrap();
    assert_eq!(store.column(falls).await, ["4", "7"]);

    let mut reader = Reader::open(&path).await.unwrap();
    let meter = reader.meters().await.unwrap().remove(0);
    assert_eq!((meter.name.as_str(), meter.medium, meter.predecessor), ("E1", Medium::Electricity, None));
    let meter = reader.meters().await.unwrap().remove(0);
    let series = reader.series(&meter).await.unwrap().remove(0);
    assert_eq!((series.register.as_str(), &series.unit, series.scale), ("import_low", &Unit::KWH, 3));
    let shown = |quarters: Vec<Quarter>| {
        let shown = |quarter: Quarter| {
            format!("{} {} {}", quarter.quarter - 1_994_764, quarter.at - 900_000 * quarter.quarter, quarter.value)
        };
        quarters.into_iter().map(shown).collect::<Vec<_>>()
    };
    let (start, end) = (1_994_764, 1_994_764 + 8);
    let all = reader.quarters(&series, &Quarters::All(start + 1..end)).await.unwrap();
    assert_eq!(shown(all), ["1 0 6.000", "2 0 7.000", "4 0 0.500", "5 0 1.000", "6 0 1.000", "7 10000 0.900"]);
    let around = Quarters::Around { marks: vec![start + 1, start + 3], each: 1 };
    let around = reader.quarters(&series, &around).await.unwrap();
    assert_eq!(shown(around), ["0 0 5.000", "1 0 6.000", "2 0 7.000", "4 0 0.500", "8 0 2.000"]);
    let around = Quarters::Around { marks: vec![start, end], each: 2 };
    let around = reader.quarters(&series, &around).await.unwrap();
    let near =
        ["0 0 5.000", "1 0 6.000", "2 0 7.000", "4 0 0.500", "5 0 1.000", "6 0 1.000", "7 10000 0.900", "8 0 2.000"];
    assert_eq!(shown(around), near);
    let none = reader.quarters(&series, &Quarters::Around { marks: vec![], each: 2 }).await.unwrap();
    assert_eq!(shown(none), ["0 0 5.000", "8 0 2.000"]);
}

#[tokio::test]
async fn old_messages_go_counted_back_from_the_newest_of_their_meter() {
    const DAY: i64 = 86_400;
    let (_folder, path, mut store) = store().await;
    let mut messages: Vec<Message> = (0..6000)
        .map(|seconds: i64| {
            let mut message = message(seconds.unsigned_abs() + 1, seconds, "1.000");
            message.report.info = vec![("n".into(), seconds.to_string().into())];
            message
        })
        .collect();
    // Another meter stopped a year ago, and once the first one's clock ran ahead.
    let mut gas = message(6001, -365 * DAY, "2.000");
    gas.report.meter = "G1".into();
    let mut ahead = message(6002, 5999, "3.000");
    ahead.report.measured_at = Moment::from_millis(START + 9000 * DAY * 1000, 60);
    messages.extend([gas, ahead]);
    store.commit(&batch(messages)).await.unwrap();

    assert!(store.keep_up(Duration::from_secs(9)).await.unwrap());
    assert!(!store.keep_up(Duration::from_secs(9)).await.unwrap());
    assert!(!store.keep_up(Duration::MAX).await.unwrap());
    assert_eq!(Reader::open(&path).await.unwrap().counts().await.unwrap().messages, 12);
    let sql = "SELECT concat_ws(' ', count(*), min(content), (SELECT count(*) FROM quarter)) FROM remark";
    assert_eq!(store.column(sql).await, [r#"10 {"info":[["n","5990"]],"events":[],"unknown":[]} 9"#]);
    let pages = "SELECT iif(freelist_count * 8 <= page_count, 'returned', 'kept')
        FROM pragma_freelist_count, pragma_page_count";
    assert_eq!(store.column(pages).await, ["returned"]);
}

/// All messages of meter E1, `page` at a time.
async fn messages(reader: &mut Reader, page: usize) -> Vec<Stored> {
    let meter = reader.meters().await.unwrap().into_iter().find(|meter| meter.name == "E1").unwrap();
    let mut found: Vec<Stored> = Vec::new();
    loop {
        let after = found.last().map(|stored| stored.key);
        let more = reader.messages(&meter, i64::MIN..i64::MAX, after, page).await.unwrap();
        let end = more.len() < page;
        found.extend(more);
        if end {
            return found;
        }
    }
}

#[tokio::test]
async fn finished_hours_are_sealed_and_nothing_else_changes() {
    let (_folder, path, mut store) = store().await;
    // Five hours at 10 s, one message in two layouts, remarks, one instant twice; an hour of silence; then an hour at 60 s.
    let times = (0..18_000).step_by(10).chain((21_600..25_200).step_by(60));
    let mut sent: Vec<Message> = times
        .enumerate()
        .map(|(number, seconds)| {
            let mut message = message(number as u64 + 1, seconds, &format!("{}.000", 1000 + number));
            if number % 500 == 7 {
                message.report.readings[0].suspect = Some(Suspect::TooFast);
                message.report.info = vec![("n".into(), number.to_string().into())];
            }
            message
        })
        .collect();
    let mut twin = message(5000, 700, "1.001");
    twin.report.clock = Clock::Unsynchronised;
    sent.push(twin);
    for chunk in sent.chunks(700) {
        store.commit(&batch(chunk.to_vec())).await.unwrap();
    }
    let mut reader = Reader::open(&path).await.unwrap();
    let before = messages(&mut reader, 100).await;
    assert_eq!(before.len(), sent.len());
    let counts_before = reader.counts().await.unwrap();
    let at = |seconds: i64| Moment::from_millis(START + seconds * 1000, 0).unwrap();
    let moments = [-1, 0, 5, 700, 3595, 3600, 17_990, 18_000, 20_000, 21_600, 24_000, 30_000].map(at);
    let mut asked = Vec::new();
    for moment in moments {
        asked.push((reader.readings(Some(moment)).await.unwrap(), reader.readings_after(moment).await.unwrap()));
    }

    while store.keep_up(Duration::MAX).await.unwrap() {}
    let sql = "SELECT concat_ws(' ', (from_at - 1795287600000) / 60000, (until_at - from_at) / 60000, sum(messages)) FROM sealed
        GROUP BY from_at ORDER BY from_at";
    // 20:00 here is 19:00 UTC: five hours are enough in themselves. What the day has left between and behind them is not over yet.
    assert_eq!(store.column(sql).await, ["0 60 361", "60 60 360", "120 60 360", "180 60 360", "240 60 360"]);
    assert_eq!(store.column("SELECT CAST(count(*) AS TEXT) FROM message").await, ["60"]);
    for (moment, (until, since)) in moments.into_iter().zip(&asked) {
        assert_eq!(reader.readings(Some(moment)).await.unwrap(), *until, "{moment}");
        assert_eq!(reader.readings_after(moment).await.unwrap(), *since, "{moment}");
    }
    assert_eq!(reader.counts().await.unwrap(), counts_before);
    for page in [7, 1000, 100_000] {
        assert!(messages(&mut reader, page).await == before, "pages of {page}");
    }

    // What is sealed is known: again under other numbers, and the same instant with another value.
    let again = |seq: u64, of: &Message| Message { envelope: Envelope { seq, ..of.envelope.clone() }, ..of.clone() };
    let late = [again(6001, &sent[3]), again(6002, &sent[7]), message(6003, 30, "1.5"), message(6004, 33, "1003.200")];
    assert_eq!(counts(&store.commit(&batch(late)).await.unwrap()), [2, 2, 0, 0]);
    let next_day = message(6005, 2 * 86_400, "5000.000");
    store.commit(&batch([next_day])).await.unwrap();
    let sum = "SELECT CAST(sum(messages) AS TEXT) FROM sealed";
    while store.keep_up(Duration::MAX).await.unwrap() {}
    // The first hour again, and the silent hour and the last one as the rest of their day.
    let sealed = ["0 60 363", "60 60 360", "120 60 360", "180 60 360", "240 60 360", "300 1440 60"];
    assert_eq!(store.column(sql).await, sealed);
    assert_eq!(store.column(sum).await, ["1863"]);
    assert_eq!(store.column("SELECT CAST(count(*) AS TEXT) FROM message").await, ["1"]);
    let after = messages(&mut reader, 500).await;
    assert_eq!(after.len(), before.len() + 3);
    assert!(after.iter().any(|stored| stored.key == (START + 30_000, 1)));

    // A damaged block is said, harms nothing else, and is not sealed over.
    store
        .sql("UPDATE sealed SET block = zeroblob(100) WHERE id = (SELECT id FROM sealed ORDER BY from_at DESC LIMIT 1)")
        .await;
    let into = message(6006, 21_660, "1.000");
    store.commit(&batch([into])).await.unwrap();
    while store.keep_up(Duration::MAX).await.unwrap() {}
    assert_eq!(store.column("SELECT CAST(count(*) AS TEXT) FROM message").await, ["2"]);
    assert_eq!(reader.readings(Some(at(5))).await.unwrap().len(), 1);
    let error = reader.readings(Some(at(22_000))).await.unwrap_err().to_string();
    assert!(error.contains("sealed block"), "{error}");

    // And all goes when its time has come.
    while store.keep_up(Duration::ZERO).await.unwrap() {}
    assert_eq!(reader.counts().await.unwrap().messages, 1);
    assert_eq!(store.column("SELECT content FROM remark").await, Vec::<String>::new());
}

#[tokio::test]
async fn the_view_shows_exact_decimals() {
    let (_folder, _path, mut store) = store().await;
    let values = ["3432.827", "-0.50", "0.000", "0.001", "-63", "0", "0.000000000000000001", "-999999999999999999"];
    let mut message = message(1, 0, "1");
    message.report.readings = values.map(|value| reading("energy", value, "GJ")).to_vec();
    message.report.readings[0].at = Some("1969-12-31T23:59:59.999Z".parse().unwrap());
    store.commit(&batch([message])).await.unwrap();
    assert_eq!(store.column("SELECT value FROM reading").await, values);
    let sql = "SELECT concat_ws(' ', meter, medium, measured_at, clock, register, unit, storage, tariff, subunit, at)
        FROM reading LIMIT 1";
    let row = "E1 electricity 2026-11-21T19:00:00.000Z meter energy GJ 0 0 0 1969-12-31T23:59:59.999Z";
    assert_eq!(store.column(sql).await, [row]);
}

#[tokio::test]
async fn refused_messages_are_bounded() {
    let (_folder, _path, mut store) = store().await;
    let small: Vec<_> = (0..10_050).map(|_| refused(None, b"x")).collect();
    assert_eq!(store.commit(&small).await.unwrap().refused, 10_050);
    let sql = "SELECT concat_ws(' ', count(*), min(id), max(id)) FROM refused";
    assert_eq!(store.column(sql).await, ["10000 51 10050"]);
    store.commit(&vec![refused(None, &vec![0; 30 << 20]); 3]).await.unwrap();
    assert_eq!(store.column(sql).await, ["2 10052 10053"]);
}

#[tokio::test]
async fn errors_say_what_is_wrong_and_what_helps() {
    let (folder, path, mut store) = store().await;
    let text = |error: StoreError| error.to_string().replace(&*folder.path().to_string_lossy(), "");
    assert!(text(Sqlite::open(&path).await.unwrap_err()).contains("another process writes this database; stop it"));
    store.sql("PRAGMA query_only = ON").await;
    let error = store.commit(&batch([message(1, 0, "1")])).await.unwrap_err();
    assert!(text(error).contains("read-only; let the daemon's user write to both"));
    store.sql("PRAGMA query_only = OFF").await;
    store.sql("INSERT INTO _sqlx_migrations SELECT 9999, '', '', 1, x'', 0").await;
    drop(store);
    for error in [Sqlite::open(&path).await.unwrap_err(), Reader::open(&path).await.unwrap_err()] {
        assert_eq!(
            text(error),
            "/new/meterkast.db: written by a newer meterkast (tables of version 9999); upgrade this one"
        );
    }
    let other = folder.path().join("other");
    assert!(text(Reader::open(&other).await.unwrap_err()).starts_with("/other: there is no database here; check"));
    fs::write(&other, [b'x'; 5000]).unwrap();
    for error in [Sqlite::open(&other).await.unwrap_err(), Reader::open(&other).await.unwrap_err()] {
        assert!(text(error).starts_with("/other: is not a meterkast database; check"));
    }
    assert!(text(Sqlite::open(folder.path()).await.unwrap_err()).contains("must name a file, not a directory"));
    let below = other.join("meterkast.db");
    assert!(text(Sqlite::open(&below).await.unwrap_err()).contains("must name a file, not a directory"));
}

#[tokio::test]
async fn a_database_whose_daemon_was_killed_can_be_read() {
    let (folder, path, mut store) = store().await;
    store.commit(&batch([message(1, 0, "1")])).await.unwrap();
    let copy = folder.path().join("copy.db");
    fs::copy(&path, &copy).unwrap();
    fs::copy(path.with_extension("db-wal"), copy.with_extension("db-wal")).unwrap();
    assert_eq!(Reader::open(&copy).await.unwrap().counts().await.unwrap().messages, 1);
    Box::new(store).close().await.unwrap();
    assert!(!path.with_extension("db-wal").exists());
    assert_eq!(Reader::open(&path).await.unwrap().counts().await.unwrap().messages, 1);
}

#[tokio::test]
async fn messages_refused_for_a_newer_schema_are_read_after_an_upgrade() {
    let (_folder, path, mut store) = store().await;
    let payload = |seq: u64, schema: u32| {
        let message = message(seq, seq.cast_signed(), &format!("1.{seq:04}"));
        let text = payload::message(&message.envelope, &payload::body(&message.report, message.received_at));
        text.replacen("\"schema\":1", &format!("\"schema\":{schema}"), 1).into_bytes()
    };
    // 250 of schema 2, of which 7 is damaged and 8 says what 1 said; one of schema 3, and two that no schema helps.
    let mut payloads: Vec<Vec<u8>> = (1..=250).map(|seq| payload(seq, 2)).collect();
    payloads[6] = String::from_utf8(payload(7, 2)).unwrap().replace("import_low", "IMPORT").into_bytes();
    payloads[7] =
        String::from_utf8(payload(1, 2)).unwrap().replace("\"seq\":1,\"prev\":0", "\"seq\":8,\"prev\":7").into();
    payloads.push(payload(251, 3));
    payloads.push(String::from_utf8(payload(252, 1)).unwrap().replace("electricity", "elastic").into_bytes());
    let refused: Vec<Incoming> =
        payloads.iter().map(|payload| role::incoming("m", "m/gw-1/E1/telegram", payload)).collect();
    assert!(refused.iter().all(|incoming| matches!(incoming, Incoming::Refused { .. })));
    let committed = store.commit(&refused).await.unwrap();
    assert_eq!(counts(&committed), [0, 0, 0, 252]);
    let before = store.epochs("gw-1").await.unwrap();
    assert_eq!((before[0].through, before[0].tally.refused), (252, 252));

    // This build cannot read them any better; a newer one reads schema 2.
    let reader = role::reread("m");
    assert_eq!(store.reread(payload::SCHEMA, &reader).await.unwrap(), Reread::default());
    let newer = |topic: &str, payload: &[u8]| {
        assert!(payload.starts_with(b"{\"schema\":2"));
        reader(topic, String::from_utf8_lossy(payload).replacen("\"schema\":2", "\"schema\":1", 1).as_bytes())
    };
    let mut sum = (0, 0);
    loop {
        let Reread { read, refused } = store.reread(2, &newer).await.unwrap();
        if (read, refused) == (0, 0) {
            break;
        }
        sum = (sum.0 + read, sum.1 + refused);
        assert!(read + refused <= 100);
    }
    assert_eq!(sum, (249, 1));
    let mut reader = Reader::open(&path).await.unwrap();
    assert_eq!(reader.counts().await.unwrap(), Counts { meters: 1, messages: 248, refused: 3 });
    for seq in (1..=250).filter(|seq| ![7, 8].contains(seq)) {
        let expected = message(seq, seq.cast_signed(), &format!("1.{seq:04}"));
        let at = expected.report.measured_at;
        assert_eq!(reader.readings(at).await.unwrap(), [(expected.report, expected.received_at)]);
    }
    let epochs = store.epochs("gw-1").await.unwrap();
    assert_eq!(epochs[0].tally, Tally { stored: 248, repeated: 1, refused: 3 });
    let sent = EpochAck { tally: before[0].tally, ..epochs[0].clone() };
    assert_eq!(sent, before[0], "what was acknowledged stays acknowledged");
    // What stays refused says why now, and is not read again by the same build.
    let reasons = store.column("SELECT concat_ws(' ', seq, schema, readable, reason) FROM refused").await;
    assert!(reasons[0].starts_with("7 2 2 ") && !reasons[0].contains("newer"), "{reasons:?}");
    assert_eq!(reasons[1], "251 3 1 schema 3 is newer than 1");
    assert_eq!(reasons[2], "252 1 1 `elastic` is no medium");
}

#[tokio::test]
async fn of_a_gateways_starts_the_last_thousand_are_remembered_and_an_older_one_adds_nothing() {
    let (_folder, path, mut store) = store().await;
    let of_epoch = |epoch: u64, gateway: &str| {
        let mut message = message(1, epoch.cast_signed(), "1");
        message.envelope.epoch = Epoch::from_bits(epoch.into());
        message.envelope.gateway = gateway.into();
        message
    };
    store.commit(&batch((1..=5).map(|epoch| of_epoch(epoch, "gw-2")))).await.unwrap();
    for begin in [1, 401, 801] {
        store.commit(&batch((begin..begin + 400).map(|epoch| of_epoch(epoch, "gw-1")))).await.unwrap();
    }
    assert!(!store.keep_up(Duration::MAX).await.unwrap());
    assert!(!store.keep_up(Duration::MAX).await.unwrap());
    let sql = "SELECT concat_ws(' ', gateway, count(*)) FROM ledger GROUP BY gateway";
    assert_eq!(store.column(sql).await, ["gw-1 1000", "gw-2 5"]);
    let messages = Reader::open(&path).await.unwrap().counts().await.unwrap().messages;
    let gone: Vec<String> = store.column("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1200)
        SELECT CAST(i AS TEXT) FROM n WHERE printf('%032x', i) NOT IN (SELECT epoch FROM ledger WHERE gateway = 'gw-1')").await;
    assert_eq!(gone.len(), 200);
    assert!(gone.iter().all(|epoch| epoch.parse::<u64>().unwrap() <= 400), "the oldest went");
    let again = batch(gone.iter().map(|epoch| of_epoch(epoch.parse().unwrap(), "gw-1")));
    assert_eq!(counts(&store.commit(&again).await.unwrap()), [0, 200, 0, 0]);
    assert_eq!(Reader::open(&path).await.unwrap().counts().await.unwrap().messages, messages);
}

/// Takes back what came after the first version.
const FIRST_VERSION: &str = "ALTER TABLE refused DROP COLUMN readable;
    DROP TABLE size; DROP TABLE sealed; DROP VIEW quarter_hour; ALTER TABLE quarter RENAME TO quarter_now;
    CREATE TABLE quarter (
        meter INTEGER NOT NULL REFERENCES meter (id), register TEXT NOT NULL, quarter INTEGER NOT NULL,
        at INTEGER NOT NULL, unsynchronised INTEGER NOT NULL, value INTEGER NOT NULL, scale INTEGER NOT NULL,
        unit TEXT NOT NULL, PRIMARY KEY (meter, register, quarter)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO quarter SELECT quarter_now.meter, register, quarter, quarter * 900000 + late, unsynchronised, value, scale, unit
        FROM quarter_now JOIN series ON series.id = series;
    DROP TABLE quarter_now; DROP TABLE fall; DROP TABLE series; ALTER TABLE meter DROP COLUMN predecessor;
    DELETE FROM _sqlx_migrations WHERE version > 1";

#[tokio::test]
async fn a_database_of_the_first_version_opens_and_keeps_everything() {
    let (_folder, path, mut store) = store().await;
    let envelope = Envelope { seq: 2, ..message(2, 0, "1").envelope };
    store.commit(&[batch([message(1, 0, "1")]), vec![refused(Some(envelope), b"{")]].concat()).await.unwrap();
    store.commit(&batch([message(3, 905, "3"), message(4, 1800, "2")])).await.unwrap();
    let generation = store.generation().to_owned();
    // As the first version left it: without what came later, and with nothing in the lock.
    store.sql(FIRST_VERSION).await;
    Box::new(store).close().await.unwrap();
    fs::write(file::beside(&path, ".lock"), "").unwrap();
    let mut store = Sqlite::open(&path).await.unwrap();
    assert_eq!(store.generation(), generation);
    assert_eq!(store.column("SELECT schema || ' ' || readable FROM refused").await, ["2 1"]);
    assert_eq!(store.epochs("gw-1").await.unwrap()[0].through, 4);
    assert_eq!(Reader::open(&path).await.unwrap().readings(None).await.unwrap()[0].0, message(4, 1800, "2").report);
    let sql = "SELECT concat_ws(' ', register, measured_at, value, unit) FROM quarter_hour ORDER BY unix_s";
    let quarters = ["import_low 2026-11-21T19:00:00.000Z 1 kWh", "import_low 2026-11-21T19:15:05.000Z 3 kWh"];
    assert_eq!(store.column(sql).await[..2], quarters);
    assert_eq!(store.column("SELECT CAST(quarter AS TEXT) FROM fall").await, ["1994766"]);
}

#[tokio::test]
async fn a_log_that_a_power_cut_tore_is_sound_and_one_with_lost_commits_is_not() {
    let (folder, path, mut store) = store().await;
    for seq in 1..=5 {
        store.commit(&batch([message(seq, seq.cast_signed(), "1")])).await.unwrap();
    }
    let whole = fs::read(file::beside(&path, "-wal")).unwrap();
    let copy = folder.path().join("copy");
    let is_damaged = |content: &[u8]| {
        fs::write(&copy, content).unwrap();
        log::is_damaged(&copy).unwrap()
    };
    assert!(!log::is_damaged(&folder.path().join("none")).unwrap());
    // Cut anywhere, also within a transaction: at first the creation of the tables, then five commits.
    for length in (0..whole.len()).step_by(997).chain([31, 32, 33, whole.len()]) {
        assert!(!is_damaged(&whole[..length]), "cut at {length}");
    }
    let page = 4096 + 24;
    // Frames of this round of the log; behind them stand those of the creation.
    let here = |at: &usize| whole[at + 8..at + 16] == whole[16..24];
    let commits: Vec<usize> =
        (32..whole.len()).step_by(page).filter(here).filter(|&at| whole[at + 4..at + 8] != [0; 4]).collect();
    assert_eq!(commits.len(), 6, "the generation, and five messages");
    let flipped = |at: usize| {
        let mut log = whole.clone();
        log[at] ^= 0x10;
        is_damaged(&log)
    };
    // In the page of the last commit, or its header: it may have been torn. Before the last two it cannot.
    let (second_last, last) = (commits[4], commits[5]);
    assert!(!flipped(last + 3000) && !flipped(last + 20));
    for at in [0, 8, 20, 32 + 8, 32 + 20, 32 + 2000, commits[1] + 100, second_last - 1] {
        assert!(flipped(at), "{at}");
    }
    // What a transaction that failed left behind the last one that did not.
    let failed = [&whole[..last + page], &whole[second_last..last + page], &whole[32..32 + page]].concat();
    assert!(!is_damaged(&failed));
}

#[tokio::test]
async fn for_long_periods_few_values_are_read_and_say_the_same() {
    let (_folder, path, mut store) = store().await;
    // Ten weeks at a value each two hours, over the end of summer time, with what may happen to a counter.
    let begin = "2026-09-10T00:00:05Z".parse::<Moment>().unwrap().millis() - START;
    let shown = |step: u64| {
        let count = match step {
            200..=211 | 333 => step * 77 % 5000,
            500.. => (step - 500) * 40,
            _ => 99_000 + step * 40,
        };
        // Its decimals go with a new firmware; in between they come and go.
        if step < 300 || (step < 320 && step % 3 == 0) { format!("{count}.250") } else { format!("{count}.5") }
    };
    let mut points = Vec::new();
    let mut messages = Vec::new();
    for step in 0..840 {
        let seconds = begin / 1000 + 7200 * i64::try_from(step).unwrap();
        let mut message = message(step + 1, seconds, &shown(step));
        message.report.meter = if step < 600 { "OLD" } else { "NEW" }.into();
        if step >= 600 {
            message.report.info.push(("predecessor".into(), "OLD".into()));
        }
        let at = message.report.measured_at.unwrap().instant();
        points.push(Point { at, value: message.report.readings[0].value });
        messages.push(message);
    }
    // A clock that leapt ahead.
    messages.push(message(841, begin / 1000 + 86_400 * 4000, "999999.5"));
    messages[840].report.meter = "NEW".into();
    store.commit(&batch(messages)).await.unwrap();

    let (old, new) = points.split_at(600);
    let curve = |points: &[Point], decimals| Curve::new(points.iter().copied(), &Unit::KWH, decimals);
    let whole = curve(old, 3).then(curve(new, 1));
    let mut reader = Reader::open(&path).await.unwrap();
    let found = counters(&mut reader, &[]).await.unwrap();
    let named: Vec<_> = found.iter().map(|counter| (counter.meter.name.as_str(), counter.register.as_str())).collect();
    assert_eq!(named, [("NEW", "import_low")]);
    for by in [By::Total, By::Year, By::Month, By::Day, By::Hour, By::Quarter] {
        let question = Question {
            by,
            zone: TimeZone::get("Europe/Amsterdam").unwrap(),
            from: None,
            until: None,
            years: 1,
            future: "2027-01-01T00:00:00Z".parse().unwrap(),
        };
        let read = found[0].curve(&mut reader, &question).await.unwrap();
        assert_eq!(read.total(), whole.total());
        let periods = question.periods(whole.span().unwrap());
        assert!(read.over(periods.clone()).eq(whole.over(periods)), "{by:?}");
        // From the middle of a fall to the next month.
        let [from, until] = ["2026-09-27T00:00:00Z", "2026-11-02T00:00:00Z"].map(|at| at.parse().ok());
        let some = Question { from, until, ..question };
        let read = found[0].curve(&mut reader, &some).await.unwrap();
        let periods = some.periods(whole.span().unwrap());
        assert!(read.over(periods.clone()).eq(whole.over(periods)), "{by:?}");
        assert_eq!(read.total(), whole.total());
    }
    let old = counters(&mut reader, &["OLD".into()]).await.unwrap();
    let question =
        Question { by: By::Year, zone: TimeZone::UTC, from: None, until: None, years: 0, future: jiff::Timestamp::MAX };
    let read = old[0].curve(&mut reader, &question).await.unwrap();
    assert_eq!(read.total(), curve(&points[..600], 3).total());
}
