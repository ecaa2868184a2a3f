//! A batch becomes rows.
//!
//! Enters: a batch, in a transaction that is begun. Leaves: its rows and what became of it. The order:
//! what is new by the ledgers, the ids of meters and layouts, what is there already, then each table.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sqlx::{QueryBuilder, SqliteConnection, query, query_as, query_scalar};

use super::{
    CHUNK, Committed, Incoming, Read, Reread, clock_code, json,
    ledgers::{Ledgers, recount},
    number,
};
use crate::{
    delivery::Arrival,
    layout::{self, Layout},
    moment::Moment,
    payload::{self, Message},
    reading::{Clock, Medium, Qualifiers, Reading, Report},
};

/// Refused messages that are read again in one transaction: at 256 KiB each they are held in memory.
const REREAD: u32 = 100;

/// A new row of `message`.
struct Row<'b> {
    message: &'b Message,
    meter: i64,
    at: Moment,
    n: i64,
    layout: i64,
    values: String,
}

/// The batch in a transaction that is begun and not ended here. Nothing is remembered from batch to
/// batch, so that there is nothing to undo.
pub(super) async fn write(connection: &mut SqliteConnection, batch: &[Incoming]) -> Result<Committed, sqlx::Error> {
    let mut committed = Committed::default();
    let mut ledgers = Ledgers::load(connection, batch).await?;
    let lost = ledgers.lost();
    let (mut messages, mut refused) = (Vec::new(), Vec::new());
    for incoming in batch {
        let mut tally = None;
        if let Some(envelope) = incoming.envelope() {
            let ledger = ledgers.of(envelope);
            if ledger.arrive(envelope.seq, envelope.first, &envelope.missing) == Arrival::Again {
                committed.again += 1;
                continue;
            }
            tally = Some(&mut ledger.tally);
        }
        match incoming {
            Incoming::Message(message) => messages.push(message),
            Incoming::Refused { .. } => {
                refused.push(incoming);
                committed.refused += 1;
                if let Some(tally) = tally {
                    tally.refused += 1;
                }
            }
        }
    }
    for (message, stored) in messages.iter().zip(write_rows(connection, &messages).await?) {
        let tally = &mut ledgers.of(&message.envelope).tally;
        let (count, counted) = match stored {
            true => (&mut committed.stored, &mut tally.stored),
            false => (&mut committed.repeated, &mut tally.repeated),
        };
        *count += 1;
        *counted += 1;
    }
    write_refused(connection, &refused).await?;
    committed.lost = ledgers.lost().saturating_sub(lost);
    ledgers.save(connection).await?;
    committed.acks = ledgers.acks(connection).await?;
    Ok(committed)
}

/// Writes messages that are new by their numbers. Returns which of them are rows now; of the others the meter, the
/// instant and the readings were there already.
async fn write_rows(connection: &mut SqliteConnection, messages: &[&Message]) -> Result<Vec<bool>, sqlx::Error> {
    let meters = meters(connection, messages).await?;
    let mut rows = Vec::with_capacity(messages.len());
    let split: Vec<_> = messages.iter().map(|message| Layout::split(&message.report)).collect();
    let layouts = layouts(connection, &split).await?;
    for ((message, (_, values)), layout) in messages.iter().zip(&split).zip(layouts) {
        rows.push(Row {
            message,
            meter: *meters.get(&message.report.meter).ok_or(sqlx::Error::RowNotFound)?,
            at: message.report.measured_at.unwrap_or(message.received_at),
            n: 0,
            layout,
            values: json(values),
        });
    }
    let mut there = rows_at(connection, &rows).await?;
    let mut stored = Vec::with_capacity(rows.len());
    rows.retain_mut(|row| {
        let there = there.entry((row.meter, row.at.millis())).or_default();
        let new = !there.iter().any(|(_, layout, values)| (*layout, values) == (row.layout, &row.values));
        if new {
            row.n = there.iter().map(|(n, ..)| n + 1).max().unwrap_or(0);
            there.push((row.n, row.layout, row.values.clone()));
        }
        stored.push(new);
        new
    });
    write_messages(connection, &rows).await?;
    write_quarters(connection, &rows).await?;
    Ok(stored)
}

