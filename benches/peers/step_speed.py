"""How long two small training steps take in PyTorch.

    python step_speed.py                                   # this machine, 2 threads
    python step_speed.py --aeir 'COMMAND'                  # torch, COMMAND, torch, COMMAND, then the ratios

Towers: two linear layers on cached features (1,280 and 384 to 256), dropout 0.5, InfoNCE with a learned temperature, 128
pairs, AdamW. Words: a linear layer on 36 regions (2,048 to 1,024) and a packed bidirectional GRU on words (300 to 1,024, 12
to 20 words), mean-pooled, cosine, the hardest negative, 32 pairs, Adam with the gradient's norm clipped at 2.

COMMAND prints one JSON object with `towers_step_seconds` and `words_step_seconds`, as `aeir bench train --json` does. One
JSON object goes to stdout, a table to stderr. Times depend on the machine and on what else runs on it: only ratios of one
run count.
"""

import argparse
import json
import math
import statistics
import sys

import torch
from torch import nn
from torch.nn import functional as F

import released
from released import ImageEncoder, Sizes, TextEncoder
from saf_speed import run_aeir, times

KEYS = {"towers": "towers_step_seconds", "words": "words_step_seconds"}


class Towers(nn.Module):
    """InfoNCE between two linear projections of cached features."""

    def __init__(self, pairs=128, image=1280, sentence=384, dimension=256):
        super().__init__()
        self.image, self.sentence = nn.Linear(image, dimension), nn.Linear(sentence, dimension)
        self.dropout = nn.Dropout(0.5)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(0.07)))
        self.features = torch.randn(pairs, image), torch.randn(pairs, sentence)

    def loss(self):
        image, sentence = self.features
        image = F.normalize(self.image(self.dropout(image)), dim=-1)
        sentence = F.normalize(self.sentence(self.dropout(sentence)), dim=-1)
        scores = self.log_scale.exp() * image @ sentence.T
        own = torch.arange(len(scores))
        return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2


class Words(nn.Module):
    """The hardest negative between mean-pooled regions and mean-pooled words."""

    def __init__(self, pairs=32):
        super().__init__()
        sizes = Sizes(36, 2048, 1024, 300, 5000, 256)
        self.image, self.sentence = ImageEncoder(sizes), TextEncoder(sizes, True, 0.4)
        generator = torch.Generator().manual_seed(1)
        self.batch = released.random_batch((pairs, pairs), sizes, 12, 20, generator)

    def loss(self):
        lengths = self.batch["source.lengths"]
        images = F.normalize(self.image(self.batch["source.images"]).mean(1), dim=-1)
        words = self.sentence(self.batch["source.tokens"], lengths).sum(1) / lengths[:, None]
        return released.triplet_loss(images @ F.normalize(words, dim=-1).T, 0.2)


class Step:
    """A whole step: gradients, clipping where asked for, fused optimiser."""

    def __init__(self, model, optimiser, clip=None, **settings):
        self.model, self.clip = model.train(), clip
        self.optimiser = optimiser(model.parameters(), fused=True, **settings)

    def __call__(self):
        self.optimiser.zero_grad()
        self.model.loss().backward()
        if self.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimiser.step()


def torch_round(works, repeats):
    found = times({"towers": works["towers"]}, 20, 20 * repeats)
    return found | times({"words": works["words"]}, 1, repeats)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5, help="timed steps a round; of the towers 20 times as many")
    parser.add_argument("--aeir", metavar="COMMAND", help="shell command to time in turn with PyTorch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    works = {
        "towers": Step(Towers(), torch.optim.AdamW, lr=2e-3, weight_decay=0.05),
        "words": Step(Words(), torch.optim.Adam, clip=2.0, lr=1e-4),
    }
    torch_rounds, aeir_rounds = [], []
    for _ in range(2 if arguments.aeir else 1):
        torch_rounds.append(torch_round(works, arguments.repeats))
        if arguments.aeir:
            aeir_rounds.append(run_aeir(arguments.aeir))
    seconds = {name: statistics.median(sum((r[name] for r in torch_rounds), [])) for name in KEYS}
    report = {"torch_version": torch.__version__, "threads": arguments.threads, "torch": seconds}
    if arguments.aeir:
        report["aeir"] = {name: statistics.median(r[key] for r in aeir_rounds) for name, key in KEYS.items()}
        report["ratios"] = {name: seconds[name] / report["aeir"][name] for name in KEYS}
    for name in KEYS:
        ratio = f"   aeir {report['ratios'][name]:.2f} times as fast" if arguments.aeir else ""
        print(f"{name:8} PyTorch {1e3 * seconds[name]:8.2f} ms a step{ratio}", file=sys.stderr)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
