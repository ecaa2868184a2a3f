//! Frames of the link layer: what stands between start and stop on the wire.
//!
//! Enters: bytes. Leaves: a [`Frame`], or why they are none. [`Frame::emit`] is the way back: what was read
//! is emitted byte for byte.
//!
//! Source: EN 13757-2:2018, 5.3 to 5.5; IEC 60870-5-2 format class FT1.2. Byte layout:
//!
//! - acknowledgement: `E5`;
//! - short: `10 C A CS 16`;
//! - long: `68 L L 68 C A CI data CS 16`; L counts C to the end of the data, 3..=255; a control frame is a
//!   long one without data.
//!
//! CS is the sum of C to the end of the data, modulo 256.

/// Longest frame: L = 255 and six bytes around it.
pub const MAX_FRAME: usize = 261;
/// Longest data of a long frame.
pub const MAX_DATA: usize = 252;

/// What the control byte (C) of a request or an answer says.
pub mod control {
    /// Initialises a slave's link layer.
    pub const SND_NKE: u8 = 0x40;
    /// Data for a slave; with [`FCB`] where the count bit is set.
    pub const SND_UD: u8 = 0x53;
    /// Asks for data of class 2: the readings.
    pub const REQ_UD2: u8 = 0x5B;
    /// Asks for data of class 1: alarms.
    pub const REQ_UD1: u8 = 0x5A;
    /// A slave's data. Bits 4 (flow control) and 5 (access demand) may be set.
    pub const RSP_UD: u8 = 0x08;
    /// The frame count bit: toggled for each new request, kept for a repeat.
    pub const FCB: u8 = 0x20;
    /// Set in what a master sends, and in nothing that a slave does.
    pub const FROM_MASTER: u8 = 0x40;
    /// What an answer may add to [`RSP_UD`].
    pub const ANSWER_BITS: u8 = 0x30;
}

/// Addresses with a meaning of their own.
pub mod address {
    /// A slave that was given none.
    pub const UNCONFIGURED: u8 = 0;
    /// Last that a slave may be given.
    pub const LAST: u8 = 250;
    /// The slave that was selected by its secondary address.
    pub const SELECTED: u8 = 253;
    /// Every slave, and every slave answers.
    pub const EVERYONE: u8 = 254;
    /// Every slave, and none answers.
    pub const BROADCAST: u8 = 255;
}

/// A frame.
///
/// ```
/// use meterkast::mbus::{Frame, FrameError, control};
///
/// let request = Frame::Short { control: control::REQ_UD2, address: 5 };
/// let bytes = request.emit();
/// assert_eq!(bytes, [0x10, 0x5B, 0x05, 0x60, 0x16]);
/// assert_eq!(Frame::parse(&bytes), Ok((request, 5)));
/// assert_eq!(Frame::parse(&bytes[..3]), Err(FrameError::Incomplete(2)));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// `E5`.
    Ack,
    /// A request without data.
    Short {
        /// C.
        control: u8,
        /// A.
        address: u8,
    },
    /// A frame with a control information byte, and data if any.
    Long {
        /// C.
        control: u8,
        /// A.
        address: u8,
        /// What the data is.
        ci: u8,
        /// At most [`MAX_DATA`] bytes.
        data: &'a [u8],
    },
}

/// Why bytes are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// No frame begins so.
    #[error("no frame begins with {0:02X}")]
    Start(u8),
    /// The two lengths differ.
    #[error("its length is given as {0} and as {1}")]
    Lengths(u8, u8),
    /// A length below 3.
    #[error("its length is {0}, and no frame is shorter than 3")]
    Short(u8),
    /// The second start byte is missing.
    #[error("{0:02X} stands where the second 68 belongs")]
    SecondStart(u8),
    /// The checksum does not fit.
    #[error("its checksum is {sent:02X}, and its bytes give {computed:02X}")]
    Checksum {
        /// Of the bytes.
        computed: u8,
        /// As sent.
        sent: u8,
    },
    /// The stop byte is missing.
    #[error("it ends with {0:02X} and not with 16")]
    Stop(u8),
    /// It breaks off.
    #[error("it breaks off, with {0} or more bytes missing")]
    Incomplete(usize),
}

