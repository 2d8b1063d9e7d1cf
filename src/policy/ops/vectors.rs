//! Loops over slices that the compiler turns into vector instructions, on every processor: sixteen values at a time, in
//! functions of their own, since a check or a branch inside such a loop makes it four to eight times slower. Knows no
//! tensor.

use std::array::from_fn;

/// Values that are computed together: two vectors of AVX2, one of AVX-512.
const TOGETHER: usize = 16;

/// `to[i] = f(to[i], [of[0][i], of[1][i], …])` for each `i`.
///
/// Panics if a slice is shorter than `to`.
#[inline(always)]
pub fn map<const N: usize>(to: &mut [f32], of: [&[f32]; N], f: impl Fn(f32, [f32; N]) -> f32) {
    map_all([to], of, |[old], of| [f(old, of)]);
}

/// The same with several results.
///
/// Panics if a slice is shorter than the first result.
#[inline(never)]
pub fn map_all<const M: usize, const N: usize>(
    to: [&mut [f32]; M],
    of: [&[f32]; N],
    f: impl Fn([f32; M], [f32; N]) -> [f32; M],
) {
    let length = to.first().map_or(0, |first| first.len());
    let of = of.map(|values| values[..length].as_chunks::<TOGETHER>());
    let mut to = to.map(|values| values[..length].as_chunks_mut::<TOGETHER>());
    for k in 0..length / TOGETHER {
        let of: [&[f32; TOGETHER]; N] = from_fn(|n| &of[n].0[k]);
        let mut new: [[f32; TOGETHER]; M] = from_fn(|m| to[m].0[k]);
        for i in 0..TOGETHER {
            let values = f(from_fn(|m| new[m][i]), from_fn(|n| of[n][i]));
            new.iter_mut().zip(values).for_each(|(to, value)| to[i] = value);
        }
        to.iter_mut().zip(new).for_each(|(to, new)| to.0[k] = new);
    }
    for i in 0..length % TOGETHER {
        let values = f(from_fn(|m| to[m].1[i]), from_fn(|n| of[n].1[i]));
        to.iter_mut().zip(values).for_each(|(to, value)| to.1[i] = value);
    }
}

/// `Σ f([of[0][i], of[1][i], …])`, summed in sixteen interleaved parts, so in a fixed order.
///
/// Panics if a slice is shorter than the first.
#[inline(never)]
pub fn sum<const N: usize>(of: [&[f32]; N], f: impl Fn([f32; N]) -> f32) -> f32 {
    let length = of.first().map_or(0, |first| first.len());
    let of = of.map(|values| values[..length].as_chunks::<TOGETHER>());
    let mut parts = [0f32; TOGETHER];
    for k in 0..length / TOGETHER {
        let of: [&[f32; TOGETHER]; N] = from_fn(|n| &of[n].0[k]);
        for (i, part) in parts.iter_mut().enumerate() {
            *part += f(from_fn(|n| of[n][i]));
        }
    }
    let rest: f32 = (0..length % TOGETHER).map(|i| f(from_fn(|n| of[n].1[i]))).sum();
    parts.iter().sum::<f32>() + rest
}

/// The largest value, or −∞ of none. NaN is passed over.
#[inline(never)]
pub fn max(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = values.as_chunks::<TOGETHER>();
    let mut parts = [f32::NEG_INFINITY; TOGETHER];
    for chunk in chunks {
        parts.iter_mut().zip(chunk).for_each(|(part, value)| *part = larger(*part, *value));
    }
    parts.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger)
}
