//! The troubles that ports have, in the real daemon: said once, with their remedy, at no cost, and over as soon as they can be.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::Value;
use tokio::{io::AsyncWriteExt, net::TcpListener, time::Instant};
use tokio_serial::SerialPortBuilderExt;

use crate::parts::{
    BINARY, Broker, Client, Folder, Meter, Meterkast, Wire, counts, free_port, meterkast, until_within,
};

/// A gateway with these ports, and a store.
fn config(folder: &Folder, broker: &Broker, ports: &[(&str, &str, &str)]) -> PathBuf {
    let mut text = format!(
        "[gateway]\nid = \"gw-1\"\nclock = \"always\"\n[journal]\npath = \"{}\"\n[store]\nurl = \"sqlite://{}\"\ncommit = \"50ms\"\n{}",
        folder.path("journal").display(),
        folder.path("m.db").display(),
        broker.section()
    );
    for (kind, name, port) in ports {
        text += &format!("[[{kind}]]\nname = \"{name}\"\nport = \"{port}\"\n");
    }
    folder.file("meterkast.toml", text)
}

#[tokio::test]
async fn an_adapter_returns_as_another_device_under_its_name() {
    let (broker, folder, mut meter) = (Broker::start().await, Folder::new(), Meter::new(21));
    let (name, database) = (folder.path("usb-FTDI_FT232R-if00-port0"), folder.path("m.db"));
    let mut wire = Wire::new();
    symlink(&wire.path, &name).unwrap();
    let daemon = Meterkast::run(&config(&folder, &broker, &[("p1", "p1", name.to_str().unwrap())]));
    daemon.says("port p1: open at 115200 8N1").await;
    for times in 2..=3 {
        wire.send(&meter.telegrams(3)).await;
        meter.is_stored_in(&database).await;
        // The next is there before the last has gone: it is another device.
        let next = Wire::new();
        assert_ne!(next.path, wire.path);
        fs::remove_file(&name).unwrap();
        drop(std::mem::replace(&mut wire, next));
        daemon.says_times(times - 1, "is the adapter plugged in?").await;
        symlink(&wire.path, &name).unwrap();
        daemon.says_times(times, "port p1: open at 115200 8N1").await;
    }
    wire.send(&meter.telegrams(3)).await;
    meter.is_stored_in(&database).await;
}

#[tokio::test]
async fn a_port_that_another_process_holds_is_taken_when_it_is_free() {
    let (broker, folder, mut meter, mut wire) = (Broker::start().await, Folder::new(), Meter::new(22), Wire::new());
    let path = wire.path.to_str().unwrap().to_owned();
    let holder = tokio_serial::new(&path, 115_200).open_native_async().unwrap();
    let daemon = Meterkast::run(&config(&folder, &broker, &[("p1", "p1", &path)]));
    daemon.says(&format!("{path} is in use by another process: stop that one (`fuser {path}` names it)")).await;
    drop(holder);
    daemon.says("port p1: open at 115200 8N1").await;
    wire.send(&meter.telegrams(3)).await;
    meter.is_stored_in(&folder.path("m.db")).await;
    assert_eq!(daemon.stderr().matches("is in use by another process").count(), 1);
}

