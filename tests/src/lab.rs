//! The lab: an edge with one protected interface, and those who talk to it.
//!
//! ```text
//! client   198.51.100.10, .77 ─┐
//!                              ├─ net (bridge) ── edge0 [edge 198.51.100.1] back0 ── origin
//! attacker 198.51.100.66       ┘                                    192.0.2.1    192.0.2.2
//!          203.0.113.66
//! ```

use std::{
    net::IpAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use anyhow::Result;

use crate::netns::{Netns, run};

/// The edge, outside.
pub const EDGE: &str = "198.51.100.1";
/// The edge, outside, IPv6.
pub const EDGE6: &str = "2001:db8::1";
/// The edge, towards the origin.
pub const BACK: &str = "192.0.2.1";
/// A client.
pub const CLIENT: &str = "198.51.100.10";
/// The same client, IPv6. Each peer has a /64 of its own: that is what counts as one client.
pub const CLIENT6: &str = "2001:db8:0:10::10";
/// A client that the allow list of the lab's configuration names.
pub const FRIEND: &str = "198.51.100.77";
/// An attacker that no list names.
pub const ATTACKER: &str = "198.51.100.66";
/// The same attacker, IPv6.
pub const ATTACKER6: &str = "2001:db8:0:66::66";
/// An attacker inside [`DENIED`].
pub const LISTED: &str = "203.0.113.66";
/// The network that the deny list of the lab's configuration names.
pub const DENIED: &str = "203.0.113.0/24";
/// An attacker inside [`DENIED6`].
pub const LISTED6: &str = "2001:db8:bad::66";
/// The IPv6 network that the deny list of the lab's configuration names.
pub const DENIED6: &str = "2001:db8:bad::/48";
/// The server behind the edge.
pub const ORIGIN: &str = "192.0.2.2";

/// Namespaces and the cables between them; removed when dropped.
pub struct Lab {
    /// Unique on this host: names the namespaces and the pins.
    pub id: String,
    /// Where the daemon runs.
    pub edge: Netns,
    /// Where well-behaved clients run.
    pub client: Netns,
    /// Where ill-behaved clients run.
    pub attacker: Netns,
    /// Where the server behind the edge runs.
    pub origin: Netns,
    /// Whether it outlives this program; [`crate::daemon::clean`] removes it then.
    pub kept: bool,
    /// The bridge between them and the edge; its port towards the edge is called `edge`.
    pub net: Netns,
    dir: PathBuf,
}

impl Lab {
    /// A lab that no other test can meet.
    ///
    /// # Errors
    /// Without root or `ip`.
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        sweep();
        let id = format!("edged-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
        Self::named(&id, false)
    }

    /// A lab under a known name, which may outlive this program.
    ///
    /// # Errors
    /// Without root or `ip`, or if the name is taken.
    pub fn named(id: &str, kept: bool) -> Result<Self> {
        let ns = |role: &str| Netns::new(&format!("{id}-{role}"), kept);
        let dir = directory(id);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let lab = Self {
            edge: ns("edge")?,
            client: ns("client")?,
            attacker: ns("attacker")?,
            origin: ns("origin")?,
            net: ns("net")?,
            dir,
            kept,
            id: id.to_owned(),
        };
        lab.wire()?;
        Ok(lab)
    }

    /// A directory for this lab's files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where this lab's daemon pins its maps.
    #[must_use]
    pub fn pin_dir(&self) -> String {
        format!("/sys/fs/bpf/{}", self.id)
    }

    /// The namespace that an address belongs to.
    #[must_use]
    pub fn home(&self, address: &str) -> &Netns {
        match address {
            EDGE | EDGE6 | BACK => &self.edge,
            CLIENT | CLIENT6 | FRIEND => &self.client,
            ORIGIN => &self.origin,
            _ => &self.attacker,
        }
    }

    fn wire(&self) -> Result<()> {
        self.net.ip("link add br0 type bridge\nlink set br0 up")?;
        self.cable(&self.edge, "edge0")?;
        self.cable(&self.client, "eth0")?;
        self.cable(&self.attacker, "eth0")?;
        self.edge.ip(&format!(
            "link add back0 type veth peer name eth0 netns {}\nlink set back0 up",
            self.origin.name()
        ))?;
        self.origin.ip(&format!("link set eth0 up\naddr add {ORIGIN}/24 dev eth0"))?;
        self.edge.ip(&format!(
            "addr add {EDGE}/24 dev edge0\n\
             addr add {EDGE6}/32 dev edge0\n\
             route add {DENIED} dev edge0\n\
             addr add {BACK}/24 dev back0"
        ))?;
        self.client.ip(&format!(
            "addr add {CLIENT}/24 dev eth0\n\
             addr add {FRIEND}/24 dev eth0\n\
             addr add {CLIENT6}/32 dev eth0"
        ))?;
        self.attacker.ip(&format!(
            "addr add {ATTACKER}/24 dev eth0\n\
             addr add {LISTED}/24 dev eth0\n\
             addr add {ATTACKER6}/32 dev eth0\n\
             addr add {LISTED6}/32 dev eth0"
        ))
    }

    /// Joins a namespace to the bridge by an interface of this name.
    fn cable(&self, peer: &Netns, interface: &str) -> Result<()> {
        let port = peer.name().rsplit('-').next().unwrap_or_default();
        self.net.ip(&format!(
            "link add {port} type veth peer name {interface} netns {}\n\
             link set {port} master br0 up",
            peer.name()
        ))?;
        peer.ip(&format!("link set {interface} up"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// Where a lab of this name keeps its files.
#[must_use]
pub fn directory(id: &str) -> PathBuf {
    Path::new("/run").join(id)
}

/// Removes what a lab of this name left: namespaces and pins. Its processes must be gone.
pub fn remove(id: &str) {
    let _ = std::fs::remove_dir_all(directory(id));
    for role in ["edge", "client", "attacker", "origin", "net", "hub"] {
        if Path::new(&format!("/run/netns/{id}-{role}")).exists() {
            let _ = run(Command::new("ip").args(["netns", "del", &format!("{id}-{role}")]));
        }
    }
    let pins = Path::new("/sys/fs/bpf").join(id);
    let _ = edge_daemon::kernel::detach(&pins);
    let _ = std::fs::remove_dir_all(pins);
}

/// Whether an address is inside the lab's IPv6 range.
#[must_use]
pub fn is_v6(address: &str) -> bool {
    address.parse::<IpAddr>().is_ok_and(|a| a.is_ipv6())
}

/// Removes what test processes left that were killed before they could: labs, and the pins of kernel
/// planes without one, whose names begin alike.
pub(crate) fn sweep() {
    let left =
        ["/run/netns", "/run", "/sys/fs/bpf"].into_iter().filter_map(|d| std::fs::read_dir(d).ok());
    for entry in left.flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let parts: Vec<_> = name.split('-').collect();
        let (id, pid) = match &parts[..] {
            ["edged", pid, number, ..] if is_number(pid) => (format!("edged-{pid}-{number}"), *pid),
            ["edged", _, pid, ..] => (name.clone(), *pid),
            _ => continue,
        };
        if is_number(pid) && !Path::new(&format!("/proc/{pid}")).exists() {
            remove(&id);
            remove(&name);
        }
    }
}

fn is_number(text: &str) -> bool {
    text.parse::<u32>().is_ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;
    use crate::{client, origin::Origin};

    #[test]
    fn what_the_dead_left_is_swept_away() -> Result<()> {
        // No process has a number as high.
        let left = ["edged-plane-4194999-0", "edged-bench-4194999", "edged-4194999-3"];
        let pins = left.map(|name| Path::new("/sys/fs/bpf").join(name));
        for pin in &pins {
            std::fs::create_dir_all(pin.join("v1"))?;
        }
        sweep();
        assert!(pins.iter().all(|pin| !pin.exists()));
        Ok(())
    }

    #[test]
    fn a_lab_comes_up_and_leaves_nothing() -> Result<()> {
        let lab = Lab::new()?;
        for source in [CLIENT, FRIEND, ATTACKER, LISTED, CLIENT6, ATTACKER6, LISTED6] {
            assert!(client::reaches(&lab, source, 9), "{source}");
        }
        let origin = Origin::start(&lab)?;
        let answer = lab.edge.enter(|| TcpStream::connect(origin.address))?;
        drop(answer);
        assert!(lab.dir().exists());
        let id = lab.id.clone();
        drop(lab);
        let left = ["/run", "/run/netns"].map(std::fs::read_dir);
        let left = left.into_iter().flatten().flatten().flatten();
        let ours = left.filter(|e| e.file_name().to_string_lossy().starts_with(&id));
        assert_eq!(ours.count(), 0);
        Ok(())
    }
}
