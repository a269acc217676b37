//! What every store must do, whatever its engine.

use std::slice::from_ref;

use rendez_proto::ids::Generation;
use rendez_proto::keys::PublicKey;
use rendez_proto::limits;
use rendez_proto::profile::Profile;
use rendez_proto::registry::environments::EndReason;

use super::records::{Connection, ConnectionId, Records};
use super::{Redeemed, Redemption, Store};
use crate::model::{NewRegistration, Registration, Role, Token, TokenId};
use crate::testing::{env, key};

fn token(n: u8, role: Role) -> Token {
    Token {
        id: TokenId::from_random([n; 8]),
        role,
        environments: "dev-*".parse().unwrap(),
        label: format!("number {n}"),
        secret_hash: [n; 32],
        created_at: 10,
        expires_at: (n == 2).then_some(1000),
        revoked_at: None,
    }
}

fn claim(environment: &str, id: &str, key: PublicKey) -> NewRegistration {
    NewRegistration {
        environment: env(environment),
        id: id.parse().unwrap(),
        key,
        profiles: vec![Profile::RendezIkV1, Profile::NoiseHybridIkV1],
        token: TokenId::from_random([1; 8]),
    }
}

/// Runs the whole contract on an empty store.
pub(crate) async fn all(store: &(impl Store + Records)) {
    tokens(store).await;
    registrations(store).await;
    redemptions(store).await;
    connections(store).await;
}

/// Needs the environments that `registrations` made.
async fn connections(store: &dyn Records) {
    let all = async |environment| store.connections(&env(environment), 100).await.unwrap();
    let last = async |from, to| store.last_connections(&env(from), &env(to)).await.unwrap();
    let begin = |number, environment| Connection {
        id: ConnectionId { run: u64::MAX, number },
        environment: env(environment),
        registration: "reg_a".parse().unwrap(),
        generation: Generation(3),
        connected_at: 100 + number,
        ended: None,
        received_bytes: 0,
        sent_bytes: 0,
    };
    let end = |connection: &Connection, at, why| Connection {
        ended: Some((at, why)),
        received_bytes: 7,
        sent_bytes: u64::from(u32::MAX) * 2,
        ..connection.clone()
    };
    assert!(all("dev-0").await.is_empty() && last("a", "z").await.is_empty());

    // begun, then over; both in one call, and each in its own
    let (one, two) = (begin(1, "dev-0"), begin(2, "dev-1"));
    store.write_connections(&[one.clone(), two.clone()]).await.unwrap();
    assert_eq!(all("dev-0").await, *from_ref(&one));
    let two = end(&two, 300, EndReason::SocketError);
    store.write_connections(from_ref(&two)).await.unwrap();
    assert_eq!(all("dev-1").await, *from_ref(&two));

    // a newer one ends an open one, until it is known why that really ended
    let three = begin(3, "dev-0");
    store.write_connections(from_ref(&three)).await.unwrap();
    let superseded = all("dev-0").await.remove(1);
    assert_eq!(superseded.ended, Some((103, EndReason::Superseded)));
    let one = end(&one, 104, EndReason::PingTimeout);
    store.write_connections(from_ref(&one)).await.unwrap();
    assert_eq!(all("dev-0").await, [three.clone(), one.clone()]);
    assert_eq!(store.connections(&env("dev-0"), 1).await.unwrap(), *from_ref(&three));
    assert_eq!(last("dev-0", "dev-1").await, [three.clone(), two.clone()]);
    assert_eq!(last("dev-1", "dev-1").await, *from_ref(&two));

    // the relay died: what was open ends now, and not before it began
    let four = begin(4, "dev-1");
    store.write_connections(from_ref(&four)).await.unwrap();
    assert_eq!(store.end_open_connections(103, EndReason::RelayRestarted).await.unwrap(), 2);
    let over = |connection: &Connection, at| Connection {
        ended: Some((at, EndReason::RelayRestarted)),
        ..connection.clone()
    };
    assert_eq!(all("dev-0").await, [over(&three, 103), one]);
    assert_eq!(all("dev-1").await, [over(&four, 104), two]);
    assert_eq!(store.end_open_connections(105, EndReason::RelayRestarted).await.unwrap(), 0);

    // the newest stay
    let max = u64::from(limits::CONNECTIONS_PER_ENVIRONMENT);
    let many: Vec<_> = (10..12 + max)
        .map(|number| end(&begin(number, "dev-0"), 500, EndReason::ClientClosed))
        .collect();
    store.write_connections(&many).await.unwrap();
    let kept = all("dev-0").await;
    assert_eq!(kept.len() as u64, max);
    assert_eq!(kept.last(), many.get(2));
    assert_eq!(all("dev-1").await.len(), 2, "each environment has its own");
}

