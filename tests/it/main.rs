//! The one integration binary: the crate as its users see it.

mod architectures;
mod backup;
#[cfg(all(feature = "daemon", feature = "postgres"))]
mod behind_nginx;
#[cfg(feature = "daemon")]
mod chat;
#[cfg(feature = "daemon")]
mod cli;
#[cfg(feature = "daemon")]
mod clients;
mod collapsed;
mod conformance;
#[cfg(feature = "daemon")]
mod convert;
#[cfg(feature = "daemon")]
mod credit;
#[cfg(feature = "train-cuda")]
mod cuda;
#[cfg(feature = "daemon")]
mod demo;
mod dialects;
mod doctor;
mod engine;
#[cfg(feature = "daemon")]
mod events;
mod exchange;
#[cfg(feature = "daemon")]
mod export;
mod features;
mod feedback_http;
mod ffi;
mod ffi_engine;
mod ffi_learn;
#[cfg(feature = "postgres")]
mod following;
mod full_disk;
mod go;
mod golden;
mod http;
mod http_keys;
mod http_limits;
mod install;
#[cfg(feature = "daemon")]
mod killed;
mod logprobs;
mod memory;
mod node;
mod object_store;
mod packaging;
#[cfg(feature = "daemon")]
mod page;
mod panics;
mod promotion;
#[cfg(feature = "daemon")]
mod properties;
mod pull;
mod python;
mod queue;
mod recovery;
mod requests;
#[cfg(feature = "daemon")]
mod reward;
mod reward_classifier;
mod reward_loop;
mod setbacks;
mod speculation;
mod split;
#[path = "../support/mod.rs"]
mod support;
mod swaps;
mod tidy;
#[cfg(feature = "daemon")]
mod tinker;
mod tools;
#[cfg(feature = "daemon")]
mod train;
mod trainer;
mod trainer_control;
mod transfer;
mod trial;
mod unlearn;
#[cfg(feature = "daemon")]
mod unlearn_daemon;
mod upkeep;
#[cfg(feature = "daemon")]
mod versions_by_name;
mod waiting;
mod watch;
