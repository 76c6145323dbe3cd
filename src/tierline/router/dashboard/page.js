// What the router tells, on the page: one snapshot a second, from when the page can be seen until it is left.
import { TtftChart } from "./chart.js";
import { Chat } from "./chat.js";
import { eventsOf, refusalOf } from "./events.js";
import { bytes, clock, fill, number, percent, seconds, setText, short } from "./tables.js";

const AGAIN_MS = 2000, SILENT_MS = 15000, KEPT_S = 600, NEWS_S = 15;
const REASONS = {
  prefix: "nobody holds more of the prompt", spill: "another endpoint holds more, or is the session's, but has too much to do",
  template: "only a prefix that everybody has is known", cold: "nothing of the prompt is known", "no-prompt": "there is no prompt to go by",
  session: "the session's own endpoint", spilled: "where the session went when its own had too much to do",
  "least-load": "it has the least to do", "no-session": "the request names no session", turn: "it is this endpoint's turn",
};
const TOKEN_FIELD = "x-tierline-admin-token"; // the Kubernetes API, which hands requests on, takes Authorization for itself
const byId = id => document.getElementById(id);

let token = "", isPaused = false, stream = null, moments = new Map(), stateOf = new Map(), newsUntil = 0;
let heardAt = Infinity, isLost = false; // by the router's clock, so that it can be told from its start
const chart = new TtftChart(byId("chart"), byId("chart-empty"), byId("ttft-table"));
const chat = new Chat();

// The stream -----------------------------------------------------------------------------------------------------------

async function watch() {
  const mine = (stream = new AbortController());
  let silence = 0, isFirst = true;
  const listen = () => {
    clearTimeout(silence);
    silence = setTimeout(() => mine.abort(new Error(`Nothing came for ${SILENT_MS / 1000} s.`)), SILENT_MS);
  };
  listen();
  try {
    const response = await fetch("dashboard/events", {
      signal: mine.signal, headers: token ? { [TOKEN_FIELD]: token } : {}, cache: "no-store", credentials: "omit",
    });
    if (response.status === 401) {
      askForToken(token ? await refusalOf(response) : "This router asks for its admin token.");
      return;
    }
    if (!response.ok) throw new Error(await refusalOf(response));
    for await (const { event, data } of eventsOf(response)) {
      listen();
      if (event !== "snapshot") continue;
      if (isFirst) moments.clear(); // it has all that the router knows; what another process knew is no part of it
      isFirst = false;
      show(JSON.parse(data));
    }
    throw new Error("The router ended the stream.");
  } catch (error) {
    if (stream !== mine) return;
    newsUntil = 0;
    isLost = true;
    const { message } = mine.signal.reason ?? (error instanceof TypeError ? new Error("The router cannot be reached.") : error);
    say("lost", `${message} Trying again…`);
    setTimeout(() => { if (stream === mine) restart(); }, AGAIN_MS);
  } finally {
    clearTimeout(silence);
  }
}

function restart() {
  stream?.abort();
  stream = null;
  if (!isPaused && !document.hidden) watch();
}

function askForToken(why) {
  say("lost", why);
  byId("token-form").hidden = false;
  byId("token").focus();
}

function say(state, text) {
  byId("status").dataset.state = state;
  setText(byId("status"), text);
}

byId("token-form").addEventListener("submit", event => {
  event.preventDefault();
  token = byId("token").value.trim();
  byId("token").value = "";
  byId("token-form").hidden = true;
  restart();
});
byId("pause").addEventListener("click", () => {
  isPaused = !isPaused;
  byId("pause").setAttribute("aria-pressed", String(isPaused));
  newsUntil = 0;
  if (isPaused) say("paused", "Paused");
  restart();
});
document.addEventListener("visibilitychange", restart);

// A snapshot -----------------------------------------------------------------------------------------------------------

