//! Tests of products against plain sums, and of the same bits however an operand is packed.

use super::*;

fn values(n: usize, salt: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + salt * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
}

fn naive(a: &Mat, b: &dyn Fn(usize, usize) -> f32, depth: usize, n: usize) -> Vec<f32> {
    let mut row = vec![0f32; a.cols()];
    let mut c = Vec::new();
    for i in 0..a.rows() {
        a.read_row(i, &mut row);
        c.extend((0..n).map(|j| (0..depth).map(|k| row[k] * b(k, j)).sum::<f32>()));
    }
    c
}

fn close(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).enumerate().for_each(|(i, (a, b))| assert!((a - b).abs() < 2e-4, "{i}: {a}, expected {b}"));
}

#[test]
fn products_equal_plain_sums_in_both_precisions_and_directions() {
    for precision in [Precision::F32, Precision::Bf16] {
        if precision == Precision::Bf16 && !bf16::available() {
            continue;
        }
        for (m, k, n) in [(1, 1, 1), (5, 7, 3), (30, 64, 70), (15, 33, 65), (240, 18, 300), (2, 2, 33)] {
            let a = Mat::new(precision, &values(m * k, 1), k);
            let element = |mat: &Mat, r: usize, c: usize| {
                let mut row = vec![0f32; mat.cols()];
                mat.read_row(r, &mut row);
                row[c]
            };
            let (t, s) = (Mat::new(precision, &values(n * k, 2), k), Mat::new(precision, &values(n * k, 3), n));
            for run in [Run::Parallel, Run::Here] {
                let mut c = vec![9f32; m * n];
                product(a.all(), &[Right::Transposed(t.all())], Begin::Zero, &mut c, run);
                close(&c, &naive(&a, &|p, j| element(&t, j, p), k, n));
                let bias = values(n, 4);
                product(a.all(), &[Right::Straight(s.all())], Begin::Bias(&bias), &mut c, run);
                let mut want = naive(&a, &|p, j| element(&s, p, j), k, n);
                want.iter_mut().enumerate().for_each(|(i, w)| *w += bias[i % n]);
                close(&c, &want);
                product(a.all(), &[Right::Straight(s.all())], Begin::Add, &mut c, run);
                want.iter_mut().enumerate().for_each(|(i, w)| *w = 2.0 * *w - bias[i % n]);
                close(&c, &want);
            }
        }
    }
}

#[test]
fn a_frozen_matrix_gives_the_same_bits_whole_and_in_parts() {
    if !bf16::available() {
        return;
    }
    for (m, k, n) in [(1, 1, 1), (15, 33, 65), (30, 64, 70), (3, 576, 130)] {
        let loose = Mat::new(Precision::Bf16, &values(n * k, 2), k);
        let frozen = loose.clone().frozen();
        let both = |a: &Mat, right: &dyn for<'a> Fn(&'a Mat) -> Right<'a>, width: usize| {
            let [x, y] = [&loose, &frozen].map(|mat| {
                let mut c = vec![0.5f32; a.rows() * width];
                product(a.all(), &[right(mat)], Begin::Add, &mut c, Run::Here);
                c
            });
            assert_eq!(x, y, "{m} {k} {n}");
        };
        let a = Mat::new(Precision::Bf16, &values(m * k, 1), k);
        both(&a, &|mat| Right::Transposed(mat.all()), n);
        let dy = Mat::new(Precision::Bf16, &values(m * n, 3), n);
        both(&dy, &|mat| Right::Straight(mat.all()), k);
        if n > 64 {
            both(&a, &|mat| Right::Transposed(mat.part(32, n - 32, k)), n - 32);
            let part = Mat::new(Precision::Bf16, &values(m * 32, 3), 32);
            both(&part, &|mat| Right::Straight(mat.part(16, 32, k)), k);
        }
        let (mut x, mut y) = (vec![0f32; k], vec![0f32; k]);
        for row in 0..n {
            loose.read_row(row, &mut x);
            frozen.read_row(row, &mut y);
            assert_eq!(x, y);
        }
    }
}

#[test]
fn bf16_values_are_rounded_to_nearest_even_and_nan_stays() {
    if !bf16::available() {
        return;
    }
    let mat = Mat::new(Precision::Bf16, &[1.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -0.0, f32::INFINITY, f32::NAN], 6);
    let mut row = [0f32; 6];
    mat.read_row(0, &mut row);
    assert_eq!(row[..5], [1.0, 1.0, 1.015625, -0.0, f32::INFINITY]);
    assert!(row[5].is_nan());
}
