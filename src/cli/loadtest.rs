//! `ceoagent loadtest`: questions at a given rate, whether the service keeps up or not, and a report of what became of
//! them: in the terminal, as JSON, as a page with charts.
//!
//! Without `--url` it starts a service of its own against a simulated Claude of known capacity, so that nothing is
//! billed and the report can tell how much of the capacity was reached.
//!
//! - `load`: questions at random moments, and what each met
//! - `oracle`: what could have been answered
//! - `tally`: what is counted while it runs, in bounded memory
//! - `report`: what is made of it, in words and as JSON
//! - `page`: the same with charts

mod load;
mod oracle;
mod page;
mod report;
mod tally;

use std::{
    fs,
    io::{IsTerminal, Write},
    net::Ipv4Addr,
    num::NonZeroU32,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use secrecy::ExposeSecret;
use tokio::time::{Instant, MissedTickBehavior};

use self::{
    load::Target,
    report::{Report, Setup},
    tally::Tally,
};
use super::{
    own::make_folder,
    serve::{self, Signals},
};
use crate::{
    app::{App, Tuning},
    claude::simulator::{ErrorAnswer, Latency, Simulator, SimulatorConfig},
    clock::Clock,
    config::{Settings, values::RateCaps},
};

/// Most questions a second: beyond it, starting them takes the machine that answers them.
const MAX_RATE: u32 = 10_000;

/// Longest load, in seconds.
const MAX_DURATION: u32 = 3_600;

/// Longest that the simulated Claude takes for an answer, in seconds.
const MAX_LATENCY: u32 = 600;

/// Longest query, in bytes: what the service takes with any setting.
const MAX_QUERY_BYTES: usize = 100_000;

/// Calls at once of the service started here, if WORKERS is unset: its simulated account has no limits to go by.
const WORKERS: usize = 20;

/// How often the bar moves and the queue's depth is asked for.
const LOOK: Duration = Duration::from_secs(1);

/// What a call that is turned away in a storm is told to wait.
const STORM_RETRY_AFTER: &str = "2";

/// Which job goes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum ClaimOrder {
    /// Those that clients wait for and can still have in time, by deadline; then the others by age.
    Deadline,
    /// All by age, for comparison: under overload no client is answered in time.
    Fifo,
}

/// The load, and where its report goes.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "What the report tells as `in time under load N of M possible`: N memos came within 30 s of their
questions, and before the last question was sent. M could have: where the service is started here, what
one could answer who knows how long each answer takes and begins no call in vain, with WORKERS calls at
once (20 if unset); else --capacity times the seconds of the load, or the number of clients that wait
where that is less. What comes after the last question doesn't count."
)]
pub struct Loadtest {
    /// Load this service instead of one started here; if it asks the real Claude, every question is billed
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    /// API key of the callers, if the service wants one
    #[arg(long, value_name = "KEY", requires = "url")]
    api_key: Option<String>,

    /// Questions a second on average; they come at random moments, as from many people
    #[arg(long, default_value = "10", value_parser = positive::<MAX_RATE>)]
    rate: f64,

    /// Seconds that questions come for (up to 3600)
    #[arg(long, default_value = "60", value_parser = positive::<MAX_DURATION>)]
    duration: f64,

    /// Share of the questions whose client waits for the answer (0 to 1)
    #[arg(long, default_value = "1", value_parser = share)]
    waiters: f64,

    /// Seconds that they wait at most (up to 30)
    #[arg(long, default_value = "30", value_parser = positive::<30>)]
    wait: f64,

    /// Share of the waiting clients that hang up within ten seconds (0 to 1)
    #[arg(long, default_value = "0", value_parser = share)]
    hang_up: f64,

    /// Bytes of each question
    #[arg(long, default_value = "256", value_parser = query_bytes)]
    query_bytes: usize,

    /// Seconds that the simulated Claude takes for an answer; if unset, what the real one takes for a brief memo where a
    /// client waits, and else for a full one
    #[arg(long, value_parser = positive::<MAX_LATENCY>, conflicts_with = "url")]
    latency: Option<f64>,

    /// Second at which the simulated Claude begins to turn every call away with a 429
    #[arg(long, value_name = "SECOND", value_parser = positive::<MAX_DURATION>, conflicts_with = "url")]
    storm_at: Option<f64>,

    /// Seconds that it does so
    #[arg(long, default_value = "20", value_parser = positive::<MAX_DURATION>, requires = "storm_at")]
    storm_for: f64,

