//! The file `.env` in the working folder: read into the environment, where variables that are set win.

use std::{
    env, io,
    path::{Path, PathBuf},
};

use clap::{Args, Command};

use super::{ConfigError, OTLP_ENDPOINT, ServiceAddress, Settings, text};

/// Looked for in the working folder only: a parent's would surprise.
pub(super) const FILE: &str = ".env";

/// What was taken from `.env`.
#[derive(Clone, Debug, Default)]
pub struct Dotenv {
    /// Variables that have its value, as they had none.
    taken: Vec<String>,
    /// Names in it that are almost a setting's name, each with that one.
    pub misspelt: Vec<(String, String)>,
}

impl Dotenv {
    /// Where the value of a variable comes from, in words, if it has one.
    pub fn source(&self, name: &str) -> Option<String> {
        let is_set = env::var_os(name).is_some_and(|value| !value.is_empty());
        let from_file = self.taken.iter().any(|taken| taken == name);
        is_set.then(|| match from_file {
            true => format!("{name} in the settings file {FILE}"),
            false => format!("the environment variable {name}"),
        })
    }
}

/// Loads `.env`, if the working folder has one, into the environment: variables that are unset or empty there get the
/// file's value, of which the last counts if a name comes twice. Call it before any thread is started.
///
/// # Errors
/// If the file can't be read, or a line is not a setting; then nothing was loaded.
pub fn load() -> Result<Dotenv, ConfigError> {
    let unset = |name: &str| env::var_os(name).is_none_or(|value| value.is_empty());
    let path = Path::new(FILE);
    let entries = read(path)?;
    let names: Vec<&str> = entries.iter().map(|(name, _)| name.as_str()).collect();
    let misspelt = misspelt(&names);
    let (mut taken, mut missing) = (Vec::new(), String::new());
    for (name, value) in entries.into_iter().filter(|(name, _)| unset(name)) {
        missing.push_str(&format!("{name}=\"{}\"\n", quoted(&value)));
        taken.push(name);
    }
    // dotenvy either preserves all variables that are set, even empty ones, or overrides all: so it gets only what is
    // missing.
    dotenvy::from_read_override(missing.as_bytes()).map_err(|error| explain(path, &missing, error))?;
    Ok(Dotenv { taken, misspelt })
}

/// Those of `names` that are almost the name of a setting, with that name. Others may belong to another program:
/// compose, shells and libraries read the same file.
pub(super) fn misspelt(names: &[&str]) -> Vec<(String, String)> {
    let known = ServiceAddress::augment_args(Settings::augment_args(Command::new("known")));
    let mut known: Vec<&str> = known.get_arguments().filter_map(|arg| arg.get_env()?.to_str()).collect();
    known.push(OTLP_ENDPOINT);
    let meant = |name: &str| {
        let edits = |known| strsim::osa_distance(&name.to_uppercase(), known);
        let (edits, meant) = known.iter().map(|known| (edits(known), known)).min()?;
        (edits <= name.len() / 4).then(|| (name.to_owned(), (*meant).to_owned()))
    };
    names.iter().filter(|name| !known.contains(name)).filter_map(|name| meant(name)).collect()
}

/// The entries of a settings file, in order; empty if there is no such file.
pub(super) fn read(path: &Path) -> Result<Vec<(String, String)>, ConfigError> {
    let text = match text::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(ConfigError::DotenvUnreadable { path: path.to_owned(), source }),
    };
    if let Some(line) = text.lines().position(|line| line.contains('\0')) {
        return Err(ConfigError::DotenvLine { path: path.to_owned(), line: line + 1 });
    }
    dotenvy::from_read_iter(text.as_bytes()).map(|entry| entry.map_err(|error| explain(path, &text, error))).collect()
}

/// dotenvy's error shows the line, which may hold a secret, but not its number.
fn explain(path: &Path, text: &str, error: dotenvy::Error) -> ConfigError {
    let path: PathBuf = path.to_owned();
    let broken = match error {
        dotenvy::Error::LineParse(broken, _) => broken,
        dotenvy::Error::Io(source) => return ConfigError::DotenvUnreadable { path, source },
        other => return ConfigError::DotenvUnreadable { path, source: io::Error::other(other) },
    };
    let mut rest = text;
    let before = text.split_inclusive('\n').take_while(|line| {
        let found = rest.strip_prefix(&broken).is_some_and(|end| end.is_empty() || end.starts_with(['\n', '\r', '#']));
        rest = &rest[line.len()..];
        !found
    });
    ConfigError::DotenvLine { line: before.count() + 1, path }
}

/// `value` for between double quotes in a settings file.
fn quoted(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('$', r"\$")
}
