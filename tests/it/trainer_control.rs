//! The trainer on a tiny model: what an answer is compared with, who is credited, and how far a batch may move.

use apa::config::{Algorithm, Credit, TrainConfig};
use apa::trainer::{StepOutcome, Trainer};
use apa::types::Rollout;

use crate::support::trainer::{GO_ON, Tiny, all_rated, batch, config, step};

#[test]
fn answers_that_all_got_the_same_teach_where_a_mean_is_known() {
    let tiny = Tiny::new();
    for credit in [Credit::Token, Credit::Response] {
        let mut trainer = tiny.trainer(&TrainConfig { credit, ..config() });
        let mixed: Vec<_> = batch().into_iter().map(|r| Rollout { score: 0.3 + 0.6 * r.score, ..r }).collect();
        let first = step(&mut trainer, &mixed);
        assert!((first.baseline - 0.3).abs() < 1e-12, "{first:?}");
        let before = tiny.rewarded_logprobs(&trainer, &all_rated(1.0));
        let liked = step(&mut trainer, &all_rated(1.0));
        assert!((liked.baseline - 0.65).abs() < 1e-12, "{liked:?}");
        let after = tiny.rewarded_logprobs(&trainer, &all_rated(1.0));
        assert!(after > before + 0.1, "{credit:?}: {before} to {after}");
        let disliked = step(&mut trainer, &all_rated(-1.0));
        assert!(disliked.baseline < 0.2, "{disliked:?}");
        let later = tiny.rewarded_logprobs(&trainer, &all_rated(1.0));
        assert!(later < after, "{credit:?}: {after} to {later}");
    }
}

#[test]
fn while_the_critic_is_cold_every_token_of_an_answer_gets_the_same_credit() {
    // 60 tokens: with 0.95 a token, the first would get a twentieth of the last.
    let tiny = Tiny::new();
    let long = |score: f64, token: u32| Rollout {
        prompt: vec![60, 61],
        response: (0..60).map(|t| token + t % 2).collect(),
        score,
        ..batch().swap_remove(0)
    };
    let samples: Vec<_> = (0..6).map(|i| long(if i == 5 { -1.0 } else { 1.0 }, 100 + 2 * i)).collect();
    let gain = |trainer: &mut Trainer, tokens: std::ops::Range<usize>| {
        let part = |r: &Rollout| Rollout {
            prompt: r.prompt.iter().chain(&r.response[..tokens.start]).copied().collect(),
            response: r.response[tokens.clone()].to_vec(),
            score: 1.0,
            ..r.clone()
        };
        let parts: Vec<_> = samples[..5].iter().map(part).collect();
        let before = tiny.rewarded_logprobs(trainer, &parts);
        let metrics = step(trainer, &samples);
        assert_eq!(metrics.critic_trust, 0.0);
        tiny.rewarded_logprobs(trainer, &parts) - before
    };
    let config = TrainConfig { kl_samples: 0, ..config() };
    let first = gain(&mut tiny.trainer(&config), 0..10);
    let last = gain(&mut tiny.trainer(&config), 50..60);
    // Mostly liked: the early tokens of what was liked become likelier, about as much as the late ones.
    assert!(first > 0.0 && first > 0.2 * last, "the first ten gain {first}, the last ten {last}");
}

#[test]
fn a_critic_that_foretells_the_returns_is_believed_and_old_answers_teach_it() {
    let tiny = Tiny::new();
    let config = TrainConfig { critic_lr: 3e-3, lr: 1e-5, ..config() };
    let trust = |replay: &[Rollout]| {
        let mut trainer = tiny.trainer(&config);
        for _ in 0..8 {
            trainer.step_with(&batch(), replay, GO_ON).unwrap();
        }
        step(&mut trainer, &batch())
    };
    let (alone, reminded) = (trust(&[]), trust(&batch()));
    assert!(alone.critic_trust > 0.05 && alone.explained_variance > 0.1, "{alone:?}");
    assert!(reminded.critic_trust > alone.critic_trust, "{} and {}", reminded.critic_trust, alone.critic_trust);
}

