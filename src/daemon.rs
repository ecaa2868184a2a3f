//! The daemon: which roles a configuration asks for, started together and stopped in order.
//!
//! Enters: a [`Config`]. Leaves: a gateway, a store, an embedded broker, each where asked for. Stopping
//! goes with the data: ports, gateway, store.

use std::{path::PathBuf, sync::Arc, time::Duration};

use crc::{CRC_32_ISCSI, Crc};
use tokio::{
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
};

use crate::{
    bus, capture,
    collect::{self, Gathered, Patience, Source},
    config::{self, Address, BrokerUrl, Config},
    journal::JournalError,
    mqtt::{
        broker::{self, BrokerError},
        gateway::{self, Gateway, Summary},
        link::{self, LinkError},
    },
    p1::Key,
    plausible::Judge,
    port::{self, KeyError},
    pulse::{Pulse, Pulses},
    reading::Report,
    store,
    tap::Tap,
};

/// How the roles are to behave.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// The gateway speaks for its meters now. Otherwise it only brings in what a capture holds.
    pub live: bool,
    /// At the end: wait until everything is confirmed, or nothing was for this long.
    pub drain: Option<Duration>,
    /// Where the embedded broker would listen something else listens: it is the broker then.
    pub share_broker: bool,
}

/// Why nothing could be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The gateway has no name.
    #[error("this board has no serial number to make a gateway id of: name the gateway with [gateway] id = \"...\"")]
    NoId,
    /// A file that `[mqtt]` names cannot be used.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A `key-file` cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The journal cannot be opened.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// What was started.
#[derive(Debug)]
pub struct Daemon {
    /// The gateway's id.
    pub gateway_id: Arc<str>,
    /// Where the broker is, as soon as that is known.
    pub broker: watch::Receiver<Option<BrokerUrl>>,
    input: Option<mpsc::Sender<Gathered>>,
    gateway: Option<JoinHandle<Summary>>,
    store: Option<JoinHandle<()>>,
    stop_store: watch::Sender<bool>,
    ports: JoinSet<()>,
    pulses: Pulses,
    /// Whether it waits at its end until everything is confirmed.
    drains: bool,
    /// By port.
    keys: Vec<Option<Key>>,
    /// The last reports before this start.
    recent: Vec<Report<String>>,
    taps: Vec<Tap>,
}

/// How long a task may take from one turn to the next: an SD card that tidies itself up takes some seconds, so this is far
/// from what can happen to a task that is well.
const PAUSE: Duration = Duration::from_secs(60);
/// The same for the store, which may have to search its database.
const STORE_PAUSE: Duration = Duration::from_secs(120);
/// How long each may take to stop: together less than the five seconds in which a stop is done. What is not committed or
/// synced then comes again.
const PORTS_STOP: Duration = Duration::from_millis(500);
const GATEWAY_STOP: Duration = Duration::from_secs(2);
const STORE_STOP: Duration = Duration::from_secs(2);
/// The same at the end of a replay: everything is confirmed by then, and the database is tidied up for whoever reads it next.
const STORE_STOP_AFTER_DRAIN: Duration = Duration::from_secs(8);

impl StartError {
    /// Whether the configuration is at fault, rather than the state of the machine.
    pub fn is_configuration(&self) -> bool {
        !matches!(self, Self::Journal(_))
    }
}

