//! `replay`: plays captures and other files: the daemon's way, to a pseudo-terminal, or over TCP.
//!
//! The daemon's way ends when everything is stored. Times are as recorded: in a capture what has no time of its own (DSMR 2.2, M-Bus) was
//! received when its last byte was recorded; in a plain file it gets that of the replay. `--shift-to-now` moves all times by as much, so
//! that the first is now: those of telegrams, of set days and of events; differences stay.
//!
//! A window takes telegrams by when they were received in a capture, in plain files by their own time; to a pseudo-terminal and TCP a
//! capture's chunks.

mod feed;
mod play;
mod slave;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt::Write as _,
    io::IsTerminal,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use tokio::sync::mpsc;

use super::{
    Failure, Folder, Outcome, Output, asked_to_end,
    decode::left_out,
    input::{Doubt, Event, Place, Position, Trouble},
};
use crate::{
    bus,
    capture::{self, Wire},
    collect::{Gathered, Intake, What, now},
    config::{Config, P1, StoreUrl},
    daemon::{Daemon, Manner},
    mbus::{self, Pattern, Target},
    moment::Moment,
    p1::{self, Form, Key, LineEnds},
    plausible::Judge,
    port::read_key,
    reading::{Clock, escape},
    store::sqlite,
};
use feed::{Feed, Line, Next, Pace, Shift, Speed, Window, speed};

/// How long nothing may be confirmed before the store is given up.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Captures; and P1 telegrams or M-Bus frames, raw, as hex digits, hex dump, base64 or a log; also gzip; `-`: standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// How fast: `real` as it was recorded (in plain files: as the telegrams' own times say), `10x` that many times as fast, `max` as
    /// fast as it goes
    #[arg(long, value_name = "SPEED", default_value = "max", value_parser = speed)]
    speed: Speed,
    /// How often
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    times: u64,
    /// Again and again, until Ctrl-C
    #[arg(long = "loop", conflicts_with = "times")]
    again: bool,
    /// Only what is not before this moment, such as 2026-11-21T20:00:00+01:00
    #[arg(long, value_name = "TIME")]
    from: Option<Moment>,
    /// Only what is before this moment
    #[arg(long, value_name = "TIME")]
    until: Option<Moment>,
    /// Only this port of a capture; may be repeated
    #[arg(long = "port", value_name = "NAME")]
    ports: Vec<String>,
    /// Move all times, so that the first telegram is of now
    #[arg(long)]
    shift_to_now: bool,
    /// Hours that the clocks of M-Bus meters stand ahead of UTC in winter; by default as in the configuration, or 1
    #[arg(long, value_name = "HOURS", allow_negative_numbers = true, value_parser = clap::value_parser!(i8).range(-12..=14))]
    utc_offset: Option<i8>,
    /// Broker and store of this configuration, instead of temporary ones; dialect, key and limit of its port of that name, or its first
    #[arg(long, value_name = "FILE", conflicts_with_all = TARGETS)]
    config: Option<PathBuf>,
    /// Keep the database in this directory
    #[arg(long, value_name = "DIR", conflicts_with = "config", conflicts_with_all = TARGETS)]
    data: Option<PathBuf>,
    /// The key of encrypted telegrams, as in `decode`
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// As a live gateway would: publish telegrams live, and state, interval, status and health
    #[arg(long, conflicts_with_all = TARGETS)]
    live: bool,
    /// To a pseudo-terminal, from when it is opened. A bus answers its master, until Ctrl-C
    #[arg(long, conflicts_with_all = ["tcp_listen", "tcp_connect"])]
    pty: bool,
    /// The same, with a name for the pseudo-terminal: a symbolic link that goes at the end
    #[arg(long, value_name = "PATH", conflicts_with_all = ["tcp_listen", "tcp_connect"])]
    link: Option<PathBuf>,
    /// To each who connects there, one after another, from the beginning, until Ctrl-C
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with = "tcp_connect")]
    tcp_listen: Option<SocketAddr>,
    /// To who listens there
    #[arg(long, value_name = "HOST:PORT")]
    tcp_connect: Option<String>,
}

