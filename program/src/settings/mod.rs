//! Settings of a program: one struct, and where its values come from.
//!
//! Precedence: defaults, then the file, then the environment, then flags. A
//! program lists its settings once, with [`settings!`](crate::settings!); the
//! struct, the flags, the variables, the file's keys, the printed file and the
//! documentation all follow from that list.
//!
//! A setting `a.b_c` is the flag `--a-b-c`, the variable `RENDEZ_A_B_C` and the
//! key `b_c` in the section `[a]` of the file. A setting with a value per id is
//! a section of its own, `[a.b_c]`.

mod args;
mod layers;
mod print;
mod suggestion;
pub mod table;
pub mod value;

use std::collections::BTreeMap;

pub use args::SettingsArgs;
pub use layers::{ConfigError, Difference, Layers, Loaded, Origin, Override};
pub use print::{document, reference};
pub use suggestion::suggestion;
pub use value::Value;

/// When a changed setting takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// At SIGHUP.
    AtReload,
    /// At the next start.
    AtStart,
}

/// A setting's name, unit and documentation.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Its name, with a dot after the section.
    pub name: &'static str,
    /// Unit or form of its value.
    pub unit: &'static str,
    /// Its meaning.
    pub doc: &'static str,
    /// When a change takes effect.
    pub change: Change,
    /// Whether TOML writes its value without quotes.
    bare: bool,
    /// Whether it is a section of the file.
    table: bool,
}

/// Settings whose flag and variable are shorter than their name: all programs
/// have these two in common.
const SHORT: [(&str, &str); 1] = [("log.level", "log")];

impl Key {
    /// The key of a setting with a value of type `T`.
    pub const fn new<T: Value>(
        name: &'static str,
        unit: &'static str,
        doc: &'static str,
        change: Change,
    ) -> Self {
        Self { name, unit, doc, change, bare: T::BARE, table: T::TABLE }
    }

    /// The flag, without the dashes in front.
    pub fn flag(&self) -> String {
        let short = SHORT.iter().find(|(name, _)| *name == self.name).map(|(_, flag)| *flag);
        short.unwrap_or(self.name).replace(['.', '_'], "-")
    }

    /// The environment variable.
    pub fn variable(&self) -> String {
        format!("RENDEZ_{}", self.flag().replace('-', "_").to_uppercase())
    }
}

/// A struct of settings, as [`settings!`](crate::settings!) makes it.
pub trait Settings: Clone + Default + 'static {
    /// All settings, in the order of their documentation.
    const KEYS: &'static [Key];

    /// The key with this name.
    fn find(name: &str) -> Option<&'static Key> {
        Self::KEYS.iter().find(|key| key.name == name)
    }

    /// The value of a setting as text; empty for an unknown name.
    fn get(&self, name: &str) -> String;

    /// The values of a setting that has one per id.
    fn entries(&self, name: &str) -> BTreeMap<String, String>;

    /// Sets one setting and checks its range.
    ///
    /// # Errors
    /// The reason why the value is invalid. The settings must not be used then.
    fn set(&mut self, name: &str, text: &str) -> Result<(), String>;

    /// Checks the settings against each other, once all of them are read.
    ///
    /// # Errors
    /// The name of the setting at fault, and the reason.
    fn check_all(&self) -> Result<(), (&'static str, String)>;
}

/// Declares a struct of settings and implements [`Settings`] for it.
///
/// `check_value` checks the setting with the overrides name after it was set;
/// `check_all` checks the settings against each other.
#[macro_export]
macro_rules! settings {
    (
        $(#[$attribute:meta])*
        pub struct $settings:ident, $check_value:path, $check_all:path;
        $(
            $(#[doc = $doc:literal])+
            $field:ident : $type:ty = $default:expr, $name:literal, $unit:literal, $change:ident;
        )+
    ) => {
        $(#[$attribute])*
        #[derive(Debug, Clone)]
        pub struct $settings {
            $( $(#[doc = $doc])+ pub $field: $type, )+
        }

        impl Default for $settings {
            fn default() -> Self {
                Self { $( $field: $default, )+ }
            }
        }

        impl $crate::settings::Settings for $settings {
            const KEYS: &'static [$crate::settings::Key] = &[$(
                $crate::settings::Key::new::<$type>(
                    $name,
                    $unit,
                    concat!($($doc),+),
                    $crate::settings::Change::$change,
                ),
            )+];

            fn get(&self, name: &str) -> String {
                match name {
                    $( $name => $crate::settings::Value::text(&self.$field), )+
                    _ => String::new(),
                }
            }

            fn entries(&self, name: &str) -> std::collections::BTreeMap<String, String> {
                match name {
                    $( $name => $crate::settings::Value::entries(&self.$field), )+
                    _ => std::collections::BTreeMap::new(),
                }
            }

            fn set(&mut self, name: &str, text: &str) -> Result<(), String> {
                match name {
                    $( $name => self.$field = $crate::settings::Value::parse(text)?, )+
                    _ => return Err(format!("there is no setting {name:?}")),
                }
                $check_value(self, name)
            }

            fn check_all(&self) -> Result<(), (&'static str, String)> {
                $check_all(self)
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_variables_follow_from_the_name() {
        let key = |name| Key::new::<bool>(name, "", "", Change::AtStart);
        assert_eq!(key("connections_max").flag(), "connections-max");
        assert_eq!(key("connections_max").variable(), "RENDEZ_CONNECTIONS_MAX");
        assert_eq!(key("admin.on_public").variable(), "RENDEZ_ADMIN_ON_PUBLIC");
        assert_eq!(
            (key("log.level").flag(), key("log.level").variable()),
            ("log".into(), "RENDEZ_LOG".into())
        );
    }
}
