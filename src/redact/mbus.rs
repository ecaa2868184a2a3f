//! M-Bus frames, of masters and of meters.
//!
//! What a record is tells the decoder: each is put alone behind the header of its frame, and read.

use std::borrow::Cow;

use jiff::SignedDuration;

use super::{
    Plan, Refused, Secret, Serials, Survey, Written,
    check::{self, Allowed},
    offset::{self, Slot},
    time,
};
use crate::{
    mbus::{
        self, Coding, Frame, Item, Manufacturer, Pattern, Record, Records, control,
        value::Value,
        vif::{self, Kind},
    },
    reading::{Identity, Reading, Report},
};

/// Between stretches of bytes that have nothing to do with each other: no digits in any form.
const BREAK: [u8; 2] = [0xFF; 2];

/// What the data of a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Nothing that could name anybody.
    Bare,
    /// A header of 12 bytes with the number first, of 4, or none; and records.
    Records { header: usize, high_first: bool },
    /// The fixed structure.
    Fixed { high_first: bool },
    /// A selection of eight bytes, and records.
    Selection { high_first: bool },
}

impl Layout {
    fn of(from_master: bool, ci: u8, data: &[u8]) -> Result<Self, Refused> {
        let high_first = ci & 4 != 0;
        Ok(match (from_master, ci) {
            (true, 0x51 | 0x55) => Self::Records { header: 0, high_first },
            (true, 0x52 | 0x56) if data.len() >= 8 => Self::Selection { high_first },
            (false, 0x72 | 0x76) if data.len() >= 12 => Self::Records { header: 12, high_first },
            (false, 0x7A) if data.len() >= 4 => Self::Records { header: 4, high_first: false },
            (false, 0x78) => Self::Records { header: 0, high_first: false },
            (false, 0x73 | 0x77) if data.len() == 16 => Self::Fixed { high_first },
            // Resets, baud rates, errors and alarms: one byte at most.
            _ if data.len() <= 1 => Self::Bare,
            _ => return Err(Refused::Data(ci)),
        })
    }
}

/// Bytes as they become, and what must be known to check them.
#[derive(Default)]
struct New {
    data: Vec<u8>,
    /// What may hold a name.
    doubtful: Vec<u8>,
    /// The names that were.
    serials: Serials,
    /// Texts that are others.
    texts: Vec<String>,
    counters: Vec<Counter>,
    blanked: u64,
}

/// A counter in a frame: what it shows, what it can show at most, in which steps. None for a real number.
struct Counter {
    slot: Slot,
    amounts: Option<(i128, i128, i128)>,
}

pub(super) fn survey(survey: &mut Survey, frame: &Frame<'_>, port: &str) {
    let plan = Plan { names: Some(Secret::new(0)), ..Plan::default() };
    let Ok(Some(new)) = (Rewriting { plan: &plan, port, frame: *frame }).data() else { return };
    survey.serials.extend(&new.serials);
    for Counter { slot, amounts } in new.counters {
        if let Some((amount, most, step)) = amounts {
            survey.see(slot, amount, most, step);
        }
    }
}

pub(super) fn rewrite(plan: &Plan, frame: &Frame<'_>, port: &str) -> Result<Written, Refused> {
    let rewriting = Rewriting { plan, port, frame: *frame };
    let Frame::Long { control, address, ci, .. } = *frame else {
        return Ok(Written { bytes: frame.emit(), lines_left_out: 0, blanked: 0 });
    };
    let Some(new) = rewriting.data()? else {
        return Ok(Written { bytes: frame.emit(), lines_left_out: 0, blanked: 0 });
    };
    let bytes = Frame::Long { control, address, ci, data: &new.data }.emit();
    rewriting.check(&bytes, &new)?;
    let is_found = |serials: &Serials| serials.are_in(&bytes, true) || serials.are_in(&new.doubtful, false);
    if plan.names.is_some()
        && (is_found(&plan.serials) || is_found(&new.serials) || new.serials.are_partly_in(&new.doubtful))
    {
        return Err(Refused::Leak);
    }
    Ok(Written { bytes, lines_left_out: 0, blanked: new.blanked })
}

struct Rewriting<'a> {
    plan: &'a Plan,
    port: &'a str,
    frame: Frame<'a>,
}