function show(snapshot) {
  for (const moment of snapshot.moments) moments.set(moment.at, moment);
  for (const at of moments.keys()) if (at <= snapshot.time - KEPT_S) moments.delete(at);
  const kept = [...moments.values()].sort((one, other) => one.at - other.at);
  tell(snapshot);
  showTiles(snapshot, kept);
  chart.show(kept);
  showEndpoints(snapshot.endpoints);
  showFlows(snapshot.flows);
  showStores(snapshot.stores);
  showRows(snapshot.rows);
  showStrategies(snapshot);
  const failures = Object.entries(snapshot.failures).sort((one, other) => other[1] - one[1]);
  fill(byId("failures"), failures.map(([what, count]) => [what, number(count)]), "None.");
  setText(byId("failures").caption, `Since the router's start at ${clock(snapshot.started_at)}`);
  setText(byId("as-of"), `As of ${clock(snapshot.time)}`);
  chat.heard(snapshot);
}

/** Says aloud what changed of the endpoints' states, and that the router is back; nothing else, or it would never be quiet. */
function tell(snapshot) {
  const changed = [], isAnew = snapshot.started_at > heardAt;
  if (isAnew) stateOf.clear();
  if (isLost || isAnew) changed.push(isAnew ? `Live again: the router started anew at ${clock(snapshot.started_at)}` : "Live again");
  isLost = false;
  heardAt = snapshot.time;
  for (const { state: { url, state } } of snapshot.endpoints) {
    const before = stateOf.get(url);
    if (before !== undefined && before !== state) changed.push(`${short(url)} is ${state}`);
  }
  stateOf = new Map(snapshot.endpoints.map(({ state: { url, state } }) => [url, state]));
  if (changed.length) {
    say("live", changed.join(", "));
    newsUntil = snapshot.time + NEWS_S;
  } else if (snapshot.time > newsUntil) say("live", "Live");
}

function showTiles(snapshot, kept) {
  const sum = (from, figure) => from.reduce((total, moment) => total + moment[figure], 0);
  const inflight = snapshot.endpoints.reduce((total, { state }) => total + state.inflight, 0);
  const waiting = snapshot.endpoints.reduce((total, { engine }) => total + (engine?.waiting ?? 0), snapshot.waiting);
  const [requests, failed, prompt] = ["requests", "failed", "prompt_tokens"].map(figure => sum(kept, figure));
  setText(byId("tile-rate"), snapshot.requests_per_s.toFixed(snapshot.requests_per_s < 0.95 ? 2 : 1));
  setText(byId("tile-inflight"), number(inflight));
  setText(byId("tile-inflight-sub"), `${number(waiting)} waiting · ${snapshot.endpoints.length} endpoint${snapshot.endpoints.length === 1 ? "" : "s"}`);
  setText(byId("tile-hit"), seconds(snapshot.hit?.p50_s));
  setText(byId("tile-miss"), seconds(snapshot.miss?.p50_s));
  const faster = snapshot.hit && snapshot.miss && snapshot.miss.p50_s / snapshot.hit.p50_s;
  setText(byId("tile-hit-sub"), faster > 1.05 ? `${faster.toFixed(1)}× sooner` : "median of 10 minutes");
  setText(byId("tile-cached"), percent(prompt ? sum(kept, "cached_tokens") / prompt : null));
  setText(byId("tile-cached-sub"), prompt ? `of ${number(prompt)} in 10 minutes` : "where answers tell");
  setText(byId("tile-failed"), number(failed));
  setText(byId("tile-failed-sub"), `of ${number(requests)} in 10 minutes`);
}

function showEndpoints(endpoints) {
  fill(byId("endpoints"), endpoints.map(({ state, engine }) => {
    const origins = [engine?.engine_tokens, engine?.external_tokens, engine?.computed_tokens];
    const total = origins.reduce((sum, tokens) => sum + (tokens ?? 0), 0);
    const shares = origins.map(tokens => (total ? (tokens ?? 0) / total : 0));
    const roles = state.roles.length === 1 ? ` (${state.roles[0]})` : "";
    return [
      { text: short(state.url) + roles, kind: "name" },
      { text: state.state, kind: `state ${state.state}` },
      number(state.inflight + state.inflight_elsewhere),
      number(engine?.waiting),
      number(state.queued_tokens),
      number(state.prefill_tokens_per_second ?? (engine?.computed_per_s || null)),
      number(engine?.generated_per_s),
      engine?.kv_usage == null ? "–" : { text: percent(engine.kv_usage), parts: { fill: engine.kv_usage }, kind: "barred" },
      total ? {
        text: shares.map(percent).join(" · "), kind: "barred wide",
        parts: { engine: shares[0], store: shares[1], computed: shares[2] },
      } : "–",
    ];
  }), "No endpoint.");
}

