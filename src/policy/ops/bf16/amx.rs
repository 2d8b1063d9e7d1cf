//! The bf16 micro-kernel on AMX tiles: 32 × 32 results a call, from the panels that the AVX-512 kernel reads. Never
//! packs an operand or rounds a sum.
//!
//! Rows of pairs are what tiles want of a right operand, so a panel is loaded as it is. What is left over at an edge
//! goes through buffers with zeros in the rest. Source: Intel's Software Developer's Manual, TILELOADD, TDPBF16PS.

use std::arch::asm;

use super::PANEL;
use crate::processor::Processor;

/// Rows of the left operand per call: two tiles.
pub const ROWS: usize = 2 * TILE;
/// Rows of a tile, and pairs of bf16 values or f32 sums of its row: 64 bytes.
const TILE: usize = 16;

/// Asks the system for this process's right to use tiles; `false` where processor or system have none.
pub fn permitted() -> bool {
    let features = Processor::detect().features;
    ["amx-tile", "amx-bf16"].iter().all(|name| features.contains(name)) && permit()
}

#[cfg(target_os = "linux")]
fn permit() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: two numbers; it changes nothing but what this process may use.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permit() -> bool {
    false
}

/// Eight tiles, each of 16 rows of 64 bytes.
pub trait Tiles {
    /// Clears a tile.
    fn zero<const T: usize>(&mut self);

    /// Fills a tile with rows that are `stride` bytes apart.
    ///
    /// # Safety
    /// All 16 rows can be read.
    unsafe fn load<const T: usize>(&mut self, from: *const u32, stride: usize);

    /// Adds to the sums in `C` the products of pairs of bf16: rows of `A`, columns of `B`.
    fn multiply<const C: usize, const A: usize, const B: usize>(&mut self);

    /// Writes a tile as rows that are `stride` bytes apart.
    ///
    /// # Safety
    /// All 16 rows can be written.
    unsafe fn store<const T: usize>(&mut self, to: *mut f32, stride: usize);
}

/// The processor's tiles, configured for this thread while it lives.
pub struct Hardware(());

/// What LDTILECFG reads: palette 1, all tiles whole.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static WHOLE: Configuration = Configuration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

impl Hardware {
    /// # Safety
    /// [`permitted`] said yes.
    pub unsafe fn new() -> Self {
        // SAFETY: a static of 64 bytes, as the manual wants them.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const WHOLE, options(readonly, nostack, preserves_flags)) };
        Self(())
    }
}

impl Drop for Hardware {
    fn drop(&mut self) {
        // SAFETY: it exists, so tiles do. What was in them is not needed.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }
}

impl Tiles for Hardware {
    #[inline(always)]
    fn zero<const T: usize>(&mut self) {
        // SAFETY: it exists, so tiles are configured; the compiler uses none.
        unsafe { asm!("tilezero tmm{t}", t = const T, options(nomem, nostack, preserves_flags)) };
    }

    #[inline(always)]
    unsafe fn load<const T: usize>(&mut self, from: *const u32, stride: usize) {
        // SAFETY: as above; the rows can be read.
        unsafe {
            asm!("tileloadd tmm{t}, [{from} + {stride}]", t = const T, from = in(reg) from, stride = in(reg) stride,
                options(readonly, nostack, preserves_flags));
        }
    }

    #[inline(always)]
    fn multiply<const C: usize, const A: usize, const B: usize>(&mut self) {
        // SAFETY: as above.
        unsafe {
            asm!("tdpbf16ps tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B,
                options(nomem, nostack, preserves_flags));
        }
    }

