//! Input files of every command: plain or gzip, a capture or anything that a telegram or a frame was written down in.
//!
//! Enters: a path, or `-` for standard input. Leaves, one after another: the lines of a capture with their places, or the bytes of a port
//! as a [`Transcript`] gets them back; and what could not be read. What a file is shows its beginning: gzip by its magic bytes, a
//! capture by [`capture::begins`]. Gzip members may stand one behind the other. A member that breaks off gives what was there.
//!
//! Reading blocks: a command that does something else meanwhile reads in a thread of its own.

use std::{
    fs::File,
    io::{self, BufReader, Cursor, Read},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use flate2::bufread::MultiGzDecoder;

use crate::{
    capture::{self, BadLine, Chunk, Entry, Opening, Wire},
    mbus,
    p1::{self, Form, Transcript},
};

/// What an input holds next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// In a capture: a port is recorded from here.
    Opening(Place, Opening),
    /// In a capture: what a port brought, and what is spoken there.
    Chunk(Place, Wire, Chunk),
    /// In anything else: bytes of a port.
    Bytes(Vec<u8>),
}

/// Where a line of a capture stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Place {
    /// Which one, from 1.
    pub(super) line: u64,
    /// Where it begins, in bytes since the capture began.
    pub(super) offset: u64,
}

/// What of an input could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// A line is no part of a capture; the next ones are read.
    #[error(transparent)]
    Line(BadLine),
    /// The rest of a gzip file is not there, or damaged. What came before it was given.
    #[error("gzip: {0}; everything before that was read")]
    Gzip(String),
    /// It cannot be read, or not to its end.
    #[error(transparent)]
    Io(io::Error),
}

/// An open input: an iterator over what it holds, in order. After [`Trouble::Gzip`] and [`Trouble::Io`] nothing comes any more.
pub(super) struct Input {
    bytes: Box<dyn Read + Send>,
    is_gzip: bool,
    position: Position,
    length: Option<u64>,
    buffer: Vec<u8>,
    content: Content,
    /// What is given when everything before it was.
    trouble: Option<Trouble>,
    has_ended: bool,
}

enum Content {
    /// Less than tells a capture from anything else.
    Doubt(Vec<u8>),
    Capture(capture::Reader),
    Plain(Transcript),
}

/// How far in its file an input was read, in bytes as they stand there, packed or not.
#[derive(Debug, Clone, Default)]
pub(super) struct Position(Arc<AtomicU64>);

impl Position {
    /// The bytes read so far.
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

struct Counted<R> {
    inner: R,
    position: Position,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.position.0.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

const GZIP: [u8; 2] = [0x1F, 0x8B];

impl Input {
    /// Opens a file, or standard input for `-`. Waits at a pipe until somebody writes into it.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        if path.as_os_str() == "-" {
            return Self::new(io::stdin(), None);
        }
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Err(io::Error::new(io::ErrorKind::IsADirectory, "is a directory"));
        }
        Self::new(file, metadata.is_file().then_some(metadata.len()))
    }

    /// Reads what a source gives. `length`: how many bytes that are, where it is known.
    pub(super) fn new(source: impl Read + Send + 'static, length: Option<u64>) -> io::Result<Self> {
        let position = Position::default();
        let mut source = Counted { inner: source, position: position.clone() };
        let mut begin = Vec::new();
        // A pipe may give them one by one.
        source.by_ref().take(GZIP.len() as u64).read_to_end(&mut begin)?;
        let is_gzip = begin == GZIP;
        let source = Cursor::new(begin).chain(source);
        let bytes: Box<dyn Read + Send> = if is_gzip {
            Box::new(MultiGzDecoder::new(BufReader::with_capacity(64 * 1024, source)))
        } else {
            Box::new(source)
        };
        Ok(Self {
            bytes,
            is_gzip,
            position,
            length,
            buffer: vec![0; 64 * 1024],
            content: Content::Doubt(Vec::new()),
            trouble: None,
            has_ended: false,
        })
    }

    /// How far it was read; goes on while it is read elsewhere.
    pub(super) fn position(&self) -> Position {
        self.position.clone()
    }

    /// How long the file is; None for pipes and standard input.
    pub(super) fn length(&self) -> Option<u64> {
        self.length
    }

    /// Whether it is a capture; false also while nothing was read.
    pub(super) fn is_capture(&self) -> bool {
        matches!(self.content, Content::Capture(_))
    }

    /// The form of what is no capture, and how many lines of a log were no part of a telegram: known at the end.
    pub(super) fn form(&self) -> Option<(Form, u64)> {
        match &self.content {
            Content::Plain(transcript) => Some((transcript.form()?, transcript.left_out())),
            _ => None,
        }
    }

    /// Takes in what was read; gives the bytes of what is no capture.
    fn take(&mut self, count: usize) -> Vec<u8> {
        let read = self.buffer.get(..count).unwrap_or_default();
        match &mut self.content {
            Content::Capture(reader) => reader.push(read),
            Content::Plain(transcript) => return transcript.push(read),
            Content::Doubt(held) => {
                held.extend_from_slice(read);
                let Some(is_capture) = capture::begins(held) else { return Vec::new() };
                let held = std::mem::take(held);
                return self.decide(is_capture, &held);
            }
        }
        Vec::new()
    }

    fn decide(&mut self, is_capture: bool, held: &[u8]) -> Vec<u8> {
        if is_capture {
            let mut reader = capture::Reader::new();
            reader.push(held);
            self.content = Content::Capture(reader);
            return Vec::new();
        }
        let mut transcript = Transcript::new();
        let bytes = transcript.push(held);
        self.content = Content::Plain(transcript);
        bytes
    }

    fn end(&mut self) -> Vec<u8> {
        self.has_ended = true;
        let mut bytes = Vec::new();
        if let Content::Doubt(held) = &mut self.content {
            let held = std::mem::take(held);
            bytes = self.decide(false, &held);
        }
        match &mut self.content {
            Content::Doubt(_) => {}
            Content::Capture(reader) => reader.end(),
            Content::Plain(transcript) => bytes.extend(transcript.end()),
        }
        bytes
    }
}

