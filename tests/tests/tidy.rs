//! Checks of the architecture and the house rules, over `cargo metadata` and the
//! sources. Each failure states the remedy.
//!
//! | module | checks |
//! | --- | --- |
//! | [`directions`] | which crate may link what (ARCHITECTURE.md, rules R1, R3, R4, R5, R9) |
//! | [`supply`] | licences, sources, one version of the big crates, unused dependencies |
//! | [`prose`] | plain words in comments, and that cited paths and sections exist |
//! | [`sources`] | the permitted contents of files (R2, R5 to R8), and the house rules |
//! | [`wasm`] | that the pure crates build for wasm32, which has no operating system |
//!
//! The source checks read text, not syntax: they cut off line comments and do not
//! expand macros. An exception is an entry in a list with its reason; an unused
//! entry fails, too.

#[path = "tidy/directions.rs"]
mod directions;
#[path = "tidy/graph.rs"]
mod graph;
#[path = "tidy/prose.rs"]
mod prose;
#[path = "tidy/sources.rs"]
mod sources;
#[path = "tidy/supply.rs"]
mod supply;
#[path = "tidy/tree.rs"]
mod tree;
#[path = "tidy/wasm.rs"]
mod wasm;

/// Fails with every problem at once, below the advice.
fn check(what_to_do: &str, problems: Vec<String>) {
    assert!(problems.is_empty(), "{what_to_do}\n  {}\n", problems.join("\n  "));
}

/// The unused entries of an exception list.
fn stale<'a>(list: impl IntoIterator<Item = &'a str>, used: &[&str]) -> Vec<String> {
    list.into_iter()
        .filter(|entry| !used.contains(entry))
        .map(|entry| format!("{entry}: nothing needs this exception any more; remove it"))
        .collect()
}
