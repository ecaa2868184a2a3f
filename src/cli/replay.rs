//! `replay`: sends captures the whole way, and waits until they are stored.

use std::{io::IsTerminal, net::SocketAddr, path::PathBuf, time::Duration};

use indicatif::ProgressBar;
use tokio::sync::mpsc;

use super::{Failure, Folder, Outcome, Output, asked_to_end};
use crate::{
    collect::{self, Gathered, Pace, Patience, Source, What},
    config::{Address, Config, StoreUrl},
    daemon::{Daemon, Manner},
    p1::{Dialect, Key},
    plausible::{Connection, Judge},
    port::read_key,
    pulse::Pulse,
};

/// How long nothing may be confirmed before the store is given up.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Captures of P1 telegrams; `-`: standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// How fast: `real` as the telegrams' own times say, `10x` that many times as fast, `max` as fast as it goes
    #[arg(long, value_name = "SPEED", default_value = "max", value_parser = pace)]
    speed: Pace,
    /// Broker and store of this configuration, instead of temporary ones; dialect, key and limit of its first port
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Keep the database in this directory
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    data: Option<PathBuf>,
    /// The key of encrypted telegrams, as in `decode`
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// As a live gateway would: publish telegrams live, and state, interval, status and health
    #[arg(long)]
    live: bool,
}

fn pace(text: &str) -> Result<Pace, String> {
    match text {
        "max" => Ok(Pace::Unbounded),
        "real" => Ok(Pace::Times(1)),
        _ => {
            let times = text.strip_suffix('x').and_then(|times| times.parse().ok()).filter(|times| *times > 0);
            times.map(Pace::Times).ok_or_else(|| "write real, max, or a whole number and x, such as 10x".to_owned())
        }
    }
}

pub(super) async fn replay(arguments: Arguments) -> Result<Outcome, Failure> {
    tokio::select! {
        outcome = send_and_wait(arguments) => outcome,
        // What it holds goes with it: its folders, its broker.
        asked = asked_to_end() => {
            asked?;
            Err(Failure::world("ended before everything was confirmed; replay it again, what is stored already is not stored twice"))
        }
    }
}

async fn send_and_wait(arguments: Arguments) -> Result<Outcome, Failure> {
    let folder = Folder::new(arguments.data.clone())?;
    let mut config = match &arguments.config {
        Some(file) => Config::read(file).map_err(Failure::usage)?,
        None => own_config(&folder),
    };
    if config.store.is_none() && config.mqtt.url.is_none() && !config.stores().is_empty() {
        return Err(Failure::usage(
            "the configuration has no [store], and no broker ([mqtt] url) at which one could be: nothing would confirm what is replayed",
        ));
    }
    // What is replayed is in the capture: it needs no journal that outlives this, and the daemon's own
    // is in use.
    let journal = Folder::new(None)?;
    config.journal.path = journal.path.join("journal");
    let store = config.stores().join(", ");
    let manner = Manner { live: arguments.live, drain: Some(PATIENCE), share_broker: true };
    let port = config.p1.first();
    let key_file = arguments.key_file.as_deref().or(port.and_then(|port| port.key_file.as_deref()));
    let like = Like {
        name: port.map_or("p1", |port| port.name.as_str()).to_owned(),
        dialect: port.and_then(|port| port.dialect),
        key: key_file.map(read_key).transpose().map_err(Failure::usage)?,
        limit: port.map(|port| port.limit).unwrap_or_default(),
    };
    if manner.live && config.p1.is_empty() {
        return Err(Failure::usage("--live needs a [[p1]] in the configuration: the gateway that it speaks for"));
    }
    let daemon = Daemon::start(&config, manner).await?;
    if config.mqtt.url.is_none()
        && let Some(broker) = daemon.broker.borrow().as_ref()
    {
        eprintln!("broker: {broker}");
    }
    let counts = feed(&arguments, &daemon, &like).await;
    let summary = daemon.stop().await;
    let acknowledged = summary.acknowledged;
    let mut output = Output::new();
    output.line(&format!(
        "{{\"telegrams\":{},\"rejected\":{},\"messages\":{},\"acknowledged\":{acknowledged},\"stored\":{},\"repeated\":{}}}",
        counts.telegrams, counts.rejected, summary.messages, summary.tally.stored, summary.tally.repeated
    ))?;
    output.finish()?;
    if counts.restored > 0 {
        eprintln!("{}", super::decode::other_line_ends(counts.restored));
    }
    if acknowledged < summary.messages {
        let missing = summary.messages.saturating_sub(acknowledged);
        eprintln!(
            "meterkast: {missing} messages were not confirmed by store {store} within {} s: is it running?",
            PATIENCE.as_secs()
        );
        return Ok(Outcome::Partly);
    }
    if counts.telegrams == 0 && counts.rejected == 0 && counts.failed == 0 {
        eprintln!("meterkast: no P1 telegram in what was to be replayed");
    }
    let well = counts.rejected == 0 && counts.failed == 0 && counts.telegrams > 0;
    Ok(if well { Outcome::Well } else { Outcome::Partly })
}

