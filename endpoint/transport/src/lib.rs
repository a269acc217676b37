//! The one async loop that drives a pure protocol core over a websocket.
