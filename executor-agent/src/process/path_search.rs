//! Finds the program that `argv[0]` names.

use std::io;
use std::path::{Path, PathBuf};

use crate::sys::files::{is_executable, not_found};

/// The directories to search if the child has no PATH.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Finds `program`. A name with a slash is relative to `cwd`. For other names this
/// is the first executable file in `path`, the PATH of the child (not that of the
/// executor). An empty entry of `path` means `cwd`.
///
/// # Errors
/// The error of the operating system for a missing file.
pub(super) fn find_program(program: &str, path: Option<&str>, cwd: &Path) -> io::Result<PathBuf> {
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
    fn first_executable_in_path_is_found() {
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
        assert_eq!(find_program("tool", Some(&path), Path::new("/")).unwrap(), right);
        assert_eq!(find_program("tool", Some("c"), folder.path()).unwrap(), right);
        assert_eq!(find_program("here", Some(""), folder.path()).unwrap(), here);
        assert_eq!(
            find_program("./here", None, folder.path()).unwrap(),
            folder.path().join("./here")
        );
        assert_eq!(find_program("/x/y", None, folder.path()).unwrap(), Path::new("/x/y"));
        for missing in ["here", "", "tool2"] {
            let error = find_program(missing, Some(&path), Path::new("/")).unwrap_err();
            assert_eq!(error.to_string(), "No such file or directory (os error 2)");
        }
    }

    #[test]
    fn default_path_is_searched_without_path() {
        assert!(find_program("sh", None, Path::new("/")).is_ok());
    }
}
