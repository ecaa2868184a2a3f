//! M-Bus frames byte by byte.
//!
//! Enters: bytes of a bus, split anywhere. Leaves: [`Piece`]s: frames of master and slaves, whole or damaged, and noise. A
//! damaged frame is explained as far as it goes; it ends where the next whole frame begins, or where its length says.
//!
//! Sources: EN 13757-2:2018, 5 (link layer); EN 13757-3:2018, 5 (header), 6 (records), 8 to 11 (what a master sends).
//!
//! Not supported: readouts of several telegrams as a whole: each telegram is explained for itself, so a date in another one is
//! not found.

use super::{Cut, Mark, Piece, Said, hex, p1::medium};
use crate::{
    mbus::{
        Coding, Frame, FrameError, Item, MAX_FRAME, Manufacturer, Pattern, Reason, Record, Records, Vib, begins,
        control, decode, faults,
        frame::address,
        value::{self, Value},
        vif::{self, Kind},
    },
    reading::{Identity, escape},
};

/// Noise is told in stretches of this length.
const MOST_NOISE: usize = 1024;

/// With so many bytes it can be judged what begins, and whether something whole begins within it.
const TELLING: usize = MOST_NOISE + MAX_FRAME;

/// Explains a stream of bytes. Holds a little more than a kilobyte besides what the last [`push`](Explainer::push) brought.
#[derive(Debug)]
pub struct Explainer {
    standard_offset: i8,
    buffer: Vec<u8>,
    /// How many bytes of the stream came before `buffer`.
    base: u64,
    ended: bool,
}

impl Explainer {
    /// At the beginning of a stream. `standard_offset`: hours east of UTC that the meters' clocks stand in winter.
    pub fn new(standard_offset: i8) -> Self {
        Self { standard_offset, buffer: Vec::new(), base: 0, ended: false }
    }

    /// Adds bytes. Call [`poll`](Explainer::poll) until it returns None before the next push.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        self.ended = false;
    }

    /// Says that no more bytes come for now: what is open ends here. Call [`poll`](Explainer::poll) until it returns None.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// The next piece, or None when more bytes are needed.
    pub fn poll(&mut self) -> Option<Piece> {
        if self.buffer.is_empty() || (self.buffer.len() < TELLING && !self.ended) {
            return None;
        }
        let parsed = Frame::parse(&self.buffer).map(|(frame, length)| (matches!(frame, Frame::Ack), length));
        let length = match parsed {
            Ok((_, length)) => length,
            Err(_) => damaged_length(&self.buffer),
        };
        let rest = self.buffer.split_off(length.min(self.buffer.len()));
        let bytes = std::mem::replace(&mut self.buffer, rest);
        let offset = self.base;
        self.base = self.base.saturating_add(bytes.len() as u64);
        Some(piece(offset, bytes, self.standard_offset))
    }
}

/// Where the next whole frame begins behind the first byte, but not beyond `most`.
fn next_frame(bytes: &[u8], most: usize) -> usize {
    // E5 is one byte, and proves nothing.
    let whole = |at: &usize| {
        let rest = bytes.get(*at..).unwrap_or_default();
        matches!(rest, [0x10 | 0x68, ..]) && Frame::parse(rest).is_ok()
    };
    (1..most.min(bytes.len())).find(whole).unwrap_or(most.min(bytes.len()))
}

/// How long what begins here is, where it is no whole frame.
fn damaged_length(bytes: &[u8]) -> usize {
    match bytes {
        [_, length, ..] if begins(bytes) == Some(true) => next_frame(bytes, usize::from(*length).saturating_add(6)),
        _ => {
            let most = next_frame(bytes, MOST_NOISE);
            // A frame that is damaged begins, too.
            let begin = |at: &usize| begins(bytes.get(*at..).unwrap_or_default()) == Some(true);
            (1..most).find(begin).unwrap_or(most)
        }
    }
}

