//! Playing to others: a pseudo-terminal or a connection that stands for a meter or for a converter with its bus.

use std::{io, os::fd::OwnedFd, path::Path, time::Duration};

use jiff::{SignedDuration, Timestamp};
use rustix::fs::inotify;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_serial::{SerialPort, SerialStream};

use super::{
    super::{
        asked_to_end,
        input::{Doubt, Event, Trouble},
        terminal::{Link, terminal},
    },
    Arguments, Counts, Failure, Outcome, Output, Places, Progress, can_be_read,
    feed::{Feed, Line, Next, Pace, Shift, Speed},
    slave::Slaves,
};
use crate::{
    capture::{Way, What, Wire},
    mbus::{self, Frame},
    moment::Moment,
    p1::{self, LineEnds, Reader},
    port::read_key,
    reading::escape,
    redact::{
        Plan, Refused, Rewriter,
        cut::{Cutter, Found},
    },
};

/// Who does not read for so long misses it, as on a wire; at full speed it is waited for.
const MISSES: Duration = Duration::from_secs(1);
/// Between two looks whether a pseudo-terminal was opened, and how long whoever did may take to set the line.
const LOOK: Duration = Duration::from_millis(20);
const SETS: Duration = Duration::from_millis(50);
/// How long nothing may lie there to be sure that nothing is under way.
const SETTLED: Duration = Duration::from_millis(300);
/// Who takes nothing for so long over TCP is left.
const STALLED: Duration = Duration::from_secs(10);
/// How long what was played may lie unread at the end.
const UNREAD: Duration = Duration::from_secs(5);
/// More than that without a telegram is not held back.
const MOST_NOISE: usize = 1 << 20;
/// The frames of a bus are held in memory: most bytes.
const MOST: usize = 64 << 20;

pub(super) async fn play(arguments: &Arguments) -> Result<Outcome, Failure> {
    for file in &arguments.files {
        can_be_read(file).map_err(|error| Failure::world(format!("{}: {error}", file.display())))?;
    }
    let wire = wire(arguments).await?;
    let mut counts = Counts::default();
    match wire {
        Known::Mbus(slaves) => answer(arguments, slaves).await,
        Known::P1(first) => {
            let progress = Progress::new(&arguments.files);
            let key = arguments.key_file.as_deref().map(read_key).transpose().map_err(Failure::usage)?;
            let mut player = Player { arguments, key, progress, counts: &mut counts, bytes: 0, missed: 0 };
            let played = player.serve(first).await;
            player.progress.finish();
            played?;
            if player.missed > 0 {
                say!("{} bytes were not read in time, and left out", player.missed);
            }
            let bytes = player.bytes;
            let mut output = Output::new();
            output.line(&format!("{{{},\"bytes\":{bytes},{}}}", counts.begin(), counts.reasons()))?;
            output.finish()?;
            counts.tell(&arguments.ports);
            Ok(counts.outcome())
        }
    }
}

/// What is played.
enum Known {
    P1(Option<Opened>),
    Mbus(Slaves),
}

/// The first file, as far as it was read to know what it holds.
struct Opened {
    feed: Feed,
    read: Vec<Next>,
}

