//! The role: what arrives on MQTT is committed, then acknowledged.
//!
//! Enters: messages of all gateways. Leaves: batches to a [`Database`], and after each commit an
//! acknowledgement for each gateway in it; its health. A message that cannot be read is kept as it came, and read
//! again after an upgrade where a newer build can.
//!
//! A message that the database does not take is kept as refused (see `apart`): nothing else waits for it.
//!
//! While the database is in trouble the messages of one batch wait in memory; what comes beyond is declined, by
//! saying nothing, and comes again.
//!
//! Live messages wait for each other up to `[store] commit`, which spares SD cards. What comes through
//! a backlog is committed as soon as no more follows at once: a gateway waits for it.
//!
//! Several stores of one id may write a database that is shared: they share a subscription, so each message comes to one of them. When one ends, what it
//! had not committed comes again through the gateways' backlogs, to another; and one that lives says that the store is online. One whose
//! database does not answer steps aside in the same way, as if it had ended, until it does.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    pin::pin,
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{
    Database, Incoming, Reread, StoreError,
    apart::{self, Outcome},
    health::Health,
    lives::Lives,
    peers::Peers,
};
use crate::{
    config::{self, BrokerUrl, StoreUrl},
    delivery::{Ack, EpochAck, topic},
    moment::Moment,
    mqtt::{
        MAX_PACKET,
        gateway::random_bits,
        link::{self, Command, Complaints, Event, Link, Will},
    },
    payload::{self, Envelope, Message, Refused},
    pulse::Pulse,
    reading::escape,
};

/// Most messages in one commit, and bytes of them but for the message that is one too many: of a file on an SD card, and of a server, where many
/// gateways share what a commit and its acknowledgements cost.
const BATCH: (usize, usize) = (1000, 4 * 1024 * 1024);
const BATCH_SERVED: (usize, usize) = (5000, 8 * 1024 * 1024);
/// Messages of a backlog, and bytes of them, that are committed while more follow: half of what a gateway has
/// outstanding, so that it fills one half while the other is written.
const BACKLOG_BATCH: usize = 500;
const BACKLOG_BYTES: usize = 512 * 1024;
/// No message for this long: the gateway's backlog has paused.
const BACKLOG_PAUSE: Duration = Duration::from_millis(20);
/// Between attempts to open the database, or to commit.
const RETRY: Duration = Duration::from_secs(5);
/// Between rounds of upkeep.
const UPKEEP: Duration = Duration::from_secs(600);
/// Between its steps, while there is more to do: what has arrived goes first.
const UPKEEP_STEP: Duration = Duration::from_secs(1);
/// 0001-01-01T00:00:00Z, in ms since 1970.
const YEAR_ONE: i64 = -62_135_596_800_000;
/// The loop turns at least so often, to show that it lives.
const TURN: Duration = Duration::from_secs(10);
/// After so long in trouble a store steps aside for others on its database: not upon a restart of the server, which is over by then.
const STEP_ASIDE: Duration = RETRY;
/// What the trouble of a database means.
const MEANWHILE: &str = "nothing is stored until then, and the gateways keep everything";

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
    // Of the stores on one database each has its own.
    let shared = settings.store.url.is_shared();
    let name = if shared { format!("{:08x}", random_bits() as u32) } else { String::new() };
    let opened = tokio::select! {
        opened = open(&settings) => opened,
        () = stopped(&mut stop) => return,
    };
    let link = tokio::select! {
        link = connect(&settings, &name, &mut broker) => link,
        () = stopped(&mut stop) => return,
    };
    let Some(link) = link else { return };
    let (database, failed) = match opened {
        Ok(database) => (Some(database), None),
        Err(error) => (None, Some(error)),
    };
    let mut role = Role {
        upkeep_at: Instant::now(),
        most: match settings.store.url {
            StoreUrl::Sqlite(_) => BATCH,
            StoreUrl::Postgres(_) => BATCH_SERVED,
        },
        status_topic: topic::of_store(settings.mqtt.base_topic.as_str(), settings.store.id.as_str()),
        health_topic: topic::store_health(settings.mqtt.base_topic.as_str(), settings.store.id.as_str()),
        name,
        peers: Peers::default(),
        settings,
        database,
        trouble: None,
        retry_at: None,
        link,
        held: None,
        connected: false,
        subscribed: false,
        complaints: Complaints::default(),
        batch: Vec::new(),
        batch_bytes: 0,
        commit_at: None,
        backlog: false,
        refused: 0,
        shared: 0,
        lives: Lives::default(),
        health: Health::default(),
        commands: VecDeque::new(),
        greetings: BTreeSet::new(),
        acks: BTreeMap::new(),
        stop,
    };
    match failed {
        Some(error) => role.fail(error).await,
        None => role.opened().await,
    }
    role.run().await;
}

