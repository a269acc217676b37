//! Permitted contents of source files.

use std::fs;

use crate::graph::{Graph, root};
use crate::tree::{Line, Source, contains_word, rust_sources, text_files};
use crate::{check, stale};

/// Directories of the pure crates.
const PURE: &[&str] = &["proto/", "endpoint/core/", "relay/core/"];

/// The most lines of a file, its test module not counted.
const LINES_MAX: usize = 600;

/// Longer files, and the reason.
const LONGER: &[(&str, &str)] = &[];

/// Tests that sleep, and why the sleep is not synchronisation.
const SLEEPS_IN_TESTS: &[(&str, &str)] = &[
    (
        "transport/src/pump/tests.rs",
        "the clock is stopped, and what wakes up before the end is counted",
    ),
    ("tests/benches/idle.rs", "it measures a stretch of time, and clients back off"),
    ("tests/benches/hostile.rs", "it sends at a rate and attacks for a stretch of time"),
    ("tests/benches/paths/wire.rs", "a link with a delay is what a sleep is for"),
    ("tests/benches/fairness.rs", "a stream that stands still announces nothing"),
    (
        "tests/src/stock/app_server.rs",
        "polls another process's state, which announces nothing, until a deadline",
    ),
    ("tests/src/survive/faults.rs", "how long an outage lasts is what is tested"),
];

/// Serialized types outside of proto.
const SERIALIZED: &[(&str, &str)] =
    &[("cli/src/dev/context.rs", "the command line's own file, which only it reads")];

/// Crates with more than one `select!`.
const MORE_SELECTS: &[(&str, &str)] = &[];

/// The most lines of a `select!` from its name to its closing bracket.
const SELECT_LINES_MAX: usize = 10;

fn is_in(source: &Source, folders: &[&str]) -> bool {
    folders.iter().any(|folder| source.path.starts_with(folder))
}

/// The tidy tests contain the words that they search for.
fn is_tidy(path: &str) -> bool {
    path.starts_with("tests/tests/tidy")
}

/// `path:line` of each line that `wanted` picks.
fn lines_where(wanted: impl Fn(&Source, &Line<'_>) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for source in rust_sources().iter().filter(|source| !is_tidy(&source.path)) {
        for line in source.lines().filter(|line| wanted(source, line)) {
            found.push(format!("{}:{}: {}", source.path, line.number, line.code.trim()));
        }
    }
    found
}

