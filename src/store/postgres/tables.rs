//! The tables in PostgreSQL: lists go in as arrays, a column each, whatever their length.
//!
//! Enters and leaves: see [`Tables`]. Rows are taken in the order in which they come in. What a [`Session`] remembers is not asked.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::Duration,
};

use sqlx::{PgConnection, query, query_as, query_scalar, raw_sql};

use super::{
    instant::Millis,
    session::{KnownMeter, Session, have_asked_anew, noted_until},
    text::{keep, restore},
};
use crate::{
    delivery::{Epoch, EpochAck, Ledger},
    payload,
    store::{
        Incoming, Size, json,
        ledgers::{Columns, EPOCHS, LEDGER, by_gateway, read_ledger, tally},
        number,
        tables::{
            LedgerRow, MessageRow, MeterRow, QuarterRow, RefusedRow, SeriesRow, Tables, There, ThereAt, remarks_of,
        },
    },
};

/// Who does the upkeep holds this lock, as long as its transaction lasts.
const UPKEEP_LOCK: i64 = 0x6d65_7465_726b_6173;

/// One column of some rows.
fn column<'r, R, T>(rows: &'r [R], of: impl FnMut(&'r R) -> T) -> Vec<T> {
    rows.iter().map(of).collect()
}

impl Session {
    /// What is there already at these meters and instants (ms).
    async fn there(&mut self, keys: &BTreeSet<(i64, i64)>) -> Result<ThereAt, sqlx::Error> {
        let mut there = ThereAt::new();
        if keys.is_empty() {
            return Ok(there);
        }
        let keys: Vec<(i64, i64)> = keys.iter().copied().collect();
        let sql = r#"SELECT key.meter, key.millis, n::bigint, layout, "values"
            FROM unnest($1::bigint[], $2::timestamptz[], $3::bigint[]) AS key (meter, at, millis) JOIN message USING (meter, at)"#;
        let rows: Vec<(i64, i64, i64, i64, Vec<i64>)> = query_as(sql)
            .bind(column(&keys, |(meter, _)| *meter))
            .bind(column(&keys, |(_, at)| Millis(*at)))
            .bind(column(&keys, |(_, at)| *at))
            .fetch_all(&mut self.connection)
            .await?;
        for (meter, at, n, layout, values) in rows {
            there.entry((meter, at)).or_default().push(There { n, layout, values });
        }
        Ok(there)
    }

    /// Writes what messages say besides their readings, and notes it in their rows.
    async fn write_remarks(&mut self, messages: &mut [&mut MessageRow]) -> Result<(), sqlx::Error> {
        let remarks = remarks_of(messages.iter().map(|message| &**message));
        let mut ids: HashMap<(i64, &str), i64> = HashMap::with_capacity(remarks.len());
        let mut news = Vec::new();
        for remark in &remarks {
            match self.memory.remark(remark) {
                Some(id) => drop(ids.insert((remark.meter, remark.content), id)),
                None => news.push(remark),
            }
        }
        if !news.is_empty() {
            let sql = "WITH said AS (
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
            let written: Vec<i64> = query_scalar(sql)
                .bind(column(&news, |remark| remark.meter))
                .bind(column(&news, |remark| remark.content))
                .bind(column(&news, |remark| Millis(remark.first_at)))
                .bind(column(&news, |remark| Millis(noted_until(remark.last_at))))
                .fetch_all(&mut self.connection)
                .await?;
            for (remark, id) in news.into_iter().zip(written) {
                self.memory.keep_remark(remark, id);
                ids.insert((remark.meter, remark.content), id);
            }
        }
        let id = |message: &&mut MessageRow| {
            let Some(said) = &message.said else { return Ok(None) };
            ids.get(&(message.meter, said)).copied().map(Some).ok_or(sqlx::Error::RowNotFound)
        };
        let ids: Vec<Option<i64>> = messages.iter().map(id).collect::<Result<_, _>>()?;
        for (message, id) in messages.iter_mut().zip(ids) {
            message.remark = id;
        }
        Ok(())
    }

