//! What a meter complains of, in words of an installer.
//!
//! Enters: the status byte of the header, and bits of error flags. Leaves: text.
//!
//! Source: the status byte by EN 13757-3:2018, 5.8; the bits of manufacturers as the drivers of wmbusmeters have
//! them (they were collected from radio telegrams of the same meters). Bits without a row are shown as they are.

use std::fmt::Write as _;

use super::address::Secondary;

/// `ok`, or what is wrong, separated by `, `.
pub(crate) fn status(status: u8) -> String {
    let mut text = String::new();
    let mut add = |complaint: &str| {
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(complaint);
    };
    match status & 3 {
        0 => {}
        1 => add("busy"),
        2 => add("application error"),
        _ => add("alarm"),
    }
    for (bit, complaint) in [(0x04, "low battery"), (0x08, "permanent error"), (0x10, "temporary error")] {
        if status & bit != 0 {
            add(complaint);
        }
    }
    let own = status & 0xE0;
    if own != 0 {
        add(&format!("manufacturer's bits {own:#04x}"));
    }
    if text.is_empty() { "ok".to_owned() } else { text }
}

/// Which meters a table is of, and its bits.
struct Table {
    /// `error_flags`, or the value information of a manufacturer's own record.
    register: Register,
    manufacturer: &'static [u8; 3],
    media: &'static [u8],
    bits: &'static [(u32, &'static str)],
}

#[derive(PartialEq, Eq)]
enum Register {
    /// FD 17 of so many bytes.
    ErrorFlags(usize),
    /// A record of the manufacturer's: VIF FF and this VIFE.
    Own(u8),
}

const HEAT: &[u8] = &[0x04, 0x0C, 0x0D, 0x0A, 0x0B];
const WATER: &[u8] = &[0x06, 0x07, 0x15, 0x16];

const TABLES: [Table; 5] = [
    Table {
        register: Register::Own(0x22),
        manufacturer: b"KAM",
        media: HEAT,
        bits: &[
            (0, "supply interrupted"),
            (1, "low battery"),
            (3, "temperature sensor T1 above range or not connected"),
            (4, "temperature sensor T2 above range or not connected"),
            (5, "temperature sensor T1 below range or short circuit"),
            (6, "temperature sensor T2 below range or short circuit"),
            (7, "temperature sensors swapped"),
            (8, "flow sensor V1: weak signal or air"),
            (9, "flow sensor V1: wrong direction"),
            (11, "flow sensor V1: increased flow"),
            (12, "leak at input A1"),
            (13, "leak at input B1"),
            (14, "alarm at input A"),
            (15, "alarm at input B"),
            (16, "flow sensor V1: no communication"),
            (17, "flow sensor V1: wrong pulse figure"),
            (22, "flow sensor V2: no communication"),
            (23, "flow sensor V2: wrong pulse figure"),
            (24, "flow sensor V2: air"),
            (25, "flow sensor V2: wrong direction"),
        ],
    },
    Table {
        register: Register::Own(0x23),
        manufacturer: b"KAM",
        media: WATER,
        bits: &[
            (0, "dry"),
            (1, "reverse flow"),
            (2, "leak"),
            (3, "burst"),
            (4, "tampered with"),
            (5, "low battery"),
            (6, "low ambient temperature"),
            (7, "flow above Q4"),
            (9, "no consumption"),
        ],
    },
    Table {
        register: Register::ErrorFlags(2),
        manufacturer: b"KAM",
        media: HEAT,
        bits: &[
            (0, "supply interrupted"),
            (2, "temperature sensor T2"),
            (3, "temperature sensor T1"),
            (4, "flow sensor V1: no communication"),
            (5, "temperature sensor T3"),
            (6, "leak in the cold-water system"),
            (7, "flow sensor V2: wrong pulse figure"),
            (8, "leak in the heating system"),
            (9, "burst in the heating system"),
            (10, "flow sensor V2: no communication"),
            (11, "flow sensor V1: wrong pulse figure"),
            (12, "flow sensor V1: air"),
            (13, "flow sensor V2: air"),
            (14, "flow sensor V1: wrong direction"),
            (15, "flow sensor V2: wrong direction"),
        ],
    },
    Table {
        register: Register::ErrorFlags(1),
        manufacturer: b"EFE",
        media: &[0x04],
        bits: &[
            (0, "flow temperature sensor broken"),
            (1, "flow temperature sensor short circuit"),
            (2, "return temperature sensor broken"),
            (3, "return temperature sensor short circuit"),
            (4, "no flow sensor"),
            (5, "electronics defective"),
            (6, "was reset"),
            (7, "low battery"),
        ],
    },
    Table {
        register: Register::ErrorFlags(2),
        manufacturer: b"ZRI",
        media: WATER,
        bits: &[
            (1, "abnormal"),
            (2, "low battery"),
            (3, "permanent error"),
            (4, "temporary error"),
            (5, "was leaking"),
            (6, "tampered with"),
            (7, "was removed"),
            (8, "oversized"),
            (9, "undersized"),
            (10, "was blocked"),
            (11, "backflow"),
            (12, "was backflow"),
            (13, "leaking"),
            (14, "removed"),
            (15, "burst"),
        ],
    },
];

