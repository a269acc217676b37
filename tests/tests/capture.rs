//! The knowledge of a relay: a whole run through a real relay process, with a
//! recording of all traffic, its log at the most detailed level, its state directory
//! and its memory. None of them may contain application data or an endpoint's key,
//! or a token or ticket outside of the HTTP request that carries it.
//!
//! | | content | executor's key | signing key | tokens | tickets |
//! | --- | --- | --- | --- | --- | --- |
//! | websocket messages | no | no | no | no | no |
//! | logs | no | no | no | no | no |
//! | state directory | no | no | its own file | no | no |
//! | HTTP | no | no | no | by design | by design |
//! | memory | no | no | by design | by design | by design |
//!
//! Where "no" holds, the same search must find something else: an empty recording
//! fails.

#[path = "capture/memory.rs"]
mod memory;
#[path = "capture/recorder.rs"]
mod recorder;
#[path = "capture/search.rs"]
mod search;

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rendez_executor_agent::config::Auth;
use rendez_executor_agent::{Agent, AgentConfig, AgentState};
use rendez_orchestrator::{Client, Command, Environment, EnvironmentId, Grace, ProcessEvent};
use rendez_proto::ids::StreamId;
use rendez_proto::peek::peek;
use rendez_proto::profile::Profile;
use rendez_proto::registry::admin::{CreateToken, Role};
use rendez_registry::signer::SIGNING_KEY_FILE;
use rendez_registry::{Options, Registry};
use rendez_tests::process::{IsolatedCommand, Process, workspace_binary};
use rendez_tests::relay::{SHORT_TIMEOUT, TestRelay, Websocket, data_frame, key};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::recorder::{Recorder, Recording};
use crate::search::{Marker, Search};

const ENVIRONMENT: &str = "capture-dev";
/// All profiles of our orchestrator. Each has its own handshake or records.
const PROFILES: [Profile; 3] =
    [Profile::RendezHybridIkV1, Profile::RendezIkV1, Profile::NoiseHybridIkV1];
/// Bytes of a ticket's signature, which is unique.
const SIGNATURE_BYTES: usize = 64;
/// The output of a flood: enough that it is in progress while memory is read.
const FLOOD_BYTES: usize = 2 * 1024 * 1024;
/// Longest wait for a process to stop.
const STOP_MAX: Duration = Duration::from_secs(20);

// ---- the controls ----------------------------------------------------------

#[test]
fn marker_is_found_in_every_encoding() -> Result<()> {
    let marker = Marker::text("control");
    let search = Search::new([&marker]);
    let text = marker.as_text();
    let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    for form in [text.clone(), hex.to_uppercase(), hex] {
        ensure!(!search.find(format!("x{form}x").as_bytes()).is_empty(), "{form}");
    }
    for before in ["", "1", "12", "123"] {
        let around = format!("{before}{text}~~~");
        for base64 in [STANDARD.encode(&around), URL_SAFE_NO_PAD.encode(&around)] {
            ensure!(!search.find(base64.as_bytes()).is_empty(), "after {before:?}");
        }
    }
    ensure!(search.find(&marker.bytes()[1..]).is_empty(), "found without its first byte");
    ensure!(search.find(&[]).is_empty() && search.find(b"x").is_empty());
    Ok(())
}

/// Endpoints that do not encrypt are detected, although their bytes are masked on
/// the wire.
#[tokio::test]
async fn cleartext_is_found_on_the_wire() -> Result<()> {
    let relay = TestRelay::start().await?;
    let recorder = Recorder::start(relay.address().parse()?).await?;
    let through = |url: &str| url.replace(relay.address(), &recorder.address().to_string());
    let executors = relay.register(ENVIRONMENT).await?;
    let mut executor = Websocket::open(&through(executors.url.expose())).await?;
    let orchestrators = relay.connect(ENVIRONMENT, key(2)).await?;
    let mut orchestrator = Websocket::open(&through(orchestrators.url.expose())).await?;

    let (there, back) = (Marker::text("there"), Marker::text("back"));
    let stream = StreamId::from_random([1; 16]);
    orchestrator.send_binary(data_frame(&stream, 0, there.bytes())).await?;
    let frame = executor.receive().await?;
    executor.send_binary(data_frame(&stream, 0, back.bytes())).await?;
    orchestrator.receive().await?;

    let recording = recorder.recording();
    let search = Search::new([&there, &back]);
    let both = BTreeSet::from(["there".to_owned(), "back".to_owned()]);
    ensure!(find_in(&search, &recording.messages) == both);
    ensure!(search.find(&recording.websocket) == both, "the relay does not mask");
    ensure!(search.find(&recording.http).is_empty());
    ensure!(recording.messages.contains(&frame.to_vec()), "the payloads are not the messages");
    Ok(())
}

