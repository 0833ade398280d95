//! Numbers of a measurement: kept sorted, shown as a table, written as JSON.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Unit {
    #[serde(rename = "s")]
    Seconds,
    #[serde(rename = "ms")]
    Milliseconds,
    #[serde(rename = "MB")]
    Megabytes,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Unit::Seconds => format!("{value:.3} s"),
            Unit::Milliseconds => format!("{value:.1} ms"),
            Unit::Megabytes => format!("{value:.1} MB"),
        }
    }
}

/// What one thing took, over all runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Case {
    pub(super) name: String,
    pub(super) unit: Unit,
    /// All numbers, ascending.
    pub(super) runs: Vec<f64>,
    pub(super) median: f64,
    /// This case's median over that of its peer.
    pub(super) ratio_to_peer: Option<f64>,
}

impl Case {
    /// A case from its numbers, of which there must be one at least.
    pub(super) fn new(name: &str, unit: Unit, mut runs: Vec<f64>) -> Self {
        runs.sort_by(f64::total_cmp);
        let median = runs.get(runs.len() / 2).copied().unwrap_or(f64::NAN);
        Self { name: name.to_owned(), unit, runs, median, ratio_to_peer: None }
    }

    /// The same with its ratio to a peer.
    pub(super) fn beside(mut self, peer: &Case) -> Self {
        self.ratio_to_peer = Some(self.median / peer.median);
        self
    }
}

/// Shows cases in lines: median, extremes, and the ratio to the peer.
pub(super) fn render(cases: &[Case]) -> String {
    let width = cases.iter().map(|case| case.name.len()).max().unwrap_or(0);
    let mut text = format!("{:<width$} {:>10} {:>10} {:>10} {:>6}\n", "case", "median", "min", "max", "ratio");
    for case in cases {
        let show = |value: Option<&f64>| value.map_or_else(|| "-".to_owned(), |value| case.unit.show(*value));
        let (median, min, max) = (show(Some(&case.median)), show(case.runs.first()), show(case.runs.last()));
        let ratio = case.ratio_to_peer.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        let _ = writeln!(text, "{:<width$} {median:>10} {min:>10} {max:>10} {ratio:>6}", case.name);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_shows_its_median_extremes_and_ratio() {
        let peer = Case::new("theirs", Unit::Milliseconds, vec![90.0, 80.0, 84.0]);
        let ours = Case::new("ours", Unit::Milliseconds, vec![21.0, 12.25, 30.0]).beside(&peer);
        assert_eq!(
            render(&[ours, peer]),
            "case       median        min        max  ratio\n\
             ours      21.0 ms    12.2 ms    30.0 ms   0.25\n\
             theirs    84.0 ms    80.0 ms    90.0 ms      -\n"
        );
    }
}