    /// Writes messages. Returns the keys and places of those whose place was not taken by another store meanwhile.
    async fn insert_messages(
        &mut self,
        messages: &[&mut MessageRow],
    ) -> Result<HashSet<((i64, i64), i64)>, sqlx::Error> {
        // Sorted, because two stores may write the same; and a meter's messages then stand together.
        let mut messages: Vec<&MessageRow> = messages.iter().map(|message| &**message).collect();
        messages.sort_unstable_by_key(|message| (message.key(), message.n));
        // The values of all messages are one array, of which each takes its part: a list of lists of different lengths has no form.
        let insert = r#"INSERT INTO message (meter, at, n, utc_offset, clock, received_at, layout, "values", remark)
            SELECT meter, at, n, utc_offset, clock, received_at, layout, ($8::bigint[])[first:last], remark
            FROM unnest(
                $1::bigint[], $2::timestamptz[], $3::bigint[], $4::integer[], $5::bigint[], $6::timestamptz[], $7::bigint[], $9::bigint[],
                $10::integer[], $11::integer[]
            ) AS said (meter, at, n, utc_offset, clock, received_at, layout, remark, first, last)
            ON CONFLICT DO NOTHING RETURNING meter, at, n::bigint"#;
        let mut values = Vec::new();
        let (mut firsts, mut lasts) = (Vec::new(), Vec::new());
        let place = |length: usize| i32::try_from(length).unwrap_or(i32::MAX);
        for message in &messages {
            firsts.push(place(values.len()).saturating_add(1));
            values.extend_from_slice(&message.values);
            lasts.push(place(values.len()));
        }
        let written: Vec<(i64, Millis, i64)> = query_as(insert)
            .bind(column(&messages, |message| message.meter))
            .bind(column(&messages, |message| Millis(message.at.millis())))
            .bind(column(&messages, |message| message.n))
            .bind(column(&messages, |message| message.at.offset_minutes()))
            .bind(column(&messages, |message| message.clock))
            .bind(column(&messages, |message| Millis(message.received_at)))
            .bind(column(&messages, |message| message.layout))
            .bind(values)
            .bind(column(&messages, |message| message.remark))
            .bind(firsts)
            .bind(lasts)
            .fetch_all(&mut self.connection)
            .await?;
        Ok(written.into_iter().map(|(meter, at, n)| ((meter, at.0), n)).collect())
    }

