//! In place of `acme` where that was left out: nobody has one.

use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::ClientHello;

use super::error::TlsError;
use super::orders::OrderStats;
use crate::config::Config;

/// There are none.
pub(super) enum Acme {}

/// What no order leaves behind.
#[derive(Default)]
pub(super) struct Renewal {}

impl Acme {
    pub(super) fn of(config: &Config) -> Result<Option<Self>, TlsError> {
        if config.acme_domains.names().is_empty() { Ok(None) } else { Err(TlsError::AcmeNotBuilt) }
    }

    pub(super) fn certificate(&self) -> &Path {
        match *self {}
    }

    pub(super) fn is_asked(&self, _hello: &ClientHello<'_>) -> bool {
        match *self {}
    }

    pub(super) fn proof(&self, _hello: &ClientHello<'_>) -> Option<Arc<ServerConfig>> {
        match *self {}
    }

    pub(super) fn nothing(&self) -> Arc<ServerConfig> {
        match *self {}
    }

    pub(super) async fn renewed(&self, _renewal: &mut Renewal, _stats: &OrderStats) {
        match *self {}
    }
}
