//! `diff`: what two telegrams of the same meters say otherwise.
//!
//! Each meter is compared with itself: its report of the first file with that of the second, or in one file the first with the
//! last. Registers are the same when name and qualifiers (storage, tariff, subunit, function) are; of those that a meter sends
//! several times under one name the first is compared with the first.

use std::path::PathBuf;

use super::{
    Failure, Format, Outcome, Output,
    decode::{Found, How, Place, read},
    table::{self, Table},
};
use crate::{
    moment::Moment,
    payload,
    reading::{Reading, Report, escape},
    unit::Decimal,
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code 0: both have the same meters, and these the same registers, units and unknown codes, whatever \
                        their values. 1: one has what the other has not, or something was rejected. 2: wrong usage."
)]
pub(super) struct Arguments {
    /// A file as `decode` reads them; `-`: standard input
    #[arg(value_name = "BEFORE")]
    before: PathBuf,
    /// Another one; without it the last telegram of each meter in the first
    #[arg(value_name = "AFTER")]
    after: Option<PathBuf>,
    /// Which telegram of each meter to take, counted from 1; with one file, the one that its last is compared with
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    at: u64,
    /// Only what is not the same
    #[arg(long)]
    changed: bool,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    #[command(flatten)]
    how: How,
}

pub(super) fn diff(arguments: &Arguments) -> Result<Outcome, Failure> {
    let key = arguments.how.key()?;
    let mut outcome = Outcome::Well;
    let mut meters = |path: &PathBuf| -> Result<Vec<Meter>, Failure> {
        let mut meters = Meters { at: arguments.at, found: Vec::new() };
        let mut visit = |_: &Place<'_>, found| {
            if let Found::Telegram(reports) = found {
                reports.into_iter().for_each(|report| meters.add(report));
            }
            Ok(())
        };
        if read(path, &arguments.how, key.as_ref(), false, &mut visit)? == Outcome::Partly {
            outcome = Outcome::Partly;
        }
        Ok(meters.found)
    };
    let before = meters(&arguments.before)?;
    if arguments.after.is_none() && !before.is_empty() && before.iter().all(|meter| meter.count <= 1) {
        let file = arguments.before.display();
        return Err(Failure::usage(format!("{file}: has no two telegrams of a meter to compare: name another file")));
    }
    if let Some(most) = before.iter().map(|meter| meter.count).max().filter(|most| *most < arguments.at) {
        let file = arguments.before.display();
        return Err(Failure::usage(format!("--at {}: {file} has {most} telegrams of a meter at most", arguments.at)));
    }
    let mut pairs: Vec<Pair> = match &arguments.after {
        None => before.into_iter().map(Meter::with_itself).collect(),
        Some(after) => pairs(before, meters(after)?),
    };
    pairs.retain(|pair| *pair != (None, None));
    let mut output = Output::new();
    for pair in &pairs {
        let compared = Compared::new(pair, arguments.changed);
        if !compared.is_alike {
            outcome = Outcome::Partly;
        }
        match arguments.format {
            Format::Json => output.line(&compared.json())?,
            Format::Table => {
                for line in compared.lines() {
                    output.line(&line)?;
                }
            }
        }
    }
    output.finish()?;
    if pairs.is_empty() {
        say!("{}: no telegram to compare", arguments.before.display());
        outcome = Outcome::Partly;
    }
    Ok(outcome)
}

/// A meter of a file: which of its reports was asked for, and the last.
struct Meter {
    name: String,
    count: u64,
    wanted: Option<Report<String>>,
    last: Option<Report<String>>,
}

struct Meters {
    at: u64,
    found: Vec<Meter>,
}

impl Meters {
    fn add(&mut self, report: Report<String>) {
        let at = self.found.iter().position(|meter| meter.name == report.meter).unwrap_or_else(|| {
            self.found.push(Meter { name: report.meter.clone(), count: 0, wanted: None, last: None });
            self.found.len().saturating_sub(1)
        });
        let Some(meter) = self.found.get_mut(at) else { return };
        meter.count = meter.count.saturating_add(1);
        if meter.count == self.at {
            meter.wanted = Some(report);
        } else {
            meter.last = Some(report);
        }
    }
}

/// What a meter said before and after; None where it said nothing.
type Pair = (Option<Report<String>>, Option<Report<String>>);

impl Meter {
    /// One that said no more than once is compared with what it said.
    fn with_itself(self) -> Pair {
        let last = self.last.filter(|_| self.count > 1).or_else(|| self.wanted.clone());
        (self.wanted, last)
    }
}

fn pairs(before: Vec<Meter>, mut after: Vec<Meter>) -> Vec<Pair> {
    let mut pairs: Vec<Pair> = Vec::new();
    for meter in before {
        let same = after.iter().position(|other| other.name == meter.name).map(|at| after.remove(at));
        pairs.push((meter.wanted, same.and_then(|other| other.wanted)));
    }
    pairs.extend(after.into_iter().map(|meter| (None, meter.wanted)));
    pairs
}

/// A register in both, or in one.
struct Row<'a> {
    before: Option<&'a Reading>,
    after: Option<&'a Reading>,
}

