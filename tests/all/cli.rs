//! The commands, as a user runs them: what they print where, and the exit code.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use meterkast::{moment::Moment, p1::Writer, simulate::Household};
use serde_json::Value;

use crate::{
    parts::{Folder, Meter, Meterkast, meterkast},
    samples::root,
};

fn fixture(name: &str) -> String {
    format!("{}/fixtures/p1/{name}.txt", env!("CARGO_MANIFEST_DIR"))
}

/// What the decoder must make of a fixture: the lines of the meters, without those of what is rejected.
fn expected(name: &str) -> String {
    let path = Path::new(&fixture(name)).with_extension("expected");
    fs::read_to_string(path)
        .unwrap()
        .lines()
        .filter(|line| !line.starts_with('!'))
        .map(|line| format!("{line}\n"))
        .collect()
}

#[test]
fn decode_prints_a_line_a_meter() {
    let ended = meterkast(&["decode", &fixture("dsmr50-gas-heat-hotwater")], b"");
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    assert_eq!(ended.stdout, expected("dsmr50-gas-heat-hotwater"));
    // Several files, in their order.
    let ended = meterkast(&["decode", &fixture("heat-only"), &fixture("dsmr22-gas")], b"");
    assert_eq!(ended.stdout, expected("heat-only") + &expected("dsmr22-gas"));
}

#[test]
fn decode_names_what_it_rejects() {
    for (name, reason) in [
        ("bad-crc", "CRC mismatch"),
        ("bad-crc-between", "CRC mismatch"),
        ("truncated", "truncated"),
        ("starts-in-the-middle", "fragment"),
        ("no-crc-dsmr5", "CRC missing"),
    ] {
        let file = fixture(name);
        let ended = meterkast(&["decode", &file], b"");
        assert_eq!(ended.code, Some(1), "{name}");
        assert_eq!(ended.stdout, expected(name));
        let rejected = fs::read_to_string(Path::new(&file).with_extension("expected")).unwrap();
        let offsets = rejected.lines().filter_map(|line| line.strip_prefix("! ")?.split_once(':'));
        for (offset, _) in offsets {
            assert!(ended.stderr.contains(&format!("{file}:{offset}: {reason}")), "{name}: {}", ended.stderr);
        }
    }
}

#[test]
fn decode_reads_standard_input_and_hex() {
    let name = "dsmr42-three-phase-gas";
    let bytes = fs::read(fixture(name)).unwrap();
    let hex: String = bytes
        .chunks(16)
        .map(|line| line.iter().map(|byte| format!("{byte:02x} ")).collect::<String>() + "\n")
        .collect();
    let log: String = String::from_utf8(bytes.clone())
        .unwrap()
        .lines()
        .map(|line| format!("[20:00:01.234] {line}\n[20:00:01.240] another line\n"))
        .collect();
    for (arguments, input, said) in [
        (&["decode"][..], &bytes[..], ""),
        (&["decode", "-"], &bytes, ""),
        (&["decode", "-"], hex.as_bytes(), "-: read as hex digits\n"),
        (&["decode", "-"], log.as_bytes(), "-: read as a log; 39 lines are no part of a telegram\n-: 1 telegram came"),
    ] {
        let ended = meterkast(arguments, input);
        assert_eq!(ended.code, Some(0), "{arguments:?}");
        assert!(ended.stderr.starts_with(said) && said.is_empty() == ended.stderr.is_empty(), "{}", ended.stderr);
        assert_eq!(ended.stdout, expected(name), "{arguments:?}");
    }
    let folder = Folder::new();
    let file = folder.file("upper.hex", hex.to_uppercase());
    assert_eq!(meterkast(&["decode", file.to_str().unwrap()], b"").stdout, expected(name));
}