#[test]
fn an_answer_that_is_credited_as_a_whole_moves_to_its_target_and_no_further() {
    let tiny = Tiny::new();
    let nats = 1.5;
    let (credit, kl_samples) = (Credit::Response, 0);
    let config = TrainConfig { credit, kl_samples, nats_per_reward: nats, replay: 0, critic_lr: 1e-9, ..config() };
    let mut trainer = tiny.trainer(&config);
    let moved = |trainer: &Trainer| -> Vec<f64> {
        let initial = tiny.trainer(&config);
        let logprob = |t: &Trainer, r: &Rollout| tiny.rewarded_logprobs(t, &[Rollout { score: 1.0, ..r.clone() }]);
        batch().iter().map(|r| logprob(trainer, r) - logprob(&initial, r)).collect()
    };
    for _ in 0..60 {
        step(&mut trainer, &batch());
    }
    // Scores of ±1 have a standard deviation just over 1 and the mean 0: answers of 1 to 14 tokens all move so far.
    for (moved, rollout) in moved(&trainer).iter().zip(batch()) {
        let target = nats * rollout.score;
        assert!((moved - target).abs() < 0.35, "{moved:.2} nats where {target} were asked for");
    }
}

#[test]
fn a_step_over_its_limit_is_shortened_and_the_batch_moves_no_further() {
    let tiny = Tiny::new();
    let all = TrainConfig { lr: 1e-2, kl_samples: 6, kl_step: 0.0, kl_budget: 0.0, ..config() };
    let free = step(&mut tiny.trainer(&all), &batch());
    assert!(free.kl_step.unwrap().0 > 1.0 && free.stopped.is_none() && free.steps == 4, "{free:?}");

    let held = TrainConfig { kl_step: 0.5, ..all.clone() };
    let mut trainer = tiny.trainer(&held);
    let metrics = step(&mut trainer, &batch());
    assert!(metrics.kl_step.unwrap().0 <= 0.5 && metrics.steps < 4, "{metrics:?}");
    assert!(metrics.stopped.as_ref().unwrap().contains("train.kl_step"), "{metrics:?}");
    let seen = trainer.measure(&batch(), GO_ON).unwrap().kl_exact_per_response.0;
    assert!(seen > 0.01 && seen <= 0.501, "{seen}");

    // In all: however often the batch comes again.
    let held = TrainConfig { kl_budget: 1.0, ..all };
    let mut trainer = tiny.trainer(&held);
    for _ in 0..12 {
        if let StepOutcome::Trained(metrics) = trainer.step(&batch(), GO_ON).unwrap() {
            assert!(metrics.candidate_kl_per_response.unwrap().0 <= 1.0, "{metrics:?}");
        }
    }
    assert!(trainer.measure(&batch(), GO_ON).unwrap().kl_exact_per_response.0 <= 1.001);
}

#[test]
fn ppo_s_ratio_is_to_the_policy_that_sampled() {
    let tiny = Tiny::new();
    let config = TrainConfig { algorithm: Algorithm::Ppo, kl_samples: 0, ..config() };
    let mut trainer = tiny.trainer(&config);
    for _ in 0..3 {
        step(&mut trainer, &batch());
    }
    // The answers were sampled by the initial model, three versions ago.
    let sampled = trainer.logprobs(&batch(), None, GO_ON).unwrap();
    let late: Vec<_> =
        batch().into_iter().zip(sampled).map(|(r, own)| Rollout { behavior_logprobs: Some(own), ..r }).collect();
    let dir = tiny.save(&trainer, "late");
    let told = |samples: &[Rollout]| step(&mut tiny.load(&config, &dir).unwrap(), samples);
    let (fresh, late) = (told(&batch()), told(&late));
    assert!(late.clip_fraction > fresh.clip_fraction, "{} and {}", late.clip_fraction, fresh.clip_fraction);
    // What is measured of the policy itself doesn't change.
    assert_eq!(late.kl_per_response, fresh.kl_per_response);
    let short = [Rollout { behavior_logprobs: Some(vec![0.0]), ..batch().swap_remove(0) }];
    let e = trainer.step(&short, GO_ON).unwrap_err();
    assert!(e.message().contains("1 behavior_logprobs, expected one a response token: 5"), "{e}");
}
