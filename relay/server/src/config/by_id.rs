//! Bounds of single environments or tokens, by their ids.
//!
//! In a file they are a section with an id and its bounds per line; as a flag or
//! a variable they are one text: `ID streams=5; ID memory=none`.

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::str::FromStr;

use rendez_program::settings::{Value, table};
use rendez_relay_core::Quota;

use super::bounds::Bounds;

/// Most environments, and most tokens, with quotas of their own: people maintain
/// the file by hand. Each costs a line, not an account.
const QUOTAS_BY_ID_MAX: usize = 10_000;

/// Some bounds per id; omitted bounds are those of the kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ById<Id: Ord>(BTreeMap<Id, Bounds>);

impl<Id: Ord> Default for ById<Id> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<Id: Ord + Display> ById<Id> {
    /// Returns the quota of each id: its bounds applied to those of its kind.
    pub fn apply_to(&self, kind: Quota) -> BTreeMap<String, Quota> {
        self.0.iter().map(|(id, bounds)| (id.to_string(), bounds.apply_to(kind))).collect()
    }
}

impl<Id> Value for ById<Id>
where
    Id: Ord + Display + Debug + FromStr<Err: Display>,
{
    const TABLE: bool = true;

    fn parse(text: &str) -> Result<Self, String> {
        let mut all = BTreeMap::new();
        for (id, bounds) in table::split(text) {
            let id: Id = id.parse().map_err(|error| format!("{id:?}: {error}"))?;
            let bounds = Bounds::parse(bounds).map_err(|error| format!("{id}: {error}"))?;
            if all.contains_key(&id) {
                return Err(format!("{id} is listed twice"));
            }
            all.insert(id, bounds);
        }
        let max = QUOTAS_BY_ID_MAX;
        if all.len() > max {
            return Err(format!("{} ids are named, at most {max} may be", all.len()));
        }
        Ok(Self(all))
    }

    fn text(&self) -> String {
        let entries = self.entries().into_iter().map(|(id, bounds)| format!("{id} {bounds}"));
        table::join(&entries.collect::<Vec<_>>())
    }

    fn entries(&self) -> BTreeMap<String, String> {
        self.0.iter().map(|(id, bounds)| (id.to_string(), bounds.text())).collect()
    }
}

#[cfg(test)]
mod tests {
    use rendez_proto::ids::EnvironmentId;
    use rendez_registry::model::Subject;

    use super::*;

    type Environments = ById<EnvironmentId>;

    #[test]
    fn bounds_of_an_id_override_its_kind() {
        let text = "a memory=none streams=5; b-1 connections=2; c ";
        let all = Environments::parse(text).unwrap();
        assert_eq!(all.text(), text);
        assert_eq!(Environments::parse(" ; ").unwrap(), Environments::default());
        let kind = Quota { memory_bytes: 7, connections: 9, ..Quota::UNLIMITED };
        let quotas = all.apply_to(kind);
        assert_eq!(quotas.keys().collect::<Vec<_>>(), ["a", "b-1", "c"]);
        assert_eq!(quotas["a"], Quota { streams: 5, memory_bytes: Quota::NONE, ..kind });
        assert_eq!(quotas["b-1"], Quota { connections: 2, ..kind });
        assert_eq!(quotas["c"], kind);
    }

    #[test]
    fn invalid_bounds_are_named() {
        for (text, expected) in [
            ("a stream=1", "a: there is no bound \"stream\""),
            ("a streams=1; a streams=2", "a is listed twice"),
            ("a/b streams=1", "\"a/b\": environment id contains '/'"),
        ] {
            let said = Environments::parse(text).unwrap_err();
            assert!(said.contains(expected), "{text}: {said}");
        }
        let said = ById::<Subject>::parse("laptop streams=1").unwrap_err();
        assert!(said.contains("hexadecimal"), "{said}");
        assert!(ById::<Subject>::parse("0011223344556677 streams=1").is_ok());
    }

    #[test]
    fn there_may_be_so_many() {
        let text = |n: usize| (0..n).map(|n| format!("e{n} streams=1;")).collect::<String>();
        assert!(Environments::parse(&text(QUOTAS_BY_ID_MAX)).is_ok());
        let said = Environments::parse(&text(QUOTAS_BY_ID_MAX + 1)).unwrap_err();
        assert!(said.contains("at most"), "{said}");
    }
}
