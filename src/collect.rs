//! A port, read for as long as it gives bytes, and opened again when it comes back.
//!
//! Enters: a P1 port's bytes. Leaves: [`Gathered`] for the gateway: reports under their meters' names,
//! what was rejected, and what became of the port. Readings that are not believed are flagged. A report that says nothing new (a slave meter whose
//! time has not changed) is left out.
//!
//! On a serial line that gives no valid telegram the other line settings are tried in turn. A connection that brings no byte
//! is made anew. A port that falls silent, and one that breaks again and again, is said once, until it has given a telegram.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{io::AsyncReadExt, sync::mpsc, time::Instant};

use crate::{
    capture::Way,
    config::Address,
    mbus::Trouble,
    moment::Moment,
    p1::{Accepted, Decoded, Dialect, Form, Key, LineEnds, Reader, Rejected, Transcript},
    plausible::Judge,
    port::{self, Kind, LineSettings, Port, PortError},
    pulse::Pulse,
    reading::{Clock, Report},
    tap::Tap,
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
    /// There were telegrams, and for [`Patience::quiet`] there have been none; it is listened to further.
    Quiet {
        /// Whether bytes still come.
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
    /// How long a port may be silent.
    pub patience: Patience,
    /// Its sign of life.
    pub pulse: Pulse,
    /// Who wants its bytes.
    pub tap: Tap,
}

/// How long a port may be silent.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// A serial line, before the other settings are tried: two telegrams of the slowest meters.
    pub trial: Duration,
    /// The same once a telegram was read with the settings in force: then silence is rather the meter's.
    pub proven: Duration,
    /// Any live port, before its silence is said, and a connection, before it is made anew. The slowest meters send every 10 s
    /// and some pause for a few telegrams; and who looks for the fault stands before the meter, and does not wait longer.
    pub quiet: Duration,
    /// Between attempts to open a port.
    pub retry: Duration,
    /// A port that broke before it gave a telegram counts as open when it has stood this long.
    pub steady: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            trial: Duration::from_secs(25),
            proven: Duration::from_secs(300),
            quiet: Duration::from_secs(60),
            retry: Duration::from_secs(2),
            steady: Duration::from_secs(10),
        }
    }
}

/// Reads a port until its input ends, or the receiver of `out` is gone. Cancel-safe at every byte: what
/// was accepted has been sent.
pub async fn collect(source: Source, out: mpsc::Sender<Gathered>) {
    let Source { name, address, dialect, key, judge, gateway, patience, pulse, tap } = source;
    let mut reader = Collector {
        intake: Intake::new(name.clone(), gateway, dialect, key, judge),
        name,
        address,
        patience,
        pulse,
        tap,
        received: None,
        settings: LineSettings::Fast,
        proven: false,
        bytes: false,
        silent: 0,
        told: Told::Nothing,
        hollow: false,
        out,
    };
    // Whoever does not listen any more has ended it.
    let _ = reader.run().await;
}

/// Nobody listens any more.
struct Gone;

/// Why reading stopped.
enum Ended {
    /// End of a file.
    Finite,
    /// No telegram with these line settings.
    Silent,
    /// The port vanished or broke.
    Lost(PortError),
}

/// What was last said of a port.
#[derive(Debug, PartialEq)]
enum Told {
    Nothing,
    /// It is open, so silent.
    Open(Option<LineSettings>),
    /// It is silent.
    Silent,
    /// It cannot be read.
    Lost(PortError),
}

/// What is due when nothing comes.
#[derive(Debug, Clone, Copy)]
enum Due {
    /// It has stood long enough to be called open.
    Steady,
    /// Its silence is said.
    Quiet,
    /// The other line settings are tried.
    Settings,
    /// The connection is made anew.
    Mute,
}

