//! Decisions by policies in Cedar, of which there are ten thousand.

use std::{hint::black_box, sync::Arc};

use anyhow::{Context, Result, anyhow, ensure};
use edge_identity::{
    access::{Facts, Tls},
    policy::{File, Policies, Set},
    principal::{Claim, Method, Named, Principal},
    roles::Roles,
};
use edge_policy::target::Target;

use super::cpu;
use crate::bench::{Effort, Goal, Line, MEASURED_CPU, Report, pin_self, report::median};

/// Ten policies for each of a thousand routes: the slowest of a hundred decisions. What an operator
/// asks for is compiled into plain tests; what it costs that one policy of a route needs the engine is
/// told beside it.
pub(in crate::bench) fn decisions(effort: Effort, report: &mut Report) -> Result<()> {
    pin_self(MEASURED_CPU)?;
    let routes = if effort.is_quick() { 50 } else { 1_000 };
    let labels: Vec<String> = (0..routes).map(|n| format!("/route-{n}")).collect();
    let plain =
        labels.iter().fold(String::new(), |text, label| text + &TEN.replace("ROUTE", label));
    let engine = labels.iter().fold(plain.clone(), |text, label| {
        format!("{text}forbid(principal, action, resource == Route::\"{label}\") {DEEP}\n")
    });
    let (mut slowest, mut middle, mut with_engine) = (Vec::new(), Vec::new(), Vec::new());
    let mut nothing = Vec::new();
    let plain = Bench::new(&plain, &labels)?;
    let engine = Bench::new(&engine, &labels)?;
    let runs = if effort.is_quick() { 2_000 } else { 50_000 };
    for _ in 0..effort.rounds {
        let spent = plain.spent(&labels, runs)?;
        slowest.push(spent[runs * 99 / 100]);
        middle.push(spent[runs / 2]);
        with_engine.push(engine.spent(&labels, runs)?[runs * 99 / 100]);
        nothing.push(clock(runs)?[runs * 99 / 100]);
    }
    report.note(&format!("half of the decisions took {:.2} µs", median(&middle)));
    report.note(&format!(
        "p99 with one policy more for each route that only the engine can decide: {:.1} µs",
        median(&with_engine)
    ));
    report.note(&format!("p99 of looking at the clock twice: {:.1} µs", median(&nothing)));
    report.add(&Line {
        measure: 5,
        name: format!("Cedar decision with {} policies on {routes} routes, p99, CPU", plain.count),
        rounds: slowest,
        unit: "us",
        goal: Goal::AtMost(10.0),
        reference: "none".to_owned(),
    });
    Ok(())
}

/// CPU microseconds of nothing, sorted: what the host does to every figure.
fn clock(runs: usize) -> Result<Vec<f64>> {
    let mut spent = Vec::with_capacity(runs);
    for _ in 0..runs {
        let before = cpu()?;
        spent.push((cpu()? - before).as_secs_f64() * 1e6);
    }
    spent.sort_by(f64::total_cmp);
    Ok(spent)
}

/// Policies and who asks.
struct Bench {
    set: Set,
    count: usize,
    roles: Roles,
    principal: Principal,
}

impl Bench {
    fn new(text: &str, labels: &[String]) -> Result<Self> {
        let file = File { name: "bench.cedar", text };
        let loaded = Policies::load(Some(CLAIMS), &[file], labels);
        let policies = loaded.map(|(policies, _)| policies);
        let policies = policies.map_err(|faults| anyhow!("{:?}", faults.first()))?;
        let numbered = labels.iter().map(String::as_str).enumerate();
        let set = Set::new("bench".to_owned(), false, &policies, numbered);
        let claims = [
            ("tenant", Claim::Text("red".to_owned())),
            ("level", Claim::Number(2)),
            ("suspended", Claim::Flag(false)),
        ];
        let principal = Principal::Named(Arc::new(Named {
            method: Method::Jwt,
            issuer: Some("main".to_owned()),
            id: "alice".to_owned(),
            name: String::new(),
            scopes: vec!["orders:read".to_owned(), "orders:write".to_owned()],
            roles: vec!["staff".to_owned()],
            tier: None,
            claims: claims.map(|(name, claim)| (name.to_owned(), claim)).into(),
        }));
        Ok(Self { set, count: policies.len(), roles: Roles::default(), principal })
    }

    /// CPU microseconds of each decision, sorted.
    fn spent(&self, labels: &[String], runs: usize) -> Result<Vec<f64>> {
        let mut spent = Vec::with_capacity(runs);
        for n in 0..runs {
            let route = n * 7 % labels.len();
            let target = Target::parse(&labels[route], 1_000).ok().context("a target")?;
            let facts = Facts {
                method: &http::Method::GET,
                host: "api.example",
                target: &target,
                client: [192, 0, 2, 7].into(),
                tls: Some(Tls { version: "TLSv1.3", server_name: Some("api.example"), ja4: None }),
                token: None,
                now_ms: 1_795_262_400_000,
            };
            let before = cpu()?;
            let ruling = black_box(self.set.decide(route, &self.principal, &self.roles, &facts));
            spent.push((cpu()? - before).as_secs_f64() * 1e6);
            ensure!(ruling.is_permit(), "{ruling}");
        }
        spent.sort_by(f64::total_cmp);
        Ok(spent)
    }
}

/// The policies of a route, such as an operator would write. A request of alice's is asked about all of
/// them but those about mallory, guests and admins; the last permits it.
const TEN: &str = r#"
forbid(principal == Caller::"main:mallory", action, resource == Route::"ROUTE");
forbid(principal in Role::"guest", action in Action::"write", resource == Route::"ROUTE");
forbid(principal, action, resource == Route::"ROUTE")
when { principal.claims has suspended && principal.claims.suspended };
forbid(principal, action, resource == Route::"ROUTE")
when { context.time.toTime() < duration("6h") } unless { principal in Role::"admin" };
forbid(principal, action, resource == Route::"ROUTE") unless {
    context has tls && context.tls.version == "TLSv1.3" || context.ip.isInRange(ip("10.0.0.0/8"))
};
permit(principal in Role::"admin", action, resource == Route::"ROUTE");
permit(principal, action in Action::"read", resource == Route::"ROUTE") when {
    context.ip.isInRange(ip("198.51.100.0/24")) && principal.scopes.contains("orders:read")
};
permit(principal, action in Action::"read", resource == Route::"ROUTE")
when { principal.claims has level && principal.claims.level > 3 };
permit(principal, action in Action::"read", resource == Route::"ROUTE")
when { context.path like "/public/*" || principal has tier && principal.tier == "gold" };
permit(principal, action in Action::"read", resource == Route::"ROUTE") when {
    principal.scopes.contains("orders:read") && context.path like "/route-*" &&
    principal.claims has tenant && principal.claims.tenant == "red"
};
"#;
/// What plain tests do not do: arithmetic.
const DEEP: &str = "when { principal.claims has level && principal.claims.level * 2 > 10 };";
const CLAIMS: &str = "type Claims = { tenant?: String, level?: Long, suspended?: Bool };";
