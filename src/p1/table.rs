//! What the codes of a telegram mean, by country: rows of data, not code paths.
//!
//! Enters: the beginning of a line, or a code. Leaves: the [`Entry`] of that code, which says for each
//! [`Dialect`] what the line means. A new variant in a known form is a new row. Each row names the
//! document that it is from, or says that it was only observed.
//!
//! The rows become a hash table when the program is compiled. Its keys are codes as text, because nearly
//! every line spells its code the usual way: one multiplication finds it, and nothing is parsed.
//!
//! Not supported: codes with a storage group (`*1`); the codes of media in the first group (`7-0:23.1.0`)
//! that DSMR 2.1 had, because the sources do not agree whether such a value is a counter or the use of a
//! day. Both are kept as unknown.

use Meaning::{
    Clock, DeviceType, FailureLog, Identifier, Limit, Limits, PeakHistory, Plain, Relay, SlaveIdentifier, SlavePlain,
    SlaveReading, SlaveReadingV3, SlaveText, Snapshot, Tariff, Text,
};

use super::dialect::{Dialect, Dialects};
use crate::{obis::Obis, unit::Unit};

/// What a line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Meaning {
    /// `(value*unit)`: a register.
    Register {
        /// Its name.
        name: &'static str,
        /// Its unit; other prefixes of the same unit are converted.
        unit: &'static Unit,
        /// How such a line ends when it is in its usual form.
        ending: Ending,
    },
    /// `(value*kW)`, `(value*kVA)` or `(value*A)`: what the connection may carry.
    Limit,
    /// `(value*A)(-value*A)` or `(value*A,-value*A)`: what each direction may carry.
    Limits,
    /// `(YYMMDDhhmmssX)`: when the telegram was made.
    Clock,
    /// `(hex)`: who the meter is.
    Identifier {
        /// Its name where another identifier is the better one.
        name: &'static str,
        /// The lowest identifies the meter.
        rank: u8,
    },
    /// `(text)`, as sent.
    Plain(&'static str),
    /// `(hex)`: text.
    Text(&'static str),
    /// `(0)`: the state of the relay whose number is the channel's.
    Relay,
    /// `(0001)`: the tariff in force, by its name, the first being that of 1.
    Tariff(&'static [&'static str]),
    /// `(n)(0-0:96.7.19)(end)(duration*s)...`: long power failures.
    FailureLog,
    /// `(time)(value*kW)`, or the other way round: the highest of the month, and when.
    Peak(&'static str),
    /// `(n)(code)(code)` then n times `(end of month)(time)(value*kW)`: the highest of past months.
    PeakHistory(&'static str),
    /// `(end of month)(value*unit)(value*unit)...`: registers as they stood then, in this order.
    Snapshot(&'static [(&'static str, &'static Unit)]),
    /// Slave: `(003)`, its device type.
    DeviceType,
    /// Slave: `(hex)`, who it is.
    SlaveIdentifier {
        /// Its name where another identifier is the better one.
        name: &'static str,
        /// The lowest identifies the meter.
        rank: u8,
    },
    /// Slave: `(time)(value*unit)`.
    SlaveReading,
    /// Slave, v3: `(time)(status)(period)(n)(code)(unit)(value)`.
    SlaveReadingV3,
    /// Slave: `(text)`, as sent.
    SlavePlain(&'static str),
    /// Slave: `(hex)`: text.
    SlaveText(&'static str),
}

impl Meaning {
    /// Whether the line is of the meter behind the channel, not of the meter whose port it is.
    pub const fn is_of_slave(self) -> bool {
        matches!(
            self,
            DeviceType | SlaveIdentifier { .. } | SlaveReading | SlaveReadingV3 | SlavePlain(_) | SlaveText(_)
        )
    }
}

/// `*unit)` and CR LF, at most eight bytes of it, to be compared at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    bytes: u64,
    mask: u64,
    length: usize,
}

impl Ending {
    /// Of a value in `unit`. A unit of more than four bytes has no usual form.
    #[expect(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        reason = "runs in the compiler, where both are errors"
    )]
    const fn of(unit: &Unit) -> Self {
        let mut bytes = [0; 8];
        let mut length = 0;
        let spelling = unit.as_str().as_bytes();
        if spelling.len() > 4 {
            return Self { bytes: 0, mask: 0, length: 0 };
        }
        if !spelling.is_empty() {
            bytes[0] = b'*';
            length = 1;
            while length <= spelling.len() {
                bytes[length] = spelling[length - 1];
                length += 1;
            }
        }
        let (close, mut at) = (*b")\r\n", 0);
        while at < close.len() {
            bytes[length] = close[at];
            (length, at) = (length + 1, at + 1);
        }
        let mask = if length == 8 { u64::MAX } else { (1 << (8 * length)) - 1 };
        Self { bytes: u64::from_le_bytes(bytes), mask, length }
    }

    /// What is left of `text` behind this ending; None where it does not stand there, or where fewer than
    /// eight bytes are left to compare.
    #[inline]
    pub(super) fn strip(self, text: &[u8]) -> Option<&[u8]> {
        let (chunk, _) = text.split_first_chunk::<8>()?;
        (self.length > 0 && u64::from_le_bytes(*chunk) & self.mask == self.bytes)
            .then(|| text.get(self.length..))
            .flatten()
    }
}

/// One code in some countries.
struct Row {
    /// As text; `n` stands for the channels 1 to 4.
    code: &'static str,
    dialects: Dialects,
    meaning: Meaning,
    /// The document, or `observed`.
    source: &'static str,
}

const fn row(code: &'static str, dialects: Dialects, meaning: Meaning, source: &'static str) -> Row {
    Row { code, dialects, meaning, source }
}

/// A row of a register that means the same everywhere.
const fn register(code: &'static str, name: &'static str, unit: &'static Unit, source: &'static str) -> Row {
    register_in(Dialects::ALL, code, name, unit, source)
}

const fn register_in(
    dialects: Dialects,
    code: &'static str,
    name: &'static str,
    unit: &'static Unit,
    source: &'static str,
) -> Row {
    Row { code, dialects, meaning: Meaning::Register { name, unit, ending: Ending::of(unit) }, source }
}

const ALL: Dialects = Dialects::ALL;
/// Where tariff 1 is low and tariff 2 is normal.
const LOW_FIRST: Dialects = Dialects::of(&[Dialect::Netherlands, Dialect::Luxembourg]);
/// Where tariff 1 is day (normal) and tariff 2 is night (low).
const NORMAL_FIRST: Dialects = Dialects::of(&[Dialect::Belgium]);
/// Where only the numbers of the tariffs are known.
const NUMBERED: Dialects = LOW_FIRST.and(NORMAL_FIRST).complement();
const BELGIUM: Dialects = NORMAL_FIRST;
const HUNGARY: Dialects = Dialects::of(&[Dialect::Hungary]);
const LITHUANIA: Dialects = Dialects::of(&[Dialect::Lithuania]);

const DSMR: &str = "DSMR P1 5.0.2, 6.12";
const DSMR4: &str = "DSMR P1 4.2.2, 6.10";
const DSMR3: &str = "DSMR P1 3.0, 6.8";
const EMUCS: &str = "e-MUCS P1 2.1.1, 5";
const LUX: &str = "Luxembourg P1 1.1.3, 6.1";
const EON: &str = "E.ON Hungary, P1 port, 2023-02-10";
const ESO: &str = "ESO Lithuania, P1 data model";
const H1: &str = "Swedish industry guideline H1 2.0";
const EASYMETER: &str = "observed: EasyMeter Q3D, IEC 62056-21 mode D";

/// All that is known.
const ROWS: &[Row] = &[
    // What a telegram says of itself and of its meter.
    row("1-3:0.2.8", ALL, Plain("version"), DSMR),
    row("0-0:96.1.4", ALL, Plain("version"), EMUCS),
    row("0-0:1.0.0", ALL, Clock, DSMR),
    row("0-0:1.1.0", ALL, Clock, "observed: WarmteLink"),
    row("0-0:96.1.1", ALL, Identifier { name: "equipment", rank: 0 }, DSMR),
    row("0-0:96.1.0", ALL, Identifier { name: "serial_number", rank: 1 }, EON),
    row("0-0:96.1.255", ALL, Identifier { name: "serial_number", rank: 1 }, EASYMETER),
    row("0-0:42.0.0", ALL, Identifier { name: "logical_device", rank: 2 }, LUX),
    row("1-0:0.0.0", ALL, Identifier { name: "address", rank: 3 }, EASYMETER),
    row("0-0:0.0.0", BELGIUM, Identifier { name: "address", rank: 3 }, "observed: Siconia E660"),
    row("0-0:96.1.2", BELGIUM, Text("ean"), EMUCS),
    row("0-0:96.3.10", ALL, Plain("switch"), DSMR4),
    row("0-n:96.3.10", ALL, Relay, LUX),
    row("1-0:96.5.5", ALL, Plain("status"), EASYMETER),
    row("1-0:0.2.0", ALL, Plain("firmware"), ESO),
    row("1-0:0.2.8", ALL, Plain("firmware_signature"), ESO),
    row("1-1:0.2.0", ALL, Plain("firmware_1"), ESO),
    row("1-1:0.2.8", ALL, Plain("firmware_signature_1"), ESO),
    row("0-0:96.13.0", ALL, Text("message"), DSMR),
    row("0-0:96.13.1", ALL, Text("message_code"), DSMR4),
    row("0-0:96.13.2", ALL, Text("message_2"), LUX),
    row("0-0:96.13.3", ALL, Text("message_3"), LUX),
    row("0-0:96.13.4", ALL, Text("message_4"), LUX),
    row("0-0:96.13.5", ALL, Text("message_5"), LUX),
    row("0-0:96.14.0", LOW_FIRST, Tariff(&["low", "normal"]), DSMR),
    row("0-0:96.14.0", NORMAL_FIRST, Tariff(&["normal", "low"]), EMUCS),
    row("0-0:96.14.0", NUMBERED, Plain("tariff"), EON),
    // Energy.
    register("1-0:1.8.0", "import_total", &Unit::KWH, LUX),
    register("1-0:2.8.0", "export_total", &Unit::KWH, LUX),
    register_in(LOW_FIRST, "1-0:1.8.1", "import_low", &Unit::KWH, DSMR),
    register_in(LOW_FIRST, "1-0:1.8.2", "import_normal", &Unit::KWH, DSMR),
    register_in(LOW_FIRST, "1-0:2.8.1", "export_low", &Unit::KWH, DSMR),
    register_in(LOW_FIRST, "1-0:2.8.2", "export_normal", &Unit::KWH, DSMR),
    register_in(NORMAL_FIRST, "1-0:1.8.1", "import_normal", &Unit::KWH, EMUCS),
    register_in(NORMAL_FIRST, "1-0:1.8.2", "import_low", &Unit::KWH, EMUCS),
    register_in(NORMAL_FIRST, "1-0:2.8.1", "export_normal", &Unit::KWH, EMUCS),
    register_in(NORMAL_FIRST, "1-0:2.8.2", "export_low", &Unit::KWH, EMUCS),
    register_in(NORMAL_FIRST, "1-1:1.8.1", "import_normal", &Unit::KWH, "observed: Siconia E660"),
    register_in(NORMAL_FIRST, "1-1:1.8.2", "import_low", &Unit::KWH, "observed: Siconia E660"),
    register_in(NORMAL_FIRST, "1-1:2.8.1", "export_normal", &Unit::KWH, "observed: Siconia E660"),
    register_in(NORMAL_FIRST, "1-1:2.8.2", "export_low", &Unit::KWH, "observed: Siconia E660"),
    register_in(NUMBERED, "1-0:1.8.1", "import_rate1", &Unit::KWH, EON),
    register_in(NUMBERED, "1-0:1.8.2", "import_rate2", &Unit::KWH, EON),
    register_in(NUMBERED, "1-0:2.8.1", "export_rate1", &Unit::KWH, EON),
    register_in(NUMBERED, "1-0:2.8.2", "export_rate2", &Unit::KWH, EON),
    register("1-0:1.8.3", "import_rate3", &Unit::KWH, EON),
    register("1-0:1.8.4", "import_rate4", &Unit::KWH, EON),
    register("1-0:1.8.5", "import_rate5", &Unit::KWH, "observed: Wallonia"),
    register("1-0:2.8.3", "export_rate3", &Unit::KWH, EON),
    register("1-0:2.8.4", "export_rate4", &Unit::KWH, EON),
    register("1-0:2.8.5", "export_rate5", &Unit::KWH, "observed: Wallonia"),
    register("1-0:15.8.0", "import_and_export_total", &Unit::KWH, EON),
    register("1-0:3.8.0", "reactive_import_total", &Unit::KVARH, LUX),
    register("1-0:3.8.1", "reactive_import_rate1", &Unit::KVARH, ESO),
    register("1-0:3.8.2", "reactive_import_rate2", &Unit::KVARH, ESO),
    register("1-0:3.8.3", "reactive_import_rate3", &Unit::KVARH, ESO),
    register("1-0:3.8.4", "reactive_import_rate4", &Unit::KVARH, ESO),
    register("1-0:4.8.0", "reactive_export_total", &Unit::KVARH, LUX),
    register("1-0:4.8.1", "reactive_export_rate1", &Unit::KVARH, ESO),
    register("1-0:4.8.2", "reactive_export_rate2", &Unit::KVARH, ESO),
    register("1-0:4.8.3", "reactive_export_rate3", &Unit::KVARH, ESO),
    register("1-0:4.8.4", "reactive_export_rate4", &Unit::KVARH, ESO),
    register("1-0:5.8.0", "reactive_quadrant1", &Unit::KVARH, EON),
    register("1-0:6.8.0", "reactive_quadrant2", &Unit::KVARH, EON),
    register("1-0:7.8.0", "reactive_quadrant3", &Unit::KVARH, EON),
    register("1-0:8.8.0", "reactive_quadrant4", &Unit::KVARH, EON),
    // Power now.
    register("1-0:1.7.0", "power_import", &Unit::KW, DSMR),
    register("1-0:2.7.0", "power_export", &Unit::KW, DSMR),
    register_in(BELGIUM, "1-1:1.7.0", "power_import", &Unit::KW, "observed: Siconia E660"),
    register_in(BELGIUM, "1-1:2.7.0", "power_export", &Unit::KW, "observed: Siconia E660"),
    register("1-0:15.7.0", "power_import_and_export", &Unit::KW, ESO),
    register("1-0:21.7.0", "power_import_l1", &Unit::KW, DSMR),
    register("1-0:41.7.0", "power_import_l2", &Unit::KW, DSMR),
    register("1-0:61.7.0", "power_import_l3", &Unit::KW, DSMR),
    register("1-0:22.7.0", "power_export_l1", &Unit::KW, DSMR),
    register("1-0:42.7.0", "power_export_l2", &Unit::KW, DSMR),
    register("1-0:62.7.0", "power_export_l3", &Unit::KW, DSMR),
    register("1-0:3.7.0", "reactive_power_import", &Unit::KVAR, LUX),
    register("1-0:4.7.0", "reactive_power_export", &Unit::KVAR, LUX),
    register("1-0:5.7.0", "reactive_power_quadrant1", &Unit::KVAR, EON),
    register("1-0:6.7.0", "reactive_power_quadrant2", &Unit::KVAR, EON),
    register("1-0:7.7.0", "reactive_power_quadrant3", &Unit::KVAR, EON),
    register("1-0:8.7.0", "reactive_power_quadrant4", &Unit::KVAR, EON),
    register("1-0:23.7.0", "reactive_power_import_l1", &Unit::KVAR, H1),
    register("1-0:43.7.0", "reactive_power_import_l2", &Unit::KVAR, H1),
    register("1-0:63.7.0", "reactive_power_import_l3", &Unit::KVAR, H1),
    register("1-0:24.7.0", "reactive_power_export_l1", &Unit::KVAR, H1),
    register("1-0:44.7.0", "reactive_power_export_l2", &Unit::KVAR, H1),
    register("1-0:64.7.0", "reactive_power_export_l3", &Unit::KVAR, H1),
    register("1-0:9.7.0", "apparent_power_import", &Unit::KVA, LUX),
    register("1-0:10.7.0", "apparent_power_export", &Unit::KVA, LUX),
    register("1-0:29.7.0", "apparent_power_import_l1", &Unit::KVA, ESO),
    register("1-0:49.7.0", "apparent_power_import_l2", &Unit::KVA, ESO),
    register("1-0:69.7.0", "apparent_power_import_l3", &Unit::KVA, ESO),
    register("1-0:30.7.0", "apparent_power_export_l1", &Unit::KVA, ESO),
    register("1-0:50.7.0", "apparent_power_export_l2", &Unit::KVA, ESO),
    register("1-0:70.7.0", "apparent_power_export_l3", &Unit::KVA, ESO),
    register("1-0:13.7.0", "power_factor", &Unit::NONE, EON),
    register("1-0:33.7.0", "power_factor_l1", &Unit::NONE, EON),
    register("1-0:53.7.0", "power_factor_l2", &Unit::NONE, EON),
    register("1-0:73.7.0", "power_factor_l3", &Unit::NONE, EON),
    register("1-0:13.3.0", "power_factor_minimum", &Unit::NONE, ESO),
    register("1-0:14.7.0", "frequency", &Unit::HZ, EON),
    // Power over time.
    register("1-0:0.8.2", "demand_period", &Unit::S, ESO),
    register("1-0:1.4.0", "demand_average", &Unit::KW, EMUCS),
    register("1-0:2.4.0", "demand_average_export", &Unit::KW, ESO),
    register("1-0:3.4.0", "reactive_demand_average_import", &Unit::KVAR, ESO),
    register("1-0:4.4.0", "reactive_demand_average_export", &Unit::KVAR, ESO),
    register("1-0:9.4.0", "apparent_demand_average_import", &Unit::KVA, ESO),
    register("1-0:10.4.0", "apparent_demand_average_export", &Unit::KVA, ESO),
    register("1-0:1.5.0", "demand_last", &Unit::KW, ESO),
    register("1-0:2.5.0", "demand_last_export", &Unit::KW, ESO),
    register("1-0:3.5.0", "reactive_demand_last_import", &Unit::KVAR, ESO),
    register("1-0:4.5.0", "reactive_demand_last_export", &Unit::KVAR, ESO),
    register("1-0:9.5.0", "apparent_demand_last_import", &Unit::KVA, ESO),
    register("1-0:10.5.0", "apparent_demand_last_export", &Unit::KVA, ESO),
    register("1-0:1.24.0", "power_average_import", &Unit::KW, ESO),
    register("1-0:15.24.0", "power_average_import_and_export", &Unit::KW, ESO),
    register("1-0:16.24.0", "power_average_net", &Unit::KW, ESO),
    row("1-0:1.6.0", ALL, Meaning::Peak("demand_peak"), EMUCS),
    row("1-1:1.6.0", BELGIUM, Meaning::Peak("demand_peak"), "observed: Siconia E660"),
    row("0-0:98.1.0", HUNGARY.complement(), PeakHistory("demand_peak"), EMUCS),
    row("0-0:98.1.0", HUNGARY, Snapshot(LAST_MONTH), EON),
    // Voltage and current.
    register("1-0:12.7.0", "voltage", &Unit::V, ESO),
    register("1-0:32.7.0", "voltage_l1", &Unit::V, DSMR),
    register("1-0:52.7.0", "voltage_l2", &Unit::V, DSMR),
    register("1-0:72.7.0", "voltage_l3", &Unit::V, DSMR),
    register("1-0:32.24.0", "voltage_average_l1", &Unit::V, ESO),
    register("1-0:52.24.0", "voltage_average_l2", &Unit::V, ESO),
    register("1-0:72.24.0", "voltage_average_l3", &Unit::V, ESO),
    register("1-0:11.7.0", "current", &Unit::A, ESO),
    register("1-0:31.7.0", "current_l1", &Unit::A, DSMR),
    register("1-0:51.7.0", "current_l2", &Unit::A, DSMR),
    register("1-0:71.7.0", "current_l3", &Unit::A, DSMR),
    register("1-0:91.7.0", "current_neutral", &Unit::A, ESO),
    register("1-0:90.7.0", "current_sum", &Unit::A, ESO),
    register_in(LITHUANIA, "1-0:31.4.0", "current_average_l1", &Unit::A, ESO),
    register_in(LITHUANIA, "1-0:51.4.0", "current_average_l2", &Unit::A, ESO),
    register_in(LITHUANIA, "1-0:71.4.0", "current_average_l3", &Unit::A, ESO),
    row("1-0:31.4.0", LITHUANIA.complement(), Limits, EMUCS),
    row("1-1:31.4.0", ALL, Limits, LUX),
    register_in(LITHUANIA.complement(), "1-0:51.4.0", "current_limit_l2", &Unit::A, EON),
    register_in(LITHUANIA.complement(), "1-0:71.4.0", "current_limit_l3", &Unit::A, EON),
    row("0-0:17.0.0", ALL, Limit, DSMR4), // kW; DSMR 2.2 and 3.0: A; Luxembourg: kVA
    // Failures.
    register("0-0:96.7.21", "power_failures", &Unit::NONE, DSMR),
    register("0-0:96.7.9", "long_power_failures", &Unit::NONE, DSMR),
    row("1-0:99.97.0", ALL, FailureLog, DSMR),
    register("1-0:32.32.0", "voltage_sags_l1", &Unit::NONE, DSMR),
    register("1-0:52.32.0", "voltage_sags_l2", &Unit::NONE, DSMR),
    register("1-0:72.32.0", "voltage_sags_l3", &Unit::NONE, DSMR),
    register("1-0:32.36.0", "voltage_swells_l1", &Unit::NONE, DSMR),
    register("1-0:52.36.0", "voltage_swells_l2", &Unit::NONE, DSMR),
    register("1-0:72.36.0", "voltage_swells_l3", &Unit::NONE, DSMR),
    register("1-0:32.33.0", "voltage_sag_duration_l1", &Unit::S, ESO),
    register("1-0:52.33.0", "voltage_sag_duration_l2", &Unit::S, ESO),
    register("1-0:72.33.0", "voltage_sag_duration_l3", &Unit::S, ESO),
    register("1-0:32.34.0", "voltage_sag_magnitude_l1", &Unit::V, ESO),
    register("1-0:52.34.0", "voltage_sag_magnitude_l2", &Unit::V, ESO),
    register("1-0:72.34.0", "voltage_sag_magnitude_l3", &Unit::V, ESO),
    register("1-0:32.37.0", "voltage_swell_duration_l1", &Unit::S, ESO),
    register("1-0:52.37.0", "voltage_swell_duration_l2", &Unit::S, ESO),
    register("1-0:72.37.0", "voltage_swell_duration_l3", &Unit::S, ESO),
    register("1-0:32.38.0", "voltage_swell_magnitude_l1", &Unit::V, ESO),
    register("1-0:52.38.0", "voltage_swell_magnitude_l2", &Unit::V, ESO),
    register("1-0:72.38.0", "voltage_swell_magnitude_l3", &Unit::V, ESO),
    // Slave meters.
    row("0-n:24.1.0", ALL, DeviceType, DSMR),
    row("0-n:96.1.0", ALL, SlaveIdentifier { name: "serial_number", rank: 1 }, DSMR),
    row("0-n:96.1.1", ALL, SlaveIdentifier { name: "equipment", rank: 0 }, EMUCS),
    row("0-n:96.1.2", ALL, SlaveText("ean"), EMUCS),
    row("0-n:24.2.1", ALL, SlaveReading, DSMR),
    row("0-n:24.2.3", ALL, SlaveReading, EMUCS), // gas: not temperature-corrected
    row("0-n:24.3.0", ALL, SlaveReadingV3, DSMR3),
    row("0-n:24.4.0", ALL, SlavePlain("valve"), DSMR4),
];

/// What stood at the end of the last month, in Hungary.
const LAST_MONTH: &[(&str, &Unit)] = &[
    ("import_total", &Unit::KWH),
    ("import_rate1", &Unit::KWH),
    ("import_rate2", &Unit::KWH),
    ("export_total", &Unit::KWH),
    ("export_rate1", &Unit::KWH),
    ("export_rate2", &Unit::KWH),
    ("reactive_import_total", &Unit::KVARH),
    ("reactive_export_total", &Unit::KVARH),
    ("reactive_quadrant1", &Unit::KVARH),
    ("reactive_quadrant2", &Unit::KVARH),
    ("reactive_quadrant3", &Unit::KVARH),
    ("reactive_quadrant4", &Unit::KVARH),
    ("import_and_export_total", &Unit::KWH),
    ("demand_peak", &Unit::KW),
    ("demand_peak_rate1", &Unit::KW),
    ("demand_peak_rate2", &Unit::KW),
    ("demand_peak_export", &Unit::KW),
    ("demand_peak_export_rate1", &Unit::KW),
    ("demand_peak_export_rate2", &Unit::KW),
];

/// Whether the text of a line has the form of a [`Meaning::Snapshot`]: a time, not a count, comes first.
pub(super) fn is_snapshot(text: &[u8]) -> bool {
    matches!(text, [b'(', time @ ..] if time.first_chunk::<12>().is_some_and(|digits| digits.iter().all(u8::is_ascii_digit)))
}

/// A code, and what it means in each country.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The code as text, the first character in the lowest byte.
    key: u128,
    /// The code.
    pub code: Obis,
    /// By dialect: the number of the row, from 1; 0 where there is none.
    rows: [u8; Dialect::COUNT],
}

impl Entry {
    const EMPTY: Self = Self { key: 0, code: Obis::new(0, 0, 0, 0, 0), rows: [0; Dialect::COUNT] };

    /// What the code means in `dialect`; None where it means nothing that is known.
    #[inline]
    pub fn meaning(&self, dialect: Dialect) -> Option<&'static Meaning> {
        self.row(dialect).map(|row| &row.meaning)
    }

    /// Which document says so.
    pub fn source(&self, dialect: Dialect) -> Option<&'static str> {
        self.row(dialect).map(|row| row.source)
    }

    #[inline]
    fn row(&self, dialect: Dialect) -> Option<&'static Row> {
        let number = *self.rows.get(dialect as usize)?;
        ROWS.get(usize::from(number).checked_sub(1)?)
    }
}

