//! The journal: what was accepted and is not yet known to be stored, on disk.
//!
//! Enters: reports, as they were accepted. Leaves: the same, by epoch and number, in any order and as
//! often as asked. *Accepted* means written to the file, which survives a crash of the process; *durable*
//! means synced, which survives a power cut ([`Journal::begin_sync`]).
//!
//! A directory of segments, `<number>.segment`, each a row of blocks of one epoch and filled in turn;
//! `block` says what is in them. A segment's place is taken when it begins, and a block is filled with zeros
//! before its first message, so that a sync need not tell the file system of anything but the data.
//!
//! - A torn end (a power cut in the middle of a write) is cut off when the journal is opened, and said.
//!   A damaged place costs the messages in it, at most those of its block.
//! - A failed sync may have thrown away what was to be written, and the next one succeeds as if nothing
//!   were missing. So what is not known to be durable stays in memory, and after a failed sync goes into
//!   a new segment.
//! - When the journal is full, or the disk nearly, its oldest confirmed segment goes; when there is
//!   none, its oldest.
//!
//! Not supported: network file systems that know no locks; segments of the time before blocks (`MKJ1`).

use std::{
    collections::{HashMap, VecDeque},
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FallocateFlags, fallocate, fstatvfs},
    io::Errno,
};

use crate::{delivery::Epoch, moment::Moment, reading::Report};

mod block;
#[cfg(test)]
mod tests;

use block::{Block, Filling, Full, HEADER, Header, UNIT};

/// The room that a segment takes at once.
const SEGMENT: u64 = 4 << 20;
/// Most bytes that wait for a sync; a journal that cannot be synced takes no more.
const MOST_PENDING: usize = 16 << 20;
/// Segments that stay though the disk is nearly full: about two days at a telegram a second.
const FEWEST: usize = 4;
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

/// How much a journal may hold.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Bytes of all segments.
    pub max_bytes: u64,
    /// Bytes of the disk that are left to others: with fewer free it stops growing.
    pub keep_free: u64,
}

/// An epoch that the journal holds, in part or whole; or a part of one that it gave up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Which.
    pub epoch: Epoch,
    /// Lowest number.
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
    /// When its telegram was received, UTC with milliseconds.
    pub received_at: Moment,
    /// What the meter said.
    pub report: Report<String>,
}

/// What one segment holds.
#[derive(Debug)]
struct Segment {
    number: u64,
    epoch: Epoch,
    first: u64,
    last: u64,
    /// The room that it takes.
    bytes: u64,
}

/// The segment that is written.
#[derive(Debug)]
struct Current {
    number: u64,
    file: File,
    /// Where its last block begins.
    at: u64,
    filling: Filling,
}

/// See the module.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    bounds: Bounds,
    epoch: Epoch,
    /// The highest number given.
    last: u64,
    segments: VecDeque<Segment>,
    /// The last of `segments`; None before the first message.
    current: Option<Current>,
    last_of: HashMap<String, u64>,
    cursor: Option<Cursor>,
    /// Blocks before the current one that are not known to be durable, with their last numbers.
    pending: VecDeque<(u64, Vec<u8>)>,
    /// What the next sync has to sync.
    unsynced: Unsynced,
    /// What waits for a sync has to be written again before anything is synced.
    rewrite_due: bool,
    /// The segment into which it was written again, as long as that was not synced.
    copy: Option<u64>,
    /// Segments of which everything stands in that one: they go when it is durable.
    superseded: Vec<u64>,
    /// How many segments have to go because the disk is nearly full.
    owed: usize,
    // Held for as long as the journal lives.
    _lock: File,
}

#[derive(Debug, Default)]
struct Unsynced {
    /// Segments that were filled.
    filled: Vec<File>,
    /// The current one.
    current: bool,
    /// The directory: a file's name must survive as well.
    names: bool,
}

/// A sync that is to be carried out, on any thread.
#[derive(Debug)]
pub struct Sync {
    files: Vec<File>,
    /// The highest number that it makes durable.
    through: u64,
}

impl Sync {
    /// Carries it out: takes as long as the disk does. Tell the journal how it went.
    pub fn run(self) -> io::Result<Synced> {
        for file in &self.files {
            file.sync_data()?;
        }
        Ok(Synced { through: self.through })
    }
}

