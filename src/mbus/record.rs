//! Records of the variable data structure: how a value is coded (DIF), what it is (VIF), and its bytes.
//!
//! Enters: the data of an answer behind its header. Leaves: [`Item`]s, one after the other, that together hold
//! every byte; or a [`RecordError`] where they break off. [`Record::emit`] is the way back.
//!
//! Source: EN 13757-3:2018, 6 (records). Byte layout of a record:
//!
//! - DIF: bit 7 more follows, bit 6 lowest bit of the storage number, bits 4-5 function, bits 0-3 [`Coding`];
//! - at most ten DIFE: bit 7 more follows, bit 6 subunit, bits 4-5 tariff, bits 0-3 storage number, each
//!   continuing those before, lowest first;
//! - VIF, at most ten VIFE: bit 7 more follows; see [`super::vif`]. A plain-text unit stands behind its VIF
//!   (`7C` or `FC`), length first, last letter first;
//! - the data, whose length comes from the DIF alone.

use std::borrow::Cow;

use super::value::{self, Value};
use crate::reading::{Function, Qualifiers};

/// Most DIFE, and most VIFE, of a record.
pub const MAX_EXTENSIONS: usize = 10;

/// How the data of a record is coded: the lower half of the DIF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// 0: none.
    Nothing,
    /// 1, 2, 3, 4, 6, 7: a binary number of so many bytes.
    Binary(u8),
    /// 5: a real number of 32 bits.
    Real,
    /// 8: what is to be read out; without data.
    Selection,
    /// 9, A, B, C, E: so many bytes of two decimal digits each.
    Bcd(u8),
    /// D: the first byte of the data gives kind and length.
    Variable,
}

impl Coding {
    /// From a DIF; None for the special functions (xF).
    const fn from_dif(dif: u8) -> Option<Self> {
        Some(match dif & 0x0F {
            0 => Self::Nothing,
            bytes @ 1..=4 => Self::Binary(bytes),
            5 => Self::Real,
            6 => Self::Binary(6),
            7 => Self::Binary(8),
            8 => Self::Selection,
            bytes @ 9..=0xC => Self::Bcd(bytes & 7),
            0xD => Self::Variable,
            0xE => Self::Bcd(6),
            _ => return None,
        })
    }

    const fn to_dif(self) -> u8 {
        match self {
            Self::Nothing => 0,
            Self::Binary(8) => 7,
            Self::Binary(bytes) => bytes,
            Self::Real => 5,
            Self::Selection => 8,
            Self::Bcd(6) => 0xE,
            Self::Bcd(bytes) => 8 | bytes,
            Self::Variable => 0xD,
        }
    }
}

/// A record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<'a> {
    /// Storage, tariff, subunit and function.
    pub qualifiers: Qualifiers,
    /// How `data` is coded.
    pub coding: Coding,
    /// What it is.
    pub vib: Vib<'a>,
    /// DIF to the last VIFE, as sent.
    pub head: Cow<'a, [u8]>,
    /// As sent; of [`Coding::Variable`] with its first byte.
    pub data: Cow<'a, [u8]>,
}

/// The value information of a record: VIF, VIFE and the text of a plain-text unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Vib<'a> {
    /// The VIF with bit 7.
    pub vif: u8,
    /// As sent: the last letter first.
    pub text: Option<&'a [u8]>,
    /// Each with bit 7.
    pub extensions: &'a [u8],
}

