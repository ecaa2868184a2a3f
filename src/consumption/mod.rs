//! What was used: the differences of a counter over years, months, days, hours and quarter-hours.
//!
//! Enters: the points of one register of one meter, the first reading of each quarter-hour, without those that are suspect or whose
//! clock was unsynchronised. Leaves: for each [`Period`] of a zone a [`Consumption`]. Reads no clock and knows no zone but the one
//! that it is given.
//!
//! # The curve
//!
//! The points become a [`Curve`], which never falls: what the counter counted since its first point. A period's consumption is the curve at
//! its end less the curve at its beginning. So the parts of a whole add up to it, to the last decimal, whatever the parts are, and
//! nothing is ever negative.
//!
//! - A reading in the first minute of a quarter-hour stands for its beginning: meters and their readers are a few seconds late.
//! - Between two points the curve is a straight line, rounded down to the register's decimals. A period that begins or ends there is
//!   estimated, `linear`; not so between two equal points, where nothing was used. So the quarter-hours of a gas meter that speaks each hour are
//!   estimated and its hours are exact, and so is whatever has a gap within it.
//! - Before the first and behind the last point nothing is known, and nothing is said: periods are cut to what is between.
//!
//! # Falls
//!
//! The gateway flags readings that cannot be (see [`plausible`](crate::plausible)); this is for what gets past it. A value that is lower than
//! the one before is, in this order:
//!
//! 1. a dip, if the next is not lower than the one before the fall: the fallen one is skipped;
//! 2. the end of a spike, if it is not lower than the last but one: the one before the fall is skipped;
//! 3. the same, where only decimals went with a new firmware (`12.345`, then `12`);
//! 4. an `overflow`, if the counter was within 1 % of what it can hold and is within 1 % of zero: 10^5, 10^6 ... of its last digit,
//!    2^31, 2^32, and for GJ also 36 times these, which were kWh. The curve goes on across it;
//! 5. a `restart`: the counter was exchanged or reset, and what it counted between the two is unknown. It counts as nothing.
//!
//! So each fall is judged by two readings before the fallen one and one behind it. That is why a store need not read
//! all points for long periods: [`thin`] says which are enough.
//!
//! # Meters that were exchanged
//!
//! The new one has another name, and says whose place it took (`predecessor`). [`Curve::then`] makes one curve of both; what was
//! used between the last reading of the old one and the first of the new one is unknown and counts as nothing, `exchange`.
//!
//! Not supported: more than ten decimals, which are cut; consumption that needs more than 18 digits, which loses decimals; spikes and
//! dips of more than one reading.

use std::fmt;

use jiff::Timestamp;

use crate::unit::{Decimal, Unit};

mod period;

pub use period::{By, Period, Periods};

/// A reading this early in a quarter-hour stands for its beginning, in ms.
const PROMPT_MS: i64 = 60_000;
/// A quarter-hour, in ms. All zones are whole quarter-hours from UTC (since 1972).
const QUARTER_MS: i64 = 900_000;
/// The finest that is counted: a mWh, in GJ.
const MAX_DECIMALS: u8 = 10;
/// A counter holds at least so many digits before it overflows.
const OVERFLOW_DIGITS: u32 = 5;

/// How many points before a fallen one say what its fall is.
pub const BEFORE_FALL: usize = 2;
/// How many points behind a fallen one say what its fall is.
pub const BEHIND_FALL: usize = 1;

/// What a register showed, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// The instant of the reading; what is finer than a millisecond is not looked at.
    pub at: Timestamp,
    /// As the meter wrote it.
    pub value: Decimal,
}

/// Why a consumption or a value is not exactly what a meter said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Method {
    /// A straight line between two readings.
    Linear,
    /// The counter went through its highest value; that it was this one is a guess.
    Overflow,
    /// The counter was exchanged or reset: what it counted since the reading before is missing.
    Restart,
    /// Another meter took its place: what neither counted is missing.
    Exchange,
}

impl Method {
    /// All, in their order.
    pub const ALL: [Self; 4] = [Self::Linear, Self::Overflow, Self::Restart, Self::Exchange];

    /// As it is printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Overflow => "overflow",
            Self::Restart => "restart",
            Self::Exchange => "exchange",
        }
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// A set of methods. Empty: nothing is estimated. Its text is their names with `+` between.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Methods(u8);

impl Methods {
    /// Whether nothing is estimated.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether this one was used.
    pub const fn contains(self, method: Method) -> bool {
        self.0 & method.bit() != 0
    }

    /// Those that were used, in the order of [`Method::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Method> {
        Method::ALL.into_iter().filter(move |method| self.contains(*method))
    }

    const fn add(&mut self, method: Method) {
        self.0 |= method.bit();
    }
}

