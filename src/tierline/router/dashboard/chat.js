// The box to try the router with: streams a completion through it, as any client would, and says who answered from where.
import { eventsOf, refusalOf } from "./events.js";
import { drawBar, fill, number, seconds, setText, short } from "./tables.js";

const SETTLES_MS = 6000;
const SAMPLE = `You are the assistant of a library. Rules of the house: ${[...Array(40).keys()]
  .map(n => `${n + 1}. Shelf ${n + 1} holds volumes ${100 * n + 1} to ${100 * n + 100}; they are lent for ${7 + (n % 5)} days.`)
  .join(" ")} Question: on which shelf is volume 1234?`;
const byId = id => document.getElementById(id);

export class Chat {
  constructor() {
    this.messages = [];
    this.endpoints = [];
    this.waiting = [];
    this.answering = null;
    this.explained = null;
    byId("chat-form").addEventListener("submit", event => {
      event.preventDefault();
      this.send();
    });
    byId("prompt").addEventListener("keydown", event => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      byId("chat-form").requestSubmit();
    });
    byId("chat-form").addEventListener("keydown", event => {
      if (event.key === "Escape" && !event.isComposing) this.answering?.abort();
    });
    byId("stop").addEventListener("click", () => this.answering?.abort());
    byId("sample").addEventListener("click", () => {
      byId("prompt").value = SAMPLE;
      byId("prompt").focus();
    });
    byId("new-chat").addEventListener("click", () => {
      this.answering?.abort();
      this.messages = [];
      this.explained = null;
      byId("log").replaceChildren();
      byId("told").hidden = true;
      byId("prompt").focus();
    });
  }

  /** A snapshot came. */
  heard({ endpoints, aliases }) {
    this.endpoints = endpoints;
    const names = [...new Set([...endpoints.flatMap(({ state }) => state.models ?? []), ...aliases])].sort();
    const select = byId("model");
    if (names.join("\n") !== [...select.options].map(option => option.value).join("\n")) {
      const chosen = select.value;
      select.replaceChildren(...names.map(name => new Option(name, name)));
      if (names.includes(chosen)) select.value = chosen;
    }
    for (const wake of this.waiting.splice(0)) wake();
  }

  async send() {
    const prompt = byId("prompt").value.trim();
    if (!prompt || this.answering) return;
    const before = this.endpoints;
    this.explained = null;
    this.messages.push({ role: "user", content: prompt });
    this.write("user", prompt);
    byId("prompt").value = "";
    byId("told").hidden = true;
    setText(byId("tier"), "");
    const place = this.write("assistant", ""), mine = (this.answering = new AbortController());
    this.busy(true);
    let answer;
    try {
      answer = await this.ask(place, mine.signal);
      this.messages.push({ role: "assistant", content: place.textContent });
    } catch (error) {
      this.messages.pop();
      place.parentElement.classList.add("wrong");
      setText(place, mine.signal.aborted ? `${place.textContent} (stopped)` : `${place.textContent} ${error.message}`.trim());
      return;
    } finally {
      this.answering = null;
      this.busy(false);
    }
    this.explained = answer; // until the next message is sent: what is found out of this one later is not shown
    try {
      await this.explain(answer, before);
    } catch (error) {
      if (this.explained !== answer) return;
      byId("told").hidden = false;
      setText(byId("tier"), `Which tier answered cannot be said: ${error.message}`);
    }
  }

  async ask(place, signal) {
    const key = byId("api-key").value.trim();
    const began = performance.now();
    const response = await fetch("v1/chat/completions", {
      method: "POST", signal, credentials: "omit",
      headers: { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) },
      body: JSON.stringify({
        model: byId("model").value, messages: this.messages, max_tokens: Number(byId("max-tokens").value) || 64,
        stream: true, stream_options: { include_usage: true },
      }),
    });
    if (response.status === 401) byId("key-row").hidden = false;
    if (!response.ok) throw new Error(await refusalOf(response));
    let ttft = null, usage = null;
    for await (const { data } of eventsOf(response)) {
      if (data === "[DONE]") break;
      const piece = JSON.parse(data);
      if (piece.error) throw new Error(piece.error.message);
      const text = piece.choices?.[0]?.delta?.content ?? "";
      if (text) {
        ttft ??= (performance.now() - began) / 1000;
        place.append(text);
        byId("log").scrollTop = byId("log").scrollHeight;
      }
      usage = piece.usage ?? usage;
    }
    return { fields: response.headers, ttft, usage, took: (performance.now() - began) / 1000, endedAt: Date.now() / 1000 };
  }

  // Who answered, from where -------------------------------------------------------------------------------------------

  async explain(answer, before) {
    const { fields, ttft, usage, took, endedAt } = answer;
    const endpoint = fields.get("x-tierline-endpoint") ?? "";
    const prompt = usage?.prompt_tokens ?? null, cached = usage?.prompt_tokens_details?.cached_tokens ?? null;
    const facts = {
      "Endpoint": short(endpoint) || "–",
      "First token": seconds(ttft),
      "Cached tokens": cached == null ? "the engine does not say" : `${number(cached)} of ${number(prompt)}`,
      "Predicted": number(Number(fields.get("x-tierline-predicted-cached-tokens") ?? 0)),
      "Reason": fields.get("x-tierline-reason") ?? "–",
      "Strategy": fields.get("x-tierline-strategy") ?? "–",
      "Took": seconds(took),
    };
    byId("facts").replaceChildren(...Object.entries(facts).map(([name, text]) => {
      const pair = document.createElement("div"), term = document.createElement("dt"), said = document.createElement("dd");
      term.textContent = name;
      said.textContent = text;
      pair.append(term, said);
      return pair;
    }));
    const told = [...fields].filter(([name]) => name.startsWith("x-tierline-") || name === "x-request-id");
    fill(byId("fields"), told.map(([name, value]) => [{ text: name, kind: "name" }, value]), "Nothing.");
    byId("told").hidden = false;
    setText(byId("tier"), "Looking which tier answered…");
    drawBar(byId("tier-bar"), {});
    const byTier = (await this.counted(endpoint, prompt, cached, before, endedAt)) ?? predicted(fields, prompt, cached);
    if (this.explained !== answer) return;
    if (byTier) {
      setText(byId("tier"), sentence(byTier));
      const parts = { engine: 0, store: 0, computed: 0 };
      for (const { kind, tokens } of byTier) parts[kind] += tokens / prompt;
      drawBar(byId("tier-bar"), parts);
    } else {
      setText(byId("tier"), cached ? `${number(cached)} tokens came from a cache; which tier, the engine does not tell.`
        : "The engine does not say where the prompt came from.");
    }
  }

  /**
   * What the engine counted between two readings; where it counted other prompts too, what follows for this one from
   * where nothing came from at all; else null.
   */
  async counted(endpoint, prompt, cached, before, endedAt) {
    const figuresIn = views => views.find(({ state }) => state.url === endpoint)?.engine;
    const old = figuresIn(before);
    if (!old || prompt == null) return null;
    const until = performance.now() + SETTLES_MS;
    while (performance.now() < until) {
      await new Promise(wake => {
        this.waiting.push(wake);
        setTimeout(wake, 2000);
      });
      const now = figuresIn(this.endpoints);
      if (!now || now.read_at <= endedAt) continue;
      const [own, fetched, computed] = ["engine_tokens", "external_tokens", "computed_tokens"].map(name => now[name] - old[name]);
      if (own + fetched + computed < prompt) continue;
      if (own + fetched + computed > prompt) return onlyOne(own, fetched, prompt, cached);
      const loaded = Object.entries(now.loaded_tokens).map(([tier, tokens]) => [tier, tokens - (old.loaded_tokens[tier] ?? 0)]);
      const names = loaded.filter(([, tokens]) => tokens > 0).map(([tier]) => (tier === "node" ? "the node store" : tier));
      return [
        { kind: "engine", tokens: own, name: "the engine's own cache" },
        { kind: "store", tokens: fetched, name: names.join(" and ") || "the node store" },
        { kind: "computed", tokens: computed, name: "computed" },
      ];
    }
    return null;
  }

  write(role, text) {
    const block = document.createElement("div"), who = document.createElement("strong"), said = document.createElement("p");
    block.className = role;
    who.textContent = role === "user" ? "You" : "Answer";
    said.textContent = text;
    block.append(who, said);
    byId("log").querySelector(".empty")?.remove();
    byId("log").append(block);
    byId("log").scrollTop = byId("log").scrollHeight;
    return said;
  }

  /** Neither button is ever `disabled`: who has just pressed it with a key would lose his place on the page. */
  busy(isBusy) {
    byId("send").ariaDisabled = String(isBusy);
    byId("stop").ariaDisabled = String(!isBusy);
    byId("log").ariaBusy = String(isBusy);
  }
}

