"""torchvision's names, layout and arithmetic in NumPy: what published weights mean."""

import json

import numpy as np

ALEXNET = ((0, 3, 6, 8, 10), (1, 4, 6))  # places of the convolutions in `features`, of the dense layers in `classifier`
VGG_SMALL = ((0, 3, 5), (0, 3, 6))  # stages of one and two convolutions


def state_dict(places, shapes, dense, seed=0):
    """Random weights: convolutions OIHW of the given shapes, dense layers (out, in)."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for kind, indices, sizes in zip(("features", "classifier"), places, (shapes, dense), strict=True):
        for index, shape in zip(indices, sizes, strict=True):
            arrays[f"{kind}.{index}.weight"] = rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
            arrays[f"{kind}.{index}.bias"] = 0.1 * rng.normal(size=shape[0])
    return {name: value.astype(np.float32) for name, value in arrays.items()}


def conv(maps, weight, bias, stride, padding):
    """A convolution of maps (N, C, H, W) with a kernel OIHW, tap after tap, and ReLU."""
    maps = np.pad(maps, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    size = weight.shape[2]
    rows, columns = ((length - size) // stride + 1 for length in maps.shape[2:])
    out = np.zeros((len(maps), len(weight), rows, columns))
    for i in range(size):
        for j in range(size):
            patch = maps[:, :, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
            out += np.einsum("nchw,oc->nohw", patch, weight[:, :, i, j])
    return np.maximum(out + bias[None, :, None, None], 0)


def pool(maps, window):
    """Max-pooling of stride 2, window after window."""
    rows, columns = ((length - window) // 2 + 1 for length in maps.shape[2:])
    out = np.empty((*maps.shape[:2], rows, columns))
    for i in range(rows):
        for j in range(columns):
            out[:, :, i, j] = maps[:, :, 2 * i : 2 * i + window, 2 * j : 2 * j + window].max((2, 3))
    return out


def average(maps, grid):
    """Adaptive average pooling, cell after cell."""
    height, width = maps.shape[2:]
    out = np.empty((*maps.shape[:2], grid, grid))
    for i in range(grid):
        for j in range(grid):
            rows = slice(i * height // grid, -(-(i + 1) * height // grid))
            columns = slice(j * width // grid, -(-(j + 1) * width // grid))
            out[:, :, i, j] = maps[:, :, rows, columns].mean((2, 3))
    return out


def dense(arrays, index, values):
    """A dense layer."""
    return values @ arrays[f"classifier.{index}.weight"].T + arrays[f"classifier.{index}.bias"]


def logits(arrays, places, maps):
    """The classifier on maps (N, C, h, w), flattened in that order."""
    values = maps.reshape(len(maps), -1)
    for index in places[1][:-1]:
        values = np.maximum(dense(arrays, index, values), 0)
    return dense(arrays, places[1][-1], values)


def write_safetensors(path, arrays, kinds=None):
    """The format by its description, to check the reader against."""
    header, body = {"__metadata__": {"format": "pt"}}, b""
    for name, value in arrays.items():
        kind = (kinds or {}).get(name, {"float32": "F32", "float16": "F16", "int64": "I64"}.get(str(value.dtype)))
        content = np.ascontiguousarray(value).tobytes()
        offsets = [len(body), len(body) + len(content)]
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": offsets}
        body += content
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
