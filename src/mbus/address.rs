//! Who a slave is on the bus: manufacturers, secondary addresses, and patterns that select by them.
//!
//! Source: EN 13757-3:2018, 5.5 (identification) and 11 (selection); the letters of a manufacturer by the
//! FLAG association.
//!
//! A secondary address in text is `KAM-12345678-1B-04` (manufacturer, number, version, medium; the last two
//! in hex, a manufacturer without letters as four hex digits), or 16 hex digits in the order of the wire
//! (number, manufacturer low byte first, version, medium), or 8 hex digits: the number alone.

use std::fmt;

/// A manufacturer: three letters of five bits each.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Manufacturer(pub u16);

impl Manufacturer {
    /// From three capital letters.
    pub const fn from_letters(letters: [u8; 3]) -> Option<Self> {
        let mut code = 0u16;
        let mut rest = letters.as_slice();
        while let [letter, behind @ ..] = rest {
            if !letter.is_ascii_uppercase() {
                return None;
            }
            code = code << 5 | (*letter & 0x1F) as u16;
            rest = behind;
        }
        Some(Self(code))
    }

    /// Its letters; None where the code is not of three letters.
    pub fn letters(self) -> Option<[u8; 3]> {
        let letters = [self.0 >> 10, self.0 >> 5 & 0x1F, self.0 & 0x1F];
        letters.iter().all(|letter| (1..=26).contains(letter)).then(|| letters.map(|letter| letter as u8 | 0x40))
    }
}

impl fmt::Display for Manufacturer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.letters() {
            Some(letters) => letters.iter().try_for_each(|letter| write!(f, "{}", char::from(*letter))),
            None => write!(f, "{:04X}", self.0),
        }
    }
}

impl fmt::Debug for Manufacturer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The secondary address of a slave, unique among all meters that keep to the standard.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Secondary {
    /// Its number: eight digits of four bits, which may be hex digits.
    pub id: u32,
    /// Who made it.
    pub manufacturer: Manufacturer,
    /// The maker's version of it.
    pub version: u8,
    /// The device type, see [`Medium`](crate::reading::Medium).
    pub medium: u8,
}

impl fmt::Display for Secondary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:08X}-{:02X}-{:02X}", self.manufacturer, self.id, self.version, self.medium)
    }
}

impl fmt::Debug for Secondary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Which slaves a selection selects: digit F of the number, and byte FF elsewhere, stand for any.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pattern {
    /// Number, with F for any digit.
    pub id: u32,
    /// Manufacturer, FFFF for any.
    pub manufacturer: u16,
    /// Version, FF for any.
    pub version: u8,
    /// Medium, FF for any.
    pub medium: u8,
}

impl Pattern {
    /// Every slave.
    pub const ANY: Self = Self { id: 0xFFFF_FFFF, manufacturer: 0xFFFF, version: 0xFF, medium: 0xFF };

    /// Slaves with this number.
    pub const fn of_id(id: u32) -> Self {
        Self { id, ..Self::ANY }
    }

    /// From one of the three forms of text above, letters in either case.
    pub fn from_text(text: &str) -> Option<Self> {
        let hex = |text: &str, length| {
            let valid = text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            valid.then(|| u64::from_str_radix(text, 16).ok()).flatten()
        };
        if let Some(id) = hex(text, 8) {
            return Some(Self::of_id(id as u32));
        }
        if let Some(all) = hex(text, 16) {
            let [_, _, _, _, low, high, version, medium] = all.to_be_bytes();
            return Some(Self {
                id: (all >> 32) as u32,
                manufacturer: u16::from_le_bytes([low, high]),
                version,
                medium,
            });
        }
        let mut parts = text.split('-');
        let (maker, id) = (parts.next()?, hex(parts.next()?, 8)?);
        let manufacturer = match hex(maker, 4) {
            Some(code) => code as u16,
            None => Manufacturer::from_letters(maker.to_ascii_uppercase().as_bytes().try_into().ok()?)?.0,
        };
        let (version, medium) = (hex(parts.next()?, 2)? as u8, hex(parts.next()?, 2)? as u8);
        parts.next().is_none().then_some(Self { id: id as u32, manufacturer, version, medium })
    }

    /// Whether an answer under this identity can be that of who was selected. A slave with the fixed structure is
    /// selected as any other, and names no manufacturer in its answer.
    pub fn may_answer(self, slave: Secondary) -> bool {
        self.matches(slave) || (slave.manufacturer.0 == 0 && Self::of_id(self.id).matches(slave))
    }

    /// Whether it can select no more than one number. A digit F stands for any.
    pub fn is_one_number(self) -> bool {
        [0, 4, 8, 12, 16, 20, 24, 28].into_iter().all(|digit| self.id >> digit & 0xF != 0xF)
    }

