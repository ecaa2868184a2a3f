//! The tables in SQLite: lists go in as JSON or as rows of parameters.
//!
//! Enters and leaves: see [`Tables`]. One process writes the file, so nothing is locked here.

use std::collections::{BTreeSet, HashMap};

use sqlx::{QueryBuilder, SqliteConnection, query, query_as, query_scalar};

use super::seal;
use crate::{
    delivery::{Epoch, EpochAck, Ledger},
    payload,
    store::{
        Incoming, json,
        ledgers::{Columns, LEDGER, by_gateway, read_ledger, tally},
        number,
        tables::{
            LedgerRow, MessageRow, MeterRow, QuarterRow, RefusedRow, SeriesRow, Tables, There, ThereAt, remarks_of,
        },
        unreadable,
    },
};

/// Rows a statement: 10 columns of them stay below SQLite's 32,766 parameters.
const CHUNK: usize = 1000;

impl Tables for SqliteConnection {
    async fn ledgers(&mut self, runs: &BTreeSet<(&str, Epoch)>) -> Result<Vec<LedgerRow>, sqlx::Error> {
        let mut ledgers = Vec::with_capacity(runs.len());
        for chunk in runs.iter().collect::<Vec<_>>().chunks(CHUNK) {
            let mut sql = QueryBuilder::new(format!("SELECT {LEDGER} FROM ledger WHERE (gateway, epoch) IN ("));
            sql.push_values(chunk, |mut row, (gateway, epoch)| {
                row.push_bind(*gateway).push_bind(epoch.to_string());
            });
            sql.push(")");
            for row in sql.build_query_as().persistent(false).fetch_all(&mut *self).await? {
                ledgers.push(read_ledger(row)?);
            }
        }
        Ok(ledgers)
    }

