//! `scan`: finds the meters at a port, and prints the configuration to paste.

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::sync::mpsc;

use super::{Failure, Outcome, Output, asked_to_end};
use crate::{
    bus::{self, Bus},
    collect::{self, Patience, What},
    config::{Address, TIMEOUTS, parse_duration},
    mbus::{
        self, Pattern, Secondary, Target, Timing,
        scan::{Finding, Search},
    },
    plausible::Judge,
    pulse::Pulse,
    reading::{Medium, Report, escape},
    tap::Tap,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A port of a smart meter to listen to
    #[arg(long, value_name = "PORT", value_parser = Address::parse)]
    p1: Vec<Address>,
    /// An M-Bus to search: a serial device or tcp://host:port
    #[arg(long, value_name = "PORT", value_parser = Address::parse)]
    mbus: Vec<Address>,
    /// The baud rate of the bus; by default 2400, then the others until somebody answers
    #[arg(long, value_name = "N", value_parser = baud)]
    baud: Option<u32>,
    /// How long meters may take to answer, such as 500ms; by default what the standard allows them
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
    /// Which addresses to search
    #[arg(long, value_enum, default_value_t = By::Both)]
    by: By,
    /// Ask twice everywhere: for disturbed lines and sleepy meters
    #[arg(long)]
    thorough: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum By {
    /// Numbers, then primary addresses for meters that have nothing else
    Both,
    /// Primary addresses 0 to 250
    Primary,
    /// Numbers (secondary addresses)
    Secondary,
}

pub(super) fn baud(text: &str) -> Result<u32, String> {
    let known = Timing::RATES.into_iter().find(|rate| rate.to_string() == text);
    known.ok_or_else(|| format!("known are {}", Timing::RATES.map(|rate| rate.to_string()).join(", ")))
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    // A bare number is milliseconds.
    let text = if text.bytes().all(|byte| byte.is_ascii_digit()) { format!("{text}ms") } else { text.to_owned() };
    parse_duration(&text)
        .filter(|time| TIMEOUTS.contains(time))
        .ok_or_else(|| "write 10ms to 60s, such as 500ms or 2s".to_owned())
}

pub(super) async fn scan(arguments: Arguments) -> Result<Outcome, Failure> {
    if arguments.p1.is_empty() && arguments.mbus.is_empty() {
        return list_ports();
    }
    let mut outcome = Outcome::Well;
    let mut config = Vec::new();
    let search = async {
        for port in &arguments.p1 {
            match listen(port).await? {
                Some(section) => config.push(section),
                None => outcome = Outcome::Partly,
            }
        }
        for port in &arguments.mbus {
            match search(port, &arguments).await? {
                Some(section) => config.push(section),
                None => outcome = Outcome::Partly,
            }
        }
        Ok::<(), Failure>(())
    };
    search.await?;
    if !config.is_empty() {
        let mut output = Output::new();
        output.line("")?;
        output.line("# For the configuration:")?;
        for line in config.iter().flat_map(|section| section.lines()) {
            output.line(line)?;
        }
        output.finish()?;
    }
    Ok(outcome)
}

/// Opening a port moves lines that some adapters hang a reset on: none is opened unasked.
fn list_ports() -> Result<Outcome, Failure> {
    let by_id = Path::new("/dev/serial/by-id");
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(by_id).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    if found.is_empty() {
        let serial = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            ["ttyUSB", "ttyACM", "ttyAMA", "serial"].iter().any(|start| name.starts_with(start))
        };
        let devices = std::fs::read_dir("/dev").into_iter().flatten();
        found = devices.filter_map(|entry| Some(entry.ok()?.path())).filter(serial).collect();
    }
    found.sort();
    let mut output = Output::new();
    for port in &found {
        output.line(&port.display().to_string())?;
    }
    output.finish()?;
    if found.is_empty() {
        say!("No serial port is here: is the adapter plugged in?");
        return Ok(Outcome::Partly);
    }
    say!("Name what hangs there: meterkast scan --p1 PORT, or meterkast scan --mbus PORT");
    Ok(Outcome::Well)
}

