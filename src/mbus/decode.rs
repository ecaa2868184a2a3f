//! Answers to readings.
//!
//! Enters: the frames of one readout, in their order. Leaves: a [`Report`]: what the meter said.
//!
//! - Energy of heat and cold is GJ, exactly; `raw` has what the meter counts. Volume is m3, power kW.
//! - Records with a storage number, or of a maximum or minimum, carry the date that the same telegram has for
//!   that storage. A day without a time means its end (23:59): a set day is the last of its period. Where two
//!   dates would fit, none is taken, and both stand in `info`.
//! - The clock of a meter shows standard time unless its summer-time bit is set.
//! - Digits that name something, bits, texts and dates stand in `info`, under the name of their quantity and
//!   their qualifiers. So does a value that the meter itself says is none.
//! - What the tables do not know, and the manufacturer's own, is `unknown`: DIF and VIF in capital hex digits as
//!   `code`, the data in small ones as `text`.
//!
//! Source: EN 13757-3:2018, 5 (header), 6 (records), 10 (application errors), annex on the fixed data structure of
//! the edition of 2004.
//!
//! Not supported: decryption. A nonzero security mode is taken at its word unless every record behind it is
//! known: some meters send one in plain text.

use std::{borrow::Cow, fmt::Write as _};

use super::{
    address::{Manufacturer, Secondary},
    control, faults,
    frame::{Frame, FrameError},
    record::{Item, Record, RecordError, Records},
    value::{Date, Value, date},
    vif::{self, Direction, Kind, Meaning},
};
use crate::{
    moment::{Civil, Moment},
    reading::{Clock, Function, Identity, Info, Medium, Qualifiers, Reading, Register, Report, Unknown, escape},
    unit::Unit,
};

/// Control information: what the data of an answer is.
mod ci {
    /// A header of 12 bytes and records; with bit 2, multi-byte fields come highest byte first.
    pub(super) const VARIABLE: u8 = 0x72;
    /// The fixed data structure; with bit 2, highest byte first.
    pub(super) const FIXED: u8 = 0x73;
    /// Records without a header.
    pub(super) const NO_HEADER: u8 = 0x78;
    /// A header of four bytes and records.
    pub(super) const SHORT_HEADER: u8 = 0x7A;
    /// An application error.
    pub(super) const ERROR: u8 = 0x70;
    /// An alarm.
    pub(super) const ALARM: u8 = 0x71;
    /// Highest byte first.
    pub(super) const HIGH_FIRST: u8 = 0x04;
}

/// Why an answer is none, or cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// It is no frame.
    #[error("no frame: {0}")]
    Frame(#[from] FrameError),
    /// A frame, but no slave's answer with data.
    #[error("not an answer: its control byte is {0:02X}")]
    NotAnAnswer(u8),
    /// The slave reports an error of its application layer.
    #[error("the meter answers with an application error: {}", application_error(*.0))]
    ApplicationError(Option<u8>),
    /// The slave reports an alarm.
    #[error("the meter answers with the alarm {0:02X}")]
    Alarm(u8),
    /// Data of another kind.
    #[error("control information {0:02X} is not supported")]
    ControlInformation(u8),
    /// The header breaks off.
    #[error("the header breaks off after {0} bytes")]
    Header(usize),
    /// A record breaks off, or has no end.
    #[error("{0}")]
    Record(#[from] RecordError),
    /// It is encrypted.
    #[error("encrypted (security mode {0}), which is not supported")]
    Encrypted(u8),
    /// The frames of one readout are of two meters.
    #[error("two meters in one readout")]
    OtherMeter,
    /// A readout of several telegrams lacks the last.
    #[error("the readout breaks off: the meter announced another telegram, and none followed")]
    Unfinished,
    /// A readout that does not come to an end.
    #[error("the readout has no end: it has more than 32 telegrams")]
    Endless,
}

impl Reason {
    /// Every short name, each once.
    pub const KINDS: [&'static str; 12] = [
        "checksum",
        "frame",
        "not_an_answer",
        "application_error",
        "alarm",
        "control_information",
        "header",
        "record",
        "encrypted",
        "other_meter",
        "unfinished",
        "endless",
    ];

    /// A short name for counters, one of [`Reason::KINDS`].
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Frame(FrameError::Checksum { .. }) => "checksum",
            Self::Frame(_) => "frame",
            Self::NotAnAnswer(_) => "not_an_answer",
            Self::ApplicationError(_) => "application_error",
            Self::Alarm(_) => "alarm",
            Self::ControlInformation(_) => "control_information",
            Self::Header(_) => "header",
            Self::Record(_) => "record",
            Self::Encrypted(_) => "encrypted",
            Self::OtherMeter => "other_meter",
            Self::Unfinished => "unfinished",
            Self::Endless => "endless",
        }
    }
}

