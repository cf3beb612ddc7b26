"""Reference values of losses in PyTorch, f64, for the parity tests of aeir-losses.

    python losses.py ../../fixtures/parity/losses          # writes the files
    python losses.py --check ../../fixtures/parity/losses  # exit code 1 where a recorded value differs by more than 1e-12

fixtures/parity/losses/README.md says what each tensor is. Gradients are PyTorch's own; the penalty of the Wasserstein critic
is differentiated twice, and Sinkhorn's iterations are differentiated as they ran.
"""

import argparse
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

torch.set_default_dtype(torch.float64)
TAU = 0.7
NEIGHBOURS = 3


def gradients(loss, **inputs):
    """The derivative of the loss for each named input."""
    found = torch.autograd.grad(loss, list(inputs.values()), retain_graph=True)
    return {f"grad_{name}": gradient for name, gradient in zip(inputs, found)}


def under(prefix, tensors):
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def noise(generator, *shape):
    return torch.randn(*shape, generator=generator)


# Structure transfer ----------------------------------------------------------------------------------------------------


def kullback_leibler(p, q):
    return (p * (p.log() - q.log())).sum()


def jensen_shannon(p, q):
    middle = (p + q) / 2
    return (kullback_leibler(p, middle) + kullback_leibler(q, middle)) / 2


def structure_transfer(generator):
    own, cross = (2 * noise(generator, 5, 8)).requires_grad_(), (2 * noise(generator, 5, 8)).requires_grad_()
    values = {"own": own, "cross": cross}
    for name, divergence in (("kl", kullback_leibler), ("js", jensen_shannon)):
        chosen, nearest = own.topk(NEIGHBOURS, dim=1)
        reference = (chosen / TAU).softmax(1)
        model = (cross.gather(1, nearest) / TAU).softmax(1)
        loss = divergence(reference, model)
        values |= under(name, {"loss": loss} | gradients(loss, own=own, cross=cross))
        loss = divergence(reference.detach(), model)
        values |= under(f"{name}.detached", {"loss": loss} | gradients(loss, cross=cross))
    return values


# Adversaries -----------------------------------------------------------------------------------------------------------


def critic_weights(generator, dimension, widths):
    sizes = [(dimension, widths[0]), (widths[0], widths[1]), (widths[1], 1)]
    weights = {}
    for layer, (inputs, outputs) in enumerate(sizes):
        weights[f"layers.{layer}.weight"] = (noise(generator, outputs, inputs) / math.sqrt(inputs)).requires_grad_()
        weights[f"layers.{layer}.bias"] = (0.3 * noise(generator, outputs)).requires_grad_()
    return weights


def critic(weights, x):
    """One logit a row."""
    for layer in range(3):
        x = F.linear(x, weights[f"layers.{layer}.weight"], weights[f"layers.{layer}.bias"])
        x = x.relu() if layer < 2 else x
    return x.squeeze(1)


def bce(logits, label, weights=None):
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label), weight=weights)


class Reversal(torch.autograd.Function):
    """Identity forwards, the gradient times -strength backwards."""

    @staticmethod
    def forward(context, x, strength):
        context.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(context, gradient):
        return -context.strength * gradient, None


def domain_adversarial(generator):
    weights = critic_weights(generator, 6, (5, 4))
    source, target = noise(generator, 7, 6).requires_grad_(), noise(generator, 4, 6).requires_grad_()
    logits = {"source_logits": critic(weights, source), "target_logits": critic(weights, target)}
    inputs = {"source": source, "target": target} | weights
    values = inputs | logits
    game = bce(logits["source_logits"], 1.0) + bce(logits["target_logits"], 0.0)
    confusion = bce(logits["source_logits"], 0.0) + bce(logits["target_logits"], 1.0)
    values |= under("critic", {"loss": game} | gradients(game, **inputs))
    values |= under("confusion", {"loss": confusion} | gradients(confusion, **inputs))
    progress = torch.tensor([0.0, 0.1, 0.35, 0.5, 0.8, 1.0])
    schedule = 2 / (1 + (-10 * progress).exp()) - 1
    values |= {"progress": progress, "schedule": schedule}
    # A third of the way: what the schedule makes of the gradient.
    strength = schedule[2].item()
    reversed_sides = [critic(weights, Reversal.apply(side, strength)) for side in (source, target)]
    game = bce(reversed_sides[0], 1.0) + bce(reversed_sides[1], 0.0)
    return values | under("reversed", {"loss": game} | gradients(game, **inputs))


def wasserstein(generator):
    weights = critic_weights(generator, 6, (5, 4))
    source, target = noise(generator, 7, 6).requires_grad_(), noise(generator, 4, 6).requires_grad_()
    mix = torch.rand(9, generator=generator)
    scores = critic(weights, source), critic(weights, target)
    distance = scores[0].mean() - scores[1].mean()
    inputs = {"source": source, "target": target} | weights
    values = inputs | {"mix": mix}
    values |= under("encoder", {"loss": distance} | gradients(distance, **inputs))
    values |= under("critic", {"loss": -distance})
    rows = torch.arange(len(mix))
    between = mix[:, None] * source[rows % len(source)] + (1 - mix[:, None]) * target[rows % len(target)]
    between = between.detach().requires_grad_()
    slopes = torch.autograd.grad(critic(weights, between).sum(), between, create_graph=True)[0]
    penalty = 10 * ((slopes.square().sum(1) + 1e-12).sqrt() - 1).square().mean()
    matrices = {name: weight for name, weight in weights.items() if name.endswith("weight")}
    return values | under("penalty", {"slopes": slopes, "loss": penalty} | gradients(penalty, **matrices))


