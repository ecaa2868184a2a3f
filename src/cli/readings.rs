//! `readings`: the registers at a moment, from the database, whether the daemon runs or not.
//!
//! Without `--at` the newest. With it, for each register the last exact value at or before the moment; and for counters the value at the
//! moment itself, which is exact, unchanged, of a set day, or on a straight line between the readings around it, and says which.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::{SignedDuration, Timestamp};

use super::{
    Failure, Outcome, Output, RowFormat,
    csv::{Cell, Rows},
    place::{Place, chosen},
    quiet_if_closed, table,
};
use crate::{
    config::StoreUrl,
    consumption::{Point, value_at},
    moment::Moment,
    payload,
    reading::{Clock, Function, Qualifiers, Reading, Register, Report, escape},
    store::{self, Meter, Reader},
    unit::{Decimal, Unit},
};

/// Beside a suspect reading another is looked for within a quarter-hour.
const BESIDE: i64 = 900_000;
/// Most messages that are read for that.
const MOST_BESIDE: usize = 2000;
/// The end of a day is recorded as 23:59.
const END_OF_DAY: SignedDuration = SignedDuration::from_secs(60);

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    place: Place,
    /// The last readings at or before this moment, such as 2026-11-21T20:00:00+01:00, and what each counter
    /// showed at it; by default the newest, except those that a meter's clock dates more than a day ahead of now
    #[arg(long, value_name = "TIME")]
    at: Option<Moment>,
    /// Only this meter; may be given several times
    #[arg(long = "meter", value_name = "NAME")]
    meters: Vec<String>,
    /// How to print them
    #[arg(long, value_enum, default_value_t = RowFormat::Table)]
    format: RowFormat,
}

/// A register as its meter said it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    /// Of it only who, which medium and whose clock.
    report: Report<String>,
    reading: Reading,
    /// Where a moment was asked for, of readings as they stand now.
    moment: Option<AtMoment>,
}

/// A value that a meter said, or recorded at a set day.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Exact {
    at: Moment,
    value: Decimal,
    unit: Unit,
    /// 0: as it stood when it was read.
    storage: u64,
}

