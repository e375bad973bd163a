//! The lists: how full they are, what their files gave, and how the last image went.

use prometheus::proto::{Gauge, MetricFamily, MetricType};

use super::{counter, family, family::labelled, gauge};
use crate::{config::settings::Lists, kernel::ListSizes};

/// What a scrape tells of the lists.
#[derive(Clone, Debug, Default)]
pub struct ListView {
    /// What the kernel holds.
    pub sizes: ListSizes,
    /// Networks on the allow list, repetitions included.
    pub allow: u64,
    /// Networks on the deny list, repetitions included.
    pub deny: u64,
    /// The files.
    pub files: Vec<FileView>,
}

/// What a scrape tells of a list file.
#[derive(Clone, Debug)]
pub struct FileView {
    path: String,
    networks: u64,
    skipped: u64,
    read_s: u64,
    is_stale: bool,
    reasons: [(&'static str, u64); 3],
}

impl FileView {
    /// Every list file of a configuration.
    #[must_use]
    pub fn all(lists: &Lists) -> Vec<Self> {
        let files = lists.allow.files.iter().chain(&lists.deny.files);
        let view = files.map(|file| Self {
            path: file.path.display().to_string(),
            networks: file.nets.len() as u64,
            skipped: file.skipped as u64,
            read_s: file.read_s,
            is_stale: file.is_stale,
            reasons: file.reasons.counts(),
        });
        view.collect()
    }
}

pub(super) fn families(view: &ListView) -> Vec<MetricFamily> {
    let ListView { sizes, allow, deny, files } = view;
    let now = MetricType::GAUGE;
    let one = |name, help, value| family(name, help, now, [gauge(&[], value)]);
    let lists = [("allow", allow), ("deny", deny)];
    let file = |name, help, value: fn(&FileView) -> u64| {
        let each = files.iter().map(|file| gauge(&[("file", &file.path)], value(file)));
        family(name, help, now, each)
    };
    let reasons = files.iter().flat_map(|file| {
        let reason = |(state, n)| gauge(&[("file", &file.path), ("state", state)], n);
        file.reasons.map(reason)
    });
    let failures = counter(&[], sizes.failures);
    let mut seconds = Gauge::default();
    seconds.set_value(sizes.compile.as_secs_f64());
    let mut compile = labelled(&[]);
    compile.set_gauge(seconds);
    vec![
        family(
            "edged_list_networks",
            "Networks on a list.",
            now,
            lists.map(|(list, count)| gauge(&[("list", list)], *count)),
        ),
        one("edged_list_entries", "Entries in the kernel.", sizes.entries),
        one("edged_list_entries_max", "Entries there is room for.", sizes.entries_max),
        one("edged_list_lines", "Lines of the compiled image.", sizes.lines),
        one("edged_list_lines_max", "Lines there is room for.", sizes.lines_max),
        one("edged_list_overlay", "Networks changed since the image.", sizes.overlay),
        one("edged_list_generation", "Images put in force.", sizes.generation),
        family("edged_list_compile_seconds", "Making of the last image.", now, [compile]),
        family(
            "edged_list_failures_total",
            "Images or changes that failed.",
            MetricType::COUNTER,
            [failures],
        ),
        file("edged_list_file_networks", "Networks of a list file.", |file| file.networks),
        file("edged_list_file_skipped", "Lines left out of a list file.", |file| file.skipped),
        file("edged_list_file_read_seconds", "When it was read, unix time.", |file| file.read_s),
        file("edged_list_file_stale", "1 if a former reading stands in.", |file| {
            file.is_stale.into()
        }),
        family("edged_list_file_reasons", "Lines of a list file that say why.", now, reasons),
    ]
}
