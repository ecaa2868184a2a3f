//! What is told of PostgreSQL alone; the rest is in `store::story`.

use std::{path::Path, process::Command};

use sqlx::Executor as _;

use super::{server::GUARDED, *};
use crate::{
    config::{Config, StoreUrl},
    delivery::{Epoch, Tally},
    moment::Moment,
    payload::Message,
    pulse::Pulse,
    store::{
        Counts, Quarters, Reader as _, apart,
        story::{START, batch, counts, message, refused},
    },
    unit::Unit,
};

fn url(text: &str) -> PostgresUrl {
    match StoreUrl::parse(text).unwrap() {
        StoreUrl::Postgres(url) => url,
        StoreUrl::Sqlite(_) => panic!("{text}"),
    }
}

/// A new database of the server that all tests share.
fn database() -> (String, PostgresUrl) {
    let server = server::Postgres::shared();
    let name = server.database();
    let url = url(&server.url(&name));
    (name, url)
}

fn sql(database: &str, sql: &str) -> Vec<String> {
    server::Postgres::shared().sql(database, sql)
}

/// What opening says is wrong, for a writer and for a reader.
async fn complaints(url: &PostgresUrl) -> [String; 2] {
    let writer = Postgres::open(url).await.unwrap_err();
    let reader = Reader::open(url).await.unwrap_err();
    assert!(writer.needs_reopening() || matches!(writer, StoreError::Database { trouble: Trouble::Rights, .. }));
    [writer.to_string(), reader.to_string()]
}

impl Postgres {
    async fn setting(&mut self, name: &str) -> String {
        query_scalar("SELECT current_setting($1)").bind(name).fetch_one(&mut self.session.connection).await.unwrap()
    }
}

#[tokio::test]
async fn the_database_is_made_as_the_promise_needs_it() {
    let (name, url) = database();
    sql("postgres", &format!("ALTER DATABASE {name} SET synchronous_commit = off"));
    sql("postgres", &format!("ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'"));
    let store = Postgres::open(&url).await.unwrap();
    let (generation, started) = (store.generation().to_owned(), store.started().to_owned());
    for bits in [&generation, &started] {
        assert!(Epoch::from_text(bits).is_some());
    }
    assert!(store.size().bytes > 1_000_000);
    Box::new(store).close().await.unwrap();
    // On a task of its own, as the daemon does: all these futures must be Send.
    let reopened = url.clone();
    let task = tokio::spawn(async move {
        let mut store = Postgres::open(&reopened).await.unwrap();
        store.commit(&batch([message(1, 0, "1")])).await.unwrap();
        store.keep_up(Duration::MAX).await.unwrap();
        store.epochs("gw-1").await.unwrap();
        Reader::open(&reopened).await.unwrap().readings(None).await.unwrap();
        store
    });
    let mut store = task.await.unwrap();
    assert_eq!(store.setting("synchronous_commit").await, "on");
    assert_eq!(store.generation(), generation);
    assert_ne!(store.started(), started);
    sql(&name, "DELETE FROM store");
    assert_ne!(Postgres::open(&url).await.unwrap().generation(), generation);
    // A standby that must have it, too, is waited for as before.
    sql("postgres", &format!("ALTER DATABASE {name} SET synchronous_commit = remote_apply"));
    assert_eq!(Postgres::open(&url).await.unwrap().setting("synchronous_commit").await, "remote_apply");
}

#[tokio::test]
async fn stores_that_start_at_once_make_the_tables_once_and_share_their_start() {
    let (name, url) = database();
    let starts = (0..8).map(|_| {
        let url = url.clone();
        tokio::spawn(async move { Postgres::open(&url).await.unwrap() })
    });
    let mut stores = Vec::new();
    for start in starts.collect::<Vec<_>>() {
        stores.push(start.await.unwrap());
    }
    assert_eq!(sql(&name, "SELECT count(*) FROM store"), ["1"]);
    let last = sql(&name, "SELECT started FROM store");
    for (seq, store) in (1..).zip(&mut stores) {
        assert_eq!(store.generation(), sql(&name, "SELECT generation FROM store")[0]);
        let committed = store.commit(&batch([message(seq, seq.cast_signed(), "1")])).await.unwrap();
        assert_eq!(committed.acks[0].1[0].through, seq);
        assert_eq!([store.started()], last[..]);
    }
    let mut newest = Postgres::open(&url).await.unwrap();
    stores[0].epochs("gw-1").await.unwrap();
    assert_eq!(stores[0].started(), newest.started());
    assert_eq!(newest.gateways().await.unwrap(), ["gw-1"]);
}

