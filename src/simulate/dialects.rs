//! What the telegram of each country and version has in it: rows of data, not code paths.
//!
//! Enters: nothing. Leaves: [`Form`]s, which [`super::household`] fills with what its meters count. They are written from
//! the specifications, not from [`crate::p1::table`], so that each is a check of the other.
//!
//! Sources: DSMR P1 companion standards 2.2, 3.0, 4.0, 4.2.2 and 5.0.2; e-MUCS P1 1.4 and 2.1.1; Luxembourg P1 1.1.3; E.ON
//! Hungary 2023; ESO Lithuania; Swedish industry guideline H1 2.0. What Austria, Denmark, Finland, Switzerland and Germany send was
//! observed.

use serde::Deserialize;

use crate::{p1, unit::Unit};

/// Country and version of a telegram, by the name that a description has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dialect {
    /// DSMR 2.2: no CRC, no version, no time.
    #[serde(rename = "netherlands-2.2")]
    Netherlands22,
    /// DSMR 3.0: no CRC, no version, no time.
    #[serde(rename = "netherlands-3.0")]
    Netherlands30,
    /// DSMR 4.0.
    #[serde(rename = "netherlands-4.0")]
    Netherlands40,
    /// DSMR 4.2.
    #[serde(rename = "netherlands-4.2")]
    Netherlands42,
    /// DSMR 5.0.2.
    #[default]
    #[serde(rename = "netherlands-5.0")]
    Netherlands50,
    /// Heat and hot water, and no electricity.
    Warmtelink,
    /// e-MUCS 1.4: before quarter-hour demand.
    #[serde(rename = "belgium-1.4")]
    Belgium14,
    /// e-MUCS 2.1.1.
    #[serde(rename = "belgium-2.1")]
    Belgium21,
    /// Smarty.
    Luxembourg,
    /// Energie Steiermark.
    Austria,
    /// E.ON.
    Hungary,
    /// ESO.
    Lithuania,
    /// H1: normal time all year.
    Sweden,
    /// Totals.
    Denmark,
    /// Totals, in eastern European time.
    Finland,
    /// Numbered tariffs.
    Switzerland,
    /// IEC 62056-21 mode D, pushed: no CRC, no time.
    Germany,
}

impl Dialect {
    /// All of them, under their names.
    pub const NAMES: [(&'static str, Self); 17] = [
        ("netherlands-2.2", Self::Netherlands22),
        ("netherlands-3.0", Self::Netherlands30),
        ("netherlands-4.0", Self::Netherlands40),
        ("netherlands-4.2", Self::Netherlands42),
        ("netherlands-5.0", Self::Netherlands50),
        ("warmtelink", Self::Warmtelink),
        ("belgium-1.4", Self::Belgium14),
        ("belgium-2.1", Self::Belgium21),
        ("luxembourg", Self::Luxembourg),
        ("austria", Self::Austria),
        ("hungary", Self::Hungary),
        ("lithuania", Self::Lithuania),
        ("sweden", Self::Sweden),
        ("denmark", Self::Denmark),
        ("finland", Self::Finland),
        ("switzerland", Self::Switzerland),
        ("germany", Self::Germany),
    ];

    /// As which a reader takes its telegrams when it is told nothing.
    pub const fn seems(self) -> p1::Dialect {
        match self {
            Self::Denmark | Self::Finland | Self::Germany | Self::Sweden | Self::Switzerland => {
                p1::Dialect::Unrecognised
            }
            _ => self.read_as(),
        }
    }

    /// As which it must be read, which [`seems`](Self::seems) comes to except for Finland, whose time is another.
    pub const fn read_as(self) -> p1::Dialect {
        match self {
            Self::Netherlands22
            | Self::Netherlands30
            | Self::Netherlands40
            | Self::Netherlands42
            | Self::Netherlands50
            | Self::Warmtelink => p1::Dialect::Netherlands,
            Self::Belgium14 | Self::Belgium21 => p1::Dialect::Belgium,
            Self::Luxembourg => p1::Dialect::Luxembourg,
            Self::Austria => p1::Dialect::Austria,
            Self::Hungary => p1::Dialect::Hungary,
            Self::Lithuania => p1::Dialect::Lithuania,
            Self::Sweden => p1::Dialect::Sweden,
            Self::Denmark => p1::Dialect::Denmark,
            Self::Finland => p1::Dialect::Finland,
            Self::Switzerland => p1::Dialect::Switzerland,
            Self::Germany => p1::Dialect::Unrecognised,
        }
    }

    /// Legal time, as POSIX has it.
    pub(super) const fn zone(self) -> &'static str {
        match self {
            Self::Lithuania | Self::Finland => "EET-2EEST,M3.5.0/3,M10.5.0/4",
            _ => "CET-1CEST,M3.5.0,M10.5.0/3",
        }
    }

    /// How many seconds lie between two telegrams.
    pub const fn period(self) -> u32 {
        match self {
            Self::Netherlands22 | Self::Netherlands30 | Self::Netherlands40 | Self::Netherlands42 => 10,
            Self::Luxembourg | Self::Hungary | Self::Lithuania | Self::Sweden | Self::Denmark | Self::Finland => 10,
            _ => 1,
        }
    }

    /// Bits a second of its port, and how the line is set.
    pub(super) const fn line(self) -> (u32, &'static str) {
        match self {
            Self::Netherlands22 | Self::Netherlands30 | Self::Germany => (9600, "9600 7E1"),
            _ => (115_200, "115200 8N1"),
        }
    }

