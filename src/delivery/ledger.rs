//! The store's side: what has arrived from one epoch of one gateway.

use super::{Epoch, EpochAck, Ranges, Tally};

/// Most separate ranges beyond `through` that a ledger keeps. What is dropped above is acknowledged
/// again when it comes again: rows are idempotent, so that costs traffic and loses nothing.
const MOST_RANGES: usize = 256;

/// What a store has of one epoch of one gateway.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ledger {
    through: u64,
    have: Ranges,
    lost: Ranges,
    /// What became of the messages.
    pub tally: Tally,
}

/// Whether a message is new to a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// Not seen before: it must be written.
    New,
    /// Arrived before: nothing to write.
    Again,
}

impl Ledger {
    /// From what was written earlier.
    pub fn restore(through: u64, have: Ranges, lost: Ranges, tally: Tally) -> Self {
        let mut ledger = Self { through, have, lost, tally };
        ledger.advance();
        ledger
    }

    /// Takes note that `seq` arrived, and that the gateway's journal begins at `first`: what lies
    /// between is gone there and is recorded as lost.
    pub fn arrive(&mut self, seq: u64, first: u64) -> Arrival {
        if first > self.through.saturating_add(1) {
            let mut missing = self.through.saturating_add(1);
            while missing < first {
                if let Some(end) = self.have.run_at(missing) {
                    missing = end.saturating_add(1);
                    continue;
                }
                let next = self.have.pairs().iter().map(|&(begin, _)| begin).find(|&begin| begin > missing);
                let end = next.unwrap_or(first).min(first).saturating_sub(1);
                self.lost.insert(missing, end);
                missing = end.saturating_add(1);
            }
            self.through = first.saturating_sub(1);
            self.have.remove_through(self.through);
            self.lost.truncate(MOST_RANGES);
            self.advance();
        }
        if seq <= self.through || !self.have.insert(seq, seq) {
            return Arrival::Again;
        }
        self.advance();
        self.have.truncate(MOST_RANGES);
        Arrival::New
    }

    fn advance(&mut self) {
        if let Some(end) = self.have.run_at(self.through.saturating_add(1)) {
            self.through = end;
        }
        self.have.remove_through(self.through);
    }

    /// Everything up to here arrived or is lost.
    pub fn through(&self) -> u64 {
        self.through
    }

    /// What arrived beyond `through`.
    pub fn have(&self) -> &Ranges {
        &self.have
    }

    /// What never arrived and is gone at the gateway.
    pub fn lost(&self) -> &Ranges {
        &self.lost
    }

    /// What to tell the gateway.
    pub fn ack(&self, epoch: Epoch) -> EpochAck {
        EpochAck { epoch, through: self.through, have: self.have.clone(), lost: self.lost.clone(), tally: self.tally }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_order_only_the_watermark_moves() {
        let mut ledger = Ledger::default();
        for seq in 1..=5 {
            assert_eq!(ledger.arrive(seq, 1), Arrival::New);
        }
        assert_eq!((ledger.through(), ledger.have().is_empty()), (5, true));
        assert_eq!(ledger.arrive(3, 1), Arrival::Again);
    }

    #[test]
    fn a_hole_holds_the_watermark_until_it_is_filled() {
        let mut ledger = Ledger::default();
        for seq in [1, 2, 5, 4] {
            ledger.arrive(seq, 1);
        }
        assert_eq!((ledger.through(), ledger.have().pairs()), (2, &[(4, 5)][..]));
        ledger.arrive(3, 1);
        assert_eq!((ledger.through(), ledger.have().is_empty()), (5, true));
    }

    #[test]
    fn what_the_journal_no_longer_holds_is_lost_except_what_arrived() {
        let mut ledger = Ledger::default();
        for seq in [1, 2, 6, 7, 12] {
            ledger.arrive(seq, 1);
        }
        assert_eq!(ledger.arrive(11, 10), Arrival::New);
        assert_eq!(ledger.lost().pairs(), [(3, 5), (8, 9)]);
        assert_eq!((ledger.through(), ledger.have().pairs()), (9, &[(11, 12)][..]));
    }

    #[test]
    fn scattered_numbers_cannot_grow_it_without_bound() {
        let mut ledger = Ledger::default();
        for seq in 1..10_000 {
            ledger.arrive(seq * 2, 1);
        }
        assert_eq!(ledger.have().pairs().len(), MOST_RANGES);
    }
}
