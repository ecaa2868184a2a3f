//! The topics below the base topic (by default `meterkast`), and their inverse.

/// What a topic of a gateway is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Each message once, live.
    Telegram,
    /// What a store has not confirmed.
    Backlog,
}

impl Stream {
    /// The last level of the topic.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Telegram => "telegram",
            Self::Backlog => "backlog",
        }
    }
}

/// A name as one topic level: every byte outside `[A-Za-z0-9._-]` becomes `~` and two hex digits.
pub fn level(name: &str) -> String {
    use std::fmt::Write as _;
    let mut level = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-') {
            level.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(level, "~{byte:02x}");
        }
    }
    level
}

/// `<base>/<gateway>/<meter>/<leaf>`; `leaf` is `telegram`, `backlog`, `state` or `interval`.
pub fn of_meter(base: &str, gateway: &str, meter: &str, leaf: &str) -> String {
    format!("{base}/{}/{}/{leaf}", level(gateway), level(meter))
}

/// `<base>/<gateway>/<leaf>`; `leaf` is `status` or `health`.
pub fn of_gateway(base: &str, gateway: &str, leaf: &str) -> String {
    format!("{base}/{}/{leaf}", level(gateway))
}

/// `<base>/<gateway>/ack/<store>`.
pub fn ack(base: &str, gateway: &str, store: &str) -> String {
    format!("{base}/{}/ack/{}", level(gateway), level(store))
}

/// `<base>/<gateway>/ack/+`: a filter for the acknowledgements of every store.
pub fn acks(base: &str, gateway: &str) -> String {
    format!("{base}/{}/ack/+", level(gateway))
}

/// `<base>/_stores/<store>/status`.
pub fn of_store(base: &str, store: &str) -> String {
    format!("{base}/_stores/{}/status", level(store))
}

/// `<base>/_stores/<store>/health`. Of several stores on one database each has a level of its own below it.
pub fn store_health(base: &str, store: &str) -> String {
    format!("{base}/_stores/{}/health", level(store))
}

/// The gateway, the meter (both as topic levels) and the stream of a message topic. None for others.
pub fn parse_message<'t>(base: &str, topic: &'t str) -> Option<(&'t str, &'t str, Stream)> {
    let mut levels = topic.strip_prefix(base)?.strip_prefix('/')?.split('/');
    let (gateway, meter, leaf) = (levels.next()?, levels.next()?, levels.next()?);
    let stream = match leaf {
        "telegram" => Stream::Telegram,
        "backlog" => Stream::Backlog,
        _ => return None,
    };
    levels.next().is_none().then_some((gateway, meter, stream))
}

/// What a gateway hears of its stores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromStore<'t> {
    /// An acknowledgement, by this store.
    Ack(&'t str),
    /// Its presence.
    Status(&'t str),
}

/// The store (as a topic level) behind an `ack` or `status` topic that this gateway listens to.
pub fn parse_from_store<'t>(base: &str, gateway: &str, topic: &'t str) -> Option<FromStore<'t>> {
    let rest = topic.strip_prefix(base)?.strip_prefix('/')?;
    if let Some(store) = rest.strip_prefix("_stores/").and_then(|rest| rest.strip_suffix("/status")) {
        return (!store.contains('/')).then_some(FromStore::Status(store));
    }
    let store = rest.strip_prefix(level(gateway).as_str())?.strip_prefix("/ack/")?;
    (!store.contains('/')).then_some(FromStore::Ack(store))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_one_level_each() {
        assert_eq!(level("KAM-12345678-1B-04"), "KAM-12345678-1B-04");
        assert_eq!(level("a/b+c#d é"), "a~2fb~2bc~23d~20~c3~a9");
        assert_eq!(of_meter("meterkast", "gw-1", "E 1", "telegram"), "meterkast/gw-1/E~201/telegram");
        assert_eq!(acks("meterkast", "a+b"), "meterkast/a~2bb/ack/+");
    }

    #[test]
    fn message_topics_read_back() {
        assert_eq!(parse_message("m", "m/gw/e1/telegram"), Some(("gw", "e1", Stream::Telegram)));
        assert_eq!(parse_message("a/b", "a/b/gw/e1/backlog"), Some(("gw", "e1", Stream::Backlog)));
        for other in ["m/gw/e1/state", "m/gw/status", "x/gw/e1/telegram", "m/gw/e1/telegram/x", "mm/gw/e1/telegram"] {
            assert_eq!(parse_message("m", other), None, "{other}");
        }
    }

    #[test]
    fn stores_speak_to_one_gateway_each() {
        assert_eq!(parse_from_store("m", "gw", "m/gw/ack/main"), Some(FromStore::Ack("main")));
        assert_eq!(parse_from_store("m", "gw", "m/_stores/main/status"), Some(FromStore::Status("main")));
        assert_eq!(parse_from_store("m", "gw", "m/other/ack/main"), None);
        assert_eq!(parse_from_store("m", "gw", "m/gw/ack/main/x"), None);
    }
}
