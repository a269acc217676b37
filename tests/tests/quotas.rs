//! Quotas of single tokens and environments as operators set them: in the
//! file, while the relay runs.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use rendez_proto::registry::error::ErrorBody;
use rendez_proto::registry::{ConnectReply, ConnectRequest, RegisterReply};
use rendez_tests::relay::{Websocket, answer, http_client, key, register_request, token_id};
use rendez_tests::rendez::{OurRelay, WITHIN};
use reqwest::StatusCode;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio_tungstenite::tungstenite::Error;

/// A relay whose settings are in a file, and executors at `a` and `b`.
struct World {
    relay: OurRelay,
    file: PathBuf,
    http: reqwest::Client,
    _directory: TempDir,
    _executors: Vec<Websocket>,
}

impl World {
    async fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("relay.toml");
        fs::write(&file, "")?;
        let flag = file.to_str().context("a path in UTF-8")?;
        let relay = OurRelay::start_with(&["--config", flag]).await?;
        let http = http_client(relay.url())?;
        let mut world = Self { relay, file, http, _directory: directory, _executors: Vec::new() };
        let token = world.relay.token("executor").await?;
        for environment in ["a", "b"] {
            let request = world.post(environment, "register", &token).json(&register_request());
            let reply: RegisterReply = answer(request).await?;
            world._executors.push(Websocket::open(reply.url.expose()).await?);
        }
        Ok(world)
    }

    fn post(&self, environment: &str, call: &str, token: &str) -> reqwest::RequestBuilder {
        let url = format!("{}/cloud/environment/{environment}/{call}", self.relay.url());
        self.http.post(url).bearer_auth(token)
    }

    /// Writes the file anew, and waits until the relay says of each of `ids`
    /// that its bounds are not `old` any more, but `new`.
    async fn set(&mut self, text: &str, ids: &[&str], old: &str, new: &str) -> Result<()> {
        fs::write(&self.file, text)?;
        let process = self.relay.process();
        process.signal(Signal::HUP)?;
        let value = |name: &str, value: &str| match value {
            "" => String::new(),
            value => format!(" {name}={value:?}"),
        };
        for id in ids {
            let wanted = format!("id={id:?}{}{}", value("old", old), value("new", new));
            let said = |line: &str| {
                let line = line.trim_end();
                (line.contains("setting changed") && line.ends_with(&wanted)).then_some(())
            };
            process.stderr_line(WITHIN, said).await.with_context(|| wanted.clone())?;
        }
        Ok(())
    }

    /// Opens an orchestrator's websocket, or says why there is none.
    async fn open(&self, token: &str, environment: &str) -> Result<Result<Websocket, String>> {
        let body = ConnectRequest { harness_public_key: key(7), rendez: None };
        let reply: ConnectReply =
            answer(self.post(environment, "connect", token).json(&body)).await?;
        let error = match Websocket::open(reply.url.expose()).await {
            Ok(websocket) => return Ok(Ok(websocket)),
            Err(error) => error,
        };
        let Some(Error::Http(answer)) = error.downcast_ref() else { bail!(error) };
        ensure!(answer.status() == StatusCode::SERVICE_UNAVAILABLE, "{}", answer.status());
        let body = answer.body().as_deref().unwrap_or_default();
        Ok(Err(serde_json::from_slice::<ErrorBody>(body)?.error.message))
    }

    /// Opens one that the quotas allow.
    async fn opened(&self, token: &str, environment: &str) -> Result<Websocket> {
        self.open(token, environment).await?.map_err(anyhow::Error::msg)
    }

    /// Who has no place for another one.
    async fn full(&self, token: &str, environment: &str) -> Result<String> {
        match self.open(token, environment).await? {
            Ok(_) => bail!("there was a place"),
            Err(why) => Ok(why),
        }
    }
}

#[tokio::test]
async fn a_token_that_the_file_names_has_bounds_of_its_own() -> Result<()> {
    let mut world = World::start().await?;
    let (named, other) =
        (world.relay.token("orchestrator").await?, world.relay.token("orchestrator").await?);
    let id = token_id(&named)?;
    let first = world.opened(&named, "a").await?;

    let text = format!("[quota]\ntoken = \"streams=77\"\n[quota.tokens]\n{id} = \"connections=1\"");
    world.set(&text, &[&id], "", "connections=1").await?;
    let why = world.full(&named, "a").await?;
    ensure!(why.contains("the token's quota of connections"), "{why}");
    let others = [world.opened(&other, "a").await?, world.opened(&other, "b").await?];

    // read again as it was: it holds on
    world.set(&text.replace("77", "78"), &[], "", "").await?;
    let all = |line: &str| line.contains("new=\"streams=78\"").then_some(());
    world.relay.process().stderr_line(WITHIN, all).await?;
    world.full(&named, "b").await?;

    world.set("", &[&id], "connections=1", "").await?;
    let second = world.opened(&named, "b").await?;
    drop((first, second, others));
    Ok(())
}

#[tokio::test]
async fn an_environment_that_the_file_names_has_bounds_of_its_own() -> Result<()> {
    let mut world = World::start().await?;
    let token = world.relay.token("orchestrator").await?;
    // the executor's own websocket is one of them
    world.set("[quota.environments]\na = \"connections=2\"", &["a"], "", "connections=2").await?;
    let first = world.opened(&token, "a").await?;
    let why = world.full(&token, "a").await?;
    ensure!(why.contains("the environment's quota of connections"), "{why}");
    let others = [world.opened(&token, "b").await?, world.opened(&token, "b").await?];

    let mut more = String::from("[quota.environments]\n");
    for id in ["a", "b"] {
        writeln!(more, "{id} = \"connections=3\"")?;
    }
    world.set(&more, &["a"], "connections=2", "connections=3").await?;
    let second = world.opened(&token, "a").await?;
    let why = world.full(&token, "b").await?;
    ensure!(why.contains("the environment's quota"), "{why}");

    // a file that cannot be used changes nothing
    fs::write(&world.file, "[quota.environments]\na = \"conections=9\"")?;
    world.relay.process().signal(Signal::HUP)?;
    let said = |line: &str| {
        let named = line.contains("the old ones stay") && line.contains("`connections`?");
        named.then_some(())
    };
    world.relay.process().stderr_line(WITHIN, said).await?;
    world.full(&token, "b").await?;
    drop((first, second, others));
    Ok(())
}
