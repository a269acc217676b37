//! The tokens of one probe. All of them are revoked, however the probe ends.

use std::time::Duration;

use rendez_orchestrator::EnvironmentId;
use rendez_proto::registry::admin::{CreateToken, Role, TokenText};
use rendez_registry::model::Subject;
use tokio::time::timeout;

use crate::admin_access::AdminAccess;
use crate::exit::Exit;
use crate::format::span;

/// How long a token outlives the time limit of its probe: time to revoke it, and a
/// clock that differs.
const MARGIN: Duration = Duration::from_secs(60);

/// The tokens that a probe has created.
pub(super) struct ProbeTokens {
    admin: AdminAccess,
    seconds: u64,
    made: Vec<Subject>,
}

impl ProbeTokens {
    /// For a probe with this time limit.
    pub(super) fn new(admin: AdminAccess, probing: Duration) -> Self {
        let seconds = probing.saturating_add(MARGIN).as_secs();
        Self { admin, seconds, made: Vec::new() }
    }

    /// Creates one more token.
    pub(super) async fn create(
        &mut self,
        role: Role,
        environment: &EnvironmentId,
    ) -> Result<TokenText, Exit> {
        let request = CreateToken {
            environments: environment.to_string(),
            label: "rendez probe".to_owned(),
            expires_in_secs: Some(self.seconds),
            ..CreateToken::new(role)
        };
        let created = self.admin.create_token(&request).await?;
        let id = created.entry.id;
        let nameless =
            |_| Exit::protocol(format!("the relay returned an invalid token id: {id:?}"));
        self.made.push(id.parse().map_err(nameless)?);
        Ok(created.token)
    }

    /// Revokes the tokens, each within this time. Returns a message for each token
    /// that could not be revoked.
    pub(super) async fn revoke(self, within: Duration) -> Vec<String> {
        let mut complaints = Vec::new();
        for subject in &self.made {
            let why = match timeout(within, self.admin.revoke_token(subject)).await {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no response within {within:?}"),
            };
            let life = span(self.seconds);
            complaints.push(format!(
                "rendez: cannot revoke token {subject}, which expires within {life}: {why}"
            ));
        }
        complaints
    }
}

#[cfg(test)]
mod tests {
    use rendez_registry::{Options, Registry};
    use rendez_registry_client::AdminClient;
    use tokio::net::TcpListener;

    use super::*;

    fn environment() -> EnvironmentId {
        "box".parse().unwrap()
    }

    #[tokio::test]
    async fn tokens_outlive_their_probe_and_are_audited() {
        let directory = tempfile::tempdir().unwrap();
        let registry = Registry::open(directory.path(), Options::default()).await.unwrap();
        let probing = Duration::from_secs(3600);
        let mut tokens = ProbeTokens::new(AdminAccess::Local(registry.clone()), probing);
        tokens.create(Role::Executor, &environment()).await.unwrap();
        tokens.create(Role::Orchestrator, &environment()).await.unwrap();
        let made = registry.tokens().list(None).await.unwrap().tokens;
        assert_eq!(made.len(), 2);
        for token in made {
            let end = token.expires_at_unix_secs.unwrap();
            assert!(end - token.created_at_unix_secs > probing.as_secs(), "{token:?}");
        }
        assert_eq!(tokens.revoke(Duration::from_secs(60)).await, [""; 0]);
        let rows = registry.audit().page(0).await.unwrap().rows;
        let revoked = |what: &str| what.starts_with("token_revoked ");
        let rows = rows.iter().filter(|row| row.event.what.as_deref().is_some_and(revoked));
        assert_eq!(rows.count(), 2);
    }

    #[tokio::test]
    async fn unrevoked_token_is_named() {
        // Accepts connections and never responds.
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", silent.local_addr().unwrap());
        let client = AdminClient::new(&url, "token".to_owned().into()).unwrap();
        let mut tokens =
            ProbeTokens::new(AdminAccess::Remote(Box::new(client)), Duration::from_secs(30));
        tokens.made =
            vec!["0011223344556677".parse().unwrap(), "8899aabbccddeeff".parse().unwrap()];
        let complaints = tokens.revoke(Duration::from_millis(50)).await;
        assert_eq!(complaints.len(), 2, "{complaints:?}");
        let first = &complaints[0];
        assert!(first.contains("0011223344556677") && first.contains("1m30s"), "{first}");
    }
}
