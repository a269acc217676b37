//! `docs/operating.md` documents settings, metrics, admin calls, close codes and
//! reset reasons as they are in the code. On a difference the test prints the wanted
//! text; with `BLESS=1` in the environment it writes the tables of settings and
//! metrics.
#![allow(clippy::unwrap_used, reason = "all of it is a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use rendez_program::settings::{Layers, reference};
use rendez_program::signals::Shutdown;
use rendez_proto::close::CloseFrame;
use rendez_proto::frame::ResetReason;
use rendez_proto::registry::environments::EndReason;
use rendez_registry::stats::StoreCall;
use rendez_relay::Relay;
use rendez_relay::config::{Config, MaybeListen};
use rendez_relay::connections::End;
use rendez_relay_core::Dropped;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operating.md")
}

fn documentation() -> String {
    std::fs::read_to_string(path()).unwrap()
}

/// Requires `wanted` between `<!-- NAME -->` and `<!-- end -->`.
fn check(name: &str, wanted: &str) {
    static WRITING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = WRITING.lock();
    let text = documentation();
    let (before, rest) = text.split_once(&format!("<!-- {name} -->\n")).unwrap();
    let (found, after) = rest.split_once("<!-- end -->").unwrap();
    if std::env::var_os("BLESS").is_some() {
        let text = format!("{before}<!-- {name} -->\n{wanted}<!-- end -->{after}");
        std::fs::write(path(), text).unwrap();
        return;
    }
    assert!(
        found == wanted,
        "between `<!-- {name} -->` and `<!-- end -->` of docs/operating.md belongs (BLESS=1 \
         writes it):\n\n{wanted}\n"
    );
}

#[test]
fn settings_are_documented() {
    check("settings", &reference::<Config>());
}

#[test]
fn example_settings_are_valid() {
    let file = path().with_file_name("../deploy/relay.toml");
    let layers = Layers { file: Some(file), overrides: Vec::new() };
    let config = layers.load::<Config>().unwrap().config;
    assert!(!config.admin_on_public && config.admin_listen != MaybeListen::Off);
    assert_ne!(
        config.auth_trusted_proxies,
        Default::default(),
        "the example is for a relay behind a proxy"
    );
}

/// Without X-Forwarded-For a client could forge its address. With a logged query,
/// tickets that are valid for hours are in a log.
#[test]
fn example_proxy_forwards_addresses_and_logs_no_ticket() {
    let file = path().with_file_name("../deploy/proxy/nginx.conf");
    let text = std::fs::read_to_string(file).unwrap();
    let (server, locations) = text.split_once("location = /v1/rendezvous {").unwrap();
    assert!(server.contains("proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"));
    // A location that sets one header inherits none.
    assert!(!locations.contains("proxy_set_header"));
    let (rendezvous, _) = locations.split_once('}').unwrap();
    assert!(rendezvous.contains("error_log /dev/null;"));
    for word in ["$request ", "$request_uri", "$args", "$query_string", "combined"] {
        assert!(!text.contains(word), "{word} holds the ticket");
    }
}

/// A stock executor ends when a proxy refuses its registration or its validation.
#[test]
fn example_proxy_limits_exempt_executors() {
    let file = path().with_file_name("../deploy/proxy/nginx.conf");
    let text = std::fs::read_to_string(file).unwrap();
    let (_, rest) = text.split_once("map $uri $limited_address {").unwrap();
    let (map, rest) = rest.split_once('}').unwrap();
    let exempt: Vec<_> = map.lines().filter_map(|line| line.trim().strip_suffix("'';")).collect();
    let exempt: Vec<_> = exempt.into_iter().map(str::trim).collect();
    assert_eq!(
        exempt,
        [
            "~^/cloud/environment/[^/]+/register$",
            "~^/cloud/environment/[^/]+/validate$",
            "/v1/rendezvous"
        ]
    );
    for zone in ["limit_conn_zone $limited_address ", "limit_req_zone  $limited_address "] {
        assert!(rest.contains(zone), "{zone}");
    }
    let limited = rest.split_once("return 429 '").unwrap().1.split_once('\'').unwrap().0;
    let body: serde_json::Value = serde_json::from_str(limited).unwrap();
    assert_eq!(body["error"]["code"], "limit_reached");
}

#[test]
fn close_codes_and_reset_reasons_are_documented() {
    let text = documentation();
    for frame in CloseFrame::BY_RELAY {
        let row = format!("| {} | `{}` |", frame.code, frame.reason);
        assert!(text.contains(&row), "a row of close codes is missing: {row}");
    }
    for reason in ResetReason::ALL {
        let row = format!("| `{}` |", reason.as_str());
        assert!(text.contains(&row), "a row of reset reasons is missing: {row}");
    }
}

#[test]
fn every_call_of_the_admin_api_is_documented() {
    let document = std::fs::read_to_string(path().with_file_name("openapi.json")).unwrap();
    let document: serde_json::Value = serde_json::from_str(&document).unwrap();
    let text = documentation();
    let mut calls = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            let call = format!("{} {path}", method.to_uppercase());
            let followed = ["`", "?"].map(|end| format!("`{call}{end}"));
            assert!(followed.iter().any(|call| text.contains(call)), "{call} is missing");
            calls += 1;
        }
    }
    assert!(calls > 10, "{calls} calls");
}

