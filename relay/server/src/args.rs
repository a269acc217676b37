//! The relay's command line, shared by `rendez relay` and `rendez-relay`: a
//! flag and a variable per setting, `--config` and `--print-config`.

use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::config::{Config, ConfigError, Key, Layers, Loaded, Source};

const FILE: &str = "config";
const PRINT: &str = "print-config";

/// What the command line and the environment say.
#[derive(Debug, Clone)]
pub struct RelayArgs {
    layers: Layers,
    /// Print the settings in force and do nothing else.
    pub print_config: bool,
}

impl RelayArgs {
    /// Reads the settings.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(self) -> Result<Loaded, ConfigError> {
        self.layers.load()
    }
}

impl clap::Args for RelayArgs {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new(FILE)
            .long(FILE)
            .env("RENDEZ_CONFIG")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("File with settings, in TOML; --print-config shows what it may hold");
        let print = Arg::new(PRINT)
            .long(PRINT)
            .action(ArgAction::SetTrue)
            .help("Print the settings in force as such a file, with what each means, and leave");
        command
            .about("Run a relay: the registry and the rendezvous, on SQLite")
            .arg(file)
            .arg(print)
            .args(Config::KEYS.iter().map(argument))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn argument(key: &'static Key) -> Arg {
    let default = Config::default().get(key.name);
    let check = |text: &str| Config::default().set(key.name, text).map(|()| text.to_owned());
    let doc = key.doc.trim();
    let doc = doc.strip_suffix('.').unwrap_or(doc);
    let argument = Arg::new(key.name)
        .long(key.flag())
        .env(key.variable())
        .value_name(form(key.unit))
        .value_parser(check)
        .help(doc);
    if default.is_empty() { argument } else { argument.default_value(default) }
}

/// A unit as a placeholder: `IP:PORT|off`.
fn form(unit: &str) -> String {
    unit.split(',').next().unwrap_or_default().replace(" or ", "|")
}

impl clap::FromArgMatches for RelayArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = Config::KEYS.iter().filter_map(|key| {
            let source = match matches.value_source(key.name)? {
                ValueSource::CommandLine => Source::Flag(key.flag()),
                ValueSource::EnvVariable => Source::Environment(key.variable()),
                _ => return None,
            };
            Some((key, matches.get_one::<String>(key.name)?.clone(), source))
        });
        let layers =
            Layers { file: matches.get_one::<PathBuf>(FILE).cloned(), given: given.collect() };
        Ok(Self { layers, print_config: matches.get_flag(PRINT) })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args as _, FromArgMatches as _};

    fn parse(args: &[&str]) -> Result<RelayArgs, clap::Error> {
        let command = RelayArgs::augment_args(Command::new("relay")).no_binary_name(true);
        RelayArgs::from_arg_matches(&command.try_get_matches_from(args)?)
    }

    #[test]
    fn flags_set_and_name_themselves() {
        let args = parse(&["--listen", "127.0.0.1:9", "--admin-listen", "off"]).unwrap();
        let loaded = args.load().unwrap();
        assert_eq!(loaded.config.listen.port(), 9);
        assert_eq!(loaded.source("listen"), &Source::Flag("listen".into()));
        assert_eq!(loaded.source("connections_max"), &Source::Default);
    }

    /// But for the full stop.
    #[test]
    fn nothing_of_a_text_is_lost_in_the_help() {
        for key in Config::KEYS {
            let help = argument(key).get_help().unwrap().to_string();
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
}
