//! Smart meters by their P1 port (DSMR and its cousins) and by wired M-Bus: bytes in, exact readings out.
//!
//! This crate is a daemon, `meterkast`, that carries readings through MQTT into a time-series store; its README says how to install and
//! run it. And it is a library: [`p1`] and [`mbus`] stand on their own. They need no operating system beyond `std`, do no IO, read no
//! clock and start no thread, so they fit below whatever brings the bytes: blocking, async, a file, a test.
//!
//! ```toml
//! [dependencies]
//! meterkast = { version = "0.1", default-features = false }
//! ```
//!
//! # P1
//!
//! [`p1::Reader`] takes bytes as they come, split anywhere, and gives what each telegram says, or why a piece of the input is none:
//!
//! ```
//! use meterkast::p1::Reader;
//!
//! let mut reader = Reader::new(None, None);
//! for bytes in [&b"/XYZ5 example\r\n\r\n1-3:0.2.8(50)\r\n1-0:1.8.2(0001"[..], b"23.456*kWh)\r\n!E919\r\n"] {
//!     reader.push(bytes);
//!     while let Some(result) = reader.poll() {
//!         let telegram = result?;
//!         for reading in &telegram.decoded.reports[0].readings {
//!             assert_eq!(format!("{} {} {}", reading.register, reading.value, reading.unit), "import_normal 123.456 kWh");
//!         }
//!     }
//! }
//! # Ok::<(), meterkast::p1::Rejected>(())
//! ```
//!
//! # M-Bus
//!
//! [`mbus::decode()`] reads the frames of an answer, [`mbus::Stream`] finds them in whatever a bus brings, and [`mbus::Master`] says what to
//! send and when, so that a meter answers:
//!
//! ```
//! use meterkast::mbus::{self, Frame};
//!
//! let bytes = [0x68, 0x09, 0x09, 0x68, 0x08, 0x05, 0x78, 0x0C, 0x13, 0x27, 0x04, 0x00, 0x00, 0xCF, 0x16];
//! let (frame, _) = Frame::parse(&bytes)?;
//! let decoded = mbus::decode(&[frame], 1)?;
//! let volume = &decoded.report.readings[0];
//! assert_eq!(format!("{} {} {}", volume.register, volume.value, volume.unit), "volume 0.427 m3");
//! # Ok::<(), mbus::Reason>(())
//! ```
//!
//! What both give is a [`reading::Report`]: registers by one set of names, values exactly as the meter wrote them
//! ([`unit::Decimal`], never floating point), instants with the offset of their clock, and everything that was not understood. Beside them:
//! [`explain`] says what each byte of a telegram means, [`plausible`] which values cannot be, [`simulate`] makes meters and buses for
//! tests. `examples/read_p1.rs` and `examples/read_mbus.rs` are whole programs.
//!
//! # Features
//!
//! - `daemon` (default): the edges: ports, MQTT, the store, the commands. Without it the crate is the pure half, with few
//!   dependencies.
//! - `sealed`: the blocks that the store keeps, `sealed`. Part of `daemon`.
//!
//! # Stability
//!
//! The crate is at 0.x, and keeps Semantic Versioning as Cargo reads it: what breaks a caller comes with 0.(x+1). What may change in any
//! version, and is therefore marked `#[non_exhaustive]` where the compiler can hold you to it:
//!
//! - reasons, errors, countries, tables: there will be more variants of [`p1::Reason`], [`mbus::Reason`], [`mbus::FrameError`],
//!   [`mbus::RecordError`], [`mbus::Trouble`], [`p1::Dialect`], [`p1::table::Meaning`], [`reading::Medium`] and their like. Match with a `_`.
//! - a line or record that was `unknown` may become a reading, when its meaning is known; the name of a register that is there
//!   stays.
//! - texts of errors and of [`explain`] are for people. For counters there are short names, `kind()`, which stay.
//!
//! Every error is [`std::error::Error`], `Clone`, `Eq`, `Send` and `Sync`, and says where and why. Nothing panics on input, whatever it is; every
//! buffer that input fills has a bound.
//!
//! # The map
//!
//! Modules stand in the order in which data meets them, and a module uses only what stands before it
//! (`tests/all/house.rs` holds that). The first half is pure: no IO, clock, async, logging or
//! randomness. See ARCHITECTURE.md.

// --- pure ---
#[cfg(feature = "sealed")]
pub(crate) mod leb128;
pub mod moment;
pub mod unit;
pub mod obis;
pub mod reading;
pub mod capture;
pub mod p1;
pub mod mbus;
pub mod plausible;
pub mod delivery;
pub mod payload;
pub mod layout;
#[cfg(feature = "sealed")]
pub mod sealed;
pub mod consumption;
pub mod explain;
pub mod redact;
pub mod simulate;
// --- edges ---
#[cfg(feature = "daemon")]
pub mod config;
#[cfg(feature = "daemon")]
pub mod pulse;
#[cfg(feature = "daemon")]
pub mod tap;
#[cfg(feature = "daemon")]
pub mod port;
#[cfg(feature = "daemon")]
pub mod collect;
#[cfg(feature = "daemon")]
pub mod bus;
#[cfg(feature = "daemon")]
pub mod journal;
#[cfg(feature = "daemon")]
pub mod mqtt;
#[cfg(feature = "daemon")]
pub mod store;
#[cfg(feature = "daemon")]
pub mod control;
#[cfg(feature = "daemon")]
pub mod daemon;
#[cfg(feature = "daemon")]
pub mod cli;