impl Rewriting<'_> {
    fn is_answer(&self) -> bool {
        matches!(self.frame, Frame::Long { control, .. } if control & !control::ANSWER_BITS == control::RSP_UD)
    }

    /// The data of a long frame; None where it stays as it is.
    fn data(&self) -> Result<Option<New>, Refused> {
        let Frame::Long { control, ci, data, .. } = self.frame else { return Ok(None) };
        let from_master = control & control::FROM_MASTER != 0;
        if !from_master && !self.is_answer() {
            return Err(mbus::Reason::NotAnAnswer(control).into());
        }
        let layout = Layout::of(from_master, ci, data);
        if !from_master && layout != Ok(Layout::Bare) {
            mbus::decode(&[self.frame], 0)?;
        }
        let layout = layout?;
        let mut new = New::default();
        match layout {
            Layout::Bare => return Ok(None),
            Layout::Records { header, high_first } => {
                let (head, records) = data.split_at_checked(header).unwrap_or_default();
                self.header(head, high_first, &mut new);
                self.records(head, records, high_first, &mut new)?;
            }
            Layout::Fixed { high_first } => {
                let (head, rest) = data.split_at_checked(4).unwrap_or_default();
                self.header(head, high_first, &mut new);
                new.data.extend_from_slice(rest);
                self.fixed(data, high_first, &mut new)?;
            }
            Layout::Selection { high_first } => {
                let (head, records) = data.split_at_checked(8).unwrap_or_default();
                let number = number_of(head, high_first);
                let wild = number.iter().position(|&digit| digit == b'F').unwrap_or(number.len());
                if !number.iter().skip(wild).all(|&digit| digit == b'F') {
                    return Err(Refused::Selection);
                }
                self.header(head, high_first, &mut new);
                self.records(&[], records, high_first, &mut new)?;
            }
        }
        Ok(Some(new))
    }

    /// The number in front of a header, and the rest of it.
    fn header(&self, head: &[u8], high_first: bool, new: &mut New) {
        let at = new.data.len();
        match (&self.plan.names, head.split_at_checked(4)) {
            // A header of four bytes has no number.
            (Some(secret), Some((number, rest)))
                if head.len() > 4 || matches!(self.frame, Frame::Long { ci: 0x73 | 0x77, .. }) =>
            {
                let number = number_of(number, high_first);
                if !number.contains(&b'F') {
                    new.serials.add(&number);
                }
                let mut number = from_digits(&secret.digits(&number));
                if !high_first {
                    number.reverse();
                }
                new.data.extend(number);
                new.data.extend_from_slice(rest);
            }
            _ => new.data.extend_from_slice(head),
        }
        let written = new.data.get(at..).unwrap_or_default().to_vec();
        new.doubtful.extend([&written[..], &BREAK].concat());
    }

    fn records(&self, head: &[u8], records: &[u8], high_first: bool, new: &mut New) -> Result<(), Refused> {
        let mut rest = records;
        for item in Records::new(records) {
            let fillers = rest.iter().take_while(|&&byte| byte == 0x2F).count();
            new.data.extend(std::iter::repeat_n(0x2F, fillers));
            rest = rest.get(fillers..).unwrap_or_default();
            let length = match item.map_err(mbus::Reason::Record)? {
                Item::Record(record) => {
                    let length = record.head.len() + record.data.len();
                    self.record(head, record, high_first, new)?;
                    length
                }
                Item::Manufacturer { .. } | Item::Reserved(_) => {
                    let (dif, data) = rest.split_at_checked(1).unwrap_or((rest, &[]));
                    new.data.extend_from_slice(dif);
                    self.unexplained(&[], data, new);
                    rest.len()
                }
            };
            rest = rest.get(length..).unwrap_or_default();
        }
        new.data.extend_from_slice(rest);
        Ok(())
    }

    /// Data that nobody explains, behind what tells its length.
    fn unexplained(&self, length: &[u8], data: &[u8], new: &mut New) {
        new.data.extend_from_slice(length);
        if self.plan.names.is_none() || self.plan.keep_unknown {
            new.data.extend_from_slice(data);
            new.doubtful.extend([data, &BREAK].concat());
        } else {
            new.blanked += u64::from(data.iter().any(|&byte| byte != 0));
            new.data.extend(std::iter::repeat_n(0, data.len()));
        }
    }

    /// A record alone behind the header of its frame.
    fn alone(&self, head: &[u8], record: &Record<'_>, data: &[u8]) -> Option<Report> {
        let mut all = head.to_vec();
        // The security mode speaks of the whole.
        if let [.., low, high] = all.as_mut_slice() {
            (*low, *high) = (0, 0);
        }
        all.extend_from_slice(&record.head);
        all.extend_from_slice(data);
        let Frame::Long { address, ci, .. } = self.frame else { return None };
        let (control, ci) = if self.is_answer() { (control::RSP_UD, ci) } else { (control::RSP_UD, 0x78) };
        Some(mbus::decode(&[Frame::Long { control, address, ci, data: &all }], 0).ok()?.report)
    }

    fn record(&self, head: &[u8], mut record: Record<'_>, high_first: bool, new: &mut New) -> Result<(), Refused> {
        new.data.extend_from_slice(&record.head);
        let sent = record.data.to_vec();
        // What a master sends highest byte first is read as what meters send lowest byte first.
        let told = if high_first && !self.is_answer() { turned(&record, &sent) } else { sent.clone() };
        let report = self.alone(head, &record, &told);
        let Some(report) = report.filter(|report| report.unknown.is_empty()) else {
            let (length, data) = variable(&record, &sent);
            self.unexplained(length, data, new);
            return Ok(());
        };
        // Bits of the maker's own that are known all the same.
        let Some(meaning) = vif::meaning(&record.vib) else {
            new.data.extend_from_slice(&sent);
            new.doubtful.extend([&sent[..], &BREAK].concat());
            return Ok(());
        };
        if high_first {
            record.data = Cow::Owned(turned(&record, &sent));
        }
        let names = self.plan.names.as_ref();
        let mut is_value = false;
        let mut named = false;
        let changed = match (&meaning.kind, record.value(false), names) {
            (Kind::Amount { .. } | Kind::Plain { .. }, Value::Text(_) | Value::Bytes(_), Some(_)) => {
                Some(blank(&record))
            }
            (Kind::Plain { .. }, _, Some(secret)) if names_somebody(&meaning.name) => {
                named = true;
                Some(renamed(secret, &meaning.name, &record))
            }
            (Kind::Amount { .. } | Kind::Plain { .. }, ..) => {
                is_value = true;
                match report.readings.first() {
                    Some(reading) => self.counter(head, &record, reading, high_first, new)?,
                    None => None,
                }
            }
            (Kind::Date, ..) if self.plan.shift.is_zero() => {
                is_value = true;
                None
            }
            (Kind::Date, ..) => {
                is_value = true;
                time::mbus(&record.data, self.plan.shift).transpose()?
            }
            (Kind::Flags, Value::Text(_) | Value::Bytes(_), Some(_)) => Some(blank(&record)),
            (Kind::Identifier, _, Some(secret)) => {
                named = NAMING.iter().any(|name| meaning.name.starts_with(name));
                if named {
                    Some(renamed(secret, &meaning.name, &record))
                } else if HARMLESS.iter().any(|name| meaning.name.starts_with(name)) && record.data.len() <= 17 {
                    None
                } else {
                    Some(blank(&record))
                }
            }
            (Kind::Identifier | Kind::Flags, ..) => None,
        };
        if named {
            new.serials.add(&spoken(&record));
        }
        let data = changed.unwrap_or_else(|| record.data.to_vec());
        if *data != *record.data {
            new.texts.extend(report.info.iter().map(|(name, _)| name.to_string()));
        }
        if !is_value {
            new.doubtful.extend([&data[..], &BREAK].concat());
        }
        new.data.extend(if high_first { turned(&record, &data) } else { data });
        Ok(())
    }

    /// A number that counts; None where it stays as it is.
    fn counter(
        &self,
        head: &[u8],
        record: &Record<'_>,
        reading: &Reading,
        high_first: bool,
        new: &mut New,
    ) -> Result<Option<Vec<u8>>, Refused> {
        let Some(slot) = Slot::of(&self.meter(), reading) else { return Ok(None) };
        let most = most(record.coding);
        let mut one = vec![0; record.data.len()];
        if let Some(lowest) = one.first_mut() {
            *lowest = 1;
        }
        let one = if high_first { turned(record, &one) } else { one };
        let step = self.alone(head, record, &one).and_then(|report| offset::amount(report.readings.first()?));
        let amounts = || {
            let step = step?;
            Some((offset::amount(reading)?, most?.checked_mul(step)?, step))
        };
        let counter = Counter { slot, amounts: amounts() };
        let data = self.sum(&counter, record.coding)?;
        new.counters.push(counter);
        Ok(data)
    }

    /// A counter with its offset; None where there are none.
    fn sum(&self, counter: &Counter, coding: Coding) -> Result<Option<Vec<u8>>, Refused> {
        let Some(offsets) = &self.plan.offsets else { return Ok(None) };
        let (amount, most, step) = counter.amounts.ok_or(Refused::Offset)?;
        let number = offsets.add(&counter.slot, amount, most)?.checked_div(step).ok_or(Refused::Offset)?;
        Ok(Some(match coding {
            _ if number < 0 => return Ok(None),
            Coding::Bcd(bytes) => {
                let mut data = from_digits(format!("{number:0width$}", width = usize::from(bytes) * 2).as_bytes());
                data.reverse();
                data
            }
            Coding::Binary(bytes) => number.to_le_bytes().into_iter().take(usize::from(bytes)).collect(),
            _ => return Err(Refused::Offset),
        }))
    }

    fn meter(&self) -> String {
        match mbus::decode(&[self.frame], 0).map(|decoded| decoded.report.meter) {
            Ok(place @ Identity::Place { .. }) => place.name("", self.port),
            Ok(Identity::Own(name)) => name,
            Err(_) => String::new(),
        }
    }

    /// The two counters of the fixed structure, which `new` has as they were.
    fn fixed(&self, data: &[u8], high_first: bool, new: &mut New) -> Result<(), Refused> {
        let Frame::Long { control, address, ci, .. } = self.frame else { return Ok(()) };
        let readings = |data: &[u8]| {
            let frame = Frame::Long { control, address, ci, data };
            mbus::decode(&[frame], 0).map(|decoded| decoded.report.readings).unwrap_or_default()
        };
        let is_binary = data.get(5).is_some_and(|status| status & 1 != 0);
        let coding = if is_binary { Coding::Binary(4) } else { Coding::Bcd(4) };
        let told = readings(data);
        let counting = [6, 7].iter().filter(|at| data.get(**at).is_some_and(|unit| unit & 0x3F != 0x3F)).count();
        if told.len() != counting && self.plan.offsets.is_some() {
            return Err(Refused::Offset);
        }
        let mut index = 0;
        for (at, unit) in [(8, 6), (12, 7)] {
            // Nothing is counted.
            if data.get(unit).is_some_and(|unit| unit & 0x3F == 0x3F) {
                continue;
            }
            let counter = told.get(index);
            let mut one = data.to_vec();
            for (byte, value) in one.iter_mut().skip(at).zip(if high_first { [0, 0, 0, 1] } else { [1, 0, 0, 0] }) {
                *byte = value;
            }
            let step = readings(&one).get(index).and_then(offset::amount);
            index += 1;
            let Some((reading, slot)) = counter.and_then(|reading| Some((reading, Slot::of(&self.meter(), reading)?)))
            else {
                continue;
            };
            let amounts = || {
                let step = step?;
                Some((offset::amount(reading)?, most(coding)?.checked_mul(step)?, step))
            };
            let counter = Counter { slot, amounts: amounts() };
            if let Some(mut sum) = self.sum(&counter, coding)? {
                if high_first {
                    sum.reverse();
                }
                for (byte, value) in new.data.iter_mut().skip(at).zip(sum) {
                    *byte = value;
                }
            }
            new.counters.push(counter);
        }
        Ok(())
    }

    /// Reads the new bytes, and compares.
    fn check(&self, bytes: &[u8], new: &New) -> Result<(), Refused> {
        let form = Refused::Differs("its form");
        let (frame, length) = Frame::parse(bytes).map_err(|_| form)?;
        let (Frame::Long { control, address, ci, data }, Frame::Long { control: c, address: a, ci: i, data: old }) =
            (frame, self.frame)
        else {
            return Err(form);
        };
        if length != bytes.len() || (control, address, ci, data.len()) != (c, a, i, old.len()) {
            return Err(form);
        }
        if !self.is_answer() {
            // A master's: nothing but numbers, texts and times of the same length differ, and who is selected by what else.
            let beyond_number = |data: &[u8]| data.get(4..8).map(<[u8]>::to_vec);
            let is_selection = matches!(Layout::of(true, ci, data)?, Layout::Selection { .. });
            let wild = |data: &[u8]| {
                let bytes = data.first_chunk::<8>().copied().unwrap_or_default();
                let id = Pattern::from_bytes(bytes).id;
                [0, 4, 8, 12, 16, 20, 24, 28].map(|digit| id >> digit & 0xF == 0xF)
            };
            let is_same = !is_selection || (beyond_number(data) == beyond_number(old) && wild(data) == wild(old));
            return if is_same { Ok(()) } else { Err(form) };
        }
        let (was, is) = (mbus::decode(&[self.frame], 0)?, mbus::decode(&[frame], 0)?);
        let state = |decoded: &mbus::Decoded| {
            let maker = decoded.secondary.map(|meter| (meter.manufacturer, meter.version, meter.medium));
            (maker, decoded.address, decoded.access_number, decoded.more_follow)
        };
        if state(&was) != state(&is) {
            return Err(Refused::Differs("its header"));
        }
        let codes = |decoded: &mbus::Decoded| -> Vec<(String, usize)> {
            decoded.report.unknown.iter().map(|unknown| (unknown.code.clone(), unknown.text.len())).collect()
        };
        if codes(&was) != codes(&is) {
            return Err(Refused::Differs("what nobody explains"));
        }
        let meter = self.meter();
        let added = |_: &Report, reading: &Reading| {
            let slot = Slot::of(&meter, reading).zip(self.plan.offsets.as_ref());
            slot.and_then(|(slot, offsets)| offsets.of(&slot)).unwrap_or_default()
        };
        let is_whole = self.plan.shift.as_secs() % 86_400 == 0 && self.plan.shift.subsec_nanos() == 0;
        let allowed = Allowed {
            shift: self.plan.shift,
            tolerance: if is_whole { SignedDuration::ZERO } else { SignedDuration::from_hours(24) },
            texts: &|name| new.texts.iter().any(|text| name.starts_with(text.as_str())),
            added: &added,
        };
        check::compare(&[was.report], &[is.report], &allowed)
    }
}

