#!/usr/bin/env python3
"""PyTorch on a GPU (or any device), eager and with torch.compile, for `cargo xtask gpu-check`.

Times what `aeir bench train|encode|search` times: a SAF training step at full size, encoding of sentences by a BERT and of
images by a CLIP vision tower (the weights of the folders that are given), and exact search. JSON goes to stdout.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

EPSILON = 1e-8


def seconds(work, device, repeats):
    """Median of `repeats` runs after two that are not counted."""
    for _ in range(2):
        work()
    times = []
    for _ in range(repeats):
        settle(device)
        start = time.perf_counter()
        work()
        settle(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def settle(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def unit(x):
    return x / (x.pow(2).sum(-1, keepdim=True) + EPSILON).sqrt()


class SelfAttention(nn.Module):
    """A weighted mean of fragments, weighed by how they fit the plain mean."""

    def __init__(self, dimension):
        super().__init__()
        self.local, self.whole, self.score = nn.Linear(dimension, dimension), nn.Linear(dimension, dimension), nn.Linear(dimension, 1)

    def forward(self, x, mask):
        mean = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        fit = torch.tanh(self.local(x)) * torch.tanh(self.whole(mean))[:, None]
        weights = self.score(fit).squeeze(-1).masked_fill(mask == 0, -1e30).softmax(-1)
        return unit((weights[..., None] * x).sum(1))


class Saf(nn.Module):
    """Similarity attention filtration over all pairs at once, sentences padded."""

    def __init__(self, features, dimension, similarity, vocabulary, words):
        super().__init__()
        self.image = nn.Linear(features, dimension)
        self.words = nn.Embedding(vocabulary, words)
        self.gru = nn.GRU(words, dimension, batch_first=True, bidirectional=True)
        self.of_image, self.of_sentence = SelfAttention(dimension), SelfAttention(dimension)
        self.local, self.whole = nn.Linear(dimension, similarity), nn.Linear(dimension, similarity)
        self.gate, self.norm, self.score = nn.Linear(similarity, 1), nn.BatchNorm1d(1), nn.Linear(similarity, 1)

    def embed(self, regions, ids, mask):
        images = unit(self.image(regions))
        states, _ = self.gru(self.words(ids))
        forwards, backwards = states.chunk(2, -1)
        return images, unit((forwards + backwards) / 2) * mask[..., None]

    def forward(self, images, sentences, mask):
        scores = torch.einsum("nrd,mld->nmrl", images, sentences)
        scores = unit(F.leaky_relu(scores, 0.1)).transpose(2, 3)
        attended = unit(torch.einsum("nmlr,nrd->nmld", (scores * 9).softmax(-1), images))
        local = unit(self.local((attended - sentences[None]).pow(2)))
        whole = self.of_image(images, images.new_ones(images.shape[:2]))[:, None] - self.of_sentence(sentences, mask)[None]
        whole = unit(self.whole(whole.pow(2)))
        vectors = torch.cat([whole[:, :, None], local], 2)
        seen = torch.cat([mask.new_ones(mask.shape[0], 1), mask], 1)[None]
        logits = self.gate(vectors).squeeze(-1)
        gates = torch.sigmoid(self.norm(logits.flatten()[:, None]).view_as(logits)) * seen
        gates = gates / (gates.sum(-1, keepdim=True) + EPSILON)
        return torch.sigmoid(self.score(unit((gates[..., None] * vectors).sum(2)))).squeeze(-1)


def triplet(scores, margin=0.2):
    diagonal = scores.diagonal()
    others = scores - torch.eye(len(scores), device=scores.device) * 1e9
    hinge = lambda best: F.relu(margin + best - diagonal).sum()
    return hinge(others.max(1).values) + hinge(others.max(0).values)


def best_and_sum(target, source):
    """[T, S]: of each source fragment the best target fragment, summed."""
    products = torch.einsum("tfd,sgd->tsgf", target, source)
    return products.max(-1).values.sum(-1)


def structure(own, cross, neighbours=3, temperature=3.0):
    nearest = own.topk(min(neighbours, own.shape[1]), 1).indices
    chosen = lambda scores: (scores.gather(1, nearest) / temperature).log_softmax(-1)
    reference = chosen(own)
    return (reference.exp() * (reference - chosen(cross))).sum()


def saf_step(sizes, device, compiled, repeats):
    torch.manual_seed(1)
    batch, regions, features, dimension, similarity, vocabulary, words, longest = sizes
    model = Saf(features, dimension, similarity, vocabulary, words).to(device)
    critics = nn.ModuleList(
        nn.Sequential(nn.Linear(dimension, dimension // 2), nn.ReLU(), nn.Linear(dimension // 2, 64), nn.ReLU(), nn.Linear(64, 1))
        for _ in range(2)
    ).to(device)
    domain = lambda: (
        torch.randn(batch, regions, features, device=device),
        torch.randint(0, vocabulary, (batch, longest), device=device),
    )
    lengths = torch.randint(longest * 3 // 5, longest + 1, (batch,), device=device)
    mask = (torch.arange(longest, device=device)[None] < lengths[:, None]).float()
    (images, ids), (target_images, target_ids) = domain(), domain()
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=on_gpu)
    of_critics = torch.optim.Adam(critics.parameters(), lr=1e-4, fused=on_gpu)

    def adversary(sides, turned):
        total = 0.0
        for critic, (source, target) in zip(critics, sides):
            source, target = critic(source).squeeze(-1), critic(target).squeeze(-1)
            signs = (-source, target) if not turned else (source, -target)
            total = total + F.softplus(signs[0]).mean() + F.softplus(signs[1]).mean()
        return total

    def losses():
        source = model.embed(images, ids, mask)
        target = model.embed(target_images, target_ids, mask)
        pooled = [(a.mean(1), b.mean(1)) for a, b in zip(source, target)]
        ranking = triplet(model(*source, mask))
        transfer = structure(best_and_sum(target[0], source[0]), best_and_sum(target[0], source[1]))
        transfer = transfer + structure(best_and_sum(target[1], source[1]), best_and_sum(target[1], source[0]))
        return ranking + 1e-3 * transfer, pooled

    if compiled:
        losses = torch.compile(losses)

    def step():
        loss, pooled = losses()
        of_critics.zero_grad(set_to_none=True)
        adversary([(a.detach(), b.detach()) for a, b in pooled], False).backward()
        of_critics.step()
        optimizer.zero_grad(set_to_none=True)
        (loss + adversary(pooled, True)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()

    return seconds(step, device, repeats)


class Block(nn.Module):
    """A transformer layer; `first` says whether norms stand before what they normalise."""

    def __init__(self, weights, names, heads, activation, before, epsilon):
        super().__init__()
        for name, prefix in names.items():
            self.register_buffer(f"{name}_weight", weights[f"{prefix}.weight"])
            self.register_buffer(f"{name}_bias", weights[f"{prefix}.bias"])
        self.heads, self.activation, self.before, self.epsilon = heads, activation, before, epsilon

    def linear(self, name, x):
        return F.linear(x, getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias"))

    def normal(self, name, x):
        return F.layer_norm(x, x.shape[-1:], getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias"), self.epsilon)

    def attend(self, x):
        split = lambda name: self.linear(name, x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(split("query"), split("key"), split("value"))
        return self.linear("output", mixed.transpose(1, 2).flatten(2))

    def forward(self, x):
        feed = lambda x: self.linear("down", self.activation(self.linear("up", x)))
        if self.before:
            x = x + self.attend(self.normal("norm1", x))
            return x + feed(self.normal("norm2", x))
        x = self.normal("norm1", x + self.attend(x))
        return self.normal("norm2", x + feed(x))


class Bert(nn.Module):
    """Mean of the last states, of sentences of equal length."""

    def __init__(self, weights, config):
        super().__init__()
        at = "encoder.layer.{}."
        names = {
            "query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value",
            "output": "attention.output.dense", "norm1": "attention.output.LayerNorm", "up": "intermediate.dense",
            "down": "output.dense", "norm2": "output.LayerNorm",
        }
        self.blocks = nn.ModuleList(
            Block(weights, {key: at.format(i) + name for key, name in names.items()}, config["num_attention_heads"], F.gelu, False, config["layer_norm_eps"])
            for i in range(config["num_hidden_layers"])
        )
        for name in ["word_embeddings", "position_embeddings", "token_type_embeddings"]:
            self.register_buffer(name, weights[f"embeddings.{name}.weight"])
        self.register_buffer("weight", weights["embeddings.LayerNorm.weight"])
        self.register_buffer("bias", weights["embeddings.LayerNorm.bias"])
        self.epsilon = config["layer_norm_eps"]

    def forward(self, ids):
        x = self.word_embeddings[ids] + self.position_embeddings[: ids.shape[1]] + self.token_type_embeddings[0]
        x = F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.epsilon)
        for block in self.blocks:
            x = block(x)
        return F.normalize(x.mean(1), dim=-1)


class ClipVision(nn.Module):
    """The class token of CLIP's image tower, projected."""

    def __init__(self, weights, config):
        super().__init__()
        vision = config.get("vision_config", config)
        at = "vision_model."
        quick = lambda x: x * torch.sigmoid(1.702 * x)
        activation = quick if vision.get("hidden_act", "quick_gelu") == "quick_gelu" else F.gelu
        names = {
            "query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj", "output": "self_attn.out_proj",
            "norm1": "layer_norm1", "norm2": "layer_norm2", "up": "mlp.fc1", "down": "mlp.fc2",
        }
        self.epsilon = vision.get("layer_norm_eps", 1e-5)
        self.blocks = nn.ModuleList(
            Block(weights, {key: f"{at}encoder.layers.{i}.{name}" for key, name in names.items()}, vision.get("num_attention_heads", 12), activation, True, self.epsilon)
            for i in range(vision.get("num_hidden_layers", 12))
        )
        self.patch = vision.get("patch_size", 32)
        buffers = {
            "patches": f"{at}embeddings.patch_embedding.weight", "first": f"{at}embeddings.class_embedding",
            "positions": f"{at}embeddings.position_embedding.weight", "before_weight": f"{at}pre_layrnorm.weight",
            "before_bias": f"{at}pre_layrnorm.bias", "after_weight": f"{at}post_layernorm.weight",
            "after_bias": f"{at}post_layernorm.bias", "projection": "visual_projection.weight",
        }
        for name, key in buffers.items():
            self.register_buffer(name, weights[key])
        # Of bytes.
        device = self.projection.device
        self.register_buffer("mean", torch.tensor([122.77, 116.75, 104.09], device=device)[:, None, None])
        self.register_buffer("deviation", torch.tensor([68.50, 66.63, 70.32], device=device)[:, None, None])

    def forward(self, pixels):
        pixels = (pixels.float() - self.mean) / self.deviation
        x = F.conv2d(pixels, self.patches, stride=self.patch).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(x), 1, -1), x], 1) + self.positions
        x = F.layer_norm(x, x.shape[-1:], self.before_weight, self.before_bias, self.epsilon)
        for block in self.blocks:
            x = block(x)
        x = F.layer_norm(x[:, 0], x.shape[-1:], self.after_weight, self.after_bias, self.epsilon)
        return F.normalize(x @ self.projection.T, dim=-1)


