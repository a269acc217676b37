//! Comments and documents: plain words, and references that resolve.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::check;
use crate::graph::{Graph, root};
use crate::tree::{contains_word, rust_sources, text_files};

/// The most lines with one of these idioms, per 1,000 lines of comments.
const PER_THOUSAND: usize = 1;

/// Pronouns without an antecedent hide who acts.
const PRONOUNS: [&str; 4] = ["nobody", "somebody", "everybody", "whoever"];
/// A summary is a noun phrase or a verb, not a relative clause.
const CLAUSES: [&str; 3] = ["What", "Who", "Whoever"];
/// Programs return, log, report or send.
const SPEECH: [&str; 4] = ["told", "tells", "says", "said"];

/// Kinds of files whose comments or text cite paths.
const CITING: [&str; 5] = [".rs", ".md", ".toml", ".sh", ".proto"];

/// A directory that exists only after an installation.
const INSTALLED: &str = "tests/.stock/";

/// Marks in a path that stand for several files, or for one that does not exist
/// yet.
const PATTERNS: [char; 7] = ['*', '{', '<', '$', '[', '…', '~'];

/// The comment that begins a line, without its marks.
fn comment(line: &str) -> Option<&str> {
    let text = line.trim_start().strip_prefix("//")?;
    Some(text.trim_start_matches(['/', '!']).trim_start())
}

/// `path:line: text` of each comment line in which `idiom` is found, and how
/// many comment lines there are.
fn comments_with(idiom: impl Fn(&str) -> bool) -> (Vec<String>, usize) {
    let (mut found, mut lines) = (Vec::new(), 0);
    for source in rust_sources() {
        for (index, line) in source.text.lines().enumerate() {
            let Some(text) = comment(line) else { continue };
            lines += 1;
            if idiom(text) {
                found.push(format!("{}:{}: {text}", source.path, index + 1));
            }
        }
    }
    (found, lines)
}

fn check_rate(what_to_do: &str, idiom: impl Fn(&str) -> bool) {
    let (found, lines) = comments_with(idiom);
    println!("{} of {lines} comment lines", found.len());
    if found.len() * 1000 > lines * PER_THOUSAND {
        check(what_to_do, found);
    }
}

#[test]
fn comments_name_who_acts() {
    check_rate("name the part that acts (the relay, the executor, a caller):", |text| {
        let text = text.to_lowercase();
        PRONOUNS.iter().any(|word| contains_word(&text, word))
    });
}

#[test]
fn comments_do_not_begin_with_relative_clauses() {
    check_rate("begin with a noun or a verb (\"The token that ...\", \"Returns ...\"):", |text| {
        CLAUSES.iter().any(|word| text.strip_prefix(word).is_some_and(|rest| !part_of_word(rest)))
    });
}

#[test]
fn comments_do_not_let_programs_speak() {
    check_rate("write returns, logs, reports, sends or states:", |text| {
        let text = text.to_lowercase();
        SPEECH.iter().any(|word| contains_word(&text, word))
    });
}

fn part_of_word(rest: &str) -> bool {
    rest.starts_with(|c: char| c.is_alphanumeric() || c == '_')
}

#[test]
fn doc_comments_do_not_only_point_at_the_module() {
    let mut found = Vec::new();
    for source in rust_sources() {
        let lines: Vec<&str> = source.text.lines().map(str::trim).collect();
        let doc = |index: Option<usize>| {
            index.and_then(|index| lines.get(index)).is_some_and(|line| line.starts_with("///"))
        };
        for (index, line) in lines.iter().enumerate() {
            let alone = !doc(index.checked_sub(1)) && !doc(Some(index + 1));
            if alone && *line == concat!("/// ", "See the module.") {
                found.push(format!("{}:{}", source.path, index + 1));
            }
        }
    }
    check("describe the item itself, or delete the line:", found);
}

// ---- references ----------------------------------------------------------------

/// A path that a line cites, perhaps with an anchor.
#[derive(Debug, PartialEq, Eq)]
struct Citation<'a> {
    path: &'a str,
    anchor: Option<&'a str>,
}

/// The paths in `text` that begin with one of `folders`.
fn citations<'a>(text: &'a str, folders: &BTreeSet<String>) -> Vec<Citation<'a>> {
    let in_path = |c: char| c.is_alphanumeric() || "/._-#".contains(c) || PATTERNS.contains(&c);
    let mut found = Vec::new();
    for word in text.split(|c| !in_path(c)) {
        let word = word.trim_end_matches(['.', '-']);
        let (path, anchor) = match word.split_once('#') {
            Some((path, anchor)) => (path, Some(anchor)),
            None => (word, None),
        };
        let Some((folder, rest)) = path.split_once('/') else { continue };
        let pattern = word.contains(PATTERNS) || rest.split('/').any(is_placeholder);
        let pattern = pattern || path.starts_with(INSTALLED);
        if folders.contains(folder) && !rest.is_empty() && !pattern {
            found.push(Citation { path, anchor });
        }
    }
    found
}

/// `NAME` in `corpus/NAME` stands for any name.
fn is_placeholder(part: &str) -> bool {
    part.len() > 1 && part.chars().all(|c| c.is_ascii_uppercase() || c == '_')
}

