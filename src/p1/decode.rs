//! A telegram to readings: one [`Report`] for each meter that it speaks of.
//!
//! Enters: a [`Telegram`]. Leaves: the report of the main meter, then one for each slave meter in the
//! order in which the channels appear. What a table does not explain, or explains otherwise than it
//! was sent, stands under `unknown` of its meter; no line is dropped.
//!
//! Where no electricity is read (a heat or hot-water meter alone on a P1 port), there is no report of
//! an electricity meter: what the telegram says of itself stands in the first slave's report.
//!
//! A value without a unit is in the table's unit, but only where it has decimals: a whole number may as
//! well be in watts or litres, and stays unknown.

use std::borrow::Cow;

use super::{
    Line, Telegram,
    dialect::{self, Dialect},
    table::Meaning,
    telegram::Next,
    text::{self, Clock as ClockText},
};
use crate::{
    moment::Moment,
    obis::Obis,
    reading::{Clock, Event, Identity, Info, Medium, Qualifiers, Reading, Register, Report, Unknown, escape},
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
///
/// ```
/// use meterkast::p1::{Dialect, Framer, Telegram, Writer, decode};
///
/// let bytes = Writer::new("XYZ5 example").line("1-3:0.2.8(50)").line("1-0:1.8.1(1.000*kWh)").line("9-9:9.9.9(?)").finish(true);
/// let mut framer = Framer::new();
/// framer.push(&bytes);
/// let telegram = Telegram::check(framer.poll().unwrap())?;
/// let report = &decode(&telegram, None).reports[0];
/// assert_eq!(report.readings[0].register.as_str(), "import_low");
/// assert_eq!(report.unknown[0].code, "9-9:9.9.9");
/// // In Belgium tariff 1 is by day.
/// let report = &decode(&telegram, Some(Dialect::Belgium)).reports[0];
/// assert_eq!(report.readings[0].register.as_str(), "import_normal");
/// # Ok::<(), meterkast::p1::Rejected>(())
/// ```
pub fn decode(telegram: &Telegram<'_>, dialect: Option<Dialect>) -> Decoded {
    let dialect = dialect.unwrap_or_else(|| Dialect::detect(telegram));
    let mut main = Main::new(telegram, dialect);
    let mut slaves = Slaves { dialect, meters: [const { None }; CHANNELS], count: 0 };
    let mut lines = telegram.lines();
    while let Some(next) = lines.next_of(dialect) {
        let line = match next {
            Next::Register(name, unit, value) => {
                main.readings.push(Reading::now(Register::named(name), value, unit.clone()));
                continue;
            }
            Next::Line(line) => line,
        };
        let meaning = line.entry.and_then(|entry| entry.meaning(dialect));
        match channel(line) {
            Some(channel) if meaning.is_none_or(|meaning| meaning.is_of_slave()) => slaves.take(channel, line, meaning),
            _ => main.take(line, meaning),
        }
    }
    let telegram_time = main.time;
    let silent = slaves.take_silent();
    if silent.iter().any(|&silent| silent) {
        let of_silent = |line: &Line<'_>| {
            let meaning = line.entry.and_then(|entry| entry.meaning(dialect));
            channel(*line).is_some_and(|channel| silent.get(index(channel)) == Some(&true))
                && meaning.is_none_or(|meaning| meaning.is_of_slave())
        };
        main.unknown.extend(telegram.lines().filter(of_silent).map(unknown));
    }
    let mut reports = Vec::with_capacity(slaves.count.saturating_add(1));
    let mut slaves = slaves.in_order().map(|slave| slave.report(telegram_time));
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

/// A text known when this was compiled, under its name.
const fn fixed(name: &'static str, text: &'static str) -> Info {
    (Cow::Borrowed(name), Cow::Borrowed(text))
}

fn info(name: &'static str, text: String) -> Info {
    (Cow::Borrowed(name), Cow::Owned(text))
}

/// Who a meter says it is: the best of what it says, and its rank.
#[derive(Default)]
struct Names {
    best: Option<(u8, &'static str, String)>,
}

impl Names {
    /// Takes an identifier; what is not the best stands among the texts. None when there is one of this
    /// rank already: what is said twice stands as it was said first.
    fn take(&mut self, name: &'static str, rank: u8, text: &[u8], texts: &mut Vec<Info>) -> Option<()> {
        let Some(id) = text::identifier(text) else {
            texts.push(fixed(name, ""));
            return Some(());
        };
        match &mut self.best {
            Some((best, ..)) if *best == rank => return None,
            Some((best, ..)) if *best < rank => texts.push(info(name, id)),
            best => {
                if let Some((_, name, id)) = best.replace((rank, name, id)) {
                    texts.push(info(name, id));
                }
            }
        }
        Some(())
    }

    fn identity(self, channel: Option<u8>) -> Identity {
        self.best.map_or(Identity::Place { channel }, |(_, _, id)| Identity::Own(id))
    }
}

/// The meter whose port it is.
struct Main {
    dialect: Dialect,
    names: Names,
    /// The place of its identifier among the texts, for telegrams in which it names no electricity meter.
    id_at: usize,
    time: Option<Moment>,
    readings: Vec<Reading>,
    info: Vec<Info>,
    events: Vec<Event>,
    unknown: Vec<Unknown>,
}

impl Main {
    fn new(telegram: &Telegram<'_>, dialect: Dialect) -> Self {
        let mut texts = Vec::with_capacity(8);
        texts.push(info("identification", text::printable(telegram.identification())));
        Self {
            dialect,
            names: Names::default(),
            id_at: 0,
            time: None,
            // A three-phase DSMR 5 meter sends 26.
            readings: Vec::with_capacity(32),
            info: texts,
            events: Vec::new(),
            unknown: Vec::new(),
        }
    }

    fn take(&mut self, line: Line<'_>, meaning: Option<&Meaning>) {
        if meaning.and_then(|meaning| self.understand(*meaning, line)).is_none() {
            self.unknown.push(unknown(line));
        }
    }

    fn understand(&mut self, meaning: Meaning, line: Line<'_>) -> Option<()> {
        let text = line.text;
        // What is no number or clock can have no bracket in it.
        let content = text::inside(text)?;
        match meaning {
            Meaning::Register { name, .. } if text::is_empty_value(content) => {
                self.info.push(info(name, text::printable(content)));
            }
            Meaning::Register { name, unit, .. } => self.readings.push(reading(name, unit, content)?),
            Meaning::Limit => self.readings.push(
                reading("power_limit", &Unit::KW, content)
                    .or_else(|| reading("current_limit", &Unit::A, content))
                    .or_else(|| reading("apparent_power_limit", &Unit::KVA, content))?,
            ),
            Meaning::Limits => self.limits(text, content)?,
            // What a telegram says twice stands as it was said first; the second is unknown.
            Meaning::Clock if self.time.is_none() => match text::clock(content, self.dialect.winter_offset()) {
                ClockText::At(time) => self.time = Some(time),
                ClockText::Unset => self.info.push(info("unset_clock", text::printable(content))),
                ClockText::Other => return None,
            },
            Meaning::Identifier { name, rank } => {
                let at = self.info.len();
                self.names.take(name, rank, text::single(text)?, &mut self.info)?;
                self.id_at = at;
            }
            Meaning::Plain(name) => self.info.push(info(name, text::printable(text::single(text)?))),
            Meaning::Text(name) => self.info.push(info(name, text::from_hex(text::single(text)?))),
            Meaning::Relay => {
                let name =
                    *["relay_1", "relay_2", "relay_3", "relay_4"].get(usize::from(line.code?.b).checked_sub(1)?)?;
                self.info.push(info(name, text::printable(text::single(text)?)));
            }
            Meaning::Tariff(names) => {
                let number = text::single(text)?;
                let name = match number {
                    [b'0', b'0', b'0', digit @ b'1'..=b'9'] => names.get(usize::from(digit.wrapping_sub(b'1'))),
                    _ => None,
                };
                self.info.push(match name {
                    Some(name) => fixed("tariff", name),
                    None => info("tariff", text::printable(number)),
                });
            }
            Meaning::FailureLog if self.events.is_empty() => self.events = failure_log(text, self.dialect)?,
            Meaning::Peak(name) => self.peak(name, text)?,
            Meaning::PeakHistory(name) if !self.has_history() => self.peak_history(name, text)?,
            Meaning::Snapshot(registers) if !self.has_history() => self.snapshot(registers, text)?,
            _ => return None,
        }
        Some(())
    }

    fn has_history(&self) -> bool {
        self.readings.iter().any(|reading| reading.qualifiers.storage > 0)
    }

    /// One current, or one for each direction, as two brackets or with a comma between.
    fn limits(&mut self, text: &[u8], content: &[u8]) -> Option<()> {
        const LIMIT: &str = "current_limit";
        if let Some(limit) = reading(LIMIT, &Unit::A, content) {
            self.readings.push(limit);
            return Some(());
        }
        let [first, second] = all_brackets::<2>(text).or_else(|| {
            let (first, second) = content.split_at_checked(content.iter().position(|&byte| byte == b',')?)?;
            Some([first, second.get(1..)?])
        })?;
        self.readings.extend([reading(LIMIT, &Unit::A, first)?, reading("current_limit_negative", &Unit::A, second)?]);
        Some(())
    }

    /// The highest demand of the month, and when it was; the two come in either order.
    fn peak(&mut self, name: &'static str, text: &[u8]) -> Option<()> {
        let [first, second] = all_brackets::<2>(text)?;
        let clock = |text| text::clock(text, self.dialect.winter_offset());
        let (time, value) = match (clock(first), clock(second)) {
            (ClockText::Other, ClockText::Other) => return None,
            (ClockText::Other, time) => (time, first),
            (time, _) => (time, second),
        };
        self.readings.push(Reading { at: time.time(), ..reading(name, &Unit::KW, value)? });
        Some(())
    }

    /// The highest demands of past months, in either order. The storage number counts months back, 1 being
    /// the last; `at` is when the peak was, or the end of the month where that is not known.
    fn peak_history(&mut self, name: &'static str, text: &[u8]) -> Option<()> {
        let mut items = text::brackets(text);
        let count = items.next()??;
        if count.is_empty() || !count.iter().all(u8::is_ascii_digit) {
            return None;
        }
        // The code of the time and that of the value; E660 sends neither, and no months.
        for _ in 0..2 {
            let Some(code) = items.next() else { return self.no_history(text) };
            if code?.is_empty() {
                return None;
            }
        }
        let mut months = Vec::new();
        while let Some(month) = items.next() {
            let month = month?;
            if month.is_empty() && months.is_empty() && items.next().is_none() {
                break;
            }
            let end = text::clock(month, self.dialect.winter_offset()).time()?;
            let peak = match text::clock(items.next()??, self.dialect.winter_offset()) {
                ClockText::Other => return None,
                clock => clock.time(),
            };
            months.push((end, Reading { at: Some(peak.unwrap_or(end)), ..reading(name, &Unit::KW, items.next()??)? }));
        }
        if months.is_empty() {
            return self.no_history(text);
        }
        months.sort_by_key(|(end, _)| std::cmp::Reverse(*end));
        let stored = (1..).zip(months).map(|(storage, (_, reading))| Reading {
            qualifiers: Qualifiers { storage, ..Qualifiers::default() },
            ..reading
        });
        self.readings.extend(stored);
        Some(())
    }

    /// A history without months.
    fn no_history(&mut self, text: &[u8]) -> Option<()> {
        self.info.push(info("demand_peak_history", text::printable(text)));
        Some(())
    }

    /// Registers as they stood at the end of the last month.
    fn snapshot(&mut self, registers: &[(&'static str, &'static Unit)], text: &[u8]) -> Option<()> {
        let mut items = text::brackets(text);
        let at = text::clock(items.next()??, self.dialect.winter_offset()).time()?;
        let mut readings = Vec::with_capacity(registers.len());
        for &(name, unit) in registers {
            let Some(item) = items.next() else { break };
            let qualifiers = Qualifiers { storage: 1, ..Qualifiers::default() };
            readings.push(Reading { qualifiers, at: Some(at), ..reading(name, unit, item?)? });
        }
        if readings.is_empty() || items.next().is_some() {
            return None;
        }
        self.readings.append(&mut readings);
        Some(())
    }

    fn report(self) -> Report {
        let medium = if self.readings.is_empty() { Medium::Other(0) } else { Medium::Electricity };
        Report {
            meter: self.names.identity(None),
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
        if let Some((_, name, id)) = self.names.best {
            self.info.insert(self.id_at.min(self.info.len()), info(name, id));
        }
        if let Some(time) = self.time.filter(|&time| slave.measured_at != Some(time)) {
            self.info.push(info("telegram_time", time.to_string()));
        }
        self.info.append(&mut slave.info);
        self.events.append(&mut slave.events);
        self.unknown.append(&mut slave.unknown);
        Report { info: self.info, events: self.events, unknown: self.unknown, ..slave }
    }
}

/// `value*unit` as a reading of a register that counts in `unit`.
fn reading(name: &'static str, unit: &Unit, content: &[u8]) -> Option<Reading> {
    let (mut value, spelling) = text::value_and_unit(content)?;
    let mut raw = None;
    // At most five bytes: less than a call of memcmp.
    let usual = unit.as_str().bytes().eq(spelling.iter().copied()) || spelling.is_empty() && value.scale() > 0;
    if !usual {
        let (found, exponent) = dialect::unit(spelling)?;
        if found != unit {
            return None;
        }
        if exponent != 0 {
            raw = Some(Box::new((value, raw_unit(spelling)?)));
            value = value.shift(exponent)?;
        }
    }
    Some(Reading { raw, ..Reading::now(Register::named(name), value, unit.clone()) })
}

/// How many slave meters a port has.
const CHANNELS: usize = 4;

/// The place of a channel, from 0.
fn index(channel: u8) -> usize {
    usize::from(channel.saturating_sub(1))
}

/// The meters behind the P1 port. Their lines come in any order, so they are judged at the end.
struct Slaves<'a> {
    dialect: Dialect,
    /// By channel.
    meters: [Option<Slave<'a>>; CHANNELS],
    /// How many there are.
    count: usize,
}

struct Slave<'a> {
    channel: u8,
    /// How many were there before it.
    order: usize,
    names: Names,
    /// As sent, and as a number where it is one.
    device_type: Option<(String, Option<u8>)>,
    /// What it counts: most have one counter.
    counter: Option<Counter<'a>>,
    more: Vec<Counter<'a>>,
    info: Vec<Info>,
    unknown: Vec<Unknown>,
}

struct Counter<'a> {
    line: Line<'a>,
    time: Option<Moment>,
    value: Decimal,
    unit: &'a [u8],
}

impl<'a> Slaves<'a> {
    fn take(&mut self, channel: u8, line: Line<'a>, meaning: Option<&Meaning>) {
        let (order, dialect) = (self.count, self.dialect);
        let Some(place) = self.meters.get_mut(index(channel)) else { return };
        if place.is_none() {
            self.count = self.count.saturating_add(1);
        }
        let slave = place.get_or_insert_with(|| Slave::new(channel, order));
        if meaning.and_then(|meaning| slave.understand(*meaning, line, dialect)).is_none() {
            slave.unknown.push(unknown(line));
        }
    }

    /// Takes out those that say nothing; tells by channel which they were.
    fn take_silent(&mut self) -> [bool; CHANNELS] {
        let mut silent = [false; CHANNELS];
        for (silent, meter) in silent.iter_mut().zip(&mut self.meters) {
            *silent = meter.take_if(|slave| !slave.says_something()).is_some();
        }
        silent
    }

    /// In the order in which they appeared.
    fn in_order(&mut self) -> impl Iterator<Item = Slave<'a>> {
        let meters = &mut self.meters;
        (0..self.count)
            .filter_map(|order| meters.iter_mut().find_map(|meter| meter.take_if(|slave| slave.order == order)))
    }
}