/// Finds out what is spoken in the files: by the first port that is played. A bus is read to its end.
async fn wire(arguments: &Arguments) -> Result<Known, Failure> {
    let mut recorded: Vec<(Way, Vec<u8>)> = Vec::new();
    let mut held = 0usize;
    let (mut is_bus, mut port) = (false, None);
    for (index, file) in arguments.files.iter().enumerate() {
        let shown = file.display();
        let mut feed = Feed::open(file).await.map_err(|error| Failure::world(format!("{shown}: {error}")))?;
        let (mut read, mut doubt) = (Vec::new(), Doubt::default());
        loop {
            let next = feed.next().await;
            let spoken = match &next {
                // So much noise may be played as well.
                Next::Event(Event::Bytes(bytes)) if !is_bus => {
                    doubt.push(bytes).or_else(|| (doubt.skipped > 0).then_some(Wire::P1))
                }
                Next::Event(Event::Chunk(_, wire, chunk)) if arguments.takes(&chunk.port) => Some(*wire),
                Next::End(_) if !is_bus => Some(Wire::P1),
                _ => None,
            };
            match spoken {
                Some(Wire::P1) if !is_bus => {
                    if index > 0 {
                        return Err(Failure::usage(format!(
                            "{shown}: is of P1, and the files before it of M-Bus: play one of them"
                        )));
                    }
                    read.push(next);
                    return Ok(Known::P1(Some(Opened { feed, read })));
                }
                Some(Wire::P1) => continue,
                Some(Wire::Mbus) if !is_bus => {
                    is_bus = true;
                    for next in read.drain(..) {
                        keep(next, arguments, &mut port, &mut recorded, &mut held, &shown.to_string())?;
                    }
                }
                _ => {}
            }
            if let Next::End(_) = next {
                break;
            }
            if is_bus {
                keep(next, arguments, &mut port, &mut recorded, &mut held, &shown.to_string())?;
            } else {
                read.push(next);
            }
        }
    }
    if arguments.shift_to_now {
        recorded = shifted(&recorded, arguments.utc_offset.unwrap_or(1));
    }
    let slaves = Slaves::of(&recorded);
    if slaves.len() == 0 {
        return Err(Failure::world("no meter's answer in what was to be played"));
    }
    Ok(Known::Mbus(slaves))
}

/// Keeps what went over a bus.
fn keep(
    next: Next,
    arguments: &Arguments,
    port: &mut Option<String>,
    recorded: &mut Vec<(Way, Vec<u8>)>,
    held: &mut usize,
    file: &str,
) -> Result<(), Failure> {
    let (way, bytes) = match next {
        Next::Event(Event::Bytes(bytes)) => (Way::FromMeter, bytes),
        Next::Event(Event::Chunk(_, Wire::Mbus, chunk)) if arguments.takes(&chunk.port) => {
            let played = port.get_or_insert_with(|| chunk.port.clone());
            if *played != chunk.port {
                return Err(other_port(played, &chunk.port));
            }
            match chunk.what {
                What::Bytes(way, bytes) if arguments.window().has(Some(chunk.at)) => (way, bytes),
                _ => return Ok(()),
            }
        }
        Next::Trouble(Trouble::Line(bad)) => {
            say!("{file}:{}: {}", bad.line, bad.reason);
            return Ok(());
        }
        Next::Trouble(trouble) => {
            say!("{file}: {trouble}");
            return Ok(());
        }
        _ => return Ok(()),
    };
    *held = held.saturating_add(bytes.len());
    if *held > MOST {
        return Err(Failure::world(format!(
            "{file}: a bus of more than 64 MiB cannot be played: choose a window with --from and --until"
        )));
    }
    recorded.push((way, bytes));
    Ok(())
}

/// The frames of a bus with their times moved by whole days, so that the first that a meter shows is of today: days without a time
/// stay exact. What is no frame is left out.
fn shifted(recorded: &[(Way, Vec<u8>)], utc_offset: i8) -> Vec<(Way, Vec<u8>)> {
    let [mut sent, mut answered] = [(); 2].map(|()| Cutter::new(Wire::Mbus, None));
    let mut frames = Vec::new();
    for (way, bytes) in recorded {
        let cutter = if *way == Way::ToMeter { &mut sent } else { &mut answered };
        cutter.push(bytes);
        frames.extend(std::iter::from_fn(|| cutter.poll()).filter_map(|cut| match cut.what {
            Found::Frame(frame) => Some((*way, frame)),
            _ => None,
        }));
    }
    let time = |(_, frame): &(Way, Vec<u8>)| mbus::read(frame, utc_offset).ok()?.report.measured_at;
    let Some(first) = frames.iter().find_map(time) else { return frames };
    let days = Timestamp::now().duration_since(first.instant()).as_hours() / 24;
    let rewriter = rewriter(SignedDuration::from_hours(days * 24));
    for (_, bytes) in &mut frames {
        if let Ok((frame, _)) = Frame::parse(bytes)
            && let Ok(written) = rewriter.frame(&frame, "")
        {
            *bytes = written.bytes;
        }
    }
    frames
}

