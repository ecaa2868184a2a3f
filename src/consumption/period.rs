//! Years, months, days, hours and quarter-hours of a zone.

use std::fmt;

use jiff::{
    Timestamp, ToSpan,
    civil::{Date, DateTime, Time},
    fmt::strtime,
    tz::{AmbiguousOffset, Offset, TimeZone},
};

/// How long a period is, by the clock on the wall.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum By {
    /// All the time that is asked for.
    Total,
    /// From 1 January.
    Year,
    /// From the first.
    Month,
    /// 23, 24 or 25 hours.
    Day,
    /// Sixty minutes; the hour that comes twice in autumn is two hours.
    Hour,
    /// 15 minutes.
    Quarter,
}

/// One period of a zone. Its text is its label: `total`, `2026`, `2026-11`, `2026-11-21`, and with the offset, so that each is said once,
/// `2026-10-25T02:00+02:00`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Period {
    /// What it is.
    pub by: By,
    /// Its first instant.
    pub from: Timestamp,
    /// The first instant behind it.
    pub to: Timestamp,
    /// East of UTC, at `from`.
    pub offset: Offset,
}

impl Period {
    /// The year, month or day in which a date lies; None beyond the calendar.
    fn calendar(by: By, zone: &TimeZone, date: Date) -> Option<Self> {
        // Where a day does not begin with 00:00, it begins when the clock has leapt over it.
        let begin = |date: Date| zone.to_timestamp(date.to_datetime(Time::midnight())).ok();
        let from = begin(by.first(date))?;
        Some(Self { by, from, to: begin(by.next(date)?)?, offset: zone.to_offset(from) })
    }

    /// The hour or quarter-hour that begins at an instant; None beyond the calendar. It ends when the clock shows the next, or is moved.
    fn clock(by: By, zone: &TimeZone, from: Timestamp) -> Option<Self> {
        let offset = zone.to_offset(from);
        let to = from.checked_add(by.seconds().checked_sub(past(by, from, offset))?.seconds()).ok()?;
        let moved = (zone.to_offset(to) != offset).then(|| moved(zone, from)).flatten();
        Some(Self { by, from, to: moved.unwrap_or(to), offset })
    }

    /// The same period so many years before: the same label. None where that year has none: a total, 29 February, an hour that was leapt over, the second
    /// of two equal hours where that year had one.
    pub fn earlier(&self, zone: &TimeZone, years: i16) -> Option<Self> {
        let local = self.offset.to_datetime(self.from);
        let date = Date::new(local.year().checked_sub(years)?, local.month(), local.day()).ok()?;
        match self.by {
            By::Total => None,
            By::Year | By::Month | By::Day => Self::calendar(self.by, zone, date),
            By::Hour | By::Quarter => {
                let ambiguous = |clock: DateTime| zone.to_ambiguous_timestamp(clock).offset();
                let second = matches!(ambiguous(local), AmbiguousOffset::Fold { after, .. } if after == self.offset);
                let clock = local.time().on(date.year(), date.month(), date.day());
                let offset = match ambiguous(clock) {
                    AmbiguousOffset::Unambiguous { offset } if !second => offset,
                    AmbiguousOffset::Fold { before, .. } if !second => before,
                    AmbiguousOffset::Fold { after, .. } => after,
                    _ => return None,
                };
                let from = offset.to_timestamp(clock).ok()?;
                // What was cut short by a move of the clock has no counterpart.
                Self::clock(self.by, zone, from).filter(|_| past(self.by, from, offset) == 0)
            }
        }
    }
}

impl By {
    /// The first date of the one in which a date lies.
    fn first(self, date: Date) -> Date {
        match self {
            Self::Year => date.first_of_year(),
            Self::Month => date.first_of_month(),
            Self::Total | Self::Day | Self::Hour | Self::Quarter => date,
        }
    }

    /// The first date of the next; None beyond the calendar.
    fn next(self, date: Date) -> Option<Date> {
        let next = match self {
            Self::Year => date.first_of_year().checked_add(1.year()),
            Self::Month => date.first_of_month().checked_add(1.month()),
            Self::Total | Self::Day | Self::Hour | Self::Quarter => date.tomorrow(),
        };
        next.ok()
    }

    /// Of periods by the clock.
    const fn seconds(self) -> i64 {
        if matches!(self, Self::Quarter) { 900 } else { 3600 }
    }
}

/// Seconds since a clock that stands at `offset` showed the beginning of an hour or quarter-hour.
fn past(by: By, at: Timestamp, offset: Offset) -> i64 {
    at.as_second().saturating_add(offset.seconds().into()).rem_euclid(by.seconds())
}

/// When the clocks of a zone are moved next.
fn moved(zone: &TimeZone, from: Timestamp) -> Option<Timestamp> {
    let offset = zone.to_offset(from);
    zone.following(from).find(|transition| transition.offset() != offset).map(|transition| transition.timestamp())
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let format = match self.by {
            By::Total => "total",
            By::Year => "%Y",
            By::Month => "%Y-%m",
            By::Day => "%Y-%m-%d",
            By::Hour | By::Quarter => "%Y-%m-%dT%H:%M%:z",
        };
        let local = self.from.to_zoned(self.offset.to_time_zone());
        f.write_str(&strtime::format(format, &local).map_err(|_| fmt::Error)?)
    }
}

/// The periods of a zone in their order, one by one: each begins where the one before ends.
#[derive(Debug, Clone)]
pub struct Periods {
    by: By,
    zone: TimeZone,
    next: Option<Next>,
    until: Timestamp,
}

#[derive(Debug, Clone, Copy)]
enum Next {
    /// All that is left.
    All(Timestamp),
    Date(Date),
    Instant(Timestamp),
}

impl Periods {
    /// Those that have something of the time from `from` until before `until`. Ends with the calendar.
    pub fn new(by: By, zone: TimeZone, from: Timestamp, until: Timestamp) -> Self {
        let offset = zone.to_offset(from);
        let next = match by {
            By::Total => Some(Next::All(from)),
            By::Year | By::Month | By::Day => Some(Next::Date(offset.to_datetime(from).date())),
            By::Hour | By::Quarter => {
                let second = Timestamp::from_second(from.as_second().saturating_sub(past(by, from, offset)));
                // Unless the clock was moved since.
                let begin = |begin| if zone.to_offset(begin) == offset { Some(begin) } else { moved(&zone, begin) };
                second.ok().and_then(begin).map(Next::Instant)
            }
        };
        Self { by, zone, next, until }
    }
}

impl Iterator for Periods {
    type Item = Period;

    fn next(&mut self) -> Option<Period> {
        loop {
            let period = match self.next? {
                Next::All(from) => {
                    self.next = None;
                    Period { by: self.by, from, to: self.until, offset: self.zone.to_offset(from) }
                }
                Next::Date(date) => {
                    let period = Period::calendar(self.by, &self.zone, date)?;
                    self.next = self.by.next(date).map(Next::Date);
                    period
                }
                Next::Instant(from) => {
                    let period = Period::clock(self.by, &self.zone, from)?;
                    self.next = Some(Next::Instant(period.to));
                    period
                }
            };
            if period.from >= self.until {
                self.next = None;
                return None;
            }
            // A day that a zone leapt over whole, crossing the date line, has no time in it.
            if period.from < period.to {
                return Some(period);
            }
        }
    }
}
