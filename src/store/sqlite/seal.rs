//! Finished hours become blocks.
//!
//! Enters: the messages of a span in which nothing more is expected. Leaves: a row of `sealed` for each of their layouts in their place, a
//! tenth to a hundredth as large. What comes late is put into the block at the next look.
//!
//! A span is an hour, where there is enough in it; else what of the day (UTC) is not sealed by hours. So a meter that speaks four times
//! an hour has one block a day.
//!
//! Nothing leaves `message` before its block was unsealed and compared.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
    time::Instant,
};

use sqlx::{SqliteConnection, query, query_as, query_scalar};

use super::newest;
use crate::{
    sealed::{Block, Row},
    store::{json, rows::Message, tables::There, unreadable},
};

const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;
/// So long after a span nothing more is expected in it.
const GRACE: i64 = 15 * 60_000;
/// An hour with so many messages is sealed by itself.
const ENOUGH: i64 = 256;
/// Most messages in one span: a flood is sealed in pieces, each of which takes far less than a second.
const MOST: i64 = 10_000;

/// The columns of `message` that [`Message::read`] reads.
pub(super) const COLUMNS: &str = r#"at, n, utc_offset, clock, received_at, layout, remark, "values""#;

/// Their values.
pub(super) type Columns = (i64, i64, i64, i64, i64, i64, Option<i64>, String);

impl Message {
    /// From a row of `message`.
    pub(super) fn read(columns: Columns) -> Result<Self, sqlx::Error> {
        let (at, n, utc_offset, clock, received_at, layout, remark, values) = columns;
        let values = serde_json::from_str(&values).map_err(unreadable)?;
        Ok(Self { at, n, utc_offset, clock, received_at, layout, remark, values })
    }

    /// From a block of this layout.
    pub(super) fn of(row: &Row<'_>, layout: i64) -> Self {
        let Row { at, n, utc_offset, clock, received_at, remark, values } = *row;
        Self { at, n, utc_offset, clock, received_at, layout, remark, values: values.to_vec() }
    }

    fn row(&self) -> Row<'_> {
        let Self { at, n, utc_offset, clock, received_at, remark, ref values, .. } = *self;
        Row { at, n, utc_offset, clock, received_at, remark, values }
    }
}

/// What is remembered from step to step.
#[derive(Debug, Default)]
pub(super) struct Sealer {
    /// The meter that was looked at last.
    meter: Option<i64>,
    /// Spans that cannot be sealed, by meter and first instant: a block that is there already is damaged, or full.
    unsealable: BTreeSet<(i64, i64)>,
}

/// Seals spans that are finished, in a transaction that is begun, and begins none after `deadline`. Returns whether there may be more.
pub(super) async fn seal(
    connection: &mut SqliteConnection,
    sealer: &mut Sealer,
    deadline: Instant,
) -> Result<bool, sqlx::Error> {
    let meters = "SELECT id FROM meter WHERE id > ? ORDER BY id";
    let meters = query_scalar(meters).bind(sealer.meter.unwrap_or(i64::MIN));
    let meters: Vec<i64> = meters.fetch_all(&mut *connection).await?;
    for meter in meters {
        while let Some(span) = finished(connection, meter, &sealer.unsealable).await? {
            let key = (meter, span.start);
            if let Err(reason) = seal_span(connection, meter, span).await? {
                tracing::warn!("store: messages of meter {meter} are not sealed: {reason}");
                sealer.unsealable.insert(key);
            }
            if Instant::now() >= deadline {
                return Ok(true);
            }
        }
        sealer.meter = Some(meter);
        if Instant::now() >= deadline {
            return Ok(true);
        }
    }
    sealer.meter = None;
    Ok(false)
}

