//! The relay's settings from files, flags and variables.

use clap::{Args as _, Command, FromArgMatches as _};
use rendez_program::settings::{
    Change, ConfigError, Difference, Key, Layers, Origin, Override, Settings as _,
};
use tempfile::TempDir;

use super::*;

#[test]
fn every_setting_is_documented_and_its_default_parses() {
    let mut config = Config::default();
    for key in Config::KEYS {
        assert!(key.doc.trim().ends_with('.'), "{}: {}", key.name, key.doc);
        assert!(!key.unit.is_empty(), "{}", key.name);
        let text = config.get(key.name);
        config.set(key.name, &text).unwrap();
        assert_eq!(config.get(key.name), text, "{}", key.name);
    }
    assert!(config.set("no.such", "").is_err());
}

#[test]
fn no_two_settings_share_a_variable() {
    let mut variables: Vec<_> = Config::KEYS.iter().map(Key::variable).collect();
    variables.sort();
    variables.dedup();
    assert_eq!(variables.len(), Config::KEYS.len());
}

/// A file `relay.toml` with this text, and settings overrides beside it.
struct Written {
    directory: TempDir,
    overrides: Vec<Override>,
}

impl Written {
    fn new(text: &str) -> Self {
        let written = Self { directory: tempfile::tempdir().unwrap(), overrides: Vec::new() };
        std::fs::write(written.path(), text).unwrap();
        written
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("relay.toml")
    }

    fn at(&self, line: usize) -> Origin {
        Origin::File(self.path(), line)
    }

    fn load(&self) -> Result<Loaded<Config>, ConfigError> {
        Layers { file: Some(self.path()), overrides: self.overrides.clone() }.load()
    }
}

/// The error for this text; the file is named without its directory.
fn refused(text: &str) -> String {
    let written = Written::new(text);
    let said = written.load().unwrap_err().to_string();
    said.replace(&format!("{}/", written.directory.path().display()), "")
}

#[test]
fn flags_override_environment_and_environment_overrides_file() {
    let key = |name| Config::find(name).unwrap();
    let variable = Origin::Environment("RENDEZ_LISTEN".into());
    let flag = Origin::Flag("connections-max".into());
    let text = "listen = \"127.0.0.1:1\"\nconnections_max = 1\n[admin]\non_public = false\n";
    let mut written = Written::new(text);
    written.overrides = vec![
        Override { key: key("listen"), text: "127.0.0.1:2".into(), origin: variable.clone() },
        Override { key: key("connections_max"), text: "3".into(), origin: flag.clone() },
    ];
    let loaded = written.load().unwrap();
    assert_eq!(loaded.config.listen.port(), 2);
    assert_eq!(loaded.config.connections_max, 3);
    assert!(!loaded.config.admin_on_public);
    assert_eq!(loaded.origin("listen"), &variable);
    assert_eq!(loaded.origin("connections_max"), &flag);
    assert_eq!(loaded.origin("admin.on_public"), &written.at(4));
    assert_eq!(loaded.origin("state"), &Origin::Default);
}

