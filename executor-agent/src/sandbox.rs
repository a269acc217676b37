//! Refuses sandbox and network rules, which this executor cannot enforce.
//!
//! A stock harness does not notice that an executor ignores `sandbox`
//! (docs/codex-wire.md#processes). Ignoring it would run code with rights that the
//! caller meant to withhold.

use rendez_proto::rpc::RpcError;
use serde_json::Value;

/// Accepts a request without sandbox rules, or with rules that need no enforcement
/// here: `permissions.type` is `disabled`, or `external` (another sandbox applies).
///
/// # Errors
/// -32600 for all other rules.
pub(crate) fn check(sandbox: Option<&Value>) -> Result<(), RpcError> {
    let Some(sandbox) = sandbox.filter(|sandbox| !sandbox.is_null()) else { return Ok(()) };
    match sandbox["permissions"]["type"].as_str() {
        Some("disabled" | "external") => Ok(()),
        kind => Err(RpcError::invalid_request(format!(
            "this executor cannot enforce a sandbox of type `{}`; send the request without a \
             sandbox, or use an executor that supports it",
            kind.unwrap_or("unknown").chars().take(32).collect::<String>()
        ))),
    }
}

/// Accepts a request without network rules.
///
/// # Errors
/// -32600 for any network rules.
pub(crate) fn check_network(enforce: bool, rules: Option<&Value>) -> Result<(), RpcError> {
    if !enforce && rules.is_none_or(Value::is_null) {
        return Ok(());
    }
    Err(RpcError::invalid_request(
        "this executor cannot enforce managed networking; send the request without it",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn enforced_sandbox_rules_are_refused() {
        for good in [Value::Null, json!({"permissions": {"type": "disabled"}, "cwd": "file:///"})] {
            assert_eq!(check(Some(&good)), Ok(()));
        }
        assert_eq!(check(None), Ok(()));
        assert_eq!(check(Some(&json!({"permissions": {"type": "external"}}))), Ok(()));
        for bad in [
            json!({"permissions": {"type": "managed", "network": "restricted"}}),
            json!({"permissions": {"type": "later"}}),
            json!({"permissions": {}}),
            json!({}),
            json!("disabled"),
            json!(1),
        ] {
            let error = check(Some(&bad)).unwrap_err();
            assert_eq!(error.code, rendez_proto::rpc::code::INVALID_REQUEST, "{bad}");
            assert!(error.message.contains("cannot enforce"));
        }
    }

    #[test]
    fn network_rules_are_refused() {
        assert_eq!(check_network(false, None), Ok(()));
        assert_eq!(check_network(false, Some(&Value::Null)), Ok(()));
        assert!(check_network(true, None).is_err());
        assert!(check_network(false, Some(&json!({}))).is_err());
    }
}
