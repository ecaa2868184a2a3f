//! The message on MQTT and in `decode`: JSON, schema 1.
//!
//! Enters: a [`Report`]. Leaves: a body (`"meter":...` to the end), which the journal keeps, and in
//! front of it the envelope, whose `first` is known only when it is sent. [`Message::from_json`] reads
//! both back. Values are plain decimals, exactly those of the report; on the way in a value may have
//! any number of decimals up to 18 digits.
//!
//! Not supported: exponents in values (`1e3`), which no schema 1 writer sends.

use std::{borrow::Cow, collections::BTreeMap, fmt::Write as _};

use serde::{
    Deserialize,
    de::{self, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{
    delivery::{Epoch, MOST_MISSING, Ranges},
    moment::Moment,
    reading::{self, Clock, Event, Function, Medium, Qualifiers, Reading, Register, Report, Suspect, Unknown},
    unit::{Decimal, Unit},
};

/// The schema written here. A message of a newer one is refused and kept, to be read after an upgrade.
pub const SCHEMA: u32 = 1;

/// Most bytes of the name of a gateway, a meter or a protocol. Stores have names in their keys, which take no text of any length.
pub const MOST_NAME: usize = 256;

/// Where a message stands in its gateway's numbering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// The gateway's id.
    pub gateway: String,
    /// The gateway's run.
    pub epoch: Epoch,
    /// 1, 2, 3... over all meters of the epoch.
    pub seq: u64,
    /// The number of this meter's previous message in the epoch; 0: none.
    pub prev: u64,
    /// The lowest number of the epoch that the gateway still holds.
    pub first: u64,
    /// Numbers above `first` that it no longer holds, as far as some store does not know: at most
    /// [`MOST_MISSING`] ranges, left out where there are none.
    pub missing: Ranges,
}

/// A message as it arrives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its number.
    pub envelope: Envelope,
    /// When the gateway received it, UTC with milliseconds.
    pub received_at: Moment,
    /// What the meter said, under the meter's name.
    pub report: Report<String>,
}

/// Why a payload is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Written by a newer meterkast.
    #[error("schema {0} is newer than {SCHEMA}")]
    NewerSchema(u32),
    /// Not the JSON of this schema.
    #[error("{0}")]
    Malformed(String),
}

/// The body of a message: everything behind the envelope, without the opening brace.
pub fn body(report: &Report<String>, received_at: Moment) -> String {
    let mut json = String::with_capacity(1024);
    write_report(&mut json, report, Some(received_at));
    json
}

/// A whole message: the envelope before a [`body`].
pub fn message(envelope: &Envelope, body: &str) -> String {
    let Envelope { gateway, epoch, seq, prev, first, missing } = envelope;
    let mut json = String::with_capacity(body.len().saturating_add(192));
    let _ = write!(json, "{{\"schema\":{SCHEMA},\"gateway\":");
    string(&mut json, gateway);
    let _ = write!(json, ",\"epoch\":\"{epoch}\",\"seq\":{seq},\"prev\":{prev},\"first\":{first},");
    if !missing.is_empty() {
        json.push_str("\"missing\":");
        let pair = |json: &mut String, (from, to): &(u64, u64)| {
            let _ = write!(json, "[{from},{to}]");
        };
        list(&mut json, '[', missing.pairs().get(..MOST_MISSING).unwrap_or(missing.pairs()), pair, ']');
        json.push(',');
    }
    json.push_str(body);
    json
}

