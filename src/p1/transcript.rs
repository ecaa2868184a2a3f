//! Captures as people have them: hex dumps, base64, and logs with something in front of every line.
//!
//! Enters: the bytes of a file. Leaves: the bytes that the port sent, as far as they can be had back. What
//! is raw stays as it is, byte for byte. The form is found from the beginning of the file:
//!
//! - *hex*: nothing but hex digits, white space and `:`, `,` or `-` between;
//! - *hex dump*: the columns of `hexdump -C` and `xxd`;
//! - *base64*: nothing but its alphabet;
//! - *log*: lines of a telegram that begin behind a time stamp or another prefix, also in colour. Lines of the
//!   log that are no part of a telegram are left out and counted.
//!
//! Not supported: forms that change within a file; strings with escapes (`\r\n`) as a debugger prints them.

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::obis::Obis;

/// How the bytes of a file are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Form {
    /// As they are.
    Raw,
    /// Hex digits.
    Hex,
    /// Offsets, hex digits and characters in columns.
    HexDump,
    /// Base64.
    Base64,
    /// Lines behind a prefix.
    Log,
}

impl Form {
    /// As it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Hex => "hex digits",
            Self::HexDump => "a hex dump",
            Self::Base64 => "base64",
            Self::Log => "a log",
        }
    }
}

/// Up to here the form may be in doubt. More than any prefix of a log may delay its first telegram.
const DOUBT: usize = 16 * 1024;

/// Gets the bytes of a capture back.
#[derive(Debug, Default)]
pub struct Transcript {
    form: Option<Form>,
    /// What cannot be judged yet: everything while the form is in doubt, then less than a line or a quantum.
    pending: Vec<u8>,
    /// In a log: the header was there, and no line with a code yet.
    after_header: bool,
    /// In a log: the first line of a v3 gas value was there.
    awaiting_value: bool,
    /// In a hex dump: where the next line begins, the last line, and whether its like were left out.
    dump: Dump,
    left_out: u64,
}

impl Transcript {
    /// At the beginning of a file.
    pub fn new() -> Self {
        Self::default()
    }

    /// The form; None while it is in doubt.
    pub fn form(&self) -> Option<Form> {
        self.form
    }

    /// How many lines of a log were no part of a telegram.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Adds bytes of the file; returns bytes of the port.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        if self.form == Some(Form::Raw) {
            return bytes.to_vec();
        }
        self.pending.extend_from_slice(bytes);
        self.form = self.form.or_else(|| judge(&self.pending, false));
        self.take(false)
    }

    /// Says that the file ends; returns the rest.
    pub fn end(&mut self) -> Vec<u8> {
        self.form = self.form.or_else(|| judge(&self.pending, true));
        self.take(true)
    }

    /// What can be had of the pending bytes.
    fn take(&mut self, ended: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.form {
            None => {}
            Some(Form::Raw) => bytes = std::mem::take(&mut self.pending),
            Some(Form::Hex) => {
                let digits: Vec<u8> = self.pending.drain(..).filter(u8::is_ascii_hexdigit).collect();
                let (pairs, half) = digits.as_chunks::<2>();
                bytes.extend(pairs.iter().filter_map(from_pair));
                self.pending.extend(half);
            }
            Some(Form::Base64) => {
                let digits: Vec<u8> = self.pending.drain(..).filter(|byte| is_base64(*byte)).collect();
                let (quanta, rest) = digits.as_chunks::<4>();
                // A quantum that is none is damage; what is behind it still counts.
                for quantum in quanta {
                    bytes.extend(STANDARD.decode(quantum).unwrap_or_default());
                }
                self.pending.extend(rest);
            }
            Some(Form::HexDump | Form::Log) => {
                let pending = std::mem::take(&mut self.pending);
                let mut lines = pending.split_inclusive(|&byte| byte == b'\n').peekable();
                while let Some(line) = lines.next() {
                    // A line of a log is no longer than a telegram.
                    if lines.peek().is_none() && !ended && !line.ends_with(b"\n") && line.len() < super::MAX_TELEGRAM {
                        self.pending = line.to_vec();
                    } else if self.form == Some(Form::Log) {
                        self.log_line(line, &mut bytes);
                    } else {
                        self.dump.line(line, &mut bytes);
                    }
                }
            }
        }
        bytes
    }

    fn log_line(&mut self, line: &[u8], bytes: &mut Vec<u8>) {
        let line = without_colour(line);
        let text = line.trim_ascii_end();
        let end = if line.ends_with(b"\r\n") { &b"\r\n"[..] } else { b"\n" };
        // A value in brackets may be anything, unless it was waited for.
        let part = part_of_telegram(text).filter(|&(_, part)| part != Part::Value || self.awaiting_value);
        match part {
            Some((at, part)) => {
                self.after_header = part == Part::Header;
                let part = text.get(at..).unwrap_or_default();
                self.awaiting_value = part.ends_with(b"(m3)");
                bytes.extend_from_slice(part);
                bytes.extend_from_slice(end);
            }
            // The blank line behind the header counts in the CRC.
            None if self.after_header => {
                self.after_header = false;
                bytes.extend_from_slice(end);
            }
            None => self.left_out = self.left_out.saturating_add(1),
        }
    }
}