/// Moves times, and changes nothing else.
fn rewriter(shift: SignedDuration) -> Rewriter {
    Rewriter::new(Plan { shift, keep_unknown: true, ..Plan::default() })
}

/// Moves the times of telegrams on their way. What is no telegram is left out.
struct Shifter<'a> {
    cutter: Cutter,
    /// That of all files.
    shift: &'a mut Shift,
}

impl Shifter<'_> {
    /// The telegrams that are whole now, and why others cannot be written.
    fn pass(&mut self, bytes: &[u8]) -> (Vec<u8>, Vec<Refused>) {
        self.cutter.push(bytes);
        self.poll()
    }

    fn poll(&mut self) -> (Vec<u8>, Vec<Refused>) {
        let (mut passed, mut refused) = (Vec::new(), Vec::new());
        while let Some(cut) = self.cutter.poll() {
            let Found::Telegram(whole) = cut.what else { continue };
            let telegram = whole.telegram();
            let time = p1::decode(&telegram, None).reports.iter().find_map(|report| report.measured_at);
            // One without a time has none to be moved.
            match rewriter(self.shift.of(time).unwrap_or_default()).telegram(&telegram, None, "") {
                Ok(written) => passed.extend(written.bytes),
                Err(why) => refused.push(why),
            }
        }
        (passed, refused)
    }
}

fn other_port(one: &str, other: &str) -> Failure {
    let [one, other] = [one, other].map(|port| escape(port.as_bytes()));
    Failure::usage(format!("the capture has several ports, {one} and {other} among them: choose one with --port"))
}

/// Answers a master for as long as there is one, or until Ctrl-C.
async fn answer(arguments: &Arguments, mut slaves: Slaves) -> Result<Outcome, Failure> {
    say!("a bus with {} recorded answers", slaves.len());
    let served = async {
        if arguments.is_to_terminal() {
            let (mut terminal, _link) = Terminal::open(arguments.link.as_deref())?;
            say!("a master opens {}; Ctrl-C ends it.", terminal.name);
            let mut buffer = [0u8; 1024];
            loop {
                let Ok(count @ 1..) = AsyncReadExt::read(&mut terminal.ours, &mut buffer).await else {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                };
                let answer = slaves.hear(buffer.get(..count).unwrap_or_default());
                let _ = tokio::time::timeout(MISSES, AsyncWriteExt::write_all(&mut terminal.ours, &answer)).await;
            }
        }
        if let Some(target) = &arguments.tcp_connect {
            converse(connect(target).await?, &mut slaves).await;
            return Ok(());
        }
        let listener = listen(arguments).await?;
        loop {
            // One master at a time, as a converter has it.
            if let Ok((stream, _)) = listener.accept().await {
                converse(stream, &mut slaves).await;
            }
        }
    };
    tokio::select! {
        served = served => served.map(|()| Outcome::Well),
        asked = asked_to_end() => asked.map(|()| Outcome::Well),
    }
}

async fn converse(mut stream: TcpStream, slaves: &mut Slaves) {
    let _ = stream.set_nodelay(true);
    let mut buffer = [0u8; 1024];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        let answer = slaves.hear(buffer.get(..count).unwrap_or_default());
        if stream.write_all(&answer).await.is_err() {
            return;
        }
    }
}

async fn listen(arguments: &Arguments) -> Result<TcpListener, Failure> {
    let address = arguments.tcp_listen.ok_or_else(|| Failure::usage("--pty, --link, --tcp-listen or --tcp-connect"))?;
    let listener = TcpListener::bind(address).await;
    let listener = listener.map_err(|error| Failure::world(format!("--tcp-listen {address}: {error}")))?;
    let at = listener.local_addr().map_or_else(|_| address.to_string(), |at| at.to_string());
    say!("listens at tcp://{at}; Ctrl-C ends it.");
    Ok(listener)
}

async fn connect(target: &str) -> Result<TcpStream, Failure> {
    let target = target.strip_prefix("tcp://").unwrap_or(target);
    let stream = TcpStream::connect(target).await;
    stream.map_err(|error| Failure::world(format!("--tcp-connect {target}: {error}; does somebody listen there?")))
}