/// The findings without an exception, and the exceptions without a finding.
fn except(found: Vec<String>, list: &[(&'static str, &str)]) -> Vec<String> {
    let file = |finding: &str| finding.split(':').next().unwrap_or_default().to_owned();
    let used: Vec<String> = found.iter().map(|finding| file(finding)).collect();
    let used: Vec<&str> = used.iter().map(String::as_str).collect();
    let mut problems = stale(list.iter().map(|(path, _)| *path), &used);
    problems.extend(
        found.into_iter().filter(|finding| !list.iter().any(|(path, _)| *path == file(finding))),
    );
    problems
}

// ---- architecture ------------------------------------------------------------

#[test]
fn r1_pure_crates_use_no_system_apis() {
    // Of `std::io`, traits and errors are pure; the standard streams are not.
    const MODULES: [&str; 8] = [
        "std::env",
        "std::fs",
        "io::stdin",
        "io::stdout",
        "io::stderr",
        "std::net",
        "std::process",
        "std::thread",
    ];
    let found = lines_where(|source, line| {
        is_in(source, PURE)
            && !line.test
            && !source.path.ends_with("build.rs")
            && MODULES.iter().any(|module| contains_word(line.code, module))
    });
    check("R1: take it as an argument, or move the code into a shell crate:", found);
}

#[test]
fn r1_only_aead_of_aws_lc_is_used() {
    let found = lines_where(|source, line| {
        is_in(source, PURE)
            && contains_word(line.code, "aws_lc_rs")
            && !(source.path == "endpoint/core/src/noise/aead.rs"
                && line.code.contains("aws_lc_rs::aead::"))
    });
    check(
        "R1: its random generator is the operating system's; use noise::aead, and a seed:",
        found,
    );
}

#[test]
fn r2_pure_crates_ban_clocks_threads_and_random_order() {
    const BANNED: [&str; 5] = [
        "std::time::Instant::now",
        "std::time::SystemTime::now",
        "std::thread::spawn",
        "std::collections::HashMap::iter",
        "std::collections::HashSet::iter",
    ];
    let mut problems = Vec::new();
    for folder in PURE {
        let path = format!("{folder}clippy.toml");
        let text = fs::read_to_string(root().join(&path)).unwrap_or_default();
        for method in BANNED {
            if !text.contains(&format!("\"{method}\"")) {
                problems.push(format!("{path}: {method}"));
            }
        }
    }
    check("R2: add these to `disallowed-methods`, so that clippy refuses them:", problems);
}

#[test]
fn r5_transport_does_not_parse_messages() {
    const MODULES: [&str; 4] = ["frame", "peek", "rpc", "ticket"];
    let found = lines_where(|source, line| {
        is_in(source, &["transport/"])
            && MODULES
                .iter()
                .any(|module| contains_word(line.code, &format!("rendez_proto::{module}")))
    });
    check("R5: transport moves Bytes; what they mean is for its Protocol:", found);
}

#[test]
fn r6_only_proto_defines_serialized_types() {
    let mut found = Vec::new();
    for source in rust_sources() {
        if is_in(&source, &["proto/"]) || is_tidy(&source.path) {
            continue;
        }
        let mut in_derive = false;
        for line in source.lines().filter(|line| !line.test) {
            in_derive |= line.code.trim_start().starts_with("#[derive(");
            if in_derive && contains_word(line.code, "Serialize") {
                found.push(format!("{}:{}: {}", source.path, line.number, line.code.trim()));
            }
            in_derive &= !line.code.contains(")]");
        }
    }
    check(
        "R6: define the format in proto and convert; a file that only its writer reads may go on \
         the list SERIALIZED:",
        except(found, SERIALIZED),
    );
}

#[test]
fn r7_only_programs_use_anyhow() {
    let found = lines_where(|source, line| {
        let edge = source.path.ends_with("src/main.rs") || source.path.starts_with("cli/");
        contains_word(line.code, "anyhow") && !edge && !line.test
    });
    check("R7: return an enum that names the cause; callers cannot match on anyhow:", found);
}

#[test]
fn r8_select_is_rare_and_small() {
    let mut problems = Vec::new();
    let mut used = Vec::new();
    for member in Graph::host().members() {
        let mut found = Vec::new();
        let sources = rust_sources();
        for source in sources.iter().filter(|source| source.package == member.name.as_str()) {
            if is_tidy(&source.path) {
                continue;
            }
            let lines: Vec<Line<'_>> = source.lines().collect();
            for (index, line) in lines.iter().enumerate() {
                if line.test || !line.code.contains("select!") {
                    continue;
                }
                found.push(format!("{}:{}", source.path, line.number));
                let length = block_length(&lines[index..]);
                if length > SELECT_LINES_MAX {
                    problems.push(format!("{}:{}: {length} lines", source.path, line.number));
                }
            }
        }
        let name = member.name.as_str();
        if let Some((entry, _)) = MORE_SELECTS.iter().find(|(entry, _)| *entry == name) {
            if found.len() > 1 {
                used.push(*entry);
            }
        } else if found.len() > 1 {
            problems.push(format!("{name}: {} of them: {}", found.len(), found.join(", ")));
        }
        println!("{name}: {} select!", found.len());
    }
    problems.extend(stale(MORE_SELECTS.iter().map(|(entry, _)| *entry), &used));
    check(
        "R8: one select! per crate, of at most 10 lines. What it cancels halfway is hard to see: \
         use run_until_cancelled, timeout or a task; a second one goes on the list MORE_SELECTS:",
        problems,
    );
}

/// Lines from a macro's name to its closing bracket.
fn block_length(lines: &[Line<'_>]) -> usize {
    let mut depth = 0;
    for (index, line) in lines.iter().enumerate() {
        let from = if index == 0 { line.code.find("select!").unwrap_or_default() } else { 0 };
        for c in line.code[from..].chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 1 => return index + 1,
                '}' => depth -= 1,
                _ => {}
            }
        }
    }
    lines.len()
}

// ---- house rules ---------------------------------------------------------------

#[test]
fn no_todo_markers() {
    const WORDS: [&str; 6] = ["todo!", "unimplemented!", "dbg!", "TODO", "FIXME", "XXX"];
    let mut found = Vec::new();
    for source in rust_sources().iter().filter(|source| !is_tidy(&source.path)) {
        for (index, line) in source.text.lines().enumerate() {
            if WORDS.iter().any(|word| line.contains(word)) {
                found.push(format!("{}:{}: {}", source.path, index + 1, line.trim()));
            }
        }
    }
    check("do it, or open an issue and delete the line:", found);
}

#[test]
fn no_test_is_ignored() {
    let found = lines_where(|_, line| {
        line.code.trim_start().starts_with("#[") && contains_word(line.code, "ignore")
    });
    check("a test that does not run holds nothing; repair or delete it:", found);
}

#[test]
fn no_test_waits_by_sleeping() {
    let found = lines_where(|_, line| line.test && contains_word(line.code, "sleep"))
        .into_iter()
        .filter(|line| line.contains("sleep(") || line.contains("sleep_until("))
        .collect();
    check(
        "wait for an event with a deadline, or stop tokio's clock; what is neither goes on the \
         list SLEEPS_IN_TESTS with its reason:",
        except(found, SLEEPS_IN_TESTS),
    );
}

#[test]
fn no_machine_specific_paths() {
    const FOLDERS: [&str; 3] = ["/work", "/root", "/home"];
    // the home directory in tests that need one
    const EXAMPLE: &str = "/home/me";
    let mut found = Vec::new();
    for (path, text) in text_files() {
        for (index, line) in text.lines().enumerate() {
            let line = line.replace(EXAMPLE, "");
            let hit = FOLDERS.iter().any(|folder| {
                line.match_indices(&format!("{folder}/")).any(|(at, _)| {
                    !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-})*".contains(c))
                })
            });
            if hit && !is_tidy(&path) {
                found.push(format!("{path}:{}: {}", index + 1, line.trim()));
            }
        }
    }
    check("these paths exist on one machine only; use a relative or a temporary one:", found);
}

