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
    io::{Write, stdout},
    net::Ipv4Addr,
    num::NonZeroU32,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use secrecy::SecretString;
use tokio::time::{Instant, MissedTickBehavior};

use self::{
    load::{Load, MAX_DURATION, MAX_RATE, positive},
    report::{Report, Setup},
    tally::Tally,
};
use super::{
    client::Client,
    local_service::{LocalService, make_folder},
    logging,
    serve::{self, Signals},
    terminal,
};
use crate::{
    app::Tuning,
    claude::simulator::{ErrorAnswer, Latency, SimulatorConfig},
    config::{Settings, values::RateCaps},
};

/// In seconds.
const MAX_DRAIN: u32 = 24 * 3_600;

/// In seconds.
const MAX_LATENCY: u32 = 600;

/// Calls at once of the service started here, if WORKERS is not set: its simulated account has no limits to derive it from.
const WORKERS: usize = 20;

const LOOK: Duration = Duration::from_secs(1);

/// The order of the service: interactive jobs that can end in time, by deadline; then all other jobs by age.
const DEADLINE: &str = "deadline";

/// `retry-after` of the 429s, in seconds.
const STORM_RETRY_AFTER: &str = "2";

#[derive(clap::Args, Debug)]
#[command(after_help = "`in time N of M possible` in the report:
  N  memos that came within 30 s of their question
  M  with the service started here: what an oracle that knows the length of each answer could answer
     in time, in the order of the questions, with WORKERS calls at once (20 if unset).
     With --url: --capacity times the seconds of the load and of the last wait, or the number of
     waiting clients if that is less")]
pub(super) struct Loadtest {
    /// Test this service instead of one started here. If it uses the real Claude, every question is billed
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    /// API key for the service, if it needs one
    #[arg(long, value_name = "KEY", requires = "url")]
    api_key: Option<String>,

    #[command(flatten)]
    load: Load,

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
    #[arg(
        long, default_value = DEADLINE, value_parser = [DEADLINE, "fifo"], hide_possible_values = true,
        conflicts_with = "url"
    )]
    order: String,

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
    pub(super) settings: Settings,
}

impl Loadtest {
    pub(super) async fn run(mut self, port_is_set: bool) -> anyhow::Result<ExitCode> {
        for file in [&self.json, &self.html].into_iter().flatten() {
            // Fail before the load, not after it.
            fs::File::create(file).with_context(|| format!("can't write {}", file.display()))?;
        }
        let _log = logging::start(&self.settings, true);
        let mut signals = Signals::listen()?;
        let own = match self.url {
            Some(_) => None,
            None => Some(TestService::start(&mut self, port_is_set).await?),
        };
        let report = self.load(own.as_ref(), &mut signals).await?;
        write!(stdout(), "{report}")?;
        self.write(&report)?;
        match own {
            Some(own) => Ok(serve::stop(own.service.app, signals).await),
            None => Ok(ExitCode::SUCCESS),
        }
    }

