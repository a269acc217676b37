//! The pure endpoint: Noise handshakes, records, windows, framing, streams and their multiplexer.
