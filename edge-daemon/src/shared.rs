//! Shared sources on disk: who succeeded from where of late, so that a restart leaves no NAT to be banned
//! before its clients have come again.
//!
//! One file in the state folder, saved every minute and at the end. It has marks alone, under a secret of
//! its own: no address and no name.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{atomic::Ordering::Relaxed, mpsc::Receiver},
    time::Duration,
};

use edge_policy::verdict::{Identities, NOTES_MAX, Note};

use crate::{clock, request::Edge, saved};

/// What is known as the last process left it, or nothing yet.
///
/// # Errors
/// If there is no randomness, or the file cannot be read.
pub fn restore(dir: &Path) -> io::Result<Identities> {
    let kept = saved::read(&file(dir), BYTES_MAX, "what is known of shared sources", parse)?;
    let Some((secret, saved_ms, notes)) = kept else {
        let mut secret = [0; 16];
        getrandom::fill(&mut secret).map_err(io::Error::other)?;
        return Ok(Identities::new(secret));
    };
    let (identities, now_ns) = (Identities::new(secret), clock::boot_ns());
    // It grew older meanwhile, by the only clock that goes on over a boot.
    let since_s = u32::try_from(clock::unix_ms().saturating_sub(saved_ms) / 1000);
    for note in notes {
        let age_s = note.age_s.saturating_add(since_s.unwrap_or(u32::MAX));
        if age_s < AGE_MAX_S {
            identities.restore(Note { age_s, ..note }, now_ns);
        }
    }
    Ok(identities)
}

/// Saves what is known until the other end of `stop` is gone, and then once more.
pub fn keep(dir: &Path, edge: &Edge, stop: &Receiver<()>) {
    saved::keep(edge, SAVE_EVERY, stop, || save(dir, edge));
}

/// Saves what is known; if it cannot be, that is told.
pub fn save(dir: &Path, edge: &Edge) {
    let within = edge.plan.load().terms.shared_within;
    let within_ns = u64::try_from(within.as_nanos()).unwrap_or(u64::MAX);
    let mut bytes = [MAGIC, &edge.identities.secret()].concat();
    bytes.extend(clock::unix_ms().to_le_bytes());
    for note in edge.identities.notes(within_ns, clock::boot_ns()) {
        bytes.extend(note.line.to_le_bytes());
        bytes.extend(note.mark.to_le_bytes());
        bytes.extend(note.age_s.to_le_bytes());
    }
    if let Err(error) = saved::write(&file(dir), bytes) {
        edge.metrics.shared_unsaved.fetch_add(1, Relaxed);
        tracing::error!(%error, "cannot save what is known of shared sources");
    }
}

fn parse(content: &[u8]) -> Option<([u8; 16], u64, Vec<Note>)> {
    let (secret, content) = content.strip_prefix(MAGIC)?.split_first_chunk()?;
    let (saved_ms, content) = content.split_first_chunk()?;
    let (entries, rest) = content.as_chunks::<NOTE>();
    let notes = entries.iter().map(|entry| {
        let (line, entry) = entry.split_first_chunk()?;
        let (mark, age_s) = entry.split_first_chunk()?;
        let [line, age_s] = [*line, *age_s.first_chunk()?].map(u32::from_le_bytes);
        Some(Note { line, mark: u64::from_le_bytes(*mark), age_s })
    });
    let notes = notes.collect::<Option<_>>().filter(|_| rest.is_empty())?;
    Some((*secret, u64::from_le_bytes(*saved_ms), notes))
}

fn file(dir: &Path) -> PathBuf {
    dir.join("shared-sources")
}

/// A crash forgets no more than who came first in this time.
const SAVE_EVERY: Duration = Duration::from_secs(60);
const MAGIC: &[u8] = b"edged shared sources 1\n";
const NOTE: usize = 4 + 8 + 4;
const BYTES_MAX: u64 = (NOTES_MAX * NOTE + 128) as u64;
/// What is older says nothing, and would seem young again when the time of notes has come round.
const AGE_MAX_S: u32 = 30 * 86_400;
