//! What the control API asks for about CD-ROM drives.

use super::backend::Agent;
use super::vm_verbs::vm_error;
use crate::control::model::{Cdrom, CdromInsert, Loan, Vm};
use crate::control::problem::{ApiError, ErrorCode};
use crate::disc::User;
use crate::name::Name;
use crate::text::Text;
use crate::vm::Medium;
use std::path::PathBuf;

impl Agent {
    /// Lends a file of this host, which `user` may read.
    pub(super) async fn lend_file(&self, path: PathBuf, user: User) -> Result<Loan, ApiError> {
        let shelf = self.discs.shelf.clone();
        let named = path.display().to_string();
        let lent = tokio::task::spawn_blocking(move || shelf.lend(&path, user)).await;
        let disc = lent.map_err(|_| ApiError::new(ErrorCode::Internal, "Opening the file broke off"))?;
        let disc = disc.map_err(|error| ApiError::new(code(&error), format!("{error:#}")))?;
        let host = Text(self.discs.me);
        Ok(Loan { key: Text(disc.key), host, path: named, size_bytes: disc.size_bytes })
    }

    /// What is to be in a drive of this host.
    pub(super) async fn medium(&self, wanted: CdromInsert) -> Result<Medium, ApiError> {
        match wanted {
            CdromInsert::Disc(Loan { key, host, path, size_bytes }) => Ok(Medium::Disc { key, host, path, size_bytes }),
            CdromInsert::File(_) => Err(ApiError::invalid("A file is lent by its own host")),
            CdromInsert::Image(name) => {
                let wanted = name.clone();
                let images = self.core.call(move |core| core.images()).await?;
                let image = images.into_iter().find(|image| image.name == *wanted);
                let unknown = || ApiError::not_found(format!("No host has an image {wanted}"));
                let image = image.ok_or_else(unknown)?;
                Ok(Medium::Image { name, digest: image.digest, size_bytes: image.size_bytes })
            }
        }
    }

    /// Puts something into the drive of a VM of this host.
    pub(super) async fn insert_medium(&self, name: Name, wanted: CdromInsert) -> Result<Vm, ApiError> {
        let medium = self.medium(wanted).await?;
        self.vms.insert_medium(&name, medium).await.map_err(vm_error)?;
        self.show_vm(&name).await
    }

    /// What is in a drive, as it is shown.
    pub(super) async fn cdrom(&self, medium: &Medium) -> Result<Cdrom, ApiError> {
        let host_name = match medium.host() {
            Some(host) => Some(self.core.call(move |core| core.name_of(host)).await?),
            None => None,
        };
        let host = medium.host().map(Text);
        Ok(Cdrom { source: medium.source(), host, host_name, size_bytes: medium.size_bytes() })
    }
}

fn code(error: &anyhow::Error) -> ErrorCode {
    match error.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
        Some(std::io::ErrorKind::NotFound) => ErrorCode::NotFound,
        Some(std::io::ErrorKind::PermissionDenied) => ErrorCode::Forbidden,
        _ => ErrorCode::InvalidRequest,
    }
}
