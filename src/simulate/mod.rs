//! Virtual meters: what the demo reads where no meter hangs, and years of a household to try a store with.
//!
//! Enters: a [`Description`] and [`Moment`](crate::moment::Moment)s. Leaves: P1 telegrams of a [`Household`] in every
//! [`Dialect`], answers on an M-Bus ([`Bus`]), all that both ports bring from one moment to another ([`Tape`]); and the
//! [`Book`]s of what the meters truly hold, to compare with what arrived in a store. Nothing here
//! knows the time or chance: the same description and moments give the same bytes, on every machine.
//!
//! ```
//! # use meterkast::{moment::NotAMoment, p1, simulate::Household};
//! let mut household = Household::new(7, "2026-07-14T12:00:00+02:00".parse()?);
//! household.advance("2026-07-14T12:00:03+02:00".parse()?);
//! let mut framer = p1::Framer::new();
//! framer.push(&household.telegram());
//! let decoded = p1::read(framer.poll().unwrap(), None).unwrap();
//! assert_eq!(decoded.reports[0].measured_at.unwrap().to_string(), "2026-07-14T12:00:03+02:00");
//! assert_eq!(decoded.reports[0].readings[1].value, household.books()[0].readings[1].value);
//! # Ok::<(), NotAMoment>(())
//! ```
//!
//! What happens to the meters ([`description::Event`]): exchange, power failure, a clock that leaps, other firmware. What goes wrong on the
//! way: [`Faults`]. Summer time comes and goes by the country's rule, except in Sweden, whose meters stay with normal time.
//!
//! Not supported: public holidays (the low tariff on weekdays); cooling and electricity behind a P1 port; several P1 ports; a slave meter that is
//! silent while its port goes on; years outside 2007..=2099, whose telegrams no clock of a meter could show; fractions of a second, which
//! are dropped; leap seconds. The meters of an M-Bus keep their own clock an hour ahead of UTC all year, and it does not leap.

pub mod bus;
pub mod description;
mod dialects;
mod faults;
mod habits;
mod household;
pub mod slave;
mod tape;

pub use bus::Bus;
pub use description::Description;
pub use dialects::Dialect;
pub use faults::{Faults, Harm};
pub use habits::{Holiday, Profile};
pub use household::{Book, Household};
pub use tape::Tape;

/// A number from 0 to below `below`, as if thrown: always the same for the same seed, stream and index.
/// (The mixer is that of SplitMix64: Steele, Lea and Flood, 2014.)
fn noise(seed: u64, stream: u64, index: i64, below: i64) -> i64 {
    let mix = |number: u64| {
        let number = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        number ^ (number >> 31)
    };
    let thrown = mix(mix(mix(seed) ^ stream) ^ index.cast_unsigned());
    (thrown % below.max(1).unsigned_abs()).cast_signed()
}
