//! A connection, and what need not be asked again: most messages of a meter repeat what the one before said of everything but the values.
//!
//! Enters: what the tables said. Leaves: the same to later transactions, without a question. It stays true because stores only add to the
//! tables: what else deletes from them waits until no store is within a transaction, and counts `store.deleted` up. Whenever the row of
//! `store` was written anew, by that or with a backup that was put back, all is asked anew. So it is after a transaction that was taken back.

use std::collections::HashMap;

use smol_str::SmolStr;
use sqlx::{PgConnection, query_scalar, raw_sql};

use crate::store::tables::{MeterRow, QuarterRow, RemarkRow, SeriesRow};

/// Stores hold this lock together, each as long as its transaction lasts; who deletes what they remember holds it alone.
const MEMORY_LOCK: i64 = 0x6d65_7465_726b_6d65;

/// Most meters, layouts and series that are remembered, and bytes of the texts of layouts and remarks.
const REMEMBERED: usize = 100_000;
const REMEMBERED_BYTES: usize = 64 * 1024 * 1024;
/// Most remarks of one meter that are, and the longest.
const REMARKS: usize = 8;
const LONGEST_REMARK: usize = 4096;

/// How long after `last_seen` a meter may have been heard before it is written again; `last_at` of remarks is the end of such a span. ms.
const NOTED: i64 = 900_000;

/// The connection of a store.
pub(super) struct Session {
    pub(super) connection: PgConnection,
    pub(super) memory: Memory,
    /// The transaction that had written the row of `store` when the memory began.
    written: i64,
}

/// What is known of the tables.
#[derive(Default)]
pub(super) struct Memory {
    meters: HashMap<String, KnownMeter>,
    /// Layouts by their text.
    layouts: HashMap<String, i64>,
    /// Remarks by meter, the newest last.
    remarks: HashMap<i64, Vec<KnownRemark>>,
    /// Bytes of layouts and remarks that were kept, those that have gone since included.
    bytes: usize,
    series: HashMap<KnownSeries, i64>,
    /// A quarter-hour of each series whose value is at least as good as this rank.
    quarters: HashMap<i64, (i64, (bool, i64))>,
}

/// What the row of a meter says.
pub(super) struct KnownMeter {
    id: i64,
    medium: (&'static str, u8),
    protocol: String,
    gateway: String,
    predecessor: Option<String>,
    first_seen: i64,
    /// As the row says.
    last_seen: i64,
    /// When it was heard last.
    latest: i64,
}

/// Meter, register, unit, decimals: whoever can publish may invent any number of them for one meter.
type KnownSeries = (i64, SmolStr, SmolStr, u8);

struct KnownRemark {
    id: i64,
    content: String,
    first_at: i64,
    last_at: i64,
}

impl KnownMeter {
    /// As it was written, if that is what the row says: `seen` (first, last).
    pub(super) fn written(heard: &MeterRow<'_>, id: i64, seen: (i64, i64)) -> Option<Self> {
        (heard.last_seen == seen.1).then(|| Self {
            id,
            medium: (heard.medium, heard.medium_code),
            protocol: heard.protocol.to_owned(),
            gateway: heard.gateway.to_owned(),
            predecessor: heard.predecessor.map(str::to_owned),
            first_seen: seen.0,
            last_seen: seen.1,
            latest: seen.1,
        })
    }
}

impl Session {
    pub(super) fn new(connection: PgConnection) -> Self {
        Self { connection, memory: Memory::default(), written: 0 }
    }

    /// Begins a transaction that writes what was heard.
    pub(super) async fn begin(&mut self) -> Result<(), sqlx::Error> {
        // Rows that were waited for are read as they are then, whatever the server's default.
        let sql = format!("BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock_shared({MEMORY_LOCK})");
        raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut self.connection).await?;
        // The count alone would come back with a backup, and numbers of meters and layouts with it that mean others soon.
        let written = query_scalar("SELECT xmin::text::bigint FROM store").fetch_optional(&mut self.connection).await?;
        let written = written.unwrap_or(0);
        if written != self.written {
            (self.memory, self.written) = (Memory::default(), written);
        }
        self.memory.bound();
        Ok(())
    }
}

/// Before something is deleted that stores remember: until the end of the transaction none writes.
pub(super) async fn have_asked_anew(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let sql = format!("SELECT pg_advisory_xact_lock({MEMORY_LOCK}); UPDATE store SET deleted = deleted + 1");
    raw_sql(sqlx::AssertSqlSafe(sql)).execute(connection).await.map(drop)
}

/// Up to when a remark is noted as said, so that few messages change its row: the end of the quarter-hour.
pub(super) fn noted_until(last_at: i64) -> i64 {
    last_at.div_euclid(NOTED).saturating_add(1).saturating_mul(NOTED).saturating_sub(1)
}

