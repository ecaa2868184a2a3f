//! The tables in PostgreSQL: lists go in as arrays, a column each, whatever their length.
//!
//! Enters and leaves: see [`Tables`]. Rows are taken in the order in which they come in.
//!
//! What is remembered from one transaction to the next is only what was there before a transaction began: nothing of it is undone.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::Duration,
};

use sqlx::{PgConnection, query, query_as, query_scalar, raw_sql};

use super::{
    instant::Millis,
    text::{keep, restore},
};
use crate::{
    delivery::{Epoch, EpochAck, Ledger},
    payload,
    store::{
        Incoming, Size, json,
        ledgers::{Columns, EPOCHS, LEDGER, by_gateway, read_ledger, tally},
        number,
        tables::{LedgerRow, MessageRow, MeterRow, QuarterRow, RefusedRow, RemarkRow, SeriesRow, Tables, There},
    },
};

/// Who does the upkeep holds this lock, as long as its transaction lasts.
const UPKEEP_LOCK: i64 = 0x6d65_7465_726b_6173;

/// Most meters whose series are remembered, and most series whose quarter-hours are.
const REMEMBERED: usize = 100_000;

/// A connection, and what it need not ask again.
pub(super) struct Session {
    pub(super) connection: PgConnection,
    /// Series by meter: register, unit, decimals, number.
    series: HashMap<i64, Vec<(String, String, u8, i64)>>,
    /// A quarter-hour of each series that is known at least as early as this: its number, and the rank.
    quarters: HashMap<i64, (i64, (bool, i64))>,
}

impl Session {
    pub(super) fn new(connection: PgConnection) -> Self {
        Self { connection, series: HashMap::new(), quarters: HashMap::new() }
    }

    fn known_series(&self, row: &SeriesRow<'_>) -> Option<i64> {
        let all = self.series.get(&row.meter)?.iter();
        let mut same = all
            .filter(|(register, unit, scale, _)| (&**register, &**unit, *scale) == (row.register, row.unit, row.scale));
        same.next().map(|(.., id)| *id)
    }

    /// The numbers of series that are there, by their place in the list.
    async fn find_series(&mut self, series: &[&SeriesRow<'_>]) -> Result<HashMap<usize, i64>, sqlx::Error> {
        let sql = "SELECT place, series.id
            FROM unnest($1::bigint[], $2::text[], $3::text[], $4::smallint[]) WITH ORDINALITY
                AS key (meter, register, unit, scale, place)
            JOIN series USING (meter, register, unit, scale)";
        let found: Vec<(i64, i64)> = query_as(sql)
            .bind(column(series, |row| row.meter))
            .bind(column(series, |row| row.register))
            .bind(column(series, |row| row.unit))
            .bind(column(series, |row| i16::from(row.scale)))
            .fetch_all(&mut self.connection)
            .await?;
        let place = |place: i64| usize::try_from(place).unwrap_or_default().saturating_sub(1);
        Ok(found.into_iter().map(|(at, id)| (place(at), id)).collect())
    }
}

/// One column of some rows.
fn column<'r, R, T>(rows: &'r [R], of: impl FnMut(&'r R) -> T) -> Vec<T> {
    rows.iter().map(of).collect()
}

/// An array as the server reads it from a text: a list of lists of different lengths has no other form.
fn array(values: &[i64]) -> String {
    let list = json(&values);
    let list = list.strip_prefix('[').and_then(|list| list.strip_suffix(']')).unwrap_or_default();
    format!("{{{list}}}")
}

impl Tables for Session {
    async fn ledgers(&mut self, runs: &BTreeSet<(&str, Epoch)>) -> Result<Vec<LedgerRow>, sqlx::Error> {
        let runs: Vec<_> = runs.iter().collect();
        let gateways = column(&runs, |(gateway, _)| keep(gateway));
        let epochs = column(&runs, |(_, epoch)| epoch.to_string());
        let select = format!(
            "SELECT {LEDGER} FROM unnest($1::text[], $2::text[]) AS run (gateway, epoch) JOIN ledger USING (gateway, epoch)
            ORDER BY gateway, epoch FOR UPDATE OF ledger"
        );
        let held = query_as(sqlx::AssertSqlSafe(select.clone())).bind(&gateways).bind(&epochs);
        let mut rows: Vec<Columns> = held.fetch_all(&mut self.connection).await?;
        if rows.len() < runs.len() {
            // A row that is not there cannot be held.
            let insert = "INSERT INTO ledger (gateway, epoch, through, have, lost, stored, repeated, refused, touched)
                SELECT gateway, epoch, 0, '[]', '[]', 0, 0, 0, 0 FROM unnest($1::text[], $2::text[]) AS run (gateway, epoch)
                ON CONFLICT DO NOTHING";
            query(insert).bind(&gateways).bind(&epochs).execute(&mut self.connection).await?;
            let held = query_as(sqlx::AssertSqlSafe(select)).bind(gateways).bind(epochs);
            rows = held.fetch_all(&mut self.connection).await?;
        }
        rows.into_iter().map(|row| read_ledger(restored(row))).collect()
    }

