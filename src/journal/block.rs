//! A block of a segment: messages as few bytes as they need, readable without any other block.
//!
//! Enters: reports with their numbers. Leaves: the same, from the bytes alone. Pure: no file here.
//!
//! A block begins at a multiple of [`UNIT`] in its file, and is one unit long, or as many as its only
//! message needs. So what a damaged place costs ends at the next unit.
//!
//! | bytes | what |
//! |---|---|
//! | 4 | `MKJ2` |
//! | 4 | units, little endian as all that follows, but the epoch |
//! | 16 | epoch, big endian |
//! | 8 | number of the first message |
//! | 4 | CRC-32/ISCSI of the 32 bytes before |
//! | then each record: 4 | length of its content; 0: nothing follows |
//! | 4 | CRC-32/ISCSI of the content |
//! | ... | content: a byte that says what it is, then its fields |
//!
//! Integers in a content are LEB128, signed ones zigzag before. What messages have in common (meter,
//! layout, remark) is written once a block, as a *text* with the next number from 1:
//!
//! | content | fields |
//! |---|---|
//! | 0, text | its number, its bytes |
//! | 1, message | seq - first of the block; seq - prev, 0: none; texts of meter, layout and remark, 0: none; received at, ms since 1970 UTC; clock, and whether measured at follows; measured at - received at in ms, minutes east of UTC; count of values; values of the layout |
//!
//! Not supported: instants finer than a millisecond.

use std::{borrow::Cow, collections::HashMap, ops::Range};

use crc::{CRC_32_ISCSI, Crc, Table};

use super::Record;
use crate::{
    delivery::Epoch,
    layout::{self, Layout},
    leb128::{read_signed, read_unsigned, signed, unsigned},
    moment::Moment,
    reading::{Clock, Medium, Report},
};

/// Where blocks may begin.
pub(super) const UNIT: usize = 64 * 1024;
/// Bytes before a block's first record.
pub(super) const HEADER: usize = 36;
/// A longer block is damage, not data: a message is never longer than an MQTT packet may be.
const MOST_UNITS: usize = 16;
/// Before a record's content: length and checksum.
const FRAME: usize = 8;
const MAGIC: [u8; 4] = *b"MKJ2";
const CASTAGNOLI: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);
const TEXT: u8 = 0;
const MESSAGE: u8 = 1;
/// Bits of the byte that has the clock.
const CLOCKS: [Clock; 4] = [Clock::Meter, Clock::Telegram, Clock::Gateway, Clock::Unsynchronised];
const MEASURED: u8 = 4;

/// What a block's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) epoch: Epoch,
    /// Number of its first message.
    pub(super) first: u64,
    /// Length in [`UNIT`]s.
    pub(super) units: usize,
}

impl Header {
    /// From the first [`HEADER`] bytes. None: no block begins here, or it is damaged.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let (fields, rest) = bytes.split_first_chunk::<32>()?;
        let checksum = u32::from_le_bytes(*rest.first_chunk()?);
        let (magic, fields_after) = fields.split_first_chunk::<4>()?;
        let (units, fields_after) = fields_after.split_first_chunk::<4>()?;
        let (epoch, first) = fields_after.split_first_chunk::<16>()?;
        let units = usize::try_from(u32::from_le_bytes(*units)).ok()?;
        let valid = *magic == MAGIC && CASTAGNOLI.checksum(fields) == checksum && (1..=MOST_UNITS).contains(&units);
        valid.then_some(Self {
            epoch: Epoch::from_bits(u128::from_be_bytes(*epoch)),
            first: u64::from_le_bytes(*first.first_chunk()?),
            units,
        })
    }

    fn write(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(UNIT);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&u32::try_from(self.units).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend_from_slice(&self.epoch.bits().to_be_bytes());
        bytes.extend_from_slice(&self.first.to_le_bytes());
        bytes.extend_from_slice(&CASTAGNOLI.checksum(&bytes).to_le_bytes());
        bytes
    }
}

/// Why a message is not in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// It does not fit beside the others: the next block takes it.
    NextBlock,
    /// It is longer than any block.
    TooLong,
}

/// How far a block was filled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    length: usize,
    next_text: u64,
}

