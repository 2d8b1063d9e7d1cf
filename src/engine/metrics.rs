//! The engine's state in the text format that Prometheus reads. Measures nothing itself.

use std::fmt::Write;

use super::{Alert, AlertKind, Engine, Status, TrainerState};
use crate::durations::{BOUNDS_SECONDS, Durations};
use crate::ledger::Tallies;

impl Engine {
    /// The media type of [`Engine::metrics`].
    pub const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

    /// The figures of the status and counts of the record, in Prometheus's text format. The counts are missing where
    /// the record can't be read.
    pub fn metrics(&self) -> String {
        let alerts = &self.inner.alerts;
        let panics = [AlertKind::GuidePanicked, AlertKind::EmbedderPanicked].map(|kind| alerts.panics(kind));
        render(&self.status(), panics, self.inner.ledger.tallies().ok())
    }
}

/// One sample a line, each metric with its help and type.
fn render(status: &Status, [guide_panics, embedder_panics]: [u64; 2], tallies: Option<Tallies>) -> String {
    let mut page = Page(String::with_capacity(4096));
    let (t, load) = (&status.trainer, &status.load);
    page.gauge("apa_requests_running", "Requests being decoded.", load.running as f64);
    page.gauge("apa_requests_queued", "Requests waiting.", load.queued as f64);
    page.counter("apa_requests_completed_total", "Requests completed.", load.completed);
    page.counter("apa_generated_tokens_total", "Tokens generated.", load.generated_tokens);
    page.counter("apa_drafted_tokens_total", "Tokens of answers guessed ahead.", load.drafted_tokens);
    page.counter("apa_accepted_tokens_total", "Tokens guessed ahead that held.", load.accepted_tokens);
    page.counter("apa_prompt_tokens_total", "Prompt tokens evaluated.", load.prompt_tokens);
    page.counter("apa_swaps_total", "Weight swaps.", load.swaps);
    page.counter("apa_requests_refused_total", "Requests refused because the queue was full.", load.refused);
    page.gauge("apa_cache_tokens", "Tokens that the caches hold, idle prefixes included.", load.cached_tokens as f64);
    page.gauge("apa_cache_capacity_tokens", "Tokens the caches have room for.", load.cache_capacity as f64);
    page.durations("apa_first_token_seconds", "From submission to the first token.", &load.first_token);
    page.durations("apa_token_gap_seconds", "Between two tokens of an answer.", &load.gap);
    let training = "Between two tokens of an answer, while the trainer worked: what training costs serving.";
    page.durations("apa_token_gap_training_seconds", training, &load.gap_training);
    let mask = "To compute which tokens may follow in an answer that is held to a format.";
    page.durations("apa_mask_seconds", mask, &load.mask);
    if let Some(format) = status.format.measured.iter().find(|m| m.kind == status.format.kind) {
        page.gauge("apa_form_speedup", "How many times as fast as the file's own format it serves.", format.speedup);
        page.gauge(
            "apa_form_kl_nats_per_token",
            "KL of the file's own distribution to it, a token.",
            format.kl_per_token.0,
        );
    }
    page.gauge("apa_policy_version", "Version that new requests get.", status.policy_version.0 as f64);
    page.gauge("apa_serving_versions", "Versions with running requests.", load.versions.len() as f64);
    page.gauge("apa_trainer_training", "1 while a step runs.", f64::from(u8::from(t.state == TrainerState::Training)));
    page.counter("apa_trainer_seconds_total", "Seconds that the trainer worked.", t.seconds);
    let waited =
        "Seconds that the trainer's threads were ready and waited for a core, all together: what serving costs it.";
    page.counter("apa_trainer_waited_seconds_total", waited, t.waited_seconds);
    page.gauge("apa_trainer_pending_ratings", "Ratings not yet used.", t.pending_ratings as f64);
    page.counter("apa_trainer_steps_total", "Steps that published a version.", t.steps);
    page.counter("apa_trainer_skipped_total", "Steps that were skipped.", t.skipped);
    page.counter("apa_trainer_dropped_steps_total", "Optimizer steps dropped as not finite.", t.dropped_steps);
    page.counter("apa_trainer_panics_total", "Times that a bug stopped the trainer, which started again.", t.panics);
    let closed = "Panics of the threads that decode: after one the engine is closed.";
    page.counter("apa_scheduler_panics_total", closed, load.panics);
    let guided = "Answers held to a format that a bug ended.";
    page.counter("apa_guide_panics_total", guided, guide_panics);
    let embedder = "Times that a bug stopped the embedder, which starts again with the next request.";
    page.counter("apa_embedder_panics_total", embedder, embedder_panics);
    page.alerts(&status.alerts);
    if let Some(tallies) = tallies {
        page.gauge("apa_held_users", "Users whose feedback waits for review.", tallies.held_users as f64);
        page.gauge("apa_held_feedback", "Pieces of feedback that wait for review.", tallies.held_feedback as f64);
        let name = "apa_verdicts";
        let help = "Verdicts on candidates, by ruling; a trial and a proposal are not decided yet.";
        let _ = writeln!(page.0, "# HELP {name} {help}\n# TYPE {name} gauge");
        for (ruling, count) in tallies.verdicts {
            let _ = writeln!(page.0, "{name}{{ruling=\"{ruling}\"}} {count}");
        }
    }
    if let Some(last) = &t.last {
        page.gauge("apa_last_mean_reward", "Mean score of the newest batch.", last.mean_reward);
        page.gauge("apa_last_mean_length_tokens", "Mean response length of the newest batch.", last.mean_length);
        page.gauge(
            "apa_last_kl_nats_per_response",
            "KL to the initial model, k1, by response.",
            last.kl_per_response.0,
        );
        page.gauge("apa_last_kl_k3_nats_per_token", "KL to the initial model, k3, by token.", last.kl_k3_per_token.0);
        page.gauge("apa_last_policy_loss", "Policy loss of the newest batch.", last.policy_loss);
        page.gauge("apa_last_value_loss", "Value loss of the newest batch.", last.value_loss);
        page.gauge("apa_last_grad_norm", "Gradient norm before clipping.", last.grad_norm);
        page.gauge("apa_last_batch_seconds", "Wall time of the newest batch.", last.seconds);
    }
    page.0
}

