//! CD-ROM drives, displays and consoles of a VM, from other hosts than its own.

use std::fs;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{LAN, Scenario};
use crate::command;
use crate::host::Start;
use crate::lab::{self, JOIN_TIME_MAX, Lab};
use crate::rfb;
use crate::sys;
use crate::terminal::Terminal;
use crate::test_guest::TestGuest;
use crate::wait::{self, Seen};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "install",
        about: "a VM installs from a CD-ROM image on its user's machine, and boots what it installed",
        topology: LAN,
        tools: &[TestGuest::QEMU, "genisoimage"],
        run: install,
    },
    Scenario {
        name: "cdrom",
        about: "a file of the user's machine goes into a drive elsewhere and out; agents restart, the user's host dies",
        topology: LAN,
        tools: &[TestGuest::QEMU, "genisoimage", "sha256sum"],
        run: cdrom,
    },
    Scenario {
        name: "display",
        about: "display and console of a VM from another host: VNC, a picture, a terminal that detaches",
        topology: LAN,
        tools: &[TestGuest::QEMU],
        run: display,
    },
];

/// Firmware and kernel take fifteen seconds without KVM; the rest is for a loaded machine.
const BOOT_TIME_MAX: Duration = Duration::from_secs(300);
/// One command in a guest, which may read all of a disc.
const WORDS_TIME_MAX: Duration = Duration::from_secs(120);
/// The agent waits 15 s for a user's host, and QEMU does not take long.
const LOSS_TIME_MAX: Duration = Duration::from_secs(45);

fn install(lab: &mut Lab) -> Result<()> {
    lab.start_swarm()?;
    let guest = TestGuest::beside(lab.host("alpha")?.binary())?;
    let gamma = lab.host("gamma")?;
    let create = ["vm", "create", "new", "--host", "beta", "--disk", "64MiB", "--memory", "160MiB"];
    let made = gamma.json(&[&create[..], &["--cdrom", guest.installer()]].concat())?;
    let cdrom = &made["details"]["cdrom"];
    ensure!(cdrom["source"] == guest.installer() && cdrom["host_name"] == "gamma", "Not in the drive: {made}");
    wait::until_true("the installer to finish", BOOT_TIME_MAX, || {
        let shown = gamma.json(&["vm", "show", "new"])?;
        ensure!(shown["details"]["crash"].is_null(), "It crashed: {shown}");
        Ok((shown["state"] == "stopped", shown["state"].to_string()))
    })?;
    // The disc is still in the drive: a disk that boots comes first.
    lab.host("alpha")?.json(&["vm", "start", "new"])?;
    await_log(lab, "gamma", "new", "VM-READY name=installed")?;
    let shown = lab.host("alpha")?.json(&["vm", "cdrom", "new", "eject"])?;
    ensure!(shown["details"]["cdrom"].is_null(), "Still in the drive: {shown}");
    gamma.json(&["vm", "delete", "new", "--force"]).map(drop)
}

