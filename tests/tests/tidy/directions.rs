//! Permitted dependencies between crates, so that Cargo enforces "the relay only
//! routes".
//!
//! Three dependencies of the pure crates look like exceptions:
//!
//! * `aws-lc-rs` contains a random generator. Endpoint core uses only its AEAD, in
//!   one file; `sources` checks that.
//! * `rand_core` and `rand_chacha` compute from a seed of the caller. `rand` is a
//!   dependency of `libcrux-traits`, without the feature that uses the operating
//!   system. All users of system randomness go through `getrandom`, so the rule
//!   forbids that crate. It checks each crate as built alone, because `proptest`
//!   enables the feature in the workspace's tests.
//! * `prost-build` names a temporary file with `getrandom`, on the build machine. A
//!   build script is not part of its product, so that rule counts only normal
//!   dependencies.

use crate::check;
use crate::graph::{Graph, run};

struct Rule {
    name: &'static str,
    crates: &'static [&'static str],
    /// Names of packages; `*` at the end stands for anything.
    forbidden: &'static [&'static str],
    what_to_do: &'static str,
}

const PURE: &[&str] = &["rendez-proto", "rendez-endpoint", "rendez-relay-core"];
const RELAY: &[&str] = &["rendez-relay-core", "rendez-registry", "rendez-relay"];
const LIBRARIES: &[&str] = &[
    "rendez-endpoint",
    "rendez-relay-core",
    "rendez-registry",
    "rendez-transport",
    "rendez-registry-client",
    "rendez-rpc",
    "rendez-orchestrator",
];
const ENDPOINTS: &[&str] =
    &["rendez-rpc", "rendez-registry-client", "rendez-executor-agent", "rendez-orchestrator"];

const RULES: &[Rule] = &[
    Rule {
        name: "R1: pure crates have no runtime, no sockets and no database",
        crates: PURE,
        forbidden: &[
            "tokio*",
            "mio",
            "socket2",
            "hyper*",
            "axum*",
            "tower*",
            "reqwest",
            "sqlx*",
            "tungstenite",
            "rustls*",
            "tracing*",
            "async-trait",
        ],
        what_to_do: "move what needs it into a shell crate (transport, rpc, registry, relay), and \
                     hand its results to the core as arguments",
    },
    Rule {
        name: "R3: the relay has no endpoint and no Noise",
        crates: RELAY,
        forbidden: &[
            "rendez-endpoint",
            "rendez-rpc",
            "rendez-registry-client",
            "rendez-executor-agent",
            "rendez-orchestrator",
            "snow",
            "clatter",
            "x25519-dalek",
            "libcrux-*",
        ],
        what_to_do: "the relay forwards bytes; whatever must open them belongs to an endpoint",
    },
    Rule {
        name: "R4: the registry does not know the relay",
        crates: &["rendez-registry"],
        forbidden: &["rendez-relay-core", "rendez-relay", "rendez-transport", "rendez-program"],
        what_to_do: "they meet in proto::ticket and in the traits of the registry's `traits` module",
    },
    Rule {
        name: "R5: transport knows neither endpoints nor relays",
        crates: &["rendez-transport"],
        forbidden: &["rendez-endpoint", "rendez-rpc", "rendez-registry*", "rendez-relay*"],
        what_to_do: "transport moves Bytes for whatever implements its Protocol trait",
    },
    Rule {
        name: "the ends do not link the relay",
        crates: ENDPOINTS,
        forbidden: &["rendez-registry", "rendez-relay*", "sqlx*", "axum*"],
        what_to_do: "only the cli and the tests may put both sides into one binary",
    },
    Rule {
        name: "R9: libraries do not link what only programs need",
        crates: LIBRARIES,
        forbidden: &["rendez-program", "clap", "tracing-subscriber"],
        what_to_do: "take the value as an argument; its program reads flags and settings",
    },
    Rule {
        name: "proto stands below everything of ours",
        crates: &["rendez-proto"],
        forbidden: &["rendez-*"],
        what_to_do: "move the shared type into proto, or the code that needs the other crate out",
    },
];

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    }
}

#[test]
fn dependencies_point_one_way() {
    let graph = Graph::host();
    let mut problems = Vec::new();
    for rule in RULES {
        let reached = rule.crates.iter().flat_map(|package| graph.reached(package));
        let mut chains = reached
            .filter(|(name, _)| rule.forbidden.iter().any(|pattern| matches(pattern, name)))
            .map(|(_, chain)| format!("  {chain}"))
            .peekable();
        if chains.peek().is_some() {
            problems.push(format!("{}; {}:", rule.name, rule.what_to_do));
            problems.extend(chains);
        }
    }
    check("a crate depends on what it must not:", problems);
}

/// A rule that names a crate which does not exist any more would pass forever.
#[test]
fn every_rule_names_existing_packages() {
    let graph = Graph::host();
    let names: Vec<&str> = graph.packages().map(|package| package.name.as_str()).collect();
    let mut problems = Vec::new();
    for rule in RULES {
        for pattern in rule.forbidden {
            if !names.iter().any(|name| matches(pattern, name)) {
                problems.push(format!("{}: {pattern}", rule.name));
            }
        }
    }
    check("no package in the graph has these names; correct or remove them:", problems);
    let endpoint = graph.reached("rendez-endpoint");
    assert_eq!(endpoint["rendez-proto"], "rendez-endpoint -> rendez-proto");
    assert!(endpoint.contains_key("snow") && endpoint.contains_key("libcrux-ml-kem"));
    assert!(endpoint.contains_key("prost-build"), "build dependencies count");
    assert!(!endpoint.contains_key("proptest"), "development dependencies do not");
}

#[test]
fn r1_pure_crates_use_no_system_randomness() {
    let mut problems = Vec::new();
    for package in PURE {
        let tree = ["tree", "--locked", "-p", package, "-e", "normal", "--prefix", "none"];
        let tree = run(env!("CARGO"), &tree);
        assert!(tree.starts_with(package), "cargo tree begins with the package:\n{tree}");
        let found = tree.lines().find(|line| line.starts_with("getrandom "));
        problems.extend(found.map(|found| format!("{package}: {found}")));
    }
    check(
        "R1: take a seed as an argument; if a dependency brings it in, switch off the feature \
         that does (`cargo tree -p PACKAGE -e features -i getrandom`):",
        problems,
    );
}
