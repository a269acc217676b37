//! Processes with their input, output and signals (docs/codex-wire.md#processes).
//!
//! ```text
//! supervisor       the calls of a session: start, write, signal, read
//!   table          the processes of a session by id
//!   child          starts a child; one task reads its output and awaits its exit
//!     env, path_search    its environment variables and its program
//!   process_handle        one process as the other modules see it
//!     output_log          its numbered events (pure)
//!       output_budget     bounds the output of all processes
//!     stdin               ordered writes, each applied once
//!       stdin_budget      bounds the queued input of all processes
//! ```

mod child;
mod env;
mod output_budget;
pub(crate) mod output_log;
mod path_search;
mod process_handle;
mod stdin;
mod stdin_budget;
pub(crate) mod supervisor;
pub(crate) mod table;

use std::sync::Arc;

use self::output_budget::OutputBudget;
use self::stdin_budget::StdinBudget;

/// Budgets and settings that the processes of all sessions share.
#[derive(Default)]
pub(crate) struct ProcessContext {
    output: Arc<OutputBudget>,
    stdin: Arc<StdinBudget>,
    withheld_variables: &'static [&'static str],
}

impl ProcessContext {
    /// A context whose processes never inherit `withheld_variables` from the
    /// environment of the executor.
    pub(crate) fn new(withheld_variables: &'static [&'static str]) -> Self {
        Self { withheld_variables, ..Self::default() }
    }
}
