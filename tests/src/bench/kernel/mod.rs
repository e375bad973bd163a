//! The kernel plane beside bare programs, twins of the usual ways, and the peers.

mod cookies;
mod drop;
mod exact;
mod frames;
mod goodput;
mod life;
mod limits;
mod networks;
mod receivers;
mod swap;
mod unlisted;

use super::{Measures, rounds};
use crate::packet;

/// The measures by number.
pub(super) const MEASURES: Measures = &[
    (&[1, 2], drop::listed),
    (&[3], unlisted::lookups),
    (&[4], limits::spoofed),
    (&[5], exact::admitted),
    (&[6], goodput::beside_flood),
    (&[7], swap::lists),
    (&[8], life::besieged),
    (&[9], frames::differential),
    (&[10], cookies::answers),
    (&[11], life::counted),
    (&[12], drop::listed_v6),
];

/// A short IPv4 UDP frame that states this length in its UDP header; the sender fills in its
/// source.
fn udp_frame(stated: u16) -> Vec<u8> {
    let mut frame = packet::v4("0.0.0.0").udp().bytes(&[0; 18]).patched(38, &stated.to_be_bytes());
    // The sender accounts for the identification from zero.
    frame[18..20].fill(0);
    packet::sum_v4(&mut frame);
    frame
}

/// As [`udp_frame`], over IPv6.
fn udp6_frame(stated: u16) -> Vec<u8> {
    packet::v6("::").udp().bytes(&[0; 18]).patched(58, &stated.to_be_bytes())
}

/// Networks of the lists, where the table does not say otherwise.
const NETWORKS: usize = 100_000;
/// The true length of those frames' UDP.
const UDP_LENGTH: u16 = 26;
/// A length that no UDP header may state. The product drops such a packet right behind its lists,
/// so that what it costs holds the lists and none of the network stack.
const BROKEN: u16 = 1;
