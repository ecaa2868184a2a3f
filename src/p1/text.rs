//! The small forms inside the brackets of a line: clocks, hex texts, values.

use std::fmt::Write as _;

use crate::{
    moment::{Civil, Moment},
    unit::Decimal,
};

/// What a bracket with a time in it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clock {
    /// A time.
    At(Moment),
    /// The form of a time, but none that a set clock shows.
    Unset,
    /// Something else.
    Other,
}

impl Clock {
    /// The time, if it is one.
    pub(crate) fn time(self) -> Option<Moment> {
        match self {
            Self::At(moment) => Some(moment),
            Self::Unset | Self::Other => None,
        }
    }
}

/// Meters with a P1 port exist since 2007: an earlier year is a clock that was never set.
const FIRST_YEAR: i16 = 2007;

/// A meter clock that stands `winter` hours east of UTC in winter: `YYMMDDhhmmssX`, where X is S in summer
/// (an hour more) and W in winter. Without the letter (DSMR 2 and 3, Wallonia) the time follows the European
/// rule. Or twelve octets of a COSEM date-time (IEC 62056-6-2) as hex digits.
pub(crate) fn clock(text: &[u8], winter: i8) -> Clock {
    let usual = text.split_first_chunk::<12>().and_then(|(digits, letter)| Some((Civil::from_digits(digits)?, letter)));
    let moment = match usual {
        Some((civil, b"S" | b"W" | b"")) if civil.year < FIRST_YEAR => None,
        Some((civil, b"W")) => Moment::from_civil(civil, winter),
        Some((civil, b"S")) => Moment::from_civil(civil, winter.saturating_add(1)),
        Some((civil, b"")) => Moment::from_european(civil, winter),
        _ => return unset_or_other(text, winter),
    };
    moment.map_or(Clock::Unset, Clock::At)
}

/// A time in another form than twelve digits and a letter.
fn unset_or_other(text: &[u8], winter: i8) -> Clock {
    if let Ok(hex) = <&[u8; 24]>::try_from(text) {
        return date_time(hex, winter);
    }
    match text {
        // As long as no set clock is: 35255255255255255S.
        [digits @ .., b'S' | b'W'] if digits.len() >= 12 && digits.iter().all(u8::is_ascii_digit) => Clock::Unset,
        _ => Clock::Other,
    }
}

/// A COSEM date-time: year (2), month, day, day of week, hour, minute, second, hundredths, deviation (2),
/// status. The deviation is in minutes, by the standard from local time to UTC, by some meters the other way
/// round; no meter that sends it stands west of Greenwich. 0x8000 is none: then the European rule holds.
fn date_time(hex: &[u8; 24], winter: i8) -> Clock {
    let mut octets = [0u8; 12];
    for (octet, &[high, low]) in octets.iter_mut().zip(hex.as_chunks::<2>().0) {
        let (high, low) = (hex_digit(high), hex_digit(low));
        if high > 15 || low > 15 {
            return Clock::Other;
        }
        *octet = high << 4 | low;
    }
    let [year_high, year_low, month, day, _, hour, minute, second, _, deviation_high, deviation_low, _] = octets;
    let field = |octet: u8| i8::try_from(octet).unwrap_or(i8::MAX);
    let civil = Civil {
        year: i16::from_be_bytes([year_high, year_low]),
        month: field(month),
        day: field(day),
        hour: field(hour),
        minute: field(minute),
        second: field(second),
    };
    let deviation = i16::from_be_bytes([deviation_high, deviation_low]);
    let moment = if civil.year < FIRST_YEAR {
        None
    } else if deviation == i16::MIN {
        Moment::from_european(civil, winter)
    } else {
        i8::try_from(deviation.unsigned_abs() / 60).ok().and_then(|hours| Moment::from_civil(civil, hours))
    };
    moment.map_or(Clock::Unset, Clock::At)
}