    async fn save_ledgers(&mut self, ledgers: &[(&str, Epoch, &Ledger)]) -> Result<(), sqlx::Error> {
        let sql = format!(
            "INSERT INTO ledger ({LEDGER}, touched)
            SELECT {LEDGER}, (SELECT coalesce(max(touched), 0) + 1 FROM ledger WHERE ledger.gateway = run.gateway)
            FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::bigint[], $7::bigint[], $8::bigint[])
                AS run ({LEDGER})
            ON CONFLICT (gateway, epoch) DO UPDATE SET
            through = excluded.through, have = excluded.have, lost = excluded.lost, stored = excluded.stored,
            repeated = excluded.repeated, refused = excluded.refused, touched = excluded.touched"
        );
        let count =
            |place: usize| column(ledgers, |(.., ledger)| tally(ledger).get(place).copied().unwrap_or_default());
        query(sqlx::AssertSqlSafe(sql))
            .bind(column(ledgers, |(gateway, ..)| keep(gateway)))
            .bind(column(ledgers, |(_, epoch, _)| epoch.to_string()))
            .bind(column(ledgers, |(.., ledger)| number(ledger.through())))
            .bind(column(ledgers, |(.., ledger)| json(&ledger.have().pairs())))
            .bind(column(ledgers, |(.., ledger)| json(&ledger.lost().pairs())))
            .bind(count(0))
            .bind(count(1))
            .bind(count(2))
            .execute(&mut self.connection)
            .await
            .map(drop)
    }

    async fn newest_ledgers(
        &mut self,
        gateways: &[&str],
        most: u32,
    ) -> Result<Vec<(String, Vec<EpochAck>)>, sqlx::Error> {
        let sql = format!(
            "SELECT {LEDGER} FROM ledger_newest WHERE gateway = ANY ($1) AND place <= $2 ORDER BY gateway, place"
        );
        let rows =
            query_as(sqlx::AssertSqlSafe(sql)).bind(column(gateways, |gateway| keep(gateway))).bind(i64::from(most));
        let rows: Vec<Columns> = rows.fetch_all(&mut self.connection).await?;
        let mut acks = by_gateway(rows.into_iter().map(restored).collect())?;
        // What was kept otherwise than it is may have another place.
        acks.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(acks)
    }

    async fn recount(&mut self, run: (&str, Epoch), stored: i64, repeated: i64) -> Result<(), sqlx::Error> {
        let sql =
            "UPDATE ledger SET stored = stored + $1, repeated = repeated + $2, refused = greatest(refused - $3, 0)
            WHERE gateway = $4 AND epoch = $5";
        let update = query(sql).bind(stored).bind(repeated).bind(stored.saturating_add(repeated)).bind(keep(run.0));
        update.bind(run.1.to_string()).execute(&mut self.connection).await.map(drop)
    }

