"""How long a SAF training step and SAF scoring take in PyTorch: one sentence at a time as released, and vectorised.

    python saf_speed.py                                    # this machine, 2 threads
    python saf_speed.py --aeir 'COMMAND'                   # torch, COMMAND, torch, COMMAND, then the ratios
    python saf_speed.py --quick                            # tiny sizes, to see that everything runs

COMMAND prints one JSON object with `step_seconds`, `scored_pairs_per_second` and `matmul_gflops`. One JSON object goes to
stdout, a table to stderr. Times depend on the machine and on what else runs on it: only ratios of one run count.

The vectorised version scores all pairs at once. The real words of all sentences lie in one long list of P words (no padding
is computed), and a mask [M, P] says which word belongs to which sentence. Letters as in released.py.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

import released
from released import EPSILON, Model, Settings, SimilarityEncoder, Sizes, normalise

NEGATIVE_SLOPE = 0.1
SHARPNESS = 9


# The vectorised head ---------------------------------------------------------------------------------------------------


class ProjectedAlignment(torch.autograd.Function):
    """linear((attention @ images - words)^2), image by image, so that the [P, D] difference stays in the cache.

    attention [N, P, R], images [N, R, D], words [P, D], weight [S, D], bias [S] to [N, P, S]. The backward pass computes the
    difference again: keeping it would take N x P x D numbers.
    """

    @staticmethod
    def forward(context, attention, images, words, weight, bias):
        context.save_for_backward(attention, images, words, weight)
        found = words.new_empty(*attention.shape[:2], len(weight))
        difference = torch.empty_like(words)
        for i, (mixture, image) in enumerate(zip(attention, images)):
            torch.addmm(words, mixture, image, beta=-1, out=difference)
            torch.addmm(bias, difference.square_(), weight.T, out=found[i])
        return found

    @staticmethod
    def backward(context, gradient):
        attention, images, words, weight = context.saved_tensors
        gradient = gradient.contiguous()
        of_attention, of_images = torch.empty_like(attention), torch.empty_like(images)
        of_words, of_weight = torch.zeros_like(words), torch.zeros_like(weight)
        difference, square = torch.empty_like(words), torch.empty_like(words)
        twice = 2 * weight
        for i, (mixture, image) in enumerate(zip(attention, images)):
            torch.addmm(words, mixture, image, beta=-1, out=difference)
            of_weight.addmm_(gradient[i].T, torch.mul(difference, difference, out=square))
            difference.mul_(torch.mm(gradient[i], twice, out=square))
            of_words.sub_(difference)
            torch.mm(difference, image.T, out=of_attention[i])
            torch.mm(mixture.T, difference, out=of_images[i])
        return of_attention, of_images, of_words, of_weight, gradient.sum((0, 1))


@dataclass
class Words:
    """The real words of M sentences in one list."""

    vectors: torch.Tensor  # [P, D]
    lengths: torch.Tensor  # [M]
    real: torch.Tensor  # [M, L], true for real words
    sentence: torch.Tensor  # [P], the sentence of each word
    member: torch.Tensor  # [M, P], 1 where the word is the sentence's

    @classmethod
    def gather(cls, texts, lengths):
        real = torch.arange(texts.shape[1])[None, :] < lengths[:, None]
        sentence = torch.arange(len(lengths)).repeat_interleave(lengths)
        member = F.one_hot(sentence, len(lengths)).T.to(texts.dtype).contiguous()
        positions = real.flatten().nonzero().squeeze(1)
        return cls(texts.flatten(0, 1).index_select(0, positions), lengths, real, sentence, member)

    def softmax(self, scores):
        """[P] to [P], over the words of each sentence."""
        padded = scores.new_full(self.real.shape, -math.inf).masked_scatter(self.real, scores)
        return padded.softmax(1)[self.real]


def mixtures(images, words):
    """Attention of each word to the regions, divided by the norm of the mixture it gives: [N, P, R].

    |a V|^2 = a (V V^T) a^T costs R / D of the direct norm and leaves the mixtures themselves untouched.
    """
    count, regions, dimension = images.shape
    attention = F.leaky_relu(words.vectors @ images.reshape(-1, dimension).T, NEGATIVE_SLOPE)
    norms = (words.member @ attention.square()).sqrt() + EPSILON
    attention = attention * norms.reciprocal().index_select(0, words.sentence)
    attention = (SHARPNESS * attention).view(-1, count, regions).softmax(-1).transpose(0, 1)
    squared = ((attention @ (images @ images.transpose(1, 2))) * attention).sum(-1, keepdim=True)
    return attention / (squared.clamp(min=0).sqrt() + EPSILON)


class VectorisedSaf(SimilarityEncoder):
    """SAF over all pairs at once: the parameters and the scores of the looping head."""

    def global_texts(self, words):
        """[M, D]."""
        attention = self.t_global_w
        means = (words.member @ words.vectors) / words.lengths[:, None]
        branch = attention.embedding_global(means).index_select(0, words.sentence)
        scores = attention.embedding_common(attention.embedding_local(words.vectors) * branch).squeeze(-1)
        return normalise((words.member * words.softmax(scores)) @ words.vectors)

    def batch_normalise(self, local, whole, words):
        """BatchNorm of the scores [N, P] and [N, M], each sentence with its own statistics; running ones in sentence order."""
        norm = self.SAF_module.bn
        if not norm.training:
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            return ((x - norm.running_mean) * scale + norm.bias for x in (local, whole))
        count = len(whole) * (words.lengths + 1)
        mean = (words.member @ local.sum(0) + whole.sum(0)) / count
        local, whole = local - mean[words.sentence], whole - mean
        variance = (words.member @ local.square().sum(0) + whole.square().sum(0)) / count
        self.update_statistics(mean.detach(), (variance * count / (count - 1)).detach())
        scale = norm.weight / (variance + norm.eps).sqrt()
        return local * scale[words.sentence] + norm.bias, whole * scale + norm.bias

    @torch.no_grad()
    def update_statistics(self, means, variances):
        """What one update a sentence, in order, comes to."""
        norm = self.SAF_module.bn
        kept = (1 - norm.momentum) ** torch.arange(len(means) - 1, -1, -1, dtype=means.dtype)
        for running, found in ((norm.running_mean, means), (norm.running_var, variances)):
            running.mul_((1 - norm.momentum) ** len(means)).add_(norm.momentum * (kept @ found))
        norm.num_batches_tracked += len(means)

    def filter(self, local, whole, words):
        """[N, P, S] and [N, M, S], not normalised yet, to [N, M, S]: the norms are folded into scores and gates."""
        gate = self.SAF_module.attn_sim_w
        inverse = [1 / (torch.linalg.vector_norm(x, dim=-1) + EPSILON) for x in (local, whole)]
        scores = [(x @ gate.weight[0]) * scale + gate.bias for x, scale in zip((local, whole), inverse)]
        gates = [torch.sigmoid(x) for x in self.batch_normalise(*scores, words)]
        sums = gates[0] @ words.member.T + gates[1] + EPSILON
        spread = (gates[0] * inverse[0]).unsqueeze(1) * words.member
        read = spread @ local + (gates[1] * inverse[1]).unsqueeze(-1) * whole
        return normalise(read / sums.unsqueeze(-1))

    def score(self, images, global_images, words):
        """[N, R, D], [N, D] and words to [N, M]."""
        transform = self.sim_tranloc_w
        local = ProjectedAlignment.apply(
            mixtures(images, words), images, words.vectors, transform.weight, transform.bias
        )
        whole = self.sim_tranglo_w((global_images[:, None] - self.global_texts(words)[None]).square())
        return torch.sigmoid(self.sim_eval_w(self.filter(local, whole, words)).squeeze(-1))

    def forward(self, images, texts, lengths):
        return self.score(images, self.v_global_w(images), Words.gather(texts, lengths))


class VectorisedModel(Model):
    """The released model with the vectorised head, both domains' sentences in one run of the GRU."""

    def __init__(self, sizes, settings, dropout=0.0):
        super().__init__(sizes, settings, dropout, VectorisedSaf)

    def encode(self, batch):
        domains = ("source", "target")
        tokens, lengths = ([batch[f"{domain}.{what}"] for domain in domains] for what in ("tokens", "lengths"))
        longest = max(x.shape[1] for x in tokens)
        joined = torch.cat([F.pad(x, (0, longest - x.shape[1])) for x in tokens])
        lengths, order = torch.cat(lengths).sort(descending=True)
        texts = self.txt_enc(joined[order], lengths).index_select(0, order.argsort())
        embeddings, start = {}, 0
        for domain, own in zip(domains, tokens):
            embeddings[f"{domain}_image"] = self.img_enc(batch[f"{domain}.images"])
            embeddings[f"{domain}_text"] = texts[start : start + len(own), : own.shape[1]]
            start += len(own)
        return embeddings


