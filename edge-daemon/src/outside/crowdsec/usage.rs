//! What the decisions did, told to a local API that asks for it (since version 1.6.3).

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use http::{HeaderName, Method, StatusCode};
use serde_json::{Value, json};
use tokio::time;

use super::{Crowdsec, read, sealed};
use crate::{
    clock,
    outside::{Hits, Source as _, lock},
    request::Edge,
};

/// Tells it every quarter of an hour, until it says that it does not know what that is.
pub(super) async fn tell(crowdsec: Arc<Crowdsec>, edge: Arc<Edge>) {
    tell_every(EVERY, &crowdsec, || edge.outside.hits()).await;
}

async fn tell_every(every: Duration, crowdsec: &Crowdsec, hits: impl Fn() -> Hits) {
    let started_s = clock::unix_ms() / 1_000;
    let mut former = BTreeMap::new();
    let mut since_s = started_s;
    loop {
        time::sleep(every).await;
        let (now_s, dropped) = (clock::unix_ms() / 1_000, dropped(crowdsec, &hits()));
        let body = report(crowdsec, started_s, (since_s, now_s), &former, &dropped);
        match time::timeout(crowdsec.settings.timeout, send(crowdsec, &body)).await {
            Ok(Ok(StatusCode::NOT_FOUND)) => {
                tracing::info!("this CrowdSec takes no usage metrics");
                return;
            }
            Ok(Ok(status)) if status.is_success() => {
                former = dropped;
                since_s = now_s;
            }
            told => tracing::warn!(?told, "CrowdSec cannot be told of usage"),
        }
    }
}

async fn send(crowdsec: &Crowdsec, body: &Value) -> io::Result<StatusCode> {
    let key = read(&crowdsec.settings.api_key)?;
    let headers = [(HeaderName::from_static("x-api-key"), sealed("", &key)?)];
    let body = serde_json::to_vec(body)?.into();
    Ok(crowdsec.ask(Method::POST, "/v1/usage-metrics", headers, body).await?.status)
}

/// Packets that were dropped so far, by who made the decision.
fn dropped(crowdsec: &Crowdsec, hits: &Hits) -> BTreeMap<String, u64> {
    let (sheet, state) = (crowdsec.sheet(), lock(&crowdsec.state));
    let Some(sheet) = sheet else { return BTreeMap::new() };
    let mut sums = BTreeMap::new();
    for ((class, net), hits) in hits {
        if let Some(listed) = sheet.get(net).filter(|_| *class == sheet.class)
            && let Some([origin, _]) = state.decisions.notes().get(listed.place as usize)
        {
            *sums.entry(origin.clone()).or_default() += hits;
        }
    }
    sums
}

/// The report, in the shape of `AllMetrics` of the local API's model.
fn report(
    crowdsec: &Crowdsec,
    started_s: u64,
    (since_s, now_s): (u64, u64),
    former: &BTreeMap<String, u64>,
    dropped: &BTreeMap<String, u64>,
) -> Value {
    let mut active = BTreeMap::<String, u64>::new();
    let state = lock(&crowdsec.state);
    for (_, held) in state.decisions.iter() {
        if let Some([origin, _]) = state.decisions.notes().get(held.note as usize) {
            *active.entry(origin.clone()).or_default() += 1;
        }
    }
    let active = active.into_iter().map(|(origin, value)| {
        let labels = json!({"origin": origin, "remediation": "ban"});
        json!({"name": "active_decisions", "unit": "ip", "value": value, "labels": labels})
    });
    // An entry that left the list has taken its packets along.
    let dropped = dropped.iter().map(|(origin, sum)| {
        let value = sum.saturating_sub(former.get(origin).copied().unwrap_or(0));
        let labels = json!({"origin": origin, "remediation": "ban"});
        json!({"name": "dropped", "unit": "packet", "value": value, "labels": labels})
    });
    let items: Vec<_> = active.chain(dropped).collect();
    let meta =
        json!({"utc_now_timestamp": now_s, "window_size_seconds": now_s - since_s.min(now_s)});
    json!({"remediation_components": [{
        "type": "edged", "name": "edged", "version": env!("CARGO_PKG_VERSION"),
        "feature_flags": [], "utc_startup_timestamp": started_s,
        "os": {"name": std::env::consts::OS, "version": ""},
        "metrics": [{"meta": meta, "items": items}],
    }]})
}

