//! The store: what arrives on MQTT, committed, then acknowledged.
//!
//! Enters: messages of all gateways. Leaves: rows in a database, acknowledgements; and what the commands ask of it.
//!
//! - [`run`]: the role.
//! - [`Database`]: what it asks of a database. `write`, `ledgers`: how a batch becomes rows, the same for all of them; `apart`: what
//!   happens to one that is refused.
//! - [`Reader`]: what the commands ask of it, whether the daemon runs or not. [`Forget`]: what is to leave it.
//! - [`counters`]: what was used, across meters that were exchanged.
//! - [`sqlite`]: a file. [`postgres`]: a server.

use std::{error::Error, fmt, ops::Range, time::Duration};

use async_trait::async_trait;

use crate::{
    config::{self, StoreUrl},
    delivery::EpochAck,
    moment::Moment,
    mqtt::gateway::random_bits,
    payload::{Envelope, Message},
    reading::{Clock, Medium, Register, Report},
    unit::{Decimal, Unit},
};

mod apart;
pub mod counters;
mod error;
mod health;
mod ledgers;
mod lives;
mod peers;
pub mod postgres;
mod role;
mod rows;
pub mod sqlite;
#[cfg(test)]
mod story;
mod tables;
mod unpruned;
mod write;

pub use error::{StoreError, Trouble};
pub use role::{Settings, run};

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
    /// Numbers that are known since then never to arrive.
    pub lost: u64,
    /// What to acknowledge: each gateway of the batch in sorted order, with its most recently touched
    /// epochs (at most 250), the latest first.
    pub acks: Vec<(String, Vec<EpochAck>)>,
}

/// How a message that was refused is read: from its topic and payload. The error says why it cannot be.
pub type Read<'r> = dyn Fn(&str, &[u8]) -> Result<Message, String> + Sync + 'r;

/// What became of refused messages that were read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reread {
    /// Could be read, and are messages now.
    pub read: u64,
    /// Could not, for another reason than their schema.
    pub refused: u64,
}

impl Incoming {
    /// Its numbers, where they could be read.
    pub fn envelope(&self) -> Option<&Envelope> {
        match self {
            Self::Message(message) => Some(&message.envelope),
            Self::Refused { envelope, .. } => envelope.as_ref(),
        }
    }
}

/// What a store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Meters ever heard.
    pub meters: u64,
    /// Messages kept, sealed ones included.
    pub messages: u64,
    /// Refused messages kept.
    pub refused: u64,
}

/// How large a database is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    /// Bytes on disk; 0 while it is not known.
    pub bytes: u64,
    /// How many bytes it grew in a day, on an average of up to 30 days; None before the second day.
    pub bytes_a_day: Option<i64>,
}

/// A database as its writer sees it. All instants are UTC. Each error says what is wrong and what helps; after an error nothing of the
/// call is done, and the same call can be made again. After [`StoreError::Replaced`], or where [`StoreError::needs_reopening`] says so,
/// it is closed or abandoned, and opened anew.
#[async_trait]
pub trait Database: fmt::Debug + Send + Sync {
    /// 128 random bits in hex, drawn when the database was made or restored. See [`Ack`](crate::delivery::Ack).
    fn generation(&self) -> &str;

    /// 128 random bits in hex, drawn when a store opened the database last. See [`Ack::started`](crate::delivery::Ack::started).
    fn started(&self) -> &str;

    /// How large it is, as far as that is known without asking.
    fn size(&self) -> Size;

    /// The gateways that it knows, in sorted order.
    async fn gateways(&mut self) -> Result<Vec<String>, StoreError>;

    /// What to acknowledge to a gateway after a reconnect: its epochs, at most 1,000, those touched last first.
    async fn epochs(&mut self, gateway: &str) -> Result<Vec<EpochAck>, StoreError>;

