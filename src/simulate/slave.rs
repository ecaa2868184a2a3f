//! A virtual meter on an M-Bus: what it counts, and how it answers.
//!
//! Enters: frames of a master, and time. Leaves: answers as real meters give them, and those of meters that are
//! slow, mute, wrongly addressed, or read too often.

use std::{sync::Arc, time::Duration};

use jiff::{
    Timestamp,
    civil::{Date, DateTime},
    tz::{Offset, TimeZone},
};
use serde::Deserialize;

use super::{
    habits::{Conditions, Profile, SPELL, STEP},
    noise,
};
use crate::{
    mbus::{Coding, Frame, Manufacturer, Pattern, Record, Secondary, Timing, control, frame::address},
    moment::{Civil, Moment},
    reading::{Function, Medium, Qualifiers, Reading, Register},
    unit::{Decimal, Unit},
};

/// A meter, as a file describes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Description {
    /// `KAM-12345678-1B-04`: manufacturer, number, version, medium.
    pub meter: String,
    /// Its primary address, 0..=250.
    #[serde(default)]
    pub address: u8,
    /// What a heat meter counts in.
    #[serde(default)]
    pub counts_in: CountsIn,
    /// How many telegrams a readout has, 1..=16.
    #[serde(default = "one")]
    pub telegrams: u8,
    /// Announces telegrams that it does not send.
    #[serde(default)]
    pub breaks_off: bool,
    /// Never answers.
    #[serde(default)]
    pub silent: bool,
    /// How long it thinks, in milliseconds; 0: 20 bit times.
    #[serde(default)]
    pub answers_after_ms: u32,
    /// Pauses so long in the middle of an answer, in milliseconds.
    #[serde(default)]
    pub pause_ms: u32,
    /// May be read once in so many seconds; is mute in between.
    #[serde(default)]
    pub rest_s: u32,
    /// Answers requests for this address too.
    pub also_answers: Option<u8>,
    /// Acknowledges every selection, whoever is meant.
    #[serde(default)]
    pub heeds_any_selection: bool,
    /// Sends every telegram as if the count bit were never toggled.
    #[serde(default)]
    pub ignores_count_bit: bool,
    /// Its baud rate, where it is not that of the bus.
    pub baud: Option<u32>,
    /// Bits of its status byte.
    #[serde(default)]
    pub status: u8,
}

impl Description {
    /// A meter that does all as it should.
    pub fn new(meter: &str, address: u8) -> Self {
        Self {
            meter: meter.to_owned(),
            address,
            counts_in: CountsIn::default(),
            telegrams: 1,
            breaks_off: false,
            silent: false,
            answers_after_ms: 0,
            pause_ms: 0,
            rest_s: 0,
            also_answers: None,
            heeds_any_selection: false,
            ignores_count_bit: false,
            baud: None,
            status: 0,
        }
    }
}

/// What a heat meter counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum CountsIn {
    /// Thousandths of a gigajoule (VIF 0E).
    #[default]
    GJ,
    /// Kilowatt-hours (VIF 06).
    #[serde(rename = "kWh")]
    KWh,
    /// Tenths of a megawatt-hour (VIF FB 00).
    MWh,
}

const fn one() -> u8 {
    1
}

/// A virtual meter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slave {
    /// As it was described; the address may have been set since.
    pub description: Description,
    secondary: Secondary,
    seed: u64,
    /// How the people live whose heat and water it counts.
    profile: Arc<Profile>,
    /// Since 1970, in seconds.
    now: i64,
    /// Joules, or millionths of a litre.
    count: u64,
    /// The same at the end of last year.
    count_at_set_day: u64,
    /// In W, or millionths of a litre a second.
    flow: u64,
    link: Link,
}

/// The state of its link layer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Link {
    selected: bool,
    /// The count bit of the last request for data that was answered, by primary address and as selected.
    answered: [Option<bool>; 2],
    /// Which telegram is sent next.
    telegram: u8,
    last: Vec<u8>,
    access_number: u8,
    /// When it was read last.
    read: Option<Duration>,
}

/// So much heating water gives 10 kJ when it is cooled by 25 K.
const MILLILITRES_PER_10_KJ: u64 = 96;
/// By so much, in tenths of a degree.
const COOLED_BY: u64 = 250;
/// The highest power that it remembers, in W.
const MOST_POWER: u64 = 7_800;