    async fn meters(&mut self, heard: &[MeterRow<'_>]) -> Result<HashMap<String, i64>, sqlx::Error> {
        let sql = "INSERT INTO meter (name, medium, medium_code, protocol, gateway, predecessor, first_seen, last_seen)
            SELECT * FROM unnest(
                $1::text[], $2::text[], $3::smallint[], $4::text[], $5::text[], $6::text[], $7::timestamptz[], $8::timestamptz[])
            ON CONFLICT (name) DO UPDATE SET
            medium = CASE WHEN excluded.last_seen < meter.last_seen THEN meter.medium ELSE excluded.medium END,
            medium_code = CASE WHEN excluded.last_seen < meter.last_seen THEN meter.medium_code ELSE excluded.medium_code END,
            protocol = CASE WHEN excluded.last_seen < meter.last_seen THEN meter.protocol ELSE excluded.protocol END,
            gateway = CASE WHEN excluded.last_seen < meter.last_seen THEN meter.gateway ELSE excluded.gateway END,
            predecessor = coalesce(excluded.predecessor, meter.predecessor),
            first_seen = least(meter.first_seen, excluded.first_seen),
            last_seen = greatest(meter.last_seen, excluded.last_seen)
            RETURNING name, id";
        let rows: Vec<(String, i64)> = query_as(sql)
            .bind(column(heard, |meter| keep(meter.name)))
            .bind(column(heard, |meter| meter.medium))
            .bind(column(heard, |meter| i16::from(meter.medium_code)))
            .bind(column(heard, |meter| keep(meter.protocol)))
            .bind(column(heard, |meter| keep(meter.gateway)))
            .bind(column(heard, |meter| meter.predecessor.map(keep)))
            .bind(column(heard, |meter| Millis(meter.first_seen)))
            .bind(column(heard, |meter| Millis(meter.last_seen)))
            .fetch_all(&mut self.connection)
            .await?;
        Ok(rows.into_iter().map(|(name, id)| (restore(name), id)).collect())
    }

    async fn layouts(&mut self, texts: &[String]) -> Result<Vec<i64>, sqlx::Error> {
        let select = "SELECT id FROM unnest($1::text[]) WITH ORDINALITY AS text (spec, place)
            JOIN layout ON digest = sha256(convert_to(text.spec, 'UTF8')) ORDER BY place";
        let ids: Vec<i64> = query_scalar(select).bind(texts).fetch_all(&mut self.connection).await?;
        if ids.len() == texts.len() {
            return Ok(ids);
        }
        // Sorted, because they come in no order of their own.
        let insert = "INSERT INTO layout (digest, spec)
            SELECT sha256(convert_to(spec, 'UTF8')), spec FROM unnest($1::text[]) AS text (spec) ORDER BY 1
            ON CONFLICT DO NOTHING";
        query(insert).bind(texts).execute(&mut self.connection).await?;
        query_scalar(select).bind(texts).fetch_all(&mut self.connection).await
    }

    async fn there(&mut self, keys: &BTreeSet<(i64, i64)>) -> Result<HashMap<(i64, i64), Vec<There>>, sqlx::Error> {
        let keys: Vec<(i64, i64)> = keys.iter().copied().collect();
        let sql = r#"SELECT key.meter, key.millis, n::bigint, layout, "values"
            FROM unnest($1::bigint[], $2::timestamptz[], $3::bigint[]) AS key (meter, at, millis) JOIN message USING (meter, at)"#;
        let rows: Vec<(i64, i64, i64, i64, Vec<i64>)> = query_as(sql)
            .bind(column(&keys, |(meter, _)| *meter))
            .bind(column(&keys, |(_, at)| Millis(*at)))
            .bind(column(&keys, |(_, at)| *at))
            .fetch_all(&mut self.connection)
            .await?;
        let mut there: HashMap<_, Vec<_>> = HashMap::new();
        for (meter, at, n, layout, values) in rows {
            there.entry((meter, at)).or_default().push(There { n, layout, values });
        }
        Ok(there)
    }

    async fn remarks(&mut self, remarks: &[RemarkRow<'_>]) -> Result<Vec<i64>, sqlx::Error> {
        let sql = "WITH said AS MATERIALIZED (
                SELECT meter, sha256(convert_to(content, 'UTF8')) AS digest, content, first_at, last_at, place
                FROM unnest($1::bigint[], $2::text[], $3::timestamptz[], $4::timestamptz[]) WITH ORDINALITY
                    AS said (meter, content, first_at, last_at, place)
            ), kept AS (
                INSERT INTO remark (meter, digest, content, first_at, last_at)
                SELECT meter, digest, content, first_at, last_at FROM said ORDER BY place
                ON CONFLICT (meter, digest) DO UPDATE SET
                first_at = least(remark.first_at, excluded.first_at), last_at = greatest(remark.last_at, excluded.last_at)
                RETURNING meter, digest, id
            )
            SELECT kept.id FROM said JOIN kept USING (meter, digest) ORDER BY place";
        let ids: Vec<i64> = query_scalar(sql)
            .bind(column(remarks, |remark| remark.meter))
            .bind(column(remarks, |remark| remark.content))
            .bind(column(remarks, |remark| Millis(remark.first_at)))
            .bind(column(remarks, |remark| Millis(remark.last_at)))
            .fetch_all(&mut self.connection)
            .await?;
        if ids.len() == remarks.len() { Ok(ids) } else { Err(sqlx::Error::RowNotFound) }
    }

    async fn insert_messages(&mut self, messages: &[MessageRow]) -> Result<(), sqlx::Error> {
        let insert = r#"INSERT INTO message (meter, at, n, utc_offset, clock, received_at, layout, "values", remark)
            SELECT meter, at, n, utc_offset, clock, received_at, layout, "values"::bigint[], remark
            FROM unnest(
                $1::bigint[], $2::timestamptz[], $3::bigint[], $4::integer[], $5::bigint[], $6::timestamptz[], $7::bigint[], $8::text[],
                $9::bigint[]
            ) AS said (meter, at, n, utc_offset, clock, received_at, layout, "values", remark)"#;
        query(insert)
            .bind(column(messages, |message| message.meter))
            .bind(column(messages, |message| Millis(message.at.millis())))
            .bind(column(messages, |message| message.n))
            .bind(column(messages, |message| message.at.offset_minutes()))
            .bind(column(messages, |message| message.clock))
            .bind(column(messages, |message| Millis(message.received_at)))
            .bind(column(messages, |message| message.layout))
            .bind(column(messages, |message| array(&message.values)))
            .bind(column(messages, |message| message.remark))
            .execute(&mut self.connection)
            .await
            .map(drop)
    }

    async fn series(&mut self, series: &[SeriesRow<'_>]) -> Result<Vec<i64>, sqlx::Error> {
        let mut ids: Vec<Option<i64>> = series.iter().map(|row| self.known_series(row)).collect();
        let unknown = |ids: &[Option<i64>]| -> Vec<usize> {
            ids.iter().enumerate().filter_map(|(place, id)| id.is_none().then_some(place)).collect()
        };
        for insert in [false, true] {
            let places = unknown(&ids);
            let rows: Vec<&SeriesRow<'_>> = places.iter().filter_map(|place| series.get(*place)).collect();
            if rows.is_empty() {
                break;
            }
            if insert {
                let sql = "INSERT INTO series (meter, register, unit, scale)
                    SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::smallint[]) ON CONFLICT DO NOTHING";
                query(sql)
                    .bind(column(&rows, |row| row.meter))
                    .bind(column(&rows, |row| row.register))
                    .bind(column(&rows, |row| row.unit))
                    .bind(column(&rows, |row| i16::from(row.scale)))
                    .execute(&mut self.connection)
                    .await?;
            }
            let found = self.find_series(&rows).await?;
            if self.series.len() > REMEMBERED {
                self.series.clear();
            }
            for (at, (place, row)) in places.iter().zip(&rows).enumerate() {
                let Some(&id) = found.get(&at) else { continue };
                if let Some(entry) = ids.get_mut(*place) {
                    *entry = Some(id);
                }
                // Those that are new are there for good only when the transaction has ended.
                if !insert {
                    let known = self.series.entry(row.meter).or_default();
                    known.push((row.register.to_owned(), row.unit.to_owned(), row.scale, id));
                }
            }
        }
        ids.into_iter().map(|id| id.ok_or(sqlx::Error::RowNotFound)).collect()
    }

    async fn keep_quarters(&mut self, quarters: &[QuarterRow]) -> Result<(), sqlx::Error> {
        // Most messages say nothing of their quarter-hour that is not known better: those touch no row.
        let rank = |row: &QuarterRow| (row.unsynchronised, row.late);
        let known = |row: &&QuarterRow| {
            self.quarters
                .get(&row.series)
                .is_some_and(|(quarter, known)| *quarter == row.quarter && *known <= rank(row))
        };
        let quarters: Vec<&QuarterRow> = quarters.iter().filter(|row| !known(row)).collect();
        if quarters.is_empty() {
            return Ok(());
        }
        let keep = "INSERT INTO quarter (meter, series, quarter, late, unsynchronised, value)
            SELECT said.* FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::boolean[], $6::bigint[])
                AS said (meter, series, quarter, late, unsynchronised, value)
            WHERE NOT EXISTS (
                SELECT FROM quarter AS known
                WHERE known.meter = said.meter AND known.series = said.series AND known.quarter = said.quarter
                    AND (known.unsynchronised, known.late) <= (said.unsynchronised, said.late)
            )
            ON CONFLICT (meter, series, quarter) DO UPDATE SET
            late = excluded.late, unsynchronised = excluded.unsynchronised, value = excluded.value
            WHERE (excluded.unsynchronised, excluded.late) < (quarter.unsynchronised, quarter.late)
            RETURNING meter, series, quarter";
        let changed: Vec<(i64, i64, i64)> = query_as(keep)
            .bind(column(&quarters, |row| row.meter))
            .bind(column(&quarters, |row| row.series))
            .bind(column(&quarters, |row| row.quarter))
            .bind(column(&quarters, |row| row.late))
            .bind(column(&quarters, |row| row.unsynchronised))
            .bind(column(&quarters, |row| row.value))
            .fetch_all(&mut self.connection)
            .await?;
        let written: HashSet<(i64, i64)> = changed.iter().map(|(_, series, quarter)| (*series, *quarter)).collect();
        if self.quarters.len() > REMEMBERED {
            self.quarters.clear();
        }
        let there = quarters.iter().filter(|row| !written.contains(&(row.series, row.quarter)));
        self.quarters.extend(there.map(|row| (row.series, (row.quarter, rank(row)))));
        if changed.is_empty() {
            return Ok(());
        }
        // What changed may fall, and what follows it may have ceased to, or begun.
        let fall = "WITH changed AS (
                SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS changed (meter, series, quarter)
            ), doubtful AS (
                SELECT * FROM changed
                UNION
                SELECT meter, series, (
                    SELECT next.quarter FROM quarter AS next
                    WHERE next.meter = changed.meter AND next.series = changed.series
                        AND next.quarter > changed.quarter AND NOT next.unsynchronised
                    ORDER BY next.quarter LIMIT 1
                ) FROM changed
            ), judged AS (
                SELECT meter, series, quarter, coalesce(NOT unsynchronised AND value < (
                    SELECT before.value FROM quarter AS before
                    WHERE before.meter = doubtful.meter AND before.series = doubtful.series
                        AND before.quarter < doubtful.quarter AND NOT before.unsynchronised
                    ORDER BY before.quarter DESC LIMIT 1
                ), false) AS falls
                FROM doubtful JOIN quarter USING (meter, series, quarter)
            ), risen AS (
                DELETE FROM fall USING judged
                WHERE fall.meter = judged.meter AND fall.series = judged.series AND fall.quarter = judged.quarter AND NOT falls
            )
            INSERT INTO fall SELECT meter, series, quarter FROM judged WHERE falls ON CONFLICT DO NOTHING";
        query(fall)
            .bind(column(&changed, |(meter, ..)| *meter))
            .bind(column(&changed, |(_, series, _)| *series))
            .bind(column(&changed, |(.., quarter)| *quarter))
            .execute(&mut self.connection)
            .await
            .map(drop)
    }

    async fn insert_refused(&mut self, refused: &[&Incoming]) -> Result<(), sqlx::Error> {
        for incoming in refused {
            let Incoming::Refused { topic, payload, reason, schema, envelope, received_at } = incoming else {
                continue;
            };
            let envelope = envelope.as_ref();
            query(
                "INSERT INTO refused (received_at, topic, gateway, epoch, seq, schema, readable, reason, payload)
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            )
            .bind(Millis(received_at.millis()))
            .bind(keep(topic))
            .bind(envelope.map(|envelope| keep(&envelope.gateway)))
            .bind(envelope.map(|envelope| envelope.epoch.to_string()))
            .bind(envelope.map(|envelope| number(envelope.seq)))
            .bind(i64::from(*schema))
            .bind(i64::from(payload::SCHEMA))
            .bind(keep(reason))
            .bind(payload)
            .execute(&mut self.connection)
            .await?;
        }
        Ok(())
    }

    async fn refused(&mut self, schema: u32, most: u32) -> Result<Vec<RefusedRow>, sqlx::Error> {
        // What another store reads again now is left to it.
        let sql = "SELECT id, topic, payload FROM refused WHERE schema > readable AND schema <= $1
            ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED";
        let rows: Vec<(i64, String, Vec<u8>)> =
            query_as(sql).bind(i64::from(schema)).bind(i64::from(most)).fetch_all(&mut self.connection).await?;
        Ok(rows.into_iter().map(|(id, topic, payload)| RefusedRow { id, topic: restore(topic), payload }).collect())
    }

    async fn delete_refused(&mut self, ids: &[i64]) -> Result<(), sqlx::Error> {
        query("DELETE FROM refused WHERE id = ANY ($1)").bind(ids).execute(&mut self.connection).await.map(drop)
    }

    async fn still_refused(&mut self, schema: u32, reasons: &[(i64, String)]) -> Result<(), sqlx::Error> {
        for (id, reason) in reasons {
            let update = query("UPDATE refused SET reason = $1, readable = $2 WHERE id = $3");
            update.bind(keep(reason)).bind(i64::from(schema)).bind(id).execute(&mut self.connection).await?;
        }
        Ok(())
    }
}