/// Opens the database. While another process has it nothing is done: that one is connected under our name.
async fn open(Settings { store: settings, pulse, .. }: &Settings) -> Result<Box<dyn Database>, StoreError> {
    let mut said = false;
    loop {
        pulse.beat();
        match super::open(settings).await {
            Err(error @ StoreError::Held(_)) => {
                if !said {
                    tracing::error!("store: {error}; {MEANWHILE}");
                    pulse.say(format!("waits for its database: {error}"));
                    said = true;
                }
                tokio::time::sleep(RETRY).await;
            }
            result => return result,
        }
    }
}

/// `process`: what tells this store from others of its id.
async fn connect(settings: &Settings, process: &str, broker: &mut watch::Receiver<Option<BrokerUrl>>) -> Option<Link> {
    if broker.borrow().is_none() {
        settings.pulse.say("waits for the broker");
    }
    settings.pulse.rest();
    let url = broker.wait_for(Option::is_some).await.ok()?.clone()?;
    let id = settings.store.id.as_str();
    let will = Will { topic: topic::of_store(settings.mqtt.base_topic.as_str(), id), payload: "offline".into() };
    let mut name = format!("meterkast-store-{}", topic::level(id));
    if !process.is_empty() {
        // The broker ends a connection when another of the same name comes.
        name += &format!("-{process}");
    }
    let link = link::start(&url, &name, &settings.mqtt, Some(will));
    link.map_err(|error| tracing::error!("{error}")).ok()
}

/// What a database complains of.
struct Ailment {
    text: String,
    since: Instant,
    /// Whether nothing can be stored; else only some messages cannot.
    of_all: bool,
}

struct Role {
    settings: Settings,
    /// What tells it from others on its database; empty where there are none.
    name: String,
    /// Where all stores of its id say whether messages are taken.
    status_topic: String,
    /// Where it says how it is; where others may be on its database, below it, under its name.
    health_topic: String,
    peers: Peers,
    /// None while it cannot be opened.
    database: Option<Box<dyn Database>>,
    trouble: Option<Ailment>,
    /// When to try again what failed; until then nothing is committed.
    retry_at: Option<Instant>,
    link: Link,
    /// An event that waited for a commit to end; None in it: there will be no more.
    held: Option<Option<Event>>,
    connected: bool,
    /// Whether the broker was told on this connection to send us what gateways publish.
    subscribed: bool,
    complaints: Complaints,
    /// Most messages in one commit, and bytes of them.
    most: (usize, usize),
    batch: Vec<Incoming>,
    batch_bytes: usize,
    /// When the batch is committed at the latest.
    commit_at: Option<Instant>,
    /// Whether the batch holds messages of a backlog.
    backlog: bool,
    /// Messages refused since the start.
    refused: u64,
    /// Messages since the start that showed two gateways under one id.
    shared: u64,
    lives: Lives,
    health: Health,
    /// What is published before anything else.
    commands: VecDeque<Command>,
    /// Gateways that are still to be told all that is known of them.
    greetings: BTreeSet<String>,
    /// What still has to be published, by gateway: the newest only.
    acks: BTreeMap<String, Vec<EpochAck>>,
    upkeep_at: Instant,
    /// Becomes true when it is time to end.
    stop: watch::Receiver<bool>,
}

