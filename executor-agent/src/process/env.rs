//! The environment variables of a child (docs/codex-wire.md#processes).
//!
//! Without a policy the child gets exactly `Start::env`. With one, these steps
//! apply in order: inherit, default excludes, `exclude`, `set`, `includeOnly`; then
//! `Start::env` is added. No policy can make a child inherit a variable that the
//! agent withholds, such as its token.

use std::collections::BTreeMap;

use rendez_proto::rpc::RpcError;
use rendez_proto::rpc::process::{EnvPolicy, Inherit};

/// The variables of `inherit: core`.
const CORE: [&str; 9] =
    ["HOME", "LOGNAME", "PATH", "SHELL", "USER", "USERNAME", "TMPDIR", "TEMP", "TMP"];

/// Excluded patterns unless `ignoreDefaultExcludes` is set.
const DEFAULT_EXCLUDES: [&str; 3] = ["*KEY*", "*SECRET*", "*TOKEN*"];

/// Builds the variables of a child. `own` are those of the executor; names in
/// `withheld` are not inherited.
///
/// # Errors
/// -32602 for an invalid name of a variable.
pub(super) fn resolve(
    policy: Option<&EnvPolicy>,
    env: &BTreeMap<String, String>,
    own: impl Iterator<Item = (String, String)>,
    withheld: &[&str],
) -> Result<BTreeMap<String, String>, RpcError> {
    let own = own.filter(|(name, _)| !withheld.contains(&name.as_str()));
    let mut vars = policy.map(|policy| inherited(policy, own)).unwrap_or_default();
    vars.extend(env.iter().map(|(name, value)| (name.clone(), value.clone())));
    match vars.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
        Some(name) => Err(RpcError::invalid_params(format!(
            "{name:?} cannot be the name of an environment variable"
        ))),
        None => Ok(vars),
    }
}

fn inherited(
    policy: &EnvPolicy,
    own: impl Iterator<Item = (String, String)>,
) -> BTreeMap<String, String> {
    let any = |patterns: &[String], name: &str| patterns.iter().any(|p| matches(p, name));
    let mut vars: BTreeMap<_, _> = own
        .filter(|(name, _)| match policy.inherit {
            Inherit::All => true,
            Inherit::Core => CORE.iter().any(|core| core.eq_ignore_ascii_case(name)),
            Inherit::None => false,
        })
        .filter(|(name, _)| {
            policy.ignore_default_excludes || !DEFAULT_EXCLUDES.iter().any(|p| matches(p, name))
        })
        .filter(|(name, _)| !any(&policy.exclude, name))
        .collect();
    vars.extend(policy.set.clone());
    if !policy.include_only.is_empty() {
        vars.retain(|name, _| any(&policy.include_only, name));
    }
    vars
}

/// Whether all of `text` matches `pattern`: `*` matches any text, `?` any one byte.
/// Ignores ASCII case.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // where to continue if the last star must match more
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                p += 1;
                retry = Some((p, t));
            }
            Some(&byte) if byte == b'?' || byte.eq_ignore_ascii_case(&text[t]) => {
                p += 1;
                t += 1;
            }
            _ => match retry {
                Some((after_star, from)) => {
                    p = after_star;
                    t = from + 1;
                    retry = Some((after_star, from + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "RENDEZ_TOKEN";

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn own() -> BTreeMap<String, String> {
        map(&[
            ("PATH", "/bin"),
            ("HOME", "/root"),
            ("API_KEY", "k"),
            ("EDITOR", "vi"),
            (TOKEN, "secret"),
        ])
    }

    fn names(policy: EnvPolicy, env: &[(&str, &str)]) -> String {
        let vars = resolve(Some(&policy), &map(env), own().into_iter(), &[TOKEN]).unwrap();
        vars.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn child_without_policy_gets_exactly_env() {
        let vars = resolve(None, &map(&[("A", "1")]), own().into_iter(), &[]).unwrap();
        assert_eq!(vars, map(&[("A", "1")]));
    }

    #[test]
    fn inherit_selects_the_base_variables() {
        let all = EnvPolicy::inherit_all();
        assert_eq!(names(all.clone(), &[]), "API_KEY=k EDITOR=vi HOME=/root PATH=/bin");
        let core = EnvPolicy { inherit: Inherit::Core, ..all.clone() };
        assert_eq!(names(core, &[]), "HOME=/root PATH=/bin");
        let none = EnvPolicy { inherit: Inherit::None, ..all };
        assert_eq!(names(none, &[("B", "2")]), "B=2");
    }

    #[test]
    fn policy_steps_apply_in_order() {
        let policy = EnvPolicy {
            ignore_default_excludes: false,
            exclude: vec!["ed*".into()],
            set: map(&[("EDITOR", "ed"), ("X_TOKEN", "t"), ("DROPPED", "d")]),
            include_only: vec!["PATH".into(), "e?itor".into(), "X_*".into()],
            ..EnvPolicy::inherit_all()
        };
        assert_eq!(
            names(policy, &[("PATH", "/opt"), ("Z", "z")]),
            "EDITOR=ed PATH=/opt X_TOKEN=t Z=z"
        );
    }

    #[test]
    fn withheld_variables_are_never_inherited() {
        assert!(!names(EnvPolicy::inherit_all(), &[]).contains("secret"));
    }

    #[test]
    fn invalid_variable_names_are_refused() {
        for bad in ["", "A=B", "A\0"] {
            let error = resolve(None, &map(&[(bad, "x")]), std::iter::empty(), &[]).unwrap_err();
            assert_eq!(error.code, rendez_proto::rpc::code::INVALID_PARAMS);
        }
    }

    #[test]
    fn wildcard_patterns() {
        for (pattern, text) in [
            ("*", ""),
            ("*KEY*", "my_key_2"),
            ("a?c", "ABC"),
            ("a*b*c", "a-b-b-c"),
            ("*ab", "aab"),
            ("", ""),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("?", ""), ("a", "ab"), ("a*b", "ac"), ("", "x"), ("*a?", "ba")] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }
}
