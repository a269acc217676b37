//! The JSON-RPC dialect inside a stream (WIRE.md, section 6).
//!
//! One message is one JSON object, without a `jsonrpc` member (one is
//! tolerated). Requests carry `id`, `method`, `params`; answers `id` and
//! `result` or `error`; notifications `method` and `params`.
//!
//! Each call is a type that implements [`Method`], each notification one that
//! implements [`Notification`]; both ends use the same types, so a name or a
//! field is written once.

pub mod fs;
pub mod path;
pub mod process;
pub mod session;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A call with an answer.
pub trait Method {
    /// The name on the wire, such as `process/start`.
    const NAME: &'static str;
    /// What the caller sends.
    type Params: Serialize + DeserializeOwned + Send + 'static;
    /// What comes back when it went well.
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
    /// What our callers use.
    Number(i64),
    /// What others may use.
    Text(String),
}

/// One parsed message.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// A call.
    Request {
        /// Echoed in the answer.
        id: RequestId,
        /// The method's name.
        method: String,
        /// Its parameters; `Null` if absent.
        params: Value,
    },
    /// The answer to a call.
    Response {
        /// The request's id.
        id: RequestId,
        /// How it went.
        outcome: Result<Value, RpcError>,
    },
    /// A message without an answer.
    Notification {
        /// The notification's name.
        method: String,
        /// Its parameters; `Null` if absent.
        params: Value,
    },
}

/// Why a call failed, as the other end says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message} ({code})")]
pub struct RpcError {
    /// One of the `code` constants, or another one of a stock peer.
    pub code: i64,
    /// For people.
    pub message: String,
}

/// Error codes (WIRE.md, section 6).
pub mod code {
    /// The request makes no sense now: not initialised, unknown id, duplicate.
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
    /// [`code::METHOD_NOT_FOUND`], in the words of the stock executor.
    pub fn unknown_method(method: &str) -> Self {
        Self::new(
            code::METHOD_NOT_FOUND,
            format!("exec-server stub does not implement `{method}` yet"),
        )
    }
}

/// Bytes that are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a JSON-RPC message: {0}")]
pub struct NotAMessage(pub String);

#[derive(Serialize, Deserialize)]
struct Envelope<P = Value> {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<RequestId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    method: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    params: Option<P>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    result: Option<P>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<RpcError>,
}

/// `"result": null` is a result.
fn present<'de, D, P: Deserialize<'de>>(deserializer: D) -> Result<Option<P>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    P::deserialize(deserializer).map(Some)
}

impl<P> Default for Envelope<P> {
    fn default() -> Self {
        Self { id: None, method: None, params: None, result: None, error: None }
    }
}

impl Message {
    /// Parses one message.
    ///
    /// # Errors
    /// [`NotAMessage`] for what is not JSON, not an object, or none of the
    /// three shapes; a receiver resets the stream (WIRE.md, section 5).
    pub fn parse(bytes: &[u8]) -> Result<Self, NotAMessage> {
        let envelope: Envelope =
            serde_json::from_slice(bytes).map_err(|error| NotAMessage(error.to_string()))?;
        match envelope {
            Envelope { id: Some(id), method: Some(method), params, .. } => {
                Ok(Self::Request { id, method, params: params.unwrap_or_default() })
            }
            Envelope { id: None, method: Some(method), params, .. } => {
                Ok(Self::Notification { method, params: params.unwrap_or_default() })
            }
            Envelope { id: Some(id), error: Some(error), .. } => {
                Ok(Self::Response { id, outcome: Err(error) })
            }
            Envelope { id: Some(id), result: Some(result), .. } => {
                Ok(Self::Response { id, outcome: Ok(result) })
            }
            _ => Err(NotAMessage("neither a request, an answer nor a notification".into())),
        }
    }
}

/// The bytes of a request.
pub fn request<M: Method>(id: RequestId, params: &M::Params) -> Vec<u8> {
    encode(&Envelope {
        id: Some(id),
        method: Some(M::NAME.to_owned()),
        params: Some(params),
        ..Envelope::default()
    })
}

/// The bytes of an answer.
pub fn response(id: RequestId, outcome: Result<Value, RpcError>) -> Vec<u8> {
    let (result, error) = match outcome {
        Ok(result) => (Some(result), None),
        Err(error) => (None, Some(error)),
    };
    encode(&Envelope { id: Some(id), result, error, ..Envelope::default() })
}

/// The bytes of a notification.
pub fn notification<N: Notification>(params: &N) -> Vec<u8> {
    encode(&Envelope {
        method: Some(N::NAME.to_owned()),
        params: Some(params),
        ..Envelope::default()
    })
}

/// Serialises; the types of this module have string keys only, which is the
/// one thing that JSON serialisation can fail on.
fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    serde_json::to_vec(message).unwrap_or_default()
}

/// Binary fields: standard base64 with padding.
pub mod base64_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize as _, Deserializer, Serializer};

    /// For `#[serde(with)]`.
    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    /// For `#[serde(with)]`.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        STANDARD.decode(text.as_bytes()).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_three_shapes() {
        let parse = |value: Value| Message::parse(value.to_string().as_bytes()).unwrap();
        assert_eq!(
            parse(json!({"jsonrpc": "2.0", "id": 1, "method": "m", "params": {"a": 1}})),
            Message::Request {
                id: RequestId::Number(1),
                method: "m".into(),
                params: json!({"a": 1})
            }
        );
        assert_eq!(
            parse(json!({"method": "n"})),
            Message::Notification { method: "n".into(), params: Value::Null }
        );
        assert_eq!(
            parse(json!({"id": "x", "result": null})),
            Message::Response { id: RequestId::Text("x".into()), outcome: Ok(Value::Null) }
        );
        assert_eq!(
            parse(json!({"id": 2, "error": {"code": -32600, "message": "no"}})),
            Message::Response {
                id: RequestId::Number(2),
                outcome: Err(RpcError::invalid_request("no"))
            }
        );
    }

    #[test]
    fn other_shapes_are_refused() {
        for bad in ["", "1", "[]", "{}", "{\"id\":1}", "{\"method\":5}", "{\"id\":{}}"] {
            assert!(Message::parse(bad.as_bytes()).is_err(), "{bad} was accepted");
        }
    }

    #[test]
    fn answers_have_the_stock_shape() {
        assert_eq!(
            response(RequestId::Number(1), Ok(json!({}))),
            br#"{"id":1,"result":{}}"#.to_vec()
        );
        assert_eq!(
            response(RequestId::Number(1), Err(RpcError::not_found("gone"))),
            br#"{"id":1,"error":{"code":-32004,"message":"gone"}}"#.to_vec()
        );
    }
}