/// Table 24.
const fn application_error(code: Option<u8>) -> &'static str {
    match code {
        None | Some(0) => "unspecified",
        Some(1) => "unimplemented control information",
        Some(2) => "buffer too long",
        Some(3) => "too many records",
        Some(4) => "premature end of record",
        Some(5) => "more than 10 DIFE",
        Some(6) => "more than 10 VIFE",
        Some(7) => "reserved",
        Some(8) => "busy",
        Some(9) => "too many readouts",
        Some(_) => "a code of the manufacturer's own",
    }
}

/// What a meter said, and who it is on the bus.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Decoded {
    /// The readings.
    pub report: Report<Identity>,
    /// Who it says it is; None without a header.
    pub secondary: Option<Secondary>,
    /// The address in its answer.
    pub address: u8,
    /// The number of this answer by the meter's count; None without a header.
    pub access_number: Option<u8>,
    /// Whether it has more telegrams than these.
    pub more_follow: bool,
}

/// An answer, its header read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer<'a> {
    /// The address that the slave answers under.
    pub address: u8,
    /// Who it says it is; None without a header.
    pub secondary: Option<Secondary>,
    /// Number of the answer, status byte, security mode; None without a header.
    pub state: Option<State>,
    body: Body<'a>,
}

/// What a header says beyond the identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// Counts answers.
    pub access_number: u8,
    /// Status byte.
    pub status: u8,
    /// Bits 8 to 12 of the configuration word; 0: not encrypted.
    pub security_mode: u8,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Body<'a> {
    Records { data: &'a [u8], high_first: bool },
    Fixed { counters: [[u8; 4]; 2], units: [u8; 2], status: u8 },
}

impl<'a> Answer<'a> {
    /// Reads the header of an answer.
    pub fn parse(frame: &Frame<'a>) -> Result<Self, Reason> {
        let Frame::Long { control: c, address, ci, data } = *frame else {
            return Err(Reason::NotAnAnswer(match frame {
                Frame::Short { control, .. } => *control,
                _ => 0xE5,
            }));
        };
        if c & !control::ANSWER_BITS != control::RSP_UD {
            return Err(Reason::NotAnAnswer(c));
        }
        let high_first = ci & ci::HIGH_FIRST != 0;
        let short = Reason::Header(data.len());
        match ci {
            ci::ERROR => Err(Reason::ApplicationError(data.first().copied())),
            ci::ALARM => Err(Reason::Alarm(data.first().copied().unwrap_or_default())),
            ci::NO_HEADER => {
                Ok(Self { address, secondary: None, state: None, body: Body::Records { data, high_first: false } })
            }
            ci::SHORT_HEADER => {
                let &[access_number, status, low, high] = data.first_chunk().ok_or(short)?;
                let state = Some(State { access_number, status, security_mode: mode([low, high], false) });
                let data = data.get(4..).unwrap_or_default();
                Ok(Self { address, secondary: None, state, body: Body::Records { data, high_first: false } })
            }
            // CI 76 and 77.
            _ if ci & !ci::HIGH_FIRST == ci::VARIABLE => {
                let &[a, b, c, d, m, n, version, medium, access_number, status, e, f] =
                    data.first_chunk().ok_or(short)?;
                let (id, manufacturer) = if high_first {
                    (u32::from_be_bytes([a, b, c, d]), u16::from_be_bytes([m, n]))
                } else {
                    (u32::from_le_bytes([a, b, c, d]), u16::from_le_bytes([m, n]))
                };
                let secondary = Secondary { id, manufacturer: Manufacturer(manufacturer), version, medium };
                let state = State { access_number, status, security_mode: mode([e, f], high_first) };
                let data = data.get(12..).unwrap_or_default();
                let body = Body::Records { data, high_first };
                Ok(Self { address, secondary: Some(secondary), state: Some(state), body })
            }
            _ if ci & !ci::HIGH_FIRST == ci::FIXED => {
                let &[a, b, c, d, access_number, status, first, second] = data.first_chunk().ok_or(short)?;
                let (one, two) = (data.get(8..12), data.get(12..16));
                let (Some(&one), Some(&two)) = (one.and_then(<[u8]>::first_chunk), two.and_then(<[u8]>::first_chunk))
                else {
                    return Err(short);
                };
                let order = |mut bytes: [u8; 4]| {
                    if high_first {
                        bytes.reverse();
                    }
                    bytes
                };
                let medium = first >> 6 | second >> 6 << 2;
                let secondary = Secondary {
                    id: u32::from_le_bytes(order([a, b, c, d])),
                    manufacturer: Manufacturer(0),
                    version: 0,
                    medium: fixed_medium(medium),
                };
                // Bits 0 and 1 say how the counters are to be read.
                let state = State { access_number, status: status & !3, security_mode: 0 };
                let body =
                    Body::Fixed { counters: [order(one), order(two)], units: [first & 0x3F, second & 0x3F], status };
                Ok(Self { address, secondary: Some(secondary), state: Some(state), body })
            }
            other => Err(Reason::ControlInformation(other)),
        }
    }

