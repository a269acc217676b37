//! The limit of open file descriptors: one per connection, and a few more.
//!
//! Systems start programs with a low soft limit because some old programs cannot
//! handle many descriptors. The hard limit is the one that the operator grants.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that are not clients': database, listeners, operators, runtime.
const OTHERS: u64 = 512;

/// Raises the soft limit to the hard limit, and warns if that is too low for
/// `connections_max`. Not for programs that start child processes, which would
/// inherit the limit.
pub fn raise_descriptor_limit(connections_max: usize) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!(%error, "cannot raise the limit of file descriptors");
    }
    let granted = getrlimit(Resource::Nofile).current;
    if let Some(needed) = missing(granted, connections_max) {
        tracing::warn!(
            granted,
            needed,
            "too few file descriptors for connections_max: raise the limit (LimitNOFILE, \
             ulimit -Hn) or lower connections_max"
        );
    }
}

/// The number of descriptors that are needed, if it exceeds `granted`; `None` is
/// unlimited.
fn missing(granted: Option<u64>, connections_max: usize) -> Option<u64> {
    let needed = u64::try_from(connections_max).unwrap_or(u64::MAX).saturating_add(OTHERS);
    granted.is_some_and(|granted| granted < needed).then_some(needed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_low_limit_is_noticed() {
        assert_eq!(missing(Some(1024), 20_000), Some(20_512));
        assert_eq!(missing(Some(20_511), 20_000), Some(20_512));
        assert_eq!(missing(Some(20_512), 20_000), None);
        assert_eq!(missing(None, usize::MAX), None);
    }

    #[test]
    fn soft_limit_is_raised_to_hard_limit() {
        raise_descriptor_limit(20_000);
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