fn cdrom(lab: &mut Lab) -> Result<()> {
    let guest = boot_one(lab)?;
    let digest = digest(guest.disk())?;
    let mut console = console(lab, "alpha")?;
    let empty = console.shell("cat /dev/sr0 >/dev/null", WORDS_TIME_MAX)?;
    ensure!(empty.contains("No medium"), "The drive should be empty: {empty:?}");

    lab.host("gamma")?.json(&["vm", "cdrom", "one", "insert", guest.installer()])?;
    let begin = Instant::now();
    check_disc(&mut console, &digest)?;
    lab.note(format!("the guest mounted and hashed 32 MiB in {:.1?}", begin.elapsed()));
    console.shell("echo 3 >/proc/sys/vm/drop_caches", WORDS_TIME_MAX)?;
    let begin = Instant::now();
    let said = console.shell("dd if=/dev/sr0 of=/dev/null bs=1M", WORDS_TIME_MAX)?;
    let mb = fs::metadata(guest.installer())?.len() as f64 / 1e6;
    lab.note(format!("the guest read {mb:.0} MB at {:.0} MB/s", mb / begin.elapsed().as_secs_f64()));
    ensure!(said.contains("records out") && !said.contains("error"), "The disc should be read: {said:?}");

    // Another host than the one that has the file takes it out.
    lab.host("alpha")?.json(&["vm", "cdrom", "one", "eject"])?;
    let empty = console.shell("cat /dev/sr0 >/dev/null", WORDS_TIME_MAX)?;
    ensure!(empty.contains("No medium"), "The drive should be empty again: {empty:?}");
    takes_an_image(lab, &guest, &mut console, &digest)?;
    let refusal = lab.host("gamma")?.refused(&["vm", "cdrom", "one", "insert", "/no/such.iso"], 4)?;
    ensure!(refusal.contains("/no/such.iso"), "Unclear: {refusal}");

    drop(console);
    survives_restarts(lab, &guest, &digest)?;
    user_goes_away(lab, &guest)
}

/// A disc that is an image of another host, and not on the VM's.
fn takes_an_image(lab: &Lab, guest: &TestGuest, console: &mut Terminal, digest: &str) -> Result<()> {
    lab.host("gamma")?.json(&["image", "import", guest.installer(), "--name", "disc"])?;
    let alpha = lab.host("alpha")?;
    wait::until_true("alpha to know the image", JOIN_TIME_MAX, || {
        Ok((!alpha.list(&["image", "list"])?.is_empty(), "no image".to_owned()))
    })?;
    let shown = alpha.json(&["vm", "cdrom", "one", "insert", "--image", "disc"])?;
    ensure!(shown["details"]["cdrom"]["source"] == "disc", "Not in the drive: {shown}");
    console.shell("echo 3 >/proc/sys/vm/drop_caches", WORDS_TIME_MAX)?;
    check_disc(console, digest)?;
    alpha.json(&["vm", "cdrom", "one", "eject"]).map(drop)
}

/// Neither the agent of the VM's host nor that of the file's takes the disc with it.
fn survives_restarts(lab: &mut Lab, guest: &TestGuest, digest: &str) -> Result<()> {
    lab.host("gamma")?.json(&["vm", "cdrom", "one", "insert", guest.installer()])?;
    for host in ["beta", "gamma"] {
        lab.host_mut(host)?.kill()?;
        lab.host_mut(host)?.start(&Start::alone())?;
        lab.await_members(&["alpha", "beta", "gamma"], JOIN_TIME_MAX)?;
        let mut console = console(lab, "alpha")?;
        console.shell("echo 3 >/proc/sys/vm/drop_caches", WORDS_TIME_MAX)?;
        check_disc(&mut console, digest).with_context(|| format!("After a restart of {host}'s agent"))?;
    }
    Ok(())
}

fn user_goes_away(lab: &mut Lab, guest: &TestGuest) -> Result<()> {
    let monitor = lab.host("beta")?.monitor()?;
    let mut console = console(lab, "alpha")?;
    console.shell("echo 3 >/proc/sys/vm/drop_caches", WORDS_TIME_MAX)?;
    lab.host_mut("gamma")?.kill()?;
    let begin = Instant::now();
    // The guest reads meanwhile: it gets an error, and does not hang.
    console.type_in("cat /dev/sr0 >/dev/null\n")?;
    wait::until_true("the drive to be empty", LOSS_TIME_MAX, || {
        let shown = lab.host("alpha")?.json(&["vm", "cdrom", "one", "show"])?;
        Ok((shown.is_null(), shown.to_string()))
    })?;
    lab.note(format!("the drive was empty {:.1?} after the user's host was gone", begin.elapsed()));
    wait::until_true("the loss to be told", LOSS_TIME_MAX, || {
        let events = monitor.events()?;
        Ok((events.iter().any(|event| event["kind"] == "cdrom_lost"), format!("{events:?}")))
    })?;
    let empty = console.shell("cat /dev/sr0 >/dev/null", WORDS_TIME_MAX)?;
    ensure!(empty.contains("No medium"), "The guest should see an empty drive: {empty:?}");
    let alive = console.shell("cat /proc/uptime", WORDS_TIME_MAX)?;
    ensure!(alive.contains('.'), "The guest is not well: {alive:?}");
    let missing = format!("{}.gone", guest.installer());
    lab.host("alpha")?.refused(&["vm", "cdrom", "one", "insert", &missing], 4).map(drop)
}