impl Memory {
    fn bound(&mut self) {
        let Self { meters, layouts, remarks, bytes, series, quarters } = self;
        let lengths = [meters.len(), layouts.len(), remarks.len(), series.len(), quarters.len()];
        if *bytes > REMEMBERED_BYTES || lengths.into_iter().any(|length| length > REMEMBERED) {
            *self = Self::default();
        }
    }

    /// A meter whose row says all this already, but for up to a quarter-hour when it was heard last.
    pub(super) fn meter(&mut self, heard: &MeterRow<'_>) -> Option<i64> {
        let known = self.meters.get_mut(heard.name)?;
        let same = (known.medium, &*known.protocol, &*known.gateway)
            == ((heard.medium, heard.medium_code), heard.protocol, heard.gateway);
        let noted = heard.first_seen >= known.first_seen
            && heard.last_seen < known.last_seen.saturating_add(NOTED)
            && (same || heard.last_seen < known.latest)
            && heard.predecessor.is_none_or(|predecessor| known.predecessor.as_deref() == Some(predecessor));
        if noted {
            known.latest = known.latest.max(heard.last_seen);
        }
        noted.then_some(known.id)
    }

    /// How a meter was heard, with what its row does not say yet.
    pub(super) fn heard<'b>(&'b self, heard: &MeterRow<'b>) -> MeterRow<'b> {
        match self.meters.get(heard.name) {
            Some(known) if known.latest > heard.last_seen => MeterRow {
                medium: known.medium.0,
                medium_code: known.medium.1,
                protocol: &known.protocol,
                gateway: &known.gateway,
                last_seen: known.latest,
                ..*heard
            },
            _ => *heard,
        }
    }

    /// What the row of a meter says now; None: another store heard it later, and the row may say what that one knows.
    pub(super) fn keep_meter(&mut self, name: String, known: Option<KnownMeter>) {
        match known {
            Some(known) => drop(self.meters.insert(name, known)),
            None => drop(self.meters.remove(&name)),
        }
    }

    pub(super) fn layout(&self, text: &str) -> Option<i64> {
        self.layouts.get(text).copied()
    }

    pub(super) fn keep_layout(&mut self, text: String, id: i64) {
        self.bytes = self.bytes.saturating_add(text.len());
        self.layouts.insert(text, id);
    }

    fn known_remark(&self, meter: i64, content: &str) -> Option<&KnownRemark> {
        self.remarks.get(&meter)?.iter().find(|known| known.content == content)
    }

    /// Whether a remark has a row.
    pub(super) fn has_remark(&self, meter: i64, content: &str) -> bool {
        self.known_remark(meter, content).is_some()
    }

    /// A remark whose row spans this one.
    pub(super) fn remark(&self, row: &RemarkRow<'_>) -> Option<i64> {
        let known = self.known_remark(row.meter, row.content)?;
        (row.first_at >= known.first_at && row.last_at <= known.last_at).then_some(known.id)
    }

    pub(super) fn keep_remark(&mut self, row: &RemarkRow<'_>, id: i64) {
        if row.content.len() > LONGEST_REMARK {
            return;
        }
        let remarks = self.remarks.entry(row.meter).or_default();
        let mut known = KnownRemark {
            id,
            content: row.content.to_owned(),
            first_at: row.first_at,
            last_at: noted_until(row.last_at),
        };
        if let Some(place) = remarks.iter().position(|known| known.content == row.content) {
            let before = remarks.remove(place);
            (known.first_at, known.last_at) = (known.first_at.min(before.first_at), known.last_at.max(before.last_at));
        } else if remarks.len() >= REMARKS {
            remarks.remove(0);
        }
        self.bytes = self.bytes.saturating_add(known.content.len());
        remarks.push(known);
    }

    pub(super) fn series(&self, row: &SeriesRow<'_>) -> Option<i64> {
        self.series.get(&known_series(row)).copied()
    }

    pub(super) fn keep_series(&mut self, row: &SeriesRow<'_>, id: i64) {
        self.series.insert(known_series(row), id);
    }

    /// Whether a quarter-hour's value is at least as good as this.
    pub(super) fn quarter(&self, row: &QuarterRow) -> bool {
        let known = self.quarters.get(&row.series);
        known.is_some_and(|(quarter, rank)| *quarter == row.quarter && *rank <= rank_of(row))
    }

    pub(super) fn keep_quarter(&mut self, row: &QuarterRow) {
        self.quarters.insert(row.series, (row.quarter, rank_of(row)));
    }
}

fn known_series(row: &SeriesRow<'_>) -> KnownSeries {
    (row.meter, row.register.into(), row.unit.into(), row.scale)
}

