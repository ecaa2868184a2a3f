//! The data's way, from a port to the database, in real processes around a real broker, with real faults.

use std::{
    fs,
    io::Write as _,
    net::TcpListener,
    path::{Path, PathBuf},
    time::Duration,
};

use meterkast::{
    delivery::Epoch,
    journal::{Bounds, Journal},
    p1::Writer,
};
use rumqttc::QoS;
use serde_json::{Value, value::RawValue};
use tokio::io::AsyncWriteExt;

use crate::parts::{Broker, Client, Folder, Meter, Meterkast, Network, Wire, counts, free_port, meterkast, until};

/// The section of gateway `gw-1` with a port, and its journal in `folder`.
fn gateway(folder: &Folder, port: &Path) -> String {
    let (port, journal) = (port.display(), folder.path("journal"));
    format!(
        "[gateway]\nid = \"gw-1\"\n[[p1]]\nport = \"{port}\"\n[journal]\npath = \"{}\"\nsync = \"1s\"\n",
        journal.display()
    )
}

/// The section of a store that commits at once.
fn store(database: &Path) -> String {
    format!("[store]\nurl = \"sqlite://{}\"\ncommit = \"50ms\"\n", database.display())
}

/// A recording of a real meter: 566 telegrams after a piece of one. None where the corpus is not at
/// hand, unless it must be.
pub(crate) fn real_stream() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus/p1/streams");
    let found = fs::read_dir(&folder).ok().and_then(|mut files| Some(files.next()?.unwrap().path()));
    if found.is_none() {
        assert!(std::env::var_os("METERKAST_REQUIRE_CORPUS").is_none(), "no corpus at {}", folder.display());
        println!("skipped: no corpus at {}", folder.display());
    }
    found
}

/// A register as `readings --format json` prints it.
#[derive(serde::Deserialize)]
struct Printed<'a> {
    meter: &'a str,
    medium: &'a str,
    register: &'a str,
    #[serde(borrow)]
    value: &'a RawValue,
    unit: &'a str,
    at: &'a str,
    clock: &'a str,
}

/// What the last telegram of a stream of the real meter says, read here by the standard's codes: register, value as
/// it should be printed, unit.
pub(crate) fn last_registers(stream: &[u8]) -> Vec<(String, String, String)> {
    let text = std::str::from_utf8(stream).unwrap();
    let telegram = &text[text.rfind('/').unwrap()..];
    let mut registers = Vec::new();
    for line in telegram.lines() {
        let Some((code, value)) = line.split_once('(') else { continue };
        let mut numbers = code.split([':', '.']).skip(1).map(|number| number.parse::<u32>().unwrap());
        let [c, d, e] = [(); 3].map(|()| numbers.next().unwrap());
        let phase = |base: u32| format!("_l{}", (c - base) / 20 + 1);
        let name = match (code.as_bytes()[0], c, d, e) {
            (b'1', 1, 8, 1) => "import_low".to_owned(),
            (b'1', 1, 8, 2) => "import_normal".to_owned(),
            (b'1', 2, 8, 1) => "export_low".to_owned(),
            (b'1', 2, 8, 2) => "export_normal".to_owned(),
            (b'1', 1, 7, 0) => "power_import".to_owned(),
            (b'1', 2, 7, 0) => "power_export".to_owned(),
            (b'1', 21 | 41 | 61, 7, 0) => "power_import".to_owned() + &phase(21),
            (b'1', 22 | 42 | 62, 7, 0) => "power_export".to_owned() + &phase(22),
            (b'1', 31 | 51 | 71, 7, 0) => "current".to_owned() + &phase(31),
            (b'1', 32 | 52 | 72, 7, 0) => "voltage".to_owned() + &phase(32),
            (b'1', 32 | 52 | 72, 32, 0) => "voltage_sags".to_owned() + &phase(32),
            (b'1', 32 | 52 | 72, 36, 0) => "voltage_swells".to_owned() + &phase(32),
            (b'0', 96, 7, 21) => "power_failures".to_owned(),
            (b'0', 96, 7, 9) => "long_power_failures".to_owned(),
            _ => continue,
        };
        let (value, unit) = value.trim_end_matches(')').split_once('*').unwrap_or((value.trim_end_matches(')'), ""));
        let digits = value.trim_start_matches('0');
        let value = if digits.is_empty() || digits.starts_with('.') { format!("0{digits}") } else { digits.to_owned() };
        registers.push((name, value, unit.to_owned()));
    }
    registers.sort();
    registers
}

fn check_last_registers(stream: &[u8], database: &Path) {
    let store = format!("sqlite://{}", database.display());
    let ended = meterkast(&["readings", "--store", &store, "--format", "json"], b"");
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let mut printed = Vec::new();
    for line in ended.stdout.lines() {
        let line: Printed<'_> = serde_json::from_str(line).unwrap();
        assert_eq!((line.meter, line.medium), ("E0044007131650618", "electricity"));
        assert_eq!((line.at, line.clock), ("2019-03-24T15:14:45+01:00", "meter"));
        printed.push((line.register.to_owned(), line.value.get().to_owned(), line.unit.to_owned()));
    }
    printed.sort();
    assert_eq!(printed.len(), 26);
    assert_eq!(printed, last_registers(stream));
}

/// Replays the real stream; what was rejected is named, and the rest counted.
fn replay(arguments: &[&str], file: &Path, stored: u64) {
    let file = file.to_str().unwrap();
    let ended = meterkast(&[&["replay", file], arguments].concat(), b"");
    assert_eq!(ended.code, Some(1), "the piece at the beginning was rejected: {ended:?}");
    assert!(ended.stderr.contains(&format!("{file}:0: fragment")), "{ended:?}");
    let summary: Value = serde_json::from_str(&ended.stdout).unwrap();
    let repeated = 566 - stored;
    let expected = serde_json::json!({"telegrams": 566, "rejected": 1, "messages": 566, "acknowledged": 566,
        "stored": stored, "repeated": repeated, "rejected_by": {"fragment": 1}});
    assert_eq!(summary, expected);
}

