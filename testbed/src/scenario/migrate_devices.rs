//! What a user has open of a VM stays open while the VM moves: its console, its display, the disc in its drive. And a
//! host whose owner stops it sends its VMs away first.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{LAN, Scenario};
use crate::command;
use crate::host::{Host, Start};
use crate::lab::{CONTACT_TIME_MAX, JOIN_TIME_MAX, Lab};
use crate::rfb::Viewer;
use crate::sys;
use crate::terminal::Terminal;
use crate::test_guest::TestGuest;
use crate::wait;

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "migrate-devices",
        about: "a VM moves while its console is typed into, its display watched, its disc read: all stay open, no byte is lost",
        topology: LAN,
        tools: TOOLS,
        run: devices,
    },
    Scenario {
        name: "migrate-lost-disc",
        about: "the host of the disc in a VM's drive dies before the VM moves: it moves, with an empty drive",
        topology: LAN,
        tools: TOOLS,
        run: lost_disc,
    },
    Scenario {
        name: "drain-on-stop",
        about: "an agent that is stopped sends its VMs away first, not without a target, and not after a second signal",
        topology: LAN,
        tools: TOOLS,
        run: drain_on_stop,
    },
];

const TOOLS: &[&str] = &["sha256sum", "genisoimage", TestGuest::QEMU];
/// A guest boots in six seconds without KVM; the rest is for a loaded machine.
const BOOT_TIME_MAX: Duration = Duration::from_secs(90);
/// One command in a guest, which may read all of a disc.
const WORDS_TIME_MAX: Duration = Duration::from_secs(60);
/// Lines that are typed before the first of them must be seen: more than a serial port keeps.
const LINES_AHEAD: usize = 100;
/// Lines that are typed after the move.
const LINES_AFTER: usize = 200;
/// A line every so often: three times as fast as people type who hold a key.
const TYPING_INTERVAL: Duration = Duration::from_millis(4);
/// Dark red and blue, as the text console paints them.
const RED: [u8; 3] = [0xa8, 0, 0];
const BLUE: [u8; 3] = [0, 0, 0xa8];

fn devices(lab: &mut Lab) -> Result<()> {
    let guest = boot(lab, "alpha", &[])?;
    let gamma = lab.host("gamma")?;
    gamma.json(&["vm", "cdrom", "one", "insert", guest.installer()])?;
    let before = gamma.json(&["vm", "show", "one"])?;
    let mut console = console(gamma)?;
    let display = Display::open(lab, "one.vnc")?;
    let mut viewer = display.viewer()?;
    paint(&mut console, 41)?;
    viewer.await_colour(RED, WORDS_TIME_MAX).context("Before the move")?;
    let lease = lease(&mut console)?;

    begin_to_read(&mut console, guest.installer())?;
    let begun = Instant::now();
    let (report, typed) = type_while_moving(gamma, &mut console, "beta")?;
    let lines = typed.lines().count();
    let copy = beside(lab, "typed")?;
    fs::write(&copy, &typed)?;
    let said = console.shell("sha256sum /tmp/typed", WORDS_TIME_MAX)?;
    ensure!(said.contains(&digest(&copy)?), "The guest should have each of {lines} lines once: {said:?}");

    is_read_to_its_end(&mut console, guest.installer())?;
    lab.note(format!(
        "total {} ms, blackout {} ms; {lines} lines typed meanwhile, disc read for {:.1?}",
        report["total_ms"],
        report["blackout_ms"],
        begun.elapsed()
    ));

    paint(&mut console, 44)?;
    viewer.await_colour(BLUE, WORDS_TIME_MAX).context("By the same connection after the move")?;
    let mut second = display.viewer().context("A second viewer after the move")?;
    second.await_colour(BLUE, WORDS_TIME_MAX)?;
    ensure!(self::lease(&mut console)? == lease, "The guest has another lease after the move");
    is_the_same(&before, &lab.host("gamma")?.json(&["vm", "show", "one"])?)?;
    let log = lab.host("gamma")?.verb(&["vm", "console", "one", "--log"])?.stdout;
    ensure!(log.contains("VM-READY name=one"), "The console's past stayed behind: {log:?}");
    lab.host("gamma")?.json(&["vm", "cdrom", "one", "eject"])?;
    let empty = console.shell("cat /dev/sr0 >/dev/null", WORDS_TIME_MAX)?;
    ensure!(empty.contains("No medium"), "The drive should be empty: {empty:?}");
    takes_an_image_along(lab, &guest, &mut console)
}

