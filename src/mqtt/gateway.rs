//! The gateway's side of the delivery promise: journal, outbox and connection together.
//!
//! Enters: what the ports gathered. Leaves: messages on MQTT, live and through the backlog, until the
//! listed stores have confirmed them; and what an installer wants to see (`state`, `interval`,
//! `status`, `health`).
//!
//! A message is written to the journal before it is sent anywhere. While the journal cannot be written,
//! messages wait in memory and then the ports wait, so nothing is taken that could not be kept.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::Instant,
};

use super::{
    MAX_PACKET,
    board::Board,
    health::{self, Health},
    link::{self, Command, Complaints, Event, Link, Tag, Will},
};
use crate::{
    collect::{Gathered, What},
    config::{self, BrokerUrl},
    delivery::{Ack, Epoch, Limits, Next, Outbox, Tally, topic},
    journal::{Bounds, Held, Journal, JournalError, Record, Synced},
    mbus::Trouble,
    moment::Moment,
    payload::{self, Envelope},
    pulse::Pulse,
    reading::{Register, Report, escape},
    unit::Decimal,
};

/// Messages that wait in memory while the journal cannot be written; then the ports wait.
const MOST_UNWRITTEN: usize = 1000;
/// Meters whose last state is remembered: far more than a gateway has.
const MOST_SHOWN: usize = 1000;
/// What a packet has beside its topic and payload, at most.
const PACKET_HEADER: usize = 16;
/// Longest body of a message: what an envelope, topic and header leave of a packet.
const MOST_BODY: usize = MAX_PACKET - 4096;
/// How long to wait for the stores' retained acknowledgements before anything is sent again.
const ACK_GRACE: Duration = Duration::from_secs(2);
/// Regular interval of `health`, and the shortest one on changes.
const HEALTH: Duration = Duration::from_secs(20);
const HEALTH_ON_CHANGE: Duration = Duration::from_secs(5);

/// How long nothing may be confirmed before that is said.
const UNCONFIRMED: Duration = Duration::from_secs(600);
/// What an installer is told of a line that is dead.
const NO_BYTES: &str = "nothing is received: is the cable in, does it feed the request line (RJ12 pin 2), and is the port of the meter \
    activated? It is listened to further";
/// What an installer is told of a line that speaks, but not as a meter.
const NO_TELEGRAM: &str = "bytes are received, but no telegram, at 115200 8N1 and at 9600 7E1: is the cable one that inverts the signal, and \
    is this the P1 port? It is listened to further";

/// What a gateway is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its id.
    pub id: Arc<str>,
    /// `[mqtt]`.
    pub mqtt: config::Mqtt,
    /// `[journal]`.
    pub journal: config::Journal,
    /// The stores that must confirm; none: the broker confirms.
    pub stores: Vec<String>,
    /// Whether it speaks for a meter now: sends live, and says how things stand. Otherwise everything
    /// goes through the backlog.
    pub live: bool,
    /// At the end of the input: wait until everything is confirmed, or nothing was for this long.
    pub drain: Option<Duration>,
    /// Its sign of life.
    pub pulse: Pulse,
}

/// How it went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Messages that the journal accepted in this run.
    pub messages: u64,
    /// Of those, confirmed by all listed stores.
    pub acknowledged: u64,
    /// What became of them, as the first listed store says.
    pub tally: Tally,
}

/// A gateway that is ready to run: its journal is open.
#[derive(Debug)]
pub struct Gateway {
    settings: Settings,
    epoch: Epoch,
    journal: Journal,
    outbox: Outbox,
    /// What the journal holds of the runs before this one, oldest first.
    earlier: Vec<Held>,
    began: Instant,
    started_at: Moment,
    link: Option<Link>,
    connected: bool,
    complaints: Complaints,
    /// Whether a store may have confirmed something that is held: of an earlier run or connection.
    sent_before: bool,
    /// Nothing goes through the backlog before.
    not_before: Duration,
    /// When to look at the outbox again; None: when something happens.
    wake: Option<Duration>,
    /// Whether there is something to send, and no room for it in the connection.
    crowded: bool,
    unwritten: VecDeque<Accepted>,
    /// Said once, until writing works again.
    write_failed: bool,
    /// The sync that is under way.
    syncing: Option<JoinHandle<std::io::Result<Synced>>>,
    /// Messages that could not be read from the journal, or are too large to be sent.
    unreadable: u64,
    /// Attempts in a row to read the journal that failed.
    read_failures: u32,
    /// Said once, until a sync works again.
    sync_failed: bool,
    /// What is still to be subscribed to on this connection.
    greeting: Option<Vec<String>>,
    /// What should stand at the broker.
    board: Board,
    /// A listed store has said since the start what it has.
    acks_heard: bool,
    /// This gateway's own `health` was heard last, and not another's.
    alone: bool,
    /// By meter.
    shown: HashMap<String, Shown>,
    /// Where the broker confirms: what is underway.
    underway: HashMap<Tag, (Epoch, u64)>,
    next_tag: Tag,
    health: Health,
    /// When everything was last confirmed, or something more.
    confirmed_at: Duration,
    /// The lack of confirmations was said.
    unconfirmed_said: bool,
}

