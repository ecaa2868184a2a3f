//! The store with a real PostgreSQL server, and what happens to servers: down, crashed, full, read-only, of a newer schema, with another
//! password. Whatever happens, what was acknowledged is there, nothing is there twice, it is said once, and goes on by itself.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use meterkast::config::StoreUrl;
use serde_json::Value;

use crate::{
    parts::{Broker, Client, Folder, Meter, Meterkast, Wire, free_port, until},
    postgres::{GUARDED, Postgres},
};

/// A gateway, a server, and what is between them.
struct House {
    broker: Broker,
    folder: Folder,
    client: Client,
    wire: Wire,
    meter: Meter,
    gateway: Meterkast,
    server: Postgres,
    database: String,
}

impl House {
    /// All but the store.
    async fn new(number: u64, server: Postgres) -> Self {
        let database = server.database();
        Self::at(number, server, database).await
    }

    /// The same, with a database that is there.
    async fn at(number: u64, server: Postgres, database: String) -> Self {
        let (broker, folder, wire) = (Broker::start().await, Folder::new(), Wire::new());
        let client = Client::of(broker.port).await;
        let config = format!(
            "[gateway]\nid = \"gw-1\"\n[[p1]]\nport = \"{}\"\n[journal]\npath = \"{}\"\nsync = \"1s\"\nstores = [\"main\"]\n{}",
            wire.path.display(),
            folder.path("journal").display(),
            broker.section()
        );
        let gateway = Meterkast::run(&folder.file("gateway.toml", config));
        gateway.says("port p1: open").await;
        gateway.says("connected to the broker").await;
        Self { broker, folder, client, wire, meter: Meter::new(number), gateway, server, database }
    }

    fn url(&self) -> StoreUrl {
        StoreUrl::parse(&self.server.url(&self.database)).unwrap()
    }

    /// A store of this `[store]`, which commits at once.
    fn store_of(&self, section: &str) -> Meterkast {
        let config = format!("[store]\n{section}commit = \"50ms\"\n{}", self.broker.section());
        Meterkast::run(&self.folder.file("store.toml", config))
    }

    fn store(&self) -> Meterkast {
        self.store_of(&format!("url = \"{}\"\n", self.url()))
    }

    /// A store that takes messages.
    async fn store_that_works(&self) -> Meterkast {
        let store = self.store();
        store.says("connected to the broker as store").await;
        store
    }

    /// The meter sends so many telegrams, and the gateway publishes what they hold.
    async fn telegrams(&mut self, count: usize) {
        for _ in 0..count {
            self.wire.send(&self.meter.telegram()).await;
            self.client.receives(self.meter.messages(), "/telegram").await;
        }
    }

    async fn is_stored(&self) {
        self.meter.is_stored_at(&self.url()).await;
    }

    /// What stores have said of themselves, in order: each under its own name, until it ends.
    fn healths(&self) -> Vec<(String, Value)> {
        let said = self.client.under("").into_iter().filter(|seen| !seen.payload.is_empty());
        said.filter_map(|seen| Some((seen.topic.split_once("/_stores/main/health/")?.1.to_owned(), seen.json())))
            .collect()
    }

    /// What the store says of its database.
    async fn database_is(&self, part: &str) {
        until(&format!("health with the database `{part}`"), async || {
            let said = self.healths().into_iter().next_back()?;
            said.1["database"].as_str()?.contains(part).then_some(())
        })
        .await;
    }
}

/// How often something was said.
fn times(store: &Meterkast, part: &str) -> usize {
    store.stderr().matches(part).count()
}

const UNREACHABLE: &str = "the server cannot be reached; is it running, and does `store.url` name its host and port?";

