//! The kernel programs of the benches: the floods, and the twins of what the product does, each
//! as short as the usual way of doing it allows.

use std::{io::Result, net::IpAddr};

use ipnet::IpNet;

use super::{
    Kind, Map, Program, TYPE_TRAFFIC_CONTROL,
    code::{
        Code,
        If::{Above, Equal, NotEqual},
        Size::{Double, Half, Word},
    },
};

/// Whom a flood comes from.
pub(in crate::bench) enum Sources {
    /// These IPv4 addresses, drawn at random; as many as a power of two.
    V4(Vec<[u8; 4]>),
    /// These IPv6 addresses, drawn at random; as many as a power of two.
    V6(Vec<[u8; 16]>),
    /// All of IPv4, drawn at random.
    AnyV4,
}

/// What a twin does with what it does not drop.
#[derive(Clone, Copy)]
pub(in crate::bench) enum Action {
    Drop = 1,
    Pass = 2,
}

/// A deny list as everybody writes it.
pub(in crate::bench) struct Lpm {
    pub(in crate::bench) program: Program,
    counts: Map,
}

impl Lpm {
    /// Packets of sources that were not found, and of those that were.
    pub(in crate::bench) fn counts(&self) -> Result<[u64; 2]> {
        Ok([self.counts.sum(0)?, self.counts.sum(1)?])
    }

    /// The type, the source, an LPM trie, a counter, a drop. Without networks it does all but the lookup.
    pub(in crate::bench) fn new(networks: &[IpNet], is_v6: bool) -> Result<Self> {
        let counts = Map::new(Kind::PerCpuArray, 4, 8, 2)?;
        let program = Program::lpm(networks, is_v6, &counts)?;
        Ok(Self { program, counts })
    }
}

impl Program {
    /// Looks at nothing.
    pub(in crate::bench) fn bare(action: Action) -> Result<Self> {
        Self::load(Code::default().exit(action as i32))
    }

    /// Puts a VLAN tag on each packet.
    pub(in crate::bench) fn tag(id: u16) -> Result<Self> {
        let code = Code::default().set(2, 0x8100_u16.to_be().into()).set(3, id.into());
        Self::load_as(TYPE_TRAFFIC_CONTROL, code.call(VLAN_PUSH).exit(TAKEN))
    }

    /// Takes the VLAN tag off each packet, and drops those without one.
    pub(in crate::bench) fn untag() -> Result<Self> {
        let code = Code::default().load(Word, 2, 1, IS_TAGGED);
        let code = code.jump_if(2, Equal, 0, "untagged").call(VLAN_POP).exit(TAKEN);
        Self::load_as(TYPE_TRAFFIC_CONTROL, code.here("untagged").exit(SHOT))
    }

    /// Writes a random source address into each packet, all of one protocol, and sends it out of
    /// an interface. IPv4's identification and TCP's sequence number take up the difference, so
    /// that checksums that were right for the address 0.0.0.0 and zeros in those fields stay so.
    ///
    /// A frame of TCP is written anew each time: the kernel sends the same pages again, with what a
    /// receiver that answers in place has made of them.
    ///
    /// With a pace, it lets go of what comes sooner than so many nanoseconds after the last packet.
    pub(in crate::bench) fn send(
        ifindex: u32,
        sources: &Sources,
        tcp: Option<&[u8]>,
        pace_ns: Option<i32>,
    ) -> Result<Self> {
        let next = Map::array(&[0; 8])?;
        let is_tcp = tcp.is_some();
        let frame = tcp.unwrap_or(&[0; 54]);
        let whole = Map::array(frame)?;
        let length = i32::try_from(frame.len()).expect("a short frame");
        let code = bounds(Code::default(), length, "runt");
        let code = match pace_ns {
            Some(interval_ns) => paced(code, &next, interval_ns),
            None => code,
        };
        let code = if is_tcp { restored(code, &whole, frame.len()) } else { code };
        let code = code.call(RANDOM).copy(8, 0);
        match sources {
            Sources::AnyV4 => finish(patch_v4(code, is_tcp), ifindex),
            Sources::V4(list) => {
                let table = Map::array(&list.concat())?;
                let code = draw(code, &table, list.len(), 4).load(Word, 8, 1, 0);
                finish(patch_v4(code, is_tcp), ifindex)
            }
            Sources::V6(list) => {
                let table = Map::array(&list.concat())?;
                let code = draw(code, &table, list.len(), 16);
                let code = code.load(Double, 2, 1, 0).load(Double, 3, 1, 8);
                finish(code.store(Double, 7, 22, 2).store(Double, 7, 30, 3), ifindex)
            }
        }
    }

