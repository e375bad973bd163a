//! `edgectl feed`: how other people's lists are doing.

use clap::Subcommand;

use super::print::{rest, table};
use crate::{
    config::text::show_duration,
    control::{
        feeds::{FaultLine, FeedCommand, FeedEntry},
        protocol::Entries,
    },
};

/// What to do with feeds.
#[derive(Debug, Subcommand)]
pub enum FeedVerb {
    /// Show how they are doing
    List,
    /// Fetch one now, and wait until it is in force
    Refresh {
        /// Which
        #[arg(value_name = "NAME")]
        name: String,
        /// Take it however much it has shrunk
        #[arg(long)]
        force: bool,
    },
}

impl FeedVerb {
    pub(super) fn command(&self) -> FeedCommand {
        match self {
            Self::List => FeedCommand::List,
            Self::Refresh { name, force } => {
                FeedCommand::Refresh { name: name.clone(), force: *force }
            }
        }
    }
}

/// The feeds as a table, and beneath it what is wrong with them.
pub(super) fn text(feeds: &Entries<FeedEntry>, now_ms: u64) -> String {
    let rows = feeds.entries.iter().map(|feed| {
        let left_out: u64 =
            feed.faults.iter().filter(|(fault, _)| *fault != "host_bits").map(|(_, n)| n).sum();
        let since = |at_ms: u64| now_ms.saturating_sub(at_ms) / 1000 * 1000;
        let age = feed.success_ms.map(|at_ms| std::time::Duration::from_millis(since(at_ms)));
        vec![
            feed.name.clone(),
            if feed.counts_only { "count" } else { "deny" }.to_owned(),
            feed.networks.to_string(),
            left_out.to_string(),
            feed.hits.to_string(),
            age.map_or("never".to_owned(), |age| format!("{} ago", show_duration(age))),
            feed.place.clone(),
        ]
    });
    let heads = ["FEED", "ACTION", "NETWORKS", "LEFT OUT", "HITS", "CONFIRMED", "FROM"];
    let troubled = feeds.entries.iter().filter_map(|feed| Some((feed, feed.trouble.as_ref()?)));
    let troubles = troubled.map(|(feed, why)| format!("{}: {why}\n", feed.name));
    let lines = feeds.entries.iter().flat_map(|feed| {
        let line = |l: &FaultLine| format!("{}:{}: {}: {}\n", feed.name, l.line, l.fault, l.text);
        feed.fault_lines.iter().map(line)
    });
    let unkept = feeds.entries.iter().filter_map(|feed| {
        let count = feed.reasons.get("left_out").filter(|count| **count > 0)?;
        Some(format!("{}: {count} of its reasons find no room\n", feed.name))
    });
    let beneath = troubles.chain(unkept).chain(lines);
    table(&heads, rows) + &rest(feeds) + &beneath.collect::<String>()
}
