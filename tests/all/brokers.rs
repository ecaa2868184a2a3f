//! Brokers as they are met: with TLS, users and access lists, restarted, forgetful, mute and hostile.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use meterkast::{
    delivery::{Ack, Epoch, EpochAck, Ranges, Tally},
    p1::Writer,
};
use rumqttc::mqttbytes::v4::Packet;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::parts::{Broker, Client, Folder, Meter, Meterkast, Wire, counts, free_port, program, until};

/// Where Debian keeps what an ordinary user's PATH does not lead to.
fn path() -> String {
    format!("{}:/usr/local/sbin:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// The section of a gateway with its port, and its journal in `folder`.
fn gateway(folder: &Folder, id: &str, port: &Path) -> String {
    let (port, journal) = (port.display(), folder.path(&format!("journal-{id}")));
    format!(
        "[gateway]\nid = \"{id}\"\n[[p1]]\nport = \"{port}\"\n[journal]\npath = \"{}\"\nsync = \"1s\"\n",
        journal.display()
    )
}

/// The section of a store that commits at once.
fn store(database: &Path) -> String {
    format!("[store]\nurl = \"sqlite://{}\"\ncommit = \"50ms\"\n", database.display())
}

/// mosquitto with a configuration of ours, in which `{port}` and `{folder}` stand for its own.
struct Mosquitto {
    port: u16,
    folder: Folder,
    child: Option<Child>,
}

impl Mosquitto {
    async fn start(config: &str) -> Self {
        let mut broker = Self::not_yet();
        broker.begin(config).await;
        broker
    }

    fn not_yet() -> Self {
        Self { port: free_port(), folder: Folder::new(), child: None }
    }

    async fn begin(&mut self, config: &str) {
        let folder = self.folder.path("");
        let config = config
            .replace("{port}", &self.port.to_string())
            .replace("{folder}", folder.to_str().unwrap().trim_end_matches('/'));
        // Otherwise root's becomes a user who cannot read what is in the folder.
        let config = format!("user root\nlog_dest stderr\nlog_type all\n{config}");
        let config = self.folder.file("mosquitto.conf", config);
        let log = fs::File::options().create(true).append(true).open(self.folder.path("log")).unwrap();
        let child = program("mosquitto").arg("-c").arg(config).env("PATH", path()).stderr(log).spawn();
        self.child = Some(child.unwrap());
        let listens = async || std::net::TcpStream::connect(("127.0.0.1", self.port)).ok();
        until("mosquitto listens (is it installed?)", listens).await;
    }

    /// Stops it, with SIGTERM or `kill -9`.
    async fn stop(&mut self, signal: &str) {
        let mut child = self.child.take().unwrap();
        assert!(program("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        until("mosquitto ends", async || child.try_wait().unwrap()).await;
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path("log")).unwrap()
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        if std::thread::panicking() {
            println!("--- log of mosquitto at port {}:\n{}", self.port, self.log());
        }
    }
}

/// A certificate authority, made as deploy/mosquitto/README.md says.
struct Authority {
    certificate: PathBuf,
    key: PathBuf,
}

fn openssl(arguments: &[&str], files: &[&Path]) {
    let output = program("openssl").args(arguments).args(files).output().unwrap();
    assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

const NEW_KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];

impl Authority {
    fn new(folder: &Folder, name: &str) -> Self {
        let (certificate, key) = (folder.path(&format!("{name}.crt")), folder.path(&format!("{name}.key")));
        let subject = format!("/CN={name}");
        let (out, keyout) = (certificate.to_str().unwrap(), key.to_str().unwrap());
        let arguments = ["-days", "3650", "-subj", &subject, "-out", out, "-keyout", keyout];
        openssl(&[&["req", "-x509"], &NEW_KEY[..], &arguments].concat(), &[]);
        Self { certificate, key }
    }

    /// Makes `<name>.crt` and `<name>.key` in the folder.
    fn issue(&self, folder: &Folder, name: &str, extensions: &str, days: &str) -> (PathBuf, PathBuf) {
        let [certificate, key, request] = ["crt", "key", "csr"].map(|end| folder.path(&format!("{name}.{end}")));
        let extensions =
            folder.file(&format!("{name}.ext"), format!("basicConstraints=critical,CA:FALSE\n{extensions}\n"));
        let subject = format!("/CN={name}");
        let (out, keyout) = (request.to_str().unwrap(), key.to_str().unwrap());
        openssl(&[&["req"], &NEW_KEY[..], &["-subj", &subject, "-out", out, "-keyout", keyout]].concat(), &[]);
        let [request, certificate_, extensions] =
            [&request, &certificate, &extensions].map(|path| path.to_str().unwrap());
        let (ca, ca_key) = (self.certificate.to_str().unwrap(), self.key.to_str().unwrap());
        let ca = ["-CA", ca, "-CAkey", ca_key, "-CAcreateserial"];
        let sign = ["x509", "-req", "-days", days, "-in", request, "-out", certificate_, "-extfile", extensions];
        openssl(&[&sign[..], &ca].concat(), &[]);
        (certificate, key)
    }

    /// A broker's certificate, for these names.
    fn broker(&self, folder: &Folder, name: &str, names: &str, days: &str) -> (PathBuf, PathBuf) {
        self.issue(folder, name, &format!("extendedKeyUsage=serverAuth\nsubjectAltName={names}"), days)
    }
}

/// The lines of a listener with TLS.
fn listener(ca: &Authority, (certificate, key): &(PathBuf, PathBuf)) -> String {
    format!(
        "listener {{port}} 127.0.0.1\ncafile {}\ncertfile {}\nkeyfile {}\n",
        ca.certificate.display(),
        certificate.display(),
        key.display()
    )
}

/// Makes the password file of a mosquitto: each user's password is `secret of <user>`.
fn passwords(folder: &Folder, users: &[&str]) -> PathBuf {
    let file = folder.file("passwords", "");
    for user in users {
        let mut command = program("mosquitto_passwd");
        command.arg("-b").arg(&file).args([user, &format!("secret of {user}")[..]]).env("PATH", path());
        assert!(command.output().unwrap().status.success());
    }
    file
}

/// A file with the password of a user.
fn password_of(folder: &Folder, user: &str) -> PathBuf {
    folder.file(&format!("password of {user}"), format!("secret of {user}\n"))
}

/// The daemon, logging everything it can.
fn talkative(config: &Path) -> Meterkast {
    let mut command = program(env!("CARGO_BIN_EXE_meterkast"));
    command.arg("run").arg("--config").arg(config).env("METERKAST_LOG", "trace");
    Meterkast::of(command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap())
}

/// A gateway without anything to say, with these lines in its section `[mqtt]`.
fn idle_gateway(folder: &Folder, id: &str, mqtt: &str) -> Meterkast {
    let config = gateway(folder, id, Path::new("-")) + "[mqtt]\n" + mqtt;
    Meterkast::run(&folder.file(&format!("{id}.toml"), config))
}

#[tokio::test]
async fn the_whole_way_goes_through_tls_with_users() {
    let (folder, mut wire, mut meter) = (Folder::new(), Wire::new(), Meter::new(101));
    let ca = Authority::new(&folder, "ca");
    let files = ca.broker(&folder, "broker", "DNS:localhost,IP:127.0.0.1", "825");
    let passwords = passwords(&folder, &["gw-1", "store-main"]);
    let config = format!("{}allow_anonymous false\npassword_file {}\n", listener(&ca, &files), passwords.display());
    let broker = Mosquitto::start(&config).await;
    let mqtt = |host: &str, user: &str| {
        let (port, ca, password) = (broker.port, ca.certificate.display(), password_of(&folder, user));
        format!(
            "[mqtt]\nurl = \"mqtts://{host}:{port}\"\nuser = \"{user}\"\npassword-file = \"{}\"\nca = \"{ca}\"\n",
            password.display()
        )
    };
    let database = folder.path("meterkast.db");
    // One by the name in the certificate, the other by the address.
    let config = gateway(&folder, "gw-1", &wire.path) + &mqtt("localhost", "gw-1");
    let gateway = talkative(&folder.file("gateway.toml", config));
    let store = talkative(&folder.file("store.toml", store(&database) + &mqtt("127.0.0.1", "store-main")));
    gateway.says("port p1: open").await;
    wire.send(&meter.telegrams(3)).await;
    meter.is_stored_in(&database).await;
    for daemon in [gateway, store] {
        assert!(daemon.stderr().len() > 200, "it logs");
        assert!(!daemon.stderr().contains("secret of"), "a password is never logged");
    }
}

#[tokio::test]
async fn a_broker_that_cannot_be_trusted_is_refused_with_the_reason() {
    let folder = Folder::new();
    let (ca, other) = (Authority::new(&folder, "ca"), Authority::new(&folder, "other"));
    let good = ca.broker(&folder, "good", "DNS:localhost,IP:127.0.0.1", "825");
    let expired = ca.broker(&folder, "expired", "DNS:localhost,IP:127.0.0.1", "-1");
    let elsewhere = ca.broker(&folder, "elsewhere", "DNS:broker.example,IP:192.0.2.1", "825");
    let open = "allow_anonymous true\n";
    let good = Mosquitto::start(&(listener(&ca, &good) + open)).await;
    let expired = Mosquitto::start(&(listener(&ca, &expired) + open)).await;
    let elsewhere = Mosquitto::start(&(listener(&ca, &elsewhere) + open)).await;
    let plain = Mosquitto::start(&("listener {port} 127.0.0.1\n".to_owned() + open)).await;
    let cases: [(&str, &str, u16, &Authority, &[&str]); 6] = [
        ("gw-issuer", "mqtts://localhost", good.port, &other, &["UnknownIssuer", "[mqtt] ca must be the authority"]),
        (
            "gw-expired",
            "mqtts://localhost",
            expired.port,
            &ca,
            &["expired", "renew the broker's certificate", "[mqtt] ca"],
        ),
        (
            "gw-name",
            "mqtts://localhost",
            elsewhere.port,
            &ca,
            &["not valid for name", "broker.example", "[mqtt] url", "[mqtt] ca"],
        ),
        ("gw-address", "mqtts://127.0.0.1", elsewhere.port, &ca, &["not valid for name", "[mqtt] url", "[mqtt] ca"]),
        ("gw-bare", "mqtt://localhost", good.port, &ca, &["does not speak MQTT 3.1.1", "mqtts://"]),
        ("gw-sealed", "mqtts://localhost", plain.port, &ca, &["no TLS with the broker", "mqtt://"]),
    ];
    for (id, url, port, ca, words) in cases {
        let mut mqtt = format!("url = \"{url}:{port}\"\n");
        if url.starts_with("mqtts") {
            mqtt += &format!("ca = \"{}\"\n", ca.certificate.display());
        }
        let daemon = idle_gateway(&folder, id, &mqtt);
        daemon.says("meanwhile the journal keeps everything").await;
        for word in words {
            assert!(daemon.stderr().contains(word), "{id}: `{word}` in:\n{}", daemon.stderr());
        }
    }
    // The same with the right authority.
    let mqtt = format!("url = \"mqtts://localhost:{}\"\nca = \"{}\"\n", good.port, ca.certificate.display());
    idle_gateway(&folder, "gw-good", &mqtt).says("connected to the broker").await;
}

#[tokio::test]
async fn a_client_certificate_is_the_user() {
    let (folder, mut wire, mut meter) = (Folder::new(), Wire::new(), Meter::new(102));
    let (ca, other) = (Authority::new(&folder, "ca"), Authority::new(&folder, "other"));
    let files = ca.broker(&folder, "broker", "DNS:localhost", "825");
    let client = |authority: &Authority, name: &str| {
        let (certificate, key) = authority.issue(&folder, name, "extendedKeyUsage=clientAuth", "825");
        format!("cert = \"{}\"\nkey = \"{}\"\n", certificate.display(), key.display())
    };
    let acl = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/mosquitto/acl");
    let acl = folder.file("acl", fs::read(acl).unwrap());
    let broker = Mosquitto::start(&format!(
        "{}allow_anonymous false\nrequire_certificate true\nuse_identity_as_username true\nacl_file {}\n",
        listener(&ca, &files),
        acl.display()
    ))
    .await;
    let mqtt = format!("url = \"mqtts://localhost:{}\"\nca = \"{}\"\n", broker.port, ca.certificate.display());
    let database = folder.path("meterkast.db");
    let with = |role: String, name: &str, certificate: &str| {
        Meterkast::run(&folder.file(&format!("{name}.toml"), role + "[mqtt]\n" + &mqtt + certificate))
    };
    let reader = with(gateway(&folder, "gw-1", &wire.path), "gw-1", &client(&ca, "gw-1"));
    let _store = with(store(&database), "store-main", &client(&ca, "store-main"));
    reader.says("port p1: open").await;
    wire.send(&meter.telegrams(3)).await;
    meter.is_stored_in(&database).await;

    let without = idle_gateway(&folder, "gw-without", &mqtt);
    without.says("name a client certificate with [mqtt] cert and key").await;
    let foreign = idle_gateway(&folder, "gw-foreign", &(mqtt.clone() + &client(&other, "foreign")));
    foreign.says("does not trust this client").await;
    foreign.says("check [mqtt] cert and key").await;
}

#[tokio::test]
async fn a_wrong_password_is_said_once_and_not_tried_without_pause() {
    let folder = Folder::new();
    let passwords = passwords(&folder, &["gw-1"]);
    let config = format!("listener {{port}} 127.0.0.1\nallow_anonymous false\npassword_file {}\n", passwords.display());
    let broker = Mosquitto::start(&config).await;
    let wrong = folder.file("wrong", "a wrong one");
    let url = format!("url = \"mqtt://127.0.0.1:{}\"\n", broker.port);
    let user = format!("user = \"gw-1\"\npassword-file = \"{}\"\n", wrong.display());
    let daemon = idle_gateway(&folder, "gw-1", &(url + &user));
    let remedy = "refuses the user: check [mqtt] user and password-file";
    daemon.says(remedy).await;
    let refused = || broker.log().matches("Sending CONNACK").count();
    until("it is tried again", async || (refused() >= 2).then_some(())).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    // After 0.5, 1, 2, 4... seconds.
    assert!(refused() <= 7, "{} times", refused());
    assert_eq!(daemon.stderr().matches(remedy).count(), 1, "{}", daemon.stderr());
    assert!(!daemon.stderr().contains("a wrong one"));
    // It is tried again, so a password that is put right at the broker is found.
    let accepted = ["-b", folder.path("passwords").to_str().unwrap(), "gw-1", "a wrong one"].map(str::to_owned);
    assert!(program("mosquitto_passwd").args(accepted).env("PATH", path()).output().unwrap().status.success());
    assert!(
        program("kill").args(["-HUP", &broker.child.as_ref().unwrap().id().to_string()]).status().unwrap().success()
    );
    daemon.says("connected to the broker").await;
}

/// mosquitto with the files of deploy/mosquitto, its certificates and users in a folder.
struct Deployed {
    broker: Mosquitto,
    folder: Folder,
    ca: Authority,
}

impl Deployed {
    async fn start(users: &[&str]) -> Self {
        let (folder, mut broker) = (Folder::new(), Mosquitto::not_yet());
        let ca = Authority::new(&folder, "meterkast-ca");
        ca.broker(&folder, "meterkast-broker", "DNS:localhost,IP:127.0.0.1", "825");
        passwords(&folder, users);
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/mosquitto");
        let acl = folder.file("acl", fs::read(shipped.join("acl")).unwrap());
        let mut config = fs::read_to_string(shipped.join("meterkast.conf")).unwrap();
        let own = folder.path("").display().to_string();
        for (from, to) in [
            ("listener 8883\n", "listener {port} 127.0.0.1\n"),
            ("/etc/mosquitto/certs/", &own),
            ("/etc/mosquitto/meterkast.passwd", folder.path("passwords").to_str().unwrap()),
            ("/etc/mosquitto/meterkast.acl", acl.to_str().unwrap()),
        ] {
            assert!(config.contains(from), "`{from}` in meterkast.conf");
            config = config.replace(from, to);
        }
        broker.begin(&(config + "\npersistence_location {folder}/\n")).await;
        Self { broker, folder, ca }
    }

    fn mqtt(&self, user: &str) -> String {
        let (port, ca, password) = (self.broker.port, self.ca.certificate.display(), password_of(&self.folder, user));
        format!(
            "[mqtt]\nurl = \"mqtts://localhost:{port}\"\nuser = \"{user}\"\npassword-file = \"{}\"\nca = \"{ca}\"\n",
            password.display()
        )
    }

    /// Runs `mosquitto_pub` or `mosquitto_sub` as that user.
    fn client(&self, command: &str, user: &str, arguments: &[&str]) -> Output {
        let (port, ca) = (self.broker.port.to_string(), self.ca.certificate.to_str().unwrap());
        let password = format!("secret of {user}");
        let whom = ["-V", "5", "-h", "localhost", "-p", &port, "--cafile", ca, "-u", user, "-P", &password];
        program(command).args(whom).args(arguments).output().unwrap()
    }

    /// Whether that user may publish there. MQTT 5 tells.
    fn takes(&self, user: &str, topic: &str, payload: &str) -> bool {
        let output = self.client("mosquitto_pub", user, &["-q", "1", "-t", topic, "-m", payload]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() || said.contains("Not authorized"), "{user} {topic}: {said}");
        !said.contains("Not authorized")
    }

    /// What that user reads first under a topic, if anything.
    fn reads(&self, user: &str, topic: &str) -> Option<String> {
        let output = self.client("mosquitto_sub", user, &["-t", topic, "-C", "1", "-W", "3"]);
        let text = String::from_utf8(output.stdout).unwrap();
        (!text.is_empty()).then_some(text)
    }
}

#[tokio::test]
async fn the_shipped_access_list_lets_each_do_its_own_only() {
    let broker = Deployed::start(&["gw-1", "gw-2", "store-main", "household"]).await;
    let (folder, mut wire, mut meter) = (Folder::new(), Wire::new(), Meter::new(103));
    let database = folder.path("meterkast.db");
    let config = gateway(&folder, "gw-1", &wire.path) + &broker.mqtt("gw-1");
    let gateway = Meterkast::run(&folder.file("gateway.toml", config));
    gateway.says("port p1: open").await;
    gateway.says("connected to the broker").await;
    wire.send(&meter.telegrams(3)).await;
    // A gateway may read its own health, and household everything; another gateway nothing of it.
    let waiting = meter.messages() as u64;
    let depth = async || {
        let health: Value = serde_json::from_str(&broker.reads("gw-1", "meterkast/gw-1/health")?).unwrap();
        health["depth"].as_u64().map(|depth| (depth, health["epoch"].as_str().unwrap().to_owned()))
    };
    let (_, epoch) = until("the telegrams wait", async || depth().await.filter(|(depth, _)| *depth == waiting)).await;
    assert_eq!(broker.reads("gw-1", "meterkast/gw-1/status").as_deref(), Some("online\n"));
    assert_eq!(broker.reads("gw-2", "meterkast/gw-1/#"), None);
    for topic in ["meterkast/gw-1/health", "meterkast/gw-1/+/state", "meterkast/gw-1/+/interval"] {
        assert!(broker.reads("household", topic).is_some(), "{topic}");
    }

    // An acknowledgement of everything, by those who may not.
    let epoch = Epoch::from_text(&epoch).unwrap();
    let forged = EpochAck {
        epoch,
        through: waiting,
        have: Ranges::from_pairs(Vec::new()),
        lost: Ranges::from_pairs(Vec::new()),
        tally: Tally::default(),
    };
    let forged = Ack { store: "main".into(), generation: "forged".into(), epochs: vec![forged] }.to_json();
    for user in ["gw-1", "gw-2", "household"] {
        assert!(!broker.takes(user, "meterkast/gw-1/ack/main", &forged), "{user}");
        for topic in ["meterkast/_stores/main/status", "meterkast/gw-3/E1/telegram", "meterkast/x", "anything"] {
            assert!(!broker.takes(user, topic, "x"), "{user} {topic}");
        }
    }
    assert!(!broker.takes("store-main", "meterkast/gw-1/ack/other", &forged));
    for end in ["E1/telegram", "E1/backlog", "E1/state", "E1/interval", "status", "health"] {
        for user in ["gw-2", "household", "store-main"] {
            assert!(!broker.takes(user, &format!("meterkast/gw-1/{end}"), "x"), "{user} {end}");
        }
        // Nor under the name that a pattern would make of theirs.
        for user in ["household", "store-main"] {
            assert!(!broker.takes(user, &format!("meterkast/{user}/{end}"), "x"), "{user} {end}");
        }
        assert!(broker.takes("gw-2", &format!("meterkast/gw-2/{end}"), "x"), "{end}");
    }
    wire.send(&meter.telegram()).await;
    let more = meter.messages() as u64;
    until("nothing was freed", async || depth().await.filter(|(depth, _)| *depth == more)).await;

    // The whole way, through the same list.
    let store = Meterkast::run(&folder.file("store.toml", store(&database) + &broker.mqtt("store-main")));
    store.says("connected to the broker as store").await;
    meter.is_stored_in(&database).await;
    until("everything is freed", async || depth().await.filter(|(depth, _)| *depth == 0)).await;

    // What was forged would have freed, had the store's user sent it: without a store the same frees.
    drop(store);
    wire.send(&meter.telegram()).await;
    until("one waits", async || depth().await.filter(|(depth, _)| *depth > 0)).await;
    let last = more + 100;
    let all = forged.replace(&format!("\"through\":{waiting}"), &format!("\"through\":{last}"));
    let generous = all.replace(&format!("\"through\":{last}"), &format!("\"through\":{}", meter.messages()));
    assert!(broker.takes("store-main", "meterkast/gw-1/ack/main", &generous));
    until("it is freed", async || depth().await.filter(|(depth, _)| *depth == 0)).await;
}

/// What every subscriber to come must find.
async fn everything_is_retained(port: u16, meter: &Meter) {
    until("state, interval, status and health are retained", async || {
        let client = Client::of(port).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let has = |end: &str, content: &str| {
            client.under(end).iter().any(|seen| seen.retain && seen.payload.contains(content))
        };
        let all = has("/state", &meter.now())
            && has("/interval", "measured_at")
            && has("gw-1/status", "online")
            && has("gw-1/health", "epoch");
        all.then_some(())
    })
    .await;
}

async fn survives_a_restart(persistence: bool, signal: &str, number: u64) {
    let (folder, mut wire, mut meter) = (Folder::new(), Wire::new(), Meter::new(number));
    let config = format!(
        "listener {{port}} 127.0.0.1\nallow_anonymous true\npersistence {persistence}\npersistence_location {{folder}}/\n"
    );
    let mut broker = Mosquitto::start(&config).await;
    let database = folder.path("meterkast.db");
    let mqtt = format!("[mqtt]\nurl = \"mqtt://127.0.0.1:{}\"\n", broker.port);
    let mut gateway = Meterkast::run(&folder.file("gateway.toml", gateway(&folder, "gw-1", &wire.path) + &mqtt));
    let _store = Meterkast::run(&folder.file("store.toml", store(&database) + &mqtt));
    gateway.says("port p1: open").await;
    wire.send(&meter.telegrams(5)).await;
    meter.is_stored_in(&database).await;
    everything_is_retained(broker.port, &meter).await;
    // While they are under way, and while there is no broker.
    wire.send(&meter.telegrams(5)).await;
    broker.stop(signal).await;
    wire.send(&meter.telegrams(5)).await;
    gateway.says("meanwhile the journal keeps everything").await;
    broker.begin(&config).await;
    meter.is_stored_in(&database).await;
    everything_is_retained(broker.port, &meter).await;
    // The last will.
    gateway.kill();
    Client::of(broker.port).await.receives(1, "gw-1/status").await;
    until("the last will is there", async || {
        let client = Client::of(broker.port).await;
        let status = client.receives(1, "gw-1/status").await.remove(0);
        (status.retain && status.payload == "offline").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_broker_that_remembers_may_be_stopped() {
    survives_a_restart(true, "-TERM", 110).await;
}

#[tokio::test]
async fn a_broker_that_remembers_may_be_killed() {
    survives_a_restart(true, "-KILL", 111).await;
}

#[tokio::test]
async fn a_broker_that_remembers_nothing_may_be_stopped() {
    survives_a_restart(false, "-TERM", 112).await;
}

#[tokio::test]
async fn a_broker_that_remembers_nothing_may_be_killed() {
    survives_a_restart(false, "-KILL", 113).await;
}
