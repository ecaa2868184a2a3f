//! What can be wrong with a database, and what helps.
//!
//! Enters: an error of SQLite, of a PostgreSQL server or of the system. Leaves: a [`StoreError`], whose text ends with the remedy,
//! and never holds a password.

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
    /// What stands there is a directory.
    #[error("{}: is a directory; name a file, such as {}", .0.display(), .0.join("meterkast.db").display())]
    Directory(PathBuf),
    /// Its tables are newer than this program.
    #[error("{place}: written by a newer meterkast (tables of version {version}); upgrade this one")]
    Newer {
        /// The database: its path, or its URL without a password.
        place: String,
        /// The version of its tables that is not known here.
        version: i64,
    },
    /// What stands at its path is not what was opened.
    #[error("{}: the file was replaced or deleted while it was in use", .0.display())]
    Replaced(PathBuf),
    /// The file, the disk or SQLite; the server, or the way to it.
    #[error("{place}: {trouble}{}", if .trouble.says_little() { format!(": {source}") } else { String::new() })]
    Database {
        /// The database: its path, or its URL without a password.
        place: String,
        /// What it is, and what helps.
        trouble: Trouble,
        /// As SQLite, the server or the system said it.
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
    #[error("the disk is full; free space, then shorten `store.retention`")]
    Full,
    /// Locked by another program.
    #[error("another program keeps it locked; end the program that has a transaction open in it")]
    Busy,
    /// The disk fails.
    #[error("the disk does not read or write; look for its errors with `dmesg`, and replace the SD card")]
    Io,
    /// Nobody answers, or the server went away.
    #[error("the server cannot be reached; is it running, and does `store.url` name its host and port?")]
    Unreachable,
    /// Its host is unknown, or there is no way to it.
    #[error("there is no way to the server; check the host in `store.url`, and the network")]
    NoWay,
    /// The server did not answer in time.
    #[error("the server does not answer in time; look at what it does in pg_stat_activity, and at the network between")]
    Slow,
    /// TLS failed, or is asked for and not there.
    #[error(
        "no secure connection; look at `sslmode` and `sslrootcert` in `store.url`, and at the server's certificate"
    )]
    Tls,
    /// Wrong user or password, or none.
    #[error(
        "the server refuses the user or its password; check `store.url`, the password ([store] password-file; with --store in the URL, PGPASSWORD or ~/.pgpass), and the server's pg_hba.conf"
    )]
    Refused,
    /// The file with the password cannot be read.
    #[error("[store] password-file cannot be read; let the daemon's user read it, or name another")]
    PasswordFile,
    /// The server has no such database.
    #[error("the server has no such database; create it (deploy/postgres.sql does), or check `store.url`")]
    NoDatabase,
    /// No tables, and nobody made them yet.
    #[error("there are no tables here yet; check `store.url`, or start the daemon, which makes them")]
    NoTables,
    /// The user may not do this.
    #[error("the user lacks rights; deploy/postgres.sql has what a writer and a reader need")]
    Rights,
    /// The server takes no writes.
    #[error(
        "the server is read-only: a replica, or default_transaction_read_only is on; name the primary in `store.url`, or switch that off"
    )]
    Replica,
    /// The server's disk is full.
    #[error("the server's disk is full; free space there, then shorten `store.retention`")]
    ServerFull,
    /// No connection is free.
    #[error("the server has too many connections; raise its max_connections, or end others")]
    Crowded,
    /// The server found its files damaged, or its disk fails.
    #[error("the server finds its data damaged or its disk failing; look at its log, and put a backup back")]
    ServerIo,
    /// A server of an older version.
    #[error("the server is too old: PostgreSQL 15 or newer is needed; upgrade it")]
    TooOld,
    /// A database whose texts cannot hold what meters send.
    #[error("the database does not keep texts as UTF8; create another one with ENCODING 'UTF8' TEMPLATE template0")]
    Encoding,
    /// What it was given has no place in its tables, such as a value that is out of range.
    #[error("the database does not take what it is given")]
    Value,
    /// Anything else.
    #[error("the database answers with an error")]
    Other,
}

impl Trouble {
    /// Whether the source says what this does not.
    fn says_little(self) -> bool {
        matches!(
            self,
            Self::Other
                | Self::Value
                | Self::NoWay
                | Self::Tls
                | Self::PasswordFile
                | Self::NoTables
                | Self::Rights
                | Self::TooOld
                | Self::Encoding
        )
    }
}

