//! What leaves a store: registers at a moment, exports; backups and what is forgotten. From databases that are made here.

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
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
        // What it recorded for one day lacks a decimal; for the other it was another meter, or is wrong.
        report("K3", -40 * 86_400, vec![reading("energy", "30.009", "GJ")]),
        report(
            "K3",
            0,
            vec![
                reading("energy", "50.000", "GJ"),
                set_day(1, "2026-10-31T23:59:00+01:00", "30.00"),
                set_day(2, "2026-11-10T23:59:00+01:00", "29.999"),
                set_day(3, "2026-11-11T23:59:00+01:00", "50.001"),
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
        ("K3", "2026-11-01T00:00:00+01:00", "30.00 30.00 set_day"),
        ("K3", "2026-11-11T00:00:00+01:00", "29.999 null what was recorded for that day does not lie between"),
        ("K3", "2026-11-12T00:00:00+01:00", "50.001 null what was recorded for that day does not lie between"),
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
    assert!(ended.stderr.contains("K1 and 2 more meters: nothing was read at or before"), "{}", ended.stderr);
}

#[tokio::test]
async fn names_that_no_meter_has_are_answered_with_those_that_are() {
    let mut made = Made::new().await;
    made.store([
        report("E0043007052870318", 0, vec![reading("import_low", "1", "kWh")]),
        report("=cmd()\u{1b}[2J", 0, vec![reading("import_low", "1", "kWh")]),
    ])
    .await;
    let (folder, url) = made.close().await;
    let out = folder.path("out.csv");
    let out = out.to_str().unwrap();
    for command in [&["readings"][..], &["export", "--out", out]] {
        let ended = meterkast(&[command, &["--store", &url, "--meter", "E0043007052870381"]].concat(), b"");
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{command:?}");
        let said = "the store has no meter E0043007052870381; it has E0043007052870318, =cmd()\\x1b[2J\n";
        assert_eq!(ended.stderr, format!("meterkast: {said}"));
    }
    assert!(!Path::new(out).exists());
    // Hostile names reach neither a terminal nor a spreadsheet.
    for command in [&["export"][..], &["readings", "--format", "csv"]] {
        let ended = meterkast(&[command, &["--store", &url]].concat(), b"");
        assert!(ended.stdout.contains("\n'=cmd()\\x1b[2J,electricity,import_low,"), "{}", ended.stdout);
    }
    for (arguments, said) in [
        (&["export", "--store", &url, "--from", "2026-01-01"][..], "is not a date and time with an offset"),
        (
            &["export", "--store", &url, "--from", "2026-01-02T00:00:00Z", "--until", "2026-01-02T00:00:00Z"],
            "--from is not before --until",
        ),
        (&["export", "--store", &url, "--out", "/nowhere/x.csv"], "--out /nowhere/x.csv: there is no folder /nowhere;"),
        (
            &["export", "--store", &url, "--out", "/sys/x.csv"],
            "--out /sys/x.csv: the folder /sys cannot be written: permission denied",
        ),
        (&["export", "--store", &url, "--out", "/"], "--out /: is a directory; name a file, such as /readings.csv"),
        (&["export", "--store", "sqlite:///nowhere.db"], "there is no database here"),
        (&["decode", "--format", "csv"], "invalid value 'csv'"),
        (&["status", "--format", "csv"], "invalid value 'csv'"),
    ] {
        let ended = meterkast(arguments, b"");
        assert!(ended.code != Some(0) && ended.stdout.is_empty(), "{arguments:?}: {ended:?}");
        assert!(ended.stderr.contains(said), "{arguments:?}: {}", ended.stderr);
    }
    #[cfg(not(feature = "parquet"))]
    {
        let ended = meterkast(&["export", "--store", &url, "--format", "parquet"], b"");
        assert_eq!(ended.code, Some(2));
        assert!(ended.stderr.contains("cargo build --release --features parquet"), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn an_export_has_every_reading_once() {
    let mut made = Made::new().await;
    // Sealed hours, unsealed ones, two of one instant, and another meter between.
    let telegrams = 9000;
    for begin in (0..telegrams).step_by(1000) {
        let telegram = |second: i64| {
            let value = format!("{}.{:03}", second / 1000, second % 1000);
            report("E1", second, vec![reading("import_low", &value, "kWh"), reading("power_import", "-0.5", "kW")])
        };
        made.store((begin..begin + 1000).map(telegram)).await;
    }
    made.store([
        report("E1", 10, vec![reading("import_low", "77.777", "kWh")]),
        report("K1", 20, vec![reading("energy", "1.5", "GJ"), set_day(1, "2025-12-31T23:59:00+01:00", "1.25")]),
        report("K2", 20, vec![reading("energy", "-7", "GJ")]),
    ])
    .await;
    made.seal().await;
    let (folder, url) = made.close().await;
    let out = folder.path("out.csv");
    let arguments = ["export", "--store", &url, "--out", out.to_str().unwrap()];
    let ended = meterkast(&arguments, b"");
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""));
    assert_eq!(ended.stderr, format!("{}: {} readings\n", out.display(), 2 * telegrams + 4));
    let text = fs::read_to_string(&out).unwrap();
    let mut rows = text.lines();
    let heads =
        "meter,medium,register,measured_at,clock,value,unit,storage,tariff,subunit,function,at,suspect,received_at";
    assert_eq!(rows.next(), Some(heads));
    assert_eq!(rows.clone().count(), 2 * telegrams as usize + 4);
    let (mut second, mut more) = (0, Vec::new());
    for row in rows {
        if row.starts_with("E1,electricity,import_low,") && !row.contains(",77.777,") {
            let at = Moment::from_millis(START + second * 1000, 0).unwrap().instant();
            let received = Moment::from_millis(START + second * 1000 + 123, 0).unwrap().instant();
            let value = format!("{}.{:03}", second / 1000, second % 1000);
            assert_eq!(row, format!("E1,electricity,import_low,{at:.3},meter,{value},kWh,0,0,0,,,,{received:.3}"));
            second += 1;
        } else if !row.contains(",power_import,") {
            more.push(row);
        }
    }
    assert_eq!(second, telegrams);
    assert_eq!(
        more,
        [
            "E1,electricity,import_low,2026-11-21T19:00:10.000Z,meter,77.777,kWh,0,0,0,,,,2026-11-21T19:00:10.123Z",
            "K1,heat,energy,2026-11-21T19:00:20.000Z,meter,1.5,GJ,0,0,0,,,,2026-11-21T19:00:20.123Z",
            "K1,heat,energy,2026-11-21T19:00:20.000Z,meter,1.25,GJ,1,0,0,,2025-12-31T22:59:00.000Z,,2026-11-21T19:00:20.123Z",
            // Readers that guess from the first rows must not guess integers.
            "K2,heat,energy,2026-11-21T19:00:20.000Z,meter,-7.0,GJ,0,0,0,,,,2026-11-21T19:00:20.123Z",
        ]
    );
    // The same on standard output and as JSON.
    assert_eq!(meterkast(&["export", "--store", &url], b"").stdout, text);
    let ended = meterkast(&["export", "--store", &url, "--format", "json", "--meter", "K1"], b"");
    assert_eq!(
        ended.stdout.lines().nth(1).unwrap(),
        "{\"meter\":\"K1\",\"medium\":\"heat\",\"register\":\"energy\",\"measured_at\":\"2026-11-21T19:00:20.000Z\",\
         \"clock\":\"meter\",\"value\":1.25,\"unit\":\"GJ\",\"storage\":1,\"tariff\":0,\"subunit\":0,\"function\":null,\
         \"at\":\"2025-12-31T22:59:00.000Z\",\"suspect\":null,\"received_at\":\"2026-11-21T19:00:20.123Z\"}"
    );
    // A part: from is in it, until is not.
    let part = ["--from", "2026-11-21T20:30:00+01:00", "--until", "2026-11-21T20:30:02+01:00"];
    let ended = meterkast(&[&["export", "--store", &url][..], &part].concat(), b"");
    assert_eq!(ended.stdout.lines().filter(|row| row.contains("import_low")).count(), 2);
    assert!(ended.stdout.contains("2026-11-21T19:30:00.000Z") && ended.stdout.contains("2026-11-21T19:30:01.000Z"));
    // Quarter-hours.
    let ended = meterkast(&["export", "--store", &url, "--quarters", "--meter", "E1"], b"");
    let quarters: Vec<&str> = ended.stdout.lines().skip(1).collect();
    assert_eq!(quarters.len(), 10);
    assert_eq!(quarters[0], "E1,electricity,import_low,2026-11-21T19:00:00.000Z,,0.000,kWh,0,0,0,,,,");
    assert_eq!(quarters[9], "E1,electricity,import_low,2026-11-21T21:15:00.000Z,,8.100,kWh,0,0,0,,,,");
    let ended = meterkast(&[&["export", "--store", &url, "--quarters"][..], &part].concat(), b"");
    assert_eq!(ended.stdout.lines().count(), 2);
    // Nothing is a file with heads only, and said.
    let ended = meterkast(&[&arguments[..], &["--until", "2020-01-01T00:00:00Z"]].concat(), b"");
    assert_eq!((ended.code, ended.stderr), (Some(0), format!("no readings in {url} in that time\n")));
    assert_eq!(fs::read_to_string(&out).unwrap(), format!("{heads}\n"));
    // Whoever reads a part of it ends it quietly.
    let mut child = program(BINARY);
    let mut child =
        child.args(["export", "--store", &url]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut head = [0; 100];
    child.stdout.take().unwrap().read_exact(&mut head).unwrap();
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!((child.wait().unwrap().code(), stderr.as_str()), (Some(0), ""));
    // A device is written to and stays what it is.
    let ended = meterkast(&["export", "--store", &url, "--out", "/dev/null"], b"");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
    assert_eq!(
        fs::read_dir(folder.path(""))
            .unwrap()
            .filter(|file| { file.as_ref().unwrap().file_name().to_string_lossy().ends_with(".part") })
            .count(),
        0
    );
}

/// Damage half-way leaves the file that was there.
#[tokio::test]
async fn half_an_export_does_not_take_the_name() {
    let mut made = Made::new().await;
    let telegram = |second: i64| report("E1", second, vec![reading("import_low", "1.5", "kWh")]);
    made.store((0..7200).map(telegram)).await;
    made.store([telegram(20_000)]).await;
    made.seal().await;
    let (folder, url) = made.close().await;
    let sql = "UPDATE sealed SET block = zeroblob(100) WHERE id = (SELECT max(id) FROM sealed)";
    execute(&folder.path("meterkast.db"), sql).await;
    let out = folder.file("out.csv", "before");
    let ended = meterkast(&["export", "--store", &url, "--out", out.to_str().unwrap()], b"");
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("meterkast.db"), "{}", ended.stderr);
    assert_eq!(fs::read_to_string(&out).unwrap(), "before");
}

/// The files beside a database, and itself, in which a text stands. Another process looks: to close a file here would end the locks that
/// SQLite has on it.
fn traces(database: &Path, text: &str) -> Vec<String> {
    let found = Command::new("grep").args(["-rlaF", text]).arg(database.parent().unwrap()).output().unwrap();
    assert!(found.stderr.is_empty() && found.status.code() < Some(2), "{found:?}");
    String::from_utf8(found.stdout).unwrap().lines().map(str::to_owned).collect()
}

async fn generation(database: &Path) -> String {
    let mut connection = SqliteConnection::connect(&format!("sqlite://{}", database.display())).await.unwrap();
    let generation = query_scalar("SELECT coalesce(max(generation), 'none') FROM store");
    let generation = generation.fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    generation
}

async fn messages(database: &Path) -> u64 {
    Reader::open(database).await.unwrap().counts().await.unwrap().messages
}

fn telegram(second: i64) -> Report<String> {
    report("E1", second, vec![reading("import_low", &format!("{}.5", 1000 + second), "kWh")])
}

#[tokio::test]
async fn a_backup_is_made_while_the_store_writes_and_put_back_is_a_new_generation() {
    let mut made = Made::new().await;
    made.store((0..5000).map(telegram)).await;
    made.seal().await;
    let (database, url) = (made.path(), format!("sqlite://{}", made.path().display()));
    fs::set_permissions(&database, fs::Permissions::from_mode(0o640)).unwrap();
    let file = made.folder.path("backup.db");
    let backup = file.to_str().unwrap();
    let ended = meterkast(&["backup", backup, "--store", &url], b"");
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""), "{}", ended.stderr);
    let bytes = fs::metadata(&file).unwrap().len();
    let said = "5000 messages of 1 meters, the newest received 2026-11-21T20:23:19.123Z";
    assert_eq!(ended.stderr, format!("{backup}: {bytes} bytes; {said}\n"));
    // As readable as the database, and no more.
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&file), 0o640);
    // The store goes on.
    made.store((5000..5100).map(telegram)).await;
    let ended = meterkast(&["backup", backup, "--store", &url], b"");
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("is there already; --force overwrites it"), "{}", ended.stderr);
    assert_eq!(messages(&file).await, 5000);
    let ended = meterkast(&["backup", backup, "--store", &url, "--force"], b"");
    assert_eq!((ended.code, messages(&file).await), (Some(0), 5100), "{}", ended.stderr);
    // Nothing may be put back under a store that runs.
    let ended = meterkast(&["restore", backup, "--store", &url], b"");
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("a daemon writes this database; stop it first"), "{}", ended.stderr);
    made.store([telegram(6000)]).await;
    let generation_before = generation(&database).await;
    let Made { folder, store, .. } = made;
    // As a kill leaves it: with what stands in the log alone.
    drop(store);
    let ended = meterkast(&["restore", backup, "--store", &url], b"");
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""), "{}", ended.stderr);
    let kept = ended.stderr.lines().find_map(|line| line.strip_prefix("what stood there is kept as ")).unwrap();
    assert_eq!((messages(Path::new(kept)).await, messages(&database).await), (5101, 5100));
    assert_eq!(generation(&database).await, "none");
    let store = Sqlite::open(&database).await.unwrap();
    assert_ne!(store.generation(), generation_before);
    Box::new(store).close().await.unwrap();
    // Where nothing was before.
    let elsewhere = folder.path("new/place.db");
    let ended = meterkast(&["restore", backup, "--store", &format!("sqlite://{}", elsewhere.display())], b"");
    assert_eq!((ended.code, messages(&elsewhere).await), (Some(0), 5100), "{}", ended.stderr);
    assert!(!ended.stderr.contains("kept as"), "{}", ended.stderr);
    assert_ne!(Sqlite::open(&elsewhere).await.unwrap().generation(), generation_before);
}

