//! The filter holds, and its counts with it, whatever happens to the daemon beside it.

use std::time::Duration;

use anyhow::Result;
use edge_tests::{Lab, churn::churn, siege::siege};

/// Of the full count, 1 000 000, which `cargo xtask bench kernel 11` runs.
const CONNECTIONS: u64 = 20_000;

#[test]
fn open_connections_are_counted_without_drift() -> Result<()> {
    let lab = Lab::new()?;
    let mut edged = lab
        .edged()?
        .set("kernel.packet_rate", r#""off""#)
        .set("kernel.connection_rate", r#""off""#)
        .set("kernel.open_connections_max", "0")
        .start()?;
    let (drift, corrected) = churn(&lab, &mut edged, CONNECTIONS, |tenth, edged| {
        match tenth {
            3 => edged.kill9()?,
            6 => drop(edged.terminate()?),
            _ => return Ok(()),
        }
        edged.start_again()
    })?;
    assert_eq!(drift, 0, "with {corrected} corrections");
    // A census reads while connections come and go, and may rarely set one right that needs nothing;
    // what the followers lost, over two outages of the daemon, would be many.
    assert!(corrected <= CONNECTIONS / 5_000, "{corrected} corrections");
    Ok(())
}

#[test]
fn nothing_leaks_and_no_ban_is_lost_under_siege() -> Result<()> {
    let lab = Lab::new()?;
    let mut edged = lab
        .edged()?
        .set("kernel.packet_rate", r#""off""#)
        .set("kernel.connection_rate", r#""off""#)
        .start()?;
    let siege = siege(&lab, &mut edged, 2)?;
    assert_eq!((siege.leaked, siege.bans_lost), (0, 0), "{siege:?}");
    // Too early is no ban's end; how late the first datagram is seen, the host has a part in.
    assert!(siege.sent > 10_000 && siege.expired_off < Duration::from_secs(5), "{siege:?}");
    Ok(())
}
