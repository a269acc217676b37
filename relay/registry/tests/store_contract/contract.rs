//! The contract of every store, whatever its engine.

use std::slice::from_ref;

use rendez_proto::ids::{EnvironmentId, Generation};
use rendez_proto::keys::PublicKey;
use rendez_proto::profile::Profile;
use rendez_proto::registry::environments::EndReason;

use rendez_registry::model::subject::ForeignId;
use rendez_registry::model::{
    Credential, Environment, NewRegistration, Registration, Revocation, Role, Subject, Token,
    TokenId,
};
use rendez_registry::store::connections::{ConnectionId, ConnectionRow, ConnectionUpdate};
use rendez_registry::store::{
    ConnectionStore, EnrolOutcome, RedeemOutcome, Redemption, RegisterOutcome, RotateOutcome,
    Store, UseOutcome, capacity,
};

use crate::values::{audit_event, env, key, token};

fn claim(environment: &str, id: &str, key: PublicKey) -> NewRegistration {
    NewRegistration {
        environment: env(environment),
        id: id.parse().unwrap(),
        key,
        profiles: vec![Profile::RendezIkV1, Profile::NoiseHybridIkV1],
        subject: TokenId::from_random([1; 8]).into(),
    }
}

/// Checks the whole contract on an empty store.
pub(crate) async fn check(store: &impl Store) {
    tokens(store).await;
    registrations(store).await;
    redemptions(store).await;
    connections(store).await;
    one_connection_is_kept(store).await;
    uses(store).await;
    rotations(store).await;
    enrolments(store).await;
    withdrawals(store).await;
}

/// The connections of each environment that are kept.
const KEEP: u32 = 50;

