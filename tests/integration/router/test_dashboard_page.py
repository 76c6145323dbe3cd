"""The page at ``/dashboard`` in a browser: what it shows of requests, the chat, the keyboard, and who cannot see it."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from tests.browser import chromium
from tests.dashboard_stack import DashboardStack, dashboard_stack

MODEL = "simulated-model"
MARKUP = 'simulated-<img src=x onerror="document.title=1">'
"""Of an adapter: whoever takes it for markup changes the page's title."""
DOCUMENT = "the quick brown fox jumps over the lazy dog again and again " * 25
WITHIN_MS = 60_000
pytestmark = pytest.mark.timeout(300)  # a browser starts, and five programs


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def stack(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DashboardStack]:
    engine = {"prefill_rate": 20000, "decode_rate": 500}
    with dashboard_stack(
        tmp_path_factory.mktemp("dashboard"), model=MODEL, adapters=[MARKUP], engine=engine, admin_token_file=None
    ) as running:
        yield running


class Page:
    """An open page, and what its console said."""

    def __init__(self, browser: Any, stack: DashboardStack, **settings: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
        self.context.set_default_timeout(WITHIN_MS)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        self.page.on("console", lambda message: self._said(message.type, message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        self.page.goto(f"{stack.url}/dashboard")
        self.table("Endpoints now").get_by_text("serving").first.wait_for()

    def _said(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

    def table(self, caption: str) -> Any:
        return self.page.get_by_role("table", name=re.compile(caption))

    def until_engines_are_known(self, stack: DashboardStack) -> None:
        """Until it is told what each engine has counted, which is not in the first that is told."""
        self.page.locator("#endpoints tbody tr").filter(has_text="%").nth(len(stack.engines) - 1).wait_for()

    def send(self, text: str, max_tokens: int = 8) -> None:
        """Have the chat answer, and wait until it is said where the answer came from."""
        self.page.get_by_label("Tokens at most").fill(str(max_tokens))
        self.page.get_by_label("Message").fill(text)
        self.page.get_by_role("button", name="Send").click()
        self.page.locator("#tier").filter(has_text=re.compile(r"computed|came from|does not say")).wait_for()


@pytest.fixture
def opened(browser: Any, stack: DashboardStack) -> Iterator[Any]:
    pages = []

    def open_page(**settings: Any) -> Page:
        pages.append(Page(browser, stack, **settings))
        return pages[-1]

    yield open_page
    for page in pages:
        page.context.close()


def question(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{DOCUMENT} {text}"}]


def test_the_tables_fill_while_requests_run_and_nothing_is_loaded_from_elsewhere(
    opened: Any, stack: DashboardStack
) -> None:
    page = opened()
    for number in range(3):
        stack.chat(question(str(number)))
    stack.get("/v1/nothing")
    rows = page.table("The last requests").get_by_role("row")
    rows.nth(3).wait_for()
    page.table("Requests of the last ten minutes").get_by_role("cell", name="prefix", exact=True).first.wait_for()
    page.table("Node stores").get_by_text("node-1").wait_for()
    page.table("Contents by bucket").get_by_text("lmcache").wait_for()
    page.table("Who chooses").get_by_text("prefixaware").wait_for()
    page.table("Since the router's start").get_by_text("answered 404").wait_for()
    page.page.locator("#chart canvas").wait_for()
    page.page.get_by_text("The same as a table").click()
    times = page.table("Time to first token").get_by_role("row")
    times.nth(1).wait_for()
    assert re.search(r"\d m?s", times.nth(1).inner_text())
    assert page.complaints == []
    assert page.hosts == {stack.url.removeprefix("http://")}


def test_the_chat_says_who_answered_and_which_tier(opened: Any, stack: DashboardStack) -> None:
    page = opened()
    page.until_engines_are_known(stack)
    text = "a text of the chat alone, which nobody has asked about before " * 20
    page.send(text)
    tier = page.page.locator("#tier")
    assert "No tier had it" in tier.inner_text()
    assert page.page.locator("#facts").get_by_text("127.0.0.1:").inner_text() in [
        url.removeprefix("http://") for url in stack.engines
    ]
    page.send("And what else?")
    assert "the engine's own cache" in tier.inner_text()
    page.page.get_by_text("The answer's header fields").click()
    fields = page.table("What the router says").inner_text()
    assert {"x-tierline-endpoint", "x-tierline-reason", "x-tierline-matched-blocks"} <= set(fields.split())
    assert page.page.get_by_role("log", name="Conversation").get_by_text("And what else?").is_visible()
    assert page.complaints == []


def test_the_next_message_can_be_sent_while_it_is_looked_which_tier_answered_the_last_one(
    opened: Any, stack: DashboardStack
) -> None:
    opened_page = opened()
    opened_page.until_engines_are_known(stack)
    page = opened_page.page
    page.get_by_role("button", name="Pause").click()  # what engines counted is not told before it goes on
    page.get_by_label("Message").fill("a text that is asked about twice in a row, at once " * 20)
    page.get_by_role("button", name="Send").click()
    page.locator("#facts").get_by_text("Endpoint").wait_for()
    page.evaluate(
        """() => { window.said = [];
          const told = records => records.flatMap(({ addedNodes }) => [...addedNodes].map(node => node.textContent));
          new MutationObserver(records => window.said.push(...told(records)))
            .observe(document.getElementById("tier"), { childList: true }); }"""
    )
    page.get_by_label("Message").fill("And what else?")
    page.get_by_label("Message").press("Enter")
    page.get_by_role("log").get_by_text("And what else?").wait_for()
    page.locator("#facts").get_by_text("Endpoint").wait_for()
    page.get_by_role("button", name="Pause").click()
    page.locator("#tier").filter(has_text=re.compile("own cache|came from")).wait_for()
    said = page.evaluate("window.said")
    assert len(said[said.index("Looking which tier answered…") :]) == 2, "and then of the last answer alone"


def test_an_answer_stays_when_it_cannot_be_said_where_it_came_from(opened: Any) -> None:
    page = opened().page
    page.evaluate("() => { document.getElementById('facts').replaceChildren = () => { throw new Error('broken'); }; }")
    page.get_by_label("Message").fill("a text that is answered well")
    page.get_by_role("button", name="Send").click()
    page.locator("#tier").filter(has_text="cannot be said: broken").wait_for()
    assert page.locator("#log .wrong").count() == 0


def test_the_page_asks_for_the_token_and_leaves_authorization_to_what_hands_requests_on(opened: Any) -> None:
    page = opened().page
    shown = []

    def ask_for_token(route: Any) -> None:
        shown.append(route.request.headers)
        if "x-tierline-admin-token" in shown[-1]:
            route.continue_()
        else:
            route.fulfill(status=401, json={"error": {"message": "no token"}})

    page.route("**/dashboard/events", ask_for_token)
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Pause").click()
    page.locator("#token").fill("a-token-that-is-long-enough")
    page.locator("#token").press("Enter")
    page.get_by_role("status").filter(has_text="Live").wait_for()
    assert shown[-1]["x-tierline-admin-token"] == "a-token-that-is-long-enough"
    assert "authorization" not in shown[-1]


def test_names_and_prompts_with_markup_are_text(opened: Any, stack: DashboardStack) -> None:
    page = opened()
    title = page.page.title()
    stack.chat(question("markup"), model=MARKUP)
    page.table("The last requests").get_by_text(MARKUP).first.wait_for()
    page.page.get_by_label("Model").select_option(MARKUP)
    page.send(MARKUP)
    page.page.get_by_role("log").get_by_text(MARKUP).wait_for()
    assert page.page.locator("#log img, main table img").count() == 0
    assert page.page.title() == title
    assert page.complaints == []


def test_all_of_it_can_be_used_with_the_keyboard_alone(opened: Any) -> None:
    keyboard = opened()
    page = keyboard.page

    def focus() -> str:
        found: str = page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()")
        return found

    can_have_it = page.evaluate(
        """[...document.querySelectorAll("a, button, input, select, textarea, summary, [tabindex='0']")]
          .filter(element => element.checkVisibility()).map(element => element.id || element.textContent.trim())"""
    )
    visited = []
    for _ in can_have_it:
        page.keyboard.press("Tab")
        visited.append(focus())
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", visited[-1]
        is_seen = """() => { const { top, left, width } = document.activeElement.getBoundingClientRect();
          const seen = document.elementFromPoint(left + width / 2, Math.max(top, 0) + 5);
          return document.activeElement.contains(seen); }"""
        page.wait_for_function(is_seen)
    assert visited == can_have_it, "in the order in which it is read"
    assert visited[:3] == ["Skip to the replicas", "Skip to the chat", "pause"]
    page.get_by_label("Message").focus()
    page.keyboard.type("asked with keys alone")
    page.keyboard.press("Enter")
    page.get_by_role("log").get_by_text("asked with keys alone").wait_for()
    page.locator("#facts").get_by_text("Endpoint").wait_for()
    page.get_by_role("button", name="Pause").focus()
    page.keyboard.press("Space")
    page.get_by_role("status").filter(has_text="Paused").wait_for()
    assert page.get_by_role("button", name="Pause").get_attribute("aria-pressed") == "true"
    page.keyboard.press("Space")
    page.get_by_role("status").filter(has_text="Live").wait_for()


def test_escape_stops_an_answer_and_no_button_that_was_pressed_loses_the_focus(opened: Any) -> None:
    page = opened().page
    page.route("**/v1/chat/completions", lambda route: None)  # an answer that does not come
    page.get_by_label("Message").fill("a question with a long answer")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Stop", disabled=False).wait_for()
    page.keyboard.press("Escape")
    page.locator("#log .wrong").get_by_text("(stopped)").wait_for()
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.unroute("**/v1/chat/completions")
    page.get_by_label("Tokens at most").fill("8")
    page.get_by_label("Message").fill("another question")
    page.get_by_role("button", name="Send").focus()
    page.keyboard.press("Enter")
    page.locator("#facts").get_by_text("Endpoint").wait_for()
    assert page.evaluate("document.activeElement.id") == "send"


LISTENS_TO_WHAT_IS_SAID = """() => { window.said = [];
  const regions = document.querySelectorAll("[aria-live], [role=status], [role=log], [role=alert]");
  const observer = new MutationObserver(
    records => window.said.push(...records.map(record => record.target.textContent)));
  for (const region of regions) observer.observe(region, { childList: true, characterData: true, subtree: true }); }"""


def until_said(page: Any, text: str) -> None:
    page.wait_for_function("text => window.said.some(each => each.includes(text))", arg=text)


def test_what_is_not_known_of_stores_is_said_in_their_place(opened: Any, stack: DashboardStack) -> None:
    page = opened()
    empty = {"capacity_bytes": None, "used_bytes": None, "objects": 0, "hits": None, "misses": None, "evictions": None}
    bucket = {"bucket": "kv", "objects": 7, "bytes": None, "hits": None, "misses": None}
    told = stack.snapshot()
    told["stores"] = [
        {**empty, "name": "http://closed:9200", "source": "store", "wrong": "it asks for a token", "buckets": []},
        {**told["stores"][0], "name": "sums-only", "buckets": [], "buckets_wrong": "no names for this token"},
        {**empty, "name": "tcp://gone:5560", "source": "index", "wrong": "no events any more", "buckets": [bucket]},
        {**empty, "name": "tcp://heard:5560", "source": "index", "wrong": "", "objects": 7, "buckets": [bucket]},
    ]
    page.page.route(
        "**/dashboard/events",
        lambda route: route.fulfill(
            content_type="text/event-stream", body=f"event: snapshot\ndata: {json.dumps(told)}\n\n"
        ),
    )
    page.page.get_by_role("button", name="Pause").click()
    page.page.get_by_role("button", name="Pause").click()
    stores, buckets = page.table("Node stores"), page.table("Contents by bucket")
    for name, said in (
        ("closed:9200", "it asks for a token"),
        ("tcp://gone:5560", "no events any more"),
        ("tcp://heard:5560", "by its events"),
    ):
        stores.get_by_role("row").filter(has_text=name).get_by_text(said).wait_for()
    buckets.get_by_role("row").filter(has_text="sums-only").get_by_text("no names for this token").wait_for()
    assert buckets.get_by_role("row").filter(has_text="tcp://heard").inner_text().split() == [
        "kv",
        "tcp://heard:5560",
        "–",
        "7",
        "–",
    ]


def test_figures_that_change_are_not_said_aloud(opened: Any, stack: DashboardStack) -> None:
    for _ in range(2):  # the second finds what the first has left in stores and engines
        stack.chat(question("before anybody listens"))
    page = opened().page
    page.locator("#buckets").get_by_text("lmcache").wait_for()
    page.get_by_role("status").filter(has_text="Live").wait_for()
    page.evaluate(LISTENS_TO_WHAT_IS_SAID)
    before = page.locator("#tile-failed-sub").inner_text()
    stack.chat(question("said aloud?"))
    page.locator("#tile-failed-sub").filter(has_not_text=before).wait_for()
    assert page.evaluate("window.said") == []
    page.get_by_role("img", name=re.compile("With a hit: .*s last, medians from .* to .*s;")).wait_for()


def test_a_narrow_window_scrolls_tables_and_not_the_page(browser: Any, opened: Any) -> None:
    narrow = opened(viewport={"width": 400, "height": 800})
    narrow.send("a question from a telephone")
    page = narrow.page
    page.get_by_text("The answer's header fields").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    cut_off = "[...document.querySelectorAll('.card')].filter(card => card.scrollWidth > card.clientWidth).length"
    assert page.evaluate(cut_off) == 0


def test_who_cannot_see_it_finds_landmarks_names_and_a_table_for_the_picture(opened: Any) -> None:
    page = opened().page
    tree = page.locator("body").aria_snapshot()
    for part in (
        "- banner",
        "- main",
        "- contentinfo",
        '- heading "Tierline router" [level=1]',
        'img "Time to first',
    ):
        assert part in tree
    for name in (
        "Time to first token",
        "Try it",
        "Replicas",
        "Where requests go, and why",
        "Last requests",
        "Failures",
    ):
        assert page.get_by_role("region", name=name, exact=True).count() == 1, name
    unnamed = page.evaluate(
        """[...document.querySelectorAll("table")].filter(table => !table.caption?.textContent.trim()).length
         + [...document.querySelectorAll("input, select, textarea")].filter(field => !field.labels.length).length
         + [...document.querySelectorAll("th")].filter(cell => !cell.scope).length"""
    )
    assert unnamed == 0
    assert page.locator("#status").get_attribute("aria-live") == "polite"
    assert page.evaluate("document.documentElement.lang") == "en"


def contrasts(page: Any) -> dict[str, float]:
    """Return how far texts stand out against what is behind them, by WCAG's formula."""
    found: dict[str, float] = page.evaluate(
        """() => {
          const channel = value => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
          const light = colour => { const [r, g, b] = colour.match(/\\d+/g).map(Number).map(channel);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
          const behind = element => { for (; element; element = element.parentElement) {
            const colour = getComputedStyle(element).backgroundColor;
            if (!/, 0\\)$/.test(colour)) return colour; } };
          return Object.fromEntries(["h1", "dt", "dd.hit", "dd.miss", "caption", "thead th", "tbody td", "summary",
            "#send", ".hint", "#status"].map(name => { const element = document.querySelector(name);
              const colours = [getComputedStyle(element).color, behind(element)];
              const [dim, bright] = colours.map(light).sort((a, b) => a - b);
              return [name, (bright + 0.05) / (dim + 0.05)]; }));
        }"""
    )
    return found


def test_light_and_dark_follow_the_system_and_both_can_be_read(opened: Any) -> None:
    light, dark = opened(color_scheme="light").page, opened(color_scheme="dark").page
    backgrounds = [page.evaluate("getComputedStyle(document.body).backgroundColor") for page in (light, dark)]
    assert backgrounds[0] != backgrounds[1]
    for page in (light, dark):
        assert {name: ratio for name, ratio in contrasts(page).items() if ratio < 4.5} == {}


def test_who_wants_no_motion_gets_none(opened: Any) -> None:
    page = opened(reduced_motion="reduce").page
    moving = page.evaluate(
        """() => {
          const moves = ({ animationName, transitionDuration }) =>
            animationName !== "none" || transitionDuration.split(", ").some(time => time !== "0s");
          return [...document.querySelectorAll("*")].filter(
            element => ["", "::before"].some(part => moves(getComputedStyle(element, part)))).length;
        }"""
    )
    assert moving == 0


def test_a_stream_that_has_gone_silent_is_opened_again(opened: Any) -> None:
    page = opened().page
    page.clock.install()
    as_of = page.locator("#as-of").inner_text()
    page.locator("#as-of").filter(has_not_text=as_of).wait_for()  # from now on, times are the clock's
    page.evaluate(LISTENS_TO_WHAT_IS_SAID)
    page.clock.fast_forward(16_000)
    until_said(page, "Nothing came for 15 s. Trying again")
    until_said(page, "Live again")
    assert "anew" not in "".join(page.evaluate("window.said"))


def test_a_page_that_is_open_while_the_router_restarts_says_so_and_goes_on(opened: Any, stack: DashboardStack) -> None:
    page = opened()
    stack.chat(question("before the restart"))
    page.table("The last requests").get_by_role("row").nth(1).wait_for()
    page.page.evaluate(LISTENS_TO_WHAT_IS_SAID)
    stack.stop_router()
    until_said(page.page, "The router cannot be reached.")
    assert page.page.locator("#status").get_attribute("data-state") == "lost"
    stack.start_router()
    until_said(page.page, "Live again: the router started anew at")
    page.table("The last requests").get_by_text("No request yet.").wait_for()
    assert page.page.locator("#tile-failed-sub").inner_text() == "of 0 in 10 minutes", "nothing of the former one's"
    stack.chat(question("after the restart"))
    page.table("The last requests").get_by_text("127.0.0.1").wait_for()


def test_a_replica_that_goes_down_is_said_aloud_and_shown(opened: Any, stack: DashboardStack) -> None:
    page = opened()
    lost = stack.processes[-1]
    lost.kill()
    lost.wait()
    where = stack.engines[-1].removeprefix("http://")
    page.page.get_by_role("status").filter(has_text=re.compile(f"{where} is (down|ejected)")).wait_for()
    page.table("Endpoints now").get_by_role("row").filter(has_text=where).get_by_text(
        re.compile("down|ejected")
    ).wait_for()
