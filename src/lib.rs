#![doc = include_str!("../README.md")]
//!
//! # The map
//!
//! Modules stand in the order in which data meets them, and a module uses only what stands before it
//! (`tests/all/house.rs` holds that). The first half is pure: no IO, clock, async, logging or
//! randomness. See ARCHITECTURE.md.

// --- pure ---
pub mod moment;
pub mod unit;
pub mod obis;
pub mod reading;
pub mod capture;
pub mod p1;
pub mod mbus;
pub mod plausible;
pub mod delivery;
pub mod payload;
pub mod layout;
pub mod explain;
pub mod redact;
pub mod simulate;
// --- edges ---
#[cfg(feature = "daemon")]
pub mod config;
#[cfg(feature = "daemon")]
pub mod pulse;
#[cfg(feature = "daemon")]
pub mod tap;
#[cfg(feature = "daemon")]
pub mod port;
#[cfg(feature = "daemon")]
pub mod collect;
#[cfg(feature = "daemon")]
pub mod bus;
#[cfg(feature = "daemon")]
pub mod journal;
#[cfg(feature = "daemon")]
pub mod mqtt;
#[cfg(feature = "daemon")]
pub mod store;
#[cfg(feature = "daemon")]
pub mod control;
#[cfg(feature = "daemon")]
pub mod daemon;
#[cfg(feature = "daemon")]
pub mod cli;