const EVERY: Duration = Duration::from_secs(900);

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader, Read as _, Write as _},
        net::TcpListener,
        os::unix::fs::PermissionsExt as _,
    };

    use super::*;
    use crate::config::settings;
    use edge_policy::list::decisions::{Answer, Except};

    /// A bouncer of the local API at this URL, with its key in a file of the folder.
    fn crowdsec(url: &str, dir: &std::path::Path) -> Crowdsec {
        let key = dir.join("key");
        std::fs::write(&key, "the-key\n").unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        let settings = settings::Crowdsec {
            url: url.parse().unwrap(),
            api_key: format!("file:{}", key.display()).parse().unwrap(),
            every: EVERY,
            timeout: EVERY,
            decisions_max: 10,
            counts_only: false,
            authorities: None,
            machine: None,
        };
        Crowdsec::new(&settings, dir)
    }

    /// The head and the body of a request, which is answered with a status.
    fn answer(listener: &TcpListener, status: &str) -> (String, Value) {
        let (mut stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let (mut head, mut length) = (String::new(), 0);
        while !head.ends_with("\r\n\r\n") {
            let before = head.len();
            reader.read_line(&mut head).unwrap();
            let line = head[before..].to_ascii_lowercase();
            if let Some(told) = line.strip_prefix("content-length:") {
                length = told.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").unwrap();
        (head, serde_json::from_slice(&body).unwrap())
    }

    #[test]
    fn it_is_told_with_the_key_until_it_knows_nothing_of_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            ["500 Oops", "201 Created", "404 Not Found"].map(|status| answer(&listener, status))
        });
        let dir = tempfile::tempdir().unwrap();
        let crowdsec = crowdsec(&url, dir.path());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let ended = runtime.block_on(async {
            let told = tell_every(Duration::from_millis(5), &crowdsec, Hits::default);
            time::timeout(Duration::from_secs(20), told).await
        });
        ended.expect("it ends at 404");
        for (head, body) in server.join().unwrap() {
            let head = head.to_ascii_lowercase();
            assert!(head.starts_with("post /v1/usage-metrics http/1.1\r\n"), "{head}");
            assert!(head.contains("\r\nx-api-key: the-key\r\n"), "{head}");
            assert_eq!(body["remediation_components"][0]["type"], "edged");
        }
    }

    #[test]
    fn the_report_tells_of_each_origin() {
        let dir = tempfile::tempdir().unwrap();
        let crowdsec = crowdsec("http://127.0.0.1:8080", dir.path());
        let text = r#"{"new":[{"duration":"1h","origin":"cscli","scenario":"x","scope":"Ip",
            "type":"ban","value":"192.0.2.1"}]}"#;
        let answer: Answer = serde_json::from_str(text).unwrap();
        let except = Except { own: &[], scenario: "" };
        let mut state = lock(&crowdsec.state);
        state.decisions.apply(answer, except, 10, clock::boot_ns());
        state.sheet = Some(crowdsec.sheet_of(&state.decisions));
        let class = state.sheet.as_ref().unwrap().class;
        drop(state);
        let hits = Hits::from([((class, "192.0.2.1/32".parse().unwrap()), 9)]);
        let dropped = dropped(&crowdsec, &hits);
        let former = BTreeMap::from([("cscli".to_owned(), 4)]);
        let report = report(&crowdsec, 100, (900, 1_800), &former, &dropped);
        let metrics = &report["remediation_components"][0]["metrics"][0];
        assert_eq!(metrics["meta"]["window_size_seconds"], 900);
        let items = metrics["items"].as_array().unwrap();
        let told = items.iter().map(|item| (item["name"].as_str().unwrap(), &item["value"]));
        assert_eq!(
            told.collect::<Vec<_>>(),
            [("active_decisions", &1.into()), ("dropped", &5.into())]
        );
        assert_eq!(items[1]["labels"]["origin"], "cscli");
    }
}