/// What a register showed at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
struct AtMoment {
    before: Option<Exact>,
    after: Option<Exact>,
    /// The value and how it is known, or why it is not.
    value: Result<(Decimal, &'static str), String>,
}

pub(super) async fn readings(arguments: Arguments) -> Result<Outcome, Failure> {
    let url = arguments.place.url()?;
    let mut reader = store::read(&url).await.map_err(Failure::world)?;
    let meters = reader.meters().await.map_err(Failure::world)?;
    let meters = chosen(meters, &arguments.meters)?;
    let lines = match arguments.at {
        Some(at) => lines_at(&mut *reader, &meters, at).await?,
        None => newest(&mut *reader, &meters).await?,
    };
    print_lines(&lines, arguments.at, arguments.format)?;
    if lines.is_empty() {
        say!("no readings in {url} at that moment");
    }
    Ok(Outcome::Well)
}

/// Prints the newest registers that a database has; returns how many.
pub(super) async fn print(url: &StoreUrl, format: RowFormat) -> Result<usize, Failure> {
    let mut reader = store::read(url).await.map_err(Failure::world)?;
    let meters = reader.meters().await.map_err(Failure::world)?;
    let lines = newest(&mut *reader, &meters).await?;
    print_lines(&lines, None, format)?;
    if lines.is_empty() {
        say!("no readings in {url}");
    }
    Ok(lines.len())
}

/// A clock that leapt ahead once must not stand for the present until that day comes.
fn now() -> Option<Moment> {
    Moment::from_millis(Timestamp::now().as_millisecond().saturating_add(86_400_000), 0)
}

async fn newest(reader: &mut dyn Reader, meters: &[Meter]) -> Result<Vec<Line>, Failure> {
    let reports = reader.readings_of(meters, now()).await.map_err(Failure::world)?;
    Ok(reports.into_iter().flat_map(|(report, _)| lines_of(report, |_, _| None)).collect())
}

/// A line for each reading of a report.
fn lines_of(
    mut report: Report<String>,
    moment: impl Fn(&Report<String>, &Reading) -> Option<AtMoment>,
) -> impl Iterator<Item = Line> {
    let moments: Vec<_> = report.readings.iter().map(|reading| moment(&report, reading)).collect();
    let readings = std::mem::take(&mut report.readings);
    readings.into_iter().zip(moments).map(move |(reading, moment)| Line { report: report.clone(), reading, moment })
}

/// What is known of a meter around a moment.
#[derive(Default)]
struct Around {
    before: Option<Report<String>>,
    after: Option<Report<String>>,
    /// Its newest of all: it may have set days that the one after has not.
    newest: Option<Report<String>>,
    /// Others near the two, by time: looked for only where a counter of these is suspect.
    beside: Vec<Report<String>>,
}

async fn lines_at(reader: &mut dyn Reader, meters: &[Meter], at: Moment) -> Result<Vec<Line>, Failure> {
    let mut all: BTreeMap<&str, Around> = meters.iter().map(|meter| (meter.name.as_str(), Around::default())).collect();
    for (report, _) in reader.readings_of(meters, Some(at)).await.map_err(Failure::world)? {
        if let Some(around) = all.get_mut(report.meter.as_str()) {
            around.before = Some(report);
        }
    }
    for (report, _) in reader.readings_after(meters, at).await.map_err(Failure::world)? {
        if let Some(around) = all.get_mut(report.meter.as_str()) {
            around.after = Some(report);
        }
    }
    for (report, _) in reader.readings_of(meters, now()).await.map_err(Failure::world)? {
        if let Some(around) = all.get_mut(report.meter.as_str()) {
            around.newest = Some(report);
        }
    }
    let mut lines = Vec::new();
    let mut later = Vec::new();
    for meter in meters {
        let Some(mut around) = all.remove(meter.name.as_str()) else { continue };
        around.look_beside(reader, meter).await?;
        let found = around.lines(at);
        if found.is_empty() {
            later.push(escape(meter.name.as_bytes()));
        }
        lines.extend(found);
    }
    if let Some(first) = later.first() {
        let others = later.len().saturating_sub(1);
        let others = if others > 0 { format!(" and {others} more meters") } else { String::new() };
        say!("{first}{others}: nothing was read at or before {at}");
    }
    Ok(lines)
}

impl Around {
    /// Where a counter is suspect there may be others near it which are not.
    async fn look_beside(&mut self, reader: &mut dyn Reader, meter: &Meter) -> Result<(), Failure> {
        let doubtful = |report: &Report<String>| {
            let doubtful = |reading: &Reading| reading.register.is_cumulative() && reading.suspect.is_some();
            report.readings.iter().any(doubtful).then_some(report.measured_at?.millis())
        };
        let before = self.before.as_ref().and_then(doubtful).map(|at| at.saturating_sub(BESIDE)..at);
        let after = self.after.as_ref().and_then(doubtful).map(|at| at.saturating_add(1)..at.saturating_add(BESIDE));
        for span in [before, after].into_iter().flatten() {
            let found = reader.messages(meter, span, None, MOST_BESIDE).await.map_err(Failure::world)?;
            self.beside.extend(found.into_iter().map(|stored| stored.report));
        }
        Ok(())
    }

    /// Every register, as far as it was read at or before the moment, or recorded.
    fn lines(&self, at: Moment) -> Vec<Line> {
        let mut lines: Vec<Line> = Vec::new();
        if let Some(before) = &self.before {
            lines.extend(lines_of(before.clone(), |_, reading| {
                (reading.qualifiers == Qualifiers::default())
                    .then(|| self.at_moment(&reading.register, Some(reading), at))
            }));
        }
        // What was not read before may have been recorded.
        let there: BTreeSet<Register> = lines.iter().map(|line| line.reading.register.clone()).collect();
        let mut recorded: HashMap<Register, Line> = HashMap::new();
        for report in [&self.after, &self.newest].into_iter().flatten() {
            for reading in report.readings.iter().filter(|reading| is_recorded(reading)) {
                let known = recorded.get(&reading.register).and_then(|line| line.reading.at);
                let this = reading.at.filter(|this| this.instant() <= at.instant());
                if !there.contains(&reading.register) && this > known {
                    let moment = Some(self.at_moment(&reading.register, None, at));
                    let report = Report { readings: Vec::new(), ..report.clone() };
                    recorded.insert(reading.register.clone(), Line { report, reading: reading.clone(), moment });
                }
            }
        }
        let mut recorded: Vec<Line> = recorded.into_values().collect();
        recorded.sort_by(|a, b| a.reading.register.cmp(&b.reading.register));
        lines.extend(recorded);
        lines
    }

