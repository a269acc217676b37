//! From claims to what they permit.

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

    /// All that these claims permit.
    pub(super) fn grants(&self, claims: &Map<String, Value>) -> Vec<Grant> {
        self.0.iter().filter_map(|rule| rule.grant(claims)).collect()
    }
}

impl Rule {
    fn new(config: &RuleConfig) -> Result<Self, String> {
        if config.claims.is_empty() {
            return Err("a rule must name a claim: else it is for everybody".to_owned());
        }
        if config.role == Role::Join {
            return Err("a rule cannot have the role join".to_owned());
        }
        if config.role == Role::Admin && config.environments != "*" {
            return Err(
                "a rule for admins is for the whole relay: its environments are \"*\"".to_owned()
            );
        }
        let environments = template(&config.environments)?;
        // with values put in, what is not a pattern now would never be one
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
        let (name, after) = after.split_once('}').ok_or("a { in it has no }")?;
        parts.push(Part::Text(before.to_owned()));
        parts.push(Part::Claim(name.to_owned()));
        rest = after;
    }
    parts.push(Part::Text(rest.to_owned()));
    Ok(parts)
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

/// A value as a part of an environment's id: no two values become the same, and
/// none becomes a star. An empty one is no part.
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
    fn values_in_templates_stay_apart_and_grant_no_stars() {
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
    fn rules_that_cannot_be_are_refused() {
        use serde_json::json;
        for bad in [
            json!({"claims": {}, "role": "executor", "environments": "*"}),
            json!({"claims": {"sub": "a"}, "role": "join", "environments": "*"}),
            json!({"claims": {"sub": "a"}, "role": "executor", "environments": ""}),
            json!({"claims": {"sub": "a"}, "role": "executor", "environments": "a b"}),
            json!({"claims": {"sub": "a"}, "role": "executor", "environments": "a{b"}),
        ] {
            let config: RuleConfig = serde_json::from_value(bad.clone()).unwrap();
            assert!(Rule::new(&config).is_err(), "{bad}");
        }
    }
}
