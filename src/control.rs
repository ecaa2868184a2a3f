//! The control socket: what a running daemon answers other programs of its machine, over HTTP.
//!
//! Enters: requests at a Unix socket, and the [`Tap`]s of the ports. Leaves: answers; what is tapped, as a capture. And the client's end
//! of the same, for the commands. Works with `curl --unix-socket PATH http://meterkast/v1/tap` too.
//!
//! - `GET /v1/tap?port=NAME`: a [`capture`](crate::capture) as it happens, a line of JSON for each entry (`application/x-ndjson`), without
//!   end. `port` may be repeated; without it all ports are tapped. Who reads too slowly misses chunks, and gets lines that say how many.
//!   At most 4 at once.
//!
//! An error is `{"error":"..."}`. Who may open the socket is told by its mode, 0660, and by its directory: there is no other check.
//!
//! Source: RFC 9112 (HTTP/1.1), by hyper.

use std::{
    convert::Infallible,
    io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Query, State},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{
    Request, StatusCode,
    body::{Frame, Incoming},
    client, header,
    server::conn::http1,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};

use crate::tap::{Listener, Tap};

/// How many connections there may be; others wait.
const CONNECTIONS: usize = 16;
/// How many may tap at once.
const TAPPERS: usize = 4;
/// How many lines may wait for a tapper, beyond those that wait at the tap.
const LINES: usize = 16;
/// How long a request may take to come.
const PATIENCE: Duration = Duration::from_secs(10);

/// The socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Its directory is not there.
    #[error("{0}: its directory is not there: make it, or name another place with [control] path")]
    NoDirectory(PathBuf),
    /// Another process answers there.
    #[error("{0}: another process answers there: give each daemon a [control] path of its own")]
    Taken(PathBuf),
    /// Something else is there.
    #[error("{0}: is there, and is no socket: remove it, or name another place with [control] path")]
    NoSocket(PathBuf),
    /// What the system says.
    #[error("{path}: {error}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl BindError {
    /// Whether this user may not have it.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Io { error, .. } if error.kind() == io::ErrorKind::PermissionDenied)
    }
}

/// The socket of a running daemon. It goes with this.
#[derive(Debug)]
pub struct Control {
    listener: Option<UnixListener>,
    path: PathBuf,
    /// Device and inode.
    file: (u64, u64),
}

impl Control {
    /// Makes the socket. One that nobody answers at any more is replaced. Call it within a Tokio runtime.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let failed = |error| BindError::Io { path: path.to_owned(), error };
        match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
            Ok(found) if !found.file_type().is_socket() => return Err(BindError::NoSocket(path.to_owned())),
            Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path).map_err(failed)?;
                }
                // One that may not be asked is somebody's, too.
                _ => return Err(BindError::Taken(path.to_owned())),
            },
        }
        let listener = UnixListener::bind(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => BindError::NoDirectory(path.to_owned()),
            _ => failed(error),
        })?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
        let file = path.symlink_metadata().map(|found| (found.dev(), found.ino())).map_err(failed)?;
        Ok(Self { listener: Some(listener), path: path.to_owned(), file })
    }

    /// Answers for as long as it is polled.
    pub async fn serve(mut self, router: Router) {
        let Some(listener) = self.listener.take() else { return };
        let connections = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(permit) = connections.clone().acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!("{}: {error}", self.path.display());
                    // Out of files, perhaps: that passes.
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            let service = TowerToHyperService::new(router.clone());
            tokio::spawn(async move {
                let mut server = http1::Builder::new();
                server.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(64 * 1024);
                if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
                    tracing::debug!("control: {error}");
                }
                drop(permit);
            });
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // Another process may have put its own there.
        if self.path.symlink_metadata().is_ok_and(|found| (found.dev(), found.ino()) == self.file) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

struct Ports {
    taps: Vec<Tap>,
    tappers: Arc<Semaphore>,
}

