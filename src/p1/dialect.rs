//! What the codes of a telegram mean, by country: tables, not code paths.
//!
//! Enters: a code, and the dialect. Leaves: a [`Meaning`]. A new variant in a known form is a new row.
//! Sources are named by row; "DSMR" is the Dutch P1 companion standard 5.0.2 unless another version
//! stands there, "e-MUCS" the Belgian e-MUCS P1 2.1.1.
//!
//! Not supported yet: demand and peaks of Belgium, and the tables of Luxembourg, Austria, the Nordic
//! countries, Hungary, Lithuania and Switzerland. Their own codes are kept as unknown, their tariff
//! registers too, because low and normal cannot be told without the country.

use Meaning::{
    Clock, DeviceType, FailureLog, Identifier, Limit, Plain, Register, SlaveIdentifier, SlavePlain, SlaveReading,
    SlaveReadingV3, Tariff, Text,
};

use super::Line;
use crate::{obis::Obis, reading::Medium, unit::Unit};

/// Which country's tables explain a telegram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// DSMR 2.2 to 5.0.2. Tariff 1 is low, tariff 2 normal. Luxembourg numbers alike.
    Netherlands,
    /// e-MUCS: Flanders and Brussels. Tariff 1 is day (normal), tariff 2 is night (low).
    Belgium,
    /// None of those: only what means the same everywhere is explained.
    Unrecognised,
}

