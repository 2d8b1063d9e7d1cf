//! `apad doctor`: what this machine is, whether each kernel computes rightly on it, what a model will need. Each kernel
//! runs in a process of its own, so that one that the processor can't run is a sentence. Changes nothing.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use apa::config::Weights;
use apa::doctor::{self, Report};
use apa::forecast::{Forecast, Parts, Training};
use apa::policy;
use apa::processor::Gap;
use apa::shown::shown_lines;
use candle_core::Device;
use clap::Args;
use serde::Serialize;
use serde_json::json;

use crate::settings::Overrides;
use crate::{WrongUse, pull};

/// Look at this machine: processor, kernels (each is tried), memory, disk
#[derive(Args)]
#[command(after_help = "\
Example:
  apad doctor --model smollm2-135m-instruct

Ends with 1 if something is wrong: a kernel that fails, or a model that doesn't fit.")]
pub struct Options {
    /// GGUF file, or the name of a known model (fetched if missing): tells the memory that it will need
    #[arg(long, value_name = "PATH|NAME")]
    model: Option<String>,
    /// Folder of the record and the versions: tells the room of its disk
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Tries one kernel, in this process
    #[arg(long, value_name = "NAME", hide = true)]
    kernel: Option<String>,
    #[command(flatten)]
    overrides: Overrides,
}

/// A kernel and how it did.
#[derive(Serialize)]
struct Tried {
    name: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    gap: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<String>,
}

pub async fn run(options: Options) -> Result<()> {
    if let Some(name) = &options.kernel {
        let config = options.overrides.build([])?;
        return try_here(name, &policy::device(&config.train.device)?);
    }
    let model = match &options.model {
        Some(model) => Some(pull::resolve(model.as_ref()).await?),
        None => None,
    };
    let text = |path: &Option<PathBuf>| path.as_ref().map(|p| p.to_string_lossy().into_owned());
    let config = options.overrides.build([("model", text(&model)), ("data", text(&options.data))])?;
    let report = doctor::examine(&config);
    // Where the device can't be had, the report says so.
    let device = policy::device(&config.train.device).unwrap_or(Device::Cpu);
    let tried = doctor::kernels(&device).map(|kernel| try_apart(kernel.name, &config.train.device));
    let kernels = tried.collect::<Result<Vec<_>>>()?;
    let faults = faults(&report, &kernels);
    if options.json {
        let whole = json!({"report": report, "kernels": kernels, "faults": faults});
        println!("{}", crate::json_text(&whole)?);
    } else {
        print!("{}", shown_lines(&text_of(&report, &kernels)));
    }
    match faults.len() {
        0 => Ok(()),
        _ => bail!("{}", faults.join("; ")),
    }
}

/// Tries a kernel and prints how far it is from its plain form.
fn try_here(name: &str, device: &Device) -> Result<()> {
    let kernel = doctor::kernels(device).find(|kernel| kernel.name == name);
    let kernel =
        kernel.ok_or_else(|| WrongUse(format!("--kernel is {name:?}, expected one that `apad doctor` lists")))?;
    println!("{}", serde_json::to_string(&doctor::try_kernel(kernel, device)?)?);
    Ok(())
}

/// Tries a kernel in a child process.
fn try_apart(name: &'static str, device: &str) -> Result<Tried> {
    let own = std::env::current_exe().context("finding this program, to run it again for each kernel")?;
    let child = Command::new(own)
        .args(["doctor", "--kernel", name, "--set", &format!("train.device={device}")])
        .stdin(Stdio::null())
        .output()
        .context("starting this program again, for a kernel")?;
    let said = String::from_utf8_lossy(&child.stderr);
    let fault = match (child.status.signal(), child.status.success()) {
        (Some(4), _) => Some("the processor doesn't know one of its instructions (SIGILL)".to_owned()),
        (Some(signal), _) => Some(format!("it was ended by signal {signal}")),
        (None, false) => Some(said.lines().last().unwrap_or("it failed without a word").to_owned()),
        (None, true) => None,
    };
    if let Some(fault) = fault {
        return Ok(Tried { name, gap: None, fault: Some(fault) });
    }
    let Gap { found, allowed } = serde_json::from_slice(&child.stdout).context("reading what a kernel's trial said")?;
    let fault = format!("it is {found:.1e} from its plain form, expected at most {allowed:.1e}");
    Ok(Tried { name, gap: Some(found), fault: (found > allowed).then_some(fault) })
}