impl<'a> Slave<'a> {
    fn new(channel: u8, order: usize) -> Self {
        let name = match channel {
            1 => "1",
            2 => "2",
            3 => "3",
            _ => "4",
        };
        let mut texts = Vec::with_capacity(2);
        texts.push(fixed("channel", name));
        Self {
            channel,
            order,
            names: Names::default(),
            device_type: None,
            counter: None,
            more: Vec::new(),
            info: texts,
            unknown: Vec::new(),
        }
    }

    /// Whether it names itself or its kind, or counts something: an unused channel does neither, though
    /// some meters send a value without a unit for it.
    fn says_something(&self) -> bool {
        let counts = |counter: &Counter<'_>| !counter.unit.is_empty();
        self.names.best.is_some() || self.device_type.is_some() || self.counter.iter().chain(&self.more).any(counts)
    }

    fn understand(&mut self, meaning: Meaning, line: Line<'a>, dialect: Dialect) -> Option<()> {
        match meaning {
            Meaning::DeviceType if self.device_type.is_none() => {
                let content = text::single(line.text)?;
                if content.is_empty() {
                    self.info.push(fixed("device_type", ""));
                } else {
                    let code = std::str::from_utf8(content).ok().and_then(|text| text.parse().ok());
                    let text = if code.is_some() { String::new() } else { text::printable(content) };
                    self.device_type = Some((text, code));
                }
            }
            Meaning::SlaveIdentifier { name, rank } => {
                self.names.take(name, rank, text::single(line.text)?, &mut self.info)?;
            }
            Meaning::SlavePlain(name) => self.info.push(info(name, text::printable(text::single(line.text)?))),
            Meaning::SlaveText(name) => self.info.push(info(name, text::from_hex(text::single(line.text)?))),
            Meaning::SlaveReading => {
                let [time, value] = all_brackets::<2>(line.text)?;
                if text::is_empty_value(value) {
                    self.info.push(info("empty_reading", text::printable(line.text)));
                    return Some(());
                }
                let (value, unit) = text::value_and_unit(value)?;
                self.count(line, time, value, unit, dialect);
            }
            Meaning::SlaveReadingV3 => {
                let [time, status, period, _count, _code, unit, value] = all_brackets::<7>(line.text)?;
                let value = Decimal::parse(value)?;
                self.info.extend([
                    info("reading_status", text::printable(status)),
                    info("period_minutes", text::printable(period)),
                ]);
                self.count(line, time, value, unit, dialect);
            }
            _ => return None,
        }
        Some(())
    }

