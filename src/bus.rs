//! A bus of heat and water meters, read meter by meter for as long as it is there.
//!
//! Enters: the section of a bus, and the time. Leaves: [`Gathered`] for the gateway, as a P1 port's: reports under
//! their meters' names, and which meter does not answer and why. [`Bus`] carries out the jobs of a
//! [`Master`] on a line; searches use it too.
//!
//! - The time of a report is the gateway's, since meters' clocks drift for years; the meter's own is in `info` as
//!   `meter_time`. Nothing is read before the gateway's clock is synchronised, or ten minutes have passed; then
//!   reports are marked as `unsynchronised`.
//! - A connection to a converter in the network that stays mute while meters are asked is made anew: it may be half-open.
//! - Meters that nobody wrote down are searched for once. Which meter was found at which address is remembered in a
//!   file beside the journal, so that battery meters keep their rest over a restart.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use tokio::{sync::mpsc, time::Instant};

use crate::{
    capture::Way,
    collect::{Gathered, What, now},
    config::{Address, ClockTrust, Mbus, Meter},
    mbus::{
        self, Action, Frame, Job, Master, Outcome, Pattern, Readout, Target, Trouble,
        scan::{Finding, Search},
        schedule::{Came, Due, Schedule},
    },
    moment::Moment,
    plausible::Judge,
    port::{self, PortError, Wire},
    pulse::Pulse,
    reading::{Clock, Info, METER_TIME, Report},
    tap::Tap,
};

/// A bus to be read.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its section.
    pub bus: Mbus,
    /// What is known of its registers.
    pub judge: Judge,
    /// The last reports before this start, of any port.
    pub recent: Vec<Report<String>>,
    /// The gateway's id, for meters that do not name themselves.
    pub gateway: Arc<str>,
    /// Whether the gateway's clock is right from the start.
    pub clock: ClockTrust,
    /// Where is remembered what was found: a directory.
    pub memory: PathBuf,
    /// How long a connection may bring no byte while meters are asked.
    pub quiet: Duration,
    /// Its sign of life.
    pub pulse: Pulse,
    /// Who wants its bytes, both ways.
    pub tap: Tap,
}

/// The default of [`Source::quiet`]. Meters that are all absent do not answer either: it is no shorter than it need be.
pub const QUIET: Duration = Duration::from_secs(60);

/// Between attempts to open a port.
const RETRY: Duration = Duration::from_secs(2);
/// The longest request is sent within so long even at 300 Bd; who takes longer hangs.
const STALLED: Duration = Duration::from_secs(15);
/// How long a clock that is not synchronised is waited for.
const CLOCK_PATIENCE: Duration = Duration::from_secs(600);
/// Between two looks at it.
const CLOCK_LOOK: Duration = Duration::from_secs(5);
/// Between two searches of a bus on which no meter was found.
const SEARCH_AGAIN: Duration = Duration::from_secs(3600);

/// A master on an open line.
#[derive(Debug)]
pub struct Bus {
    wire: Wire,
    master: Master,
    address: String,
    began: Instant,
    /// When the last byte came, or it was opened.
    byte_at: Instant,
    /// Whether any byte came.
    spoke: bool,
    pulse: Pulse,
    tap: Tap,
}

impl Bus {
    /// Opens the line.
    pub async fn open(address: &Address, baud: u32) -> Result<Self, PortError> {
        let wire = port::open_wire(address, baud).await?;
        let began = Instant::now();
        Ok(Self {
            wire,
            master: Master::new(baud),
            address: address.to_string(),
            began,
            byte_at: began,
            spoke: false,
            pulse: Pulse::default(),
            tap: Tap::default(),
        })
    }

    /// Gives a sign of life at each turn of a job.
    pub fn with_pulse(mut self, pulse: &Pulse) -> Self {
        self.pulse = pulse.clone();
        self
    }

    /// Says what it hears and sends at this tap.
    pub fn with_tap(mut self, tap: &Tap) -> Self {
        self.tap = tap.clone();
        self
    }

