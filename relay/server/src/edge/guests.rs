//! Which live websockets came from whom, so that a revocation closes them.
//!
//! A websocket is listed first, then the registry is asked once more whether
//! its ticket is good, and only then it opens; whoever withdraws after that
//! question finds it on the list, and whoever withdrew before is found by the
//! question. So none is missed, whichever process withdraws.
//!
//! An evicted websocket takes no frame any more, either way, from that moment
//! on. It has [`EVICTION_GRACE`] to say goodbye.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rendez_proto::close::CloseFrame;
use rendez_proto::ids::{EnvironmentId, RegistrationId};
use rendez_proto::limits;
use rendez_registry::model::{Subject, Withdrawal};
use rendez_registry::seam::{Clock as _, SystemClock};
use rendez_registry::store::StoreError;
use rendez_registry::{Admitted, Registry};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::port::Door;

/// How often a relay asks its store what was withdrawn: well below the 5 s
/// within which a revocation closes live websockets.
const WITHDRAWAL_POLL: Duration = Duration::from_secs(1);
/// How long an evicted websocket may take to say goodbye before it is dropped;
/// with the poll well below 5 s.
const EVICTION_GRACE: Duration = Duration::from_secs(2);

const _: () = assert!(WITHDRAWAL_POLL.as_secs() + EVICTION_GRACE.as_secs() + 1 < 5);

/// All live websockets of a node.
#[derive(Default)]
pub(crate) struct Guests(Mutex<Book>);

#[derive(Default)]
struct Book {
    next: u64,
    present: HashMap<u64, Arc<Guest>>,
    /// When each must leave, if it must, in seconds since 1970.
    due: BTreeSet<(u64, u64)>,
}

struct Guest {
    subject: Subject,
    environment: EnvironmentId,
    registration: RegistrationId,
    door: Door,
    evicted: CancellationToken,
}

impl Guest {
    fn evict(&self, frame: CloseFrame) {
        self.door.show(frame);
        self.evicted.cancel();
    }
}

/// A websocket's entry in the list; dropping it takes it off.
pub(crate) struct Stay {
    guests: Arc<Guests>,
    number: u64,
    due: Option<u64>,
    guest: Arc<Guest>,
}

impl Stay {
    /// Comes back if the websocket was evicted and has not left in time.
    pub(crate) async fn overstayed(&self) -> CloseFrame {
        self.guest.evicted.cancelled().await;
        sleep(EVICTION_GRACE).await;
        self.guest.door.shown().cloned().unwrap_or(CloseFrame::RESTARTING)
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        let mut book = self.guests.lock();
        book.present.remove(&self.number);
        if let Some(due) = self.due {
            book.due.remove(&(due, self.number));
        }
    }
}

/// What a page of withdrawals is about.
#[derive(Default)]
struct Unwelcome {
    subjects: HashSet<Subject>,
    environments: HashSet<EnvironmentId>,
    registrations: HashSet<RegistrationId>,
}

impl Unwelcome {
    fn add(&mut self, withdrawal: Withdrawal) {
        match withdrawal {
            Withdrawal::Subject(subject) => drop(self.subjects.insert(subject)),
            Withdrawal::Environment(id) => drop(self.environments.insert(id)),
            Withdrawal::Registration(id) => drop(self.registrations.insert(id)),
        }
    }

    fn reason(&self, guest: &Guest) -> Option<CloseFrame> {
        let ended = self.environments.contains(&guest.environment)
            || self.registrations.contains(&guest.registration);
        if self.subjects.contains(&guest.subject) {
            Some(CloseFrame::TOKEN_REVOKED)
        } else {
            ended.then_some(CloseFrame::REGISTRATION_ENDED)
        }
    }
}

impl Guests {
    /// Lists a websocket that is about to open.
    pub(crate) fn arrive(self: &Arc<Self>, admitted: &Admitted, door: Door) -> Stay {
        let guest = Arc::new(Guest {
            subject: admitted.subject.clone(),
            environment: admitted.claims.environment.clone(),
            registration: admitted.claims.registration.clone(),
            door,
            evicted: CancellationToken::new(),
        });
        let due = admitted.until;
        let mut book = self.lock();
        let number = book.next;
        book.next += 1;
        book.present.insert(number, guest.clone());
        if let Some(due) = due {
            book.due.insert((due, number));
        }
        drop(book);
        Stay { guests: self.clone(), number, due, guest }
    }

    /// Evicts whoever must leave, until cancelled. `last` is the withdrawal
    /// that was the last one before anybody arrived.
    pub(crate) async fn watch(
        self: Arc<Self>,
        registry: Registry,
        mut last: u64,
        cancel: CancellationToken,
    ) {
        let mut tick = interval(WITHDRAWAL_POLL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut blind = false;
        while cancel.run_until_cancelled(tick.tick()).await.is_some() {
            self.expire(SystemClock.now_unix_secs());
            match self.read(&registry, &mut last).await {
                Ok(()) => blind = false,
                Err(error) if !blind => {
                    blind = true;
                    tracing::warn!(%error, "cannot read what was revoked; open websockets stay");
                }
                Err(_) => {}
            }
        }
    }

    async fn read(&self, registry: &Registry, last: &mut u64) -> Result<(), StoreError> {
        loop {
            let page = registry.withdrawals(*last).await?;
            if !page.complete {
                tracing::warn!("too much was revoked to follow; every websocket closes");
                self.evict(|_| Some(CloseFrame::RESTARTING));
            }
            let full = page.list.len() >= limits::WITHDRAWALS_PAGE as usize;
            let mut unwelcome = Unwelcome::default();
            for (seq, withdrawal) in page.list {
                *last = seq;
                unwelcome.add(withdrawal);
            }
            let evicted = self.evict(|guest| unwelcome.reason(guest));
            if evicted > 0 {
                tracing::info!(evicted, "websockets close because of a revocation");
            }
            if !full {
                return Ok(());
            }
        }
    }

    fn evict(&self, reason: impl Fn(&Guest) -> Option<CloseFrame>) -> usize {
        // waking ports takes their hubs' locks: not under ours
        let present: Vec<_> = self.lock().present.values().cloned().collect();
        let mut evicted = 0;
        for guest in present {
            if let Some(frame) = reason(&guest) {
                guest.evict(frame);
                evicted += 1;
            }
        }
        evicted
    }

    fn expire(&self, now: u64) {
        let mut expired = Vec::new();
        let mut book = self.lock();
        while let Some((due, number)) = book.due.first().copied().filter(|(due, _)| *due <= now) {
            book.due.remove(&(due, number));
            expired.extend(book.present.get(&number).cloned());
        }
        drop(book);
        for guest in expired {
            tracing::info!(token = %guest.subject, environment = %guest.environment, "token expired");
            guest.evict(CloseFrame::TOKEN_EXPIRED);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
