//! What holds the architecture together, checked over `cargo metadata` and
//! over the sources. Each failure says what to do.
//!
//! | module | checks |
//! | --- | --- |
//! | [`directions`] | which crate may link what (ARCHITECTURE.md, rules R1, R3, R4, R5, R9) |
//! | [`supply`] | licences, sources, one version of the big crates, unused dependencies |
//! | [`sources`] | what may stand in which file (R2, R5 to R8), and the house rules |
//! | [`wasm`] | that the pure crates build for wasm32, where there is nothing to cheat with |
//!
//! The source checks read text, not syntax: line comments are cut off, and
//! what a macro makes is not seen. An exception is an entry in a list with its
//! reason; an entry that nothing needs any more fails, too.

#[path = "tidy/directions.rs"]
mod directions;
#[path = "tidy/graph.rs"]
mod graph;
#[path = "tidy/sources.rs"]
mod sources;
#[path = "tidy/supply.rs"]
mod supply;
#[path = "tidy/tree.rs"]
mod tree;
#[path = "tidy/wasm.rs"]
mod wasm;

/// Fails with every problem at once, under what to do about them.
fn check(what_to_do: &str, problems: Vec<String>) {
    assert!(problems.is_empty(), "{what_to_do}\n  {}\n", problems.join("\n  "));
}

/// The entries of an exception list that `used` does not need any more.
fn stale<'a>(list: impl IntoIterator<Item = &'a str>, used: &[&str]) -> Vec<String> {
    list.into_iter()
        .filter(|entry| !used.contains(entry))
        .map(|entry| format!("{entry}: nothing needs this exception any more; remove it"))
        .collect()
}
