//! Reads `[geo]`, and looks at what it names.

use std::ops::Range;

use edge_policy::{limit::Part, place::Place};
use toml::de::DeTable;

use super::{
    reader::{Notes, Table},
    scenario,
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

/// A limit that counts by what nobody can tell would count everybody together, and a scenario that asks
/// for it would never speak.
pub(super) fn check(settings: &Settings, document: &DeTable<'_>, notes: &Notes<'_>) {
    each(document, "limit", |n, name| {
        let limit = settings.limits.iter().find(|spec| &*spec.name == name);
        for part in limit.into_iter().flat_map(|limit| &limit.by) {
            if let Part::Place(place) = part {
                told(settings, *place, place_nth(document, "limit", n, "by"), notes);
            }
        }
    });
    each(document, "scenario", |n, name| {
        let own = settings.verdicts.scenarios.iter().find(|own| &*own.name == name);
        for (key, place) in own.map(scenario::places).unwrap_or_default() {
            told(settings, place, place_nth(document, "scenario", n, key), notes);
        }
    });
}

/// Calls for each table of an array that has a name.
fn each(document: &DeTable<'_>, array: &str, mut call: impl FnMut(usize, &str)) {
    let tables = document.get(array).and_then(|tables| tables.get_ref().as_array());
    for (n, table) in tables.into_iter().flatten().enumerate() {
        let name = || table.get_ref().get("name")?.get_ref().as_str();
        if let Some(name) = name() {
            call(n, name);
        }
    }
}

/// Whether a database tells a place that is asked for there.
fn told(settings: &Settings, place: Place, span: Range<usize>, notes: &Notes<'_>) {
    let path = match place {
        Place::Country => &settings.geo.country,
        Place::Asn => &settings.geo.asn,
    };
    if path.is_none() {
        let key = place.name();
        let what = format!("nothing tells the {key} of an address");
        notes.wrong(span, what, format!("[geo] with {key} = \"FILE.mmdb\""));
    }
}
