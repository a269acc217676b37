//! The table of streams. [`Mux::with`] makes every change to a stream and
//! applies its consequences: events, round-robin queues, timers, and removal.

use std::time::Instant;

use bytes::Bytes;

use super::Mux;
use crate::config::{Event, Key};
use crate::error::{Closed, Misbehaviour};
use crate::stats::Stats;
use crate::stream::{Stream, StreamConfig, StreamEnd};

/// Frames without a live stream (mostly resets) that wait for the socket. More
/// are dropped: their peers ask again or time out.
const CONTROL_QUEUE_FRAMES: usize = 256;

#[derive(Debug)]
pub(super) struct StreamEntry {
    pub(super) generation: u32,
    pub(super) stream: Stream,
    in_control: bool,
    in_records: bool,
    /// Never later than the stream's own deadline. An early timer costs one
    /// more check, and saves moving the timer with every record.
    pub(super) timer: Option<Instant>,
    backpressured: bool,
    probing: bool,
    /// The application has seen the last event; the stream remains to repeat
    /// its end to the peer.
    reported: bool,
}

impl Mux {
    pub(super) fn poll_control(&mut self, now: Instant) -> Option<Bytes> {
        while let Some(slot) = self.control.pop_front() {
            self.streams[slot].in_control = false;
            let mut wire = None;
            self.with(now, slot, |stream, _, now| {
                wire = stream.poll_control(now)?;
                Ok(())
            });
            if wire.is_some() {
                return wire;
            }
        }
        None
    }

    pub(super) fn poll_record(&mut self, now: Instant, max_bytes: usize) -> Option<Bytes> {
        while let Some(slot) = self.records.pop_front() {
            self.streams[slot].in_records = false;
            let mut scratch = std::mem::take(&mut self.scratch);
            let mut wire = None;
            self.with(now, slot, |stream, stats, now| {
                wire = stream.poll_record(now, max_bytes, &mut scratch, stats)?;
                Ok(())
            });
            self.scratch = scratch;
            if wire.is_some() {
                return wire;
            }
        }
        None
    }

    /// Queues a frame that belongs to no live stream.
    pub(super) fn queue(&mut self, wire: Bytes) {
        if self.stateless_frames.len() < CONTROL_QUEUE_FRAMES {
            self.stateless_frames.push_back(wire);
        } else {
            self.stats.control_dropped += 1;
        }
    }

    /// Changes one stream and applies every consequence.
    pub(super) fn with(
        &mut self,
        now: Instant,
        slot: usize,
        change: impl FnOnce(&mut Stream, &mut Stats, Instant) -> Result<(), StreamEnd>,
    ) {
        self.with_config(now, slot, |stream, _, stats, now| change(stream, stats, now));
    }

    /// Like [`with`](Self::with), with the configuration that all
    /// streams share.
    pub(super) fn with_config(
        &mut self,
        now: Instant,
        slot: usize,
        change: impl FnOnce(&mut Stream, &StreamConfig, &mut Stats, Instant) -> Result<(), StreamEnd>,
    ) {
        let Some(entry) = self.streams.get_mut(slot) else { return };
        if let Err(end) = change(&mut entry.stream, &self.stream_config, &mut self.stats, now) {
            self.end(now, slot, end);
        } else if entry.stream.is_finished() && !entry.reported {
            entry.reported = true;
            self.report(slot, Closed::Finished);
        }
        self.refresh(slot);
        self.release_if_drained(slot);
    }

    pub(super) fn end(&mut self, now: Instant, slot: usize, end: StreamEnd) {
        let key = self.key(slot);
        let stream = &mut self.streams[slot].stream;
        if stream.is_authorizing() && end.why == Closed::PeerMisbehaved(Misbehaviour::EarlyData) {
            self.stats.handshake_failures += 1;
            self.handshake_limiter.record_failure(now);
        }
        let (wire, writer_waits) = stream.end(end);
        let reads_on = stream.drained().is_none();
        let (id, reported) = (stream.id.clone(), self.streams[slot].reported);
        if self.index.get(&id) == Some(&slot) {
            self.index.remove(&id);
        }
        if let Some(wire) = wire
            && self.socket
        {
            self.queue(wire);
        }
        if writer_waits && !reported {
            self.events.push_back(Event::Writable { key });
        }
        if reads_on && !reported {
            self.events.push_back(Event::Ended { key });
        }
    }

