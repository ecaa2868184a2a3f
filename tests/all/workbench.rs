//! The engineer's workbench: what is recorded is replayed, to the database, to other programs and to this one; and a daemon is tapped
//! while it works.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use meterkast::{
    capture::{Chunk, Entry, Opening, Reader, Way, What, Wire as Spoken},
    p1::Writer,
};
use serde_json::Value;
use tokio::{io::AsyncReadExt, net::TcpListener};

use crate::{
    mbus_way::{HOUSE, Line, METERS, registers},
    parts::{Ended, Folder, Meter, Meterkast, Wire, free_port, meterkast, until},
};

/// Runs a command while the tasks of the test go on.
async fn run(arguments: &[&str]) -> Ended {
    let arguments: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
    let run = move || meterkast(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), b"");
    tokio::task::spawn_blocking(run).await.unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The last line on standard output.
fn summary(ended: &Ended) -> Value {
    serde_json::from_str(ended.stdout.lines().last().unwrap_or_else(|| panic!("{ended:?}"))).unwrap()
}

/// The entries of a capture, packed or not; it has to be whole.
fn entries(path: &Path) -> Vec<Entry> {
    let mut bytes = fs::read(path).unwrap();
    if bytes.starts_with(&[0x1F, 0x8B]) {
        bytes = gunzip(path);
    }
    let mut reader = Reader::new();
    reader.push(&bytes);
    reader.end();
    std::iter::from_fn(|| reader.poll()).map(|entry| entry.unwrap().1).collect()
}

/// By a program that is not ours; what cannot be had is left out.
fn gunzip(path: &Path) -> Vec<u8> {
    let command = Command::new("gzip").arg("-dc").arg(path).stderr(Stdio::null()).output();
    command.unwrap().stdout
}

/// The bytes of a port and way, in a row.
fn bytes(entries: &[Entry], name: &str, way: Way) -> Vec<u8> {
    let of = |entry: &Entry| match entry {
        Entry::Chunk(Chunk { port, what: What::Bytes(to, bytes), .. }) if port == name && *to == way => {
            Some(bytes.clone())
        }
        _ => None,
    };
    entries.iter().filter_map(of).flatten().collect()
}

/// What a database has, but for what is of the time of reading.
fn values(database: &Path) -> BTreeSet<String> {
    let key = |line: &Value| format!("{} {} {} {}", line["meter"], line["register"], line["value"], line["unit"]);
    registers(database).iter().map(key).collect()
}

fn chunk(port: &str, us: u64, at: &str, bytes: &[u8]) -> String {
    let what = What::Bytes(Way::FromMeter, bytes.to_vec());
    format!("{}\n", Entry::Chunk(Chunk { port: port.into(), us, at: at.parse().unwrap(), what }))
}