/// Needs the environments that `registrations` created.
async fn connections(store: &dyn ConnectionStore) {
    let all = async |environment| store.connections(&env(environment), 100).await.unwrap();
    let last = async |ids: &[&str]| {
        let ids: Vec<_> = ids.iter().map(|id| env(id)).collect();
        store.last_connections(&ids).await.unwrap()
    };
    let begin = |number, environment| ConnectionRow {
        id: ConnectionId { instance: u64::MAX, number },
        environment: env(environment),
        registration: "reg_a".parse().unwrap(),
        generation: Generation(3),
        connected_at: 100 + number,
        ended: None,
        received_bytes: 0,
        sent_bytes: 0,
    };
    let end = |connection: &ConnectionRow, at, why| ConnectionRow {
        ended: Some((at, why)),
        received_bytes: 7,
        sent_bytes: u64::from(u32::MAX) * 2,
        ..connection.clone()
    };
    let write = async |connections: &[ConnectionRow], inserted| {
        let note = |connection: &ConnectionRow| ConnectionUpdate {
            connection: connection.clone(),
            inserted,
        };
        let notes: Vec<_> = connections.iter().map(note).collect();
        store.write_connections(&notes, KEEP).await.unwrap()
    };
    assert!(all("dev-0").await.is_empty() && last(&["dev-0", "dev-1"]).await.is_empty());

    // inserted, then ended; both in one call, and each in its own
    let (one, two) = (begin(1, "dev-0"), begin(2, "dev-1"));
    let began = write(&[one.clone(), two.clone()], false).await;
    assert_eq!(began, [None, None], "the first of their environments");
    assert_eq!(all("dev-0").await, *from_ref(&one));
    let two = end(&two, 300, EndReason::SocketError);
    let began = write(from_ref(&two), true).await;
    assert_eq!(began, [], "it had inserted before");
    assert_eq!(all("dev-1").await, *from_ref(&two));

    // a newer one ends an open one, until the real reason is written
    let three = begin(3, "dev-0");
    let began = write(from_ref(&three), false).await;
    assert_eq!(began, [Some(EndReason::Superseded)]);
    let superseded = all("dev-0").await.remove(1);
    assert_eq!(superseded.ended, Some((103, EndReason::Superseded)));
    let one = end(&one, 104, EndReason::PingTimeout);
    write(from_ref(&one), true).await;
    assert_eq!(all("dev-0").await, [three.clone(), one.clone()]);
    assert_eq!(store.connections(&env("dev-0"), 1).await.unwrap(), *from_ref(&three));
    assert_eq!(last(&["dev-1", "never", "dev-0"]).await, [three.clone(), two.clone()]);
    assert_eq!(last(&["dev-1"]).await, *from_ref(&two));

    // the relay crashed: open ones end now, but not before they began
    let four = begin(4, "dev-1");
    let began = write(from_ref(&four), false).await;
    assert_eq!(began, [Some(EndReason::SocketError)]);
    assert_eq!(store.end_open_connections(103, EndReason::RelayRestarted).await.unwrap(), 2);
    let over = |connection: &ConnectionRow, at| ConnectionRow {
        ended: Some((at, EndReason::RelayRestarted)),
        ..connection.clone()
    };
    assert_eq!(all("dev-0").await, [over(&three, 103), one]);
    assert_eq!(all("dev-1").await, [over(&four, 104), two]);
    assert_eq!(store.end_open_connections(105, EndReason::RelayRestarted).await.unwrap(), 0);

    // the newest stay
    let max = u64::from(KEEP);
    let many: Vec<_> = (10..12 + max)
        .map(|number| end(&begin(number, "dev-0"), 500, EndReason::ClientClosed))
        .collect();
    write(&many, false).await;
    let kept = all("dev-0").await;
    assert_eq!(kept.len() as u64, max);
    assert_eq!(kept.last(), many.get(2));
    assert_eq!(all("dev-1").await.len(), 2, "each environment has its own");

    // prunes those that ended before, oldest first, but never the last one
    let five = begin(5, "dev-1");
    write(from_ref(&five), false).await;
    let oldest_first = all("dev-1").await;
    assert_eq!(store.prune_connections(104, 10).await.unwrap(), 0);
    assert_eq!(store.prune_connections(500, 1).await.unwrap(), 1);
    assert_eq!(all("dev-1").await, oldest_first[..2]);
    assert_eq!(store.prune_connections(501, 10).await.unwrap(), 10);
    let left = store.prune_connections(u64::MAX >> 1, 1000).await.unwrap();
    assert_eq!(left, max - 11 + 1);
    assert_eq!(all("dev-0").await, many[many.len() - 1..]);
    assert_eq!(all("dev-1").await, [five], "it is open");
}

/// A newer connection displaces an older one that is still open.
async fn one_connection_is_kept(store: &dyn ConnectionStore) {
    let place = env("dev-one");
    let begin = |number| ConnectionRow {
        id: ConnectionId { instance: 1, number },
        environment: place.clone(),
        registration: "reg_a".parse().unwrap(),
        generation: Generation(3),
        connected_at: 100 + number,
        ended: None,
        received_bytes: 0,
        sent_bytes: 0,
    };
    let (old, new) = (begin(1), begin(2));
    let write = async |connection: &ConnectionRow, inserted| {
        let note = ConnectionUpdate { connection: connection.clone(), inserted };
        store.write_connections(from_ref(&note), 1).await.unwrap()
    };
    assert_eq!(write(&old, false).await, [None]);
    assert_eq!(write(&new, false).await, [Some(EndReason::Superseded)]);
    // the end of the old one is written late and does not insert it again
    let over = ConnectionRow { ended: Some((105, EndReason::SocketError)), ..old };
    assert_eq!(write(&over, true).await, []);
    assert_eq!(store.connections(&place, 10).await.unwrap(), *from_ref(&new));
}

fn id(n: u8) -> TokenId {
    TokenId::from_random([n; 8])
}

fn foreign(subject: &str) -> Subject {
    Subject::Foreign(ForeignId::new("https://issuer", subject))
}

