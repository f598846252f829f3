//! The whole way: client, socket, router and a backend that answers from memory.

use super::backend::{Answer, Backend, Origin, Target};
use super::client::{Call, Client, ClientError};
use super::model::*;
use super::problem::{ApiError, ErrorCode};
use super::socket::ControlSocket;
use super::{Api, DISPLAY_PROTOCOL, serve};
use crate::attach::Session;
use crate::config::Source;
use crate::disc::User;
use crate::events::{Event, EventKind, EventLog};
use crate::name::Name;
use crate::text::Text;
use crate::vm::VmLimitsChange;
use axum::extract::Request;
use axum::response::Response;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::io::AsyncWriteExt;
use tokio::sync::{Notify, oneshot, watch};
use virtuoso_overlay::ids::{Digest, DiscKey, HostId};

/// Knows one network and one host.
#[derive(Default)]
struct Fake {
    cancelled: Arc<AtomicBool>,
    /// An import has begun.
    begun: Arc<Notify>,
}

/// Notes that the work it belongs to was dropped before its end.
struct OnDrop(Arc<AtomicBool>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn ok<T: Send + 'static>(value: T) -> Answer<'static, T> {
    Box::pin(async { Ok(value) })
}

fn blue() -> Network {
    let text = || "blue".to_string();
    Network {
        name: text(),
        id: "0011aabb".into(),
        mtu_bytes: 1500,
        congestion: "none".into(),
        rate_mbit: 0,
        bridge: None,
        ports: vec![],
        hosts: vec![],
        subnet: Some(Text("10.8.0.0/24".parse().unwrap())),
        dhcp: true,
        service_address: Some([10, 8, 0, 1].into()),
        host_address: None,
        traffic: None,
    }
}

fn image(name: &str) -> Image {
    let digest = Text(Digest([7; 32]));
    let (providers, provider_names) = (vec![Text(HostId([1; 32]))], vec!["alpha".into()]);
    Image {
        name: name.into(),
        digest,
        size_bytes: 9,
        providers,
        provider_names,
        local: true,
        stored_bytes: Some(9),
        unique_bytes: None,
    }
}

impl Backend for Fake {
    fn status(&self) -> Answer<'_, Status> {
        Box::pin(async { Err(ApiError::new(ErrorCode::Unavailable, "The agent is stopping")) })
    }
    fn peers(&self) -> Answer<'_, Vec<Peer>> {
        ok(vec![])
    }
    fn links(&self) -> Answer<'_, Vec<Link>> {
        ok(vec![])
    }
    fn checks(&self) -> Answer<'_, Vec<Check>> {
        ok(vec![Check::ok("swarm", "3 members")])
    }
    fn hosts(&self) -> Answer<'_, Vec<Host>> {
        ok(vec![])
    }
    fn find_hosts(&self, query: HostQuery) -> Answer<'_, Vec<HostMatch>> {
        assert_eq!((query.vcpus, query.labels.len()), (Some(4), 2));
        ok(vec![])
    }
    fn migrate_vm(
        &self,
        name: Name,
        request: VmMigrate,
        progress: watch::Sender<MigrationProgress>,
    ) -> Answer<'_, MigrationReport> {
        Box::pin(async move {
            progress.send_modify(|progress| progress.phase = "memory".into());
            tokio::task::yield_now().await;
            let bytes = MigrationBytes { memory: 1, disk: 2 };
            Ok(MigrationReport {
                name: name.to_string(),
                to: Text(HostId([1; 32])),
                host_name: request.to.unwrap_or_default(),
                total_ms: 900.0,
                downtime_ms: 20.0,
                blackout_ms: 23.5,
                frames_forwarded: 3,
                frames_buffered: 3,
                frames_lost: 0,
                frames_duplicated: 0,
                post_copy: false,
                bytes,
            })
        })
    }
    fn drain(&self) -> Answer<'_, DrainReport> {
        let stayed = StayedVm { name: "one".into(), reason: "no room".into() };
        ok(DrainReport { moved: vec![], stayed: vec![stayed] })
    }
    fn undrain(&self) -> Answer<'_, ()> {
        ok(())
    }
    fn cancel_migration(&self, _: Name) -> Answer<'_, ()> {
        ok(())
    }
    fn resolve_migration(&self, _: Name, _: VmResolve) -> Answer<'_, ()> {
        ok(())
    }
    fn networks(&self) -> Answer<'_, Vec<Network>> {
        ok(vec![blue()])
    }
    fn network(&self, name: Name) -> Answer<'_, Network> {
        match &*name {
            "blue" => ok(blue()),
            _ => Box::pin(async move { Err(ApiError::not_found(format!("No network `{name}`"))) }),
        }
    }
    fn create_network(&self, request: NetworkCreate) -> Answer<'_, Network> {
        ok(Network { name: request.name.to_string(), ..blue() })
    }
    fn delete_network(&self, _: Name) -> Answer<'_, ()> {
        ok(())
    }
    fn attach(&self, _: Name, _: Attach) -> Answer<'_, Network> {
        ok(blue())
    }
    fn detach(&self, _: Name, _: Detach) -> Answer<'_, Network> {
        ok(blue())
    }
    fn fdb(&self, _: Name) -> Answer<'_, Vec<FdbEntry>> {
        ok(vec![])
    }
    fn ports(&self) -> Answer<'_, Vec<Port>> {
        ok(vec![])
    }
    fn images(&self) -> Answer<'_, Vec<Image>> {
        ok(vec![])
    }
    fn image(&self, name: Name) -> Answer<'_, Image> {
        ok(image(&name))
    }
    /// Imports of `/endless` end when they are cancelled.
    fn import_image(&self, request: ImageImport, progress: watch::Sender<Progress>) -> Answer<'_, Image> {
        let cancelled = OnDrop(Arc::clone(&self.cancelled));
        self.begun.notify_one();
        Box::pin(async move {
            progress.send_replace(Progress { done_bytes: 4, total_bytes: 9 });
            if request.path.ends_with("endless") {
                std::future::pending::<()>().await;
            }
            tokio::task::yield_now().await;
            drop(cancelled);
            Ok(image(&request.name))
        })
    }
    fn pull_image(&self, wanted: String, _: ImagePull, _: watch::Sender<Progress>) -> Answer<'_, Image> {
        ok(image(&wanted))
    }
    fn export_image(&self, _: Name, _: ImageExport, _: watch::Sender<Progress>) -> Answer<'_, ()> {
        ok(())
    }
    fn verify_image(&self, _: Name, _: watch::Sender<Progress>) -> Answer<'_, ImageVerification> {
        Box::pin(async { Err(ApiError::new(ErrorCode::Damaged, "Chunk 3")) })
    }
    fn remove_image(&self, _: Name) -> Answer<'_, ()> {
        ok(())
    }
    fn vms(&self) -> Answer<'_, Vec<Vm>> {
        ok(vec![])
    }
    fn vm(&self, name: Name) -> Answer<'_, Vm> {
        Box::pin(async move { Err(ApiError::not_found(format!("No VM `{name}`"))) })
    }
    fn create_vm(&self, request: VmCreate, origin: Origin) -> Answer<'_, Vm> {
        assert_eq!(origin, Origin::Local);
        self.vm(request.name)
    }
    fn start_vm(&self, name: Name) -> Answer<'_, Vm> {
        self.vm(name)
    }
    fn stop_vm(&self, name: Name, _: VmStop) -> Answer<'_, Vm> {
        self.vm(name)
    }
    fn reset_vm(&self, name: Name) -> Answer<'_, Vm> {
        self.vm(name)
    }
    fn delete_vm(&self, _: Name, force: bool) -> Answer<'_, ()> {
        assert!(force);
        ok(())
    }
    fn clone_vm(&self, _: Name, request: VmClone, progress: watch::Sender<Progress>) -> Answer<'_, Vm> {
        progress.send_replace(Progress { done_bytes: 1, total_bytes: 2 });
        self.vm(request.name)
    }
    fn limit_vm(&self, name: Name, change: VmLimitsChange) -> Answer<'_, Vm> {
        assert_eq!((change.cpu_percent, change.iops), (Some(50), None));
        self.vm(name)
    }
    fn vm_console(&self, name: Name) -> Answer<'_, Session> {
        Box::pin(async move { Err(ApiError::conflict(format!("VM `{name}` does not run"))) })
    }
    fn vm_console_history(&self, name: Name) -> Answer<'_, Vec<u8>> {
        Box::pin(async move { Err(ApiError::conflict(format!("VM `{name}` does not run"))) })
    }
    fn lend(&self, path: PathBuf, user: User) -> Answer<'_, Loan> {
        // SAFETY: the call only reads this process's user.
        assert_eq!(user.uid, unsafe { libc::geteuid() });
        let (key, host) = (Text(DiscKey([3; 16])), Text(HostId([1; 32])));
        ok(Loan { key, host, path: path.display().to_string(), size_bytes: 9 })
    }
    fn take_back(&self, _: &Loan) {
        self.cancelled.store(true, Ordering::SeqCst);
    }
    fn insert_cdrom(&self, name: Name, medium: CdromInsert) -> Answer<'_, Vm> {
        assert!(matches!(medium, CdromInsert::Disc(_)));
        self.vm(name)
    }
    fn eject_cdrom(&self, name: Name) -> Answer<'_, Vm> {
        self.vm(name)
    }
    /// A display that says what it gets.
    fn vm_display(&self, _: Name) -> Answer<'_, Session> {
        ok(Box::new(|viewer| {
            Box::pin(async move {
                let (mut read, mut write) = tokio::io::split(viewer);
                tokio::io::copy(&mut read, &mut write).await.unwrap();
                write.shutdown().await.unwrap();
            })
        }))
    }
    fn vm_screenshot(&self, _: Name) -> Answer<'_, Vec<u8>> {
        ok(b"picture".to_vec())
    }
    /// All VMs are here but `far`.
    fn place(&self, target: Target) -> Answer<'_, Option<HostId>> {
        ok((target == Target::Vm("far".parse().unwrap())).then_some(HostId([2; 32])))
    }
    fn forward(&self, _: HostId, request: Request) -> Answer<'_, Response> {
        Box::pin(async move { Err(ApiError::new(ErrorCode::Timeout, request.uri().path())) })
    }
    fn members(&self) -> Answer<'_, Vec<Member>> {
        ok(vec![])
    }
    fn pending(&self) -> Answer<'_, Vec<PendingHost>> {
        ok(vec![])
    }
    fn approve(&self, peer: String) -> Answer<'_, Member> {
        Box::pin(async move { Err(ApiError::not_found(format!("No host `{peer}` waits"))) })
    }
    fn invite(&self, _: InviteRequest) -> Answer<'_, Invite> {
        ok(Invite { ticket: "virtuoso-ticket:x".into(), expires: "2026-01-01T00:00:00.000Z".into() })
    }
}

