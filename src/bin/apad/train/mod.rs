//! `apad train`: a batch experiment without the daemon; resumes it after a stop, and compares it with others.

mod compare;
mod curves;
mod flags;
mod group;
mod screen;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use apa::experiment::{Input, Lab, PLAN_FILE, Plan, Thumbs, read_dataset, read_prompts, seed_folder};
use apa::overwrite::{check_target_folder, check_written_folder};
use apa::reward::{SCHEMES, SCHEMES_EXPLAINED, Source};
use clap::Args;
use serde_json::json;

pub use self::flags::Learning;
use self::group::Group;
use self::screen::Screen;
use crate::WrongUse;
use crate::flags::Given;
use crate::pull;
use crate::settings::Overrides;

/// The file that locks the folder of an experiment for one process.
const LOCK_FILE: &str = "run.lock";

/// Steps of an experiment for which no number is given.
const STEPS: u64 = 30;

/// What a resumed run takes from its folder and must not be given again, beside the hyperparameters.
const FIXED: [&str; 17] = [
    "model",
    "prompts",
    "reward",
    "reward_timeout",
    "thumbs_up",
    "flipped",
    "dataset",
    "evaluate_every",
    "answers",
    "max_new",
    "temperature",
    "seeds",
    "out",
    "checkpoint_every",
    "config",
    "overrides",
    "compare",
];

fn after_help() -> String {
    format!(
        "\
Examples:
  apad train --model smollm2-135m-instruct --prompts prompts.jsonl --reward length:20 --algorithm apa --out runs/apa
  apad train --model base.gguf --prompts p.jsonl --reward 'command:python3 judge.py' --seed 1,2,3 --lr 3e-4 --out runs/b
  apad train --model base.gguf --dataset runs/apa/seed-1/samples.jsonl --prompts p.jsonl --reward length:20 --out runs/c
  apad train --resume runs/apa
  apad train --compare runs/apa runs/awr --out runs/both

Prompts are JSON lines: {{\"prompt\": [messages]}}, {{\"prompt\": \"text\"}} or {{\"text\": \"text\"}}; text goes in as
it is. Rewards: {SCHEMES_EXPLAINED}. A dataset has lines {{\"prompt\", \"response\", \"reward\"}}; samples.jsonl of
another run is one.
--set serve.type=bf16 samples from the weights in that format, which can be much faster; they are trained in their own.
Ctrl-C keeps what was done; --resume goes on, to the same end.
DIR gets seed-S/{{metrics.jsonl,samples.jsonl,adapter.gguf,checkpoint-N}}, curves.png and curves.svg."
    )
}

/// Run a batch experiment without the daemon: sample, reward, train, again
#[derive(Args)]
#[command(after_help = after_help())]
pub struct Options {
    /// GGUF file, or the name of a known model (fetched if missing)
    #[arg(long, value_name = "PATH|NAME", required_unless_present_any = ["resume", "compare"])]
    model: Option<PathBuf>,
    /// Prompts, as JSON lines
    #[arg(long, value_name = "FILE", required_unless_present_any = ["resume", "compare", "dataset"])]
    prompts: Option<PathBuf>,
    #[arg(long, value_name = "SPEC", required_unless_present_any = ["resume", "compare", "dataset"])]
    #[arg(help = format!("What an answer is worth: {}", SCHEMES.join(", ")))]
    reward: Option<Source>,
    /// Learn from fixed answers and their rewards instead of samples; --prompts and --reward then only measure
    #[arg(long, value_name = "FILE")]
    dataset: Option<PathBuf>,
    /// With --dataset and --prompts: steps from one batch of samples to the next
    #[arg(long, value_name = "N", default_value_t = 5)]
    evaluate_every: u64,
    /// Longest time a reward command or service may take for a batch
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    reward_timeout: u64,
    /// Train on the thumbs of a simulated rater who likes this share of the answers, rather than on their rewards
    #[arg(long, value_name = "SHARE", conflicts_with = "dataset")]
    thumbs_up: Option<f64>,
    /// With --thumbs-up: share of the thumbs that say the opposite of what the rater means
    #[arg(long, value_name = "SHARE", requires = "thumbs_up", default_value_t = 0.0)]
    flipped: f64,
    /// Answers to each prompt of a batch; RLOO compares them with each other
    #[arg(long, value_name = "N", default_value_t = 1)]
    answers: u32,
    /// Most tokens of an answer (paper: 128)
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_new: u32,
    /// Divides the logits, in sampling and in training
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    temperature: f32,
    /// Steps to make: a batch each. With --resume: more of them than were planned
    #[arg(long, value_name = "N", help = format!(
        "Steps to make: a batch each [default: {STEPS}]. With --resume: more of them than were planned"))]
    steps: Option<u64>,
    /// Seeds, a run each
    #[arg(long = "seed", value_name = "S[,S..]", value_delimiter = ',', default_values_t = [1])]
    seeds: Vec<u64>,
    /// Steps between two checkpoints
    #[arg(long, value_name = "N", default_value_t = 1)]
    checkpoint_every: u64,
    /// Folder of the results
    #[arg(long, value_name = "DIR", required_unless_present = "resume")]
    out: Option<PathBuf>,
    /// Go on with the experiment in DIR where it was stopped
    #[arg(long, value_name = "DIR", conflicts_with_all = FIXED.into_iter().chain(flags::names()))]
    resume: Option<PathBuf>,
    /// Draw the curves of finished or running experiments over each other
    #[arg(long, value_name = "DIR", num_args = 1..,
        conflicts_with_all = ["model", "prompts", "reward", "dataset", "algorithm", "steps"])]
    compare: Vec<PathBuf>,
    /// Print a summary as JSON on stdout, everything else on stderr
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    learning: Given<Learning>,
    #[command(flatten)]
    overrides: Overrides,
}

