//! Values that passed every check, and are still not believed.
//!
//! Enters: the reports of one port in the order in which they came. Leaves: the same reports with their
//! doubtful readings flagged. Nothing is withheld and nothing is changed: a CRC-16 lets one damaged telegram
//! in 65,536 through, DSMR 2.2 and 3.0 have none, and whoever adds up must know what not to add.
//!
//! A counter is doubtful when it is lower than before (`backwards`), or when it grew by more than the connection
//! can carry in the time (`too_fast`); a power when the connection cannot carry it. Ten readings in a row that
//! agree with each other but not with what was believed are believed from then on, and an event `outlier:<register>`
//! says when the last value that they contradict was; the first nine stay flagged. There may be more before it: who
//! adds up goes back from there for as long as the values contradict the new one. So a counter that was reset, or a
//! first value that was wrong, ends as nine flags and one event.
//!
//! The time between two readings is that of the meter's clock, but on a live port no more than passed at the gateway:
//! a damaged clock must not excuse a leap. A capture has only the meter's clock.
//!
//! Another identifier at the same place is another meter, and begins anew. Once it was heard ten times in a row
//! its `info` names its `predecessor`; fewer may be damage where no CRC vouches for it.
//!
//! Not supported: values of set days (storage), single tariffs, temperatures and the like, which have no bound;
//! the overflow of a counter, which is an outlier like any other.

use std::{borrow::Cow, collections::BTreeMap};

use crate::{
    moment::Moment,
    reading::{Clock, Event, Medium, Reading, Report, Suspect},
    unit::{Decimal, Unit},
};

/// How many readings in a row that agree with each other are believed against what was.
pub const CONVINCING: u32 = 10;

/// How much later than its time a counter may show what went through it, in seconds: meters renew their
/// registers every ten.
const LATE_S: i128 = 15;

/// What an electricity connection can carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// 1 to 3.
    pub phases: u8,
    /// Amperes of each.
    pub amperes: u16,
}

impl Default for Connection {
    /// The largest that a household can have in the Netherlands: 3 x 80 A.
    fn default() -> Self {
        Self { phases: 3, amperes: 80 }
    }
}

impl Connection {
    /// From a text such as `3x25A`; None for anything else, and for more than 3 x 6,500 A.
    pub fn from_text(text: &str) -> Option<Self> {
        let (phases, amperes) = text.strip_suffix(['A', 'a'])?.trim_end().split_once(['x', 'X'])?;
        let (phases, amperes) = (phases.trim().parse().ok()?, amperes.trim().parse().ok()?);
        ((1..=3).contains(&phases) && (1..=6500).contains(&amperes)).then_some(Self { phases, amperes })
    }

    /// Watts at 253 V, the highest voltage that EN 50160 allows.
    fn watts(self) -> i128 {
        i128::from(self.phases) * i128::from(self.amperes) * 253
    }
}

/// The most that a counter may grow in an hour, in thousandths of its unit. None where nothing is known.
///
/// Behind gas, heat and water there is no fuse; the bounds are those of the largest meters that are sold for
/// a block of flats (gas G65: 100 m3/h; water: 40 m3/h), and 1 MW (3.6 GJ/h) of heat.
fn most_in_an_hour(medium: Medium, unit: &Unit, connection: Connection) -> Option<i128> {
    match (medium, unit.as_str()) {
        (Medium::Electricity, "kWh" | "kvarh") => Some(connection.watts()),
        (Medium::Gas, "m3") => Some(100_000),
        (Medium::HotWater | Medium::Water, "m3") => Some(40_000),
        (Medium::Heat | Medium::Cooling | Medium::HeatCooling, "GJ") => Some(3_600),
        (Medium::Heat | Medium::Cooling | Medium::HeatCooling, "m3") => Some(100_000),
        _ => None,
    }
}

/// A value and when it was.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    value: Decimal,
    unit: Unit,
    /// By the meter's clock, if it has one.
    at: Moment,
    /// By the gateway's; None for a capture, and for what was believed before a restart.
    received_at: Option<Moment>,
}

