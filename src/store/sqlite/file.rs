//! Which file a database is: whether the one behind a path is still the one that was opened.
//!
//! Enters: the path of a database. Leaves: which files stand there, now and when it was last opened, which the
//! lock beside it remembers; and whether a file may be opened at all. Nothing here changes a database.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read as _, Seek as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use sqlx::{ConnectOptions as _, Connection as _, query_scalar, sqlite::SqliteConnectOptions};

use super::log;
use crate::store::{StoreError, Trouble, unreadable};

/// Databases up to this size are checked whole before they are opened: some seconds on an SD card. In larger
/// ones damage is found when it is met.
const CHECKED: u64 = 64 * 1024 * 1024;

/// A file and its write-ahead log, each by number and birth: numbers alone are given again. Not by device, whose
/// number may change when the machine starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    database: Option<String>,
    log: Option<String>,
}

impl Identity {
    /// Of what stands at `path` now.
    pub(super) fn at(path: &Path) -> Self {
        let of = |path: &Path| {
            let metadata = fs::metadata(path).ok()?;
            let born = metadata.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
            Some(format!("{}:{}", metadata.ino(), born.unwrap_or_default().as_nanos()))
        };
        Self { database: of(path), log: of(&beside(path, "-wal")) }
    }

    /// What the lock remembers; None when nothing was opened yet.
    pub(super) fn read(lock: &mut File) -> Option<Self> {
        let mut text = String::new();
        lock.take(200).read_to_string(&mut text).ok()?;
        let mut names = text.split_whitespace().map(str::to_owned);
        Some(Self { database: Some(names.next()?), log: names.next() })
    }

    /// Has the lock remember this.
    pub(super) fn write(&self, lock: &mut File) -> std::io::Result<()> {
        let Self { database, log } = self;
        lock.rewind()?;
        lock.set_len(0)?;
        let text = format!("{} {}\n", database.as_deref().unwrap_or_default(), log.as_deref().unwrap_or_default());
        lock.write_all(text.as_bytes())
    }

    /// Whether the database is another file than it was, or none.
    pub(super) fn is_another(&self, before: &Self) -> bool {
        self.database != before.database
    }

    /// Whether there is a database.
    pub(super) fn exists(&self) -> bool {
        self.database.is_some()
    }

    /// Whether there is a write-ahead log, and it is still that of before.
    pub(super) fn has_log_of(&self, before: &Self) -> bool {
        self.log.is_some() && self.log == before.log
    }
}

/// The path with something behind its name.
pub(super) fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// Puts the write-ahead log of a database that is gone out of the way: SQLite would write it into the file that took
/// its place. It is kept under another name, because commits may stand in it alone.
pub(super) fn put_log_away(path: &Path) -> Result<(), StoreError> {
    let (log, kept) = (beside(path, "-wal"), beside(path, "-wal.old"));
    if fs::metadata(&log).is_ok_and(|metadata| metadata.len() > 0) {
        fs::rename(&log, &kept).map_err(|error| StoreError::io(path, error))?;
        tracing::warn!(
            "store: {} belonged to a database that is gone; it is kept as {}",
            log.display(),
            kept.display()
        );
    }
    // Rebuilt from the log whenever it is missing.
    match fs::remove_file(beside(path, "-shm")) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(StoreError::io(path, error)),
        _ => Ok(()),
    }
}

/// Whether what stands at `path` may be opened for writing: nothing, or a sound database. Looking changes nothing: the
/// remains of a damaged one must stay as they are for whoever rescues them.
pub(super) async fn examine(path: &Path) -> Result<(), StoreError> {
    let size = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
    let log_path = beside(path, "-wal");
    let (bytes, log_bytes) = (size(path), size(&log_path));
    let damaged = |trouble, what: &str| StoreError::Database {
        place: path.display().to_string(),
        trouble,
        source: what.to_owned().into(),
    };
    if log::is_damaged(&log_path).map_err(|error| StoreError::io(&log_path, error))? {
        return Err(damaged(Trouble::DamagedLog, "its checksums are wrong before its last transaction"));
    }
    match (bytes, log_bytes) {
        (0, 0) => return Ok(()),
        // SQLite would delete the log.
        (0, _) => return Err(damaged(Trouble::Corrupt, "it is empty, its write-ahead log is not")),
        _ if bytes.saturating_add(log_bytes) > CHECKED => return Ok(()),
        _ => {}
    }
    let options = SqliteConnectOptions::new().filename(path).read_only(true).disable_statement_logging();
    // Without a log there is no writer, and SQLite need not make files beside to share it.
    let options = options.immutable(log_bytes == 0);
    let check = async {
        let mut connection = options.connect().await?;
        let found: String = query_scalar("PRAGMA quick_check(1)").fetch_one(&mut connection).await?;
        connection.close().await?;
        if found == "ok" { Ok(()) } else { Err(unreadable(found)) }
    };
    match check.await {
        Err(sqlx::Error::Decode(found)) => Err(damaged(Trouble::Corrupt, &found.to_string())),
        result => result.map_err(|error| StoreError::sqlite(path, error)),
    }
}