/// A served API; its agent stops when this is dropped.
pub(crate) struct Served {
    client: Client,
    pub(crate) path: PathBuf,
    events: EventLog,
    cancelled: Arc<AtomicBool>,
    begun: Arc<Notify>,
    _stop: oneshot::Sender<()>,
    _dir: tempfile::TempDir,
}

pub(crate) fn served() -> Served {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.sock");
    let mut source = Source { file: Some("/dev/null".into()), ..Source::default() };
    source.flags.name = Some("alpha".parse().unwrap());
    source.flags.bootstrap = Some(vec!["virtuoso-ticket:secret".parse().unwrap()]);
    let (_, config) = watch::channel(Arc::new(source.load().unwrap()));
    let (fake, events) = (Fake::default(), EventLog::new());
    let (cancelled, begun) = (Arc::clone(&fake.cancelled), Arc::clone(&fake.begun));
    let socket = ControlSocket::bind(&path, "no-such-group").unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let api = Api { backend: Arc::new(fake), events: events.clone(), config };
    tokio::spawn(serve(socket, api, async {
        let _ = stopped.await;
    }));
    Served { client: Client::new(&path), path, events, cancelled, begun, _stop: stop, _dir: dir }
}

async fn refusal(served: &Served, call: Call) -> ApiError {
    match served.client.call(call).await {
        Err(ClientError::Refused(problem)) => problem,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn answers_and_refusals() {
    let served = served();
    let networks: Value = served.client.fetch(Call::get("/v1/networks")).await.unwrap();
    assert_eq!(networks[0]["mtu_bytes"], 1500);
    let query = "/v1/hosts/find?vcpus=4&label=gpu=1&label=ssd";
    assert_eq!(&served.client.call(Call::get(query)).await.unwrap()[..], b"[]");
    let created = served.client.fetch::<Network>(Call::post("/v1/networks", &json!({"name": "red"}))).await.unwrap();
    assert_eq!(created.name, "red");
    assert!(served.client.call(Call::delete("/v1/networks/blue")).await.unwrap().is_empty());

    let attach = "/v1/networks/blue/attach";
    for (call, status, code, part) in [
        (Call::get("/v1/networks/green"), 404, ErrorCode::NotFound, "No network `green`"),
        (Call::get("/v1/networks/Not.One"), 400, ErrorCode::InvalidRequest, "Not a name"),
        (Call::get("/v1/nothing"), 404, ErrorCode::NotFound, "/v1/openapi.json"),
        (Call::delete("/v1/status"), 405, ErrorCode::MethodNotAllowed, "takes no DELETE"),
        (Call::get("/v1/status"), 503, ErrorCode::Unavailable, "stopping"),
        (Call::get("/v1/hosts/find?cpus=4"), 400, ErrorCode::InvalidRequest, "`cpus`"),
        (Call::post("/v1/networks", &json!({"nam": "a"})), 422, ErrorCode::InvalidRequest, "unknown field `nam`"),
        (Call::post("/v1/networks", &json!({"name": "a", "mtu_bytes": 99})), 400, ErrorCode::InvalidRequest, "1280"),
        (
            Call::post("/v1/networks", &json!({"name": "a", "subnet": "10.0.0.1/24"})),
            422,
            ErrorCode::InvalidRequest,
            "did you",
        ),
        (
            Call::post("/v1/networks", &json!({"name": "a", "congestion": "bbr"})),
            422,
            ErrorCode::InvalidRequest,
            "none, cubic and delay",
        ),
        (Call::post("/v1/networks", &json!({"name": "a".repeat(70_000)})), 413, ErrorCode::InvalidRequest, ""),
        (Call::post("/v1/images", &json!({"name": "a", "path": "b"})), 400, ErrorCode::InvalidRequest, "relative"),
        (Call::get("/v1/vms/a"), 404, ErrorCode::NotFound, "No VM `a`"),
        // What is known of it here stands for what its host does not answer.
        (Call::get("/v1/vms/far"), 404, ErrorCode::NotFound, "No VM `far`"),
        (Call::post("/v1/vms/far/start", &json!({})), 504, ErrorCode::Timeout, "/v1/vms/far/start"),
        (Call::post("/v1/vms/a/console", &json!({})), 400, ErrorCode::InvalidRequest, "Upgrade"),
        (Call::post("/v1/vms/a/display", &json!({})), 400, ErrorCode::InvalidRequest, "Upgrade"),
        (Call::post("/v1/vms", &json!({"name": "a"})), 422, ErrorCode::InvalidRequest, "memory_bytes"),
        (Call::delete("/v1/vms/a?forc=1"), 400, ErrorCode::InvalidRequest, "forc"),
        (Call::post(attach, &json!({"interface": "a", "uplink": "b"})), 400, ErrorCode::InvalidRequest, "exclude"),
        (Call::post(attach, &json!({"interface": "a/b"})), 400, ErrorCode::InvalidRequest, "interface name"),
        (Call::post(attach, &json!({"mac": ["52:54:00:00:00:01"]})), 400, ErrorCode::InvalidRequest, "`mac` needs"),
    ] {
        let problem = refusal(&served, call).await;
        assert_eq!((problem.status, problem.code), (status, code), "{problem:?}");
        assert!(problem.detail.contains(part), "{problem:?}");
    }
}

#[tokio::test]
async fn a_file_is_lent_before_it_is_inserted_and_taken_back_if_it_is_not() {
    let served = served();
    for (vm, code) in [("a", ErrorCode::NotFound), ("far", ErrorCode::Timeout)] {
        let call = Call::post(format!("/v1/vms/{vm}/cdrom"), &json!({"file": "/x.iso"}));
        assert_eq!(refusal(&served, call).await.code, code);
        assert!(served.cancelled.swap(false, Ordering::SeqCst), "the loan for {vm} stays");
    }
    let loan = json!({"key": "03".repeat(16), "host": HostId([1; 32]).to_string(), "path": "/x", "size_bytes": 9});
    let call = Call::post("/v1/vms/a/cdrom", &json!({"disc": loan}));
    assert_eq!(refusal(&served, call).await.code, ErrorCode::Forbidden);
}

#[tokio::test]
async fn a_display_is_carried_both_ways() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let served = served();
    let call = Call::upgrade("/v1/vms/a/display", DISPLAY_PROTOCOL);
    let mut viewer = served.client.upgraded(call).await.unwrap();
    viewer.write_all(b"RFB 003.008\n").await.unwrap();
    let mut echo = [0; 12];
    viewer.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"RFB 003.008\n");
    assert_eq!(&served.client.call(Call::get("/v1/vms/a/screenshot")).await.unwrap()[..], b"picture");
}

