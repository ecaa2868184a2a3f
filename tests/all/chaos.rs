//! Chaos: gateway, broker and store are killed again and again while telegrams come in, the network breaks and
//! stalls, and the store's disk fills. What the journal accepted must be in the store: all of it, once, and exact.
//!
//! `METERKAST_CHAOS=long` makes a long run of it. `METERKAST_CHAOS_SEED` repeats the choices of an earlier run,
//! though not its moments: processes have their own.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::Write as _,
    ops::Range,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use meterkast::{
    delivery::Epoch,
    journal::{Bounds, Journal, Record},
    layout::Layout,
    moment::Moment,
    p1::Writer,
    reading::{Clock, Reading, Report},
};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use sqlx::{Connection as _, SqliteConnection, query_as, query_scalar, sqlite::SqliteConnectOptions};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
    task::JoinHandle,
};

use crate::{
    mbus_way::{HOUSE, Line, METERS},
    parts::{Broker, Client, Folder, Meter, Meterkast, Network, until_within},
    way::{last_registers, real_stream},
};

/// How long everything may take to arrive once nothing disturbs any more: three times as long as the gateway
/// waits before it sends again.
const RECOVERY: Duration = Duration::from_secs(180);

fn is_long() -> bool {
    match env::var("METERKAST_CHAOS").as_deref() {
        Ok("long") => true,
        Err(_) => false,
        Ok(other) => panic!("METERKAST_CHAOS={other}: it can be `long`"),
    }
}

/// Numbers that look random and are the same for the same seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let seed = env::var("METERKAST_CHAOS_SEED").map(|seed| seed.parse().unwrap());
        let seed = seed.unwrap_or_else(|_| SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64);
        println!("METERKAST_CHAOS_SEED={seed}");
        Self(seed)
    }

    fn from(&mut self, range: Range<u64>) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        range.start + (mixed ^ (mixed >> 31)) % (range.end - range.start)
    }

    fn millis(&mut self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.from(range))
    }

    fn one_in(&mut self, times: u64) -> bool {
        self.from(0..times) == 0
    }

    fn shuffle<T>(&mut self, cards: &mut [T]) {
        for last in (1..cards.len()).rev() {
            cards.swap(last, self.from(0..last as u64 + 1) as usize);
        }
    }
}

/// Telegrams of one meter without end: a recording over and over, each telegram a second after the one before
/// and with its own number among the registers. The recording is a real one where it is at hand.
struct Telegrams {
    identification: String,
    recording: Vec<Vec<String>>,
    /// By code, how much a lap adds to a counter, in its last digit.
    growth: BTreeMap<&'static str, u64>,
}

/// 2025-11-01T00:00:00+01:00, the time of the first telegram. Winter lasts for 13 million of them.
const FIRST: i64 = 1_761_951_600_000;

const COUNTERS: [&str; 4] = ["1-0:1.8.1", "1-0:1.8.2", "1-0:2.8.1", "1-0:2.8.2"];

impl Telegrams {
    fn new() -> Self {
        let stream = real_stream().map_or_else(|| Meter::new(31).telegrams(566), |file| fs::read(file).unwrap());
        let stream = String::from_utf8(stream).unwrap();
        // What stands before the first `/` is a piece. Meters behind the meter have clocks of their own: they are left out.
        let lines = |telegram: &str| -> Vec<String> {
            let behind = |line: &str| ["0-1:", "0-2:", "0-3:", "0-4:"].iter().any(|channel| line.starts_with(channel));
            let lines = telegram.lines().take_while(|line| !line.starts_with('!'));
            lines.filter(|line| !line.is_empty() && !behind(line)).map(str::to_owned).collect()
        };
        let mut recording: Vec<Vec<String>> = stream.split('/').skip(1).map(lines).collect();
        let identification = recording[0][0].clone();
        for lines in &mut recording {
            assert_eq!(lines.remove(0), identification);
        }
        let counted = |lines: &[String], code: &str| -> u64 {
            let (_, value) = lines.iter().find_map(|line| line.split_once('(').filter(|(c, _)| *c == code)).unwrap();
            digits(value).parse().unwrap()
        };
        let (first, last) = (recording.first().unwrap(), recording.last().unwrap());
        let growth = COUNTERS.map(|code| (code, counted(last, code) - counted(first, code) + 1)).into();
        Self { identification, recording, growth }
    }

