//! Training on a CUDA device against training on the CPU: real, or emulated by `scripts/emulate-cuda.sh`.

use apa::config::{Algorithm, Dtype, TrainConfig};
use apa::policy::{Lora, Packed};
use candle_core::quantized::GgmlDType;
use candle_core::{Device, Tensor};

use crate::support::tiny::TinySpec;
use crate::support::trainer::{Tiny, batch, config, step};

/// The first CUDA device. A build for CUDA is only tested where there is one.
fn gpu() -> Device {
    apa::policy::device("cuda:0").unwrap()
}

/// A model on the device and on the CPU.
fn both(spec: &TinySpec, dtype: Dtype) -> [Tiny; 2] {
    [gpu(), Device::Cpu].map(|device| Tiny::on(&device, spec, dtype))
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.detach().flatten_all().unwrap().to_device(&Device::Cpu).unwrap().to_vec1().unwrap()
}

/// The log-probabilities of two texts.
fn logprobs(tiny: &Tiny, adapter: Option<&Lora>) -> Vec<f32> {
    let texts: [Vec<u32>; 2] = [(60..100).collect(), (0..23).map(|i| 90 + i * i % 50).collect()];
    let packed = Packed::new(&[&texts[0][..], &texts[1][..]]).unwrap();
    let hidden = tiny.decoder.hidden(&packed, adapter).unwrap();
    let targets: Vec<u32> = texts.concat().into_iter().rev().collect();
    values(&tiny.decoder.logprobs(&hidden, &targets, &vec![0.8; targets.len()]).unwrap())
}

/// The largest difference of numbers that all are numbers.
fn gap(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().chain(b).all(|x| x.is_finite()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_device_gives_every_architecture_the_logprobs_of_the_cpu() {
    for architecture in apa::policy::architectures() {
        let [device, cpu] = both(&TinySpec::new(architecture), Dtype::F32).map(|tiny| logprobs(&tiny, None));
        assert!(gap(&device, &cpu) < 1e-4, "{architecture}: {}", gap(&device, &cpu));
    }
}

#[test]
fn a_device_reads_every_number_format_of_a_file() {
    use GgmlDType::{BF16, F16, Q4_0, Q4K, Q5_0, Q5K, Q6K, Q8_0};
    for format in [F16, BF16, Q8_0, Q4_0, Q5_0, Q4K, Q5K, Q6K] {
        let spec = TinySpec { format, width: 256, ff: 256, head_dim: 64, rotary: 64, ..TinySpec::new("llama") };
        let [device, cpu] = both(&spec, Dtype::F32).map(|tiny| logprobs(&tiny, None));
        assert!(gap(&device, &cpu) < 1e-4, "{format:?}: {}", gap(&device, &cpu));
    }
}

#[test]
fn weights_in_bf16_cost_a_device_little() {
    let spec = TinySpec::new("llama");
    let [exact, rounded] = [Dtype::F32, Dtype::Bf16].map(|dtype| logprobs(&Tiny::on(&gpu(), &spec, dtype), None));
    let gap = gap(&exact, &rounded);
    assert!(gap > 0.0 && gap < 0.05, "{gap}");
}

#[test]
fn a_device_learns_what_the_cpu_learns() {
    for (algorithm, architecture) in
        [(Algorithm::Apa, "llama"), (Algorithm::Awr, "gemma3"), (Algorithm::Ppo, "phi2"), (Algorithm::Apa, "qwen3moe")]
    {
        // Steps small enough that rounding doesn't decide which way a weight goes.
        let config = TrainConfig { algorithm, lr: 1e-4, ..config() };
        let [device, cpu] = both(&TinySpec::new(architecture), Dtype::F32).map(|tiny| {
            let mut trainer = tiny.trainer(&config);
            let before = logprobs(&tiny, None);
            let losses =
                [(); 3].map(|()| step(&mut trainer, &batch())).map(|m| [m.policy_loss as f32, m.value_loss as f32]);
            let after = logprobs(&tiny, Some(trainer.adapter()));
            assert!(gap(&before, &after) > 1e-3, "{algorithm:?} of {architecture} learns nothing");
            (losses.concat(), after)
        });
        let (losses, learned) = (gap(&device.0, &cpu.0), gap(&device.1, &cpu.1));
        assert!(losses < 1e-3 && learned < 1e-3, "{algorithm:?} of {architecture}: {losses}, {learned}");
    }
}

#[test]
fn what_a_device_has_trained_goes_on_from_its_files() {
    let tiny = Tiny::on(&gpu(), &TinySpec::new("llama"), Dtype::F32);
    let mut straight = tiny.trainer(&config());
    step(&mut straight, &batch());
    let saved = tiny.save(&straight, "saved");
    let mut loaded = tiny.load(&config(), &saved).unwrap();
    let [straight, loaded] = [&mut straight, &mut loaded].map(|trainer| step(trainer, &batch()).policy_loss);
    assert!((straight - loaded).abs() < 1e-5, "{straight} and {loaded}");
}