    /// What a register showed at a moment; `said` is the last reading of it.
    fn at_moment(&self, register: &Register, said: Option<&Reading>, at: Moment) -> AtMoment {
        let reports = || [&self.before, &self.after].into_iter().flatten().chain(&self.beside);
        let readings = reports().filter(|report| report.clock != Clock::Unsynchronised).flat_map(|report| {
            let fits = |reading: &&Reading| {
                reading.register == *register
                    && reading.qualifiers == Qualifiers::default()
                    && reading.suspect.is_none()
            };
            report.readings.iter().filter(fits).filter_map(|reading| exact(reading, report.measured_at))
        });
        let days = [&self.after, &self.newest].into_iter().flatten().flat_map(|report| {
            let fits = |reading: &&Reading| reading.register == *register && is_recorded(reading);
            report.readings.iter().filter(fits).filter_map(|reading| exact(reading, None))
        });
        let (readings, days): (Vec<Exact>, Vec<Exact>) = (readings.collect(), days.collect());
        let all = readings.iter().chain(&days);
        let before = all.clone().filter(|exact| exact.at.instant() <= at.instant());
        // Of a reading and a set day at one instant the reading, which stands first.
        let before = before.fold(None, |best: Option<&Exact>, this| match best {
            Some(best) if best.at.instant() >= this.at.instant() => Some(best),
            _ => Some(this),
        });
        let after = all.filter(|exact| exact.at.instant() > at.instant()).min_by_key(|exact| exact.at.instant());
        let is_day = |day: &&Exact| (SignedDuration::ZERO..=END_OF_DAY).contains(&at.since(day.at));
        let day = days.iter().filter(is_day).max_by_key(|day| day.at.instant());
        let point = |exact: &Exact| Point { at: exact.at.instant(), value: exact.value };
        let suspect = said.is_some_and(|said| said.suspect.is_some());
        let value = match (before, after) {
            _ if !register.is_cumulative() => Err("it does not count".to_owned()),
            (Some(before), _) if before.at.instant() == at.instant() => Ok((before.value, "exact")),
            (before, after) => match (day, before, after) {
                (Some(day), ..) if readings.iter().any(|reading| contradict(reading, day)) => {
                    Err("what was recorded for that day does not lie between the readings around it".to_owned())
                }
                (Some(day), ..) => Ok((day.value, "set_day")),
                (_, Some(before), Some(after)) if before.unit != after.unit => Err("the unit changed".to_owned()),
                (_, None, _) if suspect => Err("the last reading is suspect".to_owned()),
                (_, None, _) if said.is_some() => Err("the clock was not synchronised".to_owned()),
                (_, _, None) if self.after.is_some() => Err("no reading after it can be relied on".to_owned()),
                _ => match value_at(at.instant(), before.map(point), after.map(point)) {
                    Ok((value, methods)) if methods.is_empty() => Ok((value, "unchanged")),
                    Ok((value, _)) => Ok((value, "linear")),
                    Err(unknown) => Err(unknown.to_string()),
                },
            },
        };
        AtMoment { before: before.cloned(), after: after.cloned(), value }
    }
}

/// Whether a counter fell from the earlier of two values to the later, by more than the decimals that one of them has not.
fn contradict(one: &Exact, other: &Exact) -> bool {
    let (early, late) = if one.at.instant() <= other.at.instant() { (one, other) } else { (other, one) };
    let least = Decimal::new(1, early.value.scale().min(late.value.scale()));
    let fall = early.value.minus(late.value).zip(least).and_then(|(fall, least)| fall.minus(least));
    early.unit == late.unit && fall.is_some_and(|fall| fall.mantissa() >= 0)
}

/// Whether it is a counter's value that the meter itself recorded at a set day.
fn is_recorded(reading: &Reading) -> bool {
    let Qualifiers { storage, tariff, subunit, function } = reading.qualifiers;
    let whole = storage > 0 && tariff == 0 && subunit == 0 && function == Function::Instantaneous;
    whole && reading.at.is_some() && reading.suspect.is_none() && reading.register.is_cumulative()
}

fn exact(reading: &Reading, measured_at: Option<Moment>) -> Option<Exact> {
    let Reading { value, ref unit, qualifiers, at, .. } = *reading;
    Some(Exact { at: at.or(measured_at)?, value, unit: unit.clone(), storage: qualifiers.storage })
}

fn print_lines(lines: &[Line], at: Option<Moment>, format: RowFormat) -> Result<(), Failure> {
    let mut output = Output::new();
    match (format, at) {
        (RowFormat::Json, _) => {
            for line in lines {
                output.line(&json(line))?;
            }
            output.finish()
        }
        (RowFormat::Table, None) => {
            let mut table = table::registers();
            for line in lines {
                table.row(table::register_row(&line.report, &line.reading));
            }
            for line in table.lines(table::VALUE) {
                output.line(&line)?;
            }
            output.finish()
        }
        (RowFormat::Table, Some(at)) => {
            let heads =
                ["METER", "MEDIUM", "REGISTER", "LAST", "UNIT", "AT", "CLOCK", "", "AT THE MOMENT", "", "NEXT", "AT"];
            let mut table = table::Table::new(&heads);
            for line in lines {
                let mut row = table::register_row(&line.report, &line.reading);
                if let Some(AtMoment { value, after, .. }) = &line.moment {
                    let (value, how) = match value {
                        Ok((value, how)) => (value.to_string(), (*how).to_owned()),
                        Err(_) if !line.reading.register.is_cumulative() => (String::new(), String::new()),
                        Err(reason) => ("?".to_owned(), reason.clone()),
                    };
                    let (next, next_at) = after
                        .as_ref()
                        .map_or_else(Default::default, |after| (after.value.to_string(), after.at.to_string()));
                    row.extend([value, how, next, next_at]);
                }
                table.row(row);
            }
            for line in table.lines_aligned(&[table::VALUE, 8, 10]) {
                output.line(&line)?;
            }
            output.finish()?;
            say!("AT THE MOMENT: what the counter showed at {at}");
            Ok(())
        }
        (RowFormat::Csv, _) => csv(lines, at.is_some(), output).map_err(quiet_if_closed),
    }
}

fn json(line: &Line) -> String {
    let mut json = table::register_json(&line.report, &line.reading);
    let Some(AtMoment { before, after, value }) = &line.moment else { return json };
    json.truncate(json.trim_end_matches('}').len());
    json.push_str("},\"moment\":{");
    match value {
        Ok((value, method)) => json.push_str(&format!("\"value\":{value},\"method\":\"{method}\"")),
        Err(reason) => {
            json.push_str("\"value\":null,\"reason\":");
            payload::string(&mut json, reason);
        }
    }
    for (name, exact) in [("before", before), ("after", after)] {
        let Some(Exact { at, value, unit, storage }) = exact else {
            json.push_str(&format!(",\"{name}\":null"));
            continue;
        };
        json.push_str(&format!(",\"{name}\":{{\"value\":{value},\"unit\":"));
        payload::string(&mut json, unit.as_str());
        json.push_str(&format!(",\"at\":\"{at}\",\"storage\":{storage}}}"));
    }
    json.push_str("}}");
    json
}

/// The columns of a reading.
const READING: [&str; 12] = [
    "meter", "medium", "register", "value", "unit", "at", "clock", "storage", "tariff", "subunit", "function",
    "suspect",
];

/// What a moment adds.
const MOMENT: [&str; 8] = [
    "moment_value",
    "method",
    "before_value",
    "before_at",
    "before_storage",
    "after_value",
    "after_at",
    "after_storage",
];

fn csv(lines: &[Line], with_moment: bool, output: Output) -> std::io::Result<()> {
    let heads = if with_moment { [&READING[..], &MOMENT].concat() } else { READING.to_vec() };
    let mut rows = Rows::new(output.0, &heads)?;
    for Line { report, reading, moment } in lines {
        let Qualifiers { storage, tariff, subunit, function } = reading.qualifiers;
        let (medium, clock) = (report.medium.name(), report.clock.name());
        let (function, suspect) = (function.name(), reading.suspect.map(|suspect| suspect.name()));
        let mut cells = vec![
            Cell::Text(&report.meter),
            Cell::Plain(&medium),
            Cell::Plain(&reading.register),
            Cell::Plain(&reading.value),
            Cell::Text(reading.unit.as_str()),
            Cell::time(reading.at.or(report.measured_at).map(Moment::instant)),
            Cell::Plain(&clock),
            Cell::Plain(&storage),
            Cell::Plain(&tariff),
            Cell::Plain(&subunit),
            Cell::of(function.as_ref()),
            Cell::of(suspect.as_ref()),
        ];
        let known = moment.as_ref().and_then(|moment| moment.value.as_ref().ok());
        if with_moment {
            cells.extend([Cell::of(known.map(|(value, _)| value)), Cell::of(known.map(|(_, method)| method))]);
            let of = |exact: Option<&Option<Exact>>| exact.and_then(Option::as_ref).cloned();
            let around =
                [of(moment.as_ref().map(|moment| &moment.before)), of(moment.as_ref().map(|moment| &moment.after))];
            for exact in &around {
                cells.extend([
                    Cell::of(exact.as_ref().map(|exact| &exact.value)),
                    Cell::time(exact.as_ref().map(|exact| exact.at.instant())),
                    Cell::of(exact.as_ref().map(|exact| &exact.storage)),
                ]);
            }
            rows.row(&cells)?;
            continue;
        }
        rows.row(&cells)?;
    }
    rows.finish()
}
