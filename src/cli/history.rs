//! A virtual household's past, put into a database: what `demo --history` and `simulate household --store` do.
//!
//! Enters: a [`Tape`]. Leaves: what a gateway would have sent of it, in the database; past journal and broker, as fast as it goes. The
//! decoders, the names, what is left out and what is flagged are the daemon's own. Upkeep is done on the way, so that the database never is
//! larger than need be.
//!
//! Two threads: one simulates and decodes, the database writes what the other made before.

use std::{
    collections::{BTreeSet, HashMap},
    io::{self, IsTerminal},
    sync::Arc,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use jiff::{Span, Timestamp, tz::TimeZone};
use tokio::{sync::mpsc, time::Instant};

use super::Failure;
use crate::{
    bus,
    capture::{Chunk, Entry, What},
    collect::Intake,
    config,
    delivery::{Epoch, Ranges},
    mbus::{self, Pattern, Secondary, Target},
    moment::Moment,
    mqtt::gateway::random_bits,
    p1::Key,
    payload::{Envelope, Message},
    plausible::Judge,
    reading::{Clock, Report},
    simulate::{Description, Tape},
    store::{self, Database, Incoming},
};

/// Most messages in one commit: as many as the store takes at once.
const BATCH: usize = 1000;
/// Between rounds of upkeep, in commits.
const UPKEEP: u64 = 20;
/// The longest history, in days: as long as a meter hangs.
const LONGEST: i64 = 15 * 366;

/// How far back a history goes: days, or whole months or years by the calendar.
#[derive(Debug, Clone, Copy)]
pub(super) struct Back(Span);

impl Back {
    /// Reads `30d`, `6m` or `2y`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let back = || {
            let split = text.find(|letter: char| !letter.is_ascii_digit())?;
            let (number, unit) = text.split_at_checked(split)?;
            let number: i64 = number.parse().ok()?;
            let (back, days) = match unit {
                "d" => (Span::new().try_days(number), number),
                "m" => (Span::new().try_months(number), number.saturating_mul(30)),
                "y" => (Span::new().try_years(number), number.saturating_mul(365)),
                _ => return None,
            };
            (1..=LONGEST).contains(&days).then_some(back.ok()?)
        };
        back().map(Self).ok_or_else(|| "write days, months or years, at most 15, such as 30d, 6m or 2y".to_owned())
    }

    /// So long before `now`, at the full quarter-hour.
    pub(super) fn before(self, now: Timestamp) -> Moment {
        let then = now.to_zoned(TimeZone::UTC).checked_sub(self.0).map_or(now, |then| then.timestamp());
        full_quarter(then)
    }
}

/// The quarter-hour in which an instant is begins then.
pub(super) fn full_quarter(instant: Timestamp) -> Moment {
    let second = instant.as_second().div_euclid(900).saturating_mul(900);
    Moment::utc(Timestamp::from_second(second).unwrap_or(instant))
}

/// How far the making of so many seconds is, where somebody sees it.
pub(super) fn progress_bar(seconds: u64) -> ProgressBar {
    let bar = if io::stderr().is_terminal() { ProgressBar::new(seconds) } else { ProgressBar::hidden() };
    // A constant that is a template.
    match ProgressStyle::with_template("{wide_bar} {percent} %, {eta} left") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// What a gateway makes of a tape.
#[derive(Debug)]
pub(super) struct Messages {
    tape: Tape,
    gateway: Arc<str>,
    intake: Intake,
    bus: mbus::Stream,
    judge: Judge,
    /// The addresses on the bus at which one meter is: it is known by that.
    addresses: BTreeSet<u8>,
    /// When the last bytes came.
    heard: Moment,
    epoch: Epoch,
    seq: u64,
    /// The number of the last message of each meter.
    last: HashMap<String, u64>,
    counts: Counts,
}

/// What came of a tape.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    /// Telegrams and readouts that could be read.
    pub(super) telegrams: u64,
    /// Pieces that could not.
    pub(super) rejected: u64,
}

