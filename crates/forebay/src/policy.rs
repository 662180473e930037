//! Which tensor goes where. Pure: names, sizes and options in, placements out.

use crate::backend::{Backend, SplitMode};
use crate::options::{GpuLayers, PlaceRule, Target};
use crate::split::Axis;

/// The words that a layer's number follows in tensor names: `blk.N.` (GGUF), `model.layers.N.`,
/// `transformer.h.N.`, `encoder.layer.N.`, `blocks.N.`.
const LAYER_WORDS: [&str; 6] = ["blk", "layers", "layer", "h", "blocks", "block"];

/// A larger number after such a word means something else.
const LAYER_MAX: u32 = 1 << 20;

/// The layer that a tensor's name puts it in.
pub(crate) fn layer_of(name: &str) -> Option<u32> {
    let mut words = name.split('.').peekable();
    while let Some(word) = words.next() {
        if LAYER_WORDS.contains(&word)
            && let Some(number) = words.peek().and_then(|next| next.parse().ok())
        {
            return (number <= LAYER_MAX).then_some(number);
        }
    }
    None
}

/// Sorts tensors by when a model uses them: embeddings, the layers in turn, the rest.
pub(crate) fn order_of_use(name: &str) -> (u8, u32) {
    const FIRST: [&str; 5] = ["embd", "embed", "embeddings", "wte", "wpe"];
    match layer_of(name) {
        Some(layer) => (1, layer),
        None if FIRST.iter().any(|word| name.contains(word)) => (0, 0),
        None => (2, 0),
    }
}

/// Where a tensor goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    Whole(Backend),
    /// In parts, if it can be cut; else to the first.
    Split(Axis, Vec<Backend>),
}

/// What decides where tensors go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy<'options> {
    pub(crate) gpu_layers: GpuLayers,
    pub(crate) rules: &'options [PlaceRule],
    /// At least one, each with what it can hold: layers are spread in proportion to that.
    pub(crate) devices: &'options [Backend],
    pub(crate) room_bytes: &'options [u64],
    pub(crate) split: SplitMode,
}

/// The placement of each tensor, in order, and the reasons in words. Tensors are names and sizes.
pub(crate) fn place<'names>(
    tensors: impl Iterator<Item = (&'names str, u64)> + Clone,
    policy: Policy<'_>,
) -> (Vec<Placement>, Vec<String>) {
    let names = tensors.clone().map(|(name, _)| name);
    let layers = names.clone().filter_map(layer_of).max().map_or(0, |last| last + 1);
    let (first_offloaded, offload_rest) = match policy.gpu_layers {
        GpuLayers::All => (0, true),
        GpuLayers::Count(count) => (layers.saturating_sub(count), count > layers),
    };
    let is_offloaded = |name: &str| match layer_of(name) {
        Some(layer) => layer >= first_offloaded,
        None => offload_rest,
    };
    let offloaded = tensors.filter(|(name, _)| is_offloaded(name));
    let spread = Spread::new(offloaded, policy.devices, policy.room_bytes);
    let device_of = |name: &str| match policy.split {
        _ if policy.devices.len() == 1 => Placement::Whole(policy.devices[0]),
        SplitMode::Layers => Placement::Whole(spread.device_of(name)),
        SplitMode::Rows => Placement::Split(Axis::Rows, policy.devices.to_vec()),
        SplitMode::Columns => Placement::Split(Axis::Columns, policy.devices.to_vec()),
    };
    let mut by_rule = 0_usize;
    let placements = names
        .map(|name| {
            if let Some(rule) = policy.rules.iter().find(|rule| rule.pattern.is_match(name)) {
                by_rule += 1;
                return match &rule.target {
                    Target::Device => device_of(name),
                    Target::Whole(backend) => Placement::Whole(*backend),
                    Target::Split(axis, devices) => Placement::Split(*axis, devices.clone()),
                };
            }
            if is_offloaded(name) { device_of(name) } else { Placement::Whole(Backend::Cpu) }
        })
        .collect();
    let device = match policy.devices {
        [only] => only.to_string(),
        several => {
            let way = match policy.split {
                SplitMode::Layers => "spread by layers over",
                SplitMode::Rows => "split by rows over",
                SplitMode::Columns => "split by columns over",
            };
            let names: Vec<String> = several.iter().map(ToString::to_string).collect();
            format!("devices, {way} {}", names.join(", "))
        }
    };
    let mut why = vec![match policy.gpu_layers {
        GpuLayers::All => format!("everything is offloaded to {device} (--gpu-layers all)"),
        GpuLayers::Count(count) if offload_rest => format!(
            "everything is offloaded to {device}: {count} is more than the model's {layers} layers"
        ),
        GpuLayers::Count(0) => "nothing is offloaded (--gpu-layers 0)".to_owned(),
        GpuLayers::Count(_) => format!(
            "layers {first_offloaded} to {} of {layers} are offloaded to {device}; the others, \
             embeddings and output stay on cpu",
            layers.saturating_sub(1)
        ),
    }];
    if !policy.rules.is_empty() {
        why.push(format!("{by_rule} tensors are placed by --place"));
    }
    (placements, why)
}

/// Which device each stage of the model goes to, in the order in which a model uses them.
struct Spread {
    /// The stages that begin a device, and which.
    starts: Vec<((u8, u32), Backend)>,
}

