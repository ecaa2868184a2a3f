//! The meters of a household: registers that count what flows, and the telegram that shows them.
//!
//! Enters: a seed, and moments. Leaves: telegrams and [`Book`]s. Registers count in watt-seconds,
//! joules and millionths of a litre, as u64: the whole calendar of jiff cannot overflow them.

use jiff::{
    Timestamp,
    tz::{Offset, TimeZone},
};

use super::{
    habits::{Conditions, Flows, SPELL, STEP},
    noise,
};
use crate::{
    moment::Moment,
    p1::Writer,
    reading::{Medium, Register},
    unit::{Decimal, Unit},
};

/// Says at first sight that nobody's meter speaks.
const IDENTIFICATION: &str = r"SIM5\meterkast-demo";
/// What the meters think of the seed at the factory; [`super::habits`] has its own streams.
const FACTORY: u64 = 1000;
/// Voltage of a phase.
const VOLTAGE: u64 = 2000;

/// A Dutch household with a three-phase DSMR 5.0.2 meter, solar panels, and a gas, a heat and a
/// hot-water meter behind it. It lives in Dutch legal time, whatever offset moments come with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Household {
    seed: u64,
    zone: TimeZone,
    /// Seconds since 1970 at which it began, and now.
    start: i64,
    now: i64,
    /// In Ws.
    import_low: u64,
    import_normal: u64,
    export_low: u64,
    export_normal: u64,
    slaves: [Slave; 3],
}

/// A meter behind the P1 port.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Slave {
    letter: char,
    device_type: u8,
    register: Register,
    unit: Unit,
    /// In millionths of the last decimal that the telegram shows.
    count: u64,
    /// `count` at the last full five minutes.
    shown: u64,
}

/// What a meter's cumulative registers hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Book {
    /// The identifier that the meter sends.
    pub meter: String,
    /// What it measures.
    pub medium: Medium,
    /// Since when: now for the electricity meter, the last full five minutes for the others.
    pub at: Moment,
    /// In kWh, GJ or m3, with the decimals that the meter sends, in its order.
    pub registers: Vec<(Register, Decimal)>,
}

impl Household {
    /// A household whose meters have counted for some years until `start`, and whose serial numbers end in
    /// the last ten digits of the seed.
    pub fn new(seed: u64, start: Moment) -> Self {
        let start = start.instant().as_second();
        // A number of whole units, and what a thousandth of one is in the register.
        let counted = |which, from: i64, below: i64, thousandth: u64| {
            let thousandths = from * 1000 + noise(seed, FACTORY, which, below * 1000);
            thousandths.unsigned_abs() * thousandth
        };
        let slave = |letter, device_type, register, unit, which, below| {
            let count = counted(which, 50, below, SLAVE_COUNTS);
            Slave { letter, device_type, register: Register::named(register), unit, count, shown: count }
        };
        Self {
            seed,
            // A constant that a test reads back.
            zone: TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap_or(TimeZone::UTC),
            start,
            now: start,
            import_low: counted(1, 1000, 8000, WATT_SECONDS),
            import_normal: counted(2, 1000, 8000, WATT_SECONDS),
            export_low: counted(3, 300, 2000, WATT_SECONDS),
            export_normal: counted(4, 900, 5000, WATT_SECONDS),
            slaves: [
                slave('G', 3, "volume", Unit::M3, 5, 4000),
                slave('K', 4, "energy", Unit::GJ, 6, 200),
                slave('H', 6, "volume", Unit::M3, 7, 300),
            ],
        }
    }

    /// Now, in Dutch legal time.
    pub fn moment(&self) -> Moment {
        self.local(self.now)
    }

    /// Lets time go by until `to`; nothing where that is past. A day takes some milliseconds, so a leap
    /// of many years takes seconds.
    pub fn advance(&mut self, to: Moment) {
        let to = to.instant().as_second();
        while self.now < to {
            let conditions = self.conditions();
            let end = to.min(next(self.now, SPELL));
            while self.now < end {
                let until = end.min(next(self.now, STEP));
                let flows = conditions.flows(self.seed, self.now);
                self.count(&flows, conditions.low, until.abs_diff(self.now));
                self.now = until;
            }
            if self.now.rem_euclid(SPELL) == 0 {
                self.slaves.iter_mut().for_each(|slave| slave.shown = slave.count);
            }
        }
    }

