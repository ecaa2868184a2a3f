//! A household in advance of time: all that its ports bring from one moment to another, as fast as it can be made.
//!
//! Enters: a [`Description`], and two moments. Leaves: the entries of a capture, in the order of time; and what a reader who
//! misses nothing holds at each month's end ([`Tape::books`]).
//!
//! The P1 port is called `p1`; what a telegram has arrives at once, when its last byte does. The bus is called `bus`: a master of ours
//! reads all its meters in turn, at every full [`every_s`](super::bus::Description::every_s) seconds, and what comes without a pause is one chunk.

use std::{collections::VecDeque, time::Duration};

use jiff::{SignedDuration, Timestamp};

use super::{
    Book, Bus, Description, Harm, Household,
    description::{Bad, Place},
};
use crate::{
    capture::{Chunk, Entry, Opening, Way, What, Wire},
    mbus::{Action, Job, Master, Outcome, Pattern, Target, Timing},
    moment::Moment,
    reading::Identity,
};

/// The name of the P1 port.
const P1: &str = "p1";
/// That of the bus.
const BUS: &str = "bus";

/// A household from one moment to another.
#[derive(Debug)]
pub struct Tape {
    /// In seconds since 1970.
    from: i64,
    until: i64,
    household: Household,
    /// When the next telegram is due, and every how many seconds one is; None without a P1 port.
    telegram: Option<(i64, i64)>,
    readout: Option<Readout>,
    pace: Option<Pace>,
    /// Made, and not yet due.
    queue: VecDeque<(u64, Entry)>,
    ledger: Ledger,
    damaged: u64,
}

/// A bus and who reads it.
#[derive(Debug)]
struct Readout {
    bus: Bus,
    master: Master,
    baud: u32,
    next: i64,
    every: i64,
}

/// How often from a moment on.
#[derive(Debug, Clone, Copy)]
struct Pace {
    from: i64,
    telegrams: i64,
    readouts: i64,
}

/// Bytes of a bus without such a pause are one chunk.
const PAUSE: Duration = Duration::from_millis(20);

impl Tape {
    /// A tape from `from` through `until`, to the second; with a telegram every so many seconds, where that is not the dialect's own
    /// period.
    pub fn new(description: &Description, from: Moment, until: Moment, every: Option<u32>) -> Result<Self, Bad> {
        description.check()?;
        let [start, end] = [from, until].map(|moment| moment.instant().as_second());
        let household = Household::of(description, from);
        let readout = match Bus::of(description, from) {
            None => None,
            Some(bus) => {
                let bus = bus.map_err(|message| Bad { place: Place("[bus]", 0), message })?;
                let described = description.bus.as_ref();
                let (baud, every) = described.map_or((2400, 900), |bus| (bus.baud, bus.every_s.max(1)));
                let every = i64::from(every);
                Some(Readout { bus, master: Master::new(baud), baud, next: next_of(start, every), every })
            }
        };
        let every = |own: u32| i64::from(every.unwrap_or(own).max(1));
        let telegram = household.dialect().map(|dialect| (start, every(dialect.period())));
        let queue = openings(description, &household, from).map(|opening| (0, Entry::Opening(opening))).collect();
        let mut ledger = Ledger::default();
        ledger.extend(moments_of(&household, from, until));
        Ok(Self { from: start, until: end, household, telegram, readout, pace: None, queue, ledger, damaged: 0 })
    }

    /// From `from` on there is a telegram every so many seconds, and the bus is read every so many. Of several calls the last counts.
    pub fn set_pace(&mut self, from: Moment, telegrams: u32, readouts: u32) {
        let from = from.instant().as_second().max(self.from);
        self.pace = Some(Pace { from, telegrams: telegrams.max(1).into(), readouts: readouts.max(1).into() });
    }

    /// Goes on until a later moment, of which there are books too.
    pub fn extend(&mut self, until: Moment) {
        let before = self.until;
        self.until = before.max(until.instant().as_second());
        self.ledger.extend(moments_of(&self.household, moment(before), moment(self.until)));
    }

    /// The household as it is at the end, and its bus, to live on: on the line of that, time begins anew.
    pub fn into_meters(self) -> (Household, Option<Bus>) {
        let bus = self.readout.map(|readout| {
            let mut bus = readout.bus;
            bus.restart_line();
            bus
        });
        (self.household, bus)
    }

    /// How much of it has been made, in seconds, and how long it is.
    pub fn progress(&self) -> (u64, u64) {
        let next = self.next().unwrap_or(self.until).clamp(self.from, self.until);
        (next.abs_diff(self.from), self.until.abs_diff(self.from))
    }

    /// How many telegrams came damaged or not at all.
    pub fn damaged(&self) -> u64 {
        self.damaged
    }

    /// What the meters hold at each local month's end, at each exchange of a meter and at the end, as the readings of the last report at or before
    /// that moment: with the moment, in the order in which the meters appeared. A meter that is gone keeps its last. Complete only when all
    /// entries were taken.
    pub fn books(&self) -> Vec<(Moment, &Book)> {
        self.ledger.books()
    }