    /// Which job goes next: deadline, as the service has it, or fifo, for comparison
    #[arg(long, default_value = "deadline", hide_possible_values = true, conflicts_with = "url")]
    order: ClaimOrder,

    /// Answers a second that the service's account allows, for the report; known where the service is started here
    #[arg(long, value_parser = positive::<MAX_RATE>, requires = "url")]
    capacity: Option<f64>,

    /// Write the report as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Write the report as a page with charts to this file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Settings of the service started here; its data goes to a folder of its own within DATA_DIR and is removed after
    #[command(flatten)]
    pub settings: Settings,
}

impl Loadtest {
    /// Runs the load. `is_set` tells whether a setting of the service was given by its name.
    ///
    /// # Errors
    /// Whatever keeps the load from starting, or the report from being written.
    pub fn run(mut self, is_set: impl Fn(&str) -> bool) -> anyhow::Result<ExitCode> {
        for file in [&self.json, &self.html].into_iter().flatten() {
            // Better now than after the load.
            fs::File::create(file).with_context(|| format!("can't write {}", file.display()))?;
        }
        let _log = super::logging::start(&self.settings, true);
        serve::runtime()?.block_on(async {
            let mut signals = Signals::listen()?;
            let own = match self.url {
                Some(_) => None,
                None => Some(Own::start(&mut self, is_set).await?),
            };
            let report = self.load(own.as_ref(), &mut signals).await?;
            write!(std::io::stdout(), "{report}")?;
            self.write(&report)?;
            match own {
                Some(own) => Ok(serve::stop(own.app, signals).await),
                None => Ok(ExitCode::SUCCESS),
            }
        })
    }

    /// Sends the questions, until all are answered or a signal comes.
    async fn load(&self, own: Option<&Own>, signals: &mut Signals) -> anyhow::Result<Report> {
        let (base, token) = match own {
            Some(own) => {
                (format!("http://{}", own.app.address()), Some(own.app.admin_token().expose_secret().to_owned()))
            }
            None => (self.url.clone().unwrap_or_default().trim_end_matches('/').to_owned(), self.api_key.clone()),
        };
        let target = Target::new(base, token)?;
        target.check().await?;
        let tally = Arc::new(Tally::new(Duration::from_secs_f64(self.duration)));
        let pace = match (own, self.latency) {
            (None, _) => load::Pace::Unknown,
            (Some(_), Some(latency)) => load::Pace::Fixed(Duration::from_secs_f64(latency)),
            (Some(_), None) => load::Pace::Claude,
        };
        let plan = load::Plan {
            rate: self.rate,
            duration: Duration::from_secs_f64(self.duration),
            waiters: self.waiters,
            wait_seconds: self.wait,
            hang_up: self.hang_up,
            query_bytes: self.query_bytes,
            pace,
        };
        let bar = self.bar()?;
        let (loading, storm) = (load::run(plan, &target, &tally), self.storm(own));
        tokio::pin!(loading, storm);
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut storm_is_over = false;
        let interrupted = loop {
            tokio::select! {
                () = &mut loading => break false,
                _ = signals.next() => break true,
                () = &mut storm, if !storm_is_over => storm_is_over = true,
                _ = looks.tick() => {
                    tally.note_queued(target.queued().await);
                    bar.set_position(tally.elapsed().as_secs());
                    bar.set_message(tally.to_string());
                }
            }
        };
        bar.finish_and_clear();
        target.look_after(&tally).await;
        let setup = Setup {
            simulated: own.is_some(),
            interrupted,
            rate_per_second: self.rate,
            duration_seconds: self.duration,
            waiters_share: self.waiters,
            wait_seconds: self.wait,
            hang_up_share: self.hang_up,
            query_bytes: self.query_bytes,
            capacity_per_second: own.map(|own| own.capacity).or(self.capacity),
            workers: own.map(|own| own.workers),
            service: own.map(|own| match self.latency {
                Some(latency) => format!("{} workers, {latency} s an answer", own.workers),
                None => format!("{} workers, Claude's real pace", own.workers),
            }),
        };
        Ok(Report::new(setup, &tally))
    }