impl Iterator for Input {
    type Item = Result<Event, Trouble>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Content::Capture(reader) = &mut self.content {
                match reader.poll() {
                    None => {}
                    Some(Err(bad)) => return Some(Err(Trouble::Line(bad))),
                    Some(Ok((offset, entry))) => {
                        let place = Place { line: reader.line(), offset };
                        return Some(Ok(match entry {
                            Entry::Opening(opening) => Event::Opening(place, opening),
                            Entry::Chunk(chunk) => {
                                // The reader gives no chunk of a port without an opening.
                                let wire = reader.wire(&chunk.port).unwrap_or(Wire::P1);
                                Event::Chunk(place, wire, chunk)
                            }
                        }));
                    }
                }
            }
            if self.has_ended {
                return self.trouble.take().map(Err);
            }
            let bytes = match self.bytes.read(&mut self.buffer) {
                Ok(0) => self.end(),
                Ok(count) => self.take(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    self.trouble = Some(match error.kind() {
                        io::ErrorKind::UnexpectedEof if self.is_gzip => Trouble::Gzip(
                            "breaks off: the recorder was killed, or the file was not copied to its end".into(),
                        ),
                        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput if self.is_gzip => {
                            Trouble::Gzip(format!("damaged ({error})"))
                        }
                        _ => Trouble::Io(error),
                    });
                    self.end()
                }
            };
            if !bytes.is_empty() {
                return Some(Ok(Event::Bytes(bytes)));
            }
        }
    }
}

/// The beginning of the bytes of a port, while it is not known what is spoken there.
#[derive(Debug, Default)]
pub(super) struct Doubt {
    /// The bytes, but for those that were given up.
    pub(super) held: Vec<u8>,
    /// How far in `held` nothing begins.
    looked: usize,
    /// How many bytes before `held` were given up.
    pub(super) skipped: u64,
}

impl Doubt {
    /// More noise than that before the first header is told of, but not kept.
    const MOST: usize = 64 * 1024;

    /// Adds bytes; returns what begins first, if anything does: a P1 header, or the four bytes that an M-Bus frame begins with.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Option<Wire> {
        self.held.extend_from_slice(bytes);
        while let Some(rest) = self.held.get(self.looked..).filter(|rest| !rest.is_empty()) {
            match (p1::begins(rest), mbus::begins(rest)) {
                (Some(true), _) => return Some(Wire::P1),
                (_, Some(true)) => return Some(Wire::Mbus),
                (Some(false), Some(false)) => self.looked = self.looked.saturating_add(1),
                // More bytes are needed.
                _ => break,
            }
        }
        if self.looked > Self::MOST {
            self.held.drain(..self.looked);
            self.skipped = self.skipped.saturating_add(self.looked as u64);
            self.looked = 0;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    const OPENING: &str = r#"{"capture":1,"port":"bus","wire":"mbus","at":"2026-11-22T10:20:00.123456Z"}"#;
    const CHUNK: &str =
        r#"{"port":"bus","us":1500000,"at":"2026-11-22T10:20:01.623456Z","to":"meter","hex":"105bfe5916"}"#;

    fn packed(text: &[u8]) -> Vec<u8> {
        let mut packer = GzEncoder::new(Vec::new(), Compression::default());
        packer.write_all(text).unwrap();
        packer.finish().unwrap()
    }

    /// Gives a byte at a time, as a slow pipe.
    struct Slow(Cursor<Vec<u8>>);

    impl Read for Slow {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(&mut buffer[..1])
        }
    }

