//! The other stores on one database, as far as they are heard at the broker.
//!
//! Enters: whose `health` was heard, and when. Leaves: who has been silent for long. Each of them keeps its `health` at the broker
//! under a name that it drew at its start, and takes it away when it ends; what one left behind that was killed the others take away.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

/// Who has said nothing for so long is gone: five times the pause between two words.
const SILENCE: Duration = Duration::from_secs(300);
/// Most that are remembered: whoever can publish must not be able to fill the memory.
const MOST: usize = 1000;

/// When each was heard last.
#[derive(Debug, Default)]
pub(super) struct Peers(BTreeMap<String, Instant>);

impl Peers {
    /// Takes note of a word; an empty one was taken away.
    pub(super) fn hear(&mut self, name: &str, payload: &[u8], now: Instant) {
        if payload.is_empty() {
            self.0.remove(name);
        } else if self.0.contains_key(name) || self.0.len() < MOST {
            self.0.insert(name.to_owned(), now);
        }
    }

    /// Those that are gone; they are forgotten here.
    pub(super) fn gone(&mut self, now: Instant) -> Vec<String> {
        let silent = |_: &String, heard: &mut Instant| now.duration_since(*heard) > SILENCE;
        self.0.extract_if(.., silent).map(|(name, _)| name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_silent_for_long_is_gone_once() {
        let (mut peers, start) = (Peers::default(), Instant::now());
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        for name in ["killed", "ended", "lives"] {
            peers.hear(name, b"{}", start);
        }
        peers.hear("ended", b"", after(60));
        peers.hear("lives", b"{}", after(60));
        assert_eq!(peers.gone(after(300)), [""; 0]);
        assert_eq!(peers.gone(after(301)), ["killed"]);
        assert_eq!(peers.gone(after(302)), [""; 0]);
    }

    #[test]
    fn whoever_invents_names_cannot_fill_the_memory() {
        let (mut peers, now) = (Peers::default(), Instant::now());
        for name in 0..3 * MOST {
            peers.hear(&name.to_string(), b"{}", now);
        }
        assert_eq!(peers.0.len(), MOST);
    }
}