impl Messages {
    /// Those of a gateway's run, of the tape of this household.
    pub(super) fn new(tape: Tape, description: &Description, gateway: &str) -> Self {
        let gateway: Arc<str> = gateway.into();
        let key = description.p1.as_ref().and_then(|p1| Key::from_text(p1.key.as_deref()?).ok());
        let (mut addresses, mut shared) = (BTreeSet::new(), BTreeSet::new());
        for meter in description.bus.iter().flat_map(|bus| &bus.meters) {
            if !addresses.insert(meter.address) {
                shared.insert(meter.address);
            }
        }
        Self {
            tape,
            intake: Intake::new("p1".into(), gateway.clone(), None, key, Judge::default()),
            gateway,
            bus: mbus::Stream::new(1),
            judge: Judge::default(),
            addresses: &addresses - &shared,
            heard: Moment::utc(Timestamp::UNIX_EPOCH),
            epoch: Epoch::from_bits(random_bits()),
            seq: 0,
            last: HashMap::new(),
            counts: Counts::default(),
        }
    }

    pub(super) fn tape_mut(&mut self) -> &mut Tape {
        &mut self.tape
    }

    pub(super) fn into_tape(self) -> Tape {
        self.tape
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// Some more messages, a few beyond `most` at most; none at the end of the tape.
    fn some(&mut self, most: usize) -> Vec<Incoming> {
        let mut messages = Vec::with_capacity(most);
        while messages.len() < most {
            match self.tape.next() {
                Some(Entry::Chunk(Chunk { port, at, what: What::Bytes(_, bytes), .. })) => {
                    self.heard = Moment::from_millis(at.as_millisecond(), 0).unwrap_or(Moment::utc(at));
                    if port == "p1" {
                        self.intake.push(&bytes);
                        self.drain_p1(&mut messages);
                    } else {
                        self.bus.push(&bytes);
                        self.drain_bus(&mut messages);
                    }
                }
                Some(_) => {}
                None => {
                    // Some telegrams have no end of their own.
                    self.intake.end();
                    self.drain_p1(&mut messages);
                    break;
                }
            }
        }
        messages
    }

    fn drain_p1(&mut self, messages: &mut Vec<Incoming>) {
        while let Some(piece) = self.intake.poll() {
            let Ok(telegram) = piece else {
                self.counts.rejected = self.counts.rejected.saturating_add(1);
                continue;
            };
            self.counts.telegrams = self.counts.telegrams.saturating_add(1);
            let (reports, _) = self.intake.take(telegram.decoded, self.heard);
            messages.extend(reports.into_iter().map(|report| self.message(report)));
        }
    }

    fn drain_bus(&mut self, messages: &mut Vec<Incoming>) {
        while let Some(piece) = self.bus.poll() {
            let Ok(mbus::Piece { decoded, .. }) = piece else {
                self.counts.rejected = self.counts.rejected.saturating_add(1);
                continue;
            };
            self.counts.telegrams = self.counts.telegrams.saturating_add(1);
            let target = match decoded.secondary {
                Some(Secondary { id, manufacturer, version, medium }) if !self.addresses.contains(&decoded.address) => {
                    Target::Secondary(Pattern { id, manufacturer: manufacturer.0, version, medium })
                }
                _ => Target::Primary(decoded.address),
            };
            let report = decoded.report.rename(|identity| identity.name(&self.gateway, "mbus"));
            let mut report = bus::received(report, self.heard, Clock::Gateway, target);
            self.judge.judge(&mut report, self.heard);
            messages.push(self.message(report));
        }
    }

    fn message(&mut self, report: Report<String>) -> Incoming {
        self.seq = self.seq.saturating_add(1);
        let seq = self.seq;
        let prev = match self.last.get_mut(&report.meter) {
            Some(last) => std::mem::replace(last, seq),
            None => self.last.insert(report.meter.clone(), seq).unwrap_or(0),
        };
        let gateway = self.gateway.to_string();
        let envelope = Envelope { gateway, epoch: self.epoch, seq, prev, first: 1, missing: Ranges::default() };
        Incoming::Message(Message { envelope, received_at: self.heard, report })
    }
}

/// A database that is filled.
#[derive(Debug)]
pub(super) struct Filling {
    database: Box<dyn Database>,
    retention: Duration,
    filled: Filled,
}

/// What it took.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Filled {
    /// Messages written.
    pub(super) stored: u64,
    /// Messages that were there already.
    pub(super) repeated: u64,
    /// In which commits, and how long they took, together and the longest.
    pub(super) commits: u64,
    pub(super) commit: Duration,
    pub(super) longest_commit: Duration,
    /// The same for the steps of upkeep.
    pub(super) steps: u64,
    pub(super) upkeep: Duration,
    pub(super) longest_step: Duration,
}

