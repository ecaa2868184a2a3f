//! Real M-Bus frames with a second opinion on each record, which stand beside the checkout. Without them these
//! tests pass with a note, unless `METERKAST_REQUIRE_CORPUS=1`.

use std::fs;

use meterkast::{
    mbus::{
        self, Answer, Coding, Frame, Item, Record, Records,
        value::{self, Date, Value},
        vif::{self, Kind},
    },
    reading::{Function, Identity, Qualifiers, Report},
    unit::Decimal,
};

use crate::samples::{Sample, corpus_folder, mbus_frames};

/// Frames that nobody gave a second opinion on, and what is wrong with them.
const REJECTED: &[(&str, &str)] = &[
    ("application_busy", "the meter answers with an application error: busy"),
    ("buffer_too_long", "the meter answers with an application error: buffer too long"),
    ("/error", "the meter answers with an application error: unspecified"),
    ("premature_end_of_data1", "the record at byte 10 breaks off within its data"),
    ("premature_end_of_data2", "the record at byte 10 breaks off within its data"),
    ("premature_end_of_dif1", "the record at byte 10 breaks off within its DIFE"),
    ("premature_end_of_dif2", "the record at byte 10 breaks off within its DIFE"),
    ("premature_end_of_record", "the meter answers with an application error: premature end of record"),
    ("premature_end_of_var_vif1", "the record at byte 22 breaks off within its plain-text unit"),
    ("premature_end_of_vif1", "the record at byte 10 breaks off within its VIF"),
    ("too_long_var_vif", "the record at byte 22 breaks off within its plain-text unit"),
    ("too_many_dife", "the record at byte 10 has more than 10 DIFE"),
    ("too_many_difes", "the meter answers with an application error: more than 10 DIFE"),
    ("too_many_readouts", "the meter answers with an application error: too many readouts"),
    ("too_many_records", "the meter answers with an application error: too many records"),
    ("too_many_vife", "the record at byte 10 has more than 10 VIFE"),
    ("too_many_vifes", "the meter answers with an application error: more than 10 VIFE"),
    ("too_short_header", "the header breaks off after 5 bytes"),
    ("unimplemented_ci", "the meter answers with an application error: unimplemented control information"),
    ("unspecified_error", "the meter answers with an application error: unspecified"),
    ("manual_frame1", "no frame: no frame begins with D0"),
    ("test_control_frame_x_072081", "the header breaks off after 0 bytes"),
    ("test_serial_x_d98d38", "no frame: its checksum is 00, and its bytes give 85"),
];

/// Frames without a second opinion, decoded by hand from the standard: two of the fixed structure, two that come
/// highest byte first.
const BY_HAND: &[(&str, &[&str])] = &[
    ("manual_frame2", &["0000-12345678-00-07 water", "volume 0.001 m3", "volume 0.135 m3 storage 1"]),
    ("sen_pollusonic_2", &["0000-90919293-00-04 heat", "energy 23.5116 GJ", "volume 0.069 m3"]),
    (
        "application_layer_frames_____09670106",
        &[
            "0000-09670106-51-04 heat",
            "energy 8087.32 GJ",
            "energy 0.00 GJ tariff 2",
            "volume 133282.58 m3",
            "volume 25812.5 m3 tariff 1 error",
            "volume 0.000 m3 tariff 2",
            "volume 0.161 m3 tariff 3",
            "volume 1.688 m3 subunit 1",
            "flow 1.10 m3/h",
            "power 8.0 kW",
            "flow_temperature 71.8 C",
            "return_temperature 65.3 C",
            "on_time 160726 h",
            "on_time 3381 h error",
        ],
    ),
    (
        "test_unknown_pl_____15531111",
        &[
            "0000-15531111-52-04 heat",
            "energy 5853.40 GJ error",
            "energy 0.00 GJ tariff 2 error",
            "volume 379716.8 m3 error",
            "volume 0.000 m3 tariff 1",
            "volume 0.000 m3 tariff 2",
            "volume 0.000 m3 tariff 3",
            "volume 0.000 m3 subunit 1",
            "flow 26.3 m3/h error",
            "power 107 kW error",
            "flow_temperature 42.5 C",
            "return_temperature 38.9 C",
            "on_time 38071 h",
            "on_time 29080 h error",
        ],
    ),
];

