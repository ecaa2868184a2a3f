//! The store in a PostgreSQL server, 15 or newer: any number of writers and readers.
//!
//! Enters: batches of [`Incoming`]. Leaves: rows (see `postgres/0001_main.sql`), and for each gateway what to acknowledge, once it is
//! committed: a commit returns when the server has synced it. Reports leave through [`Reader`] exactly as they entered.
//!
//! Several stores may write one database. Who commits holds the ledgers of the runs in its batch, taken in sorted order, until the end; messages of
//! one instant that come by way of two gateways wait for each other at their key. A circle is broken by the server and tried again. Migrations run under a
//! lock; where the tables are there, the user needs no right to make any.
//!
//! - `text`, `instant`: what the server's types cannot hold as it is.
//! - `session`: what need not be asked again. `tables`: the statements. `read`: rows become reports. `forget`: what leaves. `hypertable`: what TimescaleDB is asked for where it is.
//!
//! Not supported: poolers that give each transaction another connection (PgBouncer's transaction mode), because statements are
//! prepared; instants before 4713 BC, finer than a millisecond.

use std::{
    fmt, fs,
    future::Future,
    io,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection,
    migrate::{MigrateError, Migrator},
    postgres::PgConnectOptions,
    query_as, query_scalar, raw_sql,
};

use super::{
    Committed, Database, Incoming, Read, Reread, Size, StoreError, Trouble, draw, ledgers::EPOCHS, number,
    tables::Tables as _, unpruned::Unpruned, unreadable, write,
};
use crate::{config::PostgresUrl, delivery::EpochAck};

mod forget;
mod hypertable;
mod instant;
mod read;
mod session;
mod tables;
mod text;

#[cfg(test)]
#[path = "../../tests/all/postgres.rs"]
#[allow(dead_code, reason = "the tests of the whole use the rest")]
pub(super) mod server;
#[cfg(test)]
mod tests;

use session::{Memory, Session};

pub use forget::Forgetter;
pub use read::Reader;

static MIGRATIONS: Migrator = sqlx::migrate!("src/store/postgres");

/// `server_version_num` of the oldest server that will do.
const OLDEST: i32 = 150_000;
/// Longest time for a connection to stand, and for a commit to end: beyond it the way to the server is taken for broken.
const CONNECTING: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(50);
/// How long what another store broke up is tried again at once.
const INSIST: Duration = Duration::from_secs(10);
/// Longest time for a word before going on without an answer.
const FAREWELL: Duration = Duration::from_secs(1);
/// Most messages that one step of upkeep deletes, so that commits never wait for long.
const RETAIN_ROWS: u64 = 5000;
/// The longest retention that the server can count back from 1970.
const LONGEST: Duration = Duration::from_secs(2000 * 365 * 86_400);

/// How our sessions are set.
const SESSION: &str = "
    -- An acknowledgement frees the gateway's journal, so a commit must survive a power cut. Where a standby must have it, too, that stays.
    SELECT set_config('synchronous_commit', 'on', false)
        WHERE current_setting('synchronous_commit') IN ('off', 'local', 'remote_write');
    SET TIME ZONE 'UTC';
    -- Lists of a thousand keys differ from lists of one: each is planned as it is.
    SET plan_cache_mode = force_custom_plan;
    -- So that the daemon's own limits come last.
    SET lock_timeout = '10s';
    SET statement_timeout = '40s';
    -- The rows that a store held which is gone.
    SET idle_in_transaction_session_timeout = '30s'";

/// A writer.
pub struct Postgres {
    /// The URL as it may be shown.
    place: String,
    session: Session,
    generation: String,
    started: String,
    /// Whether a transaction was begun and not ended: a call that was dropped half-way leaves it so.
    unfinished: bool,
    /// How large the database was when it was last looked at.
    size: Size,
    unpruned: Unpruned,
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Postgres({})", self.place)
    }
}

impl Postgres {
    /// Opens the database, making its tables if they are missing.
    pub async fn open(url: &PostgresUrl) -> Result<Self, StoreError> {
        let place = url.to_string();
        let mut connection = connect(url).await?;
        let prepared = tokio::time::timeout(ANSWER, prepare(&mut connection, &place)).await;
        let (generation, started) = prepared.unwrap_or_else(|_| Err(StoreError::postgres(&place, timed_out())))?;
        let size = within(ANSWER, tables::size(&mut connection)).await;
        let size = size.map_err(|error| StoreError::postgres(&place, error))?;
        let session = Session::new(connection);
        Ok(Self { place, session, generation, started, unfinished: false, size, unpruned: Unpruned::UNKNOWN })
    }

    async fn prune_refused(&mut self, batch: &[Incoming]) -> Result<(), sqlx::Error> {
        if self.unpruned.is_due_with(batch) {
            tables::prune_refused(&mut self.session.connection).await?;
            self.unpruned = Unpruned::default();
        }
        Ok(())
    }

