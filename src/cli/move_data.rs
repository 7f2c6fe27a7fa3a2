//! `ceoagent move`: copies all that a store holds to another one; and what the offline forms of `export` and `import` share.

use std::{
    io::{Write, stderr, stdout},
    process::ExitCode,
};

use super::terminal;
use crate::{
    app::transfer::{self, Place, Transferred},
    config::Settings,
    store::archive::{Count, Tally},
};
use anyhow::Context;

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

Stop the service first, and start it with the new place afterwards. The source stays as it is. The
target must be empty. If the command is interrupted, repeat it: it continues. Nothing is called or
sent. Running attempts get an unknown outcome at the next start, as after a crash.

The files admin-token and webhook-root are not moved: see docs/export.md.

Exit codes: 0 both sides are equal; 1 error, or they differ.")]
pub(super) struct Move {
    /// The data folder of a stopped service, or a PostgreSQL database without an active node. DATABASE_URL stands for that
    /// setting, so that no password shows in the process list
    #[arg(long, value_name = "FOLDER|URL")]
    from: String,

    /// Where all of it goes, as for --from. Must be empty, or have a part of the same move
    #[arg(long, value_name = "FOLDER|URL")]
    to: String,

    #[command(flatten)]
    settings: Settings,
}

impl Move {
    pub(super) async fn run(&self) -> anyhow::Result<ExitCode> {
        let (from, to) = (place("--from", &self.from, &self.settings)?, place("--to", &self.to, &self.settings)?);
        let transferred = transfer::move_all(&from, &to, &mut progress()).await?;
        report(&format!("moved from {from} to"), &to, &transferred)
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
    let Transferred { source, target, was_done, is_partial } = transferred;
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
    }
    if *is_partial {
        writeln!(out, "the archive has no settings, API keys and sessions, because it comes from a running service")?;
    }
    Ok(ExitCode::SUCCESS)
}
