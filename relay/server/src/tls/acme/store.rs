//! Account, certificate and key in the state directory, readable by the relay only.
//!
//! ```text
//! acme/HOST-DIGEST/     one per ACME server, by the directory's URL (0700)
//!   account.json        the account's URL and private key (0600)
//!   certificate.pem     private key, certificate and its authorities (0600)
//! ```
//!
//! A file is written under another name and renamed, so it is never read half
//! written, and a certificate is never stored with the key of another.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use instant_acme::AccountCredentials;
use reqwest::Url;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::leaf::Leaf;
use super::order_error::OrderError;
use crate::sys::{create_owner_only_dir, owner_only};
use crate::tls::files;

const FOLDER: &str = "acme";
const ACCOUNT: &str = "account.json";
const CERTIFICATE: &str = "certificate.pem";

/// The stored data of one ACME server.
pub(super) struct AcmeStore {
    folder: PathBuf,
    certificate: PathBuf,
}

impl AcmeStore {
    /// The data of the server with this directory URL. Creates nothing yet.
    pub(super) fn new(state: &Path, directory: &str) -> Self {
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

    /// Names and validity of the stored certificate, if it is readable.
    pub(super) fn leaf(&self) -> Option<Leaf> {
        Leaf::parse(files::certificates(&self.certificate).ok()?.first()?)
    }

    /// The stored account.
    pub(super) fn account(&self) -> Result<Option<AccountCredentials>, OrderError> {
        let path = self.folder.join(ACCOUNT);
        let text = match fs::read(&path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(OrderError::NotStored { path, source }),
        };
        // The parser's error could quote the key, so it is not logged.
        let account = serde_json::from_slice(&text).ok();
        if account.is_none() {
            tracing::warn!(path = %path.display(), "not a valid ACME account; creating a new one");
        }
        Ok(account)
    }

    pub(super) fn store_account(&self, account: &AccountCredentials) -> Result<(), OrderError> {
        let path = self.folder.join(ACCOUNT);
        let failed = |source| OrderError::NotStored { path: path.clone(), source };
        let text = serde_json::to_vec(account).map_err(|error| failed(error.into()))?;
        self.write(&path, &Zeroizing::new(text)).map_err(failed)
    }

    /// Removes the account, so that the next order creates a new one.
    pub(super) fn remove_account(&self) -> Result<(), OrderError> {
        let path = self.folder.join(ACCOUNT);
        fs::remove_file(&path).map_err(|source| OrderError::NotStored { path, source })
    }

    /// Replaces certificate and key atomically.
    pub(super) fn store_certificate(&self, pem: &str) -> Result<(), OrderError> {
        let written = self.write(&self.certificate, pem.as_bytes());
        written.map_err(|source| OrderError::NotStored { path: self.certificate.clone(), source })
    }

    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        create_owner_only_dir(&self.folder)?;
        let draft = path.with_extension(format!("draft-{}", std::process::id()));
        // Left by an earlier process with the same id.
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
            // The draft contains an unused key.
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
    fn each_server_has_its_own_folder() {
        let state = Path::new("state");
        let path = |url: &str| AcmeStore::new(state, url).certificate().to_owned();
        let le = path("https://acme-v02.api.letsencrypt.org/directory");
        assert!(le.starts_with("state/acme") && le.ends_with(CERTIFICATE), "{}", le.display());
        assert!(le.to_string_lossy().contains("/acme-v02.api.letsencrypt.org-"));
        assert_ne!(path("https://ca.example/a"), path("https://ca.example/b"));
        assert!(path("https://[::1]:1/d").starts_with("state/acme"));
    }

    #[test]
    fn files_are_owner_only_and_replaced_whole() {
        let state = tempfile::tempdir().unwrap();
        let store = AcmeStore::new(&state.path().join("not/yet"), "https://ca.example/d");
        assert!(store.account().unwrap().is_none() && store.leaf().is_none());

        store.store_account(&serde_json::from_str(ACCOUNT_TEXT).unwrap()).unwrap();
        let account = store.account().unwrap().unwrap();
        assert_eq!(serde_json::to_string(&account).unwrap(), ACCOUNT_TEXT);
        store.store_certificate("first, which is longer").unwrap();
        store.store_certificate("second").unwrap();
        assert_eq!(fs::read_to_string(store.certificate()).unwrap(), "second");

        let files: Vec<_> = fs::read_dir(&store.folder).unwrap().map(|f| f.unwrap()).collect();
        assert_eq!(files.len(), 2, "no draft is left");
        assert!(files.iter().all(|file| mode(&file.path()) == 0o600));
        assert_eq!(mode(&store.folder), 0o700);

        store.remove_account().unwrap();
        assert!(store.account().unwrap().is_none());
    }

    #[test]
    fn invalid_account_is_replaced() {
        let state = tempfile::tempdir().unwrap();
        let store = AcmeStore::new(state.path(), "https://ca.example/d");
        store.store_certificate("x").unwrap();
        fs::write(store.folder.join(ACCOUNT), "{").unwrap();
        assert!(store.account().unwrap().is_none());

        let file = tempfile::NamedTempFile::new().unwrap();
        let store = AcmeStore::new(file.path(), "https://ca.example/d");
        let error = store.store_certificate("x").unwrap_err();
        assert!(error.to_string().contains(CERTIFICATE), "{error}");
        assert!(!error.to_string().contains('\n'));
    }
}
