//! Which key of the configuration decides of a packet, where no entry of a list or table does.

use edge_common::Reason;

use crate::{
    config::settings::{Fragments, Kernel, When},
    kernel::Bucket,
};

/// The key that has packets refused for this reason, with what it says; `None`: no key does.
pub(super) fn rule(reason: Reason, kernel: &Kernel, buckets: &[Bucket]) -> Option<String> {
    let limit = |key: &str| {
        let own = |b: &&Bucket| b.prefix_bits.is_none() && b.kind.reason() == reason;
        let burst = buckets.iter().find(own).map_or(0, |bucket| bucket.burst);
        format!("kernel.{key}, {burst} at once")
    };
    Some(match reason {
        Reason::PacketRate => limit("packet_rate"),
        Reason::ByteRate => limit("byte_rate"),
        Reason::UdpRate => limit("udp_rate"),
        Reason::IcmpRate => limit("icmp_rate"),
        Reason::ConnectionRate => limit("connection_rate"),
        Reason::PrefixRate => {
            // Which of them refused is not told: the fullest did, or one as full.
            let wide = buckets.iter().filter_map(|bucket| Some((bucket.prefix_bits?, bucket)));
            let full = wide.min_by_key(|(_, bucket)| {
                u128::from(bucket.left) * u128::from(u64::MAX) / u128::from(bucket.burst.max(1))
            });
            let (bits, bucket) = full?;
            let (key, burst) = (bucket.kind.reason().name(), bucket.burst);
            format!("kernel.prefix_limits, /{bits}, {key}, {burst} at once")
        }
        Reason::OpenConnections => {
            format!("kernel.open_connections_max = {}", kernel.open_connections_max)
        }
        Reason::NoService => "kernel.services, of which this is none".to_owned(),
        Reason::Fragment if kernel.fragments == Fragments::Drop => {
            "kernel.fragments = \"drop\"".to_owned()
        }
        Reason::Unsolicited => {
            format!("kernel.syn_cookies.unsolicited = {}", word(kernel.syn_cookies.unsolicited))
        }
        Reason::SynCookie => format!("kernel.syn_cookies.mode = {}", word(kernel.syn_cookies.mode)),
        _ => return None,
    })
}

fn word(when: When) -> &'static str {
    match when {
        When::Off => "\"off\"",
        When::Auto => "\"auto\"",
        When::Always => "\"always\"",
    }
}
