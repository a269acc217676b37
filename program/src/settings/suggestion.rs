//! Suggestions for unknown names.

/// Similarity (0 to 1) above which another name is worth suggesting.
const SIMILARITY_MIN: f64 = 0.75;

/// Returns `; did you mean ...`, or an empty text.
pub fn suggestion(name: &str, known: impl Iterator<Item = &'static str>) -> String {
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let similar = |known: &str| {
        // The right name in the wrong section counts as well.
        let whole = strsim::jaro_winkler(name, known);
        if last(name) == last(known) { whole.max(SIMILARITY_MIN) } else { whole }
    };
    known
        .max_by(|a, b| similar(a).total_cmp(&similar(b)))
        .filter(|known| similar(known) >= SIMILARITY_MIN)
        .map(|known| format!("; did you mean `{known}`?"))
        .unwrap_or_default()
}
