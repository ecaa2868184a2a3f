//! The gateway's side: what each store has confirmed, and what to send next.
//!
//! Enters: what the journal holds and what it no longer does, what was published, what stores
//! acknowledge, and the time. Leaves: the number of the next message to send through the backlog, or how
//! long to wait; and what a message must say of the numbers that are gone.
//!
//! A message needs sending when some listed store has not confirmed it, unless it was published live
//! less than [`Limits::patience`] ago. What was sent is outstanding until confirmed. While
//! acknowledgements move, each outstanding message is sent again after `patience`; while none moves,
//! only the oldest is, at growing intervals, so that a dead store costs next to nothing. A broken
//! connection, or a store that comes back, starts over with everything outstanding.
//!
//! A number is settled with a store when it has arrived there or is recorded there as lost. Only what
//! has arrived is confirmed: what a store calls lost and the journal holds after all is sent. A number
//! that the journal no longer holds is told ([`Outbox::first`], [`Outbox::missing`]) with each message of
//! its run until every listed store has settled it; if all of those are confirmed, the highest is sent
//! once more to tell it. Of a run of which nothing is left nobody can tell, and nobody needs to: it is
//! counted as lost here, and a number that is in no journal keeps nothing from being freed.
//!
//! With no store listed, the broker's PUBACK confirms: then the promise ends at the broker.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::RangeInclusive,
    time::Duration,
};

use super::{
    Ack, Epoch, MOST_MISSING, Ranges, Tally,
    outstanding::{Key, Outstanding},
};

/// Most separate ranges that are remembered of what a store has of an epoch. It acknowledges far fewer;
/// what is forgotten is sent again.
const MOST_RANGES: usize = 1024;
/// See [`Limits::per_second`].
const SECOND: Duration = Duration::from_secs(1);

/// How much is sent before it is confirmed, and how long to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Most messages outstanding.
    pub messages: usize,
    /// Most bytes outstanding.
    pub bytes: usize,
    /// How long a message may stay unconfirmed before it is sent (again) through the backlog.
    pub patience: Duration,
    /// Longest interval between repeats while nothing is confirmed.
    pub longest: Duration,
    /// Most messages through the backlog in any second, at least one; None: as many as there is room for.
    pub per_second: Option<u32>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            messages: 1000,
            bytes: 1024 * 1024,
            patience: Duration::from_secs(60),
            longest: Duration::from_secs(600),
            per_second: Some(500),
        }
    }
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Send this message through the backlog, then call [`Outbox::sent`].
    Send {
        /// Its epoch.
        epoch: Epoch,
        /// Its number.
        seq: u64,
    },
    /// Nothing until then, unless something happens. None: nothing to wait for.
    Wait(Option<Duration>),
}

/// What an acknowledgement did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AckEffect {
    /// Messages held that are newly confirmed by all listed stores.
    pub confirmed: u64,
    /// The store began a new generation: what it had confirmed is forgotten. It is so as well, without
    /// being said here, when the store was started anew.
    pub forgotten: bool,
    /// Messages that were called lost ([`Outbox::gave_up`]) and had been on their way: all listed stores have them.
    pub found: u64,
    /// Parts that were ignored: an unlisted store, an unknown epoch, a number never given.
    pub ignored: u64,
}

/// See the module. Times are since the gateway started.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Outbox {
    limits: Limits,
    /// The ids of the listed stores.
    stores: Vec<String>,
    /// By store: the generation and the start that it last spoke of.
    lives: Vec<Option<(String, String)>>,
    /// Oldest first; the last is the current one. Others leave when nothing of them is held.
    runs: BTreeMap<u64, Run>,
    orders: BTreeMap<Epoch, u64>,
    /// Of the current run, published live and within patience: number and time, ascending.
    live: VecDeque<(u64, Duration)>,
    outstanding: Outstanding,
    /// Everything before needs no sending, or is live or outstanding.
    cursor: Key,
    /// When something was last confirmed, or first outstanding.
    moved_at: Duration,
    /// How long to wait before the oldest is repeated while nothing moves.
    repeat_after: Duration,
    burst: Burst,
}

/// Messages sent less than a second apart, and when the last of them was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Burst {
    messages: u32,
    last: Duration,
}

impl Burst {
    /// Sent at `now`.
    fn count(&mut self, now: Duration) {
        let messages = if now >= self.ends() { 0 } else { self.messages };
        *self = Self { messages: messages.saturating_add(1), last: now };
    }

    /// After a full burst comes a second of silence: so no second, wherever it begins, sees more than
    /// one burst, and a store commits what belongs together at once.
    fn ends(&self) -> Duration {
        self.last.saturating_add(SECOND)
    }
}

/// One epoch.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Run {
    epoch: Epoch,
    /// Highest number given; 0: none.
    last: u64,
    /// Numbers up to `last` that the journal does not hold.
    gone: Ranges,
    /// Those of them that were called lost: no store had confirmed them then, but they may have been on their way.
    lost: Ranges,
    /// Some of what is gone is not settled with some listed store.
    untold: bool,
    /// By store, in the order of `stores`; by the broker where no store is listed.
    said: Vec<Said>,
}

/// What one store said of an epoch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Said {
    confirmed: Ranges,
    /// Confirmed or lost.
    settled: Ranges,
    tally: Option<Tally>,
}

impl Run {
    /// The end of the confirmed numbers that begin at `seq`; None when `seq` is not confirmed by all.
    fn confirmed_through(&self, seq: u64) -> Option<u64> {
        self.said.iter().map(|said| said.confirmed.run_at(seq)).min_by_key(|end| end.unwrap_or(0)).flatten()
    }

    /// The end of the numbers from `seq` on that are gone or confirmed alike; None when `seq` must be sent.
    fn done_through(&self, seq: u64) -> Option<u64> {
        if let Some(end) = self.gone.run_at(seq) {
            return Some(end);
        }
        let end = self.confirmed_through(seq)?;
        match self.bearer() {
            Some(bearer) if bearer == seq => None,
            Some(bearer) if seq < bearer => Some(end.min(bearer - 1)),
            _ => Some(end),
        }
    }

    /// The message that tells what is gone where no other does.
    fn bearer(&self) -> Option<u64> {
        if self.untold { self.highest() } else { None }
    }

