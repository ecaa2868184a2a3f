//! The configuration file: TOML to checked values.
//!
//! Enters: the text of a file. Leaves: a [`Config`] in which every value is usable as it stands, or a
//! [`ConfigError`] that names the line and the remedy. Which sections are there says which roles the
//! process takes: `[[p1]]` and `[[mbus]]` make it a gateway, `[store]` a store. Secrets stand in files of their own.
//!
//! Not supported yet: `[http]`.

use std::{
    fmt,
    io::ErrorKind,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Deserializer, de};

use crate::{p1::Dialect, plausible::Connection};

mod mbus;

pub use mbus::{Mbus, Meter, TIMEOUTS};

/// Everything a configuration says.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// `[gateway]`.
    #[serde(default)]
    pub gateway: Gateway,
    /// `[[p1]]`.
    #[serde(default)]
    pub p1: Vec<P1>,
    /// `[[mbus]]`.
    #[serde(default)]
    pub mbus: Vec<Mbus>,
    /// `[mqtt]`.
    #[serde(default)]
    pub mqtt: Mqtt,
    /// `[store]`.
    pub store: Option<Store>,
    /// `[journal]`.
    #[serde(default)]
    pub journal: Journal,
    /// `[control]`.
    #[serde(default)]
    pub control: Control,
}

/// `[gateway]`: who this process is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Gateway {
    /// Its name on MQTT; by default made from the board's serial number.
    pub id: Option<GatewayId>,
    /// Whether this machine's clock can be trusted from the start.
    #[serde(default)]
    pub clock: ClockTrust,
}

/// Whether this machine's clock can be trusted from the start. A Raspberry Pi wakes up in the past.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClockTrust {
    /// Meters that give no time are read once the clock is synchronised, or after ten minutes, then marked.
    #[default]
    WhenSynchronised,
    /// It is right from the start: a battery keeps it, or the host of a container does.
    Always,
}

/// `[[p1]]`: a port of a smart meter.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct P1 {
    /// What it is called; names meters that do not name themselves.
    #[serde(default = "P1::default_name")]
    pub name: Name,
    /// Where its bytes come from.
    pub port: Address,
    /// Whose tables explain it; by default found from the telegram.
    #[serde(default, deserialize_with = "dialect")]
    pub dialect: Option<Dialect>,
    /// File that holds the key of encrypted telegrams: 32 hexadecimal digits, and on a second line the
    /// authentication key where the operator of the grid gives one.
    pub key_file: Option<PathBuf>,
    /// What the connection can carry: what is beyond is flagged as too fast.
    #[serde(default, deserialize_with = "connection")]
    pub limit: Connection,
}

/// `[mqtt]`: the broker.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Mqtt {
    /// The broker; without it one is embedded.
    pub url: Option<BrokerUrl>,
    /// User name at the broker.
    pub user: Option<String>,
    /// File that holds the password, a trailing line end ignored.
    pub password_file: Option<PathBuf>,
    /// Certificate authority to trust (PEM); by default those of the system.
    pub ca: Option<PathBuf>,
    /// Client certificate (PEM), with `key`.
    pub cert: Option<PathBuf>,
    /// Private key of `cert` (PEM).
    pub key: Option<PathBuf>,
    /// Where the embedded broker listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What all topics begin with.
    pub base_topic: BaseTopic,
}

impl Default for Mqtt {
    fn default() -> Self {
        Self {
            url: None,
            user: None,
            password_file: None,
            ca: None,
            cert: None,
            key: None,
            listen: SocketAddr::from(([127, 0, 0, 1], 1883)),
            base_topic: BaseTopic("meterkast".to_owned()),
        }
    }
}

/// `[store]`: the time-series store.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Store {
    /// The database.
    pub url: StoreUrl,
    /// File that holds the password of a PostgreSQL server, a trailing line end ignored.
    pub password_file: Option<PathBuf>,
    /// Its name in acknowledgements.
    #[serde(default = "StoreId::main")]
    pub id: StoreId,
    /// How long a message may wait for others before they are committed together.
    #[serde(default = "Store::default_commit", deserialize_with = "duration")]
    pub commit: Duration,
    /// How long single messages are kept, counted back from their meter's newest. Quarter-hour
    /// registers stay for ever.
    #[serde(default = "Store::default_retention", deserialize_with = "duration")]
    pub retention: Duration,
}

