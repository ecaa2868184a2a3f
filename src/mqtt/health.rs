//! What `health` tells: counters of one gateway, for whoever looks after it.

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc, time::Duration};

use jiff::Timestamp;

use crate::{delivery::Epoch, moment::Moment, payload};

/// What an installer is told of a port that had telegrams, and has none any more.
pub(super) const QUIET: &str = "no telegram for a minute, and nothing is received: is the cable still in, and does the meter have power? It is \
    listened to further";
/// The same where bytes still come.
pub(super) const GARBLED: &str = "no telegram for a minute, though bytes are received: is the cable damaged, or was the meter changed? It is \
    listened to further";

/// What a port does.
#[derive(Debug)]
pub(super) struct Port {
    /// In words.
    state: String,
    /// Whether that is as it should be.
    ok: bool,
    /// When its last telegram was received; of a bus, its last reading.
    telegram_at: Option<Moment>,
}

/// What a meter on a bus does.
#[derive(Debug)]
pub(super) struct Meter {
    state: String,
    ok: bool,
    /// When it was last read.
    read_at: Option<Moment>,
}

/// Counts since the gateway started, and the state of its ports.
#[derive(Debug)]
pub(super) struct Health {
    /// When the gateway started.
    pub(super) started_at: Moment,
    /// Telegrams accepted.
    pub(super) accepted: u64,
    /// Pieces of input that were no telegrams, by reason.
    pub(super) rejected: BTreeMap<&'static str, u64>,
    /// Messages written to the journal.
    pub(super) messages: u64,
    /// Messages that are gone before every store had confirmed them.
    pub(super) lost: u64,
    /// Times that what was written could not be made durable, and was written again.
    pub(super) sync_failures: u64,
    /// Times that another gateway was heard under this one's id.
    pub(super) shared_id: u64,
    /// Parts of acknowledgements that said nothing to this gateway.
    pub(super) acks_ignored: u64,
    /// Lines that no table explained.
    pub(super) unknown: u64,
    /// Readings that are not believed.
    pub(super) suspect: u64,
    /// By name.
    pub(super) ports: BTreeMap<Arc<str>, Port>,
    /// By port and address: `mbus/12345678`.
    pub(super) meters: BTreeMap<String, Meter>,
    /// Whether something changed that is worth saying before its time.
    pub(super) changed: bool,
    /// When it was last said.
    pub(super) said: Option<Duration>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            started_at: now(),
            accepted: 0,
            rejected: BTreeMap::new(),
            messages: 0,
            lost: 0,
            sync_failures: 0,
            shared_id: 0,
            acks_ignored: 0,
            unknown: 0,
            suspect: 0,
            ports: BTreeMap::new(),
            meters: BTreeMap::new(),
            changed: true,
            said: None,
        }
    }
}

