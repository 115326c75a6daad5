"""Long questions, of which the beginning is shown until one asks for all."""

from __future__ import annotations

from sharevl_explorer.markup import Html, el
from sharevl_explorer.prose import question

MOST = 1500
"""Characters of a question that are shown as they are."""
_BEGINNING = 600


def folded(written: str, shown: Html) -> Html:
    """A question as it is `shown`; of a long one its beginning, and the whole when it is opened."""
    if len(written) <= MOST:
        return shown
    start = written[:_BEGINNING]
    start = start[: max(start.rfind(" "), start.rfind("\n"))] if len(start.split()) > 1 else start
    return el(
        "details.long",
        el(
            "summary",
            el("span.start", question(f"{start} …")),
            el("span.more", f"show all {len(written):,} characters"),
            el("span.less", "show the beginning alone"),
        ),
        shown,
    )
