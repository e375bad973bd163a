//! Reads `[[policy]]`, and the policy files that it names.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use edge_identity::policy::{Fault, File, Policies, label};
use toml::de::DeTable;

use super::{
    access::name,
    mistake::Source,
    reader::{Item, Notes, Table},
    sections::some_of,
    settings::{PolicyFile, PolicySet, Settings},
    whole::place_nth,
};
use crate::regular;

/// The largest policy file or schema that is read, in bytes.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// `[[policy]]`
pub(super) fn policy(table: &Table<'_>) -> PolicySet {
    let file = |item: &Item<'_>| item.path().map(PolicyFile::unread);
    PolicySet {
        name: table.need("name", "\"tenants\"", String::new(), name),
        files: table.need("files", "[\"tenants.cedar\"]", Vec::new(), |item| {
            some_of(item, "an array of policy files: [\"tenants.cedar\"]", file)
        }),
        schema: table.or("schema", None, |item| file(item).map(Some)),
        shadow: table
            .or("mode", false, |item| item.choice(&[("enforce", false), ("shadow", true)])),
    }
}

/// The sets that a route names, by their numbers.
pub(super) fn asked(item: &Item<'_>, sets: &[PolicySet], somebody: bool) -> Option<Vec<usize>> {
    let asked = item.list("an array of names of [[policy]]: [\"tenants\"]", |item| {
        let name = item.text("the name of a [[policy]]")?;
        let found = sets.iter().position(|set| set.name == name);
        let help = format!("define it: [[policy]] with name = \"{name}\"");
        found.or_else(|| item.wrong(format!("no policy set is called '{name}'"), help))
    })?;
    if !asked.is_empty() && !somebody {
        return super::access::without_caller(item);
    }
    Some(asked)
}

/// Takes relative paths from the folder of the configuration.
pub(super) fn resolve(sets: &mut [PolicySet], base: &Path) {
    for file in sets.iter_mut().flat_map(|set| set.files.iter_mut().chain(&mut set.schema)) {
        file.path = base.join(&file.path);
    }
}

/// Reads the files of all sets, and checks that what they say makes sense.
pub(super) fn inspect(settings: &mut Settings, document: &DeTable<'_>, notes: &Notes<'_>) {
    for n in 0..settings.policies.len() {
        let set = &mut settings.policies[n];
        let mut is_read = true;
        let of_files = set.files.iter_mut().map(|file| ("files", file));
        for (key, file) in of_files.chain(set.schema.iter_mut().map(|file| ("schema", file))) {
            match regular::text(&file.path, FILE_BYTES_MAX) {
                Ok(text) => file.text = text.into(),
                Err(fault) => {
                    is_read = false;
                    let what = format!("cannot read {}: {fault}", file.path.display());
                    notes.wrong(place_nth(document, "policy", n, key), what, "a file in Cedar");
                }
            }
        }
        if is_read {
            check(settings, n, notes);
        }
    }
}

fn check(settings: &Settings, n: usize, notes: &Notes<'_>) {
    let set = &settings.policies[n];
    let labels: Vec<_> = routes_of(settings, n).map(|(_, label)| label).collect();
    let faults = match load(set, &labels) {
        Ok((_, doubts)) => doubts,
        Err(faults) => faults,
    };
    for Fault { file, span, what, help, is_doubt } in faults {
        let file = file.map_or(set.schema.as_ref(), |file| set.files.get(file));
        // A fault of the schema where no file of one is named is the edge's own, and there is none.
        let Some(file) = file else { continue };
        let mistake = Source::new(&file.path, &file.text).mistake(span, what, help);
        let (mistakes, doubts) =
            if is_doubt { (vec![], vec![mistake]) } else { (vec![mistake], vec![]) };
        notes.adopt(mistakes, doubts);
    }
}

/// The routes that ask a set, by number, with what policies call them.
pub fn routes_of(settings: &Settings, set: usize) -> impl Iterator<Item = (usize, String)> + '_ {
    let asking = move |needs: &super::settings::Requirement| {
        needs.policies.iter().any(|slice| slice.set == set)
    };
    settings.routes.iter().enumerate().filter_map(move |(n, route)| {
        let asks = route.needs.as_ref().is_some_and(asking);
        asks.then(|| (n, label(&route.at)))
    })
}

/// The policies of a set for routes with these labels.
///
/// # Errors
/// Every fault of every file.
pub fn load(set: &PolicySet, labels: &[String]) -> Result<(Policies, Vec<Fault>), Vec<Fault>> {
    let names: Vec<_> = set.files.iter().map(PolicyFile::name).collect();
    let named = set.files.iter().zip(&names);
    let files: Vec<_> = named.map(|(file, name)| File { name, text: &file.text }).collect();
    Policies::load(set.schema.as_ref().map(|file| &*file.text), &files, labels)
}

impl PolicyFile {
    fn unread(path: PathBuf) -> Self {
        Self { path, text: Arc::from("") }
    }

    fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}
