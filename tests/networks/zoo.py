"""Networks that channels are traced through: small versions of known ones, and the odd corners."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasplat.data.torchvision_import import torchvision


class CifarBlock(nn.Module):
    """A basic block whose shortcut has no parameters: stride, and zeros for the new channels (He et al., 2015)."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != planes:
            self.shortcut = Function(
                lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, planes // 4, planes // 4), "constant", 0)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class CifarResNet(nn.Module):
    """ResNet-20 has three blocks a stage; the layout of the checkpoint in `../shared/data/resnet20_cifar10`."""

    def __init__(self, blocks: int = 3, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage, planes in enumerate((width, 2 * width, 4 * width), 1):
            layers = []
            for index in range(blocks):
                layers.append(CifarBlock(inputs, planes, 2 if stage > 1 and index == 0 else 1))
                inputs = planes
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        self.linear = nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))  # type: ignore[operator]
        return self.linear(F.avg_pool2d(out, out.size(3)).flatten(1))


class ChannelPad(nn.Module):
    """Zeros before and after the channels, whose numbers are attributes of their own."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.pad_before, self.pad_after = before, after

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, self.pad_before, self.pad_after))


class PaddedSum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.pad = ChannelPad(3, 5)
        self.conv = nn.Conv2d(8, 16, 3, 1, 1)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head((self.pad(x) + self.conv(x)).relu()).mean((2, 3))


class UNet(nn.Module):
    """Two levels, transposed convolutions and joins, and an image as output."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.down1 = _double(3, width)
        self.down2 = _double(width, 2 * width)
        self.bottom = _double(2 * width, 4 * width)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.join2 = _double(4 * width, 2 * width)
        self.up1 = nn.Upsample(scale_factor=2, mode="bilinear")
        self.join1 = _double(3 * width, width)
        self.out = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        bottom = self.bottom(F.max_pool2d(second, 2))
        second = self.join2(torch.cat([self.up2(bottom), second], 1))
        return self.out(self.join1(torch.cat([self.up1(second), first], 1)))


def _double(inputs: int, outputs: int) -> nn.Sequential:
    first, second = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
    return nn.Sequential(first, nn.GroupNorm(2, outputs), nn.SiLU(), second, nn.ReLU())


class SeveralHeads(nn.Module):
    """A shared encoder and outputs by name, one of them an image by pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.PReLU(12), nn.Conv2d(12, 16, 3, padding=1)
        )
        self.label = nn.Linear(16, 5)
        self.detail = nn.Sequential(nn.Conv2d(16, 24, 1), nn.PixelShuffle(2), nn.ReLU(), nn.Conv2d(6, 1, 1))
        self.gate = nn.Sequential(nn.Conv2d(16, 20, 1), nn.GLU(1), nn.Conv2d(10, 16, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.encoder(x)
        x = x * self.gate(x)
        return {"label": self.label(x.mean((2, 3))), "detail": self.detail(x)}


class Attention(nn.Module):
    """Attention as in many vision transformers: `C` of the input is used for the width of all heads."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = (q * self.scale @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