/// Records whose digits name a meter or a household.
const NAMING: [&str; 4] = ["fabrication_number", "enhanced_identification", "customer_location", "customer"];

/// Records whose digits name a kind of meter, or count.
const HARMLESS: [&str; 10] = [
    "access_number",
    "device_type",
    "manufacturer",
    "bus_address",
    "parameter",
    "model_version",
    "hardware_version",
    "firmware_version",
    "software_version",
    "day_of_week",
];

/// Whether a record whose unit is a text of the maker's own holds a number that names (`cust. ID`), not one that counts.
fn names_somebody(name: &str) -> bool {
    let words = [
        "id", "no", "nr", "num", "number", "serial", "sn", "cust", "customer", "key", "pw", "pin", "code", "loc",
        "addr", "owner", "name",
    ];
    name.split('_').any(|word| words.contains(&word))
}

/// The number in the first four bytes, as its digits are read; hex digits in capitals.
fn number_of(bytes: &[u8], high_first: bool) -> Vec<u8> {
    let number = bytes.first_chunk().copied().unwrap_or_default();
    let number = if high_first { u32::from_be_bytes(number) } else { u32::from_le_bytes(number) };
    format!("{number:08X}").into_bytes()
}

/// Two digits a byte, highest first.
fn to_digits(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().flat_map(|byte| format!("{byte:02X}").into_bytes()).collect()
}

