//! A message as exact integers, and beside them the text that says what they mean.
//!
//! Enters: a [`Report`]. Leaves: its [`Layout`] (register, unit, decimals and qualifiers of each
//! reading, the same from telegram to telegram) with the integers of this telegram, and its remark
//! (info, events, unknown). All three read back to what entered. Journal and store keep them so.
//!
//! What a meter on a bus says of its own clock is info, and another text in each readout. So that not each makes a remark of its
//! own, that line becomes integers too, if its text is exactly an instant's; any other text stays in the remark.
//!
//! Not supported: instants finer than a millisecond and UTC offsets finer than a minute are cut to that; in info they are kept as text.

use std::{
    borrow::Cow,
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use serde::{Deserialize, Serialize};

use crate::{
    moment::Moment,
    reading::{Event, Function, METER_TIME, Qualifiers, Reading, Register, Report, Suspect, Unknown},
    unit::{Decimal, Unit},
};

/// What the values of a message mean, in the order in which the meter sent them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    columns: Vec<Column>,
    /// The place among the info of the line that is taken out of it: what the meter's own clock said.
    meter_time: Option<usize>,
}

impl Hash for Layout {
    /// Of its length and ends only: the layouts of a house are few, and are hashed for each message.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.columns.len().hash(state);
        for column in [self.columns.first(), self.columns.last()].into_iter().flatten() {
            column.register.hash(state);
            column.suspect.is_some().hash(state);
        }
    }
}

/// What one reading is, apart from its value.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Column {
    register: Register,
    unit: Unit,
    scale: u8,
    qualifiers: Qualifiers,
    suspect: Option<Suspect>,
    /// Whether the reading has a time of its own.
    dated: bool,
    /// Unit and decimals as the meter counts, where they were converted.
    raw: Option<(Unit, u8)>,
}

/// A row that this program did not write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Not the text of a layout.
    #[error("`{0}` is no layout")]
    Text(String),
    /// Too few values, too many, or out of range.
    #[error("the values do not fit their layout")]
    Values,
    /// Not the text of a remark.
    #[error("`{0}` is no remark")]
    Remark(String),
}

impl Layout {
    /// Takes a report apart; what is left of it is its [`remark`]. The values: first the digits of each reading (its value x
    /// 10^scale), then, reading by reading, what only some have: the time (ms since 1970 UTC, then minutes east of UTC)
    /// and the digits as the meter counts; last what the meter's own clock said, as a time.
    pub fn split(report: &Report<String>) -> (Self, Vec<i64>) {
        (Self::of(report), Self::values(report))
    }

    fn of(report: &Report<String>) -> Self {
        let meter_time = meter_time(report).map(|(place, _)| place);
        Self { columns: report.readings.iter().map(Column::of).collect(), meter_time }
    }

    /// The values of [`split`](Self::split) alone.
    pub fn values(report: &Report<String>) -> Vec<i64> {
        let mut values = Vec::with_capacity(report.readings.len().saturating_add(2));
        values.extend(report.readings.iter().map(|reading| reading.value.mantissa()));
        for reading in &report.readings {
            values.extend(reading.at.into_iter().flat_map(integers));
            values.extend(reading.raw.iter().map(|raw| raw.0.mantissa()));
        }
        values.extend(meter_time(report).into_iter().flat_map(|(_, at)| integers(at)));
        values
    }

    /// Whether it is the layout of a report.
    fn fits(&self, report: &Report<String>) -> bool {
        self.columns.len() == report.readings.len()
            && self.columns.iter().zip(&report.readings).all(|(column, reading)| column.fits(reading))
            && self.meter_time == meter_time(report).map(|(place, _)| place)
    }

