"""The server's page, in a browser: a photo that is dropped, chosen by keyboard or pasted, and files that are none."""

import base64
import contextlib

import pytest
from running_server import serving

from carbrand.serving.predictor import Predictor

PUT_IN_TRANSFER = """([content, type, name]) => {
  const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type }));
  return transfer;
}"""


@pytest.fixture(scope="module")
def server(tiny_model):
    with serving(tiny_model, "--drain_s", 0) as running:
        yield running


@pytest.fixture(scope="module")
def photo(drawn_photos):
    return drawn_photos / "arvena" / "0001.jpg"


@pytest.fixture(scope="module")
def brand(tiny_model, photo):
    return Predictor(tiny_model).predict([photo])[0].brand


@contextlib.contextmanager
def opened(browser, url, width=1000, **options):
    """The page in a window so wide; afterwards it must have complained of nothing, and asked nobody else."""
    told, asked = [], []
    context = browser.new_context(viewport={"width": width, "height": 800}, **options)
    page = context.new_page()
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    yield page
    context.close()
    assert told == []
    assert all(request.startswith((url, "blob:", "data:")) for request in asked)


def drop(page, content, kind="image/jpeg", name="photo.jpg", event="drop"):
    transfer = page.evaluate_handle(PUT_IN_TRANSFER, [base64.b64encode(content).decode(), kind, name])
    if event == "drop":
        page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    else:
        page.evaluate("(data) => document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data}))", transfer)


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_a_photo_gets_its_brand(browser, server, photo, brand, event):
    with opened(browser, server.url) as page:
        drop(page, photo.read_bytes(), event=event)
        page.wait_for_selector("#answer:not([hidden])")
        assert page.inner_text("#brand").startswith(f"{brand}: ")
        assert page.locator("#shares tr").count() == 5
        assert page.evaluate("document.getElementById('heat').naturalWidth") == 32
        assert page.evaluate("document.activeElement.id") == "brand"


def test_a_file_that_is_no_photo_gets_a_reason(browser, server, photo, brand):
    with opened(browser, server.url) as page:
        drop(page, b"<html>", "text/html", "page.html")
        page.wait_for_selector("#status.bad")
        assert page.inner_text("#status").startswith("This file is not a photo that I can read.")
        assert page.get_attribute("#status", "role") == "status"
        drop(page, photo.read_bytes())
        page.wait_for_selector("#answer:not([hidden])")
        assert page.inner_text("#status") == ""


def test_by_keyboard_alone(browser, server, photo, brand):
    with opened(browser, server.url) as page:
        # Not expect_file_chooser: on a busy machine the key is sometimes pressed before the browser knows of it.
        page.on("filechooser", lambda chooser: chooser.set_files(photo))
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "photo"
        page.keyboard.press("Enter")
        page.wait_for_selector("#answer:not([hidden])")
        assert page.inner_text("#brand").startswith(f"{brand}: ")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(browser, server, photo, scheme):
    with opened(browser, server.url, width=390, color_scheme=scheme, has_touch=True) as page:
        drop(page, photo.read_bytes())
        page.wait_for_selector("#answer:not([hidden])")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.locator("#photo").bounding_box()["height"] >= 44  # WCAG 2.2, 2.5.5


@pytest.mark.slow
def test_a_server_that_is_gone_is_told(browser, tiny_model, photo):
    with serving(tiny_model, "--drain_s", 0) as running:
        context = browser.new_context()
        page = context.new_page()
        page.goto(running.url)
        running.stop()
        drop(page, photo.read_bytes())
        page.wait_for_selector("#status.bad")
        assert page.inner_text("#status") == "The server cannot be reached. Try again."
        context.close()


@pytest.mark.slow
def test_a_key_is_asked_for_once(browser, tiny_model, photo):
    with serving(tiny_model, "--drain_s", 0, api_key="secret") as running:
        context = browser.new_context()
        page = context.new_page()
        page.goto(running.url)
        drop(page, photo.read_bytes())
        page.wait_for_selector("#key:not([hidden])")
        page.keyboard.type("secret")
        page.keyboard.press("Enter")
        page.wait_for_selector("#answer:not([hidden])")
        drop(page, photo.read_bytes())
        page.wait_for_selector("#answer:not([hidden])")
        context.close()
