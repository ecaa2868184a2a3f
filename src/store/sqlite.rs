//! The store in a SQLite file: one writer, any number of readers.
//!
//! Enters: batches of [`Incoming`]. Leaves: rows (see `sqlite/0001_main.sql`), and for each gateway
//! what to acknowledge, once it is committed: a commit returns when it would survive a power cut.
//! Reports leave through [`Reader`] exactly as they entered. Instants are UTC.
//!
//! - `file`: which file it is, and whether it may be opened.
//! - `log`: whether its write-ahead log has lost commits.
//! - `tables`: the statements. `read`: rows become reports.
//! - `backup`: a copy, and a copy put back. `forget`: what is to leave it without a trace.
//!
//! Not supported: several writers on one file, which [`StoreError::Held`] refuses; instants finer than
//! a millisecond.

use std::{
    collections::BTreeSet,
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use sqlx::{
    ConnectOptions as _, Connection as _, SqliteConnection,
    migrate::{MigrateError, Migrator},
    query, query_as, query_scalar, raw_sql,
    sqlite::{SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use super::{
    Committed, Database, Incoming, Read, Reread, Size, StoreError, Trouble, draw, json, ledgers::EPOCHS, number,
    tables::Tables as _, unpruned::Unpruned, write,
};
use crate::delivery::EpochAck;

mod backup;
mod file;
mod forget;
mod log;
mod read;
mod seal;
mod tables;

#[cfg(test)]
mod plans;
#[cfg(test)]
mod tests;

use file::Identity;
use seal::Sealer;

pub use backup::{Contents, copy, restore};
pub use forget::Forgetter;
pub use read::Reader;

static MIGRATIONS: Migrator = sqlx::migrate!("src/store/sqlite");

/// Most messages that one step of upkeep deletes, so that commits never wait for long.
const RETAIN_ROWS: u64 = 5000;
/// After so long a step of upkeep begins nothing more.
const STEP: Duration = Duration::from_millis(100);

/// The writer. One process has it; it holds `<path>.lock` as long as it lives.
#[derive(Debug)]
pub struct Sqlite {
    path: PathBuf,
    connection: SqliteConnection,
    generation: String,
    started: String,
    /// Whether a transaction was begun and not ended: a call that was dropped half-way leaves it so.
    unfinished: bool,
    /// The files that were opened.
    identity: Identity,
    unpruned: Unpruned,
    sealer: Sealer,
    /// As it was at the last upkeep.
    bytes_a_day: Option<i64>,
    _lock: File,
}

impl Sqlite {
    /// Opens the database at `path`, creating it and its directory if missing.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let mut lock = lock(path)?;
        let (before, here) = (Identity::read(&mut lock), Identity::at(path));
        let another = before.as_ref().is_some_and(|before| here.is_another(before));
        if another && before.is_some_and(|before| here.has_log_of(&before)) {
            file::put_log_away(path)?;
        }
        file::examine(path).await?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .auto_vacuum(SqliteAutoVacuum::Incremental)
            .journal_mode(SqliteJournalMode::Wal)
            // An acknowledgement frees the gateway's journal, so a commit must survive a power cut.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            // What is deleted is overwritten where that needs no further page: see `forget`.
            .pragma("secure_delete", "FAST")
            // So that even then the daemon stops in time.
            .busy_timeout(Duration::from_secs(2))
            .disable_statement_logging();
        let mut connection = options.connect().await.map_err(|error| StoreError::sqlite(path, error))?;
        // `run` would make this future one that cannot move to another thread.
        MIGRATIONS.run_direct(None, &mut connection, false).await.map_err(|error| match error {
            MigrateError::VersionMissing(version) => StoreError::Newer { place: path.display().to_string(), version },
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => StoreError::sqlite(path, error),
            other => StoreError::sqlite(path, other.into()),
        })?;
        checkpoint(&mut connection).await.map_err(|error| StoreError::sqlite(path, error))?;
        // A file that took the place of the one that was open here, such as a backup, may lack what was acknowledged:
        // under a new generation the gateways send it again.
        let restored = another && here.exists();
        let generation =
            generation(&mut connection, restored).await.map_err(|error| StoreError::sqlite(path, error))?;
        let identity = Identity::at(path);
        identity.write(&mut lock).map_err(|error| StoreError::io(path, error))?;
        Ok(Self {
            path: path.to_owned(),
            connection,
            generation,
            started: draw(),
            unfinished: false,
            identity,
            unpruned: Unpruned::UNKNOWN,
            sealer: Sealer::default(),
            bytes_a_day: None,
            _lock: lock,
        })
    }

    /// The write-ahead log included.
    fn bytes(&self) -> u64 {
        let size = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
        size(&self.path).saturating_add(size(&file::beside(&self.path, "-wal")))
    }

    fn still_there(&self) -> Result<(), StoreError> {
        if Identity::at(&self.path) == self.identity { Ok(()) } else { Err(StoreError::Replaced(self.path.clone())) }
    }

    async fn prune_refused(&mut self, batch: &[Incoming]) -> Result<(), sqlx::Error> {
        if self.unpruned.is_due_with(batch) {
            tables::prune_refused(&mut self.connection).await?;
            self.unpruned = Unpruned::default();
        }
        Ok(())
    }

    async fn keep_up_begun(&mut self, keep: i64) -> Result<bool, sqlx::Error> {
        let begin = Instant::now();
        let deleted = delete_older(&mut self.connection, keep).await?;
        let ledgers = tables::delete_ancient(&mut self.connection, EPOCHS, number(RETAIN_ROWS)).await?;
        let mut more = deleted || ledgers >= RETAIN_ROWS;
        if !more {
            more = seal::seal(&mut self.connection, &mut self.sealer, begin + STEP).await?;
        }
        let bytes = self.bytes();
        self.bytes_a_day = note_size(&mut self.connection, bytes).await?;
        Ok(more)
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
        result.map_err(|error| StoreError::sqlite(&self.path, error))
    }
}

#[async_trait]
impl Database for Sqlite {
    fn generation(&self) -> &str {
        &self.generation
    }

    fn started(&self) -> &str {
        &self.started
    }

    fn size(&self) -> Size {
        Size { bytes: self.bytes(), bytes_a_day: self.bytes_a_day }
    }

    async fn gateways(&mut self) -> Result<Vec<String>, StoreError> {
        let result = tables::gateways(&mut self.connection).await;
        result.map_err(|error| StoreError::sqlite(&self.path, error))
    }

    async fn epochs(&mut self, gateway: &str) -> Result<Vec<EpochAck>, StoreError> {
        let result = self.connection.newest_ledgers(&[gateway], EPOCHS).await;
        let mut ledgers = result.map_err(|error| StoreError::sqlite(&self.path, error))?;
        Ok(ledgers.pop().map(|(_, epochs)| epochs).unwrap_or_default())
    }

    async fn reread(&mut self, schema: u32, read: &Read<'_>) -> Result<Reread, StoreError> {
        let result = match self.begin().await {
            Ok(()) => write::reread(&mut self.connection, schema, read).await,
            Err(error) => Err(error),
        };
        self.end(result).await
    }

    async fn commit(&mut self, batch: &[Incoming]) -> Result<Committed, StoreError> {
        if batch.is_empty() {
            return Ok(Committed::default());
        }
        self.still_there()?;
        let result = match self.begin().await {
            Ok(()) => write::write(&mut self.connection, batch).await,
            Err(error) => Err(error),
        };
        let result = match result {
            Ok(committed) => self.prune_refused(batch).await.map(|()| committed),
            error => error,
        };
        let result = self.end(result).await;
        if result.is_err() {
            self.unpruned = Unpruned::UNKNOWN;
        }
        let committed = result?;
        // What was written to a file that nobody finds any more is not acknowledged.
        self.still_there()?;
        Ok(committed)
    }

    /// Finished hours become blocks. What goes: of each kind at most 5,000 rows at once; then up to 4 MB go back to the file system,
    /// if much is free.
    async fn keep_up(&mut self, retention: Duration) -> Result<bool, StoreError> {
        // 30,000 years, far from where SQLite would turn a difference into floating point.
        let keep = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX).min(1_000_000_000_000_000);
        let result = match self.begin().await {
            Ok(()) => self.keep_up_begun(keep).await,
            Err(error) => Err(error),
        };
        let more = self.end(result).await?;
        let free = shrink(&mut self.connection).await.map_err(|error| StoreError::sqlite(&self.path, error))?;
        Ok(more || free)
    }

    async fn abandon(self: Box<Self>) {
        // The last who closes it moves the log into the file, unless that one may not write.
        let reader = Reader::open(&self.path).await;
        let _ = self.connection.close().await;
        if let Ok(reader) = reader {
            let _ = reader.close().await;
        }
    }

    /// Moves the write-ahead log into the file, so that it can be copied alone.
    async fn close(self: Box<Self>) -> Result<(), StoreError> {
        self.connection.close().await.map_err(|error| StoreError::sqlite(&self.path, error))
    }
}

/// Whether tables of this version are those that this program asks.
fn check_version(path: &Path, version: i64) -> Result<(), StoreError> {
    let place = path.display().to_string();
    match MIGRATIONS.iter().map(|migration| migration.version).max() {
        Some(known) if known == version => Ok(()),
        Some(known) if known > version => {
            let source = "its tables are of an older version; a daemon of this version brings them up to date when it opens it: start it anew";
            Err(StoreError::Database { place, trouble: Trouble::Other, source: source.into() })
        }
        _ => Err(StoreError::Newer { place, version }),
    }
}

/// Whether a process writes this database now.
pub fn is_held(path: &Path) -> bool {
    path.exists() && matches!(lock(path), Err(StoreError::Held(_)))
}

fn lock(path: &Path) -> Result<File, StoreError> {
    if path.is_dir() {
        return Err(StoreError::Directory(path.to_owned()));
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|error| StoreError::io(path, error))?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let options = File::options().create(true).truncate(false).read(true).write(true).open(name);
    let file = options.map_err(|error| StoreError::io(path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Held(path.to_owned())),
        Err(TryLockError::Error(error)) => Err(StoreError::io(path, error)),
    }
}

/// Moves what a killed writer left in the log into the file. It may hold commits whose sync failed; those are only in
/// the system's memory, where a sync of the log would not write them again.
/// What a reader of an older state holds back now is moved later.
async fn checkpoint(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let sql = "PRAGMA wal_checkpoint(PASSIVE)";
    let (_, frames, moved): (i64, i64, i64) = query_as(sql).fetch_one(&mut *connection).await?;
    if frames == moved { Ok(()) } else { raw_sql("PRAGMA wal_checkpoint(FULL)").execute(connection).await.map(drop) }
}

/// Reads the generation; draws one if there is none, or if it is to be `anew`.
async fn generation(connection: &mut SqliteConnection, anew: bool) -> Result<String, sqlx::Error> {
    let keep = if anew { "REPLACE" } else { "IGNORE" };
    query(sqlx::AssertSqlSafe(format!("INSERT OR {keep} INTO store VALUES (1, ?, unixepoch() * 1000)")))
        .bind(draw())
        .execute(&mut *connection)
        .await?;
    query_scalar("SELECT generation FROM store").fetch_one(connection).await
}

/// Deletes messages more than `keep` ms before their meter's newest, and the remarks that only they had. Returns whether there are more.
async fn delete_older(connection: &mut SqliteConnection, keep: i64) -> Result<bool, sqlx::Error> {
    // A meter's clock that ran ahead once must not make everything before look old: an instant more
    // than a day after its reception is not taken as the newest.
    let meters: Vec<i64> = query_scalar("SELECT id FROM meter").fetch_all(&mut *connection).await?;
    let mut left = RETAIN_ROWS;
    for meter in meters {
        let before = newest(connection, meter).await?.saturating_sub(keep);
        let sql = "DELETE FROM message WHERE meter = ?1 AND (at, n) IN
            (SELECT at, n FROM message WHERE meter = ?1 AND at < ?2 ORDER BY at, n LIMIT ?3) RETURNING remark";
        let remarks: Vec<Option<i64>> =
            query_scalar(sql).bind(meter).bind(before).bind(number(left)).fetch_all(&mut *connection).await?;
        left = left.saturating_sub(u64::try_from(remarks.len()).unwrap_or(u64::MAX));
        let mut remarks: BTreeSet<i64> = remarks.into_iter().flatten().collect();
        while left > 0
            && let Some(more) = seal::delete_older(connection, meter, before).await?
        {
            remarks.extend(more);
            left = left.saturating_sub(100);
        }
        // Only those that no message has which is kept: these begin with the oldest of either kind.
        let sql = "DELETE FROM remark WHERE id IN (SELECT value FROM json_each(?2)) AND last_at < min(
            coalesce((SELECT min(at) FROM message WHERE meter = ?1), 9223372036854775807),
            coalesce((SELECT min(from_at) FROM sealed WHERE meter = ?1), 9223372036854775807))";
        query(sql).bind(meter).bind(json(&remarks)).execute(&mut *connection).await?;
        if left == 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// When a meter's newest message was measured. A clock that ran ahead once must not make everything else look old: an instant
/// more than a day after its reception is not taken; of a clock that stays ahead the newest reception is.
async fn newest(connection: &mut SqliteConnection, meter: i64) -> Result<i64, sqlx::Error> {
    let sql = "SELECT coalesce(
        (SELECT max(at) FROM (SELECT at, received_at FROM message WHERE meter = ?1 ORDER BY at DESC, n DESC LIMIT 1000)
            WHERE at <= received_at + 86400000),
        (SELECT last_seen FROM meter WHERE id = ?1))";
    query_scalar(sql).bind(meter).fetch_one(connection).await
}

/// Notes how large the database is today. Returns how much it grew in a day since the oldest note of up to 30 days ago.
async fn note_size(connection: &mut SqliteConnection, bytes: u64) -> Result<Option<i64>, sqlx::Error> {
    // Not for each page: the note itself is a write.
    let sql = "INSERT INTO size VALUES (unixepoch() / 86400, ?) ON CONFLICT (day) DO UPDATE SET bytes = excluded.bytes
        WHERE abs(excluded.bytes - size.bytes) > 1000000";
    query(sql).bind(number(bytes)).execute(&mut *connection).await?;
    let sql = "SELECT (? - bytes) / (unixepoch() / 86400 - day) FROM size
        WHERE day BETWEEN unixepoch() / 86400 - 30 AND unixepoch() / 86400 - 1 ORDER BY day LIMIT 1";
    query_scalar(sql).bind(number(bytes)).fetch_optional(connection).await
}

/// Gives up to 4 MB of free pages back when they are more than an eighth of the file. Fewer are left: new messages
/// fill them, and moving pages about wears an SD card. Returns whether there are more.
async fn shrink(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    let sql = "SELECT freelist_count, page_count FROM pragma_freelist_count, pragma_page_count";
    let (free, pages): (i64, i64) = query_as(sql).fetch_one(&mut *connection).await?;
    if free <= pages / 8 {
        return Ok(false);
    }
    raw_sql("PRAGMA incremental_vacuum(1000)").execute(connection).await?;
    Ok(free > 1000)
}
