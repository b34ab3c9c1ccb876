"""``cudakit fov``: what it compares, what it prints and draws, and what it says of mistakes."""

import argparse
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cudakit import reference
from cudakit.__main__ import main
from cudakit.cli import fov
from cudakit.cli.fov_learning import learn_offsets, smooth, swirl, swirled
from cudakit.cli.fov_stacks import (
    choose_places,
    convolutions,
    deformable,
    matching_transformer,
    steered_offsets,
    steering,
)
from cudakit.fov import moments, sampling_positions

from .processes import python
from .test_cli import mistake

Image = np.ndarray[Any, np.dtype[np.float32]]


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """Write a photograph of 96 × 64 pixels: a bright disc, its upper half striped."""
    pillow = pytest.importorskip("PIL.Image")
    for module in ("matplotlib", "rich"):
        pytest.importorskip(module)
    y, x = np.mgrid[:64, :96]
    disc = (np.hypot(y - 32, x - 48) < 24) * (1 - 0.5 * ((y < 32) & (x % 6 < 3)))
    pillow.fromarray((200 * disc + 30).astype(np.uint8)).save(tmp_path / "disc.png")
    return tmp_path / "disc.png"


def edge(degrees: float) -> Image:
    """Return a picture of a straight edge through its middle."""
    y, x = np.mgrid[:64, :80] - np.array([32, 40]).reshape(2, 1, 1)
    angle = np.radians(degrees)  # from the x axis as one sees it, y pointing down
    side = np.tanh(np.sin(angle) * x + np.cos(angle) * y)
    return np.broadcast_to(side, (1, 3, 64, 80)).astype(np.float32)


@pytest.mark.parametrize("degrees", [0, 30, 90, -45])
def test_steering_follows_an_edge(degrees: float) -> None:
    at, offsets = (32, 40), steered_offsets(steering(edge(degrees)), 3)
    positions, weights = sampling_positions(deformable([offsets], [3]), (64, 80), at)
    found = moments(weights, positions)
    assert found.elongation > 3
    assert abs((found.angle - degrees + 90) % 180 - 90) < 2
    np.testing.assert_allclose(found.centre, at, atol=1e-9)


def test_steering_of_an_even_picture_is_wide_and_round() -> None:
    steer = steering(np.full((1, 3, 40, 50), 0.5, np.float32))
    np.testing.assert_allclose(steer, 4 * np.eye(2)[:, :, None, None] * np.ones((40, 50)))
    places = choose_places(steer)
    assert [place.letter for place in places] == ["A", "B", "C"]


def test_places_are_an_edge_an_even_one_and_a_busy_one() -> None:
    picture = np.zeros((1, 3, 120, 120), np.float32)
    picture[..., :60, 60:] = 1  # a corner at (60, 60), and two edges
    found = choose_places(steering(picture))
    (edge_y, edge_x), (flat_y, flat_x), (busy_y, busy_x) = (place.pixel for place in found)
    assert min(abs(edge_y - 59.5), abs(edge_x - 59.5)) < 2
    assert min(abs(flat_y - 59.5), abs(flat_x - 59.5)) > 6
    assert np.hypot(busy_y - 59.5, busy_x - 59.5) < 4


@pytest.mark.parametrize("kernels", [(3, 3, 3), (5, 3)])
def test_the_matching_transformer_has_the_moments(kernels: tuple[int, ...]) -> None:
    size, at = (64, 80), (30, 43)
    steer = steering(edge(30))
    layers = deformable([steered_offsets(steer, kernel) for kernel in kernels], kernels)
    stack, said = matching_transformer(layers, kernels, at, size, "A")
    assert said.endswith("gives it the second moments of the deformable stack's field at A.")
    assert stack.unit(at) != at
    expected, found = (
        moments(*sampling_positions(these, size, unit)[::-1])
        for these, unit in ((layers, at), (stack.layers, stack.unit(at)))
    )
    np.testing.assert_allclose(found.centre, at, atol=1e-6)
    np.testing.assert_allclose(found.covariance, expected.covariance, rtol=1e-6, atol=1e-6)