/// Ten gateways hear the same three meters, and say what they hear to any of four stores; each message goes to two of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_that_write_the_same_rows_at_once_neither_lose_nor_double() {
    let (_name, url) = database();
    let said = |number: u64| -> Message {
        let (gateway, seq) = (number % 10, number / 10 + 1);
        // Three gateways each hear the same.
        let mut message = message(seq, seq.cast_signed() * 60, &format!("{seq}.000"));
        message.envelope.gateway = format!("gw-{gateway}");
        message.report.meter = format!("E{}", gateway % 3);
        message.report.info = vec![("text".into(), format!("{}", seq % 7).into())];
        message
    };
    let writers = (0..4u64).map(|writer| {
        let url = url.clone();
        tokio::spawn(async move {
            let mut store = Postgres::open(&url).await.unwrap();
            let mut sum = [0; 4];
            for chunk in 0..20 {
                // In another order in each store.
                let mut numbers: Vec<u64> = (chunk * 100..chunk * 100 + 100).collect();
                numbers.retain(|number| number % 4 == writer || (number + 1) % 4 == writer);
                if writer % 2 == 1 {
                    numbers.reverse();
                }
                let committed = store.commit(&batch(numbers.into_iter().map(said))).await.unwrap();
                for (sum, count) in sum.iter_mut().zip(counts(&committed)) {
                    *sum += count;
                }
            }
            sum
        })
    });
    let mut sum = [0; 4];
    for writer in writers.collect::<Vec<_>>() {
        for (sum, count) in sum.iter_mut().zip(writer.await.unwrap()) {
            *sum += count;
        }
    }
    // 2,000 messages, each given twice; 600 different readings among them.
    assert_eq!(sum, [600, 1400, 2000, 0]);
    let mut reader = Reader::open(&url).await.unwrap();
    assert_eq!(reader.counts().await.unwrap(), Counts { meters: 3, messages: 600, refused: 0 });
    let mut store = Postgres::open(&url).await.unwrap();
    let mut tally = Tally::default();
    for gateway in store.gateways().await.unwrap() {
        let epochs = store.epochs(&gateway).await.unwrap();
        assert_eq!((epochs.len(), epochs[0].through), (1, 200));
        tally.stored += epochs[0].tally.stored;
        tally.repeated += epochs[0].tally.repeated;
    }
    assert_eq!(tally, Tally { stored: 600, repeated: 1400, refused: 0 });
}

#[tokio::test]
async fn a_batch_is_written_whole_or_not_at_all() {
    let (name, url) = database();
    let mut store = Postgres::open(&url).await.unwrap();
    let messages = (1..=300).map(|seq| message(seq, 900 * seq.cast_signed(), "1.000"));
    let batch = [batch(messages), vec![refused(None, b"x")]].concat();
    let mut reader = Reader::open(&url).await.unwrap();
    let nothing = Counts { meters: 0, messages: 0, refused: 0 };

    sql(&name, "ALTER TABLE refused ADD CHECK (octet_length(payload) > 1)");
    assert!(!store.commit(&batch).await.unwrap_err().may_pass());
    assert_eq!(reader.counts().await.unwrap(), nothing);
    sql(&name, "ALTER TABLE refused DROP CONSTRAINT refused_payload_check");

    // Calls that are dropped half-way, wherever that is, leave nothing that is in the way of the next.
    let mut other = connect(&url).await.unwrap();
    for table in ["ledger", "meter", "layout", "message", "quarter", "refused", "store"] {
        let lock = format!("BEGIN; LOCK TABLE {table}");
        other.execute(sqlx::AssertSqlSafe(lock)).await.unwrap();
        let call = tokio::time::timeout(Duration::from_millis(300), store.commit(&batch)).await;
        assert!(call.is_err() && store.unfinished, "{table}");
        other.execute("ROLLBACK").await.unwrap();
        assert!(!store.keep_up(Duration::MAX).await.unwrap());
        assert_eq!(reader.counts().await.unwrap(), nothing, "{table}");
    }
    let committed = store.commit(&batch).await.unwrap();
    assert_eq!(counts(&committed), [300, 0, 0, 1]);
    assert_eq!(committed.acks[0].1[0].tally, Tally { stored: 300, repeated: 0, refused: 0 });
    assert_eq!(reader.counts().await.unwrap(), Counts { meters: 1, messages: 300, refused: 1 });
    // What was made in what was taken back is not remembered.
    assert_eq!(sql(&name, "SELECT count(*) FROM quarter_hour"), ["300"]);
}

