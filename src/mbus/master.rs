//! The master of a bus, one job after the other: what to send, when to send it again, and what the answers mean.
//!
//! Enters: a [`Job`], the bytes that the line brings, and the time. Leaves: [`Action`]s (bytes to send, baud
//! rates, the outcome). No IO and no clock: times are durations since any one moment, and whoever drives a master
//! calls [`Master::handle_timeout`] at [`Master::deadline`].
//!
//! - **Time-outs** are those of EN 13757-2:2018, 5.6: a slave answers within 330 bit times and 50 ms. To that
//!   comes what the adapter takes ([`Timing::allowance`]), or a time of the meter's own.
//! - **Repeats** keep the frame count bit, and come after a pause of 33 bit times. After a good answer the pause
//!   is 11.
//! - **Echo**: bytes that come back as they were sent are left out, on whichever request that begins or ends.
//! - **Several telegrams**: while the last DIF is 1F the count bit is toggled and the next is asked for. A telegram
//!   that comes again and again, or more than [`Task::Read`] allows, ends the job without a result.
//! - A selection restarts the count bit of address 253, as SND_NKE does that of a primary address. Requests and
//!   commands have count bits of their own.
//!
//! Not supported: alarms (REQ_UD1), secondary selection by enhanced fields.

use std::{collections::VecDeque, fmt, time::Duration};

use super::{
    address::{Pattern, Secondary},
    decode::{Answer, Reason},
    frame::{Frame, FrameError, MAX_FRAME, address, control},
};

/// Time since any one moment.
pub type Instant = Duration;

/// How long things take on a bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Bits a second, 300 to 38400.
    pub baud: u32,
    /// How long after the end of a request its answer may begin, where that is not the standard's.
    pub timeout: Option<Duration>,
    /// What the adapter adds to every wait.
    pub allowance: Duration,
    /// How many times a request is repeated.
    pub repeats: u8,
}

impl Timing {
    /// What the standard says, with an adapter on USB.
    pub const STANDARD: Self = Self { baud: 2400, timeout: None, allowance: Duration::from_millis(100), repeats: 2 };
    /// Baud rates of the standard.
    pub const RATES: [u32; 8] = [300, 600, 1200, 2400, 4800, 9600, 19_200, 38_400];

    /// So many bit times.
    pub fn bits(&self, count: u32) -> Duration {
        let nanos = u64::from(count).saturating_mul(1_000_000_000).checked_div(self.baud.into());
        Duration::from_nanos(nanos.unwrap_or_default())
    }

    /// So many bytes of eleven bits.
    pub fn bytes(&self, count: usize) -> Duration {
        self.bits(u32::try_from(count).unwrap_or(u32::MAX).saturating_mul(11))
    }

    /// From the end of a request to the last moment at which its answer may begin.
    pub fn answer_within(&self) -> Duration {
        let standard = self.bits(330).saturating_add(Duration::from_millis(50));
        self.timeout.unwrap_or(standard).saturating_add(self.allowance)
    }

    /// How long a frame may pause.
    fn gap(&self) -> Duration {
        self.bits(33).saturating_add(self.allowance)
    }
}

/// Which slave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// By its primary address: 0..=250, or 254, to which every slave answers.
    Primary(u8),
    /// By its secondary address.
    Secondary(Pattern),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Primary(address) => write!(f, "{address}"),
            Self::Secondary(pattern) => write!(f, "{pattern}"),
        }
    }
}

/// Data for a slave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// What the data is.
    pub ci: u8,
    /// At most 252 bytes.
    pub data: Vec<u8>,
}

impl Command {
    /// Resets the application layer; the subcode chooses which telegrams the meter sends from then on.
    pub fn application_reset(subcode: Option<u8>) -> Self {
        Self { ci: 0x50, data: subcode.into_iter().collect() }
    }

    /// Gives the slave another primary address.
    pub fn set_address(address: u8) -> Self {
        Self { ci: 0x51, data: vec![0x01, 0x7A, address] }
    }

