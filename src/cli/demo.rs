//! `demo`: virtual meters on pseudo-terminals, the real daemon, an embedded broker and a database.

use std::{
    fmt, fs,
    io::ErrorKind,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::{io::AsyncWriteExt, time::Instant};
use tokio_serial::SerialStream;

use super::{
    Failure, Folder, Outcome, RowFormat, asked_to_end,
    history::{self, Back, Filling, Messages},
    readings, simulate, terminal, usage,
};
use crate::{
    config::{Address, Config, StoreUrl},
    daemon::{Daemon, Manner},
    moment::Moment,
    simulate::{Bus, Description, Household, Tape, bus, slave},
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// End by itself after this many seconds; otherwise with Ctrl-C
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// Keep journal and database in this directory; where a demo kept them before, its household lives on
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Begin with so much past in the database, such as 30d, 6m or 2y: quarter-hours, the last three days every ten seconds
    #[arg(long, value_name = "SPAN", value_parser = Back::parse)]
    history: Option<Back>,
    /// Which household: the same number gives the same meters; 1 by default
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How to print the registers at the end
    #[arg(long, value_enum, default_value_t = RowFormat::Table)]
    format: RowFormat,
}

/// The meters on the bus: heat in GJ and in kWh, and hot water, of a manufacturer that nobody is.
const METERS: [(&str, slave::CountsIn); 3] = [
    ("SIM-10000001-01-04", slave::CountsIn::GJ),
    ("SIM-20000002-01-0C", slave::CountsIn::KWh),
    ("SIM-30000003-01-06", slave::CountsIn::GJ),
];

/// As the configuration has it.
const GATEWAY: &str = "demo";
/// Where the household lives.
const ZONE: &str = "Europe/Amsterdam";

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

/// How often the meters are heard in a history.
const QUARTER_HOUR_S: u32 = 900;
/// How long before now the quarter-hours of a history end.
const FINE: Duration = Duration::from_secs(3 * 86_400);
/// How often there is a telegram from then on; the bus is read as the configuration says.
const FINE_S: u32 = 10;

/// Which household a folder's readings are of. It is kept beside them, so that a later demo goes on from there: a household begun anew
/// would have all its counters fall back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Past {
    seed: u64,
    /// When its meters began.
    since: Timestamp,
}

impl Past {
    const FILE: &str = "household.toml";

    /// That of a folder; None where there are no readings yet.
    fn read(folder: &Path, database: &Path) -> Result<Option<Self>, Failure> {
        let path = folder.join(Self::FILE);
        let failed = |what: &dyn fmt::Display| {
            let name = path.display();
            Failure::usage(format!(
                "--data: {name}: {what}; a demo knows by it which household goes on: take another --data"
            ))
        };
        match fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).map(Some).map_err(|error| failed(&error.message())),
            Err(error) if error.kind() == ErrorKind::NotFound && !database.exists() => Ok(None),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(failed(&"is not there, and readings of some household are"))
            }
            Err(error) => Err(failed(&error)),
        }
    }

    fn write(&self, folder: &Path) -> Result<(), Failure> {
        let (path, Self { seed, since }) = (folder.join(Self::FILE), self);
        let text = format!(
            "# Whose readings these are: `meterkast demo` goes on with it.\nseed = {seed}\nsince = \"{since}\"\n"
        );
        fs::write(&path, text).map_err(|error| Failure::world(format!("{}: {error}", path.display())))
    }

    /// The meters as they are now.
    fn live(&self) -> Result<(Household, Option<Bus>), Failure> {
        let (description, since) = (description(self.seed), Moment::utc(self.since));
        let mut household = Household::of(&description, since);
        let mut bus = Bus::of(&description, since).transpose().map_err(Failure::world)?;
        let now = Moment::utc(Timestamp::now());
        household.advance(now);
        bus.iter_mut().for_each(|bus| bus.advance(now));
        Ok((household, bus))
    }
}