def score_in_chunks(head, images, texts, lengths, image_chunk=40, sentence_chunk=32):
    """Evaluation: the score matrix, a block of images and sentences at a time."""
    scores = torch.empty(len(images), len(texts))
    global_images = head.v_global_w(images)
    for j in range(0, len(texts), sentence_chunk):
        some = slice(j, j + sentence_chunk)
        words = Words.gather(texts[some, : int(lengths[some].max())], lengths[some])
        for i in range(0, len(images), image_chunk):
            rows = slice(i, i + image_chunk)
            scores[rows, some] = head.score(images[rows], global_images[rows], words)
    return scores


def selected_similarity(target, source, nearest):
    """released.fragment_similarity for the K selected source items in each row alone: [B, K]."""
    chosen = source.index_select(0, nearest.flatten()).view(len(target), -1, source.shape[-1])
    cosines = target @ chosen.transpose(1, 2)
    return cosines.amax(1).view(*nearest.shape, -1).sum(-1)


def selected_structure_loss(embeddings, settings):
    """released.structure_loss: all pairs without gradients to find the neighbours, gradients through the chosen ones only."""
    unit = {name: F.normalize(x, dim=-1, eps=EPSILON) for name, x in embeddings.items()}
    total = 0
    for modality, other in (("image", "text"), ("text", "image")):
        target, source = unit[f"target_{modality}"], unit[f"source_{modality}"]
        with torch.no_grad():
            nearest = released.fragment_similarity(target, source).topk(settings.neighbours)[1]
        own = selected_similarity(target, source, nearest)
        cross = selected_similarity(target, unit[f"source_{other}"], nearest)
        total = total + released.neighbour_divergence(own, cross, settings.tau)
    return total


