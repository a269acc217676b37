//! Senders and receivers.

use anyhow::{Result, ensure};
use bytes::Bytes;
use rendez_proto::ids::StreamId;
use rendez_tests::relay::{Websocket, data_frame};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Bytes that one write passes to the kernel, as the websocket library does.
const WRITE_BYTES: usize = 128 * 1024;

/// One end of a pair.
pub(crate) enum End {
    Websocket(Box<Websocket>),
    Tcp(TcpStream),
}

/// A sender and its receiver.
pub(crate) type Pair = (End, End);

/// Sends `each` bytes from every sender in frames of `size`, and waits until all have
/// arrived. Returns the bytes of all pairs.
pub(crate) async fn run(pairs: Vec<Pair>, size: usize, each: usize) -> Result<usize> {
    let frame = frame_of(size);
    let frames = (each / frame.len()).max(1);
    let total = pairs.len() * frames * frame.len();
    let mut tasks = JoinSet::new();
    for (sender, receiver) in pairs {
        tasks.spawn(send(sender, frame.clone(), frames));
        tasks.spawn(receive(receiver, frames * frame.len()));
    }
    // An end is returned, so that no connection closes during the measurement.
    let mut ends = Vec::new();
    while let Some(end) = tasks.join_next().await {
        ends.push(end??);
    }
    Ok(total)
}

/// A frame of one stream that is `size` bytes long.
fn frame_of(size: usize) -> Bytes {
    let stream = StreamId::from_random([9; 16]);
    let empty = data_frame(&stream, 1, &[0; 128]).len() - 128;
    data_frame(&stream, 1, &vec![0; size.saturating_sub(empty)])
}

async fn send(mut end: End, frame: Bytes, frames: usize) -> Result<End> {
    match &mut end {
        End::Websocket(socket) => {
            for _ in 0..frames {
                socket.feed_binary(frame.clone()).await?;
            }
            socket.flush().await?;
        }
        End::Tcp(socket) => {
            let batch = (WRITE_BYTES / frame.len()).max(1);
            let bytes = frame.repeat(batch.min(frames));
            for sent in (0..frames).step_by(batch) {
                let now = batch.min(frames - sent) * frame.len();
                socket.write_all(&bytes[..now]).await?;
            }
        }
    }
    Ok(end)
}

async fn receive(mut end: End, bytes: usize) -> Result<End> {
    let mut received = 0;
    match &mut end {
        End::Websocket(socket) => {
            while received < bytes {
                received += socket.receive_without_timeout().await?.len();
            }
        }
        End::Tcp(socket) => {
            let mut buffer = vec![0; 256 * 1024];
            while received < bytes {
                let length = socket.read(&mut buffer).await?;
                ensure!(length > 0, "closed after {received} of {bytes} bytes");
                received += length;
            }
        }
    }
    Ok(end)
}