const TARGETS: [&str; 4] = ["pty", "link", "tcp_listen", "tcp_connect"];

impl Arguments {
    fn window(&self) -> Window {
        Window { from: self.from, until: self.until }
    }

    fn is_to_terminal(&self) -> bool {
        self.pty || self.link.is_some()
    }

    fn takes(&self, port: &str) -> bool {
        self.ports.is_empty() || self.ports.iter().any(|name| name == port)
    }
}

pub(super) async fn replay(arguments: Arguments) -> Result<Outcome, Failure> {
    let reads_twice = arguments.times > 1 || arguments.again || arguments.tcp_listen.is_some();
    if reads_twice && arguments.files.iter().any(|file| file.as_os_str() == "-") {
        return Err(Failure::usage("standard input can be replayed once only: write it to a file first"));
    }
    if arguments.is_to_terminal() || arguments.tcp_listen.is_some() || arguments.tcp_connect.is_some() {
        return play::play(&arguments).await;
    }
    tokio::select! {
        outcome = send_and_wait(&arguments) => outcome,
        // What it holds goes with it: its folders, its broker.
        asked = asked_to_end(), if !arguments.again => {
            asked?;
            Err(Failure::world("ended before everything was confirmed; replay it again, what is stored already is not stored twice"))
        }
    }
}

/// Where a daemon runs by the same configuration, what is replayed goes through its broker into its store. Any other broker at that port
/// has a store of its own behind it, which would take what is meant for this one.
fn beside_a_daemon(config: &mut Config) -> Result<(), Failure> {
    let listen = config.mqtt.listen;
    let is_taken = |error: std::io::Error| error.kind() == std::io::ErrorKind::AddrInUse;
    if config.mqtt.url.is_some() || !std::net::TcpListener::bind(listen).is_err_and(is_taken) {
        return Ok(());
    }
    let Some(store) = &config.store else { return Ok(()) };
    let url = &store.url;
    // Who writes a file holds it; who writes to a server cannot be told from here.
    if !url.file().is_some_and(sqlite::is_held) {
        return Err(Failure::usage(format!(
            "the port of the embedded broker, {listen}, is taken, and not by a daemon that writes {url}: give this replay another port \
             ([mqtt] listen = \"127.0.0.1:0\" is a free one)"
        )));
    }
    say!("the daemon that writes {url} runs: what is replayed goes through its broker, {listen}");
    let id = store.id.clone();
    config.journal.stores.get_or_insert_with(|| vec![id]);
    config.store = None;
    Ok(())
}

