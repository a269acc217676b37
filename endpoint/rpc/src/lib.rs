//! Calls and notifications over an endpoint's streams.
//!
//! ```text
//! caller · services          whole messages, typed calls
//!      │
//!   channel                  one open stream: recv, send, close
//!      │
//!   endpoint                 the Mux behind a mutex, and who to wake
//!      │
//!   rendez-transport's pump  one websocket
//! ```

pub mod caller;
pub mod channel;
pub mod endpoint;
pub mod memory;
pub mod messages;

pub use caller::{Answer, CallError, Caller, Notified};
pub use channel::Channel;
pub use endpoint::{AuthorizationRequest, Driver, Endpoint, Incoming, OpenError};
pub use messages::{Messages, StreamClosed};
