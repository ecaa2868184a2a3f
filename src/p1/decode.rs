//! A telegram to readings: one [`Report`] for each meter that it speaks of.
//!
//! Enters: a [`Telegram`]. Leaves: the report of the main meter, then one for each slave meter in the
//! order in which the channels appear. What a table does not explain, or explains otherwise than it
//! was sent, stands under `unknown` of its meter; no line is dropped.
//!
//! Where no electricity is read (a heat or hot-water meter alone on a P1 port), there is no report of
//! an electricity meter: what the telegram says of itself stands in the first slave's report.

use std::borrow::Cow;

use super::{
    Line, Telegram,
    dialect::{self, Dialect, Meaning},
    text,
};
use crate::{
    moment::Moment,
    obis::Obis,
    reading::{Clock, Event, Identity, Medium, Reading, Register, Report, Unknown, escape},
    unit::{Decimal, Unit},
};

/// What a telegram says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// By meter: the main meter first.
    pub reports: Vec<Report>,
    /// Whose tables explained it.
    pub dialect: Dialect,
}

/// Decodes a telegram, by the tables of `dialect` or of the one that it seems to be of.
pub fn decode(telegram: &Telegram<'_>, dialect: Option<Dialect>) -> Decoded {
    let dialect = dialect.unwrap_or_else(|| Dialect::detect(telegram.lines()));
    let mut main = Main::new(telegram);
    let mut slaves: Vec<Slave<'_>> = Vec::new();
    for line in telegram.lines() {
        let Some(channel) = channel(line) else {
            main.take(line, dialect);
            continue;
        };
        let index = slaves.iter().position(|slave| slave.channel == channel).unwrap_or_else(|| {
            slaves.push(Slave::new(channel));
            slaves.len().saturating_sub(1)
        });
        if let Some(slave) = slaves.get_mut(index) {
            slave.take(line, dialect);
        }
    }
    slaves.retain(|slave| {
        if !slave.says_something() {
            let lines = telegram.lines().filter(|&line| channel(line) == Some(slave.channel));
            main.unknown.extend(lines.map(unknown));
        }
        slave.says_something()
    });
    let telegram_time = main.time;
    let mut reports = Vec::with_capacity(slaves.len().saturating_add(1));
    let mut slaves = slaves.into_iter().map(|slave| slave.report(telegram_time));
    match slaves.next() {
        Some(first) if main.readings.is_empty() => reports.push(main.merge_into(first)),
        first => {
            reports.push(main.report());
            reports.extend(first);
        }
    }
    reports.extend(slaves);
    Decoded { reports, dialect }
}

/// The channel of the slave meter that a line is of.
fn channel(line: Line<'_>) -> Option<u8> {
    match line.code {
        Some(Obis { a: 0, b: channel @ 1..=4, .. }) => Some(channel),
        _ => None,
    }
}

/// The meter whose port it is.
struct Main {
    id: Option<String>,
    id_at: usize,
    time: Option<Moment>,
    readings: Vec<Reading>,
    info: Vec<(Cow<'static, str>, String)>,
    events: Vec<Event>,
    unknown: Vec<Unknown>,
}

impl Main {
    fn new(telegram: &Telegram<'_>) -> Self {
        let mut info = Vec::with_capacity(8);
        info.push((Cow::Borrowed("identification"), text::printable(telegram.identification())));
        Self {
            id: None,
            id_at: 0,
            time: None,
            // A three-phase DSMR 5 meter sends 26.
            readings: Vec::with_capacity(32),
            info,
            events: Vec::new(),
            unknown: Vec::new(),
        }
    }

    fn take(&mut self, line: Line<'_>, dialect: Dialect) {
        let meaning = line.code.and_then(|code| dialect.meaning(code));
        if meaning.and_then(|meaning| self.understand(meaning, line.text)).is_none() {
            self.unknown.push(unknown(line));
        }
    }