struct Collector {
    name: Arc<str>,
    address: Address,
    patience: Patience,
    pulse: Pulse,
    tap: Tap,
    out: mpsc::Sender<Gathered>,
    intake: Intake,
    /// When the last telegram was received.
    received: Option<Timestamp>,
    settings: LineSettings,
    /// Whether a telegram was read with these settings.
    proven: bool,
    /// Whether any byte came since the last telegram.
    bytes: bool,
    /// How many times the line settings were changed since the last telegram.
    silent: u32,
    /// What was last said of the port.
    told: Told,
    /// The last time that it was open it ended without a telegram.
    hollow: bool,
}

impl Collector {
    async fn run(&mut self) -> Result<(), Gone> {
        loop {
            self.pulse.beat();
            if port::is_pipe(&self.address) {
                self.pulse.say("waits for somebody to write into the pipe");
                self.pulse.rest();
            }
            let ended = match port::open(&self.address, self.settings).await {
                Ok(port) => {
                    // One that breaks again and again, or stands and is silent, is no news.
                    let is_open = match self.told {
                        Told::Nothing => true,
                        Told::Lost(PortError::Mute { .. }) | Told::Open(_) | Told::Silent => false,
                        Told::Lost(_) => !self.hollow,
                    };
                    if is_open {
                        self.tell_open(port.kind).await?;
                    }
                    self.hollow = true;
                    let settings = if port.kind == Kind::Serial { self.settings.name() } else { "" };
                    self.tap.opened(settings).await;
                    self.read(port).await?
                }
                Err(error) => Ended::Lost(error),
            };
            match ended {
                Ended::Finite => return self.send(What::Ended).await,
                Ended::Silent => {
                    self.settings = self.settings.other();
                    self.proven = false;
                    self.silent = self.silent.saturating_add(1);
                    // Both settings were tried: said once, until a telegram comes.
                    if self.silent == 2 {
                        self.pulse.say("gives no telegram");
                        self.told = Told::Silent;
                        self.send(What::Silent { bytes: self.bytes }).await?;
                    }
                }
                Ended::Lost(error) => {
                    // Said once for each kind of trouble, not at each attempt.
                    if !matches!(&self.told, Told::Lost(said) if said.is_like(&error)) {
                        self.pulse.say(error.to_string());
                        self.told = Told::Lost(error.clone());
                        self.silent = 0;
                        self.send(What::Lost(error)).await?;
                    }
                    self.pulse.wait(self.patience.retry);
                    tokio::time::sleep(self.patience.retry).await;
                    if self.out.is_closed() {
                        return Err(Gone);
                    }
                }
            }
        }
    }

    async fn send(&self, what: What) -> Result<(), Gone> {
        // The gateway answers for itself.
        self.pulse.rest();
        let sent = self.out.send(Gathered { port: self.name.clone(), what }).await;
        self.pulse.beat();
        sent.map_err(|_| Gone)
    }

    /// Says that the port is open, where that is news.
    async fn tell_open(&mut self, kind: Kind) -> Result<(), Gone> {
        let settings = (kind == Kind::Serial).then_some(self.settings);
        if self.told == Told::Open(settings) {
            return Ok(());
        }
        self.told = Told::Open(settings);
        let how = settings.map_or(String::new(), |settings| format!(" at {}", settings.name()));
        self.pulse.say(format!("open{how}"));
        self.send(What::Opened(settings)).await
    }

