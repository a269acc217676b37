//! Account, certificate and key below the state directory, for the relay alone.
//!
//! ```text
//! acme/HOST-DIGEST/     one per ACME server, by the directory's URL (0700)
//!   account.json        the account's URL and private key (0600)
//!   certificate.pem     private key, certificate and its authorities (0600)
//! ```
//!
//! A file is written beside its place and renamed, so nobody ever reads half of
//! one, and a certificate never stands beside the key of another.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use instant_acme::AccountCredentials;
use reqwest::Url;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::failure::Failure;
use super::leaf::Leaf;
use crate::sys::{create_owner_only_dir, owner_only};
use crate::tls::files;

const FOLDER: &str = "acme";
const ACCOUNT: &str = "account.json";
const CERTIFICATE: &str = "certificate.pem";

/// What is kept about one ACME server.
pub(super) struct Store {
    folder: PathBuf,
    certificate: PathBuf,
}

impl Store {
    /// For the server with this directory; nothing is made yet.
    pub(super) fn of(state: &Path, directory: &str) -> Self {
        let host = Url::parse(directory).ok().and_then(|url| Some(url.host_str()?.to_owned()));
        let digest = Sha256::digest(directory.as_bytes());
        let digest: String = digest[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        let name = format!("{}-{digest}", host.unwrap_or_default().trim_matches(['[', ']']));
        let folder = state.join(FOLDER).join(name);
        Self { certificate: folder.join(CERTIFICATE), folder }
    }

    /// The file of certificate and key.
    pub(super) fn certificate(&self) -> &Path {
        &self.certificate
    }

    /// What the kept certificate is for, if there is one that can be read.
    pub(super) fn leaf(&self) -> Option<Leaf> {
        Leaf::of(files::certificates(&self.certificate).ok()?.first()?)
    }

    /// The kept account.
    pub(super) fn account(&self) -> Result<Option<AccountCredentials>, Failure> {
        let path = self.folder.join(ACCOUNT);
        let text = match fs::read(&path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Failure::NotKept { path, source }),
        };
        // The parser's words could quote the key.
        let account = serde_json::from_slice(&text).ok();
        if account.is_none() {
            tracing::warn!(path = %path.display(), "this is no ACME account; a new one is made");
        }
        Ok(account)
    }

    pub(super) fn keep_account(&self, account: &AccountCredentials) -> Result<(), Failure> {
        let path = self.folder.join(ACCOUNT);
        let failed = |source| Failure::NotKept { path: path.clone(), source };
        let text = serde_json::to_vec(account).map_err(|error| failed(error.into()))?;
        self.write(&path, &Zeroizing::new(text)).map_err(failed)
    }

    /// So that the next order makes a new one.
    pub(super) fn forget_account(&self) -> Result<(), Failure> {
        let path = self.folder.join(ACCOUNT);
        fs::remove_file(&path).map_err(|source| Failure::NotKept { path, source })
    }

    /// Replaces certificate and key at one moment.
    pub(super) fn keep_certificate(&self, pem: &str) -> Result<(), Failure> {
        let kept = self.write(&self.certificate, pem.as_bytes());
        kept.map_err(|source| Failure::NotKept { path: self.certificate.clone(), source })
    }

    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        create_owner_only_dir(&self.folder)?;
        let draft = path.with_extension(format!("draft-{}", std::process::id()));
        // Of an earlier try, by a process that had this number.
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        let mut file = owner_only(&mut options).open(&draft)?;
        let written = file.write_all(content).and_then(|()| file.sync_all());
        let placed = written.and_then(|()| fs::rename(&draft, path));
        if placed.is_err() {
            // A key that nobody will use.
            let _ = fs::remove_file(&draft);
        }
        placed.and_then(|()| File::open(&self.folder)?.sync_all())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    const ACCOUNT_TEXT: &str =
        r#"{"id":"https://ca.example/1","key_pkcs8":"MA","directory":"https://ca.example/d"}"#;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn servers_are_kept_apart() {
        let state = Path::new("state");
        let path = |url: &str| Store::of(state, url).certificate().to_owned();
        let le = path("https://acme-v02.api.letsencrypt.org/directory");
        assert!(le.starts_with("state/acme") && le.ends_with(CERTIFICATE), "{}", le.display());
        assert!(le.to_string_lossy().contains("/acme-v02.api.letsencrypt.org-"));
        assert_ne!(path("https://ca.example/a"), path("https://ca.example/b"));
        assert!(path("https://[::1]:1/d").starts_with("state/acme"));
    }

    #[test]
    fn what_is_kept_is_for_the_owner_alone_and_replaced_whole() {
        let state = tempfile::tempdir().unwrap();
        let store = Store::of(&state.path().join("not/yet"), "https://ca.example/d");
        assert!(store.account().unwrap().is_none() && store.leaf().is_none());

        store.keep_account(&serde_json::from_str(ACCOUNT_TEXT).unwrap()).unwrap();
        let account = store.account().unwrap().unwrap();
        assert_eq!(serde_json::to_string(&account).unwrap(), ACCOUNT_TEXT);
        store.keep_certificate("first, which is longer").unwrap();
        store.keep_certificate("second").unwrap();
        assert_eq!(fs::read_to_string(store.certificate()).unwrap(), "second");

        let files: Vec<_> = fs::read_dir(&store.folder).unwrap().map(|f| f.unwrap()).collect();
        assert_eq!(files.len(), 2, "no draft is left");
        assert!(files.iter().all(|file| mode(&file.path()) == 0o600));
        assert_eq!(mode(&store.folder), 0o700);

        store.forget_account().unwrap();
        assert!(store.account().unwrap().is_none());
    }

    #[test]
    fn what_is_no_account_is_replaced_and_what_cannot_be_kept_is_named() {
        let state = tempfile::tempdir().unwrap();
        let store = Store::of(state.path(), "https://ca.example/d");
        store.keep_certificate("x").unwrap();
        fs::write(store.folder.join(ACCOUNT), "{").unwrap();
        assert!(store.account().unwrap().is_none());

        let file = tempfile::NamedTempFile::new().unwrap();
        let store = Store::of(file.path(), "https://ca.example/d");
        let error = store.keep_certificate("x").unwrap_err();
        assert!(error.to_string().contains(CERTIFICATE), "{error}");
        assert!(!error.to_string().contains('\n'));
    }
}