def test_a_narrowing_transformer_has_units_for_the_whole_picture() -> None:
    size, narrow = (40, 50), np.zeros((1, 9, 2, 40, 50))
    narrow[:] = -0.3 * np.mgrid[-1:2, -1:2].reshape(2, 9).T[None, :, :, None, None]
    stack, _ = matching_transformer(deformable([narrow.reshape(1, 18, *size)], [3]), [3], (20, 25), size, "A")
    np.testing.assert_allclose(stack.linear, 0.7 * np.eye(2), atol=1e-9)
    for pixel in ((2, 2), (37, 3), (20, 25), (37, 47)):
        positions, weights = sampling_positions(stack.layers, size, stack.unit(pixel))
        np.testing.assert_allclose(moments(weights, positions).centre, pixel, atol=0.36)


@pytest.mark.parametrize(
    ("shift", "note", "said"),
    [(-0.7, "one θ, which nearly fits A", "an axis of which is short."), (99, "one θ, the identity", "A is empty.")],
)
def test_what_no_transformer_matches_is_said(shift: float, note: str, said: str) -> None:
    size, offset = (40, 50), np.zeros((1, 9, 2, 40, 50))
    offset[:] = shift * np.mgrid[-1:2, -1:2].reshape(2, 9).T[None, :, :, None, None] if shift < 0 else shift
    stack, found = matching_transformer(deformable([offset.reshape(1, 18, *size)], [3]), [3], (20, 25), size, "A")
    assert stack.note == note
    assert found.endswith(said)


def test_the_swirl_turns_about_the_middle() -> None:
    size, middle = (101, 81), np.array([50.0, 40.0])
    np.testing.assert_allclose(swirl(*middle, size), middle)
    here = np.array([58.0, 34.0])
    there = np.array(swirl(*here, size))
    assert np.linalg.norm(there - middle) == pytest.approx(10)
    assert np.linalg.norm(there - here) > 5
    ramp = np.stack([*np.indices(size), np.zeros(size)])[None].astype(np.float32)
    np.testing.assert_allclose(swirled(ramp)[0, :2, 58, 34], there, atol=1e-3)


def test_smoothing_is_a_binomial_blur(rng: np.random.Generator) -> None:
    photo, offset = rng.random((1, 3, 9, 9)).astype(np.float32), np.zeros((1, 18, 9, 9))
    weight = np.zeros((3, 3, 3, 3))
    for colour in range(3):
        weight[colour, colour] = np.outer([1, 2, 1], [1, 2, 1]) / 16
    expected = reference.deform_conv(photo, offset, weight, padding=1)
    np.testing.assert_allclose(smooth(photo, [3]), expected, atol=1e-6)


def test_offsets_are_learnt() -> None:
    y, x = np.mgrid[:64, :72]
    photo = np.stack([np.sin(y / 5), np.cos(x / 4), np.sin((x + y) / 6)])[None].astype(np.float32) / 2
    steps = list(learn_offsets(photo, swirled(photo), (3, 3), 90))
    assert len(steps) == 91
    unlearnt, learnt = (
        np.abs(smooth(swirled(photo), (3, 3)) - smooth(photo, (3, 3), offsets)) for offsets in (None, steps[-1].offsets)
    )
    assert learnt[..., 6:-6, 6:-6].mean() < 0.3 * unlearnt[..., 6:-6, 6:-6].mean()


def rows(text: str) -> dict[tuple[str, str], list[str]]:
    """Return the numbers of the table, by place and stack."""
    names = "plain|dilated|deformable|spatial transformer"
    found = re.findall(rf"^([ABC]) +({names}) +(.*)$", text, re.M)
    return {(place, stack): numbers.split() for place, stack, numbers in found}