    /// That it is a connection which brought no byte for so long.
    fn is_mute(&self, quiet: Duration) -> Option<PortError> {
        let is_mute = matches!(self.wire, Wire::Tcp(_)) && self.byte_at.elapsed() >= quiet;
        is_mute.then(|| PortError::Mute { address: self.address.clone(), seconds: quiet.as_secs() })
    }

    /// Whether the converter sends back what it is sent.
    pub fn has_echo(&self) -> bool {
        self.master.has_echo()
    }

    /// How many frames were sent.
    pub fn requests(&self) -> u64 {
        self.master.requests()
    }

    /// Does a job. The error is the line's: it has to be opened again.
    pub async fn run(&mut self, job: Job) -> Result<Outcome, PortError> {
        let mut buffer = [0u8; 1024];
        // What came while nobody listened is no answer to this.
        for _ in 0..64 {
            match tokio::time::timeout(Duration::ZERO, self.wire.read(&mut buffer)).await {
                Ok(Ok(count @ 1..)) => {
                    self.tap.bytes(Way::FromMeter, buffer.get(..count).unwrap_or_default()).await;
                }
                _ => break,
            }
        }
        self.master.start(self.began.elapsed(), job);
        loop {
            self.pulse.beat();
            while let Some(action) = self.master.poll_action() {
                match action {
                    Action::Send(bytes) => match tokio::time::timeout(STALLED, self.wire.write(&bytes)).await {
                        Ok(sent) => {
                            sent.map_err(|error| self.broken(&error.to_string()))?;
                            self.tap.bytes(Way::ToMeter, &bytes).await;
                        }
                        Err(_) => return Err(self.broken("it takes no bytes")),
                    },
                    Action::Baud(baud) => {
                        let set = self.wire.set_baud(baud);
                        set.map_err(|error| self.broken(&format!("does not take {baud} baud: {error}")))?;
                    }
                    Action::Done(outcome) => return Ok(outcome),
                }
            }
            let deadline = self.master.deadline().map_or(self.began, |deadline| self.began + deadline);
            tokio::select! {
                // What has come counts before the time that is over.
                biased;
                read = self.wire.read(&mut buffer) => match read {
                    Ok(0) => return Err(self.broken("the other end closed it")),
                    Ok(count) => {
                        (self.byte_at, self.spoke) = (Instant::now(), true);
                        let bytes = buffer.get(..count).unwrap_or_default();
                        self.tap.bytes(Way::FromMeter, bytes).await;
                        self.master.handle_bytes(self.began.elapsed(), bytes);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(self.broken(&error.to_string())),
                },
                () = tokio::time::sleep_until(deadline) => self.master.handle_timeout(self.began.elapsed()),
            }
        }
    }

    fn broken(&self, reason: &str) -> PortError {
        PortError::Broken { address: self.address.clone(), reason: reason.to_owned() }
    }
}

/// How the line of a bus is set, as installers write it.
pub fn settings(baud: u32) -> String {
    format!("{baud} 8E1")
}

/// A meter's report as the gateway gives it on: its time is when it was received, and the meter's own is a remark; under `address` it is
/// exchanged for another meter.
pub fn received(mut report: Report<String>, received_at: Moment, clock: Clock, address: Target) -> Report<String> {
    let meter_time = report.measured_at.replace(received_at);
    report.clock = clock;
    let time = |at: Moment| -> Info { (METER_TIME.into(), at.to_string().into()) };
    report.info.extend(meter_time.map(time));
    report.info.push(("address".into(), address.to_string().into()));
    report
}

/// Reads a bus until the receiver of `out` is gone.
pub async fn read(source: Source, out: mpsc::Sender<Gathered>) {
    let name: Arc<str> = source.bus.name.as_str().into();
    let mut reader = Reader {
        clock: Clock::Gateway,
        remembered: remembered(&source.memory, &name),
        schedule: None,
        meters: source.bus.meters.clone(),
        began: Instant::now(),
        trouble: None,
        is_told: false,
        is_search_told: false,
        source,
        name,
        out,
    };
    // Whoever does not listen any more has ended it.
    let _ = reader.run().await;
}

/// Nobody listens any more.
struct Gone;

struct Reader {
    source: Source,
    name: Arc<str>,
    out: mpsc::Sender<Gathered>,
    clock: Clock,
    meters: Vec<Meter>,
    /// Which meter was found at which address.
    remembered: BTreeMap<String, String>,
    schedule: Option<Schedule>,
    began: Instant,
    /// What was last said to be wrong with the line.
    trouble: Option<PortError>,
    /// Whether it was said that the line is open.
    is_told: bool,
    /// Whether it was said that meters are searched for.
    is_search_told: bool,
}

impl Reader {
    async fn send(&self, what: What) -> Result<(), Gone> {
        // The gateway answers for itself.
        self.source.pulse.rest();
        let sent = self.out.send(Gathered { port: self.name.clone(), what }).await;
        self.source.pulse.beat();
        sent.map_err(|_| Gone)
    }

