//! The proxies that edged is measured beside, and the upstream of all of them, with the configurations in `tests/bench`.

use std::{
    fs::{self, File},
    net::TcpStream,
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{DESCRIPTORS, HAPROXY_PORT, NGINX_PORT, Side, UPSTREAM_PORT};
use crate::{
    bench::{LOAD_CPU, MEASURED_CPU, pin},
    client::until,
    daemon::certify,
    lab::Lab,
    load::descriptors,
};

/// A server of somebody else's, which ends when this is dropped.
pub(in crate::bench) struct Peer {
    child: Child,
    pub(in crate::bench) worker: u32,
    name: &'static str,
    port: u16,
}

/// What a peer is to do.
#[derive(Clone, Copy)]
pub(super) enum Duty {
    /// To pass requests on.
    Proxy,
    /// To limit and log them as well.
    Limits,
}

impl Peer {
    /// The upstream of the benches: it answers everything with 1 KiB, and has files of a size.
    pub(in crate::bench) fn upstream(lab: &Lab) -> Result<Self> {
        let files = lab.dir().join("files");
        fs::create_dir_all(&files)?;
        for (name, bytes) in FILES {
            File::create(files.join(name))?.set_len(*bytes)?;
        }
        Self::nginx(lab, "upstream", UPSTREAM_PORT, UPSTREAM, LOAD_CPU)
    }

    /// Nginx as a proxy.
    pub(super) fn nginx_proxy(lab: &Lab, duty: Duty) -> Result<Self> {
        certify(lab.dir())?;
        let config = match duty {
            Duty::Proxy => include_str!("../../../bench/nginx/proxy.conf"),
            Duty::Limits => include_str!("../../../bench/nginx/limits.conf"),
        };
        Self::nginx(lab, "nginx", NGINX_PORT, config, MEASURED_CPU)
    }

    /// Nginx with these servers, its one worker on a core; `port` is one that it listens on at
    /// 127.0.0.1.
    pub(in crate::bench) fn nginx(
        lab: &Lab,
        name: &str,
        port: u16,
        servers: &str,
        cpu: usize,
    ) -> Result<Self> {
        let dir = lab.dir().join(name);
        fs::create_dir_all(&dir)?;
        let config = dir.join("nginx.conf");
        let main = filled(NGINX_MAIN, &dir, port);
        fs::write(&config, main + &filled(servers, lab.dir(), port))?;
        let mut nginx = lab.edge.command("nginx");
        nginx.args(["-g", "daemon off;", "-e", "/dev/null", "-c"]).arg(config);
        let child = nginx.stdout(Stdio::null()).spawn().context("start nginx")?;
        let mut nginx = Self { worker: 0, child, name: "nginx", port };
        nginx.listens(lab)?;
        // The master listens before it has a worker.
        until("nginx works", Duration::from_secs(5), || Ok(nginx.child_of().is_ok()))?;
        nginx.worker = nginx.child_of()?;
        pin(nginx.worker, cpu)?;
        Ok(nginx)
    }

    /// HAProxy as a proxy, on the core that is measured.
    pub(super) fn haproxy(lab: &Lab, duty: Duty) -> Result<Self> {
        // It does not start with fewer than its configuration asks for.
        descriptors(DESCRIPTORS)?;
        certify(lab.dir())?;
        let at = |name: &str| lab.dir().join(name);
        // It takes chain and key out of one file.
        let both = [fs::read(at("cert.pem"))?, fs::read(at("key.pem"))?].concat();
        fs::write(at("both.pem"), both)?;
        let config = match duty {
            Duty::Proxy => include_str!("../../../bench/haproxy/proxy.conf"),
            Duty::Limits => include_str!("../../../bench/haproxy/limits.conf"),
        };
        fs::write(at("haproxy.conf"), filled(config, lab.dir(), HAPROXY_PORT))?;
        let mut haproxy = lab.edge.command("haproxy");
        haproxy.args(["-db", "-f"]).arg(at("haproxy.conf"));
        let log = File::create(at("haproxy-access.log"))?;
        let child = haproxy.stdout(log).spawn().context("start haproxy")?;
        let haproxy = Self { worker: child.id(), child, name: "haproxy", port: HAPROXY_PORT };
        haproxy.listens(lab)?;
        pin(haproxy.worker, MEASURED_CPU)?;
        Ok(haproxy)
    }

    /// As one of those that are compared.
    pub(super) fn side(&self) -> Side {
        Side { name: self.name, pid: self.worker, port: self.port }
    }

    fn listens(&self, lab: &Lab) -> Result<()> {
        let connect = || TcpStream::connect(("127.0.0.1", self.port)).is_ok();
        until("the peer listens", Duration::from_secs(5), || Ok(lab.edge.enter(connect)))?;
        Ok(())
    }

    /// The process id of the one worker of a master.
    fn child_of(&self) -> Result<u32> {
        let master = self.child.id();
        let children = fs::read_to_string(format!("/proc/{master}/task/{master}/children"))?;
        match children.split_whitespace().collect::<Vec<_>>()[..] {
            [worker] => Ok(worker.parse()?),
            _ => bail!("not one worker: {children}"),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let master = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        // A master ends its worker when it is asked to, and not when it is killed.
        let _ = nix::sys::signal::kill(master, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// A configuration with what differs from bench to bench.
fn filled(config: &str, dir: &Path, port: u16) -> String {
    let dir = dir.display();
    [
        ("@DIR@", dir.to_string()),
        ("@FILES@", format!("{dir}/files")),
        ("@PORT@", port.to_string()),
        ("@UPSTREAM@", UPSTREAM_PORT.to_string()),
        ("@BODY@", "x".repeat(1024)),
    ]
    .iter()
    .fold(config.to_owned(), |text, (mark, value)| text.replace(mark, value))
}

/// Files of the upstream: name and bytes.
const FILES: &[(&str, u64)] = &[("1m", 1 << 20), ("100m", 100 << 20)];
const NGINX_MAIN: &str = include_str!("../../../bench/nginx/main.conf");
const UPSTREAM: &str = include_str!("../../../bench/nginx/upstream.conf");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_has_no_mark_left() {
        let configs = [
            NGINX_MAIN,
            UPSTREAM,
            include_str!("../../../bench/nginx/proxy.conf"),
            include_str!("../../../bench/nginx/limits.conf"),
            include_str!("../../../bench/haproxy/proxy.conf"),
            include_str!("../../../bench/haproxy/limits.conf"),
        ];
        for config in configs {
            assert!(!filled(config, Path::new("/lab"), 1).contains('@'), "{config}");
        }
    }

    #[test]
    fn peers_serve_either_duty() -> Result<()> {
        if !(crate::client::installed("nginx") && crate::client::installed("haproxy")) {
            return Ok(());
        }
        let lab = Lab::new()?;
        let _upstream = Peer::upstream(&lab)?;
        for duty in [Duty::Proxy, Duty::Limits] {
            for peer in [Peer::nginx_proxy(&lab, duty)?, Peer::haproxy(&lab, duty)?] {
                let url = peer.side().url("/");
                let mut curl = lab.edge.command("curl");
                let said = crate::netns::run(curl.args(["-sk", "-w", "%{http_code}", &url]))?;
                assert!(said.ends_with("x200") && said.len() == 1027, "{said}");
            }
        }
        Ok(())
    }
}