// ---- the run ---------------------------------------------------------------

#[tokio::test]
async fn relay_learns_no_content_or_endpoint_keys() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let directories = Directories::new(scratch.path())?;
    let tokens = Tokens::create(&directories.relay_state).await?;

    let relay = RelayProcess::start(&directories.relay_state).await?;
    let executor_leg = Recorder::start(relay.address).await?;
    let orchestrator_leg = Recorder::start(relay.address).await?;
    let agent = RunningAgent::start(&directories, &tokens.executor, executor_leg.address()).await?;

    let mut content = Vec::new();
    let mut connected = Vec::new();
    for profile in PROFILES {
        let url = format!("http://{}", orchestrator_leg.address());
        let token = tokens.orchestrator.clone().into();
        let client = Client::with_profiles(&url, token, vec![profile])?;
        let executor = client.connect(&ENVIRONMENT.parse()?).await?;
        ensure!(executor.profile() == profile, "{} was chosen", executor.profile());
        content.extend(work(&executor, &directories).await?);
        connected.push(executor);
    }
    // while all streams are open and busy
    let flood = Marker::text("flood");
    let mut floods = Vec::new();
    for executor in &connected {
        floods.push(Flood::start(executor, &flood).await?);
    }
    let id = relay.process.id().context("the relay runs")?;
    // in parallel with the floods: a stream that is not read would be reset
    let memory = tokio::task::spawn_blocking(move || memory::snapshot(id));
    for flood in floods {
        flood.end().await?;
    }
    let memory = memory.await??;
    content.push(flood);
    let state_during = files(&directories.relay_state)?;

    for executor in connected {
        executor.close().await;
    }
    agent.stop().await?;
    let log = relay.stop().await?;
    let state_after = files(&directories.relay_state)?;

    let legs = [executor_leg.recording(), orchestrator_leg.recording()];
    let secrets = Secrets::collect(content, &directories, &tokens, &legs)?;
    let streams = streams(&legs);
    ensure!(streams.len() == PROFILES.len(), "{} streams were recorded", streams.len());

    // websocket messages
    let all = Search::new(secrets.all());
    for (leg, recording) in ["executor's", "orchestrator's"].into_iter().zip(&legs) {
        nothing(&all, &recording.messages, &format!("the {leg} messages"))?;
        nothing(&all, [&recording.websocket], &format!("the {leg} bytes after the upgrade"))?;
        everything(&streams, &recording.messages, &format!("the {leg} messages"))?;
    }

    // logs
    nothing(&all, [&log], "the log")?;
    everything(&streams, [&log], "the log")?;
    ensure!(String::from_utf8_lossy(&log).contains("TRACE"), "the log has no traces");

    // the state directory without the signing key's own file
    for files in [&state_during, &state_after] {
        let others = files.iter().filter(|(name, _)| name != Path::new(SIGNING_KEY_FILE));
        nothing(&all, others.map(|(_, bytes)| bytes), "the state directory")?;
        let contents = || files.iter().map(|(_, bytes)| bytes);
        everything(&[Marker::new("environment", registered())], contents(), "the state")?;
        everything([&secrets.signing_key], contents(), "the state")?;
    }

    // HTTP
    for recording in &legs {
        nothing(&Search::new(secrets.never_sent()), [&recording.http], "HTTP")?;
    }
    let http = || legs.iter().map(|leg| &leg.http);
    everything(secrets.bearers(), http(), "HTTP")?;

    // memory
    nothing(&Search::new(secrets.of_endpoints()), &memory, "the relay's memory")?;
    everything(streams.iter().chain([&secrets.signing_key]), &memory, "the relay's memory")
}