    /// Those of the whole spell, wherever in it time stands.
    fn conditions(&self) -> Conditions {
        let begin = self.spell();
        Conditions::new(self.seed, begin, self.zone.to_datetime(instant(begin)))
    }

    fn count(&mut self, flows: &Flows, low: bool, seconds: u64) {
        let net = flows.net();
        let register = match (net > 0, low) {
            (true, true) => &mut self.import_low,
            (true, false) => &mut self.import_normal,
            (false, true) => &mut self.export_low,
            (false, false) => &mut self.export_normal,
        };
        *register += net.unsigned_abs() * seconds;
        for (slave, flow) in self.slaves.iter_mut().zip(flows.slaves) {
            slave.count += flow * seconds;
        }
    }

    /// What the meters count, exactly as the telegram of this moment says: the electricity meter, then
    /// its slaves.
    pub fn books(&self) -> Vec<Book> {
        let book = |letter, medium, at, registers: &[(Register, u64)]| Book {
            meter: self.identifier(letter),
            medium,
            at: self.local(at),
            registers: registers
                .iter()
                .filter_map(|(register, value)| Some((register.clone(), Decimal::new(i64::try_from(*value).ok()?, 3)?)))
                .collect(),
        };
        let electricity = self.energy().map(|(_, name, value)| (Register::named(name), value));
        let mut books = vec![book('E', Medium::Electricity, self.now, &electricity)];
        books.extend(self.slaves.iter().map(|slave| {
            let medium = Medium::from_device_type(slave.device_type);
            book(slave.letter, medium, self.spell(), &[(slave.register.clone(), slave.shown / SLAVE_COUNTS)])
        }));
        books
    }

    /// The telegram of this moment.
    pub fn telegram(&self) -> Vec<u8> {
        let conditions = self.conditions();
        let flows = conditions.flows(self.seed, self.now);
        let net = flows.net();
        let failure = self.start - 86_400 - noise(self.seed, FACTORY, 10, 300 * 86_400);
        let factory = |which, below| noise(self.seed, FACTORY, which, below);

        let mut lines = vec![
            "1-3:0.2.8(50)".to_owned(),
            format!("0-0:1.0.0({})", self.clock(self.now)),
            format!("0-0:96.1.1({})", hex(&self.identifier('E'))),
        ];
        lines.extend(self.energy().map(|(code, _, value)| format!("{code}({}*kWh)", decimals(value, 6))));
        lines.extend([
            format!("0-0:96.14.0({})", if conditions.low { "0001" } else { "0002" }),
            format!("1-0:1.7.0({})", kilowatts(net)),
            format!("1-0:2.7.0({})", kilowatts(-net)),
            format!("0-0:96.7.21({:05})", 1 + factory(11, 9)),
            "0-0:96.7.9(00001)".to_owned(),
            format!("1-0:99.97.0(1)(0-0:96.7.19)({})({:010}*s)", self.clock(failure), 200 + factory(12, 9000)),
        ]);
        let [l1, l2, l3] = flows.watts;
        let phases = [(20, l1), (40, l2), (60, l3)].map(|(code, watts)| Phase {
            code,
            watts,
            decivolts: 2310 - watts / 200 + noise(self.seed, VOLTAGE + u64::from(code), self.now.div_euclid(STEP), 41),
            sags: factory(i64::from(code), 10),
            swells: factory(i64::from(code) + 1, 5),
        });
        let row = |offset: u8, rest: &str, value: fn(&Phase) -> String| {
            phases.each_ref().map(|phase| format!("1-0:{}.{rest}({})", phase.code + offset, value(phase)))
        };
        lines.extend(row(12, "32.0", |phase| format!("{:05}", phase.sags)));
        lines.extend(row(12, "36.0", |phase| format!("{:05}", phase.swells)));
        lines.push("0-0:96.13.0()".to_owned());
        lines.extend(row(12, "7.0", |phase| format!("{}.{}*V", phase.decivolts / 10, phase.decivolts % 10)));
        lines.extend(row(11, "7.0", |phase| format!("{:03}*A", phase.amperes())));
        lines.extend(row(1, "7.0", |phase| kilowatts(phase.watts)));
        lines.extend(row(2, "7.0", |phase| kilowatts(-phase.watts)));
        for (slave, channel) in self.slaves.iter().zip(1..) {
            let Slave { letter, device_type, unit, shown, .. } = slave;
            let value = decimals(shown / SLAVE_COUNTS, 5);
            lines.extend([
                format!("0-{channel}:24.1.0({device_type:03})"),
                format!("0-{channel}:96.1.0({})", hex(&self.identifier(*letter))),
                format!("0-{channel}:24.2.1({})({value}*{unit})", self.clock(self.spell())),
            ]);
        }
        lines.iter().fold(Writer::new(IDENTIFICATION), |writer, line| writer.line(line)).finish(true)
    }

