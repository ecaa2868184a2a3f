//! `status`: what an installer wants to see of a gateway and its stores, and what a script may watch.
//!
//! Enters: a configuration, and what the gateways and stores keep at the broker. Leaves: how they are, and on standard error
//! each thing that is wrong with its remedy; then the exit code is 1. The daemon itself is not asked, so this works from any
//! machine that may read the broker.
//!
//! A gateway tells how it is every 20 s, and within seconds when something changes. So the age of a last telegram is that
//! of the moment when it told, and how long ago that was stands beside it.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Failure, Format, Outcome, Output, configuration, table::Table};
use crate::{
    config::{BrokerUrl, Config},
    daemon,
    delivery::{Ack, topic},
    moment::Moment,
    mqtt::{
        gateway::random_bits,
        link::{self, Command, Event, Link},
    },
    reading::escape,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/meterkast/meterkast.toml")]
    config: PathBuf,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// The broker has this long to be reached and to tell all.
const PATIENCE: Duration = Duration::from_secs(5);
/// When nothing more comes for so long, that was all.
const PAUSE: Duration = Duration::from_secs(1);
/// Whoever can publish must not be able to fill the memory: gateways and stores, far more than there are.
const MOST: usize = 10_000;
/// A gateway tells how it is every 20 s: one that has not for so long hangs.
const STALE: Duration = Duration::from_secs(180);
/// By then every port should have given a telegram, and every meter on a bus was asked.
const FIRST: Duration = Duration::from_secs(180);
/// As many messages as a gateway sends before it waits for a store. Who is further behind does not commit, or catches up.
const BEHIND: u64 = 1000;

pub(super) async fn status(arguments: Arguments) -> Result<Outcome, Failure> {
    let config = configuration(&arguments.config, "--config FILE")?;
    let question = Question::of(&config)?;
    let heard = ask(&config, &question).await?;
    let now = Moment::utc(Timestamp::now());
    let mut output = Output::new();
    let mut problems = Vec::new();
    let gateways: Vec<&str> = match &question.gateway {
        Some(id) => vec![id],
        None => heard.gateways.keys().map(String::as_str).collect(),
    };
    if gateways.is_empty() {
        problems.push(
            "no gateway has told anything at this broker: does one run, and is its [mqtt] url this broker?".to_owned(),
        );
    }
    for id in gateways {
        let unheard = Gateway::default();
        let gateway = heard.gateways.get(&topic::level(id)).or_else(|| heard.gateways.get(id)).unwrap_or(&unheard);
        let view = View::of(id, gateway, &question.stores, &heard, now);
        let lines = match arguments.format {
            Format::Table => view.lines(),
            Format::Json => vec![view.json().to_string()],
        };
        for line in lines {
            output.line(&line)?;
        }
        problems.extend(view.problems);
    }
    output.finish()?;
    for problem in &problems {
        say!("{problem}");
    }
    Ok(if problems.is_empty() { Outcome::Well } else { Outcome::Partly })
}

/// What is asked of the broker.
struct Question {
    base: String,
    /// The gateway of the configuration; None: all.
    gateway: Option<String>,
    /// The stores that the gateway waits for.
    stores: Vec<String>,
}

impl Question {
    fn of(config: &Config) -> Result<Self, Failure> {
        let base = config.mqtt.base_topic.as_str().to_owned();
        if !config.has_ports() {
            let stores = config.store.iter().map(|store| store.id.as_str().to_owned()).collect();
            return Ok(Self { base, gateway: None, stores });
        }
        let id = daemon::gateway_id(config).ok_or(daemon::StartError::NoId)?;
        Ok(Self { base, gateway: Some(id.to_string()), stores: config.stores() })
    }

    fn topics(&self) -> Vec<String> {
        let base = &self.base;
        let mut topics: Vec<String> = match &self.gateway {
            Some(id) => {
                let of = |leaf| topic::of_gateway(base, id, leaf);
                vec![of("status"), of("health"), topic::acks(base, id)]
            }
            None => ["status", "health", "ack/+"].map(|leaf| format!("{base}/+/{leaf}")).to_vec(),
        };
        for store in &self.stores {
            // Stores on one database each have a level of their own below.
            topics.extend([topic::of_store(base, store), format!("{}/#", topic::store_health(base, store))]);
        }
        topics
    }

    /// Whether there is nothing to wait for any more.
    fn is_answered(&self, heard: &Heard) -> bool {
        let Some(gateway) = self.gateway.as_ref().and_then(|id| heard.gateways.get(&topic::level(id))) else {
            return false;
        };
        let has = |store: &String| {
            let level = topic::level(store);
            // How many there are on one database nobody knows.
            heard.stores.contains_key(&level)
                && heard.databases.get(&level).is_some_and(|processes| processes.contains_key(""))
                && gateway.acks.contains_key(&level)
        };
        gateway.status.is_some() && gateway.health.is_some() && self.stores.iter().all(has)
    }
}

/// What the broker has kept, under topic levels.
#[derive(Default)]
struct Heard {
    gateways: BTreeMap<String, Gateway>,
    stores: BTreeMap<String, String>,
    /// What each store says of its database; of several on one each under a name of its own, else under none.
    databases: BTreeMap<String, BTreeMap<String, Database>>,
}

/// `health` of a store, as far as it is shown.
#[derive(Deserialize)]
struct Database {
    /// `ok`, or its trouble.
    database: String,
    /// 0: not known.
    #[serde(default)]
    bytes: u64,
    #[serde(default)]
    bytes_a_day: Option<i64>,
}

impl Database {
    fn trouble(&self) -> Option<&str> {
        (self.database != "ok").then_some(&self.database)
    }
}

#[derive(Default)]
struct Gateway {
    status: Option<String>,
    health: Option<Vec<u8>>,
    acks: BTreeMap<String, Ack>,
}

impl Heard {
    fn take(&mut self, base: &str, topic: &str, payload: &[u8]) {
        let Some(rest) = topic.strip_prefix(base).and_then(|rest| rest.strip_prefix('/')) else { return };
        let databases = self.databases.values().map(BTreeMap::len).sum::<usize>();
        let known = [self.gateways.len(), self.stores.len(), databases].into_iter().sum::<usize>();
        if payload.is_empty() || known >= MOST {
            return;
        }
        let word = || String::from_utf8_lossy(payload).into_owned();
        match *rest.split('/').collect::<Vec<_>>() {
            ["_stores", store, "status"] => drop(self.stores.insert(store.to_owned(), word())),
            ["_stores", store, "health"] => self.take_database(store, "", payload),
            ["_stores", store, "health", process] => self.take_database(store, process, payload),
            [gateway, "status"] => self.gateways.entry(gateway.to_owned()).or_default().status = Some(word()),
            [gateway, "health"] => self.gateways.entry(gateway.to_owned()).or_default().health = Some(payload.to_vec()),
            [gateway, "ack", store] => {
                if let Ok(ack) = Ack::from_json(payload) {
                    self.gateways.entry(gateway.to_owned()).or_default().acks.insert(store.to_owned(), ack);
                }
            }
            _ => {}
        }
    }

    fn take_database(&mut self, store: &str, process: &str, payload: &[u8]) {
        if let Ok(database) = serde_json::from_slice(payload) {
            self.databases.entry(store.to_owned()).or_default().insert(process.to_owned(), database);
        }
    }

    /// What a store says of its database; of several on one the one that is worst.
    fn database(&self, level: &str) -> Option<&Database> {
        let processes = self.databases.get(level)?;
        let mut in_trouble = processes.values().filter(|database| database.trouble().is_some());
        in_trouble.next().or(processes.values().next())
    }
}

/// How large a database is, and how it grows.
fn size(bytes: u64, bytes_a_day: Option<i64>) -> String {
    // Tenths of a megabyte.
    let tenths = |bytes: u64| format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000);
    if bytes == 0 {
        return String::new();
    }
    let grows = match bytes_a_day {
        None => String::new(),
        Some(grown @ 100_000..) => format!(", {} more a day", tenths(grown.unsigned_abs())),
        Some(shrunk @ ..=-100_000) => format!(", {} less a day", tenths(shrunk.unsigned_abs())),
        Some(_) => ", hardly growing".to_owned(),
    };
    format!(", {}{grows}", tenths(bytes))
}