    async fn tell_open(&mut self) -> Result<(), Gone> {
        (self.trouble, self.is_told) = (None, true);
        self.source.pulse.say("open");
        self.send(What::Opened(None)).await
    }

    async fn run(&mut self) -> Result<(), Gone> {
        self.wait_for_clock(is_synchronised, CLOCK_PATIENCE, CLOCK_LOOK).await?;
        // The last time that it was open it broke before anything was done.
        let mut hollow = false;
        loop {
            self.source.pulse.beat();
            self.is_told = false;
            let error = match Bus::open(&self.source.bus.port, self.source.bus.baud).await {
                Ok(bus) => {
                    let mut bus = bus.with_pulse(&self.source.pulse).with_tap(&self.source.tap);
                    self.source.tap.opened(&settings(self.source.bus.baud)).await;
                    // One that breaks again and again, or stands and is mute, is no news.
                    if !hollow && !matches!(self.trouble, Some(PortError::Mute { .. })) {
                        self.tell_open().await?;
                    }
                    let Err(error) = self.serve(&mut bus).await?;
                    hollow = !self.is_told || !bus.spoke;
                    error
                }
                Err(error) => error,
            };
            // Said once for each kind of trouble, not at each attempt.
            if !self.trouble.as_ref().is_some_and(|said| said.is_like(&error)) {
                self.source.pulse.say(error.to_string());
                self.trouble = Some(error.clone());
                self.send(What::Lost(error)).await?;
            }
            self.source.pulse.wait(RETRY);
            tokio::time::sleep(RETRY).await;
            if self.out.is_closed() {
                return Err(Gone);
            }
        }
    }

    async fn wait_for_clock(
        &mut self,
        is_synchronised: impl AsyncFn() -> bool,
        patience: Duration,
        look: Duration,
    ) -> Result<(), Gone> {
        if self.source.clock == ClockTrust::Always || is_synchronised().await {
            return Ok(());
        }
        self.source.pulse.say("waits for this machine's clock");
        self.send(What::Note(
            "waits until this machine's clock is synchronised, ten minutes at most; with [gateway] clock = \"always\" it would not"
                .to_owned(),
        ))
        .await?;
        let began = Instant::now();
        while began.elapsed() < patience {
            tokio::time::sleep(look).await;
            if is_synchronised().await {
                return Ok(());
            }
            if self.out.is_closed() {
                return Err(Gone);
            }
        }
        self.clock = Clock::Unsynchronised;
        self.send(What::Note("the clock is not synchronised: readings are marked so".to_owned())).await
    }

