//! Which program `argv[0]` means.

use std::io;
use std::path::{Path, PathBuf};

use crate::sys::files::{is_executable, not_found};

/// Where programs are looked for if the child has no PATH.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Finds `program`: with a slash in it, relative to `cwd`; else the first
/// executable file of that name in `path`, the PATH that the child gets (not
/// the executor's own). An empty entry of `path` means `cwd`.
///
/// # Errors
/// As if the operating system had not found it.
pub(super) fn find(program: &str, path: Option<&str>, cwd: &Path) -> io::Result<PathBuf> {
    if program.contains('/') {
        return Ok(cwd.join(program));
    }
    if program.is_empty() {
        return Err(not_found());
    }
    path.unwrap_or(DEFAULT_PATH)
        .split(':')
        .map(|folder| cwd.join(folder).join(program))
        .find(|candidate| is_executable(candidate))
        .ok_or_else(not_found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_first_executable_file_in_path_wins() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str, mode: u32| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        make("a/tool", 0o644);
        fs::create_dir_all(folder.path().join("b/tool")).unwrap();
        let right = make("c/tool", 0o755);
        let here = make("here", 0o755);
        let root = folder.path().display();
        let path = format!("{root}/a:{root}/b:{root}/c");
        assert_eq!(find("tool", Some(&path), Path::new("/")).unwrap(), right);
        assert_eq!(find("tool", Some("c"), folder.path()).unwrap(), right);
        assert_eq!(find("here", Some(""), folder.path()).unwrap(), here);
        assert_eq!(find("./here", None, folder.path()).unwrap(), folder.path().join("./here"));
        assert_eq!(find("/x/y", None, folder.path()).unwrap(), Path::new("/x/y"));
        for missing in ["here", "", "tool2"] {
            let error = find(missing, Some(&path), Path::new("/")).unwrap_err();
            assert_eq!(error.to_string(), "No such file or directory (os error 2)");
        }
    }

    #[test]
    fn without_a_path_the_usual_folders_are_searched() {
        assert!(find("sh", None, Path::new("/")).is_ok());
    }
}