    /// Switches the slave to another baud rate; None for a rate that the standard does not have.
    pub fn set_baud(baud: u32) -> Option<Self> {
        let ci = match baud {
            300 => 0xB8,
            600 => 0xB9,
            1200 => 0xBA,
            2400 => 0xBB,
            4800 => 0xBC,
            9600 => 0xBD,
            19_200 => 0xBE,
            38_400 => 0xBF,
            _ => return None,
        };
        Some(Self { ci, data: Vec::new() })
    }
}

/// What is to be done with a slave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Read all its telegrams.
    Read {
        /// Sent before the first request: an application reset, the choice of a page.
        before: Vec<Command>,
        /// More telegrams than this are not believed.
        most_telegrams: u8,
    },
    /// Find out whether any slave answers, and whether it is one: a search.
    Ask,
    /// Send these.
    Send(Vec<Command>),
}

/// What is to be done, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// With which slave.
    pub target: Target,
    /// What.
    pub task: Task,
    /// Its times.
    pub timing: Timing,
}

impl Job {
    /// Most telegrams of a readout, where nothing else is said.
    pub const MOST_TELEGRAMS: u8 = 32;

    /// Reads a slave as the standard has it.
    pub fn read(target: Target, timing: Timing) -> Self {
        Self { target, task: Task::Read { before: Vec::new(), most_telegrams: Self::MOST_TELEGRAMS }, timing }
    }
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Set the line to this baud rate, 8E1.
    Baud(u32),
    /// Send these bytes.
    Send(Vec<u8>),
    /// The job is done.
    Done(Outcome),
}

/// What came of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// All telegrams of a slave.
    Readout(Readout),
    /// What a search found.
    Heard(Heard),
    /// The slave took what was sent.
    Sent,
    /// Nothing came of it.
    Failed(Trouble),
}

/// All telegrams of a slave, each a whole and valid frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readout {
    /// In their order.
    pub frames: Vec<Vec<u8>>,
    /// How many requests for data it took.
    pub requests: u32,
}

/// Who answered a search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// Nobody.
    Nobody,
    /// One slave, with this frame.
    One(Vec<u8>),
    /// Several at once: bytes that are no frame, whose beginning may still tell something.
    Several(Vec<u8>),
    /// Somebody acknowledges, and gives no data.
    NoData,
    /// The line is not quiet.
    Noise(Trouble),
}

/// Why a job came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Trouble {
    /// No answer.
    #[error(
        "does not answer; check address, baud rate and wiring, whether it needs a longer `timeout`, and whether it may be read so often"
    )]
    Silent,
    /// It answers, and nothing of it is a valid frame.
    #[error("answers, but damaged ({0}); two meters may share the address or number, or the line is disturbed")]
    Garbled(Reason),
    /// A valid answer that holds no readings: an application error, an encrypted telegram.
    #[error("{0}")]
    Unreadable(Reason),
    /// Another slave answers.
    #[error("{0} answers instead")]
    Another(String),
    /// It acknowledges the request for data.
    #[error("acknowledges, and gives no data; it may be busy, need a longer `timeout`, or be read too often")]
    NoData,
    /// It does not take a command.
    #[error("does not acknowledge what it is sent")]
    Refused,
    /// It announces a further telegram that does not come.
    #[error("sent {telegrams} of its telegrams, and the next did not come: {trouble}")]
    BrokeOff {
        /// How many came.
        telegrams: usize,
        /// What came of the next.
        trouble: Box<Trouble>,
    },
    /// A telegram came twice.
    #[error(
        "sends the same telegram again and announces another; it may not heed the count bit: try `telegrams = {0}`"
    )]
    Repeats(usize),
    /// More telegrams than expected.
    #[error("announces a telegram beyond the {0} that are expected: set `telegrams` higher if it has so many")]
    Endless(usize),
    /// The line is held low.
    #[error("the line is held low: a short circuit on the bus, or a converter without power")]
    Low,
    /// Bytes come without pause.
    #[error("the line is never quiet: another master on the bus, a wrong baud rate, or a disturbance")]
    Busy,
}

impl Trouble {
    /// A short name, for counters.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Garbled(_) => "garbled",
            Self::Unreadable(reason) => reason.kind(),
            Self::Another(_) => "other_meter",
            Self::NoData => "no_data",
            Self::Refused => "refused",
            Self::BrokeOff { .. } => "broke_off",
            Self::Repeats(_) => "repeats",
            Self::Endless(_) => "endless",
            Self::Low => "line_low",
            Self::Busy => "line_busy",
        }
    }
}

