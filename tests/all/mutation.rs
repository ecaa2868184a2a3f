//! Every fixture, and every real telegram where the corpus is there, damaged in every way that a serial
//! line knows. Whatever comes in: no panic, no byte and no line that goes missing, and no telegram whose
//! CRC does not fit.

use std::collections::{HashMap, HashSet};

use meterkast::{
    obis::Obis,
    p1::{Decoded, LineEnds, Reason, Rejected, Telegram},
    reading::{Reading, Report, escape},
};

use crate::samples::{Sample, corpus, fixtures, read};

/// CRC-16/ARC from its definition, a second time, so that an error in ours would show.
fn crc(bytes: &[u8]) -> u16 {
    const TABLE: [u16; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut crc = index as u16;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ 0xA001 } else { crc >> 1 };
                bit += 1;
            }
            table[index] = crc;
            index += 1;
        }
        table
    };
    bytes.iter().fold(0, |crc, &byte| (crc >> 8) ^ TABLE[usize::from((crc as u8) ^ byte)])
}

/// Reads `input`, holds what must be true of any input, and returns the telegrams that have a CRC.
fn hold(what: &dyn Fn() -> String, input: &[u8]) -> Vec<Vec<u8>> {
    let mut proven = Vec::new();
    let mut covered = 0;
    read([input], |outcome| {
        let (offset, length) = match &outcome {
            Ok((telegram, _)) => (telegram.offset, telegram.bytes.len()),
            Err(rejected) => (rejected.offset, usize::try_from(rejected.length).unwrap()),
        };
        let offset = usize::try_from(offset).unwrap();
        assert!(is_blank(&input[covered..offset]), "{}: bytes {covered}..{offset} are in no piece", what());
        covered = offset + length;
        if input[covered - 1] == b'!' && !matches!(outcome, Err(Rejected { reason: Reason::Fragment, .. })) {
            covered += input[covered..].iter().take(4).take_while(|byte| byte.is_ascii_hexdigit()).count();
        }
        let Ok((telegram, decoded)) = outcome else { return };
        assert_eq!(telegram.bytes, &input[offset..offset + length], "{}", what());
        account(what, &telegram, &decoded);
        if let Some(said) = telegram.crc {
            let computed = match telegram.line_ends {
                LineEnds::AsSent => crc(telegram.bytes),
                LineEnds::Restored => crc(&restore(telegram.bytes)),
            };
            let digits = std::str::from_utf8(&input[offset + length..covered]).unwrap();
            assert_eq!(u16::from_str_radix(digits, 16), Ok(said), "{}", what());
            assert_eq!(said, computed, "{}: accepted with a wrong CRC", what());
            proven.push(telegram.bytes.to_vec());
        }
    });
    assert!(is_blank(&input[covered..]), "{}: bytes from {covered} on are in no piece", what());
    proven
}

fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte.is_ascii_whitespace() || byte == 0)
}

fn restore(bytes: &[u8]) -> Vec<u8> {
    bytes
        .split_inclusive(|&byte| byte == b'\n')
        .flat_map(|line| match line {
            [text @ .., b'\n'] => {
                let returns = text.iter().rev().take_while(|&&byte| byte == b'\r').count();
                [&text[..text.len() - returns], b"\r\n"].concat()
            }
            text => text.to_vec(),
        })
        .collect()
}

