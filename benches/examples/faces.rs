//! Loads a model to `host` through one face of the library. For `benches/faces.py`, which puts the
//! faces beside each other.
//!
//!     faces sync|none|tokio|tokio-uring MODEL [--digest]
//!
//! Prints one JSON object: seconds from the first call to the whole model, its bytes, and, if asked
//! for, the sha256 of each tensor.

use forebay::{Error, LoadStream, Loaded, Loader};
use futures_util::StreamExt;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (face, model) = match &words[..] {
        [face, model] | [face, model, _] => (face.as_str(), model),
        _ => return Err("see the head of the source".into()),
    };
    let loader = Loader::new(model).device("host".parse()?);
    let started = Instant::now();
    let loaded = match face {
        "sync" => iterate(loader)?,
        "none" => pollster::block_on(async { whole(loader.start()?.stream()).await })?,
        "tokio" => {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build()?;
            runtime.block_on(async { whole(loader.start()?.stream()).await })?
        }
        "tokio-uring" => {
            tokio_uring::start(async { whole(loader.stream_on_tokio_uring()?).await })?
        }
        _ => return Err(format!("'{face}' is no face").into()),
    };
    let seconds = started.elapsed().as_secs_f64();
    let bytes: u64 = loaded.tensors().map(|tensor| tensor.bytes()).sum();
    let digests = words.get(2).map(|_| loaded.digests()).transpose()?;
    println!("{}", serde_json::json!({ "seconds": seconds, "bytes": bytes, "digests": digests }));
    Ok(())
}

fn iterate(loader: Loader) -> Result<Loaded, Error> {
    let mut load = loader.start()?;
    for tensor in &mut load {
        tensor?;
    }
    load.finish()
}

async fn whole(mut stream: LoadStream) -> Result<Loaded, Error> {
    while let Some(tensor) = stream.next().await {
        tensor?;
    }
    stream.finished().await
}
