"""The training schedules: stages, and presets that are made of them.

- *pretrain_vision*: the vision encoder alone learns the dense labels (`avis.garden.labels`) of visual tokens, so that
  language training does not start blind.
- *pretrain_text_easy*, *pretrain_text*: the language model alone learns to reason. It reads label embeddings in place
  of the encoder's features (`Trainer.label_embeddings`, a least-squares fit), so that no image has to be drawn.
- *align_vision*: the vision encoder alone; its features are drawn towards the label embeddings, which the language
  model has learned to read.
- *finetune_mid*, *finetune*: the whole model, up to full size, labels and label embeddings kept as auxiliary losses;
  in *finetune* the learning rate decays.
- *finetune_boxed*: from another model's weights to answers in a box.

Stages with shares of `see` and `think` draw from the second garden, the others from the first. No visual token is ever
dropped in training.
"""

import math
from dataclasses import dataclass, replace

from avis.garden.scenes import SECOND
from avis.garden.tasks import SECOND_SIZES, SIZES

Size = tuple[int, int]  # columns and rows in merged tokens

TINY: tuple[Size, ...] = ((5, 5), (6, 5), (5, 6), (6, 6))
SMALL: tuple[Size, ...] = ((5, 5), (6, 6), (5, 7), (7, 5), (8, 6), (6, 8), (7, 7), (8, 8), (9, 7), (7, 9))
MIDDLE: tuple[Size, ...] = ((8, 8), (10, 8), (8, 10), (10, 10), (12, 10), (10, 13), (14, 10), (12, 14), (14, 14))
FULL: tuple[Size, ...] = SIZES["image"]
SECOND_FULL: tuple[Size, ...] = SECOND_SIZES["image"]
# Of label embeddings alone, which cost little: each of ten animals needs a token of its own, and its tag another.
LABELS: tuple[Size, ...] = ((8, 8), (9, 8), (8, 9), (10, 8), (8, 10), (10, 10))
EASY_LEVELS, ALL_LEVELS = (0.4, 0.35, 0.25, 0.0, 0.0), (0.27, 0.25, 0.23, 0.15, 0.10)
WARMUP_BATCHES = 50


@dataclass(frozen=True)
class Stage:
    """One part of a schedule.

    Attributes:
        name: for progress and records; nothing is drawn from it.
        num_rows: images, pairs of images and videos to train on.
        batch_size: rows in a batch.
        sizes: of the images, in merged tokens; one is drawn for each batch.
        media: shares of images, pairs of images and videos.
        levels: shares of levels 1 to 5 of the first garden.
        num_questions: asked about each row.
        vision_lr: peak learning rate of the vision encoder; 0 leaves it as it is.
        text_lr: peak learning rate of the language model; 0 leaves it as it is.
        dense_loss_weight: of the dense labels' loss, beside that of the responses.
        decay_fraction: share of the stage, at its end, over which the learning rates fall.
        min_lr_ratio: where they fall to, as a share of the peak.
        alignment_weight: of the loss that draws features towards the label embeddings.
        has_images: False for the language model alone, on label embeddings.
        choice_share: share of multiple-choice questions.
        conclusion_weight: loss weight of the tokens after a trace's last semicolon (value, letter, answer); others: 1.
        extras_probability: of tags, and of a sign, that the first question does not need.
        answer_format: in whose words an answer is asked for, see `avis.prompts.ANSWER_FORMATS`.
        see: shares of see 1 to 5 of the second garden; () for the first.
        think: shares of think 1 to 5 of the second garden; () for the first.
        page_share: share of pages among images of the second garden.
    """

    name: str
    num_rows: int
    batch_size: int
    sizes: tuple[Size, ...]
    media: tuple[float, float, float]
    levels: tuple[float, ...]
    num_questions: int
    vision_lr: float
    text_lr: float
    dense_loss_weight: float
    decay_fraction: float = 0.0
    min_lr_ratio: float = 0.0
    alignment_weight: float = 0.0
    has_images: bool = True
    choice_share: float = 0.5
    conclusion_weight: float = 1.0
    extras_probability: float = 0.5
    answer_format: str = "avis"
    see: tuple[float, ...] = ()
    think: tuple[float, ...] = ()
    page_share: float = 0.0

    @property
    def split(self) -> str:
        """The split whose generators draw the stage's rows."""
        return f"{SECOND}train" if self.see else "train"

    @property
    def num_batches(self) -> int:
        """Whole batches in the stage."""
        return self.num_rows // self.batch_size

    def learning_rate(self, peak: float, batch: int) -> float:
        """Return the learning rate at a batch: linear warm-up, and cosine decay at the end.

        Args:
            peak: the highest learning rate.
            batch: number of the batch in the stage, from 0.
        """
        warmup = min(1.0, (batch + 1) / WARMUP_BATCHES)
        left = (self.num_batches - batch) / max(1, int(self.decay_fraction * self.num_batches))
        decay = 1.0
        if self.decay_fraction and left < 1.0:
            decay = self.min_lr_ratio + (1 - self.min_lr_ratio) * 0.5 * (1 - math.cos(math.pi * left))
        return peak * warmup * decay