def conditional_adversarial(generator):
    """CDAN with and without entropy conditioning, multilinear and randomised."""
    features = {side: noise(generator, rows, 4).requires_grad_() for side, rows in (("source", 6), ("target", 5))}
    raw = {side: noise(generator, len(rows), 3).requires_grad_() for side, rows in features.items()}
    predictions = {side: logits.softmax(1) for side, logits in raw.items()}
    randoms = noise(generator, 4, 7), noise(generator, 3, 7)
    values = {f"{side}.features": x for side, x in features.items()}
    values |= {f"{side}.predictions": x for side, x in predictions.items()}
    values |= {"map.features": randoms[0], "map.predictions": randoms[1]}
    for kind, width in (("multilinear", 12), ("randomised", 7)):
        weights = critic_weights(generator, width, (5, 4))
        values |= under(kind, weights)
        logits = {}
        for side, x in features.items():
            constant = predictions[side].detach()
            if kind == "multilinear":
                joint = torch.bmm(x.unsqueeze(2), constant.unsqueeze(1)).flatten(1)
            else:
                joint = (x @ randoms[0]) * (constant @ randoms[1]) / math.sqrt(7)
            values[f"{kind}.{side}.joint"] = joint
            logits[side] = critic(weights, joint)
        for name, labels in (("critic", (1.0, 0.0)), ("confusion", (0.0, 1.0))):
            for conditioned in (True, False):
                loss = sum(
                    weighted(logits[side], label, predictions[side].detach(), conditioned)
                    for side, label in zip(("source", "target"), labels)
                )
                how = "entropy" if conditioned else "plain"
                found = gradients(loss, **features, **weights)
                values |= under(f"{kind}.{name}.{how}", {"loss": loss} | found)
    # The gradient through the predictions, where it is wanted.
    joint = torch.bmm(features["source"].unsqueeze(2), predictions["source"].unsqueeze(1)).flatten(1)
    total = (joint * noise(generator, *joint.shape)).sum()
    by_prediction = torch.autograd.grad(total, predictions["source"], retain_graph=True)[0]
    upstream = torch.autograd.grad(total, joint, retain_graph=True)[0]
    return values | {"through.upstream": upstream, "through.grad_predictions": by_prediction}


def weighted(logits, label, predictions, conditioned):
    if not conditioned:
        return bce(logits, label)
    entropy = -(predictions * predictions.log()).sum(1)
    weights = 1 + (-entropy).exp()
    terms = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label), reduction="none")
    return (weights * terms).sum() / weights.sum()


# Optimal transport -----------------------------------------------------------------------------------------------------


def transport(x, y, epsilon, iterations):
    """min <P, C> + epsilon KL(P || a b^T), cost half the squared distance, by iterations that stay in the graph."""
    cost = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square() / 2 if x is not y else own_cost(x)
    log_a = torch.full((len(x),), -math.log(len(x)))
    log_b = torch.full((len(y),), -math.log(len(y)))
    g = torch.zeros(len(y))
    for _ in range(iterations):
        f = -epsilon * torch.logsumexp(log_b + (g - cost) / epsilon, 1)
        g = -epsilon * torch.logsumexp(log_a[:, None] + (f[:, None] - cost) / epsilon, 0)
    plan = (log_a[:, None] + log_b + (f[:, None] + g - cost) / epsilon).exp()
    divergence = (plan * (plan.log() - log_a[:, None] - log_b)).sum() - plan.sum() + 1
    return (plan * cost).sum() + epsilon * divergence


def own_cost(x):
    # The root of cdist has no derivative where the distance is 0.
    return (x[:, None] - x[None, :]).square().sum(2) / 2


def sinkhorn_divergence(generator):
    source, target = noise(generator, 7, 4).requires_grad_(), (noise(generator, 5, 4) + 0.5).requires_grad_()
    values = {"source": source, "target": target}
    for epsilon in (2.0, 1.0):
        of = lambda x, y: transport(x, y, epsilon, 1500)
        loss = of(source, target) - of(source, source) / 2 - of(target, target) / 2
        values |= under(f"eps_{epsilon}", {"loss": loss} | gradients(loss, source=source, target=target))
    return values


RECORDED = (structure_transfer, domain_adversarial, wasserstein, conditional_adversarial, sinkhorn_divergence)


def record(of):
    """A seed for each loss: one that is added changes no other file."""
    generator = torch.Generator().manual_seed(sum(map(ord, of.__name__)))
    return {name: value.detach().clone().contiguous() for name, value in of(generator).items()}


def furthest(path, found):
    recorded = load_file(path)
    if set(recorded) != set(found):
        raise SystemExit(f"{path}: other tensors than expected: {sorted(set(recorded) ^ set(found))}")
    return max((recorded[name] - value).abs().max().item() for name, value in found.items())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--check", action="store_true", help="compare with the files in place of writing them")
    arguments = parser.parse_args()
    fine = True
    for of in RECORDED:
        path, found = arguments.folder / f"{of.__name__}.safetensors", record(of)
        if arguments.check:
            difference = furthest(path, found)
            fine &= difference <= 1e-12
            print(f"{path.name:36} {difference:.1e}")
        else:
            save_file(found, path, metadata={"tau": str(TAU), "K": str(NEIGHBOURS)})
            print(f"{path.name:36} {len(found)} tensors")
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