/// A report as messages with bodies of at most `most` bytes: nearly always one. What is cut apart keeps its meter, time and
/// clock; a store keeps messages of one instant that say different things beside each other. Returns how many readings,
/// texts and the like are each longer than that and are left out.
pub fn parts(report: Report<String>, received_at: Moment, most: usize) -> (Vec<Report<String>>, u64) {
    // A reading takes less than 700 bytes, a text at most six for each byte.
    let texts = |texts: usize, text: usize| texts.saturating_add(text.saturating_mul(6)).saturating_add(64);
    let info = report.info.iter().fold(0, |sum, (name, text)| texts(sum, name.len().saturating_add(text.len())));
    let unknown = report
        .unknown
        .iter()
        .fold(info, |sum, unknown| texts(sum, unknown.code.len().saturating_add(unknown.text.len())));
    let items = report.readings.len().saturating_add(report.events.len()).saturating_mul(700);
    let fits = |report: &Report<String>| body(report, received_at).len() <= most;
    if unknown.saturating_add(items).saturating_add(2048) <= most || fits(&report) {
        return (vec![report], 0);
    }
    let (mut parts, mut refused) = (Vec::new(), 0u64);
    let mut rest = vec![report];
    while let Some(mut first) = rest.pop() {
        if fits(&first) {
            parts.push(first);
            continue;
        }
        // The second half of each list; when each has one item at most, a part for each list; when there is one list,
        // its one item is too long.
        let bare = Report { readings: vec![], info: vec![], events: vec![], unknown: vec![], ..first.clone() };
        let mut halves = vec![Report {
            readings: first.readings.split_off(first.readings.len().div_ceil(2)),
            info: first.info.split_off(first.info.len().div_ceil(2)),
            events: first.events.split_off(first.events.len().div_ceil(2)),
            unknown: first.unknown.split_off(first.unknown.len().div_ceil(2)),
            ..bare.clone()
        }];
        if is_bare(&halves) {
            let Report { readings, info, events, unknown, .. } = first;
            halves = vec![
                Report { unknown, ..bare.clone() },
                Report { events, ..bare.clone() },
                Report { info, ..bare.clone() },
                Report { readings, ..bare },
            ];
            halves.retain(|part| !is_bare(std::slice::from_ref(part)));
            if halves.len() == 1 {
                refused = refused.saturating_add(1);
                continue;
            }
        } else {
            halves.push(first);
        }
        rest.append(&mut halves);
    }
    (parts, refused)
}

/// Whether these say nothing.
fn is_bare(reports: &[Report<String>]) -> bool {
    reports.iter().all(|report| {
        report.readings.is_empty() && report.info.is_empty() && report.events.is_empty() && report.unknown.is_empty()
    })
}

/// What `decode` prints: a message without gateway, numbers and time of reception.
pub fn decoded(report: &Report<String>) -> String {
    let mut json = String::with_capacity(1024);
    let _ = write!(json, "{{\"schema\":{SCHEMA},");
    write_report(&mut json, report, None);
    json
}

/// What `state` and `interval` hold: the time and the current value of each register.
///
/// A doubtful reading is not shown: the register keeps the value that was `believed` last, which this keeps up.
pub fn state(report: &Report<String>, received_at: Moment, believed: &mut BTreeMap<Register, Decimal>) -> String {
    let mut json = String::with_capacity(512);
    let _ = write!(json, "{{\"measured_at\":\"{}\"", report.measured_at.unwrap_or(received_at));
    let mut seen: Vec<&Register> = Vec::with_capacity(report.readings.len());
    for reading in report.readings.iter().filter(|reading| reading.is_current()) {
        // A register twice in one telegram: JSON allows a key only once, the first stands.
        if !seen.contains(&&reading.register) {
            seen.push(&reading.register);
            let value = match reading.suspect {
                None => {
                    believed.insert(reading.register.clone(), reading.value);
                    Some(reading.value)
                }
                Some(_) => believed.get(&reading.register).copied(),
            };
            if let Some(value) = value {
                let _ = write!(json, ",\"{}\":{value}", reading.register);
            }
        }
    }
    json.push('}');
    json
}

