//! A batch that the database refuses for what is in it: committed in halves, until what it does not take stands alone.
//!
//! Enters: a batch. Leaves: what became of it. Everything is stored that the database takes, in the order in which it came; then each message
//! that it does not take is kept as refused, as far as it takes that. Where it takes no message of several meters, not the messages are wrong but
//! the tables (a partition that is missing, a constraint that somebody added): they wait. Whatever else fails ends it, and leaves the rest to be
//! tried again.
//!
//! Not supported: keeping such a message byte by byte as it came. It is written anew from what was read of it.

use jiff::Timestamp;

use super::{Committed, Database, Incoming, StoreError};
use crate::{
    delivery::topic,
    moment::Moment,
    payload::{self, Message},
    pulse::Pulse,
};

/// What became of a batch.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// What was committed; in the acknowledgements a gateway may stand several times, the newest last.
    pub(super) committed: Committed,
    /// Messages that the database did not take and that were kept as refused: under which topic, and why.
    pub(super) refused: Vec<(String, String)>,
    /// What could not be committed, in the order in which it came.
    pub(super) rest: Vec<Incoming>,
    /// Why; None: nothing is left.
    pub(super) error: Option<StoreError>,
}

/// Commits a batch of messages that came below the topic `base`; as one where the database takes all of it.
pub(super) async fn commit(database: &mut dyn Database, batch: Vec<Incoming>, base: &str, pulse: &Pulse) -> Outcome {
    let mut outcome = Outcome::default();
    let several = several_meters(&batch);
    // What is still to be committed, the first on top.
    let mut parts = vec![batch];
    let (mut culprits, mut failed) = (Vec::new(), None);
    while let Some(mut part) = parts.pop() {
        pulse.beat();
        let Err(error) = outcome.add(database.commit(&part).await) else { continue };
        if error.refusal().is_none() {
            parts.push(part);
            failed = Some(error);
            break;
        }
        if part.len() > 1 {
            let second = part.split_off(part.len() / 2);
            parts.extend([second, part]);
        } else {
            culprits.extend(part.pop().map(|culprit| (culprit, error)));
        }
    }
    let takes_none = several && outcome.committed.stored == 0;
    for (culprit, mut error) in culprits {
        pulse.beat();
        if failed.is_none()
            && !takes_none
            && let (Incoming::Message(message), Some(reason)) = (&culprit, error.refusal())
        {
            let (topic, refused) = refused(base, message, &reason);
            match outcome.add(database.commit(&[refused]).await) {
                Ok(()) => {
                    outcome.refused.push((topic, reason));
                    continue;
                }
                // Not even as refused; the others are, unless nothing can be.
                Err(other) if other.refusal().is_none() => failed = Some(other),
                Err(other) => error = other,
            }
        }
        outcome.rest.push(culprit);
        outcome.error = Some(error);
    }
    outcome.rest.extend(parts.into_iter().rev().flatten());
    outcome.error = failed.or(outcome.error);
    outcome
}

fn several_meters(batch: &[Incoming]) -> bool {
    let mut meters = batch.iter().filter_map(|incoming| match incoming {
        Incoming::Message(message) => Some(&message.report.meter),
        Incoming::Refused { .. } => None,
    });
    let first = meters.next();
    meters.any(|meter| Some(meter) != first)
}

impl Outcome {
    fn add(&mut self, result: Result<Committed, StoreError>) -> Result<(), StoreError> {
        let Committed { stored, repeated, again, refused, lost, acks } = result?;
        let sum = &mut self.committed;
        for (sum, more) in [
            (&mut sum.stored, stored),
            (&mut sum.repeated, repeated),
            (&mut sum.again, again),
            (&mut sum.refused, refused),
            (&mut sum.lost, lost),
        ] {
            *sum = sum.saturating_add(more);
        }
        sum.acks.extend(acks);
        Ok(())
    }
}

