//! The JSON-RPC dialect inside a stream
//! (docs/codex-wire.md#json-rpc).
//!
//! One message is one JSON object, without a `jsonrpc` member (one is
//! tolerated). Requests carry `id`, `method`, `params`; answers `id` and
//! `result` or `error`; notifications `method` and `params`.
//!
//! Each call is a type that implements [`Method`], each notification one that
//! implements [`Notification`]; both ends use the same types, so a name or a
//! field is written once.

pub mod base64_bytes;
pub mod fs;
mod json;
mod message;
pub mod message_bytes;
pub mod path;
pub mod process;
pub mod session;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use json::Json;
pub use message::{Message, NotAMessage, notification, refusal, request, response};

/// A call with an answer.
pub trait Method {
    /// The name on the wire, such as `process/start`.
    const NAME: &'static str;
    /// The parameters.
    type Params: Serialize + DeserializeOwned + Send + 'static;
    /// The result of a successful call.
    type Reply: Serialize + DeserializeOwned + Send + 'static;
}

/// A message without an answer.
pub trait Notification: Serialize + DeserializeOwned + Send + 'static {
    /// The name on the wire, such as `process/output`.
    const NAME: &'static str;
}

/// The id of a request: an integer or a string, chosen by its sender.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RequestId {
    /// An integer, as our callers use.
    Number(i64),
    /// A string, as other callers may use.
    Text(String),
}

/// The error of a call, from the other end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message} ({code})")]
pub struct RpcError {
    /// One of the `code` constants, or another one of a stock peer.
    pub code: i64,
    /// For people.
    pub message: String,
}

/// Error codes (docs/codex-wire.md#json-rpc).
pub mod code {
    /// The request is not valid now: not initialised, unknown id, duplicate.
    pub const INVALID_REQUEST: i64 = -32600;
    /// No such method.
    pub const METHOD_NOT_FOUND: i64 = -32601;
    /// The parameters do not parse or are out of range.
    pub const INVALID_PARAMS: i64 = -32602;
    /// The operating system refused.
    pub const INTERNAL: i64 = -32603;
    /// No such file or handle.
    pub const NOT_FOUND: i64 = -32004;
    /// The session is attached to another stream.
    pub const SESSION_ATTACHED: i64 = -32010;
}

impl RpcError {
    /// An error with this code and text.
    pub fn new(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
    /// [`code::INVALID_REQUEST`]
    pub fn invalid_request(message: impl Into<String>) -> Self {
        Self::new(code::INVALID_REQUEST, message)
    }
    /// [`code::INVALID_PARAMS`]
    pub fn invalid_params(message: impl Into<String>) -> Self {
        Self::new(code::INVALID_PARAMS, message)
    }
    /// [`code::INTERNAL`]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(code::INTERNAL, message)
    }
    /// [`code::NOT_FOUND`]
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(code::NOT_FOUND, message)
    }
    /// [`code::METHOD_NOT_FOUND`], with the text of the stock executor.
    pub fn unknown_method(method: &str) -> Self {
        Self::new(
            code::METHOD_NOT_FOUND,
            format!("exec-server stub does not implement `{method}` yet"),
        )
    }
}