#[tokio::test]
async fn what_is_no_sound_backup_is_not_put_back() {
    let mut made = Made::new().await;
    made.store((0..5000).map(telegram)).await;
    let (folder, url) = made.close().await;
    let database = folder.path("meterkast.db");
    let before = fs::read(&database).unwrap();
    let mut torn = before.clone();
    torn.truncate(before.len() / 2);
    let mut damaged = before.clone();
    for page in (3..before.len() / 4096 - 1).step_by(2) {
        damaged[page * 4096..page * 4096 + 200].fill(0xA5);
    }
    let newer = folder.file("newer.db", &before);
    execute(&newer, "INSERT INTO _sqlx_migrations SELECT 9999, '', '', 1, '', 0").await;
    let foreign = folder.path("foreign.db");
    fs::write(&foreign, b"").unwrap();
    execute(&foreign, "CREATE TABLE t (x)").await;
    let path = |name: &str, content: &[u8]| folder.file(name, content).to_str().unwrap().to_owned();
    for (file, said) in [
        (
            path(
                "text.db",
                b"no database, but long enough to be taken for the header of one, if nobody looks at it closely",
            ),
            "text.db: is no backup of a meterkast database; name a file that `meterkast backup` made",
        ),
        (path("empty.db", b""), "is no backup of a meterkast database"),
        (path("torn.db", &torn), "is damaged; take another backup"),
        (path("damaged.db", &damaged), "is damaged; take another backup"),
        (newer.to_str().unwrap().to_owned(), "written by a newer meterkast (tables of version 9999)"),
        (foreign.to_str().unwrap().to_owned(), "is no backup of a meterkast database"),
        (folder.path("none.db").to_str().unwrap().to_owned(), "there is no such file; name one"),
        (folder.path("").to_str().unwrap().to_owned(), "is a directory; name a file that `meterkast backup` made"),
        (database.to_str().unwrap().to_owned(), "is the database itself"),
    ] {
        let ended = meterkast(&["restore", &file, "--store", &url], b"");
        assert!(ended.code != Some(0) && ended.stderr.contains(said), "{file}: {ended:?}");
        assert_eq!(fs::read(&database).unwrap(), before, "{file}");
        // Where there was nothing there is nothing afterwards.
        let empty = tempfile::tempdir_in(folder.path("")).unwrap();
        let elsewhere = format!("sqlite://{}", empty.path().join("r.db").display());
        if !file.ends_with("meterkast.db") {
            assert_ne!(meterkast(&["restore", &file, "--store", &elsewhere], b"").code, Some(0), "{file}");
        }
        assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0, "{file}");
        if !file.ends_with("meterkast.db") {
            let to = folder.path("copy.db");
            let from = format!("sqlite://{file}");
            let ended = meterkast(&["backup", to.to_str().unwrap(), "--store", &from], b"");
            assert!(ended.code != Some(0) && !to.exists(), "{file}: {ended:?}");
        }
    }
    for (arguments, said) in [
        (["backup", "/nowhere/copy.db"], "/nowhere/copy.db: there is no folder /nowhere; make it, or name another"),
        (["backup", "/proc"], "/proc: is a directory; name a file, such as /proc/meterkast.db"),
        (["backup", database.to_str().unwrap()], "is the database itself"),
        (["backup", "/dev/null"], "/dev/null"),
    ] {
        let ended = meterkast(&[&arguments[..], &["--store", &url, "--force"]].concat(), b"");
        assert_eq!(ended.code, Some(2), "{arguments:?}");
        assert!(ended.stderr.contains(said), "{}", ended.stderr);
    }
    let left: Vec<_> = fs::read_dir(folder.path("")).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("part")), "{left:?}");
}