/// What is believed of one register.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Register {
    believed: Known,
    /// The last of some readings in a row that contradict it but not each other, and how many they are.
    contrary: Option<(Known, u32)>,
}

/// Who is at one place: the port itself, or a channel behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Occupant {
    meter: String,
    predecessor: Option<String>,
    /// Another identifier, and how many times in a row it was there.
    newcomer: Option<(String, u32)>,
}

/// Judges the reports of one port.
#[derive(Debug, Clone, Default)]
pub struct Judge {
    connection: Connection,
    /// Of meters on a bus: unit, and the most in an hour in thousandths of it.
    limits: BTreeMap<String, (Unit, i128)>,
    live: bool,
    /// By meter and register.
    registers: BTreeMap<(String, String), Register>,
    /// By channel; empty for the port itself.
    occupants: BTreeMap<String, Occupant>,
    /// How many minutes the meter's clock is behind, how many times in a row, and what was said of it.
    clock: (i64, u32, i64),
}

/// Far more registers than hang on one port: only noise in identifiers gets there.
const MOST_REGISTERS: usize = 4096;

impl Judge {
    /// For a port with this connection.
    pub fn new(connection: Connection) -> Self {
        Self { connection, ..Self::default() }
    }

    /// Says whether what follows is received as it is sent, so that the gateway's clock counts too.
    pub fn set_live(&mut self, live: bool) {
        self.live = live;
    }

    /// The most that counters of a meter on a bus may grow in an hour. Without this nothing is too fast there: a meter
    /// may count for a whole block.
    pub fn limit(&mut self, meter: &str, most: Decimal, unit: Unit) {
        self.limits.insert(meter.to_owned(), (unit, thousandths(most.mantissa(), most.scale())));
    }

    /// Takes over what was believed before a restart: reports in the order in which they came. What they flag
    /// is not believed.
    pub fn learn(&mut self, report: &Report<String>) {
        let Some(at) = report.measured_at else { return };
        for reading in report.readings.iter().filter(|reading| is_counter(reading) && reading.suspect.is_none()) {
            let believed = Known { value: reading.value, unit: reading.unit.clone(), at, received_at: None };
            self.remember(key(report, reading), Register { believed, contrary: None });
        }
    }

    /// Takes over who was at the place of this report before a restart, if it is certain to be of this port.
    pub fn learn_place(&mut self, report: &Report<String>) {
        let (meter, predecessor) = (report.meter.clone(), text_of(report, "predecessor"));
        self.occupants.insert(place(report), Occupant { meter, predecessor, newcomer: None });
    }

    /// Flags what is doubtful in a report that was received at `received_at`.
    pub fn judge(&mut self, report: &mut Report<String>, received_at: Moment) {
        let at = report.measured_at.unwrap_or(received_at);
        let mut outliers = Vec::new();
        let mut readings = std::mem::take(&mut report.readings);
        for reading in &mut readings {
            if is_counter(reading) {
                let (suspect, outlier) = self.judge_counter(report, reading, at, received_at);
                reading.suspect = suspect;
                outliers.extend(outlier);
            } else if reading.is_current() && self.is_too_much_power(reading) {
                reading.suspect = Some(Suspect::TooFast);
            }
        }
        report.readings = readings;
        report.events.extend(outliers);
        self.introduce(report);
    }

    /// How many minutes the clock of the meter whose port it is stands behind the gateway's (ahead: negative), once it
    /// did so ten times in a row, and again when that changes. Ten minutes more or less are no news.
    pub fn clock_error(&mut self, report: &Report<String>, received_at: Moment) -> Option<i64> {
        let own = report.clock == Clock::Meter && report.medium == Medium::Electricity && place(report).is_empty();
        let at = report.measured_at.filter(|_| own && self.live)?;
        let behind = received_at.since(at).as_secs();
        let minutes = behind.saturating_add(30).div_euclid(60);
        let minutes = if minutes.abs() < 10 { 0 } else { minutes };
        let (last, count, said) = &mut self.clock;
        // A clock that stands between two minutes, or drifts, is told once.
        *count = if minutes.abs_diff(*last) < 10 { count.saturating_add(1) } else { 1 };
        *last = minutes;
        (*count >= CONVINCING && minutes.abs_diff(*said) >= 10).then(|| {
            *said = minutes;
            minutes
        })
    }