/// What is answered.
pub fn router(taps: Vec<Tap>) -> Router {
    let ports = Arc::new(Ports { taps, tappers: Arc::new(Semaphore::new(TAPPERS)) });
    Router::new()
        .route("/v1/tap", get(tap))
        .fallback(async || refused(StatusCode::NOT_FOUND, "there is nothing; /v1/tap taps the ports"))
        .with_state(ports)
}

fn refused(status: StatusCode, error: &str) -> Response {
    let body = format!("{}\n", serde_json::json!({ "error": error }));
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn tap(State(ports): State<Arc<Ports>>, Query(asked): Query<Vec<(String, String)>>) -> Response {
    if let Some((key, _)) = asked.iter().find(|(key, _)| key != "port") {
        return refused(StatusCode::BAD_REQUEST, &format!("`{key}` is not known: port=NAME says which port is tapped"));
    }
    let names: Vec<&str> = asked.iter().map(|(_, name)| name.as_str()).collect();
    if let Some(unknown) = names.iter().find(|name| !ports.taps.iter().any(|tap| tap.name() == **name)) {
        let known: Vec<_> = ports.taps.iter().map(|tap| format!("`{}`", tap.name())).collect();
        let known =
            if known.is_empty() { "it reads none".to_owned() } else { format!("it reads {}", known.join(", ")) };
        return refused(StatusCode::NOT_FOUND, &format!("the daemon has no port `{unknown}`: {known}"));
    }
    let Ok(permit) = ports.tappers.clone().try_acquire_owned() else {
        return refused(StatusCode::SERVICE_UNAVAILABLE, &format!("{TAPPERS} tap it already: end one of them"));
    };
    let (lines, body) = mpsc::channel(LINES);
    for tap in ports.taps.iter().filter(|tap| names.is_empty() || names.contains(&tap.name())) {
        tokio::spawn(tell(tap.listen(), lines.clone()));
    }
    let body = Body::new(Lines { lines: body, _permit: permit });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

/// Hands on what a port brings, until nobody wants it.
async fn tell(mut listener: Listener, lines: mpsc::Sender<Bytes>) {
    loop {
        let entry = tokio::select! {
            entry = listener.next() => entry,
            () = lines.closed() => return,
        };
        let Some(entry) = entry else { return };
        if lines.send(format!("{entry}\n").into()).await.is_err() {
            return;
        }
    }
}

/// The body of an answer.
struct Lines {
    lines: mpsc::Receiver<Bytes>,
    _permit: OwnedSemaphorePermit,
}

impl hyper::body::Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.lines.poll_recv(context).map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}

/// A daemon does not answer, or not what was asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// There is no socket.
    #[error(
        "no daemon answers at {0}: is one running, and does its configuration have another [control] path? --config names that"
    )]
    Nobody(PathBuf),
    /// This user may not open it.
    #[error(
        "{0} may not be opened by this user: add it to the daemon's group (`sudo usermod -aG meterkast $USER`) and log in again"
    )]
    Denied(PathBuf),
    /// It says why.
    #[error("{0}")]
    Refused(String),
    /// It broke off, or is no daemon.
    #[error("{path}: {reason}")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// A daemon that is tapped.
#[derive(Debug)]
pub struct Tapping {
    body: Incoming,
    path: PathBuf,
}

