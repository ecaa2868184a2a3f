//! A household, as a file describes it.
//!
//! Enters: what serde reads, from TOML as a rule. Leaves: a [`Description`], and what in it cannot be ([`Bad`]), with its place.

use jiff::Timestamp;
use serde::Deserialize;

use super::{Faults, Profile, bus, dialects::Dialect};
use crate::{mbus::Pattern, moment::Moment, p1::Key, reading::Medium};

/// A household.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Description {
    /// What registers, habits, weather and faults depend on: the same number gives the same household.
    pub seed: u64,
    /// How people live.
    pub profile: Profile,
    /// The meter with a P1 port.
    pub p1: Option<P1>,
    /// An M-Bus.
    pub bus: Option<bus::Description>,
    /// What goes wrong on the way.
    pub faults: Faults,
    /// What happens to the meters.
    #[serde(rename = "event")]
    pub events: Vec<Event>,
}

/// A meter with a P1 port.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct P1 {
    /// Country and version of its telegrams.
    pub dialect: Dialect,
    /// 1 or 3.
    pub phases: u8,
    /// The header behind the `/`; empty: one that nobody's meter has.
    pub identification: String,
    /// Who it is; empty: by the seed.
    pub identifier: String,
    /// Import low and normal, export low and normal at the beginning, in whole kWh; absent: some years' worth.
    pub counts_from: Option<[u32; 4]>,
    /// Telegrams are encrypted with this: 32 hexadecimal digits, and 32 more for an authentication key.
    pub key: Option<String>,
    /// The same from a file. Whoever reads the description puts it into `key`.
    pub key_file: Option<String>,
    /// The meters behind it, by channel.
    #[serde(rename = "meter")]
    pub meters: Vec<Behind>,
}

impl Default for P1 {
    fn default() -> Self {
        Self {
            dialect: Dialect::default(),
            phases: 3,
            identification: String::new(),
            identifier: String::new(),
            counts_from: None,
            key: None,
            key_file: None,
            meters: Vec::new(),
        }
    }
}

/// A meter behind a P1 port.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Behind {
    /// What flows through it.
    pub measures: Measures,
    /// Who it is; empty: by the seed.
    #[serde(default)]
    pub identifier: String,
    /// Where it begins, in whole m3 or GJ; absent: some years' worth.
    #[serde(default)]
    pub counts_from: Option<u32>,
}

impl Behind {
    /// One that has counted for some years.
    pub const fn of(measures: Measures) -> Self {
        Self { measures, identifier: String::new(), counts_from: None }
    }
}

/// What flows through a meter behind a P1 port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measures {
    /// In m3.
    Gas,
    /// In GJ.
    Heat,
    /// In m3.
    HotWater,
    /// In m3.
    Water,
}

impl Measures {
    pub(super) const fn device_type(self) -> u8 {
        match self {
            Self::Gas => 3,
            Self::Heat => 4,
            Self::HotWater => 6,
            Self::Water => 7,
        }
    }

    pub(super) const fn letter(self) -> char {
        match self {
            Self::Gas => 'G',
            Self::Heat => 'K',
            Self::HotWater => 'H',
            Self::Water => 'W',
        }
    }

    pub(super) const fn medium(self) -> Medium {
        Medium::from_device_type(self.device_type())
    }
}

/// Something that happens at a moment.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case", rename_all_fields = "kebab-case", deny_unknown_fields)]
pub enum Event {
    /// A meter is taken away, and another takes its place.
    Exchange {
        /// When.
        at: At,
        /// Which: `p1`, `p1.2` by its channel, or a meter of the bus as it is described there.
        meter: String,
        /// Who the new one is; for one of the bus as it would be described there.
        identifier: String,
        /// Where its counters begin, in whole kWh, m3 or GJ: four for `p1`, one for others; absent: 0.
        #[serde(default)]
        counts_from: Vec<u32>,
    },
    /// The power fails: no telegrams, and nothing is counted.
    Outage {
        /// From when.
        at: At,
        /// To when.
        until: At,
    },
    /// The clock of the P1 meter leaps.
    Clock {
        /// When.
        at: At,
        /// So many seconds it is ahead from then on; negative: behind; 0: right again.
        ahead_s: i32,
    },
    /// The P1 meter has other firmware, and sends another telegram.
    Firmware {
        /// When.
        at: At,
        /// From then on.
        dialect: Dialect,
    },
}

impl Event {
    /// When, in seconds since 1970.
    pub(super) fn second(&self) -> i64 {
        let (Self::Exchange { at, .. } | Self::Outage { at, .. } | Self::Clock { at, .. } | Self::Firmware { at, .. }) =
            self;
        at.second()
    }
}

/// A moment to the second: `2026-05-04T10:20:00+02:00`, in quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct At(Moment);

impl At {
    pub(super) fn second(self) -> i64 {
        self.0.instant().as_second()
    }

    /// The moment.
    pub fn moment(self) -> Moment {
        self.0
    }
}

impl From<Moment> for At {
    fn from(moment: Moment) -> Self {
        Self(moment)
    }
}

impl TryFrom<String> for At {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map(Self).map_err(|error: crate::moment::NotAMoment| error.to_string())
    }
}

/// What in a description cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Bad {
    /// Where.
    pub place: Place,
    /// What is wrong, and the remedy.
    pub message: String,
}

/// A place in a description: a table, and which one of several, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(pub &'static str, pub usize);

