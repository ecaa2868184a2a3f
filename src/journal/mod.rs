//! The journal: what was accepted and is not yet known to be stored, on disk.
//!
//! Enters: the bodies of messages. Leaves: the same, by epoch and number, in any order and as often as
//! asked. *Accepted* means written to the file, which survives a crash of the process; *durable* means
//! synced, which survives a power cut ([`Journal::sync_file`]).
//!
//! A directory of segments, `<number>.segment`, each of one epoch and filled in turn:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `MKJ1` and four zero bytes |
//! | 16 | epoch, big endian |
//! | 8 | number of the first record, little endian |
//! | then each record: 4 | length of what follows the next field |
//! | 4 | CRC-32/ISCSI of that |
//! | 8, 8, 2 | seq, prev, length of the meter's name, little endian |
//! | ... | the meter's name, and the body |
//!
//! A torn end (a power cut in the middle of a write) is cut off when the journal is opened, and said.
//! When the journal is full, its oldest segment goes.
//!
//! Not supported yet: preallocation, a watch on free disk space, rewriting after a failed sync.

use std::{
    collections::{HashMap, VecDeque},
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use crc::{CRC_32_ISCSI, Crc, Table};

use crate::delivery::Epoch;

const CASTAGNOLI: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);
const MAGIC: [u8; 8] = *b"MKJ1\0\0\0\0";
const HEADER: u64 = 32;
/// Before a record's content: length and checksum.
const FRAME: u64 = 8;
/// Before a record's texts: seq, prev, length of the meter's name.
const FIXED: usize = 18;
/// A longer record is damage, not data.
const MAX_RECORD: u32 = 1 << 20;
const SEGMENT: u64 = 4 << 20;
/// Most meters whose last number is remembered. Far beyond any house; bounds what line noise in
/// identifiers can do where telegrams have no CRC.
const MOST_METERS: usize = 10_000;

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process has it.
    #[error(
        "the journal {0} is in use by another process: stop that one, or give this one a [journal] path of its own"
    )]
    Held(PathBuf),
    /// The file system says no.
    #[error(
        "the journal {path} cannot be used: {error}; see that the directory can be written and the disk is not full"
    )]
    Io {
        /// The directory.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
}

/// An epoch that the journal holds, in part or whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Which.
    pub epoch: Epoch,
    /// Lowest number held.
    pub first: u64,
    /// Highest number; `first` - 1 when there is none.
    pub last: u64,
}

/// A message as it was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number in the epoch.
    pub seq: u64,
    /// The number of this meter's previous message; 0: none.
    pub prev: u64,
    /// The meter's name.
    pub meter: String,
    /// See `payload::body`.
    pub body: String,
}

/// What one segment holds.
#[derive(Debug)]
struct Segment {
    number: u64,
    epoch: Epoch,
    first: u64,
    last: u64,
    bytes: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    max_bytes: u64,
    segments: VecDeque<Segment>,
    current: File,
    last_of: HashMap<String, u64>,
    cursor: Option<Cursor>,
    dirty: bool,
    // Held for as long as the journal lives.
    _lock: File,
}

/// A place in a segment from which reading goes on.
#[derive(Debug)]
struct Cursor {
    number: u64,
    next: u64,
    file: BufReader<File>,
}

