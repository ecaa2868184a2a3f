//! What can be wrong with a database, and what helps.
//!
//! Enters: an error of SQLite or of the system. Leaves: a [`StoreError`], whose text ends with the remedy.

use std::{
    error::Error,
    io::ErrorKind,
    path::{Path, PathBuf},
};

/// Why the store cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process writes this database.
    #[error("{}: another process writes this database; stop it, or give this one another `store.url`", .0.display())]
    Held(PathBuf),
    /// There is no database.
    #[error("{}: there is no database here; check `store.url`, or start the daemon, which creates it", .0.display())]
    Missing(PathBuf),
    /// Its tables are newer than this program.
    #[error("{}: written by a newer meterkast (tables of version {version}); upgrade this one", path.display())]
    Newer {
        /// The database.
        path: PathBuf,
        /// The version of its tables that is not known here.
        version: i64,
    },
    /// What stands at its path is not what was opened.
    #[error("{}: the file was replaced or deleted while it was in use", .0.display())]
    Replaced(PathBuf),
    /// The file, the disk or SQLite.
    #[error("{}: {trouble}{}", path.display(), if *.trouble == Trouble::Other { format!(": {source}") } else { String::new() })]
    Database {
        /// The database.
        path: PathBuf,
        /// What it is, and what helps.
        trouble: Trouble,
        /// As SQLite or the system said it.
        source: Box<dyn Error + Send + Sync>,
    },
}

/// What is wrong with a database; its text ends with the remedy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// No permission to write.
    #[error("the file or its directory is read-only; let the daemon's user write to both, or remount the disk")]
    ReadOnly,
    /// No file that can be opened, or no permission to read it.
    #[error("cannot be opened; `store.url` must name a file, not a directory, that the daemon's user may open")]
    CannotOpen,
    /// Some other file.
    #[error("is not a meterkast database; check `store.url`, or move the file away and a new one is made")]
    NotADatabase,
    /// Damaged content.
    #[error(
        "is damaged; move it aside together with its -wal, or put a backup in its place: the gateways send again what they hold (`sqlite3 FILE .recover` reads what can be read of the damaged one)"
    )]
    Corrupt,
    /// Damaged write-ahead log.
    #[error(
        "its write-ahead log (the file ending in -wal) is damaged, and commits are lost in it; move both aside, or put a backup in their place: the gateways send again what they hold"
    )]
    DamagedLog,
    /// No space.
    #[error("the disk is full; free space, then shorten `store.retention`; the gateways keep what is not confirmed")]
    Full,
    /// Locked by another program.
    #[error("another program keeps it locked; end the program that has a transaction open in it")]
    Busy,
    /// The disk fails.
    #[error("the disk does not read or write; look for its errors with `dmesg`, and replace the SD card")]
    Io,
    /// Anything else.
    #[error("the database answers with an error")]
    Other,
}

impl StoreError {
    /// Whether the same call may succeed later without a restart.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Database { trouble: Trouble::Full | Trouble::Busy | Trouble::Io, .. } | Self::Replaced(_))
    }

    /// Whether the database must be opened anew before anything else is asked of it.
    pub fn needs_reopening(&self) -> bool {
        !matches!(self, Self::Database { trouble: Trouble::Full | Trouble::Busy | Trouble::Io | Trouble::ReadOnly, .. })
    }

    pub(super) fn io(path: &Path, error: std::io::Error) -> Self {
        let trouble = match error.kind() {
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Trouble::ReadOnly,
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Trouble::Full,
            ErrorKind::NotADirectory | ErrorKind::IsADirectory | ErrorKind::AlreadyExists => Trouble::CannotOpen,
            _ => Trouble::Io,
        };
        Self::Database { path: path.to_owned(), trouble, source: error.into() }
    }

    pub(super) fn sqlite(path: &Path, error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(|error| error.code()?.parse().ok()).unwrap_or(0i32);
        // The lower byte of SQLite's extended result code is the primary one.
        let trouble = match code & 0xff {
            5 | 6 => Trouble::Busy,
            8 => Trouble::ReadOnly,
            10 => Trouble::Io,
            11 => Trouble::Corrupt,
            13 => Trouble::Full,
            14 => Trouble::CannotOpen,
            26 => Trouble::NotADatabase,
            _ => Trouble::Other,
        };
        Self::Database { path: path.to_owned(), trouble, source: error.into() }
    }
}
