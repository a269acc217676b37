//! Wire formats of Rendez: frames, tickets, registry and RPC types, limits.
