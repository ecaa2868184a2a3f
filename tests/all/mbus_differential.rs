//! Frames and records as the crate `m-bus-parser` reads them: a second opinion on every table. Where the two
//! disagree, a list here says why; what is not in the list is a failure, and so is what no longer disagrees.

use std::{collections::BTreeSet, fmt};

use m_bus_parser::{
    WiredFrame,
    user_data::{
        UserDataBlock,
        data_information::{DataFieldCoding, DataType, FunctionField, Month, SingleEveryOrInvalid},
        data_record::DataRecord,
        parse_application_layer, parse_data_records, parse_data_records_with_header,
        value_information::ValueLabel,
        variable_user_data::DataRecordError,
    },
};
use meterkast::{
    mbus::{
        Answer, Coding, Frame, Item, Record, Records, control,
        value::{self, Date, Value},
        vif::{self, Base, Kind},
    },
    reading::{Function, Qualifiers},
};

use crate::samples::{Sample, mbus_frames};

/// What one of the two says of a record.
#[derive(Debug, Clone, PartialEq)]
struct Said {
    /// Function, storage, tariff, subunit.
    qualifiers: (Function, u64, u64, u64),
    what: What,
    unit: String,
}

#[derive(Debug, Clone, PartialEq)]
enum What {
    /// In the base unit of the table that the VIF is in.
    Number(f64),
    /// A number by its coding, of no value.
    NoNumber,
    /// A text, a date, raw bytes, nothing.
    Text(String),
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::NoNumber => f.write_str("no number"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl Said {
    fn agrees(&self, other: &Self) -> bool {
        let what = match (&self.what, &other.what) {
            (What::Number(one), What::Number(two)) => (one - two).abs() <= one.abs().max(two.abs()) * 1e-9,
            (one, two) => one == two,
        };
        what && self.qualifiers == other.qualifiers && self.unit == other.unit
    }

    /// What is different from the other, in words of this one.
    fn differing(&self, other: &Self) -> String {
        let mut parts = Vec::new();
        if self.qualifiers != other.qualifiers {
            parts.push(format!("{:?}", self.qualifiers));
        }
        if !(Self { what: other.what.clone(), ..self.clone() }).agrees(self) {
            parts.push(self.what.to_string());
        }
        if self.unit != other.unit {
            parts.push(format!("[{}]", self.unit));
        }
        parts.join(" ")
    }
}

fn bytes(data: &[u8]) -> What {
    What::Text(hex(data))
}

fn hex(data: &[u8]) -> String {
    data.iter().map(|byte| format!("{byte:02X}")).collect()
}

fn letters(text: impl Iterator<Item = u8>) -> What {
    What::Text(text.map(char::from).collect())
}

/// Year, month, day, hour, minute, second, as far as the type has them: None is every.
fn date_text(parts: &[Option<i32>]) -> What {
    let shown: Vec<String> = parts.iter().map(|part| part.map_or("*".to_owned(), |part| part.to_string())).collect();
    What::Text(shown.join("-"))
}

fn our_date(data: &[u8]) -> Option<What> {
    let part = |part: i8| Some(i32::from(part));
    Some(match value::date(data)? {
        Date::Day { year, month, day } => date_text(&[Some(year.into()), part(month), part(day)]),
        Date::Time { clock, .. } => {
            let parts = [part(clock.month), part(clock.day), part(clock.hour), part(clock.minute), part(clock.second)];
            let parts = [&[Some(clock.year.into())], &parts[..]].concat();
            date_text(if data.len() == 6 { &parts } else { &parts[..5] })
        }
        Date::OfDay { hour, minute, second } => date_text(&[part(hour), part(minute), part(second)]),
        Date::Every { year, month, day, hour, minute } => {
            let [month, day, hour, minute] = [month, day, hour, minute].map(|part| part.map(i32::from));
            let parts = [year.map(i32::from), month, day, hour, minute];
            date_text(if data.len() == 2 { &parts[..3] } else { &parts })
        }
        Date::NotSet => What::Text("no date".to_owned()),
    })
}

fn ours(item: &Item<'_>) -> Said {
    let record = match item {
        Item::Record(record) => record,
        Item::Manufacturer { data, .. } | Item::Reserved(data) => {
            return Said { qualifiers: (Function::Instantaneous, 0, 0, 0), what: bytes(data), unit: String::new() };
        }
    };
    let Qualifiers { storage, tariff, subunit, function } = record.qualifiers;
    let meaning = vif::meaning(&record.vib);
    let kind = meaning.as_ref().map(|meaning| meaning.kind.clone());
    let (unit, exponent) = match &kind {
        Some(Kind::Amount { base, exponent }) => (their_unit(*base).to_owned(), *exponent),
        Some(Kind::Plain { exponent, .. }) => (String::new(), *exponent),
        Some(Kind::Identifier | Kind::Flags | Kind::Date) => (String::new(), 0),
        None => ("unknown".to_owned(), 0),
        Some(other) => panic!("{other:?} is new: compare it"),
    };
    let signed = !matches!(kind, Some(Kind::Identifier | Kind::Flags));
    let what = match record.value(signed) {
        _ if kind == Some(Kind::Date) => our_date(&record.data).unwrap_or(What::NoNumber),
        Value::Nothing => What::Text("nothing".to_owned()),
        Value::Number(number) => {
            number.shift(exponent).map_or(What::NoNumber, |number| What::Number(number.to_string().parse().unwrap()))
        }
        Value::NotANumber => What::NoNumber,
        Value::TooLong => What::Text("too long".to_owned()),
        Value::Text(text) => letters(text.into_iter()),
        Value::Bytes(data) => bytes(&data),
    };
    Said { qualifiers: (function, storage, tariff.into(), subunit.into()), what, unit }
}

/// Our base units in the words of theirs.
const fn their_unit(base: Base) -> &'static str {
    match base {
        Base::WattHour => "Watt Hour",
        Base::Joule => "Joul",
        Base::Calorie => "Calorie",
        Base::VarHour => "ReactiveWatt Hour",
        Base::VoltAmpereHour => "ApparentWatt Hour",
        Base::CubicMetre => "Meter^3",
        Base::CubicFoot => "Feet^3",
        Base::Gallon => "AmericanGallon",
        Base::Kilogram => "Kilogram",
        Base::Tonne => "Tonne",
        Base::Watt => "Watt",
        Base::JoulePerHour => "Joul Hour^-1",
        Base::Var => "ReactiveWatt",
        Base::VoltAmpere => "ApparentWatt",
        Base::CubicMetrePerHour => "Meter^3 Hour^-1",
        Base::CubicMetrePerMinute => "Meter^3 Minute^-1",
        Base::CubicMetrePerSecond => "Meter^3 Second^-1",
        Base::GallonPerMinute => "AmericanGallon Minute^-1",
        Base::GallonPerHour => "AmericanGallon Hour^-1",
        Base::KilogramPerHour => "Kilogram Hour^-1",
        Base::Celsius => "Celsius",
        Base::Kelvin => "Kelvin",
        Base::Fahrenheit => "Fahrenheit",
        Base::Bar => "Bar",
        Base::Volt => "Volt",
        Base::Ampere => "Ampere",
        Base::Hertz => "Hertz",
        Base::Degree => "Degree",
        Base::Percent => "Percent",
        Base::Decibel => "DecibelMilliWatt",
        Base::Second => "Second",
        Base::Minute => "Minute",
        Base::Hour => "Hour",
        Base::Day => "Day",
        Base::Month => "Month",
        Base::Year => "Year",
        Base::None => "",
        _ => panic!("a base unit is new: compare it"),
    }
}

fn part(part: &SingleEveryOrInvalid<impl Copy + Into<i32>>) -> Option<i32> {
    match part {
        SingleEveryOrInvalid::Single(value) => Some((*value).into()),
        _ => None,
    }
}

/// The months of a date of theirs. Month 0 and 13 are no date, which they say of the month alone.
fn their_date(month: &SingleEveryOrInvalid<Month>, parts: impl FnOnce(Option<i32>) -> Vec<Option<i32>>) -> What {
    match month {
        SingleEveryOrInvalid::Single(month) => date_text(&parts(Some(*month as i32 + 1))),
        SingleEveryOrInvalid::Every() => date_text(&parts(None)),
        _ => What::Text("no date".to_owned()),
    }
}

fn theirs(record: &Result<DataRecord<'_>, DataRecordError>) -> Result<Said, String> {
    let record = record.as_ref().map_err(|error| format!("{error:?}"))?;
    let (mut unit, mut exponent) = (String::new(), 0);
    if let Some(information) = record.value_information() {
        let units = information.units().map(|unit| match unit.exponent {
            1 => format!("{:?}", unit.name),
            power => format!("{:?}^{power}", unit.name),
        });
        (unit, exponent) = (units.collect::<Vec<_>>().join(" "), information.decimal_scale_exponent as i32);
        if information.labels().any(|label| matches!(label, ValueLabel::Reserved | ValueLabel::ManufacturerSpecific)) {
            (unit, exponent) = ("unknown".to_owned(), 0);
        }
    }
    let qualifiers = record.data_information().map_or((Function::Instantaneous, 0, 0, 0), |information| {
        let function = match information.function_field {
            FunctionField::MaximumValue => Function::Maximum,
            FunctionField::MinimumValue => Function::Minimum,
            FunctionField::ValueDuringErrorState => Function::Error,
            _ => Function::Instantaneous,
        };
        (function, information.storage_number, information.tariff, information.device)
    });
    let what = match record.value() {
        None => What::Text("nothing".to_owned()),
        Some(DataType::Number(number) | DataType::LossyNumber(number)) if !number.is_finite() => What::NoNumber,
        Some(DataType::Number(number) | DataType::LossyNumber(number)) => {
            let real = record.data_information().is_some_and(|it| it.data_field_coding == DataFieldCoding::Real32Bit);
            // They have all digits of the binary fraction, we the fewest that read back the same.
            let number = if real { (*number as f32).to_string().parse().unwrap() } else { *number };
            What::Number(number * 10f64.powi(exponent))
        }
        Some(DataType::Text(_)) => {
            let text = &record.raw_bytes()[record.data_record_header.get_size() + 1..];
            letters(text.iter().rev().copied())
        }
        Some(DataType::Date(day, month, year)) => their_date(month, |month| vec![part(year), month, part(day)]),
        Some(DataType::DateTime(day, month, year, hour, minute)) => {
            their_date(month, |month| vec![part(year), month, part(day), part(hour), part(minute)])
        }
        Some(DataType::DateTimeWithSeconds(day, month, year, hour, minute, second)) => {
            their_date(month, |month| vec![part(year), month, part(day), part(hour), part(minute), part(second)])
        }
        Some(DataType::ManufacturerSpecific(data)) => bytes(data),
        Some(other) => What::Text(format!("{other:?}")),
    };
    Ok(Said { qualifiers, what, unit })
}

/// A disagreement that is known: the record's head from DIF to the last VIFE, or the first and the last of several,
/// or a frame's name; what they say, what we say (a star at the end stands for anything), and why we say it.
type Known = (&'static str, &'static str, &'static str, &'static str);

const COMPOSED: &[Known] = &[
    // Dates.
    ("026C", "2081-1-1", "1981-1-1", "81 to 99 without a century is of the last one"),
    ("026C", "no date", "*-*-1", "month 15 is every month"),
    ("026D", "InsufficientData", "2013-12-31 []", "two bytes are a date, whatever the VIF"),
    ("036D", "InsufficientData", "23-59-30 []", "three bytes are a time of day, type J"),
    ("046D", "2012-12-*-23-59", "2012-12-31-23-59", "day 31 is no mark in type F: 0 is every day"),
    ("046D", "2012-12-30-23-60", "no date", "no hour has a minute 60"),
    ("046D", "2014-3-12-14-23", "no date", "bit 7 of the minute says invalid"),
    ("066D", "2012-12-30-23-59-30", "no date", "bit 7 of the minute says invalid"),
    // Numbers.
    ("0713", "9223372036854776", "too long", "19 digits are more than a Decimal holds"),
    ("5713", "9223372036854776", "too long", "19 digits are more than a Decimal holds"),
    ("A7E40113", "9223372036854776", "too long", "19 digits are more than a Decimal holds"),
    ("F7FFFFFFFFFFFFFFFFFF7F13", "9223372036854776", "too long", "19 digits are more than a Decimal holds"),
    // VIF.
    (
        "046F",
        "DataInformationError(Unimplemented*",
        "12345 [unknown]",
        "reserved: kept raw, and the next record is read",
    ),
    ("047B", "[]", "[unknown]", "7B and 7D need a VIFE: without it they say nothing"),
    ("047D", "[]", "[unknown]", "7B and 7D need a VIFE: without it they say nothing"),
    ("04FB06", "1234.5 []", "12345 [unknown]", "the coefficient of performance is not supported"),
    ("04FB22", "12345 [unknown]", "1234.5 [AmericanGallon]", "gallons by the edition of 2004, as old meters send them"),
    ("04FB23", "1234.5 [Degree]", "12345 [AmericanGallon]", "gallons by the edition of 2004; a phase is at 2B"),
    ("04FB24", "12345 [unknown]", "12.345 [AmericanGallon Minute^-1]", "gallons by the edition of 2004"),
    ("04FB25", "[unknown]", "[AmericanGallon Minute^-1]", "gallons by the edition of 2004"),
    ("04FB26", "[unknown]", "[AmericanGallon Hour^-1]", "gallons by the edition of 2004"),
    ("04FB68..04FB6E", "[HCAUnit]", "[unknown]", "rating factors of heat cost allocators are not supported"),
    ("04FD00..04FD07", "[LocalMoneyCurrency]", "[]", "the currency is not said"),
    ("04FD19", "[]", "[unknown]", "a security key is no reading"),
    ("04FD1C", "[Symbol Second^-1]", "[]", "a count: the register's name says of what"),
    ("04FD1D", "[BitTime]", "[]", "a count: the register's name says of what"),
    ("04FD23", "[]", "[unknown]", "the description of a tariff is not supported"),
    ("04FD2A", "[unknown]", "[]", "operator specific data in table 14"),
    ("04FD2B..04FD2C", "[unknown]", "[Second]", "time point, and duration since the last readout, in table 14"),
    ("04FD2D", "[unknown]", "[Minute]", "duration since the last readout in table 14"),
    ("04FD2E", "[unknown]", "[Hour]", "duration since the last readout in table 14"),
    ("04FD2F", "[unknown]", "[Day]", "duration since the last readout in table 14"),
    ("04FD30", "12345", "no date", "start of the tariff in table 14"),
    ("04FD31", "[]", "[Minute]", "duration of the tariff in table 14; theirs is at 3B"),
    ("04FD32", "[Second]", "[Hour]", "duration of the tariff in table 14; theirs is at 3C"),
    ("04FD33", "[Meter]", "[Day]", "duration of the tariff in table 14; theirs is at 3D"),
    ("04FD34", "[Hour]", "[Second]", "period of the tariff in table 14; theirs is at 3E"),
    ("04FD35", "[Day]", "[Minute]", "period of the tariff in table 14; theirs is at 3F"),
    ("04FD36", "[unknown]", "[Hour]", "period of the tariff in table 14"),
    ("04FD37", "[unknown]", "[Day]", "period of the tariff in table 14"),
    ("04FD38", "[unknown]", "[Month]", "period of the tariff in table 14"),
    ("04FD39", "[unknown]", "[Year]", "period of the tariff in table 14"),
    ("04FD65", "12345", "no date", "the time of a day's change is a date"),
    ("04FD6F", "[Hour]", "[Year]", "hours, days, months, years by the lowest two bits"),
    ("04FD70", "12345 [Second]", "no date []", "the time of the battery's change is a date"),
    ("04FD72..04FD73", "[]", "[unknown]", "deviations of summer time and listening windows are not supported"),
    ("04FD74", "[]", "[Day]", "what is left of the battery is in days"),
    ("04FD76", "[]", "[unknown]", "a container of the manufacturer's own"),
    // VIFE.
    ("048608..04860A", "12345000 [Watt Hour]", "12345 [unknown]", "reserved among the record's errors"),
    ("048613", "12345000 [Watt Hour]", "12345 [unknown]", "profiles are not supported"),
    ("048619..04861B", "12345000 [Watt Hour]", "12345 [unknown]", "reserved among the record's errors"),
    ("04861E..04861F", "12345000 [Watt Hour]", "12345 [unknown]", "profiles are not supported"),
    ("048620..04862F", "[Watt Hour *", "[Watt Hour]", "what a rate is of stands in the register's name"),
    ("048630", "12345 *", "12345000 [Watt Hour]", "per kWh stands in the register's name"),
    ("048631", "0.012345 *", "12345000 [Watt Hour]", "per GJ stands in the register's name"),
    ("048632", "12345 *", "12345000 [Watt Hour]", "per kW stands in the register's name"),
    ("048633..048638", "[Watt Hour *", "[Watt Hour]", "what a rate is of stands in the register's name"),
    ("048639", "12345000 [Watt Hour]", "no date []", "the start date of an energy is a date and no energy"),
    ("04863D", "12345000000 [BritishThermalUnit]", "12345 [unknown]", "non-metric units are not supported"),
    ("04863F", "12345000 [Watt Hour]", "12345 [unknown]", "declarations of OBIS codes are not supported"),
    ("048641", "12345000 [Watt Hour]", "12345 []", "how often a limit was exceeded is a count"),
    ("048642..048647", "12345000 [Watt Hour]", "no date []", "when a limit was exceeded is a date"),
    ("048649", "12345000 [Watt Hour]", "12345 []", "how often a limit was exceeded is a count"),
    ("04864A..04864F", "12345000 [Watt Hour]", "no date []", "when a limit was exceeded is a date"),
    ("048650..048667", "12345000 [Watt Hour *", "12345 [*", "how long it lasted is a time and no energy"),
    ("04866A..04866F", "12345000 [Watt Hour]", "no date []", "when it began and ended is a date"),
    ("048678", "12345000", "12345", "the number is the correction itself, in 0.001 of the VIF's unit"),
    ("048679", "12345000", "123450", "the number is the correction itself, in 0.01 of the VIF's unit"),
    ("04867A", "12345000", "1234500", "the number is the correction itself, in 0.1 of the VIF's unit"),
    (
        "0493FC0C..0493FC15",
        "12.345 [Meter^3]",
        "12345 [unknown]",
        "not supported: kept raw rather than half understood",
    ),
];

const REAL: &[Known] = &[
    ("026C", "2009-12-24", "2024-8-28", "CI 76 has the highest byte of a date first, too"),
    ("026C", "2009-2-3", "2016-3-18", "CI 76 has the highest byte of a date first, too"),
    (
        "02FC0348522574",
        "DataInformationError(*",
        "*",
        "the text stands directly behind its VIF, and the VIFE behind the text",
    ),
    ("046D", "2000-12-*-10-41", "2000-12-31-10-41", "day 31 is no mark in type F: 0 is every day"),
    ("046D", "2024-10-*-12-6", "2024-10-31-12-6", "day 31 is no mark in type F: 0 is every day"),
    ("84016D", "2011-12-*-23-59", "2011-12-31-23-59", "day 31 is no mark in type F: 0 is every day"),
    ("046D", "2015-7-9-21-33", "no date", "bit 7 of the minute says invalid"),
    ("047E", "208076800", "26380", "CI 76 has the highest byte of a binary number first, too"),
    ("047E", "305790976", "14866", "CI 76 has the highest byte of a binary number first, too"),
    (
        "049028",
        "[Meter^3 Increment InputPulseOnChannel0^-1]",
        "[Meter^3]",
        "what a rate is of stands in the register's name",
    ),
    ("0C7B", "[]", "[unknown]", "7B needs a VIFE: without it it says nothing"),
    ("0D7C025750", "113617102758938510", "*", "16 bytes are no number that anything could hold"),
    ("manufacturer's own", "(Maximum, 0, 0, 0)", "(Instantaneous, 0, 0, 0)", "DIF 1F has no function"),
    ("libmbus-error-frames/too_many_dife.hex", "accepted", "rejected", "eleven DIFE are one too many"),
    (
        "libmbus-test-frames/electricity-meter-2.hex",
        "rejected",
        "accepted",
        "a number on the nameplate may have hex digits",
    ),
];

const FRAMES: &[Known] = &[
    ("answer and more", "rejected", "accepted", "a frame is read off the front of what came in"),
    ("no second start", "accepted", "rejected", "both start bytes are part of the format"),
    ("no application layer", "accepted", "rejected", "no frame with a length is shorter than 3"),
    ("reset", "accepted", "rejected", "a master's request is no answer"),
];

/// Every disagreement is known, and every known one was found.
fn hold(known: &[Known], found: &BTreeSet<Found>) {
    let fits = |pattern: &str, text: &str| match pattern.strip_suffix('*') {
        Some(begin) => text.starts_with(begin),
        None => text == pattern,
    };
    let ends = |known: &Known| known.0.split_once("..").unwrap_or((known.0, known.0));
    let stands_for = |known: &Known, (head, theirs, ours): &Found| {
        let (first, last) = ends(known);
        head.len() == first.len() && (first..=last).contains(&&**head) && fits(known.1, theirs) && fits(known.2, ours)
    };
    let new = found.iter().filter(|found| !known.iter().any(|known| stands_for(known, found)));
    let mut wrong: Vec<String> = new.map(|found| format!("not listed: {found:?}")).collect();
    for known in known {
        let (first, last) = ends(known);
        let occurs = |head| found.iter().any(|found| found.0 == head && stands_for(known, found));
        if !(occurs(first) && occurs(last)) {
            wrong.push(format!("occurs no longer: {known:?}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// A disagreement: the head of the record, or of a frame its name; what they say; what we say.
type Found = (String, String, String);

fn head(item: &Item<'_>) -> String {
    match item {
        Item::Record(record) => hex(&record.head),
        _ => "manufacturer's own".to_owned(),
    }
}

/// Compares a frame and its records; returns how many records were compared.
fn compare(name: &str, frame: &[u8], found: &mut BTreeSet<Found>) -> usize {
    let mut disagree = |what: &str, theirs: String, ours: String| found.insert((what.to_owned(), theirs, ours));
    let show = |accepted: bool| if accepted { "accepted" } else { "rejected" }.to_owned();
    let (our_frame, their_frame) = (Frame::parse(frame), WiredFrame::try_from(frame));
    if our_frame.is_ok() != their_frame.is_ok() {
        disagree(name, show(their_frame.is_ok()), show(our_frame.is_ok()));
    }
    let (Ok((our_frame, _)), Ok(their_frame)) = (our_frame, their_frame) else { return 0 };
    let (Frame::Long { ci, data, .. }, WiredFrame::LongFrame { data: their_data, .. }) = (our_frame, their_frame)
    else {
        return 0;
    };
    let (answer, block) = (Answer::parse(&our_frame), parse_application_layer(their_data));
    if answer.is_ok() != block.is_ok() {
        disagree(name, show(block.is_ok()), show(answer.is_ok()));
    }
    let (Ok(_), Ok(block)) = (answer, block) else { return 0 };
    // Whatever the header says of encryption: some meters say it of plain text.
    let (header, their_records) = match &block {
        UserDataBlock::VariableDataStructureWithLongTplHeader { long_tpl_header, variable_data_block, .. } => {
            (12, parse_data_records_with_header(variable_data_block, long_tpl_header))
        }
        UserDataBlock::VariableDataStructureWithShortTplHeader { variable_data_block, .. } => {
            (4, parse_data_records(variable_data_block))
        }
        UserDataBlock::VariableDataStructureWithoutTplHeader { variable_data_block, .. } => {
            (0, parse_data_records(variable_data_block))
        }
        _ => return 0,
    };
    let (mut compared, mut their_records, mut lost) = (0, their_records, false);
    for item in Records::new(&data[header..]) {
        let record = their_records.next();
        let (Ok(mut item), Some(record)) = (item.clone(), &record) else {
            // After some errors they give up.
            if !lost && (item.is_ok() || record.is_some_and(|record| record.is_ok())) {
                disagree(name, show(item.is_err()), show(item.is_ok()));
            }
            break;
        };
        let head = head(&item);
        if let Item::Record(record) = &mut item {
            // CI 76 has the highest byte first.
            if ci == 0x76 {
                let data = record.data.to_mut();
                let from = usize::from(record.coding == Coding::Variable);
                data[from..].reverse();
            }
        }
        let ours = ours(&item);
        match theirs(record) {
            Ok(theirs) if theirs.agrees(&ours) => {}
            Ok(theirs) => {
                disagree(&head, theirs.differing(&ours), ours.differing(&theirs));
            }
            // Digits that are none; they go on behind it.
            Err(error) if error.contains("InvalidValueInformation") && ours.what == What::NoNumber => {}
            Err(error) => {
                disagree(&head, error.clone(), format!("{} [{}]", ours.what, ours.unit));
                lost = true;
            }
        }
        compared += 1;
    }
    compared
}

/// An answer with these records.
fn answer(records: &[Record<'_>]) -> Vec<u8> {
    let mut data = vec![0x78, 0x56, 0x34, 0x12, 0x2D, 0x2C, 0x1B, 0x04, 0x01, 0x00, 0x00, 0x00];
    records.iter().for_each(|record| record.emit(&mut data));
    Frame::Long { control: control::RSP_UD, address: 5, ci: 0x72, data: &data }.emit()
}

/// Each coding, with values at its ends. Not the binary number of no bytes (E0), on which theirs panics.
const CODINGS: &[(Coding, &[&[u8]])] = &[
    (Coding::Nothing, &[&[]]),
    (Coding::Selection, &[&[]]),
    (Coding::Binary(1), &[&[0], &[0x7F], &[0x80], &[0xFF]]),
    (Coding::Binary(2), &[&[0x34, 0x12], &[0xFF, 0x7F], &[0, 0x80]]),
    (Coding::Binary(3), &[&[0x56, 0x34, 0x12], &[0xFF, 0xFF, 0xFF]]),
    (Coding::Binary(4), &[&[0x78, 0x56, 0x34, 0x12], &[0, 0, 0, 0x80]]),
    (Coding::Binary(6), &[&[1, 2, 3, 4, 5, 6], &[0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]]),
    (Coding::Binary(8), &[&[1, 2, 3, 4, 5, 6, 7, 0], &[0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]]),
    (Coding::Binary(8), &[&[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F]]),
    (Coding::Real, &[&[0, 0, 0xC0, 0x3F], &[0xCD, 0xCC, 0xCC, 0xBD], &[0, 0, 0xC0, 0x7F], &[0, 0, 0x80, 0xFF]]),
    (Coding::Bcd(1), &[&[0x42], &[0xF2], &[0xAA]]),
    (Coding::Bcd(2), &[&[0x34, 0x12], &[0x34, 0xF2], &[0xF4, 0x12]]),
    (Coding::Bcd(3), &[&[0x56, 0x34, 0x12], &[0xBD, 0xEB, 0xDD]]),
    (Coding::Bcd(4), &[&[0x78, 0x56, 0x34, 0x12], &[0, 0, 0, 0xF0]]),
    (Coding::Bcd(6), &[&[0x99; 6], &[0x12, 0x90, 0x78, 0x56, 0x34, 0xF2]]),
    (Coding::Variable, &[&[0], &[3, b'c', b'b', b'a'], &[1, 0xE9], &[0xC2, 0x34, 0x12], &[0xD2, 0x34, 0x12]]),
    (Coding::Variable, &[&[0xC9, 9, 9, 9, 9, 9, 9, 9, 9, 9], &[0xE2, 1, 2], &[0xC0]]),
];

/// Each kind of date, with marks for every and for none.
const DATES: &[(u8, &[u8])] = &[
    (0x6C, &[0xBF, 0x1C]),
    (0x6C, &[0x1C, 0x38]),
    (0x6C, &[0xFF, 0xFF]),
    (0x6C, &[0, 0]),
    (0x6C, &[0x21, 0xA1]),
    (0x6C, &[0xE1, 0xF7]),
    (0x6C, &[0x01, 0x1D]),
    (0x6C, &[0xE1, 0xFF]),
    (0x6D, &[0x17, 0x2E, 0xCC, 0x13]),
    (0x6D, &[0x97, 0x2E, 0xCC, 0x13]),
    (0x6D, &[0x17, 0x8E, 0xCC, 0x13]),
    (0x6D, &[0x3B, 0x17, 0x9F, 0x1C]),
    (0x6D, &[0x3C, 0x17, 0x9E, 0x1C]),
    (0x6D, &[0x00, 0x20, 0x21, 0xA1]),
    (0x6D, &[0x3F, 0x1F, 0xE1, 0xF1]),
    (0x6D, &[0x1E, 0x3B, 0x77, 0x9E, 0x1C, 0x34]),
    (0x6D, &[0x1E, 0xBB, 0x17, 0x9E, 0x1C, 0x34]),
    (0x6D, &[0xBF, 0x1C]),
    (0x6D, &[0x1E, 0x3B, 0x17]),
];

#[test]
fn composed_records_say_the_same() {
    let mut found = BTreeSet::new();
    let mut compared = 0;
    let mut try_one = |qualifiers, coding, vib: &[u8], data: &[u8]| {
        let frame = answer(&[Record::new(qualifiers, coding, vib, data)]);
        compared += compare("composed", &frame, &mut found);
    };
    let all = [
        Qualifiers::default(),
        Qualifiers { storage: 1, function: Function::Maximum, ..Qualifiers::default() },
        Qualifiers { storage: 40, tariff: 2, subunit: 1, function: Function::Minimum },
        Qualifiers { storage: (1 << 41) - 1, tariff: (1 << 20) - 1, subunit: 1023, function: Function::Error },
    ];
    for qualifiers in all {
        for (coding, values) in CODINGS {
            for data in *values {
                try_one(qualifiers, *coding, &[0x13], data);
            }
        }
    }
    for (vif, data) in DATES {
        try_one(Qualifiers::default(), Coding::Binary(data.len() as u8), &[*vif], data);
    }
    let data = [0x39, 0x30, 0, 0];
    for code in 0..=0x7Fu8 {
        for vib in [&[code][..], &[0xFB, code], &[0xFD, code], &[0x86, code], &[0x93, 0xFC, code]] {
            // A text follows.
            if vib != [0x7C] {
                try_one(Qualifiers::default(), Coding::Binary(4), vib, &data);
            }
        }
    }
    println!("{compared} records compared");
    assert!(compared > 800, "only {compared} records were compared");
    hold(COMPOSED, &found);
}

#[test]
fn frames_are_told_apart_alike() {
    let ack = Frame::Ack.emit();
    let short = Frame::Short { control: control::REQ_UD2, address: 5 }.emit();
    let request = Frame::Long { control: control::SND_UD, address: 5, ci: 0x50, data: &[] }.emit();
    let long = answer(&[Record::new(Qualifiers::default(), Coding::Binary(1), &[0x13], &[7])]);
    let but = |at: usize, byte: u8| {
        let mut frame = long.clone();
        frame[at] = byte;
        frame
    };
    let mut found = BTreeSet::new();
    for (name, frame) in [
        ("acknowledgement", ack),
        ("short frame", short.clone()),
        ("short frame without its end", short[..4].to_vec()),
        ("request", request),
        ("answer", long.clone()),
        ("answer without its end", long[..long.len() - 1].to_vec()),
        ("answer and more", [&long[..], &[0xE5]].concat()),
        ("two lengths", but(1, 0)),
        ("no second start", but(3, 0x16)),
        ("wrong checksum", but(long.len() - 2, 0)),
        ("wrong stop", but(long.len() - 1, 0)),
        ("no application layer", vec![0x68, 2, 2, 0x68, 8, 5, 13, 0x16]),
        ("no header", Frame::Long { control: control::RSP_UD, address: 5, ci: 0x78, data: &[1, 0x13, 7] }.emit()),
        ("short header", Frame::Long { control: control::RSP_UD, address: 5, ci: 0x7A, data: &[1, 0, 0, 0] }.emit()),
        ("error", Frame::Long { control: control::RSP_UD, address: 5, ci: 0x70, data: &[8] }.emit()),
        ("reset", Frame::Long { control: control::RSP_UD, address: 5, ci: 0x50, data: &[0] }.emit()),
    ] {
        compare(name, &frame, &mut found);
    }
    hold(FRAMES, &found);
}

#[test]
fn real_frames_say_the_same() {
    let mut found = BTreeSet::new();
    let mut compared = 0;
    for Sample { name, bytes } in mbus_frames() {
        compared += compare(&name, &bytes, &mut found);
    }
    println!("{compared} records compared");
    if compared > 0 {
        hold(REAL, &found);
    }
}
