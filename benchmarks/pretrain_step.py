"""Speed of a pre-training step against ViT-MAE of equal size; run `python benchmarks/pretrain_step.py`.

Forward, backward and AdamW on sets of 576 tokens, 75 % of them masked, float32, two threads, both in turn in one
process. Encoder and decoder are of equal width and depth: those of the preset, and once the decoder of MAE and of the
released A2-MAE network (width 512, 8 layers). A ratio above 1 means that A2-MAE is faster.
"""

import argparse

import torch
from peers import NUM_THREADS, pretrain_step, print_header, report

MAE_DECODER = {
    "decoder_hidden_size": 512,
    "decoder_num_hidden_layers": 8,
    "decoder_num_attention_heads": 16,
    "decoder_intermediate_size": 2048,
}


def main() -> None:
    """Print one row per size, decoder and kind of attention."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(NUM_THREADS)
    print_header("Pre-training step")
    for size, num_sets, overrides in (("nano", 16, {}), ("tiny", 8, {}), ("tiny", 4, MAE_DECODER), ("base", 4, {})):
        for attention in ("cross", "self"):
            title = f"{size}, {num_sets} sets, {attention}" + (", 512 x 8" if overrides else "")
            report(title, pretrain_step, rounds, size, num_sets, decoder_attention=attention, **overrides)


if __name__ == "__main__":
    main()
