//! What has arrived from each gateway, as rows.
//!
//! Enters: the gateways and epochs of a batch. Leaves: their ledgers, and what to acknowledge.

use std::collections::{BTreeMap, BTreeSet};

use super::{Incoming, number, tables::Tables, unreadable};
use crate::{
    delivery::{Epoch, EpochAck, Ledger, Ranges, Tally},
    payload::Envelope,
};

/// Epochs of a gateway that are kept, and that it is told after a reconnect: a year of three starts a day.
pub(super) const EPOCHS: u32 = 1000;
/// Most epochs of a gateway that are acknowledged with each commit. A gateway that starts knows of no others until the store
/// connects anew, and sends again what it holds of them: a gateway that crashes again and again must not get there soon.
const RECENT_EPOCHS: u32 = 250;

/// The ledgers that a batch touches, by gateway in sorted order.
pub(super) struct Ledgers(BTreeMap<String, BTreeMap<Epoch, Ledger>>);

/// The columns of a ledger that [`read_ledger`] reads.
pub(super) const LEDGER: &str = "gateway, epoch, through, have, lost, stored, repeated, refused";

/// Their values.
pub(super) type Columns = (String, String, i64, String, String, i64, i64, i64);

impl Ledgers {
    pub(super) async fn load(tables: &mut impl Tables, batch: &[Incoming]) -> Result<Self, sqlx::Error> {
        let mut ledgers = Self(BTreeMap::new());
        let runs: BTreeSet<_> =
            batch.iter().filter_map(Incoming::envelope).map(|envelope| (&*envelope.gateway, envelope.epoch)).collect();
        if !runs.is_empty() {
            for (gateway, epoch, ledger) in tables.ledgers(&runs).await? {
                ledgers.0.entry(gateway).or_default().insert(epoch, ledger);
            }
        }
        // Of the others nothing has arrived.
        for (gateway, epoch) in runs {
            ledgers.0.entry(gateway.to_owned()).or_default().entry(epoch).or_default();
        }
        Ok(ledgers)
    }

    /// That of a message of the batch.
    pub(super) fn of(&mut self, envelope: &Envelope) -> Result<&mut Ledger, sqlx::Error> {
        let epochs = self.0.get_mut(&envelope.gateway);
        epochs.and_then(|epochs| epochs.get_mut(&envelope.epoch)).ok_or(sqlx::Error::RowNotFound)
    }

    /// How many numbers are lost in all of them.
    pub(super) fn lost(&self) -> u64 {
        let ledgers = self.0.values().flat_map(BTreeMap::values);
        ledgers.fold(0, |sum, ledger| sum.saturating_add(ledger.lost().count()))
    }

    pub(super) async fn save(&self, tables: &mut impl Tables) -> Result<(), sqlx::Error> {
        let of = |(gateway, epochs)| {
            let (gateway, epochs): (&String, &BTreeMap<Epoch, Ledger>) = (gateway, epochs);
            epochs.iter().map(|(epoch, ledger)| (gateway.as_str(), *epoch, ledger))
        };
        let rows: Vec<_> = self.0.iter().flat_map(of).collect();
        if rows.is_empty() { Ok(()) } else { tables.save_ledgers(&rows).await }
    }

    pub(super) async fn acks(&self, tables: &mut impl Tables) -> Result<Vec<(String, Vec<EpochAck>)>, sqlx::Error> {
        let gateways: Vec<_> = self.0.keys().map(String::as_str).collect();
        if gateways.is_empty() { Ok(Vec::new()) } else { tables.newest_ledgers(&gateways, RECENT_EPOCHS).await }
    }
}

/// Moves messages that could be read after all from `refused` to what they became. The gateway was told long ago that
/// they arrived, so nothing else of the ledger changes.
pub(super) async fn recount(
    tables: &mut impl Tables,
    envelopes: impl Iterator<Item = (&Envelope, bool)>,
) -> Result<(), sqlx::Error> {
    let mut counts: BTreeMap<(&str, Epoch), (i64, i64)> = BTreeMap::new();
    for (envelope, stored) in envelopes {
        let (new, old) = counts.entry((&envelope.gateway, envelope.epoch)).or_default();
        *(if stored { new } else { old }) += 1;
    }
    for (run, (stored, repeated)) in counts {
        tables.recount(run, stored, repeated).await?;
    }
    Ok(())
}

/// A ledger from its columns.
pub(super) fn read_ledger(columns: Columns) -> Result<(String, Epoch, Ledger), sqlx::Error> {
    let (gateway, epoch, through, have, lost, stored, repeated, refused) = columns;
    let ranges = |text: &str| serde_json::from_str::<Vec<_>>(text).map(Ranges::from_pairs).map_err(unreadable);
    let count = |number: i64| number.unsigned_abs();
    let tally = Tally { stored: count(stored), repeated: count(repeated), refused: count(refused) };
    let epoch = Epoch::from_text(&epoch).ok_or_else(|| unreadable(format!("`{epoch}` is no epoch")))?;
    Ok((gateway, epoch, Ledger::restore(count(through), ranges(&have)?, ranges(&lost)?, tally)))
}

/// What to acknowledge, from the ledgers of gateways that stand one behind the other.
pub(super) fn by_gateway(rows: Vec<Columns>) -> Result<Vec<(String, Vec<EpochAck>)>, sqlx::Error> {
    let mut acks: Vec<(String, Vec<EpochAck>)> = Vec::new();
    for row in rows {
        let (gateway, epoch, ledger) = read_ledger(row)?;
        match acks.last_mut().filter(|(last, _)| *last == gateway) {
            Some((_, epochs)) => epochs.push(ledger.ack(epoch)),
            None => acks.push((gateway, vec![ledger.ack(epoch)])),
        }
    }
    Ok(acks)
}

/// The counts of a ledger as columns: stored, repeated, refused.
pub(super) fn tally(ledger: &Ledger) -> [i64; 3] {
    let Tally { stored, repeated, refused } = ledger.tally;
    [stored, repeated, refused].map(number)
}