    pub(super) const fn form(self) -> &'static Form {
        match self {
            Self::Netherlands22 => &NETHERLANDS_22,
            Self::Netherlands30 => &NETHERLANDS_30,
            Self::Netherlands40 => &NETHERLANDS_40,
            Self::Netherlands42 => &NETHERLANDS_42,
            Self::Netherlands50 => &NETHERLANDS_50,
            Self::Warmtelink => &WARMTELINK,
            Self::Belgium14 => &BELGIUM_14,
            Self::Belgium21 => &BELGIUM_21,
            Self::Luxembourg => &LUXEMBOURG,
            Self::Austria => &AUSTRIA,
            Self::Hungary => &HUNGARY,
            Self::Lithuania => &LITHUANIA,
            Self::Sweden => &SWEDEN,
            Self::Denmark => &DENMARK,
            Self::Finland => &FINLAND,
            Self::Switzerland => &SWITZERLAND,
            Self::Germany => &GERMANY,
        }
    }
}

/// What a telegram has in it.
#[derive(Debug)]
pub(super) struct Form {
    /// Behind the `/`, where the description names nothing else.
    pub(super) identification: &'static str,
    pub(super) crc: bool,
    pub(super) clock: Clock,
    pub(super) lines: &'static [Line],
    pub(super) slaves: Slaves,
    /// Every so many seconds the slave meters tell something new; a divisor of a day.
    pub(super) slave_period: i64,
    /// Most entries of its log of power failures.
    pub(super) failures: usize,
}

/// How times are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Clock {
    /// With S in summer and W in winter.
    Letter,
    /// Without a letter.
    Bare,
    /// Normal time with W all year.
    Winter,
}

/// How slave meters are told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slaves {
    /// DSMR 2.2 and 3.0: in brackets, over two lines; a valve for gas.
    Version3,
    /// DSMR 4; a valve for gas.
    Version4,
    /// DSMR 5, WarmteLink.
    Version5,
    /// e-MUCS: another code for the identifier, and gas that is not corrected for its temperature.
    Belgium,
    /// None.
    Nowhere,
}

