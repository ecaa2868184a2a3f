//! Brokers as they are met: with TLS, users and access lists, restarted, forgetful, mute and hostile.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Child, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use meterkast::{
    config::{BrokerUrl, Mqtt},
    delivery::{Ack, Epoch, EpochAck, Ranges, Tally},
    mqtt::link::{self, Command, Event, Link, Tag, Will},
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

/// A telegram that is rejected: it makes `health` speak within seconds, and not once a minute.
const REJECTED: &[u8] = b"/rejected\r\n\r\n!0000\r\n";

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

    /// The depth of the journal and the epoch, as the gateway itself may read them.
    async fn depth(&self, wire: &mut Wire) -> Option<(u64, String)> {
        wire.send(REJECTED).await;
        let health: Value = serde_json::from_str(&self.reads("gw-1", "meterkast/gw-1/health")?).unwrap();
        Some((health["depth"].as_u64()?, health["epoch"].as_str()?.to_owned()))
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
    let (_, epoch) =
        until("the telegrams wait", async || broker.depth(&mut wire).await.filter(|(depth, _)| *depth == waiting))
            .await;
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
    let forged =
        Ack { store: "main".into(), generation: "forged".into(), started: "forged".into(), epochs: vec![forged] }
            .to_json();
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
    until("nothing was freed", async || broker.depth(&mut wire).await.filter(|(depth, _)| *depth == more)).await;

    // The whole way, through the same list.
    let store = Meterkast::run(&folder.file("store.toml", store(&database) + &broker.mqtt("store-main")));
    store.says("connected to the broker as store").await;
    meter.is_stored_in(&database).await;
    until("everything is freed", async || broker.depth(&mut wire).await.filter(|(depth, _)| *depth == 0)).await;

    // What was forged would have freed, had the store's user sent it: without a store the same frees.
    drop(store);
    wire.send(&meter.telegram()).await;
    until("one waits", async || broker.depth(&mut wire).await.filter(|(depth, _)| *depth > 0)).await;
    let all = format!("\"through\":{}", meter.messages());
    let generous = forged.replace(&format!("\"through\":{waiting}"), &all);
    assert!(broker.takes("store-main", "meterkast/gw-1/ack/main", &generous));
    until("it is freed", async || broker.depth(&mut wire).await.filter(|(depth, _)| *depth == 0)).await;
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

/// What a broker that is none does with a connection.
#[derive(Debug, Clone, Copy)]
enum Habit {
    /// Answers the CONNECT with these bytes, and goes on listening.
    Answers(&'static [u8]),
    /// Takes the connection, and never says anything.
    Mute,
    /// Closes at once.
    Closes,
    /// Accepts as a broker would, then sends these bytes over and over.
    Floods(&'static [u8]),
    /// Sends noise, other noise each time.
    Noise,
    /// Accepts, confirms every publish, and forwards nothing.
    Forgets,
}

/// Accepted, no session.
const CONNACK: &[u8] = &[0x20, 2, 0, 0];

/// A broker that is none, and how often somebody connected to it.
struct Fake {
    port: u16,
    connects: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Fake {
    async fn start(port: u16, habit: Habit) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connects = Arc::new(AtomicUsize::new(0));
        let counted = connects.clone();
        let task = tokio::spawn(async move {
            let mut guests = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let number = counted.fetch_add(1, Ordering::Relaxed);
                guests.spawn(serve(stream, habit, number));
            }
        });
        Self { port, connects, task }
    }

    fn connects(&self) -> usize {
        self.connects.load(Ordering::Relaxed)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The next packet that a client sends; None when it has gone.
async fn packet(stream: &mut TcpStream, buffer: &mut BytesMut) -> Option<Packet> {
    loop {
        if let Ok(packet) = Packet::read(buffer, 1 << 20) {
            return Some(packet);
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}

fn puback(packet: u16) -> [u8; 4] {
    let [high, low] = packet.to_be_bytes();
    [0x40, 2, high, low]
}

async fn serve(mut stream: TcpStream, habit: Habit, number: usize) -> Option<()> {
    if let Habit::Closes = habit {
        return None;
    }
    let mut buffer = BytesMut::new();
    packet(&mut stream, &mut buffer).await?;
    match habit {
        Habit::Answers(bytes) => stream.write_all(bytes).await.ok()?,
        Habit::Floods(bytes) => {
            stream.write_all(CONNACK).await.ok()?;
            loop {
                stream.write_all(bytes).await.ok()?;
            }
        }
        Habit::Noise => {
            let mut state = number as u64 + 1;
            let noise = std::iter::repeat_with(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            });
            // Half of them let the client believe at first.
            if number % 2 == 1 {
                stream.write_all(CONNACK).await.ok()?;
            }
            stream.write_all(&noise.take(100_000).collect::<Vec<u8>>()).await.ok()?;
        }
        Habit::Forgets => stream.write_all(CONNACK).await.ok()?,
        Habit::Closes | Habit::Mute => {}
    }
    loop {
        match (packet(&mut stream, &mut buffer).await?, habit) {
            (Packet::Publish(publish), Habit::Forgets) => stream.write_all(&puback(publish.pkid)).await.ok()?,
            (Packet::PingReq, Habit::Forgets) => stream.write_all(&[0xD0, 0]).await.ok()?,
            (Packet::Disconnect, _) => return None,
            _ => {}
        }
    }
}

/// A figure of /proc/PID/status, in KiB.
fn memory(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn what_is_no_broker_harms_nothing_and_is_named() {
    // A publish of 200 MB, of which only the header is true; and small ones without end, for a topic of ours.
    const HUGE: &[u8] = &[0x32, 0xFF, 0xFF, 0xFF, 0x5F, 0, 1, b'a', 0, 1];
    const ACKS: &[u8] = b"\x32\x1b\0\x12meterkast/x/ack/ma\0\x01abcde";
    let cases: [(Habit, &str); 14] = [
        (Habit::Answers(&[0x20, 2, 0, 1]), "does not speak MQTT 3.1.1: allow that version there"),
        (Habit::Answers(&[0x20, 2, 0, 2]), "refuses the client id"),
        (Habit::Answers(&[0x20, 2, 0, 3]), "refuses the connection: ServiceUnavailable"),
        (Habit::Answers(&[0x20, 2, 0, 4]), "refuses the user: check [mqtt] user and password-file"),
        (Habit::Answers(&[0x20, 2, 0, 5]), "refuses the user: check [mqtt] user and password-file"),
        // As MQTT 5 says it: unsupported protocol version.
        (Habit::Answers(&[0x20, 3, 0, 0x84, 0]), "does not speak MQTT 3.1.1"),
        (Habit::Answers(b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html; charset=us-ascii\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"), "does not speak MQTT 3.1.1"),
        (Habit::Answers(HUGE), "does not speak MQTT 3.1.1"),
        (Habit::Mute, "does not answer; see that it runs"),
        (Habit::Closes, "closes the connection at once"),
        (Habit::Noise, "meanwhile the journal keeps everything"),
        (Habit::Floods(HUGE), "was lost"),
        (Habit::Floods(&[0x20, 2, 0, 0]), "was lost"),
        (Habit::Floods(ACKS), "connected to the broker"),
    ];
    let folder = Folder::new();
    let mut started = Vec::new();
    for (number, (habit, words)) in cases.into_iter().enumerate() {
        let fake = Fake::start(0, habit).await;
        let daemon =
            idle_gateway(&folder, &format!("gw-{number}"), &format!("url = \"mqtt://127.0.0.1:{}\"\n", fake.port));
        started.push((fake, daemon, habit, words));
    }
    for (_, daemon, _, words) in &started {
        daemon.says(words).await;
    }
    // No tight loop: half a second, one, two, four.
    tokio::time::sleep(Duration::from_secs(4)).await;
    for (fake, mut daemon, habit, _) in started {
        assert!(fake.connects() <= 7, "{habit:?}: {} connects", fake.connects());
        let said = daemon.stderr();
        assert!(said.lines().count() < 40 && said.lines().all(|line| line.len() < 500), "{habit:?}: {said}");
        let peak = memory(daemon.child().id(), "VmHWM");
        assert!(peak < 64 << 10, "{habit:?}: {peak} KiB");
        let (status, took) = daemon.terminate().await;
        assert!(status.success() && took < Duration::from_secs(5), "{habit:?}: {status} after {took:?}");
    }
}

#[tokio::test]
async fn a_broker_that_confirms_and_forgets_loses_nothing() {
    let (folder, mut wire, mut meter) = (Folder::new(), Wire::new(), Meter::new(120));
    let mut broker = Broker::not_yet();
    let forgetful = Fake::start(broker.port, Habit::Forgets).await;
    let config = gateway(&folder, "gw-1", &wire.path) + &broker.section();
    let daemon = Meterkast::run(&folder.file("gateway.toml", config));
    daemon.says("port p1: open").await;
    daemon.says("connected to the broker").await;
    wire.send(&meter.telegrams(20)).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    drop(forgetful);
    broker.begin().await;
    let database = folder.path("meterkast.db");
    let _store = Meterkast::run(&folder.file("store.toml", store(&database) + &broker.section()));
    meter.is_stored_in(&database).await;
    wire.send(&meter.telegrams(2)).await;
    meter.is_stored_in(&database).await;
}

/// The depth of the journal, as `health` last said it.
fn depth(client: &Client) -> Option<u64> {
    client.under("gw-1/health").last()?.json()["depth"].as_u64()
}

#[tokio::test]
async fn without_a_store_nothing_is_freed_that_the_broker_did_not_take() {
    let (folder, mut wire, mut meter, mut broker) =
        (Folder::new(), Wire::new(), Meter::new(121), Broker::start().await);
    let client = Client::of(broker.port).await;
    let config = gateway(&folder, "gw-1", &wire.path) + "stores = []\n" + &broker.section();
    let daemon = Meterkast::run(&folder.file("gateway.toml", config));
    daemon.says("port p1: open").await;
    daemon.says("connected to the broker").await;
    wire.send(&meter.telegrams(5)).await;
    client.receives(meter.messages(), "/telegram").await;
    broker.kill();
    daemon.says("meanwhile the journal keeps everything").await;
    wire.send(&meter.telegrams(30)).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    broker.begin().await;
    let missed = async || {
        let arrived = client.under("/telegram").into_iter().chain(client.under("/backlog"));
        let mut numbers: Vec<u64> = arrived.map(|seen| seen.json()["seq"].as_u64().unwrap()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        (numbers.len() >= meter.messages()).then_some(())
    };
    until("all were sent", missed).await;
    until("the journal is free", async || {
        wire.send(REJECTED).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        (depth(&client)? == 0).then_some(())
    })
    .await;
}

/// A telegram of this meter whose message has about `size` bytes.
fn large(meter: &str, second: u32, size: usize) -> Vec<u8> {
    let id: String = meter.bytes().map(|byte| format!("{byte:02X}")).collect();
    let mut telegram = Writer::new("XYZ5 large")
        .line("1-3:0.2.8(50)")
        .line(format!("0-0:1.0.0(2607141200{second:02}S)"))
        .line(format!("0-0:96.1.1({id})"))
        .line("1-0:1.8.1(000001.000*kWh)");
    for number in 0..size / 100 {
        telegram = telegram.line(format!("0-0:99.{number}.9({})", "x".repeat(60)));
    }
    telegram.finish(true)
}

#[tokio::test]
async fn a_message_too_large_for_the_broker_holds_up_nothing_else() {
    let (folder, mut wire, mut meter) = (Folder::new(), Wire::new(), Meter::new(122));
    let limited =
        |limit: usize| format!("listener {{port}} 127.0.0.1\nallow_anonymous true\nmax_packet_size {limit}\n");
    let mut broker = Mosquitto::start(&limited(3000)).await;
    let database = folder.path("meterkast.db");
    let mqtt = format!("[mqtt]\nurl = \"mqtt://127.0.0.1:{}\"\n", broker.port);
    let daemon = Meterkast::run(&folder.file("gateway.toml", gateway(&folder, "gw-1", &wire.path) + &mqtt));
    let _store = Meterkast::run(&folder.file("store.toml", store(&database) + &mqtt));
    daemon.says("port p1: open").await;
    daemon.says("connected to the broker").await;
    wire.send(&meter.telegrams(3)).await;
    meter.is_stored_in(&database).await;
    wire.send(&large("large", 1, 5000)).await;
    wire.send(&meter.telegrams(10)).await;
    daemon.says("closes the connection upon packets of").await;
    // The rest arrives, and goes on arriving over a connection that stands.
    meter.is_stored_in(&database).await;
    let connects = || broker.log().matches("as meterkast-gw-1").count();
    let before = connects();
    tokio::time::sleep(Duration::from_secs(10)).await;
    wire.send(&meter.telegrams(5)).await;
    meter.is_stored_in(&database).await;
    assert_eq!(connects(), before, "the connection stands");
    // Nor is it lost: it arrives once it may.
    broker.stop("-TERM").await;
    broker.begin(&limited(10_000)).await;
    let all = meter.messages() as u64 + 1;
    until("the large one is stored", async || (counts(&database).await?.messages == all).then_some(())).await;
}

/// Publishes of a link in the tests below; several links together make 20,000.
const PUBLISHES: Tag = 5000;
/// How often each of their connections breaks.
const BREAKS: usize = 5;

/// Publishes its tags through a link, each as a payload of its own. Returns those that the broker took; every tag ends
/// exactly once, or this panics.
async fn publish_all(port: u16, name: String) -> BTreeSet<Tag> {
    let url = BrokerUrl { host: "127.0.0.1".into(), port, tls: false };
    let will = Will { topic: format!("{name}/will"), payload: "gone".into() };
    let Link { commands, mut events } = link::start(&url, &name, &Mqtt::default(), Some(will)).unwrap();
    let sending = tokio::spawn(async move {
        for tag in 1..=PUBLISHES {
            let publish = Command::Publish {
                topic: format!("{name}/x"),
                payload: format!("{name} {tag}"),
                retain: false,
                tag: Some(tag),
            };
            commands.send(publish).await.unwrap();
        }
        // The link ends when its commands can come from nowhere any more.
        commands
    });
    let (mut published, mut dropped) = (BTreeSet::new(), BTreeSet::new());
    while published.len() + dropped.len() < PUBLISHES as usize {
        let event = tokio::time::timeout(Duration::from_secs(60), events.recv()).await;
        let ended = published.len() + dropped.len();
        match event.unwrap_or_else(|_| panic!("the link stands still after {ended} publishes")).unwrap() {
            Event::Published(tag) => assert!(published.insert(tag) && !dropped.contains(&tag), "{tag} ends twice"),
            Event::Dropped(tag) => assert!(dropped.insert(tag) && !published.contains(&tag), "{tag} ends twice"),
            _ => {}
        }
    }
    assert!(!dropped.is_empty(), "nothing was underway when the connection broke");
    drop(sending.await.unwrap());
    published
}

/// A broker that claims to have kept the session each time, does not confirm the first publish of a connection (so that
/// the packet ids collide), and breaks the connection when that makes the client wait.
async fn contrary(listener: TcpListener, taken: Arc<Mutex<BTreeSet<String>>>) {
    for number in 0.. {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buffer = BytesMut::new();
        let mut first = number < BREAKS;
        if packet(&mut stream, &mut buffer).await.is_none() {
            continue;
        }
        let session = u8::from(number > 0);
        let _ = stream.write_all(&[0x20, 2, session, 0]).await;
        let patience = if number < BREAKS { Duration::from_millis(300) } else { Duration::from_secs(3600) };
        while let Ok(Some(packet)) = tokio::time::timeout(patience, packet(&mut stream, &mut buffer)).await {
            let Packet::Publish(publish) = packet else { continue };
            if !std::mem::take(&mut first) {
                taken.lock().unwrap().insert(String::from_utf8(publish.payload.to_vec()).unwrap());
                let _ = stream.write_all(&puback(publish.pkid)).await;
            }
        }
    }
}

#[tokio::test]
async fn every_publish_ends_once_whatever_the_broker_does_with_packet_ids_and_sessions() {
    let mut links = tokio::task::JoinSet::new();
    for number in 0..4 {
        links.spawn(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let (port, taken) = (listener.local_addr().unwrap().port(), Arc::new(Mutex::new(BTreeSet::new())));
            let broker = tokio::spawn(contrary(listener, taken.clone()));
            let name = format!("link-{number}");
            let published = publish_all(port, name.clone()).await;
            broker.abort();
            let taken = taken.lock().unwrap();
            for tag in &published {
                assert!(taken.contains(&format!("{name} {tag}")), "{tag} counts as taken, and was not");
            }
            published.len()
        });
    }
    let published: usize = links.join_all().await.into_iter().sum();
    assert!(published > 15_000, "{published}");
}

/// Carries to a broker; the first connections break after some bytes, wherever that is in a packet.
async fn brittle(listener: TcpListener, broker: u16, seed: usize) {
    for number in 0.. {
        let (mut near, _) = listener.accept().await.unwrap();
        let mut far = TcpStream::connect(("127.0.0.1", broker)).await.unwrap();
        let last = number >= BREAKS;
        let mut left = if last { usize::MAX } else { 3_000 + (seed * 7919 + number * 104_729) % 20_000 };
        let (mut there, mut back) = ([0; 1024], [0; 1024]);
        while left > 0 {
            let (to, read, bytes) = tokio::select! {
                read = near.read(&mut there) => (&mut far, read, &there),
                read = far.read(&mut back) => (&mut near, read, &back),
            };
            let count = read.unwrap_or(0).min(left);
            if count == 0 || to.write_all(&bytes[..count]).await.is_err() {
                break;
            }
            left -= count;
        }
    }
}

#[tokio::test]
async fn every_publish_ends_once_however_often_the_network_breaks() {
    // Else it forgets what it took, where our observer is slower than the links.
    let broker = Broker::patient().await;
    let client = Client::of(broker.port).await;
    let mut links = tokio::task::JoinSet::new();
    for number in 0..4 {
        let broker = broker.port;
        links.spawn(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let network = tokio::spawn(brittle(listener, broker, number));
            let name = format!("link-{number}");
            let published = publish_all(port, name.clone()).await;
            network.abort();
            published.into_iter().map(|tag| format!("{name} {tag}")).collect::<Vec<_>>()
        });
    }
    let published = links.join_all().await.concat();
    assert!(published.len() > 15_000, "{}", published.len());
    until("the broker forwards all that it took", async || {
        let seen: BTreeSet<String> = client.under("/x").into_iter().map(|seen| seen.payload).collect();
        published.iter().all(|one| seen.contains(one)).then_some(())
    })
    .await;
}

/// A client of the embedded broker that was accepted, without anything that would read what it is sent.
async fn accepted(port: u16, name: &str) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let mut connect = b"\x10\0\0\x04MQTT\x04\x02\0\x3c\0".to_vec();
    connect.push(name.len() as u8);
    connect.extend(name.as_bytes());
    connect[1] = connect.len() as u8 - 2;
    stream.write_all(&connect).await.ok()?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.ok()?;
    (answer == CONNACK).then_some(stream)
}

/// A publish of 200 kB.
fn ballast(topic: &str, qos: u8) -> Vec<u8> {
    let mut rest = (topic.len() as u16).to_be_bytes().to_vec();
    rest.extend(topic.as_bytes());
    if qos > 0 {
        rest.extend([0, 7]);
    }
    rest.resize(200_000, b'x');
    let mut publish = vec![0x30 | qos << 1, 0xC0, 0x9A, 0x0C];
    publish.extend(rest);
    publish
}

#[tokio::test]
async fn the_embedded_broker_stays_small_and_lets_the_way_go_on() {
    let (folder, mut wire, mut meter, port) = (Folder::new(), Wire::new(), Meter::new(130), free_port());
    let database = folder.path("meterkast.db");
    let mqtt = format!("[mqtt]\nlisten = \"127.0.0.1:{port}\"\n");
    let mut daemon = Meterkast::run(
        &folder.file("meterkast.toml", gateway(&folder, "gw-1", &wire.path) + &store(&database) + &mqtt),
    );
    daemon.says("port p1: open").await;
    daemon.says("connected to the broker as gateway").await;
    daemon.says("connected to the broker as store").await;
    wire.send(&meter.telegrams(3)).await;
    meter.is_stored_in(&database).await;

    // One that subscribes to everything and never reads.
    let mut deaf = accepted(port, "deaf").await.unwrap();
    deaf.write_all(&[0x82, 6, 0, 1, 0, 1, b'#', 1]).await.unwrap();
    // Noise, before a CONNECT and after.
    for seed in 0..20u8 {
        let noise: Vec<u8> = (0..50_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8 ^ seed).collect();
        let mut before = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let mut after = accepted(port, &format!("noise-{seed}")).await.unwrap();
        // The broker may close at any byte.
        let _ = (before.write_all(&noise).await, after.write_all(&noise).await);
    }
    wire.send(&meter.telegrams(3)).await;
    meter.is_stored_in(&database).await;
    // More connections than it takes, all of them kept.
    let mut crowd = Vec::new();
    for number in 0..200 {
        let one = tokio::time::timeout(Duration::from_secs(5), accepted(port, &format!("crowd-{number}"))).await;
        crowd.extend(one.ok().flatten());
    }
    assert!((50..100).contains(&crowd.len()), "{} connections", crowd.len());
    wire.send(&meter.telegrams(3)).await;
    meter.is_stored_in(&database).await;
    drop(crowd);
    // 90 MB, confirmed and not, also under topics that the store hears.
    let flooding = tokio::spawn(async move {
        for (name, topic, qos) in
            [("flood-1", "flood", 0), ("flood-2", "flood", 1), ("flood-3", "meterkast/x/y/telegram", 1)]
        {
            let mut flood = loop {
                match accepted(port, name).await {
                    Some(stream) => break stream,
                    // The crowd has not quite gone.
                    None => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            };
            let publish = ballast(topic, qos);
            let (mut answers, mut questions) = flood.split();
            let mut ignored = [0; 4096];
            for _ in 0..150 {
                tokio::select! {
                    written = questions.write_all(&publish) => if written.is_err() { break },
                    _ = async { while matches!(answers.read(&mut ignored).await, Ok(1..)) {} } => break,
                }
            }
        }
    });
    until("the flood is over", async || {
        wire.send(&meter.telegram()).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        flooding.is_finished().then_some(())
    })
    .await;
    flooding.await.unwrap();
    let electricity = meter.messages() as u64;
    until("all that was read is stored", async || (counts(&database).await?.messages >= electricity).then_some(()))
        .await;
    meter.is_stored_in(&database).await;
    let peak = memory(daemon.child().id(), "VmHWM");
    println!("peak memory of the embedded broker and both roles: {peak} KiB");
    // Of which the messages that wait for the commit of the store are the most.
    assert!(peak < 128 << 10, "{peak} KiB");
    assert!(!daemon.stderr().contains("panicked"), "{}", daemon.stderr());
    drop(deaf);
    assert!(daemon.terminate().await.0.success());
}
