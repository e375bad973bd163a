//! What the filter needs of a kernel, what it can do without, and what is done where a kernel lacks it.
//!
//! What it can do without is looked for: distributors give older kernels newer features. Of the rest the
//! kernel's version only explains a refusal.

use nix::sys::utsname::uname;

use super::{KernelError, Policy, When};

/// A feature of the kernel without which the filter can still run, with less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Programs at the tracepoint of sockets, which count open connections.
    SocketEvents,
    /// The list of sockets, with which that count is compared.
    SocketList,
    /// SYN cookies made and checked by the packet program.
    SynCookies,
}

/// Which of them a kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features([bool; Feature::ALL.len()]);

impl Feature {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::SocketEvents, Self::SocketList, Self::SynCookies];

    /// The word for it, in the status and in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SocketEvents => "socket_events",
            Self::SocketList => "socket_list",
            Self::SynCookies => "syn_cookies",
        }
    }

    /// What it is, and which kernel has it.
    const fn words(self) -> &'static str {
        match self {
            Self::SocketEvents => {
                "programs at tracepoints by the kernel's own types (kernel 5.5 with CONFIG_DEBUG_INFO_BTF and CONFIG_BPF_EVENTS)"
            }
            Self::SocketList => "lists of sockets over netlink (kernel 3.3 with CONFIG_INET_DIAG)",
            Self::SynCookies => {
                "SYN cookies for packets without a socket (kernel 6.0 with CONFIG_SYN_COOKIES)"
            }
        }
    }

    /// The keys of the configuration that need it, and with which values they do not.
    const fn keys(self) -> &'static str {
        match self {
            Self::SocketEvents | Self::SocketList => "kernel.open_connections_max (but for 0)",
            Self::SynCookies => {
                "kernel.syn_cookies (but for mode = \"off\" and unsolicited = \"off\")"
            }
        }
    }

    /// What is not done without it.
    #[must_use]
    pub const fn without(self) -> &'static str {
        match self {
            Self::SocketEvents => "open connections are neither counted nor limited",
            Self::SocketList => {
                "open connections from before the filter are not counted, and the count is compared with nothing"
            }
            Self::SynCookies => {
                "SYNs are left to the kernel's own cookies, and packets of no connection to the kernel; open_connections_max does not hold against connections that those cookies make"
            }
        }
    }

    /// Whether a policy cannot be carried out without it.
    fn is_needed(self, policy: &Policy) -> bool {
        let defence = &policy.defence;
        match self {
            Self::SocketEvents => policy.open_max > 0,
            // The limit holds without: for connections that begin from now on.
            Self::SocketList => false,
            Self::SynCookies => {
                defence.syn_cookies != When::Off || defence.unsolicited != When::Off
            }
        }
    }
}

impl Features {
    /// A kernel that has them all.
    pub const ALL: Self = Self([true; Feature::ALL.len()]);

    /// The same kernel without one.
    #[must_use]
    pub const fn without(mut self, feature: Feature) -> Self {
        self.0[feature as usize] = false;
        self
    }

    /// Whether it has one.
    #[must_use]
    pub const fn has(self, feature: Feature) -> bool {
        self.0[feature as usize]
    }

    /// Those that it lacks.
    pub fn lacking(self) -> impl Iterator<Item = Feature> {
        Feature::ALL.into_iter().filter(move |feature| !self.has(*feature))
    }

    /// What a policy needs that this kernel lacks, in words; `None`: nothing.
    #[must_use]
    pub fn shortfall(self, policy: &Policy) -> Option<String> {
        let needed = self.lacking().filter(|feature| feature.is_needed(policy));
        let words = needed.map(|it| format!("{}: {}, for {}", it.name(), it.words(), it.keys()));
        Some(words.collect::<Vec<_>>().join("; ")).filter(|words| !words.is_empty())
    }

    /// The policy as this kernel can carry it out.
    ///
    /// # Errors
    /// [`KernelError::Needs`] if it lacks what the policy needs, and the policy is not to be cut down.
    pub fn fit(self, policy: &Policy) -> Result<Policy, KernelError> {
        match self.shortfall(policy) {
            Some(lacking) if !policy.run_with_less => {
                Err(KernelError::Needs { release: release(), lacking })
            }
            _ => Ok(self.lessen(policy.clone())),
        }
    }

    /// Logs what of a policy is not done.
    pub(super) fn tell(self, policy: &Policy) {
        let is_missed = |feature: &Feature| match feature {
            Feature::SocketList => policy.open_max > 0,
            _ => feature.is_needed(policy),
        };
        for feature in self.lacking().filter(is_missed) {
            let (name, lacking) = (feature.name(), feature.words());
            tracing::warn!(feature = name, lacking, "on this kernel, {}", feature.without());
        }
    }