/// A line of a telegram, or several.
#[derive(Debug)]
pub(super) enum Line {
    /// As it stands here.
    Text(&'static str),
    /// The time, under this code.
    Time(&'static str),
    /// The meter's identifier as hex digits, under this code.
    Identifier(&'static str),
    /// The same as it is.
    PlainIdentifier(&'static str),
    /// The tariff in force: the numbers of low and normal.
    Tariff(u8, u8),
    /// A register: its code, its name, how it is written, and what it shows.
    Value(&'static str, &'static str, Written, Quantity),
    /// Long power failures.
    Failures,
    /// The highest demand of the month.
    Peak,
    /// Those of past months.
    Peaks,
    /// What flows at most in each direction, in A.
    Limits(&'static str, u16),
    /// The registers as they stood at the end of the last month.
    LastMonth(&'static [(&'static str, Written, Quantity)]),
}

/// How a value is written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Written {
    pub(super) unit: &'static Unit,
    pub(super) spelling: &'static str,
    /// The power of ten that makes `spelling` out of `unit`.
    pub(super) prefix: i8,
    pub(super) digits: u8,
    pub(super) decimals: u8,
}

const fn written(unit: &'static Unit, spelling: &'static str, prefix: i8, digits: u8, decimals: u8) -> Written {
    Written { unit, spelling, prefix, digits, decimals }
}

/// In the unit's own spelling.
const fn plain(unit: &'static Unit, digits: u8, decimals: u8) -> Written {
    written(unit, unit.as_str(), 0, digits, decimals)
}

/// What a register shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quantity {
    /// Energy: import, export.
    Import(Tariff),
    Export(Tariff),
    ImportAndExport,
    /// Reactive energy of these quadrants, as bits.
    Reactive(u8),
    PowerImport,
    PowerExport,
    /// Import or export, whichever flows.
    Power,
    /// Of a phase, from 0.
    PhaseImport(usize),
    PhaseExport(usize),
    /// Reactive power of these quadrants, as bits.
    ReactivePower(u8),
    PhaseReactiveImport(usize),
    PhaseReactiveExport(usize),
    ApparentImport,
    ApparentExport,
    PowerFactor,
    Frequency,
    Voltage(usize),
    Current(usize),
    Sags(usize),
    Swells(usize),
    /// Power failures of any length, and long ones.
    Failures,
    LongFailures,
    /// Of the quarter-hour that runs, and of the last.
    DemandAverage,
    DemandLast,
    /// So many thousandths.
    Always(i64),
}

impl Quantity {
    /// The phase that it is of.
    pub(super) const fn phase(self) -> Option<usize> {
        match self {
            Self::PhaseImport(phase)
            | Self::PhaseExport(phase)
            | Self::PhaseReactiveImport(phase)
            | Self::PhaseReactiveExport(phase)
            | Self::Voltage(phase)
            | Self::Current(phase)
            | Self::Sags(phase)
            | Self::Swells(phase) => Some(phase),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tariff {
    Low,
    Normal,
    All,
}

use Line::{Failures, Identifier, LastMonth, Limits, Peak, Peaks, PlainIdentifier, Text, Time, Value};
use Quantity::{
    Always, ApparentExport, ApparentImport, Current, DemandAverage, DemandLast, Export, Frequency, Import,
    ImportAndExport, LongFailures, PhaseExport, PhaseImport, PhaseReactiveExport, PhaseReactiveImport, Power,
    PowerExport, PowerFactor, PowerImport, Reactive, ReactivePower, Sags, Swells, Voltage,
};
use Tariff::{All, Low, Normal};

const KWH: Written = plain(&Unit::KWH, 6, 3);
const KWH5: Written = plain(&Unit::KWH, 5, 3);
const KWH8: Written = plain(&Unit::KWH, 8, 3);
const WH: Written = written(&Unit::KWH, "Wh", -3, 9, 0);
const KW: Written = plain(&Unit::KW, 2, 3);
const KW4: Written = plain(&Unit::KW, 4, 3);
const W: Written = written(&Unit::KW, "W", -3, 9, 0);
const KVARH: Written = plain(&Unit::KVARH, 6, 3);
const KVARH8: Written = written(&Unit::KVARH, "kVArh", 0, 8, 3);
const VARH: Written = written(&Unit::KVARH, "varh", -3, 9, 0);
const KVAR: Written = plain(&Unit::KVAR, 2, 3);
const KVAR4: Written = written(&Unit::KVAR, "kVAr", 0, 4, 3);
const VAR: Written = written(&Unit::KVAR, "var", -3, 9, 0);
const KVA: Written = plain(&Unit::KVA, 2, 3);
const VOLT: Written = plain(&Unit::V, 3, 1);
const AMPERE: Written = plain(&Unit::A, 3, 0);
const AMPERE1: Written = plain(&Unit::A, 3, 1);
const AMPERE2: Written = plain(&Unit::A, 3, 2);
const HZ: Written = plain(&Unit::HZ, 2, 2);
const COUNT: Written = plain(&Unit::NONE, 5, 0);
const FACTOR: Written = plain(&Unit::NONE, 1, 3);

/// Import and export: with the sign of active power in the first pair of quadrants.
const Q1: u8 = 1;
const Q2: u8 = 2;
const Q3: u8 = 4;
const Q4: u8 = 8;

static NETHERLANDS_22: Form = Form {
    identification: "SIM5 meterkast-22",
    crc: false,
    clock: Clock::Bare,
    slaves: Slaves::Version3,
    slave_period: 3600,
    failures: 0,
    lines: &[
        Identifier("0-0:96.1.1"),
        Value("1-0:1.8.1", "import_low", KWH5, Import(Low)),
        Value("1-0:1.8.2", "import_normal", KWH5, Import(Normal)),
        Value("1-0:2.8.1", "export_low", KWH5, Export(Low)),
        Value("1-0:2.8.2", "export_normal", KWH5, Export(Normal)),
        Line::Tariff(1, 2),
        Value("1-0:1.7.0", "power_import", plain(&Unit::KW, 4, 2), PowerImport),
        Value("1-0:2.7.0", "power_export", plain(&Unit::KW, 4, 2), PowerExport),
        Value("0-0:17.0.0", "current_limit", AMPERE, Always(999_000)),
        Text("0-0:96.3.10(1)"),
        Text("0-0:96.13.1()"),
        Text("0-0:96.13.0()"),
    ],
};

static NETHERLANDS_30: Form = Form {
    identification: r"SIM5\meterkast-30",
    lines: &[
        Identifier("0-0:96.1.1"),
        Value("1-0:1.8.1", "import_low", KWH5, Import(Low)),
        Value("1-0:1.8.2", "import_normal", KWH5, Import(Normal)),
        Value("1-0:2.8.1", "export_low", KWH5, Export(Low)),
        Value("1-0:2.8.2", "export_normal", KWH5, Export(Normal)),
        Line::Tariff(1, 2),
        Value("1-0:1.7.0", "power_import", plain(&Unit::KW, 4, 2), PowerImport),
        Value("1-0:2.7.0", "power_export", plain(&Unit::KW, 4, 2), PowerExport),
        Value("0-0:17.0.0", "power_limit", plain(&Unit::KW, 4, 2), Always(999_000)),
        Text("0-0:96.3.10(1)"),
        Text("0-0:96.13.1(3034203137203632)"),
        Text("0-0:96.13.0(4D6574657220736572766963652031332D30322030393A3030)"),
    ],
    ..NETHERLANDS_22
};

static NETHERLANDS_40: Form = Form {
    identification: r"SIM5\meterkast-40",
    crc: true,
    clock: Clock::Letter,
    slaves: Slaves::Version4,
    slave_period: 3600,
    failures: 10,
    lines: &[
        Text("1-3:0.2.8(40)"),
        Time("0-0:1.0.0"),
        Identifier("0-0:96.1.1"),
        Value("1-0:1.8.1", "import_low", KWH, Import(Low)),
        Value("1-0:1.8.2", "import_normal", KWH, Import(Normal)),
        Value("1-0:2.8.1", "export_low", KWH, Export(Low)),
        Value("1-0:2.8.2", "export_normal", KWH, Export(Normal)),
        Line::Tariff(1, 2),
        Value("1-0:1.7.0", "power_import", KW, PowerImport),
        Value("1-0:2.7.0", "power_export", KW, PowerExport),
        Value("0-0:17.0.0", "power_limit", plain(&Unit::KW, 3, 1), Always(999_900)),
        Text("0-0:96.3.10(1)"),
        Value("0-0:96.7.21", "power_failures", COUNT, Quantity::Failures),
        Value("0-0:96.7.9", "long_power_failures", COUNT, LongFailures),
        Failures,
        Value("1-0:32.32.0", "voltage_sags_l1", COUNT, Sags(0)),
        Value("1-0:32.36.0", "voltage_swells_l1", COUNT, Swells(0)),
        Text("0-0:96.13.1()"),
        Text("0-0:96.13.0()"),
        Value("1-0:31.7.0", "current_l1", AMPERE, Current(0)),
        Value("1-0:21.7.0", "power_import_l1", KW, PhaseImport(0)),
        Value("1-0:22.7.0", "power_export_l1", KW, PhaseExport(0)),
    ],
};

static NETHERLANDS_42: Form = Form {
    identification: r"SIM5\meterkast-42",
    lines: &[
        Text("1-3:0.2.8(42)"),
        Time("0-0:1.0.0"),
        Identifier("0-0:96.1.1"),
        Value("1-0:1.8.1", "import_low", KWH, Import(Low)),
        Value("1-0:1.8.2", "import_normal", KWH, Import(Normal)),
        Value("1-0:2.8.1", "export_low", KWH, Export(Low)),
        Value("1-0:2.8.2", "export_normal", KWH, Export(Normal)),
        Line::Tariff(1, 2),
        Value("1-0:1.7.0", "power_import", KW, PowerImport),
        Value("1-0:2.7.0", "power_export", KW, PowerExport),
        Value("0-0:17.0.0", "power_limit", plain(&Unit::KW, 3, 1), Always(17_300)),
        Text("0-0:96.3.10(1)"),
        Value("0-0:96.7.21", "power_failures", COUNT, Quantity::Failures),
        Value("0-0:96.7.9", "long_power_failures", COUNT, LongFailures),
        Failures,
        Value("1-0:32.32.0", "voltage_sags_l1", COUNT, Sags(0)),
        Value("1-0:52.32.0", "voltage_sags_l2", COUNT, Sags(1)),
        Value("1-0:72.32.0", "voltage_sags_l3", COUNT, Sags(2)),
        Value("1-0:32.36.0", "voltage_swells_l1", COUNT, Swells(0)),
        Value("1-0:52.36.0", "voltage_swells_l2", COUNT, Swells(1)),
        Value("1-0:72.36.0", "voltage_swells_l3", COUNT, Swells(2)),
        Text("0-0:96.13.1()"),
        Text("0-0:96.13.0()"),
        Value("1-0:31.7.0", "current_l1", AMPERE, Current(0)),
        Value("1-0:51.7.0", "current_l2", AMPERE, Current(1)),
        Value("1-0:71.7.0", "current_l3", AMPERE, Current(2)),
        Value("1-0:21.7.0", "power_import_l1", KW, PhaseImport(0)),
        Value("1-0:22.7.0", "power_export_l1", KW, PhaseExport(0)),
        Value("1-0:41.7.0", "power_import_l2", KW, PhaseImport(1)),
        Value("1-0:42.7.0", "power_export_l2", KW, PhaseExport(1)),
        Value("1-0:61.7.0", "power_import_l3", KW, PhaseImport(2)),
        Value("1-0:62.7.0", "power_export_l3", KW, PhaseExport(2)),
    ],
    ..NETHERLANDS_40
};

static NETHERLANDS_50: Form = Form {
    identification: r"SIM5\meterkast-demo",
    slaves: Slaves::Version5,
    slave_period: 300,
    lines: &[
        Text("1-3:0.2.8(50)"),
        Time("0-0:1.0.0"),
        Identifier("0-0:96.1.1"),
        Value("1-0:1.8.1", "import_low", KWH, Import(Low)),
        Value("1-0:1.8.2", "import_normal", KWH, Import(Normal)),
        Value("1-0:2.8.1", "export_low", KWH, Export(Low)),
        Value("1-0:2.8.2", "export_normal", KWH, Export(Normal)),
        Line::Tariff(1, 2),
        Value("1-0:1.7.0", "power_import", KW, PowerImport),
        Value("1-0:2.7.0", "power_export", KW, PowerExport),
        Value("0-0:96.7.21", "power_failures", COUNT, Quantity::Failures),
        Value("0-0:96.7.9", "long_power_failures", COUNT, LongFailures),
        Failures,
        Value("1-0:32.32.0", "voltage_sags_l1", COUNT, Sags(0)),
        Value("1-0:52.32.0", "voltage_sags_l2", COUNT, Sags(1)),
        Value("1-0:72.32.0", "voltage_sags_l3", COUNT, Sags(2)),
        Value("1-0:32.36.0", "voltage_swells_l1", COUNT, Swells(0)),
        Value("1-0:52.36.0", "voltage_swells_l2", COUNT, Swells(1)),
        Value("1-0:72.36.0", "voltage_swells_l3", COUNT, Swells(2)),
        Text("0-0:96.13.0()"),
        Value("1-0:32.7.0", "voltage_l1", VOLT, Voltage(0)),
        Value("1-0:52.7.0", "voltage_l2", VOLT, Voltage(1)),
        Value("1-0:72.7.0", "voltage_l3", VOLT, Voltage(2)),
        Value("1-0:31.7.0", "current_l1", AMPERE, Current(0)),
        Value("1-0:51.7.0", "current_l2", AMPERE, Current(1)),
        Value("1-0:71.7.0", "current_l3", AMPERE, Current(2)),
        Value("1-0:21.7.0", "power_import_l1", KW, PhaseImport(0)),
        Value("1-0:41.7.0", "power_import_l2", KW, PhaseImport(1)),
        Value("1-0:61.7.0", "power_import_l3", KW, PhaseImport(2)),
        Value("1-0:22.7.0", "power_export_l1", KW, PhaseExport(0)),
        Value("1-0:42.7.0", "power_export_l2", KW, PhaseExport(1)),
        Value("1-0:62.7.0", "power_export_l3", KW, PhaseExport(2)),
    ],
    ..NETHERLANDS_40
};

static WARMTELINK: Form = Form {
    identification: "SIM-WARMTELINK",
    lines: &[
        Text("1-3:0.2.8(50)"),
        Time("0-0:1.0.0"),
        PlainIdentifier("0-0:96.1.1"),
        Text("0-0:96.13.1()"),
        Text("0-0:96.13.0()"),
    ],
    ..NETHERLANDS_50
};

static BELGIUM_14: Form = Form {
    identification: r"SIM5\meterkast-be14",
    crc: true,
    clock: Clock::Letter,
    slaves: Slaves::Belgium,
    slave_period: 300,
    failures: 0,
    lines: &[
        Text("0-0:96.1.4(50214)"),
        Identifier("0-0:96.1.1"),
        Time("0-0:1.0.0"),
        Value("1-0:1.8.1", "import_normal", KWH, Import(Normal)),
        Value("1-0:1.8.2", "import_low", KWH, Import(Low)),
        Value("1-0:2.8.1", "export_normal", KWH, Export(Normal)),
        Value("1-0:2.8.2", "export_low", KWH, Export(Low)),
        Line::Tariff(2, 1),
        Value("1-0:1.7.0", "power_import", KW, PowerImport),
        Value("1-0:2.7.0", "power_export", KW, PowerExport),
        Value("1-0:32.7.0", "voltage_l1", VOLT, Voltage(0)),
        Value("1-0:52.7.0", "voltage_l2", VOLT, Voltage(1)),
        Value("1-0:72.7.0", "voltage_l3", VOLT, Voltage(2)),
        Value("1-0:31.7.0", "current_l1", AMPERE, Current(0)),
        Value("1-0:51.7.0", "current_l2", AMPERE, Current(1)),
        Value("1-0:71.7.0", "current_l3", AMPERE, Current(2)),
        Text("0-0:96.3.10(1)"),
        Value("0-0:17.0.0", "power_limit", plain(&Unit::KW, 3, 1), Always(999_900)),
        Value("1-0:31.4.0", "current_limit", AMPERE, Always(999_000)),
        Text("0-0:96.13.0()"),
    ],
};

static BELGIUM_21: Form = Form {
    identification: r"SIM5\meterkast-be21",
    lines: &[
        Text("0-0:96.1.4(50221)"),
        Identifier("0-0:96.1.1"),
        Text("0-0:96.1.2(353431393930303030303030303030303030)"),
        Time("0-0:1.0.0"),
        Value("1-0:1.8.1", "import_normal", KWH, Import(Normal)),
        Value("1-0:1.8.2", "import_low", KWH, Import(Low)),
        Value("1-0:2.8.1", "export_normal", KWH, Export(Normal)),
        Value("1-0:2.8.2", "export_low", KWH, Export(Low)),
        Line::Tariff(2, 1),
        Value("1-0:1.4.0", "demand_average", KW, DemandAverage),
        Peak,
        Peaks,
        Value("1-0:1.7.0", "power_import", KW, PowerImport),
        Value("1-0:2.7.0", "power_export", KW, PowerExport),
        Value("1-0:21.7.0", "power_import_l1", KW, PhaseImport(0)),
        Value("1-0:41.7.0", "power_import_l2", KW, PhaseImport(1)),
        Value("1-0:61.7.0", "power_import_l3", KW, PhaseImport(2)),
        Value("1-0:22.7.0", "power_export_l1", KW, PhaseExport(0)),
        Value("1-0:42.7.0", "power_export_l2", KW, PhaseExport(1)),
        Value("1-0:62.7.0", "power_export_l3", KW, PhaseExport(2)),
        Value("1-0:32.7.0", "voltage_l1", VOLT, Voltage(0)),
        Value("1-0:52.7.0", "voltage_l2", VOLT, Voltage(1)),
        Value("1-0:72.7.0", "voltage_l3", VOLT, Voltage(2)),
        Value("1-0:31.7.0", "current_l1", AMPERE2, Current(0)),
        Value("1-0:51.7.0", "current_l2", AMPERE2, Current(1)),
        Value("1-0:71.7.0", "current_l3", AMPERE2, Current(2)),
        Text("0-0:96.3.10(1)"),
        Value("0-0:17.0.0", "power_limit", plain(&Unit::KW, 3, 1), Always(999_900)),
        Value("1-0:31.4.0", "current_limit", AMPERE, Always(999_000)),
        Text("0-1:96.3.10(0)"),
        Text("0-2:96.3.10(0)"),
        Text("0-0:96.13.0()"),
    ],
    ..BELGIUM_14
};

static LUXEMBOURG: Form = Form {
    identification: r"Lux5\meterkast_S",
    crc: true,
    clock: Clock::Letter,
    slaves: Slaves::Version4,
    slave_period: 3600,
    failures: 0,
    lines: &[
        Text("1-3:0.2.8(42)"),
        Time("0-0:1.0.0"),
        Identifier("0-0:42.0.0"),
        Value("1-0:1.8.0", "import_total", KWH, Import(All)),
        Value("1-0:2.8.0", "export_total", KWH, Export(All)),
        Value("1-0:3.8.0", "reactive_import_total", KVARH, Reactive(Q1 | Q2)),
        Value("1-0:4.8.0", "reactive_export_total", KVARH, Reactive(Q3 | Q4)),
        Value("1-0:1.7.0", "power_import", KW, PowerImport),
        Value("1-0:2.7.0", "power_export", KW, PowerExport),
        Value("1-0:3.7.0", "reactive_power_import", KVAR, ReactivePower(Q1 | Q2)),
        Value("1-0:4.7.0", "reactive_power_export", KVAR, ReactivePower(Q3 | Q4)),
        Value("0-0:17.0.0", "apparent_power_limit", plain(&Unit::KVA, 3, 1), Always(27_600)),
        Value("1-0:9.7.0", "apparent_power_import", KVA, ApparentImport),
        Value("1-0:10.7.0", "apparent_power_export", KVA, ApparentExport),
        Limits("1-1:31.4.0", 40),
        Text("0-0:96.3.10(1)"),
        Text("0-1:96.3.10(0)"),
        Text("0-2:96.3.10(0)"),
        Value("0-0:96.7.21", "power_failures", COUNT, Quantity::Failures),
        Value("1-0:32.32.0", "voltage_sags_l1", COUNT, Sags(0)),
        Value("1-0:52.32.0", "voltage_sags_l2", COUNT, Sags(1)),
        Value("1-0:72.32.0", "voltage_sags_l3", COUNT, Sags(2)),
        Text("0-0:96.13.0()"),
        Text("0-0:96.13.2()"),
        Text("0-0:96.13.3()"),
        Text("0-0:96.13.4()"),
        Text("0-0:96.13.5()"),
        Value("1-0:32.7.0", "voltage_l1", VOLT, Voltage(0)),
        Value("1-0:52.7.0", "voltage_l2", VOLT, Voltage(1)),
        Value("1-0:72.7.0", "voltage_l3", VOLT, Voltage(2)),
        Value("1-0:31.7.0", "current_l1", AMPERE, Current(0)),
        Value("1-0:51.7.0", "current_l2", AMPERE, Current(1)),
        Value("1-0:71.7.0", "current_l3", AMPERE, Current(2)),
        Value("1-0:21.7.0", "power_import_l1", KW, PhaseImport(0)),
        Value("1-0:41.7.0", "power_import_l2", KW, PhaseImport(1)),
        Value("1-0:61.7.0", "power_import_l3", KW, PhaseImport(2)),
        Value("1-0:22.7.0", "power_export_l1", KW, PhaseExport(0)),
        Value("1-0:42.7.0", "power_export_l2", KW, PhaseExport(1)),
        Value("1-0:62.7.0", "power_export_l3", KW, PhaseExport(2)),
        Value("1-0:23.7.0", "reactive_power_import_l1", KVAR, PhaseReactiveImport(0)),
        Value("1-0:43.7.0", "reactive_power_import_l2", KVAR, PhaseReactiveImport(1)),
        Value("1-0:63.7.0", "reactive_power_import_l3", KVAR, PhaseReactiveImport(2)),
        Value("1-0:24.7.0", "reactive_power_export_l1", KVAR, PhaseReactiveExport(0)),
        Value("1-0:44.7.0", "reactive_power_export_l2", KVAR, PhaseReactiveExport(1)),
        Value("1-0:64.7.0", "reactive_power_export_l3", KVAR, PhaseReactiveExport(2)),
    ],
};

static AUSTRIA: Form = Form {
    identification: r"EST5\meterkast_S",
    crc: true,
    clock: Clock::Letter,
    slaves: Slaves::Nowhere,
    slave_period: 3600,
    failures: 0,
    lines: &[
        Text("1-3:0.2.8(50)"),
        Time("0-0:1.0.0"),
        Identifier("0-0:96.1.1"),
        Value("1-0:1.8.0", "import_total", WH, Import(All)),
        Value("1-0:1.8.1", "import_rate1", WH, Import(Low)),
        Value("1-0:1.8.2", "import_rate2", WH, Import(Normal)),
        Value("1-0:1.7.0", "power_import", W, PowerImport),
        Value("1-0:2.8.0", "export_total", WH, Export(All)),
        Value("1-0:2.8.1", "export_rate1", WH, Export(Low)),
        Value("1-0:2.8.2", "export_rate2", WH, Export(Normal)),
        Value("1-0:2.7.0", "power_export", W, PowerExport),
        Value("1-0:3.8.0", "reactive_import_total", VARH, Reactive(Q1 | Q2)),
        Value("1-0:3.7.0", "reactive_power_import", VAR, ReactivePower(Q1 | Q2)),
        Value("1-0:4.8.0", "reactive_export_total", VARH, Reactive(Q3 | Q4)),
        Value("1-0:4.7.0", "reactive_power_export", VAR, ReactivePower(Q3 | Q4)),
        Value("1-0:32.7.0", "voltage_l1", written(&Unit::V, "kV", 3, 2, 4), Voltage(0)),
        Value("1-0:31.7.0", "current_l1", written(&Unit::A, "mA", -3, 6, 0), Current(0)),
    ],
};

static HUNGARY: Form = Form {
    identification: r"SIM5\meterkast-hu",
    crc: true,
    clock: Clock::Letter,
    slaves: Slaves::Nowhere,
    slave_period: 3600,
    failures: 0,
    lines: &[
        Time("0-0:1.0.0"),
        Text("0-0:42.0.0(53494D39393930303030303030303030)"),
        Identifier("0-0:96.1.0"),
        Line::Tariff(1, 2),
        Text("0-0:96.3.10(1)"),
        Value("0-0:17.0.0", "power_limit", plain(&Unit::KW, 2, 3), Always(90_000)),
        Value("1-0:1.8.0", "import_total", KWH, Import(All)),
        Value("1-0:1.8.1", "import_rate1", KWH, Import(Low)),
        Value("1-0:1.8.2", "import_rate2", KWH, Import(Normal)),
        Value("1-0:1.8.3", "import_rate3", KWH, Always(0)),
        Value("1-0:1.8.4", "import_rate4", KWH, Always(0)),
        Value("1-0:2.8.0", "export_total", KWH, Export(All)),
        Value("1-0:2.8.1", "export_rate1", KWH, Export(Low)),
        Value("1-0:2.8.2", "export_rate2", KWH, Export(Normal)),
        Value("1-0:2.8.3", "export_rate3", KWH, Always(0)),
        Value("1-0:2.8.4", "export_rate4", KWH, Always(0)),
        Value("1-0:3.8.0", "reactive_import_total", KVARH, Reactive(Q1 | Q2)),
        Value("1-0:4.8.0", "reactive_export_total", KVARH, Reactive(Q3 | Q4)),
        Value("1-0:5.8.0", "reactive_quadrant1", KVARH, Reactive(Q1)),
        Value("1-0:6.8.0", "reactive_quadrant2", KVARH, Reactive(Q2)),
        Value("1-0:7.8.0", "reactive_quadrant3", KVARH, Reactive(Q3)),
        Value("1-0:8.8.0", "reactive_quadrant4", KVARH, Reactive(Q4)),
        Value("1-0:15.8.0", "import_and_export_total", KWH, ImportAndExport),
        Value("1-0:32.7.0", "voltage_l1", VOLT, Voltage(0)),
        Value("1-0:52.7.0", "voltage_l2", VOLT, Voltage(1)),
        Value("1-0:72.7.0", "voltage_l3", VOLT, Voltage(2)),
        Value("1-0:31.7.0", "current_l1", AMPERE, Current(0)),
        Value("1-0:51.7.0", "current_l2", AMPERE, Current(1)),
        Value("1-0:71.7.0", "current_l3", AMPERE, Current(2)),
        Value("1-0:13.7.0", "power_factor", FACTOR, PowerFactor),
        Value("1-0:14.7.0", "frequency", HZ, Frequency),
        Value("1-0:1.7.0", "power_import", KW, PowerImport),
        Value("1-0:2.7.0", "power_export", KW, PowerExport),
        Value("1-0:5.7.0", "reactive_power_quadrant1", KVAR, ReactivePower(Q1)),
        Value("1-0:6.7.0", "reactive_power_quadrant2", KVAR, ReactivePower(Q2)),
        Value("1-0:7.7.0", "reactive_power_quadrant3", KVAR, ReactivePower(Q3)),
        Value("1-0:8.7.0", "reactive_power_quadrant4", KVAR, ReactivePower(Q4)),
        Value("1-0:31.4.0", "current_limit", plain(&Unit::A, 3, 2), Always(200_000)),
        Value("1-0:51.4.0", "current_limit_l2", plain(&Unit::A, 3, 2), Always(200_000)),
        Value("1-0:71.4.0", "current_limit_l3", plain(&Unit::A, 3, 2), Always(200_000)),
        LastMonth(&[
            ("import_total", KWH, Import(All)),
            ("import_rate1", KWH, Import(Low)),
            ("import_rate2", KWH, Import(Normal)),
            ("export_total", KWH, Export(All)),
            ("export_rate1", KWH, Export(Low)),
            ("export_rate2", KWH, Export(Normal)),
            ("reactive_import_total", KVARH, Reactive(Q1 | Q2)),
            ("reactive_export_total", KVARH, Reactive(Q3 | Q4)),
            ("reactive_quadrant1", KVARH, Reactive(Q1)),
            ("reactive_quadrant2", KVARH, Reactive(Q2)),
            ("reactive_quadrant3", KVARH, Reactive(Q3)),
            ("reactive_quadrant4", KVARH, Reactive(Q4)),
            ("import_and_export_total", KWH, ImportAndExport),
        ]),
        Text("0-0:96.13.0()"),
    ],
};

static LITHUANIA: Form = Form {
    identification: r"ESO5\meterkast_S",
    crc: true,
    clock: Clock::Letter,
    slaves: Slaves::Nowhere,
    slave_period: 3600,
    failures: 0,
    lines: &[
        Time("0-0:1.0.0"),
        Value("1-0:1.8.0", "import_total", KWH, Import(All)),
        Value("1-0:1.8.1", "import_rate1", KWH, Import(Normal)),
        Value("1-0:1.8.2", "import_rate2", KWH, Import(Low)),
        Value("1-0:1.8.3", "import_rate3", KWH, Always(0)),
        Value("1-0:1.8.4", "import_rate4", KWH, Always(0)),
        Value("1-0:2.8.0", "export_total", KWH, Export(All)),
        Value("1-0:2.8.1", "export_rate1", KWH, Export(Normal)),
        Value("1-0:2.8.2", "export_rate2", KWH, Export(Low)),
        Value("1-0:3.8.0", "reactive_import_total", KVARH, Reactive(Q1 | Q2)),
        Value("1-0:4.8.0", "reactive_export_total", KVARH, Reactive(Q3 | Q4)),
        Value("1-0:32.7.0", "voltage_l1", VOLT, Voltage(0)),
        Value("1-0:52.7.0", "voltage_l2", VOLT, Voltage(1)),
        Value("1-0:72.7.0", "voltage_l3", VOLT, Voltage(2)),
        Value("1-0:31.7.0", "current_l1", AMPERE, Current(0)),
        Value("1-0:51.7.0", "current_l2", AMPERE, Current(1)),
        Value("1-0:71.7.0", "current_l3", AMPERE, Current(2)),
        Value("1-0:14.7.0", "frequency", written(&Unit::HZ, "kHz", 3, 1, 4), Frequency),
        Value("1-0:15.7.0", "power_import_and_export", KW, Power),
        Value("1-0:1.7.0", "power_import", KW, PowerImport),
        Value("1-0:2.7.0", "power_export", KW, PowerExport),
        Value("1-0:13.7.0", "power_factor", FACTOR, PowerFactor),
        Value("1-0:0.8.2", "demand_period", plain(&Unit::S, 5, 0), Always(900_000)),
        Value("1-0:1.4.0", "demand_average", plain(&Unit::KW, 9, 3), DemandAverage),
        Value("1-0:1.5.0", "demand_last", plain(&Unit::KW, 9, 3), DemandLast),
        Value("1-0:32.32.0", "voltage_sags_l1", COUNT, Sags(0)),
        Value("1-0:32.36.0", "voltage_swells_l1", COUNT, Swells(0)),
        Text("1-0:0.2.0(02.21)"),
        Text("1-1:0.2.8(047C71F1)"),
        Text("0-0:96.13.0(73657450315F6D6178)"),
        Identifier("0-0:96.1.1"),
    ],
};

/// What meters by the Swedish guideline send.
const H1: &[Line] = &[
    Time("0-0:1.0.0"),
    Value("1-0:1.8.0", "import_total", KWH8, Import(All)),
    Value("1-0:2.8.0", "export_total", KWH8, Export(All)),
    Value("1-0:3.8.0", "reactive_import_total", KVARH8, Reactive(Q1 | Q2)),
    Value("1-0:4.8.0", "reactive_export_total", KVARH8, Reactive(Q3 | Q4)),
    Value("1-0:1.7.0", "power_import", KW4, PowerImport),
    Value("1-0:2.7.0", "power_export", KW4, PowerExport),
    Value("1-0:3.7.0", "reactive_power_import", KVAR4, ReactivePower(Q1 | Q2)),
    Value("1-0:4.7.0", "reactive_power_export", KVAR4, ReactivePower(Q3 | Q4)),
    Value("1-0:21.7.0", "power_import_l1", KW4, PhaseImport(0)),
    Value("1-0:22.7.0", "power_export_l1", KW4, PhaseExport(0)),
    Value("1-0:41.7.0", "power_import_l2", KW4, PhaseImport(1)),
    Value("1-0:42.7.0", "power_export_l2", KW4, PhaseExport(1)),
    Value("1-0:61.7.0", "power_import_l3", KW4, PhaseImport(2)),
    Value("1-0:62.7.0", "power_export_l3", KW4, PhaseExport(2)),
    Value("1-0:23.7.0", "reactive_power_import_l1", KVAR4, PhaseReactiveImport(0)),
    Value("1-0:24.7.0", "reactive_power_export_l1", KVAR4, PhaseReactiveExport(0)),
    Value("1-0:43.7.0", "reactive_power_import_l2", KVAR4, PhaseReactiveImport(1)),
    Value("1-0:44.7.0", "reactive_power_export_l2", KVAR4, PhaseReactiveExport(1)),
    Value("1-0:63.7.0", "reactive_power_import_l3", KVAR4, PhaseReactiveImport(2)),
    Value("1-0:64.7.0", "reactive_power_export_l3", KVAR4, PhaseReactiveExport(2)),
    Value("1-0:32.7.0", "voltage_l1", VOLT, Voltage(0)),
    Value("1-0:52.7.0", "voltage_l2", VOLT, Voltage(1)),
    Value("1-0:72.7.0", "voltage_l3", VOLT, Voltage(2)),
    Value("1-0:31.7.0", "current_l1", AMPERE1, Current(0)),
    Value("1-0:51.7.0", "current_l2", AMPERE1, Current(1)),
    Value("1-0:71.7.0", "current_l3", AMPERE1, Current(2)),
];

static SWEDEN: Form = Form {
    identification: r"SIM5\meterkast-se",
    crc: true,
    clock: Clock::Winter,
    slaves: Slaves::Nowhere,
    slave_period: 3600,
    failures: 0,
    lines: H1,
};

static DENMARK: Form = Form { identification: r"SIM5\meterkast-dk", clock: Clock::Letter, ..SWEDEN };

static FINLAND: Form = Form { identification: r"SIM5\meterkast-fi", clock: Clock::Letter, ..SWEDEN };

static SWITZERLAND: Form = Form {
    identification: r"SIM5\meterkast-ch",
    crc: true,
    clock: Clock::Letter,
    slaves: Slaves::Nowhere,
    slave_period: 3600,
    failures: 0,
    lines: &[
        Time("0-0:1.0.0"),
        Identifier("0-0:96.1.1"),
        Line::Tariff(2, 1),
        Value("1-0:1.8.1", "import_rate1", KWH, Import(Normal)),
        Value("1-0:1.8.2", "import_rate2", KWH, Import(Low)),
        Value("1-0:2.8.1", "export_rate1", KWH, Export(Normal)),
        Value("1-0:2.8.2", "export_rate2", KWH, Export(Low)),
        Value("1-0:1.7.0", "power_import", KW, PowerImport),
        Value("1-0:2.7.0", "power_export", KW, PowerExport),
        Value("1-0:32.7.0", "voltage_l1", VOLT, Voltage(0)),
        Value("1-0:52.7.0", "voltage_l2", VOLT, Voltage(1)),
        Value("1-0:72.7.0", "voltage_l3", VOLT, Voltage(2)),
        Value("1-0:31.7.0", "current_l1", AMPERE2, Current(0)),
        Value("1-0:51.7.0", "current_l2", AMPERE2, Current(1)),
        Value("1-0:71.7.0", "current_l3", AMPERE2, Current(2)),
    ],
};

static GERMANY: Form = Form {
    identification: "SIM5Q3DA1024 V3.04",
    crc: false,
    clock: Clock::Bare,
    slaves: Slaves::Nowhere,
    slave_period: 3600,
    failures: 0,
    lines: &[
        PlainIdentifier("1-0:0.0.0*255"),
        Value("1-0:1.8.0*255", "import_total", plain(&Unit::KWH, 8, 7), Import(All)),
        Value("1-0:2.8.0*255", "export_total", plain(&Unit::KWH, 8, 7), Export(All)),
        Value("1-0:21.7.0*255", "power_import_l1", written(&Unit::KW, "W", -3, 6, 2), PhaseImport(0)),
        Value("1-0:41.7.0*255", "power_import_l2", written(&Unit::KW, "W", -3, 6, 2), PhaseImport(1)),
        Value("1-0:61.7.0*255", "power_import_l3", written(&Unit::KW, "W", -3, 6, 2), PhaseImport(2)),
        Value("1-0:1.7.0*255", "power_import", written(&Unit::KW, "W", -3, 6, 2), PowerImport),
        Text("1-0:96.5.5*255(80)"),
        PlainIdentifier("0-0:96.1.255*255"),
    ],
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_a_description_has() {
        for (name, dialect) in Dialect::NAMES {
            let read: Dialect = serde_json::from_str(&format!("\"{name}\"")).unwrap();
            assert_eq!(read, dialect);
            assert_eq!(86_400 % dialect.form().slave_period, 0);
        }
    }
}