    #[inline(always)]
    unsafe fn store<const T: usize>(&mut self, to: *mut f32, stride: usize) {
        // SAFETY: as above; the rows can be written.
        unsafe {
            asm!("tilestored [{to} + {stride}], tmm{t}", t = const T, to = in(reg) to, stride = in(reg) stride,
                options(nostack, preserves_flags));
        }
    }
}

/// What calls use again: results, and operands at edges.
#[repr(align(64))]
pub struct Scratch {
    /// The results of a call.
    pub sums: [[f32; PANEL]; ROWS],
    left: [[u32; TILE]; ROWS],
    right: [[u32; PANEL]; TILE],
}

impl Scratch {
    pub const NEW: Self = Self { sums: [[0.0; PANEL]; ROWS], left: [[0; TILE]; ROWS], right: [[0; PANEL]; TILE] };
}

/// Computes `rows × 32` results (16 columns if not `wide`) over the whole contraction into `scratch.sums`; rows beyond
/// hold anything. `left` has `rows` rows, `distance` pairs apart, each with as many pairs as the parts together; a part
/// is `[pairs][32]` pairs.
///
/// # Safety
/// `left` can be read as told, and 1 ≤ `rows` ≤ 32.
#[inline(always)]
pub unsafe fn block<T: Tiles>(
    tiles: &mut T,
    mut left: *const u32,
    distance: usize,
    rows: usize,
    parts: &[&[u32]],
    wide: bool,
    scratch: &mut Scratch,
) {
    let tall = rows > TILE;
    tiles.zero::<0>();
    tiles.zero::<1>();
    tiles.zero::<2>();
    tiles.zero::<3>();
    for part in parts {
        let pairs = part.len() / PANEL;
        for p in (0..pairs).step_by(TILE) {
            let count = TILE.min(pairs - p);
            // SAFETY: whole tiles lie within the operands; others are read up to their end, and loaded from scratch.
            unsafe {
                let (mut a, mut between) = (left.add(p), distance);
                if rows < ROWS || count < TILE {
                    for (r, to) in scratch.left.iter_mut().enumerate().take(rows) {
                        let from = std::slice::from_raw_parts(a.add(r * distance), count);
                        to[..count].copy_from_slice(from);
                        to[count..].fill(0);
                    }
                    (a, between) = (scratch.left.as_ptr().cast(), TILE);
                }
                let mut b = part.as_ptr().add(p * PANEL);
                if count < TILE {
                    let right = scratch.right.as_flattened_mut();
                    right[..count * PANEL].copy_from_slice(&part[p * PANEL..]);
                    right[count * PANEL..].fill(0);
                    b = right.as_ptr();
                }
                tiles.load::<4>(a, 4 * between);
                tiles.load::<6>(b, 4 * PANEL);
                tiles.multiply::<0, 4, 6>();
                if wide {
                    tiles.load::<7>(b.add(TILE), 4 * PANEL);
                    tiles.multiply::<1, 4, 7>();
                }
                if tall {
                    tiles.load::<5>(a.add(TILE * between), 4 * between);
                    tiles.multiply::<2, 5, 6>();
                    if wide {
                        tiles.multiply::<3, 5, 7>();
                    }
                }
            }
        }
        left = left.wrapping_add(pairs);
    }
    let sums: *mut f32 = scratch.sums.as_mut_ptr().cast();
    // SAFETY: four quarters of the sums.
    unsafe {
        tiles.store::<0>(sums, 4 * PANEL);
        tiles.store::<1>(sums.add(TILE), 4 * PANEL);
        tiles.store::<2>(sums.add(TILE * PANEL), 4 * PANEL);
        tiles.store::<3>(sums.add(TILE * PANEL + TILE), 4 * PANEL);
    }
}

/// Tiles of no processor, by the manual's words: for tests where there are none.
#[cfg(test)]
#[derive(Default)]
pub struct Emulated([[[u32; TILE]; TILE]; 8]);

#[cfg(test)]
impl Tiles for Emulated {
    fn zero<const T: usize>(&mut self) {
        self.0[T] = Default::default();
    }

    unsafe fn load<const T: usize>(&mut self, from: *const u32, stride: usize) {
        for (r, row) in self.0[T].iter_mut().enumerate() {
            // SAFETY: the caller's.
            *row = unsafe { from.byte_add(r * stride).cast::<[u32; TILE]>().read_unaligned() };
        }
    }

    fn multiply<const C: usize, const A: usize, const B: usize>(&mut self) {
        // Denormals count as zero. The two halves of pairs are summed apart, then to what is there.
        let value = |bits: u32| if bits & 0x7f80_0000 == 0 { 0.0 } else { f32::from_bits(bits) };
        for m in 0..TILE {
            for n in 0..TILE {
                let (mut low, mut high) = (0f32, 0f32);
                for k in 0..TILE {
                    let (a, b) = (self.0[A][m][k], self.0[B][k][n]);
                    low = value(a << 16).mul_add(value(b << 16), low);
                    high = value(a & 0xffff_0000).mul_add(value(b & 0xffff_0000), high);
                }
                self.0[C][m][n] = (f32::from_bits(self.0[C][m][n]) + (low + high)).to_bits();
            }
        }
    }

    unsafe fn store<const T: usize>(&mut self, to: *mut f32, stride: usize) {
        for (r, row) in self.0[T].iter().enumerate() {
            // SAFETY: the caller's.
            unsafe { to.byte_add(r * stride).cast::<[u32; TILE]>().write_unaligned(*row) };
        }
    }
}