/// The first span of a meter that is finished and has messages which are not sealed.
async fn finished(
    connection: &mut SqliteConnection,
    meter: i64,
    unsealable: &BTreeSet<(i64, i64)>,
) -> Result<Option<Range<i64>>, sqlx::Error> {
    let known_until = newest(connection, meter).await?.saturating_sub(GRACE);
    let mut from = i64::MIN;
    loop {
        let first = "SELECT at FROM message WHERE meter = ? AND at >= ? AND at < ? ORDER BY at LIMIT 1";
        let first = query_scalar(first).bind(meter).bind(from).bind(known_until);
        let Some(at): Option<i64> = first.fetch_optional(&mut *connection).await? else { return Ok(None) };
        let own = "SELECT from_at, until_at FROM sealed WHERE meter = ? AND from_at <= ? ORDER BY from_at DESC LIMIT 1";
        let own: Option<(i64, i64)> = query_as(own).bind(meter).bind(at).fetch_optional(&mut *connection).await?;
        let next = query_scalar("SELECT from_at FROM sealed WHERE meter = ? AND from_at > ? ORDER BY from_at LIMIT 1");
        let next: Option<i64> = next.bind(meter).bind(at).fetch_optional(&mut *connection).await?;
        // What the spans around leave of an hour or a day.
        let free = |length: i64| {
            let from = at.saturating_sub(at.rem_euclid(length));
            own.map_or(from, |(_, until)| until.max(from))..next.unwrap_or(i64::MAX).min(from.saturating_add(length))
        };
        let (hour, day) = (free(HOUR), free(DAY));
        let day_end = day.end;
        let span = match own {
            // Late.
            Some((from, until)) if at < until => Some(from..until),
            _ => match count(connection, meter, &hour).await? {
                ENOUGH..=MOST if hour.end <= known_until => Some(hour.clone()),
                ..=MOST if day.end <= known_until => Some(day),
                ..=MOST => None,
                _ => piece(connection, meter, &hour).await?.filter(|piece| at < piece.end && piece.end <= known_until),
            },
        };
        match span {
            Some(span) if !unsealable.contains(&(meter, span.start)) => return Ok(Some(span)),
            Some(span) => from = span.end,
            // Fewer than an hour needs: they wait for the end of their day.
            None if count(connection, meter, &(hour.end..known_until)).await? < ENOUGH && day_end > known_until => {
                return Ok(None);
            }
            None => from = hour.end,
        }
    }
}

/// How many messages are there in a span, up to one more than [`MOST`].
async fn count(connection: &mut SqliteConnection, meter: i64, span: &Range<i64>) -> Result<i64, sqlx::Error> {
    let sql = "SELECT count(*) FROM (SELECT 1 FROM message WHERE meter = ? AND at >= ? AND at < ? LIMIT ?)";
    query_scalar(sql).bind(meter).bind(span.start).bind(span.end).bind(MOST + 1).fetch_one(connection).await
}

/// The beginning of a span that has too many messages; it does not part what was measured at one instant.
async fn piece(
    connection: &mut SqliteConnection,
    meter: i64,
    span: &Range<i64>,
) -> Result<Option<Range<i64>>, sqlx::Error> {
    let sql = "SELECT at FROM message WHERE meter = ? AND at >= ? AND at < ? ORDER BY at LIMIT 1 OFFSET ?";
    let end = query_scalar(sql).bind(meter).bind(span.start).bind(span.end).bind(MOST);
    Ok(end.fetch_optional(connection).await?.map(|end: i64| span.start..end))
}

/// Puts the messages of a span into blocks, with those that are sealed there already. The inner error says why that cannot be
/// done; then nothing is changed.
async fn seal_span(
    connection: &mut SqliteConnection,
    meter: i64,
    span: Range<i64>,
) -> Result<Result<(), String>, sqlx::Error> {
    let sql = format!("SELECT {COLUMNS} FROM message WHERE meter = ? AND at >= ? AND at < ? ORDER BY at, n LIMIT ?");
    let rows = query_as(sqlx::AssertSqlSafe(sql)).bind(meter).bind(span.start).bind(span.end).bind(MOST);
    let rows: Vec<Columns> = rows.fetch_all(&mut *connection).await?;
    let mut messages = rows.into_iter().map(Message::read).collect::<Result<Vec<_>, _>>()?;
    let keys: Vec<(i64, i64)> = messages.iter().map(|message| (message.at, message.n)).collect();
    let sealed = query_as("SELECT layout, block FROM sealed WHERE meter = ? AND from_at = ?");
    let sealed: Vec<(i64, Vec<u8>)> = sealed.bind(meter).bind(span.start).fetch_all(&mut *connection).await?;
    for (layout, block) in sealed {
        match Block::unseal(&block) {
            Ok(block) => messages.extend(block.rows().map(|row| Message::of(&row, layout))),
            Err(damaged) => return Ok(Err(damaged.to_string())),
        }
    }
    messages.sort_by_key(|message| (message.at, message.n));
    let mut blocks: BTreeMap<i64, Block> = BTreeMap::new();
    for message in &messages {
        if let Err(misfit) = blocks.entry(message.layout).or_default().push(message.row()) {
            return Ok(Err(misfit.to_string()));
        }
    }
    let sealed: Vec<_> = blocks.into_iter().map(|(layout, block)| (layout, block.seal(), block)).collect();
    if sealed.iter().any(|(_, bytes, block)| Block::unseal(bytes).ok().as_ref() != Some(block)) {
        return Ok(Err("a block does not read back as it was".into()));
    }
    let delete = query("DELETE FROM sealed WHERE meter = ? AND from_at = ?").bind(meter).bind(span.start);
    delete.execute(&mut *connection).await?;
    for (layout, bytes, block) in sealed {
        let insert = "INSERT INTO sealed (meter, from_at, until_at, layout, messages, first_at, last_at, block)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
        let (first, last) = (block.rows().next(), block.rows().next_back());
        let count = i64::try_from(block.rows().len()).unwrap_or(i64::MAX);
        let insert = query(insert).bind(meter).bind(span.start).bind(span.end).bind(layout).bind(count);
        let insert = insert.bind(first.map(|row| row.at)).bind(last.map(|row| row.at)).bind(bytes);
        insert.execute(&mut *connection).await?;
    }
    let delete =
        "DELETE FROM message WHERE meter = ? AND (at, n) IN (SELECT value ->> 0, value ->> 1 FROM json_each(?))";
    query(delete).bind(meter).bind(json(&keys)).execute(connection).await?;
    Ok(Ok(()))
}