class FreeAttention(nn.Module):
    """Attention whose heads have a width of their own, with separate projections and a scale from the width."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.q, self.k, self.v = (nn.Linear(dim, heads * head_dim) for _ in range(3))
        self.out = nn.Linear(heads * head_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        weights = (torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.shape[-1])).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """Patches, positions, blocks of attention and a perceptron, a norm without weights."""

    def __init__(self, attention: Callable[[int], nn.Module], dim: int = 16, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 8, 8)
        self.positions = nn.Parameter(torch.zeros(1, 16, dim))
        self.attention = nn.ModuleList(attention(dim) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(depth))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, 24), nn.GELU(), nn.Linear(24, dim)) for _ in range(depth)
        )
        self.last = nn.LayerNorm(dim, elementwise_affine=False)
        self.head = nn.Linear(dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        for attention, norm, mlp in zip(self.attention, self.norms, self.mlps, strict=True):
            x = x + attention(norm(x))
            x = x + mlp(x)
        return self.head(self.last(x).mean(1))


class TiedEmbedding(nn.Module):
    """A small language model: the embedding's weight is the classifier's too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 12)
        self.block = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 12))
        self.head = nn.Linear(12, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return self.head(x + self.block(x))


class Shuffle(nn.Module):
    """Grouped convolutions with a channel shuffle between them, and halves that go different ways."""

    def __init__(self, groups: int = 2) -> None:
        super().__init__()
        self.groups = groups
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.grouped = nn.Conv2d(12, 24, 3, padding=1, groups=groups)
        self.second = nn.Conv2d(24, 16, 3, padding=1, groups=groups)
        self.depthwise = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.first(x).relu()).relu()
        batch, channels, height, width = x.shape
        x = x.view(batch, self.groups, channels // self.groups, height, width).transpose(1, 2).flatten(1, 2)
        left, right = self.second(x).chunk(2, 1)
        x = torch.cat([left.tanh(), self.depthwise(right)], 1)
        return self.head(x.amax((2, 3)))


class ChannelNorm(nn.Module):
    """A norm over channels that is written out, and a squeeze to one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 10, 3)
        self.scale = nn.Parameter(torch.ones(10, 1, 1))
        self.gate = nn.Conv2d(10, 1, 1)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-5).sqrt()
        x = F.normalize(x * self.scale, dim=1)
        return self.head((x * self.gate(x).sigmoid()).flatten(2).mean(-1))


class Checks(nn.Module):
    """A layer that refuses what is not of the size it was made for, before and after."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.conv = nn.Conv2d(in_channels, out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.in_channels:
            raise ValueError(f"{self.in_channels} channels are wanted")
        x = self.conv(x)
        assert x.shape[1] == self.out_channels
        return x.relu()


class LinearAttention(nn.Module):
    """Attention without a softmax over tokens: features that are 1 where a channel is zero, and a softmax over them."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, 4)
        self.q, self.k, self.v = nn.Linear(12, 8), nn.Linear(12, 8), nn.Linear(12, 10)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        q, k = F.elu(self.q(x)) + 1, (F.elu(self.k(x)) + 1).softmax(-1)
        context = k.transpose(1, 2) @ self.v(x)
        return self.head(q @ context / (q @ k.sum(1, keepdim=True).transpose(1, 2)))


class Repeats(nn.Module):
    """Channels that occur several times, in two orders; one layer that is called twice; a weight that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.tiled, self.spread = nn.Conv2d(8, 6, 3, groups=2), nn.Conv2d(8, 6, 3)
        self.twice = nn.Conv2d(12, 12, 3, padding=1)
        self.weight = nn.Parameter(torch.zeros(6, 12, 1, 1))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        tiled, spread = self.tiled(x.repeat(1, 2, 1, 1)), self.spread(x.repeat_interleave(2, 1))
        x = torch.stack([tiled, spread], 2).flatten(1, 2)
        x = self.twice(self.twice(x).relu())
        return self.head(F.conv2d(x, self.weight * 2).amax((2, 3)))


class Sorts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.free, self.bound, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.bound(self.free(x).relu()).sort(1)
        return self.head(x.mean((2, 3)))


class PicksTheLargest(Sorts):
    def forward(self, x: Tensor) -> Tensor:
        x = self.bound(self.free(x).relu())
        return self.head((x * x.max(1, keepdim=True)[0]).mean((2, 3)))


class CountsItsChannels(Sorts):
    def forward(self, x: Tensor) -> Tensor:
        x = self.bound(self.free(x).relu())
        return self.head((x.sum(1, keepdim=True) / x.shape[1] + x).mean((2, 3)))


class MeetsAConstant(Sorts):
    def forward(self, x: Tensor) -> Tensor:
        x = self.bound(self.free(x).relu())
        signs = torch.ones(1, 6, 1, 1)
        signs[:, ::2] = -1
        return self.head((x * signs).mean((2, 3)))


class Recurs(Sorts):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(6, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bound(self.free(x).relu()).flatten(2).transpose(1, 2)
        return self.head(self.recurrent(x)[0][:, -1])


class WritesInPlace(Sorts):
    def forward(self, x: Tensor) -> Tensor:
        x = self.bound(self.free(x).relu())
        x[:, 1:4] = x[:, 0:3] * 2
        return self.head(x.mean((2, 3)))


class FixedViews(nn.Module):
    """Numbers of channels stand in the code of forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3)
        self.viewed = nn.Conv2d(12, 12, 3)
        self.cut = nn.Conv2d(12, 10, 1)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.viewed(self.first(x).relu())
        x = x.view(x.shape[0], 3, 4, *x.shape[2:]).flip(1).flatten(1, 2)
        x = self.cut(x)
        x = torch.cat([x[:, :3], x[:, 3:].relu()], 1)
        return self.head(x.mean((2, 3)))


_models: Any = torchvision.models
_mobile = _models.mobilenetv3.InvertedResidualConfig
_vgg = partial(_models.vgg.make_layers, batch_norm=True)


def image(size: int, batch: int = 1) -> tuple[Tensor]:
    return (torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(size)),)


def tokens() -> tuple[Tensor]:
    return (torch.arange(10).reshape(2, 5),)


# Small networks of the classes that people use: a constructor and inputs.
SMALL: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "resnet": (lambda: _models.ResNet(_models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=10), image(32)),
    "resnext": (
        lambda: _models.ResNet(_models.resnet.Bottleneck, [1, 1, 1, 1], groups=8, width_per_group=8, num_classes=10),
        image(32),
    ),
    "vgg": (
        lambda: nn.Sequential(*_vgg([8, "M", 16, "M"]), nn.Flatten(), nn.Linear(256, 20), nn.Linear(20, 5)),
        image(16),
    ),
    "densenet": (lambda: _models.DenseNet(8, (2, 3, 2), 16, num_classes=10), image(64)),
    "mobilenet_v2": (
        lambda: _models.MobileNetV2(10, inverted_residual_setting=[[1, 8, 1, 1], [6, 16, 2, 2]]),
        image(32),
    ),
    "mobilenet_v3": (
        lambda: _models.MobileNetV3(
            [_mobile(8, 3, 16, 8, True, "RE", 1, 1, 1.0), _mobile(8, 5, 24, 16, True, "HS", 2, 1, 1.0)], 32, 10
        ),
        image(32),
    ),
    "vit": (
        lambda: _models.VisionTransformer(
            image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=48, num_classes=10
        ),
        image(32, 2),
    ),
    "swin": (
        lambda: _models.SwinTransformer([4, 4], 12, [2, 1], [3, 4], [3, 3], num_classes=10, mlp_ratio=2.0),
        image(48),
    ),
    "swin_v2": (
        lambda: _models.SwinTransformer(
            *([4, 4], 12, [1, 1], [3, 4], [3, 3]),
            num_classes=10,
            block=_models.swin_transformer.SwinTransformerBlockV2,
            downsample_layer=_models.swin_transformer.PatchMergingV2,
        ),
        image(48),
    ),
    "encoder_layer": (
        lambda: nn.Sequential(nn.Linear(3, 16), nn.TransformerEncoderLayer(16, 4, 24), nn.Linear(16, 2)),
        (torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(0)),),
    ),
    "linear_attention": (LinearAttention, image(16)),
    "repeats": (Repeats, image(12)),
    "checks": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), Checks(6, 8), Checks(8, 8), nn.Flatten(), nn.Linear(8 * 36, 3)),
        image(12),
    ),
    "convnext": (
        lambda: _models.ConvNeXt(
            [_models.convnext.CNBlockConfig(8, 16, 1), _models.convnext.CNBlockConfig(16, None, 1)], num_classes=10
        ),
        image(32),
    ),
    "cifar_resnet": (lambda: CifarResNet(2, 8), image(32)),
    "padded_sum": (PaddedSum, image(16)),
    "unet": (UNet, image(16)),
    "several_heads": (SeveralHeads, image(16)),
    "transformer": (lambda: Transformer(partial(Attention, heads=4)), image(32, 2)),
    "free_transformer": (lambda: Transformer(partial(FreeAttention, heads=2, head_dim=6)), image(32)),
    "tied_embedding": (TiedEmbedding, tokens()),
    "shuffle": (Shuffle, image(12)),
    "channel_norm": (ChannelNorm, image(12)),
}

# The networks as published, with the size of image that they are traced at.
PUBLISHED: dict[str, int] = {
    "resnet18": 64,
    "resnet50": 64,
    "vgg16_bn": 64,
    "densenet121": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_large": 64,
    "efficientnet_b0": 64,
    "shufflenet_v2_x1_0": 64,
    "regnet_y_400mf": 64,
    "resnext50_32x4d": 64,
    "convnext_tiny": 64,
    "vit_b_16": 224,
    "swin_t": 96,
    "maxvit_t": 224,
}

# The same for networks of timm, which is an optional package.
TIMM: dict[str, int] = {
    "vit_tiny_patch16_224": 224,
    "convnextv2_atto": 64,
    "mobilenetv4_conv_small": 64,
    "efficientvit_b0": 64,
    "mixer_s32_224": 224,
    "ghostnet_050": 64,
    "mobilevit_xxs": 64,
    "nfnet_l0": 64,
}