    /// Code, name and Wh of the electricity registers, in the order of the telegram.
    fn energy(&self) -> [(&'static str, &'static str, u64); 4] {
        [
            ("1-0:1.8.1", "import_low", self.import_low / WATT_SECONDS),
            ("1-0:1.8.2", "import_normal", self.import_normal / WATT_SECONDS),
            ("1-0:2.8.1", "export_low", self.export_low / WATT_SECONDS),
            ("1-0:2.8.2", "export_normal", self.export_normal / WATT_SECONDS),
        ]
    }

    /// Seventeen characters as meters have, of a manufacturer's code that none has.
    fn identifier(&self, letter: char) -> String {
        format!("{letter}0990{:010}26", self.seed % 10_000_000_000)
    }

    /// When this spell began: the slave meters were last read then.
    fn spell(&self) -> i64 {
        next(self.now, SPELL) - SPELL
    }

    fn local(&self, second: i64) -> Moment {
        let instant = instant(second);
        let offset = self.zone.to_offset(instant).seconds() / 60;
        Moment::from_millis(instant.as_millisecond(), offset).unwrap_or(Moment::utc(instant))
    }

    /// As meters write it: `YYMMDDhhmmss` of the local clock, and S in summer or W in winter.
    fn clock(&self, second: i64) -> String {
        let instant = instant(second);
        let offset = self.zone.to_offset(instant);
        let season = if offset == Offset::constant(2) { 'S' } else { 'W' };
        format!("{}{season}", offset.to_datetime(instant).strftime("%y%m%d%H%M%S"))
    }
}

/// Ws in a Wh, the last decimal of a kWh register.
const WATT_SECONDS: u64 = 3600;
/// J in a MJ, and millionths in a litre: the last decimal of GJ and m3 registers.
const SLAVE_COUNTS: u64 = 1_000_000;

/// A phase as the telegram shows it.
struct Phase {
    /// 20, 40, 60: value group C of its OBIS codes, less the quantity.
    code: u8,
    watts: i64,
    decivolts: i64,
    sags: i64,
    swells: i64,
}

impl Phase {
    /// Rounded, and without a direction.
    fn amperes(&self) -> i64 {
        (self.watts.abs() * 10 + self.decivolts / 2) / self.decivolts.max(1)
    }
}

/// The first multiple of `unit` after `second`.
fn next(second: i64, unit: i64) -> i64 {
    (second.div_euclid(unit) + 1) * unit
}

/// The calendar holds every second that a household lives.
fn instant(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap_or_default()
}

/// Thousandths as `digits` digits and three decimals.
fn decimals(thousandths: u64, digits: usize) -> String {
    format!("{:0digits$}.{:03}", thousandths / 1000, thousandths % 1000)
}

