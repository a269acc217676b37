//! Frames, and damage to them, from the fuzzer's bytes.

use arbitrary::{Arbitrary, Result, Unstructured};
use bytes::Bytes;
use rendez_proto::frame::{Ack, Body, Frame, Proof, ResetReason};
use rendez_proto::ids::{Seq, StreamId};
use rendez_proto::peek::Kind;
use rendez_proto::profile::Profile;

/// Bytes to overwrite. Positions are taken modulo the length.
#[derive(Debug, Clone, Arbitrary)]
pub(crate) struct Patch {
    at: u16,
    xor: u8,
}

/// Applies patches. Empty bytes stay empty.
pub(crate) fn patched(bytes: &[u8], patches: &[Patch]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for patch in patches {
        if !bytes.is_empty() {
            let at = usize::from(patch.at) % bytes.len();
            bytes[at] ^= patch.xor;
        }
    }
    bytes
}

/// The kind that a relay must report.
pub(crate) fn kind(body: &Body) -> Kind {
    match body {
        Body::Data { .. } => Kind::Data,
        Body::Ack => Kind::Ack,
        Body::Resume { .. } => Kind::Resume,
        Body::Reset { .. } => Kind::Reset,
        Body::Heartbeat => Kind::Heartbeat,
        Body::Handshake { .. } => Kind::Handshake,
    }
}

/// Any frame of this stream that an endpoint could encode.
pub(crate) fn frame(u: &mut Unstructured<'_>, stream: StreamId) -> Result<Frame> {
    let not_empty = |u: &mut Unstructured<'_>| -> Result<Bytes> {
        let mut bytes: Vec<u8> = u.arbitrary()?;
        if bytes.is_empty() {
            bytes.push(0);
        }
        Ok(bytes.into())
    };
    let body = match u.int_in_range(0..=6)? {
        0 => Body::Ack,
        1 => Body::Data { seq: Seq(number(u)?), record: not_empty(u)? },
        2 => Body::Resume { next_seq: number(u)? },
        3 => Body::Reset { reason: u.choose(&ResetReason::ALL)?.as_str().to_owned() },
        4 => Body::Reset { reason: format!("{}x", u.arbitrary::<&str>()?) },
        5 => Body::Heartbeat,
        _ => {
            let profile = match u.int_in_range(0..=4)? {
                0 => String::new(),
                1 => u.arbitrary()?,
                _ => u.choose(&Profile::ALL)?.name().to_owned(),
            };
            Body::Handshake { message: not_empty(u)?, profile }
        }
    };
    let proof = match u.arbitrary()? {
        true => Some(Proof {
            counter: u64::from(number(u)?) << u.choose(&[0, 31])?,
            tag: u.arbitrary()?,
        }),
        false => None,
    };
    let ack = Ack { up_to: number(u)?, bits: number(u)? };
    Ok(Frame { stream, ack, credit: number(u)?, body, proof })
}

/// A protocol number: mostly a small one, in the range of the windows.
fn number(u: &mut Unstructured<'_>) -> Result<u32> {
    Ok(match u.arbitrary::<u8>()? {
        small @ 0..=239 => u32::from(small),
        240..=247 => u32::MAX - u.int_in_range(0..=3)?,
        _ => u.arbitrary()?,
    })
}
