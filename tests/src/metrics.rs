//! What the metrics endpoint says, read and checked.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use edge_common::Reason;

/// One scrape: each series with its labels as printed, and its value.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    series: BTreeMap<String, f64>,
    types: BTreeMap<String, String>,
}

impl Metrics {
    /// Reads the Prometheus text format, and demands what `promtool check metrics` would: a
    /// `HELP` and a `TYPE` for each family, no series twice, counters that end in `_total`.
    ///
    /// # Errors
    /// Names the line that is at fault.
    pub fn parse(text: &str) -> Result<Self> {
        let mut metrics = Self::default();
        let mut helped = Vec::new();
        for line in text.lines().filter(|l| !l.is_empty()) {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').with_context(|| line.to_owned())?;
                ensure!(!help.trim().is_empty(), "no help: {line}");
                helped.push(name.to_owned());
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').with_context(|| line.to_owned())?;
                ensure!(helped.iter().any(|h| h == name), "no HELP before: {line}");
                ensure!((kind == "counter") == name.ends_with("_total"), "misnamed: {line}");
                metrics.types.insert(name.to_owned(), kind.to_owned());
            } else {
                metrics.sample(line)?;
            }
        }
        Ok(metrics)
    }

    fn sample(&mut self, line: &str) -> Result<()> {
        let (series, value) = line.rsplit_once(' ').with_context(|| line.to_owned())?;
        let value = value.parse().with_context(|| line.to_owned())?;
        ensure!(self.family(series).is_some(), "no TYPE before: {line}");
        if let Some((_, labels)) = series.split_once('{') {
            ensure!(labels.ends_with("\"}"), "labels do not end: {line}");
        }
        ensure!(self.series.insert(series.to_owned(), value).is_none(), "twice: {line}");
        Ok(())
    }

    /// The family of a series: its name, without what a histogram appends.
    fn family(&self, series: &str) -> Option<&str> {
        let name = series.split('{').next()?;
        let trimmed = ["_bucket", "_sum", "_count"]
            .iter()
            .filter_map(|end| name.strip_suffix(end))
            .find(|n| self.types.get(*n).is_some_and(|kind| kind == "histogram"));
        self.types.get_key_value(trimmed.unwrap_or(name)).map(|(k, _)| k.as_str())
    }

    /// The names of all families.
    pub fn families(&self) -> impl Iterator<Item = &str> {
        self.types.keys().map(String::as_str)
    }

    /// Every series with its labels.
    pub fn series(&self) -> impl Iterator<Item = (&str, f64)> {
        self.series.iter().map(|(s, v)| (s.as_str(), *v))
    }

    /// A series by name and labels as printed; 0 if it is not there.
    #[must_use]
    pub fn value(&self, series: &str) -> f64 {
        self.series.get(series).copied().unwrap_or(0.0)
    }

    /// The sum of a family over those of its series whose labels hold each of these pairs.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let wanted: Vec<_> = labels.iter().map(|(k, v)| format!("{k}=\"{v}\"")).collect();
        self.series()
            .filter(|(s, _)| s.split('{').next() == Some(name))
            .filter(|(s, _)| wanted.iter().all(|w| s.contains(w)))
            .map(|(_, v)| v)
            .sum()
    }

    /// Packets that ended for a reason.
    #[must_use]
    pub fn packets(&self, reason: Reason) -> f64 {
        self.sum("edged_packets_total", &[("reason", reason.name())])
    }

    /// Requests that ended for a reason.
    #[must_use]
    pub fn requests(&self, reason: Reason) -> f64 {
        self.sum("edged_requests_total", &[("reason", reason.name())])
    }

    /// Connections that ended, or began to serve, for a reason.
    #[must_use]
    pub fn connections(&self, reason: Reason) -> f64 {
        self.sum("edged_connections_total", &[("reason", reason.name())])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# HELP edged_x_total Things.\n# TYPE edged_x_total counter\n\
        edged_x_total{reason=\"ban\"} 2\nedged_x_total{reason=\"pass\"} 3\n\
        # HELP edged_t_seconds Time.\n# TYPE edged_t_seconds histogram\n\
        edged_t_seconds_bucket{le=\"+Inf\"} 1\nedged_t_seconds_sum 0.5\nedged_t_seconds_count 1\n";

    #[test]
    fn a_good_page_is_read() {
        let metrics = Metrics::parse(GOOD).unwrap();
        assert_eq!(metrics.sum("edged_x_total", &[]), 5.0);
        assert_eq!(metrics.sum("edged_x_total", &[("reason", "ban")]), 2.0);
        assert_eq!(metrics.families().count(), 2);
    }

    #[test]
    fn a_bad_page_is_refused() {
        for bad in [
            "edged_x 1\n",
            "# TYPE edged_x gauge\nedged_x 1\n",
            "# HELP edged_x A.\n# TYPE edged_x counter\nedged_x 1\n",
            "# HELP edged_x A.\n# TYPE edged_x gauge\nedged_x one\n",
            "# HELP edged_x A.\n# TYPE edged_x gauge\nedged_x 1\nedged_x 1\n",
        ] {
            assert!(Metrics::parse(bad).is_err(), "{bad}");
        }
    }
}
