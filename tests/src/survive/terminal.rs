//! A terminal for a child's stderr: our programs report lost connections to users at
//! a terminal, not to scripts.

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::Stdio;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use parking_lot::Mutex;
use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// The output on a terminal.
pub struct Terminal {
    written: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Terminal {
    /// A new terminal, and its end for a child.
    pub fn open() -> Result<(Self, Stdio)> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).context("no terminal")?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        // It must not become the terminal of the test itself.
        let child = OpenOptions::new()
            .write(true)
            .custom_flags(OFlags::NOCTTY.bits().cast_signed())
            .open(std::ffi::OsStr::from_bytes(name.as_bytes()))?;
        let written = Arc::new(Mutex::new(Vec::new()));
        let reader = std::thread::spawn({
            let written = written.clone();
            move || read(master, &written)
        });
        Ok((Self { written, reader }, child.into()))
    }

    /// All output. Waits for the child to end, which closes its end.
    pub fn into_text(self) -> String {
        // If the reader panicked, output is missing.
        let _ = self.reader.join();
        String::from_utf8_lossy(&self.written.lock()).into_owned()
    }
}

fn read(master: OwnedFd, written: &Mutex<Vec<u8>>) {
    let mut master = File::from(master);
    let mut buffer = [0; 4096];
    // Reading fails once all of the child's ends are closed.
    while let Ok(length @ 1..) = master.read(&mut buffer) {
        written.lock().extend_from_slice(&buffer[..length]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn child_sees_terminal_and_output_is_kept() {
        let (terminal, stderr) = Terminal::open().unwrap();
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "test -t 2 && echo here >&2"]).stderr(stderr);
        assert!(command.status().unwrap().success());
        drop(command);
        assert_eq!(terminal.into_text(), "here\r\n");
    }
}
