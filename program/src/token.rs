//! The token that a program shows to a relay: from a file or from RENDEZ_TOKEN.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use secrecy::SecretString;
use zeroize::Zeroizing;

/// The environment variable with the token. Child processes never inherit it.
pub const TOKEN_VARIABLE: &str = "RENDEZ_TOKEN";

/// Longest token in a file, in bytes: a wrong file is refused before it is sent
/// anywhere.
const TOKEN_MAX_BYTES: u64 = 16 * 1024;

/// The source of the token. There is no flag for the token itself, because other
/// users of the machine could read it.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TokenArgs {
    /// File with the token on its first line [default: the token in RENDEZ_TOKEN]
    #[arg(long, env = "RENDEZ_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// A token's file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot read a token from {}: {why}", path.display())]
pub struct TokenFileError {
    path: PathBuf,
    why: String,
}

impl TokenArgs {
    /// Reads the token from its file, or from the variable that `var` looks up.
    ///
    /// # Errors
    /// The file cannot be used.
    pub fn read(
        &self,
        var: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<SecretString>, TokenFileError> {
        if let Some(path) = &self.token_file {
            return read_file(path).map(Some);
        }
        let token = var(TOKEN_VARIABLE).unwrap_or_default();
        Ok(Some(token.trim().to_owned()).filter(|token| !token.is_empty()).map(Into::into))
    }
}

fn read_file(path: &Path) -> Result<SecretString, TokenFileError> {
    let failed = |why: String| TokenFileError { path: path.to_owned(), why };
    let mut text = Zeroizing::new(String::new());
    File::open(path)
        .and_then(|file| file.take(TOKEN_MAX_BYTES + 1).read_to_string(&mut text))
        .map_err(|error| failed(error.to_string()))?;
    if text.len() as u64 > TOKEN_MAX_BYTES {
        return Err(failed("the file is too long for a token".into()));
    }
    match text.lines().next().map(str::trim).filter(|token| !token.is_empty()) {
        Some(token) => Ok(token.to_owned().into()),
        None => Err(failed("its first line is empty".into())),
    }
}
