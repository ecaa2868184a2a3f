//! The common tongue: what a meter said, whichever wire it came over.
//!
//! Enters: what a decoder understood. Leaves: a [`Report`], everything one meter said at one moment.
//! A [`Reading`] has no database and no wire derive: `payload` and `store` convert.

use std::{borrow::Cow, fmt};

use jiff::SignedDuration;
use smol_str::SmolStr;

use crate::{
    moment::Moment,
    unit::{Decimal, Unit},
};

/// What a meter measures. From the device type of EN 13757-3 (P1: `0-n:24.1.0`, M-Bus: the header).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Medium {
    /// 2.
    Electricity,
    /// 3.
    Gas,
    /// 4 (outlet) and 12 (inlet).
    Heat,
    /// 10 (outlet) and 11 (inlet).
    Cooling,
    /// 13.
    HeatCooling,
    /// 6 and 21 (90 C and above).
    HotWater,
    /// 7 and 22 (cold).
    Water,
    /// Any other device type, kept as sent; 0 when the meter does not say.
    Other(u8),
}

impl Medium {
    /// From the device type of EN 13757-3.
    pub const fn from_device_type(code: u8) -> Self {
        match code {
            2 => Self::Electricity,
            3 => Self::Gas,
            4 | 12 => Self::Heat,
            6 | 21 => Self::HotWater,
            7 | 22 => Self::Water,
            10 | 11 => Self::Cooling,
            13 => Self::HeatCooling,
            other => Self::Other(other),
        }
    }

    /// The name on the wire and in the store, without the code of [`Medium::Other`].
    pub const fn name(self) -> &'static str {
        match self {
            Self::Electricity => "electricity",
            Self::Gas => "gas",
            Self::Heat => "heat",
            Self::Cooling => "cooling",
            Self::HeatCooling => "heat_cooling",
            Self::HotWater => "hot_water",
            Self::Water => "water",
            Self::Other(_) => "other",
        }
    }

    /// From a name and, for `other`, the raw code. None for a name that is none of ours.
    pub fn from_name(name: &str, code: u8) -> Option<Self> {
        Some(match name {
            "electricity" => Self::Electricity,
            "gas" => Self::Gas,
            "heat" => Self::Heat,
            "cooling" => Self::Cooling,
            "heat_cooling" => Self::HeatCooling,
            "hot_water" => Self::HotWater,
            "water" => Self::Water,
            "other" => Self::Other(code),
            _ => return None,
        })
    }
}

/// The name of a register: `import_low`, `energy`, `volume`, ... Lower case, digits and `_`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Register(SmolStr);

impl Register {
    /// A name known when this was compiled.
    pub const fn named(name: &'static str) -> Self {
        Self(SmolStr::new_static(name))
    }

    /// From the wire: 1 to 64 bytes of `[a-z0-9_]`. None for anything else.
    pub fn from_text(text: &str) -> Option<Self> {
        let valid = (1..=64).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        // A message has dozens of names, and most have less than 24 bytes: they need no allocation.
        valid.then(|| Self(SmolStr::new(text)))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it counts up from the day the meter was placed, so that a difference is a consumption.
    pub fn is_cumulative(&self) -> bool {
        let name = self.as_str();
        matches!(name, "energy" | "volume" | "mass")
            || matches!(name, "energy_forward" | "energy_backward" | "volume_forward" | "volume_backward")
            || ["import_", "export_", "reactive_import_", "reactive_export_", "reactive_quadrant"]
                .iter()
                .any(|start| name.starts_with(start))
    }
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a value was formed (EN 13757-3, DIF bits 4 and 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Function {
    /// The value itself.
    #[default]
    Instantaneous,
    /// Highest since some time.
    Maximum,
    /// Lowest since some time.
    Minimum,
    /// The value while an error stood.
    Error,
}

impl Function {
    /// The name on the wire; None for the instantaneous value, which goes without.
    pub const fn name(self) -> Option<&'static str> {
        match self {
            Self::Instantaneous => None,
            Self::Maximum => Some("max"),
            Self::Minimum => Some("min"),
            Self::Error => Some("error"),
        }
    }

    /// From the name on the wire.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "max" => Self::Maximum,
            "min" => Self::Minimum,
            "error" => Self::Error,
            _ => return None,
        })
    }
}

