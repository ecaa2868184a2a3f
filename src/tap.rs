//! Taps: what a port brings, for whoever wants to hear it while it is read.
//!
//! Enters: the bytes of a port as they are read and written. Leaves: the same with both clocks, as the entries of a
//! [`capture`](crate::capture). While nobody listens it costs a look at a counter. A listener that is too slow misses chunks, and hears
//! how many ([`What::Lost`]); the port is never slowed. What is kept for the slowest is bounded: 256 chunks.
//!
//! A recorder that reads a port for itself has a tap of its own ([`Tap::recorder`]), which loses nothing: there the port waits.

use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use tokio::{
    sync::{
        broadcast::{self, error::RecvError},
        mpsc,
    },
    time::Instant,
};

use crate::capture::{Chunk, Entry, Opening, Way, What, Wire};

/// How many chunks may wait for the slowest listener. A chunk of a daemon's port is at most 16 KiB.
const WAITING: usize = 256;

/// The end at which a port is read: it says here what it brings.
#[derive(Debug, Clone)]
pub struct Tap {
    port: Arc<Port>,
    listeners: broadcast::Sender<Heard>,
    recorder: Option<mpsc::Sender<Heard>>,
}

#[derive(Debug)]
struct Port {
    name: String,
    wire: Wire,
    address: String,
    /// How the line is set now.
    settings: Mutex<String>,
}

/// Something a port brought.
#[derive(Debug, Clone)]
pub struct Heard {
    /// The monotonic clock.
    clock: Instant,
    /// The wall clock.
    at: Timestamp,
    what: Piece,
}

#[derive(Debug, Clone)]
enum Piece {
    /// The port was opened, with these settings.
    Opened(Arc<str>),
    Bytes(Way, Arc<[u8]>),
}

impl Default for Tap {
    /// One that nobody listens at.
    fn default() -> Self {
        Self::with("", Wire::P1, "", 1, None)
    }
}

impl Tap {
    /// A port's tap: its name, what is spoken there, and where it is.
    pub fn new(name: &str, wire: Wire, address: &str) -> Self {
        Self::with(name, wire, address, WAITING, None)
    }

    /// One with a listener that misses nothing: the port waits for it.
    pub fn recorder(name: &str, wire: Wire, address: &str) -> (Self, mpsc::Receiver<Heard>) {
        let (recorder, heard) = mpsc::channel(WAITING);
        (Self::with(name, wire, address, 1, Some(recorder)), heard)
    }

    fn with(name: &str, wire: Wire, address: &str, waiting: usize, recorder: Option<mpsc::Sender<Heard>>) -> Self {
        let (listeners, _) = broadcast::channel(waiting);
        let (name, address) = (name.to_owned(), address.to_owned());
        let port = Arc::new(Port { name, wire, address, settings: Mutex::default() });
        Self { port, listeners, recorder }
    }

    /// The port's name.
    pub fn name(&self) -> &str {
        &self.port.name
    }

    /// The port was opened, with these line settings.
    pub async fn opened(&self, settings: &str) {
        settings.clone_into(&mut self.port.settings.lock().unwrap_or_else(PoisonError::into_inner));
        self.tell(|| Piece::Opened(settings.into())).await;
    }

    /// The port brought bytes, or was sent some: at most 64 KiB.
    pub async fn bytes(&self, way: Way, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.tell(|| Piece::Bytes(way, bytes.into())).await;
    }

    async fn tell(&self, what: impl FnOnce() -> Piece) {
        let Self { listeners, recorder, .. } = self;
        if listeners.receiver_count() == 0 && recorder.is_none() {
            return;
        }
        let heard = Heard { clock: Instant::now(), at: Timestamp::now(), what: what() };
        if let Some(recorder) = recorder {
            // One that is gone hears nothing.
            let _ = recorder.send(heard.clone()).await;
        }
        let _ = listeners.send(heard);
    }

    /// Begins to listen: from now on.
    pub fn listen(&self) -> Listener {
        Listener { listeners: self.listeners.subscribe(), scribe: self.scribe(), is_told: false }
    }

    /// Makes entries of what was heard at this tap.
    pub fn scribe(&self) -> Scribe {
        Scribe { port: self.port.clone(), opened: Instant::now() }
    }
}

