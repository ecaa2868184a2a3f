//! The gateway's side: what each store has confirmed, and what to send next.
//!
//! Enters: what the journal holds, what was published, what stores acknowledge, and the time. Leaves:
//! the number of the next message to send through the backlog, or how long to wait.
//!
//! A message needs sending when some listed store has not confirmed it, unless it was published live
//! less than [`Limits::patience`] ago. What was sent is outstanding until confirmed. While
//! acknowledgements move, each outstanding message is sent again after `patience`; while none moves,
//! only the oldest is, at growing intervals, so that a dead store costs next to nothing. A broken
//! connection, or a store that comes back, starts over with everything outstanding.
//!
//! With no store listed, the broker's PUBACK confirms: then the promise ends at the broker.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use super::{Ack, Epoch, Ranges, Tally};

/// How much is sent before it is confirmed, and how long to wait.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most messages outstanding.
    pub messages: usize,
    /// Most bytes outstanding.
    pub bytes: usize,
    /// How long a message may stay unconfirmed before it is sent (again) through the backlog.
    pub patience: Duration,
    /// Longest interval between repeats while nothing is confirmed.
    pub longest: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            messages: 1000,
            bytes: 1024 * 1024,
            patience: Duration::from_secs(60),
            longest: Duration::from_secs(600),
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
    /// Messages that are newly confirmed by all listed stores.
    pub confirmed: u64,
    /// The store began a new generation: what it had confirmed is forgotten.
    pub forgotten: bool,
    /// Parts that were ignored: an unlisted store, an unknown epoch, a number never given.
    pub ignored: u64,
}

/// See the module. Times are since the gateway started.
#[derive(Debug)]
pub struct Outbox {
    limits: Limits,
    /// The ids of the listed stores.
    stores: Vec<String>,
    generations: Vec<Option<String>>,
    /// Oldest first; the last is the current one.
    runs: Vec<Run>,
    /// Of the current run, published live and within patience: number and time, ascending.
    live: VecDeque<(u64, Duration)>,
    outstanding: VecDeque<Sent>,
    outstanding_bytes: usize,
    /// Everything before is confirmed, live or outstanding: index into `runs`, and number.
    cursor: (usize, u64),
    /// When something was last confirmed, or first outstanding.
    moved_at: Duration,
    /// How long to wait before the oldest is repeated while nothing moves.
    repeat_after: Duration,
}

/// One epoch.
#[derive(Debug)]
struct Run {
    epoch: Epoch,
    /// Lowest number that the journal holds.
    first: u64,
    /// Highest number given; 0: none.
    last: u64,
    /// By store, in the order of `stores`; by the broker where no store is listed.
    confirmed: Vec<Ranges>,
    tallies: HashMap<String, Tally>,
}

#[derive(Debug)]
struct Sent {
    epoch: Epoch,
    seq: u64,
    bytes: usize,
    at: Duration,
}

impl Run {
    /// The end of the confirmed numbers that begin at `seq`; None when `seq` is not confirmed by all.
    fn confirmed_through(&self, seq: u64) -> Option<u64> {
        self.confirmed.iter().map(|ranges| ranges.run_at(seq)).min_by_key(|end| end.unwrap_or(0)).flatten()
    }

    /// How many numbers held are confirmed by all.
    fn count_confirmed(&self, from: u64) -> u64 {
        let (mut seq, mut count) = (from, 0u64);
        while seq <= self.last {
            match self.confirmed_through(seq) {
                Some(end) => {
                    let end = end.min(self.last);
                    count = count.saturating_add(end.saturating_sub(seq)).saturating_add(1);
                    seq = end.saturating_add(1);
                }
                None => {
                    // The next number at which any store's confirmation begins.
                    let begins = self.confirmed.iter().flat_map(Ranges::pairs).map(|&(begin, _)| begin);
                    match begins.filter(|&begin| begin > seq).min() {
                        Some(begin) => seq = begin,
                        None => break,
                    }
                }
            }
        }
        count
    }

    /// How many numbers held are not confirmed by all.
    fn depth(&self) -> u64 {
        let first = self.first.max(1);
        self.last.saturating_add(1).saturating_sub(first).saturating_sub(self.count_confirmed(first))
    }
}

impl Outbox {
    /// An outbox for these stores (by id); none: the broker confirms.
    pub fn new(stores: &[String], limits: Limits) -> Self {
        Self {
            limits,
            stores: stores.to_vec(),
            generations: vec![None; stores.len()],
            runs: Vec::new(),
            live: VecDeque::new(),
            outstanding: VecDeque::new(),
            outstanding_bytes: 0,
            cursor: (0, 0),
            moved_at: Duration::ZERO,
            repeat_after: limits.patience,
        }
    }

    /// Adds an epoch that the journal holds, from `first` to `last` (0: nothing yet). Oldest first; the
    /// last one added is the current one.
    pub fn hold(&mut self, epoch: Epoch, first: u64, last: u64) {
        let confirmed = vec![Ranges::new(); self.stores.len().max(1)];
        self.runs.push(Run { epoch, first, last, confirmed, tallies: HashMap::new() });
    }