impl Journal {
    /// Opens the journal in `dir` for a new epoch, making the directory if need be. Returns it with
    /// what it holds of earlier epochs, oldest first, and what was found damaged.
    pub fn open(dir: &Path, epoch: Epoch, max_bytes: u64) -> Result<(Self, Vec<Held>, Vec<String>), JournalError> {
        let failed = |error| JournalError::Io { path: dir.to_owned(), error };
        fs::create_dir_all(dir).map_err(failed)?;
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).open(dir.join("lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(JournalError::Held(dir.to_owned())),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let mut damage = Vec::new();
        let mut segments = VecDeque::new();
        let mut numbers: Vec<u64> = fs::read_dir(dir)
            .map_err(failed)?
            .filter_map(|entry| {
                u64::from_str_radix(entry.ok()?.file_name().to_str()?.strip_suffix(".segment")?, 16).ok()
            })
            .collect();
        numbers.sort_unstable();
        for &number in &numbers {
            let path = segment_path(dir, number);
            match recover(&path, number, &mut damage).map_err(failed)? {
                Some(segment) if segment.last >= segment.first => segments.push_back(segment),
                Some(_) => fs::remove_file(&path).map_err(failed)?,
                None => {
                    damage.push(format!("{} is no segment: left as {0}.damaged", path.display()));
                    fs::rename(&path, path.with_extension("segment.damaged")).map_err(failed)?;
                }
            }
        }
        let mut held: Vec<Held> = Vec::new();
        for segment in &segments {
            match held.last_mut() {
                Some(run) if run.epoch == segment.epoch => run.last = segment.last,
                _ => held.push(Held { epoch: segment.epoch, first: segment.first, last: segment.last }),
            }
        }
        let number = numbers.last().map_or(0, |last| last.saturating_add(1));
        let current = create(dir, number, epoch, 1).map_err(failed)?;
        segments.push_back(Segment { number, epoch, first: 1, last: 0, bytes: HEADER });
        let journal = Self {
            dir: dir.to_owned(),
            max_bytes,
            segments,
            current,
            last_of: HashMap::new(),
            cursor: None,
            dirty: false,
            _lock: lock,
        };
        Ok((journal, held, damage))
    }

    /// Writes messages, given as meter and body, under the next numbers of the epoch; returns those.
    /// All or nothing: after an error the journal is as before.
    pub fn append(&mut self, messages: &[(&str, &str)]) -> io::Result<Vec<(u64, u64)>> {
        if self.segments.back().is_some_and(|segment| segment.bytes >= SEGMENT.min(self.max_bytes / 4)) {
            self.next_segment()?;
        }
        let Some(segment) = self.segments.back_mut() else { return Err(io::Error::other("no segment")) };
        let mut numbers = Vec::with_capacity(messages.len());
        let mut buffer = Vec::with_capacity(messages.iter().map(|(_, body)| body.len().saturating_add(96)).sum());
        let mut last_of: HashMap<&str, u64> = HashMap::new();
        for (index, (meter, body)) in (1u64..).zip(messages) {
            let seq = segment.last.saturating_add(index);
            let prev = last_of.get(meter).or_else(|| self.last_of.get(*meter)).copied().unwrap_or(0);
            last_of.insert(meter, seq);
            numbers.push((seq, prev));
            push_record(&mut buffer, seq, prev, meter, body)?;
        }
        if let Err(error) = self.current.write_all(&buffer) {
            // Part of it may stand in the file: cut it off, so that what follows can be read.
            self.current.set_len(segment.bytes)?;
            self.current.seek(SeekFrom::Start(segment.bytes))?;
            return Err(error);
        }
        segment.bytes = segment.bytes.saturating_add(buffer.len() as u64);
        segment.last = segment.last.saturating_add(messages.len() as u64);
        self.dirty = true;
        if self.last_of.len() > MOST_METERS {
            self.last_of.clear();
        }
        for (meter, seq) in last_of {
            match self.last_of.get_mut(meter) {
                Some(last) => *last = seq,
                None => drop(self.last_of.insert(meter.to_owned(), seq)),
            }
        }
        Ok(numbers)
    }

    fn next_segment(&mut self) -> io::Result<()> {
        let Some(last) = self.segments.back() else { return Ok(()) };
        let (number, epoch, first) = (last.number.saturating_add(1), last.epoch, last.last.saturating_add(1));
        self.current.sync_data()?;
        self.current = create(&self.dir, number, epoch, first)?;
        self.segments.push_back(Segment { number, epoch, first, last: first.saturating_sub(1), bytes: HEADER });
        Ok(())
    }

    /// Removes the oldest segment if the journal is larger than it may be. Returns what its epoch still
    /// holds, an empty range when nothing; call again until None.
    pub fn trim(&mut self) -> io::Result<Option<Held>> {
        let total: u64 = self.segments.iter().fold(0, |sum, segment| sum.saturating_add(segment.bytes));
        if total <= self.max_bytes || self.segments.len() < 2 {
            return Ok(None);
        }
        let Some(oldest) = self.segments.pop_front() else { return Ok(None) };
        self.cursor = None;
        let first = oldest.last.saturating_add(1);
        let last =
            self.segments.iter().filter(|segment| segment.epoch == oldest.epoch).map(|segment| segment.last).max();
        fs::remove_file(segment_path(&self.dir, oldest.number))?;
        Ok(Some(Held { epoch: oldest.epoch, first, last: last.unwrap_or(oldest.last) }))
    }

    /// Reads a message. None when the journal does not hold it, or no longer can read it.
    pub fn read(&mut self, epoch: Epoch, seq: u64) -> io::Result<Option<Record>> {
        let holds = |segment: &&Segment| segment.epoch == epoch && segment.first <= seq && seq <= segment.last;
        let Some(segment) = self.segments.iter().find(holds) else { return Ok(None) };
        let mut cursor = match self.cursor.take() {
            Some(cursor) if cursor.number == segment.number && cursor.next <= seq => cursor,
            _ => {
                let mut file = BufReader::with_capacity(1 << 16, File::open(segment_path(&self.dir, segment.number))?);
                file.seek(SeekFrom::Start(HEADER))?;
                Cursor { number: segment.number, next: segment.first, file }
            }
        };
        loop {
            let Some(content) = read_content(&mut cursor.file)? else { return Ok(None) };
            let Some(record) = parse_content(&content) else { return Ok(None) };
            cursor.next = record.seq.saturating_add(1);
            if record.seq >= seq {
                let found = record.seq == seq;
                self.cursor = Some(cursor);
                return Ok(found.then_some(record));
            }
        }
    }

    /// A handle by which what was written can be synced outside this thread; None when nothing was
    /// written since the last call.
    pub fn sync_file(&mut self) -> io::Result<Option<File>> {
        if std::mem::take(&mut self.dirty) { self.current.try_clone().map(Some) } else { Ok(None) }
    }
}

fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}.segment"))
}

