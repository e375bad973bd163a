//! What a request costs the proxy, beside nginx as the same TLS reverse proxy.

use std::{
    fs,
    net::TcpStream,
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{
    Effort, Goal, LOAD_CPU, Line, MEASURED_CPU, Report, cpu_ns, need_two_cores, pin,
    report::median, version,
};
use crate::{
    client::until,
    daemon::Setup,
    lab::Lab,
    netns::{Netns, run},
};

/// An nginx that ends when this is dropped.
pub(super) struct Nginx(Child);

/// Keep-alive requests over TLS 1.3 for answers of 1 KiB.
pub(super) fn keep_alive(effort: Effort, report: &mut Report) -> Result<()> {
    need_two_cores()?;
    let lab = Lab::new()?;
    let _upstream = Nginx::upstream(&lab)?;
    let edged = edged(&lab)?.set("route.1.auth", r#""none""#).start()?;
    let nginx = Nginx::start(&lab, "proxy", NGINX_PORT, &proxy(lab.dir()), MEASURED_CPU)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 1..=effort.rounds {
        pin(edged.pid(), MEASURED_CPU)?;
        ours.push(cost(&lab.edge, edged.pid(), &url("/"), None, effort)?);
        theirs.push(cost(
            &lab.edge,
            nginx.worker()?,
            &format!("https://127.0.0.1:{NGINX_PORT}/"),
            None,
            effort,
        )?);
        let (a, b) = (ours[round - 1], theirs[round - 1]);
        report.note(&format!("round {round}: CPU µs a request: edged {a:.1}, nginx {b:.1}"));
    }
    let (a, b) = (median(&ours), median(&theirs));
    report.note(&format!("medians: edged {a:.1}, nginx {b:.1} µs"));
    report.add(&Line {
        measure: 1,
        name: "TLS 1.3 keep-alive request, 1 KiB answer, proxy CPU, edged / nginx".to_owned(),
        rounds: ours.iter().zip(&theirs).map(|(a, b)| a / b).collect(),
        unit: "ratio",
        goal: Goal::AtMost(0.65),
        reference: format!("{}, 1 worker", version("nginx")),
    });
    Ok(())
}

/// A daemon of one worker before that upstream, which no limit slows.
pub(super) fn edged(lab: &Lab) -> Result<Setup<'_>> {
    let open = r#"{ rate = "1000000/s", burst = 1000000 }"#;
    Ok(lab
        .edged()?
        .set("server.https", &format!(r#"["127.0.0.1:{EDGED_PORT}"]"#))
        .set("server.workers", "1")
        .set("upstream.0.servers", &format!(r#"["127.0.0.1:{UPSTREAM_PORT}"]"#))
        .set("limits.per_source", open)
        .set("limits.global", open))
}

/// Where that daemon serves a path.
pub(super) fn url(path: &str) -> String {
    format!("https://127.0.0.1:{EDGED_PORT}{path}")
}

/// Asks for a URL as fast as it is answered; what `wrk` says of it.
pub(super) fn wrk(edge: &Netns, url: &str, header: Option<&str>, seconds: u64) -> Result<String> {
    let mut wrk = edge.command("taskset");
    wrk.args(["-c", &LOAD_CPU.to_string(), "wrk", "-t1", "-c64", &format!("-d{seconds}s")]);
    run(wrk.args(header.iter().flat_map(|header| ["-H", header])).arg(url))
}

/// CPU microseconds that a proxy spends on a request.
pub(super) fn cost(
    edge: &Netns,
    pid: u32,
    url: &str,
    header: Option<&str>,
    effort: Effort,
) -> Result<f64> {
    wrk(edge, url, header, 1)?;
    let before = cpu_ns(pid)?;
    let said = wrk(edge, url, header, effort.seconds)?;
    let spent_us = (cpu_ns(pid)? - before) as f64 / 1000.0;
    ensure!(!said.contains("Non-2xx") && !said.contains("Socket errors"), "{said}");
    let line = said.lines().find(|l| l.contains(" requests in ")).context("no count")?;
    let requests: f64 = line.split_whitespace().next().context("no count")?.parse()?;
    Ok(spent_us / requests)
}

impl Nginx {
    /// The upstream of the benches: it answers everything with 1 KiB.
    pub(super) fn upstream(lab: &Lab) -> Result<Self> {
        Self::start(lab, "upstream", UPSTREAM_PORT, &upstream(), LOAD_CPU)
    }

    /// Starts one with these servers, its one worker on a core; `port` is one that it listens on at
    /// 127.0.0.1.
    pub(super) fn start(
        lab: &Lab,
        name: &str,
        port: u16,
        server: &str,
        cpu: usize,
    ) -> Result<Self> {
        let dir = lab.dir().join(name);
        fs::create_dir_all(&dir)?;
        let config = dir.join("nginx.conf");
        fs::write(&config, head(&dir) + server)?;
        let mut nginx = lab.edge.command("nginx");
        let child = nginx
            .args(["-g", "daemon off;", "-e", "/dev/null", "-c"])
            .arg(config)
            .stdout(Stdio::null())
            .spawn()
            .context("start nginx")?;
        let nginx = Self(child);
        until("nginx listens", Duration::from_secs(5), || {
            Ok(lab.edge.enter(|| TcpStream::connect(("127.0.0.1", port))).is_ok())
        })?;
        // The master listens before it has a worker.
        until("nginx works", Duration::from_secs(5), || Ok(nginx.worker().is_ok()))?;
        pin(nginx.worker()?, cpu)?;
        Ok(nginx)
    }

    /// The process id of the one worker.
    fn worker(&self) -> Result<u32> {
        let master = self.0.id();
        let children = fs::read_to_string(format!("/proc/{master}/task/{master}/children"))?;
        Ok(children.split_whitespace().next().context("no worker")?.parse()?)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let master = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        // The master ends its worker when it is asked to, and not when it is killed.
        let _ = nix::sys::signal::kill(master, nix::sys::signal::Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

fn head(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "worker_processes 1;\npid {dir}/pid;\nerror_log {dir}/error.log;\nuser root;\n\
         events {{ worker_connections 1024; }}\n"
    )
}

fn upstream() -> String {
    format!(
        "http {{ access_log off; keepalive_requests 100000000;\n\
         server {{ listen 127.0.0.1:{UPSTREAM_PORT}; location / {{ return 200 \"{}\"; }} }} }}\n",
        "x".repeat(1024)
    )
}

fn proxy(certificates: &Path) -> String {
    let dir = certificates.display();
    format!(
        "http {{ access_log off; keepalive_requests 100000000;\n\
         upstream api {{ server 127.0.0.1:{UPSTREAM_PORT}; keepalive 256; keepalive_requests 100000000; }}\n\
         server {{ listen 127.0.0.1:{NGINX_PORT} ssl; ssl_protocols TLSv1.3;\n\
         ssl_certificate {dir}/cert.pem; ssl_certificate_key {dir}/key.pem;\n\
         ssl_session_tickets off; ssl_session_cache off;\n\
         location / {{ proxy_pass http://api; proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }} }}\n"
    )
}

const UPSTREAM_PORT: u16 = 9001;
pub(super) const EDGED_PORT: u16 = 9443;
const NGINX_PORT: u16 = 9444;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::installed;

    #[test]
    fn nginx_can_be_measured() -> Result<()> {
        if !installed("nginx") || !installed("wrk") {
            return Ok(());
        }
        let lab = Lab::new()?;
        crate::daemon::certify(lab.dir())?;
        let _upstream = Nginx::upstream(&lab)?;
        let nginx = Nginx::start(&lab, "proxy", NGINX_PORT, &proxy(lab.dir()), MEASURED_CPU)?;
        assert!(
            cost(
                &lab.edge,
                nginx.worker()?,
                &format!("https://127.0.0.1:{NGINX_PORT}/"),
                None,
                Effort::QUICK
            )? > 1.0
        );
        Ok(())
    }
}
