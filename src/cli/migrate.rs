//! `ceoagent migrate`: makes or upgrades the schema of the database.

use std::{
    io::{Write, stdout},
    process::ExitCode,
};

use anyhow::Context;

use crate::{app, config::Settings};

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  ceoagent migrate
  DATABASE_URL=postgres://ceoagent@db.example/ceoagent ceoagent migrate

The first start of a node makes the schema of an empty database by itself. Run this command before
you start a newer version whose schema differs: the old nodes can go on meanwhile. It waits at most
2 seconds for a lock, and changes either all or nothing.

Exit codes: 0 the schema is up to date; 1 error; 2 the database of DATABASE_URL can't be used.")]
pub(super) struct Migrate {
    #[command(flatten)]
    settings: Settings,
}

impl Migrate {
    pub(super) async fn run(&self) -> anyhow::Result<ExitCode> {
        let url = self.settings.database_url.as_ref();
        let url = url.context("DATABASE_URL is not set. Set it in the environment or in .env")?;
        writeln!(stdout(), "{}", app::migrate(url).await?)?;
        Ok(ExitCode::SUCCESS)
    }
}
