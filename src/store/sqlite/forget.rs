//! A meter, or what is old of it, is deleted so that no trace is left in the file.
//!
//! Enters: a meter. Leaves: nothing of it. A second connection beside that of a daemon, which may run: each step is a transaction of
//! its own, and far below a second.
//!
//! What SQLite deletes it leaves in pages that it may use again. So pages are overwritten here, what other writers left is given back to the
//! file system, and the write-ahead log is emptied.
//!
//! Not supported: blocks on the disk that the file had before.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use sqlx::{
    ConnectOptions as _, SqliteConnection, query, query_as, query_scalar, raw_sql, sqlite::SqliteConnectOptions,
};

use super::{Sqlite, is_held, seal};
use crate::{
    delivery::topic,
    store::{Database as _, Forget, Forgotten, Meter, StoreError},
};

/// Most rows of a step.
const ROWS: i64 = 1000;
/// Most blocks, or refused messages, of a step: they are large.
const LARGE: i64 = 20;
/// Most free pages that are given back at once.
const PAGES: i64 = 250;
/// So long it waits for readers of an older state, who keep the log from being emptied.
const PATIENCE: Duration = Duration::from_secs(5);

/// The second connection.
#[derive(Debug)]
pub struct Forgetter {
    path: PathBuf,
    connection: SqliteConnection,
}

