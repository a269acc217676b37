//! [`ReceiveQueue`] and [`SendQueue`] against a naive reading of the whole byte
//! stream.

use arbitrary::{Arbitrary as _, Result, Unstructured};
use bytes::{Bytes, BytesMut};
use rendez_endpoint::framing::{ReceiveQueue, SendQueue};
use rendez_endpoint::window::Budget;
use rendez_proto::limits::APPLICATION_MESSAGE_MAX_BYTES;

/// Passes messages through both queues, or hostile bytes into the receive
/// queue.
pub fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let _ = match bool::arbitrary(&mut u) {
        Ok(true) => messages(&mut u),
        _ => hostile(&mut u),
    };
}

/// Queues, splits, reassembles and reads messages in any interleaving.
fn messages(u: &mut Unstructured<'_>) -> Result<()> {
    let (mut send_queue, mut receive_queue) = (SendQueue::default(), ReceiveQueue::default());
    let (mut sent, mut got, mut wire) = (Vec::<Bytes>::new(), Vec::new(), Vec::new());
    let memory = Budget::new(0);
    let mut queued = 0;
    while !u.is_empty() {
        match u.int_in_range(0..=3)? {
            0 | 1 => {
                let len = if u.ratio(1, 16)? {
                    u.int_in_range(0..=70_000)?
                } else {
                    u.arbitrary::<u8>()?.into()
                };
                let message = Bytes::from(vec![sent.len() as u8; len]);
                assert_eq!(
                    send_queue.push(message.clone()).is_err(),
                    len == 0,
                    "only empty ones are refused"
                );
                if len > 0 {
                    queued += 4 + len;
                    sent.push(message);
                }
            }
            2 => {
                let max = if u.ratio(1, 4)? { 61_440 } else { u.arbitrary::<u8>()?.into() };
                let mut plaintext = BytesMut::new();
                send_queue.take(max, &mut plaintext);
                assert_eq!(plaintext.len(), max.min(queued), "a record is as full as it can be");
                queued -= plaintext.len();
                wire.extend_from_slice(&plaintext);
                assert_eq!(
                    receive_queue.push(plaintext.freeze(), &memory),
                    Ok(()),
                    "our own framing is refused"
                );
            }
            _ => got.extend(receive_queue.pop()),
        }
        assert_eq!((send_queue.bytes(), send_queue.is_empty()), (queued, queued == 0));
    }
    let mut rest = BytesMut::new();
    send_queue.take(queued, &mut rest);
    wire.extend_from_slice(&rest);
    assert_eq!(receive_queue.push(rest.freeze(), &memory), Ok(()));
    got.extend(std::iter::from_fn(|| receive_queue.pop()));
    assert_eq!(got, sent, "messages changed on the way");
    assert_eq!((receive_queue.unread_bytes(), send_queue.bytes()), (0, 0));
    assert_eq!(naive(&wire), (sent, false), "the wire is not the messages one after the other");
    Ok(())
}

/// Any bytes, split anywhere.
fn hostile(u: &mut Unstructured<'_>) -> Result<()> {
    let cuts: Vec<u8> = u.arbitrary()?;
    let wire = u.bytes(u.len())?;
    let (expected, breaks) = naive(wire);
    let (mut receive_queue, memory) = (ReceiveQueue::default(), Budget::new(0));
    let (mut rest, mut broke) = (wire, false);
    let mut cuts = cuts.into_iter();
    while !rest.is_empty() && !broke {
        let cut = cuts.next().map_or(rest.len(), |cut| rest.len().min(cut.into()));
        let (record, after) = rest.split_at(cut);
        broke = receive_queue.push(Bytes::copy_from_slice(record), &memory).is_err();
        rest = after;
    }
    assert_eq!(broke, breaks, "a length was judged otherwise");
    let unread: usize = expected.iter().map(|message| message.len() + size_of::<Bytes>()).sum();
    assert_eq!(
        (receive_queue.unread_bytes(), receive_queue.is_empty()),
        (unread, expected.is_empty())
    );
    let got: Vec<Bytes> = std::iter::from_fn(|| receive_queue.pop()).collect();
    assert_eq!(got, expected);
    Ok(())
}

/// The whole messages in `wire`, and whether an invalid length follows.
fn naive(mut wire: &[u8]) -> (Vec<Bytes>, bool) {
    let mut messages = Vec::new();
    while let Some((header, rest)) = wire.split_first_chunk::<4>() {
        let len = u32::from_be_bytes(*header) as usize;
        if len == 0 || len > APPLICATION_MESSAGE_MAX_BYTES {
            return (messages, true);
        }
        let Some((message, after)) = rest.split_at_checked(len) else { break };
        messages.push(Bytes::copy_from_slice(message));
        wire = after;
    }
    (messages, false)
}
