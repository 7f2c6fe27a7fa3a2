//! A service of a command's own, on this machine: with Claude if a key is set, otherwise with a simulated Claude.

use std::{fs::DirBuilder, os::unix::fs::DirBuilderExt, path::Path};

use anyhow::Context;

use super::client::{Client, link};
use crate::{
    app::{App, Tuning},
    claude::simulator::{Simulator, SimulatorConfig},
    clock::Clock,
    config::Settings,
};

/// Creates a data folder and its parents, for their owner alone.
pub(super) fn make_folder(path: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("the data folder {} can't be made", path.display()))
}

pub(super) struct LocalService {
    pub(super) app: App,
    pub(super) simulator: Option<Simulator>,
}

impl LocalService {
    /// Starts a service by `settings`. Its data folder must not be that of `serve`, or their jobs would mix.
    pub(super) async fn start(
        mut settings: Settings,
        simulator: SimulatorConfig,
        tuning: Tuning,
    ) -> anyhow::Result<LocalService> {
        make_folder(&settings.data_dir)?;
        // Or it would join the nodes of a real service, and answer its questions.
        settings.database_url = None;
        settings.redis_url = None;
        let simulator = match settings.anthropic_api_key {
            Some(_) => None,
            None => {
                let simulator = Simulator::start(simulator).await.context("the simulated Claude can't be started")?;
                settings.anthropic_base_url = simulator.base_url();
                settings.anthropic_api_key = Some("simulated".into());
                Some(simulator)
            }
        };
        let tuning = Tuning { is_simulated: simulator.is_some(), ..tuning };
        let app = App::start_tuned(&settings, tuning, Clock::system()).await?;
        Ok(LocalService { app, simulator })
    }

    pub(super) fn base(&self) -> String {
        link(self.app.address())
    }

    pub(super) fn client(&self) -> anyhow::Result<Client> {
        Client::new(self.base(), Some(self.app.admin_token().clone()))
    }
}
