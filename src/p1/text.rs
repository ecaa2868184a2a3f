//! The small forms inside the brackets of a line: clocks, hex texts, values.

use std::fmt::Write as _;

use crate::{
    moment::{Civil, Moment},
    unit::Decimal,
};

/// A meter clock, `YYMMDDhhmmssX`: X is S in summer (UTC+2) and W in winter (UTC+1). Without the letter
/// (v2 and v3) the time is central European by the rule. None for what no set clock shows.
pub(super) fn clock(text: &[u8]) -> Option<Moment> {
    // Meters with a P1 port exist since 2007: an earlier year is a clock that was never set.
    const FIRST_YEAR: i16 = 2007;
    let (digits, letter) = text.split_first_chunk::<12>()?;
    let civil = Civil::from_digits(digits).filter(|civil| civil.year >= FIRST_YEAR)?;
    match letter {
        b"S" => Moment::from_civil(civil, 2),
        b"W" => Moment::from_civil(civil, 1),
        b"" => Moment::from_central_european(civil),
        _ => None,
    }
}

/// A text sent as pairs of hex digits; what is not such a text, or not printable ASCII, stays as sent.
pub(super) fn from_hex(text: &[u8]) -> String {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => byte.wrapping_sub(b'0'),
        b'A'..=b'F' => byte.wrapping_sub(b'A' - 10),
        b'a'..=b'f' => byte.wrapping_sub(b'a' - 10),
        // Neither half of a printable byte.
        _ => u8::MAX,
    };
    let decode = || {
        let (pairs, []) = text.as_chunks::<2>() else { return None };
        let mut decoded = String::with_capacity(pairs.len());
        for &[high, low] in pairs {
            let byte = digit(high).checked_mul(16)? | digit(low);
            if !matches!(byte, b' '..=b'~') {
                return None;
            }
            decoded.push(char::from(byte));
        }
        Some(decoded)
    };
    decode().unwrap_or_else(|| printable(text))
}

/// A text to be read by people: printable ASCII as it is, every other byte as `\xNN`. A backslash stays
/// single, because nearly every header holds one.
pub(super) fn printable(text: &[u8]) -> String {
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
pub(super) fn identifier(text: &[u8]) -> Option<String> {
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

/// `value*unit` or `value`, where the unit may be empty.
pub(super) fn value_and_unit(text: &[u8]) -> Option<(Decimal, &[u8])> {
    match Decimal::parse_prefix(text)? {
        (value, []) => Some((value, b"")),
        (value, [b'*', unit @ ..]) => Some((value, unit)),
        _ => None,
    }
}

/// The contents of the brackets of a line, with line ends between them passed over. An item is None,
/// and the last, where the brackets do not match.
pub(super) fn brackets(text: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
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
            let (item, tail) = inside.split_at_checked(inside.iter().position(|&byte| byte == b')')?)?;
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
pub(super) fn inside(text: &[u8]) -> Option<&[u8]> {
    text.strip_prefix(b"(")?.strip_suffix(b")")
}

/// What stands in the only bracket of a line.
pub(super) fn single(text: &[u8]) -> Option<&[u8]> {
    inside(text).filter(|text| memchr::memchr2(b'(', b')', text).is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_were_never_set_have_no_time() {
        for text in
            ["632525252525W", "35255255255255255S", "000101010000W", "000000000000W", "", "2611212000", "261121200000X"]
        {
            assert_eq!(clock(text.as_bytes()), None, "{text}");
        }
        assert_eq!(clock(b"260714120003S").unwrap().to_string(), "2026-07-14T12:00:03+02:00");
        assert_eq!(clock(b"120517020000").unwrap().to_string(), "2012-05-17T02:00:00+02:00");
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
    }
}
