//! What a household draws, and what its roof gives back.
//!
//! Enters: a seed and a second, with what the calendar and the clock on the wall show. Leaves:
//! [`Flows`], constant for [`STEP`] seconds. A function of just these, so that it does not matter in
//! which steps time goes by. Whole numbers throughout: watts, and micro-units of the slave meters.

use std::ops::Range;

use jiff::civil::{DateTime, Weekday};

use super::noise;

/// For so many seconds all flows are constant; whole steps since 1970.
pub(super) const STEP: i64 = 10;
/// For so many seconds [`Conditions`] hold: a multiple of [`STEP`], and a divisor of the time between
/// two changes of tariff or of summer time.
pub(super) const SPELL: i64 = 300;

/// What flows through the meters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flows {
    /// Into the house over each phase, in W; negative is out.
    pub(super) watts: [i64; 3],
    /// Through gas (ml/1000 a second), heat (W) and hot water (ml/1000 a second).
    pub(super) slaves: [u64; 3],
}

impl Flows {
    /// Over all phases, in W; never 0.
    pub(super) fn net(&self) -> i64 {
        self.watts.iter().sum()
    }
}

/// Something that people do now and then.
struct Habit {
    /// Local hours in which they may.
    hours: Range<i8>,
    /// How long it takes.
    minutes: i64,
    /// In how many of a thousand such times they do.
    per_mille: i64,
    /// As in [`Flows`].
    watts: [i64; 3],
    /// As in [`Flows`].
    slaves: [u64; 3],
}

const HABITS: [Habit; 9] = [
    // The fridge.
    Habit { hours: 0..24, minutes: 15, per_mille: 400, watts: [90, 0, 0], slaves: [0; 3] },
    // The kettle.
    Habit { hours: 6..23, minutes: 3, per_mille: 40, watts: [0, 2000, 0], slaves: [0; 3] },
    // Washing.
    Habit { hours: 9..21, minutes: 40, per_mille: 80, watts: [1900, 0, 0], slaves: [0; 3] },
    // The dishwasher.
    Habit { hours: 20..24, minutes: 30, per_mille: 200, watts: [0, 0, 1800], slaves: [0; 3] },
    // The oven, on two phases.
    Habit { hours: 17..20, minutes: 20, per_mille: 300, watts: [0, 1200, 1200], slaves: [0; 3] },
    // A flame for breakfast, two for dinner: 0.2 m3/h each.
    Habit { hours: 7..9, minutes: 5, per_mille: 250, watts: [0; 3], slaves: [56_000, 0, 0] },
    Habit { hours: 17..20, minutes: 10, per_mille: 450, watts: [0; 3], slaves: [112_000, 0, 0] },
    // Hands and dishes: 4 l/min.
    Habit { hours: 7..23, minutes: 1, per_mille: 15, watts: [0; 3], slaves: [0, 0, 66_000] },
    // The shower: 7 l/min.
    Habit { hours: 6..9, minutes: 7, per_mille: 80, watts: [0; 3], slaves: [0, 0, 116_000] },
];

/// What always flows: the pilot light of an old geyser (13 l/h) and a trickle that keeps the heat warm.
const ALWAYS: [u64; 3] = [3_500, 120, 0];

/// How much of summer there is on a day of the year, per mille.
const SUMMER: [(i64, i64); 6] = [(1, 10), (35, 130), (172, 1000), (265, 500), (355, 0), (366, 10)];
/// Background load over the hours of a local day, in W.
const LOAD: [(i64, i64); 9] =
    [(0, 190), (3, 140), (6, 190), (8, 480), (11, 310), (16, 340), (19, 820), (22, 480), (24, 190)];
/// What the thermostat asks over the hours of a local day, per mille.
const WARMTH: [(i64, i64); 6] = [(0, 350), (5, 350), (8, 1000), (13, 600), (20, 950), (24, 350)];

/// Peak of the solar panels in W, all on the first phase.
const PANELS: i64 = 3600;
/// Peak of the heating in W.
const HEATING: i64 = 7000;
/// Minute of the UTC day in which the sun stands highest over the Netherlands.
const NOON: i64 = 700;