impl Forgetter {
    /// Opens the database at `path`, which must exist.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        if !path.exists() {
            return Err(StoreError::Missing(path.to_owned()));
        }
        if !is_held(path) {
            // Whatever is wrong with it shows as at the start of a daemon, and harms nothing.
            Box::new(Sqlite::open(path).await?).close().await?;
        }
        let options = SqliteConnectOptions::new()
            .filename(path)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10))
            .pragma("secure_delete", "ON")
            .disable_statement_logging();
        let mut connection = options.connect().await.map_err(|error| StoreError::sqlite(path, error))?;
        let version = query_scalar("SELECT max(version) FROM _sqlx_migrations").fetch_one(&mut connection).await;
        let version: i64 = version.map_err(|error| StoreError::sqlite(path, error))?;
        super::check_version(path, version)?;
        Ok(Self { path: path.to_owned(), connection })
    }

    async fn weigh_all(&mut self, meter: i64, before: i64, ends: &[String; 2]) -> Result<Forgotten, sqlx::Error> {
        let sql = "SELECT
            (SELECT count(*) FROM message WHERE meter = ?1 AND at < ?2)
                + (SELECT coalesce(sum(messages), 0) FROM sealed WHERE meter = ?1 AND from_at < ?2 AND last_at < ?2),
            (SELECT count(*) FROM series CROSS JOIN quarter
                ON quarter.meter = ?1 AND quarter.series = series.id AND quarter <= ?2 / 900000
                WHERE series.meter = ?1 AND quarter * 900000 + late < ?2),
            (SELECT count(*) FROM remark WHERE meter = ?1 AND last_at < ?2),
            (SELECT count(*) FROM refused WHERE received_at < ?2
                AND (substr(topic, -length(?3)) = ?3 OR substr(topic, -length(?4)) = ?4))";
        let [telegram, backlog] = ends;
        let counts = query_as(sql).bind(meter).bind(before).bind(telegram).bind(backlog);
        let (messages, quarters, remarks, refused): (i64, i64, i64, i64) =
            counts.fetch_one(&mut self.connection).await?;
        let [messages, quarters, remarks, refused] = [messages, quarters, remarks, refused].map(i64::unsigned_abs);
        let mut found = Forgotten { messages, quarters, remarks, refused };
        // Blocks of which a part goes.
        let sql = "SELECT block FROM sealed WHERE meter = ? AND from_at < ? AND first_at < ? AND last_at >= ?";
        let blocks: Vec<Vec<u8>> = query_scalar(sql)
            .bind(meter)
            .bind(before)
            .bind(before)
            .bind(before)
            .fetch_all(&mut self.connection)
            .await?;
        for block in blocks {
            let older = seal::older(&block, before)?;
            found.messages = found.messages.saturating_add(older);
        }
        Ok(found)
    }

    async fn step_begun(
        &mut self,
        meter: &Meter,
        before: Option<i64>,
        ends: &[String; 2],
    ) -> Result<Option<Forgotten>, sqlx::Error> {
        let (id, until) = (meter.id, before.unwrap_or(i64::MAX));
        let mut gone = Forgotten::default();
        let sql = "DELETE FROM message WHERE meter = ?1 AND (at, n) IN
            (SELECT at, n FROM message WHERE meter = ?1 AND at < ?2 ORDER BY at, n LIMIT ?3)";
        gone.messages = self.delete(sql, id, until, ROWS).await?;
        if gone.messages == 0 {
            let sql =
                "DELETE FROM sealed WHERE id IN (SELECT id FROM sealed WHERE meter = ?1 AND from_at < ?2 AND last_at < ?2 LIMIT ?3)
                RETURNING messages";
            let blocks: Vec<i64> =
                query_scalar(sql).bind(id).bind(until).bind(LARGE).fetch_all(&mut self.connection).await?;
            gone.messages = blocks.into_iter().map(i64::unsigned_abs).fold(0, u64::saturating_add);
        }
        if gone.messages == 0 {
            gone.messages = seal::cut(&mut self.connection, id, until).await?;
        }
        if gone.messages == 0 {
            let sql = "DELETE FROM quarter WHERE meter = ?1 AND (series, quarter) IN
                (SELECT quarter.series, quarter.quarter FROM series CROSS JOIN quarter
                    ON quarter.meter = ?1 AND quarter.series = series.id AND quarter <= ?2 / 900000
                    WHERE series.meter = ?1 AND quarter * 900000 + late < ?2 LIMIT ?3)";
            gone.quarters = self.delete(sql, id, until, ROWS).await?;
        }
        if gone.messages == 0 && gone.quarters == 0 {
            let sql =
                "DELETE FROM remark WHERE id IN (SELECT id FROM remark WHERE meter = ?1 AND last_at < ?2 LIMIT ?3)";
            gone.remarks = self.delete(sql, id, until, ROWS).await?;
            let sql = "DELETE FROM refused WHERE id IN (SELECT id FROM refused WHERE received_at < ?
                AND (substr(topic, -length(?2)) = ?2 OR substr(topic, -length(?3)) = ?3) LIMIT ?4)";
            let [telegram, backlog] = ends;
            let refused = query(sql).bind(until).bind(telegram).bind(backlog).bind(LARGE);
            gone.refused = refused.execute(&mut self.connection).await?.rows_affected();
        }
        if gone != Forgotten::default() {
            return Ok(Some(gone));
        }
        match before {
            None => self.finish_whole(meter).await?,
            Some(before) => self.finish_before(id, before).await?,
        }
        Ok(None)
    }

    /// What is left when nothing names the meter any more.
    async fn finish_whole(&mut self, meter: &Meter) -> Result<(), sqlx::Error> {
        for sql in [
            "DELETE FROM fall WHERE meter = ?",
            "DELETE FROM series WHERE meter = ?",
            "UPDATE meter SET predecessor = NULL WHERE predecessor = (SELECT name FROM meter WHERE id = ?)",
            "DELETE FROM meter WHERE id = ?",
        ] {
            query(sql).bind(meter.id).execute(&mut self.connection).await?;
        }
        Ok(())
    }

    /// What told of the time before.
    async fn finish_before(&mut self, meter: i64, before: i64) -> Result<(), sqlx::Error> {
        // A first value has none before it to be lower than.
        let sql = "DELETE FROM fall WHERE meter = ?1 AND quarter <= coalesce((SELECT min(quarter) FROM quarter
            WHERE quarter.meter = fall.meter AND quarter.series = fall.series AND unsynchronised = 0), fall.quarter)";
        query(sql).bind(meter).execute(&mut self.connection).await?;
        for sql in [
            "UPDATE remark SET first_at = ?2 WHERE meter = ?1 AND first_at < ?2",
            "UPDATE meter SET first_seen = min(?2, last_seen) WHERE id = ?1 AND first_seen < ?2",
        ] {
            query(sql).bind(meter).bind(before).execute(&mut self.connection).await?;
        }
        Ok(())
    }

    async fn delete(&mut self, sql: &'static str, meter: i64, before: i64, most: i64) -> Result<u64, sqlx::Error> {
        Ok(query(sql).bind(meter).bind(before).bind(most).execute(&mut self.connection).await?.rows_affected())
    }

    async fn free_pages(&mut self) -> Result<i64, sqlx::Error> {
        query_scalar("PRAGMA freelist_count").fetch_one(&mut self.connection).await
    }

    async fn wipe_all(&mut self) -> Result<bool, sqlx::Error> {
        let mut free = self.free_pages().await?;
        while free > 0 {
            raw_sql(sqlx::AssertSqlSafe(format!("PRAGMA incremental_vacuum({PAGES})")))
                .execute(&mut self.connection)
                .await?;
            let left = self.free_pages().await?;
            if left >= free {
                break;
            }
            free = left;
            // Others may want to write.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // While it waits for readers nobody can write: not for long at once.
        raw_sql("PRAGMA busy_timeout = 200").execute(&mut self.connection).await?;
        let begin = Instant::now();
        loop {
            let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
            let (busy, _, _): (i64, i64, i64) = query_as(sql).fetch_one(&mut self.connection).await?;
            if busy == 0 {
                return Ok(true);
            }
            if begin.elapsed() > PATIENCE {
                return Ok(false);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// How the topics of a meter end that bring messages.
fn topic_ends(meter: &str) -> [String; 2] {
    ["telegram", "backlog"].map(|leaf| format!("/{}/{leaf}", topic::level(meter)))
}

#[async_trait]
impl Forget for Forgetter {
    async fn weigh(&mut self, meter: &Meter, before: Option<i64>) -> Result<Forgotten, StoreError> {
        let weighed = self.weigh_all(meter.id, before.unwrap_or(i64::MAX), &topic_ends(&meter.name)).await;
        weighed.map_err(|error| StoreError::sqlite(&self.path, error))
    }

    async fn step(&mut self, meter: &Meter, before: Option<i64>) -> Result<Option<Forgotten>, StoreError> {
        let step = match raw_sql("BEGIN IMMEDIATE").execute(&mut self.connection).await {
            Ok(_) => self.step_begun(meter, before, &topic_ends(&meter.name)).await,
            Err(error) => Err(error),
        };
        let ended = match step {
            Ok(step) => raw_sql("COMMIT").execute(&mut self.connection).await.map(|_| step),
            Err(error) => Err(error),
        };
        if ended.is_err() {
            // Fails when SQLite has rolled back already, which is as well.
            let _ = raw_sql("ROLLBACK").execute(&mut self.connection).await;
        }
        ended.map_err(|error| StoreError::sqlite(&self.path, error))
    }

    async fn wipe(&mut self) -> Result<bool, StoreError> {
        self.wipe_all().await.map_err(|error| StoreError::sqlite(&self.path, error))
    }
}
