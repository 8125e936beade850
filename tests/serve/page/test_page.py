from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.serve.page.conftest import Service


def until(holds: Callable[[], Any], seconds: float = 20.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.03)
    return found


class Page:
    """The page as somebody at it sees and uses it."""

    def __init__(self, browser: Any, service: Service) -> None:
        self.browser, self.service = browser, service
        browser.get(service.url)
        until(lambda: browser.execute_script("return document.querySelectorAll('#model option').length"))

    def find(self, selector: str) -> Any:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map((one) => one.innerText)"
        return self.browser.execute_script(script, selector)

    def button(self, label: str) -> Any:
        return next(one for one in reversed(self.browser.find_elements(By.CSS_SELECTOR, "button")) if one.text == label)

    def type(self, text: str) -> None:
        self.find("#question").send_keys(text)

    def ask(self, text: str) -> None:
        before = len(self.service.asked)
        self.type(text + Keys.ENTER)
        until(lambda: len(self.service.asked) > before)

    def answered(self) -> str:
        until(lambda: not self.find("#stop").is_displayed())
        return self.texts("article.assistant .body")[-1]


def test_type_stream_and_read(browser: Any, service: Service) -> None:
    service.pause, service.answer = 0.05, "Once **upon** a time. " * 8
    page = Page(browser, service)
    page.ask("tell me a story")
    seen = until(lambda: page.texts("article.assistant .body")[-1])
    assert len(seen) < len(service.answer)
    assert page.find("#stop").is_displayed()
    assert page.answered() == ("Once upon a time. " * 8).strip()
    assert browser.execute_script("return document.querySelectorAll('article.assistant strong').length") == 8
    assert "12 tokens" in page.texts(".stats")[0] and "tokens/s" in page.texts(".stats")[0]
    assert service.asked[0]["messages"] == [{"role": "user", "content": "tell me a story"}]
    assert service.asked[0]["model"] == "small"
    page.ask("and then?")
    page.answered()
    assert [one["role"] for one in service.asked[1]["messages"]] == ["user", "assistant", "user"]
    requests = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [one["params"]["request"]["url"] for one in requests if one["method"] == "Network.requestWillBeSent"]
    assert urls and all(url.startswith((service.url, "data:", "about:")) for url in urls)


def test_stop_keeps_what_came_and_leaves_the_service_alone(browser: Any, service: Service) -> None:
    service.pause, service.answer = 0.05, "word " * 400
    page = Page(browser, service)
    page.ask("go on")
    until(lambda: len(page.texts("article.assistant .body")[-1]) > 20)
    page.find("#stop").click()
    kept = page.answered()
    assert 20 < len(kept) < 1000
    assert "stopped" in page.texts(".stats")[0]
    until(lambda: service.closed == 1)
    page.ask("again")
    until(lambda: page.texts("article.assistant .body")[-1])
    page.find("#question").send_keys(Keys.ESCAPE)
    page.answered()
    until(lambda: service.closed == 2)


def test_regenerate_and_edit_ask_again(browser: Any, service: Service) -> None:
    page = Page(browser, service)
    page.ask("first")
    page.answered()
    service.answer = "Another one."
    page.button("Regenerate").click()
    until(lambda: page.texts("article.assistant .body") == ["Another one."])
    page.answered()
    assert len(service.asked) == 2 and service.asked[0]["messages"] == service.asked[1]["messages"]
    page.find("#question").send_keys(Keys.ALT, Keys.ARROW_UP)
    until(lambda: page.find("#question").get_property("value") == "first")
    page.ask(" of all")
    page.answered()
    assert service.asked[2]["messages"] == [{"role": "user", "content": "first of all"}]
    assert page.texts("article.user .body") == ["first of all"]


def test_conversations_outlive_a_reload_and_can_be_deleted(browser: Any, service: Service) -> None:
    page = Page(browser, service)
    page.ask("remember me")
    page.answered()
    page = Page(browser, service)
    assert page.texts("article .body") == ["remember me", service.answer]
    page.find("#new").click()
    page.ask("a second one")
    page.answered()
    assert page.texts("nav .open") == ["a second one", "remember me"]
    page.browser.find_elements(By.CSS_SELECTOR, "nav .open")[1].click()
    assert page.texts("article.user .body") == ["remember me"]
    page.find("nav li.chosen .icon").click()
    browser.switch_to.alert.accept()
    until(lambda: page.texts("nav .open") == ["a second one"])


