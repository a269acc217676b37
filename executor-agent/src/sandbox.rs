//! Refuses sandbox and network rules, which this executor cannot enforce.
//!
//! A stock harness does not notice that an executor ignores `sandbox`
//! (docs/codex-wire.md#processes). Ignoring it would run code with rights that the
//! caller meant to withhold. So would ignoring a member of it that this executor does
//! not know; unknown members elsewhere in a call restrict nothing and are ignored.

use rendez_proto::rpc::RpcError;
use rendez_proto::rpc::path::PathUri;
use rendez_proto::rpc::process::Start;
use serde::Deserialize;
use serde_json::Value;

/// Characters of the caller's text that an error repeats.
const QUOTED_CHARS: usize = 200;

/// The sandbox of a request, without the members of a managed one
/// (docs/codex-wire.md#processes). Everything in it may restrict the request, so an
/// unknown member or value is an error.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Sandbox {
    permissions: Permissions,
    #[serde(rename = "cwd")]
    _cwd: Option<PathUri>,
    #[serde(rename = "workspaceRoots")]
    _workspace_roots: Option<Vec<PathUri>>,
    /// The members about Windows restrict nothing here.
    #[serde(rename = "windowsSandboxLevel")]
    _windows_sandbox_level: Option<String>,
    #[serde(rename = "windowsSandboxProxySettingsMode")]
    _windows_sandbox_proxy_settings_mode: Option<String>,
    /// How a managed sandbox is enforced.
    #[serde(rename = "useLegacyLandlock")]
    _use_legacy_landlock: Option<bool>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Permissions {
    /// No restriction.
    Disabled {},
    /// Another sandbox applies, but the network rule is this executor's.
    External { network: Network },
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Network {
    Enabled,
    Restricted,
}

/// Accepts a process without sandbox and network rules, or with rules that restrict
/// nothing.
///
/// # Errors
/// -32600 for all other rules.
pub(crate) fn check_process(start: &Start) -> Result<(), RpcError> {
    if let Some(Permissions::External { network: Network::Restricted }) =
        permissions(start.sandbox.as_ref())?
    {
        return Err(cannot_enforce("a restricted network"));
    }
    let given = |rules: &Option<Value>| rules.as_ref().is_some_and(|rules| !rules.is_null());
    if start.enforce_managed_network || given(&start.managed_network) {
        return Err(cannot_enforce("managed networking"));
    }
    if given(&start.network_proxy) {
        return Err(cannot_enforce("a network proxy"));
    }
    if given(&start.shell_snapshot) {
        return Err(cannot_enforce("a shell snapshot"));
    }
    Ok(())
}

/// Accepts a file call without sandbox rules, or with rules that do not restrict
/// files.
///
/// # Errors
/// -32600 for all other rules.
pub(crate) fn check_files(sandbox: Option<&Value>) -> Result<(), RpcError> {
    permissions(sandbox).map(drop)
}

/// The permissions of a sandbox that is not managed; `None` without a sandbox.
fn permissions(sandbox: Option<&Value>) -> Result<Option<Permissions>, RpcError> {
    let Some(sandbox) = sandbox.filter(|sandbox| !sandbox.is_null()) else { return Ok(None) };
    let kind = sandbox["permissions"]["type"].as_str();
    if !matches!(kind, Some("disabled" | "external")) {
        let kind = quoted(kind.unwrap_or("unknown"));
        return Err(cannot_enforce(&format!("a sandbox of type `{kind}`")));
    }
    let sandbox = Sandbox::deserialize(sandbox).map_err(|error| {
        let error = quoted(&error.to_string());
        cannot_enforce(&format!("this sandbox ({error})"))
    })?;
    Ok(Some(sandbox.permissions))
}

fn cannot_enforce(what: &str) -> RpcError {
    RpcError::invalid_request(format!(
        "this executor cannot enforce {what}; send the request without it, or use an executor \
         that supports it"
    ))
}

fn quoted(text: &str) -> String {
    text.chars().take(QUOTED_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use rendez_proto::rpc::code;
    use serde_json::json;

    use super::*;

    fn start(members: Value) -> Start {
        let mut start = json!({
            "processId": "p", "argv": ["true"], "cwd": "file:///", "env": {}, "tty": false
        });
        start.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
        serde_json::from_value(start).unwrap()
    }

    fn refused(result: Result<(), RpcError>, of: &Value) {
        let error = result.expect_err(&of.to_string());
        assert_eq!(error.code, code::INVALID_REQUEST, "{of}");
        assert!(error.message.contains("cannot enforce"), "{}", error.message);
        assert!(error.message.len() < 2 * QUOTED_CHARS, "{}", error.message);
    }

    #[test]
    fn rules_that_restrict_nothing_are_accepted() {
        let whole = json!({
            "permissions": {"type": "disabled"}, "cwd": "file:///w",
            "workspaceRoots": ["file:///w"], "windowsSandboxLevel": "disabled",
            "windowsSandboxProxySettingsMode": "reconcile", "useLegacyLandlock": false
        });
        for sandbox in [
            Value::Null,
            json!({"permissions": {"type": "disabled"}}),
            json!({"permissions": {"type": "external", "network": "enabled"}}),
            whole,
        ] {
            assert_eq!(check_files(Some(&sandbox)), Ok(()));
            assert_eq!(check_process(&start(json!({"sandbox": sandbox}))), Ok(()));
        }
        assert_eq!(check_files(None), Ok(()));
        // Unknown members beside the rules are ignored, as stock executors do.
        assert_eq!(
            check_process(&start(json!({
                "managedNetwork": null, "networkProxy": null, "shellSnapshot": null, "later": 1
            }))),
            Ok(())
        );
    }

    #[test]
    fn sandbox_rules_are_refused() {
        let disabled = json!({"type": "disabled"});
        for sandbox in [
            json!({"permissions": {"type": "managed", "network": "restricted"}}),
            json!({"permissions": {"type": "later"}}),
            json!({"permissions": {"type": "x".repeat(10_000)}}),
            json!({"permissions": {"type": "disabled", "later": true}}),
            json!({"permissions": {"type": "external"}}),
            json!({"permissions": {"type": "external", "network": "later"}}),
            json!({"permissions": {"type": "external", "network": null}}),
            json!({"permissions": {"type": "external", "network": "enabled", "later": 1}}),
            json!({"permissions": disabled, "later": {}}),
            json!({"permissions": disabled, "later": null}),
            json!({"permissions": disabled, "x".repeat(10_000): 1}),
            json!({"permissions": disabled, "useLegacyLandlock": "yes"}),
            json!({"permissions": disabled, "workspaceRoots": "file:///"}),
            json!({"permissions": {}}),
            json!({}),
            json!("disabled"),
            json!(1),
        ] {
            refused(check_files(Some(&sandbox)), &sandbox);
            refused(check_process(&start(json!({"sandbox": sandbox}))), &sandbox);
        }
    }

    #[test]
    fn network_rule_restricts_processes_only() {
        let sandbox = json!({"permissions": {"type": "external", "network": "restricted"}});
        assert_eq!(check_files(Some(&sandbox)), Ok(()));
        refused(check_process(&start(json!({"sandbox": sandbox}))), &sandbox);
    }

    #[test]
    fn rules_beside_the_sandbox_are_refused() {
        for rules in [
            json!({"enforceManagedNetwork": true}),
            json!({"managedNetwork": {}}),
            json!({"managedNetwork": {"later": 1}}),
            json!({"networkProxy": {"proxy": {"enabled": true}}}),
            json!({"networkProxy": {}}),
            json!({"networkProxy": false}),
            json!({"shellSnapshot": {}}),
            json!({"shellSnapshot": "file:///snapshot"}),
        ] {
            refused(check_process(&start(rules.clone())), &rules);
        }
    }
}