/// What is shown of a meter.
#[derive(Debug, Default)]
struct Shown {
    /// The time of its `state`.
    at: Option<Moment>,
    /// How many reports in a row were older than that.
    older: u32,
    /// The quarter-hour of its last `interval`.
    quarter: Option<i64>,
    /// The registers as they were last believed.
    believed: BTreeMap<Register, Decimal>,
}

impl Shown {
    /// Whether a report may be shown: never an older one after a newer, unless the newer came from a clock that was
    /// ahead, or the meter insists: then its clock was set back.
    fn admits(&mut self, at: Moment, received_at: Moment) -> bool {
        /// As many as make a doubtful reading believed.
        const INSISTS: u32 = 10;
        let earlier = self.at.is_some_and(|shown| at < shown);
        let older = earlier && self.at.is_some_and(|shown| shown <= received_at);
        self.older = if older { self.older.saturating_add(1) } else { 0 };
        let admitted = !older || self.older >= INSISTS;
        if admitted {
            // A clock that was ahead for longer must not hold up `interval` until it is right; one that steps back by
            // seconds makes no further one.
            if earlier && self.quarter.is_some_and(|quarter| at.quarter().saturating_add(1) < quarter) {
                self.quarter = None;
            }
            (self.at, self.older) = (Some(at), 0);
        }
        admitted
    }
}

#[derive(Debug)]
struct Accepted {
    report: Report<String>,
    received_at: Moment,
}

/// What became of a message that was to be handed to the connection.
#[derive(Debug, PartialEq, Eq)]
enum Sent {
    /// It is on its way.
    Yes,
    /// The connection takes no more for now.
    NoRoom,
    /// No broker would take it.
    TooLarge,
}

/// How an event left the gateway.
enum Flow {
    On,
    InputEnded,
}

/// Says that a meter's clock and this one differ.
fn clock_off(port: &str, minutes: i64) {
    const DAY: u64 = 24 * 60;
    match minutes {
        0 => tracing::info!("port {port}: the meter's clock agrees with this one again"),
        _ => tracing::warn!(
            "port {port}: the meter's clock is {} {} this one. {}",
            if minutes.unsigned_abs() < DAY {
                format!("{} minutes", minutes.unsigned_abs())
            } else {
                format!("{} days", minutes.unsigned_abs() / DAY)
            },
            if minutes > 0 { "behind" } else { "ahead of" },
            if minutes.unsigned_abs() < DAY {
                "If this one is right and the meter is in another time zone, name its country: [[p1]] dialect"
            } else {
                "One of the two is wrong, or this is an old recording"
            }
        ),
    }
}

impl Gateway {
    /// Opens the journal, under a new epoch.
    pub fn open(settings: Settings) -> Result<Self, JournalError> {
        let epoch = Epoch::from_bits(random_bits());
        let config::Journal { path, max_bytes, keep_free, .. } = &settings.journal;
        let bounds = Bounds { max_bytes: *max_bytes, keep_free: *keep_free };
        let (journal, held, damage) = Journal::open(path, epoch, bounds)?;
        for damage in damage {
            tracing::warn!("journal: {damage}");
        }
        // A replay has nothing live that its backlog could hold up.
        let per_second = if settings.live { Limits::default().per_second } else { None };
        let mut outbox = Outbox::new(&settings.stores, Limits { per_second, ..Limits::default() });
        for run in &held {
            outbox.hold(run.epoch, run.first, run.last);
        }
        outbox.hold(epoch, 1, 0);
        if !held.is_empty() {
            tracing::info!("journal: holds {} messages of {} earlier runs", outbox.depth(), held.len());
        }
        Ok(Self {
            epoch,
            journal,
            outbox,
            sent_before: !held.is_empty(),
            earlier: held,
            began: Instant::now(),
            started_at: Moment::utc(Timestamp::now()),
            link: None,
            connected: false,
            complaints: Complaints::default(),
            not_before: Duration::ZERO,
            wake: None,
            crowded: false,
            unwritten: VecDeque::new(),
            write_failed: false,
            syncing: None,
            sync_failed: false,
            unreadable: 0,
            read_failures: 0,
            greeting: None,
            board: Board::default(),
            acks_heard: settings.stores.is_empty(),
            alone: false,
            shown: HashMap::new(),
            underway: HashMap::new(),
            next_tag: 0,
            health: Health::default(),
            confirmed_at: Duration::ZERO,
            unconfirmed_said: false,
            settings,
        })
    }

    /// What was said last before this start: of each meter the last report, and those before it that have the last believed
    /// value of some register. In the order in which they were sent.
    pub fn recent(&mut self) -> Vec<Report<String>> {
        /// Two hours at 1 Hz: the last reading of a meter that is read every hour is among them.
        const RECENT: usize = 8_000;
        let earlier = std::mem::take(&mut self.earlier);
        let runs = earlier.iter().rev();
        let numbers = runs.flat_map(|run| (run.first..=run.last).rev().map(|seq| (run.epoch, seq)));
        let (mut meters, mut registers, mut recent) = (HashSet::new(), HashSet::new(), Vec::new());
        for (epoch, seq) in numbers.take(RECENT) {
            let Ok(Some(Record { report, .. })) = self.journal.read(epoch, seq) else { continue };
            let mut is_news = meters.insert(report.meter.clone());
            for reading in report.readings.iter().filter(|reading| reading.suspect.is_none()) {
                is_news |= registers.insert((report.meter.clone(), reading.register.clone(), reading.qualifiers));
            }
            if is_news {
                recent.push(report);
            }
        }
        recent.reverse();
        recent
    }

