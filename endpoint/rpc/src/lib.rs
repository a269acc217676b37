//! Calls and notifications over an endpoint's streams.
//!
//! ```text
//! caller · services          whole messages, typed calls
//!      │
//!   channel                  one open stream: recv, send, close
//!      │
//!   shared_mux               the Mux behind a mutex, and the tasks to wake
//!      │
//!   rendez-transport's pump  one websocket
//! ```

pub mod caller;
pub mod channel;
pub mod endpoint;
pub mod memory;
pub mod messages;

mod driver;
mod shared_mux;

pub use caller::{Answer, CallError, Caller, Notified};
pub use channel::Channel;
pub use driver::Driver;
pub use endpoint::{AuthorizationRequest, Endpoint, Incoming, OpenError};
pub use messages::{Messages, StreamClosed};
