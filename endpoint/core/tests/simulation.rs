//! Whole conversations under a hostile relay; see [`world`].
//!
//! `SEED=17 cargo test -p rendez-endpoint --test simulation` replays one seed
//! and prints its events.

mod world;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use rendez_proto::profile::Profile;
use world::{NetworkFaults, World};

/// Faults of every kind, by seed: from none to 29 % loss.
fn reliable(seed: u64) -> World {
    let profile = if seed % 4 == 3 { Profile::RendezIkV1 } else { Profile::RendezHybridIkV1 };
    let faults = NetworkFaults {
        loss: seed % 30,
        repeat: seed % 7 * 3,
        forge: seed % 11,
        splice: seed % 5,
        delay: [1, 20, 100, 400][(seed / 4 % 4) as usize],
        cuts: seed % 6,
        false_resets: seed.is_multiple_of(3),
        new_registrations: seed.is_multiple_of(2),
    };
    World::new(seed, profile, faults, 1 + seed % 3)
}

/// Faults that a Codex stream survives: repetition, reordering, forged records.
fn codex(seed: u64) -> World {
    let faults = NetworkFaults {
        repeat: seed % 50,
        forge: seed % 20,
        splice: seed % 20,
        delay: 1 + seed % 3,
        ..NetworkFaults::default()
    };
    World::new(seed, Profile::NoiseHybridIkV1, faults, 1)
}

fn each_seed(make: fn(u64) -> World, seeds: std::ops::Range<u64>, mut check: impl FnMut(&World)) {
    let only = std::env::var("SEED").ok().map(|seed| seed.parse().expect("SEED is a number"));
    for seed in only.map_or(seeds, |seed| seed..seed + 1) {
        let mut world = make(seed);
        let run = catch_unwind(AssertUnwindSafe(|| world.run()));
        if only.is_some() {
            println!("{}", world.log.join("\n"));
        }
        if let Err(panic) = run {
            eprintln!("SEED={seed} fails after {} ms of virtual time", world.elapsed());
            resume_unwind(panic);
        }
        check(&world);
    }
}

#[test]
fn reliable_streams_deliver_exactly_once_in_order() {
    let (mut retransmits, mut refused, mut hints, mut hours) = (0, 0, 0, 0.0);
    each_seed(reliable, 0..200, |world| {
        retransmits += world.total(|stats| stats.retransmits);
        refused += world.total(|stats| stats.refused_records + stats.refused_control);
        hints += world.total(|stats| stats.hints);
        hours += world.elapsed() as f64 / 3.6e6;
    });
    println!("{hours:.1} h, {retransmits} retransmits, {refused} refused, {hints} hints");
    if std::env::var_os("SEED").is_none() {
        assert!(retransmits > 1_000 && refused > 1_000 && hints > 100, "too few faults");
    }
}

#[test]
fn codex_streams_survive_reordering_and_forgery() {
    let (mut duplicates, mut refused) = (0, 0);
    each_seed(codex, 0..60, |world| {
        assert_eq!(world.total(|stats| stats.retransmits), 0);
        duplicates += world.total(|stats| stats.duplicates);
        refused += world.total(|stats| stats.refused_records);
    });
    if std::env::var_os("SEED").is_none() {
        assert!(duplicates > 100 && refused > 100, "too few faults");
    }
}

#[test]
fn same_seed_gives_same_run() {
    for seed in [5, 23, 28] {
        let run = || {
            let mut world = reliable(seed);
            world.run();
            std::mem::take(&mut world.log)
        };
        assert!(run() == run(), "seed {seed} gave two different runs");
    }
}