/// The value of a hex digit, or 255.
#[inline]
fn hex_digit(byte: u8) -> u8 {
    #[expect(clippy::indexing_slicing, reason = "runs in the compiler, where it is an error")]
    const VALUES: [u8; 256] = {
        let mut values = [u8::MAX; 256];
        let (mut digit, digits) = (0u8, b"0123456789ABCDEFabcdef");
        while (digit as usize) < digits.len() {
            values[digits[digit as usize] as usize] = if digit < 16 { digit } else { digit - 6 };
            digit += 1;
        }
        values
    };
    VALUES.get(usize::from(byte)).copied().unwrap_or(u8::MAX)
}

/// A text sent as pairs of hex digits; what is not such a text, or not printable ASCII, stays as sent.
pub(crate) fn from_hex(text: &[u8]) -> String {
    printable_from_hex(text).unwrap_or_else(|| printable(text))
}

fn printable_from_hex(text: &[u8]) -> Option<String> {
    let (pairs, []) = text.as_chunks::<2>() else { return None };
    // What is no digit is 255, and sets bits of this; so does what is not printable.
    let mut doubt = 0;
    let decoded = pairs
        .iter()
        .map(|&[high, low]| {
            let (high, low) = (hex_digit(high), hex_digit(low));
            let byte = high.wrapping_shl(4) | low;
            doubt |= (high | low) & 0xF0 | u8::from(byte.wrapping_sub(b' ') > b'~' - b' ');
            byte
        })
        .collect();
    String::from_utf8(decoded).ok().filter(|_| doubt == 0)
}

/// A text to be read by people: printable ASCII as it is, every other byte as `\xNN`. A backslash stays
/// single, because nearly every header holds one.
pub(crate) fn printable(text: &[u8]) -> String {
    if text.iter().all(|byte| matches!(byte, b' '..=b'~')) {
        return String::from_utf8_lossy(text).into_owned();
    }
    let mut shown = String::with_capacity(text.len());
    for &byte in text {
        match byte {
            b' '..=b'~' => shown.push(char::from(byte)),
            // Writing to a String cannot fail.
            _ => drop(write!(shown, "\\x{byte:02x}")),
        }
    }
    shown
}

/// An identifier: a hex text without the spaces around it. None when nothing is left.
pub(crate) fn identifier(text: &[u8]) -> Option<String> {
    let decoded = from_hex(text);
    let trimmed = decoded.trim_matches(' ');
    if trimmed.is_empty() {
        None
    } else if trimmed.len() == decoded.len() {
        Some(decoded)
    } else {
        Some(trimmed.to_owned())
    }
}

/// `value*unit` or `value`, where the unit may be empty; also `valueunit`, as some meters send it.
pub(crate) fn value_and_unit(text: &[u8]) -> Option<(Decimal, &[u8])> {
    match Decimal::parse_prefix(text)? {
        (value, []) => Some((value, b"")),
        (value, [b'*', unit @ ..]) => Some((value, unit)),
        (value, unit @ [b'a'..=b'z' | b'A'..=b'Z', ..]) => Some((value, unit)),
        _ => None,
    }
}

/// Whether a bracket that should hold a value holds none: `` or `*unit`.
pub(crate) fn is_empty_value(text: &[u8]) -> bool {
    matches!(text, [] | [b'*', ..])
}

/// The contents of the brackets of a line, with line ends between them passed over. An item is None,
/// and the last, where the brackets do not match.
pub(crate) fn brackets(text: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        while let [b'\r' | b'\n', tail @ ..] = rest {
            rest = tail;
        }
        if rest.is_empty() {
            return None;
        }
        let item = || {
            let inside = rest.strip_prefix(b"(")?;
            let (item, tail) = inside.split_at_checked(memchr::memchr(b')', inside)?)?;
            Some((item, tail.split_first()?.1))
        };
        match item() {
            Some((item, tail)) => {
                rest = tail;
                Some(Some(item))
            }
            None => {
                rest = b"";
                Some(None)
            }
        }
    })
}

/// What stands between the first bracket and the last.
pub(crate) fn inside(text: &[u8]) -> Option<&[u8]> {
    text.strip_prefix(b"(")?.strip_suffix(b")")
}