/// A disc that is an image, which neither of the VM's hosts has when the VM moves on.
fn takes_an_image_along(lab: &Lab, guest: &TestGuest, console: &mut Terminal) -> Result<()> {
    let gamma = lab.host("gamma")?;
    gamma.json(&["image", "import", guest.installer(), "--name", "disc"])?;
    gamma.json(&["vm", "cdrom", "one", "insert", "--image", "disc"])?;
    begin_to_read(console, guest.installer())?;
    gamma.json(&["vm", "migrate", "one", "--to", "alpha"])?;
    is_read_to_its_end(console, guest.installer())?;
    let shown = gamma.json(&["vm", "show", "one"])?;
    ensure!(shown["host_name"] == "alpha" && shown["details"]["cdrom"]["source"] == "disc", "No disc: {shown}");
    Ok(())
}

/// Types lines while the VM moves. What the guest shows of them must be each of them once and in order.
fn type_while_moving(gamma: &Host, console: &mut Terminal, to: &str) -> Result<(Value, String)> {
    // The shell takes what is typed before another program reads.
    console.type_in("sh -c 'echo READS-$((1 + 1)); exec cat >/tmp/typed'\n")?;
    console.await_text("READS-2\r\n", WORDS_TIME_MAX)?;
    let mut command = Command::new(gamma.binary());
    command.args(["vm", "migrate", "one", "--json", "--to", to, "--socket"]).arg(gamma.socket());
    let moving = std::thread::spawn(move || command::run(&mut command));
    let line = |number: usize| format!("line {number:05}");
    let see = |console: &mut Terminal, number: usize| -> Result<()> {
        let before = console.await_text(&format!("{}\r\n", line(number)), WORDS_TIME_MAX)?;
        ensure!(before.is_empty(), "Before line {number} the guest shows {before:?}");
        Ok(())
    };
    let (mut typed, mut last) = (String::new(), usize::MAX);
    let mut count = 0;
    while count < last {
        let text = format!("{}\n", line(count));
        console.type_in(&text)?;
        typed.push_str(&text);
        if let Some(seen) = count.checked_sub(LINES_AHEAD) {
            see(console, seen)?;
        }
        count += 1;
        if last == usize::MAX && moving.is_finished() {
            last = count + LINES_AFTER;
        }
        crate::interrupt::pause(TYPING_INTERVAL)?;
    }
    for seen in count.saturating_sub(LINES_AHEAD)..count {
        see(console, seen)?;
    }
    console.type_in("\x04")?;
    let report = moving.join().map_err(|_| anyhow::anyhow!("The moving thread panicked"))??;
    Ok((serde_json::from_str(&report)?, typed))
}

/// Has the guest read its disc, slowly enough for both hosts to be asked for some of it.
fn begin_to_read(console: &mut Terminal, disc: &str) -> Result<()> {
    console.shell("rm -f /tmp/is-read; echo 3 >/proc/sys/vm/drop_caches", WORDS_TIME_MAX)?;
    let read = read_blocks(disc, "usleep 30000")?;
    console.shell(&format!("(({read}) >/tmp/slowly; touch /tmp/is-read) & sleep 0.3"), WORDS_TIME_MAX).map(drop)
}

