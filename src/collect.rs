//! A port, read for as long as it gives bytes, and opened again when it comes back.
//!
//! Enters: a P1 port's bytes. Leaves: [`Gathered`] for the gateway: reports under their meters' names,
//! what was rejected, and what became of the port. Readings that are not believed are flagged. A report that says nothing new (a slave meter whose
//! time has not changed) is left out.
//!
//! On a serial line that gives no valid telegram the other line settings are tried in turn.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{io::AsyncReadExt, sync::mpsc, time::Instant};

use crate::{
    config::Address,
    mbus::Trouble,
    moment::Moment,
    p1::{Dialect, Form, Key, LineEnds, Reader, Rejected, Transcript},
    plausible::Judge,
    port::{self, Kind, LineSettings, Port, PortError},
    reading::{Clock, Report},
};

/// Something a port brought.
#[derive(Debug)]
pub struct Gathered {
    /// The port's name.
    pub port: Arc<str>,
    /// What.
    pub what: What,
}

/// What a port brought.
#[derive(Debug)]
pub enum What {
    /// A telegram was accepted. Reports that say nothing new are left out, so there may be none.
    Telegram {
        /// By meter.
        reports: Vec<Report<String>>,
        /// When its end was received.
        received_at: Moment,
        /// Whether carriage returns had to be restored for its CRC to fit.
        restored: bool,
    },
    /// A piece of input that is no telegram.
    Rejected(Rejected),
    /// The port is open, with these line settings where it is a serial line.
    Opened(Option<LineSettings>),
    /// The line gave no telegram with either of its settings; it is listened to further.
    Silent {
        /// Whether bytes came at all.
        bytes: bool,
    },
    /// A file that was not the raw bytes of a port.
    ReadAs {
        /// What it was.
        form: Form,
        /// How many lines of a log were no part of a telegram.
        left_out: u64,
    },
    /// The meter's clock stands this many minutes behind the gateway's (ahead: negative); 0: not any more.
    ClockOff(i64),
    /// A meter on a bus was asked for its readings.
    Asked {
        /// Its address on the bus.
        meter: Arc<str>,
        /// What came of it, where that is no report.
        trouble: Option<Trouble>,
    },
    /// Something worth saying of a bus: what is waited for, what was found.
    Note(String),
    /// The port cannot be read; it is tried again.
    Lost(PortError),
    /// The input has ended: a file, a pipe.
    Ended,
}

/// How fast a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// As fast as it goes.
    Unbounded,
    /// This many times as fast as the telegrams' own times say.
    Times(u32),
}

/// A P1 port to be read.
#[derive(Debug, Clone)]
pub struct Source {
    /// The port's name.
    pub name: Arc<str>,
    /// Where it is.
    pub address: Address,
    /// Whose tables explain it; None: found from each telegram.
    pub dialect: Option<Dialect>,
    /// What opens its encrypted telegrams.
    pub key: Option<Key>,
    /// What is known of its registers.
    pub judge: Judge,
    /// The gateway's id, for meters that do not name themselves.
    pub gateway: Arc<str>,
    /// For files.
    pub pace: Pace,
}

/// How long a silent serial line is listened to before the other settings are tried: two telegrams of
/// the slowest meters.
const SETTINGS_TRIAL: Duration = Duration::from_secs(25);
/// The same once a telegram was read with the settings in force: then silence is rather the meter's.
const SETTINGS_PROVEN: Duration = Duration::from_secs(300);
/// Between attempts to open a port.
const RETRY: Duration = Duration::from_secs(2);

