//! The protocol in small, exhaustively: every order of events in a world of a few messages and faults.
//!
//! The machines are the real ones ([`Outbox`], [`Ledger`]); around them stands the least that they need:
//! journals, a broker, databases. [`Bounds`] say how often each [`Event`] may happen; breadth first, each state
//! that can be reached is visited once, so the first way to a fault that is found is a shortest one.
//!
//! In every state ([`World::check`]):
//!
//! - What an outbox counts as confirmed by a store is in its database. It may not be while that store was
//!   restored and the gateway has heard nothing from it since: nobody can know then.
//! - Each number up to a watermark is stored or recorded as lost; nothing is both.
//! - A message that is answered with "again" is stored; one that is "new" was not. So each is stored once.
//! - A message says of no number that it is gone that its journal can still read.
//! - A record that goes before older ones, because all stores have it, is in all stores.
//!
//! From every state ([`World::ends_well`]): if from now on connections stand, nothing is lost and stores
//! commit, then the world comes to rest with every message that a journal can read in every listed
//! store, a depth of 0, and everything that is gone told.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::Duration,
};

use super::{Ack, Arrival, Epoch, Ledger, Limits, Next, Outbox, Ranges};

/// What may happen. Where a number is given it is the gateway or the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// A meter speaks; sent live when connected.
    Produce(usize),
    /// What the outbox says is sent.
    Pump(usize),
    /// The message in this place arrives, in any order.
    Arrive(usize, usize),
    /// It is lost on the way.
    Drop(usize, usize),
    /// It arrives, and will again.
    Duplicate(usize, usize),
    /// What arrived is committed and acknowledged.
    Commit(usize),
    /// It is committed, and the acknowledgement never reaches the broker.
    CommitUnheard(usize),
    /// The gateway hears the next that a store said.
    Hear(usize),
    /// Patience passes.
    Tick,
    /// The journal is synced.
    Sync(usize),
    /// The connection of a gateway breaks.
    Break(usize),
    Connect(usize),
    /// The connection of a store breaks, and with it goes what was on the way there.
    BreakStore(usize),
    ConnectStore(usize),
    /// The broker dies, and forgets what was retained.
    BrokerForgets,
    /// The broker dies, and comes back with what it had retained earlier.
    BrokerStepsBack,
    /// kill -9.
    Kill(usize),
    /// What was not synced is gone.
    PowerCut(usize),
    /// An image of the gateway's disk is made.
    Image(usize),
    /// The gateway runs from that image again.
    Restore(usize),
    /// Another gateway runs from that image, under the same id.
    Clone(usize),
    /// The oldest record goes: the journal is full.
    GiveUp(usize),
    /// The newest record that all stores have goes, and older ones stay.
    Free(usize),
    /// The record in this place cannot be read any more.
    Damage(usize, usize),
    /// kill -9.
    KillStore(usize),
    /// A copy of the database is made.
    Copy(usize),
    /// The database is replaced by that copy, with a new generation.
    RestoreStore(usize),
    /// The database is replaced by that copy, and nobody says so.
    RestoreStoreSilently(usize),
}

/// The kinds of events that are bounded, and how often each may happen.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Bounds {
    messages: u8,
    ticks: u8,
    /// Messages or acknowledgements lost, or messages duplicated.
    losses: u8,
    /// Connections broken, processes killed.
    breaks: u8,
    power_cuts: u8,
    images: u8,
    give_ups: u8,
    frees: u8,
    damages: u8,
    broker_faults: u8,
    copies: u8,
}

/// A message on its way.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Packet {
    epoch: Epoch,
    seq: u64,
    first: u64,
    missing: Ranges,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Record {
    epoch: Epoch,
    seq: u64,
    synced: bool,
    damaged: bool,
}