#[tokio::test]
async fn doctor_joins_the_checks_and_config_keeps_secrets() {
    let served = served();
    let doctor: Doctor = served.client.fetch(Call::get("/v1/doctor")).await.unwrap();
    assert!(doctor.checks.iter().any(|check| check.name == "swarm") && doctor.checks.len() > 5);
    let config: Value = served.client.fetch(Call::get("/v1/config")).await.unwrap();
    assert_eq!(config["name"], "alpha");
    assert_eq!(config["bootstrap"][0], "virtuoso-ticket:...");
}

#[tokio::test]
async fn the_document_lists_every_address() {
    let served = served();
    let document: Value = served.client.fetch(Call::get("/v1/openapi.json")).await.unwrap();
    let paths = document["paths"].as_object().unwrap();
    let operations: usize = paths.values().map(|path| path.as_object().unwrap().len()).sum();
    assert_eq!((paths.len(), operations), (37, 47), "{:?}", paths.keys());
    assert!(document["components"]["schemas"]["ApiError"].is_object());
}

#[tokio::test]
async fn events_come_live_and_again() {
    let served = served();
    served.events.emit(EventKind::AgentStopping);
    let mut live = served.client.stream(Call::get("/v1/events"), None).await.unwrap();
    served.events.emit(EventKind::NetworkCreated { network: "blue".into() });
    let told = live.next().await.unwrap().unwrap();
    let event: Event = serde_json::from_str(&told.data).unwrap();
    assert_eq!(event.kind, EventKind::NetworkCreated { network: "blue".into() });

    let before = (event.id - 1).to_string();
    let mut again = served.client.stream(Call::get("/v1/events"), Some(&before)).await.unwrap();
    assert_eq!(again.next().await.unwrap().unwrap(), told);
    served.events.close();
    assert_eq!(again.next().await.unwrap(), None);
    assert!(served.client.stream(Call::get("/v1/events"), Some("x")).await.is_err());
}

