//! What has arrived from each gateway, as rows.
//!
//! Enters: the gateways and epochs of a batch. Leaves: their ledgers, and what to acknowledge.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{QueryBuilder, SqliteConnection, query, query_scalar};

use super::{CHUNK, Incoming, json, number, unreadable};
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

/// The columns that [`read_ledger`] reads.
const LEDGER: &str = "gateway, epoch, through, have, lost, stored, repeated, refused";
type LedgerRow = (String, String, i64, String, String, i64, i64, i64);

impl Ledgers {
    pub(super) async fn load(connection: &mut SqliteConnection, batch: &[Incoming]) -> Result<Self, sqlx::Error> {
        let mut ledgers = Self(BTreeMap::new());
        let keys: BTreeSet<_> =
            batch.iter().filter_map(Incoming::envelope).map(|envelope| (&*envelope.gateway, envelope.epoch)).collect();
        for chunk in keys.into_iter().collect::<Vec<_>>().chunks(CHUNK) {
            let mut sql = QueryBuilder::new(format!("SELECT {LEDGER} FROM ledger WHERE (gateway, epoch) IN ("));
            sql.push_values(chunk, |mut row, (gateway, epoch)| {
                row.push_bind(*gateway).push_bind(epoch.to_string());
            });
            sql.push(")");
            for row in sql.build_query_as().persistent(false).fetch_all(&mut *connection).await? {
                let (gateway, epoch, ledger) = read_ledger(row)?;
                ledgers.0.entry(gateway).or_default().insert(epoch, ledger);
            }
        }
        Ok(ledgers)
    }

    pub(super) fn of(&mut self, envelope: &Envelope) -> &mut Ledger {
        self.0.entry(envelope.gateway.clone()).or_default().entry(envelope.epoch).or_default()
    }

    /// How many numbers are lost in all of them.
    pub(super) fn lost(&self) -> u64 {
        let ledgers = self.0.values().flat_map(BTreeMap::values);
        ledgers.fold(0, |sum, ledger| sum.saturating_add(ledger.lost().count()))
    }

