//! Small swarms with random mixes of faults. A seed that fails here belongs into `regressions.rs` once it is
//! understood.

use virtuoso_sim::options::Options;
use virtuoso_sim::scenarios::swarm;

#[test]
fn random_swarms_come_into_order() {
    for seed in 0..60 {
        let report = swarm::run(Options::draw(seed));
        assert!(report.failure.is_none(), "{}", report.text());
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 1_000..1_005 {
        let (one, two) = (swarm::run(Options::draw(seed)), swarm::run(Options::draw(seed)));
        assert_eq!((one.hash, one.events, one.frames_received), (two.hash, two.events, two.frames_received));
    }
    let other = swarm::run(Options::draw(1_005));
    assert_ne!(swarm::run(Options::draw(1_000)).hash, other.hash);
}

#[test]
fn calm_swarms_lose_nothing() {
    for seed in 0..40 {
        let options = Options { planned_move_mean_s: 2, ..Options::calm(seed, 6) };
        assert!(options.is_lossless());
        let report = swarm::run(options);
        assert!(report.failure.is_none(), "{}", report.text());
        assert!(report.frames_sent > 100);
    }
}