impl<'a> Frame<'a> {
    /// Reads the frame at the beginning of `bytes`; returns it with its length.
    pub fn parse(bytes: &'a [u8]) -> Result<(Self, usize), FrameError> {
        match *bytes {
            [] => Err(FrameError::Incomplete(1)),
            [0xE5, ..] => Ok((Self::Ack, 1)),
            [0x10, control, address, sent, stop, ..] => {
                check(&[control, address], sent, stop)?;
                Ok((Self::Short { control, address }, 5))
            }
            [0x10, ..] => Err(FrameError::Incomplete(5usize.saturating_sub(bytes.len()))),
            [0x68, first, second, ..] if first != second => Err(FrameError::Lengths(first, second)),
            [0x68, length, ..] if length < 3 => Err(FrameError::Short(length)),
            [0x68, _, _, start, ..] if start != 0x68 => Err(FrameError::SecondStart(start)),
            [0x68, ref rest @ ..] => {
                let length = rest.first().map_or(3, |&length| usize::from(length));
                let whole = length.saturating_add(6);
                let (Some(body), Some(&[sent, stop])) =
                    (bytes.get(4..length.saturating_add(4)), bytes.get(length.saturating_add(4)..whole))
                else {
                    return Err(FrameError::Incomplete(whole.saturating_sub(bytes.len())));
                };
                check(body, sent, stop)?;
                match *body {
                    [control, address, ci, ref data @ ..] => Ok((Self::Long { control, address, ci, data }, whole)),
                    _ => Err(FrameError::Short(body.len() as u8)),
                }
            }
            [other, ..] => Err(FrameError::Start(other)),
        }
    }

    /// The bytes on the wire. Data beyond [`MAX_DATA`] is none that a frame can carry, and left out.
    pub fn emit(&self) -> Vec<u8> {
        match *self {
            Self::Ack => vec![0xE5],
            Self::Short { control, address } => vec![0x10, control, address, checksum(&[control, address]), 0x16],
            Self::Long { control, address, ci, data } => {
                let data = data.get(..MAX_DATA).unwrap_or(data);
                let length = data.len().saturating_add(3) as u8;
                let mut bytes = vec![0x68, length, length, 0x68, control, address, ci];
                bytes.extend_from_slice(data);
                let sum = checksum(bytes.get(4..).unwrap_or_default());
                bytes.extend([sum, 0x16]);
                bytes
            }
        }
    }
}

fn check(body: &[u8], sent: u8, stop: u8) -> Result<(), FrameError> {
    let computed = checksum(body);
    if computed != sent {
        return Err(FrameError::Checksum { computed, sent });
    }
    if stop != 0x16 {
        return Err(FrameError::Stop(stop));
    }
    Ok(())
}

fn checksum(body: &[u8]) -> u8 {
    body.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Frame<'static>> {
        vec![
            Frame::Ack,
            Frame::Short { control: control::SND_NKE, address: 7 },
            Frame::Long { control: control::SND_UD, address: 254, ci: 0x50, data: &[] },
            Frame::Long { control: 0x08, address: 1, ci: 0x72, data: &[0x16; MAX_DATA] },
        ]
    }

    #[test]
    fn what_is_emitted_is_read() {
        for frame in all() {
            let mut bytes = frame.emit();
            assert!(bytes.len() <= MAX_FRAME);
            assert_eq!(Frame::parse(&bytes), Ok((frame, bytes.len())));
            bytes.push(0x68);
            assert_eq!(Frame::parse(&bytes), Ok((frame, bytes.len() - 1)));
        }
        assert_eq!(Frame::Short { control: 0x40, address: 1 }.emit(), [0x10, 0x40, 0x01, 0x41, 0x16]);
    }

    #[test]
    fn a_frame_that_breaks_off_says_how_much_is_missing() {
        for frame in all() {
            let bytes = frame.emit();
            for length in 0..bytes.len() {
                let Err(FrameError::Incomplete(missing)) = Frame::parse(&bytes[..length]) else { panic!("{length}") };
                assert!(missing >= 1 && missing <= bytes.len() - length);
            }
        }
    }

    #[test]
    fn each_fault_has_its_name() {
        for (bytes, reason) in [
            (&[0x00u8][..], "no frame begins with 00"),
            (&[0x68, 4, 5], "its length is given as 4 and as 5"),
            (&[0x68, 2, 2], "its length is 2, and no frame is shorter than 3"),
            (&[0x68, 3, 3, 0x67], "67 stands where the second 68 belongs"),
            (&[0x10, 0x40, 0x01, 0x42, 0x16], "its checksum is 42, and its bytes give 41"),
            (&[0x10, 0x40, 0x01, 0x41, 0x17], "it ends with 17 and not with 16"),
            (&[0x68, 3, 3, 0x68, 8], "it breaks off, with 4 or more bytes missing"),
        ] {
            assert_eq!(Frame::parse(bytes).unwrap_err().to_string(), reason);
        }
    }
}
