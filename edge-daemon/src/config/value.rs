//! Reads single values into their final types: durations, rates, addresses, networks, names.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use edge_common::Rate;
use ipnet::IpNet;

use super::{
    reader::{Item, suggest},
    text,
};
use crate::secret;

impl Item<'_> {
    /// A duration of at least a millisecond and at most `most`.
    pub(super) fn duration(&self, most: Duration) -> Option<Duration> {
        let written = self.text("a duration: \"10s\"")?;
        match text::duration(written) {
            Ok(duration) if duration.is_zero() || duration > most => {
                let most = text::show_duration(most);
                self.wrong(
                    format!("'{}' is out of range: {written}", self.key),
                    format!("1ms to {most}"),
                )
            }
            Ok(duration) => Some(duration),
            Err(help) => self.wrong(format!("not a duration: '{written}'"), help),
        }
    }

    /// A duration, or `None` for "never".
    pub(super) fn duration_or_never(&self, most: Duration) -> Option<Option<Duration>> {
        match self.text("a duration, or \"never\"")? {
            "never" => Some(None),
            _ => self.duration(most).map(Some),
        }
    }

    /// A size in bytes within bounds.
    pub(super) fn size(&self, least: u64, most: u64) -> Option<u64> {
        let written = self.text("a size: \"64KiB\"")?;
        match text::size(written) {
            Ok(size) if (least..=most).contains(&size) => Some(size),
            Ok(_) => self.wrong(
                format!("'{}' is out of range: {written}", self.key),
                format!("{} to {}", text::show_size(least), text::show_size(most)),
            ),
            Err(help) => self.wrong(format!("not a size: '{written}'"), help),
        }
    }

    /// A rate: "600/m", "off", or `{ rate = "600/m", burst = 100 }`.
    pub(super) fn rate(&self) -> Option<Rate> {
        if self.is_text() {
            return self.plain_rate(None);
        }
        let Some(rate) = self.inline(|table| {
            let burst =
                table.or("burst", None, |item| item.number(1, u64::from(u32::MAX)).map(Some));
            table.need("rate", "\"600/m\"", None, |item| item.plain_rate(burst).map(Some))
        }) else {
            return self.wrong_kind("a rate: \"600/m\", or { rate = \"600/m\", burst = 100 }");
        };
        rate
    }

    fn plain_rate(&self, burst: Option<u64>) -> Option<Rate> {
        let written = self.text("a rate: \"600/m\"")?;
        match text::rate(written, burst) {
            Ok(rate) => Some(rate),
            Err(help) => self.wrong(format!("not a rate: '{written}'"), help),
        }
    }

    /// A rate of bytes: "10MiB/s", "off", or `{ rate = "10MiB/s", burst = "1MiB" }`.
    pub(super) fn byte_rate(&self) -> Option<Rate> {
        if self.is_text() {
            return self.plain_byte_rate(None);
        }
        let Some(rate) = self.inline(|table| {
            let burst =
                table.or("burst", None, |item| item.size(text::BYTE_BURST_MIN, u64::MAX).map(Some));
            table.need("rate", "\"10MiB/s\"", None, |item| item.plain_byte_rate(burst).map(Some))
        }) else {
            let wanted = "a rate: \"10MiB/s\", or { rate = \"10MiB/s\", burst = \"1MiB\" }";
            return self.wrong_kind(wanted);
        };
        rate
    }

    fn plain_byte_rate(&self, burst: Option<u64>) -> Option<Rate> {
        let written = self.text("a rate: \"10MiB/s\"")?;
        match text::byte_rate(written, burst) {
            Ok(rate) => Some(rate),
            Err(help) => self.wrong(format!("not a rate of bytes: '{written}'"), help),
        }
    }

    /// A number, or a range of them: 53, "53" or "1024-65535".
    pub(super) fn range(&self, least: u32, most: u32) -> Option<[u32; 2]> {
        let wanted = format!("{least} to {most}: 64, or \"64-128\"");
        if self.is_number() {
            let number = self.number(least.into(), most.into())? as u32;
            return Some([number, number]);
        }
        let written = self.text(&wanted)?;
        match text::range(written) {
            Some([from, to]) if from > to => {
                self.wrong(format!("'{}' is empty: {written}", self.key), "the lower end first")
            }
            Some([from, to]) if from >= least && to <= most => Some([from, to]),
            _ => self.wrong(format!("'{}' cannot be '{written}'", self.key), wanted),
        }
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let names = words.iter().map(|(name, _)| *name);
        let wanted = names.clone().map(|name| format!("\"{name}\"")).collect::<Vec<_>>();
        let written = self.text(&wanted.join(" or "))?;
        match words.iter().find(|(name, _)| *name == written) {
            Some((_, value)) => Some(*value),
            None => {
                self.wrong(format!("'{}' cannot be '{written}'", self.key), suggest(written, names))
            }
        }
    }

    /// An IP address with a port.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        let written = self.text("an address with a port: \"192.0.2.1:443\"")?;
        if let Ok(address) = written.parse() {
            return Some(address);
        }
        let what = format!("not an address with a port: '{written}'");
        let Some((host, port)) = written.rsplit_once(':').filter(|(h, _)| !h.ends_with(':')) else {
            return self.wrong(what, "the port is missing: \"192.0.2.1:443\"");
        };
        let help = if port.parse::<u16>().is_err() {
            "a port is a number, 0 to 65535"
        } else if host.is_empty() {
            "name the address: \"0.0.0.0\" or \"[::]\" is every one"
        } else if host.contains(':') {
            "write an IPv6 address in brackets: \"[2001:db8::1]:443\""
        } else {
            "an IP address; host names are not looked up"
        };
        self.wrong(what, help)
    }

    /// A network; host bits are noted and cleared.
    pub(super) fn net(&self) -> Option<IpNet> {
        let written = self.text("a network: \"192.0.2.0/24\"")?;
        match text::net(written) {
            Ok((net, false)) => Some(net),
            Ok((net, true)) => {
                let what = format!("'{written}' has bits beyond its prefix");
                self.notes.doubt(self.span.clone(), what, format!("read as {net}"));
                Some(net)
            }
            Err(help) => self.wrong(format!("not a network: '{written}'"), help),
        }
    }

    /// A path, not empty.
    pub(super) fn path(&self) -> Option<PathBuf> {
        match self.text("a path")? {
            "" => self.wrong(format!("'{}' is empty", self.key), "a path"),
            path => Some(path.into()),
        }
    }

    /// A reference to a secret: "file:PATH", "env:NAME" or "credential:NAME". What was written
    /// instead may be the secret itself, so the mistake does not show it.
    pub(super) fn secret(&self) -> Option<secret::Origin> {
        match self.text("a reference to a secret")?.parse() {
            Ok(origin) => Some(origin),
            Err(help) => {
                self.notes.wrong_unseen(self.span.clone(), "not a reference to a secret", help);
                None
            }
        }
    }

    /// A word of at most `most` of the characters that `fits` takes, and at least one.
    pub(super) fn word(
        &self,
        most: usize,
        charset: &str,
        fits: impl Fn(char) -> bool,
    ) -> Option<String> {
        let written = self.text("a string")?;
        if written.is_empty() || written.len() > most || !written.chars().all(fits) {
            let what = format!("'{}' cannot be '{written}'", self.key);
            return self.wrong(what, format!("1 to {most} of {charset}"));
        }
        Some(written.to_owned())
    }
}
