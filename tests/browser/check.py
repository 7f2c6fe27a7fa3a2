"""Goes through the pages in Chromium as people do, against the real binary and a Claude that can be held in mid-answer.

    python tests/browser/check.py PATH_OF_CEOAGENT PATH_OF_AXE
"""

import base64
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request

from selenium import webdriver
from selenium.common.exceptions import NoAlertPresentException, WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from claude import Claude, sample, with_texts

PATIENCE_SECONDS = 60
TOKEN = "a-token-for-tests-only"
EVIL = "<script>window.evil=1</script>\"'><img src=x onerror=\"window.evil=2\">{{7*7}}<b>"
MAX_PAGE_BYTES = 150_000
# The API page holds every route and schema.
MAX_REFERENCE_BYTES = 250_000
WIDE, PHONE = (1440, 900), (390, 844)

# What the jobs that fill the table ask: as people write, long and short, in both languages.
QUESTIONS = [
    "Should we replace our on-premise ERP with a SaaS suite across all three plants by the end of 2027?",
    "Do we open a second warehouse in Rotterdam, or extend the one in Antwerp?",
    "Raise list prices by 4 % in January?",
    "我们明年应该自建客户管理系统，还是购买现成的产品？",
    "Should we stop selling the entry model, which makes 31 % of the units and 6 % of the margin, before its successor is there?",
    "Acquire the distributor in Poland, or keep the contract?",
    "Move payroll to an outside provider?",
    "Should the field engineers get electric vans when the leases end in spring?",
    "Build the app for both platforms at once?",
    "Let the Munich lease run out and go remote-first?",
    "是否应该在苏州开设第二家工厂？",
    "Hire a head of data now, or after the migration?",
]


# Those of them that Claude does not understand.
FAILING = {QUESTIONS[5], QUESTIONS[8]}


def answer(prompt):
    """The memo for a prompt; none where it is to fail."""
    if any(query in prompt for query in FAILING):
        return None
    if "window.evil" in prompt:
        return with_texts(sample("english"), EVIL)
    return sample("chinese" if any("\u4e00" <= letter <= "\u9fff" for letter in prompt) else "english")


