//! What should stand at the broker: topics of which only the last value is worth anything.
//!
//! Enters: a topic's value, whenever it changes. Leaves: those that the broker has not been told. So none is
//! lost when the connection has no room or breaks, and an older value never follows a newer one. After a
//! reconnection everything is told again, because a broker may have forgotten.

use std::collections::BTreeMap;

/// Most topics: far more than a gateway's meters have.
const MOST_TOPICS: usize = 4000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Board {
    values: BTreeMap<String, Value>,
    untold: usize,
}

#[derive(Debug)]
struct Value {
    payload: String,
    told: bool,
}

impl Board {
    /// Sets a topic's value.
    pub(super) fn set(&mut self, topic: String, payload: String) {
        if self.values.len() >= MOST_TOPICS && !self.values.contains_key(&topic) {
            *self = Self::default();
        }
        let before = self.values.insert(topic, Value { payload, told: false });
        if before.is_none_or(|before| before.told) {
            self.untold = self.untold.saturating_add(1);
        }
    }

    /// The broker may know nothing of it.
    pub(super) fn forget_told(&mut self) {
        for value in self.values.values_mut() {
            value.told = false;
        }
        self.untold = self.values.len();
    }

    /// Gives out what the broker has not been told, for as long as `tell` takes it (topic, payload).
    pub(super) fn tell(&mut self, mut tell: impl FnMut(&str, &str) -> bool) {
        if self.untold == 0 {
            return;
        }
        for (topic, value) in self.values.iter_mut().filter(|(_, value)| !value.told) {
            if !tell(topic, &value.payload) {
                return;
            }
            value.told = true;
            self.untold = self.untold.saturating_sub(1);
        }
    }

    /// Whether everything was told.
    pub(super) fn is_told(&self) -> bool {
        self.untold == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(board: &mut Board, room: usize) -> Vec<(String, String)> {
        let mut told = Vec::new();
        board.tell(|topic, payload| {
            let takes = told.len() < room;
            if takes {
                told.push((topic.to_owned(), payload.to_owned()));
            }
            takes
        });
        told
    }

    #[test]
    fn only_the_last_value_is_told_and_none_is_lost_for_lack_of_room() {
        let mut board = Board::default();
        for (topic, value) in [("a", "1"), ("b", "1"), ("a", "2"), ("c", "1")] {
            board.set(topic.into(), value.into());
        }
        assert_eq!(told(&mut board, 2), [("a".into(), "2".into()), ("b".into(), "1".into())]);
        assert!(!board.is_told());
        assert_eq!(told(&mut board, 9), [("c".into(), "1".into())]);
        assert!(board.is_told() && told(&mut board, 9).is_empty());
        board.set("b".into(), "3".into());
        assert_eq!(told(&mut board, 9), [("b".into(), "3".into())]);
        board.forget_told();
        assert_eq!(told(&mut board, 9).len(), 3);
    }

    #[test]
    fn names_without_end_take_no_memory_without_end() {
        let mut board = Board::default();
        for number in 0..3 * MOST_TOPICS {
            board.set(number.to_string(), String::new());
        }
        assert!(board.values.len() <= MOST_TOPICS);
        assert_eq!(board.untold, board.values.len());
    }
}