#[test]
fn unknown_names_are_refused_with_a_suggestion() {
    let cases = [
        ("lsten = 1", "relay.toml:1: there is no setting `lsten`; did you mean `listen`?"),
        ("\n[admin]\nlisten_on = 1", "relay.toml:3: there is no setting `admin.listen_on`"),
        ("on_public = true", "did you mean `admin.on_public`?"),
        ("[log]\nlevle = \"info\"", "did you mean `log.level`?"),
        ("[a.b]\nc = 1", "there is no setting `a.b`"),
        ("[quota.tokenz]\na = 1", "there is no setting `quota.tokenz`; did you mean `quota.token"),
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
fn section_of_ids_is_one_setting() {
    let text = "[quota]\ntoken = \"streams=9 connections=4\"\n[quota.tokens]\n\
                0011223344556677 = \"streams=5\"\n0011223344556688 = \"\"\n";
    let written = Written::new(text);
    let loaded = written.load().unwrap();
    let quotas = loaded.config.quotas();
    assert_eq!(quotas.tokens.len(), 2);
    let (one, other) = (quotas.tokens["0011223344556677"], quotas.tokens["0011223344556688"]);
    assert_eq!((one.streams, one.connections), (5, 4));
    assert_eq!(other, quotas.token);
    assert_eq!(loaded.origin("quota.tokens"), &written.at(3));

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
    // As a flag or a variable it is one text, which replaces the file's section.
    let mut written = Written::new(section);
    written.overrides = vec![Override {
        key: Config::find("quota.environments").unwrap(),
        text: "b streams=2; c streams=3".into(),
        origin: Origin::Flag("quota-environments".into()),
    }];
    let loaded = written.load().unwrap();
    let ids: Vec<_> = loaded.config.quotas().environments.into_keys().collect();
    assert_eq!(ids, ["b", "c"]);
}

#[test]
fn readings_are_compared_by_value() {
    let one = Written::new("[log]\nlevel = \"warn\"").load().unwrap();
    let two = Written::new("listen = \"127.0.0.1:9\"\n[log]\nlevel = \"debug\"").load().unwrap();
    let both = [
        Difference { key: "listen", change: Change::AtStart },
        Difference { key: "log.level", change: Change::AtReload },
    ];
    assert_eq!(one.differences(&two.config), both);
    assert!(one.differences(&one.config).is_empty());
}

#[test]
fn missing_file_is_named() {
    let layers = Layers { file: Some("/no/such/relay.toml".into()), overrides: Vec::new() };
    assert!(layers.load::<Config>().unwrap_err().to_string().contains("/no/such/relay.toml"));
}

#[test]
fn printed_settings_parse_and_name_their_origin() {
    let text = "state = 'a \"b\"'\nconnections_max = 7\n[quota.tokens]\n\
                0011223344556677 = 'streams=5'\n[quota.environments]\nbox = 'memory=none'\n";
    let written = Written::new(text);
    let first = written.load().unwrap();
    let printed = document(&first);
    assert!(printed.contains("\nconnections_max = 7\n"), "{printed}");
    assert!(printed.contains("relay.toml:2"), "{printed}");
    assert!(printed.contains("[quota.tokens]\n0011223344556677 = \"streams=5\"\n"));
    assert!(printed.contains("[quota.environments]\nbox = \"memory=none\"\n"));
    for key in Config::KEYS {
        assert!(printed.contains(key.doc.trim()), "{}", key.name);
    }
    let again = Written::new(&printed).load().unwrap();
    assert!(first.differences(&again.config).is_empty(), "{printed}");
}

fn parse(args: &[&str]) -> Result<RelayArgs, clap::Error> {
    let command = RelayArgs::augment_args(Command::new("relay")).no_binary_name(true);
    RelayArgs::from_arg_matches(&command.try_get_matches_from(args)?)
}

#[test]
fn flags_set_and_name_themselves() {
    let args = parse(&["--listen", "127.0.0.1:9", "--admin-listen", "off"]).unwrap();
    let loaded = args.load().unwrap();
    assert_eq!(loaded.config.listen.port(), 9);
    assert_eq!(loaded.origin("listen"), &Origin::Flag("listen".into()));
    assert_eq!(loaded.origin("connections_max"), &Origin::Default);
}

/// Only the full stop is missing.
#[test]
fn help_contains_whole_descriptions() {
    let command = RelayArgs::augment_args(Command::new("relay"));
    for key in Config::KEYS {
        let argument = command.get_arguments().find(|argument| argument.get_id() == key.name);
        let help = argument.unwrap().get_help().unwrap().to_string();
        assert_eq!(format!("{help}."), key.doc.trim(), "{}", key.name);
        assert!(!help.ends_with('.'), "{}: an ellipsis is cut: {help}", key.name);
    }
}

#[test]
fn wrong_flags_are_refused_by_name() {
    let said = parse(&["--listen", "nowhere"]).unwrap_err().to_string();
    assert!(said.contains("--listen"), "{said}");
    let said = parse(&["--lisen", "127.0.0.1:9"]).unwrap_err().to_string();
    assert!(said.contains("--listen"), "{said}");
}
