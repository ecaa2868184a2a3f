//! Reading the database, whether its daemon runs or not.
//!
//! Enters: an instant. Leaves: reports as they were stored.

use std::{
    cmp::Reverse,
    collections::HashMap,
    fs,
    io::ErrorKind,
    ops::Range,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use sqlx::{
    ConnectOptions as _, Connection as _, QueryBuilder, SqliteConnection, query_as, query_scalar,
    sqlite::SqliteConnectOptions,
};

use super::seal::{COLUMNS, Columns};
use crate::{
    layout::Layout,
    moment::Moment,
    reading::Report,
    sealed::Block,
    store::{
        self, Counts, Meter, Quarter, Quarters, Series, StoreError, Stored, Trouble, json,
        rows::{self, Message, MeterColumns},
        unreadable,
    },
};

/// Reads a database, whether its daemon runs or not.
#[derive(Debug)]
pub struct Reader {
    pub(super) path: PathBuf,
    pub(super) connection: SqliteConnection,
    layouts: HashMap<i64, Layout>,
    remarks: HashMap<i64, String>,
}

/// Most layouts and remarks that are remembered.
const REMEMBERED: usize = 10_000;

impl Reader {
    /// Opens the database at `path`, which must exist; nothing in it is changed.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        match fs::metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(StoreError::Missing(path.to_owned())),
            Err(error) => {
                let (place, source) = (path.display().to_string(), error.into());
                return Err(StoreError::Database { place, trouble: Trouble::CannotOpen, source });
            }
            Ok(there) if there.is_dir() => return Err(StoreError::Directory(path.to_owned())),
            Ok(_) => {}
        }
        let options = SqliteConnectOptions::new().filename(path).read_only(true).disable_statement_logging();
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        match Self::connect(path, options.clone()).await {
            // A reader that may not write beside the file cannot share it with a writer. Without a
            // write-ahead log there is none, and the file is complete.
            Err(StoreError::Database { trouble: Trouble::CannotOpen | Trouble::ReadOnly, .. })
                if !Path::new(&log).exists() =>
            {
                Self::connect(path, options.immutable(true)).await
            }
            result => result,
        }
    }

    pub(super) async fn connect(path: &Path, options: SqliteConnectOptions) -> Result<Self, StoreError> {
        let mut connection = options.connect().await.map_err(|error| StoreError::sqlite(path, error))?;
        let version = query_scalar("SELECT max(version) FROM _sqlx_migrations").fetch_one(&mut connection).await;
        let version: i64 = version.map_err(|error| match StoreError::sqlite(path, error) {
            StoreError::Database { place, trouble: Trouble::Other, source } => {
                StoreError::Database { place, trouble: Trouble::NotADatabase, source }
            }
            error => error,
        })?;
        super::check_version(path, version)?;
        Ok(Self { path: path.to_owned(), connection, layouts: HashMap::new(), remarks: HashMap::new() })
    }

    pub(super) async fn close(self) -> Result<(), sqlx::Error> {
        self.connection.close().await
    }

    /// A message as it was stored.
    async fn stored(&mut self, meter: &Meter, message: &Message) -> Result<Stored, sqlx::Error> {
        if self.layouts.len() > REMEMBERED || self.remarks.len() > REMEMBERED {
            (self.layouts, self.remarks) = Default::default();
        }
        if !self.layouts.contains_key(&message.layout) {
            let spec = query_scalar("SELECT spec FROM layout WHERE id = ?").bind(message.layout);
            let spec: String = spec.fetch_one(&mut self.connection).await?;
            self.layouts.insert(message.layout, Layout::from_text(&spec).map_err(unreadable)?);
        }
        if let Some(remark) = message.remark
            && !self.remarks.contains_key(&remark)
        {
            let content = query_scalar("SELECT content FROM remark WHERE id = ?").bind(remark);
            // It may have gone with its message since that was read.
            let content: Option<String> = content.fetch_optional(&mut self.connection).await?;
            self.remarks.extend(content.map(|content| (remark, content)));
        }
        let layout = self.layouts.get(&message.layout).ok_or(sqlx::Error::RowNotFound)?;
        let remark = message.remark.and_then(|remark| self.remarks.get(&remark));
        message.stored(meter, layout, remark.map(String::as_str))
    }

    /// The newest message of a meter at or before an instant; of several at one instant the last stored.
    async fn newest(&mut self, meter: &Meter, at: i64) -> Result<Option<Message>, sqlx::Error> {
        let sql = format!("SELECT {COLUMNS} FROM message WHERE meter = ? AND at <= ? ORDER BY at DESC, n DESC LIMIT 1");
        let newest = query_as(sqlx::AssertSqlSafe(sql)).bind(meter.id).bind(at);
        let newest = newest.fetch_optional(&mut self.connection).await?.map(Message::read).transpose()?;
        // By the key from the instant backwards: of the span that holds it all may be later, of the one before nothing is.
        let sql = "SELECT from_at FROM sealed WHERE meter = ? AND from_at <= ? AND first_at <= ?
            ORDER BY from_at DESC LIMIT 1";
        let span = query_scalar(sql).bind(meter.id).bind(at).bind(at);
        let span: Option<i64> = span.fetch_optional(&mut self.connection).await?;
        let Some(span) = span else { return Ok(newest) };
        let since = newest.as_ref().map_or(i64::MIN, |newest| newest.at);
        // Spans do not overlap, so this one has the newest, in one of its layouts.
        let sql = "SELECT layout, block FROM sealed
            WHERE meter = ? AND from_at = ? AND first_at <= ? AND last_at >= ?";
        let blocks = query_as(sql).bind(meter.id).bind(span).bind(at).bind(since);
        let blocks: Vec<(i64, Vec<u8>)> = blocks.fetch_all(&mut self.connection).await?;
        let mut found = newest;
        for (layout, block) in blocks {
            let block = unseal(&block)?;
            let last = block.rows().rfind(|row| row.at <= at).map(|row| Message::of(&row, layout));
            found = found.into_iter().chain(last).max_by_key(|message| (message.at, message.n));
        }
        Ok(found)
    }

    /// Where the last span begins that begins at or before an instant: what is later stands in it or behind it.
    async fn span_before(&mut self, meter: &Meter, at: i64) -> Result<i64, sqlx::Error> {
        let sql = "SELECT from_at FROM sealed WHERE meter = ? AND from_at <= ? ORDER BY from_at DESC LIMIT 1";
        let span = query_scalar(sql).bind(meter.id).bind(at).fetch_optional(&mut self.connection).await?;
        Ok(span.unwrap_or(i64::MIN))
    }

    /// The first message of a meter behind an instant; of several at one instant the last stored.
    async fn next(&mut self, meter: &Meter, at: i64) -> Result<Option<Message>, sqlx::Error> {
        let sql = "SELECT min(at) FROM message WHERE meter = ? AND at > ?";
        let next = query_scalar(sql).bind(meter.id).bind(at);
        let next: Option<i64> = next.fetch_one(&mut self.connection).await?;
        let since = self.span_before(meter, at).await?;
        let sql =
            "SELECT from_at FROM sealed WHERE meter = ? AND from_at >= ? AND last_at > ? ORDER BY from_at LIMIT 1";
        let span = query_scalar(sql).bind(meter.id).bind(since).bind(at);
        let span: Option<i64> = span.fetch_optional(&mut self.connection).await?;
        let mut sealed: Option<Message> = None;
        if let Some(span) = span {
            let sql = "SELECT layout, block FROM sealed WHERE meter = ? AND from_at = ? AND last_at > ?";
            let blocks = query_as(sql).bind(meter.id).bind(span).bind(at);
            let blocks: Vec<(i64, Vec<u8>)> = blocks.fetch_all(&mut self.connection).await?;
            for (layout, block) in blocks {
                let block = unseal(&block)?;
                let first = block.rows().map(|row| row.at).find(|first| *first > at);
                let last = block.rows().rfind(|row| Some(row.at) == first).map(|row| Message::of(&row, layout));
                // Of the first instant the last stored.
                sealed = sealed.into_iter().chain(last).min_by_key(|message| (message.at, Reverse(message.n)));
            }
        }
        match (next, sealed) {
            (None, sealed) => Ok(sealed),
            (Some(next), Some(sealed)) if sealed.at < next => Ok(Some(sealed)),
            (Some(next), _) => self.newest(meter, next).await,
        }
    }

    /// Sealed messages in a span behind a key, at least `most` of the first if there are so many.
    async fn sealed(
        &mut self,
        meter: &Meter,
        span: Range<i64>,
        after: (i64, i64),
        most: usize,
    ) -> Result<Vec<Message>, sqlx::Error> {
        let (mut messages, mut from) = (Vec::new(), self.span_before(meter, span.start).await?);
        while messages.len() < most {
            let sql = "SELECT min(from_at) FROM sealed WHERE meter = ? AND from_at >= ? AND from_at < ?";
            let next = query_scalar(sql).bind(meter.id).bind(from).bind(span.end);
            let Some(next): Option<i64> = next.fetch_one(&mut self.connection).await? else { break };
            from = next.saturating_add(1);
            let sql = "SELECT layout, block FROM sealed WHERE meter = ? AND from_at = ?";
            let blocks: Vec<(i64, Vec<u8>)> =
                query_as(sql).bind(meter.id).bind(next).fetch_all(&mut self.connection).await?;
            for (layout, block) in blocks {
                let block = unseal(&block)?;
                let rows = block.rows().filter(|row| span.contains(&row.at) && (row.at, row.n) > after);
                messages.extend(rows.map(|row| Message::of(&row, layout)));
            }
        }
        Ok(messages)
    }

    fn error(&self) -> impl Fn(sqlx::Error) -> StoreError + use<> {
        let path = self.path.clone();
        move |error| StoreError::sqlite(&path, error)
    }
}

