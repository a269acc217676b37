//! The relay: registry and rendezvous behind one listener.
