//! The store in a SQLite file: one writer, any number of readers.
//!
//! Enters: batches of [`Incoming`]. Leaves: rows (see `sqlite/0001_main.sql`), and for each gateway
//! what to acknowledge, once it is committed: a commit returns when it would survive a power cut.
//! Reports leave through [`Reader`] exactly as they entered. Instants are UTC.
//!
//! Each error says what is wrong with the file and what helps; after an error nothing of the batch is
//! written, and giving the same batch again does the right thing.
//!
//! Not supported: several writers on one file, which [`StoreError::Held`] refuses; instants finer than
//! a millisecond.

use std::{
    collections::BTreeSet,
    error::Error,
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    time::Duration,
};

use sqlx::{
    ConnectOptions as _, Connection as _, SqliteConnection,
    migrate::{MigrateError, Migrator},
    query, query_as, query_scalar, raw_sql,
    sqlite::{SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use crate::{
    delivery::EpochAck,
    moment::Moment,
    payload::{Envelope, Message},
    reading::Clock,
};

mod error;
mod ledgers;
mod read;
mod write;

#[cfg(test)]
mod tests;

pub use error::{StoreError, Trouble};
pub use read::{Counts, Reader};

static MIGRATIONS: Migrator = sqlx::migrate!("src/store/sqlite");

/// Rows a statement: 10 columns of them stay below SQLite's 32,766 parameters.
const CHUNK: usize = 1000;
/// Most messages that one [`Sqlite::retain`] deletes, so that commits never wait for long.
pub const RETAIN_ROWS: u64 = 5000;
/// Column `clock` is the place in this list.
const CLOCKS: [Clock; 4] = [Clock::Meter, Clock::Telegram, Clock::Gateway, Clock::Unsynchronised];

/// What arrived from a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// A message that could be read.
    Message(Message),
    /// One that could not; kept as it came, and delivered as far as its gateway is concerned.
    Refused {
        /// The MQTT topic.
        topic: String,
        /// The payload.
        payload: Vec<u8>,
        /// Why it is refused.
        reason: String,
        /// The payload's schema, 0 when unknown.
        schema: u32,
        /// Its numbers; None when not even these could be read.
        envelope: Option<Envelope>,
        /// When the store received it, UTC.
        received_at: Moment,
    },
}

/// What became of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Committed {
    /// Messages written.
    pub stored: u64,
    /// Messages whose meter, instant and readings were there already.
    pub repeated: u64,
    /// Messages whose number had arrived before: nothing was written.
    pub again: u64,
    /// Messages kept as refused.
    pub refused: u64,
    /// What to acknowledge: each gateway of the batch in sorted order, with its most recently touched
    /// epochs (at most 32), the latest first.
    pub acks: Vec<(String, Vec<EpochAck>)>,
}

impl Incoming {
    fn envelope(&self) -> Option<&Envelope> {
        match self {
            Self::Message(message) => Some(&message.envelope),
            Self::Refused { envelope, .. } => envelope.as_ref(),
        }
    }
}

/// The writer. One process has it; it holds `<path>.lock` as long as it lives.
#[derive(Debug)]
pub struct Sqlite {
    path: PathBuf,
    connection: SqliteConnection,
    generation: String,
    /// Whether a transaction was begun and not ended: a call that was dropped half-way leaves it so.
    unfinished: bool,
    _lock: File,
}

impl Sqlite {
    /// Opens the database at `path`, creating it and its directory if missing.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let lock = lock(path)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .auto_vacuum(SqliteAutoVacuum::Incremental)
            .journal_mode(SqliteJournalMode::Wal)
            // An acknowledgement frees the gateway's journal, so a commit must survive a power cut.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(5))
            .disable_statement_logging();
        let mut connection = options.connect().await.map_err(|error| StoreError::sql(path, error))?;
        // `run` would make this future one that cannot move to another thread.
        MIGRATIONS.run_direct(None, &mut connection, false).await.map_err(|error| match error {
            MigrateError::VersionMissing(version) => StoreError::Newer { path: path.to_owned(), version },
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => StoreError::sql(path, error),
            other => StoreError::sql(path, other.into()),
        })?;
        let generation = generation(&mut connection).await.map_err(|error| StoreError::sql(path, error))?;
        Ok(Self { path: path.to_owned(), connection, generation, unfinished: false, _lock: lock })
    }

    /// 128 random bits in hex, drawn when the database was made.
    pub fn generation(&self) -> &str {
        &self.generation
    }

    /// What to acknowledge to every gateway after a reconnect, as in [`Committed::acks`].
    pub async fn ledgers(&mut self) -> Result<Vec<(String, Vec<EpochAck>)>, StoreError> {
        let result = ledgers::newest_ledgers(&mut self.connection, None).await;
        result.map_err(|error| StoreError::sql(&self.path, error))
    }

    /// Writes a batch, all of it or nothing. On an error the same batch can be given again.
    pub async fn commit(&mut self, batch: &[Incoming]) -> Result<Committed, StoreError> {
        if batch.is_empty() {
            return Ok(Committed::default());
        }
        let result = match self.begin().await {
            Ok(()) => write::write(&mut self.connection, batch).await,
            Err(error) => Err(error),
        };
        self.end(result).await
    }

    /// Deletes the oldest messages of each meter that are older than `keep`, counted back from that
    /// meter's newest message; quarter-hours stay. Returns how many, at most [`RETAIN_ROWS`]: call it
    /// again until it returns 0. Then gives up to 4 MB back to the file system, if much is free.
    pub async fn retain(&mut self, keep: Duration) -> Result<u64, StoreError> {
        // 30,000 years, far from where SQLite would turn a difference into floating point.
        let keep = i64::try_from(keep.as_millis()).unwrap_or(i64::MAX).min(1_000_000_000_000_000);
        let result = match self.begin().await {
            Ok(()) => delete_older(&mut self.connection, keep).await,
            Err(error) => Err(error),
        };
        let deleted = self.end(result).await?;
        shrink(&mut self.connection).await.map_err(|error| StoreError::sql(&self.path, error))?;
        Ok(deleted)
    }

    /// Closes the database: moves the write-ahead log into the file, so that it can be copied alone.
    /// Without it nothing is lost either.
    pub async fn close(self) -> Result<(), StoreError> {
        self.connection.close().await.map_err(|error| StoreError::sql(&self.path, error))
    }

    // Transactions are begun and ended by plain statements: when SQLite rolls back by itself (disk full,
    // IO error) sqlx's own guard fails to roll back and counts the transaction as open for ever.
    async fn begin(&mut self) -> Result<(), sqlx::Error> {
        if self.unfinished {
            let _ = raw_sql("ROLLBACK").execute(&mut self.connection).await;
        }
        self.unfinished = true;
        raw_sql("BEGIN IMMEDIATE").execute(&mut self.connection).await.map(drop)
    }

    async fn end<T>(&mut self, result: Result<T, sqlx::Error>) -> Result<T, StoreError> {
        let result = match result {
            Ok(value) => raw_sql("COMMIT").execute(&mut self.connection).await.map(|_| value),
            Err(error) => Err(error),
        };
        if result.is_err() {
            // Fails when SQLite has rolled back already, which is as well.
            let _ = raw_sql("ROLLBACK").execute(&mut self.connection).await;
        }
        self.unfinished = false;
        result.map_err(|error| StoreError::sql(&self.path, error))
    }
}