    /// Whether the slave has more telegrams: its last DIF is 1F.
    pub fn more_follow(&self) -> Result<bool, Reason> {
        let Body::Records { data, .. } = self.body else { return Ok(false) };
        let mode = self.state.map_or(0, |state| state.security_mode);
        let mut more = false;
        for item in Records::new(data) {
            let item = item.map_err(|error| if mode != 0 { Reason::Encrypted(mode) } else { Reason::Record(error) })?;
            more |= matches!(item, Item::Manufacturer { more_follow: true, .. });
        }
        Ok(more)
    }
}

fn mode(word: [u8; 2], high_first: bool) -> u8 {
    let [low, high] = word;
    (if high_first { low } else { high }) & 0x1F
}

/// The 4-bit medium of the fixed structure as a device type. 9 and F are reserved, A to D the same as 3, 4, 6, 7
/// in their second form, E as 8.
const fn fixed_medium(medium: u8) -> u8 {
    match medium {
        0xA => 3,
        0xB => 4,
        0xC => 6,
        0xD => 7,
        0xE => 8,
        other => other,
    }
}

/// Reads one frame from bytes that hold nothing else, and what it says.
pub fn read(bytes: &[u8], standard_offset: i8) -> Result<Decoded, Reason> {
    let (frame, _) = Frame::parse(bytes)?;
    decode(&[frame], standard_offset)
}