impl Dialect {
    /// The names that a configuration may give.
    pub const NAMES: [(&'static str, Self); 2] = [("netherlands", Self::Netherlands), ("belgium", Self::Belgium)];

    /// Finds the dialect by the lines that give it away: the Dutch version line, the Belgian version
    /// line, or an identifier without version and time, as only DSMR 2.2 and 3.0 send it.
    pub fn detect<'a>(lines: impl IntoIterator<Item = Line<'a>>) -> Self {
        let (mut timed, mut identified) = (false, false);
        for line in lines {
            match line.code {
                Some(Obis { a: 1, b: 3, c: 0, d: 2, e: 8, .. }) => return Self::Netherlands,
                Some(Obis { a: 0, b: 0, c: 96, d: 1, e: 4, .. }) => return Self::Belgium,
                Some(Obis { a: 0, b: 0, c: 1, d: 0 | 1, e: 0, .. }) => timed = true,
                Some(Obis { a: 0, b: 0, c: 96, d: 1, e: 1, .. }) => identified = true,
                _ => {}
            }
        }
        if identified && !timed { Self::Netherlands } else { Self::Unrecognised }
    }

    /// What `code` means in this dialect; None when it is unknown.
    pub fn meaning(self, code: Obis) -> Option<Meaning> {
        let special = match self {
            Self::Netherlands => netherlands(code),
            Self::Belgium => belgium(code),
            Self::Unrecognised => None,
        };
        special.or_else(|| common(code))
    }
}

/// What a line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// `(value*unit)`: a register.
    Register {
        /// Its name.
        name: &'static str,
        /// Its unit; other prefixes of the same unit are converted.
        unit: &'static Unit,
    },
    /// `(value*kW)` or `(value*A)`: what the connection may carry.
    Limit,
    /// `(YYMMDDhhmmssX)`: when the telegram was made.
    Clock,
    /// `(hex)`: who the meter is.
    Identifier,
    /// `(text)`, as sent.
    Plain(&'static str),
    /// `(hex)`: text.
    Text(&'static str),
    /// `(0001)`: the tariff in force, by its name.
    Tariff {
        /// The name of 1.
        first: &'static str,
        /// The name of 2.
        second: &'static str,
    },
    /// `(n)(0-0:96.7.19)(end)(duration*s)...`: long power failures.
    FailureLog,
    /// Slave: `(003)`, its device type.
    DeviceType,
    /// Slave: `(hex)`, who it is.
    SlaveIdentifier,
    /// Slave: `(time)(value*unit)`.
    SlaveReading,
    /// Slave, v3: `(time)(status)(period)(n)(code)(unit)(value)`.
    SlaveReadingV3,
    /// Slave: `(text)`, as sent.
    SlavePlain(&'static str),
}

const fn register(name: &'static str, unit: &'static Unit) -> Meaning {
    Register { name, unit }
}

/// Means the same in every country. DSMR 6.12 unless said otherwise.
fn common(code: Obis) -> Option<Meaning> {
    let Obis { a, b, c, d, e, f: 255 } = code else { return None };
    Some(match (a, b, c, d, e) {
        (0, 0, 1, 0, 0) => Clock,
        (0, 0, 1, 1, 0) => Clock,  // observed on WarmteLink heat devices
        (0, 0, 17, 0, 0) => Limit, // DSMR 4.2.2: threshold, kW; DSMR 2.2 and 3.0: A
        (0, 0, 96, 1, 1) => Identifier,
        (0, 0, 96, 1, 4) => Plain("version"), // e-MUCS
        (0, 0, 96, 3, 10) => Plain("switch"), // DSMR 4.2.2
        (0, 0, 96, 7, 9) => register("long_power_failures", &Unit::NONE),
        (0, 0, 96, 7, 21) => register("power_failures", &Unit::NONE),
        (0, 0, 96, 13, 0) => Text("message"),
        (0, 0, 96, 13, 1) => Text("message_code"), // DSMR 4.2.2
        (0, 1..=4, 24, 1, 0) => DeviceType,
        (0, 1..=4, 24, 2, 1) => SlaveReading,
        (0, 1..=4, 24, 3, 0) => SlaveReadingV3,      // DSMR 3.0
        (0, 1..=4, 24, 4, 0) => SlavePlain("valve"), // DSMR 4.2.2
        (0, 1..=4, 96, 1, 0) => SlaveIdentifier,
        (1, 0, 1, 7, 0) => register("power_import", &Unit::KW),
        (1, 0, 1, 8, 0) => register("import_total", &Unit::KWH), // Luxembourg 1.1.3
        (1, 0, 2, 7, 0) => register("power_export", &Unit::KW),
        (1, 0, 2, 8, 0) => register("export_total", &Unit::KWH), // Luxembourg 1.1.3
        (1, 0, 21, 7, 0) => register("power_import_l1", &Unit::KW),
        (1, 0, 22, 7, 0) => register("power_export_l1", &Unit::KW),
        (1, 0, 31, 4, 0) => register("current_limit", &Unit::A), // e-MUCS
        (1, 0, 31, 7, 0) => register("current_l1", &Unit::A),
        (1, 0, 32, 7, 0) => register("voltage_l1", &Unit::V),
        (1, 0, 32, 32, 0) => register("voltage_sags_l1", &Unit::NONE),
        (1, 0, 32, 36, 0) => register("voltage_swells_l1", &Unit::NONE),
        (1, 0, 41, 7, 0) => register("power_import_l2", &Unit::KW),
        (1, 0, 42, 7, 0) => register("power_export_l2", &Unit::KW),
        (1, 0, 51, 7, 0) => register("current_l2", &Unit::A),
        (1, 0, 52, 7, 0) => register("voltage_l2", &Unit::V),
        (1, 0, 52, 32, 0) => register("voltage_sags_l2", &Unit::NONE),
        (1, 0, 52, 36, 0) => register("voltage_swells_l2", &Unit::NONE),
        (1, 0, 61, 7, 0) => register("power_import_l3", &Unit::KW),
        (1, 0, 62, 7, 0) => register("power_export_l3", &Unit::KW),
        (1, 0, 71, 7, 0) => register("current_l3", &Unit::A),
        (1, 0, 72, 7, 0) => register("voltage_l3", &Unit::V),
        (1, 0, 72, 32, 0) => register("voltage_sags_l3", &Unit::NONE),
        (1, 0, 72, 36, 0) => register("voltage_swells_l3", &Unit::NONE),
        (1, 0, 99, 97, 0) => FailureLog,
        (1, 3, 0, 2, 8) => Plain("version"),
        _ => return None,
    })
}

/// DSMR 6.12: tariff 1 is low, tariff 2 is normal.
fn netherlands(code: Obis) -> Option<Meaning> {
    let Obis { a, b, c, d, e, f: 255 } = code else { return None };
    Some(match (a, b, c, d, e) {
        (0, 0, 96, 14, 0) => Tariff { first: "low", second: "normal" },
        (1, 0, 1, 8, 1) => register("import_low", &Unit::KWH),
        (1, 0, 1, 8, 2) => register("import_normal", &Unit::KWH),
        (1, 0, 2, 8, 1) => register("export_low", &Unit::KWH),
        (1, 0, 2, 8, 2) => register("export_normal", &Unit::KWH),
        _ => return None,
    })
}

/// e-MUCS: the other way round, and other codes for slave meters.
fn belgium(code: Obis) -> Option<Meaning> {
    let Obis { a, b, c, d, e, f: 255 } = code else { return None };
    Some(match (a, b, c, d, e) {
        (0, 0, 96, 14, 0) => Tariff { first: "normal", second: "low" },
        (0, 1..=4, 24, 2, 3) => SlaveReading, // gas, not temperature-corrected
        (0, 1..=4, 96, 1, 1) => SlaveIdentifier,
        (1, 0, 1, 8, 1) => register("import_normal", &Unit::KWH),
        (1, 0, 1, 8, 2) => register("import_low", &Unit::KWH),
        (1, 0, 2, 8, 1) => register("export_normal", &Unit::KWH),
        (1, 0, 2, 8, 2) => register("export_low", &Unit::KWH),
        _ => return None,
    })
}

/// The unit behind a spelling, and the power of ten by which its values are to be multiplied. Units of
/// DSMR 6.12 first, then what Austrian, Aidon and Lithuanian meters send.
pub(super) fn unit(spelling: &[u8]) -> Option<(&'static Unit, i8)> {
    Some(match spelling {
        b"kWh" => (&Unit::KWH, 0),
        b"kW" => (&Unit::KW, 0),
        b"V" => (&Unit::V, 0),
        b"A" => (&Unit::A, 0),
        b"m3" | b"m\xb3" => (&Unit::M3, 0),
        b"GJ" => (&Unit::GJ, 0),
        b"MJ" => (&Unit::GJ, -3),
        b"Wh" => (&Unit::KWH, -3),
        b"MWh" => (&Unit::KWH, 3),
        b"W" => (&Unit::KW, -3),
        b"mA" => (&Unit::A, -3),
        b"kV" => (&Unit::V, 3),
        b"" => (&Unit::NONE, 0),
        _ => return None,
    })
}

/// The register of a slave meter's counter, by its medium and unit. None where the two do not fit.
pub(super) fn slave_register(medium: Medium, unit: &Unit) -> Option<&'static str> {
    let thermal = matches!(medium, Medium::Heat | Medium::Cooling | Medium::HeatCooling | Medium::Other(_));
    match unit.as_str() {
        "m3" if medium != Medium::Electricity => Some("volume"),
        "GJ" if thermal => Some("energy"),
        "kWh" if medium == Medium::Electricity => Some("import_total"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_and_low_follow_the_country() {
        let name = |dialect: Dialect, e| match dialect.meaning(Obis::new(1, 0, 1, 8, e)) {
            Some(Register { name, .. }) => Some(name),
            _ => None,
        };
        assert_eq!(name(Dialect::Netherlands, 1), Some("import_low"));
        assert_eq!(name(Dialect::Netherlands, 2), Some("import_normal"));
        assert_eq!(name(Dialect::Belgium, 1), Some("import_normal"));
        assert_eq!(name(Dialect::Belgium, 2), Some("import_low"));
        assert_eq!(name(Dialect::Unrecognised, 1), None);
        assert_eq!(name(Dialect::Unrecognised, 0), Some("import_total"));
    }

    #[test]
    fn dutch_is_what_says_so_or_is_as_old_as_dsmr_3() {
        let line = |code| Line { code: Some(code), code_text: b"", text: b"()" };
        let (version, time, identifier) =
            (Obis::new(1, 3, 0, 2, 8), Obis::new(0, 0, 1, 0, 0), Obis::new(0, 0, 96, 1, 1));
        let import = line(Obis::new(1, 0, 1, 8, 1));
        assert_eq!(Dialect::detect([line(version), line(time)]), Dialect::Netherlands);
        assert_eq!(Dialect::detect([line(identifier), import]), Dialect::Netherlands);
        assert_eq!(Dialect::detect([line(time), line(identifier), import]), Dialect::Unrecognised);
        // A German push (D0) has neither version, time nor this identifier.
        assert_eq!(Dialect::detect([import]), Dialect::Unrecognised);
    }

    #[test]
    fn channels_are_those_of_slaves_only() {
        let code = |b| Dialect::Netherlands.meaning(Obis::new(0, b, 24, 1, 0));
        assert_eq!(code(4), Some(DeviceType));
        assert_eq!(code(5), None);
        assert_eq!(code(0), None);
    }
}