/// Reads some of the messages that an older build refused for their schema again: those that
/// `schema`, the newest that can be read now, includes. Which they are is asked anew each time, so that
/// whatever comes between nothing is read twice or left out.
pub(super) async fn reread(
    connection: &mut SqliteConnection,
    schema: u32,
    read: &Read<'_>,
) -> Result<Reread, sqlx::Error> {
    let sql = "SELECT id, topic, payload FROM refused WHERE schema > readable AND schema <= ? ORDER BY id LIMIT ?";
    let rows: Vec<(i64, String, Vec<u8>)> = query_as(sql).bind(schema).bind(REREAD).fetch_all(&mut *connection).await?;
    let (mut messages, mut done, mut still) = (Vec::new(), Vec::new(), Vec::new());
    for (id, topic, payload) in &rows {
        match read(topic, payload) {
            Ok(message) => {
                messages.push(message);
                done.push(*id);
            }
            Err(reason) => still.push((*id, reason)),
        }
    }
    let messages: Vec<&Message> = messages.iter().collect();
    let stored = write_rows(connection, &messages).await?;
    recount(connection, messages.iter().map(|message| &message.envelope).zip(stored)).await?;
    let delete = query("DELETE FROM refused WHERE id IN (SELECT value FROM json_each(?))");
    delete.bind(json(&done)).execute(&mut *connection).await?;
    for (id, reason) in &still {
        let update = query("UPDATE refused SET reason = ?, readable = ? WHERE id = ?");
        update.bind(reason).bind(schema).bind(id).execute(&mut *connection).await?;
    }
    let count = |list: usize| u64::try_from(list).unwrap_or(u64::MAX);
    Ok(Reread { read: count(done.len()), refused: count(still.len()) })
}

/// The ids of the meters by name; new ones get a row, and all are noted as heard.
async fn meters(connection: &mut SqliteConnection, messages: &[&Message]) -> Result<HashMap<String, i64>, sqlx::Error> {
    let mut heard: BTreeMap<&str, (&Message, i64, i64)> = BTreeMap::new();
    for &message in messages {
        let now = message.received_at.millis();
        let (latest, first, last) = heard.entry(&message.report.meter).or_insert((message, now, now));
        *first = now.min(*first);
        if now >= *last {
            (*latest, *last) = (message, now);
        }
    }
    let mut ids = HashMap::with_capacity(heard.len());
    for chunk in heard.into_iter().collect::<Vec<_>>().chunks(CHUNK) {
        let columns = "name, medium, medium_code, protocol, gateway, first_seen, last_seen";
        let mut sql = QueryBuilder::new(format!("INSERT INTO meter ({columns}) "));
        sql.push_values(chunk, |mut row, (name, (latest, first, last))| {
            let Report { medium, protocol, .. } = &latest.report;
            let code = if let Medium::Other(code) = *medium { code } else { 0 };
            row.push_bind(*name).push_bind(medium.name()).push_bind(code).push_bind(&**protocol);
            row.push_bind(&*latest.envelope.gateway).push_bind(*first).push_bind(*last);
        });
        sql.push(
            " ON CONFLICT (name) DO UPDATE SET
            medium = iif(excluded.last_seen < last_seen, medium, excluded.medium),
            medium_code = iif(excluded.last_seen < last_seen, medium_code, excluded.medium_code),
            protocol = iif(excluded.last_seen < last_seen, protocol, excluded.protocol),
            gateway = iif(excluded.last_seen < last_seen, gateway, excluded.gateway),
            first_seen = min(first_seen, excluded.first_seen),
            last_seen = max(last_seen, excluded.last_seen)
            RETURNING name, id",
        );
        ids.extend(sql.build_query_as::<(String, i64)>().persistent(false).fetch_all(&mut *connection).await?);
    }
    Ok(ids)
}

/// The id of each of these layouts; new ones get a row.
async fn layouts(connection: &mut SqliteConnection, split: &[(Layout, Vec<i64>)]) -> Result<Vec<i64>, sqlx::Error> {
    let (mut places, mut texts) = (HashMap::new(), Vec::new());
    let mut of_split = Vec::with_capacity(split.len());
    for (layout, _) in split {
        of_split.push(*places.entry(layout).or_insert_with(|| {
            texts.push(layout.to_text());
            texts.len() - 1
        }));
    }
    let texts = json(&texts);
    let insert = query("INSERT OR IGNORE INTO layout (spec) SELECT value FROM json_each(?)");
    insert.bind(&texts).execute(&mut *connection).await?;
    let select = query_scalar(
        "SELECT layout.id FROM json_each(?) AS text CROSS JOIN layout ON spec = text.value ORDER BY text.key",
    );
    let ids: Vec<i64> = select.bind(&texts).fetch_all(connection).await?;
    of_split.into_iter().map(|place| ids.get(place).copied().ok_or(sqlx::Error::RowNotFound)).collect()
}

