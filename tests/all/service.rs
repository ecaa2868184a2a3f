//! The daemon as a service: what systemd is told, how it stops, and what `status` and `check` say to who looks after it.

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt, chown, symlink},
        net::UnixDatagram,
    },
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::Value;
use sqlx::Connection as _;

use crate::parts::{
    BINARY, Broker, Client, Folder, Meter, Meterkast, Network, Wire, counts, free_port, meterkast, program, until,
};

/// The end of systemd: what a service tells it, message by message.
struct Systemd {
    path: PathBuf,
    told: Arc<Mutex<Vec<String>>>,
}

impl Systemd {
    fn new(folder: &Folder) -> Self {
        let path = folder.path("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        std::thread::spawn({
            let told = told.clone();
            move || {
                let mut buffer = [0; 4096];
                while let Ok(count) = socket.recv(&mut buffer) {
                    told.lock().unwrap().push(String::from_utf8_lossy(&buffer[..count]).into_owned());
                }
            }
        });
        Self { path, told }
    }

    /// Starts the daemon as its service, which has to give a sign of life every two seconds.
    fn start(&self, config: &Path) -> Meterkast {
        let variables = [("NOTIFY_SOCKET", self.path.to_str().unwrap()), ("WATCHDOG_USEC", "2000000")];
        Meterkast::run_by(&[], &variables, config)
    }

    /// All lines so far.
    fn lines(&self) -> Vec<String> {
        self.told.lock().unwrap().iter().flat_map(|told| told.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
    }

    /// Waits for a line that holds this.
    async fn is_told(&self, part: &str) -> String {
        until(&format!("`{part}` is told"), async || self.lines().into_iter().find(|line| line.contains(part))).await
    }
}

fn gateway(folder: &Folder, port: &Path) -> String {
    let journal = folder.path("journal");
    format!(
        "[gateway]\nid = \"gw-1\"\n[[p1]]\nport = \"{}\"\n[journal]\npath = \"{}\"\nsync = \"1s\"\n",
        port.display(),
        journal.display()
    )
}

fn store(folder: &Folder) -> String {
    format!("[store]\nurl = \"sqlite://{}\"\ncommit = \"50ms\"\n", folder.path("m.db").display())
}

#[tokio::test]
async fn systemd_is_told_how_things_are_from_the_start_to_the_end() {
    let (broker, folder, wire, mut meter) = (Broker::start().await, Folder::new(), Wire::new(), Meter::new(31));
    let (systemd, adapter) = (Systemd::new(&folder), folder.path("usb-adapter"));
    let config = gateway(&folder, &adapter) + &store(&folder) + &broker.section();
    let begin = Instant::now();
    let mut daemon = systemd.start(&folder.file("meterkast.toml", config));
    systemd.is_told("READY=1").await;
    let took = begin.elapsed();
    // Before it is ready it has found out that there is no port, and how the rest is.
    let lines = systemd.lines();
    let ready = lines.iter().position(|line| line == "READY=1").unwrap();
    let status = lines[ready..].iter().find(|line| line.starts_with("STATUS=")).unwrap();
    for part in
        ["STATUS=p1 there is no ", "is the adapter plugged in?", "gateway online, 0 messages wait", "store main online"]
    {
        // On a machine that is too busy it does not wait for ever.
        assert!(status.contains(part) || took > Duration::from_secs(5), "{part}: {lines:?}");
        systemd.is_told(part).await;
    }
    symlink(&wire.path, &adapter).unwrap();
    systemd.is_told("STATUS=p1 open at 115200 8N1").await;
    let mut wire = wire;
    wire.send(&meter.telegrams(3)).await;
    // Within ten seconds, since only numbers have changed.
    systemd.is_told("p1 open at 115200 8N1, last telegram ").await;
    let fed = || systemd.lines().iter().filter(|line| *line == "WATCHDOG=1").count();
    let before = fed();
    // A port that is lost, and said to be, feeds on.
    fs::remove_file(&adapter).unwrap();
    drop(wire);
    systemd.is_told("STATUS=p1 there is no ").await;
    until("the watchdog is fed", async || (fed() >= before + 4).then_some(())).await;
    let (status, took) = daemon.terminate().await;
    assert!(status.success() && took < Duration::from_secs(5), "{status} after {took:?}");
    let lines = systemd.lines();
    let stopping = lines.iter().position(|line| line == "STOPPING=1").expect("it says that it stops");
    assert_eq!(lines[stopping..], ["STOPPING=1", "STATUS=stopping"], "and nothing after that");
    assert_eq!(lines.iter().filter(|line| *line == "READY=1").count(), 1);
    meter.is_stored_in(&folder.path("m.db")).await;
}

