//! Offsets: what is added to counters, so that every difference stays and no stand does.
//!
//! One offset for each register of each meter, the same in all files that are given away together, at all set days, for now. It is a
//! whole number of the coarsest steps in which the register was seen, and so that all its values seen fit the digits that
//! they were written with. Totals stay the sum of their parts: tariffs, and quadrants of reactive energy. A meter that
//! counts the same energy in two units (kWh and GJ) gets two offsets that have nothing to do with each other.
//!
//! So the files are surveyed first.

use std::collections::BTreeMap;

use super::{Refused, Secret, Serials};
use crate::{
    mbus::Frame,
    p1::{Dialect, Telegram},
    reading::Reading,
    unit::{Decimal, Unit},
};

/// Amounts are whole numbers of 10^-9 of a base unit.
const FINEST: i32 = 9;

/// Which counter: of which meter, what, and which part of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Slot {
    /// The name that the meter had.
    pub(super) meter: String,
    /// The register without its tariff, with its subunit and base unit.
    pub(super) family: String,
    /// The tariff; empty for the total.
    pub(super) part: String,
}

impl Slot {
    /// Of a reading; None where it counts nothing.
    pub(super) fn of(meter: &str, reading: &Reading) -> Option<Self> {
        if !reading.register.is_cumulative() {
            return None;
        }
        let (_, unit) = own(reading);
        let (base, _) = base(&unit);
        let name = reading.register.as_str();
        let (family, part) = match name.rsplit_once('_') {
            Some((family, part @ ("low" | "normal"))) => (family, part.to_owned()),
            Some((family, part)) if part.starts_with("rate") => (family, part.to_owned()),
            Some((family, "total")) => (family, String::new()),
            _ => match name.strip_prefix("reactive_quadrant") {
                Some(quadrant) => ("reactive_quadrant", quadrant.to_owned()),
                None => (name, String::new()),
            },
        };
        let part = match reading.qualifiers.tariff {
            0 => part,
            tariff => format!("{part}tariff{tariff}"),
        };
        let family = format!("{family}/{}/{base}", reading.qualifiers.subunit);
        Some(Self { meter: meter.to_owned(), family, part })
    }
}

/// What a meter counts, as it counts.
fn own(reading: &Reading) -> (Decimal, Unit) {
    reading.raw.as_deref().cloned().unwrap_or((reading.value, reading.unit.clone()))
}

/// A unit without its prefix, and the power of ten that the prefix stands for.
fn base(unit: &Unit) -> (&str, i32) {
    match unit.as_str() {
        "Wh" => ("Wh", 0),
        "kWh" => ("Wh", 3),
        "MWh" => ("Wh", 6),
        "GWh" => ("Wh", 9),
        "varh" => ("varh", 0),
        "kvarh" => ("varh", 3),
        "J" => ("J", 0),
        "kJ" => ("J", 3),
        "MJ" => ("J", 6),
        "GJ" => ("J", 9),
        other => (other, 0),
    }
}

/// One in the last digit of a reading, as it was written.
pub(super) fn step(reading: &Reading) -> Option<i128> {
    let (value, unit) = own(reading);
    let (_, exponent) = base(&unit);
    10i128.checked_pow(u32::try_from(exponent + FINEST - i32::from(value.scale())).ok()?)
}

/// A reading as a whole number of 10^-9 of its base unit.
pub(super) fn amount(reading: &Reading) -> Option<i128> {
    i128::from(own(reading).0.mantissa()).checked_mul(step(reading)?)
}

/// What is known of a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    least: i128,
    /// How much can be added to every value seen.
    room: i128,
    step: i128,
}

impl Seen {
    fn and(self, other: Self) -> Self {
        Self { least: self.least.min(other.least), room: self.room.min(other.room), step: self.step.max(other.step) }
    }
}

/// What a first reading of the files gathers.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// The names that are there.
    pub serials: Serials,
    counters: BTreeMap<Slot, Seen>,
}

impl Survey {
    /// A P1 telegram. `dialect` and `port` as for [`Rewriter::telegram`](super::Rewriter::telegram).
    pub fn telegram(&mut self, telegram: &Telegram<'_>, dialect: Option<Dialect>, port: &str) {
        super::p1::survey(self, telegram, dialect, port);
    }

