"""Fields of view: where a unit of a stack of layers looks, and how much each pixel moves it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cudakit import checks
from cudakit.errors import InvalidArgument, raised_by
from cudakit.fov.arrays import Floats, returned
from cudakit.fov.layers import Layer
from cudakit.fov.stack import Stage, arrays, checked, trace
from cudakit.fov.steps import Convolution

COINCIDENT = 1e-6  # pixels
NONLINEARITIES = ("relu", "none")
WEIGHTS = ("random", "ones")


def sampling_positions(layers: Sequence[Layer], input_size: Any, at: Any) -> tuple[Any, Any]:
    """Return where a unit of the output looks in the input, through a stack of layers.

    The unit reads K positions of the layer below; an intermediate position reads the 2**n units around it, with linear
    weights (or as the mode of a `SpatialTransformer` says), and each of these reads K positions of the next layer. So
    three layers of nine taps make 9**3 paths, as in figure 5 of arXiv 1703.06211; those that end in the same place are
    one position here.

    Parameters
    ----------
    layers : sequence of Conv, DeformConv, SpatialTransformer
        From the input to the output.
    input_size : tuple of int
        The input's sizes S, for n = 1, 2 or 3 dimensions.
    at : tuple of int
        The unit: its indices in the last layer's output, y before x.

    Returns
    -------
    positions : array, shape (P, n)
        In pixels of the input, y before x, in ascending order; fractional where the first layer is deformable or a
        spatial transformer. A position is the centre of the pixels that a sample reads, so it never leaves the input;
        samples that read nothing are left out.
    weights : array, shape (P,)
        For each position the sum, over the paths to it, of the products of interpolation weights and magnitudes of the
        mask, all weights of kernels being 1 (over the number of offset groups). A sample within a pixel beyond the
        border has the share of its interpolation that lies inside; all others end inside, with a share of 1.
        Both of the kind of the first array that is given, of NumPy where none is.

    Raises
    ------
    ValueError
        If a shape does not fit, or `at` lies outside of the output.
    TypeError
        If something is no layer, no integer or no floating array.

    Examples
    --------
    >>> from cudakit.fov import Conv, sampling_positions
    >>> positions, weights = sampling_positions([Conv(2), Conv(2)], (9,), (4,))
    >>> positions.T, weights
    (array([[4., 5., 6.]]), array([1., 2., 1.]))
    """
    with raised_by("sampling_positions"):
        steps, unit = checked(layers, input_size, at)
    stages = trace(steps, unit)
    positions, weights = _merged(stages[-1]) if stages else (np.zeros((0, len(unit))), np.zeros(0))
    like = next(iter(arrays(layers)), None)
    return returned(positions, like), returned(weights, like)


def _merged(stage: Stage) -> tuple[Floats, Floats]:
    """Return the samples of a stage's units, weighted and merged."""
    centres, shares = stage.step.samples(stage.units)
    weights = (shares * stage.weights).ravel()
    kept = weights > 0
    positions = np.moveaxis(centres, 1, -1).reshape(-1, centres.shape[1])[kept]
    rounded = np.round(positions / COINCIDENT).astype(np.int64)
    _, first, place = np.unique(rounded, axis=0, return_index=True, return_inverse=True)
    return positions[first], np.bincount(place.ravel(), weights[kept]).astype(np.float64)


