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

async function load(address) {
  const answer = await fetch(address, { headers: { accept: "text/html" } });
  if (answer.redirected && new URL(answer.url).pathname !== location.pathname) return location.reload();
  if (!answer.ok && answer.status !== 404) throw new Error(String(answer.status));
  return new DOMParser().parseFromString(await answer.text(), "text/html");
}

// Loads this page again and puts the parts with these ids in place of the old ones, if they differ.
async function refresh(ids) {
  const page = await load(location.href);
  if (!page) return;
  for (const id of ids) {
    const [old, now] = [document.getElementById(id), page.getElementById(id)];
    if (!old || !now) continue;
    localise(now);
    if (old.innerHTML === now.innerHTML) continue;
    const focused = old.contains(document.activeElement) ? document.activeElement.id : "";
    const open = [...old.querySelectorAll("details")].map((part) => part.open);
    const selected = [...old.querySelectorAll("[name=ids]:checked")].map((box) => box.value);
    old.replaceChildren(...now.childNodes);
    old.querySelectorAll("[name=ids]").forEach((box) => { box.checked = selected.includes(box.value); });
    old.dataset.status = now.dataset.status ?? "";
    old.querySelectorAll("details").forEach((part, place) => { part.open = open[place] ?? part.open; });
    if (focused) document.getElementById(focused)?.focus();
  }
  countSelected();
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
  const look = async () => {
    const started = performance.now();
    if (document.visibilityState === "visible") await refresh(ids).catch(() => {});
    // A page with a slow search is loaded less often.
    setTimeout(look, Math.max(4000, 20 * (performance.now() - started)));
  };
  setTimeout(look, 4000);
}

// The buttons of actions on many jobs name the number of selected rows that they apply to, if rows are selected.
function countSelected() {
  const rows = [...document.querySelectorAll("[form=bulk]:checked")];
  for (const button of document.querySelectorAll("[data-statuses]")) {
    button.dataset.label ??= button.textContent;
    button.dataset.idle ??= String(button.disabled);
    const count = rows.filter((row) => button.dataset.statuses.split(" ").includes(row.dataset.status)).length;
    const label = count === 1 ? button.dataset.one : button.dataset.many.replace("{n}", count.toLocaleString(locale));
    button.textContent = rows.length ? label : button.dataset.label;
    button.disabled = rows.length ? count === 0 : button.dataset.idle === "true";
  }
  const boxes = document.querySelectorAll("[form=bulk]").length;
  const all = document.querySelector("[data-all]");
  if (!all) return;
  all.checked = boxes > 0 && rows.length === boxes;
  all.indeterminate = rows.length > 0 && rows.length < boxes;
}

// Continues a search whose time was over, until the page is full or all jobs are searched.
async function continueSearch() {
  const jobs = document.getElementById("jobs");
  for (;;) {
    const note = jobs?.querySelector("[data-continue]");
    if (!note || jobs.querySelectorAll(".rowlink").length >= Number(note.dataset.enough)) return;
    const more = (await load(note.dataset.continue))?.getElementById("jobs");
    if (!more) return;
    localise(more);
    const [table, next] = [jobs, more].map((part) => part.querySelector("table"));
    if (table && next) {
      if (!table.matches(".no-callers")) next.classList.remove("no-callers");
      next.tBodies[0].prepend(...table.tBodies[0].rows);
    } else if (table) {
      more.querySelector("p.hint:not([role])")?.remove();
      more.prepend(table.parentElement);
    }
    for (const rel of ["prev", "first"]) {
      const [old, now] = [jobs, more].map((part) => part.querySelector(`.pages [rel=${rel}]`));
      if (old) now?.replaceWith(old);
      else now?.remove();
    }
    jobs.replaceChildren(...more.childNodes);
    countSelected();
  }
}

function move(step) {
  const rows = [...document.querySelectorAll(".rowlink")];
  const place = rows.indexOf(document.activeElement);
  rows[Math.min(Math.max(place + step, 0), rows.length - 1)]?.focus();
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input:not([type=checkbox]), textarea, select, dialog");
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

document.addEventListener("change", (event) => {
  if (event.target.matches("[data-all]")) {
    document.querySelectorAll("[form=bulk]").forEach((box) => { box.checked = event.target.checked; });
  }
  if (event.target.matches("[data-all], [form=bulk]")) countSelected();
});

localise(document);
countSelected();
continueSearch().catch(() => {});
setInterval(() => localise(document), 20000);
const state = document.querySelector("[data-follow]");
if (state) follow(state);
watch();
