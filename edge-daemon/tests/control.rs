//! The control plane over a real socket: the server, the client and the built `edgectl`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::{
    io::{Read as _, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::{Path, PathBuf},
    process::{Command as Process, Output},
    thread,
};

use edge_daemon::control::{
    Command, ListName, Peer, Reply, bind,
    client::ask,
    keys::{KeyCommand, KeyCreated},
    serve,
};
use tempfile::TempDir;

/// A daemon that answers with what it was asked.
struct Daemon {
    dir: TempDir,
}

impl Daemon {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = bind(&dir.path().join("run/control.sock")).unwrap();
        thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(serve(listener, |command, peer| async move { answer(command, peer) }))
        });
        Self { dir }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("run/control.sock")
    }

    fn edgectl(&self, line: &str) -> Output {
        edgectl(&self.socket(), line)
    }
}

fn answer(command: Command, peer: Peer) -> Reply {
    match command {
        Command::ListAdd { force: false, ssh_peer: Some(address), .. } => {
            Reply::Refused(format!("it contains your own SSH session ({address})"))
        }
        Command::Key(KeyCommand::Create(_)) => Reply::KeyCreated(KeyCreated {
            id: "0a1b".to_owned(),
            key: "edged_x_y".into(),
            secret: None,
            signing_secret: None,
            expires_ms: None,
            replaces: None,
        }),
        Command::Key(KeyCommand::Export { .. }) => {
            Reply::Exported(vec!["n".repeat(300); 20_000], None)
        }
        command => Reply::Done(format!("{command:?} of {}", peer.uid)),
    }
}

fn edgectl(socket: &Path, line: &str) -> Output {
    Process::new(env!("CARGO_BIN_EXE_edgectl"))
        .arg("--socket")
        .arg(socket)
        .args(line.split_whitespace())
        .env_remove("SSH_CLIENT")
        .env("SSH_CONNECTION", "198.51.100.7 50000 192.0.2.1 22")
        .output()
        .unwrap()
}

fn raw(socket: &Path, bytes: &[u8]) -> Reply {
    let mut stream = UnixStream::connect(socket).unwrap();
    // The daemon may have heard enough before everything is written.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    serde_json::from_slice(&reply).unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn a_command_is_answered_and_the_peer_is_known() {
    let daemon = Daemon::start();
    let uid = nix::unistd::geteuid().as_raw();
    let reply = ask(&daemon.socket(), &Command::Status).unwrap();
    assert_eq!(reply, Reply::Done(format!("Status of {uid}")));
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&daemon.socket()), 0o600);
    assert_eq!(mode(daemon.socket().parent().unwrap()) & 0o027, 0);
}

#[test]
fn a_large_reply_arrives_whole() {
    let daemon = Daemon::start();
    let export = Command::Key(KeyCommand::Export { after: None });
    let Reply::Exported(lines, None) = ask(&daemon.socket(), &export).unwrap() else { panic!() };
    assert_eq!(lines.len(), 20_000);
}

#[test]
fn nonsense_is_refused_and_the_daemon_goes_on() {
    let daemon = Daemon::start();
    let socket = daemon.socket();
    let long = vec![b' '; 3_000_000];
    let evil = br#"{"command":"list_add","list":"deny","net":"192.0.2.1/32","ttl_ms":null,"reason":"\u001b[2J","monitor":false,"force":true,"ssh_peer":null}"#;
    let cases: [(&[u8], &str); 6] = [
        (b"", "not a command"),
        (b"hello\n", "not a command"),
        (b"{\"command\":\"ban_remove\",\"source\":\"::1\",\"x\":1}\n", "not a command"),
        (b"{\"command\":\"explode\"}\n", "not a command"),
        (&long, "at most"),
        (evil, "control characters"),
    ];
    for (bytes, wanted) in cases {
        let Reply::Refused(why) = raw(&socket, bytes) else { panic!("{}", text(bytes)) };
        assert!(why.contains(wanted), "{why}");
    }
    assert!(matches!(ask(&socket, &Command::Reload), Ok(Reply::Done(_))));
}

#[test]
fn silent_connections_do_not_shut_others_out() {
    let daemon = Daemon::start();
    let _silent: Vec<_> = (0..7).map(|_| UnixStream::connect(daemon.socket()).unwrap()).collect();
    assert!(matches!(ask(&daemon.socket(), &Command::Status), Ok(Reply::Done(_))));
}

#[test]
fn only_root_and_the_own_user_may_command() {
    let peer = |uid| Peer { uid, pid: Some(1) };
    assert!(peer(0).may_command(999) && peer(999).may_command(999) && peer(0).may_command(0));
    assert!(!peer(1000).may_command(999) && !peer(1000).may_command(0));
}

#[test]
fn a_stale_socket_is_taken_over_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    // A child of another test has a copy of what was open, until it runs its own program.
    let taken = |_| {
        thread::sleep(std::time::Duration::from_millis(20));
        bind(&path).ok()
    };
    let _listener = (0..100).find_map(taken).unwrap();
    assert_eq!(bind(&path).unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert_eq!(bind(&file).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
}

#[test]
fn exit_codes_tell_what_happened() {
    let daemon = Daemon::start();
    let nowhere = daemon.dir.path().join("nowhere.sock");
    let code = |output: Output| output.status.code();
    assert_eq!(code(daemon.edgectl("status")), Some(0));
    assert_eq!(code(daemon.edgectl("--help")), Some(0));
    assert_eq!(code(daemon.edgectl("completions bash")), Some(0));
    assert_eq!(code(daemon.edgectl("deny add 198.51.100.0/24 --force")), Some(0));
    assert_eq!(code(daemon.edgectl("deny add 198.51.100.0/24")), Some(1));
    assert_eq!(code(daemon.edgectl("deny add 198.51.100.7/24")), Some(2));
    assert_eq!(code(daemon.edgectl("")), Some(2));
    assert_eq!(code(edgectl(&nowhere, "status")), Some(3));
    assert!(text(&daemon.edgectl("--help").stdout).contains("3  no daemon answered"));
}

#[test]
fn the_ssh_peer_is_passed_on_and_the_refusal_is_told() {
    let daemon = Daemon::start();
    let output = daemon.edgectl("deny add 198.51.100.0/24");
    assert_eq!(text(&output.stdout), "");
    let told = "edgectl: it contains your own SSH session (198.51.100.7)\n";
    assert_eq!(text(&output.stderr), told);
}

#[test]
fn json_is_the_payload_alone() {
    let daemon = Daemon::start();
    let output = daemon.edgectl("key create --name ci --json");
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&value["id"], &value["key"]), (&"0a1b".into(), &"edged_x_y".into()));
    let output = daemon.edgectl("deny list --json");
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let wanted = format!("{:?}", Command::ListShow { list: ListName::Deny, from: 0 });
    assert!(value["done"].as_str().unwrap().starts_with(&wanted));
}

#[test]
fn a_reader_that_leaves_early_is_no_fault() {
    let daemon = Daemon::start();
    let mut child = Process::new(env!("CARGO_BIN_EXE_edgectl"))
        .arg("--socket")
        .arg(daemon.socket())
        .args(["key", "export"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