    async fn save_ledgers(&mut self, ledgers: &[(&str, Epoch, &Ledger)]) -> Result<(), sqlx::Error> {
        for chunk in ledgers.chunks(CHUNK) {
            // One subquery over the list: SQLite would compile one in each row.
            let mut sql = QueryBuilder::new(format!(
                "INSERT INTO ledger ({LEDGER}, touched) SELECT *,
                (SELECT coalesce(max(touched), 0) + 1 FROM ledger WHERE gateway = list.column1) FROM ("
            ));
            sql.push_values(chunk, |mut row, (gateway, epoch, ledger)| {
                row.push_bind(*gateway).push_bind(epoch.to_string()).push_bind(number(ledger.through()));
                row.push_bind(json(&ledger.have().pairs())).push_bind(json(&ledger.lost().pairs()));
                for count in tally(ledger) {
                    row.push_bind(count);
                }
            });
            sql.push(
                ") AS list WHERE true ON CONFLICT (gateway, epoch) DO UPDATE SET
                through = excluded.through, have = excluded.have, lost = excluded.lost, stored = excluded.stored,
                repeated = excluded.repeated, refused = excluded.refused, touched = excluded.touched",
            );
            sql.build().persistent(false).execute(&mut *self).await?;
        }
        Ok(())
    }

    async fn newest_ledgers(
        &mut self,
        gateways: &[&str],
        most: u32,
    ) -> Result<Vec<(String, Vec<EpochAck>)>, sqlx::Error> {
        let mut acks = Vec::with_capacity(gateways.len());
        for chunk in gateways.chunks(CHUNK) {
            let mut sql = QueryBuilder::new(format!("SELECT {LEDGER} FROM ledger_newest WHERE gateway IN ("));
            let mut list = sql.separated(", ");
            for gateway in chunk {
                list.push_bind(*gateway);
            }
            sql.push(") AND place <= ").push_bind(most).push(" ORDER BY gateway, place");
            let rows: Vec<Columns> = sql.build_query_as().persistent(false).fetch_all(&mut *self).await?;
            acks.extend(by_gateway(rows)?);
        }
        Ok(acks)
    }

    async fn recount(&mut self, run: (&str, Epoch), stored: i64, repeated: i64) -> Result<(), sqlx::Error> {
        let sql = "UPDATE ledger SET stored = stored + ?, repeated = repeated + ?, refused = max(refused - ?, 0)
            WHERE gateway = ? AND epoch = ?";
        let update = query(sql).bind(stored).bind(repeated).bind(stored + repeated).bind(run.0);
        update.bind(run.1.to_string()).execute(self).await.map(drop)
    }

    async fn meters(&mut self, heard: &[MeterRow<'_>]) -> Result<HashMap<String, i64>, sqlx::Error> {
        let mut ids = HashMap::with_capacity(heard.len());
        for chunk in heard.chunks(CHUNK) {
            let columns = "name, medium, medium_code, protocol, gateway, predecessor, first_seen, last_seen";
            let mut sql = QueryBuilder::new(format!("INSERT INTO meter ({columns}) "));
            sql.push_values(chunk, |mut row, meter| {
                row.push_bind(meter.name).push_bind(meter.medium).push_bind(meter.medium_code);
                row.push_bind(meter.protocol).push_bind(meter.gateway).push_bind(meter.predecessor);
                row.push_bind(meter.first_seen).push_bind(meter.last_seen);
            });
            sql.push(
                " ON CONFLICT (name) DO UPDATE SET
                medium = iif(excluded.last_seen < last_seen, medium, excluded.medium),
                medium_code = iif(excluded.last_seen < last_seen, medium_code, excluded.medium_code),
                protocol = iif(excluded.last_seen < last_seen, protocol, excluded.protocol),
                gateway = iif(excluded.last_seen < last_seen, gateway, excluded.gateway),
                predecessor = coalesce(excluded.predecessor, predecessor),
                first_seen = min(first_seen, excluded.first_seen),
                last_seen = max(last_seen, excluded.last_seen)
                RETURNING name, id",
            );
            ids.extend(sql.build_query_as::<(String, i64)>().persistent(false).fetch_all(&mut *self).await?);
        }
        Ok(ids)
    }

    async fn layouts(&mut self, texts: &[String]) -> Result<Vec<i64>, sqlx::Error> {
        let texts = json(&texts);
        let insert = query("INSERT OR IGNORE INTO layout (spec) SELECT value FROM json_each(?)");
        insert.bind(&texts).execute(&mut *self).await?;
        let select =
            "SELECT layout.id FROM json_each(?) AS text CROSS JOIN layout ON spec = text.value ORDER BY text.key";
        query_scalar(select).bind(&texts).fetch_all(self).await
    }

    async fn insert_new(&mut self, messages: &mut [MessageRow]) -> Result<Vec<bool>, sqlx::Error> {
        let mut there = there(self, &messages.iter().map(MessageRow::key).collect()).await?;
        let mut stored = Vec::with_capacity(messages.len());
        for message in messages.iter_mut() {
            let there = there.entry(message.key()).or_default();
            let new = message.find_place(there);
            if new {
                there.push(message.there());
            }
            stored.push(new);
        }
        let mut new: Vec<&mut MessageRow> =
            messages.iter_mut().zip(&stored).filter_map(|(message, new)| new.then_some(message)).collect();
        write_remarks(self, &mut new).await?;
        insert_messages(self, &new).await?;
        Ok(stored)
    }

    async fn series(&mut self, series: &[SeriesRow<'_>]) -> Result<Vec<i64>, sqlx::Error> {
        let keys: Vec<_> = series.iter().map(|row| (row.meter, row.register, row.unit, row.scale)).collect();
        let keys = json(&keys);
        let select = "SELECT series.id FROM json_each(?) AS key CROSS JOIN series ON meter = key.value ->> 0
            AND register = key.value ->> 1 AND unit = key.value ->> 2 AND scale = key.value ->> 3 ORDER BY key.key";
        let ids: Vec<i64> = query_scalar(select).bind(&keys).fetch_all(&mut *self).await?;
        if ids.len() == series.len() {
            return Ok(ids);
        }
        let insert = "INSERT OR IGNORE INTO series (meter, register, unit, scale)
            SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?)";
        query(insert).bind(&keys).execute(&mut *self).await?;
        query_scalar(select).bind(&keys).fetch_all(self).await
    }

    async fn keep_quarters(&mut self, quarters: &[QuarterRow]) -> Result<(), sqlx::Error> {
        let mut changed: Vec<(i64, i64, i64)> = Vec::new();
        for chunk in quarters.chunks(CHUNK) {
            let columns = "meter, series, quarter, late, unsynchronised, value";
            let mut sql = QueryBuilder::new(format!("INSERT INTO quarter ({columns}) "));
            sql.push_values(chunk, |mut row, quarter| {
                row.push_bind(quarter.meter).push_bind(quarter.series).push_bind(quarter.quarter);
                row.push_bind(quarter.late).push_bind(quarter.unsynchronised).push_bind(quarter.value);
            });
            sql.push(
                " ON CONFLICT (meter, series, quarter) DO UPDATE SET
                late = excluded.late, unsynchronised = excluded.unsynchronised, value = excluded.value
                WHERE (excluded.unsynchronised, excluded.late) < (quarter.unsynchronised, quarter.late)
                RETURNING meter, series, quarter",
            );
            changed.extend(sql.build_query_as::<(i64, i64, i64)>().persistent(false).fetch_all(&mut *self).await?);
        }
        if changed.is_empty() {
            return Ok(());
        }
        // What changed may fall, and what follows it may have ceased to, or begun.
        let fell = "WITH changed AS (
                SELECT value ->> 0 AS meter, value ->> 1 AS series, value ->> 2 AS quarter FROM json_each(?)
            ), doubtful AS (
                SELECT * FROM changed
                UNION
                SELECT meter, series, (
                    SELECT next.quarter FROM quarter AS next
                    WHERE next.meter = changed.meter AND next.series = changed.series
                        AND next.quarter > changed.quarter AND next.unsynchronised = 0
                    ORDER BY next.quarter LIMIT 1
                ) FROM changed
            )
            SELECT doubtful.*, quarter.unsynchronised = 0 AND quarter.value < (
                SELECT before.value FROM quarter AS before
                WHERE before.meter = doubtful.meter AND before.series = doubtful.series
                    AND before.quarter < doubtful.quarter AND before.unsynchronised = 0
                ORDER BY before.quarter DESC LIMIT 1
            ) AS fell
            FROM doubtful CROSS JOIN quarter USING (meter, series, quarter)";
        let doubtful: Vec<(i64, i64, i64, Option<bool>)> =
            query_as(fell).bind(json(&changed)).fetch_all(&mut *self).await?;
        let (mut falls, mut others) = (Vec::new(), Vec::new());
        for (meter, series, quarter, fell) in doubtful {
            (if fell == Some(true) { &mut falls } else { &mut others }).push((meter, series, quarter));
        }
        let insert = "INSERT OR IGNORE INTO fall SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?)";
        query(insert).bind(json(&falls)).execute(&mut *self).await?;
        let delete = "DELETE FROM fall WHERE (meter, series, quarter) IN
            (SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?))";
        query(delete).bind(json(&others)).execute(self).await.map(drop)
    }

