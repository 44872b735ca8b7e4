"""The Inception-v3 that FID is defined by (Szegedy et al. 2016; the graph ``inception-2015-12-05``
of TensorFlow), laid out so that it takes the weights that pytorch-fid and torch-fidelity publish as
``pt_inception-2015-12-05``.

It differs from torchvision's in four things: averages leave out the padding, the last block pools
by maxima, there are 1,008 classes, and no auxiliary head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

Size = int | tuple[int, int]
Layer = tuple[str, int, Size, int]  # name, channels out, kernel, stride


class ConvUnit(nn.Module):
    """Convolution, normalisation, ReLU. Padded to keep the size, unless it strides."""

    def __init__(self, wide: int, out: int, kernel: Size, stride: int = 1, *, pad: bool) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if pad else (0, 0)
        self.conv = nn.Conv2d(wide, out, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.bn(self.conv(x)), inplace=True)


class Mixed(nn.Module):
    """Branches side by side, their channels one after another, the pooled one last.

    A branch is a chain of layers; where its last two have names that end in "a" and "b" they stand
    side by side. ``pool``: "mean" or "max" keep the size and are followed by a convolution to
    ``pooled`` channels; "stride" halves it and is not.
    """

    def __init__(
        self, wide: int, branches: Sequence[Sequence[Layer]], pool: str, pooled: int = 0
    ) -> None:
        super().__init__()
        self.chains = [[name for name, *_ in branch] for branch in branches]
        self.pool = pool
        for branch in branches:
            before = wide
            for name, out, kernel, stride in branch:
                unit = ConvUnit(before, out, kernel, stride, pad=stride == 1)
                self.add_module(name, unit)
                if not name.endswith("a"):  # "b" reads what "a" reads
                    before = out
        if pooled:
            self.branch_pool = ConvUnit(wide, pooled, 1, pad=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = [*(self._chain(names, x) for names in self.chains)]
        if self.pool == "stride":
            out.append(functional.max_pool2d(x, 3, 2))
        elif self.pool == "max":
            out.append(self.branch_pool(functional.max_pool2d(x, 3, 1, 1)))
        else:
            mean = functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
            out.append(self.branch_pool(mean))
        return torch.cat(out, 1)

    def _chain(self, names: Sequence[str], x: torch.Tensor) -> torch.Tensor:
        split = len(names) > 1 and names[-1].endswith("b")
        for name in names[:-2] if split else names:
            x = self.get_submodule(name)(x)
        if not split:
            return x
        return torch.cat([self.get_submodule(name)(x) for name in names[-2:]], 1)


def _mixed_a(wide: int, pooled: int) -> Mixed:
    return Mixed(
        wide,
        [
            [("branch1x1", 64, 1, 1)],
            [("branch5x5_1", 48, 1, 1), ("branch5x5_2", 64, 5, 1)],
            [
                ("branch3x3dbl_1", 64, 1, 1),
                ("branch3x3dbl_2", 96, 3, 1),
                ("branch3x3dbl_3", 96, 3, 1),
            ],
        ],
        "mean",
        pooled,
    )


def _mixed_b(wide: int) -> Mixed:
    return Mixed(
        wide,
        [
            [("branch3x3", 384, 3, 2)],
            [
                ("branch3x3dbl_1", 64, 1, 1),
                ("branch3x3dbl_2", 96, 3, 1),
                ("branch3x3dbl_3", 96, 3, 2),
            ],
        ],
        "stride",
    )


def _mixed_c(wide: int, c: int) -> Mixed:
    return Mixed(
        wide,
        [
            [("branch1x1", 192, 1, 1)],
            [
                ("branch7x7_1", c, 1, 1),
                ("branch7x7_2", c, (1, 7), 1),
                ("branch7x7_3", 192, (7, 1), 1),
            ],
            [
                ("branch7x7dbl_1", c, 1, 1),
                ("branch7x7dbl_2", c, (7, 1), 1),
                ("branch7x7dbl_3", c, (1, 7), 1),
                ("branch7x7dbl_4", c, (7, 1), 1),
                ("branch7x7dbl_5", 192, (1, 7), 1),
            ],
        ],
        "mean",
        192,
    )


def _mixed_d(wide: int) -> Mixed:
    return Mixed(
        wide,
        [
            [("branch3x3_1", 192, 1, 1), ("branch3x3_2", 320, 3, 2)],
            [
                ("branch7x7x3_1", 192, 1, 1),
                ("branch7x7x3_2", 192, (1, 7), 1),
                ("branch7x7x3_3", 192, (7, 1), 1),
                ("branch7x7x3_4", 192, 3, 2),
            ],
        ],
        "stride",
    )


def _mixed_e(wide: int, pool: str) -> Mixed:
    return Mixed(
        wide,
        [
            [("branch1x1", 320, 1, 1)],
            [
                ("branch3x3_1", 384, 1, 1),
                ("branch3x3_2a", 384, (1, 3), 1),
                ("branch3x3_2b", 384, (3, 1), 1),
            ],
            [
                ("branch3x3dbl_1", 448, 1, 1),
                ("branch3x3dbl_2", 384, 3, 1),
                ("branch3x3dbl_3a", 384, (1, 3), 1),
                ("branch3x3dbl_3b", 384, (3, 1), 1),
            ],
        ],
        pool,
        192,
    )


class Inception(nn.Module):
    """Pixels [n, 3, 299, 299] in -1 ... 1 to features [n, 2048] and logits [n, 1008] without their
    bias, which is what torch-fidelity's Inception score is of."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvUnit(3, 32, 3, 2, pad=False)
        self.Conv2d_2a_3x3 = ConvUnit(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = ConvUnit(32, 64, 3, pad=True)
        self.Conv2d_3b_1x1 = ConvUnit(64, 80, 1, pad=False)
        self.Conv2d_4a_3x3 = ConvUnit(80, 192, 3, pad=False)
        self.Mixed_5b = _mixed_a(192, 32)
        self.Mixed_5c = _mixed_a(256, 64)
        self.Mixed_5d = _mixed_a(288, 64)
        self.Mixed_6a = _mixed_b(288)
        self.Mixed_6b = _mixed_c(768, 128)
        self.Mixed_6c = _mixed_c(768, 160)
        self.Mixed_6d = _mixed_c(768, 160)
        self.Mixed_6e = _mixed_c(768, 192)
        self.Mixed_7a = _mixed_d(768)
        self.Mixed_7b = _mixed_e(1280, "mean")
        self.Mixed_7c = _mixed_e(2048, "max")
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(x, 3, 2)))
        x = functional.max_pool2d(x, 3, 2)
        for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            x = self.get_submodule(f"Mixed_{name}")(x)
        features = x.mean((2, 3))
        return features, features @ self.fc.weight.T