// Writing to a String cannot fail, hence `let _` throughout.
fn write_report(json: &mut String, report: &Report<String>, received_at: Option<Moment>) {
    json.push_str("\"meter\":");
    string(json, &report.meter);
    let _ = write!(json, ",\"medium\":\"{}\"", report.medium.name());
    if let Medium::Other(code) = report.medium {
        let _ = write!(json, ",\"medium_code\":{code}");
    }
    json.push_str(",\"protocol\":");
    string(json, &report.protocol);
    json.push_str(",\"measured_at\":");
    moment(json, report.measured_at.or(received_at));
    let _ = write!(json, ",\"clock\":\"{}\"", report.clock.name());
    if let Some(at) = received_at {
        let _ = write!(json, ",\"received_at\":\"{at}\"");
    }
    json.push_str(",\"readings\":");
    list(json, '[', &report.readings, write_reading, ']');
    json.push_str(",\"info\":");
    let pair = |json: &mut String, (name, text): &reading::Info| {
        string(json, name);
        json.push(':');
        string(json, text);
    };
    list(json, '{', &report.info, pair, '}');
    json.push_str(",\"events\":");
    list(json, '[', &report.events, write_event, ']');
    json.push_str(",\"unknown\":");
    list(json, '[', &report.unknown, write_unknown, ']');
    json.push('}');
}

fn write_reading(json: &mut String, reading: &Reading) {
    let Reading { register, value, unit, qualifiers, at, suspect, raw } = reading;
    let _ = write!(json, "{{\"register\":\"{register}\",\"value\":{value},\"unit\":");
    string(json, unit.as_str());
    if qualifiers.storage != 0 {
        let _ = write!(json, ",\"storage\":{}", qualifiers.storage);
    }
    if qualifiers.tariff != 0 {
        let _ = write!(json, ",\"tariff\":{}", qualifiers.tariff);
    }
    if qualifiers.subunit != 0 {
        let _ = write!(json, ",\"subunit\":{}", qualifiers.subunit);
    }
    if let Some(function) = qualifiers.function.name() {
        let _ = write!(json, ",\"function\":\"{function}\"");
    }
    if let Some(at) = at {
        let _ = write!(json, ",\"at\":\"{at}\"");
    }
    if let Some(suspect) = suspect {
        let _ = write!(json, ",\"suspect\":\"{}\"", suspect.name());
    }
    if let Some(raw) = raw {
        let _ = write!(json, ",\"raw\":{{\"value\":{},\"unit\":", raw.0);
        string(json, raw.1.as_str());
        json.push('}');
    }
    json.push('}');
}

fn write_event(json: &mut String, event: &Event) {
    json.push_str("{\"event\":");
    string(json, &event.event);
    json.push_str(",\"end\":");
    moment(json, event.end);
    if let Some(seconds) = event.duration_s {
        let _ = write!(json, ",\"duration_s\":{seconds}");
    }
    json.push('}');
}

fn write_unknown(json: &mut String, unknown: &Unknown) {
    json.push_str("{\"code\":");
    string(json, &unknown.code);
    json.push_str(",\"text\":");
    string(json, &unknown.text);
    json.push('}');
}

fn list<T>(json: &mut String, open: char, items: &[T], mut write: impl FnMut(&mut String, &T), close: char) {
    json.push(open);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            json.push(',');
        }
        write(json, item);
    }
    json.push(close);
}

fn moment(json: &mut String, moment: Option<Moment>) {
    match moment {
        Some(moment) => {
            let _ = write!(json, "\"{moment}\"");
        }
        None => json.push_str("null"),
    }
}

/// A JSON string. Text that needs no escape is copied as it is.
pub fn string(json: &mut String, text: &str) {
    if text.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\') {
        json.push('"');
        json.push_str(text);
        json.push('"');
    } else {
        // A string always serialises.
        json.push_str(&serde_json::to_string(text).unwrap_or_default());
    }
}

#[derive(Deserialize)]
struct WireEnvelope<'a> {
    schema: u32,
    #[serde(borrow)]
    gateway: Cow<'a, str>,
    #[serde(borrow)]
    epoch: Cow<'a, str>,
    seq: u64,
    prev: u64,
    first: u64,
    #[serde(default)]
    missing: Vec<(u64, u64)>,
}