/// A sync that went well.
#[derive(Debug)]
pub struct Synced {
    through: u64,
}

/// The segment that was read last.
#[derive(Debug)]
struct Cursor {
    number: u64,
    file: File,
    /// Where its blocks begin, and their first numbers.
    blocks: Vec<(u64, Header)>,
    /// The block that was read last, by its place.
    block: Option<(u64, Block)>,
}

impl Journal {
    /// Opens the journal in `dir` for a new epoch, making the directory if need be. Returns it with
    /// what it holds of earlier epochs, oldest first, and what was found damaged.
    pub fn open(dir: &Path, epoch: Epoch, bounds: Bounds) -> Result<(Self, Vec<Held>, Vec<String>), JournalError> {
        let failed = |error| JournalError::Io { path: dir.to_owned(), error };
        fs::create_dir_all(dir).map_err(failed)?;
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).open(dir.join("lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(JournalError::Held(dir.to_owned())),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let mut numbers: Vec<u64> = fs::read_dir(dir)
            .map_err(failed)?
            .filter_map(|entry| {
                u64::from_str_radix(entry.ok()?.file_name().to_str()?.strip_suffix(".segment")?, 16).ok()
            })
            .collect();
        numbers.sort_unstable();
        let mut damage = Vec::new();
        let mut segments: VecDeque<Segment> = VecDeque::new();
        for &number in &numbers {
            let path = segment_path(dir, number);
            match recover(&path, number, &mut damage) {
                Ok(Some(segment)) => {
                    let of_run = || segments.iter().filter(|before| before.epoch == segment.epoch);
                    if of_run().any(|before| before.last >= segment.first) {
                        // What was written again after a failed sync stands in the later one, unless that is torn.
                        if of_run().any(|before| before.last > segment.last) {
                            let _ = fs::remove_file(path);
                            continue;
                        }
                        // Nothing goes before its copy is durable.
                        if let Err(error) = File::open(&path).and_then(|file| file.sync_all()) {
                            damage.push(format!("{}: cannot be synced: {error}", path.display()));
                        }
                        for before in segments.iter_mut().filter(|before| before.epoch == segment.epoch) {
                            before.last = before.last.min(segment.first.saturating_sub(1));
                        }
                    }
                    segments.push_back(segment);
                }
                Ok(None) => {}
                // Never a reason not to start: what it holds is missing, and the next start looks again.
                Err(error) => damage.push(format!("{}: left as it is: {error}", path.display())),
            }
        }
        segments.retain(|segment| {
            let holds = segment.first <= segment.last;
            if !holds {
                let _ = fs::remove_file(segment_path(dir, segment.number));
            }
            holds
        });
        let mut held: Vec<Held> = Vec::new();
        for segment in &segments {
            match held.last_mut() {
                Some(run) if run.epoch == segment.epoch => run.last = segment.last,
                _ => held.push(Held { epoch: segment.epoch, first: segment.first, last: segment.last }),
            }
        }
        let journal = Self {
            dir: dir.to_owned(),
            bounds,
            epoch,
            last: 0,
            segments,
            current: None,
            last_of: HashMap::new(),
            cursor: None,
            pending: VecDeque::new(),
            unsynced: Unsynced::default(),
            rewrite_due: false,
            copy: None,
            superseded: Vec::new(),
            owed: 0,
            _lock: lock,
        };
        Ok((journal, held, damage))
    }

    /// Writes messages under the next numbers of the epoch. Returns number and `prev` of each that was
    /// written, from the first on; when that is not all of them, the error says why. After an error the
    /// rest may be given again.
    pub fn append<'m>(
        &mut self,
        messages: impl IntoIterator<Item = (&'m Report<String>, Moment)>,
    ) -> (Vec<(u64, u64)>, io::Result<()>) {
        let mut messages = messages.into_iter().peekable();
        let mut numbers = Vec::new();
        while messages.peek().is_some() {
            if let Err(error) = self.fill(&mut messages, &mut numbers) {
                return (numbers, Err(error));
            }
        }
        (numbers, Ok(()))
    }

    /// Fills the current block with as many messages as it takes, and writes them.
    fn fill<'m>(
        &mut self,
        messages: &mut std::iter::Peekable<impl Iterator<Item = (&'m Report<String>, Moment)>>,
        numbers: &mut Vec<(u64, u64)>,
    ) -> io::Result<()> {
        if self.pending.iter().map(|(_, block)| block.len()).sum::<usize>() > MOST_PENDING {
            return Err(io::Error::other("what was written before cannot be made to last"));
        }
        if self.current.is_none() {
            self.next_segment()?;
        }
        let Some(current) = &mut self.current else { return Err(io::Error::other("no segment")) };
        let mark = current.filling.mark();
        let (mut last, mut last_of, before) = (self.last, HashMap::new(), numbers.len());
        let mut full = None;
        while let Some((report, received_at)) = messages.peek() {
            let seq = last.saturating_add(1);
            let meter = report.meter.as_str();
            let prev = last_of.get(meter).or_else(|| self.last_of.get(meter)).copied().unwrap_or(0);
            if let Err(reason) = current.filling.push(seq, prev, report, *received_at) {
                full = Some(reason);
                break;
            }
            last = seq;
            last_of.insert(meter, seq);
            numbers.push((seq, prev));
            messages.next();
        }
        let length = current.filling.length() as u64;
        let Some(news) = current.filling.bytes().get(mark.length()..) else { return Ok(()) };
        if !news.is_empty() {
            // A message that is longer than a block may reach beyond the room that was taken.
            let written = current.file.write_all_at(news, current.at.saturating_add(mark.length() as u64));
            if let Err(error) = written {
                // What stands there now is written over, by this or another message of the same number.
                current.filling.cut(mark);
                numbers.truncate(before);
                return Err(error);
            }
            self.unsynced.current = true;
            self.last = last;
            if let Some(segment) = self.segments.back_mut() {
                segment.last = last;
                segment.bytes = segment.bytes.max(current.at.saturating_add(length));
            }
            if self.last_of.len() > MOST_METERS {
                self.last_of.clear();
            }
            for (meter, seq) in last_of {
                match self.last_of.get_mut(meter) {
                    Some(last) => *last = seq,
                    None => drop(self.last_of.insert(meter.to_owned(), seq)),
                }
            }
        }
        match full {
            Some(Full::TooLong) => {
                Err(io::Error::new(io::ErrorKind::InvalidInput, "a message is too long for the journal"))
            }
            Some(Full::NextBlock) => self.next_block(),
            None => Ok(()),
        }
    }

    /// Begins the next block, in the next segment if this one has no room.
    fn next_block(&mut self) -> io::Result<()> {
        let room = self.room();
        let Some(current) = &mut self.current else { return Ok(()) };
        let at = current.at.saturating_add(current.filling.length() as u64);
        if at.saturating_add(UNIT as u64) > room {
            return self.next_segment();
        }
        let zeros = vec![0; UNIT];
        current.file.write_all_at(&zeros, at)?;
        let next = Filling::new(self.epoch, self.last.saturating_add(1));
        let filled = std::mem::replace(&mut current.filling, next);
        current.at = at;
        self.pending.push_back((self.last, filled.into_bytes()));
        Ok(())
    }

    /// Begins the next segment.
    fn next_segment(&mut self) -> io::Result<()> {
        let number = self.segments.back().map_or(0, |last| last.number.saturating_add(1)).max(self.next_number());
        let room = self.room();
        let file = create(&self.dir, number, room)?;
        self.unsynced.names = true;
        let filling = Filling::new(self.epoch, self.last.saturating_add(1));
        let first = filling.first();
        if let Some(filled) = self.current.replace(Current { number, file, at: 0, filling }) {
            let length = filled.at.saturating_add(filled.filling.bytes().len() as u64);
            // Gives back what it did not need. Where that fails it is larger than it need be.
            if filled.file.set_len(length).is_ok()
                && let Some(segment) = self.segments.back_mut()
            {
                segment.bytes = length;
            }
            self.unsynced.filled.push(filled.file);
            self.pending.push_back((self.last, filled.filling.into_bytes()));
        }
        self.segments.push_back(Segment { number, epoch: self.epoch, first, last: self.last, bytes: room });
        self.owed = self.owed.saturating_add(usize::from(self.is_disk_full()));
        Ok(())
    }

    /// A number that no file in the directory has: a segment that could not be read still has its own.
    fn next_number(&self) -> u64 {
        let names = fs::read_dir(&self.dir).into_iter().flatten();
        let numbers = names.filter_map(|entry| {
            let name = entry.ok()?.file_name();
            u64::from_str_radix(name.to_str()?.split_once(".segment")?.0, 16).ok()
        });
        numbers.max().map_or(0, |last| last.saturating_add(1))
    }

    /// The room of a segment.
    fn room(&self) -> u64 {
        let unit = UNIT as u64;
        SEGMENT.min(self.bounds.max_bytes / 4 / unit * unit).max(unit)
    }

    /// Whether less of the disk is free than shall be.
    fn is_disk_full(&self) -> bool {
        let free = self.current.as_ref().and_then(|current| fstatvfs(&current.file).ok());
        free.is_some_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < self.bounds.keep_free)
    }

