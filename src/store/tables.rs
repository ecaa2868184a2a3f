//! What the tables of a store are asked within a transaction, whichever database they are in.
//!
//! Enters: rows, in sorted order, so that two stores that write the same rows wait for each other in turn and never in a circle.
//! Leaves: what was there already, and the numbers of rows.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::Incoming;
use crate::{
    delivery::{Epoch, EpochAck, Ledger},
    moment::Moment,
};

/// The ledger of a gateway's run.
pub(super) type LedgerRow = (String, Epoch, Ledger);

/// A row of `meter`: how it was heard in a batch.
#[derive(Clone, Copy)]
pub(super) struct MeterRow<'b> {
    pub(super) name: &'b str,
    pub(super) medium: &'static str,
    pub(super) medium_code: u8,
    pub(super) protocol: &'b str,
    pub(super) gateway: &'b str,
    pub(super) predecessor: Option<&'b str>,
    pub(super) first_seen: i64,
    pub(super) last_seen: i64,
}

/// A row of `message`. Its place among those of its instant, and the number of its remark, are found when it is written.
pub(super) struct MessageRow {
    pub(super) meter: i64,
    pub(super) at: Moment,
    pub(super) n: i64,
    pub(super) clock: i64,
    pub(super) received_at: i64,
    pub(super) layout: i64,
    pub(super) values: Vec<i64>,
    /// What it says besides its readings.
    pub(super) said: Option<String>,
    pub(super) remark: Option<i64>,
}

impl MessageRow {
    pub(super) fn key(&self) -> (i64, i64) {
        (self.meter, self.at.millis())
    }

    /// Takes the next place at its instant, unless what it says is `there` already.
    pub(super) fn find_place(&mut self, there: &[There]) -> bool {
        self.n = there.iter().map(|there| there.n + 1).max().unwrap_or(0);
        !there.iter().any(|there| (there.layout, &there.values) == (self.layout, &self.values))
    }

    pub(super) fn there(&self) -> There {
        There { n: self.n, layout: self.layout, values: self.values.clone() }
    }
}

/// What is there already at a meter's instant.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct There {
    pub(super) n: i64,
    pub(super) layout: i64,
    pub(super) values: Vec<i64>,
}

/// What is there, by meter and instant (ms).
pub(super) type ThereAt = HashMap<(i64, i64), Vec<There>>;

/// A row of `remark`, with the span of the messages in a batch that have it.
pub(super) struct RemarkRow<'b> {
    pub(super) meter: i64,
    pub(super) content: &'b str,
    pub(super) first_at: i64,
    pub(super) last_at: i64,
}

/// The different remarks of some messages, sorted.
pub(super) fn remarks_of<'b>(messages: impl Iterator<Item = &'b MessageRow>) -> Vec<RemarkRow<'b>> {
    let mut spans: BTreeMap<(i64, &str), (i64, i64)> = BTreeMap::new();
    for message in messages {
        if let Some(content) = &message.said {
            let at = message.at.millis();
            let (first, last) = spans.entry((message.meter, content)).or_insert((at, at));
            (*first, *last) = (at.min(*first), at.max(*last));
        }
    }
    let row = |((meter, content), (first_at, last_at))| RemarkRow { meter, content, first_at, last_at };
    spans.into_iter().map(row).collect()
}

/// A row of `series`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SeriesRow<'b> {
    pub(super) meter: i64,
    pub(super) register: &'b str,
    pub(super) unit: &'b str,
    pub(super) scale: u8,
}

/// A row of `quarter`.
pub(super) struct QuarterRow {
    pub(super) meter: i64,
    pub(super) series: i64,
    pub(super) quarter: i64,
    /// Milliseconds since the quarter-hour began.
    pub(super) late: i64,
    pub(super) unsynchronised: bool,
    pub(super) value: i64,
}

/// A refused message that may be read now.
pub(super) struct RefusedRow {
    pub(super) id: i64,
    pub(super) topic: String,
    pub(super) payload: Vec<u8>,
}

/// The tables, in a transaction that is begun.
pub(super) trait Tables: Send {
    /// The ledgers of these runs, as far as there are any. Where several stores write, nobody else changes them, nor makes one
    /// that is missing, until the transaction ends.
    fn ledgers(
        &mut self,
        runs: &BTreeSet<(&str, Epoch)>,
    ) -> impl Future<Output = Result<Vec<LedgerRow>, sqlx::Error>> + Send;

    /// Writes ledgers, and notes them as touched last.
    fn save_ledgers(
        &mut self,
        ledgers: &[(&str, Epoch, &Ledger)],
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// The epochs of these gateways, those touched last first, at most `most` of each; by gateway in sorted order.
    fn newest_ledgers(
        &mut self,
        gateways: &[&str],
        most: u32,
    ) -> impl Future<Output = Result<Vec<(String, Vec<EpochAck>)>, sqlx::Error>> + Send;

    /// Moves counts of one run from refused to stored and repeated.
    fn recount(
        &mut self,
        run: (&str, Epoch),
        stored: i64,
        repeated: i64,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// The numbers of meters; new ones get a row, and all are noted as heard.
    fn meters(
        &mut self,
        heard: &[MeterRow<'_>],
    ) -> impl Future<Output = Result<HashMap<String, i64>, sqlx::Error>> + Send;

    /// The number of each of these layouts; new ones get a row.
    fn layouts(&mut self, texts: &[String]) -> impl Future<Output = Result<Vec<i64>, sqlx::Error>> + Send;

    /// Writes the messages that are not there: no other of their meter and instant has the same layout and values, which are the readings
    /// and what the meter's own clock said. Returns which were written, in their order. Remarks that are new get a row, and the span of those that are there grows.
    fn insert_new(
        &mut self,
        messages: &mut [MessageRow],
    ) -> impl Future<Output = Result<Vec<bool>, sqlx::Error>> + Send;

    /// The number of each of these series, in their order; new ones get a row.
    fn series(&mut self, series: &[SeriesRow<'_>]) -> impl Future<Output = Result<Vec<i64>, sqlx::Error>> + Send;

    /// Keeps those that come before what their quarter-hour has: first by (unsynchronised, late). Then notes where values are
    /// lower than the one before.
    fn keep_quarters(&mut self, quarters: &[QuarterRow]) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Writes what was refused.
    fn insert_refused(&mut self, refused: &[&Incoming]) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Refused messages whose schema was newer than could be read and is not newer than `schema`, oldest first.
    fn refused(&mut self, schema: u32, most: u32) -> impl Future<Output = Result<Vec<RefusedRow>, sqlx::Error>> + Send;

    /// Deletes refused messages: they are messages now.
    fn delete_refused(&mut self, ids: &[i64]) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Notes why refused messages still cannot be read, by one that reads `schema`.
    fn still_refused(
        &mut self,
        schema: u32,
        reasons: &[(i64, String)],
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
}
