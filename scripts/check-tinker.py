#!/usr/bin/env python3
"""Checks training on a Tinker server against a real one: SkyRL's of PyPI, with its JAX back end, on the CPU of this machine.

A tiny random Qwen3 is made by transformers, served by SkyRL from its folder, and written as GGUF. Then

    losses     which way of asking gives exactly our own gradient d loss / d logprob? Each is compared with PyTorch's automatic
               differentiation, of the same weights and the same adapter, by its cosine and its scale
    step       an APA step on the server and one in candle, from the same adapter, and the log-probabilities after it; and a
               server that is killed in mid-step: tests of this project, which are told where the server is

Arguments: which of them, both if none. CARGO names the program that builds and runs the test. Ends with 1 if what is ours differs.
"""

import argparse
import contextlib
import http.server
import importlib.util
import io
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
RANK, ALPHA, SEED = 4, 32, 5
# Lengths of prompts and responses, unlike each other, so that a mean over one of them shows.
SAMPLES = [(5, 7), (3, 20), (9, 2), (1, 12)]


# The server.

def plain_types():
    """Before Python 3.12 pydantic takes no TypedDict of `typing`, which SkyRL's types are."""
    import typing
    import typing_extensions

    typing.TypedDict = typing_extensions.TypedDict


def engine():
    plain_types()
    from skyrl.tinker.engine import main

    main()


def serve(port, model, folder):
    """SkyRL's API and engine. Its own way to start the engine wants `uv run`, which is left out here."""
    plain_types()
    import uvicorn
    from skyrl.tinker import api
    from skyrl.tinker.config import EngineConfig, config_to_argv

    api._build_uv_run_cmd_engine = lambda _parent, config: [
        sys.executable, __file__, *config_to_argv(config), "--engine"]
    api.app.state.engine_config = EngineConfig(
        base_model=model, backend="jax", backend_config={"max_lora_adapters": 6, "max_lora_rank": 8},
        checkpoints_base=f"{folder}/checkpoints", database_url=f"sqlite:///{folder}/tinker.db")
    uvicorn.run(api.app, host="127.0.0.1", port=port, log_level="warning")


