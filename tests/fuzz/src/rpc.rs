//! [`Message::parse`], the typed parameters and replies of every call, and
//! paths: parsing and encoding again gives the same value.

use bytes::Bytes;
use rendez_proto::rpc::path::PathUri;
use rendez_proto::rpc::{
    Json, Message, Method, Notification, RequestId, fs, process, refusal, response, session,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Reads `data` as a message and as a path.
pub fn run(data: &[u8]) {
    if let Ok(message) = Message::parse(&Bytes::copy_from_slice(data)) {
        message_again(&message);
        if let Some(about) = about(&message) {
            typed(about);
        }
    }
    if let Ok(text) = std::str::from_utf8(data) {
        path(text);
    }
}

fn about(message: &Message) -> Option<&Json> {
    match message {
        Message::Request { params, .. } | Message::Notification { params, .. } => Some(params),
        Message::Response { outcome, .. } => outcome.as_ref().ok(),
    }
}

/// A message is JSON, and means the same as to a reader of the whole.
fn message_again(message: &Message) {
    let value = |json: &Json| json.parse::<Value>();
    let bytes = match message {
        Message::Request { id, method, params } => {
            let Ok(params) = value(params) else { return };
            json!({"id": id, "method": method, "params": params}).to_string().into_bytes()
        }
        Message::Notification { method, params } => {
            let Ok(params) = value(params) else { return };
            json!({"method": method, "params": params}).to_string().into_bytes()
        }
        Message::Response { id, outcome: Ok(result) } => {
            let Ok(result) = value(result) else { return };
            response(id, Ok(&result))
        }
        Message::Response { id, outcome: Err(error) } => refusal(id, error),
    };
    let again = Message::parse(&bytes.into()).expect("an encoded message parses again");
    match (message, &again) {
        (
            Message::Request { id, method, .. },
            Message::Request { id: id_again, method: method_again, .. },
        ) => assert_eq!((id, method), (id_again, method_again)),
        (
            Message::Notification { method, .. },
            Message::Notification { method: method_again, .. },
        ) => assert_eq!(method, method_again),
        (
            Message::Response { id, outcome: Ok(_) },
            Message::Response { id: id_again, outcome: Ok(_) },
        ) => assert_eq!(id, id_again),
        _ => return assert_eq!(message, &again),
    }
    let values = [message, &again].map(|message| about(message).and_then(|json| value(json).ok()));
    let [Some(first), Some(second)] = values else { panic!("a value got lost") };
    if !has_fraction(&first) {
        assert_eq!(first, second);
    }
}

/// JSON numbers with a fraction are parsed to within one bit; our messages have
/// none.
fn has_fraction(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(values) => values.iter().any(has_fraction),
        Value::Object(members) => members.values().any(has_fraction),
        _ => false,
    }
}

/// Every type that may occur in a message, since an attacker chooses the
/// method.
fn typed(json: &Json) {
    fn calls<M: Method>(json: &Json) {
        again::<M::Params>(json);
        again::<M::Reply>(json);
    }
    fn told<N: Notification>(json: &Json) {
        again::<N>(json);
    }
    calls::<session::Initialize>(json);
    told::<session::Initialized>(json);
    calls::<session::EnvironmentInfo>(json);
    calls::<session::EnvironmentStatus>(json);
    calls::<process::Start>(json);
    calls::<process::Write>(json);
    calls::<process::CloseStdin>(json);
    calls::<process::Signal>(json);
    calls::<process::Terminate>(json);
    calls::<process::Read>(json);
    told::<process::Output>(json);
    told::<process::Exited>(json);
    told::<process::ClosedNotification>(json);
    calls::<fs::ReadFile>(json);
    calls::<fs::WriteFile>(json);
    calls::<fs::GetMetadata>(json);
    calls::<fs::ReadDirectory>(json);
    calls::<fs::CreateDirectory>(json);
    calls::<fs::Remove>(json);
}

/// Encoding a parsed value, and parsing it again, changes nothing.
fn again<T: Serialize + DeserializeOwned>(json: &Json) {
    let Ok(read) = json.parse::<T>() else { return };
    let once = written(&read);
    let message = Message::parse(&once).expect("our own message");
    let read = about(&message).expect("it has a result").parse::<T>();
    let read = read.expect("our own words are understood");
    assert_eq!(once, written(&read), "{}", std::any::type_name::<T>());
}

/// The value in the encoding of messages, in which binary fields are valid.
fn written<T: Serialize>(value: &T) -> Bytes {
    response(&RequestId::Number(1), Ok(value)).into()
}

fn path(text: &str) {
    for uri in [text.parse::<PathUri>(), PathUri::from_path(text)].into_iter().flatten() {
        let path = uri.path();
        assert!(path.starts_with('/') && !path.contains('\0'), "{path:?}");
        let inside = path.strip_prefix('/').unwrap_or_default();
        let clean = |segment: &str| !matches!(segment, "" | "." | "..");
        assert!(inside.is_empty() || inside.split('/').all(clean), "{path:?} is not normal");
        assert_eq!(PathUri::from_path(path).as_ref(), Ok(&uri));
        let wire = String::from(uri.clone());
        assert_eq!(wire.parse::<PathUri>().as_ref(), Ok(&uri), "{wire:?} is another path");
        if let Some(below) = uri.join(text) {
            assert!(below.path().ends_with(text) && below.path().len() > path.len());
            assert_eq!(String::from(below.clone()).parse::<PathUri>(), Ok(below));
        }
    }
}