/// Listens for a telegram; the section of the port.
async fn listen(port: &Address) -> Result<Option<String>, Failure> {
    /// Both line settings, each for longer than the slowest meters take.
    const PATIENCE: Duration = Duration::from_secs(60);
    say!("{port}: listens for a telegram, for {} s at most", PATIENCE.as_secs());
    let (out, mut gathered) = mpsc::channel(16);
    let source = collect::Source {
        name: "p1".into(),
        address: port.clone(),
        dialect: None,
        key: None,
        judge: Judge::default(),
        gateway: "scan".into(),
        patience: Patience::default(),
        pulse: Pulse::default(),
        tap: Tap::default(),
    };
    let reading = tokio::spawn(collect::collect(source, out));
    let telegram = async {
        while let Some(collect::Gathered { what, .. }) = gathered.recv().await {
            match what {
                What::Telegram { reports, .. } => return Some(reports),
                What::Lost(error) => {
                    say!("{error}");
                    return None;
                }
                What::Rejected(rejected) => say!("{port}: {rejected}"),
                What::Ended => return None,
                _ => {}
            }
        }
        None
    };
    let reports = tokio::select! {
        heard = tokio::time::timeout(PATIENCE, telegram) => heard.ok().flatten(),
        asked = asked_to_end() => { asked?; None }
    };
    reading.abort();
    let Some(reports) = reports else {
        say!("{port}: no telegram came; is it a P1 port, and does the cable ask for data (request line)?");
        return Ok(None);
    };
    let mut output = Output::new();
    for report in &reports {
        output.line(&format!("{} meter {}", medium(report.medium), escape(report.meter.as_bytes())))?;
    }
    output.finish()?;
    let meters: Vec<String> = reports.iter().map(|report: &Report<String>| escape(report.meter.as_bytes())).collect();
    Ok(Some(format!("[[p1]]  # {}\nport = \"{}\"\n", meters.join(", "), quoted(port))))
}

fn medium(medium: Medium) -> String {
    match medium {
        Medium::Other(code) => format!("other (device type {code:02X})"),
        medium => medium.name().replace('_', " "),
    }
}

fn quoted(port: &Address) -> String {
    port.to_string().replace('\\', "\\\\").replace('"', "\\\"")
}

/// Searches a bus; its section.
async fn search(port: &Address, arguments: &Arguments) -> Result<Option<String>, Failure> {
    let rates: Vec<u32> = match arguments.baud {
        Some(baud) => vec![baud],
        // A converter in the network has its own settings.
        None if matches!(port, Address::Tcp(_)) => vec![2400],
        None => vec![2400, 300, 9600, 1200, 4800, 600, 19_200, 38_400],
    };
    let Some(&first) = rates.first() else { return Ok(None) };
    let mut bus = Bus::open(port, first).await.map_err(Failure::world)?;
    let mut found = Found::default();
    let mut complete = true;
    for baud in rates {
        let timing = Timing { baud, timeout: arguments.timeout, ..Timing::STANDARD };
        let mut searches = Vec::new();
        if arguments.by != By::Primary {
            searches.push(("numbers", Search::secondary(timing)));
        }
        // 251 questions at each rate would take ten minutes: only where meters are likely.
        if arguments.by != By::Secondary && (baud == first || !found.meters.is_empty()) {
            searches.push(("primary addresses", Search::primary(timing)));
        }
        for (what, search) in searches {
            let search = if arguments.thorough { search.thorough() } else { search };
            complete &= run(&mut bus, search, &format!("{port} at {baud} Bd: {what}"), baud, &mut found).await?;
            if !complete {
                break;
            }
        }
        if !found.meters.is_empty() || !complete {
            break;
        }
        say!("{port} at {baud} Bd: nobody answers");
    }
    if bus.has_echo() {
        say!("{port}: the converter sends back what it is sent; that is left out");
    }
    say!("{port}: {} found with {} requests", meters(found.meters.len()), bus.requests());
    let Some((baud, _)) = found.meters.first() else {
        if complete {
            say!("{port}: check wiring and supply of the converter, and --timeout: some meters need 2s");
        }
        return Ok(None);
    };
    let all: Vec<mbus::scan::Meter> = found.meters.iter().map(|(_, meter)| meter.clone()).collect();
    let mut section = format!("[[mbus]]\nport = \"{}\"\nbaud = {baud}\n", quoted(port));
    for meter in &all {
        let who = meter.secondary.map_or_else(
            || "says no name".to_owned(),
            |secondary| format!("{}, {}", secondary, medium(Medium::from_device_type(secondary.medium))),
        );
        section += &format!("[[mbus.meter]]  # {who}, at address {}\n", meter.address);
        section += &match bus::address(meter, &all) {
            Target::Primary(address) => format!("address = {address}\n"),
            Target::Secondary(pattern) => format!("address = \"{pattern}\"\n"),
        };
        if meter.secondary.is_some_and(|secondary| found.late.contains(&secondary)) {
            section += "timeout = \"2s\"\n";
        }
    }
    // Somebody is there, and may speak tomorrow.
    for pattern in &found.mute {
        section += &format!(
            "[[mbus.meter]]  # gave no data to the search: it may be busy, slow (timeout), or be read too often (at-least)\naddress = \"{pattern}\"\n"
        );
    }
    if !complete {
        section += "# The search ended early: there may be more.\n";
    }
    Ok(Some(section))
}