#[tokio::test]
async fn a_log_that_cannot_be_written_stops_nothing() {
    let (broker, folder, wire, mut meter) = (Broker::start().await, Folder::new(), Wire::new(), Meter::new(32));
    let (systemd, adapter) = (Systemd::new(&folder), folder.path("usb-adapter"));
    let config = gateway(&folder, &adapter) + &store(&folder) + &broker.section();
    let mut daemon = program(BINARY)
        .args(["run", "--config", folder.file("meterkast.toml", config).to_str().unwrap()])
        .env("NOTIFY_SOCKET", &systemd.path)
        .stderr(fs::File::options().write(true).open("/dev/full").unwrap())
        .spawn()
        .unwrap();
    // Much that is worth a line in the log.
    systemd.is_told("STATUS=p1 there is no ").await;
    symlink(&wire.path, &adapter).unwrap();
    systemd.is_told("STATUS=p1 open at 115200 8N1").await;
    let mut wire = wire;
    wire.send(&meter.telegrams(3)).await;
    meter.is_stored_in(&folder.path("m.db")).await;
    fs::remove_file(&adapter).unwrap();
    drop(wire);
    let lost = until("the port is lost", async || {
        let lines = systemd.lines();
        let open = lines.iter().position(|line| line.starts_with("STATUS=p1 open"))?;
        lines[open..].iter().any(|line| line.starts_with("STATUS=p1 there is no ")).then_some(lines.len())
    })
    .await;
    let mut wire = Wire::new();
    symlink(&wire.path, &adapter).unwrap();
    until("the port is back", async || systemd.lines()[lost..].iter().find(|line| line.contains("p1 open")).cloned())
        .await;
    wire.send(&meter.telegrams(3)).await;
    meter.is_stored_in(&folder.path("m.db")).await;
    assert_eq!(daemon.try_wait().unwrap(), None);
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}

#[tokio::test]
async fn what_cannot_be_reached_does_not_hold_up_the_start() {
    let folder = Folder::new();
    let systemd = Systemd::new(&folder);
    // A broker that takes the connection and says nothing, and a database that cannot be.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let broker = format!("[mqtt]\nurl = \"mqtt://{}\"\n", silent.local_addr().unwrap());
    let store = "[store]\nurl = \"sqlite:///sys/meterkast.db\"\n";
    let begin = Instant::now();
    let config = gateway(&folder, &folder.path("no-adapter")) + store + &broker;
    let daemon = systemd.start(&folder.file("meterkast.toml", config));
    systemd.is_told("READY=1").await;
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    systemd.is_told("store main waits for its database: ").await;
    systemd.is_told("gateway without its broker, 0 messages wait").await;
    systemd.is_told("WATCHDOG=1").await;
    drop(daemon);
}

/// Holds a database as another process would that writes for a long time.
async fn lock(database: &Path) -> sqlx::SqliteConnection {
    let mut connection = sqlx::SqliteConnection::connect(&format!("sqlite://{}", database.display())).await.unwrap();
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut connection).await.unwrap();
    connection
}

