"""Speed of a pre-training step against ViT-MAE of equal size; run `python benchmarks/pretrain_step.py`.

Forward, backward and AdamW on four sets of 576 tokens, 75 % of them masked, float32, two threads, both in turn in one
process.
Encoder and decoder are of equal width and depth: those of the preset, and for each size the decoder of MAE and of the
released A2-MAE network (width 512, 8 layers). A ratio above 1 means that A2-MAE is faster.
"""

import argparse

import torch
from peers import NUM_THREADS, pretrain_step, print_header, report

NUM_SETS = 4
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
    for size in ("nano", "tiny", "base"):
        for decoder, overrides in (("preset", {}), ("512 x 8", MAE_DECODER)):
            for attention in ("cross", "self"):
                title = f"{size}, decoder {decoder}, {attention}"
                report(title, pretrain_step, rounds, size, NUM_SETS, decoder_attention=attention, **overrides)


if __name__ == "__main__":
    main()
