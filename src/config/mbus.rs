//! `[[mbus]]` and `[[mbus.meter]]`: a bus, its meters, and how each is read.
//!
//! Enters: the sections of the file. Leaves: [`Mbus`], and for each [`Meter`] a [`Job`] and a [`Rhythm`].

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

use super::{Address, Name, duration};
use crate::{
    mbus::{Command, Job, Pattern, Target, Task, Timing, frame::address, schedule::Rhythm},
    unit::{Decimal, Unit},
};

/// `[[mbus]]`: a bus of heat and water meters.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Mbus {
    /// What it is called; names meters that do not name themselves.
    #[serde(default = "Mbus::default_name")]
    pub name: Name,
    /// Where the converter is: a serial device or `tcp://host:port`.
    #[serde(deserialize_with = "two_way")]
    pub port: Address,
    /// Bits a second.
    #[serde(default = "Mbus::default_baud", deserialize_with = "baud")]
    pub baud: u32,
    /// From one reading of a meter to the next.
    #[serde(default = "Mbus::default_interval", deserialize_with = "duration")]
    pub interval: Duration,
    /// How long meters may take to answer; by default what the standard allows them.
    #[serde(default, deserialize_with = "timeout")]
    pub timeout: Option<Duration>,
    /// What the converter adds to every answer.
    #[serde(default = "Mbus::default_allowance", deserialize_with = "duration")]
    pub allowance: Duration,
    /// Hours that the meters' clocks stand ahead of UTC in winter.
    #[serde(default = "Mbus::default_utc_offset", deserialize_with = "utc_offset")]
    pub utc_offset: i8,
    /// `[[mbus.meter]]`; none: they are searched for once, and remembered.
    #[serde(default, rename = "meter")]
    pub meters: Vec<Meter>,
}

/// `[[mbus.meter]]`: a meter on a bus. What is not said here is as for the bus.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Meter {
    /// Its primary address, or its number.
    #[serde(deserialize_with = "target")]
    pub address: Target,
    /// From one reading to the next.
    #[serde(default, deserialize_with = "some_duration")]
    pub interval: Option<Duration>,
    /// It is never read sooner than this after the last reading.
    #[serde(default, deserialize_with = "some_duration")]
    pub at_least: Option<Duration>,
    /// How long it may take to answer.
    #[serde(default, deserialize_with = "timeout")]
    pub timeout: Option<Duration>,
    /// Bits a second.
    #[serde(default, deserialize_with = "some_baud")]
    pub baud: Option<u32>,
    /// No more telegrams of a reading than these are asked for.
    #[serde(default, deserialize_with = "telegrams")]
    pub telegrams: Option<u8>,
    /// The most that it may count in an hour: what is beyond is flagged as too fast.
    #[serde(default, deserialize_with = "hourly")]
    pub limit: Option<(Decimal, Unit)>,
    /// What is sent before each reading: control information and data in hex digits.
    #[serde(default, deserialize_with = "commands")]
    pub before: Vec<Command>,
}

impl Meter {
    /// A meter with nothing said but its address.
    pub const fn at(address: Target) -> Self {
        Self {
            address,
            interval: None,
            at_least: None,
            timeout: None,
            baud: None,
            telegrams: None,
            limit: None,
            before: Vec::new(),
        }
    }
}

impl Mbus {
    fn default_name() -> Name {
        Name("mbus".to_owned())
    }

    const fn default_baud() -> u32 {
        2400
    }

    const fn default_interval() -> Duration {
        Duration::from_secs(15 * 60)
    }

    const fn default_allowance() -> Duration {
        Timing::STANDARD.allowance
    }

    const fn default_utc_offset() -> i8 {
        1
    }

    /// The times of the bus.
    pub fn timing(&self) -> Timing {
        Timing { baud: self.baud, timeout: self.timeout, allowance: self.allowance, ..Timing::STANDARD }
    }

    /// How a meter is read.
    pub fn job(&self, meter: &Meter) -> Job {
        let bus = self.timing();
        let timing = Timing { baud: meter.baud.unwrap_or(bus.baud), timeout: meter.timeout.or(bus.timeout), ..bus };
        let most_telegrams = meter.telegrams.unwrap_or(Job::MOST_TELEGRAMS);
        let task = Task::Read { before: meter.before.clone(), most_telegrams };
        Job { target: meter.address, task, timing }
    }

    /// How often a meter is read.
    pub fn rhythm(&self, meter: &Meter) -> Rhythm {
        let at_least = meter.at_least.unwrap_or_default();
        Rhythm { interval: meter.interval.unwrap_or(self.interval).max(at_least), at_least }
    }
}

