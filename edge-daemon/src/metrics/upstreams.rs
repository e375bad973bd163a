//! What is counted of upstreams and their servers.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use edge_policy::upstream::health::Standing;
use prometheus::proto::{Metric, MetricFamily, MetricType};

use super::{counter, family, gauge, histogram_of};
use crate::{
    clock,
    upstream::{Server, Upstream},
};

/// Every family of upstreams and servers.
#[must_use]
pub fn families(upstreams: &[Arc<Upstream>]) -> Vec<MetricFamily> {
    let mut families = of_upstreams(upstreams);
    families.extend(of_servers(upstreams));
    families
}

fn of_upstreams(upstreams: &[Arc<Upstream>]) -> Vec<MetricFamily> {
    let each = |value: &dyn Fn(&Upstream) -> Metric| {
        upstreams.iter().map(|upstream| value(upstream)).collect::<Vec<_>>()
    };
    let name = |upstream: &Upstream| upstream.settings.name.clone();
    let total = |help: &str, metric: &str, value: &dyn Fn(&Upstream) -> u64| {
        let metrics = each(&|upstream| counter(&[("upstream", &name(upstream))], value(upstream)));
        family(metric, help, MetricType::COUNTER, metrics)
    };
    let now = |help: &str, metric: &str, value: &dyn Fn(&Upstream) -> u64| {
        let metrics = each(&|upstream| gauge(&[("upstream", &name(upstream))], value(upstream)));
        family(metric, help, MetricType::GAUGE, metrics)
    };
    let now_ns = clock::boot_ns();
    let lookups = upstreams.iter().flat_map(|upstream| {
        let [good, bad] = upstream.lookups();
        [("ok", good), ("failed", bad)].map(|(result, count)| {
            counter(&[("upstream", &name(upstream)), ("result", result)], count)
        })
    });
    vec![
        now("Servers that are asked.", "edged_upstream_servers_active", &|u| u.up(now_ns).0 as u64),
        now("Requests that wait for a server.", "edged_upstream_waiting", &|u| u.waiting()),
        now(
            "1 while the upstream is not asked, or on trial.",
            "edged_upstream_circuit_open",
            &|u| u64::from(u.circuit.is_open()),
        ),
        total("Times that the circuit opened.", "edged_upstream_circuit_opened_total", &|u| {
            u.circuit.opened()
        }),
        total(
            "Retries that the budget refused.",
            "edged_upstream_retries_refused_total",
            &|upstream| upstream.retries_refused.load(Relaxed),
        ),
        family(
            "edged_upstream_lookups_total",
            "Lookups of servers' names.",
            MetricType::COUNTER,
            lookups,
        ),
    ]
}

/// Makes a metric of a server's labels and of what is known of it.
type Value<'a> = &'a dyn Fn(&[(&str, &str)], &Server) -> Metric;

fn of_servers(upstreams: &[Arc<Upstream>]) -> Vec<MetricFamily> {
    let servers: Vec<(String, Arc<Server>)> = upstreams
        .iter()
        .flat_map(|upstream| {
            let servers = upstream.servers();
            let of = |s: &Arc<Server>| (upstream.settings.name.clone(), Arc::clone(s));
            servers.iter().map(of).collect::<Vec<_>>()
        })
        .collect();
    let now_ns = clock::boot_ns();
    let mut requests = Vec::new();
    let mut states = Vec::new();
    let mut checks = Vec::new();
    for (upstream, server) in &servers {
        let own = [("upstream", upstream.as_str()), ("server", server.label.as_str())];
        let with = |name, value| [own[0], own[1], (name, value)];
        let counts = server.counts();
        let classes = ["other", "1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().zip(counts.answers);
        let outcomes = classes.chain(counts.failures).filter(|(_, count)| *count > 0);
        requests.extend(outcomes.map(|(outcome, n)| counter(&with("outcome", outcome), n)));
        let standing = server.health.standing(now_ns);
        let all = [Standing::Up, Standing::Down, Standing::Ejected, Standing::Drained];
        states.extend(all.map(|one| gauge(&with("state", one.name()), u64::from(one == standing))));
        let [good, bad] = server.checks();
        if good + bad > 0 {
            checks.extend(
                [("ok", good), ("failed", bad)].map(|(r, n)| counter(&with("result", r), n)),
            );
        }
    }
    let each = |value: Value<'_>| {
        let of = |(upstream, server): &(String, Arc<Server>)| {
            value(&[("upstream", upstream), ("server", &server.label)], server)
        };
        servers.iter().map(of).collect::<Vec<_>>()
    };
    let total = |metric, help, value: &dyn Fn(&Server) -> u64| {
        family(metric, help, MetricType::COUNTER, each(&|own, server| counter(own, value(server))))
    };
    let now = |metric, help, value: &dyn Fn(&Server) -> u64| {
        family(metric, help, MetricType::GAUGE, each(&|own, server| gauge(own, value(server))))
    };
    let kinds = (MetricType::COUNTER, MetricType::GAUGE, MetricType::HISTOGRAM);
    let latency = each(&|own, server| histogram_of(own, &server.latencies()));
    vec![
        family(
            "edged_upstream_requests_total",
            "Requests by what came of them.",
            kinds.0,
            requests,
        ),
        family("edged_upstream_server_state", "1 for the state of the server.", kinds.1, states),
        family("edged_upstream_checks_total", "Checks of servers by result.", kinds.0, checks),
        family("edged_upstream_latency_seconds", "From a request to its head.", kinds.2, latency),
        now("edged_upstream_requests_in_flight", "Requests in flight.", &|s| s.counts().in_flight),
        now("edged_upstream_idle_open", "Connections without a request.", &|s| s.counts().idle),
        total("edged_upstream_connects_total", "Connections begun.", &|s| s.counts().connects),
        total("edged_upstream_retries_total", "Requests another server had.", &|s| {
            s.counts().retries
        }),
        total("edged_upstream_ejections_total", "Ejections.", &|s| s.health.ejections()),
    ]
}
