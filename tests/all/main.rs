//! Every test that does not stand beside the code, as one binary: it is linked once.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests may fail loudly"
)]

mod brokers;
mod chaos;
mod cli;
mod configs;
mod corpus;
mod differential;
mod explain;
mod exports;
mod fixtures;
mod gateway_faults;
mod house;
mod library;
mod mbus_bus;
mod mbus_corpus;
mod mbus_differential;
mod mbus_mutation;
mod mbus_way;
mod mutation;
mod noise;
mod parts;
mod ports;
#[allow(dead_code, reason = "the unit tests of the store use the rest")]
mod postgres;
mod postgres_faults;
mod redact;
mod samples;
mod service;
mod simulate;
mod store_faults;
mod usage;
mod way;
mod workbench;
