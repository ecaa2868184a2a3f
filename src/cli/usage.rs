//! `usage`: what was used in each period, from the database, whether the daemon runs or not.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    io::{self, BufWriter, StdoutLock},
};

use clap::ValueEnum;
use jiff::{
    Timestamp, ToSpan,
    civil::{Date, Time},
    tz::TimeZone,
};

use super::{
    Failure, Outcome, Output, RowFormat,
    csv::{Cell, Rows},
    place::Place,
    quiet_if_closed,
};
use crate::{
    config::StoreUrl,
    consumption::{By, Consumption, Curve, Period},
    moment::Moment,
    payload,
    reading::escape,
    store::{
        self,
        counters::{Counter, Question, counters},
    },
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    choice: Choice,
}

/// What is printed.
#[derive(Debug, clap::Args)]
struct Choice {
    /// How long the periods are
    #[arg(long, value_enum, default_value_t = Length::Day)]
    by: Length,
    /// From the beginning of this day, such as 2026-11-21; by default from the first reading
    #[arg(long, value_name = "DATE", value_parser = date)]
    from: Option<Date>,
    /// Until the beginning of this day; by default until the last reading
    #[arg(long, value_name = "DATE", value_parser = date)]
    until: Option<Date>,
    /// Only this meter, and those whose place it took; may be given again
    #[arg(long, value_name = "NAME")]
    meter: Vec<String>,
    /// Only this register, such as import_low; may be given again
    #[arg(long, value_name = "NAME")]
    register: Vec<String>,
    /// Whose days and hours, such as Europe/Amsterdam; by default those of this system
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,
    /// The same period in so many years before, beside each
    #[arg(long, value_name = "YEARS", default_value_t = 0, value_parser = clap::value_parser!(i16).range(0..=50))]
    compare: i16,
    /// How to print it
    #[arg(long, value_enum, default_value_t = RowFormat::Table)]
    format: RowFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Length {
    /// All at once: since the meter was placed
    Total,
    Year,
    Month,
    Day,
    Hour,
    Quarter,
}

/// Prints what was used in each month of that zone, of all that a database has.
pub(super) async fn by_month(url: &StoreUrl, zone: &str, format: RowFormat) -> Result<Outcome, Failure> {
    let all = Choice {
        by: Length::Month,
        from: None,
        until: None,
        meter: Vec::new(),
        register: Vec::new(),
        zone: Some(zone.to_owned()),
        compare: 0,
        format,
    };
    print(url, all).await
}

pub(super) async fn usage(arguments: Arguments) -> Result<Outcome, Failure> {
    print(&arguments.place.url()?, arguments.choice).await
}

async fn print(url: &StoreUrl, choice: Choice) -> Result<Outcome, Failure> {
    let zone = zone(choice.zone.as_deref())?;
    let begin = |date: Date| {
        let midnight = zone.to_timestamp(date.to_datetime(Time::midnight()));
        midnight.map_err(|_| Failure::usage(format!("{date} is beyond the calendar that is counted in")))
    };
    let (from, until) = (choice.from.map(begin).transpose()?, choice.until.map(begin).transpose()?);
    if let (Some(from), Some(until)) = (choice.from, choice.until)
        && from >= until
    {
        return Err(Failure::usage(format!("--from {from} --until {until}: there is no day between them")));
    }
    let by = match choice.by {
        Length::Total => By::Total,
        Length::Year => By::Year,
        Length::Month => By::Month,
        Length::Day => By::Day,
        Length::Hour => By::Hour,
        Length::Quarter => By::Quarter,
    };
    // A clock that leapt ahead once must not stand for the present until that day comes.
    let future = Timestamp::now().checked_add(24.hours()).unwrap_or(Timestamp::MAX);
    let question = Question { by, zone, from, until, years: choice.compare, future };

    let mut reader = store::read(url).await.map_err(Failure::world)?;
    let mut counters = counters(reader.as_mut(), &choice.meter, future).await.map_err(Failure::world)?;
    if let Some(name) = choice.meter.iter().find(|name| counters.iter().all(|counter| counter.meter.name != **name)) {
        let known = reader.meters().await.map_err(Failure::world)?;
        let known: Vec<_> = known.iter().map(|meter| escape(meter.name.as_bytes())).collect();
        let (name, known) = (escape(name.as_bytes()), known.join(", "));
        return Err(Failure::usage(format!(
            "--meter {name}: nothing was counted by it in {url}, which knows: {known}"
        )));
    }
    if let Some(name) = choice
        .register
        .iter()
        .find(|name| !counters.is_empty() && counters.iter().all(|counter| counter.register.as_str() != name.as_str()))
    {
        let known: BTreeSet<_> = counters.iter().map(|counter| counter.register.as_str()).collect();
        let (name, known) = (escape(name.as_bytes()), known.into_iter().collect::<Vec<_>>().join(", "));
        return Err(Failure::usage(format!("--register {name}: no such counter is in {url}; there are: {known}")));
    }
    let asked = |counter: &Counter| choice.register.iter().any(|name| name == counter.register.as_str());
    counters.retain(|counter| choice.register.is_empty() || asked(counter));

    let mut printer = Printer::new(choice.format, &question, &counters)?;
    let mut any = false;
    for counter in &counters {
        let curve = counter.curve(reader.as_mut(), &question).await.map_err(Failure::world)?;
        let Some(span) = curve.span() else { continue };
        for (period, used) in curve.over(question.periods(span)) {
            printer.print(counter, &curve, &period, &used)?;
            any = true;
        }
    }
    printer.finish()?;
    if !any {
        say!("nothing was counted in {url} in that time");
    }
    Ok(Outcome::Well)
}

/// A day. A time of day that is dropped without a word would be worse than none.
fn date(text: &str) -> Result<Date, String> {
    let date = text.parse().ok().filter(|_| text.len() == "2026-11-21".len());
    date.ok_or_else(|| "a day is meant, such as 2026-11-21; it begins at midnight in --zone".to_owned())
}

/// The zone of that name, or the system's.
fn zone(name: Option<&str>) -> Result<TimeZone, Failure> {
    if let Some(name) = name {
        return TimeZone::get(name).map_err(|_| {
            let name = escape(name.as_bytes());
            Failure::usage(format!("--zone {name}: there is no such zone; they are named as Europe/Amsterdam"))
        });
    }
    match TimeZone::try_system() {
        Ok(zone) if !zone.is_unknown() => Ok(zone),
        _ => {
            say!("neither TZ nor /etc/localtime says which zone this is: days and hours are those of UTC (--zone)");
            Ok(TimeZone::UTC)
        }
    }
}

/// Prints in one form. Widths are known before anything was counted, so that lines need not be held back.
struct Printer<'q> {
    to: Sink,
    question: &'q Question,
    /// Of meter, medium, register, period, value and unit.
    widths: [usize; 6],
}

