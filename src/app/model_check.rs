//! Whether the models of the settings exist: each is looked up once, in the background of the start. If all are retired,
//! the service stops. Nothing is lost or spent until then: questions are on disk, and a retired model answers no call.

use tracing::{debug, info, warn};

use super::error::StartError;
use crate::{
    agent::{Agent, models::GONE_FOR},
    claude::{error::ErrorKind, price::current_models},
};

/// Only the API's own word counts: the network may be down, and a gateway may lack the route.
pub(super) async fn check(Agent { claude, planner }: &Agent) -> Result<(), StartError> {
    let known = &planner.models;
    let models: Vec<String> = known.ids().map(str::to_owned).collect();
    let mut another = true;
    for model in &models {
        let looked_up = claude.model(model).await;
        if let Some(most) = looked_up.as_ref().ok().and_then(|info| u32::try_from(info.max_tokens?).ok()) {
            known.limit_output(model, most);
        }
        match looked_up {
            Ok(info) => {
                let retires_at = info.retires_at.as_deref().unwrap_or("an unknown date");
                match info.lifecycle.as_deref() {
                    Some("retired") => {
                        another = known.pass_over(model, GONE_FOR);
                        warn!(model, retires_at, "the model is retired");
                    }
                    Some("deprecated") => {
                        warn!(
                            model,
                            retires_at, "the model is deprecated: choose another MODEL_NAME before it retires"
                        );
                    }
                    _ => debug!(model, "the model exists"),
                }
            }
            Err(error) if error.kind == ErrorKind::NotFound && error.is_about(model) => {
                another = known.pass_over(model, GONE_FOR);
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
    if known.ids().next() != Some(known.pick(&[])) {
        info!(model = known.pick(&[]), "using a fallback model");
    }
    Ok(())
}
