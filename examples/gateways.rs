//! A thousand virtual gateways at a broker, for the script that measures stores (`tests/postgres-figures`).
//!
//!     gateways send PORT GATEWAYS EACH [discarded]    EACH messages of each of GATEWAYS, until a store has confirmed all
//!     gateways discard PORT NAME                      takes what is sent, one of several that share it, and throws it away
//!
//! `send` speaks the protocol as gateways do: each message once and live, then through the backlog whatever no store has
//! confirmed for ten seconds. Its messages are those of electricity meters at ten seconds. At most 40,000 are unconfirmed: forty of a gateway, where
//! a real one has up to a thousand. With `discarded` nobody confirms; what the discarding subscribers say that they took is counted instead. The last line
//! is the messages' count and the seconds that they took from the first to the last confirmation.

use std::{
    collections::{BTreeMap, HashMap},
    error::Error,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use meterkast::{
    delivery::{Ack, Epoch, Ranges, topic},
    moment::Moment,
    p1,
    payload::{self, Envelope},
    reading::Report,
    simulate::Household,
};
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS};

type Failed = Box<dyn Error + Send + Sync>;

/// Connections that the gateways share: a broker's limit of file descriptors is not what is measured.
const CONNECTIONS: usize = 4;
/// Most messages that are sent and not confirmed.
const WINDOW: u64 = 40_000;
/// Without a word of a store for so long what it has not confirmed is sent again.
const PATIENCE: Duration = Duration::from_secs(10);
/// Different households; the others are copies under other names.
const HOUSEHOLDS: u64 = 20;
/// Where discarding subscribers say how much they took.
const DISCARDED: &str = "discarded";

#[tokio::main]
async fn main() -> Result<(), Failed> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["send", port, gateways, each] => send(port.parse()?, gateways.parse()?, each.parse()?, false).await,
        ["send", port, gateways, each, "discarded"] => {
            send(port.parse()?, gateways.parse()?, each.parse()?, true).await
        }
        ["discard", port, name] => discard(port.parse()?, name).await,
        _ => Err("send PORT GATEWAYS EACH [discarded], or discard PORT NAME".into()),
    }
}

fn connect(port: u16, name: &str) -> (AsyncClient, EventLoop) {
    let mut options = MqttOptions::new(name, "127.0.0.1", port);
    options.set_inflight(1000).set_max_packet_size(1 << 20, 1 << 20);
    AsyncClient::new(options, 1000)
}

async fn discard(port: u16, name: &str) -> Result<(), Failed> {
    let (client, mut events) = connect(port, &format!("discard-{name}"));
    client.subscribe("$share/discard/meterkast/+/+/telegram", QoS::AtLeastOnce).await?;
    let mut taken: u64 = 0;
    let mut say = tokio::time::interval(Duration::from_millis(50));
    loop {
        tokio::select! {
            event = events.poll() => {
                if let Event::Incoming(Packet::Publish(_)) = event? {
                    taken += 1;
                }
            }
            // Full for a moment: said at the next turn.
            _ = say.tick() => {
                let _ = client.try_publish(format!("{DISCARDED}/{name}"), QoS::AtMostOnce, true, taken.to_string());
            }
        }
    }
}

/// What a virtual gateway sent, and what of it is confirmed.
struct Gateway {
    name: String,
    meter: String,
    epoch: Epoch,
    bodies: Vec<Arc<str>>,
    through: u64,
    have: Ranges,
}

impl Gateway {
    fn message(&self, seq: u64) -> String {
        let (gateway, prev) = (self.name.clone(), seq - 1);
        let envelope = Envelope { gateway, epoch: self.epoch, seq, prev, first: 1, missing: Ranges::new() };
        let place = usize::try_from(seq - 1).unwrap_or_default();
        payload::message(&envelope, self.bodies.get(place).map_or("", |body| body))
    }

    fn confirmed(&self) -> u64 {
        self.through + self.have.count()
    }

    fn topic(&self, leaf: &str) -> String {
        topic::of_meter("meterkast", &self.name, &self.meter, leaf)
    }
}

/// The messages of a household's electricity meter at ten seconds, under another name.
fn bodies(households: &mut HashMap<u64, Vec<(Report<String>, Moment)>>, number: u64, each: usize) -> Vec<Arc<str>> {
    let reports = households.entry(number % HOUSEHOLDS).or_insert_with(|| {
        let start =
            Moment::from_millis(1_795_287_600_000, 60).unwrap_or_else(|| Moment::utc(jiff::Timestamp::UNIX_EPOCH));
        let mut household = Household::new(number % HOUSEHOLDS, start);
        let mut reports = Vec::with_capacity(each);
        for step in 1..=each as i64 {
            let Some(now) = Moment::from_millis(start.millis() + 10_000 * step, 60) else { break };
            household.advance(now);
            let mut framer = p1::Framer::new();
            framer.push(&household.telegram());
            let decoded = framer.poll().and_then(|piece| p1::read(piece, None).ok());
            let Some(report) = decoded.and_then(|decoded| decoded.reports.into_iter().next()) else { continue };
            reports.push((report.rename(|_| String::new()), now));
        }
        reports
    });
    let named = |(report, now): &(Report<String>, Moment)| {
        let report = Report { meter: format!("E{number:016}"), ..report.clone() };
        payload::body(&report, *now).into()
    };
    reports.iter().map(named).collect()
}

