//! Tests each operation against numeric gradients, and each fused one against its plain form. Needs no model file.

use super::compare::Function;
use super::*;
use crate::error::{Error, Result};
use candle_core::{DType, Device, Tensor};

fn tensor(seed: u64, shape: &[usize]) -> Tensor {
    compare::tensor(seed, shape).unwrap()
}

fn flat(t: &Tensor) -> Vec<f32> {
    compare::flat(t).unwrap()
}

fn gradients(f: Function, inputs: &[Tensor]) -> (Vec<f32>, Vec<Vec<f32>>) {
    compare::gradients(f, inputs, &Device::Cpu).unwrap()
}

/// Compares central differences along seeded directions with the gradient; `tolerance` is relative to the larger.
fn check_gradient(f: Function, inputs: &[Tensor], tolerance: f64) {
    let (_, grads) = gradients(f, inputs);
    let loss = |inputs: &[Tensor]| -> f64 {
        let out = flat(&f(inputs).unwrap());
        let direction = flat(&tensor(99, &[out.len()]));
        out.iter().zip(direction).map(|(o, d)| f64::from(*o) * f64::from(d)).sum()
    };
    for (i, grad) in grads.iter().enumerate() {
        assert!(grad.iter().all(|g| g.is_finite()), "input {i} has a gradient that is not finite");
        for seed in 0..3u64 {
            let step = 2e-2f64;
            let direction = tensor(1000 + seed, inputs[i].dims());
            let moved = |sign: f64| {
                let mut moved = inputs.to_vec();
                moved[i] = (&inputs[i] + direction.affine(sign * step, 0.0).unwrap()).unwrap();
                loss(&moved)
            };
            let numeric = (moved(1.0) - moved(-1.0)) / (2.0 * step);
            let exact: f64 = grad.iter().zip(flat(&direction)).map(|(g, d)| f64::from(*g) * f64::from(d)).sum();
            let size: f64 =
                grad.iter().zip(flat(&direction)).map(|(g, d)| (f64::from(*g) * f64::from(d)).powi(2)).sum();
            let allowed = tolerance * size.sqrt().max(1e-3);
            assert!(
                (numeric - exact).abs() <= allowed,
                "input {i}: numeric {numeric}, exact {exact}, allowed ±{allowed}"
            );
        }
    }
}

/// Compares two forms of a function in value and gradients, relative to the largest element.
fn check_equal(fused: Function, plain: Function, inputs: &[Tensor], tolerance: f32) {
    let gap = compare::gap(&Device::Cpu, fused, plain, inputs).unwrap();
    assert!(gap <= tolerance, "apart by {gap}, expected at most {tolerance}");
}

#[test]
fn every_kernel_is_near_its_plain_form() {
    // The checks of a GPU hold of the CPU too, and so of their plain forms; `APA_TEST_DEVICE` names another device.
    let on = std::env::var("APA_TEST_DEVICE").map_or(Device::Cpu, |name| crate::policy::device(&name).unwrap());
    let here = KERNELS.iter().map(|kernel| (kernel, &Device::Cpu));
    for (kernel, on) in here.chain(GPU_KERNELS.iter().map(|kernel| (kernel, &on))) {
        let gap = (kernel.run)(on).unwrap();
        assert!(gap.found <= gap.allowed, "{}: {gap:?}", kernel.name);
    }
}

#[test]
fn linear_gives_gradients_to_its_input_and_lora_factors() {
    for (n, inp, out, rank) in [(5, 24, 40, 4), (1, 7, 3, 1), (33, 64, 70, 16)] {
        let w = Frozen::new(&tensor(1, &[out, inp]), DType::F32).unwrap();
        let bias = tensor(2, &[out]);
        let inputs = [tensor(3, &[n, inp]), tensor(4, &[rank, inp]), tensor(5, &[out, rank])];
        let run = |i: &[Tensor]| linear(&i[0], &w, Some(&bias), Some(LoraPair { a: &i[1], b: &i[2], scale: 0.7 }));
        let plain =
            |i: &[Tensor]| plain::linear(&i[0], &w, Some(&bias), Some(LoraPair { a: &i[1], b: &i[2], scale: 0.7 }));
        check_gradient(&run, &inputs, 2e-2);
        check_equal(&run, &plain, &inputs, 1e-5);
        check_gradient(&|i| linear(&i[0], &w, None, None), &inputs[..1], 2e-2);
    }
}

