//! `ceoagent export`: the jobs of a store as JSON lines, without a running service.

use std::{
    io::{BufWriter, Write},
    panic,
    process::ExitCode,
};

use crate::{app, config::Settings};

/// Exit code where something could not be read. Not 2, which is that of a wrong command line.
const INCOMPLETE: u8 = 3;

/// Settings of the export.
#[derive(clap::Args, Debug)]
pub struct Export {
    /// Read what can be read, also of a store that `serve` refuses to open; nothing in DATA_DIR is changed
    #[arg(long, required = true)]
    salvage: bool,

    /// The service's own, of which DATA_DIR counts here
    #[command(flatten)]
    settings: Settings,
}

impl Export {
    /// Writes the jobs to standard output, a summary to standard error.
    ///
    /// # Errors
    /// Whatever keeps it from reading anything, or from writing.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        hush_sled();
        let mut out = BufWriter::new(std::io::stdout().lock());
        let summary = app::salvage(&self.settings, &mut out)?;
        write!(std::io::stderr(), "{summary}")?;
        Ok(if summary.is_complete() { ExitCode::SUCCESS } else { ExitCode::from(INCOMPLETE) })
    }
}

/// On damaged files sled panics, which is caught and told in the summary; its own words on it would only confuse.
fn hush_sled() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if !panic.location().is_some_and(|place| place.file().contains("/sled-")) {
            usual(panic);
        }
    }));
}