async fn send_and_wait(arguments: &Arguments) -> Result<Outcome, Failure> {
    let folder = Folder::new(arguments.data.clone())?;
    let mut config = match &arguments.config {
        Some(file) => Config::read(file).map_err(Failure::usage)?,
        None => own_config(&folder),
    };
    if config.store.is_none() && config.mqtt.url.is_none() && !config.stores().is_empty() {
        return Err(Failure::usage(
            "the configuration has no [store], and no broker ([mqtt] url) at which one could be: nothing would confirm what is replayed",
        ));
    }
    beside_a_daemon(&mut config)?;
    let manner = Manner { live: arguments.live, drain: Some(PATIENCE), share_broker: true };
    if manner.live && !config.has_ports() {
        return Err(Failure::usage(
            "--live needs a [[p1]] or [[mbus]] in the configuration: the gateway that it speaks for",
        ));
    }
    let key = arguments.key_file.as_deref().map(read_key).transpose().map_err(Failure::usage)?;
    // Before anything is started: what was misspelt was not run.
    let progress = Progress::new(&arguments.files);
    let mut found = Vec::new();
    for file in &arguments.files {
        match can_be_read(file) {
            Ok(()) => found.push(file),
            Err(error) => progress.say(&format!("{}: {error}", file.display())),
        }
    }
    if found.is_empty() {
        return Err(Failure::world("nothing was replayed: none of the files can be read"));
    }
    // What is replayed is in the capture: it needs no journal that outlives this, and the daemon's own
    // is in use.
    let journal = Folder::new(None)?;
    config.journal.path = journal.path.join("journal");
    let store = config.stores().join(", ");
    let daemon = Daemon::start(&config, manner).await?;
    if config.mqtt.url.is_none()
        && let Some(broker) = daemon.broker.borrow().as_ref()
    {
        say!("broker: {broker}");
    }
    let failed = arguments.files.len().saturating_sub(found.len()) as u64;
    let mut counts = Counts { failed, ..Counts::default() };
    if let Some(input) = daemon.input() {
        let gateway = daemon.gateway_id.clone();
        let mut way = Way { arguments, config: &config, key, gateway, input, counts, progress };
        tokio::select! {
            () = way.all(&found) => {}
            // What was sent until then is waited for.
            _ = asked_to_end(), if arguments.again => {}
        }
        way.progress.finish();
        counts = way.counts;
    }
    let summary = tokio::select! {
        summary = daemon.stop() => summary,
        // Asked once more.
        asked = asked_to_end(), if arguments.again => {
            asked?;
            return Err(Failure::world("ended before everything was confirmed"));
        }
    };
    let acknowledged = summary.acknowledged;
    let mut output = Output::new();
    output.line(&format!(
        "{{{},\"messages\":{},\"acknowledged\":{acknowledged},\"stored\":{},\"repeated\":{},{}}}",
        counts.begin(),
        summary.messages,
        summary.tally.stored,
        summary.tally.repeated,
        counts.reasons()
    ))?;
    output.finish()?;
    counts.tell(&arguments.ports);
    if acknowledged < summary.messages {
        let missing = summary.messages.saturating_sub(acknowledged);
        say!(
            "meterkast: {missing} messages were not confirmed by store {store} within {} s: is it running?",
            PATIENCE.as_secs()
        );
        return Ok(Outcome::Partly);
    }
    Ok(counts.outcome())
}

/// Whether a file is there and may be read; a pipe is not opened, because its writer would be cut off.
fn can_be_read(file: &Path) -> std::io::Result<()> {
    if file.as_os_str() == "-" {
        return Ok(());
    }
    let found = std::fs::metadata(file)?;
    if found.is_dir() {
        return Err(std::io::Error::new(std::io::ErrorKind::IsADirectory, "is a directory"));
    }
    if found.is_file() {
        std::fs::File::open(file)?;
    }
    Ok(())
}

/// A gateway and a store of its own, around an embedded broker on a free port.
fn own_config(folder: &Folder) -> Config {
    let text = "[gateway]\nid = \"replay\"\n[[p1]]\nport = \"-\"\n[store]\nurl = \"sqlite://replaced\"\n";
    // A text of our own, which a test reads.
    #[expect(clippy::expect_used, reason = "the text is a constant")]
    let mut config = Config::parse(text, "replay").expect("a valid configuration");
    config.mqtt.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    if let Some(store) = &mut config.store {
        store.url = StoreUrl::sqlite(&folder.path.join("meterkast.db"));
        // A capture of years is kept whole.
        store.retention = Duration::MAX;
    }
    config
}

/// What became of what was replayed.
#[derive(Default)]
struct Counts {
    telegrams: u64,
    rejected: u64,
    /// By kind of reason.
    reasons: BTreeMap<&'static str, u64>,
    restored: u64,
    /// Telegrams that are not in the window.
    outside: u64,
    /// Inputs, and lines of captures, that could not be read.
    failed: u64,
}

impl Counts {
    fn reject(&mut self, kind: &'static str) {
        self.rejected = self.rejected.saturating_add(1);
        let count = self.reasons.entry(kind).or_default();
        *count = count.saturating_add(1);
    }

    /// As members of a JSON object.
    fn begin(&self) -> String {
        format!("\"telegrams\":{},\"rejected\":{}", self.telegrams, self.rejected)
    }