/// Adds what is sealed at these meters and instants. What a damaged block holds is not known: a message that is in it and comes again
/// is stored again.
pub(super) async fn there(
    connection: &mut SqliteConnection,
    keys: &BTreeSet<(i64, i64)>,
    there: &mut HashMap<(i64, i64), Vec<There>>,
) -> Result<(), sqlx::Error> {
    let sql = "SELECT DISTINCT sealed.id, sealed.meter FROM json_each(?) AS key
        CROSS JOIN sealed ON meter = key.value ->> 0 AND from_at = (
            SELECT max(from_at) FROM sealed WHERE meter = key.value ->> 0 AND from_at <= key.value ->> 1
        )
        WHERE first_at <= key.value ->> 1 AND last_at >= key.value ->> 1";
    let blocks: Vec<(i64, i64)> = query_as(sql).bind(json(keys)).fetch_all(&mut *connection).await?;
    for (id, meter) in blocks {
        let block = query_as("SELECT layout, block FROM sealed WHERE id = ?").bind(id);
        let (layout, block): (i64, Vec<u8>) = block.fetch_one(&mut *connection).await?;
        for row in Block::unseal(&block).unwrap_or_default().rows() {
            let key = (meter, row.at);
            if keys.contains(&key) {
                there.entry(key).or_default().push(There { n: row.n, layout, values: row.values.to_vec() });
            }
        }
    }
    Ok(())
}

/// Deletes a block that ends before an instant, if any meter has one. Returns its remarks.
pub(super) async fn delete_older(
    connection: &mut SqliteConnection,
    meter: i64,
    before: i64,
) -> Result<Option<BTreeSet<i64>>, sqlx::Error> {
    let sql = "DELETE FROM sealed WHERE id =
        (SELECT id FROM sealed WHERE meter = ? AND until_at <= ? ORDER BY from_at LIMIT 1) RETURNING block";
    let block: Option<Vec<u8>> = query_scalar(sql).bind(meter).bind(before).fetch_optional(connection).await?;
    let remarks = |block: Block| block.rows().filter_map(|row| row.remark).collect();
    Ok(block.map(|block| Block::unseal(&block).map(remarks).unwrap_or_default()))
}

/// How many messages of a block were measured before an instant.
pub(super) fn older(block: &[u8], before: i64) -> Result<u64, sqlx::Error> {
    let block = Block::unseal(block).map_err(|damaged| unreadable(damaged.to_string()))?;
    Ok(u64::try_from(block.rows().filter(|row| row.at < before).count()).unwrap_or(u64::MAX))
}

/// Cuts what was measured before an instant from the first block that has both earlier and later messages. Returns how many went;
/// 0: there is no such block.
pub(super) async fn cut(connection: &mut SqliteConnection, meter: i64, before: i64) -> Result<u64, sqlx::Error> {
    let sql = "SELECT id, block FROM sealed WHERE meter = ? AND from_at < ? AND first_at < ? AND last_at >= ?
        ORDER BY from_at LIMIT 1";
    let found = query_as(sql).bind(meter).bind(before).bind(before).bind(before);
    let Some((id, bytes)): Option<(i64, Vec<u8>)> = found.fetch_optional(&mut *connection).await? else { return Ok(0) };
    let whole = Block::unseal(&bytes).map_err(|damaged| unreadable(damaged.to_string()))?;
    let mut left = Block::default();
    for row in whole.rows().filter(|row| row.at >= before) {
        left.push(row).map_err(|misfit| unreadable(misfit.to_string()))?;
    }
    let count = |block: &Block| i64::try_from(block.rows().len()).unwrap_or(i64::MAX);
    let gone = count(&whole).saturating_sub(count(&left));
    let first = left.rows().next().map(|row| row.at);
    let sql = "UPDATE sealed SET block = ?, messages = ?, first_at = ? WHERE id = ?";
    query(sql).bind(left.seal()).bind(count(&left)).bind(first).bind(id).execute(&mut *connection).await?;
    query("UPDATE meter SET messages = messages - ? WHERE id = ?").bind(gone).bind(meter).execute(connection).await?;
    Ok(gone.unsigned_abs())
}