    /// Puts a report together again: gives one that is bare of them its readings, and what [`remark`] took from it. Where the remark
    /// is gone, what the meter's own clock said is all of its info. The error: the values are not of this layout, or the text is no
    /// remark.
    pub fn join(&self, values: &[i64], remark: Option<&str>, report: &mut Report<String>) -> Result<(), LayoutError> {
        let (digits, rest) = values.split_at_checked(self.columns.len()).ok_or(LayoutError::Values)?;
        let mut rest = rest.iter().copied();
        let readings = self.columns.iter().zip(digits).map(|(column, &digits)| column.reading(digits, &mut rest));
        report.readings = readings.collect::<Option<_>>().ok_or(LayoutError::Values)?;
        if let Some(text) = remark {
            set_remark(report, text)?;
        }
        if let Some(place) = self.meter_time {
            let at = moment(&mut rest).ok_or(LayoutError::Values)?;
            report.info.insert(place.min(report.info.len()), (METER_TIME.into(), at.to_string().into()));
        }
        if rest.next().is_some() { Err(LayoutError::Values) } else { Ok(()) }
    }

    /// As text: a JSON array with an object for each reading, which leaves out what is zero or none.
    /// `at` and `raw.value` are places in the values, so that SQL can find them. Where the meter's own clock is among them, the last
    /// object is `{"info":"meter_time","place":P,"at":A}`: line P of the info, whose time stands at A. Two layouts have the same
    /// text only if they are the same.
    pub fn to_text(&self) -> String {
        let mut next = self.columns.len();
        let mut place = |width: usize| {
            let place = next;
            next = next.saturating_add(width);
            place
        };
        let columns = self.columns.iter().map(|column| {
            Wire::Column(WireColumn {
                register: column.register.as_str().into(),
                unit: column.unit.as_str().into(),
                scale: column.scale,
                storage: column.qualifiers.storage,
                tariff: column.qualifiers.tariff,
                subunit: column.qualifiers.subunit,
                function: column.qualifiers.function.name().map(Cow::Borrowed),
                suspect: column.suspect.map(|suspect| suspect.name().into()),
                at: column.dated.then(|| place(2)),
                raw: column.raw.as_ref().map(|(unit, scale)| WireRaw {
                    unit: unit.as_str().into(),
                    scale: *scale,
                    value: place(1),
                }),
            })
        });
        let mut wire: Vec<Wire<'_>> = columns.collect();
        wire.extend(self.meter_time.map(|line| Wire::Info { info: METER_TIME.into(), place: line, at: place(2) }));
        // Strings and integers always serialise.
        serde_json::to_string(&wire).unwrap_or_default()
    }

    /// From the text that [`to_text`](Self::to_text) wrote, and from no other.
    pub fn from_text(text: &str) -> Result<Self, LayoutError> {
        let error = || LayoutError::Text(text.chars().take(64).collect());
        let wire: Vec<Wire<'_>> = serde_json::from_str(text).map_err(|_| error())?;
        let mut layout = Self { columns: Vec::with_capacity(wire.len()), meter_time: None };
        for entry in &wire {
            match entry {
                Wire::Column(column) => layout.columns.push(column.column().ok_or_else(error)?),
                Wire::Info { place, .. } => layout.meter_time = Some(*place),
            }
        }
        // Another name or order is another text.
        if layout.to_text() == text { Ok(layout) } else { Err(error()) }
    }
}

/// The different layouts of some reports. Most reports have one that is there, which is found without making theirs.
#[derive(Debug, Default)]
pub struct Layouts {
    all: Vec<Layout>,
    /// Their places, by what tells most of them apart.
    places: HashMap<u64, Vec<usize>>,
}

impl Layouts {
    /// The place of a report's layout among them; one that is new comes last.
    pub fn place(&mut self, report: &Report<String>) -> usize {
        let mut hasher = DefaultHasher::new();
        for reading in &report.readings {
            reading.register.hash(&mut hasher);
            (reading.qualifiers, reading.value.scale(), reading.suspect.is_some(), reading.at.is_some())
                .hash(&mut hasher);
        }
        let places = self.places.entry(hasher.finish()).or_default();
        let known = places.iter().find(|place| self.all.get(**place).is_some_and(|layout| layout.fits(report)));
        if let Some(place) = known {
            return *place;
        }
        let place = self.all.len();
        places.push(place);
        self.all.push(Layout::of(report));
        place
    }

    /// Their texts, by place.
    pub fn texts(&self) -> Vec<String> {
        self.all.iter().map(Layout::to_text).collect()
    }
}

/// An instant as it stands among the values.
fn integers(at: Moment) -> [i64; 2] {
    [at.millis(), i64::from(at.offset_minutes())]
}

