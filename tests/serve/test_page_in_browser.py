"""The page in a browser: what it shows is what the server answers, for everybody and nothing more."""

import json
import re
import shutil

import httpx2
import numpy as np
import pytest

from flaxbert.registry import PromotionRule, Reference
from tests.serve import test_fleet
from tests.serve.conftest import KEY
from tests.serve.running import running

pytestmark = pytest.mark.slow

registry = test_fleet.registry

TEXT = "a fine film ."
HURT = '<img src=x onerror="window.hurt=1">'
WITHOUT_TAGS = (
    "node => [...node.childNodes].map(n => n.querySelector?.('.words').textContent ?? n.textContent).join('')"
)
LARGEST_SHIFT = 0.02
"""Cumulative layout shift; browsers' makers call 0.1 good."""


@pytest.fixture(scope="module")
def browser():
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        pytest.skip("needs playwright and Chromium")
    with sync_playwright() as playwright:
        found = shutil.which("chromium") or shutil.which("google-chrome")
        try:
            browser = playwright.chromium.launch(executable_path=found)
        except Error:
            pytest.skip("needs playwright and Chromium")
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Opens the page; errors of its scripts and of its policy fail the test."""
    problems, contexts = [], []

    def visit(url, model="", **options):
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.goto(f"{url}/")
        page.wait_for_selector("#model:enabled, #notice:not([hidden])")
        if model:
            page.select_option("#model", model)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not [problem for problem in problems if "Failed to load resource" not in problem]


def ask(page, **values):
    """Fills the fields, runs, and returns what is shown."""
    for name, value in values.items():
        field = page.locator(f"#field-{name}")
        if not field.is_visible():
            page.click(f"#field-{name}-more > summary")
        field.fill(value)
    with page.expect_response(lambda response: response.request.method == "POST"):
        page.click("#run")
    page.wait_for_selector("#result[aria-busy=false]")
    return page.inner_text("#result")


def bars(page):
    names = page.locator("#result .bars .name").evaluate_all("nodes => nodes.map(node => node.firstChild.textContent)")
    return list(zip(names, page.locator("#result .bars .value").all_inner_texts(), strict=True))


def percent(score):
    return "<0.1 %" if 0 < score < 0.0005 else f"{100 * score:.1f} %"


def same_shares(shown, expected):
    """Compares shares as they are shown; another batch may round the last digit otherwise."""
    assert [name for name, _ in shown] == [name for name, _ in expected]
    for (_, found), (_, score) in zip(shown, expected, strict=True):
        number = 0.0 if found.startswith("<") else float(found.removesuffix(" %"))
        assert found.endswith(" %")
        assert abs(number - 100 * score) < 0.06, (found, score)


def answer_of(url, path, body):
    answer = httpx2.post(f"{url}{path}", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("pair", ["", "the film was bad"])
def test_labels_are_shown_with_their_scores(serving, visit, pair):
    page = visit(serving.url, "film")
    ask(page, text=TEXT, **({"pair": pair} if pair else {}))
    expected = answer_of(serving.url, "/models/film/predict", {"inputs": [TEXT, pair] if pair else TEXT})
    same_shares(bars(page), [(entry["label"], entry["score"]) for entry in expected])
    widths = page.locator("#result .fill").evaluate_all("nodes => nodes.map(node => parseFloat(node.style.width))")
    np.testing.assert_allclose(widths, [100 * entry["score"] for entry in expected], atol=0.01)
    assert page.inner_text("#spoken").startswith(expected[0]["label"])


def test_entities_are_marked_where_they_stand_behind_signs_of_two_halves_too(serving, visit):
    text = "\U0001f3ac\U0001f3ac the film was fine . a bad film"
    page = visit(serving.url, "tagger")
    ask(page, text=text)
    expected = answer_of(serving.url, "/models/tagger/ner", {"inputs": text})
    assert expected
    marked = page.locator("#result mark")
    assert marked.locator(".words").all_inner_texts() == [text[e["start"] : e["end"]] for e in expected]
    assert marked.locator(".tag").all_inner_texts() == [e["entity_group"] for e in expected]
    assert page.locator("#result .marked").evaluate(WITHOUT_TAGS) == text
    rows = page.locator("#result tbody tr").all_inner_texts()
    assert [row.split("\t")[:2] for row in rows] == [[e["word"], e["entity_group"]] for e in expected]
    assert page.locator("#result .legend li").count() == len({e["entity_group"] for e in expected})


def test_the_answer_is_marked_in_its_context(serving, visit):
    question, context = "was the film bad", "the film was fine . a bad film was the fine ."
    page = visit(serving.url, "reader")
    ask(page, question=question, context=context)
    body = {"inputs": {"question": question, "context": context}, "parameters": {"top_k": 3}}
    expected = answer_of(serving.url, "/models/reader/qa", body)
    same_shares(bars(page), [(e["answer"] or "no answer in this text", e["score"]) for e in expected])
    assert page.inner_text("#result .marked") == context
    best = expected[0]
    assert page.locator("#result mark").all_inner_texts() == ([best["answer"]] if best["answer"] else [])


@pytest.mark.parametrize("text", ["the [MASK] was fine .", "the [MASK] was [MASK] ."])
def test_words_for_masks_are_ranked(serving, visit, text):
    page = visit(serving.url, "words")
    ask(page, text=text)
    expected = answer_of(serving.url, "/models/words/fill-mask", {"inputs": text, "parameters": {"top_k": 8}})
    several = expected if isinstance(expected[0], list) else [expected]
    same_shares(bars(page), [(e["token_str"], e["score"]) for words in several for e in words])
    assert page.locator("#result h3").count() == (len(several) if len(several) > 1 else 0)


@pytest.mark.parametrize("model", ["nli", "words"])
def test_labels_of_the_users_own_are_judged(serving, visit, model):
    page = visit(serving.url, model)
    page.check("input[value=zeroShot]", force=True)
    ask(page, text=TEXT, labels=" film,  bad , fine,")
    body = {"inputs": TEXT, "parameters": {"candidate_labels": ["film", "bad", "fine"]}}
    expected = answer_of(serving.url, f"/models/{model}/zero-shot", body)
    same_shares(bars(page), [(entry["label"], entry["score"]) for entry in expected])


def test_texts_are_listed_in_the_order_of_their_ranks(serving, visit):
    texts = ["the film was bad .", "a fine film", "fine"]
    page = visit(serving.url, "ranker")
    ask(page, query="fine film", texts="\n".join([texts[0], "", *texts[1:]]))
    expected = answer_of(serving.url, "/models/ranker/rerank", {"query": "fine film", "texts": texts})
    assert [name for name, _ in bars(page)] == [texts[entry["index"]] for entry in expected]
    shown = [float(score) for _, score in bars(page)]
    np.testing.assert_allclose(shown, [entry["score"] for entry in expected], atol=1e-4)


def test_similarities_are_the_cosines_of_all_pairs(serving, visit):
    texts = ["the film was bad .", "a fine film", "fine"]
    page = visit(serving.url, "vectors")
    ask(page, texts="\n".join(texts))
    vectors = np.asarray(answer_of(serving.url, "/models/vectors/embed", {"inputs": texts}))
    cells = page.locator("#result tbody td").all_inner_texts()
    np.testing.assert_allclose(np.reshape([float(cell) for cell in cells], (3, 3)), vectors @ vectors.T, atol=0.0051)
    assert page.locator("#result tbody th span").all_inner_texts() == texts


CONTRAST = """() => [...document.querySelectorAll('.heat tbody td')].map(cell => {
  const draw = color => {
    const context = new OffscreenCanvas(1, 1).getContext('2d');
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    const parts = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const style = getComputedStyle(cell);
  const [dark, light] = [draw(style.color), draw(style.backgroundColor)].sort((a, b) => a - b);
  return (light + 0.05) / (dark + 0.05);
})"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_number_of_the_heat_map_is_readable(serving, visit, scheme):
    page = visit(serving.url, "vectors", color_scheme=scheme)
    angles = np.linspace(0.0, np.pi, 41)
    vectors = [[1.0, 0.0], *np.stack([np.cos(angles), np.sin(angles)], 1).tolist()]
    page.route("**/embed", lambda route: route.fulfill(json=vectors))
    ask(page, texts="\n".join(f"text {number}" for number in range(len(vectors))))
    contrasts = page.evaluate(CONTRAST)
    assert len(contrasts) == len(vectors) ** 2
    assert min(contrasts) >= 4.5


@pytest.mark.parametrize(
    ("model", "values"),
    [
        ("tagger", {"text": HURT}),
        ("reader", {"question": HURT, "context": f"the film {HURT} was fine"}),
        ("vectors", {"texts": f"{HURT}\nfine"}),
        ("ranker", {"query": "film", "texts": f"{HURT}\nfine"}),
        ("nli", {"text": "fine", "labels": f"{HURT}, film"}),
    ],
)
def test_markup_that_a_user_types_is_shown_and_not_read(serving, visit, model, values):
    page = visit(serving.url, model)
    if model == "nli":
        page.check("input[value=zeroShot]", force=True)
    shown = ask(page, **values)
    assert HURT in (page.locator("#result .marked").evaluate(WITHOUT_TAGS) if model == "tagger" else shown)
    assert_unhurt(page)


def assert_unhurt(page):
    page.wait_for_timeout(200)
    assert page.evaluate("window.hurt") is None
    assert page.locator("main img").count() == 0


def test_markup_that_a_server_sends_is_shown_and_not_read(serving, visit):
    page = visit(serving.url, "film")
    listed = httpx2.get(f"{serving.url}/models").json()
    film = next(model for model in listed["models"] if model["name"] == "film")
    film["name"], film["versions"]["champion"]["engine"] = HURT, HURT
    page.route("**/models", lambda route: route.fulfill(json={"models": [film]}))
    page.route("**/predict", lambda route: route.fulfill(json=[{"label": HURT, "score": 1.0}]))
    page.reload()
    page.wait_for_selector("#model:enabled")
    assert HURT in page.inner_text("#fact-engine")
    assert page.locator("#model option").all_inner_texts() == [HURT]
    assert HURT in ask(page, text="fine")
    assert HURT in page.text_content("#spoken")
    page.route("**/predict", lambda route: route.fulfill(status=424, json={"error": HURT}))
    ask(page, text="fine")
    assert page.inner_text("#failure") == HURT
    assert_unhurt(page)


def test_errors_are_shown_in_their_place_and_the_last_answer_stays(serving, visit):
    page = visit(serving.url, "words")
    before = ask(page, text="the [MASK] was fine .")
    assert ask(page, text="no mask") == before
    assert "[MASK]" in page.inner_text("#failure")
    page.route("**/fill-mask", lambda route: route.abort())
    page.click("#run")
    page.wait_for_selector("#failure:has-text('can not be reached')")


def test_times_of_the_last_request_and_of_the_server_are_shown(serving, visit):
    page = visit(serving.url, "film")
    with page.expect_response("**/predict") as waiting:
        page.click("#run")
    headers = waiting.value.headers
    page.wait_for_selector("#raw:not([hidden])")
    for part in ("total", "tokenization", "queue", "inference"):
        milliseconds = headers[f"x-{part}-time"]
        assert page.inner_text(f"#latency-{part}") == ("<1 ms" if milliseconds == "0" else f"{milliseconds} ms")
    assert page.inner_text("#latency-tokens") == headers["x-compute-tokens"]
    page.wait_for_selector("#chart-rate-top:has-text('up to')")
    page.click("#run")
    page.wait_for_selector("#chart-latency .dots[d*='h0.01']", state="attached")
    assert re.fullmatch(r"(<1|[\d.]+) ms", page.inner_text("#chart-latency-now"))
    assert page.inner_text("#server-state") == "live"
    counted = re.search(r"^te_request_count (\d+)", httpx2.get(f"{serving.url}/metrics").text, re.MULTILINE)
    page.wait_for_selector(f"#server-count:text-is('{int(counted[1]):,}')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_is_the_systems_until_another_is_chosen(serving, visit, scheme):
    page = visit(serving.url, color_scheme=scheme)
    lightness = "Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])"
    assert (page.evaluate(lightness) > 128) == (scheme == "light")
    page.click("#theme")
    assert (page.evaluate(lightness) > 128) == (scheme == "dark")
    assert page.get_attribute("#theme", "aria-pressed") == str(scheme == "light").lower()
    page.reload()
    assert (page.evaluate(lightness) > 128) == (scheme == "dark")


FOCUSED = """() => {
  const node = document.activeElement;
  if (node === document.body) return null;
  const shown = node.type === 'radio' ? node.nextElementSibling : node;
  const name = node.id || node.textContent.trim() || node.value;
  return [name, getComputedStyle(shown).outlineStyle !== 'none', node.labels?.length || node.textContent.trim() || node.ariaLabel];
}"""


def test_everything_is_done_with_the_keyboard_alone(serving, visit):
    page = visit(serving.url)
    names = list(serving.models)
    seen = []

    def tab_to(wanted):
        for _ in range(30):
            page.keyboard.press("Tab")
            found = page.evaluate(FOCUSED)
            if found is None:
                continue
            name, has_outline, has_name = found
            assert has_outline, name
            assert has_name, name
            seen.append(name)
            if name == wanted:
                return
        pytest.fail(f"{wanted} was not reached, but {seen}")

    tab_to("model")
    for _ in range(names.index("words") - names.index(page.input_value("#model"))):
        page.keyboard.press("ArrowDown")
    assert page.input_value("#model") == "words"
    tab_to("fillMask")
    page.keyboard.press("ArrowRight")
    assert page.is_checked("input[value=zeroShot]")
    tab_to("field-text")
    page.keyboard.press("Control+a")
    page.keyboard.type("the film was fine")
    tab_to("field-labels")
    page.keyboard.press("Control+a")
    page.keyboard.type("fine, bad")
    with page.expect_response("**/zero-shot"):
        page.keyboard.press("Control+Enter")
    page.wait_for_selector("#raw:not([hidden])")
    assert {name for name, _ in bars(page)} == {"fine", "bad"}
    tab_to("run")
    tab_to("keys-open")  # around the whole page: nothing holds the focus
    page.keyboard.press("Enter")
    assert page.is_visible("#key-api")
    page.keyboard.press("Escape")
    assert not page.is_visible("#key-api")
    assert page.evaluate("document.activeElement.id") == "keys-open"


@pytest.mark.parametrize("model", ["film", "tagger", "reader", "words", "ranker", "vectors"])
def test_nothing_is_wider_than_a_narrow_screen(serving, visit, model):
    page = visit(serving.url, model, viewport={"width": 360, "height": 740})
    long = "film" * 40
    values = {
        "reader": {"question": "was the film bad", "context": f"the film {long} was fine"},
        "ranker": {"query": "film", "texts": f"{long}\nfine"},
        "vectors": {"texts": f"{long}\nbad\nthe film\nfine"},
        "words": {"text": f"{long} [MASK]"},
    }
    ask(page, **values.get(model, {"text": f"the film {long} was fine"}))
    page.click("#raw summary")
    assert page.locator("#failure").is_hidden(), page.inner_text("#failure")
    excess = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(excess) == 0
    page.click("#keys-open")
    assert page.evaluate(excess) == 0


SHIFT = """() => new Promise(resolve => {
  const sum = list => list.getEntries().reduce((sum, entry) => sum + (entry.hadRecentInput ? 0 : entry.value), 0);
  new PerformanceObserver(list => resolve(sum(list))).observe({ type: 'layout-shift', buffered: true });
  setTimeout(() => resolve(0), 500);
})"""


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_moves_while_the_page_loads_and_waits(serving, visit, width):
    page = visit(serving.url, viewport={"width": width, "height": 900})
    page.wait_for_selector("#chart-rate-top:has-text('up to')")  # the charts have their first points
    page.click("#run")
    page.wait_for_selector("#raw:not([hidden])")
    assert page.evaluate(SHIFT) <= LARGEST_SHIFT


def test_a_missing_key_is_asked_for_and_kept_in_the_tab_alone(locked, visit):
    page = visit(locked)
    assert "asks for a key" in page.inner_text("#notice")
    page.click("#notice-keys")
    page.fill("#key-api", "wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("#notice:has-text('does not accept the key')")
    page.click("#keys-open")
    page.fill("#key-api", KEY)
    page.keyboard.press("Enter")
    page.wait_for_selector("#model:enabled")
    assert page.is_hidden("#notice")
    expected = httpx2.post(
        f"{locked}/predict", json={"inputs": TEXT}, headers={"authorization": f"Bearer {KEY}"}
    ).json()
    ask(page, text=TEXT)
    same_shares(bars(page), [(entry["label"], entry["score"]) for entry in expected])
    assert KEY in page.evaluate("JSON.stringify(sessionStorage)")
    assert KEY not in page.evaluate("JSON.stringify(localStorage) + document.cookie + location.href")
    page.reload()
    page.wait_for_selector("#model:enabled")
    other = page.context.new_page()
    other.goto(f"{locked}/")
    other.wait_for_selector("#notice:not([hidden])")


def test_administrators_promote_and_roll_back_and_see_why_they_may_not(registry, tmp_path, visit):
    registry.set_rule("film", "strict", PromotionRule("accuracy", minimum=0.99))
    with running(test_fleet.serve(tmp_path)) as url:
        page = visit(url)
        page.wait_for_selector("#registry:not([hidden])")
        assert "Version 1" in page.inner_text("#registry")
        assert page.locator("#registry button").count() == 0
        page.click("#keys-open")
        page.fill("#key-admin", "let-me-in")
        page.keyboard.press("Enter")
        page.wait_for_selector("#registry-back")
        assert page.locator("#registry .versions b:first-child").all_inner_texts()[0] == "Version 2"
        assert "accuracy 0.82" in page.inner_text("#registry")

        page.click("[aria-label='Promote version 2']")
        assert "from version 1 to version 2" in page.inner_text("#confirm")
        page.click("#confirm-no")
        assert registry.find(Reference("film", alias="champion")).number == 1
        page.click("[aria-label='Promote version 2']")
        page.click("#confirm-yes")
        page.wait_for_selector("#fact-version:text-is('2')")
        assert registry.find(Reference("film", alias="champion")).number == 2
        ask(page, text=TEXT)
        expected = test_fleet.expected_scores(registry)["2"]
        same_shares(bars(page), sorted(expected.items(), key=lambda entry: -entry[1]))

        page.click("#registry-back")
        page.click("#confirm-yes")
        page.wait_for_selector("#fact-version:text-is('1')")
        assert registry.find(Reference("film", alias="champion")).number == 1

        page.fill("#registry-alias", "strict")
        page.click("[aria-label='Promote version 2']")
        page.click("#confirm-yes")
        page.wait_for_selector("#registry-failure:not([hidden])")
        refused = httpx2.post(
            f"{url}/admin/models/film/promote", json={"version": 2, "alias": "strict"}, headers=test_fleet.ADMIN
        )
        assert refused.status_code == 409
        assert page.inner_text("#registry-failure") == refused.json()["error"]
        assert json.loads(page.evaluate("JSON.stringify({...localStorage})")) == {}