/// The household that these arguments ask for: the one of the folder, or a new one.
fn past(arguments: &Arguments, folder: &Path, database: &Path) -> Result<Past, Failure> {
    let Some(past) = Past::read(folder, database)? else {
        // Meters count in whole seconds.
        let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default();
        let since = arguments.history.map_or(now, |back| back.before(now).instant());
        let past = Past { seed: arguments.seed.unwrap_or(1), since };
        past.write(folder)?;
        return Ok(past);
    };
    let (place, Past { seed: there, since }) = (folder.display(), past);
    if arguments.history.is_some() {
        return Err(Failure::usage(format!(
            "--history: {place} has a past already, since {since}: without --history its household lives on; for another past take another --data"
        )));
    }
    if let Some(seed) = arguments.seed.filter(|seed| *seed != there) {
        return Err(Failure::usage(format!(
            "--seed {seed}: {place} has the readings of household {there}: leave --seed out to go on with that, or take another --data"
        )));
    }
    say!("The household of {place} lives on; it is there since {since}.");
    Ok(past)
}

pub(super) async fn demo(arguments: Arguments) -> Result<Outcome, Failure> {
    let folder = Folder::new(arguments.data.clone())?;
    let (mut meter, _, p1) = terminal::terminal()?;
    let (wire, theirs, mbus) = terminal::terminal()?;
    let database = folder.path.join("meterkast.db");
    let config = config(&p1, &mbus, &folder, &database);
    let past = past(&arguments, &folder.path, &database)?;
    let (mut household, bus) = match arguments.history {
        None => past.live()?,
        Some(_) => tokio::select! {
            lived = live_until_now(past, FINE, &config, &database) => lived?,
            asked = asked_to_end() => {
                asked?;
                return Err(Failure::world("ended before there was a history"));
            }
        },
    };
    let bus = bus.ok_or_else(|| Failure::world("the household has no bus"))?;

    let manner = Manner { live: true, drain: Some(Duration::from_secs(10)), share_broker: false };
    let mut daemon = Daemon::start(&config, manner).await?;
    daemon.read_ports(&config);
    let broker =
        daemon.broker.borrow().clone().ok_or_else(|| Failure::world("no free port for the broker on 127.0.0.1"))?;
    let end = arguments.seconds.map_or_else(|| "Ctrl-C ends it".to_owned(), |seconds| format!("ends in {seconds} s"));
    let url = StoreUrl::sqlite(&database);
    say!("A virtual Dutch meter with gas, heat and hot water sends a DSMR 5 telegram each second,");
    say!("and two heat meters and one for hot water on an M-Bus are read every ten seconds; {end}.");
    say!("  P1 port   {p1}");
    say!("  M-Bus     {mbus}");
    say!("  broker    {broker}    watch: mosquitto_sub -p {} -v -t 'meterkast/#'", broker.port);
    say!("  database  {}    read: meterkast readings --store {url}", database.display());

    // Kept until the daemon has stopped, or its last word would be that the bus is lost.
    let mut serving = pin!(simulate::serve(bus, wire, theirs));
    let deadline = arguments.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    tokio::select! {
        sent = send_telegrams(&mut meter, &mut household) => sent?,
        served = &mut serving => served?,
        () = wait_until(deadline) => {}
        asked = asked_to_end() => asked?,
    }
    // What is on the wire still arrives.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let summary = daemon.stop().await;
    say!("{} messages accepted, {} confirmed by the store.", summary.messages, summary.acknowledged);
    let registers = readings::print(&url, arguments.format).await?;
    if arguments.history.is_some() {
        usage::by_month(&url, ZONE, arguments.format).await?;
    }
    if arguments.data.is_some() {
        tell_commands(&url, &household);
    }
    let well = registers > 0 && summary.acknowledged == summary.messages;
    Ok(if well { Outcome::Well } else { Outcome::Partly })
}