    /// The policy without what this kernel cannot do.
    ///
    /// Whether a packet is of no connection cannot be said without the check of cookies: the kernel's own come back
    /// by packets that no socket is known for.
    pub(super) fn lessen(self, mut policy: Policy) -> Policy {
        if !self.has(Feature::SocketEvents) {
            policy.open_max = 0;
        }
        if !self.has(Feature::SynCookies) {
            (policy.defence.syn_cookies, policy.defence.unsolicited) = (When::Off, When::Off);
        }
        policy
    }
}

/// The running kernel's release; empty if it does not tell.
pub fn release() -> String {
    let release = uname().map(|names| names.release().to_string_lossy().into_owned());
    release.unwrap_or_default()
}

/// What nothing goes without, with the first version that has it.
const NEEDED: [(&str, Version); 5] = [
    ("ring buffers", (5, 8)),
    ("links of XDP programs", (5, 9)),
    ("cookies of network namespaces", (5, 14)),
    ("XDP for frames of several buffers", (5, 18)),
    ("tables in use without a capability", (5, 19)),
];

type Version = (u32, u32);

/// What a kernel of this release lacks by its version, in words; `None` if nothing, or if the
/// release cannot be read.
pub(super) fn lacking(release: &str) -> Option<String> {
    let running = version(release)?;
    let lacking = NEEDED.iter().filter(|(_, since)| running < *since);
    let words: Vec<_> = lacking.map(|(what, (a, b))| format!("{what} ({a}.{b})")).collect();
    if words.is_empty() { None } else { Some(words.join(", ")) }
}

fn version(release: &str) -> Option<Version> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Defence;

    #[test]
    fn what_is_missing_is_named_with_its_version() {
        assert_eq!(lacking("6.18.44-fc-v595"), None);
        assert_eq!(lacking("5.19"), None);
        assert_eq!(
            lacking("5.18.0-rc1").as_deref(),
            Some("tables in use without a capability (5.19)")
        );
        let old = lacking("4.18.0-553.el8_10.x86_64").unwrap();
        assert_eq!(old.matches(", ").count() + 1, NEEDED.len());
        assert!(old.contains("ring buffers (5.8)"), "{old}");
        assert_eq!(lacking("unknown"), None);
    }

    /// A policy that needs every feature.
    fn policy(run_with_less: bool) -> Policy {
        let defence =
            Defence { syn_cookies: When::Always, unsolicited: When::Auto, ..Defence::OFF };
        Policy { open_max: 9, defence, run_with_less, ..Policy::UNLIMITED }
    }

    #[test]
    fn a_kernel_that_has_all_does_all() {
        for run_with_less in [false, true] {
            let policy = policy(run_with_less);
            assert_eq!(Features::ALL.fit(&policy).unwrap(), policy);
            assert_eq!(Features::ALL.shortfall(&policy), None);
        }
    }

    #[test]
    fn what_a_policy_needs_and_the_kernel_lacks_is_refused_by_name() {
        for (feature, version, key) in [
            (Feature::SocketEvents, "kernel 5.5", "kernel.open_connections_max"),
            (Feature::SynCookies, "kernel 6.0", "kernel.syn_cookies"),
        ] {
            let lacking = Features::ALL.without(feature);
            let refused = lacking.fit(&policy(false)).unwrap_err().to_string();
            for word in [feature.name(), version, key, "missing_features = \"run_with_less\""] {
                assert!(refused.contains(word), "{word}: {refused}");
            }
            assert_eq!(refused.matches(" (kernel ").count(), 1, "{refused}");
        }
        // Who ran without it before may do so.
        let policy = policy(false);
        assert_eq!(Features::ALL.without(Feature::SocketList).fit(&policy).unwrap(), policy);
    }

    #[test]
    fn what_nobody_asked_for_is_not_missed() {
        let without = Feature::ALL.into_iter().fold(Features::ALL, Features::without);
        assert_eq!(without.fit(&Policy::UNLIMITED).unwrap(), Policy::UNLIMITED);
        // Each half of the defence needs the cookies.
        for defence in [
            Defence { syn_cookies: When::Auto, ..Defence::OFF },
            Defence { unsolicited: When::Auto, ..Defence::OFF },
        ] {
            assert!(without.fit(&Policy { defence, ..Policy::UNLIMITED }).is_err());
        }
    }

    #[test]
    fn with_less_only_what_needs_the_feature_is_left_out() {
        let whole = policy(true);
        let fit = |feature| Features::ALL.without(feature).fit(&whole).unwrap();
        assert_eq!(fit(Feature::SocketEvents), Policy { open_max: 0, ..whole.clone() });
        assert_eq!(fit(Feature::SocketList), whole);
        let defence = Defence::OFF;
        assert_eq!(fit(Feature::SynCookies), Policy { defence, ..whole.clone() });
    }
}
