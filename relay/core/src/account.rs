//! Quotas, and the usage that is charged to them.
//!
//! Every websocket is charged to four accounts at once: its node's, its
//! environment's, its token's and its own. The websocket's own account bounds
//! memory and rates only. Accounts are shared between hubs, which are behind
//! different locks; so they are counters, and quotas change while they are in
//! use.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rendez_proto::limits;

use crate::overflow;
use crate::rate_limiter::RateLimiter;

/// Memory that is kept for each websocket: the message that it is reading, and one that
/// fills a lane although memory has just run out. So a conforming websocket is stopped
/// before its token has no memory left, and no frame of it is lost.
pub(crate) const RESERVE_PER_CONNECTION: usize = 2 * limits::FRAME_MAX_BYTES;

/// The burst that may be read before a rate applies, as time at that rate.
pub const RATE_BURST: Duration = Duration::from_secs(1);

/// Bounds of one account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Bytes of frames that wait for a slow reader. Senders are slowed down before
    /// it is reached: a lane gets at most as much as is free.
    pub memory_bytes: u64,
    /// Websockets at once.
    pub connections: u64,
    /// Streams at once.
    pub streams: u64,
    /// Handshakes that orchestrators begin, per minute.
    pub handshakes_per_minute: u64,
    /// Handshakes of one token that may fail at one executor before the token is
    /// refused; one is forgiven each `HANDSHAKE_FAILURE_RECOVERY`.
    pub handshake_failures: u64,
    /// Frames that are read, per second; sockets are read more slowly beyond.
    pub frames_per_second: u64,
    /// Bytes that are read, per second; sockets are read more slowly beyond.
    pub bytes_per_second: u64,
}

impl Quota {
    /// No bound.
    pub const NONE: u64 = u64::MAX;
    /// No bounds at all.
    pub const UNLIMITED: Quota = Quota {
        memory_bytes: Self::NONE,
        connections: Self::NONE,
        streams: Self::NONE,
        handshakes_per_minute: Self::NONE,
        handshake_failures: Self::NONE,
        frames_per_second: Self::NONE,
        bytes_per_second: Self::NONE,
    };
}

impl Default for Quota {
    fn default() -> Self {
        Self::UNLIMITED
    }
}

/// The quota and the usage of a node, an environment, a token or a websocket.
#[derive(Debug, Default)]
pub struct Account {
    quota: Mutex<Quota>,
    /// Whether a [`MemoryCharge`] has overdrawn the account.
    overdrawn: AtomicBool,
    /// The parts of the quota that are checked for every frame, without its lock.
    memory_max: Limit,
    frames_max: Limit,
    bytes_max: Limit,
    memory: AtomicUsize,
    connections: AtomicU64,
    streams: AtomicU64,
    frames_rate: RateLimiter,
    bytes_rate: RateLimiter,
    handshake_rate: RateLimiter,
}

#[derive(Debug)]
struct Limit(AtomicU64);

impl Default for Limit {
    fn default() -> Self {
        Self(AtomicU64::new(Quota::NONE))
    }
}

/// The usage of an account.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of frames that wait.
    pub memory_bytes: usize,
    /// Websockets.
    pub connections: u64,
    /// Streams.
    pub streams: u64,
}

impl Account {
    /// An account with this quota.
    pub fn new(quota: Quota) -> Arc<Self> {
        let account = Self::default();
        account.set_quota(quota);
        Arc::new(account)
    }

    /// The present quota.
    pub fn quota(&self) -> Quota {
        *self.quota.lock()
    }

    /// Replaces the quota. Connections and streams beyond it are not ended.
    pub fn set_quota(&self, quota: Quota) {
        let mut held = self.quota.lock();
        *held = quota;
        self.memory_max.0.store(quota.memory_bytes, Relaxed);
        self.frames_max.0.store(quota.frames_per_second, Relaxed);
        self.bytes_max.0.store(quota.bytes_per_second, Relaxed);
    }

    /// The present usage.
    pub fn usage(&self) -> Usage {
        Usage {
            memory_bytes: self.memory.load(Relaxed),
            connections: self.connections.load(Relaxed),
            streams: self.streams.load(Relaxed),
        }
    }

