//! Certificates by ACME (RFC 8555) with TLS-ALPN-01 challenges (RFC 8737), which
//! need no port besides the relay's own.
//!
//! ```text
//! mod        orders and renews the certificate, as long as the relay runs
//!   ├── schedule   computes when the next order is due
//!   ├── order      one order: prove names, create a key, check the certificate
//!   │     └── challenge   the proofs of pending challenges
//!   ├── store      account, certificate and key in the state directory
//!   │     └── leaf        names and validity of a certificate
//!   ├── http_client    the relay's HTTP client for the ACME library
//!   └── order_error    why an order failed
//! ```
//!
//! * A failed order never changes the certificate in use, and the relay keeps running.
//! * A certificate is stored only after a check that it fits its key and names.
//! * This module does not know the listener; its caller learns of a new file.

mod challenge;
mod http_client;
mod leaf;
mod order;
mod order_error;
mod schedule;
mod store;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use instant_acme::{Account, NewAccount};
use rustls::ServerConfig;
use rustls::server::ClientHello;

use self::challenge::Challenges;
use self::http_client::AcmeHttpClient;
use self::order_error::OrderError;
use self::schedule::FailureCount;
use self::store::AcmeStore;
use super::error::TlsError;
use super::order_stats::{OrderOutcome, OrderStats};
use crate::config::Config;

/// The timeout of a whole order, from the account to the certificate.
const ORDER_TIMEOUT: Duration = Duration::from_secs(900);
/// How often a wait for a date reads the clock, which may be set meanwhile and
/// advances while the machine sleeps.
const CLOCK_INTERVAL: Duration = Duration::from_secs(3600);

/// The ACME client of a relay.
pub(super) struct Acme {
    domains: Vec<String>,
    contact: Vec<String>,
    directory: String,
    retry: Duration,
    http: AcmeHttpClient,
    store: AcmeStore,
    challenges: Challenges,
}

/// The state that an order leaves for the next one.
#[derive(Default)]
pub(super) struct RenewalState {
    failures: FailureCount,
    /// The server's `Retry-After`.
    retry_after: Option<Duration>,
}

impl Acme {
    /// Returns `None` if no domains are configured.
    pub(super) fn new(config: &Config) -> Result<Option<Self>, TlsError> {
        let domains = config.acme_domains.names().to_vec();
        if domains.is_empty() {
            return Ok(None);
        }
        let directory = config.acme_directory.as_str().to_owned();
        if !config.acme_terms_agreed {
            return Err(TlsError::AcmeTerms { directory });
        }
        Ok(Some(Self {
            store: AcmeStore::new(&config.state, &directory),
            http: AcmeHttpClient::new(config.acme_root.as_deref())?,
            challenges: Challenges::new()?,
            contact: config.acme_contact.urls(),
            retry: config.acme_retry,
            domains,
            directory,
        }))
    }

    /// The file of certificate and key. It is one file, so that both are replaced
    /// atomically.
    pub(super) fn certificate(&self) -> &Path {
        self.store.certificate()
    }

    /// Whether this client asks for the proof of a challenge.
    pub(super) fn is_challenge(&self, hello: &ClientHello<'_>) -> bool {
        challenge::is_challenge(hello.alpn())
    }

    /// The configuration with the proof for its name, if a challenge is pending.
    pub(super) fn proof(&self, hello: &ClientHello<'_>) -> Option<Arc<ServerConfig>> {
        self.challenges.proof(hello.server_name()?)
    }

    /// The configuration that presents no certificate.
    pub(super) fn no_certificate(&self) -> Arc<ServerConfig> {
        self.challenges.no_certificate()
    }

    /// Completes when a new certificate is in its file, which may take months.
    pub(super) async fn renewed(&self, state: &mut RenewalState, stats: &OrderStats) {
        loop {
            let (now, due) = (SystemTime::now(), self.due());
            let pause = self.pause(state);
            stats.set_next(seconds(due.max(now + pause)));
            tokio::time::sleep(pause).await;
            until(due).await;
            match self.attempt().await {
                Ok(()) => {
                    stats.count(OrderOutcome::Ok);
                    let late = self.due() <= SystemTime::now();
                    if late {
                        state.failures.refused();
                        tracing::warn!(
                            "the new certificate is already due for renewal: check the clock of \
                             this machine"
                        );
                    } else {
                        state.failures = FailureCount::default();
                    }
                    return;
                }
                Err(failure) => {
                    stats.count(failure.outcome());
                    match failure {
                        OrderError::Unreachable(_) => state.failures.unreached(),
                        _ => state.failures.refused(),
                    }
                    state.retry_after = self.http.take_retry_after();
                    let failures = state.failures.count();
                    tracing::warn!(%failure, failures, "cannot get a certificate by ACME; will retry");
                }
            }
        }
    }

    /// When the next order is due: at once if the stored certificate lacks a name.
    fn due(&self) -> SystemTime {
        let stored = self.store.leaf().filter(|leaf| leaf.covers(&self.domains));
        let due = stored.map_or(0, |leaf| schedule::renewal(leaf.not_before, leaf.not_after));
        UNIX_EPOCH + Duration::from_secs(u64::try_from(due).unwrap_or_default())
    }

    fn pause(&self, state: &mut RenewalState) -> Duration {
        // Without random numbers the wait is the longest.
        let share = getrandom::u32().map_or(1.0, |random| f64::from(random) / f64::from(u32::MAX));
        let pause = schedule::pause(state.failures, self.retry, state.retry_after.take(), share);
        if !pause.is_zero() {
            tracing::info!(seconds = pause.as_secs_f64(), "waiting before the next ACME order");
        }
        pause
    }

    /// Makes one order and stores its certificate.
    async fn attempt(&self) -> Result<(), OrderError> {
        let domains = self.domains.join(" ");
        tracing::info!(domains, directory = self.directory, "ordering a certificate by ACME");
        let whole = async {
            let account = self.account().await?;
            order::certificate(&account, &self.domains, &self.challenges).await
        };
        let ordered = tokio::time::timeout(ORDER_TIMEOUT, whole).await;
        match ordered.unwrap_or(Err(OrderError::Timeout)) {
            Ok(pem) => {
                self.store.store_certificate(&pem)?;
                tracing::info!(domains, "got a certificate by ACME");
                Ok(())
            }
            Err(failure) => {
                if failure.is_unknown_account() {
                    tracing::warn!("the ACME server does not know the account; creating a new one");
                    self.store.remove_account()?;
                }
                Err(failure)
            }
        }
    }

    /// The stored account, or a new one.
    async fn account(&self) -> Result<Account, OrderError> {
        let builder = Account::builder_with_http(Box::new(self.http.clone()));
        if let Some(credentials) = self.store.account()? {
            return Ok(builder.from_credentials(credentials).await?);
        }
        let contact: Vec<&str> = self.contact.iter().map(String::as_str).collect();
        let new = NewAccount {
            contact: &contact,
            // `Acme::new` has checked it.
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let (account, credentials) = builder.create(&new, self.directory.clone(), None).await?;
        self.store.store_account(&credentials)?;
        tracing::info!(account = account.id(), "created an ACME account");
        Ok(account)
    }
}

/// Waits for a time of the wall clock.
async fn until(moment: SystemTime) {
    while let Ok(left) = moment.duration_since(SystemTime::now()) {
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(CLOCK_INTERVAL)).await;
    }
}

fn seconds(moment: SystemTime) -> i64 {
    let since = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
