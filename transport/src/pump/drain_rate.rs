//! How fast the path takes bytes, and how many the pump may therefore buffer. Pure:
//! time is an argument.
//!
//! Bytes in the websocket's buffer, in that of TLS and unsent in the kernel are first
//! in, first out, so the order of streams is decided when the pump takes a message.
//! The pump takes only the [`budget`](DrainRate::budget) beyond what the kernel
//! accepts: what the path takes in [`BUDGET_TIME`].
//!
//! The socket shows only that it has no room and, later, that it has taken everything. Each measurement follows from that:
//!
//! * Between two moments at which a full socket was flushed, with bytes to send all
//!   the time, the kernel took as many bytes as the path did.
//! * During one blocked period the path took at most what was buffered, and what the
//!   kernel can hold.
//! * During any period the path took at least what the kernel did, less what the
//!   kernel can hold.
//! * A path that took half of the known rate for a whole period without a wait may be
//!   faster than that.
//!
//! A socket that never had to wait has no known rate, and counts as fast.

use std::time::{Duration, Instant};

use rendez_proto::limits::RECORD_PLAINTEXT_MAX_BYTES;

/// The time that the path takes for the bytes of the budget: well below what a user
/// notices, and long enough for one wake-up of the task.
const BUDGET_TIME: Duration = Duration::from_millis(20);
/// Smallest budget: a record of this size costs a tenth of its bytes in headers.
const BUDGET_MIN_BYTES: usize = 1024;
/// Largest budget: one full record.
const BUDGET_MAX_BYTES: usize = RECORD_PLAINTEXT_MAX_BYTES;
/// Shortest period that gives a rate.
const PERIOD_MIN: Duration = Duration::from_millis(50);
/// Longest period, so that a rate that has changed is noticed.
const PERIOD_MAX: Duration = Duration::from_secs(1);
/// Bytes that a kernel may accept without sending any: the limit of
/// [`tcp`](crate::tcp), one segment of 64 KiB, and some.
const KERNEL_BYTES: usize = 128 * 1024;

/// The rate at which one socket is drained.
#[derive(Debug)]
pub(super) struct DrainRate {
    /// Bytes per second; `None` until the socket had to wait.
    rate: Option<u64>,
    /// Bytes written since everything was last with the kernel.
    unflushed: usize,
    /// Since when the socket has had no room.
    blocked_since: Option<Instant>,
    period: Period,
}

/// A period in which bytes are counted.
#[derive(Debug)]
struct Period {
    began: Instant,
    bytes: u64,
    /// It began when a full socket was flushed, and there was something to send ever
    /// since.
    busy: bool,
}

impl DrainRate {
    pub(super) fn new(now: Instant) -> Self {
        let period = Period { began: now, bytes: 0, busy: false };
        Self { rate: None, unflushed: 0, blocked_since: None, period }
    }

    /// Bytes that the pump may buffer beyond what the kernel accepts, and the size to
    /// which a core should cut its messages.
    pub(super) fn budget(&self) -> usize {
        let Some(rate) = self.rate else { return BUDGET_MAX_BYTES };
        let bytes = u128::from(rate) * BUDGET_TIME.as_micros() / 1_000_000;
        usize::try_from(bytes).unwrap_or(BUDGET_MAX_BYTES).clamp(BUDGET_MIN_BYTES, BUDGET_MAX_BYTES)
    }

    /// Whether the buffered bytes have reached the budget.
    pub(super) fn is_spent(&self) -> bool {
        self.unflushed >= self.budget()
    }

    /// Notes a message that was given to the socket.
    pub(super) fn wrote(&mut self, bytes: usize) {
        self.unflushed = self.unflushed.saturating_add(bytes);
        self.period.bytes = self.period.bytes.saturating_add(bytes as u64);
    }

    /// Notes that the socket has no room.
    pub(super) fn blocked(&mut self, now: Instant) {
        self.blocked_since.get_or_insert(now);
    }

    /// Notes that there is nothing to send: from now on the kernel may run dry.
    pub(super) fn idle(&mut self) {
        self.period.busy = false;
    }

    /// Notes that everything written is with the kernel.
    pub(super) fn flushed(&mut self, now: Instant) {
        let unflushed = std::mem::take(&mut self.unflushed);
        let blocked_since = self.blocked_since.take();
        let elapsed = now.saturating_duration_since(self.period.began);
        let bytes = self.period.bytes;
        let at_least = per_second(bytes.saturating_sub(KERNEL_BYTES as u64), elapsed);
        match blocked_since {
            None => {
                if elapsed >= PERIOD_MIN {
                    self.rate = self.rate.map(|rate| rate.max(at_least));
                }
                if elapsed >= PERIOD_MAX {
                    // The path took much of the rate without a wait, so it may take more.
                    let used = per_second(bytes, elapsed);
                    let faster =
                        |rate: u64| if used >= rate / 2 { rate.saturating_mul(2) } else { rate };
                    self.rate = self.rate.map(faster);
                    self.period = Period { began: now, bytes: 0, busy: false };
                }
            }
            Some(since) => {
                let blocked = now.saturating_duration_since(since);
                if self.period.busy && elapsed >= PERIOD_MIN {
                    self.rate = Some(per_second(bytes, elapsed));
                } else if blocked >= PERIOD_MIN {
                    let at_most = per_second((unflushed + KERNEL_BYTES) as u64, blocked);
                    let rate = self.rate.map_or(at_most, |rate| rate.max(at_least));
                    self.rate = Some(rate.min(at_most));
                }
                if !self.period.busy || elapsed >= PERIOD_MIN {
                    self.period = Period { began: now, bytes: 0, busy: true };
                }
            }
        }
    }
}

