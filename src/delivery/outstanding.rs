//! What was sent through the backlog and is not yet confirmed, by number and by age.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// The order of its run, and its number: what was accepted earlier is less.
pub(super) type Key = (u64, u64);

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Outstanding {
    sent: BTreeMap<Key, Sent>,
    by_age: BTreeSet<(Duration, Key)>,
    bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Sent {
    bytes: usize,
    at: Duration,
}

impl Outstanding {
    /// Was sent at `at`, for the first time or again.
    pub(super) fn insert(&mut self, key: Key, bytes: usize, at: Duration) {
        self.remove(key);
        self.sent.insert(key, Sent { bytes, at });
        self.by_age.insert((at, key));
        self.bytes = self.bytes.saturating_add(bytes);
    }

    pub(super) fn remove(&mut self, key: Key) {
        if let Some(sent) = self.sent.remove(&key) {
            self.by_age.remove(&(sent.at, key));
            self.bytes = self.bytes.saturating_sub(sent.bytes);
        }
    }

    /// Keeps what `needed` says.
    pub(super) fn retain(&mut self, needed: impl Fn(Key) -> bool) {
        let (by_age, bytes) = (&mut self.by_age, &mut self.bytes);
        self.sent.retain(|&key, sent| {
            let needed = needed(key);
            if !needed {
                by_age.remove(&(sent.at, key));
                *bytes = bytes.saturating_sub(sent.bytes);
            }
            needed
        });
    }

    /// As if all of them had been sent at `at`.
    pub(super) fn touch(&mut self, at: Duration) {
        for sent in self.sent.values_mut() {
            sent.at = at;
        }
        self.by_age = self.sent.keys().map(|&key| (at, key)).collect();
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn contains(&self, key: Key) -> bool {
        self.sent.contains_key(&key)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.sent.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The lowest number of the oldest run.
    pub(super) fn lowest(&self) -> Option<Key> {
        self.sent.keys().next().copied()
    }

    /// What was sent longest ago, and when.
    pub(super) fn oldest(&self) -> Option<(Duration, Key)> {
        self.by_age.first().copied()
    }
}
