//! The processor: its name, what it can do, and whether that is enough for this build. Never chooses a kernel.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What this library was compiled for, by the compiler's names, with commas between.
const COMPILED_FOR: &str = env!("APA_TARGET_FEATURES");

/// The processor that this process runs on, and what the build expects of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Processor {
    /// As the system calls it; the architecture where it has no name.
    pub name: String,
    /// What it can do that some kernel uses, by the compiler's names.
    pub features: Vec<&'static str>,
    /// What this build uses without asking.
    pub compiled_for: Vec<&'static str>,
    /// What of that the processor lacks. Expected to be empty.
    pub missing: Vec<&'static str>,
}

impl Processor {
    /// Asks the processor itself, not the build.
    pub fn detect() -> Self {
        let features: Vec<&str> = FEATURES.iter().filter(|f| f.is_there()).map(|f| f.name).collect();
        let compiled_for: Vec<&str> =
            FEATURES.iter().map(|f| f.name).filter(|name| COMPILED_FOR.split(',').any(|c| c == *name)).collect();
        let missing = compiled_for.iter().copied().filter(|name| !features.contains(name)).collect();
        Self { name: name(), features, compiled_for, missing }
    }

    /// # Errors
    /// `Unsupported` if the build uses instructions that the processor lacks: it would die of the first of them.
    pub fn suffices(&self) -> Result<()> {
        if self.missing.is_empty() {
            return Ok(());
        }
        let (name, missing) = (&self.name, self.missing.join(", "));
        Err(Error::unsupported(format!(
            "this build needs a processor with {missing}, which {name} lacks; build it on this machine, or take a \
             build for many machines"
        )))
    }
}

fn name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    line.map_or(std::env::consts::ARCH, |(_, name)| name.trim()).to_owned()
}

/// A feature and where CPUID tells of it: leaf, subleaf, register (eax to edx are 0 to 3), bit.
/// Source: Intel's Software Developer's Manual, volume 2A, CPUID.
struct Feature {
    name: &'static str,
    at: (u32, u32, usize, u32),
}

const fn feature(name: &'static str, leaf: u32, subleaf: u32, register: usize, bit: u32) -> Feature {
    Feature { name, at: (leaf, subleaf, register, bit) }
}

const FEATURES: &[Feature] = &[
    feature("sse3", 1, 0, 2, 0),
    feature("ssse3", 1, 0, 2, 9),
    feature("fma", 1, 0, 2, 12),
    feature("sse4.1", 1, 0, 2, 19),
    feature("sse4.2", 1, 0, 2, 20),
    feature("movbe", 1, 0, 2, 22),
    feature("popcnt", 1, 0, 2, 23),
    feature("avx", 1, 0, 2, 28),
    feature("f16c", 1, 0, 2, 29),
    feature("bmi1", 7, 0, 1, 3),
    feature("avx2", 7, 0, 1, 5),
    feature("bmi2", 7, 0, 1, 8),
    feature("avx512f", 7, 0, 1, 16),
    feature("avx512dq", 7, 0, 1, 17),
    feature("adx", 7, 0, 1, 19),
    feature("avx512ifma", 7, 0, 1, 21),
    feature("avx512cd", 7, 0, 1, 28),
    feature("sha", 7, 0, 1, 29),
    feature("avx512bw", 7, 0, 1, 30),
    feature("avx512vl", 7, 0, 1, 31),
    feature("avx512vbmi", 7, 0, 2, 1),
    feature("avx512vbmi2", 7, 0, 2, 6),
    feature("gfni", 7, 0, 2, 8),
    feature("vaes", 7, 0, 2, 9),
    feature("vpclmulqdq", 7, 0, 2, 10),
    feature("avx512vnni", 7, 0, 2, 11),
    feature("avx512bitalg", 7, 0, 2, 12),
    feature("avx512vpopcntdq", 7, 0, 2, 14),
    feature("avx512vp2intersect", 7, 0, 3, 8),
    feature("amx-bf16", 7, 0, 3, 22),
    feature("avx512fp16", 7, 0, 3, 23),
    feature("amx-tile", 7, 0, 3, 24),
    feature("amx-int8", 7, 0, 3, 25),
    feature("avxvnni", 7, 1, 0, 4),
    feature("avx512bf16", 7, 1, 0, 5),
    feature("lzcnt", 0x8000_0001, 0, 2, 5),
];

impl Feature {
    #[cfg(target_arch = "x86_64")]
    fn is_there(&self) -> bool {
        use raw_cpuid::native_cpuid::cpuid_count;
        let (leaf, subleaf, register, bit) = self.at;
        if cpuid_count(leaf & 0x8000_0000, 0).eax < leaf || subleaf > 0 && cpuid_count(leaf, 0).eax < subleaf {
            return false;
        }
        let said = cpuid_count(leaf, subleaf);
        [said.eax, said.ebx, said.ecx, said.edx][register] >> bit & 1 == 1
    }

    /// Elsewhere the build's own word is taken: there is one kind of kernel.
    #[cfg(not(target_arch = "x86_64"))]
    fn is_there(&self) -> bool {
        COMPILED_FOR.split(',').any(|name| name == self.name)
    }
}

/// How far a kernel's result lies from the plain form's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gap {
    /// The largest difference, relative to the largest value.
    pub found: f32,
    /// What rounding explains.
    pub allowed: f32,
}

/// A kernel that can be compared with its plain form.
#[derive(Clone, Copy)]
pub struct KernelCheck {
    /// Names it.
    pub name: &'static str,
    /// Runs both; those of training on this device, others where they belong.
    pub run: fn(&candle_core::Device) -> Result<Gap>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_build_uses_is_there_and_what_is_missing_is_named() {
        let here = Processor::detect();
        here.suffices().unwrap();
        assert!(!cfg!(target_arch = "x86_64") || here.features.contains(&"sse3"), "{here:?}");
        let older = Processor { missing: vec!["avx512f", "avx2"], ..here };
        let said = older.suffices().unwrap_err().to_string();
        assert!(said.contains("with avx512f, avx2, which"), "{said}");
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_table_says_what_the_standard_library_detects() {
        let here = Processor::detect().features;
        let known = [
            ("avx", is_x86_feature_detected!("avx")),
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("bmi2", is_x86_feature_detected!("bmi2")),
            ("lzcnt", is_x86_feature_detected!("lzcnt")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
            ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
            ("avx512vbmi2", is_x86_feature_detected!("avx512vbmi2")),
        ];
        for (name, there) in known {
            assert_eq!(here.contains(&name), there, "{name}");
        }
    }
}