/// Reads what the broker has kept.
async fn ask(config: &Config, question: &Question) -> Result<Heard, Failure> {
    let (url, remedy) = match &config.mqtt.url {
        Some(url) => (url.clone(), String::new()),
        None if config.mqtt.listen.port() == 0 => {
            return Err(Failure::usage(
                "the embedded broker listens on any free port ([mqtt] listen): give it a port to find it by, such as 127.0.0.1:1883",
            ));
        }
        None => {
            let remedy = "; it is the daemon's own: see whether that runs, with `systemctl status meterkast`";
            (BrokerUrl::of_listener(config.mqtt.listen), remedy.to_owned())
        }
    };
    let client = format!("meterkast-status-{:08x}", random_bits() as u32);
    let mut link = link::start(&url, &client, &config.mqtt, None).map_err(Failure::world)?;
    let end = Instant::now() + PATIENCE;
    let (mut heard, mut connected, mut quiet) = (Heard::default(), false, end);
    while !question.is_answered(&heard) {
        match tokio::time::timeout_at(quiet.min(end).into(), link.events.recv()).await {
            Ok(Some(Event::Connected)) => {
                connected = true;
                let _ = link.commands.try_send(Command::Subscribe(question.topics()));
                quiet = Instant::now() + PAUSE;
            }
            Ok(Some(Event::Message { topic, payload, .. })) => {
                heard.take(&question.base, &topic, &payload);
                quiet = Instant::now() + PAUSE;
            }
            Ok(Some(Event::Disconnected { reason })) => return Err(Failure::world(format!("{reason}{remedy}"))),
            Ok(Some(Event::Published(_) | Event::Dropped(_))) => {}
            Ok(None) | Err(_) => break,
        }
    }
    if !connected {
        return Err(Failure::world(format!(
            "the broker {url} does not answer within {} s{remedy}",
            PATIENCE.as_secs()
        )));
    }
    close(link).await;
    Ok(heard)
}

