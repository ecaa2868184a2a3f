//! OBIS codes (IEC 62056-61 / EN 13757-1): the names of registers on the wire.
//!
//! Enters: the text before the first bracket of a P1 line. Leaves: an [`Obis`] and where it ended.
//! A code is `A-B:C.D.E`, sometimes with `*F`, or with `.F` as DSMR 4.2.2 prints it. Some DSMR 4.0 meters
//! write a colon for the first dot (`1-0:99:97.0`); all read as the same code.
//!
//! Not supported: reduced codes without medium and channel (`1.8.1`), as IEC 62056-21 readers send.

use std::fmt;

/// An OBIS code. Each group is one byte; `f` is 255 when it was not written, as the standard has it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Obis {
    /// Medium: 0 abstract, 1 electricity, 7 gas.
    pub a: u8,
    /// Channel: 0 the meter itself, 1..4 a slave meter behind it.
    pub b: u8,
    /// Quantity.
    pub c: u8,
    /// Processing.
    pub d: u8,
    /// Tariff or rate.
    pub e: u8,
    /// Storage; 255 when not written.
    pub f: u8,
}

impl Obis {
    /// `a-b:c.d.e` with no storage group.
    pub const fn new(a: u8, b: u8, c: u8, d: u8, e: u8) -> Self {
        Self { a, b, c, d, e, f: 255 }
    }

    /// Reads a code at the start of `text`; returns it with the rest. None when there is none.
    #[inline]
    pub fn parse_prefix(text: &[u8]) -> Option<(Self, &[u8])> {
        let (a, text) = group(text)?;
        let (b, text) = group(text.strip_prefix(b"-")?)?;
        let (c, text) = group(text.strip_prefix(b":")?)?;
        let (d, text) = group(text.strip_prefix(b".").or_else(|| text.strip_prefix(b":"))?)?;
        let (e, text) = group(text.strip_prefix(b".")?)?;
        let (f, text) = match text {
            [b'*' | b'.', text @ ..] => group(text)?,
            text => (255, text),
        };
        // A fourth digit.
        if let [b'0'..=b'9', ..] = text {
            return None;
        }
        Some((Self { a, b, c, d, e, f }, text))
    }

    /// The six groups as one number, most significant first, for tables.
    pub const fn key(self) -> u64 {
        u64::from_be_bytes([0, 0, self.a, self.b, self.c, self.d, self.e, self.f])
    }
}

/// One group: one to three decimal digits, at most 255.
#[inline]
fn group(text: &[u8]) -> Option<(u8, &[u8])> {
    let (first, rest) = digit(text)?;
    let Some((second, rest)) = digit(rest) else { return Some((first, rest)) };
    let value = first.wrapping_mul(10).wrapping_add(second);
    let Some((third, rest)) = digit(rest) else { return Some((value, rest)) };
    Some((value.checked_mul(10)?.checked_add(third)?, rest))
}

#[inline]
fn digit(text: &[u8]) -> Option<(u8, &[u8])> {
    match text {
        [digit @ b'0'..=b'9', rest @ ..] => Some((digit.wrapping_sub(b'0'), rest)),
        _ => None,
    }
}

impl fmt::Display for Obis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}:{}.{}.{}", self.a, self.b, self.c, self.d, self.e)?;
        if self.f != 255 {
            write!(f, "*{}", self.f)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Obis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_forms_of_the_field() {
        for (text, code) in [
            ("1-0:1.8.1(", Obis::new(1, 0, 1, 8, 1)),
            ("0-1:24.2.1(", Obis::new(0, 1, 24, 2, 1)),
            ("1-0:99:97.0(", Obis::new(1, 0, 99, 97, 0)),
            ("1-0:1.8.0*255(", Obis::new(1, 0, 1, 8, 0)),
            ("1-0:21.7.0.255(", Obis::new(1, 0, 21, 7, 0)),
        ] {
            assert_eq!(Obis::parse_prefix(text.as_bytes()), Some((code, &b"("[..])), "{text}");
        }
        assert_eq!(Obis::parse_prefix(b"1-0:1.8.0*12").unwrap().0.to_string(), "1-0:1.8.0*12");
    }

    #[test]
    fn refuses_what_is_no_code() {
        for text in ["", "1.8.1(", "1-0:!.8.1", "256-0:1.8.1", "0001-0:1.8.1", "1-0:1.8.0001", "1-0:1.8", "(00124.477)"]
        {
            assert_eq!(Obis::parse_prefix(text.as_bytes()), None, "{text}");
        }
    }
}
