//! What the control API asks for about VMs: here, or on the host that is wanted.

use super::backend::Agent;
use super::{Core, Handle};
use crate::control::backend::{Backend, Origin, Target};
use crate::control::extract::host_query;
use crate::control::forward::{self, ANSWER_TIME_MAX, CONTROL, Patience};
use crate::control::model::{BootDevice, Cdrom, Vm, VmCreate, VmDetails};
use crate::control::problem::{ApiError, ErrorCode};
use crate::entropy;
use crate::image::Pull;
use crate::name::{Name, meant};
use crate::text::Text;
use crate::vm::{BaseImage, Boot, Nic, Spec, VmError, VmInfo};
use anyhow::Context;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{Method, header};
use axum::response::Response;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;
use virtuoso_overlay::ids::{HostId, VmId};
use virtuoso_overlay::limits::VM_NICS_MAX;

/// Bounds of one VM: what the machine type takes, and what boots anything.
const VCPUS_MAX: u32 = 64;
const MEMORY_BYTES_MIN: u64 = 16 << 20;
/// The kernel's own bound on x86.
const APPEND_BYTES_MAX: usize = 2047;
const SSH_KEYS_MAX: usize = 64;
const SSH_KEY_BYTES_MAX: usize = 16 << 10;
const LABELS_MAX: usize = 32;
const REQUEST_BYTES_MAX: usize = 128;
/// Bytes of another host's answer about one VM.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// How long a host that fetches a disk may take: a day is enough for a terabyte at 100 Mbit/s.
const COPY_TIME_MAX: Duration = Duration::from_secs(24 * 3600);
/// How long the row of a VM that another host has made may take to come here.
const ROW_TIMEOUT: Duration = Duration::from_secs(5);

impl Agent {
    /// Makes a VM where it is wanted.
    pub(super) async fn place_vm(&self, mut request: VmCreate, origin: Origin) -> Result<Vm, ApiError> {
        check(&request)?;
        if matches!(origin, Origin::Member(_)) {
            return self.make_here(request, origin).await;
        }
        let number = || format!("{:016x}{:016x}", entropy::u64(), entropy::u64());
        request.request.get_or_insert_with(number);
        let (here, made) = {
            let id = request.request.as_deref().map(vm_id);
            self.core.call(move |core| (core.me(), id.and_then(|id| core.vm_with(id)))).await?
        };
        if let Some(made) = made {
            return Ok(made);
        }
        match (request.host.take(), std::mem::take(&mut request.best)) {
            (Some(_), true) => Err(ApiError::invalid("`host` and `best` exclude each other")),
            (Some(host), false) => {
                let host = self.core.call(move |core| core.host_named(&host)).await??;
                self.make_on(host, here, request).await
            }
            (None, true) => self.make_on_best(here, request).await,
            (None, false) => self.make_on(here, here, request).await,
        }
    }

    /// Tries the hosts that seem to have room, best first, until one takes the VM.
    async fn make_on_best(&self, here: HostId, request: VmCreate) -> Result<Vm, ApiError> {
        let mut query = vec![
            ("vcpus".to_owned(), request.vcpus.to_string()),
            ("memory".to_owned(), request.memory_bytes.to_string()),
            ("disk".to_owned(), request.disk_bytes.to_string()),
            ("explain".to_owned(), "true".to_owned()),
        ];
        query.extend(request.host_labels.iter().map(|label| ("label".to_owned(), label.clone())));
        query.extend(request.image.iter().map(|image| ("image".to_owned(), image.to_string())));
        let query = host_query(query)?;
        let mut reasons = Vec::new();
        for found in self.find_hosts(query).await? {
            if found.rank.is_none() {
                reasons.push(format!("{}: {}", found.host.name, found.left_out.join("; ")));
                continue;
            }
            match self.make_on(found.host.id.0, here, request.clone()).await {
                Ok(vm) => return Ok(vm),
                // It may have been made there: another one elsewhere would be its double.
                Err(error) if error.code == ErrorCode::Timeout => return Err(error),
                // No other host would say otherwise.
                Err(error) if matches!(error.code, ErrorCode::InvalidRequest | ErrorCode::Conflict) => {
                    return Err(error);
                }
                Err(error) => reasons.push(format!("{}: {}", found.host.name, error.detail)),
            }
        }
        let detail = format!("No host takes VM {}. {}", request.name, reasons.join(". "));
        Err(ApiError::new(ErrorCode::NoSpace, detail))
    }

