//! `apad export`: converts an adapter for other programs. Never changes the adapter or its base.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use apa::config::Dtype;
use apa::llama::{FileType, quantize};
use apa::overwrite::{Form, check_target, check_target_folder};
use apa::policy::{self, Decoder, Lora, PEFT_FILES};
use clap::{ArgGroup, Args};

use crate::{WrongUse, feedback, pull, vllm};

/// Write an adapter as a whole model, for PEFT, or as GGUF
#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    group(ArgGroup::new("form").required(true).args(["merge", "peft", "gguf"])),
    after_help = "\
Examples:
  apad export --model base.gguf --adapter adapter.gguf --merge --type q4_k_m --out model.gguf
  apad export --model base.gguf --adapter adapter.gguf --peft --out folder --base-name org/model
  apad export --model base.gguf --adapter adapter.gguf --peft --out folder --vllm http://127.0.0.1:8000 --name mine
  apad export --model base.gguf --adapter folder --gguf --out adapter.gguf
  apad export feedback --model base.gguf --data apa-data --out feedback.jsonl

A merged weight is computed from the base's own numbers: a base of few bits has lost what it has lost, and a finer
--type doesn't bring it back."
)]
pub struct Options {
    #[command(subcommand)]
    feedback: Option<feedback::Export>,
    /// GGUF file of the base, or the name of a known model (fetched if missing)
    #[arg(long, value_name = "PATH|NAME", required = true)]
    model: Option<PathBuf>,
    /// The adapter: a GGUF file, or a folder as PEFT writes it
    #[arg(long, value_name = "PATH", required = true)]
    adapter: Option<PathBuf>,
    /// Where to write: a file, or with --peft a folder
    #[arg(long, value_name = "PATH", required = true)]
    out: Option<PathBuf>,
    /// A model that needs no adapter
    #[arg(long)]
    merge: bool,
    /// A folder with adapter_config.json and adapter_model.safetensors
    #[arg(long)]
    peft: bool,
    /// An adapter that llama.cpp loads
    #[arg(long)]
    gguf: bool,
    /// Number format of the merged model: f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m, q4_0 and llama.cpp's others
    #[arg(long, value_name = "TYPE", requires = "merge", default_value = "f16")]
    r#type: String,
    /// The base's name on the Hugging Face hub, for PEFT's configuration [default: the name of the model's file]
    #[arg(long, value_name = "NAME", requires = "peft")]
    base_name: Option<String>,
    /// Address of a vLLM server that is to serve the folder, which it has to be able to read; its key, if it has one,
    /// is the variable VLLM_API_KEY
    #[arg(long, value_name = "URL", requires = "peft")]
    vllm: Option<String>,
    /// The model's name there; an adapter of that name is replaced [default: the name of the folder]
    #[arg(long, value_name = "NAME", requires = "vllm")]
    name: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub async fn run(mut options: Options) -> Result<()> {
    if let Some(feedback) = options.feedback.take() {
        return feedback::export(feedback).await;
    }
    // Clap requires them.
    let (Some(model), Some(adapter), Some(out)) = (&options.model, &options.adapter, &options.out) else {
        return Err(WrongUse("no --model, --adapter or --out".into()).into());
    };
    let paths = Paths { model: model.clone(), adapter: adapter.clone(), out: out.clone() };
    let kind: FileType = options.r#type.parse().map_err(|e: apa::Error| WrongUse(e.to_string()))?;
    let base = pull::resolve(&paths.model).await?;
    let server = options.vllm.take().map(|url| (url, options.name.take().unwrap_or_else(|| file_name(out))));
    let folder = out.clone();
    tokio::task::spawn_blocking(move || export(&options, &paths, &base, kind)).await??;
    match server {
        Some((url, name)) => vllm::load(&url, &name, &folder).await,
        None => Ok(()),
    }
}

struct Paths {
    model: PathBuf,
    adapter: PathBuf,
    out: PathBuf,
}

fn export(options: &Options, paths: &Paths, base: &Path, kind: FileType) -> Result<()> {
    let inputs: [&Path; 2] = [base, &paths.adapter];
    let out = &if options.peft {
        check_target_folder(&paths.out, &PEFT_FILES, &inputs)?;
        paths.out.clone()
    } else {
        check_target(&paths.out, Form::Gguf, &inputs)?
    };
    // The weights are only compared with, so the compact format is enough.
    let decoder = Decoder::load(base, &policy::device("auto")?, Dtype::Bf16)?;
    let lora = if paths.adapter.is_dir() {
        Lora::read_peft(&paths.adapter, &decoder)?
    } else {
        Lora::read_gguf(&paths.adapter, &decoder)?
    };
    if options.merge {
        merge(&lora, base, &decoder, out, kind)?;
    } else if options.peft {
        let name = options.base_name.clone().unwrap_or_else(|| file_stem(&paths.model));
        lora.write_peft(out, &decoder, &name).with_context(|| format!("writing {}", out.display()))?;
    } else {
        lora.write_gguf(out, &[])?;
    }
    if options.json {
        println!("{}", serde_json::json!({"out": paths.out, "rank": lora.rank(), "alpha": lora.alpha()}));
    } else {
        println!("{}", paths.out.display());
    }
    Ok(())
}

fn merge(lora: &Lora, base: &Path, decoder: &Decoder, out: &Path, kind: FileType) -> Result<()> {
    // Written beside the target: the same disk has room for it, and other users can't read it.
    let mut whole = out.as_os_str().to_owned();
    whole.push(format!(".{}.merged", std::process::id()));
    let whole = Path::new(&whole);
    let written = lora.write_merged(base, decoder, whole).and_then(|()| quantize(whole, out, kind, 0));
    // Whatever failed, the file is not what was asked for.
    let _ = std::fs::remove_file(whole);
    Ok(written?)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn file_stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}
