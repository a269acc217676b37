//! Defaults, file, environment and flags, one over the other.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Change, Config, Key};

/// Similarity (0 to 1) above which another name is worth suggesting.
const SIMILAR: f64 = 0.75;

/// Where settings are looked for, kept for reading them again.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    /// The file, if there is one.
    pub file: Option<PathBuf>,
    /// Settings by environment or flag, the stronger one per name.
    pub given: Vec<(&'static Key, String, Source)>,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Nobody said anything.
    Default,
    /// The file, at this line.
    File(PathBuf, usize),
    /// This environment variable.
    Environment(String),
    /// This flag, without dashes.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            Source::File(path, line) => write!(f, "{}:{line}", path.display()),
            Source::Environment(variable) => f.write_str(variable),
            Source::Flag(flag) => write!(f, "--{flag}"),
        }
    }
}

/// Settings and where each came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    layers: Layers,
    sources: BTreeMap<&'static str, Source>,
}

/// A setting that two readings do not agree about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) key: &'static str,
    pub(crate) change: Change,
}

/// Why there are no settings. The operator has to act.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{}:{line}: {why}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// The parser's words.
        why: String,
    },
    /// A name that no setting has.
    #[error("{}:{line}: there is no setting `{name}`{hint}", path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What stands there.
        name: String,
        /// What may have been meant.
        hint: String,
    },
    /// A value that cannot be used.
    #[error("{at}: `{name}`: {why}")]
    Value {
        /// Where it stands.
        at: Source,
        /// The setting.
        name: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

impl Layers {
    /// Reads everything, the file too.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(self) -> Result<Loaded, ConfigError> {
        let text = self.file.as_ref().map(|path| {
            let read = std::fs::read_to_string(path);
            read.map_err(|source| ConfigError::Read { path: path.clone(), source })
        });
        let text = text.transpose()?;
        self.put_together(text.as_deref())
    }

    fn put_together(self, file: Option<&str>) -> Result<Loaded, ConfigError> {
        let mut config = Config::default();
        let mut sources = BTreeMap::new();
        let mut apply = |key: &'static Key, text: &str, at: Source| {
            let set = config.set(key.name, text);
            set.map_err(|why| ConfigError::Value { at: at.clone(), name: key.name, why })?;
            sources.insert(key.name, at);
            Ok(())
        };
        if let (Some(path), Some(text)) = (&self.file, file) {
            read_file(path, text, &mut apply)?;
        }
        for (key, text, at) in &self.given {
            apply(key, text, at.clone())?;
        }
        Ok(Loaded { config, sources, layers: self })
    }
}

impl Loaded {
    /// Where the value of a setting came from.
    pub fn source(&self, name: &str) -> &Source {
        self.sources.get(name).unwrap_or(&Source::Default)
    }

    /// Reads the file again; environment and flags are what they were.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub(crate) fn again(&self) -> Result<Self, ConfigError> {
        self.layers.clone().load()
    }

    /// Settings whose values differ.
    pub(crate) fn differences(&self, newer: &Config) -> Vec<Difference> {
        let differs = |key: &&Key| self.config.get(key.name) != newer.get(key.name);
        let difference = |key: &Key| Difference { key: key.name, change: key.change };
        Config::KEYS.iter().filter(differs).map(difference).collect()
    }
}

impl From<Config> for Loaded {
    /// Settings that a program made.
    fn from(config: Config) -> Self {
        Self { config, layers: Layers::default(), sources: BTreeMap::new() }
    }
}

type Apply<'a> = dyn FnMut(&'static Key, &str, Source) -> Result<(), ConfigError> + 'a;

fn read_file(path: &Path, text: &str, apply: &mut Apply<'_>) -> Result<(), ConfigError> {
    let line = |span: Option<Range<usize>>| {
        let before = span.map_or(0, |span| span.start).min(text.len());
        1 + text.as_bytes()[..before].iter().filter(|byte| **byte == b'\n').count()
    };
    let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        path: path.to_owned(),
        line: line(error.span()),
        why: error.message().to_owned(),
    })?;
    walk(table.get_ref(), "", &mut |name, at, value| {
        let line = line(Some(at));
        let unknown = |hint| ConfigError::Unknown {
            path: path.to_owned(),
            line,
            name: name.to_owned(),
            hint,
        };
        let key = Key::find(name).ok_or_else(|| unknown(suggestion(name)))?;
        let at = Source::File(path.to_owned(), line);
        let text = scalar(value).ok_or_else(|| ConfigError::Value {
            at: at.clone(),
            name: key.name,
            why: format!("a single value is wanted ({})", key.unit),
        })?;
        apply(key, &text, at)
    })
}

type Found<'a> = dyn FnMut(&str, Range<usize>, &DeValue<'_>) -> Result<(), ConfigError> + 'a;