    pub(super) async fn make_on(&self, host: HostId, here: HostId, request: VmCreate) -> Result<Vm, ApiError> {
        if host == here {
            return self.make_here(request, Origin::Local).await;
        }
        let body = serde_json::to_vec(&request).context("Can't encode a request")?;
        let patience = if request.disk.is_some() { COPY_TIME_MAX } else { ANSWER_TIME_MAX };
        let asked = Request::builder()
            .method(Method::POST)
            .uri("/v1/vms")
            .extension(Patience(patience))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body))
            .context("Can't encode a request")?;
        let answer = self.forward_to(host, asked).await?;
        let is_success = answer.status().is_success();
        let body = to_bytes(answer.into_body(), ANSWER_BYTES_MAX).await.context("Another host's answer broke off")?;
        let unreadable = "Can't understand another host's answer";
        if !is_success {
            return Err(serde_json::from_slice::<ApiError>(&body).context(unreadable)?);
        }
        let vm: Vm = serde_json::from_slice(&body).context(unreadable)?;
        wait_for_row(&self.core, &request.name).await;
        Ok(vm)
    }

    async fn make_here(&self, request: VmCreate, origin: Origin) -> Result<Vm, ApiError> {
        let (name, start, offer) = (request.name.clone(), !request.stopped, request.disk.clone());
        for path in request.kernel.iter().chain(&request.initrd) {
            check_file(path, origin)?;
        }
        self.core.call(|core| core.check_taking()).await??;
        let mut request = request;
        let medium = match request.cdrom.take() {
            Some(wanted) => Some(self.medium(wanted).await?),
            None => None,
        };
        let mut spec = self.core.call(move |core| core.specify(request)).await??;
        spec.cdrom = medium;
        if let Some(BaseImage { name, digest }) = spec.base().cloned() {
            // It is needed right away, and its own list of chunks knows its size.
            let image = digest.0;
            let pull = Pull { image, name, size_bytes: None, rate: None, patience: Pull::PATIENCE };
            let base = self.image_source.serve(pull).await?;
            if spec.disk_bytes == 0 {
                spec.disk_bytes = base.size_bytes();
            }
        }
        let disk = match &offer {
            Some(offer) => Some(self.disk_source(offer).await?),
            None => None,
        };
        self.vms.create(spec, disk, start).await.map_err(vm_error)?;
        self.show_vm(&name).await
    }

    /// A VM, with what is known of it here.
    pub(super) async fn show_vm(&self, name: &Name) -> Result<Vm, ApiError> {
        let wanted = name.clone();
        let found = self.core.call(move |core| core.vms().into_iter().find(|vm| vm.name == *wanted)).await?;
        let Some(mut vm) = found else { return Err(self.no_vm(name).await?) };
        if let Some(info) = self.vms.info(name).await.ok().filter(|info| info.spec.id == vm.id) {
            let cdrom = match &info.spec.cdrom {
                Some(medium) => Some(self.cdrom(medium).await?),
                None => None,
            };
            vm.details = Some(details(info, cdrom));
        }
        Ok(vm)
    }

    async fn no_vm(&self, name: &Name) -> Result<ApiError, ApiError> {
        let vms = self.core.call(|core| core.vms()).await?;
        let meant = meant(name, vms.iter().map(|vm| &*vm.name));
        Ok(ApiError::not_found(format!("There is no VM {name}: `virtuoso vm list` shows all{meant}")))
    }

    /// The host that a request is for, unless it is this one.
    pub(super) async fn find_place(&self, target: Target) -> Result<Option<HostId>, ApiError> {
        self.core
            .call(move |core| {
                let me = core.me();
                let host = match target {
                    Target::Host(host) => Some(core.host_named(&host)?),
                    Target::Vm(name) => core.vm_named(&name)?.map(|(host, _)| host),
                };
                Ok(host.filter(|host| *host != me))
            })
            .await?
    }

    /// Has another host answer a request.
    pub(super) async fn forward_to(&self, host: HostId, request: Request) -> Result<Response, ApiError> {
        let stream = match self.streams.open(host, CONTROL).await {
            Ok(stream) => stream,
            Err(error) => {
                let name = self.core.call(move |core| core.name_of(host)).await?;
                return Err(ApiError::new(ErrorCode::Unavailable, format!("Can't ask host {name}: {error}")));
            }
        };
        forward::send(stream, request).await
    }
}

impl Core {
    /// The VM of this id, wherever it is.
    fn vm_with(&self, id: VmId) -> Option<Vm> {
        self.vms().into_iter().find(|vm| vm.id.0 == id)
    }

    /// The member of this name or id.
    pub(super) fn host_named(&self, text: &str) -> Result<HostId, ApiError> {
        let hosts = self.hosts();
        let found = hosts.iter().find(|host| *host.name == *text || host.id.to_string() == text);
        let unknown = || {
            let meant = meant(text, hosts.iter().map(|host| &*host.name));
            ApiError::not_found(format!("There is no host {text}: `virtuoso host list` shows all{meant}"))
        };
        Ok(found.ok_or_else(unknown)?.id.0)
    }