/// Serves a relay for one scrape.
async fn scrape() -> String {
    let state = tempfile::tempdir().unwrap();
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let relay = Relay::bind(Config {
        listen: loopback,
        admin_listen: MaybeListen::On(loopback),
        state: state.path().to_owned(),
        ..Config::default()
    });
    let relay = relay.await.unwrap();
    let (public, admin) = (relay.local_addr(), relay.admin_addr().unwrap());
    let stop = Shutdown::default();
    let serving = tokio::spawn(relay.serve(stop.clone()));
    assert!(
        get(public, "/metrics").await.starts_with("HTTP/1.1 404"),
        "only the admin listener serves metrics"
    );
    assert!(get(admin, "/cloud/environment/a/connect").await.starts_with("HTTP/1.1 404"));
    assert!(get(admin, "/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(
        get(admin, "/v1/tokens").await.starts_with("HTTP/1.1 401"),
        "the admin listener requires tokens too"
    );
    let answer = get(admin, "/metrics").await;
    stop.graceful.cancel();
    serving.await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    body.to_owned()
}

async fn get(address: SocketAddr, path: &str) -> String {
    let exchange = async {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: relay\r\nconnection: close\r\n\r\n");
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await.unwrap();
        answer
    };
    tokio::time::timeout(Duration::from_secs(60), exchange).await.unwrap()
}

/// A metric of a scrape.
#[derive(Default)]
struct Family {
    kind: String,
    help: String,
    /// Values of each label.
    labels: BTreeMap<String, BTreeSet<String>>,
    series: BTreeSet<String>,
}

/// Parses the text format as strictly as Prometheus.
fn families(text: &str) -> BTreeMap<String, Family> {
    let body = text.strip_suffix("# EOF\n").expect("ends with # EOF");
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            let family = Family { help: help.to_owned(), ..Family::default() };
            assert!(families.insert(name.to_owned(), family).is_none(), "{name} twice");
            current = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, current, "HELP and TYPE are adjacent");
            families.get_mut(name).unwrap().kind = kind.to_owned();
        } else {
            sample(line, &current, families.get_mut(&current).unwrap());
        }
    }
    families
}

fn sample(line: &str, name: &str, family: &mut Family) {
    let (series, value) = line.rsplit_once(' ').unwrap();
    assert!(value.parse::<f64>().is_ok_and(f64::is_finite), "{line}");
    assert!(family.series.insert(series.to_owned()), "{series} twice");
    let (full, labels) = series.split_once('{').unwrap_or((series, "}"));
    let suffixes: &[&str] = match family.kind.as_str() {
        "counter" => &["_total"],
        "gauge" => &[""],
        "histogram" => &["_bucket", "_sum", "_count"],
        other => panic!("{name} is a {other}"),
    };
    assert!(suffixes.iter().any(|suffix| full == format!("{name}{suffix}")), "{line} of {name}");
    for pair in labels.strip_suffix('}').unwrap().split(',').filter(|pair| !pair.is_empty()) {
        let (label, value) = pair.split_once('=').unwrap();
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap();
        let plain = |c: char| c.is_ascii_alphanumeric() || "_.+-".contains(c);
        assert!(value.chars().all(plain) && !value.is_empty(), "{line}");
        if label != "le" {
            family.labels.entry(label.to_owned()).or_default().insert(value.to_owned());
        }
    }
}

fn table(families: &BTreeMap<String, Family>) -> String {
    let mut text = "| metric | kind | labels | meaning |\n| --- | --- | --- | --- |\n".to_owned();
    for (name, family) in families {
        let total = if family.kind == "counter" { "_total" } else { "" };
        let labels: Vec<_> = family.labels.keys().map(|label| format!("`{label}`")).collect();
        let labels = labels.join(", ");
        let _ =
            writeln!(text, "| `{name}{total}` | {} | {labels} | {} |", family.kind, family.help);
    }
    text
}

#[tokio::test]
async fn metrics_are_documented_with_closed_label_sets() {
    let text = scrape().await;
    // The relay lists its tokens when it starts.
    let count_of = "\nrendez_database_seconds_count{operation=\"read_tokens\"} ";
    let (_, count) = text.split_once(count_of).unwrap();
    assert!(!count.starts_with('0'), "{text}");
    let families = families(&text);
    check("metrics", &table(&families));
    let values = |metric: &str, label: &str| families[metric].labels[label].clone();
    let set = |words: Vec<&str>| words.into_iter().map(str::to_owned).collect::<BTreeSet<_>>();
    let dropped = set(Dropped::ALL.iter().map(|why| why.as_str()).collect());
    assert_eq!(values("rendez_relay_frames_dropped", "reason"), dropped);
    let resets = set(ResetReason::ALL.iter().map(|why| why.as_str()).collect());
    assert_eq!(values("rendez_relay_stream_resets", "reason"), resets);
    let ends = set(End::ALL.iter().map(|end| end.as_str()).collect());
    assert_eq!(values("rendez_relay_websockets_closed", "reason"), ends);
    let calls = set(StoreCall::ALL.iter().map(|call| call.as_str()).collect());
    assert_eq!(values("rendez_database_seconds", "operation"), calls);
    assert_eq!(values("rendez_database_failures", "operation"), calls);
    let mut before = set(EndReason::ALL.iter().map(|why| why.as_str()).collect());
    before.insert("none".to_owned());
    assert_eq!(values("rendez_relay_executor_connections", "after"), before);
    for lost in ["rendez_rows_lost", "rendez_rows_unwritten"] {
        assert_eq!(values(lost, "log"), set(vec!["audit", "history"]));
    }
    assert_eq!(values("rendez_relay_connections", "role"), set(vec!["executor", "orchestrator"]));
    for (name, family) in &families {
        let named = name.starts_with("rendez_") || name.starts_with("process_");
        assert!(named && family.help.ends_with('.'), "{name}: {}", family.help);
        let series: usize = family.series.len();
        assert!((1..=1000).contains(&series), "{name} has {series} series from the start");
    }
}
