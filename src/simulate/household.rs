//! The meters of a household: registers that count what flows, and the telegram that shows them.
//!
//! Enters: a [`Description`], and moments. Leaves: telegrams and [`Book`]s. Registers count in watt-seconds,
//! joules and millionths of a litre, as u64: the whole calendar of jiff cannot overflow them.

use std::{collections::VecDeque, sync::Arc};

use jiff::{
    Timestamp,
    civil::{Date, Time},
    tz::{Offset, TimeZone},
};

use super::{
    Faults, Harm,
    description::{Behind, Description, Event, Measures, P1},
    dialects::{Clock, Dialect, Form, Line, Quantity, Slaves, Tariff, Written},
    faults::Kind,
    habits::{Conditions, Flows, Profile, SPELL, STEP, reactive},
    noise,
};
use crate::{
    moment::{Civil, Moment},
    p1::{Key, crc},
    reading::{Identity, Medium, Qualifiers, Reading, Register},
    unit::{Decimal, Unit},
};

/// What the meters think of the seed at the factory; [`super::habits`] has its own streams.
const FACTORY: u64 = 1000;
/// Voltage of a phase, and frequency.
const VOLTAGE: u64 = 2000;
const FREQUENCY: u64 = 2100;
/// Demand is averaged over so many seconds: a multiple of [`SPELL`].
const QUARTER: i64 = 900;
/// So many past months have their peak told.
const MONTHS: usize = 13;
/// A power failure is long from so many seconds on (DSMR 5.0.2, 6.12: three minutes).
const LONG: i64 = 180;
/// From here on the counter of sealed frames counts seconds: the year 2000.
const FRAMES_SINCE: i64 = 946_684_800;

/// A household, and its meter with a P1 port if it has one. It lives in the legal time of its country, whatever offset
/// moments come with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Household {
    seed: u64,
    profile: Arc<Profile>,
    zone: TimeZone,
    /// Seconds since 1970.
    now: i64,
    /// In the order of their times.
    events: Arc<[Event]>,
    /// How many of them have happened.
    happened: usize,
    faults: Faults,
    /// Since when there is no power, and until when.
    outage: Option<(i64, i64)>,
    meter: Option<Meter>,
}

/// A meter with a P1 port.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Meter {
    dialect: Dialect,
    phases: u8,
    identification: String,
    identifier: String,
    key: Option<Key>,
    /// How many seconds its clock is ahead.
    ahead: i64,
    counters: Counters,
    failures: i64,
    /// Of these: the long ones, and their ends and durations.
    long_failures: i64,
    log: VecDeque<(i64, i64)>,
    /// Imported in the quarter-hour that runs, and in the last, in Ws.
    quarter: u64,
    last_quarter: u64,
    peak: Peak,
    /// By the end of their months, the last first.
    peaks: VecDeque<(i64, Peak)>,
    /// At the end of the last month, and when that was.
    last_month: (i64, Counters),
    slaves: Vec<Slave>,
}

/// What the electricity meter counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counters {
    /// Import low and normal, export low and normal, in Ws.
    energy: [u64; 4],
    /// Of the four quadrants, in vars.
    reactive: [u64; 4],
}

/// The highest demand of a month.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Peak {
    /// When the quarter-hour ended; None: not yet.
    at: Option<i64>,
    /// What was imported in it, in Ws.
    energy: u64,
}

/// A meter behind the P1 port.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Slave {
    measures: Measures,
    identifier: String,
    /// In millionths of the last decimal that the telegram shows.
    count: u64,
    /// `count` when it was last read by the meter before it, and when that was by that meter's clock.
    shown: u64,
    shown_at: i64,
}

/// What a meter holds at a moment, exactly as it says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Book {
    /// The identifier that the meter sends.
    pub meter: Identity,
    /// What it measures.
    pub medium: Medium,
    /// Since when, by the clock that dates it: that of the P1 meter, or a true one where a telegram has no time.
    pub at: Moment,
    /// In their order, converted values without what the meter counts in ([`Reading::raw`]).
    pub readings: Vec<Reading>,
}

impl Household {
    /// The household of [`Description::demo`], whose serial numbers end in the last ten digits of the seed.
    pub fn new(seed: u64, start: Moment) -> Self {
        Self::of(&Description::demo(seed), start)
    }

    /// A household whose meters have counted for some years until `start`. What [`Description::check`] refuses is not
    /// made out here: a key that is none seals nothing. Events before `start` have happened.
    pub fn of(description: &Description, start: Moment) -> Self {
        let Description { seed, profile, p1, faults, events, bus: _ } = description;
        let start = start.instant().as_second();
        let mut events = events.clone();
        events.sort_by_key(Event::second);
        let zone = p1.as_ref().map_or(Dialect::default(), |p1| p1.dialect).zone();
        // Constants that a test reads back.
        let zone = TimeZone::posix(zone).unwrap_or(TimeZone::UTC);
        let mut household = Self {
            seed: *seed,
            profile: Arc::new(profile.clone()),
            meter: None,
            zone,
            now: start,
            events: events.into(),
            happened: 0,
            faults: *faults,
            outage: None,
        };
        let month = household.local_date(start).0.first_of_month();
        let month = household.zone.to_timestamp(month.at(0, 0, 0, 0)).map_or(start, Timestamp::as_second);
        household.meter = p1.as_ref().map(|p1| Meter::new(p1, *seed, start, month));
        household.happen();
        household
    }

    /// Now, in legal time.
    pub fn moment(&self) -> Moment {
        self.local(self.now)
    }

    /// Whether there is power.
    pub fn is_powered(&self) -> bool {
        self.outage.is_none()
    }

    /// Lets time go by until `to`; nothing where that is past. A day takes some milliseconds, so a leap
    /// of many years takes seconds.
    pub fn advance(&mut self, to: Moment) {
        let to = to.instant().as_second();
        while self.now < to {
            let event = self.events.get(self.happened).map_or(to, Event::second);
            let end = to.min(next(self.now, SPELL)).min(event);
            if let Some((since, until)) = self.outage {
                self.now = end.min(until);
                if self.now == until {
                    self.outage = None;
                    if let Some(meter) = &mut self.meter {
                        meter.fail(since, until);
                    }
                }
            } else {
                let conditions = self.conditions();
                while self.now < end {
                    let until = end.min(next(self.now, STEP));
                    let flows = conditions.flows(&self.profile, self.seed, self.now);
                    if let Some(meter) = &mut self.meter {
                        meter.count(&flows, conditions.low, until.abs_diff(self.now));
                    }
                    self.now = until;
                }
            }
            if self.now.rem_euclid(SPELL) == 0 {
                self.tick();
            }
            self.happen();
        }
    }

    /// What is due at a full five minutes.
    fn tick(&mut self) {
        let is_month = self.now.rem_euclid(QUARTER) == 0 && {
            let (date, time) = self.local_date(self.now);
            date.day() == 1 && time == Time::midnight()
        };
        let (now, powered) = (self.now, self.outage.is_none());
        if let Some(meter) = &mut self.meter {
            meter.tick(now, powered, is_month);
        }
    }