async fn close(mut link: Link) {
    let _ = link.commands.try_send(Command::Close);
    let closed = async { while !matches!(link.events.recv().await, None | Some(Event::Disconnected { .. })) {} };
    let _ = tokio::time::timeout(Duration::from_millis(500), closed).await;
}

/// `health`, as far as it is shown.
#[derive(Deserialize)]
struct Health {
    #[serde(deserialize_with = "moment")]
    at: Moment,
    #[serde(deserialize_with = "moment")]
    started_at: Moment,
    epoch: String,
    messages: u64,
    depth: u64,
    lost: u64,
    unwritten: u64,
    #[serde(default)]
    shared_id: u64,
    suspect: u64,
    unknown: u64,
    rejected: BTreeMap<String, u64>,
    ports: BTreeMap<String, State>,
    meters: BTreeMap<String, State>,
}

/// Of a port or a meter.
#[derive(Deserialize)]
struct State {
    state: String,
    ok: bool,
    #[serde(alias = "telegram_at", alias = "read_at", deserialize_with = "maybe_moment")]
    at: Option<Moment>,
}

fn moment<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Moment, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

fn maybe_moment<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Moment>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| text.parse().map_err(serde::de::Error::custom)).transpose()
}

/// A store, as a gateway's journal sees it.
struct Store<'a> {
    id: &'a str,
    status: Option<&'a str>,
    /// What its database complains of.
    database: Option<&'a Database>,
    /// Messages of this run that it has not confirmed, as far as that is known.
    behind: Option<u64>,
}

/// One gateway, and what is wrong with it.
struct View<'a> {
    id: &'a str,
    gateway: &'a Gateway,
    health: Option<Health>,
    stores: Vec<Store<'a>>,
    problems: Vec<String>,
    now: Moment,
}

