//! Writes databases in MaxMind's format, small ones: a tree of 24-bit records over IPv6, data, metadata.
//! <https://maxmind.github.io/MaxMind-DB/>

use std::net::IpAddr;

use ipnet::IpNet;

/// A value of the data section.
#[derive(Clone, Copy)]
pub enum Value<'v> {
    /// A string.
    Text(&'v str),
    /// A number of at most 32 bits.
    Number(u32),
    /// A number of at most 16 bits.
    Short(u16),
    /// A number of at most 64 bits.
    Long(u64),
    /// A map.
    Map(&'v [(&'v str, Value<'v>)]),
    /// No string at all.
    Nothing,
}

/// A database of this type with a value for each network; networks do not overlap.
#[must_use]
pub fn write(kind: &str, entries: &[(IpNet, Value<'_>)]) -> Vec<u8> {
    let (mut nodes, mut data) = (vec![[None; 2]], Vec::new());
    for (net, value) in entries {
        let offset = data.len();
        encode(*value, &mut data);
        insert(&mut nodes, *net, offset);
    }
    let count = nodes.len();
    let mut bytes = Vec::new();
    for record in nodes.iter().flatten() {
        let value = match record {
            None => count,
            Some(Record::Node(node)) => *node,
            Some(Record::Data(offset)) => count + 16 + offset,
        };
        bytes.extend(&(value as u32).to_be_bytes()[1..]);
    }
    bytes.extend([0; 16]);
    bytes.extend(data);
    bytes.extend(b"\xab\xcd\xefMaxMind.com");
    let count = Value::Number(count as u32);
    encode(
        Value::Map(&[
            ("node_count", count),
            ("record_size", Value::Short(24)),
            ("ip_version", Value::Short(6)),
            ("database_type", Value::Text(kind)),
            ("languages", Value::Nothing),
            ("binary_format_major_version", Value::Short(2)),
            ("binary_format_minor_version", Value::Short(0)),
            ("build_epoch", Value::Long(1_700_000_000)),
            ("description", Value::Map(&[("en", Value::Text("of a test"))])),
        ]),
        &mut bytes,
    );
    bytes
}

#[derive(Clone, Copy)]
enum Record {
    Node(usize),
    Data(usize),
}

fn insert(nodes: &mut Vec<[Option<Record>; 2]>, net: IpNet, offset: usize) {
    // IPv4 lies at the first 96 bits of zeros.
    let (bits, length) = match net.network() {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 96 + net.prefix_len()),
        IpAddr::V6(v6) => (v6.to_bits(), net.prefix_len()),
    };
    let mut node = 0;
    for depth in 0..length {
        let side = (bits >> (127 - depth) & 1) as usize;
        if depth + 1 == length {
            nodes[node][side] = Some(Record::Data(offset));
            return;
        }
        node = match nodes[node][side] {
            Some(Record::Node(next)) => next,
            _ => {
                nodes.push([None; 2]);
                nodes[node][side] = Some(Record::Node(nodes.len() - 1));
                nodes.len() - 1
            }
        };
    }
}

fn encode(value: Value<'_>, into: &mut Vec<u8>) {
    let control = |kind: u8, length: usize| kind << 5 | length as u8;
    match value {
        Value::Text(text) => {
            assert!(text.len() < 29, "longer texts take another form");
            into.push(control(2, text.len()));
            into.extend(text.as_bytes());
        }
        Value::Number(number) => {
            into.push(control(6, 4));
            into.extend(number.to_be_bytes());
        }
        Value::Short(number) => {
            into.push(control(5, 2));
            into.extend(number.to_be_bytes());
        }
        // Kind 9, which takes a byte of its own.
        Value::Long(number) => {
            into.extend([8, 2]);
            into.extend(number.to_be_bytes());
        }
        Value::Map(entries) => {
            into.push(control(7, entries.len()));
            for (key, value) in entries {
                encode(Value::Text(key), into);
                encode(*value, into);
            }
        }
        // An array, kind 11, likewise.
        Value::Nothing => into.extend([0, 4]),
    }
}
