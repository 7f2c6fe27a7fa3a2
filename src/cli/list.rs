//! Lists of jobs, read page by page: of all callers or, if that is refused, of the caller.

use std::{
    io::{Write, stderr, stdout},
    process::ExitCode,
};

use comfy_table::Table;
use reqwest::Method;
use serde_json::Value;

use super::{
    client::{Client, ClientError},
    terminal::{clean, escaped, items, print_listing},
};

const PAGE: usize = 200;

pub(super) struct JobList<'a, const COLUMNS: usize> {
    /// The route of all jobs.
    pub(super) all: &'a str,
    /// The route of the caller's own jobs, for callers who may not list all.
    pub(super) own: Option<&'a str>,
    pub(super) params: Vec<(&'a str, &'a str)>,
    pub(super) limit: usize,
    pub(super) cursor: Option<String>,
    /// Lines of JSON instead of the table.
    pub(super) json: bool,
    pub(super) table: Table,
    pub(super) row: fn(&Value) -> [String; COLUMNS],
}

impl<const COLUMNS: usize> JobList<'_, COLUMNS> {
    pub(super) async fn print(mut self, client: &Client) -> anyhow::Result<ExitCode> {
        let mut left = self.limit;
        while left > 0 {
            let limit = left.min(PAGE).to_string();
            let paging = [("limit", Some(limit.as_str())), ("cursor", self.cursor.as_deref())];
            let request = client.request(Method::GET, self.all).query(&self.params).query(&paging);
            let page = match client.send(request).await {
                Err(ClientError::Refused(refusal))
                    if refusal.code == "forbidden" || (refusal.code == "unauthorized" && !client.has_token()) =>
                {
                    // A caller, not an operator.
                    self.all = self.own.take().ok_or(ClientError::Refused(refusal))?;
                    continue;
                }
                page => page?,
            };
            for job in items(&page, "jobs") {
                if self.json {
                    writeln!(stdout(), "{}", escaped(&job.to_string()))?;
                } else {
                    self.table.add_row((self.row)(job));
                }
                left -= 1;
            }
            self.cursor = page["next_cursor"].as_str().map(str::to_owned);
            if self.cursor.is_none() {
                break;
            }
        }
        if let Some(cursor) = self.cursor {
            writeln!(stderr(), "for more jobs add: --cursor {}", clean(&cursor))?;
        }
        if !self.json {
            print_listing(&self.table)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