class Service:
    """The binary, in a folder of its own, at an address that outlives its restarts."""

    def __init__(self, binary, folder, claude):
        self.binary = os.path.abspath(binary)
        self.environment = {
            "PATH": os.environ["PATH"], "HOST": "127.0.0.1", "PORT": str(free_port()), "DATA_DIR": f"{folder}/data",
            "ADMIN_TOKEN": TOKEN, "ANTHROPIC_API_KEY": "sk-test", "ANTHROPIC_BASE_URL": claude.url,
            "SHUTDOWN_GRACE": "1",
            "ON_UNKNOWN_OUTCOME": "retry", "DAILY_BUDGET": "25 USD", "WORKERS": "4",
        }
        self.base = f"http://127.0.0.1:{self.environment['PORT']}"
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [self.binary, "serve"], env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        # Its log is read to the line that says so, and then by a reader that only keeps the pipe from filling.
        for line in self.process.stderr:
            if "ceoagent is ready" in line:
                break
        else:
            sys.exit("error: the service did not start")
        self.reader = subprocess.Popen(["cat"], stdin=self.process.stderr, stdout=subprocess.DEVNULL)

    def stop(self):
        self.process.terminate()
        self.process.wait(PATIENCE_SECONDS)
        self.reader.wait(PATIENCE_SECONDS)

    def restart(self):
        self.stop()
        self.start()

    def api(self, path, body=None, method=None):
        request = urllib.request.Request(
            f"{self.base}{path}", None if body is None else json.dumps(body).encode(), method=method,
            headers={"authorization": f"Bearer {TOKEN}", "content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=40) as response:
            return json.load(response)

    def ask(self, query, **more):
        """A job's id, once it has ended."""
        id = self.api("/api/v1/analyze", {"query": query, **more})["id"]
        while self.api(f"/api/v1/jobs/{id}?wait=25")["status"] in ("queued", "scheduled", "running"):
            pass
        return id


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Browser:
    """Chromium, with its log of what it loaded and complained of."""

    def __init__(self, folder, base):
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for argument in (
            "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--lang=en", "--no-proxy-server",
            f"--user-data-dir={folder}/chromium", "--force-color-profile=srgb", "--hide-scrollbars",
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        options.add_experimental_option("prefs", {"intl.accept_languages": "en"})
        service = webdriver.ChromeService("/usr/bin/chromedriver")
        self.driver = webdriver.Chrome(options=options, service=service)
        self.base = base
        self.resize(WIDE)

    def resize(self, size):
        self.command("Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1,
                     mobile=size == PHONE)

    def colours(self, scheme):
        """What the reader's system prefers."""
        self.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def command(self, name, **parameters):
        return self.driver.execute_cdp_cmd(name, parameters)

    def open(self, path):
        self.driver.get(f"{self.base}{path}")

    @property
    def path(self):
        parts = urllib.parse.urlsplit(self.driver.current_url)
        return parts.path + (f"?{parts.query}" if parts.query else "")

    def until(self, what, check):
        """The first true value of `check`; elements may come and go meanwhile."""
        def safely(_):
            try:
                return check()
            except WebDriverException:
                return False
        return WebDriverWait(self.driver, PATIENCE_SECONDS, 0.05).until(safely, f"{what} did not happen: {self.text}")

    def script(self, code, *arguments):
        return self.driver.execute_script(code, *arguments)

    @property
    def text(self):
        return self.script("return document.body.innerText")

    def sees(self, text):
        self.until(f"seeing {text!r}", lambda: text in self.text)

    def find(self, css):
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def find_all(self, css):
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def button(self, label):
        return self.driver.find_element(By.XPATH, f"//button[normalize-space()='{label}']")

    def press(self, key):
        self.find("body").send_keys(key)

    def goes(self, click, path):
        """Clicks, and waits for the page at an address that begins so."""
        old = self.find("html")
        click.click()
        self.until(f"leaving for {path}", lambda: is_stale(old) and self.path.startswith(path))
        self.until("loading", lambda: self.script("return document.readyState") == "complete")

    def fill(self, css, text):
        field = self.find(css)
        field.clear()
        field.send_keys(text)

    def logged(self, kind):
        return self.driver.get_log(kind)

    def check_clean(self):
        """Nobody ran what users or the model wrote, no other host was asked for anything, and nothing went wrong in the
        console: a breach of the Content-Security-Policy would be there."""
        try:
            sys.exit(f"error: a dialog on {self.path}: {self.driver.switch_to.alert.text}")
        except NoAlertPresentException:
            pass
        assert self.script("return window.evil") is None, self.path
        for entry in self.logged("browser"):
            # Turned away and stopped services are part of the test.
            is_expected = "Failed to load resource" in entry["message"]
            assert is_expected or entry["level"] not in ("SEVERE", "WARNING"), (self.path, entry)
        return self.check_network()

    def check_network(self):
        """No other host; gives the bytes loaded since the last look."""
        total = 0
        for entry in self.logged("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                assert url.startswith((f"{self.base}/", "data:", "chrome://", "about:")), f"{self.path} asks for {url}"
            if message["method"] == "Network.loadingFinished":
                total += int(message["params"]["encodedDataLength"])
        return total


def is_stale(element):
    try:
        element.is_enabled()
        return False
    except WebDriverException:
        return True


def sign_in(browser, path="/admin"):
    browser.open(path)
    browser.until("the form", lambda: browser.path.startswith("/admin/login"))
    browser.fill("#token", TOKEN)
    browser.goes(browser.button("Sign in"), path)


def check_question_to_memo(browser, service, claude):
    """Ask, read along; reload and restart in the middle; the memo comes by itself."""
    claude.hold()
    browser.open("/")
    browser.press("/")
    assert browser.driver.switch_to.active_element.get_attribute("id") == "query"
    browser.fill("#query", "Should we replace our on-premise ERP with a SaaS suite?")
    browser.find("details summary").click()
    browser.fill("#context", "Three plants, 140 custom reports.")
    browser.fill("#options", "Stay\nPilot first")
    browser.goes(browser.button("Analyse"), "/jobs/")
    address = browser.path
    claude.wait_for_half(PATIENCE_SECONDS)
    browser.sees("Claude is writing the memo")
    browser.sees("Vendor support for the current release ends")
    assert "Next steps" not in browser.find("#draft").text, "that is of the second half"

    browser.driver.refresh()
    browser.sees("Vendor support for the current release ends")

    service.restart()
    claude.wait_for_half(PATIENCE_SECONDS)
    browser.sees("Claude is writing the memo")
    browser.sees("Vendor support for the current release ends")
    assert browser.path == address
    claude.release()
    for part in ("Bottom line", "Pilot first", "Options against weighted criteria", "Weighted total", "Risks",
                 "Assumptions", "Missing information", "Next steps", "Stop if",
                 "The strongest case against", "How the memo was made"):
        browser.sees(part)
    assert browser.path == address, "the address is the question's for good"
    assert browser.find_all(".matrix a") and browser.find_all(".bar rect"), "matrix and chart"

    browser.command("Browser.grantPermissions", origin=browser.base,
                    permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    browser.button("Copy as Markdown").click()
    browser.sees("Copied")
    copied = browser.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert copied.startswith("# Should we replace") and "## Next steps" in copied, copied
    browser.check_clean()


def check_waiting(browser, service):
    """A question that waits shows its place, why it waits, and goes on when it may."""
    service.api("/api/v1/admin/queue/pause", {})
    try:
        first = service.api("/api/v1/analyze", {"query": "First in the queue?"})["id"]
        second = service.api("/api/v1/analyze", {"query": "Second in the queue?"})["id"]
        browser.open(f"/jobs/{second}")
        browser.sees("the queue is paused")
        place = browser.find("#state .tile .big").text
        assert place == "2", place
        browser.open(f"/jobs/{first}")
        browser.goes(browser.button("Cancel"), "/jobs/")
        browser.sees("The job was cancelled")
    finally:
        service.api("/api/v1/admin/queue/resume", {})
    browser.open(f"/jobs/{second}")
    browser.sees("Bottom line")
    browser.check_clean()


def check_signing_in(browser, service):
    browser.open("/admin")
    browser.fill("#token", "wrong")
    browser.goes(browser.button("Sign in"), "/admin/login")
    browser.sees("This key or token is not valid")
    sign_in(browser)
    cookie = browser.driver.get_cookie("ceoagent_session")
    assert cookie["httpOnly"] and cookie["sameSite"] == "Strict", cookie
    assert TOKEN not in json.dumps(browser.driver.get_cookies())
    service.restart()
    browser.driver.refresh()
    browser.sees("Jobs are accepted and run")
    browser.check_clean()


def check_queue(browser, service, claude):
    """Filter, search, act on all matches, pause, see it live."""
    browser.open("/admin")
    browser.find("[name=status][value=failed]").click()
    browser.goes(browser.button("Filter"), "/admin?")
    assert "status=failed" in browser.path
    failed = len(FAILING)
    assert {row.text for row in browser.find_all(".rowlink")} == FAILING, browser.text
    browser.goes(browser.button(f"Retry {failed} jobs"), "/admin/actions")
    browser.sees(f"Retry {failed} jobs?")
    assert service.api("/api/v1/admin/jobs?status=failed&limit=1")["total"]["failed"] == failed, "nothing is changed yet"
    claude.hold()
    browser.goes(browser.button(f"Retry {failed} jobs"), "/admin/actions")
    browser.sees(f"{failed} jobs changed")

    browser.open("/admin")
    browser.button("Pause").click()
    browser.sees("Paused by admin_token")
    service.api("/api/v1/analyze", {"query": "Appears in the table without a reload?"})
    browser.sees("Appears in the table without a reload?")
    browser.button("Resume").click()
    browser.sees("Jobs are accepted and run")
    claude.release()

    browser.press("?")
    browser.until("the help", lambda: browser.find("#help").is_displayed())
    browser.press(Keys.ESCAPE)
    browser.until("its end", lambda: not browser.find("#help").is_displayed())
    browser.press("j")
    browser.press("j")
    browser.press("k")
    rows = browser.find_all(".rowlink")
    assert browser.driver.switch_to.active_element == rows[0], "j and k move through the rows"
    browser.press("/")
    browser.driver.switch_to.active_element.send_keys("rotterdam" + Keys.ENTER)
    browser.until("the search", lambda: "text=rotterdam" in browser.path)
    browser.until("its one row", lambda: len(browser.find_all(".rowlink")) == 1)
    times = browser.find(".jobs time")
    assert times.get_attribute("title") and "UTC" not in times.text, "told from now, and exactly on hover"
    browser.fill("#text", "no such words")
    browser.goes(browser.button("Filter"), "/admin?")
    browser.sees("No jobs match the filter")
    browser.open("/admin/audit")
    for action in ("paused the queue", "resumed the queue", "retried jobs", "Status: Failed"):
        browser.sees(action)
    browser.check_clean()


def check_selection(browser, service):
    """Chips, selected rows that survive a live update, a deletion, and a search that continues by itself."""
    jobs = [service.ask(f"Selected plan {n}?") for n in range(3)]
    browser.open("/admin?text=selected+plan&priority=normal")
    browser.button("Delete 3 jobs")
    browser.find(f"[name=ids][value='{jobs[0]}']").click()
    browser.button("Delete 1 job")
    assert not browser.button("Cancel 0 jobs").is_enabled()
    service.ask("Selected plan 3?")
    browser.sees("Selected plan 3?")
    assert browser.find(f"[name=ids][value='{jobs[0]}']").is_selected(), "the selection is lost with the live update"
    browser.find("[data-all]").click()
    browser.button("Delete 4 jobs")
    for id in jobs[1:]:
        browser.find(f"[name=ids][value='{id}']").click()
    assert browser.find("[data-all]").get_property("indeterminate")
    browser.goes(browser.button("Delete 2 jobs"), "/admin/actions")
    browser.sees("Delete 2 jobs permanently?")
    browser.goes(browser.button("Delete 2 jobs"), "/admin/actions")
    browser.sees("2 jobs changed.")

    browser.open("/admin?text=selected+plan&priority=normal")
    assert len(browser.find_all(".rowlink")) == 2
    browser.goes(browser.driver.find_element(By.XPATH, "//a[contains(@class, 'chip')][contains(., 'Priority')]"), "/admin?")
    assert browser.path == "/admin?text=selected+plan", browser.path
    browser.goes(browser.driver.find_element(By.LINK_TEXT, "Clear"), "/admin")
    browser.open(f"/jobs/{jobs[1]}")
    browser.driver.find_element(By.XPATH, "//summary[contains(., 'Delete')]").click()
    browser.goes(browser.button("Delete"), "/jobs/")
    browser.sees("The job is deleted")
    browser.open("/nowhere")
    browser.sees("Page not found")

    # As if the time of the search had been over after two rows, and after none.
    browser.open("/admin")
    rows = [row.text for row in browser.find_all(".rowlink")]
    for shown in (2, 0):
        page = service.api(f"/api/v1/admin/jobs?limit={max(shown, 1)}")
        browser.script("""
            const jobs = document.getElementById("jobs");
            [...jobs.querySelectorAll("tbody tr")].slice(arguments[0]).forEach((row) => row.remove());
            if (arguments[0] === 0) jobs.querySelector(".wide").remove();
            jobs.insertAdjacentHTML("beforeend", `<p data-continue="${arguments[1]}" data-enough="30"></p>`);
        """, shown, f"/admin?cursor={page['next_cursor']}")
        browser.driver.execute_async_script("continueSearch().then(arguments[0])")
        found = [row.text for row in browser.find_all(".rowlink")]
        assert found == (rows if shown else rows[1:]), (shown, found, rows)
        browser.open("/admin")
    browser.check_clean()


def check_keys(browser):
    """A key is shown once, opens what it may, and nothing once it is revoked."""
    def may_list(key):
        request = urllib.request.Request(
            f"{browser.base}/api/v1/admin/jobs?limit=1", headers={"authorization": f"Bearer {key}"})
        with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(request, timeout=40):
            return True
        return False

    browser.open("/admin/keys")
    browser.sees("There are no keys")
    browser.fill("#name", "press-office")
    Select(browser.find("#scope")).select_by_value("admin")
    browser.goes(browser.button("Create a key"), "/admin/keys")
    key = browser.find("#new-key").text
    assert may_list(key)
    browser.open("/admin/keys")
    browser.sees("press-office")
    assert key not in browser.driver.page_source
    browser.find("table summary").click()
    browser.goes(browser.button("Revoke press-office permanently"), "/admin/keys")
    browser.sees("revoked")
    assert not may_list(key)
    browser.check_clean()


def check_history(browser):
    """Bars for what has happened, in every range, and the same as a table."""
    for label, name in (("Day", "day"), ("Week", "week"), ("90 days", "quarter"), ("Hour", "hour")):
        browser.goes(browser.driver.find_element(By.LINK_TEXT, label), "/admin?")
        assert f"range={name}" in browser.path
        charts = browser.find_all(".plot svg")
        assert len(charts) == 4 and all(chart.find_elements(By.CSS_SELECTOR, "path") for chart in charts[:2])
    browser.find("#history summary").click()
    row = browser.find("#history tbody").text
    assert row and "No activity" not in row, row
    browser.check_clean()


def check_escaping(browser, service):
    """What users and the model write is text, wherever it stands."""
    id = service.ask(EVIL, context=EVIL, options=[EVIL, "other"], metadata={"team": EVIL})
    assert service.api(f"/api/v1/jobs/{id}")["result"]["summary"] == EVIL
    pages = (f"/jobs/{id}", "/admin", f"/admin?{urllib.parse.urlencode({'text': EVIL})}", f"/jobs/{id}/memo.md")
    for path in pages:
        browser.open(path)
        assert "window.evil" in browser.text, path
        assert not browser.find_all("img[src='x']") and "49" not in browser.script(
            "return [...document.querySelectorAll('h1')].map(part => part.innerText).join()"), path
        browser.check_clean()
    browser.open(f"/?{urllib.parse.urlencode({'lang': EVIL})}")
    browser.check_clean()
    service.api("/api/v1/admin/jobs/actions", {"action": "delete", "filter": {"text": "window.evil"}})


def check_languages_and_colours(browser):
    """Both are switched where they are read, and stay."""
    background = "return getComputedStyle(document.body).backgroundColor"
    browser.open("/")
    light = browser.script(background)
    browser.goes(browser.driver.find_element(By.LINK_TEXT, "Dark"), "/")
    dark = browser.script(background)
    assert light != dark, "the dark page is as light as the light one"
    browser.open("/admin")
    assert browser.script(background) == dark, "the choice holds on every page"
    browser.goes(browser.driver.find_element(By.LINK_TEXT, "Auto"), "/admin")
    browser.goes(browser.driver.find_element(By.LINK_TEXT, "中文"), "/admin")
    assert browser.find("html").get_attribute("lang") == "zh-CN"
    for text in ("队列", "任务", "成功"):
        browser.sees(text)
    assert "Jobs are accepted" not in browser.text
    browser.open("/")
    browser.sees("你要做什么决策")
    browser.goes(browser.driver.find_element(By.LINK_TEXT, "English"), "/")
    browser.check_clean()


def violations(browser, axe):
    browser.script(axe)
    found = browser.driver.execute_async_script(
        "axe.run({resultTypes: ['violations']}).then(done => arguments[0](done.violations))")
    return {rule["id"]: [node["html"] for node in rule["nodes"]][:3] for rule in found}


def check_every_page(browser, pages, axe):
    """In both colours and sizes: no fault that axe finds, light enough, and no wider than a phone."""
    browser.open("/")
    browser.script("document.documentElement.removeAttribute('lang'); document.body.style.color = '#ccc'")
    assert {"html-has-lang", "color-contrast"} <= violations(browser, axe).keys(), "axe finds no faults where there are some"
    for name, path in pages.items():
        browser.command("Network.clearBrowserCache")
        browser.check_network()
        browser.open(path)
        browser.until("loading", lambda: browser.script("return document.readyState") == "complete")
        bytes = browser.check_clean()
        most = MAX_REFERENCE_BYTES if name == "docs" else MAX_PAGE_BYTES
        assert 0 < bytes < most, f"{path} weighs {bytes} bytes"
        for size in (WIDE, PHONE):
            browser.resize(size)
            for scheme in ("light", "dark"):
                browser.colours(scheme)
                found = violations(browser, axe)
                assert not found, f"{path}, {scheme}, {size}: {found}"
                width = browser.script("return document.documentElement.scrollWidth")
                assert width <= size[0], f"{path} is {width} wide on a screen of {size[0]}"
                picture(browser, f"{name}-{size[0]}-{scheme}")
        browser.resize(WIDE)
        browser.colours("light")
        print(f"  {path}: {bytes:,} bytes")


def picture(browser, name):
    """The whole page, where pictures are wanted."""
    if folder := os.environ.get("SCREENSHOTS"):
        os.makedirs(folder, exist_ok=True)
        height = browser.script("return document.documentElement.scrollHeight")
        width = browser.script("return window.innerWidth")
        shot = browser.command("Page.captureScreenshot", captureBeyondViewport=True,
                               clip={"x": 0, "y": 0, "width": width, "height": height, "scale": 1})
        with open(f"{folder}/{name}.png", "wb") as file:
            file.write(base64.b64decode(shot["data"]))


def main(binary, axe_path):
    with open(axe_path, encoding="utf-8") as file:
        axe = file.read()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        claude = Claude(answer)
        service = Service(binary, folder, claude)
        stack.callback(service.stop)
        browser = Browser(folder, service.base)
        stack.callback(browser.driver.quit)
        check_question_to_memo(browser, service, claude)
        print("from question to memo, with a reload and a restart: all is well")
        check_waiting(browser, service)
        asked = {query: service.ask(query) for query in QUESTIONS}
        check_signing_in(browser, service)
        check_queue(browser, service, claude)
        check_selection(browser, service)
        print("signing in and the queue: all is well")
        check_escaping(browser, service)
        browser.open("/admin")
        check_history(browser)
        check_keys(browser)
        check_languages_and_colours(browser)
        print("escaping, history, keys, languages and colours: all is well")

        claude.hold()
        service.api("/api/v1/analyze", {"query": "Renew the fleet contract for two or four years?"})
        running = service.api("/api/v1/analyze", {"query": "Insource the support desk in Porto?"})["id"]
        claude.wait_for_half(PATIENCE_SECONDS)
        claude.wait_for_half(PATIENCE_SECONDS)
        check_every_page(browser, {
            "ask": "/",
            "running": f"/jobs/{running}",
            "memo": f"/jobs/{asked[QUESTIONS[0]]}",
            "memo-zh": f"/jobs/{asked[QUESTIONS[3]]}",
            "failed": f"/jobs/{asked[QUESTIONS[5]]}",
            "unknown": "/jobs/0",
            "login": "/admin/login",
            "queue": "/admin",
            "empty": "/admin?text=no+such+words",
            "filtered": "/admin?status=succeeded&status=failed&priority=normal&created_from=2026-01-01T00:00&text=a",
            "missing": "/nowhere",
            "wrong": "/admin?created_from=yesterday",
            "limits": "/admin/limits",
            "week": "/admin?range=week",
            "keys": "/admin/keys",
            "webhooks": "/admin/webhooks",
            "audit": "/admin/audit",
            "docs": "/docs",
        }, axe)
        claude.release()
    print("every page, light and dark, wide and on a phone: all is well")


main(*sys.argv[1:])