    fn understand(&mut self, meaning: Meaning, text: &[u8]) -> Option<()> {
        // What is no number or clock can have no bracket in it.
        let number = text::inside(text)?;
        let mut info = |name, text| self.info.push((Cow::Borrowed(name), text));
        match meaning {
            Meaning::Register { name, unit } => self.register(name, unit, number)?,
            Meaning::Limit => self
                .register("power_limit", &Unit::KW, number)
                .or_else(|| self.register("current_limit", &Unit::A, number))?,
            // What a telegram says twice stands as it was said first; the second is unknown.
            Meaning::Clock if self.time.is_none() => self.time = Some(text::clock(number)?),
            Meaning::Identifier if self.id.is_none() => {
                self.id = text::identifier(text::single(text)?);
                // Its place among the texts, for telegrams in which it names no electricity meter.
                self.id_at = self.info.len();
            }
            Meaning::Plain(name) => info(name, text::printable(text::single(text)?)),
            Meaning::Text(name) => info(name, text::from_hex(text::single(text)?)),
            Meaning::Tariff { first, second } => {
                let tariff = match text::single(text)? {
                    b"0001" => first.to_owned(),
                    b"0002" => second.to_owned(),
                    other => text::printable(other),
                };
                info("tariff", tariff);
            }
            Meaning::FailureLog if self.events.is_empty() => self.events = failure_log(text)?,
            _ => return None,
        }
        Some(())
    }

    /// `value*unit` as a register that counts in `unit`.
    fn register(&mut self, name: &'static str, unit: &Unit, content: &[u8]) -> Option<()> {
        let (mut value, spelling) = text::value_and_unit(content)?;
        let mut raw = None;
        // At most three bytes: less than a call of memcmp.
        if !unit.as_str().bytes().eq(spelling.iter().copied()) {
            let (found, exponent) = dialect::unit(spelling)?;
            if found != unit {
                return None;
            }
            raw = Some(Box::new((value, raw_unit(spelling)?)));
            value = value.shift(exponent)?;
        }
        self.readings.push(Reading { raw, ..Reading::now(Register::named(name), value, unit.clone()) });
        Some(())
    }

    fn report(self) -> Report {
        let medium = if self.readings.is_empty() { Medium::Other(0) } else { Medium::Electricity };
        Report {
            meter: self.id.map_or(Identity::Place { channel: None }, Identity::Own),
            medium,
            protocol: Cow::Borrowed("p1"),
            measured_at: self.time,
            clock: if self.time.is_some() { Clock::Meter } else { Clock::Gateway },
            readings: self.readings,
            info: self.info,
            events: self.events,
            unknown: self.unknown,
        }
    }

    /// Gives what the telegram says of itself to its first slave meter.
    fn merge_into(mut self, mut slave: Report) -> Report {
        if let Some(id) = self.id {
            self.info.insert(self.id_at.min(self.info.len()), (Cow::Borrowed("equipment"), id));
        }
        self.info.append(&mut slave.info);
        self.events.append(&mut slave.events);
        self.unknown.append(&mut slave.unknown);
        Report { info: self.info, events: self.events, unknown: self.unknown, ..slave }
    }
}

/// A meter behind the P1 port. Its lines come in any order, so they are judged at the end.
struct Slave<'a> {
    channel: u8,
    id: Option<String>,
    device_type: Option<&'a [u8]>,
    counters: Vec<Counter<'a>>,
    info: Vec<(Cow<'static, str>, String)>,
    unknown: Vec<Unknown>,
}

struct Counter<'a> {
    line: Line<'a>,
    time: Option<Moment>,
    value: Decimal,
    unit: &'a [u8],
}

impl<'a> Slave<'a> {
    fn new(channel: u8) -> Self {
        Self {
            channel,
            id: None,
            device_type: None,
            counters: Vec::new(),
            info: vec![(Cow::Borrowed("channel"), channel.to_string())],
            unknown: Vec::new(),
        }
    }

    /// Whether it names itself or its kind, or counts something: an unused channel does neither, though
    /// some meters send a value without a unit for it.
    fn says_something(&self) -> bool {
        self.id.is_some() || self.device_type.is_some() || self.counters.iter().any(|counter| !counter.unit.is_empty())
    }

    fn take(&mut self, line: Line<'a>, dialect: Dialect) {
        let meaning = line.code.and_then(|code| dialect.meaning(code));
        if meaning.and_then(|meaning| self.understand(meaning, line)).is_none() {
            self.unknown.push(unknown(line));
        }
    }

