//! What the codes of a telegram mean, by country: tables, not code paths.
//!
//! Enters: a code, and the dialect. Leaves: a [`Meaning`]. A new variant in a known form is a new row.
//! Sources are named by row; "DSMR" is the Dutch P1 companion standard 5.0.2 unless another version
//! stands there, "e-MUCS" the Belgian e-MUCS P1 2.1.1.
//!
//! Not supported yet: demand and peaks of Belgium, and the tables of Luxembourg, Austria, the Nordic
//! countries, Hungary, Lithuania and Switzerland. Their own codes are kept as unknown, their tariff
//! registers too, because low and normal cannot be told without the country.

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
    /// line, or neither version nor time, as only DSMR 2.2 and 3.0 do it.
    pub fn detect<'a>(lines: impl IntoIterator<Item = Line<'a>>) -> Self {
        let mut timed = false;
        for line in lines {
            match line.code {
                Some(Obis { a: 1, b: 3, c: 0, d: 2, e: 8, .. }) => return Self::Netherlands,
                Some(Obis { a: 0, b: 0, c: 96, d: 1, e: 4, .. }) => return Self::Belgium,
                Some(Obis { a: 0, b: 0, c: 1, d: 0 | 1, e: 0, .. }) => timed = true,
                _ => {}
            }
        }
        if timed { Self::Unrecognised } else { Self::Netherlands }
    }

    fn tables(self) -> [&'static [Row]; 2] {
        match self {
            Self::Netherlands => [NETHERLANDS, COMMON],
            Self::Belgium => [BELGIUM, COMMON],
            Self::Unrecognised => [&[], COMMON],
        }
    }

    /// What `code` means in this dialect; None when it is unknown. Slave channels 1..4 read as channel
    /// `n` of the tables.
    #[inline]
    pub fn meaning(self, code: Obis) -> Option<&'static Meaning> {
        let code = if code.a == 0 && (1..=4).contains(&code.b) { Obis { b: SLAVE, ..code } } else { code };
        let key = code.key();
        self.tables().into_iter().find_map(|table| {
            let index = table.binary_search_by_key(&key, |row| row.code.key()).ok()?;
            table.get(index).map(|row| &row.meaning)
        })
    }
}

/// Stands for the channel number of a slave meter in the tables.
const SLAVE: u8 = 254;

/// One code.
struct Row {
    code: Obis,
    meaning: Meaning,
}

