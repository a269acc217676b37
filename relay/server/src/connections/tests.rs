//! The table with its guards, over a registry in memory.

use std::sync::Arc;

use rendez_proto::ids::{EnvironmentId, Generation, RegistrationId};
use rendez_proto::profile::Profile;
use rendez_proto::ticket::{self, Claims, Purpose};
use rendez_registry::{Admitted, Options, Presence as _, Registry, WaitRefused};

use super::connection::Connection;
use super::{ConnectionGuard, ConnectionLimit, ConnectionTable, StrangerBounds};

struct Node {
    table: Arc<ConnectionTable>,
    registry: Registry,
    limit: ConnectionLimit,
    _state: tempfile::TempDir,
}

impl Node {
    async fn start() -> Self {
        let state = tempfile::tempdir().unwrap();
        let registry = Registry::open(state.path(), Options::default()).await.unwrap();
        let limit = ConnectionLimit::new(100, StrangerBounds::NONE);
        Self { table: Arc::default(), registry, limit, _state: state }
    }

    async fn join(&self, claims: Claims) -> ConnectionGuard {
        let subject = claims.subject.parse().unwrap();
        let admitted = Admitted { claims, subject, until: None };
        let permit = self.limit.admit(None).await.unwrap();
        ConnectionGuard::join(&self.table, &self.registry, &admitted, permit).unwrap()
    }

    async fn open(&self, claims: Claims) -> ConnectionGuard {
        let guard = self.join(claims).await;
        guard.open();
        guard
    }
}

fn executor(environment: &str, registration: &str, generation: u64) -> Claims {
    Claims {
        purpose: Purpose::Executor,
        environment: environment.parse().unwrap(),
        registration: registration.parse().unwrap(),
        generation: Generation(generation),
        subject: "0011223344556677".to_owned(),
        profile: Profile::NoiseHybridIkV1,
        expires_at_unix_secs: None,
        id: [0; ticket::ID_BYTES],
        binding: [0; ticket::BINDING_BYTES],
    }
}

fn orchestrator(environment: &str) -> Claims {
    Claims { purpose: Purpose::Orchestrator, ..executor(environment, "reg_a", 1) }
}

fn env() -> EnvironmentId {
    "dev".parse().unwrap()
}

fn id(text: &str) -> RegistrationId {
    text.parse().unwrap()
}

#[tokio::test]
async fn pages_list_each_connection_once_while_some_end() {
    let node = Node::start().await;
    let mut open = Vec::new();
    for name in ["b", "a", "ab"] {
        open.push(node.open(executor(name, "reg_a", 1)).await);
    }
    for name in ["a", "b", "a", "a"] {
        open.push(node.open(orchestrator(name)).await);
    }
    let ids = |page: Vec<Arc<Connection>>| {
        page.iter().map(|connection| connection.entry().id).collect::<Vec<_>>()
    };
    let walk = |environment: Option<&EnvironmentId>, limit| {
        let mut all: Vec<String> = Vec::new();
        loop {
            let after = all.last().map(|last| last.parse().unwrap());
            let page = ids(node.table.page(environment, after.as_ref(), limit));
            assert!(page.len() <= limit);
            if page.is_empty() {
                return all;
            }
            all.extend(page);
        }
    };
    let all = ["a.2", "a.4", "a.6", "a.7", "ab.3", "b.1", "b.5"];
    let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
    for limit in [1, 2, 3, 7, 100] {
        assert_eq!(walk(None, limit), all, "pages of {limit}");
        assert_eq!(walk(Some(&a), limit), all[..4], "pages of {limit}");
        assert_eq!(walk(Some(&b), limit), all[5..], "pages of {limit}");
    }
    // The last one of a page ends before the next page is requested.
    assert_eq!(ids(node.table.page(None, None, 2)), all[..2]);
    open.retain(|guard| guard.connection().id.number != 4);
    let ended = "a.4".parse().unwrap();
    assert_eq!(ids(node.table.page(None, Some(&ended), 2)), all[2..4]);
    open.clear();
    assert!(walk(None, 10).is_empty());
}

#[tokio::test]
async fn guard_gives_back_everything_it_holds() {
    let node = Node::start().await;
    let guard = node.join(executor("dev", "reg_a", 1)).await;
    assert!(node.table.page(None, None, 10).is_empty(), "listed only once it is open");
    assert!(node.table.executor(&env()).is_none());
    assert_eq!(node.table.all().len(), 1, "a revocation finds it before it is open");
    guard.open();
    assert_eq!(node.table.page(None, None, 10).len(), 1);
    assert_eq!(node.table.joined_registration(&env()), Some(id("reg_a")));
    assert_eq!((node.table.guards(), node.limit.open()), (1, 1));
    drop(guard);
    assert!(node.table.all().is_empty());
    assert_eq!(node.table.joined_registration(&env()), None);
    assert_eq!((node.table.guards(), node.limit.open()), (0, 0));
}

#[tokio::test]
async fn join_wakes_waiters_for_another_registration_only() {
    let node = Node::start().await;
    let (table, old) = (&node.table, id("reg_a"));
    let guard = node.open(executor("dev", "reg_a", 1)).await;
    assert_eq!(table.wait_for_executor(&env(), None).await, Ok(old.clone()), "it is there already");

    let waiting = tokio::spawn({
        let (table, old) = (table.clone(), old.clone());
        async move { table.wait_for_executor(&env(), Some(&old)).await }
    });
    while table.waiting() == 0 {
        tokio::task::yield_now().await;
    }
    // The same registration again does not end the wait.
    drop(guard);
    let guard = node.open(executor("dev", "reg_a", 1)).await;
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert!(!waiting.is_finished());
    let _newer = node.open(executor("dev", "reg_b", 2)).await;
    assert_eq!(waiting.await.unwrap(), Ok(id("reg_b")));
    assert_eq!(table.waiting(), 0);
    drop(guard);
}

#[tokio::test]
async fn closed_table_ends_all_waits() {
    let table = Arc::<ConnectionTable>::default();
    let waiting = tokio::spawn({
        let table = table.clone();
        async move { table.wait_for_executor(&env(), None).await }
    });
    while table.waiting() == 0 {
        tokio::task::yield_now().await;
    }
    table.start_draining();
    assert_eq!(table.waiting(), 1, "until it closes");
    assert!(table.node_connections().await.draining);
    table.close();
    assert_eq!(waiting.await.unwrap(), Err(WaitRefused));
}
