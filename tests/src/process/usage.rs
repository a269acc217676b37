//! Memory and CPU time of a running process, and the core that it runs on (Linux).

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// A field of `/proc/ID/status` in KiB, such as `VmRSS`.
pub fn memory_kib(id: u32, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let value = value.with_context(|| format!("no {field} in the status of process {id}"))?;
    Ok(value.trim().trim_end_matches(" kB").parse()?)
}

/// CPU time of the process in seconds, user and system.
pub fn cpu_seconds(id: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
    // The name may hold spaces and brackets. The first field after it is the state.
    let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
    let ticks: Vec<u64> =
        fields.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    // USER_HZ is 100 on every Linux.
    Ok(ticks.iter().sum::<u64>() as f64 / 100.0)
}

/// Keeps all threads of a process on one core.
pub fn pin(id: u32, core: &str) -> Result<()> {
    let taskset = Command::new("taskset")
        .args(["--all-tasks", "--cpu-list", "--pid", core, &id.to_string()])
        .output()
        .context("taskset is missing: apt-get install util-linux")?;
    let error = String::from_utf8_lossy(&taskset.stderr);
    ensure!(taskset.status.success(), "cannot pin process {id} to core {core}: {error}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_usage_is_read() {
        assert!(memory_kib(std::process::id(), "VmRSS").unwrap() > 0);
        assert!(memory_kib(std::process::id(), "VmNothing").is_err());
        assert!(cpu_seconds(std::process::id()).unwrap() >= 0.0);
    }
}