    /// Reads messages again which an older build refused because their schema was newer than it could read, and
    /// which `schema`, the newest that is read now, includes. `read` is given topic and payload; its error is the
    /// new reason. Call it again until it returns zeros, before anything is committed.
    async fn reread(&mut self, schema: u32, read: &Read<'_>) -> Result<Reread, StoreError>;

    /// Writes a batch, all of it or nothing. It returns when the commit would survive a power cut.
    async fn commit(&mut self, batch: &[Incoming]) -> Result<Committed, StoreError>;

    /// One step of upkeep, far below a second: messages older than `retention`, counted back from their meter's newest, go; so do all
    /// but the 1,000 ledgers of each gateway that were touched last. Quarter-hours stay. Returns whether there is more to do.
    async fn keep_up(&mut self, retention: Duration) -> Result<bool, StoreError>;

    /// Lets go of a database that is damaged, and leaves it as it is.
    async fn abandon(self: Box<Self>);

    /// Closes it. Without that nothing is lost either.
    async fn close(self: Box<Self>) -> Result<(), StoreError>;
}

/// A database as the commands see it, whether a daemon runs or not. Nothing in it is changed.
#[async_trait]
pub trait Reader: fmt::Debug + Send {
    /// For each of these meters its newest report measured at or before `at` (of all when None), and when that was received (UTC). Of
    /// several at one instant the last stored. Medium and protocol are what the meter said last. One that has none is left out.
    async fn readings_of(
        &mut self,
        meters: &[Meter],
        at: Option<Moment>,
    ) -> Result<Vec<(Report<String>, Moment)>, StoreError>;

    /// For each of these meters its first report measured after `at`, and when that was received.
    async fn readings_after(
        &mut self,
        meters: &[Meter],
        at: Moment,
    ) -> Result<Vec<(Report<String>, Moment)>, StoreError>;

    /// [`readings_of`](Self::readings_of) every meter, in the order of their names.
    async fn readings(&mut self, at: Option<Moment>) -> Result<Vec<(Report<String>, Moment)>, StoreError> {
        let meters = self.meters().await?;
        self.readings_of(&meters, at).await
    }

    /// How much it holds.
    async fn counts(&mut self) -> Result<Counts, StoreError>;

    /// Every meter that was ever heard, in the order of their names.
    async fn meters(&mut self) -> Result<Vec<Meter>, StoreError>;

    /// The cumulative registers of a meter, in the order of their names, units and decimals.
    async fn series(&mut self, meter: &Meter) -> Result<Vec<Series>, StoreError>;

    /// Register values at quarter-hours, ascending. Values whose clock was not synchronised are left out.
    async fn quarters(&mut self, series: &Series, which: &Quarters) -> Result<Vec<Quarter>, StoreError>;

    /// Messages of a meter measured in `span`, ascending by time and by the order in which those of one instant were
    /// stored: the first `most` behind `after`. Where fewer come there are no more.
    async fn messages(
        &mut self,
        meter: &Meter,
        span: Range<i64>,
        after: Option<(i64, i64)>,
        most: usize,
    ) -> Result<Vec<Stored>, StoreError>;
}

/// What of a meter goes, or went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Forgotten {
    /// Messages, sealed ones included.
    pub messages: u64,
    /// Registers at quarter-hours.
    pub quarters: u64,
    /// What it said besides its readings: texts, events, what was not understood.
    pub remarks: u64,
    /// Messages on its topics that could not be read.
    pub refused: u64,
}

/// A database of which something is to be forgotten, while the store may run. The ledgers are not touched: without them the gateways
/// would send everything again.
#[async_trait]
pub trait Forget: fmt::Debug + Send {
    /// What would go of a meter: all, or what was measured before an instant (ms since 1970 UTC; of refused messages, received).
    async fn weigh(&mut self, meter: &Meter, before: Option<i64>) -> Result<Forgotten, StoreError>;

    /// Deletes a part of that, in a transaction far below a second: what went. None: nothing is left, and without `before` the meter itself
    /// is gone, with its series; what it sends from then on is stored as that of a new one.
    async fn step(&mut self, meter: &Meter, before: Option<i64>) -> Result<Option<Forgotten>, StoreError>;

    /// Has what was deleted leave the files, as far as the database can. False: somebody who reads an older state keeps it there.
    async fn wipe(&mut self) -> Result<bool, StoreError>;
}

