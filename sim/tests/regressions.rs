//! Seeds that once failed, and what they found. Their runs change with the overlay and with the simulator; what they
//! found is also tested where it was mended.

use virtuoso_sim::options::Options;
use virtuoso_sim::scenarios::swarm;

fn passes(seed: u64) {
    let report = swarm::run(Options::draw(seed));
    assert!(report.failure.is_none(), "{}", report.text());
}

/// A host whose departed address was claimed by somebody else left its own row in the tables for ever.
#[test]
fn rows_of_hosts_that_gave_way() {
    for seed in [1, 5, 9, 28] {
        passes(seed);
    }
}

/// A claim that lost against another was never looked at again when that one went.
#[test]
fn claims_that_were_not_believed_in_time() {
    for seed in [12, 16, 17, 51] {
        passes(seed);
    }
}

/// Old disputed claims came back, grants for a port that was gone again were not told, and a claim that no row told of
/// outlived its holder's agent.
#[test]
fn claims_from_the_past() {
    for seed in [157, 236, 248] {
        passes(seed);
    }
}

/// A flooded frame waited at the former holder and came a second time from there.
#[test]
fn flooded_frames_that_were_held() {
    passes(289);
}

/// A grant that came after the row of its giver was gone was dropped: everybody else believed it.
#[test]
fn grants_that_nobody_took() {
    passes(763);
}

/// A claim that was kept while its guest was looked for ended the search.
#[test]
fn probes_that_never_ended() {
    passes(924);
}

/// A host that had missed one epoch never believed the next.
#[test]
fn hosts_that_missed_an_epoch() {
    passes(974);
}

/// Frames that waited for a guest which then moved to their sender's host were taken for a loop there.
#[test]
fn frames_that_came_back() {
    let report = swarm::run(Options { planned_move_mean_s: 2, ..Options::calm(1, 6) });
    assert!(report.failure.is_none(), "{}", report.text());
}