    /// Emits the events that a stream has, and updates its timer and queues.
    pub(super) fn refresh(&mut self, slot: usize) {
        let key = self.key(slot);
        let entry = &mut self.streams[slot];
        if !entry.reported && entry.stream.take_readable() {
            self.events.push_back(Event::Readable { key });
        }
        if !entry.reported && entry.stream.take_writable() {
            self.events.push_back(Event::Writable { key });
        }
        if let Some(at) = entry.stream.poll_timeout()
            && entry.timer.is_none_or(|timer| at < timer)
        {
            if let Some(timer) = entry.timer.replace(at) {
                self.timers.remove(&(timer, slot));
            }
            self.timers.insert((at, slot));
        }
        self.schedule(slot);
    }

    /// Adds a stream to the queues it has frames for, and updates the ping
    /// request and the backpressure count.
    pub(super) fn schedule(&mut self, slot: usize) {
        let entry = &mut self.streams[slot];
        if !entry.in_control && entry.stream.wants_control() {
            entry.in_control = true;
            self.control.push_back(slot);
        }
        if !entry.in_records && entry.stream.wants_record() {
            entry.in_records = true;
            self.records.push_back(slot);
        }
        let probing = entry.stream.is_probing();
        if probing && !std::mem::replace(&mut entry.probing, probing) {
            self.ping_wanted = true;
        }
        entry.probing = probing;
        let backpressured = entry.stream.needs_backpressure();
        if backpressured != std::mem::replace(&mut entry.backpressured, backpressured) {
            if backpressured {
                self.backpressured += 1;
            } else {
                self.backpressured -= 1;
            }
        }
    }

    pub(super) fn release_if_drained(&mut self, slot: usize) {
        if let Some(why) = self.streams.get(slot).and_then(|entry| entry.stream.drained()) {
            if !self.streams[slot].reported {
                self.report(slot, why);
            }
            self.remove(slot);
        }
    }

    pub(super) fn report(&mut self, slot: usize, why: Closed) {
        let key = self.key(slot);
        self.stats.closed += 1;
        self.events.push_back(Event::Closed { key, why });
    }

    pub(super) fn insert(&mut self, stream: Stream) -> Key {
        self.generation = self.generation.wrapping_add(1);
        let id = stream.id.clone();
        let slot = self.streams.insert(StreamEntry {
            generation: self.generation,
            stream,
            in_control: false,
            in_records: false,
            timer: None,
            backpressured: false,
            probing: false,
            reported: false,
        });
        self.index.insert(id, slot);
        self.refresh(slot);
        self.key(slot)
    }

    pub(super) fn remove(&mut self, slot: usize) {
        let entry = self.streams.remove(slot);
        if self.index.get(&entry.stream.id) == Some(&slot) {
            self.index.remove(&entry.stream.id);
        }
        if entry.in_control {
            self.control.retain(|other| *other != slot);
        }
        if entry.in_records {
            self.records.retain(|other| *other != slot);
        }
        if let Some(timer) = entry.timer {
            self.timers.remove(&(timer, slot));
        }
        debug_assert!(!entry.backpressured, "a stream that ended holds nothing back");
    }

    pub(super) fn indices(&self) -> Vec<usize> {
        self.streams.iter().map(|(slot, _)| slot).collect()
    }

    pub(super) fn key(&self, slot: usize) -> Key {
        Key { slot, generation: self.streams[slot].generation }
    }

    pub(super) fn find(&self, key: Key) -> Option<usize> {
        self.streams
            .get(key.slot)
            .is_some_and(|entry| entry.generation == key.generation && !entry.reported)
            .then_some(key.slot)
    }
}