impl Slave {
    /// A meter whose registers depend on `seed`, at a moment. The error says what of the description is wrong.
    pub fn new(description: Description, seed: u64, now: Moment) -> Result<Self, String> {
        let Description { meter, address, telegrams, baud, .. } = &description;
        let pattern = Pattern::from_text(meter).filter(|_| meter.contains('-'));
        let pattern = pattern.ok_or_else(|| format!("`{meter}` is no meter: write KAM-12345678-1B-04"))?;
        if *address > address::LAST {
            return Err(format!("address {address}: a meter has one from 0 to 250"));
        }
        if !(1..=16).contains(telegrams) {
            return Err(format!("telegrams = {telegrams}: a meter has 1 to 16"));
        }
        if let Some(baud) = baud.filter(|baud| !Timing::RATES.contains(baud)) {
            return Err(format!("baud = {baud}: an M-Bus has 300, 600, ... 38400"));
        }
        let Pattern { id, manufacturer, version, medium } = pattern;
        let secondary = Secondary { id, manufacturer: Manufacturer(manufacturer), version, medium };
        // Two meters with one number are two meters.
        let seed = seed ^ u64::from(manufacturer) << 48 ^ u64::from(version) << 40 ^ u64::from(medium) << 32;
        let start = |which, from: i64, below: i64| (from + noise(seed, which, id.into(), below)).unsigned_abs();
        let count = start(1, 50_000, 200_000) * 1_000_000;
        let now = now.instant().as_second();
        Ok(Self {
            secondary,
            seed: seed ^ u64::from(id),
            profile: Arc::new(Profile::default()),
            now,
            count,
            count_at_set_day: count * 7 / 8 / 1_000_000 * 1_000_000,
            flow: 0,
            link: Link::default(),
            description,
        })
    }

    /// Who it is.
    pub fn secondary(&self) -> Secondary {
        self.secondary
    }

    /// Whose heat and water it counts from now on.
    pub(super) fn set_profile(&mut self, profile: &Arc<Profile>) {
        self.profile = Arc::clone(profile);
    }

    /// This meter where another was, beginning at so many whole GJ or m3.
    pub(super) fn in_place_of(self, other: &Self, counts_from: u32) -> Self {
        let count = u64::from(counts_from) * 1_000_000_000;
        Self { count, count_at_set_day: count, profile: Arc::clone(&other.profile), ..self }
    }

    /// What it measures.
    pub fn medium(&self) -> Medium {
        Medium::from_device_type(self.secondary.medium)
    }

    fn is_thermal(&self) -> bool {
        matches!(self.medium(), Medium::Heat | Medium::Cooling | Medium::HeatCooling)
    }

    /// Lets time go by until `to`.
    pub fn advance(&mut self, to: Moment) {
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap_or(TimeZone::UTC);
        let to = to.instant().as_second();
        let local = |second| zone.to_datetime(Timestamp::from_second(second).unwrap_or_default());
        while self.now < to {
            let begin = self.now.div_euclid(SPELL) * SPELL;
            let conditions = Conditions::new(&self.profile, self.seed, begin, local(begin));
            let end = to.min(begin + SPELL);
            while self.now < end {
                let until = end.min((self.now.div_euclid(STEP) + 1) * STEP);
                let [_, heat, hot, cold] = conditions.flows(&self.profile, self.seed, self.now).slaves;
                self.flow = match self.medium() {
                    _ if self.is_thermal() => heat,
                    Medium::Water => cold,
                    _ => hot,
                };
                self.count += self.flow * until.abs_diff(self.now);
                self.now = until;
            }
            if local(self.now).year() != local(begin).year() {
                self.count_at_set_day = self.count;
            }
        }
    }

    /// Lets time go by until `to`, and counts nothing.
    pub(super) fn stand_still(&mut self, to: Moment) {
        self.now = self.now.max(to.instant().as_second());
        self.flow = 0;
    }

    /// Another master comes, whose times are since another moment.
    pub(super) fn restart_link(&mut self) {
        self.link = Link { access_number: self.link.access_number, ..Link::default() };
    }

