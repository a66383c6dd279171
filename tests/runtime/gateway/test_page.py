"""The page in a real browser; `make test-browser` (Debian: chromium-driver)."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from .conftest import running

pytestmark = pytest.mark.browser
PICTURES = Path(os.environ.get("OPTSERVE_PICTURES", "build/pictures"))


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService("/usr/bin/chromedriver")
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_window_size(1200, 1000)
    yield driver
    driver.quit()


@pytest.fixture
def page(browser):
    """The page in front of a model whose calls take a moment."""
    with running(delay=0.5) as (address, transport):
        browser.get(address)
        _wait(browser, lambda: "positions" in browser.find_element("id", "status").text)
        yield browser, transport
        browser.get("about:blank")


def test_tokens_stream_with_their_alternatives(page, direct):
    browser, _ = page
    _set(browser, "[data-field=max_tokens]", "12")
    _set(browser, "[data-field=temperature]", "0")
    browser.find_element("id", "go").click()
    _wait(browser, lambda: len(browser.find_elements("css selector", ".token")) >= 2)
    assert browser.find_element("id", "stop").is_enabled()
    _wait(browser, lambda: browser.find_element("id", "go").is_enabled())
    tokens = browser.find_elements("css selector", ".token")
    text = "".join(token.get_property("textContent") for token in tokens)
    (expected,) = direct.generate(["Good morrow"], max_new_tokens=12)
    assert text == expected.text
    others = tokens[0].get_attribute("data-others").splitlines()
    assert len(others) == 5 and "%" in others[0]
    PICTURES.mkdir(parents=True, exist_ok=True)
    browser.save_screenshot(str(PICTURES / "page.png"))
    severe = [x for x in browser.get_log("browser") if x["level"] != "DEBUG"]
    assert severe == []


def test_stopping_ends_the_generation(page):
    browser, transport = page
    _set(browser, "[data-field=max_tokens]", "40")
    browser.find_element("id", "go").click()
    _wait(browser, lambda: browser.find_elements("css selector", ".token"))
    browser.find_element("tag name", "body").send_keys("\ue00c")  # Escape
    _wait(browser, lambda: "stopped" in browser.find_element("class name", "note").text)
    _wait(browser, lambda: not transport.under_way)


def test_two_columns_on_one_seed(page):
    browser, _ = page
    _set(browser, "[data-field=max_tokens]", "8")
    browser.find_element("id", "compare").click()
    columns = browser.find_elements("class name", "column")
    assert len(columns) == 2
    browser.find_element("id", "prompt").send_keys("\ue009\ue007")  # Ctrl, Enter
    _wait(browser, lambda: browser.find_elements("css selector", ".token"))
    _wait(browser, lambda: browser.find_element("id", "go").is_enabled())
    first, second = (
        [t.get_attribute("data-others") for t in c.find_elements("class name", "token")]
        for c in columns
    )
    assert first == second and len(first) == 8
    assert not browser.find_elements("class name", "differs")
    seeds = browser.find_elements("css selector", "[data-field=seed]")
    seeds[1].clear()
    seeds[1].send_keys("8")
    browser.find_element("id", "go").click()
    _wait(browser, lambda: browser.find_elements("class name", "differs"))
    parted = browser.find_elements("class name", "differs")
    assert len(parted) == 2 and parted[0].text != parted[1].text
    browser.save_screenshot(str(PICTURES / "compare.png"))


def test_the_request_can_be_copied_and_a_phone_shows_it(page):
    browser, _ = page
    browser.find_element("css selector", ".elsewhere summary").click()
    assert "curl" in browser.find_element("class name", "curl").text
    assert "OpenAI(" in browser.find_element("class name", "python").text
    browser.find_element("css selector", ".elsewhere summary").click()
    browser.set_window_size(400, 800)
    width = "return document.documentElement.scrollWidth - window.innerWidth"
    assert browser.execute_script(width) <= 0
    browser.save_screenshot(str(PICTURES / "phone.png"))
    browser.set_window_size(1200, 1000)


def test_tokens_can_be_visited_by_keys(page):
    browser, _ = page
    _set(browser, "[data-field=max_tokens]", "6")
    browser.find_element("id", "go").click()
    _wait(browser, lambda: browser.find_element("id", "go").is_enabled())
    answer = browser.find_element("class name", "answer")
    box = browser.find_element("id", "alternatives")
    assert not box.is_displayed()
    answer.send_keys("\ue014")  # right
    tokens = browser.find_elements("class name", "token")
    assert browser.switch_to.active_element == tokens[0]
    browser.switch_to.active_element.send_keys("\ue014")
    assert browser.switch_to.active_element == tokens[1]
    assert box.is_displayed() and "%" in box.text
    browser.switch_to.active_element.send_keys("\ue010")  # end
    assert browser.switch_to.active_element == tokens[-1]
    browser.find_element("id", "prompt").click()
    assert not box.is_displayed()


def test_in_the_dark(page):
    browser, _ = page
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": dark})
    shade = "return getComputedStyle(document.body).backgroundColor"
    numbers = re.findall(r"\d+", browser.execute_script(shade))
    assert max(map(int, numbers[:3])) < 64
    browser.save_screenshot(str(PICTURES / "dark.png"))
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def _set(browser, selector, value):
    field = browser.find_element("css selector", selector)
    field.clear()
    field.send_keys(value)


def _wait(browser, condition):
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, 60).until(lambda _: condition())
