//! The relay node, for operators.

use rendez_proto::ids::EnvironmentId;
use rendez_proto::limits;
use rendez_proto::registry::status::{AuditStatus, ConnectionCursor, ConnectionList, RelayStatus};

use super::context::Context;
use crate::page;
use crate::store::StoreError;

/// This node of the relay.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    ctx: &'a Context,
}

impl<'a> Node<'a> {
    pub(super) fn new(ctx: &'a Context) -> Self {
        Self { ctx }
    }
}

impl Node<'_> {
    /// Returns the status of the relay. For admins.
    ///
    /// # Errors
    /// The store's.
    pub async fn status(self) -> Result<RelayStatus, StoreError> {
        let node = self.ctx.presence().node_connections().await;
        Ok(RelayStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at_unix_secs: self.ctx.started_at,
            draining: node.draining,
            executors: node.executors as u64,
            orchestrators: node.orchestrators as u64,
            streams: node.streams as u64,
            audit: AuditStatus {
                head: self.ctx.audit().head().await?,
                unwritten: self.ctx.audit().unwritten() as u64,
                lost: self.ctx.audit().lost(),
            },
            history_unwritten: self.ctx.history().unwritten() as u64,
            history_lost: self.ctx.history().lost(),
        })
    }

    /// Returns one page of the open websockets, of one environment or of all. For
    /// admins.
    pub async fn connections(
        self,
        environment: Option<&EnvironmentId>,
        after: Option<&ConnectionCursor>,
    ) -> ConnectionList {
        let limit = limits::LIST_PAGE_MAX as usize;
        let connections = self.ctx.presence().connections(environment, after, limit).await;
        let next = page::next_cursor(&connections, |last| last.id.clone());
        ConnectionList { connections, next }
    }
}
