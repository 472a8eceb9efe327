"""Which parameters a run trains, and how: frozen layers, decayed matrices, rates by layer."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

from torch import nn

from midigenre.errors import UserError

_FSDP = "_fsdp_wrapped_module."
_LAYER = re.compile(r"^backbone\.(?:layers\.(\d+)\.|lstm\.\w+_l(\d+)(?:_reverse)?$)")

Named = list[tuple[str, nn.Parameter]]


def matrices(model: nn.Module) -> frozenset[str]:
    """Names of the parameters of two dimensions or more."""
    return frozenset(name for name, p in model.named_parameters() if p.ndim >= 2)


def trained(model: nn.Module) -> Named:
    """The parameters that need gradients, by the names that they have without FSDP."""
    # FSDP puts its own name between those of the modules that it wraps.
    return [(name.replace(_FSDP, ""), p) for name, p in model.named_parameters() if p.requires_grad]


def n_layers(names: Iterable[str]) -> int:
    """Number of layers of the backbone that these names of parameters belong to."""
    return 1 + max((_layer(name) for name in names), default=-1)


def depth(name: str, layers: int) -> int:
    """How far from the tokens a parameter lies.

    Norms go with their layer: one before the first layer with the first, one behind the last with
    the last. What :data:`midigenre.trained.SHARED` leaves out (pooling, heads, CLS) is new in a
    model that starts from another one and lies highest.

    Args:
        name: Its name, without FSDP's.
        layers: Number of layers of the backbone.

    Returns:
        0 for the embedding and what stands between it and the layers (learned positions, the local
        convolution), 1 to ``layers`` for the layers, ``layers + 1`` for the rest.
    """
    layer = _layer(name)
    if layer >= 0:
        return layer + 1
    if name.startswith(("embedding.", "backbone.positions.", "backbone.local.")):
        return 0
    if name.startswith("backbone.input_norm."):
        return min(1, layers)
    return layers if name.startswith("backbone.") else layers + 1


def _layer(name: str) -> int:
    found = _LAYER.match(name)
    return -1 if found is None else int(found[1] or found[2] or 0)


def groups(
    used: Named, decayed: Collection[str], lr: float, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups of an optimizer, the one with the highest rate first.

    Args:
        used: What it trains.
        decayed: Names of the parameters that are decayed.
        lr: Rate of the head.
        weight_decay: Decay of the decayed.
        layer_decay: The rate of a layer over that of the next one (Clark et al. 2020, ELECTRA,
            appendix A; Bao et al. 2022, BEiT, appendix): ``lr`` for the heads, ``lr *
            layer_decay ** (L + 1 - depth)`` for the others of ``L`` layers (:func:`depth`).
            1 gives all the same rate, in two groups.

    Returns:
        Groups that hold at least one parameter.
    """
    top = n_layers(name for name, _ in used) + 1
    levels: list[int | None] = [None] if layer_decay == 1 else list(range(top, -1, -1))
    found: list[dict[str, Any]] = []
    for level in levels:
        here = [(n, p) for n, p in used if level is None or depth(n, top - 1) == level]
        rate = {} if level is None else {"lr": lr * layer_decay ** (top - level)}
        for decay in (True, False):
            params = [p for n, p in here if (n in decayed) == decay]
            if params:
                group = {"params": params, "weight_decay": weight_decay if decay else 0.0}
                found.append(group | rate)
    return found


def check_frozen(freeze_layers: Any, layers: int) -> None:
    """Refuses a setting ``freeze_layers`` that does not fit a backbone of so many layers.

    Raises:
        UserError: It is neither ``all`` nor a number from 0 to ``layers``.
    """
    is_number = isinstance(freeze_layers, int) and not isinstance(freeze_layers, bool)
    if freeze_layers != "all" and not (is_number and 0 <= freeze_layers <= layers):
        raise UserError(
            f"freeze_layers={freeze_layers}: give all (the whole backbone) or 0 (nothing) to "
            f"{layers}, the layers of this model"
        )


def freeze(model: nn.Module, freeze_layers: int | str) -> tuple[nn.Module, ...]:
    """Takes the gradients from the embedding and the first layers of a model's backbone.

    Args:
        model: A model with an ``embedding`` and a ``backbone``, not yet wrapped by a strategy.
        freeze_layers: How many layers to freeze; the embedding and what stands before the layers
            goes with the first of them. ``all``: the whole backbone with its last norm, for a
            probe. 0: nothing.

    Returns:
        The modules that are frozen as a whole and belong into evaluation mode: a probe sees what
        the backbone says without dropout. None where some layers go on learning: there dropout
        stays on, as in ordinary fine-tuning.

    Raises:
        UserError: See :func:`check_frozen`.
    """
    names = [name for name, _ in model.named_parameters()]
    layers = n_layers(names)
    check_frozen(freeze_layers, layers)
    if freeze_layers == 0:
        return ()
    whole = freeze_layers == "all"
    for name, p in model.named_parameters():
        inside = name.startswith(("embedding.", "backbone."))
        # The last norm stands behind the whole backbone, not in a layer that may be frozen.
        below = not name.startswith("backbone.final_norm.")
        if inside and (whole or (below and depth(name, layers) <= int(freeze_layers))):
            p.requires_grad_(False)
    if not whole:
        return ()
    return model.get_submodule("embedding"), model.get_submodule("backbone")