/// As after a failover to a server that got the rows, and not the sequences.
#[tokio::test]
async fn a_sequence_that_stands_behind_its_rows_is_no_messages_fault() {
    let (name, url) = database();
    let mut store = Postgres::open(&url).await.unwrap();
    let said = |seq: u64| {
        let mut said = message(seq, seq.cast_signed(), "1.000");
        said.report.meter = format!("E{seq}");
        said
    };
    store.commit(&batch((1..=6).map(said))).await.unwrap();
    sql(&name, "ALTER TABLE meter ALTER id RESTART");
    let mut rest = batch((7..=9).map(said));
    for attempt in 0.. {
        let outcome = apart::commit(&mut store, rest, "m", &Pulse::default()).await;
        rest = outcome.rest;
        let Some(error) = outcome.error else { break };
        assert!(error.refusal().is_none() && error.to_string().contains("meter_pkey"), "{error}");
        assert!(attempt < 6, "each attempt takes a number");
    }
    assert_eq!(rest, []);
    let expected = Counts { meters: 9, messages: 9, refused: 0 };
    assert_eq!(Reader::open(&url).await.unwrap().counts().await.unwrap(), expected);
}

/// A meter whose clock stands still, heard by two gateways, each of which says it to another store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_of_one_instant_takes_few_statements_and_is_neither_lost_nor_doubled() {
    let (name, url) = database();
    let mut store = Postgres::open(&url).await.unwrap();
    let said = |gateway: &str, seq: u64| {
        let mut said = message(seq, 0, &format!("{}.000", seq % 1000));
        said.envelope.gateway = gateway.into();
        said
    };
    sql(
        &name,
        "CREATE SEQUENCE inserts;
        CREATE FUNCTION note_insert() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM nextval(''inserts''); RETURN NULL; END';
        CREATE TRIGGER note AFTER INSERT ON message FOR EACH STATEMENT EXECUTE FUNCTION note_insert()",
    );
    let first = batch((1..=1500).map(|seq| said("gw-1", seq)));
    assert_eq!(counts(&store.commit(&first).await.unwrap()), [1000, 500, 0, 0]);
    assert_eq!(sql(&name, "SELECT last_value FROM inserts"), ["2"]);
    let places = "SELECT concat_ws(' ', count(*), count(DISTINCT \"values\"), min(n), max(n)) FROM message";
    assert_eq!(sql(&name, places), ["1000 1000 0 999"]);

    sql(&name, "TRUNCATE message");
    let both = ["gw-2", "gw-3"].map(|gateway| {
        let (url, chunks) = (url.clone(), (0..10u64).map(move |chunk| chunk * 100 + 1..=chunk * 100 + 100));
        tokio::spawn(async move {
            let mut store = Postgres::open(&url).await.unwrap();
            let mut stored = 0;
            for chunk in chunks {
                stored += store.commit(&batch(chunk.map(|seq| said(gateway, seq)))).await.unwrap().stored;
            }
            stored
        })
    });
    let mut stored = 0;
    for task in both {
        stored += task.await.unwrap();
    }
    assert_eq!((stored, sql(&name, places)), (1000, vec!["1000 1000 0 999".to_owned()]));
}

