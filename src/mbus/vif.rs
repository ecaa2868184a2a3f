//! What a record measures: the tables of VIF and VIFE.
//!
//! Enters: the value information of a record. Leaves: a [`Meaning`]: a quantity by name, how its number is to be
//! taken, and its unit; or nothing, where the tables do not know it.
//!
//! Source: EN 13757-3:2018, tables 10 (primary VIF), 12 (FB), 14 (FD), 15 and 16 (combinable VIFE), as the open
//! implementations rscada/libmbus, wmbusmeters and m-bus-parser have them. Powers of ten are exact.
//!
//! Not supported, and kept raw: profiles (VIFE 13, 1E, 1F), non-metric alternatives (3D), OBIS declarations (3F),
//! the third table (EF), and what is reserved.

#![expect(clippy::arithmetic_side_effects, reason = "small numbers of the lowest bits of a code")]

use std::{borrow::Cow, fmt::Write as _};

use super::record::Vib;
use crate::unit::{Decimal, Unit};

/// What a record measures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meaning {
    /// The quantity, with what its VIFE add: `flow`, `flow_upper_limit`.
    pub name: Cow<'static, str>,
    /// How the data is to be taken.
    pub kind: Kind,
    /// Which way it counts, where a VIFE says so.
    pub direction: Option<Direction>,
    /// Instead of a value: what the slave says is wrong with it.
    pub fault: Option<&'static str>,
    /// Whether nothing but powers of ten was added to the VIF.
    pub plain: bool,
}

/// How the data of a record is to be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A number of 10^`exponent` of a base unit.
    Amount {
        /// What it counts.
        base: Base,
        /// -12..=12.
        exponent: i8,
    },
    /// A number whose unit is a text of the slave's own, x 10^`exponent`.
    Plain {
        /// In reading order; empty where the text cannot be a [`Unit`].
        unit: Unit,
        /// -12..=12.
        exponent: i8,
    },
    /// A number that names something: digits, not an amount.
    Identifier,
    /// Bits.
    Flags,
    /// A date, or a time, or both.
    Date,
}

/// Which way a counter counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Only what is drawn (VIFE 3B).
    Forward,
    /// Only what is given back (VIFE 3C).
    Backward,
}

/// Units that the tables count in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is named as it is")]
#[non_exhaustive]
pub enum Base {
    WattHour,
    Joule,
    Calorie,
    VarHour,
    VoltAmpereHour,
    CubicMetre,
    CubicFoot,
    Gallon,
    Kilogram,
    Tonne,
    Watt,
    JoulePerHour,
    Var,
    VoltAmpere,
    CubicMetrePerHour,
    CubicMetrePerMinute,
    CubicMetrePerSecond,
    GallonPerMinute,
    GallonPerHour,
    KilogramPerHour,
    Celsius,
    Kelvin,
    Fahrenheit,
    Bar,
    Volt,
    Ampere,
    Hertz,
    Degree,
    Percent,
    Decibel,
    Second,
    Minute,
    Hour,
    Day,
    Month,
    Year,
    None,
}

/// A number with its unit, and how the meter counts where that is another number.
pub type Amount = (Decimal, Unit, Option<(Decimal, Unit)>);