/// A hex dump, read line by line.
#[derive(Debug, Default)]
struct Dump {
    next: u64,
    last: Vec<u8>,
    squeezed: bool,
}

impl Dump {
    fn line(&mut self, line: &[u8], bytes: &mut Vec<u8>) {
        /// More than that of the same bytes is in no telegram; and a line of one character must not fill the memory.
        const MOST: u64 = super::MAX_TELEGRAM as u64;
        // `hexdump -C` writes an asterisk for lines that are like the last one.
        if line.trim_ascii() == b"*" {
            self.squeezed = true;
            return;
        }
        let Some((offset, found)) = dump_line(line) else { return };
        if self.squeezed && !self.last.is_empty() {
            let most = self.next.saturating_add(MOST).min(offset);
            while self.next < most {
                bytes.extend_from_slice(&self.last);
                self.next = self.next.saturating_add(self.last.len() as u64);
            }
        }
        self.squeezed = false;
        self.next = offset.saturating_add(found.len() as u64);
        bytes.extend_from_slice(&found);
        self.last = found;
    }
}

/// The form of a file that begins so; None while it is in doubt.
fn judge(begin: &[u8], ended: bool) -> Option<Form> {
    // The last line may go on.
    let whole =
        if ended { begin } else { begin.get(..memchr::memrchr(b'\n', begin).map_or(0, |at| at.wrapping_add(1)))? };
    let lines = || whole.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    let sample = if whole.is_empty() { begin } else { lines().next().unwrap_or_default() };
    let doubtful = ended || begin.len() >= DOUBT || begin.iter().any(|byte| !byte.is_ascii());
    if lines().take(2).all(|line| dump_line(line).is_some()) && lines().next().is_some() {
        return Some(Form::HexDump);
    }
    // A line of digits, or as many without a line end as no line of a telegram has.
    let long_enough = !whole.is_empty() || begin.len() >= 1024;
    if long_enough && sample.len() >= 8 && sample.iter().all(|&byte| is_hex_text(byte)) {
        return Some(Form::Hex);
    }
    // No telegram, no sealed frame and no M-Bus frame gives base64 that begins with a slash; many a header looks so.
    if long_enough && sample.len() >= 16 && !sample.starts_with(b"/") && sample.iter().all(|&byte| is_base64(byte)) {
        return Some(Form::Base64);
    }
    let (mut prefixed, mut bare) = (0usize, false);
    for line in lines() {
        let line = without_colour(line);
        match part_of_telegram(line.trim_ascii_end()) {
            Some((0, _)) => bare = true,
            Some(_) => prefixed = prefixed.saturating_add(1),
            None => {}
        }
    }
    if bare || begin.contains(&0xDB) {
        Some(Form::Raw)
    } else if prefixed >= 3 {
        Some(Form::Log)
    } else {
        doubtful.then_some(Form::Raw)
    }
}

fn is_hex_text(byte: u8) -> bool {
    byte.is_ascii_hexdigit() || byte.is_ascii_whitespace() || matches!(byte, b':' | b',' | b'-')
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=')
}

fn from_pair(&[high, low]: &[u8; 2]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(high)? << 4 | digit(low)?)
}

