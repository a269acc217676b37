//! Opening a session and asking about the environment (docs/codex-wire.md#session).
//!
//! A stream carries one session. The client calls [`Initialize`], then sends
//! [`Initialized`], then anything else. An executor keeps a session
//! for at least 100 s after its last stream; its id resumes it.
//!
//! ```text
//! -> {"id":1,"method":"initialize","params":{"clientName":"x","resumeSessionId":null}}
//! <- {"id":1,"result":{"sessionId":"9508...","environmentInfo":{...},"rendez":{...}}}
//! -> {"method":"initialized","params":{}}
//! ```
//! `rendez` is our addition, in the answer and optional in the call; stock
//! peers ignore it, and do not send it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::path::PathUri;
use super::{Method, Notification};

/// Names a session. Made by the executor out of random bytes. The id alone
/// permits to resume the session, so it is not logged above DEBUG.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(pub String);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `initialize`: opens or resumes a session. Once per stream.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Initialize {
    /// For the executor's log.
    #[serde(default)]
    pub client_name: String,
    /// The session to resume; a new one if absent.
    #[serde(default)]
    pub resume_session_id: Option<SessionId>,
    /// The client's extensions; absent in stock ones, and ignored by stock
    /// executors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rendez: Option<ClientExtensions>,
}

/// Extensions of the stock dialect that a client supports.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientExtensions {
    /// The most bytes of one chunk of process output that it takes; at least
    /// [`crate::limits::PROCESS_CHUNK_MAX_BYTES`], which it always takes. An
    /// executor may send less.
    pub max_chunk: u64,
}

/// The answer to [`Initialize`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InitializeReply {
    /// The open session.
    pub session_id: SessionId,
    /// The answer of [`EnvironmentInfo`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment_info: Option<Environment>,
    /// The executor's extensions; absent in stock ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rendez: Option<Extensions>,
}

impl Method for Initialize {
    const NAME: &'static str = "initialize";
    type Params = Self;
    type Reply = InitializeReply;
}

/// The version of [`Extensions`] that this crate describes.
pub const EXTENSIONS_VERSION: u32 = 1;

/// Our additions to the dialect, each announced on its own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Extensions {
    /// [`EXTENSIONS_VERSION`].
    pub version: u32,
    /// [`super::process::CloseStdin`] is served.
    pub close_stdin: bool,
    /// [`super::process::Signal`] supports more than `interrupt`.
    pub signals: bool,
    /// [`super::process::Start::stdin_window`] is granted, as far as there is
    /// memory.
    pub stdin_window: bool,
}

/// `initialized`: the client has read the answer and may call other methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Initialized {}

impl Notification for Initialized {
    const NAME: &'static str = "initialized";
}

/// `environment/info`: where processes run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EnvironmentInfo {}

impl Method for EnvironmentInfo {
    const NAME: &'static str = "environment/info";
    type Params = Self;
    type Reply = Environment;
}

/// An executor's description of its machine. Only `shell` is always present.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Environment {
    /// The user's shell.
    pub shell: Shell,
    /// The executor program's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executor_version: Option<String>,
    /// Identifies the provider of the environment; opaque.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_id: Option<String>,
    /// The default working directory of commands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<PathUri>,
    /// The user's home directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_home_dir: Option<PathUri>,
    /// `linux`, `macos`, `windows`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform_os: Option<String>,
    /// Directories that a client should put before PATH.
    #[serde(default)]
    pub prepend_path_dirs: Vec<PathUri>,
    /// Further directories for temporary files.
    #[serde(default)]
    pub temporary_directories: Vec<PathUri>,
    /// The directory for temporary files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temp_dir: Option<PathUri>,
    /// Optional parts of the dialect that the executor serves.
    #[serde(default)]
    pub capabilities: Capabilities,
}

/// A shell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shell {
    /// `bash`, `zsh`, `sh`, ...
    pub name: String,
    /// A native path, not a URL.
    pub path: String,
}

macro_rules! capabilities {
    ($($field:ident: $doc:literal,)*) => {
        /// Optional parts of the stock dialect. An executor that lacks one sends
        /// `false`, and stock orchestrators then don't use it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct Capabilities {
            $(#[doc = $doc] pub $field: bool,)*
        }
    };
}

capabilities! {
    network_proxy_launch: "Starts processes behind a managed network proxy.",
    network_proxy_review_domains: "Asks the client about domains that a proxied process wants.",
    credential_masking: "Masks credentials from processes.",
    credential_masking_custom_providers: "Masks credentials of providers that the client names.",
    capability_discovery_sandbox: "Looks for capabilities inside a sandbox.",
    fs_watch_missing: "`fs/watchMissing`.",
    capability_discovery_v2: "`capabilities/discoverV2`.",
    environment_config_read: "`environmentConfig/read`.",
    http_header_env_vars: "`valueEnvVar` in `http/request` headers.",
    sandboxed_file_streaming: "`fs/open` and `fs/readBlock` with a sandbox.",
    file_write_streaming: "`fs/writeBlock`.",
    shell_snapshot_v2: "Snapshots of the shell's state.",
    windows_mxc: "A sandbox of Windows.",
    linux_root_write_preserves_devices: "Keeps devices when a sandbox grants writes to `/`.",
    linux_approved_root_write_preserves_restrictions: "Keeps other rules when writes to `/` were approved.",
}