/// What holds for a [`SPELL`]: tariff, weather and time of day.
#[derive(Debug, Clone)]
pub(super) struct Conditions {
    /// Whether the low tariff is in force: 23:00 to 07:00 and in the weekend.
    pub(super) low: bool,
    hour: i8,
    load: i64,
    sun: i64,
    heating: i64,
}

impl Conditions {
    /// At a second since 1970, when the clock on the wall shows `clock`.
    pub(super) fn new(seed: u64, second: i64, clock: DateTime) -> Self {
        let hour = clock.hour();
        let minute = i64::from(hour) * 60 + i64::from(clock.minute());
        let summer = along(&SUMMER, 1, i64::from(clock.day_of_year()));
        // The sun knows no summer time.
        let from_noon = (second.rem_euclid(86_400) / 60 - NOON).abs();
        let half_day = 235 + 265 * summer / 1000;
        let height = (half_day * half_day - from_noon * from_noon).max(0) * 1000 / (half_day * half_day);
        let clear = PANELS * (300 + 700 * summer / 1000) / 1000 * height / 1000;
        // Clouds drift from one hour's sky to the next.
        let sky = |hour| 150 + noise(seed, stream::SKY, hour, 851);
        let this = second.div_euclid(3600);
        let sky = along(&[(0, sky(this)), (1, sky(this + 1))], 60, second.rem_euclid(3600) / 60);
        Self {
            low: !(7..23).contains(&hour) || matches!(clock.weekday(), Weekday::Saturday | Weekday::Sunday),
            hour,
            load: along(&LOAD, 60, minute),
            sun: clear * sky / 1000,
            heating: HEATING * (850 - summer).max(0) / 1000 * along(&WARMTH, 60, minute) / 1000,
        }
    }

    /// The flows at a second of this spell.
    pub(super) fn flows(&self, seed: u64, second: i64) -> Flows {
        let step = second.div_euclid(STEP);
        // In per mille of what was expected.
        let about = |what, spread: i64| 1000 - spread + noise(seed, what, step, 2 * spread + 1);
        let load = self.load * about(stream::LOAD, 120) / 1000;
        let mut watts = [load / 2, load / 5, load * 3 / 10];
        let mut slaves = ALWAYS;
        let heating = (self.heating * about(stream::HEAT, 200) / 1000).unsigned_abs();
        for (all, own) in slaves.iter_mut().zip([0, heating, 0]) {
            *all += own;
        }
        for (habit, stream) in HABITS.iter().zip(stream::HABITS..) {
            let turn = second.div_euclid(habit.minutes * 60);
            if habit.hours.contains(&self.hour) && noise(seed, stream, turn, 1000) < habit.per_mille {
                watts.iter_mut().zip(habit.watts).for_each(|(all, own)| *all += own);
                slaves.iter_mut().zip(habit.slaves).for_each(|(all, own)| *all += own);
            }
        }
        let [l1, l2, l3] = watts;
        let l1 = l1 - self.sun * about(stream::SUN, 20) / 1000;
        // A balance to the watt would show neither import nor export.
        let l1 = if l1 + l2 + l3 == 0 { l1 + 1 } else { l1 };
        Flows { watts: [l1, l2, l3], slaves }
    }
}

/// Which noise is whose.
mod stream {
    pub(super) const LOAD: u64 = 1;
    pub(super) const SUN: u64 = 2;
    pub(super) const SKY: u64 = 3;
    pub(super) const HEAT: u64 = 4;
    pub(super) const HABITS: u64 = 100;
}

/// The height at `x` of the line through `points`, whose first numbers rise and count in `unit`s of x;
/// 0 outside.
fn along(points: &[(i64, i64)], unit: i64, x: i64) -> i64 {
    let pairs = points.iter().zip(points.iter().skip(1));
    let height = |(&(x0, y0), &(x1, y1)): (&(i64, i64), &(i64, i64))| {
        let (x0, x1) = (x0 * unit, x1 * unit);
        (x0..=x1).contains(&x).then(|| y0 + (y1 - y0) * (x - x0) / (x1 - x0))
    };
    pairs.into_iter().find_map(height).unwrap_or(0)
}
