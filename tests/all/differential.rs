//! Every telegram that the crate `dsmr5` accepts is accepted here and says the same. It knows DSMR 5 only and
//! gives up at the first code that it does not know, so this is a second opinion on what both can read.

use std::{convert::Infallible, panic::catch_unwind};

use dsmr5::{Readout, state::State, types::TST};
use meterkast::{
    p1::{Decoded, Dialect},
    reading::{Clock, Medium, Report},
};

use crate::samples::{Sample, corpus, fixtures, read, stream};

/// What `dsmr5` makes of a file: each telegram that it accepts, from `/` through `!`.
fn theirs(bytes: &[u8]) -> Vec<(Vec<u8>, State)> {
    let reader = dsmr5::Reader::new(bytes.iter().map(|&byte| Ok::<u8, Infallible>(byte)));
    // It panics on some malformed lines: no opinion.
    let accept = |readout: Readout| {
        catch_unwind(move || {
            let state = State::try_from(&readout.to_telegram().ok()?).ok()?;
            let end = readout.buffer.iter().position(|&byte| byte == b'!')?;
            Some((readout.buffer[..=end].to_vec(), state))
        })
        .ok()
        .flatten()
    };
    reader.filter_map(|readout| accept(readout.ok()?)).collect()
}

/// What is compared, and how many values were.
struct Comparison<'a> {
    name: &'a str,
    compared: usize,
}

impl Comparison<'_> {
    /// A value of theirs against that of a register of ours.
    fn value(&mut self, report: Option<&Report>, register: &str, theirs: Option<f64>) {
        let ours = report.and_then(|report| {
            // The last of several, as it is the one that they keep.
            let reading = report.readings.iter().rfind(|reading| reading.register.as_str() == register)?;
            Some(reading.value.to_string().parse::<f64>().unwrap())
        });
        assert_eq!(ours, theirs, "{}: {register}", self.name);
        self.compared += usize::from(theirs.is_some());
    }

    fn count(&mut self, report: &Report, register: &str, theirs: Option<u64>) {
        self.value(Some(report), register, theirs.map(|count| count as f64));
    }

    fn telegram(&mut self, decoded: &Decoded, state: &State) {
        let main = &decoded.reports[0];
        // Without electricity the first report is of a slave meter, with its own time.
        if info(main, "channel").is_none() {
            let time = state.datetime.as_ref().and_then(civil);
            assert_eq!(own_time(main), time, "{}: time", self.name);
        }
        let tariffs = match decoded.dialect {
            Dialect::Belgium => ["normal", "low"],
            Dialect::Netherlands | Dialect::Luxembourg => ["low", "normal"],
            _ => ["rate1", "rate2"],
        };
        for (tariff, registers) in tariffs.iter().zip(&state.meterreadings) {
            self.value(Some(main), &format!("import_{tariff}"), registers.to);
            self.value(Some(main), &format!("export_{tariff}"), registers.by);
        }
        let in_force = state.tariff_indicator.map(|[high, low]| match (high, low) {
            (0, 1) if !tariffs[0].starts_with("rate") => tariffs[0].to_owned(),
            (0, 2) if !tariffs[1].starts_with("rate") => tariffs[1].to_owned(),
            _ => format!("{high:02x}{low:02x}"),
        });
        assert_eq!(info(main, "tariff"), in_force.as_deref(), "{}: tariff in force", self.name);
        self.value(Some(main), "power_import", state.power_delivered);
        self.value(Some(main), "power_export", state.power_received);
        self.count(main, "power_failures", state.power_failures);
        self.count(main, "long_power_failures", state.long_power_failures);
        for (phase, line) in (1..).zip(&state.lines) {
            self.count(main, &format!("voltage_sags_l{phase}"), line.voltage_sags);
            self.count(main, &format!("voltage_swells_l{phase}"), line.voltage_swells);
            self.value(Some(main), &format!("voltage_l{phase}"), line.voltage);
            self.count(main, &format!("current_l{phase}"), line.current);
            self.value(Some(main), &format!("power_import_l{phase}"), line.active_power_plus);
            self.value(Some(main), &format!("power_export_l{phase}"), line.active_power_neg);
        }
        for (channel, slave) in (1..).zip(&state.slaves) {
            let channel: u8 = channel;
            let report = decoded.reports.iter().find(|report| info(report, "channel") == Some(&channel.to_string()));
            self.slave(main, channel, report, slave);
        }
    }

    fn slave(&mut self, main: &Report, channel: u8, report: Option<&Report>, slave: &dsmr5::state::Slave) {
        let name = self.name;
        match (slave.device_type, report) {
            (None, _) => {}
            (Some(code), None) => panic!("{name}: channel {channel} of type {code} has no report"),
            (Some(code), Some(report)) => match u8::try_from(code) {
                Ok(code) => assert_eq!(report.medium, Medium::from_device_type(code), "{name}: channel {channel}"),
                Err(_) => {
                    assert_eq!(info(report, "device_type"), Some(&*code.to_string()), "{name}: channel {channel}")
                }
            },
        }
        let Some((time, value)) = &slave.meter_reading else { return };
        // They read a value whatever its unit and medium; ours without a meaning is unknown.
        let code = format!("0-{channel}:24.2.1");
        let not_understood = report.unwrap_or(main).unknown.iter().any(|unknown| unknown.code == code);
        if report.is_none_or(|report| report.readings.is_empty()) {
            assert!(not_understood, "{name}: channel {channel} has no value");
            return;
        }
        let register = report.and_then(|report| report.readings.last()).unwrap().register.as_str().to_owned();
        self.value(report, &register, Some(*value));
        assert_eq!(report.and_then(own_time), civil(time), "{name}: channel {channel}");
    }
}