impl Role {
    async fn run(mut self) {
        let mut stop = self.stop.clone();
        loop {
            self.settings.pulse.beat();
            self.publish().await;
            let idle = self.retry_at.is_none();
            let half = self.batch.len() >= BACKLOG_BATCH || self.batch_bytes >= BACKLOG_BYTES;
            let due = idle && (self.is_full() || (self.backlog && half));
            let (commit_at, retry_at, health_at) = (self.commit_at, self.retry_at, self.health.due());
            let commands = self.link.commands.clone();
            // What is due comes first: no stream of messages, however dense, may put it off.
            tokio::select! {
                biased;
                () = stopped(&mut stop) => break,
                () = sleep_until(retry_at), if retry_at.is_some() => self.retry().await,
                () = sleep_until(commit_at), if idle && commit_at.is_some() => self.commit().await,
                () = tokio::time::sleep_until(self.upkeep_at), if idle => self.keep_up().await,
                () = tokio::time::sleep_until(health_at), if self.connected => self.say_health(),
                () = std::future::ready(()), if due => self.commit().await,
                event = next_event(&mut self.held, &mut self.link.events) => match event {
                    Some(event) => self.hear(event).await,
                    None => break,
                },
                room = commands.reserve(), if self.connected && self.has_to_publish() => drop(room),
                () = tokio::time::sleep(BACKLOG_PAUSE), if idle && self.backlog => self.commit().await,
                () = tokio::time::sleep(TURN) => {}
            }
        }
        self.close().await;
    }

    async fn hear(&mut self, event: Event) {
        match event {
            Event::Connected => {
                self.connected = true;
                self.complaints.end();
                self.say_what_it_does();
                // Of the connection before nothing is left.
                self.subscribed = false;
                self.commands.clear();
                self.health.said = None;
                self.greet().await;
            }
            Event::Disconnected { reason } => {
                if self.complaints.is_news(&reason) {
                    tracing::warn!("{reason}");
                }
                self.connected = false;
                self.say_what_it_does();
            }
            Event::Message { topic, payload, .. } => self.hear_message(&topic, &payload),
            Event::Published(_) | Event::Dropped(_) => {}
        }
    }

    fn hear_message(&mut self, topic: &str, payload: &Bytes) {
        // Another store of this database ended; its last word, or its last will, was for all of us.
        if topic == self.status_topic {
            if payload == "offline" && !self.is_down() {
                self.say_online();
                // Or they would send again what they know to be stored.
                self.greetings.extend(self.lives.names().cloned());
            }
        } else if let Some(name) = topic.strip_prefix(&self.health_topic) {
            if let Some(name) = name.strip_prefix('/').filter(|name| *name != self.name) {
                self.peers.hear(name, payload, Instant::now());
            }
        } else {
            self.take(topic, payload);
        }
    }

    fn say_what_it_does(&self) {
        self.settings.pulse.say(match &self.trouble {
            Some(trouble) => format!("waits for its database: {}", trouble.text),
            None if self.connected => "online".to_owned(),
            None => "waits for the broker".to_owned(),
        });
    }

    /// Says that messages are taken, and to each gateway what it need not send.
    async fn greet(&mut self) {
        let Some(database) = self.database.as_mut().filter(|_| self.connected) else { return };
        match database.gateways().await {
            Ok(gateways) => self.greetings.extend(gateways),
            Err(error) => return self.fail(error).await,
        }
        // Those that are unknown to a database that is new need to hear of its generation.
        self.greetings.extend(self.lives.names().cloned());
        tracing::info!("connected to the broker as store {}", self.settings.store.id.as_str());
        if self.is_shared() {
            self.commands
                .push_back(Command::Subscribe(vec![self.status_topic.clone(), format!("{}/+", self.health_topic)]));
            // The others take what comes until the database works.
            if self.is_down() {
                return;
            }
        }
        // In this order: a gateway that hears `online` sends at once.
        self.subscribe();
        self.say_online();
    }