impl Base {
    /// A number of 10^`exponent` of this unit in the unit that readings have, exactly. `thermal`: energy is heat
    /// or cold, in GJ. None where that needs more than 18 digits.
    pub fn amount(self, number: Decimal, exponent: i8, thermal: bool) -> Option<Amount> {
        let shifted = |by: i8, unit| Some((number.shift(exponent.checked_add(by)?)?, unit, None));
        let times = |factor, by: i8, unit, own| {
            let factor = Decimal::whole(factor)?;
            Some((number.times(factor)?.shift(exponent.checked_add(by)?)?, unit, Some((number.shift(exponent)?, own))))
        };
        match self {
            Self::WattHour => {
                let own = prefixed(number, exponent, ["Wh", "kWh", "MWh", "GWh"])?;
                match thermal {
                    // 1 Wh = 3600 J.
                    true => {
                        let gigajoules = number.times(Decimal::whole(36)?)?.shift(exponent.checked_sub(7)?)?;
                        Some((gigajoules, Unit::GJ, Some(own)))
                    }
                    false => shifted(-3, Unit::KWH),
                }
            }
            Self::Joule => {
                let own = prefixed(number, exponent, ["J", "kJ", "MJ", "GJ"])?;
                let own = Some(own).filter(|(_, unit)| *unit != Unit::GJ);
                Some((number.shift(exponent.checked_sub(9)?)?, Unit::GJ, own))
            }
            Self::JoulePerHour => {
                let (value, unit) = prefixed(number, exponent, ["J/h", "kJ/h", "MJ/h", "GJ/h"])?;
                Some((value, unit, None))
            }
            Self::CubicMetrePerMinute => times(60, 0, M3H, Unit::named("m3/min")),
            Self::CubicMetrePerSecond => times(3600, 0, M3H, Unit::named("m3/s")),
            Self::Tonne => shifted(3, Unit::named("kg")),
            Self::Calorie => shifted(-6, Unit::named("Mcal")),
            Self::Watt => shifted(-3, Unit::KW),
            Self::Var => shifted(-3, Unit::KVAR),
            Self::VoltAmpere => shifted(-3, Unit::KVA),
            Self::VarHour => shifted(-3, Unit::KVARH),
            Self::VoltAmpereHour => shifted(-3, Unit::named("kVAh")),
            Self::CubicMetre => shifted(0, Unit::M3),
            Self::CubicFoot => shifted(0, Unit::named("ft3")),
            Self::Gallon => shifted(0, Unit::named("gal")),
            Self::Kilogram => shifted(0, Unit::named("kg")),
            Self::CubicMetrePerHour => shifted(0, M3H),
            Self::GallonPerMinute => shifted(0, Unit::named("gal/min")),
            Self::GallonPerHour => shifted(0, Unit::named("gal/h")),
            Self::KilogramPerHour => shifted(0, Unit::named("kg/h")),
            Self::Celsius => shifted(0, Unit::named("C")),
            Self::Kelvin => shifted(0, Unit::named("K")),
            Self::Fahrenheit => shifted(0, Unit::named("F")),
            Self::Bar => shifted(0, Unit::named("bar")),
            Self::Volt => shifted(0, Unit::V),
            Self::Ampere => shifted(0, Unit::A),
            Self::Hertz => shifted(0, Unit::HZ),
            Self::Degree => shifted(0, Unit::named("deg")),
            Self::Percent => shifted(0, Unit::named("%")),
            Self::Decibel => shifted(0, Unit::named("dBm")),
            Self::Second => shifted(0, Unit::S),
            Self::Minute => shifted(0, Unit::named("min")),
            Self::Hour => shifted(0, Unit::named("h")),
            Self::Day => shifted(0, Unit::named("d")),
            Self::Month => shifted(0, Unit::named("month")),
            Self::Year => shifted(0, Unit::named("year")),
            Self::None => shifted(0, Unit::NONE),
        }
    }
}

const M3H: Unit = Unit::named("m3/h");