/// What can be asked of a database that stays.
fn tell_commands(url: &StoreUrl, household: &Household) {
    let meter = household.books().first().map(|book| book.meter.name(GATEWAY, "p1")).unwrap_or_default();
    let yesterday = household.moment().shifted(SignedDuration::from_hours(-24)).unwrap_or(household.moment());
    say!("The database stays. To paste:");
    say!("  meterkast usage --store {url} --by day --zone {ZONE}");
    say!("  meterkast readings --store {url} --at {yesterday}");
    say!("  meterkast export --store {url} --meter {meter} --from {yesterday}");
}

/// The household: one with a little of everything, and a bus.
fn description(seed: u64) -> Description {
    let meter = |((meter, counts_in), address): (&(&str, slave::CountsIn), u8)| slave::Description {
        counts_in: *counts_in,
        ..slave::Description::new(meter, address)
    };
    let bus = bus::Description::of(METERS.iter().zip(1..).map(meter).collect());
    Description { bus: Some(bus), ..Description::demo(seed) }
}

/// Lets the household live until now, and puts what its meters said into the database: at quarter-hours, `fine` before now more often.
/// Returns the meters, to live on.
async fn live_until_now(
    past: Past,
    fine: Duration,
    config: &Config,
    database: &Path,
) -> Result<(Household, Option<Bus>), Failure> {
    let Some(store) = &config.store else { return Err(Failure::world("the demo has no store")) };
    let (begin, now) = (Instant::now(), Timestamp::now());
    let (description, from) = (description(past.seed), Moment::utc(past.since));
    let readouts = config.mbus.first().map_or(FINE, |bus| bus.interval).as_secs();
    let mut tape = Tape::new(&description, from, Moment::utc(now), Some(QUARTER_HOUR_S)).map_err(Failure::world)?;
    let fine = history::full_quarter(now.saturating_sub(fine).unwrap_or(now));
    tape.set_pace(fine, FINE_S, u32::try_from(readouts).unwrap_or(FINE_S));
    let progress = history::progress_bar(tape.progress().1);
    let mut filling = Filling::open(store).await?;
    let mut messages = filling.write(Messages::new(tape, &description, GATEWAY), &progress).await?;
    filling.keep_up().await?;
    progress.finish_and_clear();
    // That took a while.
    messages.tape_mut().extend(Moment::utc(Timestamp::now()));
    let messages = filling.write(messages, &progress).await?;
    let filled = filling.close().await?;
    let bytes = fs::metadata(database).map_or(0, |found| found.len());
    let (ms, kib) = (begin.elapsed().as_millis(), bytes / 1024);
    say!(
        "{} messages since {from} were put into the database in {}.{} s; it has {}.{} MiB.",
        filled.stored,
        ms / 1000,
        ms % 1000 / 100,
        kib / 1024,
        kib % 1024 * 10 / 1024
    );
    Ok(messages.into_tape().into_meters())
}

fn config(p1_port: &str, bus_port: &str, folder: &Folder, database: &Path) -> Config {
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
        // A past of years is kept whole.
        store.retention = Duration::MAX;
    }
    config
}

