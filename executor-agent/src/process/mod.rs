//! Processes: what runs, what it wrote, what reaches it (WIRE.md, section 6.2).
//!
//! ```text
//! supervisor   start, write, signal, read
//!   table      the session's processes by name
//!   child      one task per child: outputs into the log, its end
//!     env, lookup   what it gets and which program it is
//!   handle     one process for everybody else; who is told of news
//!     log      the numbered events (pure)
//!       retention   how much all logs keep together
//!     stdin    ordered, repeatable writes
//!       allowance   how much of them may wait together
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

/// What the processes of all sessions of an executor share.
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
