//! What leaves a store: registers at a moment, exports; backups and what is forgotten. From databases that are made here.

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use meterkast::{
    delivery::{Epoch, Ranges},
    moment::Moment,
    payload::{Envelope, Message},
    reading::{Clock, Medium, Reading, Register, Report, Suspect},
    store::{
        Database as _, Incoming, Reader as _,
        sqlite::{Reader, Sqlite},
    },
    unit::{Decimal, Unit},
};
use serde_json::{Value, value::RawValue};
use sqlx::{Connection as _, SqliteConnection, query_scalar, raw_sql};

use crate::parts::{BINARY, Folder, meterkast, program};

/// 2026-11-21T20:00:00+01:00.
const START: i64 = 1_795_287_600_000;

/// A database that is being made.
struct Made {
    folder: Folder,
    seq: u64,
    store: Sqlite,
}

fn reading(register: &'static str, value: &str, unit: &str) -> Reading {
    let value = Decimal::parse(value.as_bytes()).unwrap();
    Reading::now(Register::named(register), value, Unit::from_text(unit).unwrap())
}

fn set_day(storage: u64, at: &str, value: &str) -> Reading {
    let mut reading = reading("energy", value, "GJ");
    (reading.qualifiers.storage, reading.at) = (storage, Some(at.parse().unwrap()));
    reading
}

fn report(meter: &str, seconds: i64, readings: Vec<Reading>) -> Report<String> {
    Report {
        meter: meter.into(),
        medium: if meter.starts_with('K') { Medium::Heat } else { Medium::Electricity },
        protocol: if meter.starts_with('K') { "mbus" } else { "p1" }.into(),
        measured_at: Moment::from_millis(START + seconds * 1000, 60),
        clock: Clock::Meter,
        readings,
        info: Vec::new(),
        events: Vec::new(),
        unknown: Vec::new(),
    }
}

impl Made {
    async fn new() -> Self {
        let folder = Folder::new();
        let store = Sqlite::open(&folder.path("meterkast.db")).await.unwrap();
        Self { folder, seq: 0, store }
    }

    fn path(&self) -> PathBuf {
        self.folder.path("meterkast.db")
    }

    async fn store(&mut self, reports: impl IntoIterator<Item = Report<String>>) {
        let mut batch = Vec::new();
        for report in reports {
            self.seq += 1;
            let received_at = Moment::from_millis(report.measured_at.unwrap().millis() + 123, 0).unwrap();
            let envelope = Envelope {
                gateway: "gw-1".into(),
                epoch: Epoch::from_bits(1),
                seq: self.seq,
                prev: self.seq - 1,
                first: 1,
                missing: Ranges::new(),
            };
            batch.push(Incoming::Message(Message { envelope, received_at, report }));
        }
        self.store.commit(&batch).await.unwrap();
    }

    async fn refuse(&mut self, topic: &str) {
        let received_at = Moment::from_millis(START, 0).unwrap();
        let (topic, payload, reason) = (topic.to_owned(), b"{refused-secret".to_vec(), "no JSON".to_owned());
        let refused = Incoming::Refused { topic, payload, reason, schema: 0, envelope: None, received_at };
        self.store.commit(&[refused]).await.unwrap();
    }

    async fn seal(&mut self) {
        while self.store.keep_up(Duration::from_secs(10 * 365 * 86_400)).await.unwrap() {}
    }

    /// Lets go of it, as a daemon does that stops. Returns its folder and URL.
    async fn close(self) -> (Folder, String) {
        let url = format!("sqlite://{}", self.path().display());
        Box::new(self.store).close().await.unwrap();
        (self.folder, url)
    }
}

