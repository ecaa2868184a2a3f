//! `run`: the daemon, and what systemd is told of it.
//!
//! `READY=1` is said when every port, the broker and the store were tried once, well or not, so that a unit that is active has
//! told what is wrong with it. `STATUS=` is kept up. The watchdog is fed only while each task gives its sign of life
//! ([`Pulses`]); a port that is lost or silent, and a store that waits for its database, give it.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use sd_notify::NotifyState;
use tokio::task::JoinHandle;

use super::{Failure, Outcome, asked_to_end, configuration};
use crate::{
    config::Config,
    control::{self, BindError, Control},
    daemon::{Daemon, Manner},
    pulse::Pulses,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/meterkast/meterkast.toml")]
    config: PathBuf,
}

/// By then it is ready, even if something still has to find out how it is.
const READY: Duration = Duration::from_secs(5);
/// How often the status is said when only its numbers change.
const STATUS: Duration = Duration::from_secs(10);

pub(super) async fn run(arguments: Arguments) -> Result<Outcome, Failure> {
    let config = configuration(&arguments.config, "--config FILE")?;
    let manner = Manner { live: true, drain: None, share_broker: false };
    let mut daemon = Daemon::start(&config, manner).await?;
    daemon.read_ports(&config);
    let gateway = config.has_ports().then(|| format!("gateway {}", daemon.gateway_id));
    let store = config.store.as_ref().map(|store| format!("store {}", store.id.as_str()));
    let roles: Vec<String> = [gateway, store].into_iter().flatten().collect();
    let control = answer(&config, &daemon);
    tracing::info!("meterkast {} runs as {}", env!("CARGO_PKG_VERSION"), roles.join(" and "));
    tokio::select! {
        () = keep_told(daemon.pulses()) => {}
        asked = asked_to_end() => asked?,
    }
    tracing::info!("stopping");
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
    daemon.stop().await;
    if let Some(control) = control {
        // Its socket goes with it.
        control.abort();
        let _ = control.await;
    }
    Ok(Outcome::Well)
}

/// Answers at the control socket, where there is to be one. Without it the daemon does its work all the same.
fn answer(config: &Config, daemon: &Daemon) -> Option<JoinHandle<()>> {
    let path = config.control.socket()?;
    match Control::bind(path) {
        Ok(control) => Some(tokio::spawn(control.serve(control::router(daemon.taps().to_vec())))),
        Err(error) => {
            let is_default = config.control.path.is_none();
            if is_default && (matches!(error, BindError::NoDirectory(_)) || error.is_denied()) {
                tracing::debug!("no control socket: {error}");
            } else {
                tracing::warn!("no control socket: {error}");
            }
            None
        }
    }
}

/// Without systemd there is nobody to tell.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("systemd cannot be told: {error}");
    }
}

/// Tells systemd how things are, for ever.
async fn keep_told(pulses: &Pulses) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return std::future::pending().await;
    }
    let began = Instant::now();
    let mut teller = Teller::new(sd_notify::watchdog_enabled());
    let mut tick = tokio::time::interval(teller.pause());
    loop {
        tick.tick().await;
        let told = teller.turn(began.elapsed(), pulses);
        let mut states = Vec::new();
        states.extend(told.ready.then_some(NotifyState::Ready));
        states.extend(told.status.as_deref().map(NotifyState::Status));
        states.extend(told.alive.then_some(NotifyState::Watchdog));
        if !states.is_empty() {
            tell(&states);
        }
    }
}

/// What systemd is told at one moment.
#[derive(Debug, PartialEq, Eq, Default)]
struct Told {
    ready: bool,
    status: Option<String>,
    alive: bool,
}

/// When to tell what; times are since the start.
struct Teller {
    /// Half the time in which systemd wants a sign of life.
    feed: Option<Duration>,
    fed: Option<Duration>,
    is_ready: bool,
    words: String,
    said: Duration,
    /// Whose silence was said.
    late: Vec<String>,
}

impl Teller {
    fn new(watchdog: Option<Duration>) -> Self {
        Self {
            feed: watchdog.map(|watchdog| watchdog / 2),
            fed: None,
            is_ready: false,
            words: String::new(),
            said: Duration::ZERO,
            late: Vec::new(),
        }
    }