/// The instant that stands next among the values.
fn moment(values: &mut impl Iterator<Item = i64>) -> Option<Moment> {
    Moment::from_millis(values.next()?, i32::try_from(values.next()?).ok()?)
}

/// What the meter's own clock said, and at which place of the info: the first line of that name whose text its integers give back.
fn meter_time(report: &Report<String>) -> Option<(usize, Moment)> {
    let lines = report.info.iter().enumerate().filter(|(_, (name, _))| name == METER_TIME);
    let mut instants = lines.filter_map(|(place, (_, text))| {
        let at = moment(&mut integers(text.parse().ok()?).into_iter())?;
        (at.to_string() == *text).then_some((place, at))
    });
    instants.next()
}

impl Column {
    fn of(reading: &Reading) -> Self {
        Self {
            register: reading.register.clone(),
            unit: reading.unit.clone(),
            scale: reading.value.scale(),
            qualifiers: reading.qualifiers,
            suspect: reading.suspect,
            dated: reading.at.is_some(),
            raw: reading.raw.as_ref().map(|raw| (raw.1.clone(), raw.0.scale())),
        }
    }

    fn fits(&self, reading: &Reading) -> bool {
        let raw = reading.raw.as_ref().map(|raw| (&raw.1, raw.0.scale()));
        self.register == reading.register
            && self.unit == reading.unit
            && self.scale == reading.value.scale()
            && self.qualifiers == reading.qualifiers
            && self.suspect == reading.suspect
            && self.dated == reading.at.is_some()
            && self.raw.as_ref().map(|(unit, scale)| (unit, *scale)) == raw
    }

    /// The reading with these digits; what only some readings have is taken from `rest`.
    fn reading(&self, digits: i64, rest: &mut impl Iterator<Item = i64>) -> Option<Reading> {
        Some(Reading {
            register: self.register.clone(),
            value: Decimal::new(digits, self.scale)?,
            unit: self.unit.clone(),
            qualifiers: self.qualifiers,
            at: match self.dated {
                true => Some(moment(rest)?),
                false => None,
            },
            suspect: self.suspect,
            raw: match &self.raw {
                Some((unit, scale)) => Some(Box::new((Decimal::new(rest.next()?, *scale)?, unit.clone()))),
                None => None,
            },
        })
    }
}

/// An object of a layout's text.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Wire<'a> {
    Column(WireColumn<'a>),
    Info { info: Cow<'a, str>, place: usize, at: usize },
}

#[derive(Serialize, Deserialize)]
struct WireColumn<'a> {
    register: Cow<'a, str>,
    unit: Cow<'a, str>,
    scale: u8,
    #[serde(default, skip_serializing_if = "is_default")]
    storage: u64,
    #[serde(default, skip_serializing_if = "is_default")]
    tariff: u32,
    #[serde(default, skip_serializing_if = "is_default")]
    subunit: u16,
    #[serde(default, skip_serializing_if = "is_default")]
    function: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "is_default")]
    suspect: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "is_default")]
    at: Option<usize>,
    #[serde(default, skip_serializing_if = "is_default")]
    raw: Option<WireRaw<'a>>,
}

#[derive(Serialize, Deserialize, PartialEq)]
struct WireRaw<'a> {
    unit: Cow<'a, str>,
    scale: u8,
    value: usize,
}

