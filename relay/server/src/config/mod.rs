//! The relay's settings: one struct, and where its values come from.
//!
//! Precedence: defaults, then the file, then the environment, then flags. The
//! list below is the only place that names a setting: the struct, the flags,
//! the variables, the file's keys, `--print-config` and the table in
//! `docs/operating.md` all follow from it.
//!
//! A setting `a.b_c` is the flag `--a-b-c`, the variable `RENDEZ_A_B_C` and the
//! key `b_c` in the section `[a]` of the file. One with a value per id is a
//! section of its own, `[a.b_c]`.

mod acme;
mod bounds;
mod by_id;
pub(crate) mod layers;
pub(crate) mod print;
mod ranges;
mod suggest;
pub mod values;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use rendez_program::logging::{LogFormat, LogLevel};
use rendez_proto::ids::EnvironmentId;
use rendez_proto::limits;
use rendez_registry::PublicUrl;
use rendez_registry::audit::AuditKeep;
use rendez_registry::history::HistoryKeep;
use rendez_registry::model::{SourceCidrs, Subject};

use crate::connections::Quotas;
pub use acme::{Contacts, Directory, Domains};
pub use bounds::Bounds;
pub use by_id::ById;
pub use layers::{ConfigError, Layers, Loaded, Source};
pub use print::{document, table};
use values::Value;
pub use values::{ClientAuth, Collector, MaybeListen, Size, TlsVersion};

/// When a changed setting counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// At SIGHUP.
    AtReload,
    /// At the next start.
    AtStart,
}

/// What is to be known about a setting.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Its name, with a dot after the section.
    pub name: &'static str,
    /// Unit or form of its value.
    pub unit: &'static str,
    /// What it does.
    pub doc: &'static str,
    /// When a change counts.
    pub change: Change,
    /// Whether TOML writes its value without quotes.
    bare: bool,
    /// Whether it is a section of the file.
    table: bool,
}

/// Settings whose flag and variable are shorter than their name says: they were
/// there first, and agents share them.
const SHORT: [(&str, &str); 1] = [("log.level", "log")];

impl Key {
    /// Of this name.
    pub fn find(name: &str) -> Option<&'static Key> {
        Config::KEYS.iter().find(|key| key.name == name)
    }

    /// Without the dashes in front.
    pub fn flag(&self) -> String {
        let short = SHORT.iter().find(|(name, _)| *name == self.name).map(|(_, flag)| *flag);
        short.unwrap_or(self.name).replace(['.', '_'], "-")
    }

    /// The environment variable.
    pub fn variable(&self) -> String {
        format!("RENDEZ_{}", self.flag().replace('-', "_").to_uppercase())
    }
}

