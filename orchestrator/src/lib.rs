//! The orchestrator: connects to executors by environment id, runs processes there
//! and accesses files.
//!
//! ```no_run
//! use rendez_orchestrator::{Client, Command};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::new("http://127.0.0.1:7700", "rdz_o_...".to_owned().into())?;
//! let environment = client.connect(&"dev".parse()?).await?;
//! let output = environment.spawn(Command::new("uname").arg("-a")).await?.output().await?;
//! println!("{} {}", output.exit_code, String::from_utf8_lossy(&output.stdout));
//! environment.files().write("/tmp/greeting", b"hello").await?;
//! environment.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! * A [`Client`] holds the relay's URL, a token and a key. [`Client::connect`]
//!   returns an [`Environment`].
//! * An [`Environment`] is an encrypted connection to the executor that serves the
//!   environment. If the connection is lost, it reconnects by itself within its
//!   grace period ([`Client::with_grace`]). [`Environment::connection_state`] shows
//!   this.
//! * [`Environment::spawn`] starts a [`Command`] and returns a [`Process`]. Its
//!   events, which are output and the exit code, arrive in one ordered sequence.
//! * [`Environment::files`] returns the file operations.
//!
//! # No command runs twice
//!
//! If the connection is lost during a call, the call fails and its outcome is
//! unknown: see [`ProcessError::Lost`] and [`FileError::Lost`]. The library does not
//! repeat it. Standard input is the exception: its writes carry ids, and an executor
//! applies each id once, so unacknowledged writes are sent again.
//!
//! # Read every process that you keep
//!
//! All processes and calls of an [`Environment`] share one stream, in which replies
//! come behind earlier output. Unread output is held back, not discarded: up to 64
//! events of a process wait in this library (4 MiB at most). Beyond that the stream
//! waits, and with it *every* reply and every other process of the environment. So
//! a task waits forever if it awaits a call or a process while it holds another
//! [`Process`] with more unread output than that:
//!
//! ```no_run
//! # use rendez_orchestrator::{Command, Environment};
//! # async fn example(environment: Environment) -> Result<(), Box<dyn std::error::Error>> {
//! let one = environment.spawn(Command::new("make").arg("one")).await?;
//! let two = environment.spawn(Command::new("make").arg("two")).await?;
//! // two.output().await?, then one.output().await?: may wait forever
//! let (one, two) = tokio::join!(one.output(), two.output());
//! # let _ = (one?, two?);
//! # Ok(())
//! # }
//! ```
//!
//! Read each process in its own task, or concurrently with everything else that
//! the task awaits. Drop a process whose output you do not need: this discards its
//! output, and the process continues to run. Use a separate connection for work
//! that must not wait for other work: two results of [`Client::connect`] do not
//! wait for each other.
//!
//! # Modules
//!
//! | module | content |
//! | --- | --- |
//! | [`client`] | the entry point |
//! | [`environment`], `session` | a connected environment, and its session at the executor |
//! | `connector`, `relay_endpoint`, [`reconnect`] | open a connection and re-establish it |
//! | [`command`], [`process`], [`stdin`] | processes, shaped like `tokio::process` |
//! | `event_dispatcher`, `event_sequencer` | deliver the events of processes in order |
//! | [`files`] | files, shaped like `tokio::fs` |
//! | [`error`] | errors, by the party at fault |

pub mod client;
pub mod command;
mod connector;
pub mod environment;
pub mod error;
mod event_dispatcher;
mod event_sequencer;
pub mod files;
pub mod process;
mod random;
pub mod reconnect;
mod relay_endpoint;
mod session;
pub mod stdin;

pub use client::Client;
pub use command::Command;
pub use environment::{Environment, Timings};
pub use error::{ConnectError, FileError, ProcessError};
pub use files::Files;
pub use process::{Control, Output, Process, ProcessEvent};
pub use reconnect::ConnectionState;
pub use rendez_endpoint::Grace;
pub use rendez_proto::ids::EnvironmentId;
pub use rendez_registry_client::RegistryError;
pub use secrecy::SecretString;
pub use stdin::{STDIN_WRITE_MAX_BYTES, Stdin};
