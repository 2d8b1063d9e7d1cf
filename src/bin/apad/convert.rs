//! `apad convert`: a model's folder from the Hugging Face hub as GGUF. Never changes the folder.

use std::path::PathBuf;

use anyhow::Result;
use apa::convert::{self, Floats};
use clap::{Args, Subcommand};

/// Convert a model that llama.cpp has no graph for to GGUF
#[derive(Args)]
#[command(after_help = "\
Example:
  apad convert gptj gpt-j-6b --out gpt-j-6b.gguf
  apad serve --model gpt-j-6b.gguf")]
pub struct Options {
    #[command(subcommand)]
    model: Model,
}

#[derive(Subcommand)]
enum Model {
    /// GPT-J, as a phi2 model, which computes the same
    #[command(after_help = "\
Example:
  apad convert gptj gpt-j-6b --out gpt-j-6b.gguf --type bf16

The folder has config.json, tokenizer.json (or vocab.json and merges.txt) and model.safetensors (or its parts with their
index). Weights of pytorch_model.bin are not read: from_pretrained and save_pretrained of transformers make safetensors
of them.")]
    Gptj {
        /// Folder as save_pretrained of transformers writes it
        #[arg(value_name = "DIR")]
        folder: PathBuf,
        /// Where to write
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Number format of matrices: f32, f16 or bf16
        #[arg(long, value_name = "TYPE", default_value_t = Floats::F16)]
        r#type: Floats,
    },
}

pub async fn run(Options { model: Model::Gptj { folder, out, r#type } }: Options) -> Result<()> {
    let shown = out.display().to_string();
    tokio::task::spawn_blocking(move || convert::gptj(&folder, &out, r#type)).await??;
    println!("{shown}");
    Ok(())
}
