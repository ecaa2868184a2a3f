//! Which country's telegram it is, and the units and registers that its values may have.
//!
//! Enters: the header and the lines of a telegram. Leaves: a [`Dialect`], by what gives it away. What the
//! codes mean in each dialect stands in [`table`].
//!
//! Not supported: telling Sweden, Denmark, Finland, Switzerland and most Austrian meters apart. Their
//! telegrams do not say where they are; nothing but Finland's time zone depends on it, and a
//! configuration can name it.

use super::{Telegram, table};
use crate::{obis::Obis, reading::Medium, unit::Unit};

/// Whose tables explain a telegram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dialect {
    /// DSMR 2.2 to 5.0.2, and WarmteLink. Tariff 1 is low, tariff 2 is normal.
    Netherlands,
    /// e-MUCS: Flanders, Brussels, Wallonia. Tariff 1 is day (normal), tariff 2 is night (low).
    Belgium,
    /// Smarty. Tariffs are numbered as in the Netherlands.
    Luxembourg,
    /// Energie Steiermark. What its tariffs are called is not known, so they keep their numbers; so they do
    /// in all that follow.
    Austria,
    /// E.ON: the registers of the last month in one line.
    Hungary,
    /// ESO. Eastern European time.
    Lithuania,
    /// Totals only. Normal time all year.
    Sweden,
    /// Totals only.
    Denmark,
    /// Totals only. Eastern European time.
    Finland,
    /// Numbered tariffs.
    Switzerland,
    /// None of those: what means the same everywhere is explained, and tariffs keep their numbers.
    Unrecognised,
}

impl Dialect {
    /// How many there are.
    pub(super) const COUNT: usize = Self::Unrecognised as usize + 1;

    /// The names that a configuration may give.
    pub const NAMES: [(&'static str, Self); 10] = [
        ("netherlands", Self::Netherlands),
        ("belgium", Self::Belgium),
        ("luxembourg", Self::Luxembourg),
        ("austria", Self::Austria),
        ("hungary", Self::Hungary),
        ("lithuania", Self::Lithuania),
        ("sweden", Self::Sweden),
        ("denmark", Self::Denmark),
        ("finland", Self::Finland),
        ("switzerland", Self::Switzerland),
    ];

    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::NAMES.into_iter().map(|(_, dialect)| dialect).chain([Self::Unrecognised])
    }

    /// Its name, as a configuration gives it; `unrecognised` where it has none.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, dialect)| *dialect == self).map_or("unrecognised", |(name, _)| name)
    }

    /// How many hours east of UTC a meter's clock stands in winter.
    pub const fn winter_offset(self) -> i8 {
        match self {
            Self::Lithuania | Self::Finland => 2,
            _ => 1,
        }
    }

    /// Finds the dialect by what gives it away: the Dutch or the Belgian version line, or an identifier
    /// without version and time, as only DSMR 2.2 and 3.0 send it; elsewhere the header, and in Hungary the
    /// line of the last month.
    pub fn detect(telegram: &Telegram<'_>) -> Self {
        match telegram.identification() {
            [b'L', b'u' | b'U', b'x' | b'X', ..] => return Self::Luxembourg,
            [b'E', b'S', b'O', b'5', ..] => return Self::Lithuania,
            [b'E', b'S', b'T', b'5', ..] => return Self::Austria,
            _ => {}
        }
        let (mut timed, mut identified) = (false, false);
        for line in telegram.lines() {
            match line.code {
                Some(Obis { a: 1, b: 3, c: 0, d: 2, e: 8, .. }) => return Self::Netherlands,
                Some(Obis { a: 0, b: 0, c: 96, d: 1, e: 4, .. }) => return Self::Belgium,
                Some(Obis { a: 0, b: 0, c: 98, d: 1, e: 0, .. }) if table::is_snapshot(line.text) => {
                    return Self::Hungary;
                }
                Some(Obis { a: 0, b: 0, c: 1, d: 0 | 1, e: 0, .. }) => timed = true,
                Some(Obis { a: 0, b: 0, c: 96, d: 1, e: 1, .. }) => identified = true,
                _ => {}
            }
        }
        if identified && !timed { Self::Netherlands } else { Self::Unrecognised }
    }
}

/// A set of dialects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dialects(u16);

impl Dialects {
    /// Every one.
    pub(super) const ALL: Self = Self((1 << Dialect::COUNT) - 1);

    pub(super) const fn of(dialects: &[Dialect]) -> Self {
        let (mut set, mut rest) = (0, dialects);
        while let [first, tail @ ..] = rest {
            set |= 1 << *first as u16;
            rest = tail;
        }
        Self(set)
    }

    pub(super) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) const fn complement(self) -> Self {
        Self(!self.0 & Self::ALL.0)
    }

    pub(super) const fn has(self, dialect: usize) -> bool {
        self.0 & (1 << dialect) != 0
    }
}