#[async_trait]
impl store::Reader for Reader {
    async fn readings_of(
        &mut self,
        meters: &[Meter],
        at: Option<Moment>,
    ) -> Result<Vec<(Report<String>, Moment)>, StoreError> {
        let at = at.map_or(i64::MAX, Moment::millis);
        let error = self.error();
        let mut readings = Vec::new();
        for meter in meters {
            if let Some(message) = self.newest(meter, at).await.map_err(&error)? {
                let stored = self.stored(meter, &message).await.map_err(&error)?;
                readings.push((stored.report, stored.received_at));
            }
        }
        Ok(readings)
    }

    async fn readings_after(
        &mut self,
        meters: &[Meter],
        at: Moment,
    ) -> Result<Vec<(Report<String>, Moment)>, StoreError> {
        let error = self.error();
        let mut readings = Vec::new();
        for meter in meters {
            if let Some(message) = self.next(meter, at.millis()).await.map_err(&error)? {
                let stored = self.stored(meter, &message).await.map_err(&error)?;
                readings.push((stored.report, stored.received_at));
            }
        }
        Ok(readings)
    }

    async fn counts(&mut self) -> Result<Counts, StoreError> {
        let sql = "SELECT count(*), coalesce(sum(messages), 0), (SELECT count(*) FROM refused) FROM meter";
        let error = self.error();
        query_as(sql).fetch_one(&mut self.connection).await.map(rows::counts).map_err(error)
    }

