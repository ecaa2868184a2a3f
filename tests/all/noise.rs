//! Line noise on ten minutes of a real meter: what the CRC lets through, and what is believed of the rest.

use std::collections::{BTreeMap, HashSet};

use meterkast::{
    moment::Moment,
    p1::{Framer, Piece, Reader, Writer, crc},
    plausible::{Connection, Judge},
    reading::{Identity, Medium, Report},
};

use crate::samples::stream;

/// Numbers that look random and are the same in every run (SplitMix64, of Steele, Lea and Flood).
struct Scatter(u64);

impl Scatter {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Flips one in `of` bits.
    fn damage(&mut self, bytes: &mut [u8], of: u64) -> usize {
        let mut flipped = 0;
        for byte in bytes {
            for bit in 0..8 {
                if self.next().is_multiple_of(of) {
                    *byte ^= 1 << bit;
                    flipped += 1;
                }
            }
        }
        flipped
    }
}

/// The telegrams of a stream, from `/` through `!`, with what stands behind.
fn telegrams(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut framer = Framer::new();
    framer.push(bytes);
    framer.end();
    let mut found = Vec::new();
    while let Some(piece) = framer.poll() {
        if let Piece::Telegram { bytes, .. } = piece {
            found.push(bytes.to_vec());
        }
    }
    found
}

#[test]
fn no_damaged_telegram_is_accepted_but_by_a_collision() {
    let Some(stream) = stream() else { return };
    let sent: HashSet<Vec<u8>> = telegrams(&stream.bytes).into_iter().collect();
    for of in [100_000, 10_000, 1_000] {
        let (mut whole, mut collisions, mut flipped) = (0, 0, 0);
        for seed in 0..10 {
            let mut bytes = stream.bytes.clone();
            flipped += Scatter(seed * 1000 + of).damage(&mut bytes, of);
            let mut reader = Reader::new(None, None);
            reader.push(&bytes);
            reader.end();
            while let Some(result) = reader.poll() {
                let Ok(accepted) = result else { continue };
                let begin = usize::try_from(accepted.offset).unwrap();
                let bang = begin + bytes[begin..].windows(2).position(|pair| pair == b"\n!").unwrap() + 1;
                let telegram = &bytes[begin..=bang];
                if sent.contains(telegram) {
                    whole += 1;
                    continue;
                }
                // Proven by another hand: the CRC that follows is that of the damaged bytes.
                let said = u16::from_str_radix(std::str::from_utf8(&bytes[bang + 1..bang + 5]).unwrap(), 16);
                assert_eq!(said, Ok(crc::as_sent(telegram)), "1 in {of}, seed {seed}: accepted at {begin}");
                collisions += 1;
            }
        }
        println!("1 bit in {of}, ten times ten minutes: {flipped} flipped, {whole} whole, {collisions} collisions");
        // A telegram has some 7,000 bits.
        let least = match of {
            100_000 => 5_000,
            10_000 => 2_000,
            _ => 0,
        };
        assert!(whole >= least, "only {whole} telegrams were whole");
    }
}

/// When the telegram of this second is received.
fn at_second(second: i64) -> Moment {
    Moment::from_millis((1_700_000_000 + second) * 1000, 0).unwrap()
}

/// Whether a counter may go from one value (in millionths) to the next in the time: what 3 x 80 A at 253 V carry,
/// or 100 m3 of gas an hour, when a telegram may be 15 s late.
fn follows((from, before): (Moment, i64), (to, after): (Moment, i64), medium: &Medium) -> bool {
    let seconds = to.since(from).as_secs().max(0) + 15;
    let most = match medium {
        Medium::Electricity => 3 * 80 * 253 * 1000,
        _ => 100 * 1_000_000,
    };
    // And one whole unit, because some meters count in such steps.
    after >= before && (after - before - 1_000_000) * 3600 <= most * seconds
}

/// What `consumption` will have of a register: the readings that are not flagged, less those that an event
/// calls outliers.
#[derive(Default)]
struct Believed(BTreeMap<(String, String), Vec<(Moment, i64)>>);

