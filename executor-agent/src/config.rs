//! The settings of an agent and their command-line arguments.

use std::path::PathBuf;

use rendez_endpoint::Grace;
use rendez_program::logging::LogLevel;
use rendez_program::tls_args::TlsArgs;
use rendez_program::token::{TokenArgs, TokenFileError};
use rendez_proto::ids::EnvironmentId;
use rendez_proto::profile::Profile;
use rendez_proto::registry::admin::JOIN_TOKEN_PREFIX;
use rendez_transport::relay_url::RelayUrl;
use secrecy::{ExposeSecret as _, SecretString};

use crate::credential;

/// The profiles that an agent offers by default: the one
/// between our own endpoints, and the one of stock orchestrators.
pub const DEFAULT_PROFILES: [Profile; 2] = [Profile::RendezHybridIkV1, Profile::NoiseHybridIkV1];

/// All settings of an agent.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Where the registry is.
    pub relay: RelayUrl,
    /// The environment that this machine serves.
    pub environment: EnvironmentId,
    /// The credentials.
    pub auth: Auth,
    /// The directory of the identity and the credential; made if missing.
    pub state: PathBuf,
    /// The profiles offered to orchestrators, without repetition, at least one.
    pub profiles: Vec<Profile>,
    /// The default working directory of commands.
    pub cwd: PathBuf,
    /// How long streams outlive a lost connection.
    pub grace: Grace,
}

/// How an agent authenticates to a registry.
#[derive(Debug, Clone)]
pub enum Auth {
    /// By a bearer token of an executor's role, at each call.
    Bearer(SecretString),
    /// By a key of its own, which this join token enrols if it is not yet.
    Join(SecretString),
    /// By a key of its own, which is enrolled.
    Enrolled,
}

impl Auth {
    /// The credentials of this token: its prefix marks a join token.
    pub fn of_token(token: SecretString) -> Self {
        match token.expose_secret().starts_with(JOIN_TOKEN_PREFIX) {
            true => Auth::Join(token),
            false => Auth::Bearer(token),
        }
    }
}

/// Serve this machine as an environment.
///
/// The token is read from RENDEZ_TOKEN or --token-file. It is never an argument,
/// because other users of the machine could read it. With a join token the agent
/// enrols its own key, stored in --state; after that it needs no token.
#[derive(Debug, Clone, clap::Args)]
pub struct AgentArgs {
    /// The relay, such as `https://relay.example.com`
    #[arg(long, env = "RENDEZ_RELAY", value_name = "URL")]
    pub relay: RelayUrl,

    /// The environment that this machine serves: the name that users connect to
    #[arg(long, env = "RENDEZ_ENVIRONMENT", value_name = "ID")]
    pub environment: EnvironmentId,

    #[command(flatten)]
    #[allow(missing_docs, reason = "a comment would be help text")]
    pub token: TokenArgs,

    /// Directory of this agent's keys; created if missing [default:
    /// rendez/agent/ID in $XDG_STATE_HOME, or in ~/.local/state]
    #[arg(long, env = "RENDEZ_AGENT_STATE", value_name = "DIR")]
    pub state: Option<PathBuf>,

    /// A security profile to offer; may be repeated. Default:
    /// rendez_hybrid_ik_v1 and noise_hybrid_ik_v1, which stock Codex speaks
    #[arg(long = "profile", value_name = "NAME")]
    pub profiles: Vec<Profile>,

    /// Default working directory of commands [default: the current directory]
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,

    /// How long streams survive a lost connection, 1s to 1h. The shorter time of
    /// the two ends applies
    #[arg(long, env = "RENDEZ_GRACE", default_value_t, value_name = "DURATION")]
    pub grace: Grace,

    #[command(flatten)]
    #[allow(missing_docs, reason = "a comment would be help text")]
    pub tls: TlsArgs,

    /// Level of the log on stderr: off, error, warn, info, debug or trace
    #[arg(long, env = "RENDEZ_LOG", default_value = "info", value_name = "LEVEL")]
    pub log: LogLevel,
}

/// Why the settings are not complete.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is no token anywhere.
    #[error(
        "no token: set RENDEZ_TOKEN, or name a file with --token-file; and this agent has not \
         joined yet: there is no {}",
        .0.display()
    )]
    NoToken(PathBuf),
    /// The token's file cannot be used.
    #[error(transparent)]
    TokenFile(#[from] TokenFileError),
    /// No directory for the key: `--state` and the home directory are missing.
    #[error("no directory for the agent's key: set --state")]
    NoState,
    /// The directory for commands cannot be used.
    #[error("cannot use {} to start commands in: {why}", path.display())]
    Cwd {
        /// The directory.
        path: PathBuf,
        /// The reason.
        why: std::io::Error,
    },
}

