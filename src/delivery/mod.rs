//! The delivery promise, without IO: who has what, and what must be sent again.
//!
//! - [`Ranges`]: a set of message numbers.
//! - [`Ledger`]: the store's side, what has arrived from one epoch of one gateway.
//! - [`Ack`]: what a store tells its gateways, and its JSON.
//! - [`Outbox`]: the gateway's side, what each store has confirmed and what to send next.
//! - [`topic`]: the names of the topics.
//!
//! Nothing here reads a clock or a random number: both are arguments.

mod ack;
mod ledger;
#[cfg(test)]
mod model;
mod outbox;
mod outstanding;
mod ranges;
pub mod topic;

use std::fmt;

pub use ack::{Ack, EpochAck, Tally};
pub use ledger::{Arrival, Ledger};
pub use outbox::{AckEffect, Limits, Next, Outbox};
pub use ranges::Ranges;

/// Most ranges of missing numbers that one message tells of. A store that has recorded them hears of the
/// next with the next message.
pub const MOST_MISSING: usize = 16;

/// One run of a gateway: 128 random bits, new at every start, with no order in them.
/// Printed and read as 32 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(u128);

impl Epoch {
    /// From bits that the caller drew at random.
    pub const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    /// The bits.
    pub const fn bits(self) -> u128 {
        self.0
    }

    /// Reads 32 hex digits.
    pub fn from_text(text: &str) -> Option<Self> {
        let hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if hex { u128::from_str_radix(text, 16).ok().map(Self) } else { None }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