macro_rules! settings {
    ($(
        $(#[doc = $doc:literal])+
        $field:ident : $type:ty = $default:expr, $name:literal, $unit:literal, $change:ident;
    )+) => {
        /// What a relay needs to know.
        #[allow(rustdoc::bare_urls, reason = "the comments are help texts, too")]
        #[derive(Debug, Clone)]
        pub struct Config {
            $( $(#[doc = $doc])+ pub $field: $type, )+
        }

        impl Default for Config {
            fn default() -> Self {
                Self { $( $field: $default, )+ }
            }
        }

        impl Config {
            /// All settings, in the order of their documentation.
            pub const KEYS: &'static [Key] = &[$(
                Key {
                    name: $name,
                    unit: $unit,
                    doc: concat!($($doc),+),
                    change: Change::$change,
                    bare: <$type as Value>::BARE,
                    table: <$type as Value>::TABLE,
                },
            )+];

            /// The value of a setting as text; empty if there is no such one.
            pub fn get(&self, name: &str) -> String {
                match name {
                    $( $name => self.$field.text(), )+
                    _ => String::new(),
                }
            }

            /// The values of a setting that has one per id.
            pub fn entries(&self, name: &str) -> BTreeMap<String, String> {
                match name {
                    $( $name => self.$field.entries(), )+
                    _ => BTreeMap::new(),
                }
            }

            /// Sets one setting.
            ///
            /// # Errors
            /// What is wrong with the value; then nobody should use the rest.
            pub fn set(&mut self, name: &str, text: &str) -> Result<(), String> {
                match name {
                    $( $name => self.$field = Value::parse(text)?, )+
                    _ => return Err(format!("there is no setting {name:?}")),
                }
                ranges::check(self, name)
            }
        }
    };
}

settings! {
    /// Address and port that clients reach; port 0 takes any free one.
    listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 7700)), "listen", "IP:PORT", AtStart;

    /// Directory of the database and the signing key; made if missing, for its
    /// owner alone.
    state: PathBuf = "rendez-state".into(), "state", "directory", AtStart;

    /// How clients reach this relay, such as https://relay.example.com. Empty:
    /// wherever their request went to.
    public_url: PublicUrl = PublicUrl::FromHost, "public_url", "URL", AtStart;

    /// Most TCP connections at once; further ones wait in the kernel.
    connections_max: usize = 20_000, "connections_max", "connections", AtStart;

    /// How long /connect waits for an executor that is away, at most 10s; 0s: not
    /// at all. Stock Codex gives up one try after about 6 s.
    connect_wait: Duration = limits::CONNECT_WAIT, "connect_wait", "duration", AtStart;

    /// Where /metrics, /livez, /readyz and the /v1 API are served without TLS,
    /// for this machine or a private network. Metrics are served nowhere else.
    admin_listen: MaybeListen = MaybeListen::Off, "admin.listen", "IP:PORT or off", AtStart;

    /// Whether the whole /v1 API is served on the public listener too. Without
    /// it clients still list their environments there; tokens and the rest are
    /// for the admin listener.
    admin_on_public: bool = true, "admin.on_public", "true or false", AtStart;

    /// Most bytes that one read takes from the kernel. An idle connection holds
    /// no such buffer; one that is held back while it sends may hold one. With half
    /// of the default, forwarding large frames takes a tenth more CPU.
    websocket_read_buffer: Size = Size(32 * 1024), "websocket.read_buffer", "bytes, such as 16KiB", AtStart;

    /// Issuers whose tokens (JWT) are accepted besides the relay's own, as a
    /// file in TOML; see Tokens and identities.
    auth_issuers: Option<PathBuf> = None, "auth.issuers", "file", AtStart;

    /// Proxies whose X-Forwarded-For is believed, as networks with spaces
    /// between them. Empty: none.
    auth_trusted_proxies: SourceCidrs = SourceCidrs::default(), "auth.trusted_proxies", "networks", AtStart;

    /// Certificate chain in PEM, the relay's own first. With it and tls.key the
    /// public listener speaks TLS; a change of the files is noticed.
    tls_cert: Option<PathBuf> = None, "tls.cert", "file", AtReload;

    /// The certificate's private key in PEM.
    tls_key: Option<PathBuf> = None, "tls.key", "file", AtReload;

    /// Authorities in PEM that vouch for clients' certificates.
    tls_client_ca: Option<PathBuf> = None, "tls.client_ca", "file", AtReload;

    /// Whether clients show a certificate: off, optional or required. It is
    /// looked at besides their tokens, never instead, and stands in the log.
    tls_client_auth: ClientAuth = ClientAuth::Off, "tls.client_auth", "off or optional or required", AtReload;

    /// Oldest version of TLS that is spoken. All our clients and stock ones
    /// speak 1.3, and only that agrees on keys which hold against quantum
    /// computers.
    tls_min_version: TlsVersion = TlsVersion::Tls13, "tls.min_version", "1.3 or 1.2", AtReload;

    /// How long a TLS handshake may take, waiting for its turn included.
    tls_handshake_timeout: Duration = Duration::from_secs(10), "tls.handshake_timeout", "duration", AtStart;

    /// Most TLS handshakes that compute at once; further ones wait. Each holds up
    /// everything else on its processor for under a millisecond.
    tls_handshakes_max: usize = 16, "tls.handshakes_max", "handshakes", AtStart;

    /// How often the files are looked at.
    tls_reload_every: Duration = Duration::from_secs(5), "tls.reload_every", "duration", AtStart;

    /// Names that the relay gets a certificate for by itself, by ACME, with spaces
    /// between them, instead of tls.cert; see Certificates by ACME. Empty: none.
    acme_domains: Domains = Domains::default(), "acme.domains", "domain names", AtStart;

    /// Whether you agree to the terms of service of acme.directory. Without it
    /// nothing is ordered.
    acme_terms_agreed: bool = false, "acme.terms_agreed", "true or false", AtStart;

    /// Addresses that the authority may write to, with spaces between them. They
    /// are told when the account is made. Empty: none.
    acme_contact: Contacts = Contacts::default(), "acme.contact", "e-mail addresses", AtStart;

    /// The ACME server's directory. Each has an account and a certificate of its
    /// own in the state directory.
    acme_directory: Directory = Directory::default(), "acme.directory", "URL", AtStart;

    /// Authorities in PEM that vouch for the ACME server itself, instead of those
    /// that the system trusts: for a private one.
    acme_root: Option<PathBuf> = None, "acme.root", "file", AtStart;

    /// Wait after a failed order, at least. It doubles twice; further failures
    /// wait for an hour up to six.
    acme_retry: Duration = Duration::from_secs(60), "acme.retry", "duration", AtStart;

    /// How long /readyz says no before anything else happens: as long as your
    /// balancer takes to notice. It is part of drain.deadline, and less than it.
    drain_announce: Duration = Duration::ZERO, "drain.announce", "duration", AtStart;

    /// When the relay is gone after SIGTERM, whatever is still open; more than 0s.
    drain_deadline: Duration = Duration::from_secs(20), "drain.deadline", "duration", AtStart;

    /// How many websockets per second may come back to the relay that is next.
    /// The more there are, the longer their return is spread.
    drain_reconnects_per_second: usize = 1000, "drain.reconnects_per_second", "websockets per second", AtStart;

    /// Bounds of the node as a whole. Bounds that are not named keep their
    /// default; `none` takes one away.
    quota_node: Bounds = Bounds::of(Quotas::default().node), "quota.node", "bounds", AtReload;

    /// Bounds of each environment.
    quota_environment: Bounds = Bounds::of(Quotas::default().environment), "quota.environment", "bounds", AtReload;

    /// Bounds of each token.
    quota_token: Bounds = Bounds::of(Quotas::default().token), "quota.token", "bounds", AtReload;

    /// Bounds of each websocket: memory and rates. A change counts for new
    /// ones.
    quota_connection: Bounds = Bounds::of(Quotas::default().connection), "quota.connection", "bounds", AtReload;

    /// Bounds of single environments, by their ids. What is not named is
    /// quota.environment's.
    quota_environments: ById<EnvironmentId> = ById::default(), "quota.environments", "bounds per id", AtReload;

    /// Bounds of single tokens, by their ids, or by the jwt_... of those of
    /// other issuers. What is not named is quota.token's.
    quota_tokens: ById<Subject> = ById::default(), "quota.tokens", "bounds per id", AtReload;

    /// Most rows of the audit log that are kept; older ones are removed behind a
    /// checkpoint.
    audit_rows: u64 = limits::AUDIT_KEEP_ROWS, "audit.rows", "rows", AtReload;

    /// How long rows of the audit log are kept, at least 1h.
    audit_keep: Duration = limits::AUDIT_KEEP_AGE, "audit.keep", "duration", AtReload;

    /// How many connections of its executors the history of each environment
    /// keeps, the newest, at most 1000.
    history_connections: u32 = limits::CONNECTIONS_PER_ENVIRONMENT, "history.connections", "connections", AtReload;

    /// How long connections are kept after their end, at least 1h. The last one
    /// of each environment stays: it says why the executor is away.
    history_keep: Duration = limits::CONNECTIONS_KEEP_AGE, "history.keep", "duration", AtReload;

    /// How much is logged: off, error, warn, info, debug or trace.
    log_level: LogLevel = LogLevel::Info, "log.level", "level", AtReload;

    /// How it is logged, on standard error: human, or json with one object per
    /// line.
    log_format: LogFormat = LogFormat::Human, "log.format", "human or json", AtStart;

    /// Where traces of calls and websockets go, by OTLP over HTTP, such as
    /// http://127.0.0.1:4318/v1/traces. Empty: nowhere. Credentials go into the
    /// variable OTEL_EXPORTER_OTLP_HEADERS, as authorization=Basic%20dXNlcjpwYXNz.
    telemetry_otlp: Collector = Collector::default(), "telemetry.otlp", "URL", AtStart;
}