    async fn commit_once(&mut self, batch: &[Incoming]) -> Result<Committed, sqlx::Error> {
        self.begin().await?;
        let committed = write::write(&mut self.session, batch).await?;
        self.prune_refused(batch).await?;
        // Which start gateways are told must be that of the moment: another store may have opened the database since.
        self.look_at_start().await?;
        self.end().await?;
        Ok(committed)
    }

    /// Learns of another start. Under another generation nothing more is said: the database was restored, and is opened anew.
    async fn look_at_start(&mut self) -> Result<(), sqlx::Error> {
        let sql = "SELECT generation, started FROM store";
        let (generation, started): (String, String) = query_as(sql).fetch_one(&mut self.session.connection).await?;
        if generation != self.generation {
            return Err(unreadable("it was restored while it was in use; it is opened anew"));
        }
        self.started = started;
        Ok(())
    }

    async fn keep_up_once(&mut self, retention: Duration) -> Result<bool, sqlx::Error> {
        self.take_back().await?;
        self.unfinished = true;
        raw_sql("BEGIN ISOLATION LEVEL READ COMMITTED").execute(&mut self.session.connection).await?;
        let more = tables::keep_up(&mut self.session.connection, retention.min(LONGEST), number(RETAIN_ROWS)).await?;
        self.size = tables::size(&mut self.session.connection).await?;
        self.end().await?;
        Ok(more)
    }

    async fn reread_once(&mut self, schema: u32, read: &Read<'_>) -> Result<Reread, sqlx::Error> {
        self.begin().await?;
        let reread = write::reread(&mut self.session, schema, read).await?;
        self.end().await?;
        Ok(reread)
    }

    async fn begin(&mut self) -> Result<(), sqlx::Error> {
        self.take_back().await?;
        self.unfinished = true;
        self.session.begin().await
    }

    /// Ends a transaction that was left half-way.
    async fn take_back(&mut self) -> Result<(), sqlx::Error> {
        if self.unfinished {
            self.session.memory = Memory::default();
            raw_sql("ROLLBACK").execute(&mut self.session.connection).await?;
            self.unfinished = false;
        }
        Ok(())
    }

    async fn end(&mut self) -> Result<(), sqlx::Error> {
        // A transaction that failed answers COMMIT with a rollback, and no error; none of ours gets here.
        raw_sql("COMMIT").execute(&mut self.session.connection).await?;
        self.unfinished = false;
        Ok(())
    }

    /// What became of a transaction; None: another store was in its way, and it may well succeed now.
    async fn settle<T>(&mut self, result: Result<T, sqlx::Error>, begin: Instant) -> Option<Result<T, StoreError>> {
        let error = match result {
            Ok(value) => return Some(Ok(value)),
            Err(error) => StoreError::postgres(&self.place, error),
        };
        self.unpruned = Unpruned::UNKNOWN;
        self.session.memory = Memory::default();
        // The next call would begin with it; but other stores wait for what is held.
        if !error.needs_reopening()
            && within(FAREWELL, raw_sql("ROLLBACK").execute(&mut self.session.connection)).await.is_ok()
        {
            self.unfinished = false;
        }
        let contended = matches!(error, StoreError::Database { trouble: Trouble::Busy, .. });
        (!contended || begin.elapsed() > INSIST).then_some(Err(error))
    }
}

#[async_trait]
impl Database for Postgres {
    fn generation(&self) -> &str {
        &self.generation
    }

    fn started(&self) -> &str {
        &self.started
    }

    fn size(&self) -> Size {
        self.size
    }

    async fn gateways(&mut self) -> Result<Vec<String>, StoreError> {
        let gateways = within(ANSWER, tables::gateways(&mut self.session.connection)).await;
        gateways.map_err(|error| StoreError::postgres(&self.place, error))
    }

    async fn epochs(&mut self, gateway: &str) -> Result<Vec<EpochAck>, StoreError> {
        let asked = async {
            // First the start, then what was confirmed: never something newer under an older start's name alone.
            self.look_at_start().await?;
            self.session.newest_ledgers(&[gateway], EPOCHS).await
        };
        let ledgers = within(ANSWER, asked).await;
        let mut ledgers = ledgers.map_err(|error| StoreError::postgres(&self.place, error))?;
        Ok(ledgers.pop().map(|(_, epochs)| epochs).unwrap_or_default())
    }

    async fn reread(&mut self, schema: u32, read: &Read<'_>) -> Result<Reread, StoreError> {
        let begin = Instant::now();
        loop {
            let result = within(ANSWER, self.reread_once(schema, read)).await;
            if let Some(settled) = self.settle(result, begin).await {
                return settled;
            }
        }
    }

    async fn commit(&mut self, batch: &[Incoming]) -> Result<Committed, StoreError> {
        if batch.is_empty() {
            return Ok(Committed::default());
        }
        let begin = Instant::now();
        loop {
            let result = within(ANSWER, self.commit_once(batch)).await;
            if let Some(settled) = self.settle(result, begin).await {
                return settled;
            }
        }
    }