    /// The eight bytes of a selection, in the order of the wire.
    pub fn to_bytes(self) -> [u8; 8] {
        let [a, b, c, d] = self.id.to_le_bytes();
        let [low, high] = self.manufacturer.to_le_bytes();
        [a, b, c, d, low, high, self.version, self.medium]
    }

    /// From the bytes of a selection.
    pub fn from_bytes(bytes: [u8; 8]) -> Self {
        let [a, b, c, d, low, high, version, medium] = bytes;
        Self { id: u32::from_le_bytes([a, b, c, d]), manufacturer: u16::from_le_bytes([low, high]), version, medium }
    }

    /// Whether it selects this slave. Each byte of the manufacturer counts for itself, as slaves do it.
    pub fn matches(self, slave: Secondary) -> bool {
        let digits = [0, 4, 8, 12, 16, 20, 24, 28].into_iter().all(|digit| {
            let wanted = self.id >> digit & 0xF;
            wanted == 0xF || wanted == slave.id >> digit & 0xF
        });
        let byte = |wanted: u8, is: u8| wanted == 0xFF || wanted == is;
        let maker = self.manufacturer.to_le_bytes().into_iter().zip(slave.manufacturer.0.to_le_bytes());
        digits
            && maker.into_iter().all(|(wanted, is)| byte(wanted, is))
            && byte(self.version, slave.version)
            && byte(self.medium, slave.medium)
    }
}

impl From<Secondary> for Pattern {
    fn from(slave: Secondary) -> Self {
        Self { id: slave.id, manufacturer: slave.manufacturer.0, version: slave.version, medium: slave.medium }
    }
}

/// As installers write it: the number where nothing else is asked for, `KAM-12345678-1B-04` where all is, and
/// otherwise 16 digits as on the wire.
impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, manufacturer, version, medium } = *self;
        if (manufacturer, version, medium) == (0xFFFF, 0xFF, 0xFF) {
            write!(f, "{id:08X}")
        } else if !manufacturer.to_le_bytes().contains(&0xFF) && version != 0xFF && medium != 0xFF {
            Secondary { id, manufacturer: Manufacturer(manufacturer), version, medium }.fmt(f)
        } else {
            write!(f, "{id:08X}{:04X}{version:02X}{medium:02X}", manufacturer.swap_bytes())
        }
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KAMSTRUP: Secondary =
        Secondary { id: 0x1234_5678, manufacturer: Manufacturer(0x2C2D), version: 0x1B, medium: 4 };

    #[test]
    fn letters_are_five_bits_each() {
        assert_eq!(Manufacturer::from_letters(*b"KAM"), Some(KAMSTRUP.manufacturer));
        assert_eq!(KAMSTRUP.manufacturer.to_string(), "KAM");
        assert_eq!(Manufacturer(0).to_string(), "0000");
        assert_eq!(Manufacturer(0xFFFF).to_string(), "FFFF");
        assert_eq!(Manufacturer::from_letters(*b"KA1"), None);
    }

    #[test]
    fn addresses_are_read_in_each_form() {
        let exact = Pattern::from(KAMSTRUP);
        for text in ["KAM-12345678-1B-04", "kam-12345678-1b-04", "2C2D-12345678-1B-04", "123456782D2C1B04"] {
            assert_eq!(Pattern::from_text(text), Some(exact), "{text}");
        }
        assert_eq!(exact.to_string(), "KAM-12345678-1B-04");
        assert_eq!(Pattern { version: 0xFF, ..exact }.to_string(), "123456782D2CFF04");
        assert_eq!(Pattern::from_text("1234FFFF").unwrap().to_string(), "1234FFFF");
        for text in [
            "",
            "5",
            "1234567",
            "123456789",
            "KAM-1234567-1B-04",
            "KAM-12345678-1B-04-",
            "K-12345678-1B-04",
            "1234567g",
        ] {
            assert_eq!(Pattern::from_text(text), None, "{text}");
        }
        assert_eq!(Pattern::from_bytes(exact.to_bytes()), exact);
    }

    #[test]
    fn a_pattern_selects_what_fits() {
        for (text, fits) in [
            ("FFFFFFFF", true),
            ("1FFFFFF8", true),
            ("2FFFFFFF", false),
            ("12345678FFFFFF04", true),
            ("FFFFFFFF2DFFFFFF", true),
            ("FFFFFFFFFFFFFF06", false),
            ("KAM-12345678-1B-04", true),
            ("LUG-12345678-1B-04", false),
        ] {
            assert_eq!(Pattern::from_text(text).unwrap().matches(KAMSTRUP), fits, "{text}");
        }
    }
}