    fn reasons(&self) -> String {
        let mut text = "\"rejected_by\":{".to_owned();
        for (index, (kind, count)) in self.reasons.iter().enumerate() {
            let _ = write!(text, "{}\"{kind}\":{count}", if index > 0 { "," } else { "" });
        }
        text.push('}');
        text
    }

    /// Says what is not in the summary.
    /// `ports`: those that were asked for.
    fn tell(&self, ports: &[String]) {
        if self.restored > 0 {
            say!("{}", super::decode::other_line_ends(self.restored));
        }
        if self.outside > 0 {
            say!("{} telegrams are not of that time, and were left out", self.outside);
        }
        if self.telegrams == 0 && self.rejected == 0 && self.failed == 0 && self.outside == 0 {
            let of = if ports.is_empty() { String::new() } else { format!(", of port {}", ports.join(" or ")) };
            say!("meterkast: neither a P1 telegram nor an M-Bus answer in what was to be replayed{of}");
        }
    }

    fn outcome(&self) -> Outcome {
        let well = self.rejected == 0 && self.failed == 0 && self.telegrams > 0;
        if well { Outcome::Well } else { Outcome::Partly }
    }
}

/// How far it is, on a terminal.
struct Progress {
    bar: ProgressBar,
    /// How much of the files before this one.
    before: u64,
    current: Option<(Position, u64)>,
    lengths: Vec<u64>,
}

impl Progress {
    /// By the bytes of these files; of pipes nobody knows how many there are.
    fn new(files: &[PathBuf]) -> Self {
        let length =
            |file: &PathBuf| std::fs::metadata(file).ok().filter(std::fs::Metadata::is_file).map(|found| found.len());
        let known: Option<Vec<u64>> = files.iter().map(length).collect();
        let total = known.iter().flatten().fold(0u64, |sum, length| sum.saturating_add(*length));
        let bar = match () {
            () if !std::io::stderr().is_terminal() => ProgressBar::hidden(),
            () if known.is_none() => ProgressBar::new_spinner(),
            () => {
                let style = ProgressStyle::with_template("{bar:40} {percent:>3} % {msg}");
                ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
            }
        };
        Self { bar, before: 0, current: None, lengths: known.unwrap_or_default() }
    }

    fn begin(&mut self, feed: &Feed) {
        if let Some((_, length)) = self.current.take() {
            self.before = self.before.saturating_add(length);
        }
        let total = self.lengths.iter().fold(0u64, |sum, length| sum.saturating_add(*length));
        // From the beginning again.
        if self.before >= total {
            self.before = 0;
        }
        self.current = Some((feed.position.clone(), feed.length.unwrap_or_default()));
    }

    fn turn(&self, file: &str, telegrams: u64) {
        if self.bar.is_hidden() {
            return;
        }
        if let Some((position, _)) = &self.current {
            self.bar.set_position(self.before.saturating_add(position.get()));
        }
        self.bar.set_message(format!("{file}: {telegrams} telegrams"));
        self.bar.tick();
    }

    fn say(&self, text: &str) {
        self.bar.suspend(|| say!("{text}"));
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// The daemon's way.
struct Way<'a> {
    arguments: &'a Arguments,
    config: &'a Config,
    key: Option<Key>,
    gateway: Arc<str>,
    input: mpsc::Sender<Gathered>,
    counts: Counts,
    progress: Progress,
}

/// The gateway is gone.
struct Gone;

/// A port of a file while it is replayed.
struct Port {
    name: Arc<str>,
    /// Whether it is a capture's.
    is_recorded: bool,
    speaks: Speaks,
    places: Places,
    /// When the last telegram was received.
    received: Option<Timestamp>,
}

/// What is spoken at a port.
enum Speaks {
    Doubt(Doubt),
    P1(Box<Intake>),
    Mbus(Box<mbus::Stream>, Judge),
}

/// Where in a capture the bytes of a port stand.
#[derive(Default)]
struct Places {
    /// Where in the bytes of the port a chunk begins, and its place and time.
    chunks: VecDeque<(u64, Place, Timestamp)>,
    /// How many bytes there were.
    pushed: u64,
}

impl Places {
    /// A telegram comes in fewer chunks: of longer noise the beginning is not known any more.
    const MOST: usize = 20_000;

