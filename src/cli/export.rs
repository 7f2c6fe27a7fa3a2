//! `ceoagent export`: writes an archive, from a running service, or from a store that no service uses.

use std::{
    io::{BufWriter, Write, stderr, stdout},
    panic,
    process::ExitCode,
};

use anyhow::Context;

use super::{
    client::{ClientError, Connection, INCOMPLETE},
    move_data::{self, place},
    terminal::{clean, escaped},
};
use crate::{
    app,
    clock::Clock,
    store::archive::{Checker, Kind, Record, Tally, Writer},
};

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  ceoagent export > archive.jsonl               from the running service on this machine
  ceoagent export --url https://… --token …     from another service
  ceoagent export --from data > archive.jsonl   everything, from the data folder of a stopped service
  ceoagent export --from DATABASE_URL           everything, from the database of stopped nodes
  ceoagent export --salvage > archive.jsonl     the jobs of the stopped or damaged data folder DATA_DIR

A running service gives its jobs, costs, history and audit log. API keys, sessions and runtime
settings are only in an archive made with --from. Such an archive is a secret.

Exit codes: 0 all records exported; 1 error, the archive is not complete; 3 some records could not be
  read, see standard error; 4 the service refused the request.")]
pub(super) struct Export {
    /// Read everything from a data folder or a database that no service uses. DATABASE_URL stands for that setting, so
    /// that no password shows in the process list
    #[arg(long, value_name = "FOLDER|URL", conflicts_with = "salvage")]
    from: Option<String>,

    /// Read all readable jobs directly from DATA_DIR, also if `serve` can't open it; changes nothing there
    #[arg(long)]
    salvage: bool,

    #[command(flatten)]
    connection: Connection,
}

impl Export {
    /// Writes the archive to standard output and a summary to standard error.
    pub(super) async fn run(&self) -> anyhow::Result<ExitCode> {
        if self.salvage {
            return self.salvage();
        }
        let tally = match &self.from {
            Some(from) => {
                let from = place("--from", from, &self.connection.settings)?;
                app::transfer::export(&from, &mut writer(false)).await?
            }
            None => self.live().await?,
        };
        writeln!(stderr(), "exported: {}", move_data::summary(&tally))?;
        let is_complete = tally.count(Kind::UnreadableJob) == 0;
        Ok(if is_complete { ExitCode::SUCCESS } else { ExitCode::from(INCOMPLETE) })
    }

    fn salvage(&self) -> anyhow::Result<ExitCode> {
        hush_sled();
        let summary = app::salvage(&self.connection.settings, &mut writer(true))?;
        write!(stderr(), "{summary}")?;
        Ok(if summary.is_complete() { ExitCode::SUCCESS } else { ExitCode::from(INCOMPLETE) })
    }

    /// Copies the archive of a service line by line, checks it, and writes it for a terminal. Names the jobs that the service
    /// could not read.
    async fn live(&self) -> anyhow::Result<Tally> {
        let mut lines = self.connection.client()?.export().await.map_err(|error| {
            let context = match error {
                ClientError::Unreachable { .. } => {
                    "can't export; for a stopped service use `ceoagent export --from DATA_DIR`, or `--salvage` if it is damaged"
                }
                _ => "can't export",
            };
            anyhow::Error::new(error).context(context)
        })?;
        let (mut checker, mut out, mut number) = (Checker::default(), writer(true), 0);
        let stopped = |checker: &Checker| format!("the export stopped after {} jobs", checker.tally().count(Kind::Job));
        while let Some(line) = lines.next().await.with_context(|| stopped(&checker))? {
            number += 1;
            let wrong = || format!("line {number} from the service");
            let Some(record) = checker.take(&line).with_context(wrong)? else { continue };
            out.line(record.kind(), str::from_utf8(line.trim_ascii_end()).with_context(wrong)?)?;
            if let Record::UnreadableJob(id, reason) = record {
                writeln!(stderr(), "job {id} can't be read, so its question and memo are missing: {}", clean(&reason))?;
            }
        }
        checker.finish().with_context(|| stopped(&checker))?;
        Ok(out.end()?)
    }
}

fn writer(is_partial: bool) -> Writer<impl Write> {
    Writer::new(BufWriter::new(stdout()), escaped, Clock::system().wall(), is_partial)
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
