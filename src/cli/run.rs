//! `run`: the daemon.

use std::path::PathBuf;

use super::{Failure, Outcome, asked_to_end};
use crate::{
    config::Config,
    daemon::{Daemon, Manner},
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/meterkast/meterkast.toml")]
    config: PathBuf,
}

pub(super) async fn run(arguments: Arguments) -> Result<Outcome, Failure> {
    let config = Config::read(&arguments.config).map_err(Failure::usage)?;
    let manner = Manner { live: true, drain: None, share_broker: false };
    let mut daemon = Daemon::start(&config, manner).await?;
    daemon.read_ports(&config);
    let gateway = config.has_ports().then(|| format!("gateway {}", daemon.gateway_id));
    let store = config.store.as_ref().map(|store| format!("store {}", store.id.as_str()));
    let roles: Vec<String> = [gateway, store].into_iter().flatten().collect();
    tracing::info!("meterkast {} runs as {}", env!("CARGO_PKG_VERSION"), roles.join(" and "));
    // Without systemd there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    asked_to_end().await?;
    tracing::info!("stopping");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    daemon.stop().await;
    Ok(Outcome::Well)
}
