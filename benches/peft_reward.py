"""The reward model that `apad reward train` makes, made with PyTorch and PEFT on the same pairs, to compare the two.

Takes the JSON that `apad reward train --json` printed (its settings and the lines it held back) and the same GGUF file, which
transformers reads with the package gguf. One line of JSON goes to stdout: accuracy on the held-back pairs after each epoch, the
best, and the speed of scoring 64 answers.

    apad reward train --model M --pairs F --out r.gguf --json > train.json
    python benches/peft_reward.py --model M --pairs F --train train.json
"""

import argparse
import gzip
import json
import math
import os
import random
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoTokenizer

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WARMUP = 0.05


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the GGUF file that apad was given")
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--train", required=True, help="what apad reward train --json printed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=int, help="only so many pairs to learn from: to see that it runs")
    parser.add_argument("--speed", action="store_true", help="only measure scoring 64 answers")
    return parser.parse_args()


class Peer(torch.nn.Module):
    """A frozen base with an adapter, and a scalar read at the last token."""

    def __init__(self, source, rank, alpha):
        super().__init__()
        base = AutoModel.from_pretrained(**source, dtype=torch.bfloat16)
        lora = LoraConfig(r=rank, lora_alpha=alpha, target_modules=LINEARS)
        self.base = get_peft_model(base, lora)
        for name, weight in self.base.named_parameters():
            if "lora_" in name:
                weight.data = weight.data.float()
        self.head = torch.nn.Linear(base.config.hidden_size, 1)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, sequences):
        longest = max(len(s) for s in sequences)
        tokens = torch.tensor([s + [0] * (longest - len(s)) for s in sequences])
        mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sequences])
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.base(input_ids=tokens, attention_mask=mask).last_hidden_state
        last = torch.tensor([len(s) - 1 for s in sequences])
        return self.head(hidden[torch.arange(len(sequences)), last].float()).squeeze(-1)


def read(path, tokenizer, most):
    opener = gzip.open if path.endswith(".gz") else open
    pairs = {}
    with opener(path, "rt") as lines:
        for number, line in enumerate(lines, 1):
            row = json.loads(line)
            prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
            prompt = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            end = [tokenizer.eos_token_id]
            halves = [tokenizer(row[k], add_special_tokens=False)["input_ids"] + end for k in ("chosen", "rejected")]
            pairs[number] = [(prompt + half)[:most] for half in halves]
    return pairs


def accuracy(peer, pairs):
    right = 0.0
    with torch.no_grad():
        for pair in pairs:
            chosen, rejected = peer(pair).tolist()
            right += 1.0 if chosen > rejected else 0.5 if chosen == rejected else 0.0
    return right / len(pairs)


def speed(peer, pairs):
    answers = [half for pair in pairs[:32] for half in pair]
    answers.sort(key=len)
    seconds = []
    with torch.no_grad():
        for _ in range(4):
            started = time.perf_counter()
            for first in range(0, len(answers), 8):
                peer(answers[first : first + 8])
            seconds.append(time.perf_counter() - started)
    return {"answers": len(answers), "tokens": sum(map(len, answers)), "seconds": min(seconds[1:])}


def main():
    args = arguments()
    manifest = json.load(open(args.train))["manifest"]
    settings = manifest["settings"]
    torch.manual_seed(settings["seed"])
    torch.set_num_threads(args.threads)
    folder, name = os.path.split(os.path.abspath(args.model))
    source = {"pretrained_model_name_or_path": folder, "gguf_file": name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    pairs = read(args.pairs, tokenizer, settings["max_tokens"])
    held_lines = set(manifest["held_back"])
    refused = set(json.load(open(args.train))["refused_lines"])
    held = [pair for line, pair in pairs.items() if line in held_lines]
    train = [pair for line, pair in pairs.items() if line not in held_lines and line not in refused][: args.limit]
    peer = Peer(source, settings["rank"], settings["alpha"])
    if args.speed:
        print(json.dumps({"peer": "pytorch+peft", "speed": speed(peer, held)}))
        return
    weights = [w for w in peer.parameters() if w.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=settings["lr"], weight_decay=settings["weight_decay"])
    batch = settings["batch"]
    steps = math.ceil(len(train) / batch) * settings["epochs"]

    def rate(step):
        at = (step + 1) / steps
        return max(at / WARMUP if at < WARMUP else (1 - at) / (1 - WARMUP), 0.01)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    reached = []
    for _ in range(settings["epochs"]):
        random.Random(settings["seed"]).shuffle(train)
        for first in range(0, len(train), batch):
            chunk = train[first : first + batch]
            for pair in chunk:
                chosen, rejected = peer(pair)
                (-torch.nn.functional.logsigmoid(chosen - rejected) / len(chunk)).backward()
            torch.nn.utils.clip_grad_norm_(weights, settings["clip_norm"])
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        reached.append(accuracy(peer, held))
    print(json.dumps({
        "peer": "pytorch+peft", "pairs": len(train), "held_back": len(held), "accuracy_by_epoch": reached,
        "accuracy": max(reached), "speed": speed(peer, held),
    }))


if __name__ == "__main__":
    main()
