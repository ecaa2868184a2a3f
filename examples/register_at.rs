//! What registers showed at a moment, asked of a store by a program of one's own; and how long that takes.
//!
//!     register_at URL METER FROM UNTIL    such as sqlite:///var/lib/meterkast/store.db E0043007052870318
//!                                         2025-10-01T00:00:00+02:00 2025-11-01T00:00:00+01:00
//!
//! Asks for 101 moments, evenly from FROM to UNTIL, and prints the readings before and after the last of them. The last line is for
//! scripts: microseconds that it took to open the database, to ask for the first moment, for the one in the middle by time taken, and
//! for the longest.

use std::{error::Error, time::Instant};

use meterkast::{config::StoreUrl, moment::Moment, reading::Report, store};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, name, from, until] = arguments.as_slice() else {
        return Err("register_at URL METER FROM UNTIL".into());
    };
    let (from, until): (Moment, Moment) = (from.parse()?, until.parse()?);
    let begin = Instant::now();
    let mut reader = store::read(&StoreUrl::parse(url)?).await?;
    let opening = begin.elapsed();
    let meters: Vec<_> = reader.meters().await?.into_iter().filter(|meter| meter.name == *name).collect();
    if meters.is_empty() {
        return Err(format!("there is no meter {name}").into());
    }
    let (mut took, mut around) = (Vec::new(), Vec::new());
    for step in 0..=100 {
        let millis = from.millis() + (until.millis() - from.millis()) / 100 * step;
        let moment = Moment::from_millis(millis, from.offset_minutes()).ok_or("no such moment")?;
        let begin = Instant::now();
        around = reader.readings_of(&meters, Some(moment)).await?;
        around.extend(reader.readings_after(&meters, moment).await?);
        took.push(begin.elapsed().as_micros());
    }
    let first = took.first().copied().unwrap_or_default();
    took.sort_unstable();
    let place = |place: usize| took.get(place).copied().unwrap_or_default();
    for (report, _) in &around {
        print_counters(report);
    }
    #[expect(clippy::print_stdout, reason = "an example")]
    {
        println!("{} {first} {} {}", opening.as_micros(), place(50), place(100));
    }
    Ok(())
}

fn print_counters(report: &Report<String>) {
    let at = report.measured_at.map(|at| at.to_string()).unwrap_or_default();
    for reading in report.readings.iter().filter(|reading| reading.register.is_cumulative()) {
        #[expect(clippy::print_stdout, reason = "an example")]
        {
            println!("{at} {} {} {}", reading.register, reading.value, reading.unit);
        }
    }
}
