//! What the bytes of a record say: numbers, texts, dates.
//!
//! Enters: a record's data and its coding. Leaves: a [`Value`]; dates and times by [`date`]. Numbers are exact:
//! what no number is (error digits, a real that is none, more digits than [`Decimal`] holds) is said to be none.
//!
//! Source: EN 13757-3:2018, annex A: types A (BCD), B and C (binary), F, G, I, J (dates and times), H (real);
//! LVAR by its table 5. All bytes here are lowest first.

use super::{real, record::Coding};
use crate::{moment::Civil, unit::Decimal};

/// What a record holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Nothing: the record has no data.
    Nothing,
    /// A number, in the steps of the unit.
    Number(Decimal),
    /// Not a number: BCD with a digit beyond 9, a real that is infinite or none.
    NotANumber,
    /// A number of more than 18 digits.
    TooLong,
    /// Text, in reading order. In ISO 8859-1.
    Text(Vec<u8>),
    /// Bytes in the order of the wire.
    Bytes(Vec<u8>),
}

/// Length of the data behind the first byte of a variable length; None for one that is reserved.
pub(super) const fn variable_length(first: u8) -> Option<usize> {
    Some(match first {
        0x00..=0xBF => first as usize,
        0xC0..=0xC9 | 0xD0..=0xD9 | 0xE0..=0xEF => (first & 0x0F) as usize,
        0xF0..=0xF4 => (first as usize & 7).saturating_add(4).saturating_mul(4),
        0xF5 => 48,
        0xF6 => 64,
        _ => return None,
    })
}

pub(super) fn read(coding: Coding, data: &[u8], signed: bool) -> Value {
    match coding {
        Coding::Nothing | Coding::Selection => Value::Nothing,
        Coding::Binary(_) => binary(data, signed),
        Coding::Bcd(_) => bcd(data, false),
        Coding::Real => match data.first_chunk() {
            Some(bytes) => real::shortest(*bytes),
            None => Value::NotANumber,
        },
        Coding::Variable => match data.split_first() {
            None => Value::Nothing,
            Some((0x00..=0xBF, text)) => Value::Text(text.iter().rev().copied().collect()),
            Some((0xC0..=0xC9, digits)) => bcd(digits, false),
            Some((0xD0..=0xD9, digits)) => bcd(digits, true),
            Some((0xE1..=0xE8, number)) => binary(number, signed),
            // Longer than any number is: a key, or a manufacturer's block.
            Some((_, bytes)) => Value::Bytes(bytes.to_vec()),
        },
    }
}

/// Types B and C: at most eight bytes, lowest first; two's complement where `signed`.
fn binary(data: &[u8], signed: bool) -> Value {
    let negative = signed && data.last().is_some_and(|highest| highest & 0x80 != 0);
    let mut bytes = [if negative { 0xFF } else { 0 }; 8];
    for (byte, sent) in bytes.iter_mut().zip(data) {
        *byte = *sent;
    }
    let number = if signed { Some(i64::from_le_bytes(bytes)) } else { i64::try_from(u64::from_le_bytes(bytes)).ok() };
    number.and_then(Decimal::whole).map_or(Value::TooLong, Value::Number)
}

/// Type A: two digits a byte, lowest first. A highest digit F is a minus sign.
fn bcd(data: &[u8], negative: bool) -> Value {
    let mut number = 0i64;
    let mut negative = negative;
    for (index, byte) in data.iter().rev().enumerate() {
        for (half, digit) in [byte >> 4, byte & 0x0F].into_iter().enumerate() {
            if digit == 0xF && (index, half) == (0, 0) {
                negative = true;
                continue;
            }
            if digit > 9 {
                return Value::NotANumber;
            }
            number = match number.checked_mul(10).and_then(|number| number.checked_add(i64::from(digit))) {
                Some(number) => number,
                None => return Value::TooLong,
            };
        }
    }
    let number = if negative { number.wrapping_neg() } else { number };
    Decimal::whole(number).map_or(Value::TooLong, Value::Number)
}

/// A date, a time, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Date {
    /// Type G: a day.
    Day {
        /// Full year.
        year: i16,
        /// 1..=12.
        month: i8,
        /// 1..=31.
        day: i8,
    },
    /// Types F and I: a day and a time.
    Time {
        /// What the clock showed.
        clock: Civil,
        /// Whether that was summer time.
        summer: bool,
    },
    /// Type J: a time of day.
    OfDay {
        /// 0..=23.
        hour: i8,
        /// 0..=59.
        minute: i8,
        /// 0..=59.
        second: i8,
    },
    /// A date that comes again (`every month on day 1`): each None stands for every.
    Every {
        /// Full year.
        year: Option<i16>,
        /// 1..=12.
        month: Option<i8>,
        /// 1..=31.
        day: Option<i8>,
        /// 0..=23; `Some(0)` where the form has no time.
        hour: Option<i8>,
        /// 0..=59; `Some(0)` where the form has no time.
        minute: Option<i8>,
    },
    /// Marked as invalid, or no date of any calendar.
    NotSet,
}

