//! Two directly connected endpoints: one test per rule of the wire contract and
//! of our own profiles.

mod codex;
mod handshakes;
mod pair;
mod partial_messages;
mod reliable;