/// Every line of the telegram is in its reports exactly once: as a reading or several, as a text, as the
/// time, name, kind or log of a meter, or as unknown.
fn account(what: &dyn Fn() -> String, telegram: &Telegram<'_>, decoded: &Decoded) {
    let lines: Vec<_> = telegram.lines().collect();
    let place = |part: &[u8]| part.as_ptr().addr() - telegram.bytes.as_ptr().addr();
    let mut covered = 1 + telegram.identification().len();
    for line in &lines {
        let begin = place(line.text) - line.code_text.len();
        let between = &telegram.bytes[covered..begin];
        assert!(between.iter().all(|byte| b"\r\n".contains(byte)), "{}: {covered}..{begin} is in no line", what());
        covered = place(line.text) + line.text.len();
    }
    let behind = &telegram.bytes[covered..];
    assert!(behind.iter().all(|byte| b"\r\n!".contains(byte)), "{}: from {covered} on is in no line", what());

    let mut unknown: HashMap<(String, String), usize> = HashMap::new();
    for object in decoded.reports.iter().flat_map(|report| &report.unknown) {
        *unknown.entry((object.code.clone(), object.text.clone())).or_default() += 1;
    }
    let mut understood = 0;
    let mut silent = 0;
    let mut history = false;
    let mut once = HashSet::new();
    for line in &lines {
        let key = (escape(line.code_text), escape(line.text));
        if let Some(count) = unknown.get_mut(&key).filter(|count| **count > 0) {
            *count -= 1;
            continue;
        }
        understood += 1;
        let code = line.code.unwrap_or_else(|| panic!("{}: {key:?} is understood", what()));
        if let Some(role) = silent_role(code) {
            silent += 1;
            // Nothing is lost with an empty log or a name of spaces; an unset clock stands among the texts.
            let brackets = key.1.matches('(').count();
            let unset = |report: &Report| report.info.iter().any(|(name, _)| name == "unset_clock");
            let says_nothing = role == "log" && brackets < 3
                || ["()", "(20)", "(2020)"].contains(&key.1.as_str())
                || role == "time" && decoded.reports.iter().any(unset);
            let of_one_rank = (code.b, role, if role == "name" { (code.a, code.c, code.e) } else { (0, 0, 0) });
            assert!(says_nothing || once.insert(of_one_rank), "{}: {key:?} replaces an earlier line", what());
        }
        // A history is a reading for each month, or a text; a snapshot one for each register.
        history |= (code.c, code.d) == (98, 1) && code.e == 0;
    }
    assert!(unknown.values().all(|&count| count == 0), "{}: {unknown:?} was not sent", what());
    // What stands beside a reading that is counted, and the names that are not the best of their meter.
    let added = [
        "identification",
        "equipment",
        "serial_number",
        "logical_device",
        "address",
        "channel",
        "device_type",
        "unset_clock",
        "reading_status",
        "period_minutes",
        "temperature_corrected",
        "telegram_time",
    ];
    let shown = |report: &Report| {
        let single = |reading: &&Reading| {
            reading.qualifiers.storage == 0 && reading.register.as_str() != "current_limit_negative"
        };
        let stored = report.readings.iter().any(|reading| reading.qualifiers.storage > 0);
        assert!(!stored || history, "{}: a stored value without a history", what());
        let texts = report.info.iter().filter(|(name, _)| !added.contains(&name.as_ref())).count();
        report.readings.iter().filter(single).count() + usize::from(stored) + texts
    };
    let shown: usize = decoded.reports.iter().map(shown).sum();
    assert_eq!(understood, shown + silent, "{}: a line is in no report, or in two", what());
}

/// What a line says that is neither a reading nor a text.
fn silent_role(code: Obis) -> Option<&'static str> {
    match (code.a, code.b, code.c, code.d, code.e) {
        (0, 0, 1, 0 | 1, 0) => Some("time"),
        (0, 0, 96, 1, 0 | 1 | 255) | (0, 0, 42, 0, 0) | (0 | 1, 0, 0, 0, 0) => Some("name"),
        (0, 1..=4, 96, 1, 0 | 1) => Some("name"),
        (0, 1..=4, 24, 1, 0) => Some("kind"),
        (1, 0, 99, 97, 0) => Some("log"),
        _ => None,
    }
}

/// A number that looks random and is the same in every run.
fn scatter(seed: usize) -> usize {
    let mixed = (seed as u64).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) as usize >> 7
}

fn every() -> Vec<Sample> {
    fixtures().into_iter().chain(corpus()).collect()
}

#[test]
fn cut_at_every_byte() {
    for Sample { name, bytes } in every() {
        let proven = hold(&|| name.clone(), &bytes);
        for end in 0..bytes.len() {
            let what = || format!("{name} cut at {end}");
            for telegram in hold(&what, &bytes[..end]) {
                assert!(proven.contains(&telegram), "{}: accepted what was not sent", what());
            }
        }
    }
}

/// All bits of short files; of longer ones one bit of each byte, and not the same in each.
#[test]
fn one_bit_flipped_at_every_byte() {
    // That one is a single bit from what was sent: it is what it shows.
    for Sample { name, mut bytes } in every().into_iter().filter(|sample| sample.name != "bit-error.txt") {
        let proven = hold(&|| name.clone(), &bytes);
        for at in 0..bytes.len() {
            for bit in 0..8 {
                if bytes.len() > 400 && bit != scatter(at) % 8 {
                    continue;
                }
                bytes[at] ^= 1 << bit;
                let what = || format!("{name}, bit {bit} of byte {at} flipped");
                for telegram in hold(&what, &bytes) {
                    assert!(proven.contains(&telegram), "{}: accepted what was not sent", what());
                }
                bytes[at] ^= 1 << bit;
            }
        }
    }
}

/// A telegram's offset, its bytes and what they say; or why there is none.
type Outcome = Result<(u64, Vec<u8>, Decoded), Rejected>;

/// Everything that the decoder says of bytes that come in these chunks.
fn outcomes<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<Outcome> {
    let mut found = Vec::new();
    read(chunks, |outcome| {
        found.push(outcome.map(|(telegram, decoded)| (telegram.offset, telegram.bytes.to_vec(), decoded)));
    });
    found
}

