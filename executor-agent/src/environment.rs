//! The description of the machine that the agent serves.

use std::env;
use std::path::{Path, PathBuf};

use rendez_proto::rpc::path::PathUri;
use rendez_proto::rpc::session::{Capabilities, Environment, Shell};

/// The shell if `SHELL` is not set.
const DEFAULT_SHELL: &str = "/bin/sh";

/// Describes this machine, with `cwd` as the directory that commands start in.
/// Omits paths that are not UTF-8 or not absolute. Claims no capability of the
/// stock protocol, because none is served.
pub(crate) fn describe(cwd: &Path) -> Environment {
    describe_with(cwd, |name| env::var(name).ok().filter(|value| !value.is_empty()))
}

fn describe_with(cwd: &Path, var: impl Fn(&str) -> Option<String>) -> Environment {
    let shell = var("SHELL")
        .filter(|shell| shell.starts_with('/'))
        .unwrap_or_else(|| DEFAULT_SHELL.to_owned());
    let name = shell.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("sh").to_owned();
    Environment {
        shell: Shell { name, path: shell },
        executor_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        provider_id: None,
        cwd: uri(cwd),
        user_home_dir: var("HOME").and_then(|home| uri(&PathBuf::from(home))),
        platform_os: Some(env::consts::OS.to_owned()),
        prepend_path_dirs: Vec::new(),
        temporary_directories: Vec::new(),
        temp_dir: uri(&var("TMPDIR").map_or_else(env::temp_dir, PathBuf::from)),
        capabilities: Capabilities::default(),
    }
}

fn uri(path: &Path) -> Option<PathUri> {
    PathUri::from_path(path.to_str()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_reflects_variables() {
        let vars = |name: &str| match name {
            "SHELL" => Some("/usr/bin/zsh".to_owned()),
            "HOME" => Some("/home/me".to_owned()),
            "TMPDIR" => Some("/var/tmp".to_owned()),
            _ => None,
        };
        let described = describe_with(Path::new("/work"), vars);
        assert_eq!(
            (described.shell.name.as_str(), described.shell.path.as_str()),
            ("zsh", "/usr/bin/zsh")
        );
        assert_eq!(described.cwd.unwrap().path(), "/work");
        assert_eq!(described.user_home_dir.unwrap().path(), "/home/me");
        assert_eq!(described.temp_dir.unwrap().path(), "/var/tmp");
        assert_eq!(described.platform_os.as_deref(), Some(env::consts::OS));
        assert_eq!(described.capabilities, Capabilities::default());
    }

    #[test]
    fn shell_has_a_default() {
        let described = describe_with(Path::new("relative"), |_| None);
        assert_eq!(
            (described.shell.name.as_str(), described.shell.path.as_str()),
            ("sh", "/bin/sh")
        );
        assert_eq!((described.cwd, described.user_home_dir), (None, None));
    }
}