impl fmt::Display for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, method) in self.iter().enumerate() {
            write!(f, "{}{}", if index > 0 { "+" } else { "" }, method.name())?;
        }
        Ok(())
    }
}

impl fmt::Debug for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What was used in some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Consumption {
    /// Since when it is known: the beginning of the period, or of the readings.
    pub from: Timestamp,
    /// Until when.
    pub to: Timestamp,
    /// In the register's unit and decimals; never negative.
    pub value: Decimal,
    /// How it was estimated.
    pub estimated: Methods,
}

/// What a counter counted since its first reading. Takes 32 bytes a point.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Curve {
    /// In ascending time. The totals ascend too.
    knots: Vec<Knot>,
    /// In ascending time; each from a knot to the next.
    breaks: Vec<Break>,
    decimals: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Knot {
    /// Milliseconds since 1970.
    at: i64,
    /// In the smallest unit that `decimals` can say.
    total: i128,
}

/// Between two knots the counter itself did not go from one to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Break {
    from: i64,
    to: i64,
    method: Method,
}

/// A point, with its value in the smallest unit of the curve.
#[derive(Clone, Copy)]
struct Known {
    at: i64,
    amount: i128,
    value: Decimal,
}

impl Curve {
    /// From points in ascending time: at most one for each quarter-hour, and beside them the newest reading of all, if wanted. One that is
    /// not later than the one before is left out. `decimals` are the register's: the most that any of its points has, also of those
    /// that are not given here. `unit` says which overflows there can be.
    pub fn new(points: impl IntoIterator<Item = Point>, unit: &Unit, decimals: u8) -> Self {
        let decimals = decimals.min(MAX_DECIMALS);
        let mut known: Vec<Known> = Vec::new();
        for Point { at, value } in points {
            let at = at.as_millisecond();
            if known.last().is_none_or(|last| last.at < at) {
                known.push(Known { at, amount: rescaled(value.mantissa().into(), value.scale(), decimals), value });
            }
        }
        let mut curve = Self { knots: Vec::with_capacity(known.len()), breaks: Vec::new(), decimals };
        let mut last: Option<Known> = None;
        for (index, this) in known.iter().enumerate() {
            let before = index.checked_sub(1).and_then(|index| known.get(index));
            if !skipped(before, this, known.get(index.saturating_add(1)), known.get(index.saturating_add(2))) {
                curve.go_on(last, *this, unit);
                last = Some(*this);
            }
        }
        curve
    }

    /// Adds a knot for a point, `before` being that of the last knot.
    fn go_on(&mut self, before: Option<Known>, this: Known, unit: &Unit) {
        let mark = this.at.saturating_sub(this.at.rem_euclid(QUARTER_MS));
        let prompt = this.at.saturating_sub(mark) < PROMPT_MS;
        let (Some(before), Some(knot)) = (before, self.knots.last().copied()) else {
            self.knots.push(Knot { at: if prompt { mark } else { this.at }, total: 0 });
            return;
        };
        let at = if prompt && mark > knot.at { mark } else { this.at };
        let (step, method) = step(&before, &this, unit, self.decimals);
        self.breaks.extend(method.map(|method| Break { from: knot.at, to: at, method }));
        self.knots.push(Knot { at, total: knot.total.saturating_add(step) });
    }

    /// This meter's curve, and then that of the one that took its place: as if it were one meter. What this one says beyond the first reading of
    /// the other is left out, it then hangs elsewhere.
    pub fn then(mut self, mut next: Self) -> Self {
        let Some(&begin) = next.knots.first() else { return self };
        self.knots.truncate(self.knots.partition_point(|knot| knot.at <= begin.at));
        let Some(&Knot { at: end, .. }) = self.knots.last() else { return next };
        self.breaks.truncate(self.breaks.partition_point(|fault| fault.to <= end));
        let decimals = self.decimals.max(next.decimals);
        self.refine(decimals);
        next.refine(decimals);
        let total = self.knots.last().map_or(0, |knot| knot.total);
        // Only a name was changed where there is no time between.
        self.breaks.extend((end < begin.at).then_some(Break { from: end, to: begin.at, method: Method::Exchange }));
        self.breaks.append(&mut next.breaks);
        self.knots.extend(next.knots.iter().map(|knot| Knot { total: knot.total.saturating_add(total), ..*knot }));
        self
    }

    fn refine(&mut self, decimals: u8) {
        for knot in &mut self.knots {
            knot.total = rescaled(knot.total, self.decimals, decimals);
        }
        self.decimals = decimals;
    }

