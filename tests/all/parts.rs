//! The real parts that the tests put together: a broker, its clients, the program, serial ports, meters.
//!
//! Everything is on loopback ports and in temporary folders, and ends with its variable. What a program
//! wrote to standard error is shown when its test fails.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use meterkast::{
    config::StoreUrl,
    moment::Moment,
    reading::Register,
    simulate::Household,
    store::{self, Counts},
    unit::Decimal,
};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::tcp::{OwnedReadHalf, OwnedWriteHalf},
    sync::watch,
    task::JoinHandle,
};
use tokio_serial::{SerialPort, SerialStream};

/// How long anything may take before its test fails: far longer than it does.
const PATIENCE: Duration = Duration::from_secs(60);

/// Looks again and again until there is something to see.
pub(crate) async fn until<T>(what: &str, look: impl AsyncFnMut() -> Option<T>) -> T {
    until_within(PATIENCE, what, look).await
}

/// The same for what may take longer.
pub(crate) async fn until_within<T>(patience: Duration, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + patience;
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(Instant::now() < end, "not within {} s: {what}", patience.as_secs());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A port on which nothing listens. Below those that the system gives to clients, so that none of them
/// takes it while the test is without a listener there.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let begin = u16::try_from(std::process::id() % 10_000).unwrap();
    loop {
        let port = 20_000 + (begin + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A program with nothing open but its standard streams. tokio-serial opens the ends of a
/// pseudo-terminal so that every child process gets them too, and then none of them ever hangs up.
pub(crate) fn program(name: &str) -> Command {
    let script = r#"for fd in /proc/self/fd/*; do
        fd=${fd##*/}
        if ((fd > 2)); then eval "exec $fd>&-"; fi
    done
    exec "$@""#;
    let mut command = Command::new("bash");
    command.args(["-c", script, "bash", name]);
    command
}

/// The program under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_meterkast");

/// The program under test, with all its standard streams in our hands.
fn start_meterkast<A: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = A>) -> Child {
    spawn(program(BINARY).args(arguments))
}

fn spawn(command: &mut Command) -> Child {
    let streams = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    streams.env_remove("METERKAST_LOG").spawn().unwrap()
}

/// A temporary folder.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }
}

/// mosquitto with its defaults. It keeps nothing on disk: when it is killed it forgets everything.
pub(crate) struct Broker {
    pub(crate) port: u16,
    folder: Folder,
    child: Option<Child>,
    /// How much it keeps, as its configuration says it.
    queues: &'static str,
}

impl Broker {
    pub(crate) async fn start() -> Self {
        let mut broker = Self::not_yet();
        broker.begin().await;
        broker
    }

    /// One that keeps everything for a subscriber that reads slowly. By default it drops what goes beyond 1,000 messages.
    pub(crate) async fn patient() -> Self {
        let mut broker = Self::not_yet();
        broker.queues = "max_queued_messages 0\nmax_queued_bytes 0\n";
        broker.begin().await;
        broker
    }

    /// One that does not run yet.
    pub(crate) fn not_yet() -> Self {
        Self { port: free_port(), folder: Folder::new(), child: None, queues: "" }
    }

    pub(crate) async fn begin(&mut self) {
        let config = format!("listener {} 127.0.0.1\nallow_anonymous true\n{}", self.port, self.queues);
        let config = self.folder.file("mosquitto.conf", config);
        // Debian keeps it where an ordinary user's PATH does not lead.
        let path = format!("{}:/usr/local/sbin:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let child = program("mosquitto").arg("-c").arg(config).env("PATH", path).stderr(Stdio::null()).spawn();
        self.child = Some(child.unwrap());
        until("mosquitto listens (is it installed?)", async || TcpStream::connect(("127.0.0.1", self.port)).ok()).await;
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// The configuration's section for it.
    pub(crate) fn section(&self) -> String {
        format!("[mqtt]\nurl = \"mqtt://127.0.0.1:{}\"\n", self.port)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A network on the way to a broker, which can swallow what is sent, stall, and break.
pub(crate) struct Network {
    pub(crate) port: u16,
    swallows: Arc<AtomicBool>,
    stalls: watch::Sender<bool>,
    breaks: watch::Sender<()>,
    carried: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Network {
    pub(crate) async fn to(broker: u16) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (swallows, carried) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stalls, breaks) = (watch::Sender::new(false), watch::Sender::new(()));
        let task = tokio::spawn({
            let (swallows, stalls) = (swallows.clone(), stalls.subscribe());
            let (breaks, carried) = (breaks.subscribe(), carried.clone());
            async move {
                while let Ok((near, _)) = listener.accept().await {
                    let Ok(far) = tokio::net::TcpStream::connect(("127.0.0.1", broker)).await else { continue };
                    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                    let there = carry(near_in, far_out, swallows.clone(), stalls.clone(), carried.clone());
                    let back = carry(far_in, near_out, swallows.clone(), stalls.clone(), Arc::default());
                    let mut breaks = breaks.clone();
                    breaks.mark_unchanged();
                    tokio::spawn(async move {
                        // When one direction ends, so does the other.
                        tokio::select! {
                            () = there => {}
                            () = back => {}
                            _ = breaks.changed() => {}
                        }
                    });
                }
            }
        });
        Self { port, swallows, stalls, breaks, carried, task }
    }

    /// From now on nothing gets through, in neither direction, and nobody is told.
    pub(crate) fn swallow(&self) {
        self.swallows.store(true, Ordering::Relaxed);
    }

    /// Breaks all connections; later ones are carried again.
    pub(crate) fn break_all(&self) {
        self.swallows.store(false, Ordering::Relaxed);
        self.breaks.send_replace(());
    }

    /// From now on everything waits, in both directions; or goes on where it waited.
    pub(crate) fn stall(&self, stalls: bool) {
        self.stalls.send_replace(stalls);
    }

    /// How many bytes it has carried towards the broker.
    pub(crate) fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }
}

/// Carries one direction of a connection until it ends.
async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    swallows: Arc<AtomicBool>,
    mut stalls: watch::Receiver<bool>,
    carried: Arc<AtomicU64>,
) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        // What comes meanwhile stays in the kernel's buffers; when they are full, its sender waits, too.
        let _ = stalls.wait_for(|stalls| !stalls).await;
        if !swallows.load(Ordering::Relaxed) {
            if to.write_all(&buffer[..count]).await.is_err() {
                return;
            }
            carried.fetch_add(count as u64, Ordering::Relaxed);
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A message that a client received.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) topic: String,
    pub(crate) payload: String,
    pub(crate) qos: QoS,
    /// Whether the broker had kept it since before.
    pub(crate) retain: bool,
}

impl Seen {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.payload).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A client that sees what is on a broker, and speaks.
pub(crate) struct Client {
    client: AsyncClient,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Client {
    /// One that is connected and listens to everything.
    pub(crate) async fn of(port: u16) -> Self {
        Self::listening(port, "#").await
    }

    /// One that is connected and listens to the topics of a filter.
    pub(crate) async fn listening(port: u16, filter: &'static str) -> Self {
        static NUMBER: AtomicU16 = AtomicU16::new(0);
        let name = format!("test-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut options = MqttOptions::new(name, "127.0.0.1", port);
        options.set_max_packet_size(1 << 20, 1 << 20);
        let (client, mut events) = AsyncClient::new(options, 100);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let listens = Arc::new(Mutex::new(false));
        let task = tokio::spawn({
            let (client, seen, listens) = (client.clone(), seen.clone(), listens.clone());
            async move {
                loop {
                    match events.poll().await {
                        Ok(Event::Incoming(Packet::ConnAck(_))) => {
                            client.try_subscribe(filter, QoS::AtLeastOnce).unwrap();
                        }
                        Ok(Event::Incoming(Packet::SubAck(_))) => *listens.lock().unwrap() = true,
                        Ok(Event::Incoming(Packet::Publish(publish))) => seen.lock().unwrap().push(Seen {
                            topic: publish.topic,
                            payload: String::from_utf8_lossy(&publish.payload).into_owned(),
                            qos: publish.qos,
                            retain: publish.retain,
                        }),
                        Ok(_) => {}
                        // The broker is gone: the next poll connects again.
                        Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                    }
                }
            }
        });
        until("a client listens", async || listens.lock().unwrap().then_some(())).await;
        Self { client, seen, task }
    }

    /// What was received under topics that end so, in order.
    pub(crate) fn under(&self, end: &str) -> Vec<Seen> {
        self.seen.lock().unwrap().iter().filter(|seen| seen.topic.ends_with(end)).cloned().collect()
    }

    /// What was received since this was asked last: for who cannot keep it all.
    pub(crate) fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }

    /// Waits until at least so much was received under topics that end so; returns all of it.
    pub(crate) async fn receives(&self, count: usize, end: &str) -> Vec<Seen> {
        until(&format!("{count} messages under {end}"), async || {
            let seen = self.under(end);
            (seen.len() >= count).then_some(seen)
        })
        .await
    }

    pub(crate) async fn publish(&self, topic: &str, payload: impl Into<Vec<u8>>) {
        self.client.publish(topic, QoS::AtLeastOnce, false, payload).await.unwrap();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The program, running.
pub(crate) struct Meterkast {
    child: Child,
    stderr: Arc<Mutex<String>>,
}

impl Meterkast {
    /// The daemon.
    pub(crate) fn run(config: &Path) -> Self {
        Self::start(["run".as_ref(), "--config".as_ref(), config.as_os_str()])
    }

    pub(crate) fn start<A: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = A>) -> Self {
        Self::of(start_meterkast(arguments))
    }

    /// The daemon, with these words before its name (`setpriv --reuid 1`), and these variables.
    pub(crate) fn run_by(before: &[&str], variables: &[(&str, &str)], config: &Path) -> Self {
        let mut words = [before, &[BINARY, "run", "--config"]].concat().into_iter();
        let mut command = program(words.next().unwrap_or_default());
        Self::of(spawn(command.args(words).arg(config).envs(variables.iter().copied())))
    }

    /// One that was started otherwise: its standard error must be a pipe.
    pub(crate) fn of(mut child: Child) -> Self {
        let stderr = Arc::new(Mutex::new(String::new()));
        let (mut source, said) = (child.stderr.take().unwrap(), stderr.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = source.read(&mut buffer) {
                said.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        });
        Self { child, stderr }
    }

    /// The number of its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its standard input, output: for who asks first.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Everything it has said on standard error.
    pub(crate) fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    /// Waits until it has said this on standard error.
    pub(crate) async fn says(&self, part: &str) {
        self.says_times(1, part).await;
    }

    /// Waits until it has said this so many times.
    pub(crate) async fn says_times(&self, times: usize, part: &str) {
        let what = format!("`{part}` on standard error {times} times");
        until(&what, async || (self.stderr().matches(part).count() >= times).then_some(())).await;
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Whether it has not ended by itself.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Stops it as systemd does. Returns how it ended, and how long that took.
    pub(crate) async fn terminate(&mut self) -> (ExitStatus, Duration) {
        let begin = Instant::now();
        let kill = Command::new("bash").args(["-c", &format!("kill -TERM {}", self.child.id())]).status();
        assert!(kill.unwrap().success(), "it had ended before");
        let status = self.ends().await;
        (status, begin.elapsed())
    }

    /// Waits until it ends by itself.
    pub(crate) async fn ends(&mut self) -> ExitStatus {
        let child = &mut self.child;
        until("the program ends", async || child.try_wait().unwrap()).await
    }
}

impl Drop for Meterkast {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("--- standard error of process {}:\n{}", self.child.id(), self.stderr());
        }
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a command of the program to its end.
pub(crate) fn meterkast(arguments: &[&str], input: &[u8]) -> Ended {
    let mut child = start_meterkast(arguments);
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            // Whoever does not read its input may close it.
            let _ = stdin.write_all(input);
        });
        child.wait_with_output().unwrap()
    });
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// The meter's end of a serial line.
pub(crate) struct Wire {
    meter: SerialStream,
    /// The other end, as a device.
    pub(crate) path: PathBuf,
}

impl Wire {
    pub(crate) fn new() -> Self {
        let (meter, device) = SerialStream::pair().unwrap();
        let path = device.name().unwrap().into();
        Self { meter, path }
    }

    /// Sends; the kernel takes no more than a few KiB that nobody has read.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        tokio::time::timeout(PATIENCE, AsyncWriteExt::write_all(&mut self.meter, bytes))
            .await
            .expect("nobody reads the wire")
            .unwrap();
    }
}

/// A meter for electricity with three others behind it, and what they have counted.
pub(crate) struct Meter {
    household: Household,
    /// By meter and milliseconds.
    books: BTreeMap<(String, i64), Vec<(Register, Decimal)>>,
}

impl Meter {
    /// It is 2026-11-21T20:00:00+01:00; each number gives other meters.
    pub(crate) fn new(number: u64) -> Self {
        let start = Moment::from_millis(1_795_287_600_000, 60).unwrap();
        Self { household: Household::new(number, start), books: BTreeMap::new() }
    }

    /// The telegram a minute later. The meters behind say something new every five minutes.
    pub(crate) fn telegram(&mut self) -> Vec<u8> {
        let later = Moment::from_millis(self.household.moment().millis() + 60_000, 60).unwrap();
        self.household.advance(later);
        for book in self.household.books() {
            let counts = book.readings.into_iter().filter(|reading| reading.register.is_cumulative());
            let counts = counts.map(|reading| (reading.register, reading.value)).collect();
            self.books.insert((book.meter.name("", ""), book.at.millis()), counts);
        }
        self.household.telegram()
    }

    /// That many telegrams in a row.
    pub(crate) fn telegrams(&mut self, count: usize) -> Vec<u8> {
        (0..count).flat_map(|_| self.telegram()).collect()
    }

    /// The time of the last telegram, as it is written in messages.
    pub(crate) fn now(&self) -> String {
        self.household.moment().to_string()
    }

    /// How many messages its telegrams make.
    pub(crate) fn messages(&self) -> usize {
        self.books.len()
    }

    /// Waits until a database has exactly what the meters have counted: each message, and once.
    pub(crate) async fn is_stored_in(&self, database: &Path) {
        self.is_stored_at(&StoreUrl::sqlite(database)).await;
    }

    /// The same, wherever it is.
    pub(crate) async fn is_stored_at(&self, url: &StoreUrl) {
        let what = format!("{} messages in the store", self.messages());
        until(&what, async || (counts_at(url).await?.messages >= self.messages() as u64).then_some(())).await;
        let mut reader = store::read(url).await.unwrap();
        assert_eq!(reader.counts().await.unwrap().messages, self.messages() as u64);
        for ((meter, at), registers) in &self.books {
            let reports = reader.readings(Some(Moment::from_millis(*at, 60).unwrap())).await.unwrap();
            let (report, _) = reports.iter().find(|(report, _)| report.meter == *meter).unwrap();
            assert_eq!(report.measured_at.unwrap().millis(), *at, "{meter}");
            for (register, value) in registers {
                let reading = report.readings.iter().find(|reading| reading.register == *register).unwrap();
                assert_eq!(reading.value, *value, "{meter} {register}");
            }
        }
    }
}

/// What a database holds; None while there is none, or none yet that can be read.
pub(crate) async fn counts(database: &Path) -> Option<Counts> {
    counts_at(&StoreUrl::sqlite(database)).await
}

/// The same, wherever it is.
pub(crate) async fn counts_at(url: &StoreUrl) -> Option<Counts> {
    store::read(url).await.ok()?.counts().await.ok()
}