/// Which of a meter's values under one register name this is. All zero: the value as it stands now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Qualifiers {
    /// 0 now, 1.. at past set days.
    pub storage: u64,
    /// 0 none.
    pub tariff: u32,
    /// 0 the meter itself.
    pub subunit: u16,
    /// How the value was formed.
    pub function: Function,
}

/// Why a value that passed every check is still not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Suspect {
    /// Lower than before.
    Backwards,
    /// More than the connection can carry in the time.
    TooFast,
}

impl Suspect {
    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Backwards => "backwards",
            Self::TooFast => "too_fast",
        }
    }

    /// From the name on the wire.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "backwards" => Self::Backwards,
            "too_fast" => Self::TooFast,
            _ => return None,
        })
    }
}

/// One value of one register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Which register.
    pub register: Register,
    /// The value in `unit`, with the meter's decimals.
    pub value: Decimal,
    /// The unit of `value`.
    pub unit: Unit,
    /// Storage, tariff, subunit, function.
    pub qualifiers: Qualifiers,
    /// When the meter stored it, where that differs from the report's own time (a set day).
    pub at: Option<Moment>,
    /// Why it is not believed.
    pub suspect: Option<Suspect>,
    /// Value and unit as the meter counts, where they were converted.
    pub raw: Option<Box<(Decimal, Unit)>>,
}

impl Reading {
    /// A value as it stands now, in the meter's own unit.
    pub fn now(register: Register, value: Decimal, unit: Unit) -> Self {
        Self { register, value, unit, qualifiers: Qualifiers::default(), at: None, suspect: None, raw: None }
    }

    /// Whether it is of now and not of a past set day, the meter's own and of no single tariff: what `state`
    /// shows. The highest demand of this month is of now, though it was reached earlier.
    pub fn is_current(&self) -> bool {
        self.qualifiers == Qualifiers::default()
    }

    /// Whether consumption follows from it: a counter's value of now that is believed.
    pub fn is_counted(&self) -> bool {
        self.is_current() && self.suspect.is_none() && self.register.is_cumulative()
    }
}

/// Whose clock a time is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Clock {
    /// The meter's own.
    Meter,
    /// That of the telegram, for a slave meter without a valid time.
    Telegram,
    /// The gateway's: the time of reception.
    Gateway,
    /// The gateway's, before it was synchronised.
    Unsynchronised,
}

impl Clock {
    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Meter => "meter",
            Self::Telegram => "telegram",
            Self::Gateway => "gateway",
            Self::Unsynchronised => "unsynchronised",
        }
    }

    /// From the name on the wire.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "meter" => Self::Meter,
            "telegram" => Self::Telegram,
            "gateway" => Self::Gateway,
            "unsynchronised" => Self::Unsynchronised,
            _ => return None,
        })
    }
}

/// Who a meter says it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Identity {
    /// Its own identifier, such as `E0043007052870318`.
    Own(String),
    /// It does not say; known only by where it hangs.
    Place {
        /// The channel behind the port, 1..4 on P1; None for the meter itself.
        channel: Option<u8>,
    },
}

impl Identity {
    /// The meter's name: its own, or `<gateway>.<port>[.<channel>]`.
    pub fn name(&self, gateway: &str, port: &str) -> String {
        match self {
            Self::Own(id) => id.clone(),
            Self::Place { channel: None } => format!("{gateway}.{port}"),
            Self::Place { channel: Some(channel) } => format!("{gateway}.{port}.{channel}"),
        }
    }
}

