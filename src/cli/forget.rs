//! `forget`: a meter, or what is old of it, leaves the store without a trace.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;

use super::{
    Failure, Outcome,
    place::{Place, chosen},
};
use crate::{
    moment::Moment,
    reading::escape,
    store::{self, Forgotten, Meter},
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The meter
    #[arg(value_name = "METER")]
    meter: String,
    #[command(flatten)]
    place: Place,
    /// Only what was measured before this moment, such as 2026-01-01T00:00:00+01:00
    #[arg(long, value_name = "TIME")]
    before: Option<Moment>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// A meter that was heard within this time is thought to be read still, ms.
const RECENT: i64 = 86_400_000;

pub(super) async fn forget(arguments: Arguments) -> Result<Outcome, Failure> {
    let url = arguments.place.url()?;
    let before = arguments.before.map(Moment::millis);
    let meters = store::read(&url).await.map_err(Failure::world)?.meters().await.map_err(Failure::world)?;
    let Some(meter) = chosen(meters, &[arguments.meter])?.pop() else { return Ok(Outcome::Well) };
    let mut database = store::forget(&url).await.map_err(Failure::world)?;
    let all = database.weigh(&meter, before).await.map_err(Failure::world)?;
    let name = escape(meter.name.as_bytes());
    let until = arguments.before.map_or_else(String::new, |before| format!(" from before {before}"));
    if before.is_some() && all == Forgotten::default() {
        say!("{name}: the store has nothing{until}");
        return Ok(Outcome::Well);
    }
    say!("{name} ({}, by {}){until}:", meter.medium.name(), escape(meter.gateway.as_bytes()));
    say!(
        "  {} messages, {} registers at quarter-hours, {} texts, {} messages that could not be read",
        all.messages,
        all.quarters,
        all.remarks,
        all.refused
    );
    if before.is_none() {
        say!("  and the meter itself");
    }
    say!(
        "Kept: what backups have, and what gateways still hold in their journals. That these were delivered stays noted."
    );
    if before.is_none() && is_recent(&meter) {
        say!("It was heard within a day: what it sends from now on is stored again, unless its gateway leaves it out.");
    }
    if !arguments.yes && !agreed()? {
        return Err(Failure::world("nothing was deleted"));
    }
    let gone = delete(&mut *database, &meter, before, &all).await?;
    say!("{name}: {} messages and {} registers at quarter-hours are deleted", gone.messages, gone.quarters);
    if database.wipe().await.map_err(Failure::world)? {
        return Ok(Outcome::Well);
    }
    say!(
        "somebody who reads the database keeps deleted data in its write-ahead log; it goes when that has ended and the store is restarted"
    );
    Ok(Outcome::Partly)
}

async fn delete(
    database: &mut dyn store::Forget,
    meter: &Meter,
    before: Option<i64>,
    all: &Forgotten,
) -> Result<Forgotten, Failure> {
    let total = [all.messages, all.quarters, all.remarks, all.refused].into_iter().fold(0, u64::saturating_add);
    let bar = if io::stderr().is_terminal() { ProgressBar::new(total) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {percent} %, {eta} left") {
        bar.set_style(style);
    }
    let mut gone = Forgotten::default();
    while let Some(step) = database.step(meter, before).await.map_err(Failure::world)? {
        gone.messages = gone.messages.saturating_add(step.messages);
        gone.quarters = gone.quarters.saturating_add(step.quarters);
        gone.remarks = gone.remarks.saturating_add(step.remarks);
        gone.refused = gone.refused.saturating_add(step.refused);
        bar.set_position(
            [gone.messages, gone.quarters, gone.remarks, gone.refused].into_iter().fold(0, u64::saturating_add),
        );
        // The store is to have its turn between two steps.
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    bar.finish_and_clear();
    Ok(gone)
}

fn is_recent(meter: &Meter) -> bool {
    meter.last_seen.saturating_add(RECENT) > Timestamp::now().as_millisecond()
}

/// Asks on a terminal.
fn agreed() -> Result<bool, Failure> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::usage("nobody is there to be asked: --yes deletes without asking"));
    }
    let mut terminal = io::stderr();
    write!(terminal, "Delete this for ever? [y/N] ")?;
    terminal.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