#[tokio::test]
async fn long_work_tells_its_progress_or_just_its_result() {
    let served = served();
    let import = || Call::post("/v1/images", &json!({"name": "debian-12", "path": "/x.raw"}));
    assert_eq!(served.client.fetch::<Image>(import()).await.unwrap(), image("debian-12"));
    let mut stream = served.client.stream(import(), None).await.unwrap();
    let mut names = vec![];
    while let Some(event) = stream.next().await.unwrap() {
        names.push(event.name);
    }
    assert_eq!(names.last().map(String::as_str), Some("done"));
    let mut stream = served.client.stream(Call::post("/v1/images/a/verify", &json!({})), None).await.unwrap();
    let event = stream.next().await.unwrap().unwrap();
    assert_eq!(event.name, "error");
    assert_eq!(serde_json::from_str::<ApiError>(&event.data).unwrap().code, ErrorCode::Damaged);
}

#[tokio::test]
async fn a_caller_that_goes_away_cancels() {
    let served = served();
    let import = || Call::post("/v1/images", &json!({"name": "a", "path": "/endless"}));
    let mut stream = served.client.stream(import(), None).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().name, "progress");
    served.begun.notified().await;
    drop(stream);
    while !served.cancelled.swap(false, Ordering::SeqCst) {
        tokio::task::yield_now().await;
    }
    // The same without a stream.
    let client = served.client.clone();
    let call = tokio::spawn(async move { client.call(import()).await });
    served.begun.notified().await;
    assert!(!served.cancelled.load(Ordering::SeqCst));
    call.abort();
    while !served.cancelled.load(Ordering::SeqCst) {
        tokio::task::yield_now().await;
    }
}

