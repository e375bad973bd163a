//! What the packet program counted, by interface and reason.
//!
//! An interface has a place among the counters, which it keeps: over restarts, and while the
//! configuration does not name it. Only when all places are taken does a new interface get that of
//! one no longer named, and its counters begin at zero.

use aya::{
    maps::{MapData, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use edge_common::{
    Plane, Reason,
    map::{self, Count, INTERFACES_MAX, count_index},
};
use edge_policy::traffic::Counts;
use nix::net::if_::if_indextoname;

use super::{
    KernelError,
    maps::{Tables, table_error},
};

/// The name under which packets of all other interfaces are counted. No interface can have it:
/// it holds a space.
pub const ANY_OTHER: &str = "any other";

impl Tables {
    /// Packets and bytes by reason since the tables were made, of every interface together.
    ///
    /// # Errors
    /// [`KernelError::Table`] if the kernel refuses.
    pub fn counts(&self) -> Result<Counts, KernelError> {
        self.sum(false)
    }

    /// Packets and bytes that would have been dropped but for monitor mode, as [`Self::counts`].
    ///
    /// # Errors
    /// [`KernelError::Table`] if the kernel refuses.
    pub fn would_drop(&self) -> Result<Counts, KernelError> {
        self.sum(true)
    }

    /// Packets and bytes by reason, of each interface with a place of its own by its name of now, and
    /// of [`ANY_OTHER`]. An interface that is gone is left out.
    ///
    /// # Errors
    /// [`KernelError::Table`] if the kernel refuses.
    pub fn counts_apart(&self) -> Result<Vec<(String, Counts)>, KernelError> {
        let mut apart = Vec::new();
        for (ifindex, place) in self.places()? {
            if let Some(name) = name_of(ifindex) {
                apart.push((name, self.counts_at(place, false)?));
            }
        }
        apart.push((ANY_OTHER.to_owned(), self.counts_at(INTERFACES_MAX - 1, false)?));
        Ok(apart)
    }

    /// Each interface with a place of its own, and the place.
    fn places(&self) -> Result<Vec<(u32, u32)>, KernelError> {
        let places = self.settings()?.interfaces.into_iter().zip(0..);
        Ok(places.filter(|(ifindex, _)| *ifindex != 0).collect())
    }

    /// Of every interface together, those included that are gone.
    fn sum(&self, would: bool) -> Result<Counts, KernelError> {
        let mut sum = [Count::default(); Reason::COUNT];
        let places = self.places()?.into_iter().map(|(_, place)| place);
        for place in places.chain([INTERFACES_MAX - 1]) {
            add(&mut sum, &self.counts_at(place, would)?);
        }
        Ok(sum)
    }

    fn counts_at(&self, place: u32, would: bool) -> Result<Counts, KernelError> {
        let mut counts = [Count::default(); Reason::COUNT];
        for reason in packet_reasons() {
            let index = count_index(place, would, reason);
            let cpus = self.counts.get(&index, 0).map_err(table_error(map::COUNTS))?;
            let count = &mut counts[reason as usize];
            for cpu in cpus.iter() {
                count.packets += cpu.packets;
                count.bytes += cpu.bytes;
            }
        }
        Ok(counts)
    }

    /// Counts the packets of these interfaces apart, up to [`INTERFACES_MAX`] less one.
    pub(super) fn count_apart(
        &mut self,
        interfaces: impl Iterator<Item = u32>,
    ) -> Result<(), KernelError> {
        let interfaces: Vec<u32> = interfaces.collect();
        let mut places = self.settings()?.interfaces;
        for place in assign(&mut places, &interfaces) {
            self.clear_counts(place)?;
        }
        self.change_settings(|settings| settings.interfaces = places)
    }

    fn clear_counts(&mut self, place: u32) -> Result<(), KernelError> {
        let cpus = nr_cpus().map_err(|(path, source)| KernelError::Path {
            verb: "read",
            path: path.into(),
            source,
        })?;
        for (reason, would) in packet_reasons().flat_map(|r| [(r, false), (r, true)]) {
            let zeros = PerCpuValues::try_from(vec![Count::default(); cpus]);
            let zeros = zeros.map_err(|error| table_error(map::COUNTS)(error.into()))?;
            let written = self.counts.set(count_index(place, would, reason), zeros, 0);
            written.map_err(table_error(map::COUNTS))?;
        }
        Ok(())
    }

    /// Drop events that the event rate or a full ring kept back.
    ///
    /// # Errors
    /// [`KernelError::Table`] if the kernel refuses.
    pub fn drops_lost(&self) -> Result<u64, KernelError> {
        lost(&self.events_lost, 0)
    }

    /// Samples that a full ring kept back.
    ///
    /// # Errors
    /// [`KernelError::Table`] if the kernel refuses.
    pub fn samples_lost(&self) -> Result<u64, KernelError> {
        lost(&self.events_lost, 1)
    }
}

fn lost(events: &PerCpuArray<MapData, u64>, index: u32) -> Result<u64, KernelError> {
    let cpus = events.get(&index, 0).map_err(table_error(map::EVENTS_LOST))?;
    Ok(cpus.iter().sum())
}

fn add(sum: &mut Counts, counts: &Counts) {
    for (sum, count) in sum.iter_mut().zip(counts) {
        sum.packets += count.packets;
        sum.bytes += count.bytes;
    }
}

fn packet_reasons() -> impl Iterator<Item = u32> {
    Reason::ALL.iter().filter(|reason| reason.plane() == Plane::Packet).map(|r| *r as u32)
}

/// The name of now of an interface.
pub(super) fn name_of(ifindex: u32) -> Option<String> {
    if ifindex == 0 {
        return None;
    }
    // For none it has no error, but an empty one.
    if_indextoname(ifindex).ok()?.into_string().ok().filter(|name| !name.is_empty())
}

/// Gives every interface a place, and tells which of the places are to begin at zero: those that
/// were another's. One that was nobody's holds zeros, or what was counted by the same configuration
/// under another version, whose settings are not read. The last place is that of all others, and the places in use have no gap: the program stops at a 0.
fn assign(places: &mut [u32; INTERFACES_MAX as usize], interfaces: &[u32]) -> Vec<u32> {
    let room = INTERFACES_MAX as usize - 1;
    let mut anew = Vec::new();
    for ifindex in interfaces.iter().take(room) {
        if places[..room].contains(ifindex) {
            continue;
        }
        let is_free = |place: &u32| *place == 0 || !interfaces.contains(place);
        let place = places[..room].iter().position(|place| *place == 0);
        let place = place.or_else(|| places[..room].iter().position(is_free));
        if let Some(place) = place
            && std::mem::replace(&mut places[place], *ifindex) != 0
        {
            anew.push(place as u32);
        }
    }
    anew
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(first: &[u32]) -> [u32; INTERFACES_MAX as usize] {
        let mut places = [0; INTERFACES_MAX as usize];
        places[..first.len()].copy_from_slice(first);
        places
    }

    #[test]
    fn an_interface_keeps_its_place() {
        let mut found = places(&[]);
        assert!(assign(&mut found, &[7, 3]).is_empty());
        assert!(assign(&mut found, &[3, 9, 7]).is_empty());
        assert!(assign(&mut found, &[9]).is_empty());
        assert!(assign(&mut found, &[7]).is_empty());
        assert_eq!(found, places(&[7, 3, 9]));
    }

    #[test]
    fn only_when_all_places_are_taken_is_one_given_away() {
        let all: Vec<u32> = (1..=15).collect();
        let mut found = places(&[]);
        assert!(assign(&mut found, &all).is_empty());
        assert_eq!(assign(&mut found, &[1, 2, 4, 99]), [2]);
        assert_eq!((found[2], found[15]), (99, 0));
        let many: Vec<u32> = (100..140).collect();
        assert_eq!(assign(&mut found, &many).len(), 15);
        assert_eq!(found[15], 0, "all others");
    }
}