/// What an exchange brought.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Link {
    Silence,
    Ack,
    Frame(Vec<u8>),
    Garbled(Reason, Vec<u8>),
    Stuck(Trouble),
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Selecting by secondary address.
    Select,
    /// Initialising by primary address.
    Initialise,
    /// Sending a command, by its index.
    Command(usize),
    /// Asking for data.
    Request,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// No job.
    Idle,
    /// Waiting for the line to be quiet, since when at the earliest; then sending.
    Resting { since: Option<Instant>, until: Instant },
    /// Listening until then.
    Listening {
        until: Instant,
        at_most: Instant,
        /// Until then somebody may begin to answer.
        window: Instant,
    },
}

/// The master.
///
/// ```
/// use std::time::Duration;
/// use meterkast::mbus::{Action, Frame, Job, Master, Outcome, Target, Timing};
///
/// /// A meter that answers at once.
/// fn meter(request: &[u8]) -> Vec<u8> {
///     match Frame::parse(request) {
///         Ok((Frame::Short { control: 0x40, address: 5 }, _)) => vec![0xE5],
///         Ok((Frame::Short { address: 5, .. }, _)) => {
///             Frame::Long { control: 0x08, address: 5, ci: 0x78, data: &[0x0C, 0x13, 0x34, 0x12, 0, 0] }.emit()
///         }
///         _ => Vec::new(),
///     }
/// }
///
/// let mut now = Duration::ZERO;
/// let mut master = Master::new(2400);
/// master.start(now, Job::read(Target::Primary(5), Timing::STANDARD));
/// let outcome = loop {
///     let mut answer = Vec::new();
///     match master.poll_action() {
///         Some(Action::Send(bytes)) => answer = meter(&bytes),
///         Some(Action::Done(outcome)) => break outcome,
///         Some(Action::Baud(_)) | None => {}
///     }
///     if !answer.is_empty() {
///         now += Duration::from_millis(40);
///         master.handle_bytes(now, &answer);
///     } else if let Some(deadline) = master.deadline() {
///         now = deadline;
///         master.handle_timeout(now);
///     }
/// };
/// let Outcome::Readout(readout) = outcome else { panic!() };
/// assert_eq!(readout.frames.len(), 1);
/// ```
#[derive(Debug, Clone)]
pub struct Master {
    state: State,
    actions: VecDeque<Action>,
    baud: u32,
    job: Option<Running>,
    /// What was heard since the last request, without echo.
    heard: Vec<u8>,
    /// The last request, and how much of its echo came; None: this request has none.
    sent: Vec<u8>,
    echo: Option<usize>,
    has_echo: bool,
    /// When the last byte came, and the rest that the line needs.
    last_byte: Option<Instant>,
    rest: Duration,
    requests: u64,
}

#[derive(Debug, Clone)]
struct Running {
    job: Job,
    stage: Stage,
    /// Requests of this stage that came to nothing.
    tries: u8,
    /// The count bit of the next request for data.
    count_bit: bool,
    frames: Vec<Vec<u8>>,
    /// Requests for data.
    requests: u32,
    trouble: Trouble,
    /// Heard instead of a frame.
    debris: Vec<u8>,
}

/// So many bytes beside a frame are noise, and nobody's answer.
const HARDLY_ANYTHING: usize = 2;
/// More bytes than any answer has: the line is stuck.
const TOO_MANY: usize = 3 * MAX_FRAME;

impl Master {
    /// On a line that is set to this baud rate.
    pub fn new(baud: u32) -> Self {
        Self {
            state: State::Idle,
            actions: VecDeque::new(),
            baud,
            job: None,
            heard: Vec::new(),
            sent: Vec::new(),
            echo: None,
            has_echo: false,
            last_byte: None,
            rest: Duration::ZERO,
            requests: 0,
        }
    }