/// `[journal]`: what is kept until it is stored.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Journal {
    /// A directory, used by one process.
    pub path: PathBuf,
    /// Which stores must confirm a message; by default this process's own, or `main`.
    pub stores: Option<Vec<StoreId>>,
    /// Most bytes kept; then the oldest go.
    #[serde(deserialize_with = "bytes")]
    pub max_bytes: u64,
    /// Bytes of its disk that are left to others: with fewer free it stops growing.
    #[serde(deserialize_with = "bytes")]
    pub keep_free: u64,
    /// How often what was written is made to survive a power cut.
    #[serde(deserialize_with = "duration")]
    pub sync: Duration,
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            path: PathBuf::from("/var/lib/meterkast/journal"),
            stores: None,
            max_bytes: 1 << 30,
            keep_free: 128 << 20,
            sync: Duration::from_secs(10),
        }
    }
}

/// `[control]`: where the running daemon answers other programs of this machine.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Control {
    /// The socket; empty: none; by default [`Control::DEFAULT`], where its directory is there.
    pub path: Option<PathBuf>,
}

impl Control {
    /// Where the socket is by default.
    pub const DEFAULT: &str = "/run/meterkast/control.sock";

    /// Where the socket is to be, if anywhere.
    pub fn socket(&self) -> Option<&Path> {
        let path = self.path.as_deref().unwrap_or(Path::new(Self::DEFAULT));
        (!path.as_os_str().is_empty()).then_some(path)
    }
}

impl P1 {
    fn default_name() -> Name {
        Name("p1".to_owned())
    }
}

impl Store {
    fn default_commit() -> Duration {
        Duration::from_secs(30)
    }

    fn default_retention() -> Duration {
        Duration::from_secs(92 * 86_400)
    }
}

/// Where bytes come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A serial device, a file or a pipe: what it is shows when it is opened.
    Path(PathBuf),
    /// `tcp://host:port`.
    Tcp(String),
    /// `-`: standard input.
    Stdin,
}

impl Address {
    /// Reads `tcp://host:port`, `-` or a path.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "-" {
            return Ok(Self::Stdin);
        }
        if let Some(target) = text.strip_prefix("tcp://") {
            let valid =
                target.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
            return if valid {
                Ok(Self::Tcp(target.to_owned()))
            } else {
                Err(format!(
                    "`{text}` has no port number from 0 to 65535: write tcp://host:port, such as \"tcp://192.168.1.20:23\""
                ))
            };
        }
        if text.is_empty() || text.contains("://") {
            return Err(format!(
                "`{text}` is no port: write a device such as \"/dev/serial/by-id/usb-...\", \"tcp://host:port\", a file, or \"-\" for standard input"
            ));
        }
        Ok(Self::Path(PathBuf::from(text)))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Tcp(target) => write!(f, "tcp://{target}"),
            Self::Stdin => f.write_str("standard input"),
        }
    }
}

/// `mqtt://host[:port]` or `mqtts://host[:port]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    /// Name or address.
    pub host: String,
    /// 1883 or 8883 unless given.
    pub port: u16,
    /// Whether it is `mqtts`.
    pub tls: bool,
}

impl BrokerUrl {
    /// Reads a URL. The error never repeats what may be a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        const FORM: &str = "write \"mqtt://host:1883\" or \"mqtts://host:8883\"";
        let (tls, rest) = if let Some(rest) = text.strip_prefix("mqtts://") {
            (true, rest)
        } else if let Some(rest) = text.strip_prefix("mqtt://") {
            (false, rest)
        } else {
            return Err(format!("the URL of the broker begins neither with mqtt:// nor with mqtts://: {FORM}"));
        };
        if rest.contains('@') {
            return Err(
                "the URL of the broker holds a user or a password: use the keys `user` and `password-file`".into()
            );
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let default = if tls { 8883 } else { 1883 };
        let (host, port) = match rest.rsplit_once(':') {
            // A colon inside brackets belongs to an IPv6 address.
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().map_err(|_| format!("`{port}` is no port number: {FORM}"))?)
            }
            _ => (rest, default),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || host.contains(['/', '?', '#', ' ']) {
            return Err(format!("the URL of the broker names no host: {FORM}"));
        }
        Ok(Self { host: host.to_owned(), port, tls })
    }

    /// Where a broker that listens there is reached from this machine.
    pub fn of_listener(at: SocketAddr) -> Self {
        // Whoever listens everywhere is reached on the loopback address.
        let host = match at.ip() {
            ip if ip.is_unspecified() && ip.is_ipv6() => "::1".to_owned(),
            ip if ip.is_unspecified() => "127.0.0.1".to_owned(),
            ip => ip.to_string(),
        };
        Self { host, port: at.port(), tls: false }
    }
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "mqtts" } else { "mqtt" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

/// Where a store keeps what it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// `sqlite:///path`: a file.
    Sqlite(PathBuf),
    /// A server.
    Postgres(PostgresUrl),
}

