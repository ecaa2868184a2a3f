//! Wired M-Bus: frames to readings, and the master that asks for them.
//!
//! Enters: bytes of slaves, time as it goes by. Leaves: requests to slaves, and what the slaves' answers say as
//! [`Report`](crate::reading::Report)s. Sources: EN 13757-2:2018 (link layer), EN 13757-3:2018 (application
//! layer), EN 13757-7:2018 (addresses and selection).
//!
//! ```
//! let answer = [
//!     0x68, 0x13, 0x13, 0x68, 0x08, 0x05, 0x72, 0x78, 0x56, 0x34, 0x12, 0x2D, 0x2C, 0x1B, 0x04, 0x01, 0x00, 0x00,
//!     0x00, 0x02, 0x0E, 0x39, 0x30, 0x85, 0x16,
//! ];
//! let decoded = meterkast::mbus::read(&answer, 1).unwrap();
//! assert_eq!(decoded.secondary.unwrap().to_string(), "KAM-12345678-1B-04");
//! let energy = &decoded.report.readings[0];
//! assert_eq!((energy.value.to_string(), energy.unit.as_str()), ("12.345".to_owned(), "GJ"));
//! ```
//!
//! Not supported: radio M-Bus, encrypted telegrams, writing to meters other than address and baud rate.

#![deny(clippy::arithmetic_side_effects)]

pub mod address;
mod decode;
pub(crate) mod faults;
pub mod frame;
pub mod master;
mod real;
pub mod record;
pub mod scan;
pub mod schedule;
mod stream;
pub mod value;
pub mod vif;

pub use address::{Manufacturer, Pattern, Secondary};
pub(crate) use decode::shown;
pub use decode::{Answer, Decoded, Reason, State, decode, read};
pub use frame::{Frame, FrameError, MAX_FRAME, control};
pub use master::{Action, Command, Heard, Job, Master, Outcome, Readout, Target, Task, Timing, Trouble};
pub use record::{Coding, Item, Record, RecordError, Records, Vib};
pub use stream::{Piece, Rejected, Stream, begins};
