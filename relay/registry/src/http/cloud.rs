//! What executors and orchestrators call: the registry of Codex, WIRE.md section 1.

use axum::body::Body;
use axum::http::header::{CONNECTION, HOST};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use rendez_proto::ids::StreamId;
use rendez_proto::proof::Call;
use rendez_proto::registry::{
    ConnectRequest, RegisterRequest, STREAM_ID_HEADER, ValidateReply, ValidateRequest,
};

use super::ask::Ask;
use super::body;
use super::error::Failure;
use super::knock::Knock;
use super::params::{PathParam, environment};
use super::reply::{json, ok};
use crate::model::Role;
use crate::public_url::WebsocketBase;
use crate::registry::registrations::Verdict;
use crate::stats::{Operation, Outcome};
use crate::store_retry::StoreRetry;

pub(super) async fn register(ask: Ask, path: PathParam, body: Body) -> Response {
    // one wait for all that the database is asked here, from the start
    let ask = Ask { retry: StoreRetry::for_registration(), ..ask };
    let work = async {
        let knock = Knock::new(&ask, Call::Register).await?;
        let environment = environment(path)?;
        knock.may(&environment)?;
        let body = body::read(body).await?;
        let request = RegisterRequest::parse(&body)?;
        let base = base(&ask)?;
        let caller = knock.settle(&ask, &body).await?;
        Ok(ask
            .registry
            .registrations()
            .register(&caller, &environment, &request, &base, ask.retry)
            .await?)
    };
    ask.answer(Operation::Register, work.await.map(ok))
}

pub(super) async fn connect(ask: Ask, path: PathParam, body: Body) -> Response {
    let work = async {
        let caller = ask.caller().await?;
        let environment = environment(path)?;
        caller.may(Role::Orchestrator, &environment)?;
        let request = ConnectRequest::parse(&body::read(body).await?)?;
        let base = base(&ask)?;
        Ok(ask.registry.registrations().connect(&caller, &environment, &request, &base).await?)
    };
    let mut response = ask.answer(Operation::Connect, work.await.map(ok));
    // A stock harness whose relay restarts asks again at once, over the pooled
    // connection if there is one; that this one is dead ends its recovery.
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

pub(super) async fn validate(ask: Ask, path: PathParam, body: Body) -> Response {
    let work = async {
        let knock = Knock::new(&ask, Call::Validate).await?;
        let environment = environment(path)?;
        knock.may(&environment)?;
        let body = body::read(body).await?;
        let request = ValidateRequest::parse(&body)?;
        let caller = knock.settle(&ask, &body).await?;
        let stream = stream(&ask.headers);
        Ok(ask
            .registry
            .registrations()
            .validate(&caller, &environment, &request, stream.as_ref())
            .await?)
    };
    let result = work.await.map(|verdict| match verdict {
        Verdict::Valid => (Outcome::Ok, json(&ValidateReply { valid: true })),
        Verdict::Denied(_) => (Outcome::Denied, json(&ValidateReply { valid: false })),
    });
    ask.answer(Operation::Validate, result)
}

/// For which stream, as executors say it. What is no UUID is ignored: it goes to
/// the audit log and decides nothing.
fn stream(headers: &HeaderMap) -> Option<StreamId> {
    let text = headers.get(STREAM_ID_HEADER)?.to_str().ok()?;
    text.parse().ok().filter(StreamId::is_uuid)
}

fn base(ask: &Ask) -> Result<WebsocketBase, Failure> {
    let host = ask.headers.get(HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| ask.uri.authority().map(|authority| authority.as_str()));
    Ok(ask.registry.public_url().base(host)?)
}
