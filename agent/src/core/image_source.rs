//! The members of the swarm as the place where images come from.

use super::{Core, Handle};
use crate::events::{EventKind, EventLog};
use crate::image::{Holder, ImageError, ImageStore, InUse, OnComplete, Opened, Providers, Pull, Served};
use crate::swarm::streams::{StreamKind, Streams};
use crate::text::Text;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::oneshot;
use virtuoso_overlay::ids::{Digest, HostId};
use virtuoso_overlay::table::Body;

/// Members with images, and the store where they come to.
pub struct ImageSource {
    /// Knows who has what.
    pub core: Handle,
    /// The ways to them.
    pub streams: Streams,
    /// What the operator may watch.
    pub events: EventLog,
    /// This host's images.
    pub images: Arc<ImageStore>,
}

/// Searches in the distributed hash table that run, with who waits for them.
#[derive(Default)]
pub(super) struct Searches(BTreeMap<Digest, Search>);

#[derive(Default)]
struct Search {
    found: BTreeSet<HostId>,
    waiting: Vec<oneshot::Sender<Vec<Holder>>>,
}

impl ImageSource {
    /// Lets hypervisors on this host read an image by NBD, also one that is elsewhere: then it is fetched, as it is
    /// read and in quiet times, and the swarm is told when it is here.
    ///
    /// # Errors
    /// If no host has the image.
    pub async fn serve(self: &Arc<Self>, pull: Pull) -> Result<InUse<Served>, ImageError> {
        let (core, events) = (self.core.clone(), self.events.clone());
        let on_complete: OnComplete = Box::new(move |stored| {
            let tell = async move {
                let digest = Text(stored.digest);
                events.emit(EventKind::ImageImported { name: stored.name.to_string(), digest });
                // An agent that stops tells nobody.
                core.call(Core::publish_images).await.ok();
            };
            tell.boxed()
        });
        self.images.serve_nbd(pull, self.clone(), on_complete).await
    }
}

impl Providers for ImageSource {
    fn find(&self, image: Digest) -> BoxFuture<'_, Vec<Holder>> {
        let find = async move {
            let (reply, found) = oneshot::channel();
            // A core that stops finds nobody.
            self.core.call(move |core| core.find_providers(image, reply)).await.ok();
            found.await.unwrap_or_default()
        };
        find.boxed()
    }

    fn open(&self, host: HostId) -> BoxFuture<'_, Opened> {
        let open = async move {
            let stream = self.streams.open(host, StreamKind::IMAGE).await.map_err(|error| error.to_string())?;
            Ok(Box::new(stream) as _)
        };
        open.boxed()
    }

    fn arrivals(&self) -> BoxStream<'static, ()> {
        let told = futures::stream::unfold(self.events.subscribe(None), async |mut events| {
            let event = events.next().await?;
            Some((event.kind, events))
        });
        let is_arrival =
            |kind: &EventKind| matches!(kind, EventKind::PeerConnected { .. } | EventKind::HostAppeared { .. });
        told.filter_map(move |kind| std::future::ready(is_arrival(&kind).then_some(()))).boxed()
    }

    fn changed(&self) {
        let core = self.core.clone();
        // An agent that stops tells nobody.
        tokio::spawn(async move { core.call(Core::publish_images).await.ok() });
    }

    fn lied(&self, host: HostId, image: Digest, what: Digest) {
        tracing::warn!(%host, %image, %what, "A host gave wrong content of an image: it is not asked again");
        self.events.emit(EventKind::ProviderLied { host: Text(host), image: Text(image), content: Text(what) });
    }
}

impl Core {
    /// Tells the hosts that have an image, without this one: by the tables, else by Kademlia.
    fn find_providers(&mut self, image: Digest, reply: oneshot::Sender<Vec<Holder>>) {
        let me = self.me();
        let rows = self.node.iter().flat_map(|node| node.table().bodies());
        let holder = |(host, body): (HostId, &Body)| match body {
            Body::Image(row) if row.digest == image && host != me => Some(Holder { host, complete: row.complete }),
            _ => None,
        };
        let hosts: Vec<Holder> = rows.filter_map(holder).collect();
        if !hosts.iter().any(|holder| holder.complete)
            && (self.searches.0.contains_key(&image) || self.swarm.get_providers(image).is_ok())
        {
            self.searches.0.entry(image).or_default().waiting.push(reply);
        } else {
            reply.send(hosts).ok();
        }
    }

    /// Providers that Kademlia knows.
    pub(super) fn on_providers(&mut self, image: Digest, hosts: &[HostId], last: bool) {
        let me = self.me();
        let Some(search) = self.searches.0.get_mut(&image) else { return };
        search.found.extend(hosts.iter().filter(|host| **host != me));
        if last && let Some(search) = self.searches.0.remove(&image) {
            for reply in search.waiting {
                reply.send(search.found.iter().map(|host| Holder { host: *host, complete: true }).collect()).ok();
            }
        }
    }
}
