//! Replaces the module `acme` in a build without ACME.

use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::ClientHello;

use super::error::TlsError;
use super::order_stats::OrderStats;
use crate::config::Config;

/// Has no values.
pub(super) enum Acme {}

/// Has no fields.
#[derive(Default)]
pub(super) struct RenewalState {}

impl Acme {
    pub(super) fn new(config: &Config) -> Result<Option<Self>, TlsError> {
        if config.acme_domains.names().is_empty() { Ok(None) } else { Err(TlsError::AcmeNotBuilt) }
    }

    pub(super) fn certificate(&self) -> &Path {
        match *self {}
    }

    pub(super) fn is_challenge(&self, _hello: &ClientHello<'_>) -> bool {
        match *self {}
    }

    pub(super) fn proof(&self, _hello: &ClientHello<'_>) -> Option<Arc<ServerConfig>> {
        match *self {}
    }

    pub(super) fn no_certificate(&self) -> Arc<ServerConfig> {
        match *self {}
    }

    pub(super) async fn renewed(&self, _state: &mut RenewalState, _stats: &OrderStats) {
        match *self {}
    }
}