    /// What is due next on a live port, and when. `opened`, and when the last telegram and the last byte came.
    fn due(&self, kind: Kind, opened: Instant, heard: Instant, byte_at: Instant) -> Option<(Instant, Due)> {
        let Patience { trial, proven, quiet, steady, .. } = self.patience;
        let last = match kind {
            Kind::Finite => return None,
            Kind::Serial => (heard + if self.proven { proven } else { trial }, Due::Settings),
            Kind::Tcp => (byte_at + quiet, Due::Mute),
        };
        // Before the first telegram of a serial line its settings are in doubt, and that is said in time.
        let is_quiet = self.told != Told::Silent && (self.proven || kind == Kind::Tcp);
        let quiet = is_quiet.then_some((heard + quiet, Due::Quiet));
        let is_doubted = matches!(&self.told, Told::Lost(error) if !matches!(error, PortError::Mute { .. }));
        let steady = is_doubted.then_some((opened + steady, Due::Steady));
        // Of two at once the first: a silent connection is made anew, and that says enough.
        [Some(last), quiet, steady].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    async fn read(&mut self, mut port: Port) -> Result<Ended, Gone> {
        let mut buffer = vec![0u8; 16 * 1024];
        let opened = Instant::now();
        let (mut heard, mut byte_at) = (opened, opened);
        // Only files are written down in other forms.
        self.intake.judge.set_live(port.kind != Kind::Finite);
        let mut transcript = (port.kind == Kind::Finite).then(Transcript::new);
        loop {
            let bytes = port.bytes.read(&mut buffer);
            let read = match self.due(port.kind, opened, heard, byte_at) {
                Some((at, due)) => {
                    self.pulse.wait(at.saturating_duration_since(Instant::now()));
                    match (tokio::time::timeout_at(at, bytes).await, due) {
                        (Ok(read), _) => read,
                        (Err(_), Due::Steady) => {
                            self.tell_open(port.kind).await?;
                            continue;
                        }
                        (Err(_), Due::Quiet) => {
                            self.pulse.say("silent");
                            self.told = Told::Silent;
                            let bytes = byte_at.elapsed() < self.patience.quiet / 2;
                            self.send(What::Quiet { bytes }).await?;
                            continue;
                        }
                        (Err(_), Due::Settings) => return Ok(Ended::Silent),
                        (Err(_), Due::Mute) => {
                            // A piece of a telegram does not go on in the next connection.
                            self.intake.end();
                            self.drain(port.kind).await?;
                            let address = self.address.to_string();
                            let seconds = self.patience.quiet.as_secs();
                            return Ok(Ended::Lost(PortError::Mute { address, seconds }));
                        }
                    }
                }
                None => {
                    self.pulse.rest();
                    bytes.await
                }
            };
            let ended = match read {
                Ok(0) if port.kind == Kind::Finite => Some(Ended::Finite),
                Ok(0) => Some(Ended::Lost(self.broken("the other end closed it"))),
                Ok(count) => {
                    let read = buffer.get(..count).unwrap_or_default();
                    match &mut transcript {
                        Some(transcript) => self.push(&transcript.push(read)).await,
                        None => self.push(read).await,
                    }
                    self.bytes = true;
                    byte_at = Instant::now();
                    None
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => None,
                Err(error) => Some(Ended::Lost(self.broken(&error.to_string()))),
            };
            if ended.is_some() {
                if let Some(transcript) = &mut transcript {
                    // What was read before the end.
                    self.drain(port.kind).await?;
                    self.push(&transcript.end()).await;
                    let (form, left_out) = (transcript.form().unwrap_or(Form::Raw), transcript.left_out());
                    if form != Form::Raw {
                        self.send(What::ReadAs { form, left_out }).await?;
                    }
                }
                self.intake.end();
            }
            if self.drain(port.kind).await? {
                heard = Instant::now();
                self.pulse.moved();
                (self.proven, self.bytes, self.silent, self.hollow) = (true, false, 0, false);
            }
            if let Some(ended) = ended {
                return Ok(ended);
            }
        }
    }

    async fn push(&mut self, bytes: &[u8]) {
        self.intake.push(bytes);
        self.tap.bytes(Way::FromMeter, bytes).await;
    }

    fn broken(&self, reason: &str) -> PortError {
        PortError::Broken { address: self.address.to_string(), reason: reason.to_owned() }
    }

    /// Sends on what the framer has. Returns whether a telegram was accepted.
    async fn drain(&mut self, kind: Kind) -> Result<bool, Gone> {
        let mut accepted = false;
        while let Some(piece) = self.intake.poll() {
            match piece {
                Ok(telegram) => {
                    accepted = true;
                    self.tell_open(kind).await?;
                    let restored = telegram.line_ends == LineEnds::Restored;
                    let received_at = self.received_at(kind != Kind::Finite);
                    let (reports, clock_off) = self.intake.take(telegram.decoded, received_at);
                    self.send(What::Telegram { reports, received_at, restored }).await?;
                    if let Some(minutes) = clock_off {
                        self.send(What::ClockOff(minutes)).await?;
                    }
                }
                Err(rejected) => {
                    // What has a form of its own proves the line settings, though it cannot be read.
                    if rejected.reason.is_readable() {
                        accepted = true;
                        self.tell_open(kind).await?;
                    }
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
}

/// Makes of the bytes of a P1 port what the gateway takes: reports under their meters' names, those that say nothing new left out, and
/// readings that are not believed flagged.
#[derive(Debug)]
pub struct Intake {
    name: Arc<str>,
    gateway: Arc<str>,
    reader: Reader,
    judge: Judge,
    /// The last report of each meter.
    said: HashMap<String, Report<String>>,
}

impl Intake {
    /// Of this port, at this gateway; both name meters that do not name themselves.
    pub fn new(name: Arc<str>, gateway: Arc<str>, dialect: Option<Dialect>, key: Option<Key>, judge: Judge) -> Self {
        Self { name, gateway, reader: Reader::new(dialect, key), judge, said: HashMap::new() }
    }

    /// Adds bytes. Call [`poll`](Intake::poll) until it returns None before the next push.
    pub fn push(&mut self, bytes: &[u8]) {
        self.reader.push(bytes);
    }

    /// Says that no more bytes come for now, as [`Reader::end`].
    pub fn end(&mut self) {
        self.reader.end();
    }

    /// The next telegram, or what is none; None when more bytes are needed.
    pub fn poll(&mut self) -> Option<Result<Accepted, Rejected>> {
        self.reader.poll()
    }

    /// What a telegram that was received then says that is new; and how many minutes the meter's clock stands behind, where that is
    /// news, as [`What::ClockOff`].
    pub fn take(&mut self, decoded: Decoded, received_at: Moment) -> (Vec<Report<String>>, Option<i64>) {
        let mut reports = Vec::with_capacity(decoded.reports.len());
        let mut clock_off = None;
        for report in decoded.reports {
            let mut report = report.rename(|identity| identity.name(&self.gateway, &self.name));
            clock_off = clock_off.or(self.judge.clock_error(&report, received_at));
            // What is said again proves nothing.
            if self.is_news(&report) {
                self.judge.judge(&mut report, received_at);
                reports.push(report);
            }
        }
        (reports, clock_off)
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

#[cfg(test)]
mod tests {
    use tokio::{
        io::AsyncWriteExt,
        net::{TcpListener, TcpStream},
    };
    use tokio_serial::{SerialPort, SerialStream};

    use super::*;
    use crate::p1::Writer;

    fn telegram() -> Vec<u8> {
        Writer::new("XYZ5 silence").line("1-3:0.2.8(50)").line("1-0:1.8.1(000001.000*kWh)").finish(true)
    }

    /// Reads a port with little patience.
    fn read(address: &str, quiet: u64) -> mpsc::Receiver<Gathered> {
        let ms = Duration::from_millis;
        let patience =
            Patience { trial: ms(300), proven: ms(3000), quiet: ms(quiet), retry: ms(5), steady: ms(100_000) };
        let source = Source {
            name: "p1".into(),
            address: Address::parse(address).unwrap(),
            dialect: None,
            key: None,
            judge: Judge::default(),
            gateway: "gw-1".into(),
            patience,
            pulse: Pulse::default(),
            tap: Tap::default(),
        };
        let (out, gathered) = mpsc::channel(256);
        tokio::spawn(collect(source, out));
        gathered
    }

    /// What the port brings next, in a word; pieces that are rejected are left out.
    async fn next(gathered: &mut mpsc::Receiver<Gathered>) -> String {
        loop {
            let next = tokio::time::timeout(Duration::from_secs(60), gathered.recv());
            return match next.await.expect("nothing comes").unwrap().what {
                What::Telegram { .. } => "telegram".to_owned(),
                What::Opened(settings) => format!("open {}", settings.map_or("", LineSettings::name)),
                What::Quiet { bytes } => format!("quiet {bytes}"),
                What::Silent { bytes } => format!("silent {bytes}"),
                What::Lost(PortError::Mute { .. }) => "mute".to_owned(),
                What::Lost(error) => format!("lost: {error}"),
                What::Rejected(_) => continue,
                other => format!("{other:?}"),
            };
        }
    }

    async fn listen() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("tcp://{}", listener.local_addr().unwrap());
        (listener, address)
    }

    async fn accept(listener: &TcpListener, bytes: &[u8]) -> TcpStream {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.write_all(bytes).await;
        stream
    }

    #[tokio::test]
    async fn a_connection_that_is_mute_is_made_anew_and_said_once() {
        let (listener, address) = listen().await;
        let mut gathered = read(&address, 300);
        // None is closed: they are half-open.
        let mut open = vec![accept(&listener, &telegram()).await];
        for expected in ["open ", "telegram", "mute"] {
            assert_eq!(next(&mut gathered).await, expected);
        }
        for _ in 0..3 {
            open.push(accept(&listener, b"").await);
        }
        let speak = tokio::spawn(async move {
            loop {
                open.push(accept(&listener, &telegram()).await);
            }
        });
        // Nothing was said of the three in between.
        assert_eq!(next(&mut gathered).await, "open ");
        assert_eq!(next(&mut gathered).await, "telegram");
        speak.abort();
    }

    #[tokio::test]
    async fn a_connection_that_brings_no_telegrams_is_said_once() {
        let (listener, address) = listen().await;
        let mut gathered = read(&address, 2000);
        let mut stream = accept(&listener, &telegram()).await;
        let mut noise = tokio::time::interval(Duration::from_millis(10));
        let mut seen = Vec::new();
        // Noise for a while behind the first word of it, and then telegrams.
        let mut after = 0;
        while seen.len() < 5 {
            tokio::select! {
                word = next(&mut gathered) => seen.push(word),
                _ = noise.tick() => {
                    after += u32::from(seen.iter().any(|word| word == "quiet true"));
                    let bytes = if after > 60 { telegram() } else { b"noise\r\n".to_vec() };
                    stream.write_all(&bytes).await.unwrap();
                }
            }
        }
        assert_eq!(seen, ["open ", "telegram", "quiet true", "open ", "telegram"]);
    }

    #[tokio::test]
    async fn a_port_that_is_closed_again_and_again_is_said_once() {
        let (listener, address) = listen().await;
        let mut gathered = read(&address, 300);
        for _ in 0..10 {
            // As ser2net answers a second client.
            drop(accept(&listener, b"Port already in use\r\n").await);
        }
        let kept = accept(&listener, &telegram()).await;
        // A connection that is closed, or reset: that is the same.
        let reason = "); it is opened again as soon as it is back";
        assert_eq!(next(&mut gathered).await, "open ");
        let lost = next(&mut gathered).await;
        assert!(lost.ends_with(reason), "{lost}");
        for expected in ["open ", "telegram"] {
            assert_eq!(next(&mut gathered).await, expected);
        }
        drop(kept);
    }

    #[tokio::test]
    async fn a_serial_line_that_falls_silent_is_said_and_its_end_too() {
        let (mut meter, device) = SerialStream::pair().unwrap();
        let address = device.name().unwrap();
        drop(device);
        let mut gathered = read(&address, 300);
        assert_eq!(next(&mut gathered).await, "open 115200 8N1");
        for _ in 0..2 {
            meter.write_all(&telegram()).await.unwrap();
            let mut word = next(&mut gathered).await;
            // The second time it is open again, with whatever settings were on trial.
            if word.starts_with("open") {
                word = next(&mut gathered).await;
            }
            assert_eq!(word, "telegram");
            assert_eq!(next(&mut gathered).await, "quiet false");
        }
        // Later, when both settings were tried, that nothing comes at all.
        assert_eq!(next(&mut gathered).await, "silent false");
        meter.write_all(&telegram()).await.unwrap();
        assert!(next(&mut gathered).await.starts_with("open "));
        assert_eq!(next(&mut gathered).await, "telegram");
    }
}