    /// The journal accepted the next message of the current epoch.
    pub fn accepted(&mut self, seq: u64) {
        if let Some(run) = self.runs.last_mut() {
            run.last = run.last.max(seq);
        }
    }

    /// The journal gave up everything of `epoch` before `first`. Returns how many of those not every
    /// listed store had confirmed: they are lost.
    pub fn gave_up(&mut self, epoch: Epoch, first: u64) -> u64 {
        let Some(run) = self.runs.iter_mut().find(|run| run.epoch == epoch) else { return 0 };
        let before = run.depth();
        run.first = run.first.max(first);
        let lost = before.saturating_sub(run.depth());
        self.outstanding.retain(|sent| sent.epoch != epoch || sent.seq >= first);
        self.recount();
        lost
    }

    /// The lowest number of `epoch` that the journal holds.
    pub fn first(&self, epoch: Epoch) -> u64 {
        self.runs.iter().find(|run| run.epoch == epoch).map_or(1, |run| run.first)
    }

    /// A message of the current epoch was handed to the connection live.
    pub fn went_live(&mut self, seq: u64, now: Duration) {
        self.live.push_back((seq, now));
    }

    /// The connection broke, or a store came back: what is unconfirmed may never have arrived.
    pub fn start_over(&mut self, now: Duration) {
        self.live.clear();
        self.outstanding.clear();
        self.outstanding_bytes = 0;
        self.cursor = (0, 0);
        self.moved_at = now;
        self.repeat_after = self.limits.patience;
    }

