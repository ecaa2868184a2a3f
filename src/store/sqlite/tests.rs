//! What is told of SQLite alone; the rest is in `store::story`. One database file in a temporary folder each.

use std::{
    future::{Future as _, poll_fn},
    pin::pin,
    task::Poll,
};

use tempfile::TempDir;

use super::*;
use crate::{
    delivery::{Epoch, Tally},
    moment::Moment,
    payload::{Envelope, Message},
    reading::{Clock, METER_TIME, Report, Suspect},
    store::{
        Counts, Reader as _, Stored,
        story::{START, batch, counts, message, refused},
    },
};

async fn store() -> (TempDir, PathBuf, Sqlite) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/meterkast.db");
    let store = Sqlite::open(&path).await.unwrap();
    (folder, path, store)
}

impl Sqlite {
    async fn sql(&mut self, sql: &'static str) {
        raw_sql(sql).execute(&mut self.connection).await.unwrap();
    }

    pub(super) async fn column(&mut self, sql: &'static str) -> Vec<String> {
        query_scalar(sql).fetch_all(&mut self.connection).await.unwrap()
    }
}

#[tokio::test]
async fn the_database_is_made_as_the_promise_needs_it() {
    let (_folder, path, mut store) = store().await;
    let version = store.column("SELECT sqlite_version()").await.concat();
    let numbers: Vec<u32> = version.split('.').map(|part| part.parse().unwrap()).collect();
    assert!(numbers >= vec![3, 51, 3], "before 3.51.3 a write-ahead log can corrupt the file: {version}");
    let sql = "SELECT concat_ws(' ', journal_mode, synchronous, auto_vacuum, foreign_keys, timeout)
        FROM pragma_journal_mode, pragma_synchronous, pragma_auto_vacuum, pragma_foreign_keys, pragma_busy_timeout";
    assert_eq!(store.column(sql).await, ["wal 2 2 1 2000"]);
    let generation = store.generation().to_owned();
    assert!(Epoch::from_text(&generation).is_some());
    drop(store);
    let reopened = path.clone();
    // On a task of its own, as the daemon does: all these futures must be Send.
    let task = tokio::spawn(async move {
        let mut store = Sqlite::open(&reopened).await.unwrap();
        store.commit(&batch([message(1, 0, "1")])).await.unwrap();
        store.keep_up(Duration::MAX).await.unwrap();
        store.epochs("gw-1").await.unwrap();
        Reader::open(&reopened).await.unwrap().readings(None).await.unwrap();
        store
    });
    let mut store = task.await.unwrap();
    assert_eq!(store.generation(), generation);
    store.sql("DELETE FROM store").await;
    drop(store);
    assert_ne!(Sqlite::open(&path).await.unwrap().generation(), generation);
}