#[test]
fn a_server_keeps_what_it_committed_through_a_crash_and_asks_one_user_for_a_password() {
    let mut server = Postgres::start();
    let database = server.database();
    server.sql(&database, "CREATE TABLE kept (a int)");
    server.sql(&database, "INSERT INTO kept VALUES (7)");
    assert_eq!(server.sql(&database, "SHOW fsync"), ["on"]);
    server.sql(&database, &format!("CREATE ROLE {} LOGIN PASSWORD '{}'", GUARDED.0, GUARDED.1));
    server.crash();
    server.begin_with(&["default_transaction_read_only=on"]);
    assert_eq!(server.sql(&database, "SELECT a FROM kept"), ["7"]);
    server.stop();
    server.begin();
    assert_eq!(server.sql(&database, "SHOW default_transaction_read_only"), ["off"]);
    let guarded = StoreUrl::parse(&server.url(&database).replace("postgres@", "guarded@")).unwrap();
    let readings = crate::parts::meterkast(&["readings", "--store", &guarded.to_string()], b"");
    assert_eq!(readings.code, Some(1));
    assert!(readings.stderr.contains("the server refuses the user or its password"), "{}", readings.stderr);
    let data = server.data();
    drop(server);
    assert!(!data.exists());
}

#[tokio::test]
async fn a_server_that_is_down_is_waited_for_and_one_that_crashes_loses_nothing() {
    let mut server = Postgres::start();
    let database = server.database();
    server.stop();
    let mut house = House::at(41, server, database).await;
    let store = house.store();
    store.says(&format!("{}: {UNREACHABLE}", house.url())).await;
    house.telegrams(5).await;
    house.database_is("the server cannot be reached").await;
    house.server.begin();
    house.is_stored().await;
    house.database_is("ok").await;
    for round in 2..=4 {
        // In the middle of what it does.
        house.wire.send(&house.meter.telegram()).await;
        if round % 2 == 0 {
            house.server.crash()
        } else {
            house.server.stop()
        }
        house.telegrams(10).await;
        store.says_times(round, UNREACHABLE).await;
        house.database_is("the server cannot be reached").await;
        house.server.begin();
        house.is_stored().await;
        house.database_is("ok").await;
    }
    assert_eq!(times(&store, "the server cannot be reached"), 4, "said once each time: {}", store.stderr());
    assert_eq!(times(&store, "ERROR"), 4, "and nothing else: {}", store.stderr());
}

#[tokio::test]
async fn with_the_embedded_broker_the_backlog_comes_too() {
    let mut server = Postgres::start();
    let url = StoreUrl::parse(&server.url(&server.database())).unwrap();
    server.stop();
    let (folder, mut wire, mut meter) = (Folder::new(), Wire::new(), Meter::new(52));
    let config = format!(
        "[gateway]\nid = \"gw-1\"\n[[p1]]\nport = \"{}\"\n[journal]\npath = \"{}\"\nstores = [\"main\"]\n\
         [store]\nurl = \"{url}\"\ncommit = \"50ms\"\n[mqtt]\nlisten = \"127.0.0.1:{}\"\n",
        wire.path.display(),
        folder.path("journal").display(),
        free_port()
    );
    let daemon = Meterkast::run(&folder.file("meterkast.toml", config));
    daemon.says(&format!("{url}: {UNREACHABLE}")).await;
    // Nobody takes these; they come again as backlog.
    wire.send(&meter.telegrams(8)).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    server.begin();
    wire.send(&meter.telegrams(8)).await;
    meter.is_stored_at(&url).await;
    // So they do when the only store has left what comes to others, and takes it up again.
    for round in 1..=2 {
        server.stop();
        wire.send(&meter.telegrams(8)).await;
        daemon.says_times(round, "leaves what comes to the other stores").await;
        wire.send(&meter.telegrams(8)).await;
        server.begin();
        wire.send(&meter.telegrams(8)).await;
        meter.is_stored_at(&url).await;
    }
}