    fn count(&mut self, line: Line<'a>, time: &[u8], value: Decimal, unit: &'a [u8], dialect: Dialect) {
        let clock = text::clock(time, dialect.winter_offset()).time();
        if clock.is_none() && !time.is_empty() {
            self.info.push(info("unset_clock", text::printable(time)));
        }
        let counter = Counter { line, time: clock, value, unit };
        match &mut self.counter {
            None => self.counter = Some(counter),
            Some(_) => self.more.push(counter),
        }
    }

    fn report(mut self, telegram_time: Option<Moment>) -> Report {
        let mut medium = Medium::from_device_type(0);
        match self.device_type.take() {
            Some((_, Some(code))) => medium = Medium::from_device_type(code),
            Some((text, None)) => self.info.push(info("device_type", text)),
            None => {}
        }
        let mut readings = Vec::with_capacity(1);
        let mut time = None;
        for counter in self.counter.iter().chain(&self.more) {
            match counter_reading(medium, counter) {
                Some(reading) => {
                    readings.push(reading);
                    time = time.max(counter.time);
                    if medium == Medium::Gas && counter.line.code.is_some_and(|code| code.e == 3) {
                        self.info.push(fixed("temperature_corrected", "no"));
                    }
                }
                None => self.unknown.push(unknown(counter.line)),
            }
        }
        Report {
            meter: self.names.identity(Some(self.channel)),
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
    let (mut unit, exponent) = match counter.unit {
        // Without a unit and without a time it was never read.
        b"" if counter.value.scale() > 0 && counter.time.is_some() => (dialect::unit_of(medium)?, 0),
        spelling => dialect::unit(spelling)?,
    };
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
fn failure_log(text: &[u8], dialect: Dialect) -> Option<Vec<Event>> {
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
            end: text::clock(end?, dialect.winter_offset()).time(),
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
