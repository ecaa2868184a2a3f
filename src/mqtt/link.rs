//! One connection to a broker: kept up, and exact about what the broker took.
//!
//! Enters: [`Command`]s. Leaves: [`Event`]s. Every publish with a tag ends in exactly one of
//! [`Event::Published`] (the broker's PUBACK came) or [`Event::Dropped`] (the connection broke first).
//! Commands wait while there is no connection.
//!
//! The client's event loop is polled by one task that also enqueues, and enqueues only while the
//! connection stands: so the order of its `Outgoing` events is the order of the commands, and what is
//! underway when a connection breaks is known. (rumqttc 0.25.1 drops both what is in flight and what
//! is queued when a session is not resumed.)

use std::{
    collections::{HashMap, VecDeque},
    path::Path,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event as Notice, EventLoop, LastWill, MqttOptions, Outgoing,
    Packet, QoS, SubscribeFilter, TlsConfiguration, Transport,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::sync::mpsc;

use super::MAX_PACKET;
use crate::config::{self, BrokerUrl};

/// Publishes underway to the broker at once.
const INFLIGHT: u16 = 100;

/// Commands that wait for the connection.
pub(super) const ROOM: usize = 64;

/// Before the first attempt to connect again; doubled for each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// A connection that stood this long was a good one.
const STEADY: Duration = Duration::from_secs(10);

/// Tells a publish from others.
pub type Tag = u64;

/// What to do on the connection.
#[derive(Debug)]
pub enum Command {
    /// Publish with QoS 1.
    Publish {
        /// The topic.
        topic: String,
        /// The payload.
        payload: String,
        /// Whether the broker keeps it for those who subscribe later.
        retain: bool,
        /// By which its end is told; None: nobody asks.
        tag: Option<Tag>,
    },
    /// Subscribe with QoS 1.
    Subscribe(Vec<String>),
    /// Close the connection in order, without last will, once everything before is on its way.
    Close,
}

/// What happened on the connection.
#[derive(Debug)]
pub enum Event {
    /// The broker accepted the connection, with a clean session: subscribe, and say who is there.
    Connected,
    /// The connection broke, or could not be made.
    Disconnected {
        /// Why, and what to do.
        reason: String,
    },
    /// The broker took this publish.
    Published(Tag),
    /// The connection broke before the broker took this publish.
    Dropped(Tag),
    /// A message arrived.
    Message {
        /// The topic.
        topic: String,
        /// The payload.
        payload: Bytes,
        /// Whether the broker had kept it: it may be old.
        retained: bool,
    },
}

/// A retained message that the broker publishes when the connection breaks.
#[derive(Debug, Clone)]
pub struct Will {
    /// The topic.
    pub topic: String,
    /// The payload.
    pub payload: String,
}

/// Why a connection cannot even be tried.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct LinkError(String);

/// Both ends of a connection's channels.
#[derive(Debug)]
pub struct Link {
    /// Where commands go.
    pub commands: mpsc::Sender<Command>,
    /// Where events come from. They must be taken: a connection whose events are not taken stands still.
    pub events: mpsc::Receiver<Event>,
}

/// Whether the files that `settings` name can be used: password, certificates, key.
pub fn check(settings: &config::Mqtt) -> Result<(), LinkError> {
    password(settings)?;
    if settings.url.as_ref().is_some_and(|url| url.tls) {
        tls(settings)?;
    }
    Ok(())
}

/// Starts a connection to `url` under the name `client_id`, which must differ between processes. Who only listens has no will.
pub fn start(url: &BrokerUrl, client_id: &str, settings: &config::Mqtt, will: Option<Will>) -> Result<Link, LinkError> {
    let mut options = MqttOptions::new(client_id, url.host.clone(), url.port);
    options.set_keep_alive(Duration::from_secs(30));
    options.set_clean_session(true);
    options.set_inflight(INFLIGHT);
    // More is taken than sent: a packet that is too large breaks the connection, and one that the broker
    // retains would break it again each time. The store keeps such a message as refused instead.
    options.set_max_packet_size(32 * MAX_PACKET, MAX_PACKET);
    if let Some(will) = will {
        options.set_last_will(LastWill::new(will.topic, will.payload, QoS::AtLeastOnce, true));
    }
    if let Some(user) = &settings.user {
        options.set_credentials(user, password(settings)?);
    }
    if url.tls {
        options.set_transport(Transport::tls_with_config(tls(settings)?));
    }
    let (client, event_loop) = AsyncClient::new(options, usize::from(INFLIGHT));
    let (commands, commands_in) = mpsc::channel(ROOM);
    let (events_out, events) = mpsc::channel(256);
    let broker = url.to_string();
    tokio::spawn(async move {
        // Ends when either channel closes.
        let _ = run(client, event_loop, commands_in, events_out, &broker).await;
    });
    Ok(Link { commands, events })
}

fn cannot_read(what: &str, path: &Path, error: &dyn std::fmt::Display) -> LinkError {
    LinkError(format!("{what} {} cannot be used: {error}", path.display()))
}

fn password(settings: &config::Mqtt) -> Result<String, LinkError> {
    let Some(path) = &settings.password_file else { return Ok(String::new()) };
    let text = std::fs::read_to_string(path).map_err(|error| cannot_read("[mqtt] password-file", path, &error))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn tls(settings: &config::Mqtt) -> Result<TlsConfiguration, LinkError> {
    let certificates = |what: &str, path: &Path| -> Result<Vec<CertificateDer<'static>>, LinkError> {
        let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
        read().map_err(|error| cannot_read(what, path, &error))
    };
    let mut roots = rustls::RootCertStore::empty();
    match &settings.ca {
        Some(path) => {
            for certificate in certificates("[mqtt] ca", path)? {
                roots.add(certificate).map_err(|error| cannot_read("[mqtt] ca", path, &error))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| LinkError(error.to_string()))?
        .with_root_certificates(roots);
    let config = match (&settings.cert, &settings.key) {
        (Some(cert), Some(key)) => {
            let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| cannot_read("[mqtt] key", key, &error))?;
            builder
                .with_client_auth_cert(certificates("[mqtt] cert", cert)?, secret)
                .map_err(|error| cannot_read("[mqtt] cert", cert, &error))?
        }
        _ => builder.with_no_client_auth(),
    };
    Ok(TlsConfiguration::Rustls(Arc::new(config)))
}

/// One of the channels' other ends is gone.
struct Closed;

async fn run(
    client: AsyncClient,
    mut event_loop: EventLoop,
    mut commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<Event>,
    broker: &str,
) -> Result<(), Closed> {
    let say = async |event| events.send(event).await.map_err(|_| Closed);
    let mut connected = false;
    // What the client took but has not yet put on the wire, in order; then what the broker has to confirm.
    let mut queued: VecDeque<Option<Tag>> = VecDeque::new();
    let mut underway: HashMap<u16, Tag> = HashMap::new();
    let mut pause = FIRST_PAUSE;
    let mut since = Instant::now();
    loop {
        let notice = {
            // One poll, never cancelled: the client's poll may not be dropped half-way.
            let mut poll = pin!(event_loop.poll());
            loop {
                let room = connected && queued.len() < usize::from(INFLIGHT);
                tokio::select! {
                    biased;
                    notice = &mut poll => break notice,
                    command = commands.recv(), if room => match command.ok_or(Closed)? {
                        Command::Publish { topic, payload, retain, tag } => {
                            // There is room, and the topics are ours: this cannot fail.
                            if client.try_publish(topic, QoS::AtLeastOnce, retain, payload).is_ok() {
                                queued.push_back(tag);
                            } else if let Some(tag) = tag {
                                say(Event::Dropped(tag)).await?;
                            }
                        }
                        Command::Subscribe(topics) => {
                            let filters = topics.into_iter().map(|topic| SubscribeFilter::new(topic, QoS::AtLeastOnce));
                            if let Err(error) = client.try_subscribe_many(filters) {
                                tracing::error!("nothing can be heard from the broker {broker}: {error}");
                            }
                        }
                        Command::Close => {
                            let _ = client.try_disconnect();
                        }
                    },
                    () = events.closed() => return Err(Closed),
                }
            }
        };
        match notice {
            Ok(Notice::Incoming(Packet::ConnAck(_))) => {
                connected = true;
                since = Instant::now();
                say(Event::Connected).await?;
            }
            Ok(Notice::Outgoing(Outgoing::Publish(packet))) => {
                if let Some(Some(tag)) = queued.pop_front() {
                    underway.insert(packet, tag);
                }
            }
            Ok(Notice::Incoming(Packet::PubAck(ack))) => {
                if let Some(tag) = underway.remove(&ack.pkid) {
                    say(Event::Published(tag)).await?;
                }
            }
            Ok(Notice::Incoming(Packet::Publish(publish))) => {
                let (topic, retained) = (publish.topic, publish.retain);
                say(Event::Message { topic, payload: publish.payload, retained }).await?;
            }
            Ok(_) => {}
            Err(error) => {
                // A connection that breaks as soon as it is made must not be made twice a second for ever.
                if connected && since.elapsed() >= STEADY {
                    pause = FIRST_PAUSE;
                }
                connected = false;
                let dropped: Vec<Tag> =
                    queued.drain(..).flatten().chain(underway.drain().map(|(_, tag)| tag)).collect();
                for tag in dropped {
                    say(Event::Dropped(tag)).await?;
                }
                say(Event::Disconnected { reason: explain(broker, &error) }).await?;
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = events.closed() => return Err(Closed),
                }
                pause = (pause * 2).min(Duration::from_secs(15));
            }
        }
    }
}

fn explain(broker: &str, error: &ConnectionError) -> String {
    match error {
        ConnectionError::ConnectionRefused(
            ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized,
        ) => {
            format!("the broker {broker} refuses the user: check [mqtt] user and password-file")
        }
        ConnectionError::ConnectionRefused(code) => format!("the broker {broker} refuses the connection: {code:?}"),
        ConnectionError::Io(error) => {
            format!("the broker {broker} cannot be reached ({error}): is it running, and is [mqtt] url right?")
        }
        ConnectionError::Tls(error) => format!("the broker {broker} cannot be trusted ({error}): check [mqtt] ca"),
        ConnectionError::NetworkTimeout => {
            format!("the broker {broker} does not answer: is it running, and is [mqtt] url right?")
        }
        other => format!("the connection to the broker {broker} was lost ({other})"),
    }
}