    fn base_image(&mut self, name: Name) -> Result<BaseImage, ApiError> {
        let images = self.images();
        let unknown = || {
            let meant = meant(&name, images.iter().map(|image| &*image.name));
            ApiError::not_found(format!("No host has an image {name}: `virtuoso image list` shows all{meant}"))
        };
        let digest = images.iter().find(|image| image.name == *name).ok_or_else(unknown)?.digest;
        Ok(BaseImage { digest, name })
    }

    /// A VM as it was asked for, with an id and addresses that follow from the request.
    fn specify(&mut self, request: VmCreate) -> Result<Spec, ApiError> {
        let id = vm_id(request.request.as_deref().unwrap_or_default());
        if let Some((host, row)) = self.vm_named(&request.name)?
            && row.id != id
        {
            let host = self.name_of(host);
            return Err(VmError::NameTaken { name: request.name.to_string(), host }.into());
        }
        let digest = request.disk.and_then(|disk| disk.digest);
        let image = match (request.image, digest) {
            (Some(name), Some(digest)) => Some(BaseImage { name, digest }),
            (image, _) => image.map(|name| self.base_image(name)).transpose()?,
        };
        let boot = match (request.kernel, image) {
            (Some(kernel), image) => Boot::Kernel { kernel, initrd: request.initrd, append: request.append, image },
            (None, Some(image)) => Boot::Image(image),
            (None, None) if request.disk_bytes > 0 => Boot::Disk,
            (None, None) => return Err(ApiError::invalid("A VM boots a kernel, an image or its own disk: name one")),
        };
        let mut nics = Vec::new();
        for (index, network) in request.networks.into_iter().enumerate() {
            nics.push(Nic { spoofing: request.spoofing, ..self.new_nic(id, network, index)? });
        }
        Ok(Spec {
            id: Text(id),
            name: request.name,
            made_s: self.clock.now().wall.0,
            vcpus: request.vcpus,
            memory_bytes: request.memory_bytes,
            disk_bytes: request.disk_bytes,
            boot,
            cdrom: None,
            cdrom_first: request.boot == Some(BootDevice::Cdrom),
            nics,
            labels: request.labels,
            ssh_keys: request.ssh_keys,
            restart: request.restart,
            limits: request.limits,
            machine: crate::vm::MACHINE.into(),
            cpu: crate::vm::CPU.into(),
        })
    }
}

/// The id of the VM that a request makes.
fn vm_id(request: &str) -> VmId {
    let digest = blake3::hash(request.as_bytes());
    let mut id = [0; 16];
    id.copy_from_slice(&digest.as_bytes()[..16]);
    VmId(id)
}

/// What can be told without looking at anything else.
fn check(request: &VmCreate) -> Result<(), ApiError> {
    let keys_fit = request.ssh_keys.iter().all(|key| key.len() <= SSH_KEY_BYTES_MAX && !key.contains(['\n', '\r']));
    let wrong = if !(1..=VCPUS_MAX).contains(&request.vcpus) {
        format!("A VM has 1 to {VCPUS_MAX} virtual CPUs")
    } else if request.memory_bytes < MEMORY_BYTES_MIN {
        "A VM has at least 16MiB of memory".into()
    } else if request.networks.len() > VM_NICS_MAX {
        format!("A VM has at most {VM_NICS_MAX} network interfaces")
    } else if request.append.len() > APPEND_BYTES_MAX || request.append.contains(['\n', '\0']) {
        format!("A kernel's command line is one line of at most {APPEND_BYTES_MAX} bytes")
    } else if request.ssh_keys.len() > SSH_KEYS_MAX || !keys_fit {
        format!("At most {SSH_KEYS_MAX} keys of one line each may log in")
    } else if request.labels.len() > LABELS_MAX {
        format!("A VM has at most {LABELS_MAX} labels")
    } else if request.request.as_ref().is_some_and(|id| id.is_empty() || id.len() > REQUEST_BYTES_MAX) {
        format!("The id of a request has 1 to {REQUEST_BYTES_MAX} bytes")
    } else if request.kernel.is_none() && (request.initrd.is_some() || !request.append.is_empty()) {
        "An initial file system and a command line belong to a kernel: name that too".into()
    } else if let Some(fault) = request.limits.fault() {
        fault
    } else {
        return Ok(());
    };
    Err(ApiError::invalid(wrong))
}

