"""The filters on pairs written before them: what passes, what fails, and an honest count of the errors."""

from collections import Counter
from pathlib import Path

import yaml

from sharevl_lite.rewrite.filters import Candidate, rejected_by

PAIRS = yaml.safe_load((Path(__file__).parent / "filter_pairs.yaml").read_text("utf-8"))


def judge(pair):
    """(counted error or "", what decided)."""
    _, _, verdict, answer, original, variant = pair
    texts = [text if "<image>" in text else f"<image>{text}" for text in (original, variant)]
    reason = rejected_by(Candidate(*texts, answer))
    if verdict == "same":
        return ("false reject" if reason else ""), reason
    return ("" if reason else "false accept"), reason


def test_errors_on_the_table_are_counted(capsys):
    counts, lines = Counter(), []
    for pair in PAIRS:
        error, reason = judge(pair)
        counts[pair[0], pair[2], error] += 1
        if error:
            lines.append(f"  {pair[0]} {pair[1]} {error} ({reason}): {pair[4]!r} -> {pair[5]!r}")
    with capsys.disabled():
        print()
        for part in ("tune", "held", "late"):
            same, differs = (sum(n for key, n in counts.items() if key[:2] == (part, v)) for v in ("same", "differs"))
            print(
                f"{part}: false accepts {counts[part, 'differs', 'false accept']} of {differs}, "
                f"false rejects {counts[part, 'same', 'false reject']} of {same}"
            )
        print("\n".join(lines))
    # The known ones: "how many of the two digits" turned round, and a swap of "long" and "wide".
    assert sum(n for key, n in counts.items() if key[2] == "false accept") <= 1
    assert sum(n for key, n in counts.items() if key[2] == "false reject") <= 1
    assert len(PAIRS) >= 120