    fn push(&mut self, place: Place, at: Timestamp, length: usize) {
        if self.chunks.len() >= Self::MOST {
            self.chunks.pop_front();
        }
        self.chunks.push_back((self.pushed, place, at));
        self.pushed = self.pushed.saturating_add(length as u64);
    }

    /// What is before this is not asked for any more.
    fn forget(&mut self, offset: u64) {
        while self.chunks.get(1).is_some_and(|(begin, ..)| *begin <= offset) {
            self.chunks.pop_front();
        }
    }

    fn find(&self, offset: u64) -> Option<(Place, Timestamp)> {
        let at = self.chunks.partition_point(|(begin, ..)| *begin <= offset);
        self.chunks.get(at.saturating_sub(1)).map(|(_, place, at)| (*place, *at))
    }

    /// Where a piece stands, as messages name it.
    fn name(&self, file: &str, offset: u64, reason: &dyn std::fmt::Display) -> String {
        match self.find(offset) {
            Some((place, at)) => format!("{file}:{}: {reason} ({at})", place.line),
            None => format!("{file}:{offset}: {reason}"),
        }
    }
}

impl Way<'_> {
    async fn all(&mut self, files: &[&PathBuf]) {
        let mut times = 0;
        loop {
            let mut shift = Shift::new(self.arguments.shift_to_now);
            let mut pace = Pace::new(self.arguments.speed);
            for file in files {
                if self.file(file, &mut shift, &mut pace).await.is_err() {
                    return;
                }
            }
            times = u64::saturating_add(times, 1);
            // Nothing comes of it, however often.
            let is_empty = self.counts.telegrams == 0;
            if (times >= self.arguments.times && !self.arguments.again) || is_empty {
                return;
            }
        }
    }

    async fn file(&mut self, file: &Path, shift: &mut Shift, pace: &mut Pace) -> Result<(), Gone> {
        let shown = file.display().to_string();
        let mut feed = match Feed::open(file).await {
            Ok(feed) => feed,
            Err(error) => {
                self.fail(&format!("{shown}: {error}"));
                return Ok(());
            }
        };
        self.progress.begin(&feed);
        let (mut ports, mut line): (HashMap<String, Port>, _) = (HashMap::new(), Line::default());
        loop {
            let event = match feed.next().await {
                Next::Event(event) => event,
                Next::Trouble(Trouble::Line(bad)) => {
                    self.fail(&format!("{shown}:{}: {}", bad.line, bad.reason));
                    continue;
                }
                Next::Trouble(trouble) => {
                    self.fail(&format!("{shown}: {trouble}"));
                    continue;
                }
                Next::End(form) => {
                    for port in ports.values_mut() {
                        self.end(&shown, port);
                        self.drain(&shown, port, None, shift, pace).await?;
                        self.send(&port.name, What::Ended).await?;
                    }
                    if let Some((form, lines)) = form.filter(|(form, _)| *form != Form::Raw) {
                        self.progress.say(&format!("{shown}: read as {}{}", form.name(), left_out(lines)));
                    }
                    return Ok(());
                }
            };
            self.progress.turn(&shown, self.counts.telegrams);
            match event {
                Event::Bytes(bytes) => {
                    if ports.is_empty() {
                        let doubt = Speaks::Doubt(Doubt::default());
                        let (name, places, received) = (Arc::from(""), Places::default(), None);
                        ports.insert(String::new(), Port { name, is_recorded: false, speaks: doubt, places, received });
                    }
                    let Some(port) = ports.get_mut("") else { continue };
                    self.push(&shown, port, &bytes);
                    self.drain(&shown, port, None, shift, pace).await?;
                }
                Event::Opening(_, opening) => {
                    if !self.arguments.takes(&opening.port) {
                        continue;
                    }
                    line.open(&opening);
                    if let Some(port) = ports.get_mut(&opening.port) {
                        // A recording begins anew: what was open has no end.
                        if !opening.goes_on {
                            self.end(&shown, port);
                            self.drain(&shown, port, None, shift, pace).await?;
                        }
                        continue;
                    }
                    let name: Arc<str> = opening.port.as_str().into();
                    let speaks = self.speaks(opening.wire, Some(&name)).1;
                    self.send(&name, What::Opened(None)).await?;
                    let (places, received) = (Places::default(), None);
                    ports.insert(opening.port, Port { name, is_recorded: true, speaks, places, received });
                }
                Event::Chunk(place, _, chunk) => {
                    let Some(port) = ports.get_mut(&chunk.port) else { continue };
                    let then = line.at(&chunk.port, chunk.us, chunk.at);
                    match chunk.what {
                        capture::What::Lost(chunks) => {
                            let port_name = escape(chunk.port.as_bytes());
                            let text = format!(
                                "{shown}:{}: the recorder missed {chunks} chunks of {port_name} here",
                                place.line
                            );
                            self.fail(&text);
                            self.end(&shown, port);
                        }
                        capture::What::Bytes(_, bytes) => {
                            // Who waits for a window waits from its beginning on.
                            if self.arguments.window().has(Some(chunk.at)) {
                                pace.until(then).await;
                            }
                            port.places.push(place, chunk.at, bytes.len());
                            self.push(&shown, port, &bytes);
                        }
                    }
                    self.drain(&shown, port, Some(chunk.at), shift, pace).await?;
                }
            }
        }
    }