impl<'a> View<'a> {
    fn of(id: &'a str, gateway: &'a Gateway, listed: &'a [String], heard: &'a Heard, now: Moment) -> Self {
        let health: Option<Result<Health, _>> = gateway.health.as_deref().map(serde_json::from_slice);
        let unreadable = match &health {
            Some(Err(error)) => Some(error.to_string()),
            _ => None,
        };
        let health = health.and_then(Result::ok);
        let stores = listed.iter().map(|id| {
            let level = topic::level(id);
            let confirmed = |health: &Health| {
                let epochs = gateway.acks.get(&level).map(|ack| ack.epochs.as_slice()).unwrap_or_default();
                let epoch = epochs.iter().find(|epoch| epoch.epoch.to_string() == health.epoch);
                epoch.map_or(0, |epoch| {
                    let beyond =
                        epoch.have.pairs().iter().map(|(first, last)| last.saturating_sub(*first).saturating_add(1));
                    beyond.fold(epoch.through, u64::saturating_add)
                })
            };
            let behind = health.as_ref().map(|health| health.messages.saturating_sub(confirmed(health)));
            // What one store alone has not confirmed is known exactly, earlier runs included.
            let behind = if listed.len() == 1 { health.as_ref().map(|health| health.depth) } else { behind };
            let status = heard.stores.get(&level).map(String::as_str);
            Store { id, status, database: heard.database(&level), behind }
        });
        let mut view = Self { id, gateway, stores: stores.collect(), health, problems: Vec::new(), now };
        view.find_problems(unreadable);
        view
    }

    fn is_online(&self) -> bool {
        self.gateway.status.as_deref() == Some("online")
    }

    fn find_problems(&mut self, unreadable: Option<String>) {
        let mut problems: Vec<String> = Vec::new();
        match self.gateway.status.as_deref() {
            Some("online") => {}
            None if self.health.is_none() => problems.push(
                "the broker knows nothing of it: has it run with this configuration, and may this user read its topics?".into(),
            ),
            _ => problems.push("is offline: is the daemon running there, and does it reach the broker? `systemctl status meterkast`".into()),
        }
        if let Some(error) = unreadable {
            problems.push(format!("what it tells of itself cannot be read ({error}): is it of another version?"));
        } else if self.is_online() && self.health.is_none() {
            problems.push("is online, but has told nothing of itself: may this user read its topic `health`?".into());
        }
        if let Some(health) = &self.health {
            let told = age(health.at, self.now);
            if self.is_online() && told > STALE {
                problems.push(format!("has told nothing for {}: does it hang, or do the clocks differ?", words(told)));
            }
            for (name, port) in &health.ports {
                let name = escape(name.as_bytes());
                if !port.ok {
                    problems.push(format!("port {name}: {}", escape(port.state.as_bytes())));
                } else if port.at.is_none() && age(health.started_at, health.at) > FIRST {
                    let since = words(age(health.started_at, health.at));
                    problems
                        .push(format!("port {name}: no telegram since the start {since} before: is a meter there?"));
                }
            }
            for (name, meter) in health.meters.iter().filter(|(_, meter)| !meter.ok) {
                problems.push(format!("meter {}: {}", escape(name.as_bytes()), escape(meter.state.as_bytes())));
            }
            if health.shared_id > 0 {
                problems.push(
                    "another gateway runs, or ran since its start, under the same id: give each its own [gateway] id; copied SD cards have the same one"
                        .into(),
                );
            }
            if health.lost > 0 {
                problems.push(format!(
                    "{} messages are lost since its start: see its log for why; if the journal was full, see why the stores did not confirm, or raise [journal] max-bytes",
                    health.lost
                ));
            }
            if health.unwritten > 0 {
                problems.push(format!(
                    "its journal cannot be written, {} messages wait in memory: free disk space, or see why the disk fails",
                    health.unwritten
                ));
            }
        }
        for Store { id, status, database, behind } in &self.stores {
            match (status, database.and_then(Database::trouble)) {
                (_, Some(trouble)) => {
                    let trouble = escape(trouble.as_bytes());
                    problems.push(format!("store {id}: its database: {trouble}; the journal keeps everything"));
                }
                (Some("online"), None) => {}
                (None, None) => problems.push(format!("store {id}: was never at this broker: does it run, and is its id right ([store] id, [journal] stores)?")),
                (Some(_), None) => problems.push(format!("store {id}: is offline; the journal keeps everything until it is back: is it running?")),
            }
            if let Some(behind) = behind.filter(|behind| *behind > BEHIND) {
                problems.push(format!(
                    "store {id}: is {behind} messages behind: either it catches up, or its log says why it does not commit"
                ));
            }
        }
        let id = escape(self.id.as_bytes());
        self.problems = problems.into_iter().map(|problem| format!("gateway {id}: {problem}")).collect();
    }

