//! The agent from start to stop: what it opens, in which order, and what signals do.

use crate::attach::{self, ATTACH, Attachments};
use crate::clock::{self, Clock};
use crate::config::address::Bootstrap;
use crate::config::{Config, Source};
use crate::control::forward::{CONTROL, serve_members};
use crate::control::model::{DrainReport, StayedVm};
use crate::control::problem::ApiError;
use crate::control::socket::ControlSocket;
use crate::control::{self, Api};
use crate::core::ports::Sockets;
use crate::core::vm_clone::{VM_DISK, serve_disks};
use crate::core::vm_names::{Names, VM_NAME, serve_names};
use crate::core::{Agent, Core, Credentials, ImageSource, Parts, Runner};
use crate::disc::{DISC, Discs, Shelf};
use crate::entropy;
use crate::events::{EventKind, EventLog};
use crate::facts::HostFacts;
use crate::gatekeeper::Gatekeeper;
use crate::identity::{AUTHORITY, Ed25519, IDENTITY, SigningKey};
use crate::image::{self, ImageStore};
use crate::logging::LogHandle;
use crate::netdev::Netdev;
use crate::state::StateDir;
use crate::state::sealed::Kind;
use crate::swarm::known_peers::KnownPeers;
use crate::swarm::service::{self, SwarmService, Timing};
use crate::swarm::streams::{Inbound, StreamKind, Streams};
use crate::swarm::transport::Port;
use crate::vm::{self, MIGRATION, Migrations, Vms};
use anyhow::Context;
use libp2p::Multiaddr;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use virtuoso_engine::{
    self as engine, ControlPort, EngineConfig, EngineHandle, LinkSettings, Socket, control_endpoint_config,
};
use virtuoso_overlay::ids::HostId;
use virtuoso_overlay::membership::{Certificate, Roles, Ticket};
use virtuoso_overlay::switch::Switch;

/// The number of the last run.
const INCARNATION: Kind = Kind { name: "incarnation", version: 1 };
/// Members met in earlier runs.
const PEERS: Kind = Kind { name: "peers", version: 1 };

/// Worker threads of the control plane. Its work is small and the data plane has a thread of its own.
const WORKERS: usize = 2;

/// Beyond the time in which VMs may move away: the last of them end, and the agent stops.
const DRAIN_TIME_SLACK: Duration = Duration::from_secs(25);

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// If it can't start, or loses something it can't do without.
pub fn run(source: &Source, config: Config, log: &LogHandle) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_name("control")
        .enable_all()
        .build()
        .context("Can't start the control plane's threads")?;
    runtime.block_on(serve(source, config, log))
}

