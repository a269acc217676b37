//! Randomness for keys, ids and jitter.

use crate::error::ConnectError;

/// Returns bytes from the operating system's generator.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], ConnectError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| ConnectError::NoRandomness)?;
    Ok(bytes)
}

/// Returns jitter for a delay. Without randomness it selects the longest delay.
pub(crate) fn jitter() -> u32 {
    random().map_or(u32::MAX, u32::from_le_bytes)
}