/// The offset and the bytes of a line of `hexdump -C` or `xxd`: an offset of at least six digits, a colon or two
/// blanks, pairs of digits with single blanks between or none, and behind two blanks or a bar the characters.
fn dump_line(line: &[u8]) -> Option<(u64, Vec<u8>)> {
    let line = line.trim_ascii();
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (offset, rest) = line.split_at_checked(digits)?;
    if offset.len() < 6 {
        return None;
    }
    let at = u64::from_str_radix(std::str::from_utf8(offset).ok()?, 16).ok()?;
    // The last line of `hexdump -C` is an offset alone.
    if rest.is_empty() {
        return (offset.len() == 8).then(|| (at, Vec::new()));
    }
    let mut rest = rest.strip_prefix(b": ").or_else(|| rest.strip_prefix(b"  "))?;
    let mut bytes = Vec::new();
    loop {
        let blanks = rest.iter().take_while(|&&byte| byte == b' ').count();
        // `hexdump -C` has two blanks in the middle of its sixteen bytes.
        let middle = blanks == 2 && bytes.len() == 8;
        let Some(([high, low], tail)) = rest.get(blanks..).and_then(|rest| rest.split_first_chunk::<2>()) else {
            break;
        };
        let Some(byte) = from_pair(&[*high, *low]).filter(|_| blanks < 2 || middle) else { break };
        bytes.push(byte);
        rest = tail;
        if bytes.len() == 16 {
            break;
        }
    }
    (!bytes.is_empty()).then_some((at, bytes))
}

/// A line without the sequences that colour it on a terminal.
fn without_colour(line: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(line.len());
    let mut rest = line;
    while let [byte, tail @ ..] = rest {
        rest = tail;
        match (byte, tail) {
            (0x1B, [b'[', sequence @ ..]) => {
                let length = sequence.iter().take_while(|byte| matches!(byte, b'0'..=b'9' | b';')).count();
                rest = sequence.get(length.saturating_add(1)..).unwrap_or_default();
            }
            _ => plain.push(*byte),
        }
    }
    plain
}

/// What part of a telegram a line holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Header,
    Data,
    Value,
    End,
}

/// Where in a line a part of a telegram begins that goes on to its end.
fn part_of_telegram(line: &[u8]) -> Option<(usize, Part)> {
    let mut before = b' ';
    for (at, &byte) in line.iter().enumerate() {
        let rest = line.get(at..).unwrap_or_default();
        let part = match rest {
            [b'/', a, b, c, d, ..] if [a, b, c].into_iter().all(u8::is_ascii_alphabetic) && d.is_ascii_digit() => {
                Some(Part::Header)
            }
            [b'0'..=b'9', ..] if !before.is_ascii_digit() && rest.ends_with(b")") && Obis::parse(rest).is_some() => {
                Some(Part::Data)
            }
            // The second line of a v3 gas value.
            [b'(', digits @ .., b')'] if is_number(digits) => Some(Part::Value),
            [b'!', crc @ ..] if crc.len() <= 4 && crc.iter().all(u8::is_ascii_hexdigit) => Some(Part::End),
            _ => None,
        };
        if let Some(part) = part.filter(|_| !before.is_ascii_alphanumeric()) {
            return Some((at, part));
        }
        before = byte;
    }
    None
}

