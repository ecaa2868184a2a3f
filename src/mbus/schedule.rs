//! When which meter of a bus is read.
//!
//! Enters: how often each meter is to be read, the time, and whether the last reading came to something. Leaves:
//! which meter is next. Pure, with times as durations since any one moment, like the master's.
//!
//! - After the start each meter is read as soon as the bus is free, then in a turn of its own: meter `i` of `n`
//!   at `i/n` of the interval, so that the bus is never bunched.
//! - A meter is never read before its least interval is over: battery meters fall silent when they are read too
//!   often.
//! - Those that failed are read again a little later, behind all others that were due before, up to twice. Who
//!   failed in all passes gets one pass an interval until it answers.

use std::time::Duration;

use super::master::Instant;

/// Passes over a meter that fails, the first one counted.
const PASSES: u8 = 3;
/// A disturbance is given so long to pass.
const PAUSE: Duration = Duration::from_secs(5);

/// How often a meter is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rhythm {
    /// From one reading to the next.
    pub interval: Duration,
    /// Never sooner than this after the last reading; zero for no such limit.
    pub at_least: Duration,
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Read this meter, by its index, now.
    Now(usize),
    /// Nothing before this time.
    At(Instant),
    /// Nothing ever: there are no meters.
    Never,
}

/// What came of reading a meter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Came {
    /// Readings.
    Readings,
    /// An answer of which nothing could be taken: to a battery meter that was a reading, too.
    Answer,
    /// Nothing.
    Nothing,
}

/// The meters of a bus and their turns.
#[derive(Debug, Clone)]
pub struct Schedule {
    turns: Vec<Turn>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Turn {
    rhythm: Rhythm,
    /// When its turn comes round, from the start of each interval.
    offset: Duration,
    due: Instant,
    /// Failures since the turn began.
    failed: u8,
    /// Whether all passes of the last turn failed.
    absent: bool,
    last_read: Option<Instant>,
}

impl Schedule {
    /// For meters that are all due at `now`.
    pub fn new(rhythms: &[Rhythm], now: Instant) -> Self {
        let count = u32::try_from(rhythms.len()).unwrap_or(u32::MAX).max(1);
        let turns = rhythms.iter().enumerate().map(|(index, rhythm)| {
            let share = rhythm.interval.checked_div(count).unwrap_or_default();
            let offset = share.saturating_mul(u32::try_from(index).unwrap_or(u32::MAX));
            Turn { rhythm: *rhythm, offset, due: now, failed: 0, absent: false, last_read: None }
        });
        Self { turns: turns.collect() }
    }

    /// Takes over that a meter was read so long before `now`, in an earlier run.
    pub fn was_read(&mut self, meter: usize, ago: Duration, now: Instant) {
        let Some(turn) = self.turns.get_mut(meter) else { return };
        let rest = turn.rhythm.at_least.saturating_sub(ago);
        turn.due = turn.due.max(now.saturating_add(rest));
    }

    /// What is due at `now`: of several the one that is due longest, so that nobody starves on a bus that has more to
    /// do than time for it.
    pub fn next(&self, now: Instant) -> Due {
        match self.turns.iter().enumerate().min_by_key(|(_, turn)| turn.due) {
            None => Due::Never,
            Some((index, turn)) if turn.due <= now => Due::Now(index),
            Some((_, turn)) => Due::At(turn.due),
        }
    }

    /// Notes what came of reading a meter.
    pub fn done(&mut self, meter: usize, now: Instant, came: Came) {
        let Some(turn) = self.turns.get_mut(meter) else { return };
        if came != Came::Nothing {
            turn.last_read = Some(now);
        }
        if came == Came::Readings {
            (turn.failed, turn.absent) = (0, false);
            turn.come_round(now);
            return;
        }
        turn.failed = turn.failed.saturating_add(1);
        let passes = if turn.absent { 1 } else { PASSES };
        if turn.failed < passes {
            let pause = now.saturating_add(PAUSE.saturating_mul(turn.failed.into()));
            turn.due = pause.max(turn.bearable(now));
        } else {
            (turn.failed, turn.absent) = (0, true);
            turn.come_round(now);
        }
    }
}

impl Turn {
    /// When it may be read again.
    fn bearable(&self, now: Instant) -> Instant {
        self.last_read.map_or(now, |last| last.saturating_add(self.rhythm.at_least))
    }