    /// Remembers those series that are there. Returns how many.
    async fn find_series(&mut self, series: &[&SeriesRow<'_>]) -> Result<usize, sqlx::Error> {
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
        for (place, id) in &found {
            let place = usize::try_from(*place).unwrap_or_default().saturating_sub(1);
            if let Some(row) = series.get(place) {
                self.memory.keep_series(row, *id);
            }
        }
        Ok(found.len())
    }
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
        // They are there, and held.
        let sql = format!(
            "UPDATE ledger SET
            through = run.through, have = run.have, lost = run.lost, stored = run.stored, repeated = run.repeated, refused = run.refused,
            touched = (SELECT max(touched) + 1 FROM ledger AS other WHERE other.gateway = run.gateway)
            FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::bigint[], $7::bigint[], $8::bigint[])
                AS run ({LEDGER})
            WHERE ledger.gateway = run.gateway AND ledger.epoch = run.epoch"
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
            "SELECT newest.* FROM unnest($1::text[]) WITH ORDINALITY AS said (gateway, place) CROSS JOIN LATERAL (
                SELECT {LEDGER} FROM ledger WHERE ledger.gateway = said.gateway ORDER BY touched DESC, epoch LIMIT $2
            ) AS newest ORDER BY place"
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
        let mut ids = HashMap::with_capacity(heard.len());
        let mut news = Vec::new();
        for meter in heard {
            match self.memory.meter(meter) {
                Some(id) => drop(ids.insert(meter.name.to_owned(), id)),
                None => news.push(meter),
            }
        }
        if news.is_empty() {
            return Ok(ids);
        }
        let heard: Vec<MeterRow<'_>> = news.into_iter().map(|meter| self.memory.heard(meter)).collect();
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
            RETURNING name, id, first_seen, last_seen";
        let rows: Vec<(String, i64, Millis, Millis)> = query_as(sql)
            .bind(column(&heard, |meter| keep(meter.name)))
            .bind(column(&heard, |meter| meter.medium))
            .bind(column(&heard, |meter| i16::from(meter.medium_code)))
            .bind(column(&heard, |meter| keep(meter.protocol)))
            .bind(column(&heard, |meter| keep(meter.gateway)))
            .bind(column(&heard, |meter| meter.predecessor.map(keep)))
            .bind(column(&heard, |meter| Millis(meter.first_seen)))
            .bind(column(&heard, |meter| Millis(meter.last_seen)))
            .fetch_all(&mut self.connection)
            .await?;
        let written: HashMap<&str, (i64, Millis, Millis)> =
            rows.iter().map(|(name, id, first_seen, last_seen)| (&**name, (*id, *first_seen, *last_seen))).collect();
        let mut known = Vec::with_capacity(heard.len());
        for meter in &heard {
            let (id, first, last) = *written.get(&*keep(meter.name)).ok_or(sqlx::Error::RowNotFound)?;
            known.push((meter.name.to_owned(), KnownMeter::written(meter, id, (first.0, last.0))));
            ids.insert(meter.name.to_owned(), id);
        }
        for (name, known) in known {
            self.memory.keep_meter(name, known);
        }
        Ok(ids)
    }

    async fn layouts(&mut self, texts: &[String]) -> Result<Vec<i64>, sqlx::Error> {
        let unknown: BTreeSet<&String> = texts.iter().filter(|text| self.memory.layout(text).is_none()).collect();
        if !unknown.is_empty() {
            let unknown: Vec<&String> = unknown.into_iter().collect();
            // Sorted by what they come in the order of in every store.
            let insert = "INSERT INTO layout (digest, spec)
                SELECT sha256(convert_to(spec, 'UTF8')), spec FROM unnest($1::text[]) AS text (spec) ORDER BY 1
                ON CONFLICT DO NOTHING";
            query(insert).bind(&unknown).execute(&mut self.connection).await?;
            let select = "SELECT spec, id FROM layout
                WHERE digest IN (SELECT sha256(convert_to(text, 'UTF8')) FROM unnest($1::text[]) AS text)";
            let rows: Vec<(String, i64)> = query_as(select).bind(unknown).fetch_all(&mut self.connection).await?;
            for (spec, id) in rows {
                self.memory.keep_layout(spec, id);
            }
        }
        texts.iter().map(|text| self.memory.layout(text).ok_or(sqlx::Error::RowNotFound)).collect()
    }

    async fn insert_new(&mut self, messages: &mut [MessageRow]) -> Result<Vec<bool>, sqlx::Error> {
        // Most messages are new, and most remarks known: then nothing is asked. A remark that is not known is written only for a message
        // that is new.
        let unknown = |message: &&MessageRow| {
            message.said.as_ref().is_some_and(|said| !self.memory.has_remark(message.meter, said))
        };
        let keys: BTreeSet<(i64, i64)> = messages.iter().filter(unknown).map(MessageRow::key).collect();
        let mut there = self.there(&keys).await?;
        let mut stored: Vec<Option<bool>> = vec![None; messages.len()];
        // Instants whose next places are ours: whoever else looks for one waits at the place that we took.
        let mut ours: HashSet<(i64, i64)> = HashSet::new();
        loop {
            // Of several at another instant one at a time: what another store wrote there meanwhile may be the next one.
            let mut turn: Vec<(&mut MessageRow, &mut Option<bool>)> = Vec::new();
            let (mut keys, mut later) = (HashSet::new(), HashSet::new());
            for (message, stored) in messages.iter_mut().zip(&mut stored).filter(|(_, stored)| stored.is_none()) {
                let key = message.key();
                if keys.contains(&key) {
                    later.insert(key);
                } else if !message.find_place(there.get(&key).map(Vec::as_slice).unwrap_or_default()) {
                    *stored = Some(false);
                } else {
                    if ours.contains(&key) {
                        there.entry(key).or_default().push(message.there());
                    } else {
                        keys.insert(key);
                    }
                    turn.push((message, stored));
                }
            }
            if turn.is_empty() {
                return Ok(stored.into_iter().map(|stored| stored.unwrap_or_default()).collect());
            }
            let mut rows: Vec<&mut MessageRow> = turn.iter_mut().map(|(message, _)| &mut **message).collect();
            self.write_remarks(&mut rows).await?;
            let written = self.insert_messages(&rows).await?;
            let mut met = BTreeSet::new();
            for (message, stored) in turn {
                let key = message.key();
                if !written.contains(&(key, message.n)) {
                    met.insert(key);
                    continue;
                }
                *stored = Some(true);
                if later.contains(&key) {
                    there.entry(key).or_default().push(message.there());
                    ours.insert(key);
                }
            }
            there.extend(self.there(&met).await?);
        }
    }

    async fn series(&mut self, series: &[SeriesRow<'_>]) -> Result<Vec<i64>, sqlx::Error> {
        let unknown: Vec<&SeriesRow<'_>> = series.iter().filter(|row| self.memory.series(row).is_none()).collect();
        if !unknown.is_empty() && self.find_series(&unknown).await? < unknown.len() {
            let unknown: Vec<_> = unknown.into_iter().filter(|row| self.memory.series(row).is_none()).collect();
            let sql = "INSERT INTO series (meter, register, unit, scale)
                SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::smallint[]) ON CONFLICT DO NOTHING";
            query(sql)
                .bind(column(&unknown, |row| row.meter))
                .bind(column(&unknown, |row| row.register))
                .bind(column(&unknown, |row| row.unit))
                .bind(column(&unknown, |row| i16::from(row.scale)))
                .execute(&mut self.connection)
                .await?;
            self.find_series(&unknown).await?;
        }
        series.iter().map(|row| self.memory.series(row).ok_or(sqlx::Error::RowNotFound)).collect()
    }

    async fn keep_quarters(&mut self, quarters: &[QuarterRow]) -> Result<(), sqlx::Error> {
        // Most messages say nothing of their quarter-hour that is not known better: those touch no row.
        let quarters: Vec<&QuarterRow> = quarters.iter().filter(|row| !self.memory.quarter(row)).collect();
        if quarters.is_empty() {
            return Ok(());
        }
        // Another store that hears the same meters waits: whether a value is lower than the one before it takes both. Their series are held,
        // not the meters: some of those this transaction holds already, others another one, and each would wait for the other.
        let series: BTreeSet<(i64, i64)> = quarters.iter().map(|row| (row.meter, row.series)).collect();
        let (meters, ids): (Vec<i64>, Vec<i64>) = series.into_iter().unzip();
        let hold = "SELECT FROM unnest($1::bigint[], $2::bigint[]) AS said (meter, id) JOIN series USING (meter, id)
            ORDER BY meter, id FOR NO KEY UPDATE OF series";
        query(hold).bind(meters).bind(ids).execute(&mut self.connection).await?;
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
        for row in quarters {
            self.memory.keep_quarter(row);
        }
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
    let remarks: BTreeSet<(i64, i64)> = gone.iter().filter_map(|(meter, remark)| Some((*meter, (*remark)?))).collect();
    let remarks: Vec<_> = remarks.into_iter().collect();
    // A remark must not go while a message comes that has it.
    have_asked_anew(connection).await?;
    let sql = "DELETE FROM remark USING unnest($1::bigint[], $2::bigint[]) AS gone (meter, id)
        WHERE remark.meter = gone.meter AND remark.id = gone.id
            AND (last_at < (SELECT min(at) FROM message WHERE message.meter = remark.meter) OR NOT EXISTS (
                SELECT FROM message
                WHERE message.meter = remark.meter AND message.at >= first_at AND message.at <= last_at AND message.remark = remark.id
            ))";
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