impl Mark {
    /// Bytes.
    pub(super) fn length(self) -> usize {
        self.length
    }
}

/// A block that is being filled.
#[derive(Debug)]
pub(super) struct Filling {
    header: Header,
    bytes: Vec<u8>,
    /// Numbers of the texts: of layouts, and of meters and remarks.
    layouts: HashMap<Layout, u64>,
    texts: HashMap<String, u64>,
    next_text: u64,
}

impl Filling {
    pub(super) fn new(epoch: Epoch, first: u64) -> Self {
        let header = Header { epoch, first, units: 1 };
        let bytes = header.write();
        Self { header, bytes, layouts: HashMap::new(), texts: HashMap::new(), next_text: 1 }
    }

    /// Number of its first message.
    pub(super) fn first(&self) -> u64 {
        self.header.first
    }

    /// Everything so far, from the header on.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The room it takes in the file.
    pub(super) fn length(&self) -> usize {
        self.header.units.saturating_mul(UNIT)
    }

    /// The same, when nothing more comes to it.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// How far it is filled.
    pub(super) fn mark(&self) -> Mark {
        // What has a header only was never written: then all of it is new.
        let length = if self.bytes.len() == HEADER { 0 } else { self.bytes.len() };
        Mark { length, next_text: self.next_text }
    }

    /// Takes out what came after a mark.
    pub(super) fn cut(&mut self, mark: Mark) {
        self.bytes.truncate(mark.length.max(HEADER));
        self.next_text = mark.next_text;
        self.layouts.retain(|_, number| *number < mark.next_text);
        self.texts.retain(|_, number| *number < mark.next_text);
    }

    /// Adds a message. On an error it is as before.
    pub(super) fn push(
        &mut self,
        seq: u64,
        prev: u64,
        report: &Report<String>,
        received_at: Moment,
    ) -> Result<(), Full> {
        let (mark, alone) = (self.mark(), self.bytes.len() == HEADER);
        self.write_message(seq, prev, report, received_at);
        let units = self.bytes.len().div_ceil(UNIT);
        if units <= self.header.units {
            return Ok(());
        }
        if alone && units <= MOST_UNITS {
            // Alone in its block, it may have a longer one.
            self.header.units = units;
            let header = self.header.write();
            self.bytes.splice(..HEADER, header);
            return Ok(());
        }
        self.cut(mark);
        Err(if alone { Full::TooLong } else { Full::NextBlock })
    }

    fn write_message(&mut self, seq: u64, prev: u64, report: &Report<String>, received_at: Moment) {
        let (layout, values) = Layout::split(report);
        let meter = self.shared(meter_text(report));
        let layout = match self.layouts.get(&layout) {
            Some(number) => *number,
            None => {
                let number = self.text(layout.to_text().as_bytes());
                self.layouts.insert(layout, number);
                number
            }
        };
        let remark = layout::remark(report).map_or(0, |remark| self.shared(remark));
        let mut content = Vec::with_capacity(32_usize.saturating_add(values.len().saturating_mul(4)));
        content.push(MESSAGE);
        unsigned(&mut content, seq.saturating_sub(self.header.first));
        unsigned(&mut content, if prev == 0 { 0 } else { seq.saturating_sub(prev) });
        for text in [meter, layout, remark] {
            unsigned(&mut content, text);
        }
        signed(&mut content, received_at.millis());
        let clock = CLOCKS.iter().zip(0u8..).find(|&(&clock, _)| clock == report.clock).map_or(3, |(_, code)| code);
        match report.measured_at {
            Some(at) => {
                content.push(clock | MEASURED);
                signed(&mut content, at.millis().wrapping_sub(received_at.millis()));
                signed(&mut content, i64::from(at.offset_minutes()));
            }
            None => content.push(clock),
        }
        unsigned(&mut content, values.len() as u64);
        for value in values {
            signed(&mut content, value);
        }
        self.record(&content);
    }

    /// The number of a text, which is written if the block does not have it.
    fn shared(&mut self, text: String) -> u64 {
        match self.texts.get(&text) {
            Some(number) => *number,
            None => {
                let number = self.text(text.as_bytes());
                self.texts.insert(text, number);
                number
            }
        }
    }