fn opening(port: &str, wire: Spoken, at: &str) -> String {
    let (address, settings) = (String::new(), String::new());
    format!(
        "{}\n",
        Entry::Opening(Opening { port: port.into(), wire, address, settings, at: at.parse().unwrap(), goes_on: false })
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_recorded_is_replayed_and_a_killed_recorder_loses_no_more_than_a_second() {
    for name in ["x.jsonl", "x.jsonl.gz"] {
        let folder = Folder::new();
        let (mut wire, mut meter, file) = (Wire::new(), Meter::new(61), folder.path(name));
        let arguments = ["record", text(&wire.path), "--out", text(&file), "--name", "hall"].map(str::to_owned);
        let mut sent = Vec::new();
        let mut recorder = Meterkast::start(&arguments);
        recorder.says("open at 115200 8N1").await;
        for _ in 0..20 {
            let telegram = meter.telegram();
            wire.send(&telegram).await;
            sent.extend(telegram);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        until("everything is written", async || {
            let packed = fs::read(&file).ok()?.starts_with(&[0x1F, 0x8B]);
            let mut reader = Reader::new();
            reader.push(&if packed { gunzip(&file) } else { fs::read(&file).ok()? });
            let entries: Vec<Entry> = std::iter::from_fn(|| reader.poll()).map(|entry| entry.unwrap().1).collect();
            (bytes(&entries, "hall", Way::FromMeter) == sent).then_some(())
        })
        .await;
        recorder.kill();
        // It can be read as it is.
        let ended = run(&["replay", text(&file)]).await;
        assert_eq!(
            (summary(&ended)["telegrams"].as_u64(), summary(&ended)["rejected"].as_u64()),
            (Some(20), Some(0)),
            "{ended:?}"
        );
        assert_eq!(ended.stderr.contains("gzip: breaks off"), name.ends_with("gz"), "{ended:?}");
        if name.ends_with("jsonl") {
            // As a full disk leaves it.
            let mut torn = fs::OpenOptions::new().append(true).open(&file).unwrap();
            torn.write_all(b"{\"port\":\"hall\",\"us\":17").unwrap();
        }
        // It goes on where it was.
        let mut recorder = Meterkast::start(&arguments);
        recorder.says("open at 115200 8N1").await;
        for _ in 0..5 {
            wire.send(&meter.telegram()).await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(recorder.terminate().await.0.success());
        recorder.says(", 5 telegrams, 0 rejected").await;
        let data = folder.path("data");
        let ended = run(&["replay", text(&file), "--data", text(&data)]).await;
        assert_eq!(summary(&ended)["telegrams"], 25, "{ended:?}");
        assert_eq!(summary(&ended)["stored"], meter.messages(), "{ended:?}");
        assert!(!ended.stderr.contains("gzip"), "{ended:?}");
        // The torn line is told with its number.
        assert_eq!(ended.code, Some(i32::from(name.ends_with("jsonl"))), "{ended:?}");
        assert_eq!(
            ended.stderr.contains(": breaks off: the recorder was killed"),
            name.ends_with("jsonl"),
            "{ended:?}"
        );
        meter.is_stored_in(&data.join("meterkast.db")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_bounds_what_is_kept_and_each_file_can_be_read_alone() {
    for ending in ["jsonl", "jsonl.gz"] {
        let folder = Folder::new();
        // Noise, which can hardly be packed.
        let mut state = 62u32;
        let input: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .take(3_000_000)
        .collect();
        let file = folder.path(&format!("x.{ending}"));
        let arguments = ["record", "-", "--out", text(&file), "--rotate", "500kB", "--keep", "3"];
        let ended = meterkast(&arguments, &input);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains("no telegram was heard"), "{ended:?}");
        assert!(ended.stderr.contains(&format!("{} bytes, ", input.len())), "{ended:?}");
        let mut all = Vec::new();
        for name in ["x.2", "x.1", "x"] {
            let path = folder.path(&format!("{name}.{ending}"));
            let size = fs::metadata(&path).unwrap().len();
            assert!(size <= 500_000 && (name == "x" || size > 350_000), "{name}: {size}");
            let entries = entries(&path);
            assert!(matches!(entries[0], Entry::Opening(_)));
            let Entry::Chunk(first) = &entries[1] else { panic!("{entries:?}") };
            assert!(first.us < 5_000_000, "{first:?}");
            all.extend(bytes(&entries, "p1", Way::FromMeter));
        }
        assert!(input.ends_with(&all), "what is kept is the end");
        assert_eq!(fs::read_dir(folder.path("")).unwrap().count(), 3);
    }
}

#[test]
fn rotated_files_behind_one_another_are_whole() {
    let folder = Folder::new();
    let file = folder.path("x.jsonl");
    let ended = meterkast(
        &["record", "-", "--out", text(&file), "--rotate", "500kB", "--keep", "100"],
        &Meter::new(65).telegrams(3000),
    );
    assert!(ended.stderr.contains("3000 telegrams, 0 rejected"), "{ended:?}");
    let count = fs::read_dir(folder.path("")).unwrap().count();
    assert!(count > 5, "{count}");
    let mut all: Vec<u8> =
        (1..count).rev().flat_map(|number| fs::read(folder.path(&format!("x.{number}.jsonl"))).unwrap()).collect();
    all.extend(fs::read(&file).unwrap());
    let decoded = meterkast(&["decode", "-"], &all);
    assert_eq!(
        (decoded.code, decoded.stdout.lines().filter(|line| line.contains("electricity")).count()),
        (Some(0), 3000)
    );
    let redacted = meterkast(&["redact", "-", "--out", "-"], &all);
    assert!(redacted.stderr.contains("written: 3000 telegrams"), "{}", redacted.stderr);
    let replayed = meterkast(&["replay", "-"], &all);
    assert!(replayed.stdout.contains("\"telegrams\":3000,\"rejected\":0,"), "{replayed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_recorders_do_not_write_one_file() {
    let folder = Folder::new();
    let wire = Wire::new();
    let file = folder.path("x.jsonl");
    let mut first = Meterkast::start(["record", wire.path.to_str().unwrap(), "--out", text(&file)]);
    until("it is written", async || file.exists().then_some(())).await;
    let second = run(&["record", "-", "--out", text(&file)]).await;
    assert!(second.code == Some(2) && second.stderr.contains("another recorder writes it"), "{second:?}");
    // Nothing was heard.
    assert_eq!(first.terminate().await.0.code(), Some(1));
}

#[test]
fn rotation_touches_no_file_that_is_not_its_own() {
    let folder = Folder::new();
    let input = Meter::new(64).telegrams(200);
    for other in ["x.1.jsonl", "x.5.jsonl"] {
        let precious = folder.file(other, "precious");
        let file = folder.path("x.jsonl");
        let ended = meterkast(&["record", "-", "--out", text(&file), "--rotate", "500kB"], &input);
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.stderr.contains(&format!("{other}: is in the way of --rotate, and is no capture")), "{ended:?}");
        assert_eq!(fs::read(&precious).unwrap(), b"precious");
        fs::remove_file(precious).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_a_recording_in_words_and_leaves_what_can_be_read() {
    let folder = Folder::new();
    let file = folder.path("x.jsonl");
    let input = folder.file("input", Meter::new(63).telegrams(2000));
    // The system refuses to write beyond 100 blocks of 1 KiB, as a quota does.
    let script = format!(
        "trap '' XFSZ; ulimit -f 100; exec {} record {} --out {}",
        crate::parts::BINARY,
        input.display(),
        file.display()
    );
    let ended = Command::new("bash").args(["-c", &script]).output().unwrap();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(said.contains("what was recorded until now can be read"), "{said}");
    let ended = run(&["replay", text(&file)]).await;
    assert!(summary(&ended)["telegrams"].as_u64().unwrap() > 50, "{ended:?}");
}

#[test]
fn what_is_no_capture_is_not_written_to() {
    let folder = Folder::new();
    for name in ["precious", "precious.gz", "precious.jsonl"] {
        let file = folder.file(name, "precious\n");
        let ended = meterkast(&["record", "-", "--out", text(&file)], b"");
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.stderr.contains("is there, and is no"), "{ended:?}");
        assert_eq!(fs::read(&file).unwrap(), b"precious\n");
    }
    for (arguments, part) in [
        (&["record", "-", "--out", "/nowhere/x"][..], "/nowhere/x: No such file"),
        (&["record", "-", "--out", "x", "--master", "y"], "--master needs --wire mbus"),
        (&["record", "--out", "x"], "required"),
        (&["record", "-", "--out", "x", "--rotate", "1kB"], "at least 500kB"),
        (&["record", "-", "--out", "-", "--rotate", "1MB"], "standard output has one end"),
        (&["replay", "-", "--times", "2"], "standard input can be replayed once only"),
        (&["replay", "/nowhere/x"], "nothing was replayed"),
        (&["replay", "/nowhere/x", "--pty"], "/nowhere/x: No such file"),
        (&["replay", "x", "--pty", "--live"], "cannot be used with"),
    ] {
        let ended = meterkast(arguments, b"");
        assert!(matches!(ended.code, Some(1 | 2)) && ended.stdout.is_empty(), "{arguments:?}: {ended:?}");
        assert!(ended.stderr.contains(part), "{arguments:?}: {ended:?}");
    }
}

/// A daemon with a P1 port, a bus and a control socket.
fn daemon(folder: &Folder, p1: &Path, bus: &Path) -> PathBuf {
    let config = format!(
        "[gateway]\nid = \"gw-1\"\nclock = \"always\"\n[mqtt]\nlisten = \"127.0.0.1:0\"\n[journal]\npath = \"{}\"\n\
         [store]\nurl = \"sqlite://{}\"\ncommit = \"50ms\"\n[control]\npath = \"{}\"\n[[p1]]\nname = \"hall\"\nport = \"{}\"\n\
         [[mbus]]\nname = \"cellar\"\nport = \"{}\"\nbaud = 9600\ninterval = \"1s\"\n{METERS}",
        folder.path("journal").display(),
        folder.path("m.db").display(),
        folder.path("control.sock").display(),
        p1.display(),
        bus.display()
    );
    folder.file("c.toml", config)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_is_tapped_while_it_works_and_what_was_heard_gives_the_same_readings() {
    let folder = Folder::new();
    let line = Line::new(folder.path("bus"), HOUSE);
    let (mut wire, mut meter) = (Wire::new(), Meter::new(64));
    let config = daemon(&folder, &wire.path, &line.path);
    let mut runs = Meterkast::run(&config);
    runs.says("port hall: open").await;
    let (both, one) = (folder.path("both.jsonl"), folder.path("one.jsonl.gz"));
    let tap = ["record", "--tap", "--config", text(&config), "--out"];
    let mut recorder = Meterkast::start([&tap[..], &[text(&both)]].concat());
    let mut other = Meterkast::start([&tap[..], &[text(&one), "--port", "cellar"]].concat());
    recorder.says("taps the daemon").await;
    other.says("taps the daemon").await;
    // Nonsense at the socket is no matter.
    for nonsense in [&b"\0\xFF\r\n\r\n"[..], b"GET / HTTP/1.1\r\n\r\n", b""] {
        let mut stream = UnixStream::connect(folder.path("control.sock")).unwrap();
        stream.write_all(nonsense).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let _ = stream.read(&mut [0; 64]);
    }
    let refused = run(&[&tap[..], &["x.jsonl", "--port", "attic"]].concat()).await;
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("the daemon has no port `attic`: it reads `hall`, `cellar`"), "{refused:?}");
    let mut sent = Vec::new();
    for _ in 0..10 {
        let telegram = meter.telegram();
        wire.send(&telegram).await;
        sent.extend(telegram);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    runs.says("meter EFE-34567890-00-06: is read").await;
    let seen = until("both are recorded", async || {
        let mut reader = Reader::new();
        reader.push(&fs::read(&both).ok()?);
        let entries: Vec<Entry> = std::iter::from_fn(|| reader.poll()).map(|entry| entry.unwrap().1).collect();
        let p1 = bytes(&entries, "hall", Way::FromMeter);
        let asked = bytes(&entries, "cellar", Way::ToMeter).windows(2).filter(|pair| *pair == [0x10, 0x7B]).count();
        (p1 == sent && asked >= 5).then_some(entries)
    })
    .await;
    assert!(seen.iter().any(|entry| matches!(entry, Entry::Opening(opening) if opening.wire == Spoken::Mbus && opening.settings == "9600 8E1")));
    // The daemon is started anew: the recorder waits for it.
    assert!(runs.terminate().await.0.success());
    assert!(!folder.path("control.sock").exists(), "its socket goes with it");
    recorder.says("it is tapped again when it is back").await;
    let mut runs = Meterkast::run(&config);
    recorder.says("the daemon is back").await;
    runs.says("meter EFE-34567890-00-06: is read").await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(recorder.terminate().await.0.success());
    assert!(other.terminate().await.0.success());
    other.says(" telegrams, ").await;
    assert!(runs.terminate().await.0.success());
    let ports = |path: &Path| -> BTreeSet<String> {
        let port = |entry: &Entry| match entry {
            Entry::Opening(Opening { port, .. }) | Entry::Chunk(Chunk { port, .. }) => port.clone(),
        };
        entries(path).iter().map(port).collect()
    };
    assert_eq!(ports(&one), BTreeSet::from(["cellar".to_owned()]));
    assert_eq!(ports(&both).len(), 2);
    // The bus again, and all of it; register by register as the daemon had it.
    let data = folder.path("data");
    // What was going on when the tap was opened, or the daemon stopped, may be torn: a frame and its readout, each of four times.
    let ended = run(&["replay", text(&both), "--data", text(&data)]).await;
    assert!(summary(&ended)["rejected"].as_u64().unwrap() <= 8, "{ended:?}");
    let expected = values(&folder.path("m.db"));
    assert!(expected.len() > 30, "{expected:?}");
    assert_eq!(values(&data.join("meterkast.db")), expected);
    let ended = run(&["replay", text(&both), "--port", "cellar"]).await;
    assert!((6..100).contains(&summary(&ended)["telegrams"].as_u64().unwrap()), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorder_between_a_master_and_its_bus_changes_nothing_and_hears_both() {
    let folder = Folder::new();
    let line = Line::new(folder.path("bus"), HOUSE);
    let (link, file) = (folder.path("master"), folder.path("x.jsonl"));
    let arguments =
        ["record", text(&line.path), "--wire", "mbus", "--baud", "9600", "--master", text(&link), "--out", text(&file)];
    let mut recorder = Meterkast::start(arguments);
    recorder.says("bus: open").await;
    let wire = Wire::new();
    let mut runs = Meterkast::run(&daemon(&folder, &wire.path, &link));
    runs.says("meter EFE-34567890-00-06: is read").await;
    until("all are stored", async || {
        let stored = registers(&folder.path("m.db"));
        line.books().iter().all(|(meter, ..)| stored.iter().any(|line| line["meter"] == **meter)).then_some(())
    })
    .await;
    assert!(runs.terminate().await.0.success());
    assert!(recorder.terminate().await.0.success());
    assert!(!link.exists(), "the link goes with it");
    let recorded = entries(&file);
    assert!(bytes(&recorded, "mbus", Way::ToMeter).windows(2).any(|pair| pair == [0x10, 0x7B]));
    let data = folder.path("data");
    let ended = run(&["replay", text(&file), "--data", text(&data)]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(values(&data.join("meterkast.db")), values(&folder.path("m.db")));

    // And the recording stands for the bus: the daemon's own master reads it.
    let again = Folder::new();
    let link = again.path("bus");
    let mut player = Meterkast::start(["replay", text(&file), "--link", text(&link)]);
    player.says("a master opens").await;
    let mut runs = Meterkast::run(&daemon(&again, &wire.path, &link));
    runs.says("meter EFE-34567890-00-06: is read").await;
    runs.says("meter 1: is read").await;
    runs.says("meter 23456789: is read").await;
    let expected = values(&folder.path("m.db"));
    until("the same is stored", async || (values(&again.path("m.db")) == expected).then_some(())).await;
    assert!(runs.terminate().await.0.success());
    assert!(player.terminate().await.0.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_without_requests_stand_for_a_bus_too() {
    let folder = Folder::new();
    let link = folder.path("bus");
    let frames = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/mbus/heat-kwh.hex");
    let mut player = Meterkast::start(["replay", text(&frames), "--link", text(&link)]);
    player.says("a master opens").await;
    let decoded: Value = serde_json::from_str(meterkast(&["decode", text(&frames)], b"").stdout.trim()).unwrap();
    let read = async |port: &str, meter: &str| {
        let ended = run(&["mbus", "read", "--port", port, "--meter", meter, "--format", "json"]).await;
        (ended.code == Some(0)).then(|| serde_json::from_str::<Value>(ended.stdout.trim()).unwrap()["readings"].clone())
    };
    for meter in ["1", "10000003", "1"] {
        assert_eq!(read(text(&link), meter).await.as_ref(), Some(&decoded["readings"]), "{meter}");
    }
    assert_eq!(read(text(&link), "2").await, None, "nobody else is there");
    // Over TCP likewise, one master after the other.
    let at = format!("127.0.0.1:{}", free_port());
    let listening = Meterkast::start(["replay", text(&frames), "--tcp-listen", &at]);
    listening.says("listens at").await;
    for _ in 0..2 {
        assert_eq!(read(&format!("tcp://{at}"), "1").await.as_ref(), Some(&decoded["readings"]));
    }
    assert!(player.terminate().await.0.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn telegrams_are_played_to_a_terminal_and_over_tcp() {
    let folder = Folder::new();
    let mut meter = Meter::new(65);
    let file = folder.file("x", meter.telegrams(40));
    let played = fs::read(&file).unwrap();
    let link = folder.path("p1");
    let mut player = Meterkast::start(["replay", text(&file), "--link", text(&link)]);
    player.says("plays when it is opened").await;
    // A second one finds the name taken.
    let taken = run(&["replay", text(&file), "--link", text(&link)]).await;
    assert!(taken.code == Some(2) && taken.stderr.contains("is there already"), "{taken:?}");
    let database = folder.path("m.db");
    let config = folder.file(
        "c.toml",
        format!(
            "[gateway]\nid = \"gw-1\"\n[mqtt]\nlisten = \"127.0.0.1:0\"\n[journal]\npath = \"{}\"\n[control]\npath = \"\"\n\
             [store]\nurl = \"sqlite://{}\"\ncommit = \"50ms\"\n[[p1]]\nport = \"{}\"\n",
            folder.path("journal").display(),
            database.display(),
            link.display()
        ),
    );
    let _runs = Meterkast::run(&config);
    assert!(player.ends().await.success());
    let mut said = String::new();
    player.child().stdout.take().unwrap().read_to_string(&mut said).unwrap();
    let said: Value = serde_json::from_str(said.trim()).unwrap();
    assert_eq!(said, serde_json::json!({"telegrams": 40, "rejected": 0, "bytes": played.len(), "rejected_by": {}}));
    meter.is_stored_in(&database).await;

    let port = free_port();
    let at = format!("127.0.0.1:{port}");
    let mut server = Meterkast::start(["replay", text(&file), "--tcp-listen", &at, "--times", "2"]);
    server.says("listens at").await;
    for _ in 0..2 {
        let mut stream = tokio::net::TcpStream::connect(&at).await.unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).await.unwrap();
        assert!(heard == [&played[..], &played[..]].concat(), "{} bytes", heard.len());
    }
    assert!(server.terminate().await.0.success());

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap().to_string();
    let mut caller = Meterkast::start(["replay", text(&file), "--tcp-connect", &at]);
    let mut heard = Vec::new();
    listener.accept().await.unwrap().0.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard.len(), played.len());
    assert!(caller.ends().await.success());
    drop(listener);
    let ended = run(&["replay", text(&file), "--tcp-connect", &at]).await;
    assert!(ended.code == Some(1) && ended.stderr.contains("does somebody listen there?"), "{ended:?}");
}

/// Three telegrams without a time of their own, a minute apart, the last of them damaged, and a bus between them.
fn old_meters() -> String {
    let telegram = |count: u32| {
        let count = format!("1-0:1.8.1({count:05}.000*kWh)");
        Writer::new("XYZ5 old").line("0-0:96.1.1(3030)").line(count).finish(false)
    };
    let frame = meterkast::mbus::Frame::Long {
        control: 0x08,
        address: 7,
        ci: 0x72,
        data: &[0x78, 0x56, 0x34, 0x12, 0x2D, 0x2C, 1, 4, 0, 0, 0, 0, 0x01, 0x06, 42],
    };
    [
        opening("old", Spoken::P1, "2026-11-20T10:00:00Z"),
        opening("bus", Spoken::Mbus, "2026-11-20T10:00:00Z"),
        chunk("old", 0, "2026-11-20T10:00:00.5Z", &telegram(1)),
        chunk("bus", 30_000_000, "2026-11-20T10:00:30Z", &frame.emit()),
        chunk("old", 60_000_000, "2026-11-20T10:01:00Z", &telegram(2)),
        chunk("bus", 90_000_000, "2026-11-20T10:01:30Z", &frame.emit()[..9]),
        chunk("old", 120_000_000, "2026-11-20T10:02:00Z", &telegram(3)),
        chunk("bus", 180_000_000, "2026-11-20T10:03:00Z", &frame.emit()),
    ]
    .concat()
}

#[test]
fn what_has_no_time_of_its_own_was_read_when_it_was_recorded() {
    let folder = Folder::new();
    let file = folder.file("x.jsonl", old_meters());
    let times = |arguments: &[&str], code: i32| -> (BTreeMap<String, BTreeSet<String>>, Ended) {
        let data = Folder::new();
        let ended = meterkast(&[&["replay", text(&file), "--data", text(&data.path("d"))], arguments].concat(), b"");
        assert_eq!(ended.code, Some(code), "{ended:?}");
        let database = data.path("d").join("meterkast.db");
        let mut times: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for second in 0..240 {
            let at = Timestamp::from_second(1_795_168_800 + second).unwrap().to_string();
            let store = format!("sqlite://{}", database.display());
            if second % 30 != 29 {
                continue;
            }
            let printed = meterkast(&["readings", "--store", &store, "--format", "json", "--at", &at], b"");
            for line in printed.stdout.lines() {
                let line: Value = serde_json::from_str(line).unwrap();
                let (meter, at) = (line["meter"].as_str().unwrap(), line["at"].as_str().unwrap());
                times.entry(meter.to_owned()).or_default().insert(at.to_owned());
            }
        }
        (times, ended)
    };
    let of = |times: &[&str]| times.iter().map(|time| format!("2026-11-20T10:0{time}Z")).collect::<BTreeSet<_>>();
    let (all, ended) = times(&[], 1);
    assert_eq!(
        all.values().cloned().collect::<BTreeSet<_>>(),
        BTreeSet::from([of(&["0:00.5", "1:00", "2:00"]), of(&["0:30", "3:00"])])
    );
    assert!(ended.stderr.contains("x.jsonl:6: no frame: "), "{ended:?}");
    assert!(ended.stderr.contains("(2026-11-20T10:01:30Z)"), "{ended:?}");
    let said = summary(&ended);
    assert_eq!(
        (&said["telegrams"], &said["rejected"], &said["rejected_by"]),
        (&5.into(), &1.into(), &serde_json::json!({"checksum": 1}))
    );
    let (window, ended) = times(&["--from", "2026-11-20T10:00:30Z", "--until", "2026-11-20T10:01:30Z"], 0);
    assert_eq!(window.values().cloned().collect::<BTreeSet<_>>(), BTreeSet::from([of(&["1:00"]), of(&["0:30"])]));
    assert!(ended.stderr.contains("3 telegrams are not of that time"), "{ended:?}");
    let (port, _) = times(&["--port", "old"], 0);
    assert_eq!(port.len(), 1);
}

#[test]
fn times_are_moved_to_now_and_keep_their_distance() {
    let folder = Folder::new();
    let mut meter = Meter::new(66);
    let plain = folder.file("plain", meter.telegrams(11));
    let capture = folder.file("x.jsonl", old_meters());
    for (file, register, spans) in [(&plain, "import_low", 600), (&capture, "import_low", 120)] {
        let data = folder.path("d").join(file.file_name().unwrap());
        let before = Timestamp::now().as_second();
        let ended = meterkast(&["replay", text(file), "--shift-to-now", "--port", "old", "--data", text(&data)], b"");
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let store = format!("sqlite://{}", data.join("meterkast.db").display());
        let at = |second: i64| -> Option<i64> {
            let at = Timestamp::from_second(second).unwrap().to_string();
            let printed = meterkast(&["readings", "--store", &store, "--format", "json", "--at", &at], b"");
            let lines = printed.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            let mut lines = lines.filter(|line| line["register"] == register);
            let at = lines.next()?["at"].as_str().unwrap().parse::<Timestamp>().unwrap();
            Some(at.as_second())
        };
        assert_eq!(at(before - 2), None);
        let first = at(Timestamp::now().as_second()).unwrap();
        assert!((before - 1..=Timestamp::now().as_second()).contains(&first), "{first} {before}");
        assert_eq!(at(before + 4000), Some(first + spans));
    }
}

#[test]
fn captures_keep_their_pace_and_are_replayed_again_and_again() {
    let folder = Folder::new();
    let file = folder.file("x.jsonl", old_meters());
    let begin = Instant::now();
    let ended = meterkast(&["replay", text(&file), "--port", "old", "--speed", "60x", "--times", "2"], b"");
    assert_eq!((ended.code, &summary(&ended)["telegrams"]), (Some(0), &6.into()), "{ended:?}");
    assert!((4..20).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_goes_on_until_it_is_ended_and_then_what_was_sent_is_stored() {
    let folder = Folder::new();
    let mut meter = Meter::new(67);
    let file = folder.file("x", meter.telegrams(5));
    let mut player = Meterkast::start(["replay", text(&file), "--loop", "--speed", "1000x"]);
    player.says("broker: ").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(player.terminate().await.0.success());
    let mut said = String::new();
    player.child().stdout.take().unwrap().read_to_string(&mut said).unwrap();
    let said: Value = serde_json::from_str(said.trim()).unwrap();
    assert!(said["telegrams"].as_u64().unwrap() > 10, "{said}");
    assert_eq!(said["messages"], said["acknowledged"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_played_to_others_can_be_of_now_too() {
    let folder = Folder::new();
    let mut meter = Meter::new(68);
    let plain = folder.file("x", [b"noise\r\n", &meter.telegrams(5)[..]].concat());
    let file = folder.path("x.jsonl");
    assert_eq!(meterkast(&["record", text(&plain), "--out", text(&file)], b"").code, Some(0));
    let times = |bytes: &[u8]| -> Vec<i64> {
        let decoded = meterkast(&["decode"], bytes);
        assert_eq!(decoded.code, Some(0), "{decoded:?}");
        let lines = decoded.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let electric = lines.filter(|line| line["medium"] == "electricity");
        electric.map(|line| line["measured_at"].as_str().unwrap().parse::<Timestamp>().unwrap().as_second()).collect()
    };
    for file in [&plain, &file] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap().to_string();
        let before = Timestamp::now().as_second();
        let mut caller = Meterkast::start(["replay", text(file), "--tcp-connect", &at, "--shift-to-now"]);
        let mut heard = Vec::new();
        listener.accept().await.unwrap().0.read_to_end(&mut heard).await.unwrap();
        // The noise was rejected.
        assert_eq!(caller.ends().await.code(), Some(1));
        let times = times(&heard);
        assert!((before..=before + 30).contains(&times[0]), "{times:?} {before}");
        let distances: Vec<i64> = times.iter().map(|time| time - times[0]).collect();
        assert_eq!(distances, [0, 60, 120, 180, 240]);
    }
    // A bus by whole days.
    let link = folder.path("bus");
    let frames = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/mbus/set-days.hex");
    let player = Meterkast::start(["replay", text(&frames), "--link", text(&link), "--shift-to-now"]);
    player.says("a master opens").await;
    let port = ["mbus", "read", "--port", text(&link), "--meter", "1", "--format", "json"];
    let ended = run(&port).await;
    let read: Value = serde_json::from_str(ended.stdout.trim()).unwrap();
    let decoded: Value = serde_json::from_str(meterkast(&["decode", text(&frames)], b"").stdout.trim()).unwrap();
    let days = |report: &Value| -> Vec<i64> {
        let readings = report["readings"].as_array().unwrap().iter();
        readings.filter_map(|reading| Some(reading["at"].as_str()?.parse::<Timestamp>().unwrap().as_second())).collect()
    };
    let moved: Vec<i64> = days(&read).iter().zip(days(&decoded)).map(|(now, then)| now - then).collect();
    let begin = decoded["measured_at"].as_str().unwrap().parse::<Timestamp>().unwrap();
    let expected = Timestamp::now().duration_since(begin).as_hours() / 24 * 86_400;
    assert_eq!(moved.len(), 3);
    // A day that the meter's clock has in summer is one hour off in winter.
    assert!(moved.iter().all(|moved| (moved - expected).abs() <= 3600), "{moved:?} {expected}");
}
