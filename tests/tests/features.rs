//! Kernels that lack what the filter can do without: refused by name, or run with less, which is told.

use anyhow::{Context as _, Result};
use edge_common::{
    Reason::{DenyList, PacketRate},
    map::{Kind, PolicyFlag},
};
use edge_daemon::kernel::{Defence, Feature, Features, Policy, When};
use edge_tests::{
    Lab,
    client::reaches,
    lab::{CLIENT, LISTED},
    packet::{SYN, v4},
    plane::{Plane, Verdict},
};

/// The kernel's own types, by which programs are at tracepoints.
const TYPES: &str = "/sys/kernel/btf";

fn without(lacking: &[Feature]) -> Features {
    lacking.iter().fold(Features::ALL, |features, feature| features.without(*feature))
}

/// A policy that needs all that the filter can do without.
fn policy(run_with_less: bool) -> Policy {
    let defence = Defence { syn_cookies: When::Auto, unsolicited: When::Always, ..Defence::OFF };
    Policy { open_max: 9, defence, run_with_less, ..Policy::UNLIMITED }
}

/// All else is done: the programs load without what is missing, and judge.
#[test]
fn with_less_the_filter_does_all_that_needs_nothing_missing() {
    for lacking in [&[Feature::SocketEvents][..], &[Feature::SynCookies], &Feature::ALL] {
        let rate = edge_common::Rate::new(2, 3_600_000_000_000, 2).expect("a rate");
        let policy = policy(true).limit(Kind::Packets, rate);
        let mut plane = Plane::on(without(lacking), policy);
        plane.deny("203.0.113.0/24");
        let frame = |source| v4(source).tcp(SYN).build();
        assert_eq!(plane.judge(&frame("203.0.113.9")), Verdict::of(DenyList), "{lacking:?}");
        let verdicts = [0; 3].map(|_| plane.judge(&frame("192.0.2.10")));
        assert_eq!(verdicts, [Verdict::PASS, Verdict::PASS, Verdict::of(PacketRate)]);
        let settings = plane.kernel.tables.settings().expect("settings");
        let lacks = |feature| lacking.contains(&feature);
        assert_eq!(settings.open_max == 0, lacks(Feature::SocketEvents), "{lacking:?}");
        let defences = PolicyFlag::SYN_COOKIES | PolicyFlag::UNSOLICITED_ALWAYS;
        let wanted = if lacks(Feature::SynCookies) { 0 } else { defences };
        assert_eq!(settings.flags & defences, wanted, "{lacking:?}");
    }
}

#[test]
fn what_is_missing_is_refused_and_the_former_policy_stays() {
    // The list of sockets is missed by nothing that is held to.
    for feature in [Feature::SocketEvents, Feature::SynCookies] {
        let features = without(&[feature]);
        let refused = Plane::load(features, policy(false)).err().expect("refused").to_string();
        assert!(refused.contains(feature.name()) && refused.contains("kernel "), "{refused}");
        // What does not need it runs, and a reload that does is refused as the start was.
        let mut plane = Plane::on(features, Policy::UNLIMITED);
        let before = plane.kernel.tables.settings().expect("settings");
        let again = plane.kernel.tables.update_policy(&policy(false)).expect_err("refused");
        assert_eq!(again.to_string(), refused);
        assert_eq!(plane.kernel.tables.settings().expect("settings"), before);
    }
}

#[test]
fn a_kernel_without_its_types_is_named_or_run_with_less() -> Result<()> {
    let lab = Lab::new()?;
    let refused = lab.edged()?.start_without(TYPES).err().context("it started")?;
    let refused = format!("{refused:#}");
    for word in ["socket_events", "kernel 5.5 with CONFIG_DEBUG_INFO_BTF", "run_with_less"] {
        assert!(refused.contains(word), "{word}: {refused}");
    }
    let less = lab.edged()?.set("kernel.missing_features", "\"run_with_less\"");
    let edged = less.start_without(TYPES)?;
    assert!(!reaches(&lab, LISTED, 443) && reaches(&lab, CLIENT, 443));
    let status = edged.ask("status")?;
    let told = status["kernel_lacks"]["socket_events"].as_str().unwrap_or_default();
    assert_eq!(told, "open connections are neither counted nor limited", "{status}");
    assert!(edged.tell("status")?.contains("kernel lacks   socket_events: open connections"));
    let metrics = edged.metrics()?;
    let feature = |name| metrics.sum("edged_kernel_feature", &[("feature", name)]);
    assert_eq!(
        [feature("socket_events"), feature("socket_list"), feature("syn_cookies")],
        [0.0, 1.0, 1.0]
    );
    let why = edged.ask(&format!("explain {CLIENT}"))?;
    assert_eq!((&why["open_connections_max"], &why["open_connections"]), (&0.into(), &0.into()));
    assert!(
        edged.log().contains("on this kernel, open connections are neither"),
        "{}",
        edged.log()
    );
    // Both outcomes are told before a start, too, and a reload is held to the same.
    let checked = edged.check_without(TYPES)?;
    assert!(checked.contains("the filter runs without: it lacks socket_events"), "{checked}");
    edged.edit("kernel.missing_features", "\"refuse\"")?;
    let checked = edged.check_without(TYPES)?;
    assert!(checked.contains("the filter does not start: it lacks socket_events"), "{checked}");
    assert!(!edged.check()?.contains("socket_events"));
    let reload = edged.tell("reload").err().context("it was taken")?.to_string();
    assert!(reload.contains("socket_events"), "{reload}");
    edged.edit("kernel.open_connections_max", "0")?;
    edged.tell("reload")?;
    Ok(())
}