/// What the searches of a bus found.
#[derive(Default)]
struct Found {
    /// With the baud rate at which each was found.
    meters: Vec<(u32, mbus::scan::Meter)>,
    /// Who answered too late.
    late: Vec<Secondary>,
    /// Who acknowledged by its number, and gave no data.
    mute: Vec<Pattern>,
}

fn meters(count: usize) -> String {
    match count {
        1 => "1 meter was".to_owned(),
        count => format!("{count} meters were"),
    }
}

/// Runs a search to its end; false if it ended before.
async fn run(bus: &mut Bus, mut search: Search, what: &str, baud: u32, found: &mut Found) -> Result<bool, Failure> {
    let terminal = std::io::stderr().is_terminal();
    let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(1000), target);
    if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:30}] {percent}% {elapsed}") {
        bar.set_style(style);
    }
    if !terminal {
        say!("{what}: searching");
    }
    let mut told = 0;
    while let Some(job) = search.next_job() {
        let asked = job.target;
        let outcome = tokio::select! {
            outcome = bus.run(job) => outcome,
            stop = asked_to_end() => {
                stop?;
                bar.finish_and_clear();
                let left = search.unsearched().unwrap_or_else(|| "nothing".to_owned());
                say!("{what}: ended early; not searched: {left}");
                return Ok(false);
            }
        };
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                bar.finish_and_clear();
                let left = search.unsearched().unwrap_or_else(|| "nothing".to_owned());
                say!("{error}\n{what}: not searched: {left}");
                return Ok(false);
            }
        };
        search.handle(outcome);
        bar.set_position(search.progress().into());
        bar.set_message(format!("{what}: {asked}, {} requests", bus.requests()));
        if !terminal && search.progress() / 100 > told {
            told = search.progress() / 100;
            say!("{what}: {} %, {} requests", told.saturating_mul(10), bus.requests());
        }
        while let Some(finding) = search.poll_finding() {
            tell(&bar, &finding, baud, found)?;
        }
    }
    while let Some(finding) = search.poll_finding() {
        tell(&bar, &finding, baud, found)?;
    }
    bar.finish_and_clear();
    Ok(search.unsearched().is_none())
}

/// Meters as data, everything else as remarks.
fn tell(bar: &ProgressBar, finding: &Finding, baud: u32, found: &mut Found) -> Result<(), Failure> {
    match finding {
        Finding::Late(secondary) => found.late.push(*secondary),
        Finding::NoData(Target::Secondary(pattern)) if pattern.is_one_number() => found.mute.push(*pattern),
        _ => {}
    }
    let Finding::Meter(meter) = finding else {
        let text = finding.to_string();
        bar.suspend(|| say!("{text}"));
        return Ok(());
    };
    if found.meters.iter().any(|(_, other)| bus::is_same(other, meter)) {
        return Ok(());
    }
    let kind = meter
        .secondary
        .map_or(String::new(), |secondary| format!(", {}", medium(Medium::from_device_type(secondary.medium))));
    found.meters.push((baud, meter.clone()));
    let line = format!("{finding}{kind}");
    bar.suspend(|| {
        let mut output = Output::new();
        output.line(&line)?;
        output.finish()
    })
}
