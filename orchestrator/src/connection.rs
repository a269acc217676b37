//! What an executor's handle, its processes and its files share.

use rendez_proto::profile::Profile;
use rendez_proto::rpc::session::{Environment, Extensions};
use tokio::sync::OnceCell;

use crate::events::Events;
use crate::session::Session;

/// One session.
pub(crate) struct Connection {
    pub(crate) session: Session,
    pub(crate) events: Events,
    /// What the executor speaks beyond the stock dialect.
    pub(crate) extensions: Extensions,
    /// Asked for once, if the session did not bring it.
    pub(crate) environment: OnceCell<Environment>,
    pub(crate) profile: Profile,
}
