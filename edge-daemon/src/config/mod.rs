//! The configuration file: read as written, checked whole, handed on as plain data.

pub mod settings;

pub use settings::Settings;
