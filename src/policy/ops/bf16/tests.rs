//! Tests of the two kernels against each other.

use super::*;

fn values(len: usize, salt: usize) -> Vec<u16> {
    let value = |i: usize| ((i * 7919 + salt * 104_729) % 2003) as f32 / 1001.0 - 1.0;
    let mut rounded = vec![0; len];
    round(&(0..len).map(value).collect::<Vec<f32>>(), 1.0, &mut rounded);
    rounded
}

#[test]
fn tiles_give_the_sums_of_vectors_at_every_edge_and_with_an_update() {
    if !available() {
        return;
    }
    for (m, k, rank, n) in [(1, 2, 0, 1), (15, 34, 0, 16), (16, 32, 2, 17), (33, 70, 16, 65), (240, 576, 8, 33)] {
        let (a, w, b) = (values(m * (k + rank), 1), values(n * k, 2), values(rank * (n + n % 2), 3));
        let left = Rows { data: &a, rows: m, cols: k + rank, stride: k + rank };
        let rows = Rows { data: &w, rows: n, cols: k, stride: k };
        let panels = Panels::new(rows);
        let update = Rows { data: &b, rows: rank, cols: n, stride: n + n % 2 };
        let update = Packed { operand: Operand::Loose(update), transposed: false };
        for weight in [Operand::Loose(rows), Operand::Ready { panels: &panels, first: 0, rows: n }] {
            let rights = [Packed { operand: weight, transposed: true }, update];
            let rights = &rights[..1 + usize::from(rank > 0)];
            let bias = vec![0.25; n];
            for begin in [Begin::Zero, Begin::Bias(&bias), Begin::Add] {
                let [vectors, tiles, parallel] =
                    [(Kernel::Vectors, Run::Here), (Kernel::Emulated, Run::Here), (Kernel::Emulated, Run::Parallel)]
                        .map(|(kernel, run)| {
                            let mut c = vec![0.5; m * n];
                            product_by(kernel, left, rights, begin, &mut c, n, run);
                            c
                        });
                assert_eq!(tiles, parallel);
                for (v, t) in vectors.iter().zip(&tiles) {
                    assert!((v - t).abs() < 1e-4 * k as f32, "{m} {k} {rank} {n}: {v}, {t}");
                }
            }
        }
    }
}

#[test]
fn what_serves_is_what_agrees() {
    let tiles = available() && amx::permitted();
    assert_eq!(kernel(), if tiles { Kernel::Tiles } else { Kernel::Vectors });
}
