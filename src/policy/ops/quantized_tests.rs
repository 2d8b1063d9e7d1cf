//! Tests of the formats of GGUF files: decoding against ggml's own, products against those of packed weights and
//! against sums in f64.

use std::sync::Arc;

use llama_cpp_sys_2 as sys;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use super::super::accumulate::{Begin, Run};
use super::super::bf16;
use super::super::matrix::{Mat, Precision, Right, product};
use super::*;

/// ggml's numbers of the formats.
const KINDS: [(Format, u32); 15] = [
    (Format::F32, 0),
    (Format::F16, 1),
    (Format::Bf16, 30),
    (Format::Q4_0, 2),
    (Format::Q4_1, 3),
    (Format::Q5_0, 6),
    (Format::Q5_1, 7),
    (Format::Q8_0, 8),
    (Format::Q2K, 10),
    (Format::Q3K, 11),
    (Format::Q4K, 12),
    (Format::Q5K, 13),
    (Format::Q6K, 14),
    (Format::Iq4Nl, 20),
    (Format::Iq4Xs, 23),
];

/// Seeded values as ggml stores them in a format.
fn stored(kind: u32, rows: usize, cols: usize, seed: u64) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(seed);
    let values: Vec<f32> = (0..rows * cols).map(|_| rng.random_range(-1.0f32..1.0)).collect();
    let mut bytes = vec![0u8; rows * cols * 4];
    // SAFETY: `bytes` has room for any format; the formats tested here need no matrix of importance.
    let written = unsafe {
        sys::ggml_quantize_chunk(
            kind as sys::ggml_type,
            values.as_ptr(),
            bytes.as_mut_ptr().cast(),
            0,
            rows as i64,
            cols as i64,
            std::ptr::null(),
        )
    };
    bytes.truncate(written);
    bytes
}

/// What ggml decodes from these bytes.
fn decoded_by_ggml(kind: u32, bytes: &[u8], count: usize) -> Vec<f32> {
    if kind == 0 {
        return bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    }
    let mut values = vec![0f32; count];
    // SAFETY: the type is known, and `bytes` holds `count` values of it.
    unsafe {
        let decode = (*sys::ggml_get_type_traits(kind as sys::ggml_type)).to_float.expect("ggml decodes it");
        decode(bytes.as_ptr().cast(), values.as_mut_ptr(), count as i64);
    }
    values
}

fn matrix(format: Format, bytes: Vec<u8>, rows: usize, cols: usize) -> Quantized {
    let range = 0..bytes.len();
    Quantized::new(Arc::new(bytes), range, format, rows, cols).unwrap()
}

fn values_of(m: &Quantized) -> Vec<f32> {
    let mut values = Vec::new();
    m.read(0..m.rows(), &mut values);
    values
}

#[test]
fn every_format_decodes_to_the_bits_that_ggml_decodes_to() {
    for (format, kind) in KINDS {
        let (rows, cols) = (5, 512);
        let mut all = vec![stored(kind, rows, cols, 1)];
        // Any bytes at all, as a damaged file might hold.
        let mut any = vec![0u8; all[0].len()];
        StdRng::seed_from_u64(2).fill_bytes(&mut any);
        all.push(any);
        for bytes in all {
            let expected = decoded_by_ggml(kind, &bytes, rows * cols);
            let found = values_of(&matrix(format, bytes, rows, cols));
            let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
            let wrong = found.iter().zip(&expected).position(|pair| !same(pair));
            assert_eq!(wrong.map(|i| (i, found[i], expected[i])), None, "{format:?}: place, found, expected");
        }
    }
}

#[test]
fn bytes_that_are_no_whole_matrix_are_refused() {
    let refused = |range, cols| {
        Quantized::new(Arc::new(vec![0u8; 400]), range, Format::Q4K, 2, cols).unwrap_err().message().to_owned()
    };
    assert!(refused(0..144, 256).contains("144 bytes can't be a matrix [2, 256]"));
    assert!(refused(0..288, 255).contains("[2, 255]"));
    assert!(refused(200..488, 256).contains("ends before byte 488"));
}