struct Page(String);

impl Page {
    fn counter(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.sample(name, help, "counter", value);
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.sample(name, help, "gauge", value);
    }

    /// 1 for each active kind, 0 for the others, so that alarms can be set before one ever occurs.
    fn alerts(&mut self, alerts: &[Alert]) {
        let name = "apa_alert";
        let _ = writeln!(self.0, "# HELP {name} 1 while it holds; /health says what.\n# TYPE {name} gauge");
        for kind in AlertKind::ALL {
            let holds = u8::from(alerts.iter().any(|alert| alert.kind == kind));
            let _ = writeln!(self.0, "{name}{{kind=\"{}\"}} {holds}", kind.as_str());
        }
    }

    fn durations(&mut self, name: &str, help: &str, durations: &Durations) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} histogram");
        let bounds = BOUNDS_SECONDS.iter().map(f64::to_string).chain(["+Inf".into()]);
        let mut below = 0;
        for (bound, count) in bounds.zip(durations.counts) {
            below += count;
            let _ = writeln!(self.0, "{name}_bucket{{le=\"{bound}\"}} {below}");
        }
        let _ = writeln!(self.0, "{name}_sum {}\n{name}_count {below}", durations.sum_seconds);
    }

    fn sample(&mut self, name: &str, help: &str, kind: &str, value: impl std::fmt::Display) {
        // Writing to a String can't fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_has_a_name_and_a_number() {
        let mut status = Status::default();
        status.load.completed = 3;
        status.trainer.last = Some(crate::types::StepMetrics { grad_norm: f64::NAN, ..Default::default() });
        let verdicts = [("promoted", 2), ("refused", 0)].into();
        let page = render(&status, [2, 1], Some(Tallies { verdicts, held_users: 1, held_feedback: 3 }));
        for line in [
            "apa_requests_completed_total 3",
            "apa_guide_panics_total 2",
            "apa_held_feedback 3",
            "apa_verdicts{ruling=\"promoted\"} 2",
        ] {
            assert!(page.contains(&format!("\n{line}\n")), "{page}");
        }
        for line in page.lines().filter(|l| !l.starts_with('#')) {
            let (name, value) = line.split_once(' ').unwrap();
            assert!(name.starts_with("apa_") && value.parse::<f64>().is_ok(), "{line}");
        }
    }
}
