//! File descriptors: one per connection, and a few more.
//!
//! Systems start programs with a low soft limit for the sake of old ones that
//! cannot handle many; the hard one is what an operator grants.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;

/// Descriptors that are no client's: database, listeners, operators, the
/// runtime.
const OTHERS: u64 = 512;

/// Takes as many as are granted, and warns if those are too few for
/// `connections_max`. For programs that start no others: they would inherit it.
pub fn raise_descriptors(config: &Config) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!(%error, "the limit of file descriptors stays low");
    }
    let granted = getrlimit(Resource::Nofile).current;
    if let Some(needed) = missing(granted, config.connections_max) {
        tracing::warn!(
            granted,
            needed,
            "too few file descriptors for connections_max; raise the limit (LimitNOFILE, \
             ulimit -Hn) or lower connections_max"
        );
    }
}

/// How many are needed, if more than are granted; `None` is without limit.
fn missing(granted: Option<u64>, connections_max: usize) -> Option<u64> {
    let needed = u64::try_from(connections_max).unwrap_or(u64::MAX).saturating_add(OTHERS);
    granted.is_some_and(|granted| granted < needed).then_some(needed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_are_noticed() {
        assert_eq!(missing(Some(1024), 20_000), Some(20_512));
        assert_eq!(missing(Some(20_511), 20_000), Some(20_512));
        assert_eq!(missing(Some(20_512), 20_000), None);
        assert_eq!(missing(None, usize::MAX), None);
    }

    #[test]
    fn the_hard_limit_is_taken() {
        raise_descriptors(&Config::default());
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
