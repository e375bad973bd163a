//! Where addresses are from, and whose they are, as far as the operator has a database that tells: files
//! in MaxMind's format, looked at again when they change.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use edge_policy::place::{Place, Places};
use maxminddb::{MaxMindDbError, PathElement, Reader};

use crate::{config::settings, regular, request::Edge};

/// The databases of a configuration.
#[derive(Default)]
pub struct Geo {
    files: Vec<File>,
}

struct File {
    place: Place,
    path: PathBuf,
    /// What is in force, and the state of the file that it is of.
    read: ArcSwap<(Stamp, Reader<Vec<u8>>)>,
    /// The last state of the file that was no good.
    bad: ArcSwap<Option<Stamp>>,
}

type Stamp = (SystemTime, u64);

/// Why a file is no good.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// It cannot be read.
    #[error("{0}: {1}")]
    Read(PathBuf, io::Error),
    /// It is larger than what is read at most.
    #[error("{0}: larger than 512 MiB")]
    Large(PathBuf),
    /// It is no database, or a damaged one.
    #[error("{0}: {1}")]
    Broken(PathBuf, MaxMindDbError),
    /// It does not tell what it is for.
    #[error("{0}: a database of the type '{1}' does not tell {2}")]
    Foreign(PathBuf, String, &'static str),
}

impl Geo {
    /// Reads all of them; those that have not changed go on as they are.
    ///
    /// # Errors
    /// The first that is no good.
    pub fn new(settings: &settings::Geo, former: Option<&Arc<Self>>) -> Result<Arc<Self>, Fault> {
        let wanted = [(Place::Country, &settings.country), (Place::Asn, &settings.asn)];
        let wanted: Vec<_> =
            wanted.into_iter().filter_map(|(place, path)| Some((place, path.as_ref()?))).collect();
        let is_same = |former: &&Arc<Self>| {
            let known = former.files.iter().map(|file| (file.place, &file.path));
            known.eq(wanted.iter().copied())
        };
        if let Some(former) = former.filter(is_same) {
            former.look();
            return Ok(Arc::clone(former));
        }
        let file = |(place, path): (Place, &PathBuf)| {
            let read = ArcSwap::from_pointee(open(path, place)?);
            Ok(File { place, path: path.clone(), read, bad: ArcSwap::default() })
        };
        let files = wanted.into_iter().map(file).collect::<Result<_, Fault>>()?;
        Ok(Arc::new(Self { files }))
    }

    /// Reads again what has changed on disk; what is no good changes nothing, and is told of once.
    pub fn look(&self) {
        for file in &self.files {
            let stamp = stamp(&file.path).ok();
            if stamp.is_none_or(|stamp| stamp == file.read.load().0) || **file.bad.load() == stamp {
                continue;
            }
            match open(&file.path, file.place) {
                Ok(read) => {
                    file.read.store(Arc::new(read));
                    tracing::info!(path = %file.path.display(), "a database has changed; the new one is in use");
                }
                Err(error) => {
                    file.bad.store(Arc::new(stamp));
                    tracing::error!(%error, "a database has changed and is no good; the former stays");
                }
            }
        }
    }

    /// The country of an address, as the two letters of its code, or the number of the network that it
    /// is of; `None` if nobody knows.
    #[must_use]
    pub fn find(&self, place: Place, address: IpAddr) -> Option<u64> {
        let file = self.files.iter().find(|file| file.place == place)?;
        find(&file.read.load().1, place, address)
    }

    /// All that is known of where an address is from.
    #[must_use]
    pub fn places(&self, address: IpAddr) -> Places {
        Places::find(|place| self.find(place, address))
    }
}

/// Follows the databases as they change on disk, for ever.
pub async fn tend(edge: Arc<Edge>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let geo = Arc::clone(&edge.plan.load().geo);
        // A large one takes a while to be read and verified.
        if let Err(error) = tokio::task::spawn_blocking(move || geo.look()).await {
            tracing::error!(%error, "a database cannot be looked at");
        }
    }
}

fn find(reader: &Reader<Vec<u8>>, place: Place, address: IpAddr) -> Option<u64> {
    let found = reader.lookup(address).ok()?;
    match place {
        Place::Country => COUNTRY.iter().find_map(|path| {
            let code = found.decode_path::<&str>(path).ok()??;
            let [a, b] = *code.as_bytes().as_array()?;
            Some(u64::from(u16::from_be_bytes([a, b])))
        }),
        Place::Asn => ASN.iter().find_map(|path| {
            let number = found.decode_path::<u32>(path).ok().flatten();
            // "AS64496", as some write it.
            let text = || found.decode_path::<&str>(path).ok()??.strip_prefix("AS")?.parse().ok();
            number.or_else(text).map(u64::from)
        }),
    }
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let metadata = fs::metadata(path)?;
    Ok((metadata.modified()?, metadata.len()))
}

fn open(path: &Path, place: Place) -> Result<(Stamp, Reader<Vec<u8>>), Fault> {
    let unread = |error| Fault::Read(path.to_owned(), error);
    let broken = |error| Fault::Broken(path.to_owned(), error);
    let stamp = stamp(path).map_err(unread)?;
    if stamp.1 > FILE_BYTES_MAX {
        return Err(Fault::Large(path.to_owned()));
    }
    let reader = Reader::from_source(regular::read(path, FILE_BYTES_MAX).map_err(unread)?)
        .map_err(broken)?;
    reader.verify().map_err(broken)?;
    let kind = &reader.metadata().database_type;
    let (marks, what): (&[&str], _) = match place {
        Place::Country => (&["Country", "City", "Enterprise"], "countries"),
        Place::Asn => (&["ASN", "ISP", "Enterprise"], "autonomous systems"),
    };
    if !marks.iter().any(|mark| kind.to_lowercase().contains(&mark.to_lowercase())) {
        return Err(Fault::Foreign(path.to_owned(), kind.clone(), what));
    }
    Ok((stamp, reader))
}

/// Where a country's code is, in the shapes that are common.
const COUNTRY: [&[PathElement<'static>]; 3] = [
    &[PathElement::Key("country"), PathElement::Key("iso_code")],
    &[PathElement::Key("registered_country"), PathElement::Key("iso_code")],
    &[PathElement::Key("country_code")],
];
const ASN: [&[PathElement<'static>]; 2] =
    [&[PathElement::Key("autonomous_system_number")], &[PathElement::Key("asn")]];
/// The largest database that is read, in bytes.
const FILE_BYTES_MAX: u64 = 512 << 20;
/// How soon one that has changed is in use.
const LOOK_EVERY: Duration = Duration::from_secs(5);
