//! The store story, the same in every database: each test runs in SQLite and in PostgreSQL.

use std::{path::PathBuf, time::Duration};

use jiff::tz::TimeZone;
use sqlx::{ConnectOptions as _, query_scalar, sqlite::SqliteConnectOptions};
use tempfile::TempDir;

use super::{
    Committed, Counts, Database, Forgotten, Incoming, Quarter, Quarters, Reader, Reread, apart,
    counters::{Question, counters},
    open,
    postgres::server::Postgres,
    read, role,
};
use crate::{
    config::{self, StoreUrl},
    consumption::{By, Curve, Point},
    delivery::{Epoch, EpochAck, Ranges, Tally, topic},
    moment::Moment,
    payload::{self, Envelope, Message},
    pulse::Pulse,
    reading::{Clock, Event, METER_TIME, Medium, Reading, Register, Report, Suspect, Unknown},
    unit::{Decimal, Unit},
};

/// Where a story takes place: a database of its own.
pub(super) enum Ground {
    Sqlite(TempDir),
    Postgres(String),
}

impl Ground {
    pub(super) fn sqlite() -> Self {
        Self::Sqlite(tempfile::tempdir().unwrap())
    }

    pub(super) fn postgres() -> Self {
        Self::Postgres(Postgres::shared().database())
    }

    pub(super) fn url(&self) -> StoreUrl {
        match self {
            Self::Sqlite(_) => StoreUrl::sqlite(&self.file()),
            Self::Postgres(name) => StoreUrl::parse(&Postgres::shared().url(name)).unwrap(),
        }
    }

    fn file(&self) -> PathBuf {
        let Self::Sqlite(folder) = self else { panic!("no file") };
        folder.path().join("new/meterkast.db")
    }

    /// The writer.
    pub(super) async fn open(&self) -> Box<dyn Database> {
        let config = format!("[store]\nurl = \"{}\"\n", self.url());
        open(&config::Config::parse(&config, "").unwrap().store.unwrap()).await.unwrap()
    }

    /// A reader.
    pub(super) async fn read(&self) -> Box<dyn Reader> {
        read(&self.url()).await.unwrap()
    }

    /// How the view shows an instant: as a text in SQLite, in PostgreSQL as what it is.
    fn instant<'t>(&self, sqlite: &'t str, postgres: &'t str) -> &'t str {
        match self {
            Self::Sqlite(_) => sqlite,
            Self::Postgres(_) => postgres,
        }
    }

    /// One column of some rows, as texts.
    pub(super) async fn column(&self, sql: &'static str) -> Vec<String> {
        match self {
            Self::Sqlite(_) => {
                let mut other = SqliteConnectOptions::new().filename(self.file()).connect().await.unwrap();
                query_scalar(sql).fetch_all(&mut other).await.unwrap()
            }
            Self::Postgres(name) => Postgres::shared().sql(name, sql),
        }
    }
}

/// 2026-11-21T20:00:00+01:00, the start of a quarter-hour.
pub(super) const START: i64 = 1_795_287_600_000;