    /// Reads meter after meter until the line is lost.
    async fn serve(&mut self, bus: &mut Bus) -> Result<Result<std::convert::Infallible, PortError>, Gone> {
        let mut has_echo = false;
        loop {
            if self.meters.is_empty() {
                if let Err(error) = self.find(bus).await? {
                    return Ok(Err(error));
                }
                self.has_served(bus).await?;
                continue;
            }
            let elapsed = self.began.elapsed();
            let due = self.schedule(elapsed).next(elapsed);
            let index = match due {
                Due::Now(index) => index,
                Due::At(at) => {
                    self.source.pulse.wait(at.saturating_sub(elapsed));
                    tokio::select! {
                        () = tokio::time::sleep_until(self.began + at) => {}
                        () = self.out.closed() => return Err(Gone),
                    }
                    continue;
                }
                Due::Never => return Err(Gone),
            };
            let Some(meter) = self.meters.get(index).cloned() else { continue };
            let outcome = match bus.run(self.source.bus.job(&meter)).await {
                Ok(outcome) => outcome,
                Err(error) => {
                    // The others are not to wait until this one is read.
                    let elapsed = self.began.elapsed();
                    self.schedule(elapsed).done(index, elapsed, Came::Nothing);
                    return Ok(Err(error));
                }
            };
            if bus.has_echo() != has_echo {
                has_echo = bus.has_echo();
                let text = if has_echo {
                    "the converter sends back what it is sent: that is left out"
                } else {
                    "no echo any more"
                };
                self.send(What::Note(text.to_owned())).await?;
            }
            if self.clock == Clock::Unsynchronised && is_synchronised().await {
                self.clock = Clock::Gateway;
                self.send(What::Note("the clock is synchronised now".to_owned())).await?;
            }
            let trouble = match outcome {
                Outcome::Readout(readout) => self.readout(&meter, &readout).await?,
                Outcome::Failed(trouble) => Some(trouble),
                Outcome::Heard(_) | Outcome::Sent => None,
            };
            let elapsed = self.began.elapsed();
            self.has_served(bus).await?;
            let mute = matches!(trouble, Some(Trouble::Silent)).then(|| bus.is_mute(self.source.quiet)).flatten();
            let came = match &trouble {
                None => Came::Readings,
                Some(Trouble::Silent | Trouble::Low | Trouble::Busy) => Came::Nothing,
                Some(_) => Came::Answer,
            };
            self.schedule(elapsed).done(index, elapsed, came);
            self.send(What::Asked { meter: meter.address.to_string().into(), trouble }).await?;
            if let Some(error) = mute {
                return Ok(Err(error));
            }
        }
    }

    /// A job was carried out: the line is open, where that was in doubt. A connection that was mute has to speak first.
    async fn has_served(&mut self, bus: &Bus) -> Result<(), Gone> {
        if !self.is_told && (bus.spoke || !matches!(self.trouble, Some(PortError::Mute { .. }))) {
            self.tell_open().await?;
        }
        Ok(())
    }

    /// The schedule; made when the meters are known, with what is known of their last readings.
    fn schedule(&mut self, now: Duration) -> &mut Schedule {
        let Self { schedule, meters, source, remembered, .. } = self;
        schedule.get_or_insert_with(|| {
            let rhythms: Vec<_> = meters.iter().map(|meter| source.bus.rhythm(meter)).collect();
            let mut schedule = Schedule::new(&rhythms, now);
            for (index, meter) in meters.iter().enumerate() {
                let last = remembered.get(&meter.address.to_string()).and_then(|name| {
                    let of_meter = source.recent.iter().rev().find(|report| report.meter == *name);
                    of_meter.and_then(|report| report.measured_at)
                });
                let ago = last.map(|last| Moment::utc(Timestamp::now()).since(last));
                // A clock that stands before that has gone wrong since: the whole rest is kept.
                if let Some(ago) = ago {
                    schedule.was_read(index, Duration::try_from(ago).unwrap_or_default(), now);
                }
            }
            schedule
        })
    }