    /// The broker took this message. Confirms it where no store is listed.
    pub fn published(&mut self, epoch: Epoch, seq: u64, now: Duration) {
        if !self.stores.is_empty() {
            return;
        }
        let run = self.runs.iter_mut().find(|run| run.epoch == epoch && seq <= run.last);
        if let Some(ranges) = run.and_then(|run| run.confirmed.first_mut()) {
            ranges.insert(seq, seq);
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
        if let Some(generation) = self.generations.get_mut(index)
            && generation.as_ref() != Some(&ack.generation)
        {
            effect.forgotten = generation.replace(ack.generation.clone()).is_some();
        }
        if effect.forgotten {
            for ranges in self.runs.iter_mut().filter_map(|run| run.confirmed.get_mut(index)) {
                *ranges = Ranges::new();
            }
            self.start_over(now);
        }
        let current = self.runs.len().saturating_sub(1);
        for said in &ack.epochs {
            let Some((at, run)) = self.runs.iter_mut().enumerate().find(|(_, run)| run.epoch == said.epoch) else {
                effect.ignored = effect.ignored.saturating_add(1);
                continue;
            };
            // A store cannot have what was never sent. Of an earlier run it can: a power cut may have
            // taken the end of the journal that had already gone out.
            let highest = said.have.last().unwrap_or(0).max(said.through);
            if at == current && highest > run.last {
                effect.ignored = effect.ignored.saturating_add(1);
                continue;
            }
            let before = run.count_confirmed(run.first);
            if let Some(ranges) = run.confirmed.get_mut(index) {
                ranges.insert(1, said.through);
                for &(from, to) in said.have.pairs() {
                    ranges.insert(from, to);
                }
            }
            run.tallies.insert(ack.store.clone(), said.tally);
            let gained = run.count_confirmed(run.first).saturating_sub(before);
            effect.confirmed = effect.confirmed.saturating_add(gained);
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
        let runs = &self.runs;
        self.outstanding.retain(|sent| {
            let run = runs.iter().find(|run| run.epoch == sent.epoch);
            run.is_some_and(|run| run.confirmed_through(sent.seq).is_none())
        });
        self.recount();
    }

    fn recount(&mut self) {
        self.outstanding_bytes = self.outstanding.iter().fold(0, |sum, sent| sum.saturating_add(sent.bytes));
    }

    /// What to do at `now`.
    pub fn next(&mut self, now: Duration) -> Next {
        while self.live.front().is_some_and(|&(seq, at)| {
            now >= at.saturating_add(self.limits.patience)
                || self.runs.last().is_none_or(|run| run.confirmed_through(seq).is_some())
        }) {
            self.live.pop_front();
        }
        let due = self.outstanding.iter().map(|sent| sent.at).min().map(|oldest| {
            let stalled = oldest >= self.moved_at;
            oldest.saturating_add(if stalled { self.repeat_after } else { self.limits.patience })
        });
        if due.is_some_and(|due| now >= due) {
            // The one sent longest ago, which while nothing moves is always the lowest number.
            let repeat = if self.stalled() {
                self.outstanding.front()
            } else {
                self.outstanding.iter().min_by_key(|sent| sent.at)
            };
            if let Some(sent) = repeat {
                return Next::Send { epoch: sent.epoch, seq: sent.seq };
            }
        }
        let room = self.outstanding.len() < self.limits.messages && self.outstanding_bytes < self.limits.bytes;
        if room && let Some((epoch, seq)) = self.candidate() {
            return Next::Send { epoch, seq };
        }
        let live_ends = self.live.front().map(|&(_, at)| at.saturating_add(self.limits.patience));
        Next::Wait([due, live_ends].into_iter().flatten().min())
    }

    /// Whether nothing was confirmed since the oldest outstanding message was sent.
    fn stalled(&self) -> bool {
        self.outstanding.iter().all(|sent| sent.at >= self.moved_at)
    }

    /// The first message at or after the cursor that needs sending.
    fn candidate(&mut self) -> Option<(Epoch, u64)> {
        let current = self.runs.len().saturating_sub(1);
        loop {
            let (index, seq) = self.cursor;
            let run = self.runs.get(index)?;
            let seq = seq.max(run.first).max(1);
            if seq > run.last {
                if index == current {
                    self.cursor = (index, seq);
                    return None;
                }
                self.cursor = (index.saturating_add(1), 0);
            } else if let Some(end) = run.confirmed_through(seq) {
                self.cursor = (index, end.saturating_add(1));
            } else if index == current && self.live.binary_search_by_key(&seq, |&(live, _)| live).is_ok() {
                // Its time has not come, and what follows is younger.
                self.cursor = (index, seq);
                return None;
            } else {
                self.cursor = (index, seq);
                return Some((run.epoch, seq));
            }
        }
    }

    /// A message that [`next`](Self::next) named was handed to the connection. `dice` is any random
    /// number: it spreads the repeats of many gateways by +/- 20 %.
    pub fn sent(&mut self, epoch: Epoch, seq: u64, bytes: usize, now: Duration, dice: u32) {
        let stalled = self.stalled();
        if let Some(sent) = self.outstanding.iter_mut().find(|sent| sent.epoch == epoch && sent.seq == seq) {
            sent.at = now;
            if stalled {
                // All of them wait together for the first sign of life.
                for sent in &mut self.outstanding {
                    sent.at = now;
                }
                let doubled = self.repeat_after.saturating_mul(2).min(self.limits.longest);
                let percent = dice.wrapping_rem(41).saturating_add(80);
                self.repeat_after = doubled.saturating_mul(percent) / 100;
            }
            return;
        }
        if self.outstanding.is_empty() {
            self.moved_at = now;
        }
        self.outstanding.push_back(Sent { epoch, seq, bytes, at: now });
        self.outstanding_bytes = self.outstanding_bytes.saturating_add(bytes);
        if self.runs.get(self.cursor.0).is_some_and(|run| run.epoch == epoch) {
            self.cursor.1 = seq.saturating_add(1);
        }
    }

    /// A message that [`next`](Self::next) named cannot be read from the journal any more: it is passed
    /// over, and counts as lost.
    pub fn unreadable(&mut self, epoch: Epoch, seq: u64) {
        self.outstanding.retain(|sent| sent.epoch != epoch || sent.seq != seq);
        self.recount();
        if let Some(run) = self.runs.iter_mut().find(|run| run.epoch == epoch) {
            for ranges in &mut run.confirmed {
                ranges.insert(seq, seq);
            }
        }
    }

    /// How many messages held are not confirmed by all listed stores.
    pub fn depth(&self) -> u64 {
        self.runs.iter().fold(0, |sum, run| sum.saturating_add(run.depth()))
    }

    /// How many messages of the current epoch all listed stores have confirmed.
    pub fn confirmed(&self) -> u64 {
        self.runs.last().map_or(0, |run| run.count_confirmed(1))
    }

    /// What became of the messages of the current epoch, as the first listed store says.
    pub fn tally(&self) -> Option<Tally> {
        self.runs.last()?.tallies.get(self.stores.first()?).copied()
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
        assert_eq!(outbox.gave_up(RUN, 6), 2);
        assert_eq!(outbox.first(RUN), 6);
        assert_eq!(pump(&mut outbox, s(0)).0, [6, 7, 8]);
        assert_eq!(outbox.gave_up(RUN, 11), 5);
        assert_eq!(outbox.depth(), 0);
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
        /// Whatever is lost, in whatever order: once the world is kind, the store has everything.
        #[test]
        fn everything_arrives_in_the_end(steps in prop::collection::vec(step(), 0..60)) {
            let mut outbox = Outbox::new(&["main".to_owned()], Limits { messages: 4, ..Limits::default() });
            outbox.hold(RUN, 1, 0);
            let (mut now, mut made, mut generation) = (0u64, 0u64, 0u64);
            let mut ledger = Ledger::default();
            let mut rows = BTreeSet::new();
            let commit = |ledger: &Ledger, outbox: &mut Outbox, generation: u64, now: u64| {
                let ack = Ack { store: "main".into(), generation: generation.to_string(), epochs: vec![ledger.ack(RUN)] };
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
                                ledger.arrive(seq, outbox.first(RUN));
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
                    ledger.arrive(seq, outbox.first(RUN));
                    rows.insert(seq);
                    commit(&ledger, &mut outbox, generation, now);
                }
            }
            prop_assert_eq!(rows.len() as u64, made);
            prop_assert_eq!(outbox.depth(), 0);
        }
    }
}