fn lock(path: &Path) -> Result<File, StoreError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|error| StoreError::io(path, error))?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let options = File::options().create(true).truncate(false).write(true).open(name);
    let file = options.map_err(|error| StoreError::io(path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Held(path.to_owned())),
        Err(TryLockError::Error(error)) => Err(StoreError::io(path, error)),
    }
}

/// Reads the generation, or draws one.
async fn generation(connection: &mut SqliteConnection) -> Result<String, sqlx::Error> {
    let mut bits = [0; 16];
    getrandom::fill(&mut bits).map_err(|error| sqlx::Error::Configuration(error.to_string().into()))?;
    query("INSERT OR IGNORE INTO store VALUES (1, ?, unixepoch() * 1000)")
        .bind(format!("{:032x}", u128::from_be_bytes(bits)))
        .execute(&mut *connection)
        .await?;
    query_scalar("SELECT generation FROM store").fetch_one(connection).await
}

/// Deletes messages more than `keep` ms before their meter's newest, and the remarks that only they had.
async fn delete_older(connection: &mut SqliteConnection, keep: i64) -> Result<u64, sqlx::Error> {
    // A meter's clock that ran ahead once must not make everything before look old: an instant more
    // than a day after its reception is not taken as the newest.
    let sql = "DELETE FROM message WHERE (meter, at, n) IN (
        SELECT old.meter, old.at, old.n
        FROM (
            SELECT id, (
                SELECT at FROM message AS new
                WHERE new.meter = meter.id AND new.at <= new.received_at + 86400000 ORDER BY at DESC LIMIT 1
            ) AS newest FROM meter
        ) AS latest
        CROSS JOIN message AS old ON old.meter = latest.id AND old.at < latest.newest - ?
        LIMIT ?)
        RETURNING remark";
    let remarks: Vec<Option<i64>> =
        query_scalar(sql).bind(keep).bind(number(RETAIN_ROWS)).fetch_all(&mut *connection).await?;
    let sql = "DELETE FROM remark WHERE id IN (SELECT value FROM json_each(?))
        AND last_at < (SELECT min(at) FROM message WHERE message.meter = remark.meter)";
    query(sql).bind(json(&remarks.iter().flatten().collect::<BTreeSet<_>>())).execute(connection).await?;
    Ok(u64::try_from(remarks.len()).unwrap_or(u64::MAX))
}

/// Gives free pages back when they are more than an eighth of the file. Fewer are left: new messages
/// fill them, and moving pages about wears an SD card.
async fn shrink(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let sql = "SELECT freelist_count, page_count FROM pragma_freelist_count, pragma_page_count";
    let (free, pages): (i64, i64) = query_as(sql).fetch_one(&mut *connection).await?;
    if free > pages / 8 {
        raw_sql("PRAGMA incremental_vacuum(1000)").execute(connection).await?;
    }
    Ok(())
}

/// A row that this program did not write.
fn unreadable(error: impl Into<Box<dyn Error + Send + Sync>>) -> sqlx::Error {
    sqlx::Error::Decode(error.into())
}

/// A number as a column. Numbers beyond an i64 come from no real gateway; cut, they stay unconfirmed.
fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The place of a clock in [`CLOCKS`].
fn clock_code(clock: Clock) -> i64 {
    CLOCKS.iter().zip(0..).find(|&(&entry, _)| entry == clock).map_or(3, |(_, code)| code)
}

/// Integers and strings always serialise.
fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