impl Description {
    /// The demo's: DSMR 5.0.2 with gas, heat and hot water.
    pub fn demo(seed: u64) -> Self {
        let meters = [Measures::Gas, Measures::Heat, Measures::HotWater].map(Behind::of).to_vec();
        Self { seed, p1: Some(P1 { meters, ..P1::default() }), ..Self::default() }
    }

    /// What can be said of it without a time.
    pub fn check(&self) -> Result<(), Bad> {
        let bad = |table, index, message: String| Err(Bad { place: Place(table, index), message });
        if self.profile.people > 20 {
            return bad("[profile]", 0, format!("people = {}: a household has at most 20", self.profile.people));
        }
        if self.p1.is_none() && self.bus.is_none() {
            return bad("", 0, "there is no meter: add a [p1], or a [bus] with [[bus.meter]]".into());
        }
        if let Err(message) = self.faults.check() {
            return bad("[faults]", 0, message);
        }
        if let Some(p1) = &self.p1 {
            p1.check()?;
        }
        if let Some(bus) = &self.bus {
            let now = Moment::utc(Timestamp::UNIX_EPOCH);
            if let Err(message) = bus::Bus::new(bus.clone(), now) {
                return bad("[bus]", 0, message);
            }
        }
        for (index, event) in self.events.iter().enumerate() {
            self.check_event(event).map_err(|message| Bad { place: Place("[[event]]", index), message })?;
        }
        Ok(())
    }

    fn check_event(&self, event: &Event) -> Result<(), String> {
        match event {
            Event::Exchange { meter, identifier, counts_from, .. } => {
                if let Some(p1) = &self.p1
                    && meter == "p1"
                {
                    is_identifier(identifier)?;
                    if !matches!(counts_from.len(), 0 | 4) {
                        return Err(
                            "counts-from: the electricity meter has four: import low and normal, export low and normal"
                                .into(),
                        );
                    }
                    return (p1.dialect != Dialect::Warmtelink)
                        .then_some(())
                        .ok_or_else(|| "meter = \"p1\": a WarmteLink has no electricity meter; write \"p1.1\"".into());
                }
                if counts_from.len() > 1 {
                    return Err(format!("counts-from: `{meter}` has one counter"));
                }
                let behind = self.p1.iter().flat_map(|p1| (1..=p1.meters.len()).map(|channel| format!("p1.{channel}")));
                if behind.into_iter().any(|name| name == *meter) {
                    return is_identifier(identifier);
                }
                let exchanged = self.events.iter().filter_map(|event| match event {
                    Event::Exchange { identifier, .. } => Some(identifier.as_str()),
                    _ => None,
                });
                let mut on_bus = self.bus.iter().flat_map(|bus| bus.meters.iter().map(|meter| meter.meter.as_str()));
                if on_bus.any(|name| name == meter)
                    || (meter.contains('-') && exchanged.into_iter().any(|name| name == meter))
                {
                    let is_one = identifier.contains('-') && Pattern::from_text(identifier).is_some();
                    return is_one.then_some(()).ok_or_else(|| {
                        format!("identifier: `{identifier}` is no meter of a bus: write KAM-12345678-1B-04")
                    });
                }
                Err(format!(
                    "meter: there is no `{meter}`; write p1, p1.1 by its channel, or a meter of the bus as [[bus.meter]] names it"
                ))
            }
            Event::Outage { at, until } if until.second() <= at.second() => {
                Err("until: an outage ends after it begins".into())
            }
            Event::Clock { ahead_s, .. } if ahead_s.unsigned_abs() > 10 * 366 * 86_400 => {
                Err(format!("ahead-s = {ahead_s}: at most ten years"))
            }
            Event::Clock { .. } | Event::Firmware { .. } if self.p1.is_none() => {
                Err("there is no [p1] to which it could happen".into())
            }
            Event::Outage { .. } | Event::Clock { .. } | Event::Firmware { .. } => Ok(()),
        }
    }
}

impl P1 {
    fn check(&self) -> Result<(), Bad> {
        let bad = |message: String| Err(Bad { place: Place("[p1]", 0), message });
        if !matches!(self.phases, 1 | 3) {
            return bad(format!("phases = {}: a meter has 1 or 3", self.phases));
        }
        let printable = |text: &str| text.len() <= 96 && text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        if !printable(&self.identification) || self.identification.contains(['/', '!']) {
            return bad("identification: at most 96 letters, digits and signs, without / and !".into());
        }
        if !self.identification.is_empty()
            && self.identification.bytes().take(3).filter(u8::is_ascii_alphabetic).count() < 3
        {
            return bad("identification: begins with the three letters of a manufacturer, such as SIM5\\meter".into());
        }
        if let Err(message) = is_identifier(&self.identifier) {
            return bad(message);
        }
        if let Some(key) = &self.key
            && let Err(error) = Key::from_text(key)
        {
            return bad(format!("key: {error}"));
        }
        if self.meters.len() > 4 {
            return bad("[[p1.meter]]: four channels are all that a P1 port has".into());
        }
        for (index, meter) in self.meters.iter().enumerate() {
            let place = Place("[[p1.meter]]", index);
            is_identifier(&meter.identifier).map_err(|message| Bad { place, message })?;
        }
        Ok(())
    }
}

/// What hex digits of a telegram can hold, and still be read as a text.
fn is_identifier(text: &str) -> Result<(), String> {
    let fits = text.len() <= 48 && text.bytes().all(|byte| matches!(byte, b'!'..=b'~'));
    fits.then_some(()).ok_or_else(|| {
        format!("identifier: `{}` has more than 48 letters and digits, or others", text.escape_default())
    })
}