function showFlows(flows) {
  const most = Math.max(1, ...flows.map(flow => flow.requests));
  fill(byId("flows"), flows.map(flow => [
    { text: flow.endpoint ? short(flow.endpoint) : "none", kind: "name" },
    { text: flow.reason || "–", kind: "reason" },
    { text: number(flow.requests), parts: { fill: flow.requests / most }, kind: "barred" },
    flow.prompt_tokens ? percent(flow.predicted_tokens / flow.prompt_tokens) : "–",
    flow.prompt_tokens ? percent(flow.cached_tokens / flow.prompt_tokens) : "–",
  ]), "No request in the last ten minutes.");
  for (const cell of document.querySelectorAll("#flows .reason")) cell.title = REASONS[cell.textContent] ?? "";
}

function showStores(stores) {
  const rate = ({ hits, misses }) => (hits == null ? "–" : percent(hits + misses ? hits / (hits + misses) : null));
  fill(byId("stores"), stores.map(store => [
    { text: short(store.name), kind: "name" },
    ...(store.wrong && store.source === "store" ? [{ text: store.wrong, span: 4, kind: "wrong" }] : [
      store.capacity_bytes == null ? { text: store.wrong || "by its events", kind: store.wrong && "wrong" } : {
        text: `${bytes(store.used_bytes)} of ${bytes(store.capacity_bytes)}`, kind: "barred",
        parts: { store: store.used_bytes / store.capacity_bytes },
      },
      number(store.objects), rate(store), number(store.evictions),
    ]),
  ]), "The router knows of no node store (--dashboard-store names them).");
  const rows = stores.flatMap(store => (store.buckets_wrong
    ? [["–", { text: short(store.name), kind: "name" }, { text: store.buckets_wrong, span: 3, kind: "wrong" }]]
    : store.buckets.map(bucket => [
      { text: bucket.bucket, kind: "name" }, { text: short(store.name), kind: "name" }, bytes(bucket.bytes), number(bucket.objects), rate(bucket),
    ])));
  fill(byId("buckets"), rows, stores.some(store => !store.wrong) ? "Nothing is stored." : "Nothing is known.");
}

function showRows(rows) {
  fill(byId("rows"), rows.map(row => {
    const tiers = Object.entries(row.predicted_by_tier).map(([tier, tokens]) => `${tier} ${number(tokens)}`).join(", ");
    const isGood = row.status > 0 && row.status < 400 && !row.aborted_by;
    const status = row.aborted_by ? `${row.aborted_by} left` : String(row.status || "none");
    return [
      clock(row.time), { text: row.model || "–", kind: "name" }, row.endpoint ? short(row.endpoint) : "none", row.reason || "–",
      row.total_blocks ? `${row.matched_blocks} of ${row.total_blocks}` : "–",
      number(row.predicted_tokens) + (tiers ? ` (${tiers})` : ""), number(row.cached_tokens), number(row.prompt_tokens),
      seconds(row.ttft_s), seconds(row.seconds),
      { text: status + (row.attempts > 1 ? `, ${row.attempts} attempts` : ""), kind: isGood ? "good" : "wrong" },
    ];
  }), "No request yet.");
}

function showStrategies({ arms, turned_off: off, index_bytes: index, workers }) {
  fill(byId("arms"), arms.map(arm => [
    { text: arm.model || "all others", kind: "name" }, arm.strategy, arm.arm, percent(arm.share), number(arm.requests),
  ]), "None.");
  const main = arms.find(arm => arm.arm === "main" && !arm.model) ?? arms[0];
  const badges = [main?.strategy, workers > 1 && `${workers} workers`, off.length && "affinity is off"].filter(Boolean);
  setText(byId("strategy"), badges.join(" · "));
  setText(byId("index"), index ? `What the router knows of caches takes ${bytes(index)}.` : "");
}

watch();