    fn lines(&self) -> Vec<String> {
        let status =
            self.gateway.status.as_deref().map_or_else(|| "unknown".to_owned(), |status| escape(status.as_bytes()));
        let mut lines = vec![format!("gateway {}: {status}", escape(self.id.as_bytes()))];
        if let Some(health) = &self.health {
            let since = health.started_at;
            let told = words(age(health.at, self.now));
            if let Some(first) = lines.first_mut() {
                *first += &format!(", started {since}; told {told} ago:");
            }
            lines.extend(self.states(["PORT", "STATE", "LAST TELEGRAM"], &health.ports));
            lines.extend(self.states(["METER", "STATE", "LAST READING"], &health.meters));
            let Health { depth, lost, suspect, unknown, .. } = health;
            let rejected = health.rejected.values().fold(0, |sum: u64, count| sum.saturating_add(*count));
            let reasons: Vec<String> = health
                .rejected
                .iter()
                .map(|(reason, count)| format!("{} {count}", escape(reason.as_bytes())))
                .collect();
            let reasons = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(", ")) };
            lines.push(format!("  journal: {depth} messages wait, {lost} lost"));
            lines.push(format!(
                "  input: {rejected} rejected{reasons}, {suspect} suspect readings, {unknown} unknown lines"
            ));
        }
        for Store { id, status, database, behind } in &self.stores {
            let status = status.map_or_else(|| "never seen".to_owned(), |status| escape(status.as_bytes()));
            let behind = behind.map_or_else(String::new, |behind| format!(", {behind} messages behind"));
            let size = database.map_or_else(String::new, |database| size(database.bytes, database.bytes_a_day));
            lines.push(format!("  store {id}: {status}{behind}{size}"));
        }
        if self.stores.is_empty() {
            lines.push("  stores: none is listed; the promise ends at the broker".to_owned());
        }
        lines
    }

    fn states(&self, heads: [&str; 3], states: &BTreeMap<String, State>) -> Vec<String> {
        if states.is_empty() {
            return Vec::new();
        }
        let mut table = Table::new(&heads);
        for (name, State { state, ok, at }) in states {
            // Since a port that is well was told of it has given more; one that is not would have been told.
            let until = match &self.health {
                Some(health) if *ok && self.is_online() => health.at,
                _ => self.now,
            };
            let last = at.map_or_else(|| "none".to_owned(), |at| format!("{} ago", words(age(at, until))));
            table.row(vec![escape(name.as_bytes()), escape(state.as_bytes()), last]);
        }
        table.lines(usize::MAX).into_iter().map(|line| format!("  {line}")).collect()
    }

    fn json(&self) -> Value {
        let stores: Vec<Value> = self
            .stores
            .iter()
            .map(|Store { id, status, database, behind }| {
                let trouble = database.and_then(Database::trouble).unwrap_or("ok");
                let (bytes, bytes_a_day) =
                    (database.map(|database| database.bytes), database.and_then(|database| database.bytes_a_day));
                json!({
                    "store": id, "status": status, "database": trouble, "behind": behind,
                    "bytes": bytes, "bytes_a_day": bytes_a_day,
                })
            })
            .collect();
        // As the gateway told it, whatever this version knows of it.
        let health: Option<Value> =
            self.gateway.health.as_deref().and_then(|health| serde_json::from_slice(health).ok());
        json!({
            "gateway": self.id, "status": self.gateway.status, "health": health, "stores": stores, "problems": self.problems,
        })
    }
}

/// From one moment to another; nothing where the clocks differ the other way.
fn age(from: Moment, to: Moment) -> Duration {
    Duration::try_from(to.since(from)).unwrap_or_default()
}