    /// When something is to be made next.
    fn next(&self) -> Option<i64> {
        let telegram = self.telegram.map(|(next, _)| next).filter(|next| *next <= self.until);
        let readout = self.readout.as_ref().map(|readout| readout.next).filter(|next| *next < self.until);
        [telegram, readout].into_iter().flatten().min()
    }

    fn change(&mut self, Pace { from, telegrams, readouts }: Pace) {
        if let Some(telegram) = &mut self.telegram {
            *telegram = (from, telegrams);
        }
        if let Some(readout) = &mut self.readout {
            (readout.next, readout.every) = (next_of(from, readouts), readouts);
        }
    }

    fn micros(&self, second: i64) -> u64 {
        second.abs_diff(self.from).saturating_mul(1_000_000)
    }

    fn put(&mut self, port: &str, us: u64, way: Way, bytes: Vec<u8>) {
        let at = instant(self.from, us);
        let entry = Entry::Chunk(Chunk { port: port.to_owned(), us, at, what: What::Bytes(way, bytes) });
        let place = self.queue.partition_point(|(other, _)| *other <= us);
        self.queue.insert(place, (us, entry));
    }

    fn send_telegram(&mut self, second: i64) {
        self.household.advance(moment(second));
        if !self.household.is_powered() {
            return;
        }
        let (mut telegram, mut books) = (Vec::with_capacity(1024), Vec::with_capacity(5));
        self.household.compose(&mut telegram, &mut books);
        let harm = self.household.harm(&mut telegram);
        let (baud, _) = self.household.dialect().unwrap_or_default().line();
        // A start bit, eight bits and a stop bit each.
        let wire = (telegram.len() as u64).saturating_mul(10_000_000) / u64::from(baud.max(1));
        let us = self.micros(second).saturating_add(wire);
        if harm == Harm::None {
            if !self.household.tells_time()
                && let Some(book) = books.first_mut()
            {
                book.at = arrival(self.from, us);
            }
            for book in books {
                self.ledger.record(book);
            }
        } else {
            self.damaged += 1;
        }
        if !telegram.is_empty() {
            self.put(P1, us, Way::FromMeter, telegram);
        }
    }

    /// Reads all meters of the bus.
    fn read_bus(&mut self, second: i64) {
        let Some(mut readout) = self.readout.take() else { return };
        let mut now = Duration::from_micros(self.micros(second));
        for index in 0..readout.bus.slaves().len() {
            readout.bus.advance(moment(self.from.saturating_add(now.as_secs().cast_signed())));
            if !readout.bus.is_powered() {
                break;
            }
            let job = readout.job(index);
            let (outcome, chunks) = readout.run(job, &mut now);
            for (at, way, bytes) in chunks {
                self.put(BUS, at.as_micros() as u64, way, bytes);
            }
            if let (Outcome::Readout(_), Some(slave)) = (outcome, readout.bus.slaves().get(index)) {
                self.ledger.record(Book {
                    meter: Identity::Own(slave.secondary().to_string()),
                    medium: slave.medium(),
                    at: arrival(self.from, now.as_micros() as u64),
                    readings: slave.readings(),
                });
            }
        }
        // Whoever takes longer than that reads less often.
        let ended = self.from.saturating_add(now.as_secs().cast_signed());
        readout.next = ended.max(second).div_euclid(readout.every).saturating_add(1).saturating_mul(readout.every);
        self.readout = Some(readout);
    }
}

impl Iterator for Tape {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        loop {
            let due = Self::next(self);
            if let Some(pace) = self.pace.take_if(|pace| due.is_some_and(|second| second >= pace.from)) {
                self.change(pace);
                continue;
            }
            match (self.queue.front(), due) {
                (Some((us, _)), Some(second)) if *us > self.micros(second) => {}
                (Some(_), _) => return self.queue.pop_front().map(|(_, entry)| entry),
                (None, None) => return None,
                (None, Some(_)) => {}
            }
            let second = due?;
            match &mut self.telegram {
                Some((next, every)) if *next == second => {
                    *next = next.saturating_add(*every);
                    self.send_telegram(second);
                }
                _ => self.read_bus(second),
            }
        }
    }
}

impl Readout {
    /// How to read a meter: by its primary address where no other has it.
    fn job(&self, index: usize) -> Job {
        let mut timing = Timing { baud: self.baud, ..Timing::STANDARD };
        let slaves = self.bus.slaves();
        let Some(slave) = slaves.get(index) else { return Job::read(Target::Primary(0), timing) };
        if slave.description.answers_after_ms > 0 {
            let thinks = Duration::from_millis(slave.description.answers_after_ms.into());
            timing.timeout = Some(thinks.saturating_add(Duration::from_millis(500)));
        }
        timing.baud = slave.description.baud.unwrap_or(self.baud);
        let address = slave.description.address;
        let is_one = slaves.iter().filter(|other| other.description.address == address).count() == 1;
        let target = match is_one {
            true => Target::Primary(address),
            false => Target::Secondary(Pattern::from(slave.secondary())),
        };
        Job::read(target, timing)
    }