fn rank_of(row: &QuarterRow) -> (bool, i64) {
    (row.unsynchronised, row.late)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard<'b>(gateway: &'b str, first_seen: i64, last_seen: i64) -> MeterRow<'b> {
        MeterRow {
            name: "E1",
            medium: "electricity",
            medium_code: 0,
            protocol: "p1",
            gateway,
            predecessor: None,
            first_seen,
            last_seen,
        }
    }

    #[test]
    fn a_meter_is_written_again_for_what_is_new_and_each_quarter_hour() {
        fn keep(memory: &mut Memory, heard: &MeterRow<'_>, seen: (i64, i64)) {
            memory.keep_meter(heard.name.to_owned(), KnownMeter::written(heard, 7, seen));
        }
        let mut memory = Memory::default();
        assert_eq!(memory.meter(&heard("gw", 1000, 1000)), None);
        keep(&mut memory, &heard("gw", 1000, 1000), (1000, 1000));
        assert_eq!(memory.meter(&heard("gw", 1000, 50_000)), Some(7));
        assert_eq!(memory.meter(&heard("gw", 1000, 901_000)), None, "a quarter-hour");
        assert_eq!(memory.meter(&heard("gw", 999, 1000)), None, "it is older than was known");
        assert_eq!(memory.meter(&heard("other", 1000, 50_000)), None, "another gateway");
        assert_eq!(memory.meter(&heard("other", 1000, 49_999)), Some(7), "another gateway, but earlier");
        // What is written for the older one does not hide what was heard since.
        let row = memory.heard(&heard("other", 999, 2000));
        assert_eq!((row.gateway, row.first_seen, row.last_seen), ("gw", 999, 50_000));
        assert_eq!(memory.heard(&heard("other", 1000, 60_000)).gateway, "other");
        let replaced = MeterRow { predecessor: Some("E0"), ..heard("gw", 1000, 5000) };
        assert_eq!(memory.meter(&replaced), None, "a predecessor");
        keep(&mut memory, &replaced, (1000, 5000));
        assert_eq!(memory.meter(&replaced), Some(7));
        keep(&mut memory, &heard("gw", 6000, 6000), (1000, 9000));
        assert_eq!(memory.meter(&heard("gw", 6000, 6000)), None, "another store heard it later");
    }

    #[test]
    fn remarks_are_known_for_a_quarter_hour_and_few_of_a_meter() {
        let row = |content, first_at, last_at| RemarkRow { meter: 1, content, first_at, last_at };
        let mut memory = Memory::default();
        memory.keep_remark(&row("a", 10, 20), 5);
        assert_eq!(memory.remark(&row("a", 10, NOTED - 1)), Some(5));
        assert_eq!(memory.remark(&row("a", 10, NOTED)), None);
        assert_eq!(memory.remark(&row("a", 9, 20)), None);
        assert!(memory.has_remark(1, "a") && !memory.has_remark(2, "a"));
        memory.keep_remark(&row("a", 5, 6), 5);
        assert_eq!(memory.remark(&row("a", 5, NOTED - 1)), Some(5));
        for content in ["b", "c", "d", "e", "f", "g", "h", "i"] {
            memory.keep_remark(&row(content, 0, 0), 6);
        }
        assert!(!memory.has_remark(1, "a") && memory.has_remark(1, "b"));
        memory.keep_remark(&row(&"x".repeat(LONGEST_REMARK + 1), 0, 0), 6);
        assert!(memory.has_remark(1, "b"), "one that is not kept drives none out");
        assert_eq!([noted_until(0), noted_until(-1), noted_until(NOTED)], [NOTED - 1, -1, 2 * NOTED - 1]);
    }

    #[test]
    fn whoever_invents_registers_and_layouts_is_forgotten_and_refused_nothing() {
        let units: Vec<String> = (0..=REMEMBERED).map(|unit| format!("{unit:x}")).collect();
        let row = |unit| SeriesRow { meter: 1, register: "volume", unit, scale: 3 };
        let mut memory = Memory::default();
        for (unit, id) in units.iter().zip(1..) {
            memory.keep_series(&row(unit), id);
        }
        // Within a transaction all of them are needed, and found in no more time than one.
        for (unit, id) in units.iter().zip(1..) {
            assert_eq!(memory.series(&row(unit)), Some(id));
        }
        memory.bound();
        assert!(memory.series.is_empty());

        let text = |id: i64| format!("{id:050000}");
        let kept = |memory: &Memory| memory.layouts.len();
        for id in 1..=2000 {
            memory.keep_layout(text(id), id);
            assert_eq!(memory.layout(&text(id)), Some(id));
            memory.bound();
            assert!(kept(&memory) <= REMEMBERED_BYTES / 50_000 + 1, "{}", kept(&memory));
        }
        memory = Memory::default();
        for meter in 1..=20_000 {
            let content = "x".repeat(LONGEST_REMARK);
            memory.keep_remark(&RemarkRow { meter, content: &content, first_at: 0, last_at: 0 }, meter);
            memory.bound();
        }
        assert!(memory.remarks.len() <= REMEMBERED_BYTES / LONGEST_REMARK, "{}", memory.remarks.len());
    }
}
