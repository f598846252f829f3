//! Replicated tables: every member keeps every row. A row is written by exactly one host, so two versions of it never
//! conflict: the higher (incarnation, seq) is the later one.

mod body;
mod query;
mod row;
mod store;
mod sync;

pub use body::{Beat, Body, HostRow, ImageRow, NetworkRow, PendingRow, Resources, VmRow, VmState, is_image_name};
pub use query::{HostQuery, Match, Shortage};
pub use row::{Key, Row, Version};
pub use store::{Applied, BUCKETS, Standing, Table};
pub use sync::{AgedRow, Gossip, SyncRequest, SyncResponse, Tag};
