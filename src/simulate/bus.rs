//! A virtual M-Bus: several slaves on one pair of wires.
//!
//! Enters: bytes of a master and the time. Leaves: bytes as a converter would hand them on, each at its time.
//! Where slaves answer at once, their bits meet as on the wires (a space wins), and what a receiver makes of that
//! comes out. Nothing here knows the time or chance: the same seed, bytes and times give the same bytes.
//!
//! Times are durations since any one moment, as those of the master.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::Deserialize;

use super::{
    Faults,
    description::Event,
    faults::Kind,
    noise,
    slave::{self, Slave},
};
use crate::{
    mbus::{Frame, FrameError, MAX_FRAME, master::Timing},
    moment::Moment,
};

/// A bus, as a file describes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Description {
    /// Bits a second.
    #[serde(default = "Description::baud")]
    pub baud: u32,
    /// Whether the converter sends back what it is sent.
    #[serde(default)]
    pub echo: bool,
    /// So many of a thousand answers are damaged in one bit.
    #[serde(default)]
    pub damaged_per_mille: u32,
    /// What registers and damage depend on.
    #[serde(default)]
    pub seed: u64,
    /// In a household: every so many seconds all meters are read, where a capture is made.
    #[serde(default = "Description::every_s")]
    pub every_s: u32,
    /// The meters.
    #[serde(default, rename = "meter")]
    pub meters: Vec<slave::Description>,
}

impl Description {
    /// A bus without faults.
    pub const fn of(meters: Vec<slave::Description>) -> Self {
        Self { baud: Self::baud(), echo: false, damaged_per_mille: 0, seed: 0, every_s: Self::every_s(), meters }
    }

    const fn baud() -> u32 {
        2400
    }

    const fn every_s() -> u32 {
        900
    }
}

/// A virtual bus.
#[derive(Debug, Clone)]
pub struct Bus {
    timing: Timing,
    /// At which rate the master sends and listens.
    master_baud: u32,
    echo: bool,
    damaged_per_mille: u32,
    seed: u64,
    faults: Faults,
    /// What happens in the household, in the order of time, and how much of it has.
    events: Vec<Event>,
    happened: usize,
    /// Until when there is no power.
    outage: Option<i64>,
    /// Seconds since 1970.
    now: i64,
    slaves: Vec<Slave>,
    /// Bytes of the master that are no frame yet, and when the last of them ended.
    asked: Vec<u8>,
    asked_until: Duration,
    /// Bytes for the master, each with the time at which it is complete.
    line: VecDeque<(Duration, u8)>,
    answers: i64,
}

/// Oversampling of the receiver.
const SAMPLES: u64 = 16;

impl Bus {
    /// The bus of a description, at a moment. The error says which meter is wrong, and how.
    pub fn new(description: Description, now: Moment) -> Result<Self, String> {
        let Description { baud, echo, damaged_per_mille, seed, every_s, meters } = description;
        if !Timing::RATES.contains(&baud) {
            return Err(format!("baud = {baud}: an M-Bus has 300, 600, ... 38400"));
        }
        if damaged_per_mille > 1000 {
            return Err(format!("damaged-per-mille = {damaged_per_mille}: at most 1000"));
        }
        if every_s == 0 {
            return Err("every-s = 0: at least 1".to_owned());
        }
        let slaves = meters.into_iter().map(|meter| Slave::new(meter, seed, now)).collect::<Result<_, _>>()?;
        let timing = Timing { baud, timeout: None, allowance: Duration::ZERO, repeats: 0 };
        Ok(Self {
            timing,
            master_baud: baud,
            echo,
            damaged_per_mille,
            seed,
            faults: Faults::default(),
            events: Vec::new(),
            happened: 0,
            outage: None,
            now: now.instant().as_second(),
            slaves,
            asked: Vec::new(),
            asked_until: Duration::ZERO,
            line: VecDeque::new(),
            answers: 0,
        })
    }

    /// The bus of a household, if it has one: its meters count what flows there, and what happens to them and what goes
    /// wrong with their answers is described there too.
    pub fn of(household: &super::Description, now: Moment) -> Option<Result<Self, String>> {
        let described = household.bus.clone()?;
        let with_household = |mut bus: Self| {
            let profile = Arc::new(household.profile.clone());
            bus.slaves.iter_mut().for_each(|slave| slave.set_profile(&profile));
            bus.faults = household.faults;
            bus.events.clone_from(&household.events);
            bus.events.sort_by_key(Event::second);
            bus.happen();
            bus
        };
        // Its meters depend on both seeds.
        let described = Description { seed: described.seed ^ household.seed, ..described };
        Some(Self::new(described, now).map(with_household))
    }

