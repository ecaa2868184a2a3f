//! Reading the database, whether its daemon runs or not.
//!
//! Enters: an instant. Leaves: reports as they were stored.

use std::{
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

use super::MIGRATIONS;
use crate::{
    layout::{self, Layout},
    moment::Moment,
    reading::{Medium, Register, Report},
    store::{self, CLOCKS, Counts, Meter, Quarter, Quarters, Series, StoreError, Stored, Trouble, json, unreadable},
    unit::{Decimal, Unit},
};

/// Reads a database, whether its daemon runs or not.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    connection: SqliteConnection,
}

/// A message with what its meter, layout and remark say: see `read_message`.
type MessageRow = (String, String, i64, String, i64, i64, i32, i64, i64, String, String, Option<String>);

/// The columns of a [`MessageRow`].
const MESSAGE: &str =
    r#"meter.name, medium, medium_code, protocol, at, n, utc_offset, clock, received_at, spec, "values", content"#;

impl Reader {
    /// Opens the database at `path`, which must exist; nothing in it is changed.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        match fs::metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(StoreError::Missing(path.to_owned())),
            Err(error) => {
                let (path, source) = (path.to_owned(), error.into());
                return Err(StoreError::Database { path, trouble: Trouble::CannotOpen, source });
            }
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

    async fn connect(path: &Path, options: SqliteConnectOptions) -> Result<Self, StoreError> {
        let mut connection = options.connect().await.map_err(|error| StoreError::sqlite(path, error))?;
        let version = query_scalar("SELECT max(version) FROM _sqlx_migrations").fetch_one(&mut connection).await;
        let version: i64 = version.map_err(|error| match StoreError::sqlite(path, error) {
            StoreError::Database { path, trouble: Trouble::Other, source } => {
                StoreError::Database { path, trouble: Trouble::NotADatabase, source }
            }
            error => error,
        })?;
        match MIGRATIONS.version_exists(version) {
            true => Ok(Self { path: path.to_owned(), connection }),
            false => Err(StoreError::Newer { path: path.to_owned(), version }),
        }
    }

    pub(super) async fn close(self) -> Result<(), sqlx::Error> {
        self.connection.close().await
    }

    fn error(&self) -> impl Fn(sqlx::Error) -> StoreError + use<> {
        let path = self.path.clone();
        move |error| StoreError::sqlite(&path, error)
    }
}

#[async_trait]
impl store::Reader for Reader {
    async fn readings(&mut self, at: Option<Moment>) -> Result<Vec<(Report<String>, Moment)>, StoreError> {
        let sql = format!(
            "SELECT {MESSAGE}
            FROM meter
            JOIN message ON message.meter = meter.id AND (at, n) =
                (SELECT at, n FROM message WHERE meter = meter.id AND at <= ? ORDER BY at DESC, n DESC LIMIT 1)
            JOIN layout ON layout.id = message.layout
            LEFT JOIN remark ON remark.id = message.remark
            ORDER BY meter.name"
        );
        let error = self.error();
        let query = query_as(sqlx::AssertSqlSafe(sql)).bind(at.map_or(i64::MAX, Moment::millis));
        let rows: Vec<MessageRow> = query.fetch_all(&mut self.connection).await.map_err(&error)?;
        let reports = rows.into_iter().map(|row| read_message(row).map(|stored| (stored.report, stored.received_at)));
        reports.collect::<Result<_, _>>().map_err(error)
    }

    async fn counts(&mut self) -> Result<Counts, StoreError> {
        let sql = "SELECT count(*), coalesce(sum(messages), 0), (SELECT count(*) FROM refused) FROM meter";
        let error = self.error();
        let counts = query_as(sql).fetch_one(&mut self.connection).await;
        let (meters, messages, refused): (i64, i64, i64) = counts.map_err(error)?;
        let [meters, messages, refused] = [meters, messages, refused].map(i64::unsigned_abs);
        Ok(Counts { meters, messages, refused })
    }