/// To the second, which is all that anybody asks here.
fn now() -> Moment {
    let now = Timestamp::now();
    Moment::utc(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

impl Health {
    /// A port does something else.
    pub(super) fn port(&mut self, port: &Arc<str>, state: String, ok: bool) {
        let telegram_at = self.ports.get(port).and_then(|port| port.telegram_at);
        self.ports.insert(port.clone(), Port { state, ok, telegram_at });
        self.changed = true;
    }

    /// A port gave a telegram.
    pub(super) fn telegram(&mut self, port: &Arc<str>) {
        if let Some(port) = self.ports.get_mut(port) {
            self.changed |= port.telegram_at.replace(now()).is_none();
        }
    }

    /// What is to be said of a port before it is opened.
    pub(super) fn note(&mut self, port: Arc<str>, text: String) {
        self.ports.entry(port).or_insert(Port { state: text, ok: true, telegram_at: None });
        self.changed = true;
    }

    /// A meter was asked. Returns whether its state is another than before.
    pub(super) fn meter(&mut self, meter: String, state: &str, ok: bool) -> bool {
        let entry = self.meters.entry(meter).or_insert(Meter { state: String::new(), ok, read_at: None });
        if ok {
            entry.read_at = Some(now());
        }
        if entry.state == state {
            return false;
        }
        (entry.state, entry.ok, self.changed) = (state.to_owned(), ok, true);
        true
    }

    /// A bus is lost: of the meters behind it nothing is known any more.
    pub(super) fn bus_lost(&mut self, port: &str) {
        let behind = format!("{port}/");
        for (_, meter) in self.meters.iter_mut().filter(|(name, _)| name.starts_with(&behind)) {
            "is not read: its bus is lost".clone_into(&mut meter.state);
            meter.ok = false;
        }
    }

    /// As JSON. `depth`: messages not confirmed by all stores; `unwritten`: those that wait for the journal.
    pub(super) fn to_json(&self, epoch: Epoch, depth: u64, unwritten: usize) -> String {
        let Self {
            accepted,
            rejected,
            messages,
            lost,
            sync_failures,
            shared_id,
            acks_ignored,
            unknown,
            suspect,
            ports,
            meters,
            started_at,
            ..
        } = self;
        let at = now();
        let mut json = format!("{{\"schema\":1,\"at\":\"{at}\",\"started_at\":\"{started_at}\",\"epoch\":\"{epoch}\"");
        // Writing to a String cannot fail.
        let _ = write!(json, ",\"accepted\":{accepted},\"messages\":{messages},\"depth\":{depth},\"lost\":{lost}");
        let _ = write!(
            json,
            ",\"unwritten\":{unwritten},\"sync_failures\":{sync_failures},\"shared_id\":{shared_id},\"unknown\":{unknown},\"suspect\":{suspect},\"acks_ignored\":{acks_ignored}"
        );
        json.push_str(",\"rejected\":{");
        for (index, (kind, count)) in rejected.iter().enumerate() {
            let _ = write!(json, "{}\"{kind}\":{count}", if index > 0 { "," } else { "" });
        }
        json.push('}');
        let ports = ports.iter().map(|(name, port)| (&**name, &*port.state, port.ok, port.telegram_at));
        write_states(&mut json, "ports", "telegram_at", ports);
        let meters = meters.iter().map(|(name, meter)| (&**name, &*meter.state, meter.ok, meter.read_at));
        write_states(&mut json, "meters", "read_at", meters);
        json.push('}');
        json
    }
}

/// Names with their state, whether that is well, and when they last gave something.
fn write_states<'h>(
    json: &mut String,
    key: &str,
    time: &str,
    states: impl Iterator<Item = (&'h str, &'h str, bool, Option<Moment>)>,
) {
    // Writing to a String cannot fail.
    let _ = write!(json, ",\"{key}\":{{");
    for (index, (name, state, ok, at)) in states.enumerate() {
        json.push_str(if index > 0 { "," } else { "" });
        payload::string(json, name);
        json.push_str(":{\"state\":");
        payload::string(json, state);
        let _ = write!(json, ",\"ok\":{ok},\"{time}\":");
        let _ = match at {
            Some(at) => write!(json, "\"{at}\"}}"),
            None => write!(json, "null}}"),
        };
    }
    json.push('}');
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn json(health: &Health) -> Value {
        serde_json::from_str(&health.to_json(Epoch::from_bits(1), 7, 0)).unwrap()
    }

    #[test]
    fn is_json_whatever_a_port_is_called() {
        let mut health = Health { accepted: 3, ..Health::default() };
        health.rejected.insert("fragment", 1);
        health.port(&"p\"1".into(), "open\n".into(), true);
        health.port(&"p2".into(), "lost".into(), false);
        let json = json(&health);
        assert_eq!(json["depth"], 7);
        assert!(json["started_at"].as_str().unwrap() <= json["at"].as_str().unwrap());
        assert_eq!(json["rejected"]["fragment"], 1);
        assert_eq!(json["ports"]["p\"1"]["state"], "open\n");
        assert_eq!(json["ports"]["p2"], serde_json::json!({"state": "lost", "ok": false, "telegram_at": null}));
        assert_eq!(json["meters"], serde_json::json!({}));
    }

    #[test]
    fn keeps_when_a_port_gave_something_over_its_states() {
        let (mut health, port) = (Health::default(), "mbus".into());
        health.telegram(&port);
        assert_eq!(json(&health)["ports"], serde_json::json!({}), "not opened yet");
        health.port(&port, "open".into(), true);
        health.changed = false;
        health.telegram(&port);
        assert!(std::mem::take(&mut health.changed), "the first telegram is news");
        health.telegram(&port);
        assert!(!health.changed);
        assert!(health.meter("mbus/1".into(), "is read", true));
        assert!(!health.meter("mbus/1".into(), "is read", true));
        assert!(health.meter("mbus/2".into(), "does not answer", false));
        health.bus_lost("mbus");
        health.port(&port, "lost".into(), false);
        let json = json(&health);
        let at = &json["ports"]["mbus"]["telegram_at"];
        assert!(at.is_string() && json["ports"]["mbus"]["ok"] == false, "{json}");
        for (meter, read) in [("mbus/1", true), ("mbus/2", false)] {
            let meter = &json["meters"][meter];
            assert_eq!((&meter["state"], &meter["ok"]), (&"is not read: its bus is lost".into(), &false.into()));
            assert_eq!(meter["read_at"].is_string(), read);
        }
        assert!(health.meter("mbus/1".into(), "is read", true), "its end is news");
    }
}
