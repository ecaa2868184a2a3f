//! The counters that a store knows, across the meters that took each other's place, and what they counted.
//!
//! Enters: a [`Reader`], and the periods that are asked for. Leaves: a [`Curve`] that is right for these periods; for long ones few values are
//! read (see [`consumption::thin`](crate::consumption::thin)).
//!
//! Not supported: a meter that took the place of another and gave it back is not joined again; both go on by themselves.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::{Timestamp, tz::TimeZone};

use super::{Meter, Quarter, Quarters, Reader, Series, StoreError};
use crate::{
    consumption::{BEFORE_FALL, By, Curve, Period, Periods, Point},
    moment::Moment,
    reading::{Clock, Reading, Register, Report},
    unit::Unit,
};

/// One register at one place, in one unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counter {
    /// The meter that is there now, or was last.
    pub meter: Meter,
    /// Which register.
    pub register: Register,
    /// The unit of its values.
    pub unit: Unit,
    /// Of each meter that was there, the oldest first: its values, by decimals.
    meters: Vec<Vec<Series>>,
    /// The newest reading of the meter that is there now, where it can be believed.
    newest: Option<Quarter>,
}

/// What is asked of a counter.
#[derive(Debug, Clone)]
pub struct Question {
    /// Which periods.
    pub by: By,
    /// Whose.
    pub zone: TimeZone,
    /// What was before does not matter; all, if None.
    pub from: Option<Timestamp>,
    /// What is later does not matter; all, if None.
    pub until: Option<Timestamp>,
    /// For how many years before each period the same is asked.
    pub years: i16,
    /// Readings from this instant on are not believed: a clock that leapt ahead must not stretch what is known.
    pub future: Timestamp,
}

/// The counters of a store, by meter, register and unit: of the meters with these names, or of all that no other took the place of. To each
/// belongs what was in its place before. Readings from `future` on are not believed.
///
/// # Errors
///
/// The database cannot be read.
pub async fn counters(
    reader: &mut dyn Reader,
    names: &[String],
    future: Timestamp,
) -> Result<Vec<Counter>, StoreError> {
    let meters = reader.meters().await?;
    let older = predecessors(&meters);
    let replaced: BTreeSet<i64> = older.values().map(|meter| meter.id).collect();
    let is_wanted =
        |meter: &&Meter| if names.is_empty() { !replaced.contains(&meter.id) } else { names.contains(&meter.name) };
    let wanted: Vec<Meter> = meters.iter().filter(is_wanted).cloned().collect();
    // Before their series, so that what they say has one whatever is written meanwhile.
    let newest = reader.readings_of(&wanted, Some(Moment::utc(future))).await?;
    let newest: HashMap<&str, _> = newest.iter().map(|newest| (newest.0.meter.as_str(), newest)).collect();
    let mut counters = Vec::new();
    for meter in &wanted {
        let mut chain = vec![meter];
        while let Some(before) = chain.last().and_then(|meter| older.get(&meter.id)) {
            chain.push(before);
        }
        let mut registers: BTreeMap<(Register, Unit), Vec<Vec<Series>>> = BTreeMap::new();
        for meter in chain.into_iter().rev() {
            let mut own: BTreeMap<(Register, Unit), Vec<Series>> = BTreeMap::new();
            for series in reader.series(meter).await? {
                own.entry((series.register.clone(), series.unit.clone())).or_default().push(series);
            }
            for (register, series) in own {
                registers.entry(register).or_default().push(series);
            }
        }
        counters.extend(registers.into_iter().map(|((register, unit), meters)| {
            let newest = newest.get(meter.name.as_str()).and_then(|(report, received_at)| {
                let at = report.measured_at.unwrap_or(*received_at);
                value(report, at, &register, &unit)
            });
            Counter { meter: meter.clone(), register, unit, meters, newest }
        }));
    }
    Ok(counters)
}

/// What a report says of a counter, if its clock was synchronised.
fn value(report: &Report<String>, at: Moment, register: &Register, unit: &Unit) -> Option<Quarter> {
    let of = |reading: &&Reading| reading.is_counted() && (&reading.register, &reading.unit) == (register, unit);
    let reading = report.readings.iter().find(of).filter(|_| report.clock != Clock::Unsynchronised)?;
    let at = reading.at.unwrap_or(at);
    Some(Quarter { quarter: at.quarter(), at: at.millis(), value: reading.value })
}

/// Whose place each meter took, by its number. Nobody follows a meter that was first heard after it, so there is no circle; and only one follows
/// another.
fn predecessors(meters: &[Meter]) -> BTreeMap<i64, &Meter> {
    let mut by_age: Vec<&Meter> = meters.iter().collect();
    by_age.sort_by_key(|meter| (meter.first_seen, meter.id));
    let mut seen: BTreeMap<&str, &Meter> = BTreeMap::new();
    let mut older = BTreeMap::new();
    for meter in by_age {
        let before = meter.predecessor.as_deref().and_then(|name| seen.get(name)).copied();
        if let Some(before) = before.filter(|before| before.medium == meter.medium) {
            seen.remove(before.name.as_str());
            older.insert(meter.id, before);
        }
        seen.insert(&meter.name, meter);
    }
    older
}

