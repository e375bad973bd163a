//! A guarded interface: how it is found at each look, and what is told of it.

use std::path::Path;

use nix::net::if_::if_nametoindex;

use super::{
    Attached, Mode, Wanted,
    attach::{self, Held},
    bpf::Link,
    counts::name_of,
};

/// A guarded interface's condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name of now, or, without it, that of the configuration.
    pub name: String,
    /// Its index of now; 0 if it is not there.
    pub ifindex: u32,
    /// How the program is attached, or last was.
    pub mode: Mode,
    /// Whether the program judges its packets.
    pub is_guarded: bool,
    /// Whether it is switched on.
    pub is_up: bool,
    /// Whether it is there and the program does not judge its packets.
    pub is_bare: bool,
}

/// An interface and the program on it.
pub(super) struct Post {
    pub(super) wanted: Wanted,
    pub(super) attached: Attached,
    pub(super) link: Link,
    /// Whether the kernel told that the interface is gone, or may have.
    pub(super) is_deleted: bool,
    pub(super) seen: Sight,
    /// Why it could not be guarded again at the last look.
    pub(super) refused: Option<String>,
}

/// How a post was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// The program judges what comes in by the interface of this name.
    Guarded { name: String, is_up: bool },
    /// The interface is gone.
    Gone,
    /// It goes on under another name, guarded, and another interface has the one that is wanted.
    Renamed { name: String },
    /// Another hand cut the link that its pin still holds.
    Cut,
    /// Who may took the program off the interface, and its pin away.
    Detached,
}

impl Post {
    pub(super) fn new(wanted: Wanted, (attached, link): Held) -> Self {
        let seen = Sight::Guarded { name: wanted.interface.clone(), is_up: true };
        Self { wanted, attached, link, is_deleted: false, seen, refused: None }
    }

    /// Looks at the interface, where these indices are guarded by whichever post; says what has changed.
    pub(super) fn look(&mut self, folder: &Path, guarded: &[u32]) {
        let interface = &self.wanted.interface;
        let is_up = |name: &str| attach::is_up(name).unwrap_or(false);
        let named = if_nametoindex(interface.as_str()).ok();
        // One that has moved to another namespace has no name here.
        let name = |ifindex| name_of(ifindex).unwrap_or_else(|| interface.clone());
        let sight = |name: String| Sight::Guarded { is_up: is_up(&name), name };
        let seen = match (named, self.link.ifindex()) {
            // Names may be given in turn to interfaces that are guarded as one and as the other.
            (Some(named), own) if guarded.contains(&named) => {
                sight(name(own.ok().flatten().unwrap_or(named)))
            }
            (Some(_), Ok(Some(ifindex))) => Sight::Renamed { name: name(ifindex) },
            (None, Ok(Some(ifindex))) => sight(name(ifindex)),
            // Who is to take the filter off removes its pin (`edged detach`).
            _ if !folder.join(self.attached.pin_name()).exists() => Sight::Detached,
            _ if self.is_deleted || name_of(self.attached.ifindex).is_none() => Sight::Gone,
            _ => Sight::Cut,
        };
        if seen == self.seen {
            return;
        }
        match &seen {
            Sight::Guarded { name, is_up: true } => {
                tracing::info!(interface, now = name, "the interface is up and guarded");
            }
            Sight::Guarded { name, is_up: false } => {
                tracing::warn!(interface, now = name, "the interface is down");
            }
            Sight::Renamed { name } => {
                tracing::error!(
                    interface,
                    former = name,
                    "unfiltered: another interface has this name now"
                );
            }
            Sight::Cut => {
                tracing::error!(interface, "unfiltered: another hand detached the filter");
            }
            Sight::Detached => {
                tracing::error!(interface, "unfiltered: the filter was taken off the interface");
            }
            Sight::Gone => tracing::error!(interface, "the interface is gone"),
        }
        self.seen = seen;
    }

    /// Whether nothing is awaited that could be guarded once it is there.
    pub(super) fn is_settled(&self) -> bool {
        let is_awaited = matches!(self.seen, Sight::Gone | Sight::Renamed { .. } | Sight::Cut);
        !is_awaited || self.refused.is_some()
    }

    /// Whether there is an interface to be guarded again; one of this name, and maybe of this index.
    pub(super) fn is_back(&self) -> bool {
        matches!(self.seen, Sight::Gone | Sight::Renamed { .. } | Sight::Cut)
            && if_nametoindex(self.wanted.interface.as_str()).is_ok()
    }

    pub(super) fn condition(&self) -> Interface {
        let is_guarded = matches!(self.seen, Sight::Guarded { .. });
        let name = match &self.seen {
            Sight::Guarded { name, .. } => name,
            _ => &self.wanted.interface,
        };
        Interface {
            name: name.clone(),
            ifindex: if_nametoindex(name.as_str()).unwrap_or_default(),
            mode: self.attached.mode,
            is_guarded,
            is_bare: !is_guarded && if_nametoindex(self.wanted.interface.as_str()).is_ok(),
            is_up: matches!(self.seen, Sight::Guarded { is_up: true, .. }),
        }
    }
}