#[tokio::test]
async fn a_full_or_read_only_server_holds_everything_up_and_loses_nothing() {
    let folder = Folder::new();
    let small = folder.path("small");
    fs::create_dir(&small).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=24m,mode=777", "tmpfs"]).arg(&small).status();
    let mount = Mount(small.clone());
    if !mounted.is_ok_and(|status| status.success()) {
        println!("skipped: mounting is not allowed here");
        return;
    }
    open_to_all(&small);
    let server = Postgres::start();
    server.give(&small);
    server.sql("postgres", &format!("CREATE TABLESPACE small LOCATION '{}'", small.display()));
    server.sql("postgres", "CREATE DATABASE small TABLESPACE small");
    let mut house = House::at(42, server, "small".into()).await;
    let store = house.store_that_works().await;
    house.telegrams(2).await;
    house.is_stored().await;
    for round in 1..=2 {
        let filler = small.join("filler");
        let _ = Command::new("dd").args(["if=/dev/zero", "bs=4096"]).arg(format!("of={}", filler.display())).output();
        while times(&store, "the server's disk is full; free space there") < round {
            house.telegrams(20).await;
        }
        house.telegrams(20).await;
        house.database_is("the server's disk is full").await;
        fs::remove_file(filler).unwrap();
        house.is_stored().await;
        house.database_is("ok").await;
    }
    assert_eq!(times(&store, "the server's disk is full"), 2, "said once each time: {}", store.stderr());

    house.server.stop();
    house.server.begin_with(&["default_transaction_read_only=on"]);
    house.telegrams(5).await;
    store.says("the server is read-only: a replica, or default_transaction_read_only is on").await;
    house.database_is("the server is read-only").await;
    house
        .server
        .sql("postgres", "BEGIN READ WRITE; ALTER DATABASE small SET default_transaction_read_only = off; COMMIT");
    house.is_stored().await;
    house.database_is("ok").await;
    assert_eq!(times(&store, "the server is read-only"), 1);
    drop(store);
    drop(house);
    drop(mount);
}

#[tokio::test]
async fn a_wrong_password_is_named_and_not_shown_and_a_newer_schema_is_left_alone() {
    let mut house = House::new(43, Postgres::start()).await;
    let (user, password) = GUARDED;
    house.server.sql("postgres", &format!("CREATE ROLE {user} LOGIN SUPERUSER PASSWORD '{password}'"));
    let secret = house.folder.file("password", "hunter2\n");
    let url = house.url().to_string().replace("postgres@", &format!("{user}@"));
    let mut store = house.store_of(&format!("url = \"{url}\"\npassword-file = \"{}\"\n", secret.display()));
    store
        .says(&format!(
            "{url}: the server refuses the user or its password; check `store.url`, the password ([store] password-file; "
        ))
        .await;
    house.telegrams(3).await;
    house.database_is("the server refuses the user or its password").await;
    // Put right, without a start.
    fs::write(&secret, format!("{password}\n")).unwrap();
    house.is_stored().await;
    house.database_is("ok").await;
    let said = house.client.under("").iter().map(|seen| seen.payload.clone()).collect::<String>() + &store.stderr();
    assert!(!said.contains("hunter2") && !said.contains(password), "{said}");
    assert!(store.terminate().await.0.success());

    house.server.sql(&house.database, "INSERT INTO _sqlx_migrations SELECT 9999, '', now(), true, '', 0");
    let store = house.store();
    store.says("written by a newer meterkast (tables of version 9999); upgrade this one").await;
    house.telegrams(3).await;
    house.database_is("written by a newer meterkast").await;
    let url = house.url().to_string();
    let readings = crate::parts::meterkast(&["readings", "--store", &url], b"");
    assert_eq!((readings.code, readings.stdout.as_str()), (Some(1), ""));
    assert!(readings.stderr.contains("written by a newer meterkast"), "{}", readings.stderr);
    house.server.sql(&house.database, "DELETE FROM _sqlx_migrations WHERE version = 9999");
    house.is_stored().await;
    assert_eq!(times(&store, "written by a newer meterkast"), 1);
    assert!(house.gateway.stderr().contains("connected to the broker"));
}

