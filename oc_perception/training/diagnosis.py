# SPDX-License-Identifier: Apache-2.0
"""Which part of a model made a value that is not finite."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn


def first_non_finite(model: nn.Module, losses: Iterable[dict[str, Tensor]]) -> str | None:
    """Where the first value that is not finite arises while the iterable `losses` calls
    `model.loss`, and in the backward pass of each; None where all are finite.

    Modules are named as in `model.named_modules()`; weights that are not finite show in the
    module that uses them.
    """
    found: list[str] = []

    def check(where: str, values: Iterable[Tensor]) -> None:
        if not found and not all(value.isfinite().all() for value in values):
            found.append(where)

    def watch_module(name: str, module: nn.Module) -> Any:
        label = f"{name} ({type(module).__name__})"

        def check_gradient(gradient: Tensor) -> None:
            check(f"the gradient at the output of {label} is the first not finite", [gradient])

        def check_output(module: nn.Module, inputs: Any, output: Any) -> None:
            tensors = list(_tensors(output))
            check(f"{label} is the first module to give a value that is not finite", tensors)
            for tensor in tensors:
                if tensor.requires_grad:
                    tensor.register_hook(check_gradient)

        return module.register_forward_hook(check_output)

    def watch_weights(name: str, parameter: nn.Parameter) -> Any:
        where = f"the gradient of {name} is the first not finite"
        return parameter.register_hook(lambda gradient: check(where, [gradient]))

    handles = [watch_module(name, module) for name, module in model.named_modules() if name]
    handles += [watch_weights(name, p) for name, p in model.named_parameters() if p.requires_grad]
    try:
        for terms in losses:
            for name in sorted(terms, key="loss".__eq__):  # the sum of the others comes last
                where = f"every module gives finite values, but {name!r} of the loss is not"
                check(where, [terms[name]])
            terms["loss"].backward()
            if found:
                break
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (tuple, list)):
        for item in output:
            yield from _tensors(item)