#[test]
fn sealed_telegrams_need_their_key() {
    let sealed = root().join("fixtures/sealed");
    let (file, key) = (sealed.join("luxembourg.bin"), sealed.join("luxembourg.key"));
    let (file, key) = (file.to_str().unwrap(), key.to_str().unwrap());
    let folder = Folder::new();
    let other = folder.file("other.key", "000102030405060708090a0b0c0d0e0f");
    let none = folder.file("no.key", "4D6B41737430");
    let ended = meterkast(&["decode", "--key-file", key, file], b"");
    assert_eq!((ended.code, ended.stdout), (Some(0), expected("luxembourg").repeat(2)));
    for (key, code, said) in [
        (None, 1, ":0: encrypted: the operator of the grid gives the key"),
        (other.to_str(), 1, ":0: wrong key"),
        (none.to_str(), 2, "no.key: no key: write 32 hexadecimal digits"),
        (Some("/nowhere/key"), 2, "the key-file /nowhere/key: No such file"),
    ] {
        let arguments: Vec<&str> = ["decode", file].into_iter().chain(key.map(|_| "--key-file")).chain(key).collect();
        let ended = meterkast(&arguments, b"");
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(code), ""), "{}", ended.stderr);
        assert!(ended.stderr.contains(said) && !ended.stderr.contains("4D6B"), "{}", ended.stderr);
    }
    // Played back: the second time the counters are not new.
    let twice = folder.file("twice", [fs::read(file).unwrap(), fs::read(file).unwrap()].concat());
    let ended = meterkast(&["decode", "--key-file", key, twice.to_str().unwrap()], b"");
    assert_eq!((ended.code, ended.stdout.lines().count()), (Some(1), expected("luxembourg").lines().count() * 2));
    assert!(ended.stderr.contains("replayed: the frame counter is 416, and 417 was there already"), "{}", ended.stderr);
}

#[test]
fn decode_says_when_there_is_nothing() {
    let folder = Folder::new();
    let file = |name: &str, content: &str| folder.file(name, content).to_str().unwrap().to_owned();
    for (file, message) in [
        (file("empty", ""), "is empty"),
        (file("blank", "\r\n\r\n"), "holds neither a P1 telegram nor an M-Bus frame"),
        (folder.path("none").to_str().unwrap().to_owned(), "No such file"),
        (file("text", "no telegram"), ": holds neither a P1 telegram nor an M-Bus frame"),
        (file("slash", "/ABC5 and no more"), ":0: truncated"),
        (file("frame", "68 0F 0F 68 08 05"), ":0: no frame: it breaks off, with 15 or more bytes missing"),
        (file("requests", "10 40 05 45 16 E5 10 7B 05 80 16"), "holds requests of an M-Bus master, and no meter's"),
    ] {
        let ended = meterkast(&["decode", &file], b"");
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{file}");
        assert!(ended.stderr.starts_with(&file) && ended.stderr.contains(message), "{}", ended.stderr);
    }
}

/// The bytes of an M-Bus fixture, and what the decoder must make of it.
fn mbus_fixture(name: &str) -> (Vec<u8>, String) {
    let path = root().join("fixtures/mbus").join(name).with_extension("hex");
    let text = fs::read_to_string(&path).unwrap();
    let bytes = text.split_whitespace().map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect();
    let expected = fs::read_to_string(path.with_extension("expected")).unwrap();
    (bytes, expected.lines().filter(|line| !line.starts_with('!')).map(|line| format!("{line}\n")).collect())
}

#[test]
fn decode_finds_out_that_it_is_m_bus() {
    let (bytes, expected) = mbus_fixture("heat-gj");
    let spaced: Vec<String> = bytes.iter().map(|byte| format!("{byte:02X}")).collect();
    let lines: Vec<String> = spaced.chunks(16).map(|line| line.join(" ")).collect();
    let dump: String = bytes
        .chunks(16)
        .enumerate()
        .map(|(line, bytes)| {
            let pairs: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{:08x}  {:<48}  |{}|\n", line * 16, pairs.join(" "), ".".repeat(bytes.len()))
        })
        .collect();
    for (input, said) in [
        (bytes.clone(), ""),
        (spaced.concat().into_bytes(), "-: read as hex digits\n"),
        (lines.join("\n").into_bytes(), "-: read as hex digits\n"),
        (spaced.join(":").to_lowercase().into_bytes(), "-: read as hex digits\n"),
        (dump.into_bytes(), "-: read as a hex dump\n"),
        (STANDARD.encode(&bytes).into_bytes(), "-: read as base64\n"),
    ] {
        let ended = meterkast(&["decode"], &input);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), said));
        assert_eq!(ended.stdout, expected);
    }
    // Files of both kinds, in their order.
    let path = root().join("fixtures/mbus/heat-gj.hex");
    let ended = meterkast(&["decode", &fixture("heat-only"), path.to_str().unwrap()], b"");
    assert_eq!(ended.stdout, self::expected("heat-only") + &expected);
    let table = meterkast(&["decode", "--format", "table"], &bytes).stdout;
    assert!(table.starts_with("heat meter KAM-10000001-1B-04, at 2026-11-21T20:15:00+01:00\n"), "{table}");
    assert!(table.contains("storage 1, at 2026-10-31T23:59:00+01:00, as sent: 120001 MJ"), "{table}");
    let (bytes, _) = mbus_fixture("manufacturers-own");
    let table = meterkast(&["decode", "--format", "table"], &bytes).stdout;
    assert!(
        table.contains("without a time of its own") && table.contains("  unknown      04FF07 672b0000\n"),
        "{table}"
    );
}

