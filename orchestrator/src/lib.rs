//! Reach an executor by its environment id and work there.
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
//! | file | what it holds |
//! | --- | --- |
//! | `client` | the way in: registry, websocket, handshake, session |
//! | `relay_endpoint`, `connector`, `reconnect` | finds an executor; keeps the websocket to it up |
//! | `environment`, `session` | one connected executor |
//! | `command`, `process`, `stdin` | processes, shaped like `tokio::process` |
//! | `event_dispatcher`, `event_sequencer` | their events, in order |
//! | `files` | files, shaped like `tokio::fs` |
//! | `error` | who is at fault when it does not work |
//!
//! # Read every process that you keep
//!
//! All processes and calls of an [`Environment`] share one stream, in which answers
//! come behind output. Output that nobody reads is held back, not thrown away: up
//! to 64 pieces of a process wait here (4 MiB at most), then the stream waits, and
//! with it *every* answer and every other process of that executor. So a task that
//! awaits a call, or one process, while it holds another [`Process`] with more
//! output than that waits for ever:
//!
//! ```no_run
//! # use rendez_orchestrator::{Command, Environment};
//! # async fn example(environment: Environment) -> Result<(), Box<dyn std::error::Error>> {
//! let one = environment.spawn(Command::new("make").arg("one")).await?;
//! let two = environment.spawn(Command::new("make").arg("two")).await?;
//! // two.output().await?, then one.output().await?: may wait for ever
//! let (one, two) = tokio::join!(one.output(), two.output());
//! # let _ = (one?, two?);
//! # Ok(())
//! # }
//! ```
//!
//! Read processes in tasks of their own, or at the same time as what else is
//! awaited. A process whose output is of no interest is dropped, which throws its
//! output away and lets it run on. And what must not wait for anything else has a
//! connection of its own: two [`Client::connect`] do not wait for each other.
//!
//! Nothing is ever run twice: when a connection is lost with a call under way,
//! its outcome is reported as unknown.

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