fn create(dir: &Path, number: u64, epoch: Epoch, first: u64) -> io::Result<File> {
    let mut file = OpenOptions::new().create_new(true).write(true).open(segment_path(dir, number))?;
    let mut header = Vec::with_capacity(HEADER as usize);
    header.extend_from_slice(&MAGIC);
    header.extend_from_slice(&epoch.bits().to_be_bytes());
    header.extend_from_slice(&first.to_le_bytes());
    file.write_all(&header)?;
    // The name of the file must survive as well.
    File::open(dir)?.sync_all()?;
    Ok(file)
}

fn push_record(buffer: &mut Vec<u8>, seq: u64, prev: u64, meter: &str, body: &str) -> io::Result<()> {
    let too_long = || io::Error::new(io::ErrorKind::InvalidInput, "a message is too long for the journal");
    let name = u16::try_from(meter.len()).map_err(|_| too_long())?;
    let mut content = Vec::with_capacity(FIXED.saturating_add(meter.len()).saturating_add(body.len()));
    content.extend_from_slice(&seq.to_le_bytes());
    content.extend_from_slice(&prev.to_le_bytes());
    content.extend_from_slice(&name.to_le_bytes());
    content.extend_from_slice(meter.as_bytes());
    content.extend_from_slice(body.as_bytes());
    let length = u32::try_from(content.len()).ok().filter(|&length| length <= MAX_RECORD).ok_or_else(too_long)?;
    buffer.extend_from_slice(&length.to_le_bytes());
    buffer.extend_from_slice(&CASTAGNOLI.checksum(&content).to_le_bytes());
    buffer.extend_from_slice(&content);
    Ok(())
}

/// The content of the record at which `file` stands. None at the end, or where no whole record is.
fn read_content(file: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut frame = [0u8; FRAME as usize];
    if !read_whole(file, &mut frame)? {
        return Ok(None);
    }
    let [length, checksum] =
        [frame.first_chunk::<4>(), frame.last_chunk::<4>()].map(|part| part.copied().map_or(0, u32::from_le_bytes));
    if length > MAX_RECORD {
        return Ok(None);
    }
    let mut content = vec![0u8; length as usize];
    let whole = read_whole(file, &mut content)? && CASTAGNOLI.checksum(&content) == checksum;
    Ok(whole.then_some(content))
}