impl Config {
    /// How much of the audit log is kept.
    pub fn audit_keep(&self) -> AuditKeep {
        AuditKeep { rows: self.audit_rows, age: self.audit_keep }
    }

    /// How much of the history of connections is kept.
    pub fn history_keep(&self) -> HistoryKeep {
        HistoryKeep { connections: self.history_connections, age: self.history_keep }
    }

    /// What everybody may use.
    pub fn quotas(&self) -> Quotas {
        let default = Quotas::default();
        let environment = self.quota_environment.over(default.environment);
        let token = self.quota_token.over(default.token);
        Quotas {
            node: self.quota_node.over(default.node),
            environment,
            token,
            connection: self.quota_connection.over(default.connection),
            environments: self.quota_environments.over(environment),
            tokens: self.quota_tokens.over(token),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_documented_and_its_default_is_read_back() {
        let mut config = Config::default();
        for key in Config::KEYS {
            assert!(key.doc.trim().ends_with('.'), "{}: {}", key.name, key.doc);
            assert!(!key.unit.is_empty(), "{}", key.name);
            let text = config.get(key.name);
            config.set(key.name, &text).unwrap();
            assert_eq!(config.get(key.name), text, "{}", key.name);
        }
        assert!(config.set("no.such", "").is_err());
    }

    #[test]
    fn names_follow_from_the_key() {
        let key = Key::find("connections_max").unwrap();
        assert_eq!(key.flag(), "connections-max");
        assert_eq!(key.variable(), "RENDEZ_CONNECTIONS_MAX");
        assert_eq!(Key::find("admin.on_public").unwrap().variable(), "RENDEZ_ADMIN_ON_PUBLIC");
        assert_eq!(Key::find("log.level").unwrap().variable(), "RENDEZ_LOG");
        let mut variables: Vec<_> = Config::KEYS.iter().map(Key::variable).collect();
        variables.sort();
        variables.dedup();
        assert_eq!(variables.len(), Config::KEYS.len());
    }
}
