//! The calls of executors and orchestrators: Codex's registry API
//! (docs/codex-wire.md#registry-api).

use axum::body::Body;
use axum::http::header::{CONNECTION, HOST};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use rendez_proto::ids::StreamId;
use rendez_proto::proof::Call;
use rendez_proto::registry::{
    ConnectRequest, RegisterRequest, STREAM_ID_HEADER, ValidateReply, ValidateRequest,
};

use super::body;
use super::error::Failure;
use super::executor_auth::ExecutorAuth;
use super::params::{PathParam, environment};
use super::request_context::RequestContext;
use super::response::{json, ok};
use crate::model::Role;
use crate::public_url::WebsocketBase;
use crate::registry::registrations::Verdict;
use crate::stats::{Operation, Outcome};
use crate::store_retry::StoreRetry;

pub(super) async fn register(ctx: RequestContext, path: PathParam, body: Body) -> Response {
    // one deadline for all calls of the store, from the start of the request
    let ctx = RequestContext { retry: StoreRetry::for_registration(), ..ctx };
    let work = async {
        let auth = ExecutorAuth::new(&ctx, Call::Register).await?;
        let environment = environment(path)?;
        auth.authorize(&environment)?;
        let body = body::read(body).await?;
        let request = RegisterRequest::parse(&body)?;
        let base = base(&ctx)?;
        let caller = auth.finish(&ctx, &body).await?;
        Ok(ctx
            .registry
            .registrations()
            .register(&caller, &environment, &request, &base, ctx.retry)
            .await?)
    };
    ctx.respond(Operation::Register, work.await.map(ok))
}

pub(super) async fn connect(ctx: RequestContext, path: PathParam, body: Body) -> Response {
    let work = async {
        let caller = ctx.caller().await?;
        let environment = environment(path)?;
        caller.authorize(Role::Orchestrator, &environment)?;
        let request = ConnectRequest::parse(&body::read(body).await?)?;
        let base = base(&ctx)?;
        Ok(ctx.registry.registrations().connect(&caller, &environment, &request, &base).await?)
    };
    let mut response = ctx.respond(Operation::Connect, work.await.map(ok));
    // A stock harness whose relay restarts retries at once over the pooled
    // connection, if there is one. That connection is dead, and the failure ends
    // its recovery.
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

pub(super) async fn validate(ctx: RequestContext, path: PathParam, body: Body) -> Response {
    let work = async {
        let auth = ExecutorAuth::new(&ctx, Call::Validate).await?;
        let environment = environment(path)?;
        auth.authorize(&environment)?;
        let body = body::read(body).await?;
        let request = ValidateRequest::parse(&body)?;
        let caller = auth.finish(&ctx, &body).await?;
        let stream = stream(&ctx.headers);
        Ok(ctx
            .registry
            .registrations()
            .validate(&caller, &environment, &request, stream.as_ref())
            .await?)
    };
    let result = work.await.map(|verdict| match verdict {
        Verdict::Valid => (Outcome::Ok, json(&ValidateReply { valid: true })),
        Verdict::Denied(_) => (Outcome::Denied, json(&ValidateReply { valid: false })),
    });
    ctx.respond(Operation::Validate, result)
}

/// The stream that the executor names. Other text than a UUID is ignored: the
/// stream only goes to the audit log and decides nothing.
fn stream(headers: &HeaderMap) -> Option<StreamId> {
    let text = headers.get(STREAM_ID_HEADER)?.to_str().ok()?;
    text.parse().ok().filter(StreamId::is_uuid)
}

fn base(ctx: &RequestContext) -> Result<WebsocketBase, Failure> {
    let host = ctx.headers.get(HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| ctx.uri.authority().map(|authority| authority.as_str()));
    Ok(ctx.registry.public_url().base(host)?)
}
