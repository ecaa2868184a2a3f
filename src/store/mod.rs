//! The store: what arrives on MQTT, committed, then acknowledged.
//!
//! Enters: messages of all gateways. Leaves: rows in a database, and after each commit an
//! acknowledgement for each gateway in it. A message that cannot be read is kept as it came.
//!
//! Live messages wait for each other up to `[store] commit`, which spares SD cards. What comes through
//! a backlog is committed as soon as no more follows at once: a gateway waits for it.
//!
//! - [`sqlite`]: the database.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::{sync::watch, time::Instant};

use crate::{
    config::{self, BrokerUrl},
    delivery::{Ack, EpochAck, topic},
    moment::Moment,
    mqtt::{
        gateway::random_bits,
        link::{self, Command, Event, Link, Will},
    },
    payload::{Envelope, Message, Refused},
    pulse::Pulse,
    reading::escape,
};

pub mod sqlite;

use sqlite::{Incoming, RETAIN_ROWS, Sqlite};

/// Most messages in one commit.
const BATCH: usize = 1000;
/// Messages of a backlog that are committed while more follow: half of what a gateway has outstanding,
/// so that it fills one half while the other is written.
const BACKLOG_BATCH: usize = 500;
/// No message for this long: the gateway's backlog has paused.
const BACKLOG_PAUSE: Duration = Duration::from_millis(20);
/// Between attempts to open the database, or to commit.
const RETRY: Duration = Duration::from_secs(5);
/// Between looks for messages past their retention.
const RETENTION: Duration = Duration::from_secs(600);
/// The loop turns at least so often, to show that it lives.
const TURN: Duration = Duration::from_secs(10);

/// What a store is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `[store]`.
    pub store: config::Store,
    /// `[mqtt]`.
    pub mqtt: config::Mqtt,
    /// Its sign of life.
    pub pulse: Pulse,
}

/// Stores until `stop` becomes true, then commits what it has. `broker` says where the broker is as soon
/// as that is known.
pub async fn run(settings: Settings, mut broker: watch::Receiver<Option<BrokerUrl>>, mut stop: watch::Receiver<bool>) {
    let database = tokio::select! {
        database = open(&settings) => database,
        () = stopped(&mut stop) => return,
    };
    let link = tokio::select! {
        link = connect(&settings, &mut broker) => link,
        () = stopped(&mut stop) => return,
    };
    let Some(link) = link else { return };
    let role = Role {
        retain_at: Instant::now(),
        settings,
        started: format!("{:032x}", random_bits()),
        database,
        link,
        connected: false,
        complained: false,
        batch: Vec::with_capacity(BATCH),
        commit_at: None,
        backlog: false,
        refused: 0,
        acks: BTreeMap::new(),
        stop,
    };
    role.run().await;
}

