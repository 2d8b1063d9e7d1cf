//! Every setting, one row each: name, type, default, range and what it does. The structs, the checks, `apad config`,
//! the flags of the commands and docs/CONFIG.md all come from these rows. Never reads a value from anywhere.

use std::path::PathBuf;

use super::choices::*;
use super::forms::{no_address, no_device, no_engine, no_origin, no_store, no_version};
use super::range::{Range, above, above_to, at_least, from_below, from_to, whole};
use super::rows::{Row, Setting, join, settings};

settings! {
    /// Settings of an engine.
    Config {
        /// GGUF file of the base model.
        model: PathBuf = PathBuf::new(), Range::Any;
        /// Folder of the ledger and the policy versions; one engine a folder.
        data: PathBuf = "apa-data".into(), Range::Text("the path of a folder", |path| path.is_empty().then_some(path));
        /// Serving.
        serve: ServeConfig = ServeConfig::default(), Range::Any;
        /// Learning.
        train: TrainConfig = TrainConfig::default(), Range::Any;
        /// What a trained candidate must show before it serves.
        gate: PromotionConfig = PromotionConfig::default(), Range::Any;
        /// Which versions stay on disk.
        publish: PublishConfig = PublishConfig::default(), Range::Any;
        /// How long the record is kept.
        ledger: LedgerConfig = LedgerConfig::default(), Range::Any;
        /// What an answer is worth, and whose feedback counts.
        reward: RewardConfig = RewardConfig::default(), Range::Any;
        /// The HTTP service.
        http: HttpConfig = HttpConfig::default(), Range::Any;
    }

    /// Settings of the serving side.
    ServeConfig {
        /// `all`: serves, trains and decides; `server`: serves what another server of the same `ledger.url` decides;
        /// `trainer`: trains and decides, and answers nobody. Of several `all` and `trainer` of a ledger one decides,
        /// and another takes its place when it stops.
        role: Role = Role::All, Range::OneOf(Role::WORDS);
        /// Requests decoded together in one batch. (llama.cpp's own limit on sequences of a context is 256.)
        slots: u32 = 8, whole(1..=256);
        /// Tokens of context that the slots share.
        context: u32 = 8192, whole(16..=1 << 24);
        /// Largest number of tokens in one llama.cpp batch; at least `serve.slots`, since each slot decodes one token.
        batch: u32 = 512, whole(1..=1 << 16);
        /// Threads of llama.cpp; 0 takes the number of cores.
        threads: u32 = 0, whole(0..=512);
        /// Number of requests that may wait; one more is refused as busy.
        queue: u32 = 64, whole(1..=1 << 16);
        /// Answer length, in tokens, where a request sets none.
        max_tokens: u32 = 512, whole(1..=1 << 24);
        /// Seconds from the submission of a request to its last token, waiting included; 0 is no limit.
        request_seconds: u32 = 600, whole(0..=86_400);
        /// Guess how answers go on from what was said before, where that is measured to be faster. Answers are as
        /// likely as without. Requests with a seed of their own are left out, as rounding could change their answer.
        speculate: bool = true, Range::Any;
        /// Layers served on the GPU where there is one; -1 is as many as fit beside what training there needs.
        gpu_layers: i32 = -1, whole(-1..=i32::MAX);
        /// Lay weights out anew in memory for faster products; else they stay in the file, which the trainer may share.
        repack: bool = true, Range::Any;
        /// Number format of the served weights: `keep` is the file's own, `auto` the fastest here, others are named
        /// like q4_0, q8_0 and bf16. The trainer keeps the file's own.
        r#type: String = "keep".into(), Range::Any;
        /// Largest KL to the file's own distribution, in nats per token, that `serve.type` auto accepts.
        kl_budget: f64 = 0.1, at_least(0.0);
        /// Another name by which requests may call the model. `apad serve --model NAME` sets it to that name.
        alias: Option<String> = None, Range::Text("a name", |name| name.trim().is_empty().then_some(name));
        /// How requests are sampled that say nothing of it.
        sampling: SamplingConfig = SamplingConfig::default(), Range::Any;
    }

    /// How requests are sampled that say nothing of it. What is unset here is what the model's file recommends
    /// (`general.sampling`), or else the plain policy: temperature 1 and nothing left out.
    #[derive(Copy)]
    SamplingConfig {
        /// Whether what the model's file recommends is taken where a setting here is unset.
        recommended: bool = true, Range::Any;
        /// Divides the logits; 0 always takes the likeliest token.
        temperature: Option<f64> = None, from_to(0.0, 10.0);
        /// Only so many of the likeliest tokens may come; 0 leaves out none.
        top_k: Option<u32> = None, whole(0..=1 << 20);
        /// Only the likeliest tokens that together have this probability may come.
        top_p: Option<f64> = None, from_to(0.0, 1.0);
        /// Only tokens that are at least this likely, relative to the likeliest, may come.
        min_p: Option<f64> = None, from_to(0.0, 1.0);
        /// Penalty on tokens of the last 64, as a factor; 1 is none.
        repeat_penalty: Option<f64> = None, from_to(0.01, 10.0);
        /// Penalty on each earlier use of a token.
        frequency_penalty: Option<f64> = None, from_to(-2.0, 2.0);
        /// Penalty on a token that was used before.
        presence_penalty: Option<f64> = None, from_to(-2.0, 2.0);
    }

    /// Settings of the trainer.
    TrainConfig {
        /// Whether the policy learns from feedback. Without it no memory is taken for the trainer.
        enabled: bool = true, Range::Any;
        /// Starts a training step when `train.batch` new ratings are in.
        auto: bool = true, Range::Any;
        /// What computes gradients and optimizer steps: `candle`, here, or `tinker:URL`, a server of the Tinker API
        /// (docs/CLUSTER.md), which wants `train.credit` response, as there is no critic there. Its key, if it takes
        /// one, is the variable TINKER_API_KEY.
        engine: String = "candle".into(), Range::Text("candle or tinker:URL", no_engine);
        /// Name that the base has on the Tinker server; unset, the only model that the server has.
        tinker_base: Option<String> = None, Range::Text("a name", |name| name.trim().is_empty().then_some(name));
        /// Seconds that the Tinker server may take for one request, its wait for others included.
        tinker_seconds: u32 = 600, whole(1..=86_400);
        /// Where the trainer computes: `auto`, `cpu` or `cuda:N`.
        device: String = "auto".into(), Range::Text("auto, cpu or cuda:N", no_device);
        /// Number format of the frozen weights' matrix products; `auto` is bf16 where the processor multiplies it.
        dtype: Dtype = Dtype::Auto, Range::OneOf(Dtype::WORDS);
        /// Frozen weights: `packed`, 4 bytes a value; `quantized`, as in the file; `auto`: packed where memory allows.
        weights: Weights = Weights::Auto, Range::OneOf(Weights::WORDS);
        /// Memory for activations, in MiB; beyond it blocks are computed twice. 0 takes half of what is free.
        activation_mb: u32 = 0, Range::Any;
        /// Threads of the trainer; 0 takes the number of cores.
        threads: u32 = 0, whole(0..=1024);
        /// The policy loss.
        algorithm: Algorithm = Algorithm::Apa, Range::OneOf(Algorithm::WORDS);
        /// The action of APA's loss, which a reward is credited to: each `token`, whose target lies A/λ nats from the
        /// initial model, or the whole `response`, whose target lies `train.nats_per_reward` nats from it per unit of
        /// advantage. (paper: token)
        credit: Credit = Credit::Token, Range::OneOf(Credit::WORDS);
        /// Credit by response: how many nats likelier an answer as a whole should become than under the initial model,
        /// for a reward of one standard deviation above expectation.
        nats_per_reward: f64 = 4.0, above(0.0);
        /// Credit by response: 0 lets answers of every length move as far; 1 lets one of T tokens move T times as far.
        length_power: f64 = 0.0, from_to(0.0, 1.0);
        /// Limit on the KL of a batch's new policy to the one before, in nats a response: training on the batch stops
        /// there, and the next batch learns at a lower rate. 0 is no limit.
        kl_step: f64 = 0.1, at_least(0.0);
        /// Limit on the KL to the initial model, in nats a response: advantages shrink from half of it on, and training
        /// on a batch stops there. 0 is no limit.
        kl_budget: f64 = 10.0, at_least(0.0);
        /// Samples of a batch on which both KLs are measured after every optimizer step; 0 measures and limits nothing.
        kl_samples: u32 = 8, whole(0..=1 << 16);
        /// Earlier answers that train the critic again with every batch.
        replay: u32 = 16, whole(0..=1 << 16);
        /// What only AWR uses. (Defaults: paper)
        awr: AwrConfig = AwrConfig::default(), Range::Any;
        /// What only PPO uses. (Defaults: paper)
        ppo: PpoConfig = PpoConfig::default(), Range::Any;
        /// What keeps a trained candidate from being served.
        gate: GateConfig = GateConfig::default(), Range::Any;
        /// APA, credit by token: temperature λ of the target policy π_init · exp(A/λ); larger stays closer to the
        /// initial model. (paper: 0.1)
        lambda: f64 = 0.1, above(0.0);
        /// New ratings per batch.
        batch: u32 = 16, whole(1..=1 << 16);
        /// Samples per optimizer step.
        minibatch: u32 = 8, whole(1..=1 << 16);
        /// Epochs: passes over a batch. (paper: 2)
        epochs: u32 = 2, whole(1..=1000);
        /// Learning rate of the policy's adapter. (paper, full weights: 1e-6)
        lr: f64 = 1e-4, above(0.0);
        /// Learning rate of the critic.
        critic_lr: f64 = 3e-4, above(0.0);
        /// Largest gradient norm; larger gradients are scaled down to it.
        clip_norm: f64 = 1.0, above(0.0);
        /// AdamW's betas. (paper: 0.9, 0.95)
        betas: [f64; 2] = [0.9, 0.95], from_below(0.0, 1.0);
        /// AdamW's decoupled weight decay. (paper: 1e-6)
        weight_decay: f64 = 1e-6, at_least(0.0);
        /// Discount γ of later rewards. (paper: 1)
        gamma: f64 = 1.0, above_to(0.0, 1.0);
        /// λ of generalized advantage estimation, as far as the critic explains the returns; 1 while it doesn't.
        /// (paper: 0.95)
        gae_lambda: f64 = 0.95, from_to(0.0, 1.0);
        /// Whiten advantages over the batch, which removes what all its answers have in common. (paper: yes)
        whiten: bool = false, Range::Any;
        /// Scores, less their running mean and divided by their running standard deviation, are clipped to ± this.
        score_clip: f64 = 5.0, above(0.0);
        /// Rank of the adapters.
        rank: u32 = 16, whole(1..=4096);
        /// Scale numerator of the adapters: the update is multiplied by alpha / rank.
        alpha: f64 = 32.0, above(0.0);
        /// Longest sample, prompt and response, in tokens; of longer ones only the last part is trained on.
        max_tokens: u32 = 2048, whole(2..=1 << 24);
        /// Tokens computed at once: bounds the trainer's memory.
        micro_batch_tokens: u32 = 1024, whole(1..=1 << 24);
        /// Seeds adapters and the order of minibatches.
        seed: u64 = 0, Range::Any;
    }

    /// Settings of AWR.
    #[derive(Copy)]
    AwrConfig {
        /// Temperature of the weights exp(A/λ).
        lambda: f64 = 1.0, above(0.0);
    }

    /// Settings of PPO.
    #[derive(Copy)]
    PpoConfig {
        /// The ratio of new to old probability is clipped to 1 ± this.
        clip_range: f64 = 0.2, above(0.0);
        /// New values are clipped to old values ± this.
        value_clip_range: f64 = 0.2, above(0.0);
        /// First coefficient β of the KL penalty in the rewards.
        kl_coef: f64 = 0.05, at_least(0.0);
        /// KL per response, in nats, that β is steered to.
        kl_target: f64 = 6.0, above(0.0);
        /// Samples over which β adapts.
        kl_horizon: f64 = 10_000.0, above(0.0);
    }

    /// What keeps a trained candidate from being served.
    #[derive(Copy)]
    GateConfig {
        /// Largest KL of a version to the initial model, in nats per response; a version beyond it is not served.
        /// Generous: answers that far away are hardly the model's any more.
        kl_budget: f64 = 200.0, above(0.0);
    }

    /// Settings of the judgement over candidates. First it and its parent answer the same prompts with the same dice;
    /// then a share of the users may get it, and their ratings decide.
    PromotionConfig {
        /// Judge each candidate by its own answers before it serves.
        examine: bool = true, Range::Any;
        /// Prompts of the examination, never trained on: a file of JSON lines `{"prompt"}`, each perhaps with the
        /// `schema` or `grammar` that its answer should have, or `users` for the newest prompts of users. Unset: a few
        /// general ones.
        prompts: Option<String> = None, Range::Any;
        /// Prompts whose answers must hold: a file of JSON lines `{"prompt", "name"}`, each with a `regex`, a
        /// `command`, a `schema` or a `grammar`. A candidate that fails one that its parent holds is refused. A command
        /// is run by a shell for a minute at most, reads lines `{"prompt", "response"}` until its input ends, and
        /// writes a line `{"score": number}` for each, above 0 where the answer holds.
        anchors: Option<PathBuf> = None, Range::Any;
        /// Text whose probability must stay; unset, a paragraph of plain English.
        text: Option<PathBuf> = None, Range::Any;
        /// Prompts of an examination.
        count: u32 = 16, whole(2..=1024);
        /// Longest answer of the examination, in tokens.
        max_tokens: u32 = 64, whole(1..=1 << 16);
        /// How much lower the mean score of the examination may be, in units of its spread over the parent's answers.
        margin: f64 = 0.1, at_least(0.0);
        /// Most KL of a candidate's own answers to the initial model, in nats a response.
        kl_budget: f64 = 40.0, above(0.0);
        /// The same to its parent.
        kl_step: f64 = 5.0, above(0.0);
        /// How many more of its answers may be cut off, as a share of them.
        cut_off: f64 = 0.25, from_to(0.0, 1.0);
        /// How many times longer or shorter its answers may be.
        length: f64 = 3.0, above(1.0);
        /// How much more of its answers may be repetition, as a share of their runs of four tokens.
        repetition: f64 = 0.15, from_to(0.0, 1.0);
        /// How many more of its answers may miss the format that their prompt asks for, as a share of those.
        malformed: f64 = 0.1, from_to(0.0, 1.0);
        /// Least share of the parent's entropy that must be left.
        entropy: f64 = 0.25, from_to(0.0, 1.0);
        /// How much less likely than to the initial model the text may be, in nats a token.
        text_loss: f64 = 0.5, at_least(0.0);
        /// What becomes of a candidate that passes every limit: `auto` serves it, but tries it on a share of the
        /// users first where `gate.users` of them rate and it was not shown to be as good.
        mode: Promotion = Promotion::Auto, Range::OneOf(Promotion::WORDS);
        /// Users who rated within the last 30 days from which on `auto` tries candidates on a share of them.
        users: u32 = 20, Range::Any;
        /// Shares of the users that get a candidate on trial, one after the other.
        shares: [f64; 2] = [0.05, 0.25], above_to(0.0, 0.5);
        /// How much lower the mean rating of a candidate on trial may be and still be promoted.
        trial_margin: f64 = 0.1, at_least(0.0);
        /// How many more of its answers may be regenerated or corrected, or how many fewer rated, as a share of them.
        rate_margin: f64 = 0.05, from_to(0.0, 1.0);
        /// Probability that a trial promotes a candidate that is worse than that, over all looks at it.
        alpha: f64 = 0.01, above_to(0.0, 0.5);
        /// Ratings after which a trial ends undecided.
        ratings: u32 = 2000, whole(2..=u32::MAX);
        /// Hours after which a trial ends undecided.
        hours: u32 = 168, whole(1..=1 << 20);
        /// Ratings of one user that count in a trial.
        user_ratings: u32 = 20, whole(1..=u32::MAX);
        /// Seconds after which an answer's fate is settled: rated, regenerated, corrected, or none of these.
        settle: u32 = 600, Range::Any;
        /// Which version serves after a trial that decided nothing.
        undecided: Undecided = Undecided::Parent, Range::OneOf(Undecided::WORDS);
        /// Go back to the version before when ratings show that the one that serves has fallen below it.
        watch: bool = true, Range::Any;
    }

    /// Which versions stay on disk. The one that serves, the one before it, one on trial and one that waits for a
    /// person always do.
    PublishConfig {
        /// Newest versions whose adapters are kept; those of older ones are removed. 0 keeps all.
        keep: u32 = 100, Range::Any;
        /// Newest versions that also keep the state that is needed only to resume training: the critic and the
        /// optimizer's moments, some five times as large as the adapter. After a rollback to an older one these begin
        /// anew. 0 keeps all.
        keep_states: u32 = 3, Range::Any;
        /// URL of an object store where versions are kept as well, each before it serves: file:///PATH,
        /// s3://BUCKET/PATH, gs://BUCKET/PATH or az://CONTAINER/PATH. Credentials come from variables such as
        /// AWS_ACCESS_KEY_ID. A version that is in the store alone is fetched when it is to serve.
        store: Option<String> = None, Range::Text("the URL of an object store", no_store);
        /// Versions that are never removed, whatever their age: `3, 17`.
        pinned: String = String::new(), Range::Text("numbers of versions, such as 3, 17", no_version);
    }

    /// Where the record is, and how long it is kept.
    LedgerConfig {
        /// A database of Postgres that has the ledger, for one server or several:
        /// `postgres://USER:PASSWORD@HOST/DATABASE?sslmode=verify-full`; see docs/POSTGRES.md. Without it the ledger is
        /// a file of the data folder.
        url: Option<String> = None, Range::Any;
        /// Days after which what was asked, answered and said is deleted. Of what has taught the numbers stay: which
        /// version, what it was worth. 0 keeps all.
        keep_days: u32 = 0, whole(0..=36_500);
    }

    /// Settings of the reward: a weighted sum of terms, each left out where it is not known for an answer.
    RewardConfig {
        /// A reward model: a file for this base, as `apad reward train` writes it, or the folder of a DeBERTa-v2 or
        /// ModernBERT classifier.
        model: Option<PathBuf> = None, Range::Any;
        /// Number of new preferences and corrections after which the reward model is trained again; the new one
        /// replaces it if it ranks held-back pairs at least as well. 0 leaves it as it is.
        learn: u32 = 100, Range::Any;
        /// Weight of the reward model's score, which is centred and divided by its running standard deviation.
        model_weight: f64 = 1.0, at_least(0.0);
        /// A shell command that judges answers: reads lines `{"prompt", "response"}`, writes lines `{"score": number}`.
        command: Option<String> = None, Range::Any;
        /// A service that judges answers: gets `{"samples": [{"prompt", "response"}]}`, gives `{"scores": [numbers]}`.
        url: Option<String> = None, Range::Any;
        /// Seconds that the command or the service may take for a batch.
        external_timeout: u32 = 60, whole(1..=3600);
        /// Weight of the command's or the service's score, which is centred and divided by its running standard
        /// deviation.
        external_weight: f64 = 1.0, at_least(0.0);
        /// Weight of people's ratings, in [-1, 1].
        rating_weight: f64 = 1.0, at_least(0.0);
        /// Weight of the length term: 0 up to `reward.length_free` tokens, -1 from twice as many on.
        length_weight: f64 = 0.0, at_least(0.0);
        /// Length, in tokens, up to which an answer is not penalized.
        length_free: u32 = 256, whole(1..=1 << 24);
        /// Named signals and what each adds: `copied=0.3, regenerated=-0.3`.
        signals: String = "copied=0.3, regenerated=-0.3, abandoned=-0.3".into(), Range::Any;
        /// The sum of the terms is clipped to ± this.
        clip: f64 = 5.0, above(0.0);
        /// Number of unrated answers added to a batch and judged by the reward model alone; 0 adds none.
        unrated: u32 = 0, whole(0..=1 << 16);
        /// How many versions before the active one an answer may come from and still be trained on; older answers are
        /// left out. 0 takes all.
        staleness: u32 = 0, Range::Any;
        /// Prompts that the policy answers for the reward model to judge, when the engine is idle or on demand: a file
        /// of JSON lines, or `users` for the newest prompts of users. Unset: none.
        rollouts: Option<String> = None, Range::Any;
        /// Largest share of rollouts in a batch; the rest is live feedback, as far as there is some.
        rollout_share: f64 = 0.5, above_to(0.0, 1.0);
        /// Seconds without a request after which rollouts begin; 0 makes them on demand only.
        rollout_idle: u32 = 60, Range::Any;
        /// Score of a correction as a training sample, whose answer is the user's text, and the least advantage of its
        /// tokens; 0 trains on no correction.
        correction: f64 = 0.0, from_to(0.0, 1.0);
        /// How many pieces of feedback of one user count in a clock hour; 0 is no limit. Applies from the second user
        /// on.
        user_hourly: u32 = 120, Range::Any;
        /// Largest share of one user in a batch. Applies from the second user on.
        user_share: f64 = 0.5, above_to(0.0, 1.0);
        /// Seconds after which feedback that `reward.user_share` left out is taken all the same, the oldest first, if a
        /// batch isn't full without it: a share delays and never starves. 0 waits for other users for ever.
        user_patience: u32 = 3600, Range::Any;
        /// Seconds that feedback waits before it is used.
        quarantine: u32 = 0, Range::Any;
        /// Number of comparisons with other users' ratings of the same answers after which a user who disagrees is held
        /// for review; 0 holds nobody.
        flag_after: u32 = 10, Range::Any;
        /// Share of those comparisons that must disagree.
        flag_share: f64 = 0.6, above_to(0.0, 1.0);
    }

    /// Settings of the HTTP service.
    HttpConfig {
        /// Address and port to listen on.
        listen: String = "127.0.0.1:8372".into(),
            Range::Text("an address and a port, such as 127.0.0.1:8372", no_address);
        /// File of keys, each with a name, a scope and a hash, which `apad keys` writes; required to listen beyond
        /// loopback.
        keys: Option<PathBuf> = None, Range::Any;
        /// Largest request body, in bytes.
        body_limit: usize = 4 << 20, whole(1 << 10..=1 << 30);
        /// Largest number of connections at once. One more takes the place of the oldest one that never sent a request,
        /// or waits.
        connections: u32 = 512, whole(1..=1 << 16);
        /// Seconds within which the head or the body of a request has to arrive, and for which an idle connection is
        /// kept.
        read_seconds: u32 = 30, whole(1..=3600);
        /// Origins, separated by commas, whose pages may send requests, beside those of this machine, like
        /// `https://chat.example.org`, `https://*.example.org`, `app://obsidian.md` or `null`; `*` is all.
        origins: String = String::new(), Range::Text("origins such as https://chat.example.org, or *", no_origin);
    }
}
