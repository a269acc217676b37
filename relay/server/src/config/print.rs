//! Settings as a file and as documentation.

use std::fmt::Write as _;

use super::{Change, Config, Key, Loaded};

/// The settings in force as a commented file, which reads back as the same.
pub fn document(loaded: &Loaded) -> String {
    let defaults = Config::default();
    let mut text = String::from("# The relay's settings in force.\n");
    let mut section = "";
    for key in Config::KEYS {
        let (of, name) = key.name.rsplit_once('.').unwrap_or(("", key.name));
        if of != section && !key.table {
            section = of;
            let _ = write!(text, "\n[{section}]\n");
        }
        let default = quoted(key, &defaults.get(key.name));
        let (unit, source) = (key.unit, loaded.source(key.name));
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

/// The table in `docs/operating.md`.
pub fn table() -> String {
    let defaults = Config::default();
    let mut text = String::from(
        "| key | flag, variable | unit | default | changes | meaning |\n\
         | --- | --- | --- | --- | --- | --- |\n",
    );
    for key in Config::KEYS {
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

#[cfg(test)]
mod tests {
    use super::super::Layers;
    use super::*;

    #[test]
    fn what_is_printed_is_read_back_and_says_where_it_came_from() {
        let directory = std::env::temp_dir().join(format!("rendez-print-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("relay.toml");
        let text = "state = 'a \"b\"'\nconnections_max = 7\n[quota.tokens]\n\
                    0011223344556677 = 'streams=5'\n[quota.environments]\nbox = 'memory=none'\n";
        std::fs::write(&path, text).unwrap();
        let load = || Layers { file: Some(path.clone()), given: Vec::new() }.load().unwrap();
        let first = load();
        let printed = document(&first);
        assert!(printed.contains("\nconnections_max = 7\n"), "{printed}");
        assert!(printed.contains("relay.toml:2"), "{printed}");
        assert!(printed.contains("[quota.tokens]\n0011223344556677 = \"streams=5\"\n"));
        assert!(printed.contains("[quota.environments]\nbox = \"memory=none\"\n"));
        for key in Config::KEYS {
            assert!(printed.contains(key.doc.trim()), "{}", key.name);
        }
        std::fs::write(&path, &printed).unwrap();
        let again = load();
        std::fs::remove_dir_all(&directory).unwrap();
        assert!(first.differences(&again.config).is_empty(), "{printed}");
    }
}
