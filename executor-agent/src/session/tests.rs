//! Sessions over in-memory streams with real child processes.

use std::collections::BTreeMap;
use std::time::Duration;

use rendez_proto::limits;
use rendez_proto::rpc::fs::{GetMetadata, ReadFile, ReadFileReply, WriteFile};
use rendez_proto::rpc::process::*;
use rendez_proto::rpc::session::*;
use rendez_proto::rpc::{Message, RequestId, RpcError, code};
use rendez_rpc::MessageStream as _;
use serde_json::json;

use super::StreamEnd;
use super::manager::SESSION_GRACE;
use super::rpc_connection::READS_WAITING_PER_STREAM;
use super::test_client::{Client, Event, path, read, shell};
use crate::fs::FILE_READS_AT_ONCE;
use crate::process::output_log::PROCESS_OUTPUT_RETAINED_BYTES;
use crate::testing::{is_alive, process_id as pid, session_manager, wait_until_gone};

// ---- phases --------------------------------------------------------------

#[tokio::test]
async fn initialize_is_required_first_and_once() {
    let mut client = Client::connect(&session_manager(), 8);
    let terminate = Terminate { process_id: pid("p") };
    let error = client.call::<Terminate>(&terminate).await.unwrap_err();
    assert_eq!(
        error,
        RpcError::invalid_request("client must call initialize before using exec methods")
    );
    // a failed call may be repeated
    let resume = SessionId("gone".into());
    let error = client.initialize(Some(&resume)).await.unwrap_err();
    assert_eq!(error, RpcError::invalid_request("unknown session id gone"));

    let reply = client.call::<Initialize>(&Initialize::default()).await.unwrap();
    let ours = reply.rendez.unwrap();
    assert!(ours.close_stdin && ours.stdin_window);
    assert_eq!(reply.environment_info.unwrap().cwd.unwrap().path(), "/tmp");
    let stat = GetMetadata { path: path("/tmp"), sandbox: None };
    assert_eq!(
        client.call::<GetMetadata>(&stat).await.unwrap_err(),
        RpcError::invalid_request("client must send initialized before using filesystem methods")
    );
    let again = RpcError::invalid_request("initialize may only be sent once per connection");
    assert_eq!(client.call::<Initialize>(&Initialize::default()).await.unwrap_err(), again);
    client.raw(br#"{"method":"initialized"}"#).await;
    client.call::<GetMetadata>(&stat).await.unwrap();
    assert_eq!(client.call::<Initialize>(&Initialize::default()).await.unwrap_err(), again);
    let status = client.call::<EnvironmentStatus>(&EnvironmentStatus {}).await.unwrap();
    assert_eq!(status.status, "ready");
}

#[tokio::test]
async fn invalid_calls_get_documented_errors() {
    let (mut client, _) = Client::ready(&session_manager(), None).await;
    for (request, code, message) in [
        (
            json!({"id": 90, "method": "x/y"}),
            code::METHOD_NOT_FOUND,
            "exec-server stub does not implement `x/y` yet",
        ),
        (
            json!({"id": 90, "method": "process/terminate", "params": {}}),
            code::INVALID_PARAMS,
            "missing field `processId`",
        ),
        (
            json!({"id": 90, "method": "fs/readFile", "params": {"path": "/tmp"}}),
            code::INVALID_PARAMS,
            "invalid URI: relative URL without a base",
        ),
        (
            json!({"id": 90, "method": "process/read", "params": {"processId": "zz"}}),
            code::INVALID_REQUEST,
            "unknown process id zz",
        ),
        (
            json!({"id": 90, "method": "process/write",
                "params": {"processId": "zz", "chunk": "", "writeId": ""}}),
            code::INVALID_PARAMS,
            "writeId must not be empty",
        ),
    ] {
        client.raw(request.to_string().as_bytes()).await;
        let error = client.answer::<EnvironmentInfo>(90).await.unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (code, message));
    }
}