#[test]
fn bf16_operations_follow_the_plain_ones_within_their_rounding() {
    let (n, inp, out, rank) = (37, 96, 130, 16);
    let w = Frozen::new(&tensor(1, &[out, inp]), DType::BF16).unwrap();
    let rounded = Frozen::new(&w.weight_f32().unwrap(), DType::F32).unwrap();
    let bias = tensor(2, &[out]);
    let inputs = [tensor(3, &[n, inp]), tensor(4, &[rank, inp]), tensor(5, &[out, rank])];
    let run =
        |w: &Frozen, i: &[Tensor]| linear(&i[0], w, Some(&bias), Some(LoraPair { a: &i[1], b: &i[2], scale: 0.7 }));
    check_equal(&|i| run(&w, i), &|i| run(&rounded, i), &inputs, 1e-2);
    check_equal(&|i| linear(&i[0], &w, None, None), &|i| linear(&i[0], &rounded, None, None), &inputs[..1], 1e-2);
    let targets: Vec<u32> = (0..n as u32).map(|i| i * 3).collect();
    let temperatures = vec![0.8; n];
    let score = |w: &Frozen, i: &[Tensor]| token_logprobs(&i[0], w, &targets, &temperatures);
    check_equal(&|i| score(&w, i), &|i| score(&rounded, i), &inputs[..1], 1e-2);
}

/// The plain forms of whole blocks; the factors are inputs 1 to 6 and 1 to 8.
fn pair<'a>(i: &'a [Tensor], at: usize) -> Option<LoraPair<'a>> {
    Some(LoraPair { a: &i[at], b: &i[at + 1], scale: 0.7 })
}

#[test]
fn a_fused_feed_forward_block_equals_its_parts() {
    for (dtype, tolerance) in [(DType::F32, 2e-5f32), (DType::BF16, 5e-2)] {
        for n in [1, 30] {
            let (e, f, r) = (48, 80, 4);
            let weight = |seed, out, inp: usize| {
                Frozen::new(&tensor(seed, &[out, inp]).affine(1.5 / (inp as f64).sqrt(), 0.0).unwrap(), dtype).unwrap()
            };
            let (gate, up, down) = (weight(1, f, e), weight(2, f, e), weight(3, e, f));
            let norm = tensor(4, &[e]);
            let shapes = [[n, e], [r, e], [f, r], [r, e], [f, r], [r, f], [e, r]];
            let inputs: Vec<Tensor> = shapes.iter().enumerate().map(|(i, s)| tensor(10 + i as u64, s)).collect();
            let fused = |i: &[Tensor]| {
                let layer = |weight, at| Adapted { weight, bias: None, lora: pair(i, at) };
                let (gate, up, down) = (layer(&gate, 1), layer(&up, 3), layer(&down, 5));
                feed_forward(&i[0], &FeedForward { norm: &norm, eps: 1e-5, gate, up, down })
            };
            let parts = |i: &[Tensor]| {
                let widened = |w: &Frozen| Frozen::new(&w.weight_f32()?, DType::F32);
                let normed = plain::rms_norm(&i[0], &norm, 1e-5)?;
                let layer = |x: &Tensor, w, at| plain::linear(x, &widened(w)?, None, pair(i, at));
                let inner = plain::swiglu(&layer(&normed, &gate, 1)?, &layer(&normed, &up, 3)?)?;
                Ok((&i[0] + layer(&inner, &down, 5)?)?)
            };
            check_equal(&fused, &parts, &inputs, tolerance);
            if dtype == DType::F32 {
                check_gradient(&fused, &inputs, 2e-2);
            }
        }
    }
}

