//! Converts whole messages to record plaintexts and back
//! (docs/codex-wire.md#messages-and-sequence-numbers).
//!
//! ```text
//! messages  = (length: u32 big-endian, 1 to 64 MiB) (bytes) ...
//! plaintext = up to 60 KiB of that byte stream, split and joined anywhere
//! ```
//!
//! Neither side trusts a length: a reader allocates as bytes arrive, and a
//! writer copies each byte once, into the buffer that is sealed.

use std::collections::VecDeque;

use bytes::{Buf as _, Bytes, BytesMut};
use rendez_proto::limits::APPLICATION_MESSAGE_MAX_BYTES;

use crate::window::Budget;

/// Unsent bytes of one stream before its writer is blocked: enough to fill a
/// window while the writer wakes up. One message is always accepted.
pub const SEND_QUEUE_BYTES: usize = 1024 * 1024;

/// Bytes of incomplete messages that all streams of one endpoint may hold, beyond
/// [`PARTIAL_MIN_BYTES`] each: two of the largest messages. Legitimate messages of that
/// size are rare, and complete within seconds.
pub const PARTIAL_MEMORY_BYTES: usize = 2 * APPLICATION_MESSAGE_MAX_BYTES;
/// Bytes of an incomplete message that are not charged to [`PARTIAL_MEMORY_BYTES`], so
/// that streams with large messages do not end those with ordinary ones.
pub const PARTIAL_MIN_BYTES: usize = 1024 * 1024;

const HEADER_BYTES: usize = 4;
/// The memory cost of a queued message beside its bytes.
const HANDLE_BYTES: usize = size_of::<Bytes>();

/// Messages that wait to be split into records.
#[derive(Debug, Default)]
pub struct SendQueue {
    queue: VecDeque<Bytes>,
    /// Bytes of the front message, its header included, that were taken.
    taken: usize,
    bytes: usize,
}

/// The length of a message is out of range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid message length {0}: must be 1 to {APPLICATION_MESSAGE_MAX_BYTES} bytes")]
pub struct InvalidLength(pub u64);

/// A plaintext could not be received. Nothing more can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    /// The peer broke the protocol.
    #[error(transparent)]
    InvalidLength(#[from] InvalidLength),
    /// The memory that streams share for incomplete messages is exhausted.
    #[error("the memory for incomplete messages is exhausted")]
    MemoryExhausted,
}

impl SendQueue {
    /// Whether another message may be queued: always when the queue is empty,
    /// otherwise while it holds less than [`SEND_QUEUE_BYTES`]. So at most that
    /// and one message are queued.
    pub fn has_room(&self) -> bool {
        self.bytes < SEND_QUEUE_BYTES
    }

    /// Whether a blocked writer should try again.
    pub fn is_drained(&self) -> bool {
        self.bytes < SEND_QUEUE_BYTES / 2
    }

    /// Whether the queue is empty.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Queued bytes, headers included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Queues a message. Check [`has_room`](Self::has_room) first.
    ///
    /// # Errors
    /// [`InvalidLength`] for an empty message or one above 64 MiB.
    pub fn push(&mut self, message: Bytes) -> Result<(), InvalidLength> {
        if message.is_empty() || message.len() > APPLICATION_MESSAGE_MAX_BYTES {
            return Err(InvalidLength(message.len() as u64));
        }
        self.bytes += HEADER_BYTES + message.len();
        self.queue.push_back(message);
        Ok(())
    }

    /// Appends up to `max` of the queued bytes to `plaintext`.
    pub fn take(&mut self, max: usize, plaintext: &mut BytesMut) {
        let mut room = max;
        while room > 0
            && let Some(message) = self.queue.front()
        {
            let before = room;
            let header = (message.len() as u32).to_be_bytes(); // checked by push
            let head = &header[self.taken.min(HEADER_BYTES)..];
            let head = &head[..head.len().min(room)];
            plaintext.extend_from_slice(head);
            room -= head.len();
            self.taken += head.len();
            let body = &message[self.taken.saturating_sub(HEADER_BYTES)..];
            let body = &body[..body.len().min(room)];
            plaintext.extend_from_slice(body);
            room -= body.len();
            self.taken += body.len();
            self.bytes -= before - room;
            if self.taken == HEADER_BYTES + message.len() {
                self.queue.pop_front();
                self.taken = 0;
            }
        }
    }
}

/// Reassembles messages from record plaintexts.
#[derive(Debug, Default)]
pub struct ReceiveQueue {
    partial: Partial,
    whole: VecDeque<Bytes>,
    bytes: usize,
}

#[derive(Debug)]
enum Partial {
    Header { bytes: [u8; HEADER_BYTES], have: usize },
    Body { len: usize, bytes: BytesMut, charge: Charge },
}

/// Bytes of a [`Budget`], released on drop.
#[derive(Debug)]
struct Charge {
    memory: Budget,
    bytes: usize,
}

