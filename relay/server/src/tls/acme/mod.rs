//! Certificates by ACME (RFC 8555), proved by TLS-ALPN-01 (RFC 8737): a relay
//! has one port, and that is where it proves its names.
//!
//! ```text
//! mod        one certificate after the other, for as long as the relay runs
//!   ├── schedule   when the next order is made: numbers in, numbers out
//!   ├── order      one order: names proved, a key made, a certificate checked
//!   │     └── challenge   what is shown for a proof, while it is pending
//!   ├── store      account, certificate and key in the state directory
//!   │     └── leaf        what a certificate is for, and for how long
//!   ├── http       the relay's HTTP client for the ACME library
//!   └── failure    who is at fault
//! ```
//!
//! * A failed order never touches what is served, and the relay stays up.
//! * A certificate is kept only after it was found good for its key and names.
//! * Nothing here knows the listener: who asks is told that there is a new file.

mod challenge;
mod failure;
mod http;
mod leaf;
mod order;
mod schedule;
mod store;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use instant_acme::{Account, NewAccount};
use rustls::ServerConfig;
use rustls::server::ClientHello;

use self::challenge::Challenges;
use self::failure::Failure;
use self::http::Http;
use self::schedule::Failures;
use self::store::Store;
use super::error::TlsError;
use super::orders::{OrderStats, Ordered};
use crate::config::Config;

/// How long an order may take with all that belongs to it.
const ORDER_TIMEOUT: Duration = Duration::from_secs(900);
/// How often a wait for a date looks at the clock, which may be set meanwhile,
/// and does not stand still while a machine sleeps.
const CLOCK_INTERVAL: Duration = Duration::from_secs(3600);

/// How this relay gets certificates.
pub(super) struct Acme {
    domains: Vec<String>,
    contact: Vec<String>,
    directory: String,
    retry: Duration,
    http: Http,
    store: Store,
    challenges: Challenges,
}

/// What the last orders leave behind for the next one.
#[derive(Default)]
pub(super) struct Renewal {
    failures: Failures,
    /// How long the server wants to be left alone.
    told: Option<Duration>,
}

impl Acme {
    /// `None` if the settings name no domains.
    pub(super) fn of(config: &Config) -> Result<Option<Self>, TlsError> {
        let domains = config.acme_domains.names().to_vec();
        if domains.is_empty() {
            return Ok(None);
        }
        let directory = config.acme_directory.as_str().to_owned();
        if !config.acme_terms_agreed {
            return Err(TlsError::AcmeTerms { directory });
        }
        Ok(Some(Self {
            store: Store::of(&config.state, &directory),
            http: Http::new(config.acme_root.as_deref())?,
            challenges: Challenges::new()?,
            contact: config.acme_contact.urls(),
            retry: config.acme_retry,
            domains,
            directory,
        }))
    }

    /// Where certificate and key are kept, in one file, so that they are
    /// replaced at one moment.
    pub(super) fn certificate(&self) -> &Path {
        self.store.certificate()
    }

    /// Whether this client wants to see a proof instead of a relay.
    pub(super) fn is_asked(&self, hello: &ClientHello<'_>) -> bool {
        challenge::is_asked(hello.alpn())
    }

    /// What it is shown, if that is pending.
    pub(super) fn proof(&self, hello: &ClientHello<'_>) -> Option<Arc<ServerConfig>> {
        self.challenges.proof(hello.server_name()?)
    }

    /// Shows nothing to anybody.
    pub(super) fn nothing(&self) -> Arc<ServerConfig> {
        self.challenges.nothing()
    }

    /// Returns when a new certificate is in its file, which may take months.
    pub(super) async fn renewed(&self, renewal: &mut Renewal, stats: &OrderStats) {
        loop {
            let (now, due) = (SystemTime::now(), self.due());
            let pause = self.pause(renewal);
            stats.next_is_at(seconds(due.max(now + pause)));
            tokio::time::sleep(pause).await;
            until(due).await;
            match self.attempt().await {
                Ok(()) => {
                    stats.count(Ordered::Ok);
                    let late = self.due() <= SystemTime::now();
                    if late {
                        renewal.failures.refused();
                        tracing::warn!(
                            "the new certificate is due for its renewal already; is the clock of \
                             this machine right?"
                        );
                    } else {
                        renewal.failures = Failures::default();
                    }
                    return;
                }
                Err(failure) => {
                    stats.count(failure.outcome());
                    match failure {
                        Failure::Unreachable(_) => renewal.failures.unreached(),
                        _ => renewal.failures.refused(),
                    }
                    renewal.told = self.http.told();
                    let failures = renewal.failures.count();
                    tracing::warn!(%failure, failures, "no certificate by ACME; it is tried again");
                }
            }
        }
    }

    /// When the next order is due: at once if what is kept is not for all names.
    fn due(&self) -> SystemTime {
        let kept = self.store.leaf().filter(|leaf| leaf.is_for(&self.domains));
        let due = kept.map_or(0, |leaf| schedule::renewal(leaf.not_before, leaf.not_after));
        UNIX_EPOCH + Duration::from_secs(u64::try_from(due).unwrap_or_default())
    }

    fn pause(&self, renewal: &mut Renewal) -> Duration {
        // Without random numbers all wait for the longest.
        let share = getrandom::u32().map_or(1.0, |random| f64::from(random) / f64::from(u32::MAX));
        let pause = schedule::pause(renewal.failures, self.retry, renewal.told.take(), share);
        if !pause.is_zero() {
            tracing::info!(seconds = pause.as_secs_f64(), "the next order waits");
        }
        pause
    }

    /// One order, until its certificate is kept.
    async fn attempt(&self) -> Result<(), Failure> {
        let domains = self.domains.join(" ");
        tracing::info!(domains, directory = self.directory, "a certificate is ordered by ACME");
        let whole = async {
            let account = self.account().await?;
            order::certificate(&account, &self.domains, &self.challenges).await
        };
        let ordered = tokio::time::timeout(ORDER_TIMEOUT, whole).await;
        match ordered.unwrap_or(Err(Failure::Late)) {
            Ok(pem) => {
                self.store.keep_certificate(&pem)?;
                tracing::info!(domains, "a certificate was issued by ACME");
                Ok(())
            }
            Err(failure) => {
                if failure.account_is_gone() {
                    tracing::warn!("the ACME server does not know the account; a new one is made");
                    self.store.forget_account()?;
                }
                Err(failure)
            }
        }
    }

    /// The kept account, or a new one.
    async fn account(&self) -> Result<Account, Failure> {
        let builder = Account::builder_with_http(Box::new(self.http.clone()));
        if let Some(credentials) = self.store.account()? {
            return Ok(builder.from_credentials(credentials).await?);
        }
        let contact: Vec<&str> = self.contact.iter().map(String::as_str).collect();
        let new = NewAccount {
            contact: &contact,
            // without that there is no `Acme`
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let (account, credentials) = builder.create(&new, self.directory.clone(), None).await?;
        self.store.keep_account(&credentials)?;
        tracing::info!(account = account.id(), "an ACME account was made");
        Ok(account)
    }
}

/// Waits for a moment by the wall clock.
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