/// `environment/status`: whether the executor can work now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EnvironmentStatus {}

impl Method for EnvironmentStatus {
    const NAME: &'static str = "environment/status";
    type Params = Self;
    type Reply = EnvironmentStatusReply;
}

/// The answer to [`EnvironmentStatus`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentStatusReply {
    /// [`EnvironmentStatusReply::READY`], or a word that a later executor adds.
    pub status: String,
}

impl EnvironmentStatusReply {
    /// The only status that stock executors answer.
    pub const READY: &'static str = "ready";
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json, to_value};

    #[test]
    fn initialize_has_the_stock_shape() {
        let stock = json!({"clientName": "codex-environment", "resumeSessionId": null});
        let call: Initialize = from_value(stock.clone()).unwrap();
        assert_eq!(call.resume_session_id, None);
        assert_eq!(to_value(&call).unwrap(), stock);
        let resume: Initialize = from_value(json!({"resumeSessionId": "s"})).unwrap();
        assert_eq!(resume.resume_session_id, Some(SessionId("s".into())));
        assert_eq!(resume.rendez, None);
    }

    #[test]
    fn client_may_list_its_extensions() {
        let text = json!({"clientName": "x", "resumeSessionId": null,
            "rendez": {"maxChunk": 65536}});
        let call: Initialize = from_value(text.clone()).unwrap();
        assert_eq!(call.rendez, Some(ClientExtensions { max_chunk: 65536 }));
        assert_eq!(to_value(&call).unwrap(), text);
        let later: Initialize = from_value(json!({"rendez": {"more": 1}})).unwrap();
        assert_eq!(later.rendez, Some(ClientExtensions::default()));
    }

    #[test]
    fn stock_executor_answer_parses() {
        let reply: InitializeReply = from_value(json!({
            "sessionId": "95083037-dd2f-445d-8761-09afe8fd70aa",
            "environmentInfo": {
                "shell": {"name": "bash", "path": "/bin/bash"},
                "executorVersion": "0.169.0", "providerId": "sha256:2101b2",
                "cwd": "file:///work-dir", "userHomeDir": "file:///root", "platformOs": "linux",
                "prependPathDirs": ["file:///opt/x"], "temporaryDirectories": [],
                "tempDir": "file:///tmp",
                "capabilities": {"networkProxyLaunch": true, "capabilityDiscoveryV2": true,
                    "shellSnapshotV2": true, "windowsMxc": false,
                    "linuxApprovedRootWritePreservesRestrictions": true, "later": true}
            }
        }))
        .unwrap();
        let environment = reply.environment_info.unwrap();
        assert_eq!(environment.shell.path, "/bin/bash");
        assert_eq!(environment.cwd.unwrap().path(), "/work-dir");
        assert!(environment.capabilities.capability_discovery_v2);
        assert!(environment.capabilities.shell_snapshot_v2);
        assert!(environment.capabilities.linux_approved_root_write_preserves_restrictions);
        assert!(
            !environment.capabilities.windows_mxc && !environment.capabilities.fs_watch_missing
        );
        assert_eq!(reply.rendez, None);
    }

    #[test]
    fn minimal_answers_parse() {
        let reply: InitializeReply = from_value(json!({"sessionId": "s"})).unwrap();
        assert_eq!(reply.environment_info, None);
        let info: Environment =
            from_value(json!({"shell": {"name": "sh", "path": "/bin/sh"}})).unwrap();
        assert_eq!((info.cwd, info.capabilities), (None, Capabilities::default()));
    }

    #[test]
    fn our_answer_has_every_capability_and_extension() {
        let reply = InitializeReply {
            session_id: SessionId("s".into()),
            environment_info: Some(Environment {
                shell: Shell { name: "sh".into(), path: "/bin/sh".into() },
                executor_version: Some("0.1.0".into()),
                provider_id: None,
                cwd: Some(PathUri::from_path("/w").unwrap()),
                user_home_dir: None,
                platform_os: Some("linux".into()),
                prepend_path_dirs: vec![],
                temporary_directories: vec![],
                temp_dir: None,
                capabilities: Capabilities::default(),
            }),
            rendez: Some(Extensions {
                version: EXTENSIONS_VERSION,
                close_stdin: true,
                signals: true,
                stdin_window: true,
            }),
        };
        let value = to_value(&reply).unwrap();
        let ours = json!({"version": 1, "closeStdin": true, "signals": true, "stdinWindow": true});
        assert_eq!(value["rendez"], ours);
        assert_eq!(value["environmentInfo"]["cwd"], "file:///w");
        let capabilities = value["environmentInfo"]["capabilities"].as_object().unwrap();
        assert_eq!(capabilities.len(), 15);
        assert!(capabilities.values().all(|value| value == false));
        assert_eq!(from_value::<InitializeReply>(value).unwrap(), reply);
    }

    #[test]
    fn methods_without_parameters_take_an_empty_object() {
        assert_eq!(to_value(EnvironmentInfo {}).unwrap(), json!({}));
        assert!(from_value::<EnvironmentStatus>(json!({"trace": 1})).is_ok());
        let ready = EnvironmentStatusReply { status: EnvironmentStatusReply::READY.into() };
        assert_eq!(to_value(ready).unwrap(), json!({"status": "ready"}));
    }
}