impl Port {
    fn opening(&self, at: Timestamp, settings: Option<&str>) -> Entry {
        let Self { name, wire, address, settings: current } = self;
        let current = || current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Entry::Opening(Opening {
            port: name.clone(),
            wire: *wire,
            address: address.clone(),
            settings: settings.map_or_else(current, str::to_owned),
            at,
            goes_on: false,
        })
    }
}

/// Makes entries of what was heard.
#[derive(Debug)]
pub struct Scribe {
    port: Arc<Port>,
    opened: Instant,
}

impl Scribe {
    /// An opening at this moment.
    pub fn open(&mut self) -> Entry {
        self.opened = Instant::now();
        self.port.opening(Timestamp::now(), None)
    }

    /// An entry of what was heard.
    pub fn entry(&mut self, heard: Heard) -> Entry {
        let Heard { clock, at, what } = heard;
        match what {
            Piece::Opened(settings) => {
                self.opened = clock;
                self.port.opening(at, Some(&settings))
            }
            Piece::Bytes(way, bytes) => self.chunk(clock, at, What::Bytes(way, bytes.to_vec())),
        }
    }

    fn chunk(&self, clock: Instant, at: Timestamp, what: What) -> Entry {
        let us = u64::try_from(clock.saturating_duration_since(self.opened).as_micros()).unwrap_or(u64::MAX);
        Entry::Chunk(Chunk { port: self.port.name.clone(), us, at, what })
    }
}

/// Listens at a tap.
#[derive(Debug)]
pub struct Listener {
    listeners: broadcast::Receiver<Heard>,
    scribe: Scribe,
    is_told: bool,
}

impl Listener {
    /// The next entry, the first of which is an opening; None when the port will not be read any more. Cancel-safe.
    pub async fn next(&mut self) -> Option<Entry> {
        if !std::mem::replace(&mut self.is_told, true) {
            return Some(self.scribe.open());
        }
        match self.listeners.recv().await {
            Ok(heard) => Some(self.scribe.entry(heard)),
            Err(RecvError::Lagged(chunks)) => {
                Some(self.scribe.chunk(Instant::now(), Timestamp::now(), What::Lost(chunks)))
            }
            Err(RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(entry: &Entry) -> String {
        match entry {
            Entry::Opening(Opening { port, address, settings, .. }) => format!("{port} {address} {settings}"),
            Entry::Chunk(Chunk { what: What::Bytes(way, bytes), .. }) => format!("{way:?} {}", bytes.escape_ascii()),
            Entry::Chunk(Chunk { what: What::Lost(chunks), .. }) => format!("lost {chunks}"),
        }
    }

    #[tokio::test]
    async fn who_listens_hears_what_comes_from_then_on_and_what_was_missed() {
        let tap = Tap::new("p1", Wire::P1, "/dev/x");
        tap.opened("115200 8N1").await;
        tap.bytes(Way::FromMeter, b"before").await;
        let (mut one, mut slow) = (tap.listen(), tap.listen());
        assert_eq!(text(&one.next().await.unwrap()), "p1 /dev/x 115200 8N1");
        tap.bytes(Way::ToMeter, b"a").await;
        tap.opened("9600 7E1").await;
        assert_eq!(text(&one.next().await.unwrap()), "ToMeter a");
        assert_eq!(text(&one.next().await.unwrap()), "p1 /dev/x 9600 7E1");
        for _ in 0..WAITING {
            tap.bytes(Way::FromMeter, b"b").await;
        }
        assert_eq!(text(&slow.next().await.unwrap()), "p1 /dev/x 9600 7E1");
        assert_eq!(text(&slow.next().await.unwrap()), "lost 2");
        assert_eq!(text(&slow.next().await.unwrap()), "FromMeter b");
        drop((tap, one));
        for _ in 1..WAITING {
            slow.next().await.unwrap();
        }
        assert_eq!(slow.next().await, None);
    }

    #[tokio::test]
    async fn a_recorder_is_waited_for() {
        let (tap, mut heard) = Tap::recorder("p1", Wire::P1, "-");
        let writing = {
            let tap = tap.clone();
            tokio::spawn(async move {
                for _ in 0..3 * WAITING {
                    tap.bytes(Way::FromMeter, b"b").await;
                }
            })
        };
        let mut scribe = tap.scribe();
        for _ in 0..3 * WAITING {
            let entry = scribe.entry(heard.recv().await.unwrap());
            assert_eq!(text(&entry), "FromMeter b");
        }
        writing.await.unwrap();
    }
}