/// Sections become the first part of a name.
fn walk(table: &DeTable<'_>, section: &str, found: &mut Found<'_>) -> Result<(), ConfigError> {
    for (key, value) in table {
        let name = match section {
            "" => key.get_ref().to_string(),
            section => format!("{section}.{}", key.get_ref()),
        };
        match value.get_ref() {
            // The name of a setting is no section, and there are no others below.
            DeValue::Table(table) if Key::find(&name).is_none() && section.is_empty() => {
                walk(table, &name, found)?;
            }
            value => found(&name, Spanned::span(key), value)?,
        }
    }
    Ok(())
}

fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(number.to_string()),
        DeValue::Boolean(yes) => Some(yes.to_string()),
        _ => None,
    }
}

/// `, did you mean ...`, or nothing.
fn suggestion(name: &str) -> String {
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let similar = |key: &&Key| {
        // The right name in the wrong section counts as well.
        let whole = strsim::jaro_winkler(name, key.name);
        if last(name) == last(key.name) { whole.max(SIMILAR) } else { whole }
    };
    Config::KEYS
        .iter()
        .max_by(|a, b| similar(a).total_cmp(&similar(b)))
        .filter(|key| similar(key) >= SIMILAR)
        .map(|key| format!("; did you mean `{}`?", key.name))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<Loaded, ConfigError> {
        let layers = Layers { file: Some("relay.toml".into()), given: Vec::new() };
        layers.put_together(Some(text))
    }

    fn refused(text: &str) -> String {
        file(text).unwrap_err().to_string()
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let key = |name| Key::find(name).unwrap();
        let variable = Source::Environment("RENDEZ_LISTEN".into());
        let flag = Source::Flag("connections-max".into());
        let layers = Layers {
            file: Some("relay.toml".into()),
            given: vec![
                (key("listen"), "127.0.0.1:2".into(), variable.clone()),
                (key("connections_max"), "3".into(), flag.clone()),
            ],
        };
        let text = "listen = \"127.0.0.1:1\"\nconnections_max = 1\n[admin]\non_public = false\n";
        let loaded = layers.put_together(Some(text)).unwrap();
        assert_eq!(loaded.config.listen.port(), 2);
        assert_eq!(loaded.config.connections_max, 3);
        assert!(!loaded.config.admin_on_public);
        assert_eq!(loaded.source("listen"), &variable);
        assert_eq!(loaded.source("connections_max"), &flag);
        assert_eq!(loaded.source("admin.on_public"), &Source::File("relay.toml".into(), 4));
        assert_eq!(loaded.source("state"), &Source::Default);
    }

    #[test]
    fn unknown_names_are_refused_with_a_suggestion() {
        let cases = [
            ("lsten = 1", "relay.toml:1: there is no setting `lsten`; did you mean `listen`?"),
            ("\n[admin]\nlisten_on = 1", "relay.toml:3: there is no setting `admin.listen_on`"),
            ("on_public = true", "did you mean `admin.on_public`?"),
            ("[log]\nlevle = \"info\"", "did you mean `log.level`?"),
            ("[a.b]\nc = 1", "there is no setting `a.b`"),
            ("zzz = 1", "there is no setting `zzz`"),
        ];
        for (text, expected) in cases {
            let said = refused(text);
            assert!(said.contains(expected), "{text:?}: {said}");
        }
        assert!(!refused("zzz = 1").contains("did you mean"));
    }

    #[test]
    fn wrong_values_and_syntax_name_their_place() {
        let cases = [
            ("\nlisten = 5", "relay.toml:2: `listen`: \"5\""),
            ("listen = [1]", "relay.toml:1: `listen`: a single value is wanted (IP:PORT)"),
            ("listen = { a = 1 }", "`listen`: a single value"),
            ("[listen]\na = 1", "`listen`: a single value"),
            ("connections_max = -1", "`connections_max`"),
            ("\n\nlisten", "relay.toml:3: "),
        ];
        for (text, expected) in cases {
            let said = refused(text);
            assert!(said.contains(expected), "{text:?}: {said}");
        }
    }

    #[test]
    fn two_readings_are_compared_by_value() {
        let one = file("[log]\nlevel = \"warn\"").unwrap();
        let two = file("listen = \"127.0.0.1:9\"\n[log]\nlevel = \"debug\"").unwrap();
        let both = [
            Difference { key: "listen", change: Change::AtStart },
            Difference { key: "log.level", change: Change::AtReload },
        ];
        assert_eq!(one.differences(&two.config), both);
        assert!(one.differences(&one.config).is_empty());
    }

    #[test]
    fn a_file_that_is_missing_is_named() {
        let layers = Layers { file: Some("/no/such/relay.toml".into()), given: Vec::new() };
        assert!(layers.load().unwrap_err().to_string().contains("/no/such/relay.toml"));
    }
}
