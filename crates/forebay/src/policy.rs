//! Which tensor goes where. Pure: names and options in, backends out.

use crate::backend::Backend;
use crate::loader::{GpuLayers, PlaceRule};

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

/// The backend of each tensor, in order, and the reasons in words.
pub(crate) fn place<'names>(
    names: impl Iterator<Item = &'names str> + Clone,
    gpu_layers: GpuLayers,
    rules: &[PlaceRule],
    device: Backend,
) -> (Vec<Backend>, Vec<String>) {
    let layers = names.clone().filter_map(layer_of).max().map_or(0, |last| last + 1);
    let (first_offloaded, offload_rest) = match gpu_layers {
        GpuLayers::All => (0, true),
        GpuLayers::Count(count) => (layers.saturating_sub(count), count > layers),
    };
    let mut by_rule = 0_usize;
    let backends: Vec<Backend> = names
        .map(|name| {
            if let Some(rule) = rules.iter().find(|rule| rule.pattern.is_match(name)) {
                by_rule += 1;
                return rule.backend.unwrap_or(device);
            }
            let offloaded = match layer_of(name) {
                Some(layer) => layer >= first_offloaded,
                None => offload_rest,
            };
            if offloaded { device } else { Backend::Cpu }
        })
        .collect();
    let mut why = vec![match gpu_layers {
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
    if !rules.is_empty() {
        why.push(format!("{by_rule} tensors are placed by --place"));
    }
    (backends, why)
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
        let (backends, _) = place(NAMES.into_iter(), gpu_layers, &rules, Backend::Host);
        backends.iter().map(|&backend| if backend == Backend::Cpu { 'c' } else { 'h' }).collect()
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