/// A power of two, four times the number of codes.
const SLOTS: usize = 1024;

/// Open addressing: an entry stands in its own slot or in one of those behind it.
static TABLE: [Entry; SLOTS] = table();

/// The slot of a key. The factor is the golden ratio, as in Fibonacci hashing.
#[inline]
const fn slot(key: u128) -> usize {
    let (low, high) = (key as u64, (key >> 64) as u64);
    let mixed = (low ^ high.rotate_left(29)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 64u32.wrapping_sub(SLOTS.trailing_zeros())) as usize
}

#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "runs in the compiler, where both are errors"
)]
const fn table() -> [Entry; SLOTS] {
    let mut table = [Entry::EMPTY; SLOTS];
    let mut number = 0;
    while number < ROWS.len() {
        let row = &ROWS[number];
        number += 1;
        let text = row.code.as_bytes();
        let mut channel = 1;
        while channel <= 4 {
            let mut key = [0; 16];
            let (mut at, mut slave) = (0, false);
            while at < text.len() {
                slave |= text[at] == b'n';
                key[at] = if text[at] == b'n' { b'0' + channel } else { text[at] };
                at += 1;
            }
            insert(&mut table, u128::from_le_bytes(key), number as u8, row.dialects);
            // A code without a channel of its own stands once.
            channel = if slave { channel + 1 } else { 5 };
        }
    }
    assert!(ROWS.len() < 256);
    table
}

