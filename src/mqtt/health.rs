//! What `health` tells: counters of one gateway, for whoever looks after it.

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc, time::Duration};

use jiff::Timestamp;

use crate::{delivery::Epoch, moment::Moment, payload};

/// Counts since the gateway started, and the state of its ports.
#[derive(Debug, Default)]
pub(super) struct Health {
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
    /// What each port does.
    pub(super) ports: BTreeMap<Arc<str>, String>,
    /// Whether something changed that is worth saying before its time.
    pub(super) changed: bool,
    /// When it was last said.
    pub(super) said: Option<Duration>,
}

impl Health {
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
            ..
        } = self;
        let at = Moment::utc(Timestamp::now());
        let mut json = format!("{{\"schema\":1,\"at\":\"{at}\",\"epoch\":\"{epoch}\"");
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
        json.push_str("},\"ports\":{");
        for (index, (port, state)) in ports.iter().enumerate() {
            json.push_str(if index > 0 { "," } else { "" });
            payload::string(&mut json, port);
            json.push(':');
            payload::string(&mut json, state);
        }
        json.push_str("}}");
        json
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_json_whatever_a_port_is_called() {
        let mut health = Health { accepted: 3, ..Health::default() };
        health.rejected.insert("fragment", 1);
        health.ports.insert("p\"1".into(), "open\n".into());
        health.ports.insert("p2".into(), "lost".into());
        let json: serde_json::Value = serde_json::from_str(&health.to_json(Epoch::from_bits(1), 7, 0)).unwrap();
        assert_eq!(json["depth"], 7);
        assert_eq!(json["rejected"]["fragment"], 1);
        assert_eq!(json["ports"]["p\"1"], "open\n");
    }
}
