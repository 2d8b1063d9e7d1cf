//! Tests of kernels.cpp on graphs of one operation. Nothing here is part of the library.
#![cfg(test)]

use std::ffi::{CStr, c_char, c_void};

use llama_cpp_sys_2 as sys;

use super::compare::{self, Input, OWN_KERNELS, half, plain, random};
use super::guard;
use super::model::backend;

fn compute(
    inputs: &[Input],
    threads: i32,
    op: impl FnOnce(*mut sys::ggml_context, &[*mut sys::ggml_tensor]) -> *mut sys::ggml_tensor,
) -> Vec<f32> {
    let computed = compare::compute(inputs, threads, op).unwrap();
    let packed = OWN_KERNELS && compare::PACKED.contains(&inputs[0].0);
    assert_eq!(computed.packed, packed, "whether the weights were packed");
    computed.values
}

#[test]
fn every_kernel_is_near_plain_sums() {
    for kernel in compare::KERNELS {
        let gap = (kernel.run)(&candle_core::Device::Cpu).unwrap();
        assert!(gap.found <= gap.allowed, "{}: {gap:?}", kernel.name);
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
fn products_are_plain_sums_and_of_each_token_alone() {
    let (width, rows) = (256, 48);
    for kind in [sys::GGML_TYPE_Q4_1, sys::GGML_TYPE_Q8_0] {
        let packed = compare::weights(kind, &random(1, rows * width), rows, width);
        let weights = (kind, vec![width as i64, rows as i64], packed);
        let product = |x: &[f32], threads| {
            let tokens = (x.len() / width) as i64;
            let inputs = [weights.clone(), (sys::GGML_TYPE_F32, vec![width as i64, tokens], plain(x))];
            // SAFETY: both are of the context.
            compute(&inputs, threads, |context, t| unsafe { sys::ggml_mul_mat(context, t[0], t[1]) })
        };
        for tokens in [1, 2, 3, 4, 5, 7, 8, 9, 19] {
            let x = random(tokens as u64, tokens * width);
            let ours = product(&x, 2);
            // Activations are rounded to 8 bits: half a step of a 127th, of 256 terms, each with a weight below 1.
            let gap = largest_gap(&ours, &compare::product_plainly(&weights, &x));
            assert!(gap > 0.0 && gap < 0.15, "{tokens} tokens: {gap}");
            assert_eq!(ours, product(&x, 1), "{tokens} tokens on one thread");
            let alone: Vec<f32> = x.chunks(width).flat_map(|x| product(x, 1)).collect();
            assert_eq!(ours, alone, "{tokens} tokens, each alone");
        }
    }
}

#[test]
fn attention_is_plain_sums_and_sees_no_cell_of_others() {
    let cells = 99;
    for (width, heads, shared, tokens) in [(64, 6, 2, 1), (64, 6, 2, 5), (64, 3, 3, 70), (128, 5, 1, 9)] {
        let kv = |seed| {
            let shape = vec![width, cells, shared];
            (sys::GGML_TYPE_F16, shape, half(&random(seed, (width * cells * shared) as usize)))
        };
        let (queries, keys, values) = (random(3, (width * tokens * heads) as usize), kv(4), kv(5));
        // A token attends to the cells of its own sequence, one of four; every tenth to all, one to none.
        let sees = |token: i64, cell: i64| token % 10 == 9 || (cell % 4 == token % 4 && token != 2);
        let inputs = |range: std::ops::Range<i64>| {
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
            [q, keys.clone(), values.clone(), mask]
        };
        let attend = |range: std::ops::Range<i64>, threads| {
            // SAFETY: all are of the context.
            compute(&inputs(range), threads, |context, t| unsafe {
                sys::ggml_flash_attn_ext(context, t[0], t[1], t[2], t[3], 0.125, 0.0, 0.0)
            })
        };
        let ours = attend(0..tokens, 2);
        let gap = largest_gap(&ours, &compare::attention_plainly(&inputs(0..tokens), 0.125));
        // ggml's own kernels sum values in f16, ours in f32.
        let allowed = if OWN_KERNELS { 1e-4 } else { 0.01 };
        assert!(gap < allowed, "{width} wide, {tokens} tokens: {gap}");
        assert_eq!(ours, attend(0..tokens, 3), "another number of threads");
        if OWN_KERNELS {
            // [width, heads, tokens]
            let alone: Vec<f32> = (0..tokens).flat_map(|t| attend(t..t + 1, 2)).collect();
            assert_eq!(ours, alone, "each token alone");
        }
    }
}