    /// Begins a job. One that is under way is given up.
    pub fn start(&mut self, now: Instant, job: Job) {
        let stage = match job.target {
            Target::Secondary(_) => Stage::Select,
            // A command needs no initialising, and a reset of the count bit is none of its business.
            Target::Primary(_) if matches!(job.task, Task::Send(_)) => Stage::Command(0),
            Target::Primary(_) => Stage::Initialise,
        };
        if job.timing.baud != self.baud {
            self.baud = job.timing.baud;
            self.actions.push_back(Action::Baud(self.baud));
        }
        self.job = Some(Running {
            job,
            stage,
            tries: 0,
            count_bit: true,
            frames: Vec::new(),
            requests: 0,
            trouble: Trouble::Silent,
            debris: Vec::new(),
        });
        self.rest(now, None);
    }

    /// What is to be done next; None: wait for bytes, or for the deadline.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Master::handle_timeout`] is due; None while there is no job.
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Idle => None,
            State::Resting { until, .. } | State::Listening { until, .. } => Some(until),
        }
    }

    /// Whether the converter sends back what it is sent.
    pub fn has_echo(&self) -> bool {
        self.has_echo
    }

    /// How many frames were sent.
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// Takes bytes of the line.
    pub fn handle_bytes(&mut self, now: Instant, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.last_byte = Some(now);
        match self.state {
            State::Idle => {}
            State::Resting { since, until } => {
                // Nobody was asked: late answers, noise. What matters is whether it ends.
                if self.heard.len() < TOO_MANY {
                    self.heard.extend(bytes.iter().take(TOO_MANY));
                }
                let since = since.unwrap_or(now);
                // At 300 Bd an answer that was given up takes longer than a moment.
                let patience = Duration::from_secs(3).max(self.timing().bytes(MAX_FRAME));
                if now.saturating_sub(since) > patience {
                    let trouble = stuck(&self.heard);
                    self.finish(now, Link::Stuck(trouble));
                } else {
                    // Adapters hand on what they have in portions, with pauses of their own between.
                    let quiet = now.saturating_add(self.timing().gap());
                    self.state = State::Resting { since: Some(since), until: until.max(quiet) };
                    // Whoever was asked, and was given up, may be answering after all.
                    if self.job.as_ref().is_some_and(|running| running.stage == Stage::Request && running.tries > 0)
                        && let Some(frame) = self.frame()
                    {
                        self.finish(now, Link::Frame(frame));
                    }
                }
            }
            State::Listening { at_most, window, .. } => {
                for &byte in bytes {
                    self.take(byte);
                }
                if self.heard.len() > TOO_MANY || now > at_most {
                    let trouble = stuck(&self.heard);
                    self.finish(now, Link::Stuck(trouble));
                    return;
                }
                self.listen(now, at_most, window);
            }
        }
    }

    /// Takes note of the time.
    pub fn handle_timeout(&mut self, now: Instant) {
        match self.state {
            State::Resting { until, .. } if now >= until => self.send(now),
            State::Listening { until, .. } if now >= until => {
                // An echo that broke off was none.
                if let Some(matched @ 1..) = self.echo.take().filter(|matched| *matched < self.sent.len()) {
                    let part = self.sent.get(..matched).unwrap_or_default().to_vec();
                    self.heard.splice(0..0, part);
                }
                let link = match (self.frame(), self.heard.as_slice()) {
                    (Some(frame), _) => Link::Frame(frame),
                    (None, []) => Link::Silence,
                    (None, [0xE5]) => Link::Ack,
                    (None, heard) if heard.len() > 16 && heard.iter().all(|byte| *byte == 0) => {
                        Link::Stuck(Trouble::Low)
                    }
                    (None, heard) => {
                        let reason = match Frame::parse(heard) {
                            Err(error) => error,
                            Ok(_) => FrameError::Incomplete(1),
                        };
                        Link::Garbled(Reason::Frame(reason), heard.to_vec())
                    }
                };
                self.finish(now, link);
            }
            _ => {}
        }
    }

    fn timing(&self) -> Timing {
        self.job.as_ref().map_or(Timing { baud: self.baud, ..Timing::STANDARD }, |running| running.job.timing)
    }

    /// A byte: of the echo, or of an answer.
    fn take(&mut self, byte: u8) {
        if let Some(matched) = self.echo {
            if self.sent.get(matched) == Some(&byte) {
                let matched = matched.saturating_add(1);
                if matched == self.sent.len() {
                    self.has_echo = true;
                    self.echo = None;
                } else {
                    self.echo = Some(matched);
                }
                return;
            }
            self.echo = None;
            self.has_echo = false;
            self.heard.extend_from_slice(self.sent.get(..matched).unwrap_or_default());
        }
        self.heard.push(byte);
    }

    /// The frame in what was heard; it may stand behind noise. In a search what stands before it may be the answers of
    /// others, unless it is hardly anything.
    fn frame(&self) -> Option<Vec<u8>> {
        let most = if self.searching() { HARDLY_ANYTHING } else { self.heard.len() };
        (0..=self.heard.len().min(most)).find_map(|start| {
            let rest = self.heard.get(start..).filter(|rest| rest.first() == Some(&0x68))?;
            let (_, length) = Frame::parse(rest).ok()?;
            let alone = !self.searching() || rest.len().saturating_sub(length) <= HARDLY_ANYTHING;
            rest.get(..length).filter(|_| alone).map(<[u8]>::to_vec)
        })
    }

    fn searching(&self) -> bool {
        self.job.as_ref().is_some_and(|running| running.job.task == Task::Ask)
    }

    /// Looks at what was heard, and says until when more is waited for.
    fn listen(&mut self, now: Instant, at_most: Instant, window: Instant) {
        let expects_data = self.job.as_ref().is_some_and(|running| running.stage == Stage::Request);
        let timing = self.timing();
        if self.heard.is_empty() {
            return;
        }
        if !expects_data && self.heard == [0xE5] {
            return self.finish(now, Link::Ack);
        }
        // A search hears all of them out: another may answer behind the first.
        if !(self.searching() && expects_data)
            && let Some(frame) = self.frame()
        {
            return self.finish(now, Link::Frame(frame));
        }
        let mut until = now.saturating_add(timing.gap()).saturating_add(timing.bytes(1));
        if self.searching() {
            until = until.max(window);
        }
        self.state = State::Listening { until: until.min(at_most), at_most, window };
    }

    /// Rests until the line may be used.
    fn rest(&mut self, now: Instant, link: Option<&Link>) {
        let timing = self.timing();
        self.heard.clear();
        let pause = match link {
            None => self.rest,
            Some(Link::Ack | Link::Frame(_)) => timing.bits(11),
            Some(_) => timing.bits(33),
        };
        self.rest = pause;
        let until = self.last_byte.map_or(now, |last| last.saturating_add(pause)).max(now);
        self.state = State::Resting { since: None, until };
        if until <= now {
            self.send(now);
        }
    }

    fn send(&mut self, now: Instant) {
        let Some(running) = &mut self.job else { return };
        let bytes = running.request();
        let timing = running.job.timing;
        if running.stage == Stage::Request {
            running.requests = running.requests.saturating_add(1);
        }
        self.requests = self.requests.saturating_add(1);
        self.heard.clear();
        let sent = now.saturating_add(timing.bytes(bytes.len()));
        let until = sent.saturating_add(timing.answer_within());
        // The longest answer, with as much again for pauses.
        let at_most = until.saturating_add(timing.bytes(TOO_MANY)).saturating_add(timing.gap());
        self.state = State::Listening { until, at_most, window: until };
        self.last_byte = Some(sent);
        self.echo = Some(0);
        self.sent.clone_from(&bytes);
        self.actions.push_back(Action::Send(bytes));
    }

    fn finish(&mut self, now: Instant, link: Link) {
        let Some(mut running) = self.job.take() else {
            self.state = State::Idle;
            return;
        };
        match running.next(&link) {
            None => {
                self.job = Some(running);
                self.rest(now, Some(&link));
            }
            Some(outcome) => {
                // What follows keeps the pause.
                self.rest = match link {
                    Link::Ack | Link::Frame(_) => running.job.timing.bits(11),
                    _ => running.job.timing.bits(33),
                };
                self.heard.clear();
                self.state = State::Idle;
                self.actions.push_back(Action::Done(outcome));
            }
        }
    }
}

