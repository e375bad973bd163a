//! What is decided about the servers behind the edge: which one a request goes to, which are fit
//! to be asked, when to stop asking, and what may be asked again.
//!
//! Times are nanoseconds of one monotonic clock. What all workers share is held in atomics: a
//! request never waits for another core's.

pub mod balance;
pub mod budget;
pub mod circuit;
pub mod health;