impl StoreError {
    /// Whether the same call may succeed later without a restart.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Database { trouble, .. } => {
                matches!(trouble, Trouble::Full | Trouble::Busy | Trouble::Io | Trouble::ServerFull)
            }
            Self::Replaced(_) => true,
            _ => false,
        }
    }

    /// Whether the database must be opened anew before anything else is asked of it.
    pub fn needs_reopening(&self) -> bool {
        match self {
            Self::Database { trouble, .. } => !matches!(
                trouble,
                Trouble::Full
                    | Trouble::Busy
                    | Trouble::Io
                    | Trouble::ReadOnly
                    | Trouble::ServerFull
                    | Trouble::Rights
                    | Trouble::Value
            ),
            _ => true,
        }
    }

    /// Why a message is refused, where the database does not take what it was given; it may take everything else. None for all other
    /// errors.
    pub fn refusal(&self) -> Option<String> {
        match self {
            Self::Database { trouble: Trouble::Value, source, .. } => {
                // It may repeat the whole value.
                let source: String = source.to_string().chars().take(200).collect();
                Some(format!("the database does not take it: {source}"))
            }
            _ => None,
        }
    }

    pub(super) fn io(path: &Path, error: std::io::Error) -> Self {
        let trouble = match error.kind() {
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Trouble::ReadOnly,
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Trouble::Full,
            ErrorKind::NotADirectory | ErrorKind::IsADirectory | ErrorKind::AlreadyExists => Trouble::CannotOpen,
            _ => Trouble::Io,
        };
        Self::Database { place: path.display().to_string(), trouble, source: error.into() }
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
            // Twice the same key (a primary key, unique, a row's number) is no message's fault: see `of_state`.
            19 if [1555, 2067, 2579].contains(&code) => Trouble::Other,
            // Too large, another constraint, another type.
            18..=20 => Trouble::Value,
            26 => Trouble::NotADatabase,
            _ => Trouble::Other,
        };
        Self::Database { place: path.display().to_string(), trouble, source: error.into() }
    }

    /// `place` must not hold a password.
    pub(super) fn postgres(place: &str, error: sqlx::Error) -> Self {
        let trouble = match &error {
            sqlx::Error::Database(error) => of_state(&error.code().unwrap_or_default()),
            sqlx::Error::Io(error) if error.kind() == ErrorKind::TimedOut => Trouble::Slow,
            // What rustls says of a certificate.
            sqlx::Error::Io(error) if error.kind() == ErrorKind::InvalidData => Trouble::Tls,
            // However it goes away and comes back, that is one trouble.
            sqlx::Error::Io(error)
                if !matches!(
                    error.kind(),
                    ErrorKind::ConnectionRefused
                        | ErrorKind::ConnectionReset
                        | ErrorKind::ConnectionAborted
                        | ErrorKind::BrokenPipe
                        | ErrorKind::NotConnected
                        | ErrorKind::UnexpectedEof
                ) =>
            {
                Trouble::NoWay
            }
            sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => Trouble::Unreachable,
            sqlx::Error::Tls(_) => Trouble::Tls,
            _ => Trouble::Other,
        };
        let source = match error {
            // Its own words: else they end with a line of the server's source.
            sqlx::Error::Database(error) => error.message().into(),
            error => error.into(),
        };
        Self::Database { place: place.to_owned(), trouble, source }
    }
}

/// What an SQLSTATE means to a store.
fn of_state(state: &str) -> Trouble {
    match state {
        "25006" => Trouble::Replica,
        "28000" | "28P01" => Trouble::Refused,
        "3D000" => Trouble::NoDatabase,
        // Another store waits for us, and we for it; it was chosen to go on.
        "40001" | "40P01" | "55P03" => Trouble::Busy,
        "42501" => Trouble::Rights,
        "42P01" => Trouble::NoTables,
        "53100" => Trouble::ServerFull,
        "53300" => Trouble::Crowded,
        "57014" => Trouble::Slow,
        "58030" | "XX001" | "XX002" => Trouble::ServerIo,
        // Twice the same key: whatever is written is looked for first, so the tables are not as they must be, such as a sequence that
        // stands behind its rows after a failover. That passes, and a message that is refused would not come again.
        "23505" => Trouble::Other,
        // A value, another constraint, and a limit such as that of an index row.
        state if ["22", "23", "54"].iter().any(|class| state.starts_with(class)) => Trouble::Value,
        state if state.starts_with("57P") || state.starts_with("08") => Trouble::Unreachable,
        _ => Trouble::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_database_does_not_take_is_told_from_what_it_cannot_do() {
        // Out of range, a NUL in a text, a check; an index row that is too large.
        for state in ["22003", "22021", "23514", "54000"] {
            assert_eq!(of_state(state), Trouble::Value, "{state}");
        }
        for state in ["08006", "23505", "25006", "40001", "42P01", "53100", "57014", "58030", "XX001", ""] {
            assert_ne!(of_state(state), Trouble::Value, "{state}");
        }
        let error = |trouble| StoreError::Database { place: "p".into(), trouble, source: "x".repeat(1000).into() };
        assert_eq!(error(Trouble::Full).refusal(), None);
        let reason = error(Trouble::Value).refusal().unwrap();
        assert!(reason.len() < 300 && !error(Trouble::Value).needs_reopening(), "{reason}");
    }
}
