//! A link with a delay and a loss, where the kernel has no netem: two TUN
//! devices, one of them in another network namespace, and threads that carry
//! packets from one to the other.
//!
//! Every packet waits for the delay; of those that were not lost, none
//! overtakes. What the threads cannot carry in time queues up in
//! [`QUEUE_PACKETS`], then in the devices, and is dropped there, as a router
//! would.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tun_rs::{DeviceBuilder, SyncDevice};

/// Bytes of a packet on an ordinary network.
pub(crate) const MTU: usize = 1500;
/// Packets on their way: 1 Gbit/s for 500 ms.
const QUEUE_PACKETS: usize = 42_000;

/// What a link does to packets, each way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LinkProfile {
    /// There and back.
    pub(crate) round_trip: Duration,
    /// Packets lost of a thousand.
    pub(crate) loss_per_mille: u64,
}

/// Makes the devices `names`, and carries packets between them for as long as
/// the process lives.
pub(crate) fn connect_devices(names: [&str; 2], profile: LinkProfile) -> Result<()> {
    let open = |name: &str| {
        let device = DeviceBuilder::new().name(name).build_sync();
        device.map(Arc::new).with_context(|| format!("cannot make the TUN device {name}"))
    };
    let (a, b) = (open(names[0])?, open(names[1])?);
    for (seed, from, to) in [(1, &a, &b), (2, &b, &a)] {
        let (from, to) = (from.clone(), to.clone());
        let (sender, receiver) = sync_channel(QUEUE_PACKETS);
        thread::spawn(move || receive_packets(&from, &sender, profile, seed));
        thread::spawn(move || send_packets(&to, &receiver));
    }
    Ok(())
}

type Packet = (Instant, Box<[u8]>);

fn receive_packets(from: &SyncDevice, queue: &SyncSender<Packet>, profile: LinkProfile, seed: u64) {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed);
    let mut packet = [0; MTU];
    loop {
        // The device is down at first, and refuses to be read.
        let Ok(len) = from.recv(&mut packet) else {
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        if random % 1000 < profile.loss_per_mille {
            continue;
        }
        let due = Instant::now() + profile.round_trip / 2;
        // A full queue drops, and the network's end ends the thread.
        let _ = queue.try_send((due, packet[..len].into()));
    }
}

fn send_packets(to: &SyncDevice, queue: &Receiver<Packet>) {
    while let Ok((due, packet)) = queue.recv() {
        let wait = due.saturating_duration_since(Instant::now());
        if !wait.is_zero() {
            thread::sleep(wait);
        }
        // A device whose queue is full drops.
        let _ = to.send(&packet);
    }
}