impl Row<'_> {
    /// None where one is missing, where the units differ, and where it has more than 18 digits.
    fn difference(&self) -> Option<Decimal> {
        let (before, after) = self.before.zip(self.after).filter(|(before, after)| before.unit == after.unit)?;
        after.value.minus(before.value)
    }

    fn is_same(&self) -> bool {
        let said = |reading: &Reading| (reading.value, reading.unit.clone(), reading.at);
        self.before.map(said) == self.after.map(said)
    }

    /// Whether both are there and count the same.
    fn is_alike(&self) -> bool {
        matches!((self.before, self.after), (Some(before), Some(after)) if before.unit == after.unit)
    }
}

/// A text under its name or code, in both or in one.
type Texts<'a> = Vec<(String, Option<&'a str>, Option<&'a str>)>;

/// A meter before and after.
struct Compared<'a> {
    meter: &'a str,
    medium: &'static str,
    times: [Option<Option<Moment>>; 2],
    rows: Vec<Row<'a>>,
    info: Texts<'a>,
    unknown: Texts<'a>,
    /// How many events are only in the one or the other.
    events: [usize; 2],
    /// Whether both have the same registers, units and unknown codes.
    is_alike: bool,
}

/// Pairs the items of both lists that have the same key, in the order of the first list; then what is left of the second.
fn paired<'a, T, K: PartialEq>(
    before: &'a [T],
    after: &'a [T],
    key: impl Fn(&T) -> K,
) -> Vec<(Option<&'a T>, Option<&'a T>)> {
    let mut left: Vec<&T> = after.iter().collect();
    let mut pairs = Vec::with_capacity(before.len());
    for item in before {
        let same = left.iter().position(|other| key(other) == key(item)).map(|at| left.remove(at));
        pairs.push((Some(item), same));
    }
    pairs.extend(left.into_iter().map(|item| (None, Some(item))));
    pairs
}

impl<'a> Compared<'a> {
    fn new(pair: &'a Pair, changed_only: bool) -> Self {
        let sides = [pair.0.as_ref(), pair.1.as_ref()];
        let one = sides.iter().flatten().next();
        let [before, after] = sides;
        let readings = |side: Option<&'a Report<String>>| side.map_or(&[][..], |report| &report.readings);
        let same_register = |reading: &Reading| (reading.register.clone(), reading.qualifiers);
        let mut rows: Vec<Row<'a>> = paired(readings(before), readings(after), same_register)
            .into_iter()
            .map(|(before, after)| Row { before, after })
            .collect();
        let infos = |side: Option<&'a Report<String>>| side.map_or(&[][..], |report| &report.info);
        let mut info: Texts<'a> = paired(infos(before), infos(after), |(name, _)| name.clone())
            .into_iter()
            .filter_map(|(before, after)| {
                let name = before.or(after)?.0.to_string();
                Some((name, before.map(|(_, text)| &**text), after.map(|(_, text)| &**text)))
            })
            .collect();
        let unknowns = |side: Option<&'a Report<String>>| side.map_or(&[][..], |report| &report.unknown);
        let mut unknown: Texts<'a> = paired(unknowns(before), unknowns(after), |unknown| unknown.code.clone())
            .into_iter()
            .filter_map(|(before, after)| {
                let code = before.or(after)?.code.clone();
                Some((code, before.map(|unknown| unknown.text.as_str()), after.map(|unknown| unknown.text.as_str())))
            })
            .collect();
        let events = |side: Option<&'a Report<String>>| side.map_or(&[][..], |report| &report.events);
        let events = paired(events(before), events(after), |event| event.clone());
        let only = |of: fn(&(Option<&_>, Option<&_>)) -> bool| events.iter().filter(|pair| of(pair)).count();
        let events = [only(|(_, after)| after.is_none()), only(|(before, _)| before.is_none())];
        let is_alike = before.is_some()
            && after.is_some()
            && rows.iter().all(Row::is_alike)
            && unknown.iter().all(|(_, before, after)| before.is_some() && after.is_some());
        info.retain(|(_, before, after)| before != after);
        unknown.retain(|(_, before, after)| before != after);
        if changed_only {
            rows.retain(|row| !row.is_same());
        }
        Self {
            meter: one.map_or("", |report| &report.meter),
            medium: one.map_or("", |report| report.medium.name()),
            times: sides.map(|side| side.map(|report| report.measured_at)),
            rows,
            info,
            unknown,
            events,
            is_alike,
        }
    }