    fn fail(&mut self, text: &str) {
        self.progress.say(text);
        self.counts.failed = self.counts.failed.saturating_add(1);
    }

    async fn send(&self, port: &Arc<str>, what: What) -> Result<(), Gone> {
        self.input.send(Gathered { port: port.clone(), what }).await.map_err(|_| Gone)
    }

    /// What reads a port, and its name. Without one it is that of the configuration's first port.
    fn speaks(&self, wire: Wire, name: Option<&Arc<str>>) -> (Arc<str>, Speaks) {
        let Self { config, gateway, .. } = self;
        match wire {
            Wire::P1 => {
                let of_name = |port: &&P1| name.is_some_and(|name| port.name.as_str() == &**name);
                let port = config.p1.iter().find(of_name).or(config.p1.first());
                let default = || Arc::from(port.map_or("p1", |port| port.name.as_str()));
                let name = name.cloned().unwrap_or_else(default);
                let key = self.key.clone().or_else(|| read_key(port?.key_file.as_deref()?).ok());
                let judge = Judge::new(port.map(|port| port.limit).unwrap_or_default());
                let dialect = port.and_then(|port| port.dialect);
                let intake = Intake::new(name.clone(), gateway.clone(), dialect, key, judge);
                (name, Speaks::P1(Box::new(intake)))
            }
            Wire::Mbus => {
                let of_name = |bus: &&crate::config::Mbus| name.is_some_and(|name| bus.name.as_str() == &**name);
                let bus = config.mbus.iter().find(of_name).or(config.mbus.first());
                let offset = self.arguments.utc_offset.or(bus.map(|bus| bus.utc_offset)).unwrap_or(1);
                let default = || Arc::from(bus.map_or("mbus", |bus| bus.name.as_str()));
                let name = name.cloned().unwrap_or_else(default);
                (name, Speaks::Mbus(Box::new(mbus::Stream::new(offset)), Judge::default()))
            }
        }
    }

    fn push(&mut self, file: &str, port: &mut Port, bytes: &[u8]) {
        match &mut port.speaks {
            Speaks::P1(intake) => intake.push(bytes),
            Speaks::Mbus(stream, _) => stream.push(bytes),
            Speaks::Doubt(doubt) => {
                if let Some(wire) = doubt.push(bytes) {
                    self.decide(file, port, wire);
                }
            }
        }
    }