/// The way back.
fn from_digits(digits: &[u8]) -> Vec<u8> {
    let value = |digit: u8| char::from(digit).to_digit(16).unwrap_or_default() as u8;
    digits.as_chunks::<2>().0.iter().map(|&[high, low]| value(high) << 4 | value(low)).collect()
}

/// The data of a record in the other order; the length of a variable one stays in front.
fn turned(record: &Record<'_>, data: &[u8]) -> Vec<u8> {
    let (length, data) = variable(record, data);
    length.iter().chain(data.iter().rev()).copied().collect()
}

/// What tells the length of variable data, and the data.
fn variable<'a>(record: &Record<'_>, data: &'a [u8]) -> (&'a [u8], &'a [u8]) {
    data.split_at_checked(usize::from(record.coding == Coding::Variable)).unwrap_or((data, &[]))
}

/// The highest number that fits; None where numbers are not whole.
fn most(coding: Coding) -> Option<i128> {
    match coding {
        // The highest digit F would be a minus sign.
        Coding::Bcd(bytes) => 10i128.checked_pow(u32::from(bytes) * 2)?.checked_sub(1),
        Coding::Binary(bytes) => 1i128.checked_shl(u32::from(bytes) * 8 - 1)?.checked_sub(1),
        _ => None,
    }
}