/// A meter, as a store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meter {
    /// Its number in this database.
    pub id: i64,
    /// What it says of itself, such as `E0043007052870318`.
    pub name: String,
    /// What it measures.
    pub medium: Medium,
    /// `p1` or `mbus`.
    pub protocol: String,
    /// The gateway it was last received by.
    pub gateway: String,
    /// The meter whose place it took, where its gateway saw that.
    pub predecessor: Option<String>,
    /// When its first message was received, ms since 1970 UTC, by the gateway's clock.
    pub first_seen: i64,
    /// When its last message was received.
    pub last_seen: i64,
}

/// The values of one register of one meter in one unit, with one number of decimals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Series {
    /// Its number in this database.
    pub id: i64,
    /// The meter's number.
    pub meter: i64,
    /// Which register.
    pub register: Register,
    /// The unit of its values.
    pub unit: Unit,
    /// How many decimals its values have.
    pub scale: u8,
}

/// Which quarter-hours are asked for. A quarter-hour's number is the seconds since 1970 UTC / 900, rounded down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Quarters {
    /// All from one to before another.
    All(Range<i64>),
    /// What says all of some marks: the first and the last values there are, the values next to each mark, and those next to each fall (a
    /// value lower than the one before it). See [`consumption::thin`](crate::consumption::thin).
    Around {
        /// Ascending.
        marks: Vec<i64>,
        /// How many values before each of them, and how many from it on.
        each: u8,
    },
}

/// The first value of a register in a quarter-hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quarter {
    /// The quarter-hour's number.
    pub quarter: i64,
    /// When it was measured, ms since 1970 UTC.
    pub at: i64,
    /// The value.
    pub value: Decimal,
}

/// A message as it was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// When it was measured (ms since 1970 UTC), and its place among those of this instant: its key.
    pub key: (i64, i64),
    /// What the meter said.
    pub report: Report<String>,
    /// When the gateway received it, UTC.
    pub received_at: Moment,
}

/// Opens the database of `[store]` for writing, and makes what it lacks.
pub async fn open(store: &config::Store) -> Result<Box<dyn Database>, StoreError> {
    Ok(match &store.url {
        StoreUrl::Sqlite(path) => Box::new(sqlite::Sqlite::open(path).await?),
        StoreUrl::Postgres(url) => Box::new(postgres::Postgres::open(url).await?),
    })
}

/// Opens a database for reading; it must exist.
pub async fn read(url: &StoreUrl) -> Result<Box<dyn Reader>, StoreError> {
    Ok(match url {
        StoreUrl::Sqlite(path) => Box::new(sqlite::Reader::open(path).await?),
        StoreUrl::Postgres(url) => Box::new(postgres::Reader::open(url).await?),
    })
}

/// Opens a database in which something is to be forgotten; it must exist.
pub async fn forget(url: &StoreUrl) -> Result<Box<dyn Forget>, StoreError> {
    Ok(match url {
        StoreUrl::Sqlite(path) => Box::new(sqlite::Forgetter::open(path).await?),
        StoreUrl::Postgres(url) => Box::new(postgres::Forgetter::open(url).await?),
    })
}

/// Column `clock` is the place in this list.
const CLOCKS: [Clock; 4] = [Clock::Meter, Clock::Telegram, Clock::Gateway, Clock::Unsynchronised];

/// The place of a clock in [`CLOCKS`].
fn clock_code(clock: Clock) -> i64 {
    CLOCKS.iter().zip(0..).find(|&(&entry, _)| entry == clock).map_or(3, |(_, code)| code)
}

/// A row that this program did not write.
fn unreadable(error: impl Into<Box<dyn Error + Send + Sync>>) -> sqlx::Error {
    sqlx::Error::Decode(error.into())
}

/// A number as a column. Numbers beyond an i64 come from no real gateway; cut, they stay unconfirmed.
fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Integers and strings always serialise.
fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// 128 random bits in hex.
fn draw() -> String {
    format!("{:032x}", random_bits())
}