/// What the frames of one readout say.
///
/// ```
/// use meterkast::mbus::{self, Frame};
///
/// // An answer without a header: a volume of 1.234 m3, and a record that nobody knows.
/// let frame = Frame::Long { control: 0x08, address: 5, ci: 0x78, data: &[0x0C, 0x13, 0x34, 0x12, 0, 0, 0x01, 0xFF, 0x07, 0x2A] };
/// let decoded = mbus::decode(&[frame], 1)?;
/// assert_eq!(decoded.report.readings[0].value.to_string(), "1.234");
/// assert_eq!((decoded.report.unknown[0].code.as_str(), decoded.report.unknown[0].text.as_str()), ("01FF07", "2a"));
/// # Ok::<(), mbus::Reason>(())
/// ```
///
/// `standard_offset`: hours east of UTC that the meter's clock stands in winter.
pub fn decode(frames: &[Frame<'_>], standard_offset: i8) -> Result<Decoded, Reason> {
    let mut answers = frames.iter().map(Answer::parse);
    let first = answers.next().unwrap_or(Err(Reason::Frame(FrameError::Incomplete(1))))?;
    let mut telling = Telling::new(first.secondary, standard_offset);
    if let Some(state) = first.state {
        telling.info.push(("status".into(), faults::status(state.status).into()));
    }
    let (address, access_number) = (first.address, first.state.map(|state| state.access_number));
    telling.add(&first)?;
    for answer in answers {
        let answer = answer?;
        if (answer.address, answer.secondary) != (address, telling.meter) {
            return Err(Reason::OtherMeter);
        }
        telling.add(&answer)?;
    }
    let (secondary, more_follow) = (telling.meter, telling.more_follow);
    Ok(Decoded { report: telling.report(address), secondary, address, access_number, more_follow })
}

/// A report while it is being made.
struct Telling {
    meter: Option<Secondary>,
    medium: Medium,
    offset: i8,
    readings: Vec<Reading>,
    info: Vec<Info>,
    unknown: Vec<Unknown>,
    /// Dates by the qualifiers of their records.
    dates: Vec<(Qualifiers, Date, bool)>,
    /// The meter's own clock.
    clock: Option<Moment>,
    more_follow: bool,
}

impl Telling {
    fn new(meter: Option<Secondary>, offset: i8) -> Self {
        let medium = Medium::from_device_type(meter.map_or(0, |meter| meter.medium));
        Self {
            meter,
            medium,
            offset,
            readings: Vec::with_capacity(16),
            info: Vec::with_capacity(4),
            unknown: Vec::new(),
            dates: Vec::new(),
            clock: None,
            more_follow: false,
        }
    }

    fn add(&mut self, answer: &Answer<'_>) -> Result<(), Reason> {
        // The last telegram of a readout says it.
        self.more_follow = false;
        let (data, high_first) = match answer.body {
            Body::Records { data, high_first } => (data, high_first),
            Body::Fixed { counters, units, status } => {
                self.fixed(counters, units, status);
                return Ok(());
            }
        };
        let mode = answer.state.map_or(0, |state| state.security_mode);
        let doubtful = mode != 0;
        let before = self.unknown.len();
        for item in Records::new(data) {
            let item = item.map_err(|error| if doubtful { Reason::Encrypted(mode) } else { Reason::Record(error) })?;
            match item {
                Item::Record(mut record) => {
                    if high_first {
                        turn(&mut record);
                    }
                    self.record(&record);
                }
                Item::Manufacturer { more_follow, data } => {
                    self.more_follow = more_follow;
                    // Random bytes may begin so; they may not end the doubt.
                    if doubtful && self.readings.is_empty() {
                        return Err(Reason::Encrypted(mode));
                    }
                    if !data.is_empty() {
                        let code = if more_follow { "1F" } else { "0F" };
                        self.unknown.push(Unknown { code: code.to_owned(), text: bytes(data, false) });
                    }
                }
                Item::Reserved(data) => {
                    if doubtful {
                        return Err(Reason::Encrypted(mode));
                    }
                    let (code, data) = data.split_at_checked(1).unwrap_or((data, &[]));
                    self.unknown.push(Unknown { code: bytes(code, true), text: bytes(data, false) });
                }
            }
        }
        // The manufacturer's own data is known to be unknown.
        let stranger = |unknown: &Unknown| !matches!(&*unknown.code, "0F" | "1F") && !unknown.code.contains("FF");
        if doubtful && self.unknown.get(before..).is_some_and(|unknown| unknown.iter().any(stranger)) {
            return Err(Reason::Encrypted(mode));
        }
        Ok(())
    }

    fn record(&mut self, record: &Record<'_>) {
        let known = vif::meaning(&record.vib).and_then(|meaning| self.tell(record, meaning));
        if known.is_none() {
            let own = match record.vib.extensions {
                [vife] if record.vib.vif == 0xFF => faults::own_bits(self.meter, *vife, &record.data),
                _ => None,
            };
            match own {
                Some(text) => self.inform("error_flags", record.qualifiers, text),
                None => {
                    self.unknown.push(Unknown { code: bytes(&record.head, true), text: bytes(&record.data, false) })
                }
            }
        }
    }

    /// None where the record does not fit its meaning.
    fn tell(&mut self, record: &Record<'_>, meaning: Meaning) -> Option<()> {
        let Meaning { name, kind, direction, fault, plain } = meaning;
        let qualifiers = record.qualifiers;
        let name = match direction {
            None => name,
            Some(Direction::Forward) => Cow::Owned(format!("{name}_forward")),
            Some(Direction::Backward) => Cow::Owned(format!("{name}_backward")),
        };
        if let Some(fault) = fault {
            self.inform(&name, qualifiers, fault.to_owned());
            return Some(());
        }
        match kind {
            Kind::Date => return self.date(record, &name, plain),
            Kind::Flags if matches!(record.coding, super::Coding::Binary(_)) => {
                let text = if name == "error_flags" {
                    faults::error_flags(self.meter, &record.data)
                } else {
                    faults::hex(&record.data)
                };
                self.inform(&name, qualifiers, text);
                return Some(());
            }
            _ => {}
        }
        let signed = matches!(kind, Kind::Amount { .. } | Kind::Plain { .. });
        let number = match record.value(signed) {
            Value::Nothing => return None,
            Value::TooLong => return None,
            Value::Text(text) => {
                self.inform(&name, qualifiers, escape(&text));
                return Some(());
            }
            Value::Bytes(data) => {
                self.inform(&name, qualifiers, bytes(&data, false));
                return Some(());
            }
            // The digits of a number that names something may be hex digits.
            _ if matches!((&kind, record.coding), (Kind::Identifier | Kind::Flags, super::Coding::Bcd(_))) => {
                let digits: Vec<u8> = record.data.iter().rev().copied().collect();
                self.inform(&name, qualifiers, bytes(&digits, true));
                return Some(());
            }
            Value::NotANumber => {
                let digits: Vec<u8> = record.data.iter().rev().copied().collect();
                self.inform(&name, qualifiers, format!("no number: {}", bytes(&digits, true)));
                return Some(());
            }
            Value::Number(number) => number,
        };
        let (value, unit, raw) = match kind {
            Kind::Amount { base, exponent } => base.amount(number, exponent, self.is_thermal())?,
            Kind::Plain { unit, exponent } => (number.shift(exponent)?, unit, None),
            _ => {
                self.inform(&name, qualifiers, number.to_string());
                return Some(());
            }
        };
        let register = self.register(name, &unit)?;
        self.readings.push(Reading {
            register,
            value,
            unit,
            qualifiers,
            at: None,
            suspect: None,
            raw: raw.map(Box::new),
        });
        Some(())
    }

    /// Whether energy is heat or cold.
    fn is_thermal(&self) -> bool {
        matches!(self.medium, Medium::Heat | Medium::Cooling | Medium::HeatCooling | Medium::HotWater | Medium::Water)
    }

    /// Electricity counts by direction, as on P1.
    fn register(&self, name: Cow<'static, str>, unit: &Unit) -> Option<Register> {
        let electric = self.medium == Medium::Electricity && matches!(unit.as_str(), "kWh" | "kW" | "kvarh" | "kvar");
        let name = match (&*name, electric) {
            ("energy" | "energy_forward", true) => Cow::Borrowed("import_total"),
            ("energy_backward", true) => Cow::Borrowed("export_total"),
            ("power_forward", true) => Cow::Borrowed("power_import"),
            ("power_backward", true) => Cow::Borrowed("power_export"),
            ("reactive_energy_forward", true) => Cow::Borrowed("reactive_import_total"),
            ("reactive_energy_backward", true) => Cow::Borrowed("reactive_export_total"),
            ("reactive_power_forward", true) => Cow::Borrowed("reactive_power_import"),
            ("reactive_power_backward", true) => Cow::Borrowed("reactive_power_export"),
            _ => name,
        };
        match name {
            Cow::Borrowed(name) => Some(Register::named(name)),
            Cow::Owned(name) => Register::from_text(&name),
        }
    }

    fn date(&mut self, record: &Record<'_>, name: &str, plain: bool) -> Option<()> {
        if !matches!(record.coding, super::Coding::Binary(_)) {
            return None;
        }
        let date = date(&record.data)?;
        let timed = record.data.len() != 2;
        let qualifiers = record.qualifiers;
        if plain && matches!(record.vib.vif, 0x6C | 0x6D) {
            if qualifiers == Qualifiers::default() && timed && self.clock.is_none() {
                self.clock = self.moment(date);
                if self.clock.is_some() {
                    return Some(());
                }
            } else if qualifiers != Qualifiers::default() {
                self.dates.push((qualifiers, date, timed));
                return Some(());
            }
        }
        self.inform(name, qualifiers, shown(date));
        Some(())
    }

    fn moment(&self, date: Date) -> Option<Moment> {
        match date {
            Date::Time { clock, summer } => Moment::from_civil(clock, self.offset.saturating_add(i8::from(summer))),
            // The end of the day.
            Date::Day { year, month, day } => {
                let clock = Civil { year, month, day, hour: 23, minute: 59, second: 0 };
                Moment::from_civil(clock, self.offset)
            }
            Date::OfDay { .. } | Date::Every { .. } | Date::NotSet => None,
        }
    }

    fn inform(&mut self, name: &str, qualifiers: Qualifiers, text: String) {
        let Qualifiers { storage, tariff, subunit, function } = qualifiers;
        let mut name = name.to_owned();
        for (word, number) in [("storage", storage), ("tariff", tariff.into()), ("subunit", subunit.into())] {
            if number != 0 {
                // Writing to a String cannot fail.
                let _ = write!(name, "_{word}{number}");
            }
        }
        if let Some(function) = function.name() {
            let _ = write!(name, "_{function}");
        }
        // A name stands once in a message.
        let taken = |name: &str| self.info.iter().any(|(other, _)| other == name);
        if taken(&name) {
            let free = (2u16..=999).map(|number| format!("{name}_{number}")).find(|name| !taken(name));
            name = free.unwrap_or(name);
        }
        self.info.push((Cow::Owned(name), Cow::Owned(text)));
    }

    /// The date of a reading: that of the same storage, function, subunit and tariff; otherwise of the same storage
    /// and function. None unless there is just one.
    fn date_of(&self, qualifiers: Qualifiers) -> Option<(usize, Moment)> {
        let exact = |other: &Qualifiers| *other == qualifiers;
        let of_subunit = |other: &Qualifiers| *other == Qualifiers { tariff: 0, ..qualifiers };
        let of_storage = |other: &Qualifiers| *other == Qualifiers { tariff: 0, subunit: 0, ..qualifiers };
        let mut fits: [&dyn Fn(&Qualifiers) -> bool; 3] = [&exact, &of_subunit, &of_storage];
        for fit in &mut fits {
            let mut found = self.dates.iter().enumerate().filter(|(_, (qualifiers, ..))| fit(qualifiers));
            if let Some((index, (_, date, _))) = found.next() {
                let same = found.all(|(_, (_, other, _))| other == date);
                return if same { Some((index, self.moment(*date)?)) } else { None };
            }
        }
        None
    }

    fn report(mut self, address: u8) -> Report<Identity> {
        let mut used = vec![false; self.dates.len()];
        let found: Vec<Option<Moment>> = self
            .readings
            .iter()
            .map(|reading| {
                let Qualifiers { storage, function, .. } = reading.qualifiers;
                if storage == 0 && function == Function::Instantaneous {
                    return None;
                }
                let (index, moment) = self.date_of(reading.qualifiers)?;
                if let Some(used) = used.get_mut(index) {
                    *used = true;
                }
                Some(moment)
            })
            .collect();
        for (reading, at) in self.readings.iter_mut().zip(found) {
            reading.at = at;
        }
        let dates = std::mem::take(&mut self.dates);
        for ((qualifiers, date, timed), used) in dates.into_iter().zip(used) {
            if !used {
                self.inform(if timed { "date_time" } else { "date" }, qualifiers, shown(date));
            }
        }
        let meter = match self.meter {
            Some(meter) => Identity::Own(meter.to_string()),
            None => Identity::Place { channel: Some(address) },
        };
        Report {
            meter,
            medium: self.medium,
            protocol: Cow::Borrowed("mbus"),
            measured_at: self.clock,
            clock: if self.clock.is_some() { Clock::Meter } else { Clock::Gateway },
            readings: self.readings,
            info: self.info,
            events: Vec::new(),
            unknown: self.unknown,
        }
    }

    /// The fixed structure: two counters with a unit each.
    fn fixed(&mut self, counters: [[u8; 4]; 2], units: [u8; 2], status: u8) {
        /// The second counter is of the same quantity, at the set day.
        const SAME_BUT_HISTORIC: u8 = 0x3E;
        let [first, second] = units;
        let historic = second == SAME_BUT_HISTORIC;
        let all_stored = status & 2 != 0;
        for (index, (counter, unit)) in
            counters.into_iter().zip([first, if historic { first } else { second }]).enumerate()
        {
            // Nothing is counted.
            if unit == 0x3F {
                continue;
            }
            let coding = if status & 1 == 0 { super::Coding::Bcd(4) } else { super::Coding::Binary(4) };
            let storage = u64::from(all_stored || (historic && index == 1));
            let qualifiers = Qualifiers { storage, ..Qualifiers::default() };
            let name_and_vif = fixed_unit(unit);
            let told = name_and_vif.and_then(|vib| {
                let record = Record::new(qualifiers, coding, vib, &[]);
                let vib = super::Vib { vif: *vib.first()?, text: None, extensions: vib.get(1..)? };
                let record = Record { data: Cow::Borrowed(&counter), vib, ..record };
                // A binary counter of the fixed structure has a sign.
                let meaning = vif::meaning(&vib)?;
                self.tell(&record, meaning)
            });
            if told.is_none() {
                self.unknown.push(Unknown { code: format!("73.{index}.{unit:02X}"), text: bytes(&counter, false) });
            }
        }
    }
}

/// The VIF that says the same as a unit of the fixed structure; None for what has none.
fn fixed_unit(unit: u8) -> Option<&'static [u8]> {
    const VIFS: [&[u8]; 0x37] = [
        &[0x03],
        &[0x04],
        &[0x05],
        &[0x06],
        &[0x07],
        &[0xFB, 0x00],
        &[0xFB, 0x01],
        &[0xFB, 0x81, 0x77],
        &[0xFB, 0x80, 0x7D],
        &[0x0B],
        &[0x0C],
        &[0x0D],
        &[0x0E],
        &[0x0F],
        &[0xFB, 0x08],
        &[0xFB, 0x09],
        &[0xFB, 0x89, 0x77],
        &[0xFB, 0x88, 0x7D],
        &[0x2B],
        &[0x2C],
        &[0x2D],
        &[0x2E],
        &[0x2F],
        &[0xFB, 0x28],
        &[0xFB, 0x29],
        &[0xFB, 0xA9, 0x77],
        &[0xFB, 0xA8, 0x7D],
        &[0x33],
        &[0x34],
        &[0x35],
        &[0x36],
        &[0x37],
        &[0xFB, 0x30],
        &[0xFB, 0x31],
        &[0xFB, 0xB1, 0x77],
        &[0xFB, 0xB0, 0x7D],
        &[0x10],
        &[0x11],
        &[0x12],
        &[0x13],
        &[0x14],
        &[0x15],
        &[0x16],
        &[0x17],
        &[0xFB, 0x10],
        &[0x38],
        &[0x39],
        &[0x3A],
        &[0x3B],
        &[0x3C],
        &[0x3D],
        &[0x3E],
        &[0x3F],
        &[0xBF, 0x77],
        &[0x58],
    ];
    match unit {
        0x39 => Some(&[0x6E]),
        unit => VIFS.get(usize::from(unit.checked_sub(2)?)).copied(),
    }
}

