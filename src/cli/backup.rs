//! `backup` and `restore`: a SQLite database as one file, made while the daemon runs, and put back.

use std::{
    fs,
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

use super::{
    Failure, Outcome, asked_to_end,
    export::part,
    place::{Place, is_same},
};
use crate::{
    config::StoreUrl,
    store::{
        StoreError, Trouble,
        sqlite::{self, Contents},
    },
};

#[derive(Debug, clap::Args)]
pub(super) struct Backup {
    /// The file to make
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    place: Place,
    /// Overwrite a file that is there
    #[arg(long)]
    force: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Restore {
    /// The backup
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    place: Place,
}

pub(super) async fn backup(arguments: Backup) -> Result<Outcome, Failure> {
    let url = arguments.place.url()?;
    let (path, file) = (file_of(&url)?, &arguments.file);
    let failed = |error: io::Error| Failure::usage(format!("{}: {error}", file.display()));
    match fs::metadata(file) {
        Ok(there) if there.is_dir() => {
            return Err(Failure::usage(StoreError::Directory(file.clone())));
        }
        Ok(there) if !there.is_file() => {
            return Err(Failure::usage(format!("{}: is a device or a pipe; name a file", file.display())));
        }
        Ok(_) if is_same(path, file) => {
            return Err(Failure::usage(format!("{}: is the database itself; name another file", file.display())));
        }
        Ok(_) if !arguments.force => {
            return Err(Failure::usage(format!("{}: is there already; --force overwrites it", file.display())));
        }
        _ => {}
    }
    let part = part(file).map_err(Failure::usage)?;
    // As readable as the database, and no more.
    fs::metadata(path).and_then(|there| part.as_file().set_permissions(there.permissions())).map_err(|error| {
        match error.kind() {
            io::ErrorKind::NotFound => Failure::world(StoreError::Missing(path.to_owned())),
            _ => failed(error),
        }
    })?;
    let whole = size(path).saturating_add(size(&beside(path, "-wal")));
    let contents = tokio::select! {
        contents = sqlite::copy(path, part.path()) => contents,
        () = show(part.path(), whole) => Err(StoreError::Missing(path.to_owned())),
        asked = asked_to_end() => {
            // The copy itself goes by its own.
            let _ = fs::remove_file(beside(part.path(), "-journal"));
            return asked.and(Err(Failure::world("ended before it was complete: no backup was made")));
        }
    };
    let contents = contents.map_err(Failure::world)?;
    part.as_file().sync_all().map_err(failed)?;
    part.persist(file).map_err(|error| failed(error.error))?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    say!("{}: {} bytes; {}", file.display(), size(file), told(&contents));
    Ok(Outcome::Well)
}

pub(super) async fn restore(arguments: Restore) -> Result<Outcome, Failure> {
    let url = arguments.place.url()?;
    let (path, file) = (file_of(&url)?, &arguments.file);
    if is_same(path, file) {
        return Err(Failure::usage(format!("{}: is the database itself; name a backup", file.display())));
    }
    let bar = spinner();
    let restored = sqlite::restore(path, file).await;
    bar.finish_and_clear();
    let (contents, kept) = restored.map_err(|error| match error {
        StoreError::Held(_) => {
            Failure::world(format!("{}: a daemon writes this database; stop it first", path.display()))
        }
        error => of_backup(file, error),
    })?;
    say!("{}: {}", path.display(), told(&contents));
    if let Some(kept) = kept {
        say!("what stood there is kept as {}", kept.display());
    }
    say!("the gateways send what they still hold once the store runs");
    Ok(Outcome::Well)
}

/// Why a backup is not put back. What helps a database that is in use does not help here.
fn of_backup(file: &Path, error: StoreError) -> Failure {
    let name = file.display();
    match &error {
        StoreError::Missing(path) if path == file => {
            Failure::world(format!("{name}: there is no such file; name one that `meterkast backup` made"))
        }
        StoreError::Directory(path) if path == file => {
            Failure::world(format!("{name}: is a directory; name a file that `meterkast backup` made"))
        }
        StoreError::Database { place, trouble, source } if *place == name.to_string() => match trouble {
            Trouble::NotADatabase => Failure::world(format!(
                "{name}: is no backup of a meterkast database; name a file that `meterkast backup` made"
            )),
            Trouble::Corrupt => Failure::world(format!("{name}: is damaged; take another backup")),
            Trouble::CannotOpen => Failure::world(format!("{name}: cannot be opened: {source}")),
            _ => Failure::world(error),
        },
        _ => Failure::world(error),
    }
}

/// The file of a store; PostgreSQL is backed up by its own tools.
fn file_of(url: &StoreUrl) -> Result<&Path, Failure> {
    url.file().ok_or_else(|| {
        Failure::usage(format!(
            "{url}: PostgreSQL is backed up by its own tools: `pg_dump --format custom` while it runs, or `pg_basebackup` with its log; after one is put back, `DELETE FROM store` there, so that the gateways send again what they hold"
        ))
    })
}

fn told(contents: &Contents) -> String {
    let Contents { meters, messages, newest } = contents;
    let newest =
        newest.map_or_else(|| "none received yet".to_owned(), |newest| format!("the newest received {newest}"));
    format!("{messages} messages of {meters} meters, {newest}")
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

fn spinner() -> ProgressBar {
    let bar = if io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Shows how far a copy is, for ever.
async fn show(part: &Path, whole: u64) {
    if !io::stderr().is_terminal() {
        return std::future::pending().await;
    }
    let bar = ProgressBar::new(whole);
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {bytes} of at most {total_bytes}") {
        bar.set_style(style);
    }
    loop {
        bar.set_position(size(part));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
