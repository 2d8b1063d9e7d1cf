//! `apad train`: a batch experiment without the daemon, gone on with after a stop, and compared with others.

mod compare;
mod curves;
mod screen;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use apa::experiment::{Lab, PLAN_FILE, Plan, RewardSpec, read_prompts};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use self::screen::Screen;
use crate::WrongUse;
use crate::pull;
use crate::settings::Overrides;

/// The file that one process at a time holds in the folder of an experiment.
const LOCK_FILE: &str = "run.lock";

/// What a run that goes on takes from its folder, and must not be told again.
const FIXED: [&str; 19] = [
    "model",
    "prompts",
    "reward",
    "reward_timeout",
    "algorithm",
    "lambda",
    "lr",
    "critic_lr",
    "epochs",
    "batch",
    "minibatch",
    "max_new",
    "temperature",
    "seeds",
    "out",
    "checkpoint_every",
    "config",
    "overrides",
    "compare",
];

/// Run a batch experiment without the daemon: sample, reward, train, again
#[derive(Args)]
#[command(after_help = "\
Examples:
  apad train --model smollm2-135m-instruct --prompts prompts.jsonl --reward length:20 --algorithm apa --out runs/apa
  apad train --model base.gguf --prompts p.jsonl --reward 'command:python3 judge.py' --seed 1,2,3 --lr 3e-4 --out runs/b
  apad train --resume runs/apa
  apad train --compare runs/apa runs/awr --out runs/both