    /// From one turn to the next.
    fn pause(&self) -> Duration {
        let second = Duration::from_secs(1);
        self.feed.map_or(second, |feed| feed.clamp(Duration::from_millis(10), second))
    }

    fn turn(&mut self, now: Duration, pulses: &Pulses) -> Told {
        let mut told = Told::default();
        if !self.is_ready && (pulses.all_have_spoken() || now >= READY) {
            (self.is_ready, told.ready) = (true, true);
        }
        // Numbers that grow each second are no change worth telling at once. Whoever waited for the start hears how it went.
        let words: String = pulses.words().chars().filter(|letter| !letter.is_ascii_digit()).collect();
        if told.ready || words != self.words || now.saturating_sub(self.said) >= STATUS {
            (self.words, self.said) = (words, now);
            told.status = Some(pulses.status());
        }
        let late = pulses.late();
        if late != self.late {
            for task in late.iter().filter(|task| !self.late.iter().any(|said| said == *task)) {
                tracing::error!("{task} hangs: the watchdog is not fed until it goes on");
            }
            self.late = late.iter().map(|task| (*task).to_owned()).collect();
        }
        if let Some(feed) = self.feed
            // A turn that comes a little early counts: the next would come too late.
            && self.fed.is_none_or(|fed| now.saturating_sub(fed) + self.pause() / 2 >= feed)
            && late.is_empty()
        {
            (self.fed, told.alive) = (Some(now), true);
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pulse::Pulse;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn is_ready_when_each_task_has_tried_and_never_again() {
        let mut pulses = Pulses::default();
        let [port, gateway] = ["p1", "gateway"].map(|name| pulses.add(Pulse::new(name, 60 * S)));
        let mut teller = Teller::new(None);
        assert_eq!(teller.turn(Duration::ZERO, &pulses), Told::default());
        port.say("there is no /dev/x");
        let told = teller.turn(S, &pulses);
        assert_eq!((told.ready, told.status.as_deref()), (false, Some("p1 there is no /dev/x")));
        gateway.say("online");
        assert!(teller.turn(2 * S, &pulses).ready);
        assert!(!teller.turn(3 * S, &pulses).ready);
        // Who finds out nothing holds nobody up for long.
        pulses.add(Pulse::new("store main", 60 * S));
        let mut teller = Teller::new(None);
        assert!(!teller.turn(4 * S, &pulses).ready);
        let told = teller.turn(5 * S, &pulses);
        assert!(told.ready && told.status.is_some(), "ready, with what there is to know, though nothing of it is new");
    }

    #[test]
    fn the_status_is_said_when_it_changes_and_every_ten_seconds() {
        let mut pulses = Pulses::default();
        let port = pulses.add(Pulse::new("p1", 60 * S));
        let mut teller = Teller::new(None);
        port.say("open");
        let said: Vec<u32> = (1..=25).filter(|second| teller.turn(*second * S, &pulses).status.is_some()).collect();
        assert_eq!(said, [1, 11, 21]);
        port.say("silent");
        assert_eq!(teller.turn(26 * S, &pulses).status.as_deref(), Some("p1 silent"));
    }

    #[test]
    fn the_watchdog_is_fed_at_half_its_time_and_only_while_every_task_lives() {
        let mut pulses = Pulses::default();
        pulses.add(Pulse::new("gateway", 600 * S));
        // It has to turn at once, and does not.
        let port = pulses.add(Pulse::new("p1", Duration::ZERO));
        port.rest();
        let mut teller = Teller::new(Some(60 * S));
        let fed = |teller: &mut Teller, seconds: std::ops::Range<u32>| -> Vec<u32> {
            seconds.filter(|second| teller.turn(*second * S, &pulses).alive).collect()
        };
        assert_eq!(fed(&mut teller, 0..100), [0, 30, 60, 90]);
        port.beat();
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(fed(&mut teller, 100..300), Vec::<u32>::new(), "it hangs");
        assert_eq!(teller.late, ["p1"]);
        // It goes on before systemd has lost its patience.
        port.rest();
        assert_eq!(fed(&mut teller, 300..340), [300, 330]);
        assert_eq!(teller.late, Vec::<String>::new());
        let mut nobody = Teller::new(None);
        assert_eq!(fed(&mut nobody, 0..100), Vec::<u32>::new());
    }
}
