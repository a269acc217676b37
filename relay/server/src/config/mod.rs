//! The relay's settings.
//!
//! The list below is the only place that names a setting: the struct, the
//! flags, the variables, the file's keys, `--print-config` and the table in
//! `docs/operating.md` all follow from it (see [`mod@rendez_program::settings`]).

mod acme;
mod bounds;
mod by_id;
mod ranges;
pub mod values;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use rendez_program::logging::{LogFormat, LogLevel};
use rendez_program::settings;
use rendez_program::settings::value::Size;
use rendez_program::settings::{Loaded, SettingsArgs};
use rendez_proto::ids::EnvironmentId;
use rendez_proto::limits;
use rendez_registry::audit::AuditRetention;
use rendez_registry::history::HistoryRetention;
use rendez_registry::model::Subject;

use crate::connections::{Quotas, StrangerBounds};
pub use acme::{Contacts, Directory, Domains};
pub use bounds::Bounds;
pub use by_id::ById;
pub use values::{
    ClientAuth, Collector, MaybeListen, MaybeMax, PublicUrl, TlsVersion, TrustedProxies,
};

/// The relay's command line, shared by `rendez relay` and `rendez-relay`.
pub type RelayArgs = SettingsArgs<Config>;

settings! {
    /// The settings of a relay.
    #[allow(rustdoc::bare_urls, reason = "the comments are help texts, too")]
    pub struct Config, ranges::check_value, ranges::check_all;

    /// Address and port of the public listener; port 0 takes any free one.
    listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 7700)), "listen", "IP:PORT", AtStart;

    /// Directory of the database and the signing key; created if missing, readable
    /// by its owner only.
    state: PathBuf = "rendez-state".into(), "state", "directory", AtStart;

    /// URL by which clients reach this relay, such as https://relay.example.com.
    /// Empty: the host that their request names.
    public_url: PublicUrl = PublicUrl::default(), "public_url", "URL", AtStart;

    /// Most TCP connections at once. When all are taken, a new one takes the place of
    /// the oldest that has shown no valid token or ticket, or waits.
    connections_max: usize = 20_000, "connections_max", "connections", AtStart;

    /// How long /connect waits for an executor that is away, at most 10s; 0s does
    /// not wait. Stock Codex gives up one try after about 6 s.
    connect_wait: Duration = limits::CONNECT_WAIT, "connect_wait", "duration", AtStart;

    /// Most TCP connections that have shown no valid token or ticket, and never more
    /// than half of connections_max; the rest is for those that have. A further one
    /// takes the place of the oldest. none: they may take all, and keep their places.
    strangers_max: MaybeMax = MaybeMax::Max(10_000), "strangers.max", "connections or none", AtStart;

    /// Most of them from one IPv4 address or one /64 of IPv6; behind a proxy of
    /// auth.trusted_proxies, from the address that it names.
    strangers_per_address: MaybeMax = MaybeMax::Max(1_000), "strangers.per_address", "connections or none", AtStart;

    /// Address of the admin listener. It serves /metrics, /livez, /readyz and the
    /// /v1 API without TLS, for this machine or a private network. Only this
    /// listener serves metrics.
    admin_listen: MaybeListen = MaybeListen::Off, "admin.listen", "IP:PORT or off", AtStart;

    /// Whether the public listener serves the whole /v1 API, too. If not, clients
    /// can only list their environments there; the rest needs the admin listener.
    admin_on_public: bool = true, "admin.on_public", "true or false", AtStart;

    /// Most bytes that one read takes from the kernel. An idle connection has no
    /// such buffer; one that is throttled while it sends may have one. With half of
    /// the default, forwarding large frames takes a tenth more CPU.
    websocket_read_buffer: Size = Size(32 * 1024), "websocket.read_buffer", "bytes, such as 16KiB", AtStart;

    /// Issuers whose tokens (JWT) are accepted besides the relay's own, as a
    /// file in TOML; see Tokens and identities.
    auth_issuers: Option<PathBuf> = None, "auth.issuers", "file", AtStart;

    /// Proxies whose X-Forwarded-For is trusted, as networks separated by spaces.
    /// Empty: none.
    auth_trusted_proxies: TrustedProxies = TrustedProxies::default(), "auth.trusted_proxies", "networks", AtStart;

    /// Certificate chain in PEM, the relay's own certificate first. With it and
    /// tls.key the public listener speaks TLS. The relay reloads changed files.
    tls_cert: Option<PathBuf> = None, "tls.cert", "file", AtReload;

    /// The certificate's private key in PEM.
    tls_key: Option<PathBuf> = None, "tls.key", "file", AtReload;

    /// Authorities in PEM that vouch for clients' certificates.
    tls_client_ca: Option<PathBuf> = None, "tls.client_ca", "file", AtReload;

    /// Whether clients present a certificate: off, optional or required. They need
    /// a token in addition. The log contains the certificate's subject.
    tls_client_auth: ClientAuth = ClientAuth::Off, "tls.client_auth", "off or optional or required", AtReload;

    /// Oldest version of TLS that is accepted. Our clients and stock ones speak
    /// 1.3, and only 1.3 has a key exchange that resists quantum computers.
    tls_min_version: TlsVersion = TlsVersion::Tls13, "tls.min_version", "1.3 or 1.2", AtReload;

    /// How long a TLS handshake may take, including the wait for its turn.
    tls_handshake_timeout: Duration = Duration::from_secs(10), "tls.handshake_timeout", "duration", AtStart;

    /// Most TLS handshakes that compute at once; further ones wait. Each blocks its
    /// processor for under a millisecond.
    tls_handshakes_max: usize = 16, "tls.handshakes_max", "handshakes", AtStart;

    /// How often the relay checks the files for changes.
    tls_reload_every: Duration = Duration::from_secs(5), "tls.reload_every", "duration", AtStart;

    /// Names of the certificate that the relay obtains by ACME, separated by
    /// spaces, instead of tls.cert; see Certificates by ACME. Empty: none.
    acme_domains: Domains = Domains::default(), "acme.domains", "domain names", AtStart;

    /// Whether you agree to the terms of service of acme.directory. The relay
    /// orders no certificate without it.
    acme_terms_agreed: bool = false, "acme.terms_agreed", "true or false", AtStart;

    /// Addresses that the authority may write to, separated by spaces. The relay
    /// sends them when it creates the account. Empty: none.
    acme_contact: Contacts = Contacts::default(), "acme.contact", "e-mail addresses", AtStart;

    /// Directory URL of the ACME server. The state directory holds an account and a
    /// certificate for each.
    acme_directory: Directory = Directory::default(), "acme.directory", "URL", AtStart;

    /// Authorities in PEM that sign the certificate of a private ACME server, in
    /// place of the system's.
    acme_root: Option<PathBuf> = None, "acme.root", "file", AtStart;

    /// Shortest wait after a failed order. It doubles twice; after further failures
    /// the wait is one to six hours.
    acme_retry: Duration = Duration::from_secs(60), "acme.retry", "duration", AtStart;

    /// How long a draining relay only answers /readyz with 503: the time that your
    /// balancer takes to notice. It is part of drain.deadline, and less than it.
    drain_announce: Duration = Duration::ZERO, "drain.announce", "duration", AtStart;

    /// When the relay exits after SIGTERM, even with open connections; more than 0s.
    drain_deadline: Duration = Duration::from_secs(20), "drain.deadline", "duration", AtStart;

    /// How many websockets per second may reconnect to the next relay. The
    /// reconnect window grows with their number.
    drain_reconnects_per_second: usize = 1000, "drain.reconnects_per_second", "websockets per second", AtStart;

    /// Bounds of the node as a whole. Omitted bounds keep their default; `none`
    /// removes one.
    quota_node: Bounds = Bounds::of(Quotas::default().node), "quota.node", "bounds", AtReload;

    /// Bounds of each environment.
    quota_environment: Bounds = Bounds::of(Quotas::default().environment), "quota.environment", "bounds", AtReload;

    /// Bounds of each token of orchestrators.
    quota_token: Bounds = Bounds::of(Quotas::default().token), "quota.token", "bounds", AtReload;

    /// Bounds of each token of executors.
    quota_executor_token: Bounds = Bounds::of(Quotas::default().executor_token), "quota.executor_token", "bounds", AtReload;

    /// Bounds of each websocket: memory and rates. A change applies to new
    /// websockets.
    quota_connection: Bounds = Bounds::of(Quotas::default().connection), "quota.connection", "bounds", AtReload;

    /// Bounds of single environments, by their ids. Omitted bounds are those of
    /// quota.environment.
    quota_environments: ById<EnvironmentId> = ById::default(), "quota.environments", "bounds per id", AtReload;

    /// Bounds of single tokens, by their ids, or by the jwt_... subject of tokens of
    /// other issuers. Omitted bounds are those of quota.token or quota.executor_token.
    quota_tokens: ById<Subject> = ById::default(), "quota.tokens", "bounds per id", AtReload;

    /// Most rows of the audit log. Older rows are removed after a checkpoint is
    /// written.
    audit_rows: u64 = limits::AUDIT_KEEP_ROWS, "audit.rows", "rows", AtReload;

    /// How long rows of the audit log are kept, at least 1h.
    audit_keep: Duration = limits::AUDIT_KEEP_AGE, "audit.keep", "duration", AtReload;

    /// How many connections of its executors the history of each environment
    /// keeps, the newest, at most 1000.
    history_connections: u32 = limits::CONNECTIONS_PER_ENVIRONMENT, "history.connections", "connections", AtReload;

    /// How long connections are kept after their end, at least 1h. The last one of
    /// each environment is always kept: it holds the reason why the executor is away.
    history_keep: Duration = limits::CONNECTIONS_KEEP_AGE, "history.keep", "duration", AtReload;

    /// Level of the log: off, error, warn, info, debug or trace.
    log_level: LogLevel = LogLevel::Info, "log.level", "level", AtReload;

    /// Format of the log on standard error: human, or json with one object per
    /// line.
    log_format: LogFormat = LogFormat::Human, "log.format", "human or json", AtStart;

    /// Collector for traces of calls and websockets, by OTLP over HTTP, such as
    /// http://127.0.0.1:4318/v1/traces. Empty: none. Credentials belong into the
    /// variable OTEL_EXPORTER_OTLP_HEADERS, as authorization=Basic%20dXNlcjpwYXNz.
    telemetry_otlp: Collector = Collector::default(), "telemetry.otlp", "URL", AtStart;
}

