//! The report of a probe.

use std::fmt;
use std::time::Duration;

use rendez_orchestrator::EnvironmentId;
use serde_json::{Value, json};

use super::Measured;

/// The percentiles in a report.
const PERCENTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0)];

/// The measured durations of one kind.
#[derive(Default)]
pub(super) struct Samples(Vec<Duration>);

impl Samples {
    pub(super) fn add(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    /// Percentiles by nearest rank, in milliseconds.
    fn percentiles(&self) -> [(&'static str, f64); PERCENTILES.len()] {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        PERCENTILES.map(|(name, share)| {
            let rank = (share * sorted.len() as f64).ceil() as usize;
            let sample = sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default();
            (name, millis(sample))
        })
    }

    fn json(&self) -> Value {
        let percentiles = self.percentiles().map(|(name, millis)| (name.to_owned(), json!(millis)));
        let count = ("count".to_owned(), json!(self.0.len()));
        Value::Object(percentiles.into_iter().chain([count]).collect())
    }
}

/// Milliseconds with three decimal digits.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// All results of a probe.
pub(super) struct Report {
    pub(super) relay: String,
    pub(super) environment: EnvironmentId,
    /// The time until the temporary executor was connected.
    pub(super) register: Option<Duration>,
    pub(super) measured: Measured,
}

impl Report {
    fn kinds(&self) -> [(&'static str, &Samples); 5] {
        let measured = &self.measured;
        [
            ("ask", &measured.ask),
            ("dial", &measured.dial),
            ("handshake", &measured.handshake),
            ("connect", &measured.connect),
            ("round_trip", &measured.round_trip),
        ]
    }

    pub(super) fn json(&self) -> Value {
        let mut report = json!({
            "relay": self.relay,
            "environment": self.environment.as_str(),
            "throw_away": self.register.is_some(),
            "profile": self.measured.profile,
        });
        if let Some(register) = self.register {
            report["register_ms"] = json!(millis(register));
        }
        for (kind, samples) in self.kinds() {
            report[format!("{kind}_ms")] = samples.json();
        }
        report
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (profile, environment) = (self.measured.profile, self.environment.as_str());
        writeln!(f, "{} to {environment}, {profile}", self.relay)?;
        if let Some(register) = self.register {
            writeln!(f, "the temporary executor was connected after {:.1} ms", millis(register))?;
        }
        write!(f, "{:12}{:>7}", "ms", "n")?;
        PERCENTILES.iter().try_for_each(|(name, _)| write!(f, "{name:>10}"))?;
        for (kind, samples) in self.kinds() {
            write!(f, "\n{:12}{:>7}", kind.replace('_', " "), samples.0.len())?;
            let mut values = samples.percentiles().into_iter();
            values.try_for_each(|(_, millis)| write!(f, "{millis:>10.3}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_use_the_nearest_rank() {
        let samples = Samples((1..=100).rev().map(Duration::from_millis).collect());
        let values = samples.percentiles().map(|(_, millis)| millis);
        assert_eq!(values, [50.0, 90.0, 99.0, 100.0]);
        let one = Samples(vec![Duration::from_micros(1500)]);
        assert_eq!(one.percentiles().map(|(_, millis)| millis), [1.5; 4]);
        assert_eq!(Samples::default().percentiles().map(|(_, millis)| millis), [0.0; 4]);
    }
}