    /// Events until now.
    fn happen(&mut self) {
        let events = Arc::clone(&self.events);
        for event in events.iter().skip(self.happened).take_while(|event| event.second() <= self.now) {
            self.happened += 1;
            if let Event::Outage { at, until } = event
                && until.second() > self.now
            {
                let since = self.outage.map_or(at.second(), |(since, _)| since);
                self.outage = Some((since, until.second().max(self.outage.map_or(i64::MIN, |(_, until)| until))));
            }
            if let Some(meter) = &mut self.meter {
                meter.happen(event);
            }
        }
    }

    /// Those of the whole spell, wherever in it time stands.
    fn conditions(&self) -> Conditions {
        let begin = next(self.now, SPELL) - SPELL;
        let (date, time) = self.local_date(begin);
        Conditions::new(&self.profile, self.seed, begin, date.to_datetime(time))
    }

    /// What the meters hold, exactly as the telegram of this moment says: the electricity meter, then
    /// its slaves.
    pub fn books(&self) -> Vec<Book> {
        let mut books = Vec::new();
        self.compose(&mut Vec::new(), &mut books);
        books
    }

    /// The telegram of this moment; nothing where the household has no P1 port, or no power.
    pub fn telegram(&self) -> Vec<u8> {
        let mut telegram = Vec::with_capacity(1024);
        self.compose(&mut telegram, &mut Vec::new());
        if self.outage.is_some() {
            telegram.clear();
        }
        telegram
    }

    /// The telegram of this moment as it arrives, with the faults that are described; and what was done to it.
    pub fn send(&self) -> (Vec<u8>, Harm) {
        let mut telegram = self.telegram();
        let harm = self.harm(&mut telegram);
        (telegram, harm)
    }

    /// Puts into a telegram of this moment what goes wrong with it.
    pub(super) fn harm(&self, telegram: &mut Vec<u8>) -> Harm {
        let Some(meter) = &self.meter else { return Harm::Silent };
        let kind = match meter.key {
            Some(_) => Kind::Sealed,
            None => Kind::Telegram { crc: meter.dialect.form().crc },
        };
        self.faults.apply(self.seed, self.now, telegram, kind)
    }

    /// Whether its telegrams have a time.
    pub(super) fn tells_time(&self) -> bool {
        self.meter
            .as_ref()
            .is_some_and(|meter| meter.dialect.form().lines.iter().any(|line| matches!(line, Line::Time(_))))
    }

    /// The country and version of its telegrams as they are now; None without a P1 port.
    pub fn dialect(&self) -> Option<Dialect> {
        self.meter.as_ref().map(|meter| meter.dialect)
    }

    /// The first moments of local months after `from`, through `until`.
    pub(super) fn month_ends(&self, from: Moment, until: Moment) -> Vec<Moment> {
        let mut ends = Vec::new();
        let mut month = self.local_date(from.instant().as_second()).0.first_of_month();
        // As long as the calendar goes.
        while let Ok(next) = month.checked_add(jiff::Span::new().months(1)) {
            month = next;
            let Ok(end) = self.zone.to_timestamp(month.at(0, 0, 0, 0)) else { break };
            if end > until.instant() {
                break;
            }
            ends.push(self.local(end.as_second()));
        }
        ends
    }

    /// When meters are exchanged.
    pub(super) fn exchanges(&self) -> impl Iterator<Item = Moment> {
        let exchanges = self.events.iter().filter(|event| matches!(event, Event::Exchange { .. }));
        exchanges.map(|event| self.local(event.second()))
    }

    /// Telegram and books in one, behind what `telegram` and `books` hold.
    pub(super) fn compose(&self, telegram: &mut Vec<u8>, books: &mut Vec<Book>) {
        let Some(meter) = &self.meter else { return };
        let conditions = self.conditions();
        let mut flows = conditions.flows(&self.profile, self.seed, self.now);
        meter.lay(&mut flows);
        let view = View { household: self, meter, form: meter.dialect.form(), low: conditions.low, flows };
        view.compose(telegram, books);
    }

    fn local_date(&self, second: i64) -> (Date, Time) {
        let clock = self.zone.to_datetime(instant(second));
        (clock.date(), clock.time())
    }

    fn local(&self, second: i64) -> Moment {
        moment(second, self.zone.to_offset(instant(second)))
    }
}

impl Meter {
    fn new(p1: &P1, seed: u64, start: i64, month: i64) -> Self {
        // A number of whole units, and what a thousandth of one is in the register.
        let counted = |which, from: i64, below: i64, thousandth: u64| {
            let thousandths = from * 1000 + noise(seed, FACTORY, which, below * 1000);
            thousandths.unsigned_abs() * thousandth
        };
        let energy = match p1.counts_from {
            Some(counts) => counts.map(|count| u64::from(count) * 1000 * WATT_SECONDS),
            None => [(1, 1000, 8000), (2, 1000, 8000), (3, 300, 2000), (4, 900, 5000)]
                .map(|(which, from, below)| counted(which, from, below, WATT_SECONDS)),
        };
        let reactive = [12, 13, 14, 15].map(|which| counted(which, 10, 900, WATT_SECONDS));
        let counters = Counters { energy, reactive };
        let period = p1.dialect.form().slave_period;
        let mut slaves: Vec<Slave> = Vec::new();
        for (Behind { measures, identifier, counts_from }, channel) in p1.meters.iter().zip(0..) {
            let (which, below) = match measures {
                Measures::Gas => (5, 4000),
                Measures::Heat => (6, 200),
                Measures::HotWater => (7, 300),
                Measures::Water => (8, 600),
            };
            let alike = slaves.iter().filter(|slave| slave.measures == *measures).count();
            let which = if alike > 0 { which + 20 * channel } else { which };
            let count = match counts_from {
                Some(count) => u64::from(*count) * 1000 * SLAVE_COUNTS,
                None => counted(which, 50, below, SLAVE_COUNTS),
            };
            let identifier = match identifier.as_str() {
                "" => serial_number(measures.letter(), seed, 26 + alike),
                given => given.to_owned(),
            };
            let shown_at = start.div_euclid(period) * period;
            slaves.push(Slave { measures: *measures, identifier, count, shown: count, shown_at });
        }
        let factory = |which, below| noise(seed, FACTORY, which, below);
        let failure = start - 86_400 - factory(10, 300 * 86_400);
        Self {
            dialect: p1.dialect,
            phases: p1.phases,
            identification: p1.identification.clone(),
            identifier: match p1.identifier.as_str() {
                "" => serial_number('E', seed, 26),
                given => given.to_owned(),
            },
            key: p1.key.as_deref().and_then(|key| Key::from_text(key).ok()),
            ahead: 0,
            counters,
            failures: 1 + factory(11, 9),
            long_failures: 1,
            log: VecDeque::from([(failure, 200 + factory(12, 9000))]),
            quarter: 0,
            last_quarter: 0,
            peak: Peak::default(),
            peaks: VecDeque::new(),
            last_month: (month, counters),
            slaves,
        }
    }

