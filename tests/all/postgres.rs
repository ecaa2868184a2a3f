//! A PostgreSQL server for tests: of its own data, in a temporary folder, on a free port of the loopback address.
//!
//! The unit tests of the store use this file, too. A server stops and its folder goes when its variable does, and also when the
//! test process ends in any other way: a shell holds it that reads from us. It syncs as it would in earnest, because what it
//! acknowledges is tested.

use std::{
    env, fs,
    io::Write as _,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// Whose password is asked, and what it is; everybody else is let in.
pub(crate) const GUARDED: (&str, &str) = ("guarded", "pass/w:ord@ of%20it?");

/// A server.
pub(crate) struct Postgres {
    pub(crate) port: u16,
    folder: TempDir,
    running: Option<(Child, ChildStdin)>,
}

impl Postgres {
    /// A server of one's own, which may be stopped and killed.
    pub(crate) fn start() -> Self {
        Self::on(|_| {})
    }

    /// The same; `prepare` is given the folder that its data will be in.
    pub(crate) fn on(prepare: impl FnOnce(&Path)) -> Self {
        let folder = TempDir::new().unwrap();
        // Its user must be able to reach its data, and to let nobody else read them.
        let data = folder.path().join("data");
        fs::create_dir(&data).unwrap();
        prepare(&data);
        for path in [folder.path(), &data] {
            run(Command::new("chown").arg(user().as_deref().unwrap_or(&own_id())).arg(path));
        }
        let mut initdb = as_user(&program("initdb"));
        initdb.arg("-D").arg(data.join("main")).args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
        ]);
        run(&mut initdb);
        let mut server = Self { port: free_port(), folder, running: None };
        let guarded = GUARDED.0;
        server.write("pg_hba.conf", &format!("host all {guarded} all scram-sha-256\nhost all all all trust\n"));
        server.begin();
        server
    }

    /// One for all tests of this binary. It is never stopped by a test.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// Where its data are.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Writes one of its configuration files.
    fn write(&self, name: &str, content: &str) {
        fs::write(self.data().join("main").join(name), content).unwrap();
    }

    /// Starts it, or starts it again.
    pub(crate) fn begin(&mut self) {
        self.begin_with(&[]);
    }

    /// The same, with settings such as `default_transaction_read_only=on`.
    pub(crate) fn begin_with(&mut self, settings: &[&str]) {
        let mut server = as_user(&program("postgres"));
        let (port, data) = (self.port.to_string(), self.data().join("main"));
        server.arg("-D").arg(&data).args([
            "-p",
            &port,
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "unix_socket_directories=",
        ]);
        for setting in settings {
            server.args(["-c", setting]);
        }
        // When we end, however we do, `read` ends, and nothing is left. What a test opened elsewhere is not handed on.
        let script = r#"folder=$1; shift
            for fd in /proc/self/fd/*; do fd=${fd##*/}; if ((fd > 2)); then eval "exec $fd>&-"; fi; done
            "$@" </dev/null & server=$!
            read -r signal
            kill -"${signal:-QUIT}" "$server"; wait "$server"
            [[ $signal ]] || rm -rf "$folder""#;
        let mut shell = Command::new("bash");
        shell
            .current_dir("/")
            .args(["-c", script, "bash"])
            .arg(self.folder.path())
            .arg(server.get_program())
            .args(server.get_args());
        let log = fs::File::options().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let mut shell = shell.stdin(Stdio::piped()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let stdin = shell.stdin.take().unwrap();
        self.running = Some((shell, stdin));
        let end = Instant::now() + Duration::from_secs(60);
        while !self.status().is_some_and(|status| status.ends_with("ready")) {
            assert!(Instant::now() < end, "PostgreSQL does not start:\n{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Breaks all connections and stops it. Its data stay.
    pub(crate) fn stop(&mut self) {
        self.end("INT");
    }

    /// The same as a crash would: nothing more is written, and the next start recovers what was committed.
    pub(crate) fn crash(&mut self) {
        self.end("QUIT");
    }

    fn end(&mut self, signal: &str) {
        if let Some((mut shell, mut stdin)) = self.running.take() {
            let _ = writeln!(stdin, "{signal}");
            shell.wait().unwrap();
        }
    }

    /// What it says of itself: first its process, at the end what it does.
    fn status(&self) -> Option<String> {
        Some(fs::read_to_string(self.data().join("main/postmaster.pid")).ok()?.trim_end().to_owned())
    }

    /// What it has said.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Where one of its databases is.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// A new database with nothing in it. Returns its name.
    pub(crate) fn database(&self) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        name
    }

    /// Asks a database. Returns the rows as lines, columns separated by `|`.
    pub(crate) fn sql(&self, database: &str, sql: &str) -> Vec<String> {
        let mut psql = Command::new(program("psql"));
        let output =
            psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql]).arg(self.url(database)).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }
}

impl Postgres {
    /// Runs a script of psql as its superuser.
    pub(crate) fn run_script(&self, script: &Path) {
        run(Command::new(program("psql")).args(["-X", "-q", "-f"]).arg(script).arg(self.url("postgres")));
    }

    /// Gives a file or folder to its user.
    pub(crate) fn give(&self, path: &Path) {
        run(Command::new("chown").arg(user().as_deref().unwrap_or(&own_id())).arg(path));
    }

    /// Puts a copy of a file among its data that only its user may read.
    pub(crate) fn take(&self, file: &Path, name: &str) {
        let copy = self.data().join("main").join(name);
        fs::copy(file, &copy).unwrap();
        run(Command::new("chmod").arg("600").arg(&copy));
        self.give(&copy);
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.crash();
        if thread::panicking() {
            println!("--- PostgreSQL on port {}:\n{}", self.port, self.log());
        }
    }
}

/// Where one of its programs is. Debian keeps them where no PATH leads, and what it has in the path is another program.
fn program(name: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut debian: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
    // The newest first: 100 before 15 before 9.
    debian.sort_by_key(|path| (path.as_os_str().len(), path.clone()));
    let mut folders = debian.into_iter().rev().chain(env::split_paths(&path));
    let found = folders.find(|folder| folder.join(name).exists());
    found.unwrap_or_else(|| panic!("no {name}: sudo apt-get install postgresql")).join(name)
}

/// Who runs it, where we may not: PostgreSQL refuses root.
fn user() -> Option<String> {
    if own_id() != "0" {
        return None;
    }
    let known = |user: &&str| Command::new("id").arg(user).output().is_ok_and(|output| output.status.success());
    Some(["postgres", "nobody"].into_iter().find(known).expect("a user for PostgreSQL, which refuses root").to_owned())
}

fn own_id() -> String {
    let output = Command::new("id").arg("-u").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// A program, run by the user that PostgreSQL runs as.
fn as_user(program: &Path) -> Command {
    let Some(user) = user() else { return Command::new(program) };
    let output = Command::new("id").args(["-g", &user]).output().unwrap();
    let group = String::from_utf8(output.stdout).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &user, "--regid", group.trim_end(), "--clear-groups"]).arg(program);
    command
}

/// Runs a command that must succeed.
fn run(command: &mut Command) {
    let output =
        command.current_dir("/").stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A port on which nothing listens, and that the system gives to nobody by itself.
fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = std::process::id().wrapping_mul(7).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = 14_000 + u16::try_from(number % 6_000).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