    async fn keep_up(&mut self, retention: Duration) -> Result<bool, StoreError> {
        let begin = Instant::now();
        loop {
            let result = within(ANSWER, self.keep_up_once(retention)).await;
            if let Some(settled) = self.settle(result, begin).await {
                return settled;
            }
        }
    }

    async fn abandon(self: Box<Self>) {
        // A farewell could wait for a server that is gone; a broken connection says as much.
    }

    async fn close(self: Box<Self>) -> Result<(), StoreError> {
        let Self { place, session, .. } = *self;
        within(FAREWELL, session.connection.close()).await.map_err(|error| StoreError::postgres(&place, error))
    }
}

/// Connects, and sets the session.
async fn connect(url: &PostgresUrl) -> Result<PgConnection, StoreError> {
    let place = url.to_string();
    let wrong = |error| StoreError::postgres(&place, error);
    let mut options: PgConnectOptions = url.secret().parse().map_err(wrong)?;
    if let Some(path) = &url.password_file {
        let password = fs::read_to_string(path).map_err(|error| StoreError::Database {
            place: place.clone(),
            trouble: Trouble::PasswordFile,
            source: format!("{}: {error}", path.display()).into(),
        })?;
        options = options.password(password.trim_end_matches(['\r', '\n']));
    }
    if options.get_application_name().is_none() {
        options = options.application_name("meterkast");
    }
    let options = options.disable_statement_logging();
    let connecting = async {
        let mut connection = options.connect().await?;
        raw_sql(SESSION).execute(&mut connection).await?;
        Ok(connection)
    };
    within(CONNECTING, connecting).await.map_err(wrong)
}

/// Whether the server will do, then the tables. Returns generation and start.
async fn prepare(connection: &mut PgConnection, place: &str) -> Result<(String, String), StoreError> {
    let wrong = |error| StoreError::postgres(place, error);
    let sql = "SELECT current_setting('server_version_num')::integer, current_setting('server_version'),
        current_setting('server_encoding'), current_setting('fsync') = 'on' AND current_setting('full_page_writes') = 'on'";
    let (number, version, encoding, syncs): (i32, String, String, bool) =
        query_as(sql).fetch_one(&mut *connection).await.map_err(wrong)?;
    check_version(number, &version, place)?;
    if encoding != "UTF8" {
        let source = format!("it is {encoding}").into();
        return Err(StoreError::Database { place: place.to_owned(), trouble: Trouble::Encoding, source });
    }
    if !syncs {
        tracing::warn!(
            "store: {place}: the server has fsync or full_page_writes switched off: a power cut there may lose what was stored"
        );
    }
    migrate(connection, place).await?;
    hypertable::prepare(connection, place).await.map_err(wrong)?;
    let started = draw();
    let sql = "INSERT INTO store (id, generation, started) VALUES (1, $1, $2)
        ON CONFLICT (id) DO UPDATE SET started = excluded.started RETURNING generation";
    let generation = query_scalar(sql).bind(draw()).bind(&started).fetch_one(connection).await.map_err(wrong)?;
    Ok((generation, started))
}

/// Whether a server of this version will do.
fn check_version(number: i32, version: &str, place: &str) -> Result<(), StoreError> {
    let source = format!("this one is {version}").into();
    let error = StoreError::Database { place: place.to_owned(), trouble: Trouble::TooOld, source };
    if number < OLDEST { Err(error) } else { Ok(()) }
}

/// Makes or changes the tables where they are not as they must be. Where they are no right to do so is needed.
async fn migrate(connection: &mut PgConnection, place: &str) -> Result<(), StoreError> {
    let wrong = |error| StoreError::postgres(place, error);
    let newest = MIGRATIONS.iter().map(|migration| migration.version).max();
    match version(connection).await.map_err(wrong)? {
        Some(version) if Some(version) == newest => Ok(()),
        Some(version) if Some(version) > newest => Err(StoreError::Newer { place: place.to_owned(), version }),
        // `run` would make this future one that cannot move to another thread.
        _ => MIGRATIONS.run_direct(None, connection, false).await.map_err(|error| match error {
            MigrateError::VersionMissing(version) => StoreError::Newer { place: place.to_owned(), version },
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => wrong(error),
            other => wrong(other.into()),
        }),
    }
}

/// The version of the tables; None where there are none.
async fn version(connection: &mut PgConnection) -> Result<Option<i64>, sqlx::Error> {
    let there = "SELECT to_regclass('_sqlx_migrations') IS NOT NULL";
    match query_scalar(there).fetch_one(&mut *connection).await? {
        true => query_scalar("SELECT max(version) FROM _sqlx_migrations").fetch_one(connection).await,
        false => Ok(None),
    }
}

/// What takes longer than this failed: the way to the server may be broken without a word.
async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, sqlx::Error>> + Send,
) -> Result<T, sqlx::Error> {
    tokio::time::timeout(limit, call).await.unwrap_or_else(|_| Err(timed_out()))
}

fn timed_out() -> sqlx::Error {
    sqlx::Error::Io(io::ErrorKind::TimedOut.into())
}
