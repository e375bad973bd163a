//! Several labs around a server that they share: Debian's Redis, in a namespace of its own.

use std::{
    io::{Read as _, Result as IoResult, Write as _},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    client::until,
    lab::Lab,
    netns::Netns,
    pki::{Authority, DAY, Leaf},
};

/// A Redis, and a cable from it to the edge of each lab.
pub struct Hub {
    /// Where it runs.
    pub ns: Netns,
    redis: Option<Child>,
    dir: PathBuf,
    /// The authority of its certificate, if it speaks TLS alone.
    ca: Option<Authority>,
    /// Whether it asks for certificates of that authority.
    asks: bool,
}

impl Hub {
    /// Starts it and lays the cables.
    ///
    /// # Errors
    /// If it is not installed, or does not start.
    pub fn start(labs: &[&Lab]) -> Result<Self> {
        Self::launch(labs, false, false)
    }

    /// As [`Self::start`], over TLS alone.
    ///
    /// # Errors
    /// As there.
    pub fn start_secure(labs: &[&Lab]) -> Result<Self> {
        Self::launch(labs, true, false)
    }

    /// As [`Self::start_secure`], for clients alone that have a certificate of its authority.
    ///
    /// # Errors
    /// As there.
    pub fn start_mutual(labs: &[&Lab]) -> Result<Self> {
        Self::launch(labs, true, true)
    }

    /// A certificate for an edge, in files of this name.
    ///
    /// # Errors
    /// If there is no authority, or the files cannot be written.
    pub fn client(&self, file: &str) -> Result<Leaf> {
        self.ca.as_ref().context("it speaks no TLS")?.sign(file, &["edge"], -60, DAY)
    }

    fn launch(labs: &[&Lab], is_secure: bool, asks: bool) -> Result<Self> {
        let first = labs.first().context("no lab")?;
        let ns = Netns::new(&format!("{}-hub", first.id), false)?;
        for (n, lab) in labs.iter().enumerate() {
            let peer = lab.edge.name();
            ns.ip(&format!(
                "link add e{n} type veth peer name hub0 netns {peer}\n\
                 addr add 10.77.{n}.1/24 dev e{n}\nlink set e{n} up"
            ))?;
            lab.edge.ip(&format!("addr add 10.77.{n}.2/24 dev hub0\nlink set hub0 up"))?;
        }
        let dir = first.dir().to_owned();
        let mut hub = Self { ns, redis: None, dir, ca: None, asks };
        if is_secure {
            let authority = Authority::new(&hub.dir, "hub")?;
            let names: Vec<_> = (0..labs.len()).map(|n| format!("10.77.{n}.1")).collect();
            let names: Vec<_> = names.iter().map(String::as_str).chain(["127.0.0.1"]).collect();
            authority.sign("hub", &names, -60, DAY)?;
            authority.sign("hub-cli", &["cli"], -60, DAY)?;
            hub.ca = Some(authority);
        }
        hub.start_again()?;
        Ok(hub)
    }

    /// Starts it again, with nothing in its memory.
    ///
    /// # Errors
    /// If it does not answer in time.
    pub fn start_again(&mut self) -> Result<()> {
        let mut redis = self.ns.command("redis-server");
        redis.args(["--bind", "0.0.0.0", "--protected-mode", "no", "--save", ""]);
        if self.ca.is_some() {
            redis.args(["--port", "0", "--tls-port", "6379", "--tls-auth-clients"]);
            redis.arg(if self.asks { "yes" } else { "no" });
            redis.arg("--tls-cert-file").arg(self.dir.join("hub.pem"));
            redis.arg("--tls-key-file").arg(self.dir.join("hub.key"));
            redis.arg("--tls-ca-cert-file").arg(self.dir.join("hub-ca.pem"));
        }
        redis.arg("--dir").arg(&self.dir).stdin(Stdio::null()).stdout(Stdio::null());
        self.redis = Some(redis.spawn().context("redis-server: cargo xtask setup")?);
        until("Redis answers", Duration::from_secs(10), || {
            Ok(self.cli(&["PING"]).is_ok_and(|pong| pong.contains("PONG")))
        })?;
        Ok(())
    }