impl Daemon {
    /// Starts what `config` asks for: the gateway if there are ports or `manner` brings its own input,
    /// the store if there is `[store]`, the broker if there is no `[mqtt] url`. The ports are not read
    /// yet: see [`Daemon::read_ports`] and [`Daemon::input`].
    pub async fn start(config: &Config, manner: Manner) -> Result<Self, StartError> {
        link::check(&config.mqtt)?;
        let key = |port: &config::P1| port.key_file.as_deref().map(port::read_key).transpose();
        let keys = config.p1.iter().map(key).collect::<Result<_, _>>()?;
        let gateway_id = gateway_id(config).ok_or(StartError::NoId)?;
        let mut pulses = Pulses::default();
        let mut gateway = if !config.has_ports() && manner.live {
            None
        } else {
            Some(Gateway::open(gateway::Settings {
                id: gateway_id.clone(),
                mqtt: config.mqtt.clone(),
                journal: config.journal.clone(),
                stores: config.stores(),
                live: manner.live,
                drain: manner.drain,
                pulse: pulses.add(Pulse::new("gateway", PAUSE)),
            })?)
        };
        let (broker_out, broker) = watch::channel(config.mqtt.url.clone());
        if config.mqtt.url.is_none() {
            start_broker(config, manner.share_broker, broker_out).await;
        }
        let (stop_store, stop) = watch::channel(false);
        let store = config.store.clone().map(|store| {
            let pulse = pulses.add(Pulse::new(format!("store {}", store.id.as_str()), STORE_PAUSE));
            let settings = store::Settings { store, mqtt: config.mqtt.clone(), pulse };
            tokio::spawn(store::run(settings, broker.clone(), stop))
        });
        let (input, gathered) = mpsc::channel(256);
        let recent = gateway.as_mut().map(Gateway::recent).unwrap_or_default();
        let gateway = gateway.map(|gateway| tokio::spawn(gateway.run(gathered, broker.clone())));
        Ok(Self {
            gateway_id,
            broker,
            input: Some(input),
            gateway,
            store,
            stop_store,
            ports: JoinSet::new(),
            pulses,
            drains: manner.drain.is_some(),
            keys,
            recent,
            taps: Vec::new(),
        })
    }

    /// What is known of the registers behind a port: what was believed when the gateway stopped.
    pub fn judge(&self, config: &Config, port: &config::P1) -> Judge {
        let mut judge = Judge::new(port.limit);
        for report in &self.recent {
            judge.learn(report);
            // Messages do not say which port they came from.
            if config.p1.len() == 1 {
                judge.learn_place(report);
            }
        }
        judge
    }

    /// Where a port's bytes go: to the gateway.
    pub fn input(&self) -> Option<mpsc::Sender<Gathered>> {
        self.input.clone()
    }

    /// Reads the ports of `config`.
    pub fn read_ports(&mut self, config: &Config) {
        let Some(input) = self.input() else { return };
        // Ports are told of first: it is them that an installer looks for.
        let roles = std::mem::take(&mut self.pulses);
        for (index, port) in config.p1.iter().enumerate() {
            let source = Source {
                name: port.name.as_str().into(),
                address: port.port.clone(),
                dialect: port.dialect,
                key: self.keys.get(index).cloned().flatten(),
                judge: self.judge(config, port),
                gateway: self.gateway_id.clone(),
                patience: Patience::default(),
                pulse: self.pulses.add(Pulse::new(port.name.as_str(), PAUSE)),
                tap: self.tap(port.name.as_str(), capture::Wire::P1, &port.port),
            };
            self.ports.spawn(collect::collect(source, input.clone()));
        }
        for bus in &config.mbus {
            let mut judge = Judge::default();
            judge.set_live(true);
            for report in &self.recent {
                judge.learn(report);
            }
            let source = bus::Source {
                bus: bus.clone(),
                judge,
                recent: self.recent.clone(),
                gateway: self.gateway_id.clone(),
                clock: config.gateway.clock,
                memory: config.journal.path.clone(),
                quiet: bus::QUIET,
                pulse: self.pulses.add(Pulse::new(bus.name.as_str(), PAUSE)),
                tap: self.tap(bus.name.as_str(), capture::Wire::Mbus, &bus.port),
            };
            self.ports.spawn(bus::read(source, input.clone()));
        }
        self.pulses.append(roles);
    }

    fn tap(&mut self, name: &str, wire: capture::Wire, address: &Address) -> Tap {
        let tap = Tap::new(name, wire, &address.to_string());
        self.taps.push(tap.clone());
        tap
    }

