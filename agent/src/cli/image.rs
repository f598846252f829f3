//! `virtuoso image`: images of the swarm and of this host.

use super::format::{bytes, list, yes};
use super::progress::follow;
use super::table::Table;
use super::{Asking, FAILED, output};
use crate::control::client::{Call, parse};
use crate::control::model::{Image, ImageExport, ImageImport, ImagePull, ImageVerification};
use crate::name::Name;
use crate::size::ByteSize;
use anyhow::Context;
use clap::Subcommand;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Subcommand)]
pub(super) enum ImageVerb {
    /// Put a raw or qcow2 disk or a CD-ROM image, compressed or not, into this host's store and tell the swarm
    #[command(after_help = "\
Examples:
  virtuoso image import ./debian-12-nocloud-amd64.raw --name debian-12

Ctrl-C cancels; the store is then as it was.")]
    Import {
        /// The file on the agent's host
        file: PathBuf,
        /// The image's name
        #[arg(long)]
        name: Name,
    },
    /// Fetch an image from all hosts that have it
    #[command(after_help = "\
Examples:
  virtuoso image pull debian-12
  virtuoso image pull debian-12 --rate 10MiB

What is here already is not fetched again. Ctrl-C cancels; the store is then as it was.")]
    Pull {
        /// The image's name or digest
        image: String,
        /// The name it gets here, if not the one it has elsewhere
        #[arg(long)]
        name: Option<Name>,
        /// Bytes per second at most
        #[arg(long)]
        rate: Option<ByteSize>,
    },
    /// Write an image of this host to a raw file with holes
    #[command(after_help = "Examples:\n  virtuoso image export debian-12 ./debian-12.raw")]
    Export {
        /// The image
        name: Name,
        /// The file on the agent's host; there must be none yet
        file: PathBuf,
    },
    /// All images of the swarm
    #[command(after_help = "Examples:\n  virtuoso image list")]
    List,
    /// One image
    #[command(after_help = "Examples:\n  virtuoso image show debian-12")]
    Show {
        /// The image
        name: Name,
    },
    /// Read and check all that this host has of an image
    #[command(after_help = "Examples:\n  virtuoso image verify debian-12\n\nExit status is 1 if something is damaged.")]
    Verify {
        /// The image
        name: Name,
    },
    /// Remove an image from this host
    #[command(after_help = "Examples:\n  virtuoso image remove debian-12")]
    Remove {
        /// The image
        name: Name,
    },
}

impl ImageVerb {
    pub(super) async fn run(self, asking: &Asking) -> anyhow::Result<ExitCode> {
        match self {
            Self::Import { file, name } => import(asking, file, name).await,
            Self::Pull { image, name, rate } => pull(asking, &image, name, rate).await,
            Self::Export { name, file } => export(asking, &name, &file).await,
            Self::List => asking.show(Call::get("/v1/images"), images).await,
            Self::Show { name } => asking.show(Call::get(format!("/v1/images/{name}")), image).await,
            Self::Verify { name } => verify(asking, &name).await,
            Self::Remove { name } => {
                let call = Call::delete(format!("/v1/images/{name}"));
                asking.done(call, &format!("Removed image {name} from this host")).await
            }
        }
    }
}

async fn import(asking: &Asking, file: PathBuf, name: Name) -> anyhow::Result<ExitCode> {
    let path = absolute(&file)?;
    let call = Call::post("/v1/images", &ImageImport { path, name });
    let json = follow(&asking.client, call, "Importing").await?;
    if asking.json {
        return asking.show_json(&json);
    }
    let image: Image = parse(&json)?;
    output::line(&format!(
        "Imported image {} of {}, {} stored, digest {}",
        image.name,
        bytes(image.size_bytes),
        bytes(image.stored_bytes.unwrap_or_default()),
        image.digest
    ))?;
    Ok(ExitCode::SUCCESS)
}

async fn export(asking: &Asking, name: &Name, file: &Path) -> anyhow::Result<ExitCode> {
    let path = absolute(file)?;
    let call = Call::post(format!("/v1/images/{name}/export"), &ImageExport { path });
    let json = follow(&asking.client, call, "Exporting").await?;
    if asking.json {
        return asking.show_json(&json);
    }
    output::line(&format!("Exported image {name} to {}", file.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// The agent works in another directory.
fn absolute(file: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(file).with_context(|| format!("Not a path: `{}`", file.display()))
}

async fn pull(asking: &Asking, image: &str, name: Option<Name>, rate: Option<ByteSize>) -> anyhow::Result<ExitCode> {
    let call = Call::post(format!("/v1/images/{image}/pull"), &ImagePull { name, rate });
    let json = follow(&asking.client, call, "Pulling").await?;
    if asking.json {
        return asking.show_json(&json);
    }
    let image: Image = parse(&json)?;
    let stored = bytes(image.stored_bytes.unwrap_or_default());
    output::line(&format!("Image {} is here: {}, {stored} stored", image.name, bytes(image.size_bytes)))?;
    Ok(ExitCode::SUCCESS)
}

async fn verify(asking: &Asking, name: &Name) -> anyhow::Result<ExitCode> {
    let call = Call::post(format!("/v1/images/{name}/verify"), &serde_json::json!({}));
    let json = follow(&asking.client, call, "Verifying").await?;
    let found: ImageVerification = parse(&json)?;
    if asking.json {
        asking.show_json(&json)?;
    } else if found.ok {
        output::line(&format!("Image {} is whole: {} chunks checked", found.name, found.chunks_checked))?;
    } else {
        let mut table = Table::new(&[">OFFSET", "CHUNK", "PROBLEM"]);
        for chunk in found.damaged {
            table.row([chunk.offset_bytes.to_string(), chunk.digest.to_string(), chunk.problem]);
        }
        output::write(table.to_string().as_bytes())?;
        output::complain(&format!(
            "Image {} is damaged: {} of {} chunks. Import it again to mend it",
            found.name, found.chunks_damaged, found.chunks_checked
        ));
    }
    Ok(ExitCode::from(if found.ok { 0 } else { FAILED }))
}

fn images(images: Vec<Image>) -> Table {
    let mut table = Table::new(&["NAME", ">SIZE", ">STORED", "HERE", "PROVIDERS", "DIGEST"]);
    for image in images {
        table.row([
            image.name,
            bytes(image.size_bytes),
            image.stored_bytes.map(bytes).unwrap_or_default(),
            yes(image.local),
            list(image.provider_names),
            image.digest.to_string(),
        ]);
    }
    table
}

fn image(image: Image) -> Table {
    let mut table = Table::list();
    table.row(["name".into(), image.name]);
    table.row(["digest".into(), image.digest.to_string()]);
    table.row(["size".into(), bytes(image.size_bytes)]);
    table.row(["stored".into(), image.stored_bytes.map(bytes).unwrap_or_default()]);
    table.row(["unique".into(), image.unique_bytes.map(bytes).unwrap_or_default()]);
    for (id, name) in image.providers.iter().zip(image.provider_names) {
        table.row(["provider".into(), format!("{name} {id}")]);
    }
    table
}