    /// An M-Bus frame.
    pub fn frame(&mut self, frame: &Frame<'_>, port: &str) {
        super::mbus::survey(self, frame, port);
    }

    /// A value of a counter, in its steps, and the highest that its digits can show.
    pub(super) fn see(&mut self, slot: Slot, amount: i128, most: i128, step: i128) {
        let seen = Seen { least: amount, room: most.saturating_sub(amount), step };
        self.counters.entry(slot).and_modify(|known| *known = known.and(seen)).or_insert(seen);
    }
}

/// What is added to each counter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offsets {
    by_slot: BTreeMap<Slot, i128>,
}

/// What an offset may be: from, to, and a whole number of which steps.
#[derive(Debug, Clone, Copy)]
struct Range {
    from: i128,
    to: i128,
    step: i128,
}

impl Range {
    fn of(seen: Seen) -> Self {
        // A hundred thousand kWh, or ten million of its steps (0.001 GJ), hide a stand well, and are digits enough for any conversion.
        let most = 10i128.pow(5 + 3 + FINEST as u32).max(seen.step.saturating_mul(10_000_000));
        Self { from: -seen.least.max(0).min(most), to: seen.room.max(0).min(most), step: seen.step }
    }

    fn and(self, other: Self) -> Self {
        Self { from: self.from.max(other.from), to: self.to.min(other.to), step: self.step.max(other.step) }
    }

    fn share(self, count: usize) -> Self {
        let count = count.max(1) as i128;
        Self { from: self.from / count, to: self.to / count, ..self }
    }

    /// One of them, by the secret; not zero unless nothing else is left.
    fn choose(self, secret: &Secret, slot: &Slot) -> i128 {
        let Slot { meter, family, part } = slot;
        let random = secret.number(format!("offset\n{meter}\n{family}\n{part}").as_bytes());
        let (from, to) = (self.from / self.step, self.to / self.step);
        let count = (to - from).max(0) as u128 + 1;
        match from + (random % count) as i128 {
            0 if to > 0 => to * self.step,
            0 => from * self.step,
            chosen => chosen * self.step,
        }
    }
}

impl Offsets {
    /// For all counters of a survey.
    pub fn choose(survey: &Survey, secret: &Secret) -> Self {
        let mut chosen = Self::default();
        let mut meters: Vec<&str> = survey.counters.keys().map(|slot| slot.meter.as_str()).collect();
        meters.dedup();
        for meter in meters {
            let mut families: BTreeMap<&str, Vec<(&Slot, Seen)>> = BTreeMap::new();
            for (slot, seen) in survey.counters.iter().filter(|(slot, _)| slot.meter == meter) {
                families.entry(&slot.family).or_default().push((slot, *seen));
            }
            // Sums of other families come behind them, and take what these leave.
            for (family, members) in &families {
                let sums = sums_of(family, &families);
                chosen.family(members, &sums, secret);
            }
            for (family, members) in &families {
                chosen.sum(family, members, meter, secret);
            }
        }
        chosen
    }

    /// The parts of a family, and their total. `sums`: what else the total is part of.
    fn family(&mut self, members: &[(&Slot, Seen)], sums: &[(Seen, usize)], secret: &Secret) {
        let step = members
            .iter()
            .map(|(_, seen)| *seen)
            .chain(sums.iter().map(|(seen, _)| *seen))
            .map(|seen| seen.step)
            .max()
            .unwrap_or(1);
        let parts = members.iter().filter(|(slot, _)| !slot.part.is_empty()).count();
        let total = members.iter().find(|(slot, _)| slot.part.is_empty());
        let mut sum = 0i128;
        for (slot, seen) in members.iter().filter(|(slot, _)| !slot.part.is_empty() || parts == 0) {
            let mut range = Range { step, ..Range::of(*seen) };
            if let Some((_, total)) = total {
                range = range.and(Range::of(*total).share(parts));
            }
            for (sum, count) in sums {
                range = range.and(Range::of(*sum).share(count.saturating_mul(parts.max(1))));
            }
            let offset = Range { step, ..range }.choose(secret, slot);
            sum = sum.saturating_add(offset);
            self.by_slot.insert((*slot).clone(), offset);
        }
        if let Some((slot, _)) = total {
            self.by_slot.insert((*slot).clone(), sum);
        }
    }

