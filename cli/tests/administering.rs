//! `rendez` as operators run it: on a relay's state directory, and over HTTP.
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

/// A token that nobody has.
const NOBODY: &str = "0011223344556677";

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

/// What it prints, if it succeeds.
fn printed(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(code(&output), 0, "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A relay in this process, and an admin's token.
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

    /// A command that asks the relay.
    fn asks(&self, args: &[&str]) -> Command {
        let mut command = rendez(args);
        command.env("RENDEZ_RELAY", &self.url).env("RENDEZ_TOKEN", &self.token);
        command
    }

    /// The rows of the audit log that begin so, written out.
    fn noted(&self, what: &str) -> usize {
        let log = printed(with_state(&["admin", "audit", "export"], self.state.path()));
        let rows = log.lines().map(|line| serde_json::from_str::<AuditRow>(line).unwrap());
        rows.filter(|row| row.event.what.as_deref().is_some_and(|said| said.starts_with(what)))
            .count()
    }

    /// Tokens that still are good for something, besides the admin's.
    fn active(&self) -> usize {
        let tokens = printed(with_state(&["token", "ls", "--json"], self.state.path()));
        let tokens = tokens.lines().map(|line| serde_json::from_str::<TokenEntry>(line).unwrap());
        tokens
            .filter(|token| token.role != Role::Admin && token.revoked_at_unix_secs.is_none())
            .count()
    }
}

/// Standard output or error of which the other end is closed.
fn nobody_reads() -> Stdio {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    writer.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_goes_away_ends_a_command_without_a_word() {
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
        // it has registered an environment, so that there is one to list
        world.asks(&["env", "ls"]),
        world.asks(&["env", "ls", "--json"]),
        dev,
    ] {
        let output = command.stdout(nobody_reads()).output().unwrap();
        assert_eq!((code(&output), said(&output)), (141, String::new()), "{command:?}");
    }
    // these say something on standard error first
    for mut command in [
        with_state(&["token", "create", "--role", "executor"], state),
        with_state(&["admin", "audit", "verify"], state),
    ] {
        let output = command.stdout(nobody_reads()).output().unwrap();
        assert_eq!(code(&output), 141, "{output:?}");
        assert!(!said(&output).contains("panic"), "{output:?}");
    }
}

#[test]
fn what_is_told_besides_needs_no_reader() {
    let state = tempfile::tempdir().unwrap();
    let create = ["token", "create", "--role", "executor"];
    let output = with_state(&create, state.path()).stderr(nobody_reads()).output().unwrap();
    assert_eq!(code(&output), 0);
    assert!(output.stdout.starts_with(b"rdz_e_"));
    let revoke = ["token", "revoke", NOBODY];
    let output = with_state(&revoke, state.path()).stderr(nobody_reads()).output().unwrap();
    assert_eq!(code(&output), 64);
}

#[test]
fn a_misspelt_state_directory_is_refused_and_not_made() {
    let home = tempfile::tempdir().unwrap();
    let misspelt = home.path().join("relya");
    let empty = home.path().join("empty");
    fs::create_dir(&empty).unwrap();
    for args in [
        &["token", "ls"][..],
        &["token", "revoke", NOBODY],
        &["token", "rotate", NOBODY],
        &["env", "revoke", "box"],
        &["admin", "env", "revoke", "box", "--registration-only"],
        &["admin", "audit", "verify"],
        &["admin", "audit", "export"],
        &["probe", "http://127.0.0.1:1"],
    ] {
        for directory in [&misspelt, &empty] {
            let output = with_state(args, directory).output().unwrap();
            assert_eq!(code(&output), 78, "{args:?}: {output:?}");
            assert!(said(&output).contains("not the state of a relay"), "{output:?}");
        }
    }
    assert!(!misspelt.exists());
    assert_eq!(fs::read_dir(&empty).unwrap().count(), 0);
    // the first token is made before the relay's first start
    let create = ["token", "create", "--role", "admin"];
    assert!(printed(with_state(&create, &misspelt)).starts_with("rdz_a_"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_mistake_has_the_same_code_here_and_over_http() {
    let world = World::start().await;
    for (args, expected) in [
        (&["token", "revoke", NOBODY][..], 64),
        (&["token", "rotate", NOBODY], 64),
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
async fn a_probe_revokes_what_it_made_and_the_audit_log_says_so() {
    let world = World::start().await;
    let probe = ["probe", &world.url, "--json", "--connects", "1", "--count", "1"];
    printed(with_state(&probe, world.state.path()));
    assert_eq!((world.active(), world.noted("token_revoked")), (0, 2));
    // the tokens are made before it turns out that this is no relay
    let output = with_state(&["probe", "http://"], world.state.path()).output().unwrap();
    assert_eq!(code(&output), 64, "{output:?}");
    assert_eq!((world.active(), world.noted("token_revoked")), (0, 4));
}

#[test]
fn what_a_probe_may_take_is_bounded_with_a_reason() {
    for (args, reason) in [
        (&["--timeout", "1000y"][..], "24h"),
        (&["--timeout", "99999999999999999y"], "30d"),
        (&["--connects", "10000", "--count", "1000000"], "1000000 at most"),
    ] {
        let output = rendez(&[&["probe", "box"], args].concat()).output().unwrap();
        assert_eq!(code(&output), 64, "{output:?}");
        assert!(said(&output).contains(reason), "{output:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_can_be_written_beside_where_one_stands() {
    let world = World::start().await;
    let here = tempfile::tempdir().unwrap();
    let mut backup = with_state(&["admin", "backup", "copy.sqlite"], world.state.path());
    printed({
        backup.current_dir(here.path());
        backup
    });
    assert!(here.path().join("copy.sqlite").is_file());
}