    fn lines(&self) -> Vec<String> {
        let time = |time: &Option<Option<Moment>>| match time {
            None => "not there".to_owned(),
            Some(None) => "without a time of its own".to_owned(),
            Some(Some(at)) => at.to_string(),
        };
        let [before, after] = &self.times;
        let (medium, meter) = (self.medium.replace('_', " "), escape(self.meter.as_bytes()));
        let mut lines = vec![format!("{medium} meter {meter}, {} -> {}", time(before), time(after))];
        let mut rows = Vec::new();
        for row in &self.rows {
            let Some(one) = row.before.or(row.after) else { continue };
            let value =
                |reading: Option<&Reading>| reading.map_or_else(|| "-".to_owned(), |reading| reading.value.to_string());
            let mut remarks: Vec<String> =
                table::remarks(one).into_iter().map(|(name, value)| format!("{name} {value}")).collect();
            remarks.extend(match (row.before, row.after) {
                (Some(_), None) => Some("only before".to_owned()),
                (None, Some(_)) => Some("only after".to_owned()),
                (Some(before), Some(after)) if before.unit != after.unit => Some(format!("then in {}", after.unit)),
                (Some(before), Some(after)) if before.at != after.at => after.at.map(|at| format!("then at {at}")),
                _ => None,
            });
            let difference = row.difference().map_or_else(|| "-".to_owned(), signed);
            rows.push([
                format!("  {}", one.register),
                value(row.before),
                value(row.after),
                difference,
                one.unit.to_string(),
                remarks.join(", "),
            ]);
        }
        let width =
            |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
        let widths: [usize; 5] = std::array::from_fn(|column| width(column).unwrap_or(0));
        for [register, before, after, difference, unit, remarks] in &rows {
            let [a, b, c, d, e] = widths;
            let line = format!("{register:<a$}  {before:>b$}  {after:>c$}  {difference:>d$}  {unit:<e$}  {remarks}");
            lines.push(line.trim_end().to_owned());
        }
        let mut texts = Table::default();
        let shown = |text: &Option<&str>| match text {
            None => "-".to_owned(),
            Some("") => "\"\"".to_owned(),
            // The decoder leaves nothing else.
            Some(text) if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) => (*text).to_owned(),
            Some(text) => escape(text.as_bytes()),
        };
        for (name, before, after) in &self.info {
            texts.row(vec![format!("  {name}"), format!("{} -> {}", shown(before), shown(after))]);
        }
        for (code, before, after) in &self.unknown {
            texts.row(vec![format!("  unknown {code}"), format!("{} -> {}", shown(before), shown(after))]);
        }
        for (count, side) in self.events.into_iter().zip(["before", "after"]) {
            if count > 0 {
                texts.row(vec!["  events".to_owned(), format!("{count} only {side}")]);
            }
        }
        // No column of numbers.
        lines.extend(texts.lines(usize::MAX));
        lines.push(String::new());
        lines
    }

    /// A line a meter.
    fn json(&self) -> String {
        let mut json = String::from("{\"meter\":");
        payload::string(&mut json, self.meter);
        json.push_str(",\"medium\":");
        payload::string(&mut json, self.medium);
        let time = |time: Option<Option<Moment>>| time.flatten().map_or("null".to_owned(), |at| format!("\"{at}\""));
        let [before, after] = self.times;
        json.push_str(&format!(",\"before\":{},\"after\":{},\"registers\":[", time(before), time(after)));
        for (index, row) in self.rows.iter().enumerate() {
            let Some(one) = row.before.or(row.after) else { continue };
            let value = |value: Option<Decimal>| value.map_or("null".to_owned(), |value| value.to_string());
            let (before, after) = (row.before.map(|reading| reading.value), row.after.map(|reading| reading.value));
            json.push_str(if index > 0 { ",{" } else { "{" });
            json.push_str(&format!("\"register\":\"{}\"", one.register));
            for (name, remark) in table::remarks(one) {
                json.push_str(&format!(",\"{name}\":"));
                if remark.bytes().all(|byte| byte.is_ascii_digit()) {
                    json.push_str(&remark);
                } else {
                    payload::string(&mut json, &remark);
                }
            }
            let difference = value(row.difference());
            json.push_str(&format!(
                ",\"before\":{},\"after\":{},\"difference\":{difference},\"unit\":",
                value(before),
                value(after)
            ));
            payload::string(&mut json, one.unit.as_str());
            if let Some(after) = row.after.filter(|after| after.unit != one.unit) {
                json.push_str(",\"unit_after\":");
                payload::string(&mut json, after.unit.as_str());
            }
            json.push('}');
        }
        for (list, key, texts) in [("info", "name", &self.info), ("unknown", "code", &self.unknown)] {
            json.push_str(&format!("],\"{list}\":["));
            for (index, (name, before, after)) in texts.iter().enumerate() {
                json.push_str(if index > 0 { ",{" } else { "{" });
                json.push_str(&format!("\"{key}\":"));
                payload::string(&mut json, name);
                for (side, text) in [("before", before), ("after", after)] {
                    json.push_str(&format!(",\"{side}\":"));
                    match text {
                        Some(text) => payload::string(&mut json, text),
                        None => json.push_str("null"),
                    }
                }
                json.push('}');
            }
        }
        let [before, after] = self.events;
        json.push_str(&format!(
            "],\"events\":{{\"only_before\":{before},\"only_after\":{after}}},\"same_registers\":{}}}",
            self.is_alike
        ));
        json
    }
}

/// With its sign, but for zero.
fn signed(value: Decimal) -> String {
    if value.mantissa() > 0 { format!("+{value}") } else { value.to_string() }
}