    /// Bytes that may still be charged.
    pub(crate) fn free_memory(&self) -> usize {
        self.memory_max().saturating_sub(self.memory.load(Relaxed))
    }

    /// Bytes that lanes may still fill: not those that are kept for messages that arrive,
    /// at most half of the quota.
    fn free_for_lanes(&self) -> usize {
        let connections = self.connections.load(Relaxed).max(1);
        let connections = usize::try_from(connections).unwrap_or(usize::MAX);
        let reserve = connections.saturating_mul(RESERVE_PER_CONNECTION);
        self.free_memory().saturating_sub(reserve.min(self.memory_max() / 2))
    }

    fn memory_max(&self) -> usize {
        usize::try_from(self.memory_max.0.load(Relaxed)).unwrap_or(usize::MAX)
    }

    pub(crate) fn add_memory(&self, bytes: usize) {
        self.memory.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn sub_memory(&self, bytes: usize) {
        self.memory.fetch_sub(bytes, Relaxed);
    }

    /// Charges `bytes` more to a charge of `own`, if they leave as much to others, or if
    /// nothing else is charged.
    fn try_add_memory(&self, own: usize, bytes: usize) -> bool {
        let before = self.memory.fetch_add(bytes, Relaxed);
        let fits = before.saturating_add(2 * bytes) <= self.memory_max() || before <= own;
        if !fits {
            self.sub_memory(bytes);
        }
        fits
    }

    /// Takes the account's one overdraft.
    fn try_overdraw(&self, bytes: usize) -> bool {
        let taken = !self.overdrawn.swap(true, Relaxed);
        if taken {
            self.add_memory(bytes);
        }
        taken
    }

    /// Counts a websocket, unless the quota is used up.
    #[must_use]
    pub(crate) fn connect(&self) -> bool {
        take_place(&self.connections, self.quota().connections)
    }

    pub(crate) fn disconnect(&self) {
        self.connections.fetch_sub(1, Relaxed);
    }

    /// Counts a stream, unless the quota is used up.
    #[must_use]
    pub(crate) fn open_stream(&self) -> bool {
        take_place(&self.streams, self.quota().streams)
    }

    pub(crate) fn close_stream(&self) {
        self.streams.fetch_sub(1, Relaxed);
    }

    fn restore_connection(&self) {
        self.connections.fetch_add(1, Relaxed);
    }

    fn restore_stream(&self) {
        self.streams.fetch_add(1, Relaxed);
    }

    /// Counts a frame that was read; returns how long to pause reading.
    pub(crate) fn read(&self, now: Instant, bytes: usize) -> Duration {
        let wait = |limit: &Limit, limiter: &RateLimiter, amount: u64| match limit.0.load(Relaxed) {
            Quota::NONE => Duration::ZERO,
            rate => limiter.take(now, cost(amount, rate, 1), RATE_BURST),
        };
        let frames = wait(&self.frames_max, &self.frames_rate, 1);
        frames.max(wait(&self.bytes_max, &self.bytes_rate, bytes as u64))
    }

    /// Counts a handshake that begins, unless it is beyond the rate.
    #[must_use]
    pub(crate) fn begin_handshake(&self, now: Instant) -> bool {
        match self.quota().handshakes_per_minute {
            Quota::NONE => true,
            rate => {
                let minute = Duration::from_secs(60);
                self.handshake_rate.try_take(now, cost(1, rate, 60), minute)
            }
        }
    }

    /// Whether no rate has anything left to wait for. Such an account may be
    /// dropped: a new one behaves the same.
    pub fn is_settled(&self, now: Instant) -> bool {
        let limiters = [&self.frames_rate, &self.bytes_rate, &self.handshake_rate];
        limiters.into_iter().all(|limiter| limiter.ahead(now).is_zero())
    }
}

/// The account whose quota is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// The account of the whole relay.
    Node,
    /// The account of one executor and its orchestrators.
    Environment,
    /// The account of all websockets with one token.
    Token,
}

impl Level {
    /// All levels, for counters.
    pub const ALL: [Level; 3] = [Level::Node, Level::Environment, Level::Token];