    /// Whether nothing can be stored.
    fn is_down(&self) -> bool {
        self.trouble.as_ref().is_some_and(|trouble| trouble.of_all)
    }

    /// Whether others may write the database.
    fn is_shared(&self) -> bool {
        self.settings.store.url.is_shared()
    }

    /// Under which topics messages come. Of several stores on one database each gets some of them.
    fn message_topics(&self) -> Vec<String> {
        let base = self.settings.mqtt.base_topic.as_str();
        // Each under a name of its own: the embedded broker notes for a name, and not for its filters, what was passed on.
        let share = |stream: &str| match self.is_shared() {
            true => format!("$share/{}-{stream}/", topic::level(self.settings.store.id.as_str())),
            false => String::new(),
        };
        ["telegram", "backlog"].map(|stream| format!("{}{base}/+/+/{stream}", share(stream))).into()
    }

    /// Has messages come, if they do not yet.
    fn subscribe(&mut self) {
        if !std::mem::replace(&mut self.subscribed, true) {
            self.commands.push_back(Command::Subscribe(self.message_topics()));
        }
    }

    /// Leaves what comes to the other stores on this database, as if this one had ended: they hear it, and have the gateways send
    /// what this one took and did not commit. It keeps its batch all the same; the numbers in it tell what others have stored.
    fn step_aside(&mut self) {
        self.subscribed = false;
        self.commands.push_back(Command::Unsubscribe(self.message_topics()));
        self.say_status("offline");
        tracing::warn!("store: leaves what comes to the other stores of its id until its database works");
    }

    fn say_online(&mut self) {
        self.say_status("online");
    }

    fn say_status(&mut self, status: &str) {
        self.retain(self.status_topic.clone(), status.into());
    }

    fn retain(&mut self, topic: String, payload: String) {
        self.commands.push_back(Command::Publish { topic, payload, retain: true, tag: None });
    }

    fn say_health(&mut self) {
        self.health.said = Some(Instant::now());
        self.health.changed = false;
        let size = self.database.as_ref().map(|database| database.size()).unwrap_or_default();
        let payload =
            self.health.to_json(&self.lives, self.trouble.as_ref().map(|trouble| trouble.text.as_str()), size);
        self.retain(self.own_health_topic(), payload);
        for name in self.peers.gone(Instant::now()) {
            self.retain(format!("{}/{name}", self.health_topic), String::new());
        }
    }

    fn own_health_topic(&self) -> String {
        if self.name.is_empty() { self.health_topic.clone() } else { format!("{}/{}", self.health_topic, self.name) }
    }

    fn is_full(&self) -> bool {
        self.batch.len() >= self.most.0 || self.batch_bytes >= self.most.1
    }

    fn take(&mut self, topic: &str, payload: &Bytes) {
        let base = self.settings.mqtt.base_topic.as_str();
        let Some((_, _, stream)) = topic::parse_message(base, topic) else { return };
        if self.is_full() {
            // The database is in trouble. What is not acknowledged comes again.
            self.health.declined = self.health.declined.saturating_add(1);
            return;
        }
        let deadline = Instant::now() + self.settings.store.commit;
        self.backlog |= stream == topic::Stream::Backlog;
        self.commit_at.get_or_insert(deadline);
        let incoming = incoming(base, topic, payload);
        if let Incoming::Refused { reason, .. } = &incoming {
            self.note_refused(topic, reason);
        }
        if let Some(envelope) = incoming.envelope() {
            self.lives.hear(&envelope.gateway);
            if stream == topic::Stream::Telegram && self.lives.speaks(&envelope.gateway, envelope.epoch) {
                self.shared = self.shared.saturating_add(1);
                self.health.changed = true;
                if self.shared.is_power_of_two() {
                    let (gateway, count) = (shown(&envelope.gateway), self.shared);
                    tracing::warn!(
                        "two gateways have the id {gateway}: give each its own [gateway] id; SD cards are cloned (seen {count} times so far). The messages of both are stored"
                    );
                }
            }
        }
        self.batch_bytes = self.batch_bytes.saturating_add(payload.len()).saturating_add(topic.len());
        self.batch.push(incoming);
    }

