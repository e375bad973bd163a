//! API keys in the daemon: the secrets that their digests are made under.

pub mod pepper;