fn piece(offset: u64, bytes: Vec<u8>, standard_offset: i8) -> Piece {
    let parsed = Frame::parse(&bytes).map(|(frame, _)| frame);
    let mut cut = Cut::new(&bytes);
    let (what, meaning, mark) = match parsed {
        Ok(Frame::Ack) => {
            cut.take(1, "acknowledgement", "a slave has understood");
            ("acknowledgement", "a slave has understood".to_owned(), Mark::Right)
        }
        Ok(Frame::Short { control, address }) => {
            cut.take(1, "start", "a short frame begins");
            cut.take(1, "C", control_field(control));
            cut.take(1, "A", address_field(address));
            cut.mark(1, "checksum", "right", Mark::Right);
            cut.take(1, "stop", "the frame ends");
            let meaning = format!("{} to {}", control_field(control), address_field(address));
            ("short frame", meaning, Mark::Right)
        }
        Ok(frame @ Frame::Long { .. }) => long(&mut cut, &frame, standard_offset),
        Err(reason) => damaged(&mut cut, reason, standard_offset),
    };
    let parts = cut.finish();
    Piece { offset, bytes, is_binary: true, what: what.into(), meaning, mark, parts, inside: Vec::new() }
}

fn long(cut: &mut Cut<'_>, frame: &Frame<'_>, standard_offset: i8) -> (&'static str, String, Mark) {
    let Frame::Long { control: c, address, ci, data } = *frame else { return ("frame", String::new(), Mark::Plain) };
    start(cut);
    cut.take(1, "C", control_field(c));
    cut.take(1, "A", address_field(address));
    cut.take(1, "CI", control_information(ci));
    let is_answer = c & !control::ANSWER_BITS == control::RSP_UD;
    let decoded = decode(&[*frame], standard_offset);
    cut.group(data.len(), "data", |cut| {
        application(cut, c, ci, data, is_answer, &decoded, standard_offset);
        (String::new(), Mark::Plain)
    });
    flatten(cut);
    cut.mark(1, "checksum", "right: the sum of everything from C to here", Mark::Right);
    cut.take(1, "stop", "the frame ends");
    let what = if data.is_empty() { "control frame" } else { "long frame" };
    if !is_answer {
        let to = address_field(address);
        return (what, format!("{} to {to}: {}", control_field(c), control_information(ci)), Mark::Right);
    }
    match decoded {
        Ok(decoded) => {
            let meter = match decoded.report.meter {
                Identity::Own(id) => id,
                Identity::Place { .. } => format!("without a number, at address {address}"),
            };
            let medium = decoded.report.medium.name().replace('_', " ");
            let more = if decoded.more_follow { "; more telegrams follow" } else { "" };
            (what, format!("answer of the {medium} meter {}{more}", escape(meter.as_bytes())), Mark::Right)
        }
        Err(reason) => (what, format!("rejected: {reason}"), Mark::Wrong),
    }
}

/// Puts the parts of the last part in its place.
fn flatten(cut: &mut Cut<'_>) {
    if let Some(last) = cut.parts.pop_if(|last| last.what == "data" && !last.parts.is_empty()) {
        cut.parts.extend(last.parts);
    }
}

fn start(cut: &mut Cut<'_>) {
    cut.take(1, "start", "a long frame begins");
    let length = |cut: &Cut<'_>| {
        cut.rest().first().map_or_else(String::new, |length| format!("{length} bytes from C to the end of the data"))
    };
    let meaning = length(cut);
    cut.take(1, "L", meaning);
    cut.take(1, "L", "the same again");
    cut.take(1, "start", "and again");
}

/// What is no whole frame.
fn damaged(cut: &mut Cut<'_>, reason: FrameError, standard_offset: i8) -> (&'static str, String, Mark) {
    let all = cut.rest();
    let meaning = format!("rejected: {reason}");
    if begins(all) != Some(true) {
        cut.mark(usize::MAX, "noise", noise(all, reason), Mark::Wrong);
        return ("noise", meaning, Mark::Wrong);
    }
    start(cut);
    let length = all.get(1).copied().map_or(0, usize::from);
    let body = all.get(4..).unwrap_or_default();
    let body = body.get(..length).unwrap_or(body);
    let c = body.first().copied().unwrap_or_default();
    cut.take(usize::from(!body.is_empty()), "C", control_field(c));
    let address = body.get(1).copied();
    cut.take(usize::from(address.is_some()), "A", address.map(address_field).unwrap_or_default());
    let ci = body.get(2).copied().unwrap_or_default();
    cut.take(usize::from(body.len() > 2), "CI", control_information(ci));
    let data = body.get(3..).unwrap_or_default();
    let is_answer = c & !control::ANSWER_BITS == control::RSP_UD;
    // As the frame would be if its checksum were right.
    let frame = Frame::Long { control: c, address: address.unwrap_or_default(), ci, data };
    let decoded = decode(&[frame], standard_offset);
    cut.group(data.len(), "data", |cut| {
        application(cut, c, ci, data, is_answer, &decoded, standard_offset);
        (String::new(), Mark::Plain)
    });
    flatten(cut);
    match reason {
        FrameError::Checksum { computed, sent } => {
            cut.mark(
                1,
                "checksum",
                format!("wrong: the bytes give {computed:02X}, and this is {sent:02X}"),
                Mark::Wrong,
            );
            cut.take(1, "stop", "the frame ends");
        }
        FrameError::Stop(_) => {
            cut.mark(1, "checksum", "right", Mark::Right);
            cut.mark(1, "stop", "wrong: it should be 16", Mark::Wrong);
        }
        _ => {}
    }
    ("damaged frame", meaning, Mark::Wrong)
}

