//! Tensor types and table entries of a GGUF file: names, shapes, sizes in bytes. Reads and decodes no data.

use std::ops::Range;

use candle_core::quantized::GgmlDType;

/// Number format of a tensor's data, by ggml's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorType(pub(super) u32);

/// Each format's number in ggml, its name, values per block, bytes per block (ggml.h, ggml-common.h).
const TYPES: &[(u32, &str, u64, u64)] = &[
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
    (42, "Q2_0", 64, 18),
];

impl TensorType {
    /// The type with ggml's number `id`, if it is known.
    pub(super) fn from_id(id: u32) -> Option<Self> {
        TYPES.iter().any(|t| t.0 == id).then_some(Self(id))
    }

    fn row(self) -> (u32, &'static str, u64, u64) {
        // Every constructor takes its number from the table, so the fallback is never used.
        *TYPES.iter().find(|t| t.0 == self.0).unwrap_or(&TYPES[0])
    }

    /// The format's name in ggml, such as `Q4_1`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Number of values in a block.
    pub fn block_values(self) -> u64 {
        self.row().2
    }

    /// Bytes that `rows` rows of `width` values take; `None` where blocks don't divide the width or numbers overflow.
    pub fn bytes(self, rows: u64, width: u64) -> Option<u64> {
        let (_, _, values, bytes) = self.row();
        if !width.is_multiple_of(values) {
            return None;
        }
        (width / values).checked_mul(bytes)?.checked_mul(rows)
    }

    /// candle's decoder for the format, if there is one.
    pub fn decoder(self) -> Option<GgmlDType> {
        Some(match self.name() {
            "F32" => GgmlDType::F32,
            "F16" => GgmlDType::F16,
            "BF16" => GgmlDType::BF16,
            "Q4_0" => GgmlDType::Q4_0,
            "Q4_1" => GgmlDType::Q4_1,
            "Q5_0" => GgmlDType::Q5_0,
            "Q5_1" => GgmlDType::Q5_1,
            "Q8_0" => GgmlDType::Q8_0,
            "Q2_K" => GgmlDType::Q2K,
            "Q3_K" => GgmlDType::Q3K,
            "Q4_K" => GgmlDType::Q4K,
            "Q5_K" => GgmlDType::Q5K,
            "Q6_K" => GgmlDType::Q6K,
            _ => return None,
        })
    }
}

impl From<GgmlDType> for TensorType {
    fn from(dtype: GgmlDType) -> Self {
        Self(match dtype {
            GgmlDType::F32 => 0,
            GgmlDType::F16 => 1,
            GgmlDType::Q4_0 => 2,
            GgmlDType::Q4_1 => 3,
            GgmlDType::Q5_0 => 6,
            GgmlDType::Q5_1 => 7,
            GgmlDType::Q8_0 => 8,
            GgmlDType::Q8_1 => 9,
            GgmlDType::Q2K => 10,
            GgmlDType::Q3K => 11,
            GgmlDType::Q4K => 12,
            GgmlDType::Q5K => 13,
            GgmlDType::Q6K => 14,
            GgmlDType::Q8K => 15,
            GgmlDType::BF16 => 30,
        })
    }
}

/// One entry of the tensor table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) kind: TensorType,
    /// Which of the model's files holds it.
    pub(super) file: usize,
    /// Where its data begins in that file. [bytes]
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

impl TensorInfo {
    /// Its name, as in `blk.0.attn_q.weight`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Rows first, as candle has it: a linear layer is [out, in]. (The file holds the reverse.)
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number format.
    pub fn kind(&self) -> TensorType {
        self.kind
    }

    /// Size of its data in the file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Which of the model's files holds its data, and where. [bytes]
    pub(crate) fn place(&self) -> (usize, Range<u64>) {
        (self.file, self.offset..self.offset + self.bytes)
    }
}
