//! `demo`: virtual meters on pseudo-terminals, the real daemon, an embedded broker and a database.

use std::{net::SocketAddr, path::PathBuf, pin::pin, time::Duration};

use jiff::Timestamp;
use tokio::{io::AsyncWriteExt, time::Instant};
use tokio_serial::SerialStream;

use super::{Failure, Folder, Format, Outcome, asked_to_end, readings, simulate, terminal};
use crate::{
    config::{Address, Config, StoreUrl},
    daemon::{Daemon, Manner},
    moment::Moment,
    simulate::{Bus, Household, bus::Description, slave},
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// End by itself after this many seconds; otherwise with Ctrl-C
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// Keep journal and database in this directory
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Which household: the same number gives the same meters
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// How to print the registers at the end
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// The meters on the bus: heat in GJ and in kWh, and hot water, of a manufacturer that nobody is.
const METERS: [(&str, slave::CountsIn); 3] = [
    ("SIM-10000001-01-04", slave::CountsIn::GJ),
    ("SIM-20000002-01-0C", slave::CountsIn::KWh),
    ("SIM-30000003-01-06", slave::CountsIn::GJ),
];

const CONFIG: &str = r#"
[gateway]
id = "demo"
clock = "always"
[[p1]]
port = "-"
[[mbus]]
port = "/dev/replaced"
interval = "10s"
[[mbus.meter]]
address = 1
[[mbus.meter]]
address = 2
[[mbus.meter]]
address = 3
[store]
url = "sqlite://replaced"
commit = "2s"
"#;

pub(super) async fn demo(arguments: Arguments) -> Result<Outcome, Failure> {
    let folder = Folder::new(arguments.data.clone())?;
    let (mut meter, _, p1) = terminal::terminal()?;
    let (wire, theirs, mbus) = terminal::terminal()?;
    let bus = bus(arguments.seed)?;
    let database = folder.path.join("meterkast.db");
    let config = config(&p1, &mbus, &folder, &database);

    let manner = Manner { live: true, drain: Some(Duration::from_secs(10)), share_broker: false };
    let mut daemon = Daemon::start(&config, manner).await?;
    daemon.read_ports(&config);
    let broker =
        daemon.broker.borrow().clone().ok_or_else(|| Failure::world("no free port for the broker on 127.0.0.1"))?;
    let end = arguments.seconds.map_or_else(|| "Ctrl-C ends it".to_owned(), |seconds| format!("ends in {seconds} s"));
    eprintln!("A virtual Dutch meter with gas, heat and hot water sends a DSMR 5 telegram each second,");
    eprintln!("and two heat meters and one for hot water on an M-Bus are read every ten seconds; {end}.");
    eprintln!("  P1 port   {p1}");
    eprintln!("  M-Bus     {mbus}");
    eprintln!("  broker    {broker}    watch: mosquitto_sub -p {} -v -t 'meterkast/#'", broker.port);
    eprintln!("  database  {}    read: meterkast readings --store {}", database.display(), StoreUrl::sqlite(&database));

    // Kept until the daemon has stopped, or its last word would be that the bus is lost.
    let mut serving = pin!(simulate::serve(bus, wire, theirs));
    let deadline = arguments.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    tokio::select! {
        sent = send_telegrams(&mut meter, arguments.seed) => sent?,
        served = &mut serving => served?,
        () = wait_until(deadline) => {}
        asked = asked_to_end() => asked?,
    }
    // What is on the wire still arrives.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let summary = daemon.stop().await;
    eprintln!("{} messages accepted, {} confirmed by the store.", summary.messages, summary.acknowledged);
    let registers = readings::print(&StoreUrl::sqlite(&database), None, arguments.format).await?;
    let well = registers > 0 && summary.acknowledged == summary.messages;
    Ok(if well { Outcome::Well } else { Outcome::Partly })
}

fn bus(seed: u64) -> Result<Bus, Failure> {
    let meter = |((meter, counts_in), address): (&(&str, slave::CountsIn), u8)| slave::Description {
        counts_in: *counts_in,
        ..slave::Description::new(meter, address)
    };
    let meters = METERS.iter().zip(1..).map(meter).collect();
    let description = Description { seed, ..Description::of(meters) };
    Bus::new(description, Moment::utc(Timestamp::now())).map_err(Failure::world)
}

fn config(p1_port: &str, bus_port: &str, folder: &Folder, database: &std::path::Path) -> Config {
    // A text of our own, which a test reads.
    #[expect(clippy::expect_used, reason = "the text is a constant")]
    let mut config = Config::parse(CONFIG, "demo").expect("a valid configuration");
    config.mqtt.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.journal.path = folder.path.join("journal");
    if let Some(p1) = config.p1.first_mut() {
        p1.port = Address::Path(PathBuf::from(p1_port));
    }
    if let Some(bus) = config.mbus.first_mut() {
        bus.port = Address::Path(PathBuf::from(bus_port));
    }
    if let Some(store) = &mut config.store {
        store.url = StoreUrl::sqlite(database);
    }
    config
}

/// A telegram each second, for ever.
async fn send_telegrams(meter: &mut SerialStream, seed: u64) -> Result<(), Failure> {
    let now = || Moment::utc(Timestamp::now());
    let mut household = Household::new(seed, now());
    let mut second = tokio::time::interval(Duration::from_secs(1));
    loop {
        second.tick().await;
        household.advance(now());
        meter.write_all(&household.telegram()).await?;
    }
}

async fn wait_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_configuration_is_valid() {
        let folder = Folder::new(None).unwrap();
        let config = config("/dev/pts/7", "/dev/pts/8", &folder, &folder.path.join("x.db"));
        assert_eq!(config.p1[0].port, Address::Path("/dev/pts/7".into()));
        assert_eq!(config.mbus[0].port, Address::Path("/dev/pts/8".into()));
        assert_eq!(bus(1).unwrap().slaves().len(), config.mbus[0].meters.len());
    }
}
