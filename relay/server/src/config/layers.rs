//! Defaults, file, environment and flags, one over the other.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::suggest::suggestion;
use super::{Change, Config, Key, by_id, ranges};

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

impl Difference {
    /// Whether it is one that TLS takes over at a reload, if it can.
    pub(crate) fn is_of_tls(&self) -> bool {
        self.key.starts_with("tls.") && self.change == Change::AtReload
    }
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
        ranges::together(&config).map_err(|(name, why)| {
            let at = sources.get(name).cloned().unwrap_or(Source::Default);
            ConfigError::Value { at, name, why }
        })?;
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

/// The parser's words for a name that stands there twice; its span is the name.
const DUPLICATE: &str = "duplicate key";

type Apply<'a> = dyn FnMut(&'static Key, &str, Source) -> Result<(), ConfigError> + 'a;

fn read_file(path: &Path, text: &str, apply: &mut Apply<'_>) -> Result<(), ConfigError> {
    let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        path: path.to_owned(),
        line: line_of(text, error.span()),
        why: match error.span().and_then(|span| text.get(span)) {
            // The line alone says little of a long one.
            Some(key) if error.message() == DUPLICATE => format!("{DUPLICATE} `{key}`"),
            _ => error.message().to_owned(),
        },
    })?;
    walk(table.get_ref(), "", &mut |name, at, value| {
        let line = line_of(text, Some(at));
        let unknown = |hint| ConfigError::Unknown {
            path: path.to_owned(),
            line,
            name: name.to_owned(),
            hint,
        };
        let key = Key::find(name)
            .ok_or_else(|| unknown(suggestion(name, Config::KEYS.iter().map(|key| key.name))))?;
        let at = Source::File(path.to_owned(), line);
        let text = match value {
            DeValue::Table(table) if key.table => {
                let at = |span| Source::File(path.to_owned(), line_of(text, Some(span)));
                entries(key, table, &at)?
            }
            value => single(key, value, &at)?,
        };
        apply(key, &text, at)
    })
}

/// From 1.
fn line_of(text: &str, span: Option<Range<usize>>) -> usize {
    let before = span.map_or(0, |span| span.start).min(text.len());
    1 + text.as_bytes()[..before].iter().filter(|byte| **byte == b'\n').count()
}

fn single(key: &Key, value: &DeValue<'_>, at: &Source) -> Result<String, ConfigError> {
    scalar(value).ok_or_else(|| ConfigError::Value {
        at: at.clone(),
        name: key.name,
        why: format!("a single value is wanted ({})", key.unit),
    })
}

/// A section as one text; each line is checked alone, so that errors name it.
fn entries(
    key: &Key,
    table: &DeTable<'_>,
    at: &dyn Fn(Range<usize>) -> Source,
) -> Result<String, ConfigError> {
    let mut texts = Vec::new();
    for (id, value) in table {
        let at = at(Spanned::span(id));
        let bounds = single(key, value.get_ref(), &at)?;
        let entry = by_id::entry(id.get_ref(), &bounds).and_then(|entry| {
            Config::default().set(key.name, &entry)?;
            Ok(entry)
        });
        texts.push(entry.map_err(|why| ConfigError::Value { at, name: key.name, why })?);
    }
    Ok(by_id::join(&texts))
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
            (
                "[quota.tokenz]\na = 1",
                "there is no setting `quota.tokenz`; did you mean `quota.token",
            ),
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
            ("state = 'a'\nstate = 'b'", "relay.toml:2: duplicate key `state`"),
            (
                "[drain]\nannounce = '20s'",
                "relay.toml:2: `drain.announce`: 20s is not less than `drain.deadline`, which is 20s",
            ),
            (
                "[drain]\ndeadline = '1s'\nannounce = '1m'",
                "relay.toml:3: `drain.announce`: 1m is not less than `drain.deadline`, which is 1s",
            ),
        ];
        for (text, expected) in cases {
            let said = refused(text);
            assert!(said.contains(expected), "{text:?}: {said}");
        }
    }

    #[test]
    fn a_section_of_ids_is_one_setting() {
        let text = "[quota]\ntoken = \"streams=9 connections=4\"\n[quota.tokens]\n\
                    0011223344556677 = \"streams=5\"\n0011223344556688 = \"\"\n";
        let loaded = file(text).unwrap();
        let quotas = loaded.config.quotas();
        assert_eq!(quotas.tokens.len(), 2);
        let (one, other) = (quotas.tokens["0011223344556677"], quotas.tokens["0011223344556688"]);
        assert_eq!((one.streams, one.connections), (5, 4));
        assert_eq!(other, quotas.token);
        assert_eq!(loaded.source("quota.tokens"), &Source::File("relay.toml".into(), 3));

        let section = "[quota.environments]\na = \"streams=1\"\n";
        let cases = [
            ("b = \"stream=1\"", "relay.toml:3: `quota.environments`: b: there is no bound"),
            ("b = [1]", "relay.toml:3: `quota.environments`: a single value"),
            ("[quota.environments.b]\nstreams = 1", "a single value is wanted (bounds per id)"),
            ("\"b;c\" = \"\"", "relay.toml:3: `quota.environments`: \"b;c\""),
            ("\"b/c\" = \"\"", "relay.toml:3: `quota.environments`: \"b/c\""),
        ];
        for (line, expected) in cases {
            let said = refused(&format!("{section}{line}"));
            assert!(said.contains(expected), "{line:?}: {said}");
        }
        // by flag and variable it is one text, over all that the file says
        let layers = Layers {
            file: Some("relay.toml".into()),
            given: vec![(
                Key::find("quota.environments").unwrap(),
                "b streams=2; c streams=3".into(),
                Source::Flag("quota-environments".into()),
            )],
        };
        let loaded = layers.put_together(Some(section)).unwrap();
        let ids: Vec<_> = loaded.config.quotas().environments.into_keys().collect();
        assert_eq!(ids, ["b", "c"]);
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