/// What was read over the move must be what is on the disc.
fn is_read_to_its_end(console: &mut Terminal, disc: &str) -> Result<()> {
    let said = console.shell("ls /tmp/is-read; wc -l /tmp/slowly", WORDS_TIME_MAX)?;
    ensure!(said.contains("No such file"), "The disc was read before the move: {said:?}");
    wait::until_true("the disc to be read", WORDS_TIME_MAX, || {
        let said = console.shell("ls /tmp/is-read", WORDS_TIME_MAX)?;
        Ok((!said.contains("No such file"), said))
    })?;
    console.shell(&format!("({}) >/tmp/again", read_blocks(disc, ":")?), WORDS_TIME_MAX)?;
    let difference = console.shell("diff /tmp/slowly /tmp/again && echo SAME-$((1 + 1))", WORDS_TIME_MAX)?;
    ensure!(difference.contains("SAME-2"), "Blocks were read wrong over the move: {difference:?}");
    let said = console.shell("sha256sum /dev/sr0", WORDS_TIME_MAX)?;
    ensure!(said.contains(&digest(Path::new(disc))?), "The disc is not what it was: {said:?}");
    Ok(())
}

/// Shell words that tell the digest of each block of a disc, and do something between two of them.
fn read_blocks(disc: &str, between: &str) -> Result<String> {
    let blocks = fs::metadata(disc)?.len().div_ceil(512 << 10);
    let read = "dd if=/dev/sr0 bs=512k skip=$n count=1 2>/dev/null | md5sum";
    Ok(format!("for n in $(seq 0 {}); do {read}; {between}; done", blocks - 1))
}

/// What must not change when a VM moves.
fn is_the_same(before: &Value, after: &Value) -> Result<()> {
    ensure!(after["host_name"] == "beta" && after["state"] == "running", "It is not on beta: {after}");
    for key in ["name", "id", "vcpus", "memory_bytes"] {
        ensure!(before[key] == after[key] && !after[key].is_null(), "{key} was {} and is {}", before[key], after[key]);
    }
    // What else the guest calls itself is learned from what it says, and may come later.
    let given = |shown: &Value| {
        let nic = &shown["networks"][0];
        [nic["network"].clone(), nic["mac"].clone(), nic["ips"][0].clone()]
    };
    let (nic, nic_after) = (given(before), given(after));
    ensure!(nic == nic_after && nic.iter().all(Value::is_string), "The network was {nic:?} and is {nic_after:?}");
    for key in ["labels", "restart", "limits", "cdrom", "disk_bytes", "kernel"] {
        let (before, after) = (&before["details"][key], &after["details"][key]);
        ensure!(before == after && !after.is_null(), "{key} was {before} and is {after}");
    }
    let details = &after["details"];
    ensure!(details["labels"]["tier"] == "db", "No label: {details}");
    ensure!(details["limits"]["cpu_percent"] == 190 && details["limits"]["iops"] == 900, "No limits: {details}");
    ensure!(details["cdrom"]["host_name"] == "gamma", "No disc: {details}");
    Ok(())
}

fn lost_disc(lab: &mut Lab) -> Result<()> {
    let guest = boot(lab, "alpha", &["--cdrom"])?;
    let monitor = lab.host("beta")?.monitor()?;
    lab.host_mut("gamma")?.kill()?;
    let begin = Instant::now();
    lab.host("alpha")?.json(&["vm", "migrate", "one", "--to", "beta"])?;
    lab.note(format!("moved in {:.1?} with a disc whose host was gone", begin.elapsed()));
    wait::until_true("the loss to be told", CONTACT_TIME_MAX, || {
        let events = monitor.events()?;
        Ok((events.iter().any(|event| event["kind"] == "cdrom_lost"), format!("{events:?}")))
    })?;
    let shown = lab.host("alpha")?.json(&["vm", "show", "one"])?;
    ensure!(shown["host_name"] == "beta" && shown["details"]["cdrom"].is_null(), "Not an empty drive: {shown}");
    let mut console = console(lab.host("alpha")?)?;
    let empty = console.shell("cat /dev/sr0 >/dev/null", WORDS_TIME_MAX)?;
    ensure!(empty.contains("No medium"), "The guest should see an empty drive: {empty:?}");
    // The drive works as before.
    lab.host("beta")?.json(&["vm", "cdrom", "one", "insert", guest.installer()])?;
    let said = console.shell("dd if=/dev/sr0 bs=256k count=4 2>/dev/null | wc -c", WORDS_TIME_MAX)?;
    ensure!(said.contains("1048576"), "The drive can't be read: {said:?}");
    Ok(())
}