fn noise(bytes: &[u8], reason: FrameError) -> String {
    match reason {
        FrameError::Start(_) => {
            if bytes.iter().all(|byte| *byte == 0 || *byte == 0xFF) {
                "an idle or broken line, or another baud rate".to_owned()
            } else {
                "no frame begins here: noise, answers that collide, or another baud rate".to_owned()
            }
        }
        reason => format!("a frame might begin here, but {reason}"),
    }
}

fn control_field(c: u8) -> String {
    let bit = |bit: u8, name: &str| if c & bit != 0 { format!(", {name}") } else { String::new() };
    if c & control::FROM_MASTER != 0 {
        let name = match c & 0x4F {
            0x40 => "SND_NKE: initialise the link",
            0x43 => "SND_UD: data for a slave",
            0x4A => "REQ_UD1: asks for alarms",
            0x4B => "REQ_UD2: asks for readings",
            _ => "a request of another kind",
        };
        format!("{name}{}{}", bit(0x20, "FCB 1"), bit(0x10, "FCV 1"))
    } else if c & !control::ANSWER_BITS == control::RSP_UD {
        format!("RSP_UD: data of a slave{}{}", bit(0x20, "ACD: it has alarms"), bit(0x10, "DFC: it can take no more"))
    } else {
        "an answer of another kind".to_owned()
    }
}

fn address_field(a: u8) -> String {
    match a {
        address::UNCONFIGURED => "address 0: was given none".to_owned(),
        address::SELECTED => "address 253: the slave that was selected".to_owned(),
        address::EVERYONE => "address 254: every slave, and all answer".to_owned(),
        address::BROADCAST => "address 255: every slave, and none answers".to_owned(),
        251 | 252 => format!("address {a}: reserved"),
        a => format!("address {a}"),
    }
}

fn control_information(ci: u8) -> &'static str {
    match ci {
        0x50 => "application reset",
        0x51 => "data for a slave",
        0x52 => "selection of a slave",
        0x54 => "synchronise",
        0x55 => "data for a slave, highest byte first",
        0x56 => "selection of a slave, highest byte first",
        0x5C => "synchronise",
        0x70 => "application error",
        0x71 => "alarm",
        0x72 => "long header and records",
        0x76 => "long header and records, highest byte first",
        0x73 => "fixed structure",
        0x77 => "fixed structure, highest byte first",
        0x78 => "records without a header",
        0x7A => "short header and records",
        0xB8 => "change to 300 Bd",
        0xB9 => "change to 600 Bd",
        0xBA => "change to 1200 Bd",
        0xBB => "change to 2400 Bd",
        0xBC => "change to 4800 Bd",
        0xBD => "change to 9600 Bd",
        0xBE => "change to 19200 Bd",
        0xBF => "change to 38400 Bd",
        0xA0..=0xB7 => "the manufacturer's own",
        _ => "of a kind that is not known here",
    }
}

type Decoded = Result<crate::mbus::Decoded, Reason>;