def test_nothing_in_an_answer_can_act(browser: Any, service: Service) -> None:
    hostile = (
        "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>\n\n"
        "[click](javascript:document.title='taken') [ok](https://example.org/a)\n\n"
        "```html\n<b onclick=evil()>code</b>\n```\n\n| a | <i>b</i> |\n|---|---|\n| 1 | `<x>` |\n\n- one\n  - two\n"
    )
    service.answer = hostile
    page = Page(browser, service)
    page.ask("<img src=x onerror=\"document.title='taken'\">")
    page.answered()
    count = "return document.querySelectorAll('#log img, #log script, #log b, #log i, #log [onerror]').length"
    assert browser.execute_script(count) == 0
    assert browser.title == "Chat · aiasst"
    links = browser.execute_script("return [...document.querySelectorAll('#log a')].map((one) => one.href)")
    assert links == ["https://example.org/a"]
    assert page.texts("#log pre code") == ["<b onclick=evil()>code</b>"]
    assert page.texts("#log td") == ["1", "<x>"]
    assert browser.execute_script("return document.querySelectorAll('#log li li').length") == 1


def test_a_key_is_asked_for_and_forgotten_with_the_tab(browser: Any, service: Service) -> None:
    service.key = "s3cret"
    browser.get(service.url)
    field = until(lambda: browser.execute_script("return document.querySelector('dialog[open] [name=key]')"))
    field.send_keys("s3cret")
    browser.find_element(By.CSS_SELECTOR, "dialog .primary").click()
    until(lambda: browser.execute_script("return document.querySelectorAll('#model option').length") == 2)
    page = Page(browser, service)
    page.ask("hello")
    assert page.answered() == service.answer
    assert "s3cret" not in browser.execute_script("return JSON.stringify(localStorage)")


def test_a_refusal_is_told_and_counted_down(browser: Any, service: Service) -> None:
    service.refusal = (429, "the line is full: 256 requests wait", {"Retry-After": "2"})
    page = Page(browser, service)
    page.ask("hello")
    until(lambda: "the line is full" in page.find("#notice").text)
    again = page.find("#notice .quiet")
    assert not again.is_enabled() and again.text.startswith("Try again in ")
    until(again.is_enabled)
    again.click()
    until(lambda: page.texts("article.assistant .body") == [service.answer])
    assert len(service.asked) == 2


def test_files_go_into_the_context(browser: Any, service: Service, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("the cat is ```called``` Tom")
    (tmp_path / "picture.bin").write_bytes(b"\xff\xfe\x00\x01")
    page = Page(browser, service)
    page.find("#file").send_keys(str(tmp_path / "notes.txt"))
    until(lambda: page.texts("#files li"))
    page.find("#file").send_keys(str(tmp_path / "picture.bin"))
    until(lambda: "no UTF-8 text" in page.find("#notice").text)
    page.ask("what is it called?")
    page.answered()
    (said,) = service.asked[0]["messages"]
    assert said["content"] == "File notes.txt:\n````\nthe cat is ```called``` Tom\n````\n\nwhat is it called?"
    assert page.texts("article .files li")[0].startswith("notes.txt")


def test_a_model_without_a_template_goes_on_with_the_text(browser: Any, service: Service) -> None:
    service.chat = False
    page = Page(browser, service)
    page.ask("Once upon")
    page.answered()
    assert (service.asked[0]["prompt"], service.asked[0]["max_tokens"]) == ("Once upon", 256)
    assert "messages" not in service.asked[0]


def test_settings_and_the_chosen_model_are_sent(browser: Any, service: Service) -> None:
    page = Page(browser, service)
    page.find("#settings-button").click()
    for name, value in (("temperature", "0.5"), ("max_tokens", "40"), ("seed", "7"), ("system", "Be brief.")):
        page.find(f"dialog [name={name}]").send_keys(value)
    page.find("dialog .primary").click()
    page.find("#model option[value=large]").click()
    page.ask("hello")
    page.answered()
    asked = service.asked[0]
    assert (asked["model"], asked["temperature"], asked["max_tokens"], asked["seed"]) == ("large", 0.5, 40, 7)
    assert asked["messages"][0] == {"role": "system", "content": "Be brief."}
    assert "top_p" not in asked


def test_narrow_screens_dark_and_light(browser: Any, service: Service) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    service.answer = (
        "`" + "x" * 300 + "`\n\n```\n" + "y " * 200 + "\n```\n\n| " + " | ".join("abcdefghij") + " |\n|" + "---|" * 10
    )
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 320, "height": 640, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        page = Page(browser, service)
        assert browser.execute_script("return document.documentElement.dataset.theme") == "dark"
        page.ask("hello " * 30)
        page.answered()
        width = browser.execute_script(
            "return Math.max(...[document.documentElement, document.querySelector('#log')].map((one) => one.scrollWidth))"
        )
        assert width <= 320
        page.find("#conversations-button").click()
        assert page.find("#new").is_displayed()
        ActionChains(browser).send_keys(Keys.ESCAPE).perform()
        assert not page.find("#new").is_displayed()
        page.find("#theme").click()
        assert browser.execute_script("return document.documentElement.dataset.theme") == "light"
        page = Page(browser, service)
        assert browser.execute_script("return document.documentElement.dataset.theme") == "light"
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_service_gone_is_told_in_words(browser: Any, service: Service) -> None:
    page = Page(browser, service)
    browser.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    try:
        page.type("hello" + Keys.ENTER)
        until(lambda: "does not answer" in page.find("#notice").text)
    finally:
        browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline | {"offline": False})
    page.find("#notice .quiet").click()
    until(lambda: page.texts("article.assistant .body") == [service.answer])