async fn claim_with(store: &dyn Store, claim: &NewRegistration, now: u64) -> Registration {
    match store.put_registration(claim, now).await.unwrap() {
        RegisterOutcome::Registered(registration) => registration,
        other => panic!("{other:?}"),
    }
}

async fn listed(
    store: &dyn Store,
    covered: &[&str],
    after: Option<&EnvironmentId>,
    limit: u32,
) -> Vec<Environment> {
    let covered: Vec<_> = covered.iter().map(|pattern| pattern.parse().unwrap()).collect();
    store.environments(&covered, after, limit).await.unwrap()
}

async fn tokens(store: &dyn Store) {
    assert!(store.tokens(None, 10).await.unwrap().is_empty());
    let all = [token(1, Role::Executor), token(2, Role::Orchestrator), token(3, Role::Admin)];
    for token in [&all[2], &all[0], &all[1]] {
        store.insert_token(token, &audit_event()).await.unwrap();
    }
    assert!(store.insert_token(&all[0], &audit_event()).await.is_err(), "an id is used once");
    assert_eq!(store.token(&all[1].id).await.unwrap().as_ref(), Some(&all[1]));
    assert_eq!(store.token(&TokenId::from_random([9; 8])).await.unwrap(), None);

    assert_eq!(store.tokens(None, 2).await.unwrap(), all[..2]);
    assert_eq!(store.tokens(Some(&all[1].id), 2).await.unwrap(), all[2..]);

    assert!(store.revoke(&all[2].id.clone().into(), 20, &audit_event()).await.unwrap());
    assert!(store.revoke(&all[2].id.clone().into(), 30, &audit_event()).await.unwrap());
    let revoked = store.token(&all[2].id).await.unwrap().unwrap();
    assert_eq!(revoked, Token { revoked_at: Some(20), ..all[2].clone() });
    assert!(!store.revoke(&id(9).into(), 20, &audit_event()).await.unwrap());
}

async fn registrations(store: &dyn Store) {
    assert_eq!(store.registration(&env("dev-1")).await.unwrap(), None);

    let first = claim("dev-1", "reg_a", key(7));
    let stored = claim_with(store, &first, 100).await;
    let expected = Registration {
        environment: first.environment.clone(),
        id: first.id.clone(),
        generation: Generation(1),
        key: first.key.clone(),
        profiles: first.profiles.clone(),
        subject: first.subject.clone(),
        registered_at: 100,
    };
    assert_eq!(stored, expected);
    assert_eq!(store.registration(&env("dev-1")).await.unwrap(), Some(expected));

    let second = claim("dev-1", "reg_b", PublicKey::x25519_only([8; 32]));
    let stored = claim_with(store, &second, 200).await;
    assert_eq!(stored.generation, Generation(2));
    assert_eq!(store.registration(&env("dev-1")).await.unwrap(), Some(stored.clone()));

    // another environment has its own generations, and a registration needs a token
    let other = claim_with(store, &claim("dev-0", "reg_c", key(7)), 300).await;
    assert_eq!(other.generation, Generation(1));
    for unknown in [9, 3] {
        let stranger =
            NewRegistration { subject: id(unknown).into(), ..claim("dev-2", "reg_d", key(7)) };
        assert_eq!(
            store.put_registration(&stranger, 300).await.unwrap(),
            RegisterOutcome::Inactive
        );
    }
    assert_eq!(store.registration(&env("dev-2")).await.unwrap(), None);

    let list = listed(store, &["*"], None, 10).await;
    let ids: Vec<_> = list.iter().map(|e| e.id.as_str()).collect();
    assert_eq!(ids, ["dev-0", "dev-1"]);
    assert_eq!((list[1].created_at, list[1].generation), (100, Generation(2)));
    assert_eq!(list[1].registration, Some(stored));
    assert_eq!(listed(store, &["*"], None, 1).await, list[..1]);
    assert_eq!(listed(store, &["*"], Some(&env("dev-0")), 1).await, list[1..]);
    // environments that are not covered neither end a page nor fill it
    for (covered, expected) in [
        (&["*-1"] as &[&str], &list[1..]),
        (&["prod", "d*v*0", "dev-_"], &list[..1]),
        (&["dev-0", "*", "dev-0"], &list[..]),
        (&["DEV-*", "dev", "*2"], &[]),
        (&[], &[]),
    ] {
        assert_eq!(listed(store, covered, None, 10).await, expected, "{covered:?}");
    }
    assert_eq!(store.environment(&env("dev-1")).await.unwrap().as_ref(), list.last());
    assert_eq!(store.environment(&env("dev-2")).await.unwrap(), None);
}

