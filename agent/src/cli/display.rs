//! `virtuoso vm display`: a VM's display for a VNC viewer on this machine, wherever the VM is.

use super::{Asking, output};
use crate::control::DISPLAY_PROTOCOL;
use crate::control::client::{Call, Client};
use crate::name::Name;
use anyhow::{Context, ensure};
use clap::Args;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::{TcpListener, UnixListener};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Viewers at once.
const VIEWERS_MAX: usize = 16;

/// Viewers that are looked for, and how each wants a loopback address; `%` stands for the port.
const VIEWERS: &[(&str, &str)] = &[
    ("remote-viewer", "vnc://127.0.0.1:%"),
    ("vncviewer", "127.0.0.1::%"),
    ("gvncviewer", "127.0.0.1::%"),
    ("krdc", "vnc://127.0.0.1:%"),
];

#[derive(Args)]
pub(super) struct DisplayArgs {
    /// The VM
    name: Name,
    /// A loopback address for viewers [default: a free port of 127.0.0.1]
    #[arg(long, value_name = "IP:PORT", conflicts_with = "unix")]
    listen: Option<SocketAddr>,
    /// A Unix socket for viewers, closed to other users; a port is open to all users of this machine
    #[arg(long, value_name = "PATH")]
    unix: Option<PathBuf>,
    /// Start no viewer
    #[arg(long)]
    no_viewer: bool,
    /// Only write what the display shows to a file, as PNG; - for stdout
    #[arg(long, value_name = "FILE", conflicts_with_all = ["listen", "unix", "no_viewer"])]
    screenshot: Option<PathBuf>,
}

impl DisplayArgs {
    pub(super) async fn run(self, asking: &Asking) -> anyhow::Result<ExitCode> {
        if let Some(path) = &self.screenshot {
            return save(&asking.client, &self.name, path).await;
        }
        // What can't be shown is refused before anybody is told where to look.
        connect(&asking.client, &self.name).await?;
        let door = Door::open(&self).await?;
        if asking.json {
            output::line(&serde_json::json!({"address": door.address()}).to_string())?;
        } else {
            output::line(&door.address())?;
        }
        output::hint(&format!("Display of {} for VNC viewers, until Ctrl-C.", self.name));
        let mut viewer = if self.no_viewer { None } else { door.start_viewer() };
        let mut stop =
            [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?];
        let [interrupt, terminate, hangup] = &mut stop;
        tokio::select! {
            result = door.serve(&asking.client, &self.name) => result?,
            () = ended(&mut viewer) => {}
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Where viewers connect to. A Unix socket goes when this is dropped.
enum Door {
    Port(TcpListener, SocketAddr),
    File(UnixListener, PathBuf),
}

impl Door {
    async fn open(args: &DisplayArgs) -> anyhow::Result<Self> {
        if let Some(path) = &args.unix {
            let listener = UnixListener::bind(path);
            let listener = listener.with_context(|| format!("Can't listen on {}", path.display()))?;
            let door = Self::File(listener, path.clone());
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))
                .with_context(|| format!("Can't protect {}", path.display()))?;
            return Ok(door);
        }
        let address = args.listen.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, 0).into());
        ensure!(
            address.ip().is_loopback(),
            "{address} is open to the network, and VNC asks for no password: name a loopback address"
        );
        let listener = TcpListener::bind(address).await.with_context(|| format!("Can't listen on {address}"))?;
        let address = listener.local_addr().context("Can't tell the port")?;
        Ok(Self::Port(listener, address))
    }

    fn address(&self) -> String {
        match self {
            Self::Port(_, address) => format!("vnc://{address}"),
            Self::File(_, path) => path.display().to_string(),
        }
    }

    /// Joins each viewer with the display by a connection of its own, until it is dropped.
    async fn serve(&self, client: &Client, name: &Name) -> anyhow::Result<()> {
        let places = Arc::new(Semaphore::new(VIEWERS_MAX));
        loop {
            let place = places.clone().acquire_owned().await.context("No place for a viewer")?;
            match self {
                Self::Port(listener, _) => {
                    let (viewer, _) = listener.accept().await.context("Can't accept a viewer")?;
                    // Keys and pointer must not wait for each other.
                    viewer.set_nodelay(true).ok();
                    tokio::spawn(join(viewer, client.clone(), name.clone(), place));
                }
                Self::File(listener, _) => {
                    let (viewer, _) = listener.accept().await.context("Can't accept a viewer")?;
                    tokio::spawn(join(viewer, client.clone(), name.clone(), place));
                }
            }
        }
    }

    /// The first viewer that is installed, if there is a screen for it.
    fn start_viewer(&self) -> Option<Child> {
        let has_screen = ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|name| std::env::var_os(name).is_some());
        let Self::Port(_, address) = self else { return None };
        if !has_screen || !address.is_ipv4() {
            return None;
        }
        VIEWERS.iter().find_map(|(program, form)| {
            let mut command = Command::new(program);
            command.arg(form.replace('%', &address.port().to_string())).kill_on_drop(true);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()
        })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Self::File(_, path) = self {
            // Somebody else may have removed it.
            fs::remove_file(path).ok();
        }
    }
}

