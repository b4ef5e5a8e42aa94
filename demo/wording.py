"""What image-reader says, in the language of the question."""

import re
from collections.abc import Sequence
from enum import Enum

from demo.colours import ColourShare
from demo.reading import Reading

HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
KANA = re.compile(r"[\u3041-\u30ff]")
LATIN_WORD = re.compile(r"[A-Za-z]+")
HAN_PER_WORD = 2  # a Chinese word is about two characters long


class Language(Enum):
    CHINESE = "zh"
    ENGLISH = "en"


def language_of(question: str) -> Language:
    """Return the language that most words of the question are in; English if it is neither."""
    han = len(HAN.findall(question))
    if not han or KANA.search(question):
        return Language.ENGLISH
    words = len(LATIN_WORD.findall(question))
    return Language.CHINESE if han >= HAN_PER_WORD * words else Language.ENGLISH


def describe(readings: Sequence[Reading], language: Language, *, is_follow_up: bool) -> str:
    """Say what the images are, in their order. A follow-up asks about images of earlier turns."""
    if language is Language.CHINESE:
        return _chinese(readings, is_follow_up)
    return _english(readings, is_follow_up)


def _english(readings: Sequence[Reading], is_follow_up: bool) -> str:
    if not readings:
        return (
            "I only read images: the text in them, their size and their main colours. "
            "Please send an image with your question."
        )
    opening = "I only read images, so here is my reading again. " if is_follow_up else ""
    if len(readings) == 1:
        return f"{opening}This is {_english_reading(readings[0])}"
    parts = [f"{opening}There are {len(readings)} images."]
    parts += [f"Image {i}: {_english_reading(one)}" for i, one in enumerate(readings, start=1)]
    return "\n\n".join(parts)


def _english_reading(reading: Reading) -> str:
    size = f"a {reading.format} image of {reading.width_px} × {reading.height_px} pixels."
    text = "No text can be read in it."
    if reading.lines:
        text = "\n".join(["The text in it reads:", *reading.lines])
    names = [f"{share.colour.english} ({share.percent}%)" for share in reading.colours]
    colours = f"Main colours: {', '.join(names)}." if names else "It has no main colour."
    return f"{size} {text}\n{colours}"


def _chinese(readings: Sequence[Reading], is_follow_up: bool) -> str:
    if not readings:
        return "我只會讀圖片：圖中的文字、尺寸和主要顏色。請把圖片和問題一起送來。"
    opening = "我只會讀圖片，所以再讀一次。" if is_follow_up else ""
    if len(readings) == 1:
        return f"{opening}這是一張 {_chinese_reading(readings[0])}"
    parts = [f"{opening}一共有 {len(readings)} 張圖片。"]
    parts += [f"圖 {i}：{_chinese_reading(one)}" for i, one in enumerate(readings, start=1)]
    return "\n\n".join(parts)


def _chinese_reading(reading: Reading) -> str:
    size = f"{reading.width_px} × {reading.height_px} 像素的 {reading.format} 圖片。"
    text = "圖中讀不到文字。"
    if reading.lines:
        text = "\n".join(["圖中的文字是：", *reading.lines])
    return f"{size}{text}\n{_chinese_colours(reading.colours)}"


def _chinese_colours(colours: Sequence[ColourShare]) -> str:
    names = [f"{share.colour.chinese}（{share.percent}%）" for share in colours]
    return f"主要顏色是{'、'.join(names)}。" if names else "沒有主要的顏色。"
