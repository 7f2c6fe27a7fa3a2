//! A store in the making: a file that stands in its folder from before its first byte until all that it begins with is
//! durable. A start that dies in between (killed, the power cut, the disk full) leaves a database without its format
//! record, which would look like one whose beginning was lost; this file says that nothing was there to lose.
//!
//! Why it costs no job: the store is handed out, and can accept one, only after the file's removal is durable, so a store
//! that has a job has no such file, whenever the power fails. And where the file does not belong, as in a copy made by
//! hand or after two first starts at one moment, it is not believed: a store of which any record can be read, with sled
//! or without, or that ever acknowledged one, is no new one. Nor is anything ever removed from a database for it: sled
//! goes on with what it finds of the beginning, whatever part of it is there.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

/// Its file within the store's folder.
const FILE: &str = "creating";

/// sled's file of parameters within the store's folder. It writes it in two steps, opens no store with half of it, and
/// makes a new one if there is none.
const PARAMETERS: &str = "conf";

fn path(folder: &Path) -> PathBuf {
    folder.join(FILE)
}

/// Whether the store in `folder` was begun and not made to its end.
pub(super) fn is_under_way(folder: &Path) -> bool {
    path(folder).exists()
}

/// Begins, or begins again. Before sled makes its files.
pub(super) fn begin(folder: &Path) -> io::Result<()> {
    File::create(path(folder))?;
    sync(folder)?;
    if_there(fs::remove_file(folder.join(PARAMETERS)))
}

/// Ends. Once the records are durable, and before the store is handed out.
pub(super) fn end(folder: &Path) -> io::Result<()> {
    if_there(sync(&folder.join(PARAMETERS)))?;
    // The new files' names must survive a power cut too.
    sync(folder)?;
    if let Some(parent) = folder.parent() {
        sync(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })?;
    }
    if_there(fs::remove_file(path(folder)))?;
    sync(folder)
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// What is missing was never there, or another first start took it away in this moment, which then finds the store in use.
fn if_there(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}