Prompts are JSON lines: {\"prompt\": [messages]}, {\"prompt\": \"text\"} or {\"text\": \"text\"}; text goes in as it is.
Rewards: length:TOKENS (1 for an answer of that length that ends by itself, -1 at 40 tokens off or cut off), regex:PATTERN
(1 where it matches, else -1), command:SHELL COMMAND (reads {\"prompt\", \"response\"} lines until its input ends, writes a line
{\"score\": number} each). Ctrl-C keeps what was done; --resume goes on, to the same end.
DIR gets seed-S/{metrics.jsonl,samples.jsonl,adapter.gguf,checkpoint-N}, curves.png and curves.svg.")]
pub struct Options {
    /// GGUF file, or the name of a known model (fetched if missing)
    #[arg(long, value_name = "PATH|NAME", required_unless_present_any = ["resume", "compare"])]
    model: Option<PathBuf>,
    /// Prompts, as JSON lines
    #[arg(long, value_name = "FILE", required_unless_present_any = ["resume", "compare"])]
    prompts: Option<PathBuf>,
    /// What an answer is worth: length:TOKENS, regex:PATTERN or command:SHELL COMMAND
    #[arg(long, value_name = "SPEC", required_unless_present_any = ["resume", "compare"])]
    reward: Option<RewardSpec>,
    /// Longest time a reward command may take for a batch
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    reward_timeout: u64,
    /// The policy loss (default: apa)
    #[arg(long, value_enum)]
    algorithm: Option<Algorithm>,
    /// Temperature of the target policy; larger stays closer to the initial model (paper and default: 0.1 for APA, 1 for AWR)
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    lambda: Option<f64>,
    /// Learning rate of the policy's adapter (default: 1e-4; paper, full weights: 1e-6, PPO 8e-6)
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    lr: Option<f64>,
    /// Learning rate of the critic (default: 3e-4)
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    critic_lr: Option<f64>,
    /// Passes over a batch (paper and default: 2)
    #[arg(long, value_name = "N")]
    epochs: Option<u32>,
    /// Answers sampled a step (default: 16; paper: 128 with 125M, 64 with 1B and 6B)
    #[arg(long, value_name = "N")]
    batch: Option<u32>,
    /// Answers an optimizer step (default: 8; paper: 8 with 125M, 2 with 1B, 1 with 6B)
    #[arg(long, value_name = "N")]
    minibatch: Option<u32>,
    /// Most tokens of an answer (paper: 128)
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_new: u32,
    /// Divides the logits, in sampling and in training
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    temperature: f32,
    /// Steps to make: a batch each (default: 30). With --resume: more of them than were planned
    #[arg(long, value_name = "N")]
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
    #[arg(long, value_name = "DIR", conflicts_with_all = FIXED)]
    resume: Option<PathBuf>,
    /// Draw the curves of finished or running experiments over each other
    #[arg(long, value_name = "DIR", num_args = 1.., conflicts_with_all = ["model", "prompts", "reward", "algorithm", "steps"])]
    compare: Vec<PathBuf>,
    /// Print a summary as JSON on stdout, everything else on stderr
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    overrides: Overrides,
}

#[derive(Clone, Copy, ValueEnum)]
enum Algorithm {
    Apa,
    Awr,
    Ppo,
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

/// The plan of a folder, to its end or beyond.
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

/// The plan that the flags make.
async fn planned(options: &Options) -> Result<Plan> {
    let (Some(model), Some(prompts), Some(reward)) = (&options.model, &options.prompts, &options.reward) else {
        bail!("no --model, --prompts or --reward");
    };
    let algorithm = options.algorithm.map(|a| match a {
        Algorithm::Apa => "apa",
        Algorithm::Awr => "awr",
        Algorithm::Ppo => "ppo",
    });
    // Where AWR is asked for by flag, the paper's λ for it is meant; a setting of λ for APA is another thing.
    let lambda = options.lambda.or(matches!(options.algorithm, Some(Algorithm::Awr)).then_some(1.0));
    let mut config = options.overrides.build([
        ("model", Some(model.to_string_lossy().into_owned().into())),
        ("train.algorithm", algorithm.map(Value::from)),
        ("train.lambda", lambda.map(Value::from)),
        ("train.lr", options.lr.map(Value::from)),
        ("train.critic_lr", options.critic_lr.map(Value::from)),
        ("train.epochs", options.epochs.map(Value::from)),
        ("train.batch", options.batch.map(Value::from)),
        ("train.minibatch", options.minibatch.map(Value::from)),
    ])?;
    let absolute = |path: &Path| std::path::absolute(path).with_context(|| format!("finding {}", path.display()));
    let (_, prompts_sha256) = read_prompts(prompts)?;
    let mut plan = Plan {
        prompts: absolute(prompts)?,
        prompts_sha256,
        reward: reward.clone(),
        reward_timeout: options.reward_timeout,
        steps: options.steps.unwrap_or(30),
        seeds: options.seeds.clone(),
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
        let screen = Screen::new(&plan, self.json);
        screen.wait("loading the model");
        let lab = Lab::open(plan)?;
        // The folder is made once nothing is left to be wrong with what was asked for.
        std::fs::create_dir_all(&self.dir).with_context(|| format!("creating {}", self.dir.display()))?;
        let _held = self.lock()?;
        if self.fresh && self.dir.join(PLAN_FILE).exists() {
            bail!("{} was taken by another experiment meanwhile", self.dir.display());
        }
        lab.plan().write(&self.dir)?;

        screen.begin(lab.prompts());
        let outcome = self.all_seeds(&lab, &screen);
        screen.finish();
        // What there is is drawn, however it ended.
        let drawn = compare::read(&self.dir).and_then(|group| {
            curves::write(&self.dir, std::slice::from_ref(&group))?;
            Ok(group)
        });
        let stopped_at = outcome?;
        let group = drawn?;
        screen.line(&format!("results: {}", self.dir.display()));
        if self.json {
            let summary = json!({"out": self.dir, "stopped": stopped_at.is_some(), "experiment": group.summary()});
            println!("{}", serde_json::to_string_pretty(&summary)?);
        }
        if let Some((seed, steps)) = stopped_at {
            let (dir, planned) = (self.dir.display(), lab.plan().steps);
            bail!("stopped after step {steps} of {planned} of seed {seed}; `apad train --resume {dir}` goes on");
        }
        Ok(())
    }

    /// Runs every seed; where it was stopped, if it was.
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