/// In the smallest unit of a thousandfold series in which the number needs no zeros behind it.
fn prefixed(number: Decimal, exponent: i8, units: [&'static str; 4]) -> Option<(Decimal, Unit)> {
    let mut power = 0i8;
    for (index, unit) in units.into_iter().enumerate() {
        if exponent <= power || index == 3 {
            return Some((number.shift(exponent.checked_sub(power)?)?, Unit::named(unit)));
        }
        power = power.checked_add(3)?;
    }
    None
}

/// What the value information of a record says; None where the tables do not know it.
pub fn meaning(vib: &Vib<'_>) -> Option<Meaning> {
    let mut extensions = vib.extensions.iter().map(|vife| vife & 0x7F);
    let (name, mut kind): (Cow<'static, str>, _) = match vib.vif {
        0xFB => extensions.next().and_then(first_extension)?.into_quantity(),
        0xFD => extensions.next().and_then(second_extension)?.into_quantity(),
        vif => match vib.text {
            Some(text) => plain_text(text),
            None => primary(vif & 0x7F)?.into_quantity(),
        },
    };
    let mut meaning = Meaning { name, kind: Kind::Flags, direction: None, fault: None, plain: true };
    while let Some(code) = extensions.next() {
        match code {
            0x00 | 0x1D => continue,
            0x70..=0x77 => {
                kind.shift((code as i8 & 7).wrapping_sub(6))?;
                continue;
            }
            0x7D => {
                kind.shift(3)?;
                continue;
            }
            0x01..=0x1C => match fault(code) {
                Some(fault) => meaning.fault = Some(fault),
                None => meaning.add(match code {
                    0x12 => "_average",
                    0x14 => "_relative_deviation",
                    _ => return None,
                }),
            },
            0x20..=0x38 => meaning.add(PER.get(usize::from(code & 0x1F))?),
            0x39 => {
                meaning.add("_start");
                kind = Kind::Date;
            }
            0x3A => meaning.add("_uncorrected"),
            0x3B => meaning.direction = Some(Direction::Forward),
            0x3C => meaning.direction = Some(Direction::Backward),
            0x3E => meaning.add("_at_base_conditions"),
            0x40 | 0x48 => meaning.add(limit(code)),
            0x41 | 0x49 => {
                meaning.add(limit(code));
                meaning.add("_exceeds");
                kind = Kind::Amount { base: Base::None, exponent: 0 };
            }
            0x42..=0x4F if code & 2 != 0 => {
                meaning.add(limit(code));
                meaning.add(if code & 4 == 0 { "_first" } else { "_last" });
                meaning.add(if code & 1 == 0 { "_begin" } else { "_end" });
                kind = Kind::Date;
            }
            0x50..=0x67 => {
                if code < 0x60 {
                    meaning.add(limit(code));
                }
                meaning.add(if code & 4 == 0 { "_first_duration" } else { "_last_duration" });
                kind = Kind::Amount { base: time(code), exponent: 0 };
            }
            0x68 => meaning.add("_during_lower_limit_exceed"),
            0x6C => meaning.add("_during_upper_limit_exceed"),
            0x69 => meaning.add("_leakage"),
            0x6D => meaning.add("_overflow"),
            0x6A | 0x6B | 0x6E | 0x6F => {
                meaning.add(if code & 4 == 0 { "_first" } else { "_last" });
                meaning.add(if code & 1 == 0 { "_begin" } else { "_end" });
                kind = Kind::Date;
            }
            0x78..=0x7B => {
                kind.shift((code as i8 & 3).wrapping_sub(3))?;
                meaning.add("_additive_correction");
            }
            0x7C => meaning.add(combinable(extensions.next()?)?),
            0x7E => meaning.add("_future"),
            // What follows is the maker's own: the number stands under a name of its own.
            0x7F => {
                meaning.add("_manufacturer");
                for code in extensions.by_ref() {
                    // Writing to a String cannot fail.
                    let _ = write!(meaning.name.to_mut(), "_{code:02x}");
                }
            }
            _ => return None,
        }
        meaning.plain = false;
    }
    Some(Meaning { kind, ..meaning })
}

impl Meaning {
    fn add(&mut self, suffix: &str) {
        self.name.to_mut().push_str(suffix);
    }
}

impl Kind {
    fn shift(&mut self, by: i8) -> Option<()> {
        match self {
            Self::Amount { exponent, .. } | Self::Plain { exponent, .. } => {
                *exponent = exponent.checked_add(by).filter(|exponent| (-24..=24).contains(exponent))?;
            }
            // A multiple of what is no number.
            Self::Identifier | Self::Flags | Self::Date => return None,
        }
        Some(())
    }
}

/// A row of a table.
struct Quantity(&'static str, Kind);

impl Quantity {
    fn into_quantity(self) -> (Cow<'static, str>, Kind) {
        (Cow::Borrowed(self.0), self.1)
    }
}

const fn amount(name: &'static str, base: Base, exponent: i8) -> Option<Quantity> {
    Some(Quantity(name, Kind::Amount { base, exponent }))
}

const fn identifier(name: &'static str) -> Option<Quantity> {
    Some(Quantity(name, Kind::Identifier))
}

const fn flags(name: &'static str) -> Option<Quantity> {
    Some(Quantity(name, Kind::Flags))
}

const fn count(name: &'static str) -> Option<Quantity> {
    amount(name, Base::None, 0)
}

/// Seconds, minutes, hours, days by the lowest two bits.
const fn time(code: u8) -> Base {
    match code & 3 {
        0 => Base::Second,
        1 => Base::Minute,
        2 => Base::Hour,
        _ => Base::Day,
    }
}

/// Hours, days, months, years by the lowest two bits.
const fn long_time(code: u8) -> Base {
    match code & 3 {
        0 => Base::Hour,
        1 => Base::Day,
        2 => Base::Month,
        _ => Base::Year,
    }
}

/// Table 10.
const fn primary(vif: u8) -> Option<Quantity> {
    let three = (vif & 7) as i8;
    let two = (vif & 3) as i8;
    match vif {
        0x00..=0x07 => amount("energy", Base::WattHour, three - 3),
        0x08..=0x0F => amount("energy", Base::Joule, three),
        0x10..=0x17 => amount("volume", Base::CubicMetre, three - 6),
        0x18..=0x1F => amount("mass", Base::Kilogram, three - 3),
        0x20..=0x23 => amount("on_time", time(vif), 0),
        0x24..=0x27 => amount("operating_time", time(vif), 0),
        0x28..=0x2F => amount("power", Base::Watt, three - 3),
        0x30..=0x37 => amount("power", Base::JoulePerHour, three),
        0x38..=0x3F => amount("flow", Base::CubicMetrePerHour, three - 6),
        0x40..=0x47 => amount("flow", Base::CubicMetrePerMinute, three - 7),
        0x48..=0x4F => amount("flow", Base::CubicMetrePerSecond, three - 9),
        0x50..=0x57 => amount("mass_flow", Base::KilogramPerHour, three - 3),
        0x58..=0x5B => amount("flow_temperature", Base::Celsius, two - 3),
        0x5C..=0x5F => amount("return_temperature", Base::Celsius, two - 3),
        0x60..=0x63 => amount("temperature_difference", Base::Kelvin, two - 3),
        0x64..=0x67 => amount("external_temperature", Base::Celsius, two - 3),
        0x68..=0x6B => amount("pressure", Base::Bar, two - 3),
        0x6C => Some(Quantity("date", Kind::Date)),
        0x6D => Some(Quantity("date_time", Kind::Date)),
        0x6E => count("heat_cost_units"),
        0x70..=0x73 => amount("averaging_duration", time(vif), 0),
        0x74..=0x77 => amount("actuality_duration", time(vif), 0),
        0x78 => identifier("fabrication_number"),
        0x79 => identifier("enhanced_identification"),
        0x7A => identifier("bus_address"),
        _ => None,
    }
}

/// Table 12: behind FB.
const fn first_extension(code: u8) -> Option<Quantity> {
    let one = (code & 1) as i8;
    let two = (code & 3) as i8;
    match code {
        0x00 | 0x01 => amount("energy", Base::WattHour, one + 5),
        0x02 | 0x03 => amount("reactive_energy", Base::VarHour, one + 3),
        0x04 | 0x05 => amount("apparent_energy", Base::VoltAmpereHour, one + 3),
        0x08 | 0x09 => amount("energy", Base::Joule, one + 8),
        0x0C..=0x0F => amount("energy", Base::Calorie, two + 5),
        0x10 | 0x11 => amount("volume", Base::CubicMetre, one + 2),
        0x14..=0x17 => amount("reactive_power", Base::Var, two),
        0x18 | 0x19 => amount("mass", Base::Tonne, one + 2),
        0x1A | 0x1B => amount("relative_humidity", Base::Percent, one - 1),
        0x20 => amount("volume", Base::CubicFoot, 0),
        0x21 => amount("volume", Base::CubicFoot, -1),
        0x22 | 0x23 => amount("volume", Base::Gallon, one - 1),
        0x24 => amount("flow", Base::GallonPerMinute, -3),
        0x25 => amount("flow", Base::GallonPerMinute, 0),
        0x26 => amount("flow", Base::GallonPerHour, 0),
        0x28 | 0x29 => amount("power", Base::Watt, one + 5),
        0x2A => amount("phase_voltage_to_voltage", Base::Degree, -1),
        0x2B => amount("phase_voltage_to_current", Base::Degree, -1),
        0x2C..=0x2F => amount("frequency", Base::Hertz, two - 3),
        0x30 | 0x31 => amount("power", Base::JoulePerHour, one + 8),
        0x34..=0x37 => amount("apparent_power", Base::VoltAmpere, two),
        0x58..=0x5B => amount("flow_temperature", Base::Fahrenheit, two - 3),
        0x5C..=0x5F => amount("return_temperature", Base::Fahrenheit, two - 3),
        0x60..=0x63 => amount("temperature_difference", Base::Fahrenheit, two - 3),
        0x64..=0x67 => amount("external_temperature", Base::Fahrenheit, two - 3),
        0x70..=0x73 => amount("temperature_limit", Base::Fahrenheit, two - 3),
        0x74..=0x77 => amount("temperature_limit", Base::Celsius, two - 3),
        0x78..=0x7F => amount("cumulated_maximum_power", Base::Watt, (code & 7) as i8 - 3),
        _ => None,
    }
}

/// Table 14: behind FD.
const fn second_extension(code: u8) -> Option<Quantity> {
    match code {
        // In units of a currency that is not said.
        0x00..=0x03 => amount("credit", Base::None, (code & 3) as i8 - 3),
        0x04..=0x07 => amount("debit", Base::None, (code & 3) as i8 - 3),
        0x08 => identifier("access_number"),
        0x09 => identifier("device_type"),
        0x0A => identifier("manufacturer"),
        0x0B => identifier("parameter_set"),
        0x0C => identifier("model_version"),
        0x0D => identifier("hardware_version"),
        0x0E => identifier("firmware_version"),
        0x0F => identifier("software_version"),
        0x10 => identifier("customer_location"),
        0x11 => identifier("customer"),
        0x12 => identifier("access_code_user"),
        0x13 => identifier("access_code_operator"),
        0x14 => identifier("access_code_system_operator"),
        0x15 => identifier("access_code_developer"),
        0x16 => identifier("password"),
        0x17 => flags("error_flags"),
        0x18 => flags("error_mask"),
        0x1A => flags("digital_output"),
        0x1B => flags("digital_input"),
        0x1C => count("baud_rate"),
        0x1D => count("response_delay_bit_times"),
        0x1E => count("retries"),
        0x1F => flags("remote_control"),
        0x20 => count("first_storage"),
        0x21 => count("last_storage"),
        0x22 => count("storage_block_size"),
        0x24..=0x27 => amount("storage_interval", time(code), 0),
        0x28 => amount("storage_interval", Base::Month, 0),
        0x29 => amount("storage_interval", Base::Year, 0),
        0x2A => identifier("operator_data"),
        0x2B => amount("time_point_second", Base::Second, 0),
        0x2C..=0x2F => amount("since_last_readout", time(code), 0),
        0x30 => Some(Quantity("tariff_start", Kind::Date)),
        0x31..=0x33 => amount("tariff_duration", time(code), 0),
        0x34..=0x37 => amount("tariff_period", time(code), 0),
        0x38 => amount("tariff_period", Base::Month, 0),
        0x39 => amount("tariff_period", Base::Year, 0),
        0x3A => count("dimensionless"),
        0x40..=0x4F => amount("voltage", Base::Volt, (code & 0x0F) as i8 - 9),
        0x50..=0x5F => amount("current", Base::Ampere, (code & 0x0F) as i8 - 12),
        0x60 => count("resets"),
        0x61 => count("cumulations"),
        0x62 => flags("control_signal"),
        0x63 => count("day_of_week"),
        0x64 => count("week_number"),
        0x65 => Some(Quantity("day_change", Kind::Date)),
        0x66 => identifier("parameter_activation_state"),
        0x67 => identifier("supplier_information"),
        0x68..=0x6B => amount("since_last_cumulation", long_time(code), 0),
        0x6C..=0x6F => amount("battery_operating_time", long_time(code), 0),
        0x70 => Some(Quantity("battery_change", Kind::Date)),
        0x71 => amount("rf_level", Base::Decibel, 0),
        0x74 => amount("battery_remaining", Base::Day, 0),
        0x75 => count("stops"),
        _ => None,
    }
}

/// A unit of the slave's own words, last letter first. Its name is what tells such registers apart.
fn plain_text(text: &[u8]) -> (Cow<'static, str>, Kind) {
    let text: Vec<u8> = text.iter().rev().copied().collect();
    let unit = std::str::from_utf8(&text).ok().and_then(Unit::from_text).unwrap_or(Unit::NONE);
    let letter = |byte: &u8| match byte {
        byte if byte.is_ascii_alphanumeric() => char::from(byte.to_ascii_lowercase()),
        _ => '_',
    };
    let name = format!("text_{}", text.iter().take(32).map(letter).collect::<String>());
    (Cow::Owned(name), Kind::Plain { unit, exponent: 0 })
}

/// VIFE 01 to 1C that say that there is no value.
const fn fault(code: u8) -> Option<&'static str> {
    Some(match code {
        0x01 => "too many DIFE",
        0x02 => "storage number not implemented",
        0x03 => "unit number not implemented",
        0x04 => "tariff number not implemented",
        0x05 => "function not implemented",
        0x06 => "data class not implemented",
        0x07 => "data size not implemented",
        0x0B => "too many VIFE",
        0x0C => "illegal VIF group",
        0x0D => "illegal VIF exponent",
        0x0E => "VIF and DIF do not fit",
        0x0F => "unimplemented action",
        0x15 => "no data available",
        0x16 => "data overflow",
        0x17 => "data underflow",
        0x18 => "data error",
        0x1C => "premature end of record",
        _ => return None,
    })
}

/// VIFE 20 to 38.
const PER: [&str; 25] = [
    "_per_second",
    "_per_minute",
    "_per_hour",
    "_per_day",
    "_per_week",
    "_per_month",
    "_per_year",
    "_per_revolution",
    "_per_input_pulse_0",
    "_per_input_pulse_1",
    "_per_output_pulse_0",
    "_per_output_pulse_1",
    "_per_litre",
    "_per_m3",
    "_per_kg",
    "_per_kelvin",
    "_per_kwh",
    "_per_gj",
    "_per_kw",
    "_per_kelvin_litre",
    "_per_volt",
    "_per_ampere",
    "_times_second",
    "_times_second_per_volt",
    "_times_second_per_ampere",
];

const fn limit(code: u8) -> &'static str {
    if code & 8 == 0 { "_lower_limit" } else { "_upper_limit" }
}

