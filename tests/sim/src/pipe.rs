//! A websocket: two reliable, ordered pipes of messages with latency,
//! bandwidth and a bounded buffer, that can stall, break or be closed.

use std::collections::VecDeque;

use bytes::Bytes;
use rendez_relay_core::PortKey;

use crate::plan::{NodeId, Path};
use crate::{Micros, SEC};

/// One end of a websocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Endpoint,
    Relay,
}

/// A message in a pipe.
#[derive(Debug, Clone)]
pub(crate) enum Packet {
    Frame { wire: Bytes, origin: Origin },
    Close { code: u16 },
}

/// The origin of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// An endpoint or the hub made it, and it is unchanged.
    Genuine,
    /// The hostile relay changed or invented it.
    Hostile {
        /// Whether it differs from a frame of a reliable stream that was open
        /// at its receiver, so that it must be refused and counted.
        counts: bool,
        /// Whether it claims that a peer has forgotten the stream: the only forgery
        /// that may end a stream.
        denies: bool,
    },
}

/// A websocket with both its ends.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) node: NodeId,
    pub(crate) port: PortKey,
    /// Whether the ends still hold it.
    pub(crate) endpoint_open: bool,
    pub(crate) relay_open: bool,
    /// Nothing arrives any more, at either end.
    pub(crate) broken: bool,
    pub(crate) stalled_until: Micros,
    /// To the relay.
    pub(crate) up: Pipe,
    /// To the endpoint.
    pub(crate) down: Pipe,
}

/// One direction.
#[derive(Debug)]
pub(crate) struct Pipe {
    path: Path,
    queue: VecDeque<(Micros, Packet)>,
    bytes: usize,
    busy_until: Micros,
}

impl Socket {
    pub(crate) fn new(node: NodeId, port: PortKey, path: Path) -> Self {
        Self {
            node,
            port,
            endpoint_open: false,
            relay_open: true,
            broken: false,
            stalled_until: 0,
            up: Pipe::new(path),
            down: Pipe::new(path),
        }
    }

    /// The next message that has arrived at one end.
    pub(crate) fn receive(&mut self, to: Side, now: Micros) -> Option<Packet> {
        if self.broken || now < self.stalled_until {
            return None;
        }
        match to {
            Side::Endpoint => self.down.pop(now),
            Side::Relay => self.up.pop(now),
        }
    }

    /// Whether the path carries both ways now.
    pub(crate) fn is_well(&self, now: Micros) -> bool {
        self.endpoint_open && self.relay_open && !self.broken && now >= self.stalled_until
    }
}

impl Pipe {
    fn new(path: Path) -> Self {
        Self { path, queue: VecDeque::new(), bytes: 0, busy_until: 0 }
    }

    /// Whether a sender may hand over another message.
    pub(crate) fn has_room(&self) -> bool {
        self.bytes < self.path.buffer
    }

    /// Takes a message; returns when it arrives.
    pub(crate) fn push(&mut self, packet: Packet, now: Micros) -> Micros {
        let len = match &packet {
            Packet::Frame { wire, .. } => wire.len(),
            Packet::Close { .. } => 0,
        };
        self.bytes += len;
        let takes = len as u64 * SEC / self.path.bytes_per_second;
        self.busy_until = self.busy_until.max(now) + takes;
        let at = self.busy_until + self.path.latency;
        self.queue.push_back((at, packet));
        at
    }

    fn pop(&mut self, now: Micros) -> Option<Packet> {
        if self.queue.front().is_none_or(|(at, _)| *at > now) {
            return None;
        }
        let (_, packet) = self.queue.pop_front()?;
        if let Packet::Frame { wire, .. } = &packet {
            self.bytes -= wire.len();
        }
        Some(packet)
    }

    pub(crate) fn clear(&mut self) {
        self.queue.clear();
        self.bytes = 0;
    }
}