fn is_number(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::p1::Writer;

    fn telegram() -> Vec<u8> {
        Writer::new("XYZ5 example")
            .line("1-3:0.2.8(50)")
            .line("1-0:1.8.1(000001.500*kWh)")
            .line("0-1:24.3.0(121030140000)(00)(60)(1)(0-1:24.2.1)(m3)\r\n(00024.123)")
            .finish(true)
    }

    fn read(file: &[u8]) -> (Form, Vec<u8>) {
        let mut all = None;
        for size in [1, 3, 100, file.len().max(1)] {
            let mut transcript = Transcript::new();
            let mut bytes = Vec::new();
            for chunk in file.chunks(size) {
                bytes.extend(transcript.push(chunk));
            }
            bytes.extend(transcript.end());
            let found = (transcript.form().unwrap(), bytes);
            assert_eq!(*all.get_or_insert(found.clone()), found, "in chunks of {size}");
        }
        all.unwrap()
    }

    #[test]
    fn raw_bytes_stay_as_they_are() {
        let noise: Vec<u8> = (0..=255).cycle().take(40_000).collect();
        for file in [&b""[..], b"!", b"\n\n", b"garbage without end", &telegram(), &telegram()[20..], &noise] {
            assert_eq!(read(file), (Form::Raw, file.to_vec()));
        }
        assert_eq!(read(&[b"junk", &telegram()[..]].concat()).0, Form::Raw);
        assert_eq!(read(b"/MCS50000000000000\r\n\r\n1-3:0.2.8(50)\r\n!").0, Form::Raw);
    }

    #[test]
    fn digits_become_bytes() {
        let sent = telegram();
        let hex: String = sent.iter().map(|byte| format!("{byte:02x}")).collect();
        let spaced: Vec<String> = sent.iter().map(|byte| format!("{byte:02X}")).collect();
        let lines: Vec<String> = spaced.chunks(16).map(|line| line.join(" ")).collect();
        for file in [hex.clone(), format!("{hex}\n"), spaced.join(":"), lines.join("\n"), lines.join("\r\n")] {
            assert_eq!(read(file.as_bytes()), (Form::Hex, sent.clone()), "{file}");
        }
        for file in
            [STANDARD.encode(&sent), format!("{}\n{}\n", STANDARD.encode(&sent[..50]), STANDARD.encode(&sent[50..]))]
        {
            assert_eq!(read(file.as_bytes()), (Form::Base64, sent.clone()), "{file}");
        }
    }

    #[test]
    fn dumps_become_bytes() {
        let sent = telegram();
        let (mut hexdump, mut xxd) = (String::new(), String::new());
        for (number, line) in sent.chunks(16).enumerate() {
            let text: String =
                line.iter().map(|&byte| if byte.is_ascii_graphic() { char::from(byte) } else { '.' }).collect();
            let pairs: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
            let halves: Vec<String> = pairs.chunks(8).map(|half| half.join(" ")).collect();
            hexdump += &format!("{:08x}  {:<48}  |{text}|\n", number * 16, halves.join("  "));
            let pairs: Vec<String> = pairs.chunks(2).map(|pair| pair.concat()).collect();
            xxd += &format!("{:08x}: {:<39}  {text}\n", number * 16, pairs.join(" "));
        }
        hexdump += &format!("{:08x}\n", sent.len());
        for file in [hexdump, xxd] {
            assert_eq!(read(file.as_bytes()), (Form::HexDump, sent.clone()), "{file}");
        }
        let squeezed = "00000000  2f 41 42 43 35 0d 0a 0d  0a 28 ff ff ff ff ff ff  |/ABC5....(......|\n\
                        00000010  ff ff ff ff ff ff ff ff  ff ff ff ff ff ff ff ff  |................|\n*\n\
                        00000040  29 0d 0a 21                                       |)..!|\n00000044\n";
        let expected = [b"/ABC5\r\n\r\n(", &[0xFF; 54][..], b")\r\n!"].concat();
        assert_eq!(read(squeezed.as_bytes()), (Form::HexDump, expected));
    }

    #[test]
    fn logs_lose_their_prefixes() {
        let sent = telegram();
        let text = String::from_utf8(sent.clone()).unwrap();
        let prefixes: [fn(usize) -> String; 5] = [
            |_| "2026-11-21 20:00:00.123 ".into(),
            |number| format!("[20:00:{number}] "),
            |number| format!("Nov 21 20:00:0{number} pi reader[{number}]: "),
            |_| "\u{1b}[0;36m[D][dsmr:123]: ".into(),
            |number| format!("{number}\t> "),
        ];
        for prefix in prefixes {
            let logged = |end: &str| -> String {
                text.lines().enumerate().map(|(number, line)| format!("{}{line}{end}", prefix(number))).collect()
            };
            for end in ["\r\n", "\u{1b}[0m\r\n"] {
                let file = format!("{}starting\n{}{}done\n", prefix(0), logged(end), prefix(9));
                assert_eq!(read(file.as_bytes()), (Form::Log, sent.clone()), "{file}");
            }
            // Without carriage returns, which are restored from the CRC later.
            let bare: Vec<u8> = sent.iter().copied().filter(|&byte| byte != b'\r').collect();
            assert_eq!(read(logged("\n").as_bytes()), (Form::Log, bare));
        }
    }

    #[test]
    fn lines_that_are_no_part_are_counted() {
        let text = String::from_utf8(telegram()).unwrap();
        let file: String = text.lines().map(|line| format!("20:00 {line}\n20:00 something else (3)\n")).collect();
        let mut transcript = Transcript::new();
        transcript.push(file.as_bytes());
        assert_eq!(transcript.form(), Some(Form::Log));
        // One of them is taken for the blank line behind the header, and that for one of them.
        assert_eq!(transcript.left_out(), text.lines().count() as u64);
    }
}