#[tokio::test]
async fn a_batch_is_written_whole_or_not_at_all() {
    let (_folder, path, mut store) = store().await;
    let messages = (1..=300).map(|seq| message(seq, 900 * seq.cast_signed(), "1.000"));
    let batch = [batch(messages), vec![refused(None, b"x")]].concat();
    let mut reader = Reader::open(&path).await.unwrap();
    let nothing = Counts { meters: 0, messages: 0, refused: 0 };

    store.sql("CREATE TRIGGER fail BEFORE INSERT ON ledger BEGIN SELECT raise(ABORT, 'no'); END").await;
    assert!(!store.commit(&batch).await.unwrap_err().may_pass());
    assert_eq!(reader.counts().await.unwrap(), nothing);
    store.sql("DROP TRIGGER fail").await;

    // A full disk: SQLite rolls back by itself.
    store.sql("PRAGMA max_page_count = 1").await;
    let error = store.commit(&batch).await.unwrap_err();
    assert!(error.may_pass() && error.to_string().contains("the disk is full; free space"), "{error}");
    assert_eq!(reader.counts().await.unwrap(), nothing);
    store.sql("PRAGMA max_page_count = 1000000").await;

    // Calls that are dropped half-way leave nothing that is in the way of the next.
    let mut dropped = 0;
    for polls in 1..30 {
        {
            let mut call = pin!(store.commit(&batch[..300]));
            for _ in 0..polls {
                if poll_fn(|context| Poll::Ready(call.as_mut().poll(context).is_ready())).await {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        dropped += usize::from(store.unfinished);
        assert!(!store.keep_up(Duration::MAX).await.unwrap());
    }
    assert!(dropped > 2, "{dropped}");
    let committed = store.commit(&batch).await.unwrap();
    assert_eq!(committed.stored + committed.again, 300);
    assert_eq!(committed.acks[0].1[0].tally, Tally { stored: 300, repeated: 0, refused: 0 });
    assert_eq!(reader.counts().await.unwrap(), Counts { meters: 1, messages: 300, refused: 1 });
}

/// All messages of meter E1, `page` at a time.
async fn messages(reader: &mut Reader, page: usize) -> Vec<Stored> {
    let meter = reader.meters().await.unwrap().into_iter().find(|meter| meter.name == "E1").unwrap();
    let mut found: Vec<Stored> = Vec::new();
    loop {
        let after = found.last().map(|stored| stored.key);
        let more = reader.messages(&meter, i64::MIN..i64::MAX, after, page).await.unwrap();
        let end = more.len() < page;
        found.extend(more);
        if end {
            return found;
        }
    }
}

#[tokio::test]
async fn finished_hours_are_sealed_and_nothing_else_changes() {
    let (_folder, path, mut store) = store().await;
    // Five hours at 10 s, one message in two layouts, remarks, one instant twice; an hour of silence; then an hour at 60 s.
    let times = (0..18_000).step_by(10).chain((21_600..25_200).step_by(60));
    let mut sent: Vec<Message> = times
        .enumerate()
        .map(|(number, seconds)| {
            let mut message = message(number as u64 + 1, seconds, &format!("{}.000", 1000 + number));
            if number % 500 == 7 {
                message.report.readings[0].suspect = Some(Suspect::TooFast);
                message.report.info = vec![("n".into(), number.to_string().into())];
            }
            message
        })
        .collect();
    let mut twin = message(5000, 700, "1.001");
    twin.report.clock = Clock::Unsynchronised;
    sent.push(twin);
    for chunk in sent.chunks(700) {
        store.commit(&batch(chunk.to_vec())).await.unwrap();
    }
    let mut reader = Reader::open(&path).await.unwrap();
    let before = messages(&mut reader, 100).await;
    assert_eq!(before.len(), sent.len());
    let counts_before = reader.counts().await.unwrap();
    let meters = reader.meters().await.unwrap();
    let at = |seconds: i64| Moment::from_millis(START + seconds * 1000, 0).unwrap();
    let moments = [-1, 0, 5, 700, 3595, 3600, 17_990, 18_000, 20_000, 21_600, 24_000, 30_000].map(at);
    let mut asked = Vec::new();
    for moment in moments {
        asked.push((
            reader.readings(Some(moment)).await.unwrap(),
            reader.readings_after(&meters, moment).await.unwrap(),
        ));
    }

    while store.keep_up(Duration::MAX).await.unwrap() {}
    let sql = "SELECT concat_ws(' ', (from_at - 1795287600000) / 60000, (until_at - from_at) / 60000, sum(messages)) FROM sealed
        GROUP BY from_at ORDER BY from_at";
    // 20:00 here is 19:00 UTC: five hours are enough in themselves. What the day has left between and behind them is not over yet.
    assert_eq!(store.column(sql).await, ["0 60 361", "60 60 360", "120 60 360", "180 60 360", "240 60 360"]);
    assert_eq!(store.column("SELECT CAST(count(*) AS TEXT) FROM message").await, ["60"]);
    for (moment, (until, since)) in moments.into_iter().zip(&asked) {
        assert_eq!(reader.readings(Some(moment)).await.unwrap(), *until, "{moment}");
        assert_eq!(reader.readings_after(&meters, moment).await.unwrap(), *since, "{moment}");
    }
    assert_eq!(reader.counts().await.unwrap(), counts_before);
    for page in [7, 1000, 100_000] {
        assert!(messages(&mut reader, page).await == before, "pages of {page}");
    }

    // What is sealed is known: again under other numbers, and the same instant with another value.
    let again = |seq: u64, of: &Message| Message { envelope: Envelope { seq, ..of.envelope.clone() }, ..of.clone() };
    let late = [again(6001, &sent[3]), again(6002, &sent[7]), message(6003, 30, "1.5"), message(6004, 33, "1003.200")];
    assert_eq!(counts(&store.commit(&batch(late)).await.unwrap()), [2, 2, 0, 0]);
    let next_day = message(6005, 2 * 86_400, "5000.000");
    store.commit(&batch([next_day])).await.unwrap();
    let sum = "SELECT CAST(sum(messages) AS TEXT) FROM sealed";
    while store.keep_up(Duration::MAX).await.unwrap() {}
    // The first hour again, and the silent hour and the last one as the rest of their day.
    let sealed = ["0 60 363", "60 60 360", "120 60 360", "180 60 360", "240 60 360", "300 1440 60"];
    assert_eq!(store.column(sql).await, sealed);
    assert_eq!(store.column(sum).await, ["1863"]);
    assert_eq!(store.column("SELECT CAST(count(*) AS TEXT) FROM message").await, ["1"]);
    let after = messages(&mut reader, 500).await;
    assert_eq!(after.len(), before.len() + 3);
    assert!(after.iter().any(|stored| stored.key == (START + 30_000, 1)));

    // A damaged block is said, harms nothing else, and is not sealed over.
    store
        .sql("UPDATE sealed SET block = zeroblob(100) WHERE id = (SELECT id FROM sealed ORDER BY from_at DESC LIMIT 1)")
        .await;
    let into = message(6006, 21_660, "1.000");
    store.commit(&batch([into])).await.unwrap();
    while store.keep_up(Duration::MAX).await.unwrap() {}
    assert_eq!(store.column("SELECT CAST(count(*) AS TEXT) FROM message").await, ["2"]);
    assert_eq!(reader.readings(Some(at(5))).await.unwrap().len(), 1);
    let error = reader.readings(Some(at(22_000))).await.unwrap_err().to_string();
    assert!(error.contains("sealed block"), "{error}");

    // And all goes when its time has come.
    while store.keep_up(Duration::ZERO).await.unwrap() {}
    assert_eq!(reader.counts().await.unwrap().messages, 1);
    assert_eq!(store.column("SELECT content FROM remark").await, Vec::<String>::new());
}

#[tokio::test]
async fn errors_say_what_is_wrong_and_what_helps() {
    let (folder, path, mut store) = store().await;
    let text = |error: StoreError| error.to_string().replace(&*folder.path().to_string_lossy(), "");
    assert!(text(Sqlite::open(&path).await.unwrap_err()).contains("another process writes this database; stop it"));
    store.sql("PRAGMA query_only = ON").await;
    let error = store.commit(&batch([message(1, 0, "1")])).await.unwrap_err();
    assert!(text(error).contains("read-only; let the daemon's user write to both"));
    store.sql("PRAGMA query_only = OFF").await;
    store.sql("INSERT INTO _sqlx_migrations SELECT 9999, '', '', 1, x'', 0").await;
    drop(store);
    for error in [Sqlite::open(&path).await.unwrap_err(), Reader::open(&path).await.unwrap_err()] {
        assert_eq!(
            text(error),
            "/new/meterkast.db: written by a newer meterkast (tables of version 9999); upgrade this one"
        );
    }
    let other = folder.path().join("other");
    assert!(text(Reader::open(&other).await.unwrap_err()).starts_with("/other: there is no database here; check"));
    fs::write(&other, [b'x'; 5000]).unwrap();
    for error in [Sqlite::open(&other).await.unwrap_err(), Reader::open(&other).await.unwrap_err()] {
        assert!(text(error).starts_with("/other: is not a meterkast database; check"));
    }
    for error in [Sqlite::open(folder.path()).await.unwrap_err(), Reader::open(folder.path()).await.unwrap_err()] {
        assert_eq!(text(error), ": is a directory; name a file, such as /meterkast.db");
    }
    let below = other.join("meterkast.db");
    assert!(text(Sqlite::open(&below).await.unwrap_err()).contains("must name a file, not a directory"));
}

#[tokio::test]
async fn a_database_whose_daemon_was_killed_can_be_read() {
    let (folder, path, mut store) = store().await;
    store.commit(&batch([message(1, 0, "1")])).await.unwrap();
    let copy = folder.path().join("copy.db");
    fs::copy(&path, &copy).unwrap();
    fs::copy(path.with_extension("db-wal"), copy.with_extension("db-wal")).unwrap();
    assert_eq!(Reader::open(&copy).await.unwrap().counts().await.unwrap().messages, 1);
    Box::new(store).close().await.unwrap();
    assert!(!path.with_extension("db-wal").exists());
    assert_eq!(Reader::open(&path).await.unwrap().counts().await.unwrap().messages, 1);
}

/// Takes back what came after the first version.
const FIRST_VERSION: &str = "ALTER TABLE refused DROP COLUMN readable;
    DROP TABLE size; DROP TABLE sealed; DROP VIEW quarter_hour; ALTER TABLE quarter RENAME TO quarter_now;
    CREATE TABLE quarter (
        meter INTEGER NOT NULL REFERENCES meter (id), register TEXT NOT NULL, quarter INTEGER NOT NULL,
        at INTEGER NOT NULL, unsynchronised INTEGER NOT NULL, value INTEGER NOT NULL, scale INTEGER NOT NULL,
        unit TEXT NOT NULL, PRIMARY KEY (meter, register, quarter)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO quarter SELECT quarter_now.meter, register, quarter, quarter * 900000 + late, unsynchronised, value, scale, unit
        FROM quarter_now JOIN series ON series.id = series;
    DROP TABLE quarter_now; DROP TABLE fall; DROP TABLE series; ALTER TABLE meter DROP COLUMN predecessor;
    DELETE FROM _sqlx_migrations WHERE version > 1";

#[tokio::test]
async fn a_database_of_the_first_version_opens_and_keeps_everything() {
    let (_folder, path, mut store) = store().await;
    let envelope = Envelope { seq: 2, ..message(2, 0, "1").envelope };
    store.commit(&[batch([message(1, 0, "1")]), vec![refused(Some(envelope), b"{")]].concat()).await.unwrap();
    store.commit(&batch([message(3, 905, "3"), message(4, 1800, "2")])).await.unwrap();
    let generation = store.generation().to_owned();
    // As the first version left it: without what came later, and with nothing in the lock.
    store.sql(FIRST_VERSION).await;
    Box::new(store).close().await.unwrap();
    fs::write(file::beside(&path, ".lock"), "").unwrap();
    let mut store = Sqlite::open(&path).await.unwrap();
    assert_eq!(store.generation(), generation);
    assert_eq!(store.column("SELECT schema || ' ' || readable FROM refused").await, ["2 1"]);
    assert_eq!(store.epochs("gw-1").await.unwrap()[0].through, 4);
    assert_eq!(Reader::open(&path).await.unwrap().readings(None).await.unwrap()[0].0, message(4, 1800, "2").report);
    let sql = "SELECT concat_ws(' ', register, measured_at, value, unit) FROM quarter_hour ORDER BY unix_s";
    let quarters = ["import_low 2026-11-21T19:00:00.000Z 1 kWh", "import_low 2026-11-21T19:15:05.000Z 3 kWh"];
    assert_eq!(store.column(sql).await[..2], quarters);
    assert_eq!(store.column("SELECT CAST(quarter AS TEXT) FROM fall").await, ["1994766"]);
}

#[tokio::test]
async fn what_stands_in_remarks_of_an_earlier_version_is_read() {
    let (_folder, path, mut store) = store().await;
    // Some of them sealed, some not, each with a remark of its own.
    let mut sent: Vec<Message> = [0, 900, 2 * 86_400, 2 * 86_400 + 900]
        .into_iter()
        .zip(1..)
        .map(|(seconds, seq)| {
            let mut message = message(seq, seconds, "5.250");
            message.report.info = vec![("n".into(), seq.to_string().into()), ("address".into(), "5".into())];
            message
        })
        .collect();
    store.commit(&batch(sent.clone())).await.unwrap();
    while store.keep_up(Duration::MAX).await.unwrap() {}
    assert_eq!(store.column("SELECT CAST(sum(messages) AS TEXT) FROM sealed").await, ["2"]);
    // As the version before wrote it.
    let earlier = r#"UPDATE remark SET content = replace(replace(replace(replace(content,
            '["n","1"]', '["meter_time","2026-11-21T20:07:00+01:00"]'), '["n","2"]', '["meter_time","2026-11-21T20:22:00+01:00"]'),
            '["n","3"]', '["meter_time","2026-11-23T20:07:00+01:00"]'), '["n","4"]', '["meter_time","2026-11-23T20:22:00+01:00"]');
        DROP VIEW reading; CREATE VIEW reading AS SELECT name FROM meter;
        DELETE FROM _sqlx_migrations WHERE version > 4"#;
    store.sql(earlier).await;
    Box::new(store).close().await.unwrap();
    let mut store = Sqlite::open(&path).await.unwrap();
    for (message, time) in sent.iter_mut().zip(["21T20:07", "21T20:22", "23T20:07", "23T20:22"]) {
        message.report.info[0] = (METER_TIME.into(), format!("2026-11-{time}:00+01:00").into());
    }
    // The same meter goes on, and is sealed beside it.
    let mut next = message(5, 2 * 86_400 + 1800, "5.500");
    next.report.info = vec![(METER_TIME.into(), "2026-11-23T20:37:00+01:00".into()), ("address".into(), "5".into())];
    sent.push(next);
    store.commit(&batch(sent[4..].to_vec())).await.unwrap();
    let mut reader = Reader::open(&path).await.unwrap();
    let read =
        async |reader: &mut Reader| messages(reader, 100).await.into_iter().map(|stored| stored.report).collect();
    let reports = |sent: &[Message]| sent.iter().map(|message| message.report.clone()).collect::<Vec<_>>();
    let before: Vec<Report<String>> = read(&mut reader).await;
    assert_eq!(before, reports(&sent));
    let view = "SELECT concat_ws(' ', unix_ms / 900000 - 1994764, register, value) FROM reading WHERE unit = 'kWh'";
    assert_eq!(store.column(view).await, ["192 import_low 5.250", "193 import_low 5.250", "194 import_low 5.500"]);
    sent.push(message(6, 9 * 86_400, "6.000"));
    store.commit(&batch(sent[5..].to_vec())).await.unwrap();
    while store.keep_up(Duration::MAX).await.unwrap() {}
    assert_eq!(store.column("SELECT CAST(sum(messages) AS TEXT) FROM sealed").await, ["5"]);
    let sealed: Vec<Report<String>> = read(&mut reader).await;
    assert_eq!(sealed, reports(&sent));
    // Each of the earlier ones has its own, the one behind them another.
    assert_eq!(store.column("SELECT CAST(count(*) AS TEXT) FROM remark").await, ["5"]);
}