fn drain_on_stop(lab: &mut Lab) -> Result<()> {
    boot(lab, "alpha", &[])?;
    let pid = pid(lab.host("alpha")?)?;
    for host in ["beta", "gamma"] {
        lab.host(host)?.json(&["host", "drain"])?;
    }
    // From now on it drains when it stops; nobody takes its VM.
    lab.host_mut("alpha")?.kill()?;
    restart(lab)?;
    let ended = lab.host_mut("alpha")?.terminate()?;
    ensure!(ended.success(), "It did not end in order: {ended}");
    let log = lab.host("alpha")?.log_text();
    ensure!(log.contains("A VM runs on here without an agent: No other host has room"), "It should say so: {log}");
    ensure!(runs(pid), "The VM ended with its agent");

    restart(lab)?;
    ensure!(self::pid(lab.host("alpha")?)? == pid, "The VM has another process");
    for host in ["beta", "gamma"] {
        lab.host(host)?.json(&["host", "undrain"])?;
    }
    wait::until_true("alpha to know that they take VMs", JOIN_TIME_MAX, || {
        let found = lab.host("alpha")?.list(&["host", "find", "--memory", "128MiB"])?;
        Ok((found.len() >= 2, format!("{found:?}")))
    })?;
    stops_at_once_when_told_twice(lab)?;
    ensure!(runs(pid), "The VM ended with its agent");

    restart(lab)?;
    ensure!(self::pid(lab.host("alpha")?)? == pid, "The VM has another process");
    let mut console = console(lab.host("beta")?)?;
    console.shell("echo was-here >/tmp/mark", WORDS_TIME_MAX)?;
    let begin = Instant::now();
    let ended = lab.host_mut("alpha")?.terminate()?;
    ensure!(ended.success(), "It did not end in order: {ended}");
    lab.note(format!("the agent sent its VM away and ended in {:.1?}", begin.elapsed()));
    let said = console.shell("cat /tmp/mark", WORDS_TIME_MAX)?;
    ensure!(said.contains("was-here"), "Not the same guest: {said:?}");
    let shown = lab.host("beta")?.json(&["vm", "show", "one"])?;
    ensure!(shown["host_name"] != "alpha" && shown["state"] == "running", "It should have moved: {shown}");
    ensure!(!runs(pid), "Its old process is still there");

    restart(lab)?;
    let hosts = lab.host("alpha")?.list(&["host", "find", "--memory", "128MiB"])?;
    ensure!(hosts.iter().any(|host| host["name"] == "alpha"), "A host that begins again takes VMs: {hosts:?}");
    Ok(())
}

fn restart(lab: &mut Lab) -> Result<()> {
    let config = Some("mdns = false\ndrain_on_stop = true\ndrain_time_s = 60\n".to_owned());
    lab.host_mut("alpha")?.start(&Start { config, ..Start::alone() })?;
    lab.await_members(&["alpha", "beta", "gamma"], JOIN_TIME_MAX)?;
    lab.await_vm("one")
}

fn stops_at_once_when_told_twice(lab: &mut Lab) -> Result<()> {
    let alpha = lab.host("alpha")?;
    let begun = |log: &str| log.matches("Moves VMs to other hosts before it stops").count();
    let before = begun(&alpha.log_text());
    sys::kill(alpha.pid()?, libc::SIGTERM)?;
    wait::until_true("alpha to send its VM away", CONTACT_TIME_MAX, || {
        Ok((begun(&alpha.log_text()) > before, String::new()))
    })?;
    sys::kill(alpha.pid()?, libc::SIGTERM)?;
    let begin = Instant::now();
    let ended = lab.host_mut("alpha")?.await_exit()?;
    ensure!(ended.success(), "It did not end in order: {ended}");
    lab.note(format!("a second signal ended it in {:.1?}", begin.elapsed()));
    let log = lab.host("alpha")?.log_text();
    ensure!(log.contains("Told to stop again"), "It should say so: {log}");
    Ok(())
}

