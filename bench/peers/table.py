#!/usr/bin/env python3
"""Ratios of the rows that bench_* wrote as JSON to those of the peers: table.py FOLDER"""
import json
import pathlib
import re
import sys


def plain(name):
    """The case that a variant of ours is one of."""
    return re.sub(r", (factors|int8|f16)\b", "", name)


def main():
    folder = pathlib.Path(sys.argv[1])
    print(f"{'case':44s} threads   ours ms   PyTorch ms   ratio")
    for peer in sorted(folder.glob("*.jsonl")):
        ours = {}
        for row in json.loads(peer.with_suffix(".json").read_text())["rows"]:
            ours[row["case"], row["threads"]] = 1e3 * row["seconds"]
        for (name, threads), ms in list(ours.items()):
            if " backward " in name:  # autograd's time is that of both
                ours[name.replace("backward", "forward + backward"), threads] = \
                    ms + ours[name.replace("backward", "forward"), threads]
        for line in peer.read_text().splitlines():
            row = json.loads(line)
            mine = ours.get((row["case"], row["threads"]))
            variants = [(name, ms) for (name, threads), ms in ours.items()
                        if threads == row["threads"] and name != row["case"] and plain(name) == row["case"]]
            if mine is None:
                print(f"{row['case']:44s} {row['threads']:7d}         -   {row['ms']:10.4g}")
            else:
                print(f"{row['case']:44s} {row['threads']:7d} {mine:9.4g}   {row['ms']:10.4g}  {row['ms'] / mine:6.2f}")
            for name, ms in variants:  # of ours alone
                print(f"{name:44s} {row['threads']:7d} {ms:9.4g}   {row['ms']:10.4g}  {row['ms'] / ms:6.2f}")


if __name__ == "__main__":
    main()