    /// A meter of one phase has all on that.
    fn lay(&self, flows: &mut Flows) {
        if self.phases == 1 {
            flows.watts = [flows.net(), 0, 0];
        }
    }

    fn count(&mut self, flows: &Flows, low: bool, seconds: u64) {
        let mut flows = *flows;
        self.lay(&mut flows);
        let net = flows.net();
        let [import_low, import_normal, export_low, export_normal] = &mut self.counters.energy;
        let register = match (net > 0, low) {
            (true, true) => import_low,
            (true, false) => import_normal,
            (false, true) => export_low,
            (false, false) => export_normal,
        };
        *register += net.unsigned_abs() * seconds;
        self.quarter += net.max(0).unsigned_abs() * seconds;
        let reactive = flows.reactive();
        if let Some(register) = self.counters.reactive.get_mut(quadrant(net, reactive)) {
            *register += reactive.unsigned_abs() * seconds;
        }
        let [gas, heat, hot_water, water] = flows.slaves;
        for slave in &mut self.slaves {
            slave.count += seconds
                * match slave.measures {
                    Measures::Gas => gas,
                    Measures::Heat => heat,
                    Measures::HotWater => hot_water,
                    Measures::Water => water,
                };
        }
    }

    fn tick(&mut self, now: i64, powered: bool, is_month: bool) {
        let at = now + self.ahead;
        if powered && now.rem_euclid(self.dialect.form().slave_period) == 0 {
            for slave in &mut self.slaves {
                (slave.shown, slave.shown_at) = (slave.count, at);
            }
        }
        if now.rem_euclid(QUARTER) == 0 {
            self.last_quarter = std::mem::take(&mut self.quarter);
            if self.last_quarter > self.peak.energy {
                self.peak = Peak { at: Some(at), energy: self.last_quarter };
            }
        }
        if is_month {
            self.peaks.push_front((at, std::mem::take(&mut self.peak)));
            self.peaks.truncate(MONTHS);
            self.last_month = (at, self.counters);
        }
    }

    /// The power was gone.
    fn fail(&mut self, since: i64, until: i64) {
        self.failures += 1;
        if until - since >= LONG {
            self.long_failures += 1;
            self.log.push_front((until + self.ahead, until - since));
            self.log.truncate(self.dialect.form().failures.max(1));
        }
    }

    fn happen(&mut self, event: &Event) {
        match event {
            Event::Clock { ahead_s, .. } => self.ahead = i64::from(*ahead_s),
            Event::Firmware { dialect, .. } => self.dialect = *dialect,
            Event::Outage { .. } => {}
            Event::Exchange { at, meter, identifier, counts_from } if meter == "p1" => {
                let count =
                    |which: usize| u64::from(counts_from.get(which).copied().unwrap_or(0)) * 1000 * WATT_SECONDS;
                self.identifier.clone_from(identifier);
                self.counters = Counters { energy: [0, 1, 2, 3].map(count), reactive: [0; 4] };
                (self.failures, self.long_failures, self.quarter, self.last_quarter) = (0, 0, 0, 0);
                self.log.clear();
                self.peaks.clear();
                self.peak = Peak::default();
                self.last_month = (at.second() + self.ahead, self.counters);
            }
            Event::Exchange { at, meter, identifier, counts_from } => {
                let behind = |channel: usize| meter.strip_prefix("p1.").is_some_and(|name| name == channel.to_string());
                if let Some((slave, _)) = self.slaves.iter_mut().zip(1..).find(|(_, channel)| behind(*channel)) {
                    let count = u64::from(counts_from.first().copied().unwrap_or(0)) * 1000 * SLAVE_COUNTS;
                    slave.identifier.clone_from(identifier);
                    (slave.count, slave.shown, slave.shown_at) = (count, count, at.second() + self.ahead);
                }
            }
        }
    }
}

/// What a telegram is made from.
struct View<'a> {
    household: &'a Household,
    meter: &'a Meter,
    form: &'static Form,
    low: bool,
    flows: Flows,
}