    /// How many of the numbers from 1 on are confirmed by all.
    fn count_confirmed(&self) -> u64 {
        let mut unconfirmed = Ranges::new();
        for (from, to) in self.said.iter().flat_map(|said| said.confirmed.gaps(1, self.last)) {
            unconfirmed.insert(from, to);
        }
        self.last.saturating_sub(unconfirmed.count())
    }

    /// How many numbers held are not confirmed by all.
    fn depth(&self) -> u64 {
        self.wanting().count()
    }

    /// The numbers held that are not confirmed by all.
    fn wanting(&self) -> Ranges {
        let mut wanting = Ranges::new();
        for (from, to) in self.said.iter().flat_map(|said| said.confirmed.gaps(1, self.last)) {
            wanting.insert(from, to);
        }
        for &(from, to) in self.gone.pairs() {
            wanting.remove(from, to);
        }
        wanting
    }

    /// Takes what all have by now from what was called lost; returns how many that are.
    fn find(&mut self) -> u64 {
        let mut lost = Ranges::new();
        for &(begin, end) in self.lost.pairs() {
            for (from, to) in self.said.iter().flat_map(|said| said.confirmed.gaps(begin, end)) {
                lost.insert(from, to);
            }
        }
        let found = self.lost.count().saturating_sub(lost.count());
        self.lost = lost;
        found
    }

    /// The lowest number held; one above `last` when none is.
    fn first(&self) -> u64 {
        self.gone.run_at(1).map_or(1, |end| end.saturating_add(1))
    }

    /// The highest number held.
    fn highest(&self) -> Option<u64> {
        match self.gone.pairs().last() {
            Some(&(from, to)) if to >= self.last => from.checked_sub(1),
            _ => Some(self.last),
        }
        .filter(|&seq| seq > 0)
    }

    /// What is gone from `from` on and not settled with all of these stores, up to [`MOST_MISSING`] ranges.
    fn missing(&self, from: u64) -> Ranges {
        let mut missing = Ranges::new();
        for &(begin, end) in self.gone.pairs().iter().filter(|&&(begin, _)| begin >= from) {
            for (begin, end) in self.said.iter().flat_map(|said| said.settled.gaps(begin, end)) {
                missing.insert(begin, end);
            }
            if missing.pairs().len() >= MOST_MISSING {
                break;
            }
        }
        missing.truncate(MOST_MISSING);
        missing
    }
}

impl Outbox {
    /// An outbox for these stores (by id); none: the broker confirms.
    pub fn new(stores: &[String], limits: Limits) -> Self {
        Self {
            limits,
            stores: stores.to_vec(),
            lives: vec![None; stores.len()],
            runs: BTreeMap::new(),
            orders: BTreeMap::new(),
            live: VecDeque::new(),
            outstanding: Outstanding::default(),
            cursor: (0, 0),
            moved_at: Duration::ZERO,
            repeat_after: limits.patience,
            burst: Burst::default(),
        }
    }

    /// Adds an epoch that the journal holds, from `first` to `last` (0: nothing yet). Oldest first; the
    /// last one added is the current one.
    pub fn hold(&mut self, epoch: Epoch, first: u64, last: u64) {
        let before = self.runs.keys().next_back().copied();
        let order = before.map_or(0, |order| order.saturating_add(1));
        let gone = Ranges::from_pairs([(1, first.saturating_sub(1).min(last))]);
        let said = vec![Said::default(); self.stores.len().max(1)];
        self.runs.insert(order, Run { epoch, last, gone, lost: Ranges::new(), untold: false, said });
        self.orders.insert(epoch, order);
        self.look(order);
        if let Some(before) = before {
            self.look(before);
        }
    }

    /// The journal accepted the next message of the current epoch.
    pub fn accepted(&mut self, seq: u64) {
        if let Some(mut run) = self.runs.last_entry() {
            let run = run.get_mut();
            run.last = run.last.max(seq);
        }
    }

    /// The journal gave up these numbers of `epoch`. Returns how many of those it held not every listed
    /// store had confirmed: they are lost, unless they are on their way ([`AckEffect::found`]).
    pub fn gave_up(&mut self, epoch: Epoch, numbers: RangeInclusive<u64>) -> u64 {
        let Some((&order, run)) = self.orders.get(&epoch).and_then(|order| Some((order, self.runs.get_mut(order)?)))
        else {
            return 0;
        };
        let mut lost = run.wanting();
        run.gone.insert((*numbers.start()).max(1), (*numbers.end()).min(run.last));
        for &(from, to) in run.wanting().pairs() {
            lost.remove(from, to);
        }
        for &(from, to) in lost.pairs() {
            run.lost.insert(from, to);
        }
        self.outstanding.retain(|(at, seq)| at != order || !numbers.contains(&seq));
        self.look(order);
        lost.count()
    }

    /// A message that [`next`](Self::next) named cannot be read from the journal any more: it is passed
    /// over. Returns 1 when it is lost, and 0 when every listed store had confirmed it.
    pub fn unreadable(&mut self, epoch: Epoch, seq: u64) -> u64 {
        self.gave_up(epoch, seq..=seq)
    }

    /// After a change of what is gone or settled in a run: what follows from it.
    fn look(&mut self, order: u64) {
        let current = self.runs.keys().next_back() == Some(&order);
        let Some(run) = self.runs.get_mut(&order) else { return };
        let Some(highest) = run.highest() else {
            run.untold = false;
            if !current {
                self.orders.remove(&run.epoch);
                self.runs.remove(&order);
                self.outstanding.retain(|(at, _)| at != order);
            }
            return;
        };
        run.untold = !self.stores.is_empty() && !run.missing(1).is_empty();
        if run.untold {
            self.cursor = self.cursor.min((order, highest));
        }
    }

    fn run(&self, epoch: Epoch) -> Option<&Run> {
        self.runs.get(self.orders.get(&epoch)?)
    }

