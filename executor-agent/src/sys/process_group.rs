//! The processes that a signal to a child reaches.

use std::io;
use std::os::fd::OwnedFd;

use rendez_proto::rpc::process::SignalName;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Child;

/// The process group that a child leads and, on a terminal, the group in the
/// foreground of that terminal.
///
/// Dropping it kills them, so that no process outlives an agent that stops in
/// order.
pub(crate) struct ProcessGroup {
    leader: Pid,
    terminal: Option<OwnedFd>,
    armed: bool,
}

impl ProcessGroup {
    /// The group of a new child that leads one, with the controlling end of its
    /// terminal.
    ///
    /// # Errors
    /// The child has no process id any more.
    pub(crate) fn of(child: &Child, terminal: Option<OwnedFd>) -> io::Result<Self> {
        let leader = child
            .id()
            .and_then(|id| Pid::from_raw(id.cast_signed()))
            .ok_or_else(|| io::Error::other("the child has no process id"))?;
        Ok(Self { leader, terminal, armed: true })
    }

    /// Drops it without killing its processes.
    pub(crate) fn disarm(mut self) {
        self.armed = false;
    }

    pub(crate) fn signal(&self, signal: SignalName) {
        let foreground =
            self.terminal.as_ref().and_then(|terminal| rustix::termios::tcgetpgrp(terminal).ok());
        let (signal, groups) = match signal {
            // Ctrl-C, too, reaches only the foreground
            SignalName::Interrupt => (Signal::INT, [foreground.or(Some(self.leader)), None]),
            SignalName::Terminate => (Signal::TERM, [Some(self.leader), foreground]),
            SignalName::Kill => (Signal::KILL, [Some(self.leader), foreground]),
            SignalName::Hangup => (Signal::HUP, [Some(self.leader), foreground]),
        };
        let second = groups[1].filter(|group| Some(*group) != groups[0]);
        for group in groups[0].into_iter().chain(second) {
            // a group without processes needs no signal
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if self.armed {
            self.signal(SignalName::Kill);
        }
    }
}
