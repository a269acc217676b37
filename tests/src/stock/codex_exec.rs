//! Stock `codex exec`: one whole turn of the agent with a fake model.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::model::FakeModel;
use super::{CodexHome, Harness};
use crate::process;

/// The output of one turn.
pub struct Turn {
    /// The objects of `--json`, in order.
    pub events: Vec<Value>,
}

/// A command that the harness ran on its executor, as reported to the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandExecution {
    /// Stdout and stderr, each in order; how they interleave is up to the
    /// executor's reads.
    pub output: String,
    /// None if the harness did not receive it.
    pub exit_code: Option<i64>,
}

/// Runs one turn to its end: the harness connects, asks `model`, runs the requested
/// commands on the executor of `harness`, and reports.
///
/// `directory` is the turn's working directory. It has to exist on both ends.
///
/// A turn without an executor also succeeds: the model learns that no environment is
/// usable. Check [`Turn::commands`] and the model's outputs.
pub async fn run(
    harness: &Harness,
    model: &FakeModel,
    directory: &Path,
    prompt: &str,
    within: Duration,
) -> Result<Turn> {
    let home = CodexHome::new()?;
    home.configure(&config(&model.base_url()))?;
    let mut command = home.command()?;
    command
        .envs(harness.variables())
        .args(["exec", "--json", "--skip-git-repo-check"])
        .arg("--dangerously-bypass-approvals-and-sandbox")
        .arg("-C")
        .arg(directory)
        .arg(prompt);
    let output = process::run(command, b"", within).await?;
    ensure!(
        output.status.success(),
        "stock codex exec: {}\n{}{}",
        output.status,
        output.stdout_text(),
        output.stderr_text()
    );
    Ok(Turn { events: parse_events(&output.stdout_text())? })
}

impl Turn {
    /// The commands that were run, in order.
    pub fn commands(&self) -> Vec<CommandExecution> {
        self.completed("command_execution")
            .map(|item| CommandExecution {
                output: item["aggregated_output"].as_str().unwrap_or_default().to_owned(),
                exit_code: item["exit_code"].as_i64(),
            })
            .collect()
    }

    /// The model's last message.
    pub fn message(&self) -> Option<&str> {
        self.completed("agent_message").last().and_then(|item| item["text"].as_str())
    }

    fn completed(&self, kind: &'static str) -> impl Iterator<Item = &Value> {
        self.events
            .iter()
            .filter(|event| event["type"] == "item.completed")
            .map(|event| &event["item"])
            .filter(move |item| item["type"] == kind)
    }
}

/// A home's configuration: the model is at `base_url`, and every feature that needs
/// the internet is off. Analytics alone adds five seconds to each turn.
fn config(base_url: &str) -> String {
    format!(
        r#"model = "fake"
model_provider = "fake"
check_for_update_on_startup = false

[model_providers.fake]
name = "fake"
base_url = "{base_url}"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0

[analytics]
enabled = false

[features]
plugins = false
"#
    )
}

fn parse_events(stdout: &str) -> Result<Vec<Value>> {
    let parse = |line| serde_json::from_str(line).with_context(|| format!("not an event: {line}"));
    stdout.lines().filter(|line| !line.trim().is_empty()).map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STDOUT: &str = r#"{"type":"thread.started","thread_id":"t"}
{"type":"item.started","item":{"id":"item_1","type":"command_execution","command":"c","aggregated_output":"","exit_code":null,"status":"in_progress"}}
{"type":"item.completed","item":{"id":"item_1","type":"command_execution","command":"c","aggregated_output":"hi\n","exit_code":7,"status":"failed"}}
{"type":"item.completed","item":{"id":"item_2","type":"agent_message","text":"done"}}
"#;

    #[test]
    fn events_become_commands_and_a_message() {
        let turn = Turn { events: parse_events(STDOUT).unwrap() };
        assert_eq!(turn.events.len(), 4);
        let command = CommandExecution { output: "hi\n".to_owned(), exit_code: Some(7) };
        assert_eq!(turn.commands(), [command]);
        assert_eq!(turn.message(), Some("done"));
    }

    #[test]
    fn invalid_event_line_is_shown_in_error() {
        let error = parse_events("{}\npanicked at\n").unwrap_err();
        assert!(error.to_string().contains("panicked at"), "{error}");
    }
}
