//! What an executor's handle, its processes and its files share.

use rendez_proto::profile::Profile;
use rendez_proto::rpc::session::{Environment, Extensions};
use rendez_rpc::{Caller, Channel};
use tokio::sync::OnceCell;

use crate::events::Events;
use crate::link::Link;

/// One stream with a session, and the websocket below.
pub(crate) struct Connection {
    pub(crate) caller: Caller<Channel>,
    pub(crate) events: Events,
    /// What the executor speaks beyond the stock dialect.
    pub(crate) extensions: Extensions,
    /// Asked for once, if the session did not bring it.
    pub(crate) environment: OnceCell<Environment>,
    pub(crate) profile: Profile,
    // After the caller: the socket goes last.
    pub(crate) link: Link,
}
