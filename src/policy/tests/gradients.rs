//! Tests that gradients reach every trainable value, are correct, and reach nothing else.

use candle_core::Var;
use candle_core::backprop::GradStore;

use super::*;
use crate::policy::{Form, Targets, ValueHead};

struct Case {
    decoder: Decoder,
    packed: Packed,
    targets: Targets,
}

impl Case {
    fn new(folder: &TempDir, arch: &'static str) -> Self {
        let decoder = load(&write_tiny(folder, &TinySpec::new(arch)));
        let packed = Packed::new(&[tokens(7, 280, 1), tokens(12, 280, 2)]).unwrap();
        let targets = packed.targets(&[3, 4]).unwrap();
        Self { decoder, packed, targets }
    }

    fn loss(&self, lora: &Lora) -> Tensor {
        let logprobs = self.decoder.response_logprobs(&self.packed, &self.targets, &[1.0, 0.7], Some(lora)).unwrap();
        logprobs.sum_all().unwrap().affine(-0.1, 0.0).unwrap()
    }

    fn gradients(&self, lora: &Lora) -> (f32, GradStore) {
        let loss = self.loss(lora);
        (loss.to_scalar().unwrap(), loss.backward().unwrap())
    }
}

fn size(tensor: &Tensor) -> f32 {
    tensor.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt()
}

fn descend(var: &Var, gradient: &Tensor, rate: f64) {
    var.set(&(var.as_tensor() - (gradient * rate).unwrap()).unwrap()).unwrap();
}

#[test]
fn every_factor_gets_a_finite_gradient_that_is_not_zero_after_the_first_step() {
    let folder = folder();
    for arch in ARCHITECTURES {
        let case = Case::new(&folder, arch);
        let lora = Lora::new(&case.decoder, 4, 8.0, None, 1).unwrap();
        let (_, first) = case.gradients(&lora);
        for (name, var) in lora.named() {
            let gradient = first.get(&var).unwrap_or_else(|| panic!("{arch}: {name} has no gradient"));
            assert!(size(gradient).is_finite(), "{arch}: the gradient of {name} is not finite");
            assert_eq!(size(gradient) == 0.0, name.ends_with("lora_a"), "{arch}: {name}: B is zero at the start");
            descend(&var, gradient, 0.05);
        }
        let (_, second) = case.gradients(&lora);
        for (name, var) in lora.named() {
            let gradient = size(second.get(&var).unwrap());
            assert!(gradient.is_finite() && gradient > 0.0, "{arch}: {name} has gradient {gradient} after a step");
        }
    }
}

#[test]
fn gradients_are_the_slope_of_the_loss() {
    let folder = folder();
    for arch in ARCHITECTURES {
        let case = Case::new(&folder, arch);
        let lora = Lora::new(&case.decoder, 4, 8.0, None, 1).unwrap();
        fill_b(&lora, 0.1, 2);
        let (_, gradients) = case.gradients(&lora);
        let named = lora.named();
        for (which, suffix) in [("A", "lora_a"), ("B", "lora_b")] {
            // Along the gradient itself, where the slope is its squared norm.
            let vars: Vec<_> = named.iter().filter(|(name, _)| name.ends_with(suffix)).map(|(_, var)| var).collect();
            let norm: f64 = vars.iter().map(|v| f64::from(size(gradients.get(v).unwrap())).powi(2)).sum::<f64>().sqrt();
            // So short that no token goes to another expert on the way: the loss jumps there.
            let step = if arch == "qwen3moe" { 1e-4 } else { 2e-3 };
            let shift = |by: f64| vars.iter().for_each(|var| descend(var, gradients.get(var).unwrap(), -by / norm));
            shift(step);
            let above = case.loss(&lora).to_scalar::<f32>().unwrap();
            shift(-2.0 * step);
            let below = case.loss(&lora).to_scalar::<f32>().unwrap();
            shift(step);
            let slope = f64::from(above - below) / (2.0 * step);
            assert!((slope - norm).abs() < 0.01 * norm, "{arch} {which}: slope {slope}, gradient {norm}");
        }
    }
}