#[tokio::test]
async fn a_locked_database_does_not_hold_up_the_stop() {
    let (broker, folder, mut wire, mut meter) = (Broker::start().await, Folder::new(), Wire::new(), Meter::new(32));
    let (systemd, database) = (Systemd::new(&folder), folder.path("m.db"));
    let config = folder.file("meterkast.toml", gateway(&folder, &wire.path) + &store(&folder) + &broker.section());
    let mut daemon = systemd.start(&config);
    daemon.says("port p1: open").await;
    systemd.is_told("store main online").await;
    wire.send(&meter.telegrams(3)).await;
    meter.is_stored_in(&database).await;
    let stored = meter.messages() as u64;
    let locked = lock(&database).await;
    let client = Client::of(broker.port).await;
    wire.send(&meter.telegrams(5)).await;
    client.receives(meter.messages() - stored as usize, "/telegram").await;
    // It waits for the database in the middle of a commit; a little, so that it does.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (status, took) = daemon.terminate().await;
    assert!(status.success() && took < Duration::from_secs(5), "{status} after {took:?}");
    assert!(
        daemon.stderr().contains("what it had not committed comes again"),
        "the store was in the middle of a commit"
    );
    assert_eq!(systemd.lines().last().unwrap(), "STATUS=stopping");
    drop(locked);
    assert_eq!(counts(&database).await.unwrap().messages, stored);
    // Nothing was lost by it.
    let _daemon = Meterkast::run(&config);
    meter.is_stored_in(&database).await;
}

#[tokio::test]
async fn a_broker_that_hangs_and_a_search_do_not_hold_up_the_stop() {
    let (broker, folder, mut wire, mut meter) = (Broker::start().await, Folder::new(), Wire::new(), Meter::new(33));
    let (network, bus) = (Network::to(broker.port).await, Wire::new());
    let section = format!("[mqtt]\nurl = \"mqtt://127.0.0.1:{}\"\n", network.port);
    let mbus = format!("[[mbus]]\nport = \"{}\"\n", bus.path.display());
    let text = gateway(&folder, &wire.path).replace("id = \"gw-1\"\n", "id = \"gw-1\"\nclock = \"always\"\n");
    let config = folder.file("meterkast.toml", text + &store(&folder) + &section + &mbus);
    let systemd = Systemd::new(&folder);
    let mut daemon = systemd.start(&config);
    daemon.says("connected to the broker as gateway").await;
    daemon.says("connected to the broker as store").await;
    daemon.says("searches for meters").await;
    wire.send(&meter.telegrams(2)).await;
    meter.is_stored_in(&folder.path("m.db")).await;
    let stored = meter.messages();
    network.swallow();
    wire.send(&meter.telegrams(4)).await;
    // All are in the journal; the last acknowledgement may have been swallowed, too.
    let waiting = meter.messages() - stored..=meter.messages();
    let waiting: Vec<String> = waiting.map(|messages| format!("gateway online, {messages} messages wait")).collect();
    until("all are accepted", async || {
        systemd.lines().iter().any(|line| waiting.iter().any(|part| line.contains(part))).then_some(())
    })
    .await;
    let (status, took) = daemon.terminate().await;
    assert!(status.success() && took < Duration::from_secs(5), "{status} after {took:?}");
    network.break_all();
    let _daemon = Meterkast::run(&config);
    meter.is_stored_in(&folder.path("m.db")).await;
}