enum Sink {
    Table(Output),
    Json(Output),
    Csv(Box<Rows<BufWriter<StdoutLock<'static>>>>),
}

/// The columns of each year before.
const EARLIER: [&str; 4] = ["from", "to", "value", "method"];
/// Most values are shorter; a longer one moves what is behind it.
const VALUE: usize = 12;

impl<'q> Printer<'q> {
    fn new(format: RowFormat, question: &'q Question, counters: &[Counter]) -> Result<Self, Failure> {
        let years = 1..=question.years;
        let to = match format {
            RowFormat::Table => Sink::Table(Output::new()),
            RowFormat::Json => Sink::Json(Output::new()),
            RowFormat::Csv => {
                let earlier: Vec<String> =
                    years.clone().flat_map(|years| EARLIER.map(|name| format!("{name}_{years}y"))).collect();
                let mut heads =
                    vec!["meter", "medium", "register", "period", "from", "to", "value", "unit", "estimated", "method"];
                heads.extend(earlier.iter().map(String::as_str));
                Sink::Csv(Box::new(Rows::new(BufWriter::new(io::stdout().lock()), &heads).map_err(quiet_if_closed)?))
            }
        };
        let widest = |name: &dyn Fn(&Counter) -> usize, least: usize| counters.iter().map(name).fold(least, usize::max);
        let period = match question.by {
            By::Total | By::Year | By::Month => 7,
            By::Day => 10,
            By::Hour | By::Quarter => 22,
        };
        let widths = [
            widest(&|counter| escape(counter.meter.name.as_bytes()).len(), 5),
            widest(&|counter| counter.meter.medium.name().len(), 6),
            widest(&|counter| counter.register.as_str().len(), 8),
            period,
            VALUE,
            widest(&|counter| counter.unit.as_str().len(), 4),
        ];
        let mut printer = Self { to, question, widths };
        if let Sink::Table(_) = printer.to {
            let heads = ["METER", "MEDIUM", "REGISTER", "PERIOD", "VALUE", "UNIT"].map(str::to_owned);
            printer.row(heads, years.map(|years| format!("{years}Y BEFORE")), "ESTIMATED")?;
        }
        Ok(printer)
    }

