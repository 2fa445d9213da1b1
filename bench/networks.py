"""The distinct convolutions of four networks, as data. K. He et al., arXiv:1512.03385 (ResNet-50, its stride in the 3 x 3 as
torchvision has it); K. Simonyan, A. Zisserman, arXiv:1409.1556 (VGG-16); M. Sandler et al., arXiv:1801.04381 (MobileNet-V2);
A. Radford et al., arXiv:1511.06434 (DCGAN, 64 x 64 images). And ResNet-50's 3 x 3 layers for eight images."""

from __future__ import annotations

from typing import NamedTuple


class Layer(NamedTuple):
    images: int
    channels: int
    size: int  # height and width of the input
    outputs: int
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    transposed: bool = False

    def __str__(self):
        kind = "transposed " * self.transposed + "depthwise " * (self.groups > 1)
        stride = f" stride {self.stride}" * (self.stride > 1)
        return f"{kind}{self.kernel}x{self.kernel}{stride}, {self.images}x{self.channels}x{self.size}x{self.size}, {self.outputs}"

    @property
    def multiply_adds(self):
        out = self.size if self.transposed else (self.size + 2 * self.padding - self.kernel) // self.stride + 1
        return self.images * out * out * self.outputs * self.channels // self.groups * self.kernel**2


def _conv(channels, size, outputs, kernel, stride=1, images=1):
    return Layer(images, channels, size, outputs, kernel, stride, kernel // 2)


def _depthwise(channels, size, stride=1):
    return Layer(1, channels, size, channels, 3, stride, 1, channels)


RESNET = [_conv(3, 224, 64, 7, 2)]
RESNET += [_conv(64, 56, 64, 1), _conv(64, 56, 64, 3), _conv(64, 56, 256, 1), _conv(256, 56, 64, 1)]
for _size, _narrow in ((56, 128), (28, 256), (14, 512)):
    _before = 2 * _narrow
    RESNET += [_conv(_before, _size, _narrow, 1), _conv(_narrow, _size, _narrow, 3, 2), _conv(_narrow, _size // 2, 4 * _narrow, 1),
               _conv(_before, _size, 4 * _narrow, 1, 2), _conv(4 * _narrow, _size // 2, _narrow, 1), _conv(_narrow, _size // 2, _narrow, 3)]

VGG = [_conv(c, size, k, 3) for c, size, k in ((3, 224, 64), (64, 224, 64), (64, 112, 128), (128, 112, 128), (128, 56, 256), (256, 56, 256),
                                               (256, 28, 512), (512, 28, 512), (512, 14, 512))]

MOBILENET = [_conv(3, 224, 32, 3, 2), _depthwise(32, 112), _conv(32, 112, 16, 1), _conv(16, 112, 96, 1), _depthwise(96, 112, 2),
             _conv(96, 56, 24, 1)]
for _size, _narrow, _stride, _after in ((56, 24, 2, 32), (28, 32, 2, 64), (14, 64, 1, 96), (14, 96, 2, 160), (7, 160, 1, 320)):
    _wide = 6 * _narrow
    MOBILENET += [_conv(_narrow, _size, _wide, 1), _depthwise(_wide, _size), _conv(_wide, _size, _narrow, 1)]
    MOBILENET += [_depthwise(_wide, _size, 2)] if _stride == 2 else []
    MOBILENET += [_conv(_wide, _size // _stride, _after, 1)]
MOBILENET += [_conv(320, 7, 1280, 1)]

_GENERATOR = ((100, 1, 512, 1, 0), (512, 4, 256, 2, 1), (256, 8, 128, 2, 1), (128, 16, 64, 2, 1), (64, 32, 3, 2, 1))
_DISCRIMINATOR = ((3, 64, 64, 2, 1), (64, 32, 128, 2, 1), (128, 16, 256, 2, 1), (256, 8, 512, 2, 1), (512, 4, 1, 1, 0))
DCGAN = [Layer(8, c, size, k, 4, stride, padding, 1, True) for c, size, k, stride, padding in _GENERATOR]
DCGAN += [Layer(8, c, size, k, 4, stride, padding) for c, size, k, stride, padding in _DISCRIMINATOR]

BATCH = [layer._replace(images=8) for layer in RESNET if (layer.kernel, layer.stride) == (3, 1)]

NETWORKS = {"resnet50": RESNET, "batch8": BATCH, "vgg16": VGG, "mobilenetv2": MOBILENET, "dcgan": DCGAN}
