use std::collections::BTreeMap;

use jiff::{SignedDuration, tz::TimeZone};
use proptest::{
    collection::vec,
    option,
    prelude::*,
    sample::{Index, select},
};

use super::*;

const BYS: [By; 6] = [By::Total, By::Year, By::Month, By::Day, By::Hour, By::Quarter];
const ZONES: [&str; 6] =
    ["Europe/Amsterdam", "Europe/Helsinki", "UTC", "Asia/Kathmandu", "Australia/Lord_Howe", "Pacific/Apia"];

fn zone(name: &str) -> TimeZone {
    TimeZone::get(name).unwrap()
}

fn amsterdam() -> TimeZone {
    zone("Europe/Amsterdam")
}

fn instant(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn value(text: &str) -> Decimal {
    Decimal::parse(text.as_bytes()).unwrap()
}

fn points(points: &[(&str, &str)]) -> Vec<Point> {
    points.iter().map(|(at, text)| Point { at: instant(at), value: value(text) }).collect()
}

/// Points one quarter-hour after the other.
fn row(values: &[&str]) -> Vec<Point> {
    let at = |index: usize| Timestamp::from_second(1_780_000_200 + 900 * index as i64).unwrap();
    values.iter().enumerate().map(|(index, text)| Point { at: at(index), value: value(text) }).collect()
}

fn finest(points: &[Point]) -> u8 {
    points.iter().map(|point| point.value.scale()).max().unwrap_or(0)
}

fn curve(points: &[Point], unit: &Unit) -> Curve {
    Curve::new(points.iter().copied(), unit, finest(points))
}

/// `label value method` of each period, times as the zone shows them where they are cut.
fn usage(points: &[Point], by: By, zone: &TimeZone) -> Vec<String> {
    let curve = curve(points, &Unit::KWH);
    let (from, to) = curve.span().unwrap();
    let line = |(period, used): (Period, Consumption)| {
        let whole = (used.from, used.to) == (period.from, period.to);
        let cut = if whole { String::new() } else { format!(" ({} to {})", used.from, used.to) };
        format!("{period} {} {}", used.value, used.estimated).trim_end().to_owned() + &cut
    };
    curve.over(Periods::new(by, zone.clone(), from, to)).map(line).collect()
}

/// The quarter-hours of values that came one a quarter-hour.
fn quarters(values: &[&str], unit: &Unit) -> String {
    let curve = curve(&row(values), unit);
    let (from, to) = curve.span().unwrap();
    let line = |(_, used): (Period, Consumption)| format!("{} {}", used.value, used.estimated).trim_end().to_owned();
    curve.over(Periods::new(By::Quarter, TimeZone::UTC, from, to)).map(line).collect::<Vec<_>>().join(", ")
}

#[test]
fn days_have_23_24_and_25_hours() {
    let spring = points(&[
        ("2026-03-28T23:00:05Z", "1000.000"),
        ("2026-03-29T22:00:00Z", "1023.000"),
        ("2026-03-30T22:00:12Z", "1047.000"),
    ]);
    assert_eq!(usage(&spring, By::Day, &amsterdam()), ["2026-03-29 23.000", "2026-03-30 24.000"]);
    let autumn = points(&[
        ("2026-10-24T22:00:00Z", "2000.000"),
        ("2026-10-25T23:00:00Z", "2025.000"),
        ("2026-10-26T23:00:00Z", "2049.000"),
    ]);
    assert_eq!(usage(&autumn, By::Day, &amsterdam()), ["2026-10-25 25.000", "2026-10-26 24.000"]);
    assert_eq!(
        usage(&autumn, By::Hour, &amsterdam())[1..5],
        [
            "2026-10-25T01:00+02:00 1.000 linear",
            "2026-10-25T02:00+02:00 1.000 linear",
            "2026-10-25T02:00+01:00 1.000 linear",
            "2026-10-25T03:00+01:00 1.000 linear",
        ]
    );
}

#[test]
fn hours_of_an_hourly_meter_are_exact_and_its_quarter_hours_are_estimated() {
    let gas = points(&[
        ("2026-11-21T17:00:00Z", "500.000"),
        ("2026-11-21T18:00:00Z", "500.301"),
        ("2026-11-21T19:00:00Z", "500.301"),
        ("2026-11-21T20:00:00Z", "500.401"),
    ]);
    assert_eq!(
        usage(&gas, By::Hour, &amsterdam()),
        ["2026-11-21T18:00+01:00 0.301", "2026-11-21T19:00+01:00 0.000", "2026-11-21T20:00+01:00 0.100"]
    );
    // Where nothing was used in the hour, nothing was in its quarters.
    assert_eq!(
        usage(&gas, By::Quarter, &amsterdam())[..6],
        [
            "2026-11-21T18:00+01:00 0.075 linear",
            "2026-11-21T18:15+01:00 0.075 linear",
            "2026-11-21T18:30+01:00 0.075 linear",
            "2026-11-21T18:45+01:00 0.076 linear",
            "2026-11-21T19:00+01:00 0.000",
            "2026-11-21T19:15+01:00 0.000",
        ]
    );
}

#[test]
fn periods_are_cut_to_what_is_known_and_a_gap_is_exact_as_a_whole() {
    let gap = points(&[
        ("2026-11-10T12:07:00Z", "10.000"),
        ("2026-11-30T23:00:00Z", "30.000"),
        ("2027-01-31T23:00:59Z", "92.000"),
        ("2027-02-01T00:00:00Z", "93.000"),
    ]);
    assert_eq!(
        usage(&gap, By::Month, &amsterdam()),
        [
            "2026-11 20.000 (2026-11-10T12:07:00Z to 2026-11-30T23:00:00Z)",
            "2026-12 31.000 linear",
            "2027-01 31.000 linear",
            "2027-02 1.000 (2027-01-31T23:00:00Z to 2027-02-01T00:00:00Z)",
        ]
    );
    assert_eq!(
        usage(&gap, By::Year, &amsterdam()),
        [
            "2026 51.000 linear (2026-11-10T12:07:00Z to 2026-12-31T23:00:00Z)",
            "2027 32.000 linear (2026-12-31T23:00:00Z to 2027-02-01T00:00:00Z)",
        ]
    );
    let curve = curve(&gap, &Unit::KWH);
    assert_eq!(curve.total().unwrap().value, value("83.000"));
    assert_eq!(curve.between(instant("2020-01-01T00:00:00Z"), instant("2021-01-01T00:00:00Z")), None);
    assert_eq!(Curve::new(gap.into_iter().take(1), &Unit::KWH, 3).total(), None);
}

/// Each quarter-hour of a few values.
#[test]
fn falls() {
    for (what, values, expected) in [
        ("none", &["1.0", "1.0", "1.5"][..], "0.0, 0.5"),
        ("a dip is skipped", &["100", "102", "50", "104", "105"], "2, 1 linear, 1 linear, 1"),
        ("a dip is skipped: equal values", &["100", "50", "100", "101"], "0, 0, 1"),
        ("a spike is skipped", &["100", "102", "999", "104", "105"], "2, 1 linear, 1 linear, 1"),
        ("a spike is skipped: equal values", &["100", "999", "100", "101"], "0, 0, 1"),
        ("either: a dip", &["1", "4", "3", "6"], "3, 1 linear, 1 linear"),
        ("a reset", &["4999", "5000", "0", "1", "2"], "1, 0 restart, 1, 1"),
        ("two resets", &["100", "50", "20", "21"], "0 restart, 0 restart, 1"),
        ("a fall at the beginning", &["999", "101", "102"], "0 restart, 1"),
        ("a fall at the end", &["100", "101", "90"], "1, 0 restart"),
        ("a rise to a spike at the end is not yet one", &["100", "101", "999"], "1, 898"),
        ("a dip before a spike", &["100", "50", "200", "60", "61"], "0 restart, 0 restart, 0 restart, 1"),
        ("a spike before a spike", &["1", "9", "2", "8", "3", "4"], "0 linear, 1 linear, 0 linear, 1 linear, 1"),
        ("overflow", &["99999.998", "99999.999", "0.001", "0.002"], "0.001, 0.002 overflow, 0.001"),
        ("overflow at the beginning and the end", &["99999.999", "0.001"], "0.002 overflow"),
        (
            "overflow in a gap of skipped ones",
            &["99990", "99995", "7", "99998", "3", "4"],
            "5, 1 linear, 2 linear, 5 overflow, 1",
        ),
        ("overflow of 31 bits", &["2147483.640", "2147483.647", "0.002"], "0.007, 0.003 overflow"),
        ("overflow of 32 bits", &["4294967290", "4294967295", "4"], "5, 5 overflow"),
        ("too far below what it holds", &["98000", "98999", "0"], "999, 0 restart"),
        ("too far above zero", &["99990", "99991", "1001"], "1, 0 restart"),
        ("too few digits to overflow", &["9998", "9999", "0"], "1, 0 restart"),
        ("kWh do not overflow at 36", &["359999.5", "359999.9", "0.0"], "0.4, 0.0 restart"),
        ("fewer decimals", &["123.400", "123.456", "123", "123", "124"], "0.056, 0.000, 0.000, 1.000"),
        ("fewer decimals, then more used", &["123.400", "123.456", "123", "124"], "0.056, 0.272 linear, 0.272 linear"),
        ("more decimals", &["123", "124", "124.5", "125.25"], "1.00, 0.50, 0.75"),
        ("fewer decimals and a fall", &["123.400", "123.456", "122", "123"], "0.056, 0.000 restart, 1.000"),
        ("overflow with other decimals", &["99999.9", "0.10", "0.20"], "0.20 overflow, 0.10"),
    ] {
        assert_eq!(quarters(values, &Unit::KWH), expected, "{what}: {values:?}");
    }
    // 99999 kWh and 100000 kWh, in GJ.
    assert_eq!(quarters(&["359.9928", "359.9964", "0.0000"], &Unit::GJ), "0.0036, 0.0036 overflow");
    assert_eq!(quarters(&["99999.999", "0.000"], &Unit::GJ), "0.001 overflow");
}

#[test]
fn the_newest_reading_and_points_out_of_order() {
    let list = [
        ("T10:00:05", "1.0"),
        ("T10:00:05", "9.0"),
        ("T09:00:00", "9.0"),
        ("T10:15:05", "1.5"),
        ("T10:15:45", "1.6"),
        ("T10:15:45", "1.7"),
    ];
    let list: Vec<Point> = list
        .iter()
        .map(|(time, text)| Point { at: instant(&format!("2026-11-21{time}Z")), value: value(text) })
        .collect();
    assert_eq!(
        usage(&list, By::Quarter, &TimeZone::UTC),
        ["2026-11-21T10:00+00:00 0.5", "2026-11-21T10:15+00:00 0.1 (2026-11-21T10:15:00Z to 2026-11-21T10:15:45Z)",]
    );
}

#[test]
fn an_exchanged_meter_goes_on_where_the_old_one_ended() {
    let old = points(&[
        ("2026-11-01T00:00:00Z", "5000.0"),
        ("2026-11-02T00:00:00Z", "5010.0"),
        ("2026-11-03T00:00:00Z", "5014.0"),
        ("2026-11-03T10:00:00Z", "5015.0"),
        ("2026-11-09T00:00:00Z", "5020.0"),
    ]);
    let new = points(&[
        ("2026-11-03T12:00:00Z", "0.000"),
        ("2026-11-04T00:00:00Z", "2.500"),
        ("2026-11-05T00:00:00Z", "9.000"),
    ]);
    let chain = curve(&old, &Unit::KWH).then(curve(&new, &Unit::KWH));
    let (from, to) = chain.span().unwrap();
    let days: Vec<_> = chain
        .over(Periods::new(By::Day, TimeZone::UTC, from, to))
        .map(|(period, used)| format!("{period} {} {}", used.value, used.estimated))
        .collect();
    // The old one was sold, and counts elsewhere.
    let expected = ["2026-11-01 10.000 ", "2026-11-02 4.000 ", "2026-11-03 3.500 exchange", "2026-11-04 6.500 "];
    assert_eq!(days, expected);
    assert_eq!(chain.total().unwrap().value, value("24.000"));
    assert_eq!(chain.total().unwrap().estimated.to_string(), "exchange");
    // Only its name changed.
    let renamed = points(&[("2026-11-02T00:00:30Z", "5010.0"), ("2026-11-02T00:15:00Z", "5010.2")]);
    let chain = curve(&old, &Unit::KWH).then(curve(&renamed, &Unit::KWH));
    assert_eq!(
        listed(&chain, By::Day, "UTC").iter().map(|(_, used)| used.value.mantissa()).collect::<Vec<_>>(),
        [100, 2]
    );
    assert_eq!(chain.total().unwrap().estimated, Methods::default());
    // What the old one did after it was exchanged does not matter.
    let sold = curve(&row(&["1.0", "1.1", "1.2", "0.1", "0.2"]), &Unit::KWH);
    let chain = sold.then(curve(&row(&["0.0", "1.1", "1.2", "1.3"])[2..], &Unit::KWH));
    assert_eq!(chain.total().unwrap().value, value("0.3"));
    assert_eq!(chain.total().unwrap().estimated, Methods::default());
    // It was reset before.
    let reset = curve(&row(&["5.0", "0.1"]), &Unit::KWH);
    assert_eq!(reset.then(curve(&new, &Unit::KWH)).total().unwrap().estimated.to_string(), "restart+exchange");
    let none = Curve::default();
    assert_eq!(none.clone().then(chain.clone()), chain);
    assert_eq!(chain.clone().then(none), chain);
}

#[test]
fn earlier_years_are_those_with_the_same_label() {
    let one = |by, at| Periods::new(by, amsterdam(), instant(at), Timestamp::MAX).next().unwrap();
    for (by, at, years, expected) in [
        (By::Year, "2026-06-01T00:00:00Z", 1, "2025"),
        (By::Month, "2026-11-21T00:00:00Z", 2, "2024-11"),
        (By::Day, "2024-02-28T23:00:00Z", 1, ""),
        (By::Day, "2024-02-28T23:00:00Z", 4, "2020-02-29"),
        (By::Hour, "2024-02-29T12:00:00Z", 1, ""),
        (By::Hour, "2026-11-21T18:00:00Z", 1, "2025-11-21T19:00+01:00"),
        // Summer time ended on the 25th in 2026, on the 26th in 2025, and on the 25th in 2020.
        (By::Hour, "2026-10-25T11:00:00Z", 1, "2025-10-25T12:00+02:00"),
        (By::Hour, "2026-10-25T00:00:00Z", 1, "2025-10-25T02:00+02:00"),
        (By::Hour, "2026-10-25T01:00:00Z", 1, ""),
        (By::Quarter, "2026-10-25T01:15:00Z", 6, "2020-10-25T02:15+01:00"),
        (By::Quarter, "2026-10-26T01:15:00Z", 1, "2025-10-26T02:15+02:00"),
        // It began on the 29th in 2026, on the 30th in 2025.
        (By::Quarter, "2026-03-30T00:45:00Z", 1, ""),
        (By::Year, "2026-06-01T00:00:00Z", i16::MAX, ""),
    ] {
        let earlier = one(by, at).earlier(&amsterdam(), years);
        assert_eq!(earlier.map_or(String::new(), |earlier| earlier.to_string()), expected, "{at} {by:?} -{years}");
        if let Some(earlier) = earlier {
            assert_eq!(Some(earlier), Periods::new(by, amsterdam(), earlier.from, earlier.to).next());
        }
    }
}

#[test]
fn half_an_hour_that_a_clock_made_has_no_earlier_one() {
    let name = zone("Australia/Lord_Howe");
    for (at, label) in
        [("2026-04-04T15:00:00Z", "2026-04-05T01:30+10:30"), ("2026-10-03T15:30:00Z", "2026-10-04T02:30+11:00")]
    {
        let half = Periods::new(By::Hour, name.clone(), instant(at), Timestamp::MAX).next().unwrap();
        assert_eq!((half.to_string().as_str(), half.earlier(&name, 1)), (label, None));
    }
}

#[test]
fn labels() {
    let list = |by, name: &str, from, to| -> Vec<String> {
        Periods::new(by, zone(name), instant(from), instant(to)).map(|period| period.to_string()).collect()
    };
    assert_eq!(list(By::Year, "UTC", "2025-12-31T23:59:59.999Z", "2026-01-01T00:00:00.001Z"), ["2025", "2026"]);
    assert_eq!(list(By::Year, "UTC", "2025-12-31T23:59:59Z", "2026-01-01T00:00:00Z"), ["2025"]);
    assert_eq!(list(By::Month, "Europe/Helsinki", "2026-11-30T22:00:00Z", "2026-12-31T22:00:00Z"), ["2026-12"]);
    assert_eq!(
        list(By::Hour, "Asia/Kathmandu", "2026-11-21T00:01:00Z", "2026-11-21T01:16:00Z"),
        ["2026-11-21T05:00+05:45", "2026-11-21T06:00+05:45", "2026-11-21T07:00+05:45"]
    );
    // Half an hour is moved there.
    assert_eq!(
        list(By::Hour, "Australia/Lord_Howe", "2026-04-04T14:30:00Z", "2026-04-04T16:00:00Z"),
        ["2026-04-05T01:00+11:00", "2026-04-05T01:30+10:30", "2026-04-05T02:00+10:30"]
    );
    assert_eq!(
        list(By::Hour, "Australia/Lord_Howe", "2026-04-04T15:10:00Z", "2026-04-04T15:20:00Z"),
        ["2026-04-05T01:30+10:30"]
    );
    assert_eq!(
        list(By::Hour, "Australia/Lord_Howe", "2026-10-03T14:30:00Z", "2026-10-03T16:30:00Z"),
        ["2026-10-04T01:00+10:30", "2026-10-04T02:30+11:00", "2026-10-04T03:00+11:00"]
    );
    // Samoa crossed the date line: there was no 30 December.
    assert_eq!(
        list(By::Day, "Pacific/Apia", "2011-12-29T12:00:00Z", "2011-12-31T00:00:00Z"),
        ["2011-12-29", "2011-12-31"]
    );
    assert_eq!(list(By::Total, "UTC", "2026-01-01T00:00:00Z", "2027-02-01T00:00:00Z"), ["total"]);
    for by in BYS {
        assert_eq!(list(by, "UTC", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"), [""; 0]);
    }
    for by in BYS {
        assert!(Periods::new(by, zone("Europe/Amsterdam"), Timestamp::MAX, Timestamp::MAX).count() <= 1);
        assert!(Periods::new(by, zone("Europe/Amsterdam"), Timestamp::MIN, Timestamp::MIN).count() <= 1);
    }
}

#[test]
fn a_register_at_a_moment() {
    let at = |text: &str, before: (&str, &str), after: (&str, &str)| {
        let [before, after] = [before, after].map(|point| points(&[point]).into_iter().next());
        value_at(instant(text), before, after).map(|(value, estimated)| format!("{value} {estimated}"))
    };
    let (ten, eleven) = (("2026-11-21T10:00:00.500Z", "100.000"), ("2026-11-21T10:00:10.500Z", "100.019"));
    assert_eq!(at("2026-11-21T10:00:00.500Z", ten, eleven).unwrap(), "100.000 ");
    assert_eq!(at("2026-11-21T10:00:05.500Z", ten, eleven).unwrap(), "100.009 linear");
    assert_eq!(at("2026-11-21T10:00:05.500Z", ten, (eleven.0, "100.0")), Ok("100.000 ".to_owned()));
    assert_eq!(at("2026-11-21T10:00:05.500Z", ten, (eleven.0, "0.001")), Err(Unknown::Fell));
    assert_eq!(at("2026-11-21T10:00:00Z", ten, eleven), Err(Unknown::Earlier));
    assert_eq!(at("2026-11-21T10:00:11Z", ten, eleven), Err(Unknown::Later));
    assert_eq!(value_at(instant(ten.0), None, None), Err(Unknown::Earlier));
}

/// What may happen to a counter from one point to the next.
#[derive(Debug, Clone)]
enum Step {
    Used(i64),
    Still,
    /// To so little.
    Reset(i64),
    /// To so much below what it holds.
    NearlyFull(usize, i64),
    /// So much lower or higher, once.
    Wrong(i64),
    Decimals(u8),
}

const CAPACITIES: [i64; 5] = [100_000, 36_000_000, 100_000_000, 1 << 31, 1 << 32];

fn steps() -> impl Strategy<Value = (Step, i64, i64)> {
    let step = prop_oneof![
        8 => (0i64..5_000).prop_map(Step::Used),
        2 => Just(Step::Still),
        1 => (0i64..500).prop_map(Step::Reset),
        1 => (0..CAPACITIES.len(), 1i64..900).prop_map(|(capacity, below)| Step::NearlyFull(capacity, below)),
        2 => (-9_000i64..9_000).prop_map(Step::Wrong),
        1 => (0u8..=4).prop_map(Step::Decimals),
    ];
    // Quarter-hours to the next, and when in it: most meters are prompt, and some speak rarely.
    let gap = prop_oneof![12 => Just(1i64), 3 => 2i64..9, 1 => 9i64..200, 1 => 1_000i64..40_000];
    let late = prop_oneof![3 => Just(0i64), 3 => 0i64..60_000, 2 => 60_000i64..900_000];
    (step, gap, late)
}

/// Points that begin before a day on which a clock is moved.
fn histories(count: usize) -> impl Strategy<Value = Vec<Point>> {
    let begin =
        select(vec!["2026-03-28T12:00:00Z", "2026-10-24T12:00:00Z", "2011-12-29T12:00:00Z", "2026-04-04T06:00:00Z"]);
    // And the newest reading of all.
    let newest = option::of((1i64..900_000, 0i64..100));
    (begin, 0i64..200, vec(steps(), 0..count), newest).prop_map(|(begin, quarters, steps, newest)| {
        let mut quarter = instant(begin).as_millisecond() / 900_000 + quarters;
        let (mut count, mut decimals, mut list) = (0i64, 3u8, Vec::new());
        for (step, gap, late) in steps {
            let mut shown = None;
            match step {
                Step::Used(used) => count += used,
                Step::Still => {}
                Step::Reset(to) => count = to,
                Step::NearlyFull(capacity, below) => count = CAPACITIES[capacity] - below,
                Step::Wrong(by) => shown = Some((count + by).max(0)),
                Step::Decimals(to) => decimals = to,
            }
            // Counts in thousandths, shown with other decimals.
            let shown = i128::from(shown.unwrap_or(count));
            let shown = rescaled(shown, 3, decimals);
            let value = Decimal::new(i64::try_from(shown).unwrap(), decimals).unwrap();
            list.push(Point { at: Timestamp::from_millisecond(quarter * 900_000 + late).unwrap(), value });
            quarter += gap;
        }
        let last: Option<Point> = list.last().copied();
        if let (Some(last), Some((later, used))) = (last, newest) {
            let at = last.at.as_millisecond();
            let at = (at + later).min(at - at.rem_euclid(900_000) + 899_999);
            let value = Decimal::new(last.value.mantissa() + used, last.value.scale()).unwrap();
            list.push(Point { at: Timestamp::from_millisecond(at).unwrap(), value });
        }
        list
    })
}

/// What is short enough to be asked by the quarter-hour.
fn finest_of(points: &[Point]) -> &'static [By] {
    let days = match points {
        [first, .., last] => last.at.duration_since(first.at).as_hours() / 24,
        _ => 0,
    };
    if days < 60 { &BYS } else { &BYS[..4] }
}

fn units() -> impl Strategy<Value = Unit> {
    select(vec![Unit::KWH, Unit::GJ])
}

fn listed(curve: &Curve, by: By, zone: &str) -> Vec<(Period, Consumption)> {
    let Some((from, to)) = curve.span() else { return Vec::new() };
    curve.over(Periods::new(by, super::tests::zone(zone), from, to)).collect()
}

fn digits(used: &Consumption, decimals: u8) -> i128 {
    assert_eq!(used.value.scale(), decimals);
    assert!(used.value.mantissa() >= 0);
    used.value.mantissa().into()
}

proptest! {
    #[test]
    fn parts_are_whole(
        points in histories(40), others in histories(10), chained in any::<bool>(), unit in units(), zone in select(ZONES.to_vec()),
    ) {
        let mut whole = curve(&points, &unit);
        if chained {
            whole = whole.then(curve(&others, &unit));
        }
        let decimals = whole.decimals;
        let Some(total) = whole.total() else { return Ok(()) };
        let span = SignedDuration::from_hours(24 * 60) > total.to.duration_since(total.from);
        for by in &BYS[..if span { 6 } else { 4 }] {
            let parts = listed(&whole, *by, zone);
            let mut sum = 0;
            let mut reached = total.from;
            for (period, used) in &parts {
                sum += digits(used, decimals);
                prop_assert_eq!(used.from, reached);
                prop_assert!(period.from <= used.from && used.from < used.to && used.to <= period.to);
                prop_assert!(period.from == used.from || used.from == total.from);
                prop_assert!(period.to == used.to || used.to == total.to);
                reached = used.to;
            }
            prop_assert_eq!(reached, total.to);
            prop_assert_eq!(sum, digits(&total, decimals), "{:?}", by);
        }
    }

    #[test]
    fn each_period_is_the_sum_of_those_within(points in histories(40), zone in select(ZONES.to_vec())) {
        let whole = curve(&points, &Unit::KWH);
        let finest = &finest_of(&points)[1..];
        for pair in finest.windows(2) {
            let (long, short) = (listed(&whole, pair[0], zone), listed(&whole, pair[1], zone));
            let mut sums: BTreeMap<Timestamp, i128> = BTreeMap::new();
            for (period, used) in short {
                let within = long.iter().rfind(|(long, _)| long.from <= period.from).unwrap();
                prop_assert!(period.to <= within.0.to, "{} in {}", period, within.0);
                *sums.entry(within.0.from).or_default() += digits(&used, whole.decimals);
            }
            prop_assert!(long.iter().map(|(period, used)| (period.from, digits(used, whole.decimals))).eq(sums));
        }
    }

    #[test]
    fn a_thinned_list_says_the_same(
        points in histories(60), more in vec(any::<bool>(), 60), unit in units(), zone in select(ZONES.to_vec()),
    ) {
        let whole = curve(&points, &unit);
        let Some((from, to)) = whole.span() else { return Ok(()) };
        for by in finest_of(&points) {
            let periods: Vec<_> = Periods::new(*by, super::tests::zone(zone), from, to).collect();
            let boundaries = || periods.iter().flat_map(|period| [period.from, period.to]);
            let thinned = thin(&points, boundaries());
            let some: Vec<Point> = points
                .iter()
                .zip(&more)
                .filter_map(|(point, more)| (*more || thinned.contains(point)).then_some(*point))
                .collect();
            for thinned in [thinned, some] {
                let thinned = Curve::new(thinned, &unit, finest(&points));
                prop_assert_eq!(whole.total(), thinned.total());
                let all: Vec<_> = whole.over(periods.iter().copied()).collect();
                let few: Vec<_> = thinned.over(periods.iter().copied()).collect();
                prop_assert_eq!(all, few, "{:?}", by);
            }
        }
    }

    /// A value that comes late changes nothing but between its neighbours, if it lies between theirs; if it does not, or they fall,
    /// nothing but between those near it.
    #[test]
    fn a_late_value_changes_only_what_is_near(points in histories(40), index in any::<Index>(), zone in select(ZONES.to_vec())) {
        let Some(between) = points.len().checked_sub(2).filter(|between| *between > 0) else { return Ok(()) };
        let index = 1 + index.index(between);
        // The newest of all stands for the beginning of its quarter-hour if it is the only one in it.
        if points[index].at.as_second() / 900 == points[index + 1].at.as_second() / 900 {
            return Ok(());
        }
        let without = [&points[..index], &points[index + 1..]].concat();
        let decimals = finest(&points);
        let [with, without] = [&points, &without].map(|points| Curve::new(points.iter().copied(), &Unit::KWH, decimals));
        let low = &points[index.saturating_sub(3)..(index + 4).min(points.len())];
        let calm = low.windows(2).all(|pair| pair[1].value.minus(pair[0].value).unwrap().mantissa() >= 0);
        let near = if calm { 1 } else { 5 };
        let begin = index.checked_sub(near).map_or(Timestamp::MIN, |index| points[index].at);
        let end = points.get(index + near).map_or(Timestamp::MAX, |point| point.at);
        for by in finest_of(&points) {
            let (with, without) = (listed(&with, *by, zone), listed(&without, *by, zone));
            prop_assert_eq!(with.len(), without.len());
            for (with, without) in with.iter().zip(&without) {
                if with.1.to <= begin || end <= with.1.from {
                    prop_assert_eq!(with, without);
                }
            }
            if calm {
                let sum = |list: &[(Period, Consumption)]| list.iter().map(|(_, used)| digits(used, decimals)).sum::<i128>();
                prop_assert_eq!(sum(&with), sum(&without));
            }
        }
    }

    /// Where nothing fell, the whole is what the counter shows, and a boundary at which it was read is what was read.
    #[test]
    fn without_falls_the_counter_is_the_curve(steps in vec((0i64..1_000, 1i64..50), 2..40)) {
        let (mut quarter, mut count) = (1_980_000i64, 0i64);
        let points: Vec<Point> = steps.into_iter().map(|(used, gap)| {
            (count, quarter) = (count + used, quarter + gap);
            let at = Timestamp::from_millisecond(quarter * 900_000).unwrap();
            Point { at, value: Decimal::new(count, 3).unwrap() }
        }).collect();
        let whole = curve(&points, &Unit::KWH);
        for (index, low) in points.iter().enumerate() {
            for high in &points[index + 1..] {
                let used = whole.between(low.at, high.at).unwrap();
                prop_assert_eq!(Some(used.value), high.value.minus(low.value));
                prop_assert!(used.estimated.is_empty());
            }
        }
    }

    #[test]
    fn whatever_meters_say_nothing_breaks(
        list in vec((any::<i64>(), any::<i64>(), 0u8..=18), 0..30), decimals in any::<u8>(), at in any::<i64>(),
    ) {
        let most = 1_000_000_000_000_000_000;
        let instant = |millis: i64| Timestamp::from_millisecond(millis % 253_402_207_200_000).unwrap();
        let points: Vec<Point> = list
            .into_iter()
            .map(|(at, mantissa, scale)| Point { at: instant(at), value: Decimal::new(mantissa % most, scale).unwrap() })
            .collect();
        for pair in points.windows(2) {
            if let Ok((value, _)) = value_at(instant(at), Some(pair[0]), Some(pair[1])) {
                prop_assert!(value.minus(pair[0].value).is_none_or(|grown| grown.mantissa() >= 0));
            }
        }
        let whole = Curve::new(points.iter().copied(), &Unit::GJ, decimals);
        let mut ordered = points;
        ordered.sort_by_key(|point| point.at);
        for curve in [Curve::new(ordered.iter().copied(), &Unit::GJ, decimals), whole.clone().then(whole)] {
            let Some((from, to)) = curve.span() else { continue };
            for (_, used) in curve.over(Periods::new(By::Year, amsterdam(), from, to)).take(50) {
                prop_assert!(used.value.mantissa() >= 0);
            }
        }
    }
}
