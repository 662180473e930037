//! Tensors that whoever loaded them makes its own, and writes to.
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "every pointer is a tensor's, which its test holds and reads by copies only"
)]

mod support;

use forebay::{GpuLayers, Tensor, Writes};
use support::TestModel;

fn load(model: &TestModel, mode: &str, writes: Writes) -> Vec<Tensor> {
    let loader = model.loader(mode).gpu_layers(GpuLayers::Count(0)).mapped_writes(writes);
    loader.load().unwrap().tensors().collect()
}

fn contents(tensor: &Tensor) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(tensor.bytes()).unwrap()];
    tensor.read_into(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn what_is_written_to_a_tensor_reaches_no_other_and_no_file() {
    let model = TestModel::new(3 << 20);
    let file = std::fs::read(&model.path).unwrap();
    for mode in ["auto", "mmap", "mlock", "none", "dio"] {
        let tensors = load(&model, mode, Writes::Copied);
        for (number, tensor) in tensors.iter().enumerate() {
            let Some(start) = tensor.as_mut_ptr() else {
                assert_eq!(tensor.bytes(), 0, "{mode} {tensor:?}");
                continue;
            };
            let length = usize::try_from(tensor.bytes()).unwrap();
            unsafe { start.write_bytes(0xA5, length) };
            assert_eq!(contents(tensor), vec![0xA5; length], "{mode} {tensor:?}");
            for other in &tensors[number + 1..] {
                model.assert_right(other);
            }
        }
        assert!(std::fs::read(&model.path).unwrap() == file, "{mode}");
        for tensor in load(&model, mode, Writes::Copied) {
            model.assert_right(&tensor);
        }
    }
}

#[test]
fn mappings_refuse_writes_unless_they_are_asked_for() {
    let model = TestModel::new(1 << 20);
    for (mode, writable) in [("auto", false), ("mmap", false), ("none", true), ("dio", true)] {
        for tensor in load(&model, mode, Writes::Refused) {
            let expected = writable && tensor.bytes() > 0;
            assert_eq!(tensor.as_mut_ptr().is_some(), expected, "{mode} {tensor:?}");
            model.assert_right(&tensor);
        }
    }
}