    pub(super) async fn save(&self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let rows = self.0.iter().flat_map(|(gateway, epochs)| epochs.iter().map(move |row| (gateway, row)));
        for chunk in rows.collect::<Vec<_>>().chunks(CHUNK) {
            // One subquery over the list: SQLite would compile one in each row.
            let mut sql = QueryBuilder::new(format!(
                "INSERT INTO ledger ({LEDGER}, touched) SELECT *,
                (SELECT coalesce(max(touched), 0) + 1 FROM ledger WHERE gateway = list.column1) FROM ("
            ));
            sql.push_values(chunk, |mut row, (gateway, (epoch, ledger))| {
                row.push_bind(&***gateway).push_bind(epoch.to_string()).push_bind(number(ledger.through()));
                row.push_bind(json(&ledger.have().pairs())).push_bind(json(&ledger.lost().pairs()));
                let Tally { stored, repeated, refused } = ledger.tally;
                row.push_bind(number(stored)).push_bind(number(repeated)).push_bind(number(refused));
            });
            sql.push(
                ") AS list WHERE true ON CONFLICT (gateway, epoch) DO UPDATE SET
                through = excluded.through, have = excluded.have, lost = excluded.lost, stored = excluded.stored,
                repeated = excluded.repeated, refused = excluded.refused, touched = excluded.touched",
            );
            sql.build().persistent(false).execute(&mut *connection).await?;
        }
        Ok(())
    }

    pub(super) async fn acks(
        &self,
        connection: &mut SqliteConnection,
    ) -> Result<Vec<(String, Vec<EpochAck>)>, sqlx::Error> {
        let mut acks = Vec::with_capacity(self.0.len());
        for chunk in self.0.keys().map(String::as_str).collect::<Vec<_>>().chunks(CHUNK) {
            acks.extend(newest_ledgers(&mut *connection, chunk, RECENT_EPOCHS).await?);
        }
        Ok(acks)
    }
}

/// The epochs of these gateways, those touched last first, at most `most` of each.
pub(super) async fn newest_ledgers(
    connection: &mut SqliteConnection,
    gateways: &[&str],
    most: u32,
) -> Result<Vec<(String, Vec<EpochAck>)>, sqlx::Error> {
    let mut sql = QueryBuilder::new(format!("SELECT {LEDGER} FROM ledger_newest WHERE gateway IN ("));
    let mut list = sql.separated(", ");
    for gateway in gateways {
        list.push_bind(*gateway);
    }
    sql.push(") AND place <= ").push_bind(most).push(" ORDER BY gateway, place");
    let mut acks: Vec<(String, Vec<EpochAck>)> = Vec::new();
    for row in sql.build_query_as().persistent(false).fetch_all(connection).await? {
        let (gateway, epoch, ledger) = read_ledger(row)?;
        match acks.last_mut().filter(|(last, _)| *last == gateway) {
            Some((_, epochs)) => epochs.push(ledger.ack(epoch)),
            None => acks.push((gateway, vec![ledger.ack(epoch)])),
        }
    }
    Ok(acks)
}

/// Every gateway that ever sent something, in sorted order.
pub(super) async fn gateways(connection: &mut SqliteConnection) -> Result<Vec<String>, sqlx::Error> {
    query_scalar("SELECT DISTINCT gateway FROM ledger ORDER BY gateway").fetch_all(connection).await
}

/// Deletes up to `most` ledgers that are not among the [`EPOCHS`] touched last of their gateway. When such an epoch
/// comes again all the same, its messages are there already: they count as `repeated`, and nothing is stored twice.
pub(super) async fn delete_ancient(connection: &mut SqliteConnection, most: i64) -> Result<u64, sqlx::Error> {
    let sql = "DELETE FROM ledger WHERE (gateway, epoch) IN
        (SELECT gateway, epoch FROM ledger_newest WHERE place > ? LIMIT ?)";
    Ok(query(sql).bind(EPOCHS).bind(most).execute(connection).await?.rows_affected())
}

/// Moves messages that could be read after all from `refused` to what they became. The gateway was told long ago that
/// they arrived, so nothing else of the ledger changes.
pub(super) async fn recount(
    connection: &mut SqliteConnection,
    envelopes: impl Iterator<Item = (&Envelope, bool)>,
) -> Result<(), sqlx::Error> {
    let mut counts: BTreeMap<(&str, Epoch), (i64, i64)> = BTreeMap::new();
    for (envelope, stored) in envelopes {
        let (new, old) = counts.entry((&envelope.gateway, envelope.epoch)).or_default();
        *(if stored { new } else { old }) += 1;
    }
    for ((gateway, epoch), (stored, repeated)) in counts {
        let sql = "UPDATE ledger SET stored = stored + ?, repeated = repeated + ?, refused = max(refused - ?, 0)
            WHERE gateway = ? AND epoch = ?";
        let update = query(sql).bind(stored).bind(repeated).bind(stored + repeated).bind(gateway);
        update.bind(epoch.to_string()).execute(&mut *connection).await?;
    }
    Ok(())
}

fn read_ledger(row: LedgerRow) -> Result<(String, Epoch, Ledger), sqlx::Error> {
    let (gateway, epoch, through, have, lost, stored, repeated, refused) = row;
    let ranges = |text: &str| serde_json::from_str::<Vec<_>>(text).map(Ranges::from_pairs).map_err(unreadable);
    let count = |number: i64| number.unsigned_abs();
    let tally = Tally { stored: count(stored), repeated: count(repeated), refused: count(refused) };
    let epoch = Epoch::from_text(&epoch).ok_or_else(|| unreadable(format!("`{epoch}` is no epoch")))?;
    Ok((gateway, epoch, Ledger::restore(count(through), ranges(&have)?, ranges(&lost)?, tally)))
}
