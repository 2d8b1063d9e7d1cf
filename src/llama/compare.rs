//! The kernels that serve, on graphs of one operation, against plain sums in f64. Never part of an answer.

use std::ffi::c_void;

use llama_cpp_sys_2 as sys;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::guard;
use super::model::backend;
use crate::error::{Error, Result};
use crate::processor::{Gap, KernelCheck};

/// Whether kernels.cpp has kernels for what this library was compiled for.
pub(super) const OWN_KERNELS: bool =
    cfg!(all(target_feature = "avx2", target_feature = "fma", target_feature = "f16c"));

/// What they are made of.
const VECTORS: &str = if cfg!(all(
    target_feature = "avx512f",
    target_feature = "avx512bw",
    target_feature = "avx512vl",
    target_feature = "avx512dq",
    target_feature = "avx512vnni"
)) {
    "own ones for q4_1, q8_0 and attention, by AVX512-VNNI; ggml's for the rest"
} else if cfg!(target_feature = "avxvnni") {
    "own ones for q4_1, q8_0 and attention, by AVX2 and AVX-VNNI; ggml's for the rest"
} else {
    "own ones for q4_1, q8_0 and attention, by AVX2; ggml's for the rest"
};

/// The number formats that kernels.cpp packs for itself.
pub(super) const PACKED: [sys::ggml_type; 2] = [sys::GGML_TYPE_Q4_1, sys::GGML_TYPE_Q8_0];

/// The kernels that serve, by the number formats of weights that people have.
pub static KERNELS: &[KernelCheck] = &[
    KernelCheck { name: "serving: product, q4_0", run: |_| product(sys::GGML_TYPE_Q4_0) },
    KernelCheck { name: "serving: product, q4_1", run: |_| product(sys::GGML_TYPE_Q4_1) },
    KernelCheck { name: "serving: product, q5_0", run: |_| product(sys::GGML_TYPE_Q5_0) },
    KernelCheck { name: "serving: product, q8_0", run: |_| product(sys::GGML_TYPE_Q8_0) },
    KernelCheck { name: "serving: product, q4_k", run: |_| product(sys::GGML_TYPE_Q4_K) },
    KernelCheck { name: "serving: product, q5_k", run: |_| product(sys::GGML_TYPE_Q5_K) },
    KernelCheck { name: "serving: product, q6_k", run: |_| product(sys::GGML_TYPE_Q6_K) },
    KernelCheck { name: "serving: product, f16", run: |_| product(sys::GGML_TYPE_F16) },
    KernelCheck { name: "serving: product, bf16", run: |_| product(sys::GGML_TYPE_BF16) },
    KernelCheck { name: "serving: product, f32", run: |_| product(sys::GGML_TYPE_F32) },
    KernelCheck { name: "serving: attention", run: |_| attention() },
];

/// Whose kernels serve here.
pub fn kernels() -> &'static str {
    if OWN_KERNELS { VECTORS } else { "ggml's" }
}

pub(super) fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

pub(super) fn half(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect()
}

