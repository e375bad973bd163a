//! Reads `[geo]`, and looks at what it names.

use edge_policy::limit::{Part, Place};
use toml::de::DeTable;

use super::{
    reader::{Notes, Table},
    settings::{Geo, Settings},
    whole::{place, place_nth},
};
use crate::geo;

pub(super) fn geo(table: &Table<'_>) -> Geo {
    let path = |key| table.or(key, None, |item| item.path().map(Some));
    Geo { country: path("country"), asn: path("asn") }
}

/// Opens the databases, to tell now what would fail later.
pub(super) fn inspect(settings: &Settings, document: &DeTable<'_>, notes: &Notes<'_>) {
    let Geo { country, asn } = &settings.geo;
    let alone = [
        ("country", Geo { country: country.clone(), asn: None }),
        ("asn", Geo { country: None, asn: asn.clone() }),
    ];
    for (key, alone) in alone {
        if let Err(fault) = geo::Geo::new(&alone, None) {
            let help = "a database in MaxMind's format";
            notes.wrong(place(document, "geo", key), fault.to_string(), help);
        }
    }
}

/// A limit that counts by what nobody can tell would count everybody together.
pub(super) fn check(settings: &Settings, document: &DeTable<'_>, notes: &Notes<'_>) {
    let tables = document.get("limit").and_then(|tables| tables.get_ref().as_array());
    let name = |n: usize| {
        let table = tables?.get(n)?.get_ref();
        table.get("name")?.get_ref().as_str()
    };
    for n in 0..tables.map_or(0, |tables| tables.len()) {
        let spec = settings.limits.iter().find(|spec| Some(&*spec.name) == name(n));
        for part in spec.into_iter().flat_map(|spec| &spec.by) {
            let (key, path) = match part {
                Part::Place(Place::Country) => ("country", &settings.geo.country),
                Part::Place(Place::Asn) => ("asn", &settings.geo.asn),
                _ => continue,
            };
            if path.is_none() {
                let what = format!("nothing tells the {key} of an address");
                let help = format!("[geo] with {key} = \"FILE.mmdb\"");
                notes.wrong(place_nth(document, "limit", n, "by"), what, help);
            }
        }
    }
}
