//! The store's side: what has arrived from one epoch of one gateway.

use super::{Epoch, EpochAck, Ranges, Tally};

/// Most separate ranges of either kind that a ledger keeps. What has arrived is forgotten from above,
/// and what is lost runs together where it is closest: some that arrived then count as lost. Both are
/// sent again if the gateway still has them, and rows are idempotent: that costs traffic and loses nothing.
const MOST_RANGES: usize = 256;

/// What a store has of one epoch of one gateway. Each number up to `through` has arrived or is lost.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
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

    /// Takes note that `seq` arrived, and that the gateway's journal begins at `first` and no longer holds
    /// `missing`: what never arrived of that is recorded as lost.
    ///
    /// What was lost may arrive all the same, from a journal that was restored from an older copy or from a
    /// second one. It is new then, and no longer lost.
    pub fn arrive(&mut self, seq: u64, first: u64, missing: &Ranges) -> Arrival {
        self.lose(1, first.saturating_sub(1));
        for &(from, to) in missing.pairs() {
            self.lose(from, to);
        }
        let found = self.lost.remove(seq, seq);
        let beyond = seq > self.through && self.have.insert(seq, seq);
        self.advance();
        self.have.truncate(MOST_RANGES);
        self.lost.blur(MOST_RANGES);
        if found || beyond { Arrival::New } else { Arrival::Again }
    }

    /// Records as lost what never arrived of the numbers from `from` to `to`.
    fn lose(&mut self, from: u64, to: u64) {
        for (from, to) in self.have.gaps(from.max(self.through.saturating_add(1)), to) {
            self.lost.insert(from, to);
        }
    }

    fn advance(&mut self) {
        let settled = |number| self.have.run_at(number).or_else(|| self.lost.run_at(number));
        while let Some(end) = settled(self.through.saturating_add(1)).filter(|&end| end > self.through) {
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

    /// What never arrived and is gone at the gateway, below `through` and beyond.
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
            assert_eq!(ledger.arrive(seq, 1, &Ranges::new()), Arrival::New);
        }
        assert_eq!((ledger.through(), ledger.have().is_empty()), (5, true));
        assert_eq!(ledger.arrive(3, 1, &Ranges::new()), Arrival::Again);
    }

    #[test]
    fn a_hole_holds_the_watermark_until_it_is_filled() {
        let mut ledger = Ledger::default();
        for seq in [1, 2, 5, 4] {
            ledger.arrive(seq, 1, &Ranges::new());
        }
        assert_eq!((ledger.through(), ledger.have().pairs()), (2, &[(4, 5)][..]));
        ledger.arrive(3, 1, &Ranges::new());
        assert_eq!((ledger.through(), ledger.have().is_empty()), (5, true));
    }

    #[test]
    fn what_the_journal_no_longer_holds_is_lost_except_what_arrived() {
        let mut ledger = Ledger::default();
        for seq in [1, 2, 6, 7, 12] {
            ledger.arrive(seq, 1, &Ranges::new());
        }
        assert_eq!(ledger.arrive(11, 10, &Ranges::new()), Arrival::New);
        assert_eq!(ledger.lost().pairs(), [(3, 5), (8, 9)]);
        assert_eq!((ledger.through(), ledger.have().pairs()), (9, &[(11, 12)][..]));
    }

    #[test]
    fn scattered_numbers_cannot_grow_it_without_bound() {
        let mut ledger = Ledger::default();
        for seq in 1..10_000 {
            ledger.arrive(seq * 2, 1, &Ranges::new());
        }
        assert_eq!(ledger.have().pairs().len(), MOST_RANGES);
    }

    #[test]
    fn what_is_missing_above_first_is_lost_except_what_arrived() {
        let mut ledger = Ledger::default();
        for seq in [1, 4] {
            ledger.arrive(seq, 1, &Ranges::new());
        }
        ledger.arrive(9, 1, &Ranges::from_pairs([(3, 4), (6, 7)]));
        assert_eq!((ledger.through(), ledger.lost().pairs()), (1, &[(3, 3), (6, 7)][..]));
        ledger.arrive(2, 1, &Ranges::new());
        assert_eq!(ledger.through(), 4);
        for seq in [5, 8] {
            ledger.arrive(seq, 1, &Ranges::new());
        }
        assert_eq!((ledger.through(), ledger.have().is_empty()), (9, true));
    }

    #[test]
    fn what_was_lost_and_arrives_all_the_same_is_new() {
        let mut ledger = Ledger::default();
        ledger.arrive(9, 5, &Ranges::from_pairs([(7, 7)]));
        for seq in [2, 7] {
            assert_eq!(ledger.arrive(seq, 1, &Ranges::new()), Arrival::New);
            assert_eq!(ledger.arrive(seq, 1, &Ranges::new()), Arrival::Again);
        }
        assert_eq!((ledger.through(), ledger.lost().pairs()), (4, &[(1, 1), (3, 4)][..]));
        // Whoever does not hold it says so again: it stays.
        ledger.arrive(10, 5, &Ranges::from_pairs([(7, 7)]));
        assert_eq!(ledger.lost().pairs(), [(1, 1), (3, 4)]);
    }

    #[test]
    fn more_losses_than_it_keeps_never_make_a_message_pass_for_arrived() {
        let mut ledger = Ledger::default();
        let last = 4 * MOST_RANGES as u64 + 1;
        for seq in (1..=last).step_by(2) {
            ledger.arrive(seq, 1, &Ranges::from_pairs([(seq.saturating_sub(1).max(1), seq.saturating_sub(1))]));
        }
        assert_eq!((ledger.through(), ledger.lost().pairs().len()), (last, MOST_RANGES));
        assert_eq!(ledger.arrive(2, 1, &Ranges::new()), Arrival::New);
        assert_eq!(ledger.arrive(last - 1, 1, &Ranges::new()), Arrival::New);
    }

    #[test]
    fn the_ends_of_the_number_line_are_safe() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.arrive(u64::MAX, u64::MAX, &Ranges::from_pairs([(0, u64::MAX)])), Arrival::New);
        assert_eq!(ledger.through(), u64::MAX);
        assert_eq!(ledger.arrive(u64::MAX, 1, &Ranges::new()), Arrival::Again);
    }
}
