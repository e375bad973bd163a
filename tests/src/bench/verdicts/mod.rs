//! Verdicts: from the bad act to the dropped packet, what others decide, a NAT, and the peers.

mod crowdsec;
mod fleet;
mod heal;
mod latency;
mod nat;
mod peers;
mod scene;
mod start;

use super::Measures;

/// The measures by number: a ban, decisions of `CrowdSec`, a start with a million networks, a ban from
/// edge to edge, a NAT, fail2ban and `CrowdSec` on the same attack, what another hand deletes.
pub(super) const MEASURES: Measures = &[
    (&[1], latency::of_a_ban),
    (&[2], crowdsec::decisions),
    (&[3], start::with_a_million),
    (&[4], fleet::from_edge_to_edge),
    (&[5], nat::neighbours),
    (&[6], peers::on_the_same_attack),
    (&[7], heal::of_a_ban),
];
