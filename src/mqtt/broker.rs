//! The embedded broker: rumqttd, for a house that has none.
//!
//! Enters: an address to listen on. Leaves: the address it listens on, for every MQTT 3.1.1 client of
//! the machine. Its queues and retained messages live in memory, bounded by two segments of 2 MiB
//! for each topic filter; the delivery promise does not rely on them.
//!
//! Not supported: MQTT 5, TLS, users (it listens on the loopback address unless told otherwise), and
//! stopping before the process ends.

use std::{
    collections::HashMap,
    io,
    net::{SocketAddr, TcpListener},
};

use rumqttd::{Broker, Config, ConnectionSettings, RouterConfig, ServerSettings};

use super::MAX_PACKET;

/// Bytes a segment of a topic's log: half of a log of two holds what may be outstanding (1 MiB).
const SEGMENT: usize = 2 * 1024 * 1024;
/// Segments of a topic's log.
const SEGMENTS: usize = 2;

/// Why no broker can be started.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// Something listens there already.
    #[error(
        "the port of the embedded broker, {0}, is taken: if a broker runs there, use it with [mqtt] url = \"mqtt://{0}\"; otherwise choose another [mqtt] listen"
    )]
    Taken(SocketAddr),
    /// The address cannot be listened on.
    #[error("the embedded broker cannot listen on {0}: {1}; choose another [mqtt] listen")]
    Unusable(SocketAddr, io::Error),
}

/// Starts a broker that runs until the process ends. Port 0 takes a free one.
pub fn start(listen: SocketAddr) -> Result<SocketAddr, BrokerError> {
    // The broker itself only logs that it cannot listen, so the address is tried first.
    let free = TcpListener::bind(listen).and_then(|listener| listener.local_addr()).map_err(|error| {
        if error.kind() == io::ErrorKind::AddrInUse {
            BrokerError::Taken(listen)
        } else {
            BrokerError::Unusable(listen, error)
        }
    })?;
    let connections = ConnectionSettings {
        connection_timeout_ms: 10_000,
        max_payload_size: MAX_PACKET,
        max_inflight_count: 500,
        auth: None,
        external_auth: None,
        dynamic_filters: true,
    };
    let server = ServerSettings {
        name: "embedded".to_owned(),
        listen: free,
        tls: None,
        next_connection_delay_ms: 1,
        connections,
    };
    let config = Config {
        id: 0,
        router: RouterConfig {
            max_connections: 100,
            max_outgoing_packet_count: 200,
            max_segment_size: SEGMENT,
            max_segment_count: SEGMENTS,
            ..RouterConfig::default()
        },
        v4: Some(HashMap::from([("embedded".to_owned(), server)])),
        ..Config::default()
    };
    let mut broker = Broker::new(config);
    std::thread::Builder::new()
        .name("broker".to_owned())
        .spawn(move || {
            if let Err(error) = broker.start() {
                tracing::error!("the embedded broker stopped: {error}");
            }
        })
        .map_err(|error| BrokerError::Unusable(free, error))?;
    // It needs a moment to listen; whoever connects retries anyway, but a first try should not fail.
    for _ in 0..100 {
        if std::net::TcpStream::connect(free).is_ok() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Ok(free)
}
