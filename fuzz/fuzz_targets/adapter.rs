//! An adapter file that says odd things of itself: an error, or an adapter that can be used; in llama.cpp and in the
//! trainer.
#![no_main]

mod change;
#[path = "../../tests/support/tiny.rs"]
mod tiny;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

use apa::config::Dtype;
use apa::gguf::Writer;
use apa::llama::{Adapter, Batch, Context, ContextOptions, Model};
use apa::policy::{Decoder, Lora, Packed};
use candle_core::{Device, Tensor};
use tiny::{TinySpec, tiny_model};

struct Good {
    dir: PathBuf,
    model: Arc<Model>,
    context: Mutex<Context>,
    decoder: Decoder,
}

fn good() -> &'static Good {
    static GOOD: OnceLock<Good> = OnceLock::new();
    GOOD.get_or_init(|| {
        let dir = change::folder();
        std::fs::create_dir_all(&dir).expect("a folder");
        let path = dir.join("tiny.gguf");
        tiny_model(&path, &TinySpec::new("llama")).expect("a model");
        let decoder = Decoder::load(&path, &Device::Cpu, Dtype::F32).expect("it can be trained");
        let mut file = Writer::new();
        file.set("general.type", "adapter").set("general.architecture", "llama").set("adapter.type", "lora");
        file.set("adapter.lora.alpha", 8f32);
        let ones = |rows, width| Tensor::ones((rows, width), candle_core::DType::F32, &Device::Cpu).expect("ones");
        for linear in decoder.linears() {
            let (a, b) = (ones(4, linear.in_features), ones(linear.out_features, 4));
            file.tensor(&format!("{}.lora_a", linear.tensor), &a).expect("a factor");
            file.tensor(&format!("{}.lora_b", linear.tensor), &b).expect("a factor");
        }
        file.write(&dir.join("adapter.gguf")).expect("an adapter");
        let model = Model::load(&path, 0).expect("it can be served");
        let options = ContextOptions { context: 256, batch: 32, sequences: 2, exact: false };
        let context = Mutex::new(Context::new(&model, 1, options).expect("a context"));
        Good { dir, model, context, decoder }
    })
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Good { dir, model, context, decoder } = good();
    let path = dir.join("changed.gguf");
    if change::change(&dir.join("adapter.gguf"), &path, input).is_none() {
        return;
    }
    if let Ok(adapter) = Adapter::load(model, &path) {
        let mut context = context.lock().expect("no panic before");
        let mut batch = Batch::default();
        batch.add(1, 0, 0, true);
        if context.set_adapter(Some(adapter)).is_ok() {
            context.decode(&batch).expect("decoding with an adapter that was taken");
        }
        context.set_adapter(None).expect("back to the model alone");
    }
    if let Ok(lora) = Lora::read_gguf(&path, decoder) {
        let packed = Packed::new(&[[1, 2]]).expect("two tokens");
        let _ = decoder.hidden(&packed, Some(&lora));
    }
});