/// The data behind CI.
fn application(cut: &mut Cut<'_>, c: u8, ci: u8, data: &[u8], is_answer: bool, decoded: &Decoded, standard_offset: i8) {
    let fixed = match ci {
        0x73 | 0x77 => 16,
        0x72 | 0x76 => 12,
        0x7A => 4,
        _ => 0,
    };
    let make = |data: &[u8]| {
        let frame = Frame::Long { control: c, address: 1, ci, data };
        decode(&[frame], standard_offset).ok().map(|decoded| {
            let mut said = Said::default();
            said.add(decoded.report, None);
            said
        })
    };
    match ci {
        0x70 if is_answer => {
            let told = match decoded {
                Err(reason) => reason.to_string(),
                Ok(_) => String::new(),
            };
            cut.mark(1, "error", told, Mark::Wrong);
        }
        0x71 if is_answer => cut.mark(1, "alarm", "what the meter warns of, in bits of its maker", Mark::Wrong),
        0x52 | 0x56 => selection(cut),
        0x50 => cut.take(1, "subcode", "what is asked for from now on"),
        0x73 | 0x77 => fixed_structure(cut, ci == 0x77, data, make),
        0x72 | 0x76 | 0x78 | 0x7A => {
            let high_first = ci == 0x76;
            let mode = header(cut, fixed, high_first);
            let records = cut.rest();
            if matches!(decoded, Err(Reason::Encrypted(_))) {
                cut.mark(usize::MAX, "cipher text", format!("encrypted in mode {mode}"), Mark::Unknown);
                return;
            }
            let head = data.get(..fixed).unwrap_or_default();
            let bare = make(head).unwrap_or_default();
            let say = |record: &[u8]| make(&[head, record].concat()).map(|said| said.beyond(&bare));
            record_parts(cut, records, high_first, say);
        }
        0x51 | 0x55 => {
            let records = cut.rest();
            let say = |record: &[u8]| {
                let frame = Frame::Long { control: control::RSP_UD, address: 1, ci: 0x78, data: record };
                let mut said = Said::default();
                said.add(decode(&[frame], standard_offset).ok()?.report, None);
                said.words.clear();
                Some(said)
            };
            record_parts(cut, records, ci == 0x55, say);
        }
        _ => {}
    }
    cut.mark(usize::MAX, "data", "of a kind that is not known here", Mark::Unknown);
}

fn selection(cut: &mut Cut<'_>) {
    let pattern = cut.rest().first_chunk().map(|bytes| Pattern::from_bytes(*bytes));
    let meaning = pattern.map_or_else(|| "breaks off".to_owned(), |pattern| format!("selects {pattern}"));
    cut.group(8, "selection", |cut| {
        cut.take(4, "number", "each digit F stands for any");
        cut.take(2, "manufacturer", "each byte FF stands for any");
        cut.take(1, "version", "FF stands for any");
        cut.take(1, "medium", "FF stands for any");
        (meaning, Mark::Plain)
    });
}

/// Takes a header of 12, 4 or no bytes; returns the security mode.
fn header(cut: &mut Cut<'_>, length: usize, high_first: bool) -> u8 {
    let number = |bytes: &[u8]| match high_first {
        true => bytes.iter().fold(0u32, |number, byte| number << 8 | u32::from(*byte)),
        false => bytes.iter().rev().fold(0u32, |number, byte| number << 8 | u32::from(*byte)),
    };
    let next = |cut: &Cut<'_>, length: usize| number(cut.rest().get(..length).unwrap_or_default());
    let mut mode = 0;
    if length == 0 || cut.rest().is_empty() {
        return mode;
    }
    cut.group(length, "header", |cut| {
        let complete = cut.rest().len() == length;
        if length == 12 {
            let meaning = format!("{:08X}", next(cut, 4));
            cut.take(4, "number", meaning);
            let maker = Manufacturer(next(cut, 2) as u16);
            cut.take(2, "manufacturer", maker.to_string());
            cut.take(1, "version", "the maker's, of the meter");
            let code = next(cut, 1) as u8;
            cut.take(1, "medium", medium(code));
        }
        let meaning = format!("{}: counts the answers", next(cut, 1));
        cut.take(1, "access number", meaning);
        let status = next(cut, 1) as u8;
        cut.take(1, "status", faults::status(status));
        let word = next(cut, 2) as u16;
        mode = (word >> 8) as u8 & 0x1F;
        let meaning = match mode {
            0 => "security mode 0: not encrypted".to_owned(),
            mode => format!("security mode {mode}"),
        };
        cut.take(2, "configuration", meaning);
        if complete { (String::new(), Mark::Plain) } else { ("breaks off".to_owned(), Mark::Wrong) }
    });
    mode
}

