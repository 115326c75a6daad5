"""Builds `builtin:digits-vl`, the model of the CPU demo: a small Qwen2.5-VL, warm-started on the training digits.

    python scripts/build_digits_model.py [--output sharevl_lite/assets/digits-vl] [--perception 1800] [--habits 400]

Reinforcement sharpens what a model can already do now and then, so the warm start has two phases. *Perception*: read
both digits, work the question out, box the answer, on plain, rotated, noised and reworded questions alike. *Habits*:
the same questions, answered in three ways: *solve* as before, *guess* (box a random number) and *forget* (solve, but
never box it). Plain images with a familiar wording keep much of the first, the others little. What then differs between
them is how often the model cares to use what it can do, and that is what the demo's training has to find. Only the
scans of the training split are read. The result is float32 safetensors, a processor with Qwen's special tokens, and
`build.json` with the settings.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from sharevl_lite.data.digits import KINDS, QuestionKind, draw_pair, scans
from sharevl_lite.variants import TRANSFORMS

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Split before byte-pair merging: words with their space, single figures, runs of signs, white space.
PRE_TOKEN = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDINGS = {
    "sum": (
        "What is the sum of the two digits?",
        "Add the two digits. What do you get?",
        "Find the total of both digits.",
        "How much are the two digits together?",
    ),
    "difference": (
        "What is the difference between the two digits?",
        "Take the smaller digit away from the larger one. What is left?",
        "How far apart are the two digits?",
        "By how much do the digits differ?",
    ),
    "larger": (
        "Which of the two digits is larger?",
        "Name the bigger digit.",
        "What is the maximum of the digits?",
        "Which digit has the higher value?",
    ),
    "even": (
        "How many of the two digits are even?",
        "Count the even digits.",
        "Of both digits, how many can be divided by two?",
        "What is the number of even digits?",
    ),
}
"""What the warm start asks: the questions of the demo, and wordings of them that are not its variants."""
ROTATIONS = ("rotate_90_cw", "rotate_90_ccw", "rotate_180")
NOISES = ("noise_10", "noise_25", "noise_50")
TEMPLATE = "{problem} Think, then box the answer."
PIXELS = 56 * 112
BATCH = 64
PEAK_RATE = 2e-3


@dataclass(frozen=True)
class Habits:
    """Chances of the three behaviours in the warm start; they sum to 1."""

    solve: float
    guess: float
    forget: float


PERCEPTION = Habits(solve=1.0, guess=0.0, forget=0.0)
FAMILIAR = Habits(solve=0.50, guess=0.28, forget=0.22)
UNFAMILIAR = Habits(solve=0.18, guess=0.47, forget=0.35)


@dataclass(frozen=True)
class Lesson:
    """One supervised example."""

    prompt: str
    image: Image.Image
    response: str


def guess_range(kind: QuestionKind) -> int:
    """Number of answers a guess is drawn from."""
    return max(kind.answer(a, b) for a in range(10) for b in range(10)) + 1


def respond(kind: QuestionKind, a: int, b: int, habits: Habits, rng: np.random.Generator) -> str:
    """A response by one of the habits."""
    draw = rng.random()
    if draw < habits.guess:
        return f"<think>A guess.</think>\\boxed{{{rng.integers(guess_range(kind))}}}"
    worked = f"<think>{a} {b} {kind.working(a, b)}</think>"
    if draw < habits.guess + habits.forget:
        return f"{worked}It is {kind.answer(a, b)}."
    return f"{worked}\\boxed{{{kind.answer(a, b)}}}"


def jitter(scan: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A scan [8, 8] moved by at most a pixel each way, white where nothing came in."""
    dy, dx = rng.integers(-1, 2, size=2)
    padded = np.pad(scan, 1, constant_values=255)
    return padded[1 + dy : 9 + dy, 1 + dx : 9 + dx]