fn frames() -> Vec<(String, Vec<u8>, Option<serde_json::Value>)> {
    let Some(folder) = corpus_folder().map(|folder| folder.with_file_name("mbus")) else { return Vec::new() };
    let opinion = |Sample { name, bytes }: Sample| {
        let name = name.strip_suffix(".hex").unwrap().to_owned();
        let opinion = fs::read_to_string(folder.join(format!("{name}.ref.json"))).ok();
        (name, bytes, opinion.map(|text| serde_json::from_str(&text).unwrap()))
    };
    mbus_frames().into_iter().map(opinion).collect()
}

#[test]
fn every_well_formed_frame_is_decoded_and_every_other_rejected() {
    let frames = frames();
    let (mut decoded, mut records, mut rejected) = (0, 0, 0);
    for (name, bytes, opinion) in &frames {
        let result = mbus::read(bytes, 1);
        let by_hand = BY_HAND.iter().find(|(hand, _)| name.ends_with(hand));
        match (opinion, REJECTED.iter().find(|(file, _)| name.ends_with(file)), by_hand) {
            (Some(opinion), None, None) => {
                result.unwrap_or_else(|reason| panic!("{name}: {reason}"));
                records += compare(name, bytes, opinion);
                decoded += 1;
            }
            (None, Some((_, reason)), None) => {
                assert_eq!(result.unwrap_err().to_string(), *reason, "{name}");
                rejected += 1;
            }
            (None, None, by_hand) => {
                let report = result.unwrap_or_else(|reason| panic!("{name}: {reason}")).report;
                let (_, lines) = by_hand.unwrap_or_else(|| panic!("{name} stands in no list"));
                assert_eq!(said(&report), *lines, "{name}");
                decoded += 1;
            }
            _ => panic!("{name} stands in two lists"),
        }
    }
    println!("{decoded} frames decoded, {records} records compared, {rejected} frames rejected");
    assert!(frames.is_empty() || (decoded, rejected) == (69, 23), "{decoded} and {rejected}");
}

/// Holds each record against the second opinion; returns how many there were.
fn compare(name: &str, bytes: &[u8], opinion: &serde_json::Value) -> usize {
    let (frame, _) = Frame::parse(bytes).unwrap();
    let answer = Answer::parse(&frame).unwrap();
    if let Some(secondary) = answer.secondary {
        assert_eq!(format!("{:08X}", secondary.id), opinion["id"], "{name}");
        assert_eq!(u64::from(secondary.version), opinion["ver"], "{name}");
        assert_eq!(u64::from(secondary.medium), opinion["med"], "{name}");
        assert_eq!(u64::from(answer.state.unwrap().status), opinion["status"], "{name}");
    }
    let Frame::Long { data, ci, .. } = frame else { panic!("{name}") };
    let data = if ci == 0x78 { data } else { &data[12..] };
    let opinions = opinion["records"].as_array().unwrap();
    let items: Vec<Item<'_>> = Records::new(data).map(Result::unwrap).collect();
    assert_eq!(items.len(), opinions.len(), "{name}");
    for (item, opinion) in items.iter().zip(opinions) {
        let context = format!("{name}: {opinion}");
        match item {
            Item::Manufacturer { .. } => assert_eq!(opinion["kind"], "mfr", "{context}"),
            Item::Reserved(_) => panic!("{context}"),
            Item::Record(record) => compare_record(&context, record, opinion),
        }
    }
    items.len()
}

