//! A database becomes a copy, and a copy the database.
//!
//! Enters: paths. Leaves: a file that is complete and sound, in which nothing is free. A copy is made while a daemon writes: it
//! is of one moment. What is put back is a new generation, so that the gateways send what they still hold.

use std::{
    fs::{self, File},
    io::ErrorKind,
    os::unix::fs::{MetadataExt as _, chown, fchown},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use sqlx::{ConnectOptions as _, Connection as _, query, query_as, raw_sql, sqlite::SqliteConnectOptions};

use super::{Reader, file::beside, is_held, lock};
use crate::{
    moment::Moment,
    store::{StoreError, Trouble},
};

/// What a copy holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contents {
    /// Meters ever heard.
    pub meters: u64,
    /// Messages.
    pub messages: u64,
    /// When the newest message was received, UTC; None without any.
    pub newest: Option<Moment>,
}

/// Copies the database at `path` into the file `to`, which is empty or not there yet, and checks the copy. It is not synced.
///
/// # Errors
///
/// There is no database of ours, or it cannot be read, or `to` not written.
pub async fn copy(path: &Path, to: &Path) -> Result<Contents, StoreError> {
    let mut reader = Reader::open(path).await?;
    reader.copy(to).await?;
    let mut copy = Reader::open(to).await?;
    copy.check().await?;
    copy.contents().await
}

/// Puts a copy in the place of the database at `path`. What stood there is kept beside it: its name is returned. It is checked first,
/// and nothing is moved before a sound copy lies beside the database.
///
/// # Errors
///
/// A daemon holds the database; the backup is none of ours, is damaged, or was written by a newer meterkast.
pub async fn restore(path: &Path, backup: &Path) -> Result<(Contents, Option<PathBuf>), StoreError> {
    if is_held(path) {
        return Err(StoreError::Held(path.to_owned()));
    }
    let mut source = Reader::open(backup).await?;
    source.check().await?;
    let contents = source.contents().await?;
    // Made now only: once there is a lock it stays, since somebody else may wait with it open.
    let lock = lock(path)?;
    let part = beside(path, ".restoring");
    let of_part = |error| StoreError::io(&part, error);
    for end in ["", "-journal"] {
        remove(&beside(&part, end)).map_err(of_part)?;
    }
    source.copy(&part).await?;
    let anew = async {
        let mut connection = SqliteConnectOptions::new().filename(&part).disable_statement_logging().connect().await?;
        raw_sql("DELETE FROM store").execute(&mut connection).await?;
        connection.close().await
    };
    anew.await.map_err(|error| StoreError::sqlite(&part, error))?;
    // Whoever restores is often root, and the daemon is not.
    if let Some(like) = fs::metadata(path).ok().or_else(|| fs::metadata(path.parent()?).ok()) {
        // Only root may do that, and only root needs to.
        let _ = chown(&part, Some(like.uid()), Some(like.gid()));
        let _ = fchown(&lock, Some(like.uid()), Some(like.gid()));
        if like.is_file() {
            fs::set_permissions(&part, like.permissions()).map_err(of_part)?;
        }
    }
    File::open(&part).and_then(|file| file.sync_all()).map_err(of_part)?;
    let kept = keep(path).map_err(|error| StoreError::io(path, error))?;
    fs::rename(&part, path).map_err(|error| StoreError::io(path, error))?;
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| StoreError::io(path, error))?;
    }
    Ok((contents, kept))
}

/// Moves what stands at `path` aside, with its write-ahead log: commits may stand in that alone.
fn keep(path: &Path) -> std::io::Result<Option<PathBuf>> {
    let end = Timestamp::now().strftime(".before-%Y%m%dT%H%M%S%3fZ").to_string();
    let kept = beside(path, &end);
    let moved = match fs::rename(path, &kept) {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        moved => Some(moved.map(|()| kept.clone())?),
    };
    match fs::rename(beside(path, "-wal"), beside(&kept, "-wal")) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Rebuilt from the log whenever it is missing.
    remove(&beside(path, "-shm"))?;
    Ok(moved)
}

fn remove(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl Reader {
    /// Into a file that is empty or not there.
    async fn copy(&mut self, to: &Path) -> Result<(), StoreError> {
        let Some(name) = to.to_str() else {
            let source = "its name is not UTF-8".into();
            return Err(StoreError::Database { place: to.display().to_string(), trouble: Trouble::CannotOpen, source });
        };
        let copied = query("VACUUM INTO ?").bind(name).execute(&mut self.connection).await;
        copied.map(drop).map_err(|error| match StoreError::sqlite(to, error) {
            // What cannot be read is the source.
            StoreError::Database { trouble: Trouble::Corrupt | Trouble::NotADatabase, source, .. } => {
                StoreError::Database { place: self.path.display().to_string(), trouble: Trouble::Corrupt, source }
            }
            error => error,
        })
    }

    /// Whether SQLite finds it sound.
    async fn check(&mut self) -> Result<(), StoreError> {
        let found = sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&mut self.connection).await;
        let found: String = found.map_err(|error| StoreError::sqlite(&self.path, error))?;
        match found.as_str() {
            "ok" => Ok(()),
            _ => Err(StoreError::Database {
                place: self.path.display().to_string(),
                trouble: Trouble::Corrupt,
                source: found.into(),
            }),
        }
    }

    /// By columns that the first version of the tables had, too.
    async fn contents(&mut self) -> Result<Contents, StoreError> {
        let sql = "SELECT count(*), coalesce(sum(messages), 0), max(last_seen) FROM meter";
        let found = query_as(sql).fetch_one(&mut self.connection).await;
        let (meters, messages, newest): (i64, i64, Option<i64>) =
            found.map_err(|error| StoreError::sqlite(&self.path, error))?;
        let newest = newest.and_then(|newest| Moment::from_millis(newest, 0));
        Ok(Contents { meters: meters.unsigned_abs(), messages: messages.unsigned_abs(), newest })
    }
}