    /// A word for people and counters.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Node => "node",
            Level::Environment => "environment",
            Level::Token => "token",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The accounts that one websocket is charged to.
#[derive(Debug, Clone, Default)]
pub struct Accounts {
    /// The relay's.
    pub node: Arc<Account>,
    /// The environment's.
    pub environment: Arc<Account>,
    /// The token's.
    pub token: Arc<Account>,
    /// The websocket's own; it bounds memory and rates only.
    pub connection: Arc<Account>,
}

impl Accounts {
    fn levels(&self) -> [(Level, &Account); 3] {
        [
            (Level::Node, &self.node),
            (Level::Environment, &self.environment),
            (Level::Token, &self.token),
        ]
    }

    fn all(&self) -> [&Account; 4] {
        [&self.node, &self.environment, &self.token, &self.connection]
    }

    pub(crate) fn free_memory(&self) -> usize {
        self.all().into_iter().map(Account::free_memory).fold(usize::MAX, usize::min)
    }

    /// How many bytes make a lane full. Without memory in the accounts that no other token
    /// is charged to, any frame does.
    pub(crate) fn full_threshold(&self) -> usize {
        let own = self.token.free_for_lanes().min(self.connection.free_for_lanes());
        if own == 0 {
            return 1;
        }
        let shared = self.node.free_for_lanes().min(self.environment.free_for_lanes());
        overflow::full_threshold(own.min(shared))
    }

    /// Free memory of the accounts that no other token is charged to. They are
    /// never overdrawn.
    pub(crate) fn own_free_memory(&self) -> usize {
        self.token.free_memory().min(self.connection.free_memory())
    }

    pub(crate) fn add_memory(&self, bytes: usize) {
        self.all().into_iter().for_each(|account| account.add_memory(bytes));
    }

    pub(crate) fn sub_memory(&self, bytes: usize) {
        self.all().into_iter().for_each(|account| account.sub_memory(bytes));
    }

    pub(crate) fn connect(&self) -> Result<(), Level> {
        self.take(Account::connect, Account::disconnect)
    }

    pub(crate) fn disconnect(&self) {
        self.levels().into_iter().for_each(|(_, account)| account.disconnect());
    }

    /// Counts a websocket again that was just given up, whatever the quota is.
    pub(crate) fn restore_connection(&self) {
        self.levels().into_iter().for_each(|(_, account)| account.restore_connection());
    }

    pub(crate) fn open_stream(&self) -> Result<(), Level> {
        self.take(Account::open_stream, Account::close_stream)
    }

    /// Counts a stream again that was just given up, whatever the quota is.
    pub(crate) fn restore_stream(&self) {
        self.levels().into_iter().for_each(|(_, account)| account.restore_stream());
    }

    pub(crate) fn close_stream(&self) {
        self.levels().into_iter().for_each(|(_, account)| account.close_stream());
    }

    /// Counts a frame that was read; returns how long to pause reading.
    pub(crate) fn read(&self, now: Instant, bytes: usize) -> Duration {
        self.all()
            .into_iter()
            .map(|account| account.read(now, bytes))
            .fold(Duration::ZERO, Duration::max)
    }

    /// # Errors
    /// The account whose rate it is beyond.
    pub(crate) fn begin_handshake(&self, now: Instant) -> Result<(), Level> {
        // The token first: a token beyond its own rate does not use up the rates
        // of others.
        match self.levels().into_iter().rev().find(|(_, account)| !account.begin_handshake(now)) {
            Some((level, _)) => Err(level),
            None => Ok(()),
        }
    }