fn faults(report: &Report, kernels: &[Tried]) -> Vec<String> {
    let mut faults = Vec::new();
    if let Err(e) = report.processor.suffices() {
        faults.push(e.to_string());
    }
    faults.extend(kernels.iter().filter_map(|k| Some(format!("{}: {}", k.name, k.fault.as_ref()?))));
    if let Err(e) = &report.device {
        faults.push(e.clone());
    }
    if let Err(e) = &report.ledger {
        faults.push(e.clone());
    }
    if let Some(Err(e)) = &report.store {
        faults.push(e.clone());
    }
    match &report.model {
        Some(Ok(forecast)) => faults.extend(too_large(forecast, report.free_memory)),
        Some(Err(e)) => faults.push(e.clone()),
        None => {}
    }
    faults
}

fn too_large(forecast: &Forecast, free: Option<u64>) -> Option<String> {
    let (free, serving) = (free?, forecast.serving.total());
    let (needed, had) = (gib(serving), gib(free));
    if serving > free {
        return Some(format!("serving needs about {needed}, of which {had} are free"));
    }
    // That a model can't be trained at all is no fault of the machine.
    forecast.training.as_ref().err().filter(|_| forecast.too_large).cloned()
}

fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}

fn text_of(report: &Report, kernels: &[Tried]) -> String {
    let processor = &report.processor;
    let known = |of: Option<u64>| of.map_or("unknown".to_owned(), gib);
    let mut rows = vec![
        ("processor", format!("{}, {} threads at once", processor.name, report.cores)),
        ("features", processor.features.join(" ")),
        ("compiled for", processor.compiled_for.join(" ")),
        ("serving", report.serving_kernels.to_owned()),
        ("training", report.training_kernels.to_owned()),
        ("device", report.device.clone().unwrap_or_else(|e| e)),
        ("free memory", known(report.free_memory)),
        ("free disk", known(report.free_disk)),
        ("ledger", report.ledger.clone().unwrap_or_else(|e| e)),
    ];
    rows.extend(report.store.iter().map(|store| ("store", store.clone().unwrap_or_else(|e| e))));
    match &report.model {
        Some(Ok(forecast)) => {
            rows.push(("serving needs", needs(&forecast.serving, ["weights", "keys and values", "buffers"])));
            rows.push(("training needs", forecast.training.as_ref().map_or_else(|e| e.clone(), trains)));
        }
        Some(Err(e)) => rows.push(("model", e.clone())),
        None => {}
    }
    let mut text: String = rows.iter().map(|(name, value)| format!("{name:15} {value}\n")).collect();
    for kernel in kernels {
        let how = match (&kernel.fault, kernel.gap) {
            (Some(fault), _) => format!("FAILS: {fault}"),
            (None, gap) => format!("right, {:.1e} from its plain form", gap.unwrap_or_default()),
        };
        text += &format!("{:38} {how}\n", kernel.name);
    }
    text
}

fn trains(training: &Training) -> String {
    let held = if training.held == Weights::Packed { "packed weights" } else { "weights as in the file" };
    let needs = needs(&training.parts, [held, "adapters and moments", "activations"]);
    format!("{needs}; a second context {}", gib(training.second_context))
}

fn needs(parts: &Parts, names: [&str; 3]) -> String {
    let of = [parts.weights, parts.state, parts.buffers];
    let each: Vec<String> = names.iter().zip(of).map(|(name, bytes)| format!("{name} {}", gib(bytes))).collect();
    format!("about {}: {}", gib(parts.total()), each.join(", "))
}