fn check_disc(console: &mut Terminal, digest: &str) -> Result<()> {
    let said = console.shell(
        "mkdir -p /mnt && mount -t iso9660 -o ro /dev/sr0 /mnt && sha256sum /mnt/disk.img; umount /mnt",
        WORDS_TIME_MAX,
    )?;
    ensure!(said.contains(digest), "The guest should read {digest}: {said:?}");
    Ok(())
}

fn display(lab: &mut Lab) -> Result<()> {
    boot_one(lab)?;
    takes_a_picture(lab)?;
    serves_viewers(lab)?;
    is_a_terminal(lab)
}

fn takes_a_picture(lab: &mut Lab) -> Result<()> {
    let path = beside(lab, "one.png")?;
    lab.host("gamma")?.json(&["vm", "display", "one", "--screenshot", text(&path)?])?;
    let file = std::io::BufReader::new(fs::File::open(&path)?);
    let mut reader = png::Decoder::new(file).read_info().context("Not a PNG")?;
    let mut pixels = vec![0; reader.output_buffer_size().context("A picture without a size")?];
    let picture = reader.next_frame(&mut pixels)?;
    let size = picture.color_type.samples();
    let colours: std::collections::BTreeSet<&[u8]> = pixels[..picture.buffer_size()].chunks(size).collect();
    ensure!((picture.width, picture.height) == (720, 400), "Not VGA text: {picture:?}");
    ensure!(colours.len() > 1, "The picture is one colour");
    lab.note(format!("picture of {} by {}, {} colours", picture.width, picture.height, colours.len()));
    Ok(())
}

/// By a loopback port and a Unix socket, at once and one after the other.
fn serves_viewers(lab: &Lab) -> Result<()> {
    let gamma = lab.host("gamma")?;
    let socket = beside(lab, "one.vnc")?;
    let mut displays = Vec::new();
    for options in [&["--listen", "127.0.0.1:5901"][..], &["--unix", text(&socket)?]] {
        let mut command = gamma.namespace().command(gamma.binary());
        command.args(["vm", "display", "one", "--no-viewer"]).args(options).arg("--socket").arg(gamma.socket());
        displays.push(command::spawn(command.stdout(Stdio::null()).stderr(Stdio::null()))?);
    }
    let result = (|| {
        wait::until_true("the display's socket", lab::CONTACT_TIME_MAX, || Ok((socket.exists(), String::new())))?;
        let mut first = UnixStream::connect(&socket)?;
        let mut second = UnixStream::connect(&socket)?;
        for viewer in [&mut second, &mut first] {
            let (width, height, name) = rfb::handshake(viewer)?;
            ensure!((width, height) == (720, 400) && name.contains("one"), "Odd display: {width}x{height} {name}");
        }
        gamma.namespace().enter(|| {
            for _ in 0..2 {
                let connect = || Ok(Seen::Done(TcpStream::connect("127.0.0.1:5901")?));
                let mut viewer = wait::until("the display's port", lab::CONTACT_TIME_MAX, connect)?;
                rfb::handshake(&mut viewer)?;
            }
            Ok(())
        })
    })();
    for mut display in displays {
        sys::kill(display.id(), libc::SIGTERM)?;
        ensure!(display.wait()?.success(), "A display did not end in order");
    }
    result?;
    ensure!(!socket.exists(), "The display left its socket");
    let refusal = gamma.refused(&["vm", "display", "one", "--listen", "0.0.0.0:5901"], 1)?;
    ensure!(refusal.contains("loopback"), "Unclear: {refusal}");
    Ok(())
}