    fn judge_counter(
        &mut self,
        report: &Report<String>,
        reading: &Reading,
        at: Moment,
        received_at: Moment,
    ) -> (Option<Suspect>, Option<Event>) {
        let key = key(report, reading);
        let received_at = self.live.then_some(received_at);
        let now = Known { value: reading.value, unit: reading.unit.clone(), at, received_at };
        let most = if report.protocol == "mbus" {
            let limit = self.limits.get(&report.meter).filter(|(unit, _)| *unit == reading.unit);
            limit.map(|(_, most)| *most)
        } else {
            most_in_an_hour(report.medium, &reading.unit, self.connection)
        };
        let Some(register) = self.registers.get_mut(&key) else {
            self.remember(key, Register { believed: now, contrary: None });
            return (None, None);
        };
        // In a capture, one from before that comes late may stand where it belongs.
        let late = !self.live && now.at < register.believed.at;
        if late && contradiction(&now, &register.believed, most).is_none() {
            return (None, None);
        }
        let Some(doubt) = contradiction(&register.believed, &now, most) else {
            *register = Register { believed: now, contrary: None };
            return (None, None);
        };
        let count = match &register.contrary {
            Some((last, count)) if contradiction(last, &now, most).is_none() => count.saturating_add(1),
            _ => 1,
        };
        if count < CONVINCING {
            register.contrary = Some((now, count));
            return (Some(doubt), None);
        }
        let outlier = Event {
            event: Cow::Owned(format!("outlier:{}", reading.register)),
            end: Some(register.believed.at),
            duration_s: None,
        };
        *register = Register { believed: now, contrary: None };
        (None, Some(outlier))
    }

    fn is_too_much_power(&self, reading: &Reading) -> bool {
        let name = reading.register.as_str();
        let is_power =
            (name.starts_with("power_import") || name.starts_with("power_export")) && reading.unit == Unit::KW;
        is_power && thousandths(reading.value.mantissa(), reading.value.scale()) > self.connection.watts()
    }

    fn remember(&mut self, key: (String, String), register: Register) {
        if self.registers.len() >= MOST_REGISTERS {
            self.registers.clear();
        }
        self.registers.insert(key, register);
    }

    /// Names the predecessor of a meter that took the place of another.
    fn introduce(&mut self, report: &mut Report<String>) {
        let occupant = self.occupants.entry(place(report)).or_insert_with(|| Occupant {
            meter: report.meter.clone(),
            predecessor: None,
            newcomer: None,
        });
        if occupant.meter == report.meter {
            occupant.newcomer = None;
        } else {
            let count = match &occupant.newcomer {
                Some((newcomer, count)) if *newcomer == report.meter => count.saturating_add(1),
                _ => 1,
            };
            if count < CONVINCING {
                occupant.newcomer = Some((report.meter.clone(), count));
                return;
            }
            let predecessor = std::mem::replace(&mut occupant.meter, report.meter.clone());
            (occupant.predecessor, occupant.newcomer) = (Some(predecessor), None);
        }
        if let Some(predecessor) = &occupant.predecessor {
            report.info.push((Cow::Borrowed("predecessor"), Cow::Owned(predecessor.clone())));
        }
    }
}

/// Counters of now: what a difference is taken of.
fn is_counter(reading: &Reading) -> bool {
    reading.is_current() && reading.at.is_none() && reading.register.is_cumulative()
}

fn key(report: &Report<String>, reading: &Reading) -> (String, String) {
    (report.meter.clone(), reading.register.as_str().to_owned())
}

/// Where a meter hangs: its channel, empty for the port itself; its address on a bus.
fn place(report: &Report<String>) -> String {
    text_of(report, "channel").or_else(|| text_of(report, "address")).unwrap_or_default()
}

fn text_of(report: &Report<String>, name: &str) -> Option<String> {
    report.info.iter().find(|(found, _)| found == name).map(|(_, text)| text.clone().into_owned())
}