/// Both directions of the product with rows `first..` of a matrix.
fn products(mat: &Mat, precision: Precision, rows: usize, first: usize, run: Run) -> (Vec<f32>, Vec<f32>) {
    let (count, cols) = (mat.rows() - first, mat.cols());
    let seeded = |n: usize, seed: u64| -> Vec<f32> {
        let mut rng = StdRng::seed_from_u64(seed);
        (0..n).map(|_| rng.random_range(-1.0f32..1.0)).collect()
    };
    let (x, dy) =
        (Mat::new(precision, &seeded(rows * cols, 3), cols), Mat::new(precision, &seeded(rows * count, 4), count));
    let part = mat.part(first, count, cols);
    let (mut y, mut dx) = (vec![0f32; rows * count], vec![0.5f32; rows * cols]);
    product(x.all(), &[Right::Transposed(part)], Begin::Zero, &mut y, run);
    product(dy.all(), &[Right::Straight(part)], Begin::Add, &mut dx, run);
    (y, dx)
}

#[test]
fn a_matrix_in_any_format_multiplies_to_the_bits_of_its_packed_form() {
    if !bf16::available() {
        return;
    }
    for (format, kind) in KINDS {
        for (rows, cols) in [(70, 256), (33, 768), (32, 512)] {
            let stored = matrix(format, stored(kind, rows, cols, 5), rows, cols);
            let packed = Mat::new(Precision::Bf16, &values_of(&stored), cols).frozen();
            let quantized = Mat::quantized(Precision::Bf16, stored);
            for (tokens, first, run) in [(15, 0, Run::Here), (40, 0, Run::Parallel), (3, 32, Run::Here)] {
                if first >= rows {
                    continue;
                }
                let (y, dx) = products(&quantized, Precision::Bf16, tokens, first, run);
                let (y_packed, dx_packed) = products(&packed, Precision::Bf16, tokens, first, run);
                assert_eq!(y, y_packed, "{format:?} [{rows}, {cols}], x Wᵀ");
                assert_eq!(dx, dx_packed, "{format:?} [{rows}, {cols}], g W");
            }
            let (mut a, mut b) = (vec![0f32; cols], vec![0f32; cols]);
            quantized.read_row(rows - 1, &mut a);
            packed.read_row(rows - 1, &mut b);
            assert_eq!(a, b, "{format:?}");
        }
    }
}

#[test]
fn products_with_any_format_are_near_sums_in_f64() {
    for (format, kind) in KINDS {
        let (rows, cols, tokens) = (1100, 256, 6);
        let stored = matrix(format, stored(kind, rows, cols, 6), rows, cols);
        let values = values_of(&stored);
        for (precision, allowed) in [(Precision::F32, 1e-5), (Precision::Bf16, 1e-2)] {
            if precision == Precision::Bf16 && !bf16::available() {
                continue;
            }
            let mat = Mat::quantized(precision, stored.clone());
            for run in [Run::Here, Run::Parallel] {
                let (y, dx) = products(&mat, precision, tokens, 0, run);
                let mut rng = StdRng::seed_from_u64(3);
                let x: Vec<f64> = (0..tokens * cols).map(|_| rng.random_range(-1.0f32..1.0).into()).collect();
                let mut rng = StdRng::seed_from_u64(4);
                let dy: Vec<f64> = (0..tokens * rows).map(|_| rng.random_range(-1.0f32..1.0).into()).collect();
                let w = |r: usize, c: usize| f64::from(values[r * cols + c]);
                for t in 0..tokens {
                    for r in 0..rows {
                        let sum: f64 = (0..cols).map(|c| x[t * cols + c] * w(r, c)).sum();
                        let size: f64 = (0..cols).map(|c| (x[t * cols + c] * w(r, c)).abs()).sum();
                        let gap = (f64::from(y[t * rows + r]) - sum).abs();
                        assert!(gap <= allowed * size, "{format:?} {precision:?} x Wᵀ: {gap} of {size}");
                    }
                    for c in 0..cols {
                        let sum: f64 = (0..rows).map(|r| dy[t * rows + r] * w(r, c)).sum();
                        let size: f64 = (0..rows).map(|r| (dy[t * rows + r] * w(r, c)).abs()).sum();
                        let gap = (f64::from(dx[t * cols + c]) - 0.5 - sum).abs();
                        assert!(gap <= allowed * size + 1e-6, "{format:?} {precision:?} g W: {gap} of {size}");
                    }
                }
            }
        }
    }
}