    /// Ends it.
    pub fn kill(&mut self) {
        if let Some(mut redis) = self.redis.take() {
            let _ = redis.kill();
            let _ = redis.wait();
        }
    }

    /// Stops it, or lets it go on: its connections stay open, and nobody answers.
    ///
    /// # Errors
    /// If it is gone.
    pub fn freeze(&self, is_frozen: bool) -> Result<()> {
        let pid = self.redis.as_ref().context("it runs")?.id();
        let signal = if is_frozen { Signal::SIGSTOP } else { Signal::SIGCONT };
        Ok(kill(Pid::from_raw(i32::try_from(pid)?), signal)?)
    }

    /// Asks it, as an operator or a thief would.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn cli(&self, args: &[&str]) -> Result<String> {
        let mut cli = self.ns.command("redis-cli");
        if let Some(ca) = &self.ca {
            cli.arg("--tls").arg("--cacert").arg(&ca.ca);
            cli.arg("--cert").arg(self.dir.join("hub-cli.pem"));
            cli.arg("--key").arg(self.dir.join("hub-cli.key"));
        }
        let done = cli.args(args).output()?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    /// Stands between the edges and Redis, at [`BETWEEN`]: what they ask is answered by `answer`, or passed on to
    /// Redis if it has no answer to it. Until the test ends.
    ///
    /// # Errors
    /// If the port is taken.
    pub fn between(
        &self,
        answer: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
    ) -> Result<()> {
        let listener = self.ns.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, BETWEEN)))?;
        let (ns, answer) = (Netns::open(self.ns.name())?, Arc::new(answer));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(redis) = ns.enter(|| TcpStream::connect((Ipv4Addr::LOCALHOST, 6379))) else {
                    continue;
                };
                let (Ok(client), answer) = (client, Arc::clone(&answer)) else { return };
                std::thread::spawn(move || pass_on(client, redis, &*answer));
            }
        });
        Ok(())
    }

    /// The lines of a configuration for the n-th lab's edge.
    ///
    /// # Errors
    /// If the secret cannot be written.
    pub fn section(&self, n: usize, lab: &Lab, lines: &str) -> Result<String> {
        use std::os::unix::fs::PermissionsExt as _;
        let secret = lab.dir().join("fleet.secret");
        std::fs::write(&secret, "a secret that all edges have: 32 bytes")?;
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600))?;
        let (scheme, authorities) = match &self.ca {
            Some(ca) => ("rediss", format!("authorities = {:?}\n", ca.ca)),
            None => ("redis", String::new()),
        };
        Ok(format!(
            "[fleet]\nserver = \"{scheme}://10.77.{n}.1:6379\"\n{authorities}node = \"edge-{n}\"\n\
             secret = \"file:{}\"\n{lines}\n",
            secret.display()
        ))
    }
}

/// Questions are short enough to come whole.
fn pass_on(
    mut client: TcpStream,
    mut redis: TcpStream,
    answer: &dyn Fn(&str) -> Option<String>,
) -> IoResult<()> {
    let (mut answers, mut back) = (redis.try_clone()?, client.try_clone()?);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut answers, &mut back);
        let _ = back.shutdown(Shutdown::Both);
    });
    let mut question = vec![0; 1 << 16];
    loop {
        let length = client.read(&mut question)?;
        if length == 0 {
            return redis.shutdown(Shutdown::Both);
        }
        match answer(&String::from_utf8_lossy(&question[..length])) {
            Some(answer) => client.write_all(answer.as_bytes())?,
            None => redis.write_all(&question[..length])?,
        }
    }
}

/// The port of who stands between the edges and Redis.
pub const BETWEEN: u16 = 6380;

impl Drop for Hub {
    fn drop(&mut self) {
        self.kill();
    }
}
