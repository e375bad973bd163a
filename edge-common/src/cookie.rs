//! What SYN cookies protect, and the SYN-ACK that carries one: which of a SYN's options it keeps, and its bytes.
//!
//! A cookie alone remembers nothing but a maximum segment size. What else the two agree on rides in
//! the low bits of the SYN-ACK's timestamp, which comes back with the ACK: the encoding is that of
//! `cookie_init_timestamp` in Linux' `net/ipv4/syncookies.c`, whose reader is the kernel itself.

use crate::{Source, verifier};

/// An address of this host with a TCP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct Listener {
    /// The address.
    pub address: Source,
    /// The port, or [`ANY_PORT`].
    pub port: u64,
}

/// In the place of a port: packets of no connection are refused at every one of the address.
pub const ANY_PORT: u64 = 0;

/// How full the queue of a listener is. The kernel programs write it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Pressure {
    /// When the listener was last asked.
    pub asked_ns: u64,
    /// Until when its SYNs are answered with cookies.
    pub until_ns: u64,
}

/// Addresses with ports that are protected.
pub const LISTENERS_MAX: u32 = 4_096;
/// Of TCP packets of no connection, one in so many is looked for in peace; a power of two.
pub const UNSOLICITED_SAMPLE: u64 = 64;
/// Connections that are remembered as made by a cookie, a power of two: 32 KiB.
pub const MADE_MAX: u32 = 4_096;
const _: () = assert!(MADE_MAX.is_power_of_two());
const _: () = assert!(size_of::<Listener>() == 24);
const _: () = assert!(size_of::<Pressure>() == 16);
const _: () = assert!(UNSOLICITED_SAMPLE.is_power_of_two());

/// A connection that a cookie made just now, in one word: the upper bits of its hash, and when. The lower
/// bits of the hash say where it lies.
///
/// A card hands over many packets in one go, and the network stack sees the first of them only once the
/// last has been judged: what a client sends right behind its cookie finds no connection yet, and brings no
/// cookie. A word that another connection has taken costs a retransmission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made(pub u64);

impl Made {
    /// The connection of this hash, at this time.
    #[inline(always)]
    #[must_use]
    pub const fn new(hash: u64, now_ns: u64) -> Self {
        Self(hash & !Self::TIME | now_ns >> Self::UNIT & Self::TIME)
    }

    /// Whether it is the connection of this hash, and was made no longer ago than a tenth of a second.
    #[inline(always)]
    #[must_use]
    pub const fn holds(self, hash: u64, now_ns: u64) -> bool {
        let now = Self::new(hash, now_ns).0;
        (now ^ self.0) & !Self::TIME == 0 && now.wrapping_sub(self.0) & Self::TIME <= Self::UNITS
    }

    /// Bits of the time, in units of 2^20 ns: it comes round after more than four hours.
    const TIME: u64 = (1 << 24) - 1;
    const UNIT: u32 = 20;
    /// A tenth of a second.
    const UNITS: u64 = 95;
}

/// A TCP segment without data, and the answer to it; each field begins at a multiple of four.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct Segment {
    /// The frame's two MAC addresses.
    pub macs: [u8; 12],
    /// The IP header; of an IPv4 one the first [`V4_BYTES`].
    pub ip: [u8; 40],
    /// The TCP header, options included; what is behind it means nothing.
    pub tcp: [u8; TCP_ROOM],
    /// The answer: an IP header that ends, and a TCP header that begins, at [`V6_BYTES`].
    pub answer: [u8; ANSWER_ROOM],
}

/// Bytes of an IPv4 header without options.
pub const V4_BYTES: usize = 20;
/// Bytes of an IPv6 header.
pub const V6_BYTES: usize = 40;
/// Bytes of the longest TCP header.
pub const TCP_BYTES_MAX: usize = 60;
/// Room for it, and for an option that is read at any offset of six bits.
const TCP_ROOM: usize = 72;
/// Bytes of the longest answer, from its IP header on.
pub const ANSWER_BYTES: usize = V6_BYTES + 40;
/// Room for it, from either start: the verifier knows only how long an answer may be.
const ANSWER_ROOM: usize = ANSWER_BYTES + 24;
/// Bytes that follow the Ethernet header at least; a short answer is padded with zeros.
pub const PAYLOAD_MIN: usize = 46;

