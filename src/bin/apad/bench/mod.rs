//! `apad bench`: measures the parts as they are really used. Never tunes or fakes them.

mod promotion;
mod score;
mod serve;
mod train;

use anyhow::Result;
use clap::{Args, Subcommand};

/// Measure speed and memory on this machine
#[derive(Args)]
#[command(after_help = "Examples:\n  apad bench serve --url http://127.0.0.1:8372\n  \
        apad bench train --model smollm2-135m-instruct")]
pub struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Promotion(promotion::Options),
    Score(score::Options),
    Serve(serve::Options),
    Train(train::Options),
}

pub async fn run(options: Options) -> Result<()> {
    match options.what {
        What::Promotion(options) => promotion::run(options).await,
        What::Score(options) => score::run(options).await,
        What::Serve(options) => serve::run(options).await,
        What::Train(options) => train::run(options).await,
    }
}