/// The unit behind a spelling, and the power of ten by which its values are to be multiplied. Units of
/// DSMR 6.12 first, then what Austrian, Aidon and Lithuanian meters send.
pub(super) fn unit(spelling: &[u8]) -> Option<(&'static Unit, i8)> {
    Some(match spelling {
        b"kWh" => (&Unit::KWH, 0),
        b"kW" => (&Unit::KW, 0),
        b"V" => (&Unit::V, 0),
        b"A" => (&Unit::A, 0),
        b"m3" | b"m\xb3" | b"m\xc2\xb3" => (&Unit::M3, 0),
        b"GJ" => (&Unit::GJ, 0),
        b"MJ" => (&Unit::GJ, -3),
        b"Wh" => (&Unit::KWH, -3),
        b"MWh" => (&Unit::KWH, 3),
        b"W" => (&Unit::KW, -3),
        b"mA" => (&Unit::A, -3),
        b"kA" => (&Unit::A, 3),
        b"mV" => (&Unit::V, -3),
        b"kV" => (&Unit::V, 3),
        b"kvarh" | b"kVArh" | b"kVarh" => (&Unit::KVARH, 0),
        b"varh" | b"VArh" | b"Varh" => (&Unit::KVARH, -3),
        b"kvar" | b"kVAr" | b"kVar" => (&Unit::KVAR, 0),
        b"var" | b"VAr" | b"Var" => (&Unit::KVAR, -3),
        b"kVA" => (&Unit::KVA, 0),
        b"VA" => (&Unit::KVA, -3),
        b"Hz" => (&Unit::HZ, 0),
        b"kHz" => (&Unit::HZ, 3),
        b"s" => (&Unit::S, 0),
        b"" => (&Unit::NONE, 0),
        _ => return None,
    })
}

/// The unit of a medium whose meter leaves it off: that of DSMR 6.12.
pub(super) fn unit_of(medium: Medium) -> Option<&'static Unit> {
    match medium {
        Medium::Gas | Medium::HotWater | Medium::Water => Some(&Unit::M3),
        Medium::Heat | Medium::Cooling | Medium::HeatCooling => Some(&Unit::GJ),
        Medium::Electricity => Some(&Unit::KWH),
        Medium::Other(_) => None,
    }
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
    use crate::p1::{Framer, table::Meaning};

    fn detect(header: &str, lines: &[&str]) -> Dialect {
        let bytes = lines.iter().fold(crate::p1::Writer::new(header), |writer, line| writer.line(line)).finish(true);
        let mut framer = Framer::new();
        framer.push(&bytes);
        Dialect::detect(&Telegram::check(framer.poll().unwrap()).unwrap())
    }

    #[test]
    fn normal_and_low_follow_the_country() {
        let name = |dialect: Dialect, e| match table::of_code(Obis::new(1, 0, 1, 8, e))?.meaning(dialect) {
            Some(Meaning::Register { name, .. }) => Some(*name),
            _ => None,
        };
        assert_eq!(name(Dialect::Netherlands, 1), Some("import_low"));
        assert_eq!(name(Dialect::Netherlands, 2), Some("import_normal"));
        assert_eq!(name(Dialect::Luxembourg, 1), Some("import_low"));
        assert_eq!(name(Dialect::Belgium, 1), Some("import_normal"));
        assert_eq!(name(Dialect::Belgium, 2), Some("import_low"));
        assert_eq!(name(Dialect::Unrecognised, 1), Some("import_rate1"));
        assert_eq!(name(Dialect::Hungary, 2), Some("import_rate2"));
        assert_eq!(name(Dialect::Unrecognised, 0), Some("import_total"));
    }

    #[test]
    fn a_telegram_says_whose_it_is() {
        let (version, time, identifier) = ("1-3:0.2.8(50)", "0-0:1.0.0(261121200000W)", "0-0:96.1.1(4530)");
        let import = "1-0:1.8.1(000001.000*kWh)";
        assert_eq!(detect("ISK5\\2", &[version, time]), Dialect::Netherlands);
        assert_eq!(detect("ISK5\\2", &[identifier, import]), Dialect::Netherlands);
        assert_eq!(detect("XYZ5", &[time, identifier, import]), Dialect::Unrecognised);
        assert_eq!(detect("FLU5\\2", &[time, "0-0:96.1.4(50221)"]), Dialect::Belgium);
        assert_eq!(detect("Lux5\\2", &[version, time]), Dialect::Luxembourg);
        assert_eq!(detect("ESO5\\0", &[time]), Dialect::Lithuania);
        assert_eq!(detect("EST5\\1", &[version, time]), Dialect::Austria);
        assert_eq!(detect("SAG5", &[time, "0-0:98.1.0(260701000000S)(000040.777*kWh)"]), Dialect::Hungary);
        assert_eq!(detect("SAG5", &[time, "0-0:98.1.0(0)(1-0:1.6.0)(1-0:1.6.0)()"]), Dialect::Unrecognised);
        // A German push (D0) has neither version, time nor this identifier.
        assert_eq!(detect("ESY5Q3D", &[import]), Dialect::Unrecognised);
    }

    #[test]
    fn a_name_is_that_of_one_dialect() {
        assert_eq!(Dialect::all().count(), Dialect::COUNT);
        for (index, dialect) in Dialect::all().enumerate() {
            assert_eq!(dialect as usize, index);
            assert!(!Dialects::of(&[dialect]).complement().has(index));
        }
    }
}