    async fn load(&self, own: Option<&TestService>, signals: &mut Signals) -> anyhow::Result<Report> {
        let (base, token) = match own {
            Some(own) => (own.service.base(), Some(own.service.app.admin_token().clone())),
            None => {
                let base = self.url.as_deref().unwrap_or_default().trim_end_matches('/').to_owned();
                (base, self.api_key.clone().map(SecretString::from))
            }
        };
        // Without time limits of its own: late answers are counted too.
        let client = Client::with(reqwest::Client::builder().no_proxy(), base, token)?;
        load::check(&client).await?;
        // Clients that still wait after the last question finish their wait.
        let steps = Duration::from_secs_f64(self.load.duration.ceil().max(1.0)).as_secs();
        let bar = terminal::bar(steps, "{pos}/{len} s  {msg}")?;
        let tally = Arc::new(Tally::new(Duration::from_secs_f64(self.load.duration)));
        let loading = load::run(self.load, own.map(|_| self.latency()), &client, &tally);
        let storm = self.storm(own);
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
                    tally.record_queued(load::jobs(&client, &["queued"]).await);
                    bar.set_position(tally.elapsed().as_secs());
                    bar.set_message(tally.to_string());
                }
            }
        };
        bar.finish_and_clear();
        if let Some(seconds) = self.drain.filter(|_| !interrupted) {
            tokio::select! {
                () = drained(&client) => {}
                () = tokio::time::sleep(Duration::from_secs_f64(seconds)) => {}
                _ = signals.next() => {}
            }
        }
        load::look_after(&client, &tally).await;
        let setup = Setup {
            simulated: own.is_some(),
            interrupted,
            load: self.load,
            capacity_per_second: own.map(|own| own.capacity).or(self.capacity),
            workers: own.map(|own| own.workers),
            service: own.map(|own| match self.latency {
                Some(latency) => format!("{} workers, {latency} s an answer", own.workers),
                None => format!("{} workers, Claude's real pace", own.workers),
            }),
        };
        Ok(Report::new(setup, &tally))
    }

    fn latency(&self) -> Latency {
        self.latency.map_or(Latency::Claude, |seconds| Latency::Fixed(Duration::from_secs_f64(seconds)))
    }

    async fn storm(&self, own: Option<&TestService>) {
        if let Some(at) = self.storm_at
            && let Some(simulator) = own.and_then(|own| own.service.simulator.as_ref())
        {
            tokio::time::sleep(Duration::from_secs_f64(at)).await;
            let answer = ErrorAnswer::status(429).header("retry-after", STORM_RETRY_AFTER);
            simulator.turn_away(Instant::now() + Duration::from_secs_f64(self.storm_for), answer);
        }
    }

    fn write(&self, report: &Report) -> anyhow::Result<()> {
        let write = |path: &Path, text: String| {
            fs::write(path, text).with_context(|| format!("can't write {}", path.display()))?;
            writeln!(stdout(), "written: {}", path.display()).map_err(anyhow::Error::from)
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

async fn drained(client: &Client) {
    while load::jobs(client, &["queued", "scheduled", "running"]).await != Some(0) {
        tokio::time::sleep(LOOK).await;
    }
}

struct TestService {
    service: LocalService,
    capacity: f64,
    workers: usize,
    _folder: tempfile::TempDir,
}

impl TestService {
    async fn start(test: &mut Loadtest, port_is_set: bool) -> anyhow::Result<TestService> {
        let latency = test.latency();
        let mean = test.latency.unwrap_or_else(|| load::mean_of_claude(test.load.waiters));
        let settings = &mut test.settings;
        make_folder(&settings.data_dir)?;
        let for_owner = fs::Permissions::from_mode(0o700);
        let folder =
            tempfile::Builder::new().prefix("loadtest-").permissions(for_owner).tempdir_in(&settings.data_dir)?;
        settings.data_dir = folder.path().to_owned();
        settings.host = Ipv4Addr::LOCALHOST.into();
        // The load test needs neither API keys nor quotas.
        (settings.api_keys, settings.jwt_auth, settings.submits_per_minute) = (None, None, 0);
        settings.require_api_key = Some(false);
        if !port_is_set {
            settings.port = 0;
        }
        // The simulated Claude has no rate limits. The default is that of a real account.
        let most = Some(NonZeroU32::MAX);
        settings.rate_limits.get_or_insert(RateCaps { requests: most, input_tokens: most, output_tokens: most });
        let workers = *settings.workers.get_or_insert(WORKERS);
        // Never the real Claude, even if a key is set.
        settings.anthropic_api_key = None;
        let simulator = SimulatorConfig { latency, ..SimulatorConfig::default() };
        let tuning = Tuning { deadlines_first: test.order == DEADLINE, ..Tuning::default() };
        let service = LocalService::start(settings.clone(), simulator, tuning).await?;
        Ok(TestService { service, capacity: workers as f64 / mean, workers, _folder: folder })
    }
}
