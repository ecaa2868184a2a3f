//! What a store's `health` tells: its counters, for whoever looks after it.

use std::fmt::Write as _;

use jiff::Timestamp;
use tokio::time::{Duration, Instant};

use super::{Committed, Size, lives::Lives};
use crate::{moment::Moment, payload};

/// Regular interval, and the shortest one on changes.
const REGULAR: Duration = Duration::from_secs(60);
const ON_CHANGE: Duration = Duration::from_secs(5);

/// Counts since the store started.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// Messages written.
    pub(super) stored: u64,
    /// Messages whose meter, instant and readings were there already.
    pub(super) repeated: u64,
    /// Messages whose number had arrived before.
    pub(super) again: u64,
    /// Messages kept as refused.
    pub(super) refused: u64,
    /// Numbers that never arrived and are gone at their gateway.
    pub(super) lost: u64,
    /// Messages that came while the database was in trouble and were not taken; they come again.
    pub(super) declined: u64,
    /// Whether something changed that is worth saying before its time.
    pub(super) changed: bool,
    /// When it was last said on this connection.
    pub(super) said: Option<Instant>,
}

impl Health {
    /// Takes note of a commit.
    pub(super) fn count(&mut self, committed: &Committed) {
        let Committed { stored, repeated, again, refused, lost, .. } = committed;
        for (sum, more) in [
            (&mut self.stored, stored),
            (&mut self.repeated, repeated),
            (&mut self.again, again),
            (&mut self.refused, refused),
            (&mut self.lost, lost),
        ] {
            *sum = sum.saturating_add(*more);
        }
        self.changed |= *refused > 0 || *lost > 0;
    }

    /// When it is to be said next.
    pub(super) fn due(&self) -> Instant {
        match self.said {
            None => Instant::now(),
            Some(said) => said + if self.changed { ON_CHANGE } else { REGULAR },
        }
    }

    /// As JSON. `trouble`: what the database complains of; `size`: how large it is.
    pub(super) fn to_json(&self, lives: &Lives, trouble: Option<&str>, size: Size) -> String {
        let Self { stored, repeated, again, refused, lost, declined, .. } = self;
        let at = Moment::utc(Timestamp::now());
        // Writing to a String cannot fail.
        let mut json = format!("{{\"schema\":1,\"at\":\"{at}\",\"stored\":{stored},\"repeated\":{repeated}");
        let _ = write!(json, ",\"again\":{again},\"refused\":{refused},\"lost\":{lost},\"declined\":{declined}");
        let _ = write!(json, ",\"gateways\":{},\"shared_ids\":[", lives.gateways());
        for (index, gateway) in lives.shared().enumerate() {
            json.push_str(if index > 0 { "," } else { "" });
            payload::string(&mut json, gateway);
        }
        json.push_str("],\"database\":");
        payload::string(&mut json, trouble.unwrap_or("ok"));
        let _ = write!(json, ",\"bytes\":{}", size.bytes);
        if let Some(bytes) = size.bytes_a_day {
            let _ = write!(json, ",\"bytes_a_day\":{bytes}");
        }
        json.push('}');
        json
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::Epoch;

    #[test]
    fn is_json_whatever_is_said() {
        let mut lives = Lives::default();
        for bits in [1, 2, 1] {
            lives.speaks("g\"1", Epoch::from_bits(bits));
        }
        let mut health = Health::default();
        health.count(&Committed { stored: 3, lost: 2, ..Committed::default() });
        assert!(health.changed);
        let json = health.to_json(&lives, Some("/a\"b: the disk is full"), Size { bytes: 4096, bytes_a_day: Some(-7) });
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&json["stored"], &json["lost"], &json["bytes"]), (&3.into(), &2.into(), &4096.into()));
        assert_eq!(json["bytes_a_day"], -7);
        assert_eq!(json["shared_ids"], serde_json::json!(["g\"1"]));
        assert_eq!(json["database"], "/a\"b: the disk is full");
    }
}