/// A file that a VM boots. For users of other hosts it must be one that everybody here may read: a guest can read it.
fn check_file(path: &Path, origin: Origin) -> Result<(), ApiError> {
    if !path.is_absolute() {
        return Err(ApiError::invalid(format!(
            "{} is a relative path: the agent has another directory",
            path.display()
        )));
    }
    let metadata = std::fs::metadata(path)
        .map_err(|error| ApiError::not_found(format!("Can't use {} on this host: {error}", path.display())))?;
    if !metadata.is_file() {
        return Err(ApiError::invalid(format!("{} is not a file", path.display())));
    }
    if matches!(origin, Origin::Member(_)) && metadata.permissions().mode() & 0o004 == 0 {
        let detail = format!("{} is not for users of other hosts: not everybody may read it", path.display());
        return Err(ApiError::new(ErrorCode::Forbidden, detail));
    }
    Ok(())
}

/// Waits until the row of a VM is here, so that what the caller asks next finds it.
async fn wait_for_row(core: &Handle, name: &Name) {
    let arrived = async {
        let mut changes = core.call(|core| core.vm_changes()).await?;
        loop {
            changes.borrow_and_update();
            let wanted = name.clone();
            if matches!(core.call(move |core| core.vm_named(&wanted)).await?, Ok(Some(_))) {
                return anyhow::Ok(());
            }
            changes.changed().await?;
        }
    };
    if tokio::time::timeout(ROW_TIMEOUT, arrived).await.is_err() {
        tracing::debug!(vm = %name, "The row of a VM has not come yet");
    }
}

/// Errors of VMs keep their codes.
pub(crate) fn vm_error(error: anyhow::Error) -> ApiError {
    let error = match error.downcast::<VmError>() {
        Ok(known) => return known.into(),
        Err(other) => other,
    };
    match error.downcast::<crate::image::ImageError>() {
        Ok(known) => known.into(),
        Err(other) => other.into(),
    }
}

fn details(info: VmInfo, cdrom: Option<Cdrom>) -> VmDetails {
    let VmInfo { spec, crash, trouble, usage, disk_used_bytes, pid, vnc } = info;
    VmDetails {
        disk_bytes: spec.disk_bytes,
        kernel: match &spec.boot {
            Boot::Kernel { kernel, .. } => Some(kernel.display().to_string()),
            Boot::Image { .. } | Boot::Disk => None,
        },
        labels: spec.labels,
        restart: spec.restart,
        crash,
        trouble,
        pid,
        cpu_s: usage.map(|usage| usage.cpu_s),
        cpu_percent: usage.and_then(|usage| usage.cpu_percent),
        memory_used_bytes: usage.map(|usage| usage.memory_bytes),
        disk_used_bytes,
        io_read_bytes: usage.map(|usage| usage.io_read_bytes),
        io_written_bytes: usage.map(|usage| usage.io_written_bytes),
        net_rx_bytes: usage.map(|usage| usage.net_rx_bytes),
        net_tx_bytes: usage.map(|usage| usage.net_tx_bytes),
        limits: spec.limits,
        cdrom,
        vnc_socket: vnc.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(json: serde_json::Value) -> VmCreate {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn what_no_host_takes_is_refused() {
        let right = serde_json::json!({"name": "a", "memory_bytes": 1 << 30, "kernel": "/k"});
        assert_eq!(check(&request(right.clone())), Ok(()));
        for (key, value, part) in [
            ("vcpus", serde_json::json!(0), "virtual CPUs"),
            ("memory_bytes", serde_json::json!(1), "16MiB"),
            ("append", serde_json::json!("a\nb"), "one line"),
            ("ssh_keys", serde_json::json!(["a\nb"]), "one line"),
            ("request", serde_json::json!(""), "id of a request"),
        ] {
            let mut wrong = right.clone();
            wrong[key] = value;
            let error = check(&request(wrong)).unwrap_err();
            assert!(error.detail.contains(part), "{error:?}");
        }
    }

    #[test]
    fn users_of_other_hosts_boot_only_what_everybody_may_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let rights = |mode| std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        let member = Origin::Member(HostId([1; 32]));
        rights(0o600);
        assert_eq!(check_file(file.path(), Origin::Local), Ok(()));
        assert_eq!(check_file(file.path(), member).unwrap_err().code, ErrorCode::Forbidden);
        rights(0o644);
        assert_eq!(check_file(file.path(), member), Ok(()));
        assert_eq!(check_file(Path::new("/nonexistent"), member).unwrap_err().code, ErrorCode::NotFound);
    }

    #[test]
    fn the_same_request_makes_the_same_vm() {
        assert!(vm_id("a") == vm_id("a") && vm_id("a") != vm_id("b"));
    }
}