    /// All that it says, as a reader of all its telegrams has it, converted values without what the meter counts in.
    pub fn readings(&self) -> Vec<Reading> {
        let now = |register, mantissa: u64, scale, unit| {
            let value = Decimal::new(mantissa.cast_signed(), scale).unwrap_or(Decimal::per_ten_thousand(0));
            Reading::now(Register::named(register), value, unit)
        };
        let (register, value, at_set_day) = self.book();
        let clock = self.clock();
        let in_storage = |storage, value, (year, month, day)| {
            let qualifiers = Qualifiers { storage, ..Qualifiers::default() };
            let civil = Civil { year, month, day, hour: 23, minute: 59, second: 0 };
            Reading {
                qualifiers,
                at: Moment::from_civil(civil, 1),
                ..Reading::now(register.clone(), value, self.unit())
            }
        };
        let mut readings = vec![Reading::now(register.clone(), value, self.unit())];
        if self.is_thermal() {
            let [volume, flow, supply] = self.water();
            readings.push(now("volume", volume, 3, Unit::M3));
            readings.push(now("flow", flow, 3, Unit::named("m3/h")));
            readings.push(now("power", self.flow, 3, Unit::KW));
            let maximum = Qualifiers { function: Function::Maximum, ..Qualifiers::default() };
            readings.push(Reading { qualifiers: maximum, ..now("power", MOST_POWER, 3, Unit::KW) });
            readings.push(now("flow_temperature", supply, 1, Unit::named("C")));
            readings.push(now("return_temperature", supply - COOLED_BY, 1, Unit::named("C")));
            readings.push(now("temperature_difference", COOLED_BY * 10, 2, Unit::named("K")));
        } else {
            readings.push(now("flow", self.flow * 3600 / 1_000_000, 3, Unit::named("m3/h")));
        }
        readings.push(in_storage(1, at_set_day, (clock.year() - 1, 12, 31)));
        for telegram in 1..self.description.telegrams {
            for month in 1..=12 {
                let back = u64::from(telegram - 1) * 12 + month;
                let end = end_of_month(clock, back);
                let value = self.value(self.count_at(clock.month(), back));
                readings.push(in_storage(1 + back, value, (end.year(), end.month(), end.day())));
            }
        }
        readings
    }

    /// What its own clock shows: an hour ahead of UTC all year.
    fn clock(&self) -> DateTime {
        Offset::constant(1).to_datetime(Timestamp::from_second(self.now).unwrap_or_default())
    }

    /// Of a heat meter: the volume in litres, the flow in l/h, the temperature of the supply in tenths of a degree.
    fn water(&self) -> [u64; 3] {
        [
            self.count / 10_000 * MILLILITRES_PER_10_KJ / 1000,
            self.flow * 3600 / 10_000 * MILLILITRES_PER_10_KJ / 1000,
            620 + noise(self.seed, 2, self.now.div_euclid(STEP), 80).unsigned_abs(),
        ]
    }

    /// What it counts, as readings have it: the register, its value in GJ or m3, and the same at the set day.
    pub fn book(&self) -> (Register, Decimal, Decimal) {
        let register = if self.is_thermal() { "energy" } else { "volume" };
        (Register::named(register), self.value(self.count), self.value(self.count_at_set_day))
    }

    /// In GJ or m3.
    fn value(&self, count: u64) -> Decimal {
        let (number, factor, scale) = match (self.is_thermal(), self.description.counts_in) {
            (true, CountsIn::KWh) => (count / 3_600_000, 36, 4),
            (true, CountsIn::MWh) => (count / 360_000_000, 36, 2),
            _ => (count / 1_000_000, 1, 3),
        };
        Decimal::new((number * factor).cast_signed(), scale).unwrap_or(Decimal::per_ten_thousand(0))
    }

    /// The unit of [`Slave::book`].
    pub fn unit(&self) -> Unit {
        if self.is_thermal() { Unit::GJ } else { Unit::M3 }
    }