/// What the host lets its SYN-ACKs agree to.
#[allow(non_snake_case, reason = "a namespace of constants")]
pub mod Keep {
    /// Timestamps, without which nothing below can be kept. The kernel hides its clock behind a
    /// secret offset for each pair of addresses unless `net.ipv4.tcp_timestamps` is 2.
    pub const TIMESTAMPS: u32 = 1;
    /// Selective acknowledgements.
    pub const SACK: u32 = 2;
    /// Window scaling.
    pub const WINDOW_SCALE: u32 = 4;
    /// Explicit congestion notification, if the client asks for it.
    pub const ECN: u32 = 8;
    /// Where the host's own window scale lies, four bits of it.
    pub const SCALE_SHIFT: u32 = 8;
}

/// What an answer says.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    /// The cookie: its sequence number.
    pub cookie: u32,
    /// The largest segment that this side takes.
    pub mss: u16,
    /// [`Keep`]s.
    pub keep: u32,
    /// `CLOCK_MONOTONIC` in milliseconds.
    pub now_ms: u64,
}

/// Bits of a timestamp that carry options.
const TIMESTAMP_BITS: u32 = 6;
const TIMESTAMP_NO_SCALE: u32 = 0xf;
const TIMESTAMP_SACK: u32 = 1 << 4;
const TIMESTAMP_ECN: u32 = 1 << 5;
/// The largest window scale, by RFC 7323.
const SCALE_MAX: u8 = 14;

/// Whole segments of any common size fit into it, and the kernel's first window is never smaller.
const WINDOW: u16 = 61_440;
const HOPS: u8 = 64;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;
const TCP: u8 = 6;

/// What a SYN asks for, as a word that the verifier forgets between two options: the timestamp
/// above, these below.
const ASKS_SACK: u64 = 1;
const ASKS_SCALE: u64 = 2;
const ASKS_TIMESTAMPS: u64 = 4;
const SCALE_SHIFT: u32 = 4;
const CLOCK_SHIFT: u32 = 32;

impl Segment {
    /// Nothing yet.
    pub const EMPTY: Self =
        Self { macs: [0; 12], ip: [0; 40], tcp: [0; TCP_ROOM], answer: [0; ANSWER_ROOM] };

    /// Whether the sender can be answered at all: the frame is no broadcast, and its source is one
    /// host's. Anything else the stack refuses by itself.
    #[inline(always)]
    #[must_use]
    pub fn can_be_answered(&self, source: &Source) -> bool {
        let (high, low) = (source.high(), source.low());
        let is_host = if source.is_v4() {
            !matches!((low >> 24) as u8, 0 | 127 | 224..)
        } else {
            high >> 56 != 0xff && (high != 0 || low >> 8 != 0)
        };
        is_host && self.macs[0] & 1 == 0
    }

    /// The MAC addresses of the answer.
    #[inline(always)]
    pub fn turn_macs(&mut self) {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = self.macs;
        self.macs = [g, h, i, j, k, l, a, b, c, d, e, f];
    }

    /// Writes the answer to the SYN that is in `ip` and `tcp`; its bytes, of which the first is at
    /// `V6_BYTES - V4_BYTES` for IPv4, else at 0.
    #[inline(always)]
    #[must_use]
    pub fn write_answer(&mut self, is_v4: bool, offer: &Offer) -> usize {
        self.answer = [0; ANSWER_ROOM];
        let tcp_bytes = self.write_tcp(is_v4, offer);
        let pseudo = if is_v4 { self.write_v4(tcp_bytes) } else { self.write_v6(tcp_bytes) };
        let head = u32::from((tcp_bytes as u16 + u16::from(TCP)).to_be());
        let sum = u64::from(head) + pseudo + sum::<V6_BYTES, 10>(&self.answer);
        self.put(V6_BYTES + 16, fold(sum).to_ne_bytes());
        tcp_bytes + if is_v4 { V4_BYTES } else { V6_BYTES }
    }

