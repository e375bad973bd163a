//! What the parts of this module do together.

mod differential;
mod incidents;
mod order;
mod proofs;
mod sets;
mod signer;
mod vectors;