#[tokio::test]
async fn invalid_message_ends_the_stream() {
    let (mut client, _) = Client::ready(&session_manager(), None).await;
    client.raw(br#"{"method":"what/ever","params":{}}"#).await;
    client.raw(br#"{"id":77,"result":null}"#).await;
    client.call::<EnvironmentInfo>(&EnvironmentInfo {}).await.unwrap();
    client.raw(b"{nonsense").await;
    assert_eq!(client.end.recv().await, None);
    assert_eq!(client.server.await.unwrap(), StreamEnd::InvalidMessage);
}

// ---- running -------------------------------------------------------------

#[tokio::test]
async fn output_and_exit_code_arrive_in_order() {
    let (mut client, _) = Client::ready(&session_manager(), None).await;
    let done = client.sh("p", "echo out; echo err >&2; exit 7").await;
    assert_eq!((done.stdout(), done.stderr.as_slice()), ("out\n", b"err\n".as_slice()));
    assert_eq!((done.code, done.last_seq), (Some(7), 4));
    assert!(!client.terminate("p").await, "it has ended");
    assert!(!client.terminate("unknown").await);
    client.signal("unknown", SignalName::Interrupt).await;
}

#[tokio::test]
async fn process_id_stays_taken_after_close() {
    let (mut client, _) = Client::ready(&session_manager(), None).await;
    client.sh("dup", "true").await;
    let error = client.call::<Start>(&shell("dup", "true")).await.unwrap_err();
    assert_eq!(error, RpcError::invalid_request("process dup already exists"));
    client.sh("", "true").await;
}

#[tokio::test]
async fn failed_start_is_explained_and_frees_id() {
    let (mut client, _) = Client::ready(&session_manager(), None).await;
    let good = shell("p", "true");
    let missing = "No such file or directory (os error 2)";
    for (start, code, message) in [
        (Start { argv: vec![], ..good.clone() }, code::INVALID_PARAMS, "argv must not be empty"),
        (Start { argv: vec!["no-such-x".into()], ..good.clone() }, code::INTERNAL, missing),
        (Start { argv: vec!["/no/such".into()], ..good.clone() }, code::INTERNAL, missing),
        (Start { cwd: path("/no/such"), ..good.clone() }, code::INTERNAL, missing),
        (
            Start { tty: true, argv: vec!["/no/such".into()], ..good.clone() },
            code::INTERNAL,
            missing,
        ),
    ] {
        let error = client.call::<Start>(&start).await.unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (code, message));
    }
    let nul = Start { argv: vec!["sh".into(), "a\0b".into()], ..good.clone() };
    assert_eq!(client.call::<Start>(&nul).await.unwrap_err().code, code::INVALID_PARAMS);
    let managed = json!({"permissions": {"type": "managed"}});
    for refused in [
        Start { sandbox: Some(managed), ..good.clone() },
        Start { enforce_managed_network: true, ..good.clone() },
        Start { managed_network: Some(json!({})), ..good.clone() },
        Start { network_proxy: Some(json!({"proxy": {}})), ..good.clone() },
        Start { shell_snapshot: Some(json!({})), ..good.clone() },
    ] {
        let error = client.call::<Start>(&refused).await.unwrap_err();
        assert_eq!(error.code, code::INVALID_REQUEST);
        assert!(error.message.contains("cannot enforce"), "{error}");
    }
    let open = Start { sandbox: Some(json!({"permissions": {"type": "disabled"}})), ..good };
    let reply = client.call::<Start>(&open).await.unwrap();
    assert_eq!(reply.sandbox_type, SANDBOX_NONE);
    assert_eq!(client.finish(&pid("p"), 0).await.code, Some(0));
}

#[tokio::test]
async fn child_gets_requested_path_cwd_and_env() {
    let (mut client, _) = Client::ready(&session_manager(), None).await;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    std::os::unix::fs::symlink("/bin/sh", root.join("my-sh")).unwrap();
    let root = root.to_str().unwrap();
    let start = Start {
        argv: ["my-sh", "-c", "/bin/pwd; echo $0; echo $A-$HOME"].map(str::to_owned).to_vec(),
        cwd: path(root),
        arg0: Some("renamed".into()),
        env: BTreeMap::from([("PATH".into(), root.into()), ("A".into(), "1".into())]),
        ..shell("p", "")
    };
    client.call::<Start>(&start).await.unwrap();
    let done = client.finish(&start.process_id, 0).await;
    assert_eq!(done.stdout(), format!("{root}\nrenamed\n1-\n"));

    let policy = EnvPolicy {
        exclude: vec!["home".into()],
        set: BTreeMap::from([("B".into(), "2".into())]),
        ..EnvPolicy::inherit_all()
    };
    let start = Start { env_policy: Some(policy), ..shell("q", "echo $B-$HOME") };
    client.call::<Start>(&start).await.unwrap();
    assert_eq!(client.finish(&start.process_id, 0).await.stdout(), "2-\n");
}

#[tokio::test]
async fn signals_reach_the_whole_process_group() {
    let (mut client, _) = Client::ready(&session_manager(), None).await;
    // if the inner sleep survived, it would hold the output open and delay the close
    let script = "sleep 1000 & echo ready; exec sleep 1000";
    for (signal, code) in
        [(SignalName::Terminate, 143), (SignalName::Kill, 137), (SignalName::Hangup, 129)]
    {
        let start = shell(&format!("{code}"), script);
        client.call::<Start>(&start).await.unwrap();
        assert!(matches!(client.next_event(&start.process_id).await, Event::Output(_)));
        client.signal(&start.process_id.0, signal).await;
        assert_eq!(client.finish(&start.process_id, 1).await.code, Some(code));
    }
    let start = shell("i", "echo ready; exec sleep 1000");
    client.call::<Start>(&start).await.unwrap();
    client.next_event(&start.process_id).await;
    client.signal("i", SignalName::Interrupt).await;
    assert_eq!(client.finish(&start.process_id, 1).await.code, Some(130));
    // the rest of the group can be signalled after its leader has exited; shells
    // start background jobs with SIGINT ignored
    let start = shell("o", script);
    client.call::<Start>(&start).await.unwrap();
    client.next_event(&start.process_id).await;
    client.signal("o", SignalName::Interrupt).await;
    let Event::Exited(exited) = client.next_event(&start.process_id).await else { panic!() };
    assert_eq!(exited.exit_code, 130);
    assert!(!client.terminate("o").await);
    assert!(matches!(client.next_event(&start.process_id).await, Event::Closed(_)));
    let start = shell("t", "echo ready; sleep 1000");
    client.call::<Start>(&start).await.unwrap();
    client.next_event(&start.process_id).await;
    assert!(client.terminate("t").await);
    assert_eq!(client.finish(&start.process_id, 1).await.code, Some(137));
}

// ---- input ---------------------------------------------------------------

#[tokio::test]
async fn stdin_is_written_once_per_id() {
    let (mut client, _) = Client::ready(&session_manager(), None).await;
    let start = Start { pipe_stdin: true, ..shell("cat", "cat; echo end") };
    client.call::<Start>(&start).await.unwrap();
    assert_eq!(client.write("cat", "a", Some("1")).await, WriteStatus::Accepted);
    assert_eq!(client.write("cat", "a", Some("1")).await, WriteStatus::Accepted);
    assert_eq!(client.write("cat", "b\n", Some("2")).await, WriteStatus::Accepted);
    assert_eq!(client.close_stdin("cat").await, WriteStatus::Accepted);
    assert_eq!(client.close_stdin("cat").await, WriteStatus::Accepted);
    let done = client.finish(&start.process_id, 0).await;
    assert_eq!((done.stdout(), done.code), ("ab\nend\n", Some(0)));
    assert_eq!(client.write("cat", "c", None).await, WriteStatus::StdinClosed);
    assert_eq!(client.write("cat", "b\n", Some("2")).await, WriteStatus::Accepted);
    assert_eq!(client.write("unknown", "c", None).await, WriteStatus::UnknownProcess);
    assert_eq!(client.close_stdin("unknown").await, WriteStatus::UnknownProcess);
}

#[tokio::test]
async fn child_without_stdin_reads_eof() {
    let (mut client, _) = Client::ready(&session_manager(), None).await;
    assert_eq!(client.sh("p", "cat; echo end").await.stdout(), "end\n");
    assert_eq!(client.write("p", "x", None).await, WriteStatus::StdinClosed);
}

#[tokio::test]
async fn requested_stdin_window_is_granted() {
    const MOST: u64 = limits::STDIN_WINDOW_MAX_BYTES as u64;
    let (mut client, _) = Client::ready(&session_manager(), None).await;
    for (id, asked, pipe_stdin, granted) in [
        ("a", None, true, None),
        ("b", Some(u64::MAX), true, Some(MOST)),
        ("c", Some(0), true, Some(limits::STDIN_QUEUED_BYTES as u64)),
        ("d", Some(MOST), false, None),
    ] {
        let start = Start { pipe_stdin, stdin_window: asked, ..shell(id, "exec sleep 1000") };
        assert_eq!(client.call::<Start>(&start).await.unwrap().stdin_window, granted, "{id}");
    }
}

#[tokio::test]
async fn pipelined_calls_keep_their_order() {
    let (mut client, _) = Client::ready(&session_manager(), None).await;
    let start = Start { pipe_stdin: true, ..shell("cat", "cat") };
    client.call::<Start>(&start).await.unwrap();
    let mut expected = String::new();
    let mut ids = Vec::new();
    for n in 0..20 {
        let chunk = format!("{n}\n");
        expected += &chunk;
        let write = Write { process_id: pid("cat"), chunk: chunk.into(), write_id: None };
        ids.push(client.ask::<Write>(&write).await);
    }
    let close =
        client.ask::<CloseStdin>(&CloseStdin { process_id: pid("cat"), write_id: None }).await;
    assert_eq!(client.finish(&pid("cat"), 0).await.stdout(), expected);
    for id in ids {
        assert_eq!(client.answer::<Write>(id).await.unwrap().status, WriteStatus::Accepted);
    }
    assert_eq!(client.answer::<CloseStdin>(close).await.unwrap().status, WriteStatus::Accepted);
}

#[tokio::test]
async fn child_that_ignores_stdin_can_be_terminated() {
    let (mut client, _) = Client::ready(&session_manager(), None).await;
    let start = Start { pipe_stdin: true, ..shell("p", "echo ready; exec sleep 1000") };
    client.call::<Start>(&start).await.unwrap();
    client.next_event(&start.process_id).await;
    // more than a pipe holds
    let write = Write { process_id: pid("p"), chunk: vec![0; 1 << 20], write_id: None };
    let stuck = client.ask::<Write>(&write).await;
    assert!(client.terminate("p").await);
    assert_eq!(client.answer::<Write>(stuck).await.unwrap().status, WriteStatus::StdinClosed);
    assert_eq!(client.finish(&start.process_id, 1).await.code, Some(137));
}

/// Starts three children that do not read, each with 30 waiting writes.
async fn stuck(client: &mut Client) -> Vec<String> {
    let mut ids = Vec::new();
    for id in ["a", "b", "c"] {
        let start = Start { pipe_stdin: true, ..shell(id, "echo $$; exec sleep 1000") };
        client.call::<Start>(&start).await.unwrap();
        let Event::Output(output) = client.next_event(&start.process_id).await else { panic!() };
        ids.push(String::from_utf8(output.chunk.to_vec()).unwrap().trim().to_owned());
        // one write is more than a pipe holds
        let write = Write { process_id: pid(id), chunk: vec![0; 100_000], write_id: None };
        for _ in 0..30 {
            client.ask::<Write>(&write).await;
        }
    }
    ids
}

#[tokio::test]
async fn blocked_writes_do_not_block_other_calls() {
    let (mut client, _) = Client::ready(&session_manager(), None).await;
    stuck(&mut client).await;
    client.call::<EnvironmentInfo>(&EnvironmentInfo {}).await.unwrap();
    let close = CloseStdin { process_id: pid("a"), write_id: None };
    let closing = client.ask::<CloseStdin>(&close).await;
    for id in ["a", "b", "c"] {
        assert!(client.terminate(id).await);
        assert_eq!(client.finish(&pid(id), 1).await.code, Some(137));
    }
    let closed = client.answer::<CloseStdin>(closing).await.unwrap();
    assert_eq!(closed.status, WriteStatus::StdinClosed);
}

#[tokio::test]
async fn session_with_blocked_writes_expires() {
    let sessions = session_manager();
    let sweeper = tokio::spawn({
        let sessions = sessions.clone();
        async move { sessions.expire_sessions().await }
    });
    let (mut client, _) = Client::ready(&sessions, None).await;
    let children = stuck(&mut client).await;
    client.disconnect().await;
    tokio::time::pause();
    tokio::time::advance(SESSION_GRACE + Duration::from_millis(10)).await;
    tokio::time::resume();
    for child in children {
        wait_until_gone(&child).await;
    }
    sweeper.abort();
}

// ---- terminal ------------------------------------------------------------

#[tokio::test]
async fn terminal_has_size_echo_interrupt_and_eof() {
    let (mut client, _) = Client::ready(&session_manager(), None).await;
    let tty = |id: &str, script: &str| Start { tty: true, ..shell(id, script) };
    client.call::<Start>(&tty("size", "stty size; tty >/dev/null && echo tty")).await.unwrap();
    let done = client.finish(&pid("size"), 0).await;
    assert_eq!(String::from_utf8(done.pty).unwrap(), "24 80\r\ntty\r\n");

    client.call::<Start>(&tty("cat", "exec cat")).await.unwrap();
    assert_eq!(client.write("cat", "hi\n", None).await, WriteStatus::Accepted);
    assert_eq!(client.close_stdin("cat").await, WriteStatus::Accepted);
    let done = client.finish(&pid("cat"), 0).await;
    assert_eq!((done.code, String::from_utf8(done.pty).unwrap()), (Some(0), "hi\r\nhi\r\n".into()));
    assert_eq!(client.write("cat", "late", None).await, WriteStatus::StdinClosed);

    client.call::<Start>(&tty("int", "echo ready; exec sleep 1000")).await.unwrap();
    client.next_event(&pid("int")).await;
    client.signal("int", SignalName::Interrupt).await;
    assert_eq!(client.finish(&pid("int"), 1).await.code, Some(130));
}

// ---- volume --------------------------------------------------------------

#[tokio::test]
async fn slow_reader_pauses_child_and_loses_nothing() {
    let total = 3 * PROCESS_OUTPUT_RETAINED_BYTES;
    let mut client = Client::connect(&session_manager(), 1);
    client.initialize(None).await.unwrap();
    let script = format!("head -c {total} /dev/zero");
    let start = shell("big", &script);
    client.call::<Start>(&start).await.unwrap();
    // the log fills up and the child is paused: it cannot have exited
    let full = PROCESS_OUTPUT_RETAINED_BYTES as u64 / 2 / 8192;
    let wait = Read { wait_ms: Some(60_000), max_bytes: Some(1), ..read("big", full) };
    let id = client.ask::<Read>(&wait).await;
    let reply = loop {
        // look for the reply; notifications stay in the inbox of this client
        let bytes = client.end.recv().await.unwrap();
        match Message::parse(&bytes).unwrap() {
            Message::Response { id: RequestId::Number(n), outcome } if n == id => {
                break outcome.unwrap().parse::<ReadReply>().unwrap();
            }
            other => client.inbox.push(other),
        }
    };
    assert!(!reply.exited);
    let done = client.finish(&start.process_id, 0).await;
    assert_eq!((done.stdout.len(), done.code), (total, Some(0)));
    assert_eq!(done.last_seq as usize, done.chunks + 2);
    assert_eq!(done.largest, limits::PROCESS_CHUNK_MAX_BYTES, "what stock clients expect");
}

#[tokio::test]
async fn chunk_size_follows_the_client() {
    const MOST: usize = limits::PROCESS_CHUNK_LARGE_MAX_BYTES;
    const LEAST: usize = limits::PROCESS_CHUNK_MAX_BYTES;
    let sessions = session_manager();
    for (takes, largest) in [(0, LEAST), (20_000, 20_000), (u64::MAX, MOST)] {
        let mut client = Client::connect(&sessions, 1);
        client.takes = Some(ClientExtensions { max_chunk: takes });
        client.initialize(None).await.unwrap();
        // one write that fills the pipe while it is not read
        let script = format!("head -c {} /dev/zero", 32 * MOST);
        let done = client.sh("p", &script).await;
        assert_eq!((done.stdout.len(), done.code), (32 * MOST, Some(0)));
        assert!(done.largest > largest / 2 && done.largest <= largest, "{}", done.largest);
    }
}

#[tokio::test]
async fn flooding_process_does_not_starve_others() {
    let mut client = Client::connect(&session_manager(), 4);
    client.initialize(None).await.unwrap();
    client.call::<Start>(&shell("flood", "exec cat /dev/zero")).await.unwrap();
    assert_eq!(client.sh("small", "echo hi").await.stdout(), "hi\n");
    assert!(client.terminate("flood").await);
    assert_eq!(client.finish(&pid("flood"), 0).await.code, Some(137));
}

// ---- reading -------------------------------------------------------------

#[tokio::test]
async fn read_repeats_waits_and_truncates() {
    let (mut client, _) = Client::ready(&session_manager(), None).await;
    let start = Start { pipe_stdin: true, ..shell("p", "cat") };
    client.call::<Start>(&start).await.unwrap();
    let nothing = client.read("p", 0).await;
    assert_eq!((nothing.chunks.len(), nothing.next_seq, nothing.exited), (0, 1, false));
    let wait = Read { wait_ms: Some(60_000), ..read("p", 0) };
    let id = client.ask::<Read>(&wait).await;
    client.write("p", "one", None).await;
    let reply = client.answer::<Read>(id).await.unwrap();
    assert_eq!((&reply.chunks[0].chunk[..], reply.next_seq), (b"one".as_slice(), 2));
    client.write("p", "two", None).await;
    client.close_stdin("p").await;
    client.finish(&pid("p"), 0).await;
    let cut = Read { max_bytes: Some(3), ..read("p", 0) };
    let reply = client.call::<Read>(&cut).await.unwrap();
    assert_eq!((reply.chunks.len(), reply.next_seq, reply.closed), (1, 2, true));
    let reply = client.read("p", 1).await;
    assert_eq!((&reply.chunks[0].chunk[..], reply.next_seq), (b"two".as_slice(), 5));
    assert_eq!(reply.exit_code, Some(0));
}

#[tokio::test]
async fn long_reads_do_not_block_other_calls() {
    let (mut client, _) = Client::ready(&session_manager(), None).await;
    client.call::<Start>(&shell("p", "exec sleep 1000")).await.unwrap();
    let wait = Read { wait_ms: Some(u64::MAX), ..read("p", 0) };
    let mut waiting = Vec::new();
    for _ in 0..READS_WAITING_PER_STREAM {
        waiting.push(client.ask::<Read>(&wait).await);
    }
    let beyond = client.call::<Read>(&wait).await.unwrap();
    assert!(!beyond.exited, "answered at once");
    client.call::<EnvironmentInfo>(&EnvironmentInfo {}).await.unwrap();
    assert!(client.terminate("p").await);
    for id in waiting {
        assert!(client.answer::<Read>(id).await.unwrap().next_seq > 1);
    }
}

// ---- sessions ------------------------------------------------------------

#[tokio::test]
async fn session_outlives_its_stream() {
    let sessions = session_manager();
    let (mut client, session) = Client::ready(&sessions, None).await;
    let start = Start { pipe_stdin: true, ..shell("p", "echo one; cat") };
    client.call::<Start>(&start).await.unwrap();
    assert!(matches!(client.next_event(&start.process_id).await, Event::Output(_)));

    let mut other = Client::connect(&sessions, 64);
    let error = other.initialize(Some(&session)).await.unwrap_err();
    assert_eq!(error.code, code::SESSION_ATTACHED);
    client.disconnect().await;
    assert_eq!(other.initialize(Some(&session)).await.unwrap(), session);

    assert_eq!(other.write("p", "two\n", None).await, WriteStatus::Accepted);
    // earlier output is read, later output is pushed
    let Event::Output(output) = other.next_event(&start.process_id).await else { panic!() };
    assert_eq!((output.seq, &output.chunk[..]), (2, b"two\n".as_slice()));
    let reply = other.read("p", 0).await;
    assert_eq!(reply.chunks.iter().map(|chunk| chunk.seq).collect::<Vec<_>>(), [1, 2]);
    other.close_stdin("p").await;
    assert_eq!(other.finish(&start.process_id, 2).await.code, Some(0));
}

#[tokio::test]
async fn detached_session_keeps_newest_output() {
    let sessions = session_manager();
    let (mut client, session) = Client::ready(&sessions, None).await;
    let total = 3 * PROCESS_OUTPUT_RETAINED_BYTES;
    let script = format!("read go; head -c {total} /dev/zero; echo end");
    let start = Start { pipe_stdin: true, ..shell("p", &script) };
    client.call::<Start>(&start).await.unwrap();
    client.write("p", "go\n", None).await;
    client.disconnect().await;

    let (mut client, _) = Client::ready(&sessions, Some(&session)).await;
    // the child may have written any part of it before the resume; the rest is pushed
    let reply = loop {
        let reply =
            client.call::<Read>(&Read { max_bytes: Some(1), ..read("p", 0) }).await.unwrap();
        if reply.closed {
            break client.read("p", 0).await;
        }
        while let Some(at) =
            client.inbox.iter().position(|m| matches!(m, Message::Notification { .. }))
        {
            client.inbox.remove(at);
        }
    };
    let first = reply.chunks[0].seq;
    assert!(first > 1, "older output was dropped");
    let seqs: Vec<_> = reply.chunks.iter().map(|chunk| chunk.seq).collect();
    // Only the sequence number of the exit may be missing among the chunks: the
    // child can exit while a full pipe of its output is unread.
    let holes: Vec<_> = seqs
        .windows(2)
        .filter(|pair| pair[1] != pair[0] + 1)
        .map(|pair| pair[1] - pair[0])
        .collect();
    assert!(matches!(holes[..], [] | [2]), "holes in what was kept: {holes:?}");
    assert!(reply.chunks.last().unwrap().chunk.ends_with(b"end\n"));
    assert_eq!(reply.exit_code, Some(0));
}

/// Starts a process that runs for long; returns its id of the operating system.
async fn start_sleeper(client: &mut Client) -> String {
    let start = shell("sleeper", "echo $$; exec sleep 1000");
    client.call::<Start>(&start).await.unwrap();
    let Event::Output(output) = client.next_event(&start.process_id).await else { panic!() };
    String::from_utf8(output.chunk.to_vec()).unwrap().trim().to_owned()
}

#[tokio::test]
async fn detached_session_expires_after_its_grace() {
    let sessions = session_manager();
    let sweeper = tokio::spawn({
        let sessions = sessions.clone();
        async move { sessions.expire_sessions().await }
    });
    let (mut client, session) = Client::ready(&sessions, None).await;
    let sleeper = start_sleeper(&mut client).await;
    client.disconnect().await;
    tokio::time::pause();
    tokio::time::advance(SESSION_GRACE - Duration::from_millis(10)).await;
    assert!(is_alive(&sleeper));
    tokio::time::advance(Duration::from_millis(20)).await;
    tokio::time::resume();
    wait_until_gone(&sleeper).await;
    let mut client = Client::connect(&sessions, 8);
    let error = client.initialize(Some(&session)).await.unwrap_err();
    assert_eq!(error.message, format!("unknown session id {session}"));
    sweeper.abort();
}

#[tokio::test]
async fn shutdown_kills_running_processes() {
    let sessions = session_manager();
    let (mut client, _) = Client::ready(&sessions, None).await;
    let sleeper = start_sleeper(&mut client).await;
    sessions.shutdown();
    wait_until_gone(&sleeper).await;
    // the stream ends after the messages in flight
    while client.end.recv().await.is_some() {}
    client.server.await.unwrap();
}

// ---- files ---------------------------------------------------------------

#[tokio::test]
async fn files_are_served_without_sandbox() {
    let (mut client, _) = Client::ready(&session_manager(), None).await;
    let folder = tempfile::tempdir().unwrap();
    let file = path(folder.path().join("x").to_str().unwrap());
    let write = WriteFile { path: file.clone(), data: b"hello".to_vec(), sandbox: None };
    client.call::<WriteFile>(&write).await.unwrap();
    let read = ReadFile { path: file.clone(), follow_symlinks: true, sandbox: None };
    let reply = client.call::<ReadFile>(&read).await.unwrap();
    assert_eq!(reply, ReadFileReply { data: b"hello".to_vec() });
    let managed = ReadFile { sandbox: Some(json!({"permissions": {"type": "managed"}})), ..read };
    let error = client.call::<ReadFile>(&managed).await.unwrap_err();
    assert_eq!(error.code, code::INVALID_REQUEST);
    let missing = GetMetadata { path: file.join("y").unwrap(), sandbox: None };
    assert_eq!(client.call::<GetMetadata>(&missing).await.unwrap_err().code, code::INTERNAL);
}

/// A file stays in memory until its stream has accepted it. Slow readers delay
/// others only once they hold all permits.
#[tokio::test]
async fn files_held_by_slow_clients_are_bounded() {
    let sessions = session_manager();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x");
    std::fs::write(&file, "hello").unwrap();
    let read =
        ReadFile { path: path(file.to_str().unwrap()), follow_symlinks: true, sandbox: None };
    let (mut quick, _) = Client::ready(&sessions, None).await;
    let mut slow = Vec::new();
    for _ in 0..FILE_READS_AT_ONCE {
        quick.call::<ReadFile>(&read).await.unwrap();
        let mut client = Client::connect(&sessions, 1);
        client.initialize(None).await.unwrap();
        // the stream accepts the first file; the second one and the rest wait
        let mut asked = vec![client.ask::<ReadFile>(&read).await];
        while client.end.unread() == 0 {
            tokio::task::yield_now().await;
        }
        for _ in 0..9 {
            asked.push(client.ask::<ReadFile>(&read).await);
        }
        slow.push((client, asked));
        while sessions.files().in_memory() < slow.len() {
            tokio::task::yield_now().await;
        }
    }
    let late = quick.ask::<ReadFile>(&read).await;
    for _ in 0..100 {
        quick.call::<EnvironmentInfo>(&EnvironmentInfo {}).await.unwrap();
    }
    let answered = |client: &Client| {
        let id = RequestId::Number(late);
        let is_it = |message: &Message| matches!(message, Message::Response { id: theirs, .. } if *theirs == id);
        client.inbox.iter().any(is_it)
    };
    assert!(!answered(&quick), "all permits were taken");
    let (mut client, asked) = slow.pop().unwrap();
    for id in asked {
        client.answer::<ReadFile>(id).await.unwrap();
    }
    quick.answer::<ReadFile>(late).await.unwrap();
}