fn per_second(bytes: u64, time: Duration) -> u64 {
    let per_second = u128::from(bytes) * 1_000_000 / time.as_micros().max(1);
    u64::try_from(per_second).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A kernel that takes `capacity` bytes, of which the path takes `rate` a second.
    struct Kernel {
        now: Instant,
        rate: u64,
        capacity: f64,
        held: f64,
    }

    impl Kernel {
        fn new(rate: u64) -> Self {
            let now = tokio::time::Instant::now().into_std();
            Self { now, rate, capacity: 64.0 * 1024.0, held: 0.0 }
        }

        fn pass(&mut self, time: Duration) {
            self.now += time;
            self.held = (self.held - self.rate as f64 * time.as_secs_f64()).max(0.0);
        }

        /// Writes full budgets for `time`, like the pump of a busy endpoint.
        fn busy(&mut self, meter: &mut DrainRate, time: Duration) {
            let end = self.now + time;
            let mut buffered = 0.0;
            while self.now < end {
                while !meter.is_spent() {
                    meter.wrote(meter.budget());
                    buffered += meter.budget() as f64;
                }
                if self.held + buffered > self.capacity {
                    meter.blocked(self.now);
                    // Like the kernel, which wakes a writer late.
                    while self.held > self.capacity / 8.0 {
                        self.pass(MS / 10);
                    }
                }
                self.held += std::mem::take(&mut buffered);
                self.pass(MS / 100);
                meter.flushed(self.now);
            }
        }
    }

    fn budget_of(rate: u64) -> usize {
        (rate / 50) as usize
    }

    /// Asserts that the budget is right within a quarter.
    fn assert_close(meter: &DrainRate, budget: usize) {
        let close = budget * 3 / 4..=budget * 5 / 4;
        assert!(close.contains(&meter.budget()), "{} not {budget}", meter.budget());
    }

    #[test]
    fn unblocked_socket_has_full_budget() {
        let now = tokio::time::Instant::now().into_std();
        let mut meter = DrainRate::new(now);
        for n in 0..1000 {
            meter.wrote(100);
            meter.flushed(now + n * MS);
            meter.idle();
        }
        assert_eq!(meter.budget(), BUDGET_MAX_BYTES);
    }

    #[test]
    fn budget_follows_the_rate() {
        for rate in [100_000, 125_000, 1_250_000, 2_000_000] {
            let mut kernel = Kernel::new(rate);
            let mut meter = DrainRate::new(kernel.now);
            kernel.busy(&mut meter, 3000 * MS);
            assert_close(&meter, budget_of(rate));
        }
        for (rate, budget) in [(1000, BUDGET_MIN_BYTES), (1_000_000_000, BUDGET_MAX_BYTES)] {
            let mut kernel = Kernel::new(rate);
            let mut meter = DrainRate::new(kernel.now);
            kernel.busy(&mut meter, 300_000 * MS);
            assert_eq!(meter.budget(), budget);
        }
    }

    #[test]
    fn first_wait_on_a_slow_path_reduces_the_budget() {
        let mut kernel = Kernel::new(125_000);
        let mut meter = DrainRate::new(kernel.now);
        kernel.busy(&mut meter, 600 * MS);
        assert!(meter.budget() < 4 * budget_of(125_000), "{}", meter.budget());
    }

    #[test]
    fn changed_rate_is_noticed() {
        let mut kernel = Kernel::new(125_000);
        let mut meter = DrainRate::new(kernel.now);
        kernel.busy(&mut meter, 3000 * MS);
        for rate in [2_000_000, 250_000, 1_000_000_000, 125_000] {
            kernel.rate = rate;
            kernel.busy(&mut meter, 2500 * MS);
            assert_close(&meter, budget_of(rate).min(BUDGET_MAX_BYTES));
        }
    }

    #[test]
    fn budget_recovers_without_another_wait() {
        let mut kernel = Kernel::new(125_000);
        let mut meter = DrainRate::new(kernel.now);
        kernel.busy(&mut meter, 3000 * MS);
        // Nothing was taken for a while, then everything is.
        meter.wrote(meter.budget());
        meter.blocked(kernel.now);
        meter.flushed(kernel.now + 5000 * MS);
        assert_eq!(meter.budget(), BUDGET_MIN_BYTES);
        let now = kernel.now + 5000 * MS;
        for n in 0..2000 {
            meter.wrote(10 * 1024);
            meter.flushed(now + n * MS);
            meter.idle();
        }
        assert_eq!(meter.budget(), BUDGET_MAX_BYTES);
    }

    #[test]
    fn sender_that_is_limited_elsewhere_recovers() {
        let now = tokio::time::Instant::now().into_std();
        let mut meter = DrainRate::new(now);
        meter.wrote(meter.budget());
        meter.blocked(now);
        meter.flushed(now + 60_000 * MS);
        assert_eq!(meter.budget(), BUDGET_MIN_BYTES);
        // Its window is a number of messages of this size in each round trip.
        for round_trip in 0..200 {
            for _ in 0..32 {
                meter.wrote(meter.budget());
            }
            meter.flushed(now + 60_000 * MS + round_trip * 100 * MS);
            meter.idle();
        }
        assert_eq!(meter.budget(), BUDGET_MAX_BYTES);
    }

    #[test]
    fn pauses_of_the_sender_do_not_reduce_the_budget() {
        let mut kernel = Kernel::new(1_250_000);
        let mut meter = DrainRate::new(kernel.now);
        kernel.busy(&mut meter, 3000 * MS);
        let budget = meter.budget();
        for _ in 0..20 {
            meter.idle();
            kernel.pass(3000 * MS);
            kernel.busy(&mut meter, 300 * MS);
        }
        assert_close(&meter, budget);
    }
}
