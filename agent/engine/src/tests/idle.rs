//! What links cost while nothing passes. Takes most of a minute, so it runs on request:
//! `cargo test --release -p virtuoso --lib -- --ignored idle`.

use super::*;
use std::collections::BTreeSet;
use std::fs;

const LINKS: u8 = 100;

/// Handshakes and the search for the paths' MTU are over then.
const SETTLING: Duration = Duration::from_secs(15);

/// Some periods of everything that happens on a link.
const MEASURED: Duration = Duration::from_secs(24);

#[test]
#[ignore = "takes most of a minute, and a machine that does nothing else"]
fn a_hundred_idle_links_take_less_than_a_hundredth_of_a_core() {
    let lab = Lab::new(1);
    let before = threads();
    let mut hub = lab.host(&Options::key(1));
    let engine = threads().difference(&before).next().expect("the engine is a thread").clone();
    let others: Vec<Host> = (0..LINKS).map(|number| lab.host(&Options::key(number + 2))).collect();
    for other in &others {
        lab.introduce(&hub, other);
        lab.introduce(other, &hub);
        lab.runtime.block_on(hub.engine.connect(other.id)).unwrap();
        lab.expect_up(&mut hub, other);
    }
    std::thread::sleep(SETTLING);
    let used = cpu_time(&engine);
    std::thread::sleep(MEASURED);
    let share = (cpu_time(&engine) - used).as_secs_f64() / MEASURED.as_secs_f64();
    println!("{LINKS} idle links: {:.2} % of a core", share * 100.0);
    let up = lab.info(&hub).links.iter().filter(|link| link.state == LinkState::Up).count();
    assert_eq!(up, others.len());
    assert!(share < 0.01, "{share}");
}

/// This process's threads of the data plane, by their directories.
fn threads() -> BTreeSet<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path().display().to_string());
    tasks.filter(|task| fs::read_to_string(format!("{task}/comm")).is_ok_and(|name| name == "engine\n")).collect()
}

fn cpu_time(task: &str) -> Duration {
    let figures = fs::read_to_string(format!("{task}/schedstat")).unwrap();
    Duration::from_nanos(figures.split_whitespace().next().unwrap().parse().unwrap())
}