/// A time as people say it.
fn words(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(messages: &[(&str, &str)]) -> Heard {
        let mut heard = Heard::default();
        for (topic, payload) in messages {
            heard.take("m", topic, payload.as_bytes());
        }
        heard
    }

    const NOW: &str = "2026-11-22T08:00:00Z";
    const EPOCH: &str = "9f3c0000000000000000000000000001";

    fn health(at: &str, ports: &str) -> String {
        format!(
            r#"{{"schema":1,"at":"{at}","started_at":"2026-11-22T06:00:00Z","epoch":"{EPOCH}","accepted":9,"messages":1100,
            "depth":3,"lost":0,"unwritten":0,"unknown":1,"suspect":2,"acks_ignored":0,"rejected":{{"fragment":4,"crc":1}},
            "ports":{{{ports}}},"meters":{{"bus/7":{{"state":"is read","ok":true,"read_at":"2026-11-22T07:50:00Z"}}}}}}"#
        )
    }

    const OPEN: &str = r#""p1":{"state":"open at 115200 8N1","ok":true,"telegram_at":"2026-11-22T07:59:29Z"}"#;

    fn view<'a>(heard: &'a Heard, stores: &'a [String]) -> View<'a> {
        View::of("gw-1", heard.gateways.get("gw-1").unwrap(), stores, heard, NOW.parse().unwrap())
    }

    #[test]
    fn a_database_in_trouble_and_a_shared_id_are_named() {
        let shared = health("2026-11-22T07:59:30Z", OPEN).replace("\"lost\":0", "\"lost\":0,\"shared_id\":2");
        let heard = heard(&[
            ("m/gw-1/status", "online"),
            ("m/gw-1/health", &shared),
            ("m/_stores/main/health", "{\"database\":\"x.db is locked\"}"),
        ]);
        let stores = ["main".to_owned()];
        let problems = view(&heard, &stores).problems;
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].contains("another gateway runs"), "{problems:?}");
        assert_eq!(problems[1], "gateway gw-1: store main: its database: x.db is locked; the journal keeps everything");
    }

    #[test]
    fn of_several_stores_on_one_database_the_one_in_trouble_is_named() {
        let heard = heard(&[
            ("m/gw-1/status", "online"),
            ("m/gw-1/health", &health("2026-11-22T07:59:30Z", OPEN)),
            ("m/_stores/main/status", "online"),
            ("m/_stores/main/health/1a", r#"{"database":"ok","bytes":123456789}"#),
            ("m/_stores/main/health/2b", r#"{"database":"the server refuses the user"}"#),
            ("m/_stores/main/health/3c", r#"{"database":"ok","bytes":123456789}"#),
            ("m/_stores/main/health/3c/x", r#"{"database":"what is this?"}"#),
        ]);
        let stores = ["main".to_owned()];
        let problems = view(&heard, &stores).problems;
        let expected =
            "gateway gw-1: store main: its database: the server refuses the user; the journal keeps everything";
        assert_eq!(problems, [expected]);
        // Another one may still be to come.
        let question = Question { base: "m".into(), gateway: Some("gw-1".into()), stores: stores.to_vec() };
        assert!(!question.is_answered(&heard));
    }

    #[test]
    fn sizes_are_said_in_megabytes() {
        assert_eq!(size(0, Some(5)), "", "not known");
        assert_eq!(size(99_999, None), ", 0.0 MB");
        assert_eq!(size(5_250_000, Some(99_999)), ", 5.2 MB, hardly growing");
        assert_eq!(size(5_250_000, Some(1_250_000)), ", 5.2 MB, 1.2 MB more a day");
    }

    #[test]
    fn all_is_well() {
        let ack = format!(
            r#"{{"schema":1,"store":"main","generation":"g","epochs":[{{"epoch":"{EPOCH}","through":1090,"have":[[1092,1099]]}}]}}"#
        );
        let heard = heard(&[
            ("m/gw-1/status", "online"),
            ("m/gw-1/health", &health("2026-11-22T07:59:30Z", OPEN)),
            ("m/gw-1/ack/main", &ack),
            ("m/_stores/main/status", "online"),
            ("m/_stores/main/health", r#"{"database":"ok","bytes":123456789,"bytes_a_day":-250000}"#),
            ("m/gw-1/e1/state", "{}"),
            ("other/gw-1/status", "offline"),
        ]);
        let stores = ["main".to_owned()];
        let view = view(&heard, &stores);
        assert_eq!(view.problems, Vec::<String>::new());
        let expected = [
            "gateway gw-1: online, started 2026-11-22T06:00:00Z; told 30 s ago:",
            "  PORT  STATE               LAST TELEGRAM",
            "  p1    open at 115200 8N1  1 s ago",
            "  METER  STATE    LAST READING",
            "  bus/7  is read  9 min ago",
            "  journal: 3 messages wait, 0 lost",
            "  input: 5 rejected (crc 1, fragment 4), 2 suspect readings, 1 unknown lines",
            "  store main: online, 3 messages behind, 123.4 MB, 0.2 MB less a day",
        ];
        assert_eq!(view.lines(), expected);
        let json = view.json();
        assert_eq!(json["health"]["rejected"]["fragment"], 4);
        let store = json!({
            "store": "main", "status": "online", "database": "ok", "behind": 3, "bytes": 123_456_789, "bytes_a_day": -250_000,
        });
        assert_eq!(json["stores"], json!([store]));
        let question = Question { base: "m".into(), gateway: Some("gw-1".into()), stores: stores.to_vec() };
        assert!(question.is_answered(&heard));
    }

    #[test]
    fn whatever_is_wrong_is_named() {
        let lost = r#""p1":{"state":"there is no /dev/x","ok":false,"telegram_at":null},
            "p2":{"state":"open","ok":true,"telegram_at":null}"#;
        let mut health = health("2026-11-22T07:00:00Z", lost);
        for (key, value) in [("lost", 7), ("unwritten", 5)] {
            health = health.replace(&format!("\"{key}\":0"), &format!("\"{key}\":{value}"));
        }
        let health = health.replace("\"is read\",\"ok\":true", "\"does not answer\",\"ok\":false");
        let heard = heard(&[
            ("m/gw-1/status", "online"),
            ("m/gw-1/health", &health),
            ("m/_stores/main/status", "offline"),
            ("m/_stores/busy/status", "online"),
        ]);
        let stores = ["main", "busy", "typo"].map(str::to_owned);
        let view = view(&heard, &stores);
        for part in [
            "has told nothing for 60 min",
            "port p1: there is no /dev/x",
            "port p2: no telegram since the start 60 min before",
            "meter bus/7: does not answer",
            "7 messages are lost",
            "5 messages wait in memory",
            "store main: is offline",
            "store main: is 1100 messages behind",
            "store busy: is 1100 messages behind",
            "store typo: was never at this broker",
        ] {
            let inside = view.problems.iter().filter(|problem| problem.contains(part)).count();
            assert!(inside == 1, "{part}: {:?}", view.problems);
        }
        assert_eq!(view.problems.len(), 11, "{:?}", view.problems);
    }

    #[test]
    fn what_cannot_be_known_is_said() {
        let of = |messages: &[(&str, &str)]| {
            let heard = heard(messages);
            view(&heard, &[]).problems
        };
        for (messages, part) in [
            (&[("m/gw-1/status", "offline")][..], "is offline: is the daemon running there"),
            (&[("m/gw-1/status", "online")], "has told nothing of itself"),
            (
                &[("m/gw-1/ack/main", r#"{"schema":1,"store":"main","generation":"","epochs":[]}"#)],
                "knows nothing of it",
            ),
            (&[("m/gw-1/status", "online"), ("m/gw-1/health", "\u{1b}[2J")], "is it of another version?"),
        ] {
            let problems = of(messages);
            assert!(problems.len() == 1 && problems[0].contains(part), "{part}: {problems:?}");
        }
        let heard = heard(&[("m/gw-1/status", "\u{1b}[2J")]);
        let lines = view(&heard, &[]).lines();
        assert!(!lines.join("").contains('\u{1b}'), "{lines:?}");
        assert_eq!(lines.last().unwrap(), "  stores: none is listed; the promise ends at the broker");
    }

    #[test]
    fn times_are_said_as_people_do() {
        for (seconds, expected) in [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (864_000, "10 days")] {
            assert_eq!(words(Duration::from_secs(seconds)), expected);
        }
    }
}
