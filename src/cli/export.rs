//! `ceoagent export`: writes all jobs as JSON lines, from a running service or from a stopped or damaged data folder.

use std::{
    io::{BufWriter, Write, stderr, stdout},
    panic,
    process::ExitCode,
};

use anyhow::Context;
use reqwest::{Method, Url, header};

use super::{
    client::{ClientError, Connection},
    terminal::Escaping,
};
use crate::app;

/// Exit code if something could not be read.
pub(super) const INCOMPLETE: u8 = 3;

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  ceoagent export > jobs.jsonl                from the running service on this machine
  ceoagent export --url https://… --token …   from another service
  ceoagent export --salvage > jobs.jsonl      from the stopped or damaged data folder DATA_DIR

Exit codes: 0 all jobs exported; 1 error, the export is not complete; 3 (--salvage) some records
  could not be read, see the summary on standard error; 4 the service refused the request.")]
pub(super) struct Export {
    /// Read all readable jobs directly from DATA_DIR, also if `serve` can't open it; changes nothing there
    #[arg(long)]
    salvage: bool,

    #[command(flatten)]
    connection: Connection,
}

impl Export {
    /// Writes the jobs to standard output and a summary to standard error.
    pub(super) async fn run(&self) -> anyhow::Result<ExitCode> {
        if self.salvage { self.salvage() } else { self.live().await }
    }

    fn salvage(&self) -> anyhow::Result<ExitCode> {
        hush_sled();
        let mut out = Escaping(BufWriter::new(stdout().lock()));
        let summary = app::salvage(&self.connection.settings, &mut out)?;
        write!(stderr(), "{summary}")?;
        Ok(if summary.is_complete() { ExitCode::SUCCESS } else { ExitCode::from(INCOMPLETE) })
    }

    /// Page by page, so that both sides hold only one page in memory.
    async fn live(&self) -> anyhow::Result<ExitCode> {
        let client = self.connection.client()?;
        let mut out = Escaping(stdout().lock());
        let mut next = Some("/api/v1/admin/export".to_owned());
        let mut jobs = 0;
        while let Some(path) = next {
            let request = || client.request(Method::GET, &path);
            // If the first request fails, the service does not run.
            let page = if jobs == 0 { client.once(request()).await } else { client.patiently(request).await };
            let (headers, lines) = page.map_err(|error| {
                let context = match error {
                    ClientError::Unreachable { .. } if jobs == 0 => {
                        "can't export; for the data folder of a stopped service use `ceoagent export --salvage`".into()
                    }
                    _ => format!("the export stopped after {jobs} jobs"),
                };
                anyhow::Error::new(error).context(context)
            })?;
            out.write_all(lines.as_bytes())?;
            jobs += lines.lines().count();
            next = headers.get(header::LINK).map(next_page).transpose()?;
        }
        out.flush()?;
        writeln!(stderr(), "{jobs} jobs exported")?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Path and query of the next page. Its host does not matter: this command talks to `CEOAGENT_URL` alone.
fn next_page(link: &header::HeaderValue) -> anyhow::Result<String> {
    let address = link.to_str().ok().and_then(|link| link.split_once('<')?.1.split_once('>'));
    let address = address.and_then(|(address, _)| Url::parse(address).ok());
    let address = address.context("can't read the service's Link header")?;
    Ok(format!("{}?{}", address.path(), address.query().unwrap_or_default()))
}

/// Hides the panic messages of sled on damaged files. The panics are caught and counted in the summary.
fn hush_sled() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if !panic.location().is_some_and(|place| place.file().contains("/sled-")) {
            usual(panic);
        }
    }));
}