    /// Charges all levels or none.
    fn take(&self, take: impl Fn(&Account) -> bool, give: impl Fn(&Account)) -> Result<(), Level> {
        let levels = self.levels();
        for (done, (level, account)) in levels.into_iter().enumerate() {
            if !take(account) {
                levels[..done].iter().for_each(|(_, account)| give(account));
                return Err(level);
            }
        }
        Ok(())
    }
}

/// Memory that a websocket uses besides its queues: charged to its four accounts, and
/// given back when dropped.
///
/// A charge grows only as far as it leaves as much to others, like a lane. One charge at
/// a time may overdraw an account, by no more than a frame of
/// [`limits::FRAME_MAX_BYTES`]. So a conforming endpoint is never stopped for good,
/// although others have used up the memory of an account that they share.
#[derive(Debug)]
pub struct MemoryCharge {
    accounts: Accounts,
    bytes: usize,
    /// The accounts whose overdraft it has taken.
    overdrawn: [bool; 4],
}

impl MemoryCharge {
    /// A charge of no bytes.
    pub fn new(accounts: Accounts) -> Self {
        Self { accounts, bytes: 0, overdrawn: [false; 4] }
    }

    /// The charged bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it has overdrawn an account, which no other charge can do meanwhile.
    pub fn is_overdrawn(&self) -> bool {
        self.overdrawn.contains(&true)
    }

    /// Charges `bytes` from now on, whatever the quotas are.
    pub fn set(&mut self, bytes: usize) {
        match bytes.checked_sub(self.bytes) {
            Some(0) => {}
            Some(more) => self.accounts.add_memory(more),
            None => self.shrink(bytes),
        }
        self.bytes = bytes;
    }

    /// Charges `bytes` from now on. Returns `false`, and changes nothing, if an account
    /// cannot pay for more.
    pub fn try_set(&mut self, bytes: usize) -> bool {
        let Some(more) = bytes.checked_sub(self.bytes) else {
            self.set(bytes);
            return true;
        };
        let accounts = self.accounts.all();
        let before = self.overdrawn;
        for (index, account) in accounts.into_iter().enumerate() {
            if account.try_add_memory(self.bytes, more) {
                continue;
            }
            let overdraws = bytes <= limits::FRAME_MAX_BYTES
                && !self.overdrawn[index]
                && account.try_overdraw(more);
            if !overdraws {
                accounts[..index].iter().for_each(|account| account.sub_memory(more));
                for (index, account) in accounts.into_iter().enumerate() {
                    if self.overdrawn[index] && !before[index] {
                        account.overdrawn.store(false, Relaxed);
                    }
                }
                self.overdrawn = before;
                return false;
            }
            self.overdrawn[index] = true;
        }
        self.bytes = bytes;
        true
    }

