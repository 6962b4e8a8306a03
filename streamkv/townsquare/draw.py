"""Draws a moment of a world as a picture.

The picture is a grid of 3 x 3 cells: sign, sky and clock above, six zones of the square below.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from streamkv.townsquare.script import ZONES, Scene, Thing, World

CELL_W, CELL_H = 160, 96
WIDTH, HEIGHT = 3 * CELL_W, 3 * CELL_H
ENTER_S = 0.7  # a thing slides on or off the stage in this time

RGB = tuple[int, int, int]
PAINT: dict[str, RGB] = {
    "red": (220, 30, 35),
    "orange": (245, 135, 20),
    "yellow": (250, 225, 40),
    "green": (30, 160, 60),
    "blue": (35, 85, 220),
    "purple": (130, 40, 170),
    "pink": (250, 130, 190),
    "white": (250, 250, 250),
}
SKY: dict[str, tuple[RGB, RGB]] = {  # weather: sky, ground
    "sunny": ((110, 190, 250), (196, 182, 150)),
    "cloudy": ((165, 172, 180), (160, 152, 138)),
    "rainy": ((95, 110, 130), (115, 115, 120)),
    "snowy": ((205, 215, 228), (226, 230, 236)),
    "foggy": ((188, 188, 184), (176, 174, 168)),
    "night": ((18, 22, 52), (62, 60, 78)),
}
OUTLINE = (25, 25, 30)


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)  # Pillow's own, so that a world looks the same on every machine
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


def draw_moment(world: World, time_s: float) -> np.ndarray:
    """(HEIGHT, WIDTH, 3) uint8: the world at this time."""
    return draw_scene(world.scene_at(time_s), time_s)


def draw_scene(scene: Scene, time_s: float) -> np.ndarray:
    """(HEIGHT, WIDTH, 3) uint8: the scene at this time of its world."""
    image = _stage(scene.weather, scene.sign.text, scene.clock).copy()
    for thing in scene.visible(time_s):
        _place(image, thing, time_s - scene.start_s)
    _fall(ImageDraw.Draw(image), scene.weather, time_s)
    return np.asarray(image)


@lru_cache(maxsize=64)
def _stage(weather: str, sign: str, clock: str) -> Image.Image:
    sky, ground = SKY[weather]
    image = Image.new("RGB", (WIDTH, HEIGHT), ground)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, WIDTH, CELL_H), fill=sky)
    _draw_sky(draw, weather)
    tile = tuple(max(0, c - 10) for c in ground)
    for x in range(0, WIDTH, 40):
        draw.line((x, CELL_H, x + (x - WIDTH / 2) * 0.5, HEIGHT), fill=tile, width=2)
    for y in (CELL_H, CELL_H + 40, CELL_H + 96, CELL_H + 160):
        draw.line((0, y, WIDTH, y), fill=tile, width=2)
    for zone in ZONES:
        LANDMARKS[zone](draw, *_corner(zone))
    _board(draw, 0, sign, fill=(245, 240, 220), ink=(20, 20, 20), size=60)
    _board(draw, 2 * CELL_W, clock, fill=(28, 30, 36), ink=(255, 214, 90), size=52)
    return image


def _board(draw: ImageDraw.ImageDraw, left: int, text: str, *, fill: RGB, ink: RGB, size: int) -> None:
    draw.rounded_rectangle(
        (left + 4, 8, left + CELL_W - 4, CELL_H - 8), 8, fill=fill, outline=OUTLINE, width=3
    )
    draw.text(
        (left + CELL_W / 2, CELL_H / 2),
        text,
        font=_font(size),
        fill=ink,
        anchor="mm",
        stroke_width=1,
        stroke_fill=ink,
    )


def _draw_sky(draw: ImageDraw.ImageDraw, weather: str) -> None:
    x, y = CELL_W * 3 // 2, CELL_H // 2
    if weather == "sunny":
        for k in range(12):
            a = k * math.pi / 6
            draw.line((x, y, x + 46 * math.cos(a), y + 46 * math.sin(a)), fill=(255, 225, 80), width=4)
        draw.ellipse((x - 28, y - 28, x + 28, y + 28), fill=(255, 225, 80))
    elif weather == "night":
        draw.ellipse((x - 26, y - 26, x + 26, y + 26), fill=(240, 236, 205))
        draw.ellipse((x - 12, y - 34, x + 36, y + 18), fill=SKY["night"][0])
        for k in range(10):
            sx, sy = x - 75 + 16 * k, 12 + (k * 37) % 70
            draw.ellipse((sx - 2, sy - 2, sx + 2, sy + 2), fill=(255, 255, 255))
    elif weather == "foggy":
        for k in range(5):
            draw.rectangle((x - 76, 8 + 18 * k, x + 76, 15 + 18 * k), fill=(215, 215, 212))
    else:
        cloud = {"cloudy": (238, 240, 243), "rainy": (62, 70, 86), "snowy": (250, 250, 252)}[weather]
        for dx, dy, r in ((-38, 6, 24), (-8, -8, 30), (26, 4, 26)):
            draw.ellipse((x + dx - r, y + dy - r, x + dx + r, y + dy + r), fill=cloud)


def _fall(draw: ImageDraw.ImageDraw, weather: str, time_s: float) -> None:
    """Rain and snow; positions follow from time alone."""
    if weather not in ("rainy", "snowy"):
        return
    for k in range(48):
        x = (k * 89) % WIDTH
        y = (k * 53 + time_s * (260 if weather == "rainy" else 45)) % HEIGHT
        if weather == "rainy":
            draw.line((x, y, x - 3, y + 11), fill=(150, 175, 215), width=1)
        else:
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=(255, 255, 255))


def _corner(zone: str) -> tuple[int, int]:
    row, column = divmod(ZONES.index(zone), 3)
    return column * CELL_W, (row + 1) * CELL_H


def _place(image: Image.Image, thing: Thing, offset_s: float) -> None:
    """Pastes a thing into its zone: sliding on and off at the sides, growing and shrinking in the middle."""
    left, top = _corner(thing.zone)
    on_stage = min(1.0, (offset_s - thing.enter_s) / ENTER_S) if thing.enter_s > 0 else 1.0
    on_stage = min(on_stage, max(0.0, (thing.leave_s - offset_s) / ENTER_S))
    phase = (sum(map(ord, thing.name)) % 63) / 10
    x = left + CELL_W / 2 + 10 * math.sin(0.9 * offset_s + phase) + 8
    y = top + CELL_H / 2 + 3 * math.sin(1.7 * offset_s + phase) + 4
    scale = 1.0
    if left == 0:
        x -= (1 - on_stage) * CELL_W
    elif left == 2 * CELL_W:
        x += (1 - on_stage) * CELL_W
    else:
        scale = max(0.15, on_stage)
    sprite = _sprite(thing.kind, thing.colour)
    if scale < 1:
        sprite = sprite.resize((max(1, int(sprite.width * scale)), max(1, int(sprite.height * scale))))
    image.paste(sprite, (int(x - sprite.width / 2), int(y - sprite.height / 2)), sprite)


@lru_cache(maxsize=128)
def _sprite(kind: str, colour: str) -> Image.Image:
    """RGBA, 112 x 80, drawn at four times that size for smooth edges."""
    big = Image.new("RGBA", (448, 320))
    SHAPES[kind](ImageDraw.Draw(big), PAINT[colour])
    return big.resize((112, 80), Image.Resampling.LANCZOS)


def _wheels(draw: ImageDraw.ImageDraw, *centres: tuple[int, int], r: int = 38) -> None:
    for x, y in centres:
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(30, 30, 34))
        draw.ellipse((x - r // 2, y - r // 2, x + r // 2, y + r // 2), fill=(170, 170, 175))


def _car(draw: ImageDraw.ImageDraw, c: RGB) -> None:
    draw.polygon([(110, 150), (160, 70), (300, 70), (350, 150)], fill=c, outline=OUTLINE, width=8)
    draw.polygon([(140, 145), (172, 90), (222, 90), (222, 145)], fill=(190, 225, 240))
    draw.polygon([(238, 145), (238, 90), (290, 90), (320, 145)], fill=(190, 225, 240))
    draw.rounded_rectangle((30, 145, 420, 245), 30, fill=c, outline=OUTLINE, width=8)
    _wheels(draw, (120, 245), (330, 245), r=46)


def _bus(draw: ImageDraw.ImageDraw, c: RGB) -> None:
    draw.rounded_rectangle((14, 25, 434, 262), 22, fill=c, outline=OUTLINE, width=8)
    for k in range(5):
        draw.rectangle((38 + 78 * k, 60, 98 + 78 * k, 135), fill=(190, 225, 240), outline=OUTLINE, width=4)
    _wheels(draw, (105, 265), (345, 265))


def _truck(draw: ImageDraw.ImageDraw, c: RGB) -> None:
    draw.rectangle((14, 30, 285, 235), fill=c, outline=OUTLINE, width=8)
    draw.rounded_rectangle((292, 100, 434, 240), 18, fill=(120, 122, 128), outline=OUTLINE, width=8)
    draw.rectangle((340, 118, 418, 172), fill=(190, 225, 240))
    _wheels(draw, (80, 250), (200, 250), (365, 250))


def _bicycle(draw: ImageDraw.ImageDraw, c: RGB) -> None:
    for x in (110, 338):
        draw.ellipse((x - 86, 120, x + 86, 292), outline=OUTLINE, width=16)
    frame = [(110, 206), (190, 100), (300, 100), (338, 206), (215, 206), (190, 100)]
    draw.line(frame, fill=c, width=30, joint="curve")
    draw.line([(110, 206), (215, 206), (300, 100)], fill=c, width=30, joint="curve")
    draw.line([(300, 100), (292, 50), (345, 42)], fill=OUTLINE, width=16)
    draw.rectangle((150, 66, 230, 90), fill=OUTLINE)


def _person(draw: ImageDraw.ImageDraw, c: RGB) -> None:
    draw.rectangle((182, 205, 216, 312), fill=(45, 45, 70))
    draw.rectangle((232, 205, 266, 312), fill=(45, 45, 70))
    draw.rounded_rectangle((156, 95, 292, 225), 30, fill=c, outline=OUTLINE, width=7)
    draw.line((160, 115, 112, 215), fill=c, width=32)
    draw.line((288, 115, 336, 215), fill=c, width=32)
    draw.ellipse((178, 6, 270, 98), fill=(226, 178, 142), outline=OUTLINE, width=6)


def _dog(draw: ImageDraw.ImageDraw, c: RGB) -> None:
    for x in (112, 160, 270, 316):
        draw.rectangle((x, 205, x + 30, 300), fill=c, outline=OUTLINE, width=5)
    draw.ellipse((80, 115, 360, 240), fill=c, outline=OUTLINE, width=8)
    draw.ellipse((300, 50, 425, 165), fill=c, outline=OUTLINE, width=8)
    draw.polygon([(315, 75), (290, 150), (345, 110)], fill=OUTLINE)
    draw.ellipse((404, 100, 434, 126), fill=OUTLINE)
    draw.line([(90, 160), (30, 80)], fill=c, width=28)


def _bird(draw: ImageDraw.ImageDraw, c: RGB) -> None:
    draw.polygon([(225, 190), (20, 40), (130, 215)], fill=c, outline=OUTLINE, width=7)
    draw.polygon([(225, 190), (428, 40), (318, 215)], fill=c, outline=OUTLINE, width=7)
    draw.ellipse((165, 130, 285, 270), fill=c, outline=OUTLINE, width=7)
    draw.ellipse((186, 80, 264, 158), fill=c, outline=OUTLINE, width=7)
    draw.polygon([(212, 130), (238, 130), (225, 168)], fill=(245, 165, 30))


def _balloon(draw: ImageDraw.ImageDraw, c: RGB) -> None:
    draw.ellipse((125, 5, 323, 205), fill=c, outline=OUTLINE, width=8)
    draw.line((165, 180, 195, 250), fill=OUTLINE, width=6)
    draw.line((283, 180, 253, 250), fill=OUTLINE, width=6)
    draw.rectangle((185, 248, 263, 312), fill=(150, 100, 50), outline=OUTLINE, width=6)


def _umbrella(draw: ImageDraw.ImageDraw, c: RGB) -> None:
    draw.pieslice((40, 15, 408, 345), 180, 360, fill=c, outline=OUTLINE, width=8)
    for x in (132, 224, 316):
        draw.line((224, 18, x, 180), fill=OUTLINE, width=5)
    draw.line((224, 180, 224, 300), fill=OUTLINE, width=14)
    draw.arc((184, 270, 230, 315), 0, 180, fill=OUTLINE, width=14)


def _tent(draw: ImageDraw.ImageDraw, c: RGB) -> None:
    draw.polygon([(224, 20), (20, 300), (428, 300)], fill=c, outline=OUTLINE, width=9)
    draw.polygon([(224, 110), (150, 300), (298, 300)], fill=(50, 46, 44))


def _fountain(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    draw.ellipse((x + 4, y + 68, x + 64, y + 94), fill=(120, 130, 140), outline=(90, 95, 105), width=2)
    draw.line((x + 34, y + 80, x + 34, y + 44), fill=(140, 180, 210), width=5)


def _tree(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    draw.rectangle((x + 14, y + 40, x + 22, y + 92), fill=(105, 80, 55))
    draw.ellipse((x, y + 6, x + 40, y + 52), fill=(70, 110, 72))


def _gate(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    draw.arc((x + 2, y + 14, x + 50, y + 70), 180, 360, fill=(95, 85, 80), width=7)
    draw.rectangle((x + 2, y + 40, x + 9, y + 92), fill=(95, 85, 80))
    draw.rectangle((x + 43, y + 40, x + 50, y + 92), fill=(95, 85, 80))


def _bench(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    draw.rectangle((x + 4, y + 62, x + 62, y + 70), fill=(120, 88, 58))
    draw.rectangle((x + 4, y + 76, x + 62, y + 83), fill=(120, 88, 58))
    draw.rectangle((x + 10, y + 83, x + 15, y + 94), fill=(70, 60, 55))
    draw.rectangle((x + 51, y + 83, x + 56, y + 94), fill=(70, 60, 55))


def _kiosk(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    draw.rectangle((x + 4, y + 44, x + 44, y + 94), fill=(128, 108, 96), outline=(90, 76, 68), width=2)
    draw.polygon([(x, y + 44), (x + 24, y + 22), (x + 48, y + 44)], fill=(100, 82, 74))


def _steps(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    for k in range(4):
        draw.rectangle((x + 4, y + 54 + 10 * k, x + 26 + 12 * k, y + 64 + 10 * k), fill=(140 - 9 * k,) * 3)


Shape = Callable[[ImageDraw.ImageDraw, RGB], None]
SHAPES: dict[str, Shape] = {
    "car": _car,
    "bus": _bus,
    "truck": _truck,
    "bicycle": _bicycle,
    "person": _person,
    "dog": _dog,
    "bird": _bird,
    "balloon": _balloon,
    "umbrella": _umbrella,
    "tent": _tent,
}
LANDMARKS: dict[str, Callable[[ImageDraw.ImageDraw, int, int], None]] = {
    "fountain": _fountain,
    "tree": _tree,
    "gate": _gate,
    "bench": _bench,
    "kiosk": _kiosk,
    "steps": _steps,
}