async fn serve(source: &Source, config: Config, log: &LogHandle) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let clock = Clock::start();
    let state = Arc::new(StateDir::open(&config.state_dir)?);
    let key = Arc::new(SigningKey::load_or_create(&state, &IDENTITY)?);
    let events = EventLog::new();
    // First of all what other agents on this machine may hold.
    let (socket, udp) = bind(&config)?;
    let images = Arc::new(open_images(&state).await?);
    let known_peers = load_known_peers(&state)?;
    let (credentials, founded) = credentials(&state, &key, &config, known_peers.is_empty())?;
    let gatekeeper = Arc::new(Gatekeeper::default());
    let control_port = ControlPort::new(udp.clone());
    let (engine, engine_events) = start_engine(&udp, &control_port, &key, &gatekeeper, config.links.all)?;
    let swarm = start_swarm(&config, &state, &key, &credentials, known_peers, (&udp, control_port))?;
    let (streams, inbound) = InboundStreams::begin(&swarm);
    let discs = serve_files(&state, key.host_id(), &images, &streams)?;
    let (netdev, facts) = (Netdev::open()?, HostFacts::read(state.path()).await?);
    let parts = Parts {
        incarnation: next_incarnation(&state)?,
        config: config.clone(),
        gatekeeper,
        key,
        credentials,
        swarm,
        engine: engine.clone(),
        engine_events,
        netdev: netdev.clone(),
        events: events.clone(),
        images: images.clone(),
        clock,
        state: state.clone(),
    };
    let (core, runner) = start_core(parts, &state, &facts)?;
    let (handle, devices) = (core.handle(), Arc::new(Mutex::default()));
    let (stop, stopped) = watch::channel(false);
    let mut running = tokio::spawn(core.run(runner, stopped.clone()));
    let sockets = Sockets { core: handle.clone(), netdev: netdev.clone(), devices: devices.clone() };
    let image_source = image_source(&handle, &streams, &images, &events);
    let vms = open_vms(&state, (sockets, streams.clone()), &image_source, clock, &discs, &facts).await?;
    let migrations = Migrations::start(vms.clone(), streams.clone(), inbound.migration, engine.clone()).await?;
    tokio::spawn(attach::serve(vms.clone(), inbound.attach));
    let attachments = Attachments { me: discs.me, core: handle.clone(), streams: streams.clone(), vms: vms.clone() };
    let agent = Arc::new(Agent {
        core: handle.clone(),
        engine,
        netdev,
        images,
        image_source,
        events: events.clone(),
        devices,
        vms,
        discs,
        attachments,
        migrations,
        streams,
    });
    let (config_changes, current) = watch::channel(Arc::new(config));
    let api = Api { backend: agent.clone(), events: events.clone(), config: current };
    let api = serve_api(socket, api, inbound.control, stopped);
    say_hello(&handle, &events, founded).await?;
    let reload = async || reload(source, &config_changes, log, &handle, &events).await;
    until_stopped(&mut signals, &mut running, reload).await?;
    let config = config_changes.borrow().clone();
    drain(&agent, &config, &mut signals, &mut running).await?;
    agent.images.close();
    stop.send_replace(true);
    running.await.context("The control plane broke off")??;
    api.await.context("The control API broke off")?
}

/// Streams that wait until there is something to serve them with. Other hosts connect before, and would else be told
/// that this host does not serve them.
struct InboundStreams {
    attach: mpsc::Receiver<Inbound>,
    control: mpsc::Receiver<Inbound>,
    migration: mpsc::Receiver<Inbound>,
}

impl InboundStreams {
    fn begin(swarm: &SwarmService) -> (Streams, Self) {
        let streams = swarm.streams();
        let [attach, control, migration] = [ATTACH, CONTROL, MIGRATION].map(|kind| streams.serve(kind));
        (streams, Self { attach, control, migration })
    }
}

/// Tells that the agent is there, and how others join the swarm if it has founded one.
async fn say_hello(handle: &crate::core::Handle, events: &EventLog, founded: bool) -> anyhow::Result<()> {
    if founded {
        print_ticket(handle).await?;
    }
    events.emit(EventKind::AgentStarted { version: env!("CARGO_PKG_VERSION").into() });
    Ok(())
}

/// The sockets.
fn bind(config: &Config) -> anyhow::Result<(ControlSocket, Arc<Socket>)> {
    let socket = ControlSocket::bind(&config.socket, &config.socket_group)?;
    Ok((socket, Arc::new(Socket::bind(config.listen)?)))
}

/// The core, with what earlier runs have left.
fn start_core(parts: Parts, state: &StateDir, facts: &HostFacts) -> anyhow::Result<(Core, Runner)> {
    let (mut core, runner) = Core::new(parts);
    core.restore_networks(state.read_json(&crate::core::NETWORKS)?.unwrap_or_default());
    core.restore_draining()?;
    core.start(facts.clone())?;
    Ok((core, runner))
}

/// Returns when the agent shall stop; fails if its core has ended by itself.
async fn until_stopped(
    signals: &mut Signals,
    running: &mut JoinHandle<anyhow::Result<()>>,
    reload: impl AsyncFn(),
) -> anyhow::Result<()> {
    notify(&[sd_notify::NotifyState::Ready]);
    loop {
        tokio::select! {
            ended = &mut *running => return ended.context("The control plane broke off")?,
            signal = signals.next() => match signal {
                Wish::Stop => break,
                Wish::Reload => reload().await,
            },
        }
    }
    notify(&[sd_notify::NotifyState::Stopping]);
    Ok(())
}