# Work to time ----------------------------------------------------------------------------------------------------------


@dataclass
class Scale:
    """How much is computed."""

    sizes: Sizes
    batch: int
    images: int
    sentences: int
    shortest: int = 12
    longest: int = 20


FULL = Scale(Sizes(36, 2048, 1024, 300, 5000, 256), batch=56, images=200, sentences=1000)
QUICK = Scale(Sizes(9, 32, 24, 12, 60, 16), batch=6, images=10, sentences=30)


def random_batch(scale, seed):
    generator = torch.Generator().manual_seed(seed)
    counts = (scale.batch, scale.batch)
    return released.random_batch(counts, scale.sizes, scale.shortest, scale.longest, generator)


def model_of(scale, kind, dropout):
    torch.manual_seed(0)
    return kind(scale.sizes, Settings(), dropout)


class TrainingStep:
    """Whole released steps on one batch."""

    def __init__(self, scale, kind, structure, dropout=0.4):
        self.model = model_of(scale, kind, dropout).train()
        fused = kind is VectorisedModel
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=1e-4, fused=fused)
        self.batch, self.structure = random_batch(scale, 1), structure

    def __call__(self):
        released.released_step(self.model, self.optimiser, self.batch, Settings(), self.structure)


class Scoring:
    """All pairs of images and sentences in evaluation mode."""

    def __init__(self, scale, kind):
        self.head = model_of(scale, kind, 0.4).sim_enc.eval()
        generator = torch.Generator().manual_seed(2)
        dimension = scale.sizes.dimension
        lengths = torch.randint(scale.shortest, scale.longest + 1, (scale.sentences,), generator=generator)
        texts = torch.randn(scale.sentences, scale.longest, dimension, generator=generator)
        images = torch.randn(scale.images, scale.sizes.regions, dimension, generator=generator)
        real = torch.arange(scale.longest)[None, :, None] < lengths[:, None, None]
        self.images, self.texts, self.lengths = normalise(images), normalise(texts * real), lengths

    @torch.no_grad()
    def __call__(self):
        if isinstance(self.head, VectorisedSaf):
            return score_in_chunks(self.head, self.images, self.texts, self.lengths)
        return self.head(self.images, self.texts, self.lengths)

    def pairs(self):
        return len(self.images) * len(self.texts)

    def pair_flop(self, sizes):
        """Of a mean pair: attention, mixture and projection of its words. The global vector's 2DS comes on top, as overhead."""
        words = self.lengths.double().mean().item()
        return 2 * words * sizes.dimension * (2 * sizes.regions + sizes.similarity)