impl Question {
    /// The periods of some time, as far as they were asked for.
    pub fn periods(&self, (first, last): (Timestamp, Timestamp)) -> Periods {
        let from = self.from.map_or(first, |from| from.max(first));
        let until = self.until.map_or(last, |until| until.min(last));
        Periods::new(self.by, self.zone.clone(), from, until)
    }

    /// The same period in each of the years before.
    pub fn earlier(&self, period: &Period) -> impl Iterator<Item = Option<Period>> {
        (1..=self.years).map(|years| period.earlier(&self.zone, years))
    }
}

impl Counter {
    /// What it counted: right for the periods of a question that lie within it, for those of the years before, and in total.
    ///
    /// # Errors
    ///
    /// The database cannot be read.
    pub async fn curve(&self, reader: &mut dyn Reader, question: &Question) -> Result<Curve, StoreError> {
        let newest = question.future.as_second().div_euclid(QUARTER_S);
        let mut chain = Vec::new();
        for series in &self.meters {
            let mut ends = Vec::new();
            for series in series {
                let ends_of = reader.quarters(series, &Quarters::Around { marks: vec![newest], each: 1 }).await?;
                let mut ends_of = ends_of.iter().filter(|value| value.quarter < newest);
                let first = ends_of.next();
                let last = ends_of.next_back().or(first);
                ends.extend(first.zip(last).map(|(first, last)| (series, first.quarter, last.quarter)));
            }
            ends.sort_by_key(|&(_, first, _)| first);
            chain.push(ends);
        }
        let first = chain.iter().flatten().map(|&(_, first, _)| first).min();
        let last = chain.iter().flatten().map(|&(_, _, last)| last).max();
        let Some(whole) = first.zip(last).and_then(|(first, last)| {
            let end = last.checked_add(1)?.checked_mul(QUARTER_S)?;
            Some((Timestamp::from_second(first.checked_mul(QUARTER_S)?).ok()?, Timestamp::from_second(end).ok()?))
        }) else {
            return Ok(Curve::default());
        };
        let (mut marks, spans) = needed(question, whole);
        // Where a meter takes over, the curve of the one before ends: what is next to that is needed, too.
        let begins = chain.iter().skip(1).filter_map(|ends| ends.iter().map(|&(_, first, _)| first).min());
        marks.extend(begins.flat_map(|begin| [begin, begin.saturating_add(1)]));
        let mut curve = Curve::default();
        let count = chain.len();
        for (index, ends) in chain.into_iter().enumerate() {
            let mut points = Vec::new();
            // A fall is known among values of equal decimals. Where decimals come and go, all are read.
            let mixed = ends.iter().zip(ends.iter().skip(1)).any(|((_, _, last), (_, first, _))| first <= last);
            for (series, _, _) in &ends {
                if mixed {
                    points.extend(reader.quarters(series, &Quarters::All(i64::MIN..newest)).await?);
                    continue;
                }
                for span in &spans {
                    points.extend(reader.quarters(series, &Quarters::All(span.0..span.1.min(newest))).await?);
                }
                let marks = [OLDEST].into_iter().chain(marks.range(..newest).copied()).chain([newest]).collect();
                points.extend(reader.quarters(series, &Quarters::Around { marks, each: AROUND }).await?);
            }
            points.retain(|value| value.quarter < newest);
            points.sort_by_key(|value| (value.quarter, value.at));
            points.dedup_by_key(|value| value.quarter);
            if index + 1 == count {
                // What was read since the last quarter-hour began counts, too.
                points.extend(self.newest.filter(|value| value.quarter < newest));
            }
            let decimals = ends.iter().map(|(series, _, _)| series.scale).max().unwrap_or(0);
            let points = points.into_iter().filter_map(|value| {
                Some(Point { at: Timestamp::from_millisecond(value.at).ok()?, value: value.value })
            });
            curve = curve.then(Curve::new(points, &self.unit, decimals));
        }
        Ok(curve)
    }
}

/// Seconds in a quarter-hour.
const QUARTER_S: i64 = 900;
/// A quarter-hour before every meter.
const OLDEST: i64 = -(1 << 40);
/// Values on both sides of a mark: a fallen one is itself the first from its mark on.
const AROUND: u8 = BEFORE_FALL as u8;

/// Quarter-hours at which the values next to them are needed, and spans of quarter-hours of which all are.
fn needed(question: &Question, whole: (Timestamp, Timestamp)) -> (BTreeSet<i64>, Vec<(i64, i64)>) {
    let quarter = |at: Timestamp| at.as_second().div_euclid(QUARTER_S);
    let (mut marks, mut spans) =
        (BTreeSet::new(), vec![None::<(i64, i64)>; usize::try_from(question.years).unwrap_or(0) + 1]);
    for period in question.periods(whole) {
        for (span, period) in spans.iter_mut().zip([Some(period)].into_iter().chain(question.earlier(&period))) {
            let Some(period) = period else { continue };
            let (from, to) = (quarter(period.from), quarter(period.to));
            if matches!(question.by, By::Hour | By::Quarter) {
                let (first, last) = span.unwrap_or((from, to));
                *span = Some((first.min(from), last.max(to)));
            } else {
                marks.extend([from, to]);
            }
        }
    }
    let spans: Vec<_> = spans.into_iter().flatten().collect();
    marks.extend(spans.iter().flat_map(|span| [span.0, span.1]));
    (marks, spans)
}