/// A row of `ledger` with the gateway's own name.
fn restored((gateway, epoch, through, have, lost, stored, repeated, refused): Columns) -> Columns {
    (restore(gateway), epoch, through, have, lost, stored, repeated, refused)
}

/// Of the refused messages beyond 10,000 or 64 MiB the oldest go.
pub(super) async fn prune_refused(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    // Another store that does the same now need not be waited for.
    let bound = "DELETE FROM refused WHERE id IN (
        SELECT id FROM refused WHERE id <= (
            SELECT max(id) FROM (
                SELECT id, row_number() OVER newest AS place,
                    sum(octet_length(payload) + octet_length(topic)) OVER newest AS bytes
                FROM refused WINDOW newest AS (ORDER BY id DESC)
            ) AS refused WHERE place > 10000 OR bytes > 64 * 1024 * 1024
        ) FOR UPDATE SKIP LOCKED)";
    query(bound).execute(connection).await.map(drop)
}

/// Every gateway that ever sent something, in sorted order.
pub(super) async fn gateways(connection: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    let gateways: Vec<String> = query_scalar("SELECT DISTINCT gateway FROM ledger").fetch_all(connection).await?;
    let mut gateways: Vec<String> = gateways.into_iter().map(restore).collect();
    gateways.sort_unstable();
    Ok(gateways)
}

