//! Reading the database, whether its daemon runs or not.
//!
//! Enters: an instant. Leaves: reports as they were stored.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use sqlx::{
    ConnectOptions as _, Connection as _, SqliteConnection, query_as, query_scalar, sqlite::SqliteConnectOptions,
};

use super::{CLOCKS, MIGRATIONS, StoreError, Trouble, unreadable};
use crate::{
    layout::{self, Layout},
    moment::Moment,
    reading::{Medium, Report},
};

/// What a store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Meters ever heard.
    pub meters: u64,
    /// Messages kept.
    pub messages: u64,
    /// Refused messages kept.
    pub refused: u64,
}

/// Reads a database, whether its daemon runs or not.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    connection: SqliteConnection,
}

/// A row of [`Reader::readings`].
type MessageRow = (String, String, i64, String, i64, i32, i64, i64, String, String, Option<String>);

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
        let mut connection = options.connect().await.map_err(|error| StoreError::sql(path, error))?;
        let version = query_scalar("SELECT max(version) FROM _sqlx_migrations").fetch_one(&mut connection).await;
        let version: i64 = version.map_err(|error| match StoreError::sql(path, error) {
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

    /// For every meter, in the order of their names, its newest report measured at or before `at` (of
    /// all when None), and when that was received (UTC). Of several at one instant the last stored.
    /// Medium and protocol are what the meter said last.
    pub async fn readings(&mut self, at: Option<Moment>) -> Result<Vec<(Report<String>, Moment)>, StoreError> {
        let sql = r#"
            SELECT
                meter.name, medium, medium_code, protocol, at, utc_offset, clock, received_at, spec, "values", content
            FROM meter
            JOIN message ON message.meter = meter.id AND (at, n) =
                (SELECT at, n FROM message WHERE meter = meter.id AND at <= ? ORDER BY at DESC, n DESC LIMIT 1)
            JOIN layout ON layout.id = message.layout
            LEFT JOIN remark ON remark.id = message.remark
            ORDER BY meter.name"#;
        let query = query_as(sql).bind(at.map_or(i64::MAX, Moment::millis));
        let rows = query.fetch_all(&mut self.connection).await;
        let reports = rows.and_then(|rows| rows.into_iter().map(read_message).collect::<Result<_, _>>());
        reports.map_err(|error| StoreError::sql(&self.path, error))
    }

    pub(super) async fn close(self) -> Result<(), sqlx::Error> {
        self.connection.close().await
    }

    /// How much it holds.
    pub async fn counts(&mut self) -> Result<Counts, StoreError> {
        let sql = "SELECT count(*), coalesce(sum(messages), 0), (SELECT count(*) FROM refused) FROM meter";
        let counts = query_as(sql).fetch_one(&mut self.connection).await;
        let (meters, messages, refused): (i64, i64, i64) =
            counts.map_err(|error| StoreError::sql(&self.path, error))?;
        let [meters, messages, refused] = [meters, messages, refused].map(i64::unsigned_abs);
        Ok(Counts { meters, messages, refused })
    }
}

fn read_message(row: MessageRow) -> Result<(Report<String>, Moment), sqlx::Error> {
    let (meter, medium, code, protocol, at, offset, clock, received_at, spec, values, content) = row;
    let medium = u8::try_from(code).ok().and_then(|code| Medium::from_name(&medium, code));
    let clock = usize::try_from(clock).ok().and_then(|code| CLOCKS.get(code));
    let (Some(medium), Some(clock), Some(at), Some(received_at)) =
        (medium, clock, Moment::from_millis(at, offset), Moment::from_millis(received_at, 0))
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
    Ok((report, received_at))
}