    /// The header without its checksum; its bytes.
    #[inline(always)]
    fn write_tcp(&mut self, is_v4: bool, offer: &Offer) -> usize {
        let [s0, s1, d0, d1, n0, n1, n2, n3, ..] = self.tcp;
        self.put(V6_BYTES, [d0, d1, s0, s1]);
        self.put(V6_BYTES + 4, offer.cookie.to_be_bytes());
        let sequence = u32::from_be_bytes([n0, n1, n2, n3]);
        self.put(V6_BYTES + 8, sequence.wrapping_add(1).to_be_bytes());
        let [m0, m1] = offer.mss.to_be_bytes();
        self.put(V6_BYTES + 20, [2, 4, m0, m1]);
        let asks =
            if offer.keep & Keep::TIMESTAMPS != 0 { self.asks(offer.cookie.into()) } else { 0 };
        let has_options = asks & ASKS_TIMESTAMPS != 0;
        let wants_ecn = has_options && offer.keep & Keep::ECN != 0 && self.asks_ecn(is_v4);
        let bytes = if has_options { 40 } else { 24 };
        if has_options {
            self.write_options(asks, wants_ecn, offer);
        }
        let flags = SYN | ACK | if wants_ecn { ECE } else { 0 };
        let [w0, w1] = WINDOW.to_be_bytes();
        self.put(V6_BYTES + 12, [bytes << 2, flags, w0, w1]);
        bytes.into()
    }

    /// Timestamps, and what they carry back.
    #[inline(always)]
    fn write_options(&mut self, asks: u64, wants_ecn: bool, offer: &Offer) {
        let has_sack = asks & ASKS_SACK != 0 && offer.keep & Keep::SACK != 0;
        let has_scale = asks & ASKS_SCALE != 0 && offer.keep & Keep::WINDOW_SCALE != 0;
        let theirs = (asks >> SCALE_SHIFT) as u32 & 0xf;
        let carried = if has_scale { theirs } else { TIMESTAMP_NO_SCALE }
            | if has_sack { TIMESTAMP_SACK } else { 0 }
            | if wants_ecn { TIMESTAMP_ECN } else { 0 };
        let sack = if has_sack { [4, 2] } else { [1, 1] };
        self.put(V6_BYTES + 24, [sack[0], sack[1], 8, 10]);
        self.put(V6_BYTES + 28, timestamp(offer.now_ms, carried).to_be_bytes());
        self.put(V6_BYTES + 32, ((asks >> CLOCK_SHIFT) as u32).to_be_bytes());
        let ours = (offer.keep >> Keep::SCALE_SHIFT) as u8 & 0xf;
        self.put(V6_BYTES + 36, if has_scale { [1, 3, 3, ours] } else { [1; 4] });
    }

    /// Reads the SYN's options; `noise` is any number.
    #[inline(always)]
    fn asks(&self, noise: u64) -> u64 {
        let end = usize::from(self.tcp[12] >> 4) * 4;
        let (mut asks, mut at) = (0, 20);
        let mut option = 0;
        // An option has a byte at least.
        while option < TCP_BYTES_MAX - 20 {
            // Not checked, and so not a way of its own for the verifier.
            let byte = |index: usize| self.tcp[(at & (TCP_ROOM - 9)) + index];
            let kind = byte(0);
            let bytes = if kind == 1 { 1 } else { usize::from(byte(1)) };
            if at >= end || kind == 0 || bytes == 0 || at + bytes > end {
                break;
            }
            match (kind, bytes) {
                (3, 3) => {
                    asks |= ASKS_SCALE | u64::from(byte(2).min(SCALE_MAX)) << SCALE_SHIFT;
                }
                (4, 2) => asks |= ASKS_SACK,
                (8, 10) => {
                    let clock = u32::from_be_bytes([byte(2), byte(3), byte(4), byte(5)]);
                    asks |= ASKS_TIMESTAMPS | u64::from(clock) << CLOCK_SHIFT;
                }
                _ => {}
            }
            asks = verifier::forget(asks, noise);
            at = verifier::forget((at + bytes) as u64, noise) as usize;
            option += 1;
        }
        asks
    }