/// Moves VMs away if the owner wants that, until all have moved that can, or a second signal or the time ends it.
async fn drain(
    agent: &Agent,
    config: &Config,
    signals: &mut Signals,
    running: &mut JoinHandle<anyhow::Result<()>>,
) -> anyhow::Result<()> {
    if !config.drain_on_stop {
        return Ok(());
    }
    let time = Duration::from_secs(config.drain_time_s.into());
    // The service manager would end the agent before.
    let extension = u32::try_from((time + DRAIN_TIME_SLACK).as_micros()).unwrap_or(u32::MAX);
    notify(&[sd_notify::NotifyState::ExtendTimeoutUsec(extension)]);
    tracing::info!("Moves VMs to other hosts before it stops");
    let (stop, stopped) = watch::channel(false);
    let mut draining = pin!(agent.drain_to_stop(stopped));
    let mut deadline = pin!(tokio::time::sleep(time));
    loop {
        let is_stopping = *stop.borrow();
        tokio::select! {
            report = &mut draining => {
                tell_drained(report);
                return Ok(());
            }
            ended = &mut *running => return ended.context("The control plane broke off")?,
            () = &mut deadline, if !is_stopping => {
                tracing::info!("VMs that have not left in {} s stay", time.as_secs());
                stop.send_replace(true);
            }
            signal = signals.next() => if matches!(signal, Wish::Stop) {
                tracing::info!("Told to stop again: VMs that have not left stay");
                stop.send_replace(true);
            },
        }
    }
}

fn tell_drained(report: Result<DrainReport, ApiError>) {
    let DrainReport { moved, stayed } = match report {
        Ok(report) => report,
        Err(error) => return tracing::warn!("Can't move VMs away: {error}"),
    };
    tracing::info!(moved = moved.len(), stay = stayed.len(), "VMs have moved away as far as they can");
    for StayedVm { name, reason } in stayed {
        tracing::info!(vm = name, "A VM runs on here without an agent: {reason}");
    }
}

/// Serves other members what is here of images, and files of this host's users to drives of VMs.
fn serve_files(
    state: &Arc<StateDir>,
    me: HostId,
    images: &Arc<ImageStore>,
    streams: &Streams,
) -> anyhow::Result<Discs> {
    tokio::spawn(image::provide(images.clone(), streams.serve(StreamKind::IMAGE)));
    let discs = Discs { me, shelf: Shelf::open(state.clone())?, streams: streams.clone() };
    tokio::spawn(discs.shelf.clone().serve(streams.serve(DISC)));
    Ok(discs)
}

fn image_source(
    core: &crate::core::Handle,
    streams: &Streams,
    images: &Arc<ImageStore>,
    events: &EventLog,
) -> Arc<ImageSource> {
    let (core, streams) = (core.clone(), streams.clone());
    Arc::new(ImageSource { core, streams, images: images.clone(), events: events.clone() })
}

async fn open_vms(
    state: &StateDir,
    (sockets, streams): (Sockets, Streams),
    images: &Arc<ImageSource>,
    clock: Clock,
    discs: &Discs,
    facts: &HostFacts,
) -> anyhow::Result<Arc<Vms>> {
    let (state_dir, core, events) = (state.path().into(), sockets.core.clone(), images.events.clone());
    tokio::spawn(serve_names(core.clone(), streams.serve(VM_NAME)));
    let discs = discs.clone();
    let inbound = streams.serve(VM_DISK);
    let names = Names { core: core.clone(), streams };
    let parts = vm::Parts { state_dir, core, sockets, names, images: images.clone(), events, clock, discs };
    let moves = vm::unfinished(state.path())?;
    let vms = Vms::open(parts, facts, &moves).await?;
    tokio::spawn(serve_disks(vms.offers(), inbound));
    Ok(vms)
}

/// Answers this host's users, and those of others.
fn serve_api(
    socket: ControlSocket,
    api: Api,
    members: mpsc::Receiver<Inbound>,
    mut stopped: watch::Receiver<bool>,
) -> JoinHandle<anyhow::Result<()>> {
    tokio::spawn(serve_members(members, api.clone()));
    tokio::spawn(control::serve(socket, api, async move {
        stopped.changed().await.ok();
    }))
}

