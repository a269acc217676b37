//! Everything that only Unix has: process groups, terminals, signal
//! dispositions, open flags and file modes. The rest of the crate could compile
//! for another system.

pub(crate) mod child;
pub(crate) mod files;
pub(crate) mod pipes;
pub(crate) mod process_group;
pub(crate) mod pty;
pub(crate) mod signals;