/// Why `now` cannot follow on `before`; `most` is what may be added in an hour, in thousandths of the unit.
fn contradiction(before: &Known, now: &Known, most: Option<i128>) -> Option<Suspect> {
    // In another unit it is another counter.
    if before.unit != now.unit {
        return None;
    }
    let growth = difference(now.value, before.value);
    if growth < 0 {
        return Some(Suspect::Backwards);
    }
    // Some meters count in whole units, whatever decimals they send: one step is never too fast.
    let growth = growth.saturating_sub(ONE);
    // A clock that was set back gives no more time than one that stands still.
    let by_meter = now.at.since(before.at).as_secs();
    let by_gateway = now.received_at.zip(before.received_at).map(|(now, before)| now.since(before).as_secs());
    let seconds = by_gateway.map_or(by_meter, |by_gateway| by_gateway.min(by_meter));
    let seconds = i128::from(seconds).max(0).saturating_add(LATE_S);
    let most = most?.saturating_mul(seconds);
    (growth.saturating_mul(3600) > most.saturating_mul(FINE)).then_some(Suspect::TooFast)
}

/// One unit, in units of 10^-18.
const ONE: i128 = 1_000_000_000_000_000_000;

/// Differences are in units of 10^-18, thousandths in those of 10^-3: this many times as large.
const FINE: i128 = 1_000_000_000_000_000;

/// `a` - `b`, in units of 10^-18: exact, because both have at most 18 digits and 18 decimals.
fn difference(a: Decimal, b: Decimal) -> i128 {
    let fine = |value: Decimal| {
        let factor = 10i128.saturating_pow(18u32.saturating_sub(u32::from(value.scale())));
        i128::from(value.mantissa()).saturating_mul(factor)
    };
    fine(a).saturating_sub(fine(b))
}