/// What stands in the only bracket of a line.
pub(crate) fn single(text: &[u8]) -> Option<&[u8]> {
    inside(text).filter(|text| memchr::memchr2(b'(', b')', text).is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_were_never_set_have_no_time() {
        for text in ["632525252525W", "35255255255255255S", "000101010000W", "000000000000W", "632525252525"] {
            assert_eq!(clock(text.as_bytes(), 1), Clock::Unset, "{text}");
        }
        for text in ["", "2611212000", "261121200000X", "noon", "W", "1-0:1.6.0"] {
            assert_eq!(clock(text.as_bytes(), 1), Clock::Other, "{text}");
        }
    }

    #[test]
    fn clocks_say_the_time_of_their_country() {
        for (text, winter, shown) in [
            ("260714120003S", 1, "2026-07-14T12:00:03+02:00"),
            ("260714120003W", 1, "2026-07-14T12:00:03+01:00"),
            ("260714120003S", 2, "2026-07-14T12:00:03+03:00"),
            ("120517020000", 1, "2012-05-17T02:00:00+02:00"),
            ("260214120000", 2, "2026-02-14T12:00:00+02:00"),
            // COSEM: 2 hours either way, none.
            ("07EA080B0208151900007880", 1, "2026-08-11T08:21:25+02:00"),
            ("07ea080b02081519 00ff8880", 1, ""),
            ("07EA080B020815190000788Z", 1, ""),
            ("07EA080B020815190AFF8880", 1, "2026-08-11T08:21:25+02:00"),
            ("07EA020B0208151900800000", 1, "2026-02-11T08:21:25+01:00"),
        ] {
            let shows = clock(text.as_bytes(), winter).time().map(|moment| moment.to_string());
            assert_eq!(shows.unwrap_or_default(), shown, "{text}");
        }
    }

    #[test]
    fn identifiers_are_decoded_only_when_they_are_text() {
        assert_eq!(identifier(b"4530303433"), Some("E0043".into()));
        assert_eq!(identifier(b"621848012D2C0B0C"), Some("621848012D2C0B0C".into()));
        assert_eq!(identifier(b"ADC3100000158491"), Some("ADC3100000158491".into()));
        assert_eq!(identifier(b"20204520"), Some("E".into()));
        assert_eq!(identifier(b"2020"), None);
        assert_eq!(identifier(b""), None);
        assert_eq!(identifier(b"HEAT\xb3"), Some("HEAT\\xb3".into()));
    }

    #[test]
    fn every_pair_of_digits_is_decoded() {
        for high in 0..=u8::MAX {
            for low in 0..=u8::MAX {
                let byte = match (char::from(high).to_digit(16), char::from(low).to_digit(16)) {
                    (Some(high), Some(low)) => {
                        char::from_u32(high * 16 + low).filter(|char| (' '..='~').contains(char))
                    }
                    _ => None,
                };
                let decoded = printable_from_hex(&[b'4', b'1', high, low]);
                assert_eq!(decoded, byte.map(|char| format!("A{char}")), "{high} {low}");
            }
        }
    }

    #[test]
    fn texts_keep_their_backslash() {
        assert_eq!(from_hex(b"a\\b\xff"), "a\\b\\xff");
        assert_eq!(printable(b"ISk5\\2M\x1b"), "ISk5\\2M\\x1b");
    }

    #[test]
    fn brackets_must_match() {
        let list =
            |text: &'static [u8]| brackets(text).map(|item| item.map(|bytes| bytes.to_vec())).collect::<Vec<_>>();
        assert_eq!(list(b"(a)()\r\n(b)"), [Some(b"a".to_vec()), Some(b"".to_vec()), Some(b"b".to_vec())]);
        assert_eq!(list(b"(a)b"), [Some(b"a".to_vec()), None]);
        assert_eq!(list(b"(a"), [None]);
        assert_eq!(single(b"(a)"), Some(&b"a"[..]));
        assert_eq!(single(b"(a)(b)"), None);
        assert_eq!(single(b"(a\r\n(b)"), None);
    }
}