/// Opens the database, trying again for as long as it cannot be opened.
async fn open(Settings { store: settings, pulse, .. }: &Settings) -> Sqlite {
    let mut said = String::new();
    loop {
        pulse.beat();
        match Sqlite::open(settings.url.path()).await {
            Ok(database) => {
                tracing::info!("store {}: {}", settings.id.as_str(), settings.url);
                return database;
            }
            Err(error) => {
                let text = error.to_string();
                if said != text {
                    tracing::error!("store: {text}; nothing is stored until then, and the gateways keep everything");
                    pulse.say(format!("waits for its database: {text}"));
                    said = text;
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn connect(settings: &Settings, broker: &mut watch::Receiver<Option<BrokerUrl>>) -> Option<Link> {
    if broker.borrow().is_none() {
        settings.pulse.say("waits for the broker");
    }
    settings.pulse.rest();
    let url = broker.wait_for(Option::is_some).await.ok()?.clone()?;
    let id = settings.store.id.as_str();
    let will = Will { topic: topic::of_store(settings.mqtt.base_topic.as_str(), id), payload: "offline".into() };
    let link = link::start(&url, &format!("meterkast-store-{}", topic::level(id)), &settings.mqtt, Some(will));
    link.map_err(|error| tracing::error!("{error}")).ok()
}

struct Role {
    settings: Settings,
    /// Random: see [`Ack::started`].
    started: String,
    database: Sqlite,
    link: Link,
    connected: bool,
    /// The trouble with the connection was said.
    complained: bool,
    batch: Vec<Incoming>,
    /// When the batch is committed at the latest.
    commit_at: Option<Instant>,
    /// Whether the batch holds messages of a backlog.
    backlog: bool,
    /// Messages refused since the start.
    refused: u64,
    /// What still has to be published, by gateway: the newest only.
    acks: BTreeMap<String, Vec<EpochAck>>,
    retain_at: Instant,
    /// Becomes true when it is time to end.
    stop: watch::Receiver<bool>,
}

impl Role {
    async fn run(mut self) {
        let mut stop = self.stop.clone();
        loop {
            self.settings.pulse.beat();
            self.publish_acks();
            if self.batch.len() >= BATCH || (self.backlog && self.batch.len() >= BACKLOG_BATCH) {
                self.commit().await;
                continue;
            }
            let commit_at = self.commit_at;
            let commands = self.link.commands.clone();
            tokio::select! {
                biased;
                () = stopped(&mut stop) => break,
                event = self.link.events.recv() => match event {
                    Some(event) => self.hear(event).await,
                    None => break,
                },
                room = commands.reserve(), if self.connected && !self.acks.is_empty() => drop(room),
                () = tokio::time::sleep(BACKLOG_PAUSE), if self.backlog => self.commit().await,
                () = sleep_until(commit_at), if commit_at.is_some() => self.commit().await,
                () = tokio::time::sleep_until(self.retain_at) => self.retain().await,
                () = tokio::time::sleep(TURN) => {}
            }
        }
        self.close().await;
    }

    async fn hear(&mut self, event: Event) {
        match event {
            Event::Connected => {
                self.connected = true;
                self.complained = false;
                self.settings.pulse.say("online");
                let base = self.settings.mqtt.base_topic.as_str();
                let id = self.settings.store.id.as_str();
                tracing::info!("connected to the broker as store {id}");
                let topics = vec![format!("{base}/+/+/telegram"), format!("{base}/+/+/backlog")];
                let online = Command::Publish {
                    topic: topic::of_store(base, id),
                    payload: "online".into(),
                    retain: true,
                    tag: None,
                };
                // In this order: a gateway that hears `online` sends at once.
                for command in [Command::Subscribe(topics), online] {
                    let _ = self.link.commands.try_send(command);
                }
                match self.database.ledgers().await {
                    Ok(ledgers) => self.acks.extend(ledgers),
                    Err(error) => tracing::error!("store: {error}"),
                }
            }
            Event::Disconnected { reason } => {
                if self.connected || !self.complained {
                    tracing::warn!("{reason}");
                }
                self.connected = false;
                self.complained = true;
                self.settings.pulse.say("waits for the broker");
            }
            Event::Message { topic, payload, .. } => self.take(topic, &payload),
            Event::Published(_) | Event::Dropped(_) => {}
        }
    }

    fn take(&mut self, topic: String, payload: &Bytes) {
        let Some((gateway, meter, stream)) = topic::parse_message(self.settings.mqtt.base_topic.as_str(), &topic)
        else {
            return;
        };
        let deadline = Instant::now() + self.settings.store.commit;
        self.backlog |= stream == topic::Stream::Backlog;
        self.commit_at.get_or_insert(deadline);
        let incoming = read(gateway, meter, payload).unwrap_or_else(|refused| {
            self.refused = self.refused.saturating_add(1);
            // The 1st, 2nd, 4th, 8th...: whoever can publish must not be able to fill the log, or write lines of it.
            if self.refused.is_power_of_two() {
                let (topic, reason, count) = (shown(&topic), shown(&refused.reason), self.refused);
                tracing::warn!(
                    "a message under {topic} is refused: {reason}; it is kept in the table `refused` ({count} so far)"
                );
            }
            Incoming::Refused {
                topic: topic.clone(),
                payload: payload.to_vec(),
                reason: refused.reason,
                schema: refused.schema,
                envelope: refused.envelope.map(|envelope| *envelope),
                received_at: Moment::utc(Timestamp::now()),
            }
        });
        self.batch.push(incoming);
    }

    /// Commits the batch, trying again for as long as it takes: meanwhile nothing more is taken.
    async fn commit(&mut self) {
        let mut said = String::new();
        while !self.batch.is_empty() {
            self.settings.pulse.beat();
            match self.database.commit(&self.batch).await {
                Ok(committed) => {
                    if !said.is_empty() {
                        tracing::info!("store: committing again");
                        self.settings.pulse.say("online");
                    }
                    self.acks.extend(committed.acks);
                    self.batch.clear();
                }
                Err(error) => {
                    let text = error.to_string();
                    if said != text {
                        tracing::error!(
                            "store: {text}; nothing is stored until then, and the gateways keep everything"
                        );
                        self.settings.pulse.say(format!("waits for its database: {text}"));
                        said = text;
                    }
                    tokio::select! {
                        () = tokio::time::sleep(RETRY) => {}
                        () = stopped(&mut self.stop) => break,
                    }
                }
            }
        }
        // What could not be committed is not acknowledged, and comes again.
        self.batch.clear();
        self.backlog = false;
        self.commit_at = None;
    }

    /// Publishes what was committed, as far as there is room.
    fn publish_acks(&mut self) {
        let store = self.settings.store.id.as_str();
        while self.connected
            && let Some(entry) = self.acks.first_entry()
        {
            let Ok(room) = self.link.commands.try_reserve() else { return };
            let (gateway, epochs) = entry.remove_entry();
            let ack = Ack {
                store: store.to_owned(),
                generation: self.database.generation().to_owned(),
                started: self.started.clone(),
                epochs,
            };
            room.send(Command::Publish {
                topic: topic::ack(self.settings.mqtt.base_topic.as_str(), &gateway, store),
                payload: ack.to_json(),
                retain: true,
                tag: None,
            });
        }
    }

    async fn retain(&mut self) {
        self.retain_at = Instant::now() + RETENTION;
        match self.database.retain(self.settings.store.retention).await {
            // More to do: soon, but not before what has arrived.
            Ok(rows) if rows >= RETAIN_ROWS => self.retain_at = Instant::now() + Duration::from_secs(1),
            Ok(_) => {}
            Err(error) => tracing::error!("store: {error}"),
        }
    }

    async fn close(mut self) {
        // What has already arrived is still taken.
        while let Ok(event) = self.link.events.try_recv() {
            self.hear(event).await;
        }
        self.commit().await;
        self.publish_acks();
        if self.connected {
            let topic = topic::of_store(self.settings.mqtt.base_topic.as_str(), self.settings.store.id.as_str());
            let offline = Command::Publish { topic, payload: "offline".into(), retain: true, tag: None };
            for command in [offline, Command::Close] {
                let _ = self.link.commands.try_send(command);
            }
            let events = &mut self.link.events;
            let closed = async { while !matches!(events.recv().await, None | Some(Event::Disconnected { .. })) {} };
            let _ = tokio::time::timeout(Duration::from_secs(1), closed).await;
        }
        if let Err(error) = self.database.close().await {
            tracing::warn!("store: {error}");
        }
    }
}

/// A message that cannot be stored as readings.
struct Unreadable {
    reason: String,
    schema: u32,
    envelope: Option<Box<Envelope>>,
}

/// Reads a message that came under the topic of `gateway` and `meter`, both as topic levels.
fn read(gateway: &str, meter: &str, payload: &[u8]) -> Result<Incoming, Unreadable> {
    // A payload that speaks for another gateway must not touch that gateway's numbers.
    let (schema, envelope) = match Envelope::from_json(payload) {
        Ok((schema, envelope)) if topic::level(&envelope.gateway) == gateway => (schema, Some(Box::new(envelope))),
        Ok((schema, envelope)) => {
            let reason = format!("it says it is from gateway {}", envelope.gateway);
            return Err(Unreadable { reason, schema, envelope: None });
        }
        Err(refused) => return Err(Unreadable { reason: refused.to_string(), schema: 0, envelope: None }),
    };
    match Message::from_json(payload) {
        Ok(message) if topic::level(&message.report.meter) == meter => Ok(Incoming::Message(message)),
        Ok(message) => {
            Err(Unreadable { reason: format!("it says it is of meter {}", message.report.meter), schema, envelope })
        }
        Err(refused @ (Refused::NewerSchema(_) | Refused::Malformed(_))) => {
            Err(Unreadable { reason: refused.to_string(), schema, envelope })
        }
    }
}

/// The beginning of a text that came from outside, fit for a log.
fn shown(text: &str) -> String {
    escape(text.as_bytes().get(..200).unwrap_or(text.as_bytes()))
}

/// Until it is time to end.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error says that nobody is left who could tell.
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn sleep_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
}