async fn send(port: u16, gateways: u64, each: usize, discarded: bool) -> Result<(), Failed> {
    let mut households = HashMap::new();
    // Another run is another epoch.
    let run = u128::from(std::process::id()) << 64 | jiff::Timestamp::now().as_millisecond().unsigned_abs() as u128;
    let mut all: Vec<Gateway> = Vec::new();
    for number in 0..gateways {
        let bodies = bodies(&mut households, number, each);
        if bodies.len() != each {
            return Err("the household did not send what it should".into());
        }
        let (name, meter, epoch) =
            (format!("gw-{number}"), format!("E{number:016}"), Epoch::from_bits(run << 16 | u128::from(number)));
        all.push(Gateway { name, meter, epoch, bodies, through: 0, have: Ranges::new() });
    }
    let total = gateways * each as u64;
    let confirmed = Arc::new(AtomicU64::new(0));
    let heard = Arc::new(Mutex::new(Instant::now()));
    let all = Arc::new(Mutex::new(all));

    let (listener, mut events) = connect(port, "gateways-hear");
    listener.subscribe(if discarded { "discarded/+" } else { "meterkast/+/ack/+" }, QoS::AtLeastOnce).await?;
    let hearing = {
        let (confirmed, heard, all) = (confirmed.clone(), heard.clone(), all.clone());
        tokio::spawn(async move {
            let mut taken: BTreeMap<String, u64> = BTreeMap::new();
            loop {
                let event = events.poll().await?;
                let Event::Incoming(Packet::Publish(publish)) = event else { continue };
                if let Ok(mut heard) = heard.lock() {
                    *heard = Instant::now();
                }
                if discarded {
                    let count = String::from_utf8_lossy(&publish.payload).parse().unwrap_or(0);
                    taken.insert(publish.topic.clone(), count);
                    confirmed.store(taken.values().sum(), Ordering::Relaxed);
                    continue;
                }
                let number =
                    publish.topic.split('/').nth(1).and_then(|name| name.strip_prefix("gw-")?.parse::<usize>().ok());
                let (Some(number), Ok(ack)) = (number, Ack::from_json(&publish.payload)) else { continue };
                let Ok(mut all) = all.lock() else { break };
                let Some(gateway) = all.get_mut(number) else { continue };
                if let Some(epoch) = ack.epochs.iter().find(|epoch| epoch.epoch == gateway.epoch) {
                    let before = gateway.confirmed();
                    if epoch.through + epoch.have.count() > before {
                        (gateway.through, gateway.have) = (epoch.through, epoch.have.clone());
                        confirmed.fetch_add(gateway.confirmed() - before, Ordering::Relaxed);
                    }
                }
            }
            Ok::<(), Failed>(())
        })
    };
    let mut connections = Vec::new();
    for connection in 0..CONNECTIONS {
        let (client, mut events) = connect(port, &format!("gateways-{connection}"));
        tokio::spawn(async move { while events.poll().await.is_ok() {} });
        connections.push(client);
    }
    // The subscription, and what is retained, come first.
    tokio::time::sleep(Duration::from_secs(1)).await;
    // What was taken before this run does not count.
    let (before, total) = match discarded {
        true => (confirmed.load(Ordering::Relaxed), total + confirmed.load(Ordering::Relaxed)),
        false => (0, total),
    };

    let begin = Instant::now();
    let sent = Arc::new(AtomicU64::new(before));
    let mut sending = Vec::new();
    for (place, client) in connections.iter().cloned().enumerate() {
        let (all, sent, confirmed) = (all.clone(), sent.clone(), confirmed.clone());
        sending.push(tokio::spawn(async move {
            for seq in 1..=each as u64 {
                for number in (place..gateways as usize).step_by(CONNECTIONS) {
                    while sent.load(Ordering::Relaxed) >= confirmed.load(Ordering::Relaxed) + WINDOW {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    sent.fetch_add(1, Ordering::Relaxed);
                    let message = match all.lock() {
                        Ok(all) => all.get(number).map(|gateway| (gateway.topic("telegram"), gateway.message(seq))),
                        Err(_) => None,
                    };
                    let Some((topic, message)) = message else { continue };
                    client.publish(topic, QoS::AtLeastOnce, false, message).await?;
                }
            }
            Ok::<(), Failed>(())
        }));
    }
    let mut again = 0;
    while confirmed.load(Ordering::Relaxed) < total {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let silent = heard.lock().is_ok_and(|heard| heard.elapsed() > PATIENCE);
        if silent && !discarded {
            // The window stands still when what is in it is lost, so this may come before all was sent once.
            let messages: Vec<(String, String)> = match all.lock() {
                Ok(all) => all.iter().flat_map(unconfirmed).take(WINDOW as usize).collect(),
                Err(_) => Vec::new(),
            };
            again += messages.len();
            for ((topic, message), client) in messages.into_iter().zip(connections.iter().cycle()) {
                client.publish(topic, QoS::AtLeastOnce, false, message).await?;
            }
            if let Ok(mut heard) = heard.lock() {
                *heard = Instant::now();
            }
        }
        if hearing.is_finished() {
            return Err("the broker closed the connection".into());
        }
    }
    let seconds = begin.elapsed();
    for sending in sending {
        sending.await??;
    }
    eprintln!("{again} sent again");
    #[expect(clippy::print_stdout, reason = "for the script")]
    {
        println!("{} {}.{:03}", total - before, seconds.as_secs(), seconds.subsec_millis());
    }
    Ok(())
}

/// What no store has confirmed, as its gateway's backlog.
fn unconfirmed(gateway: &Gateway) -> impl Iterator<Item = (String, String)> + '_ {
    let missing = (gateway.through + 1..=gateway.bodies.len() as u64).filter(|seq| !gateway.have.contains(*seq));
    missing.map(|seq| (gateway.topic("backlog"), gateway.message(seq)))
}
