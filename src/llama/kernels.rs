//! Tests of kernels.cpp against ggml's own kernels, on graphs of one operation. Nothing here is part of the library.
#![cfg(test)]

use std::ffi::{CStr, c_char, c_void};

use llama_cpp_sys_2 as sys;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::guard;
use super::model::backend;

const KERNELS: bool = cfg!(all(
    target_feature = "avx512f",
    target_feature = "avx512bw",
    target_feature = "avx512vl",
    target_feature = "avx512dq",
    target_feature = "avx512vnni"
));

fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

fn half(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect()
}

fn plain(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// A tensor to make: type, shape with the row's length first, data.
type Input = (sys::ggml_type, Vec<i64>, Vec<u8>);

/// Computes one operation on some inputs, the first of which counts as weights, with ggml's reference kernels or with
/// ours.
fn compute(
    inputs: &[Input],
    threads: i32,
    reference: bool,
    op: impl FnOnce(*mut sys::ggml_context, &[*mut sys::ggml_tensor]) -> *mut sys::ggml_tensor,
) -> Vec<f32> {
    backend();
    let owner = inputs.as_ptr().cast::<c_void>();
    // SAFETY: contexts, buffers and the backend are freed after their last use; sizes are those that ggml says; tensors
    // are set with as many bytes as they have.
    unsafe {
        let device = sys::ggml_backend_cpu_init();
        sys::ggml_backend_cpu_set_n_threads(device, threads);
        sys::ggml_backend_cpu_set_use_ref(device, reference);
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
        assert_eq!(sys::ggml_backend_graph_compute(device, graph), sys::GGML_STATUS_SUCCESS);
        guard::apa_kernels_owner(std::ptr::null());
        if (*out).op == sys::GGML_OP_MUL_MAT {
            assert_eq!(!(*tensors[0]).extra.is_null(), KERNELS, "whether the weights were packed");
        }
        let count: i64 = (*out).ne.iter().product();
        let mut values = vec![0f32; count as usize];
        sys::ggml_backend_tensor_get(out, values.as_mut_ptr().cast(), 0, values.len() * 4);
        guard::apa_kernels_forget(owner);
        buffers.iter().for_each(|b| sys::ggml_backend_buffer_free(*b));
        sys::ggml_free(weights);
        sys::ggml_free(rest);
        sys::ggml_backend_free(device);
        values
    }
}

fn largest_gap(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// A list of buffer types in ggml's layout, each with only its name.
#[repr(C)]
struct BufferType {
    name: unsafe extern "C" fn(*mut BufferType) -> *const c_char,
    others: [*mut c_void; 9],
}

#[test]
fn amx_kernels_of_ggml_serve_on_no_machine() {
    unsafe extern "C" fn amx(_: *mut BufferType) -> *const c_char {
        c"AMX".as_ptr()
    }
    unsafe extern "C" fn repack(_: *mut BufferType) -> *const c_char {
        c"CPU_REPACK".as_ptr()
    }
    let mut types = [repack, amx, repack].map(|name| BufferType { name, others: [std::ptr::null_mut(); 9] });
    let planted: Vec<*mut c_void> = types.iter_mut().map(|t| std::ptr::from_mut(t).cast()).collect();
    let mut list = planted.clone();
    // SAFETY: as many entries as said; each begins with the function that ggml asks for its name.
    let left = unsafe { guard::apa_kernels_leave_out(list.as_mut_ptr(), list.len()) };
    assert_eq!(list[..left], [planted[0], planted[2]]);

    // Also in the list that models of this process use, on a machine with AMX.
    backend();
    // SAFETY: the registry lives as long as the process, its list of buffer types ends with a null.
    unsafe {
        let cpu = sys::ggml_backend_cpu_reg();
        let list = sys::ggml_backend_reg_get_proc_address(cpu, c"ggml_backend_dev_get_extra_bufts".as_ptr());
        type List = unsafe extern "C" fn(sys::ggml_backend_dev_t) -> *mut sys::ggml_backend_buffer_type_t;
        let list: List = std::mem::transmute(list);
        let mut entry = list(sys::ggml_backend_reg_dev_get(cpu, 0));
        while !(*entry).is_null() {
            assert_ne!(CStr::from_ptr(sys::ggml_backend_buft_name(*entry)), c"AMX");
            entry = entry.add(1);
        }
    }
}

#[test]
fn products_are_those_of_ggml_and_of_each_token_alone() {
    let (width, rows) = (96, 48);
    for (kind, bytes) in [(sys::GGML_TYPE_Q4_1, 20), (sys::GGML_TYPE_Q8_0, 34)] {
        let mut packed = vec![0u8; rows * width / 32 * bytes];
        let exact = random(1, rows * width);
        // SAFETY: as many bytes as rows of blocks have; no importance matrix.
        unsafe {
            let (to, from) = (packed.as_mut_ptr().cast(), exact.as_ptr());
            sys::ggml_quantize_chunk(kind, from, to, 0, rows as i64, width as i64, std::ptr::null());
        }
        let weights = (kind, vec![width as i64, rows as i64], packed);
        let product = |x: &[f32], threads, reference| {
            let tokens = (x.len() / width) as i64;
            let inputs = [weights.clone(), (sys::GGML_TYPE_F32, vec![width as i64, tokens], plain(x))];
            // SAFETY: both are of the context.
            compute(&inputs, threads, reference, |context, t| unsafe { sys::ggml_mul_mat(context, t[0], t[1]) })
        };
        for tokens in [1, 2, 3, 4, 5, 7, 8, 9, 19] {
            let x = random(tokens as u64, tokens * width);
            let ours = product(&x, 2, false);
            // Both round activations to 8 bits; ggml also rounds their scales to f16.
            let gap = largest_gap(&ours, &product(&x, 2, true));
            assert!(gap < 0.02, "{tokens} tokens: {gap}");
            assert_eq!(ours, product(&x, 1, false), "{tokens} tokens on one thread");
            let alone: Vec<f32> = x.chunks(width).flat_map(|x| product(x, 1, false)).collect();
            assert_eq!(ours, alone, "{tokens} tokens, each alone");
        }
    }
}

#[test]
fn attention_is_that_of_ggml_and_sees_no_cell_of_others() {
    let cells = 99;
    for (width, heads, shared, tokens) in [(64, 6, 2, 1), (64, 6, 2, 5), (64, 3, 3, 70), (128, 5, 1, 9)] {
        let kv = |seed| {
            let shape = vec![width, cells, shared];
            (sys::GGML_TYPE_F16, shape, half(&random(seed, (width * cells * shared) as usize)))
        };
        let (queries, keys, values) = (random(3, (width * tokens * heads) as usize), kv(4), kv(5));
        // A token attends to the cells of its own sequence, one of four; every tenth to all, one to none.
        let sees = |token: i64, cell: i64| token % 10 == 9 || (cell % 4 == token % 4 && token != 2);
        let attend = |range: std::ops::Range<i64>, threads, reference| {
            let count = range.end - range.start;
            let mask: Vec<f32> = range
                .clone()
                .flat_map(|t| (0..cells).map(move |c| if sees(t, c) { 0.0 } else { f32::NEG_INFINITY }))
                .collect();
            // [width, tokens, heads]
            let q: Vec<f32> = (0..heads)
                .flat_map(|h| range.clone().map(move |t| ((h * tokens + t) * width) as usize))
                .flat_map(|at| queries[at..at + width as usize].to_vec())
                .collect();
            let q = (sys::GGML_TYPE_F32, vec![width, count, heads], plain(&q));
            let mask = (sys::GGML_TYPE_F16, vec![cells, count], half(&mask));
            // SAFETY: all are of the context.
            compute(&[q, keys.clone(), values.clone(), mask], threads, reference, |context, t| unsafe {
                sys::ggml_flash_attn_ext(context, t[0], t[1], t[2], t[3], 0.125, 0.0, 0.0)
            })
        };
        let ours = attend(0..tokens, 2, false);
        let gap = largest_gap(&ours, &attend(0..tokens, 1, true));
        // ggml sums values in f16.
        assert!(gap < 0.01, "{width} wide, {tokens} tokens: {gap}");
        assert_eq!(ours, attend(0..tokens, 3, false), "another number of threads");
        if KERNELS {
            // [width, heads, tokens]
            let alone: Vec<f32> = (0..tokens).flat_map(|t| attend(t..t + 1, 2, false)).collect();
            assert_eq!(ours, alone, "each token alone");
        }
    }
}
