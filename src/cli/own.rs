//! A whole service of a command's own, on this machine only, where none is running: with the key that is set, or else
//! against a simulated Claude, which every memo then says.

use std::{fs::DirBuilder, io, net::Ipv4Addr, os::unix::fs::DirBuilderExt, path::Path};

use anyhow::Context;

use super::client::link;
use crate::{
    app::{App, Tuning},
    claude::simulator::{Simulator, SimulatorConfig},
    clock::Clock,
    config::Settings,
};

/// Makes a data folder, with those that it is in, for its owner alone.
pub(super) fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// The service; what it needs lives as long as it does.
pub(super) struct Own {
    pub(super) app: App,
    /// Dropping it would stop it.
    simulator: Option<Simulator>,
}

impl Own {
    /// Starts a service by `settings`, with its data in `folder` within the data folder, so that it never mixes with the
    /// jobs of `serve`. `simulator` is for the case that there is no key.
    pub(super) async fn start(
        mut settings: Settings,
        folder: &str,
        keep_host: bool,
        simulator: SimulatorConfig,
    ) -> anyhow::Result<Own> {
        settings.data_dir = settings.data_dir.join(folder);
        make_folder(&settings.data_dir)
            .with_context(|| format!("the data folder {} can't be made", settings.data_dir.display()))?;
        if !keep_host {
            settings.host = Ipv4Addr::LOCALHOST.into();
        }
        let simulator = match settings.anthropic_api_key {
            Some(_) => None,
            None => {
                let simulator = Simulator::start(simulator).await.context("the simulated Claude can't be started")?;
                settings.anthropic_base_url = simulator.base_url();
                settings.anthropic_api_key = Some("simulated".into());
                Some(simulator)
            }
        };
        let tuning = Tuning { is_simulated: simulator.is_some(), ..Tuning::default() };
        let app = App::start_tuned(&settings, tuning, Clock::system()).await?;
        Ok(Own { app, simulator })
    }

    pub(super) fn is_simulated(&self) -> bool {
        self.simulator.is_some()
    }

    pub(super) fn base(&self) -> String {
        link(self.app.address())
    }
}