/// Reads a date of two (G), three (J), four (F) or six (I) bytes; None for another length.
///
/// A year up to 80 is of this century, as long as the two bits for the century are zero.
pub fn date(data: &[u8]) -> Option<Date> {
    Some(match *data {
        [low, high] => {
            if (low, high) == (0xFF, 0xFF) || (low, high) == (0, 0) {
                return Some(Date::NotSet);
            }
            let (year, month, day) = calendar(low, high, 0);
            match (year, month, day) {
                (Some(year), Some(month @ 1..=12), Some(day)) => Date::Day { year, month, day },
                (_, Some(0 | 13..), _) => Date::NotSet,
                (year, month, day) => Date::Every { year, month, day, hour: Some(0), minute: Some(0) },
            }
        }
        [second, minute, hour] => {
            let (hour, minute, second) = (hour & 0x1F, minute & 0x3F, second & 0x3F);
            if hour > 23 || minute > 59 || second > 59 {
                return Some(Date::NotSet);
            }
            Date::OfDay { hour: hour as i8, minute: minute as i8, second: second as i8 }
        }
        [minute, hour, low, high] => {
            let invalid = minute & 0x80 != 0;
            time(invalid, (low, high, hour >> 5 & 3), hour & 0x1F, minute & 0x3F, 0, hour & 0x80 != 0)
        }
        [second, minute, hour, low, high, _week] => {
            let invalid = minute & 0x80 != 0;
            time(invalid, (low, high, 0), hour & 0x1F, minute & 0x3F, second & 0x3F, second & 0x40 != 0)
        }
        _ => return None,
    })
}

fn time(invalid: bool, day: (u8, u8, u8), hour: u8, minute: u8, second: u8, summer: bool) -> Date {
    if invalid || (day.0, day.1) == (0xFF, 0xFF) {
        return Date::NotSet;
    }
    let (year, month, day) = calendar(day.0, day.1, day.2);
    let every = |value: u8, most: u8, every: u8| match value {
        value if value <= most => Some(Some(value as i8)),
        value if value == every => Some(None),
        _ => None,
    };
    let (Some(hour), Some(minute)) = (every(hour, 23, 31), every(minute, 59, 63)) else { return Date::NotSet };
    match (year, month, day, hour, minute) {
        (_, Some(0 | 13..), ..) => Date::NotSet,
        (Some(year), Some(month), Some(day), Some(hour), Some(minute)) if second < 60 => {
            Date::Time { clock: Civil { year, month, day, hour, minute, second: second as i8 }, summer }
        }
        (Some(_), Some(_), Some(_), Some(_), Some(_)) => Date::NotSet,
        (year, month, day, hour, minute) => Date::Every { year, month, day, hour, minute },
    }
}

