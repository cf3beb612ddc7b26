"""How many sentences and images a second PyTorch encodes, and with --aeir the command beside it.

    python encode_speed.py --minilm DIR --efficientnet ../../fixtures/backbones/efficientnet-lite0 --aeir ../../target/release/aeir

DIR holds all-MiniLM-L6-v2 (`model.safetensors`, `config.json`, `modules.json`); either model can be left out. PyTorch and the
command take turns (torch, aeir, torch, aeir), with the same weights, inputs and threads; first components of the first vectors
have to agree before anything counts. Ratios are of medians of this one run. JSON goes to stdout, a table to stderr.

PyTorch runs in two forms of each, written here: MiniLM eager and with torch's fused attention, EfficientNet-lite0 eager and with
batch norms folded into channels-last convolutions.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

# Seconds a round that each form is repeated for.
TIMED = 2.0


class MiniLm(nn.Module):
    """BERT with the pooling of sentence-transformers: the mean over the tokens, then unit length."""

    def __init__(self, folder, is_fused):
        super().__init__()
        self.config = json.loads((folder / "config.json").read_text())
        modules = (folder / "modules.json").read_text() if (folder / "modules.json").is_file() else ""
        self.normalises = "Normalize" in modules
        self.is_fused = is_fused
        weights = load_file(folder / "model.safetensors")
        self.weights = nn.ParameterDict(
            {name.replace(".", "/"): nn.Parameter(value) for name, value in weights.items() if value.is_floating_point()}
        )

    def part(self, name):
        return self.weights[name.replace(".", "/")]

    def linear(self, x, name):
        return F.linear(x, self.part(f"{name}.weight"), self.part(f"{name}.bias"))

    def norm(self, x, name):
        weight, bias = self.part(f"{name}.weight"), self.part(f"{name}.bias")
        return F.layer_norm(x, weight.shape, weight, bias, self.config["layer_norm_eps"])

    def attend(self, x, mask, name):
        heads = self.config["num_attention_heads"]
        q, k, v = (
            self.linear(x, f"{name}.self.{part}").unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        if self.is_fused:
            found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + mask
            found = scores.softmax(-1) @ v
        return self.linear(found.transpose(1, 2).flatten(2), f"{name}.output.dense")

    def forward(self, ids, real):
        mask = torch.where(real[:, None, None, :] > 0, 0.0, torch.finfo(torch.float32).min)
        x = F.embedding(ids, self.part("embeddings.word_embeddings.weight"))
        x = x + self.part("embeddings.position_embeddings.weight")[: ids.shape[1]]
        x = self.norm(x + self.part("embeddings.token_type_embeddings.weight")[0], "embeddings.LayerNorm")
        for layer in range(self.config["num_hidden_layers"]):
            name = f"encoder.layer.{layer}"
            x = self.norm(x + self.attend(x, mask, f"{name}.attention"), f"{name}.attention.output.LayerNorm")
            inner = F.gelu(self.linear(x, f"{name}.intermediate.dense"))
            x = self.norm(x + self.linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
        pooled = (x * real[:, :, None]).sum(1) / real.sum(1, keepdim=True)
        return F.normalize(pooled, dim=-1) if self.normalises else pooled


class Convolution(nn.Module):
    """A convolution with TensorFlow's SAME padding, its batch norm and perhaps ReLU6."""

    def __init__(self, weights, name, norm, stride, epsilon, groups=1, clamps=True, folds=False):
        super().__init__()
        weight = weights[f"{name}.weight"].float()
        scale, shift, mean, variance = (
            weights[f"{norm}.{part}"].float() for part in ("weight", "bias", "running_mean", "running_var")
        )
        outputs, _, self.kernel, _ = weight.shape
        self.stride, self.clamps = stride, clamps
        self.convolution = nn.Conv2d(weight.shape[1] * groups, outputs, self.kernel, stride, groups=groups, bias=folds)
        if folds:
            factor = scale / (variance + epsilon).sqrt()
            weight = weight * factor[:, None, None, None]
            self.convolution.bias.data.copy_(shift - mean * factor)
            self.norm = nn.Identity()
        else:
            self.norm = nn.BatchNorm2d(outputs, eps=epsilon)
            self.norm.load_state_dict(
                {"weight": scale, "bias": shift, "running_mean": mean, "running_var": variance}, strict=False
            )
        self.convolution.weight.data.copy_(weight)

    def forward(self, x):
        size = x.shape[-1]
        total = max((-(-size // self.stride) - 1) * self.stride + self.kernel - size, 0)
        if total % 2 == 0:
            x = F.conv2d(
                x,
                self.convolution.weight,
                self.convolution.bias,
                self.stride,
                total // 2,
                groups=self.convolution.groups,
            )
        else:
            x = self.convolution(F.pad(x, [total // 2, total - total // 2] * 2))
        x = self.norm(x)
        return F.relu6(x) if self.clamps else x


class EfficientNet(nn.Module):
    def __init__(self, folder, folds):
        super().__init__()
        config = json.loads((folder / "config.json").read_text())
        weights = load_file(folder / "model.safetensors")
        epsilon = config["batch_norm_eps"]

        def convolution(name, norm, stride=1, **options):
            return Convolution(weights, name, norm, stride, epsilon, folds=folds, **options)

        self.stem = convolution("_conv_stem", "_bn0", 2)
        self.blocks = nn.ModuleList()
        self.shortcuts = []
        index = 0
        for stage in config["stages"]:
            channels = stage["in"]
            for repeat in range(stage["repeats"]):
                stride = stage["stride"] if repeat == 0 else 1
                name, wide, parts = f"_blocks.{index}", channels * stage["expand"], []
                if stage["expand"] > 1:
                    parts.append(convolution(f"{name}._expand_conv", f"{name}._bn0"))
                parts.append(convolution(f"{name}._depthwise_conv", f"{name}._bn1", stride, groups=wide))
                parts.append(convolution(f"{name}._project_conv", f"{name}._bn2", clamps=False))
                self.blocks.append(nn.Sequential(*parts))
                self.shortcuts.append(stride == 1 and channels == stage["out"])
                channels = stage["out"]
                index += 1
        self.head = convolution("_conv_head", "_bn1")

    def forward(self, x):
        x = self.stem(x)
        for block, is_added in zip(self.blocks, self.shortcuts):
            x = x + block(x) if is_added else block(x)
        return self.head(x).mean((2, 3))


def pictures(count, config):
    """The command's made-up photographs, resized and scaled as the model's configuration says."""
    size = config["image_size"]
    values = []
    for seed in range(count):
        y, x = np.mgrid[0:375, 0:500]
        pixels = np.stack([x + 31 * seed, y + 17 * seed, x * y // 64], -1).astype(np.uint8)
        resized = Image.fromarray(pixels).resize((size, size), Image.BICUBIC)
        scaled = (np.asarray(resized, np.float32) / 255 - config["mean"]) / config["std"]
        values.append(torch.from_numpy(scaled.transpose(2, 0, 1).astype(np.float32)))
    return torch.stack(values)


def seconds(work):
    """The median time of a call, after two that do not count."""
    work(), work()
    times, start = [], time.perf_counter()
    while len(times) < 5 or time.perf_counter() - start < TIMED:
        before = time.perf_counter()
        work()
        times.append(time.perf_counter() - before)
    return statistics.median(times)


def step(model, inputs):
    model.zero_grad(set_to_none=True)
    model(*inputs).sum().backward()


def run_aeir(arguments, part, *options):
    command = [arguments.aeir, "bench", "encode", "--json", "--threads", str(arguments.threads), *map(str, options)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)[part]


def assert_equal(name, got, expected, tolerance):
    difference = max(abs(a - b) for a, b in zip(got, expected))
    if difference > tolerance:
        sys.exit(f"{name}: first components differ by {difference}: {got} {expected}")
    return difference


def compare(name, forms, ours):
    """Rates of all forms and of the command, in turn, and the ratios."""
    torch_rounds, aeir_rounds = [], []
    for _ in range(2):
        torch_rounds.append({form: seconds(work) for form, work in forms.items()})
        aeir_rounds.append(ours())
    torch_seconds = {form: statistics.median(r[form] for r in torch_rounds) for form in forms}
    aeir_seconds = {form: statistics.median(r[form] for r in aeir_rounds) for form in aeir_rounds[0]}
    report = {"torch_seconds": torch_seconds, "aeir_seconds": aeir_seconds, "aeir_over_torch_rate": {}}
    for form, time_of_torch in torch_seconds.items():
        for own, time_of_aeir in aeir_seconds.items():
            if ("step" in form) == ("step" in own):
                report["aeir_over_torch_rate"][f"{own} / {form}"] = time_of_torch / time_of_aeir
    print(f"\n{name}", file=sys.stderr)
    for ratio, value in report["aeir_over_torch_rate"].items():
        print(f"  {value:6.2f}  {ratio}", file=sys.stderr)
    return report


def minilm(arguments):
    options = ["--text-encoder", arguments.minilm, "--batch-size", arguments.sentences, "--tokens", arguments.tokens]
    found = run_aeir(arguments, "text", *options)
    ids = torch.tensor([found["token_ids"]] * arguments.sentences)
    inputs = ids, torch.ones_like(ids, dtype=torch.float32)
    eager, fused = (MiniLm(Path(arguments.minilm), is_fused).eval() for is_fused in (False, True))
    with torch.inference_mode():
        for model in (eager, fused):
            assert_equal("MiniLM", model(*inputs)[0].tolist(), found["first"], 1e-5)

    def plain(model):
        def work():
            with torch.inference_mode():
                model(*inputs)

        return work

    forms = {"eager": plain(eager), "fused attention": plain(fused)}
    if arguments.fine_tune:
        forms |= {"step, eager": lambda: step(eager, inputs), "step, fused attention": lambda: step(fused, inputs)}

    def ours():
        found = run_aeir(arguments, "text", *options, *(["--fine-tune"] if arguments.fine_tune else []))
        rates = {"network": "network_sentences_per_second", "with tokenising": "sentences_per_second"}
        times = {form: arguments.sentences / found[rate] for form, rate in rates.items()}
        return times | ({"step": found["fine_tuning_step_seconds"]} if arguments.fine_tune else {})

    return compare(f"MiniLM, {arguments.sentences} sentences of {len(found['token_ids'])} tokens", forms, ours)


def efficientnet(arguments):
    folder = Path(arguments.efficientnet)
    options = ["--image-encoder", folder, "--batch-size", arguments.images]
    found = run_aeir(arguments, "image", *options)
    x = pictures(arguments.images, json.loads((folder / "config.json").read_text()))
    eager = EfficientNet(folder, folds=False).eval()
    folded = EfficientNet(folder, folds=True).eval().to(memory_format=torch.channels_last)
    last = x.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        for model, x_of_model in ((eager, x), (folded, last)):
            assert_equal("EfficientNet", model(x_of_model)[0].tolist(), found["first"], 1e-3)

    def plain(model, x):
        def work():
            with torch.inference_mode():
                model(x)

        return work

    forms = {"eager": plain(eager, x), "folded, channels last": plain(folded, last)}

    def ours():
        found = run_aeir(arguments, "image", *options)
        rates = {"network": "network_images_per_second", "with preprocessing": "images_per_second"}
        return {form: arguments.images / found[rate] for form, rate in rates.items()}

    return compare(f"EfficientNet-lite0, {arguments.images} images", forms, ours)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aeir", required=True, metavar="PROGRAM")
    parser.add_argument("--minilm", metavar="DIR")
    parser.add_argument("--efficientnet", metavar="DIR")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sentences", type=int, default=32, help="of a batch")
    parser.add_argument("--tokens", type=int, default=16, help="of a sentence")
    parser.add_argument("--images", type=int, default=8, help="of a batch")
    parser.add_argument("--fine-tune", action="store_true", help="forward and backward passes of MiniLM as well")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report = {"torch_version": torch.__version__, "threads": arguments.threads}
    if arguments.minilm:
        report["minilm"] = minilm(arguments)
    if arguments.efficientnet:
        report["efficientnet"] = efficientnet(arguments)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