#[derive(Deserialize)]
struct WireMessage<'a> {
    schema: u32,
    #[serde(borrow)]
    gateway: Cow<'a, str>,
    #[serde(borrow)]
    epoch: Cow<'a, str>,
    seq: u64,
    prev: u64,
    first: u64,
    #[serde(default)]
    missing: Vec<(u64, u64)>,
    #[serde(borrow)]
    meter: Cow<'a, str>,
    #[serde(borrow)]
    medium: Cow<'a, str>,
    #[serde(default)]
    medium_code: u8,
    #[serde(borrow)]
    protocol: Cow<'a, str>,
    #[serde(borrow)]
    measured_at: Cow<'a, str>,
    #[serde(borrow)]
    clock: Cow<'a, str>,
    #[serde(borrow)]
    received_at: Cow<'a, str>,
    readings: Readings,
    #[serde(default)]
    info: Info,
    #[serde(borrow, default)]
    events: Vec<WireEvent<'a>>,
    #[serde(borrow, default)]
    unknown: Vec<WireUnknown<'a>>,
}

#[derive(Deserialize)]
struct WireReading<'a> {
    #[serde(borrow)]
    register: Cow<'a, str>,
    #[serde(borrow)]
    value: &'a RawValue,
    #[serde(borrow)]
    unit: Cow<'a, str>,
    #[serde(default)]
    storage: u64,
    #[serde(default)]
    tariff: u32,
    #[serde(default)]
    subunit: u16,
    #[serde(borrow, default)]
    function: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    at: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    suspect: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    raw: Option<WireRaw<'a>>,
}

#[derive(Deserialize)]
struct WireRaw<'a> {
    #[serde(borrow)]
    value: &'a RawValue,
    #[serde(borrow)]
    unit: Cow<'a, str>,
}

#[derive(Deserialize)]
struct WireEvent<'a> {
    #[serde(borrow)]
    event: Cow<'a, str>,
    #[serde(borrow)]
    end: Option<Cow<'a, str>>,
    #[serde(default)]
    duration_s: Option<u64>,
}

#[derive(Deserialize)]
struct WireUnknown<'a> {
    #[serde(borrow)]
    code: Cow<'a, str>,
    #[serde(borrow)]
    text: Cow<'a, str>,
}

/// The readings, each made as it comes, or what is wrong with the first that is none.
struct Readings(Result<Vec<Reading>, Refused>);

impl<'de> Deserialize<'de> for Readings {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Readings;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list of readings")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Readings, A::Error> {
                // As many as an electricity meter sends; others give the room back.
                let mut readings = Ok(Vec::with_capacity(32));
                while let Some(wire) = list.next_element::<WireReading<'de>>()? {
                    if let Ok(list) = &mut readings {
                        match read_reading(&wire) {
                            Ok(reading) => list.push(reading),
                            Err(refused) => readings = Err(refused),
                        }
                    }
                }
                if let Ok(list) = &mut readings
                    && list.len() < list.capacity() / 2
                {
                    list.shrink_to_fit();
                }
                Ok(Readings(readings))
            }
        }
        deserializer.deserialize_seq(List)
    }
}

/// `info` in the order in which it was written.
#[derive(Default)]
struct Info(Vec<reading::Info>);

