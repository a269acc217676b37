//! Reading a request body within its bounds.

use axum::body::Bytes;
use axum::body::{Body, HttpBody as _};
use rendez_proto::limits;
use rendez_proto::registry::error::ErrorCode;
use tokio::time::timeout;

use super::error::Failure;

/// The whole body.
///
/// A body that is too large is read on for a while and dropped: closing a
/// socket with unread bytes resets it, and the client may lose the answer.
///
/// # Errors
/// `body_too_large`, `request_timeout`, or `invalid_request` if the connection
/// broke.
pub(super) async fn read(body: Body) -> Result<Bytes, Failure> {
    timeout(limits::REGISTRY_BODY_TIMEOUT, collect(body)).await.unwrap_or_else(|_| {
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
        if seen > limits::REGISTRY_BODY_DRAIN_BYTES {
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
