//! `ceoagent keys`: lists, creates and revokes the API keys of callers.

use std::{
    io::{Write, stderr, stdout},
    process::ExitCode,
};

use reqwest::Method;
use serde_json::json;

use super::{
    client::Connection,
    serve,
    terminal::{clean, given, listing, print_json, print_listing, text},
};

const PATH: &str = "/api/v1/admin/keys";

#[derive(clap::Args, Debug)]
pub struct Keys {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    /// List all keys, also revoked ones; the secret keys are not shown
    List(Box<Common>),
    /// Create a key and print it; it is shown only once
    #[command(after_help = "Examples:
  ceoagent keys create alice
  ceoagent keys create alice/reports --scope read --json | jq -r .key > reports.key

Callers need a key only if the service runs with REQUIRE_API_KEY=true. Otherwise a key only names
its caller.
Exit codes: 0 success; 1 other error; 4 the service refused the request.")]
    Create {
        /// Name of the key and its caller, or CALLER/KEY for one of several keys: up to 64 letters, digits or . _ - @
        name: String,

        /// What the key allows: read, analyze or admin. Default: analyze
        #[arg(long)]
        scope: Option<String>,

        #[command(flatten)]
        common: Box<Common>,
    },
    /// Revoke a key at once and for good
    Revoke {
        /// The key's name
        name: String,

        #[command(flatten)]
        common: Box<Common>,
    },
}

#[derive(clap::Args, Debug)]
struct Common {
    /// Print the service's answer as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    connection: Connection,
}

impl Keys {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        serve::runtime()?.block_on(async {
            match self.action {
                Action::List(common) => list(&common).await?,
                Action::Create { name, scope, common } => create(&name, scope.as_deref(), &common).await?,
                Action::Revoke { name, common } => revoke(&name, &common).await?,
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

async fn list(common: &Common) -> anyhow::Result<()> {
    let answer = common.connection.client()?.get(PATH).await?;
    if common.json {
        return print_json(&answer);
    }
    let mut table = listing(["NAME", "SCOPE", "CREATED", "BY", "REVOKED"]);
    for key in answer["keys"].as_array().into_iter().flatten() {
        table.add_row(["name", "scope", "created_at", "created_by", "revoked_at"].map(|field| text(key, field)));
    }
    Ok(print_listing(&table)?)
}

async fn create(name: &str, scope: Option<&str>, common: &Common) -> anyhow::Result<()> {
    let client = common.connection.client()?;
    let wanted = given(json!({ "name": name, "scope": scope }));
    let key = client.send(client.request(Method::POST, PATH).json(&wanted)).await?;
    if common.json {
        return print_json(&key);
    }
    // The key alone goes to standard output, for a script to take.
    writeln!(stdout(), "{}", text(&key, "key"))?;
    let (name, scope) = (text(&key, "name"), text(&key, "scope"));
    writeln!(stderr(), "the key {name:?} of scope {scope}; it is shown only once")?;
    if let Some(notice) = key["notice"].as_str() {
        writeln!(stderr(), "{}", clean(notice))?;
    }
    Ok(())
}

async fn revoke(name: &str, common: &Common) -> anyhow::Result<()> {
    let client = common.connection.client()?;
    let key = client.send(client.request(Method::DELETE, &format!("{PATH}/{}", in_path(name)))).await?;
    if common.json {
        return print_json(&key);
    }
    Ok(writeln!(stdout(), "{} revoked", clean(name))?)
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
