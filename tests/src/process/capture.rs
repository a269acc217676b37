//! One output stream of a child, kept from its first byte.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::watch;
use tokio::time::timeout;

/// Most bytes kept per stream: six times the largest transfer that a test
/// sends through a child. A stream that exceeds it fails the test that reads it.
const CAPTURE_MAX_BYTES: usize = 64 * 1024 * 1024;
/// Bytes per read: what a Linux pipe holds.
const READ_BYTES: usize = 64 * 1024;

#[derive(Default)]
struct Captured {
    bytes: Vec<u8>,
    overflown: bool,
    closed: bool,
}

/// A handle to what a child has written so far. Clones see the same bytes.
#[derive(Clone)]
pub struct Capture(Arc<watch::Sender<Captured>>);

impl Capture {
    /// Reads `pipe` to its end in a task of its own.
    pub fn read(mut pipe: impl AsyncRead + Unpin + Send + 'static) -> Self {
        let capture = Self(Arc::new(watch::Sender::new(Captured::default())));
        let sender = capture.0.clone();
        tokio::spawn(async move {
            let mut buffer = vec![0; READ_BYTES];
            // A failed read is the end of the stream, as for any reader of a pipe.
            while let Ok(length @ 1..) = pipe.read(&mut buffer).await {
                sender.send_modify(|captured| captured.append(&buffer[..length]));
            }
            sender.send_modify(|captured| captured.closed = true);
        });
        capture
    }

    /// Everything written so far.
    ///
    /// # Panics
    /// If more than 64 MiB came: a search in a part of it would prove nothing.
    pub fn bytes(&self) -> Vec<u8> {
        let captured = self.0.borrow();
        assert!(!captured.overflown, "a child wrote more than {CAPTURE_MAX_BYTES} bytes");
        captured.bytes.clone()
    }

    /// Everything written so far as text; what is not UTF-8 is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    /// Waits until the child, and every process that inherited the stream, has
    /// closed it.
    pub async fn closed(&self) {
        // The sender is alive, `self` holds it: this cannot fail.
        let _ = self.0.subscribe().wait_for(|captured| captured.closed).await;
    }

    /// Waits until `find` accepts a line, from the first line on. Fails at
    /// once when the stream ends without one.
    pub async fn line<T>(
        &self,
        within: Duration,
        mut find: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        let mut output = self.0.subscribe();
        let mut searched = 0;
        let search = async {
            loop {
                let closed = {
                    let captured = output.borrow_and_update();
                    while let Some(line) = captured.line_at(searched) {
                        searched += line.len();
                        if let Some(found) = find(String::from_utf8_lossy(line).trim_end()) {
                            return Ok(found);
                        }
                    }
                    captured.closed
                };
                if closed || output.changed().await.is_err() {
                    bail!("the stream ended");
                }
            }
        };
        match timeout(within, search).await {
            Ok(found) => found,
            Err(_) => bail!("nothing after {within:?}"),
        }
    }
}

impl Captured {
    fn append(&mut self, bytes: &[u8]) {
        if self.bytes.len() + bytes.len() > CAPTURE_MAX_BYTES {
            self.overflown = true;
        } else {
            self.bytes.extend_from_slice(bytes);
        }
    }

    /// The line that starts at `start`, with its end; the last one of a closed
    /// stream needs none.
    fn line_at(&self, start: usize) -> Option<&[u8]> {
        let rest = &self.bytes[start..];
        match rest.iter().position(|byte| *byte == b'\n') {
            Some(end) => Some(&rest[..=end]),
            None if self.closed && !rest.is_empty() => Some(rest),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    const SHORT_TIMEOUT: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn lines_are_assembled_across_reads() {
        let (mut writer, reader) = tokio::io::duplex(64);
        let capture = Capture::read(reader);
        let search = tokio::spawn({
            let capture = capture.clone();
            async move {
                capture
                    .line(SHORT_TIMEOUT, |line| line.strip_suffix("two").map(str::to_owned))
                    .await
            }
        });
        for part in ["one\nt", "hen t", "wo\nre"] {
            writer.write_all(part.as_bytes()).await.unwrap();
        }
        assert_eq!(search.await.unwrap().unwrap(), "then ");
        writer.write_all(b"st").await.unwrap();
        drop(writer);
        capture.line(SHORT_TIMEOUT, |line| (line == "rest").then_some(())).await.unwrap();
        assert_eq!(capture.text(), "one\nthen two\nrest");
    }

    #[tokio::test]
    async fn unfinished_line_is_not_searched() {
        let (mut writer, reader) = tokio::io::duplex(64);
        let capture = Capture::read(reader);
        writer.write_all(b"half").await.unwrap();
        let nothing = capture.line(Duration::from_millis(50), |_| Some(())).await;
        assert!(nothing.is_err());
    }

    #[tokio::test]
    #[should_panic(expected = "more than")]
    async fn overflowed_capture_cannot_be_read() {
        let (mut writer, reader) = tokio::io::duplex(READ_BYTES);
        let capture = Capture::read(reader);
        let chunk = vec![b'x'; 1024 * 1024];
        for _ in 0..=CAPTURE_MAX_BYTES / chunk.len() {
            writer.write_all(&chunk).await.unwrap();
        }
        drop(writer);
        capture.closed().await;
        capture.bytes();
    }
}
