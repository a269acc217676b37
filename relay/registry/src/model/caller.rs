//! The caller of an operation and its permissions.

use rendez_proto::ids::EnvironmentId;
use rendez_proto::registry::admin::Role;

use super::subject::{Subject, TicketSubject};
use super::token::TokenPattern;

/// An authenticated caller: the bearer of an active token of this registry or of a
/// trusted issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The caller's name.
    pub subject: Subject,
    /// The caller's permissions; any of them suffices.
    pub grants: Vec<Grant>,
    /// When its websockets end, in seconds since 1970, unless the registry's own
    /// record of the subject has an earlier end.
    pub until: Option<u64>,
}

/// One role in some environments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The role.
    pub role: Role,
    /// The environments.
    pub environments: TokenPattern,
}

/// The caller's token does not permit this operation. The caller is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// The token has another role.
    #[error("the token's role does not permit this")]
    Role,
    /// It is a join token without a proof of the key to enrol.
    #[error(
        "a join token only enrols an executor that proves to hold a key, as `rendez agent` does; \
         a stock executor needs an executor token"
    )]
    JoinOnly,
    /// The token does not cover the environment.
    #[error("the token does not cover this environment")]
    Environment,
    /// Another token made the registration.
    #[error("the registration was made with another token")]
    Token,
    /// All uses of the token are used up.
    #[error("all uses of the token are used up")]
    UsedUp,
    /// The environment was revoked after the token was created.
    #[error(
        "the environment was revoked; enrol its executor with a new join token, or give it a \
         token that was created afterwards"
    )]
    EnvironmentRevoked,
}

impl Caller {
    /// Checks the role.
    ///
    /// # Errors
    /// [`Forbidden::Role`].
    pub fn require_role(&self, roles: &[Role]) -> Result<(), Forbidden> {
        let any = self.grants.iter().any(|grant| roles.contains(&grant.role));
        if any { Ok(()) } else { Err(Forbidden::Role) }
    }

    /// Checks the role and the environment.
    ///
    /// # Errors
    /// [`Forbidden::Role`], [`Forbidden::JoinOnly`], [`Forbidden::Environment`].
    pub fn authorize(&self, role: Role, environment: &EnvironmentId) -> Result<(), Forbidden> {
        self.require_role(&[role]).map_err(|wrong| match self.require_role(&[Role::Join]) {
            Ok(()) if role == Role::Executor => Forbidden::JoinOnly,
            _ => wrong,
        })?;
        if self.has_role_in(&[role], environment) { Ok(()) } else { Err(Forbidden::Environment) }
    }

    /// Whether the caller has any of the roles in `environment`.
    pub fn has_role_in(&self, roles: &[Role], environment: &EnvironmentId) -> bool {
        let covers = |g: &Grant| roles.contains(&g.role) && g.environments.matches(environment);
        self.grants.iter().any(covers)
    }

    /// Returns the patterns of the environments where the caller has any of the
    /// roles.
    pub fn patterns(&self, roles: &[Role]) -> Vec<TokenPattern> {
        let given = self.grants.iter().filter(|grant| roles.contains(&grant.role));
        given.map(|grant| grant.environments.clone()).collect()
    }

    /// Returns the caller as a ticket names it.
    pub fn ticket_subject(&self) -> TicketSubject {
        TicketSubject { subject: self.subject.clone(), until: self.until }
    }
}

#[cfg(test)]
mod tests {
    use super::super::token::TokenId;
    use super::*;

    fn caller(grants: &[(Role, &str)]) -> Caller {
        let grant = |(role, pattern): &(Role, &str)| Grant {
            role: *role,
            environments: pattern.parse().unwrap(),
        };
        Caller {
            subject: TokenId::from_random([0; 8]).into(),
            grants: grants.iter().map(grant).collect(),
            until: None,
        }
    }

    #[test]
    fn role_grants_only_itself() {
        let environment: EnvironmentId = "dev".parse().unwrap();
        for role in Role::ALL {
            for needed in Role::ALL {
                let caller = caller(&[(role, "*")]);
                assert_eq!(caller.authorize(needed, &environment).is_ok(), role == needed);
            }
        }
    }

    #[test]
    fn grants_apply_separately() {
        let both = caller(&[(Role::Executor, "ci-*"), (Role::Orchestrator, "dev")]);
        let may = |role, environment: &str| both.authorize(role, &environment.parse().unwrap());
        assert_eq!(may(Role::Executor, "ci-1"), Ok(()));
        assert_eq!(may(Role::Executor, "dev"), Err(Forbidden::Environment));
        assert_eq!(may(Role::Orchestrator, "dev"), Ok(()));
        assert_eq!(may(Role::Orchestrator, "ci-1"), Err(Forbidden::Environment));
        assert_eq!(may(Role::Admin, "dev"), Err(Forbidden::Role));
        assert_eq!(caller(&[]).require_role(&Role::ALL), Err(Forbidden::Role));
    }
}
