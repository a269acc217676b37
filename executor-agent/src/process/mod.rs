//! Processes: what runs, what it wrote, what reaches it (WIRE.md, section 6.2).
//!
//! ```text
//! supervisor   the session's names; start, write, signal, read
//!   child      one task per child: outputs into the log, its end
//!     env, lookup   what it gets and which program it is
//!   handle     one process for everybody else; who is told of news
//!     log      the numbered events (pure)
//!       retention   how much all logs keep together
//!     stdin    ordered, repeatable writes
//!       allowance   how much of them may wait together
//! ```

pub(crate) mod allowance;
mod child;
mod env;
mod handle;
pub(crate) mod log;
mod lookup;
pub(crate) mod retention;
mod stdin;
pub(crate) mod supervisor;
