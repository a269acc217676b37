//! The script of a seed: the nodes, their conversations, and the faults.

use rendez_proto::profile::Profile;

use crate::rng::Rng;
use crate::{MS, Micros, SEC};

/// Names a node of the world: the first executor is 0, orchestrators follow.
pub type NodeId = usize;

/// A fault or an attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// The relay attacks frames to a node.
    Attack {
        /// The attack.
        how: Attack,
        /// The node whose incoming frames are attacked.
        on: NodeId,
        /// How many of a hundred.
        percent: u64,
        /// For how long.
        during: Micros,
    },
    /// A node's websocket breaks. The ends notice at their own times, up to
    /// the time limit on silence; until then their frames go nowhere.
    Cut {
        /// The node.
        node: NodeId,
        /// After how long the endpoint notices.
        endpoint_notices: Micros,
        /// After how long the relay notices.
        relay_notices: Micros,
    },
    /// A link carries nothing for a while; TCP then goes on.
    Stall {
        /// The node.
        node: NodeId,
        /// For how long.
        during: Micros,
    },
    /// The relay's process ends and comes back: all sockets and hubs are gone,
    /// and the registry answers nothing meanwhile.
    RestartRelay {
        /// How long it is away.
        during: Micros,
    },
    /// The registry answers nothing, or errors.
    LoseRegistry {
        /// For how long.
        during: Micros,
        /// Whether requests hang until they time out.
        hangs: bool,
    },
    /// The executor's process is restarted: same identity, new registration,
    /// no memory.
    RestartExecutor {
        /// How long it is away.
        during: Micros,
    },
    /// An executor with another identity takes the environment over.
    Usurp {
        /// After how long the usurper is killed and the first takes over again;
        /// `None`: the first is killed.
        during: Option<Micros>,
    },
    /// An end gets no processor.
    Pause {
        /// The node.
        node: NodeId,
        /// For how long.
        during: Micros,
        /// Whether its clock stands still meanwhile (a suspended machine).
        clock_stands: bool,
    },
    /// An application stops reading.
    SlowReader {
        /// The node.
        node: NodeId,
        /// For how long.
        during: Micros,
    },
    /// A node's clock jumps forward.
    JumpClock {
        /// The node.
        node: NodeId,
        /// How far.
        by: Micros,
    },
}

/// An attack of a hostile relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attack {
    /// A frame is lost.
    Drop,
    /// A frame comes twice.
    Duplicate,
    /// A frame arrives later than its successor.
    Reorder,
    /// Bits of a frame, or of a copy of it, are flipped.
    Forge,
    /// An old frame comes again.
    Replay,
    /// Parts of two frames are put together.
    Splice,
    /// Resets, acknowledgements, resumes and random bytes are invented.
    Inject,
}

impl Attack {
    const ALL: [Attack; 7] = [
        Attack::Drop,
        Attack::Duplicate,
        Attack::Reorder,
        Attack::Forge,
        Attack::Replay,
        Attack::Splice,
        Attack::Inject,
    ];
}

/// A world's script.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) executor: Path,
    pub(crate) orchestrators: Vec<Orchestrator>,
    /// Transitions and their times.
    pub(crate) transitions: Vec<(Micros, Transition)>,
    /// From here on there are no faults.
    pub(crate) calm_at: Micros,
}

/// One node's way to the relay.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Path {
    /// One way.
    pub(crate) latency: Micros,
    pub(crate) bytes_per_second: u64,
    /// Bytes that the kernels on the way buffer, per direction.
    pub(crate) buffer: usize,
}

#[derive(Debug, Clone)]
pub(crate) struct Orchestrator {
    pub(crate) profile: Profile,
    pub(crate) path: Path,
    pub(crate) conversations: Vec<Conversation>,
}

/// One session of an orchestrator with the executor.
#[derive(Debug, Clone)]
pub(crate) struct Conversation {
    pub(crate) starts: Micros,
    /// Body sizes of requests and of their answers.
    pub(crate) requests: Vec<(u32, u32)>,
    pub(crate) request_every: Micros,
    /// Body sizes of the process's output.
    pub(crate) outputs: Vec<u32>,
    pub(crate) output_every: Micros,
    pub(crate) closer: Closer,
}

/// The end that closes a conversation once it is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closer {
    Orchestrator,
    Executor,
    Both,
    /// The orchestrator, when the world asks it to: idle streams stay open.
    Lingers,
}