async fn redemptions(store: &dyn Store) {
    let orchestrator = Subject::from(id(2));
    let ticket = |n| Redemption { ticket: [n; 16], expires_at: 60, subject: orchestrator.clone() };
    assert_eq!(store.redeem(&ticket(1), 10).await.unwrap(), RedeemOutcome::Redeemed);
    assert_eq!(store.redeem(&ticket(1), 10).await.unwrap(), RedeemOutcome::AlreadyRedeemed);
    assert_eq!(store.redeem(&ticket(2), 10).await.unwrap(), RedeemOutcome::Redeemed);

    // of several at once, one succeeds
    let (third, nine) = (ticket(3), ticket(9));
    let (a, b, c) =
        tokio::join!(store.redeem(&third, 10), store.redeem(&third, 10), store.redeem(&third, 10));
    let won = [a, b, c].into_iter().filter(|r| matches!(r, Ok(RedeemOutcome::Redeemed))).count();
    assert_eq!(won, 1);

    // the record outlives the ticket by the margin, then it is purged
    let kept_until = 60 + capacity::REDEEMED_TICKET_MARGIN.as_secs();
    store.redeem(&Redemption { expires_at: 900, ..nine.clone() }, kept_until).await.unwrap();
    assert_eq!(store.redeem(&ticket(1), kept_until).await.unwrap(), RedeemOutcome::AlreadyRedeemed);
    // this call purges, so the next one succeeds
    store.redeem(&Redemption { expires_at: 900, ..nine }, kept_until + 1).await.unwrap();
    assert_eq!(store.redeem(&ticket(1), kept_until + 1).await.unwrap(), RedeemOutcome::Redeemed);

    // token 2 expires at 1000; 3 is revoked; 9 does not exist; none of them uses up
    // the ticket
    let fresh = ticket(4);
    assert_eq!(store.redeem(&fresh, 1000).await.unwrap(), RedeemOutcome::TokenInactive);
    for n in [3, 9] {
        let subject = id(n).into();
        let gone = Redemption { subject, ..fresh.clone() };
        assert_eq!(store.redeem(&gone, 10).await.unwrap(), RedeemOutcome::TokenInactive);
    }
    assert_eq!(store.redeem(&fresh, 999).await.unwrap(), RedeemOutcome::Redeemed);
}

async fn uses(store: &dyn Store) {
    let bounded = Token { max_uses: Some(2), ..token(20, Role::Orchestrator) };
    store.insert_token(&bounded, &audit_event()).await.unwrap();
    let subject = Subject::from(bounded.id.clone());
    let used = async || store.use_token(&subject, 5).await.unwrap();
    let (a, b, c) = tokio::join!(used(), used(), used());
    let good = [a, b, c].into_iter().filter(|used| *used == UseOutcome::Allowed).count();
    assert_eq!((good, used().await), (2, UseOutcome::UsedUp));
    assert_eq!(store.token(&bounded.id).await.unwrap().unwrap().uses, 2);

    // without a maximum nothing is counted
    assert_eq!(store.use_token(&id(1).into(), 5).await.unwrap(), UseOutcome::Allowed);
    assert_eq!(store.token(&id(1)).await.unwrap().unwrap().uses, 0);
    assert_eq!(store.use_token(&id(2).into(), 1000).await.unwrap(), UseOutcome::Inactive);
    assert_eq!(store.use_token(&id(9).into(), 5).await.unwrap(), UseOutcome::Inactive);

    // a registration is a use
    let once = Token { max_uses: Some(1), ..token(21, Role::Executor) };
    store.insert_token(&once, &audit_event()).await.unwrap();
    let mine = |id: &str| NewRegistration {
        subject: once.id.clone().into(),
        ..claim("dev-once", id, key(1))
    };
    claim_with(store, &mine("reg_once"), 5).await;
    assert_eq!(
        store.put_registration(&mine("reg_twice"), 5).await.unwrap(),
        RegisterOutcome::UsedUp
    );
}