async fn tokens(store: &dyn Store) {
    assert!(store.tokens(None, 10).await.unwrap().is_empty());
    let all = [token(1, Role::Executor), token(2, Role::Orchestrator), token(3, Role::Admin)];
    for token in [&all[2], &all[0], &all[1]] {
        store.insert_token(token).await.unwrap();
    }
    assert!(store.insert_token(&all[0]).await.is_err(), "an id is used once");
    assert_eq!(store.token(&all[1].id).await.unwrap().as_ref(), Some(&all[1]));
    assert_eq!(store.token(&TokenId::from_random([9; 8])).await.unwrap(), None);

    assert_eq!(store.tokens(None, 2).await.unwrap(), all[..2]);
    assert_eq!(store.tokens(Some(&all[1].id), 2).await.unwrap(), all[2..]);

    assert!(store.revoke_token(&all[2].id, 20).await.unwrap());
    assert!(store.revoke_token(&all[2].id, 30).await.unwrap());
    let revoked = store.token(&all[2].id).await.unwrap().unwrap();
    assert_eq!(revoked, Token { revoked_at: Some(20), ..all[2].clone() });
    assert!(!store.revoke_token(&TokenId::from_random([9; 8]), 20).await.unwrap());
}

async fn registrations(store: &dyn Store) {
    assert_eq!(store.registration(&env("dev-1")).await.unwrap(), None);

    let first = claim("dev-1", "reg_a", key(7));
    let stored = store.put_registration(&first, 100).await.unwrap();
    let expected = Registration {
        environment: first.environment.clone(),
        id: first.id.clone(),
        generation: Generation(1),
        key: first.key.clone(),
        profiles: first.profiles.clone(),
        token: first.token.clone(),
        registered_at: 100,
    };
    assert_eq!(stored, expected);
    assert_eq!(store.registration(&env("dev-1")).await.unwrap(), Some(expected));

    let second = claim("dev-1", "reg_b", PublicKey::x25519_only([8; 32]));
    let stored = store.put_registration(&second, 200).await.unwrap();
    assert_eq!(stored.generation, Generation(2));
    assert_eq!(store.registration(&env("dev-1")).await.unwrap(), Some(stored.clone()));

    // another environment counts for itself, and a claim needs a token
    let other = store.put_registration(&claim("dev-0", "reg_c", key(7)), 300).await.unwrap();
    assert_eq!(other.generation, Generation(1));
    let stranger =
        NewRegistration { token: TokenId::from_random([9; 8]), ..claim("dev-2", "reg_d", key(7)) };
    assert!(store.put_registration(&stranger, 300).await.is_err());
    assert_eq!(store.registration(&env("dev-2")).await.unwrap(), None);

    let list = store.environments(None, 10).await.unwrap();
    let ids: Vec<_> = list.iter().map(|e| e.registration.environment.as_str()).collect();
    assert_eq!(ids, ["dev-0", "dev-1"]);
    assert_eq!((list[1].created_at, &list[1].registration), (100, &stored));
    assert_eq!(store.environments(None, 1).await.unwrap(), list[..1]);
    assert_eq!(store.environments(Some(&env("dev-0")), 1).await.unwrap(), list[1..]);
    assert_eq!(store.environment(&env("dev-1")).await.unwrap().as_ref(), list.last());
    assert_eq!(store.environment(&env("dev-2")).await.unwrap(), None);
}

async fn redemptions(store: &dyn Store) {
    let orchestrator = TokenId::from_random([2; 8]);
    let ticket = |n| Redemption { ticket: [n; 16], expires_at: 60, subject: orchestrator.clone() };
    assert_eq!(store.redeem(&ticket(1), 10).await.unwrap(), Redeemed::Now);
    assert_eq!(store.redeem(&ticket(1), 10).await.unwrap(), Redeemed::Before);
    assert_eq!(store.redeem(&ticket(2), 10).await.unwrap(), Redeemed::Now);

    // many at once: one wins
    let (third, nine) = (ticket(3), ticket(9));
    let (a, b, c) =
        tokio::join!(store.redeem(&third, 10), store.redeem(&third, 10), store.redeem(&third, 10));
    let won = [a, b, c].into_iter().filter(|r| matches!(r, Ok(Redeemed::Now))).count();
    assert_eq!(won, 1);

    // the record outlives the ticket by the margin, and then goes
    let kept_until = 60 + limits::REDEEMED_TICKET_MARGIN.as_secs();
    store.redeem(&Redemption { expires_at: 900, ..nine.clone() }, kept_until).await.unwrap();
    assert_eq!(store.redeem(&ticket(1), kept_until).await.unwrap(), Redeemed::Before);
    // this call purges, the next finds nothing
    store.redeem(&Redemption { expires_at: 900, ..nine }, kept_until + 1).await.unwrap();
    assert_eq!(store.redeem(&ticket(1), kept_until + 1).await.unwrap(), Redeemed::Now);

    // token 2 ends at 1000; 3 is revoked; 9 does not exist; none of them uses
    // up the ticket
    let fresh = ticket(4);
    assert_eq!(store.redeem(&fresh, 1000).await.unwrap(), Redeemed::TokenInactive);
    for n in [3, 9] {
        let subject = TokenId::from_random([n; 8]);
        let gone = Redemption { subject, ..fresh.clone() };
        assert_eq!(store.redeem(&gone, 10).await.unwrap(), Redeemed::TokenInactive);
    }
    assert_eq!(store.redeem(&fresh, 999).await.unwrap(), Redeemed::Now);
}
