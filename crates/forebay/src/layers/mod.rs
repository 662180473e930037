//! Running a model that does not fit: layers and experts that come to the device as they are needed,
//! and go.

mod cache;
mod fetch;
mod layer;
mod report;
mod running;
mod setting;
mod stream;
mod supply;
mod tiers;
mod units;

pub use cache::{CachePolicy, Lfu, Lru, Piece, Pinned};
pub use fetch::{Fetch, FetchStats, Fetcher, FetcherBuilder};
pub use layer::Layer;
pub use report::{PassReport, StreamReport, TierBytes};
pub use stream::{LayerStream, LayerStreamBuilder};
pub use tiers::Tier;
