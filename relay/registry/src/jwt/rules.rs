//! Rules from claims to permissions.

use serde_json::{Map, Value};

use super::config::{InvalidIssuer, IssuerConfig, RuleConfig};
use crate::model::token::glob;
use crate::model::{Grant, Role, TokenPattern};

pub(super) struct Rules(Vec<Rule>);

struct Rule {
    claims: Vec<(String, String)>,
    role: Role,
    environments: Vec<Part>,
}

/// A piece of a template.
enum Part {
    Text(String),
    Claim(String),
}

impl Rules {
    pub(super) fn new(config: &IssuerConfig) -> Result<Self, InvalidIssuer> {
        let rules: Result<_, _> = config.rules.iter().map(Rule::new).collect();
        rules.map(Self).map_err(|why| InvalidIssuer::new(config, why))
    }

    /// Returns the grants of all matching rules.
    pub(super) fn grants(&self, claims: &Map<String, Value>) -> Vec<Grant> {
        self.0.iter().filter_map(|rule| rule.grant(claims)).collect()
    }
}

impl Rule {
    fn new(config: &RuleConfig) -> Result<Self, String> {
        if config.claims.is_empty() {
            return Err("a rule needs at least one claim".to_owned());
        }
        if config.role == Role::Join {
            return Err("a rule cannot grant the role join".to_owned());
        }
        if config.role == Role::Admin && config.environments != "*" {
            return Err("a rule for admins covers the whole relay: its environments must be \"*\""
                .to_owned());
        }
        let environments = template(&config.environments)?;
        check_unambiguous(&environments)?;
        // a template that is no valid pattern with sample values never yields one
        let sample: String = environments
            .iter()
            .map(|part| match part {
                Part::Text(text) => text.as_str(),
                Part::Claim(_) => "x",
            })
            .collect();
        sample.parse::<TokenPattern>().map_err(|error| error.to_string())?;
        let claims = config.claims.clone().into_iter().collect();
        Ok(Self { claims, role: config.role, environments })
    }

    fn grant(&self, claims: &Map<String, Value>) -> Option<Grant> {
        let all = self.claims.iter().all(|(name, pattern)| {
            claim(claims, name).is_some_and(|value| matches(value, pattern))
        });
        if !all {
            return None;
        }
        let mut text = String::new();
        for part in &self.environments {
            match part {
                Part::Text(part) => text.push_str(part),
                Part::Claim(name) => text.push_str(&escaped(claim(claims, name)?.as_str()?)?),
            }
        }
        Some(Grant { role: self.role, environments: text.parse().ok()? })
    }
}

fn template(text: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}').ok_or("a `{` in the template has no `}`")?;
        parts.push(Part::Text(before.to_owned()));
        parts.push(Part::Claim(name.to_owned()));
        rest = after;
    }
    parts.push(Part::Text(rest.to_owned()));
    Ok(parts)
}

/// Checks that two values of a claim never share an environment: from left to
/// right, the end of each value is unambiguous.
fn check_unambiguous(parts: &[Part]) -> Result<(), String> {
    let mut star = false;
    // the last claim, while the text behind it could still belong to its value
    let mut open: Option<&str> = None;
    let mixed = |name: &str, what: &str| {
        format!(
            "{what} follows {{{name}}}, and `a` would have environments of `a-b`: put `__` \
             between, which is in no value"
        )
    };
    for part in parts {
        match part {
            Part::Claim(name) if star => {
                return Err(format!(
                    "{{{name}}} follows a *, and `b` would have environments of `a-b`: put the * \
                     behind it, with `__` between"
                ));
            }
            Part::Claim(name) => {
                if let Some(before) = open.replace(name) {
                    return Err(mixed(before, "a claim"));
                }
            }
            Part::Text(text) => {
                let (before, starred) =
                    text.split_once('*').map_or((&**text, false), |(b, _)| (b, true));
                open = open.filter(|_| !terminates_value(before));
                star |= starred;
                if let Some(name) = open.filter(|_| starred) {
                    return Err(mixed(name, "a *"));
                }
            }
        }
    }
    Ok(())
}

/// Whether no escaped value contains this text: in a value, `_` is followed by two
/// hexadecimal digits.
fn terminates_value(text: &str) -> bool {
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let mut digits = rest.by_ref().take(if byte == b'_' { 2 } else { 0 });
        if digits.any(|digit| !matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
            return true;
        }
    }
    false
}

fn claim<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let Some(path) = name.strip_prefix('/') else { return claims.get(name) };
    let mut steps = path.split('/').map(|step| step.replace("~1", "/").replace("~0", "~"));
    let first = claims.get(&steps.next()?)?;
    steps.try_fold(first, |value, step| value.get(step))
}

fn matches(value: &Value, pattern: &str) -> bool {
    match value {
        Value::String(text) => glob(pattern.as_bytes(), text.as_bytes()),
        Value::Bool(value) => pattern == value.to_string(),
        Value::Number(value) => pattern == value.to_string(),
        Value::Array(values) => {
            values.iter().any(|value| !value.is_array() && matches(value, pattern))
        }
        Value::Null | Value::Object(_) => false,
    }
}

