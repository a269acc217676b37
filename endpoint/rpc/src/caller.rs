//! Typed calls over a stream.
//!
//! A caller numbers its requests, and one task reads the responses.
//! Notifications go to a handler in the order of their arrival. The handler may
//! wait, and then everything behind it in the stream waits too: a slow consumer
//! applies backpressure to its producer instead of growing a queue here.

use std::collections::HashMap;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;

use parking_lot::Mutex;
use rendez_proto::rpc::{self, Json, Message, Method, Notification, RequestId, RpcError};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::message_stream::{MessageStream, StreamClosed};

/// Handles the notifications of the other end.
pub trait NotificationHandler: Send + Sync + 'static {
    /// Handles one notification; waiting holds back the stream.
    fn notification(&self, method: String, params: Json) -> impl Future<Output = ()> + Send;
    /// The stream has ended; nothing follows.
    fn closed(&self);
}

/// Calls methods of the other end of a stream. Dropping it closes the stream.
pub struct Caller<M: MessageStream> {
    messages: Arc<M>,
    pending: Arc<PendingCalls>,
    reader: AbortHandle,
}

/// The reason why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The other end answered with an error.
    #[error(transparent)]
    Refused(#[from] RpcError),
    /// The stream ended before the response. Whether the call took effect is
    /// unknown.
    #[error("the stream closed before the response; whether the call took effect is unknown")]
    Interrupted,
    /// The stream had ended before the call was sent: the call had no effect.
    #[error("the stream is closed")]
    NotSent,
    /// The response does not parse.
    #[error("invalid response to {method}: {why}")]
    Malformed {
        /// The method called.
        method: &'static str,
        /// The parse error.
        why: String,
    },
}

/// Requests without a response. Bounded by the tasks that wait for one.
#[derive(Default)]
struct PendingCalls(Mutex<CallTable>);

#[derive(Default)]
struct CallTable {
    next_id: i64,
    closed: bool,
    answers: HashMap<i64, oneshot::Sender<Result<Json, RpcError>>>,
}

impl<M: MessageStream> Caller<M> {
    /// Starts the task that reads. Must be called within a tokio runtime.
    pub fn new(messages: M, handler: impl NotificationHandler) -> Self {
        let messages = Arc::new(messages);
        let pending = Arc::new(PendingCalls::default());
        let reader = tokio::spawn(read(messages.clone(), pending.clone(), handler));
        Self { messages, pending, reader: reader.abort_handle() }
    }

    /// Calls `T` and waits for its response.
    ///
    /// # Errors
    /// [`CallError`] states whether the call may have taken effect.
    pub async fn call<T: Method>(&self, params: &T::Params) -> Result<T::Reply, CallError> {
        self.request::<T>(params).await?.wait().await
    }

    /// Sends a call without waiting for its response, so that several may be in
    /// flight. Requests reach the other end in the order of these calls.
    ///
    /// # Errors
    /// [`CallError::NotSent`]
    pub async fn request<T: Method>(
        &self,
        params: &T::Params,
    ) -> Result<PendingResponse<T>, CallError> {
        let answer = self.pending.register().ok_or(CallError::NotSent)?;
        let request = rpc::request::<T>(&RequestId::Number(answer.id), params);
        self.messages.send(request.into()).await.map_err(|StreamClosed| CallError::NotSent)?;
        Ok(answer)
    }

    /// Sends a notification.
    ///
    /// # Errors
    /// [`CallError::NotSent`]
    pub async fn notify<N: Notification>(&self, params: &N) -> Result<(), CallError> {
        let message = rpc::notification(params);
        self.messages.send(message.into()).await.map_err(|StreamClosed| CallError::NotSent)
    }

    /// The underlying stream.
    pub fn messages(&self) -> &M {
        &self.messages
    }
}

impl<M: MessageStream> Drop for Caller<M> {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// The response to a request that was sent; dropping it discards the response.
pub struct PendingResponse<T> {
    id: i64,
    pending: Arc<PendingCalls>,
    answer: oneshot::Receiver<Result<Json, RpcError>>,
    method: PhantomData<fn() -> T>,
}

impl<T: Method> PendingResponse<T> {
    /// Waits for the response.
    ///
    /// # Errors
    /// [`CallError`] states whether the call may have taken effect.
    pub async fn wait(mut self) -> Result<T::Reply, CallError> {
        let outcome = (&mut self.answer).await.map_err(|_| CallError::Interrupted)?;
        outcome?
            .parse()
            .map_err(|error| CallError::Malformed { method: T::NAME, why: error.to_string() })
    }
}

impl<T> Drop for PendingResponse<T> {
    fn drop(&mut self) {
        self.pending.0.lock().answers.remove(&self.id);
    }
}

impl PendingCalls {
    fn register<T>(self: &Arc<Self>) -> Option<PendingResponse<T>> {
        let mut waiting = self.0.lock();
        if waiting.closed {
            return None;
        }
        let id = waiting.next_id;
        waiting.next_id += 1;
        let (sender, answer) = oneshot::channel();
        waiting.answers.insert(id, sender);
        Some(PendingResponse { id, pending: self.clone(), answer, method: PhantomData })
    }

