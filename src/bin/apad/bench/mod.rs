//! `apad bench`: measures the parts as they are used. Never tunes or fakes what it measures.

mod train;

use anyhow::Result;
use clap::{Args, Subcommand};

/// Measure speed and memory on this machine
#[derive(Args)]
#[command(after_help = "Example:\n  apad bench train --model smollm2-135m-instruct")]
pub struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Train(train::Options),
}

pub async fn run(options: Options) -> Result<()> {
    match options.what {
        What::Train(options) => train::run(options).await,
    }
}
