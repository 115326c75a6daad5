"""Try it: a question of one's own to a real model, in the browser; and what the page's input may be."""

import base64
import io
import shutil
import threading

import pytest
from pages import opened
from PIL import Image
from sharevl_explorer.index import Index
from sharevl_explorer.page import render
from sharevl_explorer.trial import IMAGE_BYTES, WAITING, Desk, Trial, TrialError, Tryout, read_trial

from sharevl_lite.cli import main
from sharevl_lite.data.digits import digits_problems


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def digits(trained):
    from sharevl_lite.try_it import open_tryout

    opened = open_tryout(str(trained), "builtin:digits-vl")
    yield opened
    opened.close()


def asked(page, problem=None, **fields):
    if problem is not None:
        page.set_input_files(
            "[name=image]", {"name": "a.png", "mimeType": "image/png", "buffer": png(problem.images[0])}
        )
        page.wait_for_function("document.querySelector('.preview img')?.naturalWidth > 0")
    for name, value in fields.items():
        page.fill(f"form.try [name={name}]", value)
    page.click("form.try button")
    page.wait_for_selector(".answers > *")


@pytest.mark.slow
def test_a_digits_image_is_answered_and_rewarded(page, served, trained, digits):
    problem = digits_problems("test")[2]
    opened(page, served(trained, tryout=digits), ready=".charts")
    page.get_by_role("link", name="Try it").click()
    page.wait_for_selector("form.try")
    question = problem.text.removeprefix("<image>")
    asked(page, problem, question=question, answer=problem.answer, samples="4", tokens="32")
    assert page.locator(".answers .card").count() == 2
    assert page.locator(".answers .attempt").count() == 8
    assert page.locator(".card .asked").first.inner_text().endswith(question)
    for place in range(2):
        image = page.locator(".card img").nth(place)
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") >= 56
    rights = 0
    for text in page.locator(".attempt").all_inner_texts():
        words = text.split()
        reward = float(words[words.index("reward") + 1])
        assert ("✓ right" in text) == (reward >= 0.9)
        assert ("✓ right" in text) != ("✕ wrong" in text)
        assert "advantage global" in " ".join(words)
        rights += "✓ right" in text
    assert 0 < rights < 8
    first = page.locator(".answers").inner_text()
    asked(page, question=question, answer="")
    page.wait_for_function("!document.querySelector('.answers').innerText.includes('reward')")
    assert page.locator(".answers .attempt").count() == 8
    assert page.locator(".answers").inner_text() != first
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.slow
def test_the_field_of_answers_grows_with_them(page, served, trained):
    tryout = Tryout("none", 2, 32, ask=lambda trial: (), close=lambda: None)
    opened(page, served(trained, tryout=tryout), "?view=try", "form.try")
    answers = page.locator("[name=answer]")
    for written in ("1", "1\n2\n3\n4", "\n" * 30):
        answers.fill(written)
        hidden = answers.evaluate("field => field.scrollHeight - field.clientHeight")
        assert (hidden > 0) == (len(written) == 30)
        assert answers.bounding_box()["height"] < 250


@pytest.mark.slow
def test_hostile_input_and_files_that_are_no_images(page, served, trained, digits):
    opened(page, served(trained, tryout=digits), "?view=try", "form.try")
    hostile = "<img src=x onerror=\"window.hacked='question'\"></script><script>window.hacked=1</script>"
    asked(page, question=hostile, answer=hostile, samples="1", tokens="8")
    page.wait_for_selector(".attempt, .answers .note")
    assert page.locator(".answers .card").count() == 2, page.locator(".answers").inner_text()
    assert hostile in page.locator(".card .asked").first.inner_text()
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None
    assert page.locator(".answers script, .answers [onerror]").count() == 0
    file = {"name": "<b>.png", "mimeType": "image/png", "buffer": b"<script>window.hacked=2</script>"}
    page.set_input_files("[name=image]", file)
    asked(page, question="What?")
    page.wait_for_selector(".answers .note")
    assert "no image that can be read" in page.locator(".answers .note").inner_text()
    assert page.evaluate("window.hacked") is None


def test_the_runs_own_policy_a_copied_adapter_and_the_plain_model(trained, digits, tmp_path):
    from sharevl_lite.try_it import open_tryout

    def trained_parts(tryout):
        named = tryout.ask.__self__.engine.policy.named_parameters()
        return [parameter for name, parameter in named if "lora_B" in name and parameter.abs().max() > 0]

    own = open_tryout(str(trained), "run")
    own.close()
    assert trained_parts(own)
    assert str(trained / "adapter") in own.model
    assert not trained_parts(digits)
    shutil.copytree(trained / "adapter", tmp_path / "copied")
    moved = open_tryout(str(trained), str(tmp_path / "copied"))
    moved.close()
    assert len(trained_parts(moved)) == len(trained_parts(own))


def test_what_the_model_side_refuses(digits):
    wide = Image.new("1", (50_000, 1000))
    for changes, message in (
        ({"image": png(wide)}, "50000 × 1000 pixels; at most 40 million"),
        ({"image": b"GIF89a"}, "no image that can be read"),
        ({"image": b"no image"}, "no image that can be read"),
        (
            {"question": "<image> or <image>?", "image": png(Image.new("RGB", (56, 56)))},
            "has 2 <image> and there is 1 image;",
        ),
        ({"question": "how many? " * 300}, "allows 96"),
    ):
        given = {"question": "How many?", "answer": None, "image": None, "samples": 1, "tokens": 4} | changes
        with pytest.raises(TrialError, match=message) as caught:
            digits.ask(Trial(**given))
        assert " object at 0x" not in str(caught.value)