fn status(config: &Path, format: &str) -> (Option<i32>, String, String) {
    let ended = tokio::task::block_in_place(|| {
        meterkast(&["status", "--config", config.to_str().unwrap(), "--format", format], b"")
    });
    (ended.code, ended.stdout, ended.stderr)
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_what_an_installer_wants_to_see() {
    let (broker, folder, mut wire, mut meter) = (Broker::start().await, Folder::new(), Wire::new(), Meter::new(34));
    let adapter = folder.path("usb-adapter");
    symlink(&wire.path, &adapter).unwrap();
    let config = folder.file("meterkast.toml", gateway(&folder, &adapter) + &store(&folder) + &broker.section());
    let central = folder.file("central.toml", store(&folder) + &broker.section());

    // Nobody has run yet.
    let (code, _, problems) = status(&config, "table");
    assert_eq!(code, Some(1));
    assert!(problems.contains("gateway gw-1: the broker knows nothing of it"), "{problems}");
    let (code, _, problems) = status(&central, "table");
    assert!(code == Some(1) && problems.contains("no gateway has told anything at this broker"), "{problems}");

    let mut daemon = Meterkast::run(&config);
    daemon.says("port p1: open").await;
    wire.send(&meter.telegrams(3)).await;
    meter.is_stored_in(&folder.path("m.db")).await;
    let table = until("all is well", async || {
        let (code, table, problems) = status(&config, "table");
        let well = code == Some(0) && table.contains(" ago\n") && table.contains("main: online, 0 messages behind");
        (well && problems.is_empty()).then_some(table)
    })
    .await;
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("gateway gw-1: online, started 20"), "{table}");
    assert_eq!(lines[1], "  PORT  STATE               LAST TELEGRAM");
    assert!(lines[2].starts_with("  p1    open at 115200 8N1  "), "{table}");
    assert!(lines[3].starts_with("  journal: ") && lines[3].ends_with(" messages wait, 0 lost"), "{table}");
    assert!(lines[4].starts_with("  input: 0 rejected, 0 suspect readings"), "{table}");
    assert!(
        lines[5].starts_with("  store main: online, 0 messages behind, 0.") && lines[5].ends_with(" MB"),
        "{table}"
    );
    assert_eq!(lines.len(), 6, "{table}");

    // From where the store is, the same is seen of every gateway.
    let (code, json, problems) = status(&central, "json");
    assert_eq!(code, Some(0), "{problems}");
    let seen: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&seen["gateway"], &seen["status"], &seen["problems"]),
        (&"gw-1".into(), &"online".into(), &Value::Array(vec![]))
    );
    assert_eq!(seen["stores"][0]["status"], "online");
    assert_eq!(seen["health"]["ports"]["p1"]["state"], "open at 115200 8N1");

    // The adapter is pulled out: a script is told.
    fs::remove_file(&adapter).unwrap();
    drop(wire);
    let problems = until("the port is gone", async || {
        let (code, _, problems) = status(&config, "table");
        (code == Some(1)).then_some(problems)
    })
    .await;
    assert!(problems.starts_with("gateway gw-1: port p1: "), "{problems}");
    // The daemon ends, and then the broker.
    assert!(daemon.terminate().await.0.success());
    let (code, _, problems) = status(&config, "table");
    assert_eq!(code, Some(1));
    for part in ["gateway gw-1: is offline: is the daemon running there", "gateway gw-1: store main: is offline"] {
        assert!(problems.contains(part), "{problems}");
    }
    drop(broker);
    let (code, _, problems) = status(&config, "table");
    assert!(code == Some(1) && problems.contains("cannot be reached"), "{problems}");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_of_the_broker_inside_and_of_no_store() {
    let (folder, mut wire, mut meter) = (Folder::new(), Wire::new(), Meter::new(35));
    let inside = format!("[mqtt]\nlisten = \"127.0.0.1:{}\"\n", free_port());
    let config = folder.file("meterkast.toml", gateway(&folder, &wire.path) + "stores = []\n" + &inside);
    let (code, _, problems) = status(&config, "table");
    let own = "; it is the daemon's own: see whether that runs, with `systemctl status meterkast`\n";
    assert!(code == Some(1) && problems.ends_with(own) && !problems.contains("[mqtt] url"), "{problems}");
    let daemon = Meterkast::run(&config);
    daemon.says("port p1: open").await;
    daemon.says("connected to the broker").await;
    wire.send(&meter.telegram()).await;
    let table = until("all is well", async || {
        let (code, table, _) = status(&config, "table");
        (code == Some(0)).then_some(table)
    })
    .await;
    assert!(table.ends_with("  stores: none is listed; the promise ends at the broker\n"), "{table}");
    // A port that only the daemon knows cannot be asked.
    let any = folder.file("any.toml", gateway(&folder, &wire.path) + "[mqtt]\nlisten = \"127.0.0.1:0\"\n");
    let (code, _, problems) = status(&any, "table");
    assert!(code == Some(2) && problems.contains("give it a port to find it by"), "{problems}");
}