fn fixed_structure(cut: &mut Cut<'_>, high_first: bool, data: &[u8], make: impl Fn(&[u8]) -> Option<Said>) {
    /// The unit of a counter that counts nothing, and of one that is the other at the set day.
    const NOTHING: u8 = 0x3F;
    const HISTORIC: u8 = 0x3E;
    let with = |units: [u8; 2]| {
        let mut data = data.get(..16)?.to_vec();
        for (byte, unit) in data.get_mut(6..8)?.iter_mut().zip(units) {
            *byte = *byte & 0xC0 | unit;
        }
        make(&data)
    };
    let unit = |at: usize| data.get(at).map_or(NOTHING, |byte| byte & 0x3F);
    let (first, second) = (unit(6), unit(7));
    let none = || with([NOTHING, NOTHING]).unwrap_or_default();
    let one = with([first, NOTHING]).map(|said| said.beyond(&none()));
    let two = if second == HISTORIC {
        with([first, second]).zip(with([first, NOTHING])).map(|(both, one)| both.beyond(&one))
    } else {
        with([NOTHING, second]).map(|said| said.beyond(&none()))
    };
    let bytes = cut.rest().get(..4).unwrap_or_default();
    let digits: Vec<u8> = if high_first { bytes.to_vec() } else { bytes.iter().rev().copied().collect() };
    cut.take(4, "number", hex(&digits));
    let meaning = cut.rest().first().map_or_else(String::new, |number| format!("{number}: counts the answers"));
    cut.take(1, "access number", meaning);
    let status = cut.rest().first().copied().unwrap_or_default();
    let coding = if status & 1 == 0 { "the counters are BCD" } else { "the counters are binary" };
    let stored = if status & 2 == 0 { "of now" } else { "of the set day" };
    cut.take(1, "status", format!("{}; {coding}, {stored}", faults::status(status & !3)));
    cut.take(1, "medium and unit", format!("the lower half of the medium, and the unit of counter 1: {first:02X}"));
    cut.take(1, "medium and unit", format!("the upper half of the medium, and the unit of counter 2: {second:02X}"));
    for (name, unit, said) in [("counter 1", first, one), ("counter 2", second, two)] {
        let (meaning, mark) = match said {
            _ if unit == NOTHING => ("counts nothing".to_owned(), Mark::Plain),
            Some(said) if said.unknown.is_empty() => (said.in_words(), Mark::Plain),
            _ => ("the unit means nothing".to_owned(), Mark::Unknown),
        };
        cut.mark(4, name, meaning, mark);
    }
}

/// The records of `data`, which is what is left of the cut. `say`: what a record says, alone behind the header.
fn record_parts(cut: &mut Cut<'_>, data: &[u8], high_first: bool, say: impl Fn(&[u8]) -> Option<Said>) {
    let from = cut.at;
    let mut records = Records::new(data);
    loop {
        let at = cut.at.saturating_sub(from);
        let fillers = data.get(at..).unwrap_or_default().iter().take_while(|byte| **byte == 0x2F).count();
        cut.take(fillers, "filler", "means nothing");
        match records.next() {
            None => return,
            Some(Ok(Item::Record(record))) => {
                let length = record.head.len().saturating_add(record.data.len());
                let bytes = cut.rest().get(..length).unwrap_or_default();
                let said = say(bytes);
                cut.group(length, "record", |cut| {
                    fields(cut, Some(&record), high_first);
                    match said {
                        Some(said) if said.unknown.is_empty() => match said.in_words() {
                            words if words.is_empty() => ("says nothing".to_owned(), Mark::Plain),
                            words => (words, Mark::Plain),
                        },
                        _ => (
                            "unknown: the tables do not have it, or the data does not fit them".to_owned(),
                            Mark::Unknown,
                        ),
                    }
                });
            }
            Some(Ok(Item::Manufacturer { more_follow, data })) => {
                cut.group(data.len().saturating_add(1), "manufacturer's data", |cut| {
                    let more = if more_follow { "; and the slave has more telegrams" } else { "" };
                    cut.take(1, "DIF", format!("data of the manufacturer's own to the end{more}"));
                    cut.mark(data.len(), "data", "known to the manufacturer", Mark::Unknown);
                    let what = if more_follow { "more telegrams follow" } else { "" };
                    (what.to_owned(), Mark::Plain)
                });
                return;
            }
            Some(Ok(Item::Reserved(rest))) => {
                cut.mark(rest.len(), "reserved", "begins with a DIF that the standard reserves", Mark::Unknown);
                return;
            }
            Some(Err(error)) => {
                cut.group(usize::MAX, "record", |cut| {
                    fields(cut, None, high_first);
                    (error.to_string(), Mark::Wrong)
                });
                return;
            }
        }
    }
}