impl StoreUrl {
    /// Reads a URL. The error never repeats what may be a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(rest) = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://")) {
            return PostgresUrl::parse(rest).map(Self::Postgres);
        }
        match text.strip_prefix("sqlite://") {
            Some(path) if !path.is_empty() && !path.contains('?') => Ok(Self::Sqlite(PathBuf::from(path))),
            // A path has none of these; a URL that is not well written may hold a password.
            _ if !text.is_empty() && !text.contains([':', '@', '?']) => {
                Err(format!("the URL of the store is a path: write \"sqlite://{text}\""))
            }
            _ => Err("the URL of the store is neither of the form \"sqlite:///var/lib/meterkast/meterkast.db\" \
                nor of the form \"postgres://user@host/database\""
                .into()),
        }
    }

    /// A database at this path.
    pub fn sqlite(path: &Path) -> Self {
        Self::Sqlite(path.to_owned())
    }

    /// Whether several stores may write it at once.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Postgres(_))
    }

    /// The file, where it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Sqlite(path) => Some(path),
            Self::Postgres(_) => None,
        }
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite://{}", path.display()),
            Self::Postgres(url) => write!(f, "{url}"),
        }
    }
}

/// `postgres://user@host:port/database?sslmode=verify-full`. It is shown without its password, and without what follows the `?`.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUrl {
    text: String,
    shown: String,
    has_password: bool,
    /// File that holds the password, a trailing line end ignored.
    pub password_file: Option<PathBuf>,
}

impl PostgresUrl {
    /// What may follow the `?`.
    const PARAMETERS: [&str; 9] =
        ["application_name", "dbname", "host", "options", "port", "sslcert", "sslkey", "sslmode", "sslrootcert"];

    /// Reads what follows the `postgres://`.
    fn parse(rest: &str) -> Result<Self, String> {
        let wrong =
            |what: &str| Err(format!("the URL of the store {what}: write \"postgres://user@host:5432/database\""));
        let (place, parameters) = rest.split_once('?').unwrap_or((rest, ""));
        for (name, _) in url_pairs(parameters) {
            if name == "password" {
                return wrong("holds a password behind the `?`; [store] password-file is for it");
            }
            if !Self::PARAMETERS.contains(&name) {
                // Not repeated: a password may have a `?` in it.
                return wrong(&format!("has a parameter that is not known (known: {})", Self::PARAMETERS.join(", ")));
            }
        }
        let (authority, database) = place.split_once('/').unwrap_or((place, ""));
        let (login, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = match login.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (login, None),
        };
        // A password with one of these must not be taken for something that is shown.
        let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%".contains(&byte));
        if !plain(user) || !plain(database) || password.is_some_and(|password| password.contains('@')) {
            return wrong("has a sign in its user, password or database that must be written as % and two hex digits");
        }
        let (name, port) = match host.rsplit_once(':') {
            // A colon inside brackets belongs to an IPv6 address.
            Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
            _ => (host, None),
        };
        let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        let is_host = address.map_or_else(|| plain(name), |address| address.parse::<std::net::Ipv6Addr>().is_ok());
        if !is_host || port.is_some_and(|port| port.parse::<u16>().is_err()) {
            return wrong("does not name one host and a port number");
        }
        let user = if user.is_empty() { String::new() } else { format!("{user}@") };
        let slash = if database.is_empty() { "" } else { "/" };
        Ok(Self {
            text: format!("postgres://{rest}"),
            shown: format!("postgres://{user}{host}{slash}{database}"),
            has_password: password.is_some(),
            password_file: None,
        })
    }

    /// The URL as it was written: it may hold a password.
    pub fn secret(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgresUrl({self})")
    }
}

