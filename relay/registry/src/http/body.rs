//! Reading a request body within its limits.

use axum::body::Bytes;
use axum::body::{Body, HttpBody as _};
use rendez_proto::limits;
use rendez_proto::registry::error::ErrorCode;
use std::time::Duration;
use tokio::time::timeout;

use super::error::Failure;

/// The bytes of an oversized request body that are read and dropped, so that a
/// connection reset does not lose the response.
pub const REGISTRY_BODY_DRAIN_BYTES: usize = 1024 * 1024;

/// How long a request body may take to arrive. Stock clients give up after 6 to 10
/// s (docs/codex-wire.md#registry-api).
pub const REGISTRY_BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads the whole body.
///
/// An oversized body is read on up to a limit and dropped: closing a socket with
/// unread bytes resets the connection, and the client may lose the response.
///
/// # Errors
/// `body_too_large`, `request_timeout`, or `invalid_request` if the connection
/// broke.
pub(super) async fn read(body: Body) -> Result<Bytes, Failure> {
    timeout(REGISTRY_BODY_TIMEOUT, collect(body)).await.unwrap_or_else(|_| {
        Err(Failure::new(
            ErrorCode::RequestTimeout,
            "the request body did not arrive within the time limit",
        ))
    })
}

async fn collect(mut body: Body) -> Result<Bytes, Failure> {
    let mut kept = Vec::new();
    let mut seen = 0_usize;
    while let Some(frame) = next_frame(&mut body).await {
        let frame = frame.map_err(|_| {
            Failure::new(ErrorCode::InvalidRequest, "the request body is incomplete")
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
                "the request body exceeds the limit of {} bytes",
                limits::REGISTRY_BODY_MAX_BYTES
            ),
        ));
    }
    Ok(kept.into())
}

/// Returns the next piece of data. Trailers count as an empty piece.
async fn next_frame(body: &mut Body) -> Option<Result<Bytes, axum::Error>> {
    let frame = std::future::poll_fn(|cx| std::pin::Pin::new(&mut *body).poll_frame(cx)).await?;
    Some(frame.map(|frame| frame.into_data().unwrap_or_default()))
}
