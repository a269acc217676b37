//! Exit codes and the final error message.
//!
//! The exit code of a remote command is passed on. Failures of rendez itself use
//! the numbers of sysexits.h and print `rendez: ...` on standard error, so that
//! users and scripts can distinguish the two.

use std::fmt::{self, Display};
use std::io::{Write as _, stderr};
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rendez_executor_agent::AgentError;
use rendez_orchestrator::ConnectError;
use rendez_orchestrator::error::{FileError, ProcessError};
use rendez_program::signals::{HANGUP, TERMINATE};
use rendez_registry::OpenError;
use rendez_registry::backup::BackupError;
use rendez_registry::store::StoreError;
use rendez_registry::tokens::{CreateTokenError, RotateError};
use rendez_registry_client::RegistryError;

/// Shown below `--help`.
pub(crate) const HELP: &str = "\
Exit codes: the code of the remote command; 128+N if signal N killed it; 126 if the executor
cannot start it or the directory does not exist; 127 if the command does not exist. Codes of
rendez itself, with a message on stderr:
  64 wrong usage, or unknown token   74 connection lost, outcome of the command unknown
  65 the audit log is broken         75 the relay is unreachable or unavailable
  68 unknown environment             76 the other side violates the protocol
  69 the executor is offline         77 token missing or refused, not allowed, or a limit
  70 internal error                     is reached
                                     78 the configuration cannot be used
  130 a second Ctrl-C, and the end of the command was not confirmed
  129 SIGHUP, 143 SIGTERM: `rendez exec` received the signal and terminated the command
Without a message: 141 if standard output is closed.";

/// The exit code of a program whose output pipe was closed (128 + SIGPIPE).
const BROKEN_PIPE: u8 = 141;
/// The exit code of a program that Ctrl-C terminated (128 + SIGINT).
const INTERRUPTED: u8 = 130;

const GAVE_UP_WAITING: &str = "gave up waiting; the remote command was asked to terminate but may still be \
                               running, and output may be missing";

/// How long writing the final message may take: standard error may be blocked, and
/// the parent process waits for the exit code.
const REPORT_TIMEOUT: Duration = Duration::from_secs(1);

/// Prints an error of the command line, or the requested help.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS }
}

/// A failure of rendez itself: the exit code and the message.
#[derive(Debug)]
pub(crate) struct Exit {
    code: u8,
    /// `None` if standard output is closed: that needs no message.
    message: Option<String>,
}

impl Exit {
    fn new(code: u8, message: impl Display) -> Self {
        Self { code, message: Some(message.to_string()) }
    }

    /// 64: wrong usage.
    pub(crate) fn usage(message: impl Display) -> Self {
        Self::new(64, message)
    }

    /// 65: the data that was read is invalid.
    pub(crate) fn data(message: impl Display) -> Self {
        Self::new(65, message)
    }

    /// 68: unknown environment.
    pub(crate) fn unknown_environment(message: impl Display) -> Self {
        Self::new(68, message)
    }

    /// 70: an internal error.
    pub(crate) fn software(message: impl Display) -> Self {
        Self::new(70, message)
    }

    /// 74: local input or output failed, or the connection was lost.
    pub(crate) fn io(message: impl Display) -> Self {
        Self::new(74, message)
    }

    /// 75: a temporary failure; another attempt may succeed.
    pub(crate) fn unavailable(message: impl Display) -> Self {
        Self::new(75, message)
    }

    /// 76: the relay violated the protocol.
    pub(crate) fn protocol(message: impl Display) -> Self {
        Self::new(76, message)
    }

    /// 77: no token.
    pub(crate) fn no_token(message: impl Display) -> Self {
        Self::new(77, message)
    }

    /// 78: a file, directory or address cannot be used.
    pub(crate) fn config(message: impl Display) -> Self {
        Self::new(78, message)
    }

    /// 141: standard output is closed. No message is printed.
    pub(crate) fn broken_pipe() -> Self {
        Self { code: BROKEN_PIPE, message: None }
    }

    /// 130: the user stopped waiting.
    pub(crate) fn interrupted() -> Self {
        Self::new(INTERRUPTED, GAVE_UP_WAITING)
    }

    /// 128 plus the signal's number: the signal ended rendez, which terminated the
    /// command.
    pub(crate) fn terminated_by(signal: u8) -> Self {
        Self::new(128 + signal, format!("received {}; the command was terminated", name(signal)))
    }

    /// The same for a command that may still be running.
    pub(crate) fn gave_up_after(signal: u8) -> Self {
        Self::new(128 + signal, format!("received {}; {GAVE_UP_WAITING}", name(signal)))
    }

    /// Prints the message and returns the exit code of the process.
    pub(crate) fn report(self) -> ExitCode {
        let code = ExitCode::from(self.code);
        if self.message.is_some() {
            let (writing, written) = mpsc::channel::<()>();
            let write = move || {
                let _ = writeln!(stderr(), "rendez: {self}");
                drop(writing);
            };
            if thread::Builder::new().spawn(write).is_ok() {
                // Nothing is sent: this waits until `writing` is dropped.
                let _ = written.recv_timeout(REPORT_TIMEOUT);
            }
        }
        code
    }
}

impl Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message.as_deref().unwrap_or("standard output is closed"))
    }
}

fn name(signal: u8) -> &'static str {
    match signal {
        HANGUP => "SIGHUP",
        TERMINATE => "SIGTERM",
        _ => "a signal",
    }
}

impl From<AgentError> for Exit {
    fn from(error: AgentError) -> Self {
        Self::new(error.exit_code(), error)
    }
}