impl View<'_> {
    fn compose(&self, telegram: &mut Vec<u8>, books: &mut Vec<Book>) {
        let Self { meter, form, .. } = self;
        let begin = telegram.len();
        let identification = match meter.identification.as_str() {
            "" => form.identification,
            given => given,
        };
        telegram.push(b'/');
        telegram.extend_from_slice(identification.as_bytes());
        telegram.extend_from_slice(b"\r\n\r\n");
        let now = self.household.now + meter.ahead;
        let at = if self.household.tells_time() { self.moment(now) } else { self.household.moment() };
        let mut book = Book {
            meter: Identity::Place { channel: None },
            medium: Medium::Electricity,
            at,
            readings: Vec::with_capacity(form.lines.len()),
        };
        for line in form.lines {
            self.line(line, telegram, &mut book);
        }
        if !book.readings.is_empty() {
            books.push(book);
        }
        if form.slaves != Slaves::Nowhere {
            for (slave, channel) in meter.slaves.iter().zip(1..) {
                books.push(self.slave(slave, channel, telegram));
            }
        }
        telegram.push(b'!');
        if form.crc {
            let crc = crc::as_sent(telegram.get(begin..).unwrap_or_default());
            telegram.extend_from_slice(format!("{crc:04X}").as_bytes());
        }
        telegram.extend_from_slice(b"\r\n");
        if let Some(key) = &meter.key {
            let [.., a, b, c, d] = self.household.seed.to_be_bytes();
            let title = [b'S', b'I', b'M', 1, a, b, c, d];
            let counter = (self.household.now - FRAMES_SINCE).clamp(0, u32::MAX.into());
            let plain = telegram.split_off(begin);
            let counter = u32::try_from(counter).unwrap_or_default();
            telegram.extend(key.seal(title, counter, &plain));
        }
    }

    fn line(&self, line: &Line, telegram: &mut Vec<u8>, book: &mut Book) {
        let Self { meter, .. } = self;
        match line {
            Line::Text(text) => telegram.extend_from_slice(text.as_bytes()),
            Line::Time(code) => {
                open(telegram, code);
                self.clock(telegram, self.household.now + meter.ahead);
                telegram.push(b')');
            }
            Line::Identifier(code) => {
                open(telegram, code);
                hex(telegram, &meter.identifier);
                telegram.push(b')');
                book.meter = Identity::Own(meter.identifier.clone());
            }
            Line::PlainIdentifier(code) => {
                open(telegram, code);
                telegram.extend_from_slice(meter.identifier.as_bytes());
                telegram.push(b')');
                book.meter = Identity::Own(meter.identifier.clone());
            }
            Line::Tariff(low, normal) => {
                open(telegram, "0-0:96.14.0");
                digits(telegram, u64::from(if self.low { *low } else { *normal }), 4);
                telegram.push(b')');
            }
            Line::Value(_, _, _, quantity) if quantity.phase().is_some_and(|phase| phase >= meter.phases.into()) => {
                return;
            }
            Line::Value(code, register, written, quantity) => {
                open(telegram, code);
                book.readings.extend(self.value(&meter.counters, register, written, *quantity, telegram));
                telegram.push(b')');
            }
            Line::Failures => {
                open(telegram, "1-0:99.97.0");
                telegram.extend_from_slice(meter.log.len().to_string().as_bytes());
                telegram.extend_from_slice(b")(0-0:96.7.19)");
                for (end, duration) in &meter.log {
                    telegram.push(b'(');
                    self.clock(telegram, *end);
                    telegram.extend_from_slice(b")(");
                    digits(telegram, duration.unsigned_abs(), 10);
                    telegram.extend_from_slice(b"*s)");
                }
            }
            Line::Peak => {
                telegram.extend_from_slice(b"1-0:1.6.0");
                book.readings.extend(self.peak(&meter.peak, telegram));
            }
            Line::Peaks => {
                open(telegram, "0-0:98.1.0");
                telegram.extend_from_slice(meter.peaks.len().to_string().as_bytes());
                telegram.extend_from_slice(b")(1-0:1.6.0)(1-0:1.6.0)");
                if meter.peaks.is_empty() {
                    telegram.extend_from_slice(b"()");
                }
                let mut months = Vec::with_capacity(MONTHS);
                for (index, (end, peak)) in meter.peaks.iter().enumerate().rev() {
                    telegram.push(b'(');
                    self.clock(telegram, *end);
                    telegram.push(b')');
                    if let Some(reading) = self.peak(peak, telegram) {
                        let at = reading.at.or(Some(self.moment(*end)));
                        months.push(Reading { at, qualifiers: stored(index as u64 + 1), ..reading });
                    }
                }
                book.readings.extend(months.into_iter().rev());
            }
            Line::Limits(code, amperes) => {
                open(telegram, code);
                digits(telegram, u64::from(*amperes), 3);
                telegram.extend_from_slice(b"*A)(-");
                digits(telegram, u64::from(*amperes), 3);
                telegram.extend_from_slice(b"*A)");
                let limit =
                    |name, amperes| Some(Reading::now(Register::named(name), Decimal::whole(amperes)?, Unit::A));
                book.readings.extend(limit("current_limit", i64::from(*amperes)));
                book.readings.extend(limit("current_limit_negative", -i64::from(*amperes)));
            }
            Line::LastMonth(registers) => {
                let (at, counters) = &meter.last_month;
                open(telegram, "0-0:98.1.0");
                self.clock(telegram, *at);
                telegram.push(b')');
                let at = self.moment(*at);
                for (register, written, quantity) in *registers {
                    telegram.push(b'(');
                    let reading = self.value(counters, register, written, *quantity, telegram);
                    telegram.push(b')');
                    let in_month = |reading| Reading { at: Some(at), qualifiers: stored(1), ..reading };
                    book.readings.extend(reading.map(in_month));
                }
            }
        }
        telegram.extend_from_slice(b"\r\n");
    }

    /// `(time)(value*kW)`.
    fn peak(&self, peak: &Peak, telegram: &mut Vec<u8>) -> Option<Reading> {
        telegram.push(b'(');
        match peak.at {
            Some(at) => self.clock(telegram, at),
            None => telegram.extend_from_slice(b"632525252525S"),
        }
        telegram.extend_from_slice(b")(");
        let shown = rounded(peak.energy.cast_signed(), DEMAND);
        telegram.extend_from_slice(format!("{:02}.{:03}*kW)", shown / 1000, shown % 1000).as_bytes());
        let reading = Reading::now(Register::named("demand_peak"), Decimal::new(shown, 3)?, Unit::KW);
        Some(Reading { at: peak.at.map(|at| self.moment(at)), ..reading })
    }

    /// `value*unit`, and the reading that it is.
    fn value(
        &self,
        counters: &Counters,
        register: &'static str,
        written: &Written,
        quantity: Quantity,
        telegram: &mut Vec<u8>,
    ) -> Option<Reading> {
        let (value, per, counts) = self.amount(counters, quantity);
        let Written { unit, spelling, prefix, digits: whole, decimals } = *written;
        let power = i32::from(decimals) - i32::from(prefix);
        let (up, down) = (10i128.pow(power.max(0).unsigned_abs()), 10i128.pow((-power).max(0).unsigned_abs()));
        let per = i128::from(per) * down;
        // A counter has not reached what it has not full; what is measured is rounded.
        let mantissa = (i128::from(value) * up + if counts { 0 } else { per / 2 }) / per;
        let mantissa = mantissa.rem_euclid(10i128.pow(u32::from(whole) + u32::from(decimals)));
        let mantissa = i64::try_from(mantissa).ok()?;
        number(telegram, mantissa.unsigned_abs(), whole, decimals);
        if !spelling.is_empty() {
            telegram.push(b'*');
            telegram.extend_from_slice(spelling.as_bytes());
        }
        let value = Decimal::new(mantissa, decimals)?.shift(prefix)?;
        Some(Reading::now(Register::named(register), value, unit.clone()))
    }

    /// How much it is, how much of that is one of its unit, and whether it is a counter.
    fn amount(&self, counters: &Counters, quantity: Quantity) -> (i64, i64, bool) {
        const WATT: i64 = 1000;
        let [low, normal, export_low, export_normal] = counters.energy;
        let energy = |low: u64, normal: u64, tariff| {
            let sum = match tariff {
                Tariff::Low => low,
                Tariff::Normal => normal,
                Tariff::All => low + normal,
            };
            (sum.cast_signed(), KILOWATT_HOUR, true)
        };
        let net = self.flows.net();
        let phase = |phase: usize| self.flows.watts.get(phase).copied().unwrap_or_default();
        let step = self.household.now.div_euclid(STEP);
        let is_in = |quadrants: u8, quadrant: usize| quadrants >> quadrant & 1 == 1;
        match quantity {
            Quantity::Import(tariff) => energy(low, normal, tariff),
            Quantity::Export(tariff) => energy(export_low, export_normal, tariff),
            Quantity::ImportAndExport => energy(low + normal, export_low + export_normal, Tariff::All),
            Quantity::Reactive(quadrants) => {
                let all = counters.reactive.iter().enumerate().filter(|(quadrant, _)| is_in(quadrants, *quadrant));
                (all.map(|(_, vars)| *vars).sum::<u64>().cast_signed(), KILOWATT_HOUR, true)
            }
            Quantity::PowerImport => (net.max(0), WATT, false),
            Quantity::PowerExport => ((-net).max(0), WATT, false),
            Quantity::Power => (net.abs(), WATT, false),
            Quantity::PhaseImport(index) => (phase(index).max(0), WATT, false),
            Quantity::PhaseExport(index) => ((-phase(index)).max(0), WATT, false),
            Quantity::ReactivePower(quadrants) => {
                let vars = self.flows.reactive();
                (if is_in(quadrants, quadrant(net, vars)) { vars.abs() } else { 0 }, WATT, false)
            }
            Quantity::PhaseReactiveImport(index) => (reactive(phase(index)).max(0), WATT, false),
            Quantity::PhaseReactiveExport(index) => ((-reactive(phase(index))).max(0), WATT, false),
            Quantity::ApparentImport => (if net > 0 { self.apparent() } else { 0 }, WATT, false),
            Quantity::ApparentExport => (if net < 0 { self.apparent() } else { 0 }, WATT, false),
            Quantity::PowerFactor => (net.abs(), self.apparent().max(1), false),
            Quantity::Frequency => (49_980 + noise(self.household.seed, FREQUENCY, step, 41), 1000, false),
            Quantity::Voltage(index) => (self.decivolts(index), 10, false),
            Quantity::Current(index) => {
                let decivolts = self.decivolts(index).max(1);
                ((phase(index).abs() * 10_000 + decivolts / 2) / decivolts, 1000, false)
            }
            Quantity::Sags(index) => (self.factory(Self::CODES.get(index).copied().unwrap_or_default(), 10), 1, true),
            Quantity::Swells(index) => {
                (self.factory(Self::CODES.get(index).copied().unwrap_or_default() + 1, 5), 1, true)
            }
            Quantity::Failures => (self.meter.failures, 1, true),
            Quantity::LongFailures => (self.meter.long_failures, 1, true),
            Quantity::DemandAverage => (self.meter.quarter.cast_signed(), DEMAND * WATT, false),
            Quantity::DemandLast => (self.meter.last_quarter.cast_signed(), DEMAND * WATT, false),
            Quantity::Always(thousandths) => (thousandths, 1000, false),
        }
    }

    /// Of each phase, value group C of its OBIS codes, less the quantity.
    const CODES: [i64; 3] = [20, 40, 60];

    fn factory(&self, which: i64, below: i64) -> i64 {
        noise(self.household.seed, FACTORY, which, below)
    }

    /// In VA.
    fn apparent(&self) -> i64 {
        let (watts, vars) = (self.flows.net().unsigned_abs(), self.flows.reactive().unsigned_abs());
        (watts * watts + vars * vars).isqrt().cast_signed()
    }

    fn decivolts(&self, phase: usize) -> i64 {
        let watts = self.flows.watts.get(phase).copied().unwrap_or_default();
        let code = Self::CODES.get(phase).copied().unwrap_or_default().unsigned_abs();
        2310 - watts / 200 + noise(self.household.seed, VOLTAGE + code, self.household.now.div_euclid(STEP), 41)
    }

    fn slave(&self, slave: &Slave, channel: u8, telegram: &mut Vec<u8>) -> Book {
        let Slave { measures, identifier, shown, shown_at, .. } = slave;
        let unit = if *measures == Measures::Heat { Unit::GJ } else { Unit::M3 };
        let register = Register::named(if *measures == Measures::Heat { "energy" } else { "volume" });
        let thousandths = shown / SLAVE_COUNTS % 100_000_000;
        let code = |telegram: &mut Vec<u8>, code: &str| {
            telegram.extend_from_slice(b"0-");
            telegram.push(b'0' + channel);
            telegram.push(b':');
            open(telegram, code);
        };
        let end = |telegram: &mut Vec<u8>| telegram.extend_from_slice(b")\r\n");
        code(telegram, "24.1.0");
        digits(telegram, measures.device_type().into(), 3);
        end(telegram);
        code(telegram, if self.form.slaves == Slaves::Belgium { "96.1.1" } else { "96.1.0" });
        hex(telegram, identifier);
        end(telegram);
        let is_gas = *measures == Measures::Gas;
        if self.form.slaves == Slaves::Version3 {
            code(telegram, "24.3.0");
            self.clock(telegram, *shown_at);
            telegram.extend_from_slice(b")(00)(60)(1)(0-");
            telegram.push(b'0' + channel);
            telegram.extend_from_slice(b":24.2.1)(");
            telegram.extend_from_slice(unit.as_str().as_bytes());
            telegram.extend_from_slice(b")\r\n(");
            number(telegram, thousandths, 5, 3);
        } else {
            code(telegram, if is_gas && self.form.slaves == Slaves::Belgium { "24.2.3" } else { "24.2.1" });
            self.clock(telegram, *shown_at);
            telegram.extend_from_slice(b")(");
            number(telegram, thousandths, 5, 3);
            telegram.push(b'*');
            telegram.extend_from_slice(unit.as_str().as_bytes());
        }
        end(telegram);
        if is_gas && self.form.slaves != Slaves::Version5 {
            code(telegram, "24.4.0");
            telegram.push(b'1');
            end(telegram);
        }
        let value = i64::try_from(thousandths).ok().and_then(|value| Decimal::new(value, 3));
        Book {
            meter: Identity::Own(identifier.clone()),
            medium: measures.medium(),
            at: self.moment(*shown_at),
            readings: value.map(|value| Reading::now(register, value, unit)).into_iter().collect(),
        }
    }

    /// The offset in which the meter shows an instant.
    fn offset(&self, second: i64) -> Offset {
        match self.form.clock {
            Clock::Winter => Offset::constant(1),
            Clock::Letter | Clock::Bare => self.household.zone.to_offset(instant(second)),
        }
    }

    /// As meters write it: `YYMMDDhhmmss` of the local clock, and S in summer or W in winter.
    fn clock(&self, telegram: &mut Vec<u8>, second: i64) {
        let offset = self.offset(second);
        let clock = offset.to_datetime(instant(second));
        let year = clock.year().rem_euclid(100).unsigned_abs();
        digits(telegram, year.into(), 2);
        for field in [clock.month(), clock.day(), clock.hour(), clock.minute(), clock.second()] {
            digits(telegram, field.unsigned_abs().into(), 2);
        }
        let is_summer = offset.seconds() > 3600 * i32::from(self.meter.dialect.read_as().winter_offset());
        match self.form.clock {
            Clock::Bare => {}
            Clock::Letter if is_summer => telegram.push(b'S'),
            Clock::Letter | Clock::Winter => telegram.push(b'W'),
        }
    }

    /// What [`clock`](Self::clock) says: without a letter the second of two like hours in October passes for the first.
    fn moment(&self, second: i64) -> Moment {
        let offset = self.offset(second);
        if self.form.clock == Clock::Bare {
            let clock = offset.to_datetime(instant(second));
            let civil = Civil {
                year: clock.year(),
                month: clock.month(),
                day: clock.day(),
                hour: clock.hour(),
                minute: clock.minute(),
                second: clock.second(),
            };
            if let Some(moment) = Moment::from_european(civil, self.meter.dialect.read_as().winter_offset()) {
                return moment;
            }
        }
        moment(second, offset)
    }
}