    fn shrink(&mut self, bytes: usize) {
        self.accounts.sub_memory(self.bytes - bytes);
        if bytes > 0 {
            return;
        }
        for (account, overdrawn) in self.accounts.all().into_iter().zip(&mut self.overdrawn) {
            if std::mem::take(overdrawn) {
                account.overdrawn.store(false, Relaxed);
            }
        }
    }
}

impl Drop for MemoryCharge {
    fn drop(&mut self) {
        self.set(0);
    }
}

fn take_place(places: &AtomicU64, max: u64) -> bool {
    places.fetch_update(Relaxed, Relaxed, |used| (used < max).then(|| used + 1)).is_ok()
}

/// The time that `amount` takes at `rate` per `seconds`, at most an hour. At a
/// rate of 0 it is an hour.
fn cost(amount: u64, rate: u64, seconds: u64) -> Duration {
    const HOUR: Duration = Duration::from_secs(3600);
    let nanos = u128::from(amount) * u128::from(seconds) * 1_000_000_000;
    nanos
        .checked_div(rate.into())
        .and_then(|nanos| u64::try_from(nanos).ok())
        .map_or(HOUR, |nanos| Duration::from_nanos(nanos).min(HOUR))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::t0;

    #[test]
    fn connections_and_streams_are_counted_and_refunded() {
        let account = Account::new(Quota { connections: 2, streams: 1, ..Quota::UNLIMITED });
        assert!(account.connect() && account.connect() && !account.connect());
        assert!(account.open_stream() && !account.open_stream());
        assert_eq!(account.usage(), Usage { memory_bytes: 0, connections: 2, streams: 1 });
        account.disconnect();
        account.close_stream();
        assert!(account.connect() && account.open_stream());
        account.set_quota(Quota { connections: 1, ..Quota::UNLIMITED });
        assert_eq!(account.usage().connections, 2, "connected websockets stay");
        account.disconnect();
        assert!(!account.connect());
    }

    #[test]
    fn all_accounts_are_charged_or_none() {
        let one = || Account::new(Quota { streams: 1, ..Quota::UNLIMITED });
        let full = one();
        assert!(full.open_stream());
        let accounts =
            Accounts { environment: full, token: one(), node: one(), ..Accounts::default() };
        assert_eq!(accounts.open_stream(), Err(Level::Environment));
        assert_eq!((accounts.node.usage().streams, accounts.token.usage().streams), (0, 0));
        accounts.environment.close_stream();
        assert_eq!(accounts.open_stream(), Ok(()));
        assert_eq!(accounts.open_stream(), Err(Level::Node));
    }

    fn accounts_with(memory_bytes: u64) -> Accounts {
        let one = || Account::new(Quota { memory_bytes, ..Quota::UNLIMITED });
        Accounts { node: one(), environment: one(), token: one(), connection: one() }
    }

    #[test]
    fn charges_stay_within_every_quota() {
        let accounts = accounts_with(1_000_000);
        let other = Accounts { connection: Account::new(Quota::UNLIMITED), ..accounts.clone() };
        let mut first = MemoryCharge::new(accounts.clone());
        let mut second = MemoryCharge::new(other);
        assert!(first.try_set(800_000) && !second.try_set(100_001), "half of what is free");
        assert_eq!((second.bytes(), accounts.node.usage().memory_bytes), (0, 800_000));
        assert!(second.try_set(100_000) && !first.try_set(850_001));
        assert!(first.try_set(10) && second.try_set(500_000));
        drop(second);
        assert_eq!(accounts.node.usage().memory_bytes, 10);
        drop(first);
        assert_eq!(accounts.all().map(|account| account.usage().memory_bytes), [0; 4]);
    }

    #[test]
    fn charge_beyond_the_quota_fits_an_empty_account() {
        let accounts = accounts_with(1000);
        let mut charge = MemoryCharge::new(accounts.clone());
        assert!(charge.try_set(300_000) && charge.try_set(500_000));
        assert!(!MemoryCharge::new(accounts).try_set(300_000));
    }

    #[test]
    fn one_frame_at_a_time_overdraws_an_account() {
        let accounts = accounts_with(1000);
        accounts.add_memory(1000);
        let [mut first, mut second] = [(); 2].map(|()| MemoryCharge::new(accounts.clone()));
        assert!(!first.try_set(limits::FRAME_MAX_BYTES + 1));
        assert!(first.try_set(limits::FRAME_MAX_BYTES) && !second.try_set(1));
        assert_eq!(accounts.token.usage().memory_bytes, 1000 + limits::FRAME_MAX_BYTES);
        first.set(0);
        assert!(second.try_set(1) && !first.try_set(1));
        drop(second);
        assert!(first.try_set(1));
    }

    #[test]
    fn rates_pause_reading() {
        let now = t0();
        let account = Account::new(Quota { bytes_per_second: 1000, ..Quota::UNLIMITED });
        assert_eq!(account.read(now, 1000), Duration::ZERO, "a burst");
        assert_eq!(account.read(now, 500), Duration::from_millis(500));
        let account = Account::new(Quota { frames_per_second: 10, ..Quota::UNLIMITED });
        let waits: Vec<_> = (0..12).map(|_| account.read(now, 1 << 20)).collect();
        assert_eq!(waits[9], Duration::ZERO);
        assert_eq!(waits[11], Duration::from_millis(200));
        assert_eq!(Account::default().read(now, usize::MAX), Duration::ZERO);
        let nothing = Account::new(Quota { frames_per_second: 0, ..Quota::UNLIMITED });
        assert!(nothing.read(now, 1) > Duration::from_secs(3000));
    }

    #[test]
    fn handshakes_are_rate_limited() {
        let now = t0();
        let account = Account::new(Quota { handshakes_per_minute: 6, ..Quota::UNLIMITED });
        assert_eq!((0..10).filter(|_| account.begin_handshake(now)).count(), 6);
        assert!(account.begin_handshake(now + Duration::from_secs(10)));
        assert!(!account.is_settled(now) && account.is_settled(now + Duration::from_secs(71)));
    }
}
