//! Whether each gateway is one: two that live under one id are seen by their epochs.
//!
//! Enters: whose live message came, and of which epoch. Leaves: a word when an epoch speaks again after another
//! one that came later. A gateway that starts anew leaves its epoch for ever, so A, B, A are two gateways; SD cards
//! are cloned. Backlogs say nothing: they hold earlier epochs.
//!
//! Not supported: seeing two of which one is silent.

use std::collections::{HashMap, VecDeque};

use crate::delivery::Epoch;

/// Most gateways that are remembered; with one more all are forgotten.
const MOST: usize = 10_000;
/// Epochs that are remembered of a gateway before its latest.
const EARLIER: usize = 8;
/// Most shared ids that are named.
const NAMED: usize = 100;

/// Which epochs of each gateway were heard.
#[derive(Debug, Default)]
pub(super) struct Lives(HashMap<String, Life>);

#[derive(Debug, Default)]
struct Life {
    latest: Option<Epoch>,
    /// Before the latest, oldest first.
    earlier: VecDeque<Epoch>,
    shared: bool,
}

impl Lives {
    /// Takes note of a gateway that sent something, if only a backlog.
    pub(super) fn hear(&mut self, gateway: &str) {
        self.of(gateway);
    }

    /// Takes note of a live message. Returns whether it shows that two gateways have this id.
    pub(super) fn speaks(&mut self, gateway: &str, epoch: Epoch) -> bool {
        let life = self.of(gateway);
        if life.latest == Some(epoch) {
            return false;
        }
        let returns = life.earlier.contains(&epoch);
        life.earlier.retain(|earlier| *earlier != epoch);
        life.earlier.extend(life.latest.replace(epoch));
        if life.earlier.len() > EARLIER {
            life.earlier.pop_front();
        }
        life.shared |= returns;
        returns
    }

    /// How many gateways were heard.
    pub(super) fn gateways(&self) -> usize {
        self.0.len()
    }

    /// Their ids.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }

    /// Ids under which two gateways live, in sorted order.
    pub(super) fn shared(&self) -> impl Iterator<Item = &str> {
        let mut shared: Vec<&str> =
            self.0.iter().filter(|(_, life)| life.shared).map(|(gateway, _)| gateway.as_str()).collect();
        shared.sort_unstable();
        shared.truncate(NAMED);
        shared.into_iter()
    }

    fn of(&mut self, gateway: &str) -> &mut Life {
        if self.0.len() >= MOST && !self.0.contains_key(gateway) {
            self.0.clear();
        }
        self.0.entry(gateway.to_owned()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_that_speaks_again_after_a_later_one_is_another_gateway() {
        let mut lives = Lives::default();
        let mut hear = |gateway: &str, bits: u128| lives.speaks(gateway, Epoch::from_bits(bits));
        // Restarts, however many.
        assert!((0..100).all(|epoch| !hear("one", epoch) && !hear("one", epoch)));
        // Two clones, of which one starts anew now and then.
        let heard: Vec<bool> = [1, 2, 1, 2, 2, 3, 2, 3].map(|epoch| hear("two", epoch)).into();
        assert_eq!(heard, [false, false, true, true, false, false, true, true]);
        assert_eq!((lives.gateways(), lives.shared().collect::<Vec<_>>()), (2, vec!["two"]));
    }

    #[test]
    fn whoever_invents_gateways_cannot_fill_the_memory() {
        let mut lives = Lives::default();
        for number in 0..3 * MOST {
            lives.hear(&number.to_string());
            for epoch in 0..2 * EARLIER as u128 {
                lives.speaks("one", Epoch::from_bits(epoch));
            }
        }
        assert!(lives.gateways() <= MOST);
        assert!(lives.0.values().all(|life| life.earlier.len() <= EARLIER));
    }
}
