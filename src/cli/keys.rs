//! `ceoagent keys`: lists, creates and revokes the API keys of callers.

use std::{
    io::{self, Write, stderr, stdout},
    process::ExitCode,
};

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    client::{Call, path_segment},
    terminal::{clean, given, items, listing, print_listing, text},
};

const PATH: &str = "/api/v1/admin/keys";

#[derive(clap::Subcommand, Debug)]
pub(super) enum Keys {
    /// List all keys, also revoked ones; the secret keys are not shown
    List(Box<Call>),
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
        call: Box<Call>,
    },
    /// Revoke a key at once and for good
    Revoke {
        /// The key's name
        name: String,

        #[command(flatten)]
        call: Box<Call>,
    },
}

impl Keys {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let answer = match self {
            Keys::List(call) => call.run(|client| client.request(Method::GET, PATH), print_keys).await,
            Keys::Create { name, scope, call } => {
                let wanted = given(json!({ "name": name, "scope": scope }));
                call.run(|client| client.request(Method::POST, PATH).json(&wanted), print_new).await
            }
            Keys::Revoke { name, call } => {
                let path = format!("{PATH}/{}", path_segment(&name));
                let print = |_: &Value| writeln!(stdout(), "{} revoked", clean(&name));
                call.run(|client| client.request(Method::DELETE, &path), print).await
            }
        };
        answer.map(|_| ExitCode::SUCCESS)
    }
}

fn print_keys(answer: &Value) -> io::Result<()> {
    let mut table = listing(["NAME", "SCOPE", "CREATED", "BY", "REVOKED"]);
    for key in items(answer, "keys") {
        table.add_row(["name", "scope", "created_at", "created_by", "revoked_at"].map(|field| text(key, field)));
    }
    print_listing(&table)
}

fn print_new(key: &Value) -> io::Result<()> {
    // Only the key goes to standard output, for scripts.
    writeln!(stdout(), "{}", text(key, "key"))?;
    writeln!(stderr(), "the key {:?} of scope {}; it is shown only once", text(key, "name"), text(key, "scope"))?;
    if let Some(notice) = key["notice"].as_str() {
        writeln!(stderr(), "{}", clean(notice))?;
    }
    Ok(())
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
            let url = reqwest::Url::parse(&format!("http://localhost{PATH}/{}", path_segment(&name))).unwrap();
            let segment = url.path().strip_prefix(PATH).unwrap().strip_prefix('/').unwrap();
            prop_assert!(!segment.contains('/'), "{}", segment);
            prop_assert_eq!(segment.replace("%2F", "/"), name);
        }
    }

    #[test]
    fn no_name_leads_out_of_the_list_of_keys() {
        assert_eq!(path_segment("ci@a.b_c-1"), "ci@a.b_c-1");
        assert_eq!(path_segment("alice/../reports"), "alice%2F..%2Freports");
        for name in ["..", ".", "", "a?b", "a#b", "%2e", "ä"] {
            let path = path_segment(name);
            assert!(path.contains('~') && !path.contains('/'), "{name}: {path}");
        }
    }
}