async fn rotations(store: &dyn Store) {
    let old = token(22, Role::Admin);
    store.insert_token(&old, &audit_event()).await.unwrap();
    let RotateOutcome::Rotated(new) =
        store.rotate_token(&old.id, &[0x22; 32], 30, 100, &audit_event()).await.unwrap()
    else {
        panic!("not rotated");
    };
    let credential = Credential::Secret { hash: [0x22; 32], previous: Some(([22; 32], 130)) };
    assert_eq!(*new, Token { credential, rotated_at: Some(100), ..old.clone() });
    assert_eq!(store.token(&old.id).await.unwrap(), Some(*new));
    store.rotate_token(&old.id, &[0x33; 32], 0, 110, &audit_event()).await.unwrap();
    let credential = store.token(&old.id).await.unwrap().unwrap().credential;
    assert_eq!(credential, Credential::Secret { hash: [0x33; 32], previous: None });
    for (unknown, why) in [(9, RotateOutcome::NotFound), (3, RotateOutcome::Inactive)] {
        assert_eq!(
            store.rotate_token(&id(unknown), &[0; 32], 0, 100, &audit_event()).await.unwrap(),
            why
        );
    }
}

fn enrolled(n: u8, key: u8) -> Token {
    let credential = Credential::Key { public: [key; 32], enrolled_by: id(23) };
    Token { credential, environments: "dev-key".parse().unwrap(), ..token(n, Role::Executor) }
}

async fn enrolments(store: &dyn Store) {
    let join = Token { max_uses: Some(2), ..token(23, Role::Join) };
    store.insert_token(&join, &audit_event()).await.unwrap();
    let enrol =
        async |token: &Token| store.enrol(token, &join.id, 100, &audit_event()).await.unwrap();
    let first = enrolled(24, 0xa1);
    assert_eq!(enrol(&first).await, EnrolOutcome::Enrolled);
    assert_eq!(enrol(&enrolled(25, 0xa1)).await, EnrolOutcome::KeyKnown);
    assert_eq!(store.token(&join.id).await.unwrap().unwrap().uses, 1, "that was no use");
    assert_eq!(store.token_by_key(&[0xa1; 32]).await.unwrap(), Some(first.clone()));
    assert_eq!(store.token_by_key(&[0xa2; 32]).await.unwrap(), None);
    assert_eq!(enrol(&enrolled(26, 0xa2)).await, EnrolOutcome::Enrolled);
    assert_eq!(enrol(&enrolled(27, 0xa3)).await, EnrolOutcome::UsedUp);
    assert_eq!(
        store.enrol(&enrolled(27, 0xa3), &id(3), 100, &audit_event()).await.unwrap(),
        EnrolOutcome::Inactive
    );
    assert_eq!(store.token(&id(27)).await.unwrap(), None);
    assert_eq!(
        store.rotate_token(&first.id, &[0; 32], 0, 100, &audit_event()).await.unwrap(),
        RotateOutcome::HasKey
    );
}