    fn at(number: u64) -> i64 {
        FIRST + 1000 * number.cast_signed()
    }

    /// The number of the telegram of a time.
    fn number(at: i64) -> u64 {
        assert_eq!((at - FIRST).rem_euclid(1000), 0, "no telegram has the time {at}");
        ((at - FIRST) / 1000).unsigned_abs()
    }

    fn telegram(&self, number: u64) -> Vec<u8> {
        let lap = number / self.recording.len() as u64;
        let lines = &self.recording[(number % self.recording.len() as u64) as usize];
        let mut writer = Writer::new(&self.identification);
        for line in lines {
            let (code, value) = line.split_once('(').unwrap();
            writer = writer.line(match code {
                "0-0:1.0.0" => {
                    let time = Moment::from_millis(Self::at(number), 60).unwrap().to_string();
                    format!("{code}({}W)", &digits(&time)[2..14])
                }
                "0-0:96.7.21" => format!("{code}({:05})", number % 100_000),
                _ if let Some(growth) = self.growth.get(code) => {
                    let (number, unit) = value.split_once('*').unwrap();
                    let count = digits(number).parse::<u64>().unwrap() + lap * growth;
                    format!("{code}({:06}.{:03}*{unit}", count / 1000, count % 1000)
                }
                _ => line.clone(),
            });
        }
        writer.finish(true)
    }

    /// Who sends them.
    fn meter(&self) -> String {
        let line = self.recording[0].iter().find_map(|line| line.strip_prefix("0-0:96.1.1(")).unwrap();
        let hex = line.trim_end_matches(')').as_bytes();
        let text = |pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        hex.chunks(2).map(|pair| char::from(text(pair))).collect()
    }
}

fn digits(text: &str) -> String {
    text.chars().filter(char::is_ascii_digit).collect()
}

/// What goes out of a port.
enum Out {
    Telegram,
    /// One with a wrong CRC.
    Damaged,
}

/// The meter's port, in the network. Each telegram goes out once, as fast as it is taken.
struct Port {
    address: String,
    out: mpsc::UnboundedSender<Out>,
    book: Arc<Mutex<Book>>,
    task: JoinHandle<()>,
}

/// What went out of a port.
#[derive(Default)]
struct Book {
    /// How many telegrams may go out.
    allowed: u64,
    sent: u64,
    /// For each connection, the first telegram on it.
    connections: Vec<u64>,
}

impl Port {
    async fn new(telegrams: Arc<Telegrams>) -> Self {
        // With little room for what nobody has read: it is gone when the reader is killed.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_send_buffer_size(8192).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(8).unwrap();
        let address = format!("tcp://{}", listener.local_addr().unwrap());
        let (out, mut orders) = mpsc::unbounded_channel();
        let book = Arc::new(Mutex::new(Book::default()));
        let task = tokio::spawn({
            let book = book.clone();
            async move {
                while let Ok((mut connection, _)) = listener.accept().await {
                    {
                        let mut book = book.lock().unwrap();
                        let sent = book.sent;
                        book.connections.push(sent);
                    }
                    loop {
                        let order = tokio::select! {
                            biased;
                            // Who reads the port says nothing: this is the end.
                            _ = connection.read_u8() => break,
                            order = orders.recv() => order,
                        };
                        let bytes = match order {
                            Some(Out::Telegram) => {
                                let mut book = book.lock().unwrap();
                                book.sent += 1;
                                telegrams.telegram(book.sent - 1)
                            }
                            Some(Out::Damaged) => b"/XYZ5 damaged\r\n\r\n1-3:0.2.8(50)\r\n!0000\r\n".to_vec(),
                            None => return,
                        };
                        if connection.write_all(&bytes).await.is_err() {
                            break;
                        }
                    }
                }
            }
        });
        Self { address, out, book, task }
    }

    /// Lets so many more telegrams out.
    fn feed(&self, telegrams: u64) {
        self.book.lock().unwrap().allowed += telegrams;
        for _ in 0..telegrams {
            let _ = self.out.send(Out::Telegram);
        }
    }