    /// Lets the meters count until `to`.
    pub fn advance(&mut self, to: Moment) {
        let to = to.instant().as_second();
        while self.now < to {
            let event = self.events.get(self.happened).map_or(to, Event::second);
            let mut end = to.min(event);
            if let Some(until) = self.outage {
                end = end.min(until);
                self.slaves.iter_mut().for_each(|slave| slave.stand_still(moment(end)));
                self.outage = self.outage.filter(|until| *until > end);
            } else {
                self.slaves.iter_mut().for_each(|slave| slave.advance(moment(end)));
            }
            self.now = end;
            self.happen();
        }
    }

    /// Events until now.
    fn happen(&mut self) {
        while let Some(event) = self.events.get(self.happened).filter(|event| event.second() <= self.now) {
            self.happened += 1;
            match event {
                Event::Outage { until, .. } if until.second() > self.now => {
                    self.outage = self.outage.max(Some(until.second()));
                }
                Event::Exchange { meter, identifier, counts_from, .. } => {
                    let (seed, now) = (self.seed, moment(self.now));
                    let counts_from = counts_from.first().copied().unwrap_or(0);
                    for slave in self.slaves.iter_mut().filter(|slave| slave.description.meter == *meter) {
                        let description = slave::Description { meter: identifier.clone(), ..slave.description.clone() };
                        if let Ok(other) = Slave::new(description, seed, now) {
                            *slave = other.in_place_of(slave, counts_from);
                        }
                    }
                }
                Event::Outage { .. } | Event::Clock { .. } | Event::Firmware { .. } => {}
            }
        }
    }

    /// Whether there is power.
    pub fn is_powered(&self) -> bool {
        self.outage.is_none()
    }

    /// The meters.
    pub fn slaves(&self) -> &[Slave] {
        &self.slaves
    }

    /// Switches the echo of the converter.
    pub fn set_echo(&mut self, echo: bool) {
        self.echo = echo;
    }

    /// At which rate the master's port is set.
    pub fn set_baud(&mut self, baud: u32) {
        self.master_baud = baud;
    }

    /// Another master comes: nothing is on the line, and the times on it are since another moment.
    pub fn restart_line(&mut self) {
        self.asked.clear();
        self.line.clear();
        self.asked_until = Duration::ZERO;
        self.slaves.iter_mut().for_each(Slave::restart_link);
    }

    /// Takes bytes of the master, which begin on the wires at `now` or behind those before.
    pub fn handle_bytes(&mut self, now: Duration, bytes: &[u8]) {
        let byte_time = self.master_timing().bytes(1);
        if now > self.asked_until.saturating_add(self.timing.bits(330)) {
            // A frame does not go on after such a pause.
            self.asked.clear();
        }
        self.asked_until = self.asked_until.max(now);
        for &byte in bytes {
            self.asked_until = self.asked_until.saturating_add(byte_time);
            if self.echo {
                self.line.push_back((self.asked_until, byte));
            }
            self.asked.push(byte);
            while !self.asked.is_empty() {
                match Frame::parse(&self.asked) {
                    Ok((_, length)) => {
                        let rest = self.asked.split_off(length);
                        let frame = std::mem::replace(&mut self.asked, rest);
                        self.answer(&frame);
                    }
                    Err(FrameError::Incomplete(_)) => break,
                    Err(_) => {
                        self.asked.remove(0);
                    }
                }
            }
        }
    }

    fn master_timing(&self) -> Timing {
        Timing { baud: self.master_baud, ..self.timing }
    }

    /// When the next byte for the master is complete.
    pub fn next_byte(&self) -> Option<Duration> {
        self.line.front().map(|(at, _)| *at)
    }