    /// Whether all listed stores have these numbers of `epoch`, as far as they are not gone.
    pub fn is_confirmed(&self, epoch: Epoch, numbers: RangeInclusive<u64>) -> bool {
        let (mut seq, end) = (*numbers.start(), *numbers.end());
        // What the outbox does not know any more is settled.
        let Some(run) = self.run(epoch) else { return true };
        while seq <= end {
            let Some(settled) = run.confirmed_through(seq).or_else(|| run.gone.run_at(seq)) else { return false };
            seq = settled.saturating_add(1);
        }
        true
    }

    /// The lowest number of `epoch` that the journal holds.
    pub fn first(&self, epoch: Epoch) -> u64 {
        self.run(epoch).map_or(1, Run::first)
    }

    /// The numbers of `epoch` above [`first`](Self::first) that the journal does not hold, as far as some
    /// listed store has not settled them: the lowest [`MOST_MISSING`] ranges.
    pub fn missing(&self, epoch: Epoch) -> Ranges {
        self.run(epoch).filter(|run| run.untold).map_or(Ranges::new(), |run| run.missing(run.first()))
    }

    /// A message of the current epoch was handed to the connection live.
    pub fn went_live(&mut self, seq: u64, now: Duration) {
        self.live.push_back((seq, now));
    }

    /// The connection broke: what is unconfirmed may never have arrived.
    pub fn start_over(&mut self, now: Duration) {
        self.live.clear();
        self.outstanding.clear();
        self.cursor = (0, 0);
        self.moved_at = now;
        self.repeat_after = self.limits.patience;
    }

    /// A store came back. It has none of what was sent to nobody; and its database may be an older copy
    /// that says so nowhere, so what it confirmed before counts no more. What it has it says again.
    pub fn came_back(&mut self, store: &str, now: Duration) {
        if let Some(index) = self.stores.iter().position(|listed| listed == store) {
            self.forget(index, now);
        }
    }

    /// What this store had confirmed is sent again unless it confirms it again.
    fn forget(&mut self, index: usize, now: Duration) {
        for said in self.runs.values_mut().filter_map(|run| run.said.get_mut(index)) {
            (said.confirmed, said.settled) = (Ranges::new(), Ranges::new());
        }
        for order in self.runs.keys().copied().collect::<Vec<_>>() {
            self.look(order);
        }
        self.start_over(now);
    }

    /// The broker took this message. Confirms it where no store is listed.
    pub fn published(&mut self, epoch: Epoch, seq: u64, now: Duration) {
        if !self.stores.is_empty() {
            return;
        }
        let Some(&order) = self.orders.get(&epoch) else { return };
        let run = self.runs.get_mut(&order).filter(|run| seq <= run.last);
        if let Some(said) = run.and_then(|run| run.said.first_mut()) {
            said.confirmed.insert(seq, seq);
            if said.bound() {
                self.cursor = (0, 0);
            }
            self.outstanding.remove((order, seq));
            self.moved(now);
        }
    }

    /// A store says what it has.
    pub fn acknowledged(&mut self, ack: &Ack, now: Duration) -> AckEffect {
        let mut effect = AckEffect::default();
        let Some(index) = self.stores.iter().position(|store| *store == ack.store) else {
            effect.ignored = 1;
            return effect;
        };
        let life = (ack.generation.clone(), ack.started.clone());
        let before = self.lives.get_mut(index).and_then(|known| known.replace(life));
        if let Some((generation, started)) = before
            && (generation != ack.generation || started != ack.started)
        {
            effect.forgotten = generation != ack.generation;
            self.forget(index, now);
        }
        let current = self.runs.keys().next_back().copied();
        let mut moved = false;
        for said in &ack.epochs {
            let known = self.orders.get(&said.epoch).and_then(|&order| Some((order, self.runs.get_mut(&order)?)));
            let Some((order, run)) = known else {
                effect.ignored = effect.ignored.saturating_add(1);
                continue;
            };
            let highest = said.through.max(said.have.last().unwrap_or(0)).max(said.lost.last().unwrap_or(0));
            if highest > run.last {
                // A store cannot have what was never sent.
                if current == Some(order) {
                    effect.ignored = effect.ignored.saturating_add(1);
                    continue;
                }
                // Of an earlier run it can: a power cut may have taken the end of the journal that had
                // already gone out.
                run.gone.insert(run.last.saturating_add(1), highest);
                run.last = highest;
            }
            let (depth, untold) = (run.depth(), run.untold);
            if let Some(known) = run.said.get_mut(index) {
                known.take(said.through, &said.have, &said.lost);
                known.tally = Some(said.tally);
                if known.bound() {
                    self.cursor = (0, 0);
                }
            }
            let gained = depth.saturating_sub(run.depth());
            effect.confirmed = effect.confirmed.saturating_add(gained);
            effect.found = effect.found.saturating_add(run.find());
            self.look(order);
            moved |= gained > 0 || untold;
        }
        if moved {
            let runs = &self.runs;
            self.outstanding.retain(|(order, seq)| runs.get(&order).is_some_and(|run| run.done_through(seq).is_none()));
        }
        if effect.confirmed > 0 {
            self.moved(now);
        }
        effect
    }

    /// Something was confirmed.
    fn moved(&mut self, now: Duration) {
        self.moved_at = now;
        self.repeat_after = self.limits.patience;
    }

    /// What to do at `now`.
    pub fn next(&mut self, now: Duration) -> Next {
        let next = self.choose(now);
        let full = self.limits.per_second.is_some_and(|most| self.burst.messages >= most.max(1));
        match next {
            Next::Send { .. } if full && now < self.burst.ends() => Next::Wait(Some(self.burst.ends())),
            next => next,
        }
    }

    /// What to do at `now`, however much went out in the last second.
    fn choose(&mut self, now: Duration) -> Next {
        let done = |seq| self.runs.values().next_back().is_none_or(|run| run.done_through(seq).is_some());
        while let Some(&(seq, at)) = self.live.front()
            && (now >= at.saturating_add(self.limits.patience) || done(seq))
        {
            self.live.pop_front();
        }
        while let Some((order, seq)) = self.repeat(now) {
            match self.runs.get(&order).filter(|run| run.done_through(seq).is_none()) {
                Some(run) => return Next::Send { epoch: run.epoch, seq },
                // It told what is gone; by now a higher one does.
                None => self.outstanding.remove((order, seq)),
            }
        }
        let room = self.outstanding.len() < self.limits.messages && self.outstanding.bytes() < self.limits.bytes;
        if room && let Some((epoch, seq)) = self.candidate() {
            return Next::Send { epoch, seq };
        }
        let live_ends = self.live.front().map(|&(_, at)| at.saturating_add(self.limits.patience));
        Next::Wait([self.due(), live_ends].into_iter().flatten().min())
    }

