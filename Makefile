# The whole project in two commands: `make demo` and `make test`. Both set up what they need and start at once the next time.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test build setup header bench-train bench-promotion bench-reward bench-feedback bench-postgres bench-align check-control check-credit check-collapse bench-serve bench-beside bench-size check-cuda test-cuda gpu-kit check-transformers check-tinker test-swaps dist deb test-dist install fuzz loom memcheck docs

# rustup installs here, and a shell that was open before doesn't know it yet.
export PATH := $(HOME)/.cargo/bin:$(PATH)
export CARGO_TARGET_DIR ?= $(CURDIR)/target

PREFIX ?= /usr/local
export PREFIX
export DESTDIR ?=
ARCH ?= x86_64
KILLS ?= 1000
DIST ?= $(CURDIR)/dist/$(ARCH)

MODEL ?= smollm2-135m-instruct
APAD := $(CARGO_TARGET_DIR)/release/apad
# nextest gives every test its own process and tells how long each took; plain cargo runs the same tests.
TESTS := $(shell PATH="$(HOME)/.cargo/bin:$$PATH"; command -v cargo-nextest >/dev/null && echo nextest run || echo test)

help: ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):[^#]*## (.*)/make \1\t\2/' | expand -t 20

demo: build ## the whole loop on a real model with simulated users; ARGS="--seed 2 --out DIR" goes to apad demo
	"$(APAD)" demo --model "$(MODEL)" $(ARGS)

test: TOOLS := test
test: build ## format, lints, and every test, those on the real model included
	cargo fmt --check
	cargo clippy --release --locked --all-targets -- -D warnings
	APA_TEST_MODEL="$$("$(APAD)" pull "$(MODEL)")" cargo $(TESTS) --release --locked

build: setup ## the library (rlib, shared, static) and apad, in target/release
	cargo build --release --locked

setup: ## the tools of the build
	@scripts/setup.sh $(TOOLS)

fuzz: setup ## fuzzes what takes bytes, ten minutes each; MINUTES=1 ARGS="request gguf"
	scripts/fuzz.sh $(ARGS)

loom: setup ## every order in which threads can use the registry of handles
	cd tests/loom && RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR="$(CURDIR)/tests/loom/target" cargo test --release --locked

memcheck: TOOLS := test
memcheck: setup ## the C cases under valgrind, with a library built for an older processor
	RUSTFLAGS="-C target-cpu=x86-64-v3" CARGO_TARGET_DIR="$(CARGO_TARGET_DIR)/memcheck" cargo build --release --locked --lib --no-default-features
	APA_MEMCHECK_LIB="$(CARGO_TARGET_DIR)/memcheck/release/libapa.so" cargo test --release --locked --test it memcheck -- --ignored

dist: setup ## a release for many machines, in dist/: it takes the kernels that fit when it starts; an hour; ARCH=aarch64
	ARCH="$(ARCH)" LEVELS="$(LEVELS)" scripts/dist.sh "$(DIST)"

deb: dist ## a Debian package of it, in target/debian: unit, user, settings
	command -v cargo-deb >/dev/null || cargo install --locked cargo-deb
	rm -rf dist/deb
	cd "$(DIST)"/libapa-*-linux && for file in bin/apad lib/apa/*/apad; do install -D "$$file" "$(CURDIR)/dist/deb/$$file"; done
	cargo deb --no-build --no-strip --output target/debian/

test-dist: setup ## that release under qemu, on the least processor that it is for and on one below; ARCH=aarch64
	APA_DIST="$$(echo "$(DIST)"/libapa-*-linux)" APA_DIST_ARCH="$(ARCH)" cargo test --release --locked --test it a_release_runs -- --ignored --nocapture

dist test-dist: TOOLS := dist

install: build ## library, headers, pkg-config, CMake package and apad, to PREFIX (/usr/local), under DESTDIR
	scripts/install.sh "$(CARGO_TARGET_DIR)/release"

bench-train: build ## the trainer against PyTorch and PEFT, in turns; ARGS="--batch 8 --seq 512" goes to both
	MODEL="$$("$(APAD)" pull "$(MODEL)")" APAD="$(APAD)" scripts/bench-train.sh $(ARGS)

bench-align: build ## the algorithms at equal KL, each tuned by a search; days on two cores, goes on when started again; see the script
	MODEL="$$("$(APAD)" pull "$(MODEL)")" APAD="$(APAD)" scripts/bench-align.py

check-control: build ## learning by default under skewed and noisy thumbs, ten seeds of 200 batches: no seed may end worse than it began; a day on two cores, goes on when started again
	MODEL="$$("$(APAD)" pull "$(MODEL)")" APAD="$(APAD)" OUT="$${OUT:-runs/control}" STEPS="$${STEPS:-200}" SEEDS="$${SEEDS:-1,2,3,4,5,6,7,8,9,10}" scripts/bench-align.py control

check-collapse: build ## candidates that training without limits led astray, judged as the daemon does: none may pass; half an hour, SEEDS="1 2 3", STEPS=30
	MODEL="$$("$(APAD)" pull "$(MODEL)")" APAD="$(APAD)" scripts/check-collapse.sh

check-credit: setup ## long answers whose first ten tokens earn the reward: what is learned, and whether length drifts; minutes
	cargo test --release --locked --test it measure_credit -- --ignored --nocapture

test-swaps: build ## a thousand swaps under eight streams
	APA_SWAPS=1000 cargo test --release --locked --test it many_swaps -- --nocapture

bench-serve: build ## serving against llama-server, in turns; LORA=1 with an adapter; ARGS="--streams 1,8" goes to apad bench serve
	MODEL="$$("$(APAD)" pull "$(MODEL)")" APAD="$(APAD)" scripts/bench-serve.sh $(ARGS)

bench-beside: build ## gaps between tokens with and without training beside them, and what serving costs a training step
	MODEL="$$("$(APAD)" pull "$(MODEL)")" APAD="$(APAD)" scripts/bench-beside.sh $(ARGS)

bench-size: build ## the memory of serving and one update of 4 x 256 tokens; MODEL=FILE, SETS="train.weights=quantized; serve.repack=false"
	MODEL="$$([ -f "$(MODEL)" ] && echo "$(MODEL)" || "$(APAD)" pull "$(MODEL)")" SETS="$(SETS)" APAD="$(APAD)" scripts/bench-size.sh $(ARGS)

bench-promotion: build ## trials of candidates of a known effect by users that are made up, two minutes; ARGS="--seed 1" goes to apad bench promotion
	"$(APAD)" bench promotion $(ARGS)

bench-reward: build ## a reward model against PyTorch and PEFT; PAIRS=FILE, LIMIT=1000, SPEED=1, ARGS="--epochs 3"
	MODEL="$$("$(APAD)" pull "$(MODEL)")" PAIRS="$(PAIRS)" LIMIT="$(LIMIT)" SPEED="$(SPEED)" APAD="$(APAD)" scripts/bench-reward.sh $(ARGS)

bench-feedback: setup ## durable feedback of 16 clients, a million generations, KILLS=1000 kills of the ledger and of the daemon
	cargo test --release --locked --lib ledger::process_tests::measure_ -- --ignored --nocapture --test-threads 1
	cargo test --release --locked --test it measure_feedback -- --ignored --nocapture
	APA_KILL_ROUNDS=$(KILLS) cargo test --release --locked --lib a_killed_process -- --nocapture
	APA_KILL_ROUNDS=$(KILLS) cargo test --release --locked --test it a_killed_daemon -- --nocapture

bench-postgres: setup ## the ledger in Postgres: durable feedback of four servers, KILLS=100 kills of servers, trainer and Postgres; needs Debian's package postgresql
	cargo test --release --locked --lib measure_durable_feedback_of_four_servers -- --ignored --nocapture
	APA_KILL_ROUNDS=$(KILLS) cargo test --release --locked --lib -- --nocapture --test-threads 1 whoever_is_killed a_postgres_that_is_killed

bench-postgres: KILLS := 100

check-cuda: setup ## compiles the trainer for CUDA with its kernels; needs no GPU, installs the compiler from PyPI
	scripts/check-cuda.sh

test-cuda: setup ## trains on a CUDA device that is emulated on the CPU, and compares; needs no GPU and no toolkit
	scripts/emulate-cuda.sh --check
	APA_TEST_DEVICE=cuda:0 scripts/emulate-cuda.sh cargo test --release --locked --features train-cuda --lib -- policy::ops policy::tests
	APA_TEST_DEVICE=cuda:0 scripts/emulate-cuda.sh cargo test --release --locked --features train-cuda --test it -- cuda:: trainer:: golden::

gpu-kit: setup ## what scripts/gpu-check.sh needs on a machine with a GPU, built without one, in gpu-kit/; SERVE=0 leaves serving on the card out
	scripts/gpu-kit.sh

check-transformers: build ## both engines against PyPI's transformers, each architecture, with and without an adapter; a minute; ARGS="gptj llama"
	APAD="$(APAD)" scripts/check-transformers.sh $(ARGS)

check-tinker: setup ## training on a Tinker server: SkyRL of PyPI on the CPU, against PyTorch and candle; minutes; ARGS="losses step"
	scripts/check-tinker.sh $(ARGS)

docs: build ## writes docs/CONFIG.md and docs/HTTP.md anew after a change of the settings or of the API
	"$(APAD)" config --markdown > docs/CONFIG.md
	APA_UPDATE_HTTP=1 cargo test --release --locked --test it the_document_of_the_api_is_current

header: setup ## writes include/apa.h anew after a change of the C API
	APA_UPDATE_HEADER=1 cargo test --release --locked --test it header_is_current
