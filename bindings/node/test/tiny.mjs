// Writes the tests' model: a GGUF of two small layers with seeded random weights, a vocabulary of bytes and a ChatML template. What it
// says makes no sense.

import { writeFileSync } from 'node:fs';

const [LAYERS, WIDTH, HEADS, KV_HEADS, HEAD, FF] = [2, 64, 4, 2, 16, 128];
const MERGES = ('Ġ t,h e,Ġ a,i n,Ġt he,r e,o n,e r,Ġ s,a t,n d,Ġ w,i s,o r,e n,i t,Ġ o,e s,Ġa nd,in g,o u,Ġ b,l l,' +
  'Ġ i,e d,a n,Ġ c,Ġ h,y ou').split(',');
const CONTROL = ['<|endoftext|>', '<|im_start|>', '<|im_end|>'];
const TEMPLATE = "{% if tools %}{{ tools | tojson }}{% endif %}{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + " +
  "message['content']}}{% for call in message.tool_calls %}{{ call | tojson }}{% endfor %}{{'<|im_end|>' + '\n'}}{% endfor %}" +
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/** GPT-2's printable stand-ins for bytes. */
function bytes() {
  const printable = (b) => (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
  let hidden = 256;
  return Array.from({ length: 256 }, (_, b) => String.fromCodePoint(printable(b) ? b : hidden++));
}

class Writer {
  parts = [];
  size = 0;

  add(buffer) {
    this.parts.push(buffer);
    this.size += buffer.length;
  }

  number(value, bits) {
    const buffer = Buffer.alloc(bits / 8);
    if (bits === 64) buffer.writeBigUInt64LE(BigInt(value));
    else buffer.writeUInt32LE(value);
    this.add(buffer);
  }

  text(value) {
    const buffer = Buffer.from(value);
    this.number(buffer.length, 64);
    this.add(buffer);
  }

  float(value) {
    const buffer = Buffer.alloc(4);
    buffer.writeFloatLE(value);
    this.add(buffer);
  }

  /** A key and its value: [type, value], the types as the format numbers them. */
  pair(key, [type, value]) {
    this.text(key);
    this.number(type, 32);
    this.value(type, value);
  }

  value(type, value) {
    if (type === 4 || type === 5) this.number(value, 32);
    else if (type === 6) this.float(value);
    else if (type === 7) this.add(Buffer.from([value ? 1 : 0]));
    else if (type === 8) this.text(value);
    else {
      const [inner, items] = value;
      this.number(inner, 32);
      this.number(items.length, 64);
      for (const item of items) this.value(inner, item);
    }
  }

  pad() {
    this.add(Buffer.alloc((32 - (this.size % 32)) % 32));
  }
}

export function tinyModel(path) {
  const tokens = [...bytes(), ...MERGES.map((merge) => merge.replace(' ', '')), ...CONTROL];
  const plain = tokens.length - CONTROL.length;
  const [u32, f32, flag, text, array] = [4, 6, 7, 8, 9];
  const metadata = {
    'general.architecture': [text, 'llama'], 'general.type': [text, 'model'], 'general.name': [text, 'tiny llama'],
    'general.quantization_version': [u32, 2], 'llama.context_length': [u32, 1024], 'llama.embedding_length': [u32, WIDTH],
    'llama.block_count': [u32, LAYERS], 'llama.feed_forward_length': [u32, FF], 'llama.attention.head_count': [u32, HEADS],
    'llama.attention.head_count_kv': [u32, KV_HEADS], 'llama.attention.key_length': [u32, HEAD],
    'llama.attention.value_length': [u32, HEAD], 'llama.rope.dimension_count': [u32, HEAD], 'llama.rope.freq_base': [f32, 10000],
    'llama.attention.layer_norm_rms_epsilon': [f32, 1e-5], 'tokenizer.ggml.model': [text, 'gpt2'],
    'tokenizer.ggml.pre': [text, 'smollm'], 'tokenizer.ggml.tokens': [array, [text, tokens]],
    'tokenizer.ggml.token_type': [array, [5, tokens.map((_, id) => (id < plain ? 1 : 3))]],
    'tokenizer.ggml.merges': [array, [text, MERGES]], 'tokenizer.ggml.add_bos_token': [flag, false],
    'tokenizer.ggml.bos_token_id': [u32, plain + 1], 'tokenizer.ggml.eos_token_id': [u32, plain + 2],
    'tokenizer.ggml.unknown_token_id': [u32, plain], 'tokenizer.chat_template': [text, TEMPLATE],
  };
  const tensors = [['token_embd.weight', tokens.length, WIDTH]];
  for (let layer = 0; layer < LAYERS; layer++) {
    const tensor = (name, ...shape) => tensors.push([`blk.${layer}.${name}.weight`, ...shape]);
    tensor('attn_norm', WIDTH);
    tensor('attn_q', HEADS * HEAD, WIDTH);
    tensor('attn_k', KV_HEADS * HEAD, WIDTH);
    tensor('attn_v', KV_HEADS * HEAD, WIDTH);
    tensor('attn_output', WIDTH, HEADS * HEAD);
    tensor('ffn_norm', WIDTH);
    tensor('ffn_gate', FF, WIDTH);
    tensor('ffn_up', FF, WIDTH);
    tensor('ffn_down', WIDTH, FF);
  }
  tensors.push(['output_norm.weight', WIDTH]);

  const file = new Writer();
  file.add(Buffer.from('GGUF'));
  file.number(3, 32);
  file.number(tensors.length, 64);
  file.number(Object.keys(metadata).length, 64);
  for (const [key, value] of Object.entries(metadata)) file.pair(key, value);
  let offset = 0;
  for (const [name, ...shape] of tensors) {
    file.text(name);
    file.number(shape.length, 32);
    for (const length of shape.toReversed()) file.number(length, 64);
    file.number(0, 32);
    file.number(offset, 64);
    offset += 4 * shape.reduce((a, b) => a * b);
  }
  file.pad();
  let state = 7;
  const random = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0; // The dice of Numerical Recipes; enough for this.
    return state / 2 ** 31 - 1;
  };
  for (const [, ...shape] of tensors) {
    const [middle, spread] = shape.length === 1 ? [1, 0.3] : [0, Math.sqrt(3 / shape[1])];
    file.add(Buffer.from(Float32Array.from({ length: shape.reduce((a, b) => a * b) }, () => middle + spread * random()).buffer));
  }
  writeFileSync(path, Buffer.concat(file.parts));
}