pub(super) fn plain(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Values as weights of a number format: `rows` of `width`, which blocks of the format divide.
pub(super) fn weights(kind: sys::ggml_type, values: &[f32], rows: usize, width: usize) -> Vec<u8> {
    assert!(values.len() == rows * width && width.is_multiple_of(256), "{rows} rows of {width}");
    // SAFETY: the format is one of ggml's, and its blocks divide the width.
    let bytes = unsafe { sys::ggml_row_size(kind, width as i64) } * rows;
    let mut packed = vec![0u8; bytes];
    // SAFETY: as many bytes as rows of blocks have; no importance matrix, which none of the formats here needs.
    unsafe {
        let (to, from) = (packed.as_mut_ptr().cast(), values.as_ptr());
        sys::ggml_quantize_chunk(kind, from, to, 0, rows as i64, width as i64, std::ptr::null());
    }
    packed
}

/// A tensor to make: type, shape with the row's length first, data.
pub(super) type Input = (sys::ggml_type, Vec<i64>, Vec<u8>);

/// What a graph of one operation gave.
pub(super) struct Computed {
    pub(super) values: Vec<f32>,
    /// Whether the first input was packed for kernels of our own.
    pub(super) packed: bool,
}

/// Computes one operation of some inputs, the first of which counts as weights, by the kernels that serve.
pub(super) fn compute(
    inputs: &[Input],
    threads: i32,
    op: impl FnOnce(*mut sys::ggml_context, &[*mut sys::ggml_tensor]) -> *mut sys::ggml_tensor,
) -> Result<Computed> {
    backend();
    let owner = inputs.as_ptr().cast::<c_void>();
    // SAFETY: contexts, buffers and the backend are freed after their last use; sizes are those that ggml says; tensors
    // are set with as many bytes as they have.
    unsafe {
        let device = sys::ggml_backend_cpu_init();
        sys::ggml_backend_cpu_set_n_threads(device, threads);
        let params = || sys::ggml_init_params { mem_size: 1 << 20, mem_buffer: std::ptr::null_mut(), no_alloc: true };
        let (weights, rest) = (sys::ggml_init(params()), sys::ggml_init(params()));
        let mut tensors = Vec::new();
        for (i, (kind, shape, _)) in inputs.iter().enumerate() {
            let context = if i == 0 { weights } else { rest };
            let dim = |d: usize| shape.get(d).copied().unwrap_or(1);
            tensors.push(sys::ggml_new_tensor_4d(context, *kind, dim(0), dim(1), dim(2), dim(3)));
        }
        let out = op(rest, &tensors);
        let graph = sys::ggml_new_graph(rest);
        sys::ggml_build_forward_expand(graph, out);
        let buffers = [weights, rest].map(|context| sys::ggml_backend_alloc_ctx_tensors(context, device));
        sys::ggml_backend_buffer_set_usage(buffers[0], sys::GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        for (tensor, (_, _, data)) in tensors.iter().zip(inputs) {
            sys::ggml_backend_tensor_set(*tensor, data.as_ptr().cast(), 0, data.len());
        }
        guard::apa_kernels_owner(owner);
        let status = sys::ggml_backend_graph_compute(device, graph);
        guard::apa_kernels_owner(std::ptr::null());
        let packed = !(*tensors[0]).extra.is_null();
        let count: i64 = (*out).ne.iter().product();
        let mut values = vec![0f32; count as usize];
        sys::ggml_backend_tensor_get(out, values.as_mut_ptr().cast(), 0, values.len() * 4);
        guard::apa_kernels_forget(owner);
        buffers.iter().for_each(|b| sys::ggml_backend_buffer_free(*b));
        sys::ggml_free(weights);
        sys::ggml_free(rest);
        sys::ggml_backend_free(device);
        if status == sys::GGML_STATUS_SUCCESS {
            Ok(Computed { values, packed })
        } else {
            Err(Error::model(format!("ggml computed nothing: status {status}")))
        }
    }
}

/// The largest difference of two results, relative to the largest value of the second.
fn apart(a: &[f32], b: &[f32]) -> f32 {
    let size = b.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
    let gap = |(x, y): (&f32, &f32)| if (x - y).is_finite() { (x - y).abs() } else { f32::INFINITY };
    a.iter().zip(b).map(gap).fold(0.0, f32::max) / size
}

/// `[tokens][rows]` products of weights with `x`, `[tokens][width]`, term by term.
pub(super) fn product_plainly(weights: &Input, x: &[f32]) -> Vec<f32> {
    let (width, rows) = (weights.1[0] as usize, weights.1[1] as usize);
    let values = floats(weights.0, &weights.2, width * rows);
    let dot = |w: &[f32], x: &[f32]| w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>() as f32;
    x.chunks(width).flat_map(|x| values.chunks(width).map(move |w| dot(w, x))).collect()
}

/// The values that blocks of a number format stand for.
fn floats(kind: sys::ggml_type, bytes: &[u8], count: usize) -> Vec<f32> {
    let mut values = vec![0f32; count];
    // SAFETY: the table has a row for every format, and as many blocks are read as there are.
    match unsafe { (*sys::ggml_get_type_traits(kind)).to_float } {
        Some(decode) => unsafe { decode(bytes.as_ptr().cast(), values.as_mut_ptr(), count as i64) },
        // f32 itself has none.
        None => values.iter_mut().zip(bytes.as_chunks().0).for_each(|(v, b)| *v = f32::from_le_bytes(*b)),
    }
    values
}

/// `[tokens][heads][width]` of queries `[heads][tokens][width]`, keys and values `[shared][cells][width]`, and a mask
/// `[tokens][cells]` of zeros and minus infinities. A token that sees nothing gets zeros.
pub(super) fn attention_plainly(inputs: &[Input; 4], scale: f64) -> Vec<f32> {
    let [(_, shape, q), (_, of_keys, k), (_, _, v), (_, _, mask)] = inputs;
    let (width, tokens, heads) = (shape[0] as usize, shape[1] as usize, shape[2] as usize);
    let (cells, shared) = (of_keys[1] as usize, of_keys[2] as usize);
    let q = floats(sys::GGML_TYPE_F32, q, width * tokens * heads);
    let [k, v] = [k, v].map(|of| floats(sys::GGML_TYPE_F16, of, width * cells * shared));
    let mask = floats(sys::GGML_TYPE_F16, mask, cells * tokens);
    let mut out = Vec::with_capacity(q.len());
    for t in 0..tokens {
        for h in 0..heads {
            let query = &q[(h * tokens + t) * width..][..width];
            let of = |cell: usize| (h / (heads / shared) * cells + cell) * width;
            let open: Vec<usize> = (0..cells).filter(|c| mask[t * cells + c] == 0.0).collect();
            let score = |&cell: &usize| {
                let key = &k[of(cell)..][..width];
                scale * query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>()
            };
            let weights: Vec<f64> = open.iter().map(score).map(f64::exp).collect();
            let all: f64 = weights.iter().sum();
            out.extend((0..width).map(|i| {
                let sum: f64 = open.iter().zip(&weights).map(|(c, w)| w * f64::from(v[of(*c) + i])).sum();
                if open.is_empty() { 0.0 } else { (sum / all) as f32 }
            }));
        }
    }
    out
}

fn product(kind: sys::ggml_type) -> Result<Gap> {
    let (width, rows) = (512, 96);
    let input = (kind, vec![width as i64, rows as i64], weights(kind, &random(1, rows * width), rows, width));
    let mut found = 0f32;
    for tokens in [1usize, 4, 33] {
        let x = random(2, tokens * width);
        let inputs = [input.clone(), (sys::GGML_TYPE_F32, vec![width as i64, tokens as i64], plain(&x))];
        // SAFETY: both are of the context.
        let computed = compute(&inputs, 2, |context, t| unsafe { sys::ggml_mul_mat(context, t[0], t[1]) })?;
        if computed.packed != (OWN_KERNELS && PACKED.contains(&kind)) {
            return Err(Error::model("ggml gave the product to other kernels than are meant for it"));
        }
        found = found.max(apart(&computed.values, &product_plainly(&input, &x)));
    }
    // Activations are rounded to eight bits, with the weights or in blocks of their own.
    Ok(Gap { found, allowed: 2e-2 })
}

fn attention() -> Result<Gap> {
    let (width, heads, shared, tokens, cells) = (64i64, 6, 2, 9, 99);
    let count = |of: i64| (width * of) as usize;
    let kv = |seed| (sys::GGML_TYPE_F16, vec![width, cells, shared], half(&random(seed, count(cells * shared))));
    let sees = |t: i64, c: i64| if c % 4 == t % 4 { 0.0 } else { f32::NEG_INFINITY };
    let mask: Vec<f32> = (0..tokens).flat_map(|t| (0..cells).map(move |c| sees(t, c))).collect();
    let q = (sys::GGML_TYPE_F32, vec![width, tokens, heads], plain(&random(3, count(tokens * heads))));
    let inputs = [q, kv(4), kv(5), (sys::GGML_TYPE_F16, vec![cells, tokens], half(&mask))];
    // SAFETY: all are of the context.
    let computed = compute(&inputs, 2, |context, t| unsafe {
        sys::ggml_flash_attn_ext(context, t[0], t[1], t[2], t[3], 0.125, 0.0, 0.0)
    })?;
    // ggml sums values in f16.
    Ok(Gap { found: apart(&computed.values, &attention_plainly(&inputs, 0.125)), allowed: 2e-2 })
}
