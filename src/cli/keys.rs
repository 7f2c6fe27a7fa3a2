//! `ceoagent keys`: the API keys of callers, to list, make and revoke.

use std::{io::Write, process::ExitCode};

use comfy_table::{ContentArrangement, Table};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    client::Connection,
    jobs::{BARE, text},
    serve,
    terminal::{self, clean},
};

/// Where the service has its keys.
const PATH: &str = "/api/v1/admin/keys";

/// What to do with keys.
#[derive(clap::Args, Debug)]
pub struct Keys {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    /// List all keys, also revoked ones; the secret keys are not shown
    List(Box<List>),
    /// Create a key and print it; it is shown only once
    Create(Box<Create>),
    /// Revoke a key at once and for good
    Revoke(Box<Revoke>),
}

#[derive(clap::Args, Debug)]
struct List {
    /// Print the service's answer as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    connection: Connection,
}

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  ceoagent keys create alice
  ceoagent keys create alice/reports --scope read --json | jq -r .key > reports.key

Callers need a key only if the service runs with REQUIRE_API_KEY=true. Otherwise a key only names
its caller.
Exit codes: 0 success; 1 other error; 4 the service refused the request.")]
struct Create {
    /// Name of the key and its caller, or CALLER/KEY for one of several keys: up to 64 letters, digits or . _ - @
    name: String,

    /// What the key allows: read, analyze or admin. Default: analyze
    #[arg(long)]
    scope: Option<String>,

    /// Print the service's answer as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    connection: Connection,
}

#[derive(clap::Args, Debug)]
struct Revoke {
    /// The key's name
    name: String,

    /// Print the service's answer as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    connection: Connection,
}

impl Keys {
    /// Does it.
    ///
    /// # Errors
    /// If the service can't be asked, or refuses.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        serve::runtime()?.block_on(async {
            match self.action {
                Action::List(list) => list.run().await,
                Action::Create(create) => create.run().await,
                Action::Revoke(revoke) => revoke.run().await,
            }
        })
    }
}

impl List {
    async fn run(&self) -> anyhow::Result<ExitCode> {
        let answer = self.connection.client()?.get(PATH).await?;
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{}", terminal::json(&answer)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut table = Table::new();
        table.load_style(BARE).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(["NAME", "SCOPE", "CREATED", "BY", "REVOKED"]);
        for key in answer["keys"].as_array().into_iter().flatten() {
            table.add_row(["name", "scope", "created_at", "created_by", "revoked_at"].map(|field| text(key, field)));
        }
        for line in table.lines() {
            writeln!(out, "{}", line.trim())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Create {
    async fn run(&self) -> anyhow::Result<ExitCode> {
        let client = self.connection.client()?;
        let mut wanted = json!({ "name": self.name });
        if let Some(scope) = &self.scope {
            wanted["scope"] = scope.as_str().into();
        }
        let key = client.send(client.request(Method::POST, PATH).json(&wanted)).await?;
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{}", terminal::json(&key)?)?;
        } else {
            // The key alone goes to standard output, for a script to take.
            writeln!(out, "{}", text(&key, "key"))?;
            let name = text(&key, "name");
            writeln!(std::io::stderr(), "the key {name:?} of scope {}; it is shown only once", text(&key, "scope"))?;
            if let Some(notice) = key["notice"].as_str() {
                writeln!(std::io::stderr(), "{}", clean(notice))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Revoke {
    async fn run(&self) -> anyhow::Result<ExitCode> {
        let client = self.connection.client()?;
        let path = format!("{PATH}/{}", in_path(&self.name));
        let key: Value = client.send(client.request(Method::DELETE, &path)).await?;
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{}", terminal::json(&key)?)?;
        } else {
            writeln!(out, "{} revoked", clean(&self.name))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A name as one segment of a path. Characters that no name contains become `~`, which no name contains either.
fn in_path(name: &str) -> String {
    // A segment of dots would address another path.
    if name.is_empty() || name.chars().all(|c| c == '.') {
        return "~".to_owned();
    }
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-@/".contains(c) { c } else { '~' };
    name.chars().map(plain).collect::<String>().replace('/', "%2F")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::auth::is_name;

    proptest! {
        #[test]
        fn every_name_that_can_be_made_can_be_revoked(name in "[a-z0-9A-Z._@-]{1,32}(/[a-zA-Z0-9._@-]{1,31})?|[./-]{1,9}") {
            prop_assume!(is_name(&name));
            let url = reqwest::Url::parse(&format!("http://localhost{PATH}/{}", in_path(&name))).unwrap();
            let segment = url.path().strip_prefix(PATH).unwrap().strip_prefix('/').unwrap();
            prop_assert!(!segment.contains('/'), "{}", segment);
            prop_assert_eq!(segment.replace("%2F", "/"), name);
        }
    }

    #[test]
    fn no_name_leads_out_of_the_list_of_keys() {
        assert_eq!(in_path("ci@a.b_c-1"), "ci@a.b_c-1");
        assert_eq!(in_path("alice/../reports"), "alice%2F..%2Freports");
        for name in ["..", ".", "", "a?b", "a#b", "%2e", "ä"] {
            let path = in_path(name);
            assert!(path.contains('~') && !path.contains('/'), "{name}: {path}");
        }
    }
}
