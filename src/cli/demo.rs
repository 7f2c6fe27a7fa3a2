//! `ceoagent demo`: starts the whole service on this machine, asks one question over HTTP and shows its memo. Without a
//! key, Claude is simulated, and the output says so.

use std::{io::Write, net::Ipv4Addr, process::ExitCode};

use serde_json::json;

use super::{
    client::DEMO_FOLDER,
    local_service::LocalService,
    logging,
    outcome::{self, Form},
    progress,
    serve::{self, Signals},
};
use crate::{
    app::{self, Tuning},
    claude::simulator::{Latency, SimulatorConfig},
    config::Settings,
};

const QUESTION: &str = "Should we expand to new markets next year, or deepen our position at home first?";

#[derive(clap::Args, Debug)]
pub(super) struct Demo {
    /// The question to ask
    #[arg(default_value = QUESTION)]
    question: String,

    /// Stop after the memo
    #[arg(long)]
    once: bool,

    /// The service's own
    #[command(flatten)]
    pub(super) settings: Settings,
}

impl Demo {
    /// Listens on this machine only, unless HOST is set.
    pub(super) async fn run(self, host_is_set: bool) -> anyhow::Result<ExitCode> {
        let _log = logging::start(&self.settings, true);
        let mut signals = Signals::listen()?;
        let simulator = SimulatorConfig { latency: Latency::Claude, ..SimulatorConfig::default() };
        let folder = self.settings.data_dir.join(DEMO_FOLDER);
        let mut settings = Settings { data_dir: folder.clone(), ..self.settings.clone() };
        if !host_is_set {
            settings.host = Ipv4Addr::LOCALHOST.into();
        }
        let mut service = LocalService::start(settings, simulator, Tuning::default()).await?;
        let base = service.base();
        let mut out = std::io::stdout();
        if service.simulator.is_some() {
            writeln!(
                out,
                "No ANTHROPIC_API_KEY is set: Claude is SIMULATED. The memo below shows the form, not a real analysis."
            )?;
        } else {
            writeln!(out, "Asking {} with your key.", self.settings.model())?;
        }
        writeln!(out, "Question: {}\n", self.question)?;
        let client = service.client()?;
        let asked = async {
            // `wait` asks for a short memo, because a person waits.
            let accepted = client.send(client.analyze(&json!({ "query": self.question, "wait": 1 }))).await?;
            progress::follow(&client, outcome::id(&accepted)?).await
        };
        let shown = tokio::select! {
            job = asked => outcome::show(&job?, Form::default())?,
            _ = signals.next() => ExitCode::FAILURE,
            error = service.app.unfit() => return Err(error.into()),
        };
        if shown != ExitCode::SUCCESS {
            serve::stop(service.app, signals).await;
            return Ok(shown);
        }
        let token = match self.settings.admin_token {
            Some(_) => "your ADMIN_TOKEN".to_owned(),
            None => format!("the admin token in {}", app::admin_token_file(&folder).display()),
        };
        if self.once {
            writeln!(
                out,
                "\nWithout --once the service keeps running: ask at {base}/, manage the queue at {base}/admin"
            )?;
            writeln!(out, "with {token}.")?;
        } else {
            write!(out, "{}", next_steps(&base, &token))?;
            serve::show_new_token(&service.app, &folder, self.settings.log_format)?;
            out.flush()?;
            signals.next().await;
        }
        Ok(serve::stop(service.app, signals).await)
    }
}

fn next_steps(base: &str, token: &str) -> String {
    format!(
        "
The service runs until Ctrl-C.
  Ask and read in a browser: {base}/
  Manage the queue:          {base}/admin, with {token}
    on the command line:     ceoagent stats --url {base}
  Try the API in a browser:  {base}/docs
  Ask by curl:               curl {base}/api/v1/analyze?wait=30 \\
                               -H 'Content-Type: application/json' \\
                               -d '{{\"query\": \"Should we buy or build our CRM?\"}}'
"
    )
}