    /// What a family adds to its total.
    fn total(&self, meter: &str, family: &str) -> Option<i128> {
        let mut members =
            self.by_slot.iter().filter(|(slot, _)| slot.meter == meter && slot.family == family).peekable();
        members.peek()?;
        let is_total = |slot: &Slot| slot.part.is_empty();
        let members: Vec<(&Slot, &i128)> = members.collect();
        match members.iter().find(|(slot, _)| is_total(slot)) {
            Some((_, total)) => Some(**total),
            None => Some(members.iter().map(|(_, offset)| **offset).sum()),
        }
    }

    /// Import and export as one register, and the quadrants of reactive energy: they follow the totals.
    fn sum(&mut self, family: &str, members: &[(&Slot, Seen)], meter: &str, secret: &Secret) {
        let (name, rest) = family.split_once('/').unwrap_or((family, ""));
        let of = |name: &str| format!("{name}/{rest}");
        match name {
            "import_and_export" => {
                let both = (self.total(meter, &of("import")), self.total(meter, &of("export")));
                if let ((Some(import), Some(export)), [(slot, _)]) = (both, members) {
                    self.by_slot.insert((*slot).clone(), import.saturating_add(export));
                }
            }
            // 1 and 2 are of import, 3 and 4 of export (IEC 62053-23, annex).
            "reactive_quadrant" => {
                for (total, pair) in [("reactive_import", ["1", "2"]), ("reactive_export", ["3", "4"])] {
                    let found: Vec<&(&Slot, Seen)> =
                        members.iter().filter(|(slot, _)| pair.contains(&slot.part.as_str())).collect();
                    if let (Some(total), [(first, one), (second, other)]) =
                        (self.total(meter, &of(total)), found.as_slice())
                    {
                        // What is left for the second must fit it, too.
                        let (one, other) = (Range::of(*one), Range::of(*other));
                        let step = one.step.max(other.step);
                        let range =
                            Range { from: one.from.max(total - other.to), to: one.to.min(total - other.from), step };
                        let offset = range.choose(secret, first).clamp(range.from, range.to);
                        self.by_slot.insert((*first).clone(), offset);
                        self.by_slot.insert((*second).clone(), total.saturating_sub(offset));
                    }
                }
            }
            _ => {}
        }
    }

    /// What is added; None where the survey did not see this counter.
    pub(super) fn of(&self, slot: &Slot) -> Option<i128> {
        self.by_slot.get(slot).copied()
    }

    /// How many counters stay as they were, because nothing fits their digits.
    pub fn without(&self) -> usize {
        self.by_slot.values().filter(|offset| **offset == 0).count()
    }

    /// An amount with its offset; refused where it does not fit.
    pub(super) fn add(&self, slot: &Slot, amount: i128, most: i128) -> Result<i128, Refused> {
        let sum = self.of(slot).and_then(|offset| amount.checked_add(offset));
        sum.filter(|sum| (0..=most).contains(sum) || self.of(slot) == Some(0)).ok_or(Refused::Offset)
    }
}

/// What the total of a family is part of, and of how many parts that is made.
fn sums_of(family: &str, families: &BTreeMap<&str, Vec<(&Slot, Seen)>>) -> Vec<(Seen, usize)> {
    let (name, rest) = family.split_once('/').unwrap_or((family, ""));
    let mut sums = Vec::new();
    let mut add = |name: &str, parts: &[&str], count| {
        let members = families.get(format!("{name}/{rest}").as_str());
        for (slot, seen) in members.into_iter().flatten() {
            if parts.is_empty() || parts.contains(&slot.part.as_str()) {
                sums.push((*seen, count));
            }
        }
    };
    match name {
        "import" | "export" => add("import_and_export", &[], 2),
        // Half of a total must fit a quadrant.
        "reactive_import" => add("reactive_quadrant", &["1", "2"], 1),
        "reactive_export" => add("reactive_quadrant", &["3", "4"], 1),
        _ => {}
    }
    sums
}
