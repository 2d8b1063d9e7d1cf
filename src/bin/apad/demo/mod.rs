//! The whole loop on a real model with simulated users: serve, rate, train, publish, and a report of what came of it.

mod page;
mod prompts;
mod report;
mod taste;