pub async fn run(options: Options) -> Result<()> {
    if !options.compare.is_empty() {
        let out = options.out.context("no --out")?;
        return compare::run(&options.compare, &out, options.json);
    }
    let (dir, plan, fresh) = match &options.resume {
        Some(dir) => (dir.clone(), resumed(dir, options.steps)?, false),
        None => (options.out.clone().context("no --out")?, planned(&options).await?, true),
    };
    if fresh && dir.join(PLAN_FILE).exists() {
        let dir = dir.display();
        bail!("{dir} holds an experiment already: `apad train --resume {dir}` goes on with it");
    }
    let stop = Arc::new(AtomicBool::new(false));
    let job = Job { dir, fresh, stop: stop.clone(), json: options.json };
    let mut work = tokio::task::spawn_blocking(move || job.run(plan));
    tokio::select! {
        done = &mut work => return done?,
        signal = tokio::signal::ctrl_c() => signal.context("waiting for Ctrl-C")?,
    }
    stop.store(true, Ordering::Relaxed);
    work.await?
}

/// The plan stored in a folder, with more steps if asked for.
fn resumed(dir: &Path, steps: Option<u64>) -> Result<Plan> {
    let mut plan = Plan::read(dir)?;
    if let Some(steps) = steps {
        if steps < plan.steps {
            let planned = plan.steps;
            return Err(
                WrongUse(format!("--steps is {steps}, expected at least the {planned} that are planned")).into()
            );
        }
        plan.steps = steps;
    }
    Ok(plan)
}

