"""What `needs` does not name costs nothing: no kernel is told to write it, and no memory is taken for it."""

import itertools

import pytest

from cudakit.launch import Launch
from cudakit.op import OPS
from cudakit.plan import Plan, Target

from .specialisations import CALLS, CUDA, HOST

OPERATORS = [
    name
    for name in OPS
    if name.endswith("_backward") and not name.endswith("_double_backward") and "affine" not in name
]
# Pointers of kernels to what a gradient is written to, or added up in.
WRITTEN = {
    "grad_input": "input",
    "grad_grid": "grid",
    "grad_offset": "offset",
    "part_offset": "offset",
    "grad_mask": "mask",
    "part_mask": "mask",
    "packed": "weight",
    "grad_weight": "weight",
    "sums": "weight",
}
SOME = 37  # every so many of an operator's calls; a prime, so that all arguments take all values


def written(plan: Plan) -> set[str]:
    """Return the gradients that some kernel of a plan has a place for."""
    found = set()
    for step in plan.steps:
        if isinstance(step.launch, Launch):
            kernel = step.launch.kernel._kernel
            places = step.pick(tuple(range(1000)))  # of the table of addresses, in which the first is null
            fields = [name for name, _ in kernel.fields[: kernel.pointers]]
            found |= {WRITTEN[name] for name, place in zip(fields, places, strict=True) if place and name in WRITTEN}
    return found


@pytest.mark.parametrize("target", [HOST, CUDA], ids=lambda target: target.device[0])
@pytest.mark.parametrize("name", OPERATORS)
def test_a_gradient_that_is_not_needed_costs_nothing(name: str, target: Target) -> None:
    names = OPS[name].gradients_by
    for specs, options in itertools.islice(CALLS[name](), 0, None, SOME):
        options = options._replace(needs=names)
        memory = OPS[name].prepare(specs, options, target).temporary
        for need in names:
            plan = OPS[name].prepare(specs, options._replace(needs=(need,)), target)
            assert plan.temporary <= memory
            assert [result is not None for result in plan.results] == [other == need for other in names]
            # What cuBLAS multiplies, and sums of biases, go where results are by other ways.
            assert written(plan) <= {need}