/// Blanks for a text, zeros for anything else.
fn blank(record: &Record<'_>) -> Vec<u8> {
    let (length, data) = variable(record, &record.data);
    let byte = if matches!(record.value(false), Value::Text(_)) { b' ' } else { 0 };
    length.iter().copied().chain(std::iter::repeat_n(byte, data.len())).collect()
}

/// What a record says, as people read it.
fn spoken(record: &Record<'_>) -> Vec<u8> {
    let (_, data) = variable(record, &record.data);
    let back: Vec<u8> = data.iter().rev().copied().collect();
    match (record.coding, record.value(false)) {
        (_, Value::Text(text)) => text,
        (Coding::Binary(8), _) if is_address(&record.data) => number_of(data, false),
        (Coding::Binary(_), Value::Number(number)) => number.to_string().into_bytes(),
        _ => to_digits(&back),
    }
}

/// Whether eight bytes are a secondary address: number, maker, version, medium.
fn is_address(data: &[u8]) -> bool {
    let maker = data.get(4..6).and_then(<[u8]>::first_chunk).map(|maker| Manufacturer(u16::from_le_bytes(*maker)));
    data.len() == 8 && maker.is_some_and(|maker| maker.letters().is_some())
}

/// The data of a record, lowest byte first, with another number.
fn renamed(secret: &Secret, name: &str, record: &Record<'_>) -> Vec<u8> {
    let (length, data) = variable(record, &record.data);
    let digits = |data: &[u8]| {
        let back: Vec<u8> = data.iter().rev().copied().collect();
        let mut new = from_digits(&secret.digits(&to_digits(&back)));
        new.reverse();
        new
    };
    match (record.coding, record.value(false)) {
        // A text of a customer is a name, not a number.
        (_, Value::Text(text)) if name.starts_with("fabrication") || name.starts_with("enhanced") => {
            let mut new = secret.identifier(&text);
            new.reverse();
            [length, &new].concat()
        }
        (Coding::Bcd(_), _) => digits(data),
        (Coding::Binary(8), _) if is_address(data) => {
            let (number, rest) = data.split_at_checked(4).unwrap_or_default();
            [&digits(number)[..], rest].concat()
        }
        (Coding::Binary(bytes), Value::Number(number)) => {
            let most = 1u128.checked_shl(u32::from(bytes) * 8).unwrap_or_default();
            let mut digits = number.to_string().into_bytes();
            // A permutation comes round to a number that fits at the latest where it began.
            loop {
                digits = secret.digits(&digits);
                let number: Option<u128> = std::str::from_utf8(&digits).ok().and_then(|digits| digits.parse().ok());
                match number {
                    Some(number) if number < most => {
                        return number.to_le_bytes().into_iter().take(usize::from(bytes)).collect();
                    }
                    Some(_) => {}
                    None => return vec![0; data.len()],
                }
            }
        }
        (Coding::Variable, Value::Number(_) | Value::NotANumber)
            if length.first().is_some_and(|first| *first < 0xE0) =>
        {
            [length, &digits(data)].concat()
        }
        _ => blank(record),
    }
}