/// A pseudo-terminal that others open.
struct Terminal {
    ours: SerialStream,
    theirs: SerialStream,
    /// As others know it.
    name: String,
    path: String,
    /// When it is opened.
    opened: OwnedFd,
}

impl Terminal {
    /// `link`: a name for it.
    fn open(link: Option<&Path>) -> Result<(Self, Option<Link>), Failure> {
        let (ours, theirs, path) = terminal()?;
        let watch = || -> io::Result<OwnedFd> {
            let inotify = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
            inotify::add_watch(&inotify, &path, inotify::WatchFlags::OPEN)?;
            Ok(inotify)
        };
        let opened = watch().map_err(|error| Failure::world(format!("{path}: cannot be watched: {error}")))?;
        let name = link.map_or_else(|| path.clone(), |link| link.display().to_string());
        let link = link.map(|link| Link::new("--link", link.to_owned(), &path)).transpose()?;
        Ok((Self { ours, theirs, name, path, opened }, link))
    }

    /// Until somebody opens it.
    async fn opened(&self) -> Result<(), Failure> {
        let mut events = [0u8; 4096];
        loop {
            match rustix::io::read(&self.opened, &mut events) {
                Ok(_) => break,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => tokio::time::sleep(LOOK).await,
                Err(error) => return Err(Failure::world(format!("{}: cannot be watched: {error}", self.path))),
            }
        }
        // It sets the line first.
        tokio::time::sleep(SETS).await;
        Ok(())
    }

    /// Until everything was read: what lies there when our end is closed is gone.
    async fn read_up(&self) {
        let (mut last, mut since) = (None, tokio::time::Instant::now());
        loop {
            // The system hands on what it took from us a little later.
            let unread = self.theirs.bytes_to_read().unwrap_or(0);
            if last != Some(unread) {
                (last, since) = (Some(unread), tokio::time::Instant::now());
            }
            if since.elapsed() >= if unread == 0 { SETTLED } else { UNREAD } {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Whoever hears what is played.
enum Ear<'a> {
    Terminal(&'a mut Terminal),
    Tcp(&'a mut TcpStream),
}

/// Nobody listens any more.
struct Gone;

impl Ear<'_> {
    /// Returns how many bytes were missed.
    async fn say(&mut self, bytes: &[u8], speed: Speed) -> Result<usize, Gone> {
        match self {
            // Others wait for their turn.
            Self::Tcp(stream) => match tokio::time::timeout(STALLED, stream.write_all(bytes)).await {
                Ok(Ok(())) => Ok(0),
                _ => Err(Gone),
            },
            Self::Terminal(terminal) => {
                let mut rest = bytes;
                while !rest.is_empty() {
                    let write = AsyncWriteExt::write(&mut terminal.ours, rest);
                    let written = match speed {
                        Speed::Max => write.await,
                        Speed::Times(_) => match tokio::time::timeout(MISSES, write).await {
                            Ok(written) => written,
                            Err(_) => return Ok(rest.len()),
                        },
                    };
                    match written {
                        Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(_) => return Err(Gone),
                    }
                }
                Ok(0)
            }
        }
    }
}

/// Plays telegrams.
struct Player<'a> {
    arguments: &'a Arguments,
    key: Option<p1::Key>,
    progress: Progress,
    counts: &'a mut Counts,
    bytes: u64,
    missed: u64,
}

impl Player<'_> {
    async fn serve(&mut self, first: Option<Opened>) -> Result<(), Failure> {
        let arguments = self.arguments;
        if arguments.is_to_terminal() {
            let (mut terminal, _link) = Terminal::open(arguments.link.as_deref())?;
            say!("{}: plays when it is opened; Ctrl-C ends it.", terminal.name);
            let played = async {
                terminal.opened().await?;
                self.all(first, &mut Ear::Terminal(&mut terminal)).await?;
                terminal.read_up().await;
                Ok(())
            };
            return tokio::select! {
                played = played => played,
                asked = asked_to_end() => asked,
            };
        }
        if let Some(target) = &arguments.tcp_connect {
            let mut stream = connect(target).await?;
            let played = async {
                self.all(first, &mut Ear::Tcp(&mut stream)).await?;
                // Its other end has everything when it has closed, too.
                let _ = stream.shutdown().await;
                let mut rest = [0u8; 1024];
                let read_up = async { while let Ok(1..) = stream.read(&mut rest).await {} };
                let _ = tokio::time::timeout(UNREAD, read_up).await;
                Ok(())
            };
            return tokio::select! {
                played = played => played,
                asked = asked_to_end() => asked,
            };
        }
        drop(first);
        let listener = listen(arguments).await?;
        let mut asked = std::pin::pin!(asked_to_end());
        loop {
            let mut stream = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(_) => continue,
                },
                asked = &mut asked => return asked,
            };
            let mut ear = Ear::Tcp(&mut stream);
            tokio::select! {
                played = self.all(None, &mut ear) => played?,
                asked = &mut asked => return asked,
            }
        }
    }