impl Filling {
    /// Opens a database.
    pub(super) async fn open(store: &config::Store) -> Result<Self, Failure> {
        let database = store::open(store).await.map_err(Failure::world)?;
        Ok(Self { database, retention: store.retention, filled: Filled::default() })
    }

    /// Writes all messages, and gives back what could go on.
    pub(super) async fn write(&mut self, mut messages: Messages, progress: &ProgressBar) -> Result<Messages, Failure> {
        let (out, mut batches) = mpsc::channel(4);
        let bar = progress.clone();
        let making = tokio::task::spawn_blocking(move || {
            loop {
                let batch = messages.some(BATCH);
                bar.set_position(messages.tape.progress().0);
                if batch.is_empty() || out.blocking_send(batch).is_err() {
                    return messages;
                }
            }
        });
        while let Some(batch) = batches.recv().await {
            let begin = Instant::now();
            let committed = self.database.commit(&batch).await.map_err(Failure::world)?;
            let took = begin.elapsed();
            let Filled { stored, repeated, commits, commit, longest_commit, .. } = &mut self.filled;
            *stored = stored.saturating_add(committed.stored);
            *repeated = repeated.saturating_add(committed.repeated);
            (*commits, *commit) = (commits.saturating_add(1), commit.saturating_add(took));
            *longest_commit = took.max(*longest_commit);
            if self.filled.commits.is_multiple_of(UPKEEP) {
                self.keep_up().await?;
            }
        }
        // It ends in a panic only, and none is allowed there.
        making.await.map_err(Failure::world)
    }

    /// Until there is nothing more to seal or to delete.
    pub(super) async fn keep_up(&mut self) -> Result<(), Failure> {
        loop {
            let begin = Instant::now();
            let more = self.database.keep_up(self.retention).await.map_err(Failure::world)?;
            let took = begin.elapsed();
            let Filled { steps, upkeep, longest_step, .. } = &mut self.filled;
            (*steps, *upkeep) = (steps.saturating_add(1), upkeep.saturating_add(took));
            *longest_step = took.max(*longest_step);
            if !more {
                return Ok(());
            }
        }
    }

    /// Upkeep once more, and the end.
    pub(super) async fn close(mut self) -> Result<Filled, Failure> {
        self.keep_up().await?;
        self.database.close().await.map_err(Failure::world)?;
        Ok(self.filled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_back_is_days_months_or_years() {
        let now: Timestamp = "2026-11-22T14:37:12.5Z".parse().unwrap();
        for (text, then) in [
            ("1d", "2026-11-21T14:30:00Z"),
            ("30d", "2026-10-23T14:30:00Z"),
            ("6m", "2026-05-22T14:30:00Z"),
            ("2y", "2024-11-22T14:30:00Z"),
            ("15y", "2011-11-22T14:30:00Z"),
        ] {
            assert_eq!(Back::parse(text).unwrap().before(now).to_string(), then, "{text}");
        }
        for text in ["", "2", "y", "0d", "16y", "200m", "99999d", "-1y", "2w", "2 y", "1.5y", "99999999999999999999y"] {
            assert!(Back::parse(text).is_err_and(|error| error.contains("30d, 6m or 2y")), "{text}");
        }
    }
}
