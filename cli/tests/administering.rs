//! `rendez` as operators use it: on a relay's state directory, and over HTTP.
#![allow(clippy::unwrap_used, reason = "all of it is a test")]

use std::fs;
use std::io::pipe;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rendez_proto::audit::AuditRow;
use rendez_proto::registry::admin::{CreateToken, Role, TokenEntry};
use rendez_relay::{Config, Relay};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// The id of a token that does not exist.
const UNKNOWN_TOKEN: &str = "0011223344556677";

/// The program in an environment that holds nothing of the tester's: no
/// variables, and no `rendez dev` to be found.
fn rendez(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rendez"));
    command.env_clear().env("XDG_RUNTIME_DIR", "/nonexistent").args(args).stdin(Stdio::null());
    command
}

fn with_state(args: &[&str], state: &Path) -> Command {
    let mut command = rendez(args);
    command.arg("--state").arg(state);
    command
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("a signal ended it: {output:?}"))
}

/// The standard output of a command that must succeed.
fn printed(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(code(&output), 0, "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A relay in this process, and an admin token.
struct World {
    state: TempDir,
    url: String,
    token: String,
    _stop: tokio_util::sync::DropGuard,
}

impl World {
    async fn start() -> Self {
        let state = tempfile::tempdir().unwrap();
        let config = Config {
            listen: ([127, 0, 0, 1], 0).into(),
            state: state.path().to_owned(),
            ..Config::default()
        };
        let relay = Relay::bind(config).await.unwrap();
        let url = format!("http://{}", relay.local_addr());
        let new = CreateToken::new(Role::Admin);
        let token =
            relay.registry().tokens().create(None, &new).await.unwrap().token.expose().to_owned();
        let stop = CancellationToken::new();
        tokio::spawn(relay.serve(stop.clone()));
        Self { state, url, token, _stop: stop.drop_guard() }
    }

    /// A command that uses the relay over HTTP.
    fn asks(&self, args: &[&str]) -> Command {
        let mut command = rendez(args);
        command.env("RENDEZ_RELAY", &self.url).env("RENDEZ_TOKEN", &self.token);
        command
    }

    /// The number of audit rows whose text begins with `what`.
    fn noted(&self, what: &str) -> usize {
        let log = printed(with_state(&["admin", "audit", "export"], self.state.path()));
        let rows = log.lines().map(|line| serde_json::from_str::<AuditRow>(line).unwrap());
        rows.filter(|row| row.event.what.as_deref().is_some_and(|said| said.starts_with(what)))
            .count()
    }

    /// The number of valid tokens besides the admin token.
    fn active(&self) -> usize {
        let tokens = printed(with_state(&["token", "ls", "--json"], self.state.path()));
        let tokens = tokens.lines().map(|line| serde_json::from_str::<TokenEntry>(line).unwrap());
        tokens
            .filter(|token| token.role != Role::Admin && token.revoked_at_unix_secs.is_none())
            .count()
    }
}

/// A pipe whose reading end is closed.
fn closed_pipe() -> Stdio {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    writer.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_output_ends_a_command_silently() {
    let world = World::start().await;
    let state = world.state.path();
    let runtime = tempfile::tempdir().unwrap();
    let mut dev = rendez(&["dev", "--log", "off", "--listen", "127.0.0.1:0"]);
    dev.env("XDG_RUNTIME_DIR", runtime.path());
    for mut command in [
        rendez(&["relay", "--print-config"]),
        with_state(&["token", "ls"], state),
        with_state(&["token", "ls", "--json"], state),
        with_state(&["admin", "audit", "export"], state),
        world.asks(&["admin", "status", "--json"]),
        world.asks(&["admin", "status"]),
        world.asks(&["admin", "connections"]),
        world.asks(&["env", "show", "box"]),
        world.asks(&["env", "show", "box", "--json"]),
        world.asks(&["probe", "--connects", "1", "--count", "1"]),
        // The probe has registered an environment, so that there is one to list.
        world.asks(&["env", "ls"]),
        world.asks(&["env", "ls", "--json"]),
        dev,
    ] {
        let output = command.stdout(closed_pipe()).output().unwrap();
        assert_eq!((code(&output), said(&output)), (141, String::new()), "{command:?}");
    }
    // These print a note on standard error first.
    for mut command in [
        with_state(&["token", "create", "--role", "executor"], state),
        with_state(&["admin", "audit", "verify"], state),
    ] {
        let output = command.stdout(closed_pipe()).output().unwrap();
        assert_eq!(code(&output), 141, "{output:?}");
        assert!(!said(&output).contains("panic"), "{output:?}");
    }
}

#[test]
fn notes_need_no_reader() {
    let state = tempfile::tempdir().unwrap();
    let create = ["token", "create", "--role", "executor"];
    let output = with_state(&create, state.path()).stderr(closed_pipe()).output().unwrap();
    assert_eq!(code(&output), 0);
    assert!(output.stdout.starts_with(b"rdz_e_"));
    let revoke = ["token", "revoke", UNKNOWN_TOKEN];
    let output = with_state(&revoke, state.path()).stderr(closed_pipe()).output().unwrap();
    assert_eq!(code(&output), 64);
}

#[test]
fn misspelt_state_directory_is_not_created() {
    let home = tempfile::tempdir().unwrap();
    let misspelt = home.path().join("relya");
    let empty = home.path().join("empty");
    fs::create_dir(&empty).unwrap();
    for args in [
        &["token", "ls"][..],
        &["token", "revoke", UNKNOWN_TOKEN],
        &["token", "rotate", UNKNOWN_TOKEN],
        &["env", "revoke", "box"],
        &["admin", "env", "revoke", "box", "--registration-only"],
        &["admin", "audit", "verify"],
        &["admin", "audit", "export"],
        &["probe", "http://127.0.0.1:1"],
    ] {
        for directory in [&misspelt, &empty] {
            let output = with_state(args, directory).output().unwrap();
            assert_eq!(code(&output), 78, "{args:?}: {output:?}");
            assert!(said(&output).contains("not the state directory of a relay"), "{output:?}");
        }
    }
    assert!(!misspelt.exists());
    assert_eq!(fs::read_dir(&empty).unwrap().count(), 0);
    // The first token is created before the relay's first start.
    let create = ["token", "create", "--role", "admin"];
    assert!(printed(with_state(&create, &misspelt)).starts_with("rdz_a_"));
}

#[tokio::test(flavor = "multi_thread")]
async fn local_and_remote_errors_have_equal_codes() {
    let world = World::start().await;
    for (args, expected) in [
        (&["token", "revoke", UNKNOWN_TOKEN][..], 64),
        (&["token", "rotate", UNKNOWN_TOKEN], 64),
        (&["token", "create", "--role", "executor", "--environments", "a b"], 64),
        (&["token", "create", "--role", "executor", "--source", "here"], 64),
        (&["token", "create", "--role", "admin", "--max-uses", "3"], 64),
        (&["env", "revoke", "nowhere"], 68),
        (&["env", "revoke", "nowhere", "--registration-only"], 68),
    ] {
        for mut command in [with_state(args, world.state.path()), world.asks(args)] {
            let output = command.output().unwrap();
            assert_eq!(code(&output), expected, "{args:?}: {output:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn probe_revokes_its_tokens_and_is_audited() {
    let world = World::start().await;
    let probe = ["probe", &world.url, "--json", "--connects", "1", "--count", "1"];
    printed(with_state(&probe, world.state.path()));
    assert_eq!((world.active(), world.noted("token_revoked")), (0, 2));
    // The tokens are created before the URL turns out to be wrong.
    let output = with_state(&["probe", "http://"], world.state.path()).output().unwrap();
    assert_eq!(code(&output), 64, "{output:?}");
    assert_eq!((world.active(), world.noted("token_revoked")), (0, 4));
}

#[test]
fn limits_of_a_probe_are_explained() {
    for (args, reason) in [
        (&["--timeout", "1000y"][..], "24h"),
        (&["--timeout", "99999999999999999y"], "30d"),
        (&["--connects", "10000", "--count", "1000000"], "at most 1000000"),
    ] {
        let output = rendez(&[&["probe", "box"], args].concat()).output().unwrap();
        assert_eq!(code(&output), 64, "{output:?}");
        assert!(said(&output).contains(reason), "{output:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_path_may_be_relative() {
    let world = World::start().await;
    let here = tempfile::tempdir().unwrap();
    let mut backup = with_state(&["admin", "backup", "copy.sqlite"], world.state.path());
    printed({
        backup.current_dir(here.path());
        backup
    });
    assert!(here.path().join("copy.sqlite").is_file());
}