/// The names and values behind the `?` of a URL.
fn url_pairs(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// A text that passed its check.
macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name(String);

        impl $name {
            /// Checks the text.
            pub fn parse(text: &str) -> Result<Self, String> {
                let check: fn(&str) -> Result<(), String> = $check;
                check(text).map(|()| Self(text.to_owned()))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
    };
}

checked_text!(
    /// A gateway's id: a name that does not begin with `_`, which the stores' topics begin with.
    GatewayId,
    |text| {
        name(text)?;
        if text.starts_with('_') { Err(format!("`{text}` begins with `_`: choose another id")) } else { Ok(()) }
    }
);
checked_text!(
    /// A store's id: a name that is not the last level of a meter's topic.
    StoreId,
    |text| {
        name(text)?;
        let taken = matches!(text, "telegram" | "backlog" | "state" | "interval");
        if taken { Err(format!("`{text}` is the name of a topic: choose another id")) } else { Ok(()) }
    }
);
checked_text!(
    /// A port's name.
    Name,
    name
);
checked_text!(
    /// One or more topic levels.
    BaseTopic,
    |text| {
        let valid = !text.is_empty()
            && text.len() <= 64
            && !text.starts_with('$')
            && text.split('/').all(|level| !level.is_empty() && !level.contains(['+', '#', '\0']));
        if valid { Ok(()) } else { Err(format!("`{text}` is no topic: use levels without + and #, such as \"meterkast\"")) }
    }
);

impl StoreId {
    fn main() -> Self {
        Self("main".to_owned())
    }
}

/// 1 to 64 bytes without control characters.
fn name(text: &str) -> Result<(), String> {
    if (1..=64).contains(&text.len()) && !text.chars().any(char::is_control) {
        Ok(())
    } else {
        Err("a name has 1 to 64 characters, none of them a control character".into())
    }
}

macro_rules! deserialize_by_parse {
    ($($name:ident),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
            }
        }
    )*};
}
deserialize_by_parse!(Address, BrokerUrl, StoreUrl, GatewayId, StoreId, Name, BaseTopic);

fn dialect<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Dialect>, D::Error> {
    let text = String::deserialize(deserializer)?;
    match Dialect::NAMES.iter().find(|(name, _)| *name == text) {
        Some((_, dialect)) => Ok(Some(*dialect)),
        None => {
            let names = Dialect::NAMES.map(|(name, _)| name);
            Err(de::Error::custom(with_nearest(&format!("unknown dialect `{text}`"), &text, &names)))
        }
    }
}

fn connection<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Connection, D::Error> {
    const FORM: &str = "write phases and amperes, such as \"3x25A\"";
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Limit {
        Text(String),
        Number(i64),
    }
    match Limit::deserialize(deserializer) {
        Ok(Limit::Text(text)) => {
            Connection::from_text(&text).ok_or_else(|| de::Error::custom(format!("`{text}` is no connection: {FORM}")))
        }
        Ok(Limit::Number(number)) => Err(de::Error::custom(format!("`{number}` does not say how many phases: {FORM}"))),
        Err(_) => Err(de::Error::custom(format!("this is no connection: {FORM}"))),
    }
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer).map_err(|_| {
        de::Error::custom("write a duration in quotation marks: a whole number and ms, s, m, h or d, such as \"15m\"")
    })?;
    parse_duration(&text).ok_or_else(|| {
        de::Error::custom(format!(
            "`{text}` is no duration: write a whole number and ms, s, m, h or d, such as \"30s\" or \"15m\""
        ))
    })
}

/// A whole number and `ms`, `s`, `m`, `h` or `d`; more than nothing, at most a hundred years.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let split = text.find(|letter: char| !letter.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(split)?;
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    let total = number.parse::<u64>().ok()?.checked_mul(milliseconds)?;
    (1..=36_525 * 86_400_000).contains(&total).then(|| Duration::from_millis(total))
}

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    /// Below this a journal could not hold what may be outstanding.
    const LEAST: u64 = 16 << 20;
    let text = String::deserialize(deserializer)?;
    let parse = || {
        let split = text.find(|letter: char| !letter.is_ascii_digit())?;
        let (number, unit) = text.split_at_checked(split)?;
        let factor: u64 = match unit {
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return None,
        };
        number.parse::<u64>().ok()?.checked_mul(factor)
    };
    match parse() {
        Some(bytes) if bytes >= LEAST => Ok(bytes),
        Some(_) => Err(de::Error::custom(format!("`{text}` is too small: at least \"16MiB\""))),
        None => Err(de::Error::custom(format!(
            "`{text}` is no size: write a whole number and MiB or GiB, such as \"1GiB\""
        ))),
    }
}