/// DIF to data of a record; of one that breaks off as far as it goes.
fn fields(cut: &mut Cut<'_>, record: Option<&Record<'_>>, high_first: bool) {
    let Some(&dif) = cut.rest().first() else { return };
    cut.take(1, "DIF", dif_meaning(dif));
    let (mut more, mut count) = (dif & 0x80 != 0, 0u32);
    while let Some(&dife) = cut.rest().first().filter(|_| more && count < 10) {
        cut.take(1, "DIFE", dife_meaning(dife, count));
        more = dife & 0x80 != 0;
        count = count.saturating_add(1);
    }
    let Some(&vif) = cut.rest().first().filter(|_| !more) else { return };
    let mut text = None;
    if vif & 0x7F == 0x7C {
        cut.take(1, "VIF", "the unit is a text of the meter's own");
        let length = cut.rest().first().copied().map_or(0, usize::from);
        cut.take(1, "text length", format!("{length} letters"));
        let letters = cut.rest().get(..length).unwrap_or(cut.rest());
        text = Some(letters);
        let reading_order: Vec<u8> = letters.iter().rev().copied().collect();
        cut.take(length, "unit", format!("{}: the last letter comes first", escape(&reading_order)));
    } else {
        cut.take(1, "VIF", vif_meaning(vif));
    }
    let extensions = cut.rest();
    let (mut more, mut count) = (vif & 0x80 != 0, 0usize);
    while let Some(&vife) = cut.rest().first().filter(|_| more && count < 10) {
        more = vife & 0x80 != 0;
        let upto = |count: usize| Vib { vif, text, extensions: extensions.get(..count).unwrap_or_default() };
        let (meaning, known) = vife_meaning(upto(count), upto(count.saturating_add(1)), extensions, count);
        cut.mark(1, "VIFE", meaning, if known { Mark::Plain } else { Mark::Unknown });
        count = count.saturating_add(1);
    }
    let Some(record) = record else {
        cut.mark(usize::MAX, "data", "breaks off", Mark::Wrong);
        return;
    };
    let told = data_meaning(record, high_first);
    cut.take(usize::MAX, "data", told);
}

fn dif_meaning(dif: u8) -> String {
    let coding = match dif & 0x0F {
        0 => "no data",
        1 => "binary, 1 byte",
        2 => "binary, 2 bytes",
        3 => "binary, 3 bytes",
        4 => "binary, 4 bytes",
        5 => "real number, 4 bytes",
        6 => "binary, 6 bytes",
        7 => "binary, 8 bytes",
        8 => "selection for readout, no data",
        9 => "BCD, 2 digits",
        0xA => "BCD, 4 digits",
        0xB => "BCD, 6 digits",
        0xC => "BCD, 8 digits",
        0xD => "variable length",
        0xE => "BCD, 12 digits",
        _ => "special function",
    };
    let function = match dif >> 4 & 3 {
        0 => "value of now",
        1 => "maximum",
        2 => "minimum",
        _ => "value while an error stood",
    };
    let storage = if dif & 0x40 != 0 { ", storage 1 (lowest bit)" } else { "" };
    let more = if dif & 0x80 != 0 { "; a DIFE follows" } else { "" };
    format!("{coding}; {function}{storage}{more}")
}

/// `count`: how many came before it.
fn dife_meaning(dife: u8, count: u32) -> String {
    let mut words = Vec::new();
    for (name, value, bits) in [
        ("storage", u64::from(dife & 0x0F), count.saturating_mul(4).saturating_add(1)),
        ("tariff", u64::from(dife >> 4 & 3), count.saturating_mul(2)),
        ("subunit", u64::from(dife >> 6 & 1), count),
    ] {
        if value != 0 {
            words.push(format!("{name} + {}", value.checked_shl(bits).unwrap_or(0)));
        }
    }
    if words.is_empty() {
        words.push("adds nothing".to_owned());
    }
    if dife & 0x80 != 0 {
        words.push("another DIFE follows".to_owned());
    }
    words.join(", ")
}

