//! How SQLite carries out what the commands ask: by keys, whatever the database holds.
//!
//! Nothing is copied: a reader whose statements are logged is asked everything that a [`Reader`](store::Reader) can be asked, and each
//! statement that it sends is explained.

use std::{fmt, sync::Mutex, thread};

use sqlx::{AssertSqlSafe, query_as, sqlite::SqliteConnectOptions};
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

use super::{Reader, Sqlite};
use crate::{
    moment::Moment,
    store::{
        self, Database as _, Quarters,
        story::{START, batch, message},
    },
};

/// The statements of the connection whose thread has the name [`THREAD`].
static STATEMENTS: Mutex<Vec<String>> = Mutex::new(Vec::new());
const THREAD: &str = "plans";

struct Listener;

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "sqlx::query" && thread::current().name() == Some(THREAD)
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut said = Said::default();
        event.record(&mut said);
        // The summary of a short statement is the statement.
        let statement = if said.statement.is_empty() { said.summary } else { said.statement };
        STATEMENTS.lock().unwrap().push(statement.trim().to_owned());
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[derive(Default)]
struct Said {
    summary: String,
    statement: String,
}

impl Visit for Said {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "summary" => value.clone_into(&mut self.summary),
            "db.statement" => value.clone_into(&mut self.statement),
            _ => {}
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}

/// Everything that the commands can ask.
async fn ask(reader: &mut dyn store::Reader) {
    let at = Moment::from_millis(START + 5_000_000, 0).unwrap();
    let meters = reader.meters().await.unwrap();
    assert_eq!(reader.counts().await.unwrap().messages, 600);
    assert_eq!(reader.readings(None).await.unwrap().len(), 1);
    assert_eq!(reader.readings(Some(at)).await.unwrap().len(), 1);
    assert_eq!(reader.readings_after(&meters, at).await.unwrap().len(), 1);
    for meter in reader.meters().await.unwrap() {
        for (after, most, count) in [(None, 10, 10), (Some((START + 4_000_000, 0)), 1000, 199)] {
            let messages = reader.messages(&meter, START..i64::MAX, after, most).await.unwrap();
            assert_eq!(messages.len(), count);
        }
        for series in reader.series(&meter).await.unwrap() {
            let first = START / 900_000;
            let marks = vec![first, first + 2, first + 5];
            for which in [Quarters::All(first..first + 5), Quarters::Around { marks, each: 2 }] {
                assert!(reader.quarters(&series, &which).await.unwrap().len() >= 4);
            }
        }
    }
}

#[tokio::test]
async fn nothing_but_lists_and_the_meters_is_read_from_end_to_end() {
    tracing::subscriber::set_global_default(Listener).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("meterkast.db");
    let mut store = Sqlite::open(&path).await.unwrap();
    // Some of them sealed, some not.
    let messages = (0..600).map(|n| message(n + 1, i64::try_from(n * 10).unwrap(), &format!("{n}")));
    store.commit(&batch(messages)).await.unwrap();
    while store.keep_up(std::time::Duration::MAX).await.unwrap() {}
    assert!(store.column("SELECT CAST(count(*) AS TEXT) FROM sealed").await.concat().parse::<u32>().unwrap() > 0);

    let options = SqliteConnectOptions::new().filename(&path).read_only(true).thread_name(|_| THREAD.into());
    ask(&mut Reader::connect(&path, options).await.unwrap()).await;
    let mut statements = std::mem::take(&mut *STATEMENTS.lock().unwrap());
    statements.sort();
    statements.dedup();
    for table in ["message", "sealed", "quarter", "fall", "series", "layout"] {
        assert!(statements.iter().any(|sql| sql.contains(&format!("FROM {table}"))), "{table}: {statements:#?}");
    }
    for sql in statements {
        let explain = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
        let plan: Vec<(i64, i64, i64, String)> = query_as(explain).fetch_all(&mut store.connection).await.unwrap();
        for (.., step) in &plan {
            let scanned = step.strip_prefix("SCAN ").and_then(|rest| rest.split(' ').next());
            // Lists of the question itself; how few meters and refused messages there are is known.
            let few = ["meter", "refused", "json_each", "mark", "near", "CONSTANT", "_sqlx_migrations"];
            assert!(scanned.is_none_or(|table| few.contains(&table)), "{step}\n{sql}\n{plan:#?}");
        }
    }
}