impl Charge {
    fn new(memory: &Budget) -> Self {
        Self { memory: memory.clone(), bytes: 0 }
    }

    /// Charges what a message of `bytes` takes beyond [`PARTIAL_MIN_BYTES`].
    fn grow_to(&mut self, bytes: usize) -> Result<(), ReceiveError> {
        let more = bytes.saturating_sub(PARTIAL_MIN_BYTES + self.bytes);
        if !self.memory.try_acquire(more) {
            return Err(ReceiveError::MemoryExhausted);
        }
        self.bytes += more;
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.memory.release(self.bytes);
    }
}

impl Default for Partial {
    fn default() -> Self {
        Partial::Header { bytes: [0; HEADER_BYTES], have: 0 }
    }
}

impl ReceiveQueue {
    /// Takes the next plaintext in order. A message that lies within it becomes
    /// a slice without a copy; others are charged to `memory` until they are whole.
    ///
    /// # Errors
    /// [`ReceiveError`]: nothing more can be read.
    pub fn push(&mut self, mut plaintext: Bytes, memory: &Budget) -> Result<(), ReceiveError> {
        while !plaintext.is_empty() {
            match &mut self.partial {
                Partial::Header { bytes, have } => {
                    let take = plaintext.len().min(HEADER_BYTES - *have);
                    plaintext.copy_to_slice(&mut bytes[*have..*have + take]);
                    *have += take;
                    if *have < HEADER_BYTES {
                        return Ok(());
                    }
                    let len = u32::from_be_bytes(*bytes) as usize;
                    if len == 0 || len > APPLICATION_MESSAGE_MAX_BYTES {
                        return Err(InvalidLength(len as u64).into());
                    }
                    self.partial = if plaintext.len() >= len {
                        let message = plaintext.split_to(len);
                        self.finish(message);
                        Partial::default()
                    } else {
                        Partial::Body { len, bytes: BytesMut::new(), charge: Charge::new(memory) }
                    };
                }
                Partial::Body { len, bytes, charge } => {
                    let take = plaintext.len().min(*len - bytes.len());
                    charge.grow_to(bytes.len() + take)?;
                    bytes.extend_from_slice(&plaintext.split_to(take));
                    if bytes.len() == *len {
                        let message = std::mem::take(bytes).freeze();
                        self.partial = Partial::default();
                        self.finish(message);
                    }
                }
            }
        }
        Ok(())
    }

    /// Returns the next whole message.
    pub fn pop(&mut self) -> Option<Bytes> {
        let message = self.whole.pop_front()?;
        self.bytes -= message.len() + HANDLE_BYTES;
        Some(message)
    }

    /// Takes the whole messages and drops an incomplete one.
    pub fn take_whole(&mut self) -> Self {
        self.partial = Partial::default();
        std::mem::take(self)
    }

    /// Whether no whole message is queued.
    pub fn is_empty(&self) -> bool {
        self.whole.is_empty()
    }

    /// The memory cost of the queued whole messages: their bytes, and a handle
    /// for each, which costs more than a small message.
    pub fn unread_bytes(&self) -> usize {
        self.bytes
    }