/// What flows in one direction: nothing where `watts` is negative.
fn kilowatts(watts: i64) -> String {
    format!("{}*kW", decimals(watts.max(0).unsigned_abs(), 2))
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02X}")).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        p1::{Framer, read},
        reading::{Clock, Identity, Report},
    };

    fn at(text: &str) -> Moment {
        text.parse().unwrap()
    }

    fn later(moment: Moment, seconds: i64) -> Moment {
        Moment::from_millis(moment.millis() + seconds * 1000, 0).unwrap()
    }

    fn decode(household: &Household) -> Vec<Report> {
        let mut framer = Framer::new();
        framer.push(&household.telegram());
        let decoded = read(framer.poll().unwrap(), None).unwrap();
        assert!(framer.poll().is_none());
        decoded.reports
    }

    /// What a decoded telegram says of the registers that books hold.
    fn as_books(reports: &[Report]) -> Vec<Book> {
        let book = |report: &Report| Book {
            meter: match &report.meter {
                Identity::Own(id) => id.clone(),
                Identity::Place { .. } => panic!("a meter without a name"),
            },
            medium: report.medium,
            at: report.measured_at.unwrap(),
            registers: report
                .readings
                .iter()
                .filter(|reading| reading.register.is_cumulative())
                .map(|reading| (reading.register.clone(), reading.value))
                .collect(),
        };
        reports.iter().map(book).collect()
    }

    /// Thousandths of a reading of the electricity meter.
    fn thousandths(reports: &[Report], register: &str) -> i64 {
        let reading = reports[0].readings.iter().find(|reading| reading.register.as_str() == register).unwrap();
        reading.value.shift(3).unwrap().mantissa()
    }

    #[test]
    fn a_telegram_says_what_the_books_hold_and_nothing_unknown() {
        let mut household = Household::new(42, at("2026-07-14T12:00:03+02:00"));
        for seconds in [0, 1, 297, 300, 3600, 86_400, 20 * 86_400] {
            household.advance(later(household.moment(), seconds));
            let reports = decode(&household);
            assert_eq!(as_books(&reports), household.books());
            assert_eq!(reports.iter().map(|report| report.readings.len()).collect::<Vec<_>>(), [26, 1, 1, 1]);
            for report in &reports {
                assert!(report.unknown.is_empty(), "{report:?}");
                assert_eq!(report.clock, Clock::Meter);
            }
            assert_eq!(reports[0].events.len(), 1);
            assert!(reports[0].events[0].end.unwrap() < household.moment());
        }
    }

    #[test]
    fn registers_never_fall_and_clocks_never_err_in_the_weeks_of_both_changes() {
        for (start, change) in [
            ("2026-03-25T12:00:00+01:00", "2026-03-29T01:00:00Z"),
            ("2026-10-21T12:00:00+02:00", "2026-10-25T01:00:00Z"),
        ] {
            let (start, change) = (at(start), at(change));
            let mut household = Household::new(3, start);
            let mut before = household.books();
            while household.moment().since(start).as_secs() < 7 * 86_400 {
                let near = household.moment().since(change).as_secs().abs() <= 3600;
                let moment = later(household.moment(), if near { 10 } else { 900 });
                household.advance(moment);
                let books = as_books(&decode(&household));
                assert_eq!(books, household.books());
                assert_eq!(books[0].at.instant(), moment.instant());
                for (was, is) in before.iter().zip(&books) {
                    assert!(was.at.instant() <= is.at.instant());
                    for (was, is) in was.registers.iter().zip(&is.registers) {
                        assert!(was.1.mantissa() <= is.1.mantissa(), "{was:?} {is:?} at {moment}");
                    }
                }
                before = books;
            }
        }
    }

    #[test]
    fn power_flows_one_way_and_phases_make_up_the_total() {
        let mut household = Household::new(1, at("2026-06-08T00:00:00+02:00"));
        let (mut imported, mut exported) = (0, 0);
        for _ in 0..1440 {
            household.advance(later(household.moment(), 60));
            let reports = decode(&household);
            let (import, export) = (thousandths(&reports, "power_import"), thousandths(&reports, "power_export"));
            assert_eq!((import == 0, export == 0), (export != 0, import != 0));
            let phases = [1, 2, 3].map(|phase| {
                let net = thousandths(&reports, &format!("power_import_l{phase}"))
                    - thousandths(&reports, &format!("power_export_l{phase}"));
                let volt_ampere = thousandths(&reports, &format!("current_l{phase}"))
                    * thousandths(&reports, &format!("voltage_l{phase}"))
                    / 1_000_000;
                assert!(volt_ampere.abs_diff(net.abs()) <= 125, "phase {phase}: {net} W, {volt_ampere} VA");
                net
            });
            assert_eq!(phases.iter().sum::<i64>(), import - export);
            imported += import;
            exported += export;
        }
        assert!(imported > 0 && exported > 0);
    }

    #[test]
    fn the_register_of_the_tariff_grows() {
        // A Friday evening, the weekend, a Monday morning; in summer time.
        for (from, minutes, low) in [
            ("2026-07-10T22:59:00+02:00", 1, false),
            ("2026-07-10T23:00:00+02:00", 60, true),
            ("2026-07-11T00:00:00+02:00", 48 * 60, true),
            ("2026-07-13T06:00:00+02:00", 60, true),
            ("2026-07-13T07:00:00+02:00", 16 * 60, false),
        ] {
            let mut household = Household::new(5, at(from));
            let tariff = ("tariff".into(), if low { "low".into() } else { "normal".into() });
            assert!(decode(&household)[0].info.contains(&tariff), "{from}");
            let before = household.energy().map(|(_, _, value)| value);
            household.advance(later(at(from), minutes * 60));
            let after = household.energy().map(|(_, _, value)| value);
            let [import_low, import_normal, export_low, export_normal] = [0, 1, 2, 3].map(|n| after[n] - before[n]);
            let (growing, still) = if low {
                (import_low + export_low, import_normal + export_normal)
            } else {
                (import_normal + export_normal, import_low + export_low)
            };
            assert!(growing > 0 && still == 0, "{from}: {before:?} {after:?}");
        }
    }

    #[test]
    fn slaves_tell_a_new_value_every_five_minutes() {
        let mut household = Household::new(8, at("2026-01-15T08:00:00+01:00"));
        let before = household.books();
        household.advance(at("2026-01-15T08:04:59+01:00"));
        assert_eq!(household.books()[1..], before[1..]);
        household.advance(at("2026-01-15T08:05:00+01:00"));
        for (was, is) in before.iter().zip(household.books()).skip(1) {
            assert_eq!(is.at.to_string(), "2026-01-15T08:05:00+01:00");
            assert_eq!(was.meter, is.meter);
        }
        household.advance(at("2026-01-16T08:05:00+01:00"));
        for (was, is) in before.iter().zip(household.books()) {
            assert!(was.registers[0].1.mantissa() < is.registers[0].1.mantissa(), "{was:?} {is:?}");
        }
    }

    #[test]
    fn a_year_is_that_of_a_household() {
        let mut grown = [0; 7];
        // Four weeks stand for thirteen each.
        for week in ["2026-01-12T00:00:00Z", "2026-04-13T00:00:00Z", "2026-07-13T00:00:00Z", "2026-10-12T00:00:00Z"] {
            let mut household = Household::new(9, at(week));
            let counts = |household: &Household| {
                let books = household.books();
                books.into_iter().flat_map(|book| book.registers).map(|(_, value)| value.mantissa()).collect::<Vec<_>>()
            };
            let before = counts(&household);
            household.advance(later(at(week), 7 * 86_400));
            for (sum, (was, is)) in grown.iter_mut().zip(before.iter().zip(counts(&household))) {
                *sum += (is - was) * 13;
            }
        }
        // kWh import low and normal, export low and normal; m3 gas; GJ heat; m3 hot water.
        let likely = [1000..3000, 1000..3000, 300..2000, 700..4000, 100..500, 15..100, 20..100];
        for (grown, likely) in grown.iter().zip(&likely) {
            assert!(likely.contains(&(grown / 1000)), "{grown} in {likely:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn it_does_not_matter_in_which_steps_time_goes_by(
            seed: u64,
            start in 1_200_000_000i64..4_000_000_000,
            steps in proptest::collection::vec(0i64..5000, 0..12),
        ) {
            let start = Moment::from_millis(start * 1000, 60).unwrap();
            let mut walks = Household::new(seed, start);
            let mut moment = start;
            for step in steps {
                moment = later(moment, step);
                walks.advance(moment);
            }
            let mut leaps = Household::new(seed, start);
            leaps.advance(moment);
            prop_assert_eq!(walks.telegram(), leaps.telegram());
            prop_assert_eq!(as_books(&decode(&walks)), leaps.books());
            prop_assert_eq!(walks, leaps);
        }

        #[test]
        fn another_seed_is_another_household(seed: u64, other: u64) {
            prop_assume!(seed != other);
            let start = at("2026-11-21T20:00:00+01:00");
            prop_assert_ne!(Household::new(seed, start).telegram(), Household::new(other, start).telegram());
        }
    }
}