    /// The taps of the ports, once these are read.
    pub fn taps(&self) -> &[Tap] {
        &self.taps
    }

    /// The signs of life of all that was started, the ports among them once they are read.
    pub fn pulses(&self) -> &Pulses {
        &self.pulses
    }

    /// Stops in the order of the data: ports, gateway (which sends or waits as it was told, and syncs its journal), store
    /// (which commits). Without a drain this takes less than five seconds, whatever hangs.
    pub async fn stop(mut self) -> Summary {
        // One that is stuck in its driver does not hold up the others.
        if tokio::time::timeout(PORTS_STOP, self.ports.shutdown()).await.is_err() {
            tracing::error!("a port did not stop in time");
        }
        self.input = None;
        let summary = match self.gateway.take() {
            Some(gateway) if self.drains => gateway.await.unwrap_or_default(),
            Some(gateway) => match tokio::time::timeout(GATEWAY_STOP, gateway).await {
                Ok(summary) => summary.unwrap_or_default(),
                Err(_) => {
                    tracing::error!("the gateway did not stop in time: does the disk of the journal hang?");
                    Summary::default()
                }
            },
            None => Summary::default(),
        };
        let _ = self.stop_store.send(true);
        let patience = if self.drains { STORE_STOP_AFTER_DRAIN } else { STORE_STOP };
        if let Some(store) = self.store.take()
            && tokio::time::timeout(patience, store).await.is_err()
        {
            tracing::error!("the store did not stop in time; what it had not committed comes again");
        }
        summary
    }
}

/// Starts the embedded broker, trying again while its port is taken.
async fn start_broker(config: &Config, share: bool, found: watch::Sender<Option<BrokerUrl>>) {
    let listen = config.mqtt.listen;
    let start = move || async move { tokio::task::spawn_blocking(move || broker::start(listen)).await };
    let url = |at| Some(BrokerUrl::of_listener(at));
    match start().await {
        Ok(Ok(at)) => {
            found.send_replace(url(at));
        }
        Ok(Err(BrokerError::Taken(at))) if share => {
            tracing::info!("using the broker that already listens on {at}");
            found.send_replace(url(at));
        }
        failed => {
            if let Ok(Err(error)) = failed {
                tracing::error!("{error}. Until then the journal keeps everything.");
            }
            tokio::spawn(async move {
                while !found.is_closed() {
                    tokio::time::sleep(Duration::from_secs(5)).await;
                    if let Ok(Ok(at)) = start().await {
                        tracing::info!("the embedded broker listens on {at}");
                        found.send_replace(url(at));
                        return;
                    }
                }
            });
        }
    }
}

const ID: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// The configured id, or `gw-` and the end of what is unique to this board. Never a constant: SD cards
/// are cloned.
pub fn gateway_id(config: &Config) -> Option<Arc<str>> {
    if let Some(id) = &config.gateway.id {
        return Some(id.as_str().into());
    }
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(path).ok()?;
        let text: String = text.chars().filter(char::is_ascii_alphanumeric).collect();
        // All zeros is what boards without a number say.
        (text.len() >= 8 && text.chars().any(|digit| digit != '0')).then_some(text)
    };
    let network = || {
        let mut devices: Vec<PathBuf> =
            std::fs::read_dir("/sys/class/net").ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
        devices.sort();
        // Only what is soldered on: bridges and tunnels change.
        devices
            .into_iter()
            .filter(|device| device.join("device").exists())
            .find_map(|device| read(device.join("address")))
    };
    let serial = read(PathBuf::from("/sys/firmware/devicetree/base/serial-number"))
        .or_else(network)
        // Confidential as it is: only a checksum of it goes out.
        .or_else(|| read(PathBuf::from("/etc/machine-id")).map(|id| format!("{:08x}", ID.checksum(id.as_bytes()))))?;
    let end: String = serial.chars().skip(serial.len().saturating_sub(8)).collect();
    Some(format!("gw-{}", end.to_ascii_lowercase()).into())
}
