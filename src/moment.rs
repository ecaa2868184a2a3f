//! Instants as a clock showed them.
//!
//! Enters: the digits of a meter's clock, or an RFC 3339 text. Leaves: a [`Moment`], an instant that
//! remembers the UTC offset it was written in, so that the page can say what the meter said.
//!
//! Not supported: leap seconds (a 60th second becomes the 59th, as jiff does), years outside 2000..=2099
//! in two-digit meter clocks.

use std::fmt;

use jiff::{
    SignedDuration, Timestamp, civil,
    fmt::temporal::{Pieces, PiecesOffset},
    tz::{Offset, TimeZone},
};

/// An instant, and the UTC offset of the clock that showed it. Compares by instant, then by offset.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Moment {
    instant: Timestamp,
    offset: Offset,
}

/// The text is not an RFC 3339 date and time with an offset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a date and time with an offset, such as 2026-11-21T20:00:00+01:00")]
pub struct NotAMoment(pub String);

impl Moment {
    /// From a UTC instant in milliseconds since 1970 and an offset in minutes east of UTC.
    /// None when either is outside what a calendar can show.
    pub fn from_millis(millis: i64, offset_minutes: i32) -> Option<Self> {
        Some(Self {
            instant: Timestamp::from_millisecond(millis).ok()?,
            offset: Offset::from_seconds(offset_minutes.checked_mul(60)?).ok()?,
        })
    }

    /// A UTC instant.
    pub fn utc(instant: Timestamp) -> Self {
        Self { instant, offset: Offset::UTC }
    }

    /// From a wall clock that stands `offset_hours` east of UTC. None when the date does not exist.
    pub fn from_civil(clock: Civil, offset_hours: i8) -> Option<Self> {
        let offset = Offset::from_hours(offset_hours).ok()?;
        Some(Self { instant: offset.to_timestamp(clock.datetime()?).ok()?, offset })
    }

    /// From a wall clock that follows the European rule (summer time by Directive 2000/84/EC) but does not
    /// say whether it is summer, and stands `winter_offset_hours` east of UTC in winter. In the hour that
    /// comes twice in October the first is taken; in the hour that is missing in March the clock is read as
    /// winter time.
    pub fn from_european(clock: Civil, winter_offset_hours: i8) -> Option<Self> {
        let zone = european(winter_offset_hours)?;
        let instant = zone.to_ambiguous_timestamp(clock.datetime()?).compatible().ok()?;
        Some(Self { instant, offset: zone.to_offset(instant) })
    }

    /// An instant as a clock shows it that follows the European rule and stands `winter_offset_hours` east of UTC in
    /// winter; None where these are not 0, 1 or 2.
    pub fn at_european(instant: Timestamp, winter_offset_hours: i8) -> Option<Self> {
        Some(Self { instant, offset: european(winter_offset_hours)?.to_offset(instant) })
    }

    /// The instant that is `by` later, by a clock with the same offset. None beyond the calendar.
    pub fn moved(self, by: SignedDuration) -> Option<Self> {
        Some(Self { instant: self.instant.checked_add(by).ok()?, ..self })
    }

    /// What the clock showed.
    pub fn civil(self) -> Civil {
        let shown = self.offset.to_datetime(self.instant);
        Civil {
            year: shown.year(),
            month: shown.month(),
            day: shown.day(),
            hour: shown.hour(),
            minute: shown.minute(),
            second: shown.second(),
        }
    }

    /// The instant.
    pub fn instant(self) -> Timestamp {
        self.instant
    }

    /// Milliseconds since 1970-01-01T00:00:00Z.
    pub fn millis(self) -> i64 {
        self.instant.as_millisecond()
    }

    /// Minutes east of UTC that the clock stood.
    pub fn offset_minutes(self) -> i32 {
        self.offset.seconds().div_euclid(60)
    }

    /// The number of the quarter-hour (UTC, since 1970) in which this instant lies. Every offset in use
    /// at European meters is a whole number of quarter-hours, so local quarter-hours are the same.
    pub fn quarter(self) -> i64 {
        self.instant.as_second().div_euclid(900)
    }

    /// So much later, by a clock that stands at the same offset. None when no calendar has that.
    pub fn shifted(self, by: SignedDuration) -> Option<Self> {
        Some(Self { instant: self.instant.checked_add(by).ok()?, offset: self.offset })
    }

    /// Time from `earlier` to this instant; negative when `earlier` is later.
    pub fn since(self, earlier: Self) -> SignedDuration {
        self.instant.duration_since(earlier.instant)
    }
}

fn european(winter_offset_hours: i8) -> Option<TimeZone> {
    // The change is at 01:00 UTC everywhere.
    let rule = match winter_offset_hours {
        0 => "WET0WEST,M3.5.0/1,M10.5.0",
        1 => "CET-1CEST,M3.5.0,M10.5.0/3",
        2 => "EET-2EEST,M3.5.0/3,M10.5.0/4",
        _ => return None,
    };
    TimeZone::posix(rule).ok()
}

/// What a wall clock shows: the fields as the meter sent them, not yet known to exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Civil {
    /// Full year, 2000..=2099 from two-digit clocks.
    pub year: i16,
    /// 1..=12.
    pub month: i8,
    /// 1..=31.
    pub day: i8,
    /// 0..=23.
    pub hour: i8,
    /// 0..=59.
    pub minute: i8,
    /// 0..=59.
    pub second: i8,
}

