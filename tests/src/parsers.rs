//! Other people's HTTP servers behind the edge, each of which tells what it took a request for.

use std::{
    fs,
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{
    client::until,
    daemon::root,
    lab::{Lab, ORIGIN},
};

/// Node by itself, and nginx and HAProxy in front of it. They end with this.
pub struct Parsers(Vec<Child>);

/// The name and the port of each, on the lab's origin.
pub const PARSERS: [(&str, u16); 3] = [("node", 9001), ("nginx", 9002), ("haproxy", 9003)];

impl Parsers {
    /// Starts all of them.
    ///
    /// # Errors
    /// If one is not installed or does not listen.
    pub fn start(lab: &Lab) -> Result<Self> {
        let mut this = Self(Vec::new());
        let echo = root().join("tests/parsers/echo.mjs");
        this.add(lab, Command::new("node").arg(echo).args([ORIGIN, "9001"]), "node")?;
        let nginx = write(lab, "nginx.conf", &nginx(lab))?;
        this.add(lab, Command::new("nginx").args(["-e", "stderr", "-c"]).arg(nginx), "nginx")?;
        let haproxy = write(lab, "haproxy.cfg", HAPROXY)?;
        this.add(lab, Command::new("haproxy").args(["-db", "-f"]).arg(haproxy), "haproxy")?;
        for (name, port) in PARSERS {
            let listens = || lab.origin.enter(|| TcpStream::connect((ORIGIN, port)).is_ok());
            until(&format!("{name} listens"), Duration::from_secs(20), || Ok(listens()))?;
        }
        Ok(this)
    }

    fn add(&mut self, lab: &Lab, command: &Command, name: &str) -> Result<()> {
        let mut inside = lab.origin.command(command.get_program());
        inside.args(command.get_args()).stdin(Stdio::null()).stdout(Stdio::null());
        inside.stderr(fs::File::create(lab.dir().join(format!("{name}.log")))?);
        self.0.push(inside.spawn().with_context(|| format!("start {name}"))?);
        Ok(())
    }
}

impl Drop for Parsers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn write(lab: &Lab, name: &str, text: &str) -> Result<PathBuf> {
    let path = lab.dir().join(name);
    fs::write(&path, text)?;
    Ok(path)
}

/// One process, so that it ends when it is told to.
fn nginx(lab: &Lab) -> String {
    let dir = lab.dir().display();
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {dir}/nginx-{kind};"))
        .concat();
    format!(
        "daemon off; master_process off; pid {dir}/nginx.pid; events {{}}
         http {{ access_log off; {temporary}
           server {{ listen {ORIGIN}:9002; keepalive_timeout 60s;
             location / {{ proxy_pass http://{ORIGIN}:9001; proxy_http_version 1.1;
               proxy_set_header Host $http_host; proxy_set_header Connection \"\"; }} }} }}"
    )
}

const HAPROXY: &str = "defaults
  mode http
  timeout connect 10s
  timeout client 60s
  timeout server 60s
frontend all
  bind 192.0.2.2:9003
  default_backend node
backend node
  server node 192.0.2.2:9001
";