fn compare_record(context: &str, record: &Record<'_>, opinion: &serde_json::Value) {
    let function = match record.qualifiers.function {
        Function::Instantaneous => "inst",
        Function::Maximum => "max",
        Function::Minimum => "min",
        Function::Error => "err",
    };
    assert!(opinion["function"].as_str().unwrap().starts_with(function), "{context}");
    assert_eq!(record.qualifiers.storage, opinion["storage"], "{context}");
    assert_eq!(u64::from(record.qualifiers.tariff), opinion["tariff"], "{context}");
    assert_eq!(u64::from(record.qualifiers.subunit), opinion["subunit"], "{context}");
    let raw = [&record.head[..], &record.data[..]].concat();
    assert_eq!(raw.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), opinion["raw"], "{context}");
    let quantity = opinion["quantity"].as_str().unwrap();
    let Some(meaning) = vif::meaning(&record.vib) else {
        assert!(["manufacturer", "vif7b"].contains(&quantity), "{context}: has no meaning");
        return;
    };
    let ours = match quantity {
        "volume_flow" => "flow",
        "ext_temp" => "external_temperature",
        "flow_temp" => "flow_temperature",
        "return_temp" => "return_temperature",
        "temp_diff" => "temperature_difference",
        "hca" => "heat_cost_units",
        "enhanced_id" => "enhanced_identification",
        "fabrication_no" => "fabrication_number",
        "datetime" => "date_time",
        "fw_version" => "firmware_version",
        "hw_version" => "hardware_version",
        "sw_version" => "software_version",
        "meter_stops" => "stops",
        "rel_humidity" => "relative_humidity",
        "reset_counter" => "resets",
        text if text.starts_with("text:") => "text_",
        other => other,
    };
    assert!(meaning.name.starts_with(ours), "{context}: {}", meaning.name);
    let value = opinion["value"].as_str();
    match (opinion["kind"].as_str().unwrap(), &meaning.kind) {
        ("num", Kind::Amount { exponent, .. } | Kind::Plain { exponent, .. }) => {
            let Value::Number(number) = record.value(true) else { panic!("{context}: no number") };
            // In the unit of the second opinion, which is the base unit of the table.
            let ours = number.shift(*exponent).unwrap();
            let value = value.unwrap_or_else(|| panic!("{context}"));
            match Decimal::parse(value.as_bytes()) {
                Some(value) if record.coding != Coding::Real => assert!(ours.same_amount(value), "{context}: {ours}"),
                // The second opinion has all digits of the binary fraction, we the fewest that read back the same.
                _ => {
                    let real = |text: &str| text.parse::<f32>().unwrap();
                    assert_eq!(real(&ours.to_string()), real(value), "{context}: {ours}");
                }
            }
        }
        ("num", Kind::Identifier | Kind::Flags) => match record.value(false) {
            Value::Number(number) => assert_eq!(Some(&*number.to_string()), value, "{context}"),
            other => panic!("{context}: {other:?}"),
        },
        ("bcd_invalid", _) => assert_eq!(record.value(true), Value::NotANumber, "{context}"),
        ("text", _) => match record.value(true) {
            Value::Text(text) => {
                let text: String = text.into_iter().map(char::from).collect();
                assert_eq!(Some(&*text), value, "{context}");
            }
            other => panic!("{context}: {other:?}"),
        },
        ("bin", _) => assert!(matches!(record.value(true), Value::Bytes(_)), "{context}"),
        ("date" | "datetime", Kind::Date) => {
            let shown = match value::date(&record.data) {
                Some(Date::Day { year, month, day }) => format!("{year:04}-{month:02}-{day:02}"),
                Some(Date::Time { clock, .. }) => format!(
                    "{:04}-{:02}-{:02}T{:02}:{:02}",
                    clock.year, clock.month, clock.day, clock.hour, clock.minute
                ),
                other => format!("{other:?}"),
            };
            // The second opinion shows the fields of dates that no calendar has (month 0, day 0) as they are, and
            // year 127, which stands for every year, as 2127.
            let value = value.unwrap_or("invalid");
            let exists = !value.starts_with("2127")
                && value.get(..10).is_some_and(|day| day.parse::<jiff::civil::Date>().is_ok());
            let none = shown == "Some(NotSet)" || shown.starts_with("Some(Every");
            assert!(if exists { value.starts_with(&shown) } else { none }, "{context}: {shown}");
        }
        (kind, ours) => panic!("{context}: {kind} is {ours:?}"),
    }
}

/// Who a meter is and its readings, a line each.
fn said(report: &Report) -> Vec<String> {
    let Identity::Own(meter) = &report.meter else { panic!("{report:?}") };
    let mut lines = vec![format!("{meter} {}", report.medium.name())];
    for reading in &report.readings {
        let Qualifiers { storage, tariff, subunit, function } = reading.qualifiers;
        let mut line = format!("{} {} {}", reading.register, reading.value, reading.unit).trim_end().to_owned();
        for (name, number) in [("storage", storage), ("tariff", tariff.into()), ("subunit", subunit.into())] {
            if number != 0 {
                line += &format!(" {name} {number}");
            }
        }
        lines.push(line + &function.name().map_or(String::new(), |name| format!(" {name}")));
    }
    lines
}
