#!/usr/bin/env python3
"""Compares what this project computes with transformers, on small random models of each architecture that is trained.

Each model is made by transformers and written as GGUF: GPT-J by `apad convert gptj`, the others here, in the row order that
llama.cpp expects (that of its convert_hf_to_gguf.py). Then the log-probabilities of a few sequences are compared, by both
engines of `apad logprobs`: candle, which trains, and llama.cpp, which serves. Again with a random adapter that PEFT wrote and
`apad export --gguf` read, and once more with that adapter as `apad export --peft` writes it, read by PEFT.

Nothing may differ by more than 1e-4 nats, but where a model asks for the exact GELU (Pythia), by 1e-3: both engines compute it
by its tanh form, as llama.cpp does for every gptneox. And ggml looks GELU up in a table of 16-bit floats: where a model has GELU, llama.cpp
is compared with a transformers whose GELU is that table, and by the mean, since sums in another order now and then fall on the
other side of a rounding. The row above it says how far the table itself is from GELU.

Arguments: architectures, all if none. APAD names the program, THREADS how many threads PyTorch takes. Ends with 1 if anything
is too far.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import gguf
import numpy
import peft
import torch
import transformers

BOUND, OF_EXACT_GELU = 1e-4, 1e-3
VOCABULARY, WIDTH, LAYERS, HEADS, KV_HEADS, INNER, CONTEXT = 320, 64, 2, 4, 2, 128, 512
LENGTHS = (9, 40, 120)
RANK, ALPHA = 4, 12

torch.set_num_threads(int(os.environ.get("THREADS", "2")))


def fill(model, seed):
    """Random weights that keep activations of order one, norms and biases that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.rand(value.shape, generator=generator) * 2 - 1
            if value.dim() > 1:
                value.copy_(noise * (3 / value.shape[-1]) ** 0.5)
            else:
                # Gemma's norms multiply by one more than their weight.
                middle = 1.0 if "norm" in name.lower() or "ln_" in name else 0.0
                middle = 0.0 if name.endswith("bias") or "gemma" in type(model).__name__.lower() else middle
                value.copy_(middle + noise * 0.3)
    return model.eval()


def gelu_of_a_table(x):
    """ggml's GELU on the CPU: argument and value are 16-bit floats, and beyond 10 it is the identity or nothing."""
    value = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
    return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, value))


# How each architecture is made, and how its tensors are named. A rule takes the weight to the one that llama.cpp expects.

def as_it_is(weight, config):
    return weight


