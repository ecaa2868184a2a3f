//! Integers as few bytes: LEB128, signed ones zigzag before, so that what is near 0 is short.
//!
//! Enters: any integer of 64 bits. Leaves: one to [`LONGEST`] bytes, and from them the integer. Journal and sealed blocks keep theirs so.

/// Bytes of the longest integer.
pub(crate) const LONGEST: usize = 10;

/// Adds a number behind the others.
pub(crate) fn unsigned(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Adds a number behind the others: one near 0 is short, on both sides of it.
pub(crate) fn signed(bytes: &mut Vec<u8>, number: i64) {
    unsigned(bytes, ((number << 1) ^ (number >> 63)).cast_unsigned());
}

/// Takes a number off the front. None when it has no end, or is longer than 64 bits.
pub(crate) fn read_unsigned(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.split_off_first()?;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return None;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Takes a number off the front that [`signed`] put there.
pub(crate) fn read_signed(bytes: &mut &[u8]) -> Option<i64> {
    let number = read_unsigned(bytes)?;
    Some((number >> 1).cast_signed() ^ -((number & 1).cast_signed()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of every length read back, and no bytes read beyond 64 bits.
    #[test]
    fn numbers_read_back() {
        for number in [0, 1, 0x7f, 0x80, 0x3fff, 0x4000, u64::MAX >> 1, u64::MAX] {
            let mut bytes = Vec::new();
            unsigned(&mut bytes, number);
            assert_eq!(read_unsigned(&mut bytes.as_slice()), Some(number));
            assert_eq!(read_unsigned(&mut &bytes[..bytes.len() - 1]), None);
        }
        for number in [0, 1, -1, 63, -64, 64, i64::MAX, i64::MIN] {
            let mut bytes = Vec::new();
            signed(&mut bytes, number);
            assert_eq!(read_signed(&mut bytes.as_slice()), Some(number));
        }
        for bytes in [&[0x80; 10][..], &[0xff; 11], b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"] {
            assert_eq!(read_unsigned(&mut &*bytes), None, "{bytes:x?}");
        }
    }
}
