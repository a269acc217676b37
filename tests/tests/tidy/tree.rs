//! The files of the tree, as classified lines.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::graph::{Graph, root};

/// Names of foreign content: directories, and the `.git` file of a worktree.
const SKIPPED: &[&str] = &[".git", ".stock", "node_modules", "target"];

/// One Rust file.
pub(crate) struct Source {
    /// Its package's name.
    pub(crate) package: String,
    /// Relative to the workspace.
    pub(crate) path: String,
    pub(crate) text: String,
    /// Whether the whole file is compiled only for tests.
    pub(crate) test: bool,
}

/// One line of a file.
pub(crate) struct Line<'a> {
    pub(crate) number: usize,
    /// Without its comment.
    pub(crate) code: &'a str,
    /// Whether it is compiled only for tests.
    pub(crate) test: bool,
}

impl Source {
    /// The file's lines. A test module is assumed to be last.
    pub(crate) fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        let tests_from = self.tests_from();
        self.text.lines().enumerate().map(move |(index, line)| Line {
            number: index + 1,
            code: line.split("//").next().unwrap_or_default(),
            test: self.test || index >= tests_from,
        })
    }

    /// Lines that go into a binary, comments included.
    pub(crate) fn length(&self) -> usize {
        self.lines().filter(|line| !line.test).count()
    }

    fn tests_from(&self) -> usize {
        let lines: Vec<&str> = self.text.lines().collect();
        let starts = |index: &usize| lines[*index] == "#[cfg(test)]" && opens(&lines[index + 1..]);
        (0..lines.len()).find(starts).unwrap_or(usize::MAX)
    }

    /// The files of the modules that are declared for tests only.
    fn test_modules(&self, path: &Path) -> Vec<PathBuf> {
        let own = path.file_stem().unwrap_or_default();
        let folder = path.parent().unwrap_or(path);
        let folder = if ["lib", "main", "mod"].iter().any(|root| own == *root) {
            folder.to_owned()
        } else {
            folder.join(own)
        };
        let lines: Vec<&str> = self.text.lines().collect();
        let gated = (0..lines.len()).filter(|index| lines[*index].trim() == "#[cfg(test)]");
        gated
            .filter_map(|index| {
                let mut rest = lines[index + 1..].iter().map(|line| line.trim());
                let declared = rest.find(|line| !line.starts_with("#["))?.strip_suffix(';')?;
                let (_, name) = declared.split_once("mod ")?;
                Some(folder.join(name))
            })
            .collect()
    }
}

/// Whether the first of `lines` that is no attribute opens a module.
fn opens(lines: &[&str]) -> bool {
    let item = lines.iter().find(|line| !line.starts_with("#["));
    item.is_some_and(|item| contains_word(item, "mod") && item.ends_with('{'))
}

/// All Rust files of the workspace's packages.
pub(crate) fn rust_sources() -> Vec<Source> {
    let root = root();
    let mut sources = Vec::new();
    let mut test_modules = BTreeSet::new();
    let mut files = Vec::new();
    for member in Graph::host().members() {
        let folder = member.manifest_path.parent().expect("a manifest lies in a folder");
        walk(folder.as_std_path(), &mut |path| {
            if path.extension().is_some_and(|extension| extension == "rs") {
                files.push((member.name.to_string(), path.to_owned()));
            }
        });
    }
    for (package, path) in files {
        let text = fs::read_to_string(&path).expect("sources are UTF-8");
        let relative = path.strip_prefix(&root).expect("packages lie in the workspace");
        let relative = relative.to_str().expect("paths are UTF-8").to_owned();
        let test = relative.contains("/tests/") || package == "rendez-tests";
        let source = Source { package, path: relative, text, test };
        test_modules.extend(source.test_modules(&path));
        sources.push(source);
    }
    for source in &mut sources {
        let path = root.join(&source.path).with_extension("");
        source.test |= test_modules.iter().any(|module| path.starts_with(module));
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(sources.len() > 50, "the sources are found");
    sources
}

/// All text files of the tree: path relative to the workspace, and content.
pub(crate) fn text_files() -> Vec<(String, String)> {
    let root = root();
    let mut files = Vec::new();
    walk(&root, &mut |path| {
        if let Ok(text) = fs::read_to_string(path) {
            let relative = path.strip_prefix(&root).expect("walked from there");
            files.push((relative.to_string_lossy().into_owned(), text));
        }
    });
    files.sort();
    files
}

fn walk(folder: &Path, file: &mut impl FnMut(&Path)) {
    let entries = fs::read_dir(folder).expect("the tree can be read");
    for entry in entries {
        let entry = entry.expect("the tree can be read");
        let kind = entry.file_type().expect("the tree can be read");
        let skipped = SKIPPED.iter().any(|name| entry.file_name() == *name);
        if skipped {
            continue;
        }
        if kind.is_dir() {
            walk(&entry.path(), file);
        } else if kind.is_file() {
            file(&entry.path());
        }
    }
}

/// Whether `text` contains `word` as a whole word.
pub(crate) fn contains_word(text: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word)
        .any(|(at, _)| !text[..at].ends_with(part) && !text[at + word.len()..].starts_with(part))
}

#[test]
fn test_code_is_recognised() {
    let source = Source {
        package: String::new(),
        path: String::new(),
        text: "use a; // sleep(\n#[cfg(test)]\nfn helper() {}\n#[cfg(test)]\n#[rustfmt::skip]\nmod tests {\n    use b;\n}\n\
               #[cfg(test)]\npub(crate) mod contract;\n"
            .to_owned(),
        test: false,
    };
    let lines: Vec<_> = source.lines().map(|line| (line.code, line.test)).collect();
    assert_eq!(lines[0], ("use a; ", false));
    assert_eq!(lines[2], ("fn helper() {}", false));
    assert_eq!(lines[6], ("    use b;", true));
    assert_eq!(source.length(), 3);
    assert_eq!(source.test_modules(Path::new("x/mod.rs")), [Path::new("x/contract")]);
    assert_eq!(source.test_modules(Path::new("x/y.rs")), [Path::new("x/y/contract")]);
    assert!(contains_word("a::sleep(b)", "sleep") && !contains_word("asleep(b)", "sleep"));
}

#[test]
fn known_files_are_classified() {
    let sources = rust_sources();
    let test = |path: &str| {
        let found = sources.iter().find(|source| source.path == path);
        found.unwrap_or_else(|| panic!("{path} is not found; correct this test")).test
    };
    assert!(!test("proto/src/limits.rs"));
    assert!(test("relay/core/src/hub/tests.rs"), "a module that is declared for tests");
    assert!(test("endpoint/core/tests/simulation.rs"), "a test of its own");
}