#[tokio::test]
async fn what_a_backup_brings_back_is_asked_anew_by_a_store_that_runs() {
    let (name, url) = database();
    let mut store = Postgres::open(&url).await.unwrap();
    let said = |seq: u64, meter: &str| {
        let mut said = message(seq, 10 * seq.cast_signed(), &format!("{seq}.000"));
        said.report.meter = meter.into();
        said.report.info = vec![("text".into(), format!("of {meter}").into())];
        said.report.readings[0].unit = Unit::from_text(meter).unwrap();
        batch([said])
    };
    let tables =
        ["store", "meter", "layout", "remark", "message", "series", "quarter", "fall", "ledger", "refused", "size"];
    store.commit(&said(1, "E1")).await.unwrap();
    let keep = tables.map(|table| format!("CREATE TABLE kept.{table} AS TABLE {table};")).concat();
    sql(&name, &format!("CREATE SCHEMA kept; {keep}"));
    store.commit(&said(2, "E2")).await.unwrap();
    let back = tables
        .map(|table| format!("TRUNCATE {table}; INSERT INTO {table} OVERRIDING SYSTEM VALUE TABLE kept.{table};"));
    let numbers = ["meter", "layout", "remark", "series"]
        .map(|table| format!("SELECT setval(pg_get_serial_sequence('{table}', 'id'), max(id)) FROM {table};"));
    sql(&name, &[back.concat(), numbers.concat()].concat());
    // The same generation, and numbers that were given to E2 are given to E3.
    store.commit(&said(3, "E3")).await.unwrap();
    store.commit(&said(4, "E2")).await.unwrap();
    let readings = Reader::open(&url).await.unwrap().readings(None).await.unwrap();
    let said = [(1, "E1"), (4, "E2"), (3, "E3")].map(|(seq, meter)| match said(seq, meter).remove(0) {
        Incoming::Message(message) => (message.report, message.received_at),
        other => panic!("{other:?}"),
    });
    assert_eq!(readings, said);
    let shown = "SELECT concat_ws(' ', meter, value, unit) FROM quarter_hour ORDER BY meter";
    assert_eq!(sql(&name, shown), ["E1 1.000 E1", "E2 4.000 E2", "E3 3.000 E3"]);
}

#[tokio::test]
async fn what_another_store_holds_is_waited_for_and_a_circle_is_broken() {
    let (_name, url) = database();
    let mut store = Postgres::open(&url).await.unwrap();
    let of = |gateway: &str| {
        let mut message = message(1, 0, "1");
        (message.envelope.gateway, message.report.meter) = (gateway.into(), gateway.into());
        message
    };
    store.commit(&batch([of("a"), of("b")])).await.unwrap();
    let more = move |seq: u64| {
        let next = |mut message: Message| {
            message.envelope.seq = seq;
            message.report.measured_at = Moment::from_millis(START + 1000 * seq.cast_signed(), 0);
            message
        };
        batch([next(of("a")), next(of("b"))])
    };
    // Somebody who takes them in the other order: the server ends one of the two.
    let mut other = connect(&url).await.unwrap();
    other
        .execute("SET deadlock_timeout = '10s'; BEGIN; UPDATE ledger SET touched = 9 WHERE gateway = 'b'")
        .await
        .unwrap();
    let committing = tokio::spawn(async move { store.commit(&more(2)).await.map(|committed| (committed, store)) });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let circle = other.execute("UPDATE ledger SET touched = 9 WHERE gateway = 'a'").await;
    let _ = other.execute("ROLLBACK").await;
    circle.unwrap();
    let (committed, _store) = committing.await.unwrap().unwrap();
    assert_eq!(counts(&committed), [2, 0, 0, 0]);
}

/// A server with the users of deploy/postgres.sql.
fn deployed() -> server::Postgres {
    let server = server::Postgres::start();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/postgres.sql");
    server.run_script(&script);
    server
}

#[tokio::test]
async fn whoever_may_not_make_tables_writes_where_they_are_and_a_reader_only_reads() {
    let server = deployed();
    let of = |user: &str| url(&server.url("meterkast").replace("postgres@", &format!("{user}@")));
    // Before the tables are there.
    let [writer, reader] = complaints(&of("meterkast_writer")).await;
    assert!(
        writer.contains("the user lacks rights; deploy/postgres.sql has what a writer and a reader need: "),
        "{writer}"
    );
    assert!(reader.contains("there are no tables here yet; check `store.url`, or start the daemon"), "{reader}");
    drop(Postgres::open(&of("meterkast")).await.unwrap());
    let mut store = Postgres::open(&of("meterkast_writer")).await.unwrap();
    let first = [batch([message(1, 0, "1")]), vec![refused(None, b"x")]].concat();
    assert_eq!(store.commit(&first).await.unwrap().stored, 1);
    assert!(!store.keep_up(Duration::ZERO).await.unwrap());
    let mut reader = Reader::open(&of("meterkast_reader")).await.unwrap();
    assert_eq!(reader.readings(None).await.unwrap()[0].0, message(1, 0, "1").report);
    assert_eq!(
        server.sql("meterkast", "SET ROLE meterkast_reader; SELECT value FROM reading WHERE unit = 'kWh'"),
        ["1"]
    );
    let error = Postgres::open(&of("meterkast_reader")).await.unwrap_err().to_string();
    assert!(error.contains("the user lacks rights"), "{error}");
    // Nor may others look.
    server.sql("postgres", "CREATE ROLE stranger LOGIN");
    let [_, error] = complaints(&of("stranger")).await;
    assert!(error.contains("the user lacks rights"), "{error}");
}