    /// Whether so much waits for a sync that it should not wait for its time.
    pub fn is_sync_due(&self) -> bool {
        self.pending.len().saturating_mul(UNIT) >= 1 << 20
    }

    /// What has to be synced; None when nothing was written since the last call. Only one at a time.
    pub fn begin_sync(&mut self) -> io::Result<Option<Sync>> {
        if self.rewrite_due {
            self.write_again()?;
        }
        let mut files = Vec::new();
        if self.unsynced.current
            && let Some(current) = &self.current
        {
            files.push(current.file.try_clone()?);
        }
        if self.unsynced.names {
            files.push(File::open(&self.dir)?);
        }
        files.append(&mut self.unsynced.filled);
        self.unsynced = Unsynced::default();
        Ok((!files.is_empty()).then_some(Sync { files, through: self.last }))
    }

    /// A sync went well: what it made durable need not be remembered any more.
    pub fn synced(&mut self, synced: &Synced) {
        while self.pending.front().is_some_and(|&(last, _)| last <= synced.through) {
            self.pending.pop_front();
        }
        self.copy = None;
        for number in self.superseded.drain(..) {
            // Where it cannot be removed, the next start finds the same messages in the later one.
            let _ = fs::remove_file(segment_path(&self.dir, number));
        }
    }

