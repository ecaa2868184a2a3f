//! Which store a command asks, and which of its meters.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{Failure, configuration};
use crate::{
    config::{self, StoreUrl},
    reading::escape,
    store::Meter,
};

/// So many names are told where a meter is not there.
const TOLD: usize = 20;

/// Where the store is.
#[derive(Debug, clap::Args)]
pub(super) struct Place {
    /// The configuration that names the store
    #[arg(long, value_name = "FILE", default_value = "/etc/meterkast/meterkast.toml")]
    config: PathBuf,
    /// The database, instead of a configuration: sqlite:///path, or postgres://user@host/database with the password in it, in PGPASSWORD
    /// or in ~/.pgpass
    #[arg(long, value_name = "URL")]
    store: Option<String>,
}

impl Place {
    /// This database.
    pub(super) fn url(self) -> Result<StoreUrl, Failure> {
        if let Some(url) = self.store {
            return parse(&url);
        }
        let config = configuration(&self.config, "--config FILE, or the database with --store URL")?;
        let no_store = || {
            let file = self.config.display();
            Failure::usage(format!(
                "{file}: has no [store]; the readings are where the store is, or name it with --store"
            ))
        };
        Ok(config.store.ok_or_else(no_store)?.url)
    }
}

/// Reads a URL that was given as an argument. The parser of arguments would repeat one that is wrong, with its password.
pub(super) fn parse(url: &str) -> Result<StoreUrl, Failure> {
    StoreUrl::parse(url).map_err(|error| Failure::usage(format!("--store: {error}")))
}

/// Whether both are the same file.
pub(super) fn is_same(one: &Path, other: &Path) -> bool {
    fs::canonicalize(one).is_ok_and(|one| fs::canonicalize(other).is_ok_and(|other| one == other))
}

/// The meters of these names, or all when none is named. A name that no meter has is wrong usage: the nearest are named.
pub(super) fn chosen(meters: Vec<Meter>, names: &[String]) -> Result<Vec<Meter>, Failure> {
    for name in names {
        if !meters.iter().any(|meter| meter.name == *name) {
            return Err(Failure::usage(unknown(name, &meters)));
        }
    }
    Ok(meters.into_iter().filter(|meter| names.is_empty() || names.contains(&meter.name)).collect())
}

fn unknown(name: &str, meters: &[Meter]) -> String {
    let known: Vec<&str> = meters.iter().map(|meter| meter.name.as_str()).collect();
    let name = escape(name.as_bytes());
    if known.is_empty() {
        return format!("the store has no meter {name}, and no other either");
    }
    let nearest = config::nearest_first(&name, &known);
    let told: Vec<String> = nearest.iter().take(TOLD).map(|known| escape(known.as_bytes())).collect();
    let rest = nearest.len().saturating_sub(TOLD);
    let rest = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    format!("the store has no meter {name}; it has {}{rest}", told.join(", "))
}