    fn note_refused(&mut self, topic: &str, reason: &str) {
        self.refused = self.refused.saturating_add(1);
        // The 1st, 2nd, 4th, 8th...: whoever can publish must not be able to fill the log, or write lines of it.
        if self.refused.is_power_of_two() {
            let (topic, reason, count) = (shown(topic), shown(reason), self.refused);
            tracing::warn!(
                "a message under {topic} is refused: {reason}; it is kept in the table `refused` ({count} so far)"
            );
        }
    }

    /// Commits the batch, and reads meanwhile what arrives for the next one. What fails waits to be tried again.
    async fn commit(&mut self) {
        let Some(mut database) = self.database.take() else { return };
        let batch = std::mem::take(&mut self.batch);
        let bytes = std::mem::take(&mut self.batch_bytes);
        let (backlog, commit_at) = (std::mem::take(&mut self.backlog), self.commit_at.take());
        let (begin, count) = (Instant::now(), batch.len());
        // What is tried again must not grow with each attempt.
        let retried = self.trouble.is_some();
        let (base, pulse) = (self.settings.mqtt.base_topic.as_str().to_owned(), self.settings.pulse.clone());
        let Outcome { committed, refused, rest, error } = {
            let mut committing = pin!(apart::commit(&mut *database, batch, &base, &pulse));
            loop {
                let room = self.held.is_none() && !retried && !self.is_full();
                tokio::select! {
                    biased;
                    outcome = &mut committing => break outcome,
                    event = self.link.events.recv(), if room => match event {
                        Some(Event::Message { topic, payload, .. }) => self.hear_message(&topic, &payload),
                        other => self.held = Some(other),
                    },
                }
            }
        };
        self.database = Some(database);
        self.health.count(&committed);
        self.acks.extend(committed.acks);
        for (topic, reason) in refused {
            self.note_refused(&topic, &reason);
        }
        let Some(error) = error else {
            tracing::debug!("store: {count} messages, {bytes} bytes committed in {:?}", begin.elapsed());
            return self.works();
        };
        let left = if rest.len() == count { bytes } else { rest.iter().map(size).sum() };
        let later = std::mem::replace(&mut self.batch, rest);
        self.batch.extend(later);
        self.batch_bytes = self.batch_bytes.saturating_add(left);
        self.backlog |= backlog;
        self.commit_at = commit_at.or(self.commit_at);
        self.fail(error).await;
    }

