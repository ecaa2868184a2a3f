//! CRC-16/ARC as DSMR 4.0 and later use it (companion standard 5.0.2, section 6.2): polynomial 0x8005
//! reflected, initial value 0, no final exclusive-or, over `/` through `!` inclusive.

use super::telegram;
use crc::{CRC_16_ARC, CRC_16_IBM_3740, CRC_16_IBM_SDLC, CRC_16_KERMIT, CRC_16_MODBUS, CRC_16_XMODEM, Crc, Table};

// Sixteen bytes a step: 8 KiB of tables for several times the speed of a byte a step.
const ARC: Crc<u16, Table<16>> = Crc::<u16, Table<16>>::new(&CRC_16_ARC);

/// The CRC of the bytes as they are.
pub fn as_sent(bytes: &[u8]) -> u16 {
    ARC.checksum(bytes)
}

/// The CRC as it would be with one carriage return before every line feed.
pub fn with_crlf(bytes: &[u8]) -> u16 {
    let mut digest = ARC.digest();
    let mut lines = bytes.split(|&byte| byte == b'\n').map(telegram::without_return);
    if let Some(first) = lines.next() {
        digest.update(first);
    }
    for line in lines {
        digest.update(b"\r\n");
        digest.update(line);
    }
    digest.finalize()
}

/// Which other CRC of 16 bits `said` is, either byte first: meters with X.25 have been seen. A telegram with
/// such a CRC is not accepted; its reason only says what would have to be done.
pub fn other(bytes: &[u8], said: u16) -> Option<&'static str> {
    const OTHERS: [(&str, Crc<u16>); 5] = [
        ("CRC-16/X.25", Crc::<u16>::new(&CRC_16_IBM_SDLC)),
        ("CRC-16/MODBUS", Crc::<u16>::new(&CRC_16_MODBUS)),
        ("CRC-16/CCITT-FALSE", Crc::<u16>::new(&CRC_16_IBM_3740)),
        ("CRC-16/XMODEM", Crc::<u16>::new(&CRC_16_XMODEM)),
        ("CRC-16/KERMIT", Crc::<u16>::new(&CRC_16_KERMIT)),
    ];
    let fits = |other: &&(&str, Crc<u16>)| {
        let computed = other.1.checksum(bytes);
        said == computed || said == computed.swap_bytes()
    };
    OTHERS.iter().find(fits).map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_the_arc_of_the_catalogue() {
        assert_eq!(as_sent(b"123456789"), 0xBB3D);
        assert_eq!(with_crlf(b"1\n2\n"), as_sent(b"1\r\n2\r\n"));
        assert_eq!(other(b"123456789", 0x906E), Some("CRC-16/X.25"));
        assert_eq!(other(b"123456789", 0x6E90), Some("CRC-16/X.25"));
        assert_eq!(other(b"123456789", 0xBB3D), None);
    }
}