    fn finish(&mut self, message: Bytes) {
        self.bytes += message.len() + HANDLE_BYTES;
        self.whole.push_back(message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn messages_survive_any_record_boundaries(
            messages in proptest::collection::vec(
                proptest::collection::vec(any::<u8>(), 1..300), 0..20),
            cuts in proptest::collection::vec(0usize..200, 1..50),
        ) {
            let mut send_queue = SendQueue::default();
            for message in &messages {
                send_queue.push(message.clone().into()).unwrap();
            }
            let total: usize = messages.iter().map(|m| m.len() + 4).sum();
            prop_assert_eq!(send_queue.bytes(), total);
            let (mut receive_queue, memory) = (ReceiveQueue::default(), Budget::new(0));
            let (mut got, mut wire) = (Vec::new(), Vec::new());
            // a cut of 0 gives an empty record, which is allowed
            for max in cuts.iter().copied().chain(std::iter::repeat_n(97, total / 97 + 1)) {
                let mut plaintext = BytesMut::new();
                send_queue.take(max, &mut plaintext);
                prop_assert!(plaintext.len() <= max);
                wire.extend_from_slice(&plaintext);
                receive_queue.push(plaintext.freeze(), &memory).unwrap();
                prop_assert_eq!(send_queue.bytes(), total - wire.len());
                if max % 2 == 0 {
                    got.extend(std::iter::from_fn(|| receive_queue.pop()));
                }
            }
            got.extend(std::iter::from_fn(|| receive_queue.pop()));
            prop_assert!(send_queue.is_empty());
            prop_assert_eq!(receive_queue.unread_bytes(), 0);
            let naive: Vec<u8> = messages.iter()
                .flat_map(|m| [&(m.len() as u32).to_be_bytes(), m.as_slice()].concat())
                .collect();
            prop_assert_eq!(wire, naive);
            prop_assert_eq!(got, messages.into_iter().map(Bytes::from).collect::<Vec<_>>());
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            records in proptest::collection::vec(
                proptest::collection::vec(any::<u8>(), 0..50), 0..20),
        ) {
            let mut receive_queue = ReceiveQueue::default();
            for record in records {
                if receive_queue.push(record.into(), &Budget::new(0)).is_err() {
                    break;
                }
            }
        }
    }

    #[test]
    fn lengths_out_of_range_are_refused() {
        let mut send_queue = SendQueue::default();
        assert_eq!(send_queue.push(Bytes::new()), Err(InvalidLength(0)));
        let huge = Bytes::from(vec![0; APPLICATION_MESSAGE_MAX_BYTES + 1]);
        assert!(send_queue.push(huge.clone()).is_err());
        assert!(send_queue.push(huge.slice(1..)).is_ok());
        for bad in [0, APPLICATION_MESSAGE_MAX_BYTES as u32 + 1, u32::MAX] {
            let header = Bytes::copy_from_slice(&bad.to_be_bytes());
            let received = ReceiveQueue::default().push(header, &Budget::new(0));
            assert_eq!(received, Err(InvalidLength(bad.into()).into()));
        }
    }

    #[test]
    fn empty_send_queue_accepts_any_message_size() {
        let mut send_queue = SendQueue::default();
        assert!(send_queue.has_room());
        send_queue.push(Bytes::from(vec![0; 2 * SEND_QUEUE_BYTES])).unwrap();
        assert!(!send_queue.has_room());
        send_queue.take(SEND_QUEUE_BYTES + 5, &mut BytesMut::new());
        assert!(send_queue.has_room() && !send_queue.is_drained());
    }

    #[test]
    fn small_messages_are_charged_for_their_handles() {
        let mut receive_queue = ReceiveQueue::default();
        receive_queue.push(Bytes::from([0, 0, 0, 1, 7].repeat(1000)), &Budget::new(0)).unwrap();
        assert_eq!(receive_queue.unread_bytes(), 1000 * (1 + HANDLE_BYTES));
        while receive_queue.pop().is_some() {}
        assert_eq!(receive_queue.unread_bytes(), 0);
    }

    /// The first `bytes` of a message of `len` bytes.
    fn beginning(len: usize, bytes: usize) -> Bytes {
        [&(len as u32).to_be_bytes()[..], &vec![7; bytes]].concat().into()
    }

    #[test]
    fn incomplete_messages_share_a_budget() {
        let memory = Budget::new(100);
        let mut queues = std::array::from_fn::<_, 3, _>(|_| ReceiveQueue::default());
        let len = PARTIAL_MIN_BYTES + 200;
        // What every queue may hold is not charged.
        for queue in &mut queues {
            queue.push(beginning(len, PARTIAL_MIN_BYTES), &memory).unwrap();
        }
        assert_eq!(memory.free(), 100);
        let [first, second, third] = &mut queues;
        first.push(Bytes::from(vec![7; 60]), &memory).unwrap();
        second.push(Bytes::from(vec![7; 40]), &memory).unwrap();
        assert_eq!(memory.free(), 0);
        let exceeding = third.push(Bytes::from_static(&[7]), &memory);
        assert_eq!(exceeding, Err(ReceiveError::MemoryExhausted));
        // A dropped message returns its bytes, and so does one that is whole.
        assert!(second.take_whole().is_empty());
        assert_eq!(memory.free(), 40);
        first.push(Bytes::from(vec![7; 40]), &memory).unwrap();
        assert_eq!(memory.free(), 0);
        assert_eq!(
            first.push(Bytes::from(vec![7; 100]), &memory),
            Err(ReceiveError::MemoryExhausted)
        );
        drop(queues);
        assert_eq!(memory.free(), 100);
        let mut queue = ReceiveQueue::default();
        for byte in beginning(PARTIAL_MIN_BYTES + 100, PARTIAL_MIN_BYTES + 100).chunks(1000) {
            queue.push(Bytes::copy_from_slice(byte), &memory).unwrap();
        }
        assert_eq!(memory.free(), 100);
        assert_eq!(queue.pop().unwrap().len(), PARTIAL_MIN_BYTES + 100);
    }

    #[test]
    fn message_within_a_record_is_not_copied() {
        let mut send_queue = SendQueue::default();
        send_queue.push(Bytes::from_static(b"abc")).unwrap();
        let mut plaintext = BytesMut::new();
        send_queue.take(100, &mut plaintext);
        let plaintext = plaintext.freeze();
        let mut receive_queue = ReceiveQueue::default();
        receive_queue.push(plaintext.clone(), &Budget::new(0)).unwrap();
        assert_eq!(receive_queue.pop().unwrap().as_ptr(), plaintext[4..].as_ptr());
    }
}