PRETRAIN_VISION = Stage(
    name="pretrain_vision",
    num_rows=60_000,
    batch_size=128,
    sizes=SMALL + MIDDLE,
    media=(0.75, 0.0, 0.25),
    levels=ALL_LEVELS,
    num_questions=1,
    vision_lr=1.5e-3,
    text_lr=0.0,
    dense_loss_weight=1.0,
)
# The letter of an option is what is learned last: most questions are multiple choice, and conclusions weigh more.
PRETRAIN_TEXT_EASY = Stage(
    name="pretrain_text_easy",
    num_rows=300_000,
    batch_size=96,
    sizes=TINY,
    media=(1.0, 0.0, 0.0),
    levels=EASY_LEVELS,
    num_questions=6,
    vision_lr=0.0,
    text_lr=2e-3,
    dense_loss_weight=0.0,
    has_images=False,
    choice_share=0.8,
    conclusion_weight=5.0,
)
PRETRAIN_TEXT = replace(
    PRETRAIN_TEXT_EASY,
    name="pretrain_text",
    sizes=SMALL + MIDDLE + FULL[:4],
    media=(0.6, 0.15, 0.25),
    levels=ALL_LEVELS,
)
ALIGN_VISION = Stage(
    name="align_vision",
    num_rows=150_000,
    batch_size=128,
    sizes=MIDDLE + FULL,
    media=(0.72, 0.08, 0.2),
    levels=ALL_LEVELS,
    num_questions=1,
    vision_lr=1e-3,
    text_lr=0.0,
    dense_loss_weight=1.0,
    alignment_weight=1.0,
    extras_probability=0.8,
)
FINETUNE_MID = Stage(
    name="finetune_mid",
    num_rows=150_000,
    batch_size=96,
    sizes=MIDDLE + FULL[:4],
    media=(0.6, 0.12, 0.28),
    levels=ALL_LEVELS,
    num_questions=6,
    vision_lr=6e-4,
    text_lr=1.5e-3,
    dense_loss_weight=0.3,
    alignment_weight=0.2,
)
FINETUNE = Stage(
    name="finetune",
    num_rows=300_000,
    batch_size=96,
    sizes=FULL,
    media=(0.56, 0.14, 0.3),
    levels=ALL_LEVELS,
    num_questions=6,
    vision_lr=5e-4,
    text_lr=1.2e-3,
    dense_loss_weight=0.3,
    decay_fraction=0.9,
    alignment_weight=0.2,
    conclusion_weight=2.0,
)
# The second garden. The language model first learns to reason, on labels of scenes that are plain to see; the vision
# encoder then learns to read tags and signs where they are readable (small scenes have as many tags as large ones), and
# then at full size.
_PLAIN, _READABLE, _EVEN = (0.4, 0.3, 0.2, 0.1, 0.0), (0.3, 0.27, 0.25, 0.12, 0.06), (0.2, 0.2, 0.2, 0.2, 0.2)
THINK_TEXT_EASY = replace(
    PRETRAIN_TEXT_EASY,
    name="think_text_easy",
    num_rows=32_000,
    batch_size=8,
    sizes=LABELS,
    media=(0.85, 0.05, 0.1),
    levels=(),
    see=_PLAIN,
    think=(0.4, 0.3, 0.2, 0.07, 0.03),
    page_share=0.3,
    choice_share=0.6,
    conclusion_weight=3.0,
)
THINK_TEXT = replace(
    THINK_TEXT_EASY,
    name="think_text",
    num_rows=64_000,
    sizes=LABELS + MIDDLE + SECOND_FULL[:4],
    media=(0.7, 0.08, 0.22),
    think=_EVEN,
    text_lr=1.5e-3,
    choice_share=0.5,
    decay_fraction=0.3,
    min_lr_ratio=0.2,
)
THINK_VISION = replace(
    ALIGN_VISION,
    name="think_vision",
    num_rows=96_000,
    batch_size=16,
    sizes=LABELS + MIDDLE[3:6],
    media=(0.93, 0.0, 0.07),  # a batch of videos takes as long as ten of images
    levels=(),
    see=_READABLE,
    think=(0.3, 0.3, 0.2, 0.1, 0.1),
    page_share=0.3,
    vision_lr=1e-3,
    alignment_weight=0.3,
    extras_probability=0.9,
)
THINK_ALIGN = replace(
    THINK_VISION,
    name="think_align",
    num_rows=24_000,
    batch_size=8,
    sizes=MIDDLE + SECOND_FULL,
    media=(0.8, 0.06, 0.14),
    think=_EVEN,
    vision_lr=6e-4,
    alignment_weight=1.0,
)
THINK_FINETUNE = replace(
    FINETUNE,
    name="think_finetune",
    num_rows=20_000,
    batch_size=4,
    sizes=SECOND_FULL,
    levels=(),
    see=_READABLE,
    think=_EVEN,
    page_share=0.3,
    vision_lr=4e-4,
    text_lr=1e-3,
    decay_fraction=1.0,
)
PRESETS: dict[str, tuple[Stage, ...]] = {
    "thinking": (THINK_TEXT_EASY, THINK_TEXT, THINK_VISION, THINK_ALIGN, THINK_FINETUNE),
    "cpu": (
        replace(PRETRAIN_TEXT_EASY, num_rows=19_200, batch_size=8),
        replace(PRETRAIN_TEXT, num_rows=8_800, batch_size=8, text_lr=1.5e-3),
        replace(ALIGN_VISION, num_rows=4_000, batch_size=8, vision_lr=6e-4),
        replace(FINETUNE, num_rows=7_600, batch_size=4, vision_lr=4e-4, decay_fraction=1.0),
    ),
    # Another backbone for the bundled policy: warm-started, with another seed, and answering in a box.
    "boxed": (
        Stage(
            name="finetune_boxed",
            num_rows=2_400,
            batch_size=4,
            sizes=FULL,
            media=(0.56, 0.14, 0.3),
            levels=ALL_LEVELS,
            num_questions=6,
            vision_lr=2e-4,
            text_lr=1.2e-3,
            dense_loss_weight=0.0,
            decay_fraction=1.0,
            answer_format="vl-rethinker",
        ),
    ),
    "gpu": (PRETRAIN_VISION, PRETRAIN_TEXT_EASY, PRETRAIN_TEXT, ALIGN_VISION, FINETUNE_MID, FINETUNE),
}
