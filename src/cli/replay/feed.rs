//! The inputs of a replay, read in a thread of their own, and the time that passes between what they hold.

use std::{collections::HashMap, path::Path, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::{sync::mpsc, time::Instant};

use super::super::input::{Event, Input, Position, Trouble};
use crate::{capture::Opening, moment::Moment, p1::Form};

/// How fast it is replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speed {
    /// As fast as it goes.
    Max,
    /// So many times as fast as it was.
    Times(u32),
}

pub(super) fn speed(text: &str) -> Result<Speed, String> {
    match text {
        "max" => Ok(Speed::Max),
        "real" => Ok(Speed::Times(1)),
        _ => {
            let times = text.strip_suffix('x').and_then(|times| times.parse().ok()).filter(|times| *times > 0);
            times.map(Speed::Times).ok_or_else(|| "write real, max, or a whole number and x, such as 10x".to_owned())
        }
    }
}

/// A span of time; each end may be open.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Window {
    pub(super) from: Option<Moment>,
    pub(super) until: Option<Moment>,
}

impl Window {
    /// Whether a time is in it. What has no time is in none that has an end.
    pub(super) fn has(&self, at: Option<Timestamp>) -> bool {
        match at {
            Some(at) => {
                self.from.is_none_or(|from| from.instant() <= at) && self.until.is_none_or(|until| at < until.instant())
            }
            None => self.from.is_none() && self.until.is_none(),
        }
    }
}

/// What an input holds next.
pub(super) enum Next {
    Event(Event),
    Trouble(Trouble),
    /// Nothing comes any more. How it was written down, where it is no capture.
    End(Option<(Form, u64)>),
}

/// An input that is read ahead, a little.
pub(super) struct Feed {
    next: mpsc::Receiver<Next>,
    pub(super) position: Position,
    pub(super) length: Option<u64>,
}

impl Feed {
    /// Waits at a pipe until somebody writes into it.
    pub(super) async fn open(path: &Path) -> std::io::Result<Self> {
        let path = path.to_owned();
        let mut input =
            tokio::task::spawn_blocking(move || Input::open(&path)).await.map_err(std::io::Error::other)??;
        let (out, next) = mpsc::channel(64);
        let (position, length) = (input.position(), input.length());
        tokio::task::spawn_blocking(move || {
            for event in &mut input {
                let next = match event {
                    Ok(event) => Next::Event(event),
                    Err(trouble) => Next::Trouble(trouble),
                };
                if out.blocking_send(next).is_err() {
                    return;
                }
            }
            let _ = out.blocking_send(Next::End(input.form()));
        });
        Ok(Self { next, position, length })
    }

    /// The last of them is [`Next::End`].
    pub(super) async fn next(&mut self) -> Next {
        self.next.recv().await.unwrap_or(Next::End(None))
    }
}

/// A jump of a clock, or a recorder that was away so long: that is not waited for.
const JUMP: Duration = Duration::from_secs(3600);

/// Where on one line of time the chunks of a capture's ports are. Within a recording their own monotonic clock says it, from one recording
/// to the next the wall clock.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// Where each port was opened.
    ports: HashMap<String, Duration>,
    last: Duration,
    last_at: Option<Timestamp>,
}

impl Line {
    pub(super) fn open(&mut self, opening: &Opening) {
        let gap = self.last_at.map(|last| opening.at.duration_since(last));
        let gap = gap.and_then(|gap| Duration::try_from(gap).ok()).filter(|gap| *gap <= JUMP).unwrap_or_default();
        self.ports.insert(opening.port.clone(), self.last.saturating_add(gap));
    }

    /// Where a chunk is. Never before the last one.
    pub(super) fn at(&mut self, port: &str, us: u64, at: Timestamp) -> Duration {
        let opened = self.ports.get(port).copied().unwrap_or_default();
        self.last = opened.saturating_add(Duration::from_micros(us)).max(self.last);
        self.last_at = Some(at);
        self.last
    }
}

/// Lets time pass as it did.
#[derive(Debug)]
pub(super) struct Pace {
    speed: Speed,
    /// Where on the line of time it began, and when that was.
    began: Option<(Duration, Instant)>,
    /// The time of the last telegram.
    last: Option<Moment>,
}

