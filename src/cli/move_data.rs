//! `ceoagent move`: copies all that a store holds to another one; and what the offline forms of `export` and `import` share.

use std::{
    io::{self, Write, stderr, stdout},
    process::ExitCode,
};

use anyhow::Context;
use secrecy::SecretString;

use super::{
    client::{Connection, INCOMPLETE},
    terminal,
};
use crate::{
    app::transfer::{self, Ahead, AheadReport, Place, Transferred},
    config::Settings,
    store::archive::{Count, Tally},
};

/// Stands for the setting of this name.
const FROM_SETTING: &str = "DATABASE_URL";

/// Jobs between two lines that show the progress.
const STEP: u64 = 10_000;

/// Digits of a checksum that are shown.
const SHOWN: usize = 8;

#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  ceoagent move --from data --to DATABASE_URL     from the data folder to PostgreSQL
  ceoagent move --from DATABASE_URL --to data     and back
  ceoagent move --from data --to postgres://ceoagent@db.example/ceoagent
  ceoagent move --from http://127.0.0.1:8000 --to DATABASE_URL    ahead, while the service runs

Stop the service first, and start it with the new place afterwards. The source stays as it is. The
target must be empty. If the command is interrupted, repeat it: it continues. Nothing is called or
sent. Running attempts get an unknown outcome at the next start, as after a crash.

For a short time without service, copy ahead: with the URL of the running service, the command
copies the jobs that have ended, as often as you like. Then stop the service and move as above:
only what is missing or has changed is copied.

The files admin-token and webhook-root are not moved: see docs/export.md.

Exit codes: 0 both sides are equal, or copied ahead; 1 error, or they differ; 4 the service refused
  the request.")]
pub(super) struct Move {
    /// The data folder of a stopped service, a PostgreSQL database without an active node, or the URL of a running service.
    /// DATABASE_URL stands for that setting, so that no password shows in the process list
    #[arg(long, value_name = "FOLDER|URL")]
    from: String,

    /// Where all of it goes: a data folder or a database. Must be empty, or have a part of a move
    #[arg(long, value_name = "FOLDER|URL")]
    to: String,

    /// Admin token of the running service. Default for one on this machine: ADMIN_TOKEN, or the one in DATA_DIR
    #[arg(long, env = "CEOAGENT_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<SecretString>,

    #[command(flatten)]
    settings: Settings,
}

impl Move {
    pub(super) async fn run(&self) -> anyhow::Result<ExitCode> {
        if ["http://", "https://"].iter().any(|scheme| self.from.starts_with(scheme)) {
            return self.copy_ahead().await;
        }
        let (from, to) = (place("--from", &self.from, &self.settings)?, place("--to", &self.to, &self.settings)?);
        let transferred = transfer::move_all(&from, &to, &mut progress()).await?;
        report(&format!("moved from {from} to"), &to, &transferred)
    }

    async fn copy_ahead(&self) -> anyhow::Result<ExitCode> {
        let to = place("--to", &self.to, &self.settings)?;
        let client = Connection::to(self.from.clone(), self.token.clone(), self.settings.clone()).client()?;
        let mut lines = client.export().await.context("can't copy from the service")?;
        let (mut ahead, mut progress) = (Ahead::begin(client.base(), &to).await?, progress());
        while let Some(line) = lines.next().await.context("the connection to the service broke; repeat the command")? {
            ahead.take(&line).await?;
            progress(ahead.count());
        }
        let AheadReport { copied, known, left } = ahead.end().await?;
        writeln!(
            stdout(),
            "copied ahead to {to}: {copied} jobs that have ended, {known} were there, {left} are left to the move.\n\
             Next: stop the service, and run ceoagent move --from its data folder or database"
        )?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The place that an option names.
pub(super) fn place(option: &str, text: &str, settings: &Settings) -> anyhow::Result<Place> {
    // Without the value, which may hold a password.
    let wrong = || format!("{option}: not a folder, and not a URL such as postgres://USER:PASSWORD@HOST/DATABASE");
    if text != FROM_SETTING {
        return Place::parse(text).with_context(wrong);
    }
    let unset = || format!("{option} {FROM_SETTING}: this setting is not set. Set it in the environment or in .env");
    Ok(Place::Database(settings.database_url.clone().with_context(unset)?))
}

/// Writes a line each time that so many more jobs are done.
pub(super) fn progress() -> impl FnMut(u64) {
    let mut next = STEP;
    move |jobs| {
        if jobs >= next {
            let _ = writeln!(stderr(), "{jobs} jobs");
            next = jobs / STEP * STEP + STEP;
        }
    }
}

/// As `1 setting, 5 job`.
pub(super) fn summary(tally: &Tally) -> String {
    let counts: Vec<String> = tally.0.iter().map(|(kind, Count { count, .. })| format!("{count} {kind}")).collect();
    counts.join(", ")
}

/// Prints what was transferred, by kind. Fails if both sides differ.
pub(super) fn report(what: &str, to: &Place, transferred: &Transferred) -> anyhow::Result<ExitCode> {
    let Transferred { source, target, was_done, copied, removed, unreadable, is_partial } = transferred;
    let differing = source.differing(target);
    let mut table = terminal::listing(["KIND", "RECORDS", "CHECKSUM", "RECORDS THERE", "CHECKSUM THERE"]);
    let kinds: std::collections::BTreeSet<_> = source.0.keys().chain(target.0.keys()).collect();
    for kind in kinds {
        let side = |tally: &Tally| {
            let Count { count, sha256 } = tally.0.get(kind).cloned().unwrap_or_default();
            [count.to_string(), hex::encode(sha256)[..SHOWN].to_owned()]
        };
        let [records, checksum] = side(source);
        let [there, checksum_there] = side(target);
        table.add_row([kind.to_string(), records, checksum, there, checksum_there]);
    }
    terminal::print_listing(&table)?;
    if let [_, ..] = &differing[..] {
        let kinds: Vec<String> = differing.iter().map(ToString::to_string).collect();
        anyhow::bail!(
            "both sides differ in: {}. The source has changed since the first try, or {to} was changed. No service starts \
             with it: empty it and repeat the command",
            kinds.join(", ")
        );
    }
    let mut out = stdout().lock();
    writeln!(out, "{what} {to}: both sides are equal")?;
    if *was_done {
        writeln!(out, "nothing was written: all of it was there")?;
    } else {
        writeln!(out, "{copied} jobs copied, {removed} removed that the source no longer has")?;
    }
    if *is_partial {
        writeln!(out, "the archive has no settings, API keys and sessions, because it comes from a running service")?;
    }
    report_missing(*unreadable as u64)?;
    Ok(if *unreadable == 0 { ExitCode::SUCCESS } else { ExitCode::from(INCOMPLETE) })
}

/// Names jobs that an archive does not have.
pub(super) fn report_missing(jobs: u64) -> io::Result<()> {
    if jobs == 0 {
        Ok(())
    } else {
        writeln!(stderr(), "{jobs} jobs are missing: the service that exported them could not read them")
    }
}
