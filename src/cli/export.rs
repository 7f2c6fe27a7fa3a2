//! `ceoagent export`: all jobs as JSON lines, of a running service, or of a data folder that no service can use.

use std::{
    io::{BufWriter, Write},
    panic,
    process::ExitCode,
};

use anyhow::Context;
use reqwest::{Method, header};

use super::{
    client::{ClientError, Connection},
    serve,
};
use crate::app;

/// Exit code where something could not be read. Not 2, which is that of a wrong command line.
pub(super) const INCOMPLETE: u8 = 3;

/// Settings of the export.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  ceoagent export > jobs.jsonl                of the service on this machine, while it runs
  ceoagent export --url https://… --token …   of another one
  ceoagent export --salvage > jobs.jsonl      of the stopped or damaged data folder DATA_DIR

Exit codes: 0 all was read; 1 nothing, or not to its end; 3 (--salvage) something could not be read,
  which the summary on standard error and the lines themselves tell; 4 the service refused.")]
pub struct Export {
    /// Read what can be read of DATA_DIR, also where `serve` refuses to open it; nothing in it is changed
    #[arg(long)]
    salvage: bool,

    #[command(flatten)]
    connection: Connection,
}

impl Export {
    /// Writes the jobs to standard output, a summary to standard error.
    ///
    /// # Errors
    /// Whatever keeps it from reading, or from writing.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        if self.salvage { self.salvage() } else { self.live() }
    }

    fn salvage(&self) -> anyhow::Result<ExitCode> {
        hush_sled();
        let mut out = BufWriter::new(std::io::stdout().lock());
        let summary = app::salvage(&self.connection.settings, &mut out)?;
        write!(std::io::stderr(), "{summary}")?;
        Ok(if summary.is_complete() { ExitCode::SUCCESS } else { ExitCode::from(INCOMPLETE) })
    }

    /// Page by page, so that neither side holds more than a page.
    fn live(&self) -> anyhow::Result<ExitCode> {
        serve::runtime()?.block_on(async {
            let client = self.connection.client()?;
            let mut out = std::io::stdout().lock();
            let mut next = Some("/api/v1/admin/export".to_owned());
            let mut jobs = 0;
            while let Some(path) = next {
                let page = match jobs {
                    // A service that is not there at the start is not restarting.
                    0 => client.once(client.request(Method::GET, &path)).await,
                    _ => client.patiently(|| client.request(Method::GET, &path)).await,
                };
                let (headers, lines) = page.map_err(|error| match error {
                    ClientError::Unreachable { .. } if jobs == 0 => anyhow::Error::new(error)
                        .context("to read the data folder of a stopped service, use `ceoagent export --salvage`"),
                    error => anyhow::Error::new(error).context(format!("only the first {jobs} jobs were exported")),
                })?;
                out.write_all(lines.as_bytes())?;
                jobs += lines.lines().count();
                let link =
                    headers.get(header::LINK).map(|link| link.to_str().context("the service's Link can't be read"));
                next = link.transpose()?.and_then(|link| Some(link.split_once('<')?.1.split_once('>')?.0.to_owned()));
            }
            out.flush()?;
            writeln!(std::io::stderr(), "{jobs} jobs exported")?;
            Ok(ExitCode::SUCCESS)
        })
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