impl Plan {
    pub(crate) fn new(seed: u64) -> Self {
        let rng = &mut Rng::new(seed, 1);
        let horizon = rng.pick(&[2, 5, 10, 20, 40, 120]) * SEC;
        let count = rng.pick(&[1, 1, 1, 2, 2, 3, 4]);
        // about one in a hundred moves more than all buffers hold
        let flood = rng.chance(1);
        let orchestrators = (0..count).map(|_| orchestrator(rng, horizon, flood)).collect();
        let mut transitions = Vec::new();
        let count_of_transitions = rng.pick(&[0, 1, 2, 3, 5, 8, 13, 20]);
        for _ in 0..count_of_transitions {
            let at = rng.below(horizon);
            let node = rng.below(count + 1) as NodeId;
            transitions.push((at, transition(rng, node)));
        }
        if flood {
            let during = rng.between(20, 60) * SEC;
            let node = rng.below(count + 1) as NodeId;
            transitions.push((SEC, Transition::SlowReader { node, during }));
        }
        transitions.sort_by_key(|(at, _)| *at);
        let ends = transitions.iter().map(|(at, what)| at + what.lasts());
        let calm_at = ends.max().unwrap_or(0) + SEC;
        Self { executor: path(rng), orchestrators, transitions, calm_at }
    }

    /// All bytes that applications will send.
    pub(crate) fn volume(&self) -> u64 {
        self.orchestrators
            .iter()
            .flat_map(|orchestrator| &orchestrator.conversations)
            .map(|conversation| {
                let calls = conversation.requests.iter().map(|(ask, answer)| ask + answer);
                calls.chain(conversation.outputs.iter().copied()).map(u64::from).sum::<u64>()
            })
            .sum()
    }

    /// The slowest of all paths.
    pub(crate) fn slowest(&self) -> (Micros, u64) {
        let paths = || {
            self.orchestrators.iter().map(|other| other.path).chain(std::iter::once(self.executor))
        };
        let latency = paths().map(|path| path.latency).max().unwrap_or(0);
        let bandwidth = paths().map(|path| path.bytes_per_second).min().unwrap_or(1);
        (latency, bandwidth)
    }
}

impl Transition {
    /// How long it lasts at least.
    pub(crate) fn lasts(&self) -> Micros {
        match *self {
            Transition::Attack { during, .. }
            | Transition::Stall { during, .. }
            | Transition::RestartRelay { during }
            | Transition::LoseRegistry { during, .. }
            | Transition::RestartExecutor { during }
            | Transition::Pause { during, .. }
            | Transition::SlowReader { during, .. } => during,
            Transition::Cut { endpoint_notices, relay_notices, .. } => {
                endpoint_notices.max(relay_notices)
            }
            Transition::Usurp { during } => during.unwrap_or(0),
            Transition::JumpClock { .. } => 0,
        }
    }

    /// The name for counters.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Transition::Attack { how: Attack::Drop, .. } => "drop",
            Transition::Attack { how: Attack::Duplicate, .. } => "duplicate",
            Transition::Attack { how: Attack::Reorder, .. } => "reorder",
            Transition::Attack { how: Attack::Forge, .. } => "forge",
            Transition::Attack { how: Attack::Replay, .. } => "replay",
            Transition::Attack { how: Attack::Splice, .. } => "splice",
            Transition::Attack { how: Attack::Inject, .. } => "inject",
            Transition::Cut { node: 0, .. } => "cut executor",
            Transition::Cut { .. } => "cut orchestrator",
            Transition::Stall { .. } => "stall",
            Transition::RestartRelay { .. } => "restart relay",
            Transition::LoseRegistry { .. } => "lose registry",
            Transition::RestartExecutor { .. } => "restart executor",
            Transition::Usurp { .. } => "usurp",
            Transition::Pause { .. } => "pause",
            Transition::SlowReader { .. } => "slow reader",
            Transition::JumpClock { .. } => "jump clock",
        }
    }
}

fn path(rng: &mut Rng) -> Path {
    Path {
        latency: rng.pick(&[50, 500, 5_000, 40_000, 100_000, 300_000]),
        bytes_per_second: rng.pick(&[2_000_000, 20_000_000, 125_000_000]),
        buffer: rng.pick(&[16, 64, 256, 1024]) * 1024,
    }
}