/// What a quantity counts in.
fn quantity(meaning: &vif::Meaning) -> String {
    let kind = match &meaning.kind {
        Kind::Amount { base, exponent } => format!("in steps of 10^{exponent} {}", base_name(*base)),
        Kind::Plain { unit, exponent } => format!("in steps of 10^{exponent} {unit}"),
        Kind::Identifier => "digits that name something".to_owned(),
        Kind::Flags => "bits".to_owned(),
        Kind::Date => "a date or a time".to_owned(),
    };
    format!("{}, {}", meaning.name, kind.trim_end())
}

fn base_name(base: vif::Base) -> String {
    // In words, as the tables have it: CubicMetrePerHour is cubic metre per hour.
    let mut name = String::new();
    for letter in format!("{base:?}").chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push(' ');
        }
        name.push(letter.to_ascii_lowercase());
    }
    if base == vif::Base::None { "of no unit".to_owned() } else { name }
}

fn vif_meaning(vif: u8) -> String {
    let more = if vif & 0x80 != 0 { "; a VIFE follows" } else { "" };
    match vif & 0x7F {
        0x7B => return "first extension table: the next byte says what".to_owned(),
        0x7D => return "second extension table: the next byte says what".to_owned(),
        0x6F => return "third extension table, which is not known here".to_owned(),
        0x7E => return format!("any value: for readout requests{more}"),
        0x7F => return format!("the manufacturer's own{more}"),
        _ => {}
    }
    match vif::meaning(&Vib { vif: vif & 0x7F, text: None, extensions: &[] }) {
        Some(meaning) => format!("{}{more}", quantity(&meaning)),
        None => format!("reserved{more}"),
    }
}

/// What a VIFE adds, by what the tables make of the value information without it and with it; and whether they know it.
fn vife_meaning(without: Vib<'_>, with: Vib<'_>, all: &[u8], index: usize) -> (String, bool) {
    let more = if with.extensions.last().is_some_and(|vife| vife & 0x80 != 0) { "; another VIFE follows" } else { "" };
    if with.vif & 0x7F == 0x7F {
        return (format!("the manufacturer's own{more}"), false);
    }
    let Some(after) = vif::meaning(&with) else {
        let with_next = Vib { extensions: all.get(..index.saturating_add(2)).unwrap_or_default(), ..with };
        // FC says what it means together with the next.
        return match with.extensions.last().map(|vife| vife & 0x7F) {
            Some(0x7C) if vif::meaning(&with_next).is_some() => ("what it is of says the next VIFE".to_owned(), true),
            _ => (format!("not known{more}"), false),
        };
    };
    let Some(before) = vif::meaning(&without) else { return (format!("{}{more}", quantity(&after)), true) };
    let mut words = Vec::new();
    if let Some(fault) = after.fault.filter(|_| before.fault.is_none()) {
        words.push(format!("instead of a value: {fault}"));
    }
    if after.direction != before.direction {
        words.push(match after.direction {
            Some(vif::Direction::Forward) => "only what is drawn".to_owned(),
            _ => "only what is given back".to_owned(),
        });
    }
    if let (
        Kind::Amount { exponent: from, .. } | Kind::Plain { exponent: from, .. },
        Kind::Amount { exponent: to, .. } | Kind::Plain { exponent: to, .. },
    ) = (&before.kind, &after.kind)
        && from != to
        && before.name == after.name
    {
        words.push(format!("times 10^{}", to.saturating_sub(*from)));
    }
    if before.name != after.name {
        words.push(quantity(&after));
    }
    if words.is_empty() {
        words.push("adds nothing".to_owned());
    }
    (format!("{}{more}", words.join(", ")), true)
}

