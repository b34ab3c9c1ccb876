"""A deformable convolution as a CPU computes it: how channels and weights are cut, so that columns stay in cache."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Self

from cudakit.arithmetic import ceil_div, round_up
from cudakit.array import LINE_BYTES
from cudakit.deformable.column_plan import HOST_TILE, Form, constants, few
from cudakit.deformable.conv_call import Convolution
from cudakit.deformable.conv_host_memory import LEAST, Footprint, fits
from cudakit.deformable.conv_host_splitting import WHOLE, Splitting, choose_splitting
from cudakit.deformable.geometry import Integers
from cudakit.layout import Image
from cudakit.source import C_TYPES

PIXELS = 96  # of an output tile: a multiple of HOST_TILE and of the rows that registers hold
BLOCK = 320  # numbers of a pixel's columns that are sampled, then multiplied, at a time
SIMD_STEPS = 8  # multiply-adds that count as one step of work

STEP = 32  # of a sum of split numbers

BLOCK_ENDS, SAMPLE = 8, 32  # see `join_groups`
GIVEN_STEP = 32  # channels that pieces are multiples of, where weights are as given
PADDING = 16  # zeros that a column may meet before it is worth turning

CUT_FIELDS = tuple((f"cut.{name}", 1) for name in ("groups", "joined", "out_channels", "channel_block", "scratch"))


@dataclass(frozen=True)
class HostConvolution(Convolution):
    """A call, and how a CPU multiplies.

    `joined` groups are multiplied as one, with zeros between them (pieces.cuh). Weights are packed into panels first,
    or used as given, in the order in which users have them (given.cuh); numbers may be `split`.
    """

    joined: int = 1
    given_weights: bool = False
    split: Splitting = WHOLE

    @classmethod
    def of(cls, conv: Convolution) -> Self:
        """Return a call without any of that."""
        return cls(**vars(conv))

    @property
    def joined_groups(self) -> int:
        """Groups that are multiplied, of `joined` groups of the convolution each."""
        return self.groups // self.joined

    @property
    def may_use_given_weights(self) -> bool:
        """Whether the products can use weights in the order in which users have them."""
        d = self.d
        return (
            not self.depthwise
            and not self.split.array_parts
            and BLOCK // d.taps >= GIVEN_STEP
            and not any(d.channels // groups % GIVEN_STEP for groups in (d.offset_groups, self.joined_groups))
        )

    @property
    def packed_or_given(self) -> Iterator["HostConvolution"]:
        """The call with weights packed or as given, as far as either is worth trying.

        Packed weights are padded with zeros, most of all where groups are joined; given ones meet their own columns
        alone.
        """
        given, outputs = replace(self, given_weights=True), self.out_channels // self.joined_groups
        if self.joined > 1:
            given = replace(given, joined=self.groups)
        sparse = self.joined > 1 or self.padded_outputs - outputs > PADDING
        if not (sparse and given.may_use_given_weights):
            yield self
        if given.may_use_given_weights and (sparse or outputs >= GIVEN_STEP):
            yield given

    @property
    def given_chunk(self) -> int:
        """Channels of a chunk where weights are as given: with all taps they are at most `BLOCK` numbers."""
        return BLOCK // self.d.taps // GIVEN_STEP * GIVEN_STEP

    @property
    def padded_outputs(self) -> int:
        """Output channels of a joined group, as packed weights count them (`PANEL` in pieces.cuh)."""
        panel = 2 * LINE_BYTES // self.accumulator_bytes
        return ceil_div(self.out_channels, self.joined_groups * panel) * panel

    def packed_size(self, chunk_channels: int) -> int:
        """Return the numbers of the packed weights, with the gaps between their pieces (`gap_of` in pieces.cuh)."""
        d, per_group = self.d, self.d.channels // self.joined_groups
        chunks = d.offset_groups * ceil_div(d.channels, d.offset_groups * chunk_channels)
        rounds = ceil_div(d.taps, BLOCK // chunk_channels)
        pieces = (chunk_channels + per_group - 2) // per_group + 1
        gaps = chunks * rounds * pieces * (STEP - 1) if self.split.array_parts else 0
        return (d.channels * d.taps + gaps) * self.padded_outputs

    @property
    def panels(self) -> int:
        """Items that pack weights."""
        return self.joined_groups * self.padded_outputs * self.accumulator_bytes // (2 * LINE_BYTES)

    @property
    def tile_size(self) -> int:
        """Numbers of a tile's columns and outputs (`COLUMNS` and `output_row` in pieces.cuh)."""
        line = LINE_BYTES // self.accumulator_bytes
        return PIXELS * (BLOCK + 3 * line + self.joined_groups * self.padded_outputs + line)

    @property
    def work(self) -> int:
        """Steps of one image."""
        d = self.d
        return d.channels * d.taps * d.pixels * (1 + self.out_channels // self.groups // SIMD_STEPS)

    def constants(self, layout: Image, chunk_channels: int) -> dict[str, str | int]:
        """Return the constants of the kernels, which read images in that layout."""
        weights = self.packed_size(chunk_channels) * 2  # or their parts
        even = not any(
            self.d.channels // groups % chunk_channels for groups in (self.d.offset_groups, self.joined_groups)
        )
        form = Form(HOST_TILE, 1, BLOCK, few(chunk_channels) if even else 0)
        return constants(self.d, form, (self.output.extent, layout.extent), weights) | {
            "PIXELS": PIXELS,
            "BLOCK": BLOCK,
            "SPLIT": self.split.array_parts,
            "SPLIT_VALUES": self.split.column_parts,
            "TILES": int(self.split.amx),
            "GIVEN": int(self.given_weights),
            "JOINED": int(self.joined > 1),
            "IMAGE": C_TYPES[layout.dtype][0],
        }

    def cut_values(self, chunk_channels: int, scratch: int) -> Integers:
        """Return the values of `CUT_FIELDS`; `scratch` are the numbers that a thread has for itself."""
        return (self.joined_groups, self.joined, self.out_channels, chunk_channels, scratch)


def join_groups(conv: HostConvolution) -> HostConvolution:
    """Return the call with small groups joined (pieces.cuh), for the least work.

    A column is multiplied with all outputs of its group, padded to panels. Costs that do not grow with their number are
    counted in outputs: a product's beginning and end, by its depth; a sample, by how well its channels fill vectors.
    """
    d, channels, outputs = conv.d, conv.d.channels // conv.groups, conv.out_channels // conv.groups
    line = LINE_BYTES // conv.accumulator_bytes

    def work(joined: int) -> float:
        width = min(channels * joined, d.channels // d.offset_groups)
        padded = ceil_div(outputs * joined, 2 * line) * 2 * line
        return padded * (1 + BLOCK_ENDS / (width * d.taps)) + SAMPLE * round_up(width, line) / width

    return replace(conv, joined=min((m for m in range(1, conv.groups + 1) if conv.groups % m == 0), key=work))


def with_split(conv: HostConvolution, footprint: Callable[[HostConvolution], Footprint]) -> HostConvolution:
    """Return the call with numbers split, if it is worth it and the caller allows the memory that this takes."""
    d, split = conv.d, choose_splitting(conv.d.dtype, conv.tf32)
    divided = replace(conv, split=split)
    worth = (
        not conv.depthwise
        and not conv.given_weights
        and conv.out_channels // conv.joined_groups >= split.least_outputs
        and d.channels // max(d.offset_groups, conv.joined_groups) * d.taps >= split.least_depth
        and d.batch * d.pixels >= split.least_pixels
        and fits(footprint(divided), LEAST, conv.workspace)
    )
    return divided if worth else conv