#[tokio::test]
async fn a_capture_goes_through_mosquitto_and_only_once() {
    let Some(stream) = real_stream() else { return };
    let (broker, folder) = (Broker::start().await, Folder::new());
    let client = Client::of(broker.port).await;
    let database = folder.path("meterkast.db");
    let config = "[gateway]\nid = \"gw-1\"\n".to_owned() + &store(&database) + &broker.section();
    let config = folder.file("meterkast.toml", config);
    let arguments = ["--config", config.to_str().unwrap()];
    let bytes = fs::read(&stream).unwrap();
    for stored in [566, 0] {
        let (stream, arguments) = (stream.clone(), arguments.map(str::to_owned));
        let run = move || replay(&arguments.each_ref().map(String::as_str), &stream, stored);
        tokio::task::spawn_blocking(run).await.unwrap();
        check_last_registers(&bytes, &database);
    }
    // A replay speaks for no meter now: nothing of it is taken for a gateway's word.
    for leaf in ["/telegram", "/state", "/interval", "gw-1/status", "gw-1/health"] {
        assert_eq!(client.under(leaf).len(), 0, "{leaf}");
    }
}

#[test]
fn a_capture_goes_through_the_embedded_broker() {
    let Some(stream) = real_stream() else { return };
    let folder = Folder::new();
    let data = folder.path("data");
    replay(&["--data", data.to_str().unwrap()], &stream, 566);
    check_last_registers(&fs::read(stream).unwrap(), &data.join("meterkast.db"));
}

#[tokio::test]
async fn a_real_meter_is_read_published_and_stored() {
    let Some(stream) = real_stream() else { return };
    let stream = fs::read(stream).unwrap();
    let (broker, folder, mut wire) = (Broker::start().await, Folder::new(), Wire::new());
    let client = Client::of(broker.port).await;
    let database = folder.path("meterkast.db");
    let config = gateway(&folder, &wire.path) + &store(&database) + &broker.section();
    let mut daemon = Meterkast::run(&folder.file("meterkast.toml", config));
    daemon.says("port p1: open at 115200 8N1").await;
    client.receives(1, "gw-1/status").await;

    // No faster than it is read, so that all of it is live: sixteen telegrams, then those of the chunk
    // must have arrived.
    let ends: Vec<usize> = (0..stream.len()).filter(|&at| stream[at..].starts_with(b"\r\n/")).collect();
    let mut begin = 0;
    for (index, &end) in ends.iter().enumerate().skip(1).step_by(16) {
        wire.send(&stream[begin..end + 3]).await;
        begin = end + 3;
        client.receives(index, "/telegram").await;
    }
    wire.send(&stream[begin..]).await;
    let messages = client.receives(566, "/telegram").await;

    assert_eq!(messages.len(), 566);
    let epoch = messages[0].json()["epoch"].as_str().unwrap().to_owned();
    assert!(epoch.len() == 32 && epoch.bytes().all(|digit| digit.is_ascii_hexdigit()), "{epoch}");
    for (seq, seen) in (1u64..).zip(&messages) {
        assert_eq!(seen.topic, "meterkast/gw-1/E0044007131650618/telegram");
        assert_eq!((seen.qos, seen.retain), (QoS::AtLeastOnce, false));
        let message = seen.json();
        for (field, value) in [
            ("schema", Value::from(1)),
            ("gateway", "gw-1".into()),
            ("epoch", epoch.clone().into()),
            ("seq", seq.into()),
            ("prev", (seq - 1).into()),
            ("first", 1.into()),
            ("meter", "E0044007131650618".into()),
            ("medium", "electricity".into()),
            ("protocol", "p1".into()),
            ("clock", "meter".into()),
        ] {
            assert_eq!(message[field], value, "{field} of {seq}");
        }
        assert!(message["received_at"].as_str().unwrap().ends_with('Z'));
        assert!(message["measured_at"].as_str().unwrap().ends_with("+01:00"));
        assert!(message["info"].is_object() && message["events"].is_array() && message["unknown"].is_array());
        for reading in message["readings"].as_array().unwrap() {
            assert!(reading["register"].is_string() && reading["value"].is_number() && reading["unit"].is_string());
        }
    }

    until("all stored", async || (counts(&database).await?.messages == 566).then_some(())).await;
    check_last_registers(&stream, &database);

    // Who comes later finds what was kept: the last state, and who is there.
    until("the whole acknowledgement", async || {
        client.under("gw-1/ack/main").iter().any(|seen| seen.json()["epochs"][0]["through"] == 566).then_some(())
    })
    .await;
    client.receives(1, "gw-1/health").await;
    let later = Client::of(broker.port).await;
    let kept = async |topic: &str| {
        let seen = later.receives(1, topic).await.remove(0);
        assert!(seen.retain, "{topic}");
        seen
    };
    let state = kept("E0044007131650618/state").await.json();
    assert_eq!(state["measured_at"], "2019-03-24T15:14:45+01:00");
    for (register, value, _) in last_registers(&stream) {
        assert_eq!(state[&register].as_f64().unwrap().to_string(), value.parse::<f64>().unwrap().to_string());
    }
    // The registers at the first telegram of the quarter-hour in which the stream ends.
    assert_eq!(kept("E0044007131650618/interval").await.json()["measured_at"], "2019-03-24T15:05:19+01:00");
    assert_eq!(kept("gw-1/status").await.payload, "online");
    assert_eq!(kept("_stores/main/status").await.payload, "online");
    let ack = kept("gw-1/ack/main").await.json();
    assert_eq!((&ack["schema"], &ack["store"]), (&1.into(), &"main".into()));
    assert_eq!(ack["epochs"][0]["epoch"], *epoch);
    assert!(ack["generation"].as_str().is_some_and(|generation| !generation.is_empty()));
    let health = kept("gw-1/health").await.json();
    let port = &health["ports"]["p1"];
    assert_eq!((&health["lost"], &port["state"]), (&0.into(), &"open at 115200 8N1".into()));
    let (at, started_at) = (health["at"].as_str().unwrap(), health["started_at"].as_str().unwrap());
    assert!(started_at <= at && port["ok"] == true, "{health}");

    let (status, took) = daemon.terminate().await;
    assert!(status.success() && took < Duration::from_secs(5), "{status} after {took:?}");
    for topic in ["gw-1/status", "_stores/main/status"] {
        until(topic, async || client.under(topic).last().filter(|seen| seen.payload == "offline").cloned()).await;
    }
    assert!(daemon.stderr().contains("port p1: at byte 0: fragment"), "what was rejected is named");
}