/// Error flags (FD 17), lowest byte first: their hex digits, and what is known of the bits.
pub(super) fn error_flags(meter: Option<Secondary>, data: &[u8]) -> String {
    bits(meter, &Register::ErrorFlags(data.len()), data).unwrap_or_else(|| hex(data))
}

/// The bits of a manufacturer's own record with VIF FF and this VIFE; None where they are not known.
pub(super) fn own_bits(meter: Option<Secondary>, vife: u8, data: &[u8]) -> Option<String> {
    bits(meter, &Register::Own(vife), data)
}

fn bits(meter: Option<Secondary>, register: &Register, data: &[u8]) -> Option<String> {
    let meter = meter?;
    let letters = meter.manufacturer.letters()?;
    let table = TABLES.iter().find(|table| {
        table.register == *register && *table.manufacturer == letters && table.media.contains(&meter.medium)
    })?;
    let mut number = data.iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    let mut text = hex(data);
    for (bit, complaint) in table.bits {
        if number >> bit & 1 == 1 {
            // Writing to a String cannot fail.
            let _ = write!(text, ", {complaint}");
            number &= !(1u64 << bit);
        }
    }
    if number != 0 {
        text.push_str(", bits of unknown meaning");
    }
    Some(text)
}

/// As a number: highest byte first.
pub(crate) fn hex(data: &[u8]) -> String {
    let mut text = String::from("0x");
    for byte in data.iter().rev() {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mbus::address::Manufacturer;

    #[test]
    fn complaints_are_in_words() {
        for (byte, text) in [
            (0x00, "ok"),
            (0x04, "low battery"),
            (0x02, "application error"),
            (0x1C, "low battery, permanent error, temporary error"),
            (0x33, "alarm, temporary error, manufacturer's bits 0x20"),
        ] {
            assert_eq!(status(byte), text);
        }
    }

    #[test]
    fn bits_are_of_their_maker() {
        let meter = |letters, medium| {
            Some(Secondary { id: 1, manufacturer: Manufacturer::from_letters(letters).unwrap(), version: 0, medium })
        };
        assert_eq!(error_flags(meter(*b"EFE", 4), &[0x90]), "0x90, no flow sensor, low battery");
        assert_eq!(error_flags(meter(*b"EFE", 7), &[0x90]), "0x90");
        assert_eq!(error_flags(meter(*b"LUG", 4), &[0x10, 0x00]), "0x0010");
        assert_eq!(error_flags(None, &[0]), "0x00");
        assert_eq!(
            own_bits(meter(*b"KAM", 4), 0x22, &[0x04, 0x01, 0, 0]).unwrap(),
            "0x00000104, flow sensor V1: weak signal or air, bits of unknown meaning"
        );
        assert_eq!(own_bits(meter(*b"KAM", 4), 0x24, &[0]), None);
    }
}
