"""The text in a picture, by PP-OCR (small) on onnxruntime, with the weights in rapidocr's wheel.

Importing this takes half a second, loading a second or two, a page of text some seconds.
"""

from pathlib import Path

import rapidocr
from PIL import Image
from rapidocr.utils.output import RapidOCROutput

from demo.cores import threads
from demo.reading import Fragment

SIDE_MIN_PX = 32  # the engine's grain
SEARCH_SIDE_MAX_PX = 1280  # for finding where text is, which needs less than reading it
SCORE_MIN = 0.6


class Ocr:
    """The engine, which loads each part when it is first used. Not safe for two threads at once."""

    def __init__(self) -> None:
        # By path, or a missing file would be fetched from the network.
        weights = Path(rapidocr.__file__).parent / "models"
        self._engine = rapidocr.RapidOCR(
            params={
                "Global.log_level": "critical",  # "no text" is an answer here, not a warning
                "Global.text_score": SCORE_MIN,
                "Global.use_preprocess_img": False,  # it would blow up what is long and thin
                "EngineConfig.onnxruntime.intra_op_num_threads": threads(),
                "Det.limit_type": "max",
                "Det.limit_side_len": SEARCH_SIDE_MAX_PX,
                "Det.model_path": str(weights / "PP-OCRv6_det_small.onnx"),
                "Cls.model_path": str(weights / "ch_ppocr_mobile_v2.0_cls_mobile.onnx"),
                "Rec.model_path": str(weights / "PP-OCRv6_rec_small.onnx"),
            }
        )

    def find(self, picture: Image.Image) -> list[Fragment]:
        found = self._engine(_with_room(picture))
        if not isinstance(found, RapidOCROutput) or found.boxes is None:
            return []
        return [
            Fragment(
                text=text.strip(),
                score=float(score),
                left=float(box[:, 0].min()),
                top=float(box[:, 1].min()),
                bottom=float(box[:, 1].max()),
            )
            for box, text, score in zip(
                found.boxes, found.txts or (), found.scores or (), strict=True
            )
        ]


def _with_room(picture: Image.Image) -> Image.Image:
    """Widen what is thinner than the engine's grain, with white at the right and the bottom."""
    if min(picture.size) >= SIDE_MIN_PX:
        return picture
    width_px, height_px = picture.size
    room = Image.new("RGB", (max(width_px, SIDE_MIN_PX), max(height_px, SIDE_MIN_PX)), "white")
    room.paste(picture)
    return room
