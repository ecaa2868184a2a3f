//! `usage`, as a user runs it.

use meterkast::p1::Writer;
use serde_json::{Value, json};

use crate::parts::{Folder, meterkast};

/// A telegram that says a clock and a counter in kWh.
fn telegram((time, count): (&str, u32)) -> Vec<u8> {
    Writer::new("XYZ5 usage")
        .line("1-3:0.2.8(50)")
        .line(format!("0-0:1.0.0({time})"))
        .line("0-0:96.1.1(4530303031)")
        .line(format!("1-0:1.8.1({count:06}.000*kWh)"))
        .finish(true)
}

/// The URL of a database that has these telegrams.
fn stored(folder: &Folder, telegrams: &[(&str, u32)]) -> String {
    let telegrams: Vec<u8> = telegrams.iter().copied().flat_map(telegram).collect();
    let (file, data) = (folder.file("telegrams.txt", telegrams), folder.path("data"));
    let replayed = meterkast(&["replay", file.to_str().unwrap(), "--data", data.to_str().unwrap()], b"");
    assert_eq!(replayed.code, Some(0), "{replayed:?}");
    format!("sqlite://{}/meterkast.db", data.display())
}

/// A kWh each hour over the end of summer time, from one telegram at each midnight in Amsterdam.
#[test]
fn usage_by_day_and_hour_over_the_end_of_summer_time() {
    let folder = Folder::new();
    let store = stored(&folder, &[("261024000000S", 100), ("261025000000S", 124), ("261026000000W", 149)]);
    let usage = |arguments: &[&str]| {
        meterkast(&[&["usage", "--store", &store, "--zone", "Europe/Amsterdam"], arguments].concat(), b"")
    };

    let days = usage(&["--by", "day"]);
    assert_eq!(
        days.stdout,
        "METER  MEDIUM       REGISTER    PERIOD             VALUE  UNIT  ESTIMATED\n\
         E0001  electricity  import_low  2026-10-24        24.000  kWh\n\
         E0001  electricity  import_low  2026-10-25        25.000  kWh\n",
        "{days:?}"
    );
    let total = usage(&["--by", "total", "--format", "csv", "--compare", "1"]);
    assert_eq!(
        total.stdout,
        "meter,medium,register,period,from,to,value,unit,estimated,method,\
         from_1y,to_1y,value_1y,method_1y\n\
         E0001,electricity,import_low,total,2026-10-23T22:00:00.000Z,2026-10-25T23:00:00.000Z,49.000,kWh,false,,,,,\n",
        "{total:?}"
    );
    let hours = usage(&["--by", "hour", "--from", "2026-10-25", "--until", "2026-10-26", "--format", "json"]);
    let hours: Vec<Value> = hours.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(hours.len(), 25);
    assert_eq!([&hours[2]["period"], &hours[3]["period"]], ["2026-10-25T02:00+02:00", "2026-10-25T02:00+01:00"]);
    let second = json!({"meter": "E0001", "medium": "electricity", "register": "import_low", "unit": "kWh",
        "period": "2026-10-25T02:00+01:00", "from": "2026-10-25T02:00:00+01:00", "to": "2026-10-25T03:00:00+01:00",
        "value": 1.0, "estimated": true, "method": "linear"});
    assert_eq!(hours[3], second);

    let total = usage(&["--by", "total"]);
    let known = "since 2026-10-24T00:00:00+02:00, until 2026-10-26T00:00:00+01:00\n";
    assert!(total.stdout.ends_with(known), "{total:?}");
    let nothing = usage(&["--until", "2026-10-01"]);
    assert_eq!((nothing.code, nothing.stdout.lines().count()), (Some(0), 1));
    assert!(nothing.stderr.contains("nothing was counted in sqlite://"), "{nothing:?}");
    for (arguments, complaint) in [
        (&["--meter", "NOPE"][..], "--meter NOPE: nothing was counted by it"),
        (&["--from", "2026-02-02", "--until", "2026-02-02"], "there is no day between them"),
        (&["--register", "volume"], "no such counter is in sqlite:///"),
        (&["--register", "volume"], "there are: import_low"),
        (&["--from", "2026-02-30"], "a day is meant, such as 2026-11-21"),
        (&["--from", "2026-10-25T03:00:00+01:00"], "a day is meant"),
        (&["--until", "9999-12-31"], "beyond the calendar"),
    ] {
        let ended = usage(arguments);
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.stderr.contains(complaint) && ended.stdout.is_empty(), "{ended:?}");
    }
    let mars = meterkast(&["usage", "--store", &store, "--zone", "Mars/Olympus"], b"");
    assert_eq!(
        (mars.code, mars.stderr.contains("--zone Mars/Olympus: there is no such zone")),
        (Some(2), true),
        "{mars:?}"
    );
}

/// What is cut is said of each year: a month of three days is no month.
#[test]
fn a_year_before_of_which_only_a_part_is_known_is_marked() {
    let folder = Folder::new();
    let telegrams = [("251028000000W", 100), ("251101000000W", 104), ("261001000000S", 200), ("261020120000S", 230)];
    let store = stored(&folder, &telegrams);
    let usage = |format: &str| {
        let arguments = ["usage", "--store", &store, "--zone", "Europe/Amsterdam", "--by", "month", "--compare", "1"];
        meterkast(&[&arguments[..], &["--from", "2026-10-01", "--format", format]].concat(), b"").stdout
    };
    let remark = "until 2026-10-20T12:00:00+02:00, 1Y before since 2025-10-28T00:00:00+01:00\n";
    assert!(usage("table").ends_with(&format!("30.000  kWh          4.000  {remark}")), "{}", usage("table"));
    let earlier = ",2025-10-27T23:00:00.000Z,2025-10-31T23:00:00.000Z,4.000,\n";
    assert!(usage("csv").ends_with(earlier), "{}", usage("csv"));
}