/// A gateway and a store of its own, around an embedded broker on a free port.
fn own_config(folder: &Folder) -> Config {
    let text = "[gateway]\nid = \"replay\"\n[[p1]]\nport = \"-\"\n[store]\nurl = \"sqlite://replaced\"\n";
    // A text of our own, which a test reads.
    #[expect(clippy::expect_used, reason = "the text is a constant")]
    let mut config = Config::parse(text, "replay").expect("a valid configuration");
    config.mqtt.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    if let Some(store) = &mut config.store {
        store.url = StoreUrl::sqlite(&folder.path.join("meterkast.db"));
    }
    config
}

/// The port that a capture is taken for: the first of the configuration.
struct Like {
    name: String,
    dialect: Option<Dialect>,
    key: Option<Key>,
    limit: Connection,
}

#[derive(Default)]
struct Counts {
    telegrams: u64,
    rejected: u64,
    restored: u64,
    failed: u64,
}

/// Reads the files one after another into the daemon, naming what is rejected.
async fn feed(arguments: &Arguments, daemon: &Daemon, like: &Like) -> Counts {
    let mut counts = Counts::default();
    let Some(input) = daemon.input() else { return counts };
    let progress = if std::io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    for file in &arguments.files {
        let shown = file.display().to_string();
        let stdin = file.as_os_str() == "-";
        if !stdin && let Err(error) = std::fs::File::open(file) {
            progress.suspend(|| eprintln!("{shown}: {error}"));
            counts.failed = counts.failed.saturating_add(1);
            continue;
        }
        let source = Source {
            name: like.name.as_str().into(),
            address: if stdin { Address::Stdin } else { Address::Path(file.clone()) },
            dialect: like.dialect,
            key: like.key.clone(),
            judge: Judge::new(like.limit),
            gateway: daemon.gateway_id.clone(),
            pace: arguments.speed,
            patience: Patience::default(),
            pulse: Pulse::default(),
        };
        let (out, mut gathered) = mpsc::channel(256);
        let reading = tokio::spawn(collect::collect(source, out));
        while let Some(Gathered { port, what }) = gathered.recv().await {
            match &what {
                What::Telegram { restored, .. } => {
                    counts.telegrams = counts.telegrams.saturating_add(1);
                    counts.restored = counts.restored.saturating_add(u64::from(*restored));
                    progress.set_message(format!("{shown}: {} telegrams", counts.telegrams));
                    progress.tick();
                }
                What::Rejected(rejected) => {
                    counts.rejected = counts.rejected.saturating_add(1);
                    progress.suspend(|| eprintln!("{shown}:{}: {rejected}", rejected.offset));
                }
                What::Lost(error) => {
                    progress.suspend(|| eprintln!("{shown}: {error}"));
                    counts.failed = counts.failed.saturating_add(1);
                    // A capture does not come back.
                    break;
                }
                What::ReadAs { form, left_out } => {
                    let left_out = super::decode::left_out(*left_out);
                    progress.suspend(|| eprintln!("{shown}: read as {}{left_out}", form.name()));
                }
                What::Opened(_)
                | What::ClockOff(_)
                | What::Silent { .. }
                | What::Asked { .. }
                | What::Note(_)
                | What::Quiet { .. }
                | What::Ended => {}
            }
            if input.send(Gathered { port, what }).await.is_err() {
                break;
            }
        }
        reading.abort();
    }
    progress.finish_and_clear();
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_own_configuration_is_valid() {
        let folder = Folder::new(None).unwrap();
        let config = own_config(&folder);
        assert!(config.store.unwrap().url.path().starts_with(&folder.path));
        assert_eq!(config.mqtt.listen.port(), 0);
    }

    #[test]
    fn speeds_read_as_people_write_them() {
        assert_eq!(pace("max"), Ok(Pace::Unbounded));
        assert_eq!(pace("real"), Ok(Pace::Times(1)));
        assert_eq!(pace("60x"), Ok(Pace::Times(60)));
        assert!(pace("0x").is_err() && pace("fast").is_err());
    }
}
