//! A bus on a pseudo-terminal, read by the real daemon and by the commands, with the faults that buses have.

use std::{
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use meterkast::{
    mbus::Frame,
    moment::Moment,
    simulate::{Bus, bus::Description},
};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    task::JoinHandle,
};
use tokio_serial::{SerialPort, SerialStream};

use crate::parts::{Broker, Client, Folder, Meter, Meterkast, Wire, meterkast, until};

/// A virtual bus behind a name that stays, as an adapter's does.
pub(crate) struct Line {
    pub(crate) bus: Arc<Mutex<Bus>>,
    /// What is on the line instead of answers.
    flood: Arc<Mutex<Option<u8>>>,
    pub(crate) path: PathBuf,
    served: Option<JoinHandle<()>>,
}

impl Line {
    /// The meters stand still unless they are told the time, so that every value is known.
    pub(crate) fn new(path: PathBuf, meters: &str) -> Self {
        let description: Description = toml::from_str(&format!("baud = 9600\n{meters}")).unwrap();
        let bus = Bus::new(description, "2026-11-22T12:00:00+01:00".parse::<Moment>().unwrap()).unwrap();
        let mut line = Self { bus: Arc::new(Mutex::new(bus)), flood: Arc::default(), path, served: None };
        line.plug_in();
        line
    }

    fn plug_in(&mut self) {
        let (ours, theirs) = SerialStream::pair().unwrap();
        let _ = std::fs::remove_file(&self.path);
        symlink(theirs.name().unwrap(), &self.path).unwrap();
        // Both ends have the settings of whoever opened it.
        let rate = |ours: &SerialStream| ours.baud_rate().unwrap();
        let served = serve(self.bus.clone(), self.flood.clone(), ours, rate);
        self.served = Some(tokio::spawn(async move {
            // Without it our end would hang up with whoever reads the bus, and tokio would read it without rest.
            let _theirs = theirs;
            served.await;
        }));
    }

    /// Pulls the adapter out.
    pub(crate) async fn unplug(&mut self) {
        let served = self.served.take().unwrap();
        served.abort();
        let _ = served.await;
        std::fs::remove_file(&self.path).unwrap();
    }

    /// By meter: a register, its value now and at the set day.
    pub(crate) fn books(&self) -> Vec<(String, String, String, String)> {
        let book = |slave: &meterkast::simulate::slave::Slave| {
            let (register, now, then) = slave.book();
            (slave.secondary().to_string(), register.to_string(), now.to_string(), then.to_string())
        };
        self.bus.lock().unwrap().slaves().iter().map(book).collect()
    }
}

