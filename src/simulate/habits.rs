//! What a household draws, and what its roof gives back.
//!
//! Enters: a [`Profile`], a seed and a second, with what the calendar and the clock on the wall show. Leaves:
//! [`Flows`], constant for [`STEP`] seconds. A function of just these, so that it does not matter in
//! which steps time goes by. Whole numbers throughout: watts, and micro-units of the slave meters.

use std::ops::{Range, RangeInclusive};

use jiff::civil::{Date, DateTime, Weekday};
use serde::Deserialize;

use super::noise;

/// How people live, in plain numbers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Profile {
    /// How many people: how often kettle, shower and the rest are used. 0..=20.
    pub people: u8,
    /// What runs at night, in W; by day it is up to four times as much.
    pub base_load_w: u16,
    /// Peak of the solar panels, in W; 0: none.
    pub solar_w: u16,
    /// Peak of the heating, in W; 0: none. It flows through the heat meters.
    pub heating_w: u16,
    /// Whether a boiler burns gas for that heat.
    pub gas_heating: bool,
    /// What a flame for cooking burns, in litres of gas an hour; 0: nobody cooks on gas.
    pub flame_l_h: u16,
    /// What the shower draws, in litres of hot water a minute; a tap draws 4/7 of it.
    pub shower_l_min: u8,
    /// Days on which nobody is home, each from the first through the last: `2026-07-11/2026-07-25`.
    pub holidays: Vec<Holiday>,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            people: 2,
            base_load_w: 190,
            solar_w: 3600,
            heating_w: 7000,
            gas_heating: false,
            flame_l_h: 200,
            shower_l_min: 7,
            holidays: Vec::new(),
        }
    }
}

/// From the first day through the last.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Holiday(RangeInclusive<Date>);

impl TryFrom<String> for Holiday {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parse = |text: &str| text.parse::<Date>().ok();
        let days = text.split_once('/').and_then(|(first, last)| Some(parse(first)?..=parse(last)?));
        let days = days.filter(|days| !days.is_empty());
        days.map(Self)
            .ok_or_else(|| format!("`{text}` is no range of days: write 2026-07-11/2026-07-25, the first and the last"))
    }
}

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
    /// Through gas (ml/1000 a second), heat (W), hot water and cold water (ml/1000 a second).
    pub(super) slaves: [u64; MEDIA],
}

/// How many kinds of slave meters there are: see [`Flows::slaves`].
pub(super) const MEDIA: usize = 4;

impl Flows {
    /// Over all phases, in W; never 0.
    pub(super) fn net(&self) -> i64 {
        self.watts.iter().sum()
    }

    /// Reactive power over all phases, in var; negative is capacitive: what motors draw, less what electronics give.
    pub(super) fn reactive(&self) -> i64 {
        self.watts.iter().map(|&watts| reactive(watts)).sum()
    }
}

/// Of a phase over which so many W flow, in var.
pub(super) fn reactive(watts: i64) -> i64 {
    watts.abs() / 8 - 30
}

/// Something that people do now and then.
struct Habit {
    /// Local hours in which they may.
    hours: Range<i8>,
    /// How long it takes.
    minutes: i64,
    /// In how many of a thousand such times they do, where two live.
    per_mille: i64,
    /// Whether it goes on while nobody is home.
    always: bool,
    /// As in [`Flows`].
    watts: [i64; 3],
    /// As in [`Flows`].
    slaves: [u64; MEDIA],
}

const HABITS: [Habit; 10] = [
    // The fridge.
    Habit { hours: 0..24, minutes: 15, per_mille: 400, always: true, watts: [90, 0, 0], slaves: [0; MEDIA] },
    // The kettle.
    Habit { hours: 6..23, minutes: 3, per_mille: 40, always: false, watts: [0, 2000, 0], slaves: [0; MEDIA] },
    // Washing.
    Habit { hours: 9..21, minutes: 40, per_mille: 80, always: false, watts: [1900, 0, 0], slaves: [0; MEDIA] },
    // The dishwasher.
    Habit { hours: 20..24, minutes: 30, per_mille: 200, always: false, watts: [0, 0, 1800], slaves: [0; MEDIA] },
    // The oven, on two phases.
    Habit { hours: 17..20, minutes: 20, per_mille: 300, always: false, watts: [0, 1200, 1200], slaves: [0; MEDIA] },
    // A flame for breakfast, two for dinner: 0.2 m3/h each.
    Habit { hours: 7..9, minutes: 5, per_mille: 250, always: false, watts: [0; 3], slaves: [FLAME, 0, 0, 0] },
    Habit { hours: 17..20, minutes: 10, per_mille: 450, always: false, watts: [0; 3], slaves: [2 * FLAME, 0, 0, 0] },
    // Hands and dishes: 4 l/min.
    Habit { hours: 7..23, minutes: 1, per_mille: 15, always: false, watts: [0; 3], slaves: [0, 0, 4 * LITRE, 0] },
    // The shower: 7 l/min.
    Habit { hours: 6..9, minutes: 7, per_mille: 80, always: false, watts: [0; 3], slaves: [0, 0, 7 * LITRE, 0] },
    // The toilet: 6 l in a minute.
    Habit { hours: 0..24, minutes: 1, per_mille: 6, always: false, watts: [0; 3], slaves: [0, 0, 0, 6 * LITRE] },
];

