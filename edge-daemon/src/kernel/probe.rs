//! Asks the running kernel for the features that the filter can do without.
//!
//! A question that the caller may not ask counts as answered with yes: what then fails names itself.

use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
};

use super::{
    KernelError, btf, census,
    error::error_chain,
    features::{Feature, Features},
};

impl Features {
    /// What the running kernel has.
    #[must_use]
    pub fn found() -> Self {
        let lacks = |feature: &Feature| !has(*feature);
        Feature::ALL.into_iter().filter(lacks).fold(Self::ALL, Self::without)
    }
}

fn has(feature: Feature) -> bool {
    let asked = match feature {
        Feature::SocketEvents => btf::socket_layout().and(btf::kernel_types().map(drop)),
        Feature::SocketList => match census::ask_for_none() {
            Err(error) if census::is_unknown(&error) => Err(KernelError::Census(error)),
            _ => Ok(()),
        },
        // All of them came with one change, under one name in the kernel's configuration.
        Feature::SynCookies => {
            let first = BpfHelper::BPF_FUNC_tcp_raw_gen_syncookie_ipv4;
            return is_helper_supported(ProgramType::Xdp, first).unwrap_or(true);
        }
    };
    if let Err(error) = &asked {
        let (feature, error) = (feature.name(), error_chain(error));
        tracing::info!(feature, error, "the kernel does not have it");
    }
    asked.is_ok()
}

/// The helpers that a kernel without [`Feature::SynCookies`] does not have.
pub(super) const OF_SYN_COOKIES: [u32; 4] = [
    BpfHelper::BPF_FUNC_tcp_raw_gen_syncookie_ipv4 as u32,
    BpfHelper::BPF_FUNC_tcp_raw_gen_syncookie_ipv6 as u32,
    BpfHelper::BPF_FUNC_tcp_raw_check_syncookie_ipv4 as u32,
    BpfHelper::BPF_FUNC_tcp_raw_check_syncookie_ipv6 as u32,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_of_the_tests_has_all() {
        assert_eq!(Features::found(), Features::ALL);
    }
}