/// VM one on `host`, asked on gamma; with `--cdrom` with a disc of gamma's in its drive.
fn boot(lab: &mut Lab, host: &str, options: &[&str]) -> Result<TestGuest> {
    lab.start_swarm()?;
    lab.create_network("blue", &["--subnet", "10.8.0.0/24"])?;
    let guest = TestGuest::beside(lab.host("alpha")?.binary())?;
    let append = format!("console=tty0 {}", guest.append_dhcp("one"));
    let words = ["vm", "create", "one", "--host", host, "--memory", "128MiB", "--disk", "64MiB", "--net", "blue"];
    let limits = ["--vcpus", "2", "--cpu-limit", "190", "--iops-limit", "900", "--label", "tier=db"];
    let files = ["--kernel", guest.kernel(), "--initrd", guest.initrd(), "--append", &append];
    let disc: Vec<&str> = options.iter().flat_map(|option| [*option, guest.installer()]).collect();
    lab.host("gamma")?.json(&[&words[..], &limits, &files, &disc].concat())?;
    wait::until_true("VM one to be ready", BOOT_TIME_MAX, || {
        let log = lab.host("gamma")?.verb(&["vm", "console", "one", "--log"])?;
        Ok((log.stdout.contains("VM-READY name=one"), format!("{}{}", log.stdout, log.stderr)))
    })?;
    Ok(guest)
}

fn pid(host: &Host) -> Result<u64> {
    super::vm::pid(host, "one")
}

/// Whether a process runs; one that has ended and that nobody has asked for has no words left.
fn runs(pid: u64) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| !words.is_empty())
}

/// The console of VM one on a terminal of `host`.
fn console(host: &Host) -> Result<Terminal> {
    let mut command = Command::new(host.binary());
    command.args(["vm", "console", "one", "--socket"]).arg(host.socket());
    let mut terminal = Terminal::run(&mut command)?;
    terminal.await_text("Ctrl-] detaches", CONTACT_TIME_MAX)?;
    terminal.shell("", WORDS_TIME_MAX).context("No shell on the console")?;
    // The kernel's words would mix with the guest's.
    terminal.shell("dmesg -n 1", WORDS_TIME_MAX)?;
    Ok(terminal)
}

/// Paints the guest's screen.
fn paint(console: &mut Terminal, colour: u8) -> Result<()> {
    console.shell(&format!("printf '\\033[{colour}m\\033[2J' >/dev/tty0"), WORDS_TIME_MAX).map(drop)
}

/// The address that the guest's DHCP client gets when it asks again.
fn lease(console: &mut Terminal) -> Result<String> {
    let ask = "udhcpc -n -q -t 5 -s /bin/true -i $(ls /sys/class/net | grep ^e) 2>&1";
    let said = console.shell(ask, WORDS_TIME_MAX)?;
    let lease = said.split("lease of ").nth(1).and_then(|rest| rest.split(' ').next());
    Ok(lease.with_context(|| format!("No lease: {said:?}"))?.to_owned())
}

/// `virtuoso vm display` of VM one on gamma.
struct Display {
    client: Child,
    socket: PathBuf,
}

impl Display {
    fn open(lab: &Lab, name: &str) -> Result<Self> {
        let (gamma, socket) = (lab.host("gamma")?, beside(lab, name)?);
        let mut command = Command::new(gamma.binary());
        command.args(["vm", "display", "one", "--no-viewer", "--unix"]).arg(&socket);
        command.arg("--socket").arg(gamma.socket()).stdout(Stdio::null()).stderr(Stdio::null());
        let display = Self { client: command::spawn(&mut command)?, socket };
        wait::until_true("the display's socket", CONTACT_TIME_MAX, || Ok((display.socket.exists(), String::new())))?;
        Ok(display)
    }

    fn viewer(&self) -> Result<Viewer> {
        Viewer::connect(&self.socket)
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

fn digest(path: &Path) -> Result<String> {
    let said = command::run(Command::new("sha256sum").arg(path))?;
    Ok(said.split(' ').next().context("No digest")?.to_owned())
}

/// A path in a directory that goes with the lab.
fn beside(lab: &Lab, name: &str) -> Result<PathBuf> {
    Ok(lab.host("gamma")?.state_dir().with_file_name(name))
}