/// A flame as it stands in [`HABITS`]: 0.2 m3/h, of which [`Profile::flame_l_h`] says how much it is.
const FLAME: u64 = 56_000;
/// A litre a minute, about.
const LITRE: u64 = 16_600;
/// So many m3 of gas, in millionths, give a kJ of heat: 35.17 MJ/m3 and a boiler that loses a tenth.
const GAS_PER_KJ: u64 = 31_600;

/// What always flows: the pilot light of an old geyser (13 l/h) and a trickle that keeps the heat warm.
const ALWAYS: [u64; MEDIA] = [3_500, 120, 0, 0];

/// How much of summer there is on a day of the year, per mille.
const SUMMER: [(i64, i64); 6] = [(1, 10), (35, 130), (172, 1000), (265, 500), (355, 0), (366, 10)];
/// Background load over the hours of a local day, in W, where 190 run at night.
const LOAD: [(i64, i64); 9] =
    [(0, 190), (3, 140), (6, 190), (8, 480), (11, 310), (16, 340), (19, 820), (22, 480), (24, 190)];
/// What the thermostat asks over the hours of a local day, per mille.
const WARMTH: [(i64, i64); 6] = [(0, 350), (5, 350), (8, 1000), (13, 600), (20, 950), (24, 350)];

/// Minute of the UTC day in which the sun stands highest over the Netherlands.
const NOON: i64 = 700;

/// What holds for a [`SPELL`]: tariff, weather and time of day.
#[derive(Debug, Clone)]
pub(super) struct Conditions {
    /// Whether the low tariff is in force: 23:00 to 07:00 and in the weekend.
    pub(super) low: bool,
    /// Whether somebody is home.
    home: bool,
    hour: i8,
    load: i64,
    /// On the first phase.
    sun: i64,
    heating: i64,
}

impl Conditions {
    /// At a second since 1970, when the clock on the wall shows `clock`.
    pub(super) fn new(profile: &Profile, seed: u64, second: i64, clock: DateTime) -> Self {
        let hour = clock.hour();
        let home = !profile.holidays.iter().any(|Holiday(days)| days.contains(&clock.date()));
        let minute = i64::from(hour) * 60 + i64::from(clock.minute());
        let summer = along(&SUMMER, 1, i64::from(clock.day_of_year()));
        // The sun knows no summer time.
        let from_noon = (second.rem_euclid(86_400) / 60 - NOON).abs();
        let half_day = 235 + 265 * summer / 1000;
        let height = (half_day * half_day - from_noon * from_noon).max(0) * 1000 / (half_day * half_day);
        let clear = i64::from(profile.solar_w) * (300 + 700 * summer / 1000) / 1000 * height / 1000;
        // Clouds drift from one hour's sky to the next.
        let sky = |hour| 150 + noise(seed, stream::SKY, hour, 851);
        let this = second.div_euclid(3600);
        let sky = along(&[(0, sky(this)), (1, sky(this + 1))], 60, second.rem_euclid(3600) / 60);
        Self {
            low: !(7..23).contains(&hour) || matches!(clock.weekday(), Weekday::Saturday | Weekday::Sunday),
            home,
            hour,
            // Away from home it is night all day.
            load: if home { along(&LOAD, 60, minute) } else { 190 } * i64::from(profile.base_load_w) / 190,
            sun: clear * sky / 1000,
            heating: i64::from(profile.heating_w) * (850 - summer).max(0) / 1000
                * if home { along(&WARMTH, 60, minute) } else { 200 }
                / 1000,
        }
    }

    /// The flows at a second of this spell.
    pub(super) fn flows(&self, profile: &Profile, seed: u64, second: i64) -> Flows {
        let step = second.div_euclid(STEP);
        // In per mille of what was expected.
        let about = |what, spread: i64| 1000 - spread + noise(seed, what, step, 2 * spread + 1);
        let load = self.load * about(stream::LOAD, 120) / 1000;
        let mut watts = [load / 2, load / 5, load * 3 / 10];
        let mut slaves = ALWAYS;
        let heating = (self.heating * about(stream::HEAT, 200) / 1000).unsigned_abs();
        let burnt = if profile.gas_heating { heating * GAS_PER_KJ / 1000 } else { 0 };
        for (all, own) in slaves.iter_mut().zip([burnt, heating]) {
            *all += own;
        }
        for (habit, stream) in HABITS.iter().zip(stream::HABITS..) {
            let turn = second.div_euclid(habit.minutes * 60);
            let may = habit.hours.contains(&self.hour) && (habit.always || self.home);
            let per_mille =
                if habit.always { habit.per_mille } else { habit.per_mille * i64::from(profile.people) / 2 };
            if may && noise(seed, stream, turn, 1000) < per_mille {
                watts.iter_mut().zip(habit.watts).for_each(|(all, own)| *all += own);
                let [gas, heat, hot, cold] = habit.slaves;
                let own =
                    [gas * u64::from(profile.flame_l_h) / 200, heat, hot * u64::from(profile.shower_l_min) / 7, cold];
                slaves.iter_mut().zip(own).for_each(|(all, own)| *all += own);
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
