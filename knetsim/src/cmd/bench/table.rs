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
    #[serde(rename = "µs")]
    Microseconds,
    #[serde(rename = "MB")]
    Megabytes,
    #[serde(rename = "per s")]
    PerSecond,
    #[serde(rename = "")]
    Count,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Unit::Seconds => format!("{value:.3} s"),
            Unit::Milliseconds => format!("{value:.1} ms"),
            Unit::Microseconds => format!("{value:.1} µs"),
            Unit::Megabytes => format!("{value:.1} MB"),
            Unit::PerSecond => format!("{value:.0} /s"),
            Unit::Count => format!("{value:.0}"),
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

    /// What 99 of 100 numbers are not above; none where there are too few to tell it from the greatest.
    fn percentile_99(&self) -> Option<&f64> {
        (self.runs.len() >= 100).then(|| self.runs.get((self.runs.len() * 99).div_ceil(100) - 1)).flatten()
    }

    /// The same with its ratio to a peer.
    pub(super) fn beside(mut self, peer: &Case) -> Self {
        self.ratio_to_peer = Some(self.median / peer.median);
        self
    }
}

/// Shows cases in lines: median, extremes, the 99th percentile where there are many numbers, and the ratio to the peer.
pub(super) fn render(cases: &[Case]) -> String {
    let width = cases.iter().map(|case| case.name.len()).max().unwrap_or(0);
    let mut text =
        format!("{:<width$} {:>10} {:>10} {:>10} {:>10} {:>6}\n", "case", "median", "min", "p99", "max", "ratio");
    for case in cases {
        let show = |value: Option<&f64>| value.map_or_else(|| "-".to_owned(), |value| case.unit.show(*value));
        let (median, min, max) = (show(Some(&case.median)), show(case.runs.first()), show(case.runs.last()));
        let p99 = show(case.percentile_99());
        let ratio = case.ratio_to_peer.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        let _ = writeln!(text, "{:<width$} {median:>10} {min:>10} {p99:>10} {max:>10} {ratio:>6}", case.name);
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
            "case       median        min        p99        max  ratio\n\
             ours      21.0 ms    12.2 ms          -    30.0 ms   0.25\n\
             theirs    84.0 ms    80.0 ms          -    90.0 ms      -\n"
        );
    }

    #[test]
    fn a_case_of_many_numbers_shows_what_99_of_100_are_not_above() {
        let of = |count: u16| Case::new("connect", Unit::Microseconds, (1..=count).map(f64::from).collect());
        assert_eq!(of(99).percentile_99(), None);
        assert_eq!(of(100).percentile_99(), Some(&99.0));
        assert_eq!(of(300).percentile_99(), Some(&297.0));
        assert!(render(&[of(300)]).contains("297.0 µs   300.0 µs"));
    }
}