    async fn meters(&mut self) -> Result<Vec<Meter>, StoreError> {
        let sql = "SELECT id, name, medium, medium_code, protocol, gateway, predecessor, first_seen, last_seen
            FROM meter ORDER BY name";
        let error = self.error();
        let rows: Vec<(i64, String, String, i64, String, String, Option<String>, i64, i64)> =
            query_as(sql).fetch_all(&mut self.connection).await.map_err(&error)?;
        let meters =
            rows.into_iter().map(|(id, name, medium, code, protocol, gateway, predecessor, first_seen, last_seen)| {
                let medium =
                    medium_of(&medium, code).ok_or_else(|| unreadable(format!("the medium of {name} is unknown")))?;
                Ok(Meter { id, name, medium, protocol, gateway, predecessor, first_seen, last_seen })
            });
        meters.collect::<Result<_, _>>().map_err(error)
    }

    async fn series(&mut self, meter: &Meter) -> Result<Vec<Series>, StoreError> {
        let sql = "SELECT id, register, unit, scale FROM series WHERE meter = ? ORDER BY register, unit, scale";
        let error = self.error();
        let rows: Vec<(i64, String, String, u8)> =
            query_as(sql).bind(meter.id).fetch_all(&mut self.connection).await.map_err(&error)?;
        let series = rows.into_iter().map(|(id, register, unit, scale)| {
            let wrong = || unreadable(format!("series {id} is unknown: {register} in {unit}"));
            let (register, unit) =
                (Register::from_text(&register).ok_or_else(wrong)?, Unit::from_text(&unit).ok_or_else(wrong)?);
            Ok(Series { id, meter: meter.id, register, unit, scale })
        });
        series.collect::<Result<_, _>>().map_err(error)
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
        let quarters = rows.into_iter().map(|(quarter, late, value)| {
            let value = Decimal::new(value, series.scale)
                .ok_or_else(|| unreadable(format!("series {} is out of range", series.id)))?;
            Ok(Quarter { quarter, at: quarter.saturating_mul(900_000).saturating_add(late), value })
        });
        quarters.collect::<Result<_, _>>().map_err(error)
    }

    async fn messages(
        &mut self,
        meter: &Meter,
        span: Range<i64>,
        after: Option<(i64, i64)>,
        most: usize,
    ) -> Result<Vec<Stored>, StoreError> {
        let sql = format!(
            "SELECT {MESSAGE}
            FROM message
            JOIN meter ON meter.id = message.meter
            JOIN layout ON layout.id = message.layout
            LEFT JOIN remark ON remark.id = message.remark
            WHERE message.meter = ? AND at >= ? AND at < ? AND (at, n) > (?, ?)
            ORDER BY at, n LIMIT ?"
        );
        let (at, n) = after.unwrap_or((i64::MIN, 0));
        let error = self.error();
        let query = query_as(sqlx::AssertSqlSafe(sql)).bind(meter.id).bind(span.start).bind(span.end).bind(at).bind(n);
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let rows: Vec<MessageRow> = query.bind(most).fetch_all(&mut self.connection).await.map_err(&error)?;
        rows.into_iter().map(read_message).collect::<Result<_, _>>().map_err(error)
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

fn medium_of(name: &str, code: i64) -> Option<Medium> {
    Medium::from_name(name, u8::try_from(code).ok()?)
}

fn read_message(row: MessageRow) -> Result<Stored, sqlx::Error> {
    let (meter, medium, code, protocol, millis, n, offset, clock, received_at, spec, values, content) = row;
    let clock = usize::try_from(clock).ok().and_then(|code| CLOCKS.get(code));
    let (Some(medium), Some(clock), Some(at), Some(received_at)) =
        (medium_of(&medium, code), clock, Moment::from_millis(millis, offset), Moment::from_millis(received_at, 0))
    else {
        return Err(unreadable(format!("a message of {meter} is out of range")));
    };
    let values: Vec<i64> = serde_json::from_str(&values).map_err(unreadable)?;
    let readings = Layout::from_text(&spec).and_then(|layout| layout.join(&values)).map_err(unreadable)?;
    let mut report = Report {
        meter,
        medium,
        protocol: protocol.into(),
        measured_at: Some(at),
        clock: *clock,
        readings,
        info: Vec::new(),
        events: Vec::new(),
        unknown: Vec::new(),
    };
    if let Some(content) = content {
        layout::set_remark(&mut report, &content).map_err(unreadable)?;
    }
    Ok(Stored { key: (millis, n), report, received_at })
}
