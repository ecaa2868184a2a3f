//! MQTT: the connection, the broker inside, and the gateway's side of the delivery promise.
//!
//! - [`link`]: one connection to a broker, the only place that knows the MQTT client.
//! - [`broker`]: the embedded broker.
//! - [`gateway`]: journal, outbox and connection together.
//!
//! Protocol version 3.1.1, QoS 1, clean sessions: no queue of a broker is relied on.

mod board;
pub mod broker;
pub mod gateway;
mod health;
pub mod link;

/// Largest packet sent or taken, and the largest that the brokers' configurations in `deploy/` allow.
pub const MAX_PACKET: usize = 256 * 1024;