fn orchestrator(rng: &mut Rng, horizon: Micros, flood: bool) -> Orchestrator {
    use Profile::{NoiseHybridIkV1, RendezHybridIkV1, RendezIkV1};
    let profile = rng.pick(&[
        RendezHybridIkV1,
        RendezHybridIkV1,
        RendezIkV1,
        RendezIkV1,
        RendezIkV1,
        NoiseHybridIkV1,
    ]);
    let count = rng.pick(&[1, 1, 2, 3]);
    // a stock executor's flood over a slow link is reset again and again, so
    // only its orchestrator makes one
    let flood = match (flood, profile.is_reliable()) {
        (false, _) => Flood::None,
        (true, true) => Flood::BothWays,
        (true, false) => Flood::Up,
    };
    let conversations = (0..count).map(|_| conversation(rng, horizon, flood)).collect();
    Orchestrator { profile, path: path(rng), conversations }
}

/// Whether a conversation may move more than all buffers hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flood {
    None,
    Up,
    BothWays,
}

fn conversation(rng: &mut Rng, horizon: Micros, flood: Flood) -> Conversation {
    let starts = if rng.chance(60) { rng.below(SEC) } else { rng.below(horizon) };
    let pace = |rng: &mut Rng, count: u64| match rng.below(4) {
        0 => 0,
        1 => rng.below(20 * MS),
        // spread over the time in which things happen
        _ => horizon / count.max(1),
    };
    let count = rng.pick(&[0, 1, 5, 20, 50]);
    let requests = (0..count).map(|_| (size(rng), size(rng))).collect();
    let request_every = pace(rng, count);
    let count = rng.pick(&[0, 1, 10, 40, 120]);
    let outputs = (0..count).map(|_| size(rng).min(8 * 1024)).collect();
    let output_every = pace(rng, count);
    let closer = rng.pick(&[Closer::Orchestrator, Closer::Executor, Closer::Both, Closer::Lingers]);
    let mut conversation =
        Conversation { starts, requests, request_every, outputs, output_every, closer };
    if flood != Flood::None && rng.chance(60) {
        if rng.chance(70) && flood == Flood::BothWays {
            conversation.outputs = vec![8 * 1024; 1_800];
            conversation.output_every = 0;
        } else {
            conversation.requests = vec![(64 * 1024, 10); 220];
            conversation.request_every = 0;
        }
    }
    conversation
}

/// Mostly small, sometimes many records.
fn size(rng: &mut Rng) -> u32 {
    let largest = match rng.below(40) {
        0 => 400_000,
        1..=5 => 70_000,
        6..=15 => 8_000,
        _ => 200,
    };
    rng.below(largest) as u32
}

fn transition(rng: &mut Rng, node: NodeId) -> Transition {
    let seconds =
        |rng: &mut Rng| rng.pick(&[100 * MS, SEC, 5 * SEC, 20 * SEC]) + rng.below(2 * SEC);
    match rng.below(24) {
        0..=9 => Transition::Attack {
            how: rng.pick(&Attack::ALL),
            on: node,
            percent: rng.pick(&[3, 10, 30, 60, 100]),
            during: seconds(rng),
        },
        10..=12 => {
            let notices = |rng: &mut Rng| match rng.below(4) {
                0 => rng.below(60 * SEC),
                1 => rng.below(5 * SEC),
                _ => rng.below(300 * MS),
            };
            Transition::Cut {
                node: if rng.chance(40) { 0 } else { node },
                endpoint_notices: notices(rng),
                relay_notices: notices(rng),
            }
        }
        13 => Transition::Stall { node, during: seconds(rng) },
        14 | 15 => Transition::RestartRelay { during: seconds(rng) },
        16 => Transition::LoseRegistry { during: 2 * seconds(rng), hangs: rng.chance(50) },
        17 => Transition::RestartExecutor { during: seconds(rng) },
        18 => {
            let during = rng.chance(60).then(|| seconds(rng));
            Transition::Usurp { during }
        }
        19 | 20 => Transition::Pause {
            node,
            during: rng.pick(&[SEC, 20 * SEC, 60 * SEC, 60 * SEC, 85 * SEC, 120 * SEC]),
            clock_stands: rng.chance(50),
        },
        21 | 22 => Transition::SlowReader { node, during: seconds(rng) },
        _ => Transition::JumpClock {
            node,
            by: rng.pick(&[SEC, 11 * SEC, 60 * SEC, 85 * SEC, 200 * SEC]),
        },
    }
}
