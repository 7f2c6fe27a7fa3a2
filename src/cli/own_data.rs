//! `ceoagent own-data`: hands the data folder to the user that the service runs as. For container engines, where whoever
//! made the folder on the host owns it: so the image needs neither a shell nor `chown`, and the service no rights.

use std::{fs, io, os::unix::fs::lchown, path::Path, process::ExitCode};

use anyhow::Context;

use crate::config::Settings;

/// A user and a group by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    user: u32,
    group: u32,
}

/// The command.
#[derive(clap::Args, Debug)]
pub struct OwnData {
    /// The new owner, as USER:GROUP in numbers
    #[arg(long, value_parser = owner)]
    owner: Owner,

    #[command(flatten)]
    settings: Settings,
}

fn owner(text: &str) -> Result<Owner, String> {
    let numbers = text.split_once(':').and_then(|(user, group)| Some((user.parse().ok()?, group.parse().ok()?)));
    let (user, group) = numbers.ok_or("expected two numbers, such as 10001:10001")?;
    Ok(Owner { user, group })
}

impl OwnData {
    /// Makes the owner that of DATA_DIR and of all in it.
    ///
    /// # Errors
    /// If the folder is not there or can't be given away, which takes root's rights.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let folder = &self.settings.data_dir;
        give(folder, self.owner).with_context(|| format!("DATA_DIR {} can't be given away", folder.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Links are given away themselves, never followed: what they point to is not of the data folder.
fn give(path: &Path, owner: Owner) -> io::Result<()> {
    lchown(path, Some(owner.user), Some(owner.group))?;
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), owner)?;
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
        assert_eq!(owner("10001:7"), Ok(Owner { user: 10001, group: 7 }));
        for wrong in ["", "10001", "a:b", "1:2:3", "-1:1"] {
            assert!(owner(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn everything_in_the_folder_is_given_and_nothing_outside() {
        let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
        let (inner, link) = (folder.path().join("store"), folder.path().join("link"));
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("db"), "x").unwrap();
        symlink(outside.path(), &link).unwrap();
        give(folder.path(), Owner { user: 10001, group: 10002 }).unwrap();
        for path in [folder.path(), &inner, &inner.join("db"), &link] {
            let found = fs::symlink_metadata(path).unwrap();
            assert_eq!((found.uid(), found.gid()), (10001, 10002), "{}", path.display());
        }
        assert_ne!(fs::metadata(outside.path()).unwrap().uid(), 10001);
    }
}
