//! OBIS codes (IEC 62056-61 / EN 13757-1): the names of registers on the wire.
//!
//! Enters: a P1 line. Leaves: the [`Obis`] before its first bracket.
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

    /// Reads the code before the first bracket of a line; returns it with its length. None when the
    /// line does not begin with one.
    #[inline]
    pub fn parse(line: &[u8]) -> Option<(Self, usize)> {
        let (a, b'-', rest) = group(line)? else { return None };
        let (b, b':', rest) = group(rest)? else { return None };
        let (c, b'.' | b':', rest) = group(rest)? else { return None };
        let (d, b'.', rest) = group(rest)? else { return None };
        let (e, end, rest) = group(rest)?;
        let (f, end, rest) = if let b'*' | b'.' = end { group(rest)? } else { (255, end, rest) };
        // The bracket is not in the rest any more.
        (end == b'(').then(|| (Self { a, b, c, d, e, f }, line.len().saturating_sub(rest.len()).saturating_sub(1)))
    }
}

/// One group: one to three decimal digits, at most 255, the byte that ends it, and the rest.
#[inline]
fn group(text: &[u8]) -> Option<(u8, u8, &[u8])> {
    let digit = |byte: u8| Some(byte.wrapping_sub(b'0')).filter(|&digit| digit <= 9);
    let [first, end, rest @ ..] = text else { return None };
    let first = digit(*first)?;
    let Some(second) = digit(*end) else { return Some((first, *end, rest)) };
    let [end, rest @ ..] = rest else { return None };
    let value = first.wrapping_mul(10).wrapping_add(second);
    let Some(third) = digit(*end) else { return Some((value, *end, rest)) };
    let [end, rest @ ..] = rest else { return None };
    Some((value.checked_mul(10)?.checked_add(third)?, *end, rest))
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
            assert_eq!(Obis::parse(text.as_bytes()), Some((code, text.len() - 1)), "{text}");
        }
        assert_eq!(Obis::parse(b"1-0:1.8.0*12(3)").unwrap().0.to_string(), "1-0:1.8.0*12");
    }

    #[test]
    fn refuses_what_is_no_code() {
        for text in [
            "",
            "1.8.1(",
            "1-0:!.8.1(",
            "256-0:1.8.1(",
            "0001-0:1.8.1(",
            "1-0:1.8.0001(",
            "1-0:1.8(",
            "1-0:1.8.0",
            "1-0:1.8.0*1.2(",
            "1-0:1.8.1 (",
            "(00124.477)",
        ] {
            assert_eq!(Obis::parse(text.as_bytes()), None, "{text}");
        }
    }
}