#[test]
fn the_same_however_it_is_split() {
    for Sample { name, bytes } in every() {
        let whole = outcomes([&bytes[..]]);
        for at in 1..bytes.len() {
            let (head, tail) = bytes.split_at(at);
            assert_eq!(outcomes([head, tail]), whole, "{name} split at {at}");
        }
        for size in [1, 2, 3, 7, 64, 1000] {
            assert_eq!(outcomes(bytes.chunks(size)), whole, "{name} in chunks of {size}");
        }
    }
}

#[test]
fn junk_before_a_telegram_does_not_harm_it() {
    let endless = [&b"/ENDLESS\r\n"[..], &[b'x'; 20_000], b"\r\n"].concat();
    let junk: [&[u8]; 10] = [
        b"\0\0\r\n",
        b"\xff\xfe\x80\0",
        b"!\r\n",
        b"!21F3\r\n",
        b"/\r\n",
        b"/XYZ5\r\n\r\n1-0:1.8.1(0012\r\n",
        b"1-0:2.7.0(00.000*kW)\r\n0-0:96.13.0()\r\n!F00D\r\n",
        b"/XYZ5 example\r\n\r\n1-3:0.2.8(50)\r\n!0000\r\n",
        &[b'~'; 20_000],
        &endless,
    ];
    // Behind these a header is seen only by its usual form: three letters and a digit.
    let junk_without_line_end: [&[u8]; 3] = [b"/", b"/XYZ5", b"/XYZ5\r\n\r\n1-0:1.8.1(0012"];
    for Sample { name, bytes } in every() {
        let clean: Vec<_> = outcomes([&bytes[..]]).into_iter().filter_map(Result::ok).collect();
        let usual =
            matches!(bytes[..], [b'/', a, b, c, b'0'..=b'9', ..] if [a, b, c].iter().all(u8::is_ascii_alphabetic));
        for junk in junk.iter().chain(usual.then_some(&junk_without_line_end[..]).into_iter().flatten()) {
            let mut found: Vec<_> =
                outcomes([&[*junk, &bytes].concat()[..]]).into_iter().filter_map(Result::ok).collect();
            found.iter_mut().for_each(|(offset, ..)| *offset -= junk.len() as u64);
            assert_eq!(found, clean, "{name} behind {}", escape(&junk[..junk.len().min(60)]));
        }
    }
}

/// Damages what stands between the `/` and the `!` of a telegram, in one of many ways.
fn damage(body: &mut Vec<u8>, at: usize, seed: usize) -> String {
    const TELLING: &[u8] = b"()*:-./!\r\n\0\xff\\ 09AZz";
    let line_start = body[..at].iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    let line_end = body[at..].iter().position(|&byte| byte == b'\n').map_or(body.len() - 1, |end| at + end + 1);
    match seed % 8 {
        0 | 1 => {
            let bit = seed / 8 % 8;
            body[at] ^= 1 << bit;
            format!("bit {bit} of byte {at} flipped")
        }
        2 | 3 => {
            let byte = TELLING[seed / 8 % TELLING.len()];
            body[at] = byte;
            format!("byte {at} made {byte:#04x}")
        }
        4 => {
            body.remove(at);
            format!("byte {at} lost")
        }
        5 => {
            body.insert(at, body[at]);
            format!("byte {at} doubled")
        }
        6 => {
            body.drain(at..line_end);
            format!("bytes {at}..{line_end} lost")
        }
        _ => {
            let line = body[line_start..line_end].to_vec();
            body.splice(line_start..line_start, line);
            format!("line {line_start}..{line_end} doubled")
        }
    }
}

/// One telegram in 65,536 passes its CRC damaged, and a meter may send nonsense: the decoder must bear both.
#[test]
fn damaged_under_a_valid_crc() {
    let (mut damaged, mut decoded) = (0, 0);
    for Sample { name, bytes } in every() {
        let telegrams: Vec<_> = outcomes([&bytes[..]]).into_iter().filter_map(Result::ok).collect();
        for (offset, body, _) in telegrams {
            for at in 1..body.len() - 1 {
                let seed = scatter(at * 131 + body.len());
                let mut body = body.clone();
                let how = damage(&mut body, at, seed);
                let what = || format!("{name} at {offset}, resealed with {how}");
                let sealed = [&body[..], format!("{:04X}\r\n", crc(&body)).as_bytes()].concat();
                damaged += 1;
                decoded += usize::from(hold(&what, &sealed) == [body]);
            }
        }
    }
    println!("{decoded} of {damaged} damaged telegrams were decoded");
    // The others were cut in two by a `/` or a `!` at the beginning of a line.
    assert!(damaged > 15_000 && decoded > damaged / 100 * 95, "only {decoded} of {damaged} were decoded");
}
