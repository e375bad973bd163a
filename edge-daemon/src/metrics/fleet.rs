//! What is told of the fleet, and of limits that it shares.

use std::sync::atomic::Ordering::Relaxed;

use edge_identity::fleet::Fault;
use edge_policy::limit::{Rules, keyed::Keyed};
use prometheus::proto::{Metric, MetricFamily, MetricType};

use super::{counter, family, gauge};
use crate::outside::Outside;

/// How the fleet is doing; nothing without one.
#[must_use]
pub fn families(outside: &Outside, rules: &Rules) -> Vec<MetricFamily> {
    let (counts, now) = (MetricType::COUNTER, MetricType::GAUGE);
    let untold = family(
        "edged_bans_untold_total",
        "Bans that others were not told of: the queue was full.",
        counts,
        [counter(&[], outside.untold())],
    );
    let Some(fleet) = outside.fleet() else { return vec![untold] };
    let it = &fleet.counts;
    let refused = Fault::ALL.iter().zip(&it.refused);
    let refused = refused.map(|(fault, count)| (fault.name(), count));
    let records = [("applied", &it.applied), ("known", &it.known)].into_iter().chain(refused);
    let records =
        records.map(|(result, count)| counter(&[("result", result)], count.load(Relaxed)));
    let [renewed, failed] = &it.renewals;
    let renewals = [("ok", renewed), ("failed", failed)]
        .map(|(result, count)| counter(&[("result", result)], count.load(Relaxed)));
    let shared = || rules.iter().filter(|rule| rule.spec.fleet && !rule.spec.is_keyed());
    let keyed = |value: fn(&Keyed) -> u64, kind: fn(&[(&str, &str)], u64) -> Metric| {
        let keyed = rules.iter().filter_map(|rule| Some((rule, rule.state().keyed.as_ref()?)));
        keyed.map(move |(rule, keyed)| kind(&[("limit", &rule.spec.name)], value(keyed)))
    };
    let share = |value: fn(&edge_policy::limit::lease::Share) -> u64| {
        shared().map(move |rule| gauge(&[("limit", &rule.spec.name)], value(&rule.state().share)))
    };
    let one = |name, help, kind, value: u64| {
        let metric = if kind == now { gauge(&[], value) } else { counter(&[], value) };
        family(name, help, kind, [metric])
    };
    vec![
        untold,
        one(
            "edged_fleet_connected",
            "1 if the bans of the fleet are followed.",
            now,
            it.is_connected.load(Relaxed).into(),
        ),
        one(
            "edged_fleet_lost_total",
            "Times that its server was lost.",
            counts,
            it.lost.load(Relaxed),
        ),
        one("edged_fleet_clients", "Clients of which it has records.", now, fleet.clients() as u64),
        one(
            "edged_fleet_delay_milliseconds",
            "From another edge's decision to this edge, for the last one.",
            now,
            it.delay_ms.load(Relaxed),
        ),
        one(
            "edged_fleet_published_total",
            "Records that this edge shared.",
            counts,
            it.published.load(Relaxed),
        ),
        family("edged_fleet_records_total", "Records that came.", counts, records),
        family("edged_fleet_renewals_total", "Renewals of leases.", counts, renewals),
        one("edged_fleet_nodes", "Edges with leases.", now, it.nodes.load(Relaxed) as u64),
        family(
            "edged_limit_share_millionths",
            "This edge's part of a limit that the fleet shares.",
            now,
            share(|share| share.parts().into()),
        ),
        family(
            "edged_limit_leased",
            "1 if that part is a lease.",
            now,
            share(|share| share.is_leased().into()),
        ),
        family(
            "edged_limit_keys_leased",
            "Keys of a limit that the fleet shares by key, with a lease here.",
            now,
            keyed(Keyed::leased, gauge),
        ),
        family(
            "edged_limit_keys_unnoted_total",
            "Requests whose key found no room to be noted for a lease.",
            counts,
            keyed(Keyed::unnoted, counter),
        ),
    ]
}
