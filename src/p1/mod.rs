//! The P1 port of European smart meters: bytes to telegrams to readings.
//!
//! Enters: bytes as they come from a wire, split anywhere. Leaves: [`Report`](crate::reading::Report)s,
//! or a [`Rejected`] piece with its place and reason. Sources: Dutch Smart Meter Requirements (DSMR) P1
//! companion standard 2.2, 3.0, 4.0, 4.2.2, 5.0.2; for the frame IEC 62056-21 mode D.
//!
//! ```
//! let telegram = b"/XYZ5 example\r\n\r\n0-0:96.1.1(4532)\r\n1-0:1.8.2(000123.456*kWh)\r\n!\r\n";
//! let mut framer = meterkast::p1::Framer::new();
//! framer.push(telegram);
//! let piece = framer.poll().unwrap();
//! let decoded = meterkast::p1::read(piece, None).unwrap();
//! assert_eq!(decoded.reports[0].readings[0].register.as_str(), "import_normal");
//! assert_eq!(decoded.reports[0].readings[0].value.to_string(), "123.456");
//! ```
//!
//! Not supported: binary (DLMS) push frames, unless an ordinary telegram is encrypted in them.

#![deny(clippy::arithmetic_side_effects)]

mod cipher;
pub mod crc;
mod decode;
pub mod dialect;
mod frame;
mod reader;
pub mod table;
mod telegram;
pub(crate) mod text;
mod transcript;

pub use cipher::{Key, NotAKey, Opener};
pub use decode::{Decoded, decode};
pub use dialect::Dialect;
pub use frame::{Framer, MAX_TELEGRAM, Piece, Tail, begins};
pub use reader::{Accepted, Reader};
pub use telegram::{Line, LineEnds, Lines, Telegram, Writer};
pub use transcript::{Form, Transcript};

/// A piece of the input that is no valid telegram.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Rejected {
    /// Where it begins, in bytes since the stream began.
    pub offset: u64,
    /// How long it is, in bytes.
    pub length: u64,
    /// Why.
    pub reason: Reason,
}

/// Why a piece of the input is no valid telegram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// Bytes outside any telegram.
    #[error("fragment: not the beginning of a telegram")]
    Fragment,
    /// A header began, but another header or the end came before the telegram's end.
    #[error("truncated: the telegram has no end")]
    Truncated,
    /// No end within [`MAX_TELEGRAM`].
    #[error("too long: no end of telegram within {MAX_TELEGRAM} bytes")]
    TooLong,
    /// The CRC does not fit the bytes.
    #[error("CRC mismatch: the telegram says {said:04X}, its bytes give {computed:04X}")]
    CrcMismatch {
        /// Behind the `!`.
        said: u16,
        /// Over the bytes as received.
        computed: u16,
    },
    /// What stands behind the `!` is no CRC.
    #[error("CRC mismatch: behind the `!` stands no hexadecimal number")]
    CrcGarbled,
    /// Neither a CRC nor a single line with an OBIS code.
    #[error("empty: neither a CRC nor any line of a meter")]
    Empty,
    /// The CRC does not fit, but another one does.
    #[error("another CRC: the telegram says {said:04X}, {}", other_crc(*fits))]
    OtherCrc {
        /// Behind the `!`.
        said: u16,
        /// The name of the one that fits; None where one telegram after the other is whole by its form, and
        /// none of their CRCs fits.
        fits: Option<&'static str>,
    },
    /// The telegram is encrypted, and there is no key.
    #[error(
        "encrypted: the operator of the grid gives the key; put it into a file and name that: `key-file` of the port, or --key-file"
    )]
    Encrypted,
    /// What the key gives is no telegram.
    #[error("wrong key: what it gives is no telegram")]
    WrongKey,
    /// The key gives a telegram, but its seal does not fit.
    #[error("seal broken: the key fits, but the telegram was damaged on its way, or the authentication key is another")]
    SealBroken,
    /// An encrypted telegram that was sent before.
    #[error("replayed: the frame counter is {counter}, and {last} was there already")]
    Replayed {
        /// Its frame counter.
        counter: u32,
        /// The highest so far.
        last: u32,
    },
    /// No CRC, although meters of the version that the telegram names send one, or this one did before.
    #[error("CRC missing: a telegram of this version, or of a meter that sent one before, must have one")]
    CrcMissing,
}

fn other_crc(fits: Option<&'static str>) -> String {
    match fits {
        Some(name) => format!("which is its {name} and not the CRC-16/ARC of the P1 standards"),
        None => "and though telegrams come whole, none of their CRCs is a CRC-16/ARC: not noise, but a meter that \
                 computes it in another way; tell us its model"
            .to_owned(),
    }
}

impl Reason {
    /// Whether it shows that the line is read right, though the telegram is refused: only noise and wrong line
    /// settings leave no form.
    pub const fn is_readable(self) -> bool {
        matches!(
            self,
            Self::OtherCrc { .. } | Self::Encrypted | Self::WrongKey | Self::SealBroken | Self::Replayed { .. }
        )
    }

    /// Every short name, each once.
    pub const KINDS: [&'static str; 11] = [
        "fragment",
        "truncated",
        "too-long",
        "crc-mismatch",
        "other-crc",
        "encrypted",
        "wrong-key",
        "seal-broken",
        "replayed",
        "crc-missing",
        "empty",
    ];

    /// A short name for counters, one of [`Reason::KINDS`].
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Fragment => "fragment",
            Self::Truncated => "truncated",
            Self::TooLong => "too-long",
            Self::CrcMismatch { .. } | Self::CrcGarbled => "crc-mismatch",
            Self::OtherCrc { .. } => "other-crc",
            Self::Encrypted => "encrypted",
            Self::WrongKey => "wrong-key",
            Self::SealBroken => "seal-broken",
            Self::Replayed { .. } => "replayed",
            Self::CrcMissing => "crc-missing",
            Self::Empty => "empty",
        }
    }
}

/// A piece of the input to readings: [`Telegram::check`], then [`decode()`]. `dialect` overrides what the
/// telegram says of itself.
pub fn read(piece: Piece<'_>, dialect: Option<Dialect>) -> Result<Decoded, Rejected> {
    let telegram = Telegram::check(piece)?;
    Ok(decode(&telegram, dialect))
}
