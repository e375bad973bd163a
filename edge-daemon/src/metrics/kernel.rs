//! What the kernel counted, and the state of what guards the interfaces.

use edge_common::{Plane, Reason, map::Count};
use edge_policy::traffic::Counts;
use prometheus::proto::{MetricFamily, MetricType};

use super::{
    counter, family, gauge,
    lists::{self, ListView},
};
use crate::kernel::{Feature, Features, Interface, LeftOut};

/// What the kernel counted, read for one scrape.
pub struct KernelView {
    /// Packets and bytes by reason, of each interface by name.
    pub counts: Vec<(String, Counts)>,
    /// Packets that would have been dropped but for monitor mode, by reason.
    pub would_drop: [Count; Reason::COUNT],
    /// Packets that matched each signature, by its name.
    pub signature_hits: Vec<(String, u64)>,
    /// Name, entries if they are counted, and capacity of each table.
    pub tables: Vec<(&'static str, Option<u64>, u64)>,
    /// Drop events that the kernel kept back.
    pub drops_lost: u64,
    /// Samples that a full ring kept back.
    pub samples_lost: u64,
    /// Listeners whose SYNs are answered with cookies.
    pub engaged: u64,
    /// Listeners that cookies do not protect.
    pub left_out: LeftOut,
    /// Whether TCP packets of no connection are refused.
    pub alarm: bool,
    /// The lists.
    pub lists: ListView,
    /// The guarded interfaces.
    pub interfaces: Vec<Interface>,
    /// Connections that found no room to be counted.
    pub uncounted: u64,
    /// Corrections of the count of open connections, by kind.
    pub corrected: [(&'static str, u64); 2],
    /// Comparisons of the count with the kernel's sockets that failed.
    pub censuses_failed: u64,
    /// What the kernel has of what the filter can do without.
    pub features: Features,
}

impl KernelView {
    /// All of it, as families.
    pub(super) fn families(&self) -> Vec<MetricFamily> {
        let packet_reasons = || Reason::ALL.iter().filter(|r| r.plane() == Plane::Packet);
        let by_reason = |of: fn(&Count) -> u64| {
            self.counts.iter().flat_map(move |(interface, counts)| {
                packet_reasons().map(move |reason| {
                    let labels = [("reason", reason.name()), ("interface", interface)];
                    counter(&labels, of(&counts[*reason as usize]))
                })
            })
        };
        let used = self.tables.iter().filter_map(|(map, used, _)| Some((map, (*used)?)));
        let lost = |count| [counter(&[], count)];
        let (total, now) = (MetricType::COUNTER, MetricType::GAUGE);
        let mut families = vec![
            family("edged_packets_total", "Packets by outcome.", total, by_reason(|c| c.packets)),
            family(
                "edged_packet_bytes_total",
                "Packet bytes by outcome.",
                total,
                by_reason(|c| c.bytes),
            ),
            family(
                "edged_packets_would_drop_total",
                "Packets that monitor mode kept from being dropped.",
                total,
                packet_reasons().filter(|r| r.drops()).map(|reason| {
                    let count = self.would_drop[*reason as usize].packets;
                    counter(&[("reason", reason.name())], count)
                }),
            ),
            family(
                "edged_signature_hits_total",
                "Packets that matched a signature.",
                total,
                self.signature_hits.iter().map(|(name, n)| counter(&[("signature", name)], *n)),
            ),
            family(
                "edged_map_entries",
                "Entries of a kernel table.",
                now,
                used.map(|(m, n)| gauge(&[("map", m)], n)),
            ),
            family(
                "edged_map_capacity",
                "Capacity of a kernel table.",
                now,
                self.tables.iter().map(|(map, _, capacity)| gauge(&[("map", map)], *capacity)),
            ),
            family(
                "edged_drop_events_lost_total",
                "Drop events the kernel kept back.",
                total,
                lost(self.drops_lost),
            ),
            family(
                "edged_samples_lost_total",
                "Samples a full ring kept back.",
                total,
                lost(self.samples_lost),
            ),
            family(
                "edged_syn_cookies_engaged",
                "Listeners whose SYNs are answered with cookies.",
                now,
                [gauge(&[], self.engaged)],
            ),
            family(
                "edged_syn_cookies_left_out",
                "Listeners that SYN cookies do not protect.",
                now,
                [("full", self.left_out.full), ("vlan", self.left_out.hidden)]
                    .map(|(why, count)| gauge(&[("why", why)], count as u64)),
            ),
            family(
                "edged_unsolicited_engaged",
                "Whether TCP packets of no connection are refused.",
                now,
                [gauge(&[], u64::from(self.alarm))],
            ),
            family(
                "edged_interface_filtered",
                "Whether the packet program judges what comes in.",
                now,
                self.interfaces.iter().map(|i| {
                    let labels = [("interface", &*i.name), ("mode", &*i.mode.to_string())];
                    gauge(&labels, i.is_guarded.into())
                }),
            ),
            family(
                "edged_interface_up",
                "Whether an interface is switched on.",
                now,
                self.interfaces.iter().map(|i| gauge(&[("interface", &i.name)], i.is_up.into())),
            ),
            family(
                "edged_open_connections_corrected_total",
                "Open connections whose count was corrected.",
                total,
                self.corrected.iter().map(|(kind, count)| counter(&[("kind", kind)], *count)),
            ),
            family(
                "edged_open_connections_uncounted_total",
                "Connections that found no room to be counted.",
                total,
                [counter(&[], self.uncounted)],
            ),
            family(
                "edged_censuses_failed_total",
                "Open connections that could not be compared with the kernel's sockets.",
                total,
                [counter(&[], self.censuses_failed)],
            ),
            family(
                "edged_kernel_feature",
                "Whether the kernel has a feature that the filter can do without.",
                now,
                Feature::ALL.map(|feature| {
                    gauge(&[("feature", feature.name())], self.features.has(feature).into())
                }),
            ),
        ];
        families.extend(lists::families(&self.lists));
        families
    }
}
