//! One connection to a broker: kept up, and exact about what the broker took.
//!
//! Enters: [`Command`]s. Leaves: [`Event`]s. Every publish with a tag ends in exactly one of
//! [`Event::Published`] (the broker's PUBACK came) or [`Event::Dropped`] (the connection broke first, or
//! the packet is larger than the broker takes).
//! Commands wait while there is no connection.
//!
//! The client's event loop is polled by one task that also enqueues, and enqueues only while the
//! connection stands: so the order of its `Outgoing` events is the order of the commands, and what is
//! underway when a connection breaks is known. Each connection has an event loop of its own, because
//! that of rumqttc 0.25.1 carries things over: after a collision of packet ids it never sends again, a
//! session that the broker claims to have resumed is filled with what was given up here, and events of
//! the old connection come out of the new one.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    error::Error,
    io,
    path::Path,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event as Notice, LastWill, MqttOptions, Outgoing, Packet, QoS,
    StateError, SubscribeFilter, TlsConfiguration, Transport,
};
use rustls::{
    AlertDescription, CertificateError,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::sync::mpsc;

use super::MAX_PACKET;
use crate::config::{self, BrokerUrl};

/// Publishes underway to the broker at once.
const INFLIGHT: u16 = 100;

/// Commands that wait for the connection.
pub(super) const ROOM: usize = 64;

/// Before the first attempt to connect again; doubled for each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// How long a broker may leave publishes without any confirmation before the connection is given up.
const UNCONFIRMED: Duration = Duration::from_secs(60);
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
    /// Publish with QoS 0: the broker confirms nothing. For the embedded broker and what stores acknowledge. It would
    /// lose nothing less by confirming, and its TCP would hold back what the stores say (Nagle) until the system here
    /// acknowledges those confirmations, for 40 ms at the end of each batch.
    Cast {
        /// The topic.
        topic: String,
        /// The payload.
        payload: String,
    },
    /// Subscribe with QoS 1.
    Subscribe(Vec<String>),
    /// Have what comes under these topics go to nobody here.
    Unsubscribe(Vec<String>),
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
    /// The connection broke before the broker took this publish, or the broker does not take packets of its size.
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

/// The reasons for which there is no connection that were said: each is said once, until it stands again.
#[derive(Debug, Default)]
pub struct Complaints(BTreeSet<String>);

impl Complaints {
    /// Whether this reason is to be said.
    pub fn is_news(&mut self, reason: &str) -> bool {
        /// More than there are kinds of trouble; bounds what a broker's own words can do.
        const MOST: usize = 16;
        self.0.len() < MOST && self.0.insert(reason.to_owned())
    }

    /// The connection stands.
    pub fn end(&mut self) {
        self.0.clear();
    }

    /// Whether there was a reason since it last stood.
    pub fn any(&self) -> bool {
        !self.0.is_empty()
    }
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
    let (commands, commands_in) = mpsc::channel(ROOM);
    let (events_out, events) = mpsc::channel(256);
    let broker = Place { url: url.to_string(), is_embedded: settings.url.is_none() };
    tokio::spawn(async move {
        // Ends when either channel closes.
        let _ = run(options, commands_in, events_out, &broker).await;
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

/// A publish on its way.
#[derive(Debug, Clone, Copy)]
struct Sent {
    tag: Option<Tag>,
    size: usize,
    at: Instant,
}

async fn run(
    options: MqttOptions,
    mut commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<Event>,
    broker: &Place,
) -> Result<(), Closed> {
    let mut pause = FIRST_PAUSE;
    let mut sizes = Sizes::default();
    loop {
        let mut connection = Connection {
            queued: VecDeque::new(),
            underway: HashMap::new(),
            since: None,
            answered: false,
            commands: &mut commands,
            events: &events,
            sizes: &mut sizes,
            broker,
        };
        let error = connection.carry(options.clone()).await?;
        // A connection that breaks as soon as it is made must not be made twice a second for ever.
        if connection.since.is_some_and(|since| since.elapsed() >= STEADY) {
            pause = FIRST_PAUSE;
            // The broker may have been restarted with another limit.
            connection.sizes.try_again(Instant::now());
        }
        connection.end(&error).await?;
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = events.closed() => return Err(Closed),
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// One connection, from the attempt to make it until it breaks.
struct Connection<'a> {
    /// What the client took but has not yet put on the wire, in order.
    queued: VecDeque<Sent>,
    /// What the broker has to confirm, by packet id.
    underway: HashMap<u16, Sent>,
    /// When the broker accepted it.
    since: Option<Instant>,
    /// Whether it confirmed anything, so that the network does carry.
    answered: bool,
    commands: &'a mut mpsc::Receiver<Command>,
    events: &'a mpsc::Sender<Event>,
    sizes: &'a mut Sizes,
    broker: &'a Place,
}

impl Connection<'_> {
    async fn say(&self, event: Event) -> Result<(), Closed> {
        self.events.send(event).await.map_err(|_| Closed)
    }

    /// Makes the connection, and uses it. Returns why it broke.
    async fn carry(&mut self, options: MqttOptions) -> Result<ConnectionError, Closed> {
        let (client, mut event_loop) = AsyncClient::new(options, usize::from(INFLIGHT));
        // An acknowledgement is a small packet that others wait for.
        event_loop.network_options.set_tcp_nodelay(true);
        let mut watch = tokio::time::interval(UNCONFIRMED / 10);
        let mut moved = Instant::now();
        loop {
            let notice = {
                // Not cancelled as long as the connection is used: a poll that is dropped half-way loses what it holds.
                let mut poll = pin!(event_loop.poll());
                loop {
                    let room = self.since.is_some() && self.queued.len() < usize::from(INFLIGHT);
                    tokio::select! {
                        biased;
                        notice = &mut poll => break notice,
                        command = self.commands.recv(), if room => self.obey(&client, command.ok_or(Closed)?).await?,
                        _ = watch.tick() => {
                            if self.underway.is_empty() {
                                moved = Instant::now();
                            } else if moved.elapsed() >= UNCONFIRMED {
                                return Ok(ConnectionError::NetworkTimeout);
                            }
                        }
                        () = self.events.closed() => return Err(Closed),
                    }
                }
            };
            match notice {
                Ok(Notice::Incoming(Packet::ConnAck(_))) => {
                    self.since = Some(Instant::now());
                    self.say(Event::Connected).await?;
                }
                Ok(Notice::Outgoing(Outgoing::Publish(packet))) => {
                    // Packet 0 is one that the broker does not confirm.
                    if let Some(sent) = self.queued.pop_front()
                        && packet != 0
                    {
                        self.underway.insert(packet, Sent { at: Instant::now(), ..sent });
                    }
                }
                Ok(Notice::Incoming(Packet::PubAck(ack))) => {
                    (self.answered, moved) = (true, Instant::now());
                    if let Some(sent) = self.underway.remove(&ack.pkid) {
                        self.sizes.took(sent.size);
                        if let Some(tag) = sent.tag {
                            self.say(Event::Published(tag)).await?;
                        }
                    }
                }
                Ok(Notice::Incoming(Packet::SubAck(_))) => self.answered = true,
                Ok(Notice::Incoming(Packet::Publish(publish))) => {
                    let (topic, retained) = (publish.topic, publish.retain);
                    self.say(Event::Message { topic, payload: publish.payload, retained }).await?;
                }
                Ok(_) => {}
                Err(error) => return Ok(error),
            }
        }
    }

    async fn obey(&mut self, client: &AsyncClient, command: Command) -> Result<(), Closed> {
        match command {
            Command::Publish { topic, payload, retain, tag } => {
                let size = topic.len().saturating_add(payload.len());
                let now = Instant::now();
                // There is room, and the topics are ours: this cannot fail.
                if self.sizes.allow(size, now) && client.try_publish(topic, QoS::AtLeastOnce, retain, payload).is_ok() {
                    self.queued.push_back(Sent { tag, size, at: now });
                } else if let Some(tag) = tag {
                    self.say(Event::Dropped(tag)).await?;
                }
            }
            Command::Cast { topic, payload } => {
                let sent = Sent { tag: None, size: topic.len().saturating_add(payload.len()), at: Instant::now() };
                if client.try_publish(topic, QoS::AtMostOnce, false, payload).is_ok() {
                    self.queued.push_back(sent);
                }
            }
            Command::Subscribe(topics) => {
                let filters = topics.into_iter().map(|topic| SubscribeFilter::new(topic, QoS::AtLeastOnce));
                if let Err(error) = client.try_subscribe_many(filters) {
                    tracing::error!("nothing can be heard from the broker {}: {error}", self.broker.url);
                }
            }
            Command::Unsubscribe(topics) => {
                for topic in topics {
                    if let Err(error) = client.try_unsubscribe(topic) {
                        tracing::error!("what comes from the broker {} goes on coming: {error}", self.broker.url);
                    }
                }
            }
            Command::Close => {
                let _ = client.try_disconnect();
            }
        }
        Ok(())
    }

    /// Says what is lost with the connection.
    async fn end(&mut self, error: &ConnectionError) -> Result<(), Closed> {
        if self.answered
            && let Some(size) = closed_upon(error, self.underway.values())
            && let Some(pause) = self.sizes.broke(size, Instant::now())
        {
            tracing::warn!(
                "the broker {} closes the connection upon packets of {size} bytes: those of this size wait, the smaller ones go on; \
                 raise its limit (mosquitto: max_packet_size), or see whether this user may write there. Tried again in {} s",
                self.broker.url,
                pause.as_secs()
            );
        }
        let dropped: Vec<Tag> = self
            .queued
            .drain(..)
            .chain(self.underway.drain().map(|(_, sent)| sent))
            .filter_map(|sent| sent.tag)
            .collect();
        for tag in dropped {
            self.say(Event::Dropped(tag)).await?;
        }
        self.say(Event::Disconnected { reason: explain(self.broker, self.since.is_some(), error) }).await
    }
}

/// The largest packet that the broker may have closed the connection upon: not where it was the network
/// that fell silent, and not what it has had for long.
fn closed_upon<'a>(error: &ConnectionError, underway: impl Iterator<Item = &'a Sent>) -> Option<usize> {
    const AT_ONCE: Duration = Duration::from_secs(5);
    let closed = matches!(
        error,
        ConnectionError::Io(_)
            | ConnectionError::MqttState(
                StateError::Io(_) | StateError::ConnectionAborted | StateError::Deserialization(_)
            )
    );
    let fresh = underway.filter(|sent| sent.at.elapsed() < AT_ONCE).map(|sent| sent.size);
    fresh.max().filter(|_| closed)
}

/// Which packets are too large for the broker.
///
/// A broker may close the connection upon a packet that is larger than it likes (mosquitto's
/// `max_packet_size`), and MQTT 3.1.1 cannot tell why or how large is too large. Such a packet would come
/// again after each connection, and nothing behind it would ever pass. So the size is learned: when the
/// connection was closed [`Sizes::BREAKS`] times in a row upon packets larger than any that was ever
/// taken, packets of that size wait. One is tried again now and then, in case the limit was raised or the
/// network was to blame.
#[derive(Debug, Default)]
struct Sizes {
    /// The largest that the broker took.
    taken: usize,
    /// The largest underway at each of the last breaks, none of which was taken since.
    suspects: Vec<usize>,
    /// Packets from this size on wait.
    wait: Option<Wait>,
}

#[derive(Debug, Clone, Copy)]
struct Wait {
    from: usize,
    until: Instant,
    pause: Duration,
}

impl Sizes {
    /// How many breaks in a row are no accident.
    const BREAKS: usize = 3;
    /// Any broker takes that much: what breaks upon less has another cause.
    const SMALL: usize = 1024;
    /// Until one is tried again; doubled each time.
    const FIRST: Duration = Duration::from_secs(60);
    const LONGEST: Duration = Duration::from_secs(3600);

    /// Whether a packet of this size may be sent.
    fn allow(&mut self, size: usize, now: Instant) -> bool {
        match &mut self.wait {
            Some(wait) if size >= wait.from => {
                if now < wait.until {
                    return false;
                }
                // This one is the trial; the others wait for what becomes of it.
                wait.until = now + wait.pause;
                true
            }
            _ => true,
        }
    }

    /// The next of those that wait is a trial.
    fn try_again(&mut self, now: Instant) {
        if let Some(wait) = &mut self.wait {
            wait.until = now;
        }
    }

    /// The broker took one of this size.
    fn took(&mut self, size: usize) {
        self.taken = self.taken.max(size);
        self.suspects.retain(|suspect| *suspect > size);
        if self.wait.is_some_and(|wait| wait.from <= size) {
            self.wait = None;
        }
    }

    /// The broker closed the connection upon one of this size. Returns for how long such ones wait now,
    /// where that is news.
    fn broke(&mut self, size: usize, now: Instant) -> Option<Duration> {
        if size <= self.taken || size < Self::SMALL {
            return None;
        }
        let (from, pause) = match self.wait {
            Some(wait) if size >= wait.from => (wait.from, (wait.pause * 2).min(Self::LONGEST)),
            _ => {
                self.suspects.push(size);
                if self.suspects.len() < Self::BREAKS {
                    return None;
                }
                (self.suspects.drain(..).fold(size, usize::min), Self::FIRST)
            }
        };
        self.wait = Some(Wait { from, until: now + pause, pause });
        Some(pause)
    }
}

/// Where a broker is.
#[derive(Debug)]
struct Place {
    url: String,
    /// Whether a daemon has it inside.
    is_embedded: bool,
}

/// Why a connection broke or could not be made, and what to do.
fn explain(place: &Place, accepted: bool, error: &ConnectionError) -> String {
    let broker = &place.url;
    if let Some(error) = tls_error(error) {
        return distrust(broker, error);
    }
    // Who has the broker inside has written no URL that could be wrong.
    let remedy = if place.is_embedded { "" } else { "; see that it runs, and that [mqtt] url is right" };
    match error {
        ConnectionError::ConnectionRefused(
            ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized,
        ) => {
            format!("the broker {broker} refuses the user: check [mqtt] user and password-file")
        }
        ConnectionError::ConnectionRefused(ConnectReturnCode::RefusedProtocolVersion) => {
            format!("the broker {broker} does not speak MQTT 3.1.1: allow that version there, or use another broker")
        }
        ConnectionError::ConnectionRefused(ConnectReturnCode::BadClientId) => {
            format!("the broker {broker} refuses the client id: let it take ids that begin with meterkast-")
        }
        ConnectionError::ConnectionRefused(code) => format!("the broker {broker} refuses the connection: {code:?}"),
        ConnectionError::Io(error) if !accepted => {
            format!("the broker {broker} cannot be reached ({error}){remedy}")
        }
        ConnectionError::Tls(error) => {
            format!(
                "no TLS with the broker {broker} ({error}); see whether it wants TLS on that port (mqtts://), or none (mqtt://)"
            )
        }
        ConnectionError::NetworkTimeout if accepted => {
            format!("the broker {broker} confirms nothing for {} s: the connection is made anew", UNCONFIRMED.as_secs())
        }
        ConnectionError::NetworkTimeout => {
            format!("the broker {broker} does not answer{remedy}")
        }
        // What it sent may be large, and hostile.
        ConnectionError::NotConnAck(_) | ConnectionError::MqttState(_) if !accepted => {
            let remedy = if place.is_embedded {
                "see what else listens there ([mqtt] listen)"
            } else {
                "see that [mqtt] url is right, and whether the broker wants TLS on that port (mqtts://)"
            };
            format!("what answers at {broker} does not speak MQTT 3.1.1, or closes the connection at once; {remedy}")
        }
        other => format!("the connection to the broker {broker} was lost ({other})"),
    }
}

/// What rustls says, however deep it is packed.
fn tls_error(error: &ConnectionError) -> Option<&rustls::Error> {
    let mut error: &(dyn Error + 'static) = error;
    loop {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        error = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => inner,
            None => error.source()?,
        };
    }
}

/// Why one side does not trust the other's certificate.
fn distrust(broker: &str, error: &rustls::Error) -> String {
    use rustls::Error::{AlertReceived, InvalidCertificate};
    let remedy = match error {
        InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "renew the broker's certificate, or set this machine's clock; [mqtt] ca stays as it is"
        }
        InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }) => {
            "write one of the certificate's names in [mqtt] url, or give the broker a certificate with this one, of the authority in [mqtt] ca"
        }
        InvalidCertificate(_) => "[mqtt] ca must be the authority that signed the broker's certificate",
        AlertReceived(AlertDescription::CertificateRequired) => "name a client certificate with [mqtt] cert and key",
        AlertReceived(_) => {
            return format!(
                "the broker {broker} does not trust this client ({error}): check [mqtt] cert and key, and which authority the broker wants"
            );
        }
        rustls::Error::InvalidMessage(_) => {
            return format!(
                "what answers at {broker} does not speak TLS ({error}): should [mqtt] url begin with mqtt://?"
            );
        }
        _ => "check [mqtt] ca",
    };
    let who = match error {
        AlertReceived(_) => "wants to know who this is",
        _ => "cannot be trusted",
    };
    format!("the broker {broker} {who} ({error}): {remedy}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_that_breaks_the_connection_again_and_again_waits() {
        let (mut sizes, now) = (Sizes::default(), Instant::now());
        sizes.took(1500);
        assert_eq!([sizes.broke(9000, now), sizes.broke(9500, now)], [None, None]);
        assert!(sizes.allow(9000, now));
        assert_eq!(sizes.broke(9200, now), Some(Sizes::FIRST));
        assert!(!sizes.allow(9000, now) && !sizes.allow(9500, now));
        assert!(sizes.allow(8999, now));
        // One trial, and the next after twice the time.
        let now = now + Sizes::FIRST;
        assert!(sizes.allow(9100, now));
        assert!(!sizes.allow(9100, now));
        assert_eq!(sizes.broke(9100, now), Some(2 * Sizes::FIRST));
        assert!(!sizes.allow(9000, now + Sizes::FIRST));
        let now = now + 2 * Sizes::FIRST;
        assert!(sizes.allow(9000, now));
        // The limit was raised.
        sizes.took(9000);
        assert!(sizes.allow(9500, now));
    }

    #[test]
    fn breaks_upon_what_is_usually_taken_mean_nothing() {
        let (mut sizes, now) = (Sizes::default(), Instant::now());
        sizes.took(1500);
        for _ in 0..10 {
            assert_eq!(sizes.broke(1500, now), None);
            assert_eq!(sizes.broke(900, now), None);
        }
        // Nor those between which a larger one was taken.
        for size in [2000, 2500, 3000, 3500] {
            assert_eq!(sizes.broke(size, now), None);
            sizes.took(size);
        }
        assert!(sizes.allow(4000, now));
        // Nor small packets, if nothing was ever taken: that is a user who may not write.
        let mut sizes = Sizes::default();
        for _ in 0..10 {
            assert_eq!(sizes.broke(800, now), None);
        }
        assert!(sizes.allow(800, now));
    }
}
