//! The parts that metrics are made of.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};

/// A histogram of durations.
#[derive(Default)]
pub struct Spread {
    buckets: [AtomicU64; EDGES.len() + 1],
    sum_ns: AtomicU64,
}

impl Spread {
    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = EDGES.partition_point(|edge| *edge < seconds);
        self.buckets[bucket].fetch_add(1, Relaxed);
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.sum_ns.fetch_add(ns, Relaxed);
    }
}

pub(super) fn family(
    name: &str,
    help: &str,
    kind: MetricType,
    metrics: impl IntoIterator<Item = Metric>,
) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics.into_iter().collect());
    family
}

pub(super) fn counter(labels: &[(&str, &str)], value: u64) -> Metric {
    let mut counter = Counter::default();
    counter.set_value(value as f64);
    let mut metric = labelled(labels);
    metric.set_counter(counter);
    metric
}

pub(super) fn gauge(labels: &[(&str, &str)], value: u64) -> Metric {
    let mut gauge = Gauge::default();
    gauge.set_value(value as f64);
    let mut metric = labelled(labels);
    metric.set_gauge(gauge);
    metric
}

pub(super) fn histogram(name: &str, help: &str, parts: &[&Spread]) -> MetricFamily {
    family(name, help, MetricType::HISTOGRAM, [histogram_of(&[], parts)])
}

pub(super) fn histogram_of(labels: &[(&str, &str)], parts: &[&Spread]) -> Metric {
    let mut count = 0;
    let mut buckets = Vec::with_capacity(EDGES.len());
    for (i, edge) in EDGES.iter().enumerate() {
        count += parts.iter().map(|p| p.buckets[i].load(Relaxed)).sum::<u64>();
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*edge);
        bucket.set_cumulative_count(count);
        buckets.push(bucket);
    }
    count += parts.iter().map(|p| p.buckets[EDGES.len()].load(Relaxed)).sum::<u64>();
    let sum_ns: u64 = parts.iter().map(|p| p.sum_ns.load(Relaxed)).sum();
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets);
    histogram.set_sample_count(count);
    histogram.set_sample_sum(sum_ns as f64 / 1e9);
    let mut metric = labelled(labels);
    metric.set_histogram(histogram);
    metric
}

pub(super) fn labelled(labels: &[(&str, &str)]) -> Metric {
    Metric::from_label(
        labels
            .iter()
            .map(|(name, value)| {
                let mut pair = LabelPair::default();
                pair.set_name((*name).to_owned());
                pair.set_value((*value).to_owned());
                pair
            })
            .collect(),
    )
}

/// Upper edges of the duration buckets, in seconds: a ban is a matter of microseconds, an
/// upstream's answer one of seconds.
const EDGES: [f64; 17] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0,
];
