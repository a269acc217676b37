//! Settings as a file and as a reference table.

use std::fmt::Write as _;

use super::{Change, Key, Loaded, Settings};

/// The settings in force as a commented file, which reads back as the same.
pub fn document<S: Settings>(heading: &str, loaded: &Loaded<S>) -> String {
    let defaults = S::default();
    let mut text = format!("# {heading}\n");
    let mut section = "";
    for key in S::KEYS {
        let (of, name) = key.name.rsplit_once('.').unwrap_or(("", key.name));
        if of != section && !key.table {
            section = of;
            let _ = write!(text, "\n[{section}]\n");
        }
        let default = quoted(key, &defaults.get(key.name));
        let (unit, source) = (key.unit, loaded.origin(key.name));
        let _ = write!(
            text,
            "\n#{}\n# Unit: {unit}. Default: {default}. Changes {}. From: {source}.\n",
            key.doc,
            change(key.change),
        );
        if key.table {
            section = key.name;
            let _ = writeln!(text, "[{section}]");
            for (id, value) in loaded.config.entries(key.name) {
                let _ = writeln!(text, "{id} = {}", quoted(key, &value));
            }
        } else {
            let _ = writeln!(text, "{name} = {}", quoted(key, &loaded.config.get(key.name)));
        }
    }
    text
}

/// All settings as a table in Markdown.
pub fn reference<S: Settings>() -> String {
    let defaults = S::default();
    let mut text = String::from(
        "| key | flag, variable | unit | default | changes | meaning |\n\
         | --- | --- | --- | --- | --- | --- |\n",
    );
    for key in S::KEYS {
        let default = match defaults.get(key.name) {
            empty if empty.is_empty() => "(none)".to_owned(),
            default => format!("`{default}`"),
        };
        let _ = writeln!(
            text,
            "| `{}` | `--{}`, `{}` | {} | {default} | {} | {} |",
            key.name,
            key.flag(),
            key.variable(),
            key.unit,
            change(key.change),
            key.doc.trim(),
        );
    }
    text
}

fn change(change: Change) -> &'static str {
    match change {
        Change::AtReload => "on SIGHUP",
        Change::AtStart => "at the next start",
    }
}

fn quoted(key: &Key, text: &str) -> String {
    if key.bare { text.to_owned() } else { toml::Value::from(text).to_string() }
}