#[test]
fn check_remarks_what_run_will_lack() {
    let folder = Folder::new();
    let port = folder.file("port", "");
    let text = |journal: &Path, most: &str, database: &Path| {
        format!(
            "[[p1]]\nport = \"{}\"\n[journal]\npath = \"{}\"\nmax-bytes = \"{most}\"\n[store]\nurl = \"sqlite://{}\"\n",
            port.display(),
            journal.display(),
            database.display()
        )
    };
    // What is not there yet is made below what is.
    let well = folder.file("well.toml", text(&folder.path("a/b/journal"), "16MiB", &folder.path("c/m.db")));
    let ended = meterkast(&["check", well.to_str().unwrap()], b"");
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    assert!(!folder.path("a").exists() && !folder.path("c").exists(), "it changes nothing");

    // Where not even root may write; and more than any disk has.
    let ill =
        folder.file("ill.toml", text(Path::new("/proc/meterkast/journal"), "4000000GiB", Path::new("/proc/m.db")));
    let ended = meterkast(&["check", ill.to_str().unwrap()], b"");
    assert_eq!(ended.code, Some(0), "the file may be for another machine: {ended:?}");
    for part in [
        "the journal /proc/meterkast/journal cannot be written by this user: /proc: ",
        "the database /proc/m.db cannot be written by this user: /proc: ",
        "it belongs to root",
        "sudo -u meterkast meterkast check",
        "[journal] max-bytes is 4096000000 MiB, and 0 MiB are free where the journal /proc/meterkast/journal is",
    ] {
        assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
    }

    let file = folder.file("folder.toml", text(Path::new("/tmp/j"), "16MiB", &folder.path("")));
    let ended = meterkast(&["check", file.to_str().unwrap()], b"");
    assert!(
        ended.stderr.contains("is a directory; name a file, such as ") && !ended.stderr.contains("root"),
        "{ended:?}"
    );

    let server = "[store]\nurl = \"postgres://u@h/d\"\npassword-file = \"/nowhere/password\"\n";
    let file = folder.file("password.toml", server);
    let ended = meterkast(&["check", file.to_str().unwrap()], b"");
    let said = ": [store] password-file /nowhere/password cannot be read: No such file or directory (os error 2); until it can, `run` \
                stores nothing\n";
    assert!(ended.code == Some(0) && ended.stderr.ends_with(said), "{ended:?}");

    // What a trial as root leaves behind is in the way of the daemon's own user.
    let by = ["--reuid", "65534", "--regid", "65534", "--clear-groups", BINARY];
    let runs = Command::new("setpriv").args(by).arg("--version").output();
    if !runs.is_ok_and(|output| output.status.success()) {
        println!("skipped: nobody else can run {BINARY} here");
        return;
    }
    let journal = folder.path("journal");
    fs::create_dir(&journal).unwrap();
    let left = folder.file("journal/segment", "");
    for (path, mode) in [(folder.path(""), 0o755), (journal.clone(), 0o777), (left.clone(), 0o600)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let file = folder.file("left.toml", text(&journal, "16MiB", &journal.join("m.db")));
    let check = || Command::new("setpriv").args(by).args(["check".as_ref(), file.as_os_str()]).output().unwrap();
    let said = String::from_utf8(check().stderr).unwrap();
    let place = format!("the journal {} cannot be written by this user: {}: ", journal.display(), left.display());
    assert!(said.contains(&place) && said.contains("it belongs to root"), "{said}");
    assert!(!said.contains("database"), "{said}");
    chown(&left, Some(65_534), None).unwrap();
    assert_eq!(String::from_utf8(check().stderr).unwrap(), "");
}

#[tokio::test]
async fn a_pipe_may_wait_for_its_writer_without_end() {
    let (broker, folder, mut meter) = (Broker::start().await, Folder::new(), Meter::new(36));
    let (systemd, pipe) = (Systemd::new(&folder), folder.path("pipe"));
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let config = folder.file("meterkast.toml", gateway(&folder, &pipe) + &store(&folder) + &broker.section());
    let mut daemon = systemd.start(&config);
    systemd.is_told("STATUS=p1 waits for somebody to write into the pipe").await;
    systemd.is_told("READY=1").await;
    // Nobody writes: that holds up no end.
    let (status, took) = daemon.terminate().await;
    assert!(status.success() && took < Duration::from_secs(5), "{status} after {took:?}");
    let _daemon = Meterkast::run(&config);
    tokio::task::spawn_blocking({
        let telegrams = meter.telegrams(5);
        move || fs::write(pipe, telegrams).unwrap()
    })
    .await
    .unwrap();
    meter.is_stored_in(&folder.path("m.db")).await;
}
