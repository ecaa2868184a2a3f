//! What a store tells a gateway after it committed.
//!
//! Enters and leaves: JSON, `{"schema":1,"store":"main","generation":"...","started":"...","epochs":[{"epoch":
//! "...","through":1200,"have":[[1203,1210]],"lost":[[900,950]],"stored":1190,"repeated":17,"refused":0}]}`.
//! Fields that are not known are ignored; `started`, `stored`, `repeated` and `refused` may be missing.

use serde::{Deserialize, Serialize};

use super::{Epoch, Ranges};

/// The schema of the JSON written here.
const SCHEMA: u32 = 1;

/// An acknowledgement: what one generation of one store has of one gateway.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ack {
    /// The store's id.
    pub store: String,
    /// Random, new when the database is made or restored.
    pub generation: String,
    /// Random, new at each start of the store: its database may have been replaced by an older copy, of
    /// the same generation, while it was stopped.
    pub started: String,
    /// What it has, by epoch.
    pub epochs: Vec<EpochAck>,
}

/// What a store has of one epoch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EpochAck {
    /// Which epoch.
    pub epoch: Epoch,
    /// Everything up to here arrived or is lost.
    pub through: u64,
    /// What arrived beyond.
    pub have: Ranges,
    /// What is lost.
    pub lost: Ranges,
    /// What became of the messages.
    pub tally: Tally,
}

/// What became of the messages of an epoch, each counted once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Written as a new row.
    #[serde(default)]
    pub stored: u64,
    /// The same meter, instant and readings were there already.
    #[serde(default)]
    pub repeated: u64,
    /// Could not be read; kept raw.
    #[serde(default)]
    pub refused: u64,
}

#[derive(Serialize, Deserialize)]
struct Wire {
    schema: u32,
    store: String,
    generation: String,
    #[serde(default)]
    started: String,
    epochs: Vec<WireEpoch>,
}

#[derive(Serialize, Deserialize)]
struct WireEpoch {
    epoch: String,
    through: u64,
    #[serde(default)]
    have: Vec<(u64, u64)>,
    #[serde(default)]
    lost: Vec<(u64, u64)>,
    #[serde(flatten)]
    tally: Tally,
}

impl Ack {
    /// As JSON.
    pub fn to_json(&self) -> String {
        let epochs = self.epochs.iter().map(|epoch| WireEpoch {
            epoch: epoch.epoch.to_string(),
            through: epoch.through,
            have: epoch.have.pairs().to_vec(),
            lost: epoch.lost.pairs().to_vec(),
            tally: epoch.tally,
        });
        let wire = Wire {
            schema: SCHEMA,
            store: self.store.clone(),
            generation: self.generation.clone(),
            started: self.started.clone(),
            epochs: epochs.collect(),
        };
        // Strings and integers always serialise.
        serde_json::to_string(&wire).unwrap_or_default()
    }

    /// From JSON. The error says what is wrong.
    pub fn from_json(json: &[u8]) -> Result<Self, String> {
        let wire: Wire = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        if wire.schema != SCHEMA {
            return Err(format!("schema {} is not {SCHEMA}", wire.schema));
        }
        let epochs = wire.epochs.into_iter().map(|epoch| {
            Ok(EpochAck {
                epoch: Epoch::from_text(&epoch.epoch).ok_or_else(|| format!("`{}` is no epoch", epoch.epoch))?,
                through: epoch.through,
                have: Ranges::from_pairs(epoch.have),
                lost: Ranges::from_pairs(epoch.lost),
                tally: epoch.tally,
            })
        });
        let epochs = epochs.collect::<Result<_, String>>()?;
        Ok(Self { store: wire.store, generation: wire.generation, started: wire.started, epochs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let ack = Ack {
            store: "main".into(),
            generation: "g1".into(),
            started: "s1".into(),
            epochs: vec![EpochAck {
                epoch: Epoch::from_bits(0x9f3c),
                through: 1200,
                have: Ranges::from_pairs([(1203, 1210)]),
                lost: Ranges::from_pairs([(900, 950)]),
                tally: Tally { stored: 5, repeated: 2, refused: 1 },
            }],
        };
        assert_eq!(Ack::from_json(ack.to_json().as_bytes()), Ok(ack));
    }

    #[test]
    fn reads_the_form_of_the_contract_and_ignores_what_it_does_not_know() {
        let json = br#"{"schema":1,"store":"main","generation":"x","new":true,
            "epochs":[{"epoch":"9f3c0000000000000000000000000001","through":1200,"have":[[1203,1210]],"lost":[]}]}"#;
        assert_eq!(Ack::from_json(json).unwrap().epochs[0].through, 1200);
        assert!(Ack::from_json(br#"{"schema":2,"store":"main","generation":"x","epochs":[]}"#).is_err());
        assert!(Ack::from_json(b"offline").is_err());
    }
}