def test_any_of_several_accepted_answers_is_right(digits):
    problem = digits_problems("test")[2]
    question, image = problem.text.removeprefix("<image>"), png(problem.images[0])
    for answer, right in ((tuple(str(number) for number in range(100)), 1.0), (("none of", "these"), 0.0)):
        attempts = [each for way in digits.ask(Trial(question, answer, image, 4, 32)) for each in way.attempts]
        numbers = [attempt.accuracy for attempt in attempts if (attempt.extracted or "").isdigit()]
        assert numbers
        assert set(numbers) == {right}


FINE = {"question": "Why?", "answer": "", "image": None, "samples": "2", "tokens": 8}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": "  "}, "Type a question"),
        ({"question": ["Why?"]}, "question is no text"),
        ({"question": "w" * 4001}, "4,001 characters; at most 4,000"),
        ({"answer": "4" * 501}, "501 characters"),
        ({"samples": 0}, "samples: give a whole number from 1 to 16"),
        ({"samples": "17"}, "from 1 to 16"),
        ({"samples": float("nan")}, "from 1 to 16"),
        ({"samples": float("inf")}, "from 1 to 16"),
        ({"samples": 1.5}, "from 1 to 16"),
        ({"tokens": "33"}, "tokens: give a whole number from 1 to 32"),
        ({"tokens": None}, "from 1 to 32"),
        ({"image": {"path": "/etc/passwd"}}, "image is no file"),
        ({"image": "%%%"}, "did not arrive whole"),
        ({"image": "A" * (4 * IMAGE_BYTES // 3 + 8)}, "larger than 10 MiB"),
    ],
)
def test_input_out_of_bounds_is_refused(changes, message):
    tryout = Tryout("none", 2, 32, ask=lambda trial: pytest.fail("was asked"), close=lambda: None)
    with pytest.raises(TrialError, match=message):
        Desk(tryout).ask({**FINE, **changes})


def test_what_is_in_bounds_is_read():
    tryout = Tryout("none", 2, 32, ask=lambda trial: (), close=lambda: None)
    given = {**FINE, "answer": " 4 ", "image": base64.b64encode(b"abc").decode()}
    assert read_trial(given, tryout) == Trial("Why?", "4", b"abc", 2, 8)
    assert read_trial({**given, "answer": "4\r\n\n  four \n"}, tryout).answer == ("4", "four")
    assert read_trial({**given, "answer": " \n "}, tryout).answer is None
    with pytest.raises(TrialError, match="Type a question"):
        read_trial("a string", tryout)


def test_one_trial_at_a_time_and_a_bounded_queue():
    go, running, most = threading.Event(), [], []

    def ask(trial):
        running.append(trial)
        most.append(len(running))
        go.wait(20)
        running.pop()
        return ()

    desk = Desk(Tryout("none", 2, 32, ask=ask, close=lambda: None))
    outcomes = []

    def visit():
        try:
            outcomes.append(desk.ask(FINE))
        except TrialError as error:
            outcomes.append(str(error))

    visitors = [threading.Thread(target=visit) for _ in range(WAITING + 3)]
    for visitor in visitors:
        visitor.start()
    while len(outcomes) < 2:  # those for whom there is no place are told at once
        threading.Event().wait(0.01)
    go.set()
    for visitor in visitors:
        visitor.join()
    assert max(most) == 1
    assert len(most) == WAITING + 1
    assert [text for text in outcomes if text] == ["4 questions are waiting already; try again in a while."] * 2


def test_a_model_that_fails_is_a_message_and_the_next_trial_runs():
    def ask(trial):
        raise RuntimeError("out of memory " + "<b>" * 300)

    desk = Desk(Tryout("none", 2, 32, ask=ask, close=lambda: None))
    for _ in range(WAITING + 2):
        with pytest.raises(TrialError, match="It failed: RuntimeError: out of memory"):
            desk.ask(FINE)


def test_without_a_model(trained, tmp_path, capsys):
    shown = str(render(Index([trained]), "?view=try"))
    assert "sharevl-lite view RUN --model run" in shown
    assert 'form class="try' not in shown
    for nothing in (str(tmp_path / "none"), "runs/nomodel", str(trained / "rollouts")):
        assert main(["view", str(trained), "--model", nothing]) == 2
        told = "is a folder without config.json" if nothing.endswith("rollouts") else "no such run, checkpoint or model"
        assert told in capsys.readouterr().err
    assert main(["view", str(trained), "--model", "nope"]) == 2
    assert "--model nope: no such run, checkpoint or model; give run, a folder, ORG/NAME" in capsys.readouterr().err
    assert main(["view", str(trained), "--model", str(trained / "rollouts")]) == 2
    assert "sharevl-lite: --model: cannot load" in capsys.readouterr().err
    (tmp_path / "rollouts").symlink_to(trained / "rollouts")
    assert main(["view", str(tmp_path), "--model", "run"]) == 2
    assert "holds no recipe.yaml; name the model" in capsys.readouterr().err
    assert main(["view", str(trained), "--model", "run", "--export", str(tmp_path / "out.html")]) == 2
    assert "Leave one of them out" in capsys.readouterr().err
