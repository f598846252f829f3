//! What this host tells of its images: rows for every member, and a provider record for each digest.

use super::Core;
use crate::image::StoredImage;
use std::collections::BTreeSet;
use virtuoso_overlay::ids::Digest;
use virtuoso_overlay::table::{Body, ImageRow, Key};

impl Core {
    /// Makes rows and provider records say what the store has.
    pub(super) fn publish_images(&mut self) {
        let now = self.clock.now();
        let stored: Vec<StoredImage> = self.images.list().into_iter().filter(|image| !image.damaged).collect();
        let coming = self.images.coming();
        let Some(node) = &mut self.node else { return };
        let kept: BTreeSet<Digest> = stored.iter().map(|image| image.digest).collect();
        let coming: Vec<ImageRow> = coming.into_iter().filter(|row| !kept.contains(&row.digest)).collect();
        let told: Vec<ImageRow> = node
            .table()
            .bodies_of(node.me())
            .filter_map(|body| match body {
                Body::Image(row) => Some(row.clone()),
                _ => None,
            })
            .collect();
        for row in told.iter().filter(|row| !kept.contains(&row.digest)) {
            if row.complete {
                self.swarm.stop_providing(row.digest);
            }
            if !coming.iter().any(|other| other.digest == row.digest) {
                node.take_back(now, Key::Image(row.digest));
            }
        }
        for row in coming.into_iter().filter(|row| !told.contains(row)) {
            node.put(now, Body::Image(row));
        }
        for StoredImage { name, digest, size_bytes, .. } in stored {
            let row = ImageRow { digest, name: name.to_string(), size_bytes, complete: true };
            if told.contains(&row) {
                continue;
            }
            node.put(now, Body::Image(row));
            if let Err(error) = self.swarm.start_providing(digest) {
                tracing::warn!(%digest, "Can't enter an image into the distributed hash table: {error}");
            }
        }
    }
}
