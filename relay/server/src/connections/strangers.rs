//! Strangers: connections that have shown neither a valid token nor a valid ticket.
//!
//! * A new one is always let in. When strangers have used up a bound, the oldest of
//!   those that the bound is about is closed: a client needs no second to show what it
//!   has, and one that stays silent does not keep others out.
//! * A connection that has shown a credential is no stranger any more, and is never
//!   closed for another.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};

use tokio_util::sync::CancellationToken;

/// How many strangers may be connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StrangerBounds {
    /// All of them; `None`: as many as connections, and none is closed for another.
    pub(crate) max: Option<usize>,
    /// Those of one [`Network`].
    pub(crate) per_address: Option<usize>,
}

impl StrangerBounds {
    pub(crate) const NONE: StrangerBounds = StrangerBounds { max: None, per_address: None };
}

/// Whom a client can be told apart by: an IPv4 address, or the /64 of an IPv6 address,
/// of which one client usually has all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Network(IpAddr);

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
            }
            v4 => v4,
        })
    }
}

/// Why a stranger was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StrangerClosed {
    /// There are too many of its address.
    Address,
    /// There are too many strangers, or connections.
    Full,
    /// The system has no descriptor left.
    Descriptors,
}

impl StrangerClosed {
    /// All reasons, for counters.
    pub const ALL: [StrangerClosed; 3] =
        [StrangerClosed::Address, StrangerClosed::Full, StrangerClosed::Descriptors];

    /// The label of the metric.
    pub fn as_str(self) -> &'static str {
        match self {
            StrangerClosed::Address => "address",
            StrangerClosed::Full => "full",
            StrangerClosed::Descriptors => "descriptors",
        }
    }
}

/// A stranger that has to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Closed {
    /// Unknown behind a proxy that has not sent a request for it.
    pub(super) address: Option<IpAddr>,
    pub(super) why: StrangerClosed,
}

/// All strangers, by age and by address.
#[derive(Debug)]
pub(super) struct Strangers {
    bounds: StrangerBounds,
    next: u64,
    by_age: BTreeMap<u64, Stranger>,
    by_network: HashMap<Network, BTreeSet<u64>>,
}

#[derive(Debug)]
struct Stranger {
    address: Option<IpAddr>,
    close: CancellationToken,
}