/// What is wrong with a configuration, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, as the user named it.
    pub file: String,
    /// The line, from 1; 0 when no single line is at fault.
    pub line: usize,
    /// What and what to do.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            write!(f, "{}: {}", self.file, self.message)
        } else {
            write!(f, "{}:{}: {}", self.file, self.line, self.message)
        }
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError {
            file: path.display().to_string(),
            line: 0,
            message: match error.kind() {
                ErrorKind::NotFound => "there is no such file".to_owned(),
                _ => format!("cannot be read as a configuration: {error}"),
            },
        })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Reads and checks a text; `file` is how errors name it.
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfigError> {
        let mut config: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(0, |span| {
                text.bytes().take(span.start).filter(|&byte| byte == b'\n').count().saturating_add(1)
            });
            ConfigError { file: file.to_owned(), line, message: explain(error.message()) }
        })?;
        let wrong = |message: String| Err(ConfigError { file: file.to_owned(), line: 0, message });
        let p1 = config.p1.iter().map(|port| (&port.name, &port.port, "[[p1]]"));
        let ports: Vec<_> = p1.chain(config.mbus.iter().map(|bus| (&bus.name, &bus.port, "[[mbus]]"))).collect();
        for (index, (name, port, section)) in ports.iter().enumerate() {
            let earlier = || ports.iter().take(index);
            if let Some((.., other)) = earlier().find(|(_, other, _)| other == port) {
                let who = if other == section { format!("two {section}") } else { format!("{other} and {section}") };
                return wrong(format!("{who} read from {port}: each port can be read once"));
            }
            if earlier().any(|(other, ..)| other == name) {
                let name = name.as_str();
                return wrong(format!("two ports are named `{name}`: give each {section} a `name` of its own"));
            }
        }
        for bus in &config.mbus {
            let twice = |(index, meter): (usize, &Meter)| {
                bus.meters.iter().take(index).any(|other| other.address == meter.address).then_some(meter.address)
            };
            if let Some(address) = bus.meters.iter().enumerate().find_map(twice) {
                let name = bus.name.as_str();
                return wrong(format!("bus `{name}` has two [[mbus.meter]] with address {address}: leave one out"));
            }
        }
        if config.mqtt.cert.is_some() != config.mqtt.key.is_some() {
            return wrong("[mqtt] has one of `cert` and `key`: a client certificate needs both".into());
        }
        let tls = config.mqtt.url.as_ref().is_some_and(|url| url.tls);
        if !tls && (config.mqtt.ca.is_some() || config.mqtt.cert.is_some()) {
            return wrong("[mqtt] has `ca` or `cert`, but its `url` is not mqtts://".into());
        }
        if config.mqtt.password_file.is_some() && config.mqtt.user.is_none() {
            return wrong("[mqtt] has a `password-file` but no `user`".into());
        }
        if let Some(Store { url, password_file: Some(file), .. }) = &mut config.store {
            match url {
                StoreUrl::Postgres(url) if !url.has_password => url.password_file = Some(file.clone()),
                StoreUrl::Postgres(_) => {
                    return wrong(
                        "[store] has a `password-file`, and a password in its `url`: leave out the one in the `url`"
                            .into(),
                    );
                }
                StoreUrl::Sqlite(_) => return wrong("[store] has a `password-file`, but its `url` is a file".into()),
            }
        }
        if !config.has_ports() && config.store.is_none() {
            return wrong("nothing to do: add a [[p1]] or [[mbus]] with a `port`, or a [store] with a `url`".into());
        }
        Ok(config)
    }

    /// What is allowed and yet probably not meant, in words for whoever wrote it.
    pub fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        if let (Some(id), Some(user)) = (&self.gateway.id, &self.mqtt.user)
            && self.has_ports()
            && id.as_str() != user
        {
            let id = id.as_str();
            doubts.push(format!(
                "[mqtt] user `{user}` is not the gateway's id `{id}`: brokers with the access rules of deploy/mosquitto take nothing from it"
            ));
        }
        if self.lacks_store() {
            doubts.push(
                "there is no [store] here and no broker ([mqtt] url) at which another could be: nothing confirms what the \
                 journal keeps, unless a store comes to the embedded broker"
                    .to_owned(),
            );
        }
        for (bus, meter) in self.mbus.iter().flat_map(|bus| bus.meters.iter().map(move |meter| (bus, meter))) {
            let interval = meter.interval.unwrap_or(bus.interval);
            if meter.at_least.is_some_and(|at_least| at_least > interval) {
                doubts.push(format!(
                    "meter {} has `at-least` above its interval of {} s: it is read as seldom as `at-least` says",
                    meter.address,
                    interval.as_secs()
                ));
            }
        }
        if let (Some(listed), Some(store)) = (&self.journal.stores, &self.store)
            && self.has_ports()
            && !listed.contains(&store.id)
        {
            let id = store.id.as_str();
            doubts.push(format!(
                "[journal] stores does not list this file's own store `{id}`: the journal does not wait for it"
            ));
        }
        doubts
    }

    /// Whether it makes this process a gateway.
    pub fn has_ports(&self) -> bool {
        !self.p1.is_empty() || !self.mbus.is_empty()
    }

    /// Whether a store is waited for that is neither in this process nor at a broker that others share.
    pub fn lacks_store(&self) -> bool {
        self.has_ports() && self.store.is_none() && self.mqtt.url.is_none() && !self.stores().is_empty()
    }

    /// The stores that must confirm a message: the listed ones, or this process's own, or `main`.
    pub fn stores(&self) -> Vec<String> {
        match &self.journal.stores {
            Some(stores) => stores.iter().map(|store| store.as_str().to_owned()).collect(),
            None => vec![self.store.as_ref().map_or("main", |store| store.id.as_str()).to_owned()],
        }
    }
}