impl From<RegistryError> for Exit {
    fn from(error: RegistryError) -> Self {
        let code = match &error {
            RegistryError::Url(_) | RegistryError::Invalid(_) => 64,
            RegistryError::UnknownEnvironment(_) => 68,
            RegistryError::Offline(_) => 69,
            RegistryError::Local(_) => 70,
            RegistryError::Unreachable { .. } | RegistryError::Unavailable(_) => 75,
            // Commands for which "not found" means a wrong name map it before this.
            RegistryError::Malformed(_)
            | RegistryError::NotFound(_)
            | RegistryError::Refused(_) => 76,
            RegistryError::InvalidToken
            | RegistryError::TokenRefused(_)
            | RegistryError::Forbidden(_)
            | RegistryError::RegistrationRefused(_)
            | RegistryError::LimitReached(_) => 77,
            RegistryError::TrustStore(_) => 78,
        };
        Self::new(code, error)
    }
}

impl From<OpenError> for Exit {
    fn from(error: OpenError) -> Self {
        Self::new(if error.is_temporary() { 75 } else { 78 }, error)
    }
}

impl From<StoreError> for Exit {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::Unavailable(_) => 75,
            StoreError::LimitReached { .. } => 77,
            StoreError::Corrupt(_) => 78,
        };
        Self::new(code, error)
    }
}

impl From<CreateTokenError> for Exit {
    fn from(error: CreateTokenError) -> Self {
        match error {
            CreateTokenError::Store(error) => error.into(),
            CreateTokenError::Random(error) => Self::software(error),
            CreateTokenError::Pattern(_)
            | CreateTokenError::Label
            | CreateTokenError::ExpiresAtOnce
            | CreateTokenError::Source(_)
            | CreateTokenError::NoUses
            | CreateTokenError::UsesOfAdmin
            | CreateTokenError::EnvironmentsOfAdmin => Self::usage(error),
        }
    }
}

impl From<RotateError> for Exit {
    fn from(error: RotateError) -> Self {
        match error {
            RotateError::Store(error) => error.into(),
            RotateError::Random(error) => Self::software(error),
            RotateError::Unknown
            | RotateError::Inactive
            | RotateError::HasKey
            | RotateError::Overlap => Self::usage(error),
        }
    }
}

impl From<BackupError> for Exit {
    fn from(error: BackupError) -> Self {
        match error {
            BackupError::Copy(error) => error.into(),
            BackupError::Open { ref source, .. } if source.is_busy() => Self::unavailable(error),
            BackupError::NoDatabase(_) | BackupError::Open { .. } | BackupError::File { .. } => {
                Self::config(error)
            }
        }
    }
}

impl From<ConnectError> for Exit {
    fn from(error: ConnectError) -> Self {
        let code = match error {
            ConnectError::Registry(error) => return error.into(),
            ConnectError::Dial(_) | ConnectError::Stream(_) | ConnectError::Timeout => 75,
            ConnectError::ExecutorLeft | ConnectError::ExecutorChanged => 69,
            ConnectError::Downgrade(_) | ConnectError::Session(_) => 76,
            ConnectError::NoRandomness => 70,
        };
        Self::new(code, error)
    }
}

impl From<ProcessError> for Exit {
    fn from(error: ProcessError) -> Self {
        let code = match &error {
            ProcessError::NotFound(_) => 127,
            ProcessError::Directory { .. } | ProcessError::CannotStart { .. } => 126,
            ProcessError::NoRandomness => 70,
            ProcessError::Lost | ProcessError::Missed(_) => 74,
            ProcessError::StdinClosed | ProcessError::Unsupported(_) => 69,
            ProcessError::Refused(_) | ProcessError::Malformed(_) => 76,
        };
        Self::new(code, error)
    }
}

impl From<FileError> for Exit {
    fn from(error: FileError) -> Self {
        Self::io(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(exit: impl Into<Exit>) -> u8 {
        exit.into().code
    }

    /// The codes over HTTP and over a state directory are equal.
    #[test]
    fn equal_failures_have_equal_codes() {
        let full = || StoreError::LimitReached { what: "tokens", max: 1 };
        assert_eq!(code(full()), 77);
        assert_eq!(code(CreateTokenError::Store(full())), 77);
        assert_eq!(code(RegistryError::LimitReached("m".to_owned())), 77);
        let locked = || StoreError::Unavailable("database is locked".into());
        assert_eq!(code(locked()), 75);
        assert_eq!(code(CreateTokenError::Store(locked())), 75);
        assert_eq!(code(RotateError::Store(locked())), 75);
        assert_eq!(code(BackupError::Copy(locked())), 75);
        assert_eq!(code(RegistryError::Unavailable("m".to_owned())), 75);
        assert_eq!(code(CreateTokenError::NoUses), 64);
        assert_eq!(code(RotateError::Unknown), 64);
        assert_eq!(code(RegistryError::Invalid("m".to_owned())), 64);
        // An old relay does not have the call.
        assert_eq!(code(RegistryError::NotFound("m".to_owned())), 76);
    }

    #[test]
    fn departed_executor_is_offline() {
        assert_eq!(code(ConnectError::ExecutorLeft), 69);
        assert_eq!(code(ConnectError::ExecutorChanged), 69);
        assert_eq!(code(ConnectError::Timeout), 75);
    }

    #[test]
    fn help_names_every_code() {
        let signals = [128 + HANGUP, INTERRUPTED, 128 + TERMINATE];
        for code in [64, 65, 68, 69, 70, 74, 75, 76, 77, 78, BROKEN_PIPE].into_iter().chain(signals)
        {
            assert!(HELP.contains(&format!(" {code} ")), "{code}");
        }
    }
}