impl AgentArgs {
    /// Completes the settings from the process's environment and files.
    ///
    /// # Errors
    /// [`ConfigError`] names the missing setting and how to set it.
    pub fn into_config(self) -> Result<AgentConfig, ConfigError> {
        self.complete(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn complete(self, var: impl Fn(&str) -> Option<String>) -> Result<AgentConfig, ConfigError> {
        let token = self.token.read(&var)?;
        let state = match self.state {
            Some(state) => state,
            None => var("XDG_STATE_HOME")
                .map(PathBuf::from)
                .or_else(|| var("HOME").map(|home| PathBuf::from(home).join(".local/state")))
                .ok_or(ConfigError::NoState)?
                .join("rendez/agent")
                .join(self.environment.as_str()),
        };
        let credential = credential::path(&state);
        let auth = match token {
            Some(token) => Auth::of_token(token),
            None if credential.exists() => Auth::Enrolled,
            None => return Err(ConfigError::NoToken(credential)),
        };
        let cwd = self.cwd.unwrap_or_else(|| PathBuf::from("."));
        let cwd = cwd.canonicalize().map_err(|why| ConfigError::Cwd { path: cwd, why })?;
        let mut profiles = Vec::new();
        let wanted =
            if self.profiles.is_empty() { DEFAULT_PROFILES.to_vec() } else { self.profiles };
        for profile in wanted {
            if !profiles.contains(&profile) {
                profiles.push(profile);
            }
        }
        let (relay, environment) = (self.relay, self.environment);
        Ok(AgentConfig { relay, environment, auth, state, profiles, cwd, grace: self.grace })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser as _;
    use rendez_program::token::TOKEN_VARIABLE;

    use super::*;

    fn bearer(config: &AgentConfig) -> &str {
        match &config.auth {
            Auth::Bearer(token) => token.expose_secret(),
            other => panic!("{other:?}"),
        }
    }

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        agent: AgentArgs,
    }

    fn args(more: &[&str]) -> AgentArgs {
        let base = ["x", "--relay", "https://r.example/", "--environment", "dev"];
        Cli::try_parse_from(base.iter().chain(more)).unwrap().agent
    }

    fn var(name: &str) -> Option<String> {
        match name {
            TOKEN_VARIABLE => Some("t0k\n".into()),
            "HOME" => Some("/home/me".into()),
            _ => None,
        }
    }

    #[test]
    fn defaults_are_complete_and_hide_the_token() {
        let config = args(&[]).complete(var).unwrap();
        assert_eq!(config.relay.to_string(), "https://r.example");
        assert_eq!(config.state, Path::new("/home/me/.local/state/rendez/agent/dev"));
        assert_eq!(config.profiles, DEFAULT_PROFILES);
        assert_eq!(bearer(&config), "t0k");
        assert!(config.cwd.is_absolute());
        assert!(!format!("{config:?}").contains("t0k"));
    }

    #[test]
    fn flags_override_defaults() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), " from-file \nrest").unwrap();
        let config = args(&[
            "--token-file",
            file.path().to_str().unwrap(),
            "--state",
            "/s",
            "--cwd",
            "/",
            "--profile",
            "rendez_ik_v1",
            "--profile",
            "rendez_ik_v1",
        ])
        .complete(var)
        .unwrap();
        assert_eq!(bearer(&config), "from-file");
        assert_eq!(
            (config.state.as_path(), config.cwd.as_path()),
            (Path::new("/s"), Path::new("/"))
        );
        assert_eq!(config.profiles, [Profile::RendezIkV1]);
    }

    #[test]
    fn token_kind_selects_authentication() {
        let join = |name: &str| (name == TOKEN_VARIABLE).then(|| "rdz_j_00".to_owned());
        let none = |_: &str| None;
        let state = tempfile::tempdir().unwrap();
        let args = || args(&["--state", state.path().to_str().unwrap()]);
        assert!(matches!(args().complete(join).unwrap().auth, Auth::Join(_)));
        assert!(args().complete(none).is_err());
        std::fs::write(credential::path(state.path()), "").unwrap();
        assert!(matches!(args().complete(none).unwrap().auth, Auth::Enrolled));
        assert!(matches!(args().complete(join).unwrap().auth, Auth::Join(_)));
        assert!(!format!("{:?}", args().complete(join).unwrap()).contains("rdz_j"));
    }

    #[test]
    fn missing_settings_are_named() {
        let none = |_: &str| None;
        let error = args(&["--state", "/no/such"]).complete(none).unwrap_err();
        assert!(matches!(error, ConfigError::NoToken(_)), "{error}");
        assert!(matches!(args(&[]).complete(none), Err(ConfigError::NoState)));
        let token = |name: &str| (name == TOKEN_VARIABLE).then(|| "t".to_owned());
        assert!(matches!(args(&[]).complete(token), Err(ConfigError::NoState)));
        for file in ["/no/such/file", "/dev/null", "/dev/zero"] {
            let error = args(&["--token-file", file]).complete(var).unwrap_err();
            assert!(error.to_string().contains(file), "{error}");
        }
        let error = args(&["--cwd", "/no/such"]).complete(var).unwrap_err();
        assert!(matches!(error, ConfigError::Cwd { .. }));
        assert!(Cli::try_parse_from(["x", "--relay", "http://r", "--environment", "a b"]).is_err());
        let bad = ["x", "--relay", "http://r", "--environment", "a", "--profile", "none"];
        assert!(Cli::try_parse_from(bad).is_err());
    }
}