/// A value in thousandths, rounded towards zero: for bounds only.
fn thousandths(mantissa: i64, scale: u8) -> i128 {
    let mantissa = i128::from(mantissa).abs().saturating_mul(1000);
    mantissa.checked_div(10i128.saturating_pow(u32::from(scale))).unwrap_or(mantissa)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reading;

    fn at(seconds: i64) -> Moment {
        Moment::from_millis((1_800_000_000 + seconds) * 1000, 60).unwrap()
    }

    fn report(meter: &str, seconds: i64, register: &'static str, value: &str) -> Report<String> {
        let unit = if register == "volume" {
            Unit::M3
        } else if register.starts_with("power") {
            Unit::KW
        } else {
            Unit::KWH
        };
        let value = Decimal::parse(value.as_bytes()).unwrap();
        Report {
            meter: meter.to_owned(),
            medium: if register == "volume" { Medium::Gas } else { Medium::Electricity },
            protocol: "p1".into(),
            measured_at: Some(at(seconds)),
            clock: Clock::Meter,
            readings: vec![Reading::now(reading::Register::named(register), value, unit)],
            info: Vec::new(),
            events: Vec::new(),
            unknown: Vec::new(),
        }
    }

    fn judged(judge: &mut Judge, mut report: Report<String>) -> (Option<Suspect>, Vec<String>) {
        judge.judge(&mut report, at(0));
        let events = report.events.iter().map(|event| format!("{} {}", event.event, event.end.unwrap())).collect();
        (report.readings[0].suspect, events)
    }

    fn flags(judge: &mut Judge, register: &'static str, values: &[(i64, &str)]) -> Vec<Option<&'static str>> {
        let flag =
            |&(seconds, value): &(i64, &str)| judged(judge, report("M", seconds, register, value)).0.map(Suspect::name);
        values.iter().map(flag).collect()
    }

    #[test]
    fn a_counter_neither_falls_nor_leaps() {
        let (back, fast) = (Some("backwards"), Some("too_fast"));
        let values = [(0, "100.000"), (1, "100.015"), (2, "99.999"), (3, "100.016"), (4, "200.000"), (5, "100.017")];
        assert_eq!(flags(&mut Judge::default(), "import_low", &values), [None, None, back, None, fast, None]);
        // 60.973 kWh in an hour and a quarter of a minute is what 3 x 80 A can carry at 253 V; and one step.
        for (value, flag) in [("161.972", None), ("161.974", fast)] {
            assert_eq!(
                flags(&mut Judge::default(), "import_low", &[(0, "100.000"), (3600, value)])[1],
                flag,
                "{value}"
            );
        }
        let small = || Judge::new(Connection::from_text("1x25A").unwrap());
        assert_eq!(flags(&mut small(), "import_low", &[(0, "100.000"), (3600, "108")]), [None, fast]);
        assert_eq!(
            flags(&mut small(), "power_import", &[(0, "6.325"), (1, "6.326"), (2, "0.000")]),
            [None, fast, None]
        );
        assert_eq!(
            flags(&mut Judge::default(), "volume", &[(0, "10"), (3600, "60"), (3600, "62")]),
            [None, None, fast]
        );
        assert_eq!(flags(&mut Judge::default(), "voltage_l1", &[(0, "230"), (1, "0"), (2, "999")]), [None; 3]);
    }

    #[test]
    fn ten_that_agree_are_believed() {
        let mut judge = Judge::default();
        judged(&mut judge, report("M", 0, "import_low", "500.000"));
        for second in 1..10 {
            let value = format!("100.00{second}");
            assert_eq!(judged(&mut judge, report("M", second, "import_low", &value)).0, Some(Suspect::Backwards));
        }
        let (flag, events) = judged(&mut judge, report("M", 10, "import_low", "100.010"));
        assert_eq!((flag, events), (None, vec![format!("outlier:import_low {}", at(0))]));
        assert_eq!(judged(&mut judge, report("M", 11, "import_low", "100.011")), (None, vec![]));
        assert_eq!(judged(&mut judge, report("M", 12, "import_low", "500.012")).0, Some(Suspect::TooFast));
    }

    #[test]
    fn those_that_do_not_agree_are_not() {
        let mut judge = Judge::default();
        judged(&mut judge, report("M", 0, "import_low", "500.000"));
        for second in 1..100 {
            // Each of them contradicts the one before.
            let value = format!("{}.000", 400 - second);
            assert!(judged(&mut judge, report("M", second, "import_low", &value)).0.is_some());
        }
        assert_eq!(judged(&mut judge, report("M", 100, "import_low", "500.100")).0, None);
    }

    #[test]
    fn what_was_believed_survives_a_restart() {
        let mut judge = Judge::default();
        let mut last = report("M", 0, "import_low", "500.000");
        judge.learn(&last);
        assert_eq!(judged(&mut judge, report("M", 1, "import_low", "400.000")).0, Some(Suspect::Backwards));
        let mut judge = Judge::default();
        last.readings[0].suspect = Some(Suspect::TooFast);
        judge.learn(&last);
        assert_eq!(judged(&mut judge, report("M", 1, "import_low", "400.000")).0, None);
    }

    #[test]
    fn an_exchanged_meter_names_its_predecessor_and_begins_anew() {
        let mut judge = Judge::default();
        let predecessor = |judge: &mut Judge, meter, second, value: &str| {
            let mut report = report(meter, second, "import_low", value);
            judge.judge(&mut report, at(0));
            assert_eq!(report.readings[0].suspect, None, "{meter} {value}");
            text_of(&report, "predecessor")
        };
        assert_eq!(predecessor(&mut judge, "OLD", 0, "5000.000"), None);
        // Once may be damage.
        assert_eq!(predecessor(&mut judge, "0LD", 1, "5000.000"), None);
        assert_eq!(predecessor(&mut judge, "OLD", 2, "5000.000"), None);
        for second in 3..12 {
            assert_eq!(predecessor(&mut judge, "NEW", second, "0.001"), None);
        }
        for second in 12..15 {
            assert_eq!(predecessor(&mut judge, "NEW", second, "0.002").as_deref(), Some("OLD"));
        }
    }

    #[test]
    fn on_a_bus_only_what_was_said_is_a_limit() {
        let mut judge = Judge::default();
        let flag = |judge: &mut Judge, second, register, value| {
            let mut report = report("KAM-12345678-1B-04", second, register, value);
            report.protocol = "mbus".into();
            judged(judge, report).0.map(Suspect::name)
        };
        assert_eq!(flag(&mut judge, 0, "volume", "100.000"), None);
        assert_eq!(flag(&mut judge, 60, "volume", "90000.000"), None);
        assert_eq!(flag(&mut judge, 120, "volume", "90.000"), Some("backwards"));
        judge.limit("KAM-12345678-1B-04", Decimal::parse(b"2.5").unwrap(), Unit::M3);
        assert_eq!(flag(&mut judge, 3600, "volume", "90002.000"), None);
        assert_eq!(flag(&mut judge, 7200, "volume", "90009.000"), Some("too_fast"));
        assert_eq!(flag(&mut judge, 7200, "energy", "1"), None);
    }

    #[test]
    fn connections_are_read() {
        assert_eq!(Connection::from_text("3x80A"), Some(Connection::default()));
        assert_eq!(Connection::from_text("1 x 35 A"), Some(Connection { phases: 1, amperes: 35 }));
        for text in ["", "3x80", "4x25A", "0x25A", "3x0A", "25A", "3x6501A", "3xA", "-1x25A"] {
            assert_eq!(Connection::from_text(text), None, "{text}");
        }
    }

    #[test]
    fn a_meter_that_counts_in_whole_units_is_no_wonder() {
        let values = [(0, "7412.000"), (2, "7413.000"), (4, "7413.000"), (6, "7415.300")];
        let flags = flags(&mut Judge::default(), "import_low", &values);
        assert_eq!(flags, [None, None, None, Some("too_fast")]);
    }

    #[test]
    fn what_comes_late_in_a_capture_stands_where_it_belongs() {
        let values =
            [(0, "100.000"), (10, "100.010"), (11, "100.011"), (3, "100.003"), (4, "100.012"), (12, "100.012")];
        assert_eq!(flags(&mut Judge::default(), "import_low", &values), [None; 6]);
        let mut live = Judge::default();
        live.set_live(true);
        assert_eq!(flags(&mut live, "import_low", &values)[3], Some("backwards"));
    }

    #[test]
    fn a_clock_that_stands_wrong_is_told_once() {
        let mut judge = Judge::default();
        judge.set_live(true);
        let mut told =
            |seconds, received| judge.clock_error(&report("M", seconds, "import_low", "1.000"), at(received));
        let all: Vec<_> = (0..40).filter_map(|second| told(second, second + 2)).collect();
        assert!(all.is_empty(), "{all:?}");
        let all: Vec<_> = (0..40).filter_map(|second| told(second, second + 3605)).collect();
        assert_eq!(all, [60]);
        // Between two minutes, and later: neither is news.
        let all: Vec<_> = (0..40).filter_map(|second| told(second, second + 3629 + second % 2)).collect();
        assert!(all.is_empty(), "{all:?}");
        let all: Vec<_> = (0..40).filter_map(|second| told(second, second + 3900)).collect();
        assert!(all.is_empty(), "{all:?}");
        // Once may be damage.
        assert_eq!(told(41, 41), None);
        let all: Vec<_> = (42..80).filter_map(|second| told(second + 7200, second)).collect();
        assert_eq!(all, [-120]);
        let all: Vec<_> = (80..100).filter_map(|second| told(second, second)).collect();
        assert_eq!(all, [0]);
    }

    #[test]
    fn a_damaged_clock_excuses_no_leap() {
        for (live, flag) in [(true, Some(Suspect::TooFast)), (false, None)] {
            let mut judge = Judge::default();
            judge.set_live(live);
            let mut judged = |seconds, received, value: &str| {
                let mut report = report("M", seconds, "import_low", value);
                judge.judge(&mut report, at(received));
                report.readings[0].suspect
            };
            judged(0, 0, "100.000");
            assert_eq!(judged(1_000_000, 1, "9000.000"), flag);
        }
    }

    #[test]
    fn no_value_is_too_large() {
        let most = "999999999999999999";
        assert_eq!(
            flags(&mut Judge::default(), "volume", &[(0, "-999999999999999999"), (1, most)]),
            [None, Some("too_fast")]
        );
    }
}