    /// Its answer to a frame that ended at `now`, if it has one.
    pub(super) fn answer(&mut self, frame: &Frame<'_>, now: Duration) -> Option<Vec<u8>> {
        if self.description.silent {
            return None;
        }
        match *frame {
            Frame::Short { control: control::SND_NKE, address: to } => {
                if to == address::SELECTED {
                    let was_selected = std::mem::take(&mut self.link.selected);
                    self.link.answered[1] = None;
                    return was_selected.then(|| Frame::Ack.emit());
                }
                self.is_meant(to)?;
                self.link.answered[0] = None;
                self.link.telegram = 0;
                Some(Frame::Ack.emit())
            }
            Frame::Short { control: asked, address: to } if asked & !control::FCB == control::REQ_UD2 => {
                let how = self.is_meant(to)?;
                self.data(asked & control::FCB != 0, how, now)
            }
            Frame::Long { address: address::SELECTED, ci: 0x52, data, .. } => {
                let pattern = Pattern::from_bytes(*data.first_chunk()?);
                self.link.selected = pattern.matches(self.secondary) || self.description.heeds_any_selection;
                self.link.answered[1] = None;
                self.link.telegram = 0;
                self.link.selected.then(|| Frame::Ack.emit())
            }
            Frame::Long { control: sent, address: to, ci, data } if sent & !control::FCB == control::SND_UD => {
                self.is_meant(to)?;
                match (ci, data) {
                    (0x51, &[0x01, 0x7A, new]) if new <= address::LAST => self.description.address = new,
                    (0x50, _) => self.link.telegram = 0,
                    (0xB8..=0xBF, _) => self.description.baud = Timing::RATES.get(usize::from(ci & 7)).copied(),
                    _ => {}
                }
                (to != address::BROADCAST).then(|| Frame::Ack.emit())
            }
            _ => None,
        }
    }

    /// Whether it is addressed, and how: 0 by its primary address, 1 as the one selected.
    fn is_meant(&self, to: u8) -> Option<usize> {
        let Description { address, also_answers, .. } = self.description;
        match to {
            address::SELECTED => self.link.selected.then_some(1),
            address::EVERYONE | address::BROADCAST => Some(0),
            to => (to == address || Some(to) == also_answers).then_some(0),
        }
    }

    fn data(&mut self, count_bit: bool, how: usize, now: Duration) -> Option<Vec<u8>> {
        let Description { telegrams, breaks_off, rest_s, ignores_count_bit, .. } = self.description;
        let last = self.link.answered.get(how).copied().flatten();
        let is_repeat = last == Some(count_bit);
        if is_repeat && !self.link.last.is_empty() {
            return Some(self.link.last.clone());
        }
        let begins = last.is_none();
        if begins && let Some(read) = self.link.read {
            // A battery meter that is read too often.
            if now.saturating_sub(read) < Duration::from_secs(rest_s.into()) {
                return None;
            }
        }
        if begins || ignores_count_bit {
            self.link.telegram = 0;
        }
        self.link.read = Some(now);
        let telegram = self.link.telegram;
        if breaks_off && telegram > 0 {
            return None;
        }
        self.link.access_number = self.link.access_number.wrapping_add(u8::from(!ignores_count_bit));
        let more = breaks_off || telegram + 1 < telegrams;
        self.link.telegram = if more { telegram + 1 } else { 0 };
        if let Some(answered) = self.link.answered.get_mut(how) {
            *answered = Some(count_bit);
        }
        self.link.last = self.telegram(telegram, more);
        Some(self.link.last.clone())
    }

    /// The answer with these records.
    fn telegram(&self, number: u8, more: bool) -> Vec<u8> {
        let Secondary { id, manufacturer, version, medium } = self.secondary;
        let mut data = id.to_le_bytes().to_vec();
        data.extend(manufacturer.0.to_le_bytes());
        data.extend([version, medium, self.link.access_number, self.description.status, 0, 0]);
        let records: Vec<(Qualifiers, Coding, &[u8], Vec<u8>)> =
            if number == 0 { self.now_records() } else { self.history_records(number) };
        for (qualifiers, coding, vib, bytes) in &records {
            Record::new(*qualifiers, *coding, vib, bytes).emit(&mut data);
        }
        if more {
            data.push(0x1F);
        }
        let address = self.description.address;
        Frame::Long { control: control::RSP_UD, address, ci: 0x72, data: &data }.emit()
    }

    /// The counter at `count` in its own unit, as VIF and number.
    fn counter(&self, count: u64) -> (&'static [u8], u64) {
        match (self.is_thermal(), self.description.counts_in) {
            (true, CountsIn::GJ) => (&[0x0E], count / 1_000_000),
            (true, CountsIn::KWh) => (&[0x06], count / 3_600_000),
            (true, CountsIn::MWh) => (&[0xFB, 0x00], count / 360_000_000),
            (false, _) => (&[0x13], count / 1_000_000),
        }
    }

