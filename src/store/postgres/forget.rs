//! A meter, or what is old of it, is deleted.
//!
//! Enters: a meter. Leaves: nothing of it in the tables. A connection beside those of the stores, which may run: each step is a
//! transaction of its own, and far below a second.
//!
//! Not supported: overwriting what a deleted row leaves in the server's files, its log and its backups. `VACUUM` at the end gives
//! the room free; the server writes over it in its own time.

use std::time::Instant;

use async_trait::async_trait;
use sqlx::{Connection as _, PgConnection, query, query_as, raw_sql};

use super::{INSIST, Reader, connect, instant::Millis, session::have_asked_anew, tables::delete_span};
use crate::{
    config::PostgresUrl,
    delivery::topic,
    store::{Forget, Forgotten, Meter, StoreError, Trouble},
};

/// The end of our calendar: 9999-12-31, in ms since 1970.
const LATEST: i64 = 253_402_300_799_999;
/// Most rows of a step.
const ROWS: i64 = 1000;
/// Most refused messages of a step: they are large.
const LARGE: i64 = 20;

/// Remarks of the meter $1 that no message from $2 on has (all, if NULL). `last_at` may be up to a quarter-hour after the last message.
const UNSAID: &str = "meter = $1 AND (last_at < coalesce($2, 'infinity') OR first_at < $2 AND last_at < $2 + interval '15 minutes' AND NOT EXISTS (
    SELECT FROM message WHERE message.meter = $1 AND message.at >= $2 AND message.at <= last_at AND message.remark = remark.id))";

/// The connection.
pub struct Forgetter {
    place: String,
    connection: PgConnection,
}

impl std::fmt::Debug for Forgetter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Forgetter({})", self.place)
    }
}

impl Forgetter {
    /// Opens a database, whose tables must be there.
    pub async fn open(url: &PostgresUrl) -> Result<Self, StoreError> {
        // Whether the tables are there, and are those of this program.
        drop(Reader::open(url).await?);
        Ok(Self { place: url.to_string(), connection: connect(url).await? })
    }

    async fn weigh_all(&mut self, meter: &Meter, before: Option<i64>) -> Result<Forgotten, sqlx::Error> {
        let sql = format!(
            "SELECT
            (SELECT count(*) FROM message WHERE meter = $1 AND at < coalesce($2, 'infinity')),
            (SELECT count(*) FROM quarter WHERE meter = $1 AND quarter * 900000 + late < coalesce($5, 9223372036854775807)),
            (SELECT count(*) FROM remark WHERE {UNSAID}),
            (SELECT count(*) FROM refused WHERE received_at < coalesce($2, 'infinity')
                AND (right(topic, length($3)) = $3 OR right(topic, length($4)) = $4))"
        );
        let [telegram, backlog] = topic_ends(&meter.name);
        let counts = query_as(sqlx::AssertSqlSafe(sql))
            .bind(meter.id)
            .bind(before.map(Millis))
            .bind(telegram)
            .bind(backlog)
            .bind(before);
        let (messages, quarters, remarks, refused): (i64, i64, i64, i64) =
            counts.fetch_one(&mut self.connection).await?;
        let [messages, quarters, remarks, refused] = [messages, quarters, remarks, refused].map(i64::unsigned_abs);
        Ok(Forgotten { messages, quarters, remarks, refused })
    }

