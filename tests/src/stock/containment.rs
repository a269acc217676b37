//! Proof that nothing started from here can reach another host.
//!
//! It reads the kernel's view of the process's own network namespace in `/proc/net`;
//! `/sys/class/net` shows the namespace in which it was mounted.

use std::collections::BTreeSet;
use std::fs::read_to_string;
use std::io;

/// Interfaces that Linux creates in every new network namespace once their
/// module is loaded. They are down and lead nowhere until someone gives them
/// a route.
const FALLBACK_TUNNELS: [&str; 9] =
    ["tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6tnl0", "ip6_vti0", "ip6gre0", "sit0"];

/// Refuses to go on where the network is more than loopback.
///
/// # Panics
/// If there is another interface or route in this network namespace, or if that
/// cannot be determined.
pub fn require_loopback_only() {
    match Tables::read() {
        Ok(tables) => {
            let ways_out = tables.ways_out();
            assert!(
                ways_out.is_empty(),
                "stock Codex contacts internet hosts when it starts and runs only where loopback \
                 is the whole network, but here is {ways_out:?}: run this with tests/netns.sh"
            );
        }
        Err(error) => panic!("cannot tell whether loopback is the whole network: {error}"),
    }
}

/// The kernel's tables of interfaces and routes, as text.
struct Tables {
    interfaces: String,
    routes: String,
    routes_v6: String,
}

impl Tables {
    fn read() -> io::Result<Self> {
        Ok(Self {
            interfaces: read_to_string("/proc/net/dev")?,
            routes: read_to_string("/proc/net/route")?,
            // Absent where IPv6 is turned off: no routes.
            routes_v6: match read_to_string("/proc/net/ipv6_route") {
                Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
                routes => routes?,
            },
        })
    }

    /// Names of the interfaces through which a packet could leave.
    fn ways_out(&self) -> BTreeSet<&str> {
        let present = self
            .interfaces
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, _counters)| name.trim())
            .filter(|name| !FALLBACK_TUNNELS.contains(name));
        // The name is the first column of the one table, the last of the other.
        let routed = self.routes.lines().skip(1).filter_map(|line| line.split_whitespace().next());
        let routed_v6 =
            self.routes_v6.lines().filter_map(|line| line.split_whitespace().next_back());
        present.chain(routed).chain(routed_v6).filter(|name| *name != "lo").collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERFACES: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0
";
    const ROUTES: &str =
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
    const ROUTES_V6: &str = "\
00000000000000000000000000000001 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001       lo
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo
";

    fn ways_out(interfaces: &str, routes: &str, routes_v6: &str) -> Vec<String> {
        let tables = Tables {
            interfaces: format!("{INTERFACES}{interfaces}"),
            routes: format!("{ROUTES}{routes}"),
            routes_v6: format!("{ROUTES_V6}{routes_v6}"),
        };
        tables.ways_out().into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn loopback_alone_is_accepted() {
        assert!(ways_out("", "", "").is_empty());
    }

    #[test]
    fn interface_without_route_is_refused() {
        assert_eq!(ways_out("  eth0: 5186 42 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n", "", ""), ["eth0"]);
    }

    #[test]
    fn fallback_tunnel_counts_only_with_a_route() {
        let tunnel = "  sit0: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n";
        assert!(ways_out(tunnel, "", "").is_empty());
        let route = "sit0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
        assert_eq!(ways_out(tunnel, route, ""), ["sit0"]);
        let route_v6 = "fe800000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     sit0\n";
        assert_eq!(ways_out(tunnel, "", route_v6), ["sit0"]);
    }

    #[test]
    fn kernel_tables_can_be_read() {
        let tables = Tables::read().unwrap();
        assert!(tables.interfaces.contains("lo:"), "{}", tables.interfaces);
    }
}