    /// A sync failed: what it should have made durable may be lost, also where it can still be read. All of
    /// it is written again, into a new segment; then sync that. After an error the next sync tries again.
    pub fn write_again(&mut self) -> io::Result<()> {
        (self.unsynced.current, self.rewrite_due) = (true, true);
        let number = self.next_number();
        let Some(current) = &mut self.current else { return Ok(()) };
        let blocks = self.pending.iter().map(|(_, block)| block.as_slice());
        let blocks: Vec<&[u8]> = blocks.chain([current.filling.bytes()]).collect();
        let first = blocks.first().and_then(|block| Header::read(block)).map_or(1, |header| header.first);
        let lengths = blocks.iter().map(|block| block.len().next_multiple_of(UNIT) as u64);
        let length = lengths.sum::<u64>();
        let file = create(&self.dir, number, length.max(SEGMENT.min(self.bounds.max_bytes / 4)))?;
        let mut at = 0;
        for (index, block) in (1..).zip(&blocks) {
            if let Err(error) = file.write_all_at(block, at) {
                let _ = fs::remove_file(segment_path(&self.dir, number));
                return Err(error);
            }
            if index < blocks.len() {
                at = at.saturating_add(block.len().next_multiple_of(UNIT) as u64);
            }
        }
        current.file = file;
        current.number = number;
        current.at = at;
        self.cursor = None;
        self.unsynced.names = true;
        for segment in self.segments.iter_mut().filter(|segment| segment.epoch == self.epoch) {
            segment.last = segment.last.min(first.saturating_sub(1));
        }
        let (dir, superseded) = (&self.dir, &mut self.superseded);
        self.segments.retain(|segment| {
            let holds = segment.first <= segment.last;
            if !holds && self.copy == Some(segment.number) {
                let _ = fs::remove_file(segment_path(dir, segment.number));
            } else if !holds {
                // Some of it may be durable, and the new one is not yet.
                superseded.push(segment.number);
            }
            holds
        });
        (self.copy, self.rewrite_due) = (Some(number), false);
        let bytes = length.max(self.room());
        self.segments.push_back(Segment { number, epoch: self.epoch, first, last: self.last, bytes });
        Ok(())
    }