impl Strangers {
    pub(super) fn new(bounds: StrangerBounds) -> Self {
        Self { bounds, next: 0, by_age: BTreeMap::new(), by_network: HashMap::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.by_age.len()
    }

    /// Lets a stranger in. Returns its number, and who has to leave for it.
    pub(super) fn add(
        &mut self,
        address: Option<IpAddr>,
        close: CancellationToken,
    ) -> (u64, Option<Closed>) {
        let number = self.next;
        self.next += 1;
        let is_full = self.bounds.max.is_some_and(|max| self.len() >= max);
        let mut closed = if is_full { self.close_oldest(StrangerClosed::Full) } else { None };
        self.by_age.insert(number, Stranger { address: None, close });
        closed = self.locate(number, address).or(closed);
        (number, closed)
    }

    /// Counts a stranger for an address. Returns who has to leave for it.
    pub(super) fn locate(&mut self, number: u64, address: Option<IpAddr>) -> Option<Closed> {
        let before = self.by_age.get(&number)?.address;
        if before.map(Network::from) == address.map(Network::from) {
            return None;
        }
        self.leave_network(number, before);
        self.by_age.get_mut(&number)?.address = address;
        let network = Network::from(address?);
        let own = self.by_network.entry(network).or_default();
        own.insert(number);
        let is_full = self.bounds.per_address.is_some_and(|max| own.len() > max);
        let oldest = own.first().copied().filter(|_| is_full)?;
        self.close(oldest, StrangerClosed::Address)
    }

    /// Closes the oldest stranger, unless strangers have no bounds.
    pub(super) fn close_oldest(&mut self, why: StrangerClosed) -> Option<Closed> {
        self.bounds.max?;
        let (oldest, _) = self.by_age.first_key_value()?;
        self.close(*oldest, why)
    }

    fn close(&mut self, number: u64, why: StrangerClosed) -> Option<Closed> {
        let stranger = self.remove(number)?;
        stranger.close.cancel();
        Some(Closed { address: stranger.address, why })
    }

    /// Forgets one that has left or is no stranger any more.
    pub(super) fn forget(&mut self, number: u64) {
        self.remove(number);
    }

    fn remove(&mut self, number: u64) -> Option<Stranger> {
        let stranger = self.by_age.remove(&number)?;
        self.leave_network(number, stranger.address);
        Some(stranger)
    }

    fn leave_network(&mut self, number: u64, address: Option<IpAddr>) {
        let Some(network) = address.map(Network::from) else { return };
        if let Some(own) = self.by_network.get_mut(&network) {
            own.remove(&number);
            if own.is_empty() {
                self.by_network.remove(&network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Table(Strangers);

    impl Table {
        fn new(max: usize, per_address: usize) -> Self {
            let bounds = StrangerBounds { max: Some(max), per_address: Some(per_address) };
            Self(Strangers::new(bounds))
        }

        fn add(&mut self, address: &str) -> (u64, CancellationToken, Option<Closed>) {
            let close = CancellationToken::new();
            let address = (!address.is_empty()).then(|| address.parse().unwrap());
            let (number, closed) = self.0.add(address, close.clone());
            (number, close, closed)
        }
    }

    fn closed(address: &str, why: StrangerClosed) -> Option<Closed> {
        Some(Closed { address: Some(address.parse().unwrap()), why })
    }

    #[test]
    fn oldest_stranger_leaves_when_full() {
        let mut table = Table::new(2, 9);
        let (_, first, _) = table.add("192.0.2.1");
        let (second, second_close, _) = table.add("192.0.2.2");
        let (_, _, left) = table.add("192.0.2.3");
        assert_eq!(left, closed("192.0.2.1", StrangerClosed::Full));
        assert!(first.is_cancelled() && !second_close.is_cancelled());
        // One that has shown a token has left the table, so the third goes.
        table.0.forget(second);
        let (_, _, left) = table.add("192.0.2.4");
        assert_eq!(left, None);
        let (_, _, left) = table.add("192.0.2.5");
        assert_eq!(left, closed("192.0.2.3", StrangerClosed::Full));
        assert!(!second_close.is_cancelled());
        assert_eq!((table.0.len(), table.0.by_network.len()), (2, 2));
    }

    #[test]
    fn addresses_are_bounded_by_their_network() {
        let mut table = Table::new(9, 2);
        for address in ["2001:db8:0:1::1", "2001:db8:0:2::1", "2001:db8:0:1:ffff::2", "10.0.0.1"] {
            assert_eq!(table.add(address).2, None, "{address}");
        }
        let left = table.add("2001:db8:0:1::3").2;
        assert_eq!(left, closed("2001:db8:0:1::1", StrangerClosed::Address));
        assert_eq!(table.add("::ffff:10.0.0.1").2, None, "the second of an IPv4 address");
        assert!(table.add("10.0.0.1").2.is_some());
    }

    #[test]
    fn proxied_strangers_count_for_the_address_that_the_proxy_names() {
        let mut table = Table::new(9, 1);
        let (first, close, _) = table.add("");
        let (second, _, left) = table.add("");
        assert_eq!(left, None, "a proxy's connections are not bounded");
        let address = Some("192.0.2.1".parse().unwrap());
        assert_eq!(table.0.locate(first, address), None);
        assert_eq!(table.0.locate(first, address), None, "the same again");
        let left = table.0.locate(second, address);
        assert_eq!(left, closed("192.0.2.1", StrangerClosed::Address));
        assert!(close.is_cancelled());
        assert_eq!(table.0.locate(second, Some("192.0.2.9".parse().unwrap())), None);
        assert_eq!((table.0.len(), table.0.by_network.len()), (1, 1));
    }

    #[test]
    fn without_bounds_nobody_leaves() {
        let mut table = Table(Strangers::new(StrangerBounds::NONE));
        for _ in 0..100 {
            assert_eq!(table.add("192.0.2.1").2, None);
        }
        assert_eq!(table.0.close_oldest(StrangerClosed::Full), None);
    }
}
