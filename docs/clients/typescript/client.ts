// Submits a question and waits for its memo, follows QUESTION to its end, and verifies the webhook of that.
//
//     node client.js BASE_URL WEBHOOK_SECRET QUESTION
import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { text } from "node:stream/consumers";
import createClient from "openapi-fetch";
import { Webhook } from "standardwebhooks";
import type { components, paths } from "./ceoagent.js";

type Schemas = components["schemas"];
const [base, secret, question] = process.argv.slice(2);
// With an API key: headers: { Authorization: `Bearer ${key}` }.
const api = createClient<paths>({ baseUrl: base });

async function submit(query: string, callback_url?: string): Promise<Schemas["Job"]> {
  const body = { query, callback_url, depth: "brief" as const };
  // With the key, this request can be repeated after a network error without asking twice.
  const header = { "Idempotency-Key": crypto.randomUUID() };
  const { data, error } = await api.POST("/api/v1/analyze", { body, params: { header } });
  if (!data) throw new Error(`${error.code}: ${error.detail}`);
  return data;
}

async function wait(job: Schemas["Job"]): Promise<Schemas["Job"]> {
  while (["queued", "scheduled", "running"].includes(job.status)) {
    const { data, error } = await api.GET("/api/v1/jobs/{id}", { params: { path: { id: job.id }, query: { wait: 20 } } });
    if (!data) throw new Error(`${error?.code}: ${error?.detail}`);
    job = data;
  }
  return job;
}

// Each event of the job. A stream lasts less than 30 s, so this connects again until there is no more.
async function* events(job: Schemas["Job"]): AsyncGenerator<Schemas["JobEvent"]> {
  for (let seen = ""; ; ) {
    const response = await fetch(base + job.links.events, { headers: { "Last-Event-ID": seen } });
    if (response.status !== 200 || !response.body) return;
    let rest = "";
    for await (const piece of response.body.pipeThrough(new TextDecoderStream())) {
      const blocks = (rest + piece).split("\n\n");
      rest = blocks.pop() ?? "";
      for (const block of blocks) {
        const fields = Object.fromEntries(block.split("\n").map((line) => line.split(/: (.*)/s, 2)));
        if (!fields.event) continue;
        seen = fields.id;
        yield { event: fields.event, data: JSON.parse(fields.data) } as Schemas["JobEvent"];
      }
    }
  }
}

const receiver = createServer(async (request, response) => {
  try {
    const headers = request.headers as Record<string, string>;
    const message = new Webhook(secret).verify(await text(request), headers) as Schemas["WebhookMessage"];
    if (message.data.callback_url !== url) throw new Error("the job of another caller");
    response.writeHead(204).end();
    console.log("webhook:", message.type, message.data.id);
  } catch {
    response.writeHead(401).end();
  }
  receiver.close();
}).listen(0, "127.0.0.1");
await once(receiver, "listening");
const url = `http://127.0.0.1:${(receiver.address() as AddressInfo).port}/hook`;
console.log("memo:", (await wait(await submit("Should we build or buy our CRM?"))).result?.headline);

let answer = "";
for await (const { event, data } of events(await submit(question, url))) {
  if (event === "status") console.log("status:", data.status);
  if (event === "progress") answer = data.reset ? data.text : answer + data.text;
  if (event === "done") console.log("done:", data.status, "after", answer.length, "characters");
}