def quantiles(seconds: float | None) -> dict[str, Any]:
    return {"count": 4, "mean": seconds, "p50": seconds, "p90": seconds, "p99": seconds}


def status(**changed: Any) -> dict[str, Any]:
    model = {
        "name": "small", "kind": "text-generation", "task": "text-generation", "state": "ready", "problem": "",
        "running": 3, "waiting": 1, "prompt_tokens_per_second": 200.0, "completion_tokens_per_second": 57.5,
        "time_to_first_token": quantiles(0.4), "inter_token_latency": quantiles(None), "prefix_hit_ratio": 0.25,
        "batch_rows": 2.5,
        "cache": {"slots": 4, "capacity_tokens": 4096, "active_tokens": 1024, "bytes": 10**8, "prefix_bytes": 10**7},
    }  # fmt: skip
    host = {
        "device": "a machine", "utilization": 0.5, "temperature_celsius": None, "power_watts": None,
        "missing": ["no temperature: there is no sensor"], "resident_bytes": 6 * 10**8, "ceiling_bytes": 10**9,
    }  # fmt: skip
    told = {"version": "1", "ready": True, "accepting": True, "uptime_seconds": 600.0, "refusals": {"queue_full": 2}}
    return told | {"models": [model], "host": host} | changed


def test_the_dashboard_shows_what_the_service_tells(browser: Any, service: Service) -> None:
    service.status = status()
    browser.get(f"{service.url}/dashboard")
    texts = "return [...document.querySelectorAll(arguments[0])].map((one) => one.innerText.replace(/\\s+/g, ' '))"
    panels = until(
        lambda: (
            [text for text in browser.execute_script(texts, ".panel:not([hidden])") if "57.5" in text]
            and browser.execute_script(texts, ".panel:not([hidden])")
        )
    )
    shown = "\n".join(panels)
    for words in (
        "answers 57.5",
        "median 400 ms",
        "running 3",
        "waiting 1",
        "resident 600.0 MB",
        "used 25 %",
        "utilization 50 %",
    ):
        assert words in shown
    assert "Temperature" not in shown, "what the machine does not tell is no zero"
    inter_token = next(text for text in panels if text.startswith("Inter-token"))
    assert "median –" in inter_token and "nothing yet" in inter_token
    assert "queue full" in browser.execute_script(texts, "#refusals")[0]
    service.status = status(accepting=False)
    until(lambda: "Stopping" in browser.execute_script(texts, "#summary")[0])
    browser.execute_script("document.querySelector('.panel details').open = true")
    until(lambda: "57.5" in "".join(browser.execute_script(texts, ".panel details td")))