    /// Has the simulated Claude turn calls away for a while, if that is wanted.
    async fn storm(&self, own: Option<&Own>) {
        if let (Some(own), Some(at)) = (own, self.storm_at) {
            tokio::time::sleep(Duration::from_secs_f64(at)).await;
            let answer = ErrorAnswer::status(429).header("retry-after", STORM_RETRY_AFTER);
            own.simulator.turn_away(Instant::now() + Duration::from_secs_f64(self.storm_for), answer);
        }
    }

    fn bar(&self) -> anyhow::Result<ProgressBar> {
        // The clients that wait when the last question came get their time too.
        let bar = ProgressBar::new(Duration::from_secs_f64(self.duration.ceil().max(1.0)).as_secs());
        if !std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        bar.set_style(ProgressStyle::with_template("[{bar:30}] {pos}/{len} s  {msg}")?.progress_chars("=> "));
        Ok(bar)
    }

    fn write(&self, report: &Report) -> anyhow::Result<()> {
        let write = |path: &Path, text: String| {
            fs::write(path, text).with_context(|| format!("can't write {}", path.display()))?;
            writeln!(std::io::stdout(), "written: {}", path.display()).map_err(anyhow::Error::from)
        };
        if let Some(path) = &self.json {
            write(path, serde_json::to_string_pretty(report)? + "\n")?;
        }
        if let Some(path) = &self.html {
            write(path, page::render(report)?)?;
        }
        Ok(())
    }
}

/// The service started here, with its simulated Claude.
struct Own {
    app: App,
    simulator: Simulator,
    /// Answers a second.
    capacity: f64,
    /// Calls at once.
    workers: usize,
    /// Removed with the end.
    _folder: tempfile::TempDir,
}

impl Own {
    async fn start(test: &mut Loadtest, is_set: impl Fn(&str) -> bool) -> anyhow::Result<Own> {
        let settings = &mut test.settings;
        make_folder(&settings.data_dir)
            .with_context(|| format!("the data folder {} can't be made", settings.data_dir.display()))?;
        let for_owner = fs::Permissions::from_mode(0o700);
        let folder =
            tempfile::Builder::new().prefix("loadtest-").permissions(for_owner).tempdir_in(&settings.data_dir)?;
        settings.data_dir = folder.path().to_owned();
        settings.host = Ipv4Addr::LOCALHOST.into();
        // What is measured is the service, not who may use it.
        (settings.api_keys, settings.jwt_auth, settings.submits_per_minute) = (None, None, 0);
        settings.require_api_key = Some(false);
        if !is_set("port") {
            settings.port = 0;
        }
        // The simulated Claude limits nothing, and the default is a real account's.
        let no_limit = Some(NonZeroU32::MAX);
        settings.rate_limits.get_or_insert(RateCaps {
            requests: no_limit,
            input_tokens: no_limit,
            output_tokens: no_limit,
        });
        let workers = *settings.workers.get_or_insert(WORKERS);
        let latency = test.latency.map_or(Latency::Claude, |latency| Latency::Fixed(Duration::from_secs_f64(latency)));
        let mean = test.latency.unwrap_or_else(|| load::mean_of_claude(test.waiters));
        // Never the real one, even where a key is set.
        let simulator = Simulator::start(SimulatorConfig { latency, ..SimulatorConfig::default() })
            .await
            .context("the simulated Claude can't be started")?;
        settings.anthropic_base_url = simulator.base_url();
        settings.anthropic_api_key = Some("simulated".into());
        let deadlines_first = test.order == ClaimOrder::Deadline;
        let tuning = Tuning { is_simulated: true, deadlines_first, ..Tuning::default() };
        let app = App::start_tuned(settings, tuning, Clock::system()).await?;
        Ok(Own { app, simulator, capacity: workers as f64 / mean, workers, _folder: folder })
    }
}

/// A number above 0 and up to `MAX`.
fn positive<const MAX: u32>(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    if number > 0.0 && number <= f64::from(MAX) {
        return Ok(number);
    }
    Err(format!("must be above 0 and at most {MAX}"))
}

fn share(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    if (0.0..=1.0).contains(&number) { Ok(number) } else { Err("must be from 0 to 1".to_owned()) }
}

fn query_bytes(text: &str) -> Result<usize, String> {
    let bytes: usize = text.parse().map_err(|_| format!("{text:?} is no whole number"))?;
    let allowed = load::MIN_QUERY_BYTES..=MAX_QUERY_BYTES;
    if allowed.contains(&bytes) {
        return Ok(bytes);
    }
    Err(format!("must be from {} to {}", allowed.start(), allowed.end()))
}