    /// Says what the database complains of, once, and has it tried again later.
    async fn fail(&mut self, error: StoreError) {
        let replaced = matches!(error, StoreError::Replaced(_));
        let (text, meanwhile) = match error.refusal() {
            Some(reason) => (shown(&reason), "it waits, and everything else is stored"),
            None => (error.to_string(), MEANWHILE),
        };
        if replaced {
            tracing::warn!("store: {text}; it is opened again");
        } else if self.trouble.as_ref().map(|trouble| &trouble.text) != Some(&text) {
            tracing::error!("store: {text}; {meanwhile}");
        }
        let (was_down, of_all) = (self.is_down(), error.refusal().is_none());
        // A message that waits alone, perhaps for days, is another trouble than that of a server which restarts now.
        let same = self.trouble.as_ref().filter(|trouble| trouble.of_all == of_all);
        let since = same.map_or_else(Instant::now, |trouble| trouble.since);
        self.trouble = Some(Ailment { text, since, of_all });
        if self.is_shared() && self.subscribed && of_all && since.elapsed() >= STEP_ASIDE {
            self.step_aside();
        } else if was_down && !of_all {
            self.take_again();
        }
        self.say_what_it_does();
        self.health.changed = true;
        self.retry_at = Some(if replaced { Instant::now() } else { Instant::now() + RETRY });
        // Where the disk fails the connection stays: it knows which part of the log was not synced, and writes it anew.
        if error.needs_reopening()
            && let Some(database) = self.database.take()
        {
            // What another database would say is not known yet.
            self.greetings.clear();
            self.acks.clear();
            if replaced {
                let _ = database.close().await;
            } else {
                database.abandon().await;
            }
        }
    }

    async fn retry(&mut self) {
        self.retry_at = None;
        if self.database.is_none() {
            match super::open(&self.settings.store).await {
                Ok(database) => self.database = Some(database),
                Err(error) => return self.fail(error).await,
            }
            self.opened().await;
            self.greet().await;
        }
        if self.retry_at.is_some() {
            return;
        }
        // With nothing to commit, whatever else writes shows whether it works.
        if self.batch.is_empty() { self.keep_up().await } else { self.commit().await }
    }

    /// The database is open: before anything is taken, what this build can read better is read again.
    async fn opened(&mut self) {
        let (id, url) = (self.settings.store.id.as_str(), &self.settings.store.url);
        tracing::info!("store {id}: {url}");
        let read = reread(self.settings.mqtt.base_topic.as_str());
        let mut sum = Reread::default();
        while let Some(database) = &mut self.database
            && !*self.stop.borrow()
        {
            match database.reread(payload::SCHEMA, &read).await {
                Ok(Reread { read: 0, refused: 0 }) => break,
                Ok(more) => {
                    sum.read = sum.read.saturating_add(more.read);
                    sum.refused = sum.refused.saturating_add(more.refused);
                }
                Err(error) => return self.fail(error).await,
            }
        }
        if sum != Reread::default() {
            tracing::info!(
                "store: {} messages of a newer schema, refused before the upgrade, are stored; {} still cannot be read",
                sum.read,
                sum.refused
            );
        }
        if self.batch.is_empty() {
            self.works();
        }
    }

    /// The database did what it was asked.
    fn works(&mut self) {
        if self.trouble.take().is_none() {
            return;
        }
        tracing::info!("store: committing again");
        self.say_what_it_does();
        self.health.changed = true;
        self.take_again();
    }

    /// What was declined comes again at once when the gateways hear this.
    fn take_again(&mut self) {
        if self.connected {
            self.subscribe();
        }
        self.say_online();
    }

    fn has_to_publish(&self) -> bool {
        !(self.commands.is_empty() && self.greetings.is_empty() && self.acks.is_empty())
    }

    /// Publishes what is to be said, as far as there is room.
    async fn publish(&mut self) {
        let commands = self.link.commands.clone();
        while self.connected && self.has_to_publish() {
            let Ok(room) = commands.try_reserve() else { return };
            if let Some(command) = self.commands.pop_front() {
                room.send(command);
                continue;
            }
            let Some(database) = &mut self.database else { return };
            let (gateway, epochs) = match self.greetings.pop_first() {
                Some(gateway) => {
                    self.acks.remove(&gateway);
                    match database.epochs(&gateway).await {
                        Ok(epochs) => (gateway, epochs),
                        Err(error) => {
                            // It is told when the database works again.
                            self.greetings.insert(gateway);
                            return self.fail(error).await;
                        }
                    }
                }
                None => match self.acks.pop_first() {
                    Some(ack) => ack,
                    None => return,
                },
            };
            let store = self.settings.store.id.as_str();
            let from = Ack {
                store: store.to_owned(),
                generation: database.generation().to_owned(),
                started: database.started().to_owned(),
                epochs: Vec::new(),
            };
            room.send(Command::Publish {
                topic: topic::ack(self.settings.mqtt.base_topic.as_str(), &gateway, store),
                payload: ack(&from, epochs),
                retain: true,
                tag: None,
            });
        }
    }