/// What a store says: an acknowledgement, or that it is online.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Word {
    store: usize,
    /// Which restored copy of the database speaks.
    copy: u8,
    ack: Option<Ack>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Gateway {
    journal: Vec<Record>,
    epoch: Epoch,
    made: u64,
    outbox: Outbox,
    connected: bool,
    inbox: VecDeque<Word>,
    /// By store: which copy of the database it heard last.
    heard: Vec<u8>,
    image: Option<Vec<Record>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Database {
    rows: BTreeSet<(Epoch, u64)>,
    ledgers: BTreeMap<Epoch, Ledger>,
    generation: u8,
    /// The epoch touched last: what an acknowledgement lists after a commit.
    newest: Option<Epoch>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Store {
    committed: Database,
    /// With what arrived and is not committed.
    working: Database,
    /// Something arrived that is not acknowledged, if only again.
    batch: bool,
    connected: bool,
    /// How often it was started, and restored.
    started: u8,
    restored: u8,
    copy: Option<Database>,
    on_the_way: BTreeSet<Packet>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    left: Bounds,
    now: Duration,
    epochs: u8,
    gateways: Vec<Gateway>,
    stores: Vec<Store>,
    /// By store: its acknowledgement at the broker, and the one that the broker had when it last saved.
    retained: Vec<Option<Word>>,
    saved: Vec<Option<Word>>,
}

fn store_id(store: usize) -> String {
    format!("store {store}")
}

fn limits() -> Limits {
    Limits { messages: 2, per_second: None, ..Limits::default() }
}

impl Gateway {
    fn start(journal: Vec<Record>, epoch: Epoch, stores: usize) -> Self {
        let mut outbox = Outbox::new(&(0..stores).map(store_id).collect::<Vec<_>>(), limits());
        for run in journal.chunk_by(|a, b| a.epoch == b.epoch) {
            let (epoch, first, last) = (run[0].epoch, run[0].seq, run[run.len() - 1].seq);
            outbox.hold(epoch, first, last);
            for seq in (first..last).filter(|&seq| run.iter().all(|record| record.seq != seq)) {
                outbox.gave_up(epoch, seq..=seq);
            }
        }
        outbox.hold(epoch, 1, 0);
        let (inbox, heard) = (VecDeque::new(), vec![0; stores]);
        Self { journal, epoch, made: 0, outbox, connected: false, inbox, heard, image: None }
    }

    fn readable(&self, epoch: Epoch, seq: u64) -> bool {
        self.journal.iter().any(|record| record.epoch == epoch && record.seq == seq && !record.damaged)
    }

    /// The message with this number, and what it says is gone.
    fn packet(&self, epoch: Epoch, seq: u64) -> Result<Packet, String> {
        let (first, missing) = (self.outbox.first(epoch), self.outbox.missing(epoch));
        let gone = (1..first).chain(missing.pairs().iter().flat_map(|&(from, to)| from..=to));
        for gone in gone {
            if gone == seq || self.readable(epoch, gone) {
                return Err(format!("message {seq} of run {epoch:?} calls {gone} gone, which the journal holds"));
            }
        }
        Ok(Packet { epoch, seq, first, missing })
    }
}

impl Store {
    fn arrive(&mut self, packet: &Packet) -> Result<(), String> {
        let Packet { epoch, seq, first, missing } = packet;
        self.batch = true;
        let database = &mut self.working;
        let ledger = database.ledgers.entry(*epoch).or_default();
        database.newest = Some(*epoch);
        let before = ledger.lost().clone();
        let new = ledger.arrive(*seq, *first, missing) == Arrival::New;
        if new {
            ledger.tally.stored += 1;
        }
        if new != database.rows.insert((*epoch, *seq)) {
            let answer = if new { "new, and is stored" } else { "there again, and is not stored" };
            return Err(format!("message {seq} of run {epoch:?} is answered as {answer} (lost before: {before:?})"));
        }
        Ok(())
    }

    fn commit(&mut self) {
        self.batch = false;
        self.committed = self.working.clone();
    }

    fn ack(&self, store: usize, all: bool) -> Ack {
        let Database { ledgers, generation, newest, .. } = &self.committed;
        let started = self.started.to_string();
        let listed = ledgers.iter().filter(|(epoch, _)| all || *newest == Some(**epoch));
        Ack {
            store: store_id(store),
            generation: generation.to_string(),
            started,
            epochs: listed.map(|(epoch, ledger)| ledger.ack(*epoch)).collect(),
        }
    }
}

impl World {
    fn new(stores: usize, bounds: Bounds) -> Self {
        let mut world = Self {
            left: bounds,
            now: Duration::ZERO,
            epochs: 0,
            gateways: Vec::new(),
            stores: vec![Store { connected: true, ..Store::default() }; stores],
            retained: vec![None; stores],
            saved: vec![None; stores],
        };
        let first = Gateway::start(Vec::new(), world.new_epoch(), stores);
        world.gateways.push(Gateway { connected: true, ..first });
        world
    }

    fn new_epoch(&mut self) -> Epoch {
        self.epochs += 1;
        // Without order, as in life.
        Epoch::from_bits(u128::from(self.epochs) * 7 % 11)
    }

    /// Everything that can happen here.
    fn events(&self) -> Vec<Event> {
        let mut events = Vec::new();
        let mut may = |left: u8, event: Event| {
            if left > 0 {
                events.push(event);
            }
        };
        let left = &self.left;
        for (at, gateway) in self.gateways.iter().enumerate() {
            may(left.messages, Event::Produce(at));
            may(u8::from(gateway.connected), Event::Pump(at));
            may(u8::from(!gateway.inbox.is_empty()), Event::Hear(at));
            may(if gateway.connected { left.breaks } else { 0 }, Event::Break(at));
            may(u8::from(!gateway.connected), Event::Connect(at));
            may(left.breaks, Event::Kill(at));
            let unsynced = gateway.journal.iter().any(|record| !record.synced);
            may(if unsynced { left.power_cuts } else { 0 }, Event::Sync(at));
            may(left.power_cuts, Event::PowerCut(at));
            if gateway.image.is_none() {
                may(left.images, Event::Image(at));
            } else {
                may(left.images, Event::Restore(at));
                may(if self.gateways.len() < 2 { left.images } else { 0 }, Event::Clone(at));
            }
            may(if gateway.journal.is_empty() { 0 } else { left.give_ups }, Event::GiveUp(at));
            may(if self.free(at).is_some() { left.frees } else { 0 }, Event::Free(at));
            for (place, record) in gateway.journal.iter().enumerate() {
                may(if record.damaged { 0 } else { left.damages }, Event::Damage(at, place));
            }
        }
        for (at, store) in self.stores.iter().enumerate() {
            for place in 0..store.on_the_way.len() {
                may(1, Event::Arrive(at, place));
                may(left.losses, Event::Drop(at, place));
                may(left.losses, Event::Duplicate(at, place));
            }
            if store.batch {
                may(1, Event::Commit(at));
                may(left.losses, Event::CommitUnheard(at));
            }
            may(if store.connected { left.breaks } else { 0 }, Event::BreakStore(at));
            may(u8::from(!store.connected), Event::ConnectStore(at));
            may(left.breaks, Event::KillStore(at));
            if store.copy.is_none() {
                may(left.copies, Event::Copy(at));
            } else {
                may(left.copies, Event::RestoreStore(at));
                may(left.copies, Event::RestoreStoreSilently(at));
            }
        }
        may(left.ticks, Event::Tick);
        may(left.broker_faults, Event::BrokerForgets);
        may(left.broker_faults, Event::BrokerStepsBack);
        events
    }

    /// The newest record that all stores have and that is not the oldest.
    fn free(&self, at: usize) -> Option<usize> {
        let Gateway { journal, outbox, .. } = &self.gateways[at];
        let confirmed = |record: &Record| {
            (0..self.stores.len()).all(|store| outbox.confirmed_by(store, record.epoch).contains(record.seq))
        };
        (1..journal.len()).rev().find(|&place| confirmed(&journal[place]))
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        let left = &mut self.left;
        match event {
            Event::Produce(at) => {
                left.messages -= 1;
                self.produce(at)?;
            }
            Event::Pump(at) => self.pump(at)?,
            Event::Arrive(at, place) => self.arrive(at, place, true)?,
            Event::Duplicate(at, place) => {
                left.losses -= 1;
                self.arrive(at, place, false)?;
            }
            Event::Drop(at, place) => {
                left.losses -= 1;
                let packets = &mut self.stores[at].on_the_way;
                let packet = packets.iter().nth(place).unwrap().clone();
                packets.remove(&packet);
            }
            Event::Commit(at) => {
                self.stores[at].commit();
                self.say(at, false);
            }
            Event::CommitUnheard(at) => {
                left.losses -= 1;
                self.stores[at].commit();
            }
            Event::Hear(at) => self.hear(at),
            Event::Tick => {
                left.ticks -= 1;
                self.now += limits().patience;
            }
            Event::Sync(at) => self.gateways[at].journal.iter_mut().for_each(|record| record.synced = true),
            Event::Break(at) => {
                left.breaks -= 1;
                self.disconnect(at);
            }
            Event::Connect(at) => self.connect(at),
            Event::BreakStore(at) => {
                left.breaks -= 1;
                self.disconnect_store(at);
            }
            Event::ConnectStore(at) => self.connect_store(at),
            Event::BrokerForgets | Event::BrokerStepsBack => {
                left.broker_faults -= 1;
                (0..self.gateways.len()).for_each(|at| self.disconnect(at));
                (0..self.stores.len()).for_each(|at| self.disconnect_store(at));
                self.retained = match event {
                    Event::BrokerForgets => vec![None; self.stores.len()],
                    _ => self.saved.clone(),
                };
            }
            Event::Kill(at) => {
                left.breaks -= 1;
                let journal = self.gateways[at].journal.clone();
                self.start(at, journal);
            }
            Event::PowerCut(at) => {
                left.power_cuts -= 1;
                let journal = self.gateways[at].journal.iter().filter(|record| record.synced).cloned().collect();
                self.start(at, journal);
            }
            Event::Image(at) => {
                let gateway = &mut self.gateways[at];
                gateway.image = Some(gateway.journal.clone());
            }
            Event::Restore(at) => {
                left.images -= 1;
                let journal = self.gateways[at].image.clone().unwrap_or_default();
                self.start(at, journal);
            }
            Event::Clone(at) => {
                left.images -= 1;
                let journal = self.gateways[at].image.clone().unwrap_or_default();
                let epoch = self.new_epoch();
                self.gateways.push(Gateway::start(journal, epoch, self.stores.len()));
            }
            Event::GiveUp(at) => {
                left.give_ups -= 1;
                self.give_up(at, 0)?;
            }
            Event::Free(at) => {
                left.frees -= 1;
                if let Some(place) = self.free(at) {
                    let lost = self.give_up(at, place)?;
                    if lost > 0 {
                        return Err("a record that all stores have is counted as lost".into());
                    }
                }
            }
            Event::Damage(at, place) => {
                left.damages -= 1;
                self.gateways[at].journal[place].damaged = true;
            }
            Event::KillStore(at) => {
                left.breaks -= 1;
                self.start_store(at);
            }
            Event::Copy(at) => self.stores[at].copy = Some(self.stores[at].committed.clone()),
            Event::RestoreStore(at) | Event::RestoreStoreSilently(at) => {
                left.copies -= 1;
                let store = &mut self.stores[at];
                store.committed = store.copy.clone().unwrap_or_default();
                store.restored += 1;
                if let Event::RestoreStore(_) = event {
                    store.committed.generation = store.restored;
                }
                self.start_store(at);
            }
        }
        Ok(())
    }

    fn produce(&mut self, at: usize) -> Result<(), String> {
        let gateway = &mut self.gateways[at];
        gateway.made += 1;
        let (epoch, seq) = (gateway.epoch, gateway.made);
        gateway.journal.push(Record { epoch, seq, synced: false, damaged: false });
        gateway.outbox.accepted(seq);
        if gateway.connected {
            let packet = gateway.packet(epoch, seq)?;
            gateway.outbox.went_live(seq, self.now);
            self.send(packet);
        }
        Ok(())
    }

    fn send(&mut self, packet: Packet) {
        for store in self.stores.iter_mut().filter(|store| store.connected) {
            store.on_the_way.insert(packet.clone());
        }
    }

    fn pump(&mut self, at: usize) -> Result<(), String> {
        while let Next::Send { epoch, seq } = self.gateways[at].outbox.next(self.now) {
            let gateway = &mut self.gateways[at];
            if gateway.readable(epoch, seq) {
                let packet = gateway.packet(epoch, seq)?;
                gateway.outbox.sent(epoch, seq, 1, self.now, 20);
                self.send(packet);
            } else {
                gateway.outbox.unreadable(epoch, seq);
            }
        }
        Ok(())
    }

    fn arrive(&mut self, at: usize, place: usize, only: bool) -> Result<(), String> {
        let store = &mut self.stores[at];
        let packet = store.on_the_way.iter().nth(place).unwrap().clone();
        if only {
            store.on_the_way.remove(&packet);
        }
        store.arrive(&packet)
    }

    /// A store publishes what it has: all of it, or what it touched last.
    fn say(&mut self, at: usize, all: bool) {
        let store = &self.stores[at];
        let ack = store.ack(at, all);
        // A gateway of which it has nothing hears nothing.
        if !store.connected || ack.epochs.is_empty() {
            return;
        }
        let word = Word { store: at, copy: store.restored, ack: Some(ack) };
        self.saved[at] = self.retained[at].replace(word.clone());
        self.tell(&word);
    }

    fn tell(&mut self, word: &Word) {
        for gateway in self.gateways.iter_mut().filter(|gateway| gateway.connected) {
            gateway.inbox.push_back(word.clone());
        }
    }

    fn hear(&mut self, at: usize) {
        let gateway = &mut self.gateways[at];
        let Some(Word { store, copy, ack }) = gateway.inbox.pop_front() else { return };
        match ack {
            Some(ack) => drop(gateway.outbox.acknowledged(&ack, self.now)),
            None => gateway.outbox.came_back(&store_id(store), self.now),
        }
        gateway.heard[store] = copy;
    }

    fn disconnect(&mut self, at: usize) {
        let gateway = &mut self.gateways[at];
        gateway.connected = false;
        gateway.inbox.clear();
        gateway.outbox.start_over(self.now);
    }

    fn connect(&mut self, at: usize) {
        let gateway = &mut self.gateways[at];
        gateway.connected = true;
        gateway.inbox.extend(self.retained.iter().flatten().cloned());
    }

    fn start(&mut self, at: usize, journal: Vec<Record>) {
        let epoch = self.new_epoch();
        let image = self.gateways[at].image.take();
        self.gateways[at] = Gateway { image, ..Gateway::start(journal, epoch, self.stores.len()) };
    }

    fn give_up(&mut self, at: usize, place: usize) -> Result<u64, String> {
        let gateway = &mut self.gateways[at];
        let Record { epoch, seq, damaged, .. } = gateway.journal.remove(place);
        let lost = gateway.outbox.gave_up(epoch, seq..=seq);
        // A damaged one that was found out counts as lost already.
        for (store, heard) in self.stores.iter().zip(&gateway.heard) {
            let there = store.committed.rows.contains(&(epoch, seq));
            if lost == 0 && !damaged && !there && *heard == store.restored {
                return Err(format!("message {seq} of run {epoch:?} went as confirmed, and a store lacks it"));
            }
        }
        Ok(lost)
    }

    fn disconnect_store(&mut self, at: usize) {
        let store = &mut self.stores[at];
        store.connected = false;
        store.on_the_way.clear();
    }

    fn connect_store(&mut self, at: usize) {
        self.stores[at].connected = true;
        self.tell(&Word { store: at, copy: self.stores[at].restored, ack: None });
        self.say(at, true);
    }

    fn start_store(&mut self, at: usize) {
        self.disconnect_store(at);
        self.stores[at].started += 1;
        self.stores[at].batch = false;
        self.stores[at].working = self.stores[at].committed.clone();
    }

    /// What must be true in every state.
    fn check(&self) -> Result<(), String> {
        for store in &self.stores {
            for database in [&store.committed, &store.working] {
                for (epoch, ledger) in &database.ledgers {
                    let stored = |seq: u64| database.rows.contains(&(*epoch, seq));
                    let lost = |seq: u64| ledger.lost().contains(seq);
                    let known = ledger.through().max(ledger.lost().last().unwrap_or(0));
                    for seq in 1..=known.max(ledger.have().last().unwrap_or(0)) {
                        if stored(seq) && lost(seq) {
                            return Err(format!("message {seq} of run {epoch:?} is stored, and recorded as lost"));
                        }
                        if (seq <= ledger.through() || ledger.have().contains(seq)) && !stored(seq) && !lost(seq) {
                            return Err(format!("message {seq} of run {epoch:?} is in the ledger, and not stored"));
                        }
                    }
                    let rows = database.rows.iter().filter(|row| row.0 == *epoch).count();
                    if ledger.tally.stored != rows as u64 {
                        return Err(format!(
                            "{} messages of run {epoch:?} are counted, {rows} stored",
                            ledger.tally.stored
                        ));
                    }
                }
            }
        }
        self.confirmed_is_stored(false)
    }

    /// What counts as confirmed by a store is there; where the gateway has not heard a restored store yet
    /// only if it `must`.
    fn confirmed_is_stored(&self, must: bool) -> Result<(), String> {
        for gateway in &self.gateways {
            for (at, store) in self.stores.iter().enumerate() {
                if !must && gateway.heard[at] != store.restored {
                    continue;
                }
                for epoch in gateway.outbox.epochs() {
                    for &(from, to) in gateway.outbox.confirmed_by(at, epoch).pairs() {
                        if let Some(seq) = (from..=to).find(|&seq| !store.committed.rows.contains(&(epoch, seq))) {
                            return Err(format!(
                                "message {seq} of run {epoch:?} counts as confirmed by {at}, which lacks it"
                            ));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether the world, left in peace from here, ends as it must. `known` are those that do.
    fn ends_well(mut self, known: &mut HashSet<u64>) -> Result<(), String> {
        // What may still happen makes no difference when it does not.
        self.left = Bounds::default();
        self.saved.fill(None);
        self.gateways.iter_mut().for_each(|gateway| gateway.image = None);
        self.stores.iter_mut().for_each(|store| store.copy = None);
        for at in 0..self.gateways.len() {
            if !self.gateways[at].connected {
                self.connect(at);
            }
        }
        for at in 0..self.stores.len() {
            if !self.stores[at].connected {
                self.connect_store(at);
            }
        }
        let mut way = Vec::new();
        loop {
            way.push(self.fingerprint());
            if way.last().is_some_and(|state| known.contains(state)) {
                break;
            }
            if way.len() > 100 {
                return Err("the world does not come to rest".into());
            }
            if self.peaceful_round()? {
                self.rests_well()?;
                break;
            }
        }
        known.extend(way);
        Ok(())
    }

    fn rests_well(mut self) -> Result<(), String> {
        self.confirmed_is_stored(false)?;
        // Life goes on: by the next message a gateway has heard of each store.
        for at in 0..self.gateways.len() {
            self.produce(at)?;
        }
        let mut rounds = 0;
        while !self.peaceful_round()? {
            rounds += 1;
            if rounds > 100 {
                return Err("the world does not come to rest again".into());
            }
        }
        self.confirmed_is_stored(true)?;
        for gateway in &self.gateways {
            let depth = gateway.outbox.depth();
            if depth > 0 {
                return Err(format!("at rest the depth is {depth}"));
            }
            for Record { epoch, seq, .. } in gateway.journal.iter().filter(|record| !record.damaged) {
                for Database { rows, ledgers, .. } in self.stores.iter().map(|store| &store.committed) {
                    if !rows.contains(&(*epoch, *seq)) {
                        return Err(format!(
                            "at rest message {seq} of run {epoch:?} is in a journal, and a store lacks it"
                        ));
                    }
                    if ledgers.get(epoch).is_none_or(|ledger| ledger.through() < *seq) {
                        return Err(format!(
                            "at rest a watermark is below message {seq} of run {epoch:?}: a gap is untold"
                        ));
                    }
                }
            }
            for epoch in gateway.outbox.epochs() {
                let gone = gateway.outbox.missing(epoch);
                if !gone.is_empty() {
                    return Err(format!("at rest {gone:?} of run {epoch:?} are gone, and a store was not told"));
                }
            }
        }
        Ok(())
    }

    /// Everything arrives, is committed and heard; when nothing moves, time passes. Returns whether
    /// there is nothing more to wait for.
    fn peaceful_round(&mut self) -> Result<bool, String> {
        let mut quiet = true;
        for at in 0..self.gateways.len() {
            while !self.gateways[at].inbox.is_empty() {
                quiet = false;
                self.hear(at);
            }
            self.pump(at)?;
        }
        for at in 0..self.stores.len() {
            while !self.stores[at].on_the_way.is_empty() {
                self.arrive(at, 0, true)?;
            }
            if self.stores[at].batch {
                quiet = false;
                self.stores[at].commit();
                self.say(at, false);
            }
        }
        if !quiet {
            return Ok(false);
        }
        let mut waits = Vec::new();
        for gateway in &mut self.gateways {
            if let Next::Wait(Some(until)) = gateway.outbox.next(self.now) {
                waits.push(until);
            }
        }
        let until = waits.into_iter().min();
        self.now = until.unwrap_or(self.now);
        Ok(until.is_none())
    }

    /// Of a million states no two share one, as good as surely.
    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

/// Visits every state within these bounds; fails with a shortest way to a fault.
fn explore(name: &str, stores: usize, bounds: Bounds) {
    let start = World::new(stores, bounds);
    let mut seen = HashSet::from([start.fingerprint()]);
    // How each state was reached.
    let mut ways: Vec<(usize, Option<Event>)> = vec![(0, None)];
    let mut next = VecDeque::from([(0, start)]);
    let (mut known, mut events) = (HashSet::new(), 0);
    let told = |ways: &[(usize, Option<Event>)], mut at: usize, fault: String| {
        let mut way = Vec::new();
        while let (before, Some(event)) = ways[at] {
            way.push(event);
            at = before;
        }
        way.reverse();
        format!("{name}: {fault}, after {way:?}")
    };
    while let Some((at, world)) = next.pop_front() {
        for event in world.events() {
            events += 1;
            let mut after = world.clone();
            let happened = after.happen(event);
            if happened.is_ok() && !seen.insert(after.fingerprint()) {
                continue;
            }
            ways.push((at, Some(event)));
            let place = ways.len() - 1;
            if let Err(fault) = happened.and_then(|()| after.check()).and_then(|()| after.clone().ends_well(&mut known))
            {
                panic!("{}", told(&ways, place, fault));
            }
            next.push_back((place, after));
        }
    }
    println!("{name}: {} states, by {events} events", seen.len());
}

#[test]
fn messages_and_acknowledgements_are_lost_doubled_and_reordered() {
    explore("losses", 1, Bounds { messages: 2, ticks: 1, losses: 1, ..Bounds::default() });
}

#[test]
fn every_listed_store_has_everything() {
    explore("two stores", 2, Bounds { messages: 1, ticks: 1, breaks: 1, ..Bounds::default() });
}

#[test]
fn gateways_are_killed_and_lose_power() {
    explore("power", 1, Bounds { messages: 2, power_cuts: 1, ..Bounds::default() });
}

#[test]
fn gateways_run_from_an_image_and_twice_under_one_id() {
    explore("images", 1, Bounds { messages: 2, images: 1, give_ups: 1, ..Bounds::default() });
}

#[test]
fn journals_give_up_free_and_lose_records() {
    explore("journals", 1, Bounds { messages: 3, damages: 1, give_ups: 1, frees: 1, ..Bounds::default() });
}

#[test]
fn gaps_in_earlier_runs_are_told() {
    explore("gaps", 1, Bounds { messages: 2, losses: 1, breaks: 1, give_ups: 1, ..Bounds::default() });
}

#[test]
fn stores_are_restored_with_a_new_generation_and_without() {
    explore("copies", 1, Bounds { messages: 1, breaks: 1, copies: 1, ..Bounds::default() });
}

#[test]
fn stores_are_restored_while_journals_free_and_lose_records() {
    explore("copies and journals", 1, Bounds { messages: 2, copies: 1, frees: 1, damages: 1, ..Bounds::default() });
}

#[test]
fn brokers_die_forget_and_step_back() {
    explore("brokers", 1, Bounds { messages: 1, copies: 1, broker_faults: 1, ..Bounds::default() });
}

#[test]
#[ignore = "a million states: two minutes, optimised (CARGO_PROFILE_TEST_OPT_LEVEL=2)"]
fn more_of_everything() {
    let none = Bounds::default();
    explore("losses", 1, Bounds { messages: 3, ticks: 1, losses: 1, ..none.clone() });
    explore("two stores", 2, Bounds { messages: 1, ticks: 1, losses: 1, breaks: 1, ..none.clone() });
    explore("power", 1, Bounds { messages: 2, breaks: 1, power_cuts: 1, ..none.clone() });
    explore("gaps", 1, Bounds { messages: 2, losses: 1, breaks: 1, give_ups: 1, damages: 1, ..none.clone() });
    explore("images", 1, Bounds { messages: 2, images: 2, give_ups: 1, ..none.clone() });
    explore("copies", 1, Bounds { messages: 2, breaks: 1, copies: 1, ..none.clone() });
    explore("brokers", 1, Bounds { messages: 2, copies: 1, broker_faults: 1, ..none });
}
