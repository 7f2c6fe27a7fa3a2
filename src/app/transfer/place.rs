//! Where a store is.

use std::{fmt, path::PathBuf};

use secrecy::{ExposeSecret, SecretString};

const SCHEMES: [&str; 2] = ["postgres", "postgresql"];

/// Where a store is.
#[derive(Clone, Debug)]
pub enum Place {
    /// The data folder of a service.
    Folder(PathBuf),
    Database(SecretString),
}

impl Place {
    /// A URL of PostgreSQL, or a folder; `None` for another URL.
    pub fn parse(text: &str) -> Option<Place> {
        match text.split_once("://") {
            Some((scheme, _)) if SCHEMES.contains(&scheme) => Some(Place::Database(text.into())),
            Some(_) => None,
            None => Some(Place::Folder(text.into())),
        }
    }

    /// The same text for the same place, without secrets.
    pub(super) fn origin(&self) -> String {
        match self {
            Place::Folder(path) => {
                let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                format!("the data folder {}", path.canonicalize().unwrap_or(path).display())
            }
            Place::Database(_) => self.to_string(),
        }
    }

    pub(super) fn is_same(&self, other: &Place) -> bool {
        match (self, other) {
            (Place::Database(one), Place::Database(other)) => match (address(one), address(other)) {
                (Some(one), Some(other)) => one == other,
                _ => one.expose_secret() == other.expose_secret(),
            },
            (one, other) => one.origin() == other.origin(),
        }
    }
}

/// Without secrets.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Folder(path) => write!(f, "the data folder {}", path.display()),
            Place::Database(url) => match address(url) {
                Some(address) => write!(f, "the database {address}"),
                None => f.write_str("the database of this URL"),
            },
        }
    }
}

/// Host, port and database of a URL; `None` where that could be a part of a password.
fn address(url: &SecretString) -> Option<&str> {
    let (_, rest) = url.expose_secret().split_once("://")?;
    let (user, address) = rest.split_once('@').unwrap_or(("", rest));
    let is_clear = !user.contains(['/', '?']) && !address.contains('@');
    address.split('?').next().filter(|_| is_clear)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_part_of_a_password_is_shown() {
        for (url, shown) in [
            ("postgres://ceoagent:SECRET@db.example:5432/jobs?sslmode=disable", "the database db.example:5432/jobs"),
            ("postgresql://db.example/jobs", "the database db.example/jobs"),
            ("postgres://u:SE?CRET@db.example/jobs", "the database of this URL"),
            ("postgres://u:SE@CRET@db.example/jobs", "the database of this URL"),
            ("postgres://u:S@E?CRET@db.example/jobs", "the database of this URL"),
            ("postgres://u:SE/CRET@db.example/jobs", "the database of this URL"),
            ("postgres://db.example/jobs?password=SE@CRET", "the database of this URL"),
            ("postgres://u@db.example/jobs?password=SECRET", "the database db.example/jobs"),
        ] {
            assert_eq!(Place::parse(url).unwrap().to_string(), shown);
        }
        let place = |url| Place::parse(url).unwrap();
        assert!(place("postgres://a@h/jobs").is_same(&place("postgres://b:x@h/jobs?sslmode=disable")));
        assert!(!place("postgres://u:a?@h/jobs").is_same(&place("postgres://u:b?@h/jobs")));
        assert!(place("data").is_same(&place("./data")) && !place("data").is_same(&place("postgres://h/data")));
    }
}