fn stuck(heard: &[u8]) -> Trouble {
    if heard.iter().all(|byte| *byte == 0) { Trouble::Low } else { Trouble::Busy }
}

impl Running {
    /// The address on the wire.
    fn address(&self) -> u8 {
        match self.job.target {
            Target::Primary(address) => address,
            Target::Secondary(_) => address::SELECTED,
        }
    }

    fn commands(&self) -> &[Command] {
        match &self.job.task {
            Task::Read { before: commands, .. } | Task::Send(commands) => commands,
            Task::Ask => &[],
        }
    }

    fn request(&self) -> Vec<u8> {
        let address = self.address();
        match self.stage {
            Stage::Select => {
                let Target::Secondary(pattern) = self.job.target else { return Vec::new() };
                let control = control::SND_UD | control::FCB;
                Frame::Long { control, address, ci: 0x52, data: &pattern.to_bytes() }.emit()
            }
            Stage::Initialise => Frame::Short { control: control::SND_NKE, address }.emit(),
            Stage::Command(index) => {
                let control = control::SND_UD | if index & 1 == 0 { control::FCB } else { 0 };
                let Some(command) = self.commands().get(index) else { return Vec::new() };
                Frame::Long { control, address, ci: command.ci, data: &command.data }.emit()
            }
            Stage::Request => {
                let control = control::REQ_UD2 | if self.count_bit { control::FCB } else { 0 };
                Frame::Short { control, address }.emit()
            }
        }
    }