fn lines(stdout: &str) -> Vec<Value> {
    stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn execute(database: &Path, sql: &'static str) {
    let mut connection = SqliteConnection::connect(&format!("sqlite://{}", database.display())).await.unwrap();
    raw_sql(sql).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

/// What a register showed at a moment, as text: value and method, or why not.
fn at_moment(url: &str, at: &str, meter: &str, register: &str) -> String {
    let ended = meterkast(&["readings", "--store", url, "--at", at, "--meter", meter, "--format", "json"], b"");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let of_register = format!("\"register\":\"{register}\"");
    let line = ended.stdout.lines().find(|line| line.contains(&of_register) && line.contains("\"moment\""));
    let Some(line) = line else { return "no line".into() };
    // Numbers as they were written.
    let fields = |text: &str| serde_json::from_str::<BTreeMap<String, Box<RawValue>>>(text).unwrap();
    let (line, text) = (fields(line), |field: &RawValue| field.get().trim_matches('"').to_owned());
    assert_eq!(text(&line["meter"]), meter);
    let moment = fields(line["moment"].get());
    let shown = |name: &str| match moment[name].get() {
        "null" => "-".to_owned(),
        exact => text(&fields(exact)["value"]),
    };
    let how = moment.get("method").unwrap_or_else(|| &moment["reason"]);
    format!("{} {} {} {}", shown("before"), text(&moment["value"]), text(how), shown("after"))
}

#[tokio::test]
async fn registers_at_a_moment_say_how_they_are_known() {
    let mut made = Made::new().await;
    let telegram = |seconds, value| {
        report("E1", seconds, vec![reading("import_low", value, "kWh"), reading("power_import", "0.5", "kW")])
    };
    let mut suspect = telegram(120, "9999.000");
    suspect.readings[0].suspect = Some(Suspect::TooFast);
    let mut unsynchronised = telegram(900, "100.900");
    unsynchronised.clock = Clock::Unsynchronised;
    made.store([
        telegram(0, "100.000"),
        telegram(60, "100.010"),
        suspect,
        telegram(180, "100.010"),
        telegram(240, "100.041"),
        telegram(300, "0.500"),
        unsynchronised,
    ])
    .await;
    let (_folder, url) = made.close().await;
    for (at, expected) in [
        ("2026-11-21T19:59:59+01:00", "no line"),
        ("2026-11-21T20:00:00+01:00", "100.000 100.000 exact 100.010"),
        ("2026-11-21T20:00:30+01:00", "100.000 100.005 linear 100.010"),
        // Rounded down.
        ("2026-11-21T20:03:59+01:00", "100.010 100.040 linear 100.041"),
        // The suspect reading between is passed over.
        ("2026-11-21T20:01:30+01:00", "100.010 100.010 unchanged 100.010"),
        ("2026-11-21T20:02:00+01:00", "100.010 100.010 unchanged 100.010"),
        ("2026-11-21T20:04:30+01:00", "100.041 null the value fell between the readings before and after it 0.500"),
        ("2026-11-21T20:06:00+01:00", "0.500 null no reading after it can be relied on -"),
        ("2026-11-21T20:20:00+01:00", "- null the clock was not synchronised -"),
    ] {
        let moment = at_moment(&url, at, "E1", "import_low");
        assert_eq!(moment, expected, "{at}");
    }
    assert_eq!(at_moment(&url, "2026-11-21T20:00:30+01:00", "E1", "power_import"), "0.5 null it does not count 0.5");
    // The line itself is the last one that was said, whatever is thought of it.
    let ended = meterkast(&["readings", "--store", &url, "--at", "2026-11-21T20:02:30+01:00", "--format", "json"], b"");
    assert_eq!(
        ended.stdout.lines().next().unwrap(),
        "{\"meter\":\"E1\",\"medium\":\"electricity\",\"register\":\"import_low\",\"value\":9999.000,\"unit\":\"kWh\",\
         \"at\":\"2026-11-21T20:02:00+01:00\",\"clock\":\"meter\",\"qualifiers\":{\"suspect\":\"too_fast\"},\
         \"moment\":{\"value\":100.010,\"method\":\"unchanged\",\
         \"before\":{\"value\":100.010,\"unit\":\"kWh\",\"at\":\"2026-11-21T20:01:00+01:00\",\"storage\":0},\
         \"after\":{\"value\":100.010,\"unit\":\"kWh\",\"at\":\"2026-11-21T20:03:00+01:00\",\"storage\":0}}}"
    );
    let ended = meterkast(&["readings", "--store", &url, "--at", "2026-11-21T20:00:30+01:00"], b"");
    let table: Vec<String> =
        ended.stdout.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(
        table,
        [
            "METER MEDIUM REGISTER LAST UNIT AT CLOCK AT THE MOMENT NEXT AT",
            "E1 electricity import_low 100.000 kWh 2026-11-21T20:00:00+01:00 meter 100.005 linear 100.010 2026-11-21T20:01:00+01:00",
            "E1 electricity power_import 0.5 kW 2026-11-21T20:00:00+01:00 meter 0.5 2026-11-21T20:01:00+01:00",
        ]
    );
    let ended = meterkast(&["readings", "--store", &url, "--at", "2026-11-21T20:00:30+01:00", "--format", "csv"], b"");
    assert_eq!(
        ended.stdout,
        "meter,medium,register,value,unit,at,clock,storage,tariff,subunit,function,suspect,moment_value,method,\
         before_value,before_at,before_storage,after_value,after_at,after_storage\n\
         E1,electricity,import_low,100.000,kWh,2026-11-21T19:00:00.000Z,meter,0,0,0,,,100.005,linear,\
         100.000,2026-11-21T19:00:00.000Z,0,100.010,2026-11-21T19:01:00.000Z,0\n\
         E1,electricity,power_import,0.5,kW,2026-11-21T19:00:00.000Z,meter,0,0,0,,,,,\
         0.5,2026-11-21T19:00:00.000Z,0,0.5,2026-11-21T19:01:00.000Z,0\n"
    );
    let ended = meterkast(&["readings", "--store", &url, "--format", "csv"], b"");
    assert_eq!(
        ended.stdout,
        "meter,medium,register,value,unit,at,clock,storage,tariff,subunit,function,suspect\n\
         E1,electricity,import_low,100.900,kWh,2026-11-21T19:15:00.000Z,unsynchronised,0,0,0,,\n\
         E1,electricity,power_import,0.5,kW,2026-11-21T19:15:00.000Z,unsynchronised,0,0,0,,\n"
    );
}

#[tokio::test]
async fn what_a_meter_recorded_at_a_set_day_is_exact() {
    let mut made = Made::new().await;
    let newyear = "2025-12-31T23:59:00+01:00";
    let year = 366 * 86_400;
    made.store([
        // A week before the set day of 2025, and a week behind it; in 2027 it has moved on.
        report(
            "K1",
            -year + 27 * 86_400,
            vec![reading("energy", "10.000", "GJ"), set_day(1, "2024-12-31T23:59:00+01:00", "1.000")],
        ),
        report("K1", -year + 60 * 86_400, vec![reading("energy", "12.000", "GJ"), set_day(1, newyear, "11.111")]),
        // First read long after its set days, of which it records several.
        report(
            "K2",
            0,
            vec![
                reading("energy", "50.000", "GJ"),
                set_day(1, "2026-10-31T23:59:00+01:00", "48.000"),
                set_day(2, "2026-09-30T23:59:00+02:00", "45.000"),
            ],
        ),
    ])
    .await;
    let (_folder, url) = made.close().await;
    for (meter, at, expected) in [
        ("K1", newyear, "11.111 11.111 exact 12.000"),
        // The end of that day, as people write it.
        ("K1", "2026-01-01T00:00:00+01:00", "11.111 11.111 set_day 12.000"),
        ("K1", "2026-01-01T00:00:00Z", "11.111"),
        ("K2", "2026-10-01T00:00:00+02:00", "45.000 45.000 set_day 48.000"),
        ("K2", "2026-10-16T12:00:00+02:00", "45.000 46."),
        ("K2", "2026-11-01T00:00:00+01:00", "48.000 48.000 set_day 50.000"),
        ("K2", "2026-09-30T00:00:00+02:00", "no line"),
        ("K2", "2026-12-01T00:00:00+01:00", "50.000 null the last reading is earlier -"),
    ] {
        let moment = at_moment(&url, at, meter, "energy");
        assert!(moment.starts_with(expected), "{meter} {at}: {moment}");
    }
    // Before the first reading the last exact value is what was recorded, and says so.
    let ended = meterkast(
        &["readings", "--store", &url, "--at", "2026-10-16T12:00:00+02:00", "--meter", "K2", "--format", "json"],
        b"",
    );
    let lines = lines(&ended.stdout);
    assert_eq!(lines.len(), 1);
    assert_eq!((lines[0]["value"].to_string().as_str(), &lines[0]["qualifiers"]["storage"]), ("45.0", &2.into()));
    let ended = meterkast(&["readings", "--store", &url, "--at", "2020-01-01T00:00:00Z"], b"");
    assert_eq!((ended.code, ended.stdout.lines().count()), (Some(0), 1));
    assert!(ended.stderr.contains("K1 and 1 more meters: nothing was read at or before"), "{}", ended.stderr);
}
