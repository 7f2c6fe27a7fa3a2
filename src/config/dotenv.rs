//! The file `.env` in the working folder: read into the environment, where variables that are set win.

use std::{env, io, path::Path};

use strsim::osa_distance;

use super::{
    environment::{Variable, assignments},
    error::ConfigError,
    text,
};

pub(super) const FILE: &str = ".env";

#[derive(Clone, Debug, Default)]
pub struct Dotenv {
    /// The variables that have their value from the file.
    loaded: Vec<String>,
    /// Names in it that are almost a setting's name, each with that one.
    pub misspelt: Vec<(String, String)>,
}

impl Dotenv {
    /// Where the value of a variable comes from, in words, if it has one.
    pub fn source(&self, name: &str) -> Option<String> {
        let is_set = env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_loaded = self.loaded.iter().any(|loaded| loaded == name);
        is_set.then(|| match is_loaded {
            true => format!("{name} in the settings file {FILE}"),
            false => format!("the environment variable {name}"),
        })
    }
}

/// Loads `.env` of the working folder into the environment: variables that are unset or empty get the file's value. Call it
/// before any thread is started. After an error nothing is loaded.
pub fn load(settings: &[Variable]) -> Result<Dotenv, ConfigError> {
    let is_unset = |name: &str| env::var_os(name).is_none_or(|value| value.is_empty());
    let path = Path::new(FILE);
    let entries = read(path)?;
    let misspelt = entries.iter().filter_map(|(name, _)| misspelt(name, settings)).collect();
    let missing: Vec<(String, String)> = entries.into_iter().filter(|(name, _)| is_unset(name)).collect();
    let lines = assignments(&missing);
    // dotenvy can't leave variables that are set, so it gets only the missing ones.
    dotenvy::from_read_override(lines.as_bytes()).map_err(|error| explain(path, &lines, error))?;
    Ok(Dotenv { loaded: missing.into_iter().map(|(name, _)| name).collect(), misspelt })
}

/// A name that is almost that of a setting, with that one. Others may belong to other programs.
pub(super) fn misspelt(name: &str, settings: &[Variable]) -> Option<(String, String)> {
    let by_edits = settings.iter().map(|setting| (osa_distance(&name.to_uppercase(), &setting.name), &setting.name));
    let (edits, meant) = by_edits.min()?;
    (name != meant && edits <= name.len() / 4).then(|| (name.to_owned(), meant.clone()))
}

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
    let path = path.to_owned();
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