    fn understand(&mut self, meaning: Meaning, line: Line<'a>) -> Option<()> {
        match meaning {
            Meaning::DeviceType if self.device_type.is_none() => {
                let content = text::single(line.text)?;
                self.device_type = (!content.is_empty()).then_some(content);
            }
            Meaning::SlaveIdentifier if self.id.is_none() => self.id = text::identifier(text::single(line.text)?),
            Meaning::SlavePlain(name) => {
                self.info.push((Cow::Borrowed(name), text::printable(text::single(line.text)?)))
            }
            Meaning::SlaveReading => {
                let [time, value] = all_brackets::<2>(line.text)?;
                let (value, unit) = text::value_and_unit(value)?;
                self.counters.push(Counter { line, time: text::clock(time), value, unit });
            }
            Meaning::SlaveReadingV3 => {
                let [time, _status, _period, _count, _code, unit, value] = all_brackets::<7>(line.text)?;
                let value = Decimal::parse(value)?;
                self.counters.push(Counter { line, time: text::clock(time), value, unit });
            }
            _ => return None,
        }
        Some(())
    }

    fn report(mut self, telegram_time: Option<Moment>) -> Report {
        let code = self.device_type.and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
        let medium = Medium::from_device_type(code.unwrap_or(0));
        if let (Some(text), None) = (self.device_type, code) {
            self.info.push((Cow::Borrowed("device_type"), text::printable(text)));
        }
        let mut readings = Vec::with_capacity(self.counters.len());
        let mut time = None;
        for counter in self.counters {
            match counter_reading(medium, &counter) {
                Some(reading) => {
                    readings.push(reading);
                    time = time.max(counter.time);
                }
                None => self.unknown.push(unknown(counter.line)),
            }
        }
        Report {
            meter: self.id.map_or(Identity::Place { channel: Some(self.channel) }, Identity::Own),
            medium,
            protocol: Cow::Borrowed("p1"),
            measured_at: time.or(telegram_time),
            clock: match (time, telegram_time) {
                (Some(_), _) => Clock::Meter,
                (None, Some(_)) => Clock::Telegram,
                (None, None) => Clock::Gateway,
            },
            readings,
            info: self.info,
            events: Vec::new(),
            unknown: self.unknown,
        }
    }
}

/// 1 kWh is 0.0036 GJ, exactly.
const GJ_PER_KWH: Decimal = Decimal::per_ten_thousand(36);

/// A slave's counter as a reading; thermal energy becomes GJ, whatever the meter counts in.
fn counter_reading(medium: Medium, counter: &Counter<'_>) -> Option<Reading> {
    let (mut unit, exponent) = dialect::unit(counter.unit)?;
    let mut value = counter.value.shift(exponent)?;
    let thermal = matches!(medium, Medium::Heat | Medium::Cooling | Medium::HeatCooling) && *unit == Unit::KWH;
    if thermal {
        value = value.times(GJ_PER_KWH)?;
        unit = &Unit::GJ;
    }
    let mut reading = Reading::now(Register::named(dialect::slave_register(medium, unit)?), value, unit.clone());
    if thermal || exponent != 0 {
        reading.raw = Some(Box::new((counter.value, raw_unit(counter.unit)?)));
    }
    Some(reading)
}

fn raw_unit(spelling: &[u8]) -> Option<Unit> {
    Unit::from_text(std::str::from_utf8(spelling).ok()?)
}

/// The log of long power failures: its entries, or None where it has another form.
fn failure_log(text: &[u8]) -> Option<Vec<Event>> {
    let mut items = text::brackets(text);
    let count = items.next()??;
    let Some(code) = items.next() else { return count.is_empty().then(Vec::new) };
    // Some meters leave `0-` off the code.
    if !count.iter().all(u8::is_ascii_digit) || !code?.ends_with(b"96.7.19") {
        return None;
    }
    let mut events = Vec::new();
    while let Some(end) = items.next() {
        let (seconds, unit) = text::value_and_unit(items.next()??)?;
        if !matches!(unit, b"s" | b"") || seconds.scale() != 0 {
            return None;
        }
        events.push(Event {
            event: Cow::Borrowed("power_failure"),
            end: text::clock(end?),
            duration_s: Some(u64::try_from(seconds.mantissa()).ok()?),
        });
    }
    Some(events)
}

/// Exactly `N` brackets.
fn all_brackets<const N: usize>(text: &[u8]) -> Option<[&[u8]; N]> {
    let mut items = text::brackets(text);
    let mut found: [&[u8]; N] = [b""; N];
    for slot in &mut found {
        *slot = items.next()??;
    }
    items.next().is_none().then_some(found)
}

fn unknown(line: Line<'_>) -> Unknown {
    Unknown { code: escape(line.code_text), text: escape(line.text) }
}
