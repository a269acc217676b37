//! Third-party crates: their sources and licences.

use std::collections::{BTreeMap, BTreeSet};

use crate::graph::Graph;
use crate::tree::{self, contains_word};
use crate::{check, stale};

/// Accepted licences, by SPDX id. All of them permit binary distribution with a
/// notice.
const LICENCES: &[&str] =
    &["Apache-2.0", "BSD-3-Clause", "ISC", "MIT", "MIT-0", "Unicode-3.0", "Zlib"];

/// Two versions of one of these are two runtimes, two sets of types that do not
/// fit each other, or twice the cryptography.
const ONE_VERSION: &[&str] = &[
    "aws-lc-rs",
    "axum",
    "bytes",
    "clatter",
    "ed25519-dalek",
    "http",
    "hyper",
    "libcrux-ml-kem",
    "prost",
    "reqwest",
    "rustls",
    "serde",
    "serde_json",
    "snow",
    "sqlx",
    "tokio",
    "tokio-tungstenite",
    "tracing",
    "tungstenite",
    "x25519-dalek",
];

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

#[test]
fn licences_are_on_the_list() {
    let mut problems = Vec::new();
    let mut used = BTreeSet::new();
    for package in Graph::host().packages() {
        let crate_version = format!("{} {}", package.name, package.version);
        match &package.license {
            None => problems.push(format!("{crate_version}: no licence in its manifest")),
            Some(terms) => match accepted(terms) {
                Some(needed) => used.extend(needed),
                None => problems.push(format!("{crate_version}: {terms}")),
            },
        }
    }
    let used: Vec<&str> = used.into_iter().collect();
    problems.extend(stale(LICENCES.iter().copied(), &used));
    check(
        "these terms are not on the list in tests/tests/tidy/supply.rs; take another crate, or \
         read the licence, decide, and add its SPDX id with what it covers:",
        problems,
    );
}

#[test]
fn dependencies_come_from_crates_io() {
    let mut problems = Vec::new();
    let root = crate::graph::root();
    for package in Graph::host().packages() {
        let crate_version = format!("{} {}", package.name, package.version);
        match &package.source {
            Some(source) if source.repr == CRATES_IO => {}
            Some(source) => problems.push(format!("{crate_version}: {source}")),
            None if package.manifest_path.starts_with(&root) => {}
            None => problems.push(format!("{crate_version}: {}", package.manifest_path)),
        }
    }
    let members = Graph::host().members();
    for package in Graph::host().packages().filter(|package| package.source.is_none()) {
        if !members.iter().any(|member| member.id == package.id) {
            problems.push(format!("{}: not a member of the workspace", package.name));
        }
    }
    check("take a published version; no git sources and no folders from elsewhere:", problems);
}

#[test]
fn big_crates_have_one_version() {
    let mut versions: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for package in Graph::host().packages() {
        versions.entry(package.name.as_str()).or_default().insert(package.version.to_string());
    }
    let problems = ONE_VERSION.iter().filter_map(|name| match versions.get(name) {
        Some(found) if found.len() == 1 => None,
        Some(found) => Some(format!("{name}: {found:?}")),
        None => Some(format!("{name}: not in the graph any more; remove it from the list")),
    });
    check("align the versions (`cargo tree -d` shows the dependents):", problems.collect());
}

#[test]
fn no_dependency_is_unused() {
    let sources = tree::rust_sources();
    let mut problems = Vec::new();
    for member in Graph::host().members() {
        let own: Vec<_> = sources.iter().filter(|source| member.name == source.package).collect();
        for dependency in &member.dependencies {
            let name = dependency.rename.as_ref().unwrap_or(&dependency.name).replace('-', "_");
            if !own.iter().any(|source| source.lines().any(|line| contains_word(line.code, &name)))
            {
                problems.push(format!("{}: {}", member.name, dependency.name));
            }
        }
    }
    check("remove these lines from the manifests; no source names the crate:", problems);
}

// ---- SPDX ------------------------------------------------------------------

/// The accepted ids that satisfy a licence expression, or `None`. `/` is the old
/// form of OR; brackets nest.
fn accepted(expression: &str) -> Option<Vec<&'static str>> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    let accepted = any_of(&mut rest);
    assert!(rest.is_empty(), "cannot read the licence expression {expression:?}");
    accepted
}

fn any_of(rest: &mut &[&str]) -> Option<Vec<&'static str>> {
    let mut best = all_of(rest);
    while let ["OR", tail @ ..] = rest {
        *rest = tail;
        let other = all_of(rest);
        best = best.or(other);
    }
    best
}

fn all_of(rest: &mut &[&str]) -> Option<Vec<&'static str>> {
    let mut all = one(rest);
    while let ["AND", tail @ ..] = rest {
        *rest = tail;
        let other = one(rest);
        all = all.zip(other).map(|(mut all, other)| {
            all.extend(other);
            all
        });
    }
    all
}

fn one(rest: &mut &[&str]) -> Option<Vec<&'static str>> {
    match rest {
        ["(", tail @ ..] => {
            *rest = tail;
            let inner = any_of(rest);
            assert_eq!(rest.first(), Some(&")"), "unbalanced licence expression");
            *rest = &rest[1..];
            inner
        }
        // an exception only grants more rights
        [id, "WITH", _, tail @ ..] | [id, tail @ ..] => {
            let known = LICENCES.iter().find(|known| *known == id);
            *rest = tail;
            known.map(|known| vec![*known])
        }
        [] => None,
    }
}

#[test]
fn spdx_expressions_are_evaluated() {
    assert_eq!(accepted("MIT"), Some(vec!["MIT"]));
    assert_eq!(accepted("GPL-3.0-only"), None);
    assert_eq!(accepted("GPL-3.0-only OR MIT"), Some(vec!["MIT"]));
    assert_eq!(accepted("GPL-3.0-only AND MIT"), None);
    assert_eq!(accepted("Unlicense/MIT"), Some(vec!["MIT"]));
    assert_eq!(accepted("Apache-2.0 WITH LLVM-exception OR X"), Some(vec!["Apache-2.0"]));
    assert_eq!(accepted("(X OR MIT) AND Unicode-3.0"), Some(vec!["MIT", "Unicode-3.0"]));
    assert_eq!(accepted("ISC AND (X AND MIT)"), None);
}
