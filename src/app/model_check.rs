//! Whether the models that the settings name can be asked at all: each is looked up once, in the background of the start.
//!
//! The service answers from its first moment on, so it can't wait for this; a model that is retired, and that none stands in
//! for, ends it a moment later instead. Until then nothing is lost or spent: questions are on disk, and a retired model
//! answers no call.

use tracing::{debug, info, warn};

use super::StartError;
use crate::{
    agent::Agent,
    claude::{Claude, error::ErrorKind, price::current_models},
};

/// What Anthropic's documentation calls a model that answers no more, and one that soon won't.
const RETIRED: &str = "retired";
const DEPRECATED: &str = "deprecated";

/// Looks the models up; only what Claude itself says of them counts. A network that is down or a gateway that knows no such
/// route is no reason not to start.
///
/// # Errors
/// [`StartError::NoModel`] if none of them can be asked.
pub(super) async fn check(claude: &Claude, agent: &Agent) -> Result<(), StartError> {
    let models: Vec<String> = agent.models().map(str::to_owned).collect();
    let mut another = true;
    for model in &models {
        let looked_up = claude.model(model).await;
        if let Some(most) = looked_up.as_ref().ok().and_then(|info| u32::try_from(info.max_tokens?).ok()) {
            agent.known_models().limit_output(model, most);
        }
        match looked_up {
            Ok(info) if info.lifecycle.as_deref() == Some(RETIRED) => {
                let since = info.retires_at.unwrap_or_else(|| "an unknown date".to_owned());
                another = agent.model_is_gone(model);
                warn!(model, retires_at = since, "the model is retired");
            }
            Ok(info) if info.lifecycle.as_deref() == Some(DEPRECATED) => {
                let date = info.retires_at.unwrap_or_else(|| "an unknown date".to_owned());
                warn!(model, retires_at = date, "the model is deprecated: choose another MODEL_NAME before it retires");
            }
            Ok(_) => debug!(model, "the model exists"),
            Err(error) if error.kind == ErrorKind::NotFound && error.is_about(model) => {
                another = agent.model_is_gone(model);
                warn!(model, %error, "the model does not exist");
            }
            Err(error) => {
                warn!(model, %error, "can't look up the model; assuming that it exists");
            }
        }
    }
    if !another {
        let current = current_models().collect::<Vec<_>>().join(", ");
        return Err(StartError::NoModel { models: models.join(", "), current });
    }
    if agent.models().next() != Some(agent.model_in_use()) {
        info!(model = agent.model_in_use(), "using a fallback model");
    }
    Ok(())
}