/// The targets of `[text](target)` in a line of Markdown that are no URLs.
fn links(text: &str) -> Vec<&str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    targets.map(|(target, _)| target).filter(|target| !target.contains("://")).collect()
}

/// The anchors that GitHub gives to the headings of a document.
fn anchors(markdown: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    let mut repeated = BTreeMap::<String, usize>::new();
    let mut in_code = false;
    for line in markdown.lines() {
        in_code ^= line.trim_start().starts_with("```");
        let title = line.trim_start_matches('#');
        if in_code || title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
        let anchor: String = title.trim().to_lowercase().chars().filter(kept).collect();
        let anchor = anchor.replace(' ', "-");
        let before = repeated.entry(anchor.clone()).or_default();
        anchors.insert(if *before == 0 { anchor } else { format!("{anchor}-{before}") });
        *before += 1;
    }
    anchors
}

/// The part of a line in which a file of this kind cites paths: all of a
/// document, the comments of everything else.
fn citing<'a>(path: &str, line: &'a str) -> Option<&'a str> {
    if path.ends_with(".md") {
        return Some(line);
    }
    let mark = if path.ends_with(".rs") || path.ends_with(".proto") { "//" } else { "#" };
    match line.trim_start().starts_with(mark) {
        true => Some(line),
        false => line.split_once(&format!(" {mark} ")).map(|(_, text)| text),
    }
}

/// The folders from which a path in `file` may start: the root, the folders
/// above the file, and for documents the folder of every package.
fn bases(file: &str) -> Vec<String> {
    let above = Path::new(file).ancestors().skip(1);
    let mut bases: Vec<String> = above.map(|base| base.to_string_lossy().into_owned()).collect();
    if file.ends_with(".md") {
        let root = root();
        for member in Graph::host().members() {
            let folder = member.manifest_path.parent().expect("a manifest lies in a folder");
            let folder = folder.strip_prefix(&root).expect("packages lie in the workspace");
            bases.push(folder.to_string());
        }
    }
    bases
}

/// Why `citation` in `file` does not resolve.
fn unresolved(file: &str, citation: &Citation<'_>) -> Option<String> {
    let Citation { path, anchor } = *citation;
    let root = root();
    let found = bases(file).into_iter().map(|base| root.join(base).join(path));
    let Some(found) = found.into_iter().find(|path| path.exists()) else {
        return Some(format!("{path} does not exist"));
    };
    let anchor = anchor?;
    let text = fs::read_to_string(found).unwrap_or_default();
    (!anchors(&text).contains(anchor)).then(|| format!("{path} has no section #{anchor}"))
}

#[test]
fn cited_paths_and_sections_exist() {
    let entries = fs::read_dir(root()).expect("the tree can be read").flatten();
    let folders = entries.filter(|entry| entry.path().is_dir());
    let mut folders: BTreeSet<String> =
        folders.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    folders.remove("target");
    folders.extend(["src", "benches"].map(str::to_owned));
    let mut problems = Vec::new();
    for (path, text) in text_files() {
        if !CITING.iter().any(|kind| path.ends_with(kind)) || path.starts_with("tests/tests/tidy") {
            continue;
        }
        for (index, line) in text.lines().enumerate() {
            let Some(text) = citing(&path, line) else { continue };
            let mut wrong: Vec<String> = citations(text, &folders)
                .iter()
                .filter_map(|citation| unresolved(&path, citation))
                .collect();
            if path.ends_with(".md") {
                wrong.extend(links(line).into_iter().filter_map(|target| {
                    let (target, anchor) = match target.split_once('#') {
                        Some((target, anchor)) => (target, Some(anchor)),
                        None => (target, None),
                    };
                    let own = Path::new(&path).file_name().unwrap_or_default().to_string_lossy();
                    let target = if target.is_empty() { &*own } else { target };
                    unresolved(&path, &Citation { path: target, anchor })
                }));
            }
            problems.extend(wrong.iter().map(|why| format!("{path}:{}: {why}", index + 1)));
        }
    }
    problems.dedup();
    check("correct these references:", problems);
}

#[test]
fn citations_and_anchors_are_recognised() {
    let folders = BTreeSet::from(["docs".to_owned(), "src".to_owned()]);
    let of = |text| citations(text, &folders);
    let plain = |path| Citation { path, anchor: None };
    assert_eq!(
        of("see (docs/a.md#b-c), src/x.rs."),
        [Citation { path: "docs/a.md", anchor: Some("b-c") }, plain("src/x.rs")]
    );
    assert!(of("https://a/docs/b docs/*.md src/{a,b}.rs src/NAME/a other/x").is_empty());
    assert_eq!(links("[a](b.md#c), [d](https://e), [f](#g)"), ["b.md#c", "#g"]);
    let headings = "# The `a_b`: c/d\n```\n# no\n```\n## Twice\n## Twice\n";
    let expected = ["the-a_b-cd", "twice", "twice-1"].map(str::to_owned);
    assert_eq!(anchors(headings), BTreeSet::from(expected));
    assert_eq!(comment("    //! text"), Some("text"));
    assert_eq!(citing("a.toml", "x = 1 # docs/a"), Some("docs/a"));
    assert_eq!(citing("a.rs", "let a = \"http://b\";"), None);
}