#[test]
fn decode_finds_m_bus_frames_between_anything() {
    let (good, line) = mbus_fixture("heat-gj");
    let damaged: Vec<u8> = good.iter().enumerate().map(|(at, byte)| if at == 30 { byte ^ 1 } else { *byte }).collect();
    let request = [0x10, 0x5B, 5, 0x60, 0x16];
    let mixed = [&request[..], &good, b"/\x00noise", &damaged, &[0xE5], &request, &good].concat();
    let ended = meterkast(&["decode"], &mixed);
    assert_eq!((ended.code, ended.stdout), (Some(1), line.repeat(2)));
    let at = request.len() + good.len();
    let said: Vec<&str> = ended.stderr.lines().collect();
    assert!(said.len() == 2 && said[0] == format!("-:{at}: no frame: no frame begins with 2F"), "{said:?}");
    assert!(said[1].starts_with(&format!("-:{}: no frame: its checksum is ", at + 7)), "{said:?}");
    // More noise than is kept.
    let noise = vec![0xAA; 200_000];
    let ended = meterkast(&["decode"], &[&noise[..], &good, &damaged].concat());
    assert_eq!((ended.code, ended.stdout), (Some(1), line.clone()));
    let said: Vec<&str> = ended.stderr.lines().collect();
    assert!(
        said.len() >= 2 && said[0].starts_with("-:0: ") && said[0].ends_with("neither of P1 nor of M-Bus"),
        "{said:?}"
    );
    let damage = format!("-:{}: no frame: its checksum", noise.len() + good.len());
    assert!(said.last().is_some_and(|last| last.starts_with(&damage)), "{said:?}");
    // Whatever comes first decides: a telegram of P1 here.
    let telegram = fs::read(fixture("heat-only")).unwrap();
    let ended = meterkast(&["decode"], &[&telegram[..], &good].concat());
    assert_eq!((ended.code, ended.stdout), (Some(1), expected("heat-only")));
    for (name, reason) in [
        ("encrypted", ":0: encrypted (security mode 5)"),
        ("application-error", ":0: the meter answers with an application error: busy"),
        ("readout-breaks-off", ":0: the readout breaks off: the meter announced another telegram, and none followed"),
    ] {
        let (bytes, lines) = mbus_fixture(name);
        let ended = meterkast(&["decode"], &bytes);
        assert_eq!((ended.code, ended.stdout), (Some(1), lines), "{name}");
        assert!(ended.stderr.contains(reason), "{name}: {}", ended.stderr);
    }
}

#[test]
fn decode_is_told_where_the_clocks_of_m_bus_meters_stand() {
    let (bytes, _) = mbus_fixture("clock-in-summer");
    for (hours, shown) in [
        ("0", "2026-07-14T08:30:00+01:00"),
        ("1", "2026-07-14T08:30:00+02:00"),
        ("-12", "2026-07-14T08:30:00-11:00"),
        ("14", "2026-07-14T08:30:00+15:00"),
    ] {
        let ended = meterkast(&["decode", "--utc-offset", hours], &bytes);
        let lines: Vec<Value> = ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((ended.code, lines.len()), (Some(0), 2), "{ended:?}");
        assert_eq!(lines[0]["measured_at"], shown);
        // Its clock is marked as invalid.
        assert_eq!((&lines[1]["measured_at"], &lines[1]["clock"]), (&Value::Null, &"gateway".into()));
    }
    for hours in ["15", "-13", "1.5", "summer"] {
        assert_eq!(meterkast(&["decode", "--utc-offset", hours], &bytes).code, Some(2), "{hours}");
    }
}