#[tokio::test]
async fn a_port_that_may_not_be_read_names_the_group_to_join() {
    const NOBODY: u32 = 65_534;
    let (broker, folder, mut meter, mut wire) = (Broker::start().await, Folder::new(), Meter::new(23), Wire::new());
    let path = wire.path.to_str().unwrap().to_owned();
    let config = config(&folder, &broker, &[("p1", "p1", &path)]);
    let is_root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    // Root may read everything: then it is another user's daemon.
    let by: &[&str] =
        if is_root { &["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"] } else { &[] };
    if is_root {
        let place = folder.path("");
        fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).unwrap();
        chown(&place, Some(NOBODY), Some(NOBODY)).unwrap();
        let runs = Command::new("setpriv").args(&by[1..]).args([BINARY, "--version"]).output();
        if !runs.is_ok_and(|output| output.status.success()) {
            println!("skipped: another user cannot run {BINARY} here");
            return;
        }
    }
    fs::set_permissions(&wire.path, fs::Permissions::from_mode(0o600 & if is_root { 0o777 } else { 0 })).unwrap();
    let daemon = Meterkast::run_by(by, &[], &config);
    let group = Command::new("stat").args(["-c", "%G", &path]).output().unwrap();
    let group = String::from_utf8(group.stdout).unwrap();
    let group = Some(group.trim()).filter(|group| *group != "root").unwrap_or("dialout");
    let remedy =
        format!("{path} may not be read by this user: add it to group {group} (`sudo usermod -aG {group} $USER`)");
    daemon.says(&remedy).await;
    fs::set_permissions(&wire.path, fs::Permissions::from_mode(0o666)).unwrap();
    daemon.says("port p1: open at 115200 8N1").await;
    wire.send(&meter.telegrams(3)).await;
    meter.is_stored_in(&folder.path("m.db")).await;
}

/// Seconds of a core that a process has used.
fn cpu_time(process: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // Behind the name, which may hold blanks: user and system time are the 14th and 15th field of all.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    let second = Command::new("getconf").arg("CLK_TCK").output().unwrap().stdout;
    ticks / String::from_utf8(second).unwrap().trim().parse::<f64>().unwrap()
}

#[tokio::test]
async fn ports_that_are_gone_cost_nothing_and_do_not_fill_the_log() {
    let (broker, folder) = (Broker::start().await, Folder::new());
    let (unplugged, hung_up, adapter) = (Wire::new(), Wire::new(), folder.path("usb-adapter"));
    symlink(&unplugged.path, &adapter).unwrap();
    // One that nobody listens to, one that closes at once, and one that speaks and closes, as ser2net does to a second client.
    let refused = free_port();
    let (closes, speaks) =
        (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let at = |listener: &TcpListener| format!("tcp://{}", listener.local_addr().unwrap());
    let ports = [
        ("p1", "missing", "/dev/no-such-port".to_owned()),
        ("p1", "vanished", adapter.display().to_string()),
        ("p1", "hung-up", hung_up.path.display().to_string()),
        ("p1", "refused", format!("tcp://127.0.0.1:{refused}")),
        ("p1", "closes", at(&closes)),
        ("p1", "speaks", at(&speaks)),
        ("mbus", "bus-missing", "/dev/no-such-bus".to_owned()),
        ("mbus", "bus-refused", format!("tcp://localhost:{refused}")),
        ("mbus", "bus-closes", at(&closes).replace("127.0.0.1", "localhost")),
    ];
    for (listener, word) in [(closes, &b""[..]), (speaks, b"Port already in use\r\n")] {
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(word).await;
            }
        });
    }
    let ports: Vec<(&str, &str, &str)> = ports.iter().map(|(kind, name, port)| (*kind, *name, port.as_str())).collect();
    let daemon = Meterkast::run(&config(&folder, &broker, &ports));
    daemon.says("connected to the broker as gateway").await;
    daemon.says("connected to the broker as store").await;
    for (_, name, _) in &ports {
        daemon.says(&format!("port {name}: ")).await;
    }
    fs::remove_file(&adapter).unwrap();
    drop((unplugged, hung_up));
    for name in ["vanished", "hung-up"] {
        let line = format!("port {name}: there is no ");
        daemon.says(&line).await;
    }
    // What is said of the others is said within the first attempts.
    daemon.says("port closes: tcp").await;
    daemon.says("port speaks: tcp").await;
    daemon.says("port bus-closes: tcp").await;
    tokio::time::sleep(Duration::from_secs(3)).await;

    let (log, cpu, begin) = (daemon.stderr(), cpu_time(daemon.id()), Instant::now());
    tokio::time::sleep(Duration::from_secs(8)).await;
    let share = (cpu_time(daemon.id()) - cpu) / begin.elapsed().as_secs_f64();
    println!("{:.1} % of a core for {} ports that are gone", share * 100.0, ports.len());
    assert!(share < 0.1, "{share} of a core");
    let more = daemon.stderr().split_off(log.len());
    // What is rejected is told the 1st, 2nd, 4th, 8th... time.
    let more: Vec<&str> = more.lines().filter(|line| !line.contains("of this kind")).collect();
    assert_eq!(more, Vec::<&str>::new(), "the log grows");
}

