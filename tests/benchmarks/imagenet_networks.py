"""The networks of the paper's ImageNet table, without weights: ResNet-18 and AlexNet-BN."""

from __future__ import annotations

import torch
from torch import nn


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut, by 1×1 convolution where the shape changes."""

    def __init__(self, channels: int, filters: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, filters, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.downsample = None
        if stride > 1 or channels != filters:
            conv = nn.Conv2d(channels, filters, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(filters))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Residual."""
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):
    """He et al.'s; its tensors have the names that torchvision's have."""

    def __init__(self, classes: int = 1000):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.pool = nn.MaxPool2d(3, 2, 1)
        channels = 64
        for number, filters in enumerate((64, 128, 256, 512), 1):
            first = Block(channels, filters, 1 if number == 1 else 2)
            self.add_module(f"layer{number}", nn.Sequential(first, Block(filters, filters, 1)))
            channels = filters
        self.fc = nn.Linear(512, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.pool(torch.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


class AlexNet(nn.Sequential):
    """Krizhevsky's in one tower, BatchNorm instead of local response normalisation and dropout."""

    def __init__(self, classes: int = 1000):
        super().__init__()
        plan = [
            (nn.Conv2d(3, 96, 11, 4, 2, bias=False), True),
            (nn.Conv2d(96, 256, 5, 1, 2, bias=False), True),
            (nn.Conv2d(256, 384, 3, 1, 1, bias=False), False),
            (nn.Conv2d(384, 384, 3, 1, 1, bias=False), False),
            (nn.Conv2d(384, 256, 3, 1, 1, bias=False), True),
        ]
        for number, (conv, pooled) in enumerate(plan, 1):
            self.add_module(f"conv{number}", conv)
            self.add_module(f"bn{number}", nn.BatchNorm2d(conv.out_channels))
            self.add_module(f"relu{number}", nn.ReLU())
            if pooled:
                self.add_module(f"pool{number}", nn.MaxPool2d(3, 2))
        self.add_module("flatten", nn.Flatten())
        for number, features in ((6, 256 * 6 * 6), (7, 4096)):
            self.add_module(f"fc{number}", nn.Linear(features, 4096, bias=False))
            self.add_module(f"bn{number}", nn.BatchNorm1d(4096))
            self.add_module(f"relu{number}", nn.ReLU())
        self.add_module("fc8", nn.Linear(4096, classes))
