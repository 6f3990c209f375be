//! How a configuration fails: what is wrong, on which line, and what to do.

use std::path::{Path, PathBuf};

use walden_engine::encryption::without_secrets;

use crate::problem::Hint;

/// Why there are no [`super::Settings`]. Display says what is wrong, its hint what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration {}", file.display())]
    #[allow(missing_docs)]
    Unreadable {
        file: PathBuf,
        source: std::io::Error,
    },
    /// The file is not YAML, or a value is not of its kind.
    #[error("{}{}: {message}", file.display(), on_line(*line))]
    #[allow(missing_docs)]
    Invalid {
        file: PathBuf,
        line: Option<usize>,
        message: String,
    },
    /// A key that nothing reads: most often a slip of the pen.
    #[error("{}{}: unknown key {key:?}{}", file.display(), on_line(*line), within(place))]
    #[allow(missing_docs)]
    UnknownKey {
        file: PathBuf,
        line: Option<usize>,
        place: String,
        key: String,
        known: Vec<String>,
    },
    /// A section or key without which nothing works.
    #[error("{}: {key:?} is missing", file.display())]
    #[allow(missing_docs)]
    Missing { file: PathBuf, key: String },
    /// `--cluster` names none of the clusters.
    #[error("{} has no cluster {wanted:?}", file.display())]
    #[allow(missing_docs)]
    NoSuchCluster {
        file: PathBuf,
        wanted: String,
        known: Vec<String>,
    },
    /// There are several clusters, and `--cluster` is not given.
    #[error("{} has more than one cluster, and none was named", file.display())]
    #[allow(missing_docs)]
    WhichCluster { file: PathBuf, known: Vec<String> },
    /// Two repositories of one name.
    #[error("{}: two repositories have the name {name:?}", file.display())]
    #[allow(missing_docs)]
    SameName { file: PathBuf, name: String },
    /// Two repositories in one place.
    #[error("{}: the repositories {:?} and {:?} are both in {place}", file.display(), names[0], names[1])]
    #[allow(missing_docs)]
    SamePlace {
        file: PathBuf,
        names: [String; 2],
        place: String,
    },
    /// No repository is required.
    #[error("{}: no repository is required", file.display())]
    #[allow(missing_docs)]
    NoneRequired { file: PathBuf },
    /// A repository that is in a folder and in a bucket.
    #[error("{}: the repository {name:?} has a path and s3, and is in one place only", file.display())]
    #[allow(missing_docs)]
    TwoPlaces { file: PathBuf, name: String },
    /// A secret that every user of the machine may read.
    #[error("every user of this machine may read or change {}, and {what}", file.display())]
    #[allow(missing_docs)]
    Exposed { file: PathBuf, what: String },
}

fn on_line(line: Option<usize>) -> String {
    line.map(|line| format!(", line {line}"))
        .unwrap_or_default()
}

fn within(place: &str) -> String {
    if place.is_empty() {
        String::new()
    } else {
        format!(" in {place}")
    }
}

impl ConfigError {
    /// serde knows what it expected only as text (`Error::unknown_field`), so the text is taken apart again;
    /// the tests hold it to that form.
    pub(super) fn from_yaml(file: &Path, text: &str, error: &serde_yaml::Error) -> Self {
        let file = file.to_owned();
        let mut line = error.location().map(|location| location.line());
        let whole = without_secrets(&error.to_string());
        let message = whole.split(" at line ").next().unwrap_or(&whole);
        let Some((place, rest)) = message.split_once("unknown field `") else {
            return Self::Invalid {
                file,
                line,
                message: message.to_owned(),
            };
        };
        let mut names = rest.split('`').step_by(2).map(str::to_owned);
        let key = names.next().unwrap_or_default();
        // serde_yaml points to the mapping's first line. Where the key stands once in the file, that line is the better one.
        let mut places = text
            .lines()
            .zip(1..)
            .filter(|(text, _)| mentions_key(text, &key))
            .map(|(_, line)| line);
        if let (Some(at), None) = (places.next(), places.next()) {
            line = Some(at);
        }
        Self::UnknownKey {
            file,
            line,
            place: place.trim_end_matches(": ").to_owned(),
            key,
            known: names.collect(),
        }
    }
}

fn mentions_key(line: &str, key: &str) -> bool {
    let line = line.split(" #").next().unwrap_or(line);
    line.match_indices(key).any(|(at, _)| {
        let before = line.get(..at).and_then(|before| before.chars().next_back());
        let after = line
            .get(at + key.len()..)
            .unwrap_or_default()
            .trim_start_matches(['"', '\''])
            .trim_start();
        before.is_none_or(|c| " {,\"'".contains(c)) && after.starts_with(':')
    })
}

impl Hint for ConfigError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unreadable { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                "write it (walden.example.yaml explains every key), or name another file with --config or WALDEN_CONFIG"
                    .to_owned()
            }
            Self::Exposed { file, .. } => format!(
                "chmod 600 {}; the user that runs this must own it",
                file.display()
            ),
            Self::Unreadable { .. } => {
                "the user that runs this must be able to read it; PostgreSQL runs its commands as its own user".to_owned()
            }
            Self::Invalid { .. } => "walden.example.yaml explains every key".to_owned(),
            Self::UnknownKey { key, place, .. }
                if place.ends_with(".s3") && (key.contains("secret") || key.contains("access_key")) =>
            {
                "no secret stands in this file: keep it in AWS's environment variables, in a file that credentials_file names, or \
                 in the machine's role (docs/s3.md)"
                    .to_owned()
            }
            Self::UnknownKey { key, known, .. } => {
                let nearest = known
                    .iter()
                    .map(|name| (strsim::damerau_levenshtein(name, key), name))
                    .filter(|(distance, name)| *distance <= name.len().max(key.len()) / 2)
                    .min_by_key(|(distance, _)| *distance);
                let known = known.join(", ");
                match nearest {
                    Some((_, nearest)) => format!("did you mean {nearest:?}? Known here: {known}"),
                    None => format!("known here: {known}"),
                }
            }
            Self::Missing { key, .. } if key == "clusters" => {
                "add at least one cluster, as in \"clusters: { main: { pgdata: /var/lib/postgresql/17/main } }\"".to_owned()
            }
            Self::Missing { key, .. } if key == "repositories" => {
                "add at least one repository, as in \"repositories: [{ name: here, path: /var/lib/walden }]\"".to_owned()
            }
            Self::Missing { .. } => {
                "a repository needs a name, and a path or s3, as in \"{ name: here, path: /var/lib/walden }\" or \
                 \"{ name: here, s3: { bucket: backups, region: eu-west-1 } }\""
                    .to_owned()
            }
            Self::NoSuchCluster { known, .. } | Self::WhichCluster { known, .. } => {
                format!("name one with --cluster: {}", known.join(", "))
            }
            Self::SameName { .. } => "give each a name of its own".to_owned(),
            Self::SamePlace { .. } => "leave one of them, or correct where the other is".to_owned(),
            Self::NoneRequired { .. } => {
                "leave out \"required: false\" where WAL has to be before PostgreSQL may remove it".to_owned()
            }
            Self::TwoPlaces { .. } => "leave path, for a folder, or s3, for a bucket".to_owned(),
        })
    }
}
