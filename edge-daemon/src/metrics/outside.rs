//! What is told of other people's lists.

use prometheus::proto::{MetricFamily, MetricType};

use super::{counter, family, gauge};
use crate::{control::feeds::FeedEntry, outside::Account};

/// How webhooks are doing.
#[must_use]
pub fn webhooks(webhooks: &[(String, Account)]) -> [MetricFamily; 3] {
    let documents = webhooks.iter().flat_map(|(name, account)| {
        let result = |(result, n)| counter(&[("webhook", name), ("result", result)], n);
        account.results.map(result)
    });
    let (counts, now) = (MetricType::COUNTER, MetricType::GAUGE);
    let failed =
        webhooks.iter().map(|(name, it)| counter(&[("webhook", name)], it.attempts_failed));
    let waiting = webhooks.iter().map(|(name, it)| gauge(&[("webhook", name)], it.waiting));
    [
        family("edged_webhook_documents_total", "What became of documents.", counts, documents),
        family("edged_webhook_attempts_failed_total", "Attempts that failed.", counts, failed),
        family("edged_webhook_waiting", "Documents that wait.", now, waiting),
    ]
}

/// How feeds are doing.
#[must_use]
pub fn families(feeds: &[FeedEntry]) -> [MetricFamily; 7] {
    let (counts, now) = (MetricType::COUNTER, MetricType::GAUGE);
    let each = |name, help, value: fn(&FeedEntry) -> u64| {
        family(
            name,
            help,
            now,
            feeds.iter().map(|feed| gauge(&[("feed", &feed.name)], value(feed))),
        )
    };
    let fetches = feeds.iter().flat_map(|feed| {
        let results = [
            ("updated", feed.updated),
            ("unchanged", feed.unchanged),
            ("failed", feed.failed),
            ("refused", feed.refused),
        ];
        results.map(|(result, n)| counter(&[("feed", &feed.name), ("result", result)], n))
    });
    let faults = feeds.iter().flat_map(|feed| {
        let fault =
            |(fault, n): (&String, &u64)| gauge(&[("feed", &feed.name), ("fault", fault)], *n);
        feed.faults.iter().map(fault)
    });
    let reasons = feeds.iter().flat_map(|feed| {
        let reason =
            |(state, n): (&String, &u64)| gauge(&[("feed", &feed.name), ("state", state)], *n);
        feed.reasons.iter().map(reason)
    });
    [
        each("edged_feed_networks", "Networks of a feed in force.", |feed| feed.networks),
        each("edged_feed_hits", "Packets its entries decided.", |feed| feed.hits),
        each(
            "edged_feed_success_seconds",
            "When its source last confirmed it, unix time.",
            |feed| feed.success_ms.unwrap_or(0) / 1000,
        ),
        each("edged_feed_stale", "1 if the last fetch brought nothing.", |feed| {
            feed.trouble.is_some().into()
        }),
        family("edged_feed_faults", "Lines of the last list, by fault.", now, faults),
        family("edged_feed_reasons", "Lines of the last list that say why.", now, reasons),
        family("edged_feed_fetches_total", "Fetches of a feed.", counts, fetches),
    ]
}