#[test]
fn every_file_has_a_module_doc() {
    let silent = |source: &Source| {
        let mut lines = source.text.lines().filter(|line| !line.is_empty());
        !lines.next().is_some_and(|line| line.starts_with("//!"))
    };
    let sources = rust_sources();
    let found = sources.iter().filter(|source| silent(source));
    check(
        "begin with `//!` and what the module holds true:",
        found.map(|source| source.path.clone()).collect(),
    );
}

#[test]
fn no_file_is_too_long() {
    let sources = rust_sources();
    let long = sources.iter().filter(|source| !source.test && source.length() > LINES_MAX);
    let long = long.map(|source| format!("{}: {} lines", source.path, source.length()));
    check(
        "over 600 lines without tests; a file has one job, so split it, or say on the list \
         LONGER why it has one:",
        except(long.collect(), LONGER),
    );
}

#[test]
fn crates_inherit_workspace_lints_and_versions() {
    let mut problems = Vec::new();
    for member in Graph::host().members() {
        let text = fs::read_to_string(&member.manifest_path).expect("manifests can be read");
        let mut section = "";
        let mut lints = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with('[') {
                section = line;
            } else if section == "[lints]" {
                lints |= line == "workspace = true";
            } else if section.contains("dependencies]")
                && !line.is_empty()
                && !line.starts_with('#')
            {
                if !line.contains("workspace = true") {
                    problems.push(format!("{}: {line}", member.manifest_path));
                }
            } else if line.starts_with("version =") {
                problems.push(format!("{}: {line}", member.manifest_path));
            }
        }
        if !lints {
            problems.push(format!("{}: no `[lints] workspace = true`", member.manifest_path));
        }
        if member.license.is_none() || member.description.is_none() {
            problems.push(format!("{}: no licence or no description", member.manifest_path));
        }
    }
    check("say it in the root's manifest and write `workspace = true` here:", problems);
}