/// Taps ports of a running daemon; all of them where none is named.
pub async fn ask_tap(path: &Path, ports: &[String]) -> Result<Tapping, AskError> {
    let broken = |reason: String| AskError::Broken { path: path.to_owned(), reason };
    let stream = UnixStream::connect(path).await.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => AskError::Nobody(path.to_owned()),
        io::ErrorKind::PermissionDenied => AskError::Denied(path.to_owned()),
        _ => broken(error.to_string()),
    })?;
    let query: Vec<String> = ports.iter().map(|port| format!("port={}", percent_encoded(port))).collect();
    let request = Request::get(format!("/v1/tap?{}", query.join("&")))
        .header(header::HOST, "meterkast")
        .body(Empty::<Bytes>::new())
        .map_err(|error| broken(error.to_string()))?;
    let answer = async {
        let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        sender.send_request(request).await
    };
    let answer = match tokio::time::timeout(PATIENCE, answer).await {
        Ok(answer) => answer.map_err(|error| broken(error.to_string()))?,
        Err(_) => return Err(broken(format!("no answer within {} s", PATIENCE.as_secs()))),
    };
    if answer.status() == StatusCode::OK {
        return Ok(Tapping { body: answer.into_body(), path: path.to_owned() });
    }
    let status = answer.status();
    let said =
        Limited::new(answer.into_body(), 64 * 1024).collect().await.map(|said| said.to_bytes()).unwrap_or_default();
    let said = serde_json::from_slice::<serde_json::Value>(&said).ok();
    let error = said.as_ref().and_then(|said| said.get("error")?.as_str());
    Err(match error {
        Some(error) => AskError::Refused(error.to_owned()),
        None => broken(format!("answers {status}: is it a meterkast?")),
    })
}

impl Tapping {
    /// The next bytes of the capture; None at its end, when the daemon stopped. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Bytes>, AskError> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
                // A daemon that stops does not end what it said.
                Some(Err(error)) if error.is_incomplete_message() || error.is_body_write_aborted() => return Ok(None),
                Some(Err(error)) => {
                    return Err(AskError::Broken { path: self.path.clone(), reason: error.to_string() });
                }
            }
        }
    }
}

fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::capture::{Reader, Way, Wire};

    struct Served {
        folder: tempfile::TempDir,
        taps: Vec<Tap>,
        task: tokio::task::JoinHandle<()>,
    }

    fn served() -> Served {
        let folder = tempfile::tempdir().unwrap();
        let taps = vec![Tap::new("p1", Wire::P1, "/dev/x"), Tap::new("bus 1&ü", Wire::Mbus, "tcp://x:1")];
        let control = Control::bind(&folder.path().join("control.sock")).unwrap();
        let task = tokio::spawn(control.serve(router(taps.clone())));
        Served { folder, taps, task }
    }

    impl Served {
        fn path(&self) -> PathBuf {
            self.folder.path().join("control.sock")
        }
    }

    /// Until there are that many lines.
    async fn lines(tapping: &mut Tapping, count: usize) -> Vec<String> {
        let mut text = String::new();
        while text.lines().count() < count {
            let bytes = tokio::time::timeout(Duration::from_secs(30), tapping.next()).await.unwrap().unwrap().unwrap();
            text.push_str(std::str::from_utf8(&bytes).unwrap());
        }
        text.lines().map(str::to_owned).collect()
    }

    #[tokio::test]
    async fn ports_are_tapped_by_name_or_all() {
        let served = served();
        let mut one = ask_tap(&served.path(), &["bus 1&ü".to_owned()]).await.unwrap();
        let mut all = ask_tap(&served.path(), &[]).await.unwrap();
        assert!(
            lines(&mut one, 1).await[0]
                .starts_with(r#"{"capture":1,"port":"bus 1&ü","wire":"mbus","address":"tcp://x:1""#)
        );
        assert_eq!(lines(&mut all, 2).await.len(), 2);
        served.taps[0].bytes(Way::FromMeter, b"/x").await;
        served.taps[1].bytes(Way::ToMeter, &[0x10]).await;
        assert!(lines(&mut one, 1).await[0].ends_with(r#""to":"meter","hex":"10"}"#));
        let both = lines(&mut all, 2).await;
        assert!(both.iter().any(|line| line.contains(r#""text":"/x""#)), "{both:?}");
        // Who has gone is not told any more, though no byte comes.
        drop((one, all));
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for port in ["p1", "x"].repeat(4) {
            let asked = ask_tap(&served.path(), &[port.to_owned()]).await;
            match port {
                "x" => {
                    let error = asked.err().unwrap().to_string();
                    assert_eq!(error, "the daemon has no port `x`: it reads `p1`, `bus 1&ü`");
                }
                _ => std::mem::forget(asked.unwrap()),
            }
        }
        let error = ask_tap(&served.path(), &[]).await.err().unwrap().to_string();
        assert_eq!(error, "4 tap it already: end one of them");
    }

    #[tokio::test]
    async fn who_reads_slowly_misses_chunks_and_is_told() {
        let served = served();
        let mut slow = ask_tap(&served.path(), &["p1".to_owned()]).await.unwrap();
        lines(&mut slow, 1).await;
        let began = std::time::Instant::now();
        let chunk = [b'x'; 16 * 1024];
        for _ in 0..2000 {
            served.taps[0].bytes(Way::FromMeter, &chunk).await;
            tokio::task::yield_now().await;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "the port was slowed");
        let mut reader = Reader::new();
        reader.push(b"{\"capture\":1,\"port\":\"p1\",\"wire\":\"p1\",\"at\":\"2026-11-22T10:20:00Z\"}\n");
        let (mut seen, mut lost) = (0, 0);
        while seen + lost < 2000 {
            let bytes = tokio::time::timeout(Duration::from_secs(30), slow.next()).await.unwrap().unwrap().unwrap();
            reader.push(&bytes);
            for entry in std::iter::from_fn(|| reader.poll()) {
                match entry.unwrap().1 {
                    crate::capture::Entry::Chunk(chunk) => match chunk.what {
                        crate::capture::What::Lost(chunks) => lost += chunks,
                        crate::capture::What::Bytes(..) => seen += 1,
                    },
                    crate::capture::Entry::Opening(_) => {}
                }
            }
        }
        assert_eq!(seen + lost, 2000);
        assert!(lost > 500, "{lost}");
    }

    #[tokio::test]
    async fn what_is_no_request_harms_nothing() {
        let served = served();
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1_000_000));
        for (request, answer) in [
            ("GET / HTTP/1.1\r\nhost: x\r\n\r\n", "HTTP/1.1 404"),
            ("GET /v1/tap?colour=red HTTP/1.1\r\nhost: x\r\n\r\n", "HTTP/1.1 400"),
            ("GET /v1/tap?port=%ff HTTP/1.1\r\nhost: x\r\n\r\n", "HTTP/1.1 404"),
            ("POST /v1/tap HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n", "HTTP/1.1 405"),
            ("\0\0\0\0 nonsense\r\n\r\n", "HTTP/1.1 400"),
            (&long, "HTTP/1.1 4"),
        ] {
            let mut stream = UnixStream::connect(served.path()).await.unwrap();
            let _ = stream.write_all(request.as_bytes()).await;
            let mut said = vec![0; answer.len()];
            tokio::time::timeout(Duration::from_secs(30), stream.read_exact(&mut said)).await.unwrap().unwrap();
            assert_eq!(String::from_utf8_lossy(&said), answer, "{}", request.get(..20).unwrap());
        }
        // Some that say nothing do not keep others out.
        let mut mute = Vec::new();
        for _ in 1..CONNECTIONS {
            mute.push(UnixStream::connect(served.path()).await.unwrap());
        }
        ask_tap(&served.path(), &[]).await.unwrap();
    }

    #[tokio::test]
    async fn a_socket_that_was_left_is_replaced_and_nothing_else() {
        let served = served();
        let path = served.path();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o660);
        assert!(matches!(Control::bind(&path), Err(BindError::Taken(_))));
        // It goes with the daemon, unless that is killed.
        served.task.abort();
        let _ = served.task.await;
        assert!(!path.exists());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(Control::bind(&path).unwrap());
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(Control::bind(&path), Err(BindError::NoSocket(_))));
        assert!(matches!(Control::bind(&path.join("x")), Err(BindError::Io { .. })));
        let nowhere = served.folder.path().join("no").join("control.sock");
        assert!(matches!(Control::bind(&nowhere), Err(BindError::NoDirectory(_))));
        let error = ask_tap(&nowhere, &[]).await.err().unwrap().to_string();
        assert!(error.starts_with("no daemon answers at"), "{error}");
    }
}