/// Returns the settings in force as a commented file that loads to the same
/// settings.
pub fn document(loaded: &Loaded<Config>) -> String {
    settings::document("The relay's settings in force.", loaded)
}

impl Config {
    /// The retention of the audit log.
    pub fn audit_keep(&self) -> AuditRetention {
        AuditRetention { rows: self.audit_rows, age: self.audit_keep }
    }

    /// The retention of the history of connections.
    pub fn history_keep(&self) -> HistoryRetention {
        HistoryRetention { connections: self.history_connections, age: self.history_keep }
    }

    /// The bounds of connections that have shown no valid token or ticket.
    pub(crate) fn strangers(&self) -> StrangerBounds {
        let share = (self.connections_max / 2).max(1);
        StrangerBounds {
            max: self.strangers_max.get().map(|max| max.min(share)),
            per_address: self.strangers_per_address.get(),
        }
    }

    /// The quotas of all levels.
    pub fn quotas(&self) -> Quotas {
        let default = Quotas::default();
        let environment = self.quota_environment.apply_to(default.environment);
        let token = self.quota_token.apply_to(default.token);
        let executor_token = self.quota_executor_token.apply_to(default.executor_token);
        Quotas {
            node: self.quota_node.apply_to(default.node),
            environment,
            token,
            executor_token,
            connection: self.quota_connection.apply_to(default.connection),
            environments: self.quota_environments.apply_to(environment),
            tokens: self.quota_tokens.apply_to(token),
            executor_tokens: self.quota_tokens.apply_to(executor_token),
        }
    }
}

#[cfg(test)]
mod tests;