/// Requires that a search finds nothing.
fn nothing<'a>(
    search: &Search,
    haystacks: impl IntoIterator<Item = &'a Vec<u8>>,
    place: &str,
) -> Result<()> {
    let found = find_in(search, haystacks);
    ensure!(found.is_empty(), "{place} contain(s) {found:?}");
    Ok(())
}

/// Requires that each marker is found.
fn everything<'a, 'b>(
    markers: impl IntoIterator<Item = &'a Marker>,
    haystacks: impl IntoIterator<Item = &'b Vec<u8>>,
    place: &str,
) -> Result<()> {
    let markers: Vec<&Marker> = markers.into_iter().collect();
    let wanted: BTreeSet<String> = markers.iter().map(|marker| marker.name().to_owned()).collect();
    ensure!(!wanted.is_empty(), "no markers to find in {place}");
    let found = find_in(&Search::new(markers), haystacks);
    ensure!(found == wanted, "{place} contain(s) only {found:?} of {wanted:?}");
    Ok(())
}

fn find_in<'a>(
    search: &Search,
    haystacks: impl IntoIterator<Item = &'a Vec<u8>>,
) -> BTreeSet<String> {
    haystacks.into_iter().flat_map(|bytes| search.find(bytes)).collect()
}

/// The directories of a run.
struct Directories {
    relay_state: PathBuf,
    agent_state: PathBuf,
    work: PathBuf,
}

impl Directories {
    fn new(root: &Path) -> Result<Self> {
        let work = root.join("work");
        fs::create_dir(&work)?;
        Ok(Self { relay_state: root.join("relay"), agent_state: root.join("agent"), work })
    }
}

/// Sends data in every possible way. Returns the markers that the relay must not
/// see, each of which has arrived at the other end.
async fn work(executor: &Environment, directories: &Directories) -> Result<Vec<Marker>> {
    let [argument, variable, stdin, output, error, file, name] =
        ["argument", "variable", "stdin", "output", "error", "file", "name"].map(Marker::text);
    // The command's output is not part of the command.
    fs::write(directories.work.join("output"), output.bytes())?;
    fs::write(directories.work.join("error"), error.bytes())?;
    let script = "cat; cat output; cat error >&2; test -n \"$1$VARIABLE\"";
    let command = Command::new("/bin/sh")
        .args(["-c", script, "sh"])
        .arg(argument.as_text())
        .env("VARIABLE", variable.as_text())
        .current_dir(directories.work.to_string_lossy())
        .stdin(true);
    let mut process = executor.spawn(command).await?;
    let mut input = process.stdin.take().context("the command has an input")?;
    input.write_all(stdin.bytes()).await?;
    if executor.extensions().close_stdin {
        input.close().await?;
    }
    let printed = timeout(SHORT_TIMEOUT, process.output()).await.context("the command ends")??;
    ensure!(printed.exit_code == 0, "exit code {}", printed.exit_code);
    ensure!(printed.stdout == [stdin.bytes(), output.bytes()].concat(), "{printed:?}");
    ensure!(printed.stderr == error.bytes(), "{printed:?}");

    let path = directories.work.join(name.as_text());
    executor.files().write(&path.to_string_lossy(), file.bytes()).await?;
    ensure!(fs::read(&path)? == file.bytes(), "another file was written");
    ensure!(executor.files().read(&path.to_string_lossy()).await? == file.bytes());
    Ok(vec![argument, variable, stdin, output, error, file, name])
}

/// A command that prints a marker again and again.
struct Flood {
    process: rendez_orchestrator::Process,
    printed: usize,
}