fn two_way<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Address, D::Error> {
    match Address::deserialize(deserializer)? {
        Address::Stdin => Err(de::Error::custom(
            "standard input is no bus: write a serial device such as \"/dev/serial/by-id/usb-...\", or \"tcp://host:port\"",
        )),
        address => Ok(address),
    }
}

fn baud<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let baud = i64::deserialize(deserializer)
        .map_err(|_| de::Error::custom("write the baud rate as a number without quotation marks, such as 2400"))?;
    let known = Timing::RATES.into_iter().find(|rate| i64::from(*rate) == baud);
    known.ok_or_else(|| {
        de::Error::custom(format!(
            "`{baud}` is no baud rate of M-Bus: write one of {}",
            Timing::RATES.map(|rate| rate.to_string()).join(", ")
        ))
    })
}

fn some_baud<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    baud(deserializer).map(Some)
}

fn some_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    duration(deserializer).map(Some)
}

/// How long a meter may reasonably take to answer.
pub const TIMEOUTS: std::ops::RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(60);

fn timeout<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let timeout = duration(deserializer)?;
    if TIMEOUTS.contains(&timeout) {
        Ok(Some(timeout))
    } else {
        Err(de::Error::custom("a time to answer is from \"10ms\" to \"60s\""))
    }
}

fn utc_offset<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i8, D::Error> {
    let hours = i64::deserialize(deserializer)?;
    i8::try_from(hours).ok().filter(|hours| (-12..=14).contains(hours)).ok_or_else(|| {
        de::Error::custom(format!("`{hours}`: write whole hours from -12 to 14, such as 1 for Central Europe"))
    })
}

fn telegrams<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u8>, D::Error> {
    let count = i64::deserialize(deserializer)?;
    let valid = u8::try_from(count).ok().filter(|count| (1..=250).contains(count));
    valid.map(Some).ok_or_else(|| de::Error::custom(format!("`{count}` telegrams: write 1 to 250")))
}

fn target<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Target, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Number(i64),
        Text(String),
    }
    const FORM: &str = "write a primary address from 0 to 250, or in quotation marks the meter's number \
                        (\"12345678\", 16 digits, or \"KAM-12345678-1B-04\")";
    match Written::deserialize(deserializer) {
        Ok(Written::Number(number)) => u8::try_from(number)
            .ok()
            .filter(|number| *number <= address::LAST)
            .map(Target::Primary)
            .ok_or_else(|| de::Error::custom(format!("`{number}` is no address: {FORM}"))),
        Ok(Written::Text(text)) => Pattern::from_text(&text)
            .filter(|pattern| pattern.is_one_number())
            .map(Target::Secondary)
            .ok_or_else(|| de::Error::custom(format!("`{text}` is no address: {FORM}"))),
        Err(_) => Err(de::Error::custom(format!("this is no address: {FORM}"))),
    }
}

/// `0.1 GJ` and the like.
fn hourly<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<(Decimal, Unit)>, D::Error> {
    const FORM: &str = "write what it may count in an hour, such as \"0.1 GJ\", \"2.5 m3\" or \"20 kWh\"";
    let text = String::deserialize(deserializer).map_err(|_| de::Error::custom(format!("this is no limit: {FORM}")))?;
    let parse = || {
        let (number, unit) = text.split_once(' ')?;
        let unit = [Unit::GJ, Unit::M3, Unit::KWH].into_iter().find(|known| known.as_str() == unit.trim())?;
        Decimal::parse(number.as_bytes()).filter(|most| most.mantissa() > 0).map(|most| (most, unit))
    };
    parse().map(Some).ok_or_else(|| de::Error::custom(format!("`{text}` is no limit: {FORM}")))
}

/// Each text: a byte of control information, and data.
fn commands<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Command>, D::Error> {
    let read = |text: &String| {
        let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let (pairs, rest) = digits.as_chunks::<2>();
        let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let bytes: Option<Vec<u8>> = pairs.iter().map(byte).collect();
        let (ci, data) = bytes.as_deref().and_then(<[u8]>::split_first)?;
        (rest.is_empty() && data.len() <= 252).then(|| Command { ci: *ci, data: data.to_vec() })
    };
    let texts = Vec::<String>::deserialize(deserializer)?;
    let refuse = |text: &String| {
        de::Error::custom(format!(
            "`{text}` is no command: write control information and data in hex digits, such as \"50 10\" for an application reset with subcode 10"
        ))
    };
    texts.iter().map(|text| read(text).ok_or_else(|| refuse(text))).collect()
}
