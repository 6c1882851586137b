#!/usr/bin/env python3
"""Times TTT-Linear and TTT-MLP in eager PyTorch, causal, float32: the shapes and names of bench/ttt.cpp.

    ttt.py THREADS

The dual form goes mini-batch by mini-batch with all heads in each product, gradients by autograd; the step is the primal
form with accumulated gradients. Queries, keys, targets and rates are given, as in the benchmark beside it.
"""
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F

EPS = 1e-6


def normalise(z):
    mean = z.mean(-1, keepdim=True)
    deviation = (z.var(-1, unbiased=False, keepdim=True) + EPS).sqrt()
    return (z - mean) / deviation, deviation


def norm_gradient(z, target, gamma, beta):
    """d/dz of 1/2 |gamma n(z) + beta - target|^2"""
    n, deviation = normalise(z)
    g = (gamma * n + beta - target) * gamma
    return (g - g.mean(-1, keepdim=True) - n * (g * n).mean(-1, keepdim=True)) / deviation


def gelu_slope(x):
    t = torch.tanh(0.7978845608028654 * x * (1 + 0.044715 * x * x))
    return 0.5 * x * (1 - t * t) * (0.7978845608028654 + 0.1070322243 * x * x) + 0.5 * (1 + t)


def gelu(x):
    return F.gelu(x, approximate="tanh")


def mini_batch(q, k, target, lr, scale, gamma, beta, weights, mask):
    """All heads at once: q, k, target (H, C, F), lr (H, C, 1), scale (C, 1); weights [(W, b), ...]."""
    inputs, outputs = [k], []
    for i, (w, b) in enumerate(weights):
        outputs.append(inputs[-1] @ w + b)
        if i + 1 < len(weights):
            inputs.append(gelu(outputs[-1]))
    gradients = [norm_gradient(outputs[-1], target, gamma, beta)]
    for i in range(len(weights) - 1, 0, -1):
        gradients.insert(0, gradients[0] @ weights[i][0].transpose(-1, -2) * gelu_slope(outputs[i - 1]))
    x, after = q, []
    for i, (w, b) in enumerate(weights):
        g = lr * gradients[i]
        p = -scale * ((x @ inputs[i].transpose(-1, -2) + 1) * mask)
        z = x @ w + b + p @ g
        after.append((w - scale[-1] * inputs[i].transpose(-1, -2) @ g, b - scale[-1] * g.sum(-2, keepdim=True)))
        x = gelu(z) if i + 1 < len(weights) else z
    return q + gamma * normalise(x)[0] + beta, after


def scan(data, weights, c):
    out, mask = [], torch.ones(c, c).tril()
    for first in range(0, data["q"].shape[1], c):
        part = [data[name][:, first:first + c] for name in ("q", "k", "target", "lr")]
        y, weights = mini_batch(*part, data["scale"], data["gamma"], data["beta"], weights, mask)
        out.append(y)
    return torch.cat(out, 1)


def step(data, weights, sums, t, c):
    """One token of every head; sums [(G, g), ...] are added to in place."""
    q, k, target, lr = (data[name][:, :1] for name in ("q", "k", "target", "lr"))
    inputs, outputs = [k], []
    for i, (w, b) in enumerate(weights):
        outputs.append(inputs[-1] @ w + b)
        if i + 1 < len(weights):
            inputs.append(gelu(outputs[-1]))
    g = norm_gradient(outputs[-1], target, data["gamma"], data["beta"])
    for i in range(len(weights) - 1, -1, -1):
        rate = lr * g
        if i > 0:
            g = g @ weights[i][0].transpose(-1, -2) * gelu_slope(outputs[i - 1])
        sums[i][0].add_(inputs[i].transpose(-1, -2) @ rate)
        sums[i][1].add_(rate)
    x, scale = q, data["scale"][t % c]
    for i, (w, b) in enumerate(weights):
        z = x @ (w - scale * sums[i][0]) + (b - scale * sums[i][1])
        x = gelu(z) if i + 1 < len(weights) else z
    if (t + 1) % c == 0:
        for (w, b), (gw, gb) in zip(weights, sums):
            w.sub_(scale * gw), b.sub_(scale * gb), gw.zero_(), gb.zero_()
    return q + data["gamma"] * normalise(x)[0] + data["beta"]


def start(heads, f, layers, c, steps):
    rows = {name: torch.rand(heads, steps, f) - 0.5 for name in ("q", "k", "target")}
    data = dict(rows, lr=torch.full((heads, steps, 1), 0.5 / f), gamma=torch.ones(heads, 1, f),
                beta=torch.zeros(heads, 1, f), scale=(1 / torch.arange(1.0, c + 1)).view(c, 1))
    widths = [f] + [4 * f] * (layers - 1) + [f]
    weights = [(0.02 * torch.randn(heads, a, b), torch.zeros(heads, 1, b)) for a, b in zip(widths, widths[1:])]
    return data, weights


def median_ms(work, count):
    work(), work()
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times)


def main():
    threads = int(sys.argv[1])
    torch.set_num_threads(threads)
    torch.manual_seed(1)

    def show(case, ms):
        print(json.dumps({"case": case, "threads": threads, "ms": ms}), flush=True)

    for name, layers in (("Linear", 1), ("MLP", 2)):
        for heads, f, steps in ((4, 32, 256), (8, 64, 256), (32, 128, 64)):
            for c in (16, 64):
                data, weights = start(heads, f, layers, c, steps)
                with torch.no_grad():
                    show(f"{name} forward {heads}x{f}, C = {c}, T = {steps}", median_ms(lambda: scan(data, weights, c), 10))
                leaves = [data[key].requires_grad_() for key in ("q", "k", "target", "lr", "scale", "gamma", "beta")]
                leaves += [t.requires_grad_() for pair in weights for t in pair]
                dout = torch.rand(heads, steps, f)

                def forward_and_backward():
                    torch.autograd.grad(scan(data, weights, c), leaves, dout)

                show(f"{name} forward + backward {heads}x{f}, C = {c}, T = {steps}", median_ms(forward_and_backward, 6))
            with torch.no_grad():
                data, weights = start(heads, f, layers, 16, 1)
                sums = [(torch.zeros_like(w), torch.zeros_like(b)) for w, b in weights]
                t = [0]

                def one():
                    step(data, weights, sums, t[0], 16)
                    t[0] += 1

                show(f"{name} step {heads}x{f}, C = 16, 1 session", median_ms(one, 50))


if __name__ == "__main__":
    main()
