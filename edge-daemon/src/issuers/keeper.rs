//! The thread that asks issuers for their keys: one task for each, so that a slow one delays
//! nobody but those who wait for it.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use edge_identity::jwt::KeySet;
use tokio::{sync::watch, task::JoinHandle, time};

use super::feed::{Feed, Feeds, Place, Source};
use crate::{
    fetch::{self, Url},
    tls::client,
};

/// What the thread runs on.
pub struct Keeper {
    feeds: watch::Receiver<Vec<Arc<Feed>>>,
    stopping: watch::Receiver<bool>,
}

/// The keeper of these feeds, until `stopping` turns true.
#[must_use]
pub fn keeper(feeds: &Feeds, stopping: watch::Receiver<bool>) -> Keeper {
    Keeper { feeds: feeds.subscribe(), stopping }
}

impl Keeper {
    /// Fetches what is published, as it changes.
    ///
    /// # Errors
    /// If the runtime cannot be made.
    pub fn run(mut self) -> io::Result<()> {
        let runtime = time_and_io()?;
        runtime.block_on(async {
            let mut tasks = HashMap::new();
            loop {
                let feeds = self.feeds.borrow_and_update().clone();
                follow(&mut tasks, &feeds);
                tokio::select! {
                    changed = self.feeds.changed() => if changed.is_err() { return },
                    _ = self.stopping.wait_for(|stop| *stop) => return,
                }
            }
        });
        // A look-up of a name may hang in a thread of its own; nobody waits for it.
        runtime.shutdown_background();
        Ok(())
    }
}

fn time_and_io() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build()
}

/// Begins what is new and ends what is gone.
fn follow(tasks: &mut HashMap<*const Feed, (Arc<Feed>, JoinHandle<()>)>, feeds: &[Arc<Feed>]) {
    tasks.retain(|_, (feed, task)| {
        let stays = feeds.iter().any(|other| Arc::ptr_eq(other, feed));
        if !stays {
            task.abort();
        }
        stays
    });
    for feed in feeds {
        let Some(source) = feed.source.clone() else { continue };
        tasks.entry(Arc::as_ptr(feed)).or_insert_with(|| {
            let keep = keep(Arc::clone(feed), source);
            (Arc::clone(feed), tokio::spawn(keep))
        });
    }
}

/// Keeps the keys of one issuer fresh, for ever.
async fn keep(feed: Arc<Feed>, source: Source) {
    loop {
        feed.begin();
        let fetched = match time::timeout(source.timeout, fetch(&source)).await {
            Ok(fetched) => fetched,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "it took too long")),
        };
        let next = match fetched {
            Ok((set, fresh)) => {
                for (place, fault) in &set.left_out {
                    tracing::debug!(issuer = feed.name, key = place + 1, %fault, "a key is not used");
                }
                feed.fetched.fetch_add(1, Relaxed);
                feed.put(set);
                fresh.unwrap_or(source.fresh).clamp(source.fresh_min, source.fresh_max)
            }
            Err(fault) => {
                feed.failed.fetch_add(1, Relaxed);
                tracing::warn!(issuer = feed.name, %fault, "cannot fetch its keys");
                feed.drop_stale(source.stale);
                source.cooldown
            }
        };
        feed.end(source.cooldown);
        let due = time::Instant::now() + next.max(source.cooldown);
        time::sleep(source.cooldown).await;
        tokio::select! {
            () = time::sleep_until(due) => {}
            () = feed.wanted.notified() => {}
        }
    }
}

/// The keys, and for how long their server says that they are fresh.
async fn fetch(source: &Source) -> io::Result<(KeySet, Option<Duration>)> {
    // Read again each time: authorities change.
    let tls = client::client(source.authorities.as_deref())?;
    let discovered;
    let url = match &source.place {
        Place::Jwks(url) => url,
        Place::Discovery(url, issuer) => {
            let metadata = fetch::get(url, &tls).await?;
            discovered = jwks_uri(&metadata.bytes, issuer).map_err(io::Error::other)?;
            &discovered
        }
    };
    let document = fetch::get(url, &tls).await?;
    let set = KeySet::from_jwks(&document.bytes).map_err(io::Error::other)?;
    Ok((set, document.fresh))
}

/// `jwks_uri` of an issuer's metadata (OpenID Connect Discovery 4.3, RFC 8414 3.3: the issuer in
/// it must be the one that was asked about).
fn jwks_uri(bytes: &[u8], issuer: &str) -> Result<Url, &'static str> {
    let metadata: serde_json::Value =
        serde_json::from_slice(bytes).map_err(|_| "its metadata is not JSON")?;
    if metadata["issuer"] != *issuer {
        return Err("its metadata is another issuer's");
    }
    let uri = metadata["jwks_uri"].as_str().ok_or("its metadata has no 'jwks_uri'")?;
    uri.parse().map_err(|_| "its 'jwks_uri' is not an https URL")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_of_the_issuer_and_leads_to_a_safe_place() {
        let metadata = |issuer: &str, uri: &str| {
            let text = format!(r#"{{"issuer":"{issuer}","jwks_uri":"{uri}"}}"#);
            jwks_uri(text.as_bytes(), "https://a.example").map(|url| url.to_string())
        };
        assert_eq!(
            metadata("https://a.example", "https://a.example/k").unwrap(),
            "https://a.example/k"
        );
        assert!(metadata("https://b.example", "https://a.example/k").is_err());
        assert!(metadata("https://a.example/", "https://a.example/k").is_err());
        assert!(metadata("https://a.example", "http://a.example/k").is_err());
        assert!(metadata("https://a.example", "file:///etc/passwd").is_err());
        assert!(jwks_uri(b"[]", "https://a.example").is_err());
    }
}
