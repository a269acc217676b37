//! The packages of the workspace and their dependencies, from `cargo metadata`.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package, PackageId};

/// The resolved graph of the whole workspace on one platform, with the features of a
/// build of everything at once: the most that any crate ever links.
pub(crate) struct Graph {
    pub(crate) metadata: Metadata,
    packages: HashMap<PackageId, usize>,
}

impl Graph {
    /// The graph on the platform that runs the tests.
    pub(crate) fn host() -> &'static Graph {
        static HOST: OnceLock<Graph> = OnceLock::new();
        HOST.get_or_init(|| {
            let answer = run("rustc", &["-vV"]);
            let triple = answer.lines().find_map(|line| line.strip_prefix("host: "));
            Graph::of(triple.expect("`rustc -vV` names the host"))
        })
    }

    fn of(triple: &str) -> Graph {
        let options = ["--locked", "--filter-platform", triple].map(str::to_owned);
        let metadata = MetadataCommand::new()
            .current_dir(root())
            .other_options(options)
            .exec()
            .expect("`cargo metadata --locked` works; if Cargo.lock is not current, run any cargo command and commit it");
        let linked = metadata.resolve.as_ref().expect("cargo metadata resolves");
        let linked: Vec<&PackageId> = linked.nodes.iter().map(|node| &node.id).collect();
        let packages = metadata.packages.iter().enumerate();
        let packages = packages
            .filter(|(_, package)| linked.contains(&&package.id))
            .map(|(index, package)| (package.id.clone(), index))
            .collect();
        Graph { metadata, packages }
    }

    /// All packages that the platform links or builds with.
    pub(crate) fn packages(&self) -> impl Iterator<Item = &Package> {
        self.metadata.packages.iter().filter(|package| self.packages.contains_key(&package.id))
    }

    /// Our own packages.
    pub(crate) fn members(&self) -> Vec<&Package> {
        self.metadata.workspace_packages()
    }

    fn package(&self, id: &PackageId) -> &Package {
        &self.metadata.packages[self.packages[id]]
    }

    /// All dependencies of the member `from`, by name, each with one chain that
    /// leads to it: normal ones, and those of build scripts. Development
    /// dependencies are linked into tests only.
    pub(crate) fn reached(&self, from: &str) -> BTreeMap<String, String> {
        let nodes = &self.metadata.resolve.as_ref().expect("resolved above").nodes;
        let nodes: HashMap<_, _> = nodes.iter().map(|node| (&node.id, node)).collect();
        let members = self.members();
        let start = members.iter().find(|package| package.name.as_str() == from);
        let start = &start.unwrap_or_else(|| panic!("no member of the workspace is {from}")).id;

        let mut reached = BTreeMap::new();
        let mut chains = HashMap::from([(start, from.to_owned())]);
        let mut queue = VecDeque::from([start]);
        while let Some(id) = queue.pop_front() {
            for dependency in &nodes[id].deps {
                let counts = dependency.dep_kinds.iter().any(|kind| {
                    matches!(kind.kind, DependencyKind::Normal | DependencyKind::Build)
                });
                if !counts || chains.contains_key(&dependency.pkg) {
                    continue;
                }
                let name = self.package(&dependency.pkg).name.to_string();
                let chain = format!("{} -> {name}", chains[id]);
                chains.insert(&dependency.pkg, chain.clone());
                reached.entry(name).or_insert(chain);
                queue.push_back(&dependency.pkg);
            }
        }
        reached
    }
}

/// The workspace's directory: of the tree in which cargo runs the tests, or, for a
/// binary that is run by itself, of the tree that it was built from.
pub(crate) fn root() -> PathBuf {
    let tests = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let tests = tests.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    tests.parent().expect("the tests crate lies in the workspace").to_owned()
}

/// The output of a tool of the toolchain.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(root()).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("tools print UTF-8")
}