def interleaved(heads):
    """The halves of each head, one element of each in turn (`LlamaModel.permute`)."""
    def rule(weight, config):
        count = heads(config)
        shape = weight.shape
        return weight.reshape(count, 2, shape[0] // count // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
    return rule


def one_more(weight, config):
    return weight + 1


def by_kind(weight, config):
    """q, k and v of each head to all q, all k, all v (`GPTNeoXModel.modify_tensors`)."""
    heads = config.num_attention_heads
    split = weight.reshape(heads, 3, weight.shape[0] // heads // 3, *weight.shape[1:])
    return split.swapaxes(0, 1).reshape(weight.shape)


def llama3_factors(rope):
    """What divides the rotary frequencies of Llama 3 (`LlamaModel.generate_extra_tensors`)."""
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    dim = WIDTH // HEADS
    waves = 2 * numpy.pi * rope["rope_theta"] ** (numpy.arange(0, dim, 2) / dim)
    turns = rope["original_max_position_embeddings"] / waves
    smooth = (turns - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    return numpy.where(turns > high, 1.0, numpy.where(turns < low, factor, between)).astype(numpy.float32)


QUERIES = interleaved(lambda config: config.num_attention_heads)
KEYS = interleaved(lambda config: config.num_key_value_heads)

GATED = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}
HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
SIZES = dict(
    vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
    intermediate_size=INNER, max_position_embeddings=CONTEXT, bos_token_id=0, eos_token_id=0, pad_token_id=None,
)
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
FEED_FORWARD = ["gate_proj", "up_proj", "down_proj"]


class Case:
    """One architecture: its name in GGUF, the class and configuration in transformers, names, rules and metadata."""

    def __init__(
        self, arch, model, config, names, rules=None, targets=None, more=None, gelu=None, rotary=None, extra=dict,
        bound=BOUND
    ):
        self.arch, self.model, self.config, self.names = arch, model, config, names
        self.rules, self.targets, self.more = rules or {}, targets or ATTENTION + FEED_FORWARD, more or {}
        self.gelu, self.rotary, self.extra, self.bound = gelu, rotary, extra, bound

    def make(self, seed):
        return fill(self.model(self.config), seed)


def cases():
    t = transformers
    gated = dict(SIZES, num_key_value_heads=KV_HEADS)
    llama_rows = {"attn_q": QUERIES, "attn_k": KEYS}
    rms = "attention.layer_norm_rms_epsilon"
    yield "llama", Case(
        "llama", t.LlamaForCausalLM, t.LlamaConfig(**gated, rms_norm_eps=1e-5), GATED, llama_rows,
        more={rms: 1e-5})
    yield "llama, tied", Case(
        "llama", t.LlamaForCausalLM, t.LlamaConfig(**gated, rms_norm_eps=1e-5, tie_word_embeddings=True), GATED,
        llama_rows, more={rms: 1e-5})
    scaled = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 64}
    yield "llama, as Llama 3", Case(
        "llama", t.LlamaForCausalLM, t.LlamaConfig(**gated, rms_norm_eps=1e-5, rope_parameters=scaled), GATED,
        llama_rows, more={rms: 1e-5}, extra=lambda: {"rope_freqs.weight": llama3_factors(scaled)})
    yield "qwen2", Case(
        "qwen2", t.Qwen2ForCausalLM, t.Qwen2Config(**gated, rms_norm_eps=1e-6), GATED, more={rms: 1e-6})
    yield "qwen3", Case(
        "qwen3", t.Qwen3ForCausalLM, t.Qwen3Config(**gated, head_dim=32, rms_norm_eps=1e-6), GATED | HEAD_NORMS,
        more={rms: 1e-6, "attention.key_length": 32, "attention.value_length": 32})
    yield "qwen3moe", Case(
        "qwen3moe", t.Qwen3MoeForCausalLM,
        t.Qwen3MoeConfig(**gated, head_dim=32, rms_norm_eps=1e-6, num_experts=8, num_experts_per_tok=2,
                         moe_intermediate_size=32, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[]),
        GATED | HEAD_NORMS | {"mlp.gate": "ffn_gate_inp", "mlp.experts.down_proj": "ffn_down_exps",
                              "mlp.experts.gate_up_proj": "ffn_gate_up_exps"},
        targets=ATTENTION,
        more={rms: 1e-6, "attention.key_length": 32, "attention.value_length": 32, "expert_count": 8,
              "expert_used_count": 2, "expert_feed_forward_length": 32})
    yield "granite", Case(
        "granite", t.GraniteForCausalLM,
        t.GraniteConfig(**gated, rms_norm_eps=1e-5, embedding_multiplier=3.0, residual_multiplier=0.4,
                        attention_multiplier=0.15, logits_scaling=2.5), GATED, llama_rows,
        more={rms: 1e-5, "embedding_scale": 3.0, "residual_scale": 0.4, "attention.scale": 0.15, "logit_scale": 2.5})
    norms = ["attn_norm", "ffn_norm", "output_norm", "post_attention_norm", "post_ffw_norm", "attn_q_norm", "attn_k_norm"]
    yield "gemma3", Case(
        "gemma3", t.Gemma3ForCausalLM,
        t.Gemma3TextConfig(**gated, head_dim=32, query_pre_attn_scalar=32, rms_norm_eps=1e-6, sliding_window=24,
                           layer_types=["sliding_attention", "full_attention"]),
        GATED | HEAD_NORMS | {"post_attention_layernorm": "post_attention_norm",
                              "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm"},
        {name: one_more for name in norms}, gelu=lambda block: (block.mlp, "act_fn"),
        more={rms: 1e-6, "attention.key_length": 32, "attention.value_length": 32, "rope.freq_base": 1e6,
              "rope.freq_base_swa": 1e4, "attention.sliding_window": 24, "attention.sliding_window_pattern": 2})
    for what, part in (("", 1.0), (", a part rotated", 0.75)):
        yield f"phi3{what}", Case(
            "phi3", t.Phi3ForCausalLM, t.Phi3Config(**gated, rms_norm_eps=1e-5, partial_rotary_factor=part),
            GATED | {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"},
            targets=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"], rotary=int(16 * part), more={rms: 1e-5})
    classic = dict(SIZES, hidden_act="gelu_new")
    yield "phi2", Case(
        "phi2", t.PhiForCausalLM,
        t.PhiConfig(**classic, num_key_value_heads=KV_HEADS, partial_rotary_factor=0.5, layer_norm_eps=1e-5),
        {"model.embed_tokens": "token_embd", "model.final_layernorm": "output_norm", "lm_head": "output",
         "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
         "self_attn.v_proj": "attn_v", "self_attn.dense": "attn_output", "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down"},
        targets=["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"], gelu=lambda block: (block.mlp, "activation_fn"),
        rotary=8, more={"attention.layer_norm_epsilon": 1e-5})
    for what, parallel, act in (("parallel", True, "gelu_new"), ("sequential", False, "gelu_new"), ("Pythia", True, "gelu")):
        yield f"gptneox, {what}", Case(
            "gptneox", t.GPTNeoXForCausalLM,
            t.GPTNeoXConfig(**classic | {"hidden_act": act}, rotary_pct=0.25, layer_norm_eps=1e-5, use_parallel_residual=parallel,
                            tie_word_embeddings=False),
            {"gpt_neox.embed_in": "token_embd", "gpt_neox.final_layer_norm": "output_norm", "embed_out": "output",
             "lm_head": "output", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
             "attention.query_key_value": "attn_qkv", "attention.dense": "attn_output",
             "mlp.dense_h_to_4h": "ffn_up", "mlp.dense_4h_to_h": "ffn_down"},
            {"attn_qkv": by_kind}, ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
            gelu=lambda block: (block.mlp, "act"), rotary=4, bound=OF_EXACT_GELU if act == "gelu" else BOUND,
            more={"attention.layer_norm_epsilon": 1e-5, "use_parallel_residual": parallel})
    for what, rotary, inner in (("", 8, None), (", all rotated", 16, 96)):
        yield f"gptj{what}", Case(
            "gptj", t.GPTJForCausalLM,
            t.GPTJConfig(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=CONTEXT,
                         n_inner=inner, rotary_dim=rotary, bos_token_id=0, eos_token_id=0),
            {}, targets=["q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out"],
            gelu=lambda block: (block.mlp, "act"))


# Writing the model.

def tokens():
    """GPT-2's names of bytes, the last token joined of two, the first one the end."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    names = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}
    return ["<|endoftext|>", *(names[byte] for byte in range(256)), "th"]


def write_gguf(case, model, path):
    config, writer = model.config, gguf.GGUFWriter(path, case.arch)
    head = case.more.get("attention.key_length", WIDTH // HEADS)
    kv_heads = getattr(config, "num_key_value_heads", None) or HEADS
    metadata = {
        "context_length": CONTEXT, "embedding_length": WIDTH, "block_count": LAYERS, "feed_forward_length": INNER,
        "attention.head_count": HEADS, "attention.head_count_kv": kv_heads,
        "rope.dimension_count": case.rotary or head, "rope.freq_base": 1e4,
    }
    for key, value in (metadata | case.more).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(f"{case.arch}.{key}", value)
    names = tokens()
    names += [f"[PAD{i}]" for i in range(len(names), VOCABULARY)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(names)
    writer.add_token_types([3] + [1] * 257 + [5] * (VOCABULARY - 258))
    writer.add_token_merges(["t h"])
    writer.add_add_bos_token(False)
    writer.add_eos_token_id(0)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        for target, value in place(case, name, weight.float().numpy(), config):
            writer.add_tensor(target, numpy.ascontiguousarray(value))
    for target, value in case.extra().items():
        writer.add_tensor(target, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def place(case, name, weight, config):
    """A tensor's names and values in GGUF: two where llama.cpp wants apart what transformers has together."""
    module, kind = name.rsplit(".", 1)
    if kind not in ("weight", "bias"):
        module, kind = name, "weight"
    block = ""
    for prefix in ("model.layers.", "gpt_neox.layers."):
        if module.startswith(prefix):
            layer, module = module[len(prefix):].split(".", 1)
            block = f"blk.{layer}."
    target = case.names.get(module)
    if target is None:
        if "rotary" in name or "masked_bias" in name or name.endswith("attention.bias"):
            return
        raise SystemExit(f"{case.arch}: {name} has no name in GGUF")
    if target == "ffn_gate_up_exps":
        half = weight.shape[1] // 2
        yield f"{block}ffn_gate_exps.weight", weight[:, :half]
        yield f"{block}ffn_up_exps.weight", weight[:, half:]
        return
    yield f"{block}{target}.{kind}", case.rules.get(target, as_it_is)(weight, config)


def write_folder(model, folder, parts):
    """As the hub has it, in files of that size: what save_pretrained writes, and a tokenizer in GPT-2's files."""
    model.save_pretrained(folder, max_shard_size=parts)
    names = tokens()
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\n")


# Comparing.

def apad(*arguments):
    program = os.environ.get("APAD", "target/release/apad")
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"apad {' '.join(map(str, arguments))}: {done.stderr.strip()}")
    return done.stdout


def ours(engine, model, sequences, adapter=None):
    more = ["--adapter", adapter] if adapter else []
    out = apad("logprobs", "--engine", engine, "--model", model, "--input", sequences, *more)
    return [json.loads(line)["logprobs"] for line in out.splitlines()]


@torch.no_grad()
def theirs(model, sequences):
    found = []
    for sequence in sequences:
        ids = torch.tensor([sequence])
        logprobs = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
        found.append(logprobs.gather(1, ids[0, 1:, None])[:, 0].tolist())
    return found


def gaps(a, b):
    """The largest and the mean difference."""
    all = [abs(x - y) for a, b in zip(a, b, strict=True) for x, y in zip(a, b, strict=True)]
    return max(all), sum(all) / len(all)


class Table:
    """What was compared, and whether all of it agreed."""

    def __init__(self):
        self.agreed = True
        print(f"{'architecture':24}{'adapter':16}{'compared':24}{'most':>9}{'mean':>9} nats")

    def row(self, name, adapter, compared, found, judged=max, bound=BOUND):
        """Judged by the largest difference, by the mean (`min` of the two), or not at all (`None`)."""
        right = judged is None or judged(found) <= bound
        self.agreed &= right
        most, mean = found
        print(f"{name:24}{adapter:16}{compared:24}{most:9.1e}{mean:9.1e}{'' if right else '  TOO FAR'}", flush=True)


def with_table(case, model, compute):
    """What `compute` gives with the GELU of ggml's table, if the model has one."""
    if case.gelu is None:
        return compute()
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    blocks = getattr(inner, "model", None) or getattr(inner, "gpt_neox", None) or inner.transformer
    places = [case.gelu(block) for block in (blocks.layers if hasattr(blocks, "layers") else blocks.h)]
    kept = [getattr(owner, name) for owner, name in places]
    for owner, name in places:
        delattr(owner, name)
        setattr(owner, name, gelu_of_a_table)
    result = compute()
    for (owner, name), activation in zip(places, kept):
        delattr(owner, name)
        setattr(owner, name, activation)
    return result


def check(name, case, table, folder):
    model = case.make(seed=7)
    base = folder / "base.gguf"
    if case.arch == "gptj":
        write_folder(model, folder / "hub", parts="100KB" if "," in name else "5GB")
        apad("convert", "gptj", folder / "hub", "--out", base, "--type", "f32")
    else:
        write_gguf(case, model, base)
    generator = numpy.random.default_rng(11)
    sequences = [generator.integers(0, VOCABULARY, length).tolist() for length in LENGTHS]
    lines = folder / "tokens.jsonl"
    lines.write_text("".join(json.dumps({"tokens": sequence}) + "\n" for sequence in sequences))

    def compare(adapter, model, file=None):
        right = theirs(model, sequences)
        table.row(name, adapter, "candle", gaps(ours("candle", base, lines, file), right), bound=case.bound)
        served = ours("llama", base, lines, file)
        if case.gelu:
            table.row(name, adapter, "llama.cpp", gaps(served, right), None)
            rounded = with_table(case, model, lambda: theirs(model, sequences))
            table.row(name, adapter, "llama.cpp, its GELU", gaps(served, rounded), min)
        else:
            table.row(name, adapter, "llama.cpp", gaps(served, right))
        return right

    plain = compare("none", model)
    options = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=case.targets, task_type="CAUSAL_LM")
    torch.manual_seed(12)
    adapted = peft.get_peft_model(model, options)
    generator = torch.Generator().manual_seed(13)
    with torch.no_grad():
        for parameter, value in adapted.named_parameters():
            if "lora_B" in parameter:
                value.copy_((torch.rand(value.shape, generator=generator) * 2 - 1) * 0.3)
    adapted.eval()
    adapted.save_pretrained(folder / "peft")
    lora = folder / "lora.gguf"
    apad("export", "--model", base, "--adapter", folder / "peft", "--gguf", "--out", lora)
    changed = compare("PEFT's", adapted, lora)
    if max(gaps(plain, changed)) < 0.1:
        raise SystemExit(f"{name}: the adapter changes nothing, so comparing with it says nothing")
    apad("export", "--model", base, "--adapter", lora, "--peft", "--out", folder / "back")
    again = peft.PeftModel.from_pretrained(case.make(seed=7), folder / "back").eval()
    table.row(name, "ours", "transformers and PEFT", gaps(changed, theirs(again, sequences)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architectures", nargs="*")
    wanted = parser.parse_args().architectures
    known = [name for name, _ in cases()]
    for arch in wanted:
        if not any(name.split(",")[0] == arch for name in known):
            parser.error(f"{arch} is none of {', '.join(known)}")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    table = Table()
    for name, case in cases():
        if not wanted or name.split(",")[0] in wanted:
            with tempfile.TemporaryDirectory() as folder:
                check(name, case, table, pathlib.Path(folder))
    sys.exit(0 if table.agreed else 1)


if __name__ == "__main__":
    main()