    /// What follows from an exchange: another request (None), or the outcome.
    fn next(&mut self, link: &Link) -> Option<Outcome> {
        if let Link::Stuck(trouble) = link {
            return Some(self.give_up(trouble.clone()));
        }
        let asking = self.job.task == Task::Ask;
        match (self.stage, link) {
            // Overlapping acknowledgements may be damaged: somebody is there.
            (Stage::Select | Stage::Initialise, Link::Ack | Link::Garbled(..) | Link::Frame(_)) => self.proceed(),
            // Some meters do not acknowledge an initialisation, and yet can be read.
            (Stage::Initialise, Link::Silence) if !asking => self.proceed(),
            (Stage::Select | Stage::Initialise, _) => {
                if self.try_again() {
                    return None;
                }
                Some(if asking { Outcome::Heard(Heard::Nobody) } else { Outcome::Failed(Trouble::Silent) })
            }
            (Stage::Command(_), Link::Ack) => self.proceed(),
            (Stage::Command(_), link) => {
                self.trouble = if *link == Link::Silence { Trouble::Silent } else { Trouble::Refused };
                (!self.try_again()).then(|| self.give_up(self.trouble.clone()))
            }
            (Stage::Request, Link::Frame(frame)) => self.frame(frame),
            // A slave may end its telegrams so.
            (Stage::Request, Link::Ack) if !self.frames.is_empty() => {
                if self.try_again() {
                    None
                } else {
                    Some(self.readout())
                }
            }
            (Stage::Request, link) => {
                let trouble = match link {
                    Link::Ack => Trouble::NoData,
                    Link::Garbled(reason, debris) => {
                        self.debris.clone_from(debris);
                        Trouble::Garbled(*reason)
                    }
                    _ => Trouble::Silent,
                };
                self.request_failed(trouble)
            }
        }
    }

    /// On to the next stage.
    fn proceed(&mut self) -> Option<Outcome> {
        self.tries = 0;
        let next = match self.stage {
            Stage::Command(index) => index.saturating_add(1),
            _ => 0,
        };
        if next < self.commands().len() {
            self.stage = Stage::Command(next);
        } else if matches!(self.job.task, Task::Send(_)) {
            return Some(Outcome::Sent);
        } else {
            self.stage = Stage::Request;
        }
        None
    }

    /// Whether the same request is sent again.
    fn try_again(&mut self) -> bool {
        let again = self.tries < self.job.timing.repeats;
        self.tries = self.tries.saturating_add(1);
        again
    }

    fn request_failed(&mut self, trouble: Trouble) -> Option<Outcome> {
        // A damaged answer says more than the silence after it.
        if trouble != Trouble::Silent || self.tries == 0 {
            self.trouble = trouble;
        }
        // A search takes what is damaged for several answers at once: asked again, one that is late might pass for all.
        let again = match (&self.job.task, &self.trouble) {
            (Task::Ask, Trouble::Silent | Trouble::NoData) => self.tries == 0,
            (Task::Ask, _) => false,
            _ => self.tries < self.job.timing.repeats,
        };
        self.tries = self.tries.saturating_add(1);
        (!again).then(|| self.give_up(self.trouble.clone()))
    }