#[tokio::test]
async fn two_stores_share_what_comes_and_when_one_is_killed_nothing_is_lost_or_doubled() {
    let mut house = House::new(44, Postgres::start()).await;
    let config = format!("[store]\nurl = \"{}\"\ncommit = \"300ms\"\n{}", house.url(), house.broker.section());
    let config = house.folder.file("store.toml", config);
    let start = || Meterkast::run(&config);
    let mut stores = vec![start(), start()];
    for store in &stores {
        store.says("connected to the broker as store").await;
    }
    let committed = |house: &House| {
        let sql = "SELECT state_change FROM pg_stat_activity WHERE application_name = 'meterkast' ORDER BY pid";
        house.server.sql(&house.database, sql)
    };
    let before = until("both connections", async || Some(committed(&house)).filter(|times| times.len() == 2)).await;
    house.telegrams(10).await;
    house.is_stored().await;
    let both = async || {
        let now = committed(&house);
        (now.len() == 2 && now.iter().zip(&before).all(|(now, before)| now != before)).then_some(())
    };
    until("both have committed", both).await;
    for _ in 0..3 {
        // It holds what it took within the last 300 ms; others come while it is away.
        house.telegrams(10).await;
        stores.remove(0).kill();
        house.telegrams(10).await;
        house.is_stored().await;
        stores.push(start());
        stores[1].says("connected to the broker as store").await;
    }
    for mut store in stores {
        assert!(store.terminate().await.0.success());
        assert!(!store.stderr().contains("ERROR"), "{}", store.stderr());
    }
    until("the stores are offline", async || {
        (house.client.under("_stores/main/status").last()?.payload == "offline").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_store_that_loses_its_database_leaves_everything_to_the_other_until_it_has_it_again() {
    let mut house = House::new(46, Postgres::start()).await;
    house.server.sql("postgres", "CREATE ROLE lonely SUPERUSER LOGIN");
    let section = |user: &str| {
        let url = house.url().to_string().replace("postgres@", user);
        format!("[store]\nurl = \"{url}\"\ncommit = \"300ms\"\n{}", house.broker.section())
    };
    let mut stores = ["postgres@", "lonely@"].map(|user| Meterkast::run(&house.folder.file(user, section(user))));
    for store in &stores {
        store.says("connected to the broker as store").await;
    }
    let both_commit = async |house: &mut House| {
        let sql =
            "SELECT usename, state_change FROM pg_stat_activity WHERE application_name = 'meterkast' ORDER BY pid";
        let before = until("both connections", async || {
            Some(house.server.sql(&house.database, sql)).filter(|times| times.len() == 2)
        })
        .await;
        house.telegrams(10).await;
        let both = async || {
            let now = house.server.sql(&house.database, sql);
            (now.len() == 2 && now.iter().zip(&before).all(|(now, before)| now != before)).then_some(())
        };
        until("both have committed", both).await;
    };
    both_commit(&mut house).await;
    house.is_stored().await;
    for round in 1..=2 {
        house.server.sql("postgres", "ALTER ROLE lonely NOLOGIN");
        house.server.sql("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'lonely'");
        let lost = Instant::now();
        // It gets its share of these, and holds what it gets.
        while stores[1].stderr().matches("leaves what comes to the other stores").count() < round {
            house.telegrams(5).await;
        }
        house.telegrams(10).await;
        house.is_stored().await;
        // Long before the gateway sends by itself what nobody confirmed, after a minute.
        println!("all is stored {:?} after the loss, {} messages", lost.elapsed(), house.meter.messages());
        assert!(lost.elapsed() < Duration::from_secs(40), "{:?}", lost.elapsed());
        // Each says how it is.
        until("one is well and one is not", async || {
            let newest: BTreeMap<String, Value> = house.healths().into_iter().collect();
            let mut words: Vec<_> = newest.values().map(|health| health["database"].as_str().unwrap()).collect();
            words.sort_unstable();
            let [well, other] = words[..] else { return None };
            (well == "ok" && other.contains("the server refuses the user")).then_some(())
        })
        .await;
        let status = house.client.under("_stores/main/status").pop().unwrap();
        assert_eq!(status.payload, "online", "one takes messages");
        house.server.sql("postgres", "ALTER ROLE lonely LOGIN");
        stores[1].says_times(round, "store: committing again").await;
        both_commit(&mut house).await;
        house.is_stored().await;
    }
    assert_eq!(times(&stores[0], "ERROR"), 0, "{}", stores[0].stderr());
    // The connection that broke, and the one that is refused.
    assert_eq!(times(&stores[1], "ERROR"), 4, "each said once each time: {}", stores[1].stderr());
    // Who ends leaves nothing behind, and takes nothing of the other's away.
    let kept = async || {
        let client = Client::of(house.broker.port).await;
        client.receives(1, "_stores/main/status").await;
        client.under("").into_iter().filter(|seen| seen.topic.contains("/_stores/main/health/")).count()
    };
    assert_eq!(kept().await, 2);
    assert!(stores[1].terminate().await.0.success());
    assert_eq!(kept().await, 1);
    assert!(stores[0].terminate().await.0.success());
    assert_eq!(kept().await, 0);
}

#[tokio::test]
async fn a_message_that_the_server_does_not_take_is_refused_and_holds_nothing_up() {
    let mut house = House::new(45, Postgres::start()).await;
    let store = house.store_that_works().await;
    house.telegrams(2).await;
    house.is_stored().await;
    let alter = |house: &House, what: &str| drop(house.server.sql(&house.database, &format!("ALTER TABLE {what}")));
    let holds = async |house: &House, messages: usize, refused: usize| {
        let expected = (messages as u64, refused as u64);
        let what = format!("{expected:?} messages and refused ones");
        let counts = async || crate::parts::counts_at(&house.url()).await;
        until(&what, async || {
            let counts = counts().await?;
            ((counts.messages, counts.refused) == expected).then_some(())
        })
        .await;
    };
    // What the meter will say at 20:03 and 20:07.
    let strange = "CHECK (at NOT IN ('2026-11-21 20:03:00+01', '2026-11-21 20:07:00+01'))";
    alter(&house, &format!("message ADD CONSTRAINT strange {strange}"));
    house.telegrams(3).await;
    holds(&house, house.meter.messages() - 1, 1).await;
    store.says("is refused: the database does not take it: ").await;
    until("all is acknowledged", async || {
        let ack = house.client.under("/ack/main").last()?.json();
        let all = ack["epochs"][0]["through"] == house.meter.messages();
        (all && ack["epochs"][0]["refused"] == 1).then_some(())
    })
    .await;
    house.database_is("ok").await;
    assert_eq!(times(&store, "ERROR"), 0, "{}", store.stderr());

    // Not even as refused: it waits alone.
    alter(&house, "refused ADD CONSTRAINT closed CHECK (false) NOT VALID");
    house.telegrams(4).await;
    store.says("; it waits, and everything else is stored").await;
    house.database_is("the database does not take it").await;
    house.telegrams(4).await;
    holds(&house, house.meter.messages() - 2, 1).await;
    alter(&house, "message DROP CONSTRAINT strange");
    holds(&house, house.meter.messages() - 1, 1).await;
    house.database_is("ok").await;
    assert_eq!(times(&store, "ERROR"), 1, "said once: {}", store.stderr());
}

/// A mount that ends with its variable.
struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// Lets every user pass through the folders above.
fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn a_message_that_waits_alone_keeps_nobody_aside() {
    let mut house = House::new(47, Postgres::start()).await;
    let store = house.store_that_works().await;
    house.telegrams(2).await;
    house.is_stored().await;
    let alter = |house: &House, what: &str| drop(house.server.sql(&house.database, &format!("ALTER TABLE {what}")));
    alter(&house, "message ADD CONSTRAINT strange CHECK (at <> '2026-11-21 20:03:00+01')");
    alter(&house, "refused ADD CONSTRAINT closed CHECK (false) NOT VALID");
    house.telegrams(3).await;
    store.says("; it waits, and everything else is stored").await;
    house.server.stop();
    store.says("leaves what comes to the other stores").await;
    house.server.begin();
    house.telegrams(3).await;
    let all_but_one = house.meter.messages() as u64 - 1;
    until("everything else is stored", async || {
        (crate::parts::counts_at(&house.url()).await?.messages == all_but_one).then_some(())
    })
    .await;
    assert_eq!(house.client.under("_stores/main/status").pop().unwrap().payload, "online");
    alter(&house, "message DROP CONSTRAINT strange");
    house.is_stored().await;
    house.database_is("ok").await;
}
