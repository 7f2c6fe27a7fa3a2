//! The data folder, and the secrets that the first start generates in it: the admin token and the root of the webhook
//! secrets.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use rand::distr::{Alphanumeric, SampleString};
use secrecy::{ExposeSecret, SecretString};
use tracing::{info, warn};

use super::error::StartError;
use crate::{
    clock::Clock,
    config::{Settings, check_admin_token},
    registry::Registry,
    webhook::secrets::Secrets,
};

const TOKEN_FILE: &str = "admin-token";

const WEBHOOK_FILE: &str = "webhook-root";

/// Characters of a generated token: 32 of 62 kinds are 190 bits.
const TOKEN_LENGTH: usize = 32;

const OTHERS: u32 = 0o007;

/// Where a service with this data folder stores its admin token, unless ADMIN_TOKEN is set.
pub fn admin_token_file(data_dir: &Path) -> PathBuf {
    data_dir.join(TOKEN_FILE)
}

/// The admin token that a service stored in `data_dir`, if there is one that this user may read.
pub fn stored_admin_token(data_dir: &Path) -> Option<SecretString> {
    let text = fs::read_to_string(admin_token_file(data_dir)).ok()?;
    Some(text.trim()).filter(|token| !token.is_empty()).map(Into::into)
}

/// The admin token of the settings, or the stored one. The flag says whether it was generated now.
pub(super) fn admin_token(settings: &Settings) -> Result<(SecretString, bool), StartError> {
    if let Some(token) = &settings.admin_token {
        return Ok((token.clone(), false));
    }
    let failed = |path, source| StartError::Secret { what: "admin token", setting: "ADMIN_TOKEN", path, source };
    let path = settings.data_dir.join(TOKEN_FILE);
    let generate = || Alphanumeric.sample_string(&mut rand::rng(), TOKEN_LENGTH);
    let (token, is_new) = stored_or(path.clone(), generate, failed)?;
    check_admin_token(&token).map_err(|source| StartError::StoredToken { path, source })?;
    Ok((token, is_new))
}

/// The webhook secrets of the settings, or those derived from the stored root.
pub(super) fn webhook_secrets(settings: &Settings, registry: Registry, clock: Clock) -> Result<Secrets, StartError> {
    if let Some(listed) = &settings.webhook_secret {
        return Ok(Secrets::from_setting(listed, registry, clock)?);
    }
    let what = "root of the webhook secrets";
    let failed = |path, source| StartError::Secret { what, setting: "WEBHOOK_SECRET", path, source };
    let generate = || format!("whsec_{}", BASE64_STANDARD.encode(rand::random::<[u8; 32]>()));
    let (root, _) = stored_or(settings.data_dir.join(WEBHOOK_FILE), generate, failed)?;
    Ok(Secrets::derived(&root, registry, clock)?)
}

fn stored_or(
    path: PathBuf,
    generate: impl FnOnce() -> String,
    failed: impl FnOnce(PathBuf, io::Error) -> StartError,
) -> Result<(SecretString, bool), StartError> {
    if let Some(mode) = mode_if_open(&path) {
        return Err(StartError::OpenSecret { path, mode });
    }
    let stored = match fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => Ok((text.trim().into(), false)),
        Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "the file is empty")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let secret = SecretString::from(generate());
            let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
            let written = file.and_then(|mut file| {
                writeln!(file, "{}", secret.expose_secret())?;
                file.sync_all()
            });
            written.map(|()| (secret, true))
        }
        Err(error) => Err(error),
    };
    stored.map_err(|source| failed(path, source))
}

/// Creates the data folder for its owner alone, or takes other users' access to it away. The store finds out whether the
/// folder can be used.
pub(super) fn guard_folder(path: &Path) {
    if !path.exists() {
        let _ = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    } else if let Some(mode) = mode_if_open(path) {
        match fs::set_permissions(path, fs::Permissions::from_mode(mode & !OTHERS)) {
            Ok(()) => info!(folder = %path.display(), "other users' access to the data folder was taken away"),
            Err(error) => {
                warn!(%error, mode = format!("{mode:o}"), "other users can read {}: chmod 700 it", path.display());
            }
        }
    }
    if let Some(mode) = mode_if_open(Path::new(".env")) {
        warn!(mode = format!("{mode:o}"), "other users can read the settings file .env: chmod 600 it");
    }
}

/// The permissions of a path that every user may read.
fn mode_if_open(path: &Path) -> Option<u32> {
    let mode = fs::metadata(path).ok()?.permissions().mode() & 0o777;
    (mode & 0o004 != 0).then_some(mode)
}