/// A telegram each second, for ever.
async fn send_telegrams(meter: &mut SerialStream, household: &mut Household) -> Result<(), Failure> {
    let mut second = tokio::time::interval(Duration::from_secs(1));
    loop {
        second.tick().await;
        household.advance(Moment::utc(Timestamp::now()));
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
    use crate::{
        reading::Medium,
        store::{self, Quarters},
    };

    #[test]
    fn its_configuration_is_valid() {
        let folder = Folder::new(None).unwrap();
        let config = config("/dev/pts/7", "/dev/pts/8", &folder, &folder.path.join("x.db"));
        assert_eq!(config.p1[0].port, Address::Path("/dev/pts/7".into()));
        assert_eq!(config.gateway.id.unwrap().as_str(), GATEWAY);
        assert_eq!(config.mbus[0].port, Address::Path("/dev/pts/8".into()));
        let bus = Bus::of(&description(1), Moment::utc(Timestamp::now())).unwrap().unwrap();
        assert_eq!(bus.slaves().len(), config.mbus[0].meters.len());
    }

    #[tokio::test]
    async fn the_past_leads_to_the_present() {
        let folder = Folder::new(None).unwrap();
        let database = folder.path.join("meterkast.db");
        let config = config("/dev/pts/7", "/dev/pts/8", &folder, &database);
        let begin = Timestamp::now();
        let from = history::full_quarter(begin - Duration::from_secs(8 * 3600));
        let fine = Duration::from_secs(600);
        let past = Past { seed: 3, since: from.instant() };
        past.write(&folder.path).unwrap();
        let (mut household, bus) = live_until_now(past, fine, &config, &database).await.unwrap();
        let (now, fine) = (Moment::utc(Timestamp::now()), history::full_quarter(begin - fine).millis());

        let mut reader = store::read(&StoreUrl::sqlite(&database)).await.unwrap();
        let meters = reader.meters().await.unwrap();
        assert_eq!(meters.len(), 7);
        household.advance(now);
        let books = household.books();
        for meter in &meters {
            let messages = reader.messages(meter, 0..i64::MAX, None, usize::MAX).await.unwrap();
            let at: Vec<i64> = messages.iter().map(|message| message.key.0).collect();
            // Behind the P1 port a meter is heard every five minutes.
            let often = if meter.protocol == "p1" && meter.medium != Medium::Electricity { 300_000 } else { 10_000 };
            assert!(at[0] < from.millis() + 10_000, "{}", meter.name);
            for pair in at.windows(2) {
                // A meter on the bus waits for those before it.
                let most = if pair[0] >= fine { often + 2000 } else { 902_000 };
                assert!(pair[1] - pair[0] <= most, "{}: {pair:?}", meter.name);
            }
            assert!(now.millis() - at.last().unwrap() <= often + 5000, "{}: {at:?}", meter.name);
            // The meters live on where they were.
            let last = messages.last().unwrap();
            let counts: Vec<_> = match books.iter().find(|book| book.meter.name(GATEWAY, "p1") == meter.name) {
                Some(book) => book.readings.iter().map(|now| (now.register.clone(), now.value)).collect(),
                None => {
                    let slaves = bus.as_ref().unwrap().slaves();
                    let slave = slaves.iter().find(|slave| slave.secondary().to_string() == meter.name).unwrap();
                    let (register, value, _) = slave.book();
                    vec![(register, value)]
                }
            };
            let mut compared = 0;
            for then in last.report.readings.iter().filter(|then| then.is_current() && then.register.is_cumulative()) {
                if let Some((_, now)) = counts.iter().find(|(register, _)| *register == then.register) {
                    let (then, now) = (then.value.mantissa(), now.mantissa());
                    assert!((then..then + 1000).contains(&now), "{}: {then} {now}", meter.name);
                    compared += 1;
                }
            }
            assert!(compared > 0, "{}", meter.name);
            for series in reader.series(meter).await.unwrap() {
                let quarters = reader.quarters(&series, &Quarters::All(0..i64::MAX)).await.unwrap();
                assert_eq!(quarters[0].quarter, from.quarter());
                assert!(quarters.windows(2).all(|pair| {
                    pair[1].quarter == pair[0].quarter + 1 && pair[1].value.mantissa() >= pair[0].value.mantissa()
                }));
                assert!(quarters.len() >= 33, "{}: {}", meter.name, quarters.len());
            }
        }
        // The line of the bus knows no past.
        let mut bus = bus.unwrap();
        bus.handle_bytes(Duration::ZERO, &[0x10, 0x40, 0x01, 0x41, 0x16]);
        assert!(bus.next_byte().unwrap() < Duration::from_secs(1));

        // Who comes later goes on with the same meters.
        let again = Past::read(&folder.path, &database).unwrap().unwrap();
        assert_eq!(again, past);
        let (household_again, bus_again) = again.live().unwrap();
        household.advance(household_again.moment());
        assert_eq!(household_again, household);
        bus.advance(household.moment());
        let books = |bus: &Bus| bus.slaves().iter().map(slave::Slave::book).collect::<Vec<_>>();
        assert_eq!(books(&bus_again.unwrap()), books(&bus));
    }
}
