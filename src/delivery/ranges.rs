//! Sets of message numbers, as few inclusive ranges as possible.

/// A set of `u64`, kept as sorted, disjoint, non-adjacent inclusive ranges.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// The empty set.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// From ranges in any order; those with the end before the start are left out.
    pub fn from_pairs(pairs: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let mut ranges = Self::new();
        for (from, to) in pairs {
            ranges.insert(from, to);
        }
        ranges
    }

    /// Adds all numbers from `from` to `to`. Returns whether any of them was new.
    pub fn insert(&mut self, from: u64, to: u64) -> bool {
        if from > to {
            return false;
        }
        // The ranges that overlap or touch the new one melt into it.
        let start = self.0.partition_point(|&(_, end)| end < from.saturating_sub(1));
        let end = self.0.partition_point(|&(begin, _)| begin <= to.saturating_add(1));
        let touched = self.0.get(start..end).unwrap_or_default();
        if let [(begin, end)] = touched
            && *begin <= from
            && to <= *end
        {
            return false;
        }
        let from = touched.first().map_or(from, |&(begin, _)| begin.min(from));
        let to = touched.last().map_or(to, |&(_, end)| end.max(to));
        self.0.splice(start..end.max(start), [(from, to)]);
        true
    }

    /// Whether `number` is in the set.
    pub fn contains(&self, number: u64) -> bool {
        self.run_at(number).is_some()
    }

    /// The end of the range in which `number` lies.
    pub fn run_at(&self, number: u64) -> Option<u64> {
        let index = self.0.partition_point(|&(_, end)| end < number);
        self.0.get(index).filter(|&&(begin, _)| begin <= number).map(|&(_, end)| end)
    }

    /// Removes everything up to and including `number`.
    pub fn remove_through(&mut self, number: u64) {
        self.0.retain(|&(_, end)| end > number);
        if let Some((begin, _)) = self.0.first_mut()
            && *begin <= number
        {
            // `end > number`, so there is a next number.
            *begin = number.saturating_add(1);
        }
    }

    /// Removes all numbers from `from` to `to`. Returns whether any of them was in the set.
    pub fn remove(&mut self, from: u64, to: u64) -> bool {
        if from > to {
            return false;
        }
        let start = self.0.partition_point(|&(_, end)| end < from);
        let end = self.0.partition_point(|&(begin, _)| begin <= to).max(start);
        let touched = self.0.get(start..end).unwrap_or_default();
        let before = touched.first().filter(|&&(begin, _)| begin < from).map(|&(begin, _)| (begin, from - 1));
        let after = touched.last().filter(|&&(_, end)| end > to).map(|&(_, end)| (to + 1, end));
        let any = !touched.is_empty();
        self.0.splice(start..end, before.into_iter().chain(after));
        any
    }

    /// The numbers from `from` to `to` that are not in the set, as ranges in ascending order.
    pub fn gaps(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, u64)> {
        let mut next = Some(from);
        std::iter::from_fn(move || {
            loop {
                let begin = next.filter(|&begin| begin <= to)?;
                match self.0.get(self.0.partition_point(|&(_, end)| end < begin)) {
                    Some(&(at, end)) if at <= begin => next = end.checked_add(1),
                    Some(&(at, _)) if at <= to => {
                        next = Some(at);
                        return Some((begin, at - 1));
                    }
                    _ => {
                        next = None;
                        return Some((begin, to));
                    }
                }
            }
        })
    }

    /// Lets the two ranges that are closest to each other run together, until there are at most `most`.
    pub fn blur(&mut self, most: usize) {
        while self.0.len() > most.max(1) {
            let apart = self.0.windows(2).map(|pair| match pair {
                [(_, end), (begin, _)] => begin.saturating_sub(*end),
                _ => u64::MAX,
            });
            let Some((index, _)) = apart.enumerate().min_by_key(|&(_, apart)| apart) else { return };
            let (_, end) = self.0.remove(index.saturating_add(1));
            if let Some(range) = self.0.get_mut(index) {
                range.1 = end;
            }
        }
    }

    /// Keeps only the lowest `most` ranges.
    pub fn truncate(&mut self, most: usize) {
        self.0.truncate(most);
    }

    /// The ranges in ascending order.
    pub fn pairs(&self) -> &[(u64, u64)] {
        &self.0
    }

    /// The highest number.
    pub fn last(&self) -> Option<u64> {
        self.0.last().map(|&(_, end)| end)
    }

    /// How many numbers are in the set.
    pub fn count(&self) -> u64 {
        self.0.iter().fold(0, |sum, &(from, to)| sum.saturating_add(to.saturating_sub(from)).saturating_add(1))
    }

    /// Whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_as_a_set_of_numbers(
            inserts in prop::collection::vec((0u64..60, 0u64..12), 0..30),
            removed in prop::option::of(0u64..60),
            cut in prop::option::of((0u64..60, 0u64..12)),
            seen in (0u64..60, 0u64..30),
        ) {
            let mut ranges = Ranges::new();
            let mut model = BTreeSet::new();
            for (from, length) in inserts {
                let to = from + length;
                let before = model.len();
                model.extend(from..=to);
                prop_assert_eq!(ranges.insert(from, to), model.len() > before);
            }
            if let Some(number) = removed {
                ranges.remove_through(number);
                model.retain(|&entry| entry > number);
            }
            if let Some((from, length)) = cut {
                let before = model.len();
                model.retain(|&entry| entry < from || entry > from + length);
                prop_assert_eq!(ranges.remove(from, from + length), model.len() < before);
            }
            let (from, to) = (seen.0, seen.0 + seen.1);
            let absent: Vec<u64> = ranges.gaps(from, to).flat_map(|(from, to)| from..=to).collect();
            prop_assert_eq!(absent, (from..=to).filter(|number| !model.contains(number)).collect::<Vec<_>>());
            prop_assert_eq!(ranges.count(), model.len() as u64);
            prop_assert_eq!(ranges.last(), model.last().copied());
            for number in 0..80 {
                prop_assert_eq!(ranges.contains(number), model.contains(&number));
            }
            for pair in ranges.pairs().windows(2) {
                prop_assert!(pair[0].1 + 1 < pair[1].0, "ranges are apart: {:?}", ranges);
            }
        }
    }

    #[test]
    fn the_ends_of_the_number_line_are_safe() {
        let mut ranges = Ranges::from_pairs([(u64::MAX, u64::MAX), (0, 0), (5, 3)]);
        assert_eq!(ranges.pairs(), [(0, 0), (u64::MAX, u64::MAX)]);
        assert!(ranges.insert(1, u64::MAX - 1));
        assert_eq!(ranges.pairs(), [(0, u64::MAX)]);
        assert_eq!(ranges.gaps(0, u64::MAX).next(), None);
        assert!(ranges.remove(0, 0) && ranges.remove(u64::MAX, u64::MAX));
        assert_eq!(ranges.gaps(0, u64::MAX).collect::<Vec<_>>(), [(0, 0), (u64::MAX, u64::MAX)]);
        ranges.remove_through(u64::MAX);
        assert!(ranges.is_empty());
        assert_eq!(ranges.gaps(5, u64::MAX).collect::<Vec<_>>(), [(5, u64::MAX)]);
        assert_eq!(ranges.gaps(5, 4).next(), None);
    }

    #[test]
    fn the_closest_ranges_run_together_first() {
        let mut ranges = Ranges::from_pairs([(1, 1), (10, 10), (12, 13), (20, 20)]);
        ranges.blur(3);
        assert_eq!(ranges.pairs(), [(1, 1), (10, 13), (20, 20)]);
        ranges.blur(1);
        assert_eq!(ranges.pairs(), [(1, 20)]);
    }
}
