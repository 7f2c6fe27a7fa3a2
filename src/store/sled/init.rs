//! The first start of a store: a file stands in its folder until the store is durable. A start that dies in between leaves a
//! database without its format record, which would look damaged; the file says that it is only unfinished.
//!
//! The store accepts no job before the removal of the file is durable. Where the file does not belong, as in a copy made by
//! hand, it is ignored: a store with any record, or that ever acknowledged a commit, is not new. And nothing is removed from a
//! database because of the file: sled goes on with what it finds.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

const FILE: &str = "creating";

/// sled's file of parameters. sled writes it in two steps, opens no store with half of it, and creates a missing one.
const PARAMETERS: &str = "conf";

fn path(folder: &Path) -> PathBuf {
    folder.join(FILE)
}

/// Whether the store in `folder` was begun and not finished.
pub(super) fn is_unfinished(folder: &Path) -> bool {
    path(folder).exists()
}

/// Begins, or begins again. Before sled creates its files.
pub(super) fn begin(folder: &Path) -> io::Result<()> {
    File::create(path(folder))?;
    sync(folder)?;
    allow_missing(fs::remove_file(folder.join(PARAMETERS)))
}

/// Once the records are durable, and before the store is used.
pub(super) fn finish(folder: &Path) -> io::Result<()> {
    allow_missing(sync(&folder.join(PARAMETERS)))?;
    // The names of the new files must survive a power cut too.
    sync(folder)?;
    if let Some(parent) = folder.parent() {
        sync(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })?;
    }
    allow_missing(fs::remove_file(path(folder)))?;
    sync(folder)
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Another first start at the same moment may have removed it; that one then finds the store in use.
fn allow_missing(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}
