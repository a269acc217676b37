//! A link with a delay and a loss, where the kernel has no netem: two TUN
//! devices, one of them in another network namespace, and threads that carry
//! packets from one to the other.
//!
//! Every packet waits for the delay, and none overtakes. Packets that the threads
//! cannot forward in time wait in [`QUEUE_PACKETS`], then in the devices, and are
//! dropped there, as in a router.

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

/// Delay and loss of a link, in each direction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LinkProfile {
    /// Delay of both directions together.
    pub(crate) round_trip: Duration,
    /// Lost packets per thousand.
    pub(crate) loss_per_mille: u64,
}

/// Creates the devices `names`, and forwards packets between them for the lifetime
/// of the process.
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
        // A device that is down cannot be read.
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
        // A full queue drops the packet; the thread ends with the network.
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
