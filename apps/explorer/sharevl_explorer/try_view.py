"""Try it: a question of one's own, asked in the run's m ways, with the rewards if the right answer is given."""

from __future__ import annotations

from sharevl_explorer.figures import number
from sharevl_explorer.markup import Html, el
from sharevl_explorer.parts import counted, empty
from sharevl_explorer.prose import question, response, word_diff
from sharevl_explorer.trial import (
    ANSWER_CHARACTERS,
    IMAGE_BYTES,
    MOST_SAMPLES,
    QUESTION_CHARACTERS,
    AskedVariant,
    Attempt,
    Tryout,
)
from sharevl_lite.image_files import data_url


def try_view(tryout: Tryout | None) -> Html:
    """The form; its answers come later, see :func:`answers`."""
    if tryout is None:
        return empty("No model to ask", "Start the explorer with --model: sharevl-lite view RUN --model run")
    file = el("input", type="file", name="image", accept="image/*", data_most=IMAGE_BYTES)
    asked = el("textarea", name="question", rows=3, required=True, maxlength=QUESTION_CHARACTERS)
    gold = el("textarea", name="answer", rows=2, maxlength=ANSWER_CHARACTERS, autocomplete="off")
    told = "optional; with it the responses are rewarded. Several that are accepted: one a line"
    return el(
        "section.try",
        el(
            "header.view",
            el("h1", "Try it", tabindex=-1),
            el("p.quiet", tryout.model),
        ),
        el(
            "form.try.panel",
            el("label.image", el("b", "Image"), file, el("span.preview", "none chosen", aria_hidden="true")),
            el("label.question", el("b", "Question"), asked),
            el("label", el("b", "Right answer"), gold, el("span.quiet", told)),
            el(
                "div.numbers",
                _number("Responses per variant", "samples", 4, MOST_SAMPLES),
                _number("Longest response, tokens", "tokens", min(512, tryout.most_tokens), tryout.most_tokens),
                el("button.strong", "Ask" if tryout.variants == 1 else f"Ask in {tryout.variants} ways", type="submit"),
            ),
        ),
        el("div.answers", aria_live="polite"),
    )


def _number(label: str, name: str, value: int, most: int) -> Html:
    return el("label", el("b", label), el("input", type="number", name=name, value=value, min=1, max=most))


def answers(variants: tuple[AskedVariant, ...]) -> Html:
    """The variants side by side, below each its responses."""
    return el("div.variants", [_variant(j, variant, variants[0]) for j, variant in enumerate(variants)])


def refused(message: str) -> Html:
    """Why there are no answers."""
    return el("p.note", message, role="alert")


def _variant(j: int, variant: AskedVariant, original: AskedVariant) -> Html:
    same = variant.text == original.text
    known = [attempt.accuracy for attempt in variant.attempts if attempt.accuracy is not None]
    right = f", {sum(value > 0 for value in known)} right" if known else ""
    return el(
        "article.card",
        el("h2", f"Q{j}", el("span.quiet", f" {variant.transform or 'no transform'}")),
        [
            el(
                "button.enlarge",
                el(
                    "img.picture",
                    src=data_url(data),
                    alt=f"image {n + 1} of variant {j}, {variant.transform or 'as it is'}",
                ),
                type="button",
                title="enlarge",
            )
            for n, data in enumerate(variant.images)
        ],
        el("p.asked", question(variant.text) if same else word_diff(original.text, variant.text)),
        el("p.quiet", f"{counted(len(variant.attempts), 'response')}{right}"),
        [_attempt(attempt) for attempt in variant.attempts],
    )


def _attempt(attempt: Attempt) -> Html:
    mark = {None: None, True: "✓ right", False: "✕ wrong"}[None if attempt.accuracy is None else attempt.accuracy > 0]
    figures = [
        ("reward", attempt.total),
        ("format", attempt.format),
        *sorted(attempt.functions.items()),
        ("advantage global", attempt.adv_global),
        ("local", attempt.adv_local),
    ]
    told: list[tuple[str, str | None]] = [(name, number(value)) for name, value in figures if value is not None]
    told += [("extracted", attempt.extracted), ("rule", attempt.rule), ("not verified", attempt.failure)]
    told += attempt.logged.items()
    cut = " · cut at the limit" if attempt.truncated else ""
    return el(
        "section.attempt",
        el("p.verdict", mark and el("b", mark, " · "), f"{counted(attempt.tokens, 'token')}{cut}"),
        response(attempt.text, full=True, all_of_it=None),
        el("dl.inline", [el("div", el("dt", n), el("dd", el("bdi", t[:500]))) for n, t in told if t is not None]),
    )