    fn now_records(&self) -> Vec<(Qualifiers, Coding, &'static [u8], Vec<u8>)> {
        let now = Qualifiers::default();
        let set_day = Qualifiers { storage: 1, ..now };
        let maximum = Qualifiers { function: Function::Maximum, ..now };
        let clock = self.clock();
        let date = |year: i16, month: i8, day: i8| {
            let year = year.rem_euclid(100).unsigned_abs() as u8;
            [day.unsigned_abs() | (year & 7) << 5, month.unsigned_abs() | (year >> 3) << 4]
        };
        let [low, high] = date(clock.year(), clock.month(), clock.day());
        let mut records: Vec<(Qualifiers, Coding, &'static [u8], Vec<u8>)> = vec![
            (now, Coding::Bcd(4), &[0x78], self.secondary.id.to_le_bytes().to_vec()),
            (
                now,
                Coding::Binary(4),
                &[0x6D],
                vec![clock.minute().unsigned_abs(), clock.hour().unsigned_abs(), low, high],
            ),
        ];
        let number = |number: u64, bytes: u8| number.to_le_bytes().into_iter().take(bytes.into()).collect::<Vec<u8>>();
        let (vib, count) = self.counter(self.count);
        records.push((now, Coding::Binary(4), vib, number(count, 4)));
        if self.is_thermal() {
            let [volume, flow, supply] = self.water();
            records.push((now, Coding::Bcd(4), &[0x13], bcd(volume, 4)));
            records.push((now, Coding::Bcd(3), &[0x3B], bcd(flow, 3)));
            records.push((now, Coding::Bcd(3), &[0x2B], bcd(self.flow, 3)));
            records.push((maximum, Coding::Bcd(3), &[0x2B], bcd(MOST_POWER, 3)));
            records.push((now, Coding::Binary(2), &[0x5A], number(supply, 2)));
            records.push((now, Coding::Binary(2), &[0x5E], number(supply - COOLED_BY, 2)));
            records.push((now, Coding::Binary(2), &[0x61], number(COOLED_BY * 10, 2)));
        } else {
            let flow = self.flow * 3600 / 1_000_000;
            records.push((now, Coding::Binary(2), &[0x3B], number(flow, 2)));
        }
        let (vib, count) = self.counter(self.count_at_set_day);
        records.push((set_day, Coding::Binary(4), vib, number(count, 4)));
        records.push((set_day, Coding::Binary(2), &[0x6C], date(clock.year() - 1, 12, 31).to_vec()));
        records.push((now, Coding::Binary(2), &[0xFD, 0x17], vec![0, 0]));
        records
    }

    /// What it counted at the end of a month, so many months back: evenly from the set day to now, and as much a month
    /// before.
    fn count_at(&self, month: i8, back: u64) -> u64 {
        let since_set_day = u64::from(month.unsigned_abs());
        let grown = self.count.saturating_sub(self.count_at_set_day) / since_set_day.max(1);
        match since_set_day.checked_sub(back) {
            Some(months) => self.count_at_set_day + grown * months,
            None => self.count_at_set_day.saturating_sub(grown * (back - since_set_day)),
        }
    }

    /// Earlier months, twelve to a telegram.
    fn history_records(&self, telegram: u8) -> Vec<(Qualifiers, Coding, &'static [u8], Vec<u8>)> {
        let clock = self.clock();
        let mut records: Vec<(Qualifiers, Coding, &'static [u8], Vec<u8>)> = Vec::new();
        for month in 1..=12u64 {
            let back = u64::from(telegram - 1) * 12 + month;
            let storage = Qualifiers { storage: 1 + back, ..Qualifiers::default() };
            let (vib, count) = self.counter(self.count_at(clock.month(), back));
            let end = end_of_month(clock, back);
            let year = end.year().rem_euclid(100).unsigned_abs() as u8;
            let day = [end.day().unsigned_abs() | (year & 7) << 5, end.month().unsigned_abs() | (year >> 3) << 4];
            records.push((storage, Coding::Binary(2), &[0x6C], day.to_vec()));
            records.push((storage, Coding::Binary(4), vib, count.to_le_bytes().into_iter().take(4).collect()));
        }
        records
    }
}

/// The last day of a month, so many months back.
fn end_of_month(clock: DateTime, back: u64) -> Date {
    let begin = clock.date().first_of_month().saturating_sub(jiff::Span::new().months(back.cast_signed() - 1));
    begin.yesterday().unwrap_or(begin)
}

/// So many bytes of decimal digits, lowest first.
fn bcd(mut number: u64, bytes: usize) -> Vec<u8> {
    let mut digits = Vec::with_capacity(bytes);
    for _ in 0..bytes {
        digits.push((number % 10 + number / 10 % 10 * 16) as u8);
        number /= 100;
    }
    digits
}