    /// Gives up a segment if the journal is larger than it may be, or the disk nearly full. `is_confirmed`
    /// says of an epoch's numbers whether all listed stores have them: the oldest such segment goes, and if
    /// there is none the oldest, provided that `may_lose`. Returns what is gone; call again until None.
    pub fn trim(&mut self, may_lose: bool, is_confirmed: impl Fn(&Held) -> bool) -> io::Result<Option<Held>> {
        let total: u64 = self.segments.iter().fold(0, |sum, segment| sum.saturating_add(segment.bytes));
        if total > self.bounds.max_bytes {
            return self.give_up_oldest(may_lose, is_confirmed);
        }
        if self.owed == 0 {
            return Ok(None);
        }
        if self.segments.len() <= FEWEST {
            self.owed = 0;
            return Ok(None);
        }
        let gone = self.give_up_oldest(may_lose, is_confirmed)?;
        self.owed = self.owed.saturating_sub(usize::from(gone.is_some()));
        Ok(gone)
    }

    /// Gives up a segment, as [`trim`](Self::trim) does, whatever the journal's size. None when there is only the one
    /// that is written, or none that may go.
    pub fn give_up_oldest(&mut self, may_lose: bool, is_confirmed: impl Fn(&Held) -> bool) -> io::Result<Option<Held>> {
        let others = self.segments.len().saturating_sub(usize::from(self.current.is_some()));
        let held = |segment: &Segment| Held { epoch: segment.epoch, first: segment.first, last: segment.last };
        let confirmed = self.segments.iter().take(others).position(|segment| is_confirmed(&held(segment)));
        let Some(index) = confirmed.or(may_lose.then_some(0)).filter(|index| *index < others) else { return Ok(None) };
        let Some(segment) = self.segments.get(index) else { return Ok(None) };
        let gone = held(segment);
        // First the file: a segment that cannot be removed is still there to be read.
        match fs::remove_file(segment_path(&self.dir, segment.number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if self.cursor.as_ref().is_some_and(|cursor| cursor.number == segment.number) {
            self.cursor = None;
        }
        self.segments.remove(index);
        Ok(Some(gone))
    }

    /// The file in which a message stands, if the journal holds it.
    pub fn file_of(&self, epoch: Epoch, seq: u64) -> Option<PathBuf> {
        let holds = |segment: &&Segment| segment.epoch == epoch && segment.first <= seq && seq <= segment.last;
        self.segments.iter().find(holds).map(|segment| segment_path(&self.dir, segment.number))
    }

    /// Reads a message. None when the journal does not hold it, or its place is damaged.
    pub fn read(&mut self, epoch: Epoch, seq: u64) -> io::Result<Option<Record>> {
        let holds = |segment: &&Segment| segment.epoch == epoch && segment.first <= seq && seq <= segment.last;
        let Some(segment) = self.segments.iter().find(holds) else { return Ok(None) };
        let number = segment.number;
        if let Some(cursor) = self.cursor.as_mut().filter(|cursor| cursor.number == number)
            && let Some(record) = cursor.read(seq)?
        {
            return Ok(Some(record));
        }
        // It may stand in a block that was written, or grew, since.
        let mut cursor = Cursor::open(&self.dir, number)?;
        let record = cursor.read(seq)?;
        self.cursor = Some(cursor);
        Ok(record)
    }
}

impl Cursor {
    fn open(dir: &Path, number: u64) -> io::Result<Self> {
        let file = File::open(segment_path(dir, number))?;
        let blocks = blocks(&file)?;
        Ok(Self { number, file, blocks, block: None })
    }

    fn read(&mut self, seq: u64) -> io::Result<Option<Record>> {
        // Blocks that were written again may begin at the same number: the last one has more.
        let after = self.blocks.partition_point(|(_, header)| header.first <= seq);
        let Some(&(at, header)) = after.checked_sub(1).and_then(|index| self.blocks.get(index)) else {
            return Ok(None);
        };
        if self.block.as_ref().is_none_or(|&(place, _)| place != at) {
            self.block = read_block(&self.file, at, header)?.map(|block| (at, block));
        }
        Ok(self.block.as_mut().and_then(|(_, block)| block.read(seq)))
    }
}

fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}.segment"))
}

