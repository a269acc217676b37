//! The peer to compare with: a websocket relay with nothing but forwarding, on the
//! same web framework.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Result;
use axum::Router;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::get;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// The argument that makes the bench's program this relay.
pub(crate) const MODE: &str = "bare-relay";
/// What the relay prints before its address.
pub(crate) const LISTENING: &str = "listening on ";
/// As large as the reads of the relay that it is compared with allow.
const READ_BUFFER_BYTES: usize = 16 * 1024;

/// The websockets whose other end has not come yet.
type Waiting = Arc<Mutex<HashMap<u32, oneshot::Sender<WebSocket>>>>;

/// Serves until killed.
pub(crate) fn run(address: &str) -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let listener = TcpListener::bind(address).await?;
        println!("{LISTENING}{}", listener.local_addr()?);
        let app = Router::new().route("/{pair}", get(accept)).with_state(Waiting::default());
        let listener = axum::serve::ListenerExt::tap_io(listener, |tcp| {
            let _ = tcp.set_nodelay(true);
        });
        Ok(axum::serve(listener, app).await?)
    })
}

async fn accept(
    Path(pair): Path<u32>,
    State(waiting): State<Waiting>,
    upgrade: WebSocketUpgrade,
) -> Response {
    let upgrade = upgrade.read_buffer_size(READ_BUFFER_BYTES);
    upgrade.on_upgrade(async move |socket| {
        let first = waiting.lock().remove(&pair);
        if let Some(first) = first {
            let _ = first.send(socket);
            return;
        }
        let (second, other) = oneshot::channel();
        waiting.lock().insert(pair, second);
        let Ok(other) = other.await else { return };
        let ((to_one, from_one), (to_other, from_other)) = (socket.split(), other.split());
        tokio::join!(forward(from_one, to_other), forward(from_other, to_one));
    })
}

/// Forwards messages, and flushes once per batch.
async fn forward(
    mut from: SplitStream<WebSocket>,
    mut to: SplitSink<WebSocket, axum::extract::ws::Message>,
) {
    while let Some(Ok(message)) = from.next().await {
        if to.feed(message).await.is_err() {
            return;
        }
        while let Some(Some(Ok(message))) = from.next().now_or_never() {
            if to.feed(message).await.is_err() {
                return;
            }
        }
        if to.flush().await.is_err() {
            return;
        }
    }
}