    /// From when to when consumption is known; None with fewer than two points.
    pub fn span(&self) -> Option<(Timestamp, Timestamp)> {
        let (first, last) = (self.knots.first()?, self.knots.last()?);
        (first.at < last.at).then_some((instant(first.at), instant(last.at)))
    }

    /// Since the meter was placed, or rather first read.
    pub fn total(&self) -> Option<Consumption> {
        let (from, to) = self.span()?;
        self.between(from, to)
    }

    /// What was used from one instant to another, cut to what is known; None if nothing is.
    pub fn between(&self, from: Timestamp, to: Timestamp) -> Option<Consumption> {
        let (first, last) = (self.knots.first()?, self.knots.last()?);
        let (from, to) = (from.as_millisecond().max(first.at), to.as_millisecond().min(last.at));
        if from >= to {
            return None;
        }
        let (begin, end) = (self.total_at(from)?, self.total_at(to)?);
        let mut estimated = Methods::default();
        if begin.1 || end.1 {
            estimated.add(Method::Linear);
        }
        let breaks = self.breaks.get(self.breaks.partition_point(|fault| fault.to <= from)..)?;
        for fault in breaks.iter().take_while(|fault| fault.from < to) {
            estimated.add(fault.method);
        }
        let value = decimal(end.0.saturating_sub(begin.0), self.decimals);
        Some(Consumption { from: instant(from), to: instant(to), value, estimated })
    }

    /// What was used in each of some periods, without those of which nothing is known.
    pub fn over<P: IntoIterator<Item = Period>>(&self, periods: P) -> impl Iterator<Item = (Period, Consumption)> {
        periods.into_iter().filter_map(|period| Some((period, self.between(period.from, period.to)?)))
    }

    /// The curve at an instant within it, and whether that is estimated.
    fn total_at(&self, at: i64) -> Option<(i128, bool)> {
        let index = self.knots.partition_point(|knot| knot.at <= at);
        let before = self.knots.get(index.checked_sub(1)?)?;
        let Some(after) = self.knots.get(index).filter(|_| before.at < at) else { return Some((before.total, false)) };
        let total = interpolated((before.at, before.total), (after.at, after.total), at);
        Some((total, before.total != after.total))
    }
}

/// Whether a point is a dip, or a spike. A dip goes before: `1 3 2 4` is one, though 3 might be a spike.
fn skipped(before: Option<&Known>, this: &Known, next: Option<&Known>, second: Option<&Known>) -> bool {
    let (Some(before), Some(next)) = (before, next) else { return false };
    let lower = |a: &Known, b: &Known| a.amount < b.amount;
    let dip = lower(this, before) && !lower(next, before);
    let spike = lower(next, this) && !lower(next, before) && second.is_none_or(|second| lower(second, this));
    dip || spike
}

/// What was counted from one point to the next that is not skipped.
fn step(before: &Known, this: &Known, unit: &Unit, decimals: u8) -> (i128, Option<Method>) {
    let (old, new) = (before.value, this.value);
    let grown = this.amount.saturating_sub(before.amount);
    if grown >= 0 {
        (grown, None)
    } else if new.scale() < old.scale()
        && rescaled(old.mantissa().into(), old.scale(), new.scale()) == new.mantissa().into()
    {
        (0, None)
    } else if let Some(capacity) = capacity(old, new, unit) {
        let grown = rescaled(capacity, old.scale(), decimals).saturating_add(grown);
        (grown.max(0), Some(Method::Overflow))
    } else {
        (0, Some(Method::Restart))
    }
}

/// What a counter can hold that overflowed between two values, in the last digit of the first. None if it did not.
fn capacity(before: Decimal, after: Decimal, unit: &Unit) -> Option<i128> {
    let factors: &[i128] = if *unit == Unit::GJ { &[1, 36] } else { &[1] };
    let (before, after) =
        (i128::from(before.mantissa()), rescaled(after.mantissa().into(), after.scale(), before.scale()));
    let holds = |factor: i128| {
        let digits = before.checked_div(factor)?.checked_ilog10()?.checked_add(1)?;
        let decimal = (digits >= OVERFLOW_DIGITS).then(|| 10i128.saturating_pow(digits));
        let capacities = decimal.into_iter().chain([1 << 31, 1 << 32]).map(|count| factor.saturating_mul(count));
        capacities.into_iter().find(|&capacity| {
            let percent = capacity.div_euclid(100);
            (capacity.saturating_sub(percent)..capacity).contains(&before) && (0..=percent).contains(&after)
        })
    };
    factors.iter().find_map(|factor| holds(*factor))
}

/// An amount with other decimals, rounded down.
fn rescaled(amount: i128, from: u8, to: u8) -> i128 {
    let power = 10i128.saturating_pow(from.abs_diff(to).into());
    if from <= to { amount.saturating_mul(power) } else { amount.div_euclid(power) }
}