/// Makes a segment's file, and takes its room, so that what is written there later cannot lack it.
fn create(dir: &Path, number: u64, room: u64) -> io::Result<File> {
    let path = segment_path(dir, number);
    let file = OpenOptions::new().create_new(true).write(true).read(true).open(&path)?;
    let take = || match fallocate(&file, FallocateFlags::empty(), 0, room) {
        // Some file systems cannot; there a write may fail instead.
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => file.set_len(room),
        result => result.map_err(io::Error::from),
    };
    // Zeros: see the module.
    if let Err(error) = take().and_then(|()| file.write_all_at(&vec![0; UNIT], 0)) {
        let _ = fs::remove_file(&path);
        return Err(error);
    }
    Ok(file)
}

/// Where blocks begin in a segment, in order.
fn blocks(file: &File) -> io::Result<Vec<(u64, Header)>> {
    let length = file.metadata()?.len();
    let mut blocks: Vec<(u64, Header)> = Vec::new();
    let mut at = 0;
    while at < length {
        let mut bytes = [0; HEADER];
        let header = if read_at(file, &mut bytes, at)? == HEADER { Header::read(&bytes) } else { None };
        // Numbers ascend; anything else is no block of this segment.
        let header = header.filter(|header| {
            blocks.last().is_none_or(|(_, last)| last.epoch == header.epoch && last.first <= header.first)
        });
        let units = header.map_or(1, |header| header.units);
        blocks.extend(header.map(|header| (at, header)));
        at = at.saturating_add((units.saturating_mul(UNIT)) as u64);
    }
    Ok(blocks)
}

fn read_block(file: &File, at: u64, header: Header) -> io::Result<Option<Block>> {
    let mut bytes = vec![0; header.units.saturating_mul(UNIT)];
    let length = read_at(file, &mut bytes, at)?;
    bytes.truncate(length);
    Ok(Block::parse(bytes))
}

/// Reads until the buffer is full or the file ends; returns how much.
fn read_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut length = 0;
    while let Some(rest) = buffer.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at.saturating_add(length as u64)) {
            Ok(0) => break,
            Ok(count) => length = length.saturating_add(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// Looks at a segment that an earlier run left, and gives back the room behind its last message. None when it
/// holds nothing, or is no segment: then it is set aside.
fn recover(path: &Path, number: u64, damage: &mut Vec<String>) -> io::Result<Option<Segment>> {
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    let blocks = blocks(&file)?;
    let Some(&(_, first)) = blocks.first() else {
        if is_zero(&file)? {
            // Its first message was never written.
            fs::remove_file(path)?;
        } else {
            set_aside(path, damage)?;
        }
        return Ok(None);
    };
    let mut segment = Segment { number, epoch: first.epoch, first: first.first, last: 0, bytes: length };
    let mut expected = 0;
    for &(at, header) in &blocks {
        if at > expected {
            damage.push(format!(
                "{}: bytes {expected} to {at} are damaged; the messages there are lost and will be counted in `health`",
                path.display()
            ));
        }
        expected = at.saturating_add(header.units.saturating_mul(UNIT) as u64);
    }
    // The last block that has a message.
    for &(at, header) in blocks.iter().rev() {
        let Some(block) = read_block(&file, at, header)? else { continue };
        let end = at.saturating_add(block.end() as u64);
        if let Some(place) = block.damaged_at() {
            let (place, path) = (at.saturating_add(place as u64), path.display());
            damage.push(if place >= end {
                format!("{path}: at byte {place} is no whole message: cut off there, as after a power cut")
            } else {
                format!("{path}: at byte {place} is a damaged message, which is lost and will be counted in `health`")
            });
        }
        let Some(last) = block.last() else { continue };
        segment.last = last;
        segment.bytes = end;
        if end < length {
            file.set_len(end)?;
        }
        return Ok(Some(segment));
    }
    set_aside(path, damage)?;
    Ok(None)
}

fn set_aside(path: &Path, damage: &mut Vec<String>) -> io::Result<()> {
    damage.push(format!("{0} holds no message that can be read: set aside as {0}.damaged", path.display()));
    fs::rename(path, path.with_extension("segment.damaged"))
}

/// Whether there is nothing but zeros in a file.
fn is_zero(file: &File) -> io::Result<bool> {
    let mut buffer = vec![0; UNIT];
    let mut at = 0;
    loop {
        let length = read_at(file, &mut buffer, at)?;
        if length == 0 {
            return Ok(true);
        }
        if buffer.iter().take(length).any(|&byte| byte != 0) {
            return Ok(false);
        }
        at = at.saturating_add(length as u64);
    }
}