#[test]
fn a_terminal_is_told_nothing_by_a_meter() {
    let hostile = Writer::new("XXX5\x1b]0;title\x07")
        .line("1-3:0.2.8(50)")
        .line("0-0:1.0.0(261121200000W)")
        .line("0-0:96.1.1(1b5b324a1b5b324a1b5b324a1b5b324a)")
        .line("0-0:96.13.0(1b5b324a1b5b33316d)")
        .line("0-0:96.13.1(\x1b[2J)")
        .line(b"0-0:97.97.9(\x1b[2J\x9b31m)")
        .line("1-0:1.8.1(000001.000*\x1b[2J)")
        .line("1-0:1.8.2(000001.000*kWh)")
        .finish(true);
    for format in ["table", "json"] {
        let ended = meterkast(&["decode", "--format", format], &hostile);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let control = |text: &str| text.chars().any(|letter| letter.is_control() && letter != '\n');
        assert!(!control(&ended.stdout) && !control(&ended.stderr), "{format}: {ended:?}");
        assert!(ended.stdout.contains("x1b[2J") && ended.stdout.contains("import_normal"), "{}", ended.stdout);
    }
    // Nor by what is rejected, nor on the way to the database and back.
    let ended = meterkast(&["decode"], &[b"\x1b[2J\r\n", &hostile[..]].concat());
    assert!(ended.code == Some(1) && !ended.stderr.contains('\x1b'), "{ended:?}");
    let folder = Folder::new();
    let file = folder.file("hostile", hostile);
    let data = folder.path("data");
    let ended = meterkast(&["replay", file.to_str().unwrap(), "--data", data.to_str().unwrap()], b"");
    assert!(ended.code == Some(0) && !ended.stderr.contains('\x1b'), "{ended:?}");
    let store = format!("sqlite://{}", data.join("meterkast.db").display());
    let ended = meterkast(&["readings", "--store", &store], b"");
    assert!(
        ended.code == Some(0) && !ended.stdout.contains('\x1b') && ended.stdout.contains("import_normal"),
        "{ended:?}"
    );
}

#[tokio::test]
async fn a_closed_standard_output_ends_a_command_quietly() {
    let folder = Folder::new();
    // More than a pipe holds.
    let file = folder.file("capture", Meter::new(20).telegrams(400));
    let mut decode = Meterkast::start(["decode".as_ref(), file.as_os_str()]);
    let mut line = String::new();
    BufReader::new(decode.child().stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("{\"schema\":1,"), "{line}");
    assert!(decode.ends().await.success());
    assert_eq!(decode.stderr(), "");
}

#[test]
fn check_names_line_and_remedy() {
    let folder = Folder::new();
    let check = |name: &str, text: &str| {
        let file = folder.file(name, text);
        (meterkast(&["check", file.to_str().unwrap()], b""), file.display().to_string())
    };
    let good = "[[p1]]\nport = \"/dev/ttyUSB0\"\n[store]\nurl = \"sqlite:///tmp/meterkast.db\"\n";
    let (ended, file) = check("good.toml", good);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.starts_with(&format!("{file}: ok\n")), "{ended:?}");
    let (ended, file) = check("key.toml", &good.replace("url", "urls"));
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""));
    assert!(ended.stderr.contains(&format!("{file}:4: unknown key `urls`: did you mean `url`?")), "{}", ended.stderr);
    let (ended, file) = check("value.toml", &good.replace("sqlite:", "mysql:"));
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains(&format!("{file}:4: ")) && ended.stderr.contains("sqlite:///"), "{}", ended.stderr);
    let ended = meterkast(&["check", folder.path("").to_str().unwrap()], b"");
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains(": cannot be read as a configuration: Is a directory"), "{}", ended.stderr);
}

