"""Rows whose texts try what a browser must not do, written by the real store."""

from PIL import Image

from sharevl_lite.store import Rewards, RolloutRow, Scorer, Verification

HOSTILE = {
    "image-error": "<img src=x onerror=\"window.hacked='img'\">",
    "script-end": "</script><script>window.hacked='script'</script>",
    "attribute": '" onmouseover="window.hacked=\'attr\'" x="\'><svg onload="window.hacked=\'svg\'">',
    "template": "${window.hacked='js'} {{#each value}}{{this}}{{/each}}",
    "boxed": "<think>\\boxed{</math><img src=x onerror=\"window.hacked='boxed'\">}",
    "mathematics": '$\\text{<img src=x onerror="window.hacked=1">}$ $\\frac{1}{$ \\(x^^2\\)',
    "long-line": "x" * 60_000,
    "rtl": "\u202eשלום עולם مرحبا <think>بالعالم</think>",
    "nul": "before\x00after\x1b[31m",
    "megabyte": "word " * 200_000 + "THE-END",
}


def rows(store, step, texts, *, n=2, variants=2):
    """Responses to one problem per text: variant 0 is all right, variant 1 all wrong."""
    sha = store.put_image(Image.new("RGB", (12, 8), (step, 90, 160)))
    return [
        RolloutRow(
            run_id="hostile", step=step, problem_id=f"p-{name}", variant_index=j,
            variant_text=f"<image>{text[:70_000]} Q{j}",
            transform="rotate_90_cw" if j else None, image_sha=[sha], answer=text[:100], response_index=i, text=text,
            token_ids=[1, 2], truncated=i == 1, sampling_logprobs=[-0.5, -2.0],
            rewards=Rewards(1.0 - j, 1.0 - j, 1.0), verification=Verification(text[:100], "exact"),
            adv_global=1.0 - 2 * j, adv_local=0.0,
            scorers=[Scorer(k, 0.5, -1.0, 0.0 if k == j else -0.25 * (k + 1), 0.125) for k in range(variants)],
            scorer_logprobs=[[-0.5 - k, -2.0 + k] for k in range(variants)],
        )
        for name, text in texts.items() for j in range(variants) for i in range(n)
    ]  # fmt: skip
