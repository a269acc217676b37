//! Values that can be read and make no sense.

use std::time::Duration;

use rendez_program::settings::Value as _;
use rendez_proto::limits;

use super::{Bounds, Config};

/// The most that it may be configured to: one answer holds them all.
const CONNECTIONS_PER_ENVIRONMENT_MAX: u32 = limits::LIST_PAGE_MAX;

const _: () = assert!(limits::CONNECTIONS_PER_ENVIRONMENT <= CONNECTIONS_PER_ENVIRONMENT_MAX);

/// Checks the setting that was set last.
///
/// # Errors
/// Why it cannot be so.
pub(super) fn check_value(config: &Config, name: &str) -> Result<(), String> {
    match name {
        "connections_max" if config.connections_max == 0 => {
            Err("at least 1: with none nobody is served".to_owned())
        }
        "drain.deadline" if config.drain_deadline.is_zero() => {
            Err("more than 0s: nobody would be told to come back; \
                 a second SIGTERM leaves at once, too"
                .to_owned())
        }
        "drain.reconnects_per_second" if config.drain_reconnects_per_second == 0 => {
            Err("at least 1: else nobody would come back".to_owned())
        }
        "tls.handshakes_max" if config.tls_handshakes_max == 0 => {
            Err("at least 1: with none nobody is served".to_owned())
        }
        "tls.handshake_timeout" if config.tls_handshake_timeout.is_zero() => {
            Err("more than 0s: nobody would be in time".to_owned())
        }
        "tls.reload_every" if config.tls_reload_every.is_zero() => {
            Err("more than 0s: the files would be looked at without a pause".to_owned())
        }
        "connect_wait" => at_most(
            config.connect_wait,
            limits::CONNECT_WAIT_MAX,
            "whoever asks gives up after that",
        ),
        "audit.rows" if config.audit_rows == 0 => {
            Err("at least 1 row is kept: a log that keeps none cannot be verified".to_owned())
        }
        "audit.keep" => check_retention(config.audit_keep),
        "history.keep" => check_retention(config.history_keep),
        "history.connections" => {
            let (max, wanted) = (CONNECTIONS_PER_ENVIRONMENT_MAX, config.history_connections);
            match wanted {
                0 => Err("at least 1 is kept: it says why an executor is away".to_owned()),
                wanted if wanted > max => Err(format!("at most {max} are kept")),
                _ => Ok(()),
            }
        }
        "quota.node" => check_bounds(&config.quota_node),
        "quota.environment" => check_bounds(&config.quota_environment),
        "quota.token" => check_bounds(&config.quota_token),
        "quota.connection" => check_bounds(&config.quota_connection),
        _ => Ok(()),
    }
}

/// Checks what settings say check_all, once all of them are read.
///
/// # Errors
/// The setting that is at fault, and why it cannot be so beside the other.
pub(super) fn check_all(config: &Config) -> Result<(), (&'static str, String)> {
    let (announce, deadline) = (config.drain_announce, config.drain_deadline);
    if announce >= deadline {
        let [announce, deadline] = [announce, deadline].map(|span| span.text());
        return Err((
            "drain.announce",
            format!(
                "{announce} is not less than `drain.deadline`, which is {deadline}: \
                 no time would be left to send anybody away"
            ),
        ));
    }
    Ok(())
}

/// What bounds everybody lets somebody in. Single ids may be shut out.
fn check_bounds(bounds: &Bounds) -> Result<(), String> {
    match bounds.first_zero() {
        Some(name) => Err(format!("{name}=0 would let nobody in; write at least 1, or none")),
        None => Ok(()),
    }
}

fn at_most(value: Duration, max: Duration, why: &str) -> Result<(), String> {
    let text = humantime::format_duration(max);
    if value > max { Err(format!("at most {text}: {why}")) } else { Ok(()) }
}

fn check_retention(keep: Duration) -> Result<(), String> {
    let least = limits::KEEP_MIN;
    let text = humantime::format_duration(least);
    match keep < least {
        true => Err(format!("at least {text}: what is older is looked for that often")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use rendez_program::settings::Settings as _;

    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused_with_the_reason() {
        let cases = [
            ("connections_max", "1", "0", "nobody is served"),
            ("drain.deadline", "1ms", "0s", "nobody would be told"),
            ("quota.node", "memory=1B", "memory=0B", "memory=0 would let nobody in"),
            ("quota.environment", "streams=none", "connections=0", "connections=0 would let"),
            ("quota.token", "streams=1", "connections=1 streams=0", "streams=0 would let"),
            ("quota.connection", "frames_per_second=1", "frames_per_second=0", "or none"),
            ("drain.reconnects_per_second", "1", "0", "nobody would come back"),
            ("tls.handshakes_max", "1", "0", "nobody is served"),
            ("tls.handshake_timeout", "1ms", "0s", "nobody would be in time"),
            ("tls.reload_every", "1ms", "0s", "without a pause"),
            ("connect_wait", "10s", "10s 1ms", "at most 10s: whoever asks gives up"),
            ("audit.rows", "1", "0", "at least 1 row"),
            ("audit.keep", "1h", "59m", "at least 1h: what is older"),
            ("history.keep", "1h", "0s", "at least 1h: what is older"),
            ("history.connections", "1", "0", "at least 1 is kept"),
            ("history.connections", "1000", "1001", "at most 1000 are kept"),
        ];
        for (name, good, bad, why) in cases {
            assert_eq!(Config::default().set(name, good), Ok(()), "{name} {good}");
            let said = Config::default().set(name, bad).unwrap_err();
            assert!(said.contains(why), "{name} {bad}: {said}");
        }
    }
}