#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "runs in the compiler, where both are errors"
)]
const fn insert(table: &mut [Entry; SLOTS], key: u128, number: u8, dialects: Dialects) {
    let mut at = slot(key);
    while table[at].key != 0 && table[at].key != key {
        at = (at + 1) % SLOTS;
    }
    table[at].key = key;
    table[at].code = parse(key.to_le_bytes());
    let mut dialect = 0;
    while dialect < Dialect::COUNT {
        if dialects.has(dialect) {
            assert!(table[at].rows[dialect] == 0);
            table[at].rows[dialect] = number;
        }
        dialect += 1;
    }
}

/// The code of a key.
#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "runs in the compiler, where both are errors"
)]
const fn parse(text: [u8; 16]) -> Obis {
    let mut groups = [0u8; 5];
    let (mut group, mut at) = (0, 0);
    while at < text.len() && text[at] != 0 {
        match text[at] {
            digit @ b'0'..=b'9' => groups[group] = groups[group] * 10 + (digit - b'0'),
            _ => group += 1,
        }
        at += 1;
    }
    Obis::new(groups[0], groups[1], groups[2], groups[3], groups[4])
}

#[inline]
fn find_key(key: u128) -> Option<&'static Entry> {
    let mut at = slot(key);
    loop {
        // The table is never full, so an empty slot ends the search.
        let entry = TABLE.get(at % SLOTS)?;
        if entry.key == key {
            return Some(entry);
        }
        if entry.key == 0 {
            return None;
        }
        at = at.wrapping_add(1);
    }
}