    async fn keep_up(&mut self) {
        self.upkeep_at = Instant::now() + UPKEEP;
        let Some(database) = &mut self.database else { return };
        match database.keep_up(self.settings.store.retention).await {
            Ok(more) => {
                if more {
                    self.upkeep_at = Instant::now() + UPKEEP_STEP;
                }
                self.works();
            }
            Err(error) => self.fail(error).await,
        }
    }

    async fn close(mut self) {
        // What has already arrived is still taken.
        if let Some(Some(event)) = self.held.take() {
            self.hear(event).await;
        }
        while let Ok(event) = self.link.events.try_recv() {
            self.hear(event).await;
            if self.is_full() && self.retry_at.is_none() {
                self.commit().await;
            }
        }
        // What cannot be committed is not acknowledged, and comes again.
        self.commit().await;
        if self.connected {
            self.say_health();
            if !self.name.is_empty() {
                // Nobody will have this name again.
                self.retain(self.own_health_topic(), String::new());
            }
            let topic = self.status_topic.clone();
            let offline = Command::Publish { topic, payload: "offline".into(), retain: true, tag: None };
            self.greetings.clear();
            self.publish().await;
            for command in [offline, Command::Close] {
                let _ = self.link.commands.try_send(command);
            }
            let events = &mut self.link.events;
            let closed = async { while !matches!(events.recv().await, None | Some(Event::Disconnected { .. })) {} };
            let _ = tokio::time::timeout(Duration::from_secs(1), closed).await;
        }
        if let Some(database) = self.database
            && let Err(error) = database.close().await
        {
            tracing::warn!("store: {error}");
        }
    }
}

/// An acknowledgement `from` a store of these epochs, or of as many of the first as half a packet holds.
fn ack(from: &Ack, epochs: Vec<EpochAck>) -> String {
    let of = |epochs| Ack { epochs, ..from.clone() };
    let mut left = MAX_PACKET / 2;
    let fit = epochs.into_iter().take_while(|epoch| {
        // A little more than it adds to the others.
        let bytes = of(vec![epoch.clone()]).to_json().len();
        let fits = bytes <= left;
        left = left.saturating_sub(bytes.saturating_sub(of(Vec::new()).to_json().len()).saturating_add(1));
        fits
    });
    of(fit.collect()).to_json()
}

/// What a message under a topic of a gateway is to the store.
pub(super) fn incoming(base: &str, topic: &str, payload: &[u8]) -> Incoming {
    read(base, topic, payload).map_or_else(
        |refused| Incoming::Refused {
            topic: topic.to_owned(),
            payload: payload.to_vec(),
            reason: refused.reason,
            schema: refused.schema,
            envelope: refused.envelope.map(|envelope| *envelope),
            received_at: Moment::utc(Timestamp::now()),
        },
        Incoming::Message,
    )
}

/// How messages that were refused are read again: as those that arrive.
pub(super) fn reread(base: &str) -> impl Fn(&str, &[u8]) -> Result<Message, String> + Sync + use<> {
    let base = base.to_owned();
    move |topic, payload| read(&base, topic, payload).map_err(|refused| refused.reason)
}

/// A message that cannot be stored as readings.
struct Unreadable {
    reason: String,
    schema: u32,
    envelope: Option<Box<Envelope>>,
}

