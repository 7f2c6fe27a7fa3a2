// Lets the page of the API send requests, and opens the part that the address names.
"use strict";

document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (!form.dataset.path) return;
  event.preventDefault();
  let path = form.dataset.path;
  const [query, headers] = [new URLSearchParams(), {}];
  for (const field of form.querySelectorAll("[data-in]")) {
    if (!field.value) continue;
    if (field.dataset.in === "path") path = path.replace(`{${field.name}}`, encodeURIComponent(field.value));
    if (field.dataset.in === "header") headers[field.name] = field.value;
    // A list has one entry a line.
    if (field.dataset.in === "query") field.value.split("\n").forEach((entry) => query.append(field.name, entry));
  }
  const token = document.getElementById("token").value.trim();
  if (token) headers.Authorization = `Bearer ${token}`;
  const body = form.querySelector("[data-type]");
  if (body) headers["Content-Type"] = body.dataset.type;
  const shown = form.querySelector("pre");
  shown.hidden = false;
  shown.textContent = "…";
  try {
    const address = query.size ? `${path}?${query}` : path;
    const answer = await fetch(address, { method: form.dataset.method, headers, body: body?.value });
    const head = [...answer.headers].map(([name, value]) => `${name}: ${value}\n`).join("");
    shown.textContent = `${answer.status} ${answer.statusText}\n${head}\n`;
    if (answer.headers.get("content-type")?.includes("json") && !answer.headers.get("content-type").includes("nd")) {
      shown.textContent += JSON.stringify(await answer.json(), null, 2);
      return;
    }
    // A stream shows as it comes.
    for await (const text of answer.body.pipeThrough(new TextDecoderStream())) shown.textContent += text;
  } catch (error) {
    shown.textContent += error;
  }
});

function open() {
  const part = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const details = part?.closest("details");
  if (!details) return;
  details.open = true;
  part.scrollIntoView();
}
addEventListener("hashchange", open);
open();
