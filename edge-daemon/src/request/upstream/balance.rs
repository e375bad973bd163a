//! Which server a request goes to.

use std::{cell::Cell, rc::Rc};

use super::pool::Server;

/// The server that the next request tries first.
#[derive(Default)]
pub(super) struct Turn(Cell<usize>);

impl Turn {
    /// Every server once, another one first each time.
    pub(super) fn order<'a>(
        &self,
        servers: &'a [Rc<Server>],
    ) -> impl Iterator<Item = &'a Rc<Server>> + use<'a> {
        let first = self.0.replace((self.0.get() + 1) % servers.len());
        servers.iter().cycle().skip(first).take(servers.len())
    }
}
