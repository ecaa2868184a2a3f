//! A batch becomes rows.
//!
//! Enters: a batch, in a transaction that is begun. Leaves: its rows and what became of it. The order:
//! what is new by the ledgers, the numbers of meters and layouts, then each table, as far as it is new.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    Committed, Incoming, Read, Reread, clock_code,
    ledgers::{Ledgers, recount},
    tables::{MessageRow, MeterRow, QuarterRow, SeriesRow, Tables},
};
use crate::{
    delivery::Arrival,
    layout::{self, Layout, Layouts},
    moment::Moment,
    payload::{MOST_NAME, Message},
    reading::{Clock, Info, Medium, Reading, Report},
};

/// Refused messages that are read again in one transaction: at 256 KiB each they are held in memory.
const REREAD: u32 = 100;
/// Under this name a report says which meter it took the place of.
const PREDECESSOR: &str = "predecessor";

/// The batch in a transaction that is begun and not ended here. Nothing is remembered here from batch to
/// batch, so that there is nothing to undo; what `tables` remember is theirs to forget.
pub(super) async fn write(tables: &mut impl Tables, batch: &[Incoming]) -> Result<Committed, sqlx::Error> {
    let mut committed = Committed::default();
    let mut ledgers = Ledgers::load(tables, batch).await?;
    let lost = ledgers.lost();
    let (mut messages, mut refused) = (Vec::new(), Vec::new());
    for incoming in batch {
        let mut tally = None;
        if let Some(envelope) = incoming.envelope() {
            let ledger = ledgers.of(envelope)?;
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
    for (message, stored) in messages.iter().zip(write_rows(tables, &messages).await?) {
        let tally = &mut ledgers.of(&message.envelope)?.tally;
        let (count, counted) = match stored {
            true => (&mut committed.stored, &mut tally.stored),
            false => (&mut committed.repeated, &mut tally.repeated),
        };
        *count += 1;
        *counted += 1;
    }
    if !refused.is_empty() {
        tables.insert_refused(&refused).await?;
    }
    committed.lost = ledgers.lost().saturating_sub(lost);
    ledgers.save(tables).await?;
    committed.acks = ledgers.acks(tables).await?;
    Ok(committed)
}

/// Writes messages that are new by their numbers. Returns which of them are rows now; of the others the meter, the
/// instant and the readings were there already.
async fn write_rows(tables: &mut impl Tables, messages: &[&Message]) -> Result<Vec<bool>, sqlx::Error> {
    if messages.is_empty() {
        return Ok(Vec::new());
    }
    let meters = meters(tables, messages).await?;
    let (layouts, values) = layouts(tables, messages).await?;
    let mut rows = Vec::with_capacity(messages.len());
    for ((&message, layout), values) in messages.iter().zip(layouts).zip(values) {
        let meter = *meters.get(&message.report.meter).ok_or(sqlx::Error::RowNotFound)?;
        let at = message.report.measured_at.unwrap_or(message.received_at);
        rows.push(MessageRow {
            meter,
            at,
            n: 0,
            clock: clock_code(message.report.clock),
            received_at: message.received_at.millis(),
            layout,
            values,
            said: layout::remark(&message.report),
            remark: None,
        });
    }
    let stored = tables.insert_new(&mut rows).await?;
    let new = messages.iter().copied().zip(&rows).zip(&stored).filter_map(|(new, stored)| stored.then_some(new));
    write_quarters(tables, new).await?;
    Ok(stored)
}

/// Reads some of the messages that an older build refused for their schema again: those that
/// `schema`, the newest that can be read now, includes. Which they are is asked anew each time, so that
/// whatever comes between nothing is read twice or left out.
pub(super) async fn reread(tables: &mut impl Tables, schema: u32, read: &Read<'_>) -> Result<Reread, sqlx::Error> {
    let rows = tables.refused(schema, REREAD).await?;
    let (mut messages, mut done, mut still) = (Vec::new(), Vec::new(), Vec::new());
    for row in &rows {
        match read(&row.topic, &row.payload) {
            Ok(message) => {
                messages.push(message);
                done.push(row.id);
            }
            Err(reason) => still.push((row.id, reason)),
        }
    }
    let messages: Vec<&Message> = messages.iter().collect();
    let stored = write_rows(tables, &messages).await?;
    recount(tables, messages.iter().map(|message| &message.envelope).zip(stored)).await?;
    if !done.is_empty() {
        tables.delete_refused(&done).await?;
    }
    if !still.is_empty() {
        tables.still_refused(schema, &still).await?;
    }
    let count = |list: usize| u64::try_from(list).unwrap_or(u64::MAX);
    Ok(Reread { read: count(done.len()), refused: count(still.len()) })
}

/// The numbers of the meters by name.
async fn meters(tables: &mut impl Tables, messages: &[&Message]) -> Result<HashMap<String, i64>, sqlx::Error> {
    struct Heard<'b> {
        latest: &'b Message,
        predecessor: Option<&'b str>,
        first: i64,
        last: i64,
    }
    let mut heard: BTreeMap<&str, Heard<'_>> = BTreeMap::new();
    for &message in messages {
        let now = message.received_at.millis();
        let new = || Heard { latest: message, predecessor: None, first: now, last: now };
        let heard = heard.entry(&message.report.meter).or_insert_with(new);
        heard.first = now.min(heard.first);
        if now >= heard.last {
            (heard.latest, heard.last) = (message, now);
        }
        // A longer text names no meter.
        let named = |(name, text): &&Info| name == PREDECESSOR && text.len() <= MOST_NAME;
        let predecessor = message.report.info.iter().find(named);
        heard.predecessor = predecessor.map(|(_, name)| &**name).or(heard.predecessor);
    }
    let rows = heard.into_iter().map(|(name, Heard { latest, predecessor, first, last })| {
        let Report { medium, protocol, .. } = &latest.report;
        MeterRow {
            name,
            medium: medium.name(),
            medium_code: if let Medium::Other(code) = *medium { code } else { 0 },
            protocol,
            gateway: &latest.envelope.gateway,
            predecessor,
            first_seen: first,
            last_seen: last,
        }
    });
    tables.meters(&rows.collect::<Vec<_>>()).await
}

/// The number of the layout of each message, and its values.
async fn layouts(tables: &mut impl Tables, messages: &[&Message]) -> Result<(Vec<i64>, Vec<Vec<i64>>), sqlx::Error> {
    let mut layouts = Layouts::default();
    let places: Vec<usize> = messages.iter().map(|message| layouts.place(&message.report)).collect();
    let ids = tables.layouts(&layouts.texts()).await?;
    let ids = places.into_iter().map(|place| ids.get(place).copied());
    let ids: Vec<i64> = ids.collect::<Option<_>>().ok_or(sqlx::Error::RowNotFound)?;
    Ok((ids, messages.iter().map(|message| Layout::values(&message.report)).collect()))
}

/// Keeps the first value of each cumulative register in each quarter-hour. Messages may come late and
/// in any order; a reading by a clock that was not synchronised gives way to any other.
async fn write_quarters<'b>(
    tables: &mut impl Tables,
    messages: impl Iterator<Item = (&'b Message, &'b MessageRow)>,
) -> Result<(), sqlx::Error> {
    let mut quarters: BTreeMap<(SeriesRow<'_>, i64), ((bool, i64), i64)> = BTreeMap::new();
    for (message, row) in messages {
        for reading in &message.report.readings {
            let Reading { register, value, unit, .. } = reading;
            if reading.is_counted() {
                let (register, unit, scale) = (register.as_str(), unit.as_str(), value.scale());
                let at = reading.at.unwrap_or(row.at);
                let rank = (message.report.clock == Clock::Unsynchronised, late(at));
                let first = quarters.entry((SeriesRow { meter: row.meter, register, unit, scale }, at.quarter()));
                let first = first.or_insert((rank, value.mantissa()));
                if rank < first.0 {
                    *first = (rank, value.mantissa());
                }
            }
        }
    }
    if quarters.is_empty() {
        return Ok(());
    }
    let series: Vec<_> = quarters.keys().map(|(series, _)| *series).collect::<BTreeSet<_>>().into_iter().collect();
    let ids: HashMap<SeriesRow<'_>, i64> = series.iter().copied().zip(tables.series(&series).await?).collect();
    let row = |((series, quarter), ((unsynchronised, late), value)): ((SeriesRow<'_>, i64), ((bool, i64), i64))| {
        let id = *ids.get(&series)?;
        Some(QuarterRow { meter: series.meter, series: id, quarter, late, unsynchronised, value })
    };
    let rows = quarters.into_iter().map(row).collect::<Option<Vec<_>>>().ok_or(sqlx::Error::RowNotFound)?;
    tables.keep_quarters(&rows).await
}

/// Milliseconds since its quarter-hour began.
fn late(at: Moment) -> i64 {
    at.millis().rem_euclid(900_000)
}
