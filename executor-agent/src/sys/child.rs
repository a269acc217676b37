//! A child process before and after its start.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::ExitStatus;

use rendez_proto::rpc::process::Stream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::process::Child;

use super::process_group::ProcessGroup;

/// Our end of an output of a child.
pub(crate) type Reader = Box<dyn AsyncRead + Send + Unpin>;
/// Our end of the input of a child.
pub(crate) type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// A program with its arguments, environment and directory.
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) arg0: String,
    pub(crate) args: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) cwd: PathBuf,
}

/// A started child.
pub(crate) struct Launched {
    pub(crate) child: Child,
    pub(crate) group: ProcessGroup,
    pub(crate) outputs: Vec<(Stream, Reader)>,
    pub(crate) stdin: Option<Writer>,
}

/// The exit code as shells report it: 128 + n after signal n.
pub(crate) fn exit_code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}
