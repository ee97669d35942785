"""Encoding speed against ViT-MAE of equal width, depth and token count; run `python benchmarks/encode.py`.

576 tokens a set, float32, two threads, both in turn in one process. A ratio above 1 means that A2-MAE is faster.
"""

import argparse

import torch
from peers import NUM_THREADS, encode_step, print_header, report


def main() -> None:
    """Print one row per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(NUM_THREADS)
    print_header("Encoding")
    for size, num_sets in (("nano", 8), ("tiny", 8), ("base", 4)):
        report(f"{size}, {num_sets} sets", encode_step, rounds, size, num_sets)


if __name__ == "__main__":
    main()