    /// Hands on what a meter said; what is wrong with it where that is nothing.
    async fn readout(&mut self, meter: &Meter, readout: &Readout) -> Result<Option<Trouble>, Gone> {
        let frames: Vec<Frame<'_>> =
            readout.frames.iter().filter_map(|frame| Frame::parse(frame).ok()).map(|(frame, _)| frame).collect();
        let decoded = match mbus::decode(&frames, self.source.bus.utc_offset) {
            Ok(decoded) => decoded,
            Err(reason) => return Ok(Some(Trouble::Unreadable(reason))),
        };
        let received_at = Moment::utc(now());
        let report = decoded.report.rename(|identity| identity.name(&self.source.gateway, &self.name));
        let mut report = received(report, received_at, self.clock, meter.address);
        if let Some((most, unit)) = &meter.limit {
            self.source.judge.limit(&report.meter, *most, unit.clone());
        }
        self.source.judge.judge(&mut report, received_at);
        let target = meter.address.to_string();
        let twice = self
            .meters
            .iter()
            .map(|other| other.address.to_string())
            .find(|other| *other != target && self.remembered.get(other).is_some_and(|name| *name == report.meter));
        if let Some(other) = twice
            && self.remembered.get(&target).is_none_or(|name| *name != report.meter)
        {
            let text = format!("{target} and {other} are one meter, {}: leave one [[mbus.meter]] out", report.meter);
            self.send(What::Note(text)).await?;
        }
        self.remember(&target, &report.meter).await?;
        self.source.pulse.moved();
        self.send(What::Telegram { reports: vec![report], received_at, restored: false }).await?;
        Ok(None)
    }

    /// Searches for meters, unless they were found before.
    async fn find(&mut self, bus: &mut Bus) -> Result<Result<(), PortError>, Gone> {
        let known = found_before(&self.source.memory, &self.name);
        self.meters = known.iter().filter_map(|text| target(text)).map(Meter::at).collect();
        if !self.meters.is_empty() {
            let count = self.meters.len();
            self.send(What::Note(format!("reads the {count} meters that were found before"))).await?;
            return Ok(Ok(()));
        }
        // A line that breaks again and again begins it again and again: said once.
        if !std::mem::replace(&mut self.is_search_told, true) {
            self.send(What::Note(
                "no [[mbus.meter]] is given: searches for meters, which takes some minutes".to_owned(),
            ))
            .await?;
        }
        let timing = self.source.bus.timing();
        let mut found: Vec<mbus::scan::Meter> = Vec::new();
        // Who was there and said nothing, by number; and whether nobody else can be there.
        let mut mute: Vec<Target> = Vec::new();
        let mut complete = true;
        for (what, mut search) in
            [("numbers", Search::secondary(timing)), ("primary addresses", Search::primary(timing))]
        {
            let mut told = 0;
            while let Some(job) = search.next_job() {
                if search.progress() / 250 > told {
                    told = search.progress() / 250;
                    let percent = told.saturating_mul(25);
                    self.send(What::Note(format!("{percent} % of the {what} are searched"))).await?;
                }
                match bus.run(job).await {
                    Ok(outcome) => search.handle(outcome),
                    Err(error) => return Ok(Err(error)),
                }
                while let Some(finding) = search.poll_finding() {
                    match &finding {
                        Finding::NoData(target @ Target::Secondary(pattern)) if pattern.is_one_number() => {
                            mute.push(*target)
                        }
                        Finding::Unresolved(_) | Finding::Indiscriminate | Finding::Trouble(_) => complete = false,
                        _ => {}
                    }
                    let known =
                        matches!(&finding, Finding::Meter(meter) if found.iter().any(|other| is_same(other, meter)));
                    if !known {
                        self.send(What::Note(finding.to_string())).await?;
                    }
                }
            }
            while let Some(finding) = search.poll_finding() {
                complete &= !matches!(finding, Finding::Unresolved(_) | Finding::Indiscriminate | Finding::Trouble(_));
                self.send(What::Note(finding.to_string())).await?;
            }
            complete &= search.unsearched().is_none();
            for meter in search.meters() {
                if !found.iter().any(|other| is_same(other, meter)) {
                    found.push(meter.clone());
                }
            }
        }
        // Who was mute under its number may have spoken under its address.
        mute.retain(|target| !found.iter().any(|meter| is_of(*target, meter)));
        let spoke = found.iter().map(|meter| address(meter, &found));
        self.meters = spoke.chain(mute).map(Meter::at).collect();
        if self.meters.is_empty() {
            self.is_search_told = false;
            self.send(What::Note("found no meter; searches again in an hour".to_owned())).await?;
            self.source.pulse.wait(SEARCH_AGAIN);
            tokio::select! {
                () = tokio::time::sleep(SEARCH_AGAIN) => {}
                () = self.out.closed() => return Err(Gone),
            }
            if let Some(error) = bus.is_mute(self.source.quiet) {
                return Ok(Err(error));
            }
        } else {
            self.send(What::Note(format!("the search is over: {} meters are read from now on", self.meters.len())))
                .await?;
            if complete {
                let targets: Vec<String> = self.meters.iter().map(|meter| meter.address.to_string()).collect();
                let text = format!("# The meters that a search of the whole bus found.\n{}\n", targets.join("\n"));
                self.write_down(&found_file(&self.source.memory, &self.name), &text).await?;
            } else {
                let text =
                    "the search was disturbed, and is made again at the next start; what was found is read until then";
                self.send(What::Note(text.to_owned())).await?;
            }
        }
        Ok(Ok(()))
    }