    /// The next turn of its own that is at least half an interval away, and within what the meter bears.
    fn come_round(&mut self, now: Instant) {
        let interval = self.rhythm.interval;
        let half = interval.checked_div(2).unwrap_or_default();
        let earliest = now.saturating_add(half).max(self.bearable(now));
        let past = earliest.saturating_sub(self.offset).as_nanos();
        // Rounded up to whole intervals.
        let turns = past.div_ceil(interval.as_nanos().max(1));
        let turns = u32::try_from(turns).unwrap_or(u32::MAX);
        self.due = self.offset.saturating_add(interval.saturating_mul(turns)).max(earliest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUARTER: Rhythm = Rhythm { interval: Duration::from_secs(900), at_least: Duration::ZERO };

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    /// Reads for a while, each reading taking a second; when each meter was read.
    fn run(schedule: &mut Schedule, until: u64, well: impl Fn(usize, u64) -> bool) -> Vec<Vec<u64>> {
        let mut read = vec![Vec::new(); schedule.turns.len()];
        let mut now = seconds(0);
        while now < seconds(until) {
            match schedule.next(now) {
                Due::Now(meter) => {
                    read[meter].push(now.as_secs());
                    now = now.saturating_add(seconds(1));
                    let came = if well(meter, now.as_secs()) { Came::Readings } else { Came::Nothing };
                    schedule.done(meter, now, came);
                }
                Due::At(at) => now = at,
                Due::Never => break,
            }
        }
        read
    }

    #[test]
    fn all_are_read_at_once_and_then_spread() {
        let mut schedule = Schedule::new(&[QUARTER; 4], seconds(0));
        let read = run(&mut schedule, 3600, |_, _| true);
        assert_eq!(read[0], [0, 900, 1800, 2700]);
        assert_eq!(read[1], [1, 1125, 2025, 2925]);
        assert_eq!(read[2], [2, 1350, 2250, 3150]);
        assert_eq!(read[3], [3, 675, 1575, 2475, 3375]);
    }

    #[test]
    fn those_that_fail_come_last_and_hold_up_nobody() {
        let mut schedule = Schedule::new(&[QUARTER; 3], seconds(0));
        let read = run(&mut schedule, 1000, |meter, _| meter != 0);
        assert_eq!(read[0], [0, 6, 17, 900]);
        assert_eq!(read[1][0], 1);
        // While it is absent it is asked once an interval; when it is back, passes come back too.
        let read = run(&mut Schedule::new(&[QUARTER], seconds(0)), 9000, |_, now| (2000..4000).contains(&now));
        assert_eq!(read[0], [0, 6, 17, 900, 1800, 2700, 3600, 4500, 4506, 4517, 5400, 6300, 7200, 8100]);
    }

    #[test]
    fn nobody_starves_where_there_is_too_much_to_do() {
        let hasty = Rhythm { interval: seconds(2), at_least: Duration::ZERO };
        let mut schedule = Schedule::new(&[hasty; 5], seconds(0));
        // A disturbance, after which all answer.
        let read = run(&mut schedule, 300, |_, now| now > 60);
        for meter in read {
            assert!(meter.iter().filter(|at| **at > 100).count() > 20, "{meter:?}");
        }
    }

    #[test]
    fn a_battery_meter_is_never_read_too_often() {
        let battery = Rhythm { interval: seconds(900), at_least: seconds(4140) };
        let mut schedule = Schedule::new(&[QUARTER, battery], seconds(0));
        schedule.was_read(1, seconds(1000), seconds(0));
        let read = run(&mut schedule, 20_000, |_, _| true);
        assert_eq!(read[1], [3140, 7650, 12_150, 16_650]);
        // An answer of which nothing could be taken was a reading to the meter.
        schedule.done(1, seconds(20_000), Came::Answer);
        assert_eq!(Schedule { turns: vec![schedule.turns[1].clone()] }.next(seconds(20_001)), Due::At(seconds(24_140)));
        assert_eq!(Schedule::new(&[], seconds(0)).next(seconds(5)), Due::Never);
    }
}