/** Of prompts that ran at once, all that was cached came from one place: so did this one's. */
function onlyOne(own, fetched, prompt, cached) {
  if (!cached || (own && fetched)) return null;
  const from = own ? { kind: "engine", name: "the engine's own cache" } : { kind: "store", name: "the node store" };
  return [{ ...from, tokens: cached }, { kind: "computed", tokens: prompt - cached, name: "computed" }];
}

/** What kvaware was told of the endpoint's tiers, where the engine found as much; else, that all was computed; or null. */
function predicted(fields, prompt, cached) {
  if (cached === 0) return [{ kind: "computed", tokens: prompt, name: "computed" }];
  const tiers = (fields.get("x-tierline-predicted-by-tier") ?? "").split(", ").filter(Boolean).map(tier => tier.split("="));
  const total = tiers.reduce((sum, [, tokens]) => sum + Number(tokens), 0);
  if (!total || total !== cached) return null;
  return [
    ...tiers.map(([tier, tokens]) => ({ kind: tier === "gpu" ? "engine" : "store", tokens: Number(tokens), name: tier })),
    { kind: "computed", tokens: prompt - cached, name: "computed" },
  ];
}

function sentence(byTier) {
  const found = byTier.filter(({ kind, tokens }) => kind !== "computed" && tokens > 0);
  const computed = byTier.find(({ kind }) => kind === "computed").tokens;
  if (!found.length) return `No tier had it: all ${number(computed)} tokens were computed.`;
  if (found.length === 1) return `Answered by ${found[0].name}: ${number(found[0].tokens)} tokens, ${number(computed)} computed.`;
  const from = found.map(({ name, tokens }) => `${number(tokens)} tokens from ${name}`).join(", ");
  return `Answered by ${found.map(({ name }) => name).join(" and ")}: ${from}, ${number(computed)} computed.`;
}