    /// What an input gives in short, however the bytes come.
    fn read(bytes: &[u8]) -> Vec<String> {
        let all = |mut input: Input| {
            let mut bytes = Vec::new();
            let mut said = Vec::new();
            for event in &mut input {
                match event {
                    Ok(Event::Bytes(more)) => bytes.extend(more),
                    Ok(Event::Opening(place, opening)) => said.push(format!("{} opens {}", place.line, opening.port)),
                    Ok(Event::Chunk(place, wire, chunk)) => {
                        said.push(format!("{}+{} {wire:?} {}", place.line, place.offset, chunk.us));
                    }
                    Err(trouble) => said.push(trouble.to_string()),
                }
            }
            assert!(input.next().is_none());
            if !input.is_capture() {
                said.insert(0, format!("{:?} {}", input.form(), String::from_utf8_lossy(&bytes)));
            }
            said
        };
        let slow = all(Input::new(Slow(Cursor::new(bytes.to_vec())), None).unwrap());
        let input = Input::new(Cursor::new(bytes.to_vec()), Some(bytes.len() as u64)).unwrap();
        let position = input.position();
        assert_eq!(all(input), slow);
        assert_eq!(position.get(), bytes.len() as u64);
        slow
    }

    #[test]
    fn captures_and_everything_else_are_told_by_their_beginning_packed_or_not() {
        let capture = format!("{OPENING}\n{CHUNK}\nx\n{CHUNK}\n");
        let second = OPENING.len() + 1;
        let fourth = second + CHUNK.len() + 3;
        let expected = [
            "1 opens bus".to_owned(),
            format!("2+{second} Mbus 1500000"),
            "line 3: ".into(),
            format!("4+{fourth} Mbus 1500000"),
        ];
        for bytes in [capture.as_bytes().to_vec(), packed(capture.as_bytes())] {
            let found = read(&bytes);
            assert_eq!(found.len(), expected.len(), "{found:?}");
            for (found, expected) in found.iter().zip(&expected) {
                assert!(found.starts_with(expected), "{found}, expected {expected}");
            }
        }
        for (bytes, expected) in [
            (&b"/XYZ5\r\n\r\n!\r\n"[..], "Some((Raw, 0)) /XYZ5\r\n\r\n!\r\n"),
            (b"2f58595a350d0a0d0a\n", "Some((Hex, 0)) /XYZ5\r\n\r\n"),
            (b"{\"capt", "Some((Raw, 0)) {\"capt"),
            (b"{", "Some((Raw, 0)) {"),
            (b"\x1F", "Some((Raw, 0)) \x1F"),
            (b"", "Some((Raw, 0)) "),
        ] {
            assert_eq!(read(bytes), [expected]);
            assert_eq!(read(&packed(bytes)), [expected]);
        }
    }

    #[test]
    fn members_follow_each_other_and_a_torn_one_gives_what_was_there() {
        let [opening, chunk] = [OPENING, CHUNK].map(|line| packed(format!("{line}\n").as_bytes()));
        let whole = [opening.clone(), chunk.clone()].concat();
        assert_eq!(read(&whole).len(), 2);
        // Written and flushed, and then the recorder was killed.
        let mut packer = GzEncoder::new(Vec::new(), Compression::default());
        for line in [OPENING, CHUNK, CHUNK] {
            writeln!(packer, "{line}").unwrap();
            packer.flush().unwrap();
        }
        let torn = read(packer.get_ref());
        assert_eq!(torn.len(), 4, "{torn:?}");
        assert!(torn[3].starts_with("gzip: breaks off"), "{torn:?}");
        for cut in 10..whole.len() {
            if cut == opening.len() {
                continue;
            }
            let found = read(&whole[..cut]);
            assert!(found.iter().any(|said| said.starts_with("gzip: ")), "{cut}: {found:?}");
        }
        let junk = read(&[opening, b"and something else".to_vec()].concat());
        assert_eq!(junk.len(), 2, "{junk:?}");
        assert!(junk[1].starts_with("gzip: damaged"), "{junk:?}");
    }

    #[test]
    fn what_is_no_file_is_said() {
        assert_eq!(Input::open(Path::new("/no such file")).err().unwrap().kind(), io::ErrorKind::NotFound);
        assert_eq!(Input::open(Path::new("/")).err().unwrap().to_string(), "is a directory");
    }
}
