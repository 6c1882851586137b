#!/usr/bin/env python3
"""Random weights of Moshi and Mimi, written and run by huggingface/transformers, for compare to load and run.

    reference.py --size 7b FOLDER

FOLDER receives what a published repository holds (config.json, shards of bf16 weights with their index) and
reference.safetensors: codes, and the logits of text and audio that they give under teacher forcing; sound,
its codes, and the sound that these give. All in float32, from the bf16 weights.

Needs torch, transformers and safetensors. 7b takes 31 GB of memory and a GPU of 48 GB, small no GPU.
"""
import argparse
import json
import os
import time
import traceback

import torch
from safetensors.torch import save_file
from transformers import MimiConfig, MimiModel, MoshiConfig, MoshiForConditionalGeneration

DELAYS = [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1]  # of presets/moshi.hpp and compare.hpp
SIZES = {
    "7b": {},
    "small": dict(
        vocab_size=500, hidden_size=256, num_hidden_layers=3, num_attention_heads=4, ffn_dim=2 * 704,
        audio_vocab_size=2048, depth_decoder_config=dict(
            hidden_size=128, num_hidden_layers=2, num_attention_heads=4, ffn_dim=2 * 352)),
}


def randomise(model, generator):
    """Activations of order one in every layer, and no parameter at a value that hides it."""
    for name, p in list(model.named_parameters()) + list(model.named_buffers()):
        if not p.is_floating_point() or p.numel() == 0 or "inv_freq" in name:
            continue
        noise = torch.randn(p.shape, generator=generator, device=p.device, dtype=torch.float32)
        if name.endswith("cluster_usage"):
            p.data.copy_(1 + noise.abs())
        elif name.endswith("initialized"):
            p.data.fill_(1)
        elif "norm" in name and name.endswith("weight"):
            p.data.copy_(1 + 0.1 * noise)
        elif "layer_scale" in name:
            p.data.copy_(0.3 + 0.1 * noise)
        elif name.endswith("embed_sum"):
            p.data.copy_(noise)
        elif "embed_tokens" in name:
            p.data.copy_(0.3 * noise)
        elif p.dim() == 1:
            p.data.copy_(0.1 * noise)
        else:  # of the depth decoder, the first axis is the step
            fan_in = p.shape[-1] if "depth_decoder" in name else p[0].numel()
            p.data.copy_(noise / fan_in**0.5)


def delayed(codes, initial):
    """(B, K, T): stream k comes DELAYS[k] frames later."""
    out = initial.expand(codes.shape[0], -1, codes.shape[2]).clone()
    for k, d in enumerate(DELAYS):
        out[:, k, d:] = codes[:, k, : codes.shape[2] - d]
    return out


def moshi_reference(model, codes, out):
    config = model.config
    card, text_card, dep_q = config.audio_vocab_size, config.vocab_size, config.num_codebooks
    batch, streams, steps = codes.shape
    initial = torch.full((1, streams, 1), card, device=codes.device)
    initial[:, 0] = text_card
    now = delayed(codes, initial)
    before = torch.cat([initial.expand(batch, -1, 1), now[:, :, :-1]], dim=2)
    text_model = getattr(model, "decoder", model)  # later versions have no `decoder` around it
    x = text_model.model.embed_tokens(before[:, 0])
    for k in range(streams - 1):
        x = x + model.embed_tokens[k](before[:, k + 1])
    z = text_model.model(  # without a mask, some versions are not causal
        inputs_embeds=x, use_cache=False, attention_mask=torch.ones_like(before[:, 0])).last_hidden_state
    # Frames are the batch of the depth decoder, codebooks its time.
    ids = now[:, :dep_q].permute(0, 2, 1).reshape(batch * steps, dep_q)
    depth = model.depth_decoder(  # likewise
        input_ids=ids, last_hidden_state=z.reshape(batch * steps, 1, -1), use_cache=False,
        attention_mask=torch.ones_like(ids))
    logits = depth.logits.reshape(batch, steps, dep_q, -1).permute(2, 0, 1, 3)
    # Back to the frame of the code that is predicted; what is beyond the end stays NaN.
    aligned = torch.full(logits.shape, float("nan"), device=codes.device)
    for k in range(dep_q):
        d = DELAYS[1 + k]
        aligned[k, :, : steps - d] = logits[k, :, d:].float()
    out["codes"] = codes.int()
    out["text_logits"] = text_model.lm_head(z).float()
    out["logits"] = aligned


def mimi_reference(mimi, pcm, codebooks, out):
    codes = mimi.encode(pcm, num_quantizers=codebooks).audio_codes
    out["pcm"] = pcm
    out["pcm_codes"] = codes.int()
    out["pcm_back"] = mimi.decode(codes).audio_values.float()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--steps", type=int, default=64)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    started = time.time()

    def say(text):
        print(f"{time.time() - started:7.1f} s  {text}", flush=True)

    config = MoshiConfig(**SIZES[args.size])
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = MoshiForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    model = model.to(device=device, dtype=torch.bfloat16).eval()
    generator = torch.Generator(device=device).manual_seed(1)
    mimi = None
    if not hasattr(model, "audio_encoder"):  # later versions keep it apart
        mimi = MimiModel(MimiConfig()).to(device=device, dtype=torch.bfloat16)
    with torch.no_grad():
        randomise(model, generator)
        if mimi is not None:
            randomise(mimi, generator)
    say(f"{sum(p.numel() for p in model.parameters()) / 1e9:.2f} G random parameters")
    os.makedirs(args.folder, exist_ok=True)
    model.save_pretrained(args.folder, max_shard_size="5GB")
    if mimi is not None:
        mimi.save_pretrained(os.path.join(args.folder, "mimi"))
    say("written: " + ", ".join(sorted(os.listdir(args.folder))))
    # What RoPE and masks keep beside the parameters must not be rounded to bf16 and back.
    del model
    model = MoshiForConditionalGeneration.from_pretrained(
        args.folder, dtype=torch.float32, attn_implementation="eager").to(device).eval()
    if mimi is None:
        mimi = model.audio_encoder
    else:
        mimi = MimiModel.from_pretrained(os.path.join(args.folder, "mimi"), dtype=torch.float32)
        mimi = mimi.to(device).eval()
    say("read back in float32")

    out = {}
    streams = 1 + 2 * config.num_codebooks
    draw = dict(generator=generator, device=device)
    codes = torch.randint(config.audio_vocab_size, (2, streams, args.steps), **draw)
    codes[:, 0] = torch.randint(config.vocab_size, (2, args.steps), **draw)
    pcm = 0.3 * torch.randn(1, 1, 24000 * 4, generator=generator, device=device)
    with torch.no_grad():
        for what in (
            lambda: moshi_reference(model, codes, out),
            lambda: mimi_reference(mimi, pcm, config.num_codebooks, out),
        ):
            try:
                what()
            except Exception:  # the other half is still worth comparing
                traceback.print_exc()
    tensors = {k: v.contiguous().cpu() for k, v in out.items()}
    save_file(tensors, os.path.join(args.folder, "reference.safetensors"))
    say("run: " + json.dumps({k: list(v.shape) for k, v in out.items()}))


if __name__ == "__main__":
    main()