/// Day: lower five bits, 0 for every; month: four bits, 15 for every; year: the upper bits of both bytes, 127
/// for every.
fn calendar(low: u8, high: u8, century: u8) -> (Option<i16>, Option<i8>, Option<i8>) {
    let year = low >> 5 | high >> 4 << 3;
    let year = match (i16::from(year), century) {
        (127, _) => None,
        (year @ ..=80, 0) => Some(year.wrapping_add(2000)),
        (year, century) => Some(year.wrapping_add(1900).wrapping_add(i16::from(century).wrapping_mul(100))),
    };
    let month = Some(high & 0x0F).filter(|month| *month != 15).map(|month| month as i8);
    let day = Some(low & 0x1F).filter(|day| *day != 0).map(|day| day as i8);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(coding: Coding, data: &[u8], signed: bool) -> String {
        match read(coding, data, signed) {
            Value::Number(number) => number.to_string(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn numbers_are_read_exactly() {
        for (coding, data, signed, value) in [
            (Coding::Binary(1), &[0xFF][..], true, "-1"),
            (Coding::Binary(1), &[0xFF], false, "255"),
            (Coding::Binary(3), &[0x00, 0x00, 0x80], true, "-8388608"),
            (Coding::Binary(6), &[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F], true, "140737488355327"),
            (Coding::Binary(8), &[0xFF; 8], true, "-1"),
            (Coding::Binary(8), &[0xFF; 8], false, "TooLong"),
            (Coding::Binary(8), &[0, 0, 0, 0, 0, 0, 0, 0x80], true, "TooLong"),
            (Coding::Bcd(4), &[0x78, 0x56, 0x34, 0x12], true, "12345678"),
            (Coding::Bcd(2), &[0x34, 0xF2], true, "-234"),
            (Coding::Bcd(2), &[0xF4, 0x12], true, "NotANumber"),
            (Coding::Bcd(3), &[0xBD, 0xEB, 0xDD], true, "NotANumber"),
            (Coding::Bcd(6), &[0x99; 6], true, "999999999999"),
            (Coding::Variable, &[0xC2, 0x34, 0x12], true, "1234"),
            (Coding::Variable, &[0xD2, 0x34, 0x12], true, "-1234"),
            (Coding::Variable, &[0xC9, 9, 9, 9, 9, 9, 9, 9, 9, 9], true, "90909090909090909"),
            (Coding::Variable, &[0xC0], true, "0"),
            (Coding::Variable, &[0xE2, 0x01, 0x80], true, "-32767"),
            (Coding::Variable, &[0xE2, 0x01, 0x80], false, "32769"),
            (Coding::Real, &[0, 0, 0xC0, 0x3F], true, "1.5"),
            (Coding::Real, &[0xCD, 0xCC, 0xCC, 0xBD], true, "-0.1"),
            (Coding::Real, &[0, 0, 0x80, 0x7F], true, "NotANumber"),
            (Coding::Real, &[0, 0, 0xC0, 0x7F], true, "NotANumber"),
            (Coding::Real, &[0xFF, 0xFF, 0x7F, 0x7F], true, "TooLong"),
            (Coding::Real, &[0, 0, 0, 0x80], true, "0"),
        ] {
            assert_eq!(number(coding, data, signed), value, "{coding:?} {data:02X?}");
        }
        assert_eq!(read(Coding::Variable, &[3, b'c', b'b', b'a'], true), Value::Text(b"abc".to_vec()));
        assert_eq!(read(Coding::Variable, &[0xE9, 1, 2, 3, 4, 5, 6, 7, 8, 9], true), Value::Bytes((1..=9).collect()));
    }

    #[test]
    fn dates_are_read_with_their_marks() {
        let day = |year, month, day| Date::Day { year, month, day };
        let clock = |year, month, day, hour, minute, second| Civil { year, month, day, hour, minute, second };
        for (data, date) in [
            (&[0xBF, 0x1C][..], day(2013, 12, 31)),
            (&[0x1C, 0x38], day(2024, 8, 28)),
            (&[0xFF, 0xFF], Date::NotSet),
            (&[0x00, 0x00], Date::NotSet),
            (&[0x21, 0xA1], day(1981, 1, 1)),
            (&[0x01, 0x1D], Date::NotSet),
            (&[0xE0, 0xFF], Date::Every { year: None, month: None, day: None, hour: Some(0), minute: Some(0) }),
            (&[0xE1, 0xF7], Date::Every { year: None, month: Some(7), day: Some(1), hour: Some(0), minute: Some(0) }),
            (&[0x17, 0x2E, 0xCC, 0x13], Date::Time { clock: clock(2014, 3, 12, 14, 23, 0), summer: false }),
            (&[0x97, 0x2E, 0xCC, 0x13], Date::NotSet),
            (&[0x17, 0x8E, 0xCC, 0x13], Date::Time { clock: clock(2014, 3, 12, 14, 23, 0), summer: true }),
            (&[0x3B, 0x17, 0x9F, 0x1C], Date::Time { clock: clock(2012, 12, 31, 23, 59, 0), summer: false }),
            (&[0x3B, 0x37, 0x9F, 0x1C], Date::Time { clock: clock(2012, 12, 31, 23, 59, 0), summer: false }),
            (&[0x3F, 0x1F, 0xE0, 0xFF], Date::Every { year: None, month: None, day: None, hour: None, minute: None }),
            (&[0x3C, 0x17, 0x9F, 0x1C], Date::NotSet),
            (
                &[0x5E, 0x3B, 0x77, 0x9F, 0x1C, 0x34],
                Date::Time { clock: clock(2012, 12, 31, 23, 59, 30), summer: true },
            ),
            (&[0x1E, 0xBB, 0x17, 0x9F, 0x1C, 0x34], Date::NotSet),
            (&[0x1E, 0x3B, 0x17], Date::OfDay { hour: 23, minute: 59, second: 30 }),
            (&[0x1E, 0x3B, 0x1F], Date::NotSet),
        ] {
            assert_eq!(super::date(data), Some(date), "{data:02X?}");
        }
        assert_eq!(super::date(&[1]), None);
    }
}