/// Ws in a Wh, the last decimal of a kWh register.
const WATT_SECONDS: u64 = 3600;
/// Ws in a kWh.
const KILOWATT_HOUR: i64 = 3_600_000;
/// Seconds over which demand is averaged: Ws in a W of it.
const DEMAND: i64 = QUARTER;
/// J in a MJ, and millionths in a litre: the last decimal of GJ and m3 registers.
const SLAVE_COUNTS: u64 = 1_000_000;

/// From 0: import with lagging reactive power, export with that, export with leading, import with that.
fn quadrant(watts: i64, vars: i64) -> usize {
    match (watts > 0, vars >= 0) {
        (true, true) => 0,
        (false, true) => 1,
        (false, false) => 2,
        (true, false) => 3,
    }
}

fn stored(storage: u64) -> Qualifiers {
    Qualifiers { storage, ..Qualifiers::default() }
}

/// The first multiple of `unit` after `second`.
fn next(second: i64, unit: i64) -> i64 {
    (second.div_euclid(unit) + 1) * unit
}

/// The calendar holds every second that a household lives.
fn instant(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap_or_default()
}

fn moment(second: i64, offset: Offset) -> Moment {
    let instant = instant(second);
    Moment::from_millis(instant.as_millisecond(), offset.seconds() / 60).unwrap_or(Moment::utc(instant))
}

