//! A gateway whose disk fails: syncs that fail, no space, and a journal that is not as it was left.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use meterkast::{
    p1::Writer,
    store::{Reader as _, sqlite::Reader},
};
use serde_json::Value;

use crate::parts::{Broker, Client, Folder, Meter, Meterkast, Wire, counts, program, until};

/// Damage in one place costs at most the records of one block.
const BLOCK: u64 = 64 << 10;

/// The section of gateway `gw-1` with a port, and its journal there.
fn gateway(port: &Path, journal: &Path) -> String {
    format!(
        "[gateway]\nid = \"gw-1\"\n[[p1]]\nport = \"{}\"\n[journal]\npath = \"{}\"\nsync = \"1s\"\n",
        port.display(),
        journal.display()
    )
}

/// The section of a store that commits at once.
fn store(database: &Path) -> String {
    format!("[store]\nurl = \"sqlite://{}\"\ncommit = \"50ms\"\n", database.display())
}

/// So many telegrams a second apart, each with a text of so many bytes.
fn telegrams(count: usize, text: usize) -> Vec<u8> {
    let telegram = |number: usize| {
        let (hour, minute, second) = (number / 3600, number / 60 % 60, number % 60);
        let mut telegram = Writer::new("XYZ5 faults")
            .line("1-3:0.2.8(50)")
            .line(format!("0-0:1.0.0(260714{hour:02}{minute:02}{second:02}S)"))
            .line("0-0:96.1.1(4530303031)")
            .line(format!("1-0:1.8.1({number:06}.000*kWh)"));
        for line in 0..text / 100 {
            // Not the same everywhere: whoever compresses gains nothing.
            let noise = (number * 1009 + line).wrapping_mul(2_654_435_761) % 1_000_000_007;
            telegram = telegram.line(format!("0-0:99.{line}.9({noise:010}{})", "x".repeat(80)));
        }
        telegram.finish(true)
    };
    (0..count).flat_map(telegram).collect()
}

/// What `health` said last.
fn health(client: &Client) -> Option<Value> {
    Some(client.under("gw-1/health").last()?.json())
}

/// Waits until `health` says that so many messages were written.
async fn are_journaled(client: &Client, count: usize) {
    let written = async || (health(client)?["messages"].as_u64()? >= count as u64).then_some(());
    until(&format!("{count} messages in the journal"), written).await;
}