impl WireColumn<'_> {
    fn column(&self) -> Option<Column> {
        let function = match &self.function {
            Some(name) => Function::from_name(name)?,
            None => Function::Instantaneous,
        };
        Some(Column {
            register: Register::from_text(&self.register)?,
            unit: Unit::from_text(&self.unit)?,
            scale: self.scale,
            qualifiers: Qualifiers { storage: self.storage, tariff: self.tariff, subunit: self.subunit, function },
            suspect: match &self.suspect {
                Some(name) => Some(Suspect::from_name(name)?),
                None => None,
            },
            dated: self.at.is_some(),
            raw: match &self.raw {
                Some(raw) => Some((Unit::from_text(&raw.unit)?, raw.scale)),
                None => None,
            },
        })
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// `{"info":[[name,text]],"events":[[event,end,duration_s]],"unknown":[[code,text]]}`: lists, because
/// a meter may say a name twice and its order is kept.
#[derive(Serialize, Deserialize)]
struct WireRemark<'a> {
    info: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    events: Vec<(Cow<'a, str>, Option<String>, Option<u64>)>,
    unknown: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

/// What a report says besides what its [`Layout`] takes, as JSON text; None when it says nothing else.
pub fn remark(report: &Report<String>) -> Option<String> {
    let Report { info, events, unknown, .. } = report;
    let taken = meter_time(report).map(|(place, _)| place);
    if info.len() == usize::from(taken.is_some()) && events.is_empty() && unknown.is_empty() {
        return None;
    }
    let info = info.iter().enumerate().filter(|(place, _)| Some(*place) != taken);
    let wire = WireRemark {
        info: info.map(|(_, (name, text))| (name.as_ref().into(), text.as_ref().into())).collect(),
        events: events
            .iter()
            .map(|event| (event.event.as_ref().into(), event.end.map(|end| end.to_string()), event.duration_s))
            .collect(),
        unknown: unknown.iter().map(|unknown| ((&unknown.code).into(), (&unknown.text).into())).collect(),
    };
    serde_json::to_string(&wire).ok()
}

/// Gives a report back what [`remark`] took from it. The error: the text is no remark.
fn set_remark(report: &mut Report<String>, text: &str) -> Result<(), LayoutError> {
    let error = || LayoutError::Remark(text.chars().take(64).collect());
    let wire: WireRemark<'static> = serde_json::from_str(text).map_err(|_| error())?;
    report.info = wire.info.into_iter().map(|(name, text)| (name, Cow::Owned(text.into_owned()))).collect();
    report.unknown = wire
        .unknown
        .into_iter()
        .map(|(code, text)| Unknown { code: code.into_owned(), text: text.into_owned() })
        .collect();
    let event = |(event, end, duration_s): (_, Option<String>, _)| {
        Ok(Event { event, end: end.map(|end| end.parse()).transpose().map_err(|_| error())?, duration_s })
    };
    report.events = wire.events.into_iter().map(event).collect::<Result<_, _>>()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::{option, prelude::*, sample::select};

    use super::*;
    use crate::reading::{Clock, Info, Medium};

    fn report(readings: Vec<Reading>) -> Report<String> {
        Report {
            meter: "KAM-12345678-1B-04".into(),
            medium: Medium::Heat,
            protocol: "mbus".into(),
            measured_at: None,
            clock: Clock::Gateway,
            readings,
            info: Vec::new(),
            events: Vec::new(),
            unknown: Vec::new(),
        }
    }

    fn decimals() -> impl Strategy<Value = Decimal> {
        const MOST: i64 = 999_999_999_999_999_999;
        (-MOST..=MOST, 0u8..=18).prop_map(|(digits, scale)| Decimal::new(digits, scale).unwrap())
    }

    fn moments() -> impl Strategy<Value = Moment> {
        (-2_000_000_000_000i64..9_000_000_000_000, -840i32..=840)
            .prop_map(|(millis, offset)| Moment::from_millis(millis, offset).unwrap())
    }

    fn units() -> impl Strategy<Value = Unit> {
        "[!-~]{0,16}".prop_map(|text| Unit::from_text(&text).unwrap())
    }

    prop_compose! {
        fn readings()(
            register in "[a-z0-9_]{1,64}",
            value in decimals(),
            unit in units(),
            (storage, tariff, subunit) in any::<(u64, u32, u16)>(),
            function in select(vec![Function::Instantaneous, Function::Maximum, Function::Minimum, Function::Error]),
            at in option::of(moments()),
            suspect in option::of(select(vec![Suspect::Backwards, Suspect::TooFast])),
            raw in option::of((decimals(), units())),
        ) -> Reading {
            let register = Register::from_text(&register).unwrap();
            let qualifiers = Qualifiers { storage, tariff, subunit, function };
            Reading { register, value, unit, qualifiers, at, suspect, raw: raw.map(Box::new) }
        }
    }

    /// Any text; one of an instant; and what means an instant, but is not the text that is written of it.
    fn texts() -> impl Strategy<Value = String> {
        let nearly = (moments(), 0..8).prop_map(|(at, how)| {
            let text = at.to_string();
            match how {
                0 => text.replace('T', " "),
                1 => text.replace('T', "t"),
                2 => text.replace('Z', "+00:00").replace("+00:00", "-00:00"),
                3 => text.replacen(':', "", 1),
                4 => format!("{text} "),
                5 => format!("{text}[Europe/Amsterdam]"),
                6 => text.replacen(['+', 'Z'], ".1234567Z", 1),
                _ => text.replacen(['+', 'Z'], ".000+", 1),
            }
        });
        prop_oneof![any::<String>(), nearly, moments().prop_map(|at| at.to_string())]
    }

    fn infos() -> impl Strategy<Value = Vec<Info>> {
        let names = prop_oneof![
            Just(METER_TIME.to_owned()),
            select(vec!["status", "address", ""]).prop_map(str::to_owned),
            any::<String>()
        ];
        prop::collection::vec((names, texts()).prop_map(|(name, text)| (name.into(), text.into())), 0..5)
    }

    proptest! {
        #[test]
        fn what_entered_is_read_back(
            readings in prop::collection::vec(readings(), 0..12),
            info in infos(),
            events in prop::collection::vec((any::<String>(), option::of(moments()), any::<Option<u64>>()), 0..4),
            unknown in prop::collection::vec(any::<(String, String)>(), 0..4),
        ) {
            let mut said = report(readings);
            said.info = info;
            said.events = events
                .into_iter()
                .map(|(event, end, duration_s)| Event { event: event.into(), end, duration_s })
                .collect();
            said.unknown = unknown.into_iter().map(|(code, text)| Unknown { code, text }).collect();
            let (layout, values) = Layout::split(&said);
            let read = Layout::from_text(&layout.to_text()).unwrap();
            prop_assert_eq!(&read, &layout);
            let mut joined = report(Vec::new());
            read.join(&values, remark(&said).as_deref(), &mut joined).unwrap();
            prop_assert_eq!(joined, said);
        }

        #[test]
        fn another_time_of_the_meter_is_nothing_but_other_values(
            at in moments(), then in moments(), place in 0usize..3, twice in any::<bool>(),
        ) {
            let said = |at: Moment| {
                let mut report = report(vec![Reading::now(Register::named("volume"), Decimal::whole(7).unwrap(), Unit::M3)]);
                report.info = vec![("status".into(), "ok".into()), ("address".into(), "5".into())];
                if twice {
                    report.info.push((METER_TIME.into(), "2026-11-22T12:00:00+01:00".into()));
                }
                report.info.insert(place, (METER_TIME.into(), at.to_string().into()));
                report
            };
            let ((layout, values), other) = (Layout::split(&said(at)), Layout::split(&said(then)));
            prop_assert_eq!(values, [7, at.millis(), at.offset_minutes().into()]);
            prop_assert_eq!(other, (layout, vec![7, then.millis(), then.offset_minutes().into()]));
            prop_assert_eq!(remark(&said(at)), remark(&said(then)));
        }
    }

    #[test]
    fn the_text_says_where_each_value_stands() {
        let value = |text: &str| Decimal::parse(text.as_bytes()).unwrap();
        let mut stored = Reading::now(Register::named("energy"), value("11.9020"), Unit::GJ);
        stored.qualifiers.storage = 1;
        stored.at = Some("2025-12-31T23:59:00+01:00".parse().unwrap());
        stored.raw = Some(Box::new((value("3306"), Unit::KWH)));
        let now = Reading::now(Register::named("energy"), value("-12.345"), Unit::GJ);
        let (layout, values) = Layout::split(&report(vec![stored, now]));
        assert_eq!(values, [119_020, -12_345, 1_767_221_940_000, 60, 3306]);
        assert_eq!(
            layout.to_text(),
            r#"[{"register":"energy","unit":"GJ","scale":4,"storage":1,"at":2,"raw":{"unit":"kWh","scale":0,"value":4}},{"register":"energy","unit":"GJ","scale":3}]"#
        );
    }

    #[test]
    fn the_clock_of_a_meter_stands_behind_all_readings() {
        let mut said = report(vec![Reading::now(Register::named("volume"), Decimal::whole(7).unwrap(), Unit::M3)]);
        said.readings[0].raw = Some(Box::new((Decimal::whole(7000).unwrap(), Unit::named("l"))));
        said.info = vec![
            ("status".into(), "ok".into()),
            (METER_TIME.into(), "2026-11-22 12:00:00+01:00".into()),
            (METER_TIME.into(), "2026-11-22T12:00:00+01:00".into()),
            (METER_TIME.into(), "2026-11-22T12:15:00+01:00".into()),
        ];
        let (layout, values) = Layout::split(&said);
        assert_eq!(values, [7, 7000, 1_795_345_200_000, 60]);
        assert_eq!(
            layout.to_text(),
            r#"[{"register":"volume","unit":"m3","scale":0,"raw":{"unit":"l","scale":0,"value":1}},{"info":"meter_time","place":2,"at":2}]"#
        );
        assert_eq!(
            remark(&said).unwrap(),
            r#"{"info":[["status","ok"],["meter_time","2026-11-22 12:00:00+01:00"],["meter_time","2026-11-22T12:15:00+01:00"]],"events":[],"unknown":[]}"#
        );
        // Without its remark, which may have gone: what the values say.
        let mut alone = report(Vec::new());
        layout.join(&values, None, &mut alone).unwrap();
        assert_eq!(alone.info, said.info[2..3]);
        assert_eq!(remark(&alone), None);
    }

    /// As it was written before a meter's clock was among the values.
    #[test]
    fn a_clock_that_stands_in_the_remark_is_read() {
        let layout = Layout::from_text(r#"[{"register":"volume","unit":"m3","scale":0}]"#).unwrap();
        let remark =
            r#"{"info":[["meter_time","2026-11-22T12:00:00+01:00"],["address","5"]],"events":[],"unknown":[]}"#;
        let mut read = report(Vec::new());
        layout.join(&[7], Some(remark), &mut read).unwrap();
        assert_eq!(read.readings, [Reading::now(Register::named("volume"), Decimal::whole(7).unwrap(), Unit::M3)]);
        let info: [Info; 2] = [(METER_TIME.into(), "2026-11-22T12:00:00+01:00".into()), ("address".into(), "5".into())];
        assert_eq!(read.info, info);
    }

    #[test]
    fn refuses_what_it_did_not_write() {
        let mut said = report(vec![Reading::now(Register::named("volume"), Decimal::whole(7).unwrap(), Unit::M3)]);
        let join = |layout: &Layout, values: &[i64]| layout.join(values, None, &mut report(Vec::new()));
        let (layout, values) = Layout::split(&said);
        for wrong in [&[][..], &[7, 7], &[i64::MAX]] {
            assert_eq!(join(&layout, wrong), Err(LayoutError::Values));
        }
        assert_eq!(join(&layout, &values), Ok(()));
        assert_eq!(remark(&said), None);
        assert!(layout.join(&values, Some("{}"), &mut said).is_err());
        said.info = vec![(METER_TIME.into(), "2026-11-22T12:00:00Z".into())];
        let (layout, values) = Layout::split(&said);
        for wrong in [&[7][..], &[7, 0], &[7, 0, 0, 0], &[7, i64::MAX, 0], &[7, 0, i64::MAX]] {
            assert_eq!(join(&layout, wrong), Err(LayoutError::Values));
        }
        assert_eq!(join(&layout, &values), Ok(()));
        for text in [
            "",
            "{}",
            "[{}]",
            r#"[{"register":"V","unit":"","scale":0}]"#,
            r#"[ ]"#,
            r#"[{"info":"meter_clock","place":0,"at":0}]"#,
            r#"[{"info":"meter_time","place":0,"at":1}]"#,
            r#"[{"info":"meter_time","place":-1,"at":0}]"#,
            r#"[{"info":"meter_time","place":0,"at":0},{"info":"meter_time","place":0,"at":0}]"#,
            r#"[{"info":"meter_time","place":0,"at":1},{"register":"v","unit":"","scale":0}]"#,
        ] {
            assert_eq!(Layout::from_text(text), Err(LayoutError::Text(text.chars().take(64).collect())));
        }
        assert!(Layout::from_text(r#"[{"info":"meter_time","place":0,"at":0}]"#).is_ok());
    }
}
