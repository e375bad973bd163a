//! Reads `[[webhook]]`: who is told of decisions and alarms.

use std::time::Duration;

use toml::de::DeTable;

use super::{
    reader::{Item, Notes, Table},
    settings::{Settings, Webhook},
    whole::place_nth,
};
use crate::{decisions::What, fetch::Url, secret::Origin};

pub(super) fn webhook(table: &Table<'_>) -> Webhook {
    let letters = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    let words = What::ALL.map(|what| (what.name(), what));
    let nowhere = || "https://localhost/".parse().expect("it is a URL");
    Webhook {
        name: table.need("name", "\"ops\"", String::new(), |item| {
            item.word(64, "letters, digits, '-' and '_'", letters)
        }),
        url: table.need("url", "\"https://hooks.example.com/edged\"", nowhere(), url),
        secret: table.need(
            "secret",
            "\"file:/etc/edged/webhook.secret\"",
            Origin::File("".into()),
            Item::secret,
        ),
        events: table.or("events", USUAL.to_vec(), |item| {
            let events = item.list("an array of words: [\"ban\"]", |item| item.choice(&words))?;
            match events.is_empty() {
                true => {
                    item.wrong("'events' is empty", "a webhook that is told of nothing is none")
                }
                false => Some(events),
            }
        }),
        queue: table.or("queue", 1_024, |item| usize::try_from(item.number(1, 65_536)?).ok()),
        timeout: table.or("timeout", Duration::from_secs(5), |item| item.duration(MINUTE)),
        give_up: table.or("give_up", 10 * MINUTE, |item| item.duration(1_440 * MINUTE)),
        authorities: table.or("authorities", None, |item| item.path().map(Some)),
    }
}

fn url(item: &Item<'_>) -> Option<Url> {
    let text = item.text("a URL")?;
    match text.parse() {
        Ok(url) => Some(url),
        Err(help) => item.wrong(format!("'{text}' cannot be used"), help),
    }
}

/// What no single key can tell.
pub(super) fn check(settings: &Settings, document: &DeTable<'_>, notes: &Notes<'_>) {
    for (n, webhook) in settings.webhooks.iter().enumerate() {
        if settings.webhooks[..n].iter().any(|other| other.name == webhook.name) {
            let what = format!("two webhooks are called '{}'", webhook.name);
            notes.wrong(place_nth(document, "webhook", n, "name"), what, "rename one");
        }
    }
}

/// What a person wants to know who has said nothing else.
const USUAL: [What; 4] = [What::Ban, What::Alarm, What::Feed, What::Fleet];
const MINUTE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::parse;

    const MINIMAL: &str = include_str!("../../../config/minimal.toml");
    const GOOD: &str = "name = \"a\"\nurl = \"https://a.example/x\"\nsecret = \"env:S\"";

    fn read(lines: &str) -> Result<Vec<Webhook>, String> {
        let text = format!("{MINIMAL}\n[[webhook]]\n{lines}\n");
        let read = parse(Path::new("edged.toml"), &text);
        read.map(|(settings, _)| settings.webhooks).map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn a_webhook_has_a_place_a_secret_and_something_to_tell() {
        assert_eq!(read(GOOD).unwrap()[0].events, USUAL);
        let some = read(&format!("{GOOD}\nevents = [\"lift\", \"observed\"]")).unwrap();
        assert_eq!(some[0].events, [What::Lift, What::Observed]);
        let twice = format!("{GOOD}\n[[webhook]]\n{GOOD}");
        for (lines, what) in [
            ("name = \"a\"\nurl = \"https://a.example/x\"", "missing key 'secret'"),
            ("name = \"a\"\nsecret = \"env:S\"", "missing key 'url'"),
            (
                "name = \"a\"\nurl = \"http://a.example/\"\nsecret = \"env:S\"",
                "for this host alone",
            ),
            (&format!("{GOOD}\nevents = [\"bans\"]"), "did you mean 'ban'"),
            (&format!("{GOOD}\nevents = []"), "'events' is empty"),
            (&twice, "two webhooks are called 'a'"),
        ] {
            let told = read(lines).expect_err(lines);
            assert!(told.contains(what), "{lines}: {told}");
        }
    }
}
