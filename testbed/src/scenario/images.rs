//! Images between hosts that are killed, and on disks that are full.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{SLOW, Scenario};
use crate::command;
use crate::host::{Host, Start};
use crate::lab::{self, JOIN_TIME_MAX, Lab};
use crate::root_image::write_random;
use crate::sandbox;
use crate::small_disk::SmallDisk;
use crate::wait;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "image-crash",
        about: "agents are killed while they import, fetch and give an image: their stores stay usable, fetching goes on",
        topology: SLOW,
        tools: &[],
        run: crashes,
    },
    Scenario {
        name: "image-full",
        about: "a disk that is too small or fills up in the middle of a pull: refused with numbers, nothing half-made stays",
        topology: SLOW,
        tools: &["mount", "umount"],
        run: full_disk,
    },
];

/// Twelve seconds on the link.
const IMAGE_MIB: u64 = 60;
const PULL_TIME_MAX: Duration = Duration::from_secs(120);

fn crashes(lab: &mut Lab) -> Result<()> {
    let image = image()?;
    let path = image.to_str().context("An odd path")?;
    lab.start_swarm()?;
    let mut import = run(lab.host("gamma")?, &["image", "import", path, "--name", "big"])?;
    let unfinished = store(lab.host("gamma")?, "tmp/0");
    wait::until_true("the import to have begun", lab::CONTACT_TIME_MAX, || {
        // On a fast machine it may be over.
        let is_over = import.try_wait()?.is_some();
        Ok((is_over || count_files(&unfinished)? > 0, "nothing".to_owned()))
    })?;
    kill_and_return(lab, "gamma")?;
    end(import)?;
    let left = lab.host("gamma")?.list(&["image", "list"])?;
    let is_whole = |image: &Value| image["name"] == "big" && image["local"] == true;
    ensure!(left.is_empty() || left.iter().all(is_whole), "Half an image: {left:?}");
    lab.host("gamma")?.json(&["image", "import", path, "--name", "big"])?;
    check(lab.host("gamma")?)?;
    await_image(lab.host("alpha")?)?;

    // Who fetches is killed.
    let pull = run(lab.host("alpha")?, &["image", "pull", "big"])?;
    await_files(lab.host("alpha")?, "chunks", 20)?;
    kill_and_return(lab, "alpha")?;
    end(pull)?;
    let kept = count_files(&store(lab.host("alpha")?, "chunks"))?;
    ensure!(kept >= 20, "Only {kept} chunks are left");
    // Who gives is killed, and gives the rest when it is back.
    let pull = run(lab.host("alpha")?, &["image", "pull", "big"])?;
    await_files(lab.host("alpha")?, "chunks", kept + 5)?;
    kill_and_return(lab, "gamma")?;
    ensure!(finish(pull)?, "The pull failed");
    check(lab.host("alpha")?)
}

fn full_disk(lab: &mut Lab) -> Result<()> {
    let image = image()?;
    lab.expect("alpha", "Fetching an image pauses");
    lab.start_swarm()?;
    lab.host("gamma")?.json(&["image", "import", image.to_str().context("An odd path")?, "--name", "big"])?;
    let alpha = lab.host("alpha")?;
    await_image(alpha)?;
    let store_dir = alpha.state_dir().join("images");
    lab.host_mut("alpha")?.terminate()?;
    let small = SmallDisk::mount(&store_dir, 100)?;
    lab.host_mut("alpha")?.start(&Start::alone())?;
    await_image(lab.host("alpha")?)?;
    let refused = lab.host("alpha")?.refused(&["image", "pull", "big"], 1)?;
    ensure!(refused.contains("No space") && refused.contains("MiB"), "Unclear: {refused}");

    lab.host_mut("alpha")?.terminate()?;
    drop(small);
    let _small = SmallDisk::mount(&store_dir, 160)?;
    lab.host_mut("alpha")?.start(&Start::alone())?;
    lab.await_members(&["alpha", "beta", "gamma"], JOIN_TIME_MAX)?;
    await_image(lab.host("alpha")?)?;
    let alpha = lab.host("alpha")?;
    let pull = run(alpha, &["image", "pull", "big"])?;
    await_files(alpha, "chunks", 20)?;
    let filler = store_dir.join("filler");
    // Until nothing more fits.
    ensure!(write_random(&filler, 200, 2).is_err(), "The disk is not full");
    ensure!(!finish(pull)?, "A pull on a full disk");
    wait::until_true("the store to be empty", lab::CONTACT_TIME_MAX, || {
        let left = ["chunks", "partial", "manifests", "tmp"].map(|part| count_files(&store(alpha, part)));
        let left = left.into_iter().collect::<Result<Vec<_>>>()?;
        Ok((left.iter().sum::<usize>() == 0, format!("{left:?}")))
    })?;
    fs::remove_file(&filler)?;
    ensure!(finish(run(alpha, &["image", "pull", "big"])?)?, "The pull failed");
    check(alpha)
}

fn image() -> Result<PathBuf> {
    let path = sandbox::fresh_dir("image")?.join("big.raw");
    write_random(&path, IMAGE_MIB, 1)?;
    Ok(path)
}

fn kill_and_return(lab: &mut Lab, name: &str) -> Result<()> {
    lab.host_mut(name)?.kill()?;
    lab.host_mut(name)?.start(&Start::alone())?;
    lab.await_members(&["alpha", "beta", "gamma"], JOIN_TIME_MAX)
}

/// A client verb that takes its time.
fn run(host: &Host, words: &[&str]) -> Result<Child> {
    let mut command = Command::new(host.binary());
    command.args(words).arg("--socket").arg(host.socket());
    command::spawn(command.stdout(Stdio::null()).stderr(Stdio::null()))
}

/// Waits for its end, which was forced on it.
fn end(mut verb: Child) -> Result<()> {
    verb.wait().map(drop).context("Cannot wait for a client")
}

/// Waits for its end; whether it succeeded.
fn finish(mut verb: Child) -> Result<bool> {
    wait::until("a client to end", PULL_TIME_MAX, || {
        let status = verb.try_wait()?;
        Ok(status.map_or_else(|| wait::Seen::NotYet("it runs".to_owned()), |status| wait::Seen::Done(status.success())))
    })
}

fn check(host: &Host) -> Result<()> {
    let found = host.json(&["image", "verify", "big"])?;
    ensure!(found["ok"] == true, "Damaged on {}: {found}", host.name());
    Ok(())
}

fn await_image(host: &Host) -> Result<()> {
    wait::until_true("the image to be known", lab::CONTACT_TIME_MAX, || {
        let images = host.list(&["image", "list"])?;
        Ok((images.iter().any(|image| image["name"] == "big"), format!("{images:?}")))
    })
}

fn store(host: &Host, part: &str) -> PathBuf {
    host.state_dir().join("images").join(part)
}

fn await_files(host: &Host, part: &str, count: usize) -> Result<()> {
    let path = store(host, part);
    wait::until_true(format!("{count} files in {}", path.display()), lab::CONTACT_TIME_MAX, || {
        let now = count_files(&path)?;
        Ok((now >= count, now.to_string()))
    })
}

/// Files below a directory.
fn count_files(path: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(path).with_context(|| format!("Cannot read {}", path.display()))? {
        let entry = entry?;
        count += if entry.file_type()?.is_dir() { count_files(&entry.path())? } else { 1 };
    }
    Ok(count)
}