    fn answered(&self, id: &RequestId, outcome: Result<Json, RpcError>) {
        // A response without a request is ignored, as in stock harnesses.
        if let RequestId::Number(id) = id
            && let Some(sender) = self.0.lock().answers.remove(id)
        {
            let _ = sender.send(outcome);
        }
    }

    fn close(&self) {
        let mut waiting = self.0.lock();
        waiting.closed = true;
        waiting.answers.clear();
    }
}

async fn read<M: MessageStream>(
    messages: Arc<M>,
    pending: Arc<PendingCalls>,
    handler: impl NotificationHandler,
) {
    while let Some(bytes) = messages.recv().await {
        match Message::parse(&bytes) {
            Ok(Message::Response { id, outcome }) => pending.answered(&id, outcome),
            Ok(Message::Notification { method, params }) => {
                handler.notification(method, params).await;
            }
            Ok(Message::Request { id, method, .. }) => {
                let refusal = rpc::refusal(&id, &RpcError::unknown_method(&method));
                if messages.send(refusal.into()).await.is_err() {
                    break;
                }
            }
            // The parser's message may quote the peer's data, so it is not
            // logged.
            Err(_) => {
                tracing::warn!(
                    bytes = bytes.len(),
                    "received an invalid JSON-RPC message; the stream ends"
                );
                break;
            }
        }
    }
    pending.close();
    handler.closed();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::duplex::{DuplexEnd, duplex};
    use serde_json::{Value, json};
    use tokio::sync::mpsc;

    struct Echo;
    impl Method for Echo {
        const NAME: &'static str = "echo";
        type Params = Value;
        type Reply = Value;
    }

    struct Sink(mpsc::UnboundedSender<Option<(String, Json)>>);
    impl NotificationHandler for Sink {
        async fn notification(&self, method: String, params: Json) {
            let _ = self.0.send(Some((method, params)));
        }
        fn closed(&self) {
            let _ = self.0.send(None);
        }
    }

    /// `None`: closed.
    type Notifications = mpsc::UnboundedReceiver<Option<(String, Json)>>;

    fn start() -> (Caller<DuplexEnd>, DuplexEnd, Notifications) {
        let (ours, theirs) = duplex(8);
        let (sender, receiver) = mpsc::unbounded_channel();
        (Caller::new(ours, Sink(sender)), theirs, receiver)
    }

    async fn next_request(end: &DuplexEnd) -> (RequestId, Value) {
        match Message::parse(&end.recv().await.unwrap()).unwrap() {
            Message::Request { id, params, .. } => (id, params.parse().unwrap()),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn responses_match_calls_in_any_order() {
        let (caller, executor, _) = start();
        let (one, two) = (json!(1), json!(2));
        let calls = async { tokio::join!(caller.call::<Echo>(&one), caller.call::<Echo>(&two)) };
        let serve = async {
            let first = next_request(&executor).await;
            let second = next_request(&executor).await;
            for (id, params) in [second, first] {
                executor.send(rpc::response(&id, Ok(&params)).into()).await.unwrap();
            }
        };
        let ((first, second), ()) = tokio::join!(calls, serve);
        assert_eq!((first.unwrap(), second.unwrap()), (json!(1), json!(2)));
    }

    #[tokio::test]
    async fn lost_stream_leaves_outcome_unknown() {
        let (caller, executor, mut notified) = start();
        let params = json!(1);
        let serve = async {
            next_request(&executor).await;
            drop(executor);
        };
        let (outcome, ()) = tokio::join!(caller.call::<Echo>(&params), serve);
        assert!(matches!(outcome, Err(CallError::Interrupted)));
        assert!(notified.recv().await.unwrap().is_none());
        assert!(matches!(caller.call::<Echo>(&params).await, Err(CallError::NotSent)));
    }

    #[tokio::test]
    async fn errors_notifications_and_requests_are_dispatched() {
        let (caller, executor, mut notified) = start();
        let params = json!(1);
        let serve = async {
            let (id, _) = next_request(&executor).await;
            for message in [
                br#"{"method":"n","params":{"a":1}}"#.to_vec(),
                br#"{"id":"x","method":"network/policyRequest"}"#.to_vec(),
                br#"{"id":99,"result":{}}"#.to_vec(),
                rpc::refusal(&id, &RpcError::not_found("no")),
            ] {
                executor.send(message.into()).await.unwrap();
            }
            let answer = Message::parse(&executor.recv().await.unwrap()).unwrap();
            assert!(matches!(answer, Message::Response { outcome: Err(error), .. }
                    if error.code == rpc::code::METHOD_NOT_FOUND));
        };
        let (outcome, ()) = tokio::join!(caller.call::<Echo>(&params), serve);
        assert!(matches!(outcome, Err(CallError::Refused(error)) if error.message == "no"));
        let params = Json::of(&json!({"a": 1}));
        assert_eq!(notified.recv().await.unwrap(), Some(("n".into(), params)));
    }
}