    async fn meters(&mut self) -> Result<Vec<Meter>, StoreError> {
        let sql = "SELECT id, name, medium, medium_code, protocol, gateway, predecessor, first_seen, last_seen
            FROM meter ORDER BY name";
        let error = self.error();
        let rows: Vec<MeterColumns> = query_as(sql).fetch_all(&mut self.connection).await.map_err(&error)?;
        rows.into_iter().map(rows::meter).collect::<Result<_, _>>().map_err(error)
    }

    async fn series(&mut self, meter: &Meter) -> Result<Vec<Series>, StoreError> {
        let sql = "SELECT id, register, unit, scale FROM series WHERE meter = ? ORDER BY register, unit, scale";
        let error = self.error();
        let rows: Vec<(i64, String, String, i64)> =
            query_as(sql).bind(meter.id).fetch_all(&mut self.connection).await.map_err(&error)?;
        rows.into_iter().map(|row| rows::series(meter.id, row)).collect::<Result<_, _>>().map_err(error)
    }

    async fn quarters(&mut self, series: &Series, which: &Quarters) -> Result<Vec<Quarter>, StoreError> {
        let error = self.error();
        let mut sql = QueryBuilder::new("");
        match which {
            Quarters::All(span) => {
                sql.push("SELECT quarter, late, value FROM quarter WHERE unsynchronised = 0 AND meter = ")
                    .push_bind(series.meter);
                sql.push(" AND series = ").push_bind(series.id).push(" AND quarter >= ").push_bind(span.start);
                sql.push(" AND quarter < ").push_bind(span.end).push(" ORDER BY quarter");
            }
            Quarters::Around { marks, each } => around(&mut sql, series, marks, *each),
        }
        let rows: Vec<(i64, i64, i64)> = sql.build_query_as().fetch_all(&mut self.connection).await.map_err(&error)?;
        rows.into_iter().map(|row| rows::quarter(series, row)).collect::<Result<_, _>>().map_err(error)
    }

