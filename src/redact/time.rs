//! Times, all moved by the same amount.
//!
//! Instants move, not what the clock shows: every time between two of them stays as it is. Where a move passes a change
//! between summer and winter time, the clock therefore shows an hour more or less, as it would have there and then: what
//! came at midnight comes at one or at eleven. A clock that did not follow the European rule goes on as it was; so do
//! meters that have winter time all year.
//!
//! Days without a time move by whole days, rounded down, and so do the dates of M-Bus meters whose form has no seconds, by
//! whole minutes. Times of a day, dates that come again every month or year, and clocks that were never set stay.

use jiff::{SignedDuration, civil};

use crate::{
    mbus::value::{self, Date},
    moment::{Civil, Moment},
};

/// A time cannot be written in the form in which it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoRoom;

/// The clocks of P1 stand in these years: earlier ones were never set, later ones cannot be written.
const YEARS: std::ops::RangeInclusive<i16> = 2007..=2099;

const DAY: i64 = 86_400;

/// The clock in a bracket of a P1 line, moved: `YYMMDDhhmmssX`, or twelve octets of a COSEM date-time as hex digits. None
/// where it is no clock, or one that was never set. `winter`: hours east of UTC in winter.
pub(super) fn p1(text: &[u8], winter: i8, by: SignedDuration) -> Option<Result<Vec<u8>, NoRoom>> {
    if let Ok(hex) = <&[u8; 24]>::try_from(text) {
        return date_time(hex, winter, by);
    }
    let (digits, letter) = text.split_first_chunk::<12>()?;
    let clock = Civil::from_digits(digits).filter(|clock| YEARS.contains(&clock.year))?;
    let at = match letter {
        b"" => Moment::from_european(clock, winter),
        b"W" => Moment::from_civil(clock, winter),
        b"S" => Moment::from_civil(clock, winter.saturating_add(1)),
        _ => return None,
    }?;
    let moved = || {
        let moved = follow(at, winter, by)?;
        let Civil { year, month, day, hour, minute, second } = moved.civil();
        let year = YEARS.contains(&year).then(|| year - 2000)?;
        let is_winter = moved.offset_minutes() == i32::from(winter) * 60;
        let letter = match (letter, is_winter) {
            (b"", _) => "",
            (_, true) => "W",
            (_, false) => "S",
        };
        Some(format!("{year:02}{month:02}{day:02}{hour:02}{minute:02}{second:02}{letter}").into_bytes())
    };
    Some(moved().ok_or(NoRoom))
}

/// By a clock that follows the European rule where it did, and otherwise goes on as it was.
fn follow(at: Moment, winter: i8, by: SignedDuration) -> Option<Moment> {
    let moved = at.moved(by)?;
    let followed = Moment::at_european(at.instant(), winter) == Some(at);
    if followed { Moment::at_european(moved.instant(), winter) } else { Some(moved) }
}

