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
pub mod duplex;
pub mod endpoint;
pub mod message_stream;

mod driver;
mod shared_mux;

pub use caller::{CallError, Caller, NotificationHandler, PendingResponse};
pub use channel::Channel;
pub use driver::Driver;
pub use endpoint::{AuthorizationRequest, Endpoint, Incoming, OpenError};
pub use message_stream::{MessageStream, StreamClosed};