    /// Carries a job out in virtual time; returns what came of it, and what went over the line.
    fn run(&mut self, job: Job, now: &mut Duration) -> (Outcome, Vec<(Duration, Way, Vec<u8>)>) {
        let mut chunks: Vec<(Duration, Way, Vec<u8>)> = Vec::new();
        self.master.start(*now, job);
        loop {
            while let Some(action) = self.master.poll_action() {
                match action {
                    Action::Send(bytes) => {
                        self.bus.handle_bytes(*now, &bytes);
                        chunks.push((*now, Way::ToMeter, bytes));
                    }
                    Action::Baud(baud) => self.bus.set_baud(baud),
                    Action::Done(outcome) => return (outcome, chunks),
                }
            }
            // A master with a job has a deadline.
            let deadline = self.master.deadline().unwrap_or(*now);
            let byte = self.bus.next_byte().filter(|at| *at <= deadline);
            *now = (*now).max(byte.unwrap_or(deadline));
            let bytes = self.bus.poll_bytes(*now);
            if bytes.is_empty() {
                self.master.handle_timeout(*now);
                continue;
            }
            self.master.handle_bytes(*now, &bytes);
            match chunks.last_mut() {
                Some((at, Way::FromMeter, chunk)) if now.saturating_sub(*at) < PAUSE => {
                    chunk.extend(bytes);
                    *at = *now;
                }
                _ => chunks.push((*now, Way::FromMeter, bytes)),
            }
        }
    }
}

/// How the ports are recorded.
fn openings(description: &Description, household: &Household, from: Moment) -> impl Iterator<Item = Opening> {
    let opening = |port: &str, wire, settings: &str| Opening {
        port: port.to_owned(),
        wire,
        address: "simulated".to_owned(),
        settings: settings.to_owned(),
        at: from.instant(),
        goes_on: false,
    };
    let p1 = household.dialect().map(|dialect| opening(P1, Wire::P1, dialect.line().1));
    let bus = description.bus.as_ref().map(|bus| opening(BUS, Wire::Mbus, &format!("{} 8E1", bus.baud)));
    p1.into_iter().chain(bus)
}

/// The first full multiple of so many seconds that is not before a moment.
fn next_of(second: i64, every: i64) -> i64 {
    -(-second).div_euclid(every) * every
}

/// When there are books, behind `from` through `until`: month ends, exchanges, and the end.
fn moments_of(household: &Household, from: Moment, until: Moment) -> Vec<Moment> {
    let mut moments = household.month_ends(from, until);
    moments.extend(household.exchanges().filter(|at| from < *at && *at <= until));
    moments.push(until);
    moments
}

/// The last that each meter said until each of several moments.
#[derive(Debug, Default)]
struct Ledger {
    /// Rising.
    moments: Vec<Moment>,
    /// By moment: what was said last after the moment before.
    meters: Vec<(Identity, Vec<Option<Book>>)>,
}

impl Ledger {
    /// Adds moments behind those that are there.
    fn extend(&mut self, moments: Vec<Moment>) {
        self.moments.extend(moments);
        self.moments.sort();
        self.moments.dedup_by_key(|moment| moment.instant());
        for (_, spans) in &mut self.meters {
            spans.resize(self.moments.len(), None);
        }
    }

    fn record(&mut self, book: Book) {
        let index = match self.meters.iter().position(|(meter, _)| *meter == book.meter) {
            Some(index) => index,
            None => {
                self.meters.push((book.meter.clone(), vec![None; self.moments.len()]));
                self.meters.len() - 1
            }
        };
        let span = self.moments.partition_point(|moment| moment.millis() < book.at.millis());
        if let Some(place) = self.meters.get_mut(index).and_then(|(_, spans)| spans.get_mut(span))
            && place.as_ref().is_none_or(|last| last.at.millis() <= book.at.millis())
        {
            *place = Some(book);
        }
    }

    fn books(&self) -> Vec<(Moment, &Book)> {
        let mut all = Vec::new();
        for (index, moment) in self.moments.iter().enumerate() {
            for (_, spans) in &self.meters {
                let last = spans.iter().take(index + 1).rev().flatten().next();
                all.extend(last.map(|book| (*moment, book)));
            }
        }
        all
    }
}

fn moment(second: i64) -> Moment {
    Moment::utc(Timestamp::from_second(second).unwrap_or_default())
}

/// So many microseconds after a second.
fn instant(second: i64, us: u64) -> Timestamp {
    let since = SignedDuration::from_micros(us.cast_signed());
    moment(second).instant().checked_add(since).unwrap_or(Timestamp::MAX)
}

/// The same as the store keeps it, to the millisecond.
fn arrival(second: i64, us: u64) -> Moment {
    let instant = instant(second, us);
    Moment::from_millis(instant.as_millisecond(), 0).unwrap_or(Moment::utc(instant))
}
