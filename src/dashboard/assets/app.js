// Keeps pages up to date and saves key presses. Every page can be read without it; it holds no text of its own.
"use strict";

const root = document.documentElement;
root.classList.add("has-script");

// Numbers and times as the reader's locale has them, if that speaks the page's language.
const locale = navigator.languages.find((tag) => tag.slice(0, 2) === root.lang.slice(0, 2)) ?? root.lang;
const relative = new Intl.RelativeTimeFormat(locale, { numeric: "auto" });
const exact = new Intl.DateTimeFormat(locale, { dateStyle: "long", timeStyle: "medium" });
const UNITS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];

function localise(within) {
  for (const time of within.querySelectorAll("time")) {
    const moment = new Date(time.dateTime);
    if (isNaN(moment)) continue;
    const seconds = (moment - Date.now()) / 1000;
    const [unit, size] = UNITS.find(([, size]) => Math.abs(seconds) >= size) ?? UNITS.at(-1);
    time.textContent = relative.format(Math.round(seconds / size), unit);
    time.title = exact.format(moment);
  }
  for (const data of within.querySelectorAll("data")) {
    const places = data.textContent.split(".")[1]?.length ?? 0;
    const format = { minimumFractionDigits: places, maximumFractionDigits: places };
    data.textContent = Number(data.value).toLocaleString(locale, format);
  }
}

// Loads this page again and puts the parts with these ids in place of the old ones, if they differ.
async function refresh(ids) {
  const answer = await fetch(location.href, { headers: { accept: "text/html" } });
  if (answer.redirected && new URL(answer.url).pathname !== location.pathname) return location.reload();
  if (!answer.ok && answer.status !== 404) throw new Error(String(answer.status));
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const id of ids) {
    const [old, now] = [document.getElementById(id), page.getElementById(id)];
    if (!old || !now) continue;
    localise(now);
    if (old.innerHTML === now.innerHTML) continue;
    const focused = old.contains(document.activeElement) ? document.activeElement.id : "";
    const open = [...old.querySelectorAll("details")].map((part) => part.open);
    old.replaceChildren(...now.childNodes);
    old.dataset.status = now.dataset.status ?? "";
    old.querySelectorAll("details").forEach((part, place) => { part.open = open[place] ?? part.open; });
    if (focused) document.getElementById(focused)?.focus();
  }
  return page;
}

// A job on its way: its events as long as they come, else a look every few seconds.
function follow(state) {
  let text = "";
  const labels = JSON.parse(document.getElementById("draft-labels")?.dataset.labels ?? "{}");
  const draft = document.getElementById("draft");
  const source = new EventSource(state.dataset.follow);
  const over = () => { source.close(); location.reload(); };
  const look = () => refresh(["state", "draft-hint"]).then((page) => {
    if (!page?.getElementById("state")?.dataset.follow) over();
  });
  source.addEventListener("status", () => look().catch(() => {}));
  source.addEventListener("progress", (event) => {
    const news = JSON.parse(event.data);
    text = news.reset ? news.text : text + news.text;
    showDraft(draft, partial(text), labels);
  });
  source.addEventListener("done", over);
  source.addEventListener("error", () => {
    if (source.readyState !== EventSource.CLOSED) return;
    const poll = () => look().then(() => follow(state), () => setTimeout(poll, 3000));
    setTimeout(poll, 3000);
  });
}

// The value of JSON that may end anywhere: what is complete, and the last text as far as it has come.
function partial(text) {
  const start = text.indexOf("{");
  if (start < 0) return null;
  let [inText, escaped, closing, safe] = [false, false, [], [0, ""]];
  let place = start;
  for (; place < text.length; place += 1) {
    const c = text[place];
    if (inText) {
      if (escaped) escaped = false;
      else if (c === "\\") escaped = true;
      else if (c === '"') inText = false;
    } else if (c === '"') inText = true;
    else if (c === "{" || c === "[") closing.unshift(c === "{" ? "}" : "]");
    else if (c === "}" || c === "]") closing.shift();
    else if (c === ",") safe = [place, closing.join("")];
    if (!inText && closing.length === 0) { place += 1; break; }
  }
  const whole = text.slice(start, place);
  const cut = escaped ? whole.slice(0, -1) : whole;
  const ends = [cut + (inText ? '"' : "") + closing.join(""), text.slice(start, safe[0]) + safe[1]];
  for (const end of ends) {
    try { return JSON.parse(end); } catch { /* the next one is shorter */ }
  }
  return null;
}

// Of an object what a reader wants first: its longest text of those that come first.
const MAIN = ["name", "statement", "question", "description", "reference_class", "story", "consequence", "rationale", "action"];

function showDraft(draft, value, labels) {
  if (!value || typeof value !== "object") return;
  const isAtEnd = draft.scrollHeight - draft.scrollTop - draft.clientHeight < 60;
  const parts = [];
  const add = (tag, text) => {
    const part = document.createElement(tag);
    part.textContent = text;
    parts.push(part);
    return part;
  };
  for (const [key, content] of Object.entries(value)) {
    if (!labels[key]) continue;
    const lines = (Array.isArray(content) ? content : [content]).map((item) =>
      typeof item === "object" && item ? MAIN.map((name) => item[name]).find(Boolean) : item);
    const told = lines.filter((line) => typeof line === "string" && line);
    if (told.length === 0) continue;
    add("h3", labels[key]);
    if (!Array.isArray(content)) add("p", told[0]);
    else {
      const list = add("ul", "");
      list.append(...told.map((line) => Object.assign(document.createElement("li"), { textContent: line })));
    }
  }
  if (parts.length === 0) return;
  draft.replaceChildren(...parts);
  if (isAtEnd) draft.scrollTop = draft.scrollHeight;
}

// Live parts of the queue's page: a look every few seconds while somebody sees it.
function watch() {
  const ids = [...document.querySelectorAll("[data-live]")].map((part) => part.id);
  if (ids.length === 0) return;
  setInterval(() => {
    if (document.visibilityState === "visible") refresh(ids).catch(() => {});
  }, 4000);
}

function move(step) {
  const rows = [...document.querySelectorAll(".rowlink")];
  const place = rows.indexOf(document.activeElement);
  rows[Math.min(Math.max(place + step, 0), rows.length - 1)]?.focus();
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input, textarea, select, dialog");
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) return event.target.form?.requestSubmit();
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const keys = {
    "/": () => document.querySelector("[data-search]")?.focus(),
    "?": () => document.getElementById("help").showModal(),
    j: () => move(1),
    k: () => move(-1),
  };
  if (keys[event.key]) {
    event.preventDefault();
    keys[event.key]();
  }
});

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button");
  if (button?.matches("[data-print]")) window.print();
  if (button?.matches("[data-copy]")) {
    const label = button.textContent;
    try {
      const text = await (await fetch(button.dataset.copy)).text();
      await navigator.clipboard.writeText(text);
      button.textContent = button.dataset.done;
    } catch {
      button.textContent = button.dataset.failed;
    }
    setTimeout(() => { button.textContent = label; }, 3000);
  }
});

localise(document);
setInterval(() => localise(document), 20000);
const state = document.querySelector("[data-follow]");
if (state) follow(state);
watch();
