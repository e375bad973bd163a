//! What the decisions did, told to a local API that asks for it (since version 1.6.3).

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use edge_policy::list::Class;
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
    // What came before belongs to a former configuration, which has told of it.
    let (mut former, mut since_s) = (hits(), started_s);
    loop {
        time::sleep(every).await;
        let (now_s, hits) = (clock::unix_ms() / 1_000, hits());
        let dropped = dropped(crowdsec, &former, &hits);
        let body = report(crowdsec, started_s, (since_s, now_s), &dropped);
        match time::timeout(crowdsec.settings.timeout, send(crowdsec, &body)).await {
            Ok(Ok(StatusCode::NOT_FOUND)) => {
                tracing::info!("this CrowdSec takes no usage metrics");
                return;
            }
            Ok(Ok(status)) if status.is_success() => {
                former = hits;
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

/// Packets that were dropped between two looks, by who made the decision; none where they are only counted.
fn dropped(crowdsec: &Crowdsec, former: &Hits, hits: &Hits) -> BTreeMap<String, u64> {
    let (sheet, state) = (crowdsec.sheet(), lock(&crowdsec.state));
    let Some(sheet) = sheet.filter(|sheet| sheet.class == Class::Deny) else {
        return BTreeMap::new();
    };
    let mut sums = BTreeMap::new();
    for (entry @ (class, net), hits) in hits {
        if let Some(listed) = sheet.get(net).filter(|_| *class == sheet.class)
            && let Some([origin, _]) = state.decisions.notes().get(listed.place as usize)
        {
            // An entry that ended and was made again begins anew.
            let before = former.get(entry).filter(|before| *before <= hits);
            *sums.entry(origin.clone()).or_default() += hits - before.unwrap_or(&0);
        }
    }
    sums
}

/// The report, in the shape of `AllMetrics` of the local API's model.
fn report(
    crowdsec: &Crowdsec,
    started_s: u64,
    (since_s, now_s): (u64, u64),
    dropped: &BTreeMap<String, u64>,
) -> Value {
    let mut active = BTreeMap::<String, u64>::new();
    let state = lock(&crowdsec.state);
    for (_, held) in state.decisions.iter() {
        if let Some([origin, _]) = state.decisions.notes().get(held.note as usize) {
            *active.entry(origin.clone()).or_default() += 1;
        }
    }
    let item = |name: &str, unit: &str, origin: &str, value: u64| {
        let labels = match crowdsec.settings.counts_only {
            true => json!({"origin": origin}),
            false => json!({"origin": origin, "remediation": "ban"}),
        };
        json!({"name": name, "unit": unit, "value": value, "labels": labels})
    };
    let active =
        active.iter().map(|(origin, count)| item("active_decisions", "ip", origin, *count));
    let dropped = dropped.iter().map(|(origin, sum)| item("dropped", "packet", origin, *sum));
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
    fn crowdsec(url: &str, dir: &std::path::Path, counts_only: bool) -> Crowdsec {
        let key = dir.join("key");
        std::fs::write(&key, "the-key\n").unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        let settings = settings::Crowdsec {
            url: url.parse().unwrap(),
            api_key: format!("file:{}", key.display()).parse().unwrap(),
            every: EVERY,
            timeout: EVERY,
            decisions_max: 10,
            counts_only,
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
        let crowdsec = crowdsec(&url, dir.path(), false);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let ended = runtime.block_on(async {
            fill(&crowdsec);
            // From before a reload: a former configuration has told of it.
            let hits = || look(&crowdsec, &[("192.0.2.1", 9)]);
            let told = tell_every(Duration::from_millis(5), &crowdsec, hits);
            time::timeout(Duration::from_secs(20), told).await
        });
        ended.expect("it ends at 404");
        for (head, body) in server.join().unwrap() {
            let head = head.to_ascii_lowercase();
            assert!(head.starts_with("post /v1/usage-metrics http/1.1\r\n"), "{head}");
            assert!(head.contains("\r\nx-api-key: the-key\r\n"), "{head}");
            assert_eq!(body["remediation_components"][0]["type"], "edged");
            let items = &body["remediation_components"][0]["metrics"][0]["items"];
            let dropped = items.as_array().unwrap().last().unwrap();
            assert_eq!((&dropped["name"], &dropped["value"]), (&"dropped".into(), &0.into()));
        }
    }

    /// What is reported of packets after two looks, by name, origin and value, and the labels of the first item.
    fn told(counts_only: bool, looks: [&[(&str, u64)]; 2]) -> (Vec<(String, String, u64)>, Value) {
        let dir = tempfile::tempdir().unwrap();
        let crowdsec = crowdsec("http://127.0.0.1:8080", dir.path(), counts_only);
        fill(&crowdsec);
        let [former, now] = looks.map(|hits| look(&crowdsec, hits));
        let dropped = dropped(&crowdsec, &former, &now);
        let report = report(&crowdsec, 100, (900, 1_800), &dropped);
        let metrics = &report["remediation_components"][0]["metrics"][0];
        assert_eq!(metrics["meta"]["window_size_seconds"], 900);
        let items = metrics["items"].as_array().unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let item = |item: &Value| {
            (text(&item["name"]), text(&item["labels"]["origin"]), item["value"].as_u64().unwrap())
        };
        (items.iter().map(item).collect(), items[0]["labels"].clone())
    }

    /// Three decisions of two origins.
    fn fill(crowdsec: &Crowdsec) {
        let decision = |origin: &str, value: &str| {
            json!({"duration": "1h", "origin": origin, "scenario": "x", "scope": "Ip", "type": "ban",
                "value": value})
        };
        let new = [("cscli", "192.0.2.1"), ("CAPI", "192.0.2.2"), ("CAPI", "192.0.2.3")];
        let new = new.map(|(origin, value)| decision(origin, value));
        let answer: Answer = serde_json::from_value(json!({"new": new})).unwrap();
        let except = Except { own: &[], scenario: "" };
        let mut state = lock(&crowdsec.state);
        state.decisions.apply(answer, except, 10, clock::boot_ns());
        state.sheet = Some(crowdsec.sheet_of(&state.decisions, None, 0));
    }

    /// The hits of networks on its sheet.
    fn look(crowdsec: &Crowdsec, hits: &[(&str, u64)]) -> Hits {
        let class = crowdsec.sheet().unwrap().class;
        let hit = |(ip, hits): &(&str, u64)| ((class, format!("{ip}/32").parse().unwrap()), *hits);
        hits.iter().map(hit).collect()
    }

    fn item(name: &str, origin: &str, value: u64) -> (String, String, u64) {
        (name.to_owned(), origin.to_owned(), value)
    }

    #[test]
    fn the_report_tells_of_each_origin() {
        // Of those of one origin the one was listed anew meanwhile, and another has ended.
        let former = [("192.0.2.1", 4), ("192.0.2.2", 90), ("192.0.2.4", 1_000)];
        let now = [("192.0.2.1", 9), ("192.0.2.2", 3), ("192.0.2.3", 2)];
        let (items, labels) = told(false, [&former, &now]);
        assert_eq!(
            items,
            [
                item("active_decisions", "CAPI", 2),
                item("active_decisions", "cscli", 1),
                item("dropped", "CAPI", 5),
                item("dropped", "cscli", 5)
            ]
        );
        assert_eq!(labels["remediation"], "ban");
    }

    #[test]
    fn what_is_only_counted_is_not_told_as_dropped() {
        let (items, labels) = told(true, [&[], &[("192.0.2.1", 9)]]);
        assert_eq!(
            items,
            [item("active_decisions", "CAPI", 2), item("active_decisions", "cscli", 1)]
        );
        assert!(labels.get("remediation").is_none(), "{labels}");
    }
}
