//! Signs of life: what each task of the daemon does, and whether one hangs.
//!
//! Enters: the word of a task that it has turned, and what it does. Leaves: who has not turned when it should have, and a
//! line for `systemctl status`.
//!
//! A task promises to turn again within a time of its own. Who waits for another task, or for an input that may pause for
//! ever, promises nothing meanwhile ([`Pulse::rest`]): that is no hanging.

use std::{
    fmt::Write as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// A task's end: it says here that it lives. The default is one that nobody looks at.
#[derive(Debug, Clone)]
pub struct Pulse(Arc<Task>);

#[derive(Debug)]
struct Task {
    name: String,
    /// Longest time from one turn to the next.
    pause: Duration,
    began: Instant,
    /// By when it must have turned again, in milliseconds since `began`.
    due: AtomicU64,
    /// When it last had data, likewise; [`NEVER`] before.
    moved: AtomicU64,
    /// What it does, in an installer's words; empty until its first attempt has ended, well or not.
    word: Mutex<String>,
}

const NEVER: u64 = u64::MAX;

impl Default for Pulse {
    fn default() -> Self {
        Self::new("", Duration::MAX)
    }
}

impl Pulse {
    /// The pulse of a task that turns at least once in each `pause`.
    pub fn new(name: impl Into<String>, pause: Duration) -> Self {
        Self(Arc::new(Task {
            name: name.into(),
            pause,
            began: Instant::now(),
            due: AtomicU64::new(millis(pause)),
            moved: AtomicU64::new(NEVER),
            word: Mutex::default(),
        }))
    }

    /// The task has turned.
    pub fn beat(&self) {
        self.wait(Duration::ZERO);
    }

    /// The task has turned, and now waits for so long at most.
    pub fn wait(&self, time: Duration) {
        self.wait_from(self.0.began.elapsed(), time);
    }

    /// The task waits for somebody else, however long that takes.
    pub fn rest(&self) {
        self.0.due.store(NEVER, Ordering::Relaxed);
    }

    /// The task had data.
    pub fn moved(&self) {
        self.0.moved.store(millis(self.0.began.elapsed()), Ordering::Relaxed);
    }

    /// What the task does from now on.
    pub fn say(&self, word: impl Into<String>) {
        *self.0.word.lock().unwrap_or_else(PoisonError::into_inner) = word.into();
    }

    fn wait_from(&self, now: Duration, time: Duration) {
        let due = now.saturating_add(time).saturating_add(self.0.pause);
        self.0.due.store(millis(due), Ordering::Relaxed);
    }

    fn word(&self) -> String {
        self.0.word.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn is_late(&self, now: Duration) -> bool {
        let due = self.0.due.load(Ordering::Relaxed);
        due != NEVER && millis(now) > due
    }
}

/// All tasks, for whoever looks after them.
#[derive(Debug, Clone, Default)]
pub struct Pulses(Vec<Pulse>);

impl Pulses {
    /// Another task; returns its end.
    pub fn add(&mut self, pulse: Pulse) -> Pulse {
        self.0.push(pulse.clone());
        pulse
    }

    /// Those of others behind these.
    pub fn append(&mut self, mut others: Self) {
        self.0.append(&mut others.0);
    }

    /// The names of the tasks that have not turned when they should have.
    pub fn late(&self) -> Vec<&str> {
        self.0
            .iter()
            .filter(|pulse| pulse.is_late(pulse.0.began.elapsed()))
            .map(|pulse| pulse.0.name.as_str())
            .collect()
    }

    /// Whether each task has made its first attempt, however it ended.
    pub fn all_have_spoken(&self) -> bool {
        self.0.iter().all(|pulse| !pulse.word().is_empty())
    }

    /// What each task does, without what changes each second.
    pub fn words(&self) -> String {
        self.joined(|_| None)
    }

    /// What each task does, and how long ago it had data.
    pub fn status(&self) -> String {
        self.joined(|pulse| {
            let moved = pulse.0.moved.load(Ordering::Relaxed);
            (moved != NEVER).then(|| pulse.0.began.elapsed().saturating_sub(Duration::from_millis(moved)))
        })
    }

    fn joined(&self, age: impl Fn(&Pulse) -> Option<Duration>) -> String {
        let mut text = String::new();
        for pulse in &self.0 {
            let word = pulse.word();
            if word.is_empty() {
                continue;
            }
            // Writing to a String cannot fail.
            let _ = write!(text, "{}{} {word}", if text.is_empty() { "" } else { "; " }, pulse.0.name);
            if let Some(age) = age(pulse) {
                let _ = write!(text, ", last telegram {} s ago", age.as_secs());
            }
        }
        text
    }
}

/// Whole milliseconds; more than can be counted is never.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(NEVER)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn who_does_not_turn_in_time_is_late_until_it_turns() {
        let pulse = Pulse::new("p1", 10 * S);
        assert!(!pulse.is_late(10 * S), "it has its first pause to begin");
        assert!(pulse.is_late(11 * S));
        pulse.wait_from(11 * S, Duration::ZERO);
        assert!(!pulse.is_late(21 * S));
        assert!(pulse.is_late(22 * S));
        // A wait that was said beforehand is added to it.
        pulse.wait_from(22 * S, 300 * S);
        assert!(!pulse.is_late(332 * S));
        assert!(pulse.is_late(333 * S));
        pulse.rest();
        assert!(!pulse.is_late(1_000_000 * S));
        pulse.wait_from(400 * S, Duration::ZERO);
        assert!(pulse.is_late(411 * S));
        assert!(!Pulse::default().is_late(1_000_000 * S), "nobody looks");
    }

    #[test]
    fn all_tasks_are_told_of_in_one_line() {
        let mut pulses = Pulses::default();
        let port = pulses.add(Pulse::new("p1", S));
        let gateway = pulses.add(Pulse::new("gateway", S));
        assert!(!pulses.all_have_spoken());
        port.say("open at 115200 8N1");
        assert_eq!(pulses.status(), "p1 open at 115200 8N1");
        assert!(!pulses.all_have_spoken());
        gateway.say("connected, 0 messages wait");
        assert!(pulses.all_have_spoken());
        port.moved();
        assert_eq!(pulses.words(), "p1 open at 115200 8N1; gateway connected, 0 messages wait");
        assert_eq!(pulses.status(), "p1 open at 115200 8N1, last telegram 0 s ago; gateway connected, 0 messages wait");
    }

    #[test]
    fn the_late_are_named() {
        let mut pulses = Pulses::default();
        pulses.add(Pulse::new("p1", 100 * S));
        let store = pulses.add(Pulse::new("store main", Duration::ZERO));
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(pulses.late(), ["store main"]);
        store.rest();
        assert_eq!(pulses.late(), Vec::<&str>::new());
    }
}