    /// What is to be repeated at `now`: the one sent longest ago, which while nothing moves is the lowest.
    fn repeat(&self, now: Duration) -> Option<Key> {
        self.due().filter(|&due| now >= due)?;
        if self.stalled() { self.outstanding.lowest() } else { self.outstanding.oldest().map(|(_, key)| key) }
    }

    /// When the next repeat is due.
    fn due(&self) -> Option<Duration> {
        let (oldest, _) = self.outstanding.oldest()?;
        Some(oldest.saturating_add(if self.stalled() { self.repeat_after } else { self.limits.patience }))
    }

    /// Whether nothing was confirmed since the oldest outstanding message was sent.
    fn stalled(&self) -> bool {
        self.outstanding.oldest().is_none_or(|(at, _)| at >= self.moved_at)
    }

    /// The first message at or after the cursor that needs sending.
    fn candidate(&mut self) -> Option<(Epoch, u64)> {
        loop {
            let (order, seq) = self.cursor;
            let (&at, run) = self.runs.range(order..).next()?;
            let seq = if at == order { seq.max(1) } else { 1 };
            self.cursor = (at, seq);
            if seq > run.last {
                self.runs.range(at.saturating_add(1)..).next()?;
                self.cursor = (at.saturating_add(1), 1);
            } else if let Some(end) = run.done_through(seq) {
                self.cursor.1 = end.saturating_add(1);
            } else if self.outstanding.contains(self.cursor) {
                self.cursor.1 = seq.saturating_add(1);
            } else if self.is_live(at, seq) {
                // Its time has not come, and what follows is younger.
                return None;
            } else {
                return Some((run.epoch, seq));
            }
        }
    }

    fn is_live(&self, order: u64, seq: u64) -> bool {
        self.runs.keys().next_back() == Some(&order) && self.live.binary_search_by_key(&seq, |&(live, _)| live).is_ok()
    }

    /// A message that [`next`](Self::next) named was handed to the connection. `dice` is any random
    /// number: it spreads the repeats of many gateways by +/- 20 %.
    pub fn sent(&mut self, epoch: Epoch, seq: u64, bytes: usize, now: Duration, dice: u32) {
        self.burst.count(now);
        let Some(&order) = self.orders.get(&epoch) else { return };
        let key = (order, seq);
        if self.outstanding.is_empty() {
            self.moved_at = now;
        } else if self.stalled() && self.outstanding.contains(key) {
            // All of them wait together for the first sign of life.
            self.outstanding.touch(now);
            let doubled = self.repeat_after.saturating_mul(2).min(self.limits.longest);
            let percent = dice.wrapping_rem(41).saturating_add(80);
            self.repeat_after = doubled.saturating_mul(percent) / 100;
        }
        self.outstanding.insert(key, bytes, now);
        if self.cursor == key {
            self.cursor.1 = seq.saturating_add(1);
        }
    }

    /// What the listed store in this place has confirmed of `epoch`.
    #[cfg(test)]
    pub(super) fn confirmed_by(&self, store: usize, epoch: Epoch) -> Ranges {
        self.run(epoch).and_then(|run| run.said.get(store)).map_or(Ranges::new(), |said| said.confirmed.clone())
    }

    /// The epochs of which something is held, and the current one.
    #[cfg(test)]
    pub(super) fn epochs(&self) -> Vec<Epoch> {
        self.runs.values().map(|run| run.epoch).collect()
    }

    /// How many messages held are not confirmed by all listed stores.
    pub fn depth(&self) -> u64 {
        self.runs.values().fold(0, |sum, run| sum.saturating_add(run.depth()))
    }

    /// How many messages of the current epoch all listed stores have confirmed.
    pub fn confirmed(&self) -> u64 {
        self.runs.values().next_back().map_or(0, Run::count_confirmed)
    }

    /// What became of the messages of the current epoch, as the first listed store says.
    pub fn tally(&self) -> Option<Tally> {
        self.runs.values().next_back()?.said.first()?.tally
    }
}

impl Said {
    /// Adds what the store says: acknowledgements of one generation never lower.
    fn take(&mut self, through: u64, have: &Ranges, lost: &Ranges) {
        for (from, to) in lost.gaps(1, through) {
            self.confirmed.insert(from, to);
        }
        for (from, to) in have.pairs().iter().flat_map(|&(from, to)| lost.gaps(from, to)) {
            self.confirmed.insert(from, to);
        }
        self.settled.insert(1, through);
        for &(from, to) in have.pairs().iter().chain(lost.pairs()) {
            self.settled.insert(from, to);
        }
    }

