"""Pictures that nobody has checked, one by one."""

from __future__ import annotations

import io
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_pictures import raw_png, swapped_profile
from PIL import Image, ImageCms

from maskery.core.errors import DataError
from maskery.data.images.loading import ImageRef, Skipped, decode_many, load_image

GRADIENT = np.stack(
    np.broadcast_arrays(
        np.arange(0, 256, 8, dtype=np.uint8)[None, :],
        np.arange(0, 256, 16, dtype=np.uint8)[:, None],
        np.uint8(90),
    ),
    axis=-1,
)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def loaded(content: bytes, **options: Any) -> np.ndarray:
    image = load_image(io.BytesIO(content), name="a/b.png", **options)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def message(content: bytes, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        loaded(content, **options)
    text = str(caught.value)
    assert "a/b.png" in text
    assert "\n" not in text
    return text


def outcome(content: bytes, **options: Any) -> str:
    """The message of the error, or nothing; any other exception is a failure."""
    try:
        loaded(content, **options)
    except DataError as error:
        return str(error)
    return ""


PNG = encoded(Image.fromarray(GRADIENT), "PNG")
JPEG = encoded(Image.fromarray(GRADIENT), "JPEG", quality=95)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_keep_every_pixel(kind: str) -> None:
    np.testing.assert_array_equal(loaded(encoded(Image.fromarray(GRADIENT), kind)), GRADIENT)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_stay_near(kind: str) -> None:
    difference = loaded(encoded(Image.fromarray(GRADIENT), kind, quality=95)) - GRADIENT
    assert np.abs(difference).mean() < 4


def test_empty() -> None:
    assert "is empty (0 bytes)" in message(b"")


@pytest.mark.parametrize("content", [b"hello", b"%PDF-1.4 ...", b"\x00" * 100, b"<svg></svg>"])
def test_no_image(content: bytes) -> None:
    assert "not a picture of a known format" in message(content)


def test_postscript_is_not_handed_to_another_program() -> None:
    eps = encoded(Image.fromarray(GRADIENT), "EPS")
    assert "not a picture of a known format" in message(eps)


@pytest.mark.parametrize("content", [PNG, JPEG], ids=["png", "jpeg"])
def test_truncated(content: bytes) -> None:
    assert "is damaged (" in message(content[: len(content) * 2 // 3])


def test_damaged_inside() -> None:
    broken = bytearray(PNG)
    broken[len(PNG) // 2] ^= 0xFF
    assert "is damaged (" in message(bytes(broken))


def bomb(width: int, height: int) -> bytes:
    """A small PNG whose header claims a huge picture."""
    return raw_png((width, height), b"\x00" * 1000)


def test_decompression_bombs_are_not_decoded() -> None:
    assert "bomb" in message(bomb(100_000, 100_000))
    # Between Pillow's warning and its error; warnings are errors here.
    assert "bomb" in message(bomb(10_000, 10_000))
    assert "8000 x 8000 pixels, more than the 1000000 allowed" in message(
        bomb(8000, 8000), max_pixels=1_000_000
    )


def test_max_pixels_is_inclusive() -> None:
    assert loaded(PNG, max_pixels=512).shape == (16, 32, 3)
    assert "more than the 511 allowed" in message(PNG, max_pixels=511)


def test_cmyk() -> None:
    cmyk = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    difference = loaded(encoded(cmyk, "TIFF")) - np.array([255, 0, 0])
    assert np.abs(difference).max() <= 1
    # JPEG of CMYK is stored inverted, by Adobe's habit.
    assert np.abs(loaded(encoded(cmyk, "JPEG")) - np.array([255, 0, 0])).max() <= 3


def test_palette_with_transparency_shows_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    assert loaded(encoded(image, "PNG")).tolist() == [[[255, 0, 0], [0, 0, 255]]]
    transparent = encoded(image, "PNG", transparency=1)
    assert loaded(transparent).tolist() == [[[255, 0, 0], [255, 255, 255]]]
    by_entry = encoded(image, "PNG", transparency=bytes([255, 0]))
    assert loaded(by_entry).tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_half_transparent_pixels_are_mixed_with_white() -> None:
    image = Image.new("RGBA", (1, 1), (0, 0, 0, 51))
    # A fifth of black on white.
    assert loaded(encoded(image, "PNG")).tolist() == [[[204, 204, 204]]]
    grey = Image.new("LA", (1, 1), (0, 51))
    assert loaded(encoded(grey, "PNG")).tolist() == [[[204, 204, 204]]]


def test_transparent_colour_of_rgb() -> None:
    image = Image.new("RGB", (2, 1), (10, 20, 30))
    image.putpixel((0, 0), (1, 2, 3))
    content = encoded(image, "PNG", transparency=(1, 2, 3))
    assert loaded(content).tolist() == [[[255, 255, 255], [10, 20, 30]]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled(kind: str) -> None:
    levels = np.array([[0, 128, 257, 32768, 65279, 65535]], np.uint16)
    expected = np.rint(levels / 257).astype(int)
    got = loaded(encoded(Image.fromarray(levels), kind))
    np.testing.assert_array_equal(got, np.repeat(expected[..., None], 3, axis=-1))


def test_big_endian_sixteen_bit_grey() -> None:
    # A PGM of 16 bits is big-endian.
    content = b"P5 2 1 65535\n" + bytes([0xFF, 0xFF, 0x01, 0x01])
    assert loaded(content)[0, :, 0].tolist() == [255, 1]


def test_grey_and_bilevel() -> None:
    assert loaded(encoded(Image.new("L", (1, 1), 77), "PNG")).tolist() == [[[77] * 3]]
    assert loaded(encoded(Image.new("1", (1, 1), 1), "PNG")).tolist() == [[[255] * 3]]


def test_unknown_ranges_are_refused() -> None:
    assert "floating-point" in message(encoded(Image.new("F", (2, 2), 0.5), "TIFF"))
    deep = Image.fromarray(np.array([[0, 70_000]], np.int32))
    assert "outside 16 bits" in message(encoded(deep, "TIFF"))


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int16])
def test_integers_of_a_tiff_that_may_mean_any_range_are_refused(dtype: Any) -> None:
    content = encoded(Image.fromarray(np.array([[0, 200]], dtype)), "TIFF")
    assert "32-bit grey levels, from 0 to 200, of unknown range" in message(content)


@pytest.mark.parametrize(
    ("depth", "colour", "row", "key", "expected"),
    [
        (2, 0, bytes([0b00011011]), b"\x00\x01", [0, 255, 170, 255]),
        (4, 0, bytes([0x0F, 0x60]), b"\x00\x06", [0, 255, 255]),
        (8, 0, bytes([5, 6, 7]), b"\x00\x06", [5, 255, 7]),
        (16, 0, struct.pack(">3H", 0, 1000, 65535), struct.pack(">H", 1000), [0, 255, 255]),
        (16, 0, struct.pack(">2H", 0, 257), struct.pack(">H", 258), [0, 1]),
        (16, 2, struct.pack(">6H", *[0x1234] * 3, *[0x5678] * 3), b"\x12\x34" * 3, [255, 0x56]),
    ],
)
def test_a_transparent_colour_shows_white_at_any_depth(
    depth: int, colour: int, row: bytes, key: bytes, expected: list[int]
) -> None:
    content = raw_png((len(expected), 1), b"\0" + row, depth=depth, colour=colour, key=key)
    assert loaded(content)[0].tolist() == [[level] * 3 for level in expected]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_colours_are_those_of_the_profile(mode: str, kind: str) -> None:
    image = Image.new("RGB", (2, 2), (250, 20, 30)).convert(mode)
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    plain = loaded(encoded(image, kind, **options))
    swapped = loaded(encoded(image, kind, icc_profile=swapped_profile(), **options))
    assert np.abs(swapped - plain[..., ::-1]).max() <= 2
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(loaded(encoded(image, kind, icc_profile=srgb, **options)), plain)


@pytest.mark.parametrize(
    "profile",
    [b"no profile", swapped_profile()[:200], swapped_profile()],
    ids=["none", "cut", "whole"],
)
def test_a_profile_that_does_not_fit_does_not_lose_a_sound_picture(profile: bytes) -> None:
    content = encoded(Image.new("L", (1, 1), 77), "PNG", icc_profile=profile)
    assert loaded(content).tolist() == [[[77] * 3]]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_give_their_first_frame(kind: str) -> None:
    first, second = Image.new("RGB", (8, 8), (250, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 250))
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(first, kind, save_all=True, append_images=[second], **options)
    assert loaded(content)[4, 4].tolist() == [250, 0, 0]


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a.transpose(1, 0, 2)[::-1, ::-1]),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_exif_orientation(orientation: int, turned: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = loaded(encoded(Image.fromarray(GRADIENT), "PNG", exif=exif))
    np.testing.assert_array_equal(got, turned(GRADIENT))


def test_broken_exif_does_not_lose_a_sound_picture() -> None:
    content = encoded(Image.fromarray(GRADIENT), "PNG", exif=b"Exif\x00\x00broken")
    np.testing.assert_array_equal(loaded(content), GRADIENT)


def test_large_jpegs_are_decoded_near_the_size_wanted() -> None:
    y, x = np.mgrid[:800, :400]
    big = Image.fromarray(np.stack([x // 2, y // 4, x * 0 + 60], -1).astype(np.uint8))
    content = encoded(big, "JPEG", quality=95)
    small = load_image(io.BytesIO(content), name="x", near=(50, 90))
    assert small.size == (100, 200)
    whole = load_image(io.BytesIO(content), name="x")
    assert whole.size == (400, 800)
    shrunk = np.asarray(whole.resize(small.size, Image.Resampling.BOX)).astype(int)
    assert np.abs(np.asarray(small).astype(int) - shrunk).mean() < 2


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=300))
def test_arbitrary_bytes_give_a_picture_or_one_line(content: bytes) -> None:
    assert "\n" not in outcome(content)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(
        [
            PNG,
            JPEG,
            *(
                encoded(Image.fromarray(GRADIENT), kind)
                for kind in ("GIF", "TIFF", "BMP", "WEBP", "PPM", "TGA")
            ),
        ]
    ),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_flipped_bytes_give_a_picture_or_one_line(
    content: bytes, changes: list[tuple[int, int]]
) -> None:
    broken = bytearray(content)
    for position, value in changes:
        broken[position % len(broken)] = value
    assert "\n" not in outcome(bytes(broken), max_pixels=1_000_000)


def numbered(number: int) -> ImageRef:
    """Return a picture as wide as its number; every third is broken."""
    content = encoded(Image.new("RGB", (number + 1, 1)), "PNG")
    return ImageRef.held(str(number), b"" if number % 3 == 2 else content)


REFS = [numbered(number) for number in range(8)]


@pytest.mark.parametrize("threads", [1, 3])
def test_order_is_kept_and_broken_ones_are_counted(threads: int) -> None:
    skipped = Skipped("image", "skip")
    with ThreadPoolExecutor(threads) as pool:
        images = decode_many(REFS, skipped, pool)
    assert [image and image.width for image in images] == [1, 2, None, 4, 5, None, 7, 8]
    assert skipped.count == 2
    assert (
        str(skipped)
        == "2 images skipped; the first: image 2 is empty (0 bytes); restore or remove it"
    )


def test_failing_raises_the_first_in_order() -> None:
    with ThreadPoolExecutor(3) as pool, pytest.raises(DataError, match="image 2 is empty"):
        decode_many(REFS, Skipped("image", "fail"), pool)


def test_nothing_to_tell() -> None:
    assert str(Skipped("image", "skip")) == ""