/// What a stretch of data is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item<'a> {
    /// A record.
    Record(Record<'a>),
    /// Data of the manufacturer's own, to the end (DIF 0F and 1F).
    Manufacturer {
        /// Whether the slave has more telegrams (1F).
        more_follow: bool,
        /// Behind the DIF.
        data: &'a [u8],
    },
    /// A special function that the standard reserves (3F to 7F), and all that is behind it.
    Reserved(&'a [u8]),
}

/// Why records end where they should not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The frame ends within a record.
    #[error("the record at byte {at} breaks off within its {part}")]
    BreaksOff {
        /// Where the record begins, in the data behind the header.
        at: usize,
        /// Where it ends.
        part: &'static str,
    },
    /// More than ten DIFE or VIFE.
    #[error("the record at byte {at} has more than {MAX_EXTENSIONS} {which}")]
    TooMany {
        /// Where the record begins, in the data behind the header.
        at: usize,
        /// `DIFE` or `VIFE`.
        which: &'static str,
    },
    /// A length byte without a meaning.
    #[error("the record at byte {at} has the length {length:02X}, which means nothing")]
    Length {
        /// Where the record begins, in the data behind the header.
        at: usize,
        /// As sent.
        length: u8,
    },
}

/// Reads records one after the other. After an error there are no more.
///
/// ```
/// use meterkast::mbus::{Item, RecordError, Records, vif};
///
/// let mut records = Records::new(&[0x4C, 0x13, 0x78, 0x56, 0x34, 0x12, 0x04, 0x06, 0x01]);
/// let Some(Ok(Item::Record(record))) = records.next() else { panic!() };
/// assert_eq!(record.qualifiers.storage, 1);
/// assert_eq!(vif::meaning(&record.vib).unwrap().name, "volume");
/// assert_eq!(records.next(), Some(Err(RecordError::BreaksOff { at: 6, part: "data" })));
/// assert_eq!(records.next(), None);
/// ```
#[derive(Debug, Clone)]
pub struct Records<'a> {
    all: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Records<'a> {
    /// Of the data behind a header.
    pub const fn new(data: &'a [u8]) -> Self {
        Self { all: data, rest: data }
    }

    fn at(&self) -> usize {
        self.all.len().saturating_sub(self.rest.len())
    }

    fn byte(&mut self, at: usize, part: &'static str) -> Result<u8, RecordError> {
        let (first, rest) = self.rest.split_first().ok_or(RecordError::BreaksOff { at, part })?;
        self.rest = rest;
        Ok(*first)
    }

    fn bytes(&mut self, count: usize, at: usize, part: &'static str) -> Result<&'a [u8], RecordError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(RecordError::BreaksOff { at, part })?;
        self.rest = rest;
        Ok(taken)
    }

    fn record(&mut self, at: usize, dif: u8, coding: Coding) -> Result<Record<'a>, RecordError> {
        let mut qualifiers = Qualifiers {
            storage: u64::from(dif >> 6 & 1),
            function: match dif >> 4 & 3 {
                0 => Function::Instantaneous,
                1 => Function::Maximum,
                2 => Function::Minimum,
                _ => Function::Error,
            },
            ..Qualifiers::default()
        };
        let (mut more, mut count) = (dif & 0x80 != 0, 0u32);
        while more {
            if count as usize == MAX_EXTENSIONS {
                return Err(RecordError::TooMany { at, which: "DIFE" });
            }
            let dife = self.byte(at, "DIFE")?;
            qualifiers.storage |= u64::from(dife & 0x0F) << count.wrapping_mul(4).wrapping_add(1);
            qualifiers.tariff |= u32::from(dife >> 4 & 3) << count.wrapping_mul(2);
            qualifiers.subunit |= u16::from(dife >> 6 & 1) << count;
            more = dife & 0x80 != 0;
            count = count.wrapping_add(1);
        }
        let vif = self.byte(at, "VIF")?;
        let text = if vif & 0x7F == 0x7C {
            let length = self.byte(at, "plain-text unit")?;
            Some(self.bytes(usize::from(length), at, "plain-text unit")?)
        } else {
            None
        };
        let behind = self.rest;
        let (mut more, mut count) = (vif & 0x80 != 0, 0usize);
        while more {
            if count == MAX_EXTENSIONS {
                return Err(RecordError::TooMany { at, which: "VIFE" });
            }
            more = self.byte(at, "VIFE")? & 0x80 != 0;
            count = count.wrapping_add(1);
        }
        let vib = Vib { vif, text, extensions: behind.get(..count).unwrap_or_default() };
        let head = self.all.get(at..self.at()).unwrap_or_default();
        let length = match coding {
            Coding::Nothing | Coding::Selection => 0,
            Coding::Binary(bytes) | Coding::Bcd(bytes) => usize::from(bytes),
            Coding::Real => 4,
            Coding::Variable => {
                let first = *self.rest.first().ok_or(RecordError::BreaksOff { at, part: "length" })?;
                let length = value::variable_length(first).ok_or(RecordError::Length { at, length: first })?;
                length.saturating_add(1)
            }
        };
        let data = self.bytes(length, at, "data")?;
        Ok(Record { qualifiers, coding, vib, head: Cow::Borrowed(head), data: Cow::Borrowed(data) })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Item<'a>, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        // Fillers.
        while let [0x2F, rest @ ..] = self.rest {
            self.rest = rest;
        }
        let at = self.at();
        let (&dif, rest) = self.rest.split_first()?;
        let Some(coding) = Coding::from_dif(dif) else {
            let data = std::mem::take(&mut self.rest);
            return Some(Ok(match dif {
                0x0F | 0x1F => Item::Manufacturer { more_follow: dif == 0x1F, data: rest },
                _ => Item::Reserved(data),
            }));
        };
        self.rest = rest;
        let record = self.record(at, dif, coding);
        if record.is_err() {
            self.rest = &[];
        }
        Some(record.map(Item::Record))
    }
}