/// Reads a port until its input ends, or the receiver of `out` is gone. Cancel-safe at every byte: what
/// was accepted has been sent.
pub async fn collect(source: Source, out: mpsc::Sender<Gathered>) {
    let mut reader = Collector {
        reader: Reader::new(source.dialect, source.key.clone()),
        said: HashMap::new(),
        received: None,
        last_time: None,
        settings: LineSettings::Fast,
        proven: false,
        bytes: false,
        silent: 0,
        source,
        out,
    };
    let mut trouble: Option<PortError> = None;
    loop {
        let ended = match port::open(&reader.source.address, reader.settings).await {
            Ok(port) => {
                let (kind, settings) = (port.kind, reader.settings);
                // A change of line settings is no news of the port.
                if trouble.take().is_some() || reader.silent == 0 {
                    let _ = reader.send(What::Opened((kind == Kind::Serial).then_some(settings))).await;
                }
                reader.read(port).await
            }
            Err(error) => Ended::Lost(error),
        };
        match ended {
            Ended::Gone => return,
            Ended::Finite => {
                let _ = reader.send(What::Ended).await;
                return;
            }
            Ended::Silent => {
                reader.settings = reader.settings.other();
                reader.proven = false;
                reader.silent = reader.silent.saturating_add(1);
                // Both settings were tried: said once, until a telegram comes.
                if reader.silent == 2 && reader.send(What::Silent { bytes: reader.bytes }).await.is_err() {
                    return;
                }
            }
            Ended::Lost(error) => {
                // Said once for each kind of trouble, not at each attempt.
                if trouble.as_ref() != Some(&error) {
                    if reader.send(What::Lost(error.clone())).await.is_err() {
                        return;
                    }
                    trouble = Some(error);
                }
                tokio::time::sleep(RETRY).await;
                if reader.out.is_closed() {
                    return;
                }
            }
        }
    }
}

/// Why reading stopped.
enum Ended {
    /// Nobody listens any more.
    Gone,
    /// End of a file.
    Finite,
    /// No telegram with these line settings.
    Silent,
    /// The port vanished or broke.
    Lost(PortError),
}

struct Collector {
    source: Source,
    out: mpsc::Sender<Gathered>,
    reader: Reader,
    /// The last report of each meter.
    said: HashMap<String, Report<String>>,
    /// When the last telegram was received.
    received: Option<Timestamp>,
    /// When the last telegram was made, for the pace.
    last_time: Option<Moment>,
    settings: LineSettings,
    /// Whether a telegram was read with these settings.
    proven: bool,
    /// Whether any byte came since the last telegram.
    bytes: bool,
    /// How many times the line settings were changed since the last telegram.
    silent: u32,
}

impl Collector {
    async fn send(&self, what: What) -> Result<(), ()> {
        self.out.send(Gathered { port: self.source.name.clone(), what }).await.map_err(|_| ())
    }