    /// Writes down which meter was found at an address, where that is news.
    async fn remember(&mut self, target: &str, meter: &str) -> Result<(), Gone> {
        if self.remembered.get(target).is_some_and(|known| known == meter) {
            return Ok(());
        }
        self.remembered.insert(target.to_owned(), meter.to_owned());
        let mut text = String::from("# Addresses on the bus and the meters that were found there.\n");
        for (target, meter) in &self.remembered {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{target} {meter}");
        }
        self.write_down(&memory(&self.source.memory, &self.name), &text).await
    }

    async fn write_down(&self, path: &Path, text: &str) -> Result<(), Gone> {
        let unfinished = path.with_extension("new");
        // Beside the old one first: a power cut leaves one of them whole.
        let written = std::fs::write(&unfinished, text).and_then(|()| std::fs::rename(&unfinished, path));
        if let Err(error) = written {
            self.send(What::Note(format!("{} cannot be written: {error}", path.display()))).await?;
        }
        Ok(())
    }
}

/// Under which address a found meter is best read: its number, if it is the only one with it; its whole secondary
/// address; or its primary address where it has no other.
pub fn address(meter: &mbus::scan::Meter, all: &[mbus::scan::Meter]) -> Target {
    let Some(secondary) = meter.secondary else { return Target::Primary(meter.address) };
    // One with the fixed structure names no manufacturer, and can be selected by how it was found.
    if secondary.manufacturer.0 == 0 {
        return meter.target;
    }
    // One that was found by its primary address alone may know no other.
    if let Target::Primary(address) = meter.target {
        return Target::Primary(address);
    }
    let same = all.iter().filter(|other| other.secondary.is_some_and(|other| other.id == secondary.id)).count();
    // A digit F stands for any.
    let plain = same == 1 && (0..8).all(|digit| secondary.id >> (digit * 4) & 0xF != 0xF);
    Target::Secondary(if plain { Pattern::of_id(secondary.id) } else { secondary.into() })
}

/// Whether two searches found the same meter.
pub fn is_same(one: &mbus::scan::Meter, other: &mbus::scan::Meter) -> bool {
    (one.address, one.secondary) == (other.address, other.secondary)
}

/// Whether a meter has the number that a target asks for.
fn is_of(target: Target, meter: &mbus::scan::Meter) -> bool {
    match (target, meter.secondary) {
        (Target::Secondary(pattern), Some(secondary)) => pattern.may_answer(secondary),
        _ => false,
    }
}

fn target(text: &str) -> Option<Target> {
    match text.parse() {
        Ok(address) if text.len() < 4 => Some(Target::Primary(address)),
        _ => Pattern::from_text(text).map(Target::Secondary),
    }
}

fn memory(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("mbus-{}.meters", crate::delivery::topic::level(name)))
}

