//! `ceoagent loadtest`: submits questions at a given rate, whether the service keeps up or not, and reports the results: in
//! the terminal, as JSON, or as a page with charts.
//!
//! Without `--url` it starts its own service with a simulated Claude of known capacity. Nothing is billed, and the report
//! shows which share of the capacity was used.
//!
//! - `load`: submits questions at random times
//! - `oracle`: computes what could have been answered in time
//! - `tally`: counts the results, in bounded memory
//! - `report`: the report as text and JSON
//! - `page`: the report with charts

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

/// Most questions a second: above that, sending them takes the CPU time that the service needs.
const MAX_RATE: u32 = 10_000;

/// Longest load, in seconds.
const MAX_DURATION: u32 = 3_600;

/// Longest time to wait for the jobs after the load, in seconds.
const MAX_DRAIN: u32 = 24 * 3_600;

/// Longest answer time of the simulated Claude, in seconds.
const MAX_LATENCY: u32 = 600;

/// Longest query, in bytes: the service accepts it with every setting.
const MAX_QUERY_BYTES: usize = 100_000;

/// Calls at once of the service started here, if WORKERS is not set: its simulated account has no limits to derive it from.
const WORKERS: usize = 20;

/// How often the bar moves and the queue depth is read.
const LOOK: Duration = Duration::from_secs(1);

/// `retry-after` of the 429s, in seconds.
const STORM_RETRY_AFTER: &str = "2";

/// Which job goes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum ClaimOrder {
    /// Interactive jobs that can end in time, by deadline; then all other jobs by age.
    Deadline,
    /// All jobs by age, for comparison: under overload no client is answered in time.
    Fifo,
}

/// The arguments of `loadtest`.
#[derive(clap::Args, Debug)]
#[command(after_help = "`in time N of M possible` in the report:
  N  memos that came within 30 s of their question
  M  with the service started here: what an oracle that knows the length of each answer could answer
     in time, in the order of the questions, with WORKERS calls at once (20 if unset).
     With --url: --capacity times the seconds of the load and of the last wait, or the number of
     waiting clients if that is less")]
pub struct Loadtest {
    /// Test this service instead of one started here. If it uses the real Claude, every question is billed
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    /// API key for the service, if it needs one
    #[arg(long, value_name = "KEY", requires = "url")]
    api_key: Option<String>,

    /// Average number of questions a second, submitted at random times
    #[arg(long, default_value = "10", value_parser = positive::<MAX_RATE>)]
    rate: f64,

    /// Seconds to submit questions (up to 3600)
    #[arg(long, default_value = "60", value_parser = positive::<MAX_DURATION>)]
    duration: f64,

    /// Share of clients that wait for the answer (0 to 1)
    #[arg(long, default_value = "1", value_parser = share)]
    waiters: f64,

    /// Longest wait of a client, in seconds (up to 30)
    #[arg(long, default_value = "30", value_parser = positive::<30>)]
    wait: f64,

    /// Share of waiting clients that disconnect within ten seconds (0 to 1)
    #[arg(long, default_value = "0", value_parser = share)]
    hang_up: f64,

    /// Length of each question in bytes
    #[arg(long, default_value = "256", value_parser = query_bytes)]
    query_bytes: usize,

    /// Seconds per answer of the simulated Claude. If unset, it answers at the pace of the real one: a brief memo to a
    /// client that waits, a full one to the others
    #[arg(long, value_parser = positive::<MAX_LATENCY>, conflicts_with = "url")]
    latency: Option<f64>,

    /// Second at which the simulated Claude starts to answer every call with a 429
    #[arg(long, value_name = "SECOND", value_parser = positive::<MAX_DURATION>, conflicts_with = "url")]
    storm_at: Option<f64>,

    /// Duration of these 429s in seconds
    #[arg(long, default_value = "20", value_parser = positive::<MAX_DURATION>, requires = "storm_at")]
    storm_for: f64,

    /// Order of the queue: deadline, as in the service, or fifo, for comparison
    #[arg(long, default_value = "deadline", hide_possible_values = true, conflicts_with = "url")]
    order: ClaimOrder,