/// A COSEM date-time: year (2), month, day, day of week, hour, minute, second, hundredths, deviation (2), status. The
/// deviation from UTC stays, and so does a day of the week that was not given.
fn date_time(hex: &[u8; 24], winter: i8, by: SignedDuration) -> Option<Result<Vec<u8>, NoRoom>> {
    let mut octets = [0u8; 12];
    for (octet, pair) in octets.iter_mut().zip(hex.as_chunks::<2>().0) {
        *octet = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    let [year_high, year_low, month, day, week, hour, minute, second, hundredths, high, low, status] = octets;
    let field = |octet: u8| i8::try_from(octet).ok();
    let clock = Civil {
        year: Some(i16::from_be_bytes([year_high, year_low])).filter(|year| *year >= *YEARS.start())?,
        month: field(month)?,
        day: field(day)?,
        hour: field(hour)?,
        minute: field(minute)?,
        second: field(second)?,
    };
    let deviation = i16::from_be_bytes([high, low]);
    let moved = if deviation == i16::MIN {
        follow(Moment::from_european(clock, winter)?, winter, by)
    } else {
        Moment::from_civil(clock, i8::try_from(deviation.unsigned_abs() / 60).ok()?)?.moved(by)
    };
    let Some(moved) = moved.map(Moment::civil).filter(|clock| clock.year <= *YEARS.end()) else {
        return Some(Err(NoRoom));
    };
    let [year_high, year_low] = moved.year.to_be_bytes();
    let weekday = civil::Date::new(moved.year, moved.month, moved.day).ok()?.weekday().to_monday_one_offset();
    let week = if (1..=7).contains(&week) { weekday as u8 } else { week };
    let [month, day, hour] = [moved.month, moved.day, moved.hour].map(|field| field as u8);
    let [minute, second] = [moved.minute, moved.second].map(|field| field as u8);
    let octets = [year_high, year_low, month, day, week, hour, minute, second, hundredths, high, low, status];
    let is_capital = !hex.iter().any(u8::is_ascii_lowercase);
    let text = octets.iter().map(|octet| if is_capital { format!("{octet:02X}") } else { format!("{octet:02x}") });
    Some(Ok(text.collect::<String>().into_bytes()))
}

/// A date of an M-Bus record (types F, G, I), lowest byte first, moved. None where it stays as it is.
pub(super) fn mbus(data: &[u8], by: SignedDuration) -> Option<Result<Vec<u8>, NoRoom>> {
    let moved = |clock: Civil, by: SignedDuration| {
        // Whichever offset the clock has: it keeps it.
        let moved = Moment::from_civil(clock, 0)?.moved(by)?.civil();
        // Seven bits for the year; from 2081 on a reader takes it for one of the last century.
        ((2000..=2080).contains(&moved.year)).then_some(moved)
    };
    let days = |clock: &Civil| {
        let year = (clock.year - 2000) as u8;
        (clock.day as u8 | (year & 7) << 5, clock.month as u8 | (year >> 3) << 4)
    };
    let new = match (value::date(data)?, data) {
        (Date::Day { year, month, day }, [_, _]) => {
            let clock = Civil { year, month, day, hour: 0, minute: 0, second: 0 };
            let whole = SignedDuration::from_secs(by.as_secs().div_euclid(DAY) * DAY);
            moved(clock, whole).map(|clock| {
                let (low, high) = days(&clock);
                vec![low, high]
            })
        }
        (Date::Time { clock, .. }, &[minute, hour, _, _]) => moved(clock, by).map(|clock| {
            let (low, high) = days(&clock);
            // The bits for the century are of a year before 2000 only.
            vec![minute & !0x3F | clock.minute as u8, hour & 0x80 | clock.hour as u8, low, high]
        }),
        (Date::Time { clock, .. }, &[second, minute, hour, _, _, week]) => moved(clock, by).map(|clock| {
            let (low, high) = days(&clock);
            let weekday = civil::Date::new(clock.year, clock.month, clock.day).ok();
            let weekday = weekday.map_or(0, |date| date.weekday().to_monday_one_offset() as u8);
            let hour = hour & !0x1F | clock.hour as u8;
            let number = civil::Date::new(clock.year, clock.month, clock.day).ok();
            let number = number.map_or(0, |date| date.iso_week_date().week() as u8);
            // Where neither was told, neither is told now.
            let hour = if hour >> 5 == 0 { hour } else { hour & 0x1F | weekday << 5 };
            let week = if week & 0x3F == 0 { week } else { week & 0xC0 | number };
            vec![second & !0x3F | clock.second as u8, minute & !0x3F | clock.minute as u8, hour, low, high, week]
        }),
        _ => return None,
    };
    Some(new.ok_or(NoRoom))
}

/// A time as the texts of reports have it, moved. None where it is none.
pub(super) fn shown(text: &str, by: SignedDuration) -> Option<String> {
    if let Ok(moment) = text.parse::<Moment>() {
        return Some(moment.moved(by)?.instant().to_string());
    }
    let (clock, rest) = text.split_at_checked(text.find(' ').unwrap_or(text.len()))?;
    if clock.contains('T') {
        let clock: civil::DateTime = clock.parse().ok()?;
        return Some(format!("{}{rest}", clock.checked_add(by).ok()?));
    }
    let day: civil::Date = clock.parse().ok()?;
    Some(format!("{}{rest}", day.checked_add(SignedDuration::from_secs(by.as_secs().div_euclid(DAY) * DAY)).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn days(days: i64) -> SignedDuration {
        SignedDuration::from_hours(24 * days)
    }

    fn text(text: &str, winter: i8, by: SignedDuration) -> Option<String> {
        p1(text.as_bytes(), winter, by).map(|new| new.map_or("no room".into(), |new| String::from_utf8(new).unwrap()))
    }

    #[test]
    fn instants_move_and_the_clock_follows_the_rule() {
        for (old, winter, by, new) in [
            ("261121200000W", 1, days(7), "261128200000W"),
            ("261121200000W", 1, days(-364), "251122200000W"),
            // Into summer, and back: the same instants.
            ("261121200000W", 1, days(-150), "260624210000S"),
            ("260624210000S", 1, days(150), "261121200000W"),
            ("261025023000S", 1, SignedDuration::from_hours(1), "261025023000W"),
            ("260624210000", 1, days(150), "261121200000"),
            ("260624210000", 2, days(150), "261121200000"),
            ("260624220000S", 2, days(150), "261121210000W"),
            // Winter time all year.
            ("260624200000W", 1, days(150), "261121200000W"),
            // Octets of a COSEM date-time, without and with a deviation.
            ("07EA0B1506140000FF800000", 1, days(1), "07EA0B1607140000FF800000"),
            ("07ea0b15ff140000ff003c00", 1, days(10), "07ea0c01ff140000ff003c00"),
        ] {
            assert_eq!(text(old, winter, by).as_deref(), Some(new), "{old}");
        }
    }

    #[test]
    fn what_is_no_time_stays_and_what_cannot_be_written_is_told() {
        for old in [
            "",
            "632525252525W",
            "000101010000W",
            "000040.777*kWh",
            "26112120000",
            "261121200000X",
            "0FFFFFFFFFFFFFFFFFFFFFFF",
        ] {
            assert_eq!(text(old, 1, days(1)), None, "{old}");
        }
        for (old, by) in [("070101010000W", -30), ("991231235959W", 1), ("261121200000W", 36_500)] {
            assert_eq!(text(old, 1, days(by)).as_deref(), Some("no room"), "{old}");
        }
    }

    #[test]
    fn dates_of_m_bus_keep_what_else_is_in_their_bits() {
        for (old, by, new) in [
            // Type G: 31 October 2025; rounded down.
            (&[0x3F, 0x3A][..], days(1), Some(&[0x21, 0x3B][..])),
            (&[0x3F, 0x3A], SignedDuration::from_hours(23), Some(&[0x3F, 0x3A])),
            (&[0x3F, 0x3A], SignedDuration::from_hours(-1), Some(&[0x3E, 0x3A])),
            // Type F: 2026-11-21 20:15, in summer time by its bit.
            (&[0x0F, 0x94, 0x55, 0x3B], days(-21), Some(&[0x0F, 0x94, 0x5F, 0x3A])),
            // Type I: with a day of the week and a number of the week.
            (&[0x1E, 0x0F, 0xD4, 0x55, 0x3B, 0x2F], days(2), Some(&[0x1E, 0x0F, 0x34, 0x57, 0x3B, 0x30])),
            (&[0x1E, 0x0F, 0x14, 0x55, 0x3B, 0x00], days(2), Some(&[0x1E, 0x0F, 0x14, 0x57, 0x3B, 0x00])),
            // Type J, each year, not set.
            (&[0x1E, 0x0F, 0x14], days(1), None),
            (&[0xFF, 0xFC], days(1), None),
            (&[0xFF, 0xFF], days(1), None),
        ] {
            let moved = mbus(old, by).map(Result::unwrap);
            assert_eq!(moved.as_deref(), new, "{old:02X?}");
            if let Some(new) = moved {
                assert!(value::date(&new).is_some());
            }
        }
        assert_eq!(mbus(&[0x55, 0x3B], days(365 * 60)), Some(Err(NoRoom)));
    }
}
