"""A problem asked once in every kind of way."""

from collections import Counter

from test_expand import pixels, problem, share

from sharevl_lite.variants import ask_each_kind, expand_problem, kind_of

KINDS = ["rotate_90_cw", "rotate_180", "noise_25", "mirror_horizontal", "jpeg_50"]


def test_every_kind_once_with_the_problems_own_words():
    subject = problem(rewrites=3)
    asked = ask_each_kind(subject, share(p=0.0, kinds=KINDS, mirrors=True), seed=0)
    kinds = [kind_of(variant, subject) for variant in asked]
    assert kinds == ["plain", "reworded", "rotate", "noise", "mirror", "jpeg"]
    plain, reworded, *changed = asked
    assert (plain.text, pixels(plain.images)) == (subject.text, pixels(subject.images))
    assert reworded.text in subject.variants
    assert pixels(reworded.images) == pixels(subject.images)
    for variant in changed:
        assert "Original?" in variant.text
        assert variant.text != subject.text
        assert pixels(variant.images) != pixels(subject.images)


def test_what_recipe_or_row_forbid_is_not_asked():
    subject = problem(rewrites=0)
    kinds = [kind_of(v, subject) for v in ask_each_kind(subject, share(kinds=KINDS), seed=0)]
    assert kinds == ["plain", "rotate", "noise", "jpeg"], "no rewrites, and no permission to mirror"
    bare = problem(rewrites=1, images=0)
    assert [kind_of(v, bare) for v in ask_each_kind(bare, share(kinds=KINDS), seed=0)] == ["plain", "reworded"]
    named = problem(rewrites=0, transforms=frozenset({"noise_25"}))
    assert [kind_of(v, named) for v in ask_each_kind(named, share(kinds=KINDS), seed=0)] == ["plain", "noise"]


def test_another_set_of_kinds_leaves_a_kind_as_it_was():
    subject = problem(rewrites=3)
    many, few = (
        {kind_of(v, subject): v for v in ask_each_kind(subject, share(kinds=kinds), seed=5)}
        for kinds in (KINDS, ["noise_25"])
    )
    assert many["noise"].index == few["noise"].index, "responses are seeded by it"
    assert pixels(many["noise"].images) == pixels(few["noise"].images)
    assert many["reworded"] == few["reworded"]


def test_members_of_a_family_are_all_drawn():
    drawn = Counter(
        variant.transform
        for number in range(60)
        for variant in ask_each_kind(problem(id=f"p{number}"), share(kinds=["rotate_90_cw", "rotate_180"]), seed=0)
        if variant.transform
    )
    assert set(drawn) == {"rotate_90_cw", "rotate_180"}
    assert min(drawn.values()) > 15


def test_a_variant_of_training_names_both_changes():
    subject = problem(rewrites=3)
    _, drawn = expand_problem(subject, share(m=2, p=1.0, kinds=["rotate_180"]), seed=0)
    assert kind_of(drawn, subject) == "reworded+rotate"
    bare = problem(rewrites=0)
    plain, same = expand_problem(bare, share(m=2, p=0.0), seed=0)
    assert [kind_of(plain, bare), kind_of(same, bare)] == ["plain", "unchanged"], "two ways, not one asked twice"
