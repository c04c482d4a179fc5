"""JPEG, fog, Gabor noise and snow in slow float64 NumPy, pixel by pixel or by SciPy."""

import numpy as np
from scipy import fft, signal

from jaxrobust.sets import jpeg


def decoded(x, theta, subsample):
    """x (H, W, C) in [0, 1] through all steps of JPEG, with v/2 added where JPEG would round; not clipped."""
    x = 255 * np.asarray(x, float)
    red, green, blue = x[..., 0], x[..., -1] if x.shape[2] == 1 else x[..., 1], x[..., -1]
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    planes = {"y": luma if x.shape[2] == 3 else red}
    if x.shape[2] == 3:
        planes["cb"] = -0.168736 * red - 0.331264 * green + 0.5 * blue + 128
        planes["cr"] = 0.5 * red - 0.418688 * green - 0.081312 * blue + 128
    for name, plane in planes.items():
        chroma = name != "y"
        if chroma and subsample:
            plane = (plane[::2, ::2] + plane[1::2, ::2] + plane[::2, 1::2] + plane[1::2, 1::2]) / 4
        table = (jpeg.CHROMINANCE if chroma else jpeg.LUMINANCE).astype(float)
        out = np.empty_like(plane)
        for row in range(0, plane.shape[0], 8):
            for column in range(0, plane.shape[1], 8):
                block = np.s_[row : row + 8, column : column + 8]
                coefficients = fft.dctn(plane[block] - 128, norm="ortho") / table
                moved = coefficients + np.asarray(theta[name], float)[block] / 2
                out[block] = fft.idctn(moved * table, norm="ortho") + 128
        planes[name] = np.kron(out, np.ones((2, 2))) if chroma and subsample else out
    if x.shape[2] == 1:
        return planes["y"][..., None] / 255
    luma, blues, reds = planes["y"], planes["cb"] - 128, planes["cr"] - 128
    rgb = [luma + 1.402 * reds, luma - 0.344136 * blues - 0.714136 * reds, luma + 1.772 * blues]
    return np.stack(rgb, -1) / 255


def heights(levels, decay):
    """Diamond–square on a torus, one point after the other; not scaled."""
    side = 2 ** len(levels)
    found = np.full((side, side), np.nan)
    found[0, 0] = 0
    spacing, wibble = side, 100.0
    for level in map(np.asarray, levels):
        half = spacing // 2
        corners = [(r, c) for r in range(0, side, spacing) for c in range(0, side, spacing)]
        for kind, (dr, dc) in enumerate([(half, half), (0, half), (half, 0)]):
            for r, c in corners:
                row, column = r + dr, c + dc
                reach = [(-half, -half), (-half, half), (half, -half), (half, half)]
                if kind:
                    reach = [(-half, 0), (half, 0), (0, -half), (0, half)]
                around = [found[(row + a) % side, (column + b) % side] for a, b in reach]
                value = float(level[kind, r // spacing, c // spacing])
                found[row, column] = np.mean(around) + (2 * value - 1) * wibble
        spacing, wibble = half, wibble / decay
    return found


def gabor_kernel(sides, deviation, frequency, angle):
    """The sum of Gabor functions on [−½, ½]²."""
    found = np.zeros((23, 23))
    for i in range(sides):
        turned = angle + np.pi * i / sides
        for row, down in enumerate(np.linspace(-0.5, 0.5, 23)):
            for column, across in enumerate(np.linspace(-0.5, 0.5, 23)):
                along = across * np.cos(turned) + down * np.sin(turned)
                off = -across * np.sin(turned) + down * np.cos(turned)
                bell = np.exp(-0.5 * (along**2 + off**2) / (deviation + 1e-3) ** 2)
                found[row, column] += bell * np.cos(2 * np.pi * frequency * along)
    return found


def gabor_noise(field, kernel):
    """Convolution, then the normalisation of the local variance as published: through the Fourier domain and back."""
    found = signal.correlate2d(field, kernel, mode="same")
    deviation = found - found.mean()
    variance = np.fft.irfft2(np.fft.rfft2(deviation**2), found.shape)
    contrast = np.sqrt(np.abs(variance))
    contrast /= contrast.max()
    level = found.mean() + deviation * (0.001 + 1) / (0.001 + contrast)
    return (level - level.min()) / (level.max() - level.min())


def snow(intensity, streaks, shape):
    """Flakes on their lattices, drawn over each other as their streaks."""
    found = np.zeros(shape)
    for i, (plane, streak) in enumerate(zip(intensity, streaks, strict=True)):
        grid = np.zeros((4 * plane.shape[0], 4 * plane.shape[1]))
        top, left = (0, i) if i < 4 else (i - 3, 0)
        grid[top::4, left::4] = plane**4
        found += signal.convolve2d(grid, streak, mode="same")[: shape[0], : shape[1]]
    return found


def streak(down, across, width):
    """A line from the middle of a 13 x 13 image to (6 + down, 6 + across) and its mirror image."""
    found = np.zeros((13, 13))
    steep = down > across
    longer, shorter = max(down, across), min(down, across)
    width = width * np.sqrt(1 + shorter / longer) / 2
    for along in range(longer + 1):
        for off in range(7):
            weight = np.clip(1 + width / 2 - abs(off - along * shorter / longer), 0, 1)
            row, column = (along, off) if steep else (off, along)
            for sign in (1, -1):
                found[6 + sign * row, 6 + sign * column] = weight
    return found


def blurred(image, deviation):
    """A 3 x 3 Gaussian blur with zeros around the image."""
    bell = np.exp(-0.5 * (np.arange(-1, 2) / deviation) ** 2)
    kernel = np.outer(bell, bell)
    return signal.convolve2d(image, kernel / kernel.sum(), mode="same")