    /// It is known now what is spoken in a plain file.
    fn decide(&mut self, file: &str, port: &mut Port, wire: Wire) {
        let (name, speaks) = self.speaks(wire, None);
        port.name = name;
        if let Speaks::Doubt(Doubt { held, skipped, .. }) = std::mem::replace(&mut port.speaks, speaks) {
            if skipped > 0 {
                self.counts.reject("fragment");
                self.progress.say(&format!("{file}:0: {skipped} bytes that are neither of P1 nor of M-Bus"));
            }
            // So that places are those in the file.
            port.places.pushed = skipped;
            self.push(file, port, &held);
        }
    }

    /// What is open ends here.
    fn end(&mut self, file: &str, port: &mut Port) {
        if matches!(port.speaks, Speaks::Doubt(_)) {
            // A telegram with an odd header, perhaps.
            self.decide(file, port, Wire::P1);
        }
        match &mut port.speaks {
            Speaks::Doubt(_) => {}
            Speaks::P1(intake) => intake.end(),
            Speaks::Mbus(stream, _) => stream.end(),
        }
    }

    /// Sends on what can be had of a port so far; its last byte was recorded `at`.
    async fn drain(
        &mut self,
        file: &str,
        port: &mut Port,
        at: Option<Timestamp>,
        shift: &mut Shift,
        pace: &mut Pace,
    ) -> Result<(), Gone> {
        let window = self.arguments.window();
        let at = at.or(port.places.chunks.back().map(|(.., at)| *at));
        loop {
            let base = if port.is_recorded { 0 } else { port.places.pushed };
            let (offset, found) = match &mut port.speaks {
                Speaks::Doubt(_) => return Ok(()),
                Speaks::P1(intake) => match intake.poll() {
                    None => return Ok(()),
                    Some(Ok(mut telegram)) => {
                        let own = telegram.decoded.reports.iter().find_map(|report| report.measured_at);
                        let time = if port.is_recorded { at } else { own.map(Moment::instant) };
                        if !window.has(time) {
                            self.counts.outside = self.counts.outside.saturating_add(1);
                            continue;
                        }
                        if !port.is_recorded {
                            pace.telegram(own).await;
                        }
                        let received = received_at(port.is_recorded.then_some(at).flatten(), &mut port.received);
                        let by = shift.of(if port.is_recorded { Some(received) } else { own });
                        let received_at = match by.filter(|_| port.is_recorded) {
                            Some(by) => received.shifted(by).unwrap_or(received),
                            None => received,
                        };
                        if let Some(by) = by {
                            telegram.decoded.reports.iter_mut().for_each(|report| report.shift(by));
                        }
                        let restored = telegram.line_ends == LineEnds::Restored;
                        self.counts.restored = self.counts.restored.saturating_add(u64::from(restored));
                        let (reports, _) = intake.take(telegram.decoded, received_at);
                        (telegram.offset, Ok(What::Telegram { reports, received_at, restored }))
                    }
                    Some(Err(rejected)) => (rejected.offset, Err((rejected.reason.to_string(), Piece::P1(rejected)))),
                },
                Speaks::Mbus(stream, judge) => match stream.poll() {
                    None => return Ok(()),
                    // A recording that ends within a readout: what a master would not take is not taken.
                    Some(Ok(piece)) if piece.decoded.more_follow && port.is_recorded => {
                        let reason = mbus::Reason::Unfinished;
                        (piece.offset, Err((reason.to_string(), Piece::Mbus(reason.kind()))))
                    }
                    Some(Ok(piece)) => {
                        let time = port.is_recorded.then_some(at).flatten();
                        if !window.has(time) {
                            self.counts.outside = self.counts.outside.saturating_add(1);
                            continue;
                        }
                        if piece.decoded.more_follow {
                            let text = "the meter has more telegrams, which are not here";
                            self.progress.say(&port.places.name(file, base.saturating_add(piece.offset), &text));
                        }
                        let received = received_at(time, &mut port.received);
                        let by = shift.of(Some(received));
                        let received_at = by.and_then(|by| received.shifted(by)).unwrap_or(received);
                        let target = match piece.decoded.secondary {
                            Some(mbus::Secondary { id, manufacturer, version, medium }) => {
                                Target::Secondary(Pattern { id, manufacturer: manufacturer.0, version, medium })
                            }
                            None => Target::Primary(piece.decoded.address),
                        };
                        let mut report = piece.decoded.report;
                        if let Some(by) = by {
                            report.shift(by);
                        }
                        let report = report.rename(|identity| identity.name(&self.gateway, &port.name));
                        let mut report = bus::received(report, received_at, Clock::Gateway, target);
                        judge.judge(&mut report, received_at);
                        (piece.offset, Ok(What::Telegram { reports: vec![report], received_at, restored: false }))
                    }
                    Some(Err(rejected)) => {
                        (rejected.offset, Err((rejected.reason.to_string(), Piece::Mbus(rejected.reason.kind()))))
                    }
                },
            };
            match found {
                Ok(what) => {
                    port.places.forget(offset);
                    self.counts.telegrams = self.counts.telegrams.saturating_add(1);
                    self.send(&port.name, what).await?;
                }
                Err((reason, piece)) => {
                    // By when its first byte came.
                    let time = port.places.find(offset).map(|(_, at)| at);
                    if port.is_recorded && !window.has(time) {
                        continue;
                    }
                    self.progress.say(&port.places.name(file, base.saturating_add(offset), &reason));
                    match piece {
                        Piece::P1(rejected) => {
                            self.counts.reject(rejected.reason.kind());
                            self.send(&port.name, What::Rejected(rejected)).await?;
                        }
                        Piece::Mbus(kind) => self.counts.reject(kind),
                    }
                }
            }
        }
    }
}