/// Something that happened, as the meter's log has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What: `power_failure`.
    pub event: Cow<'static, str>,
    /// When it ended; None when the meter's clock was not set.
    pub end: Option<Moment>,
    /// How long it lasted, in seconds.
    pub duration_s: Option<u64>,
}

/// What the decoder does not know: kept, counted and shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown {
    /// The code as written, empty when there was none.
    pub code: String,
    /// The rest, with bytes outside printable ASCII as `\xNN` and a backslash doubled.
    pub text: String,
}

/// A text under its name.
pub type Info = (Cow<'static, str>, Cow<'static, str>);

/// The name under which a meter whose clock is not taken for the time of its report says what that clock showed, as RFC 3339.
pub const METER_TIME: &str = "meter_time";

/// Everything one meter said at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report<M = Identity> {
    /// Who it is: an [`Identity`] as decoded, a name once the place is known.
    pub meter: M,
    /// What it measures.
    pub medium: Medium,
    /// `p1` or `mbus`.
    pub protocol: Cow<'static, str>,
    /// When; None when no clock but the gateway's can say.
    pub measured_at: Option<Moment>,
    /// Whose clock `measured_at` is from.
    pub clock: Clock,
    /// In the order in which they were sent.
    pub readings: Vec<Reading>,
    /// Text: messages, versions, the tariff in force.
    pub info: Vec<Info>,
    /// The meter's log.
    pub events: Vec<Event>,
    /// What was not understood.
    pub unknown: Vec<Unknown>,
}

impl<M> Report<M> {
    /// Moves every time in it by so much: its own, those of set days and of events. What stands in texts is not moved; a time that no
    /// calendar has stays as it is.
    pub fn shift(&mut self, by: SignedDuration) {
        let readings = self.readings.iter_mut().map(|reading| &mut reading.at);
        let events = self.events.iter_mut().map(|event| &mut event.end);
        for at in readings.chain(events).chain([&mut self.measured_at]).flatten() {
            *at = at.shifted(by).unwrap_or(*at);
        }
    }

    /// The same report under another name for its meter.
    pub fn rename<N>(self, name: impl FnOnce(M) -> N) -> Report<N> {
        Report {
            meter: name(self.meter),
            medium: self.medium,
            protocol: self.protocol,
            measured_at: self.measured_at,
            clock: self.clock,
            readings: self.readings,
            info: self.info,
            events: self.events,
            unknown: self.unknown,
        }
    }
}

/// Bytes from a wire as text that is safe everywhere and loses nothing: printable ASCII as it is,
/// a backslash doubled, every other byte as `\xNN`.
pub fn escape(bytes: &[u8]) -> String {
    use fmt::Write as _;
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'\\' => text.push_str("\\\\"),
            b' '..=b'~' => text.push(char::from(byte)),
            // Writing to a String cannot fail.
            _ => {
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_types_are_those_of_the_standard() {
        for (code, medium) in [
            (2, Medium::Electricity),
            (3, Medium::Gas),
            (4, Medium::Heat),
            (12, Medium::Heat),
            (6, Medium::HotWater),
            (21, Medium::HotWater),
            (7, Medium::Water),
            (22, Medium::Water),
            (10, Medium::Cooling),
            (13, Medium::HeatCooling),
            (8, Medium::Other(8)),
        ] {
            assert_eq!(Medium::from_device_type(code), medium);
            assert_eq!(Medium::from_name(medium.name(), code), Some(medium));
        }
    }

    #[test]
    fn escaped_text_keeps_every_byte() {
        assert_eq!(escape(b"m\xb3\\\x00"), "m\\xb3\\\\\\x00");
    }

    #[test]
    fn differences_of_counters_only_are_consumption() {
        for (name, cumulative) in [
            ("import_low", true),
            ("energy", true),
            ("power_import", false),
            ("voltage_l1", false),
            ("volume", true),
            ("volume_backward", true),
            ("volume_per_hour", false),
        ] {
            assert_eq!(Register::named(name).is_cumulative(), cumulative, "{name}");
        }
    }
}