impl<'a> Record<'a> {
    /// A record to be sent. `vib` is VIF and VIFE as on the wire; the number of DIFE is the least that holds the
    /// qualifiers, which are cut at what ten DIFE can say.
    pub fn new(qualifiers: Qualifiers, coding: Coding, vib: &[u8], data: &'a [u8]) -> Self {
        let Qualifiers { storage, tariff, subunit, function } = qualifiers;
        let function = match function {
            Function::Instantaneous => 0,
            Function::Maximum => 1,
            Function::Minimum => 2,
            Function::Error => 3,
        };
        let mut head = vec![coding.to_dif() | function << 4 | (storage as u8 & 1) << 6];
        let (mut storage, mut tariff, mut subunit) = (storage >> 1, tariff, subunit);
        while (storage, tariff, subunit) != (0, 0, 0) && head.len() <= MAX_EXTENSIONS {
            if let Some(last) = head.last_mut() {
                *last |= 0x80;
            }
            head.push(storage as u8 & 0x0F | (tariff as u8 & 3) << 4 | (subunit as u8 & 1) << 6);
            (storage, tariff, subunit) = (storage >> 4, tariff >> 2, subunit >> 1);
        }
        head.extend_from_slice(vib);
        Self { qualifiers, coding, vib: Vib::default(), head: Cow::Owned(head), data: Cow::Borrowed(data) }
    }

