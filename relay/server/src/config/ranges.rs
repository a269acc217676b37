//! Checks of values that parse but are not valid settings.

use std::time::Duration;

use rendez_program::settings::Value as _;
use rendez_proto::limits;

use super::{Bounds, Config};

/// Largest configurable value: one answer holds all of them.
const CONNECTIONS_PER_ENVIRONMENT_MAX: u32 = limits::LIST_PAGE_MAX;

const _: () = assert!(limits::CONNECTIONS_PER_ENVIRONMENT <= CONNECTIONS_PER_ENVIRONMENT_MAX);

/// Checks the setting that was set last.
///
/// # Errors
/// The reason why the value is not valid.
pub(super) fn check_value(config: &Config, name: &str) -> Result<(), String> {
    match name {
        "connections_max" if config.connections_max == 0 => {
            Err("at least 1: with 0 no client is served".to_owned())
        }
        "drain.deadline" if config.drain_deadline.is_zero() => {
            Err("more than 0s: with 0s no client would get a reconnect window; \
                 a second SIGTERM also ends the relay at once"
                .to_owned())
        }
        "drain.reconnects_per_second" if config.drain_reconnects_per_second == 0 => {
            Err("at least 1: with 0 no websocket could reconnect".to_owned())
        }
        "tls.handshakes_max" if config.tls_handshakes_max == 0 => {
            Err("at least 1: with 0 no client is served".to_owned())
        }
        "tls.handshake_timeout" if config.tls_handshake_timeout.is_zero() => {
            Err("more than 0s: every handshake would time out".to_owned())
        }
        "tls.reload_every" if config.tls_reload_every.is_zero() => {
            Err("more than 0s: the relay would check the files without a pause".to_owned())
        }
        "connect_wait" => {
            at_most(config.connect_wait, limits::CONNECT_WAIT_MAX, "clients give up after that")
        }
        "audit.rows" if config.audit_rows == 0 => {
            Err("at least 1 row: an empty log cannot be verified".to_owned())
        }
        "audit.keep" => check_retention(config.audit_keep),
        "history.keep" => check_retention(config.history_keep),
        "history.connections" => {
            let (max, wanted) = (CONNECTIONS_PER_ENVIRONMENT_MAX, config.history_connections);
            match wanted {
                0 => {
                    Err("at least 1: the last connection holds the reason why an executor is away"
                        .to_owned())
                }
                wanted if wanted > max => Err(format!("at most {max}")),
                _ => Ok(()),
            }
        }
        "quota.node" => check_bounds(&config.quota_node),
        "quota.environment" => check_bounds(&config.quota_environment),
        "quota.token" => check_bounds(&config.quota_token),
        "quota.executor_token" => check_bounds(&config.quota_executor_token),
        "quota.connection" => check_bounds(&config.quota_connection),
        _ => Ok(()),
    }
}

/// Checks the settings against each other, once all of them are read.
///
/// # Errors
/// The setting that is at fault, and the reason.
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

/// Refuses a shared bound of zero, which would admit no client. A single id may
/// have a bound of zero.
fn check_bounds(bounds: &Bounds) -> Result<(), String> {
    match bounds.first_zero() {
        Some(name) => Err(format!("{name} must be at least 1, or `none` for unlimited")),
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
        true => Err(format!("at least {text}: old rows are removed that often")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use rendez_program::settings::Settings as _;

    use super::*;

    #[test]
    fn invalid_values_are_refused_with_the_reason() {
        let cases = [
            ("connections_max", "1", "0", "no client is served"),
            ("drain.deadline", "1ms", "0s", "no client would get"),
            ("quota.node", "memory=1B", "memory=0B", "memory must be at least 1"),
            (
                "quota.environment",
                "streams=none",
                "connections=0",
                "connections must be at least 1",
            ),
            ("quota.token", "streams=1", "connections=1 streams=0", "streams must be at least 1"),
            ("quota.connection", "frames_per_second=1", "frames_per_second=0", "or `none`"),
            ("drain.reconnects_per_second", "1", "0", "no websocket could reconnect"),
            ("tls.handshakes_max", "1", "0", "no client is served"),
            ("tls.handshake_timeout", "1ms", "0s", "would time out"),
            ("tls.reload_every", "1ms", "0s", "without a pause"),
            ("connect_wait", "10s", "10s 1ms", "at most 10s: clients give up"),
            ("audit.rows", "1", "0", "at least 1 row"),
            ("audit.keep", "1h", "59m", "at least 1h: old rows"),
            ("history.keep", "1h", "0s", "at least 1h: old rows"),
            ("history.connections", "1", "0", "at least 1: the last"),
            ("history.connections", "1000", "1001", "at most 1000"),
        ];
        for (name, good, bad, why) in cases {
            assert_eq!(Config::default().set(name, good), Ok(()), "{name} {good}");
            let said = Config::default().set(name, bad).unwrap_err();
            assert!(said.contains(why), "{name} {bad}: {said}");
        }
    }
}