/// Two watchers on two hosts; one detaches by key, one is ended by a signal, one sees the VM stop.
fn is_a_terminal(lab: &Lab) -> Result<()> {
    let (mut one, mut two) = (console(lab, "gamma")?, console(lab, "alpha")?);
    ensure!(one.is_raw()? && two.is_raw()?, "Keys do not go to the guest one by one");
    one.shell("echo from-$((1 + 1))-one", WORDS_TIME_MAX)?;
    two.await_text("from-2-one", WORDS_TIME_MAX).context("The other watcher sees nothing")?;
    one.type_in("\x1d")?;
    let (status, said) = one.await_end(WORDS_TIME_MAX)?;
    ensure!(status.success() && said.contains("Detached") && !one.is_raw()?, "Not detached: {status} {said:?}");

    let mut three = console(lab, "gamma")?;
    sys::kill(three.pid(), libc::SIGTERM)?;
    three.await_end(WORDS_TIME_MAX)?;
    ensure!(!three.is_raw()?, "A signal left the terminal raw");

    lab.host("beta")?.json(&["vm", "stop", "one", "--force"])?;
    let (status, said) = two.await_end(WORDS_TIME_MAX)?;
    ensure!(status.success() && said.contains("VM one is stopped"), "Unclear end: {status} {said:?}");
    ensure!(!two.is_raw()?, "The end of the VM left the terminal raw");
    let refusal = lab.host("gamma")?.refused(&["vm", "console", "one"], 1)?;
    ensure!(refusal.contains("is not running"), "Unclear: {refusal}");
    Ok(())
}

/// Boots a VM without network on beta, asked on gamma.
fn boot_one(lab: &mut Lab) -> Result<TestGuest> {
    lab.start_swarm()?;
    let guest = TestGuest::beside(lab.host("alpha")?.binary())?;
    let append = "console=tty0 console=ttyS0 quiet panic=-1 mitigations=off no_timer_check vm.name=one";
    let words = ["vm", "create", "one", "--host", "beta", "--memory", "128MiB", "--append", append];
    let files = ["--kernel", guest.kernel(), "--initrd", guest.initrd()];
    lab.host("gamma")?.json(&[&words[..], &files].concat())?;
    await_log(lab, "gamma", "one", "VM-READY name=one")?;
    Ok(guest)
}

fn await_log(lab: &Lab, host: &str, vm: &str, words: &str) -> Result<()> {
    wait::until_true(format!("the console of {vm} to say {words}"), BOOT_TIME_MAX, || {
        let log = lab.host(host)?.verb(&["vm", "console", vm, "--log"])?;
        Ok((log.stdout.contains(words), format!("{}{}", log.stdout, log.stderr)))
    })
}

/// The console of VM one on a terminal of `host`.
fn console(lab: &Lab, host: &str) -> Result<Terminal> {
    let host = lab.host(host)?;
    let mut command = Command::new(host.binary());
    command.args(["vm", "console", "one", "--socket"]).arg(host.socket());
    let mut terminal = Terminal::run(&mut command)?;
    terminal.await_text("Ctrl-] detaches", lab::CONTACT_TIME_MAX)?;
    terminal.shell("", WORDS_TIME_MAX).context("No shell on the console")?;
    Ok(terminal)
}

fn digest(path: &str) -> Result<String> {
    let said = command::run(Command::new("sha256sum").arg(path))?;
    Ok(said.split(' ').next().context("No digest")?.to_owned())
}

/// A path in a directory that goes with the lab.
fn beside(lab: &Lab, name: &str) -> Result<PathBuf> {
    Ok(lab.host("gamma")?.state_dir().with_file_name(name))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("Odd path {}", path.display()))
}