fn found_file(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("mbus-{}.found", crate::delivery::topic::level(name)))
}

/// The addresses that a search of an earlier run found.
fn found_before(folder: &Path, name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(found_file(folder, name)).unwrap_or_default();
    text.lines().filter(|line| target(line).is_some()).map(str::to_owned).collect()
}

/// What an earlier run wrote down. A file that is damaged is as none: the meters are searched for again.
fn remembered(folder: &Path, name: &str) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(memory(folder, name)).unwrap_or_default();
    let line = |line: &str| {
        let (address, meter) = line.split_once(' ')?;
        target(address).map(|_| (address.to_owned(), meter.trim().to_owned()))
    };
    text.lines().filter_map(line).collect()
}

/// Whether this machine's clock was set by another.
async fn is_synchronised() -> bool {
    if Path::new("/run/systemd/timesync/synchronized").exists() {
        return true;
    }
    // Whatever sets it (chrony, ntpd), systemd asks the kernel.
    let asked = tokio::task::spawn_blocking(|| {
        let command =
            std::process::Command::new("timedatectl").args(["show", "-p", "NTPSynchronized", "--value"]).output();
        command.is_ok_and(|output| output.stdout.starts_with(b"yes"))
    });
    asked.await.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::config::Config;

    fn reader(clock: ClockTrust) -> (Reader, mpsc::Receiver<Gathered>) {
        let (out, gathered) = mpsc::channel(16);
        let config = Config::parse("[[mbus]]\nport = \"/dev/x\"\n[[mbus.meter]]\naddress = 1\n", "c").unwrap();
        let source = Source {
            bus: config.mbus[0].clone(),
            judge: Judge::default(),
            recent: Vec::new(),
            gateway: "gw-1".into(),
            clock,
            memory: PathBuf::from("/nonexistent"),
            quiet: QUIET,
            pulse: Pulse::default(),
            tap: Tap::default(),
        };
        let reader = Reader {
            clock: Clock::Gateway,
            remembered: BTreeMap::new(),
            schedule: None,
            meters: source.bus.meters.clone(),
            began: Instant::now(),
            trouble: None,
            is_told: false,
            is_search_told: false,
            name: "mbus".into(),
            source,
            out,
        };
        (reader, gathered)
    }

    #[tokio::test]
    async fn a_clock_is_waited_for_and_then_marked() {
        for (trust, synchronised_at, looks, clock) in [
            (ClockTrust::Always, u32::MAX, 0..=0, Clock::Gateway),
            (ClockTrust::WhenSynchronised, 1, 1..=1, Clock::Gateway),
            (ClockTrust::WhenSynchronised, 3, 3..=3, Clock::Gateway),
            (ClockTrust::WhenSynchronised, u32::MAX, 2..=21, Clock::Unsynchronised),
        ] {
            let (mut reader, mut gathered) = reader(trust);
            let asked = Cell::new(0u32);
            let is_synchronised = async || {
                asked.set(asked.get() + 1);
                asked.get() >= synchronised_at
            };
            let (patience, look) = (Duration::from_millis(200), Duration::from_millis(10));
            assert!(reader.wait_for_clock(is_synchronised, patience, look).await.is_ok());
            assert!(looks.contains(&asked.get()), "{trust:?}: {}", asked.get());
            assert_eq!(reader.clock, clock);
            // An answer takes the clock along.
            let frame = mbus::Frame::Long { control: 8, address: 1, ci: 0x78, data: &[0x02, 0x13, 1, 0] }.emit();
            let readout = Readout { frames: vec![frame], requests: 1 };
            let meter = reader.meters[0].clone();
            assert!(matches!(reader.readout(&meter, &readout).await, Ok(None)));
            let report = loop {
                if let What::Telegram { reports, .. } = gathered.recv().await.unwrap().what {
                    break reports[0].clone();
                }
            };
            assert_eq!((report.clock, report.meter.as_str()), (clock, "gw-1.mbus.1"));
        }
    }

    /// Answers as a meter at address 1 would.
    async fn answer(mut stream: tokio::net::TcpStream) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let data = mbus::Frame::Long { control: 8, address: 1, ci: 0x78, data: &[0x02, 0x13, 1, 0] }.emit();
        let mut buffer = [0; 64];
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            let reset = buffer[..count].contains(&0x40);
            let _ = stream.write_all(if reset { &[0xE5] } else { &data }).await;
        }
    }

    #[tokio::test]
    async fn a_connection_that_is_mute_is_made_anew_and_said_once() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let text = format!(
            "[[mbus]]\nport = \"tcp://{}\"\nbaud = 9600\ninterval = \"1s\"\n[[mbus.meter]]\naddress = 1\n",
            listener.local_addr().unwrap()
        );
        let (reader, mut gathered) = reader(ClockTrust::Always);
        let bus = Config::parse(&text, "c").unwrap().mbus[0].clone();
        let source = Source { bus, quiet: Duration::from_millis(100), ..reader.source };
        tokio::spawn(read(source, reader.out));
        let speak = tokio::spawn(async move {
            // Three that are half-open, then one that speaks.
            let mut open = Vec::new();
            for _ in 0..3 {
                open.push(listener.accept().await.unwrap().0);
            }
            loop {
                answer(listener.accept().await.unwrap().0).await;
            }
        });
        let mut told = Vec::new();
        while told.last().is_none_or(|word| word != "read") {
            let next = tokio::time::timeout(Duration::from_secs(60), gathered.recv());
            match next.await.expect("nothing comes").unwrap().what {
                What::Opened(None) => told.push("open".to_owned()),
                What::Lost(PortError::Mute { .. }) => told.push("mute".to_owned()),
                What::Asked { trouble: None, .. } => told.push("read".to_owned()),
                What::Asked { .. } | What::Telegram { .. } | What::Note(_) => {}
                other => told.push(format!("{other:?}")),
            }
        }
        assert_eq!(told, ["open", "mute", "open", "read"]);
        speak.abort();
    }

    #[test]
    fn who_was_mute_and_spoke_later_is_one_meter() {
        let secondary = mbus::Pattern::from_text("KAM-12345678-1B-04").unwrap();
        let mbus::Pattern { id, manufacturer, version, medium } = secondary;
        let manufacturer = mbus::Manufacturer(manufacturer);
        let secondary = Some(mbus::Secondary { id, manufacturer, version, medium });
        let meter = mbus::scan::Meter { secondary, address: 3, target: Target::Primary(3), frame: Vec::new() };
        assert!(is_of(Target::Secondary(Pattern::of_id(0x1234_5678)), &meter));
        assert!(!is_of(Target::Secondary(Pattern::of_id(0x1234_5679)), &meter));
        assert!(!is_of(Target::Primary(3), &meter));
    }

    #[test]
    fn what_was_found_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = memory(folder.path(), "bus 1");
        std::fs::write(
            &path,
            "# x\n5 KAM-12345678-1B-04\n12345678 \nnonsense here\nEFE-34567890-00-06 EFE-34567890-00-06\n",
        )
        .unwrap();
        let known = remembered(folder.path(), "bus 1");
        assert_eq!(known.keys().collect::<Vec<_>>(), ["12345678", "5", "EFE-34567890-00-06"]);
        assert_eq!(known["5"], "KAM-12345678-1B-04");
        assert!(remembered(folder.path(), "bus 2").is_empty());
    }
}