def test_it_compares_four_stacks_at_three_places(photograph: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = photograph.with_name("fov.png")
    assert main(["fov", str(photograph), "--size", "96", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "disc.png, 96 × 64 pixels" in text
    assert "not learnt but set from" in text
    assert text.endswith(f"Picture: {out}\n")
    table = rows(text)
    assert len(table) == 12
    assert {numbers[2] for (_, stack), numbers in table.items() if stack in ("plain", "dilated")} == {"49"}
    assert {numbers[-2] for (_, stack), numbers in table.items() if stack == "deformable"} == {"100"}
    for place in "ABC":
        plain, dilated = (float(table[place, stack][3]) for stack in ("plain", "dilated"))
        assert plain == pytest.approx(4 * 2**0.5, abs=0.4)
        assert dilated == pytest.approx(8 * 2**0.5, abs=0.8)
    with pytest.importorskip("PIL.Image").open(out) as picture:
        assert picture.format == "PNG"
        assert picture.width == 1599
        assert np.asarray(picture.convert("L")).std() > 30  # not blank


def test_places_and_layers_are_as_asked(photograph: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = photograph.with_name("fov.svg")
    options = (*"--size 96 --at 20,30 --at 70,10 --layers 5,3 --dilation 3 --out".split(), str(out))
    assert main(["fov", str(photograph), *options]) == 0
    table = rows(capsys.readouterr().out)
    assert [place for place, _ in table] == ["A"] * 4 + ["B"] * 4
    assert [float(n.rstrip(",")) for n in table["A", "plain"][:2]] == pytest.approx([20, 30], abs=0.5)
    assert [float(n.rstrip(",")) for n in table["B", "dilated"][:2]] == pytest.approx([70, 10], abs=2.5)
    assert "<svg" in out.read_text(encoding="utf-8")


@pytest.mark.parametrize("shape", [(18, 64, 96), (1, 18, 64, 96), (2, 18, 64, 96)])
def test_offsets_come_from_a_file(photograph: Path, shape: tuple[int, ...], capsys: pytest.CaptureFixture[str]) -> None:
    offsets = np.zeros(shape, np.float32)
    offsets[..., 1::2, :, :] = 3  # every layer looks 3 pixels to the right
    np.save(photograph.with_name("right.npy"), offsets)
    options = ("--size", "96", "--at", "40,30", "--layers", "3,3", "--offsets", str(photograph.with_name("right.npy")))
    assert main(["fov", str(photograph), *options, "--out", str(photograph.with_name("fov.png"))]) == 0
    text = capsys.readouterr().out
    assert "offsets come from right.npy" in text.replace("\n", " ")
    x, y = (float(number.rstrip(",")) for number in rows(text)["A", "deformable"][:2])
    assert (x, y) == pytest.approx((46, 30), abs=0.3)


def test_offsets_that_look_outside_see_nothing(photograph: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(photograph.with_name("away.npy"), np.full((18, 64, 96), 1e6))
    options = ("--size", "96", "--offsets", str(photograph.with_name("away.npy")))
    assert main(["fov", str(photograph), *options, "--out", str(photograph.with_name("fov.png"))]) == 0
    assert rows(capsys.readouterr().out)["B", "deformable"] == ["0", "nothing"]


def test_learning(photograph: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = photograph.with_name("fov.pdf")
    options = ("--learn", "--size", "96", "--steps", "4", "--layers", "3", "--out", str(out))
    assert main(["fov", str(photograph), *options]) == 0
    text = capsys.readouterr().out.replace("\n", " ")
    one, offsets = map(float, re.findall(r"stays off by ([\d.]+) .* offsets by ([\d.]+)\.", text)[0])
    assert 0 < offsets < 1
    assert 0 < one < 1
    assert out.read_bytes().startswith(b"%PDF")


def test_learning_has_a_number_of_steps() -> None:
    parser = argparse.ArgumentParser()
    fov.add_arguments(parser)
    assert "--steps N steps of learning, with --learn (default: 100)" in " ".join(parser.format_help().split())
    assert parser.parse_args(["--learn"]).steps is None


def test_angles_keep_their_sign_in_ascii(photograph: Path) -> None:
    grey = (127 * edge(-45)[0, 0] + 128).astype(np.uint8)
    pytest.importorskip("PIL.Image").fromarray(grey).save(photograph)
    arguments = ["fov", str(photograph), "--size", "80", "--at", "40,32", "--out", str(photograph.with_name("fov.png"))]
    code = f"from cudakit.__main__ import main; main({arguments})"
    lines = python(code, LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    found = {stack: numbers for (_, stack), numbers in rows("\n".join(lines)).items()}
    assert found["deformable"][-3] == "-45?"
    assert "80 ? 64 pixels" in lines[0]
    lines = python(code, PYTHONIOENCODING="utf-8")
    assert rows("\n".join(lines))["A", "deformable"][-3] == "−45°"


def test_a_picture_without_anything_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pillow = pytest.importorskip("PIL.Image")
    pillow.new("RGB", (70, 32), "grey").save(tmp_path / "grey.png")
    for options in ((), ("--learn", "--steps", "2")):
        command = ["fov", str(tmp_path / "grey.png"), "--size", "64", "--out", str(tmp_path / "fov.png"), *options]
        assert main(command) == 0
        assert len(rows(capsys.readouterr().out)) == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--at", "20"), "argument --at: must be two whole numbers X,Y, got '20'"),
        (("--at", "20,-3"), "argument --at: must be two whole numbers X,Y, got '20,-3'"),
        (("--at", "96,3"), "--at must lie in the photograph, 96 × 64 pixels, got 96,3"),
        (("--at", "1,1") * 4, "--at may be given up to 3 times, got 4"),
        (("--layers", "3,4"), "argument --layers: must be up to 6 odd kernel sizes of at most 15, such as 3,3,3"),
        (("--layers", ""), "got ''"),
        (("--layers", "3," * 6 + "3"), "got '3,3,3,3,3,3,3'"),
        (("--layers", "17"), "got '17'"),
        (("--dilation", "0"), "argument --dilation: must be a whole number from 1 to 16, got '0'"),
        (("--size", "63"), "argument --size: must be a whole number from 64 to 2048, got '63'"),
        (("--steps", "0"), "argument --steps: must be a whole number from 1"),
        (("--steps", "100"), "argument --steps: not allowed without argument --learn (see cudakit fov --help)"),
        (("--steps", "9", "--offsets", "x.npy"), "argument --steps: not allowed without argument --learn"),
        (("--learn", "--offsets", "x.npy"), "argument --offsets: not allowed with argument --learn"),
        (("--out", "fov.txt"), "--out must end in one of .jpg, .pdf, .png, .svg, got fov.txt"),
        (("--offsets", "none.npy"), "cannot read none.npy: No such file"),
    ],
)
def test_mistakes(options: tuple[str, ...], message: str, photograph: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--out", str(photograph.with_name("fov.png")))
    size = () if "--size" in options else ("--size", "96")
    assert message in mistake(capsys, "fov", str(photograph), *size, *out, *options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((18, 64, 95)), "must have shape (18, 64, 96) or (3, 18, 64, 96), got (18, 64, 95)"),
        (np.zeros((18, 64, 96), int), "must hold one array of floats, got int64"),
        (np.array([None]), "not an array that NumPy can read"),
        (b"", "not an array that NumPy can read"),
        (b"PK\x03\x04 no archive", "not an array that NumPy can read"),
        (b"text", "not an array that NumPy can read"),
    ],
)
def test_bad_files_of_offsets(content: Any, message: str, photograph: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = photograph.with_name("bad.npy")
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    options = ("--size", "96", "--offsets", str(path), "--out", str(photograph.with_name("fov.png")))
    assert message in mistake(capsys, "fov", str(photograph), *options)


def test_archives_and_mixed_kernels_are_refused(photograph: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = photograph.with_name("many.npz")
    np.savez(path, a=np.zeros(2), b=np.zeros(3))
    options = ("--size", "96", "--offsets", str(path), "--out", str(photograph.with_name("fov.png")))
    assert "must hold one array of floats, got several" in mistake(capsys, "fov", str(photograph), *options)
    np.save(photograph.with_name("one.npy"), np.zeros((18, 64, 96)))
    options = (*options[:3], str(photograph.with_name("one.npy")), *options[4:], "--layers", "3,5")
    line = mistake(capsys, "fov", str(photograph), *options)
    assert "--offsets needs --layers of one kernel size, got 3,5" in line


def test_plain_layers_keep_the_size() -> None:
    for kernels, dilation in (((3, 5), 1), ((3, 7), 4)):
        size = (40, 50)
        for layer in convolutions(kernels, dilation):
            kernel = (layer.kernel_size,) * 2
            size = reference.deform_output_size(size, kernel, 1, layer.padding, layer.dilation)
        assert size == (40, 50)