    fn give_up(&mut self, trouble: Trouble) -> Outcome {
        if self.job.task == Task::Ask {
            return Outcome::Heard(match trouble {
                Trouble::Low | Trouble::Busy => Heard::Noise(trouble),
                // Less than the shortest answer is nobody's.
                Trouble::Garbled(_) if self.debris.len() >= 5 => Heard::Several(std::mem::take(&mut self.debris)),
                _ => Heard::NoData,
            });
        }
        Outcome::Failed(match self.frames.len() {
            0 => trouble,
            _ if matches!(trouble, Trouble::Low | Trouble::Busy | Trouble::Repeats(_)) => trouble,
            telegrams => Trouble::BrokeOff { telegrams, trouble: Box::new(trouble) },
        })
    }

    fn readout(&mut self) -> Outcome {
        Outcome::Readout(Readout { frames: std::mem::take(&mut self.frames), requests: self.requests })
    }

    /// A valid frame came.
    fn frame(&mut self, bytes: &[u8]) -> Option<Outcome> {
        let answer = Frame::parse(bytes).map_err(Reason::from).and_then(|(frame, _)| Answer::parse(&frame));
        if self.job.task == Task::Ask {
            // Whatever it says, one slave says it.
            return match answer {
                Err(Reason::NotAnAnswer(_)) => self.request_failed(Trouble::Silent),
                _ => Some(Outcome::Heard(Heard::One(bytes.to_vec()))),
            };
        }
        let answer = match answer {
            Ok(answer) => answer,
            // One damaged frame in 256 has a checksum that fits.
            Err(reason @ (Reason::Frame(_) | Reason::Header(_) | Reason::Record(_) | Reason::NotAnAnswer(_))) => {
                return self.request_failed(Trouble::Garbled(reason));
            }
            Err(reason) => return self.request_failed(Trouble::Unreadable(reason)),
        };
        if let Some(other) = self.stranger(&answer) {
            return self.request_failed(Trouble::Another(other));
        }
        let more_follow = match answer.more_follow() {
            Ok(more_follow) => more_follow,
            Err(reason @ Reason::Encrypted(_)) => return self.request_failed(Trouble::Unreadable(reason)),
            Err(reason) => return self.request_failed(Trouble::Garbled(reason)),
        };
        let Task::Read { most_telegrams, .. } = self.job.task else { return Some(Outcome::Sent) };
        // Once it may be a late answer to the last request, repeated.
        if self.frames.iter().any(|frame| frame == bytes) {
            return self.request_failed(Trouble::Repeats(self.frames.len()));
        }
        self.frames.push(bytes.to_vec());
        self.tries = 0;
        self.trouble = Trouble::Silent;
        let limit = usize::from(most_telegrams.max(1));
        if !more_follow {
            return Some(self.readout());
        }
        if self.frames.len() >= limit {
            // Who says how many telegrams a meter has wants no more of them.
            let asked_for = most_telegrams != Job::MOST_TELEGRAMS;
            return Some(if asked_for { self.readout() } else { Outcome::Failed(Trouble::Endless(limit)) });
        }
        self.count_bit = !self.count_bit;
        None
    }

    /// Who answers instead of the slave that was asked.
    fn stranger(&self, answer: &Answer<'_>) -> Option<String> {
        let named = |secondary: Option<Secondary>| {
            secondary.map_or_else(
                || format!("the meter at address {}", answer.address),
                |secondary| format!("{secondary} (address {})", answer.address),
            )
        };
        let right = match self.job.target {
            Target::Primary(address::EVERYONE) => true,
            Target::Primary(address) => answer.address == address,
            Target::Secondary(pattern) => answer.secondary.is_none_or(|secondary| pattern.may_answer(secondary)),
        };
        let same = self.frames.first().is_none_or(|first| {
            let first = Frame::parse(first).ok().and_then(|(frame, _)| Answer::parse(&frame).ok());
            first.is_some_and(|first| (first.address, first.secondary) == (answer.address, answer.secondary))
        });
        (!right || !same).then(|| named(answer.secondary))
    }
}