/// What the operator wishes.
enum Wish {
    Stop,
    Reload,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("Can't listen for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.terminate.recv() => Wish::Stop,
            _ = self.interrupt.recv() => Wish::Stop,
            _ = self.hangup.recv() => Wish::Reload,
        }
    }
}

/// Reads the configuration again. A wrong one changes nothing.
async fn reload(
    source: &Source,
    current: &watch::Sender<Arc<Config>>,
    log: &LogHandle,
    core: &crate::core::Handle,
    events: &EventLog,
) {
    let old = current.borrow().clone();
    let new = match source.load() {
        Ok(new) => new,
        Err(error) => return tracing::warn!("The configuration stays as it was: {error:#}"),
    };
    let changes = Config::reloadable_changes(&old, &new);
    let config = Arc::new(old.reloaded(new));
    if let Err(error) = log.set(&config.log.level) {
        tracing::warn!("The log level stays as it was: {error:#}");
    }
    let taken = (*config).clone();
    current.send_replace(config);
    if core.call(move |core| core.reconfigure(taken)).await.is_err() {
        return;
    }
    if !changes.needs_restart.is_empty() {
        tracing::warn!(keys = ?changes.needs_restart, "These changes take effect when the agent is started again");
    }
    tracing::info!(keys = ?changes.applied, "Read the configuration again");
    let owned = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect();
    events.emit(EventKind::ConfigReloaded {
        applied: owned(&changes.applied),
        needs_restart: owned(&changes.needs_restart),
    });
}

/// What makes this host a member. A host that knows of no swarm begins one; then the second value is true.
fn credentials(
    state: &StateDir,
    key: &SigningKey,
    config: &Config,
    knows_nobody: bool,
) -> anyhow::Result<(Credentials, bool)> {
    let certificate = load_certificate(state, key)?;
    let mut authority = SigningKey::load(state, &AUTHORITY)?.map(Arc::new);
    let mut tickets = Vec::new();
    for bootstrap in &config.bootstrap {
        if let Bootstrap::Ticket(text) = bootstrap {
            tickets.push(text.parse::<Ticket>().context("Can't use the ticket")?);
        }
    }
    let issued = crate::core::load_issued(state)?;
    let founds = certificate.is_none() && config.bootstrap.is_empty() && knows_nobody;
    let certificate = match certificate {
        None if founds => {
            let key_of_swarm = match authority.take() {
                Some(authority) => authority,
                None => Arc::new(SigningKey::create(state, &AUTHORITY)?),
            };
            let own =
                crate::core::sign_certificate(&key_of_swarm, key.host_id(), config.name.to_string(), Roles::ADMIN);
            state.write(&crate::core::CERTIFICATE, &own.encode()).context("Can't keep the certificate")?;
            authority = Some(key_of_swarm);
            Some(own)
        }
        other => other,
    };
    Ok((Credentials { certificate, authority, tickets, issued }, founds))
}

fn load_certificate(state: &StateDir, key: &SigningKey) -> anyhow::Result<Option<Certificate>> {
    let Some(bytes) = state.read(&crate::core::CERTIFICATE)? else { return Ok(None) };
    let path = state.path().join(crate::core::CERTIFICATE.name);
    let certificate = Certificate::decode(&bytes).with_context(|| format!("Can't understand {}", path.display()))?;
    certificate
        .check(certificate.swarm, key.host_id(), clock::wall(), &Ed25519)
        .with_context(|| format!("{} does not hold: move it away and join again with a ticket", path.display()))?;
    Ok(Some(certificate))
}

/// Grows with every run, also if the clock went back.
fn next_incarnation(state: &StateDir) -> anyhow::Result<u64> {
    let last: u64 = state.read_json(&INCARNATION)?.unwrap_or_default();
    let next = clock::wall().0.max(last + 1);
    state.write_json(&INCARNATION, &next)?;
    Ok(next)
}