/// What is there already (n, layout, values) at the meters and instants of these rows.
async fn rows_at(
    connection: &mut SqliteConnection,
    rows: &[Row<'_>],
) -> Result<HashMap<(i64, i64), Vec<(i64, i64, String)>>, sqlx::Error> {
    let keys: BTreeSet<(i64, i64)> = rows.iter().map(|row| (row.meter, row.at.millis())).collect();
    let sql = r#"SELECT meter, at, n, layout, "values" FROM json_each(?) AS key
        CROSS JOIN message ON meter = key.value ->> 0 AND at = key.value ->> 1"#;
    let mut there: HashMap<_, Vec<_>> = HashMap::new();
    for (meter, at, n, layout, values) in query_as(sql).bind(json(&keys)).fetch_all(connection).await? {
        there.entry((meter, at)).or_default().push((n, layout, values));
    }
    Ok(there)
}

/// Writes new messages with what they say besides their readings.
async fn write_messages(connection: &mut SqliteConnection, rows: &[Row<'_>]) -> Result<(), sqlx::Error> {
    let said: Vec<Option<String>> = rows.iter().map(|row| layout::remark(&row.message.report)).collect();
    let mut spans: BTreeMap<(i64, &str), (i64, i64)> = BTreeMap::new();
    for (row, content) in rows.iter().zip(&said) {
        if let Some(content) = content {
            let at = row.at.millis();
            let (first, last) = spans.entry((row.meter, content)).or_insert((at, at));
            (*first, *last) = (at.min(*first), at.max(*last));
        }
    }
    let mut remarks: HashMap<(i64, String), i64> = HashMap::with_capacity(spans.len());
    for chunk in spans.into_iter().collect::<Vec<_>>().chunks(CHUNK) {
        let mut sql = QueryBuilder::new("INSERT INTO remark (meter, content, first_at, last_at) ");
        sql.push_values(chunk, |mut row, ((meter, content), (first, last))| {
            row.push_bind(*meter).push_bind(*content).push_bind(*first).push_bind(*last);
        });
        sql.push(
            " ON CONFLICT (meter, content) DO UPDATE SET
            first_at = min(first_at, excluded.first_at), last_at = max(last_at, excluded.last_at)
            RETURNING meter, content, id",
        );
        for (meter, content, id) in sql.build_query_as().persistent(false).fetch_all(&mut *connection).await? {
            remarks.insert((meter, content), id);
        }
    }
    let rows: Vec<_> = rows.iter().zip(said).collect();
    for chunk in rows.chunks(CHUNK) {
        let columns = r#"meter, at, n, utc_offset, clock, received_at, layout, "values", remark"#;
        let mut sql = QueryBuilder::new(format!("INSERT INTO message ({columns}) "));
        sql.push_values(chunk, |mut values, (row, said)| {
            values.push_bind(row.meter).push_bind(row.at.millis()).push_bind(row.n).push_bind(row.at.offset_minutes());
            values.push_bind(clock_code(row.message.report.clock)).push_bind(row.message.received_at.millis());
            values.push_bind(row.layout).push_bind(&*row.values);
            values.push_bind(said.as_ref().and_then(|said| remarks.get(&(row.meter, said.clone())).copied()));
        });
        sql.build().persistent(false).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Keeps the first value of each cumulative register in each quarter-hour. Messages may come late and
/// in any order; a reading by a clock that was not synchronised gives way to any other.
async fn write_quarters(connection: &mut SqliteConnection, rows: &[Row<'_>]) -> Result<(), sqlx::Error> {
    let mut quarters: BTreeMap<_, ((bool, i64), &Reading)> = BTreeMap::new();
    for row in rows {
        for reading in &row.message.report.readings {
            let now = reading.qualifiers == Qualifiers::default() && reading.suspect.is_none();
            if now && reading.register.is_cumulative() {
                let at = reading.at.unwrap_or(row.at);
                let rank = (row.message.report.clock == Clock::Unsynchronised, at.millis());
                let first = quarters.entry((row.meter, reading.register.as_str(), at.quarter()));
                let first = first.or_insert((rank, reading));
                if rank < first.0 {
                    *first = (rank, reading);
                }
            }
        }
    }
    for chunk in quarters.into_iter().collect::<Vec<_>>().chunks(CHUNK) {
        let columns = "meter, register, quarter, at, unsynchronised, value, scale, unit";
        let mut sql = QueryBuilder::new(format!("INSERT INTO quarter ({columns}) "));
        sql.push_values(chunk, |mut row, ((meter, register, quarter), ((unsynchronised, at), reading))| {
            row.push_bind(*meter).push_bind(*register).push_bind(*quarter).push_bind(*at).push_bind(*unsynchronised);
            row.push_bind(reading.value.mantissa()).push_bind(reading.value.scale()).push_bind(reading.unit.as_str());
        });
        sql.push(
            " ON CONFLICT (meter, register, quarter) DO UPDATE SET
            at = excluded.at, unsynchronised = excluded.unsynchronised, value = excluded.value,
            scale = excluded.scale, unit = excluded.unit
            WHERE (excluded.unsynchronised, excluded.at) < (quarter.unsynchronised, quarter.at)",
        );
        sql.build().persistent(false).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Keeps refused messages. See [`prune_refused`].
async fn write_refused(connection: &mut SqliteConnection, refused: &[&Incoming]) -> Result<(), sqlx::Error> {
    for incoming in refused {
        let Incoming::Refused { topic, payload, reason, schema, envelope, received_at } = incoming else { continue };
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
        .execute(&mut *connection)
        .await?;
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