impl<'de> Deserialize<'de> for Info {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Info;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Info, A::Error> {
                let mut pairs = Vec::new();
                while let Some((name, text)) = map.next_entry::<String, String>()? {
                    pairs.push((Cow::Owned(name), Cow::Owned(text)));
                }
                Ok(Info(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

impl Envelope {
    /// Reads only the numbers of a message, of any schema, so that a message whose body is refused can
    /// still be acknowledged.
    pub fn from_json(json: &[u8]) -> Result<(u32, Self), Refused> {
        serde_json::from_slice::<WireEnvelope<'_>>(json).map_err(malformed).and_then(Self::checked)
    }

    fn checked(wire: WireEnvelope<'_>) -> Result<(u32, Self), Refused> {
        check_name("gateway", &wire.gateway)?;
        let epoch = Epoch::from_text(&wire.epoch).ok_or_else(|| bad("epoch", &wire.epoch))?;
        let WireEnvelope { schema, gateway, seq, prev, first, missing, .. } = wire;
        if first == 0 || first > seq || prev >= seq {
            return Err(Refused::Malformed(format!("first {first}, prev {prev} and seq {seq} contradict each other")));
        }
        let in_order = missing.iter().try_fold(first, |below, &(from, to)| (below < from && from <= to).then_some(to));
        let here = |&(from, to): &(u64, u64)| from <= seq && seq <= to;
        if missing.len() > MOST_MISSING || in_order.is_none() || missing.iter().any(here) {
            return Err(Refused::Malformed(format!(
                "missing is not at most {MOST_MISSING} ascending ranges above first {first} and without seq {seq}"
            )));
        }
        let missing = Ranges::from_pairs(missing);
        Ok((schema, Self { gateway: gateway.into_owned(), epoch, seq, prev, first, missing }))
    }
}

impl Message {
    /// Reads a message. The error names what is wrong.
    pub fn from_json(json: &[u8]) -> Result<Self, Refused> {
        // Looked at once, and not text by text.
        let read = match str::from_utf8(json) {
            Ok(json) => serde_json::from_str(json),
            Err(_) => serde_json::from_slice(json),
        };
        let wire: WireMessage<'_> = match read {
            Ok(WireMessage { schema, .. }) if schema > SCHEMA => return Err(Refused::NewerSchema(schema)),
            Ok(wire) => wire,
            // A newer schema may have another form.
            Err(error) => {
                return Err(match Envelope::from_json(json)? {
                    (schema, _) if schema > SCHEMA => Refused::NewerSchema(schema),
                    _ => malformed(error),
                });
            }
        };
        let WireMessage { schema, gateway, epoch, seq, prev, first, missing, .. } = wire;
        let (_, envelope) = Envelope::checked(WireEnvelope { schema, gateway, epoch, seq, prev, first, missing })?;
        let report = Report {
            medium: Medium::from_name(&wire.medium, wire.medium_code).ok_or_else(|| bad("medium", &wire.medium))?,
            measured_at: Some(read_moment("measured_at", &wire.measured_at)?),
            clock: Clock::from_name(&wire.clock).ok_or_else(|| bad("clock", &wire.clock))?,
            readings: wire.readings.0?,
            info: wire.info.0,
            events: wire.events.into_iter().map(read_event).collect::<Result<_, _>>()?,
            unknown: wire
                .unknown
                .into_iter()
                .map(|unknown| Unknown { code: unknown.code.into_owned(), text: unknown.text.into_owned() })
                .collect(),
            protocol: match wire.protocol.as_ref() {
                "p1" => Cow::Borrowed("p1"),
                "mbus" => Cow::Borrowed("mbus"),
                other => Cow::Owned(other.to_owned()),
            },
            meter: wire.meter.into_owned(),
        };
        check_name("meter", &report.meter)?;
        check_name("protocol", &report.protocol)?;
        Ok(Self { envelope, received_at: read_moment("received_at", &wire.received_at)?, report })
    }
}

fn read_reading(wire: &WireReading<'_>) -> Result<Reading, Refused> {
    let raw = |raw: &WireRaw<'_>| {
        let value = read_value(raw.value)?;
        Ok(Box::new((value, read_unit(&raw.unit)?)))
    };
    let function = match &wire.function {
        Some(name) => Function::from_name(name).ok_or_else(|| bad("function", name))?,
        None => Function::Instantaneous,
    };
    let suspect = wire.suspect.as_ref().map(|name| Suspect::from_name(name).ok_or_else(|| bad("suspect", name)));
    Ok(Reading {
        register: Register::from_text(&wire.register).ok_or_else(|| bad("register", &wire.register))?,
        value: read_value(wire.value)?,
        unit: read_unit(&wire.unit)?,
        qualifiers: Qualifiers { storage: wire.storage, tariff: wire.tariff, subunit: wire.subunit, function },
        at: wire.at.as_ref().map(|at| read_moment("at", at)).transpose()?,
        suspect: suspect.transpose()?,
        raw: wire.raw.as_ref().map(raw).transpose()?,
    })
}

fn read_event(wire: WireEvent<'_>) -> Result<Event, Refused> {
    Ok(Event {
        end: wire.end.map(|end| read_moment("end", &end)).transpose()?,
        event: Cow::Owned(wire.event.into_owned()),
        duration_s: wire.duration_s,
    })
}

fn read_value(value: &RawValue) -> Result<Decimal, Refused> {
    Decimal::parse(value.get().as_bytes()).ok_or_else(|| bad("value", value.get()))
}

fn read_unit(unit: &str) -> Result<Unit, Refused> {
    Unit::from_text(unit).ok_or_else(|| bad("unit", unit))
}

fn check_name(field: &str, name: &str) -> Result<(), Refused> {
    if (1..=MOST_NAME).contains(&name.len()) {
        return Ok(());
    }
    Err(Refused::Malformed(format!("{field} has {} bytes: a name has 1 to {MOST_NAME}", name.len())))
}

fn read_moment(field: &str, text: &str) -> Result<Moment, Refused> {
    text.parse().map_err(|error| Refused::Malformed(format!("{field}: {error}")))
}

fn bad(field: &str, text: &str) -> Refused {
    Refused::Malformed(format!("`{}` is no {field}", text.chars().take(64).collect::<String>()))
}

fn malformed(error: serde_json::Error) -> Refused {
    // It may repeat a whole text, which stands in what is refused anyway.
    Refused::Malformed(error.to_string().chars().take(200).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report<String> {
        let value = |text: &str| Decimal::parse(text.as_bytes()).unwrap();
        let mut stored = Reading::now(Register::named("energy"), value("11.902"), Unit::GJ);
        stored.qualifiers.storage = 1;
        stored.at = Some("2025-12-31T23:59:00+01:00".parse().unwrap());
        stored.raw = Some(Box::new((value("3306"), Unit::KWH)));
        let mut doubted = Reading::now(Register::named("power"), value("-0.50"), Unit::KW);
        doubted.suspect = Some(Suspect::TooFast);
        doubted.qualifiers.function = Function::Maximum;
        Report {
            meter: "KAM-12345678-1B-04".into(),
            medium: Medium::Heat,
            protocol: "mbus".into(),
            measured_at: Some("2026-11-21T20:00:00+01:00".parse().unwrap()),
            clock: Clock::Gateway,
            readings: vec![Reading::now(Register::named("energy"), value("12.345"), Unit::GJ), stored, doubted],
            info: vec![("status".into(), "low \"battery\"\n".into())],
            events: vec![Event { event: "power_failure".into(), end: None, duration_s: Some(3) }],
            unknown: vec![Unknown { code: "04FF07".into(), text: "1a2b3c4d".into() }],
        }
    }

    fn envelope() -> Envelope {
        let epoch = Epoch::from_bits(7);
        Envelope { gateway: "gw-1".into(), epoch, seq: 42, prev: 41, first: 1, missing: Ranges::new() }
    }

    #[test]
    fn reads_what_it_writes() {
        let envelope = Envelope { missing: Ranges::from_pairs([(3, 3), (40, 41), (50, 60)]), ..envelope() };
        let received_at = "2026-11-21T19:00:00.123Z".parse().unwrap();
        let json = message(&envelope, &body(&report(), received_at));
        let read = Message::from_json(json.as_bytes()).unwrap();
        assert_eq!(read, Message { envelope, received_at, report: report() });
    }

    #[test]
    fn what_is_too_long_for_a_message_becomes_several_and_nothing_is_dropped() {
        let received_at = "2026-11-21T19:00:00.123Z".parse().unwrap();
        let small = report();
        assert_eq!(parts(small.clone(), received_at, 4000), (vec![small.clone()], 0));
        let mut large = small.clone();
        large.readings = (0..500u32).flat_map(|_| small.readings.clone()).collect();
        large.unknown = (0..500).map(|number| Unknown { code: number.to_string(), text: "x".repeat(100) }).collect();
        large.events = (0..30).flat_map(|_| small.events.clone()).collect();
        let (messages, refused) = parts(large.clone(), received_at, 4000);
        assert_eq!(refused, 0);
        assert!(messages.len() > 10);
        for part in &messages {
            assert!(body(part, received_at).len() <= 4000);
            assert_eq!((&part.meter, part.measured_at, part.clock), (&large.meter, large.measured_at, large.clock));
        }
        let all = |count: fn(&Report<String>) -> usize| messages.iter().map(count).sum::<usize>();
        assert_eq!(messages.iter().flat_map(|part| part.readings.clone()).collect::<Vec<_>>(), large.readings);
        assert_eq!(messages.iter().flat_map(|part| part.unknown.clone()).collect::<Vec<_>>(), large.unknown);
        assert_eq!((all(|part| part.info.len()), all(|part| part.events.len())), (1, 30));
        // One text that is longer than a message stays behind alone.
        large.info.push(("long".into(), "x".repeat(5000).into()));
        let (messages, refused) = parts(large.clone(), received_at, 4000);
        assert_eq!(refused, 1);
        assert_eq!(messages.iter().map(|part| part.readings.len()).sum::<usize>(), large.readings.len());
        assert_eq!(messages.iter().map(|part| part.info.len()).sum::<usize>(), 1);
    }

    #[test]
    fn the_form_is_that_of_the_contract() {
        let mut report = report();
        report.readings.truncate(2);
        report.info.clear();
        report.events.clear();
        assert_eq!(
            decoded(&report),
            r#"{"schema":1,"meter":"KAM-12345678-1B-04","medium":"heat","protocol":"mbus","measured_at":"2026-11-21T20:00:00+01:00","clock":"gateway","readings":[{"register":"energy","value":12.345,"unit":"GJ"},{"register":"energy","value":11.902,"unit":"GJ","storage":1,"at":"2025-12-31T23:59:00+01:00","raw":{"value":3306,"unit":"kWh"}}],"info":{},"events":[],"unknown":[{"code":"04FF07","text":"1a2b3c4d"}]}"#
        );
        assert_eq!(
            state(&report, "2026-11-21T19:00:00.123Z".parse().unwrap(), &mut BTreeMap::new()),
            r#"{"measured_at":"2026-11-21T20:00:00+01:00","energy":12.345}"#
        );
    }

    #[test]
    fn says_what_is_wrong_and_still_knows_the_number() {
        let envelope = envelope();
        let good = message(&envelope, &body(&report(), "2026-11-21T19:00:00.123Z".parse().unwrap()));
        let refused = |from: &str, to: &str| Message::from_json(good.replacen(from, to, 1).as_bytes()).unwrap_err();
        assert_eq!(refused("\"schema\":1", "\"schema\":2"), Refused::NewerSchema(2));
        assert_eq!(refused("12.345", "1.2e3"), Refused::Malformed("`1.2e3` is no value".into()));
        assert_eq!(refused("\"heat\"", "\"heat2\""), Refused::Malformed("`heat2` is no medium".into()));
        assert!(matches!(refused("\"first\":1", "\"first\":43"), Refused::Malformed(_)));
        let broken = good.replacen("\"gateway\",\"received", "\"sundial\",\"received", 1);
        assert_eq!(Envelope::from_json(broken.as_bytes()).unwrap(), (1, envelope));
    }

    #[test]
    fn a_name_is_bounded() {
        let good = message(&envelope(), &body(&report(), "2026-11-21T19:00:00.123Z".parse().unwrap()));
        for (field, name) in [("gateway", "gw-1"), ("meter", "KAM-12345678-1B-04"), ("protocol", "mbus")] {
            let named = |bytes: usize| {
                let from = format!("\"{field}\":\"{name}\"");
                assert!(good.contains(&from));
                Message::from_json(
                    good.replacen(&from, &format!("\"{field}\":\"{}\"", "x".repeat(bytes)), 1).as_bytes(),
                )
            };
            assert!(named(1).is_ok() && named(MOST_NAME).is_ok(), "{field}");
            for bytes in [0, MOST_NAME + 1, 100_000] {
                let reason = format!("{field} has {bytes} bytes: a name has 1 to 256");
                assert_eq!(named(bytes), Err(Refused::Malformed(reason)));
            }
        }
        // Nor are its numbers taken from whoever has no name.
        let long = good.replacen("gw-1", &"x".repeat(MOST_NAME + 1), 1);
        assert!(matches!(Envelope::from_json(long.as_bytes()), Err(Refused::Malformed(_))));
    }

    #[test]
    fn what_is_missing_is_bounded_ordered_and_never_the_message_itself() {
        let good = message(&envelope(), &body(&report(), "2026-11-21T19:00:00.123Z".parse().unwrap()));
        assert!(!good.contains("missing"));
        let read = |missing: &str| {
            let json = good.replacen("\"first\":1,", &format!("\"first\":1,\"missing\":{missing},"), 1);
            Envelope::from_json(json.as_bytes()).map(|(_, envelope)| envelope.missing.pairs().to_vec())
        };
        assert_eq!(read("[[2,3],[4,41]]"), Ok(vec![(2, 41)]));
        let ranges: Vec<(u64, u64)> = (0..MOST_MISSING as u64).map(|n| (100 + 2 * n, 100 + 2 * n)).collect();
        assert_eq!(read(&serde_json::to_string(&ranges).unwrap()), Ok(ranges.clone()));
        let more: Vec<_> = ranges.into_iter().chain([(1000, 1000)]).collect();
        let more = serde_json::to_string(&more).unwrap();
        let end = u64::MAX;
        for wrong in
            [&more, "[[1,1]]", "[[5,4]]", "[[5,6],[6,7]]", "[[9,9],[3,3]]", "[[40,42]]", &format!("[[2,{end}]]")]
        {
            assert!(matches!(read(wrong), Err(Refused::Malformed(_))), "{wrong}");
        }
        for wrong in ["[[-1,2]]", "[[2]]", "[2,3]", "{}", "null"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn why_it_is_refused_does_not_repeat_it() {
        let long = "\"".to_owned() + &"x".repeat(100_000) + "\"";
        let good = message(&envelope(), &body(&report(), "2026-11-21T19:00:00.123Z".parse().unwrap()));
        for field in
            ["\"seq\":42", "\"epoch\":\"00000000000000000000000000000007\"", "\"medium\":\"heat\"", "\"value\":12.345"]
        {
            let (name, _) = field.split_once(':').unwrap();
            let json = good.replacen(field, &format!("{name}:{long}"), 1);
            let refused = Message::from_json(json.as_bytes()).unwrap_err().to_string();
            assert!(json.len() > 100_000 && refused.len() < 300, "{field}: {} bytes", refused.len());
        }
    }

    #[test]
    fn any_bytes_are_survived() {
        for json in [&b""[..], b"null", b"[]", b"{\"schema\":1}", b"\xff\xfe", b"{\"schema\":-1}", &[b'['; 100_000]] {
            assert!(Message::from_json(json).is_err());
        }
    }
}
