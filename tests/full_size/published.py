#!/usr/bin/env python3
"""A folder as the repository of the published 7B Moshi holds it, with random weights.

    published.py FOLDER

FOLDER receives config.json, model.safetensors (bf16, 15.4 GB) and Mimi's weights (float32, 0.4 GB) under the
published names and shapes, which tests/golden/data lists. There is no tokenizer in it: that has no random form.
Activations are of order one in every layer, so that what is said is noise but every number counts.

Needs torch, and 16 GB of disk. With a GPU it takes as long as the disk does.
"""
import json
import math
import os
import sys
import time

import torch

DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden", "data")
CONFIG = dict(
    moshi_name="model.safetensors", mimi_name="tokenizer-e351c8d8-checkpoint125.safetensors",
    tokenizer_name="tokenizer_spm_32k_3.model", quantize=False, dim=4096, text_card=32000,
    existing_text_padding_id=3, n_q=16, dep_q=8, card=2048, num_heads=32, num_layers=32, hidden_scale=4.125,
    causal=True, layer_scale=None, context=3000, max_period=10000.0, gating="silu", norm="rms_norm_f32",
    positional_embedding="rope", depformer_dim=1024, depformer_dim_feedforward=4224, depformer_num_heads=16,
    depformer_num_layers=6, depformer_layer_scale=None, depformer_multi_linear=True, depformer_context=8,
    depformer_max_period=10000.0, depformer_gating="silu", depformer_pos_emb="none",
    depformer_weights_per_step=True, delays=[0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1])


def numbers(name, shape, generator):
    noise = torch.randn(shape, generator=generator, device=generator.device)
    if name.endswith("cluster_usage"):
        return 1 + noise.abs()
    if name.endswith("_initialized"):
        return torch.ones_like(noise)
    if name.endswith("embedding_sum"):
        return noise
    if "norm" in name and not name.endswith("bias"):
        return 1 + 0.1 * noise
    if "layer_scale" in name:
        return 0.3 + 0.1 * noise
    if "emb" in name:
        return 0.3 * noise
    if len(shape) == 1:
        return 0.1 * noise
    return noise / (noise.numel() / shape[0])**0.5


def write(path, listed, dtype, generator):
    """Tensor by tensor: memory holds one. Returns the bytes of all."""
    size = torch.tensor([], dtype=dtype).element_size()
    header, at = {}, 0
    for name, shape in listed:
        end = at + size * math.prod(shape)
        header[name] = dict(dtype={2: "BF16", 4: "F32"}[size], shape=shape, data_offsets=[at, end])
        at = end
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in listed:
            file.write(numbers(name, shape, generator).to(dtype).view(torch.uint8).cpu().numpy().data)
    return at


def main():
    folder = sys.argv[1]
    started = time.time()
    os.makedirs(folder, exist_ok=True)
    generator = torch.Generator("cuda" if torch.cuda.is_available() else "cpu").manual_seed(1)
    for names, file, dtype in (("mimi_tensors.json", CONFIG["mimi_name"], torch.float32),
                               ("moshi_7b_tensors.json", CONFIG["moshi_name"], torch.bfloat16)):
        with open(os.path.join(DATA, names)) as data:
            listed = [(entry[0], entry[1]) for entry in json.load(data)]
        size = write(os.path.join(folder, file), listed, dtype, generator)
        print(f"{file}: {len(listed)} tensors, {size / 1e9:.2f} GB after {time.time() - started:.1f} s", flush=True)
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(CONFIG, file)


if __name__ == "__main__":
    main()