fn rounded(value: i64, per: i64) -> i64 {
    (value + per / 2) / per
}

/// Seventeen characters as meters have, of a manufacturer's code that none has.
fn serial_number(letter: char, seed: u64, year: usize) -> String {
    format!("{letter}0990{:010}{year:02}", seed % 10_000_000_000)
}

/// A code and its bracket.
fn open(telegram: &mut Vec<u8>, code: &str) {
    telegram.extend_from_slice(code.as_bytes());
    telegram.push(b'(');
}

/// At least so many digits, at most twenty.
fn digits(telegram: &mut Vec<u8>, mut number: u64, count: u8) {
    let mut text = [b'0'; 20];
    let mut used = 0;
    for place in text.iter_mut().rev() {
        if number == 0 && used >= count {
            break;
        }
        *place = b'0' + (number % 10) as u8;
        number /= 10;
        used += 1;
    }
    telegram.extend_from_slice(text.get(20 - usize::from(used)..).unwrap_or_default());
}

/// With so many digits before the point and behind it, if there is one.
fn number(telegram: &mut Vec<u8>, mantissa: u64, whole: u8, decimals: u8) {
    let unit = 10u64.pow(decimals.into());
    digits(telegram, mantissa / unit, whole);
    if decimals > 0 {
        telegram.push(b'.');
        digits(telegram, mantissa % unit, decimals);
    }
}