    async fn messages(
        &mut self,
        meter: &Meter,
        span: Range<i64>,
        after: Option<(i64, i64)>,
        most: usize,
    ) -> Result<Vec<Stored>, StoreError> {
        let (at, n) = after.unwrap_or((i64::MIN, 0));
        let error = self.error();
        let sql = format!(
            "SELECT {COLUMNS} FROM message WHERE meter = ? AND at >= ? AND at < ? AND (at, n) > (?, ?)
            ORDER BY at, n LIMIT ?"
        );
        let query = query_as(sqlx::AssertSqlSafe(sql)).bind(meter.id).bind(span.start).bind(span.end).bind(at).bind(n);
        let query = query.bind(i64::try_from(most).unwrap_or(i64::MAX));
        let rows: Vec<Columns> = query.fetch_all(&mut self.connection).await.map_err(&error)?;
        let mut messages = rows.into_iter().map(Message::read).collect::<Result<Vec<_>, _>>().map_err(&error)?;
        let sealed = self.sealed(meter, span.start.max(at)..span.end, (at, n), most).await.map_err(&error)?;
        messages.extend(sealed);
        messages.sort_by_key(|message| (message.at, message.n));
        // One that was sealed between the two looks is in both.
        messages.dedup_by_key(|message| (message.at, message.n));
        messages.truncate(most);
        let mut stored = Vec::with_capacity(messages.len());
        for message in &messages {
            stored.push(self.stored(meter, message).await.map_err(&error)?);
        }
        Ok(stored)
    }
}

/// Asks for the values around marks: see [`Quarters::Around`].
fn around(sql: &mut QueryBuilder<sqlx::Sqlite>, series: &Series, marks: &[i64], each: u8) {
    let of = format!("FROM quarter WHERE meter = {} AND series = {} AND unsynchronised = 0", series.meter, series.id);
    sql.push("WITH mark AS (SELECT value AS quarter FROM json_each(")
        .push_bind(json(&marks))
        .push(") UNION SELECT quarter FROM fall WHERE meter = ");
    sql.push_bind(series.meter).push(" AND series = ").push_bind(series.id);
    sql.push(" AND quarter >= ")
        .push_bind(marks.first().copied())
        .push(" AND quarter <= ")
        .push_bind(marks.last().copied());
    sql.push(format!(
        "), near AS (
            SELECT (SELECT quarter {of} ORDER BY quarter LIMIT 1) AS quarter
            UNION SELECT (SELECT quarter {of} ORDER BY quarter DESC LIMIT 1)"
    ));
    for place in 0..each {
        sql.push(format!(
            " UNION SELECT (SELECT quarter.quarter {of} AND quarter.quarter < mark.quarter ORDER BY quarter.quarter DESC LIMIT 1 OFFSET {place}) FROM mark
            UNION SELECT (SELECT quarter.quarter {of} AND quarter.quarter >= mark.quarter ORDER BY quarter.quarter LIMIT 1 OFFSET {place}) FROM mark"
        ));
    }
    sql.push(format!(") SELECT quarter, late, value FROM near CROSS JOIN quarter USING (quarter) WHERE meter = {} AND series = {} ORDER BY quarter", series.meter, series.id));
}

fn unseal(block: &[u8]) -> Result<Block, sqlx::Error> {
    Block::unseal(block).map_err(|error| unreadable(error.to_string()))
}