    fn lpm(networks: &[IpNet], is_v6: bool, counts: &Map) -> Result<Self> {
        let (ether_type, header, bytes) = if is_v6 { (0xdd86, 54, 16) } else { (0x0008, 34, 4) };
        let mut code = bounds(Code::default(), header, "other")
            .load(Half, 2, 7, 12)
            .jump_if(2, NotEqual, ether_type, "other");
        code = if is_v6 {
            let code = code.load(Double, 2, 7, 22).load(Double, 3, 7, 30);
            // The key is the length of the prefix and the address, 20 bytes without a gap.
            code.store(Word, 10, -16, 2)
                .shift_right(2, 32)
                .store(Word, 10, -12, 2)
                .store(Word, 10, -8, 3)
                .shift_right(3, 32)
                .store(Word, 10, -4, 3)
        } else {
            code.load(Word, 2, 7, 26).store(Word, 10, -4, 2)
        };
        code = code.set(6, 0);
        let trie = if networks.is_empty() { None } else { Some(lpm_trie(networks, bytes)?) };
        if let Some(trie) = &trie {
            let start = -4 - i16::from(bytes);
            code = code
                .store_value(Word, 10, start, i32::from(bytes) * 8)
                .map(1, trie)
                .copy(2, 10)
                .add(2, i32::from(start))
                .call(LOOKUP)
                .jump_if(0, Equal, 0, "unlisted")
                .set(6, 1);
        }
        Self::load(
            code.here("unlisted")
                .store(Word, 10, -4, 6)
                .map(1, counts)
                .copy(2, 10)
                .add(2, -4)
                .call(LOOKUP)
                .jump_if(0, Equal, 0, "uncounted")
                .load(Double, 1, 0, 0)
                .add(1, 1)
                .store(Double, 0, 0, 1)
                .here("uncounted")
                .exit(Action::Drop as i32)
                .here("other")
                .exit(Action::Pass as i32),
        )
    }

    /// What [`Self::lru_limit`] does for every packet but for the limit: it finds the source, reads the
    /// clock, and passes the packet.
    pub(in crate::bench) fn without_limit() -> Result<Self> {
        Self::load(
            bounds(Code::default(), 34, "pass")
                .load(Half, 2, 7, 12)
                .jump_if(2, NotEqual, 0x0008, "pass")
                .load(Word, 2, 7, 26)
                .store(Word, 10, -4, 2)
                .call(BOOT_NS)
                .here("pass")
                .exit(Action::Pass as i32),
        )
    }

    /// A limit per source as everybody writes it: the theoretical arrival time of each source in
    /// an LRU hash. It passes what is within the limit, and that is every packet of a new source.
    pub(in crate::bench) fn lru_limit(sources_max: u32) -> Result<Self> {
        let cells = Map::new(Kind::LruHash, 4, 8, sources_max)?;
        Self::load(
            bounds(Code::default(), 34, "pass")
                .load(Half, 2, 7, 12)
                .jump_if(2, NotEqual, 0x0008, "pass")
                .load(Word, 2, 7, 26)
                .store(Word, 10, -4, 2)
                .call(BOOT_NS)
                .copy(8, 0)
                .map(1, &cells)
                .copy(2, 10)
                .add(2, -4)
                .call(LOOKUP)
                .jump_if(0, Equal, 0, "new")
                .load(Double, 1, 0, 0)
                .jump_if_register(1, Above, 8, "later")
                .copy(1, 8)
                .here("later")
                .add(1, INTERVAL_NS)
                .copy(2, 8)
                .add(2, CAPACITY_NS)
                .jump_if_register(1, Above, 2, "drop")
                .store(Double, 0, 0, 1)
                .exit(Action::Pass as i32)
                .here("new")
                .add(8, INTERVAL_NS)
                .store(Double, 10, -16, 8)
                .map(1, &cells)
                .copy(2, 10)
                .add(2, -4)
                .copy(3, 10)
                .add(3, -16)
                .set(4, 0)
                .call(UPDATE)
                .here("pass")
                .exit(Action::Pass as i32)
                .here("drop")
                .exit(Action::Drop as i32),
        )
    }
}