    /// Makes the gateway tell its health: that changes with the count of what was no telegram.
    fn nudge(&self) {
        let _ = self.out.send(Out::Damaged);
    }

    fn sent(&self) -> u64 {
        self.book.lock().unwrap().sent
    }

    /// Whether all that may go out has.
    fn is_empty(&self) -> bool {
        let book = self.book.lock().unwrap();
        book.sent == book.allowed
    }

    /// The telegrams that went out, by connection.
    fn connections(&self) -> Vec<Range<u64>> {
        let book = self.book.lock().unwrap();
        let ends = book.connections.iter().skip(1).copied().chain([book.sent]);
        book.connections.iter().zip(ends).map(|(&begin, end)| begin..end).collect()
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A message that the journal accepted.
struct Accepted {
    epoch: Epoch,
    seq: u64,
    report: Report<String>,
    received_at: Moment,
}

/// Everything that the journal of an ended gateway has accepted since it was made.
fn accepted(journal: &Path) -> Vec<Accepted> {
    let bounds = Bounds { max_bytes: 1 << 30, keep_free: 0 };
    let (mut journal, held, damage) = Journal::open(journal, Epoch::from_bits(0xC4A05), bounds).unwrap();
    // A kill may tear the record that is being written, which then was not accepted. The gateway that started next has
    // cut it off.
    assert_eq!(damage, Vec::<String>::new());
    let mut messages = Vec::new();
    for run in held {
        assert_eq!(run.first, 1, "something was given up");
        for seq in run.first..=run.last {
            let Record { report, received_at, .. } = journal.read(run.epoch, seq).unwrap().unwrap();
            messages.push(Accepted { epoch: run.epoch, seq, report, received_at });
        }
    }
    messages
}

/// A row of the table `message`, with what it points to.
#[derive(sqlx::FromRow)]
struct Row {
    name: String,
    medium: String,
    protocol: String,
    at: i64,
    n: i64,
    utc_offset: i32,
    clock: i64,
    received_at: i64,
    spec: String,
    values: String,
    content: Option<String>,
}

/// Reads a database by itself, and no more of it than it must.
async fn connect(database: &Path) -> Option<SqliteConnection> {
    let options = SqliteConnectOptions::new().filename(database).read_only(true);
    SqliteConnection::connect_with(&options).await.ok()
}

/// The time of a meter's last message in a database.
async fn last_of(meter: &str, database: &Path) -> Option<i64> {
    let sql = "SELECT max(at) FROM message JOIN meter ON meter.id = meter WHERE name = ?";
    query_scalar(sql).bind(meter).fetch_one(&mut connect(database).await?).await.ok()?
}

/// How many messages there were.
#[derive(Debug)]
struct Tally {
    accepted: usize,
    of_bus: usize,
    /// Runs of the gateway that accepted any.
    runs: usize,
    stored: usize,
}

/// That the journal's messages are in the database: each once, as it was accepted, and nothing else.
async fn check_stored(messages: &[Accepted], database: &Path) -> Tally {
    let mut connection = connect(database).await.unwrap();
    let sql = r#"SELECT name, medium, protocol, at, n, utc_offset, clock, message.received_at, spec, "values", content
        FROM message JOIN meter ON meter.id = message.meter JOIN layout ON layout.id = layout
        LEFT JOIN remark ON remark.id = remark"#;
    let rows: Vec<Row> = query_as(sql).fetch_all(&mut connection).await.unwrap();
    let stored = rows.len();
    let mut rows: BTreeMap<(String, i64), Row> = rows
        .into_iter()
        .map(|row| {
            assert_eq!(row.n, 0, "{} has two messages of {}", row.name, row.at);
            ((row.name.clone(), row.at), row)
        })
        .collect();
    let mut layouts: BTreeMap<String, Layout> = BTreeMap::new();
    let mut last: BTreeMap<String, i64> = BTreeMap::new();
    let mut lost = Vec::new();
    for Accepted { epoch, seq, report, received_at } in messages {
        last.insert(epoch.to_string(), seq.cast_signed());
        let at = report.measured_at.unwrap_or(*received_at);
        let Some(row) = rows.remove(&(report.meter.clone(), at.millis())) else {
            lost.push(format!("{seq} of run {epoch}: {} at {at}", report.meter));
            continue;
        };
        let clocks = [Clock::Meter, Clock::Telegram, Clock::Gateway, Clock::Unsynchronised];
        let was = (&*row.medium, &*row.protocol, row.utc_offset, clocks[row.clock as usize], row.received_at);
        let is = (report.medium.name(), &*report.protocol, at.offset_minutes(), report.clock, received_at.millis());
        assert_eq!(was, is, "{} at {at}", report.meter);
        let layout = layouts.entry(row.spec).or_insert_with_key(|spec| Layout::from_text(spec).unwrap());
        let values: Vec<i64> = serde_json::from_str(&row.values).unwrap();
        let mut read = Report {
            readings: Vec::new(),
            info: Vec::new(),
            events: Vec::new(),
            unknown: Vec::new(),
            ..report.clone()
        };
        layout.join(&values, row.content.as_deref(), &mut read).unwrap();
        // Equal to the last decimal: 1.50 is not 1.5.
        assert!(read == *report, "{} at {at}: {read:?} and not {report:?}", report.meter);
    }
    assert!(
        lost.is_empty(),
        "{} of {} messages are lost: {:#?}",
        lost.len(),
        messages.len(),
        &lost[..lost.len().min(20)]
    );
    assert!(rows.is_empty(), "{} messages were never accepted: {:?}", rows.len(), rows.keys().take(20));

    let ledgers = "SELECT epoch, through, have, lost, stored, repeated, refused FROM ledger";
    let ledgers: Vec<(String, i64, String, String, i64, i64, i64)> =
        query_as(ledgers).fetch_all(&mut connection).await.unwrap();
    assert_eq!(ledgers.len(), last.len());
    for (epoch, through, have, lost, stored, repeated, refused) in ledgers {
        let expected = (last[&epoch], "[]", "[]", last[&epoch], 0, 0);
        assert_eq!((through, &*have, &*lost, stored, repeated, refused), expected, "run {epoch}");
    }
    let refused: i64 = query_scalar("SELECT count(*) FROM refused").fetch_one(&mut connection).await.unwrap();
    assert_eq!(refused, 0);
    let of_bus = messages.iter().filter(|message| &*message.report.protocol == "mbus").count();
    Tally { accepted: messages.len(), of_bus, runs: last.len(), stored }
}

/// That the accepted telegrams of a port are what went out of it, value by value; that from each connection all of the
/// first were accepted (the last of them were in the socket when the gateway was killed), and from the last connection
/// all. Returns how many were not.
fn check_sent(messages: &[Accepted], telegrams: &Telegrams, port: &Port) -> u64 {
    let meter = telegrams.meter();
    let mut numbers = BTreeSet::new();
    for Accepted { report, .. } in messages.iter().filter(|message| message.report.meter == meter) {
        let at = report.measured_at.unwrap();
        assert_eq!((at.offset_minutes(), report.clock), (60, Clock::Meter));
        let number = Telegrams::number(at.millis());
        assert!(numbers.insert(number), "telegram {number} was accepted twice");
        let of = |reading: &Reading| {
            (reading.register.to_string(), reading.value.to_string(), reading.unit.as_str().to_owned())
        };
        let mut registers: Vec<_> = report.readings.iter().map(of).collect();
        registers.sort();
        assert_eq!(registers, last_registers(&telegrams.telegram(number)), "telegram {number}");
    }
    let connections = port.connections();
    let mut underway = 0;
    for connection in &connections {
        let taken = numbers.range(connection.clone()).count() as u64;
        let last = numbers.range(connection.clone()).next_back().map_or(connection.start, |last| last + 1);
        assert_eq!(last - connection.start, taken, "of the connection {connection:?} some within were not accepted");
        underway += connection.end - last;
        if Some(connection) == connections.last() {
            assert_eq!(last, connection.end, "what went to a gateway that lived on was not accepted");
        }
    }
    assert_eq!(numbers.len() as u64 + underway, port.sent());
    underway
}

/// What the meters of a bus have counted at any time: meter, register, value.
type Counted = BTreeSet<(String, String, String)>;

/// That the accepted readings of a bus are what its meters have counted, and all meters have some.
fn check_bus(messages: &[Accepted], counted: &Counted) {
    let mut meters = BTreeSet::new();
    for Accepted { report, .. } in messages.iter().filter(|message| &*message.report.protocol == "mbus") {
        let register = if report.medium.name() == "heat" { "energy" } else { "volume" };
        let reading =
            report.readings.iter().find(|reading| reading.is_current() && reading.register.as_str() == register);
        let value = reading.unwrap().value.to_string();
        let told = (report.meter.clone(), register.to_owned(), value);
        assert!(counted.contains(&told), "{told:?}");
        meters.insert(&report.meter);
    }
    assert_eq!(meters, counted.iter().map(|(meter, ..)| meter).collect());
}

/// A disk that can be filled: a file system of its own in memory, where one may be mounted.
struct Disk {
    path: PathBuf,
    filler: PathBuf,
    mounted: bool,
    _folder: Folder,
}

impl Disk {
    fn new(megabytes: u32) -> Self {
        let folder = Folder::new();
        let path = folder.path("disk");
        fs::create_dir(&path).unwrap();
        let mounted = [&["mount"][..], &["sudo", "-n", "mount"]].iter().any(|mount| {
            let options = format!("size={megabytes}m,mode=777");
            let arguments = ["-t", "tmpfs", "-o", &options, "meterkast-test"];
            let ended = Command::new(mount[0]).args(&mount[1..]).args(arguments).arg(&path).output();
            ended.is_ok_and(|ended| ended.status.success())
        });
        Self { filler: path.join("filler"), path, mounted, _folder: folder }
    }

    /// Takes all space that is left.
    fn fill(&self) {
        let mut file = fs::File::create(&self.filler).unwrap();
        for size in [1 << 16, 1 << 12] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
    }

    fn free(&self) {
        fs::remove_file(&self.filler).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            // Whoever still has a file open there keeps it until it is closed.
            for unmount in [&["umount"][..], &["sudo", "-n", "umount"]] {
                let ended = Command::new(unmount[0]).args(&unmount[1..]).arg("--lazy").arg(&self.path).output();
                if ended.is_ok_and(|ended| ended.status.success()) {
                    break;
                }
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Gateway,
    Broker,
    Store,
}

/// What is done to the parts.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Kill(Who),
    /// To the network of one of them, of the gateway or the store.
    Break(Who),
    Stall(Who),
    /// Swallows, then breaks.
    Swallow(Who),
}

/// The parts, and what is done to them.
struct Chaos {
    dice: Dice,
    broker: Broker,
    networks: BTreeMap<Who, Network>,
    /// The configurations of which each start takes one.
    configs: BTreeMap<Who, Vec<PathBuf>>,
    running: BTreeMap<Who, Meterkast>,
    /// When what is down, stalls or swallows comes back.
    ends: BTreeMap<Who, (Instant, Fault)>,
    network_ends: BTreeMap<Who, (Instant, Fault)>,
    kills: BTreeMap<Who, u32>,
    breaks: u32,
    stalls: u32,
    line: Line,
    clock: Moment,
    counted: Counted,
}

impl Chaos {
    fn start(&mut self, who: Who) {
        let configs = &self.configs[&who];
        let config = &configs[self.dice.from(0..configs.len() as u64) as usize];
        self.running.insert(who, Meterkast::run(config));
    }

    fn kill(&mut self, who: Who) {
        *self.kills.entry(who).or_default() += 1;
        match self.running.remove(&who) {
            Some(mut process) => {
                assert!(process.runs(), "{who:?} has ended by itself");
                process.kill();
                assert!(!process.stderr().contains("panicked"));
            }
            None => self.broker.kill(),
        }
    }

    /// Stops a program in order.
    async fn stop(&mut self, who: Who) {
        let mut process = self.running.remove(&who).unwrap();
        let (status, _) = process.terminate().await;
        assert!(status.success(), "{who:?}: {status}");
        assert!(!process.stderr().contains("panicked"));
    }

    async fn strike(&mut self, fault: Fault) {
        let (Fault::Kill(who) | Fault::Break(who) | Fault::Stall(who) | Fault::Swallow(who)) = fault;
        let of_network = !matches!(fault, Fault::Kill(_));
        // One thing after another for each, but several of them at once.
        while (if of_network { &self.network_ends } else { &self.ends }).contains_key(&who) {
            self.pass(Duration::from_millis(20)).await;
        }
        let short = self.dice.one_in(2);
        let duration = self.dice.millis(if short { 0..200 } else { 200..2500 });
        match fault {
            Fault::Kill(who) => self.kill(who),
            Fault::Break(_) => {
                self.networks[&who].break_all();
                self.breaks += 1;
                return;
            }
            Fault::Stall(_) => {
                self.networks[&who].stall(true);
                self.stalls += 1;
            }
            Fault::Swallow(_) => {
                self.networks[&who].swallow();
                self.stalls += 1;
            }
        }
        let ends = if of_network { &mut self.network_ends } else { &mut self.ends };
        ends.insert(who, (Instant::now() + duration, fault));
    }

    /// Lets time pass, in which things come back.
    async fn pass(&mut self, duration: Duration) {
        let end = Instant::now() + duration;
        loop {
            let now = Instant::now();
            let due: Vec<(Instant, Fault)> =
                self.ends.values().chain(self.network_ends.values()).filter(|(at, _)| *at <= now).copied().collect();
            for (_, fault) in due {
                self.end(fault).await;
            }
            if now >= end {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20).min(end - now)).await;
        }
        // Hours pass on the bus.
        self.clock = Moment::from_millis(self.clock.millis() + 3_600_000, 60).unwrap();
        self.line.bus.lock().unwrap().advance(self.clock);
        self.counted.extend(self.line.books().into_iter().map(|(meter, register, now, _)| (meter, register, now)));
    }

    async fn end(&mut self, fault: Fault) {
        match fault {
            Fault::Kill(who) => {
                self.ends.remove(&who);
                match who {
                    Who::Broker => self.broker.begin().await,
                    who => self.start(who),
                }
            }
            Fault::Stall(who) => {
                self.network_ends.remove(&who);
                self.networks[&who].stall(false);
            }
            Fault::Swallow(who) | Fault::Break(who) => {
                self.network_ends.remove(&who);
                self.networks[&who].break_all();
                self.breaks += 1;
            }
        }
    }

    async fn everything_is_back(&mut self) {
        while !self.ends.is_empty() || !self.network_ends.is_empty() {
            self.pass(Duration::from_millis(20)).await;
        }
    }

    /// Fills the store's disk while it has to write, and frees it.
    async fn fill(&mut self, disk: &Disk, port: &Port) {
        self.everything_is_back().await;
        self.running[&Who::Store].says("connected to the broker as store").await;
        // An ordered stop empties the write-ahead log, in which there might be room.
        self.stop(Who::Store).await;
        self.start(Who::Store);
        self.running[&Who::Store].says("connected to the broker as store").await;
        disk.fill();
        until_within(RECOVERY, "that the disk is full", async || {
            port.feed(200);
            tokio::time::sleep(Duration::from_secs(1)).await;
            self.running[&Who::Store].stderr().contains("the disk is full").then_some(())
        })
        .await;
        self.strike(Fault::Break(Who::Gateway)).await;
        port.feed(200);
        self.pass(Duration::from_secs(1)).await;
        disk.free();
        self.running[&Who::Store].says("store: committing again").await;
    }
}

/// Waits until everything that goes out of a port is stored, and the gateway knows it.
async fn nothing_waits(port: &Port, meter: &str, database: &Path, client: &Client) {
    until_within(RECOVERY, "the last telegram in the store", async || {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let last = last_of(meter, database).await?;
        (port.is_empty() && last == Telegrams::at(port.sent() - 1)).then_some(())
    })
    .await;
    let before = client.under("/health").len();
    until_within(RECOVERY, "that nothing waits", async || {
        port.nudge();
        tokio::time::sleep(Duration::from_secs(1)).await;
        client.under("/health").iter().skip(before).any(|health| health.json()["depth"] == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_and_nothing_twice_whatever_is_killed() {
    let began = Instant::now();
    let long = is_long();
    let (telegrams, rounds, pause, commit) =
        if long { (110_000, 84, 100..6000, "30s") } else { (2500, 6, 50..1500, "2s") };
    let mut dice = Dice::new();
    let (broker, folder, disk) = (Broker::start().await, Folder::new(), Disk::new(if long { 256 } else { 24 }));
    if !disk.mounted {
        println!("skipped: the disk that fills: only root may mount one");
    }
    let client = Client::listening(broker.port, "meterkast/+/health").await;
    let source = Arc::new(Telegrams::new());
    let (port, meter) = (Port::new(source.clone()).await, source.meter());
    let line = Line::new(folder.path("bus"), HOUSE);
    let mut networks = BTreeMap::new();
    for who in [Who::Gateway, Who::Store] {
        networks.insert(who, Network::to(broker.port).await);
    }
    let mqtt = |who| format!("[mqtt]\nurl = \"mqtt://127.0.0.1:{}\"\n", networks[&who].port);
    let (journal, database) = (folder.path("journal"), disk.path.join("meterkast.db"));
    let gateway = format!(
        "[gateway]\nid = \"gw-1\"\nclock = \"always\"\n{}[journal]\npath = \"{}\"\nsync = \"1s\"\n[[p1]]\nport = \"{}\"\n\
         [[mbus]]\nport = \"{}\"\nbaud = 9600\ninterval = \"1s\"\n{METERS}",
        mqtt(Who::Gateway),
        journal.display(),
        port.address,
        line.path.display()
    );
    let gateway = folder.file("gateway.toml", gateway);
    // One that commits at once, and one that waits and loses more when it is killed.
    let stores = ["50ms", commit].map(|commit| {
        let store = format!("[store]\nurl = \"sqlite://{}\"\ncommit = \"{commit}\"\n", database.display());
        folder.file(&format!("store-{commit}.toml"), store + &mqtt(Who::Store))
    });
    let mut chaos = Chaos {
        broker,
        networks,
        configs: [(Who::Gateway, vec![gateway]), (Who::Store, stores.to_vec())].into(),
        running: BTreeMap::new(),
        ends: BTreeMap::new(),
        network_ends: BTreeMap::new(),
        kills: BTreeMap::new(),
        breaks: 0,
        stalls: 0,
        clock: "2026-11-22T12:00:00+01:00".parse().unwrap(),
        counted: Counted::new(),
        line,
        dice: Dice(dice.from(0..u64::MAX)),
    };
    chaos.pass(Duration::ZERO).await;
    chaos.start(Who::Gateway);
    chaos.start(Who::Store);

    let (mut round, mut fed) = (0, 0);
    while round < rounds || fed < telegrams || round % 2 == 1 {
        let who = if dice.one_in(2) { Who::Gateway } else { Who::Store };
        let network = [Fault::Break(who), Fault::Stall(who), Fault::Swallow(who)];
        let mut faults = vec![Fault::Kill(Who::Broker), Fault::Kill(Who::Store), network[dice.from(0..3) as usize]];
        // A new run of the gateway takes nothing for sent, which would heal what the run before forgot: the last one
        // lives for a while.
        if round % 2 == 0 {
            faults.push(Fault::Kill(Who::Gateway));
        }
        dice.shuffle(&mut faults);
        for fault in faults {
            let some = dice.from(1..2 * telegrams / (rounds * 3));
            port.feed(some);
            fed += some;
            chaos.strike(fault).await;
            chaos.pass(dice.millis(pause.clone())).await;
        }
        round += 1;
        if disk.mounted && round == rounds / 2 {
            chaos.fill(&disk, &port).await;
        }
        if round % 10 == 0 {
            println!("{} s: {round} rounds, {} telegrams sent", began.elapsed().as_secs(), port.sent());
        }
    }
    chaos.everything_is_back().await;
    chaos.line.unplug().await;
    // One that no gateway takes to its grave.
    port.feed(1);
    let disturbed = began.elapsed().as_secs();
    nothing_waits(&port, &meter, &database, &client).await;
    let recovered = began.elapsed().as_secs() - disturbed;
    chaos.stop(Who::Gateway).await;
    chaos.stop(Who::Store).await;

    let messages = accepted(&journal);
    let tally = check_stored(&messages, &database).await;
    let underway = check_sent(&messages, &source, &port);
    check_bus(&messages, &chaos.counted);
    let Tally { accepted, of_bus, runs, stored } = tally;
    println!(
        "chaos: {} telegrams sent, {underway} of them in sockets that died; {accepted} messages accepted in {runs} runs, \
         {of_bus} of them of a bus; killed {:?}; {} breaks, {} stalls, {} fillings of the disk; {stored} stored, \
         {} MB sent to the broker; disturbed for {disturbed} s, recovered in {recovered} s, {} s in all",
        port.sent(),
        chaos.kills,
        chaos.breaks,
        chaos.stalls,
        u32::from(disk.mounted),
        chaos.networks[&Who::Gateway].carried() / 1_000_000,
        began.elapsed().as_secs(),
    );
}

const LIVE: &str = "meterkast/+/+/telegram";

/// Somebody who subscribed to the live messages once, and is away: the broker keeps them. Tells how many it was given.
async fn absent_subscriber(port: u16) -> usize {
    let mut options = MqttOptions::new("absent", "127.0.0.1", port);
    options.set_clean_session(false).set_max_packet_size(1 << 20, 1 << 20);
    let (client, mut events) = AsyncClient::new(options, 10);
    client.try_subscribe(LIVE, QoS::AtLeastOnce).unwrap();
    let mut given = 0;
    // What was kept comes at once, and ends in silence.
    while let Ok(event) = tokio::time::timeout(Duration::from_secs(2), events.poll()).await {
        given += usize::from(matches!(event.unwrap(), Event::Incoming(Packet::Publish(_))));
    }
    given
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_broker_with_its_defaults_forgets_is_stored_all_the_same() {
    let began = Instant::now();
    let telegrams = if is_long() { 50_000 } else { 3000 };
    let (broker, folder) = (Broker::start().await, Folder::new());
    let client = Client::listening(broker.port, "meterkast/gw-1/health").await;
    let source = Arc::new(Telegrams::new());
    let (port, meter) = (Port::new(source.clone()).await, source.meter());
    let (journal, database) = (folder.path("journal"), folder.path("meterkast.db"));
    let gateway = format!(
        "[gateway]\nid = \"gw-1\"\n{}[journal]\npath = \"{}\"\n[[p1]]\nport = \"{}\"\n",
        broker.section(),
        journal.display(),
        port.address
    );
    let mut gateway = Meterkast::run(&folder.file("gateway.toml", gateway));
    let store = format!("[store]\nurl = \"sqlite://{}\"\n{}", database.display(), broker.section());
    let store = folder.file("store.toml", store);
    gateway.says("connected to the broker").await;
    assert_eq!(absent_subscriber(broker.port).await, 0);

    // Slowly enough that all are sent live as long as nothing else is to be sent.
    let listener = Client::listening(broker.port, LIVE).await;
    let mut live = 0;
    while port.sent() < telegrams {
        port.feed(20);
        let patience = Instant::now() + Duration::from_secs(1);
        let before = live;
        while live < before + 20 && Instant::now() < patience {
            tokio::time::sleep(Duration::from_millis(2)).await;
            live += listener.take().len();
        }
    }
    until_within(RECOVERY, "all telegrams accepted", async || {
        port.nudge();
        tokio::time::sleep(Duration::from_secs(1)).await;
        (client.under("/health").last()?.json()["messages"].as_u64()? >= telegrams).then_some(())
    })
    .await;
    // The broker has acknowledged them all, and keeps no more than a thousand for anybody.
    let kept = absent_subscriber(broker.port).await;
    assert!(live > 2000 && (1000..1100).contains(&kept), "of {live} messages the broker kept {kept}");
    let offline = began.elapsed().as_secs();
    let mut store = Meterkast::run(&store);
    nothing_waits(&port, &meter, &database, &client).await;
    for process in [&mut gateway, &mut store] {
        assert!(process.terminate().await.0.success());
    }
    let messages = accepted(&journal);
    let Tally { accepted, stored, .. } = check_stored(&messages, &database).await;
    assert_eq!(check_sent(&messages, &source, &port), 0);
    println!(
        "offline store: {} telegrams sent, {accepted} accepted, {live} seen live, {kept} of them kept by the broker; \
         {stored} stored; {offline} s without the store, {} s in all",
        port.sent(),
        began.elapsed().as_secs(),
    );
}
