//! Reads `[[feed]]`: where other people's lists are, and how they are taken.

use std::time::Duration;

use edge_policy::list::feed::Format;
use toml::de::DeTable;

use super::{
    reader::{Item, Notes, Table},
    settings::{Feed, FeedPlace, Settings},
    whole::place_nth,
};
use crate::fetch::Url;

pub(super) fn feed(table: &Table<'_>) -> Feed {
    let letters = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    let format = table.or("format", Written::Plain, |item| item.choice(&FORMATS));
    let level = table.or("level", None, |item| match format {
        Written::Ipsum => item.number(1, 1_000).map(Some),
        _ => item.wrong("'level' is for the format \"ipsum\"", "leave it out"),
    });
    let every = table.or("every", HOUR, |item| item.duration(30 * DAY));
    if every < EVERY_MIN {
        table.notes.wrong(table.span.clone(), "'every' is below 10s", "its servers are others'");
    }
    Feed {
        name: table.need("name", "\"drop\"", String::new(), |item| {
            item.word(64, "letters, digits, '-' and '_'", letters)
        }),
        place: table.need("url", "\"https://example.com/list.txt\"", nowhere(), place),
        format: match format {
            Written::Plain => Format::Plain,
            Written::Ipsum => {
                let level = level.and_then(|level| u32::try_from(level).ok());
                Format::Ipsum { level: level.unwrap_or(IPSUM_LEVEL) }
            }
            Written::Drop => Format::Drop,
            Written::Tor => Format::Tor,
        },
        counts_only: table
            .or("action", false, |item| item.choice(&[("deny", false), ("count", true)])),
        every,
        timeout: table.or("timeout", Duration::from_secs(30), |item| item.duration(HOUR)),
        bytes_max: table
            .or("bytes_max", 64 << 20, |item| usize::try_from(item.size(1 << 10, 1 << 30)?).ok()),
        shrink_max: table.or("shrink_max", 50, |item| u32::try_from(item.number(0, 100)?).ok()),
        authorities: table.or("authorities", None, |item| item.path().map(Some)),
    }
}

fn nowhere() -> FeedPlace {
    FeedPlace::File("".into())
}

fn place(item: &Item<'_>) -> Option<FeedPlace> {
    let text = item.text("a URL")?;
    match text.strip_prefix("file:") {
        Some("") => item.wrong("'file:' names no file", "\"file:/var/lib/lists/own.txt\""),
        Some(path) => Some(FeedPlace::File(path.into())),
        None => Url::anywhere(text).map(FeedPlace::Url).map_or_else(
            |help| {
                item.wrong(format!("'{text}' cannot be used"), format!("{help}, or \"file:PATH\""))
            },
            Some,
        ),
    }
}

/// What no single key can tell.
pub(super) fn check(settings: &Settings, document: &DeTable<'_>, notes: &Notes<'_>) {
    for (n, feed) in settings.feeds.iter().enumerate() {
        if settings.feeds[..n].iter().any(|other| other.name == feed.name) {
            let what = format!("two feeds are called '{}'", feed.name);
            notes.wrong(place_nth(document, "feed", n, "name"), what, "rename one");
        }
        if feed.name == crate::outside::CROWDSEC {
            let what = "a feed cannot be called 'crowdsec'";
            let span = place_nth(document, "feed", n, "name");
            notes.wrong(span, what, "that is what [crowdsec] is called");
        }
        if let FeedPlace::Url(url) = &feed.place
            && !url.is_guarded()
        {
            let what = format!("anyone on the way to {url} can write your deny list");
            notes.doubt(place_nth(document, "feed", n, "url"), what, "\"https://\", if it has it");
        }
    }
}

/// A format, in the configuration's words.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Written {
    Plain,
    Ipsum,
    Drop,
    Tor,
}

const FORMATS: [(&str, Written); 5] = [
    ("plain", Written::Plain),
    ("netset", Written::Plain),
    ("ipsum", Written::Ipsum),
    ("drop", Written::Drop),
    ("tor", Written::Tor),
];
/// Lists on which an address of ipsum must be, where nothing else is said: what its author suggests.
const IPSUM_LEVEL: u32 = 3;
const EVERY_MIN: Duration = Duration::from_secs(10);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::parse;

    const MINIMAL: &str = include_str!("../../../config/minimal.toml");

    fn feeds(lines: &str) -> Result<(Vec<Feed>, String), String> {
        let text = format!("{MINIMAL}\n[[feed]]\n{lines}\n");
        match parse(Path::new("edged.toml"), &text) {
            Ok((settings, warnings)) => Ok((settings.feeds, warnings.to_string())),
            Err(mistakes) => Err(mistakes.to_string()),
        }
    }

    #[test]
    fn a_feed_has_a_place_and_a_format() {
        let (feeds, told) =
            feeds("name = \"a\"\nurl = \"http://a.example/x\"\nformat = \"ipsum\"").unwrap();
        assert_eq!(feeds[0].format, Format::Ipsum { level: 3 });
        assert!(!feeds[0].counts_only && told.contains("can write your deny list"), "{told}");
    }

    #[test]
    fn what_cannot_be_is_told() {
        for (lines, what) in [
            ("name = \"a\"", "missing key 'url'"),
            ("name = \"a\"\nurl = \"ftp://x/\"", "cannot be used"),
            ("name = \"../a\"\nurl = \"file:x\"", "'name' cannot be"),
            ("name = \"a\"\nurl = \"file:x\"\nlevel = 3", "is for the format \"ipsum\""),
            ("name = \"a\"\nurl = \"file:x\"\nevery = \"1s\"", "below 10s"),
            ("name = \"a\"\nurl = \"file:x\"\nformat = \"netse\"", "did you mean 'netset'"),
            (
                "name = \"a\"\nurl = \"file:x\"\n[[feed]]\nname = \"a\"\nurl = \"file:y\"",
                "two feeds",
            ),
        ] {
            let told = feeds(lines).expect_err(lines);
            assert!(told.contains(what), "{lines}: {told}");
        }
    }
}
