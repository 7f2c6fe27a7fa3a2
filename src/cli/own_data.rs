//! `ceoagent own-data`: changes the owner of the data folder to the service's user. For containers, where the folder
//! belongs to the user who created it on the host. So the image needs neither a shell nor `chown`, and the service no root.

use std::{fs, io, os::unix::fs::lchown, path::Path, process::ExitCode};

use anyhow::Context;

use crate::{app, config::Settings};

#[derive(clap::Args, Debug)]
pub(super) struct OwnData {
    /// The new owner as numeric USER:GROUP, for example 10001:10001
    #[arg(long, value_parser = owner)]
    owner: (u32, u32),

    /// Check the settings first, as `ceoagent serve` does, and change nothing if they can't be used
    #[arg(long)]
    check_settings: bool,

    #[command(flatten)]
    settings: Settings,
}

/// The ids of a user and a group.
fn owner(text: &str) -> Result<(u32, u32), &'static str> {
    let ids = text.split_once(':').and_then(|(user, group)| Some((user.parse().ok()?, group.parse().ok()?)));
    ids.ok_or("must be two numbers, for example 10001:10001")
}

impl OwnData {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        if self.check_settings {
            self.settings.validate()?;
            app::check(&self.settings)?;
        }
        let folder = &self.settings.data_dir;
        give(folder, self.owner).with_context(|| format!("can't change the owner of DATA_DIR {}", folder.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Changes links themselves and does not follow them, because they can point outside of the data folder.
fn give(path: &Path, (user, group): (u32, u32)) -> io::Result<()> {
    lchown(path, Some(user), Some(group))?;
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), (user, group))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn an_owner_is_two_numbers() {
        assert_eq!(owner("10001:7"), Ok((10001, 7)));
        for wrong in ["", "10001", "a:b", "1:2:3", "-1:1"] {
            assert!(owner(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn everything_in_the_folder_changes_its_owner_and_nothing_outside() {
        let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
        let (inner, link) = (folder.path().join("store"), folder.path().join("link"));
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("db"), "x").unwrap();
        symlink(outside.path(), &link).unwrap();
        give(folder.path(), (10001, 10002)).unwrap();
        for path in [folder.path(), &inner, &inner.join("db"), &link] {
            let found = fs::symlink_metadata(path).unwrap();
            assert_eq!((found.uid(), found.gid()), (10001, 10002), "{}", path.display());
        }
        assert_ne!(fs::metadata(outside.path()).unwrap().uid(), 10001);
    }
}
