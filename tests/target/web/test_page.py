# SPDX-License-Identifier: Apache-2.0
"""The page in Chromium: what a person sees and does, on a desk and on a telephone, in light and dark, without a mouse."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support import wait

from tests import daemon, peers
from tests.target.web.test_gate import CHANGE, LOOK, address, secret

pytestmark = pytest.mark.interop

FLAGS = [
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
VOLUMES = "  - {name: vol0, lun: 0, size: 16MiB}\n  - {name: mail, lun: 1, size: 1MiB}\n"
PATIENCE = 60


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[daemon.Daemon]:
    directory = tmp_path_factory.mktemp("page")
    look, change = secret(directory / "look", LOOK), secret(directory / "change", CHANGE)
    status = f"status: {{listen: '127.0.0.1:0', token_file: {look}, admin_token_file: {change}}}\n"
    with daemon.Daemon(directory, VOLUMES, extra=status) as made:
        made.run("snapshot", "create", "vol0", "first")
        with made.session() as session:
            session.settle(0)
            session.command(0, bytes.fromhex("2a000000000000008000"), out=b"\xee" * 65536)
        yield made


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = peers.require("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium's sandbox refuses root
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(peers.require("chromedriver")))
    yield driver
    driver.quit()


def until(browser: webdriver.Chrome, true: Callable[[], object]) -> None:
    wait.WebDriverWait(browser, PATIENCE, 0.1, ignored_exceptions=[Exception]).until(lambda _: true())


def text(browser: webdriver.Chrome, place: str = "body") -> str:
    return browser.find_element(By.CSS_SELECTOR, place).text


def press(browser: webdriver.Chrome, label: str) -> None:
    """Press a button as a person without a mouse does."""

    def pressed() -> bool:
        browser.find_element(By.CSS_SELECTOR, f'[aria-label="{label}"]').send_keys(Keys.ENTER)
        return True

    until(browser, pressed)


def answer(browser: webdriver.Chrome, given: str | None) -> None:
    """Fill in the dialog, and press OK."""
    until(browser, lambda: browser.find_element(By.ID, "ask").is_displayed())
    title = text(browser, "#ask-title")
    if given is not None:
        box = browser.find_element(By.ID, "ask-value")
        box.clear()
        box.send_keys(given)
    browser.find_element(By.ID, "ask-yes").send_keys(Keys.ENTER)
    until(browser, lambda: text(browser, "#ask-title") != title)  # it is gone, or asks for something else


def show(browser: webdriver.Chrome, served: daemon.Daemon, width: int, scheme: str, token: str) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    host, port = address(served)
    browser.get(f"http://{host}:{port}/")
    browser.execute_script("sessionStorage.clear()")
    browser.refresh()
    answer(browser, token)
    until(browser, lambda: "vol0" in text(browser, "#volumes"))


@pytest.mark.parametrize(("width", "scheme", "dark"), [(1100, "light", False), (400, "dark", True)])
def test_page_shows_the_state_and_fits(
    browser: webdriver.Chrome, served: daemon.Daemon, tmp_path: Path, width: int, scheme: str, dark: bool
) -> None:
    show(browser, served, width, scheme, LOOK)
    seen = text(browser)
    for words in ("No trouble", "first", "online", "LUN 0, 16 MiB", "snapshots keep 64 KiB", "No job runs"):
        assert words in seen
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) < 200) == dark
    press(browser, "Map of vol0@first")
    until(browser, lambda: browser.find_element(By.CSS_SELECTOR, "canvas.map").get_attribute("aria-label"))
    assert browser.save_screenshot(str(tmp_path / "page.png"))
    wrong = [
        entry for entry in browser.execute("getLog", {"type": "browser"})["value"] if "401" not in entry["message"]
    ]
    assert wrong == []


def test_sessions_and_alerts_appear_by_themselves(browser: webdriver.Chrome, served: daemon.Daemon) -> None:
    show(browser, served, 1100, "light", LOOK)
    with served.session(initiator=f"{daemon.IQN}:somebody") as session:
        session.settle(0)
        until(browser, lambda: f"{daemon.IQN}:somebody" in text(browser, "#sessions"))
    until(browser, lambda: "No initiator is logged in" in text(browser, "#sessions"))


def test_looking_changes_nothing_and_the_administrator_does(browser: webdriver.Chrome, served: daemon.Daemon) -> None:
    show(browser, served, 1100, "light", LOOK)
    press(browser, "Take a snapshot of mail")
    answer(browser, "refused")
    answer(browser, CHANGE)  # the page asks for the token that this needs
    press(browser, "Take a snapshot of mail")
    answer(browser, "taken")
    until(browser, lambda: "taken" in text(browser, "#volumes"))
    press(browser, "Hold mail@taken")
    answer(browser, "for the audit")
    until(browser, lambda: "held: for the audit" in text(browser, "#volumes"))
    press(browser, "Release mail@taken")
    until(browser, lambda: "held:" not in text(browser, "#volumes"))
    press(browser, "Export mail@taken")
    image = served.directory / "mail.qcow2"
    answer(browser, str(image))
    until(browser, image.exists)
    press(browser, "Delete mail@taken")
    answer(browser, None)
    until(browser, lambda: "taken" not in text(browser, "#volumes"))
    assert [snapshot["name"] for snapshot in served.json("snapshot", "list")] == ["first"]
