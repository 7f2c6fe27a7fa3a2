//! Why the service can't start. Each message says what to do.

use std::{io, net::SocketAddr, path::PathBuf};

use tokio::task::JoinError;

use crate::{
    auth::{AuthError, jwt::JwtError},
    claude::ClientError,
    config::ConfigError,
    prompts::PromptError,
    queue::QueueError,
    redis,
    registry::Unavailable,
    store::{postgres, sled::OpenError},
    webhook::secrets::SecretsError,
};

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(
        "can't listen on {address}: {source}; another program may use the port: stop it, or choose another PORT or HOST"
    )]
    Listen { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Prompts(#[from] PromptError),
    #[error(transparent)]
    Claude(#[from] ClientError),
    #[error(transparent)]
    Store(#[from] OpenError),
    #[error(transparent)]
    Database(#[from] postgres::OpenError),
    #[error(transparent)]
    Redis(#[from] redis::OpenError),
    #[error("the jobs of the last run can't be recovered: {0}")]
    Recovery(QueueError),
    #[error("what the last run stored besides jobs can't be read: {0}")]
    Registry(#[from] Unavailable),
    #[error(
        "the job store has only a part of {origin}, because its move or import did not end. Repeat that `ceoagent move` or \
         `ceoagent import`. After a copy ahead of a move, stop the service and move its data folder or database: see \
         docs/export.md"
    )]
    HalfMoved { origin: String },
    #[error("the {what} can't be stored in {}: {source}. Make DATA_DIR writable, or set {setting}", path.display())]
    Secret { what: &'static str, setting: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "other users can read {} (mode {mode:o}) and may know the secret in it. Delete the file to get a new one at the \
         next start, or run: chmod 600 {}",
        path.display(),
        path.display()
    )]
    OpenSecret { path: PathBuf, mode: u32 },
    #[error("the admin token in {} is not safe: {source}; or delete the file to get a new one at the next start", path.display())]
    StoredToken { path: PathBuf, source: ConfigError },
    #[error(transparent)]
    Keys(#[from] AuthError),
    #[error(transparent)]
    Tokens(#[from] JwtError),
    #[error(transparent)]
    WebhookSecrets(#[from] SecretsError),
    #[error("failed to create the HTTP client for webhooks: {0}")]
    Webhooks(reqwest::Error),
    #[error("the start failed: {0}")]
    Panicked(#[from] JoinError),
    #[error(
        "MODEL_NAME: {models} can't be used (retired, or unknown to Claude). Set a current model, for example {current}"
    )]
    NoModel { models: String, current: String },
    #[error("DAILY_BUDGET: {given} is too small, because one call may need {need}. Raise it, or lower MAX_TOKENS")]
    BudgetTooSmall { given: String, need: String },
    #[error(
        "DAILY_BUDGET in USD needs the price of {model}, which is not known. Set it in MODEL_PRICES, for example \
         {model}=2/10 (US dollars per million input and output tokens), or choose another model"
    )]
    NoPrice { model: String },
    #[error("the job store failed repeatedly and can't be recovered by this process; start the service again")]
    StoreLost,
    #[error(
        "ANTHROPIC_API_KEY is not set, nor ANTHROPIC_AUTH_TOKEN. Set one of them in the environment or in .env to serve; or \
         try the service without a key, against a simulated Claude: ceoagent demo"
    )]
    NoKey,
}

impl StartError {
    /// Whether a person must change a setting or a file before the service can start; else another start may succeed.
    pub fn is_of_settings(&self) -> bool {
        match self {
            StartError::Keys(AuthError::Unavailable(_))
            | StartError::Listen { .. }
            | StartError::Store(_)
            | StartError::Recovery(_)
            | StartError::Registry(_)
            | StartError::Secret { .. }
            | StartError::Panicked(_)
            | StartError::StoreLost => false,
            StartError::Database(error) => error.is_of_settings(),
            StartError::Prompts(_)
            | StartError::Claude(_)
            | StartError::OpenSecret { .. }
            | StartError::StoredToken { .. }
            | StartError::Keys(_)
            | StartError::Tokens(_)
            | StartError::WebhookSecrets(_)
            | StartError::Redis(_)
            | StartError::HalfMoved { .. }
            | StartError::Webhooks(_)
            | StartError::NoModel { .. }
            | StartError::BudgetTooSmall { .. }
            | StartError::NoPrice { .. }
            | StartError::NoKey => true,
        }
    }
}