    /// Plays all files as often as they are to be; ends early when nobody listens any more.
    async fn all(&mut self, mut first: Option<Opened>, ear: &mut Ear<'_>) -> Result<(), Failure> {
        let mut times = 0u64;
        loop {
            let mut pace = Pace::new(self.arguments.speed);
            let before = self.bytes;
            let mut shift = Shift::new(self.arguments.shift_to_now);
            for file in &self.arguments.files {
                let opened = match first.take() {
                    Some(opened) => opened,
                    None => {
                        let feed = Feed::open(file).await;
                        let feed = feed.map_err(|error| Failure::world(format!("{}: {error}", file.display())))?;
                        Opened { feed, read: Vec::new() }
                    }
                };
                if self.file(file, opened, (&mut pace, &mut shift), ear).await?.is_err() {
                    return Ok(());
                }
            }
            times = times.saturating_add(1);
            // Nothing comes of it, however often.
            let is_empty = self.bytes == before;
            if (times >= self.arguments.times && !self.arguments.again) || is_empty {
                return Ok(());
            }
        }
    }

    async fn file(
        &mut self,
        file: &Path,
        Opened { mut feed, read }: Opened,
        (pace, shift): (&mut Pace, &mut Shift),
        ear: &mut Ear<'_>,
    ) -> Result<Result<(), Gone>, Failure> {
        let shown = file.display().to_string();
        let window = self.arguments.window();
        self.progress.begin(&feed);
        let mut reader = Reader::new(None, self.key.clone());
        let (mut line, mut places) = (Line::default(), Places::default());
        let mut port: Option<String> = None;
        let mut shifter = self.arguments.shift_to_now.then(|| {
            let cutter = Cutter::new(Wire::P1, self.key.clone());
            Shifter { cutter, shift }
        });
        // Of a plain file: what was not played yet, and where in the file it begins.
        let (mut waiting, mut begin, mut is_played) = (Vec::new(), 0u64, window.has(None));
        let mut read = read.into_iter();
        loop {
            let next = match read.next() {
                Some(next) => next,
                None => feed.next().await,
            };
            self.progress.turn(&shown, self.counts.telegrams);
            let mut has_ended = false;
            match next {
                Next::Trouble(trouble) => {
                    let text = match trouble {
                        Trouble::Line(bad) => format!("{shown}:{}: {}", bad.line, bad.reason),
                        trouble => format!("{shown}: {trouble}"),
                    };
                    self.progress.say(&text);
                    self.counts.failed = self.counts.failed.saturating_add(1);
                }
                Next::Event(Event::Opening(_, opening)) if self.arguments.takes(&opening.port) => {
                    line.open(&opening);
                    if port.as_ref() == Some(&opening.port) && !opening.goes_on {
                        reader.end();
                    }
                }
                Next::Event(Event::Opening(..)) => {}
                Next::Event(Event::Chunk(place, wire, chunk)) => {
                    if !self.arguments.takes(&chunk.port) || (wire == Wire::Mbus && self.arguments.ports.is_empty()) {
                        continue;
                    }
                    let played = port.get_or_insert_with(|| chunk.port.clone());
                    if *played != chunk.port {
                        return Err(other_port(played, &chunk.port));
                    }
                    let then = line.at(&chunk.port, chunk.us, chunk.at);
                    let What::Bytes(_, bytes) = chunk.what else {
                        reader.end();
                        continue;
                    };
                    if !window.has(Some(chunk.at)) {
                        continue;
                    }
                    pace.until(then).await;
                    places.push(place, chunk.at, bytes.len());
                    reader.push(&bytes);
                    if self.pass(&mut shifter, &bytes, ear).await.is_err() {
                        return Ok(Err(Gone));
                    }
                }
                Next::Event(Event::Bytes(bytes)) => {
                    reader.push(&bytes);
                    waiting.extend_from_slice(&bytes);
                    // Noise is not kept for ever.
                    if waiting.len() > MOST_NOISE {
                        let noise = std::mem::take(&mut waiting);
                        begin = begin.saturating_add(noise.len() as u64);
                        if is_played && self.pass(&mut shifter, &noise, ear).await.is_err() {
                            return Ok(Err(Gone));
                        }
                    }
                }
                Next::End(_) => {
                    reader.end();
                    has_ended = true;
                }
            }
            while let Some(piece) = reader.poll() {
                match piece {
                    Ok(telegram) => {
                        let own = telegram.decoded.reports.iter().find_map(|report| report.measured_at);
                        if port.is_none() {
                            // What is before this one.
                            let length = usize::try_from(telegram.offset.saturating_sub(begin)).unwrap_or_default();
                            let before: Vec<u8> = waiting.drain(..length.min(waiting.len())).collect();
                            begin = telegram.offset;
                            if is_played && self.pass(&mut shifter, &before, ear).await.is_err() {
                                return Ok(Err(Gone));
                            }
                            is_played = window.has(own.map(Moment::instant));
                            if !is_played {
                                self.counts.outside = self.counts.outside.saturating_add(1);
                                continue;
                            }
                            pace.telegram(own).await;
                        }
                        self.counts.telegrams = self.counts.telegrams.saturating_add(1);
                        let restored = telegram.line_ends == LineEnds::Restored;
                        self.counts.restored = self.counts.restored.saturating_add(u64::from(restored));
                        places.forget(telegram.offset);
                    }
                    Err(rejected) if rejected.reason.is_readable() && self.key.is_none() => {
                        // It is played, whether it can be read here or not.
                        self.counts.telegrams = self.counts.telegrams.saturating_add(1);
                    }
                    Err(rejected) => {
                        self.counts.reject(rejected.reason.kind());
                        self.progress.say(&places.name(&shown, rejected.offset, &rejected));
                    }
                }
            }
            if has_ended {
                // The last one may end with the file.
                let rest = shifter.as_mut().map(|shifter| {
                    shifter.cutter.push(if is_played { &waiting } else { &[] });
                    shifter.cutter.end();
                    shifter.poll().0
                });
                if let Some(rest) = rest {
                    return Ok(self.say(&rest, ear).await);
                }
                if is_played && !waiting.is_empty() && self.pass(&mut shifter, &waiting, ear).await.is_err() {
                    return Ok(Err(Gone));
                }
                return Ok(Ok(()));
            }
        }
    }

    /// Hands bytes on, their times moved where that is asked for.
    async fn pass(&mut self, shifter: &mut Option<Shifter<'_>>, bytes: &[u8], ear: &mut Ear<'_>) -> Result<(), Gone> {
        let Some(shifter) = shifter else { return self.say(bytes, ear).await };
        let (passed, refused) = shifter.pass(bytes);
        for why in refused {
            self.counts.reject(why.kind());
            self.progress.say(&format!("a telegram cannot be of another time: {why}"));
        }
        self.say(&passed, ear).await
    }

    async fn say(&mut self, bytes: &[u8], ear: &mut Ear<'_>) -> Result<(), Gone> {
        let missed = ear.say(bytes, self.arguments.speed).await?;
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        self.missed = self.missed.saturating_add(missed as u64);
        Ok(())
    }
}