#[test]
fn wrong_usage_is_told_from_everything_else() {
    for arguments in [
        &[][..],
        &["nonsense"],
        &["replay"],
        &["replay", "--speed", "fast", "file"],
        &["decode", "--format", "xml"],
        &["readings", "--at", "yesterday"],
        &["demo", "--seconds", "0"],
        &["demo", "--history", "2w"],
        &["demo", "--history", "16y"],
        &["check"],
    ] {
        let ended = meterkast(arguments, b"");
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(ended.stderr.contains("Usage") || ended.stderr.contains("error:"), "{arguments:?}: {}", ended.stderr);
    }
    assert_eq!(meterkast(&["--version"], b"").stdout, format!("meterkast {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(meterkast(&["--help"], b"").code, Some(0));
}

#[test]
fn readings_are_of_a_moment() {
    let folder = Folder::new();
    let store = format!("sqlite://{}", folder.path("meterkast.db").display());
    let ended = meterkast(&["readings", "--store", &store], b"");
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""));
    assert!(ended.stderr.contains("there is no database here; check `store.url`"), "{}", ended.stderr);

    let mut meter = Meter::new(21);
    let file = folder.file("capture", meter.telegrams(10));
    let data = folder.path("");
    let ended = meterkast(&["replay", file.to_str().unwrap(), "--data", data.to_str().unwrap()], b"");
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let summary: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(summary["telegrams"], 10);
    assert_eq!((&summary["stored"], &summary["messages"]), (&meter.messages().into(), &meter.messages().into()));
    assert!(ended.stderr.starts_with("broker: mqtt://127.0.0.1:"), "it says which port it took: {}", ended.stderr);

    let at = |time: &str| -> Vec<Value> {
        let ended = meterkast(&["readings", "--store", &store, "--format", "json", "--at", time], b"");
        assert_eq!(ended.code, Some(0), "{ended:?}");
        ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    assert!(at("2026-11-21T19:59:59+01:00").is_empty());
    // Only the meters behind the meter were read at eight.
    let media = |lines: &[Value]| -> Vec<String> {
        let mut media: Vec<_> = lines.iter().map(|line| line["medium"].as_str().unwrap().to_owned()).collect();
        media.sort();
        media.dedup();
        media
    };
    assert_eq!(media(&at("2026-11-21T20:00:59+01:00")), ["gas", "heat", "hot_water"]);
    let lines = at("2026-11-21T19:04:30Z");
    assert_eq!(media(&lines), ["electricity", "gas", "heat", "hot_water"]);
    for line in lines {
        let time = if line["medium"] == "electricity" { "20:04:00" } else { "20:00:00" };
        assert_eq!(line["at"], format!("2026-11-21T{time}+01:00"));
        assert!(line["qualifiers"].as_object().unwrap().is_empty(), "{line}");
    }
    let table = meterkast(&["readings", "--store", &store], b"").stdout;
    for head in ["METER", "REGISTER", "VALUE", "import_low", "import_normal", "GJ", "m3"] {
        assert!(table.contains(head), "{table}");
    }
}

#[test]
fn replay_says_what_it_could_not_read() {
    let folder = Folder::new();
    let missing = folder.path("missing").to_str().unwrap().to_owned();
    let ended = meterkast(&["replay", &missing], b"");
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains(&format!("{missing}: No such file")), "{}", ended.stderr);
    let text = folder.file("text", "no telegram at all\r\n").to_str().unwrap().to_owned();
    let ended = meterkast(&["replay", &text], b"");
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains(&format!("{text}:0: fragment")), "{}", ended.stderr);
    let summary: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&summary["telegrams"], &summary["rejected"], &summary["messages"]), (&0.into(), &1.into(), &0.into()));
    // The others of the files arrive all the same; so does standard input.
    let ended = meterkast(&["replay", &missing, "-"], &Meter::new(22).telegrams(3));
    assert_eq!(ended.code, Some(1));
    let summary: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&summary["telegrams"], &summary["stored"]), (&3.into(), &6.into()));
}

#[test]
fn replay_keeps_the_pace_that_it_is_told() {
    let folder = Folder::new();
    // Ten minutes.
    let file = folder.file("capture", Meter::new(23).telegrams(11));
    let begin = Instant::now();
    let ended = meterkast(&["replay", file.to_str().unwrap(), "--speed", "300x"], b"");
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(begin.elapsed() >= Duration::from_secs(2), "{:?}", begin.elapsed());
}

#[test]
fn a_password_in_an_argument_is_not_repeated() {
    let ended = meterkast(&["readings", "--store", "mysql://x"], b"");
    assert!(ended.code == Some(2) && ended.stderr.contains("--store: the URL of the store is neither"), "{ended:?}");
    let wrong = "postgres://me:hunter2@host:port/db";
    for command in [
        &["readings"][..],
        &["usage"],
        &["export"],
        &["simulate", "household", "--from", "2026-01-01T00:00:00Z", "--until", "2026-01-02T00:00:00Z"],
    ] {
        let ended = meterkast(&[command, &["--store", wrong]].concat(), b"");
        assert_eq!(ended.code, Some(2), "{command:?}: {}", ended.stderr);
        assert!(ended.stderr.contains("--store") && !ended.stderr.contains("hunter2"), "{command:?}: {}", ended.stderr);
    }
}