/// serde's words for an unknown key, with the nearest known one.
fn explain(message: &str) -> String {
    let parse = || {
        let (key, rest) = message.strip_prefix("unknown field `")?.split_once('`')?;
        let known: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
        Some(with_nearest(&format!("unknown key `{key}`"), key, &known))
    };
    parse().unwrap_or_else(|| match message {
        "invalid type: map, expected a sequence" => {
            "write [[p1]] and [[mbus]] with two brackets, since there may be several, and a [[mbus.meter]] below its [[mbus]]"
                .into()
        }
        "invalid socket address syntax" => "is no address to listen on: write one such as \"127.0.0.1:1883\"".into(),
        _ if message.contains("leading zero") => {
            "a number does not begin with 0: a meter's number stands in quotation marks, such as \"01234567\"".into()
        }
        _ => message
            .replace("missing field", "missing key")
            .replace("expected a sequence", "expected a list such as [\"main\"]"),
    })
}

fn with_nearest(what: &str, word: &str, known: &[&str]) -> String {
    match nearest_first(word, known).first() {
        Some(nearest) if likeness(word, nearest) > 0.7 => {
            format!("{what}: did you mean `{nearest}`? Known here: {}", known.join(", "))
        }
        _ => format!("{what}. Known here: {}", known.join(", ")),
    }
}

/// Known names, those first that somebody may have meant by a word.
pub(crate) fn nearest_first<'k>(word: &str, known: &[&'k str]) -> Vec<&'k str> {
    let mut known = known.to_vec();
    known.sort_by(|a, b| likeness(word, b).total_cmp(&likeness(word, a)));
    known
}

