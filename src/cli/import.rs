//! `ceoagent import`: jobs that were exported, into a running service.

use std::{
    io::{BufRead, Write},
    process::ExitCode,
};

use anyhow::Context;
use reqwest::{Method, header};
use serde::Deserialize;

use super::{
    client::{Client, Connection},
    export::INCOMPLETE,
    memo::clean,
    serve,
};

/// Lines of one request.
const PAGE_LINES: usize = 100;

/// Bytes of one request, but for its last line.
const PAGE_BYTES: usize = 4 << 20;

/// Settings of the import.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  ceoagent import < jobs.jsonl
  ceoagent export --url https://old.example.com | ceoagent import

A job whose id is there already is skipped, so an import that broke off can be repeated. Ended jobs come
with their attempts and memos; waiting ones go on; one that was running ends that attempt as of unknown
outcome, as after a crash (see ON_UNKNOWN_OUTCOME).

Exit codes: 0 all is there; 1 it broke off; 3 some lines are no job that can be read, told on standard error;
  4 the service refused.")]
pub struct Import {
    #[command(flatten)]
    connection: Connection,
}

/// The service's answer to a request.
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
    /// Reads jobs from standard input.
    ///
    /// # Errors
    /// Whatever keeps it from reading, or the service from taking them.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        serve::runtime()?.block_on(async {
            let client = self.connection.client()?;
            let mut sum = Imported::default();
            let mut page = String::new();
            let (mut lines, mut sent) = (0, 0);
            let mut input = std::io::stdin().lock();
            loop {
                let end = input.read_line(&mut page).context("standard input can't be read as UTF-8 text")? == 0;
                lines += usize::from(!end);
                if end || lines - sent == PAGE_LINES || page.len() >= PAGE_BYTES {
                    let answer = send(&client, &page, sent > 0).await.with_context(|| {
                        format!("the import broke off after line {sent}; repeated, it goes on from there")
                    })?;
                    sum.imported += answer.imported;
                    sum.skipped += answer.skipped;
                    for refused in &answer.refused {
                        writeln!(std::io::stderr(), "line {}: {}", sent + refused.line, clean(&refused.message))?;
                    }
                    sum.refused.extend(answer.refused);
                    page.clear();
                    sent = lines;
                }
                if end {
                    break;
                }
            }
            let Imported { imported, skipped, refused } = sum;
            let refused = refused.len();
            writeln!(std::io::stdout(), "{imported} jobs imported, {skipped} were there already, {refused} refused")?;
            Ok(if refused == 0 { ExitCode::SUCCESS } else { ExitCode::from(INCOMPLETE) })
        })
    }
}

/// `begun`: the service was there before, so it may come back.
async fn send(client: &Client, lines: &str, begun: bool) -> anyhow::Result<Imported> {
    if lines.is_empty() {
        return Ok(Imported::default());
    }
    let request = || {
        let request = client.request(Method::POST, "/api/v1/admin/import");
        request.header(header::CONTENT_TYPE, "application/x-ndjson").body(lines.to_owned())
    };
    let (_, answer) = if begun { client.patiently(request).await? } else { client.once(request()).await? };
    serde_json::from_str(&answer).context("the service's answer can't be read")
}