impl Civil {
    /// From twelve ASCII digits `YYMMDDhhmmss`, the year counted from 2000. None for anything else;
    /// whether the date exists shows when it becomes a [`Moment`].
    pub fn from_digits(digits: &[u8; 12]) -> Option<Self> {
        // Four pairs at once, each in an even byte of a word; the middle four digits are in both words.
        let pairs = |eight: &[u8; 8]| {
            const ONES: u64 = u64::from_le_bytes([1; 8]);
            let values = u64::from_le_bytes(*eight) ^ ONES.wrapping_mul(0x30);
            let others = (values.wrapping_add(ONES.wrapping_mul(0x76)) | values) & ONES.wrapping_mul(0x80);
            // At most 99.
            let pairs = values.wrapping_mul(10).wrapping_add(values >> 8).to_le_bytes().map(|pair| pair as i8);
            (others == 0).then_some(pairs)
        };
        let [year, _, month, _, day, _, hour, _] = pairs(digits.first_chunk()?)?;
        let [_, _, _, _, minute, _, second, _] = pairs(digits.last_chunk()?)?;
        Some(Self { year: i16::from(year).wrapping_add(2000), month, day, hour, minute, second })
    }

    fn datetime(self) -> Option<civil::DateTime> {
        // What no date has, before an error is composed that nobody reads: an unset clock shows month 25.
        if self.month > 12 || self.day > 31 || self.hour > 23 || self.minute > 59 || self.second > 60 {
            return None;
        }
        civil::DateTime::new(self.year, self.month, self.day, self.hour, self.minute, self.second, 0).ok()
    }
}

/// RFC 3339 with the clock's own offset; UTC prints as `Z`.
impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.offset == Offset::UTC {
            write!(f, "{}", self.instant)
        } else {
            write!(f, "{}", self.instant.display_with_offset(self.offset))
        }
    }
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl std::str::FromStr for Moment {
    type Err = NotAMoment;

    fn from_str(text: &str) -> Result<Self, NotAMoment> {
        let parse = || {
            let pieces = Pieces::parse(text).ok()?;
            let offset = match pieces.offset()? {
                PiecesOffset::Zulu => Offset::UTC,
                PiecesOffset::Numeric(offset) => offset.offset(),
                _ => return None,
            };
            // RFC 3339 has no seconds in an offset, and neither has a text of ours.
            if offset.seconds().rem_euclid(60) != 0 {
                return None;
            }
            let instant = offset.to_timestamp(pieces.date().to_datetime(pieces.time()?)).ok()?;
            Some(Self { instant, offset })
        };
        parse().ok_or_else(|| NotAMoment(text.chars().take(64).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn civil(digits: &[u8; 12]) -> Civil {
        Civil::from_digits(digits).unwrap()
    }

    #[test]
    fn prints_and_reads_back_what_a_clock_said() {
        for text in ["2026-07-14T12:00:03+02:00", "2026-11-21T19:00:00.123Z", "2025-12-31T23:59:00+01:00"] {
            assert_eq!(text.parse::<Moment>().unwrap().to_string(), text);
        }
        assert!("2026-07-14T12:00:03".parse::<Moment>().is_err());
        assert!("yesterday".parse::<Moment>().is_err());
        assert!("2026-07-14T12:00:03+01:00:30".parse::<Moment>().is_err());
    }

    #[test]
    fn summer_time_letter_makes_the_october_hour_unambiguous() {
        let first = Moment::from_civil(civil(b"261025023000"), 2).unwrap();
        let second = Moment::from_civil(civil(b"261025023000"), 1).unwrap();
        assert_eq!(second.since(first).as_secs(), 3600);
        assert_eq!(first.to_string(), "2026-10-25T02:30:00+02:00");
    }

    #[test]
    fn a_clock_without_letter_follows_the_european_rule() {
        let at = |digits, winter| Moment::from_european(civil(digits), winter).unwrap().to_string();
        assert_eq!(at(b"120517020000", 1), "2012-05-17T02:00:00+02:00");
        assert_eq!(at(b"120217020000", 1), "2012-02-17T02:00:00+01:00");
        assert_eq!(at(b"261025023000", 1), "2026-10-25T02:30:00+02:00");
        assert_eq!(at(b"261025033000", 2), "2026-10-25T03:30:00+03:00");
        assert_eq!(at(b"260329035959", 2), "2026-03-29T04:59:59+03:00");
        assert_eq!(at(b"260701000000", 0), "2026-07-01T00:00:00+01:00");
    }

    #[test]
    fn an_instant_is_shown_as_the_clock_would() {
        let at = |text: &str| Moment::at_european(text.parse::<Timestamp>().unwrap(), 1).unwrap();
        let (summer, winter) = (at("2026-10-25T00:59:59Z"), at("2026-10-25T01:00:00Z"));
        assert_eq!(
            (summer.to_string(), winter.to_string()),
            ("2026-10-25T02:59:59+02:00".into(), "2026-10-25T02:00:00+01:00".into())
        );
        assert_eq!(summer.civil(), civil(b"261025025959"));
        assert_eq!(summer.moved(SignedDuration::from_secs(1)).unwrap().to_string(), "2026-10-25T03:00:00+02:00");
        assert_eq!(Moment::at_european(Timestamp::UNIX_EPOCH, 3), None);
    }

    #[test]
    fn clocks_that_show_no_date_are_none() {
        for digits in [b"632525252525", b"000000000000", b"260230120000", b"26013012a000"] {
            assert_eq!(Civil::from_digits(digits).and_then(|clock| Moment::from_civil(clock, 1)), None);
        }
    }
}