    /// Answers a second that the account of the service allows, for the report
    #[arg(long, value_parser = positive::<MAX_RATE>, requires = "url")]
    capacity: Option<f64>,

    /// After the load, wait up to this many seconds until all jobs have ended, so that all estimates can be checked
    #[arg(long, value_name = "SECONDS", value_parser = positive::<MAX_DRAIN>)]
    drain: Option<f64>,

    /// Write the report as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Write the report as a page with charts to this file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Settings of the service started here; it uses a temporary folder in DATA_DIR
    #[command(flatten)]
    pub settings: Settings,
}

impl Loadtest {
    /// Runs the load test. `is_set` says whether a setting of the service was given.
    ///
    /// # Errors
    /// If the load can't start, or the report can't be written.
    pub fn run(mut self, is_set: impl Fn(&str) -> bool) -> anyhow::Result<ExitCode> {
        for file in [&self.json, &self.html].into_iter().flatten() {
            // Fail before the load, not after it.
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

    /// Submits the questions until all are answered or a signal arrives.
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
                    tally.note_queued(target.jobs(&["queued"]).await);
                    bar.set_position(tally.elapsed().as_secs());
                    bar.set_message(tally.to_string());
                }
            }
        };
        bar.finish_and_clear();
        if let Some(seconds) = self.drain.filter(|_| !interrupted) {
            tokio::select! {
                () = drained(&target) => {}
                () = tokio::time::sleep(Duration::from_secs_f64(seconds)) => {}
                _ = signals.next() => {}
            }
        }
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

    /// Makes the simulated Claude answer with 429 for a while, if `--storm-at` is given.
    async fn storm(&self, own: Option<&Own>) {
        if let (Some(own), Some(at)) = (own, self.storm_at) {
            tokio::time::sleep(Duration::from_secs_f64(at)).await;
            let answer = ErrorAnswer::status(429).header("retry-after", STORM_RETRY_AFTER);
            own.simulator.turn_away(Instant::now() + Duration::from_secs_f64(self.storm_for), answer);
        }
    }

    fn bar(&self) -> anyhow::Result<ProgressBar> {
        // Clients that still wait after the last question finish their wait.
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

/// Waits until the service has no pending job.
async fn drained(target: &Target) {
    while target.jobs(&["queued", "scheduled", "running"]).await != Some(0) {
        tokio::time::sleep(LOOK).await;
    }
}

/// The service started here and its simulated Claude.
struct Own {
    app: App,
    simulator: Simulator,
    /// Answers a second.
    capacity: f64,
    /// Calls at once.
    workers: usize,
    /// Deleted when dropped.
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
        // The load test needs neither API keys nor quotas.
        (settings.api_keys, settings.jwt_auth, settings.submits_per_minute) = (None, None, 0);
        settings.require_api_key = Some(false);
        if !is_set("port") {
            settings.port = 0;
        }
        // The simulated Claude has no rate limits. The default is that of a real account.
        let no_limit = Some(NonZeroU32::MAX);
        settings.rate_limits.get_or_insert(RateCaps {
            requests: no_limit,
            input_tokens: no_limit,
            output_tokens: no_limit,
        });
        let workers = *settings.workers.get_or_insert(WORKERS);
        let latency = test.latency.map_or(Latency::Claude, |latency| Latency::Fixed(Duration::from_secs_f64(latency)));
        let mean = test.latency.unwrap_or_else(|| load::mean_of_claude(test.waiters));
        // Never the real Claude, even if a key is set.
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
    let number: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if number > 0.0 && number <= f64::from(MAX) {
        return Ok(number);
    }
    Err(format!("must be above 0 and at most {MAX}"))
}

fn share(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if (0.0..=1.0).contains(&number) { Ok(number) } else { Err("must be from 0 to 1".to_owned()) }
}

fn query_bytes(text: &str) -> Result<usize, String> {
    let bytes: usize = text.parse().map_err(|_| format!("{text:?} is not a whole number"))?;
    let allowed = load::MIN_QUERY_BYTES..=MAX_QUERY_BYTES;
    if allowed.contains(&bytes) {
        return Ok(bytes);
    }
    Err(format!("must be from {} to {}", allowed.start(), allowed.end()))
}
