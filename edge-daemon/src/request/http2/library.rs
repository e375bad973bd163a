//! How much the library may hold for a client, and what it leaves to the conduct.

use h2::server::Builder;

use crate::config::settings::Bounds;

/// The settings of a connection, which may hold little where memory `is_scarce`.
pub(super) fn settings(bounds: &Bounds, is_scarce: bool) -> Builder {
    let windows = if is_scarce { 1 } else { BODIES };
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(bounds.streams_max)
        .initial_window_size(WINDOW)
        .initial_connection_window_size(windows * WINDOW)
        // A little beyond the bound, so that the path refuses it, with an answer and a count.
        .max_header_list_size(u32::try_from(2 * bounds.header_bytes_max).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER)
        // What is on its way to streams that the edge refused all at once is no mistake.
        .max_concurrent_reset_streams(RESETS_MIN.max(bounds.streams_max as usize))
        // What is waste is for the conduct to say, which forgets in time: the library's own counts hold what it keeps.
        .data_frame_budget(windows.min(SMALL) as usize * WINDOW as usize * SMALLNESS)
        .max_pending_accept_reset_streams(bounds.http2_waste_max.max(bounds.streams_max) as usize)
        .max_local_error_reset_streams(Some(MISTAKES_MAX));
    builder
}

/// What a client may send of a body before the upstream has taken it, in bytes.
const WINDOW: u32 = 64 * 1024;
/// Bodies for which a connection has such room, so that those that have to wait hold up no other: what comes at once
/// must fit below the ceiling of memory.
const BODIES: u32 = 16;
/// What h2 keeps of one stream's answer until the client takes it, in bytes.
const SEND_BUFFER: usize = 64 * 1024;
/// Streams that were reset of which h2 knows for a second, at the least.
const RESETS_MIN: usize = 50;
/// What h2 may keep for each byte of a window, in bytes, as it keeps as much for a small part as for one of 256; and of how many.
const SMALLNESS: usize = 16;
const SMALL: u32 = 4;
/// Streams that h2 may reset for a client's mistakes in all: each costs credit as it goes out, but if nobody takes it.
const MISTAKES_MAX: usize = 10_000;