#[tokio::test]
async fn a_failed_sync_loses_nothing_that_was_sent() {
    let (broker, folder, mut wire, mut meter) = (Broker::start().await, Folder::new(), Wire::new(), Meter::new(140));
    let client = Client::of(broker.port).await;
    let config = gateway(&wire.path, &folder.path("journal")) + &broker.section();
    let config = folder.file("gateway.toml", config);
    let (trace, syncs) = (folder.path("trace"), "fdatasync,fsync");
    let mut strace = program("strace");
    strace.args(["-f", "-qq", "-o"]).arg(&trace).args(["-e", &format!("trace={syncs}")]);
    // Each thread counts for itself.
    strace.args(["-e", &format!("inject={syncs}:error=EIO:when=3")]);
    strace.arg(env!("CARGO_BIN_EXE_meterkast")).arg("run").arg("--config").arg(&config);
    let mut traced =
        Meterkast::of(strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
    traced.says("port p1: open").await;
    traced.says("connected to the broker").await;
    until("a sync has failed (is strace installed, and allowed?)", async || {
        wire.send(&meter.telegram()).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        fs::read_to_string(&trace).is_ok_and(|trace| trace.contains("(INJECTED)")).then_some(())
    })
    .await;
    traced.says("Input/output error").await;
    wire.send(&meter.telegrams(5)).await;
    client.receives(meter.messages(), "/telegram").await;
    // The program itself, not strace, which ends with it.
    let strace = traced.child().id();
    let children = fs::read_to_string(format!("/proc/{strace}/task/{strace}/children")).unwrap();
    assert!(program("kill").arg("-KILL").args(children.split_whitespace()).status().unwrap().success());
    traced.ends().await;

    let database = folder.path("meterkast.db");
    let _store = Meterkast::run(&folder.file("store.toml", store(&database) + &broker.section()));
    let again = Meterkast::run(&config);
    again.says("connected to the broker").await;
    meter.is_stored_in(&database).await;
    wire.send(&meter.telegrams(3)).await;
    meter.is_stored_in(&database).await;
}

/// A small file system in memory, mounted; it goes with this.
struct Small(PathBuf);

impl Small {
    /// None where nothing may be mounted.
    fn mount(folder: &Folder, size: &str) -> Option<Self> {
        let path = folder.path("small");
        fs::create_dir(&path).unwrap();
        let user = fs::metadata(&path).unwrap();
        let owner = format!("size={size},uid={}", std::os::unix::fs::MetadataExt::uid(&user));
        let mounted = as_root("mount").args(["-t", "tmpfs", "-o", &owner, "none"]).arg(&path).output();
        let mounted = mounted.is_ok_and(|output| output.status.success());
        if !mounted {
            println!("skipped: nothing can be mounted here without a password");
        }
        mounted.then_some(Self(path))
    }

    /// Fills what is left of it.
    fn fill(&self) {
        let mut file = fs::File::create(self.0.join("ballast")).unwrap();
        for size in [1 << 16, 1 << 12, 1] {
            while file.write_all(&vec![b'x'; size]).is_ok() {}
        }
    }

    fn free(&self) {
        fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = as_root("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// A command as root, directly or by sudo if that asks for nothing.
fn as_root(command: &str) -> std::process::Command {
    let root = program("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
    let path = format!("{}:/usr/local/sbin:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut full = program(if root { command } else { "sudo" });
    if !root {
        full.args(["-n", command]);
    }
    full.env("PATH", path);
    full
}

#[tokio::test]
async fn a_full_disk_stops_nothing_for_good_and_loses_nothing_uncounted() {
    let (broker, folder) = (Broker::start().await, Folder::new());
    let Some(small) = Small::mount(&folder, "64m") else { return };
    let client = Client::of(broker.port).await;
    const COUNT: usize = 3000;
    // 20 MB: more than any journal sets aside for itself before the rest of the disk is taken.
    let capture = folder.file("capture", telegrams(COUNT, 6000));
    let fifo = folder.path("port");
    assert!(program("mkfifo").arg(&fifo).status().unwrap().success());
    let config = gateway(&fifo, &small.0.join("journal")) + &broker.section();
    let config = folder.file("gateway.toml", config);
    let mut daemon = Meterkast::run(&config);
    daemon.says("connected to the broker").await;
    small.fill();
    let mut feeding =
        program("sh").args(["-c", "exec cat \"$1\" >\"$2\"", "sh"]).args([&capture, &fifo]).spawn().unwrap();

    // It is said, in the log and in health, and the daemon goes on.
    daemon.says("journal").await;
    let trouble = until("health tells of it", async || {
        let health = health(&client)?;
        (health["unwritten"].as_u64()? > 0 || health["lost"].as_u64()? > 0).then_some(health)
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(daemon.child().try_wait().unwrap().is_none(), "it ended: {trouble}");
    assert!(daemon.stderr().lines().count() < 50, "it is not said over and over:\n{}", daemon.stderr());

    // Space comes back, and then a store: all that is not counted as lost arrives.
    small.free();
    let database = folder.path("meterkast.db");
    let _store = Meterkast::run(&folder.file("store.toml", store(&database) + &broker.section()));
    until("everything is stored, or counted as lost", async || {
        let (stored, health) = (counts(&database).await?.messages, health(&client)?);
        let lost = health["lost"].as_u64()?;
        // What was given up on its way is stored a moment before the gateway hears of it.
        (stored + lost == COUNT as u64 && health["depth"] == 0).then_some(())
    })
    .await;
    assert!(feeding.wait().unwrap().success());
}

/// What was done to a journal between two runs.
struct Damaged {
    /// The file that must be named, if any.
    file: Option<String>,
    /// The most that it may cost; None: whatever was cut off.
    most: Option<u64>,
}

/// The segment with the most in it, and how far it is written.
fn largest(journal: &Path) -> (PathBuf, u64) {
    let files = fs::read_dir(journal).unwrap().map(|file| file.unwrap().path());
    let segments = files.filter(|path| path.extension().is_some_and(|end| end == "segment"));
    let used = |path: PathBuf| {
        let content = fs::read(&path).unwrap();
        let used = content.iter().rposition(|byte| *byte != 0).map_or(0, |at| at as u64 + 1);
        (path, used)
    };
    segments.map(used).max_by_key(|(_, used)| *used).unwrap()
}

fn overwrite(journal: &Path, bytes: &[u8]) -> Damaged {
    let (path, used) = largest(journal);
    fs::File::options().write(true).open(&path).unwrap().write_all_at(bytes, used / 2).unwrap();
    // The smallest record has more than 1 KiB; the damage may lie across two blocks.
    let blocks = if bytes.len() > 1 { 2 } else { 1 };
    Damaged { file: Some(path.file_name().unwrap().to_str().unwrap().to_owned()), most: Some(blocks * BLOCK / 1024) }
}

/// Messages that the damage below is done to.
const MESSAGES: usize = 600;

/// Journals messages that no store takes, damages the journal as told, and starts again, with a store.
async fn after_damage(damage: impl FnOnce(&Path) -> Option<Damaged>) {
    let (broker, folder) = (Broker::start().await, Folder::new());
    let client = Client::of(broker.port).await;
    let journal = folder.path("journal");
    let capture = folder.file("capture", telegrams(MESSAGES, 2500));
    let config = |port: &Path| folder.file("gateway.toml", gateway(port, &journal) + &broker.section());
    let mut first = Meterkast::run(&config(&capture));
    are_journaled(&client, MESSAGES).await;
    assert!(first.terminate().await.0.success());
    let Some(Damaged { file, most }) = damage(&journal) else { return };

    let database = folder.path("meterkast.db");
    let _store = Meterkast::run(&folder.file("store.toml", store(&database) + &broker.section()));
    let epoch = health(&client).unwrap()["epoch"].clone();
    let again = Meterkast::run(&config(Path::new("-")));
    again.says("connected to the broker").await;
    if let Some(file) = &file {
        again.says(file).await;
    }
    let lost = until("the rest is stored", async || {
        let health = health(&client).filter(|health| health["epoch"] != epoch)?;
        let stored = counts(&database).await?.messages;
        if stored == 0 || health["depth"] != 0 {
            return None;
        }
        let lost = MESSAGES as u64 - stored;
        // What was cut off at the end cannot be counted: nothing tells that it was there.
        (most.is_none() || health["lost"] == lost).then_some(lost)
    })
    .await;
    match most {
        Some(0) => assert_eq!(lost, 0),
        Some(most) => assert!((1..=most).contains(&lost), "{lost} of at most {most} are lost"),
        None => assert!((1..MESSAGES as u64 * 3 / 4).contains(&lost), "{lost} are lost"),
    }
    // Each that is there is what was sent.
    let mut reader = Reader::open(&database).await.unwrap();
    assert_eq!(reader.counts().await.unwrap().refused, 0);
    let distinct: BTreeSet<u64> =
        client.under("/backlog").iter().map(|seen| seen.json()["seq"].as_u64().unwrap()).collect();
    assert!(distinct.len() as u64 >= MESSAGES as u64 - lost);
}

#[tokio::test]
async fn a_flipped_byte_in_the_journal_costs_a_block() {
    after_damage(|journal| Some(overwrite(journal, b"\xA5"))).await;
}

#[tokio::test]
async fn bytes_overwritten_in_the_journal_cost_a_block() {
    after_damage(|journal| Some(overwrite(journal, &[0xA5; 100]))).await;
}

#[tokio::test]
async fn zeros_in_the_journal_cost_a_block() {
    after_damage(|journal| Some(overwrite(journal, &[0; 512]))).await;
}

#[tokio::test]
async fn a_segment_cut_off_costs_what_was_cut_off() {
    after_damage(|journal| {
        let (path, used) = largest(journal);
        fs::File::options().write(true).open(&path).unwrap().set_len(used / 2 + 7).unwrap();
        Some(Damaged { file: Some(path.file_name().unwrap().to_str().unwrap().to_owned()), most: None })
    })
    .await;
}

/// A name like that of a segment, with a number that no segment has.
fn another(journal: &Path) -> PathBuf {
    let (segment, _) = largest(journal);
    let digits = segment.file_stem().unwrap().len();
    journal.join(format!("{:0digits$}.segment", 7777))
}

#[tokio::test]
async fn foreign_files_in_the_journal_cost_nothing() {
    after_damage(|journal| {
        fs::write(journal.join("notes.txt"), "not mine").unwrap();
        fs::write(journal.join("x.segment"), "nor this").unwrap();
        let like_one = another(journal);
        fs::write(&like_one, "no segment, whatever it is called".repeat(1000)).unwrap();
        Some(Damaged { file: Some(like_one.file_name().unwrap().to_str().unwrap().to_owned()), most: Some(0) })
    })
    .await;
}

#[tokio::test]
async fn an_empty_segment_costs_nothing() {
    after_damage(|journal| {
        fs::write(another(journal), "").unwrap();
        Some(Damaged { file: None, most: Some(0) })
    })
    .await;
}

#[tokio::test]
async fn a_directory_named_like_a_segment_costs_nothing() {
    after_damage(|journal| {
        fs::create_dir(another(journal)).unwrap();
        Some(Damaged { file: None, most: Some(0) })
    })
    .await;
}

#[tokio::test]
async fn a_segment_that_may_not_be_read_costs_nothing_else() {
    use std::os::unix::fs::PermissionsExt as _;
    after_damage(|journal| {
        let other = another(journal);
        fs::write(&other, "whatever it is").unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o000)).unwrap();
        if fs::read(&other).is_ok() {
            println!("skipped: root may read everything");
            return None;
        }
        Some(Damaged { file: Some(other.file_name().unwrap().to_str().unwrap().to_owned()), most: Some(0) })
    })
    .await;
}