    fn print(&mut self, counter: &Counter, curve: &Curve, period: &Period, used: &Consumption) -> Result<(), Failure> {
        let (medium, register, unit) = (counter.meter.medium.name(), &counter.register, &counter.unit);
        let earlier = self.question.earlier(period).map(|earlier| {
            let earlier = earlier?;
            Some((earlier, curve.between(earlier.from, earlier.to)?))
        });
        match &mut self.to {
            Sink::Table(_) => {
                let meter = escape(counter.meter.name.as_bytes());
                let (register, label, unit) = (register.to_string(), period.to_string(), unit.to_string());
                let cells = [meter, medium.to_owned(), register, label, used.value.to_string(), unit];
                let earlier: Vec<_> = earlier.collect();
                let mut remarks = self.cut(period, used);
                remarks.extend((!used.estimated.is_empty()).then(|| used.estimated.to_string()));
                for (years, earlier) in (1..).zip(&earlier) {
                    let cut = earlier.as_ref().map(|(period, used)| self.cut(period, used).join(" "));
                    remarks.extend(cut.filter(|cut| !cut.is_empty()).map(|cut| format!("{years}Y before {cut}")));
                }
                let value = |(_, used): &(Period, Consumption)| used.value.to_string();
                let earlier = earlier.iter().map(|earlier| earlier.as_ref().map_or("-".to_owned(), value));
                self.row(cells, earlier, &remarks.join(", "))
            }
            Sink::Json(_) => {
                let mut json = String::from("{\"meter\":");
                payload::string(&mut json, &counter.meter.name);
                let _ = write!(json, ",\"medium\":\"{medium}\",\"register\":\"{register}\",");
                self.used(&mut json, period, used);
                json.push_str(",\"unit\":");
                payload::string(&mut json, unit.as_str());
                if self.question.years > 0 {
                    json.push_str(",\"earlier\":[");
                    for (index, earlier) in earlier.enumerate() {
                        json.push_str(if index > 0 { "," } else { "" });
                        match earlier {
                            Some((period, used)) => {
                                json.push('{');
                                self.used(&mut json, &period, &used);
                                json.push('}');
                            }
                            None => json.push_str("null"),
                        }
                    }
                    json.push(']');
                }
                json.push('}');
                self.line(&json)
            }
            Sink::Csv(rows) => {
                let estimated = !used.estimated.is_empty();
                let earlier: Vec<_> = earlier.map(|earlier| earlier.map(|(_, used)| used)).collect();
                let mut cells = vec![
                    Cell::Text(&counter.meter.name),
                    Cell::Plain(&medium),
                    Cell::Plain(register),
                    Cell::Plain(period),
                    Cell::Time(used.from),
                    Cell::Time(used.to),
                    Cell::Plain(&used.value),
                    Cell::Text(unit.as_str()),
                    Cell::Plain(&estimated),
                    Cell::Plain(&used.estimated),
                ];
                for used in &earlier {
                    cells.push(Cell::time(used.as_ref().map(|used| used.from)));
                    cells.push(Cell::time(used.as_ref().map(|used| used.to)));
                    cells.push(Cell::of(used.as_ref().map(|used| &used.value)));
                    cells.push(Cell::of(used.as_ref().map(|used| &used.estimated)));
                }
                rows.row(&cells).map_err(quiet_if_closed)
            }
        }
    }

    /// How much less than a period is known of it. A total is of what is known.
    fn cut(&self, period: &Period, used: &Consumption) -> Vec<String> {
        let is_total = period.by == By::Total;
        let mut cut = Vec::new();
        cut.extend((is_total || used.from > period.from).then(|| format!("since {}", self.local(used.from))));
        cut.extend((is_total || used.to < period.to).then(|| format!("until {}", self.local(used.to))));
        cut
    }

    /// A row of the table.
    fn row(&mut self, cells: [String; 6], earlier: impl Iterator<Item = String>, remark: &str) -> Result<(), Failure> {
        let mut line = String::new();
        for (index, (cell, width)) in cells.iter().zip(self.widths).enumerate() {
            let _ = if index == 4 { write!(line, "{cell:>width$}  ") } else { write!(line, "{cell:<width$}  ") };
        }
        for cell in earlier {
            let _ = write!(line, "{cell:>VALUE$}  ");
        }
        line.push_str(remark);
        self.line(line.trim_end())
    }

    fn line(&mut self, line: &str) -> Result<(), Failure> {
        match &mut self.to {
            Sink::Table(output) | Sink::Json(output) => output.line(line),
            Sink::Csv(_) => Ok(()),
        }
    }

    fn finish(self) -> Result<(), Failure> {
        match self.to {
            Sink::Table(output) | Sink::Json(output) => output.finish(),
            Sink::Csv(rows) => rows.finish().map_err(quiet_if_closed),
        }
    }

    /// The members that a period has in every year.
    fn used(&self, json: &mut String, period: &Period, used: &Consumption) {
        let (from, to) = (self.local(used.from), self.local(used.to));
        let (value, estimated) = (used.value, !used.estimated.is_empty());
        let _ = write!(json, "\"period\":\"{period}\",\"from\":\"{from}\",\"to\":\"{to}\",\"value\":{value}");
        let _ = write!(json, ",\"estimated\":{estimated},\"method\":\"{}\"", used.estimated);
    }

    /// An instant by the clock of the zone.
    fn local(&self, at: Timestamp) -> Moment {
        let offset = self.question.zone.to_offset(at).seconds().div_euclid(60);
        Moment::from_millis(at.as_millisecond(), offset).unwrap_or(Moment::utc(at))
    }
}