/// One step of upkeep: of messages, ledgers and remarks at most `most` rows of each kind go, and the size is noted. Returns whether
/// there is more to do. While another store does it, nothing is done.
pub(super) async fn keep_up(connection: &mut PgConnection, keep: Duration, most: i64) -> Result<bool, sqlx::Error> {
    let sql = "SELECT pg_try_advisory_xact_lock($1)";
    if !query_scalar::<_, bool>(sql).bind(UPKEEP_LOCK).fetch_one(&mut *connection).await? {
        return Ok(false);
    }
    let keep = i64::try_from(keep.as_millis()).unwrap_or(i64::MAX);
    let messages = delete_older(connection, keep, most).await?;
    let ledgers = delete_ancient(connection, EPOCHS, most).await?;
    let size = "INSERT INTO size (day, bytes)
        SELECT floor(extract(epoch FROM now()) / 86400), pg_database_size(current_database())
        ON CONFLICT (day) DO UPDATE SET bytes = excluded.bytes WHERE abs(excluded.bytes - size.bytes) > 1000000";
    raw_sql(size).execute(connection).await?;
    Ok(messages.max(ledgers) >= most.unsigned_abs())
}

/// How large the database is, and how much it grew in a day since the oldest note of up to 30 days ago.
pub(super) async fn size(connection: &mut PgConnection) -> Result<Size, sqlx::Error> {
    let sql = "WITH now AS (
            SELECT floor(extract(epoch FROM now()) / 86400)::bigint AS day, pg_database_size(current_database()) AS bytes
        )
        SELECT now.bytes, (
            SELECT (now.bytes - size.bytes) / (now.day - size.day) FROM size
            WHERE size.day BETWEEN now.day - 30 AND now.day - 1 ORDER BY size.day LIMIT 1
        ) FROM now";
    let (bytes, bytes_a_day): (i64, Option<i64>) = query_as(sql).fetch_one(connection).await?;
    Ok(Size { bytes: bytes.unsigned_abs(), bytes_a_day })
}