/// Hands on what a master sends and the bus answers, for ever.
async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    bus: Arc<Mutex<Bus>>,
    flood: Arc<Mutex<Option<u8>>>,
    mut ours: S,
    rate: impl Fn(&S) -> u32,
) {
    let began = Instant::now();
    let mut buffer = [0; 512];
    loop {
        let flooded = *flood.lock().unwrap();
        tokio::select! {
            read = ours.read(&mut buffer) => match read {
                Ok(count @ 1..) if flooded.is_none() => {
                    let mut bus = bus.lock().unwrap();
                    bus.set_baud(rate(&ours));
                    bus.handle_bytes(began.elapsed(), &buffer[..count]);
                }
                Ok(1..) => {}
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            () = tokio::time::sleep(Duration::from_millis(2)) => {
                let mut bytes = bus.lock().unwrap().poll_bytes(began.elapsed());
                bytes.extend(flooded.map(|byte| [byte; 3]).into_iter().flatten());
                let _ = tokio::time::timeout(Duration::from_millis(20), ours.write_all(&bytes)).await;
            }
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(served) = &self.served {
            served.abort();
        }
    }
}

fn config(folder: &Folder, line: &Line, broker: &Broker, meters: &str) -> PathBuf {
    let text = format!(
        "[gateway]\nid = \"gw-1\"\nclock = \"always\"\n{}[journal]\npath = \"{}\"\n[store]\nurl = \"sqlite://{}\"\n\
         commit = \"50ms\"\n[[mbus]]\nport = \"{}\"\nbaud = 9600\ninterval = \"1s\"\n{meters}",
        broker.section(),
        folder.path("journal").display(),
        folder.path("m.db").display(),
        line.path.display()
    );
    folder.file("c.toml", text)
}

pub(crate) fn registers(database: &Path) -> Vec<Value> {
    let store = format!("sqlite://{}", database.display());
    let ended = meterkast(&["readings", "--store", &store, "--format", "json"], b"");
    ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub(crate) const HOUSE: &str = r#"
[[meter]]
meter = "KAM-12345678-1B-04"
address = 1
[[meter]]
meter = "LUG-23456789-07-0C"
address = 2
counts-in = "kWh"
telegrams = 3
[[meter]]
meter = "EFE-34567890-00-06"
address = 3
status = 4
"#;

pub(crate) const METERS: &str = "[[mbus.meter]]\naddress = 1\n[[mbus.meter]]\naddress = \"23456789\"\n[[mbus.meter]]\naddress = \"EFE-34567890-00-06\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_bus_is_read_into_the_store() {
    let folder = Folder::new();
    let line = Line::new(folder.path("bus"), HOUSE);
    let broker = Broker::start().await;
    let client = Client::of(broker.port).await;
    let mut daemon = Meterkast::run(&config(&folder, &line, &broker, METERS));
    daemon.says("meter EFE-34567890-00-06: is read").await;
    for (meter, register, now, then) in line.books() {
        let states = client.receives(1, &format!("{meter}/state")).await;
        assert_eq!(states[0].json()[&register].to_string(), now, "{states:?}");
        let telegrams = client.receives(2, &format!("{meter}/telegram")).await;
        let message = telegrams[0].json();
        assert_eq!((&message["protocol"], &message["clock"]), (&"mbus".into(), &"gateway".into()));
        assert_eq!(message["info"]["meter_time"], "2026-11-22T12:00:00+01:00");
        let stored = message["readings"].as_array().unwrap().iter().find(|reading| reading["storage"] == 1).unwrap();
        assert_eq!(stored["value"].to_string(), then);
        assert_eq!(stored["at"], "2025-12-31T23:59:00+01:00");
        assert_eq!(message["unknown"].as_array().unwrap().len(), 0);
    }
    assert_eq!(client.under("EFE-34567890-00-06/telegram")[0].json()["info"]["status"], "low battery");
    let stored = until("readings in the store", async || {
        let stored = registers(&folder.path("m.db"));
        line.books().iter().all(|(meter, ..)| stored.iter().any(|line| line["meter"] == **meter)).then_some(stored)
    })
    .await;
    for (meter, register, now, _) in line.books() {
        let is = |line: &&Value| {
            line["meter"] == *meter && line["register"] == *register && line["at"] != "2025-12-31T23:59:00+01:00"
        };
        assert_eq!(stored.iter().find(is).unwrap()["value"].to_string(), now, "{meter}");
    }
    assert!(daemon.terminate().await.0.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_faults_of_a_bus_are_named_and_pass_and_nothing_wrong_is_stored() {
    let folder = Folder::new();
    let mut line = Line::new(
        folder.path("bus"),
        &format!(
            "{HOUSE}[[meter]]\nmeter = \"SON-45678901-01-04\"\naddress = 4\ntelegrams = 2\nbreaks-off = true\nalso-answers = 5\n"
        ),
    );
    let broker = Broker::start().await;
    let client = Client::of(broker.port).await;
    let meters =
        format!("{METERS}[[mbus.meter]]\naddress = 4\n[[mbus.meter]]\naddress = 5\n[[mbus.meter]]\naddress = 6\n");
    let mut daemon = Meterkast::run(&config(&folder, &line, &broker, &meters));
    daemon.says("meter EFE-34567890-00-06: is read").await;
    // A truncated multi-telegram, a slave that answers for another, and one that is not there.
    daemon.says("meter 4: sent 1 of its telegrams, and the next did not come: does not answer").await;
    daemon.says("meter 5: SON-45678901-01-04 (address 4) answers instead").await;
    daemon.says("meter 6: does not answer").await;
    // The adapter is pulled out, and comes back.
    line.unplug().await;
    daemon.says("it is opened again as soon as it is back").await;
    daemon.says("is the adapter plugged in?").await;
    let before = client.under("KAM-12345678-1B-04/telegram").len();
    line.plug_in();
    client.receives(before + 2, "KAM-12345678-1B-04/telegram").await;
    daemon.says_times(2, "meter 1: is read").await;
    // A short circuit: the line is held low.
    *line.flood.lock().unwrap() = Some(0);
    daemon.says("meter 1: the line is held low: a short circuit on the bus").await;
    *line.flood.lock().unwrap() = None;
    daemon.says_times(3, "meter 1: is read").await;
    // Another master.
    *line.flood.lock().unwrap() = Some(0x5A);
    daemon.says("meter 1: the line is never quiet").await;
    *line.flood.lock().unwrap() = None;
    daemon.says_times(4, "meter 1: is read").await;
    // An echo from one moment to the next.
    line.bus.lock().unwrap().set_echo(true);
    daemon.says("the converter sends back what it is sent").await;
    let before = client.under("KAM-12345678-1B-04/telegram").len();
    client.receives(before + 2, "KAM-12345678-1B-04/telegram").await;
    line.bus.lock().unwrap().set_echo(false);
    daemon.says("no echo any more").await;
    // Health has the state of each meter.
    let health = until("health names the meters", async || {
        let health = client.under("gw-1/health").last()?.json();
        (health["meters"]["mbus/1"]["state"] == "is read").then_some(health)
    })
    .await;
    let absent = &health["meters"]["mbus/6"];
    assert!(absent["state"].as_str().unwrap().starts_with("does not answer"), "{health}");
    assert!(absent["ok"] == false && absent["read_at"].is_null(), "{health}");
    for (section, name, time) in [("ports", "mbus", "telegram_at"), ("meters", "mbus/1", "read_at")] {
        let at = health[section][name][time].as_str().unwrap();
        assert!(at >= health["started_at"].as_str().unwrap() && at <= health["at"].as_str().unwrap(), "{health}");
    }
    assert_eq!(health["ports"]["mbus"]["state"], "open");
    assert!(health["rejected"]["silent"].as_u64().unwrap() >= 3, "{health}");
    assert!(daemon.terminate().await.0.success());
    let books = line.books();
    let messages = client.under("/telegram");
    assert!(messages.len() > 10);
    for message in messages {
        let message = message.json();
        let (_, register, now, then) = books.iter().find(|(meter, ..)| message["meter"] == **meter).unwrap();
        assert_ne!(message["meter"], "SON-45678901-01-04", "half a reading");
        for reading in message["readings"].as_array().unwrap() {
            if reading["register"] == **register && reading["storage"].as_u64().unwrap_or(0) < 2 {
                let expected = if reading["storage"] == 1 { then } else { now };
                assert_eq!(reading["value"].to_string(), *expected);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn meters_that_nobody_wrote_down_are_found_and_remembered() {
    let folder = Folder::new();
    let line = Line::new(folder.path("bus"), HOUSE);
    let broker = Broker::start().await;
    let config = config(&folder, &line, &broker, "");
    let mut daemon = Meterkast::run(&config);
    daemon.says("searches for meters").await;
    for number in ["12345678", "23456789", "34567890"] {
        daemon.says(&format!("meter {number}: is read")).await;
    }
    assert!(daemon.terminate().await.0.success());
    let remembered = std::fs::read_to_string(folder.path("journal/mbus-mbus.meters")).unwrap();
    assert!(remembered.contains("\n12345678 KAM-12345678-1B-04\n"), "{remembered}");
    let found = std::fs::read_to_string(folder.path("journal/mbus-mbus.found")).unwrap();
    assert_eq!(found.lines().skip(1).collect::<Vec<_>>(), ["12345678", "23456789", "34567890"]);
    let mut daemon = Meterkast::run(&config);
    daemon.says("reads the 3 meters that were found before").await;
    daemon.says("meter 34567890: is read").await;
    assert!(!daemon.stderr().contains("searches for meters"));
    assert!(daemon.terminate().await.0.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_battery_meter_is_left_alone_after_a_restart() {
    let folder = Folder::new();
    let line = Line::new(folder.path("bus"), HOUSE);
    let broker = Broker::start().await;
    let config = config(
        &folder,
        &line,
        &broker,
        "[[mbus.meter]]\naddress = 3\nat-least = \"69m\"\n[[mbus.meter]]\naddress = 1\n",
    );
    let client = Client::of(broker.port).await;
    for _ in 0..2 {
        let mut daemon = Meterkast::run(&config);
        let before = client.under("KAM-12345678-1B-04/telegram").len();
        client.receives(before + 3, "KAM-12345678-1B-04/telegram").await;
        assert!(daemon.terminate().await.0.success());
    }
    assert_eq!(client.under("EFE-34567890-00-06/telegram").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_read_search_and_set_meters() {
    let folder = Folder::new();
    let line = Line::new(folder.path("bus"), HOUSE);
    let port = line.path.to_str().unwrap().to_owned();
    let run = |arguments: &[&str]| {
        let arguments: Vec<String> = arguments.iter().map(|part| (*part).to_owned()).collect();
        let port = port.clone();
        tokio::task::spawn_blocking(move || {
            let mut all: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let at = if all[0] == "scan" { "--mbus" } else { "--port" };
            all.extend([at, &port, "--baud", "9600"]);
            meterkast(&all, b"")
        })
    };
    let read = run(&["mbus", "read", "--meter", "1", "--format", "json"]).await.unwrap();
    assert_eq!(read.code, Some(0), "{read:?}");
    let message: Value = serde_json::from_str(&read.stdout).unwrap();
    assert_eq!(message["meter"], "KAM-12345678-1B-04");
    assert_eq!(message["readings"][0]["value"].to_string(), line.books()[0].2);
    let hex = run(&["mbus", "read", "--meter", "23456789", "--hex"]).await.unwrap();
    assert_eq!(hex.stdout.lines().count(), 3);
    let first: Vec<u8> =
        hex.stdout.lines().next().unwrap().split(' ').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    assert!(Frame::parse(&first).is_ok());
    let set = run(&["mbus", "set-address", "--meter", "1", "--to", "77"]).await.unwrap();
    assert!(set.stderr.contains("KAM-12345678-1B-04 answers at address 77"), "{set:?}");
    let taken = run(&["mbus", "set-address", "--meter", "77", "--to", "2"]).await.unwrap();
    assert_eq!(taken.code, Some(1));
    assert!(taken.stderr.contains("somebody answers at address 2 already"), "{taken:?}");
    let same = run(&["mbus", "set-address", "--meter", "12345678", "--to", "77"]).await.unwrap();
    assert_eq!(same.code, Some(0), "{same:?}");
    assert!(same.stderr.contains("KAM-12345678-1B-04 has address 77 already"), "{same:?}");
    for (meter, why) in [("254", "every meter heeds that address"), ("FFFFFFFF", "a digit F stands for any")] {
        let all = run(&["mbus", "set-address", "--meter", meter, "--to", "9"]).await.unwrap();
        assert_eq!(all.code, Some(2), "{all:?}");
        assert!(all.stderr.contains(why), "{all:?}");
    }
    let slow = run(&["mbus", "set-baud", "--meter", "34567890", "--to", "2400"]).await.unwrap();
    assert!(slow.stderr.contains("EFE-34567890-00-06 answers at 2400 Bd"), "{slow:?}");
    let gone = run(&["mbus", "read", "--meter", "34567890"]).await.unwrap();
    assert_eq!(gone.code, Some(1), "{gone:?}");
    let port = line.path.to_str().unwrap();
    let place = ["--port", port, "--meter", "3", "--baud", "2400"];
    let back =
        tokio::task::block_in_place(|| meterkast(&[&["mbus", "set-baud", "--to", "9600"][..], &place].concat(), b""));
    assert_eq!(back.code, Some(0), "{back:?}");
    let absent = run(&["mbus", "read", "--meter", "1"]).await.unwrap();
    assert_eq!((absent.code, absent.stdout.as_str()), (Some(1), ""));
    assert!(absent.stderr.contains("meter 1: does not answer"), "{absent:?}");
    let scan = run(&["scan", "--by", "secondary"]).await.unwrap();
    assert_eq!(scan.code, Some(0), "{scan:?}");
    for part in [
        "KAM-12345678-1B-04 at address 77, heat\n",
        "EFE-34567890-00-06 at address 3, hot water\n",
        "[[mbus.meter]]  # LUG-23456789-07-0C, heat, at address 2\naddress = \"23456789\"\n",
        "baud = 9600\n",
    ] {
        assert!(scan.stdout.contains(part), "{part}: {scan:?}");
    }
    assert!(scan.stderr.contains("3 meters were found with"), "{scan:?}");
    // What it prints is a configuration.
    let (_, section) = scan.stdout.split_once("# For the configuration:\n").unwrap();
    let file = folder.file("pasted.toml", format!("[store]\nurl = \"sqlite:///tmp/x.db\"\n{section}"));
    let checked = meterkast(&["check", file.to_str().unwrap()], b"");
    assert_eq!(checked.code, Some(0), "{checked:?}");
    assert!(checked.stdout.contains("at 9600 Bd, 3 meters"), "{checked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_several_meters_would_take_is_sent_to_none() {
    const TWINS: &str = "[[meter]]\nmeter = \"SEN-67890123-0E-0C\"\naddress = 5\n\
                         [[meter]]\nmeter = \"ITW-67890123-41-07\"\naddress = 6\n";
    let folder = Folder::new();
    let line = Line::new(folder.path("bus"), TWINS);
    let port = line.path.to_str().unwrap();
    let set = |meter: &str| {
        let arguments = ["mbus", "set-address", "--meter", meter, "--to", "9", "--port", port, "--baud", "9600"];
        tokio::task::block_in_place(|| meterkast(&arguments, b""))
    };
    let both = set("67890123");
    assert_eq!(both.code, Some(1), "{both:?}");
    assert!(both.stderr.contains("several meters answer to 67890123: name one by KAM-12345678-1B-04"), "{both:?}");
    let one = set("ITW-67890123-41-07");
    assert!(one.stderr.contains("ITW-67890123-41-07 answers at address 9"), "{one:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_p1_port_is_found_by_its_telegram() {
    let mut wire = Wire::new();
    let port = wire.path.to_str().unwrap().to_owned();
    let scan = tokio::task::spawn_blocking({
        let port = port.clone();
        move || meterkast(&["scan", "--p1", &port], b"")
    });
    let mut meter = Meter::new(5);
    while !scan.is_finished() {
        wire.send(&meter.telegram()).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let scan = scan.await.unwrap();
    assert_eq!(scan.code, Some(0), "{scan:?}");
    for part in [
        "electricity meter E0990000000000526\n",
        "hot water meter H0990000000000526\n",
        "[[p1]]  # E0990000000000526, ",
    ] {
        assert!(scan.stdout.contains(part), "{scan:?}");
    }
    assert!(scan.stdout.contains(&format!("port = \"{port}\"\n")), "{scan:?}");
    let missing = meterkast(&["scan", "--p1", "/dev/no-such-port", "--mbus", "/dev/no-such-bus"], b"");
    assert_eq!(missing.code, Some(1), "{missing:?}");
    assert!(missing.stderr.contains("there is no /dev/no-such-bus: is the adapter plugged in?"), "{missing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_converter_in_the_network_is_read() {
    let folder = Folder::new();
    let mut line = Line::new(folder.path("bus"), HOUSE);
    // The answers go one way only.
    line.unplug().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = format!("tcp://{}", listener.local_addr().unwrap());
    let (bus, flood) = (line.bus.clone(), line.flood.clone());
    let served = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        serve(bus, flood, stream, |_| 9600).await;
    });
    let read = tokio::task::block_in_place(|| {
        meterkast(&["mbus", "read", "--port", &port, "--meter", "2", "--baud", "9600", "--format", "json"], b"")
    });
    served.abort();
    assert_eq!(read.code, Some(0), "{read:?}");
    let message: Value = serde_json::from_str(&read.stdout).unwrap();
    assert_eq!(message["readings"][0]["value"].to_string(), line.books()[1].2);
    let _ = served.await;
    let gone = tokio::task::block_in_place(|| meterkast(&["mbus", "read", "--port", &port, "--meter", "2"], b""));
    assert_eq!(gone.code, Some(1), "{gone:?}");
    assert!(gone.stderr.contains("cannot be reached"), "{gone:?}");
}

#[test]
fn mistakes_in_a_bus_file_are_named() {
    let folder = Folder::new();
    for (text, part) in [
        ("[[meter]]\nmeter = \"KAM\"\n", "`KAM` is no meter: write KAM-12345678-1B-04"),
        ("baud = 1\n", "baud = 1: an M-Bus has"),
        ("[[meter]]\nmeter = \"KAM-12345678-1B-04\"\naddress = 251\n", "address 251: a meter has one from 0 to 250"),
        ("[[meter]]\nmetre = \"x\"\n", "bus.toml:2: unknown field `metre`"),
    ] {
        let file = folder.file("bus.toml", text);
        let ended = meterkast(&["simulate", "mbus", file.to_str().unwrap()], b"");
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.stderr.contains(part), "{part}: {ended:?}");
    }
}
