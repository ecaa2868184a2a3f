//! `readings`: the registers at a moment, from the database, whether the daemon runs or not.

use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::{Failure, Format, Outcome, Output, table};
use crate::{
    config::{Config, StoreUrl},
    moment::Moment,
    store,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration that names the store
    #[arg(long, value_name = "FILE", default_value = "/etc/meterkast/meterkast.toml")]
    config: PathBuf,
    /// The database, instead of a configuration: sqlite:///path
    #[arg(long, value_name = "URL", value_parser = StoreUrl::parse)]
    store: Option<StoreUrl>,
    /// The last readings at or before this moment, such as 2026-11-21T20:00:00+01:00; by default the
    /// newest, except those that a meter's clock dates more than a day ahead of now
    #[arg(long, value_name = "TIME")]
    at: Option<Moment>,
    /// How to print them
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

pub(super) async fn readings(arguments: Arguments) -> Result<Outcome, Failure> {
    let url = url_of(arguments.store, &arguments.config)?;
    print(&url, arguments.at, arguments.format).await?;
    Ok(Outcome::Well)
}

/// Where the readings are: where it was said, or else where the configuration says.
pub(super) fn url_of(store: Option<StoreUrl>, config: &Path) -> Result<StoreUrl, Failure> {
    if let Some(url) = store {
        return Ok(url);
    }
    let no_store = || {
        let file = config.display();
        Failure::usage(format!("{file}: has no [store]; the readings are where the store is, or name it with --store"))
    };
    Ok(Config::read(config).map_err(Failure::usage)?.store.ok_or_else(no_store)?.url)
}

/// Prints the registers that a database has; returns how many.
pub(super) async fn print(url: &StoreUrl, at: Option<Moment>, format: Format) -> Result<usize, Failure> {
    // A clock that leapt ahead once must not stand for the present until that day comes.
    let at = at.or_else(|| Moment::from_millis(Timestamp::now().as_millisecond().saturating_add(86_400_000), 0));
    let mut reader = store::read(url).await.map_err(Failure::world)?;
    let reports = reader.readings(at).await.map_err(Failure::world)?;
    let mut output = Output::new();
    let registers =
        || reports.iter().flat_map(|(report, _)| report.readings.iter().map(move |reading| (report, reading)));
    match format {
        Format::Json => {
            for (report, reading) in registers() {
                output.line(&table::register_json(report, reading))?;
            }
        }
        Format::Table => {
            let mut table = table::registers();
            for (report, reading) in registers() {
                table.row(table::register_row(report, reading));
            }
            for line in table.lines(table::VALUE) {
                output.line(&line)?;
            }
        }
    }
    output.finish()?;
    let count = registers().count();
    if count == 0 {
        eprintln!("no readings in {url} at that moment");
    }
    Ok(count)
}
