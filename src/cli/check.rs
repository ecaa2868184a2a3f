//! `check`: validates a configuration.

use std::{os::unix::fs::FileTypeExt, path::PathBuf};

use super::{Failure, Outcome, Output};
use crate::{
    config::{Address, Config},
    port,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

pub(super) fn check(arguments: &Arguments) -> Result<Outcome, Failure> {
    let config = Config::read(&arguments.file).map_err(Failure::usage)?;
    let mut output = Output::new();
    output.line(&format!("{}: ok", arguments.file.display()))?;
    for port in &config.p1 {
        output.line(&format!("  P1 port {}: {}", port.name.as_str(), port.port))?;
        remark_missing(arguments, &port.port);
    }
    for bus in &config.mbus {
        let meters = match bus.meters.len() {
            0 => "its meters are searched for at the first start".to_owned(),
            1 => "1 meter".to_owned(),
            meters => format!("{meters} meters"),
        };
        output.line(&format!("  M-Bus {}: {} at {} Bd, {meters}", bus.name.as_str(), bus.port, bus.baud))?;
        remark_missing(arguments, &bus.port);
        if let Address::Path(path) = &bus.port
            && std::fs::metadata(path).is_ok_and(|found| !found.file_type().is_char_device())
        {
            eprintln!(
                "{}: {} is no serial device; `run` cannot read a bus there",
                arguments.file.display(),
                path.display()
            );
        }
    }
    for file in config.p1.iter().filter_map(|port| port.key_file.as_deref()) {
        if let Err(error) = port::read_key(file) {
            eprintln!("{}: {error}; without it `run` does not start here", arguments.file.display());
        }
    }
    for doubt in config.doubts() {
        eprintln!("{}: {doubt}", arguments.file.display());
    }
    match &config.mqtt.url {
        Some(url) => output.line(&format!("  broker: {url}"))?,
        None => output.line(&format!("  broker: embedded, on {}", config.mqtt.listen))?,
    }
    if let Some(store) = &config.store {
        output.line(&format!("  store {}: {}", store.id.as_str(), store.url))?;
    }
    if config.has_ports() {
        let stores = config.stores();
        if stores.is_empty() {
            output.line("  the promise that nothing is lost ends at the broker: [journal] stores is empty")?;
        } else {
            output.line(&format!(
                "  journal {}: kept until stored by {}",
                config.journal.path.display(),
                stores.join(", ")
            ))?;
        }
    }
    output.finish()?;
    Ok(Outcome::Well)
}

/// Not an error: the file may be for another machine.
fn remark_missing(arguments: &Arguments, port: &Address) {
    if let Address::Path(path) = port
        && !path.exists()
    {
        let file = arguments.file.display();
        eprintln!("{file}: there is no {} on this machine now; `run` waits for it", path.display());
    }
}