    async fn read(&mut self, mut port: Port) -> Ended {
        let mut buffer = vec![0u8; 16 * 1024];
        let mut heard = Instant::now();
        // Only files are written down in other forms.
        self.source.judge.set_live(port.kind != Kind::Finite);
        let mut transcript = (port.kind == Kind::Finite).then(Transcript::new);
        loop {
            let silence = if self.proven { SETTINGS_PROVEN } else { SETTINGS_TRIAL };
            let bytes = port.bytes.read(&mut buffer);
            let read = if port.kind == Kind::Serial {
                let Ok(read) = tokio::time::timeout_at(heard + silence, bytes).await else {
                    return Ended::Silent;
                };
                read
            } else {
                bytes.await
            };
            let ended = match read {
                Ok(0) if port.kind == Kind::Finite => Some(Ended::Finite),
                Ok(0) => Some(Ended::Lost(self.broken("the other end closed it"))),
                Ok(count) => {
                    let read = buffer.get(..count).unwrap_or_default();
                    match &mut transcript {
                        Some(transcript) => self.reader.push(&transcript.push(read)),
                        None => self.reader.push(read),
                    }
                    self.bytes = true;
                    None
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => None,
                Err(error) => Some(Ended::Lost(self.broken(&error.to_string()))),
            };
            if ended.is_some() {
                if let Some(transcript) = &mut transcript {
                    // What was read before the end.
                    if self.drain(port.kind != Kind::Finite).await.is_err() {
                        return Ended::Gone;
                    }
                    self.reader.push(&transcript.end());
                    let (form, left_out) = (transcript.form().unwrap_or(Form::Raw), transcript.left_out());
                    if form != Form::Raw && self.send(What::ReadAs { form, left_out }).await.is_err() {
                        return Ended::Gone;
                    }
                }
                self.reader.end();
            }
            match self.drain(port.kind != Kind::Finite).await {
                Ok(true) => {
                    heard = Instant::now();
                    if self.silent > 1 && self.send(What::Opened(Some(self.settings))).await.is_err() {
                        return Ended::Gone;
                    }
                    (self.proven, self.bytes, self.silent) = (true, false, 0);
                }
                Ok(false) => {}
                Err(()) => return Ended::Gone,
            }
            if let Some(ended) = ended {
                return ended;
            }
        }
    }

    fn broken(&self, reason: &str) -> PortError {
        PortError::Other {
            address: self.source.address.to_string(),
            reason: format!("was lost ({reason}); it is opened again as soon as it is back"),
        }
    }

    /// Sends on what the framer has. Returns whether a telegram was accepted.
    async fn drain(&mut self, port_is_live: bool) -> Result<bool, ()> {
        let mut accepted = false;
        while let Some(piece) = self.reader.poll() {
            match piece {
                Ok(telegram) => {
                    accepted = true;
                    let restored = telegram.line_ends == LineEnds::Restored;
                    let decoded = telegram.decoded;
                    self.keep_pace(decoded.reports.first().and_then(|report| report.measured_at)).await;
                    let received_at = self.received_at(port_is_live);
                    let (gateway, name) = (self.source.gateway.clone(), self.source.name.clone());
                    let mut reports = Vec::with_capacity(decoded.reports.len());
                    let mut clock_off = None;
                    for report in decoded.reports {
                        let mut report = report.rename(|identity| identity.name(&gateway, &name));
                        clock_off = clock_off.or(self.source.judge.clock_error(&report, received_at));
                        // What is said again proves nothing.
                        if self.is_news(&report) {
                            self.source.judge.judge(&mut report, received_at);
                            reports.push(report);
                        }
                    }
                    self.send(What::Telegram { reports, received_at, restored }).await?;
                    if let Some(minutes) = clock_off {
                        self.send(What::ClockOff(minutes)).await?;
                    }
                }
                Err(rejected) => {
                    // What has a form of its own proves the line settings, though it cannot be read.
                    accepted |= rejected.reason.is_readable();
                    self.send(What::Rejected(rejected)).await?;
                }
            }
        }
        Ok(accepted)
    }

    /// When a telegram was received. In a file each is later than the one before, because those without a time of
    /// their own get this one.
    fn received_at(&mut self, live: bool) -> Moment {
        let now = now();
        let next = self.received.map_or(now, |last| last.saturating_add(Duration::from_millis(1)).unwrap_or(last));
        let received = if live { now } else { now.max(next) };
        self.received = Some(received);
        Moment::utc(received)
    }

    async fn keep_pace(&mut self, time: Option<Moment>) {
        let Pace::Times(times) = self.source.pace else { return };
        let Some(time) = time else { return };
        let gap = self.last_time.replace(time).map(|last| time.since(last));
        // A jump of the clock is not waited for.
        if let Some(gap) =
            gap.and_then(|gap| Duration::try_from(gap).ok()).filter(|gap| *gap <= Duration::from_secs(3600))
        {
            tokio::time::sleep(gap / times.max(1)).await;
        }
    }

    /// Whether a report says more than the last of its meter.
    fn is_news(&mut self, report: &Report<String>) -> bool {
        /// Far more meters than hang on one port: only noise in identifiers gets there.
        const MOST_METERS: usize = 64;
        if let Some(last) = self.said.get_mut(&report.meter) {
            let repeats = match report.clock {
                Clock::Meter => last == report,
                // The time is not the meter's own: it proves nothing. A sign of life every five minutes.
                _ => {
                    let age = report.measured_at.zip(last.measured_at).map(|(now, then)| now.since(then).as_secs());
                    age.is_some_and(|age| (0..300).contains(&age))
                        && last.medium != crate::reading::Medium::Electricity
                        && last.readings == report.readings
                        && last.info == report.info
                        && last.unknown == report.unknown
                }
            };
            if repeats {
                return false;
            }
            last.clone_from(report);
            return true;
        }
        if self.said.len() >= MOST_METERS {
            self.said.clear();
        }
        self.said.insert(report.meter.clone(), report.clone());
        true
    }
}

/// The gateway's clock, to the millisecond.
pub(crate) fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
}
