//! `virtuoso vm cdrom`: what is in a VM's CD-ROM drive.

use super::format::bytes;
use super::{Asking, output};
use crate::control::client::Call;
use crate::control::model::{Cdrom, CdromInsert, Vm};
use crate::name::Name;
use anyhow::Context;
use clap::{Args, Subcommand};
use std::process::ExitCode;

#[derive(Args)]
pub(super) struct CdromArgs {
    /// The VM
    name: Name,
    #[command(subcommand)]
    verb: CdromVerb,
}

#[derive(Subcommand)]
enum CdromVerb {
    /// Put a file of this machine or an image of the swarm into the drive, in place of what is in it
    #[command(after_help = "\
Examples:
  virtuoso vm cdrom web insert ~/debian-12-netinst.iso
  virtuoso vm cdrom web insert --image debian-12-netinst

A file is one of this machine that you may read. If there is none of that name, an image of that name is meant. A file
is read as the guest needs it, and must stay as it is until it is ejected. If this machine goes away for more than 15
seconds, the drive becomes empty.")]
    Insert {
        /// A file of this machine, or the name of an image
        #[arg(value_name = "FILE_OR_IMAGE")]
        medium: String,
        /// It is an image, whatever files there are
        #[arg(long)]
        image: bool,
    },
    /// Empty the drive, whether the guest uses it or not
    #[command(after_help = "Examples:\n  virtuoso vm cdrom web eject")]
    Eject,
    /// What is in the drive
    #[command(after_help = "Examples:\n  virtuoso vm cdrom web show\n  virtuoso vm cdrom web show --json | jq .source")]
    Show,
}

impl CdromArgs {
    pub(super) async fn run(self, asking: &Asking) -> anyhow::Result<ExitCode> {
        let path = format!("/v1/vms/{}/cdrom", self.name);
        match self.verb {
            CdromVerb::Insert { medium, image } => {
                asking.tell(Call::post(path, &wanted(&medium, image)?), |vm: Vm| tell(&vm)).await
            }
            CdromVerb::Eject => asking.tell(Call::delete(path), |vm: Vm| tell(&vm)).await,
            CdromVerb::Show => {
                let vm: Vm = asking.client.fetch(Call::get(format!("/v1/vms/{}", self.name))).await?;
                if asking.json {
                    let details = vm.details.with_context(|| format!("Host {} is not reachable", vm.host_name))?;
                    output::line(&serde_json::to_string(&details.cdrom)?)?;
                } else {
                    output::line(&tell(&vm))?;
                }
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

/// What a word of the command line means: a file if there is one, else an image.
pub(super) fn wanted(medium: &str, is_image: bool) -> anyhow::Result<CdromInsert> {
    let name = || medium.parse::<Name>();
    if is_image {
        return Ok(CdromInsert::Image(name()?));
    }
    let path = std::path::absolute(medium).with_context(|| format!("Can't tell where {medium} is"))?;
    match name() {
        Ok(name) if !path.exists() => Ok(CdromInsert::Image(name)),
        // What is no image's name must be a file's: the agent tells why it can't be read.
        _ => Ok(CdromInsert::File(path)),
    }
}

fn tell(vm: &Vm) -> String {
    let Some(details) = &vm.details else { return format!("Host {} is not reachable", vm.host_name) };
    match &details.cdrom {
        Some(cdrom) => format!("In the drive of VM {} is {}", vm.name, describe(cdrom)),
        None => format!("The drive of VM {} is empty", vm.name),
    }
}

/// A medium in a few words.
pub(super) fn describe(cdrom: &Cdrom) -> String {
    let size = bytes(cdrom.size_bytes);
    match &cdrom.host_name {
        Some(host) => format!("{} of host {host}, {size}", cdrom.source),
        None => format!("image {}, {size}", cdrom.source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_before_images() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disc");
        std::fs::write(&file, "x").unwrap();
        assert_eq!(wanted(file.to_str().unwrap(), false).unwrap(), CdromInsert::File(file.clone()));
        assert_eq!(wanted("no-such-file", false).unwrap(), CdromInsert::Image("no-such-file".parse().unwrap()));
        assert_eq!(wanted("/No/such.iso", false).unwrap(), CdromInsert::File("/No/such.iso".into()));
        assert!(wanted("/No/such.iso", true).is_err());
    }
}