#[tokio::test]
async fn a_forgotten_meter_leaves_no_trace() {
    let mut made = Made::new().await;
    let secret = "E-VERY-SECRET-METER";
    let of_secret = |second: i64| {
        let mut report =
            report(secret, second, vec![reading("import_low", &format!("{}.125", 7_654_000 + second), "kWh")]);
        report.info = vec![("text".into(), format!("secret-text-{}", second / 1000).into())];
        report
    };
    let other = |second: i64| {
        let mut report = telegram(second);
        if second == 0 {
            report.info = vec![("predecessor".into(), "E-ANOTHER".into())];
        }
        report
    };
    for begin in (0..9000).step_by(1000) {
        made.store((begin..begin + 1000).flat_map(|second| [of_secret(second), other(second)])).await;
        // Sealing leaves rows in free pages.
        made.seal().await;
    }
    made.refuse(&format!("meterkast/gw-1/{secret}/telegram")).await;
    made.refuse("meterkast/gw-1/E1/backlog").await;
    let (database, url) = (made.path(), format!("sqlite://{}", made.path().display()));
    assert!(!traces(&database, "7654123125").is_empty() || !traces(&database, secret).is_empty());
    assert!(!traces(&database, "secret-text").is_empty());
    let forget = ["forget", secret, "--store", &url];
    // Nobody can be asked here.
    let ended = meterkast(&forget, b"y\n");
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""));
    assert!(
        ended.stderr.contains("  9000 messages, 10 registers at quarter-hours, 9 texts, 1 messages that could"),
        "{}",
        ended.stderr
    );
    assert!(ended.stderr.contains("--yes deletes without asking"), "{}", ended.stderr);
    assert_eq!(messages(&database).await, 18_000);
    // The first hour and a half: within a sealed hour.
    let before = ["--before", "2026-11-21T21:30:00+01:00", "--yes"];
    let ended = meterkast(&[&forget[..], &before].concat(), b"");
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("5400 messages and 6 registers at quarter-hours are deleted"), "{}", ended.stderr);
    let ended = meterkast(&["export", "--store", &url, "--meter", secret], b"");
    let rows: Vec<&str> = ended.stdout.lines().skip(1).collect();
    assert_eq!(rows.len(), 3600);
    assert!(rows[0].contains(",2026-11-21T20:30:00.000Z,meter,7659400.125,"), "{}", rows[0]);
    assert!(traces(&database, "secret-text-4").is_empty() && !traces(&database, "secret-text-5").is_empty());
    let ended = meterkast(&[&forget[..], &before].concat(), b"");
    assert!(
        ended.stderr.ends_with(": the store has nothing from before 2026-11-21T21:30:00+01:00\n"),
        "{}",
        ended.stderr
    );
    // The store goes on meanwhile and after it; and its own rows are whole.
    made.store([telegram(9000)]).await;
    // Also where nobody hears what it says.
    let mut ended = Command::new(BINARY);
    ended.args([&forget[..], &["--yes"]].concat()).stderr(fs::File::options().write(true).open("/dev/full").unwrap());
    assert_eq!(ended.status().unwrap().code(), Some(0));
    made.store([telegram(9001)]).await;
    for trace in [secret, "secret-text", "765412", "7654123125", "refused-secret"] {
        let expected = usize::from(trace == "refused-secret");
        assert_eq!(traces(&database, trace).len(), expected, "{trace}");
    }
    let counts = Reader::open(&database).await.unwrap().counts().await.unwrap();
    assert_eq!((counts.meters, counts.messages, counts.refused), (1, 9002, 1));
    let ended = meterkast(&["export", "--store", &url], b"");
    assert_eq!(ended.stdout.lines().count(), 9003);
    // It was delivered, and stays so: nothing comes again.
    let mut again = of_secret(1);
    again.measured_at = Moment::from_millis(START + 1000, 60);
    let envelope = Envelope {
        gateway: "gw-1".into(),
        epoch: Epoch::from_bits(1),
        seq: 3,
        prev: 1,
        first: 1,
        missing: Ranges::new(),
    };
    let message = Message { envelope, received_at: Moment::from_millis(START, 0).unwrap(), report: again };
    let committed = made.store.commit(&[Incoming::Message(message)]).await.unwrap();
    assert_eq!((committed.again, committed.stored), (1, 0));
    // What it sends anew is that of a new meter.
    made.store([of_secret(10_000)]).await;
    assert_eq!(messages(&database).await, 9003);
    let ended = meterkast(&["forget", "E-VERY-SECRET", "--store", &url, "--yes"], b"");
    assert_eq!(ended.code, Some(2));
    assert!(
        ended.stderr.contains("the store has no meter E-VERY-SECRET; it has E-VERY-SECRET-METER, E1"),
        "{}",
        ended.stderr
    );
    for table in ["message", "sealed", "quarter", "series", "remark", "fall"] {
        let sql = format!("SELECT count(*) FROM {table} WHERE meter NOT IN (SELECT id FROM meter)");
        let mut connection = SqliteConnection::connect(&url).await.unwrap();
        let count: i64 = query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&mut connection).await.unwrap();
        assert_eq!(count, 0, "{table}");
        connection.close().await.unwrap();
    }
}

/// A transaction that is open elsewhere keeps deleted data in the log: that is said.
#[tokio::test]
async fn who_reads_an_older_state_keeps_it_and_that_is_said() {
    let mut made = Made::new().await;
    made.store((0..100).map(telegram)).await;
    let (folder, url) = made.close().await;
    let mut reader = SqliteConnection::connect(&url).await.unwrap();
    raw_sql("BEGIN; SELECT count(*) FROM message").execute(&mut reader).await.unwrap();
    let ended = meterkast(&["forget", "E1", "--store", &url, "--yes"], b"");
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("it goes when that has ended and the store is restarted"), "{}", ended.stderr);
    raw_sql("ROLLBACK").execute(&mut reader).await.unwrap();
    reader.close().await.unwrap();
    assert_eq!(messages(&folder.path("meterkast.db")).await, 0);
}