    async fn step_once(&mut self, meter: &Meter, before: Option<i64>) -> Result<Option<Forgotten>, sqlx::Error> {
        let mut transaction = self.connection.begin().await?;
        // No message of it comes in between.
        have_asked_anew(&mut transaction).await?;
        let mut gone = Forgotten::default();
        let messages = delete_span(&mut transaction, meter.id, Millis(before.unwrap_or(LATEST)), ROWS).await?;
        gone.messages = u64::try_from(messages.len()).unwrap_or(u64::MAX);
        if gone.messages == 0 {
            let sql = "DELETE FROM quarter WHERE meter = $1 AND (series, quarter) IN (
                SELECT series, quarter FROM quarter
                WHERE meter = $1 AND quarter * 900000 + late < coalesce($2, 9223372036854775807) LIMIT $3)";
            let delete = query(sql).bind(meter.id).bind(before).bind(ROWS);
            gone.quarters = delete.execute(&mut *transaction).await?.rows_affected();
        }
        if gone.messages == 0 && gone.quarters == 0 {
            let sql = format!(
                "DELETE FROM remark WHERE meter = $1 AND id IN (SELECT id FROM remark WHERE {UNSAID} LIMIT $3)"
            );
            let delete = query(sqlx::AssertSqlSafe(sql)).bind(meter.id).bind(before.map(Millis)).bind(ROWS);
            gone.remarks = delete.execute(&mut *transaction).await?.rows_affected();
            let sql = "DELETE FROM refused WHERE id IN (
                SELECT id FROM refused WHERE received_at < coalesce($1, 'infinity')
                    AND (right(topic, length($2)) = $2 OR right(topic, length($3)) = $3) LIMIT $4)";
            let [telegram, backlog] = topic_ends(&meter.name);
            let delete = query(sql).bind(before.map(Millis)).bind(telegram).bind(backlog).bind(LARGE);
            gone.refused = delete.execute(&mut *transaction).await?.rows_affected();
        }
        let done = gone == Forgotten::default();
        if done {
            finish(&mut transaction, meter.id, before).await?;
        }
        transaction.commit().await?;
        Ok((!done).then_some(gone))
    }
}

/// What is left when no message and no quarter-hour goes any more.
async fn finish(connection: &mut PgConnection, meter: i64, before: Option<i64>) -> Result<(), sqlx::Error> {
    let Some(before) = before else {
        for sql in [
            "DELETE FROM fall WHERE meter = $1",
            "DELETE FROM series WHERE meter = $1",
            "UPDATE meter SET predecessor = NULL WHERE predecessor = (SELECT name FROM meter WHERE id = $1)",
            "DELETE FROM meter WHERE id = $1",
        ] {
            query(sql).bind(meter).execute(&mut *connection).await?;
        }
        return Ok(());
    };
    // A first value has none before it to be lower than.
    let sql = "DELETE FROM fall WHERE meter = $1 AND quarter <= coalesce((SELECT min(quarter) FROM quarter
        WHERE quarter.meter = fall.meter AND quarter.series = fall.series AND NOT unsynchronised), fall.quarter)";
    query(sql).bind(meter).execute(&mut *connection).await?;
    for sql in [
        "UPDATE remark SET first_at = $2
            WHERE meter = $1 AND first_at < $2",
        "UPDATE meter SET first_seen = least($2, last_seen)
            WHERE id = $1 AND first_seen < $2",
    ] {
        query(sql).bind(meter).bind(Millis(before)).execute(&mut *connection).await?;
    }
    Ok(())
}

/// How the topics of a meter end that bring messages.
fn topic_ends(meter: &str) -> [String; 2] {
    ["telegram", "backlog"].map(|leaf| format!("/{}/{leaf}", topic::level(meter)))
}

#[async_trait]
impl Forget for Forgetter {
    async fn weigh(&mut self, meter: &Meter, before: Option<i64>) -> Result<Forgotten, StoreError> {
        let weighed = self.weigh_all(meter, before).await;
        weighed.map_err(|error| StoreError::postgres(&self.place, error))
    }

    async fn step(&mut self, meter: &Meter, before: Option<i64>) -> Result<Option<Forgotten>, StoreError> {
        let begin = Instant::now();
        loop {
            // What is dropped half-way is taken back.
            let error = match self.step_once(meter, before).await {
                Ok(gone) => return Ok(gone),
                Err(error) => StoreError::postgres(&self.place, error),
            };
            // A store's upkeep may delete the same.
            let contended = matches!(error, StoreError::Database { trouble: Trouble::Busy, .. });
            if !contended || begin.elapsed() > INSIST {
                return Err(error);
            }
        }
    }

    async fn wipe(&mut self) -> Result<bool, StoreError> {
        let long = raw_sql("SET statement_timeout = 0").execute(&mut self.connection).await;
        long.map_err(|error| StoreError::postgres(&self.place, error))?;
        let vacuum = raw_sql("VACUUM message, quarter, remark, refused, fall, series, meter");
        let vacuumed = vacuum.execute(&mut self.connection).await.map(|_| true);
        vacuumed.map_err(|error| StoreError::postgres(&self.place, error))
    }
}
