//! The memory of a child process (Linux).

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result};

/// The writable mappings of process `id`, one after the other.
///
/// The kernel allows this to processes that may trace it: by default its parent, or
/// root.
pub(crate) fn snapshot(id: u32) -> Result<Vec<Vec<u8>>> {
    let maps = fs::read_to_string(format!("/proc/{id}/maps")).context("cannot list mappings")?;
    let memory = File::open(format!("/proc/{id}/mem"))
        .context("cannot read the relay's memory: may this user trace its own children?")?;
    let writable = maps.lines().filter(|line| {
        line.split(' ').nth(1).is_some_and(|permissions| permissions.starts_with("rw"))
    });
    writable.map(|line| read(&memory, line).with_context(|| line.to_owned())).collect()
}

fn read(memory: &File, mapping: &str) -> Result<Vec<u8>> {
    let range = mapping.split(' ').next().and_then(|range| range.split_once('-'));
    let (start, end) = range.context("a mapping has a range")?;
    let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
    let mut bytes = vec![0; usize::try_from(end - start)?];
    memory.read_exact_at(&mut bytes, start)?;
    Ok(bytes)
}