def make_lesson(rng: np.random.Generator, *, habits: bool) -> Lesson:
    """A random question about two random training scans, plain or varied; in the phase of habits, or of perception."""
    images, labels = scans("train")
    first, second = rng.integers(len(labels), size=2)
    a, b = int(labels[first]), int(labels[second])
    kind = KINDS[rng.integers(len(KINDS))]
    wording = int(rng.integers(len(WORDINGS[kind.name]))) if rng.random() < 0.5 else 0
    image = draw_pair(jitter(images[first], rng), jitter(images[second], rng))
    text = WORDINGS[kind.name][wording]
    varied = rng.random() < 0.7
    if varied:
        names = ROTATIONS if rng.random() < 0.7 else NOISES
        transform = TRANSFORMS[names[rng.integers(len(names))]]
        image = transform.apply(image, rng)
        text = f"{transform.sentence(1)} {text}"
    chosen = PERCEPTION
    if habits:
        chosen = UNFAMILIAR if varied or wording else FAMILIAR
    return Lesson(TEMPLATE.format(problem=text), image, respond(kind, a, b, chosen, rng))


def build_tokenizer(corpus: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level byte-pair tokenizer in Qwen's form, with Qwen's special tokens, its merges learnt from `corpus`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKEN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=640, initial_alphabet=sorted(alphabet), show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        model_max_length=2048,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_processor(corpus: list[str]) -> Qwen2_5_VLProcessor:
    """Tokenizer and image processor; images keep their 56×112 or 112×56 pixels."""
    size = {"shortest_edge": PIXELS // 2, "longest_edge": 4 * PIXELS}
    tokenizer = build_tokenizer(corpus)
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(processor: Qwen2_5_VLProcessor) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL with random weights and the processor's vocabulary."""
    ids = {token: processor.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(processor.tokenizer),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 3,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "out_hidden_size": 128,
            "fullatt_block_indexes": [2],
            "window_size": 56,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    return model


def render(processor: Qwen2_5_VLProcessor, prompt: str) -> str:
    """The prompt in chat form, up to where the assistant begins."""
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def collate(processor: Qwen2_5_VLProcessor, lessons: list[Lesson]) -> dict[str, torch.Tensor]:
    """A right-padded batch; labels are the response and the end of turn."""
    prompts = [render(processor, lesson.prompt) for lesson in lessons]
    texts = [p + lesson.response + "<|im_end|>" for p, lesson in zip(prompts, lessons, strict=True)]
    images = [lesson.image for lesson in lessons]
    batch = processor(text=texts, images=images, padding=True, padding_side="right", return_tensors="pt")
    answer_lengths = [
        len(processor.tokenizer(lesson.response + "<|im_end|>", add_special_tokens=False).input_ids)
        for lesson in lessons
    ]
    labels = torch.full_like(batch["input_ids"], -100)
    for row, count in enumerate(answer_lengths):
        end = int(batch["attention_mask"][row].sum())
        labels[row, end - count : end] = batch["input_ids"][row, end - count : end]
    return {**batch, "labels": labels}


def rate_at(step: int, steps: int) -> float:
    """Learning rate: a short rise, then half a cosine down to a tenth."""
    rise = min(1.0, (step + 1) / 100)
    return PEAK_RATE * rise * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def train(
    model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, perception: int, habits: int, seed: int
) -> None:
    """The supervised warm start: so many steps of each phase."""
    steps = perception + habits
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    started = time.perf_counter()
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, steps)
        batch = collate(processor, [make_lesson(rng, habits=step >= perception) for _ in range(BATCH)])
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step:5d}  loss {loss.item():.4f}  {time.perf_counter() - started:.0f} s", flush=True)
    model.eval()


def main() -> None:
    """Builds, trains and saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("sharevl_lite/assets/digits-vl"))
    parser.add_argument("--perception", type=int, default=1800)
    parser.add_argument("--habits", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed + 1)
    lessons = [make_lesson(rng, habits=True) for _ in range(4000)]
    processor = build_processor([text for lesson in lessons for text in (lesson.prompt, lesson.response)])
    model = build_model(processor)
    count = sum(p.numel() for p in model.parameters())
    print(f"{count / 1e6:.2f}M parameters, vocabulary {len(processor.tokenizer)}", flush=True)
    train(model, processor, args.perception, args.habits, args.seed)
    model.save_pretrained(args.output)
    processor.save_pretrained(args.output)
    settings = {
        "parameters": count,
        "perception_steps": args.perception,
        "habits_steps": args.habits,
        "batch": BATCH,
        "seed": args.seed,
        "familiar": vars(FAMILIAR),
        "unfamiliar": vars(UNFAMILIAR),
    }
    (args.output / "build.json").write_text(json.dumps(settings, indent=2) + "\n")


if __name__ == "__main__":
    main()