/// A message that the database does not take, as a refused one, and its topic.
fn refused(base: &str, message: &Message, reason: &str) -> (String, Incoming) {
    let Message { envelope, received_at, report } = message;
    let topic = topic::of_meter(base, &envelope.gateway, &report.meter, topic::Stream::Telegram.name());
    let refused = Incoming::Refused {
        topic: topic.clone(),
        payload: payload::message(envelope, &payload::body(report, *received_at)).into_bytes(),
        reason: reason.to_owned(),
        schema: payload::SCHEMA,
        envelope: Some(envelope.clone()),
        received_at: Moment::utc(Timestamp::now()),
    };
    (topic, refused)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use async_trait::async_trait;

    use super::*;
    use crate::{
        delivery::EpochAck,
        store::{
            Read, Reread, Size, Trouble,
            story::{batch, message},
        },
    };

    /// A database that does not take some messages, or fails altogether.
    #[derive(Debug, Default)]
    struct Fake {
        /// What it took, in order: the number, and whether as refused.
        taken: Vec<(u64, bool)>,
        commits: usize,
        /// Numbers that it does not take.
        culprits: Vec<u64>,
        /// Those that it does not even take as refused.
        poison: Vec<u64>,
        /// After so many commits it fails for another reason.
        fails_after: Option<usize>,
    }

    fn wrong(trouble: Trouble) -> StoreError {
        StoreError::Database { place: "fake".into(), trouble, source: "value out of range".into() }
    }

    #[async_trait]
    impl Database for Fake {
        fn generation(&self) -> &str {
            "g"
        }

        fn started(&self) -> &str {
            "s"
        }

        fn size(&self) -> Size {
            Size::default()
        }

        async fn gateways(&mut self) -> Result<Vec<String>, StoreError> {
            Ok(Vec::new())
        }

        async fn epochs(&mut self, _gateway: &str) -> Result<Vec<EpochAck>, StoreError> {
            Ok(Vec::new())
        }

        async fn reread(&mut self, _schema: u32, _read: &Read<'_>) -> Result<Reread, StoreError> {
            Ok(Reread::default())
        }

        async fn commit(&mut self, batch: &[Incoming]) -> Result<Committed, StoreError> {
            self.commits += 1;
            if self.fails_after.is_some_and(|after| self.commits > after) {
                return Err(wrong(Trouble::Unreachable));
            }
            let number = |incoming: &Incoming| incoming.envelope().unwrap().seq;
            let taken = batch.iter().map(|incoming| (number(incoming), matches!(incoming, Incoming::Refused { .. })));
            let taken: Vec<(u64, bool)> = taken.collect();
            let not =
                |(seq, refused): &(u64, bool)| self.poison.contains(seq) || (!refused && self.culprits.contains(seq));
            if taken.iter().any(not) {
                return Err(wrong(Trouble::Value));
            }
            let refused = taken.iter().filter(|(_, refused)| *refused).count() as u64;
            let acks = vec![(format!("gw-{}", taken[0].0), Vec::new())];
            self.taken.extend(&taken);
            Ok(Committed { stored: taken.len() as u64 - refused, refused, acks, ..Committed::default() })
        }

        async fn keep_up(&mut self, _retention: Duration) -> Result<bool, StoreError> {
            Ok(false)
        }

        async fn abandon(self: Box<Self>) {}

        async fn close(self: Box<Self>) -> Result<(), StoreError> {
            Ok(())
        }
    }

    fn messages(count: u64) -> Vec<Incoming> {
        batch((1..=count).map(|seq| message(seq, seq.cast_signed(), "1.000")))
    }

    async fn outcome(fake: &mut Fake, count: u64) -> Outcome {
        commit(fake, messages(count), "m", &Pulse::default()).await
    }

    #[tokio::test]
    async fn what_the_database_does_not_take_is_kept_as_refused_and_the_rest_is_stored_in_order() {
        for (culprits, most) in [
            (vec![], 1),
            (vec![1], 30),
            (vec![617], 30),
            (vec![1000], 30),
            (vec![250, 750], 50),
            (vec![500, 501], 50),
            ((1..=1000).collect(), 3000),
        ] {
            let mut fake = Fake { culprits: culprits.clone(), ..Fake::default() };
            let outcome = outcome(&mut fake, 1000).await;
            let mut expected: Vec<(u64, bool)> = (1..=1000).map(|seq| (seq, culprits.contains(&seq))).collect();
            expected.sort_by_key(|(_, refused)| *refused);
            assert!(fake.taken == expected, "{culprits:?}: {:?}", fake.taken);
            assert!(outcome.rest.is_empty() && outcome.error.is_none());
            let count = culprits.len() as u64;
            assert_eq!((outcome.committed.stored, outcome.committed.refused), (1000 - count, count));
            assert_eq!(outcome.refused.len(), culprits.len());
            for (topic, reason) in &outcome.refused {
                assert_eq!(topic, "m/gw-1/E1/telegram");
                assert_eq!(reason, "the database does not take it: value out of range");
            }
            let acknowledged: Vec<u64> = outcome
                .committed
                .acks
                .iter()
                .map(|(gateway, _)| gateway.strip_prefix("gw-").unwrap().parse().unwrap())
                .collect();
            assert!(acknowledged.len() >= culprits.len() && acknowledged.ends_with(&culprits), "the newest comes last");
            assert!(fake.commits <= most, "{culprits:?}: {} commits", fake.commits);
        }
    }

    #[tokio::test]
    async fn it_is_refused_as_it_would_be_read() {
        let mut first = message(7, 0, "-1.50");
        first.report.meter = "E/1".into();
        let (topic, incoming) = refused("a/b", &first, "why");
        assert_eq!(topic, "a/b/gw-1/E~2f1/telegram");
        let Incoming::Refused { topic: kept, payload, reason, schema, envelope, .. } = incoming else { panic!() };
        assert_eq!((kept, reason.as_str(), schema), (topic, "why", payload::SCHEMA));
        assert_eq!(envelope.as_ref(), Some(&first.envelope));
        assert_eq!(Message::from_json(&payload), Ok(first));
    }

    #[tokio::test]
    async fn what_is_not_even_taken_as_refused_is_left_alone() {
        let mut fake = Fake { culprits: vec![3], poison: vec![20, 70], ..Fake::default() };
        let first = outcome(&mut fake, 100).await;
        let numbers =
            |rest: &[Incoming]| -> Vec<u64> { rest.iter().map(|incoming| incoming.envelope().unwrap().seq).collect() };
        assert_eq!(numbers(&first.rest), [20, 70]);
        assert!(first.rest.iter().all(|incoming| matches!(incoming, Incoming::Message(_))), "as they came");
        assert!(first.error.unwrap().refusal().is_some());
        assert_eq!((first.committed.stored, first.committed.refused), (97, 1));
        // Once the database takes them, they are messages.
        fake.poison.clear();
        let second = commit(&mut fake, first.rest, "m", &Pulse::default()).await;
        assert_eq!((second.committed.stored, second.rest.len()), (2, 0));
        // A refused message that is not taken is left alone as well.
        fake.poison = vec![1];
        let (_, alone) = refused("m", &message(1, 0, "1"), "why");
        let third = commit(&mut fake, vec![alone.clone()], "m", &Pulse::default()).await;
        assert_eq!(third.rest, [alone]);
    }

    #[tokio::test]
    async fn whatever_else_fails_ends_it_and_nothing_is_lost_or_moved() {
        for fails_after in 0..40 {
            let mut fake =
                Fake { culprits: vec![30, 60], poison: vec![10], fails_after: Some(fails_after), ..Fake::default() };
            let outcome = outcome(&mut fake, 100).await;
            let failed = fake.commits > fails_after;
            assert_eq!(fake.commits.min(fails_after + 1), fake.commits, "nothing is asked after that");
            assert_eq!(outcome.error.unwrap().refusal().is_none(), failed);
            let mut left = messages(100);
            left.retain(|incoming| {
                let seq = incoming.envelope().unwrap().seq;
                !fake.taken.iter().any(|(taken, _)| *taken == seq)
            });
            assert_eq!(outcome.rest, left, "after {fails_after}");
            assert!(fake.taken.is_sorted_by_key(|(seq, refused)| (*refused, *seq)));
        }
    }

    #[tokio::test]
    async fn where_the_database_takes_no_message_of_several_meters_they_wait() {
        let mut fake = Fake { culprits: (1..=10).collect(), ..Fake::default() };
        let mut batch = messages(10);
        if let Some(Incoming::Message(message)) = batch.last_mut() {
            message.report.meter = "E2".into();
        }
        let first = commit(&mut fake, batch.clone(), "m", &Pulse::default()).await;
        assert_eq!((first.rest.as_slice(), fake.taken.as_slice()), (&batch[..], &[][..]));
        assert!(first.error.unwrap().refusal().is_some());
        // With one that it takes it is known whose fault it is.
        let more = batch.into_iter().chain(messages(11).pop()).collect();
        let second = commit(&mut fake, more, "m", &Pulse::default()).await;
        assert!(second.error.is_none() && second.rest.is_empty());
        assert_eq!((second.committed.stored, second.committed.refused), (1, 10));
    }
}
