//! Ports: where bytes come from.
//!
//! Enters: an [`Address`]. Leaves: a stream of bytes, or a [`PortError`] in words that an installer can
//! act on. What a path is (a serial device, a file, a pipe) shows when it is opened, so a device that
//! is not there yet is waited for.
//!
//! Not supported: Windows; setting the request line by software (most cables wire it to +5 V).

use std::{
    io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_serial::{DataBits, Parity, SerialPort, SerialPortBuilderExt, SerialStream};

use crate::{
    config::Address,
    p1::{Key, NotAKey},
};

/// A key cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the key-file {}: {reason}", path.display())]
pub struct KeyError {
    /// The file.
    pub path: PathBuf,
    /// Why, and what to do. Nothing of what it holds.
    pub reason: String,
}

/// Reads the key of encrypted telegrams from a file, which may be a credential of systemd.
pub fn read_key(path: &Path) -> Result<Key, KeyError> {
    let failed = |reason| KeyError { path: path.to_owned(), reason };
    let bytes = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| NotAKey);
    text.and_then(Key::from_text).map_err(|error| failed(error.to_string()))
}

/// How a serial line is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineSettings {
    /// 115200 baud, 8 data bits, no parity: DSMR 4.0 and later.
    Fast,
    /// 9600 baud, 7 data bits, even parity: DSMR 2.2 and 3.0.
    Slow,
}

impl LineSettings {
    /// The other one.
    pub const fn other(self) -> Self {
        match self {
            Self::Fast => Self::Slow,
            Self::Slow => Self::Fast,
        }
    }

    /// As installers write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fast => "115200 8N1",
            Self::Slow => "9600 7E1",
        }
    }
}

/// What kind of stream a port turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A serial line: it may fall silent or vanish, and return.
    Serial,
    /// A connection: it may break, and return.
    Tcp,
    /// A file, a pipe or standard input: it ends.
    Finite,
}

/// An open port.
pub struct Port {
    /// Its bytes.
    pub bytes: Box<dyn AsyncRead + Send + Unpin>,
    /// What it is.
    pub kind: Kind,
}

/// Why a port cannot be read, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// There is no such device or file.
    #[error("there is no {0}: is the adapter plugged in? `ls /dev/serial/by-id/` shows what is")]
    Missing(PathBuf),
    /// The device is another process's.
    #[error("{0} is in use by another process: stop that one (`fuser {0}` names it), or a serial console on it")]
    Busy(PathBuf),
    /// The user may not read the device.
    #[error(
        "{path} may not be read by this user: add it to group {group} (`sudo usermod -aG {group} $USER`) and log in again"
    )]
    Denied {
        /// The device.
        path: PathBuf,
        /// The group that may.
        group: String,
    },
    /// Nobody answers.
    #[error("tcp://{address} cannot be reached: {reason}; check address and port, and that the other end listens")]
    Unreachable {
        /// Host and port.
        address: String,
        /// What the system says.
        reason: String,
    },
    /// It was open, and broke.
    #[error("{address}: was lost ({reason}); it is opened again as soon as it is back")]
    Broken {
        /// The port.
        address: String,
        /// What the system says.
        reason: String,
    },
    /// A connection that stands, and brings nothing.
    #[error(
        "{address}: nothing was received for {seconds} s: do the reader there and the meter have power, and is the cable in? It is \
         connected anew every {seconds} s"
    )]
    Mute {
        /// The port.
        address: String,
        /// For how long.
        seconds: u64,
    },
    /// Anything else.
    #[error("{address}: {reason}")]
    Other {
        /// The port.
        address: String,
        /// What the system says.
        reason: String,
    },
}

impl PortError {
    /// Whether another error is no news after this one. The system's words for one trouble differ from one moment to the next.
    pub fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Broken { .. }, Self::Broken { .. }) | (Self::Unreachable { .. }, Self::Unreachable { .. }) => true,
            _ => self == other,
        }
    }
}

/// How long a connection may take. The system would try for two minutes.
const CONNECT: Duration = Duration::from_secs(10);

async fn connect(target: &str) -> Result<TcpStream, PortError> {
    let reason = match tokio::time::timeout(CONNECT, TcpStream::connect(target)).await {
        Ok(Ok(stream)) => return Ok(stream),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", CONNECT.as_secs()),
    };
    Err(PortError::Unreachable { address: target.to_owned(), reason })
}

/// Opens a port.
pub async fn open(address: &Address, settings: LineSettings) -> Result<Port, PortError> {
    match address {
        Address::Stdin => Ok(Port { bytes: Box::new(tokio::io::stdin()), kind: Kind::Finite }),
        Address::Tcp(target) => Ok(Port { bytes: Box::new(connect(target).await?), kind: Kind::Tcp }),
        Address::Path(path) => {
            let metadata = std::fs::metadata(path).map_err(|error| explain(path, &error))?;
            if metadata.file_type().is_char_device() {
                let bytes = open_serial(path, settings)?;
                Ok(Port { bytes: Box::new(bytes), kind: Kind::Serial })
            } else if metadata.is_dir() {
                Err(PortError::Other { address: path.display().to_string(), reason: "is a directory".into() })
            } else {
                let file = tokio::fs::File::open(path).await.map_err(|error| explain(path, &error))?;
                Ok(Port { bytes: Box::new(file), kind: Kind::Finite })
            }
        }
    }
}

/// Whether opening it waits until somebody writes.
pub fn is_pipe(address: &Address) -> bool {
    matches!(address, Address::Path(path) if std::fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo()))
}