    /// Runs until `input` closes. `broker` says where the broker is as soon as that is known.
    pub async fn run(
        mut self,
        mut input: mpsc::Receiver<Gathered>,
        mut broker: watch::Receiver<Option<BrokerUrl>>,
    ) -> Summary {
        let mut sync = tokio::time::interval(self.settings.journal.sync);
        sync.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut second = tokio::time::interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(64);
        let mut ended = false;
        let mut progress = (u64::MAX, Instant::now());
        self.connect(broker.borrow_and_update().clone());
        loop {
            self.settings.pulse.beat();
            if ended && self.finished(&mut progress) {
                break;
            }
            // While the journal cannot be written the input is not taken; its end is noticed all the same.
            let nothing_more = input.is_closed() && (self.settings.drain.is_none() || input.is_empty());
            if !ended && self.unwritten.len() >= MOST_UNWRITTEN && nothing_more {
                ended = true;
                progress.1 = Instant::now();
            }
            self.pump();
            let wake = self.wake.map(|wake| self.began + wake);
            let commands = self.link.as_ref().map(|link| link.commands.clone());
            tokio::select! {
                count = input.recv_many(&mut batch, 64), if !ended && self.unwritten.len() < MOST_UNWRITTEN => {
                    if let Flow::InputEnded = self.take_in(count, &mut batch) {
                        ended = true;
                        progress.1 = Instant::now();
                        if self.settings.drain.is_some() {
                            // Do not wait for patience: what is unconfirmed goes out again, and a store
                            // commits what comes through the backlog at once.
                            self.outbox.start_over(self.now());
                        }
                    }
                }
                event = next_event(&mut self.link) => self.hear(event),
                () = room(commands), if self.crowded => {}
                () = sleep_until(wake), if wake.is_some() => {}
                _ = second.tick() => self.each_second(),
                _ = sync.tick(), if self.syncing.is_none() => self.begin_sync(),
                result = sync_ended(&mut self.syncing) => self.end_sync(result),
                Ok(()) = broker.changed(), if self.link.is_none() => {
                    let url = broker.borrow_and_update().clone();
                    self.connect(url);
                }
            }
        }
        self.close().await
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn connect(&mut self, url: Option<BrokerUrl>) {
        let Some(url) = url else { return };
        let Settings { id, mqtt, live, .. } = &self.settings;
        let base = mqtt.base_topic.as_str();
        // A replay beside a running gateway is another client, and must not take its place.
        let (client, will) = if *live {
            (format!("meterkast-{}", topic::level(id)), topic::of_gateway(base, id, "status"))
        } else {
            (
                format!("meterkast-{}-{:08x}", topic::level(id), self.epoch.bits() as u32),
                topic::of_gateway(base, id, "replay"),
            )
        };
        match link::start(&url, &client, mqtt, Some(Will { topic: will, payload: "offline".into() })) {
            Ok(link) => self.link = Some(link),
            Err(error) => tracing::error!("{error}"),
        }
    }

    fn take_in(&mut self, count: usize, batch: &mut Vec<Gathered>) -> Flow {
        if count == 0 {
            return Flow::InputEnded;
        }
        for Gathered { port, what } in batch.drain(..) {
            match what {
                What::Telegram { reports, received_at, .. } => {
                    self.health.accepted = self.health.accepted.saturating_add(1);
                    self.health.telegram(&port);
                    for report in reports {
                        self.health.unknown = self.health.unknown.saturating_add(report.unknown.len() as u64);
                        let suspect = report.readings.iter().filter(|reading| reading.suspect.is_some()).count();
                        self.health.suspect = self.health.suspect.saturating_add(suspect as u64);
                        self.health.changed |= suspect > 0;
                        self.accept(report, received_at);
                    }
                }
                What::Rejected(rejected) => {
                    let count = self.health.rejected.entry(rejected.reason.kind()).or_default();
                    *count = count.saturating_add(1);
                    self.health.changed = true;
                    // A noisy line must not fill the log: the 1st, 2nd, 4th, 8th... of each kind.
                    if self.settings.live && count.is_power_of_two() {
                        tracing::warn!(
                            "port {port}: at byte {}: {} ({count} of this kind)",
                            rejected.offset,
                            rejected.reason
                        );
                    }
                }
                What::Opened(settings) => {
                    let how = settings.map_or(String::new(), |settings| format!(" at {}", settings.name()));
                    self.port(&port, format!("open{how}"));
                }
                What::Lost(error) => {
                    self.health.bus_lost(&port);
                    self.port(&port, error.to_string());
                }
                What::Silent { bytes: false } => self.port(&port, NO_BYTES.to_owned()),
                What::Silent { bytes: true } => self.port(&port, NO_TELEGRAM.to_owned()),
                What::Quiet { bytes: false } => self.port(&port, health::QUIET.to_owned()),
                What::Quiet { bytes: true } => self.port(&port, health::GARBLED.to_owned()),
                What::ReadAs { .. } => {}
                What::ClockOff(minutes) if self.settings.live => clock_off(&port, minutes),
                What::ClockOff(_) => {}
                What::Asked { meter, trouble } => self.asked(&port, &meter, trouble),
                What::Note(text) => {
                    if self.settings.live {
                        tracing::info!("bus {port}: {text}");
                    }
                    // Before it is opened this is all there is to say of it.
                    self.health.note(port, text);
                }
                What::Ended => self.port(&port, "its input has ended".to_owned()),
            }
        }
        self.write();
        Flow::On
    }

    fn port(&mut self, port: &Arc<str>, state: String) {
        let ok = state.starts_with("open");
        if self.settings.live {
            if ok {
                tracing::info!("port {port}: {state}");
            } else {
                tracing::warn!("port {port}: {state}");
            }
        }
        self.health.port(port, state, ok);
    }

    /// A meter of a bus was asked: said when that is news.
    fn asked(&mut self, port: &Arc<str>, meter: &str, trouble: Option<Trouble>) {
        let state = match &trouble {
            None => "is read".to_owned(),
            Some(trouble) => trouble.to_string(),
        };
        if let Some(trouble) = &trouble {
            let count = self.health.rejected.entry(trouble.kind()).or_default();
            *count = count.saturating_add(1);
        }
        if !self.health.meter(format!("{port}/{meter}"), &state, trouble.is_none()) {
            return;
        }
        match trouble {
            None => tracing::info!("bus {port}: meter {meter}: {state}"),
            Some(_) => tracing::warn!("bus {port}: meter {meter}: {state}"),
        }
    }

    /// Takes a report on its way, in parts where one message could not carry it.
    fn accept(&mut self, report: Report<String>, received_at: Moment) {
        let (parts, refused) = payload::parts(report, received_at, MOST_BODY);
        if refused > 0 {
            tracing::error!("{refused} readings or texts are each longer than a message may be, and are left out");
            self.health.lost = self.health.lost.saturating_add(refused);
            self.health.changed = true;
        }
        self.unwritten.extend(parts.into_iter().map(|report| Accepted { report, received_at }));
    }

    /// Writes what waits to the journal, and sends it live.
    fn write(&mut self) {
        while !self.unwritten.is_empty() {
            let waiting = self.unwritten.iter().map(|accepted| (&accepted.report, accepted.received_at));
            let (numbers, result) = self.journal.append(waiting);
            self.health.messages = self.health.messages.saturating_add(numbers.len() as u64);
            for (seq, prev) in numbers {
                let Some(accepted) = self.unwritten.pop_front() else { break };
                self.outbox.accepted(seq);
                if self.settings.live {
                    self.send_live(&accepted, seq, prev);
                }
            }
            match result {
                Ok(()) if self.write_failed => {
                    tracing::info!("journal: can be written again");
                    self.write_failed = false;
                    self.health.changed = true;
                }
                Ok(()) => {}
                // The disk is full: what is confirmed goes. The rest waits as long as there is room in memory, then the oldest
                // go. Only what is written now cannot make room.
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull && self.give_up_oldest() => {}
                Err(error) => {
                    if !self.write_failed {
                        tracing::error!(
                            "journal {}: cannot be written: {error}; messages wait in memory, and then the ports wait: free disk space, or see why the disk fails",
                            self.settings.journal.path.display()
                        );
                        self.health.changed = true;
                    }
                    self.write_failed = true;
                    return;
                }
            }
        }
        self.trim();
        if self.syncing.is_none() && self.journal.is_sync_due() {
            self.begin_sync();
        }
    }

    fn trim(&mut self) {
        loop {
            let may_lose = self.is_store_heard();
            let gone = self.journal.trim(may_lose, |held| self.outbox.is_confirmed(held.epoch, held.first..=held.last));
            match gone {
                Ok(Some(held)) => self.gave_up(held),
                Ok(None) => return,
                Err(error) => {
                    tracing::error!("journal: the oldest segment cannot be removed: {error}");
                    return;
                }
            }
        }
    }

    /// Whether what seems unconfirmed is: a gateway that has just started has not heard yet what its stores have.
    fn is_store_heard(&self) -> bool {
        /// By then a store that runs was heard.
        const BY_THEN: Duration = Duration::from_secs(600);
        self.acks_heard || self.now() >= BY_THEN
    }

    /// Makes room where the disk is full. False when there is none to be made, or not yet.
    fn give_up_oldest(&mut self) -> bool {
        let may_lose = self.is_store_heard() && self.unwritten.len() >= MOST_UNWRITTEN / 2;
        let is_confirmed = |held: &Held| self.outbox.is_confirmed(held.epoch, held.first..=held.last);
        match self.journal.give_up_oldest(may_lose, is_confirmed) {
            Ok(Some(held)) => {
                self.gave_up(held);
                true
            }
            Ok(None) | Err(_) => false,
        }
    }

    fn gave_up(&mut self, held: Held) {
        let lost = self.outbox.gave_up(held.epoch, held.first..=held.last);
        if lost > 0 {
            tracing::error!(
                "journal: full; {lost} messages that no store had confirmed are lost: see why the stores do not confirm, free disk space, or raise [journal] max-bytes"
            );
            self.health.lost = self.health.lost.saturating_add(lost);
            self.health.changed = true;
        }
    }

    fn send_live(&mut self, accepted: &Accepted, seq: u64, prev: u64) {
        let Accepted { report, received_at } = accepted;
        self.show(report, *received_at);
        if !self.connected {
            return;
        }
        let envelope = self.envelope(self.epoch, seq, prev);
        let body = payload::body(report, *received_at);
        if self.send_message(topic::Stream::Telegram, &report.meter, &envelope, &body) == Sent::Yes {
            let now = self.now();
            self.outbox.went_live(seq, now);
        }
    }

    /// Brings `state` and `interval` of a meter up to date.
    fn show(&mut self, report: &Report<String>, received_at: Moment) {
        let at = report.measured_at.unwrap_or(received_at);
        if self.shown.len() >= MOST_SHOWN && !self.shown.contains_key(&report.meter) {
            self.shown.clear();
        }
        if !self.shown.contains_key(&report.meter) {
            self.shown.insert(report.meter.clone(), Shown::default());
        }
        let Some(shown) = self.shown.get_mut(&report.meter) else { return };
        if !shown.admits(at, received_at) {
            return;
        }
        let state = payload::state(report, received_at, &mut shown.believed);
        // The first telegram of a quarter-hour; a clock that steps back does not make another.
        let quarter = at.quarter();
        let interval = shown.quarter.is_none_or(|last| quarter > last);
        if interval {
            shown.quarter = Some(quarter);
            self.retain(topic::of_meter(self.base(), &self.settings.id, &report.meter, "interval"), state.clone());
        }
        self.retain(topic::of_meter(self.base(), &self.settings.id, &report.meter, "state"), state);
    }

    fn base(&self) -> &str {
        self.settings.mqtt.base_topic.as_str()
    }

    fn envelope(&self, epoch: Epoch, seq: u64, prev: u64) -> Envelope {
        let (first, missing) = (self.outbox.first(epoch), self.outbox.missing(epoch));
        Envelope { gateway: self.settings.id.to_string(), epoch, seq, prev, first, missing }
    }

    /// Hands a message to the connection, if there is room.
    fn send_message(&mut self, stream: topic::Stream, meter: &str, envelope: &Envelope, body: &str) -> Sent {
        let topic = topic::of_meter(self.base(), &self.settings.id, meter, stream.name());
        let payload = payload::message(envelope, body);
        if payload.len().saturating_add(topic.len()).saturating_add(PACKET_HEADER) > MAX_PACKET {
            return Sent::TooLarge;
        }
        let tag = self.settings.stores.is_empty().then(|| {
            self.next_tag = self.next_tag.wrapping_add(1);
            self.next_tag
        });
        let Some(link) = &self.link else { return Sent::NoRoom };
        let command = match stream {
            topic::Stream::Backlog if self.settings.mqtt.url.is_none() && tag.is_none() => {
                Command::Cast { topic, payload }
            }
            _ => Command::Publish { topic, payload, retain: false, tag },
        };
        if link.commands.try_send(command).is_err() {
            return Sent::NoRoom;
        }
        if let Some(tag) = tag {
            self.underway.insert(tag, (envelope.epoch, envelope.seq));
        }
        Sent::Yes
    }

    /// Publishes something of which only the last value is worth anything.
    fn retain(&mut self, topic: String, payload: String) {
        self.board.set(topic, payload);
    }

    /// Sends what there is room and reason for: first what is shown, then the backlog, which leaves half of the room to
    /// what is live.
    fn pump(&mut self) {
        (self.wake, self.crowded) = (None, false);
        let Some(link) = self.link.as_ref().filter(|_| self.connected) else { return };
        let commands = link.commands.clone();
        if let Some(topics) = self.greeting.take()
            && let Err(mpsc::error::TrySendError::Full(Command::Subscribe(topics))) =
                commands.try_send(Command::Subscribe(topics))
        {
            (self.greeting, self.crowded) = (Some(topics), true);
            return;
        }
        self.board.tell(|topic, payload| {
            let (topic, payload) = (topic.to_owned(), payload.to_owned());
            commands.try_send(Command::Publish { topic, payload, retain: true, tag: None }).is_ok()
        });
        self.crowded = !self.board.is_told();
        self.pump_backlog(&commands);
    }

    /// Sends through the backlog as long as there is room and reason.
    fn pump_backlog(&mut self, commands: &mpsc::Sender<Command>) {
        loop {
            let now = self.now();
            if now < self.not_before {
                self.wake = Some(self.not_before);
                return;
            }
            match self.outbox.next(now) {
                Next::Wait(until) => {
                    self.wake = until;
                    return;
                }
                Next::Send { .. } if commands.capacity() <= link::ROOM / 2 => {
                    self.crowded = true;
                    return;
                }
                Next::Send { epoch, seq } => {
                    if !self.send_again(epoch, seq) {
                        return;
                    }
                }
            }
        }
    }

    /// Sends a message through the backlog. Returns whether to go on with the next.
    fn send_again(&mut self, epoch: Epoch, seq: u64) -> bool {
        /// A disk that fails may come back; a message is given up after five minutes.
        const AGAIN: Duration = Duration::from_secs(10);
        const TRIES: u32 = 30;
        let record = match self.journal.read(epoch, seq) {
            Ok(Some(record)) => record,
            Ok(None) => {
                self.lose(epoch, seq, "it is damaged");
                return true;
            }
            Err(error) => {
                self.read_failures = self.read_failures.saturating_add(1);
                if self.read_failures < TRIES {
                    if self.read_failures.is_power_of_two() {
                        tracing::error!(
                            "journal: message {seq} of run {epoch} cannot be read: {error}; it is tried again"
                        );
                    }
                    self.not_before = self.now().saturating_add(AGAIN);
                } else {
                    self.read_failures = 0;
                    self.lose(epoch, seq, &error.to_string());
                }
                return true;
            }
        };
        self.read_failures = 0;
        let envelope = self.envelope(epoch, seq, record.prev);
        let body = payload::body(&record.report, record.received_at);
        match self.send_message(topic::Stream::Backlog, &record.report.meter, &envelope, &body) {
            Sent::Yes => {
                let now = self.now();
                self.outbox.sent(epoch, seq, body.len(), now, random_bits() as u32);
                true
            }
            Sent::TooLarge => {
                self.lose(epoch, seq, "it is larger than a packet may be");
                true
            }
            Sent::NoRoom => {
                self.crowded = true;
                false
            }
        }
    }

    fn lose(&mut self, epoch: Epoch, seq: u64, reason: &str) {
        let file = self.journal.file_of(epoch, seq).unwrap_or_default();
        let lost = self.outbox.unreadable(epoch, seq);
        self.health.lost = self.health.lost.saturating_add(lost);
        self.health.changed |= lost > 0;
        // The 1st, 2nd, 4th, 8th...: a damaged place may have hundreds of them.
        self.unreadable = self.unreadable.saturating_add(lost);
        if lost > 0 && self.unreadable.is_power_of_two() {
            tracing::error!(
                "journal {}: message {seq} of run {epoch} is lost: {reason} ({} such so far)",
                file.display(),
                self.unreadable
            );
        }
    }

    fn hear(&mut self, event: Option<Event>) {
        let now = self.now();
        match event {
            Some(Event::Connected) => {
                self.connected = true;
                self.complaints.end();
                if std::mem::replace(&mut self.sent_before, true) {
                    // The stores' retained acknowledgements may say that there is nothing to send again.
                    self.not_before = now.saturating_add(ACK_GRACE);
                }
                self.greet();
            }
            Some(Event::Disconnected { reason }) => {
                if self.complaints.is_news(&reason) {
                    tracing::warn!("{reason}; meanwhile the journal keeps everything");
                }
                self.connected = false;
                self.underway.clear();
                self.outbox.start_over(now);
            }
            Some(Event::Published(tag)) => {
                if let Some((epoch, seq)) = self.underway.remove(&tag) {
                    self.outbox.published(epoch, seq, now);
                    if self.settings.stores.is_empty() {
                        (self.confirmed_at, self.unconfirmed_said) = (now, false);
                        self.health.changed |= self.outbox.depth() == 0;
                    }
                }
            }
            Some(Event::Dropped(tag)) => drop(self.underway.remove(&tag)),
            Some(Event::Message { topic, payload, retained }) => self.hear_store(&topic, &payload, retained),
            None => {
                self.link = None;
                self.connected = false;
            }
        }
    }

    /// After each connection: listen to the stores, and say how things stand.
    fn greet(&mut self) {
        let base = self.base().to_owned();
        let id = self.settings.id.clone();
        let mut topics = vec![topic::acks(&base, &id)];
        topics.extend(self.settings.stores.iter().map(|store| topic::of_store(&base, store)));
        if self.settings.live {
            topics.push(topic::of_gateway(&base, &id, "health"));
        }
        // The connection may still be full of what waited for it.
        self.greeting = Some(topics);
        tracing::info!("connected to the broker as gateway {id}");
        self.board.forget_told();
        if self.settings.live {
            self.retain(topic::of_gateway(&base, &id, "status"), "online".into());
            self.health.changed = true;
            self.health.said = None;
        }
    }

    fn hear_store(&mut self, topic: &str, payload: &[u8], retained: bool) {
        let now = self.now();
        match topic::parse_from_store(self.base(), &self.settings.id, topic) {
            Some(topic::FromStore::Ack(level)) => match Ack::from_json(payload) {
                Ok(ack) if topic::level(&ack.store) == level => {
                    let effect = self.outbox.acknowledged(&ack, now);
                    self.acks_heard |= self.settings.stores.contains(&ack.store);
                    tracing::debug!(
                        "gateway: {} messages are confirmed, {} are not",
                        effect.confirmed,
                        self.outbox.depth()
                    );
                    if effect.forgotten {
                        tracing::warn!("store {}: is new or was restored; everything held is sent again", ack.store);
                    }
                    self.health.acks_ignored = self.health.acks_ignored.saturating_add(effect.ignored);
                    if effect.found > 0 {
                        tracing::info!(
                            "{} messages that were called lost had been on their way: the store has them",
                            effect.found
                        );
                        self.health.lost = self.health.lost.saturating_sub(effect.found);
                    }
                    self.health.changed |= effect.found > 0 || (effect.confirmed > 0 && self.outbox.depth() == 0);
                    if effect.confirmed > 0 {
                        (self.confirmed_at, self.unconfirmed_said) = (now, false);
                    }
                }
                Ok(ack) => {
                    tracing::warn!(
                        "an acknowledgement of store {} came under {topic}: ignored",
                        escape(ack.store.as_bytes())
                    );
                    self.health.acks_ignored = self.health.acks_ignored.saturating_add(1);
                }
                Err(error) => {
                    tracing::warn!("an acknowledgement under {topic} cannot be read: {error}");
                    self.health.acks_ignored = self.health.acks_ignored.saturating_add(1);
                }
            },
            // A store that has just come has none of what was sent to nobody, and says again what it has.
            Some(topic::FromStore::Status(level)) if payload == b"online" && !retained => {
                let store = self.settings.stores.iter().find(|store| topic::level(store) == level);
                if let Some(store) = store {
                    self.outbox.came_back(store, now);
                    self.not_before = now.saturating_add(ACK_GRACE);
                }
            }
            Some(topic::FromStore::Status(_)) => {}
            None if topic == topic::of_gateway(self.base(), &self.settings.id, "health") => {
                self.hear_of_self(payload, retained)
            }
            None => {}
        }
    }

    /// Hears this gateway's own `health`. Another one's words there mean that two share an id, unless the broker kept them
    /// since a run before this one: it may come back from an older snapshot of its own.
    fn hear_of_self(&mut self, payload: &[u8], retained: bool) {
        #[derive(serde::Deserialize)]
        struct Health {
            epoch: String,
            at: String,
        }
        let Ok(Health { epoch, at }) = serde_json::from_slice(payload) else { return };
        let (Some(epoch), Ok(at)) = (Epoch::from_text(&epoch), at.parse::<Moment>()) else { return };
        if epoch == self.epoch {
            self.alone = true;
        } else if self.alone && (!retained || at > self.started_at) {
            // Said again only when this one's own word was heard in between.
            self.alone = false;
            self.health.shared_id = self.health.shared_id.saturating_add(1);
            self.health.changed = true;
            if self.health.shared_id.is_power_of_two() {
                tracing::error!(
                    "another gateway runs under the id {} ({} times so far): they take the connection from each other. Give each its own [gateway] id; copied SD cards have the same one",
                    self.settings.id,
                    self.health.shared_id
                );
            }
        }
    }

    fn each_second(&mut self) {
        if self.write_failed {
            self.write();
        }
        let now = self.now();
        if self.outbox.depth() == 0 {
            self.confirmed_at = now;
        } else if !self.unconfirmed_said && now.saturating_sub(self.confirmed_at) >= UNCONFIRMED {
            self.unconfirmed_said = true;
            tracing::warn!(
                "for {} minutes nothing was confirmed by {}; the journal holds {} messages: does it run, and does the broker let this gateway write and hear it?",
                UNCONFIRMED.as_secs() / 60,
                if self.settings.stores.is_empty() {
                    "the broker".to_owned()
                } else {
                    format!("store {}", self.settings.stores.join(", "))
                },
                self.outbox.depth()
            );
        }
        // Before the first attempt to connect has ended there is nothing to tell.
        if self.connected || self.complaints.any() {
            let broker = if self.connected { "online" } else { "without its broker" };
            self.settings.pulse.say(format!("{broker}, {} messages wait", self.outbox.depth()));
        }
        let age = self.health.said.map(|said| now.saturating_sub(said));
        let due = age.is_none_or(|age| age >= HEALTH || (self.health.changed && age >= HEALTH_ON_CHANGE));
        if self.settings.live && self.connected && due {
            self.health.said = Some(now);
            self.health.changed = false;
            let json = self.health.to_json(self.epoch, self.outbox.depth(), self.unwritten.len());
            self.retain(topic::of_gateway(self.base(), &self.settings.id, "health"), json);
        }
    }

    /// Begins to make durable what was written. Not here: a slow card would hold everything up.
    fn begin_sync(&mut self) {
        match self.journal.begin_sync() {
            Ok(Some(sync)) => self.syncing = Some(tokio::task::spawn_blocking(|| sync.run())),
            Ok(None) => {}
            Err(error) => self.end_sync(Err(error)),
        }
    }

    fn end_sync(&mut self, result: std::io::Result<Synced>) {
        self.syncing = None;
        let error = match result {
            Ok(synced) => {
                self.journal.synced(&synced);
                if self.sync_failed {
                    tracing::info!("journal: what was written is durable again");
                    self.sync_failed = false;
                }
                return;
            }
            Err(error) => error,
        };
        if !self.sync_failed {
            tracing::error!(
                "journal {}: cannot be synced: {error}; what was not durable is written again, into a new segment. Is the disk failing?",
                self.settings.journal.path.display()
            );
            self.sync_failed = true;
        }
        self.health.sync_failures = self.health.sync_failures.saturating_add(1);
        self.health.changed = true;
        match self.journal.write_again() {
            // Once at once: it may have been the one place. Then at the usual intervals.
            Ok(()) if self.health.sync_failures.is_multiple_of(2) => {}
            Ok(()) => self.begin_sync(),
            Err(error) => tracing::error!("journal: cannot be written again: {error}"),
        }
    }

    /// After the input ended: whether there is nothing more to wait for.
    fn finished(&self, progress: &mut (u64, Instant)) -> bool {
        let Some(patience) = self.settings.drain else { return true };
        let depth = self.outbox.depth().saturating_add(self.unwritten.len() as u64);
        if depth != progress.0 {
            *progress = (depth, Instant::now());
        }
        depth == 0 || progress.1.elapsed() >= patience
    }

    /// Makes everything durable that was accepted, within the time that a stop has.
    async fn sync_at_last(&mut self) {
        /// Longer than a disk takes that works, and short enough for a stop of the whole within 5 s.
        const PATIENCE: Duration = Duration::from_secs(2);
        let sync = async {
            if self.syncing.is_some() {
                let result = sync_ended(&mut self.syncing).await;
                self.end_sync(result);
            }
            // A second time if the first one fails.
            for _ in 0..2 {
                if self.syncing.is_none() {
                    self.begin_sync();
                }
                if self.syncing.is_none() {
                    return;
                }
                let result = sync_ended(&mut self.syncing).await;
                self.end_sync(result);
            }
        };
        if tokio::time::timeout(PATIENCE, sync).await.is_err() {
            tracing::error!("journal: the disk does not answer; what was written last may not survive a power cut");
        }
    }

    async fn close(mut self) -> Summary {
        if let (true, Some(link)) = (self.connected, &mut self.link) {
            if self.settings.live {
                let topic = topic::of_gateway(self.settings.mqtt.base_topic.as_str(), &self.settings.id, "status");
                let offline = Command::Publish { topic, payload: "offline".into(), retain: true, tag: None };
                let _ = link.commands.try_send(offline);
            }
            let _ = link.commands.try_send(Command::Close);
            let closed =
                async { while !matches!(link.events.recv().await, None | Some(Event::Disconnected { .. })) {} };
            let _ = tokio::time::timeout(Duration::from_secs(1), closed).await;
        }
        self.sync_at_last().await;
        Summary {
            messages: self.health.messages,
            acknowledged: self.outbox.confirmed(),
            tally: self.outbox.tally().unwrap_or_default(),
        }
    }
}

/// Resolves when the sync that is under way has ended.
async fn sync_ended(syncing: &mut Option<JoinHandle<std::io::Result<Synced>>>) -> std::io::Result<Synced> {
    match syncing {
        Some(sync) => sync.await.unwrap_or_else(|error| Err(std::io::Error::other(error))),
        None => std::future::pending().await,
    }
}

async fn next_event(link: &mut Option<Link>) -> Option<Event> {
    match link {
        Some(link) => link.events.recv().await,
        None => std::future::pending().await,
    }
}

/// Resolves when the connection has room for the backlog.
async fn room(commands: Option<mpsc::Sender<Command>>) {
    match commands {
        Some(commands) => drop(commands.reserve_many(link::ROOM / 2 + 1).await),
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
}

/// 128 random bits of the operating system.
pub fn random_bits() -> u128 {
    let mut bits = [0u8; 16];
    if let Err(error) = getrandom::fill(&mut bits) {
        // A system without randomness cannot give epochs that differ; the time at least does.
        tracing::error!("the system gives no random numbers: {error}");
        return Timestamp::now().as_nanosecond().unsigned_abs();
    }
    u128::from_ne_bytes(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Moment {
        Moment::from_millis(1_795_287_600_000 + seconds * 1000, 60).unwrap()
    }

    #[test]
    fn state_never_steps_back_unless_the_clock_was_ahead_or_the_meter_insists() {
        let mut shown = Shown::default();
        assert!(shown.admits(at(10), at(10)) && shown.admits(at(11), at(11)) && shown.admits(at(11), at(12)));
        assert!(!shown.admits(at(9), at(13)) && !shown.admits(at(10), at(14)));
        assert!(shown.admits(at(15), at(15)));
        // Ten in a row: its clock was set back.
        for seconds in 1..10 {
            assert!(!shown.admits(at(seconds), at(20)));
        }
        assert!(shown.admits(at(10), at(20)) && shown.admits(at(11), at(21)));
        // The clock behind what is shown was ahead of this one.
        assert!(shown.admits(at(5000), at(22)) && shown.admits(at(23), at(23)));
    }
}
