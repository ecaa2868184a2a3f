//! The names that were, and the search for them.
//!
//! A serial is the digits of a name. It is searched for as it may stand in bytes: as ASCII, as hex digits of ASCII, as BCD,
//! each forward and backward. One of fewer than six digits (zeros in front do not count) names too little to be told from any
//! other number, and is not searched for, unless it was written with eight digits or more, four of them its own.

use std::collections::{BTreeMap, BTreeSet};

/// Serials of meters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Serials {
    /// By their first six digits as a number.
    all: BTreeMap<u32, BTreeSet<Vec<u8>>>,
}

/// As many digits of a serial in a row are not found by chance, where no values are.
const TELLING: usize = 6;

impl Serials {
    /// The numbers in a name, as ASCII.
    pub fn add(&mut self, name: &[u8]) {
        for run in name.split(|byte| !byte.is_ascii_digit()) {
            let zeros = run.iter().take_while(|&&digit| digit == b'0').count();
            let significant = run.get(zeros..).unwrap_or_default();
            let serial = match significant.len() {
                TELLING.. => significant,
                4.. if run.len() >= 8 => run,
                _ => continue,
            };
            // All digits alike are a placeholder.
            if serial.iter().all(|digit| Some(digit) == serial.first()) {
                continue;
            }
            if let Some((_, begin)) = sixes(serial).next() {
                self.all.entry(begin).or_default().insert(serial.to_vec());
            }
        }
    }

    /// Takes in those of others.
    pub fn extend(&mut self, others: &Self) {
        for (begin, serials) in &others.all {
            self.all.entry(*begin).or_default().extend(serials.iter().cloned());
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.values().map(BTreeSet::len).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether one of them stands in these bytes, in any form.
    pub fn are_in(&self, bytes: &[u8]) -> bool {
        let stands = |digits: &[u8], at: usize, begin: u32| {
            let rest = digits.get(at..).unwrap_or_default();
            self.all.get(&begin).is_some_and(|serials| serials.iter().any(|serial| rest.starts_with(serial)))
        };
        !self.is_empty() && views(bytes).iter().any(|digits| sixes(digits).any(|(at, begin)| stands(digits, at, begin)))
    }

    /// Whether six digits in a row of one of them stand in these bytes, in any form. Three zeros in front tell too little.
    pub fn are_partly_in(&self, bytes: &[u8]) -> bool {
        let parts: BTreeSet<u32> =
            self.all.values().flatten().flat_map(|serial| sixes(serial)).map(|(_, six)| six).collect();
        let told = |(_, six): (usize, u32)| six > 999 && parts.contains(&six);
        !parts.is_empty() && views(bytes).iter().any(|digits| sixes(digits).any(told))
    }
}

/// Every six digits in a row as a number, and where they begin.
fn sixes(digits: &[u8]) -> impl Iterator<Item = (usize, u32)> {
    let (mut number, mut count) = (0u32, 0usize);
    digits.iter().enumerate().filter_map(move |(at, &digit)| {
        if !digit.is_ascii_digit() {
            count = 0;
            return None;
        }
        number = number % 100_000 * 10 + u32::from(digit - b'0');
        count += 1;
        (count >= TELLING).then(|| (at + 1 - TELLING, number))
    })
}

/// The digits in bytes by each way to read them; where there is none stands a blank.
fn views(bytes: &[u8]) -> Vec<Vec<u8>> {
    let digit = |byte: u8| if byte.is_ascii_digit() { byte } else { b' ' };
    let bcd = |byte: u8| [byte >> 4, byte & 0x0F].map(|half| if half < 10 { b'0' + half } else { b' ' });
    let mut views: Vec<Vec<u8>> = vec![
        bytes.iter().map(|&byte| digit(byte)).collect(),
        bytes.iter().copied().flat_map(bcd).collect(),
        bytes.iter().rev().copied().flat_map(bcd).collect(),
    ];
    // Hex digits of ASCII begin at either place.
    for from in [0, 1] {
        let pairs = bytes.get(from..).unwrap_or_default().as_chunks::<2>().0;
        let decoded = pairs.iter().map(|pair| match pair {
            [b'3', low @ b'0'..=b'9'] => *low,
            _ => b' ',
        });
        views.push(decoded.collect());
    }
    // Backwards: text of M-Bus has its last letter first.
    for at in [0, 3, 4] {
        let back: Option<Vec<u8>> = views.get(at).map(|view| view.iter().rev().copied().collect());
        views.extend(back);
    }
    views
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_is_found_in_each_form() {
        let mut serials = Serials::default();
        serials.add(b"ZABF 001587315111");
        assert_eq!(serials.len(), 1);
        for bytes in [
            &b"/KMP5 ZABF001587315111\r\n"[..],
            b"0-0:96.1.1(5A42313538373331353131312020)",
            b"x333135383733313531313120",
            &[0x01, 0x58, 0x73, 0x15, 0x11, 0x12],
            &[0x11, 0x11, 0x15, 0x73, 0x58, 0x01],
            b"1115137851FBAZ",
        ] {
            assert!(serials.are_in(bytes) && serials.are_partly_in(bytes), "{bytes:02X?}");
        }
        assert!(!serials.are_in(b"158731511"));
        assert!(serials.are_partly_in(b"0158731*kWh"));
        assert!(!serials.are_partly_in(b"15873 1511"));
    }

    #[test]
    fn what_names_too_little_is_not_searched_for() {
        let mut serials = Serials::default();
        for name in [&b"99417"[..], b"00000000000000", b"11111111", b"00000056", b"E1", b"", b"012345"] {
            serials.add(name);
        }
        assert!(serials.is_empty());
        serials.add(b"00032629");
        assert!(serials.are_in(&[0x29, 0x26, 0x03, 0x00]) && !serials.are_in(b"32629"));
    }
}
