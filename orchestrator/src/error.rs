//! Errors by who is at fault and what to do about it.

use rendez_endpoint::Closed;
use rendez_proto::frame::ResetReason;
use rendez_proto::limits;
use rendez_proto::profile::Profile;
use rendez_proto::rpc::{RpcError, code};
use rendez_registry_client::RegistryError;
use rendez_rpc::{CallError, OpenError};
use rendez_transport::dial::DialError;

/// Why no executor was reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The registry did not let us through.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The registry chose a profile that we do not accept, or a worse one than
    /// it says that the executor offers: refused.
    #[error("the registry chose profile {0} although both ends know a better one; refusing")]
    Downgrade(Profile),
    /// Another executor took the environment over while we were away.
    #[error("another executor has taken over the environment")]
    ExecutorChanged,
    /// The websocket did not open.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The encrypted stream did not open.
    #[error("no encrypted stream to the executor: {0}")]
    Stream(#[source] OpenError),
    /// The executor went away while the stream was being opened.
    #[error("the executor is offline: it has just left")]
    ExecutorLeft,
    /// The executor did not open a session.
    #[error("the executor did not open a session: {0}")]
    Session(#[source] CallError),
    /// It took too long.
    #[error("the executor did not answer in time")]
    Timeout,
    /// The system gave no randomness for keys.
    #[error("the operating system gave no randomness")]
    NoRandomness,
}

/// Why something about a process did not work.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// This program, or the interpreter that it names, does not exist on the
    /// executor.
    #[error("{0}: not found on the executor")]
    NotFound(String),
    /// There is no such working directory on the executor.
    #[error("working directory {path}: {why}")]
    Directory {
        /// As it was asked for.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The executor cannot start the program.
    #[error("{program}: the executor cannot start it: {why}")]
    CannotStart {
        /// As it was asked for.
        program: String,
        /// What its system says.
        why: String,
    },
    /// The system gave no randomness for ids.
    #[error("the operating system gave no randomness")]
    NoRandomness,
    /// The connection was lost. Whether the command runs, ran or will go on is
    /// unknown; it was not started again.
    #[error("the connection to the executor was lost; what became of the command is unknown")]
    Lost,
    /// The connection was away for so long that the executor, which keeps only
    /// the newest output meanwhile, has dropped so many pieces of it. What it
    /// kept follows.
    #[error("{0} pieces of output are lost: the connection was away for too long")]
    Missed(u64),
    /// The process does not take input (any more).
    #[error("the process has closed its standard input")]
    StdinClosed,
    /// The executor is a stock one, which cannot do this.
    #[error("the executor does not support {0}")]
    Unsupported(&'static str),
    /// The executor says no, for another reason.
    #[error("the executor refuses: {0}")]
    Refused(RpcError),
    /// The executor breaks the protocol.
    #[error("the executor answered something else than the protocol says: {0}")]
    Malformed(String),
}

/// Why something about a file did not work.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// No such file or directory.
    #[error("{0}")]
    NotFound(String),
    /// The path is not absolute, or not a path.
    #[error("{0}")]
    InvalidPath(String),
    /// More bytes than one message carries.
    #[error("{bytes} bytes are too many for one write, at most {max} are allowed", max = limits::READ_FILE_MAX_BYTES)]
    TooLarge {
        /// Bytes to be written.
        bytes: usize,
    },
    /// The executor's system refuses.
    #[error("{0}")]
    Refused(RpcError),
    /// The connection was lost. Whether the change took place is unknown.
    #[error("the connection to the executor was lost; whether the change took place is unknown")]
    Lost,
    /// The executor breaks the protocol.
    #[error("the executor answered something else than the protocol says: {0}")]
    Malformed(String),
}

impl ConnectError {
    /// Whether trying again cannot help.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Self::Registry(error) => error.is_final(),
            Self::Dial(error) => matches!(error, DialError::Url(_) | DialError::TrustStore(_)),
            Self::Downgrade(_) | Self::ExecutorChanged | Self::NoRandomness => true,
            Self::Stream(_) | Self::ExecutorLeft | Self::Session(_) | Self::Timeout => false,
        }
    }
}

impl From<OpenError> for ConnectError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Closed(Closed::Reset(ResetReason::ExecutorGone)) => Self::ExecutorLeft,
            error => Self::Stream(error),
        }
    }
}

impl From<CallError> for ProcessError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused(error) => Self::Refused(error),
            CallError::Interrupted | CallError::NotSent => Self::Lost,
            malformed @ CallError::Malformed { .. } => Self::Malformed(malformed.to_string()),
        }
    }
}

impl From<CallError> for FileError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused(error) if error.code == code::NOT_FOUND => {
                Self::NotFound(error.message)
            }
            CallError::Refused(error) => Self::Refused(error),
            CallError::Interrupted | CallError::NotSent => Self::Lost,
            malformed @ CallError::Malformed { .. } => Self::Malformed(malformed.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executor_gone_reset_means_executor_left() {
        let reset = |why| ConnectError::from(OpenError::Closed(Closed::Reset(why)));
        assert!(matches!(reset(ResetReason::ExecutorGone), ConnectError::ExecutorLeft));
        assert!(matches!(reset(ResetReason::Overloaded), ConnectError::Stream(_)));
    }
}
