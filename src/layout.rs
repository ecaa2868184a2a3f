//! A message as exact integers, and beside them the text that says what they mean.
//!
//! Enters: a [`Report`]. Leaves: its [`Layout`] (register, unit, decimals and qualifiers of each
//! reading, the same from telegram to telegram) with the integers of this telegram, and its remark
//! (info, events, unknown). All three read back to what entered. Journal and store keep them so.
//!
//! Not supported: instants finer than a millisecond and UTC offsets finer than a minute are cut to that.

use std::{
    borrow::Cow,
    hash::{Hash, Hasher},
};

use serde::{Deserialize, Serialize};

use crate::{
    moment::Moment,
    reading::{Event, Function, Qualifiers, Reading, Register, Report, Suspect, Unknown},
    unit::{Decimal, Unit},
};

/// What the values of a message mean, in the order in which the meter sent them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout(Vec<Column>);

impl Hash for Layout {
    /// Of its length and ends only: the layouts of a house are few, and are hashed for each message.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.len().hash(state);
        for column in [self.0.first(), self.0.last()].into_iter().flatten() {
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
    /// Takes readings apart. The values: first the digits of each reading (its value x 10^scale), then,
    /// reading by reading, what only some have: the time (ms since 1970 UTC, then minutes east of UTC)
    /// and the digits as the meter counts.
    pub fn split(report: &Report<String>) -> (Self, Vec<i64>) {
        let mut values: Vec<i64> = report.readings.iter().map(|reading| reading.value.mantissa()).collect();
        for reading in &report.readings {
            values.extend(reading.at.iter().flat_map(|at| [at.millis(), i64::from(at.offset_minutes())]));
            values.extend(reading.raw.iter().map(|raw| raw.0.mantissa()));
        }
        (Self(report.readings.iter().map(Column::of).collect()), values)
    }

    /// Puts readings together again. The error: the values are not of this layout.
    pub fn join(&self, values: &[i64]) -> Result<Vec<Reading>, LayoutError> {
        let (digits, rest) = values.split_at_checked(self.0.len()).ok_or(LayoutError::Values)?;
        let mut rest = rest.iter().copied();
        let readings = self.0.iter().zip(digits).map(|(column, &digits)| column.reading(digits, &mut rest));
        let readings = readings.collect::<Option<Vec<_>>>().ok_or(LayoutError::Values)?;
        if rest.next().is_some() { Err(LayoutError::Values) } else { Ok(readings) }
    }

    /// As text: a JSON array with an object for each reading, which leaves out what is zero or none.
    /// `at` and `raw.value` are places in the values, so that SQL can find them. Two layouts have the
    /// same text only if they are the same.
    pub fn to_text(&self) -> String {
        let mut next = self.0.len();
        let mut place = |width: usize| {
            let place = next;
            next = next.saturating_add(width);
            place
        };
        let columns = self.0.iter().map(|column| WireColumn {
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
        });
        // Strings and integers always serialise.
        serde_json::to_string(&columns.collect::<Vec<_>>()).unwrap_or_default()
    }

    /// From the text that [`to_text`](Self::to_text) wrote, and from no other.
    pub fn from_text(text: &str) -> Result<Self, LayoutError> {
        let error = || LayoutError::Text(text.chars().take(64).collect());
        let columns: Vec<WireColumn<'_>> = serde_json::from_str(text).map_err(|_| error())?;
        let columns: Option<Vec<Column>> = columns.iter().map(WireColumn::column).collect();
        columns.map(Self).filter(|layout| layout.to_text() == text).ok_or_else(error)
    }
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

    /// The reading with these digits; what only some readings have is taken from `rest`.
    fn reading(&self, digits: i64, rest: &mut impl Iterator<Item = i64>) -> Option<Reading> {
        Some(Reading {
            register: self.register.clone(),
            value: Decimal::new(digits, self.scale)?,
            unit: self.unit.clone(),
            qualifiers: self.qualifiers,
            at: match self.dated {
                true => Some(Moment::from_millis(rest.next()?, i32::try_from(rest.next()?).ok()?)?),
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

/// What a report says besides its readings, as JSON text; None when it says nothing else.
pub fn remark(report: &Report<String>) -> Option<String> {
    let Report { info, events, unknown, .. } = report;
    if info.is_empty() && events.is_empty() && unknown.is_empty() {
        return None;
    }
    let wire = WireRemark {
        info: info.iter().map(|(name, text)| (name.as_ref().into(), text.as_ref().into())).collect(),
        events: events
            .iter()
            .map(|event| (event.event.as_ref().into(), event.end.map(|end| end.to_string()), event.duration_s))
            .collect(),
        unknown: unknown.iter().map(|unknown| ((&unknown.code).into(), (&unknown.text).into())).collect(),
    };
    serde_json::to_string(&wire).ok()
}

/// Gives a report back what [`remark`] took from it. The error: the text is no remark.
pub fn set_remark(report: &mut Report<String>, text: &str) -> Result<(), LayoutError> {
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
    use crate::reading::{Clock, Medium};

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

    proptest! {
        #[test]
        fn joins_what_it_split(readings in prop::collection::vec(readings(), 0..12)) {
            let report = report(readings);
            let (layout, values) = Layout::split(&report);
            let read = Layout::from_text(&layout.to_text()).unwrap();
            prop_assert_eq!(&read, &layout);
            prop_assert_eq!(read.join(&values).unwrap(), report.readings);
        }

        #[test]
        fn gives_remarks_back(
            info in prop::collection::vec((any::<String>(), any::<String>()), 0..4),
            events in prop::collection::vec((any::<String>(), option::of(moments()), any::<Option<u64>>()), 0..4),
            unknown in prop::collection::vec(any::<(String, String)>(), 1..4),
        ) {
            let mut said = report(Vec::new());
            said.info = info.into_iter().map(|(name, text)| (name.into(), text.into())).collect();
            said.events = events
                .into_iter()
                .map(|(event, end, duration_s)| Event { event: event.into(), end, duration_s })
                .collect();
            said.unknown = unknown.into_iter().map(|(code, text)| Unknown { code, text }).collect();
            let mut read = report(Vec::new());
            set_remark(&mut read, &remark(&said).unwrap()).unwrap();
            prop_assert_eq!(read, said);
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
    fn refuses_what_it_did_not_write() {
        let (layout, values) =
            Layout::split(&report(vec![Reading::now(Register::named("volume"), Decimal::whole(7).unwrap(), Unit::M3)]));
        for wrong in [&[][..], &[7, 7], &[i64::MAX]] {
            assert_eq!(layout.join(wrong), Err(LayoutError::Values));
        }
        assert!(layout.join(&values).is_ok());
        for text in ["", "{}", "[{}]", r#"[{"register":"V","unit":"","scale":0}]"#, r#"[ ]"#] {
            assert_eq!(Layout::from_text(text), Err(LayoutError::Text(text.into())));
        }
        assert!(set_remark(&mut report(Vec::new()), "{}").is_err());
        assert_eq!(remark(&report(Vec::new())), None);
    }
}
