#!/usr/bin/env python3
"""Times kyutai's PyTorch Mimi: one 80 ms frame encoded and decoded, streaming, 8 codebooks, random weights, full rings.

    mimi.py THREADS     needs the package `moshi` (pip install moshi)
"""
import json
import statistics
import sys
import time

import torch
from moshi.models import loaders


def main():
    torch.set_num_threads(int(sys.argv[1]))
    torch.manual_seed(1)
    mimi = loaders.get_mimi(None, device="cpu", num_codebooks=8).eval()
    sound = torch.rand(1, 1, 1920) - 0.5
    times = {"encode": [], "decode": []}
    with torch.no_grad(), mimi.streaming(1):
        for frame in range(200):  # the attention's ring holds 125 frames
            start = time.perf_counter()
            codes = mimi.encode(sound)
            middle = time.perf_counter()
            mimi.decode(codes)
            if frame >= 130:
                times["encode"].append(1e3 * (middle - start))
                times["decode"].append(1e3 * (time.perf_counter() - middle))
    for what, list_of in times.items():
        print(json.dumps({"case": f"mimi_24khz {what}", "threads": int(sys.argv[1]),
                          "ms": statistics.median(list_of)}))


if __name__ == "__main__":
    main()