/// A time of theirs as ours is printed; None when it is no date, which they do not check.
fn civil(time: &TST) -> Option<String> {
    let TST { year, month, day, hour, minute, second, dst } = time;
    let offset = if *dst { 2 } else { 1 };
    let text = format!("20{year:02}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}+{offset:02}:00");
    // No meter with a P1 port is older: its clock was never set.
    (*year >= 7 && text.parse::<meterkast::moment::Moment>().is_ok()).then_some(text)
}

fn own_time(report: &Report) -> Option<String> {
    report.measured_at.filter(|_| report.clock == Clock::Meter).map(|moment| moment.to_string())
}

fn info<'a>(report: &'a Report, name: &str) -> Option<&'a str> {
    report.info.iter().rfind(|(found, _)| found == name).map(|(_, text)| text.as_ref())
}

/// Compares all telegrams of these files that `dsmr5` accepts; returns how many telegrams and values.
fn compare(samples: &[Sample]) -> (usize, usize) {
    let (mut telegrams, mut values) = (0, 0);
    for Sample { name, bytes } in samples {
        let mut ours = Vec::new();
        read([&bytes[..]], |outcome| {
            ours.extend(outcome.ok().map(|(telegram, decoded)| (telegram.bytes.to_vec(), decoded)))
        });
        for (bytes, state) in theirs(bytes) {
            let found = ours.iter().find(|(own, _)| *own == bytes);
            let (_, decoded) = found.unwrap_or_else(|| panic!("{name}: dsmr5 accepts what is rejected here"));
            let mut comparison = Comparison { name, compared: 0 };
            comparison.telegram(decoded, &state);
            telegrams += 1;
            values += comparison.compared;
        }
    }
    println!("{telegrams} telegrams with {values} values were compared");
    (telegrams, values)
}

#[test]
fn our_own_telegrams_say_the_same() {
    let mut fixtures = fixtures();
    // Of what is said twice they keep the last, we the first.
    fixtures.retain(|sample| sample.name != "said-twice.txt");
    let (telegrams, values) = compare(&fixtures);
    assert!(telegrams >= 20 && values >= 200, "only {telegrams} telegrams with {values} values");
}

#[test]
fn real_telegrams_say_the_same() {
    let corpus = corpus();
    if corpus.is_empty() {
        return;
    }
    let (telegrams, values) = compare(&corpus);
    assert!(telegrams >= 10 && values >= 200, "only {telegrams} telegrams with {values} values");
    let (telegrams, values) = compare(stream().as_slice());
    assert!(telegrams == 566 && values >= 566 * 20, "only {telegrams} telegrams with {values} values");
}