    /// Whether the SYN asks for congestion notification, by RFC 3168: on a packet without a mark.
    #[inline(always)]
    fn asks_ecn(&self, is_v4: bool) -> bool {
        let mark = if is_v4 { self.ip[1] & 3 } else { self.ip[1] >> 4 & 3 };
        self.tcp[13] & (ECE | CWR) == ECE | CWR && mark == 0
    }

    /// The IPv4 header; the sum of its addresses.
    #[inline(always)]
    fn write_v4(&mut self, tcp_bytes: usize) -> u64 {
        const AT: usize = V6_BYTES - V4_BYTES;
        let [l0, l1] = ((V4_BYTES + tcp_bytes) as u16).to_be_bytes();
        self.put(AT, [0x45, 0, l0, l1]);
        // No fragments: the answer is short.
        self.put(AT + 4, [0, 0, 0x40, 0]);
        self.put(AT + 8, [HOPS, TCP, 0, 0]);
        let [.., s0, s1, s2, s3, d0, d1, d2, d3] =
            *self.ip.first_chunk::<V4_BYTES>().unwrap_or(&[0; 20]);
        self.put(AT + 12, [d0, d1, d2, d3]);
        self.put(AT + 16, [s0, s1, s2, s3]);
        let checksum = fold(sum::<AT, 5>(&self.answer));
        self.put(AT + 10, checksum.to_ne_bytes());
        sum::<{ AT + 12 }, 2>(&self.answer)
    }

    /// The IPv6 header; the sum of its addresses.
    #[inline(always)]
    fn write_v6(&mut self, tcp_bytes: usize) -> u64 {
        self.put(0, [0x60, 0, 0, 0]);
        let [l0, l1] = (tcp_bytes as u16).to_be_bytes();
        self.put(4, [l0, l1, TCP, HOPS]);
        let mut byte = 0;
        while byte < 16 {
            self.answer[8 + byte] = self.ip[24 + byte];
            self.answer[24 + byte] = self.ip[8 + byte];
            byte += 1;
        }
        sum::<8, 8>(&self.answer)
    }

    #[inline(always)]
    fn put<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        let mut byte = 0;
        while byte < N {
            self.answer[at + byte] = bytes[byte];
            byte += 1;
        }
    }
}

/// The clock with options in its low bits, never ahead of the clock itself: later timestamps of
/// the connection must not go back.
#[inline(always)]
const fn timestamp(now_ms: u64, options: u32) -> u32 {
    let stamped = now_ms >> TIMESTAMP_BITS << TIMESTAMP_BITS | options as u64;
    let step = if stamped > now_ms { 1 << TIMESTAMP_BITS } else { 0 };
    (stamped - step) as u32
}

/// The sum of so many words from an offset on, as they lie in memory: RFC 1071's sum does not
/// mind the order of bytes.
#[inline(always)]
fn sum<const AT: usize, const WORDS: usize>(bytes: &[u8; ANSWER_ROOM]) -> u64 {
    const { assert!(AT + WORDS * 4 <= ANSWER_ROOM) };
    let (mut sum, mut word) = (0, 0);
    while word < WORDS {
        let at = AT + word * 4;
        let four = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        sum += u64::from(u32::from_ne_bytes(four));
        word += 1;
    }
    sum
}