    /// Forgets what is too much to remember. Returns whether it did: something may need sending again.
    fn bound(&mut self) -> bool {
        let most = self.confirmed.pairs().len().max(self.settled.pairs().len());
        self.confirmed.truncate(MOST_RANGES);
        self.settled.truncate(MOST_RANGES);
        most > MOST_RANGES
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::delivery::{EpochAck, Ledger};

    const RUN: Epoch = Epoch::from_bits(1);
    const OLD: Epoch = Epoch::from_bits(2);

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn outbox(last: u64) -> Outbox {
        let mut outbox = Outbox::new(&["main".to_owned()], Limits { messages: 3, ..Limits::default() });
        outbox.hold(RUN, 1, last);
        outbox
    }

    fn ack(epoch: Epoch, through: u64, have: &[(u64, u64)], generation: &str) -> Ack {
        Ack {
            store: "main".into(),
            generation: generation.into(),
            started: "s".into(),
            epochs: vec![EpochAck {
                epoch,
                through,
                have: Ranges::from_pairs(have.iter().copied()),
                lost: Ranges::new(),
                tally: Tally::default(),
            }],
        }
    }

    /// Sends until told to wait; returns the numbers and the wait.
    fn pump(outbox: &mut Outbox, now: Duration) -> (Vec<u64>, Option<Duration>) {
        let mut sent = Vec::new();
        loop {
            match outbox.next(now) {
                Next::Send { epoch, seq } => {
                    sent.push(seq);
                    assert!(sent.len() < 100, "endless: {sent:?}");
                    outbox.sent(epoch, seq, 100, now, 20);
                }
                Next::Wait(until) => return (sent, until),
            }
        }
    }

    #[test]
    fn what_went_live_is_sent_again_only_after_patience() {
        let mut outbox = outbox(1);
        outbox.went_live(1, s(0));
        assert_eq!(pump(&mut outbox, s(59)), (vec![], Some(s(60))));
        assert_eq!(pump(&mut outbox, s(60)), (vec![1], Some(s(120))));
    }

    #[test]
    fn a_confirmed_message_is_never_sent() {
        let mut outbox = outbox(2);
        outbox.went_live(1, s(0));
        assert_eq!(outbox.acknowledged(&ack(RUN, 2, &[], "g"), s(1)).confirmed, 2);
        assert_eq!(pump(&mut outbox, s(100)), (vec![], None));
        assert_eq!((outbox.depth(), outbox.confirmed()), (0, 2));
    }

    #[test]
    fn no_more_than_the_limit_is_outstanding() {
        let mut outbox = outbox(10);
        assert_eq!(pump(&mut outbox, s(0)).0, [1, 2, 3]);
        outbox.acknowledged(&ack(RUN, 1, &[(3, 3)], "g"), s(1));
        assert_eq!(pump(&mut outbox, s(1)).0, [4, 5]);
    }

    #[test]
    fn while_nothing_moves_only_the_oldest_is_repeated_ever_more_slowly() {
        let mut outbox = outbox(10);
        pump(&mut outbox, s(0));
        assert_eq!(pump(&mut outbox, s(60)), (vec![1], Some(s(180))));
        assert_eq!(pump(&mut outbox, s(180)), (vec![1], Some(s(420))));
        assert_eq!(pump(&mut outbox, s(420)).0, [1]);
        let Next::Wait(Some(until)) = outbox.next(s(421)) else { panic!() };
        assert!(until <= s(420 + 720), "at most ten minutes and a fifth: {until:?}");
    }

    #[test]
    fn while_something_moves_each_is_repeated() {
        let mut outbox = outbox(3);
        pump(&mut outbox, s(0));
        outbox.acknowledged(&ack(RUN, 0, &[(3, 3)], "g"), s(30));
        assert!(pump(&mut outbox, s(59)).0.is_empty());
        assert_eq!(pump(&mut outbox, s(60)).0, [1, 2]);
    }

    #[test]
    fn a_store_that_returns_gets_everything_at_once() {
        let mut outbox = outbox(5);
        pump(&mut outbox, s(0));
        pump(&mut outbox, s(60));
        outbox.start_over(s(70));
        assert_eq!(pump(&mut outbox, s(70)).0, [1, 2, 3]);
    }

    #[test]
    fn earlier_runs_go_first() {
        let mut outbox = Outbox::new(&["main".to_owned()], Limits::default());
        outbox.hold(OLD, 7, 8);
        outbox.hold(RUN, 1, 0);
        outbox.accepted(1);
        assert_eq!(pump(&mut outbox, s(0)).0, [7, 8, 1]);
        assert_eq!(outbox.depth(), 3);
        // The store may have more of an earlier run than a power cut left in the journal.
        assert_eq!(
            outbox.acknowledged(&ack(OLD, 12, &[], "g"), s(1)),
            AckEffect { confirmed: 2, ..Default::default() }
        );
    }

    #[test]
    fn what_was_on_its_way_when_it_was_given_up_is_found_once() {
        let mut outbox = outbox(6);
        pump(&mut outbox, s(0));
        outbox.acknowledged(&ack(RUN, 1, &[], "g"), s(0));
        assert_eq!(outbox.gave_up(RUN, 1..=4), 3);
        assert_eq!(outbox.acknowledged(&ack(RUN, 2, &[], "g"), s(1)).found, 1);
        assert_eq!(outbox.acknowledged(&ack(RUN, 2, &[], "g"), s(1)).found, 0);
        // A store that began anew says what it has again: that is no news of what was confirmed before it was given up.
        assert_eq!(outbox.acknowledged(&ack(RUN, 2, &[], "g2"), s(2)).found, 0);
        let mut told = ack(RUN, 6, &[], "g2");
        told.epochs[0].lost = Ranges::from_pairs([(3, 4)]);
        assert_eq!(outbox.acknowledged(&told, s(3)), AckEffect { confirmed: 2, ..Default::default() });
        // Nor is it lost for ever.
        assert_eq!(outbox.acknowledged(&ack(RUN, 6, &[], "g2"), s(4)).found, 2);
    }

    #[test]
    fn an_ack_of_something_else_changes_nothing_and_is_counted() {
        let mut outbox = outbox(5);
        let mut foreign = ack(RUN, 5, &[], "g");
        foreign.store = "other".into();
        assert_eq!(outbox.acknowledged(&foreign, s(0)).ignored, 1);
        assert_eq!(outbox.acknowledged(&ack(OLD, 5, &[], "g"), s(0)).ignored, 1);
        assert_eq!(outbox.acknowledged(&ack(RUN, 6, &[], "g"), s(0)).ignored, 1);
        assert_eq!(outbox.acknowledged(&ack(RUN, 1, &[(3, 6)], "g"), s(0)).ignored, 1);
        assert_eq!(outbox.depth(), 5);
    }

    #[test]
    fn acks_of_one_generation_never_lower_and_a_new_one_forgets() {
        let mut outbox = outbox(5);
        outbox.acknowledged(&ack(RUN, 4, &[], "g1"), s(0));
        outbox.acknowledged(&ack(RUN, 2, &[], "g1"), s(1));
        assert_eq!(outbox.depth(), 1);
        assert!(outbox.acknowledged(&ack(RUN, 2, &[], "g2"), s(2)).forgotten);
        assert_eq!(outbox.depth(), 3);
        assert_eq!(pump(&mut outbox, s(2)).0, [3, 4, 5]);
    }

    #[test]
    fn acks_of_a_store_that_was_started_anew_forget_what_it_said_before() {
        let mut outbox = outbox(5);
        outbox.acknowledged(&ack(RUN, 4, &[], "g"), s(0));
        let mut after = ack(RUN, 2, &[], "g");
        after.started = "anew".into();
        assert!(!outbox.acknowledged(&after, s(1)).forgotten);
        assert_eq!(pump(&mut outbox, s(1)).0, [3, 4, 5]);
    }

    #[test]
    fn every_listed_store_must_confirm() {
        let mut outbox = Outbox::new(&["main".to_owned(), "second".to_owned()], Limits::default());
        outbox.hold(RUN, 1, 2);
        outbox.acknowledged(&ack(RUN, 2, &[], "g"), s(0));
        assert_eq!(outbox.depth(), 2);
        let mut second = ack(RUN, 1, &[], "g");
        second.store = "second".into();
        assert_eq!(outbox.acknowledged(&second, s(0)).confirmed, 1);
        assert_eq!(pump(&mut outbox, s(0)).0, [2]);
    }

    #[test]
    fn with_no_store_the_broker_confirms() {
        let mut outbox = Outbox::new(&[], Limits::default());
        outbox.hold(RUN, 1, 2);
        outbox.published(RUN, 1, s(0));
        assert_eq!(pump(&mut outbox, s(0)).0, [2]);
        assert_eq!(outbox.depth(), 1);
    }

    #[test]
    fn what_the_journal_gives_up_unconfirmed_is_lost() {
        let mut outbox = outbox(10);
        outbox.acknowledged(&ack(RUN, 2, &[(4, 4)], "g"), s(0));
        assert_eq!(outbox.gave_up(RUN, 1..=5), 2);
        assert_eq!(outbox.first(RUN), 6);
        assert_eq!(pump(&mut outbox, s(0)).0, [6, 7, 8]);
        assert_eq!(outbox.gave_up(RUN, 1..=10), 5);
        assert_eq!(outbox.depth(), 0);
    }

    fn ack_lost(epoch: Epoch, through: u64, have: &[(u64, u64)], lost: &[(u64, u64)]) -> Ack {
        let mut ack = ack(epoch, through, have, "g");
        ack.epochs[0].lost = Ranges::from_pairs(lost.iter().copied());
        ack
    }

    #[test]
    fn what_is_gone_in_the_middle_is_told_until_each_store_has_settled_it() {
        let mut outbox = Outbox::new(&["main".to_owned(), "second".to_owned()], Limits::default());
        outbox.hold(RUN, 1, 9);
        outbox.unreadable(RUN, 4);
        outbox.unreadable(RUN, 6);
        assert_eq!((outbox.first(RUN), outbox.depth()), (1, 7));
        assert_eq!(outbox.missing(RUN).pairs(), [(4, 4), (6, 6)]);
        outbox.acknowledged(&ack_lost(RUN, 5, &[], &[(4, 4)]), s(0));
        assert_eq!(outbox.missing(RUN).pairs(), [(4, 4), (6, 6)]);
        let mut second = ack_lost(RUN, 9, &[], &[(6, 6)]);
        second.store = "second".into();
        // It got the 4 from another copy of the journal.
        outbox.acknowledged(&second, s(0));
        assert_eq!(outbox.missing(RUN).pairs(), [(6, 6)]);
        outbox.acknowledged(&ack_lost(RUN, 9, &[], &[(4, 4), (6, 6)]), s(0));
        assert_eq!((outbox.missing(RUN).is_empty(), outbox.depth()), (true, 0));
    }

    #[test]
    fn the_lowest_sixteen_gaps_are_told_first() {
        let mut outbox = outbox(100);
        for seq in (1..=100).step_by(2) {
            outbox.unreadable(RUN, seq);
        }
        assert_eq!(outbox.first(RUN), 2);
        let lowest = Ranges::from_pairs((0..MOST_MISSING as u64).map(|n| (3 + 2 * n, 3 + 2 * n)));
        assert_eq!(outbox.missing(RUN), lowest);
        outbox.acknowledged(&ack_lost(RUN, 0, &[], lowest.pairs()), s(0));
        assert_eq!(outbox.missing(RUN).pairs().first(), Some(&(35, 35)));
    }

    #[test]
    fn a_gap_behind_which_nothing_needs_sending_is_told_by_the_highest_once_more() {
        let mut outbox = Outbox::new(&["main".to_owned()], Limits::default());
        outbox.hold(OLD, 3, 10);
        outbox.hold(RUN, 1, 0);
        outbox.acknowledged(&ack(OLD, 0, &[(3, 8)], "g"), s(0));
        for seq in [9, 10] {
            assert_eq!(outbox.next(s(0)), Next::Send { epoch: OLD, seq });
            outbox.unreadable(OLD, seq);
        }
        assert_eq!(outbox.depth(), 0);
        assert_eq!(pump(&mut outbox, s(0)), (vec![8], Some(s(60))));
        assert_eq!((outbox.first(OLD), outbox.missing(OLD).pairs()), (3, &[(9, 10)][..]));
        // Until it is heard.
        assert_eq!(pump(&mut outbox, s(60)).0, [8]);
        outbox.acknowledged(&ack_lost(OLD, 10, &[], &[(1, 2), (9, 10)]), s(61));
        assert_eq!(pump(&mut outbox, s(1000)), (vec![], None));
    }

    #[test]
    fn a_gap_in_the_current_run_is_told_by_what_follows_live() {
        let mut outbox = outbox(3);
        outbox.acknowledged(&ack(RUN, 1, &[(3, 3)], "g"), s(0));
        outbox.unreadable(RUN, 2);
        assert_eq!(pump(&mut outbox, s(0)).0, [3]);
        outbox.accepted(4);
        outbox.went_live(4, s(1));
        assert_eq!(outbox.missing(RUN).pairs(), [(2, 2)]);
        // The 3 need not be repeated for it, and the 4 not before its time.
        assert_eq!(pump(&mut outbox, s(60)), (vec![], Some(s(61))));
        outbox.acknowledged(&ack_lost(RUN, 4, &[], &[(2, 2)]), s(60));
        assert_eq!(pump(&mut outbox, s(61)), (vec![], None));
    }

    #[test]
    fn a_restored_store_hears_of_what_was_freed_between() {
        let mut outbox = outbox(9);
        outbox.acknowledged(&ack(RUN, 0, &[(4, 6)], "g1"), s(0));
        // Three are free, and go before the oldest, which are not.
        assert_eq!(outbox.gave_up(RUN, 4..=6), 0);
        assert_eq!((outbox.missing(RUN).is_empty(), outbox.depth()), (true, 6));
        outbox.acknowledged(&ack(RUN, 0, &[], "g2"), s(1));
        assert_eq!(outbox.missing(RUN).pairs(), [(4, 6)]);
        assert_eq!(pump(&mut outbox, s(1)).0, [1, 2, 3]);
        assert_eq!(outbox.gave_up(RUN, 2..=7), 3);
    }

    #[test]
    fn what_a_store_calls_lost_and_the_journal_holds_is_sent() {
        let mut outbox = outbox(5);
        outbox.acknowledged(&ack_lost(RUN, 4, &[], &[(2, 3)]), s(0));
        assert_eq!(outbox.depth(), 3);
        assert_eq!(pump(&mut outbox, s(0)).0, [2, 3, 5]);
        outbox.acknowledged(&ack_lost(RUN, 5, &[], &[(3, 3)]), s(0));
        assert_eq!((outbox.depth(), outbox.missing(RUN).is_empty()), (1, true));
    }

    #[test]
    fn what_a_power_cut_took_behind_what_a_store_has_is_told() {
        let mut outbox = Outbox::new(&["main".to_owned()], Limits::default());
        outbox.hold(OLD, 1, 3);
        outbox.hold(RUN, 1, 0);
        // The journal had 5, synced 3; the 4 never arrived.
        assert_eq!(outbox.acknowledged(&ack(OLD, 3, &[(5, 5)], "g"), s(0)).confirmed, 3);
        assert_eq!(outbox.missing(OLD).pairs(), [(4, 4)]);
        assert_eq!((pump(&mut outbox, s(0)).0, outbox.depth()), (vec![3], 0));
        outbox.acknowledged(&ack_lost(OLD, 5, &[], &[(4, 4)]), s(1));
        assert_eq!(pump(&mut outbox, s(1000)), (vec![], None));
    }

    #[test]
    fn runs_of_which_nothing_is_left_leave() {
        let mut outbox = Outbox::new(&["main".to_owned()], Limits::default());
        outbox.hold(OLD, 1, 4);
        outbox.hold(RUN, 1, 0);
        assert_eq!(pump(&mut outbox, s(0)).0, [1, 2, 3, 4]);
        assert_eq!(outbox.gave_up(OLD, 0..=2), 2);
        outbox.unreadable(OLD, 4);
        assert_eq!(outbox.gave_up(OLD, 3..=3), 1);
        assert_eq!((outbox.runs.len(), outbox.outstanding.len()), (1, 0));
        assert_eq!(outbox.acknowledged(&ack(OLD, 4, &[], "g"), s(0)).ignored, 1);
        outbox.accepted(1);
        assert_eq!(pump(&mut outbox, s(0)).0, [1]);
    }

    #[test]
    fn acks_that_are_all_holes_are_remembered_within_bounds_and_lose_nothing() {
        let mut outbox = Outbox::new(&["main".to_owned()], Limits { per_second: None, ..Limits::default() });
        outbox.hold(RUN, 1, 10_000);
        let scattered: Vec<_> = (1..=5_000).map(|n| (2 * n, 2 * n)).collect();
        outbox.acknowledged(&ack(RUN, 0, &scattered, "g"), s(0));
        assert_eq!(outbox.depth(), 10_000 - MOST_RANGES as u64);
        for _ in 0..10 {
            while let Next::Send { epoch, seq } = outbox.next(s(0)) {
                outbox.sent(epoch, seq, 100, s(0), 20);
            }
            let through = (outbox.cursor.1 - 1).min(10_000);
            outbox.acknowledged(&ack(RUN, through, &scattered, "g"), s(0));
        }
        assert_eq!(outbox.depth(), 0);
    }

    #[test]
    fn the_backlog_drains_at_its_rate() {
        let mut outbox = Outbox::new(&["main".to_owned()], Limits { per_second: Some(20), ..Limits::default() });
        outbox.hold(RUN, 1, 50);
        let sent = |outbox: &mut Outbox, now| {
            let (sent, until) = pump(outbox, now);
            (sent.len(), until)
        };
        assert_eq!(sent(&mut outbox, s(9)), (20, Some(s(10))));
        assert_eq!(sent(&mut outbox, Duration::from_millis(9_999)), (0, Some(s(10))));
        assert_eq!(sent(&mut outbox, s(10)), (20, Some(s(11))));
        // The connection breaks: what is sent again is bounded alike.
        outbox.start_over(s(10));
        assert_eq!(sent(&mut outbox, s(10)), (0, Some(s(11))));
        assert_eq!(sent(&mut outbox, s(11)), (20, Some(s(12))));
    }

    #[test]
    fn a_store_that_came_back_must_confirm_again() {
        let mut outbox = Outbox::new(&["main".to_owned(), "second".to_owned()], Limits::default());
        outbox.hold(RUN, 1, 4);
        outbox.unreadable(RUN, 2);
        let mut main = ack_lost(RUN, 4, &[], &[(2, 2)]);
        main.epochs[0].tally.stored = 3;
        let second = Ack { store: "second".into(), ..main.clone() };
        outbox.acknowledged(&main, s(0));
        outbox.acknowledged(&second, s(0));
        assert_eq!((outbox.depth(), outbox.missing(RUN).is_empty()), (0, true));
        outbox.came_back("other", s(1));
        assert_eq!(outbox.depth(), 0);
        outbox.came_back("main", s(1));
        assert_eq!((outbox.depth(), outbox.missing(RUN).pairs()), (3, &[(2, 2)][..]));
        assert_eq!(outbox.tally().map(|tally| tally.stored), Some(3));
        assert_eq!(pump(&mut outbox, s(1)).0, [1, 3, 4]);
        // It had them all: the same generation says so again, and that is no new one.
        assert_eq!(outbox.acknowledged(&main, s(2)), AckEffect { confirmed: 3, ..Default::default() });
        assert_eq!(pump(&mut outbox, s(1000)), (vec![], None));
    }

    #[test]
    fn several_processes_on_one_database_may_acknowledge_in_any_order() {
        let mut outbox = outbox(6);
        // Each tells what the database held when it committed; the later may be heard first.
        outbox.acknowledged(&ack(RUN, 5, &[], "g"), s(0));
        let effect = outbox.acknowledged(&ack(RUN, 2, &[(4, 4)], "g"), s(0));
        assert_eq!((effect, outbox.depth()), (AckEffect::default(), 1));
        outbox.acknowledged(&ack(RUN, 4, &[(6, 6)], "g"), s(0));
        assert_eq!((outbox.depth(), pump(&mut outbox, s(0)).0), (0, vec![]));
    }

    #[test]
    fn no_more_bytes_than_the_limit_are_outstanding() {
        let limits = Limits { bytes: 250, ..Limits::default() };
        let mut outbox = Outbox::new(&["main".to_owned()], limits);
        outbox.hold(RUN, 1, 10);
        assert_eq!(pump(&mut outbox, s(0)).0, [1, 2, 3]);
        outbox.acknowledged(&ack(RUN, 2, &[], "g"), s(1));
        assert_eq!(pump(&mut outbox, s(1)).0, [4, 5]);
    }

    #[test]
    fn the_repeats_of_many_gateways_are_spread() {
        let mut waits = BTreeSet::new();
        for dice in 0..1000 {
            let mut outbox = outbox(1);
            for now in [0, 60] {
                assert_eq!(outbox.next(s(now)), Next::Send { epoch: RUN, seq: 1 });
                outbox.sent(RUN, 1, 100, s(now), dice);
            }
            let Next::Wait(Some(until)) = outbox.next(s(60)) else { panic!("it waits for nothing") };
            waits.insert(until - s(60));
        }
        assert_eq!(waits.first(), Some(&s(96)));
        assert_eq!(waits.last(), Some(&s(144)));
        assert!(waits.len() > 40);
    }

    /// One step of the world between a gateway and a store.
    #[derive(Debug, Clone)]
    enum Step {
        Produce { live: bool },
        Pump { lose: Vec<bool> },
        Commit { publish: bool },
        ConnectionBreaks,
        StoreRestoredEmpty,
        TimePasses(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => any::<bool>().prop_map(|live| Step::Produce { live }),
            4 => prop::collection::vec(any::<bool>(), 8).prop_map(|lose| Step::Pump { lose }),
            3 => any::<bool>().prop_map(|publish| Step::Commit { publish }),
            1 => Just(Step::ConnectionBreaks),
            1 => Just(Step::StoreRestoredEmpty),
            2 => (1u64..200).prop_map(Step::TimePasses),
        ]
    }

    proptest! {
        /// Wherever a second begins.
        #[test]
        fn no_second_sees_more_than_the_rate(most in 1u32..6, pauses in prop::collection::vec((0u64..1500, 0usize..9), 1..60)) {
            let mut outbox = Outbox::new(&["main".to_owned()], Limits { per_second: Some(most), ..Limits::default() });
            outbox.hold(RUN, 1, 1000);
            let (mut now, mut times) = (Duration::ZERO, Vec::new());
            for (pause, tries) in pauses {
                now += Duration::from_millis(pause);
                for _ in 0..tries {
                    match outbox.next(now) {
                        Next::Send { epoch, seq } => {
                            outbox.sent(epoch, seq, 1, now, 0);
                            times.push(now);
                        }
                        Next::Wait(until) => prop_assert!(until.is_some_and(|until| until > now && until <= now + SECOND)),
                    }
                }
            }
            for (index, &from) in times.iter().enumerate() {
                let within = times[index..].iter().take_while(|&&at| at < from + SECOND).count();
                prop_assert!(within <= most as usize, "{within} from {from:?}");
            }
        }

        /// Whatever is lost, in whatever order: once the world is kind, the store has everything.
        #[test]
        fn everything_arrives_in_the_end(steps in prop::collection::vec(step(), 0..60)) {
            let mut outbox = Outbox::new(&["main".to_owned()], Limits { messages: 4, ..Limits::default() });
            outbox.hold(RUN, 1, 0);
            let (mut now, mut made, mut generation) = (0u64, 0u64, 0u64);
            let mut ledger = Ledger::default();
            let mut rows = BTreeSet::new();
            let commit = |ledger: &Ledger, outbox: &mut Outbox, generation: u64, now: u64| {
                let ack = Ack { store: "main".into(), generation: generation.to_string(), started: "s".into(), epochs: vec![ledger.ack(RUN)] };
                outbox.acknowledged(&ack, s(now));
            };
            for step in steps {
                match step {
                    Step::Produce { live } => {
                        made += 1;
                        outbox.accepted(made);
                        if live {
                            outbox.went_live(made, s(now));
                        }
                    }
                    Step::Pump { lose } => {
                        for lost in lose {
                            let Next::Send { epoch, seq } = outbox.next(s(now)) else { break };
                            outbox.sent(epoch, seq, 10, s(now), 0);
                            if !lost {
                                ledger.arrive(seq, outbox.first(RUN), &outbox.missing(RUN));
                                rows.insert(seq);
                            }
                        }
                    }
                    Step::Commit { publish } => if publish { commit(&ledger, &mut outbox, generation, now) },
                    Step::ConnectionBreaks => outbox.start_over(s(now)),
                    Step::StoreRestoredEmpty => { ledger = Ledger::default(); rows.clear(); generation += 1; }
                    Step::TimePasses(seconds) => now += seconds,
                }
            }
            commit(&ledger, &mut outbox, generation, now);
            for _ in 0..100 {
                now += 601;
                while let Next::Send { epoch, seq } = outbox.next(s(now)) {
                    outbox.sent(epoch, seq, 10, s(now), 0);
                    ledger.arrive(seq, outbox.first(RUN), &outbox.missing(RUN));
                    rows.insert(seq);
                    commit(&ledger, &mut outbox, generation, now);
                }
            }
            prop_assert_eq!(rows.len() as u64, made);
            prop_assert_eq!(outbox.depth(), 0);
        }
    }
}
