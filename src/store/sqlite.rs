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
    collections::{BTreeMap, BTreeSet, HashMap},
    error::Error,
    fs::{self, File, TryLockError},
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use sqlx::{
    ConnectOptions as _, Connection as _, QueryBuilder, SqliteConnection,
    migrate::{MigrateError, Migrator},
    query, query_as, query_scalar, raw_sql,
    sqlite::{SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use super::layout::{self, Layout};
use crate::{
    delivery::{Arrival, Epoch, EpochAck, Ledger, Ranges, Tally},
    moment::Moment,
    payload::{Envelope, Message},
    reading::{Clock, Medium, Qualifiers, Reading, Report},
};

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
    /// The file, the disk or SQLite.
    #[error("{}: {trouble}", path.display())]
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
    #[error("is damaged; stop the daemon and run `sqlite3 FILE .recover`, or put a backup back")]
    Corrupt,
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
        matches!(self, Self::Database { trouble: Trouble::Full | Trouble::Busy | Trouble::Io, .. })
    }

    fn io(path: &Path, error: std::io::Error) -> Self {
        let trouble = match error.kind() {
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Trouble::ReadOnly,
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Trouble::Full,
            ErrorKind::NotADirectory | ErrorKind::IsADirectory | ErrorKind::AlreadyExists => Trouble::CannotOpen,
            _ => Trouble::Io,
        };
        Self::Database { path: path.to_owned(), trouble, source: error.into() }
    }

    fn sql(path: &Path, error: sqlx::Error) -> Self {
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
        let result = newest_ledgers(&mut self.connection, None).await;
        result.map_err(|error| StoreError::sql(&self.path, error))
    }

    /// Writes a batch, all of it or nothing. On an error the same batch can be given again.
    pub async fn commit(&mut self, batch: &[Incoming]) -> Result<Committed, StoreError> {
        if batch.is_empty() {
            return Ok(Committed::default());
        }
        let result = match self.begin().await {
            Ok(()) => write(&mut self.connection, batch).await,
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

/// A new row of `message`.
struct Row<'b> {
    message: &'b Message,
    meter: i64,
    at: Moment,
    n: i64,
    layout: i64,
    values: String,
}

/// The batch in a transaction that is begun and not ended here. Nothing is remembered from batch to
/// batch, so that there is nothing to undo.
async fn write(connection: &mut SqliteConnection, batch: &[Incoming]) -> Result<Committed, sqlx::Error> {
    let mut committed = Committed::default();
    let mut ledgers = Ledgers::load(connection, batch).await?;
    let (mut messages, mut refused) = (Vec::new(), Vec::new());
    for incoming in batch {
        let mut tally = None;
        if let Some(envelope) = incoming.envelope() {
            let ledger = ledgers.of(envelope);
            if ledger.arrive(envelope.seq, envelope.first) == Arrival::Again {
                committed.again += 1;
                continue;
            }
            tally = Some(&mut ledger.tally);
        }
        match incoming {
            Incoming::Message(message) => messages.push(message),
            Incoming::Refused { .. } => {
                refused.push(incoming);
                committed.refused += 1;
                if let Some(tally) = tally {
                    tally.refused += 1;
                }
            }
        }
    }
    let meters = meters(connection, &messages).await?;
    let mut rows = Vec::with_capacity(messages.len());
    let split: Vec<_> = messages.iter().map(|message| Layout::split(&message.report)).collect();
    let layouts = layouts(connection, &split).await?;
    for ((message, (_, values)), layout) in messages.iter().zip(&split).zip(layouts) {
        rows.push(Row {
            message,
            meter: *meters.get(&message.report.meter).ok_or(sqlx::Error::RowNotFound)?,
            at: message.report.measured_at.unwrap_or(message.received_at),
            n: 0,
            layout,
            values: json(values),
        });
    }
    let mut there = rows_at(connection, &rows).await?;
    rows.retain_mut(|row| {
        let there = there.entry((row.meter, row.at.millis())).or_default();
        let tally = &mut ledgers.of(&row.message.envelope).tally;
        if there.iter().any(|(_, layout, values)| (*layout, values) == (row.layout, &row.values)) {
            tally.repeated += 1;
            committed.repeated += 1;
            return false;
        }
        row.n = there.iter().map(|(n, ..)| n + 1).max().unwrap_or(0);
        there.push((row.n, row.layout, row.values.clone()));
        tally.stored += 1;
        committed.stored += 1;
        true
    });
    write_messages(connection, &rows).await?;
    write_quarters(connection, &rows).await?;
    write_refused(connection, &refused).await?;
    ledgers.save(connection).await?;
    committed.acks = ledgers.acks(connection).await?;
    Ok(committed)
}

impl Incoming {
    fn envelope(&self) -> Option<&Envelope> {
        match self {
            Self::Message(message) => Some(&message.envelope),
            Self::Refused { envelope, .. } => envelope.as_ref(),
        }
    }
}

/// The ids of the meters by name; new ones get a row, and all are noted as heard.
async fn meters(connection: &mut SqliteConnection, messages: &[&Message]) -> Result<HashMap<String, i64>, sqlx::Error> {
    let mut heard: BTreeMap<&str, (&Message, i64, i64)> = BTreeMap::new();
    for &message in messages {
        let now = message.received_at.millis();
        let (latest, first, last) = heard.entry(&message.report.meter).or_insert((message, now, now));
        *first = now.min(*first);
        if now >= *last {
            (*latest, *last) = (message, now);
        }
    }
    let mut ids = HashMap::with_capacity(heard.len());
    for chunk in heard.into_iter().collect::<Vec<_>>().chunks(CHUNK) {
        let columns = "name, medium, medium_code, protocol, gateway, first_seen, last_seen";
        let mut sql = QueryBuilder::new(format!("INSERT INTO meter ({columns}) "));
        sql.push_values(chunk, |mut row, (name, (latest, first, last))| {
            let Report { medium, protocol, .. } = &latest.report;
            let code = if let Medium::Other(code) = *medium { code } else { 0 };
            row.push_bind(*name).push_bind(medium.name()).push_bind(code).push_bind(&**protocol);
            row.push_bind(&*latest.envelope.gateway).push_bind(*first).push_bind(*last);
        });
        sql.push(
            " ON CONFLICT (name) DO UPDATE SET
            medium = iif(excluded.last_seen < last_seen, medium, excluded.medium),
            medium_code = iif(excluded.last_seen < last_seen, medium_code, excluded.medium_code),
            protocol = iif(excluded.last_seen < last_seen, protocol, excluded.protocol),
            gateway = iif(excluded.last_seen < last_seen, gateway, excluded.gateway),
            first_seen = min(first_seen, excluded.first_seen),
            last_seen = max(last_seen, excluded.last_seen)
            RETURNING name, id",
        );
        ids.extend(sql.build_query_as::<(String, i64)>().persistent(false).fetch_all(&mut *connection).await?);
    }
    Ok(ids)
}

/// The id of each of these layouts; new ones get a row.
async fn layouts(connection: &mut SqliteConnection, split: &[(Layout, Vec<i64>)]) -> Result<Vec<i64>, sqlx::Error> {
    let (mut places, mut texts) = (HashMap::new(), Vec::new());
    let mut of_split = Vec::with_capacity(split.len());
    for (layout, _) in split {
        of_split.push(*places.entry(layout).or_insert_with(|| {
            texts.push(layout.to_text());
            texts.len() - 1
        }));
    }
    let texts = json(&texts);
    let insert = query("INSERT OR IGNORE INTO layout (spec) SELECT value FROM json_each(?)");
    insert.bind(&texts).execute(&mut *connection).await?;
    let select = query_scalar(
        "SELECT layout.id FROM json_each(?) AS text CROSS JOIN layout ON spec = text.value ORDER BY text.key",
    );
    let ids: Vec<i64> = select.bind(&texts).fetch_all(connection).await?;
    of_split.into_iter().map(|place| ids.get(place).copied().ok_or(sqlx::Error::RowNotFound)).collect()
}

/// What is there already (n, layout, values) at the meters and instants of these rows.
async fn rows_at(
    connection: &mut SqliteConnection,
    rows: &[Row<'_>],
) -> Result<HashMap<(i64, i64), Vec<(i64, i64, String)>>, sqlx::Error> {
    let keys: BTreeSet<(i64, i64)> = rows.iter().map(|row| (row.meter, row.at.millis())).collect();
    let sql = r#"SELECT meter, at, n, layout, "values" FROM json_each(?) AS key
        CROSS JOIN message ON meter = key.value ->> 0 AND at = key.value ->> 1"#;
    let mut there: HashMap<_, Vec<_>> = HashMap::new();
    for (meter, at, n, layout, values) in query_as(sql).bind(json(&keys)).fetch_all(connection).await? {
        there.entry((meter, at)).or_default().push((n, layout, values));
    }
    Ok(there)
}

/// Writes new messages with what they say besides their readings.
async fn write_messages(connection: &mut SqliteConnection, rows: &[Row<'_>]) -> Result<(), sqlx::Error> {
    let said: Vec<Option<String>> = rows.iter().map(|row| layout::remark(&row.message.report)).collect();
    let mut spans: BTreeMap<(i64, &str), (i64, i64)> = BTreeMap::new();
    for (row, content) in rows.iter().zip(&said) {
        if let Some(content) = content {
            let at = row.at.millis();
            let (first, last) = spans.entry((row.meter, content)).or_insert((at, at));
            (*first, *last) = (at.min(*first), at.max(*last));
        }
    }
    let mut remarks: HashMap<(i64, String), i64> = HashMap::with_capacity(spans.len());
    for chunk in spans.into_iter().collect::<Vec<_>>().chunks(CHUNK) {
        let mut sql = QueryBuilder::new("INSERT INTO remark (meter, content, first_at, last_at) ");
        sql.push_values(chunk, |mut row, ((meter, content), (first, last))| {
            row.push_bind(*meter).push_bind(*content).push_bind(*first).push_bind(*last);
        });
        sql.push(
            " ON CONFLICT (meter, content) DO UPDATE SET
            first_at = min(first_at, excluded.first_at), last_at = max(last_at, excluded.last_at)
            RETURNING meter, content, id",
        );
        for (meter, content, id) in sql.build_query_as().persistent(false).fetch_all(&mut *connection).await? {
            remarks.insert((meter, content), id);
        }
    }
    let rows: Vec<_> = rows.iter().zip(said).collect();
    for chunk in rows.chunks(CHUNK) {
        let columns = r#"meter, at, n, utc_offset, clock, received_at, layout, "values", remark"#;
        let mut sql = QueryBuilder::new(format!("INSERT INTO message ({columns}) "));
        sql.push_values(chunk, |mut values, (row, said)| {
            values.push_bind(row.meter).push_bind(row.at.millis()).push_bind(row.n).push_bind(row.at.offset_minutes());
            values.push_bind(clock_code(row.message.report.clock)).push_bind(row.message.received_at.millis());
            values.push_bind(row.layout).push_bind(&*row.values);
            values.push_bind(said.as_ref().and_then(|said| remarks.get(&(row.meter, said.clone())).copied()));
        });
        sql.build().persistent(false).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Keeps the first value of each cumulative register in each quarter-hour. Messages may come late and
/// in any order; a reading by a clock that was not synchronised gives way to any other.
async fn write_quarters(connection: &mut SqliteConnection, rows: &[Row<'_>]) -> Result<(), sqlx::Error> {
    let mut quarters: BTreeMap<_, ((bool, i64), &Reading)> = BTreeMap::new();
    for row in rows {
        for reading in &row.message.report.readings {
            let now = reading.qualifiers == Qualifiers::default() && reading.suspect.is_none();
            if now && reading.register.is_cumulative() {
                let at = reading.at.unwrap_or(row.at);
                let rank = (row.message.report.clock == Clock::Unsynchronised, at.millis());
                let first = quarters.entry((row.meter, reading.register.as_str(), at.quarter()));
                let first = first.or_insert((rank, reading));
                if rank < first.0 {
                    *first = (rank, reading);
                }
            }
        }
    }
    for chunk in quarters.into_iter().collect::<Vec<_>>().chunks(CHUNK) {
        let columns = "meter, register, quarter, at, unsynchronised, value, scale, unit";
        let mut sql = QueryBuilder::new(format!("INSERT INTO quarter ({columns}) "));
        sql.push_values(chunk, |mut row, ((meter, register, quarter), ((unsynchronised, at), reading))| {
            row.push_bind(*meter).push_bind(*register).push_bind(*quarter).push_bind(*at).push_bind(*unsynchronised);
            row.push_bind(reading.value.mantissa()).push_bind(reading.value.scale()).push_bind(reading.unit.as_str());
        });
        sql.push(
            " ON CONFLICT (meter, register, quarter) DO UPDATE SET
            at = excluded.at, unsynchronised = excluded.unsynchronised, value = excluded.value,
            scale = excluded.scale, unit = excluded.unit
            WHERE (excluded.unsynchronised, excluded.at) < (quarter.unsynchronised, quarter.at)",
        );
        sql.build().persistent(false).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Keeps refused messages; beyond 10,000 or 64 MiB the oldest go.
async fn write_refused(connection: &mut SqliteConnection, refused: &[&Incoming]) -> Result<(), sqlx::Error> {
    if refused.is_empty() {
        return Ok(());
    }
    for incoming in refused {
        let Incoming::Refused { topic, payload, reason, schema, envelope, received_at } = incoming else { continue };
        let envelope = envelope.as_ref();
        query(
            "INSERT INTO refused (received_at, topic, gateway, epoch, seq, schema, reason, payload)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(received_at.millis())
        .bind(topic)
        .bind(envelope.map(|envelope| envelope.gateway.as_str()))
        .bind(envelope.map(|envelope| envelope.epoch.to_string()))
        .bind(envelope.map(|envelope| number(envelope.seq)))
        .bind(schema)
        .bind(reason)
        .bind(payload)
        .execute(&mut *connection)
        .await?;
    }
    let bound = "DELETE FROM refused WHERE id <= (
        SELECT max(id) FROM (
            SELECT id, row_number() OVER (ORDER BY id DESC) AS place,
                sum(octet_length(payload) + octet_length(topic)) OVER (ORDER BY id DESC) AS bytes
            FROM refused
        ) WHERE place > 10000 OR bytes > 64 * 1024 * 1024)";
    query(bound).execute(connection).await.map(drop)
}

/// The ledgers that a batch touches, by gateway in sorted order.
struct Ledgers(BTreeMap<String, BTreeMap<Epoch, Ledger>>);

/// The columns that [`read_ledger`] reads.
const LEDGER: &str = "gateway, epoch, through, have, lost, stored, repeated, refused";
type LedgerRow = (String, String, i64, String, String, i64, i64, i64);

impl Ledgers {
    async fn load(connection: &mut SqliteConnection, batch: &[Incoming]) -> Result<Self, sqlx::Error> {
        let mut ledgers = Self(BTreeMap::new());
        let keys: BTreeSet<_> =
            batch.iter().filter_map(Incoming::envelope).map(|envelope| (&*envelope.gateway, envelope.epoch)).collect();
        for chunk in keys.into_iter().collect::<Vec<_>>().chunks(CHUNK) {
            let mut sql = QueryBuilder::new(format!("SELECT {LEDGER} FROM ledger WHERE (gateway, epoch) IN ("));
            sql.push_values(chunk, |mut row, (gateway, epoch)| {
                row.push_bind(*gateway).push_bind(epoch.to_string());
            });
            sql.push(")");
            for row in sql.build_query_as().persistent(false).fetch_all(&mut *connection).await? {
                let (gateway, epoch, ledger) = read_ledger(row)?;
                ledgers.0.entry(gateway).or_default().insert(epoch, ledger);
            }
        }
        Ok(ledgers)
    }

    fn of(&mut self, envelope: &Envelope) -> &mut Ledger {
        self.0.entry(envelope.gateway.clone()).or_default().entry(envelope.epoch).or_default()
    }

    async fn save(&self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let rows = self.0.iter().flat_map(|(gateway, epochs)| epochs.iter().map(move |row| (gateway, row)));
        for chunk in rows.collect::<Vec<_>>().chunks(CHUNK) {
            // One subquery over the list: SQLite would compile one in each row.
            let mut sql = QueryBuilder::new(format!(
                "INSERT INTO ledger ({LEDGER}, touched) SELECT *,
                (SELECT coalesce(max(touched), 0) + 1 FROM ledger WHERE gateway = list.column1) FROM ("
            ));
            sql.push_values(chunk, |mut row, (gateway, (epoch, ledger))| {
                row.push_bind(&***gateway).push_bind(epoch.to_string()).push_bind(number(ledger.through()));
                row.push_bind(json(&ledger.have().pairs())).push_bind(json(&ledger.lost().pairs()));
                let Tally { stored, repeated, refused } = ledger.tally;
                row.push_bind(number(stored)).push_bind(number(repeated)).push_bind(number(refused));
            });
            sql.push(
                ") AS list WHERE true ON CONFLICT (gateway, epoch) DO UPDATE SET
                through = excluded.through, have = excluded.have, lost = excluded.lost, stored = excluded.stored,
                repeated = excluded.repeated, refused = excluded.refused, touched = excluded.touched",
            );
            sql.build().persistent(false).execute(&mut *connection).await?;
        }
        Ok(())
    }

    async fn acks(&self, connection: &mut SqliteConnection) -> Result<Vec<(String, Vec<EpochAck>)>, sqlx::Error> {
        let mut acks = Vec::with_capacity(self.0.len());
        for chunk in self.0.keys().collect::<Vec<_>>().chunks(CHUNK) {
            acks.extend(newest_ledgers(&mut *connection, Some(chunk)).await?);
        }
        Ok(acks)
    }
}

/// The most recently touched epochs of these gateways, or of all.
async fn newest_ledgers(
    connection: &mut SqliteConnection,
    gateways: Option<&[&String]>,
) -> Result<Vec<(String, Vec<EpochAck>)>, sqlx::Error> {
    let mut sql = QueryBuilder::new(format!("SELECT {LEDGER} FROM ledger_newest WHERE place <= 32"));
    if let Some(gateways) = gateways {
        sql.push(" AND gateway IN (");
        let mut list = sql.separated(", ");
        for gateway in gateways {
            list.push_bind(gateway.as_str());
        }
        sql.push(")");
    }
    sql.push(" ORDER BY gateway, place");
    let mut acks: Vec<(String, Vec<EpochAck>)> = Vec::new();
    for row in sql.build_query_as().persistent(false).fetch_all(connection).await? {
        let (gateway, epoch, ledger) = read_ledger(row)?;
        match acks.last_mut().filter(|(last, _)| *last == gateway) {
            Some((_, epochs)) => epochs.push(ledger.ack(epoch)),
            None => acks.push((gateway, vec![ledger.ack(epoch)])),
        }
    }
    Ok(acks)
}

fn read_ledger(row: LedgerRow) -> Result<(String, Epoch, Ledger), sqlx::Error> {
    let (gateway, epoch, through, have, lost, stored, repeated, refused) = row;
    let ranges = |text: &str| serde_json::from_str::<Vec<_>>(text).map(Ranges::from_pairs).map_err(unreadable);
    let count = |number: i64| number.unsigned_abs();
    let tally = Tally { stored: count(stored), repeated: count(repeated), refused: count(refused) };
    let epoch = Epoch::from_text(&epoch).ok_or_else(|| unreadable(format!("`{epoch}` is no epoch")))?;
    Ok((gateway, epoch, Ledger::restore(count(through), ranges(&have)?, ranges(&lost)?, tally)))
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

#[cfg(test)]
mod tests {
    use std::{
        future::{Future as _, poll_fn},
        pin::pin,
        task::Poll,
    };

    use tempfile::TempDir;

    use super::*;
    use crate::{
        reading::{Event, Register, Suspect, Unknown},
        unit::{Decimal, Unit},
    };

    /// 2026-11-21T20:00:00+01:00, the start of a quarter-hour.
    const START: i64 = 1_795_287_600_000;

    fn reading(register: &'static str, value: &str, unit: &str) -> Reading {
        let value = Decimal::parse(value.as_bytes()).unwrap();
        Reading::now(Register::named(register), value, Unit::from_text(unit).unwrap())
    }

    /// Message `seq` of epoch 1 of gw-1: meter E1 counts `import` kWh, `seconds` after [`START`].
    fn message(seq: u64, seconds: i64, import: &str) -> Message {
        Message {
            envelope: Envelope { gateway: "gw-1".into(), epoch: Epoch::from_bits(1), seq, prev: seq - 1, first: 1 },
            received_at: Moment::from_millis(START + seconds * 1000 + 123, 0).unwrap(),
            report: Report {
                meter: "E1".into(),
                medium: Medium::Electricity,
                protocol: "p1".into(),
                measured_at: Moment::from_millis(START + seconds * 1000, 60),
                clock: Clock::Meter,
                readings: vec![reading("import_low", import, "kWh"), reading("power_import", "0.5", "kW")],
                info: Vec::new(),
                events: Vec::new(),
                unknown: Vec::new(),
            },
        }
    }

    fn refused(envelope: Option<Envelope>, payload: &[u8]) -> Incoming {
        Incoming::Refused {
            topic: "meterkast/gw-1/E1/telegram".into(),
            payload: payload.into(),
            reason: "schema 2 is newer than 1".into(),
            schema: 2,
            envelope,
            received_at: Moment::from_millis(START, 0).unwrap(),
        }
    }

    fn batch(messages: impl IntoIterator<Item = Message>) -> Vec<Incoming> {
        messages.into_iter().map(Incoming::Message).collect()
    }

    async fn store() -> (TempDir, PathBuf, Sqlite) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/meterkast.db");
        let store = Sqlite::open(&path).await.unwrap();
        (folder, path, store)
    }

    impl Sqlite {
        async fn sql(&mut self, sql: &'static str) {
            raw_sql(sql).execute(&mut self.connection).await.unwrap();
        }

        async fn column(&mut self, sql: &'static str) -> Vec<String> {
            query_scalar(sql).fetch_all(&mut self.connection).await.unwrap()
        }
    }

    fn counts(committed: &Committed) -> [u64; 4] {
        [committed.stored, committed.repeated, committed.again, committed.refused]
    }

    #[tokio::test]
    async fn the_database_is_made_as_the_promise_needs_it() {
        let (_folder, path, mut store) = store().await;
        let version = store.column("SELECT sqlite_version()").await.concat();
        let numbers: Vec<u32> = version.split('.').map(|part| part.parse().unwrap()).collect();
        assert!(numbers >= vec![3, 51, 3], "before 3.51.3 a write-ahead log can corrupt the file: {version}");
        let sql = "SELECT concat_ws(' ', journal_mode, synchronous, auto_vacuum, foreign_keys, timeout)
            FROM pragma_journal_mode, pragma_synchronous, pragma_auto_vacuum, pragma_foreign_keys, pragma_busy_timeout";
        assert_eq!(store.column(sql).await, ["wal 2 2 1 5000"]);
        let generation = store.generation().to_owned();
        assert!(Epoch::from_text(&generation).is_some());
        drop(store);
        let reopened = path.clone();
        // On a task of its own, as the daemon does: all these futures must be Send.
        let task = tokio::spawn(async move {
            let mut store = Sqlite::open(&reopened).await.unwrap();
            store.commit(&batch([message(1, 0, "1")])).await.unwrap();
            store.retain(Duration::MAX).await.unwrap();
            store.ledgers().await.unwrap();
            Reader::open(&reopened).await.unwrap().readings(None).await.unwrap();
            store
        });
        let mut store = task.await.unwrap();
        assert_eq!(store.generation(), generation);
        store.sql("DELETE FROM store").await;
        drop(store);
        assert_ne!(Sqlite::open(&path).await.unwrap().generation(), generation);
    }

    #[tokio::test]
    async fn reports_leave_as_they_entered() {
        let (_folder, path, mut store) = store().await;
        let mut full = message(1, 0, "3432.827");
        let mut stored = reading("energy", "-11.9020", "GJ");
        stored.qualifiers.storage = 1;
        stored.at = Some("2025-12-31T23:59:00+01:00".parse().unwrap());
        stored.raw = Some(Box::new((Decimal::whole(3306).unwrap(), Unit::KWH)));
        full.report.readings.push(stored);
        full.report.medium = Medium::Other(37);
        full.report.info = vec![("tariff".into(), "0002".into()), ("text".into(), "\0 \"é\"\n".into())];
        full.report.events =
            vec![Event { event: "power_failure".into(), end: full.report.measured_at, duration_s: None }];
        full.report.unknown = vec![Unknown { code: "1-0:9.9.9".into(), text: "(1)".into() }];
        // Names that end early as C strings are still two meters.
        let mut other = message(2, 0, "0.000");
        (full.report.meter, other.report.meter) = ("A\0a".into(), "A\0b".into());
        store.commit(&batch([full.clone(), other.clone(), message(3, 10, "5")])).await.unwrap();

        let mut reader = Reader::open(&path).await.unwrap();
        let reports: Vec<_> = reader.readings(None).await.unwrap().into_iter().map(|(report, _)| report).collect();
        assert_eq!(reports, [full.report, other.report, message(3, 10, "5").report]);
        // What a late message says of its meter does not replace what a newer one said.
        let mut late = message(5, 15, "5.5");
        (late.report.medium, late.report.protocol) = (Medium::Gas, "mbus".into());
        store.commit(&batch([message(4, 20, "6"), late.clone()])).await.unwrap();
        late.envelope.seq = 6;
        store.commit(&batch([late])).await.unwrap();
        let at = |seconds: i64| Moment::from_millis(START + seconds * 1000, 0);
        let found = reader.readings(at(20)).await.unwrap().pop().unwrap();
        assert_eq!(found, (message(4, 20, "6").report, message(4, 20, "6").received_at));
        assert_eq!(reader.readings(at(14)).await.unwrap().pop().unwrap().0, message(3, 10, "5").report);
        assert!(reader.readings(at(-1)).await.unwrap().is_empty());
        assert_eq!(reader.counts().await.unwrap(), Counts { meters: 3, messages: 5, refused: 0 });
    }

    #[tokio::test]
    async fn each_message_counts_once() {
        let (_folder, path, mut store) = store().await;
        let mut other = message(1, 1, "1.001");
        other.envelope.epoch = Epoch::from_bits(2);
        let envelope = Envelope { seq: 4, ..message(4, 0, "1").envelope };
        let first = [
            batch([
                message(1, 0, "1.000"),
                message(1, 0, "1.000"),
                message(2, 0, "1.000"),
                message(3, 0, "1.5"),
                other,
            ]),
            vec![refused(Some(envelope.clone()), b"\xff\0"), refused(Some(envelope), b"\xff\0"), refused(None, b"{")],
        ]
        .concat();
        let committed = store.commit(&first).await.unwrap();
        assert_eq!(counts(&committed), [3, 1, 2, 2]);
        let [(gateway, epochs)] = &committed.acks[..] else { panic!("one gateway") };
        assert_eq!((gateway.as_str(), epochs.len()), ("gw-1", 2));
        let one = epochs.iter().find(|ack| ack.epoch.bits() == 1).unwrap();
        assert_eq!((one.through, one.tally), (4, Tally { stored: 2, repeated: 1, refused: 1 }));
        assert_eq!(store.ledgers().await.unwrap(), committed.acks);

        // Sent again under new numbers: 1.000 and 1.5 are there, 1.50 is another reading.
        let again = batch([message(6, 0, "1.000"), message(7, 0, "1.5"), message(8, 0, "1.50")]);
        let committed = store.commit(&again).await.unwrap();
        assert_eq!(counts(&committed), [1, 2, 0, 0]);
        let one = &committed.acks[0].1[0];
        assert_eq!((one.through, one.have.pairs()), (4, &[(6, 8)][..]), "the epoch touched last comes first");
        assert_eq!(counts(&store.commit(&again).await.unwrap()), [0, 0, 3, 0]);
        assert_eq!(
            store.column("SELECT n || ' ' || value FROM reading WHERE unix_ms = 1795287600000 AND unit = 'kWh'").await,
            ["0 1.000", "1 1.5", "2 1.50"]
        );
        let mut reader = Reader::open(&path).await.unwrap();
        assert_eq!(reader.counts().await.unwrap(), Counts { meters: 1, messages: 4, refused: 2 });
        assert_eq!(reader.readings(Moment::from_millis(START, 0)).await.unwrap()[0].0, message(8, 0, "1.50").report);
    }

    #[tokio::test]
    async fn a_gateway_hears_of_its_latest_32_epochs_and_no_number_is_too_big() {
        let (_folder, _path, mut store) = store().await;
        for epoch in 1..=40 {
            let mut message = message(1, epoch, "1");
            message.envelope.epoch = Epoch::from_bits(epoch.unsigned_abs().into());
            store.commit(&batch([message])).await.unwrap();
        }
        let mut huge = message(1, 0, "2");
        huge.envelope = Envelope { gateway: "gw\0".into(), seq: u64::MAX, first: u64::MAX, ..huge.envelope };
        let committed = store.commit(&batch([huge])).await.unwrap();
        assert_eq!((committed.stored, committed.acks.len(), &*committed.acks[0].0), (1, 1, "gw\0"));
        let ledgers = store.ledgers().await.unwrap();
        assert_eq!(ledgers.iter().map(|(gateway, _)| gateway.as_str()).collect::<Vec<_>>(), ["gw\0", "gw-1"]);
        let epochs: Vec<u128> = ledgers[1].1.iter().map(|ack| ack.epoch.bits()).collect();
        assert_eq!(epochs, (9..=40).rev().collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_batch_is_written_whole_or_not_at_all() {
        let (_folder, path, mut store) = store().await;
        let messages = (1..=300).map(|seq| message(seq, 900 * seq.cast_signed(), "1.000"));
        let batch = [batch(messages), vec![refused(None, b"x")]].concat();
        let mut reader = Reader::open(&path).await.unwrap();
        let nothing = Counts { meters: 0, messages: 0, refused: 0 };

        store.sql("CREATE TRIGGER fail BEFORE INSERT ON ledger BEGIN SELECT raise(ABORT, 'no'); END").await;
        assert!(!store.commit(&batch).await.unwrap_err().may_pass());
        assert_eq!(reader.counts().await.unwrap(), nothing);
        store.sql("DROP TRIGGER fail").await;

        // A full disk: SQLite rolls back by itself.
        store.sql("PRAGMA max_page_count = 1").await;
        let error = store.commit(&batch).await.unwrap_err();
        assert!(error.may_pass() && error.to_string().contains("the disk is full; free space"), "{error}");
        assert_eq!(reader.counts().await.unwrap(), nothing);
        store.sql("PRAGMA max_page_count = 1000000").await;

        // Calls that are dropped half-way leave nothing that is in the way of the next.
        let mut dropped = 0;
        for polls in 1..30 {
            {
                let mut call = pin!(store.commit(&batch[..300]));
                for _ in 0..polls {
                    if poll_fn(|context| Poll::Ready(call.as_mut().poll(context).is_ready())).await {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            dropped += usize::from(store.unfinished);
            assert_eq!(store.retain(Duration::MAX).await.unwrap(), 0);
        }
        assert!(dropped > 2, "{dropped}");
        let committed = store.commit(&batch).await.unwrap();
        assert_eq!(committed.stored + committed.again, 300);
        assert_eq!(committed.acks[0].1[0].tally, Tally { stored: 300, repeated: 0, refused: 0 });
        assert_eq!(reader.counts().await.unwrap(), Counts { meters: 1, messages: 300, refused: 1 });
    }

    #[tokio::test]
    async fn the_first_value_of_a_quarter_hour_stands_however_late_it_comes() {
        let (_folder, _path, mut store) = store().await;
        let mut wrong = message(9, 1, "0.100");
        wrong.report.clock = Clock::Unsynchronised;
        let mut suspect = message(8, 2, "0.200");
        suspect.report.readings[0].suspect = Some(Suspect::Backwards);
        let mut tariff = message(7, 2, "0.300");
        tariff.report.readings[0].qualifiers.tariff = 1;
        let sql =
            "SELECT concat_ws(' ', quarter, register, (at - 1795287600000) / 1000, value, scale, unit) FROM quarter";
        store.commit(&batch([wrong])).await.unwrap();
        assert_eq!(store.column(sql).await, ["1994764 import_low 1 100 3 kWh"]);
        store.commit(&batch([message(3, 899, "1.9"), message(2, 20, "1.20"), message(4, 901, "2.0")])).await.unwrap();
        assert_eq!(store.column(sql).await, ["1994764 import_low 20 120 2 kWh", "1994765 import_low 901 20 1 kWh"]);
        store.commit(&batch([message(1, 10, "1.1"), message(5, 5, "1.0"), suspect, tariff])).await.unwrap();
        let first = ["1994764 import_low 5 10 1 kWh", "1994765 import_low 901 20 1 kWh"];
        assert_eq!(store.column(sql).await, first);
        let mut early = message(10, 0, "0.9");
        early.report.clock = Clock::Unsynchronised;
        store.commit(&batch([message(6, 700, "1.8"), early])).await.unwrap();
        assert_eq!(store.column(sql).await, first);
    }

    #[tokio::test]
    async fn old_messages_go_counted_back_from_the_newest_of_their_meter() {
        const DAY: i64 = 86_400;
        let (_folder, path, mut store) = store().await;
        let mut messages: Vec<Message> = (0..6000)
            .map(|seconds: i64| {
                let mut message = message(seconds.unsigned_abs() + 1, seconds, "1.000");
                message.report.info = vec![("n".into(), seconds.to_string())];
                message
            })
            .collect();
        // Another meter stopped a year ago, and once the first one's clock ran ahead.
        let mut gas = message(6001, -365 * DAY, "2.000");
        gas.report.meter = "G1".into();
        let mut ahead = message(6002, 5999, "3.000");
        ahead.report.measured_at = Moment::from_millis(START + 9000 * DAY * 1000, 60);
        messages.extend([gas, ahead]);
        store.commit(&batch(messages)).await.unwrap();

        assert_eq!(store.retain(Duration::from_secs(6000)).await.unwrap(), 0);
        assert_eq!(store.retain(Duration::from_secs(9)).await.unwrap(), RETAIN_ROWS);
        assert_eq!(store.retain(Duration::from_secs(9)).await.unwrap(), 990);
        assert_eq!(store.retain(Duration::MAX).await.unwrap(), 0);
        assert_eq!(Reader::open(&path).await.unwrap().counts().await.unwrap().messages, 12);
        let sql = "SELECT concat_ws(' ', count(*), min(content), (SELECT count(*) FROM quarter)) FROM remark";
        assert_eq!(store.column(sql).await, [r#"10 {"info":[["n","5990"]],"events":[],"unknown":[]} 9"#]);
        let pages = "SELECT iif(freelist_count * 8 <= page_count, 'returned', 'kept')
            FROM pragma_freelist_count, pragma_page_count";
        assert_eq!(store.column(pages).await, ["returned"]);
    }

    #[tokio::test]
    async fn the_view_shows_exact_decimals() {
        let (_folder, _path, mut store) = store().await;
        let values = ["3432.827", "-0.50", "0.000", "0.001", "-63", "0", "0.000000000000000001", "-999999999999999999"];
        let mut message = message(1, 0, "1");
        message.report.readings = values.map(|value| reading("energy", value, "GJ")).to_vec();
        message.report.readings[0].at = Some("1969-12-31T23:59:59.999Z".parse().unwrap());
        store.commit(&batch([message])).await.unwrap();
        assert_eq!(store.column("SELECT value FROM reading").await, values);
        let sql =
            "SELECT concat_ws(' ', meter, medium, measured_at, clock, register, unit, storage, tariff, subunit, at)
            FROM reading LIMIT 1";
        let row = "E1 electricity 2026-11-21T19:00:00.000Z meter energy GJ 0 0 0 1969-12-31T23:59:59.999Z";
        assert_eq!(store.column(sql).await, [row]);
    }

    #[tokio::test]
    async fn refused_messages_are_bounded() {
        let (_folder, _path, mut store) = store().await;
        let small: Vec<_> = (0..10_050).map(|_| refused(None, b"x")).collect();
        assert_eq!(store.commit(&small).await.unwrap().refused, 10_050);
        let sql = "SELECT concat_ws(' ', count(*), min(id), max(id)) FROM refused";
        assert_eq!(store.column(sql).await, ["10000 51 10050"]);
        store.commit(&vec![refused(None, &vec![0; 30 << 20]); 3]).await.unwrap();
        assert_eq!(store.column(sql).await, ["2 10052 10053"]);
    }

    #[tokio::test]
    async fn errors_say_what_is_wrong_and_what_helps() {
        let (folder, path, mut store) = store().await;
        let text = |error: StoreError| error.to_string().replace(&*folder.path().to_string_lossy(), "");
        assert!(text(Sqlite::open(&path).await.unwrap_err()).contains("another process writes this database; stop it"));
        store.sql("PRAGMA query_only = ON").await;
        let error = store.commit(&batch([message(1, 0, "1")])).await.unwrap_err();
        assert!(text(error).contains("read-only; let the daemon's user write to both"));
        store.sql("PRAGMA query_only = OFF").await;
        store.sql("INSERT INTO _sqlx_migrations SELECT 9999, '', '', 1, x'', 0").await;
        drop(store);
        for error in [Sqlite::open(&path).await.unwrap_err(), Reader::open(&path).await.unwrap_err()] {
            assert_eq!(
                text(error),
                "/new/meterkast.db: written by a newer meterkast (tables of version 9999); upgrade this one"
            );
        }
        let other = folder.path().join("other");
        assert!(text(Reader::open(&other).await.unwrap_err()).starts_with("/other: there is no database here; check"));
        fs::write(&other, [b'x'; 5000]).unwrap();
        for error in [Sqlite::open(&other).await.unwrap_err(), Reader::open(&other).await.unwrap_err()] {
            assert!(text(error).starts_with("/other: is not a meterkast database; check"));
        }
        assert!(text(Sqlite::open(folder.path()).await.unwrap_err()).contains("must name a file, not a directory"));
        let below = other.join("meterkast.db");
        assert!(text(Sqlite::open(&below).await.unwrap_err()).contains("must name a file, not a directory"));
    }

    #[tokio::test]
    async fn a_database_whose_daemon_was_killed_can_be_read() {
        let (folder, path, mut store) = store().await;
        store.commit(&batch([message(1, 0, "1")])).await.unwrap();
        let copy = folder.path().join("copy.db");
        fs::copy(&path, &copy).unwrap();
        fs::copy(path.with_extension("db-wal"), copy.with_extension("db-wal")).unwrap();
        assert_eq!(Reader::open(&copy).await.unwrap().counts().await.unwrap().messages, 1);
        store.close().await.unwrap();
        assert!(!path.with_extension("db-wal").exists());
        assert_eq!(Reader::open(&path).await.unwrap().counts().await.unwrap().messages, 1);
    }
}