#[test]
fn a_fused_attention_block_equals_its_parts() {
    let (heads, kv, dim, e, r) = (6, 2, 8, 48, 4);
    for (dtype, tolerance) in [(DType::F32, 5e-5f32), (DType::BF16, 5e-2)] {
        for (starts, style, head_norms) in
            [(vec![0, 1], RopeStyle::Halves, true), (vec![0, 12, 13, 40], RopeStyle::Interleaved, false)]
        {
            let n = starts[starts.len() - 1];
            let weight = |seed, out, inp: usize| {
                Frozen::new(&tensor(seed, &[out, inp]).affine(1.5 / (inp as f64).sqrt(), 0.0).unwrap(), dtype).unwrap()
            };
            let (q, k) = (weight(1, heads * dim, e), weight(2, kv * dim, e));
            let (v, o) = (weight(3, kv * dim, e), weight(4, e, heads * dim));
            let (norm, q_norm, k_norm, bias) =
                (tensor(5, &[e]), tensor(6, &[dim]), tensor(7, &[dim]), tensor(8, &[kv * dim]));
            let positions: Vec<u32> = (0..n as u32).collect();
            let table = RopeTable::new(&positions, &[1.0, 0.3, 0.1], &Device::Cpu).unwrap();
            let (h, g) = (heads * dim, kv * dim);
            let shapes = [[n, e], [r, e], [h, r], [r, e], [g, r], [r, e], [g, r], [r, h], [e, r]];
            let inputs: Vec<Tensor> = shapes.iter().enumerate().map(|(i, s)| tensor(10 + i as u64, s)).collect();
            let norms = head_norms.then_some((&q_norm, &k_norm));
            let fused = |i: &[Tensor]| {
                let layer = |weight, bias, at| Adapted { weight, bias, lora: pair(i, at) };
                let block = SelfAttention {
                    norm: &norm,
                    eps: 1e-5,
                    query: layer(&q, None, 1),
                    key: layer(&k, Some(&bias), 3),
                    value: layer(&v, None, 5),
                    output: layer(&o, None, 7),
                    head_norms: norms,
                    heads,
                    kv_heads: kv,
                    rope: &table,
                    style,
                    starts: &starts,
                    scale: 0.4,
                };
                self_attention(&i[0], &block)
            };
            let parts = |i: &[Tensor]| {
                let widened = |w: &Frozen| Frozen::new(&w.weight_f32()?, DType::F32);
                let normed = plain::rms_norm(&i[0], &norm, 1e-5)?;
                let layer = |x: &Tensor, w, bias, at, heads: usize| {
                    Ok::<_, Error>(plain::linear(x, &widened(w)?, bias, pair(i, at))?.reshape((n, heads, ()))?)
                };
                let (mut qs, mut ks) = (layer(&normed, &q, None, 1, heads)?, layer(&normed, &k, Some(&bias), 3, kv)?);
                if let Some((q_norm, k_norm)) = norms {
                    (qs, ks) = (plain::rms_norm(&qs, q_norm, 1e-5)?, plain::rms_norm(&ks, k_norm, 1e-5)?);
                }
                let (qs, ks) = (plain::rope(&qs, &table, style)?, plain::rope(&ks, &table, style)?);
                let mixed = plain::attention(&qs, &ks, &layer(&normed, &v, None, 5, kv)?, &starts, 0.4, None)?
                    .reshape((n, h))?;
                Ok((&i[0] + plain::linear(&mixed, &widened(&o)?, None, pair(i, 7))?)?)
            };
            check_equal(&fused, &parts, &inputs, tolerance);
            if dtype == DType::F32 {
                check_gradient(&fused, &inputs, 2e-2);
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let w = Frozen::new(&tensor(1, &[600, 96]), DType::BF16).unwrap();
    let inputs = [tensor(3, &[300, 96]), tensor(4, &[8, 96]), tensor(5, &[600, 8])];
    let all = |i: &[Tensor]| {
        let y = linear(&i[0], &w, None, Some(LoraPair { a: &i[1], b: &i[2], scale: 0.7 }))?;
        let q = y.narrow(1, 0, 96)?.contiguous()?.reshape((300, 3, 32))?;
        let o = attention(&q, &q, &q, &[0, 100, 300], 0.2)?.reshape((300, 96))?;
        token_logprobs(&o, &w, &[5; 300], &[1.0; 300])
    };
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| gradients(&all, &inputs))
    };
    assert_eq!(on(1), on(3));
}

#[test]
fn norms_give_gradients_to_their_input() {
    for shape in [vec![3, 16], vec![1, 5], vec![2, 3, 8]] {
        let width = shape[shape.len() - 1];
        let (w, b) = (tensor(1, &[width]), tensor(2, &[width]));
        let x = [tensor(3, &shape)];
        check_gradient(&|i| rms_norm(&i[0], &w, 1e-5), &x, 2e-2);
        check_gradient(&|i| layer_norm(&i[0], &w, &b, 1e-5), &x, 2e-2);
        check_equal(&|i| rms_norm(&i[0], &w, 1e-5), &|i| plain::rms_norm(&i[0], &w, 1e-5), &x, 1e-5);
        check_equal(&|i| layer_norm(&i[0], &w, &b, 1e-5), &|i| plain::layer_norm(&i[0], &w, &b, 1e-5), &x, 1e-5);
    }
}

#[test]
fn a_norm_of_zeros_is_finite() {
    let x = [Tensor::zeros((2, 8), DType::F32, &Device::Cpu).unwrap()];
    let w = tensor(1, &[8]);
    let (out, grads) = gradients(&|i| rms_norm(&i[0], &w, 1e-5), &x);
    assert!(out.iter().chain(&grads[0]).all(|v| v.is_finite()));
}

#[test]
fn rope_turns_the_rotary_part_and_passes_the_rest() {
    for style in [RopeStyle::Interleaved, RopeStyle::Halves] {
        for (dim, half) in [(8, 4), (8, 2), (2, 1), (64, 32)] {
            let inv: Vec<f32> = (0..half).map(|i| 1.0 / 10f32.powf(i as f32)).collect();
            let table = RopeTable::new(&[0, 1, 2, 0, 7], &inv, &Device::Cpu).unwrap();
            let x = [tensor(3, &[5, 3, dim])];
            check_gradient(&|i| rope(&i[0], &table, style), &x, 2e-2);
            check_equal(&|i| rope(&i[0], &table, style), &|i| plain::rope(&i[0], &table, style), &x, 1e-6);
            let out = rope(&x[0], &table, style).unwrap();
            let rest = |t: &Tensor| flat(&t.narrow(2, 2 * half, dim - 2 * half).unwrap().contiguous().unwrap());
            if 2 * half < dim {
                assert_eq!(rest(&out), rest(&x[0]));
            }
            let first = |t: &Tensor| flat(&t.narrow(0, 0, 1).unwrap());
            assert_eq!(first(&out), first(&x[0]), "position 0 turns nothing");
        }
    }
}

#[test]
fn attention_gives_gradients_and_never_crosses_a_border() {
    for (starts, h, hkv, d) in [
        (vec![0, 4, 5, 11], 4, 2, 8),
        (vec![0, 1], 3, 3, 4),
        (vec![0, 0, 70], 2, 1, 16),
        (vec![0, 150], 3, 1, 64),
        (vec![0, 20, 320], 4, 2, 8),
    ] {
        let n = *starts.last().unwrap();
        let inputs = [tensor(1, &[n, h, d]), tensor(2, &[n, hkv, d]), tensor(3, &[n, hkv, d])];
        let run = |i: &[Tensor]| attention(&i[0], &i[1], &i[2], &starts, 0.4);
        if n < 100 {
            check_gradient(&run, &inputs, 2e-2);
        }
        check_equal(&run, &|i| plain::attention(&i[0], &i[1], &i[2], &starts, 0.4, None), &inputs, 2e-5);
    }
    let inputs = [tensor(1, &[6, 2, 4]), tensor(2, &[6, 2, 4]), tensor(3, &[6, 2, 4])];
    let whole = attention(&inputs[0], &inputs[1], &inputs[2], &[0, 2, 6], 0.5).unwrap();
    let part: Vec<Tensor> = inputs.iter().map(|t| t.narrow(0, 2, 4).unwrap().contiguous().unwrap()).collect();
    let alone = attention(&part[0], &part[1], &part[2], &[0, 4], 0.5).unwrap();
    assert_eq!(flat(&whole.narrow(0, 2, 4).unwrap()), flat(&alone));
}

#[test]
fn activations_give_gradients() {
    let inputs = [tensor(1, &[5, 33]), tensor(2, &[5, 33])];
    check_gradient(&|i| swiglu(&i[0], &i[1]), &inputs, 2e-2);
    check_equal(&|i| swiglu(&i[0], &i[1]), &|i| plain::swiglu(&i[0], &i[1]), &inputs, 1e-5);
    check_gradient(&|i| gelu(&i[0]), &inputs[..1], 2e-2);
    check_equal(&|i| gelu(&i[0]), &|i| plain::gelu(&i[0]), &inputs[..1], 1e-5);
    let far = [Tensor::new(&[-200f32, -90.0, 0.0, 90.0, 200.0], &Device::Cpu).unwrap(), tensor(2, &[5])];
    let (out, grads) = gradients(&|i| swiglu(&i[0], &i[1]), &far);
    assert!(out.iter().chain(grads.iter().flatten()).all(|v| v.is_finite()));
}

#[test]
fn token_logprobs_are_those_of_the_softmax_at_a_temperature() {
    for (m, e, v) in [(1, 8, 5), (70, 16, 301), (3, 24, 1100)] {
        let head = Frozen::new(&tensor(1, &[v, e]), DType::F32).unwrap();
        let targets: Vec<u32> = (0..m).map(|i| (i * 7 % v) as u32).collect();
        let temperatures: Vec<f32> = (0..m).map(|i| 0.5 + (i % 3) as f32 * 0.5).collect();
        let x = [tensor(2, &[m, e])];
        let run = |i: &[Tensor]| token_logprobs(&i[0], &head, &targets, &temperatures);
        check_gradient(&run, &x, 2e-2);
        check_equal(&run, &|i| plain::token_logprobs(&i[0], &head, &targets, &temperatures), &x, 1e-5);
        let own = token_distributions(&x[0], &[], &head, &targets, &temperatures).unwrap();
        let (entropy, logprobs) = (flat(&own.entropy), flat(&own.logprobs));
        for (a, b) in logprobs.iter().zip(flat(&run(&x).unwrap())) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
        let plain = flat(&plain::token_entropy(&x[0], &head, &temperatures).unwrap());
        for (a, b) in entropy.iter().zip(&plain) {
            assert!((a - b).abs() < 1e-4 && *a > 0.0 && *a <= (v as f32).ln() + 1e-4, "{a} {b}");
        }
    }
}

#[test]
fn the_distance_of_two_distributions_is_that_of_both_softmaxes_and_nothing_between_equal_ones() {
    for (m, e, v) in [(1, 8, 5), (70, 16, 301), (3, 24, 1100)] {
        let head = Frozen::new(&tensor(1, &[v, e]), DType::F32).unwrap();
        let targets: Vec<u32> = (0..m).map(|i| (i * 7 % v) as u32).collect();
        let temperatures: Vec<f32> = (0..m).map(|i| 0.5 + (i % 3) as f32 * 0.5).collect();
        let (x, y) = (tensor(2, &[m, e]), tensor(3, &[m, e]));
        let own = token_distributions(&x, &[&x, &y], &head, &targets, &temperatures).unwrap();
        let [same, other] = &own.others[..] else { panic!("two were asked for") };
        let plain = flat(&plain::token_kl(&x, &y, &head, &temperatures).unwrap());
        for (a, b) in flat(&other.kl).iter().zip(&plain) {
            assert!((a - b).abs() < 1e-4 * (1.0 + b.abs()) && *a > 1e-3, "{a} {b}");
        }
        assert!(flat(&same.kl).iter().all(|kl| kl.abs() < 1e-6), "{:?}", flat(&same.kl));
        assert_eq!(flat(&same.logprobs), flat(&own.logprobs));
        let plain = flat(&plain::token_logprobs(&y, &head, &targets, &temperatures).unwrap());
        for (a, b) in flat(&other.logprobs).iter().zip(&plain) {
            assert!((a - b).abs() < 1e-4, "{a} {b}");
        }
    }
    let head = Frozen::new(&tensor(1, &[4, 6]), DType::F32).unwrap();
    let (one, two) = (tensor(2, &[1, 6]), tensor(2, &[2, 6]));
    let e = token_distributions(&one, &[&two], &head, &[1], &[1.0]).err().unwrap();
    assert!(e.to_string().contains("1 temperatures for 2 rows"), "{e}");
}

#[test]
fn embed_returns_the_stored_rows() {
    let table = Frozen::new(&tensor(1, &[9, 6]), DType::BF16).unwrap();
    let rows = embed(&[3, 0, 8, 3], &table).unwrap();
    let want = table.weight_f32().unwrap();
    for (i, row) in [3, 0, 8, 3].into_iter().enumerate() {
        assert_eq!(flat(&rows.narrow(0, i, 1).unwrap()), flat(&want.narrow(0, row, 1).unwrap()));
    }
}

#[test]
fn wrong_shapes_are_named() {
    let w = Frozen::new(&tensor(1, &[4, 6]), DType::F32).unwrap();
    let message = |r: Result<Tensor>| r.unwrap_err().to_string();
    assert!(message(linear(&tensor(2, &[3, 5]), &w, None, None)).contains("expects [N, 6]"));
    assert!(message(embed(&[4], &w)).contains("the vocabulary has 4"));
    assert!(message(token_logprobs(&tensor(2, &[1, 6]), &w, &[1], &[0.0])).contains("temperature 0"));
    assert!(
        message(attention(&tensor(1, &[2, 2, 4]), &tensor(1, &[2, 2, 4]), &tensor(1, &[2, 2, 4]), &[0, 1], 1.0))
            .contains("from 0 to 2")
    );
    assert!(message(swiglu(&tensor(1, &[2]), &tensor(1, &[3]))).contains("one shape"));
}
