//! Reading a request body within its bounds.

use axum::body::Bytes;
use axum::body::{Body, HttpBody as _};
use rendez_proto::limits;
use rendez_proto::registry::error::ErrorCode;
use std::time::Duration;
use tokio::time::timeout;

use super::error::Failure;

/// Bytes of a too large request body that are read and dropped, so that the
/// answer is not lost in a connection reset.
pub const REGISTRY_BODY_DRAIN_BYTES: usize = 1024 * 1024;

/// How long a request body may take to arrive. Codex, section 1: its clients
/// give up after 6 to 10 s.
pub const REGISTRY_BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The whole body.
///
/// A body that is too large is read on for a while and dropped: closing a
/// socket with unread bytes resets it, and the client may lose the answer.
///
/// # Errors
/// `body_too_large`, `request_timeout`, or `invalid_request` if the connection
/// broke.
pub(super) async fn read(body: Body) -> Result<Bytes, Failure> {
    timeout(REGISTRY_BODY_TIMEOUT, collect(body)).await.unwrap_or_else(|_| {
        Err(Failure::new(ErrorCode::RequestTimeout, "the request body did not arrive in time"))
    })
}

async fn collect(mut body: Body) -> Result<Bytes, Failure> {
    let mut kept = Vec::new();
    let mut seen = 0_usize;
    while let Some(frame) = next_frame(&mut body).await {
        let frame = frame.map_err(|_| {
            Failure::new(ErrorCode::InvalidRequest, "the request body ended too early")
        })?;
        seen = seen.saturating_add(frame.len());
        if seen > REGISTRY_BODY_DRAIN_BYTES {
            break;
        }
        if seen <= limits::REGISTRY_BODY_MAX_BYTES {
            kept.extend_from_slice(&frame);
        }
    }
    if seen > limits::REGISTRY_BODY_MAX_BYTES {
        return Err(Failure::new(
            ErrorCode::BodyTooLarge,
            format!(
                "the request body is over {} bytes, which is the limit",
                limits::REGISTRY_BODY_MAX_BYTES
            ),
        ));
    }
    Ok(kept.into())
}

/// The next piece of data; trailers count as an empty piece.
async fn next_frame(body: &mut Body) -> Option<Result<Bytes, axum::Error>> {
    let frame = std::future::poll_fn(|cx| std::pin::Pin::new(&mut *body).poll_frame(cx)).await?;
    Some(frame.map(|frame| frame.into_data().unwrap_or_default()))
}
