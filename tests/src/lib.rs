//! The harness: namespaces, packets, an origin, the daemon and its clients, as a small language.

pub mod bench;
pub mod churn;
pub mod client;
pub mod corpus;
pub mod crowdsec;
pub mod daemon;
pub mod delivery;
pub mod differential;
pub mod fail2ban;
pub mod fleet;
pub mod flood;
pub mod frames;
pub mod fuzz;
pub mod issuer;
pub mod lab;
pub mod metrics;
pub mod mmdb;
pub mod model;
pub mod nat;
pub mod netns;
pub mod origin;
pub mod packet;
pub mod parsers;
pub mod pki;
pub mod plane;
pub mod random;
pub mod siege;
pub mod smuggling;
pub mod source;
pub mod talk;
pub mod targets;
pub mod web;

pub use daemon::Edged;
pub use lab::Lab;
pub use origin::Origin;
