//! `check`: validates a configuration, and looks whether this machine has what `run` will need.
//!
//! What is wrong with the file is an error. What is wrong with the machine is a remark, since the file may be for another.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use super::{Failure, Outcome, Output};
use crate::{
    config::{self, Address, Config},
    mqtt::link,
    port,
    store::StoreError,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

pub(super) fn check(arguments: &Arguments) -> Result<Outcome, Failure> {
    let config = Config::read(&arguments.file).map_err(Failure::usage)?;
    let mut output = Output::new();
    output.line(&format!("{}: ok", arguments.file.display()))?;
    for port in &config.p1 {
        output.line(&format!("  P1 port {}: {}", port.name.as_str(), port.port))?;
        remark_missing(arguments, &port.port);
    }
    for bus in &config.mbus {
        let meters = match bus.meters.len() {
            0 => "its meters are searched for at the first start".to_owned(),
            1 => "1 meter".to_owned(),
            meters => format!("{meters} meters"),
        };
        output.line(&format!("  M-Bus {}: {} at {} Bd, {meters}", bus.name.as_str(), bus.port, bus.baud))?;
        remark_missing(arguments, &bus.port);
        if let Address::Path(path) = &bus.port
            && std::fs::metadata(path).is_ok_and(|found| !found.file_type().is_char_device())
        {
            say!("{}: {} is no serial device; `run` cannot read a bus there", arguments.file.display(), path.display());
        }
    }
    for file in config.p1.iter().filter_map(|port| port.key_file.as_deref()) {
        if let Err(error) = port::read_key(file) {
            say!("{}: {error}; without it `run` does not start here", arguments.file.display());
        }
    }
    if let Err(error) = link::check(&config.mqtt) {
        say!("{}: {error}; without it `run` does not start here", arguments.file.display());
    }
    for doubt in config.doubts() {
        say!("{}: {doubt}", arguments.file.display());
    }
    match &config.mqtt.url {
        Some(url) => output.line(&format!("  broker: {url}"))?,
        None => output.line(&format!("  broker: embedded, on {}", config.mqtt.listen))?,
    }
    if let Some(store) = &config.store {
        if let Some(file) = store.url.file() {
            remark_database(arguments, file);
        }
        if let Some(path) = &store.password_file
            && let Err(error) = fs::read_to_string(path)
        {
            let (file, path) = (arguments.file.display(), path.display());
            say!("{file}: [store] password-file {path} cannot be read: {error}; until it can, `run` stores nothing");
        }
        output.line(&format!("  store {}: {}", store.id.as_str(), store.url))?;
    }
    if config.has_ports() {
        remark_journal(arguments, &config.journal);
        let stores = config.stores();
        if stores.is_empty() {
            output.line("  the promise that nothing is lost ends at the broker: [journal] stores is empty")?;
        } else {
            output.line(&format!(
                "  journal {}: kept until stored by {}",
                config.journal.path.display(),
                stores.join(", ")
            ))?;
        }
    }
    output.finish()?;
    Ok(Outcome::Well)
}

/// Not an error: the file may be for another machine.
fn remark_missing(arguments: &Arguments, port: &Address) {
    if let Address::Path(path) = port
        && !path.exists()
    {
        let file = arguments.file.display();
        say!("{file}: there is no {} on this machine now; `run` waits for it", path.display());
    }
}

fn remark_database(arguments: &Arguments, database: &Path) {
    if database.is_dir() {
        let error = StoreError::Directory(database.to_owned());
        say!("{}: the database {error}; `run` stores nothing until then", arguments.file.display());
        return;
    }
    let folder = database.parent().unwrap_or(Path::new("."));
    let file = database.exists().then_some(database);
    if let Some((path, error)) = unwritable(folder).or_else(|| file.and_then(unwritable_file)) {
        remark_unwritable(arguments, "database", database, &path, &error);
    }
}

fn remark_journal(arguments: &Arguments, journal: &config::Journal) {
    let folder = &journal.path;
    let files: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    // Files of another user are what a trial as root leaves behind.
    let in_the_way = unwritable(folder).or_else(|| files.iter().find_map(|file| unwritable_file(file)));
    if let Some((path, error)) = in_the_way {
        remark_unwritable(arguments, "journal", folder, &path, &error);
    }
    let Ok(disk) = rustix::fs::statvfs(existing(folder)) else { return };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let used: u64 = files.iter().filter_map(|file| fs::metadata(file).ok()).map(|file| file.len()).sum();
    if free.saturating_add(used) < journal.max_bytes {
        let (file, place) = (arguments.file.display(), folder.display());
        let (most, free) = (journal.max_bytes >> 20, free >> 20);
        say!(
            "{file}: [journal] max-bytes is {most} MiB, and {free} MiB are free where the journal {place} is: lower it, or the disk is \
             full before the oldest messages go"
        );
    }
}

fn remark_unwritable(arguments: &Arguments, what: &str, place: &Path, path: &Path, error: &io::Error) {
    let file = arguments.file.display();
    let owner = owner_of(path);
    say!(
        "{file}: the {what} {} cannot be written by this user: {}: {error}; it belongs to {owner}. `run` waits, or does not start, unless \
         its user may: look as that one (`sudo -u meterkast meterkast check {file}`), or choose another place",
        place.display(),
        path.display()
    );
}

/// The folder itself, or the nearest above it that there is.
fn existing(folder: &Path) -> &Path {
    let mut above = folder.ancestors().filter(|path| !path.as_os_str().is_empty());
    above.find(|path| path.exists()).unwrap_or(Path::new("."))
}

/// What is in the way of files in this folder, which is made if it is not there.
fn unwritable(folder: &Path) -> Option<(PathBuf, io::Error)> {
    let folder = existing(folder);
    // It has no name, and goes when it is closed.
    tempfile::tempfile_in(folder).err().map(|error| (folder.to_owned(), error))
}

fn unwritable_file(path: &Path) -> Option<(PathBuf, io::Error)> {
    File::options().write(true).open(path).err().map(|error| (path.to_owned(), error))
}

/// The name of the user whom a file belongs to, or the number.
fn owner_of(path: &Path) -> String {
    let Ok(found) = fs::metadata(path) else { return "nobody".to_owned() };
    let uid = found.uid().to_string();
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    });
    name.unwrap_or(uid)
}