/// One measure likes common beginnings, the other swapped letters.
fn likeness(word: &str, name: &str) -> f64 {
    strsim::jaro_winkler(word, name).max(strsim::normalized_damerau_levenshtein(word, name) + 0.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[[p1]]\nport = \"/dev/ttyUSB0\"\n[store]\nurl = \"sqlite:///tmp/x.db\"\n";

    fn error(text: &str) -> String {
        Config::parse(text, "c.toml").unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_those_of_the_contract() {
        let config = Config::parse(GOOD, "c.toml").unwrap();
        assert_eq!(config.p1[0].name.as_str(), "p1");
        assert_eq!(config.mqtt.listen.to_string(), "127.0.0.1:1883");
        assert_eq!(config.mqtt.base_topic.as_str(), "meterkast");
        assert_eq!(config.store.as_ref().unwrap().commit, Duration::from_secs(30));
        assert_eq!(config.journal.sync, Duration::from_secs(10));
        assert_eq!(config.stores(), ["main"]);
    }

    #[test]
    fn names_the_line_and_the_nearest_key() {
        assert_eq!(
            error("[[p1]]\nprot = \"/dev/ttyUSB0\"\n"),
            "c.toml:2: unknown key `prot`: did you mean `port`? Known here: name, port, dialect, key-file, limit"
        );
        assert!(error("[gatway]\nid = \"x\"\n").starts_with("c.toml:1: unknown key `gatway`: did you mean `gateway`?"));
        assert!(error(&format!("{GOOD}[mqtt]\nulr = \"mqtt://h\"\n")).contains("did you mean `url`?"));
        assert!(error("[[p1]]\nname = \"a\"\n").contains("missing key `port`"));
        assert!(
            error("[[p1]]\nport = \"/dev/a\"\ndialect = \"belgum\"\n")
                .contains("c.toml:3: unknown dialect `belgum`: did you mean `belgium`?")
        );
        assert!(error("[[p1]\n").starts_with("c.toml:1: "));
        assert_eq!(
            error("[p1]\nport = \"/dev/a\"\n"),
            "c.toml:1: write [[p1]] and [[mbus]] with two brackets, since there may be several, and a [[mbus.meter]] below its [[mbus]]"
        );
        assert!(error("[journal]\nstores = \"main\"\n").contains("expected a list such as"));
        assert!(error("[mqtt]\nlisten = \"1883\"\n").contains("127.0.0.1:1883"));
    }

    #[test]
    fn values_are_checked_where_they_stand() {
        assert!(error(&format!("{GOOD}commit = \"30\"\n")).starts_with("c.toml:5: `30` is no duration"));
        assert!(error("[[p1]]\nport = \"tcp://host\"\n").starts_with("c.toml:2: `tcp://host` has no port number"));
        assert!(error(&format!("{GOOD}[mqtt]\nurl = \"http://x\"\n")).starts_with("c.toml:6: the URL of the broker"));
        assert!(error(&format!("{GOOD}[mqtt]\nlisten = \"localhost\"\n")).starts_with("c.toml:6: "));
        assert!(error(&format!("{GOOD}[journal]\nmax-bytes = \"1MiB\"\n")).contains("at least \"16MiB\""));
        assert!(error(&format!("{GOOD}[gateway]\nid = \"_x\"\n")).contains("begins with `_`"));
        assert!(error("[store]\nurl = \"sqlite:///x\"\nid = \"state\"\n").contains("name of a topic"));
    }

    #[test]
    fn a_bus_and_its_meters_are_read() {
        let text = "[[mbus]]\nport = \"tcp://h:1\"\ninterval = \"1h\"\ntimeout = \"2s\"\n[[mbus.meter]]\naddress = 5\n\
                    [[mbus.meter]]\naddress = \"12345678\"\nat-least = \"69m\"\nbaud = 300\ntelegrams = 1\nlimit = \"0.1 GJ\"\n\
                    before = [\"50 10\"]\n[[mbus.meter]]\naddress = \"KAM-12345678-1B-04\"\ninterval = \"5m\"\n";
        let bus = Config::parse(text, "c.toml").unwrap().mbus.remove(0);
        assert_eq!((bus.name.as_str(), bus.baud, bus.utc_offset), ("mbus", 2400, 1));
        let targets: Vec<String> = bus.meters.iter().map(|meter| meter.address.to_string()).collect();
        assert_eq!(targets, ["5", "12345678", "KAM-12345678-1B-04"]);
        let rhythms: Vec<u64> = bus.meters.iter().map(|meter| bus.rhythm(meter).interval.as_secs()).collect();
        assert_eq!(rhythms, [3600, 4140, 300]);
        let job = bus.job(&bus.meters[1]);
        assert_eq!((job.timing.baud, job.timing.timeout), (300, Some(Duration::from_secs(2))));
        let before = vec![crate::mbus::Command { ci: 0x50, data: vec![0x10] }];
        assert_eq!(job.task, crate::mbus::Task::Read { before, most_telegrams: 1 });
        let meter = |line: &str| error(&format!("[[mbus]]\nport = \"/dev/a\"\n[[mbus.meter]]\n{line}\n"));
        for (line, part) in [
            ("address = 251", "c.toml:4: `251` is no address: write a primary address from 0 to 250"),
            ("address = \"5\"", "c.toml:4: `5` is no address"),
            ("address = 1.5", "c.toml:4: this is no address"),
            ("address = 1\nbaud = 1", "`1` is no baud rate of M-Bus: write one of 300, 600"),
            ("address = 1\ntelegrams = 0", "write 1 to 250"),
            ("address = 1\nlimit = \"3x25A\"", "`3x25A` is no limit: write what it may count in an hour"),
            ("address = 1\nbefore = [\"5\"]", "`5` is no command"),
            ("address = 1\n[[mbus.meter]]\naddress = 1", "two [[mbus.meter]] with address 1"),
            ("adress = 1", "did you mean `address`?"),
        ] {
            assert!(meter(line).contains(part), "{line}: {}", meter(line));
        }
        assert!(error("[[mbus]]\nport = \"-\"\n").contains("standard input is no bus"));
        assert!(
            error("[[p1]]\nport = \"/dev/a\"\n[[mbus]]\nport = \"/dev/a\"\n").contains("each port can be read once")
        );
        assert!(error("[[mbus]]\nport = \"/dev/a\"\nutc-offset = 15\n").contains("whole hours from -12 to 14"));
    }

    #[test]
    fn secrets_are_not_repeated() {
        let said = error("[store]\nurl = \"/var/lib/x/meterkast.db\"\n");
        assert!(said.ends_with("the URL of the store is a path: write \"sqlite:///var/lib/x/meterkast.db\""), "{said}");
        let said = error(&format!("{GOOD}[mqtt]\nurl = \"mqtt://me:hunter2@host\"\n"));
        assert!(said.contains("password-file") && !said.contains("hunter2"), "{said}");
        for url in [
            "postgres://me:hunter2@host:port/db",
            "postgres://me:hunter2/x@host/db",
            "postgres://me:hunt?er2@host/db",
            "postgres://me:hunter2@x@host/db",
            "postgres://me@host/db?password=hunter2",
            "postgres://me@host/db?passwd=hunter2",
            "postgres://me:hunter2@host/db@x",
            "me:hunter2@host/db",
            "postgres://me:hunter2@one,two/db",
        ] {
            let said = error(&format!("[store]\nurl = \"{url}\"\n"));
            assert!(said.starts_with("c.toml:2: the URL of the store"), "{said}");
            assert!(!said.contains("hunt") && !said.contains("er2"), "{said}");
        }
        let config =
            Config::parse("[store]\nurl = \"postgres://me:hunter2@host:1/db?sslmode=require\"\n", "c.toml").unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
        assert_eq!(config.store.unwrap().url.to_string(), "postgres://me@host:1/db");
    }

    #[test]
    fn a_store_in_postgres_has_its_password_in_one_place() {
        let store =
            |text: &str| Config::parse(&format!("[store]\n{text}"), "c.toml").map(|config| config.store.unwrap().url);
        let StoreUrl::Postgres(url) = store("url = \"postgresql://me@h/db\"\npassword-file = \"p\"\n").unwrap() else {
            panic!()
        };
        assert_eq!(url.password_file, Some("p".into()));
        assert_eq!((url.secret(), url.to_string().as_str()), ("postgres://me@h/db", "postgres://me@h/db"));
        for (text, part) in [
            ("url = \"postgres://me:x@h/db\"\npassword-file = \"p\"\n", "leave out the one in the `url`"),
            ("url = \"sqlite:///x\"\npassword-file = \"p\"\n", "its `url` is a file"),
        ] {
            assert!(store(text).unwrap_err().to_string().contains(part), "{text}");
        }
        for good in [
            "postgres://h",
            "postgres:///db?host=/run/postgresql",
            "postgres://u@[::1]:5432/db",
            "postgres://%2Frun%2Fpg/db",
        ] {
            assert!(StoreUrl::parse(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn contradictions_are_refused() {
        for (text, part) in [
            ("", "nothing to do"),
            ("[[p1]]\nport = \"/dev/a\"\n[[p1]]\nport = \"/dev/b\"\n", "two ports are named"),
            ("[[p1]]\nname = \"a\"\nport = \"/dev/a\"\n[[p1]]\nport = \"/dev/a\"\n", "two [[p1]] read from"),
            ("[store]\nurl = \"sqlite:///x\"\n[mqtt]\nurl = \"mqtts://h\"\ncert = \"c\"\n", "needs both"),
            ("[store]\nurl = \"sqlite:///x\"\n[mqtt]\nurl = \"mqtt://h\"\nca = \"c\"\n", "not mqtts"),
        ] {
            assert!(error(text).contains(part), "{text}");
        }
    }

    #[test]
    fn broker_urls_have_their_default_ports() {
        let show = |text| BrokerUrl::parse(text).map(|url| url.to_string());
        assert_eq!(show("mqtt://broker").unwrap(), "mqtt://broker:1883");
        assert_eq!(show("mqtts://broker/").unwrap(), "mqtts://broker:8883");
        assert_eq!(show("mqtt://[::1]:1884").unwrap(), "mqtt://[::1]:1884");
        assert_eq!(show("mqtt://[::1]").unwrap(), "mqtt://[::1]:1883");
        assert!(show("mqtt://").is_err());
        assert!(show("mqtt://host:99999").is_err());
    }

    #[test]
    fn durations_and_sizes_are_exact() {
        assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse_duration("92d"), Some(Duration::from_secs(92 * 86_400)));
        for text in ["", "s", "0s", "1.5s", "-1s", "1w", "99999999999999999999d", "40000d"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