#[tokio::test]
async fn errors_say_what_is_wrong_and_what_helps() {
    let (name, here) = database();
    let server = server::Postgres::shared();
    let place = format!("postgres://postgres@127.0.0.1:{}/{name}", server.port);
    drop(Postgres::open(&here).await.unwrap());
    sql(&name, "INSERT INTO _sqlx_migrations SELECT 9999, '', now(), true, '', 0");
    for error in complaints(&here).await {
        assert_eq!(error, format!("{place}: written by a newer meterkast (tables of version 9999); upgrade this one"));
    }
    sql(&name, "DELETE FROM _sqlx_migrations WHERE version = 9999");
    sql("postgres", &format!("ALTER DATABASE {name} SET default_transaction_read_only = on"));
    let error = Postgres::open(&here).await.unwrap_err().to_string();
    assert!(error.contains("the server is read-only: a replica, or default_transaction_read_only is on"), "{error}");
    assert!(Reader::open(&here).await.is_ok());

    let other = |part: &str, with: &str| url(&here.secret().replace(part, with));
    for error in complaints(&other(&name, "nowhere")).await {
        assert!(error.contains("nowhere: the server has no such database; create it"), "{error}");
    }
    let closed = server::Postgres::start();
    let (port, free) = (server.port.to_string(), closed.port.to_string());
    drop(closed);
    for error in complaints(&other(&port, &free)).await {
        assert!(error.contains("the server cannot be reached; is it running, and does `store.url` name"), "{error}");
    }
    for error in complaints(&other("127.0.0.1", "host.invalid")).await {
        assert!(
            error.contains("there is no way to the server; check the host in `store.url`, and the network: "),
            "{error}"
        );
    }
    for error in complaints(&url(&format!("{}?sslmode=require", here.secret()))).await {
        assert!(error.contains("no secure connection; look at `sslmode`"), "{error}");
    }
    sql("postgres", &format!("CREATE DATABASE {name}_ascii ENCODING 'SQL_ASCII' TEMPLATE template0"));
    let error = Postgres::open(&other(&name, &format!("{name}_ascii"))).await.unwrap_err().to_string();
    assert!(error.contains("does not keep texts as UTF8; create another one with ENCODING 'UTF8'"), "{error}");
    assert!(check_version(150_000, "15.0", &place).is_ok() && check_version(200_001, "20.1", &place).is_ok());
    let error = check_version(140_011, "14.11", &place).unwrap_err().to_string();
    assert_eq!(
        error,
        format!("{place}: the server is too old: PostgreSQL 15 or newer is needed; upgrade it: this one is 14.11")
    );
}