fn hex(telegram: &mut Vec<u8>, text: &str) {
    const DIGITS: [u8; 16] = *b"0123456789ABCDEF";
    let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().unwrap_or_default();
    telegram.extend(text.bytes().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        p1,
        reading::{Clock, Report},
        simulate::description::At,
    };

    fn at(text: &str) -> Moment {
        text.parse().unwrap()
    }

    fn later(moment: Moment, seconds: i64) -> Moment {
        Moment::from_millis(moment.millis() + seconds * 1000, 0).unwrap()
    }

    fn decode(household: &Household) -> Vec<Report> {
        decode_as(household, None, None)
    }

    fn decode_as(household: &Household, dialect: Option<p1::Dialect>, key: Option<&str>) -> Vec<Report> {
        let key = key.map(|key| Key::from_text(key).unwrap());
        let mut reader = p1::Reader::new(dialect, key);
        reader.push(&household.telegram());
        reader.end();
        let accepted = reader.poll().unwrap().unwrap_or_else(|rejected| panic!("{rejected}"));
        assert!(reader.poll().is_none());
        accepted.decoded.reports
    }

    /// What a decoded telegram says, as books hold it.
    fn as_books(reports: &[Report], now: Moment) -> Vec<Book> {
        let book = |report: &Report| Book {
            meter: report.meter.clone(),
            medium: report.medium,
            at: report.measured_at.unwrap_or(now),
            readings: report.readings.iter().map(|reading| Reading { raw: None, ..reading.clone() }).collect(),
        };
        reports.iter().map(book).collect()
    }

    /// The counters of all meters, in thousandths.
    fn counts(books: &[Book]) -> Vec<i64> {
        let readings = books.iter().flat_map(|book| &book.readings);
        readings.filter(|reading| reading.register.is_cumulative()).map(|reading| reading.value.mantissa()).collect()
    }

    /// Thousandths of a reading of the electricity meter.
    fn thousandths(reports: &[Report], register: &str) -> i64 {
        let reading = reports[0].readings.iter().find(|reading| reading.register.as_str() == register).unwrap();
        reading.value.shift(3).unwrap().mantissa()
    }

    #[test]
    fn a_telegram_says_what_the_books_hold_and_nothing_unknown() {
        let mut household = Household::new(42, at("2026-07-14T12:00:03+02:00"));
        for seconds in [0, 1, 297, 300, 3600, 86_400, 20 * 86_400] {
            household.advance(later(household.moment(), seconds));
            let reports = decode(&household);
            assert_eq!(as_books(&reports, household.moment()), household.books());
            assert_eq!(reports.iter().map(|report| report.readings.len()).collect::<Vec<_>>(), [26, 1, 1, 1]);
            for report in &reports {
                assert!(report.unknown.is_empty(), "{report:?}");
                assert_eq!(report.clock, Clock::Meter);
            }
            assert_eq!(reports[0].events.len(), 1);
            assert!(reports[0].events[0].end.unwrap() < household.moment());
        }
    }

    #[test]
    fn registers_never_fall_and_clocks_never_err_in_the_weeks_of_both_changes() {
        for (start, change) in [
            ("2026-03-25T12:00:00+01:00", "2026-03-29T01:00:00Z"),
            ("2026-10-21T12:00:00+02:00", "2026-10-25T01:00:00Z"),
        ] {
            let (start, change) = (at(start), at(change));
            let mut household = Household::new(3, start);
            let mut before = household.books();
            while household.moment().since(start).as_secs() < 7 * 86_400 {
                let near = household.moment().since(change).as_secs().abs() <= 3600;
                let moment = later(household.moment(), if near { 10 } else { 900 });
                household.advance(moment);
                let books = as_books(&decode(&household), moment);
                assert_eq!(books, household.books());
                assert_eq!(books[0].at.instant(), moment.instant());
                for (was, is) in before.iter().zip(&books) {
                    assert!(was.at.instant() <= is.at.instant());
                }
                for (was, is) in counts(&before).iter().zip(counts(&books)) {
                    assert!(*was <= is, "{was:?} {is:?} at {moment}");
                }
                before = books;
            }
        }
    }

    #[test]
    fn power_flows_one_way_and_phases_make_up_the_total() {
        let mut household = Household::new(1, at("2026-06-08T00:00:00+02:00"));
        let (mut imported, mut exported) = (0, 0);
        for _ in 0..1440 {
            household.advance(later(household.moment(), 60));
            let reports = decode(&household);
            let (import, export) = (thousandths(&reports, "power_import"), thousandths(&reports, "power_export"));
            assert_eq!((import == 0, export == 0), (export != 0, import != 0));
            let phases = [1, 2, 3].map(|phase| {
                let net = thousandths(&reports, &format!("power_import_l{phase}"))
                    - thousandths(&reports, &format!("power_export_l{phase}"));
                let volt_ampere = thousandths(&reports, &format!("current_l{phase}"))
                    * thousandths(&reports, &format!("voltage_l{phase}"))
                    / 1_000_000;
                assert!(volt_ampere.abs_diff(net.abs()) <= 125, "phase {phase}: {net} W, {volt_ampere} VA");
                net
            });
            assert_eq!(phases.iter().sum::<i64>(), import - export);
            imported += import;
            exported += export;
        }
        assert!(imported > 0 && exported > 0);
    }

    #[test]
    fn the_register_of_the_tariff_grows() {
        // A Friday evening, the weekend, a Monday morning; in summer time.
        for (from, minutes, low) in [
            ("2026-07-10T22:59:00+02:00", 1, false),
            ("2026-07-10T23:00:00+02:00", 60, true),
            ("2026-07-11T00:00:00+02:00", 48 * 60, true),
            ("2026-07-13T06:00:00+02:00", 60, true),
            ("2026-07-13T07:00:00+02:00", 16 * 60, false),
        ] {
            let mut household = Household::new(5, at(from));
            let tariff = ("tariff".into(), if low { "low".into() } else { "normal".into() });
            assert!(decode(&household)[0].info.contains(&tariff), "{from}");
            let before = counts(&household.books());
            household.advance(later(at(from), minutes * 60));
            let after = counts(&household.books());
            let [import_low, import_normal, export_low, export_normal] = [0, 1, 2, 3].map(|n| after[n] - before[n]);
            let (growing, still) = if low {
                (import_low + export_low, import_normal + export_normal)
            } else {
                (import_normal + export_normal, import_low + export_low)
            };
            assert!(growing > 0 && still == 0, "{from}: {before:?} {after:?}");
        }
    }

    #[test]
    fn slaves_tell_a_new_value_every_five_minutes() {
        let mut household = Household::new(8, at("2026-01-15T08:00:00+01:00"));
        let before = household.books();
        household.advance(at("2026-01-15T08:04:59+01:00"));
        assert_eq!(household.books()[1..], before[1..]);
        household.advance(at("2026-01-15T08:05:00+01:00"));
        for (was, is) in before.iter().zip(household.books()).skip(1) {
            assert_eq!(is.at.to_string(), "2026-01-15T08:05:00+01:00");
            assert_eq!(was.meter, is.meter);
        }
        household.advance(at("2026-01-16T08:05:00+01:00"));
        for (was, is) in before.iter().zip(household.books()) {
            assert!(was.readings[0].value.mantissa() < is.readings[0].value.mantissa(), "{was:?} {is:?}");
        }
    }

    #[test]
    fn a_year_is_that_of_a_household() {
        let mut grown = [0; 7];
        // Four weeks stand for thirteen each.
        for week in ["2026-01-12T00:00:00Z", "2026-04-13T00:00:00Z", "2026-07-13T00:00:00Z", "2026-10-12T00:00:00Z"] {
            let mut household = Household::new(9, at(week));
            let before = counts(&household.books());
            household.advance(later(at(week), 7 * 86_400));
            for (sum, (was, is)) in grown.iter_mut().zip(before.iter().zip(counts(&household.books()))) {
                *sum += (is - was) * 13;
            }
        }
        // kWh import low and normal, export low and normal; m3 gas; GJ heat; m3 hot water.
        let likely = [1000..3000, 1000..3000, 300..2000, 700..4000, 100..500, 15..100, 20..100];
        for (grown, likely) in grown.iter().zip(&likely) {
            assert!(likely.contains(&(grown / 1000)), "{grown} in {likely:?}");
        }
    }

    const KEY: &str = "000102030405060708090A0B0C0D0E0F";

    /// Everything that a description can ask for, of one dialect.
    fn full(dialect: Dialect, phases: u8) -> Description {
        let meters = [Measures::Gas, Measures::Heat, Measures::HotWater, Measures::Water].map(Behind::of).to_vec();
        let p1 = P1 { dialect, phases, meters, ..P1::default() };
        Description { seed: 11, p1: Some(p1), ..Description::default() }
    }

    #[test]
    fn every_dialect_decodes_to_the_books_over_both_changes_of_the_clock() {
        for (name, dialect) in Dialect::NAMES {
            for (phases, key) in [(3, None), (1, Some(KEY))] {
                let mut description = full(dialect, phases);
                description.p1.as_mut().unwrap().key = key.map(str::to_owned);
                description.check().unwrap();
                // Finland does not say that its time is another.
                let told = (dialect == Dialect::Finland).then_some(dialect.read_as());
                for start in ["2026-03-28T22:00:00+01:00", "2026-10-24T22:00:00+02:00"] {
                    let mut household = Household::of(&description, at(start));
                    for _ in 0..24 * 3 {
                        household.advance(later(household.moment(), 1200));
                        let reports = decode_as(&household, told, key);
                        let now = household.moment();
                        assert_eq!(as_books(&reports, now), household.books(), "{name} at {now}");
                        assert!(reports.iter().all(|report| report.unknown.is_empty()), "{name}: {reports:#?}");
                        let has_time = dialect.form().lines.iter().any(|line| matches!(line, Line::Time(_)));
                        let clock = if has_time { Clock::Meter } else { Clock::Gateway };
                        let electricity = dialect != Dialect::Warmtelink;
                        assert!(!electricity || reports[0].clock == clock, "{name}");
                        let slaves = if dialect.form().slaves == Slaves::Nowhere { 0 } else { 4 };
                        assert_eq!(reports.len(), slaves + usize::from(electricity), "{name}");
                    }
                }
                let household = Household::of(&description, at("2026-10-24T12:00:00+02:00"));
                let mut reader = p1::Reader::new(None, key.map(|key| Key::from_text(key).unwrap()));
                reader.push(&household.telegram());
                reader.end();
                assert_eq!(reader.poll().unwrap().unwrap().decoded.dialect, dialect.seems(), "{name}");
            }
        }
    }

    #[test]
    fn months_have_their_peaks_and_their_ends() {
        let mut household = Household::of(&full(Dialect::Belgium21, 3), at("2026-11-20T00:00:00+01:00"));
        household.advance(at("2027-04-02T12:00:00+02:00"));
        let book = &household.books()[0];
        let peaks: Vec<_> = book.readings.iter().filter(|reading| reading.register.as_str() == "demand_peak").collect();
        assert_eq!(peaks.iter().map(|peak| peak.qualifiers.storage).collect::<Vec<_>>(), (0..=5).collect::<Vec<_>>());
        assert!(peaks[0].at.unwrap() > at("2027-04-01T00:00:00+02:00"));
        for (peak, month) in peaks[1..].iter().zip(["2027-03-01T00:00:00+01:00", "2027-02-01T00:00:00+01:00"]) {
            assert!(peak.at.unwrap() > at(month) && peak.value.mantissa() > 1000, "{peak:?}");
        }
        assert_eq!(as_books(&decode(&household), household.moment()), household.books());

        let mut household = Household::of(&full(Dialect::Hungary, 3), at("2026-06-29T00:00:00+02:00"));
        let stored = |household: &Household, register: &str| {
            let books = household.books();
            let reading = books[0]
                .readings
                .iter()
                .find(|reading| reading.register.as_str() == register && reading.qualifiers.storage == 1);
            (reading.unwrap().at.unwrap().to_string(), reading.unwrap().value)
        };
        assert_eq!(stored(&household, "import_total").0, "2026-06-01T00:00:00+02:00");
        household.advance(at("2026-07-01T00:00:00+02:00"));
        let then = household.books()[0].readings[1].value;
        household.advance(at("2026-07-09T00:00:00+02:00"));
        assert_eq!(household.books()[0].readings[1].register.as_str(), "import_total");
        assert_eq!(stored(&household, "import_total"), ("2026-07-01T00:00:00+02:00".to_owned(), then));
    }

    #[test]
    fn events_happen() {
        let moment = |text: &str| At::from(at(text));
        let mut description = full(Dialect::Netherlands42, 3);
        description.events = vec![
            Event::Firmware { at: moment("2026-05-03T12:00:00+02:00"), dialect: Dialect::Netherlands50 },
            Event::Outage { at: moment("2026-05-01T10:00:07+02:00"), until: moment("2026-05-01T11:30:00+02:00") },
            Event::Exchange {
                at: moment("2026-05-02T09:00:00+02:00"),
                meter: "p1.1".into(),
                identifier: "G0099000000000027".into(),
                counts_from: vec![3],
            },
            Event::Exchange {
                at: moment("2026-05-02T10:00:00+02:00"),
                meter: "p1".into(),
                identifier: "E0099000000000027".into(),
                counts_from: vec![],
            },
            Event::Clock { at: moment("2026-05-04T12:00:00+02:00"), ahead_s: -3600 },
            Event::Clock { at: moment("2026-05-05T12:00:00+02:00"), ahead_s: 0 },
        ];
        description.check().unwrap();
        let mut household = Household::of(&description, at("2026-05-01T08:00:00+02:00"));
        let energy = |household: &Household| counts(&household.books())[..4].iter().sum::<i64>();
        let decoded = |household: &Household| {
            let reports = decode(household);
            assert_eq!(as_books(&reports, household.moment()), household.books());
            assert!(reports.iter().all(|report| report.unknown.is_empty()));
            reports
        };
        let failures = |household: &Household| decoded(household)[0].events.len();
        assert_eq!(failures(&household), 1);
        household.advance(at("2026-05-01T10:00:06+02:00"));
        assert!(household.is_powered());
        let before = energy(&household);
        household.advance(at("2026-05-01T10:00:07+02:00"));
        assert!(!household.is_powered() && household.telegram().is_empty());
        let before = (before, energy(&household));
        assert!(before.1 - before.0 <= 2);
        household.advance(at("2026-05-01T11:29:59+02:00"));
        assert_eq!(energy(&household), before.1);
        household.advance(at("2026-05-01T11:30:00+02:00"));
        let log = &decoded(&household)[0].events;
        assert_eq!((log.len(), log[0].duration_s), (2, Some(5393)));
        assert_eq!(log[0].end.unwrap().to_string(), "2026-05-01T11:30:00+02:00");

        household.advance(at("2026-05-02T09:00:00+02:00"));
        let gas = &decoded(&household)[1];
        assert_eq!(
            (&gas.meter, gas.readings[0].value.to_string()),
            (&Identity::Own("G0099000000000027".into()), "3.000".into())
        );
        household.advance(at("2026-05-02T10:00:00+02:00"));
        assert_eq!(energy(&household), 0);
        assert_eq!(failures(&household), 0);
        household.advance(at("2026-05-03T12:00:00+02:00"));
        assert!(decoded(&household)[0].info.contains(&("version".into(), "50".into())));
        household.advance(at("2026-05-04T12:00:00+02:00"));
        assert_eq!(decoded(&household)[0].measured_at.unwrap().to_string(), "2026-05-04T11:00:00+02:00");
        household.advance(at("2026-05-05T12:00:00+02:00"));
        assert_eq!(decoded(&household)[0].measured_at.unwrap().to_string(), "2026-05-05T12:00:00+02:00");
    }

    #[test]
    fn counters_begin_where_they_are_told_to_and_run_over() {
        let mut description = full(Dialect::Netherlands30, 3);
        let p1 = description.p1.as_mut().unwrap();
        p1.counts_from = Some([99_999; 4]);
        p1.meters[0].counts_from = Some(99_999);
        let mut household = Household::of(&description, at("2026-02-01T00:00:00+01:00"));
        assert_eq!(counts(&household.books())[..5], [99_999_000; 5]);
        household.advance(at("2026-03-01T00:00:00+01:00"));
        let after = counts(&household.books());
        assert!(after[..2].iter().all(|count| *count < 1_000_000), "{after:?}");
        assert_eq!(as_books(&decode(&household), household.moment()), household.books());
    }

    #[test]
    fn nobody_home_uses_little() {
        let grown = |holidays: Vec<super::super::Holiday>| {
            let mut description = full(Dialect::Netherlands50, 3);
            description.profile.holidays = holidays;
            description.profile.solar_w = 0;
            let mut household = Household::of(&description, at("2026-02-02T00:00:00+01:00"));
            let before = counts(&household.books());
            household.advance(at("2026-02-09T00:00:00+01:00"));
            counts(&household.books()).into_iter().zip(before).map(|(after, before)| after - before).collect::<Vec<_>>()
        };
        let away = vec!["2026-02-02/2026-02-08".to_owned().try_into().unwrap()];
        let (home, away) = (grown(Vec::new()), grown(away));
        assert!(away[0] + away[1] < (home[0] + home[1]) * 2 / 3, "{home:?} {away:?}");
        assert_eq!(away[6..], [0, 0], "no water");
        assert!(home[6] > 100 && home[7] > 100 && away[5] < home[5] / 2, "{home:?} {away:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn it_does_not_matter_in_which_steps_time_goes_by(
            seed: u64,
            start in 1_200_000_000i64..4_000_000_000,
            steps in proptest::collection::vec(0i64..5000, 0..12),
        ) {
            let start = Moment::from_millis(start * 1000, 60).unwrap();
            let mut walks = Household::new(seed, start);
            let mut moment = start;
            for step in steps {
                moment = later(moment, step);
                walks.advance(moment);
            }
            let mut leaps = Household::new(seed, start);
            leaps.advance(moment);
            prop_assert_eq!(walks.telegram(), leaps.telegram());
            prop_assert_eq!(as_books(&decode(&walks), moment), leaps.books());
            prop_assert_eq!(walks, leaps);
        }

        #[test]
        fn another_seed_is_another_household(seed: u64, other: u64) {
            prop_assume!(seed != other);
            let start = at("2026-11-21T20:00:00+01:00");
            prop_assert_ne!(Household::new(seed, start).telegram(), Household::new(other, start).telegram());
        }
    }
}