/// Escapes a value for an environment id: different values stay different, and the
/// result has no star. Returns `None` for an empty value.
fn escaped(value: &str) -> Option<String> {
    let mut text = String::new();
    for byte in value.bytes() {
        match byte {
            b'-' => text.push('-'),
            byte if byte.is_ascii_alphanumeric() => text.push(char::from(byte)),
            byte => text.push_str(&format!("_{byte:02x}")),
        }
    }
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(claims: Value, environments: &str) -> Rule {
        let config = serde_json::json!({
            "claims": claims, "role": "executor", "environments": environments,
        });
        Rule::new(&serde_json::from_value(config).unwrap()).unwrap()
    }

    fn granted(rule: &Rule, claims: Value) -> Option<String> {
        let grant = rule.grant(claims.as_object().unwrap())?;
        Some(grant.environments.as_str().to_owned())
    }

    #[test]
    fn every_claim_must_match() {
        use serde_json::json;
        let rule = rule(
            json!({"repository": "acme/*", "/kubernetes.io/namespace": "ci", "groups": "dev",
                   "trusted": "true"}),
            "ci-*",
        );
        let good = json!({"repository": "acme/x", "kubernetes.io": {"namespace": "ci"},
                          "groups": ["ops", "dev"], "trusted": true});
        assert_eq!(granted(&rule, good.clone()).as_deref(), Some("ci-*"));
        for (name, value) in [
            ("repository", json!("evil/acme/x")),
            ("repository", json!(null)),
            ("kubernetes.io", json!({"namespace": "ci2"})),
            ("kubernetes.io", json!("ci")),
            ("groups", json!([["dev"]])),
            ("groups", json!({"dev": 1})),
            ("trusted", json!(false)),
        ] {
            let mut bad = good.clone();
            bad[name] = value;
            assert_eq!(granted(&rule, bad), None, "{name}");
        }
    }

    #[test]
    fn template_values_are_escaped() {
        use serde_json::json;
        let rule = rule(json!({"sub": "*"}), "ci-{repository}");
        let of = |repository: &str| granted(&rule, json!({"sub": "s", "repository": repository}));
        assert_eq!(of("acme/web-app").as_deref(), Some("ci-acme_2fweb-app"));
        assert_ne!(of("foo/bar-baz"), of("foo-bar/baz"));
        assert_ne!(of("a_2fb"), of("a/b"));
        assert_eq!(of("*").as_deref(), Some("ci-_2a"));
        assert_eq!(of(""), None);
        assert_eq!(of(&"x".repeat(200)), None);
        assert_eq!(granted(&rule, json!({"sub": "s"})), None, "the claim is missing");
    }

    #[test]
    fn claim_values_never_share_an_environment() {
        let refused = |environments: &str| {
            let config = serde_json::json!({
                "claims": {"sub": "*"}, "role": "executor", "environments": environments,
            });
            Rule::new(&serde_json::from_value(config).unwrap()).err()
        };
        for mixed in [
            "ci-{repository}-*",
            "ci-{repository}*",
            "ci-{repository}_*",
            "ci-{repository}_2*",
            "ci-{repository}_2f*",
            "ci-{repository}-x-*",
            "ci-{repository}*__",
            "ci-{repository}{ref}",
            "ci-{repository}-{ref}",
            "ci-{repository}__{ref}-*",
        ] {
            let why = refused(mixed).unwrap_or_else(|| panic!("{mixed} is accepted"));
            assert!(why.contains("put `__` between"), "{why}");
        }
        for mixed in ["*{repository}", "ci-*__{repository}", "{ref}__*-{repository}"] {
            let why = refused(mixed).unwrap_or_else(|| panic!("{mixed} is accepted"));
            assert!(why.contains("behind it"), "{why}");
        }
        for good in [
            "*",
            "ci-*-x",
            "ci-{repository}",
            "ci-{repository}-end",
            "ci-{repository}__*",
            "ci-{repository}-__*",
            "ci-{repository}_-*-*",
            "ci-{repository}_2g*",
            "{repository}__{ref}",
            "{repository}__{ref}__*",
        ] {
            assert_eq!(refused(good), None, "{good}");
        }
    }

    /// Short values, one for each kind of escaped byte.
    #[test]
    fn accepted_separators_keep_values_apart() {
        use serde_json::json;
        let bytes = ["", "a", "2", "-", "_", "/"];
        let mut values = Vec::new();
        for one in bytes {
            for two in bytes {
                values.extend(bytes.map(|three| format!("{one}{two}{three}")));
            }
        }
        values.sort();
        values.dedup();
        for separator in ["__", "_-", "-__", "_2g", "a_A-"] {
            let rule = rule(json!({"sub": "*"}), &format!("{{sub}}{separator}*"));
            for one in values.iter().filter(|value| !value.is_empty()) {
                let pattern = granted(&rule, json!({ "sub": one })).unwrap();
                for other in values.iter().filter(|other| *other != one && !other.is_empty()) {
                    // the text behind a star that looks most like a value
                    for end in ["", "a", "_2f", separator] {
                        let theirs = format!("{}{separator}{end}", escaped(other).unwrap());
                        let mine = glob(pattern.as_bytes(), theirs.as_bytes());
                        assert!(!mine, "{one:?} has {theirs} of {other:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn invalid_rules_are_refused() {
        use serde_json::json;
        for bad in [
            json!({"claims": {}, "role": "executor", "environments": "*"}),
            json!({"claims": {"sub": "a"}, "role": "executor", "environments": ""}),
            json!({"claims": {"sub": "a"}, "role": "executor", "environments": "a b"}),
            json!({"claims": {"sub": "a"}, "role": "executor", "environments": "a{b"}),
        ] {
            let config: RuleConfig = serde_json::from_value(bad.clone()).unwrap();
            assert!(Rule::new(&config).is_err(), "{bad}");
        }
        let config = json!({"claims": {"sub": "a"}, "role": "executor", "environments": "*"});
        let mut config: RuleConfig = serde_json::from_value(config).unwrap();
        config.role = Role::Join;
        assert!(Rule::new(&config).is_err());
    }
}
