//! `ceoagent import`: imports exported jobs into a running service.

use std::{
    io::{BufRead, Write, stderr, stdin, stdout},
    process::ExitCode,
};

use anyhow::Context;
use reqwest::{Method, header};
use serde::Deserialize;

use super::{
    client::{Client, Connection},
    export::INCOMPLETE,
    terminal::clean,
};

const PAGE_LINES: usize = 100;

/// Most bytes of one request, without its last line.
const PAGE_BYTES: usize = 4 << 20;

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  ceoagent import < jobs.jsonl
  ceoagent export --url https://old.example.com | ceoagent import

A job with an existing id is skipped, so a failed import can be repeated. Pending jobs continue in
this service. A running attempt gets an unknown outcome, as after a crash (see ON_UNKNOWN_OUTCOME).

Exit codes: 0 all jobs imported; 1 error, the import is not complete; 3 some lines could not be
  read as jobs, see standard error; 4 the service refused the request.")]
pub(super) struct Import {
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

impl Import {
    pub(super) async fn run(&self) -> anyhow::Result<ExitCode> {
        let client = self.connection.client()?;
        let (mut imported, mut skipped, mut refused) = (0, 0, 0);
        let mut page = String::new();
        let (mut lines, mut sent) = (0, 0);
        let mut input = stdin().lock();
        loop {
            let end = input.read_line(&mut page).context("can't read standard input as UTF-8 text")? == 0;
            lines += usize::from(!end);
            if end || lines - sent == PAGE_LINES || page.len() >= PAGE_BYTES {
                let answer = send(&client, &page, sent > 0)
                    .await
                    .with_context(|| format!("the import stopped after line {sent}; repeat it to import the rest"))?;
                imported += answer.imported;
                skipped += answer.skipped;
                refused += answer.refused.len();
                for refused in &answer.refused {
                    writeln!(stderr(), "line {}: {}", sent + refused.line, clean(&refused.message))?;
                }
                page.clear();
                sent = lines;
            }
            if end {
                break;
            }
        }
        writeln!(stdout(), "{imported} jobs imported, {skipped} skipped (they exist already), {refused} refused")?;
        Ok(if refused == 0 { ExitCode::SUCCESS } else { ExitCode::from(INCOMPLETE) })
    }
}

/// Waits while the service restarts if it has answered before (`begun`).
async fn send(client: &Client, lines: &str, begun: bool) -> anyhow::Result<Imported> {
    if lines.is_empty() {
        return Ok(Imported::default());
    }
    let request = || {
        let request = client.request(Method::POST, "/api/v1/admin/import");
        request.header(header::CONTENT_TYPE, "application/x-ndjson").body(lines.to_owned())
    };
    let (_, answer) = if begun { client.patiently(request).await? } else { client.once(request()).await? };
    serde_json::from_str(&answer).context("can't read the service's answer")
}