/// The plan that the flags describe.
async fn planned(options: &Options) -> Result<Plan> {
    let model = options.model.as_ref().context("no --model")?;
    let named = ("model", Some(model.to_string_lossy().into_owned()));
    let mut config = options.overrides.build(flags::settings(&options.learning).chain([named]))?;
    let absolute = |path: &Path| std::path::absolute(path).with_context(|| format!("finding {}", path.display()));
    let input = |path: &Path, sha256: String| -> Result<Input> { Ok(Input { path: absolute(path)?, sha256 }) };
    let prompts = options.prompts.as_deref().map(|path| input(path, read_prompts(path)?.1)).transpose()?;
    let dataset = options.dataset.as_deref().map(|path| input(path, read_dataset(path)?.1)).transpose()?;
    let mut plan = Plan {
        prompts,
        reward: match &options.reward {
            // A resumed run may start in another working directory.
            Some(Source::Model(file)) => Some(Source::Model(absolute(file)?)),
            reward => reward.clone(),
        },
        thumbs: options.thumbs_up.map(|up| Thumbs { up, flipped: options.flipped }),
        dataset,
        evaluate_every: options.evaluate_every,
        reward_timeout: options.reward_timeout,
        steps: options.steps.unwrap_or(STEPS),
        seeds: options.seeds.clone(),
        answers: options.answers,
        max_new: options.max_new,
        temperature: options.temperature,
        checkpoint_every: options.checkpoint_every,
        config: config.clone(),
    };
    plan.validate().map_err(|e| WrongUse(e.to_string()))?;
    config.model = absolute(&pull::resolve(model).await?)?;
    plan.config = config;
    Ok(plan.as_written()?)
}

struct Job {
    dir: PathBuf,
    fresh: bool,
    stop: Arc<AtomicBool>,
    json: bool,
}

impl Job {
    fn run(&self, plan: Plan) -> Result<()> {
        let mut read = vec![plan.config.model.as_path()];
        read.extend([&plan.prompts, &plan.dataset].into_iter().flatten().map(|input| input.path.as_path()));
        check_target_folder(&self.dir, &curves::FILES, &read)?;
        check_target_folder(&self.dir, &[PLAN_FILE, LOCK_FILE], &read)?;
        for input in read {
            for folder in plan.seeds.iter().map(|seed| seed_folder(&self.dir, *seed)) {
                check_written_folder(&folder, input)?;
            }
        }
        let screen = Screen::new(&plan, self.json);
        screen.wait("loading the model");
        let lab = Lab::open(plan)?;
        // The folder is made only after everything was checked.
        std::fs::create_dir_all(&self.dir).with_context(|| format!("creating {}", self.dir.display()))?;
        let _held = self.lock()?;
        if self.fresh && self.dir.join(PLAN_FILE).exists() {
            bail!("{} was taken by another experiment meanwhile", self.dir.display());
        }
        lab.plan().write(&self.dir)?;

        screen.begin(lab.prompts(), lab.dataset());
        let outcome = self.all_seeds(&lab, &screen);
        screen.finish();
        // Curves are drawn from what there is, however the run ended.
        let drawn = Group::read(&self.dir).and_then(|group| {
            curves::write(&self.dir, std::slice::from_ref(&group))?;
            Ok(group)
        });
        let stopped_at = outcome?;
        let group = drawn?;
        screen.line(&format!("results: {}", self.dir.display()));
        if self.json {
            let summary =
                json!({"out": self.dir, "stopped": stopped_at.is_some(), "experiment": compare::summary(&group)});
            println!("{}", crate::json_text(&summary)?);
        }
        if let Some((seed, steps)) = stopped_at {
            let (dir, planned) = (self.dir.display(), lab.plan().steps);
            bail!("stopped after step {steps} of {planned} of seed {seed}; `apad train --resume {dir}` goes on");
        }
        Ok(())
    }

    /// Runs every seed. Returns the seed and step where it was stopped, if it was.
    fn all_seeds(&self, lab: &Lab, screen: &Screen) -> Result<Option<(u64, usize)>> {
        for &seed in &lab.plan().seeds {
            let ended = lab
                .run(seed, &self.dir, &self.stop, &mut |record| screen.step(seed, record))
                .with_context(|| format!("seed {seed}"))?;
            if ended.stopped {
                return Ok(Some((seed, ended.records.len())));
            }
        }
        Ok(None)
    }

    fn lock(&self) -> Result<File> {
        let path = self.dir.join(LOCK_FILE);
        let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(std::fs::TryLockError::WouldBlock) => bail!("another process works in {}", self.dir.display()),
            Err(std::fs::TryLockError::Error(e)) => Err(e).with_context(|| format!("locking {}", path.display())),
        }
    }
}
