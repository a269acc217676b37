//! Settings on the command line: a flag and a variable per setting, `--config`
//! and `--print-config`.

use std::marker::PhantomData;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::{ConfigError, Key, Layers, Loaded, Origin, Override, Settings};

const FILE: &str = "config";
const PRINT: &str = "print-config";

/// The settings of the command line and the environment.
#[derive(Debug, Clone)]
pub struct SettingsArgs<S> {
    layers: Layers,
    settings: PhantomData<S>,
    /// Whether to print the settings and exit.
    pub print_config: bool,
}

impl<S: Settings> SettingsArgs<S> {
    /// Reads the settings.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(self) -> Result<Loaded<S>, ConfigError> {
        self.layers.load()
    }
}

impl<S: Settings> clap::Args for SettingsArgs<S> {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new(FILE)
            .long(FILE)
            .env("RENDEZ_CONFIG")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("File with settings, in TOML; --print-config prints an example");
        let print = Arg::new(PRINT)
            .long(PRINT)
            .action(ArgAction::SetTrue)
            .help("Print the current settings as a commented file and exit");
        command.arg(file).arg(print).args(S::KEYS.iter().map(argument::<S>))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn argument<S: Settings>(key: &'static Key) -> Arg {
    let default = S::default().get(key.name);
    let check = |text: &str| S::default().set(key.name, text).map(|()| text.to_owned());
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

impl<S: Settings> clap::FromArgMatches for SettingsArgs<S> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let overrides = S::KEYS.iter().filter_map(|key| {
            let origin = match matches.value_source(key.name)? {
                ValueSource::CommandLine => Origin::Flag(key.flag()),
                ValueSource::EnvVariable => Origin::Environment(key.variable()),
                _ => return None,
            };
            let text = matches.get_one::<String>(key.name)?.clone();
            Some(Override { key, text, origin })
        });
        let layers = Layers {
            file: matches.get_one::<PathBuf>(FILE).cloned(),
            overrides: overrides.collect(),
        };
        Ok(Self { layers, settings: PhantomData, print_config: matches.get_flag(PRINT) })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