async fn withdrawals(store: &dyn Store) {
    let start = store.last_revocation().await.unwrap();
    let since = async |after| {
        let page = store.revocations(after, 100).await.unwrap();
        assert!(page.complete);
        page.revocations.into_iter().map(|(_, what)| what).collect::<Vec<_>>()
    };
    assert_eq!(since(0).await, [Revocation::Subject(id(3).into())], "what revoked 3 once");

    let mine =
        |subject: Subject, id: &str| NewRegistration { subject, ..claim("dev-key", id, key(1)) };
    let stranger = foreign("ci");
    claim_with(store, &mine(stranger.clone(), "reg_1"), 100).await;
    assert!(!store.is_blocked(&stranger).await.unwrap());
    for _ in 0..2 {
        assert!(store.revoke(&stranger, 100, &audit_event()).await.unwrap());
    }
    assert!(store.is_blocked(&stranger).await.unwrap());
    let again = store.put_registration(&mine(stranger.clone(), "reg_2"), 100).await;
    assert_eq!(again.unwrap(), RegisterOutcome::Inactive);
    assert_eq!(store.use_token(&stranger, 5).await.unwrap(), UseOutcome::Inactive);

    let key = Subject::from(id(24));
    let ended = claim_with(store, &mine(key.clone(), "reg_3"), 100).await.id;
    assert_eq!(
        store.remove_registration(&env("dev-key"), 100, &audit_event()).await.unwrap(),
        Some(ended.clone())
    );
    assert_eq!(
        store.remove_registration(&env("dev-key"), 100, &audit_event()).await.unwrap(),
        None
    );
    assert_eq!(store.registration(&env("dev-key")).await.unwrap(), None);
    let without = async || {
        let found = store.environment(&env("dev-key")).await.unwrap().unwrap();
        let list = listed(store, &["*"], None, 100).await;
        assert!(list.contains(&found), "it is listed as it is found");
        assert_eq!((found.id, found.created_at, found.registration), (env("dev-key"), 100, None));
        found.generation
    };
    assert_eq!(without().await, Generation(2));

    // it may register again, with a higher generation
    let back = claim_with(store, &mine(key.clone(), "reg_4"), 100).await;
    assert_eq!(back.generation, Generation(3));
    assert!(store.revoke_environment(&env("dev-key"), 100, &audit_event()).await.unwrap());
    assert_eq!(store.registration(&env("dev-key")).await.unwrap(), None);
    assert_eq!(without().await, Generation(3));
    assert_eq!(store.token(&id(24)).await.unwrap().unwrap().revoked_at, Some(100));
    assert!(!store.revoke_environment(&env("never"), 100, &audit_event()).await.unwrap());
    assert_eq!(
        since(start).await,
        [
            Revocation::Subject(stranger),
            Revocation::Registration(ended),
            Revocation::Environment(env("dev-key")),
        ]
    );
    assert_eq!(store.last_revocation().await.unwrap(), start + 3);

    // only newer credentials may register in it or enrol for it
    let refused = [(Subject::from(id(1)), "old"), (foreign("other"), "foreign")];
    for (subject, which) in refused {
        let claimed = store.put_registration(&mine(subject, "reg_5"), 100).await.unwrap();
        assert_eq!(claimed, RegisterOutcome::EnvironmentRevoked, "{which}");
    }
    store
        .insert_token(&Token { max_uses: Some(9), ..token(28, Role::Join) }, &audit_event())
        .await
        .unwrap();
    let old = Token { max_uses: Some(9), ..token(29, Role::Join) };
    store.insert_token(&old, &audit_event()).await.unwrap();
    store.insert_token(&token(30, Role::Executor), &audit_event()).await.unwrap();
    assert_eq!(
        store.enrol(&enrolled(31, 0xb1), &id(28), 100, &audit_event()).await.unwrap(),
        EnrolOutcome::Enrolled
    );
    claim_with(store, &mine(id(30).into(), "reg_6"), 100).await;
    claim_with(store, &mine(id(31).into(), "reg_7"), 100).await;
    assert!(store.revoke_environment(&env("dev-key"), 100, &audit_event()).await.unwrap());
    let enrolled = store.enrol(&enrolled(32, 0xb2), &old.id, 100, &audit_event()).await.unwrap();
    assert_eq!(enrolled, EnrolOutcome::EnvironmentRevoked);
}
