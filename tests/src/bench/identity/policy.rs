//! Decisions by policies in Cedar, of which there are ten thousand.

use std::{fmt::Write as _, hint::black_box};

use anyhow::{Context, Result, ensure};
use edge_identity::{
    access::Facts,
    policy::{File, Policies, Set},
    principal::{Method, Named, Principal},
    roles::Roles,
};
use edge_policy::target::Target;

use super::cpu;
use crate::bench::{Effort, Goal, Line, MEASURED_CPU, Report, pin_self};

/// Ten policies for each of a thousand routes, half of which only the engine can decide: the slowest
/// of a hundred decisions.
pub(in crate::bench) fn decisions(effort: Effort, report: &mut Report) -> Result<()> {
    pin_self(MEASURED_CPU)?;
    let routes = if effort.is_quick() { 50 } else { 1_000 };
    let labels: Vec<String> = (0..routes).map(|n| format!("/route-{n}")).collect();
    let text = labels.iter().fold(String::new(), |mut text, label| {
        for n in 0..5 {
            // Writing into a string cannot fail.
            let _ = write!(
                text,
                "permit(principal, action in Action::\"read\", resource == Route::\"{label}\") \
                 when {{ context.ip.isInRange(ip(\"192.0.{n}.0/24\")) && \
                 principal.scopes.contains(\"orders:read\") }};\n\
                 forbid(principal == Caller::\"main:mallory-{n}\", action, resource == Route::\"{label}\");\n"
            );
        }
        text
    });
    let file = File { name: "bench.cedar", text: &text };
    let loaded = Policies::load(None, &[file], &labels);
    let (policies, _) = loaded.ok().context("the policies make sense")?;
    let count = policies.len();
    let numbered = labels.iter().map(String::as_str).enumerate();
    let set = Set::new("bench".to_owned(), false, &policies, numbered);
    let principal = Principal::Named(std::sync::Arc::new(Named {
        method: Method::Jwt,
        issuer: Some("main".to_owned()),
        id: "alice".to_owned(),
        name: String::new(),
        scopes: vec!["orders:read".to_owned(), "orders:write".to_owned()],
        roles: Vec::new(),
        tier: None,
        claims: std::collections::BTreeMap::new(),
    }));
    let (roles, runs) = (Roles::default(), if effort.is_quick() { 2_000 } else { 50_000 });
    let (mut slowest, mut middle) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        let mut spent = Vec::with_capacity(runs);
        for n in 0..runs {
            let route = n * 7 % routes;
            let target = Target::parse(&labels[route], 1_000).ok().context("a target")?;
            let facts = Facts {
                method: &http::Method::GET,
                host: "api.example",
                target: &target,
                client: [192, 0, 2, 7].into(),
                tls: None,
                now_ms: 1_795_262_400_000,
            };
            let before = cpu()?;
            let ruling = black_box(set.decide(route, &principal, &roles, &facts));
            spent.push((cpu()? - before).as_secs_f64() * 1e6);
            ensure!(ruling.is_permit(), "{ruling}");
        }
        spent.sort_by(f64::total_cmp);
        slowest.push(spent[runs * 99 / 100]);
        middle.push(spent[runs / 2]);
    }
    report.note(&format!("half of the decisions took {:.1} µs", middle[middle.len() / 2]));
    report.add(&Line {
        measure: 5,
        name: format!("Cedar decision with {count} policies on {routes} routes, p99, CPU"),
        rounds: slowest,
        unit: "us",
        goal: Goal::AtMost(10.0),
        reference: "none".to_owned(),
    });
    Ok(())
}