/// Table 16: behind VIFE FC.
const fn combinable(code: u8) -> Option<&'static str> {
    Some(match code {
        0x01 => "_l1",
        0x02 => "_l2",
        0x03 => "_l3",
        0x04 => "_n",
        0x05 => "_l1_l2",
        0x06 => "_l2_l3",
        0x07 => "_l3_l1",
        0x08 => "_quadrant1",
        0x09 => "_quadrant2",
        0x0A => "_quadrant3",
        0x0B => "_quadrant4",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vib(vif: u8, extensions: &[u8]) -> Vib<'_> {
        Vib { vif, text: None, extensions }
    }

    fn shown(vif: u8, extensions: &[u8], number: i64, thermal: bool) -> String {
        let Some(meaning) = meaning(&vib(vif, extensions)) else { return "unknown".to_owned() };
        let (name, fault) = (meaning.name, meaning.fault.map_or(String::new(), |fault| format!(" ({fault})")));
        let number = Decimal::whole(number).unwrap();
        match meaning.kind {
            Kind::Amount { base, exponent } => {
                let (value, unit, raw) = base.amount(number, exponent, thermal).unwrap();
                let raw = raw.map_or(String::new(), |(value, unit)| format!(" = {value} {unit}"));
                format!("{name} {value} {unit}{raw}{fault}")
            }
            kind => format!("{name} {kind:?}{fault}"),
        }
    }

    #[test]
    fn heat_is_gigajoules_exactly() {
        for (vif, extensions, number, text) in [
            (0x06, &[][..], 12345, "energy 44.4420 GJ = 12345 kWh"),
            (0x05, &[], 12345, "energy 4.44420 GJ = 1234.5 kWh"),
            (0x07, &[], 12345, "energy 444.420 GJ = 123.45 MWh"),
            (0x03, &[], 12345, "energy 0.0444420 GJ = 12345 Wh"),
            (0x00, &[], 1, "energy 0.0000000036 GJ = 0.001 Wh"),
            (0xFB, &[0x00], 12345, "energy 4444.20 GJ = 1234.5 MWh"),
            (0xFB, &[0x01], 12345, "energy 44442.0 GJ = 12345 MWh"),
            (0x08, &[], 12345, "energy 0.000012345 GJ = 12345 J"),
            (0x0E, &[], 12345, "energy 12.345 GJ = 12345 MJ"),
            (0x0D, &[], 12345, "energy 1.2345 GJ = 1234.5 MJ"),
            (0x0F, &[], 12345, "energy 123.45 GJ"),
            (0xFB, &[0x08], 12345, "energy 1234.5 GJ"),
            (0xFB, &[0x09], 12345, "energy 12345 GJ"),
            (0x86, &[0x73], 12345, "energy 0.0444420 GJ = 12345 Wh"),
            (0x86, &[0x7D], 12345, "energy 44442.0 GJ = 12345 MWh"),
        ] {
            assert_eq!(shown(vif, extensions, number, true), text, "{vif:02X} {extensions:02X?}");
        }
        assert_eq!(shown(0x05, &[], 12345, false), "energy 1234.5 kWh");
    }

    #[test]
    fn others_keep_their_decimals() {
        for (vif, extensions, number, text) in [
            (0x13, &[][..], 12345, "volume 12.345 m3"),
            (0xFB, &[0x10], 5, "volume 500 m3"),
            (0x3B, &[], 64, "flow 0.064 m3/h"),
            (0x45, &[], 7, "flow 4.20 m3/h = 0.07 m3/min"),
            (0x2D, &[], 14, "power 1.4 kW"),
            (0xFB, &[0x28], 3, "power 300 kW"),
            (0x36, &[], 3, "power 3 MJ/h"),
            (0x5A, &[], 570, "flow_temperature 57.0 C"),
            (0x61, &[], -9, "temperature_difference -0.09 K"),
            (0x23, &[], 524, "on_time 524 d"),
            (0xFD, &[0x48], 4029, "voltage 402.9 V"),
            (0xFD, &[0xC9, 0xFC, 0x02], 230, "voltage_l2 230 V"),
            (0xFD, &[0xD9, 0xFF, 0x01], 1, "current_manufacturer_01 0.001 A"),
            (0x90, &[0x28], 11, "volume_per_input_pulse_0 0.000011 m3"),
            (0xBB, &[0x48], 11, "flow_upper_limit 0.011 m3/h"),
            (0xBB, &[0x49], 11, "flow_upper_limit_exceeds 11 "),
            (0xBB, &[0x5E], 11, "flow_upper_limit_last_duration 11 h"),
            (0xDB, &[0x6F], 0, "flow_temperature_last_end Date"),
            (0xDB, &[0x42], 0, "flow_temperature_lower_limit_first_begin Date"),
            (0xEC, &[0x7E], 0, "date_future Date"),
            (0x93, &[0x15], 0, "volume 0.000 m3 (no data available)"),
            (0x78, &[], 0, "fabrication_number Identifier"),
            (0xFD, &[0x17], 0, "error_flags Flags"),
            (0x6F, &[], 0, "unknown"),
            (0x7F, &[], 0, "unknown"),
            (0xFF, &[0x07], 0, "unknown"),
            (0xFD, &[0x7F], 0, "unknown"),
            (0x93, &[0x3F], 0, "unknown"),
            (0xEF, &[0x01], 0, "unknown"),
        ] {
            assert_eq!(shown(vif, extensions, number, true), text, "{vif:02X} {extensions:02X?}");
        }
    }

    #[test]
    fn a_unit_in_words_is_read_backwards() {
        let vib = Vib { vif: 0xFC, text: Some(b"HR%"), extensions: &[0x74] };
        let Meaning { name, kind, .. } = meaning(&vib).unwrap();
        assert_eq!((&*name, kind), ("text__rh", Kind::Plain { unit: Unit::named("%RH"), exponent: -2 }));
        let vib = Vib { vif: 0x7C, text: Some(b"emit .tab"), extensions: &[] };
        let Meaning { name, kind, .. } = meaning(&vib).unwrap();
        assert_eq!((&*name, kind), ("text_bat__time", Kind::Plain { unit: Unit::NONE, exponent: 0 }));
    }

    /// No code, and no chain of codes, is too much for the tables.
    #[test]
    fn every_code_has_a_meaning_or_none() {
        for vif in 0..=u8::MAX {
            for first in 0..=u8::MAX {
                for second in [0x00, 0x01, 0x7C, 0x7F, 0x70, 0x77, 0x7D] {
                    let extensions = [first, second, second, second, second, second, second, second];
                    if let Some(Meaning { kind: Kind::Amount { base, exponent }, .. }) = meaning(&vib(vif, &extensions))
                    {
                        for number in [i64::from(u32::MAX), 999_999_999_999_999_999] {
                            let _ = base.amount(Decimal::whole(number).unwrap(), exponent, true);
                        }
                    }
                }
            }
        }
    }
}
