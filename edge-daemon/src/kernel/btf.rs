//! Finds the fields of a socket in the running kernel, by its own type information.

use std::sync::OnceLock;

use aya::Btf as KernelTypes;
use btf_rs::{Btf, Member, Type};
use edge_common::map::SocketLayout;

use super::KernelError;

/// The kernel's types, for what is loaded by them. They are read once a process.
pub(super) fn kernel_types() -> Result<&'static KernelTypes, KernelError> {
    static TYPES: OnceLock<KernelTypes> = OnceLock::new();
    if let Some(types) = TYPES.get() {
        return Ok(types);
    }
    let types = KernelTypes::from_sys_fs().map_err(|source| KernelError::KernelTypes { source })?;
    Ok(TYPES.get_or_init(|| types))
}

/// Where the socket program finds what it reads. The kernel's types are read once a process.
pub(super) fn socket_layout() -> Result<SocketLayout, KernelError> {
    static LAYOUT: OnceLock<SocketLayout> = OnceLock::new();
    if let Some(layout) = LAYOUT.get() {
        return Ok(*layout);
    }
    let btf = Btf::from_file("/sys/kernel/btf/vmlinux").map_err(KernelError::Btf)?;
    let field = |of: &'static str, name: &'static str| {
        offset(&btf, of, name)?.ok_or(KernelError::Field { field: name })
    };
    // Who cannot have programs at tracepoints has no type for this one's.
    let tracepoint = btf.resolve_types_by_name(TRACEPOINT).map_err(KernelError::Btf)?;
    if tracepoint.is_empty() {
        return Err(KernelError::Field { field: TRACEPOINT });
    }
    let layout = SocketLayout {
        family: field("sock", "skc_family")?,
        protocol: field("sock", "sk_protocol")?,
        daddr: field("sock", "skc_daddr")?,
        // A kernel without IPv6 has no such field, and no such socket.
        v6_daddr: offset(&btf, "sock", "skc_v6_daddr")?.unwrap_or_default(),
        net: field("sock", "skc_net")?,
        net_cookie: field("net", "net_cookie")?,
    };
    Ok(*LAYOUT.get_or_init(|| layout))
}

/// Bytes from the start of the structure to the field, also through nested members. A structure
/// of that name without the field, as drivers declare some, is passed over.
fn offset(btf: &Btf, structure: &str, field: &str) -> Result<Option<u32>, KernelError> {
    for kind in btf.resolve_types_by_name(structure).map_err(KernelError::Btf)? {
        if let Type::Struct(kind) = kind
            && let Some(bits) = find(btf, &kind.members, field, DEPTH_MAX)
        {
            return Ok(Some(bits / 8));
        }
    }
    Ok(None)
}

/// The field's offset in bits.
fn find(btf: &Btf, members: &[Member], field: &str, depth: u32) -> Option<u32> {
    for member in members {
        if btf.resolve_name(member).is_ok_and(|name| name == field) {
            return Some(member.bit_offset());
        }
        if depth == 0 || !is_nested(btf, member) {
            continue;
        }
        let inner = match btf.resolve_chained_type(member) {
            Ok(Type::Struct(inner) | Type::Union(inner)) => {
                find(btf, &inner.members, field, depth - 1)
            }
            _ => None,
        };
        if let Some(bits) = inner {
            return Some(member.bit_offset() + bits);
        }
    }
    None
}

/// Whether the member's own fields belong to the structure: it has no name, or is the part that
/// all kinds of sockets share.
fn is_nested(btf: &Btf, member: &Member) -> bool {
    btf.resolve_name(member).map_or(true, |name| name.is_empty() || name == "__sk_common")
}

/// What the kernel calls the type of the tracepoint's arguments.
const TRACEPOINT: &str = "btf_trace_inet_sock_set_state";
/// Structures within structures that the search follows.
const DEPTH_MAX: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_has_all_fields() {
        let layout = socket_layout().unwrap();
        // These lie where they do in every kernel since 3.13: the start is shared by all sockets.
        assert_eq!((layout.daddr, layout.family), (0, 16));
        assert!(layout.net > 0 && layout.net_cookie > 0 && layout.protocol > 0);
    }
}