#[tokio::test]
async fn a_log_that_a_power_cut_tore_is_sound_and_one_with_lost_commits_is_not() {
    let (folder, path, mut store) = store().await;
    for seq in 1..=5 {
        store.commit(&batch([message(seq, seq.cast_signed(), "1")])).await.unwrap();
    }
    let whole = fs::read(file::beside(&path, "-wal")).unwrap();
    let copy = folder.path().join("copy");
    let is_damaged = |content: &[u8]| {
        fs::write(&copy, content).unwrap();
        log::is_damaged(&copy).unwrap()
    };
    assert!(!log::is_damaged(&folder.path().join("none")).unwrap());
    // Cut anywhere, also within a transaction: at first the creation of the tables, then five commits.
    for length in (0..whole.len()).step_by(997).chain([31, 32, 33, whole.len()]) {
        assert!(!is_damaged(&whole[..length]), "cut at {length}");
    }
    let page = 4096 + 24;
    // Frames of this round of the log; behind them stand those of the creation.
    let here = |at: &usize| whole[at + 8..at + 16] == whole[16..24];
    let commits: Vec<usize> =
        (32..whole.len()).step_by(page).filter(here).filter(|&at| whole[at + 4..at + 8] != [0; 4]).collect();
    assert_eq!(commits.len(), 6, "the generation, and five messages");
    let flipped = |at: usize| {
        let mut log = whole.clone();
        log[at] ^= 0x10;
        is_damaged(&log)
    };
    // In the page of the last commit, or its header: it may have been torn. Before the last two it cannot.
    let (second_last, last) = (commits[4], commits[5]);
    assert!(!flipped(last + 3000) && !flipped(last + 20));
    for at in [0, 8, 20, 32 + 8, 32 + 20, 32 + 2000, commits[1] + 100, second_last - 1] {
        assert!(flipped(at), "{at}");
    }
    // What a transaction that failed left behind the last one that did not.
    let failed = [&whole[..last + page], &whole[second_last..last + page], &whole[32..32 + page]].concat();
    assert!(!is_damaged(&failed));
}