impl Flood {
    /// Returns when the flood has begun.
    async fn start(executor: &Environment, marker: &Marker) -> Result<Self> {
        let script = format!("yes \"$1\" | head -c {FLOOD_BYTES}");
        let command = Command::new("/bin/sh").args(["-c", &script, "sh"]).arg(marker.as_text());
        let mut flood = Self { process: executor.spawn(command).await?, printed: 0 };
        ensure!(flood.next().await?, "nothing was printed");
        Ok(flood)
    }

    async fn end(mut self) -> Result<()> {
        while self.next().await? {}
        ensure!(self.printed == FLOOD_BYTES, "{} bytes were printed", self.printed);
        Ok(())
    }

    async fn next(&mut self) -> Result<bool> {
        let next =
            timeout(SHORT_TIMEOUT, self.process.next()).await.context("the flood goes on")??;
        if let Some(ProcessEvent::Stdout(chunk)) = &next {
            self.printed += chunk.len();
        }
        Ok(next.is_some())
    }
}

// ---- what must not be seen -------------------------------------------------

struct Secrets {
    content: Vec<Marker>,
    identity: Vec<Marker>,
    signing_key: Marker,
    tokens: Vec<Marker>,
    tickets: Vec<Marker>,
}

impl Secrets {
    fn collect(
        content: Vec<Marker>,
        directories: &Directories,
        tokens: &Tokens,
        legs: &[Recording],
    ) -> Result<Self> {
        let seed = fs::read(directories.agent_state.join("identity"))?;
        let (x25519, mlkem768) = seed.split_at_checked(32).context("an identity has two keys")?;
        let signing_key = fs::read_to_string(directories.relay_state.join(SIGNING_KEY_FILE))?;
        let (_, signing_key) = signing_key.trim_end().split_once(' ').context("a key file")?;
        let tickets = tickets(legs)?;
        // one of the executor, one and an authorization per orchestrator
        ensure!(tickets.len() == 1 + 2 * PROFILES.len(), "{} tickets passed", tickets.len());
        Ok(Self {
            content,
            identity: vec![
                Marker::new("the executor's X25519 key", x25519),
                Marker::new("the executor's ML-KEM-768 seed", mlkem768),
            ],
            signing_key: Marker::new("the signing key", STANDARD.decode(signing_key)?),
            tokens: tokens.secrets()?,
            tickets,
        })
    }

    fn all(&self) -> impl Iterator<Item = &Marker> {
        self.never_sent().chain(self.bearers())
    }

    fn of_endpoints(&self) -> impl Iterator<Item = &Marker> {
        self.content.iter().chain(&self.identity)
    }

    fn never_sent(&self) -> impl Iterator<Item = &Marker> {
        self.of_endpoints().chain([&self.signing_key])
    }

    fn bearers(&self) -> impl Iterator<Item = &Marker> {
        self.tokens.iter().chain(&self.tickets)
    }
}

struct Tokens {
    executor: String,
    orchestrator: String,
}

impl Tokens {
    /// Creates tokens as `rendez token create` does on the relay's machine.
    async fn create(state: &Path) -> Result<Self> {
        let registry = Registry::open(state, Options::default()).await?;
        let token = async |role| {
            let new = CreateToken::new(role);
            anyhow::Ok(registry.tokens().create(None, &new).await?.token.expose().to_owned())
        };
        Ok(Self {
            executor: token(Role::Executor).await?,
            orchestrator: token(Role::Orchestrator).await?,
        })
    }

    /// The secret parts. The ids of tokens are not secret.
    fn secrets(&self) -> Result<Vec<Marker>> {
        let secret = |name: &str, token: &str| {
            let secret = token.splitn(4, '_').nth(3).context("a token has four parts")?;
            anyhow::Ok(Marker::new(name, URL_SAFE_NO_PAD.decode(secret)?))
        };
        Ok(vec![
            secret("the executor's token", &self.executor)?,
            secret("the orchestrator's token", &self.orchestrator)?,
        ])
    }
}