class Server:
    """A running server. What it has on disk outlives it, so that it can be started anew."""

    def __init__(self, model, folder):
        self.model, self.folder, self.log = model, folder, folder / "server.log"
        self.port = free_port()
        self.client = Client(f"http://127.0.0.1:{self.port}")

    def start(self):
        with open(self.log, "ab") as log:
            # In a session of its own, with the engine that it starts.
            self.process = subprocess.Popen(
                [sys.executable, __file__, "--serve", str(self.port), str(self.model), str(self.folder)],
                stdout=log, stderr=log, start_new_session=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
        for _ in range(600):
            if self.process.poll() is not None:
                raise SystemExit(f"the server ended:\n{self.log.read_text()[-4000:]}")
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                return self.client.get("/api/v1/healthz")
            time.sleep(0.5)
        raise SystemExit("the server does not answer")

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def kill_after(self, words):
        """Kills it once it logs these words, and starts it anew."""
        seen = self.log.stat().st_size
        for _ in range(6000):
            with open(self.log, "rb") as log:
                log.seek(seen)
                if words.encode() in log.read():
                    break
            time.sleep(0.05)
        self.kill()
        self.start()


@contextlib.contextmanager
def server(model, folder):
    """A server that ends with this block."""
    running = Server(model, folder)
    try:
        running.start()
        yield running
    finally:
        running.kill()


@contextlib.contextmanager
def control(running):
    """An address at which `GET /WORDS` kills the server once it logs these words, and starts it anew."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            running.kill_after(self.path[1:])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    service = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=service.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{service.server_port}"
    finally:
        service.shutdown()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Client:
    def __init__(self, url):
        self.url = url

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=600) as reply:
            return reply.read()

    def post(self, path, body):
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=600) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{path}: {error.code} {error.read().decode()[:2000]}") from error

    def do(self, what, body):
        """Posts, and waits for what comes of it."""
        return self.post("/api/v1/retrieve_future", {"request_id": self.post(f"/api/v1/{what}", body)["request_id"]})

    def model(self, base):
        session = self.post("/api/v1/create_session", {"tags": [], "user_metadata": None, "sdk_version": "0.38.0"})
        body = {"session_id": session["session_id"], "base_model": base, "lora_config": {"rank": RANK, "seed": SEED}}
        made = self.post("/api/v1/create_model", body)
        self.post("/api/v1/retrieve_future", {"request_id": made["request_id"]})
        return made["model_id"]

    def adapter(self, model, name, folder):
        self.do("save_weights_for_sampler", {"model_id": model, "path": name})
        archive = self.get(f"/api/v1/training_runs/{model}/checkpoints/{name}/archive")
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(folder, filter="data")
        return folder


# Ways of asking: each gives the lists of a sample from its gradients and log-probabilities.

def tensor(values, kind="float32"):
    return {"data": values, "dtype": kind, "shape": [len(values)]}


def datum(sample, **lists):
    """A sample as the server reads it: all its tokens, each but the last predicting the next one, and the last one any."""
    prompt, response = sample
    targets = (prompt + response)[1:] + [0]
    lists = {name: tensor([0.0] * (len(prompt) - 1) + values + [last]) for name, (values, last) in lists.items()}
    return {"model_input": {"chunks": [{"type": "encoded_text", "tokens": prompt + response}]},
            "loss_fn_inputs": {"target_tokens": tensor(targets, "int64"), **lists}}


def weights_of_cross_entropy(sample, gradient, logprobs, count, longest):
    return "cross_entropy", datum(sample, weights=([-g for g in gradient], 0.0))


def advantages_alone(sample, gradient, logprobs, count, longest):
    return "importance_sampling", datum(sample, logprobs=(logprobs, 0.0), advantages=([-g for g in gradient], 0.0))


def advantages_of_equal_weight(sample, gradient, logprobs, count, longest):
    """The weights of every sample have the same sum: what is missing lies on the last token, whose advantage is 0."""
    scale = count * longest
    return "importance_sampling", datum(
        sample, logprobs=(logprobs, 0.0), advantages=([-g * scale for g in gradient], 0.0),
        weights=([1.0] * len(gradient), float(longest - len(gradient))))


WAYS = [weights_of_cross_entropy, advantages_alone, advantages_of_equal_weight]


def losses(client, base, folder):
    import numpy
    import peft
    import safetensors.torch
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    generator = numpy.random.default_rng(3)
    draw = lambda n: generator.integers(0, 258, n).tolist()
    samples = [(draw(p), draw(r)) for p, r in SAMPLES]
    # Of both signs, as a squared distance has them.
    gradients = [(generator.standard_normal(len(r)) / (len(SAMPLES) * len(r))).tolist() for _, r in samples]
    agreed = True

    def adapted(path):
        config = json.loads((path / "adapter_config.json").read_text())
        if (config["r"], config["lora_alpha"]) != (RANK, ALPHA):
            raise SystemExit(f"the server's adapter has rank {config['r']} and alpha {config['lora_alpha']}")
        model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        options = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, options)
        tensors = safetensors.torch.load_file(path / "adapter_model.safetensors")
        missing = peft.set_peft_model_state_dict(model, tensors)
        if missing.unexpected_keys:
            raise SystemExit(f"PEFT doesn't know {missing.unexpected_keys}")
        return model.train(False)

    def right(model):
        """Log-probabilities, and the gradient that the given d loss / d logprob has."""
        model.zero_grad()
        found, loss = [], 0.0
        for (prompt, response), gradient in zip(samples, gradients, strict=True):
            ids = torch.tensor([prompt + response])
            logprobs = model(input_ids=ids).logits[0, len(prompt) - 1:-1].log_softmax(-1)
            logprobs = logprobs.gather(1, torch.tensor(response)[:, None])[:, 0]
            found.append(logprobs.tolist())
            loss = loss + (logprobs * torch.tensor(gradient)).sum()
        loss.backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        # SkyRL has one A for query, key and value, and one for gate and up: PEFT's copies move by the sum of theirs.
        for names in shared(model):
            total = sum(grads[n] for n in names)
            grads |= {n: total for n in names}
        return found, grads

    def shared(model):
        groups = {}
        for name, value in model.named_parameters():
            if "lora_A" in name:
                groups.setdefault(value.detach().numpy().tobytes(), []).append(name)
        return groups.values()

    print(f"{'way of asking':30}{'cosine':>12}{'scale':>12}")
    for way in WAYS:
        model = client.model(base)
        # B is 0 at first, and then A has no gradient; a step that is large enough makes both matter.
        def ask(logprobs):
            asked = [way(s, g, l, len(samples), 32) for s, g, l in zip(samples, gradients, logprobs, strict=True)]
            return {"data": [d for _, d in asked], "loss_fn": asked[0][0]}

        def forward():
            data = [datum(s, weights=([1.0] * len(s[1]), 0.0)) for s in samples]
            done = client.do("forward", {"model_id": model, "forward_input": {"data": data, "loss_fn": "cross_entropy"}})
            outputs = [o["logprobs"]["data"] for o in done["loss_fn_outputs"]]
            return [o[len(p) - 1:len(p) - 1 + len(r)] for o, (p, r) in zip(outputs, samples, strict=True)]

        def step(lr, betas, eps):
            client.do("forward_backward", {"model_id": model, "forward_backward_input": ask(forward())})
            adam = {"learning_rate": lr, "beta1": betas, "beta2": betas, "eps": eps, "weight_decay": 0.0}
            return client.do("optim_step", {"model_id": model, "adam_params": adam})

        step(0.02, 0.0, 1e-12)
        before = adapted(client.adapter(model, "before", folder / f"{way.__name__}-before"))
        found, grads = right(before)
        gap = max(abs(a - b) for x, y in zip(found, forward(), strict=True) for a, b in zip(x, y, strict=True))
        # With both betas 0 and an eps that dwarfs the gradient, AdamW's step is the gradient, times lr / eps.
        large = 1e6
        step(large, 0.0, large)
        after = adapted(client.adapter(model, "after", folder / f"{way.__name__}-after"))
        moved = dict(after.named_parameters())
        ours, theirs = [], []
        for name, value in before.named_parameters():
            if name in grads:
                ours.append(grads[name].flatten())
                theirs.append((value - moved[name]).detach().flatten())
        ours, theirs = torch.cat(ours).double(), torch.cat(theirs).double()
        cosine = float(ours @ theirs / ours.norm() / theirs.norm())
        scale = float(theirs.norm() / ours.norm())
        print(f"{way.__name__:30}{cosine:12.7f}{scale:12.4g}   log-probabilities within {gap:.1e}", flush=True)
        if way is advantages_of_equal_weight:
            agreed = cosine > 1 - 1e-5 and abs(scale - 1) < 1e-3 and gap < 1e-4
    return agreed


def step(running, gguf):
    cargo = [os.environ.get("CARGO", "cargo"), "test", "--release", "--locked", "--test", "it", "--"]
    test = cargo + ["--ignored", "--nocapture", "--test-threads", "1", "tinker::"]
    with control(running) as address:
        told = {"APA_TINKER_URL": running.client.url, "APA_TINKER_GGUF": str(gguf), "APA_TINKER_CONTROL": address}
        return subprocess.run(test, env={**os.environ, **told}, cwd=HERE.parent).returncode == 0


def made(folder):
    """The model's folder for SkyRL, and its GGUF."""
    spec = importlib.util.spec_from_file_location("check_transformers", HERE / "check-transformers.py")
    models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    import tokenizers
    import transformers

    transformers.logging.disable_progress_bar()
    case = dict(models.cases())["qwen3"]
    model = case.make(seed=7).float()
    model.config.architectures = ["Qwen3ForCausalLM"]
    base = folder / "base"
    model.save_pretrained(base)
    names = models.tokens() + [f"[PAD{i}]" for i in range(258, models.VOCABULARY)]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE({name: i for i, name in enumerate(names)}, [("t", "h")]))
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(base)
    models.write_gguf(case, model, folder / "base.gguf")
    return base, folder / "base.gguf"


def main():
    if sys.argv[1:2] == ["--serve"]:
        return serve(int(sys.argv[2]), sys.argv[3], sys.argv[4])
    if sys.argv[-1:] == ["--engine"]:
        del sys.argv[-1]
        return engine()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=[[], "losses", "step"])
    wanted = parser.parse_args().what or ["losses", "step"]
    agreed = True
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        base, gguf = made(folder)
        with server(base, folder) as running:
            if "losses" in wanted:
                agreed &= losses(running.client, str(base), folder)
            if "step" in wanted:
                agreed &= step(running, gguf)
    sys.exit(0 if agreed else 1)


if __name__ == "__main__":
    main()
