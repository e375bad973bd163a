//! The load that leads a release build: what clients ask of an edge day by day, of a daemon that counts which way its
//! code goes. `cargo xtask release` builds both and calls this.

use std::{net::SocketAddr, rc::Rc};

use anyhow::{Result, ensure};
use edge_tests::{
    Lab,
    client::HOST,
    lab::{EDGE, FRIEND, ORIGIN},
    load::{self, Client, get},
    upstream::Upstream,
};
use http::{Method, Request};
use rustls::NamedGroup;
use tokio::task::{JoinHandle, spawn_local};

fn main() -> Result<()> {
    let lab = Lab::new()?;
    let (here, origin): (SocketAddr, SocketAddr) =
        (format!("{EDGE}:443").parse()?, format!("{ORIGIN}:8081").parse()?);
    let _upstream = Upstream::start(&lab.origin, origin)?;
    let open = r#"{ rate = "1000000/s", burst = 1000000 }"#;
    let log = format!("{:?}", lab.dir().join("access.log"));
    let mut edged = lab
        .edged()?
        .with_shipped_limits()
        .set("limits.per_source", open)
        .set("limits.per_key", open)
        .set("limits.global", open)
        .set("limits.handshakes", r#""off""#)
        .set("verdicts.never_ban", &format!("[\"{FRIEND}/32\"]"))
        .set("log.access", &log)
        .set("upstream.0.servers", &format!("[\"{origin}\"]"))
        .start()?;
    let key = edged.key("train")?;
    let friend = FRIEND.parse()?;
    let client = |group| Client::new(&edged.ca, here, group).map(|client| client.source(friend));
    let clients = [client(NamedGroup::X25519)?, client(NamedGroup::X25519MLKEM768)?];
    let loads = || async move {
        let key: Rc<str> = key.into();
        let mut all = Vec::new();
        for client in clients {
            let (client, one) = (Rc::new(client.clone().alpn("h2")), client.alpn("http/1.1"));
            let one = Rc::new(one);
            for _ in 0..AT_ONCE {
                all.push(spawn_local(keep_alive(Rc::clone(&one), Rc::clone(&key))));
                all.push(spawn_local(streams(Rc::clone(&client), Rc::clone(&key))));
                all.push(spawn_local(short(Rc::clone(&one))));
            }
            all.push(spawn_local(bodies(one, Rc::clone(&key))));
        }
        for load in all {
            load.await??;
        }
        Ok(())
    };
    load::run(lab.home(FRIEND), loads)?;
    // What it counted is written at its end.
    let end = edged.terminate()?;
    ensure!(end.success(), "{end}");
    Ok(())
}

/// Request after request on one connection; some are refused.
async fn keep_alive(client: Rc<Client>, key: Rc<str>) -> Result<()> {
    let head = |method: &str, path: &str, more: &str| {
        format!(
            "{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nUser-Agent: train\r\nAccept: */*\r\n\
             Accept-Encoding: gzip, br\r\n{more}\r\n"
        )
    };
    let shown = format!("X-API-Key: {key}\r\n");
    let small = format!("{shown}Content-Type: application/json\r\nContent-Length: 2\r\n");
    let asked = [
        (head("GET", "/health", ""), 200),
        (head("GET", "/bytes/1024", &shown), 200),
        (head("GET", "/orders/7?page=2&sort=date", &shown), 200),
        (head("POST", "/orders", &small) + "{}", 200),
        (head("GET", "/bytes/1024", ""), 401),
    ];
    let mut connection = client.connect().await?;
    for n in 0..REQUESTS {
        // One in twenty is refused.
        let (request, expected) = &asked[if n % 20 == 19 { 4 } else { n % 4 }];
        connection.send(request.as_bytes()).await?;
        let (status, _) = connection.any_answer().await?;
        ensure!(status == *expected, "{status} for {request}");
    }
    Ok(())
}

/// Some streams at a time on one connection.
async fn streams(client: Rc<Client>, key: Rc<str>) -> Result<()> {
    let (mut send, connection) = h2::client::handshake(client.stream().await?).await?;
    let connection: JoinHandle<_> = spawn_local(connection);
    for _ in 0..REQUESTS / STREAMS {
        let mut answers = Vec::new();
        for n in 0..STREAMS {
            let is_post = n % 4 == 3;
            let request = Request::builder()
                .method(if is_post { Method::POST } else { Method::GET })
                .uri(format!("https://{HOST}/bytes/1024?n={n}"))
                .header("x-api-key", &*key)
                .header("user-agent", "train")
                .body(())?;
            send = send.ready().await?;
            let (answer, mut body) = send.send_request(request, !is_post)?;
            if is_post {
                body.send_data("{}".into(), true)?;
            }
            answers.push(answer);
        }
        for answer in answers {
            let (head, mut body) = answer.await?.into_parts();
            ensure!(head.status == 200, "{}", head.status);
            while let Some(part) = body.data().await {
                body.flow_control().release_capacity(part?.len())?;
            }
        }
    }
    drop(send);
    Ok(connection.await??)
}

/// Connections of one request.
async fn short(client: Rc<Client>) -> Result<()> {
    for _ in 0..REQUESTS / 20 {
        client.connect().await?.ask(&get("/health")).await?;
    }
    Ok(())
}

/// Long bodies up and down.
async fn bodies(client: Rc<Client>, key: Rc<str>) -> Result<()> {
    let mut connection = client.connect().await?;
    let (part, parts) = ([b'x'; 64 * 1024], 32);
    let head = |line: &str, length: usize| {
        format!(
            "{line} HTTP/1.1\r\nHost: {HOST}\r\nX-API-Key: {key}\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    for _ in 0..20 {
        connection.send(head("POST /orders", part.len() * parts).as_bytes()).await?;
        for _ in 0..parts {
            connection.send(&part).await?;
        }
        connection.answer().await?;
        connection.ask(head(&format!("GET /bytes/{}", part.len() * parts), 0).as_bytes()).await?;
    }
    Ok(())
}

const AT_ONCE: usize = 4;
const STREAMS: usize = 16;
/// On each connection.
const REQUESTS: usize = 2_000;
