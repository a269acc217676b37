//! One message, parsed as far as its shape, and the bytes of each shape.

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::{Json, Method, Notification, RequestId, RpcError, message_bytes};

/// One message. Its parameters or result stay unparsed until their type is known.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// A call.
    Request {
        /// Echoed in the answer.
        id: RequestId,
        /// The method's name.
        method: String,
        /// Its parameters; `null` if absent.
        params: Json,
    },
    /// The answer to a call.
    Response {
        /// The request's id.
        id: RequestId,
        /// The result or the error.
        outcome: Result<Json, RpcError>,
    },
    /// A message without an answer.
    Notification {
        /// The notification's name.
        method: String,
        /// Its parameters; `null` if absent.
        params: Json,
    },
}

/// Bytes that are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a JSON-RPC message: {0}")]
pub struct NotAMessage(pub String);

#[derive(Deserialize)]
struct Incoming<'a> {
    #[serde(default)]
    id: Option<RequestId>,
    #[serde(default)]
    method: Option<String>,
    #[serde(default, borrow)]
    params: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    #[serde(default)]
    error: Option<RpcError>,
}

/// `"result": null` is a result.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
}

impl Message {
    /// Parses one message; its parameters or result are a slice of it.
    ///
    /// # Errors
    /// [`NotAMessage`] if the bytes are not JSON, not an object, or none of the
    /// three shapes; a receiver resets the stream
    /// (docs/codex-wire.md#messages-and-sequence-numbers).
    pub fn parse(message: &Bytes) -> Result<Self, NotAMessage> {
        let incoming: Incoming<'_> =
            serde_json::from_slice(message).map_err(|error| NotAMessage(error.to_string()))?;
        let json =
            |raw: Option<&RawValue>| raw.map_or_else(Json::null, |raw| Json::slice(message, raw));
        match incoming {
            Incoming { id: Some(id), method: Some(method), params, .. } => {
                Ok(Self::Request { id, method, params: json(params) })
            }
            Incoming { id: None, method: Some(method), params, .. } => {
                Ok(Self::Notification { method, params: json(params) })
            }
            Incoming { id: Some(id), error: Some(error), .. } => {
                Ok(Self::Response { id, outcome: Err(error) })
            }
            Incoming { id: Some(id), result: result @ Some(_), .. } => {
                Ok(Self::Response { id, outcome: Ok(json(result)) })
            }
            _ => Err(NotAMessage("not a request, an answer or a notification".into())),
        }
    }
}

#[derive(Serialize)]
struct Outgoing<'a, P> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a RequestId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    params: Option<&'a P>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a P>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a RpcError>,
}

impl<P> Outgoing<'_, P> {
    const EMPTY: Self = Self { id: None, method: None, params: None, result: None, error: None };
}

/// The bytes of a request.
pub fn request<M: Method>(id: &RequestId, params: &M::Params) -> Vec<u8> {
    encode(&Outgoing {
        id: Some(id),
        method: Some(M::NAME),
        params: Some(params),
        ..Outgoing::EMPTY
    })
}

/// The bytes of an answer.
pub fn response<T: Serialize>(id: &RequestId, outcome: Result<&T, &RpcError>) -> Vec<u8> {
    let (result, error) = match outcome {
        Ok(result) => (Some(result), None),
        Err(error) => (None, Some(error)),
    };
    encode(&Outgoing { id: Some(id), result, error, ..Outgoing::EMPTY })
}

/// The bytes of an error answer.
pub fn refusal(id: &RequestId, error: &RpcError) -> Vec<u8> {
    response::<()>(id, Err(error))
}

/// The bytes of a notification.
pub fn notification<N: Notification>(params: &N) -> Vec<u8> {
    encode(&Outgoing { method: Some(N::NAME), params: Some(params), ..Outgoing::EMPTY })
}

/// Serialises. This cannot fail: the types of this module have only string keys.
fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    message_bytes::to_vec(message).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parse(text: impl ToString) -> Result<Message, NotAMessage> {
        Message::parse(&Bytes::from(text.to_string()))
    }

    #[test]
    fn requests_notifications_and_answers_parse() {
        let parse = |value: Value| parse(value).unwrap();
        assert_eq!(
            parse(json!({"jsonrpc": "2.0", "id": 1, "method": "m", "params": {"a": 1}})),
            Message::Request {
                id: RequestId::Number(1),
                method: "m".into(),
                params: Json::of(&json!({"a": 1}))
            }
        );
        assert_eq!(
            parse(json!({"method": "n"})),
            Message::Notification { method: "n".into(), params: Json::null() }
        );
        assert_eq!(
            parse(json!({"id": "x", "result": null})),
            Message::Response { id: RequestId::Text("x".into()), outcome: Ok(Json::null()) }
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
    fn null_parameters_equal_absent_ones() {
        for text in [r#"{"id":1,"method":"m"}"#, r#"{"id":1,"method":"m","params": null }"#] {
            let Message::Request { params, .. } = parse(text).unwrap() else { panic!("{text}") };
            assert!(params.is_null());
        }
        assert!(parse(r#"{"id":1,"result":null,"error":null}"#).is_ok());
        let error = r#"{"id":1,"result":null,"error":{"code":1,"message":""}}"#;
        assert!(matches!(parse(error), Ok(Message::Response { outcome: Err(_), .. })));
    }

    #[test]
    fn other_shapes_are_refused() {
        for bad in [
            "",
            "1",
            "[]",
            "{}",
            "{\"id\":1}",
            "{\"method\":5}",
            "{\"id\":{}}",
            "{\"id\":1,\"id\":2,\"result\":1}",
            "{\"id\":1,\"result\":1}x",
            "{\"id\":1,\"result\":{]}",
            "{\"id\":1,\"result\":nul}",
            "{\"method\":\"m\",\"params\":{\"a\":\"\n\"}}",
        ] {
            assert!(parse(bad).is_err(), "{bad} was accepted");
        }
        let not_utf8 = Bytes::from_static(b"{\"method\":\"m\",\"params\":\"\xff\"}");
        assert!(Message::parse(&not_utf8).is_err());
    }

    #[test]
    fn parameters_are_not_copied() {
        let bytes = Bytes::from_static(br#"{"method":"m","params": {"a":[1, 2]} }"#);
        let Ok(Message::Notification { params, .. }) = Message::parse(&bytes) else { panic!() };
        assert_eq!(params.parse::<Value>().unwrap(), json!({"a": [1, 2]}));
        let raw = serde_json::from_slice::<Incoming<'_>>(&bytes).unwrap().params.unwrap();
        assert_eq!(raw.get().as_ptr(), bytes[24..].as_ptr());
        assert_eq!(params, Json::slice(&bytes, raw));
    }

    #[test]
    fn answers_have_the_stock_shape() {
        let id = RequestId::Number(1);
        assert_eq!(response(&id, Ok(&json!({}))), br#"{"id":1,"result":{}}"#);
        assert_eq!(response(&id, Ok(&())), br#"{"id":1,"result":null}"#);
        assert_eq!(
            refusal(&id, &RpcError::not_found("gone")),
            br#"{"id":1,"error":{"code":-32004,"message":"gone"}}"#
        );
    }
}