impl Pace {
    pub(super) fn new(speed: Speed) -> Self {
        Self { speed, began: None, last: None }
    }

    /// Until a chunk is due that was then.
    pub(super) async fn until(&mut self, then: Duration) {
        let Speed::Times(times) = self.speed else { return };
        let (begin, began) = *self.began.get_or_insert_with(|| (then, Instant::now()));
        tokio::time::sleep_until(began + then.saturating_sub(begin) / times).await;
    }

    /// Until a telegram is due that has this time of its own.
    pub(super) async fn telegram(&mut self, time: Option<Moment>) {
        let (Speed::Times(times), Some(time)) = (self.speed, time) else { return };
        let gap = self.last.replace(time).map(|last| time.since(last));
        if let Some(gap) = gap.and_then(|gap| Duration::try_from(gap).ok()).filter(|gap| *gap <= JUMP) {
            tokio::time::sleep(gap / times).await;
        }
    }
}

/// By how much times are moved, so that the first of them is now.
#[derive(Debug)]
pub(super) struct Shift {
    is_asked: bool,
    by: Option<SignedDuration>,
}

impl Shift {
    pub(super) fn new(is_asked: bool) -> Self {
        Self { is_asked, by: None }
    }

    /// What a time is moved by; the first one that is asked for says it for all. In whole seconds, as meters' clocks are.
    pub(super) fn of(&mut self, time: Option<Moment>) -> Option<SignedDuration> {
        if !self.is_asked {
            return None;
        }
        if self.by.is_none()
            && let Some(first) = time
        {
            let by = Timestamp::now().duration_since(first.instant());
            self.by = Some(SignedDuration::from_secs(by.as_secs()));
        }
        self.by
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::Wire;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + second).unwrap()
    }

    #[test]
    fn speeds_read_as_people_write_them() {
        assert_eq!(speed("max"), Ok(Speed::Max));
        assert_eq!(speed("real"), Ok(Speed::Times(1)));
        assert_eq!(speed("60x"), Ok(Speed::Times(60)));
        assert!(speed("0x").is_err() && speed("fast").is_err());
    }

    #[test]
    fn a_line_of_time_goes_by_the_monotonic_clock_and_bridges_recordings() {
        let mut line = Line::default();
        let opening = |port: &str, second| Opening {
            port: port.into(),
            wire: Wire::P1,
            address: String::new(),
            settings: String::new(),
            at: at(second),
            goes_on: false,
        };
        let s = Duration::from_secs;
        line.open(&opening("a", 0));
        line.open(&opening("b", 0));
        assert_eq!(line.at("a", 1_000_000, at(1)), s(1));
        // The wall clock jumps.
        assert_eq!(line.at("b", 2_000_000, at(9000)), s(2));
        line.open(&opening("a", 9010));
        assert_eq!(line.at("a", 500_000, at(9011)), Duration::from_millis(12_500));
        // A recorder that was away for a day, or whose clock was put back.
        line.open(&opening("a", 90_000));
        assert_eq!(line.at("a", 0, at(90_000)), Duration::from_millis(12_500));
        line.open(&opening("a", 0));
        assert_eq!(line.at("a", 1_000_000, at(0)), Duration::from_millis(13_500));
    }

    #[test]
    fn windows_have_their_beginning_and_not_their_end() {
        let window = Window { from: Some(Moment::utc(at(1))), until: Some(Moment::utc(at(3))) };
        assert_eq!([0, 1, 2, 3].map(|second| window.has(Some(at(second)))), [false, true, true, false]);
        assert!(!window.has(None) && Window::default().has(None));
    }

    #[test]
    fn the_first_time_is_now_and_the_others_keep_their_distance() {
        let mut shift = Shift::new(true);
        assert_eq!(shift.of(None), None);
        let by = shift.of(Some(Moment::utc(at(0)))).unwrap();
        let off = Timestamp::now().duration_since(at(0)) - by;
        assert!(off.as_secs() < 2 && by.subsec_nanos() == 0, "{off:?}");
        assert_eq!(shift.of(Some(Moment::utc(at(500)))), Some(by));
        assert_eq!(Shift::new(false).of(Some(Moment::utc(at(0)))), None);
    }
}