/// The number, text or date that the data of a record holds, before its unit.
fn data_meaning(record: &Record<'_>, high_first: bool) -> String {
    let mut record = record.clone();
    if high_first {
        let data = record.data.to_mut();
        let from = usize::from(record.coding == Coding::Variable);
        if let Some(turned) = data.get_mut(from..) {
            turned.reverse();
        }
    }
    let meaning = vif::meaning(&record.vib);
    let kind = meaning.as_ref().map(|meaning| &meaning.kind);
    if matches!(kind, Some(Kind::Date)) && matches!(record.coding, Coding::Binary(_)) {
        return match value::date(&record.data) {
            Some(date) => crate::mbus::shown(date),
            None => "no date has so many bytes".to_owned(),
        };
    }
    if matches!(kind, Some(Kind::Flags)) {
        return format!("bits {}", faults::hex(&record.data));
    }
    match record.value(matches!(kind, None | Some(Kind::Amount { .. } | Kind::Plain { .. }))) {
        Value::Nothing => "none".to_owned(),
        Value::Number(number) => format!("{number} as sent"),
        Value::NotANumber => "no number".to_owned(),
        Value::TooLong => "a number of more than 18 digits".to_owned(),
        Value::Text(text) => format!("text: {}", escape(&text)),
        Value::Bytes(bytes) => format!("{} bytes", bytes.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Part, *};

    fn explain(bytes: &[u8]) -> Vec<Piece> {
        let mut explainer = Explainer::new(1);
        explainer.push(bytes);
        explainer.end();
        std::iter::from_fn(|| explainer.poll()).collect()
    }

    fn shown(parts: &[Part], depth: usize, lines: &mut Vec<String>) {
        for part in parts {
            let indent = "  ".repeat(depth);
            lines.push(format!("{indent}{}..{} {}: {}", part.from, part.to, part.what, part.meaning));
            shown(&part.parts, depth + 1, lines);
        }
    }

    #[test]
    fn a_record_means_what_the_decoder_makes_of_it() {
        let data = [
            0x78, 0x56, 0x34, 0x12, 0x2D, 0x2C, 0x1B, 4, 9, 0x04, 0, 0, 0x4C, 0x8E, 0x3B, 0x30, 0x12, 0, 0, 0x2F, 0x1F,
        ];
        let frame = Frame::Long { control: 8, address: 5, ci: 0x72, data: &data };
        let pieces = explain(&frame.emit());
        let [piece] = &pieces[..] else { panic!("{pieces:?}") };
        assert_eq!(piece.meaning, "answer of the heat meter KAM-12345678-1B-04; more telegrams follow");
        let mut lines = Vec::new();
        shown(&piece.parts, 0, &mut lines);
        assert_eq!(
            lines,
            [
                "0..1 start: a long frame begins",
                "1..2 L: 24 bytes from C to the end of the data",
                "2..3 L: the same again",
                "3..4 start: and again",
                "4..5 C: RSP_UD: data of a slave",
                "5..6 A: address 5",
                "6..7 CI: long header and records",
                "7..19 header: ",
                "  7..11 number: 12345678",
                "  11..13 manufacturer: KAM",
                "  13..14 version: the maker's, of the meter",
                "  14..15 medium: heat, measured in the outlet (device type 4)",
                "  15..16 access number: 9: counts the answers",
                "  16..17 status: low battery",
                "  17..19 configuration: security mode 0: not encrypted",
                "19..26 record: energy_forward 1.230 GJ, storage 1 (as sent: 1230 MJ)",
                "  19..20 DIF: BCD, 8 digits; value of now, storage 1 (lowest bit)",
                "  20..21 VIF: energy, in steps of 10^6 joule; a VIFE follows",
                "  21..22 VIFE: only what is drawn",
                "  22..26 data: 1230 as sent",
                "26..27 filler: means nothing",
                "27..28 manufacturer's data: more telegrams follow",
                "  27..28 DIF: data of the manufacturer's own to the end; and the slave has more telegrams",
                "28..29 checksum: right: the sum of everything from C to here",
                "29..30 stop: the frame ends",
            ]
        );
    }

    #[test]
    fn a_damaged_frame_ends_where_the_next_one_begins() {
        let request = Frame::Short { control: 0x5B, address: 1 }.emit();
        let answer = Frame::Long { control: 8, address: 1, ci: 0x78, data: &[0x0C, 0x13, 1, 0, 0, 0] }.emit();
        let mut damaged = answer.clone();
        damaged[9] ^= 1;
        let bytes = [&request[..], &answer[..8], &request, &[0xE5, 0, 0, 0xE5], &damaged, &answer].concat();
        let found: Vec<String> = explain(&bytes)
            .iter()
            .map(|piece| format!("{}+{} {}", piece.offset, piece.bytes.len(), piece.what))
            .collect();
        assert_eq!(
            found,
            [
                "0+5 short frame",
                "5+8 damaged frame",
                "13+5 short frame",
                "18+1 acknowledgement",
                "19+3 noise",
                "22+15 damaged frame",
                "37+15 long frame",
            ]
        );
    }
}
