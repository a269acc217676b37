//! Defaults, file, environment and flags, one over the other.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Change, Key, Settings, suggestion, table};

/// The sources of settings, kept for reading them again.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    /// The file, if there is one.
    pub file: Option<PathBuf>,
    /// Settings by environment or flag, the stronger one per name.
    pub overrides: Vec<Override>,
}

/// A setting that the environment or a flag sets.
#[derive(Debug, Clone)]
pub struct Override {
    /// The setting.
    pub key: &'static Key,
    /// Its value as text.
    pub text: String,
    /// The variable or the flag.
    pub origin: Origin,
}

/// The origin of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The default.
    Default,
    /// The file, at this line.
    File(PathBuf, usize),
    /// This environment variable.
    Environment(String),
    /// This flag, without dashes.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path, line) => write!(f, "{}:{line}", path.display()),
            Origin::Environment(variable) => f.write_str(variable),
            Origin::Flag(flag) => write!(f, "--{flag}"),
        }
    }
}

/// Settings and their origins.
#[derive(Debug, Clone)]
pub struct Loaded<S> {
    /// The settings.
    pub config: S,
    layers: Layers,
    origins: BTreeMap<&'static str, Origin>,
}

/// A setting whose value changed between two readings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference {
    /// The setting's name.
    pub key: &'static str,
    /// When a change takes effect.
    pub change: Change,
}

/// Settings that cannot be used. The operator must act.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{}:{line}: {why}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// The error of the parser.
        why: String,
    },
    /// An unknown name.
    #[error("{}:{line}: there is no setting `{name}`{hint}", path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// The unknown name.
        name: String,
        /// A suggestion.
        hint: String,
    },
    /// A value that cannot be used.
    #[error("{at}: `{name}`: {why}")]
    Value {
        /// The origin of the value.
        at: Origin,
        /// The setting.
        name: &'static str,
        /// The reason.
        why: String,
    },
}

impl Layers {
    /// Reads everything, the file too.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load<S: Settings>(self) -> Result<Loaded<S>, ConfigError> {
        let text = self.file.as_ref().map(|path| {
            let read = std::fs::read_to_string(path);
            read.map_err(|source| ConfigError::Read { path: path.clone(), source })
        });
        let text = text.transpose()?;
        self.merge(text.as_deref())
    }

    fn merge<S: Settings>(self, file: Option<&str>) -> Result<Loaded<S>, ConfigError> {
        let mut config = S::default();
        let mut origins = BTreeMap::new();
        let mut apply = |key: &'static Key, text: &str, at: Origin| {
            let set = config.set(key.name, text);
            set.map_err(|why| ConfigError::Value { at: at.clone(), name: key.name, why })?;
            origins.insert(key.name, at);
            Ok(())
        };
        if let (Some(path), Some(text)) = (&self.file, file) {
            read_file::<S>(path, text, &mut apply)?;
        }
        for Override { key, text, origin } in &self.overrides {
            apply(key, text, origin.clone())?;
        }
        config.check_all().map_err(|(name, why)| {
            let at = origins.get(name).cloned().unwrap_or(Origin::Default);
            ConfigError::Value { at, name, why }
        })?;
        Ok(Loaded { config, origins, layers: self })
    }
}

impl<S: Settings> Loaded<S> {
    /// The origin of a setting's value.
    pub fn origin(&self, name: &str) -> &Origin {
        self.origins.get(name).unwrap_or(&Origin::Default)
    }

    /// Reads the file again; environment and flags are what they were.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn reload(&self) -> Result<Self, ConfigError> {
        self.layers.clone().load()
    }

    /// Settings whose values differ.
    pub fn differences(&self, newer: &S) -> Vec<Difference> {
        let differs = |key: &&Key| self.config.get(key.name) != newer.get(key.name);
        let difference = |key: &Key| Difference { key: key.name, change: key.change };
        S::KEYS.iter().filter(differs).map(difference).collect()
    }
}

impl<S: Settings> From<S> for Loaded<S> {
    /// Settings made by code.
    fn from(config: S) -> Self {
        Self { config, layers: Layers::default(), origins: BTreeMap::new() }
    }
}

/// The parser's message for a repeated name; its span is the name.
const DUPLICATE: &str = "duplicate key";

type Apply<'a> = dyn FnMut(&'static Key, &str, Origin) -> Result<(), ConfigError> + 'a;

fn read_file<S: Settings>(
    path: &Path,
    text: &str,
    apply: &mut Apply<'_>,
) -> Result<(), ConfigError> {
    let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        path: path.to_owned(),
        line: line_of(text, error.span()),
        why: match error.span().and_then(|span| text.get(span)) {
            // A line may be long: name the key as well.
            Some(key) if error.message() == DUPLICATE => format!("{DUPLICATE} `{key}`"),
            _ => error.message().to_owned(),
        },
    })?;
    walk::<S>(table.get_ref(), "", &mut |name, at, value| {
        let line = line_of(text, Some(at));
        let unknown = |hint| ConfigError::Unknown {
            path: path.to_owned(),
            line,
            name: name.to_owned(),
            hint,
        };
        let key = S::find(name)
            .ok_or_else(|| unknown(suggestion(name, S::KEYS.iter().map(|key| key.name))))?;
        let at = Origin::File(path.to_owned(), line);
        let text = match value {
            DeValue::Table(table) if key.table => {
                let at = |span| Origin::File(path.to_owned(), line_of(text, Some(span)));
                entries::<S>(key, table, &at)?
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

fn single(key: &Key, value: &DeValue<'_>, at: &Origin) -> Result<String, ConfigError> {
    scalar(value).ok_or_else(|| ConfigError::Value {
        at: at.clone(),
        name: key.name,
        why: format!("a single value is wanted ({})", key.unit),
    })
}

/// A section as one text. Each line is checked by itself, so that errors name it.
fn entries<S: Settings>(
    key: &Key,
    section: &DeTable<'_>,
    at: &dyn Fn(Range<usize>) -> Origin,
) -> Result<String, ConfigError> {
    let mut texts = Vec::new();
    for (id, value) in section {
        let at = at(Spanned::span(id));
        let bounds = single(key, value.get_ref(), &at)?;
        let entry = table::entry(id.get_ref(), &bounds).and_then(|entry| {
            S::default().set(key.name, &entry)?;
            Ok(entry)
        });
        texts.push(entry.map_err(|why| ConfigError::Value { at, name: key.name, why })?);
    }
    Ok(table::join(&texts))
}

type Found<'a> = dyn FnMut(&str, Range<usize>, &DeValue<'_>) -> Result<(), ConfigError> + 'a;

/// Sections become the first part of a name.
fn walk<S: Settings>(
    table: &DeTable<'_>,
    section: &str,
    found: &mut Found<'_>,
) -> Result<(), ConfigError> {
    for (key, value) in table {
        let name = match section {
            "" => key.get_ref().to_string(),
            section => format!("{section}.{}", key.get_ref()),
        };
        match value.get_ref() {
            // A setting's name is not a section, and sections do not nest.
            DeValue::Table(table) if S::find(&name).is_none() && section.is_empty() => {
                walk::<S>(table, &name, found)?;
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