/// The checksum of such a sum.
#[inline(always)]
const fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_cookie_made_is_remembered_for_a_tenth_of_a_second() {
        let (ms, hash) = (1_000_000, 0x0123_4567_89ab_cdef);
        for at in [0, 5 * ms, (1 << 44) - 50 * ms, 12_345_678 * ms] {
            let made = Made::new(hash, at);
            assert!([0, 1, 50, 98].iter().all(|later| made.holds(hash, at + later * ms)), "{at}");
            assert!([102, 1_000, 3_600_000].iter().all(|later| !made.holds(hash, at + later * ms)));
            // What tells connections of one place apart.
            assert!(!made.holds(hash ^ 1 << 24, at) && !made.holds(hash ^ 1 << 63, at));
        }
    }

    /// A SYN of the given options, as Linux sends it.
    fn syn(is_v4: bool, flags: u8, options: &[u8]) -> Segment {
        let mut segment = Segment::EMPTY;
        segment.macs = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        if is_v4 {
            segment.ip[..4].copy_from_slice(&[0x45, 0, 0, 60]);
            segment.ip[12..20].copy_from_slice(&[198, 51, 100, 10, 198, 51, 100, 1]);
        } else {
            segment.ip[0] = 0x60;
            segment.ip[8] = 0x20;
            segment.ip[23] = 0xa;
            segment.ip[24] = 0x20;
            segment.ip[39] = 1;
        }
        let doff = (20 + options.len() as u8) << 2;
        segment.tcp[..16].copy_from_slice(&[
            0xab, 0xcd, 1, 0xbb, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, doff, flags, 0xfa, 0xf0,
        ]);
        segment.tcp[20..20 + options.len()].copy_from_slice(options);
        segment
    }

    const USUAL: &[u8] = &[2, 4, 5, 180, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];
    const ALL: u32 =
        Keep::TIMESTAMPS | Keep::SACK | Keep::WINDOW_SCALE | Keep::ECN | 10 << Keep::SCALE_SHIFT;
    const OFFER: Offer = Offer { cookie: 0x0102_0304, mss: 1460, keep: ALL, now_ms: 1_000_000 };

    /// The answer from its TCP header on. Its checksums must be right.
    fn answer(segment: &mut Segment, is_v4: bool, offer: &Offer) -> Vec<u8> {
        let bytes = segment.write_answer(is_v4, offer);
        let start = if is_v4 { V6_BYTES - V4_BYTES } else { 0 };
        let tcp = &segment.answer[V6_BYTES..start + bytes];
        let addresses = &segment.answer[if is_v4 { 32..40 } else { 8..40 }];
        let length = (tcp.len() as u16 + 6).to_be_bytes();
        assert_eq!(naive(&[addresses, &length, tcp].concat()), 0);
        if is_v4 {
            assert_eq!(naive(&segment.answer[20..40]), 0);
        }
        assert_eq!(usize::from(tcp[12] >> 4) * 4, tcp.len());
        tcp.to_vec()
    }

    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = bytes
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum::<u32>();
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        !(sum as u16)
    }

    #[test]
    fn an_answer_turns_the_syn_around() {
        for is_v4 in [true, false] {
            let mut segment = syn(is_v4, SYN, &[2, 4, 5, 180]);
            let tcp = answer(&mut segment, is_v4, &OFFER);
            assert_eq!(tcp[..4], [1, 0xbb, 0xab, 0xcd]);
            assert_eq!(tcp[4..8], [1, 2, 3, 4]);
            assert_eq!(tcp[8..12], [0; 4], "the sequence number wraps around");
            assert_eq!(tcp[12..14], [24 << 2, SYN | ACK]);
            assert_eq!(tcp[20..], [2, 4, 5, 180]);
            let (from, to) = if is_v4 { (32..36, 36..40) } else { (8..24, 24..40) };
            let own = if is_v4 { [16..20, 12..16] } else { [24..40, 8..24] };
            assert_eq!(segment.answer[from], segment.ip[own[0].clone()]);
            assert_eq!(segment.answer[to], segment.ip[own[1].clone()]);
            segment.turn_macs();
            assert_eq!(segment.macs, [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
        }
    }

    #[test]
    fn options_ride_in_the_timestamp() {
        let tcp = answer(&mut syn(true, SYN | ECE | CWR, USUAL), true, &OFFER);
        assert_eq!(tcp[13], SYN | ACK | ECE);
        let stamp = timestamp(OFFER.now_ms, 7 | TIMESTAMP_SACK | TIMESTAMP_ECN).to_be_bytes();
        assert_eq!(tcp[20..28], [2, 4, 5, 180, 4, 2, 8, 10]);
        assert_eq!(tcp[28..32], stamp);
        assert_eq!(tcp[32..], [1, 2, 3, 4, 1, 3, 3, 10]);
    }

    #[test]
    fn nothing_is_granted_that_was_not_asked_for() {
        let stamps = &[2, 4, 5, 180, 1, 1, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0];
        let tcp = answer(&mut syn(true, SYN, stamps), true, &OFFER);
        assert_eq!(tcp[24..28], [1, 1, 8, 10]);
        assert_eq!(tcp[28..32], timestamp(OFFER.now_ms, TIMESTAMP_NO_SCALE).to_be_bytes());
        assert_eq!(tcp[36..], [1; 4]);
    }

    #[test]
    fn nothing_is_granted_that_the_host_would_not_grant() {
        for (keep, expected) in [
            (0, None),
            (ALL & !Keep::TIMESTAMPS, None),
            (Keep::TIMESTAMPS, Some(TIMESTAMP_NO_SCALE)),
            (Keep::TIMESTAMPS | Keep::SACK, Some(TIMESTAMP_NO_SCALE | TIMESTAMP_SACK)),
            (Keep::TIMESTAMPS | Keep::WINDOW_SCALE, Some(7)),
        ] {
            let mut segment = syn(false, SYN | ECE | CWR, USUAL);
            let tcp = answer(&mut segment, false, &Offer { keep, ..OFFER });
            assert_eq!(tcp[13], SYN | ACK);
            let stamp = expected.map(|options| timestamp(OFFER.now_ms, options).to_be_bytes());
            assert_eq!(tcp.get(28..32), stamp.as_ref().map(|s| &s[..]), "{keep:#x}");
        }
    }

    #[test]
    fn a_marked_packet_asks_for_no_notification() {
        let mut segment = syn(true, SYN | ECE | CWR, USUAL);
        segment.ip[1] = 1;
        assert_eq!(answer(&mut segment, true, &OFFER)[13], SYN | ACK);
    }

    #[test]
    fn broken_options_end_the_reading() {
        for (options, expected) in [
            (&[8, 0, 4, 2][..], 0),
            (&[4, 2, 8, 11], ASKS_SACK),
            (&[0, 4, 2, 0], 0),
            (&[1, 1, 4, 2], ASKS_SACK),
            (&[4, 3, 0, 1], 0),
            (&[3, 3, 99, 1], ASKS_SCALE | 14 << SCALE_SHIFT),
        ] {
            assert_eq!(syn(true, SYN, options).asks(7), expected, "{options:?}");
        }
    }

    #[test]
    fn a_timestamp_keeps_its_options_and_never_runs_ahead() {
        for now_ms in [64, 127, 1_000_000, u64::from(u32::MAX), u64::from(u32::MAX) + 63] {
            for options in 0..64 {
                let stamp = timestamp(now_ms, options);
                assert_eq!(stamp & 63, options);
                assert!((now_ms as u32).wrapping_sub(stamp) < 64);
            }
        }
    }

    #[test]
    fn only_a_host_is_answered() {
        let segment = syn(true, SYN, &[]);
        for (source, expected) in [
            ("198.51.100.10", true),
            ("0.1.2.3", false),
            ("127.0.0.1", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("2001:db8::1", true),
            ("fe80::1", true),
            ("::1", false),
            ("::", false),
            ("ff02::1", false),
            ("::2:0:0:1", true),
        ] {
            let source: core::net::IpAddr = source.parse().unwrap();
            assert_eq!(segment.can_be_answered(&source.into()), expected, "{source}");
        }
        let broadcast = Segment { macs: [0xff; 12], ..segment };
        assert!(!broadcast.can_be_answered(&Source::v4([198, 51, 100, 10])));
    }
}