impl Spread {
    /// Each device gets bytes in proportion to its room; what belongs to one layer stays together.
    fn new<'names>(
        tensors: impl Iterator<Item = (&'names str, u64)>,
        devices: &[Backend],
        room_bytes: &[u64],
    ) -> Self {
        let mut stages = std::collections::BTreeMap::new();
        for (name, bytes) in tensors {
            *stages.entry(order_of_use(name)).or_insert(0_u128) += u128::from(bytes);
        }
        let all: u128 = stages.values().sum();
        let room: u128 = room_bytes.iter().map(|&bytes| u128::from(bytes)).sum();
        let mut starts: Vec<((u8, u32), Backend)> = Vec::new();
        let mut before = 0;
        for (stage, bytes) in stages {
            // By the middle of the stage: a large one goes where most of it would.
            let middle = before + bytes / 2;
            let mut left = (middle * room).checked_div(all).unwrap_or(0);
            let index = (room_bytes.iter().position(|&room| {
                let is_here = left < u128::from(room);
                left = left.saturating_sub(u128::from(room));
                is_here
            }))
            .unwrap_or(devices.len() - 1);
            if starts.last().is_none_or(|(_, last)| *last != devices[index]) {
                starts.push((stage, devices[index]));
            }
            before += bytes;
        }
        if starts.is_empty() {
            starts.push(((0, 0), devices[0]));
        }
        Self { starts }
    }

    fn device_of(&self, name: &str) -> Backend {
        let after = self.starts.partition_point(|(stage, _)| *stage <= order_of_use(name));
        self.starts[after.saturating_sub(1)].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 6] = [
        "token_embd.weight",
        "blk.0.attn_q.weight",
        "blk.1.attn_q.weight",
        "blk.2.attn_q.weight",
        "blk.2.ffn_up.weight",
        "output.weight",
    ];

    fn placed(gpu_layers: GpuLayers, rules: &[&str]) -> String {
        let rules: Vec<PlaceRule> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        let policy = Policy {
            gpu_layers,
            rules: &rules,
            devices: &[Backend::Host],
            room_bytes: &[1],
            split: SplitMode::Layers,
        };
        let (placements, _) = place(NAMES.into_iter().map(|name| (name, 10)), policy);
        let is_cpu = |placement: &Placement| *placement == Placement::Whole(Backend::Cpu);
        placements.iter().map(|placement| if is_cpu(placement) { 'c' } else { 'h' }).collect()
    }

    #[test]
    fn layers_are_spread_over_devices_by_bytes_and_stay_together() {
        let devices = [Backend::Cuda(0), Backend::Cuda(1)];
        let placed_by = |sizes: [u64; 6], split, room_bytes: &[u64]| {
            let (gpu_layers, rules) = (GpuLayers::All, &[][..]);
            let policy = Policy { gpu_layers, rules, devices: &devices, room_bytes, split };
            place(NAMES.into_iter().zip(sizes), policy).0
        };
        let placed = |sizes, split| placed_by(sizes, split, &[80, 80]);
        let numbers = |placements: Vec<Placement>| -> Vec<u32> {
            let number = |placement: &Placement| match placement {
                Placement::Whole(Backend::Cuda(number)) => *number,
                other => panic!("{other:?}"),
            };
            placements.iter().map(number).collect()
        };
        assert_eq!(numbers(placed([10; 6], SplitMode::Layers)), [0, 0, 0, 1, 1, 1]);
        assert_eq!(numbers(placed([90, 1, 1, 1, 1, 90], SplitMode::Layers)), [0, 0, 0, 1, 1, 1]);
        assert_eq!(numbers(placed([0; 6], SplitMode::Layers)), [0; 6]);
        let unequal = placed_by([10; 6], SplitMode::Layers, &[25, 5]);
        assert_eq!(numbers(unequal), [0, 0, 0, 0, 0, 1]);
        let rows = placed([10; 6], SplitMode::Rows);
        assert!(rows.iter().all(|it| *it == Placement::Split(Axis::Rows, devices.to_vec())));
    }

    #[test]
    fn the_last_layers_are_offloaded_first() {
        assert_eq!(placed(GpuLayers::All, &[]), "hhhhhh");
        assert_eq!(placed(GpuLayers::Count(0), &[]), "cccccc");
        assert_eq!(placed(GpuLayers::Count(2), &[]), "cchhhc");
        assert_eq!(placed(GpuLayers::Count(3), &[]), "chhhhc");
        assert_eq!(placed(GpuLayers::Count(4), &[]), "hhhhhh");
    }

    #[test]
    fn the_first_matching_rule_beats_the_layers() {
        let rules = ["ffn=cpu", "^blk\\.2=device", "output=host"];
        assert_eq!(placed(GpuLayers::Count(0), &rules), "ccchch");
    }

    #[test]
    fn embeddings_are_used_first_and_the_output_last() {
        let mut names = [
            "lm_head.weight",
            "model.layers.10.w",
            "model.layers.2.w",
            "model.norm",
            "model.embed_tokens.weight",
        ];
        names.sort_by_key(|name| order_of_use(name));
        let expected = [
            "model.embed_tokens.weight",
            "model.layers.2.w",
            "model.layers.10.w",
            "lm_head.weight",
            "model.norm",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn layers_are_found_in_the_names_of_all_families() {
        assert_eq!(layer_of("model.layers.17.mlp.down_proj.weight"), Some(17));
        assert_eq!(layer_of("transformer.h.3.ln_1.bias"), Some(3));
        assert_eq!(layer_of("encoder.layer.11.output.dense.weight"), Some(11));
        assert_eq!(layer_of("blk.x.attn"), None);
        assert_eq!(layer_of("lm_head.weight"), None);
        assert_eq!(layer_of("layers.4294967295.weight"), None);
    }
}
