//! Errors, by the party at fault and the possible remedy.

use rendez_endpoint::Closed;
use rendez_proto::frame::ResetReason;
use rendez_proto::limits;
use rendez_proto::profile::Profile;
use rendez_proto::rpc::{RpcError, code};
use rendez_registry_client::RegistryError;
use rendez_rpc::{CallError, OpenError};
use rendez_transport::dial::DialError;

/// The error of connecting to an executor.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The call to the registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The registry chose a profile that this client does not accept, or a worse
    /// one than the executor offers. The client refuses it.
    #[error("the registry chose profile {0}, but both ends support a better one; refusing")]
    Downgrade(Profile),
    /// Another executor registered for the environment during a reconnect.
    #[error("another executor has taken over the environment")]
    ExecutorChanged,
    /// The websocket did not open.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The encrypted stream did not open.
    #[error("cannot open an encrypted stream to the executor: {0}")]
    Stream(#[source] OpenError),
    /// The executor disconnected while the stream was being opened.
    #[error("the executor is offline: it has just disconnected")]
    ExecutorLeft,
    /// The executor did not open a session.
    #[error("the executor did not open a session: {0}")]
    Session(#[source] CallError),
    /// The executor did not open a session in time.
    #[error("the executor did not respond in time")]
    Timeout,
    /// The operating system provided no randomness for keys.
    #[error("the operating system provided no randomness")]
    NoRandomness,
}

/// The error of an operation on a process.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The program, or the interpreter that it names, does not exist on the
    /// executor.
    #[error("{0}: not found on the executor")]
    NotFound(String),
    /// The working directory cannot be used on the executor.
    #[error("working directory {path}: {why}")]
    Directory {
        /// The requested directory.
        path: String,
        /// The cause.
        why: String,
    },
    /// The executor cannot start the program.
    #[error("{program}: the executor cannot start it: {why}")]
    CannotStart {
        /// The requested program.
        program: String,
        /// The error message of the executor's system.
        why: String,
    },
    /// The operating system provided no randomness for ids.
    #[error("the operating system provided no randomness")]
    NoRandomness,
    /// The connection was lost. The command may have run, may still run, or may
    /// not have started. It was not started again.
    #[error("lost the connection to the executor; the outcome of the command is unknown")]
    Lost,
    /// Output is missing, in this many pieces. The connection was interrupted for
    /// so long that the executor, which keeps only the newest output, dropped
    /// them. The output that it kept follows.
    #[error("{0} pieces of output are lost: the connection was interrupted for too long")]
    Missed(u64),
    /// The process does not accept input, or no longer does.
    #[error("the process has closed its standard input")]
    StdinClosed,
    /// The executor is a stock one, which has no such operation.
    #[error("the executor does not support {0}")]
    Unsupported(&'static str),
    /// The executor refuses the operation for another reason.
    #[error("the executor refused the operation: {0}")]
    Refused(RpcError),
    /// The executor violates the protocol.
    #[error("unexpected response from the executor: {0}")]
    Malformed(String),
}

/// The error of an operation on a file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file or directory does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The path is invalid or not absolute.
    #[error("{0}")]
    InvalidPath(String),
    /// The content is larger than one message can carry.
    #[error("cannot write {bytes} bytes at once: at most {max} are allowed", max = limits::READ_FILE_MAX_BYTES)]
    TooLarge {
        /// The size of the content in bytes.
        bytes: usize,
    },
    /// The executor's system refuses the operation.
    #[error("{0}")]
    Refused(RpcError),
    /// The connection was lost. It is unknown whether the change took place.
    #[error("lost the connection to the executor; it is unknown whether the change took place")]
    Lost,
    /// The executor violates the protocol.
    #[error("unexpected response from the executor: {0}")]
    Malformed(String),
}

impl ConnectError {
    /// Whether a retry cannot succeed.
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
