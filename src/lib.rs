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
pub mod p1;
pub mod plausible;
pub mod delivery;
pub mod payload;
pub mod simulate;
// --- edges ---
pub mod config;
pub mod port;
pub mod collect;
pub mod journal;
pub mod mqtt;
pub mod store;
pub mod daemon;
pub mod cli;