pub(super) fn reading(register: &'static str, value: &str, unit: &str) -> Reading {
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

pub(super) fn refused(envelope: Option<Envelope>, payload: &[u8]) -> Incoming {
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

pub(super) fn counts(committed: &Committed) -> [u64; 4] {
    [committed.stored, committed.repeated, committed.again, committed.refused]
}

async fn reports_leave_as_they_entered(ground: Ground) {
    let mut store = ground.open().await;
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

    let mut reader = ground.read().await;
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

async fn each_message_counts_once(ground: Ground) {
    let mut store = ground.open().await;
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
    let sql = "SELECT n || ' ' || value FROM reading WHERE unix_ms = 1795287600000 AND unit = 'kWh' ORDER BY n";
    assert_eq!(ground.column(sql).await, ["0 1.000", "1 1.5", "2 1.50"]);
    let mut reader = ground.read().await;
    assert_eq!(reader.counts().await.unwrap(), Counts { meters: 1, messages: 4, refused: 2 });
    assert_eq!(reader.readings(Moment::from_millis(START, 0)).await.unwrap()[0].0, message(8, 0, "1.50").report);
}

async fn a_gateway_hears_of_its_latest_250_epochs_and_no_number_is_too_big(ground: Ground) {
    let mut store = ground.open().await;
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

async fn the_first_value_of_a_quarter_hour_stands_however_late_it_comes(ground: Ground) {
    let mut store = ground.open().await;
    let mut wrong = message(9, 1, "0.100");
    wrong.report.clock = Clock::Unsynchronised;
    let mut suspect = message(8, 2, "0.200");
    suspect.report.readings[0].suspect = Some(Suspect::Backwards);
    let mut tariff = message(7, 2, "0.300");
    tariff.report.readings[0].qualifiers.tariff = 1;
    let sql = "SELECT concat_ws(' ', quarter, register, late / 1000, value, scale, unit)
        FROM quarter JOIN series ON series.id = series ORDER BY quarter, late";
    store.commit(&batch([wrong])).await.unwrap();
    assert_eq!(ground.column(sql).await, ["1994764 import_low 1 100 3 kWh"]);
    store.commit(&batch([message(3, 899, "1.900"), message(2, 20, "1.200"), message(4, 901, "2.000")])).await.unwrap();
    assert_eq!(ground.column(sql).await, ["1994764 import_low 20 1200 3 kWh", "1994765 import_low 1 2000 3 kWh"]);
    store.commit(&batch([message(1, 10, "1.100"), message(5, 5, "1.000"), suspect, tariff])).await.unwrap();
    let first = ["1994764 import_low 5 1000 3 kWh", "1994765 import_low 1 2000 3 kWh"];
    assert_eq!(ground.column(sql).await, first);
    let mut early = message(10, 0, "0.900");
    early.report.clock = Clock::Unsynchronised;
    store.commit(&batch([message(6, 700, "1.800"), early])).await.unwrap();
    assert_eq!(ground.column(sql).await, first);
    // Other decimals are a series of their own.
    store.commit(&batch([message(11, 1810, "2.1")])).await.unwrap();
    assert_eq!(ground.column(sql).await.last().unwrap(), "1994766 import_low 10 21 1 kWh");
    let view = "SELECT concat_ws(' ', meter, medium, register, unix_s, measured_at, value, unit)
        FROM quarter_hour ORDER BY unix_s LIMIT 1";
    let measured_at = ground.instant("2026-11-21T19:00:05.000Z", "2026-11-21 19:00:05+00");
    let row = format!("E1 electricity import_low 1795287600 {measured_at} 1.000 kWh");
    assert_eq!(ground.column(view).await, [row]);
}

async fn where_a_counter_falls_is_known_however_late_the_values_come(ground: Ground) {
    let mut store = ground.open().await;
    let falls = "SELECT CAST(quarter - 1994764 AS TEXT) FROM fall ORDER BY quarter";
    let value = |quarter: i64, value: &str| message(quarter.unsigned_abs() + 1, 900 * quarter, value);
    store.commit(&batch([value(0, "5.000"), value(2, "7.000"), value(5, "1.000"), value(6, "1.000")])).await.unwrap();
    assert_eq!(ground.column(falls).await, ["5"]);
    // Between: one that explains nothing, one after which the next falls no more, and one that makes it fall.
    store.commit(&batch([value(1, "6.000"), value(4, "0.500")])).await.unwrap();
    assert_eq!(ground.column(falls).await, ["4"]);
    let mut guessed = message(20, 900 * 6 + 400, "0.100");
    guessed.report.clock = Clock::Unsynchronised;
    let mut first = message(21, 900 * 7, "0.100");
    first.report.clock = Clock::Unsynchronised;
    store.commit(&batch([guessed, first])).await.unwrap();
    assert_eq!(ground.column(falls).await, ["4"], "clocks that were not set say nothing");
    store.commit(&batch([message(22, 900 * 7 + 10, "0.900"), value(8, "2.000")])).await.unwrap();
    assert_eq!(ground.column(falls).await, ["4", "7"]);

    let mut reader = ground.read().await;
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

async fn old_messages_go_counted_back_from_the_newest_of_their_meter(ground: Ground) {
    const DAY: i64 = 86_400;
    let mut store = ground.open().await;
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
    assert_eq!(ground.read().await.counts().await.unwrap().messages, 12);
    let sql = "SELECT concat_ws(' ', count(*), min(content), (SELECT count(*) FROM quarter)) FROM remark";
    assert_eq!(ground.column(sql).await, [r#"10 {"info":[["n","5990"]],"events":[],"unknown":[]} 9"#]);
    if matches!(ground, Ground::Postgres(_)) {
        return;
    }
    let pages = "SELECT iif(freelist_count * 8 <= page_count, 'returned', 'kept')
        FROM pragma_freelist_count, pragma_page_count";
    assert_eq!(ground.column(pages).await, ["returned"]);
}

async fn the_view_shows_exact_decimals(ground: Ground) {
    let mut store = ground.open().await;
    let values = ["3432.827", "-0.50", "0.000", "0.001", "-63", "0", "0.000000000000000001", "-999999999999999999"];
    let mut message = message(1, 0, "1");
    message.report.readings = values.map(|value| reading("energy", value, "GJ")).to_vec();
    message.report.readings[0].at = Some("1969-12-31T23:59:59.999Z".parse().unwrap());
    store.commit(&batch([message])).await.unwrap();
    assert_eq!(ground.column("SELECT value FROM reading").await, values);
    let sql = "SELECT concat_ws(' ', meter, medium, measured_at, clock, register, unit, storage, tariff, subunit, at)
        FROM reading LIMIT 1";
    let measured_at = ground.instant("2026-11-21T19:00:00.000Z", "2026-11-21 19:00:00+00");
    let at = ground.instant("1969-12-31T23:59:59.999Z", "1969-12-31 23:59:59.999+00");
    let row = format!("E1 electricity {measured_at} meter energy GJ 0 0 0 {at}");
    assert_eq!(ground.column(sql).await, [row]);
}

async fn what_a_meters_clock_says_makes_no_remark(ground: Ground) {
    let mut store = ground.open().await;
    let info = |name: &'static str, text: &str| (name.into(), text.to_owned().into());
    let said = |seq: u64, minutes: i64, meter_time: &str| {
        let mut message = message(seq, 60 * minutes, "5.250");
        message.report.protocol = "mbus".into();
        message.report.clock = Clock::Gateway;
        message.report.info = vec![info("status", "ok"), info(METER_TIME, meter_time), info("address", "5")];
        message
    };
    let sent = [
        said(1, 0, "2026-11-21T20:07:00+01:00"),
        said(2, 15, "2026-11-21T20:22:00+01:00"),
        said(3, 30, "2026-11-21T19:37:00Z"),
        // Not as it would be written: it stays a text.
        said(4, 45, "2026-11-21T20:52:00.000+01:00"),
    ];
    store.commit(&batch(sent.clone())).await.unwrap();
    let shared = r#"{"info":[["status","ok"],["address","5"]],"events":[],"unknown":[]}"#;
    let own = r#"{"info":[["status","ok"],["meter_time","2026-11-21T20:52:00.000+01:00"],["address","5"]],"events":[],"unknown":[]}"#;
    assert_eq!(ground.column("SELECT content FROM remark ORDER BY id").await, [shared, own]);
    assert_eq!(ground.column("SELECT CAST(count(*) AS TEXT) FROM layout").await, ["2"]);
    let mut reader = ground.read().await;
    let meter = reader.meters().await.unwrap().remove(0);
    let stored = reader.messages(&meter, i64::MIN..i64::MAX, None, 10).await.unwrap();
    let reports: Vec<_> = stored.into_iter().map(|stored| stored.report).collect();
    assert_eq!(reports, sent.clone().map(|message| message.report));
    // It is no reading.
    let sql = "SELECT concat_ws(' ', register, value, count(*)) FROM reading GROUP BY register, value ORDER BY 1";
    assert_eq!(ground.column(sql).await, ["import_low 5.250 4", "power_import 0.5 4"]);
    // The same again is there already; another time of the meter is another message.
    let mut other = said(6, 0, "2026-11-21T20:08:00+01:00");
    other.report.info.push(info("predecessor", "E0"));
    assert_eq!(counts_of(&mut store, said(5, 0, "2026-11-21T20:07:00+01:00")).await, [0, 1, 0, 0]);
    assert_eq!(counts_of(&mut store, other.clone()).await, [1, 0, 0, 0]);

    let next_day = said(7, 2 * 1440, "2026-11-23T20:07:00+01:00");
    store.commit(&batch([next_day.clone()])).await.unwrap();
    while store.keep_up(Duration::MAX).await.unwrap() {}
    if matches!(ground, Ground::Sqlite(_)) {
        // Sealed, in a block for each layout.
        assert_eq!(ground.column("SELECT CAST(messages AS TEXT) FROM sealed ORDER BY messages").await, ["1", "4"]);
    }
    let stored = reader.messages(&meter, i64::MIN..i64::MAX, None, 10).await.unwrap();
    let reports: Vec<_> = stored.into_iter().map(|stored| stored.report).collect();
    let [first, second, third, fourth] = sent;
    assert_eq!(reports, [first, other, second, third, fourth, next_day].map(|message| message.report));
}

async fn refused_messages_are_bounded(ground: Ground) {
    let mut store = ground.open().await;
    let small: Vec<_> = (0..10_050).map(|_| refused(None, b"x")).collect();
    assert_eq!(store.commit(&small).await.unwrap().refused, 10_050);
    let sql = "SELECT concat_ws(' ', count(*), min(id), max(id)) FROM refused";
    assert_eq!(ground.column(sql).await, ["10000 51 10050"]);
    store.commit(&vec![refused(None, &vec![0; 30 << 20]); 3]).await.unwrap();
    assert_eq!(ground.column(sql).await, ["2 10052 10053"]);
}

async fn messages_refused_for_a_newer_schema_are_read_after_an_upgrade(ground: Ground) {
    let mut store = ground.open().await;
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
    let mut reader = ground.read().await;
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
    let reasons = ground.column("SELECT concat_ws(' ', seq, schema, readable, reason) FROM refused ORDER BY id").await;
    assert!(reasons[0].starts_with("7 2 2 ") && !reasons[0].contains("newer"), "{reasons:?}");
    assert_eq!(reasons[1], "251 3 1 schema 3 is newer than 1");
    assert_eq!(reasons[2], "252 1 1 `elastic` is no medium");
}

async fn what_a_payload_may_hold_at_most_every_database_takes(ground: Ground) {
    let mut store = ground.open().await;
    let base = "m";
    let incoming = |message: &Message| {
        let Message { envelope, received_at, report } = message;
        let topic = topic::of_meter(base, &envelope.gateway, &report.meter, "telegram");
        role::incoming(base, &topic, payload::message(envelope, &payload::body(report, *received_at)).as_bytes())
    };
    let at = |millis: i64| Moment::from_millis(millis, 0);
    let (first, last) = (-62_135_596_800_000, 253_402_207_199_999);
    // PostgreSQL keeps each of these bytes as three.
    let longest = "\0".repeat(payload::MOST_NAME);
    let register = Register::from_text(&format!("import_{}", "x".repeat(57))).unwrap();
    let mut message = message(1, 0, "999999999999999999");
    message.envelope.gateway = longest.clone();
    message.report.meter = longest.clone();
    message.report.protocol = longest.clone().into();
    message.report.info = vec![("predecessor".into(), longest.clone().into())];
    message.report.readings[0].register = register.clone();
    message.report.readings[0].unit = Unit::from_text(&"~".repeat(16)).unwrap();
    message.report.readings[0].at = at(first);
    message.report.readings[1].at = at(last);
    let mut other = message.clone();
    (other.envelope.seq, other.envelope.prev) = (2, 1);
    other.report.measured_at = at(first);
    other.received_at = at(last).unwrap();
    other.report.info = vec![("predecessor".into(), "x".repeat(payload::MOST_NAME + 1).into())];
    let batch = [incoming(&message), incoming(&other)];
    assert_eq!(batch, [Incoming::Message(message.clone()), Incoming::Message(other.clone())]);
    let committed = store.commit(&batch).await.unwrap();
    assert_eq!(counts(&committed), [2, 0, 0, 0]);
    assert_eq!((committed.acks[0].0.as_str(), committed.acks[0].1[0].through), (longest.as_str(), 2));
    let mut reader = ground.read().await;
    assert_eq!(reader.readings(None).await.unwrap(), [(message.report.clone(), message.received_at)]);
    let meter = reader.meters().await.unwrap().pop().unwrap();
    // A text that is longer than any name names no meter.
    assert_eq!(meter.predecessor.as_ref(), Some(&longest));
    let series = reader.series(&meter).await.unwrap();
    assert_eq!(series.iter().map(|series| &series.register).collect::<Vec<_>>(), [&register]);
    // SQL users can ask for all of it.
    assert_eq!(ground.column("SELECT count(at) || ' ' || count(measured_at) FROM reading").await, ["4 4"]);
    assert_eq!(ground.column("SELECT count(measured_at) || '' FROM quarter_hour").await, ["1"]);

    // What no calendar of theirs has is kept as refused.
    let early = at(first - 1);
    let mut earlier = [message.clone(), message.clone(), message];
    earlier[0].report.readings[1].at = early;
    earlier[1].report.measured_at = early;
    earlier[2].received_at = early.unwrap();
    for message in earlier {
        let Incoming::Refused { reason, envelope, .. } = incoming(&message) else { panic!("{message:?}") };
        assert_eq!((reason.as_str(), envelope), ("it has a time before the year 1", Some(message.envelope)));
    }
}

async fn what_the_database_does_not_take_is_refused_and_everything_else_is_stored(ground: Ground) {
    let mut store = ground.open().await;
    // As if 7.000 were a value that has no place in the table.
    ground
        .column(ground.instant(
            "CREATE TRIGGER fail BEFORE INSERT ON message WHEN new.\"values\" LIKE '[7000,%' BEGIN SELECT raise(ABORT, 'no place for it'); END",
            "ALTER TABLE message ADD CONSTRAINT \"no place for it\" CHECK (\"values\"[1] <> 7000)",
        ))
        .await;
    let culprits = [1, 400, 401, 1000];
    let value = |seq: u64| if culprits.contains(&seq) { "7.000".to_owned() } else { format!("{seq}.5") };
    let messages = batch((1..=1000).map(|seq| message(seq, seq.cast_signed(), &value(seq))));
    assert!(store.commit(&messages).await.unwrap_err().refusal().is_some());
    let outcome = apart::commit(&mut *store, messages.clone(), "m", &Pulse::default()).await;
    assert!(outcome.error.is_none() && outcome.rest.is_empty(), "{:?}", outcome.error);
    assert_eq!(counts(&outcome.committed), [996, 0, 0, 4]);
    let epochs = store.epochs("gw-1").await.unwrap();
    assert_eq!((epochs[0].through, epochs[0].tally), (1000, Tally { stored: 996, repeated: 0, refused: 4 }));
    assert_eq!(outcome.committed.acks.last(), Some(&("gw-1".to_owned(), epochs)));
    let refused = "SELECT concat_ws(' ', topic, gateway, seq, schema, readable) FROM refused ORDER BY id";
    let expected = culprits.map(|seq| format!("m/gw-1/E1/telegram gw-1 {seq} 1 1"));
    assert_eq!(ground.column(refused).await, expected);
    for reason in ground.column("SELECT reason FROM refused").await {
        assert!(
            reason.starts_with("the database does not take it: ") && reason.contains("no place for it"),
            "{reason}"
        );
    }
    // Sent again they are known, and nothing needs to be taken apart.
    assert_eq!(counts(&store.commit(&messages).await.unwrap()), [0, 0, 1000, 0]);
    // They are not read again at the next start: that would fail in the same way.
    assert_eq!(store.reread(payload::SCHEMA, &role::reread("m")).await.unwrap(), Reread::default());

    // What is not even taken as refused.
    ground
        .column(ground.instant(
            "CREATE TRIGGER none BEFORE INSERT ON refused BEGIN SELECT raise(ABORT, 'nor here'); END",
            "ALTER TABLE refused ADD CONSTRAINT \"nor here\" CHECK (seq < 1001)",
        ))
        .await;
    let messages = batch([message(1001, 1001, "7.000"), message(1002, 1002, "1002.5")]);
    let outcome = apart::commit(&mut *store, messages.clone(), "m", &Pulse::default()).await;
    assert_eq!((outcome.rest.as_slice(), counts(&outcome.committed)), (&messages[..1], [1, 0, 0, 0]));
    assert!(outcome.error.unwrap().to_string().contains("nor here"));
}

async fn of_a_gateways_starts_the_last_thousand_are_remembered_and_an_older_one_adds_nothing(ground: Ground) {
    let mut store = ground.open().await;
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
    let sql = "SELECT concat_ws(' ', gateway, count(*)) FROM ledger GROUP BY gateway ORDER BY gateway";
    assert_eq!(ground.column(sql).await, ["gw-1 1000", "gw-2 5"]);
    let messages = ground.read().await.counts().await.unwrap().messages;
    let kept: Vec<u128> = store.epochs("gw-1").await.unwrap().iter().map(|ack| ack.epoch.bits()).collect();
    let gone: Vec<u64> = (1..=1200).filter(|epoch| !kept.contains(&u128::from(*epoch))).collect();
    assert_eq!(gone.len(), 200);
    assert!(gone.iter().all(|epoch| *epoch <= 400), "the oldest went");
    let again = batch(gone.iter().map(|epoch| of_epoch(*epoch, "gw-1")));
    assert_eq!(counts(&store.commit(&again).await.unwrap()), [0, 200, 0, 0]);
    assert_eq!(ground.read().await.counts().await.unwrap().messages, messages);
}

async fn for_long_periods_few_values_are_read_and_say_the_same(ground: Ground) {
    let mut store = ground.open().await;
    // Ten weeks at a value each two hours, over the end of summer time, with what may happen to a counter.
    let begin = "2026-09-10T00:00:05Z".parse::<Moment>().unwrap().millis() - START;
    let shown = |step: u64| {
        let count = match step {
            200..=211 | 333 => step * 77 % 5000,
            500.. => (step - 500) * 40,
            _ => 99_000 + step * 40,
        };
        // Its decimals go with a new firmware; in between they come and go.
        if step < 300 || (step < 320 && step.is_multiple_of(3)) { format!("{count}.250") } else { format!("{count}.5") }
    };
    let (mut placed, mut replacing) = (Vec::new(), Vec::new());
    let mut messages = Vec::new();
    for step in 0..840 {
        let seconds = begin / 1000 + 7200 * i64::try_from(step).unwrap();
        let mut message = message(step + 1, seconds, &shown(step));
        message.report.meter = if step < 600 { "OLD" } else { "NEW" }.into();
        if step >= 600 {
            message.report.info.push(("predecessor".into(), "OLD".into()));
        }
        let at = message.report.measured_at.unwrap().instant();
        let of_meter = if step < 600 { &mut placed } else { &mut replacing };
        of_meter.push(Point { at, value: message.report.readings[0].value });
        messages.push(message);
    }
    // The old meter hangs elsewhere now, and goes on.
    for step in 600..640 {
        let seconds = begin / 1000 + 7200 * i64::try_from(step).unwrap() + 1800;
        let mut message = message(step + 1000, seconds, &shown(step));
        message.report.meter = "OLD".into();
        let at = message.report.measured_at.unwrap().instant();
        placed.push(Point { at, value: message.report.readings[0].value });
        messages.push(message);
    }
    // In the quarter-hour that is not over.
    let mut last = message(840, begin / 1000 + 7200 * 839 + 600, "13570.5");
    last.report.meter = "NEW".into();
    replacing.push(Point { at: last.report.measured_at.unwrap().instant(), value: last.report.readings[0].value });
    last.envelope.seq = 842;
    messages.push(last);
    // A clock that leapt ahead.
    let mut ahead = message(841, begin / 1000 + 86_400 * 4000, "999999.5");
    ahead.report.meter = "NEW".into();
    messages.push(ahead);
    store.commit(&batch(messages)).await.unwrap();

    let curve = |points: &[Point], decimals| Curve::new(points.iter().copied(), &Unit::KWH, decimals);
    let whole = curve(&placed, 3).then(curve(&replacing, 1));
    let mut reader = ground.read().await;
    let future = "2027-01-01T00:00:00Z".parse().unwrap();
    let found = counters(&mut *reader, &[], future).await.unwrap();
    let named: Vec<_> = found.iter().map(|counter| (counter.meter.name.as_str(), counter.register.as_str())).collect();
    assert_eq!(named, [("NEW", "import_low")]);
    for by in [By::Total, By::Year, By::Month, By::Day, By::Hour, By::Quarter] {
        let question = Question {
            by,
            zone: TimeZone::get("Europe/Amsterdam").unwrap(),
            from: None,
            until: None,
            years: 1,
            future,
        };
        let read = found[0].curve(&mut *reader, &question).await.unwrap();
        assert_eq!(read.total(), whole.total());
        let periods = question.periods(whole.span().unwrap());
        assert!(read.over(periods.clone()).eq(whole.over(periods)), "{by:?}");
        // From the middle of a fall to the next month.
        let [from, until] = ["2026-09-27T00:00:00Z", "2026-11-02T00:00:00Z"].map(|at| at.parse().ok());
        let some = Question { from, until, ..question };
        let read = found[0].curve(&mut *reader, &some).await.unwrap();
        let periods = some.periods(whole.span().unwrap());
        assert!(read.over(periods.clone()).eq(whole.over(periods)), "{by:?}");
        assert_eq!(read.total(), whole.total());
    }
    let old = counters(&mut *reader, &["OLD".into()], jiff::Timestamp::MAX).await.unwrap();
    let question =
        Question { by: By::Year, zone: TimeZone::UTC, from: None, until: None, years: 0, future: jiff::Timestamp::MAX };
    let read = old[0].curve(&mut *reader, &question).await.unwrap();
    assert_eq!(read.total(), curve(&placed, 3).total());
}

async fn the_views_have_the_same_columns_in_each_database(ground: Ground) {
    drop(ground.open().await);
    let sql = match ground {
        Ground::Sqlite(_) => {
            "SELECT group_concat(name) FROM (SELECT name FROM pragma_table_info('reading') UNION ALL
                SELECT name FROM pragma_table_info('quarter_hour'))"
        }
        Ground::Postgres(_) => {
            "SELECT string_agg(column_name, ',' ORDER BY table_name DESC, ordinal_position) FROM information_schema.columns
                WHERE table_schema = 'public' AND table_name IN ('reading', 'quarter_hour')"
        }
    };
    let reading =
        "meter,medium,unix_ms,n,measured_at,clock,register,value,unit,storage,tariff,subunit,function,at,suspect";
    let quarter_hour = "meter,medium,register,unix_s,measured_at,value,unit,unsynchronised";
    assert_eq!(ground.column(sql).await, [format!("{reading},{quarter_hour}")]);
}

async fn what_is_forgotten_leaves_no_row(ground: Ground) {
    let mut store = ground.open().await;
    let mut other = message(50, 5, "9.000");
    other.report.meter = "E2".into();
    other.report.info = vec![("predecessor".into(), "E1".into())];
    let mut remarked = message(49, 40, "3.000");
    remarked.report.info = vec![("n".into(), "1".into())];
    let messages = (1..=40).map(|seq| message(seq, 900 * seq.cast_signed(), &format!("{seq}.000")));
    let incoming = [batch(messages.chain([other.clone(), remarked])), vec![refused(None, b"{")]].concat();
    store.commit(&incoming).await.unwrap();
    let mut reader = ground.read().await;
    let meters = reader.meters().await.unwrap();
    assert_eq!(meters[1].predecessor.as_deref(), Some("E1"));
    let forget = async |before: Option<i64>| {
        let mut database = crate::store::forget(&ground.url()).await.unwrap();
        let weighed = database.weigh(&meters[0], before).await.unwrap();
        let mut gone = Forgotten::default();
        while let Some(more) = database.step(&meters[0], before).await.unwrap() {
            gone.messages += more.messages;
            gone.quarters += more.quarters;
            gone.remarks += more.remarks;
            gone.refused += more.refused;
        }
        assert_eq!(gone, weighed);
        assert!(database.wipe().await.unwrap());
        gone
    };
    // What was measured at the instant itself stays.
    let before = START + 900_000 * 11;
    assert_eq!(forget(Some(before)).await, Forgotten { messages: 11, quarters: 11, remarks: 1, refused: 1 });
    let (first, counts) =
        (reader.readings_after(&meters, Moment::utc(jiff::Timestamp::UNIX_EPOCH)).await, reader.counts().await);
    assert_eq!(first.unwrap()[0].0, message(11, 9900, "11.000").report);
    assert_eq!(counts.unwrap(), Counts { meters: 2, messages: 31, refused: 0 });
    assert_eq!(forget(None).await, Forgotten { messages: 30, quarters: 30, remarks: 0, refused: 0 });
    let left = reader.meters().await.unwrap();
    assert_eq!((left.len(), left[0].name.as_str(), &left[0].predecessor), (1, "E2", &None));
    assert_eq!(reader.counts().await.unwrap(), Counts { meters: 1, messages: 1, refused: 0 });
    // The gateway is not asked for it again, and what the meter sends from now on is of a new one.
    assert_eq!(counts_of(&mut store, message(7, 6300, "7.000")).await, [0, 0, 1, 0]);
    assert_eq!(counts_of(&mut store, message(60, 36_900, "41.000")).await, [1, 0, 0, 0]);
    let sql = "SELECT CAST(count(*) AS TEXT) FROM quarter_hour WHERE meter = 'E1'";
    assert_eq!(ground.column(sql).await, ["1"]);
}

async fn what_was_forgotten_is_written_anew_by_a_store_that_ran(ground: Ground) {
    let mut store = ground.open().await;
    let said = |seq: u64, at: i64| {
        let mut said = message(seq, at, &format!("{seq}.000"));
        said.report.info = vec![("text".into(), "the same".into())];
        said
    };
    assert_eq!(counts(&store.commit(&batch([said(1, 0), said(2, 10)])).await.unwrap()), [2, 0, 0, 0]);
    for (seq, before) in [(3, Some(START + 15_000)), (4, None)] {
        let meter = ground.read().await.meters().await.unwrap().remove(0);
        let mut database = crate::store::forget(&ground.url()).await.unwrap();
        while database.step(&meter, before).await.unwrap().is_some() {}
        // In the same quarter-hour, with the same remark.
        let again = said(seq, 10 * seq.cast_signed());
        assert_eq!(counts_of(&mut store, again.clone()).await, [1, 0, 0, 0]);
        let mut reader = ground.read().await;
        assert_eq!(reader.meters().await.unwrap().len(), 1);
        assert_eq!(reader.readings(None).await.unwrap(), [(again.report, again.received_at)]);
        let sql = "SELECT concat_ws(' ', meter, value) FROM quarter_hour";
        assert_eq!(ground.column(sql).await, [format!("E1 {seq}.000")]);
    }
}

async fn counts_of(store: &mut Box<dyn Database>, message: Message) -> [u64; 4] {
    counts(&store.commit(&batch([message])).await.unwrap())
}

/// Each of these in each database.
macro_rules! everywhere {
    ($($story:ident,)*) => {
        mod in_sqlite {
            $(#[tokio::test]
            async fn $story() {
                super::$story(super::Ground::sqlite()).await;
            })*
        }

        mod in_postgres {
            $(#[tokio::test]
            async fn $story() {
                super::$story(super::Ground::postgres()).await;
            })*
        }
    };
}

everywhere! {
    what_is_forgotten_leaves_no_row,
    what_was_forgotten_is_written_anew_by_a_store_that_ran,
    for_long_periods_few_values_are_read_and_say_the_same,
    the_views_have_the_same_columns_in_each_database,
    reports_leave_as_they_entered,
    each_message_counts_once,
    a_gateway_hears_of_its_latest_250_epochs_and_no_number_is_too_big,
    the_first_value_of_a_quarter_hour_stands_however_late_it_comes,
    where_a_counter_falls_is_known_however_late_the_values_come,
    old_messages_go_counted_back_from_the_newest_of_their_meter,
    the_view_shows_exact_decimals,
    what_a_meters_clock_says_makes_no_remark,
    refused_messages_are_bounded,
    messages_refused_for_a_newer_schema_are_read_after_an_upgrade,
    what_a_payload_may_hold_at_most_every_database_takes,
    what_the_database_does_not_take_is_refused_and_everything_else_is_stored,
    of_a_gateways_starts_the_last_thousand_are_remembered_and_an_older_one_adds_nothing,
}