#[test]
fn a_part_left_out_is_not_trained() {
    let folder = folder();
    let case = Case::new(&folder, "llama");
    let parts = ["attn_q".to_string(), "ffn_down".to_string()];
    let lora = Lora::new(&case.decoder, 4, 8.0, Some(&parts), 1).unwrap();
    assert_eq!(lora.vars().len(), 2 * 2 * 2, "two factors of two parts of two layers");
    assert!(lora.named().iter().all(|(name, _)| name.contains("attn_q") || name.contains("ffn_down")));
    assert!(case.gradients(&lora).0.is_finite());
    let unknown = Lora::new(&case.decoder, 4, 8.0, Some(&["attn_x".into()]), 1).err().unwrap();
    assert!(unknown.message().contains("known are attn_k, attn_output"), "{unknown}");
}

#[test]
fn an_adapter_is_seeded_and_changes_nothing_at_first() {
    let folder = folder();
    let case = Case::new(&folder, "qwen2");
    let make = |seed| Lora::new(&case.decoder, 4, 8.0, None, seed).unwrap();
    let values = |lora: &Lora| lora.vars()[0].flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(values(&make(1)), values(&make(1)));
    assert_ne!(values(&make(1)), values(&make(2)));
    let bound = 1.0 / (case.decoder.width() as f32).sqrt();
    let most = values(&make(1)).into_iter().map(f32::abs).fold(0.0, f32::max);
    assert!(most <= bound && most > 0.8 * bound, "A reaches {most}, expected nearly {bound}");
    let sequence = tokens(20, 280, 4);
    let (with, without) =
        (logprobs(&case.decoder, &sequence, Some(&make(1))), logprobs(&case.decoder, &sequence, None));
    assert_eq!(with, without);
}

#[test]
fn a_value_head_starts_at_zero_and_trains_with_its_adapter() {
    let folder = folder();
    let case = Case::new(&folder, "llama");
    let lora = Lora::new(&case.decoder, 4, 8.0, None, 1).unwrap();
    let head = ValueHead::new(&case.decoder).unwrap();
    let values = |head: &ValueHead| {
        let hidden = case.decoder.hidden(&case.packed, Some(&lora)).unwrap();
        head.forward(&case.targets.select(&hidden).unwrap()).unwrap()
    };
    assert!(values(&head).to_vec1::<f32>().unwrap().iter().all(|&v| v == 0.0));
    let loss = |head: &ValueHead| (values(head) - 1.0).unwrap().sqr().unwrap().mean_all().unwrap();
    let first = loss(&head).backward().unwrap();
    for var in head.vars() {
        assert!(size(first.get(&var).unwrap()) > 0.0);
        descend(&var, first.get(&var).unwrap(), 0.01);
    }
    let second = loss(&head).backward().unwrap();
    for (name, var) in lora.named() {
        let gradient = size(second.get(&var).unwrap());
        assert!(gradient > 0.0 || name.ends_with("lora_a"), "{name} has gradient {gradient}");
    }
    let path = folder.path().join("head.gguf");
    head.save(&path).unwrap();
    let read = ValueHead::load(&path, &case.decoder).unwrap();
    assert_eq!(values(&read).to_vec1::<f32>().unwrap(), values(&head).to_vec1::<f32>().unwrap());
    let other = load(&write_tiny(&folder, &TinySpec { seed: 9, ..TinySpec::new("llama") }));
    assert!(ValueHead::load(&path, &other).err().unwrap().message().contains("is for base"));
}

#[test]
fn a_pass_that_recomputes_blocks_gives_the_same_gradients_to_the_bit() {
    let folder = folder();
    for arch in ARCHITECTURES {
        let mut case = Case::new(&folder, arch);
        let lora = Lora::new(&case.decoder, 4, 8.0, None, 1).unwrap();
        fill_b(&lora, 0.1, 2);
        let (loss, whole) = case.gradients(&lora);
        let path = folder.path().join(format!("{arch}-7.gguf"));
        let sizes = case.decoder.shape().activation_bytes(4, 4);
        // All blocks, then the first one alone.
        for recomputed in [2, 1] {
            let most = crate::policy::activations(19, sizes, recomputed, 2);
            let form = Form { activations: Some(if recomputed == 2 { 0 } else { most }), ..Form::packed(Dtype::F32) };
            case.decoder = Decoder::load_as(&path, &device(), form).unwrap();
            let (again, parts) = case.gradients(&lora);
            assert_eq!(loss.to_bits(), again.to_bits(), "{arch}");
            for (name, var) in lora.named() {
                let values =
                    |grads: &GradStore| grads.get(&var).expect(&name).flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(values(&whole), values(&parts), "{arch}: {name}, {recomputed} blocks recomputed");
            }
        }
    }
}