/// Reads a message that came under a topic.
fn read(base: &str, topic: &str, payload: &[u8]) -> Result<Message, Unreadable> {
    let Some((gateway, meter, _)) = topic::parse_message(base, topic) else {
        let reason = format!("its topic is not below {base}");
        return Err(Unreadable { reason, schema: 0, envelope: None });
    };
    let message = match Message::from_json(payload) {
        Ok(message)
            if topic::level(&message.envelope.gateway) == gateway && topic::level(&message.report.meter) == meter =>
        {
            // Not all databases have a calendar before it, and no meter has.
            let early = |at: &Moment| at.millis() < YEAR_ONE;
            let own = message.report.readings.iter().filter_map(|reading| reading.at.as_ref());
            if message.report.measured_at.iter().chain([&message.received_at]).chain(own).any(early) {
                let reason = "it has a time before the year 1".to_owned();
                return Err(Unreadable { reason, schema: 0, envelope: Some(Box::new(message.envelope)) });
            }
            return Ok(message);
        }
        message => message,
    };
    // A payload that speaks for another gateway must not touch that gateway's numbers.
    let (schema, envelope) = match Envelope::from_json(payload) {
        Ok((schema, envelope)) if topic::level(&envelope.gateway) == gateway => (schema, Some(Box::new(envelope))),
        Ok((_, envelope)) => {
            // Its schema is not what is wrong with it: it is not read again.
            let reason = format!("it says it is from gateway {}", envelope.gateway);
            return Err(Unreadable { reason, schema: 0, envelope: None });
        }
        Err(refused) => return Err(Unreadable { reason: refused.to_string(), schema: 0, envelope: None }),
    };
    let reason = match message {
        Ok(message) => format!("it says it is of meter {}", message.report.meter),
        Err(refused @ (Refused::NewerSchema(_) | Refused::Malformed(_))) => refused.to_string(),
    };
    Err(Unreadable { reason, schema, envelope })
}

/// About how many bytes a message had when it arrived.
fn size(incoming: &Incoming) -> usize {
    match incoming {
        Incoming::Message(message) => payload::body(&message.report, message.received_at).len(),
        Incoming::Refused { topic, payload, .. } => payload.len().saturating_add(topic.len()),
    }
}

/// The beginning of a text that came from outside, fit for a log.
fn shown(text: &str) -> String {
    escape(text.as_bytes().get(..200).unwrap_or(text.as_bytes()))
}

/// The next event: the one that is held, if any.
async fn next_event(held: &mut Option<Option<Event>>, events: &mut mpsc::Receiver<Event>) -> Option<Event> {
    match held.take() {
        Some(event) => event,
        None => events.recv().await,
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::{Epoch, Ranges, Tally};

    #[test]
    fn an_acknowledgement_holds_as_many_epochs_as_half_a_packet() {
        let epochs = |ranges: u64| {
            let have = Ranges::from_pairs((1..=ranges).map(|at| (u64::MAX / 2 + 3 * at, u64::MAX / 2 + 3 * at + 1)));
            let of = |bits| EpochAck {
                epoch: Epoch::from_bits(bits),
                through: 1,
                lost: have.clone(),
                have: have.clone(),
                tally: Tally::default(),
            };
            (0..1000).map(of).collect::<Vec<_>>()
        };
        let from = Ack { store: "main".into(), generation: "g".into(), started: "s".into(), epochs: Vec::new() };
        assert_eq!(Ack::from_json(ack(&from, epochs(0)).as_bytes()).unwrap().epochs.len(), 1000);
        for (ranges, least) in [(3, 200), (256, 4)] {
            let epochs = epochs(ranges);
            let json = ack(&from, epochs.clone());
            let read = Ack::from_json(json.as_bytes()).unwrap().epochs;
            assert!(read.len() >= least && read[..] == epochs[..read.len()], "{}", read.len());
            let more = Ack { epochs: epochs[..=read.len()].to_vec(), ..from.clone() };
            assert!(json.len() <= MAX_PACKET / 2 && more.to_json().len() + 200 > MAX_PACKET / 2);
        }
    }
}