def loaded(folder, device):
    from safetensors.torch import load_file

    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    weights = load_file(os.path.join(folder, "model.safetensors"))
    shortened = {name.removeprefix("bert."): value.float().to(device) for name, value in weights.items()}
    return shortened, config


def encoding_rate(model, inputs, device, compiled, repeats):
    model = torch.compile(model) if compiled else model

    @torch.inference_mode()
    def encode():
        model(inputs.to(device)).cpu()

    return len(inputs) / seconds(encode, device, repeats)


def search_rate(items, dimension, queries, k, device, repeats):
    torch.manual_seed(2)
    base = F.normalize(torch.randn(items, dimension, device=device), dim=-1)
    asked = F.normalize(torch.randn(queries, dimension, device=device), dim=-1)

    @torch.inference_mode()
    def find():
        for part in asked.split(256):
            (part @ base.T).topk(k, 1).indices.cpu()

    return queries / seconds(find, device, repeats)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action="store_true", help="time torch.compile as well as eager mode")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128, help="pairs of a SAF step, and as many target items")
    parser.add_argument("--minilm", metavar="DIR", help="a BERT to encode sentences with")
    parser.add_argument("--clip", metavar="DIR", help="a CLIP to encode images with")
    parser.add_argument("--sentences", type=int, default=256, help="of a batch")
    parser.add_argument("--tokens", type=int, default=16, help="of a sentence")
    parser.add_argument("--images", type=int, default=256, help="of a batch")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--probe", action="store_true", help="only say what PyTorch sees")
    options = parser.parse_args()
    device = torch.device(options.device)
    seen = {"torch": torch.__version__, "cuda": torch.version.cuda, "available": torch.cuda.is_available()}
    if device.type == "cuda" and torch.cuda.is_available():
        seen["device"] = torch.cuda.get_device_name(device)
    if options.probe:
        print(json.dumps(seen))
        return 0
    if device.type == "cuda" and not seen["available"]:
        print("PyTorch sees no CUDA device", file=sys.stderr)
        return 1
    # As aeir: products in f32 stay in f32.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    sizes = (options.batch_size, 36, 2048, 1024, 256, 5000, 300, 20)
    if options.quick:
        sizes = (6, 4, 16, 8, 8, 60, 8, 5)
        options.items, options.dimension, options.queries, options.sentences, options.images = 500, 16, 20, 3, 2
    report = {**seen, "batch_size": sizes[0], "runs": []}
    for compiled in [False, True] if options.compile else [False]:
        run = {"mode": "torch.compile" if compiled else "eager"}
        run["saf_step_seconds"] = saf_step(sizes, device, compiled, options.repeats)
        if options.minilm:
            weights, config = loaded(options.minilm, device)
            ids = torch.randint(0, config["vocab_size"], (options.sentences, options.tokens), device=device)
            run["sentences_per_second"] = encoding_rate(Bert(weights, config), ids, device, compiled, options.repeats)
        if options.clip:
            weights, config = loaded(options.clip, device)
            side = config.get("vision_config", config).get("image_size", 224)
            # As aeir is given them: bytes on the host, resized and cropped.
            pixels = torch.randint(0, 256, (options.images, 3, side, side), dtype=torch.uint8)
            run["images_per_second"] = encoding_rate(ClipVision(weights, config), pixels, device, compiled, options.repeats)
        if not compiled:
            run["queries_per_second"] = search_rate(options.items, options.dimension, options.queries, 10, device, options.repeats)
        report["runs"].append(run)
    if any(not math.isfinite(value) for run in report["runs"] for value in run.values() if isinstance(value, float)):
        print("a time is not a number", file=sys.stderr)
        return 1
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
