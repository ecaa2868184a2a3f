//! When the refused messages that are too many are looked for.
//!
//! Enters: batches that are written. Leaves: whether it is time. Finding what is beyond the bounds reads all refused messages, which
//! is too much for every batch of a flood.

use super::Incoming;

/// After so many refused messages, or bytes of them, it is time: a tenth of what is kept.
const ROWS: usize = 1000;
const BYTES: usize = 6 * 1024 * 1024;

/// Refused messages that came since the oldest were deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Unpruned {
    rows: usize,
    bytes: usize,
}

impl Unpruned {
    /// Before the first look, and where one may have been taken back.
    pub(super) const UNKNOWN: Self = Self { rows: usize::MAX, bytes: usize::MAX };

    /// Takes note of a batch. Returns whether it is time; then what is too much is deleted, and this becomes the default.
    pub(super) fn is_due_with(&mut self, batch: &[Incoming]) -> bool {
        for incoming in batch {
            if let Incoming::Refused { topic, payload, .. } = incoming {
                self.rows = self.rows.saturating_add(1);
                self.bytes = self.bytes.saturating_add(payload.len()).saturating_add(topic.len());
            }
        }
        self.rows >= ROWS || self.bytes >= BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::story::{batch, message, refused};

    #[test]
    fn it_is_time_after_a_tenth_of_what_is_kept() {
        let mut unpruned = Unpruned::UNKNOWN;
        assert!(unpruned.is_due_with(&[]));
        unpruned = Unpruned::default();
        assert!(!unpruned.is_due_with(&batch([message(1, 0, "1")])));
        assert_eq!(unpruned, Unpruned::default());
        let small = vec![refused(None, b"x"); 333];
        assert_eq!([0; 4].map(|_| unpruned.is_due_with(&small)), [false, false, false, true]);
        unpruned = Unpruned::default();
        let large = [refused(None, &[b'x'; 2 * 1024 * 1024])];
        assert_eq!([0; 3].map(|_| unpruned.is_due_with(&large)), [false, false, true]);
    }
}
