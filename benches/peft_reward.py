"""The reward model that `apad reward train` makes, made with PyTorch and PEFT on the same pairs, to compare the two.

Takes the JSON that `apad reward train --json` printed (its settings and the lines it held back to choose its weights by), the same
GGUF file, which transformers reads with the package gguf, and pairs that neither side saw. One line of JSON goes to stdout: loss
on the held-back pairs and accuracy on the unseen ones after each look, and the accuracy of the weights with the best loss.
With --speed alone it only measures scoring.

    apad reward train --model M --pairs train.jsonl --out r.gguf --json > train.json
    python benches/peft_reward.py --model M --pairs train.jsonl --test test.jsonl --train train.json
    python benches/peft_reward.py --model M --pairs test.jsonl --speed
"""

import argparse
import gzip
import json
import math
import os
import random
import statistics
import sys
import time

import torch
from peft import LoraConfig, get_peft_model
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModel, AutoTokenizer, GgufConfig

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WARMUP = 0.05


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the GGUF file that apad was given")
    parser.add_argument("--pairs", required=True, help="to learn from, or with --speed to score")
    parser.add_argument("--test", help="pairs that nobody saw")
    parser.add_argument("--train", help="what apad reward train --json printed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=int, help="only so many pairs to learn from: to see that it runs")
    parser.add_argument("--speed", action="store_true", help="only measure scoring 64 answers")
    parser.add_argument("--answers", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rank", type=int, default=16, help="of the adapter whose speed is measured")
    return parser.parse_args()


class Peer(torch.nn.Module):
    """A frozen base with an adapter, and a scalar read at the last token."""

    def __init__(self, source, rank, alpha):
        super().__init__()
        # Packed weights would be slower: transformers unpacks them for every product.
        plain = GgufConfig(dequantize=True)
        base = AutoModel.from_pretrained(**source, dtype=torch.bfloat16, quantization_config=plain)
        assert base.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
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


def measure(peer, pairs):
    """Accuracy, a tie counts half, and mean loss."""
    right, loss = 0.0, 0.0
    with torch.no_grad():
        for pair in pairs:
            chosen, rejected = peer(pair).tolist()
            right += 1.0 if chosen > rejected else 0.5 if chosen == rejected else 0.0
            loss += math.log1p(math.exp(-abs(chosen - rejected))) + max(rejected - chosen, 0.0)
    return right / len(pairs), loss / len(pairs)


def speed(peer, pairs, args):
    """Each round's time to score the answers: sorted by length, in batches, the adapter beside the weights or merged into them."""
    answers = [half for pair in pairs[: args.answers // 2] for half in pair]
    answers.sort(key=len)
    best = {}
    with torch.no_grad():
        for merged in False, True:
            if merged:
                # As fast as PyTorch can be: plain bf16 layers, no autocast.
                peer.base = peer.base.merge_and_unload().to(torch.bfloat16)
            for batch in 4, 8, 16, 64:
                seconds = []
                for _ in range(args.rounds + 1):
                    started = time.perf_counter()
                    for first in range(0, len(answers), batch):
                        peer(answers[first : first + batch])
                    seconds.append(time.perf_counter() - started)
                best[f"{'merged' if merged else 'adapter'}, batch {batch}"] = statistics.median(seconds[1:])
    fastest = min(best, key=best.get)
    return {
        "peer": "pytorch+peft", "answers": len(answers), "tokens": sum(map(len, answers)), "seconds": best[fastest],
        "fastest": fastest, "all": best,
    }


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    folder, name = os.path.split(os.path.abspath(args.model))
    source = {"pretrained_model_name_or_path": folder, "gguf_file": name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # The file says "smollm" of this: digits one by one. transformers doesn't read it, and then splits line ends before digits otherwise.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    if args.speed:
        pairs = list(read(args.pairs, tokenizer, 1024).values())
        print(json.dumps(speed(Peer(source, args.rank, 2 * args.rank).eval(), pairs, args)))
        return
    made = json.load(open(args.train))
    settings, held_lines, refused = made["manifest"]["settings"], set(made["manifest"]["held_back"]), set(made["refused_lines"])
    torch.manual_seed(settings["seed"])
    pairs = read(args.pairs, tokenizer, settings["max_tokens"])
    unseen = list(read(args.test, tokenizer, settings["max_tokens"]).values())
    held = [pair for line, pair in pairs.items() if line in held_lines]
    train = [pair for line, pair in pairs.items() if line not in held_lines and line not in refused][: args.limit]
    peer = Peer(source, settings["rank"], settings["alpha"])
    weights = [w for w in peer.parameters() if w.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=settings["lr"], weight_decay=settings["weight_decay"])
    batch = settings["batch"]
    epoch = math.ceil(len(train) / batch)
    steps = epoch * settings["epochs"]

    def rate(step):
        at = (step + 1) / steps
        return max(at / WARMUP if at < WARMUP else (1 - at) / (1 - WARMUP), 0.01)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    looks, step = [], 0
    every = math.ceil(epoch / settings["evaluations"])
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
            step += 1
            within = step % epoch
            if within == 0 or within % every == 0:
                loss = measure(peer, held)[1]
                # Only a look that may be the best is worth the unseen pairs.
                seen = measure(peer, unseen)[0] if not looks or loss < min(look["loss"] for look in looks) else None
                looks.append({"step": step, "loss": loss, "accuracy": seen})
                print(json.dumps(looks[-1]), file=sys.stderr)
    best = min(looks, key=lambda look: look["loss"])
    print(json.dumps({
        "peer": "pytorch+peft", "trained_pairs": len(train), "held_back": len(held), "pairs": len(unseen), "looks": looks,
        "accuracy": best["accuracy"],
    }))


if __name__ == "__main__":
    main()