    /// Writes a text, and returns its number.
    fn text(&mut self, text: &[u8]) -> u64 {
        let number = self.next_text;
        self.next_text = number.saturating_add(1);
        let mut content = Vec::with_capacity(text.len().saturating_add(4));
        content.push(TEXT);
        unsigned(&mut content, number);
        content.extend_from_slice(text);
        self.record(&content);
        number
    }

    fn record(&mut self, content: &[u8]) {
        // A length that does not fit makes the block too long, which is refused.
        let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(&CASTAGNOLI.checksum(content).to_le_bytes());
        self.bytes.extend_from_slice(content);
    }
}

/// Who a meter is, as text: name, medium, its code, protocol.
fn meter_text(report: &Report<String>) -> String {
    let code = if let Medium::Other(code) = report.medium { code } else { 0 };
    // Strings and integers always serialise.
    serde_json::to_string(&(&report.meter, report.medium.name(), code, &report.protocol)).unwrap_or_default()
}

/// A block that was read from a file.
#[derive(Debug)]
pub(super) struct Block {
    header: Header,
    bytes: Vec<u8>,
    /// By number, ascending: where the content of each message is.
    messages: Vec<(u64, Range<usize>)>,
    texts: HashMap<u64, Range<usize>>,
    /// Those that were needed.
    layouts: HashMap<u64, Layout>,
    end: usize,
    damaged_at: Option<usize>,
}

impl Block {
    /// Looks through a block. None when its header is damaged; damaged records are left out.
    pub(super) fn parse(bytes: Vec<u8>) -> Option<Self> {
        let header = Header::read(&bytes)?;
        let mut block = Self {
            header,
            bytes,
            messages: Vec::new(),
            texts: HashMap::new(),
            layouts: HashMap::new(),
            end: HEADER,
            damaged_at: None,
        };
        let mut at = HEADER;
        while let Some((length, checksum)) = block.frame(at).filter(|(length, _)| *length > 0) {
            let begin = at.saturating_add(FRAME);
            let content = begin..begin.saturating_add(length);
            let bytes = block.bytes.get(content.clone());
            if bytes.is_some_and(|bytes| CASTAGNOLI.checksum(bytes) == checksum) {
                block.end = content.end;
                block.note(content.clone());
            } else {
                block.damaged_at.get_or_insert(at);
                // What follows a damaged content may be whole; behind a damaged length nothing is.
                if bytes.is_none() {
                    break;
                }
            }
            at = content.end;
        }
        Some(block)
    }

    /// Length and checksum of the record at `at`.
    fn frame(&self, at: usize) -> Option<(usize, u32)> {
        let frame = self.bytes.get(at..at.saturating_add(FRAME))?;
        let (length, checksum) = frame.split_first_chunk::<4>()?;
        Some((u32::from_le_bytes(*length) as usize, u32::from_le_bytes(*checksum.first_chunk()?)))
    }

    fn note(&mut self, content: Range<usize>) {
        let mut rest = self.bytes.get(content.clone()).unwrap_or_default();
        let kind = rest.split_off_first();
        let Some(number) = read_unsigned(&mut rest) else { return };
        let fields = content.end.saturating_sub(rest.len())..content.end;
        match kind {
            Some(&MESSAGE) => {
                let seq = self.header.first.saturating_add(number);
                // They were written in ascending order.
                if self.messages.last().is_none_or(|&(last, _)| last < seq) {
                    self.messages.push((seq, fields));
                }
            }
            Some(&TEXT) => drop(self.texts.insert(number, fields)),
            _ => {}
        }
    }

    /// The highest number in it; None when there is none.
    pub(super) fn last(&self) -> Option<u64> {
        self.messages.last().map(|&(seq, _)| seq)
    }

    /// Bytes up to the end of the last whole record.
    pub(super) fn end(&self) -> usize {
        self.end
    }

    /// Where the first bytes are that are no whole record.
    pub(super) fn damaged_at(&self) -> Option<usize> {
        self.damaged_at
    }