#[test]
fn who_has_no_configuration_is_told_how_to_name_one() {
    let none = "/nowhere/x.toml";
    let help = "there is no such file: name the configuration with --config FILE";
    for (arguments, said) in [
        (&["run", "--config", none][..], format!("{help}; ")),
        (&["status", "--config", none], format!("{help}; ")),
        (&["readings", "--config", none], format!("{help}, or the database with --store URL; ")),
        (&["check", none], "there is no such file\n".to_owned()),
    ] {
        let ended = meterkast(arguments, b"");
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(ended.stderr.starts_with(&format!("meterkast: {none}: {said}")), "{arguments:?}: {}", ended.stderr);
    }
}

#[test]
fn a_demo_goes_on_with_the_household_of_its_folder() {
    let folder = Folder::new();
    let (data, kept) = (folder.path("data"), folder.path("data/household.toml"));
    let demo = |more: &[&str]| {
        let data = data.to_str().unwrap();
        meterkast(&[&["demo", "--seconds", "5", "--format", "json", "--data", data], more].concat(), b"")
    };
    // A household of three days: what it counts since then is more than what it begins with.
    let since = Timestamp::now() - Duration::from_secs(3 * 86_400);
    fs::create_dir(&data).unwrap();
    fs::write(&kept, format!("seed = 7\nsince = \"{since}\"\n")).unwrap();
    let mut imports = Vec::new();
    for _ in 0..2 {
        let ended = demo(&[]);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(ended.stderr.contains(&format!("lives on; it is there since {since}")), "{}", ended.stderr);
        assert!(!ended.stdout.contains("backwards"), "{}", ended.stdout);
        let mut readings = ended.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let import = readings.find(|reading| reading["register"] == "import_low").unwrap();
        imports.push(import["value"].to_string().trim_matches('"').parse::<f64>().unwrap());
    }
    let book = Household::new(7, Moment::utc(since)).books().remove(0);
    let import = book.readings.iter().find(|reading| reading.register.to_string() == "import_low").unwrap();
    let begin: f64 = import.value.to_string().parse().unwrap();
    assert!(begin + 1.0 < imports[0] && imports[0] <= imports[1], "{begin} {imports:?}");
    for (more, said) in [
        (&["--history", "2d"][..], "without --history its household lives on"),
        (&["--seed", "8"], "has the readings of household 7: leave --seed out"),
    ] {
        let ended = demo(more);
        assert!(ended.code == Some(2) && ended.stderr.contains(said), "{ended:?}");
    }
    // Of whom the readings are nobody can say then.
    fs::remove_file(&kept).unwrap();
    let ended = demo(&[]);
    assert!(ended.code == Some(2) && ended.stderr.contains("household.toml: is not there"), "{ended:?}");
    let ended = meterkast(&["demo", "--data", data.join("meterkast.db").to_str().unwrap()], b"");
    assert!(ended.code == Some(2) && ended.stderr.contains("meterkast.db: is a file; name a folder"), "{ended:?}");
}

#[test]
fn the_demo_shows_registers_of_four_media() {
    let ended = meterkast(&["demo", "--seconds", "6", "--format", "json"], b"");
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for (medium, register, unit) in [
        ("electricity", "import_low", "kWh"),
        ("electricity", "export_normal", "kWh"),
        ("gas", "volume", "m3"),
        ("heat", "energy", "GJ"),
        ("hot_water", "volume", "m3"),
    ] {
        let part = format!("\"medium\":\"{medium}\",\"register\":\"{register}\"");
        let line = ended.stdout.lines().find(|line| line.contains(&part));
        assert!(line.is_some_and(|line| line.contains(&format!("\"unit\":\"{unit}\""))), "{part}: {}", ended.stdout);
    }
    for part in ["P1 port ", "mosquitto_sub -p ", "meterkast readings --store sqlite://", "confirmed by the store"] {
        assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
    }
}