#[tokio::test]
async fn a_password_comes_from_a_file_or_the_url_and_is_never_shown() {
    let (name, here) = database();
    let (user, password) = GUARDED;
    let known = sql("postgres", &format!("SELECT count(*) FROM pg_roles WHERE rolname = '{user}'"));
    assert_eq!(known, ["0"], "one test makes this user");
    sql("postgres", &format!("CREATE ROLE {user} LOGIN SUPERUSER PASSWORD '{password}'"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    fs::write(&file, format!("{password}\r\n")).unwrap();
    let text = here.secret().replace("postgres@", &format!("{user}@"));
    let with_file = |file: &Path| {
        let config = format!("[store]\nurl = \"{text}\"\npassword-file = \"{}\"\n", file.display());
        match Config::parse(&config, "").unwrap().store.unwrap().url {
            StoreUrl::Postgres(url) => url,
            StoreUrl::Sqlite(_) => panic!(),
        }
    };
    let store = Postgres::open(&with_file(&file)).await.unwrap();
    assert!(!format!("{store:?}").contains("word"), "{store:?}");
    // As it must be written in a URL.
    let encoded: String = password.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let with_password = |password: &str| url(&text.replace("guarded@", &format!("{user}:{password}@")));
    let reader = Reader::open(&with_password(&encoded)).await.unwrap();
    for shown in [format!("{reader:?}"), format!("{:?} {}", with_password(&encoded), with_password(&encoded))] {
        assert!(shown.contains(&name) && !shown.contains("%70") && !shown.contains("word"), "{shown}");
    }
    fs::write(&file, "hunter2\n").unwrap();
    for wrong in [with_file(&file), with_password("hunter2")] {
        let error = Postgres::open(&wrong).await.unwrap_err();
        assert!(
            error.to_string().contains(
                "the server refuses the user or its password; check `store.url`, the password ([store] password-file; "
            ),
            "{error}"
        );
        let shown = format!("{error} {error:?} {wrong:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    let [error, _] = complaints(&with_file(&folder.path().join("none"))).await;
    assert!(
        error.contains("[store] password-file cannot be read; let the daemon's user read it") && error.contains("none"),
        "{error}"
    );
}

#[tokio::test]
async fn a_connection_is_as_secure_as_the_url_asks() {
    let mut server = server::Postgres::start();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    for ca in ["ca", "other"] {
        let files = ["-keyout", &at(&format!("{ca}.key")), "-out", &at(&format!("{ca}.crt"))];
        openssl(&[&["req", "-x509", "-days", "2", "-subj", "/CN=ca"], &new_key[..], &files].concat());
    }
    let files = ["-keyout", &at("server.key"), "-out", &at("server.csr")];
    openssl(&[&["req", "-subj", "/CN=server"], &new_key[..], &files].concat());
    fs::write(at("server.ext"), "basicConstraints=critical,CA:FALSE\nsubjectAltName=IP:127.0.0.1\n").unwrap();
    let (ca, files) = ([at("ca.crt"), at("ca.key")], [at("server.csr"), at("server.crt"), at("server.ext")]);
    let ca = ["-CA", &ca[0], "-CAkey", &ca[1], "-CAcreateserial"];
    openssl(
        &[&["x509", "-req", "-days", "2"], &ca[..], &["-in", &files[0], "-out", &files[1], "-extfile", &files[2]]]
            .concat(),
    );
    server.stop();
    server.take(&folder.path().join("server.key"), "server.key");
    server.take(&folder.path().join("server.crt"), "server.crt");
    server.begin_with(&["ssl=on"]);
    let here = server.url(&server.database());
    let with = |parameters: &str| url(&format!("{here}?{parameters}"));
    let mut store = Postgres::open(&with(&format!("sslmode=verify-full&sslrootcert={}", at("ca.crt")))).await.unwrap();
    let ssl = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    assert!(query_scalar::<_, bool>(ssl).fetch_one(&mut store.session.connection).await.unwrap());
    let mut store = Postgres::open(&with("sslmode=disable")).await.unwrap();
    assert!(!query_scalar::<_, bool>(ssl).fetch_one(&mut store.session.connection).await.unwrap());
    for wrong in [with(&format!("sslmode=verify-full&sslrootcert={}", at("other.crt"))), with("sslmode=verify-full")] {
        for error in complaints(&wrong).await {
            assert!(
                error.contains("no secure connection; look at `sslmode` and `sslrootcert` in `store.url`"),
                "{error}"
            );
        }
    }
}

#[tokio::test]
async fn what_is_asked_and_written_is_found_by_keys() {
    let (name, url) = database();
    let mut store = Postgres::open(&url).await.unwrap();
    for chunk in 0..10 {
        let seconds = (chunk * 1000 + 1)..(chunk * 1000 + 1001);
        let messages = seconds.map(|seq: u64| {
            let mut message = message(seq, seq.cast_signed() * 30, &format!("{seq}.000"));
            message.report.info = vec![("text".into(), (seq / 100).to_string().into())];
            message
        });
        store.commit(&batch(messages)).await.unwrap();
    }
    Box::new(store).close().await.unwrap();
    sql(&name, "ANALYZE");
    // Small tables would be read from end to end although there is a key.
    sql("postgres", &format!("ALTER DATABASE {name} SET enable_seqscan = off"));
    let read = "SELECT relname || ' ' || seq_scan || ' ' || coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables
        WHERE relname IN ('message', 'quarter', 'fall', 'series', 'layout', 'remark') ORDER BY relname";
    // What was counted of a connection is known when it has ended.
    let ended = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    let counted = async |before: &[String]| {
        while sql(&name, ended) != ["0"] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let counts = |line: &String| {
            let mut words = line.split(' ').map(str::to_owned);
            (
                words.next().unwrap(),
                words.next().unwrap().parse::<i64>().unwrap(),
                words.next().unwrap().parse::<i64>().unwrap(),
            )
        };
        let now: Vec<_> = sql(&name, read).iter().map(counts).collect();
        for (before, now) in before.iter().map(counts).zip(&now) {
            assert_eq!(now.1, before.1, "{} was read from end to end", now.0);
            assert!(now.2 - before.2 < 1500, "{} rows of {} were read", now.2 - before.2, now.0);
        }
    };
    assert_eq!(sql(&name, "SELECT count(*) FROM message"), ["10000"]);

    let before = sql(&name, read);
    let mut reader = Reader::open(&url).await.unwrap();
    let at = Moment::from_millis(START + 100_000_000, 0).unwrap();
    let meters = reader.meters().await.unwrap();
    assert_eq!(reader.readings(None).await.unwrap().len(), 1);
    assert_eq!(reader.readings(Some(at)).await.unwrap().len(), 1);
    assert_eq!(reader.readings_after(&meters, at).await.unwrap().len(), 1);
    let meter = reader.meters().await.unwrap().remove(0);
    assert_eq!(reader.messages(&meter, at.millis()..i64::MAX, None, 100).await.unwrap().len(), 100);
    assert_eq!(reader.messages(&meter, 0..i64::MAX, Some((at.millis(), 0)), 100).await.unwrap().len(), 100);
    let series = reader.series(&meter).await.unwrap().remove(0);
    let first = START / 900_000;
    for which in [Quarters::All(first..first + 10), Quarters::Around { marks: vec![first + 20, first + 99], each: 2 }] {
        assert!(reader.quarters(&series, &which).await.unwrap().len() >= 10);
    }
    drop(reader);
    counted(&before).await;

    let before = sql(&name, read);
    let mut store = Postgres::open(&url).await.unwrap();
    // Few: for many of so few rows the server rightly reads all.
    let messages = (10_001..10_006u64).map(|seq| message(seq, seq.cast_signed() * 30, &format!("{seq}.000")));
    assert_eq!(store.commit(&batch(messages)).await.unwrap().stored, 5);
    Box::new(store).close().await.unwrap();
    counted(&before).await;

    let before = sql(&name, read);
    let view = "SELECT count(*) FROM reading WHERE meter = 'E1' AND register = 'import_low'
        AND measured_at >= '2026-11-22' AND measured_at < '2026-11-22 00:30'";
    assert_eq!(sql(&name, view), ["60"]);
    counted(&before).await;
}

/// Of meters that all are heard by all stores, at times at which some are written again and others not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_that_hear_the_same_meters_do_not_wait_in_a_circle() {
    let (name, url) = database();
    let mut first = Postgres::open(&url).await.unwrap();
    let said = |gateway: u64, seq: u64, meter: u64| {
        // All messages differ, and each brings a quarter-hour that its store does not know.
        let mut said = message(seq, (900 * seq + gateway).cast_signed(), &format!("{}.000", seq % 7));
        said.envelope.gateway = format!("gw-{gateway}");
        said.report.meter = format!("E{meter}");
        // Another gateway, at which the row of the meter is written; here of one meter, there of another.
        said.received_at =
            Moment::from_millis(START + if meter == gateway { 1_000_000 * seq.cast_signed() } else { 0 }, 0).unwrap();
        said
    };
    first.commit(&batch((0..4).map(|meter| said(9, meter + 1, meter)))).await.unwrap();
    let stores = (0..3u64).map(|gateway| {
        let url = url.clone();
        tokio::spawn(async move {
            let mut store = Postgres::open(&url).await.unwrap();
            for round in 0..50 {
                let messages = (0..4).map(|meter| said(gateway, 4 * round + meter + 1, meter));
                store.commit(&batch(messages)).await.unwrap();
            }
        })
    });
    for store in stores.collect::<Vec<_>>() {
        store.await.unwrap();
    }
    let circles = format!("SELECT deadlocks FROM pg_stat_database WHERE datname = '{name}'");
    assert_eq!(sql("postgres", &circles), ["0"]);
    let falls = "SELECT count(*) FROM (
            SELECT *, lag(value) OVER (PARTITION BY meter, series ORDER BY quarter) AS before FROM quarter
        ) AS value WHERE value < before";
    assert_eq!(sql(&name, falls), sql(&name, "SELECT count(*) FROM fall"));
}