/// What a line is about.
#[derive(Debug, PartialEq, Eq)]
pub enum Meaning {
    /// `(value*unit)`: a register.
    Register {
        /// Its name.
        name: &'static str,
        /// Its unit; other prefixes of the same unit are converted.
        unit: Unit,
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

const fn row(code: Obis, meaning: Meaning) -> Row {
    Row { code, meaning }
}

const fn electric(c: u8, d: u8, e: u8, name: &'static str, unit: Unit) -> Row {
    row(Obis::new(1, 0, c, d, e), Meaning::Register { name, unit })
}

const fn general(c: u8, d: u8, e: u8, meaning: Meaning) -> Row {
    row(Obis::new(0, 0, c, d, e), meaning)
}

const fn slave(c: u8, d: u8, e: u8, meaning: Meaning) -> Row {
    row(Obis::new(0, SLAVE, c, d, e), meaning)
}

// Each table is sorted by code, which a test holds.

/// Means the same in every country. DSMR 6.12 unless said otherwise.
const COMMON: &[Row] = &[
    general(1, 0, 0, Meaning::Clock),
    general(1, 1, 0, Meaning::Clock),  // observed on WarmteLink heat devices
    general(17, 0, 0, Meaning::Limit), // DSMR 4.2.2: threshold, kW; DSMR 2.2 and 3.0: A
    general(96, 1, 1, Meaning::Identifier),
    general(96, 1, 4, Meaning::Plain("version")), // e-MUCS
    general(96, 3, 10, Meaning::Plain("switch")), // DSMR 4.2.2
    general(96, 7, 9, Meaning::Register { name: "long_power_failures", unit: Unit::NONE }),
    general(96, 7, 21, Meaning::Register { name: "power_failures", unit: Unit::NONE }),
    general(96, 13, 0, Meaning::Text("message")),
    general(96, 13, 1, Meaning::Text("message_code")), // DSMR 4.2.2
    slave(24, 1, 0, Meaning::DeviceType),
    slave(24, 2, 1, Meaning::SlaveReading),
    slave(24, 3, 0, Meaning::SlaveReadingV3),      // DSMR 3.0
    slave(24, 4, 0, Meaning::SlavePlain("valve")), // DSMR 4.2.2
    slave(96, 1, 0, Meaning::SlaveIdentifier),
    electric(1, 7, 0, "power_import", Unit::KW),
    electric(1, 8, 0, "import_total", Unit::KWH), // Luxembourg 1.1.3
    electric(2, 7, 0, "power_export", Unit::KW),
    electric(2, 8, 0, "export_total", Unit::KWH), // Luxembourg 1.1.3
    electric(21, 7, 0, "power_import_l1", Unit::KW),
    electric(22, 7, 0, "power_export_l1", Unit::KW),
    electric(31, 4, 0, "current_limit", Unit::A), // e-MUCS
    electric(31, 7, 0, "current_l1", Unit::A),
    electric(32, 7, 0, "voltage_l1", Unit::V),
    electric(32, 32, 0, "voltage_sags_l1", Unit::NONE),
    electric(32, 36, 0, "voltage_swells_l1", Unit::NONE),
    electric(41, 7, 0, "power_import_l2", Unit::KW),
    electric(42, 7, 0, "power_export_l2", Unit::KW),
    electric(51, 7, 0, "current_l2", Unit::A),
    electric(52, 7, 0, "voltage_l2", Unit::V),
    electric(52, 32, 0, "voltage_sags_l2", Unit::NONE),
    electric(52, 36, 0, "voltage_swells_l2", Unit::NONE),
    electric(61, 7, 0, "power_import_l3", Unit::KW),
    electric(62, 7, 0, "power_export_l3", Unit::KW),
    electric(71, 7, 0, "current_l3", Unit::A),
    electric(72, 7, 0, "voltage_l3", Unit::V),
    electric(72, 32, 0, "voltage_sags_l3", Unit::NONE),
    electric(72, 36, 0, "voltage_swells_l3", Unit::NONE),
    row(Obis::new(1, 0, 99, 97, 0), Meaning::FailureLog),
    row(Obis::new(1, 3, 0, 2, 8), Meaning::Plain("version")),
];

/// DSMR 6.12: tariff 1 is low, tariff 2 is normal.
const NETHERLANDS: &[Row] = &[
    general(96, 14, 0, Meaning::Tariff { first: "low", second: "normal" }),
    electric(1, 8, 1, "import_low", Unit::KWH),
    electric(1, 8, 2, "import_normal", Unit::KWH),
    electric(2, 8, 1, "export_low", Unit::KWH),
    electric(2, 8, 2, "export_normal", Unit::KWH),
];

/// e-MUCS: the other way round, and other codes for slave meters.
const BELGIUM: &[Row] = &[
    general(96, 14, 0, Meaning::Tariff { first: "normal", second: "low" }),
    slave(24, 2, 3, Meaning::SlaveReading), // gas, not temperature-corrected
    slave(96, 1, 1, Meaning::SlaveIdentifier),
    electric(1, 8, 1, "import_normal", Unit::KWH),
    electric(1, 8, 2, "import_low", Unit::KWH),
    electric(2, 8, 1, "export_normal", Unit::KWH),
    electric(2, 8, 2, "export_low", Unit::KWH),
];

/// A unit as meters write it: which unit it is a power of ten of.
struct Spelling {
    text: &'static [u8],
    unit: Unit,
    exponent: i8,
}

const fn spelling(text: &'static [u8], unit: Unit, exponent: i8) -> Spelling {
    Spelling { text, unit, exponent }
}

/// Reference: units of DSMR 6.12 first, then what Austrian, Aidon and Lithuanian meters send.
const SPELLINGS: &[Spelling] = &[
    spelling(b"kWh", Unit::KWH, 0),
    spelling(b"kW", Unit::KW, 0),
    spelling(b"V", Unit::V, 0),
    spelling(b"A", Unit::A, 0),
    spelling(b"m3", Unit::M3, 0),
    spelling(b"m\xb3", Unit::M3, 0),
    spelling(b"GJ", Unit::GJ, 0),
    spelling(b"MJ", Unit::GJ, -3),
    spelling(b"Wh", Unit::KWH, -3),
    spelling(b"MWh", Unit::KWH, 3),
    spelling(b"W", Unit::KW, -3),
    spelling(b"mA", Unit::A, -3),
    spelling(b"kV", Unit::V, 3),
    spelling(b"", Unit::NONE, 0),
];

/// The unit behind a spelling, and the power of ten by which its values are to be multiplied.
#[inline]
pub(super) fn unit(text: &[u8]) -> Option<(&'static Unit, i8)> {
    SPELLINGS.iter().find(|spelling| spelling.text == text).map(|spelling| (&spelling.unit, spelling.exponent))
}

/// The register of a slave meter's counter, by its medium and unit. None where the two do not fit.
pub(super) fn slave_register(medium: Medium, unit: &Unit) -> Option<&'static str> {
    let thermal = matches!(medium, Medium::Heat | Medium::Cooling | Medium::HeatCooling | Medium::Other(_));
    if *unit == Unit::M3 && medium != Medium::Electricity {
        Some("volume")
    } else if *unit == Unit::GJ && thermal {
        Some("energy")
    } else if *unit == Unit::KWH && medium == Medium::Electricity {
        Some("import_total")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted_and_codes_unique() {
        for table in [COMMON, NETHERLANDS, BELGIUM] {
            assert!(table.is_sorted_by(|a, b| a.code.key() < b.code.key()));
        }
    }

    #[test]
    fn normal_and_low_follow_the_country() {
        let name = |dialect: Dialect, e| match dialect.meaning(Obis::new(1, 0, 1, 8, e)) {
            Some(Meaning::Register { name, .. }) => Some(*name),
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
    fn channels_are_those_of_slaves_only() {
        let code = |b| Dialect::Netherlands.meaning(Obis::new(0, b, 24, 1, 0));
        assert_eq!(code(4), Some(&Meaning::DeviceType));
        assert_eq!(code(5), None);
        assert_eq!(code(0), None);
    }
}
