//! `run`: the daemon.

use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};

use super::{Failure, Outcome};
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
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let manner = Manner { live: true, drain: None, share_broker: false };
    let mut daemon = Daemon::start(&config, manner).await?;
    daemon.read_ports(&config);
    tracing::info!("meterkast {} runs as {}", env!("CARGO_PKG_VERSION"), daemon.gateway_id);
    // Without systemd there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    daemon.stop().await;
    Ok(Outcome::Well)
}