/// Waits for the end of the viewer; without one, for ever.
async fn ended(viewer: &mut Option<Child>) {
    match viewer {
        Some(viewer) => {
            // Whatever its status: the user has closed it, or it tells why it does not open.
            viewer.wait().await.ok();
        }
        None => std::future::pending().await,
    }
}

async fn connect(client: &Client, name: &Name) -> anyhow::Result<impl AsyncRead + AsyncWrite + Unpin> {
    Ok(client.upgraded(Call::upgrade(format!("/v1/vms/{name}/display"), DISPLAY_PROTOCOL)).await?)
}

async fn join(
    mut viewer: impl AsyncRead + AsyncWrite + Unpin,
    client: Client,
    name: Name,
    place: OwnedSemaphorePermit,
) {
    match connect(&client, &name).await {
        Ok(mut display) => {
            // However it ends, the viewer sees it.
            copy_bidirectional(&mut viewer, &mut display).await.ok();
        }
        Err(error) => output::hint(&format!("A viewer gets no display: {error:#}")),
    }
    drop(place);
}

async fn save(client: &Client, name: &Name, path: &Path) -> anyhow::Result<ExitCode> {
    let picture = client.call(Call::get(format!("/v1/vms/{name}/screenshot"))).await?;
    if path == Path::new("-") {
        output::write(&picture)?;
    } else {
        fs::write(path, &picture).with_context(|| format!("Can't write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::tests::served;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpStream, UnixStream};

    fn args(listen: Option<&str>, unix: Option<PathBuf>) -> DisplayArgs {
        let listen = listen.map(|address| address.parse().unwrap());
        DisplayArgs { name: "web".parse().unwrap(), listen, unix, no_viewer: true, screenshot: None }
    }

    async fn echoes(mut viewer: impl AsyncRead + AsyncWrite + Unpin) {
        viewer.write_all(b"RFB").await.unwrap();
        let mut echo = [0; 3];
        viewer.read_exact(&mut echo).await.unwrap();
        assert_eq!(&echo, b"RFB");
    }

    #[tokio::test]
    async fn viewers_are_served_at_once_and_one_after_the_other() {
        let served = served();
        let (client, name) = (Client::new(&served.path), "web".parse().unwrap());
        let door = Door::open(&args(None, None)).await.unwrap();
        let Door::Port(_, address) = &door else { panic!("no port") };
        let viewers = async {
            let first = TcpStream::connect(address).await.unwrap();
            echoes(TcpStream::connect(address).await.unwrap()).await;
            echoes(first).await;
            echoes(TcpStream::connect(address).await.unwrap()).await;
        };
        tokio::select! {
            result = door.serve(&client, &name) => panic!("{result:?}"),
            () = viewers => {}
        }
    }

    #[tokio::test]
    async fn a_unix_socket_is_closed_to_others_and_goes() {
        let served = served();
        let (client, name) = (Client::new(&served.path), "web".parse().unwrap());
        let path = served.path.with_file_name("display.sock");
        let door = Door::open(&args(None, Some(path.clone()))).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        tokio::select! {
            result = door.serve(&client, &name) => panic!("{result:?}"),
            () = async { echoes(UnixStream::connect(&path).await.unwrap()).await } => {}
        }
        drop(door);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn nothing_listens_on_the_network() {
        for open in ["0.0.0.0:0", "192.0.2.1:5900", "[::]:0"] {
            let error = Door::open(&args(Some(open), None)).await.err().unwrap();
            assert!(error.to_string().contains("loopback"), "{error}");
        }
    }
}
