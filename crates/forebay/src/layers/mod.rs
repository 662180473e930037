//! Running a model that does not fit: layers and experts that come to the device as they are needed,
//! and go.

mod builder;
mod cache;
mod fetch;
mod layer;
mod pieces;
mod report;
mod running;
mod setting;
mod stream;
mod supply;
mod tiers;
mod units;

pub use builder::LayerStreamBuilder;
pub use cache::{CachePolicy, Lfu, Lru, Piece, Pinned};
pub use fetch::{Fetcher, FetcherBuilder};
pub use layer::Layer;
pub use pieces::{Fetch, FetchStats};
pub use report::{PassReport, StreamReport, TierBytes};
pub use stream::LayerStream;
pub use tiers::Tier;