/// Highest byte first becomes lowest first; the length of a variable data stays in front.
fn turn(record: &mut Record<'_>) {
    let data = record.data.to_mut();
    let turned = if record.coding == super::Coding::Variable { data.get_mut(1..) } else { data.get_mut(..) };
    if let Some(turned) = turned {
        turned.reverse();
    }
}

/// A date as it stands in a text.
pub(crate) fn shown(date: Date) -> String {
    let two = |number: Option<i8>| number.map_or_else(|| "*".to_owned(), |number| format!("{number:02}"));
    match date {
        Date::Day { year, month, day } => format!("{year:04}-{month:02}-{day:02}"),
        Date::Time { clock: Civil { year, month, day, hour, minute, second }, summer } => {
            let summer = if summer { " summer time" } else { "" };
            format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{summer}")
        }
        Date::OfDay { hour, minute, second } => format!("{hour:02}:{minute:02}:{second:02}"),
        Date::Every { year, month, day, hour, minute } => {
            let year = year.map_or_else(|| "*".to_owned(), |year| format!("{year:04}"));
            format!("every {year}-{}-{} {}:{}", two(month), two(day), two(hour), two(minute))
        }
        Date::NotSet => "not set".to_owned(),
    }
}

/// Not by `write!`, which takes several times as long: the manufacturer's own data may be half of a frame.
fn bytes(data: &[u8], capital: bool) -> String {
    let mut text = String::with_capacity(data.len().saturating_mul(2));
    for byte in data {
        let digits = [byte >> 4, byte & 0x0F].into_iter().filter_map(|digit| char::from_digit(digit.into(), 16));
        text.extend(digits.map(|digit| if capital { digit.to_ascii_uppercase() } else { digit }));
    }
    text
}