/// The first line of the answer to a request of the user `uid`. Needs root.
fn answer_to(uid: u32, path: PathBuf, request: &'static str) -> String {
    let thread = std::thread::spawn(move || {
        // SAFETY: the system call changes only this thread's user, and the thread ends after this request.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }, 0);
        let mut stream = UnixStream::connect(path).unwrap();
        let head = format!("{request} HTTP/1.1\r\nhost: v\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    thread.join().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_may_only_look() {
    // SAFETY: the call only reads this process's user.
    if unsafe { libc::geteuid() } != 0 {
        println!("skipped: only root can become another user");
        return;
    }
    let served = served();
    for path in [served.path.as_path(), served.path.parent().unwrap()] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let answer = |uid, request| {
        let path = served.path.clone();
        tokio::task::spawn_blocking(move || answer_to(uid, path, request))
    };
    assert!(answer(65_534, "GET /v1/networks").await.unwrap().starts_with("HTTP/1.1 200"));
    let refused = answer(65_534, "DELETE /v1/networks/blue").await.unwrap();
    assert!(refused.starts_with("HTTP/1.1 403") && refused.contains("\"code\":\"forbidden\""), "{refused}");
    assert!(answer(0, "DELETE /v1/networks/blue").await.unwrap().starts_with("HTTP/1.1 204"));
}