    /// The bytes for the master that are complete at `now`.
    pub fn poll_bytes(&mut self, now: Duration) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Some((at, byte)) = self.line.front()
            && *at <= now
        {
            bytes.push(*byte);
            self.line.pop_front();
        }
        bytes
    }

    fn answer(&mut self, frame: &[u8]) {
        let Ok((frame, _)) = Frame::parse(frame) else { return };
        if !self.is_powered() {
            return;
        }
        let asked_until = self.asked_until;
        let mut sent: Vec<(Duration, Duration, usize, Vec<u8>)> = Vec::new();
        for slave in &mut self.slaves {
            // Who listens at another rate understands nothing.
            if slave.description.baud.unwrap_or(self.timing.baud) != self.master_baud {
                continue;
            }
            let Some(mut bytes) = slave.answer(&frame, asked_until) else { continue };
            self.answers += 1;
            if noise(self.seed, 7, self.answers, 1000) < self.damaged_per_mille.into() {
                let bit = noise(self.seed, 8, self.answers, bytes.len() as i64 * 8).unsigned_abs() as usize;
                if let Some(byte) = bytes.get_mut(bit / 8) {
                    *byte ^= 1 << (bit % 8);
                }
            }
            self.faults.apply(self.seed, self.answers, &mut bytes, Kind::Frame);
            let thinks = match slave.description.answers_after_ms {
                // No two think equally fast.
                0 => self.timing.bits(20).saturating_add(Duration::from_micros(u64::from(slave.secondary().id % 97))),
                after => Duration::from_millis(after.into()),
            };
            let pause = Duration::from_millis(slave.description.pause_ms.into());
            sent.push((asked_until.saturating_add(thinks), pause, bytes.len() / 2, bytes));
        }
        let timing = self.master_timing();
        match sent.as_slice() {
            [] => {}
            [(begin, pause, pause_at, bytes)] => {
                for (index, byte) in bytes.iter().enumerate() {
                    let mut at = begin.saturating_add(timing.bytes(index + 1));
                    if index >= *pause_at {
                        at = at.saturating_add(*pause);
                    }
                    self.line.push_back((at, *byte));
                }
            }
            several => {
                let sent: Vec<(Duration, &[u8])> =
                    several.iter().map(|(begin, _, _, bytes)| (*begin, bytes.as_slice())).collect();
                self.line.extend(collide(&sent, timing));
            }
        }
        // An echo and an answer do not overlap, answers of two requests may.
        self.line.make_contiguous().sort_by_key(|(at, _)| *at);
        // Nobody reads: what a converter could not hold either is gone.
        while self.line.len() > 64 * MAX_FRAME {
            self.line.pop_front();
        }
    }
}

fn moment(second: i64) -> Moment {
    Moment::utc(Timestamp::from_second(second).unwrap_or_default())
}

/// What a receiver makes of several senders whose bits meet: a space of one is a space for all.
fn collide(sent: &[(Duration, &[u8])], timing: Timing) -> Vec<(Duration, u8)> {
    let Some(begin) = sent.iter().map(|(begin, _)| *begin).min() else { return Vec::new() };
    let sample = timing.bits(1) / SAMPLES as u32;
    let bit_time = SAMPLES;
    // The level of a sender at a sample: a start bit, eight bits lowest first, even parity, a stop bit.
    let level = |from: u64, bytes: &[u8], at: u64| -> bool {
        let Some(since) = at.checked_sub(from) else { return true };
        let bit = since / bit_time;
        let Some(byte) = bytes.get((bit / 11) as usize) else { return true };
        match bit % 11 {
            0 => false,
            bit @ 1..=8 => byte >> (bit - 1) & 1 == 1,
            9 => byte.count_ones() % 2 == 1,
            _ => true,
        }
    };
    let senders: Vec<(u64, &[u8])> = sent
        .iter()
        .map(|(start, bytes)| {
            let late = start.saturating_sub(begin).as_nanos() / sample.as_nanos().max(1);
            (late as u64, *bytes)
        })
        .collect();
    let wire = |at: u64| senders.iter().all(|(from, bytes)| level(*from, bytes, at));
    let end = senders.iter().map(|(from, bytes)| from + bytes.len() as u64 * 11 * bit_time).max().unwrap_or_default();
    let mut received = Vec::new();
    let mut at = 0;
    while at < end {
        if wire(at) {
            at += 1;
            continue;
        }
        // A falling edge: each bit is taken in its middle.
        let middle = |bit: u64| wire(at + bit * bit_time + bit_time / 2);
        if middle(0) {
            at += 1;
            continue;
        }
        let byte = (0..8).fold(0u8, |byte, bit| byte | u8::from(middle(bit + 1)) << bit);
        let complete = at + 11 * bit_time;
        let nanos = (sample.as_nanos() as u64).saturating_mul(complete);
        received.push((begin.saturating_add(Duration::from_nanos(nanos)), byte));
        // Without a stop bit the receiver waits for the line to rise.
        at += 10 * bit_time + bit_time / 2;
        while at < end && !wire(at) {
            at += 1;
        }
    }
    received
}