async fn open_images(state: &StateDir) -> anyhow::Result<ImageStore> {
    let dir = state.images();
    tokio::task::spawn_blocking(move || ImageStore::open(&dir)).await.context("Opening the image store broke off")?
}

fn load_known_peers(state: &StateDir) -> anyhow::Result<KnownPeers> {
    let Some(content) = state.read(&PEERS)? else { return Ok(KnownPeers::default()) };
    KnownPeers::parse(&content).with_context(|| format!("Can't understand {}", state.path().join(PEERS.name).display()))
}

fn start_engine(
    udp: &Arc<Socket>,
    control: &Arc<ControlPort>,
    key: &Arc<SigningKey>,
    gatekeeper: &Arc<Gatekeeper>,
    links: LinkSettings,
) -> anyhow::Result<(EngineHandle, mpsc::Receiver<engine::EngineEvent>)> {
    let gatekeeper = gatekeeper.clone();
    engine::start(EngineConfig {
        socket: udp.clone(),
        control: Some(control.clone()),
        keypair: key.keypair(),
        certificate: Vec::new(),
        admit: Arc::new(move |host, certificate| {
            gatekeeper.admit_encoded(*host, certificate).map(|_| ()).map_err(|error| error.to_string())
        }),
        switch: Switch::new(key.clone(), Arc::new(Ed25519), entropy::u64()),
        links,
    })
}

fn start_swarm(
    config: &Config,
    state: &Arc<StateDir>,
    key: &SigningKey,
    credentials: &Credentials,
    known_peers: KnownPeers,
    (udp, control): (&Socket, Arc<ControlPort>),
) -> anyhow::Result<SwarmService> {
    let state = state.clone();
    let keypair = key.keypair();
    SwarmService::new(service::Config {
        port: Port { socket: control, config: control_endpoint_config(&keypair)? },
        keypair,
        tcp: tcp_addresses(udp.local_addr()),
        agent_version: concat!("virtuoso/", env!("CARGO_PKG_VERSION")).into(),
        swarm: None,
        mdns: config.mdns,
        bootstrap: bootstrap_addresses(config, &credentials.tickets),
        known_peers,
        save_known_peers: Box::new(move |content| {
            let state = state.clone();
            tokio::task::spawn_blocking(move || {
                if let Err(error) = state.write(&PEERS, &content) {
                    tracing::warn!("Can't remember peers: {error:#}");
                }
            });
        }),
        timing: Timing::default(),
        seed: entropy::u64(),
    })
}

/// TCP is the way in where UDP is blocked, on the same port.
fn tcp_addresses(udp: SocketAddr) -> Vec<SocketAddr> {
    match udp {
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => {
            let v4 = SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), udp.port());
            vec![v4, udp]
        }
        SocketAddr::V4(_) | SocketAddr::V6(_) => vec![udp],
    }
}

fn bootstrap_addresses(config: &Config, tickets: &[Ticket]) -> Vec<Multiaddr> {
    let named = config.bootstrap.iter().filter_map(|bootstrap| match bootstrap {
        Bootstrap::Address(address) => Some(address.clone()),
        Bootstrap::Ticket(_) => None,
    });
    let invited = tickets.iter().flat_map(|ticket| &ticket.addresses).filter_map(|address| address.parse().ok());
    named.chain(invited).collect()
}

/// The first host of a swarm tells how to join it.
#[expect(clippy::print_stdout, reason = "the ticket is the answer to starting the first agent of a swarm")]
async fn print_ticket(core: &crate::core::Handle) -> anyhow::Result<()> {
    let (send, ticket) = oneshot::channel();
    core.call(|core| core.send_first_ticket(send)).await?;
    let ticket = ticket.await.context("The agent is stopping")??;
    println!("This host began a new swarm. Join it from another host, once within 24 hours, with:");
    println!("  virtuoso agent --bootstrap {ticket}");
    println!("More tickets: virtuoso swarm invite");
    Ok(())
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
    // Without systemd there is nobody to tell.
    if let Err(error) = sd_notify::notify(false, state) {
        tracing::debug!(%error, "Can't tell the service manager");
    }
}