/// What was rejected.
enum Piece {
    P1(p1::Rejected),
    Mbus(&'static str),
}

/// When a telegram was received: as recorded, or now. One that has no time of its own gets this one, so two are never of the same.
fn received_at(recorded: Option<Timestamp>, last: &mut Option<Timestamp>) -> Moment {
    let next = last.map(|last| last.saturating_add(Duration::from_millis(1)).unwrap_or(last));
    let received = match recorded {
        Some(at) => {
            let at = Timestamp::from_millisecond(at.as_millisecond()).unwrap_or(at);
            // A clock that was put back was put back.
            if Some(at) == *last { next.unwrap_or(at) } else { at }
        }
        None => next.map_or_else(now, |next| next.max(now())),
    };
    *last = Some(received);
    Moment::utc(received)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_own_configuration_is_valid() {
        let folder = Folder::new(None).unwrap();
        let config = own_config(&folder);
        assert!(config.store.unwrap().url.file().unwrap().starts_with(&folder.path));
        assert_eq!(config.mqtt.listen.port(), 0);
    }

    #[test]
    fn places_of_a_capture_are_found_by_the_bytes_of_the_port() {
        let at = Timestamp::UNIX_EPOCH;
        let mut places = Places::default();
        assert_eq!(places.name("x", 7, &"bad"), "x:7: bad");
        for line in 2..10 {
            places.push(Place { line, offset: 0 }, at, 100);
        }
        let line = |places: &Places, offset| places.find(offset).unwrap().0.line;
        assert_eq!([0, 99, 100, 750, 10_000].map(|offset| line(&places, offset)), [2, 2, 3, 9, 9]);
        places.forget(250);
        assert_eq!([250, 300].map(|offset| line(&places, offset)), [4, 5]);
        assert_eq!(places.chunks.len(), 6);
        assert_eq!(places.name("x", 300, &"bad"), "x:5: bad (1970-01-01T00:00:00Z)");
    }

    #[test]
    fn what_was_received_at_one_time_is_told_apart() {
        let at = Timestamp::from_millisecond(5).unwrap();
        let mut last = None;
        let times: Vec<i64> =
            [5, 5, 9, 3].map(|ms| received_at(Timestamp::from_millisecond(ms).ok(), &mut last).millis()).to_vec();
        assert_eq!(times, [5, 6, 9, 3]);
        assert!(received_at(None, &mut Some(at)).instant() > at);
    }
}
