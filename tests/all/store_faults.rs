//! The store with a real database, and what happens to databases: locked by another program, on a full disk, on one
//! that fails, damaged, read-only, taken away; and to stores: floods, clones. Whatever happens, what was acknowledged is
//! there, nothing is there twice, and it goes on by itself.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use sqlx::{ConnectOptions as _, raw_sql, sqlite::SqliteConnectOptions};

use crate::parts::{Broker, Client, Folder, Meter, Meterkast, Wire, counts, until};

/// A gateway, a store that commits at once, and what is between them; the database in a folder of its own.
struct House {
    broker: Broker,
    folder: Folder,
    client: Client,
    wire: Wire,
    meter: Meter,
    gateway: Meterkast,
    database: PathBuf,
}

impl House {
    /// All but the store.
    async fn new(number: u64) -> Self {
        let (broker, folder, wire) = (Broker::start().await, Folder::new(), Wire::new());
        let client = Client::of(broker.port).await;
        let (port, journal) = (wire.path.display().to_string(), folder.path("journal"));
        let config = format!(
            "[gateway]\nid = \"gw-1\"\n[[p1]]\nport = \"{port}\"\n[journal]\npath = \"{}\"\nsync = \"1s\"\nstores = [\"main\"]\n{}",
            journal.display(),
            broker.section()
        );
        let gateway = Meterkast::run(&folder.file("gateway.toml", config));
        gateway.says("port p1: open").await;
        gateway.says("connected to the broker").await;
        let data = folder.path("data");
        fs::create_dir(&data).unwrap();
        Self { broker, client, wire, meter: Meter::new(number), gateway, database: data.join("meterkast.db"), folder }
    }

    fn store(&self) -> Meterkast {
        let config = format!("[store]\nurl = \"sqlite://{}\"\ncommit = \"50ms\"\n", self.database.display());
        Meterkast::run(&self.folder.file("store.toml", config + &self.broker.section()))
    }

    /// A store that takes messages.
    async fn store_that_works(&self) -> Meterkast {
        let store = self.store();
        store.says("connected to the broker as store").await;
        store
    }

    /// The meter sends so many telegrams, and the gateway publishes what they hold.
    async fn telegrams(&mut self, count: usize) {
        // Not more at once than a connection has room for: the rest would go through the backlog.
        for _ in 0..count {
            self.wire.send(&self.meter.telegram()).await;
            self.client.receives(self.meter.messages(), "/telegram").await;
        }
    }

    /// The same, one commit after the other.
    async fn commits(&mut self, count: usize) {
        for _ in 0..count {
            self.telegrams(1).await;
            self.is_stored().await;
        }
    }

    /// Exactly what the meter sent is in the database.
    async fn is_stored(&self) {
        self.meter.is_stored_in(&self.database).await;
    }

    /// What the store says of its database.
    async fn database_is(&self, part: &str) {
        until(&format!("health with the database `{part}`"), async || {
            let health = self.client.under("_stores/main/health").last()?.json();
            health["database"].as_str()?.contains(part).then_some(())
        })
        .await;
    }

    /// How many messages were acknowledged as written.
    fn acknowledged(&self) -> u64 {
        let mut stored: BTreeMap<String, u64> = BTreeMap::new();
        for ack in self.client.under("gw-1/ack/main") {
            for epoch in ack.json()["epochs"].as_array().unwrap() {
                stored.insert(epoch["epoch"].to_string(), epoch["stored"].as_u64().unwrap());
            }
        }
        stored.values().sum()
    }

    /// Every file beside the database, with its content.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let files = fs::read_dir(self.database.parent().unwrap()).unwrap();
        files.map(|file| file.unwrap().path()).map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    }

    fn log(&self) -> PathBuf {
        self.database.with_extension("db-wal")
    }
}