/// Leaves the start of the frame in register 7, if it is so long.
fn bounds<'m>(code: Code<'m>, length: i32, label: &'static str) -> Code<'m> {
    code.load(Word, 7, 1, 0)
        .load(Word, 8, 1, 4)
        .copy(2, 7)
        .add(2, length)
        .jump_if_register(2, Above, 8, label)
}

/// Goes on once in an interval, and makes up for a millisecond at most that was missed.
///
/// By a clock of whole [`BURST_NS`], so that packets come in bursts, as from a card that holds back
/// interrupts: else a receiver that keeps up sleeps between two packets, and is woken for each.
fn paced<'m>(code: Code<'m>, next: &'m Map, interval_ns: i32) -> Code<'m> {
    code.call(NOW_NS)
        .and(0, -BURST_NS)
        .value(1, next)
        .load(Double, 2, 1, 0)
        .jump_if_register(2, Above, 0, "runt")
        .add(0, -1_000_000)
        .jump_if_register(2, Above, 0, "on time")
        .copy(2, 0)
        .here("on time")
        .add(2, interval_ns)
        .store(Double, 1, 0, 2)
}

/// Writes a whole frame over the packet's; the last eight bytes may overlap those before.
fn restored<'m>(code: Code<'m>, whole: &'m Map, length: usize) -> Code<'m> {
    let starts = (0..length / 8).map(|word| word * 8).chain([length - 8]);
    starts.fold(code.value(1, whole), |code, at| {
        let at = i16::try_from(at).expect("a short frame");
        code.load(Double, 2, 1, at).store(Double, 7, at, 2)
    })
}

/// Leaves the address of a random record of a table in register 1; register 8 is the random number.
fn draw<'m>(code: Code<'m>, table: &'m Map, count: usize, bytes: usize) -> Code<'m> {
    assert!(count.is_power_of_two(), "the random number is masked");
    let mask = i32::try_from((count - 1) * bytes).expect("a table of megabytes");
    code.and(8, mask).value(1, table).add_register(1, 8)
}

/// Writes the source in register 8 into an IPv4 packet, and what keeps its checksums.
fn patch_v4(code: Code<'_>, is_tcp: bool) -> Code<'_> {
    // Register 8 may hold 64 random bits; the way through the frame cuts it short.
    let mut code = code.store(Word, 7, 26, 8).load(Word, 2, 7, 26).copy(4, 2).xor(4, -1);
    if is_tcp {
        code = code.store(Word, 7, 38, 4);
    }
    fold(fold(code)).xor(2, -1).store(Half, 7, 18, 2)
}

/// Adds the halves of the word in register 2.
fn fold(code: Code<'_>) -> Code<'_> {
    code.copy(3, 2).shift_right(3, 16).and(2, 0xffff).add_register(2, 3)
}

fn finish(code: Code<'_>, ifindex: u32) -> Result<Program> {
    let ifindex = i32::try_from(ifindex).expect("a small number");
    let code = code.set(1, ifindex).set(2, 0).call(REDIRECT).exit_as_is();
    Program::load(code.here("runt").exit(Action::Drop as i32))
}

fn lpm_trie(networks: &[IpNet], bytes: u8) -> Result<Map> {
    let trie = Map::new(Kind::LpmTrie, 4 + u32::from(bytes), 8, networks.len() as u32)?;
    for network in networks {
        let mut key = u32::from(network.prefix_len()).to_ne_bytes().to_vec();
        match network.network() {
            IpAddr::V4(address) => key.extend(address.octets()),
            IpAddr::V6(address) => key.extend(address.octets()),
        }
        trie.put(&key, &[0; 8])?;
    }
    Ok(trie)
}

/// A power of two.
const BURST_NS: i32 = 1 << 16;
/// A packet each millisecond, and a thousand at once.
const INTERVAL_NS: i32 = 1_000_000;
const CAPACITY_NS: i32 = 1_000_000_000;

// The helpers' numbers, of linux/bpf.h.
const LOOKUP: i32 = 1;
const UPDATE: i32 = 2;
const NOW_NS: i32 = 5;
const RANDOM: i32 = 7;
const VLAN_PUSH: i32 = 18;
const VLAN_POP: i32 = 19;
const REDIRECT: i32 = 23;
const BOOT_NS: i32 = 125;

/// `__sk_buff.vlan_present`
const IS_TAGGED: i16 = 20;
/// `TC_ACT_OK` and `TC_ACT_SHOT`
const TAKEN: i32 = 0;
const SHOT: i32 = 2;
