//! Runs every committed input through its target, on stable and without a
//! fuzzer. The test prints the name of each input, so the last line names the
//! one that failed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rendez_fuzz::{TARGETS, Target};

/// The limit of the committed inputs, which every clone of the repository
/// downloads.
const CORPUS_MAX_BYTES: u64 = 2 * 1024 * 1024;

fn folder(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(kind)
}

/// The files below `kind/name`, sorted; none if the folder does not exist.
fn inputs(kind: &str, name: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder(kind).join(name)) else { return Vec::new() };
    let mut files: Vec<PathBuf> =
        entries.map(|entry| entry.expect("the tree can be read").path()).collect();
    files.sort();
    files
}

fn target(name: &str) -> Target {
    let found = TARGETS.iter().find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("no target is called {name}")).1
}

fn replay(name: &str) {
    let target = target(name);
    let corpus = inputs("corpus", name);
    assert!(!corpus.is_empty(), "corpus/{name} is missing or empty: README.md says how to grow it");
    for path in corpus.iter().chain(&inputs("findings", name)) {
        println!(
            "{}",
            path.strip_prefix(env!("CARGO_MANIFEST_DIR")).expect("the tree can be read").display()
        );
        target(&fs::read(path).expect("the tree can be read"));
    }
    target(&[]);
}

macro_rules! replay {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                replay(stringify!($name));
            }
        )*

        #[test]
        fn every_target_has_replay_and_harness() {
            let replayed = BTreeSet::from([$(stringify!($name)),*]);
            assert_eq!(replayed, TARGETS.iter().map(|(name, _)| *name).collect());
            for (name, _) in TARGETS {
                let harness = folder("libfuzzer/fuzz_targets").join(format!("{name}.rs"));
                let text = fs::read_to_string(&harness).expect("the tree can be read");
                assert!(text.contains(&format!("rendez_fuzz::{name}::run(data)")), "{name}");
            }
        }
    };
}

replay! { frame peek framing handshake mux_ops mux_peer hub_ops ticket rpc registry }

#[test]
fn corpus_has_no_leftovers_and_stays_small() {
    let mut bytes = 0;
    for kind in ["corpus", "findings"] {
        for entry in fs::read_dir(folder(kind)).expect("the tree can be read") {
            let name = entry
                .expect("the tree can be read")
                .file_name()
                .into_string()
                .expect("the tree can be read");
            target(&name);
            bytes += inputs(kind, &name)
                .iter()
                .map(|path| path.metadata().expect("the tree can be read").len())
                .sum::<u64>();
        }
    }
    assert!(bytes <= CORPUS_MAX_BYTES, "{bytes} bytes: minimise it (README.md)");
}