/// Runs a command as root. False where that is not allowed here.
fn as_root(command: &[&str]) -> bool {
    let run = |command: &[&str]| {
        let mut process = Command::new(command[0]);
        process.args(&command[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        process.status().is_ok_and(|status| status.success())
    };
    run(command) || run(&[&["sudo", "-n"], command].concat())
}

/// A mount that ends with its variable.
struct Mount(PathBuf);

impl Mount {
    /// None, and a word about it, where mounting is not allowed.
    fn new(folder: &Path, how: &[&str]) -> Option<Self> {
        let mounted = as_root(&[&["mount"], how, &[folder.to_str().unwrap()]].concat());
        if !mounted {
            println!("skipped: mounting is not allowed here");
        }
        mounted.then(|| Self(folder.to_owned()))
    }

    fn again(&self, options: &str) {
        assert!(as_root(&["mount", "-o", options, self.0.to_str().unwrap()]));
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a test that failed may still have files open in it.
        as_root(&["umount", "-l", self.0.to_str().unwrap()]);
    }
}

#[tokio::test]
async fn a_database_that_another_program_locks_holds_everything_up_and_loses_nothing() {
    let mut house = House::new(31).await;
    let store = house.store_that_works().await;
    house.commits(2).await;
    let mut other = SqliteConnectOptions::new().filename(&house.database).connect().await.unwrap();
    raw_sql("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let long = std::env::var_os("METERKAST_CHAOS").is_some_and(|form| form == "long");
    let end = Instant::now() + Duration::from_secs(if long { 60 } else { 8 });
    let before = counts(&house.database).await.unwrap().messages;
    while Instant::now() < end {
        house.telegrams(1).await;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    store.says("another program keeps it locked; end the program that has a transaction open in it").await;
    house.database_is("another program keeps it locked").await;
    assert_eq!(counts(&house.database).await.unwrap().messages, before);
    assert_eq!(house.acknowledged(), before);
    raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
    house.is_stored().await;
    house.database_is("ok").await;
    assert_eq!(store.stderr().matches("keeps it locked").count(), 1, "said once");
    assert_eq!(store.stderr().matches("committing again").count(), 1);
}

#[tokio::test]
async fn a_full_disk_holds_everything_up_and_loses_nothing() {
    let mut house = House::new(32).await;
    let folder = house.database.parent().unwrap().to_owned();
    let Some(_mount) = Mount::new(&folder, &["-t", "tmpfs", "-o", "size=8m,mode=777", "tmpfs"]) else { return };
    let store = house.store_that_works().await;
    house.commits(2).await;
    for round in 1..=2 {
        let filler = folder.join("filler");
        let mut file = fs::File::create(&filler).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        house.telegrams(40).await;
        store.says_times(round, "the disk is full; free space").await;
        house.telegrams(40).await;
        house.database_is("the disk is full").await;
        drop(file);
        fs::remove_file(filler).unwrap();
        house.is_stored().await;
        store.says_times(round, "committing again").await;
        house.database_is("ok").await;
    }
    assert_eq!(store.stderr().matches("the disk is full").count(), 2, "said once each time");
}

/// strace on a running store: its syncs fail as told.
struct Failing(Child);

impl Failing {
    fn syncs_of(store: &mut Meterkast, when: &str) -> Option<Self> {
        let id = store.child().id().to_string();
        let inject = format!("inject=fdatasync,fsync:error=EIO:when={when}");
        let attach = |command: &[&str]| {
            let mut strace = Command::new(command[0]);
            strace.args(&command[1..]).args(["-f", "-p", &id, "-e", "trace=fdatasync,fsync", "-e", &inject]);
            strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()
        };
        let mut strace = attach(&["strace"])?;
        // It ends at once where it may not attach; each thread is attached to when this file says so.
        let end = Instant::now() + Duration::from_secs(60);
        let traced = || {
            let tasks = fs::read_dir(format!("/proc/{id}/task")).ok()?;
            let status = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).unwrap_or_default();
            Some(tasks.flatten().map(status).all(|status| !status.contains("TracerPid:\t0\n")))
        };
        while traced() != Some(true) {
            if strace.try_wait().unwrap().is_some() || Instant::now() > end {
                println!("skipped: strace may not attach here");
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(Self(strace))
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_sync_that_fails_is_no_commit() {
    let mut house = House::new(33).await;
    let mut store = house.store_that_works().await;
    house.commits(2).await;
    // The third sync fails; and the store is killed right after it said so.
    let Some(failing) = Failing::syncs_of(&mut store, "3") else { return };
    house.telegrams(1).await;
    house.telegrams(1).await;
    while !store.stderr().contains("the disk does not read or write") {
        house.telegrams(1).await;
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    let acknowledged = house.acknowledged();
    store.kill();
    drop(failing);
    let there = counts(&house.database).await.unwrap().messages;
    assert!(acknowledged <= there, "{acknowledged} acknowledged, {there} there");
    // Every second one fails for a while, in which it is killed again; then the disk recovers, and nobody is needed.
    let mut store = house.store_that_works().await;
    house.is_stored().await;
    let Some(failing) = Failing::syncs_of(&mut store, "1+2") else { return };
    while store.stderr().matches("the disk does not read or write").count() < 1 {
        house.telegrams(1).await;
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    house.database_is("the disk does not read or write; look for its errors with `dmesg`").await;
    drop(failing);
    house.telegrams(3).await;
    house.is_stored().await;
    store.says("committing again").await;
    store.kill();
    house.is_stored().await;
    assert!(house.acknowledged() <= house.meter.messages() as u64);
}

#[tokio::test]
async fn a_damaged_database_is_left_as_it_is_and_taken_again_when_it_is_put_right() {
    // What was damaged, and what helps.
    type Damage = fn(&House);
    let middle: Damage = |house| {
        let bytes = fs::metadata(&house.database).unwrap().len();
        let file = fs::File::options().write(true).open(&house.database).unwrap();
        let half = usize::try_from(bytes / 2).unwrap();
        file.write_all_at(&vec![0xa5; half], bytes / 4).unwrap();
    };
    let shorter: Damage = |house| {
        let file = fs::File::options().write(true).open(&house.database).unwrap();
        file.set_len(file.metadata().unwrap().len() / 8192 * 4096).unwrap();
    };
    let zeros: Damage = |house| {
        let bytes = fs::metadata(&house.database).unwrap().len();
        fs::write(&house.database, vec![0; usize::try_from(bytes).unwrap()]).unwrap();
    };
    let log: Damage = |house| {
        let file = fs::File::options().write(true).open(house.log()).unwrap();
        file.write_all_at(&[0xa5; 3000], 5000).unwrap();
    };
    let log_begin: Damage = |house| {
        let file = fs::File::options().write(true).open(house.log()).unwrap();
        file.write_all_at(&[0xa5; 3000], 0).unwrap();
    };
    let emptied: Damage = |house| {
        fs::File::options().write(true).open(&house.database).unwrap().set_len(0).unwrap();
    };
    let mut house = House::new(34).await;
    for (killed, damage, remedy) in [
        (false, middle, "is damaged; move it aside together with its -wal, or put a backup in its place"),
        (false, shorter, "is damaged; move it aside together with its -wal, or put a backup in its place"),
        (false, zeros, "is not a meterkast database; check `store.url`, or move the file away"),
        (true, emptied, "is damaged; move it aside together with its -wal, or put a backup in its place"),
        (true, log, "its write-ahead log (the file ending in -wal) is damaged"),
        (true, log_begin, "its write-ahead log (the file ending in -wal) is damaged"),
    ] {
        let mut store = house.store_that_works().await;
        house.commits(4).await;
        if killed {
            store.kill();
        } else {
            assert!(store.terminate().await.0.success());
        }
        let sound = house.files();
        damage(&house);
        let damaged = house.files();
        assert_ne!(sound, damaged);

        let store = house.store();
        store.says(&format!("{}: {remedy}", house.database.display())).await;
        house.database_is(remedy).await;
        // The gateways go on, and what was left stays as it is.
        house.telegrams(5).await;
        assert!(house.files() == damaged, "{remedy}: the files have changed");
        for (path, content) in &sound {
            if fs::read(path).unwrap() != *content {
                fs::write(path, content).unwrap();
            }
        }
        house.is_stored().await;
        house.database_is("ok").await;
        assert_eq!(store.stderr().matches(remedy).count(), 1, "said once: {}", store.stderr());
        drop(store);
    }
    // The remedy that is named helps.
    middle(&house);
    let store = house.store();
    store.says("move it aside together with its -wal").await;
    for path in house.files().into_keys().filter(|path| !path.ends_with("meterkast.db.lock")) {
        fs::rename(&path, house.folder.path("aside").with_file_name(path.file_name().unwrap())).unwrap();
    }
    house.telegrams(1).await;
    house.is_stored().await;
    assert!(house.gateway.stderr().contains("connected to the broker"));
}

#[tokio::test]
async fn a_read_only_disk_is_named_and_waited_for() {
    let mut house = House::new(35).await;
    let folder = house.database.parent().unwrap().to_owned();
    let Some(mount) = Mount::new(&folder, &["--bind", folder.to_str().unwrap()]) else { return };
    mount.again("remount,bind,ro");
    let store = house.store();
    store
        .says("the file or its directory is read-only; let the daemon's user write to both, or remount the disk")
        .await;
    house.telegrams(3).await;
    assert!(house.files().is_empty());
    mount.again("remount,bind,rw");
    house.is_stored().await;
    house.database_is("ok").await;
    assert_eq!(store.stderr().matches("is read-only").count(), 1);
}

#[tokio::test]
async fn a_database_that_is_taken_away_while_it_is_in_use_is_noticed_and_filled_again() {
    let mut house = House::new(36).await;
    let store = house.store_that_works().await;
    house.commits(3).await;
    let backup = house.folder.path("backup.db");
    let mut other = SqliteConnectOptions::new().filename(&house.database).connect().await.unwrap();
    let sql = format!("VACUUM INTO '{}'", backup.display());
    raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut other).await.unwrap();
    drop(other);
    house.commits(3).await;
    let generation = |house: &House| house.client.under("gw-1/ack/main").last().unwrap().json()["generation"].clone();
    let mut generations: Vec<Value> = vec![generation(&house)];
    for (times, what) in ["deleted", "replaced by a backup", "without its log", "all gone"].into_iter().enumerate() {
        match what {
            "deleted" => fs::remove_file(&house.database).unwrap(),
            "replaced by a backup" => fs::rename(&backup, &house.database).unwrap(),
            "without its log" => fs::remove_file(house.log()).unwrap(),
            _ => house.files().keys().for_each(|path| fs::remove_file(path).unwrap()),
        }
        house.telegrams(2).await;
        store.says_times(times + 1, "the file was replaced or deleted while it was in use; it is opened again").await;
        house.is_stored().await;
        until("an acknowledgement of all", async || {
            let ack = house.client.under("gw-1/ack/main").last()?.json();
            (ack["epochs"][0]["through"].as_u64()? == house.meter.messages() as u64).then_some(())
        })
        .await;
        generations.push(generation(&house));
    }
    // Another file is another generation; one that only lost its log is the same.
    let another: Vec<bool> = generations.windows(2).map(|pair| pair[0] != pair[1]).collect();
    assert_eq!(another, [true, true, false, true]);
    let kept = fs::read_dir(house.database.parent().unwrap()).unwrap().flatten().map(|file| file.file_name());
    let kept: Vec<_> = kept.collect();
    assert!(store.stderr().contains("belonged to a database that is gone; it is kept as"), "{kept:?}");
}

#[tokio::test]
async fn a_backup_put_back_while_the_store_is_down_is_a_new_generation() {
    let mut house = House::new(37).await;
    let mut store = house.store_that_works().await;
    house.commits(2).await;
    assert!(store.terminate().await.0.success());
    let backup = house.folder.path("backup.db");
    fs::copy(&house.database, &backup).unwrap();
    let mut store = house.store_that_works().await;
    house.commits(5).await;
    // Nothing is left to be sent: without a new generation the five would be missing for ever.
    assert_eq!(house.acknowledged(), house.meter.messages() as u64);
    store.kill();
    fs::rename(&backup, &house.database).unwrap();
    let store = house.store_that_works().await;
    house.is_stored().await;
    store.says("belonged to a database that is gone; it is kept as").await;
}

#[tokio::test]
async fn a_flood_of_garbage_holds_nobody_up() {
    let mut house = House::new(38).await;
    let mut store = house.store_that_works().await;
    let garbage = Client::of(house.broker.port).await;
    let (stop, mut stopped) = tokio::sync::oneshot::channel();
    let flood = tokio::spawn(async move {
        let mut sent = 0;
        while stopped.try_recv().is_err() {
            for (topic, payload) in [
                ("meterkast/evil/E1/telegram", &b"\xff\xfe garbage"[..]),
                ("meterkast/evil/E1/backlog", &[b'['; 2000]),
                ("meterkast/evil/a/b/telegram", b"{}"),
                ("meterkast/gw-1/E1/telegram", br#"{"schema":1,"gateway":"evil","epoch":"00000000000000000000000000000001","seq":1,"prev":0,"first":1}"#),
            ] {
                garbage.publish(topic, payload).await;
                sent += 1;
            }
        }
        sent
    });
    until("a thousand refused messages", async || (counts(&house.database).await?.refused > 1000).then_some(())).await;
    // Beside it every telegram is stored, each within the patience of the test.
    for _ in 0..5 {
        house.wire.send(&house.meter.telegram()).await;
        house.is_stored().await;
    }
    stop.send(()).unwrap();
    let sent: u64 = flood.await.unwrap();
    assert!(sent > 1000);
    until("the counters", async || {
        let health = house.client.under("_stores/main/health").last()?.json();
        (health["refused"].as_u64()? > 1000 && health["stored"].as_u64()? > 0).then_some(())
    })
    .await;
    assert!(store.stderr().matches("is refused").count() < 20, "the log is not flooded");
    let (status, took) = store.terminate().await;
    assert!(status.success() && took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn two_gateways_under_one_id_are_seen_and_both_are_stored() {
    let mut house = House::new(39).await;
    let (mut wire, mut meter) = (Wire::new(), Meter::new(40));
    let store = house.store_that_works().await;
    let config = format!(
        "[gateway]\nid = \"gw-1\"\n[[p1]]\nport = \"{}\"\n[journal]\npath = \"{}\"\nstores = [\"main\"]\n{}",
        wire.path.display(),
        house.folder.path("clone").display(),
        house.broker.section()
    );
    let mut clone = Meterkast::run(&house.folder.file("clone.toml", config));
    clone.says("port p1: open").await;
    until("the store sees them", async || {
        house.wire.send(&house.meter.telegram()).await;
        wire.send(&meter.telegram()).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        store
            .stderr()
            .contains("two gateways have the id gw-1: give each its own [gateway] id; SD cards are cloned")
            .then_some(())
    })
    .await;
    until("their id in the store's health", async || {
        let health = house.client.under("_stores/main/health").last()?.json();
        (health["shared_ids"] == serde_json::json!(["gw-1"]) && health["gateways"] == 1).then_some(())
    })
    .await;
    // One after the other they bring in what they hold.
    let total = (house.meter.messages() + meter.messages()) as u64;
    clone.kill();
    let config = fs::read_to_string(house.folder.path("clone.toml")).unwrap().replace("id = \"gw-1\"", "id = \"gw-2\"");
    let _clone = Meterkast::run(&house.folder.file("own.toml", config));
    let all = async || (counts(&house.database).await?.messages == total).then_some(());
    until("the messages of both", all).await;
}
