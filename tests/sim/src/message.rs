//! The messages of the applications. They are numbered, and their bytes follow
//! from their number, so that a wrong byte is noticed.

use bytes::{BufMut as _, Bytes, BytesMut};

/// Bytes before the body.
const HEADER: usize = 13;

/// The kind of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The first one: resume a session, or start one (session 0). The
    /// number is that of the last output that arrived.
    Hello = 1,
    /// The session; 0 if it is not known.
    Welcome,
    /// A request, to be executed once. The plan determines the size of its body.
    Request,
    /// The request was executed.
    Answer,
    /// Output of the process.
    Output,
    /// The orchestrator has received everything.
    Complete,
    /// Sent after that, before the executor closes.
    Trailer,
}

/// A message without its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) conversation: u32,
    pub(crate) number: u32,
    /// Made by the executor.
    pub(crate) session: u32,
}

impl Header {
    /// The message with a body of so many bytes.
    pub(crate) fn with_body(self, len: u32) -> Bytes {
        let len = len as usize;
        let mut bytes = BytesMut::with_capacity(HEADER + len);
        bytes.put_u8(self.kind as u8);
        bytes.put_u32(self.conversation);
        bytes.put_u32(self.number);
        bytes.put_u32(self.session);
        let mut word = (u64::from(self.conversation) << 40)
            ^ (u64::from(self.number) << 8)
            ^ self.kind as u64
            ^ 0x9e37_79b9_7f4a_7c15;
        while bytes.len() < HEADER + len {
            word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let chunk = word.to_le_bytes();
            let room = (HEADER + len - bytes.len()).min(8);
            bytes.put_slice(&chunk[..room]);
        }
        bytes.freeze()
    }

    /// Parses a message; the reference compares it with the expected one.
    pub(crate) fn parse(message: &Bytes) -> Option<Self> {
        let number = |at: usize| {
            message.get(at..at + 4).and_then(|four| four.try_into().ok()).map(u32::from_be_bytes)
        };
        const KINDS: [Kind; 7] = [
            Kind::Hello,
            Kind::Welcome,
            Kind::Request,
            Kind::Answer,
            Kind::Output,
            Kind::Complete,
            Kind::Trailer,
        ];
        let kind = KINDS.into_iter().find(|kind| message.first() == Some(&(*kind as u8)))?;
        Some(Self { kind, conversation: number(1)?, number: number(5)?, session: number(9)? })
    }
}
