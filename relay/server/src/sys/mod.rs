//! Code that only Unix or only Linux has: limits and figures of the process,
//! signals, and modes of files.

mod descriptors;
mod files;
mod hangup;
pub(crate) mod process;

pub use descriptors::raise_descriptor_limit;
#[cfg(feature = "acme")]
pub(crate) use files::create_owner_only_dir;
pub(crate) use files::owner_only;
pub(crate) use hangup::Hangups;
