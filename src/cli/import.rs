//! `ceoagent import`: imports an archive, into a running service or into an empty place.

use std::{
    io::{BufRead, Write, stderr, stdin, stdout},
    process::ExitCode,
};

use anyhow::Context;
use reqwest::{Method, header};
use serde::Deserialize;

use super::{
    client::{Client, Connection, INCOMPLETE},
    move_data::{self, place},
    terminal::clean,
};
use crate::{
    app,
    store::archive::{ArchiveError, Checker, Kind},
};

const PAGE_LINES: usize = 100;

/// Most bytes of one request, without its last line.
const PAGE_BYTES: usize = 4 << 20;

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  ceoagent import < archive.jsonl                      the jobs, into the running service
  ceoagent export --url https://old.example.com | ceoagent import
  ceoagent import --to new-data < archive.jsonl        everything, into a new data folder
  ceoagent import --to DATABASE_URL < archive.jsonl    everything, into an empty database

A job with an existing id is skipped, so a failed import can be repeated. Pending jobs continue in
this service. A running attempt gets an unknown outcome, as after a crash (see ON_UNKNOWN_OUTCOME).

Exit codes: 0 all records imported; 1 error, the import is not complete; 3 some lines could not be
  read or are missing, see standard error; 4 the service refused the request.")]
pub(super) struct Import {
    /// Restore everything in an empty data folder or database that no service uses. DATABASE_URL stands for that setting,
    /// so that no password shows in the process list
    #[arg(long, value_name = "FOLDER|URL")]
    to: Option<String>,

    #[command(flatten)]
    connection: Connection,
}

#[derive(Default, Deserialize)]
struct Imported {
    imported: usize,
    skipped: usize,
    refused: Vec<Refused>,
}

#[derive(Deserialize)]
struct Refused {
    line: usize,
    message: String,
}

/// Lines on their way to a service.
struct Pages {
    client: Client,
    page: Vec<u8>,
    /// The number of each line of the page.
    numbers: Vec<usize>,
    imported: usize,
    skipped: usize,
    refused: usize,
    has_sent: bool,
}

impl Import {
    pub(super) async fn run(&self) -> anyhow::Result<ExitCode> {
        match &self.to {
            Some(to) => {
                let to = place("--to", to, &self.connection.settings)?;
                let transferred = app::transfer::import(stdin().lock(), &to, &mut move_data::progress()).await?;
                move_data::report("imported into", &to, &transferred)
            }
            None => self.live().await,
        }
    }

    /// Sends jobs and idempotency keys to a running service.
    async fn live(&self) -> anyhow::Result<ExitCode> {
        let mut pages = Pages::new(self.connection.client()?);
        let (mut checker, mut input, mut line) = (Checker::default(), stdin().lock(), Vec::new());
        for number in 1.. {
            line.clear();
            if input.read_until(b'\n', &mut line).context("can't read standard input")? == 0 {
                break;
            }
            match checker.take(&line) {
                Ok(Some(record)) if matches!(record.kind(), Kind::Job | Kind::IdempotencyKey) => {
                    pages.add(number, &line).await?;
                }
                Ok(_) => {}
                Err(error) if error.is_of_a_record() => pages.refuse(number, &error.to_string())?,
                Err(error) => {
                    pages.send().await?;
                    return Err(error).with_context(|| format!("line {number}"));
                }
            }
        }
        pages.send().await?;
        let Pages { imported, skipped, refused, .. } = pages;
        writeln!(stdout(), "{imported} jobs imported, {skipped} skipped (they exist already), {refused} refused")?;
        let left_out: Vec<String> = checker
            .tally()
            .0
            .iter()
            .filter_map(|(kind, count)| match kind {
                Kind::Job | Kind::IdempotencyKey | Kind::UnreadableJob => None,
                kind => Some(format!("{} {kind}", count.count)),
            })
            .collect();
        if !left_out.is_empty() {
            let left_out = left_out.join(", ");
            writeln!(
                stderr(),
                "left out, because a running service has its own: {left_out}. Use --to to restore them"
            )?;
        }
        let missing = checker.tally().count(Kind::UnreadableJob);
        move_data::report_missing(missing)?;
        match checker.finish() {
            Ok(()) if missing > 0 => Ok(ExitCode::from(INCOMPLETE)),
            // Of a line that could not be read nothing is known, so the counts can't agree.
            Err(ArchiveError::Count { .. } | ArchiveError::Checksum(_)) | Ok(()) if refused > 0 => {
                Ok(ExitCode::from(INCOMPLETE))
            }
            checked => {
                checked.context("what could be read was imported")?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

impl Pages {
    fn new(client: Client) -> Pages {
        let (page, numbers) = (Vec::new(), Vec::new());
        Pages { client, page, numbers, imported: 0, skipped: 0, refused: 0, has_sent: false }
    }

    async fn add(&mut self, number: usize, line: &[u8]) -> anyhow::Result<()> {
        self.page.extend_from_slice(line.trim_ascii_end());
        self.page.push(b'\n');
        self.numbers.push(number);
        if self.numbers.len() == PAGE_LINES || self.page.len() >= PAGE_BYTES { self.send().await } else { Ok(()) }
    }

    fn refuse(&mut self, number: usize, message: &str) -> anyhow::Result<()> {
        self.refused += 1;
        Ok(writeln!(stderr(), "line {number}: {}", clean(message))?)
    }

    async fn send(&mut self) -> anyhow::Result<()> {
        let (Some(first), Some(last)) = (self.numbers.first(), self.numbers.last()) else { return Ok(()) };
        let context = format!("the import stopped in the lines {first} to {last}; repeat it to import the rest");
        let answer = self.request().await.context(context)?;
        self.imported += answer.imported;
        self.skipped += answer.skipped;
        for Refused { line, message } in answer.refused {
            let number = self.numbers.get(line.wrapping_sub(1)).copied().unwrap_or(line);
            self.refuse(number, &message)?;
        }
        self.page.clear();
        self.numbers.clear();
        self.has_sent = true;
        Ok(())
    }

    /// Waits while the service restarts if it has answered before.
    async fn request(&self) -> anyhow::Result<Imported> {
        let request = || {
            let request = self.client.request(Method::POST, "/api/v1/admin/import");
            request.header(header::CONTENT_TYPE, "application/x-ndjson").body(self.page.clone())
        };
        let (_, answer) =
            if self.has_sent { self.client.patiently(request).await? } else { self.client.once(request()).await? };
        serde_json::from_str(&answer).context("can't read the service's answer")
    }
}