def effective_receptive_field(
    layers: Sequence[Layer],
    input_size: Any,
    at: Any,
    *,
    channels: int = 8,
    repeats: int = 20,
    nonlinearity: str = "relu",
    weights: str = "random",
    seed: int = 0,
) -> Any:
    """Return how much each pixel of the input moves a unit of the output: its effective receptive field.

    As in section 3 of arXiv 1701.04128: the gradient 1 at the unit, and 0 everywhere else, is carried back through
    layers of random weights, over and over. The field is the mean square of what arrives, whose expected value that
    paper derives as the field's shape (section 2.2): ``mean over repeats of sum over channels of (dy / dx)**2``.

    Every layer has `channels` channels and normal weights of the variance ``gain / (channels * K)``, with a gain of 2
    before a ReLU and 1 elsewhere. So a field sums to about 1 if all its positions are whole pixels and none is lost at
    the border or to a mask. The gradients are cudakit's own, in float64, on the part of each layer that the unit
    depends on; that is so small that no GPU is asked.

    Parameters
    ----------
    layers, input_size, at
        As for `sampling_positions`; a `SpatialTransformer` warps all channels alike.
    channels : int
        Channels of every layer, a multiple of the offset groups of each.
    repeats : int
        How many times weights, and inputs, are drawn.
    nonlinearity : {"relu", "none"}
        What follows every convolution but the last layer. The input is normal noise.
    weights : {"random", "ones"}
        With "ones" the field is the gradient itself in a network of one channel with weights of 1 and no nonlinearity,
        that paper's simplest case: exact, and what the positions of `sampling_positions` add up to. The options above
        do not matter then.
    seed : int
        For NumPy's `default_rng`. Each repeat draws the weights (channels, channels, k...) of each layer, from the
        input to the output, and then the input.

    Returns
    -------
    array, shape (S...)
        Of the kind of the first array that is given, of NumPy where none is.

    Raises
    ------
    ValueError, TypeError
        As for `sampling_positions`.

    Examples
    --------
    >>> from cudakit.fov import Conv, effective_receptive_field
    >>> field = effective_receptive_field([Conv(3), Conv(3)], (9,), (2,), nonlinearity="none", repeats=2000)
    >>> (field * 9).round()  # 9 paths, of which 3 end at the centre
    array([0., 0., 1., 2., 3., 2., 1., 0., 0.])
    """
    with raised_by("effective_receptive_field"):
        steps, unit = checked(layers, input_size, at)
        channels = _integer("channels", channels, 1)
        repeats = _integer("repeats", repeats, 1)
        seed = _integer("seed", seed, 0)
        checks.choice("nonlinearity", nonlinearity, NONLINEARITIES)
        checks.choice("weights", weights, WEIGHTS)
        for step in steps:
            if weights == "random" and isinstance(step, Convolution) and channels % step.groups:
                raise InvalidArgument("channels", f"be a multiple of the {step.groups} offset groups", channels)
    field = np.zeros(steps[0].space)
    stages = trace(steps, unit)
    if stages and weights == "ones":
        last = stages[-1]
        field[last.reads.slices] = last.step.spread(last.weights, last.units, last.reads)
    elif stages:
        rng = np.random.default_rng(seed)
        squares = (_squares(stages, channels, nonlinearity == "relu", rng) for _ in range(repeats))
        field[stages[-1].reads.slices] = sum(squares) / repeats
    return returned(field, next(iter(arrays(layers)), None))


def _integer(argument: str, value: Any, minimum: int) -> int:
    rule = f"be an int of at least {minimum}"
    return checks.integers(argument, (value,), rule, length=(1,), minimum=minimum, instead=value)[0]


def _squares(stages: list[Stage], channels: int, relu: bool, rng: np.random.Generator) -> Any:
    """Draw weights, and an input for ReLU; return the squared gradients by the pixels that are read."""
    weights = [_draw(stage, channels, relu and stage is not stages[0], rng) for stage in reversed(stages)][::-1]
    open_ = _open(stages, weights, rng.standard_normal((channels, *stages[-1].reads.size))) if relu else {}
    gradient = np.zeros((channels, *stages[0].units.size))
    gradient[0] = 1
    for i, (stage, weight) in enumerate(zip(stages, weights, strict=True)):
        gradient = stage.window.backward(gradient * open_.get(i, 1), weight)
    return (gradient**2).sum(0)


def _draw(stage: Stage, channels: int, relu: bool, rng: np.random.Generator) -> Floats | None:
    if not isinstance(stage.step, Convolution):
        return None
    kernel = rng.standard_normal((channels, channels, *stage.step.kernel))
    scale: Floats = kernel * np.sqrt((2 if relu else 1) / kernel[0].size)
    return scale


def _open(stages: list[Stage], weights: list[Floats | None], x: Floats) -> dict[int, Any]:
    """Run forwards; return which units of each stage, but the one of the output, their ReLU lets through."""
    found = {}
    for i in range(len(stages) - 1, 0, -1):
        x = stages[i].window.forward(x, weights[i])
        if weights[i] is not None:
            found[i] = x > 0
            x = np.maximum(x, 0)
    return found