# Same numbers before speed ---------------------------------------------------------------------------------------------


def assert_close(what, found, expected, tolerance):
    difference = (found - expected).abs().max().item()
    if not difference <= tolerance * max(1.0, expected.abs().max().item()):
        raise SystemExit(f"{what}: the vectorised version differs from the looping one by {difference:.1e}")


def assert_same_step(scale):
    """Gradients and BatchNorm statistics of one whole step without dropout, in f64."""
    batch = released.in_double(random_batch(scale, 3))
    models = []
    for kind, structure in ((Model, released.structure_loss), (VectorisedModel, selected_structure_loss)):
        model = model_of(scale, kind, 0.0).double().train()
        # A large weight, so that a wrong structure term can't hide.
        released.backward(model, batch, Settings(structure_weight=1.0), structure)
        models.append(model)
    looping, vectorised = models
    pairs = zip(looping.named_parameters(), vectorised.parameters(), strict=True)
    for (name, expected), found in pairs:
        assert_close(f"gradient of {name}", found.grad, expected.grad, 1e-9)
    found = vectorised.state_dict()
    for name, expected in looping.state_dict().items():
        if expected.dim() == 0 or "running_" in name:
            assert_close(name, found[name], expected, 1e-12)


def assert_same_scores(scale):
    """Scores in f32, in evaluation and in training mode."""
    small = Scale(scale.sizes, 8, images=10, sentences=40)
    looping, vectorised = Scoring(small, Model), Scoring(small, VectorisedModel)
    assert_close("scores", vectorised(), looping(), 1e-5)
    for scoring in (looping, vectorised):
        scoring.head.train()
        for module in scoring.head.modules():
            if isinstance(module, nn.Dropout):
                module.eval()
    images, texts, lengths = looping.images, looping.texts, looping.lengths
    with torch.no_grad():
        expected = looping.head(images, texts, lengths)
        assert_close("training scores", vectorised.head(images, texts, lengths), expected, 1e-5)


# Timing ----------------------------------------------------------------------------------------------------------------


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def times(works, warm_up, repeats):
    """Seconds of each, taken in turn so that a busy spell of the machine meets all of them."""
    found = {name: [] for name in works}
    for turn in range(warm_up + repeats):
        for name, work in works.items():
            seconds = timed(work)
            if turn >= warm_up:
                found[name].append(seconds)
    return found


def matmul_works(size=1024):
    a, b = torch.randn(size, size), torch.randn(size, size)
    return {"matmul": lambda: a @ b}


