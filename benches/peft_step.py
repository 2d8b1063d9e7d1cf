"""The update that `apad bench train` measures, done with PyTorch and PEFT, so that the two can be compared on one machine.

Weights and tokens are random, in a shape of `scripts/random-gguf.py`: what is measured does not depend on the values. One line
of JSON goes to stdout, with the same keys as `apad bench train --json`. `scripts/bench-train.sh` and `scripts/gpu-check.sh` run
both in turns.
"""

import argparse
import json
import os
import runpy
import statistics
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

LAMBDA, GAE_LAMBDA, EPOCHS = 0.1, 0.95, 2
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SCRIPTS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "scripts")
SHAPES = runpy.run_path(os.path.join(SCRIPTS, "random-gguf.py"))["SHAPES"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in [("batch", 4), ("seq", 256), ("prompt", 64), ("updates", 3), ("threads", 2)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--shape", choices=[name for name, shape in SHAPES.items() if shape[0] == "llama"], default="smollm2")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    parser.add_argument("--dtype", choices=["bf16", "f32"], default="bf16")
    return parser.parse_args()


class Peer:
    """One frozen base; the policy and the critic are adapters on it, the critic with a scalar head."""

    def __init__(self, name, dtype, device):
        _, layers, width, heads, kv_heads, feed_forward, vocabulary, tied = SHAPES[name]
        shape = LlamaConfig(
            vocab_size=vocabulary, hidden_size=width, intermediate_size=feed_forward, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=kv_heads, tie_word_embeddings=tied, max_position_embeddings=8192,
        )
        lora = LoraConfig(r=16, lora_alpha=32, target_modules=LINEARS)
        # Made where they are used, in their type: in f32 first, an 8B would take 32 GB.
        torch.set_default_dtype(dtype)
        with torch.device(device):
            base = LlamaForCausalLM(shape)
        torch.set_default_dtype(torch.float32)
        self.model = get_peft_model(base, lora, adapter_name="policy")
        self.model.add_adapter("critic", lora)
        self.model.to(device)
        self.head = torch.nn.Linear(shape.hidden_size, 1).to(device)
        for name, weight in self.model.named_parameters():
            weight.requires_grad_("lora_" in name)
        # set_adapter below freezes the other adapter; both are trained, so the list is made before.
        trained = [w for w in self.model.parameters() if w.requires_grad] + list(self.head.parameters())
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=1e-6)
        self.vocabulary = shape.vocab_size

    def logprobs(self, tokens, prompt):
        """Of the response tokens, [batch, response], nats."""
        # Logits of the rows that predict a response token, and of no other: the head is a fifth of the work.
        rows = tokens.shape[1] - prompt + 1
        logits = self.model(input_ids=tokens, logits_to_keep=rows).logits[:, :-1].float()
        return -torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, prompt:], reduction="none")

    def values(self, tokens, prompt):
        """Before each response token, [batch, response]."""
        hidden = self.model.base_model.model.model(input_ids=tokens).last_hidden_state
        return self.head(hidden[:, prompt - 1 : -1].float()).squeeze(-1)

    def update(self, tokens, prompt):
        with torch.no_grad():
            with self.model.disable_adapter():
                ref_logprobs = self.logprobs(tokens, prompt)
            self.model.set_adapter("critic")
            old_values = self.values(tokens, prompt)
        rewards = torch.zeros_like(old_values)
        rewards[:, -1] = torch.arange(tokens.shape[0], device=tokens.device)
        advantages = gae(rewards, old_values)
        returns = advantages + old_values
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        for _ in range(EPOCHS):
            self.model.set_adapter("policy")
            (self.logprobs(tokens, prompt) - ref_logprobs - advantages / LAMBDA).square().mean().backward()
            self.model.set_adapter("critic")
            (0.5 * (self.values(tokens, prompt) - returns).square().mean()).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()


def gae(rewards, values):
    """Generalized advantage estimation without discount, [batch, time]."""
    deltas = rewards - values
    deltas[:, :-1] += values[:, 1:]
    advantages, following = torch.empty_like(deltas), torch.zeros(deltas.shape[0], device=deltas.device)
    for t in reversed(range(deltas.shape[1])):
        following = deltas[:, t] + GAE_LAMBDA * following
        advantages[:, t] = following
    return advantages


def peak_memory_mb():
    """Most memory that this process ever had resident, in MiB."""
    with open("/proc/self/status") as status:
        kib = next(line.split()[1] for line in status if line.startswith("VmHWM:"))
    return int(kib) // 1024


def main():
    args = arguments()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    peer = Peer(args.shape, torch.bfloat16 if args.dtype == "bf16" else torch.float32, args.device)
    on_gpu = args.device != "cpu"
    walls = []
    for _ in range(args.updates):
        tokens = torch.randint(0, peer.vocabulary, (args.batch, args.seq), device=args.device)
        started = time.perf_counter()
        peer.update(tokens, args.prompt)
        if on_gpu:
            torch.cuda.synchronize()
        walls.append(time.perf_counter() - started)
    wall = statistics.median(walls[1:] or walls)
    print(json.dumps({
        "peer": "pytorch+peft", "device": args.device, "dtype": args.dtype, "batch": args.batch, "seq": args.seq, "epochs": EPOCHS,
        "threads": args.threads, "tokens_per_second": round(args.batch * args.seq * EPOCHS / wall, 1),
        "update_seconds": round(wall, 2), "peak_rss_mb": peak_memory_mb(),
    }))


if __name__ == "__main__":
    main()
