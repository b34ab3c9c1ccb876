"""The layers for PyTorch: torchvision's form, mmcv's parameters, and what they begin as."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from .conftest import require

torch: Any = None
nn: Any = None


@pytest.fixture(autouse=True)
def _torch(torch_device: str) -> None:
    global torch, nn
    torch = require("torch")
    import cudakit.torch.nn

    nn = cudakit.torch.nn
    torch.manual_seed(0)


def layer(kind: str, n: int, *arguments: Any, **options: Any) -> Any:
    return getattr(nn, kind.format(n=n))(*arguments, **options)


def out_size(convolution: Any, *sizes: int) -> tuple[int, ...]:
    """Return the spatial size of what comes out of a layer."""
    geometry = (convolution.kernel_size, convolution.stride, convolution.padding, convolution.dilation)
    return tuple(torch.nn.Conv2d(1, 1, *geometry)(torch.zeros(1, 1, *sizes)).shape[2:])


@pytest.mark.parametrize("n", [1, 2, 3])
def test_parameters_begin_as_those_of_a_convolution(n: int) -> None:
    ordinary = getattr(torch.nn, f"Conv{n}d")
    for options in ({}, {"groups": 2, "bias": False}):
        torch.manual_seed(1)
        expected = ordinary(4, 6, 3, **options).state_dict()
        torch.manual_seed(1)
        found = layer("DeformConv{n}d", n, 4, 6, 3, **options).state_dict()
        assert list(found) == list(expected)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["DeformConv{n}d", "DeformConv{n}dPack", "ModulatedDeformConv{n}dPack"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_without_offsets_it_is_a_convolution(n: int, kind: str) -> None:
    moves = {"stride": 2, "padding": 1, "dilation": 1, "groups": 2}
    found = layer(kind, n, 4, 6, 3, **moves)
    image = torch.rand(2, 4, *(9, 8, 7)[:n])
    expected = getattr(torch.nn.functional, f"conv{n}d")(image, found.weight, None, **moves)
    arguments = (torch.zeros(2, n * 3**n, *expected.shape[2:]),) if kind == "DeformConv{n}d" else ()
    half = 0.5 if kind.startswith("Modulated") else 1.0
    expected = half * expected + found.bias.reshape(-1, *[1] * n)
    torch.testing.assert_close(found(image, *arguments), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["DeformConv{n}d", "ModulatedDeformConv{n}dPack"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_device_and_dtype_of_parameters(n: int, kind: str) -> None:
    for options in ({"dtype": torch.float64}, {"device": "meta", "dtype": torch.bfloat16}, {"device": "meta"}):
        made = set(layer(kind, n, 4, 6, 3, **options).parameters())
        assert len(made) == (2 if kind == "DeformConv{n}d" else 4)
        assert {x.dtype for x in made} == {options.get("dtype", torch.get_default_dtype())}
        assert {x.device.type for x in made} == {options.get("device", torch.get_default_device().type)}


@pytest.mark.parametrize("allowed", [False, True])
def test_whether_factors_may_be_rounded(monkeypatch: pytest.MonkeyPatch, allowed: bool) -> None:
    from cudakit.torch import convolutions

    seen = []
    monkeypatch.setitem(convolutions._FUNCTIONS, 2, lambda *_, allow_tf32: seen.append(allow_tf32))
    for found in (nn.DeformConv2d(4, 6, 3), nn.DeformConv2dPack(4, 6, 3)):
        if allowed:
            found.allow_tf32 = True
        found(torch.rand(1, 4, 5, 5), *[torch.zeros(1, 18, 3, 3)] * isinstance(found, nn.DeformConv2d))
    assert seen == [allowed] * 2


def test_pack_is_the_plain_layer_with_offsets_and_masks_of_its_own() -> None:
    pack = nn.ModulatedDeformConv2dPack(4, 6, 3, padding=1, deform_groups=2)
    torch.nn.init.normal_(pack.conv_offset.weight, std=0.3)
    plain = nn.DeformConv2d(4, 6, 3, padding=1)
    plain.load_state_dict({name: value for name, value in pack.state_dict().items() if "." not in name})
    image = torch.rand(2, 4, 5, 6)
    first, second, mask = pack.conv_offset(image).chunk(3, dim=1)
    expected = plain(image, torch.cat((first, second), 1), mask.sigmoid())
    torch.testing.assert_close(pack(image), expected)
    assert list(pack.state_dict()) == ["weight", "bias", "conv_offset.weight", "conv_offset.bias"]
    pack(image).sum().backward()
    assert all(parameter.grad is not None for parameter in pack.parameters())


def test_form_of_torchvision() -> None:
    torchvision = pytest.importorskip("torchvision", exc_type=(ImportError, RuntimeError))
    for arguments in ({}, {"stride": (2, 1), "padding": 1, "dilation": 2, "groups": 2, "bias": False}):
        torch.manual_seed(2)
        theirs = torchvision.ops.DeformConv2d(4, 6, (3, 2), **arguments)
        torch.manual_seed(2)
        ours = nn.DeformConv2d(4, 6, (3, 2), **arguments)
        assert repr(ours) == repr(theirs)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        torch.testing.assert_close(ours.weight, theirs.weight, rtol=0, atol=0)
        ours.load_state_dict(theirs.state_dict())
        height, width = out_size(ours, 9, 8)
        image, offset = torch.rand(2, 4, 9, 8), torch.randn(2, 12, height, width)
        mask = torch.rand(2, 6, height, width)
        torch.testing.assert_close(ours(image, offset), theirs(image, offset), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours(image, offset, mask), theirs(image, offset, mask), rtol=1e-4, atol=1e-4)


def test_settings_are_shown_where_they_are_not_the_defaults() -> None:
    assert repr(nn.DeformConv1d(4, 8, 3)) == "DeformConv1d(4, 8, kernel_size=(3,), stride=(1,))"
    shown = repr(nn.DeformConv2d(4, 8, 3, 2, 1, 2, 4, bias=False))
    expected = "4, 8, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(2, 2), groups=4, bias=False"
    assert shown == f"DeformConv2d({expected})"


@pytest.mark.parametrize(("channels", "name"), [((3, 4), "in_channels"), ((4, 3), "out_channels")])
def test_channels_must_fall_into_groups(channels: tuple[int, int], name: str) -> None:
    with pytest.raises(ValueError, match=f"^DeformConv2d: {name} must be divisible by groups=2, got 3$"):
        nn.DeformConv2d(*channels, 3, groups=2)


@pytest.mark.parametrize("n", [2, 3])
def test_spatial_transformer_begins_at_the_identity(n: int) -> None:
    look = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(5))
    transformer = nn.SpatialTransformer(look, 5, n=n)
    image = torch.rand(2, 3, *(5, 6, 7)[:n])
    torch.testing.assert_close(transformer(image), image, rtol=1e-5, atol=1e-5)
    transformer(image).square().sum().backward()
    assert transformer.affine.weight.grad.abs().sum() > 0


def test_spatial_transformer_of_another_size_under_autocast(torch_device: str) -> None:
    look = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.AdaptiveAvgPool2d(1))
    transformer = nn.SpatialTransformer(look, 2, size=(4, 5))
    image = torch.rand(2, 3, 8, 10)
    torch.nn.init.normal_(transformer.affine.bias)
    theta = transformer.affine.bias.reshape(1, 2, 3).expand(2, 2, 3)
    grid = torch.nn.functional.affine_grid(theta, (2, 3, 4, 5), align_corners=False)
    expected = torch.nn.functional.grid_sample(image, grid, align_corners=False)
    with torch.autocast(torch_device, torch.bfloat16):
        found = transformer(image)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_spatial_transformer_of_half_precision_computes_positions_in_more(dtype: str) -> None:
    transformer = nn.SpatialTransformer(torch.nn.Flatten(), 3 * 40 * 50).to(getattr(torch, dtype))
    image = torch.rand(2, 3, 40, 50).to(getattr(torch, dtype))
    torch.testing.assert_close(transformer(image), image, rtol=0, atol=0.01)  # a step of bfloat16 is 0.1 pixels
    transformer(image).sum().backward()
    assert transformer.affine.weight.grad.dtype == image.dtype


def test_spatial_transformer_of_meta_tensors() -> None:
    transformer = nn.SpatialTransformer(torch.nn.Flatten(), 12, size=(3, 5)).to("meta")
    assert transformer(torch.empty(2, 3, 2, 2, device="meta")).shape == (2, 3, 3, 5)


@pytest.mark.parametrize("told", [False, True], ids=["", "where tensors are made"])
def test_layers_compile(torch_device: str, told: bool) -> None:
    """Also where it is said on which device to make tensors, by which PyTorch traces more of itself."""
    torch._dynamo.reset()
    with torch.device(torch_device) if told else nullcontext():
        look = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.AdaptiveAvgPool2d(1))
        model = torch.nn.Sequential(
            nn.SpatialTransformer(look, 2), nn.DeformConv2dPack(3, 4, 3), nn.ModulatedDeformConv2dPack(4, 2, 3)
        )
        image = torch.rand(2, 3, 9, 8)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        compiled(image).sum().backward()
        found = [parameter.grad for parameter in model.parameters()]
        model.zero_grad()
        model(image).sum().backward()
        torch.testing.assert_close(found, [parameter.grad for parameter in model.parameters()])


def test_layers_are_traced_by_symbols() -> None:
    """As torchvision's feature extractors trace a model."""
    model = torch.nn.Sequential(
        nn.SpatialTransformer(torch.nn.Flatten(), 3 * 9 * 8, size=(5, 6)),
        nn.DeformConv2dPack(3, 4, 3, padding=(0, 0, 1, 1)),
        nn.SpatialTransformer(torch.nn.Flatten(), 4 * 4 * 5),
        nn.ModulatedDeformConv2dPack(4, 2, 3),
    )
    traced = torch.fx.symbolic_trace(model)
    functions = [node.target.__name__ for node in traced.graph.nodes if node.op == "call_function"]
    names = ["affine_grid", "grid_sample", "deform_conv2d"]
    assert [name for name in functions if name in names] == 2 * names
    image = torch.rand(2, 3, 9, 8)
    torch.testing.assert_close(traced(image), model(image), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"padding": "same"}, "padding must be a non-negative int or a tuple of them, got 'same'"),
        ({"kernel_size": (3, 3, 3)}, r"kernel_size must be an int or 2 ints, got \(3, 3, 3\)"),
        ({"stride": 0}, "stride must be a positive int"),
        ({"groups": 0}, "groups must be a positive int, got 0"),
        ({"in_channels": 4.0}, "in_channels must be a positive int, got 4.0"),
        ({"bias": "yes"}, "bias must be True or False, got 'yes'"),
        ({"deform_groups": 0}, "deform_groups must be a positive int, got 0"),
        ({"deform_groups": 3}, "in_channels must be divisible by deform_groups=3, got 4"),
    ],
)
def test_what_a_layer_refuses(arguments: dict[str, Any], message: str) -> None:
    usual = {"in_channels": 4, "out_channels": 4, "kernel_size": 3}
    layer = nn.DeformConv2dPack if "deform_groups" in arguments else nn.DeformConv2d
    with pytest.raises((TypeError, ValueError), match=f"{layer.__name__}: {message}"):
        layer(**usual | arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 1}, "n must be 2 or 3, got 1"),
        ({"n": 4}, "n must be 2 or 3, got 4"),
        ({"size": 3}, "size must be None or 2 positive ints, got 3"),
        ({"size": (3, 0), "n": 2}, r"size must be None or 2 positive ints, got \(3, 0\)"),
        ({"features": "x"}, "features must be a positive int, got 'x'"),
        ({"mode": "linear"}, "mode must be one of 'nearest', 'bilinear', 'bicubic', got 'linear'"),
        ({"padding_mode": "zero"}, "padding_mode must be one of"),
        ({"align_corners": "no"}, "align_corners must be True or False, got 'no'"),
    ],
)
def test_what_a_spatial_transformer_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"SpatialTransformer: {message}"):
        nn.SpatialTransformer(torch.nn.Flatten(), **{"features": 4} | arguments)


@pytest.mark.parametrize(
    ("n", "padding", "edges"), [(1, (0, 2), (0, 2)), (2, (0, 1, 2, 1), (1, 1, 0, 2)), (3, (0, 1, 2, 3, 0, 1), None)]
)
def test_pack_with_other_padding_at_the_end(n: int, padding: tuple[int, ...], edges: tuple[int, ...] | None) -> None:
    layer = getattr(nn, f"DeformConv{n}dPack")(2, 3, 3, padding=padding)
    image = torch.rand(2, 2, *(6, 5, 4)[:n])
    padded = torch.nn.functional.pad(image, edges or (2, 1, 1, 0, 0, 3))
    expected = getattr(torch.nn.functional, f"conv{n}d")(padded, layer.weight, layer.bias)
    torch.testing.assert_close(layer(image), expected)


def test_sizes_of_a_layer_may_be_integers_of_numpy() -> None:
    layer = nn.DeformConv2d(4, 4, np.int64(3), padding=(np.int64(1), 1, 2, 2))
    assert (layer.kernel_size, layer.padding) == ((3, 3), (1, 1, 2, 2))
