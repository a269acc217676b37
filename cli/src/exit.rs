//! Exit codes and what is told on the way out.
//!
//! A remote command's code is passed on. Our own failures use the numbers of
//! sysexits.h, and say `rendez: ...` on standard error, so that people and
//! scripts can tell the two apart.

use std::fmt::Display;
use std::process::ExitCode;

use rendez_executor_agent::AgentError;
use rendez_orchestrator::ConnectError;
use rendez_orchestrator::error::{FileError, ProcessError, RegistryError};

/// Shown below `--help`.
pub(crate) const HELP: &str = "\
Exit codes: that of the remote command, 128+N if signal N killed it, 126 if the executor
cannot start it, 127 if it does not exist there. Of rendez itself, with a message on stderr:
  64 wrong usage                     65 the audit log is broken
                                     74 connection lost, outcome of the command unknown
  68 unknown environment             75 relay cannot be reached or cannot serve now
  69 the executor is offline         76 the other side breaks the protocol
  70 internal error                  77 token missing, refused, or not allowed to do this
                                     78 configuration cannot be used";

/// Prints what is wrong with the command line, or the help that was asked for.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS }
}

/// A failure of ours.
#[derive(Debug)]
pub(crate) struct Exit {
    code: u8,
    message: String,
}

impl Exit {
    fn new(code: u8, message: impl Display) -> Self {
        Self { code, message: message.to_string() }
    }

    /// 64: wrong usage.
    pub(crate) fn usage(message: impl Display) -> Self {
        Self::new(64, message)
    }

    /// 65: what was read is not what it should be.
    pub(crate) fn data(message: impl Display) -> Self {
        Self::new(65, message)
    }

    /// 70: our fault.
    pub(crate) fn software(message: impl Display) -> Self {
        Self::new(70, message)
    }

    /// 74: reading or writing here failed, or the connection was lost.
    pub(crate) fn io(message: impl Display) -> Self {
        Self::new(74, message)
    }

    /// 75: it did not work now; it may later.
    pub(crate) fn unavailable(message: impl Display) -> Self {
        Self::new(75, message)
    }

    /// 77: no token.
    pub(crate) fn no_token(message: impl Display) -> Self {
        Self::new(77, message)
    }

    /// 78: a file, directory or address cannot be used.
    pub(crate) fn config(message: impl Display) -> Self {
        Self::new(78, message)
    }

    /// Tells the user and gives the process its code.
    pub(crate) fn report(self) -> ExitCode {
        eprintln!("rendez: {}", self.message);
        ExitCode::from(self.code)
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
            RegistryError::Url(_) => 64,
            RegistryError::UnknownEnvironment(_) => 68,
            RegistryError::Offline(_) => 69,
            RegistryError::Unreachable { .. } | RegistryError::Unavailable(_) => 75,
            RegistryError::Malformed(_) | RegistryError::Refused(_) => 76,
            RegistryError::TokenRefused(_) | RegistryError::Forbidden(_) => 77,
            RegistryError::TrustStore(_) => 78,
        };
        Self::new(code, error)
    }
}

impl From<ConnectError> for Exit {
    fn from(error: ConnectError) -> Self {
        let code = match error {
            ConnectError::Registry(error) => return error.into(),
            ConnectError::Dial(_) | ConnectError::Stream(_) | ConnectError::Timeout => 75,
            ConnectError::ExecutorChanged => 69,
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
            ProcessError::CannotStart(_) => 126,
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
