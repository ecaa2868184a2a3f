//! Pseudo-terminals that other programs open as if a meter or a converter hung there.

use std::{
    io,
    path::{Path, PathBuf},
};

use tokio_serial::{SerialPort, SerialStream};

use super::Failure;

/// Both ends of a pseudo-terminal, and the path at which others open theirs.
///
/// The end of the others stays open here all the time: when the last one closes it, our end has hung up, and from then on
/// tokio reads it without rest, even when the next one has opened it.
pub(super) fn terminal() -> Result<(SerialStream, SerialStream, String), Failure> {
    let failed = |error: tokio_serial::Error| Failure::world(format!("no pseudo-terminal: {error}"));
    let (ours, theirs) = SerialStream::pair().map_err(failed)?;
    let path = theirs.name().ok_or_else(|| Failure::world("the pseudo-terminal has no name"))?;
    Ok((ours, theirs, path))
}

/// A symbolic link that goes with this.
pub(super) struct Link {
    link: PathBuf,
    target: String,
}

impl Link {
    /// Makes it; `option` names it in errors.
    pub(super) fn new(option: &str, link: PathBuf, target: &str) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::usage(format!("{option} {}: {error}", link.display()));
        // One that a killed run left behind leads nowhere, and is replaced; anything else is not.
        let there = link.symlink_metadata().is_ok();
        if there && link.read_link().is_ok_and(|to| to.starts_with("/dev/pts")) && !link.exists() {
            std::fs::remove_file(&link).map_err(failed)?;
        } else if there {
            let link = link.display();
            return Err(Failure::usage(format!(
                "{option} {link}: is there already: choose another name, or remove it"
            )));
        }
        std::os::unix::fs::symlink(Path::new(target), &link).map_err(failed)?;
        Ok(Self { link, target: target.to_owned() })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // It may be gone, or another's.
        if self.link.read_link().is_ok_and(|to| to == Path::new(&self.target)) {
            let _ = std::fs::remove_file(&self.link);
        }
    }
}