/// A straight line between two knots (instant and amount, both ascending), at an instant between them; rounded down.
fn interpolated((from, low): (i64, i128), (to, high): (i64, i128), at: i64) -> i128 {
    let (whole, part) = (i128::from(to).saturating_sub(from.into()), i128::from(at).saturating_sub(from.into()));
    let rise = high.saturating_sub(low);
    // In two parts, so that no product is too large: `part` and the remainder are below `whole`, which is below 2^50.
    let (each, rest) = (rise.div_euclid(whole.max(1)), rise.rem_euclid(whole.max(1)));
    let rest = rest.saturating_mul(part).div_euclid(whole.max(1));
    low.saturating_add(each.saturating_mul(part)).saturating_add(rest)
}

/// An amount as a value; decimals go until it has 18 digits.
fn decimal(amount: i128, decimals: u8) -> Decimal {
    let exact = |scale| Decimal::new(i64::try_from(rescaled(amount, decimals, scale)).ok()?, scale);
    (0..=decimals).rev().find_map(exact).unwrap_or(LARGEST)
}

/// Where even whole units have more than 18 digits.
const LARGEST: Decimal = match Decimal::new(999_999_999_999_999_999, 0) {
    Some(value) => value,
    None => Decimal::per_ten_thousand(0),
};

/// Instants of a curve come from a [`Timestamp`], or are the beginning of its quarter-hour.
fn instant(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MIN)
}

/// Why nobody can say what a register showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unknown {
    /// The meter was first read later.
    #[error("the first reading is later")]
    Earlier,
    /// The meter was last read before.
    #[error("the last reading is earlier")]
    Later,
    /// The counter was exchanged, was reset or overflowed, or one of both readings is wrong.
    #[error("the value fell between the readings before and after it")]
    Fell,
}

/// What a register showed at an instant: `before` is the last reading at or before it, `after` the first later one. Exact where there is
/// one at that instant, or both are equal; else on a straight line between both, with the decimals of the finer, rounded down.
///
/// # Errors
///
/// There is none before or after it, or the value fell.
pub fn value_at(at: Timestamp, before: Option<Point>, after: Option<Point>) -> Result<(Decimal, Methods), Unknown> {
    let millis = at.as_millisecond();
    let before = before.filter(|before| before.at.as_millisecond() <= millis).ok_or(Unknown::Earlier)?;
    if before.at.as_millisecond() == millis {
        return Ok((before.value, Methods::default()));
    }
    let after = after.filter(|after| after.at.as_millisecond() > millis).ok_or(Unknown::Later)?;
    let scale = before.value.scale().max(after.value.scale());
    let knot =
        |point: Point| (point.at.as_millisecond(), rescaled(point.value.mantissa().into(), point.value.scale(), scale));
    let (low, high) = (knot(before), knot(after));
    if high.1 < low.1 {
        return Err(Unknown::Fell);
    }
    let mut estimated = Methods::default();
    if low.1 < high.1 {
        estimated.add(Method::Linear);
    }
    Ok((decimal(interpolated(low, high, millis), scale), estimated))
}

/// Those of some points that are enough for consumption between some boundaries and in total: a curve of these says the same there as one of
/// all, and so does one of these and any others. They are:
///
/// - the first, and the last two;
/// - for each boundary the last before it, and the first at it or later;
/// - each that is lower than the one before, with [`BEFORE_FALL`] before it and [`BEHIND_FALL`] behind it.
///
/// The points ascend in time, each later than the one before. This is what a store has to read, written down; a store finds them by its keys.
pub fn thin(points: &[Point], boundaries: impl IntoIterator<Item = Timestamp>) -> Vec<Point> {
    let mut kept = vec![false; points.len()];
    let mut keep = |from: usize, to: usize| {
        kept.get_mut(from..to.min(points.len())).into_iter().flatten().for_each(|kept| *kept = true);
    };
    keep(0, 1);
    keep(points.len().saturating_sub(2), points.len());
    for boundary in boundaries {
        let index = points.partition_point(|point| point.at < boundary);
        keep(index.saturating_sub(1), index.saturating_add(1));
    }
    for (index, (before, this)) in points.iter().zip(points.iter().skip(1)).enumerate() {
        if this.value.minus(before.value).is_none_or(|grown| grown.mantissa() < 0) {
            let fallen = index.saturating_add(1);
            keep(fallen.saturating_sub(BEFORE_FALL), fallen.saturating_add(BEHIND_FALL).saturating_add(1));
        }
    }
    points.iter().zip(kept).filter_map(|(point, kept)| kept.then_some(*point)).collect()
}

#[cfg(test)]
mod tests;