    async fn insert_refused(&mut self, refused: &[&Incoming]) -> Result<(), sqlx::Error> {
        for incoming in refused {
            let Incoming::Refused { topic, payload, reason, schema, envelope, received_at } = incoming else {
                continue;
            };
            let envelope = envelope.as_ref();
            query(
                "INSERT INTO refused (received_at, topic, gateway, epoch, seq, schema, readable, reason, payload)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )
            .bind(received_at.millis())
            .bind(topic)
            .bind(envelope.map(|envelope| envelope.gateway.as_str()))
            .bind(envelope.map(|envelope| envelope.epoch.to_string()))
            .bind(envelope.map(|envelope| number(envelope.seq)))
            .bind(schema)
            .bind(payload::SCHEMA)
            .bind(reason)
            .bind(payload)
            .execute(&mut *self)
            .await?;
        }
        Ok(())
    }

    async fn refused(&mut self, schema: u32, most: u32) -> Result<Vec<RefusedRow>, sqlx::Error> {
        let sql = "SELECT id, topic, payload FROM refused WHERE schema > readable AND schema <= ? ORDER BY id LIMIT ?";
        let rows: Vec<(i64, String, Vec<u8>)> = query_as(sql).bind(schema).bind(most).fetch_all(self).await?;
        Ok(rows.into_iter().map(|(id, topic, payload)| RefusedRow { id, topic, payload }).collect())
    }

    async fn delete_refused(&mut self, ids: &[i64]) -> Result<(), sqlx::Error> {
        let delete = query("DELETE FROM refused WHERE id IN (SELECT value FROM json_each(?))");
        delete.bind(json(&ids)).execute(self).await.map(drop)
    }

    async fn still_refused(&mut self, schema: u32, reasons: &[(i64, String)]) -> Result<(), sqlx::Error> {
        for (id, reason) in reasons {
            let update = query("UPDATE refused SET reason = ?, readable = ? WHERE id = ?");
            update.bind(reason).bind(schema).bind(id).execute(&mut *self).await?;
        }
        Ok(())
    }
}

/// What is there already at these meters and instants (ms).
async fn there(connection: &mut SqliteConnection, keys: &BTreeSet<(i64, i64)>) -> Result<ThereAt, sqlx::Error> {
    let sql = r#"SELECT meter, at, n, layout, "values" FROM json_each(?) AS key
        CROSS JOIN message ON meter = key.value ->> 0 AND at = key.value ->> 1"#;
    let mut there = ThereAt::new();
    let rows: Vec<(i64, i64, i64, i64, String)> = query_as(sql).bind(json(keys)).fetch_all(&mut *connection).await?;
    for (meter, at, n, layout, values) in rows {
        let values = serde_json::from_str(&values).map_err(unreadable)?;
        there.entry((meter, at)).or_default().push(There { n, layout, values });
    }
    seal::there(connection, keys, &mut there).await?;
    Ok(there)
}

/// Writes what messages say besides their readings, and notes it in their rows.
async fn write_remarks(connection: &mut SqliteConnection, messages: &mut [&mut MessageRow]) -> Result<(), sqlx::Error> {
    let remarks = remarks_of(messages.iter().map(|message| &**message));
    let mut ids: HashMap<i64, HashMap<String, i64>> = HashMap::new();
    for chunk in remarks.chunks(CHUNK) {
        let mut sql = QueryBuilder::new("INSERT INTO remark (meter, content, first_at, last_at) ");
        sql.push_values(chunk, |mut row, remark| {
            row.push_bind(remark.meter).push_bind(remark.content);
            row.push_bind(remark.first_at).push_bind(remark.last_at);
        });
        sql.push(
            " ON CONFLICT (meter, content) DO UPDATE SET
            first_at = min(first_at, excluded.first_at), last_at = max(last_at, excluded.last_at)
            RETURNING meter, content, id",
        );
        let rows: Vec<(i64, String, i64)> = sql.build_query_as().persistent(false).fetch_all(&mut *connection).await?;
        for (meter, content, id) in rows {
            ids.entry(meter).or_default().insert(content, id);
        }
    }
    for message in messages {
        let Some(said) = &message.said else { continue };
        let id = ids.get(&message.meter).and_then(|ids| ids.get(said));
        message.remark = Some(*id.ok_or(sqlx::Error::RowNotFound)?);
    }
    Ok(())
}

async fn insert_messages(connection: &mut SqliteConnection, messages: &[&mut MessageRow]) -> Result<(), sqlx::Error> {
    for chunk in messages.chunks(CHUNK) {
        let columns = r#"meter, at, n, utc_offset, clock, received_at, layout, "values", remark"#;
        let mut sql = QueryBuilder::new(format!("INSERT INTO message ({columns}) "));
        sql.push_values(chunk, |mut row, message| {
            row.push_bind(message.meter).push_bind(message.at.millis()).push_bind(message.n);
            row.push_bind(message.at.offset_minutes()).push_bind(message.clock).push_bind(message.received_at);
            row.push_bind(message.layout).push_bind(json(&message.values)).push_bind(message.remark);
        });
        sql.build().persistent(false).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Of the refused messages beyond 10,000 or 64 MiB the oldest go.
pub(super) async fn prune_refused(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let bound = "DELETE FROM refused WHERE id <= (
        SELECT max(id) FROM (
            SELECT id, row_number() OVER (ORDER BY id DESC) AS place,
                sum(octet_length(payload) + octet_length(topic)) OVER (ORDER BY id DESC) AS bytes
            FROM refused
        ) WHERE place > 10000 OR bytes > 64 * 1024 * 1024)";
    query(bound).execute(connection).await.map(drop)
}

/// Every gateway that ever sent something, in sorted order.
pub(super) async fn gateways(connection: &mut SqliteConnection) -> Result<Vec<String>, sqlx::Error> {
    query_scalar("SELECT DISTINCT gateway FROM ledger ORDER BY gateway").fetch_all(connection).await
}

/// Deletes up to `most` ledgers that are not among the `epochs` touched last of their gateway. When such an epoch
/// comes again all the same, its messages are there already: they count as `repeated`, and nothing is stored twice.
pub(super) async fn delete_ancient(
    connection: &mut SqliteConnection,
    epochs: u32,
    most: i64,
) -> Result<u64, sqlx::Error> {
    let sql = "DELETE FROM ledger WHERE (gateway, epoch) IN
        (SELECT gateway, epoch FROM ledger_newest WHERE place > ? LIMIT ?)";
    Ok(query(sql).bind(epochs).bind(most).execute(connection).await?.rows_affected())
}