/// The signatures of all tickets and authorizations that passed.
fn tickets(legs: &[Recording]) -> Result<Vec<Marker>> {
    let mut signatures = BTreeSet::new();
    for leg in legs {
        let http = String::from_utf8_lossy(&leg.http);
        for before in ["ticket=", "\"harness_key_authorization\":\""] {
            for (at, _) in http.match_indices(before) {
                let ticket = &http[at + before.len()..];
                let in_ticket = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
                let end = ticket.find(|c| !in_ticket(c)).unwrap_or(ticket.len());
                let ticket = URL_SAFE_NO_PAD.decode(&ticket[..end])?;
                let signature = ticket.last_chunk::<SIGNATURE_BYTES>();
                signatures.insert(*signature.context("a ticket is signed")?);
            }
        }
    }
    let number = |(n, signature)| Marker::new(format!("ticket {n}"), signature);
    Ok(signatures.into_iter().enumerate().map(number).collect())
}

/// The ids of the recorded streams, which a relay does know.
fn streams(legs: &[Recording]) -> Vec<Marker> {
    let messages = legs.iter().flat_map(|leg| &leg.messages);
    let streams = messages.filter_map(|message| Some(peek(message).ok()?.stream.to_owned()));
    let streams: BTreeSet<String> = streams.collect();
    streams.into_iter().map(|stream| Marker::new(stream.clone(), stream)).collect()
}

/// A text about the environment in the database, long enough to search for.
fn registered() -> Vec<u8> {
    Profile::RendezHybridIkV1.name().as_bytes().to_vec()
}

/// All files of a directory, by name.
fn files(directory: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let entries = fs::read_dir(directory)?;
    let read = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry?;
        Ok((PathBuf::from(entry.file_name()), fs::read(entry.path())?))
    };
    entries.map(read).collect()
}

// ---- the processes ---------------------------------------------------------

struct RelayProcess {
    process: Process,
    address: SocketAddr,
}

impl RelayProcess {
    async fn start(state: &Path) -> Result<Self> {
        let mut command = IsolatedCommand::new(workspace_binary("rendez-relay")?)?;
        command
            .args(["--listen", "127.0.0.1:0", "--log", "trace", "--state"])
            .arg(state)
            .env("NO_COLOR", "1");
        let process = Process::spawn(command)?;
        let listening = |line: &str| Some(line.split_once("listening address=")?.1.parse());
        let address = process.stderr_line(SHORT_TIMEOUT, listening).await??;
        Ok(Self { process, address })
    }

    /// Stops it. Returns its log.
    async fn stop(self) -> Result<Vec<u8>> {
        let stderr = self.process.stderr().clone();
        let status = self.process.stop(STOP_MAX).await?;
        ensure!(status.success(), "the relay ended with {status}");
        stderr.line(SHORT_TIMEOUT, |line| line.contains("stopped").then_some(())).await?;
        Ok(stderr.bytes())
    }
}

struct RunningAgent {
    cancel: CancellationToken,
    task: JoinHandle<Result<(), rendez_executor_agent::AgentError>>,
}

impl RunningAgent {
    async fn start(directories: &Directories, token: &str, relay: SocketAddr) -> Result<Self> {
        let agent = Agent::new(AgentConfig {
            relay: format!("http://{relay}").parse()?,
            environment: ENVIRONMENT.parse::<EnvironmentId>()?,
            auth: Auth::Bearer(token.to_owned().into()),
            state: directories.agent_state.clone(),
            profiles: PROFILES.to_vec(),
            cwd: directories.work.clone(),
            grace: Grace::default(),
        })?;
        let cancel = CancellationToken::new();
        let (states, mut heard) = mpsc::unbounded_channel();
        let task = tokio::spawn({
            let cancel = cancel.clone();
            async move {
                // the receiver is gone once the agent is connected
                agent.run(cancel, move |state| drop(states.send(state))).await
            }
        });
        let connected = async {
            while let Some(state) = heard.recv().await {
                if state == AgentState::Connected {
                    return Ok(());
                }
            }
            anyhow::bail!("the agent ended")
        };
        timeout(SHORT_TIMEOUT, connected).await.context("the agent connects")??;
        Ok(Self { cancel, task })
    }

    async fn stop(self) -> Result<()> {
        self.cancel.cancel();
        timeout(STOP_MAX, self.task).await.context("the agent stops")???;
        Ok(())
    }
}