/// Whether a path is a device, as opposed to a file or a pipe; one that is not there is taken for one that will be.
pub fn is_device(path: &Path) -> bool {
    std::fs::metadata(path).map_or(true, |found| found.file_type().is_char_device())
}

/// A line that bytes go both ways over: to the converter of a bus.
#[derive(Debug)]
pub enum Wire {
    /// A serial device.
    Serial(SerialStream),
    /// A connection to a converter in the network.
    Tcp(TcpStream),
}

/// Opens a line to a bus: 8 data bits, even parity.
pub async fn open_wire(address: &Address, baud: u32) -> Result<Wire, PortError> {
    let other = |reason: &str| PortError::Other { address: address.to_string(), reason: reason.to_owned() };
    match address {
        Address::Stdin => Err(other("is no bus: it cannot be written to")),
        Address::Tcp(target) => {
            let stream = connect(target).await?;
            // A request is one small packet, and waits for nothing.
            let _ = stream.set_nodelay(true);
            Ok(Wire::Tcp(stream))
        }
        Address::Path(path) => {
            let metadata = std::fs::metadata(path).map_err(|error| explain(path, &error))?;
            if !metadata.file_type().is_char_device() {
                return Err(other("is no serial port"));
            }
            open_line(path, (baud, DataBits::Eight, Parity::Even)).map(Wire::Serial)
        }
    }
}

impl Wire {
    /// Reads what is there; 0: the other end closed it. Cancel-safe.
    pub async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Serial(stream) => stream.read(buffer).await,
            Self::Tcp(stream) => stream.read(buffer).await,
        }
    }

    /// Writes all of it.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Serial(stream) => stream.write_all(bytes).await,
            Self::Tcp(stream) => stream.write_all(bytes).await,
        }
    }

    /// Sets the baud rate. A converter in the network has its own settings: nothing is done.
    pub fn set_baud(&mut self, baud: u32) -> io::Result<()> {
        match self {
            Self::Serial(stream) => stream.set_baud_rate(baud).map_err(io::Error::from),
            Self::Tcp(_) => Ok(()),
        }
    }
}

fn open_serial(path: &Path, settings: LineSettings) -> Result<SerialStream, PortError> {
    let line = match settings {
        LineSettings::Fast => (115_200, DataBits::Eight, Parity::None),
        LineSettings::Slow => (9600, DataBits::Seven, Parity::Even),
    };
    open_line(path, line)
}

fn open_line(path: &Path, (baud, bits, parity): (u32, DataBits, Parity)) -> Result<SerialStream, PortError> {
    let builder = tokio_serial::new(path.to_string_lossy(), baud).data_bits(bits).parity(parity);
    builder.open_native_async().map_err(|error| match error.kind {
        _ if error.description == "Not a typewriter" || error.description.contains("ioctl for device") => {
            PortError::Other { address: path.display().to_string(), reason: "is no serial port".into() }
        }
        tokio_serial::ErrorKind::Io(kind) => explain(path, &io::Error::new(kind, error.description)),
        // The device is there, as its metadata showed: the driver answers EBUSY to an exclusive one.
        tokio_serial::ErrorKind::NoDevice => PortError::Busy(path.to_owned()),
        _ => PortError::Other { address: path.display().to_string(), reason: error.description },
    })
}

fn explain(path: &Path, error: &io::Error) -> PortError {
    match error.kind() {
        io::ErrorKind::NotFound => PortError::Missing(path.to_owned()),
        io::ErrorKind::ResourceBusy => PortError::Busy(path.to_owned()),
        io::ErrorKind::PermissionDenied => PortError::Denied { path: path.to_owned(), group: group_of(path) },
        _ => PortError::Other { address: path.display().to_string(), reason: error.to_string() },
    }
}

/// The name of the group that owns a device, or its number.
fn group_of(path: &Path) -> String {
    let Ok(metadata) = std::fs::metadata(path) else { return "dialout".to_owned() };
    let gid = metadata.gid().to_string();
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let name = groups.lines().filter(|line| !line.starts_with("root:")).find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == gid).then(|| name.to_owned())
    });
    // Nobody should be put into group root: dialout is what the shipped udev rule gives such a device.
    name.unwrap_or_else(|| if gid == "0" { "dialout".to_owned() } else { gid })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn errors_say_what_to_do() {
        let error = |address: &str| {
            let address = Address::parse(address).unwrap();
            async move { open(&address, LineSettings::Fast).await.err().unwrap().to_string() }
        };
        assert!(error("/dev/no-such-port").await.contains("is the adapter plugged in?"));
        assert!(error("tcp://127.0.0.1:1").await.contains("cannot be reached"));
        assert!(error("/tmp").await.contains("is a directory"));
    }

    #[tokio::test]
    async fn a_pseudo_terminal_is_a_serial_line() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        use tokio_serial::SerialPort;
        let (mut master, slave) = SerialStream::pair().unwrap();
        let address = Address::Path(PathBuf::from(slave.name().unwrap()));
        drop(slave);
        for settings in [LineSettings::Fast, LineSettings::Slow] {
            let mut port = open(&address, settings).await.unwrap();
            assert_eq!(port.kind, Kind::Serial);
            let second = open(&address, settings).await.err().unwrap().to_string();
            assert!(second.contains("in use by another process"), "{second}");
            master.write_all(b"/A\r\n!\r\n").await.unwrap();
            let mut read = [0u8; 7];
            port.bytes.read_exact(&mut read).await.unwrap();
            assert_eq!(&read, b"/A\r\n!\r\n");
        }
    }
}
