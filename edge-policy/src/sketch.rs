//! The heaviest keys of a stream, in fixed memory, with what is past fading.
//!
//! Space-saving (Metwally, Agrawal and El Abbadi, 2005): a key that finds no room takes the place
//! of the lightest and inherits its weight as its error. What fades, fades for all alike, so that
//! the bounds hold for faded weights too:
//! - a key's true weight lies between `weight - error` and `weight`;
//! - `error` is at most the total divided by the number of places;
//! - whoever has more than that share of the total has a place.

/// What is kept of a key, and fades with it.
pub trait Fade: Default {
    /// Multiplies all sums by `factor`, 0 to 1.
    fn fade(&mut self, factor: f64);
}

impl Fade for () {
    fn fade(&mut self, _: f64) {}
}

/// The heaviest keys.
#[derive(Clone, Debug)]
pub struct Sketch<K, D = ()> {
    places: Vec<Place<K, D>>,
    capacity: usize,
    total: f64,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct Place<K, D> {
    /// The key.
    pub key: K,
    /// Its weight at most.
    pub weight: f64,
    /// How much of the weight may be that of keys that had this place before.
    pub error: f64,
    /// What is kept of it since it has this place.
    pub data: D,
}

impl<K: Copy + PartialEq, D: Fade> Sketch<K, D> {
    /// A sketch of so many places, one at least.
    #[must_use]
    pub const fn new(capacity: usize) -> Self {
        let capacity = if capacity == 0 { 1 } else { capacity };
        Self { places: Vec::new(), capacity, total: 0.0 }
    }

    /// Adds a weight, 0 or more, to a key; what is kept of that key. It takes time proportional to the
    /// places.
    pub fn add(&mut self, key: K, weight: f64) -> &mut D {
        self.total += weight;
        let place = match self.places.iter().position(|place| place.key == key) {
            Some(place) => place,
            None => self.make_room(key),
        };
        let place = &mut self.places[place];
        place.weight += weight;
        &mut place.data
    }

    fn make_room(&mut self, key: K) -> usize {
        let anew = |error| Place { key, weight: error, error, data: D::default() };
        if self.places.len() < self.capacity {
            self.places.push(anew(0.0));
            return self.places.len() - 1;
        }
        let mut lightest = 0;
        for (index, place) in self.places.iter().enumerate() {
            if place.weight < self.places[lightest].weight {
                lightest = index;
            }
        }
        self.places[lightest] = anew(self.places[lightest].weight);
        lightest
    }

    /// Multiplies every weight by `factor`, 0 to 1.
    pub fn fade(&mut self, factor: f64) {
        self.total *= factor;
        for place in &mut self.places {
            place.weight *= factor;
            place.error *= factor;
            place.data.fade(factor);
        }
    }

    /// The keys that have a place, in no order.
    pub fn places(&self) -> impl Iterator<Item = &Place<K, D>> {
        self.places.iter()
    }

    /// The heaviest key.
    #[must_use]
    pub fn heaviest(&self) -> Option<&Place<K, D>> {
        self.places().max_by(|a, b| a.weight.total_cmp(&b.weight))
    }

    /// The weight of all keys together.
    #[must_use]
    pub const fn total(&self) -> f64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_stranger_takes_the_lightest_place_and_owns_to_it() {
        let mut sketch: Sketch<char> = Sketch::new(2);
        for (key, weight) in [('a', 5.0), ('b', 1.0), ('c', 1.0)] {
            sketch.add(key, weight);
        }
        let told: Vec<_> = sketch.places().map(|p| (p.key, p.weight, p.error)).collect();
        assert_eq!(told, [('a', 5.0, 0.0), ('c', 2.0, 1.0)]);
        assert_eq!(sketch.heaviest().map(|place| place.key), Some('a'));
    }

    proptest! {
        /// A key and its weight; no key: all fades.
        #[test]
        fn the_bounds_hold_for_any_stream(
            stream in prop::collection::vec((prop::option::weighted(0.95, 0_u8..40), 0.0..100.0), 0..400),
            capacity in 1_usize..20,
        ) {
            let mut sketch: Sketch<u8> = Sketch::new(capacity);
            let mut truth = BTreeMap::<u8, f64>::new();
            for (key, weight) in stream {
                let Some(key) = key else {
                    sketch.fade(weight / 100.0);
                    truth.values_mut().for_each(|sum| *sum *= weight / 100.0);
                    continue;
                };
                sketch.add(key, weight);
                *truth.entry(key).or_default() += weight;
            }
            let total: f64 = truth.values().sum();
            // Sums of the same numbers in another order.
            let slack = 1e-9 * (1.0 + total);
            let bound = total / capacity as f64;
            prop_assert!((sketch.total() - total).abs() <= slack);
            prop_assert!(sketch.places().count() <= capacity);
            for place in sketch.places() {
                let true_weight = truth[&place.key];
                prop_assert!(place.weight >= true_weight - slack);
                prop_assert!(place.weight - place.error <= true_weight + slack);
                prop_assert!(place.error <= bound + slack);
            }
            for (key, weight) in truth {
                let has_place = sketch.places().any(|place| place.key == key);
                prop_assert!(has_place || weight <= bound + slack, "{key} of {weight}");
            }
        }
    }
}