    /// A message. None when it is not in this block, or damaged.
    pub(super) fn read(&mut self, seq: u64) -> Option<Record> {
        let index = self.messages.binary_search_by_key(&seq, |&(seq, _)| seq).ok()?;
        let (_, fields) = self.messages.get(index)?;
        let mut rest = self.bytes.get(fields.clone())?;
        let back = read_unsigned(&mut rest)?;
        let mut text = || read_unsigned(&mut rest);
        let (meter, layout, remark) = (text()?, text()?, text()?);
        let received = read_signed(&mut rest)?;
        let clock = *rest.split_off_first()?;
        let measured_at = if clock & MEASURED == 0 {
            None
        } else {
            let at = received.wrapping_add(read_signed(&mut rest)?);
            Some(Moment::from_millis(at, i32::try_from(read_signed(&mut rest)?).ok()?)?)
        };
        let count = read_unsigned(&mut rest)?;
        let mut values = Vec::with_capacity(rest.len());
        for _ in 0..count {
            values.push(read_signed(&mut rest)?);
        }
        if !self.layouts.contains_key(&layout) {
            let text = std::str::from_utf8(self.bytes.get(self.texts.get(&layout)?.clone())?).ok()?;
            self.layouts.insert(layout, Layout::from_text(text).ok()?);
        }
        let text = |number| self.bytes.get(self.texts.get(&number)?.clone());
        let (meter, medium, code, protocol): (String, Cow<'_, str>, u8, Cow<'_, str>) =
            serde_json::from_slice(text(meter)?).ok()?;
        let mut report = Report {
            meter,
            medium: Medium::from_name(&medium, code)?,
            protocol: match protocol.as_ref() {
                "p1" => Cow::Borrowed("p1"),
                "mbus" => Cow::Borrowed("mbus"),
                other => Cow::Owned(other.to_owned()),
            },
            measured_at,
            clock: *CLOCKS.get(usize::from(clock & !MEASURED))?,
            readings: Vec::new(),
            info: Vec::new(),
            events: Vec::new(),
            unknown: Vec::new(),
        };
        let remark = if remark == 0 { None } else { Some(std::str::from_utf8(text(remark)?).ok()?) };
        self.layouts.get(&layout)?.join(&values, remark, &mut report).ok()?;
        let prev = if back == 0 { 0 } else { seq.checked_sub(back)? };
        Some(Record { seq, prev, received_at: Moment::from_millis(received, 0)?, report })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        reading::{Reading, Register},
        unit::{Decimal, Unit},
    };

    /// Each byte of each record changed, with checksums that fit again: what is read may be anything, or nothing.
    #[test]
    fn contents_that_nobody_wrote_are_survived() {
        let report = Report {
            meter: "E1".into(),
            medium: Medium::Heat,
            protocol: "mbus".into(),
            measured_at: Moment::from_millis(1_795_287_600_000, 60),
            clock: Clock::Gateway,
            readings: vec![
                Reading::now(Register::named("energy"), Decimal::new(12_345, 3).unwrap(), Unit::GJ),
                Reading::now(Register::named("volume"), Decimal::new(-1, 0).unwrap(), Unit::named("m3")),
            ],
            info: vec![("version".into(), "50".into())],
            events: Vec::new(),
            unknown: Vec::new(),
        };
        let mut filling = Filling::new(Epoch::from_bits(7), 5);
        let received_at = Moment::from_millis(1_795_287_601_000, 0).unwrap();
        for seq in 5..8 {
            filling.push(seq, seq - 1, &report, received_at).unwrap();
        }
        let whole = filling.into_bytes();
        let mut begin = HEADER;
        while begin < whole.len() {
            let length = u32::from_le_bytes(whole[begin..begin + 4].try_into().unwrap()) as usize;
            let content = begin + FRAME..begin + FRAME + length;
            for place in content.clone() {
                for change in [1, 0x7f, 0x80, 0xff] {
                    let mut bytes = whole.clone();
                    bytes[place] ^= change;
                    let checksum = CASTAGNOLI.checksum(&bytes[content.clone()]).to_le_bytes();
                    bytes[begin + 4..begin + FRAME].copy_from_slice(&checksum);
                    let mut block = Block::parse(bytes).unwrap();
                    for seq in (0..10).chain([u64::MAX]) {
                        let _ = block.read(seq);
                    }
                }
            }
            begin = content.end;
        }
    }
}