impl Believed {
    fn take(&mut self, report: &Report<String>, received_at: Moment) {
        for reading in report.readings.iter().filter(|reading| reading.suspect.is_none()) {
            if reading.register.is_cumulative() && reading.is_current() {
                assert!(reading.value.scale() <= 6);
                let micro = reading.value.mantissa() * 10i64.pow(6 - u32::from(reading.value.scale()));
                let values = self.0.entry((report.meter.clone(), reading.register.as_str().to_owned())).or_default();
                let outlier = format!("outlier:{}", reading.register);
                if let Some(event) = report.events.iter().find(|event| event.event == outlier) {
                    assert!(event.end.is_some());
                    while values.last().is_some_and(|&last| !follows(last, (received_at, micro), &report.medium)) {
                        values.pop();
                    }
                }
                values.push((received_at, micro));
            }
        }
    }
}

/// The same noise, but the CRC is made to fit again: as if there was none.
#[test]
fn what_noise_alters_is_flagged_or_within_bounds() {
    let Some(stream) = stream() else { return };
    let sent = telegrams(&stream.bytes);
    for of in [100_000, 10_000, 1_000] {
        let (mut altered, mut flagged, mut registers, mut total_error) = (0, 0, 0, 0);
        for seed in 0..4 {
            let mut scatter = Scatter(seed * 1000 + of);
            let mut judge = Judge::new(Connection::default());
            judge.set_live(true);
            let mut believed = Believed::default();
            for (second, telegram) in (0..).zip(&sent) {
                let received_at = at_second(second);
                let mut bytes = telegram.clone();
                altered += usize::from(scatter.damage(&mut bytes, of) > 0);
                let text = bytes.strip_prefix(b"/").unwrap_or(&bytes);
                let text = text.strip_suffix(b"!").unwrap_or(text);
                let lines: Vec<&[u8]> = text.split(|&byte| byte == b'\n').map(|line| line.trim_ascii_end()).collect();
                let resealed = lines[1..]
                    .iter()
                    .filter(|line| !line.is_empty())
                    .fold(Writer::new(&String::from_utf8_lossy(lines[0])), Writer::line)
                    .finish(true);
                let mut reader = Reader::new(None, None);
                reader.push(&resealed);
                reader.end();
                while let Some(result) = reader.poll() {
                    let Ok(accepted) = result else { continue };
                    for report in accepted.decoded.reports {
                        let mut report = report.rename(|identity: Identity| identity.name("noise", "p1"));
                        judge.judge(&mut report, received_at);
                        flagged += report.readings.iter().filter(|reading| reading.suspect.is_some()).count();
                        believed.take(&report, received_at);
                    }
                }
            }
            for ((meter, register), values) in &believed.0 {
                registers += 1;
                let medium = if register == "volume" { Medium::Gas } else { Medium::Electricity };
                for pair in values.windows(2) {
                    let what = format!("1 in {of}, seed {seed}: {register} of {meter}");
                    assert!(follows(pair[0], pair[1], &medium), "{what}: {pair:?}");
                }
            }
            // The meter that was there all the time: what was added up against what it really counted.
            let longest = believed.0.values().map(Vec::len).max().unwrap();
            let clean = {
                let mut clean = Believed::default();
                let received_at = at_second(0);
                for telegram in [sent.first().unwrap(), sent.last().unwrap()] {
                    let mut reader = Reader::new(None, None);
                    reader.push(&[&telegram[..], format!("{:04X}\r\n", crc::as_sent(telegram)).as_bytes()].concat());
                    for report in reader.poll().unwrap().unwrap().decoded.reports {
                        clean.take(&report.rename(|identity: Identity| identity.name("noise", "p1")), received_at);
                    }
                }
                clean
            };
            for (key, ends) in clean.0 {
                let Some(values) = believed.0.get(&key) else { panic!("1 in {of}: {key:?} is not read at all") };
                let sum = values.last().unwrap().1 - values.first().unwrap().1;
                let truth = ends.last().unwrap().1 - ends.first().unwrap().1;
                total_error += (sum - truth).abs();
                // At most what may pass within a second or two at either end.
                assert!((sum - truth).abs() <= 2_000_000, "1 in {of}: {key:?} is {sum}, not {truth}");
            }
            assert!(longest > 100, "only {longest} readings were believed");
        }
        println!(
            "1 bit in {of}, four times {} telegrams: {altered} altered and sealed again, {flagged} readings flagged, \
             {registers} registers (phantoms included), {total_error} millionths in error",
            sent.len()
        );
    }
}