/// Whether all of `buffer` could be filled before the end.
fn read_whole(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn parse_content(content: &[u8]) -> Option<Record> {
    let (seq, rest) = content.split_first_chunk::<8>()?;
    let (prev, rest) = rest.split_first_chunk::<8>()?;
    let (name, rest) = rest.split_first_chunk::<2>()?;
    let (meter, body) = rest.split_at_checked(usize::from(u16::from_le_bytes(*name)))?;
    Some(Record {
        seq: u64::from_le_bytes(*seq),
        prev: u64::from_le_bytes(*prev),
        meter: String::from_utf8(meter.to_vec()).ok()?,
        body: String::from_utf8(body.to_vec()).ok()?,
    })
}

/// Reads through a segment that an earlier run left, and cuts off what is not whole. None when it is no
/// segment at all.
fn recover(path: &Path, number: u64, damage: &mut Vec<String>) -> io::Result<Option<Segment>> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    let mut reader = BufReader::with_capacity(1 << 18, &file);
    let mut header = [0u8; HEADER as usize];
    if !read_whole(&mut reader, &mut header)? || !header.starts_with(&MAGIC) {
        // A header that was never finished held no record.
        let torn = length < HEADER;
        return Ok(torn.then(|| Segment { number, epoch: Epoch::from_bits(0), first: 1, last: 0, bytes: length }));
    }
    let epoch = header.get(8..24).and_then(|bits| bits.first_chunk()).map_or(0, |bits| u128::from_be_bytes(*bits));
    let first = header.last_chunk().map_or(0, |first| u64::from_le_bytes(*first));
    let mut segment =
        Segment { number, epoch: Epoch::from_bits(epoch), first, last: first.saturating_sub(1), bytes: HEADER };
    while let Some(content) = read_content(&mut reader)? {
        match parse_content(&content) {
            Some(record) if record.seq == segment.last.saturating_add(1) => segment.last = record.seq,
            _ => break,
        }
        segment.bytes = segment.bytes.saturating_add(FRAME).saturating_add(content.len() as u64);
    }
    if segment.bytes < length {
        damage.push(format!(
            "{}: cut off {} bytes that are no whole record",
            path.display(),
            length.saturating_sub(segment.bytes)
        ));
        file.set_len(segment.bytes)?;
        file.sync_data()?;
    }
    Ok(Some(segment))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Epoch = Epoch::from_bits(0xA);
    const B: Epoch = Epoch::from_bits(0xB);

    fn open(dir: &Path, epoch: Epoch) -> (Journal, Vec<Held>, Vec<String>) {
        Journal::open(dir, epoch, 1 << 30).unwrap()
    }

    #[test]
    fn numbers_follow_the_meter_and_records_read_back_in_any_order() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, held, damage) = open(dir.path(), A);
        assert!(held.is_empty() && damage.is_empty());
        assert_eq!(journal.append(&[("e", "1"), ("g", "2"), ("e", "3")]).unwrap(), [(1, 0), (2, 0), (3, 1)]);
        assert_eq!(journal.append(&[("g", "4")]).unwrap(), [(4, 2)]);
        for seq in [3, 1, 4, 2, 2] {
            let record = journal.read(A, seq).unwrap().unwrap();
            assert_eq!((record.seq, record.body), (seq, seq.to_string()));
        }
        assert_eq!(journal.read(A, 5).unwrap(), None);
        assert_eq!(journal.read(B, 1).unwrap(), None);
    }

    #[test]
    fn a_restart_finds_what_was_there_and_begins_a_new_epoch() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path(), A).0.append(&[("e", "1"), ("e", "2")]).unwrap();
        drop(open(dir.path(), Epoch::from_bits(0xE)));
        let (mut journal, held, damage) = open(dir.path(), B);
        assert_eq!(held, [Held { epoch: A, first: 1, last: 2 }]);
        assert!(damage.is_empty());
        assert_eq!(journal.append(&[("e", "x")]).unwrap(), [(1, 0)]);
        assert_eq!(journal.read(A, 2).unwrap().unwrap().body, "2");
        assert_eq!(journal.read(B, 1).unwrap().unwrap().body, "x");
    }

    #[test]
    fn a_torn_end_is_cut_wherever_it_tore() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path(), A).0.append(&[("e", "first"), ("e", "second")]).unwrap();
        let path = segment_path(dir.path(), 0);
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            let dir = tempfile::tempdir().unwrap();
            fs::write(segment_path(dir.path(), 0), &whole[..length]).unwrap();
            let (mut journal, held, _) = open(dir.path(), B);
            let kept = held.first().map_or(0, |run| run.last);
            assert_eq!(kept, u64::from(length >= 32 + 8 + 18 + 6), "{length} bytes");
            journal.append(&[("e", "new")]).unwrap();
            assert_eq!(journal.read(B, 1).unwrap().unwrap().body, "new");
        }
    }

    #[test]
    fn a_flipped_bit_ends_what_is_believed() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path(), A).0.append(&[("e", "first"), ("e", "second")]).unwrap();
        let path = segment_path(dir.path(), 0);
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&path, bytes).unwrap();
        let (_, held, damage) = open(dir.path(), B);
        assert_eq!(held, [Held { epoch: A, first: 1, last: 1 }]);
        assert_eq!(damage.len(), 1);
    }

    #[test]
    fn foreign_files_are_set_aside_and_a_second_process_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(segment_path(dir.path(), 3), vec![7u8; 100]).unwrap();
        let (_journal, held, damage) = open(dir.path(), A);
        assert!(held.is_empty());
        assert_eq!(damage.len(), 1);
        assert!(matches!(Journal::open(dir.path(), B, 1 << 30), Err(JournalError::Held(_))));
    }

    #[test]
    fn when_full_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _, _) = Journal::open(dir.path(), A, 4096).unwrap();
        let body = "x".repeat(200);
        let mut first = 1;
        for seq in 1..=100 {
            assert_eq!(journal.append(&[("e", &body)]).unwrap()[0].0, seq);
            while let Some(held) = journal.trim().unwrap() {
                assert_eq!((held.epoch, held.last), (A, seq));
                first = held.first;
            }
        }
        assert!(first > 80, "{first}");
        assert_eq!(journal.read(A, first - 1).unwrap(), None);
        assert_eq!(journal.read(A, first).unwrap().unwrap().seq, first);
        let size: u64 = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        assert!(size <= 4096 + 1024, "{size}");
    }
}