/// The entry of the code at the beginning of `line`, where it is spelled as in the table and a bracket
/// follows; with the length of the code. None also where fewer than 16 bytes are left to look at.
#[inline]
pub(super) fn find(line: &[u8]) -> Option<(&'static Entry, usize)> {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    let (chunk, _) = line.split_first_chunk::<16>()?;
    let text = u128::from_le_bytes(*chunk);
    // No code has fewer than nine characters, so the bracket is in the upper half: the lowest byte that is
    // zero after the exclusive-or, found by the borrow that it causes.
    let brackets = ((text >> 64) as u64) ^ ONES.wrapping_mul(b'(' as u64);
    let zeros = brackets.wrapping_sub(ONES) & !brackets & ONES.wrapping_mul(0x80);
    let bits = (zeros & zeros.wrapping_neg()).trailing_zeros() & !7;
    if zeros == 0 {
        return None;
    }
    let length = 64u32.wrapping_add(bits);
    let key = text & (1u128.wrapping_shl(length)).wrapping_sub(1);
    // A zero byte before the bracket would pass for the padding behind a shorter code.
    if (key >> length.wrapping_sub(8)) as u8 == 0 {
        return None;
    }
    find_key(key).map(|entry| (entry, (length / 8) as usize))
}

/// What a code means in `dialect`, however it is spelled; None where it means nothing that is known.
pub fn meaning(code: Obis, dialect: Dialect) -> Option<&'static Meaning> {
    of_code(code)?.meaning(dialect)
}