    /// Appends the record's bytes.
    pub fn emit(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.head);
        bytes.extend_from_slice(&self.data);
    }

    /// Its value. `signed` tells whether a binary number is (type B of the standard) or is not (type C).
    pub fn value(&self, signed: bool) -> Value {
        value::read(self.coding, &self.data, signed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Vec<Result<Item<'_>, RecordError>> {
        Records::new(bytes).collect()
    }

    fn one(bytes: &[u8]) -> Record<'_> {
        match read(bytes).as_slice() {
            [Ok(Item::Record(record))] => record.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn qualifiers_come_from_dif_and_dife() {
        let record = one(&[0xC4, 0x11, 0x06, 1, 2, 3, 4]);
        assert_eq!(record.qualifiers, Qualifiers { storage: 3, tariff: 1, ..Qualifiers::default() });
        assert_eq!((record.coding, &*record.data), (Coding::Binary(4), &[1, 2, 3, 4][..]));
        let record = one(&[0xB1, 0xC0, 0x40, 0x13, 9]);
        assert_eq!(record.qualifiers, Qualifiers { subunit: 3, function: Function::Error, ..Qualifiers::default() });
        let mut full = vec![0xD2];
        full.extend([0xFF; 9]);
        full.extend([0x7F, 0x13, 0, 0]);
        let Qualifiers { storage, tariff, subunit, function } = one(&full).qualifiers;
        assert_eq!((storage, tariff, subunit, function), ((1 << 41) - 1, (1 << 20) - 1, 1023, Function::Maximum));
    }

    #[test]
    fn a_text_stands_behind_its_vif() {
        let record = one(&[0x02, 0xFC, 3, b'H', b'R', b'%', 0x74, 0x44, 0x0D]);
        assert_eq!(record.vib, Vib { vif: 0xFC, text: Some(b"HR%"), extensions: &[0x74] });
        assert_eq!(&*record.data, &[0x44, 0x0D]);
    }

    #[test]
    fn the_end_is_the_makers() {
        assert_eq!(
            read(&[0x2F, 0x2F, 0x00, 0x13, 0x1F, 0x04, 0x13]).pop(),
            Some(Ok(Item::Manufacturer { more_follow: true, data: &[0x04, 0x13] }))
        );
        assert_eq!(read(&[0x0F]), [Ok(Item::Manufacturer { more_follow: false, data: &[] })]);
        assert_eq!(read(&[0x3F, 1]), [Ok(Item::Reserved(&[0x3F, 1]))]);
    }

    #[test]
    fn what_breaks_off_says_where() {
        for (bytes, reason) in [
            (&[0x01, 0x13, 7, 0x84][..], "the record at byte 3 breaks off within its DIFE"),
            (&[0x04], "the record at byte 0 breaks off within its VIF"),
            (&[0x04, 0x93], "the record at byte 0 breaks off within its VIFE"),
            (&[0x04, 0x13, 1, 2, 3], "the record at byte 0 breaks off within its data"),
            (&[0x0D, 0x13], "the record at byte 0 breaks off within its length"),
            (&[0x0D, 0x13, 3, 1, 2], "the record at byte 0 breaks off within its data"),
            (&[0x0D, 0x13, 0xFF], "the record at byte 0 has the length FF, which means nothing"),
            (&[0x02, 0x7C, 3, b'a'], "the record at byte 0 breaks off within its plain-text unit"),
            (&[0x84; 13], "the record at byte 0 has more than 10 DIFE"),
        ] {
            assert_eq!(read(bytes).pop().unwrap().unwrap_err().to_string(), reason);
        }
        let mut many = vec![0x04];
        many.extend([0x93; 12]);
        assert_eq!(read(&many).pop().unwrap(), Err(RecordError::TooMany { at: 0, which: "VIFE" }));
    }

    #[test]
    fn what_is_composed_is_read() {
        let all = [
            Qualifiers::default(),
            Qualifiers { storage: 1, ..Qualifiers::default() },
            Qualifiers { storage: 40, tariff: 2, subunit: 1, function: Function::Minimum },
            Qualifiers { storage: (1 << 41) - 1, tariff: (1 << 20) - 1, subunit: 1023, function: Function::Maximum },
        ];
        let codings = [
            (Coding::Binary(1), &[1u8][..]),
            (Coding::Binary(6), &[1; 6]),
            (Coding::Binary(8), &[1; 8]),
            (Coding::Real, &[0; 4]),
            (Coding::Bcd(2), &[0x12; 2]),
            (Coding::Bcd(6), &[0x12; 6]),
            (Coding::Variable, &[2, b'o', b'k']),
            (Coding::Nothing, &[]),
        ];
        for qualifiers in all {
            for (coding, data) in codings {
                let mut bytes = Vec::new();
                Record::new(qualifiers, coding, &[0xFD, 0x17], data).emit(&mut bytes);
                let record = one(&bytes);
                assert_eq!((record.qualifiers, record.coding, &*record.data), (qualifiers, coding, data));
                let mut again = Vec::new();
                record.emit(&mut again);
                assert_eq!(again, bytes);
            }
        }
    }
}