/// The port's part of the last health, and what `status` makes of it.
fn status(config: &Path) -> (Option<i32>, Value, String) {
    let ended = meterkast(&["status", "--format", "json", "--config", config.to_str().unwrap()], b"");
    (ended.code, serde_json::from_str(&ended.stdout).unwrap_or_default(), ended.stderr)
}

/// This takes a minute: nothing else shows that the times of the daemon are those that are promised.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_port_is_told_after_a_minute_and_its_end_too() {
    let (broker, folder) = (Broker::start().await, Folder::new());
    let client = Client::of(broker.port).await;
    let (mut wire, mut meter, mut other) = (Wire::new(), Meter::new(24), Meter::new(25));
    let reader = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("tcp://{}", reader.local_addr().unwrap());
    let ports = [("p1", "serial", wire.path.to_str().unwrap()), ("p1", "network", address.as_str())];
    let config = config(&folder, &broker, &ports);
    let daemon = Meterkast::run(&config);
    let (mut first, _) = reader.accept().await.unwrap();
    daemon.says("port serial: open").await;
    let begin = Instant::now();
    wire.send(&meter.telegram()).await;
    first.write_all(&other.telegram()).await.unwrap();
    until_within(Duration::from_secs(60), "all is well", async || {
        let (code, ..) = tokio::task::block_in_place(|| status(&config));
        (code == Some(0)).then_some(())
    })
    .await;
    // Half-open: it is never closed, and says nothing.
    let two_minutes = Duration::from_secs(120);
    until_within(two_minutes, "both are said to be silent", async || {
        let said = daemon.stderr();
        let serial =
            said.contains("port serial: no telegram for a minute, and nothing is received: is the cable still in");
        (serial && said.contains(&format!("port network: {address}: nothing was received for 60 s"))).then_some(())
    })
    .await;
    assert!(begin.elapsed() >= Duration::from_secs(59), "{:?}", begin.elapsed());
    let health = until_within(two_minutes, "health tells it", async || {
        let health = client.under("gw-1/health").last()?.json();
        let silent = ["serial", "network"].iter().all(|port| health["ports"][port]["ok"] == false);
        silent.then_some(health)
    })
    .await;
    assert!(health["ports"]["serial"]["telegram_at"].is_string(), "{health}");
    let (code, seen, problems) = tokio::task::block_in_place(|| status(&config));
    assert_eq!(code, Some(1), "{seen} {problems}");
    for part in ["port serial: no telegram for a minute", "port network: tcp://"] {
        assert!(problems.contains(part), "{problems}");
    }
    // It is connected anew without being asked, and both speak again.
    let (mut second, _) =
        tokio::time::timeout(two_minutes, reader.accept()).await.expect("no other connection").unwrap();
    second.write_all(&other.telegram()).await.unwrap();
    wire.send(&meter.telegram()).await;
    daemon.says_times(2, "port serial: open at 115200 8N1").await;
    daemon.says_times(2, "port network: open").await;
    until_within(two_minutes, "all is well again", async || {
        let (code, ..) = tokio::task::block_in_place(|| status(&config));
        (code == Some(0)).then_some(())
    })
    .await;
    let all = (meter.messages() + other.messages()) as u64;
    until_within(two_minutes, "all is stored", async || {
        (counts(&folder.path("m.db")).await?.messages == all).then_some(())
    })
    .await;
}