/// The entry of a code however it was spelled.
pub(super) fn of_code(code: Obis) -> Option<&'static Entry> {
    // A code that does not fit, or has a storage group, is in no row.
    let text = code.to_string();
    let mut key = [0; 16];
    key.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
    find_key(u128::from_le_bytes(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_found_by_its_text_and_by_its_code() {
        for row in ROWS {
            for channel in ["1", "2", "3", "4"] {
                let code = row.code.replace('n', channel);
                let (entry, length) = find(format!("{code}(0123456").as_bytes()).unwrap();
                assert_eq!((entry.code.to_string(), length), (code.clone(), code.len()));
                assert_eq!(of_code(entry.code), Some(entry));
                let dialects = Dialect::all().filter(|dialect| row.dialects.has(*dialect as usize));
                for dialect in dialects {
                    assert_eq!(entry.meaning(dialect), Some(&row.meaning), "{code}");
                    assert_eq!(entry.source(dialect), Some(row.source));
                }
            }
            assert!(!row.source.is_empty());
        }
    }

    #[test]
    fn what_is_in_no_row_is_not_found() {
        for line in [
            "9-9:99.99.99(12345678)",
            "1-0:1.8.1 (12345678)",
            "1-0:1.8.1(",
            "1-0:1.8.1*1(1234567)",
            "0-5:24.1.0(00300)",
            "0-1:24.2.1\0(0000",
        ] {
            assert_eq!(find(line.as_bytes()), None, "{line}");
        }
        assert_eq!(of_code(Obis { f: 1, ..Obis::new(1, 0, 1, 8, 1) }), None);
        assert_eq!(of_code(Obis::new(255, 255, 255, 255, 255)), None);
    }

    #[test]
    fn an_ending_is_that_of_its_unit() {
        assert_eq!(Ending::of(&Unit::KWH).strip(b"*kWh)\r\n!x"), Some(&b"!x"[..]));
        assert_eq!(Ending::of(&Unit::NONE).strip(b")\r\n12345"), Some(&b"12345"[..]));
        assert_eq!(Ending::of(&Unit::KWH).strip(b"*kW)\r\n123"), None);
        assert_eq!(Ending::of(&Unit::KVARH).strip(b"*kvarh)\r\n123"), None);
        assert_eq!(Ending::of(&Unit::V).strip(b"*V)\r\n"), None, "too little to compare");
    }
}