/// Waits until the gateway's health tells anew, and tells that nothing waits in the journal. Health is told
/// when something changes; a piece of noise between two telegrams is a change.
async fn nothing_waits(client: &Client, wire: &mut Wire, meter: &mut Meter) {
    let before = client.under("/health").len();
    until("a depth of 0", async || {
        wire.send(b"noise\r\n").await;
        wire.send(&meter.telegram()).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        client.under("/health").iter().skip(before).any(|health| health.json()["depth"] == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_killed_store_misses_nothing() {
    let (broker, folder, mut wire, mut meter) = (Broker::start().await, Folder::new(), Wire::new(), Meter::new(1));
    let client = Client::of(broker.port).await;
    let database = folder.path("meterkast.db");
    let gateway = folder.file("gateway.toml", gateway(&folder, &wire.path) + &broker.section());
    let gateway = Meterkast::run(&gateway);
    gateway.says("port p1: open").await;
    gateway.says("connected to the broker").await;
    let config = folder.file("store.toml", store(&database) + &broker.section());
    let mut store = Meterkast::run(&config);
    store.says("connected to the broker").await;

    wire.send(&meter.telegrams(10)).await;
    meter.is_stored_in(&database).await;
    store.kill();
    until("its last will", async || {
        client.under("_stores/main/status").last().filter(|seen| seen.payload == "offline").cloned()
    })
    .await;
    wire.send(&meter.telegrams(10)).await;
    client.receives(meter.messages(), "/telegram").await;
    // Killed again while it catches up.
    let mut store = Meterkast::run(&config);
    store.says("connected to the broker").await;
    store.kill();
    wire.send(&meter.telegrams(10)).await;
    client.receives(meter.messages(), "/telegram").await;
    let store = Meterkast::run(&config);
    meter.is_stored_in(&database).await;
    nothing_waits(&client, &mut wire, &mut meter).await;
    meter.is_stored_in(&database).await;

    // Whoever listens to `telegram` got each message once, in order, and can see that of each meter.
    let messages: Vec<Value> = client.under("/telegram").iter().map(|seen| seen.json()).collect();
    for (index, message) in messages.iter().enumerate() {
        assert_eq!(message["seq"], index + 1);
        let before = messages[..index].iter().rfind(|before| before["meter"] == message["meter"]);
        assert_eq!(message["prev"], before.map_or(Value::from(0), |before| before["seq"].clone()));
    }
    drop(store);
}

/// Waits until the journal in `folder` has a message of this time. A copy is read: the journal is in use.
async fn is_journaled(folder: &Folder, time: &str) {
    until("a message in the journal", async || {
        let copy = Folder::new();
        for segment in fs::read_dir(folder.path("journal")).ok()? {
            let segment = segment.ok()?;
            fs::copy(segment.path(), copy.path(segment.file_name().to_str()?)).ok()?;
        }
        let bounds = Bounds { max_bytes: 1 << 30, keep_free: 0 };
        let (mut journal, held, _) = Journal::open(&copy.path(""), Epoch::from_bits(0), bounds).ok()?;
        let mut numbers = held.iter().flat_map(|run| (run.first..=run.last).map(|seq| (run.epoch, seq)));
        let is_it = |(epoch, seq)| {
            let record = journal.read(epoch, seq).unwrap().unwrap();
            record.report.measured_at.is_some_and(|at| at.to_string() == time)
        };
        numbers.any(is_it).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_killed_gateway_sends_what_it_had_journaled() {
    let (mut broker, folder, mut wire, mut meter) = (Broker::start().await, Folder::new(), Wire::new(), Meter::new(2));
    let client = Client::of(broker.port).await;
    let database = folder.path("meterkast.db");
    let config = folder.file("gateway.toml", gateway(&folder, &wire.path) + &broker.section());
    let store = Meterkast::run(&folder.file("store.toml", store(&database) + &broker.section()));
    let mut gateway = Meterkast::run(&config);
    gateway.says("port p1: open").await;
    gateway.says("connected to the broker").await;
    store.says("connected to the broker").await;
    wire.send(&meter.telegrams(7)).await;
    meter.is_stored_in(&database).await;
    let old = client.receives(1, "/telegram").await[0].json()["epoch"].clone();
    let through = meter.messages() as u64;
    // A store that says `online` is sent again what it may have missed.
    let before = client.under("/backlog").len();

    broker.kill();
    gateway.says("meanwhile the journal keeps everything").await;
    wire.send(&meter.telegrams(12)).await;
    is_journaled(&folder, &meter.now()).await;
    gateway.kill();
    let last = meter.messages() as u64;
    broker.begin().await;
    let gateway = Meterkast::run(&config);
    gateway.says("port p1: open").await;
    meter.is_stored_in(&database).await;

    // What the new run reads is another epoch, from 1.
    wire.send(&meter.telegram()).await;
    meter.is_stored_in(&database).await;
    let mut sent: Vec<u64> = Vec::new();
    for message in client.under("/backlog").iter().skip(before).map(|seen| seen.json()) {
        assert_eq!(message["epoch"], old);
        sent.push(message["seq"].as_u64().unwrap());
    }
    sent.sort_unstable();
    sent.dedup();
    // The broker has forgotten the acknowledgements, and the store gives them again before anything is sent.
    assert_eq!(sent, (through + 1..=last).collect::<Vec<u64>>());
    let new = client.under("/telegram").last().unwrap().json();
    assert!(new["epoch"] != old && new["first"] == 1, "{new}");
}

#[tokio::test]
async fn a_broker_may_come_late_and_die() {
    let (mut broker, folder, mut wire, mut meter) = (Broker::not_yet(), Folder::new(), Wire::new(), Meter::new(3));
    let database = folder.path("meterkast.db");
    let config = gateway(&folder, &wire.path) + &store(&database) + &broker.section();
    let mut daemon = Meterkast::run(&folder.file("meterkast.toml", config));
    daemon.says("port p1: open").await;
    let remedy = format!("the broker mqtt://127.0.0.1:{} cannot be reached", broker.port);
    daemon.says(&remedy).await;
    daemon.says("; see that it runs, and that [mqtt] url is right; meanwhile the journal keeps everything").await;
    wire.send(&meter.telegrams(10)).await;
    is_journaled(&folder, &meter.now()).await;
    broker.begin().await;
    meter.is_stored_in(&database).await;

    // In the middle of messages, and twice.
    for _ in 0..2 {
        wire.send(&meter.telegrams(5)).await;
        broker.kill();
        wire.send(&meter.telegrams(5)).await;
        broker.begin().await;
        wire.send(&meter.telegrams(5)).await;
        meter.is_stored_in(&database).await;
    }
    assert!(daemon.terminate().await.0.success());
    meter.is_stored_in(&database).await;
}

#[tokio::test]
async fn what_the_network_swallows_is_sent_again() {
    let (broker, folder, mut wire, mut meter) = (Broker::start().await, Folder::new(), Wire::new(), Meter::new(15));
    let network = Network::to(broker.port).await;
    let database = folder.path("meterkast.db");
    let section = format!("[mqtt]\nurl = \"mqtt://127.0.0.1:{}\"\n", network.port);
    let gateway = Meterkast::run(&folder.file("gateway.toml", gateway(&folder, &wire.path) + &section));
    // The store has a way of its own, and notices nothing.
    let store = Meterkast::run(&folder.file("store.toml", store(&database) + &broker.section()));
    gateway.says("port p1: open").await;
    gateway.says("connected to the broker").await;
    store.says("connected to the broker").await;
    wire.send(&meter.telegrams(5)).await;
    meter.is_stored_in(&database).await;

    network.swallow();
    wire.send(&meter.telegrams(5)).await;
    is_journaled(&folder, &meter.now()).await;
    network.break_all();
    meter.is_stored_in(&database).await;
    let client = Client::of(network.port).await;
    nothing_waits(&client, &mut wire, &mut meter).await;
    meter.is_stored_in(&database).await;
    assert_eq!(store.stderr().matches("connected to the broker").count(), 1);
}

#[tokio::test]
async fn a_port_may_come_late_vanish_and_return() {
    let (broker, folder, mut meter) = (Broker::start().await, Folder::new(), Meter::new(4));
    let database = folder.path("meterkast.db");
    // As udev does it: a name that stays, which leads to the device while there is one.
    let name = folder.path("usb-adapter");
    let config = gateway(&folder, &name) + &store(&database) + &broker.section();
    let daemon = Meterkast::run(&folder.file("meterkast.toml", config));
    daemon.says(&format!("there is no {}: is the adapter plugged in?", name.display())).await;
    for times in 1..=2 {
        let mut wire = Wire::new();
        std::os::unix::fs::symlink(&wire.path, &name).unwrap();
        daemon.says_times(times, "port p1: open").await;
        wire.send(&meter.telegrams(3)).await;
        meter.is_stored_in(&database).await;
        // The name goes first: the number of the device is soon another's.
        fs::remove_file(&name).unwrap();
        drop(wire);
        daemon.says_times(times, "it is opened again as soon as it is back").await;
    }
}

#[tokio::test]
async fn a_taken_port_of_the_embedded_broker_names_the_remedy() {
    let (folder, mut wire, mut meter) = (Folder::new(), Wire::new(), Meter::new(5));
    let database = folder.path("meterkast.db");
    let port = free_port();
    let other = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let broker = format!("[mqtt]\nlisten = \"127.0.0.1:{port}\"\n");
    let config = gateway(&folder, &wire.path) + &store(&database) + &broker;
    let mut daemon = Meterkast::run(&folder.file("meterkast.toml", config));
    daemon.says("port p1: open").await;
    daemon.says(&format!("[mqtt] url = \"mqtt://127.0.0.1:{port}\"")).await;
    wire.send(&meter.telegrams(8)).await;
    is_journaled(&folder, &meter.now()).await;
    drop(other);
    meter.is_stored_in(&database).await;
    // Others can listen there as well.
    let client = Client::of(port).await;
    wire.send(&meter.telegrams(8)).await;
    meter.is_stored_in(&database).await;
    client.receives(8, "/telegram").await;
    let (status, took) = daemon.terminate().await;
    assert!(status.success() && took < Duration::from_secs(5), "{status} after {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_beside_a_daemon_goes_into_the_store_that_it_names() {
    let (folder, wire, mut meter) = (Folder::new(), Wire::new(), Meter::new(7));
    let (database, other) = (folder.path("meterkast.db"), folder.path("other.db"));
    let broker = format!("[mqtt]\nlisten = \"127.0.0.1:{}\"\n", free_port());
    let config = folder.file("meterkast.toml", gateway(&folder, &wire.path) + &store(&database) + &broker);
    let elsewhere = folder.file("other.toml", gateway(&folder, &wire.path) + &store(&other) + &broker);
    let daemon = Meterkast::run(&config);
    daemon.says("port p1: open").await;
    let capture = folder.file("capture", meter.telegrams(8));
    let replay = |config: &Path| {
        let arguments = ["replay", capture.to_str().unwrap(), "--config", config.to_str().unwrap()];
        tokio::task::block_in_place(|| meterkast(&arguments, b""))
    };
    let ended = replay(&elsewhere);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{ended:?}");
    assert!(ended.stderr.contains("is taken, and not by a daemon that writes"), "{ended:?}");
    assert!(!other.exists());
    let ended = replay(&config);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("runs: what is replayed goes through its broker"), "{ended:?}");
    assert!(!ended.stderr.contains("ERROR"), "{ended:?}");
    meter.is_stored_in(&database).await;
    drop(daemon);
}

#[tokio::test]
async fn a_database_that_cannot_be_opened_stops_no_gateway() {
    let (broker, folder) = (Broker::start().await, Folder::new());
    let client = Client::of(broker.port).await;
    let garbage = folder.file("garbage.db", "no database".repeat(1000));
    let below = folder.file("file", "").join("meterkast.db");
    // Nobody can make a file in /sys, not even root.
    for (database, message) in [
        (Path::new("/sys/meterkast.db"), "let the daemon's user write to"),
        (&below, "a file, not a directory"),
        (&garbage, "check `store.url`, or move the file away"),
    ] {
        let (folder, mut wire, mut meter) = (Folder::new(), Wire::new(), Meter::new(6));
        let config = gateway(&folder, &wire.path) + &store(database) + &broker.section();
        let daemon = Meterkast::run(&folder.file("meterkast.toml", config));
        daemon.says("port p1: open").await;
        daemon.says("connected to the broker").await;
        daemon.says(message).await;
        let before = client.under("/telegram").len();
        wire.send(&meter.telegrams(5)).await;
        client.receives(before + meter.messages(), "/telegram").await;
        if database == garbage {
            assert_eq!(fs::read(&garbage).unwrap(), "no database".repeat(1000).into_bytes());
            // The remedy that it named helps.
            fs::rename(&garbage, folder.path("away")).unwrap();
            meter.is_stored_in(&garbage).await;
        }
    }
}

#[tokio::test]
async fn a_second_process_is_told_what_the_first_has() {
    let (broker, folder, mut wire, mut meter) = (Broker::start().await, Folder::new(), Wire::new(), Meter::new(14));
    let database = folder.path("meterkast.db");
    let config = gateway(&folder, &wire.path) + &store(&database) + &broker.section();
    let file = folder.file("meterkast.toml", &config);
    let first = Meterkast::run(&file);
    first.says("port p1: open").await;
    first.says("connected to the broker as store").await;

    let ended = meterkast(&["run", "--config", file.to_str().unwrap()], b"");
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("is in use by another process: stop that one, or give this one"), "{ended:?}");
    // With a journal and a name of its own it runs, and waits for the others.
    let config = config.replace("journal", "another-journal").replace("[another-journal]", "[journal]");
    let mut second = Meterkast::run(&folder.file("second.toml", config.replace("gw-1", "gw-2")));
    second.says(&format!("{} is in use by another process", wire.path.display())).await;
    second.says("another process writes this database; stop it").await;
    wire.send(&meter.telegrams(3)).await;
    meter.is_stored_in(&database).await;
    drop(first);
    second.says("port p1: open").await;
    second.says("connected to the broker as store").await;
    wire.send(&meter.telegrams(3)).await;
    meter.is_stored_in(&database).await;
    assert!(second.terminate().await.0.success());
}

#[tokio::test]
async fn a_daemon_that_reaches_nothing_stops_at_once() {
    let (broker, folder) = (Broker::not_yet(), Folder::new());
    for broker in [broker.section(), "[mqtt]\nlisten = \"127.0.0.1:0\"\n".to_owned()] {
        let config = gateway(&folder, &folder.path("no-adapter")) + &store(Path::new("/sys/meterkast.db")) + &broker;
        let mut daemon = Meterkast::run(&folder.file("meterkast.toml", config));
        daemon.says("is the adapter plugged in?").await;
        daemon.says("nothing is stored until then").await;
        let (status, took) = daemon.terminate().await;
        assert!(status.success() && took < Duration::from_secs(5), "{status} after {took:?}");
    }
}

#[tokio::test]
async fn a_port_over_the_network_is_connected_again() {
    let (broker, folder, mut meter) = (Broker::start().await, Folder::new(), Meter::new(7));
    let database = folder.path("meterkast.db");
    let reader = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("tcp://{}", reader.local_addr().unwrap());
    let config = gateway(&folder, Path::new(&address)) + &store(&database) + &broker.section();
    let daemon = Meterkast::run(&folder.file("meterkast.toml", config));
    for times in 1..=2 {
        let (mut connection, _) = reader.accept().await.unwrap();
        connection.write_all(&meter.telegrams(5)).await.unwrap();
        // It breaks in the middle of a telegram, which is then rejected.
        let mut half = Meter::new(7).telegram();
        half.truncate(200);
        connection.write_all(&half).await.unwrap();
        drop(connection);
        meter.is_stored_in(&database).await;
        daemon.says_times(times, "the other end closed it").await;
    }
    daemon.says("truncated").await;
    drop(reader);
    daemon.says("cannot be reached").await;
}

#[tokio::test]
async fn telegrams_may_come_through_standard_input() {
    let (broker, folder, mut meter) = (Broker::start().await, Folder::new(), Meter::new(8));
    let database = folder.path("meterkast.db");
    let config = gateway(&folder, Path::new("-")) + &store(&database) + &broker.section();
    let mut daemon = Meterkast::run(&folder.file("meterkast.toml", config));
    let mut input = daemon.child().stdin.take().unwrap();
    input.write_all(&meter.telegrams(20)).unwrap();
    meter.is_stored_in(&database).await;
    drop(input);
    daemon.says("its input has ended").await;
    assert!(daemon.terminate().await.0.success());
}

#[tokio::test]
async fn hostile_messages_are_kept_and_harm_nothing() {
    let (broker, folder, mut wire, mut meter) = (Broker::start().await, Folder::new(), Wire::new(), Meter::new(9));
    let client = Client::of(broker.port).await;
    let database = folder.path("meterkast.db");
    let config = gateway(&folder, &wire.path) + &store(&database) + &broker.section();
    let daemon = Meterkast::run(&folder.file("meterkast.toml", config));
    daemon.says("port p1: open").await;
    daemon.says("connected to the broker as gateway").await;
    daemon.says("connected to the broker as store").await;
    wire.send(&meter.telegram()).await;
    let good = client.receives(1, "/telegram").await.remove(0).json();
    meter.is_stored_in(&database).await;
    let edited = |edits: &[(&str, Value)]| {
        let mut message = good.clone();
        for (field, value) in edits {
            message[*field] = value.clone();
        }
        message.to_string()
    };
    let (x, y) = (("gateway", "x".into()), ("meter", "y".into()));

    let topic = "meterkast/x/y/telegram";
    let refused: [Vec<u8>; 8] = [
        b"\xff\xfe\0 no JSON \x1b[2J".to_vec(),
        Vec::new(),
        b"[".repeat(100_000),
        vec![b'a'; 200_000],
        edited(&[x.clone(), y.clone(), ("schema", 2.into()), ("seq", 7.into())]).into(),
        // Another gateway's numbers, and another meter.
        edited(std::slice::from_ref(&y)).into(),
        edited(&[x.clone(), ("seq", 8.into())]).into(),
        edited(&[x.clone(), y.clone(), ("seq", (-1).into())]).into(),
    ];
    let count = refused.len() as u64;
    for payload in refused {
        client.publish(topic, payload).await;
    }
    // Topics that only look like ours, and acknowledgements that are none.
    client.publish("meterkast/x/y/z/telegram", "{}").await;
    client.publish("meterkast/telegram", "{}").await;
    client.publish("meterkast/gw-1/ack/main", "{\"schema\":1").await;
    client.publish("meterkast/gw-1/ack/main", b"\0".repeat(50_000)).await;
    client.publish("meterkast/_stores/main/status", "online").await;
    // And a good one of the same gateway.
    client.publish(topic, edited(&[x, y, ("seq", 9.into())])).await;

    let stored = meter.messages() as u64 + 1;
    until("the good one is stored", async || (counts(&database).await?.messages == stored).then_some(())).await;
    until("the others are kept", async || (counts(&database).await?.refused == count).then_some(())).await;
    // A refused message that has a number counts as delivered.
    let ack = client.receives(1, "meterkast/x/ack/main").await;
    let epoch = ack.last().unwrap().json()["epochs"][0].clone();
    assert_eq!((&epoch["through"], epoch["have"].to_string().as_str()), (&0.into(), "[[7,9]]"));
    assert!(!daemon.stderr().contains('\x1b'), "what came from outside is escaped");
    // The gateway's own way goes on.
    wire.send(&meter.telegrams(3)).await;
    let stored = meter.messages() as u64 + 1;
    until("more is stored", async || (counts(&database).await?.messages == stored).then_some(())).await;
}

#[tokio::test]
async fn every_listed_store_must_confirm() {
    let (broker, folder, mut wire, mut meter) = (Broker::start().await, Folder::new(), Wire::new(), Meter::new(10));
    let client = Client::of(broker.port).await;
    let (main, second) = (folder.path("main.db"), folder.path("second.db"));
    let config = gateway(&folder, &wire.path) + "stores = [\"main\", \"second\"]\n" + &store(&main) + &broker.section();
    let daemon = Meterkast::run(&folder.file("meterkast.toml", config));
    daemon.says("port p1: open").await;
    daemon.says("connected to the broker as gateway").await;
    daemon.says("connected to the broker as store").await;
    wire.send(&meter.telegrams(10)).await;
    meter.is_stored_in(&main).await;
    let messages = meter.messages() as u64;
    until("it is acknowledged by main", async || {
        client.under("gw-1/ack/main").iter().any(|seen| seen.json()["epochs"][0]["through"] == messages).then_some(())
    })
    .await;
    wire.send(b"noise\r\n").await;
    wire.send(&meter.telegram()).await;
    until("that depth is told", async || {
        client.under("gw-1/health").last()?.json()["depth"].as_u64().filter(|&depth| depth >= messages)
    })
    .await;

    let config = store(&second) + "id = \"second\"\n" + &broker.section();
    let _second = Meterkast::run(&folder.file("second.toml", config));
    meter.is_stored_in(&second).await;
    nothing_waits(&client, &mut wire, &mut meter).await;
    meter.is_stored_in(&main).await;
    meter.is_stored_in(&second).await;
}

#[tokio::test]
async fn without_a_store_the_broker_confirms() {
    let (broker, folder, mut wire, mut meter) = (Broker::start().await, Folder::new(), Wire::new(), Meter::new(11));
    let client = Client::of(broker.port).await;
    let config = gateway(&folder, &wire.path) + "stores = []\n" + &broker.section();
    let daemon = Meterkast::run(&folder.file("meterkast.toml", config));
    daemon.says("port p1: open").await;
    daemon.says("connected to the broker").await;
    wire.send(&meter.telegrams(10)).await;
    nothing_waits(&client, &mut wire, &mut meter).await;
    client.receives(meter.messages(), "/telegram").await;
    assert_eq!(client.under("/backlog").len(), 0);
}

#[tokio::test]
async fn a_meter_behind_the_meter_is_sent_when_its_time_changes() {
    let (broker, folder, mut wire, mut meter) = (Broker::start().await, Folder::new(), Wire::new(), Meter::new(12));
    let client = Client::of(broker.port).await;
    let config = gateway(&folder, &wire.path) + &broker.section();
    let daemon = Meterkast::run(&folder.file("meterkast.toml", config));
    daemon.says("port p1: open").await;
    daemon.says("connected to the broker").await;
    // From 20:01 to 20:06: gas has two times, 20:00 and 20:05.
    wire.send(&meter.telegrams(6)).await;
    let messages = client.receives(6 + 3 * 2, "/telegram").await;
    let of = |medium: &str| -> Vec<String> {
        let messages = messages.iter().map(|seen| seen.json()).filter(|message| message["medium"] == medium);
        messages.map(|message| message["measured_at"].as_str().unwrap().to_owned()).collect()
    };
    for medium in ["gas", "heat", "hot_water"] {
        assert_eq!(of(medium), ["2026-11-21T20:00:00+01:00", "2026-11-21T20:05:00+01:00"], "{medium}");
    }
    assert_eq!(of("electricity").len(), 6);
}

#[tokio::test]
async fn a_gateway_may_be_called_anything() {
    let (broker, folder, mut wire, mut meter) = (Broker::start().await, Folder::new(), Wire::new(), Meter::new(13));
    let client = Client::of(broker.port).await;
    let database = folder.path("meterkast.db");
    let config = gateway(&folder, &wire.path).replace("gw-1", "a+b/#é") + &store(&database) + &broker.section();
    let daemon = Meterkast::run(&folder.file("meterkast.toml", config));
    daemon.says("port p1: open").await;
    daemon.says("connected to the broker as gateway").await;
    daemon.says("connected to the broker as store").await;
    wire.send(&meter.telegrams(3)).await;
    meter.is_stored_in(&database).await;
    let seen = client.receives(1, "/telegram").await.remove(0);
    assert!(seen.topic.starts_with("meterkast/a~2bb~2f~23~c3~a9/"), "{}", seen.topic);
    assert_eq!(seen.json()["gateway"], "a+b/#é");
    client.receives(1, "meterkast/a~2bb~2f~23~c3~a9/ack/main").await;
    // It hears them, too.
    nothing_waits(&client, &mut wire, &mut meter).await;
    assert_eq!(daemon.stderr().matches("connected to the broker as gateway").count(), 1);
}

/// A telegram of meter `meter` at `second` of a quarter of an hour long past.
fn counting(meter: &str, second: u32, import: &str) -> Vec<u8> {
    let id: String = meter.bytes().map(|byte| format!("{byte:02X}")).collect();
    Writer::new("XYZ5 counting")
        .line("1-3:0.2.8(50)")
        .line(format!("0-0:1.0.0(26071412{:02}{:02}S)", second / 60, second % 60))
        .line(format!("0-0:96.1.1({id})"))
        .line(format!("1-0:1.8.1({import}*kWh)"))
        .finish(true)
}

#[tokio::test]
async fn what_cannot_be_is_flagged_also_after_a_restart() {
    let (broker, folder, mut wire) = (Broker::start().await, Folder::new(), Wire::new());
    let client = Client::of(broker.port).await;
    let config = folder.file("meterkast.toml", gateway(&folder, &wire.path) + &broker.section());
    let mut daemon = Meterkast::run(&config);
    daemon.says("port p1: open").await;
    client.receives(1, "gw-1/status").await;
    let mut told = 0;
    let mut suspects = async |wire: &mut Wire, telegrams: &[(&str, u32, &str)]| -> Vec<Value> {
        for (meter, second, import) in telegrams {
            wire.send(&counting(meter, *second, import)).await;
        }
        let first = told;
        told += telegrams.len();
        let messages = client.receives(told, "/telegram").await;
        messages[first..].iter().map(|seen| seen.json()).collect()
    };
    let flag = |message: &Value| message["readings"][0]["suspect"].as_str().map(str::to_owned);
    let flags = |messages: &[Value]| messages.iter().map(flag).collect::<Vec<_>>();
    let (back, fast) = (Some("backwards".to_owned()), Some("too_fast".to_owned()));

    let messages = suspects(&mut wire, &[("OLD", 0, "000500.000"), ("OLD", 1, "000499.000"), ("OLD", 2, "001500.000")]);
    assert_eq!(flags(&messages.await), [None, back.clone(), fast]);
    // Who only looks at the state is shown what is believed.
    until("the state of the last telegram", async || {
        client
            .under("OLD/state")
            .last()
            .filter(|seen| seen.json()["measured_at"] == "2026-07-14T12:00:02+02:00")
            .map(drop)
    })
    .await;
    let states = client.under("OLD/state");
    assert!(states.iter().all(|seen| seen.json()["import_low"] == 500.0), "{:?}", states.last());
    daemon.kill();
    let daemon = Meterkast::run(&config);
    daemon.says("port p1: open").await;
    // What was believed is read from the journal, and not what was flagged.
    let messages = suspects(&mut wire, &[("OLD", 3, "000500.001"), ("OLD", 4, "000400.000")]);
    assert_eq!(flags(&messages.await), [None, back.clone()]);

    // Ten that agree are believed, and say when the last was that was not.
    let ten: Vec<(&str, u32, &str)> = (5..14).map(|second| ("OLD", second, "000400.000")).collect();
    let messages = suspects(&mut wire, &ten).await;
    assert_eq!(flags(&messages[..8]), vec![back; 8]);
    assert_eq!(flag(&messages[8]), None);
    let outlier = serde_json::json!([{ "event": "outlier:import_low", "end": "2026-07-14T12:00:03+02:00" }]);
    assert_eq!(messages[8]["events"], outlier);

    // Another meter in its place begins anew, and names it.
    let ten: Vec<(&str, u32, &str)> = (14..24).map(|second| ("NEW", second, "000000.010")).collect();
    let messages = suspects(&mut wire, &ten).await;
    assert_eq!(flags(&messages), vec![None; 10]);
    assert_eq!(
        (&messages[8]["info"]["predecessor"], &messages[9]["info"]["predecessor"]),
        (&Value::Null, &"OLD".into())
    );
    daemon.says("the meter's clock is").await;
    // This run has flagged nine.
    until("the count of flagged readings", async || {
        client.under("gw-1/health").last().filter(|seen| seen.json()["suspect"] == 9).map(drop)
    })
    .await;
}

#[tokio::test]
async fn a_sealed_telegram_comes_out_of_a_port_with_its_key() {
    let (broker, folder, mut wire) = (Broker::start().await, Folder::new(), Wire::new());
    let client = Client::of(broker.port).await;
    let sealed = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/sealed");
    let key = format!("key-file = \"{}\"\n[journal]", sealed.join("luxembourg.key").display());
    let config = gateway(&folder, &wire.path).replace("[journal]", &key) + &broker.section();
    let daemon = Meterkast::run(&folder.file("meterkast.toml", config));
    daemon.says("port p1: open").await;
    client.receives(1, "gw-1/status").await;
    let frames = fs::read(sealed.join("luxembourg.bin")).unwrap();
    wire.send(&frames).await;
    // The second frame says the same, which is no news.
    client.receives(1, "SAG9030799000417/telegram").await;
    // Played back.
    wire.send(&frames).await;
    daemon.says("replayed: the frame counter is 416, and 417 was there already").await;
    assert!(!daemon.stderr().contains("4D6B41"), "{}", daemon.stderr());
}

#[tokio::test]
async fn a_gateway_that_runs_from_an_older_image_loses_and_doubles_nothing() {
    let (broker, folder, mut wire, mut meter) = (Broker::start().await, Folder::new(), Wire::new(), Meter::new(14));
    let database = folder.path("meterkast.db");
    let config = folder.file("gateway.toml", gateway(&folder, &wire.path) + &broker.section());
    let store = folder.file("store.toml", store(&database) + &broker.section());
    let copy = |from: &str, to: &str| {
        let (from, to) = (folder.path(from), folder.path(to));
        let _ = fs::remove_dir_all(&to);
        fs::create_dir(&to).unwrap();
        for file in fs::read_dir(from).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    };
    let mut daemon = Meterkast::run(&config);
    daemon.says("port p1: open").await;
    wire.send(&meter.telegrams(5)).await;
    is_journaled(&folder, &meter.now()).await;
    daemon.kill();
    copy("journal", "image");

    // It goes on, and a store takes everything: more than the image knows.
    let _store = Meterkast::run(&store);
    let mut daemon = Meterkast::run(&config);
    daemon.says("port p1: open").await;
    wire.send(&meter.telegrams(5)).await;
    meter.is_stored_in(&database).await;
    daemon.kill();

    // The disk of the gateway is put back to the day of the image.
    copy("image", "journal");
    let client = Client::of(broker.port).await;
    let daemon = Meterkast::run(&config);
    daemon.says("port p1: open").await;
    wire.send(&meter.telegrams(5)).await;
    meter.is_stored_in(&database).await;
    nothing_waits(&client, &mut wire, &mut meter).await;
    meter.is_stored_in(&database).await;
    assert_eq!(client.under("gw-1/health").last().unwrap().json()["lost"], 0);
}

#[tokio::test]
async fn two_gateways_under_one_id_are_told() {
    let broker = Broker::start().await;
    let (folders, wires) = ([Folder::new(), Folder::new()], [Wire::new(), Wire::new()]);
    let of = |at: usize| folders[at].file("gateway.toml", gateway(&folders[at], &wires[at].path) + &broker.section());
    let client = Client::of(broker.port).await;
    // A run before this one is no second gateway.
    for _ in 0..2 {
        let mut first = Meterkast::run(&of(0));
        first.says("connected to the broker").await;
        client.receives(1, "gw-1/health").await;
        assert!(first.terminate().await.0.success());
        assert!(!first.stderr().contains("another gateway"), "{}", first.stderr());
    }
    let first = Meterkast::run(&of(0));
    first.says("connected to the broker").await;
    let _second = Meterkast::run(&of(1));
    first.says("another gateway runs under the id gw-1").await;
    until("that it is told in health", async || {
        client.under("gw-1/health").iter().any(|seen| seen.json()["shared_id"] != 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn after_an_outage_what_is_live_comes_first_and_state_never_steps_back() {
    let (broker, folder, mut wire, mut meter) = (Broker::start().await, Folder::new(), Wire::new(), Meter::new(15));
    let client = Client::of(broker.port).await;
    let database = folder.path("meterkast.db");
    let config = folder.file("gateway.toml", gateway(&folder, &wire.path) + &broker.section());
    let daemon = Meterkast::run(&config);
    daemon.says("port p1: open").await;
    daemon.says("connected to the broker").await;
    for _ in 0..15 {
        wire.send(&meter.telegrams(100)).await;
    }
    is_journaled(&folder, &meter.now()).await;
    // 500 a second are sent again: at the third message there are seconds to go.
    let _store = Meterkast::run(&folder.file("store.toml", store(&database) + &broker.section()));
    client.receives(3, "/backlog").await;
    for _ in 0..20 {
        wire.send(&meter.telegram()).await;
        let now = meter.now();
        until("the telegram of now", async || {
            client.under("/telegram").iter().rev().take(9).any(|seen| seen.json()["measured_at"] == *now).then_some(())
        })
        .await;
    }
    let backlog = client.under("/backlog").len();
    assert!(backlog < 1500, "the backlog was through before what is live: {backlog}");
    meter.is_stored_in(&database).await;
    let states = client.under("/state");
    let mut last = std::collections::BTreeMap::new();
    for seen in &states {
        let at: meterkast::moment::Moment = seen.json()["measured_at"].as_str().unwrap().parse().unwrap();
        let before = last.insert(seen.topic.clone(), at);
        assert!(before.is_none_or(|before| before <= at), "{} went back from {before:?} to {at}", seen.topic);
    }
}