def torch_round(works, repeats):
    found = times(works["matmul"], 3, 20)
    found |= times(works["step"], 1, repeats)
    found |= times(works["scoring"], 1, max(1, repeats // 2))
    return found


def prepare(scale):
    return {
        "matmul": matmul_works(),
        "step": {
            "step, looping": TrainingStep(scale, Model, released.structure_loss),
            "step, vectorised": TrainingStep(scale, VectorisedModel, selected_structure_loss),
        },
        "scoring": {
            "scoring, looping": Scoring(scale, Model),
            "scoring, vectorised": Scoring(scale, VectorisedModel),
        },
    }


def run_aeir(command):
    """The JSON object that the command prints on its last line, or as its whole output."""
    output = subprocess.run(command, shell=True, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    try:
        return json.loads(output)
    except json.JSONDecodeError:
        return json.loads(output.splitlines()[-1])


def torch_summary(rounds, scoring, sizes):
    """Medians over all rounds."""
    seconds = {name: statistics.median(sum((r[name] for r in rounds), [])) for name in rounds[0]}
    gflops = 2 * 1024**3 / seconds["matmul"] / 1e9
    summary = {"matmul_gflops": gflops}
    for kind in ("looping", "vectorised"):
        rate = scoring.pairs() / seconds[f"scoring, {kind}"]
        summary[kind] = {
            "step_seconds": seconds[f"step, {kind}"],
            "scored_pairs_per_second": rate,
            "scoring_share_of_matmul_rate": rate * scoring.pair_flop(sizes) / gflops / 1e9,
        }
    return summary


def aeir_summary(rounds, scoring, sizes):
    keys = ("step_seconds", "scored_pairs_per_second", "matmul_gflops")
    summary = {key: statistics.median(r[key] for r in rounds) for key in keys}
    gflop = summary["scored_pairs_per_second"] * scoring.pair_flop(sizes) / 1e9
    summary["scoring_share_of_matmul_rate"] = gflop / summary["matmul_gflops"]
    return summary


def ratios(torch_found, aeir):
    """Above 1: aeir is the faster one."""
    found = {"matmul": aeir["matmul_gflops"] / torch_found["matmul_gflops"]}
    for kind in ("looping", "vectorised"):
        peer = torch_found[kind]
        found[kind] = {
            "step": peer["step_seconds"] / aeir["step_seconds"],
            "scoring": aeir["scored_pairs_per_second"] / peer["scored_pairs_per_second"],
        }
    return found


def print_table(report):
    def row(name, *cells):
        print(f"{name:24}" + "".join(f"{cell:>18}" for cell in cells), file=sys.stderr)

    def figures(name, found, gflops):
        row(
            name, f"{found['step_seconds']:.3f}", f"{found['scored_pairs_per_second']:,.0f}",
            f"{100 * found['scoring_share_of_matmul_rate']:.0f} %", f"{gflops:.0f}",
        )  # fmt: skip

    row("", "step, s", "scored pairs/s", "of matmul rate", "matmul GFLOP/s")
    for kind in ("looping", "vectorised"):
        figures(f"PyTorch, {kind}", report["torch"][kind], report["torch"]["matmul_gflops"])
    if "aeir" not in report:
        return
    figures("aeir", report["aeir"], report["aeir"]["matmul_gflops"])
    for kind in ("looping", "vectorised"):
        found = report["ratios"][kind]
        row(f"aeir against {kind}", f"{found['step']:.2f} x", f"{found['scoring']:.2f} x")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5, help="timed steps a round; scorings half as many")
    parser.add_argument("--aeir", metavar="COMMAND", help="shell command to time in turn with PyTorch")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    scale = QUICK if arguments.quick else FULL
    assert_same_step(QUICK)
    assert_same_scores(scale)
    works = prepare(scale)
    scoring = works["scoring"]["scoring, vectorised"]
    torch_rounds, aeir_rounds = [], []
    for _ in range(2 if arguments.aeir else 1):
        torch_rounds.append(torch_round(works, arguments.repeats))
        if arguments.aeir:
            aeir_rounds.append(run_aeir(arguments.aeir))
    report = {
        "torch_version": torch.__version__,
        "threads": arguments.threads,
        "pair_mflop": scoring.pair_flop(scale.sizes) / 1e6,
        "torch": torch_summary(torch_rounds, scoring, scale.sizes),
    }
    if arguments.aeir:
        report["aeir"] = aeir_summary(aeir_rounds, scoring, scale.sizes)
        report["ratios"] = ratios(report["torch"], report["aeir"])
    print_table(report)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
