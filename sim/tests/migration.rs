//! One migration under faults: every pair of faults at every two steps of a fair run, and random ones.

use virtuoso_sim::migration::{self, Fault};

fn passes(seed: u64) {
    let report = migration::run(seed);
    assert!(report.failure.is_none(), "{}", report.text());
}

#[test]
fn random_migrations_leave_one_runner() {
    for seed in 0..200 {
        passes(seed);
    }
}

/// Seeds that once failed. A guest that died at the target while its pages were being fetched; a host that could not
/// write that the migration was given up; a target that was gone for good while it fetched memory.
#[test]
fn seeds_that_failed() {
    for seed in [48, 4_209, 15_365, 198_852, 284_853, 382_350] {
        passes(seed);
    }
}

#[test]
fn an_undisturbed_migration_arrives() {
    for post_copy in 0..3 {
        for has_disk in [false, true] {
            let report = migration::run_planned(has_disk, post_copy, &[]);
            assert_eq!((report.failure.as_ref(), report.end), (None, "target"), "{}", report.text());
        }
    }
}

#[test]
fn any_one_fault_at_any_step_leaves_one_runner() {
    for post_copy in 0..3 {
        for step in 0..migration::calm_steps(true, post_copy) {
            for fault in Fault::ALL {
                planned(post_copy, &[(step, fault)]);
            }
        }
    }
}

/// The second fault strikes soon after the first, when what that led to is under way.
#[test]
fn any_two_faults_leave_one_runner() {
    for post_copy in [0, 2] {
        for step in (0..migration::calm_steps(true, post_copy)).step_by(3) {
            for first in Fault::ALL {
                for second in Fault::ALL {
                    for delay in [1, 9, 40] {
                        planned(post_copy, &[(step, first), (step + delay, second)]);
                    }
                }
            }
        }
    }
}

fn planned(post_copy: u64, faults: &[(u64, Fault)]) {
    let report = migration::run_planned(true, post_copy, faults);
    assert!(report.failure.is_none(), "{faults:?} with post-copy {post_copy}\n{}", report.text());
}