/// Deletes the oldest messages of a meter before an instant, about `most` of them; of one instant all or none. Returns their remarks. The
/// instants are constants of the statement, because TimescaleDB chooses by them what it decompresses.
pub(super) async fn delete_span(
    connection: &mut PgConnection,
    meter: i64,
    before: Millis,
    most: i64,
) -> Result<Vec<Option<i64>>, sqlx::Error> {
    let sql = "SELECT at FROM message WHERE meter = $1 AND at < $2 ORDER BY at LIMIT 1 OFFSET $3";
    let nth = async |connection: &mut PgConnection, place: i64| {
        let nth = query_scalar(sql).bind(meter).bind(before).bind(place);
        nth.fetch_optional(connection).await
    };
    let Some(first): Option<Millis> = nth(&mut *connection, 0).await? else { return Ok(Vec::new()) };
    let end: Option<Millis> = nth(&mut *connection, most).await?;
    let end = end.map_or(before, |end| Millis(end.0.max(first.0.saturating_add(1))));
    let sql = "DELETE FROM message WHERE meter = $1 AND at >= $2 AND at < $3 RETURNING remark";
    query_scalar(sql).bind(meter).bind(first).bind(end).fetch_all(connection).await
}

/// Deletes messages more than `keep` ms before their meter's newest, and the remarks that only they had. Returns how many messages.
async fn delete_older(connection: &mut PgConnection, keep: i64, most: i64) -> Result<u64, sqlx::Error> {
    // A clock that ran ahead once must not make everything else look old: an instant more than a day after its reception is
    // not taken as the newest; of a clock that stays ahead the newest reception is.
    let sql = "SELECT id, coalesce((
            SELECT max(at) FROM (
                SELECT at, received_at FROM message WHERE meter = meter.id ORDER BY at DESC, n DESC LIMIT 1000
            ) AS newest WHERE at <= received_at + interval '1 day'
        ), last_seen) FROM meter";
    let meters: Vec<(i64, Millis)> = query_as(sql).fetch_all(&mut *connection).await?;
    let mut gone: Vec<(i64, Option<i64>)> = Vec::new();
    for (meter, newest) in meters {
        let left = most.saturating_sub(i64::try_from(gone.len()).unwrap_or(i64::MAX));
        if left <= 0 {
            break;
        }
        let before = Millis(newest.0.saturating_sub(keep));
        let remarks = delete_span(connection, meter, before, left).await?;
        gone.extend(remarks.into_iter().map(|remark| (meter, remark)));
    }
    if gone.is_empty() {
        return Ok(0);
    }
    // As those who write messages do, and in their order: a remark must not go while one comes that has it.
    let meters: BTreeSet<i64> = gone.iter().map(|(meter, _)| *meter).collect();
    let held = query("SELECT FROM meter WHERE id = ANY ($1) ORDER BY name FOR UPDATE");
    held.bind(meters.into_iter().collect::<Vec<_>>()).execute(&mut *connection).await?;
    let remarks: BTreeSet<(i64, i64)> = gone.iter().filter_map(|(meter, remark)| Some((*meter, (*remark)?))).collect();
    let remarks: Vec<_> = remarks.into_iter().collect();
    let sql = "DELETE FROM remark USING unnest($1::bigint[], $2::bigint[]) AS gone (meter, id)
        WHERE remark.meter = gone.meter AND remark.id = gone.id
            AND last_at < (SELECT min(at) FROM message WHERE message.meter = remark.meter)";
    let delete = query(sql).bind(column(&remarks, |(meter, _)| *meter)).bind(column(&remarks, |(_, id)| *id));
    delete.execute(connection).await?;
    Ok(u64::try_from(gone.len()).unwrap_or(u64::MAX))
}

/// Deletes up to `most` ledgers that are not among the `epochs` touched last of their gateway. When such an epoch
/// comes again all the same, its messages are there already: they count as `repeated`, and nothing is stored twice.
async fn delete_ancient(connection: &mut PgConnection, epochs: u32, most: i64) -> Result<u64, sqlx::Error> {
    // One that a store holds now is not ancient any more.
    let sql = "DELETE FROM ledger WHERE (gateway, epoch) IN (
        SELECT gateway, epoch FROM ledger
        WHERE (gateway, epoch) IN (SELECT gateway, epoch FROM ledger_newest WHERE place > $1 LIMIT $2)
        FOR UPDATE SKIP LOCKED)";
    Ok(query(sql).bind(i64::from(epochs)).bind(most).execute(connection).await?.rows_affected())
}
